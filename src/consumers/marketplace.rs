//! Marketplace: orders are passed on as they come (behaviour section 7).
//!
//! Inngest batches them per shop, and batched functions ignore event ids: only the claims stand
//! against repeats.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};

use super::call::outcome;
use super::entry::{Entry, NO_BRANCHES};
use super::sender::{Sender, unwritable};
use crate::cdc::{self, Change, DecodeError, Record};
use crate::clients::inngest::Events;
use crate::config::{Commands, Family, Service, Setting, Spec, value};
use crate::engine::{
    Batched, Consumer, Context, Failure, Lane, Outcome, Route, Sends, Step, Steps,
};

const RECEIVED: &str = "marketplace/order-received";
/// The platform of an order that names none (behaviour section 7).
const PLATFORM: &str = "shopee";

/// The topic of orders (`KAFKA_TOPIC_MARKETPLACE_ORDERS`).
static ORDERS: Setting<String> = Setting {
    key: "orders_topic",
    variable: "KAFKA_TOPIC_MARKETPLACE_ORDERS",
    default: "marketplace.orders",
    about: "the topic of marketplace orders",
    parse: value::topic,
};

/// What it declares.
pub static SPEC: Spec = Spec {
    name: "marketplace",
    family: Family::Crm,
    by_default: true,
    tables: &[],
    changes: &[],
    commands: &[Commands::Setting(&ORDERS)],
    concurrency: "20",
    needs: &[Service::Redis, Service::Inngest],
    settings: &[&ORDERS],
};

/// How it is built.
pub const ENTRY: Entry = Entry {
    spec: &SPEC,
    build: |parts| Ok(Arc::new(Marketplace { sender: parts.sender.clone() })),
    branches: NO_BRANCHES,
};

/// The marketplace consumer.
pub struct Marketplace {
    /// Inngest.
    pub sender: Sender,
}

/// An order to be passed on. Its parts lie in the event's id, so that an order takes one
/// allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    id: Box<str>,
    /// Where platform, shop, order number and status end in `id`.
    ends: [usize; 4],
}

impl Work {
    fn new(parts: [&str; 4]) -> Self {
        let length = parts.iter().map(|part| part.len() + 1).sum::<usize>();
        let mut id = String::with_capacity(RECEIVED.len() + length);
        id.push_str(RECEIVED);
        let ends = parts.map(|part| {
            id.push(':');
            id.push_str(part);
            id.len()
        });
        Self { id: id.into_boxed_str(), ends }
    }

    /// The event's id, which is also the claim (behaviour section 8.2).
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    fn part(&self, index: usize) -> &str {
        let start = index.checked_sub(1).map_or(RECEIVED.len(), |before| self.ends[before]);
        &self.id[start + 1..self.ends[index]]
    }

    fn received(&self) -> Received<'_> {
        Received {
            shop_id: self.part(1),
            order_sn: self.part(2),
            order_status: self.part(3),
            platform: self.part(0),
        }
    }
}

#[derive(Serialize)]
struct Received<'a> {
    shop_id: &'a str,
    order_sn: &'a str,
    order_status: &'a str,
    platform: &'a str,
}

impl Consumer for Marketplace {
    type Work = Work;

    fn route(&self, _: &Change<'_>, _: Timestamp) -> Result<Route<Work>, DecodeError> {
        Ok(Route::Skip("not_a_command"))
    }

    fn route_command(&self, record: &Record<'_>) -> Result<Route<Work>, DecodeError> {
        route(record)
    }

    fn steps(&self, work: &Work) -> Steps {
        Steps {
            lane: work.id[RECEIVED.len() + 1..work.ends[2]].to_owned(),
            steps: vec![Step::claim(work.id()), Step::event(RECEIVED, Some(work.id().to_owned()))],
        }
    }

    async fn process(&self, cx: &Context, work: &Work) -> Result<Outcome, Failure> {
        let send = || async {
            let write = || Events::one(RECEIVED, Some(work.id()), &work.received());
            self.sender.send_with(cx, write).await.map(Some)
        };
        Ok(outcome(&[cx.once(work.id(), send).await?], "nothing_to_send"))
    }

    fn batched<'w>(&self, work: &'w Work) -> Option<Batched<'w>> {
        Some(Batched::claimed(work.id()))
    }

    async fn send_all(&self, cx: &Context, works: &[&Work]) -> Result<Box<dyn Sends>, Failure> {
        let write = |index: usize, events: &mut Events| {
            let work = works[index];
            events.push(RECEIVED, Some(work.id()), &work.received()).map_err(unwritable)
        };
        self.sender.send_all(cx, works.len(), write).await
    }
}

#[derive(DeriveDeserialize)]
struct Order<'a> {
    #[serde(borrow)]
    platform: Option<Text<'a>>,
    shop_id: Text<'a>,
    order_sn: Text<'a>,
    order_status: Text<'a>,
}

/// What to do about an order.
///
/// # Errors
/// When the record is no order.
pub fn route(record: &Record<'_>) -> Result<Route<Work>, DecodeError> {
    let Some(order): Option<Order<'_>> = cdc::command(record)? else {
        return Ok(Route::Skip("tombstone"));
    };
    if order.order_status.0 == "UNPAID" {
        return Ok(Route::Skip("unpaid"));
    }
    let named = [("shop_id", &order.shop_id), ("order_sn", &order.order_sn)];
    for (field, value) in named.into_iter().chain([("order_status", &order.order_status)]) {
        if value.0.is_empty() {
            return Err(DecodeError::Command { problem: format!("{field} is empty") });
        }
    }
    let platform = order.platform.as_ref().map(|platform| &*platform.0);
    let platform = platform.filter(|platform| !platform.is_empty()).unwrap_or(PLATFORM);
    let (shop, number) = (&*order.shop_id.0, &*order.order_sn.0);
    // One lane an order, not a shop (the key): a shop's orders need no order among themselves.
    let lane = Lane::in_partition((platform, shop, number));
    let work = Work::new([platform, shop, number, &order.order_status.0]);
    Ok(Route::Process { work, lane })
}

/// A string, or the digits of a whole number: shops are named both ways. Borrowed from the record
/// unless the string holds escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringOrNumber;
        impl<'de> Visitor<'de> for StringOrNumber {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a whole number")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(number.to_string())))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(number.to_string())))
            }
        }
        deserializer.deserialize_any(StringOrNumber)
    }
}

#[cfg(test)]
mod tests;
