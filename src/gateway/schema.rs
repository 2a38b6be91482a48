//! The JSON Schema of the protocol's messages, as `GET /ws/schema` answers it.
//!
//! Written by hand, since the connect message is judged by hand; the tests hold it to the types that do so.

/// JSON Schema 2020-12 of the connect message, `connected` and `error`.
pub(super) const SCHEMA: &str = include_str!("schema.json");

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::{collections::BTreeSet, time::Duration};

    use serde_json::Value;

    use super::*;
    use crate::protocol::{
        answer::{self, Failure},
        connect::FIELDS,
        frame::{Header, Parsed},
    };

    fn definition(name: &str) -> Value {
        serde_json::from_str::<Value>(SCHEMA).unwrap()["$defs"][name].clone()
    }

    fn names(definition: &Value) -> BTreeSet<String> {
        definition["properties"].as_object().unwrap().keys().cloned().collect()
    }

    /// The JSON message in the first of these frames.
    fn message(frames: &[u8]) -> Value {
        let Parsed::Header(header) = Header::parse(frames) else { panic!("no frame") };
        let end = header.header_len + usize::try_from(header.payload_len).unwrap();
        serde_json::from_slice(&frames[header.header_len..end]).unwrap()
    }

    #[test]
    fn it_has_the_fields_that_are_read() {
        assert_eq!(names(&definition("connect")), FIELDS.into_iter().map(str::to_owned).collect());
    }

    #[test]
    fn it_has_what_is_answered() {
        let failures = [
            Failure::InvalidKey,
            Failure::RateLimited { retry_after: Duration::from_secs(1) },
            Failure::TooManySessions,
            Failure::Overloaded,
            Failure::InvalidConnectMessage("why".into()),
            Failure::TargetNotAllowed,
            Failure::NoAgent,
            Failure::TargetUnreachable("why".into()),
            Failure::TargetRejected { status: 403 },
            Failure::TargetHandshakeInvalid("why".into()),
            Failure::TargetTimeout,
            Failure::ProxyFailed("why".into()),
            Failure::AgentFailure,
        ];
        // The one that no message tells of.
        assert!(crate::telemetry::counters::OUTCOMES.contains(&Failure::InvalidRequest(String::new()).code()));
        let schema = definition("error");
        let (mut keys, mut codes) = (BTreeSet::new(), BTreeSet::new());
        for failure in failures {
            let message = message(&failure.to_frames());
            keys.extend(message.as_object().unwrap().keys().cloned());
            codes.insert(message["code"].as_str().unwrap().to_owned());
            assert!(crate::telemetry::counters::OUTCOMES.contains(&failure.code()), "{failure:?}");
        }
        assert_eq!(names(&schema), keys);
        let listed = schema["properties"]["code"]["enum"].as_array().unwrap();
        assert_eq!(listed.iter().map(|code| code.as_str().unwrap().to_owned()).collect::<BTreeSet<_>>(), codes);
        let connected = message(&answer::connected("node", Some("chat")));
        assert_eq!(names(&definition("connected")), connected.as_object().unwrap().keys().cloned().collect());
    }
}
