//! The plays: every order of up to three debits and a whole refund, and what else may happen to a
//! purchase.

use super::play::Op::{Buy, Debit, Edit, Other, Turn, TurnDebit};
use super::play::{Cents, Merchant, Op, Play, Style};

/// A purchase's amount, and what up to three debits take of it, of either sign.
const SHARES: [(&str, Cents, [Cents; 3]); 6] = [
    ("quarter, half, rest", 10000, [-2500, 5000, -2500]),
    ("thirds", 10000, [3333, -3333, 3334]),
    ("sevenths", 7000, [-1000, -2000, -3000]),
    ("short", 12000, [1200, 2400, 3600]),
    ("too much", 10000, [-6000, -6000, -6000]),
    ("all, and more", 8000, [-8000, -2000, 9000]),
];

/// How a debit comes to count, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Birth {
    /// It is made completed.
    Completed,
    /// It was there from the start, pending.
    Pending,
    /// It was there from the start, pending, and is cancelled.
    Cancelled,
    /// It is made completed, and cancelled after everything.
    Undone,
}

const BIRTHS: [Birth; 4] = [Birth::Completed, Birth::Pending, Birth::Cancelled, Birth::Undone];

/// Orders of the numbers below `count`.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let Some(last) = count.checked_sub(1) else { return vec![Vec::new()] };
    let insert = |order: Vec<usize>| {
        (0..count).map(move |at| {
            let mut order = order.clone();
            order.insert(at, last);
            order
        })
    };
    orders(last).into_iter().flat_map(insert).collect()
}

/// Every order, once for each table of shares. The other choices vary from play to play and from
/// `act` to act, so that the acts together cover every pair of them.
pub(super) fn permutations(act: u64, merchants: &[Merchant]) -> Vec<Play> {
    let mut plays = Vec::new();
    for (shares, amount, debits) in SHARES {
        for count in 0..=debits.len() {
            let of_debits = &debits[..count];
            let with_whole = orders(count + 1).into_iter().map(|order| (order, true));
            let without = orders(count).into_iter().take(2).map(|order| (order, false));
            for (order, whole) in with_whole.chain(without) {
                let seed = act << 32 | plays.len() as u64;
                let name = format!("act {act}, {shares} {order:?} {whole}");
                let mut choice = fastrand::Rng::with_seed(seed);
                plays.push(permutation(name, amount, of_debits, &order, &mut choice, merchants));
            }
        }
    }
    plays
}

/// Half of the plays: for an odd `act` the other half.
pub(super) fn every_other(act: u64, merchants: &[Merchant]) -> Vec<Play> {
    let plays = permutations(act, merchants).into_iter().enumerate();
    let half = plays.filter(|(number, _)| *number as u64 % 2 == act % 2);
    half.map(|(_, play)| play).collect()
}

/// If `order` has more numbers than there are debits, the highest stands for the whole.
fn permutation(
    name: String,
    amount: Cents,
    debits: &[Cents],
    order: &[usize],
    choice: &mut fastrand::Rng,
    merchants: &[Merchant],
) -> Play {
    let mut pick = |what: usize| choice.usize(..what);
    let births: Vec<_> = debits.iter().map(|_| BIRTHS[[0, 0, 0, 1, 1, 2, 3][pick(7)]]).collect();
    let mut ops = if pick(3) == 0 {
        vec![Op::Buy("pending"), Op::Turn("completed")]
    } else {
        vec![Op::Buy("completed")]
    };
    for (debit, birth) in births.iter().enumerate() {
        if matches!(birth, Birth::Pending | Birth::Cancelled) {
            ops.push(Op::Debit(debit, "pending"));
        }
    }
    let born = ops.len();
    let whole = ["refunded", "cancelled"][pick(2)];
    ops.extend(order.iter().map(|&at| match births.get(at) {
        Some(Birth::Completed | Birth::Undone) => Op::Debit(at, "completed"),
        Some(Birth::Pending) => Op::TurnDebit(at, "completed"),
        Some(Birth::Cancelled) => Op::TurnDebit(at, "cancelled"),
        None => Op::Turn(whole),
    }));
    let before = ops.len();
    for (debit, birth) in births.iter().enumerate() {
        if *birth == Birth::Undone {
            ops.push(Op::TurnDebit(debit, "cancelled"));
        }
    }
    let tail = ops.len() - before;
    let (style, logged_changes) = (Style::ALL[pick(Style::ALL.len())], pick(2) == 0);
    let merchant = merchants[pick(merchants.len())];
    let name =
        format!("{name} {births:?} {whole} {style:?} {merchant:?} logged_changes {logged_changes}");
    Play { merchant, style, logged_changes, born, tail, ..Play::new(name, amount, debits, ops) }
}

