//! Logs on standard error, written by a thread of their own so that no worker waits for a terminal or a pipe.
use std::io;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, fmt};

/// Lines that may wait to be written; beyond that they are dropped and counted, not waited for.
const QUEUED_LINES: usize = 64 * 1024;

/// The environment variable with the log levels, and the one with the format.
pub const LEVELS: &str = "RINGWAY_LOG";
pub const FORMAT: &str = "RINGWAY_LOG_FORMAT";

/// Writes what is still queued when dropped.
#[derive(Debug)]
pub struct Logs(#[allow(dead_code)] WorkerGuard);

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
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUED_LINES).finish(io::stderr());
    let logs = fmt().with_env_filter(filter).with_writer(writer);
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
    use super::*;

    #[test]
    fn misspelt_levels_are_seen() {
        assert!(["info", "DEBUG", "off", "ringway", "ringway::agent=trace", "access=off"].into_iter().all(is_level));
        assert!(!["inof", "nonsense", "", "5"].into_iter().any(is_level));
    }
}
