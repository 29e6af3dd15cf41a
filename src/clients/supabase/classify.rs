//! Whose fault an error answer is: a pure function of status and PostgREST's `code`.

/// What an error answer means for the record that asked (behaviour section 8.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The service is unwell or busy: retry.
    Transient,
    /// Credentials, configuration or a deploy that is half done: retry, and say what to look at.
    Setup,
    /// The record's own: retrying changes nothing.
    Record,
}

/// Classifies an error answer. `code` is the body's `code`: an SQLSTATE or PostgREST's own; `None`
/// when the body is not PostgREST's, as when a gateway answers with a page. `message` is the body's
/// too, empty where there is none.
///
/// The code decides before the status, since 500 covers both kinds, and PostgREST answers 400 to
/// every SQLSTATE that it does not know. Only a status that says "too much", "nobody there" or "not
/// you" is believed whatever the code. An error is the record's fault only if it is known to be.
#[must_use]
pub fn classify(status: u16, code: Option<&str>, message: &str) -> Fault {
    if is_of_the_way(status) {
        return Fault::Transient;
    }
    if matches!(status, 401..=403) || lacks_role(code, message) {
        return Fault::Setup;
    }
    match (code, status) {
        (Some(code), _) => by_code(code),
        // A gateway refused the size of this very request.
        (None, 413 | 414) => Fault::Record,
        (None, 408) => Fault::Transient,
        // PostgREST always names a code. Without one the request never got there, so the answer
        // says nothing about the record, whatever a gateway or a proxy calls it.
        (None, _) => Fault::Setup,
    }
}

/// Statuses that say "too much" or "nobody there", whoever answers.
fn is_of_the_way(status: u16) -> bool {
    matches!(status, 429 | 502 | 503 | 504 | 520..=524 | 544)
}

/// Whether the record that asked may have caused this outage: the database failed while it worked
/// for the record, and not on its connections, its resources or a restart.
pub(super) fn may_be_the_records(status: u16, code: Option<&str>) -> bool {
    status >= 500 && !is_of_the_way(status) && code.is_some_and(|code| !is_unwell(code))
}

/// No connection, no room, a restart: these affect everybody.
fn is_unwell(code: &str) -> bool {
    matches!(code, "PGRST000" | "PGRST001" | "PGRST002" | "PGRST003")
        || ["53", "08", "57P0"].iter().any(|prefix| code.starts_with(prefix))
}

/// The key's role does not exist. The code 22023 also stands for a wrong argument, and an older
/// PostgREST answers 400.
pub(super) fn lacks_role(code: Option<&str>, message: &str) -> bool {
    code == Some("22023") && message.starts_with("role \"") && message.ends_with("does not exist")
}

fn by_code(code: &str) -> Fault {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| code.starts_with(prefix));
    if is_unwell(code) || matches!(code, "40001" | "40P01" | "55P03" | "57014") {
        return Fault::Transient;
    }
    // The whole list: data that do not fit (cardinality, values, constraints), and what a function
    // raised.
    if code.len() == 5 && starts(&["21", "22", "23", "P0"]) {
        return Fault::Record;
    }
    // A wrong address, a deploy that is half done, a migration under cached plans, a pooler.
    Fault::Setup
}

/// Whether an error answer says that the service is overloaded, so that an adaptive bound shrinks
/// (behaviour section 1). A time-out says so too, but it is not an answer.
#[must_use]
pub fn is_overload(status: u16, code: Option<&str>) -> bool {
    matches!(status, 429 | 503 | 504) || code == Some("57014")
}

/// Whether an error answer may come from a wrong address. Its message then names the address.
pub(super) fn is_about_the_address(code: Option<&str>) -> bool {
    matches!(code, None | Some("PGRST101" | "PGRST106" | "PGRST117" | "PGRST125"))
}

