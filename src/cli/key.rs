//! `ringway key new`: makes an API key and its entry in keys.toml. The key is shown once and stored nowhere.
use std::{fmt::Write as _, io, path::PathBuf, process::ExitCode, str::FromStr, time::SystemTime};

use sha2::{Digest, Sha256};

use super::secret::{self, Fresh};
use crate::config::{KeyEntry, keys, names};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a key: print it once, and print or store its entry, which holds its SHA-256 only
    New(NewArgs),
}

#[derive(Debug, clap::Args)]
struct NewArgs {
    /// What stands for the key in logs and in /sessions
    #[arg(long, value_name = "NAME", value_parser = names::key_id)]
    id: String,
    /// Sessions a second that it may open, also a fraction [default: 10]
    #[arg(long, value_name = "N", value_parser = rate, allow_negative_numbers = true)]
    rate: Option<f64>,
    /// Sessions that it may open at once after a pause [default: the rate, rounded up]
    #[arg(long, value_name = "N", value_parser = count::<u32>, allow_negative_numbers = true)]
    burst: Option<u32>,
    /// Sessions that it may have at a time [default: no bound of its own]
    #[arg(long, value_name = "N", value_parser = count::<u64>, allow_negative_numbers = true)]
    max_sessions: Option<u64>,
    /// When it ends, like 2027-01-01T00:00:00Z [default: never]
    #[arg(long, value_name = "TIME", value_parser = expires)]
    expires: Option<String>,
    /// Append the entry to this file, and make the file where there is none
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

fn rate(text: &str) -> Result<f64, String> {
    keys::rate(text.parse().unwrap_or(f64::NAN))
}

fn count<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    let number = text.parse().ok().filter(|number| *number >= T::from(1));
    number.ok_or_else(|| "is a whole number, 1 or more".to_owned())
}

fn expires(text: &str) -> Result<String, String> {
    match keys::expires(text)? {
        moment if moment <= SystemTime::now() => Err("has passed already".to_owned()),
        _ => Ok(text.trim().to_owned()),
    }
}

/// Runs a command on keys.
///
/// # Errors
/// The file cannot be read or written, is broken, or has an entry of that id.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Command::New(args) = &args.command;
    let key = generate()?;
    let fresh = Fresh { noun: "key", file_noun: "keys file", name: &args.id, entry: block(args, &key), secret: key };
    fresh.hand_out(args.file.as_deref(), keys::parse, |others| match others.iter().any(|key| key.id == args.id) {
        true => Err(format!("has a key {:?} already; choose another id", args.id)),
        false => Ok(()),
    })
}

/// A fresh key.
///
/// # Errors
/// The system has no randomness to give.
pub fn generate() -> io::Result<String> {
    secret::generate("rw_")
}

/// The entry of a key with all its defaults.
pub fn entry(id: &str, key: &str) -> KeyEntry {
    KeyEntry {
        id: id.to_owned(),
        sha256: Sha256::digest(key).into(),
        rate: keys::DEFAULT_RATE,
        burst: keys::default_burst(keys::DEFAULT_RATE),
        max_sessions: None,
        expires: None,
    }
}

/// The `[[key]]` table. What the user did not name is left out, so that it stays the default.
fn block(args: &NewArgs, key: &str) -> String {
    let mut block = format!("[[key]]\nid = \"{}\"\nsha256 = \"{}\"\n", args.id, secret::sha256_hex(key));
    let mut line = |name, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(block, "{name} = {value}");
        }
    };
    line("rate", args.rate.map(|rate| rate.to_string()));
    line("burst", args.burst.map(|burst| burst.to_string()));
    line("max_sessions", args.max_sessions.map(|sessions| sessions.to_string()));
    line("expires", args.expires.as_ref().map(|expires| format!("\"{expires}\"")));
    block
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn block_is_read_back_as_given() {
        let args = NewArgs {
            id: "acme".into(),
            rate: Some(0.5),
            burst: Some(7),
            max_sessions: Some(100),
            expires: Some("2999-01-01T00:00:00Z".into()),
            file: None,
        };
        let key = generate().unwrap();
        let text = block(&args, &key);
        assert!(!text.contains(&key));
        let read = keys::parse(&text, Path::new("keys.toml")).unwrap();
        let expires = Some(keys::expires("2999-01-01T00:00:00Z").unwrap());
        let expected = KeyEntry { rate: 0.5, burst: 7, max_sessions: Some(100), expires, ..entry("acme", &key) };
        assert_eq!(read, [expected]);
        let plain = NewArgs { rate: None, burst: None, max_sessions: None, expires: None, ..args };
        assert_eq!(keys::parse(&block(&plain, &key), Path::new("keys.toml")).unwrap(), [entry("acme", &key)]);
    }
}
