//! One TOML value into one Rust value.
//!
//! Owns the words for a value of the wrong type or out of range. The functions take the value only: which key it
//! stands under, and in which line, is the reader's to say. `show` repeats a value in an error, so it must not be used
//! for a value that can be a secret.
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use super::error::Wrong;
use super::units;

pub(super) fn string<'v>(value: &'v DeValue<'_>) -> Result<&'v str, Wrong> {
    value.as_str().ok_or_else(|| format!("is a text in quotes, not {}", show(value)).into())
}

pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, Wrong> {
    value.as_bool().ok_or_else(|| format!("is true or false, not {}", show(value)).into())
}

/// A whole number within `range`.
pub(super) fn whole(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Result<u64, Wrong> {
    move |value| {
        integer(value).filter(|number| range.contains(number)).ok_or_else(|| {
            let bounds = match *range.end() {
                u64::MAX => format!("of at least {}", range.start()),
                end => format!("from {} to {end}", range.start()),
            };
            format!("is a whole number {bounds}, not {}", show(value)).into()
        })
    }
}

/// A number, whole or with a fraction; never infinite and never NaN.
pub(super) fn number(value: &DeValue<'_>) -> Option<f64> {
    let text = match value {
        DeValue::Float(float) => float.as_str(),
        DeValue::Integer(whole) if whole.radix() == 10 => whole.as_str(),
        DeValue::Integer(_) => return integer(value).map(|number| number as f64),
        _ => return None,
    };
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

/// A duration within `range`.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&DeValue<'_>) -> Result<Duration, Wrong> {
    move |value| {
        let duration = match value {
            DeValue::String(text) => units::duration(text)?,
            other => return Err(format!("a duration is written \"10s\", not {}", show(other)).into()),
        };
        if range.contains(&duration) {
            return Ok(duration);
        }
        let [least, most] = [range.start(), range.end()].map(|&end| units::show_duration(end));
        Err(format!("is a duration from \"{least}\" to \"{most}\", not {}", show(value)).into())
    }
}

/// An address to listen on: IP and port. Names are refused, because which of their addresses is meant nobody can see.
pub(super) fn socket_addr(value: &DeValue<'_>) -> Result<SocketAddr, Wrong> {
    let wrong = || Wrong::from(format!("an address is an IP and a port, not {}", show(value)));
    let Ok(text) = string(value) else {
        return Err(wrong().hint("write \"127.0.0.1:8080\" or \"[::]:8080\""));
    };
    text.parse().map_err(|_| match text.rsplit_once(':') {
        Some(("", port)) | Some(("*", port)) => {
            wrong().hint(format!("for every IPv4 address write \"0.0.0.0:{port}\""))
        }
        Some(("localhost", port)) => wrong().hint(format!("write \"127.0.0.1:{port}\"")),
        _ => wrong().hint("write \"127.0.0.1:8080\" or \"[::]:8080\""),
    })
}

/// The value as an error repeats it: short, on one line, control characters escaped.
pub(super) fn show(value: &DeValue<'_>) -> String {
    const LONGEST: usize = 60;
    match value {
        DeValue::String(text) if text.chars().count() > LONGEST => {
            format!("{:?}…", text.chars().take(LONGEST).collect::<String>())
        }
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string().chars().take(LONGEST).collect(),
        DeValue::Float(number) => number.to_string().chars().take(LONGEST).collect(),
        DeValue::Boolean(yes) => yes.to_string(),
        DeValue::Datetime(moment) => moment.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn integer(value: &DeValue<'_>) -> Option<u64> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}
