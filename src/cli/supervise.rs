//! The main thread of a serving command, from its start to its exit: readiness, signals, reload, drain, and what the
//! service manager is told of it.
use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use super::process::FAILED;
use crate::{
    config::ConfigError,
    protocol::drain::Drain,
    runtime::{
        systemd::{self, Notifier},
        threads::{BEAT, Event, Threads},
    },
};

/// How often the service manager is told how many sessions there are, where that changes.
const STATUS_EVERY: Duration = Duration::from_secs(5);
const STATUS_OF_DRAIN_EVERY: Duration = Duration::from_secs(1);
/// Added to what the service manager is told a drain takes at most: for the exit itself.
const EXIT: Duration = Duration::from_secs(5);

/// So much earlier than a drain must be over, the workers are told to write down what is left.
const LAST_LINES: Duration = Duration::from_millis(50);
/// How long the end of the process waits for what the workers write down.
const FINISH: Duration = Duration::from_secs(2);

/// What a serving command runs.
pub trait Service {
    /// What it serves, in a few words.
    fn describe(&self) -> String;

    /// Sessions that it has now.
    fn sessions(&self) -> u64;

    /// Whether it can be of use, once every worker does its work.
    fn is_ready(&self) -> bool {
        true
    }

    /// From now on no session begins. Gives the drain that the workers are told of.
    fn begin_drain(&self) -> Drain;

    /// What a reload does, for a thread of its own.
    fn reload(&self) -> Reload;
}

/// Reads files again, logs that, and gives what is wrong with them. It may wait for a file for ever.
pub type Reload = Box<dyn FnOnce() -> Vec<ConfigError> + Send>;

/// Runs until the process is to end. `ready` is called once, when every worker does its work, and the service says
/// that it is ready.
///
/// The first SIGTERM or SIGINT begins to drain, or goes on with a drain that was asked for otherwise; the next one
/// ends the process at once. SIGHUP reloads; one that comes during a reload is for the next one. A thread that ends by
/// itself is a failure.
pub fn supervise(threads: &Threads, service: &dyn Service, ready: impl FnOnce()) -> ExitCode {
    let mut supervisor = Supervisor::new(threads, service);
    supervisor.ping();
    let mut ready = Some(ready);
    loop {
        if let Some(code) = supervisor.next() {
            return code;
        }
        if supervisor.silent == 0
            && service.is_ready()
            && let Some(ready) = ready.take()
        {
            ready();
            supervisor.is_ready();
        }
    }
}

struct Supervisor<'a> {
    threads: &'a Threads,
    service: &'a dyn Service,
    notifier: Notifier,
    ready: bool,
    /// Workers that owe an answer to the last ping.
    silent: usize,
    /// How often the workers are asked, and when next.
    ping_every: Option<Duration>,
    next_ping: Option<Instant>,
    next_beat: Instant,
    /// What the service manager was told last, when it is told next, and what the last reload left to be mended.
    status: String,
    next_status: Option<Instant>,
    broken: Option<String>,
    reloading: Option<Reloading>,
    drain: Option<Arc<Drain>>,
    /// A signal has asked for the end.
    signalled: bool,
    /// Whether each worker is done.
    done: Vec<bool>,
}

/// A reload that is under way.
struct Reloading {
    since: Instant,
    /// Files may have changed since it has read them, so another one follows.
    again: bool,
}

impl<'a> Supervisor<'a> {
    fn new(threads: &'a Threads, service: &'a dyn Service) -> Self {
        // Asked four times in the time that systemd waits: one late answer is no reason to kill the process.
        let ping_every = systemd::watchdog().map(|within| within / 4);
        Self {
            threads,
            service,
            notifier: Notifier::from_env(),
            ready: false,
            silent: 0,
            ping_every,
            next_ping: None,
            next_beat: Instant::now() + BEAT,
            status: String::new(),
            next_status: None,
            broken: None,
            reloading: None,
            drain: None,
            signalled: false,
            done: vec![false; threads.len()],
        }
    }

