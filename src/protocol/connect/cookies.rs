//! Cookies: the field `cookies`, and how it joins a `Cookie` header from `headers`.
//!
//! Owns the rules of one cookie and of the merge (RFC 6265 section 4.2). More names and values are let through than
//! its grammar has, since browsers send them and targets expect them; what would break out of its pair is not. Must
//! never put a value into an error.
use ahash::{AHashMap, AHashSet};

use super::error::{ConnectError, Reason};
use super::headers::last_of_each;
use super::json::{Members, Value};

/// One cookie of the field `cookies`, safe to be written as `name=value`.
pub(super) struct Cookie {
    name: String,
    value: String,
}

/// Reads the object `cookies`. Of a name given twice (case counts) the last counts, in the place of the first.
/// Spaces around a value are no part of it.
///
/// # Errors
/// A value that is no string; in a name `;`, `=`, `,`, white space, control characters, or nothing at all; in a value
/// `;` or control characters, tab among them.
pub(super) fn read(members: Members<'_, '_>) -> Result<Vec<Cookie>, ConnectError> {
    let mut cookies = Vec::new();
    for (name, value) in last_of_each(members, str::to_owned) {
        let error = |reason: Reason| reason.of_member("cookies", name);
        let value = match value {
            Value::String(value) => value,
            other => return Err(error(Reason::WrongType { expected: "a string", found: other.kind() })),
        };
        if name.is_empty() || name.contains([';', '=', ',', ' ']) || has_control(name) {
            return Err(error(Reason::CookieName));
        }
        if value.contains(';') || has_control(value) {
            return Err(error(Reason::CookieValue));
        }
        cookies.push(Cookie { name: name.to_owned(), value: value.trim_matches(' ').to_owned() });
    }
    Ok(cookies)
}

/// One `Cookie` value: the header's cookies first, then the others, in order. A name in both stands once, where the
/// header has it first, with the other's value. What else the header says, pairs without a `=` too, stays as it is.
pub(super) fn merge(header: &str, cookies: &[Cookie]) -> String {
    let values: AHashMap<&str, &str> = cookies.iter().map(|c| (c.name.as_str(), c.value.as_str())).collect();
    let mut placed = AHashSet::new();
    let mut pairs = Vec::new();
    for pair in header.split(';').map(trim).filter(|pair| !pair.is_empty()) {
        let name = pair.split_once('=').map(|(name, _)| trim(name));
        match name.and_then(|name| values.get_key_value(name)) {
            Some((&name, value)) if placed.insert(name) => pairs.push(format!("{name}={value}")),
            Some(_) => {}
            None => pairs.push(pair.to_owned()),
        }
    }
    let rest = cookies.iter().filter(|cookie| !placed.contains(cookie.name.as_str()));
    pairs.extend(rest.map(|cookie| format!("{}={}", cookie.name, cookie.value)));
    pairs.join("; ")
}

fn has_control(text: &str) -> bool {
    text.bytes().any(|b| b.is_ascii_control())
}

fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use super::super::json::Message;
    use super::*;

    fn read_json(json: &str) -> Result<Vec<Cookie>, ConnectError> {
        let mut text = format!("{{\"o\":{json}}}").into_bytes();
        let message = Message::parse(&mut text, &[]).unwrap();
        match message.field("o") {
            Some(Value::Object(members)) => read(members),
            _ => panic!("no object: {json}"),
        }
    }

    #[test]
    fn cookies_join_the_header() {
        let table = [
            ("", r#"{"a":"1","b":"2"}"#, "a=1; b=2"),
            ("a=1", r#"{"b":"2"}"#, "a=1; b=2"),
            ("a=1; b=2", r#"{"c":"3","a":"4"}"#, "a=4; b=2; c=3"),
            ("a=1;b=2 ;; c = 3;", r#"{"d":"4"}"#, "a=1; b=2; c = 3; d=4"),
            ("a=1; b=2; a=3", r#"{"a":"4"}"#, "a=4; b=2"),
            ("a=1; a=2", r#"{"b":"3"}"#, "a=1; a=2; b=3"),
            (" a =1", r#"{"a":"2"}"#, "a=2"),
            ("A=1", r#"{"a":"2"}"#, "A=1; a=2"),
            ("flag; =x; a=1", r#"{"flag":"2"}"#, "flag; =x; a=1; flag=2"),
            ("a=1=2", r#"{"b":"3=4"}"#, "a=1=2; b=3=4"),
            ("", r#"{"a":"1","b":"2","a":"3"}"#, "a=3; b=2"),
            ("", r#"{"a":""}"#, "a="),
            ("", r#"{"a":" x y "}"#, "a=x y"),
            ("", r#"{"a[b]":"\"q\",\\","ü":"€"}"#, "a[b]=\"q\",\\; ü=€"),
        ];
        for (header, json, expected) in table {
            assert_eq!(merge(header, &read_json(json).ok().unwrap()), expected, "{header} + {json}");
        }
    }

    #[test]
    fn what_breaks_out_names_the_cookie() {
        let table = [
            (r#"{"":"1"}"#, "cookies.: not a legal cookie name"),
            (r#"{"a;b":"1"}"#, "cookies.a;b: not a legal cookie name"),
            (r#"{"a=b":"1"}"#, "cookies.a=b: not a legal cookie name"),
            (r#"{"a,b":"1"}"#, "cookies.a,b: not a legal cookie name"),
            (r#"{"a b":"1"}"#, "cookies.a b: not a legal cookie name"),
            (r#"{"a\t":"1"}"#, "cookies.a\\t: not a legal cookie name"),
            (r#"{"a\r\n":"1"}"#, "cookies.a\\r\\n: not a legal cookie name"),
            (r#"{"a":"1;b=2"}"#, "cookies.a: not a legal cookie value"),
            (r#"{"a":"1\n"}"#, "cookies.a: not a legal cookie value"),
            (r#"{"a":"1\r"}"#, "cookies.a: not a legal cookie value"),
            (r#"{"a":"\u0000"}"#, "cookies.a: not a legal cookie value"),
            (r#"{"a":"1\t2"}"#, "cookies.a: not a legal cookie value"),
            (r#"{"a":"\u007f"}"#, "cookies.a: not a legal cookie value"),
            (r#"{"a":1}"#, "cookies.a: must be a string, not a number"),
            (r#"{"a":{}}"#, "cookies.a: must be a string, not an object"),
        ];
        for (json, expected) in table {
            assert_eq!(read_json(json).err().expect(json).to_string(), expected, "{json}");
        }
    }
}
