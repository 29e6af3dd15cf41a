//! Supabase's PostgREST: functions that callers supply, tables of rows that they fill, or a backend
//! that stands for both.

mod rows;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};

use super::stable_hash;

/// What a function or table answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    status: u16,
    kind: &'static str,
    body: String,
    /// `Content-Range`: which rows these are, and of how many where that was asked for.
    range: Option<String>,
}

impl Reply {
    /// 200 with a value, or an array of rows.
    #[must_use]
    pub fn json(value: &Value) -> Self {
        Self::json_text(value.to_string())
    }

    /// What a void function answers.
    #[must_use]
    pub fn void() -> Self {
        Self { status: 204, kind: "", body: String::new(), range: None }
    }

    /// As [`Reply::json`], for a value that is text already: exact decimals stay exact.
    #[must_use]
    pub fn json_text(body: String) -> Self {
        Self { status: 200, kind: "application/json; charset=utf-8", body, range: None }
    }

    /// `count` rows from `offset` on, as JSON text, with the number of all rows if that was asked
    /// for.
    #[must_use]
    pub fn page_of_rows(body: String, count: usize, offset: usize, total: Option<usize>) -> Self {
        rows::page_reply(body, count, offset, total).unwrap_or_else(|error| error)
    }

    /// PostgREST's error body, without details and hint.
    #[must_use]
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = json!({ "code": code, "details": null, "hint": null, "message": message });
        Self::error_body(status, &body)
    }

    /// An error with a body of the caller's own.
    #[must_use]
    pub fn error_body(status: u16, body: &Value) -> Self {
        Self { status, ..Self::json(body) }
    }

    /// A gateway's page.
    #[must_use]
    pub fn page(status: u16) -> Self {
        let body = format!("<html><body><h1>{status}</h1></body></html>");
        Self { status, kind: "text/html", body, range: None }
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if self.body.is_empty() {
            return status.into_response();
        }
        let range = self.range.map(|range| [(header::CONTENT_RANGE, range)]);
        (status, [(header::CONTENT_TYPE, self.kind)], range, self.body).into_response()
    }
}

/// What answers instead of the fake's own functions and tables: a real database, say.
pub trait Backend: Send + Sync {
    /// Calls a function with named arguments.
    fn call<'a>(
        &'a self,
        function: &'a str,
        arguments: &'a Map<String, Value>,
    ) -> BoxFuture<'a, Reply>;

    /// Reads rows of a table or view; `query` is PostgREST's: columns with their filters, `select`,
    /// `order`, `offset`, `limit`. `counted` asks for the number of all rows too.
    fn read<'a>(
        &'a self,
        table: &'a str,
        query: &'a [(String, String)],
        counted: bool,
    ) -> BoxFuture<'a, Reply>;
}

type Handler = Arc<dyn Fn(&str, &Map<String, Value>) -> Reply + Send + Sync>;
type Row = Map<String, Value>;
type MakeRows = Arc<dyn Fn(&[(String, String)]) -> Vec<Row> + Send + Sync>;

/// Where a table's rows come from.
#[derive(Clone)]
enum Table {
    /// They are there.
    Filled(Arc<Vec<Row>>),
    /// They are made for each query.
    Computed(MakeRows),
}

/// The functions and tables that are there.
pub(super) struct Database {
    functions: RwLock<HashMap<String, Handler>>,
    tables: RwLock<HashMap<String, Table>>,
    backend: OnceLock<Box<dyn Backend>>,
    max_rows: AtomicUsize,
}

/// How many rows Supabase answers with at most, unless a project says otherwise.
const MAX_ROWS: usize = 1_000;

impl Default for Database {
    fn default() -> Self {
        Self {
            functions: RwLock::default(),
            tables: RwLock::default(),
            backend: OnceLock::new(),
            max_rows: AtomicUsize::new(MAX_ROWS),
        }
    }
}

impl Database {
    pub(super) fn cut_at(&self, max_rows: usize) {
        self.max_rows.store(max_rows, Ordering::Relaxed);
    }