    /// Waits for something to do, and does it. Gives the exit code when the process is to end.
    fn next(&mut self) -> Option<ExitCode> {
        let end = self.drain.as_ref().map(|drain| last_lines(drain));
        let deadline = [end, self.next_ping, self.next_status, Some(self.next_beat)].into_iter().flatten().min();
        let code = match self.threads.next_event(deadline) {
            None => None,
            Some(Event::Terminate) if self.signalled => {
                tracing::warn!("a second signal: ending at once, with {} sessions left", self.service.sessions());
                Some(ExitCode::from(FAILED))
            }
            Some(Event::Terminate) => {
                self.signalled = true;
                if self.drain.is_some() {
                    tracing::info!("draining already, and going on with it; a second signal ends the process at once");
                }
                self.begin_drain();
                None
            }
            Some(Event::Drain) => {
                self.begin_drain();
                None
            }
            Some(Event::Reload) => {
                self.reload();
                None
            }
            // What there is to do then is done whatever the event was.
            Some(Event::Ready) => None,
            Some(Event::Reloaded(wrong)) => {
                self.reloaded(wrong);
                None
            }
            Some(Event::Alive) => {
                self.alive();
                None
            }
            Some(Event::Drained { worker }) => self.done(worker),
            Some(Event::Ended { worker, result: Ok(()), .. }) if self.drain.is_some() => self.done(worker),
            Some(Event::Ended { name, result, .. }) => {
                let error = result.err().map_or("it ended by itself".to_owned(), |error| error.to_string());
                tracing::error!("thread {name} failed: {error}");
                self.finish();
                Some(ExitCode::from(FAILED))
            }
            // Nobody was told to finish.
            Some(Event::Finished { .. }) => None,
        };
        code.or_else(|| self.look_at_the_clock(Instant::now()))
    }

    fn look_at_the_clock(&mut self, now: Instant) -> Option<ExitCode> {
        if self.drain.as_ref().is_some_and(|drain| now >= last_lines(drain)) {
            tracing::warn!("the time to drain is over: ending with {} sessions left", self.service.sessions());
            self.finish();
            return Some(ExitCode::SUCCESS);
        }
        if self.next_ping.is_some_and(|at| now >= at) {
            self.next_ping = None;
            self.ping();
        }
        if self.next_status.is_some_and(|at| now >= at) {
            self.tell_status(now);
        }
        if now >= self.next_beat {
            self.next_beat = now + BEAT;
            self.threads.beat();
        }
        None
    }

    fn ping(&mut self) {
        self.silent = self.threads.len();
        self.threads.ping();
    }

    /// A worker has answered. When all have, that is what the watchdog wants to know.
    fn alive(&mut self) {
        self.silent = self.silent.saturating_sub(1);
        if self.silent > 0 {
            return;
        }
        if let Some(every) = self.ping_every {
            self.notifier.alive();
            self.next_ping = Some(Instant::now() + every);
        }
    }

    fn is_ready(&mut self) {
        self.ready = true;
        if self.drain.is_none() {
            self.status = self.status_now();
            self.notifier.ready(&self.status);
        }
        if self.notifier.is_there() {
            self.next_status = Some(Instant::now() + STATUS_EVERY);
        }
    }

    fn reload(&mut self) {
        if self.drain.is_some() {
            tracing::info!("draining: nothing is reloaded");
            return;
        }
        if let Some(reloading) = &mut self.reloading {
            let since = reloading.since.elapsed().as_secs_f64();
            tracing::warn!("the reload before has not ended for {since:.1} s; another one follows it");
            reloading.again = true;
            return;
        }
        if self.ready {
            self.notifier.reloading();
        }
        self.reloading = Some(Reloading { since: Instant::now(), again: false });
        let reload = self.service.reload();
        if let Err(error) = self.threads.reload(move || first_of(&reload())) {
            tracing::error!("nothing is reloaded: no thread could be started: {error}");
            self.reloaded(Some(error.to_string()));
        }
    }

