//! The rows that a query of PostgREST asks for: filters, order, pages and the server's own cut.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::Reply;

type Row = Map<String, Value>;

/// What a query says.
struct Query<'a> {
    columns: Option<Vec<&'a str>>,
    filters: Vec<(&'a str, Filter<'a>)>,
    order: Vec<Order<'a>>,
    offset: usize,
    limit: usize,
}

/// Answers a query over `rows`, with at most `most` of them; `counted` asks for the number of all.
pub(super) fn select(
    table: &str,
    rows: &[Row],
    query: &[(String, String)],
    counted: bool,
    most: usize,
) -> Result<Reply, Reply> {
    let query = Query::parse(table, rows, query)?;
    let mut found: Vec<&Row> = rows.iter().filter(|row| query.takes(row)).collect();
    // Stable: equal rows keep their order, as in a table that nobody changes.
    found.sort_by(|one, other| query.compare(one, other));
    let total = found.len();
    let page = found.into_iter().skip(query.offset).take(query.limit.min(most));
    let page: Vec<Value> = page.map(|row| query.shown(row)).collect();
    page_reply(
        Value::from(page.clone()).to_string(),
        page.len(),
        query.offset,
        counted.then_some(total),
    )
}

/// PostgREST's answer with some rows of `total`, where that was asked for.
///
/// # Errors
/// When there is nothing at `offset`. PostgREST notices this only when it counts.
pub(super) fn page_reply(
    body: String,
    count: usize,
    offset: usize,
    total: Option<usize>,
) -> Result<Reply, Reply> {
    if total.is_some_and(|total| offset > total) {
        return Err(Reply::error(416, "PGRST103", "Requested range not satisfiable"));
    }
    let of = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
    let range = match count {
        0 => format!("*/{of}"),
        _ => format!("{offset}-{}/{of}", offset + count - 1),
    };
    let status = if total.is_some_and(|total| count < total) { 206 } else { 200 };
    Ok(Reply { status, range: Some(range), ..Reply::json_text(body) })
}

impl<'a> Query<'a> {
    fn parse(table: &str, rows: &[Row], query: &'a [(String, String)]) -> Result<Self, Reply> {
        let known = |column: &str| match rows.first() {
            Some(row) if !row.contains_key(column) => {
                let message = format!("column {table}.{column} does not exist");
                Err(Reply::error(400, "42703", &message))
            }
            _ => Ok(()),
        };
        let unread = |what: &str| Reply::error(400, "PGRST100", &format!("failed to parse {what}"));
        let mut parsed = Self {
            columns: None,
            filters: Vec::new(),
            order: Vec::new(),
            offset: 0,
            limit: usize::MAX,
        };
        for (name, value) in query {
            match name.as_str() {
                "select" if value == "*" => {}
                "select" => parsed.columns = Some(value.split(',').collect()),
                "limit" => parsed.limit = value.parse().map_err(|_| unread("limit"))?,
                "offset" => parsed.offset = value.parse().map_err(|_| unread("offset"))?,
                "order" => {
                    let order = value.split(',').map(Order::parse).collect::<Option<_>>();
                    parsed.order = order.ok_or_else(|| unread("order"))?;
                }
                column => {
                    let filter = Filter::parse(value);
                    let filter = filter.ok_or_else(|| unread(&format!("filter ({value})")))?;
                    parsed.filters.push((column, filter));
                }
            }
        }
        let filtered = parsed.filters.iter().map(|(column, _)| *column);
        let ordered = parsed.order.iter().map(|order| order.column);
        for column in parsed.columns.iter().flatten().copied().chain(filtered).chain(ordered) {
            known(column)?;
        }
        Ok(parsed)
    }

    fn takes(&self, row: &Row) -> bool {
        self.filters.iter().all(|(column, filter)| filter.holds(of(row, column)))
    }

    fn compare(&self, one: &Row, other: &Row) -> Ordering {
        let by = |order: &Order<'_>| order.compare(of(one, order.column), of(other, order.column));
        self.order.iter().map(by).find(|found| found.is_ne()).unwrap_or(Ordering::Equal)
    }

    fn shown(&self, row: &Row) -> Value {
        match &self.columns {
            None => Value::Object(row.clone()),
            Some(columns) => {
                let shown = |column: &&str| ((*column).to_owned(), of(row, column).clone());
                columns.iter().map(shown).collect()
            }
        }
    }
}

fn of<'a>(row: &'a Row, column: &str) -> &'a Value {
    row.get(column).unwrap_or(&Value::Null)
}

struct Order<'a> {
    column: &'a str,
    descending: bool,
    nulls_first: bool,
}

impl<'a> Order<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('.');
        let column = parts.next().filter(|column| !column.is_empty())?;
        let mut order = Self { column, descending: false, nulls_first: false };
        for part in parts {
            match part {
                "asc" => order.descending = false,
                // PostgreSQL's default: nulls come first in descending order.
                "desc" => (order.descending, order.nulls_first) = (true, true),
                "nullsfirst" => order.nulls_first = true,
                "nullslast" => order.nulls_first = false,
                _ => return None,
            }
        }
        Some(order)
    }

    fn compare(&self, one: &Value, other: &Value) -> Ordering {
        match (one.is_null(), other.is_null()) {
            (true, true) => Ordering::Equal,
            (true, false) if self.nulls_first => Ordering::Less,
            (true, false) => Ordering::Greater,
            (false, true) if self.nulls_first => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let found = compare(one, &text(other));
                if self.descending { found.reverse() } else { found }
            }
        }
    }
}