/// A purchase of 100.00 and debits of it.
fn special(name: &str, debits: &[Cents], ops: &[Op], merchants: &[Merchant]) -> Vec<Play> {
    let of = |merchant: &Merchant| Play {
        merchant: *merchant,
        ..Play::new(format!("{name} at {merchant:?}"), 10000, debits, ops.to_vec())
    };
    merchants.iter().map(of).collect()
}

/// Lives of a purchase that are no permutation: debits, and what happens.
const LIVES: [(&str, &[Cents], &[Op]); 15] = [
    ("edited", &[], &[Buy("completed"), Edit, Edit]),
    ("edited, taken back, edited", &[], &[Buy("completed"), Edit, Turn("refunded"), Edit]),
    ("never counted", &[], &[Buy("pending"), Turn("cancelled")]),
    ("refunded, then cancelled", &[], &[Buy("completed"), Turn("refunded"), Turn("cancelled")]),
    (
        "partially refunded by word alone",
        &[],
        &[Buy("completed"), Turn("partially_refunded"), Edit],
    ),
    (
        "partially refunded, then wholly",
        &[-2500],
        &[Buy("completed"), Debit(0, "completed"), Turn("partially_refunded"), Turn("refunded")],
    ),
    (
        "partially refunded, then wholly, then a debit",
        &[-2500],
        &[Buy("completed"), Turn("partially_refunded"), Turn("refunded"), Debit(0, "completed")],
    ),
    ("reopened and cancelled", &[], &[Buy("completed"), Turn("processing"), Turn("cancelled")]),
    (
        "reopened, a debit, and cancelled",
        &[4000],
        &[Buy("completed"), Turn("processing"), Debit(0, "completed"), Turn("cancelled")],
    ),
    ("reopened and completed", &[], &[Buy("completed"), Turn("processing"), Turn("completed")]),
    ("again", &[], &[Buy("completed"), Turn("refunded"), Turn("completed")]),
    (
        "again, and taken back again",
        &[],
        &[Buy("completed"), Turn("refunded"), Turn("completed"), Turn("cancelled")],
    ),
    (
        "a debit, and again",
        &[2500],
        &[Buy("completed"), Debit(0, "completed"), Turn("refunded"), Turn("completed")],
    ),
    (
        "a debit, again, and a debit",
        &[2500, -3000],
        &[
            Buy("completed"),
            Debit(0, "completed"),
            Turn("refunded"),
            Turn("completed"),
            Debit(1, "completed"),
        ],
    ),
    (
        "completed twice by its debit",
        &[2500],
        &[
            Buy("completed"),
            Debit(0, "completed"),
            TurnDebit(0, "processing"),
            TurnDebit(0, "completed"),
            Turn("refunded"),
        ],
    ),
];

/// A debit comes right after its purchase counts once more. If it is handled first, it counts for
/// the award before: the rows alone do not tell (behaviour section 3).
const RACE: &str = "a debit, again, and a debit";

/// Lives that end the same in any order of handling, at each of these merchants.
pub(super) fn steady_lives(merchants: &[Merchant]) -> Vec<Play> {
    let mut plays = lives(merchants);
    plays.retain(|play| !play.name.starts_with(RACE));
    plays
}

/// Lives of which Redis may forget everything. A purchase taken back while its award slept leaves
/// no trace in the wallet. If it counts once more and only its present state is known, its award
/// takes the same id again, which Inngest drops (behaviour section 3).
pub(super) fn forgettable_lives(merchants: &[Merchant], whole_before: bool) -> Vec<Play> {
    let mut plays = lives(merchants);
    let sleeps = |play: &Play| play.merchant != Merchant::Now;
    plays.retain(|play| whole_before || !sleeps(play) || !play.counts_again());
    plays
}

/// All lives, at each of these merchants.
pub(super) fn lives(merchants: &[Merchant]) -> Vec<Play> {
    LIVES.iter().flat_map(|(name, debits, ops)| special(name, debits, ops, merchants)).collect()
}

/// A row that a debit could wrongly match: same number, created at another time.
const TWIN: &str = "INSERT INTO purchase_ledger (merchant_id, user_id, transaction_number, transaction_date, \
    total_amount, final_amount, status, created_at) \
    VALUES ('{merchant}', NULL, 'T-{id}', now(), 40, 40, 'completed', ";