    pub(super) fn delegate(&self, backend: impl Backend + 'static) {
        self.backend.get_or_init(|| Box::new(backend));
    }

    pub(super) fn define(
        &self,
        name: &str,
        handler: impl Fn(&str, &Map<String, Value>) -> Reply + Send + Sync + 'static,
    ) {
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        functions.insert(name.to_owned(), Arc::new(handler));
    }

    pub(super) fn drop_function(&self, name: &str) {
        self.functions.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    pub(super) fn fill(&self, table: &str, rows: Vec<Row>) {
        self.put(table, Table::Filled(Arc::new(rows)));
    }

    pub(super) fn compute(
        &self,
        table: &str,
        rows: impl Fn(&[(String, String)]) -> Vec<Row> + Send + Sync + 'static,
    ) {
        self.put(table, Table::Computed(Arc::new(rows)));
    }

    fn put(&self, name: &str, table: Table) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        tables.insert(name.to_owned(), table);
    }

    pub(super) async fn call(&self, name: &str, key: &str, body: &[u8]) -> Reply {
        let Ok(Value::Object(arguments)) = serde_json::from_slice(body) else {
            return Reply::error(400, "PGRST102", "Empty or invalid json");
        };
        match self.backend.get() {
            Some(backend) => backend.call(name, &arguments).await,
            None => self.call_own(name, key, &arguments),
        }
    }

    fn call_own(&self, name: &str, key: &str, arguments: &Map<String, Value>) -> Reply {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        let handler = functions.get(name).cloned();
        drop(functions);
        handler.map_or_else(
            || {
                let names: Vec<&str> = arguments.keys().map(String::as_str).collect();
                let signature = format!("public.{name}({})", names.join(", "));
                let message =
                    format!("Could not find the function {signature} in the schema cache");
                Reply::error(404, "PGRST202", &message)
            },
            |handler| handler(key, arguments),
        )
    }

    pub(super) async fn read(
        &self,
        table: &str,
        query: &[(String, String)],
        headers: &HeaderMap,
    ) -> Reply {
        let counted = text(headers, "prefer").contains("count=exact");
        match self.backend.get() {
            Some(backend) => backend.read(table, query, counted).await,
            None => self.read_own(table, query, counted),
        }
    }

    fn read_own(&self, table: &str, query: &[(String, String)], counted: bool) -> Reply {
        let most = self.max_rows.load(Ordering::Relaxed);
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let found = tables.get(table).cloned();
        drop(tables);
        let selected = match found {
            Some(Table::Filled(rows)) => rows::select(table, &rows, query, counted, most),
            Some(Table::Computed(make)) => rows::select(table, &make(query), query, counted, most),
            None => {
                let message =
                    format!("Could not find the table 'public.{table}' in the schema cache");
                Err(Reply::error(404, "PGRST205", &message))
            }
        };
        selected.unwrap_or_else(|error| error)
    }
}

