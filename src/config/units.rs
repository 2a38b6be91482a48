//! Durations written `"10s"` and sizes written `"64KiB"`.
//!
//! Owns the two notations, for configuration files and the command line alike. A bare number is refused: nobody can
//! tell whether 10 means seconds or milliseconds, and the error says what to write.
use std::time::Duration;

const SIZE_UNITS: [(&str, u32); 5] = [("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

/// Reads `"10s"`, `"500ms"`, `"1m 30s"`. The error is a sentence without a full stop.
pub fn duration(text: &str) -> Result<Duration, String> {
    let number_only = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if number_only {
        return Err(format!("a duration needs its unit: \"{text}s\" or \"{text}ms\", not \"{text}\""));
    }
    humantime::parse_duration(text)
        .map_err(|_| format!("a duration is written \"10s\", \"500ms\" or \"1m 30s\", not {text:?}"))
}

/// Reads `"64KiB"`, `"512B"`, `"1 MiB"`: whole numbers of binary units. The error is a sentence without a full stop.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("a size is written \"64KiB\" (or B, MiB, GiB, TiB), not {text:?}");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim_start_matches(' ');
    let (_, bits) = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?;
    number.checked_mul(1 << bits).ok_or_else(|| format!("the size {text:?} is more than this machine can count"))
}

/// Writes a duration the way [`duration`] reads it.
pub fn show_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        for (text, ms) in [("10s", 10_000), ("500ms", 500), ("1m 30s", 90_000), ("1m30s", 90_000), ("2h", 7_200_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(duration("10").unwrap_err(), "a duration needs its unit: \"10s\" or \"10ms\", not \"10\"");
        for text in ["", " ", "s", "ten seconds", "-1s", "10 parsecs", "99999999999999999999s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("64KiB", 65_536), ("0B", 0), ("1 MiB", 1 << 20), ("2gib", 2 << 30), ("3TiB", 3 << 40)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "64", "KiB", "64KB", "64K", "-1B", "1.5MiB", "99999999TiB", "1 024B"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(size("64").unwrap_err(), "a size is written \"64KiB\" (or B, MiB, GiB, TiB), not \"64\"");
    }

    proptest! {
        #[test]
        fn never_panic(text in ".*") {
            let _ = duration(&text);
            let _ = size(&text);
        }
    }
}
