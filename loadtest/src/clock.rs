//! Time as the kernel's timers count it: nanoseconds of CLOCK_MONOTONIC, and CPU time of threads and processes.
use rustix::time::{ClockId, clock_gettime};

pub const SECOND: u64 = 1_000_000_000;
pub const MILLISECOND: u64 = 1_000_000;

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * SECOND + time.tv_nsec as u64
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now() -> u64 {
    read(ClockId::Monotonic)
}

/// CPU time of the calling thread, in nanoseconds.
pub fn thread_cpu() -> u64 {
    read(ClockId::ThreadCPUTime)
}

/// CPU time of all threads of this process, in nanoseconds.
pub fn process_cpu() -> u64 {
    read(ClockId::ProcessCPUTime)
}

/// CPU time of all threads of another process, those that have ended too, in nanoseconds; `None` if it is gone.
///
/// What `/proc` says counts in hundredths of a second: too coarse for a measurement of one second.
#[allow(unsafe_code)] // There is no safe wrapper for the clocks of others.
pub fn cpu_of(pid: u32) -> Option<u64> {
    let pid = libc::pid_t::try_from(pid).ok()?;
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: each call writes to the one variable that it is given, which outlives it, and keeps no pointer.
    let read = unsafe { libc::clock_getcpuclockid(pid, &mut clock) == 0 && libc::clock_gettime(clock, &mut time) == 0 };
    read.then(|| time.tv_sec as u64 * SECOND + time.tv_nsec as u64)
}
