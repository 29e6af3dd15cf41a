//! What the plans alone say about every run of the tests.

use std::collections::BTreeSet;

use crm_event_processors::fakes::Fault;

use crate::BOUNDS;
use crate::plan::{Act, MINUTES, Plan, RATE, SEEDS, records};

/// What a plan holds, one name for each kind of thing.
fn kinds(plan: &Plan) -> BTreeSet<String> {
    let steps = plan.hands().into_iter().flat_map(|(_, steps)| steps);
    let mut kinds: BTreeSet<String> = steps.map(|(_, act)| kind(act)).collect();
    kinds.extend(plan.replays.iter().map(|_| "replay".to_owned()));
    kinds
}

fn kind(act: &Act) -> String {
    match act {
        Act::Kill { .. } => "member killed".to_owned(),
        Act::Stop { .. } => "member stopped".to_owned(),
        Act::Freeze { time } if *time > BOUNDS.session => "member frozen for long".to_owned(),
        Act::Freeze { .. } => "member frozen".to_owned(),
        Act::Join => "member joins".to_owned(),
        Act::KillBroker { .. } => "broker killed".to_owned(),
        Act::StopBroker { .. } => "broker stopped".to_owned(),
        Act::EmptyRedis => "redis emptied".to_owned(),
        Act::RedisAway { .. } => "redis away".to_owned(),
        Act::FreezeRedis { .. } => "redis frozen".to_owned(),
        Act::Inngest { fault, .. } => format!("inngest: {}", fault_kind(fault)),
        Act::Supabase { fault, .. } => format!("supabase: {}", fault_kind(fault)),
    }
}

fn fault_kind(fault: &Fault) -> &'static str {
    match fault {
        Fault::Reset => "reset",
        Fault::HandledThenReset => "handled, then reset",
        Fault::Truncated => "truncated",
        Fault::Hang => "hangs",
        Fault::OddSuccess => "odd success",
        Fault::Status { retry_after: Some(_), .. } => "status with Retry-After",
        Fault::Status { page: true, .. } => "a gateway's page",
        Fault::Status { .. } => "status",
    }
}

#[test]
fn the_usual_seeds_hold_everything_that_can_be_drawn_and_every_way_to_form_a_group() {
    let usual = SEEDS.map(|seed| Plan::new(seed, records(MINUTES), RATE));
    let long = (0..100).map(|seed| Plan::new(seed, records(5.0), RATE));
    let all: BTreeSet<String> = long.flat_map(|plan| kinds(&plan)).collect();
    let met: BTreeSet<String> = usual.iter().flat_map(kinds).collect();
    assert_eq!(met, all);
    for (name, found) in [
        ("classic", usual.iter().any(|plan| !plan.new_protocol && !plan.static_members)),
        ("KIP-848", usual.iter().any(|plan| plan.new_protocol)),
        ("static", usual.iter().any(|plan| plan.static_members)),
    ] {
        assert!(found, "{name}");
    }
}
