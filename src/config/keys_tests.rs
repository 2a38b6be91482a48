//! keys.toml: what is read, what is refused, and that no secret is repeated.
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;

/// `printf secret | sha256sum`
const OF_SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
const HASH_WANTED: &str = "is the SHA-256 of the key as 64 hex digits, not the key itself (what stands there is not \
                           shown); `ringway key new --id NAME` makes a key and its entry";

fn read(text: &str) -> Result<Vec<KeyEntry>, ConfigErrors> {
    parse(text, Path::new("keys.toml"))
}

/// An entry that is right, but for the lines that are added to it; those begin at line 4.
fn with(lines: &str) -> String {
    format!("[[key]]\nid = \"acme\"\nsha256 = \"{OF_SECRET}\"\n{lines}\n")
}

fn entry_with(lines: &str) -> KeyEntry {
    read(&with(lines)).unwrap_or_else(|errors| panic!("{lines}: {errors}")).remove(0)
}

/// All errors as they are shown, one a line.
fn errors(text: &str) -> String {
    read(text).expect_err(text).to_string()
}

/// `n` as what stands for a hash.
fn hash(n: usize) -> String {
    format!("{n:064x}")
}

/// Seconds since 1970, and nanoseconds on top of them.
fn moment(seconds: i64, nanos: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = if seconds < 0 { SystemTime::UNIX_EPOCH - whole } else { SystemTime::UNIX_EPOCH + whole };
    second + Duration::from_nanos(nanos.into())
}

#[test]
fn an_entry_with_what_is_required_has_the_defaults() {
    let expected = KeyEntry {
        id: "acme".into(),
        sha256: Sha256::digest("secret").into(),
        rate: 10.0,
        burst: 10,
        max_sessions: None,
        expires: None,
    };
    assert_eq!(read(&with("")).unwrap(), [expected]);
}

#[test]
fn every_key_is_read() {
    let all = "rate = 2.5\nburst = 7\nmax_sessions = 100\nexpires = 2027-01-01T00:00:00Z";
    let expected = KeyEntry {
        id: "acme".into(),
        sha256: Sha256::digest("secret").into(),
        rate: 2.5,
        burst: 7,
        max_sessions: Some(100),
        expires: Some(moment(1_798_761_600, 0)),
    };
    assert_eq!(read(&with(all)).unwrap(), [expected]);
}

#[test]
fn order_is_kept_and_no_key_is_no_error() {
    for text in ["", "# nothing yet\n", "key = []"] {
        assert_eq!(read(text).unwrap(), [], "{text}");
    }
    let text: String = (0..3).rev().map(|n| format!("[[key]]\nid = 'key{n}'\nsha256 = '{}'\n", hash(n))).collect();
    let ids: Vec<_> = read(&text).unwrap().into_iter().map(|key| key.id).collect();
    assert_eq!(ids, ["key2", "key1", "key0"]);
}

#[test]
fn a_hash_may_be_in_upper_case() {
    let text = format!("[[key]]\nid = 'acme'\nsha256 = '{}'", OF_SECRET.to_uppercase());
    assert_eq!(read(&text).unwrap()[0].sha256, <[u8; 32]>::from(Sha256::digest("secret")));
}

#[test]
fn the_default_burst_is_the_rate_rounded_up() {
    for (rate, burst) in [
        ("10", 10),
        ("10.0", 10),
        ("10.000001", 11),
        ("2.5", 3),
        ("1", 1),
        ("0.5", 1),
        ("1e-9", 1),
        ("1000000", 1_000_000),
        ("999_999.5", 1_000_000),
        ("0x10", 16),
    ] {
        assert_eq!(entry_with(&format!("rate = {rate}")).burst, burst, "{rate}");
    }
    // A burst that is written stands, below the rate too.
    let entry = entry_with("rate = 100\nburst = 1");
    assert_eq!((entry.rate, entry.burst), (100.0, 1));
}