/// Debits whose original or share is hard to tell.
pub(super) fn hard() -> Vec<Play> {
    let now = [Merchant::Now];
    let one = |name: &str, ops: &[Op]| special(name, &[-2500], ops, &now).remove(0);
    let twin =
        |created: &str| -> Op { Other(Box::leak(format!("{TWIN}{created})").into_boxed_str())) };
    let of_purchase = "(SELECT created_at FROM purchase_ledger WHERE id = '{id}')";
    let set = |what: &'static str| -> Op {
        Other(Box::leak(format!("UPDATE purchase_ledger SET {what}").into_boxed_str()))
    };
    let mut hard = vec![
        one(
            "an older twin",
            &[
                Buy("completed"),
                twin("now() - interval '1 day'"),
                Debit(0, "completed"),
                Turn("refunded"),
            ],
        ),
        one(
            "a twin that comes later",
            &[Buy("completed"), twin("now() + interval '1 day'"), Debit(0, "completed")],
        ),
        one(
            "a debit of nobody counts for nothing",
            &[
                Buy("completed"),
                Debit(0, "pending"),
                set("user_id = NULL, status = 'completed' WHERE id = '{debit}'"),
                Turn("refunded"),
            ],
        ),
    ];
    let mut set_aside = [
        (
            "original_ambiguous",
            one("twins", &[Buy("completed"), twin(of_purchase), Debit(0, "completed")]),
        ),
        ("original_open", one("open", &[Buy("pending"), Debit(0, "completed")])),
        (
            "original_not_found",
            one(
                "not found",
                &[
                    Buy("completed"),
                    Other(
                        "INSERT INTO purchase_ledger (id, merchant_id, user_id, transaction_number, transaction_date, \
                     total_amount, final_amount, status, record_type, external_ref) \
                     VALUES ('{debit}', '{merchant}', '{user}', 'T', now(), 1, 1, 'completed', 'debit', 'X-{id}')",
                    ),
                ],
            ),
        ),
        (
            "", // as the decoder or the rule names it
            one(
                "no number",
                &[
                    Buy("completed"),
                    Debit(0, "pending"),
                    set("final_amount = 'NaN', status = 'completed' WHERE id = '{debit}'"),
                    Turn("refunded"),
                ],
            ),
        ),
    ];
    for (why, play) in &mut set_aside {
        play.letters.push((1, why));
    }
    hard.extend(set_aside.map(|(_, play)| play));
    hard
}

/// Referrals and claims that leave the status in which they counted, and one of each that stays.
pub(super) fn others() -> Vec<Play> {
    const REFERRAL: &str = "INSERT INTO referral_ledger (id, merchant_id, inviter_user_id, invitee_user_id, \
        reward_status, signed_up_at) VALUES ('{id}', '{merchant}', gen_random_uuid(), '{user}', 'completed', now())";
    const CLAIM: &str = "INSERT INTO mission_claims (id, merchant_id, user_id, mission_id, status, claimed_at) \
        VALUES ('{id}', '{merchant}', '{user}', gen_random_uuid(), 'approved', now())";
    let tables =
        [(REFERRAL, "referral_ledger", "reward_status"), (CLAIM, "mission_claims", "status")];
    let words = ["revoked", "rejected", "cancelled", "refunded", "void", "noted"];
    let mut plays = Vec::new();
    for (insert, table, column) in tables {
        for (number, word) in words.into_iter().enumerate() {
            let update = format!("UPDATE {table} SET {column} = '{word}' WHERE id = '{{id}}'");
            let update = Op::Other(Box::leak(update.into_boxed_str()));
            let name = format!("{table} {word}");
            let merchants = [[Merchant::Now, Merchant::Hour][number % 2]];
            let mut play = special(&name, &[], &[Op::Other(insert), update], &merchants).remove(0);
            play.left = Some(if word == "noted" { 10000 } else { 0 });
            plays.push(play);
        }
    }
    plays
}

#[test]
fn every_order_is_played() {
    let plays = permutations(1, &Merchant::ALL);
    // With the whole 1 + 2 + 6 + 24, without it 1 + 1 + 2 + 2.
    assert_eq!(plays.len(), SHARES.len() * (33 + 6));
    let mut names: Vec<_> = plays.iter().map(|play| &play.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), plays.len());
}
