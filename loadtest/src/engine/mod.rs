//! The load itself: threads that drive sessions, and the clock that they share.
//!
//! Each thread has its own epoll, its own sessions and its own counts; nothing is shared on the way of a message.
pub mod failure;
pub mod payload;
pub mod route;
mod session;
pub mod stats;
pub mod transport;
mod worker;

use std::{
    net::IpAddr,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use rustix::thread::CpuSet;
pub use worker::Interval;

use self::{payload::Payloads, route::Route, stats::Stats, worker::Worker};
use crate::clock::{self, MILLISECOND, SECOND};

/// What the sessions do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Nothing.
    Hold,
    /// One message on each session, then nothing.
    Touch,
    /// Open loop: so many messages a second over all sessions, whatever comes back.
    Rate(f64),
    /// Closed loop: so many messages on their way on each session.
    Window(u64),
    /// Open, send so many messages (all at once), close, and again.
    Storm { messages: u64 },
}

/// A run. Times in nanoseconds.
#[derive(Debug)]
pub struct Plan {
    pub route: Route,
    pub payloads: Payloads,
    pub sessions: usize,
    pub threads: usize,
    pub work: Work,
    /// Sessions that may be between connect and open at a time; in a storm `sessions` is that.
    pub concurrency: usize,
    /// Sessions to open each second, at most.
    pub open_rate: Option<f64>,
    pub warmup: u64,
    pub duration: u64,
    /// How long after the end echoes are waited for.
    pub grace: u64,
    /// How long a session may take to open, and to close.
    pub timeout: u64,
    /// Threads are pinned to these cores, in turn.
    pub cores: Vec<usize>,
    /// Source addresses, in turn.
    pub from: Vec<IpAddr>,
    /// Latencies are reported apart for each such interval.
    pub interval: Option<u64>,
}

