//! Merchants' award settings, cached: in the process for a moment, in the cache Redis for longer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::award_time::{MerchantSettings, award_time};
use super::call::Calls;
use super::remembered::Remembered;
use crate::clients::redis::Cache;
use crate::engine::{Cx, Failure};

/// How long settings stay in the cache Redis (contract section 3).
const CACHED: Duration = Duration::from_secs(300);

const TABLE: &str = "merchant_master";
const COLUMNS: &str = "currency_award_delay_days,currency_award_delay_minutes,\
                       currency_award_time,currency_award_timezone";

/// Looks up merchants' settings: one request a merchant however many awards wait for it.
pub struct Merchants {
    calls: Calls,
    cache: Cache,
    known: Remembered<Option<Arc<MerchantSettings>>>,
}

impl Merchants {
    /// Nothing known yet.
    #[must_use]
    pub fn new(calls: Calls, cache: Cache) -> Self {
        Self { calls, cache, known: Remembered::default() }
    }

    /// The settings of `merchant`; `None` when there is no such merchant.
    ///
    /// # Errors
    /// When they can be read neither from a cache nor from Supabase.
    pub async fn settings(
        &self,
        cx: &Cx,
        merchant: &str,
    ) -> Result<Option<Arc<MerchantSettings>>, Failure> {
        self.known.get(merchant, || self.load(cx, merchant)).await
    }

    async fn load(
        &self,
        cx: &Cx,
        merchant: &str,
    ) -> Result<Option<Arc<MerchantSettings>>, Failure> {
        let key = format!("merchant:{merchant}:currency_config");
        if let Some(settings) = self.cache.get(&key).await.as_deref().and_then(cached) {
            return Ok(Some(Arc::new(settings)));
        }
        let id = format!("eq.{merchant}");
        let query = [("id", &*id), ("select", COLUMNS)];
        let rows: Vec<Box<RawValue>> = self.calls.look_up(cx, TABLE, &query).await?;
        let Some(row) = rows.first() else {
            tracing::warn!(merchant.id = merchant, "no such merchant, awarding without delay");
            return Ok(None);
        };
        // The merchant's fault and not the change's: its awards wait until somebody mends it, however
        // long that takes and whatever is answered to others meanwhile.
        let settings = MerchantSettings::deserialize(&**row).map_err(|error| Failure::Outage {
            breaker: self.calls.breaker_of_table(TABLE),
            kind: "merchant_settings",
            message: format!(
                "award settings of merchant {merchant} cannot be read: {error}; correct its row in \
                 {TABLE}, its awards wait for that"
            ),
            retry_after: None,
            attempted: false,
        })?;
        if award_time(&settings, Timestamp::now()).zone_unknown {
            tracing::warn!(
                merchant.id = merchant,
                "unknown currency_award_timezone, taking UTC until it is corrected"
            );
        }
        self.cache.set(&key, row.get(), CACHED).await;
        Ok(Some(Arc::new(settings)))
    }
}

/// Settings as they were put into the cache. Other parts of the CRM use it too: what lacks a column
/// is something else, and would say that awards are never delayed.
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
