//! The process's threads: workers with a runtime each, pinned to cores where that is allowed, and the main thread,
//! which waits for signals and for workers that end.
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    thread,
};

use futures_channel::mpsc as commands;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use super::driver::Driver;

/// What the main thread tells a worker.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    /// End all sessions; what is in a frame has until this time.
    Drain { window_end: std::time::Instant },
}

/// What the main thread hears of.
#[derive(Debug)]
pub enum Event {
    /// SIGTERM or SIGINT.
    Terminate,
    /// A worker has ended: in order, or not.
    Ended { worker: usize, result: io::Result<()> },
}

/// The workers of this process, as the main thread sees them.
#[derive(Debug)]
pub struct Threads {
    workers: Vec<commands::UnboundedSender<Command>>,
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
}

impl Threads {
    /// Begins to listen for signals. Must come before the first worker, so that none of them takes a signal.
    ///
    /// # Errors
    /// The signal handlers could not be installed.
    pub fn with_signals() -> io::Result<Self> {
        let threads = Self::without_signals();
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        let terminate = threads.sender.clone();
        thread::Builder::new().name("signals".into()).spawn(move || {
            for _ in signals.forever() {
                if terminate.send(Event::Terminate).is_err() {
                    return;
                }
            }
        })?;
        Ok(threads)
    }

    /// Threads that live as long as the process, whatever signals it gets.
    pub fn without_signals() -> Self {
        let (sender, events) = mpsc::channel();
        Self { workers: Vec::new(), events, sender }
    }

    /// Starts a worker thread: `run` makes its future there, on its own runtime.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn spawn<F, R>(&mut self, name: &str, driver: Driver, core: Option<usize>, run: F) -> io::Result<()>
    where
        F: FnOnce(commands::UnboundedReceiver<Command>) -> R + Send + 'static,
        R: Future<Output = io::Result<()>>,
    {
        let worker = self.workers.len();
        let (commands, receiver) = commands::unbounded();
        let ended = self.sender.clone();
        thread::Builder::new().name(name.into()).spawn(move || {
            if let Some(core) = core {
                pin(core);
            }
            let result = catch_unwind(AssertUnwindSafe(|| driver.block_on(run(receiver))));
            let result = match result {
                Ok(result) => result.and_then(|result| result),
                Err(_) => Err(io::Error::other("the worker panicked")),
            };
            let _ = ended.send(Event::Ended { worker, result });
        })?;
        self.workers.push(commands);
        Ok(())
    }

    /// Does what SIGTERM does, from any thread.
    pub fn terminator(&self) -> impl Fn() + Send + 'static {
        let terminate = self.sender.clone();
        move || {
            let _ = terminate.send(Event::Terminate);
        }
    }

    pub fn len(&self) -> usize {
        self.workers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Tells every worker that still runs.
    pub fn command(&self, command: Command) {
        for worker in &self.workers {
            let _ = worker.unbounded_send(command);
        }
    }

    /// Waits for the next event; `None` if there can be none.
    pub fn next_event(&self) -> Option<Event> {
        self.events.recv().ok()
    }
}

/// The cores of the process's affinity mask, in order.
pub fn allowed_cores() -> Vec<usize> {
    sched_getaffinity(None)
        .map(|set| (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
        .unwrap_or_default()
}

fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    if let Err(error) = sched_setaffinity(None, &set) {
        tracing::debug!(core, "the worker is not pinned: {error}");
    }
}

/// Raises the limit of open files to what the hard limit allows: a session has two.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(soft = ?limit.current, hard = ?limit.maximum, "the limit of open files stays: {error}");
    }
}
