//! Merchants' award settings, cached: in the process for a moment, in the cache Redis for longer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::award_time::{MerchantSettings, award_time};
use super::call::Calls;
use super::lookup_cache::LookupCache;
use crate::clients::redis::Cache;
use crate::engine::{Context, Failure, Step, Taken};
use crate::outage::Breaker;

/// How long settings stay in the cache Redis (behaviour section 3).
const CACHED: Duration = Duration::from_secs(300);

const TABLE: &str = "merchant_master";
const COLUMNS: &str = "currency_award_delay_days,currency_award_delay_minutes,\
                       currency_award_time,currency_award_timezone";

/// The name in readiness for settings that cannot be read, and how soon to look at them again.
const UNREADABLE: (&str, Duration) = ("merchant_settings", Duration::from_secs(10));

/// Looks up merchants' settings. All awards that wait for a merchant share one request.
pub struct Merchants {
    calls: Calls,
    cache: Cache,
    known: LookupCache<Known>,
    /// Stands for settings that cannot be read. Its error is the last of them.
    breaker: Arc<Breaker>,
    /// Merchants whose settings could not be read.
    unreadable: Mutex<BTreeSet<String>>,
}

/// What is known of a merchant.
#[derive(Clone)]
enum Known {
    /// Its settings; none where there is no such merchant.
    Settings(Option<Arc<MerchantSettings>>),
    /// What is wrong with them, in one line.
    Unreadable(Arc<str>),
}

impl Merchants {
    /// Nothing known yet.
    #[must_use]
    pub fn new(calls: Calls, cache: Cache) -> Self {
        let breaker = calls.breaker(UNREADABLE.0);
        let (known, unreadable) = (LookupCache::default(), Mutex::default());
        Self { calls, cache, known, breaker, unreadable }
    }

    /// The settings of `merchant`; `None` when there is no such merchant.
    ///
    /// # Errors
    /// When neither a cache nor Supabase can be read. Settings that make no sense are an outage
    /// that names the merchant. The change is not to blame: the merchant's awards wait until
    /// somebody mends the settings, however long that takes and however other merchants fare.
    pub async fn settings(
        &self,
        cx: &Context,
        merchant: &str,
    ) -> Result<Option<Arc<MerchantSettings>>, Failure> {
        let load = || cx.for_all(self.load(cx, merchant));
        let problem = match cx.in_turn(self.known.get(merchant, load)).await? {
            Known::Settings(settings) => return Ok(settings),
            Known::Unreadable(problem) => problem,
        };
        self.breaker.failed(Instant::now(), Some(UNREADABLE.1), &problem);
        Err(Failure::Outage {
            breaker: Arc::clone(&self.breaker),
            kind: UNREADABLE.0,
            message: problem.as_ref().to_owned(),
            retry_after: None,
            attempted: false,
        })
    }

    /// The steps that a look-up of `merchant`'s settings may take.
    #[must_use]
    pub fn steps(merchant: &str) -> [Step; 2] {
        [Step::cached(key(merchant)), Step::read(TABLE).when("not in the cache")]
    }

    async fn load(&self, cx: &Context, merchant: &str) -> Result<Known, Failure> {
        let key = key(merchant);
        cx.step(Taken::Cached(&key));
        if let Some(settings) = self.cache.get(&key).await.as_deref().and_then(cached) {
            return Ok(self.readable(merchant, Some(settings)));
        }
        let id = format!("eq.{merchant}");
        let query = [("id", &*id), ("select", COLUMNS)];
        let rows: Vec<Box<RawValue>> = self.calls.look_up(cx, TABLE, &query).await?;
        let Some(row) = rows.first() else {
            tracing::warn!(merchant.id = merchant, "no such merchant, awarding without delay");
            return Ok(self.readable(merchant, None));
        };
        let settings = match MerchantSettings::deserialize(&**row) {
            Ok(settings) => settings,
            Err(error) => {
                self.unreadable().insert(merchant.to_owned());
                let problem = format!(
                    "award settings of merchant {merchant} cannot be read: {error}; correct its row \
                     in {TABLE}, its awards wait for that"
                );
                return Ok(Known::Unreadable(problem.into()));
            }
        };
        if award_time(&settings, Timestamp::now()).zone_unknown {
            tracing::warn!(
                merchant.id = merchant,
                "unknown currency_award_timezone, taking UTC until it is corrected"
            );
        }
        self.cache.set(&key, row.get(), CACHED).await;
        Ok(self.readable(merchant, Some(settings)))
    }

    fn readable(&self, merchant: &str, settings: Option<MerchantSettings>) -> Known {
        let mut unreadable = self.unreadable();
        if unreadable.remove(merchant) && unreadable.is_empty() {
            self.breaker.succeeded();
        }
        Known::Settings(settings.map(Arc::new))
    }

    fn unreadable(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key of the cached settings (behaviour section 3).
fn key(merchant: &str) -> String {
    format!("merchant:{merchant}:currency_config")
}

/// Settings from the cache, which other parts of the CRM use too. An entry that lacks a column is
/// something else, and would mean that awards are never delayed.
fn cached(text: &str) -> Option<MerchantSettings> {
    let columns: BTreeMap<&str, IgnoredAny> = serde_json::from_str(text).ok()?;
    let whole = COLUMNS.split(',').all(|column| columns.contains_key(column));
    whole.then(|| serde_json::from_str(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_settings_are_taken_from_the_cache() {
        let whole = r#"{"currency_award_delay_days": 2, "currency_award_delay_minutes": null,
            "currency_award_time": null, "currency_award_timezone": "Asia/Bangkok"}"#;
        assert!(cached(whole).is_some());
        for other in ["{}", "[]", r#"{"delay_days": 3}"#, r#"{"currency_award_delay_days": 2}"#, ""]
        {
            assert!(cached(other).is_none(), "{other}");
        }
    }
}
