//! librdkafka properties that are passed through, and those that are not (behaviour section 10).

use std::fmt;

use rdkafka::ClientConfig;

/// librdkafka properties in the order and by the names given. `Debug` shows only the name where a
/// value may be a secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(Vec<(String, String)>);

impl Properties {
    /// Name and value of each. An alias is replaced by the property's own name: with both set,
    /// librdkafka would take either. If a property is set several times, the last value counts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (canonical(name), value.as_str()))
    }

    /// Reads `name=value,name=value`. A part without `=` belongs to the value before it, so that
    /// `debug=broker,protocol` needs no quoting.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut properties: Vec<(String, String)> = Vec::new();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            match (part.split_once('='), properties.last_mut()) {
                (Some((name, value)), _) => {
                    properties.push((name.trim().to_owned(), value.trim().to_owned()));
                }
                (None, Some((_, value))) => {
                    value.push(',');
                    value.push_str(part.trim());
                }
                (None, None) => {
                    return Err("is not a list of properties (name=value,name=value)".to_owned());
                }
            }
        }
        let properties = Self(properties);
        properties.check()?;
        Ok(properties)
    }

    fn check(&self) -> Result<(), String> {
        let mut wrong: Vec<String> = Vec::new();
        for (name, value) in self.0.iter().map(|(name, value)| (name.as_str(), value.as_str())) {
            let refused = |(refused, _): &&(&str, _)| canonical(refused) == canonical(name);
            if let Some((_, reason)) = REFUSED.iter().find(refused) {
                wrong.push(format!("{name} cannot be set here: {reason}"));
                continue;
            }
            // librdkafka's own message would show the value.
            if ClientConfig::new().set(name, value).create_native_config().is_err() {
                wrong.push(format!("librdkafka refuses {name}: unknown property or wrong value"));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(format!("is refused: {}", wrong.join("; "))) }
    }
}

impl fmt::Display for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            if may_be_secret(name) {
                write!(f, "{comma}{name}=(set)")?;
            } else {
                write!(f, "{comma}{name}={value}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Properties({self})")
    }
}

fn may_be_secret(name: &str) -> bool {
    ["password", "secret", "pem", "key", "oauth", "jaas", "token", "username", "url", "kinit"]
        .iter()
        .any(|word| name.contains(word))
}

/// The name that librdkafka knows a property by.
fn canonical(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, canonical)| canonical)
}

