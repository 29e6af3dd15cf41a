//! The whole way: SQL on a real PostgreSQL, a real Debezium, a real Kafka, the real daemon, and the
//! fake of Inngest. The fake of Supabase runs the daemon's calls on that PostgreSQL. Tables,
//! functions, publication, roles and connector are those of `config/`.

pub(crate) mod connector;
mod database;
mod expected;
mod kessel;
mod lives;
mod lost_log;
mod postgrest;
mod refunds;
mod refusals;
mod sample;
mod workflows;
mod world;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use self::expected::{Event, Expected};
use self::lives::{Identity, Lives, uuid, wallet};
use self::sample::{GOLD, KITCHEN, MEMBER_1, MEMBER_2, NOODLE_BOWL, NOODLES, SILVER};
use self::workflows::Workflows;
use self::world::World;
use test_support::feed;

/// A connector starts, and Connect gives it a task, while other tests take the processors.
const SNAPSHOT: Duration = Duration::from_secs(240);
/// Awards whose latency is measured, in batches that are committed one purchase a transaction.
const BATCHES: usize = 10;
const BATCH: usize = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_sql_commits_becomes_the_events_that_the_rules_demand_and_the_balances_come_out_right()
{
    let since = Timestamp::now();
    let world = World::start().await;
    let workflows = world.workflows().await;
    let mut past = Past { events: 0, wallet: "-infinity".to_owned(), since, asleep: 0 };

    let found = past.next(&world, &workflows, "snapshot", sample::snapshot()).await;
    assert_eq!(past.asleep, 1, "the award of Books sleeps");
    tiers(
        &world,
        &found,
        &[(MEMBER_1.to_owned(), SILVER), (MEMBER_2.to_owned(), SILVER)],
        MEMBER_2,
    )
    .await;

    let mut set_aside = Vec::new();
    set_aside.append(&mut live(&world, &workflows, &mut past, Identity::Full).await);
    for table in feed::TABLES {
        let alter = format!("ALTER TABLE {table} REPLICA IDENTITY DEFAULT");
        world.commit(&[alter]).await;
    }
    set_aside.append(&mut live(&world, &workflows, &mut past, Identity::Default).await);

    let letters = world.dead_letters().await;
    let ours = |(consumer, value): &&(String, String)| {
        consumer != "reward" || value.contains(&world.prefix) // another test's commands
    };
    let letters: Vec<_> = letters.iter().filter(ours).collect();
    assert_eq!(letters.len(), set_aside.len(), "{letters:?}");
    for (consumer, id) in &set_aside {
        let found = letters.iter().any(|(of, value)| of == consumer && value.contains(id));
        assert!(found, "{id} is set aside by {consumer}: {letters:?}");
    }

    drop(workflows); // or what they write would be measured too
    latency(&world).await;
    world.stop().await;
}

/// Where a stretch of the run begins, in events and in time.
struct Past {
    events: usize,
    wallet: String,
    since: Timestamp,
    asleep: usize,
}

impl Past {
    /// Waits until everything committed has had its effect, compares, and returns the events.
    async fn next(
        &mut self,
        world: &World,
        workflows: &Workflows,
        stretch: &str,
        mut expected: Expected,
    ) -> Vec<Event> {
        self.asleep = world.settled(workflows).await.asleep;
        // Earned points advance missions, whoever credited them.
        let earned = world
            .text(&format!(
                "SELECT coalesce(json_agg(w), '[]')::text FROM wallet_ledger w \
                 WHERE merchant_id = '{NOODLES}' AND transaction_type = 'earn' AND currency = 'points' \
                 AND component <> 'reversal' AND created_at > '{}'",
                self.wallet
            ))
            .await;
        let earned: Vec<Value> = serde_json::from_str(&earned).expect("rows");
        for row in &earned {
            let text = |column: &str| row[column].as_str().expect("text");
            let columns =
                ["id", "user_id", "currency", "component", "source_type", "source_id", "amount"];
            let compared = columns.map(|column| (column.to_owned(), row[column].clone()));
            let compared = Value::Object(compared.into_iter().collect());
            expected.mission("points_earned", text("id"), text("user_id"), compared);
        }
        let of_another_test = |event: &Event| {
            let id = event.data["event_id"].as_str();
            id.is_some_and(|id| !id.starts_with(&world.prefix))
        };
        let mut found = world.fake.inspect(|log| Event::from(log, self.events));
        self.events += found.len();
        found.retain(|event| !of_another_test(event));
        let tiers = found.extract_if(.., |event| event.name.starts_with("tier/")).collect();
        expected.compare(stretch, found, self.since);
        self.wallet = world.text("SELECT now()::text").await;
        self.since = Timestamp::now();
        tiers
    }
}

