//! The contents of `config/postgres/50-sample-data.sql`: the merchants of the lives, and what a
//! connector's first read of the rows causes.

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde_json::{Value, json};

use super::expected::Expected;

/// Awards at once.
pub(super) const NOODLES: &str = "10000000-0000-4000-8000-000000000001";
/// Awards in a week at nine in Bangkok, and has no missions.
pub(super) const BOOKS: &str = "10000000-0000-4000-8000-000000000002";
pub(super) const FIVE_BOWLS: &str = "50000000-0000-4000-8000-000000000001";
pub(super) const TELL_US_MORE: &str = "50000000-0000-4000-8000-000000000002";
pub(super) const BRING_A_FRIEND: &str = "50000000-0000-4000-8000-000000000003";
pub(super) const BRONZE: &str = "40000000-0000-4000-8000-000000000001";
pub(super) const SILVER: &str = "40000000-0000-4000-8000-000000000002";
pub(super) const GOLD: &str = "40000000-0000-4000-8000-000000000003";
/// Takes 100 points.
pub(super) const NOODLE_BOWL: &str = "60000000-0000-4000-8000-000000000001";
/// Takes a million.
pub(super) const KITCHEN: &str = "60000000-0000-4000-8000-000000000002";

/// Has points for Silver.
pub(super) const MEMBER_1: &str = "20000000-0000-4000-8000-000000000001";
/// Has points for Gold.
pub(super) const MEMBER_2: &str = "20000000-0000-4000-8000-000000000002";
/// Buys books.
pub(super) const MEMBER_3: &str = "20000000-0000-4000-8000-000000000003";

/// Currency rows of a purchase at Noodles: a point for each 25, a ticket for each 1,000.
pub(super) fn of_purchase(points: u32, tickets: u32) -> Value {
    let mut rows = vec![row("points", "base", points, 1)];
    if tickets > 0 {
        rows.push(row("ticket", "bonus", tickets, 2));
    }
    rows.into()
}

pub(super) fn of_referral() -> Value {
    json!([row("points", "bonus", 100, 3)])
}

pub(super) fn of_mission() -> Value {
    json!([row("points", "bonus", 50, 4)])
}

/// Of a purchase at Books: two points for each 100.
pub(super) fn of_books(points: u32) -> Value {
    json!([row("points", "base", points, 5)])
}

fn row(currency: &str, component: &str, amount: u32, factor: u32) -> Value {
    json!({"currency_type": currency, "component": component, "amount": amount,
        "earn_factor_id": format!("30000000-0000-4000-8000-{factor:012}"),
        "target_entity_id": null})
}

/// When an award of Books for a change of that time is due: on the seventh day at nine in Bangkok.
pub(super) fn due_at_books(committed: Timestamp) -> Timestamp {
    let bangkok = TimeZone::get("Asia/Bangkok").expect("a time zone");
    let today = committed.to_zoned_datetime(bangkok.clone()).date();
    let day = today.saturating_add(Span::new().days(7));
    let due = day.to_datetime(Time::constant(9, 0, 0, 0)).to_zoned_datetime(bangkok);
    due.expect("a time").timestamp()
}

/// What the snapshot of the sample rows demands: they are younger than 20 hours.
pub(super) fn snapshot() -> Expected {
    let purchase = |number: u32| format!("70000000-0000-4000-8000-{number:012}");
    let mut expected = Expected::default();
    expected.award("purchase", &purchase(1), MEMBER_1, NOODLES, &of_purchase(50, 1));
    let row = json!({"transaction_number": "N-1", "final_amount": 1250.00, "status": "completed"});
    expected.mission("purchase", &purchase(1), MEMBER_1, row);
    expected.award("purchase", &purchase(4), MEMBER_3, BOOKS, &of_books(8));
    expected.reverse(&purchase(5), MEMBER_3, BOOKS, Some((&purchase(4), 25)));

    let referral = "80000000-0000-4000-8000-000000000001";
    expected.award("referral", referral, MEMBER_2, NOODLES, &of_referral());
    expected.mission("referral_signup", referral, MEMBER_1, json!({"invitee_user_id": MEMBER_2}));
    let claim = "90000000-0000-4000-8000-000000000001";
    expected.award("mission", claim, MEMBER_1, NOODLES, &of_mission());
    let form = "a0000000-0000-4000-8000-000000000001";
    expected.mission("form_submission", form, MEMBER_1, json!({"status": "completed"}));
    expected
}
