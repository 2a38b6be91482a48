//! Time as the kernel's timers count it: nanoseconds of CLOCK_MONOTONIC, and CPU time of threads and of this process.
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