/// Compares a value with one written as in a query: numbers as numbers, the rest as text.
fn compare(value: &Value, other: &str) -> Ordering {
    match (value.as_f64(), other.parse::<f64>()) {
        (Some(value), Ok(other)) => value.total_cmp(&other),
        _ => text(value).as_str().cmp(other),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

enum Filter<'a> {
    Not(Box<Self>),
    Is(Value),
    OneOf(Vec<String>),
    Compares(&'a str, fn(Ordering) -> bool),
}

impl<'a> Filter<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (operator, value) = text.split_once('.')?;
        let compares = |holds| Some(Self::Compares(value, holds));
        match operator {
            "not" => Some(Self::Not(Box::new(Self::parse(value)?))),
            "is" => Some(Self::Is(serde_json::from_str(value).ok()?)),
            "in" => list(value).map(Self::OneOf),
            "eq" => compares(Ordering::is_eq),
            "neq" => compares(Ordering::is_ne),
            "gt" => compares(Ordering::is_gt),
            "gte" => compares(Ordering::is_ge),
            "lt" => compares(Ordering::is_lt),
            "lte" => compares(Ordering::is_le),
            _ => None,
        }
    }

    fn holds(&self, value: &Value) -> bool {
        self.says(value) == Some(true)
    }

    /// As in SQL: `None` if a null is compared.
    fn says(&self, value: &Value) -> Option<bool> {
        match self {
            Self::Not(filter) => filter.says(value).map(|says| !says),
            Self::Is(is) => Some(value == is),
            _ if value.is_null() => None,
            Self::OneOf(list) => Some(list.iter().any(|one| compare(value, one).is_eq())),
            Self::Compares(other, holds) => Some(holds(compare(value, other))),
        }
    }
}

/// The items of `(a,"b,c")`.
fn list(text: &str) -> Option<Vec<String>> {
    let text = text.strip_prefix('(')?.strip_suffix(')')?;
    let (mut items, mut item, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => quoted = !quoted,
            '\\' if quoted => item.extend(chars.next()),
            ',' if !quoted => items.push(std::mem::take(&mut item)),
            char => item.push(char),
        }
    }
    if !text.is_empty() {
        items.push(item);
    }
    Some(items)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ids(rows: &[Row], query: &[(&str, &str)]) -> Vec<i64> {
        let named = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let query: Vec<_> = query.iter().map(named).collect();
        let reply = select("t", rows, &query, false, 1_000).expect("rows");
        let found: Vec<Row> = serde_json::from_str(&reply.body).expect("json");
        found.iter().map(|row| row["id"].as_i64().expect("a number")).collect()
    }

    #[test]
    fn filters_and_order_are_those_of_sql() {
        let row = |id: i64, status: Value| {
            Map::from_iter([("id".to_owned(), id.into()), ("status".to_owned(), status)])
        };
        let rows = [
            row(10, json!("pending")),
            row(2, json!("completed")),
            row(3, Value::Null),
            row(1, json!("a,b")),
        ];
        for (filter, expected) in [
            ("eq.pending", vec![10]),
            ("neq.pending", vec![1, 2]),
            ("in.(pending,\"a,b\")", vec![1, 10]),
            ("in.()", vec![]),
            ("not.in.(pending,\"a,b\")", vec![2]),
            ("is.null", vec![3]),
            ("not.is.null", vec![1, 2, 10]),
        ] {
            assert_eq!(ids(&rows, &[("status", filter), ("order", "id")]), expected, "{filter}");
        }
        assert_eq!(ids(&rows, &[("id", "lte.3"), ("id", "gt.1"), ("order", "id.desc")]), [3, 2]);
        assert_eq!(ids(&rows, &[("order", "status.desc,id")]), [3, 10, 2, 1], "nulls come first");
        assert_eq!(ids(&rows, &[("order", "id"), ("offset", "1"), ("limit", "2")]), [2, 3]);
    }

    #[test]
    fn a_server_cuts_and_tells_how_many_there_are_only_where_that_is_asked() {
        let rows: Vec<Row> =
            (0..25).map(|id: i64| Map::from_iter([("id".to_owned(), id.into())])).collect();
        let page = |offset: &str, counted| {
            let query = [("offset".to_owned(), offset.to_owned())];
            select("t", &rows, &query, counted, 10).map(|reply| (reply.status, reply.range))
        };
        let told = |status, range: &str| Ok((status, Some(range.to_owned())));
        assert_eq!(page("0", false), told(200, "0-9/*"));
        assert_eq!(page("0", true), told(206, "0-9/25"));
        assert_eq!(page("20", true), told(206, "20-24/25"));
        assert_eq!(page("30", false), told(200, "*/*"));
        assert_eq!(page("30", true).expect_err("beyond").status, 416);
    }
}
