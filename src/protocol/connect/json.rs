//! The connect message as JSON: bytes in, the members of one object out.
//!
//! Owns the use of simd-json, whose tape is walked as it is: its DOM loses the order of large objects and its derive
//! names no field in an error. Nothing here recurses, so nesting costs no stack; simd-json itself refuses what is
//! nested deeper than 1024. Must never know what a field means.
use std::str;

use simd_json::{Node, StaticNode, Tape};

use super::error::{ConnectError, Reason};

/// A message that is a JSON object.
pub(super) struct Message<'a> {
    tape: Tape<'a>,
}

/// A JSON value as far as the protocol looks into it.
#[derive(Clone, Copy)]
pub(super) enum Value<'t, 'a> {
    Null,
    Bool,
    /// Integers too: the only number of the protocol is a timeout, and above 2^53 seconds none is exact to one.
    Number(f64),
    String(&'a str),
    Array,
    Object(Members<'t, 'a>),
}

/// The members of an object in the order of the message, repeated names included.
#[derive(Clone, Copy)]
pub(super) struct Members<'t, 'a>(&'t [Node<'a>]);

impl<'a> Message<'a> {
    /// Reads one JSON object (RFC 8259). The bytes are changed in place, since strings are unescaped there.
    ///
    /// # Errors
    /// Not UTF-8, not JSON, not an object. An unreadable value of one of the `known` fields names that field.
    pub(super) fn parse(text: &'a mut [u8], known: &[&'static str]) -> Result<Self, ConnectError> {
        if str::from_utf8(text).is_err() {
            return Err(ConnectError::NotUtf8);
        }
        // Only an error needs the text as it was, but then it is too late to ask for it.
        let original = text.to_vec();
        let tape = simd_json::to_tape(text).map_err(|error| match field_before(&original, error.index(), known) {
            Some(field) => Reason::NotJson.of(field),
            None => ConnectError::NotJson(error.index()),
        })?;
        match first_value(&tape.0) {
            Some((Value::Object(_), _)) => Ok(Self { tape }),
            Some((other, _)) => Err(ConnectError::NotAnObject(other.kind())),
            None => Err(ConnectError::NotJson(0)),
        }
    }

    /// The field of this name, `None` if it is absent or `null`. Of a name given twice the last counts.
    pub(super) fn field(&self, name: &str) -> Option<Value<'_, 'a>> {
        let Some((Value::Object(members), _)) = first_value(&self.tape.0) else {
            return None;
        };
        members.filter(|(member, _)| *member == name).last().and_then(|(_, value)| value.non_null())
    }
}

impl Value<'_, '_> {
    /// What it is, in words for an error.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array => "an array",
            Self::Object(_) => "an object",
        }
    }

    /// `null` is the default everywhere, so it counts as absent.
    pub(super) fn non_null(self) -> Option<Self> {
        (!matches!(self, Self::Null)).then_some(self)
    }
}

impl<'t, 'a> Iterator for Members<'t, 'a> {
    type Item = (&'a str, Value<'t, 'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (Node::String(name), rest) = self.0.split_first()? else {
            return None;
        };
        let (value, rest) = first_value(rest)?;
        self.0 = rest;
        Some((name, value))
    }
}

/// The value at the front of the nodes, with the nodes behind it.
fn first_value<'t, 'a>(nodes: &'t [Node<'a>]) -> Option<(Value<'t, 'a>, &'t [Node<'a>])> {
    let (first, rest) = nodes.split_first()?;
    let value = match *first {
        Node::String(text) => Value::String(text),
        Node::Static(StaticNode::Null) => Value::Null,
        Node::Static(StaticNode::Bool(_)) => Value::Bool,
        Node::Static(StaticNode::I64(number)) => Value::Number(number as f64),
        Node::Static(StaticNode::U64(number)) => Value::Number(number as f64),
        Node::Static(StaticNode::F64(number)) => Value::Number(number),
        Node::Array { count, .. } => return Some((Value::Array, rest.get(count..)?)),
        Node::Object { count, .. } => {
            let (members, rest) = rest.split_at_checked(count)?;
            return Some((Value::Object(Members(members)), rest));
        }
    };
    Some((value, rest))
}

