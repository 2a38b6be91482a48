//! Logs on standard error, written by a thread of their own so that no worker waits for a terminal or a pipe.
use std::{
    io::{self, Write},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter,
    fmt::{MakeWriter, fmt},
};

/// Lines that may wait to be written; beyond that they are dropped and counted, not waited for.
const QUEUED_LINES: usize = 64 * 1024;

/// How long the end of the process waits for standard error, while that takes something at all.
const LAST_LINES: Duration = Duration::from_secs(2);
const STUCK: Duration = Duration::from_millis(200);

/// The environment variable with the log levels, and the one with the format.
pub const LEVELS: &str = "RINGWAY_LOG";
pub const FORMAT: &str = "RINGWAY_LOG_FORMAT";

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();
/// Lines that were logged, dropped ones among them, and those that were written.
static LOGGED: AtomicU64 = AtomicU64::new(0);
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// Lines that were dropped so far, because standard error did not take them in time.
pub fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |counter| counter.dropped_lines() as u64)
}

/// Whether the queue is less than half full, so that it takes thousands of lines more.
pub fn has_room() -> bool {
    waiting(dropped_lines()) < QUEUED_LINES as u64 / 2
}

fn waiting(dropped: u64) -> u64 {
    let done = WRITTEN.load(Ordering::Relaxed) + dropped;
    LOGGED.load(Ordering::Relaxed).saturating_sub(done)
}

/// Writes what is still queued when dropped, as far as standard error takes it.
#[derive(Debug)]
pub struct Logs(#[allow(dead_code)] WorkerGuard);

impl Drop for Logs {
    fn drop(&mut self) {
        // The guard itself gives a full queue a moment only.
        let (end, dropped) = (Instant::now() + LAST_LINES, dropped_lines());
        let (mut left, mut since) = (waiting(dropped), Instant::now());
        while left > 0 && Instant::now() < end && since.elapsed() < STUCK {
            thread::sleep(Duration::from_millis(1));
            let now = waiting(dropped);
            if now != left {
                (left, since) = (now, Instant::now());
            }
        }
    }
}

/// The queue's entrance, where lines are counted, and its exit.
struct Entrance(NonBlocking);
struct Exit<W>(W);

impl<'a> MakeWriter<'a> for Entrance {
    type Writer = NonBlocking;

    /// Called for each line that is logged.
    fn make_writer(&'a self) -> NonBlocking {
        LOGGED.fetch_add(1, Ordering::Relaxed);
        self.0.clone()
    }
}

impl<W: Write> Write for Exit<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    /// Called for each line that comes out of the queue.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let written = self.0.write_all(line);
        WRITTEN.fetch_add(1, Ordering::Relaxed);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Begins to log as the environment says: [`LEVELS`] (`info` by default, `debug`, `ringway::agent=trace`, ...) and
/// [`FORMAT`] (`text` or `json`).
///
/// # Errors
/// One of the variables has a value that cannot be used; the error says what to write instead.
pub fn start() -> Result<Logs, String> {
    let levels = std::env::var(LEVELS).unwrap_or_default();
    let levels = if levels.is_empty() { "info" } else { &levels };
    if let Some(wrong) = levels.split(',').map(str::trim).find(|level| !is_level(level)) {
        return Err(format!("{LEVELS}: {wrong:?} is no level; write for example {LEVELS}=debug"));
    }
    let filter = EnvFilter::try_new(levels)
        .map_err(|error| format!("{LEVELS}={levels:?}: {error}; write for example {LEVELS}=debug"))?;
    let format = std::env::var(FORMAT).unwrap_or_default();
    let (writer, guard) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUED_LINES).finish(Exit(io::stderr()));
    let _ = DROPPED.set(writer.error_counter());
    let logs = fmt().with_env_filter(filter).with_writer(Entrance(writer));
    match format.as_str() {
        "" | "text" => {
            use std::io::IsTerminal;
            logs.with_ansi(io::stderr().is_terminal()).init();
        }
        "json" => logs.json().flatten_event(true).init(),
        other => return Err(format!("{FORMAT}={other:?}: write \"text\" or \"json\"")),
    }
    Ok(Logs(guard))
}

/// A level, or anything that names a module. A misspelt level would be taken for a module, and all logs be off.
fn is_level(text: &str) -> bool {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_module = text.contains(['=', ':', '[']) || text.starts_with("ringway");
    is_module || LEVELS.iter().any(|level| level.eq_ignore_ascii_case(text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Standard error that takes a line only when it is let.
    struct Gate(std::sync::mpsc::Receiver<()>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn there_is_room_while_the_queue_is_less_than_half_full() {
        let (gate, shut) = std::sync::mpsc::channel();
        let (writer, _guard) =
            NonBlockingBuilder::default().buffered_lines_limit(QUEUED_LINES).finish(Exit(Gate(shut)));
        let entrance = Entrance(writer);
        assert!(has_room());
        for _ in 0..QUEUED_LINES / 2 {
            entrance.make_writer().write_all(b"line").unwrap();
        }
        assert!(!has_room());
        drop(gate);
        while waiting(0) > 0 {
            thread::yield_now();
        }
        assert!(has_room());
    }

    #[test]
    fn misspelt_levels_are_seen() {
        assert!(["info", "DEBUG", "off", "ringway", "ringway::agent=trace", "access=off"].into_iter().all(is_level));
        assert!(!["inof", "nonsense", "", "5"].into_iter().any(is_level));
    }
}
