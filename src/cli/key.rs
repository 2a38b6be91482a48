//! `ringway key new`: makes an API key and its entry in keys.toml. The key is shown once and stored nowhere.
use std::{
    fmt::Write as _,
    fs::{File, OpenOptions, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    time::SystemTime,
};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use super::process::UsageError;
use crate::config::{KeyEntry, keys, names};

/// Random bytes in a key: nobody guesses 256 bits.
const KEY_BYTES: usize = 32;
/// Readable and writable by the owner only.
const MODE: u32 = 0o600;

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
    let entry = block(args, &key);
    let stored = match &args.file {
        Some(path) => {
            let file = append(path, &args.id, &entry)?;
            // A key that nobody got to see must not take its id.
            print(&format!("{key}\n")).inspect_err(|_| file.take_back())?;
            format!("its entry {:?} is in {}", args.id, path.display())
        }
        None => {
            print(&format!("{key}\n\n{entry}"))?;
            "add the entry below it to your keys file".to_owned()
        }
    };
    let _ = writeln!(io::stderr(), "This is the only time the key is shown; {stored}.");
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
}

/// A fresh key.
///
/// # Errors
/// The system has no randomness to give.
pub fn generate() -> io::Result<String> {
    let mut bytes = [0; KEY_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(format!("rw_{}", URL_SAFE_NO_PAD.encode(bytes)))
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
    let mut block = format!("[[key]]\nid = \"{}\"\nsha256 = \"", args.id);
    for byte in Sha256::digest(key) {
        let _ = write!(block, "{byte:02x}");
    }
    block.push_str("\"\n");
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

/// A file that an entry was appended to, still locked.
struct Appended {
    file: File,
    before: u64,
}

impl Appended {
    fn take_back(&self) {
        let _ = self.file.set_len(self.before);
    }
}

/// Appends an entry, if the file is valid and stays so. The lock keeps two of us from writing at a time.
fn append(path: &Path, id: &str, entry: &str) -> anyhow::Result<Appended> {
    let failed = |error: io::Error| anyhow::anyhow!("{}: {error}", path.display());
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(MODE).open(path).map_err(failed)?;
    file.lock().map_err(failed)?;
    let added = addition(&mut file, path, id, entry)?;
    let before = file.metadata().map_err(failed)?.len();
    file.set_permissions(Permissions::from_mode(MODE)).map_err(failed)?;
    // One write, so that a gateway that reloads meanwhile reads all of the entry or nothing of it.
    file.write_all(added.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(Appended { file, before })
}

/// What to append to the file, checked.
fn addition(file: &mut File, path: &Path, id: &str, entry: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    let text = crate::config::utf8(bytes, path)?;
    if keys::parse(&text, path)?.iter().any(|key| key.id == id) {
        return Err(UsageError::new(format!("{}: has a key {id:?} already; choose another id", path.display())).into());
    }
    let gap = match text.as_str() {
        "" => "",
        text if text.ends_with('\n') => "\n",
        _ => "\n\n",
    };
    let added = format!("{gap}{entry}");
    keys::parse(&format!("{text}{added}"), path)?;
    Ok(added)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_are_long() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert_ne!(one, other);
        assert!(one.starts_with("rw_") && one.len() >= 3 + KEY_BYTES * 4 / 3, "{one}");
    }

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
