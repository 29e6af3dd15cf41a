//! What the app is built from: breakers, stores, and the clients that consumers share.

use std::sync::Arc;

use secrecy::ExposeSecret;

use super::RunError;
use crate::clients::inngest::{Inngest, InngestConfig};
use crate::clients::redis::{Cache, connect};
use crate::clients::supabase::{Supabase, SupabaseConfig};
use crate::clients::{HttpConfig, SetupError};
use crate::config::{self, Settings};
use crate::consumers::call::Calls;
use crate::consumers::entry::Dependencies;
use crate::consumers::sender::Sender;
use crate::dedup::{MemoryStore, RedisStore, Store};
use crate::outage::{Backoff, Breakers};

/// Where the daemon keeps claims and finds cached settings.
pub struct Stores {
    /// Claims.
    pub claims: Box<dyn Store>,
    /// The cache that is shared with the rest of the CRM.
    pub cache: Cache,
}

impl Stores {
    /// The Redis servers of the settings. Connections are made on first use.
    ///
    /// # Errors
    /// When a URL is none.
    pub fn redis(settings: &Settings, breakers: &Breakers) -> Result<Self, RunError> {
        let window = settings.dedup.window;
        let claims: Box<dyn Store> = match &settings.redis.url {
            Some(url) => {
                let claims = connect(url.expose_secret())
                    .map_err(|_| RunError::RedisUrl { variable: "REDIS_URL" })?;
                tokio::spawn(crate::dedup::warn_of_eviction(claims.clone()));
                Box::new(RedisStore::new(claims, window))
            }
            None => {
                tracing::info!(
                    "REDIS_URL is not set: claims are kept in memory and end with the process"
                );
                Box::new(Arc::new(MemoryStore::new(window)))
            }
        };
        let cache = match &settings.redis.cache_url {
            Some(url) => {
                let cache = connect(url.expose_secret())
                    .map_err(|_| RunError::RedisUrl { variable: "CRM_CACHE_REDIS_URL" })?;
                Cache::new(cache, breakers.get("cache"))
            }
            None => Cache::none(),
        };
        Ok(Self { claims, cache })
    }
}

/// The breakers of one process.
pub(super) fn breakers(settings: &Settings) -> Arc<Breakers> {
    let engine = &settings.engine;
    let backoff = Backoff { base: engine.backoff_base, max: engine.backoff_max };
    Arc::new(Breakers::new(engine.breaker_threshold, backoff))
}

/// What consumers are built from, for whoever asks none of the clients: their rules need them all the
/// same. Must be called inside a tokio runtime.
///
/// # Errors
/// When an address or a key cannot be used.
pub fn unasked(settings: &Settings) -> Result<Dependencies<'_>, SetupError> {
    dependencies(settings, &breakers(settings), Cache::none())
}

/// What consumers are built from.
///
/// # Errors
/// When an address or a key cannot be used.
pub(super) fn dependencies<'s>(
    settings: &'s Settings,
    breakers: &Arc<Breakers>,
    cache: Cache,
) -> Result<Dependencies<'s>, SetupError> {
    let (calls, sender) = (calls(settings, breakers)?, sender(settings, breakers)?);
    Ok(Dependencies { settings, calls, sender, cache, breakers: Arc::clone(breakers) })
}

/// Bytes of the bound that events have, of all consumers: they are written and on their way.
pub(super) fn written_bytes(engine: &config::Engine) -> usize {
    engine.buffer_bytes / 4
}

fn http(settings: &Settings) -> HttpConfig {
    HttpConfig {
        connect_timeout: settings.clients.connect_timeout,
        timeout: settings.clients.request_timeout,
    }
}

/// The way to Supabase that the settings name. Without any it leads nowhere: no enabled consumer
/// needs it then.
fn calls(settings: &Settings, breakers: &Arc<Breakers>) -> Result<Calls, SetupError> {
    let mut config = match &settings.supabase {
        Some(supabase) => {
            SupabaseConfig::new(supabase.url.clone(), supabase.service_role_key.clone())
        }
        None => SupabaseConfig::new("http://supabase.invalid", "not-set".to_owned().into()),
    };
    config.http = http(settings);
    Ok(Calls::new(Supabase::new(&config, Arc::clone(breakers))?, Arc::clone(breakers)))
}

/// The way to Inngest that the settings name.
fn sender(settings: &Settings, breakers: &Arc<Breakers>) -> Result<Sender, SetupError> {
    let inngest = &settings.inngest;
    let config = InngestConfig {
        environment: inngest.env.clone(),
        max_wait: inngest.batch_wait,
        max_events: inngest.batch_events,
        max_bytes: inngest.batch_bytes,
        max_event_bytes: inngest.max_event_bytes,
        max_written_bytes: written_bytes(&settings.engine),
        requests: inngest.requests,
        settle: inngest.cancel_settle,
        backoff: Backoff { base: settings.engine.backoff_base, max: settings.engine.backoff_max },
        http: http(settings),
        ..InngestConfig::new(inngest.base_url.clone(), inngest.event_key.clone())
    };
    let breaker = breakers.get("inngest");
    Ok(Sender::new(Inngest::start(&config, Arc::clone(&breaker))?, breaker))
}