    /// A reload is over.
    fn reloaded(&mut self, wrong: Option<String>) {
        let again = self.reloading.take().is_some_and(|reloading| reloading.again);
        self.broken = wrong.map(|wrong| format!("reload failed: {wrong}"));
        // The service manager has been told that the process stops: nothing else is of interest to it.
        if self.ready && self.drain.is_none() {
            self.status = self.status_now();
            self.notifier.ready(&self.status);
        }
        if again {
            self.reload();
        }
    }

    fn begin_drain(&mut self) {
        if self.drain.is_some() {
            return;
        }
        let drain = Arc::new(self.service.begin_drain());
        self.threads.drain(&drain);
        self.drain = Some(drain.clone());
        let now = Instant::now();
        let (rest, window) = (drain.end() - now, drain.window_end().saturating_duration_since(now));
        tracing::info!(
            sessions = self.service.sessions(),
            "draining: sessions are closed within {:.1} s, and the process ends within {:.1} s",
            window.as_secs_f64(),
            rest.as_secs_f64(),
        );
        self.status = self.status_now();
        self.notifier.stopping(rest + EXIT, &self.status);
        self.next_status = self.notifier.is_there().then(|| now + STATUS_OF_DRAIN_EVERY);
    }

    /// A worker has nothing left to do.
    fn done(&mut self, worker: usize) -> Option<ExitCode> {
        if let Some(done) = self.done.get_mut(worker) {
            *done = true;
        }
        self.done.iter().all(|done| *done).then(|| {
            tracing::info!("drained");
            ExitCode::SUCCESS
        })
    }

    /// The process ends now, with sessions left: waits until the workers have written down what they know of them. A
    /// signal ends the wait.
    fn finish(&self) {
        let end = Instant::now() + FINISH;
        let mut awaited = self.threads.finish();
        while awaited.contains(&true) && Instant::now() < end {
            match self.threads.next_event(Some(end)) {
                Some(Event::Finished { worker } | Event::Ended { worker, .. }) => {
                    if let Some(awaited) = awaited.get_mut(worker) {
                        *awaited = false;
                    }
                }
                Some(Event::Terminate) => return,
                _ => {}
            }
        }
    }

    fn tell_status(&mut self, now: Instant) {
        let status = self.status_now();
        // That it reloads is told until it is over.
        let reloads = self.reloading.is_some() && self.drain.is_none();
        if !reloads && status != self.status {
            self.notifier.status(&status);
            self.status = status;
        }
        self.next_status = Some(now + if self.drain.is_some() { STATUS_OF_DRAIN_EVERY } else { STATUS_EVERY });
    }

    fn status_now(&self) -> String {
        let sessions = match self.service.sessions() {
            1 => "1 session".to_owned(),
            many => format!("{many} sessions"),
        };
        match (&self.drain, &self.broken) {
            (Some(drain), _) => {
                let rest = drain.end().saturating_duration_since(Instant::now()).as_secs_f64();
                format!("Draining: {sessions} left, at most {rest:.0} s")
            }
            (None, None) => format!("{sessions}; {}", self.service.describe()),
            (None, Some(broken)) => format!("{sessions}; {}; {broken}", self.service.describe()),
        }
    }
}

/// What is wrong, in a line.
fn first_of(errors: &[ConfigError]) -> Option<String> {
    errors.first().map(|error| match errors.len() {
        1 => error.to_string(),
        more => format!("{error} (and {} more)", more - 1),
    })
}