/// The known field whose value cannot be read at this byte, if its name stands right before: `"idle_timeout": 1e400`
/// and `"idle_timeout": NaN` deserve a better answer than a byte's position.
fn field_before(text: &[u8], index: usize, known: &[&'static str]) -> Option<&'static str> {
    // The position is somewhere in the word; its start is where the name's colon ends.
    let before = text.get(..index)?;
    let word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
    let word_start = before.iter().rposition(|b| !word(b))? + 1;
    let name = before.get(..word_start)?.trim_ascii_end().strip_suffix(b":")?.trim_ascii_end().strip_suffix(b"\"")?;
    known.iter().copied().find(|field| name.strip_suffix(field.as_bytes()).is_some_and(|rest| rest.ends_with(b"\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &[u8]) -> String {
        let mut text = text.to_vec();
        match Message::parse(&mut text, &["url", "idle_timeout"]) {
            Ok(_) => panic!("accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let table: &[(&[u8], &str)] = &[
            (b"null", "must be a JSON object, not null"),
            (b"true", "must be a JSON object, not a boolean"),
            (b"-1.5", "must be a JSON object, not a number"),
            (b"\"{}\"", "must be a JSON object, not a string"),
            (b"[{}]", "must be a JSON object, not an array"),
            (b"{\"a\":\"\xff\"}", "not UTF-8"),
            (b"{\"a\":\"\xed\xa0\x80\"}", "not UTF-8"),
        ];
        for (text, expected) in table {
            assert_eq!(error(text), *expected);
        }
    }

    #[test]
    fn broken_json_is_refused() {
        let nul = "{\"a\":\"\0\"}";
        let control = "{\"a\":\"\n\"}";
        let deep = "[".repeat(65_536);
        let deep_object = "{\"a\":".repeat(13_000);
        let quotes = "\"".repeat(65_536);
        let backslashes = "\\".repeat(65_536);
        for text in [
            "",
            " ",
            "{",
            "}",
            "{}{}",
            "{} x",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{'a':1}",
            "{\"a\":01}",
            "{\"a\":.5}",
            "{\"a\":+1}",
            "{\"a\":tru}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u12\"}",
            "{\"a\":\"b}",
            "\u{feff}{}",
            "{\"a\":\"\\ud800\"}",
            "{\"a\":\"\\udc00\"}",
            "{\"a\":\"\\ud800\\u0041\"}",
            "{\"a\":1e400}",
            "\0",
            nul,
            control,
            &deep,
            &deep_object,
            &quotes,
            &backslashes,
        ] {
            let shown = error(text.as_bytes());
            assert!(shown.starts_with("not JSON"), "{:.40}: {shown}", text);
        }
    }

    #[test]
    fn an_unreadable_value_names_its_field() {
        let digits = "9".repeat(400);
        for value in ["1e400", "-1e400", "NaN", "Infinity", "-Infinity", "nan", "1e", "01", "0x10", "+1", ".5", &digits]
        {
            for colon in [":", " : ", "\n:\t"] {
                let text = format!("{{\"\\u0061\\n\":\"\\t\",\"idle_timeout\"{colon}{value}}}");
                let expected = "idle_timeout: not a JSON value, or a number that is not finite";
                assert_eq!(error(text.as_bytes()), expected, "{text}");
            }
        }
        assert!(error(b"{\"url\":ws}").starts_with("url: "));
        assert!(error(b"{\"my_url\":ws}").starts_with("not JSON"));
    }

    #[test]
    fn the_last_field_of_a_name_counts_and_null_is_absent() {
        let mut text = br#"{"a":1,"b":{"a":[2,{"a":3}]},"\u0061":4,"n":5,"n":null,"z":[]}"#.to_vec();
        let message = Message::parse(&mut text, &[]).unwrap();
        assert!(matches!(message.field("a"), Some(Value::Number(4.0))));
        assert!(message.field("n").is_none());
        assert!(message.field("missing").is_none());
        assert!(matches!(message.field("z"), Some(Value::Array)));
        let Some(Value::Object(members)) = message.field("b") else { panic!("no object") };
        assert_eq!(members.map(|(name, value)| (name, value.kind())).collect::<Vec<_>>(), [("a", "an array")]);
    }

    #[test]
    fn order_survives_many_members() {
        let names: Vec<String> = (0..5_000).map(|i| format!("n{}", i * 7919 % 5_000)).collect();
        let members: Vec<String> = names.iter().map(|name| format!("\"{name}\":[{{}}]")).collect();
        let mut text = format!("{{\"o\":{{{}}}}}", members.join(",")).into_bytes();
        let message = Message::parse(&mut text, &[]).unwrap();
        let Some(Value::Object(members)) = message.field("o") else { panic!("no object") };
        assert!(members.map(|(name, _)| name).eq(names.iter().map(String::as_str)));
    }
}
