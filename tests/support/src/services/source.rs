//! Where a service comes from. Pure.

/// Where a service comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ServiceSource {
    /// The environment says where it is.
    Given(String),
    /// A container.
    Docker,
    /// A process that `tests/services/up` starts.
    Native,
}

/// The source of one service. `given` is its address in the environment. With `native_run` the
/// environment comes from `tests/services/up`: a service missing there is started natively too, so
/// that one run is not half in containers. The engine is asked only if its answer matters.
pub(super) fn service_source(
    given: Option<String>,
    native_run: bool,
    engine_answers: impl FnOnce() -> bool,
) -> ServiceSource {
    match given {
        Some(address) => ServiceSource::Given(address),
        None if !native_run && engine_answers() => ServiceSource::Docker,
        None => ServiceSource::Native,
    }
}

/// Kafka Connect's source. In a container it could not reach a broker or a database of this
/// machine, so it runs in one only if both do.
pub(super) fn connect_source(
    own: ServiceSource,
    kafka: &ServiceSource,
    postgres: &ServiceSource,
) -> ServiceSource {
    match own {
        ServiceSource::Docker
            if *kafka == ServiceSource::Docker && *postgres == ServiceSource::Docker =>
        {
            ServiceSource::Docker
        }
        ServiceSource::Docker => ServiceSource::Native,
        own => own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> ServiceSource {
        ServiceSource::Given("host:1".to_owned())
    }

    #[test]
    fn an_address_in_the_environment_goes_before_everything_and_no_engine_is_asked() {
        for native_run in [false, true] {
            let asked = || panic!("the engine is asked");
            assert_eq!(service_source(Some("host:1".to_owned()), native_run, asked), given());
        }
    }

    #[test]
    fn without_an_address_an_engine_that_answers_goes_before_native_services() {
        assert_eq!(service_source(None, false, || true), ServiceSource::Docker);
        assert_eq!(service_source(None, false, || false), ServiceSource::Native);
    }

    #[test]
    fn what_a_native_run_did_not_start_is_native_too() {
        assert_eq!(
            service_source(None, true, || panic!("the engine is asked")),
            ServiceSource::Native
        );
    }

    #[test]
    fn connect_is_in_a_container_only_beside_kafka_and_postgres() {
        let beside = |kafka: &ServiceSource, postgres: &ServiceSource| {
            connect_source(ServiceSource::Docker, kafka, postgres)
        };
        assert_eq!(beside(&ServiceSource::Docker, &ServiceSource::Docker), ServiceSource::Docker);
        for elsewhere in [given(), ServiceSource::Native] {
            assert_eq!(beside(&elsewhere, &ServiceSource::Docker), ServiceSource::Native);
            assert_eq!(beside(&ServiceSource::Docker, &elsewhere), ServiceSource::Native);
        }
        assert_eq!(
            connect_source(given(), &ServiceSource::Docker, &ServiceSource::Docker),
            given()
        );
        assert_eq!(
            connect_source(ServiceSource::Native, &ServiceSource::Docker, &ServiceSource::Docker),
            ServiceSource::Native
        );
    }
}