#[test]
fn rates_bursts_and_sessions_have_bounds() {
    for (line, rate) in [("rate = 1e-9", 1e-9), ("rate = 1e6", 1e6), ("rate = +0.1", 0.1), ("rate = 1_0.5", 10.5)] {
        assert_eq!(entry_with(line).rate, rate, "{line}");
    }
    let wanted = "is a number of sessions a second, more than 0 and at most 1000000, like 10 or 0.5; not";
    for value in ["0", "0.0", "-1", "-0.5", "1000000.5", "1000001", "nan", "inf", "-inf", "1e999", "\"5\"", "true"] {
        let expected = format!("keys.toml:4: \"rate\" in [[key]] {wanted} {value}");
        assert_eq!(errors(&with(&format!("rate = {value}"))), expected);
    }
    assert_eq!(entry_with("burst = 1").burst, 1);
    assert_eq!(entry_with("burst = 4294967295").burst, u32::MAX);
    for value in ["0", "-1", "4294967296", "1.5", "\"5\"", "99999999999999999999"] {
        let expected = format!("keys.toml:4: \"burst\" in [[key]] is a whole number from 1 to 4294967295, not {value}");
        assert_eq!(errors(&with(&format!("burst = {value}"))), expected);
    }
    assert_eq!(entry_with("max_sessions = 1").max_sessions, Some(1));
    assert_eq!(entry_with("max_sessions = 18446744073709551615").max_sessions, Some(u64::MAX));
    for value in ["0", "-1", "18446744073709551616", "1.0", "false"] {
        let expected = format!("keys.toml:4: \"max_sessions\" in [[key]] is a whole number of at least 1, not {value}");
        assert_eq!(errors(&with(&format!("max_sessions = {value}"))), expected);
    }
}

/// The seconds are those of `date -u -d … +%s`.
#[test]
fn a_moment_is_read_in_quotes_and_without() {
    for (text, seconds, nanos) in [
        ("1970-01-01T00:00:00Z", 0, 0),
        ("2027-01-01T00:00:00Z", 1_798_761_600, 0),
        ("2027-01-01 00:00:00z", 1_798_761_600, 0),
        ("2027-01-01t00:00:00Z", 1_798_761_600, 0),
        ("2027-01-01T00:00:00+00:00", 1_798_761_600, 0),
        ("2027-01-01T05:30:00+05:30", 1_798_761_600, 0),
        ("2026-12-31T16:00:00-08:00", 1_798_761_600, 0),
        ("2026-12-31T23:29:00-00:31", 1_798_761_600, 0),
        ("2027-01-01T00:00:00.5Z", 1_798_761_600, 500_000_000),
        ("2027-01-01T00:00:00.123456789Z", 1_798_761_600, 123_456_789),
        ("2027-01-01T00:00:00.1234567899Z", 1_798_761_600, 123_456_789),
        // Leap days, and the days around those that are none.
        ("2024-02-29T12:00:00Z", 1_709_208_000, 0),
        ("2024-03-01T00:00:00Z", 1_709_251_200, 0),
        ("2000-02-29T00:00:00Z", 951_782_400, 0),
        ("2100-03-01T00:00:00Z", 4_107_542_400, 0),
        ("2100-02-28T23:59:59Z", 4_107_542_399, 0),
        ("2016-12-31T23:59:60Z", 1_483_228_800, 0),
        // Before 1970.
        ("1969-12-31T23:59:59Z", -1, 0),
        ("1969-12-31T23:59:59.25Z", -1, 250_000_000),
        ("1970-01-01T00:00:00+01:00", -3600, 0),
        ("1900-03-01T00:00:00Z", -2_203_891_200, 0),
        ("0000-01-01T00:00:00Z", -62_167_219_200, 0),
        ("9999-12-31T23:59:59Z", 253_402_300_799, 0),
    ] {
        let expected = Some(moment(seconds, nanos));
        assert_eq!(entry_with(&format!("expires = \"{text}\"")).expires, expected, "{text}");
        assert_eq!(entry_with(&format!("expires = {text}")).expires, expected, "{text}, a TOML datetime");
        assert_eq!(expires(&format!(" {text}\n")).ok(), expected, "{text}, from the command line");
    }
}

