//! A process's life between start and exit: what every serving command does alike.
use std::{
    fs::File,
    io::{self, Write},
    net::SocketAddr,
    os::fd::{FromRawFd, RawFd},
};

use anyhow::Context;

use crate::{
    config::gateway::Driver as Wanted,
    runtime::{driver::Driver, memory, threads},
    telemetry::log::{self, Logs},
};

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

/// Settles what the process may have of the system, and how its threads talk to the kernel; logs the latter.
///
/// # Errors
/// The driver that is wanted is not to be had.
pub fn prepare(driver: Wanted) -> anyhow::Result<Driver> {
    threads::raise_open_files();
    memory::keep_pages_small();
    let driver = Driver::choose(driver).context("runtime.driver")?;
    driver.log();
    Ok(driver)
}

/// Tells on standard error where this process listens, plainly, whatever the log settings: scripts read it.
pub fn announce(address: SocketAddr, kind: &str) {
    let _ = writeln!(io::stderr(), "listening on {address} ({kind})");
}

/// The option by which a serving command tells that it serves.
#[derive(Debug, clap::Args)]
pub struct ReadyArgs {
    /// Write "ready" to this file descriptor and close it once everything listens (an agent:
    /// once the first gateway has accepted the link)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(3..))]
    ready_fd: Option<RawFd>,
}

/// Whom to tell that the process serves, if anybody asked for it.
#[derive(Debug)]
pub struct Ready(Option<File>);

impl ReadyArgs {
    /// Takes the descriptor that the user named. Must come first in the process: later it might be one that the process
    /// opened itself.
    ///
    /// # Errors
    /// It is not open, or not for writing.
    pub fn take(&self) -> Result<Ready, UsageError> {
        let Some(fd) = self.ready_fd else { return Ok(Ready(None)) };
        #[allow(unsafe_code)]
        // SAFETY: F_GETFL takes no pointer.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        if flags == -1 {
            return Err(UsageError(format!("--ready-fd {fd}: it is not open")));
        }
        if flags & libc::O_ACCMODE == libc::O_RDONLY {
            return Err(UsageError(format!("--ready-fd {fd}: it is not open for writing")));
        }
        #[allow(unsafe_code)]
        // SAFETY: the user hands this descriptor over, and nothing else in the process uses it, since nothing else runs.
        let file = unsafe { File::from_raw_fd(fd) };
        Ok(Ready(Some(file)))
    }
}

impl Ready {
    /// Says that every listener listens. As with systemd, nobody there to hear it is no reason not to serve.
    pub fn tell(self) {
        if let Some(mut file) = self.0
            && let Err(error) = file.write_all(b"ready\n")
        {
            tracing::warn!("--ready-fd: {error}; nobody was told that it is ready");
        }
    }
}
