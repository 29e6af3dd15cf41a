//! Doubles of the services, in this process, for the demo and the tests: Inngest and Supabase in
//! one HTTP server, and beside it Kafka ([`broker`]).
//!
//! It behaves as the real services were seen to, oddities included, and fails on demand:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! use crm_event_processors::fakes::{Fake, Endpoint, Fault, Lasting, Options};
//!
//! let fake = Fake::start(Options::default()).await?;
//! fake.fail(Endpoint::Post, Fault::too_many(1), Lasting::Next(3));
//! assert_eq!(fake.inspect(|log| log.events.len()), 0);
//! # Ok(())
//! # }
//! ```

pub mod broker;
mod connection;
mod faults;
mod inngest;
mod log;
mod supabase;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use std::{future, io};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, post};
use futures::StreamExt as _;
use futures::stream;
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use self::faults::{Endpoint, Fault, Lasting, Poison};
pub use self::log::{Log, Post, Requests, Stored};
pub use self::supabase::{
    Backend, Reply, active_missions, currency_rows, redemption_result, tier_status,
};

use self::connection::{Cut, Door};
use self::faults::Plan;
use self::supabase::Database;

/// How the fake is set up.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The only event key that is known; any that is not empty if `None`, as on a dev server.
    pub event_key: Option<String>,
    /// The only Supabase key that is known; any if `None`.
    pub supabase_key: Option<String>,
    /// Whether stored events keep their data. Off by default, for memory's sake.
    pub keep_data: bool,
}

/// A running fake. It takes no connections any more when it is dropped.
#[derive(Debug)]
pub struct Fake {
    shared: Arc<Shared>,
    url: String,
    server: JoinHandle<()>,
}

