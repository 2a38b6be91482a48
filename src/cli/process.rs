//! A process's life between start and exit: what every serving command does alike.
use std::{
    fs::File,
    io::{self, Write},
    net::SocketAddr,
    os::fd::{FromRawFd, RawFd},
};

use crate::telemetry::log::{self, Logs};

/// Failed while running, and failed for what the user wrote.
pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;

/// Something that the user wrote is wrong, other than in a configuration file.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

impl UsageError {
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Begins to log.
///
/// # Errors
/// An environment variable has a value that cannot be used.
pub fn start_logs() -> Result<Logs, UsageError> {
    log::start().map_err(UsageError)
}

/// Tells on standard error where this process listens, plainly, whatever the log settings: scripts read it.
pub fn announce(address: SocketAddr, kind: &str) {
    let _ = writeln!(io::stderr(), "listening on {address} ({kind})");
}

/// The user's `--ready-fd`.
///
/// # Errors
/// It is one of the standard streams.
pub fn ready_fd(fd: Option<RawFd>) -> Result<Option<RawFd>, UsageError> {
    match fd {
        Some(..=2) => Err(UsageError::new("--ready-fd: 0, 1 and 2 are the standard streams; name one from 3 on")),
        fd => Ok(fd),
    }
}

/// Says that every listener listens, on the descriptor that the user named.
///
/// # Errors
/// The descriptor is not open for writing.
pub fn tell_ready(fd: Option<RawFd>) -> io::Result<()> {
    let Some(fd) = fd else { return Ok(()) };
    #[allow(unsafe_code)]
    // SAFETY: the user hands this descriptor over, and nothing else in the process uses it.
    let mut ready = unsafe { File::from_raw_fd(fd) };
    ready.write_all(b"ready\n").map_err(|error| io::Error::new(error.kind(), format!("--ready-fd {fd}: {error}")))
}