/// Plays all lives; returns the dead letters by consumer.
async fn live(
    world: &World,
    workflows: &Workflows,
    past: &mut Past,
    identity: Identity,
) -> Vec<(&'static str, String)> {
    let stretch = format!("{identity:?}");
    let asleep = past.asleep;
    let mut lives = Lives::all(identity, 1_000 + past.events as u64);
    // A member spends points, twice with one id, then more than there are.
    let spender = uuid();
    lives.first.push(wallet(&spender, "points", "earn", "base", 150));
    lives.balances.push((spender.clone(), "points", 50));
    let asked = |what: &str, reward: &str| {
        let id = format!("{}-{stretch}-{what}", world.prefix);
        let command = json!({"event_id": id, "user_id": spender, "reward_id": reward,
            "merchant_id": NOODLES});
        (id, command)
    };
    let (bowl, kitchen) = (asked("bowl", NOODLE_BOWL), asked("kitchen", KITCHEN));
    let malformed = asked("malformed", "no uuid");

    world.commit(&lives.first).await;
    world.settled(workflows).await;
    world.commit(&lives.second).await;
    let commands = [&bowl, &bowl, &kitchen, &malformed];
    let commands = commands.map(|(_, command)| (spender.clone(), command.to_string()));
    world.send_commands(&commands).await;
    let order = |status: &str| {
        let order = json!({"shop_id": 7, "order_sn": stretch, "order_status": status});
        ("shop-7".to_owned(), order.to_string())
    };
    world.send_orders(&[order("UNPAID"), order("PAID")]).await;
    lives.expected.event(
        &format!("marketplace/order-received:shopee:7:{stretch}:PAID"),
        json!({"platform": "shopee", "shop_id": "7", "order_sn": stretch, "order_status": "PAID"}),
    );

    world.settled(workflows).await;
    for (name, (id, command), success) in
        [("reward/redeemed", &bowl, true), ("reward/redemption-failed", &kitchen, false)]
    {
        let answer = format!("SELECT answer::text FROM redemptions WHERE event_id = '{id}'");
        let answer: Value = serde_json::from_str(&world.text(&answer).await).expect("an answer");
        assert_eq!(answer["success"], success, "{answer}");
        let mut data = command.clone();
        data["quantity"] = 1.into();
        data["result"] = answer;
        lives.expected.event(&format!("{name}:{id}"), data);
    }
    let told = |message: &Value| message["messages"][0]["payload"]["event_id"] == kitchen.0;
    world.fake.until(|log| log.broadcasts.iter().any(told)).await;

    let found = past.next(world, workflows, &stretch, lives.expected).await;
    assert_eq!(past.asleep, asleep, "{stretch}: no award sleeps whose purchase was refunded");
    for (user, currency, balance) in &lives.balances {
        let sum = format!(
            "SELECT trim_scale(coalesce(sum(signed_amount), 0))::text FROM wallet_ledger \
             WHERE user_id = '{user}' AND currency = '{currency}'"
        );
        assert_eq!(world.text(&sum).await, balance.to_string(), "{stretch}: {currency} of {user}");
    }
    tiers(world, &found, &lives.tiers, &lives.scheduled).await;
    let lost = lives.set_aside.into_iter().map(|id| ("currency", id));
    lost.chain([("reward", malformed.0)]).collect()
}

/// Exactly these members were evaluated above an entry tier, and have this tier now. Only
/// `scheduled` has a scheduled upgrade: to Gold, a day after the points that earn it.
async fn tiers(world: &World, found: &[Event], members: &[(String, &str)], scheduled: &str) {
    for event in found {
        assert!(members.iter().any(|(user, _)| event.data["user_id"] == **user), "{event:?}");
        assert!(event.id.is_none(), "a repeat's event must not be dropped: {event:?}");
    }
    for (user, tier) in members {
        let of_user: Vec<_> =
            found.iter().filter(|event| event.data["user_id"] == **user).collect();
        let upgrades = of_user.iter().filter(|event| event.name == "tier/upgrade").count();
        let cancels = of_user.iter().filter(|event| event.name == "tier/upgrade-cancelled").count();
        assert!(cancels > 0 && cancels + upgrades == of_user.len(), "{of_user:?}");
        if user == scheduled {
            assert_eq!(cancels, upgrades, "cancel, then publish: {of_user:?}");
            let at = world
                .text(&format!(
                    "SELECT (max(created_at) + interval '1 day')::text FROM wallet_ledger \
                     WHERE user_id = '{user}' AND currency = 'points' AND transaction_type = 'earn'"
                ))
                .await;
            let last = &of_user.last().expect("an upgrade");
            let mut data = last.data.clone();
            let effective = data["effective_at"].take();
            let time = |text: &str| text.parse::<Timestamp>().expect("a time");
            assert_eq!(time(effective.as_str().expect("text")), time(&at));
            let demanded = json!({"user_id": user, "merchant_id": NOODLES, "to_tier_id": GOLD,
                "to_tier_ranking": 3, "effective_at": null});
            assert_eq!((last.name.as_str(), data), ("tier/upgrade", demanded));
        } else {
            assert_eq!(upgrades, 0, "{of_user:?}");
        }
        let now = format!("SELECT tier_id::text FROM member_tiers WHERE user_id = '{user}'");
        assert_eq!(world.text(&now).await, *tier, "the tier of {user}");
    }
}

/// Prints how long it takes from a purchase's commit, as its award carries it, to the award's
/// acceptance.
async fn latency(world: &World) {
    let awards = |log: &crm_event_processors::fakes::Log| {
        log.events.iter().filter(|event| &*event.name == "currency/award").count()
    };
    let before = world.fake.inspect(awards);
    for batch in 1..=BATCHES {
        let purchases: Vec<_> = (0..BATCH).map(|_| lives::completed("50.00")).collect();
        world.commit(&purchases).await;
        world.fake.until(|log| awards(log) == before + batch * BATCH).await;
    }
    let mut took: Vec<_> = world.fake.inspect(|log| {
        let measured = log.events.iter().filter(|event| &*event.name == "currency/award");
        let took = measured.skip(before).map(|event| {
            let data = event.data.as_deref().expect("data is kept");
            let data: Value = serde_json::from_str(data).expect("json");
            let committed = data["award_datetime"].as_str().expect("a time");
            let committed: Timestamp = committed.parse().expect("RFC 3339");
            let after_start = SignedDuration::try_from(event.at).expect("a short time");
            (world.started + after_start).duration_since(committed)
        });
        took.collect()
    });
    took.sort_unstable();
    let share = |percent: usize| took[(took.len() - 1) * percent / 100];
    let count = took.len();
    println!("{count} awards, commit to acceptance: p50 {:#}, p99 {:#}", share(50), share(99));
}