impl Plan {
    /// First number and count of a thread's sessions.
    fn share(&self, thread: usize) -> (u64, u64) {
        let (each, more) = (self.sessions / self.threads, self.sessions % self.threads);
        ((thread * each + thread.min(more)) as u64, (each + usize::from(thread < more)) as u64)
    }
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Counters {
    opened: AtomicU64,
    begun: AtomicU64,
    failed: AtomicU64,
    messages: AtomicU64,
}

/// What the threads and the one that watches them have in common.
#[derive(Debug)]
struct Shared {
    counters: Vec<Counters>,
    /// Threads that have opened their sessions.
    ready: AtomicUsize,
    /// When the run begins; 0 while that is open.
    start: AtomicU64,
    stop: Arc<AtomicBool>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Snapshot {
    pub opened: u64,
    pub failed: u64,
    pub messages: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
}

/// Is told what happens while it happens, on the thread that called [`run`].
pub trait Observer {
    /// Sessions are being opened; every 100 ms or so.
    fn opening(&mut self, _now: Snapshot) {}
    /// All sessions are open, or have failed.
    fn opened(&mut self, _now: Snapshot) {}
    /// The measured time begins.
    fn begin(&mut self, _now: Snapshot) {}
    /// The run goes on; every 100 ms or so.
    fn running(&mut self, _now: Snapshot) {}
    /// The measured time has ended.
    fn end(&mut self, _now: Snapshot) {}
    /// An interval's latencies, of all threads.
    fn interval(&mut self, _number: u64, _latency: &hdrhistogram::Histogram<u64>) {}
}

impl Shared {
    fn snapshot(&self) -> Snapshot {
        let mut sum = Snapshot { time: clock::now(), ..Snapshot::default() };
        for counters in &self.counters {
            sum.opened += counters.opened.load(Relaxed);
            sum.failed += counters.failed.load(Relaxed);
            sum.messages += counters.messages.load(Relaxed);
        }
        sum
    }
}

/// Whether whoever has `each` connections for a session may have as many open files as that takes.
///
/// # Errors
/// It may not; with the numbers, and what to do.
pub fn enough_files(who: &str, sessions: u64, each: u64, files: u64) -> anyhow::Result<()> {
    /// Listeners, rings, logs, connections that are just being closed.
    const OTHERS: u64 = 64;
    let needed = sessions.saturating_mul(each).saturating_add(OTHERS);
    ensure!(
        needed <= files,
        "{sessions} sessions are {needed} open files for {who} ({each} each, {OTHERS} for all else), and it may have \
         {files}; at most {} sessions, or a higher limit where it is started: ulimit -Hn {needed}; ulimit -Sn {needed}",
        files.saturating_sub(OTHERS) / each.max(1)
    );
    Ok(())
}

/// Runs a plan to its end, or until `stop` is set.
///
/// # Errors
/// It could not be started; or no session could be opened, with the reason.
pub fn run(plan: Plan, stop: Arc<AtomicBool>, observer: &mut dyn Observer) -> anyhow::Result<Stats> {
    ringway::runtime::threads::raise_open_files();
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    enough_files("the load generator", plan.sessions as u64, 1, files)?;
    let plan = Arc::new(plan);
    let shared = Arc::new(Shared {
        counters: (0..plan.threads).map(|_| Counters::default()).collect(),
        ready: AtomicUsize::new(0),
        start: AtomicU64::new(0),
        stop,
    });
    let (sender, intervals) = mpsc::channel();
    let sender = plan.interval.map(|_| sender);
    let mut threads = Vec::new();
    for index in 0..plan.threads {
        let (plan, shared, sender) = (plan.clone(), shared.clone(), sender.clone());
        let thread = thread::Builder::new().name(format!("load-{index}")).spawn(move || {
            if !plan.cores.is_empty() {
                pin(plan.cores[index % plan.cores.len()])?;
            }
            // The default, 50 µs, is more than a message takes.
            let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
            Worker::new(index, plan, shared, sender)?.run().map_err(anyhow::Error::from)
        });
        threads.push(thread.context("cannot start a thread")?);
    }
    drop(sender);
    let gone = |threads: &[thread::JoinHandle<_>]| threads.iter().any(|thread| thread.is_finished());
    let mut parts = Vec::new();
    watch(&plan, &shared, observer, &intervals, &mut parts, || gone(&threads));

    let mut stats = Stats::default();
    for thread in threads {
        let joined = thread.join().map_err(|_| anyhow!("a thread of the load has panicked"))?;
        stats.merge(&joined?);
    }
    collect(&plan, &intervals, &mut parts, observer);
    Ok(stats)
}

fn watch(
    plan: &Plan,
    shared: &Shared,
    observer: &mut dyn Observer,
    intervals: &mpsc::Receiver<Interval>,
    parts: &mut Vec<Part>,
    gone: impl Fn() -> bool,
) {
    let mut tick = 0;
    while shared.ready.load(Relaxed) < plan.threads {
        if gone() {
            break;
        }
        if tick % 20 == 0 {
            observer.opening(shared.snapshot());
        }
        tick += 1;
        thread::sleep(Duration::from_millis(5));
    }
    let now = shared.snapshot();
    observer.opened(now);
    if now.opened == 0 && !matches!(plan.work, Work::Storm { .. }) {
        shared.stop.store(true, Relaxed);
    }
    let start = clock::now() + 5 * MILLISECOND;
    shared.start.store(start, Relaxed);
    let mut wait_until = |time: u64, observer: &mut dyn Observer| {
        loop {
            let now = clock::now();
            if now >= time || shared.stop.load(Relaxed) || gone() {
                return;
            }
            thread::sleep(Duration::from_nanos((time - now).min(100 * MILLISECOND)));
            if clock::now() < time {
                observer.running(shared.snapshot());
            }
            collect(plan, intervals, parts, observer);
        }
    };
    wait_until(start + plan.warmup, observer);
    observer.begin(shared.snapshot());
    wait_until(start + plan.warmup + plan.duration, observer);
    observer.end(shared.snapshot());
}

/// An interval of which so many threads have reported.
type Part = (u64, usize, hdrhistogram::Histogram<u64>);

/// Puts the threads' parts of intervals together.
fn collect(plan: &Plan, intervals: &mpsc::Receiver<Interval>, parts: &mut Vec<Part>, observer: &mut dyn Observer) {
    while let Ok(interval) = intervals.try_recv() {
        match parts.iter_mut().find(|(number, _, _)| *number == interval.number) {
            Some((_, count, latency)) => {
                *count += 1;
                let _ = latency.add(&interval.latency);
            }
            None => parts.push((interval.number, 1, interval.latency)),
        }
        while let Some(index) = parts.iter().position(|(_, count, _)| *count == plan.threads) {
            let (number, _, latency) = parts.swap_remove(index);
            observer.interval(number, &latency);
        }
    }
}

/// Pins the calling thread to a core.
///
/// # Errors
/// There is no such core, or it is not ours.
pub fn pin(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    ensure!(core < CpuSet::MAX_CPU, "core {core}: there is no such core");
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("cannot run on core {core}"))
}

/// Seconds, for people.
pub fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / SECOND as f64
}
