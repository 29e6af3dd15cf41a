//! Which door a service comes through. Pure.

/// Where a service comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Door {
    /// The environment says where it is.
    Given(String),
    /// A container.
    Docker,
    /// A process that `tests/services/up` starts.
    Native,
}

/// The door of one service. `given` is its address in the environment; `native_run` tells that the environment comes
/// from `tests/services/up`: what that did not start is started beside it in the same way, so that one run is not half
/// in containers. The engine is asked only where its answer counts.
pub(super) fn door(
    given: Option<String>,
    native_run: bool,
    engine_answers: impl FnOnce() -> bool,
) -> Door {
    match given {
        Some(address) => Door::Given(address),
        None if !native_run && engine_answers() => Door::Docker,
        None => Door::Native,
    }
}

/// Kafka Connect's door: in a container it would not reach a broker or a database of this machine, so it is in one
/// only where both are.
pub(super) fn connect_door(own: Door, kafka: &Door, postgres: &Door) -> Door {
    match own {
        Door::Docker if *kafka == Door::Docker && *postgres == Door::Docker => Door::Docker,
        Door::Docker => Door::Native,
        own => own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Door {
        Door::Given("host:1".to_owned())
    }

    #[test]
    fn an_address_in_the_environment_goes_before_everything_and_no_engine_is_asked() {
        for native_run in [false, true] {
            let asked = || panic!("the engine is asked");
            assert_eq!(door(Some("host:1".to_owned()), native_run, asked), given());
        }
    }

    #[test]
    fn without_an_address_an_engine_that_answers_goes_before_native_services() {
        assert_eq!(door(None, false, || true), Door::Docker);
        assert_eq!(door(None, false, || false), Door::Native);
    }

    #[test]
    fn what_a_native_run_did_not_start_is_native_too() {
        assert_eq!(door(None, true, || panic!("the engine is asked")), Door::Native);
    }

    #[test]
    fn connect_is_in_a_container_only_beside_kafka_and_postgres() {
        let beside = |kafka: &Door, postgres: &Door| connect_door(Door::Docker, kafka, postgres);
        assert_eq!(beside(&Door::Docker, &Door::Docker), Door::Docker);
        for elsewhere in [given(), Door::Native] {
            assert_eq!(beside(&elsewhere, &Door::Docker), Door::Native);
            assert_eq!(beside(&Door::Docker, &elsewhere), Door::Native);
        }
        assert_eq!(connect_door(given(), &Door::Docker, &Door::Docker), given());
        assert_eq!(connect_door(Door::Native, &Door::Docker, &Door::Docker), Door::Native);
    }
}
