//! The process's threads: workers with a runtime each, pinned to cores where that is allowed, and the main thread,
//! which waits for signals and for workers that end.
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use futures_channel::mpsc as commands;
use futures_util::StreamExt;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::{Handle, Signals},
};

use super::driver::Driver;
use crate::{protocol::drain::Drain, relay::wake::Signal};

/// The main thread keeps the time for what all workers do now and then: one that has a timer of its own running pays for
/// it each time it goes to sleep.
pub const BEAT: Duration = Duration::from_secs(1);

/// What the main thread tells a worker.
#[derive(Clone, Debug)]
enum Command {
    Order(Order),
    /// Say that you are there.
    Ping,
    /// A [`BEAT`] is over.
    Beat,
}

/// What a worker is to do.
#[derive(Clone, Debug)]
pub enum Order {
    /// End all sessions.
    Drain(Arc<Drain>),
    /// The process ends: write down what must not be lost, and say so with [`Reporter::finished`].
    Finish,
}

/// What the main thread hears of.
#[derive(Debug)]
pub enum Event {
    /// SIGTERM or SIGINT.
    Terminate,
    /// SIGHUP.
    Reload,
    /// What [`Threads::reload`] has run is over; what is wrong since then, in a line.
    Reloaded(Option<String>),
    /// Somebody wants the process to drain, other than by a signal.
    Drain,
    /// The process may be ready now.
    Ready,
    /// A worker answers the last [`Threads::ping`].
    Alive,
    /// A worker has no session left, and gets none any more.
    Drained { worker: usize },
    /// A worker has written down what it had, as [`Threads::finish`] told it.
    Finished { worker: usize },
    /// A thread has ended: in order, or not.
    Ended { worker: usize, name: String, result: io::Result<()> },
}

/// The workers of this process, as the main thread sees them.
#[derive(Debug)]
pub struct Threads {
    workers: Vec<commands::UnboundedSender<Command>>,
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
    signals: Option<Handle>,
}

/// What a worker hears from the main thread.
#[derive(Debug)]
pub struct Line {
    commands: commands::UnboundedReceiver<Command>,
    reporter: Reporter,
    beats: Vec<Rc<Signal>>,
}

/// What a worker tells the main thread.
#[derive(Clone, Debug)]
pub struct Reporter {
    worker: usize,
    events: mpsc::Sender<Event>,
}

/// Begins to drain the process, from any thread.
#[derive(Clone, Debug)]
pub struct DrainHandle(mpsc::Sender<Event>);

impl DrainHandle {
    /// Asks for it. That is done by the main thread, at once; asked for again, nothing more happens.
    pub fn drain(&self) {
        let _ = self.0.send(Event::Drain);
    }
}

/// Tells the main thread, from any thread, that the process may be ready.
#[derive(Clone, Debug)]
pub struct ReadyHandle(mpsc::Sender<Event>);

impl ReadyHandle {
    pub fn ready(&self) {
        let _ = self.0.send(Event::Ready);
    }
}

impl Line {
    /// A signal that is set at each [`BEAT`], for one task, as long as [`Line::order`] is awaited.
    pub fn beat(&mut self) -> Rc<Signal> {
        let beat = Rc::<Signal>::default();
        self.beats.push(beat.clone());
        beat
    }

    /// Waits for something to do, and answers pings and passes on beats meanwhile, so it must be awaited again behind
    /// that. `None`: there is no main thread any more.
    pub async fn order(&mut self) -> Option<Order> {
        loop {
            match self.commands.next().await? {
                Command::Order(order) => return Some(order),
                Command::Ping => self.reporter.send(Event::Alive),
                Command::Beat => self.beats.iter().for_each(|beat| beat.set()),
            }
        }
    }

    pub fn reporter(&self) -> Reporter {
        self.reporter.clone()
    }
}

impl Reporter {
    /// This worker has no session left, and gets none any more.
    pub fn drained(&self) {
        self.send(Event::Drained { worker: self.worker });
    }

    /// This worker has written down what it had.
    pub fn finished(&self) {
        self.send(Event::Finished { worker: self.worker });
    }

    fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

impl Threads {
    /// Begins to listen for SIGTERM and SIGINT. Must come before the first worker, so that none of them takes a signal.
    ///
    /// # Errors
    /// The signal handlers could not be installed.
    pub fn with_signals() -> io::Result<Self> {
        Self::listening_for(&[SIGTERM, SIGINT])
    }

    /// Begins to listen for SIGHUP only, which otherwise ends the process. The others do end it until
    /// [`Threads::listen_for_termination`], so that a start that waits for a file can be given up.
    ///
    /// # Errors
    /// As for [`Threads::with_signals`].
    pub fn with_reload() -> io::Result<Self> {
        Self::listening_for(&[SIGHUP])
    }

