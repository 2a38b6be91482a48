//! How far a run is: a bar on a terminal, a plain line now and then elsewhere. Always on standard error.
use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two plain lines of one phase.
const LINE_EVERY: Duration = Duration::from_secs(10);

pub struct Progress {
    bar: Option<ProgressBar>,
    phase: &'static str,
    last_line: Option<Instant>,
    quiet: bool,
}

impl Progress {
    pub fn new(quiet: bool) -> Self {
        Self { bar: None, phase: "", last_line: None, quiet }
    }

    /// Reports `done` of `total` of a phase; a new phase begins when its name changes.
    pub fn report(&mut self, phase: &'static str, done: u64, total: u64, message: &str) {
        if self.quiet {
            return;
        }
        let new = phase != self.phase;
        self.phase = phase;
        if io::stderr().is_terminal() {
            if new {
                self.clear();
                let style = ProgressStyle::with_template("{prefix:>10} [{bar:40}] {msg}");
                let bar = ProgressBar::new(total).with_prefix(phase);
                self.bar =
                    Some(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")));
            }
            if let Some(bar) = &self.bar {
                bar.set_position(done.min(total));
                bar.set_message(message.to_owned());
            }
        } else if new || self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            self.last_line = Some(Instant::now());
            let _ = writeln!(io::stderr(), "{phase}: {message}");
        }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.suspend(|| {
                let _ = writeln!(io::stderr(), "{text}");
            }),
            None => {
                let _ = writeln!(io::stderr(), "{text}");
            }
        }
    }

    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
