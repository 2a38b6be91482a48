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

/// Takes the descriptor that the user named for [`tell_ready`]. Must come first in the process: later it might be one
/// that the process opened itself.
///
/// # Errors
/// It is not open, or one of the standard streams.
pub fn take_ready_fd(fd: Option<RawFd>) -> Result<Option<File>, UsageError> {
    let Some(fd) = fd else { return Ok(None) };
    if fd <= 2 {
        return Err(UsageError::new("--ready-fd: 0, 1 and 2 are the standard streams; name one from 3 on"));
    }
    #[allow(unsafe_code)]
    // SAFETY: the user hands this descriptor over, and nothing else in the process uses it, since nothing else runs.
    let open = unsafe { (libc::fcntl(fd, libc::F_GETFD) != -1).then(|| File::from_raw_fd(fd)) };
    open.map(Some).ok_or_else(|| UsageError(format!("--ready-fd {fd}: it is not open")))
}

/// Says that every listener listens, on the descriptor that the user named.
///
/// # Errors
/// It cannot be written to.
pub fn tell_ready(ready: Option<File>) -> Result<(), UsageError> {
    let Some(mut ready) = ready else { return Ok(()) };
    ready.write_all(b"ready\n").map_err(|error| UsageError(format!("--ready-fd: {error}")))
}
