//! keys.toml: who may open sessions, and how many.
//!
//! Owns [`KeyEntry`], one `[[key]]`. A key itself never stands in the file, only its SHA-256, and whatever stands in
//! that place is never repeated in an error: people paste the key there.
use std::path::Path;
use std::time::{Duration, SystemTime};

use toml::de::DeValue;
use toml::value::{Date, Datetime, Offset, Time};

use super::error::{ConfigErrors, Wrong};
use super::reader::{self, FirstOffsets, Section};
use super::{names, read_file, value};

/// Tokens a second of an entry that names no rate.
pub const DEFAULT_RATE: f64 = 10.0;
/// One session in thirty years to a million a second: what lies outside is a typing error, and within it the bucket's
/// arithmetic in nanoseconds stays exact enough.
const RATE: std::ops::RangeInclusive<f64> = 1e-9..=1e6;

/// One key, known by the hash of its bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyEntry {
    /// Unique; stands for the key in logs and metrics.
    pub id: String,
    /// Unique.
    pub sha256: [u8; 32],
    /// Tokens a second, more than 0.
    pub rate: f64,
    /// The bucket's capacity, at least 1.
    pub burst: u32,
    /// Sessions at a time, at least 1; `None`: no bound of its own.
    pub max_sessions: Option<u64>,
    /// From this moment on the key opens no session.
    pub expires: Option<SystemTime>,
}

/// Reads and checks a file. Order is kept; no key at all is valid.
pub fn load(path: &Path) -> Result<Vec<KeyEntry>, ConfigErrors> {
    parse(&read_file(path)?, path)
}

/// Checks a file's text; `path` is for errors.
pub fn parse(text: &str, path: &Path) -> Result<Vec<KeyEntry>, ConfigErrors> {
    reader::read(text, path, |root| {
        let mut entries = Vec::new();
        let mut seen = Seen::default();
        root.each_table("key", "[[key]]", |table| entries.extend(entry(table, &mut seen)));
        Some(entries)
    })
}

#[derive(Default)]
struct Seen {
    ids: FirstOffsets<String>,
    hashes: FirstOffsets<[u8; 32]>,
}

fn entry(table: &mut Section<'_, '_>, seen: &mut Seen) -> Option<KeyEntry> {
    let id = table.required("id", |value| {
        // Whatever stands there may be the key itself, so it is not repeated.
        Ok(names::key_id(value.as_str().ok_or("is a text in quotes")?)?)
    });
    let sha256 = table.required("sha256", value::sha256("key", MAKE_ONE));
    let rate = table.value("rate", rate_value);
    let burst = table.value("burst", value::whole(1..=u64::from(u32::MAX)));
    let max_sessions = table.value("max_sessions", value::whole(1..=u64::MAX));
    let expires = table.value("expires", expires_value);
    table.refuse_second("id", id.as_ref(), &mut seen.ids);
    table.refuse_second("sha256", sha256.as_ref(), &mut seen.hashes);
    let rate = rate.unwrap_or(DEFAULT_RATE);
    let burst = burst.and_then(|burst| u32::try_from(burst).ok()).unwrap_or_else(|| default_burst(rate));
    Some(KeyEntry { id: id?, sha256: sha256?, rate, burst, max_sessions, expires })
}

/// The capacity of a bucket whose entry names none: the rate rounded up.
pub fn default_burst(rate: f64) -> u32 {
    // `as` saturates, and a rate is within RATE anyway.
    (rate.ceil() as u32).max(1)
}

/// Checks a rate, from a file or the command line.
pub fn rate(rate: f64) -> Result<f64, String> {
    if RATE.contains(&rate) {
        return Ok(rate);
    }
    Err("is a number of sessions a second, more than 0 and at most 1000000, like 10 or 0.5".to_owned())
}

/// Checks a moment written as RFC 3339, from a file or the command line.
pub fn expires(text: &str) -> Result<SystemTime, String> {
    let wrong = || "is a moment with its offset (RFC 3339), like \"2027-01-01T00:00:00Z\"".to_owned();
    let moment: Datetime = text.trim().parse().map_err(|_| wrong())?;
    system_time(moment).ok_or_else(wrong)
}

fn rate_value(value: &DeValue<'_>) -> Result<f64, Wrong> {
    // NaN is in no range, so the one message serves for both.
    rate(value::number(value).unwrap_or(f64::NAN))
        .map_err(|wrong| format!("{wrong}; not {}", value::show(value)).into())
}

fn expires_value(value: &DeValue<'_>) -> Result<SystemTime, Wrong> {
    let text = match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Datetime(moment) => moment.to_string(),
        other => value::show(other),
    };
    expires(&text).map_err(|wrong| format!("{wrong}; not {}", value::show(value)).into())
}

const MAKE_ONE: &str = "`ringway key new --id NAME` makes a key and its entry";

/// `None` for a moment without date, time or offset, which is a different one for everybody.
fn system_time(moment: Datetime) -> Option<SystemTime> {
    let (date, time) = (moment.date?, moment.time?);
    let offset_minutes = match moment.offset? {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let seconds = days_since_1970(date) * 86_400 + seconds_of_day(time) - offset_minutes * 60;
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = match seconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(whole)?,
        _ => SystemTime::UNIX_EPOCH.checked_sub(whole)?,
    };
    second.checked_add(Duration::from_nanos(u64::from(time.nanosecond.unwrap_or(0))))
}

fn seconds_of_day(time: Time) -> i64 {
    i64::from(time.hour) * 3600 + i64::from(time.minute) * 60 + i64::from(time.second.unwrap_or(0))
}

/// Gregorian calendar, counted in years that begin in March so that the leap day is the last one.
fn days_since_1970(date: Date) -> i64 {
    const DAYS_FROM_MARCH_OF_YEAR_0: i64 = 719_468;
    let (year, month, day) = (i64::from(date.year), i64::from(date.month), i64::from(date.day));
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    year * 365 + leap_days + day_of_year - DAYS_FROM_MARCH_OF_YEAR_0
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