#[test]
fn what_is_no_moment_is_refused() {
    let wanted = "is a moment with its offset (RFC 3339), like \"2027-01-01T00:00:00Z\"";
    let no_toml = [
        "",
        "never",
        "2027-01-01T00:00:00Z!",
        "2027-02-29T00:00:00Z",
        "2100-02-29T00:00:00Z",
        "2027-13-01T00:00:00Z",
        "2027-00-01T00:00:00Z",
        "2027-04-31T00:00:00Z",
        "2027-01-01T24:00:00Z",
        "2027-01-01T00:60:00Z",
        "2027-01-01T00:00:61Z",
        "2027-01-01T00:00:00+24:00",
        "2027-1-1T00:00:00Z",
        "12027-01-01T00:00:00Z",
        "-2027-01-01T00:00:00Z",
        "2027-01-01T00:00:00 UTC",
        "２０２７-01-01T00:00:00Z",
        "1d",
    ];
    // TOML has these, but they are another moment for everybody.
    let no_moment = ["2027-01-01", "2027-01-01T00:00:00", "00:00:00"];
    for text in no_toml.iter().chain(&no_moment) {
        let expected = format!("keys.toml:4: \"expires\" in [[key]] {wanted}; not \"{text}\"");
        assert_eq!(errors(&with(&format!("expires = \"{text}\""))), expected);
        assert_eq!(expires(text), Err(wanted.to_owned()), "{text}");
    }
    for text in no_moment.iter().chain(&["1798761600", "true"]) {
        let expected = format!("keys.toml:4: \"expires\" in [[key]] {wanted}; not {text}");
        assert_eq!(errors(&with(&format!("expires = {text}"))), expected);
    }
}

#[test]
fn an_entry_without_id_or_hash_is_refused() {
    for (text, message) in [
        (format!("[[key]]\nsha256 = '{OF_SECRET}'"), "1: [[key]] needs \"id\""),
        ("\n[[key]]\nid = 'acme'".into(), "2: [[key]] needs \"sha256\""),
        ("key = 5".into(), "1: \"key\" is a list of tables; write [[key]] in a line of its own before each"),
        ("key = ['x']".into(), "1: \"key\" is a list of tables; write [[key]] in a line of its own before each"),
        (
            format!("[key]\nid = 'acme'\nsha256 = '{OF_SECRET}'"),
            "1: \"key\" is a list of tables; write [[key]] in a line of its own before each",
        ),
    ] {
        assert_eq!(errors(&text), format!("keys.toml:{message}"), "{text}");
    }
    let id = "\"id\" in [[key]]: an id is 1 to 64 visible ASCII characters without spaces, quotes and backslashes, \
              like \"acme\"";
    for (value, message) in [("''", id), ("'a b'", id), ("'é'", id), ("5", "\"id\" in [[key]] is a text in quotes")] {
        let text = format!("[[key]]\nid = {value}\nsha256 = '{OF_SECRET}'");
        assert_eq!(errors(&text), format!("keys.toml:2: {message}"));
    }
}

#[test]
fn what_stands_in_place_of_a_hash_is_not_repeated() {
    let digits = &OF_SECRET[1..];
    let cases = [
        "\"hunter2\"".to_owned(),
        format!("\"{digits}\""),
        format!("\"0{OF_SECRET}\""),
        format!("\"x{digits}\""),
        format!("\" {OF_SECRET}\""),
        format!("\"é{}\"", &OF_SECRET[2..]),
        format!("\"+{digits}\""),
        "4711".to_owned(),
        "[\"hunter2\"]".to_owned(),
        "{ of = \"hunter2\" }".to_owned(),
        "\"\"".to_owned(),
    ];
    for value in cases {
        let text = format!("[[key]]\nid = 'acme'\nsha256 = {value}");
        assert_eq!(errors(&text), format!("keys.toml:3: \"sha256\" in [[key]] {HASH_WANTED}"), "{value}");
    }
}

#[test]
fn the_hash_of_nothing_is_no_key() {
    let of_nothing: String = Sha256::digest("").iter().map(|byte| format!("{byte:02x}")).collect();
    for text in [of_nothing.to_uppercase(), of_nothing] {
        let error = errors(&format!("[[key]]\nid = 'acme'\nsha256 = '{text}'"));
        assert!(error.starts_with("keys.toml:3: \"sha256\" in [[key]] is the hash of no bytes at all"), "{error}");
    }
}

