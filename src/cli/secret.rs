//! Secrets that ringway makes: each is shown once, and its entry, with the SHA-256 only, goes into a file or is printed.
//!
//! Must never write a secret anywhere but to standard output, nor leave an entry for one that nobody got to see.
use std::{
    fmt::Write as _,
    fs::{File, OpenOptions, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    process::ExitCode,
};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use super::process::UsageError;
use crate::config::{self, ConfigErrors};

/// Random bytes in a secret: nobody guesses 256 bits.
const RANDOM_BYTES: usize = 32;
/// Readable and writable by the owner only.
const MODE: u32 = 0o600;

/// A fresh secret. `prefix` tells what it is for.
///
/// # Errors
/// The system has no randomness to give.
pub fn generate(prefix: &str) -> io::Result<String> {
    let mut bytes = [0; RANDOM_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

/// What stands for a secret in a file.
pub fn sha256_hex(secret: &str) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(secret) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Reads the entries of a file's text; the path is for errors.
pub type Parse<E> = fn(&str, &Path) -> Result<Vec<E>, ConfigErrors>;

/// A secret that nobody has seen yet.
pub struct Fresh<'a> {
    /// What messages call it, and the file that its entry belongs into.
    pub noun: &'static str,
    pub file_noun: &'static str,
    /// What messages call its entry.
    pub name: &'a str,
    pub secret: String,
    /// A TOML table, of whole lines.
    pub entry: String,
}

impl Fresh<'_> {
    /// Shows the secret, and appends its entry to `file`, or prints it too. `parse` reads such a file, and `accept`
    /// says in words why the entry cannot join those in it.
    ///
    /// # Errors
    /// The file is broken, or the entry not accepted; the file or standard output cannot be used.
    pub fn hand_out<E>(
        &self,
        file: Option<&Path>,
        parse: Parse<E>,
        accept: impl Fn(&[E]) -> Result<(), String>,
    ) -> anyhow::Result<ExitCode> {
        let stored = match file {
            Some(path) => {
                let file = append(path, |text| addition(text, path, &self.entry, parse, accept))?;
                // A secret that nobody got to see must not leave an entry.
                print(&format!("{}\n", self.secret)).inspect_err(|_| file.take_back())?;
                format!("its entry {:?} is in {}", self.name, path.display())
            }
            None => {
                print(&format!("{}\n\n{}", self.secret, self.entry))?;
                format!("add the entry below it to your {}", self.file_noun)
            }
        };
        let _ = writeln!(io::stderr(), "This is the only time the {} is shown; {stored}.", self.noun);
        Ok(ExitCode::SUCCESS)
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
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

/// Appends what is made of the file's text. The lock keeps two of us from writing at a time.
fn append(path: &Path, addition: impl FnOnce(&str) -> anyhow::Result<String>) -> anyhow::Result<Appended> {
    let failed = |error: io::Error| anyhow::anyhow!("{}: {error}", path.display());
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(MODE).open(path).map_err(failed)?;
    file.lock().map_err(failed)?;
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).map_err(failed)?;
    let before = bytes.len() as u64;
    let text = config::utf8(bytes, path)?;
    let added = addition(&text)?;
    file.set_permissions(Permissions::from_mode(MODE)).map_err(failed)?;
    // One write, so that a gateway that reloads meanwhile reads all of the entry or nothing of it.
    file.write_all(added.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(Appended { file, before })
}

/// What to append to a file with this text, checked: the file is valid, and stays so.
fn addition<E>(
    text: &str,
    path: &Path,
    entry: &str,
    parse: Parse<E>,
    accept: impl Fn(&[E]) -> Result<(), String>,
) -> anyhow::Result<String> {
    accept(&parse(text, path)?).map_err(|why| UsageError::new(format!("{}: {why}", path.display())))?;
    let gap = match text {
        "" => "",
        text if text.ends_with('\n') => "\n",
        _ => "\n\n",
    };
    let added = format!("{gap}{entry}");
    parse(&format!("{text}{added}"), path)?;
    Ok(added)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_are_long() {
        let (one, other) = (generate("rw_").unwrap(), generate("rw_").unwrap());
        assert_ne!(one, other);
        assert!(one.starts_with("rw_") && one.len() >= 3 + RANDOM_BYTES * 4 / 3, "{one}");
    }
}
