//! One TOML value into one Rust value.
//!
//! Owns the words for a value of the wrong type or out of range. The functions take the value only: which key it
//! stands under, and in which line, is the reader's to say. `show` repeats a value in an error, so it must not be used
//! where a secret is expected; of one that slipped into the wrong line it repeats nothing.
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::error::Wrong;
use super::units;

/// Longer names and texts are not repeated in errors: what we expect is hardly ever as long, but a secret in the wrong
/// place is.
pub(super) const MAX_SHOWN: usize = 30;
/// `printf '' | sha256sum`: made from a variable that was empty. Nobody can ever present that secret.
const SHA256_OF_NOTHING: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae, 0x41,
    0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

pub(super) fn string<'v>(value: &'v DeValue<'_>) -> Result<&'v str, Wrong> {
    value.as_str().ok_or_else(|| format!("is a text in quotes, not {}", show(value)).into())
}

/// A text that `read` understands, whose error is a sentence without a full stop.
pub(super) fn text<T>(read: impl Fn(&str) -> Result<T, String>) -> impl Fn(&DeValue<'_>) -> Result<T, Wrong> {
    move |value| Ok(read(string(value)?)?)
}

/// The path of a file: `what` it is, and what to write instead of an empty one.
pub(super) fn path(what: &str, example: &str) -> impl Fn(&DeValue<'_>) -> Result<PathBuf, Wrong> {
    move |value| match string(value)? {
        "" => Err(Wrong::from(format!("is the path of the {what}, and empty here")).hint(format!("write {example}"))),
        file => Ok(PathBuf::from(file)),
    }
}

/// The SHA-256 of a secret, as hex digits. What stands there instead is never repeated: people paste the secret.
/// `what` the secret is, and `make_one`: which command makes it.
pub(super) fn sha256(what: &str, make_one: &str) -> impl Fn(&DeValue<'_>) -> Result<[u8; 32], Wrong> {
    move |value| {
        let text = value.as_str().unwrap_or_default();
        let wrong = match hex(text) {
            Some(SHA256_OF_NOTHING) => "is the hash of no bytes at all: what was hashed was empty".to_owned(),
            Some(bytes) => return Ok(bytes),
            None => format!(
                "is the SHA-256 of the {what} as 64 hex digits, not the {what} itself (what stands there is not shown)"
            ),
        };
        Err(Wrong::from(wrong).hint(make_one))
    }
}

fn hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 2 * bytes.len() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
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
        let wrong = || Wrong::from(format!("a duration is written \"10s\", not {}", show(value)));
        let duration = match value {
            DeValue::String(text) if is_shown(text) => units::duration(text)?,
            DeValue::String(text) => units::duration(text).map_err(|_| wrong())?,
            _ => return Err(wrong()),
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
    // A hint that repeats what is no port would be refused in its turn.
    let port = |port: &str| port.parse::<u16>().ok();
    text.parse().map_err(|_| match text.rsplit_once(':').and_then(|(host, text)| Some((host, port(text)?))) {
        Some(("" | "*", port)) => wrong().hint(format!("for every IPv4 address write \"0.0.0.0:{port}\"")),
        Some(("localhost", port)) => wrong().hint(format!("write \"127.0.0.1:{port}\"")),
        _ => wrong().hint("write \"127.0.0.1:8080\" or \"[::]:8080\""),
    })
}

