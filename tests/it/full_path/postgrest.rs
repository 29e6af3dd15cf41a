//! PostgREST, as far as the daemon uses it, on a real database: functions with named arguments,
//! rows by filters.
//!
//! Written after PostgREST 14's documentation (errors, functions as RPC, transactions), not after
//! the daemon's expectations. It runs everything under the role of the key.

use std::sync::{Mutex, PoisonError};

use crm_event_processors::fakes::{Backend, Reply};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Error, NoTls, Row};

/// The role of the service key.
const ROLE: &str = "service_role";

/// A PostgREST on one database.
pub(super) struct Postgrest {
    config: Config,
    idle: Mutex<Vec<Client>>,
}

/// A function as the schema cache knows it.
struct Function {
    /// Stable and immutable ones run in a transaction that may not write.
    read_only: bool,
    returns_set: bool,
    returns_void: bool,
    /// Names and types; from `required` on they have defaults.
    arguments: Vec<(String, String)>,
    required: usize,
}

impl Postgrest {
    /// Logs in as `config` says with the first request.
    pub(super) fn new(config: Config) -> Self {
        Self { config, idle: Mutex::default() }
    }

    async fn function(
        &self,
        name: &str,
        given: &Map<String, Value>,
    ) -> Result<Option<Function>, Error> {
        const LOOK_UP: &str = "
            SELECT p.provolatile <> 'v', p.proretset, p.prorettype = 'void'::regtype,
                   coalesce(p.proargnames[1:p.pronargs], '{}'),
                   ARRAY(SELECT format_type(a.type, NULL)
                         FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY a (type, n) ORDER BY a.n),
                   (p.pronargs - p.pronargdefaults)::integer
            FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.proname = $1";
        let client = self.client().await?;
        let rows = client.query(LOOK_UP, &[&name]).await?;
        self.give_back(client);
        let functions = rows.iter().map(|row| {
            let (names, types): (Vec<String>, Vec<String>) = (row.get(3), row.get(4));
            let required = usize::try_from(row.get::<_, i32>(5)).expect("a number of arguments");
            Function {
                read_only: row.get(0),
                returns_set: row.get(1),
                returns_void: row.get(2),
                arguments: names.into_iter().zip(types).collect(),
                required,
            }
        });
        Ok(functions.into_iter().find(|function| function.takes(given)))
    }

    async fn client(&self) -> Result<Client, Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(client) = idle.filter(|client| !client.is_closed()) {
            return Ok(client);
        }
        let (client, connection) = self.config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    fn give_back(&self, client: Client) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
    }

    /// Runs a query of one text in a transaction of its own.
    async fn ask(&self, read_only: bool, query: &str, payload: Option<&str>) -> Result<Row, Error> {
        let mut client = self.client().await?;
        let transaction = client.build_transaction().read_only(read_only).start().await?;
        transaction.batch_execute(&format!("SET LOCAL ROLE {ROLE}")).await?;
        let row = match payload {
            Some(payload) => transaction.query_one(query, &[&payload]).await?,
            None => transaction.query_one(query, &[]).await?,
        };
        transaction.commit().await?;
        self.give_back(client);
        Ok(row)
    }

    async fn try_call(&self, name: &str, arguments: &Map<String, Value>) -> Result<Reply, Error> {
        let Some(function) = self.function(name, arguments).await? else {
            let mut names: Vec<&str> = arguments.keys().map(String::as_str).collect();
            names.sort_unstable();
            let message = format!(
                "Could not find the function public.{name}({}) in the schema cache",
                names.join(", ")
            );
            return Ok(Reply::error(404, "PGRST202", &message));
        };
        let payload = Value::Object(arguments.clone()).to_string();
        let query = function.query(name, arguments);
        let row = self.ask(function.read_only, &query, Some(&payload)).await?;
        let answer: Option<String> = row.get(0);
        Ok(if function.returns_void {
            Reply::void()
        } else {
            Reply::json_text(answer.unwrap_or_else(|| "null".to_owned()))
        })
    }

    async fn try_read(
        &self,
        table: &str,
        query: &[(String, String)],
        counted: bool,
    ) -> Result<Reply, Error> {
        let client = self.client().await?;
        let relation = format!("public.{}", quoted(table));
        let there = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&relation]).await?;
        self.give_back(client);
        if !there.get::<_, bool>(0) {
            let message = format!("Could not find the table 'public.{table}' in the schema cache");
            return Ok(Reply::error(404, "PGRST205", &message));
        }
        let Some(select) = select(&relation, query) else {
            return Ok(Reply::error(400, "PGRST100", "failed to parse the query"));
        };
        let number = |count: i64| usize::try_from(count).expect("a number of rows");
        let page = self.ask(true, &select.query, None).await?;
        let offset = usize::try_from(select.offset).expect("a number of rows");
        let total = counted.then(|| number(page.get(2)));
        Ok(Reply::page_of_rows(page.get(0), number(page.get(1)), offset, total))
    }
}

impl Backend for Postgrest {
    fn call<'a>(
        &'a self,
        function: &'a str,
        arguments: &'a Map<String, Value>,
    ) -> BoxFuture<'a, Reply> {
        async move { self.try_call(function, arguments).await.unwrap_or_else(|e| refusal(&e)) }
            .boxed()
    }

    fn read<'a>(
        &'a self,
        table: &'a str,
        query: &'a [(String, String)],
        counted: bool,
    ) -> BoxFuture<'a, Reply> {
        async move { self.try_read(table, query, counted).await.unwrap_or_else(|e| refusal(&e)) }
            .boxed()
    }
}