    /// From now on SIGTERM and SIGINT are events. Must come before the first worker.
    ///
    /// # Errors
    /// As for [`Threads::with_signals`].
    pub fn listen_for_termination(&self) -> io::Result<()> {
        let Some(signals) = &self.signals else { return Ok(()) };
        [SIGTERM, SIGINT].into_iter().try_for_each(|signal| signals.add_signal(signal))
    }

    /// Threads that hear of no signal.
    pub fn without_signals() -> Self {
        let (sender, events) = mpsc::channel();
        Self { workers: Vec::new(), events, sender, signals: None }
    }

    /// Threads that are told nothing and live as long as the process. Their failures are among the events of `self`.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self { sender: self.sender.clone(), ..Self::without_signals() }
    }

    fn listening_for(signals: &[libc::c_int]) -> io::Result<Self> {
        let mut threads = Self::without_signals();
        let mut signals = Signals::new(signals)?;
        threads.signals = Some(signals.handle());
        let events = threads.sender.clone();
        thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                let event = if signal == SIGHUP { Event::Reload } else { Event::Terminate };
                if events.send(event).is_err() {
                    return;
                }
            }
        })?;
        Ok(threads)
    }

    /// Runs a reload on a thread of its own, since it waits for files, and a file may keep it waiting for ever. What it
    /// gives comes as [`Event::Reloaded`].
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn reload(&self, run: impl FnOnce() -> Option<String> + Send + 'static) -> io::Result<()> {
        let events = self.sender.clone();
        thread::Builder::new().name("reload".into()).spawn(move || {
            let wrong = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
                tracing::error!("reload failed: it panicked; what it had not come to stays in use as before");
                Some("it panicked".into())
            });
            let _ = events.send(Event::Reloaded(wrong));
        })?;
        Ok(())
    }

    /// For whoever may begin to drain the process.
    pub fn drain_handle(&self) -> DrainHandle {
        DrainHandle(self.sender.clone())
    }

    /// For whoever knows when the process is ready.
    pub fn ready_handle(&self) -> ReadyHandle {
        ReadyHandle(self.sender.clone())
    }

    /// Starts a worker thread: `run` makes its future there, on its own runtime.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn spawn<F, R>(&mut self, name: &str, driver: Driver, core: Option<usize>, run: F) -> io::Result<()>
    where
        F: FnOnce(Line) -> R + Send + 'static,
        R: Future<Output = io::Result<()>>,
    {
        let worker = self.workers.len();
        let (commands, receiver) = commands::unbounded();
        let reporter = Reporter { worker, events: self.sender.clone() };
        let ended = reporter.clone();
        let of = name.to_owned();
        thread::Builder::new().name(name.into()).spawn(move || {
            if let Some(core) = core {
                pin(core);
            }
            let line = Line { commands: receiver, reporter, beats: Vec::new() };
            let result = catch_unwind(AssertUnwindSafe(|| driver.block_on(run(line))));
            let result = match result {
                Ok(result) => result.and_then(|result| result),
                Err(_) => Err(io::Error::other("it panicked")),
            };
            ended.send(Event::Ended { worker, name: of, result });
        })?;
        self.workers.push(commands);
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.workers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Tells every worker that a [`BEAT`] is over.
    pub fn beat(&self) {
        self.tell(&Command::Beat);
    }

    /// Tells every worker to end its sessions.
    pub fn drain(&self, drain: &Arc<Drain>) {
        self.tell(&Command::Order(Order::Drain(drain.clone())));
    }

    /// Tells every worker that the process ends. Whether each of them was there to be told.
    pub fn finish(&self) -> Vec<bool> {
        self.tell(&Command::Order(Order::Finish))
    }

    /// Asks every worker for an [`Event::Alive`]. Before all have answered, this must not be asked again.
    pub fn ping(&self) {
        self.tell(&Command::Ping);
    }

    fn tell(&self, command: &Command) -> Vec<bool> {
        self.workers.iter().map(|worker| worker.unbounded_send(command.clone()).is_ok()).collect()
    }

    /// Waits for the next event; `None` if there is none until `deadline`.
    pub fn next_event(&self, deadline: Option<Instant>) -> Option<Event> {
        match deadline {
            None => self.events.recv().ok(),
            Some(deadline) => {
                let wait = deadline.saturating_duration_since(Instant::now());
                // Not to the millisecond, but not a moment too early either.
                self.events.recv_timeout(wait.max(Duration::from_micros(1))).ok()
            }
        }
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