fn last_lines(drain: &Drain) -> Instant {
    drain.end().checked_sub(LAST_LINES).unwrap_or_else(Instant::now)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::{
        io,
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::*;
    use crate::runtime::{
        driver::Driver,
        threads::{Line, Order},
    };

    /// A service without sessions whose drain takes so long.
    struct Idle(Duration);

    impl Service for Idle {
        fn describe(&self) -> String {
            "idle".into()
        }

        fn sessions(&self) -> u64 {
            0
        }

        fn begin_drain(&self) -> Drain {
            Drain::new(Instant::now(), self.0, 0, 0, 0)
        }

        fn reload(&self) -> Reload {
            Box::new(Vec::new)
        }
    }

    fn idle() -> Idle {
        Idle(Duration::from_secs(100))
    }

    fn spawn<F, R>(threads: &mut Threads, run: F)
    where
        F: FnOnce(Line) -> R + Send + 'static,
        R: Future<Output = io::Result<()>>,
    {
        threads.spawn("worker", Driver::Epoll(None), None, run).unwrap();
    }

    /// Answers pings for ever, and is done as soon as it is told to drain.
    async fn works(mut line: Line) -> io::Result<()> {
        while let Some(order) = line.order().await {
            match order {
                Order::Drain(_) => line.reporter().drained(),
                Order::Finish => line.reporter().finished(),
            }
        }
        Ok(())
    }

    /// Answers pings for ever, has sessions that do not end, and takes its time to write that down.
    fn spawn_one_that_stays(threads: &mut Threads) -> Arc<AtomicBool> {
        let written = Arc::new(AtomicBool::new(false));
        let done = written.clone();
        spawn(threads, |mut line| async move {
            while let Some(order) = line.order().await {
                if matches!(order, Order::Finish) {
                    thread::sleep(Duration::from_millis(300));
                    done.store(true, Ordering::SeqCst);
                    line.reporter().finished();
                }
            }
            Ok(())
        });
        written
    }

    fn code(code: ExitCode) -> String {
        format!("{code:?}")
    }

    #[test]
    fn a_worker_that_dies_is_a_failure() {
        for run in [
            (|threads: &mut Threads| spawn(threads, |_| async { panic!("a bug") })) as fn(&mut Threads),
            |threads| spawn(threads, |_| async { Err(io::Error::other("no memory")) }),
            |threads| spawn(threads, |_| async { Ok(()) }),
            |threads| spawn(&mut threads.apart(), |_| async { panic!("a bug") }),
        ] {
            let mut threads = Threads::without_signals();
            spawn(&mut threads, works);
            run(&mut threads);
            let ended = supervise(&threads, &idle(), || ());
            assert_eq!(code(ended), code(ExitCode::from(FAILED)));
        }
    }

    #[test]
    fn workers_hear_each_beat() {
        let mut threads = Threads::without_signals();
        spawn(&mut threads, |mut line| async move {
            let beat = line.beat();
            monoio::spawn(works(line));
            for _ in 0..2 {
                beat.wait().await;
            }
            Ok(())
        });
        let began = Instant::now();
        supervise(&threads, &idle(), || ());
        assert!(began.elapsed() >= 2 * BEAT);
    }

    #[test]
    fn it_ends_when_all_workers_have_drained() {
        let mut threads = Threads::without_signals();
        spawn(&mut threads, works);
        spawn(&mut threads, works);
        let handle = threads.drain_handle();
        let ready = || {
            handle.drain();
            handle.drain();
        };
        assert_eq!(code(supervise(&threads, &idle(), ready)), code(ExitCode::SUCCESS));
    }

    #[test]
    fn it_ends_at_the_latest_when_the_time_is_over() {
        let mut threads = Threads::without_signals();
        spawn(&mut threads, works);
        let written = spawn_one_that_stays(&mut threads);
        threads.drain_handle().drain();
        let service = Idle(Duration::from_millis(200));
        let began = Instant::now();
        assert_eq!(code(supervise(&threads, &service, || ())), code(ExitCode::SUCCESS));
        assert!(began.elapsed() >= Duration::from_millis(200) - LAST_LINES);
        assert!(written.load(Ordering::SeqCst), "it ended before a worker had written down what it had");
    }

    #[test]
    fn a_worker_that_dies_takes_nothing_of_the_others_with_it() {
        let mut threads = Threads::without_signals();
        let written = spawn_one_that_stays(&mut threads);
        spawn(&mut threads, |_| async { panic!("a bug") });
        assert_eq!(code(supervise(&threads, &idle(), || ())), code(ExitCode::from(FAILED)));
        assert!(written.load(Ordering::SeqCst));
    }
}
