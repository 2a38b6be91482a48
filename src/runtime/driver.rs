//! Which driver the worker threads run on, and the monoio runtimes themselves.
//!
//! io_uring wherever the kernel lets us have it, with the best set-up flags it knows; epoll where it does not, with
//! the reason in words. monoio's own fallback tests a ring without flags, so the flags are probed here.
use std::{fmt, future::Future, io};

use io_uring::IoUring;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use crate::config::gateway::Driver as Wanted;

/// Entries of a worker's submission queue. A turn of a busy worker submits one or two operations for each session.
const ENTRIES: u32 = 4096;

/// Set-up flags of a ring, from best to plainest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// SINGLE_ISSUER | DEFER_TASKRUN (Linux 6.1): completions are worked on when the worker asks for them.
    Deferred,
    /// COOP_TASKRUN (Linux 5.19): no interrupts for completions.
    Cooperative,
    Plain,
}

/// The driver of all worker threads of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    IoUring(Flags),
    /// With the reason why io_uring is not to be had, if it was wanted.
    Epoll(Option<String>),
}

impl Driver {
    /// Settles what the configuration left open.
    ///
    /// # Errors
    /// io_uring was demanded and is not to be had.
    pub fn choose(wanted: Wanted) -> io::Result<Self> {
        match wanted {
            Wanted::Epoll => Ok(Self::Epoll(None)),
            Wanted::Auto => Ok(probe().map_or_else(|error| Self::Epoll(Some(explain(&error))), Self::IoUring)),
            Wanted::IoUring => probe().map(Self::IoUring).map_err(|error| {
                io::Error::new(error.kind(), format!("runtime.driver is \"io_uring\", but {}", explain(&error)))
            }),
        }
    }

    pub const fn name(&self) -> &'static str {
        match self {
            Self::IoUring(_) => "io_uring",
            Self::Epoll(_) => "epoll",
        }
    }

    /// Says once what was chosen.
    pub fn log(&self) {
        match self {
            Self::IoUring(flags) => tracing::info!(driver = "io_uring", ?flags, "worker threads run on io_uring"),
            Self::Epoll(None) => {
                tracing::info!(driver = "epoll", "worker threads run on epoll, as runtime.driver says");
            }
            Self::Epoll(Some(reason)) => tracing::warn!(driver = "epoll", "worker threads run on epoll: {reason}"),
        }
    }

    /// Runs a future on a new runtime of this thread until it ends.
    ///
    /// # Errors
    /// The runtime could not be built.
    pub fn block_on<F: Future>(&self, future: F) -> io::Result<F::Output> {
        match self {
            Self::IoUring(flags) => {
                let runtime = RuntimeBuilder::<IoUringDriver>::new().with_entries(ENTRIES);
                Ok(runtime.uring_builder(flags.builder()).enable_timer().build()?.block_on(future))
            }
            Self::Epoll(_) => Ok(RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?.block_on(future)),
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl Flags {
    fn builder(self) -> io_uring::Builder {
        let mut builder = IoUring::builder();
        match self {
            Self::Deferred => builder.setup_single_issuer().setup_defer_taskrun(),
            Self::Cooperative => builder.setup_coop_taskrun(),
            Self::Plain => &mut builder,
        };
        builder
    }
}

/// Sets up a ring with ever fewer flags and passes one operation through it.
fn probe() -> io::Result<Flags> {
    let mut result = Err(io::ErrorKind::Unsupported.into());
    for flags in [Flags::Deferred, Flags::Cooperative, Flags::Plain] {
        result = try_flags(flags).map(|()| flags);
        // Only a flag that the kernel does not know is worth another try.
        if !result.as_ref().is_err_and(|error: &io::Error| error.raw_os_error() == Some(libc::EINVAL)) {
            break;
        }
    }
    result
}

fn try_flags(flags: Flags) -> io::Result<()> {
    // As large as a worker asks for: where memory may not be locked, size matters.
    let mut ring: IoUring = flags.builder().build(ENTRIES)?;
    let nop = io_uring::opcode::Nop::new().build();
    #[allow(unsafe_code)]
    // SAFETY: a no-op refers to no memory.
    unsafe {
        ring.submission().push(&nop).map_err(io::Error::other)?;
    }
    ring.submit_and_wait(1)?;
    Ok(())
}

fn explain(error: &io::Error) -> String {
    let (what, how) = match error.raw_os_error() {
        Some(libc::EPERM) => {
            let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
            match disabled.trim() {
                "1" | "2" => (
                    "the kernel has io_uring disabled",
                    "to allow it: sysctl kernel.io_uring_disabled=0 (with 1, put the process into kernel.io_uring_group)",
                ),
                _ => (
                    "io_uring is not permitted here, most likely by the container's seccomp profile",
                    "to allow it: permit io_uring_setup, io_uring_enter and io_uring_register in that profile \
                     (docker: --security-opt seccomp=profile.json)",
                ),
            }
        }
        Some(libc::ENOSYS) => (
            "io_uring is not there: an old kernel, a sandbox, or a seccomp profile that hides it",
            "to have it: Linux 5.19 or later (best 6.1), and a profile that permits io_uring_setup, io_uring_enter and \
             io_uring_register",
        ),
        Some(libc::ENOMEM) => (
            "there is not enough lockable memory for io_uring",
            "to allow it: raise the memlock limit (ulimit -l, or LimitMEMLOCK= of the unit)",
        ),
        _ => ("io_uring could not be set up", "see the error"),
    };
    format!("{what} ({error}); {how}")
}