impl Function {
    /// Whether all given arguments are known and all required ones are given.
    fn takes(&self, given: &Map<String, Value>) -> bool {
        let names = || self.arguments.iter().map(|(name, _)| name);
        given.keys().all(|name| names().any(|known| known == name))
            && names().take(self.required).all(|name| given.contains_key(name))
    }

    /// Calls it with the arguments in the payload, `$1`.
    fn query(&self, name: &str, given: &Map<String, Value>) -> String {
        let given = self.arguments.iter().filter(|(name, _)| given.contains_key(name));
        let (mut columns, mut named) = (Vec::new(), Vec::new());
        for (argument, kind) in given {
            let argument = quoted(argument);
            columns.push(format!("{argument} {kind}"));
            named.push(format!("{argument} := given.{argument}"));
        }
        let answer = match (self.returns_void, self.returns_set) {
            (true, _) => "count(*)::text",
            (_, true) => "coalesce(json_agg(answer), '[]')::text",
            _ => "to_json(answer)::text",
        };
        format!(
            "SELECT {answer} FROM json_to_record($1::text::json) AS given ({}), \
             LATERAL public.{}({}) AS answer",
            columns.join(", "),
            quoted(name),
            named.join(", ")
        )
    }
}

/// A query for rows, in SQL. It returns the page's rows as a JSON array, their number, and the
/// number of all rows.
struct Select {
    query: String,
    offset: u32,
}

/// How many rows Supabase answers with at most, unless a project says otherwise.
const MAX_ROWS: u32 = 1_000;

/// Parses a query; `None` if its form is one that the daemon never uses.
fn select(relation: &str, query: &[(String, String)]) -> Option<Select> {
    let (mut columns, mut conditions, mut order) = ("*".to_owned(), String::new(), String::new());
    let (mut offset, mut limit) = (0, MAX_ROWS);
    for (name, value) in query {
        match name.as_str() {
            "select" if value == "*" => {}
            "select" => columns = value.split(',').map(quoted).collect::<Vec<_>>().join(", "),
            "limit" => limit = value.parse::<u32>().ok()?.min(MAX_ROWS),
            "offset" => offset = value.parse().ok()?,
            "order" => {
                let terms: Option<Vec<String>> = value.split(',').map(order_term).collect();
                order = format!("ORDER BY {}", terms?.join(", "));
            }
            column => {
                let word = if conditions.is_empty() { "WHERE" } else { "AND" };
                let condition = condition(&quoted(column), value)?;
                conditions.push_str(&format!("{word} {condition} "));
            }
        }
    }
    let query = format!(
        "SELECT coalesce(json_agg(found), '[]')::text, count(*), \
                (SELECT count(*) FROM {relation} {conditions}) \
         FROM (SELECT {columns} FROM {relation} {conditions}{order} \
               LIMIT {limit} OFFSET {offset}) AS found"
    );
    Some(Select { query, offset })
}

fn order_term(text: &str) -> Option<String> {
    let mut parts = text.split('.');
    let mut term = quoted(parts.next()?);
    for part in parts {
        term.push_str(match part {
            "asc" => " ASC",
            "desc" => " DESC",
            "nullsfirst" => " NULLS FIRST",
            "nullslast" => " NULLS LAST",
            _ => return None,
        });
    }
    Some(term)
}

/// One filter on one column.
fn condition(column: &str, filter: &str) -> Option<String> {
    let (operator, value) = filter.split_once('.')?;
    let compared = |operator: &str| Some(format!("{column} {operator} {}", literal(value)));
    match operator {
        "not" => Some(format!("NOT ({})", condition(column, value)?)),
        "is" if matches!(value, "null" | "true" | "false") => Some(format!("{column} IS {value}")),
        "in" => {
            let items = items(value)?;
            let items: Vec<String> = items.iter().map(|item| literal(item)).collect();
            // An empty list matches nothing, and SQL cannot express it.
            Some(if items.is_empty() {
                "false".to_owned()
            } else {
                format!("{column} IN ({})", items.join(", "))
            })
        }
        "eq" => compared("="),
        "neq" => compared("<>"),
        "gt" => compared(">"),
        "gte" => compared(">="),
        "lt" => compared("<"),
        "lte" => compared("<="),
        _ => None,
    }
}

/// An untyped literal, which takes the column's type.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The items of `(a,"b,c")`.
fn items(text: &str) -> Option<Vec<String>> {
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

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// PostgREST's answer to an error of the database.
fn refusal(error: &Error) -> Reply {
    let Some(error) = error.as_db_error() else {
        return Reply::error(503, "PGRST001", "Database client error. Retrying the connection.");
    };
    let body = json!({
        "code": error.code().code(),
        "message": error.message(),
        "details": error.detail(),
        "hint": error.hint(),
    });
    Reply::error_body(status(error.code()), &body)
}

/// PostgREST's table of statuses, for a caller with a role.
fn status(code: &SqlState) -> u16 {
    match code.code() {
        "23503" | "23505" => 409,
        "25006" => 405,
        "42501" => 403,
        "42883" | "42P01" => 404,
        "42P17" | "53400" => 500,
        "P0001" => 400,
        code => match &code[..2] {
            "08" | "53" => 503,
            "0L" | "0P" | "28" => 403,
            "09" | "25" | "2D" | "38" | "39" | "3B" | "40" | "54" | "55" | "57" | "58" | "F0"
            | "HV" | "P0" | "XX" => 500,
            _ => 400,
        },
    }
}
