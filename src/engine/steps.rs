//! The steps of a piece of work: every request, claim and event that processing it may need.
//!
//! A consumer declares them with [`Consumer::steps`](super::Consumer::steps), and `explain` prints
//! them. In builds with debug assertions, which tests run, [`Context`] refuses every other step: so
//! what is printed is what is done.

use std::fmt;

use super::Context;

/// What processing a piece of work may do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steps {
    /// The order domain, readable.
    pub lane: String,
    /// What is done in it.
    pub steps: Vec<Step>,
}

/// One request, claim or event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    action: Action,
    when: Option<&'static str>,
}

/// A name may hold a part that is not known when the work is routed, written `<original>`; and one
/// that ends there may go on after a colon.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Claim(String),
    Lock(String),
    Call(&'static str),
    Read(&'static str),
    Cached(String),
    Event(&'static str, Option<String>),
    Broadcast(&'static str),
    Act(String),
}

/// A step as it is taken.
#[derive(Debug, Clone, Copy)]
pub enum Taken<'a> {
    /// A claim, by its name.
    Claim(&'a str),
    /// A lock, by its name.
    Lock(&'a str),
    /// A function of Supabase.
    Call(&'a str),
    /// A table of Supabase.
    Read(&'a str),
    /// A key of the cache.
    Cached(&'a str),
    /// An event, by its name.
    Event(&'a str),
    /// A message to a waiting screen, by its name.
    Broadcast(&'a str),
    /// An action, by its name.
    Action(&'a str),
}

impl Step {
    /// The work is done at most once under this claim.
    #[must_use]
    pub fn claim(name: impl Into<String>) -> Self {
        Action::Claim(name.into()).into()
    }

    /// The work is done alone under this lock.
    #[must_use]
    pub fn lock(name: impl Into<String>) -> Self {
        Action::Lock(name.into()).into()
    }

    /// A function of Supabase is called.
    #[must_use]
    pub fn call(function: &'static str) -> Self {
        Action::Call(function).into()
    }

    /// A table of Supabase is read.
    #[must_use]
    pub fn read(table: &'static str) -> Self {
        Action::Read(table).into()
    }

    /// The cache is asked.
    #[must_use]
    pub fn cached(key: impl Into<String>) -> Self {
        Action::Cached(key.into()).into()
    }

    /// An event is sent, with this id or without any.
    #[must_use]
    pub fn event(name: &'static str, id: Option<String>) -> Self {
        Action::Event(name, id).into()
    }

    /// A waiting screen is told.
    #[must_use]
    pub fn broadcast(name: &'static str) -> Self {
        Action::Broadcast(name).into()
    }

    /// An action is carried out.
    #[must_use]
    pub fn action(name: impl Into<String>) -> Self {
        Action::Act(name.into()).into()
    }

    /// The same, taken only in this case.
    #[must_use]
    pub fn when(self, case: &'static str) -> Self {
        Self { when: Some(case), ..self }
    }

    #[cfg(any(debug_assertions, test))]
    fn allows(&self, taken: Taken<'_>) -> bool {
        match (&self.action, taken) {
            (Action::Claim(name), Taken::Claim(taken))
            | (Action::Lock(name), Taken::Lock(taken))
            | (Action::Cached(name), Taken::Cached(taken)) => fits(name, taken),
            (Action::Call(name), Taken::Call(taken))
            | (Action::Read(name), Taken::Read(taken))
            | (Action::Event(name, _), Taken::Event(taken))
            | (Action::Broadcast(name), Taken::Broadcast(taken)) => *name == taken,
            (Action::Act(name), Taken::Action(taken)) => name == taken,
            _ => false,
        }
    }
}

impl From<Action> for Step {
    fn from(action: Action) -> Self {
        Self { action, when: None }
    }
}

#[cfg(any(debug_assertions, test))]
fn fits(declared: &str, taken: &str) -> bool {
    match declared.split_once('<') {
        Some((known, _)) => taken.starts_with(known),
        None => taken
            .strip_prefix(declared)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(':')),
    }
}

impl Steps {
    /// The names of what is claimed, comma separated; of what is locked where nothing is.
    #[must_use]
    pub fn claims(&self) -> String {
        let names = |of: fn(&Action) -> Option<&str>| {
            let names: Vec<&str> = self.steps.iter().filter_map(|step| of(&step.action)).collect();
            names.join(", ")
        };
        let claims = names(|action| match action {
            Action::Claim(name) => Some(name),
            _ => None,
        });
        if !claims.is_empty() {
            return claims;
        }
        names(|action| match action {
            Action::Lock(name) => Some(name),
            _ => None,
        })
    }

    /// Requests and events as people read them, in order.
    pub fn requests(&self) -> impl Iterator<Item = String> {
        let claims = |step: &&Step| !matches!(step.action, Action::Claim(_) | Action::Lock(_));
        self.steps.iter().filter(claims).map(ToString::to_string)
    }

    /// The names of the events, in order.
    pub(in crate::engine) fn events(&self) -> impl Iterator<Item = &'static str> {
        self.steps.iter().filter_map(|step| match step.action {
            Action::Event(name, _) => Some(name),
            _ => None,
        })
    }

    #[cfg(any(debug_assertions, test))]
    fn allow(&self, taken: Taken<'_>) -> bool {
        self.steps.iter().any(|step| step.allows(taken))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            Action::Claim(name) => write!(f, "claim {name}")?,
            Action::Lock(name) => write!(f, "lock {name}")?,
            Action::Call(function) => write!(f, "rpc {function}")?,
            Action::Read(table) => write!(f, "rest {table}")?,
            Action::Cached(key) => write!(f, "cache {key}")?,
            Action::Event(name, Some(id)) => write!(f, "event {name} {id}")?,
            Action::Event(name, None) => write!(f, "event {name}")?,
            Action::Broadcast(name) => write!(f, "broadcast {name}")?,
            Action::Act(name) => write!(f, "action {name}")?,
        }
        self.when.map_or(Ok(()), |case| write!(f, " ({case})"))
    }
}

impl Context {
    /// Notes that a step is taken.
    ///
    /// # Panics
    /// In builds with debug assertions, when the consumer did not declare it.
    pub fn step(&self, taken: Taken<'_>) {
        #[cfg(debug_assertions)]
        if let Some(steps) = self.declared() {
            assert!(steps.allow(taken), "{taken:?} is none of the declared steps: {steps:?}");
        }
        #[cfg(not(debug_assertions))]
        let _ = taken;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_was_declared_is_allowed_and_no_other() {
        let steps = Steps {
            lane: "purchase:1".into(),
            steps: vec![
                Step::claim("award:purchase:1"),
                Step::claim("cancel:purchase:<original>").when("all of it is refunded"),
                Step::read("wallet_ledger"),
                Step::event("currency/award", Some("currency/award:purchase:1".into())),
            ],
        };
        for taken in [
            Taken::Claim("award:purchase:1"),
            Taken::Claim("award:purchase:1:again"),
            Taken::Claim("cancel:purchase:7"),
            Taken::Read("wallet_ledger"),
            Taken::Event("currency/award"),
        ] {
            assert!(steps.allow(taken), "{taken:?}");
        }
        for taken in [
            Taken::Claim("award:purchase:12"),
            Taken::Claim("cancel:referral:7"),
            Taken::Lock("award:purchase:1"),
            Taken::Call("wallet_ledger"),
            Taken::Event("currency/reverse"),
        ] {
            assert!(!steps.allow(taken), "{taken:?}");
        }
        assert_eq!(steps.claims(), "award:purchase:1, cancel:purchase:<original>");
        assert_eq!(steps.events().collect::<Vec<_>>(), ["currency/award"]);
        let requests: Vec<_> = steps.requests().collect();
        assert_eq!(
            requests,
            ["rest wallet_ledger", "event currency/award currency/award:purchase:1"]
        );
    }
}
