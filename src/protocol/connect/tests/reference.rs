//! The connect message read in the most obvious way: serde_json, lists, loops. Order and repeated names are kept.
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::super::{ConnectRequest, Handshake, Opening, Proxy, Selection, comma_list, idle_timeout};
use crate::protocol::target::Target;

#[derive(Clone, Debug)]
pub enum Json {
    Null,
    Bool,
    Number(f64),
    String(String),
    Array,
    Object(Vec<(String, Json)>),
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Json;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
                Ok(Json::Bool)
            }
            fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
                Ok(Json::Number(number as f64))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
                Ok(Json::Number(number as f64))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
                Ok(Json::Number(number))
            }
            fn visit_str<E>(self, text: &str) -> Result<Json, E> {
                Ok(Json::String(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
                while items.next_element::<Json>()?.is_some() {}
                Ok(Json::Array)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
                let mut object = Vec::new();
                while let Some(member) = members.next_entry()? {
                    object.push(member);
                }
                Ok(Json::Object(object))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// The fields of the message, if it is a JSON object.
pub fn parse(text: &[u8]) -> Option<Vec<(String, Json)>> {
    match serde_json::from_slice(text) {
        Ok(Json::Object(fields)) => Some(fields),
        _ => None,
    }
}

fn last<'a>(fields: &'a [(String, Json)], name: &str) -> Option<&'a Json> {
    let (_, value) = fields.iter().rev().find(|(given, _)| given == name)?;
    (!matches!(value, Json::Null)).then_some(value)
}

/// The key, or that its type is wrong.
pub fn key(fields: &[(String, Json)], header: Option<&str>) -> Result<Option<String>, Vec<String>> {
    let mut wrong = vec![];
    let mut found = header.map(str::to_owned);
    for name in ["key", "apiKey"] {
        match last(fields, name) {
            None => {}
            Some(Json::String(key)) => found = Some(key.clone()),
            Some(_) => wrong.push(name.to_owned()),
        }
    }
    if wrong.is_empty() { Ok(found.filter(|key| !key.is_empty())) } else { Err(wrong) }
}

/// The request, or the names of all fields that are wrong.
pub fn validate(fields: &[(String, Json)]) -> Result<ConnectRequest, Vec<String>> {
    let mut wrong = vec![];
    let mut text = |name: &str| match last(fields, name) {
        None => None,
        Some(Json::String(text)) => Some(text.clone()),
        Some(_) => {
            wrong.push(name.to_owned());
            None
        }
    };
    let (url, geo, agent, proxy) = (text("url"), text("geo"), text("agent"), text("proxy"));
    let target = url.and_then(|url| Target::parse(&url).ok());
    if target.is_none() {
        wrong.push("url".to_owned());
    }
    let proxy = proxy.and_then(|proxy| match Proxy::parse(&proxy) {
        Ok(proxy) => Some(proxy),
        Err(_) => {
            wrong.push("proxy".to_owned());
            None
        }
    });
    let timeout = match last(fields, "idle_timeout") {
        None => Some(0.0),
        Some(Json::Number(number)) if *number >= 0.0 => Some(*number),
        Some(_) => {
            wrong.push("idle_timeout".to_owned());
            None
        }
    };
    let mut members =
        |field: &str, same: fn(&str, &str) -> bool, legal: fn(&str, &str) -> bool, skip: fn(&str) -> bool| {
            let mut list: Vec<(String, Json)> = vec![];
            match last(fields, field) {
                None => {}
                Some(Json::Object(members)) => {
                    for (name, value) in members.iter().filter(|(name, _)| !skip(name)) {
                        match list.iter_mut().find(|(earlier, _)| same(earlier, name)) {
                            Some(earlier) => *earlier = (name.clone(), value.clone()),
                            None => list.push((name.clone(), value.clone())),
                        }
                    }
                }
                Some(_) => wrong.push(field.to_owned()),
            }
            let mut strings = vec![];
            for (name, value) in list {
                match value {
                    Json::String(value) if legal(&name, &value) => strings.push((name, value)),
                    _ => wrong.push(format!("{field}.{}", name.escape_debug())),
                }
            }
            strings
        };
    let mut headers = members("headers", str::eq_ignore_ascii_case, legal_header, dropped);
    let cookies = members("cookies", |a, b| a == b, legal_cookie, |_| false);
    let (Some(target), Some(timeout), true) = (target, timeout, wrong.is_empty()) else {
        return Err(wrong);
    };

    for (_, value) in &mut headers {
        *value = value.trim_matches([' ', '\t']).to_owned();
    }
    let given =
        |headers: &[(String, String)], name: &str| headers.iter().find(|h| h.0.eq_ignore_ascii_case(name)).cloned();
    let host = given(&headers, "host").unwrap_or_else(|| ("Host".to_owned(), target.authority()));
    headers.retain(|(name, _)| !name.eq_ignore_ascii_case("host"));
    if let (Some(basic), None) = (&target.basic, given(&headers, "authorization")) {
        headers.push(("Authorization".to_owned(), basic.clone()));
    }
    if !cookies.is_empty() {
        if given(&headers, "cookie").is_none() {
            headers.push(("Cookie".to_owned(), String::new()));
        }
        for (name, value) in &mut headers {
            if name.eq_ignore_ascii_case("cookie") {
                *value = merged(value, &cookies);
            }
        }
    }
    let subprotocols = given(&headers, "sec-websocket-protocol").map_or(vec![], |(_, list)| comma_list(&list));
    let selection = Selection::new(geo.as_deref(), agent.as_deref());
    let opening = Opening::Ours(Handshake { host, headers, subprotocols });
    Ok(ConnectRequest { target, opening, selection, idle_timeout: idle_timeout(timeout).unwrap(), proxy })
}

fn merged(header: &str, cookies: &[(String, String)]) -> String {
    let mut all: Vec<(Option<String>, String)> = vec![];
    for pair in header.split(';') {
        let pair = pair.trim_matches([' ', '\t']);
        if !pair.is_empty() {
            let name = pair.find('=').map(|at| pair[..at].trim_matches([' ', '\t']).to_owned());
            all.push((name, pair.to_owned()));
        }
    }
    for (name, value) in cookies {
        let pair = (Some(name.clone()), format!("{name}={}", value.trim_matches(' ')));
        let first = all.iter().position(|(earlier, _)| *earlier == pair.0);
        all = all
            .into_iter()
            .enumerate()
            .filter(|(at, (n, _))| Some(*at) == first || *n != pair.0)
            .map(|(_, p)| p)
            .collect();
        match first {
            Some(at) => all[at] = pair,
            None => all.push(pair),
        }
    }
    all.into_iter().map(|(_, pair)| pair).collect::<Vec<_>>().join("; ")
}

fn dropped(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let handshake = ["key", "version", "extensions", "accept"].map(|word| format!("sec-websocket-{word}"));
    name.starts_with("proxy-")
        || handshake.contains(&name)
        || "connection upgrade content-length transfer-encoding te trailer keep-alive"
            .split(' ')
            .any(|word| word == name)
}

fn legal_header(name: &str, value: &str) -> bool {
    let separators = "()<>@,;:\\\"/[]?={} ";
    !name.is_empty()
        && name.chars().all(|c| c.is_ascii() && !c.is_ascii_control() && !separators.contains(c))
        && value.trim_matches([' ', '\t']).chars().all(|c| c == '\t' || !c.is_ascii_control())
}

fn legal_cookie(name: &str, value: &str) -> bool {
    !name.is_empty()
        && name.chars().all(|c| !c.is_ascii_control() && !";=, ".contains(c))
        && value.chars().all(|c| !c.is_ascii_control() && c != ';')
}
