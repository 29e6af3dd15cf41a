//! What happens to brokers, Redis, Inngest and Supabase: each has a hand of its own.

use std::sync::Arc;
use std::time::Duration;

use crm_event_processors::fakes::{Endpoint, Fault, Lasting};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::World;
use crate::history::{Harm, Kind};
use crate::plan::{Act, Steps};
use crate::services::{self, REDIS, Services};

impl World {
    /// Does what happens to one service, one thing after the other.
    pub(super) async fn service(&self, steps: Steps) {
        for (at, act) in steps {
            let mut progress = self.progress.subscribe();
            progress.wait_for(|written| *written >= at).await.expect("the load is written");
            if self.over() {
                return;
            }
            let from = self.clock.now();
            let harm = self.harm(&act).await;
            let (service, hits) = match &act {
                Act::Inngest { .. } => ("inngest ", Some(Kind::Event)),
                Act::Supabase { .. } => ("supabase ", Some(Kind::Call)),
                Act::EmptyRedis | Act::RedisAway { .. } | Act::FreezeRedis { .. } => {
                    ("redis ", None)
                }
                _ => ("", None),
            };
            self.note_at(harm, hits, None, from, format!("{service}{act}"));
        }
    }

    async fn harm(&self, act: &Act) -> Harm {
        let services = Arc::clone(&self.services);
        match act.clone() {
            Act::KillBroker { broker, down } | Act::StopBroker { broker, down } => {
                let kill = matches!(act, Act::KillBroker { .. });
                let task = spawn_blocking(move || {
                    let broker = services::broker(broker);
                    if kill {
                        services.kill(&broker)
                    } else {
                        services.stop(&broker)
                    }
                    std::thread::sleep(down);
                    services.start(&broker);
                });
                task.await.expect("the broker is back");
                Harm::Broker
            }
            Act::EmptyRedis => {
                spawn_blocking(move || restart_empty(&services)).await.expect("redis is back");
                Harm::Forgets
            }
            Act::RedisAway { time } => {
                let task = spawn_blocking(move || {
                    services.kill(REDIS);
                    std::thread::sleep(time);
                    services.start(REDIS);
                });
                task.await.expect("redis is back");
                Harm::Forgets
            }
            Act::FreezeRedis { time } => {
                let task = spawn_blocking(move || {
                    services.freeze(REDIS);
                    std::thread::sleep(time);
                    services.thaw(REDIS);
                });
                task.await.expect("redis goes on");
                Harm::RedisAway
            }
            Act::Inngest { fault, time } => self.fail(&[Endpoint::Post], &fault, time).await,
            Act::Supabase { fault, time } => {
                self.fail(&[Endpoint::Rpc, Endpoint::Rest], &fault, time).await
            }
            Act::Kill { .. } | Act::Stop { .. } | Act::Freeze { .. } | Act::Join => {
                unreachable!("members have hands of their own")
            }
        }
    }

    async fn fail(&self, endpoints: &[Endpoint], fault: &Fault, time: Duration) -> Harm {
        for endpoint in endpoints {
            self.fake.fail(*endpoint, fault.clone(), Lasting::UntilHealed);
        }
        sleep(time).await;
        for endpoint in endpoints {
            self.fake.heal(*endpoint);
        }
        match fault {
            Fault::HandledThenReset | Fault::Truncated => Harm::AnswerLost,
            _ => Harm::Refused,
        }
    }
}

pub(super) fn restart_empty(services: &Services) {
    services.kill(REDIS);
    services.start(REDIS);
}