/// The value as an error repeats it: short, on one line, control characters escaped.
pub(super) fn show(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if is_shown(text) => format!("{text:?}"),
        DeValue::String(_) => "a text that is not shown here".to_owned(),
        DeValue::Integer(number) => number.to_string().chars().take(MAX_SHOWN).collect(),
        DeValue::Float(number) => number.to_string().chars().take(MAX_SHOWN).collect(),
        DeValue::Boolean(yes) => yes.to_string(),
        DeValue::Datetime(moment) => moment.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// Whether an error may repeat a text: it is short, and no URL, which can carry a password.
fn is_shown(text: &str) -> bool {
    text.chars().count() <= MAX_SHOWN && !text.contains('@') && !text.contains("://")
}

fn integer(value: &DeValue<'_>) -> Option<u64> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value as it stands in a file.
    fn parsed(text: &str) -> DeValue<'_> {
        DeValue::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).into_inner()
    }

    #[test]
    fn whole_numbers() {
        let read = |text, range| whole(range)(&parsed(text));
        for (text, number) in [("7", 7), ("+7", 7), ("1_000", 1000), ("0x1F", 31), ("0o17", 15), ("0b11", 3)] {
            assert_eq!(read(text, 1..=1000), Ok(number), "{text}");
        }
        assert_eq!(read("18446744073709551615", 0..=u64::MAX), Ok(u64::MAX));
        for text in ["0", "1001", "-7", "7.0", "'7'", "true", "[7]", "{}", "18446744073709551616"] {
            let error = read(text, 1..=1000).unwrap_err().message;
            assert!(error.starts_with("is a whole number from 1 to 1000, not "), "{text}: {error}");
        }
        assert_eq!(read("0", 1..=u64::MAX).unwrap_err().message, "is a whole number of at least 1, not 0");
    }

    #[test]
    fn numbers() {
        for (text, expected) in [
            ("7", Some(7.0)),
            ("-1_0.5", Some(-10.5)),
            ("5e-1", Some(0.5)),
            ("0x10", Some(16.0)),
            ("inf", None),
            ("-nan", None),
            ("1e999", None),
            ("'1'", None),
            ("true", None),
        ] {
            assert_eq!(number(&parsed(text)), expected, "{text}");
        }
    }

    #[test]
    fn socket_addresses() {
        for text in ["127.0.0.1:0", "[::]:8080", "[fe80::1%2]:80"] {
            assert_eq!(socket_addr(&parsed(&format!("'{text}'"))).unwrap(), text.parse().unwrap(), "{text}");
        }
        for text in
            ["127.0.0.1", "::1", "[::1]", "127.0.0.1:", "127.0.0.1:65536", "localhost:80", ":80", " 127.0.0.1:80"]
        {
            assert!(socket_addr(&parsed(&format!("'{text}'"))).unwrap_err().hint.is_some(), "{text}");
        }
    }

    #[test]
    fn durations_are_within_their_range() {
        let second = Duration::from_secs(1);
        let read = |text| duration(second..=second * 60)(&parsed(text));
        assert_eq!((read("'1s'"), read("'1m'")), (Ok(second), Ok(second * 60)));
        let wanted = "is a duration from \"1s\" to \"1m\", not ";
        assert_eq!(read("'999ms'").unwrap_err().message, format!("{wanted}\"999ms\""));
        assert_eq!(read("'61s'").unwrap_err().message, format!("{wanted}\"61s\""));
        assert_eq!(read("1").unwrap_err().message, "a duration is written \"10s\", not 1");
    }

    #[test]
    fn a_value_is_shown_short_and_on_one_line() {
        let hidden = "a text that is not shown here";
        let longest = format!("'{}'", "é".repeat(MAX_SHOWN));
        let too_long = format!("'{}'", "x".repeat(MAX_SHOWN + 1));
        let digits = "1".repeat(MAX_SHOWN * 2);
        for (text, shown) in [
            ("'a'", "\"a\""),
            (r#""a\nb\u001B""#, r#""a\nb\u{1b}""#),
            (longest.as_str(), longest.replace('\'', "\"").as_str()),
            (too_long.as_str(), hidden),
            ("'redis://:hunter2@host'", hidden),
            ("'me:hunter2@host'", hidden),
            ("0x10", "0x10"),
            (digits.as_str(), &digits[..MAX_SHOWN]),
            ("-1.50", "-1.50"),
            ("false", "false"),
            ("2027-01-01 00:00:00Z", "2027-01-01T00:00:00Z"),
            ("['hunter2']", "a list"),
            ("{ a = 'hunter2' }", "a table"),
        ] {
            assert_eq!(show(&parsed(text)), shown, "{text}");
        }
    }
}