impl Fake {
    /// Starts a fake on a free port of 127.0.0.1. It knows the functions
    /// `calc_currency_for_source` ([`currency_rows`]), `evaluate_user_tier_status`
    /// ([`tier_status`]), `apply_tier_upgrade` and `redeem_reward_with_points`
    /// ([`redemption_result`]), the view `mv_mission_conditions_expanded` ([`active_missions`]) and
    /// the empty tables `merchant_master`, `purchase_ledger` and `wallet_ledger`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(Shared {
            options,
            started: Instant::now(),
            log: Mutex::default(),
            plans: Mutex::default(),
            functions: Mutex::default(),
            poison: RwLock::default(),
            database: Database::default(),
            changed: watch::Sender::new(()),
        });
        let app = Router::new()
            .route("/e", any(|| future::ready(StatusCode::OK)))
            .route("/e/", any(events_without_key))
            .route("/e/{key}", any(events))
            .route("/rest/v1/rpc/{function}", post(call))
            .route("/rest/v1/{table}", get(read))
            .route("/realtime/v1/api/broadcast", post(broadcast))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&shared));
        let app = app.into_make_service_with_connect_info::<Cut>();
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(Door(listener), app).await {
                tracing::error!(%error, "the fake has stopped");
            }
        });
        let fake = Self { shared, url, server };
        fake.define("calc_currency_for_source", |arguments| {
            let source_id = arguments.get("p_source_id").and_then(Value::as_str);
            Reply::json(&currency_rows(source_id.unwrap_or_default()).into())
        });
        fake.define("redeem_reward_with_points", |arguments| {
            let event_id = arguments.get("p_event_id").and_then(Value::as_str);
            Reply::json(&redemption_result(event_id.unwrap_or_default()))
        });
        fake.compute("mv_mission_conditions_expanded", supabase::mission_conditions);
        fake.define("evaluate_user_tier_status", |arguments| {
            let text = |name| arguments.get(name).and_then(Value::as_str).unwrap_or_default();
            Reply::json(&tier_status(text("p_user_id"), text("p_merchant_id")))
        });
        fake.define("apply_tier_upgrade", |_| Reply::void());
        for table in ["merchant_master", "purchase_ledger", "wallet_ledger"] {
            fake.fill(table, Vec::new());
        }
        Ok(fake)
    }

    /// The base address, of both services.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// When it was started: what the times in its log are counted from.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.shared.started
    }

    /// How long every request of one kind takes from now on, at least.
    pub fn set_latency(&self, endpoint: Endpoint, latency: Duration) {
        self.shared.plan(endpoint, |plan| plan.latency = latency);
    }

    /// Adds a fault, which comes after those that were added before it.
    pub fn fail(&self, endpoint: Endpoint, fault: Fault, lasting: Lasting) {
        self.shared.plan(endpoint, |plan| plan.add(fault, lasting));
    }

    /// As [`Fake::fail`], for one function only. Its faults come before those of all calls.
    pub fn fail_function(&self, function: &str, fault: Fault, lasting: Lasting) {
        self.shared.functions().entry(function.to_owned()).or_default().add(fault, lasting);
    }

    /// Ends all faults of one function. Hanging calls go on hanging.
    pub fn heal_function(&self, function: &str) {
        self.shared.functions().remove(function);
    }

    /// Ends all faults of one kind of request. Hanging requests go on hanging.
    pub fn heal(&self, endpoint: Endpoint) {
        self.shared.plan(endpoint, Plan::clear);
    }

    /// Marks events by id or name; `None` unmarks.
    pub fn poison(&self, id_or_name: &str, poison: Option<Poison>) {
        let mut marked = self.shared.poison.write().unwrap_or_else(PoisonError::into_inner);
        match poison {
            Some(poison) => marked.insert(id_or_name.to_owned(), poison),
            None => marked.remove(id_or_name),
        };
    }

    /// Defines a function, or another version of one.
    pub fn define(
        &self,
        function: &str,
        handler: impl Fn(&Map<String, Value>) -> Reply + Send + Sync + 'static,
    ) {
        self.define_for(function, move |_, arguments| handler(arguments));
    }

    /// As [`Fake::define`], for a function that distinguishes its callers: `handler` gets the key
    /// that the request came with, too.
    pub fn define_for(
        &self,
        function: &str,
        handler: impl Fn(&str, &Map<String, Value>) -> Reply + Send + Sync + 'static,
    ) {
        self.shared.database.define(function, handler);
    }

    /// Removes a function, as a deploy that is half done does.
    pub fn drop_function(&self, function: &str) {
        self.shared.database.drop_function(function);
    }

    /// Replaces a table's rows. The first row defines the columns.
    pub fn fill(&self, table: &str, rows: Vec<Map<String, Value>>) {
        self.shared.database.fill(table, rows);
    }

    /// Replaces a table by rows that are made for each query (column and filter, as they stand in
    /// the request) and filtered by it.
    pub fn compute(
        &self,
        table: &str,
        rows: impl Fn(&[(String, String)]) -> Vec<Map<String, Value>> + Send + Sync + 'static,
    ) {
        self.shared.database.compute(table, rows);
    }

    /// How many rows a read answers with at most: 1,000 unless a project says otherwise.
    pub fn cut_at(&self, max_rows: usize) {
        self.shared.database.cut_at(max_rows);
    }

    /// Lets `backend` answer functions and tables from now on. Those of [`Fake::define`],
    /// [`Fake::fill`] and [`Fake::compute`] are not asked any more. The first backend stays.
    pub fn delegate(&self, backend: impl Backend + 'static) {
        self.shared.database.delegate(backend);
    }

    /// Looks at what was seen so far.
    pub fn inspect<T>(&self, look: impl FnOnce(&Log) -> T) -> T {
        look(&self.shared.log())
    }

    /// Waits until what was seen satisfies a condition. The deadline is the caller's.
    pub async fn until(&self, mut reached: impl FnMut(&Log) -> bool) {
        let mut changes = self.shared.changed.subscribe();
        while !self.inspect(&mut reached) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Waits on a thread of its own: the runtime's timer is up to two milliseconds late, which a
/// benchmark of 20 ms would see.
async fn wait(latency: Duration) {
    // Fails only while the runtime shuts down.
    tokio::task::spawn_blocking(move || std::thread::sleep(latency)).await.ok();
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// What the handlers share.
struct Shared {
    options: Options,
    started: Instant,
    log: Mutex<Log>,
    plans: Mutex<[Plan; Endpoint::COUNT]>,
    /// Faults of single functions.
    functions: Mutex<HashMap<String, Plan>>,
    poison: RwLock<HashMap<String, Poison>>,
    database: Database,
    changed: watch::Sender<()>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Shared").field("log", &self.log).finish_non_exhaustive()
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plan<T>(&self, endpoint: Endpoint, change: impl FnOnce(&mut Plan) -> T) -> T {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut plans[endpoint.index()])
    }

    fn functions(&self) -> MutexGuard<'_, HashMap<String, Plan>> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latency and the fault that the next request meets.
    fn meet(&self, endpoint: Endpoint, function: Option<&str>) -> (Duration, Option<Fault>) {
        let own = function.and_then(|name| self.functions().get_mut(name)?.take());
        self.plan(endpoint, |plan| (plan.latency, own.or_else(|| plan.take())))
    }

    fn poison(&self, name: &str, id: Option<&str>) -> Option<Poison> {
        let marked = self.poison.read().unwrap_or_else(PoisonError::into_inner);
        id.and_then(|id| marked.get(id)).or_else(|| marked.get(name)).cloned()
    }

    /// Counts a request; it counts as under way until the guard is dropped.
    fn arrive(&self, endpoint: Endpoint, bytes: usize) -> UnderWay<'_> {
        let mut log = self.log();
        let requests = log.requests_mut(endpoint);
        requests.count += 1;
        requests.bytes += bytes as u64;
        requests.largest = requests.largest.max(bytes);
        requests.under_way += 1;
        requests.most_under_way = requests.most_under_way.max(requests.under_way);
        drop(log);
        self.changed.send_replace(());
        UnderWay { shared: self, endpoint }
    }
}