/// What to do about an error answer, for its message.
pub(super) fn advice(status: u16, code: Option<&str>, message: &str) -> &'static str {
    match (status, code.unwrap_or_default()) {
        _ if lacks_role(code, message) => "check SUPABASE_SERVICE_ROLE_KEY",
        (_, "PGRST202" | "PGRST203" | "42883") => "is the migration that defines it deployed?",
        (_, "PGRST204" | "PGRST205" | "PGRST200" | "42P01" | "42703") => {
            "is the migration that defines the table and its columns deployed?"
        }
        (_, "42501") => "the key may not do this: grant it to service_role",
        (_, "PGRST301" | "PGRST302" | "PGRST303") | (401, _) => "check SUPABASE_SERVICE_ROLE_KEY",
        (_, "PGRST101" | "PGRST117" | "PGRST125") => {
            "check SUPABASE_URL: it is the project's address, without /rest/v1"
        }
        (_, "PGRST106") => "is the schema public exposed in the project's settings of its API?",
        (_, "0A000" | "26000") => "a migration or a pooler: it passes, else restart PostgREST",
        (_, "3D000" | "3F000") => "is the database restored, and its migrations deployed?",
        (402, _) => "the project is over its quota: check its plan",
        (540, _) => "the project is paused: restore it",
        (_, "25006") => "the database is read only: is its disk full?",
        (_, "57014") => "the statement ran into its time-out",
        (_, "23505") => "it may have been done already",
        (413 | 414, "") => "the request is too large for what stands in between",
        (429 | 502..=504 | 520..=524 | 544, "") => "",
        (_, "") => "the answer is not PostgREST's: check SUPABASE_URL and what stands in between",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_classified_as_the_wire_facts_say() {
        use Fault::{Record, Setup, Transient};
        let table: &[(&[u16], &[&str], Fault)] = &[
            (&[500, 409, 400], &["40001", "40P01", "55P03", "57014"], Transient),
            (&[500, 503], &["53000", "53100", "53200", "53300", "53400"], Transient),
            (&[500, 503], &["08000", "08006", "57P01", "57P02", "57P03"], Transient),
            (&[503, 504, 500], &["PGRST000", "PGRST001", "PGRST002", "PGRST003"], Transient),
            (&[429, 502, 503, 504, 520, 521, 522, 523, 524, 544], &["", "P0001"], Transient),
            (&[408], &[""], Transient),
            (&[401, 402, 403], &["", "PGRST301", "PGRST302", "PGRST303", "22023"], Setup),
            (&[404, 400], &["PGRST200", "PGRST202", "PGRST203", "PGRST204", "PGRST205"], Setup),
            (&[404, 401, 403, 400, 500], &["42883", "42P01", "42703", "42501", "42601"], Setup),
            (&[405, 500], &["25006"], Setup),
            (&[540, 500, 501, 525, 530, 599], &["", "F0000", "99999"], Setup),
            (&[500], &["XX000", "54001", "58000", "58030", "55000", "57000"], Setup),
            (&[301, 302, 303, 307, 404, 405], &[""], Setup),
            (&[400, 406, 407, 409, 410, 415, 416, 421, 422, 425, 426, 431, 451], &[""], Setup),
            (&[413, 414], &[""], Record),
            (&[413, 414], &["PGRST102", "42601"], Setup),
            (&[400, 404, 405, 406], &["PGRST101", "PGRST106", "PGRST117", "PGRST125"], Setup),
            (&[400, 500], &["0A000", "0B000", "25P02", "26000", "28P01", "3D000", "3F000"], Setup),
            (&[400], &["09000", "24000", "2F005", "34000", "38000", "39000", "HV000"], Setup),
            (&[400, 404, 409], &["PT400", "PT409", "XYZ99", "220", "P0"], Setup),
            (&[400, 406, 416], &["PGRST100", "PGRST102", "PGRST103", "PGRST116"], Setup),
            (&[400, 500], &["21000", "22012", "22P05", "23P01"], Record),
            (&[400, 500], &["22P02", "22003", "22007", "22023"], Record),
            (&[409, 400, 500], &["23502", "23503", "23505", "23514"], Record),
            (&[400, 500], &["P0001", "P0002", "P0003", "P0004"], Record),
            (&[404], &["P0001", "23503"], Record),
        ];
        for (statuses, codes, fault) in table {
            for status in *statuses {
                for code in *codes {
                    let code = (!code.is_empty()).then_some(*code);
                    assert_eq!(classify(*status, code, "m"), *fault, "{status} {code:?}");
                }
            }
        }
    }

    #[test]
    fn a_role_that_is_not_there_is_the_keys_fault_and_another_wrong_argument_the_records() {
        for status in [400, 401] {
            let fault = classify(status, Some("22023"), "role \"crm\" does not exist");
            assert_eq!(fault, Fault::Setup, "{status}");
        }
        for message in ["", "time zone \"x\" not recognized", "role does not exist"] {
            assert_eq!(classify(400, Some("22023"), message), Fault::Record, "{message}");
        }
        let other = classify(400, Some("22P02"), "role \"crm\" does not exist");
        assert_eq!(other, Fault::Record, "a function's own words");
    }

    #[test]
    fn overload_is_what_a_bound_should_shrink_on_and_nothing_else() {
        for (status, code) in [(429, None), (503, None), (504, Some("PGRST003"))] {
            assert!(is_overload(status, code), "{status}");
        }
        assert!(is_overload(500, Some("57014")));
        for (status, code) in [(500, None), (502, None), (401, None), (500, Some("40001"))] {
            assert!(!is_overload(status, code), "{status}");
        }
    }
}
