//! The steps of each kind of work.

use super::ledger::{PURCHASES, WALLET};
use super::work::{Debit, Refund, Source, Turn, Work, claim};
use super::{AWARD, CALCULATE, CANCELLED, REVERSE};
use crate::consumers::merchants::Merchants;
use crate::engine::{Step, Steps};

/// Stands for the id of a debit's purchase, which is not known before it is looked up.
const ORIGINAL: &str = "<original>";

pub(super) fn of(work: &Work) -> Steps {
    match work {
        Work::Award { source, turn, .. } => steps(source, award(source, *turn)),
        Work::Refund(refund) => steps(&refund.source, whole(refund)),
        Work::Debit(debit) => steps(&debit.source, part(debit)),
        Work::Delete { kind, id, .. } => {
            Steps { lane: format!("{kind}:{id}"), steps: cancel(kind, id).into() }
        }
    }
}

fn steps(source: &Source, steps: Vec<Step>) -> Steps {
    Steps { lane: format!("{}:{}", source.kind, source.id), steps }
}

fn award(source: &Source, turn: Turn) -> Vec<Step> {
    let wallet = match turn {
        Turn::Unsure | Turn::Again => Step::read(WALLET),
        Turn::Here => Step::read(WALLET).when("after an award that was taken back"),
        Turn::Recent => Step::read(WALLET).when("where claims cannot tell"),
    };
    let mut steps = vec![
        wallet,
        Step::lock(source.lock()).when("after an award that was taken back"),
        Step::claim(source.claim("award")),
        Step::call(CALCULATE),
    ];
    steps.extend(Merchants::steps(&source.merchant_id));
    steps.push(Step::event(AWARD, Some(source.claim(AWARD))));
    steps
}

fn whole(refund: &Refund) -> Vec<Step> {
    let source = &refund.source;
    let mut steps = vec![
        Step::lock(source.lock()),
        Step::read(WALLET).when("where nothing is remembered of its refunds"),
    ];
    steps.extend(refund.number.as_ref().map(|_| Step::read(PURCHASES)));
    steps.extend(cancel(source.kind, &source.id));
    steps.extend(reverse(source));
    steps
}

fn part(debit: &Debit) -> Vec<Step> {
    const AWARD_UNKNOWN: &str = "where no claim tells of the award";
    let source = &debit.source;
    let wallet = Step::read(WALLET);
    let mut steps = vec![
        if debit.check_wallet { wallet } else { wallet.when(AWARD_UNKNOWN) },
        Step::read(PURCHASES),
        Step::lock(claim("refund", source.kind, ORIGINAL)),
    ];
    steps.extend(Merchants::steps(&source.merchant_id).map(|step| step.when(AWARD_UNKNOWN)));
    steps.push(Step::call(CALCULATE).when(AWARD_UNKNOWN));
    let whole = "of the original, where all of it is refunded";
    steps.extend(cancel(source.kind, ORIGINAL).map(|step| step.when(whole)));
    steps.extend(reverse(source));
    steps
}

fn cancel(kind: &str, id: &str) -> [Step; 2] {
    [Step::claim(claim("cancel", kind, id)), Step::event(CANCELLED, None)]
}

fn reverse(source: &Source) -> [Step; 2] {
    [Step::claim(source.claim("reverse")), Step::event(REVERSE, Some(source.claim(REVERSE)))]
}