/// The key that a request came with.
pub(super) fn key(headers: &HeaderMap) -> &str {
    text(headers, "apikey")
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// What a gateway answers to a wrong key; `None` for a right one.
pub(super) fn turn_away(headers: &HeaderMap, key: Option<&str>) -> Option<Reply> {
    let api_key = self::key(headers);
    if key.is_some_and(|key| key != api_key) {
        let body = json!({ "message": "Invalid API key", "hint": "Double check your API key." });
        return Some(Reply { status: 401, ..Reply::json(&body) });
    }
    let bearer = text(headers, "authorization");
    if bearer.starts_with("Bearer sb_") {
        return Some(Reply::error(401, "PGRST301", "Expected 3 parts in JWT; got 1"));
    }
    let legacy = !api_key.starts_with("sb_");
    (legacy && key.is_some() && bearer != format!("Bearer {api_key}"))
        .then(|| Reply::error(401, "42501", "permission denied"))
}

/// What `calc_currency_for_source` answers here. It depends on the source's id alone, so that the
/// rows can be predicted. One source in ten earns nothing, one in four a ticket as well.
#[must_use]
pub fn currency_rows(source_id: &str) -> Vec<Value> {
    let hash = stable_hash(source_id.as_bytes());
    if hash.is_multiple_of(10) {
        return Vec::new();
    }
    let factor = format!("{:08x}-0000-4000-8000-{:012x}", hash >> 32, hash & 0xffff_ffff);
    let row = |currency: &str, amount: u64, target: Value| {
        json!({
            "currency_type": currency,
            "component": "base",
            "amount": amount,
            "earn_factor_id": factor,
            "target_entity_id": target,
        })
    };
    let mut rows = vec![row("points", 1 + hash % 997, Value::Null)];
    if (hash >> 8).is_multiple_of(4) {
        rows.push(row("ticket", 1, "00000000-0000-4000-8000-00000000071c".into()));
    }
    rows
}

/// What `redeem_reward_with_points` answers here. It depends on the event's id alone, so that a
/// repeat gets the first answer again. One redemption in five is refused, in both forms that there
/// are.
#[must_use]
pub fn redemption_result(event_id: &str) -> Value {
    let hash = stable_hash(event_id.as_bytes());
    match hash % 10 {
        0 => json!({
            "success": false,
            "error_code": "INSUFFICIENT_POINTS",
            "error_message": "Not enough points",
        }),
        1 => json!({
            "success": false,
            "title": "Out of stock",
            "description": "This reward is not available at the moment",
        }),
        _ => json!({
            "success": true,
            "redemption_id": format!("{:08x}-0000-4000-8000-{:012x}", hash >> 32, hash & 0xffff_ffff),
            "points_used": 100 * (1 + hash % 7),
        }),
    }
}

/// The missions that are active here for a merchant and an event type: up to three, and none for
/// one pair in four. They depend on these two alone.
#[must_use]
pub fn active_missions(merchant_id: &str, event_type: &str) -> Vec<String> {
    let hash = stable_hash(format!("{merchant_id}:{event_type}").as_bytes());
    // The low bits of this hash hardly depend on each other: the middle ones do the choosing.
    (0..(hash >> 20) % 4)
        .map(|number| format!("{:08x}-0000-4000-8000-{number:012x}", hash >> 32))
        .collect()
}

/// The rows of `mv_mission_conditions_expanded` that a query for one merchant and event type finds.
pub(super) fn mission_conditions(query: &[(String, String)]) -> Vec<Row> {
    let filter = |column: &str| {
        let found = query.iter().find(|(name, _)| name == column);
        found.and_then(|(_, filter)| filter.strip_prefix("eq.")).unwrap_or_default()
    };
    let (merchant_id, event_type) = (filter("merchant_id"), filter("condition_type"));
    let row = |mission_id: String| {
        Map::from_iter([
            ("mission_id".to_owned(), mission_id.into()),
            ("merchant_id".to_owned(), merchant_id.into()),
            ("condition_type".to_owned(), event_type.into()),
        ])
    };
    active_missions(merchant_id, event_type).into_iter().map(row).collect()
}

/// What `evaluate_user_tier_status` answers here. It depends on the member alone, so that it can be
/// predicted. Of ten members two get a scheduled upgrade, one an upgrade at once, one a downgrade,
/// one an entry tier; the others stay where they are.
#[must_use]
pub fn tier_status(user_id: &str, merchant_id: &str) -> Value {
    let hash = stable_hash(format!("{user_id}:{merchant_id}").as_bytes());
    let (action, timing) = match hash % 10 {
        0 | 1 => ("upgrade", Some(("days", 7, "2027-01-01T00:00:00+00:00"))),
        2 => ("upgrade", None),
        3 => ("downgrade", None),
        4 => ("assign_entry", None),
        _ => ("maintain", None),
    };
    let ranking = 1 + (hash >> 8) % 4;
    json!({
        "recommended_action": action,
        "recommended_tier_id": format!("00000000-0000-4000-8000-{ranking:012x}"),
        "to_tier_ranking": ranking,
        "upgrade_timing": timing.map(|(timing, ..)| timing),
        "upgrade_timing_value": timing.map(|(_, value, _)| value),
        "effective_at": timing.map(|(.., at)| at),
    })
}