/// librdkafka's aliases (its CONFIGURATION.md), and what they stand for. `enable.auto.commit` is a
/// property of its own for this kind of consumer.
const ALIASES: &[(&str, &str)] = &[
    ("bootstrap.servers", "metadata.broker.list"),
    ("max.in.flight", "max.in.flight.requests.per.connection"),
    ("sasl.mechanism", "sasl.mechanisms"),
    ("sasl.oauthbearer.client.credentials.client.id", "sasl.oauthbearer.client.id"),
    ("sasl.oauthbearer.client.credentials.client.secret", "sasl.oauthbearer.client.secret"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
    ("linger.ms", "queue.buffering.max.ms"),
    ("retries", "message.send.max.retries"),
    ("compression.type", "compression.codec"),
    ("acks", "request.required.acks"),
    ("delivery.timeout.ms", "message.timeout.ms"),
];

const COMMITS: &str = "only offsets with an outcome may be committed";
const ASSIGNMENT: &str = "the rebalance handling rests on it; KAFKA_GROUP_PROTOCOL chooses";
const START: &str = "where a group starts is decided by KAFKA_AUTO_OFFSET_RESET";
const ACKNOWLEDGED: &str = "a dead letter counts only when every replica has it";
const BROKERS: &str = "use KAFKA_BOOTSTRAP_SERVERS";

/// Properties that a promise rests on: why they are refused, and what to set instead.
const REFUSED: &[(&str, &str)] = &[
    ("bootstrap.servers", BROKERS),
    ("metadata.broker.list", BROKERS),
    ("sasl.username", "use KAFKA_API_KEY"),
    ("sasl.password", "use KAFKA_API_SECRET"),
    ("group.id", "use CONSUMER_GROUP_ID"),
    ("group.instance.id", "use KAFKA_INSTANCE_ID"),
    ("group.protocol", "use KAFKA_GROUP_PROTOCOL"),
    ("group.protocol.type", ASSIGNMENT),
    ("group.remote.assignor", ASSIGNMENT),
    ("partition.assignment.strategy", ASSIGNMENT),
    ("session.timeout.ms", "use KAFKA_SESSION_TIMEOUT"),
    ("enable.auto.commit", COMMITS),
    ("auto.commit.enable", COMMITS),
    ("enable.auto.offset.store", COMMITS),
    ("auto.commit.interval.ms", "use COMMIT_INTERVAL"),
    ("offset.store.method", COMMITS),
    ("offset.store.path", COMMITS),
    ("auto.offset.reset", START),
    ("enable.partition.eof", "progress is measured by the ends of partitions"),
    ("isolation.level", "changes of transactions that were given up must not be processed"),
    ("allow.auto.create.topics", "a topic that is missing is waited for, never made"),
    ("topic.blacklist", "a topic that is left out would be lost silently"),
    ("topic.metadata.refresh.interval.ms", "use KAFKA_METADATA_REFRESH"),
    ("statistics.interval.ms", "stalls and unreachable brokers are known from the statistics"),
    ("acks", ACKNOWLEDGED),
    ("request.required.acks", ACKNOWLEDGED),
    ("enable.idempotence", ACKNOWLEDGED),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_pass_through_and_a_value_may_hold_commas() {
        let properties =
            Properties::parse("fetch.wait.max.ms=50, debug=broker,protocol").expect("valid");
        let all: Vec<_> = properties.iter().collect();
        assert_eq!(all, [("fetch.wait.max.ms", "50"), ("debug", "broker,protocol")]);
        assert_eq!(properties.to_string(), "fetch.wait.max.ms=50,debug=broker,protocol");
    }

    #[test]
    fn what_a_promise_rests_on_is_refused_whether_on_or_off_and_all_at_once() {
        let error = Properties::parse("enable.auto.commit=true,group.id=x").expect_err("refused");
        assert!(error.contains("enable.auto.commit") && error.contains(COMMITS), "{error}");
        assert!(error.contains("use CONSUMER_GROUP_ID"), "{error}");
        for (name, _) in REFUSED {
            assert!(Properties::parse(&format!("{name}=1")).is_err(), "{name}");
        }
        let silent = Properties::parse("statistics.interval.ms=0").expect_err("refused");
        assert!(silent.contains("stalls"), "{silent}");
    }

    #[test]
    fn an_alias_goes_by_the_name_that_it_stands_for_and_is_refused_with_it() {
        let given = "sasl.mechanism=SCRAM-SHA-512,compression.type=lz4,fetch.message.max.bytes=7,\
                     max.partition.fetch.bytes=9,linger.ms=3";
        let properties = Properties::parse(given).expect("valid");
        let all: Vec<_> = properties.iter().collect();
        assert_eq!(
            all,
            [
                ("sasl.mechanisms", "SCRAM-SHA-512"),
                ("compression.codec", "lz4"),
                ("fetch.message.max.bytes", "7"),
                ("fetch.message.max.bytes", "9"),
                ("queue.buffering.max.ms", "3"),
            ]
        );
        assert_eq!(properties.to_string(), given, "as it was given");
        for (alias, name) in ALIASES {
            let refused = |name| REFUSED.iter().any(|(refused, _)| *refused == name);
            if refused(*alias) || refused(*name) {
                for name in [alias, name] {
                    Properties::parse(&format!("{name}=1")).expect_err(name);
                }
            }
        }
    }

    #[test]
    fn the_aliases_are_those_of_librdkafka() {
        for (alias, name) in ALIASES {
            let value = match *alias {
                "compression.type" => "lz4",
                "acks" => "1",
                _ => "7",
            };
            let native = ClientConfig::new().set(*alias, value).create_native_config();
            match native {
                Ok(native) => assert_eq!(native.get(name).as_deref(), Ok(value), "{alias}"),
                // A property that this build knows only by name.
                Err(error) => assert!(error.to_string().contains(&format!("{name:?}")), "{error}"),
            }
        }
    }

    #[test]
    fn an_unknown_property_or_a_wrong_value_is_noticed_before_the_start_and_not_repeated() {
        for text in ["fetch.wait.max=hunter2", "fetch.wait.max.ms=hunter2", "hunter2"] {
            let error = Properties::parse(text).expect_err(text);
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn secrets_among_properties_are_not_shown() {
        let properties = Properties::parse("ssl.key.password=hunter2,client.id=me").expect("valid");
        assert_eq!(properties.to_string(), "ssl.key.password=(set),client.id=me");
        assert!(!format!("{properties:?}").contains("hunter2"));
    }
}