#[test]
fn secrets_in_the_wrong_place_are_not_repeated() {
    let secret = "rw_hunter2hunter2hunter2hunter2hunter2hunter2";
    let quoted = format!("\"{secret}\"");
    for text in [
        with(&format!("rate = {quoted}")),
        with(&format!("burst = {quoted}")),
        with(&format!("max_sessions = {quoted}")),
        with(&format!("expires = {quoted}")),
        with(&format!("key = {quoted}")),
        with(&format!("{secret} = 1")),
        with(&format!("[{secret}]")),
        format!("key = {quoted}"),
        format!("sha256 = {quoted}"),
        format!("[[key]]\nid = \"{secret} \"\nsha256 = {quoted}"),
        format!("[[key]]\nid = [{quoted}]\nsha256 = {secret}"),
        format!("[[key]]\nsha256 = \"{secret}"),
        format!("[[key]]\nsha256 = {secret}"),
        format!("[[key]]\nsha256 {quoted}"),
        format!("[[key]]\n{secret}"),
        format!("[[{secret}"),
        secret.to_string(),
    ] {
        assert!(!errors(&text).contains("hunter2"), "{text}: {}", errors(&text));
    }
    // Nor is a hash: who has it can look for the key.
    let twice = with("") + &format!("[[key]]\nid = 'other'\nsha256 = '{OF_SECRET}'\nsha265 = '{OF_SECRET}'");
    assert!(!errors(&twice).contains(&OF_SECRET[..8]), "{}", errors(&twice));
}

#[test]
fn an_id_or_hash_that_is_there_twice_is_refused_with_both_lines() {
    let entry = |id: &str, n| format!("[[key]]\nid = '{id}'\nsha256 = '{}'\n", hash(n));
    let text = [entry("a", 1), entry("b", 2), entry("a", 3), entry("c", 2), entry("a", 1)].concat();
    assert_eq!(
        errors(&text).lines().collect::<Vec<_>>(),
        [
            "keys.toml:8: \"id\" in [[key]] is that of the [[key]] in line 1 already",
            "keys.toml:12: \"sha256\" in [[key]] is that of the [[key]] in line 4 already",
            "keys.toml:14: \"id\" in [[key]] is that of the [[key]] in line 1 already",
            "keys.toml:15: \"sha256\" in [[key]] is that of the [[key]] in line 1 already",
        ]
    );
    // The same bytes in other digits.
    let upper = with("") + &format!("[[key]]\nid = 'other'\nsha256 = '{}'", OF_SECRET.to_uppercase());
    assert!(errors(&upper).contains("\"sha256\" in [[key]] is that of the [[key]] in line 1 already"));
    // Ids differ by case.
    assert_eq!(read(&[entry("a", 1), entry("A", 2)].concat()).unwrap().len(), 2);
}

#[test]
fn an_unknown_key_is_an_error_that_says_what_was_meant() {
    for (text, message) in [
        (with("max_session = 1"), "4: unknown key \"max_session\" in [[key]]; did you mean \"max_sessions\"?"),
        (with("expire = '1d'"), "4: unknown key \"expire\" in [[key]]; did you mean \"expires\"?"),
        (with("note = 'x'"), "4: unknown key \"note\" in [[key]]"),
        ("rate = 5".into(), "1: unknown key \"rate\"; it belongs to [[key]]"),
        (with("[key.limits]"), "4: unknown table [limits] in [[key]]"),
        ("[[keys]]\nid = 'x'".into(), "1: unknown table [keys]; did you mean [[key]]?"),
    ] {
        assert_eq!(errors(&text), format!("keys.toml:{message}"), "{text}");
    }
}

#[test]
fn all_problems_are_reported_together_in_the_order_of_their_lines() {
    let text = "typo = 1
[[key]]
id = 'a b'
sha256 = 'x'
rate = 0
burst = 0
[[key]]
max_sessions = 0
expires = 'never'
";
    let lines: Vec<_> = read(text).unwrap_err().0.iter().map(|error| error.line.unwrap()).collect();
    assert_eq!(lines, [1, 3, 4, 5, 6, 7, 7, 8, 9]);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load(Path::new("/nonexistent/keys.toml")).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/keys.toml: cannot be read: "), "{error}");
}

proptest! {
    /// Against the calendar of another library, one second at a time around every day's end included.
    #[test]
    fn moments_agree_with_another_calendar(seconds in 0..253_402_300_800_i64) {
        let expected = moment(seconds, 0);
        let text = humantime::format_rfc3339_seconds(expected).to_string();
        prop_assert_eq!(expires(&text), Ok(expected), "{}", text);
    }

    #[test]
    fn never_panics(text in ".*", value in "[-+0-9TZ:.é]*") {
        let _ = read(&text);
        let _ = expires(&text);
        let _ = expires(&value);
        let _ = read(&with(&format!("expires = {value}")));
        let _ = read(&with(&format!("rate = {value}")));
    }
}