struct UnderWay<'a> {
    shared: &'a Shared,
    endpoint: Endpoint,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.shared.log().requests_mut(self.endpoint).under_way -= 1;
        self.shared.changed.send_replace(());
    }
}

type Doubled = State<Arc<Shared>>;

async fn events_without_key(State(shared): Doubled, method: Method) -> Response {
    inngest::turn_away(&shared, &method, "").unwrap_or_default()
}

async fn events(
    State(shared): Doubled,
    ConnectInfo(cut): ConnectInfo<Cut>,
    method: Method,
    Path(key): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Some(refusal) = inngest::turn_away(&shared, &method, &key) {
        inngest::record(&shared, &key, &headers, &body, refusal.status().as_u16());
        return refusal;
    }
    let request = Incoming { shared: &shared, endpoint: Endpoint::Post, function: None, cut: &cut };
    let unhandled = |status| inngest::record(&shared, &key, &headers, &body, status);
    let handle = async { inngest::take(&shared, &key, &headers, &body, &cut) };
    request.answer(body.len(), unhandled, handle).await
}

async fn call(
    State(shared): Doubled,
    ConnectInfo(cut): ConnectInfo<Cut>,
    Path(function): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    *shared.log().calls.entry(function.clone()).or_default() += 1;
    let request =
        Incoming { shared: &shared, endpoint: Endpoint::Rpc, function: Some(&function), cut: &cut };
    let handle = async {
        match supabase::turn_away(&headers, shared.options.supabase_key.as_deref()) {
            Some(refusal) => refusal.into_response(),
            None => shared
                .database
                .call(&function, supabase::key(&headers), &body)
                .await
                .into_response(),
        }
    };
    request.answer(body.len(), |_| {}, handle).await
}

async fn read(
    State(shared): Doubled,
    ConnectInfo(cut): ConnectInfo<Cut>,
    Path(table): Path<String>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Response {
    *shared.log().calls.entry(table.clone()).or_default() += 1;
    let request = Incoming { shared: &shared, endpoint: Endpoint::Rest, function: None, cut: &cut };
    let handle = async {
        match supabase::turn_away(&headers, shared.options.supabase_key.as_deref()) {
            Some(refusal) => refusal.into_response(),
            None => shared.database.read(&table, &query, &headers).await.into_response(),
        }
    };
    request.answer(0, |_| {}, handle).await
}

async fn broadcast(
    State(shared): Doubled,
    ConnectInfo(cut): ConnectInfo<Cut>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request =
        Incoming { shared: &shared, endpoint: Endpoint::Broadcast, function: None, cut: &cut };
    let handle = async {
        if let Some(refusal) = supabase::turn_away(&headers, shared.options.supabase_key.as_deref())
        {
            return refusal.into_response();
        }
        match serde_json::from_slice(&body) {
            Ok(message) => shared.log().broadcasts.push(message),
            Err(_) => return StatusCode::BAD_REQUEST.into_response(),
        }
        StatusCode::ACCEPTED.into_response()
    };
    request.answer(body.len(), |_| {}, handle).await
}

/// A request that may meet a fault.
struct Incoming<'a> {
    shared: &'a Shared,
    endpoint: Endpoint,
    function: Option<&'a str>,
    cut: &'a Cut,
}

impl Incoming<'_> {
    /// Answers after the latency, or meets the next fault. If the request is not handled, `handle`
    /// never runs and `unhandled` gets the status (0 for none).
    async fn answer(
        &self,
        bytes: usize,
        unhandled: impl FnOnce(u16),
        handle: impl Future<Output = Response>,
    ) -> Response {
        let _under_way = self.shared.arrive(self.endpoint, bytes);
        let (latency, fault) = self.shared.meet(self.endpoint, self.function);
        if fault.is_some() {
            self.shared.log().requests_mut(self.endpoint).faults += 1;
        }
        if !latency.is_zero() {
            wait(latency).await;
        }
        match fault {
            None => handle.await,
            Some(Fault::HandledThenReset) => {
                let answer = handle.await;
                self.cut.cut();
                answer
            }
            Some(Fault::Truncated) => half(handle.await).await,
            Some(Fault::Reset) => {
                unhandled(0);
                self.cut.cut();
                Response::default()
            }
            Some(Fault::Hang) => {
                unhandled(0);
                future::pending().await
            }
            Some(Fault::OddSuccess) => {
                unhandled(200);
                match self.endpoint {
                    Endpoint::Post => inngest::reply(200, &[], None),
                    _ => Reply::page(200).into_response(),
                }
            }
            Some(Fault::Status { status, retry_after, page }) => {
                unhandled(status);
                let mut answer = self.error(status, page);
                if let Some(seconds) = retry_after {
                    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
                }
                answer
            }
        }
    }

    fn error(&self, status: u16, page: bool) -> Response {
        match self.endpoint {
            _ if page => Reply::page(status).into_response(),
            Endpoint::Post => inngest::reply(status, &[], Some("a fault on demand")),
            _ => {
                let code = match status {
                    401 => "PGRST301",
                    503 => "PGRST002",
                    504 => "PGRST003",
                    _ => "XX000",
                };
                Reply::error(status, code, "a fault on demand").into_response()
            }
        }
    }
}

/// The first half of an answer, then the end of the connection.
async fn half(answer: Response) -> Response {
    let status = answer.status();
    let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap_or_default();
    let first = body.slice(..body.len() / 2);
    let broken = async {
        // Lets the server flush the first half before it learns that there is no second.
        tokio::task::yield_now().await;
        Err(io::Error::from(io::ErrorKind::ConnectionReset))
    };
    let body = stream::once(future::ready(Ok(first))).chain(stream::once(broken));
    (status, Body::from_stream(body)).into_response()
}

/// FNV-1a: the same on every machine and in every version, unlike the standard library's hashes.
fn stable_hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
