//! One thread of the load: its sessions, its epoll, its counts.
use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc::Sender},
};

use rustix::{
    event::epoll::{self, EventData, EventFlags},
    fd::OwnedFd,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
};

use super::{
    Plan, Shared, Work,
    failure::{Failure, Kind},
    session::{Session, State, Turn},
    stats::{Stages, Stats, histogram},
};
use crate::clock::{self, MILLISECOND, SECOND};

/// Receive buffer of a thread.
const BUFFER: usize = 256 * 1024;
/// Send buffer of a thread: a frame of 1 MiB goes out in one call.
const SCRATCH: usize = (1 << 20) + 16;
const EVENTS: usize = 1024;
/// How often deadlines are looked at.
const SWEEP: u64 = 100 * MILLISECOND;
/// Stands for the timer among the sessions' numbers.
const TIMER: u64 = u64::MAX;
/// How long the sessions may take to close at the end.
const END_PATIENCE: u64 = 15 * SECOND;

/// When messages are due: message `j` of this thread at `start + (j * threads + thread) * interval`, and message `n`
/// of its session `s` is message `n * sessions + s` of the thread.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    start: u64,
    interval: f64,
    threads: u64,
    thread: u64,
    sessions: u64,
    next: u64,
}

impl Schedule {
    fn time(&self, j: u64) -> u64 {
        self.start + ((j * self.threads + self.thread) as f64 * self.interval) as u64
    }
}

/// What a session needs of its thread.
pub struct Context {
    pub plan: Arc<Plan>,
    pub scratch: Vec<u8>,
    stats: Stats,
    interval: Option<hdrhistogram::Histogram<u64>>,
    schedule: Option<Schedule>,
    first_session: u64,
    window: Window,
    /// Messages that are due and have not come back.
    outstanding: u64,
    /// Sessions between TCP connect and open.
    setting_up: usize,
    /// Sessions that are not absent.
    live: usize,
    /// Sessions that became open.
    opened: u64,
    sending: bool,
}

/// When messages count.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    from: u64,
    to: u64,
}

impl Window {
    fn contains(&self, time: u64) -> bool {
        (self.from..self.to).contains(&time)
    }
}

impl Context {
    pub(super) fn opened(&mut self, session: &mut Session) -> Result<(), Failure> {
        self.setting_up -= 1;
        self.opened += 1;
        if let Work::Storm { messages, .. } = self.plan.work {
            session.due = messages;
            self.outstanding += messages;
            if self.window.contains(session.times.start) {
                self.stats.stages.record(&session.times);
                self.stats.opened += 1;
            }
            if messages == 0 {
                return session.close(self.plan.timeout, self);
            }
        } else {
            self.stats.stages.record(&session.times);
            self.stats.opened += 1;
        }
        Ok(())
    }

    /// A message has come back as it was; `session.in_next` is the one behind it.
    pub(super) fn answered(&mut self, session: &mut Session, bytes: usize, now: u64) -> Result<(), Failure> {
        let number = session.in_next - 1;
        self.outstanding -= 1;
        self.stats.verified_messages += 1;
        self.stats.verified_bytes += bytes as u64;
        match self.plan.work {
            Work::Rate(_) => {
                let intended = self.intended(session.number, number);
                if self.window.contains(intended) {
                    self.record(now.saturating_sub(intended));
                }
            }
            Work::Window(_) => {
                if self.window.contains(now) {
                    self.record(now.saturating_sub(session.sent_at(number)));
                }
                if self.sending {
                    session.due += 1;
                    self.outstanding += 1;
                }
            }
            Work::Storm { messages, .. } if session.in_next == messages => {
                return session.close(self.plan.timeout, self);
            }
            Work::Hold | Work::Touch | Work::Storm { .. } => {}
        }
        Ok(())
    }

    pub(super) fn closed(&mut self) {
        self.live -= 1;
        self.stats.closed += 1;
    }

    fn record(&mut self, nanoseconds: u64) {
        self.stats.messages += 1;
        self.stats.latency.saturating_record(nanoseconds);
        if let Some(interval) = &mut self.interval {
            interval.saturating_record(nanoseconds);
        }
    }

    fn intended(&self, session: u64, number: u64) -> u64 {
        self.schedule.map_or(0, |schedule| schedule.time(number * schedule.sessions + session - self.first_session))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    /// All sessions are there, or have failed; other threads may not be so far.
    Waiting,
    Running,
    /// Nothing more is sent; what is on its way may come back.
    Draining,
    Closing,
}

pub struct Worker {
    thread: usize,
    shared: Arc<Shared>,
    epoll: OwnedFd,
    timer: OwnedFd,
    timer_at: u64,
    sessions: Vec<Session>,
    /// How often each slot was used: an event of an earlier connection is none of a later one.
    epochs: Vec<u32>,
    free: Vec<usize>,
    unfinished: Vec<usize>,
    touched: Vec<usize>,
    context: Context,
    phase: Phase,
    /// Opened or failed to, so far, and since when.
    begun: u64,
    began: u64,
    end: u64,
    drain_by: u64,
    next_sweep: u64,
    intervals: Option<(Sender<Interval>, u64, u64)>,
    cpu: Cpu,
}

/// Latencies of one interval of one thread.
#[derive(Debug)]
pub struct Interval {
    pub number: u64,
    pub latency: hdrhistogram::Histogram<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cpu {
    started: u64,
    cpu: u64,
    waited: u64,
}

impl Worker {
    /// # Errors
    /// The kernel does not give an epoll or a timer.
    pub fn new(
        thread: usize,
        plan: Arc<Plan>,
        shared: Arc<Shared>,
        intervals: Option<Sender<Interval>>,
    ) -> io::Result<Self> {
        let (first, count) = plan.share(thread);
        let window = match plan.work {
            Work::Window(window) => window as usize,
            Work::Touch => 1,
            Work::Storm { .. } | Work::Hold | Work::Rate(_) => 0,
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN | EventFlags::ET)?;
        let now = clock::now();
        Ok(Self {
            thread,
            shared,
            epoll,
            timer,
            timer_at: 0,
            sessions: (first..first + count).map(|number| Session::new(number, window)).collect(),
            epochs: vec![0; count as usize],
            free: (0..count as usize).rev().collect(),
            unfinished: Vec::new(),
            touched: Vec::new(),
            phase: if matches!(plan.work, Work::Storm { .. }) { Phase::Waiting } else { Phase::Opening },
            begun: 0,
            began: now,
            end: u64::MAX,
            drain_by: u64::MAX,
            next_sweep: now + SWEEP,
            intervals: intervals.map(|sender| (sender, u64::MAX, 0)),
            cpu: Cpu::default(),
            context: Context {
                interval: plan.interval.map(|_| histogram()),
                plan,
                scratch: vec![0; SCRATCH],
                stats: Stats::default(),
                schedule: None,
                first_session: first,
                window: Window::default(),
                outstanding: 0,
                setting_up: 0,
                live: 0,
                opened: 0,
                sending: false,
            },
        })
    }

    /// Runs the plan to its end.
    ///
    /// # Errors
    /// The kernel refuses what no session can do without.
    pub fn run(mut self) -> io::Result<Stats> {
        let mut events = Vec::with_capacity(EVENTS);
        let mut buffer = vec![0; BUFFER];
        if self.phase == Phase::Waiting {
            self.shared.ready.fetch_add(1, Relaxed);
        }
        loop {
            let mut now = clock::now();
            if self.step(now) {
                return Ok(self.context.stats);
            }
            self.publish();
            self.sleep(now, &mut events)?;
            for event in events.drain(..) {
                let data = event.data.u64();
                if data == TIMER {
                    continue;
                }
                let (slot, epoch) = (data as u32 as usize, (data >> 32) as u32);
                if self.epochs[slot] == epoch && self.sessions[slot].state != State::Absent {
                    let turn = self.sessions[slot].event(event.flags, &mut buffer, &mut self.context);
                    self.after(slot, turn);
                }
            }
            for slot in std::mem::take(&mut self.unfinished) {
                if self.sessions[slot].state != State::Absent {
                    let turn = self.sessions[slot].receive(true, &mut buffer, &mut self.context);
                    self.after(slot, turn);
                }
            }
            now = clock::now();
            if now >= self.next_sweep {
                self.next_sweep = now + SWEEP;
                self.sweep(now);
            }
        }
    }

    fn after(&mut self, slot: usize, result: Result<Turn, Failure>) {
        match result {
            Ok(Turn::Done) => {}
            Ok(Turn::Unfinished) => self.unfinished.push(slot),
            Err(failure) => self.fail(slot, &failure),
        }
        if self.sessions[slot].state == State::Absent {
            self.epochs[slot] = self.epochs[slot].wrapping_add(1);
            if matches!(self.context.plan.work, Work::Storm { .. }) {
                self.free.push(slot);
            }
        }
    }

    fn fail(&mut self, slot: usize, failure: &Failure) {
        let session = &mut self.sessions[slot];
        self.context.stats.failures.add(session.number, failure);
        self.context.outstanding -= session.unanswered();
        if session.state.is_setup() {
            self.context.setting_up -= 1;
        }
        self.context.live -= 1;
        session.forget();
    }

    fn publish(&self) {
        let counters = &self.shared.counters[self.thread];
        counters.opened.store(self.context.opened, Relaxed);
        counters.begun.store(self.begun, Relaxed);
        counters.failed.store(self.context.stats.failures.count(), Relaxed);
        counters.messages.store(self.context.stats.verified_messages, Relaxed);
    }

    /// Does what is due by the clock. True when there is nothing left to do.
    fn step(&mut self, now: u64) -> bool {
        match self.phase {
            Phase::Opening => {
                self.open_more(now);
                let all = self.begun == self.sessions.len() as u64 && self.context.setting_up == 0;
                if all || self.shared.stop.load(Relaxed) {
                    self.shared.ready.fetch_add(1, Relaxed);
                    self.phase = Phase::Waiting;
                }
            }
            Phase::Waiting => {
                let start = self.shared.start.load(Relaxed);
                if start != 0 {
                    self.begin(start);
                }
            }
            Phase::Running => {
                if self.shared.stop.load(Relaxed) {
                    self.end = now;
                    self.context.window.to = self.context.window.to.min(now);
                }
                self.drive(now.min(self.end));
                self.report_interval(now);
                if now >= self.end {
                    self.finish(now);
                }
            }
            Phase::Draining => {
                let done = self.context.outstanding == 0
                    && (!matches!(self.context.plan.work, Work::Storm { .. }) || self.context.live == 0);
                if done || now >= self.drain_by {
                    self.close_all(now);
                }
            }
            Phase::Closing => return self.context.live == 0 || now >= self.drain_by,
        }
        false
    }

    fn begin(&mut self, start: u64) {
        let plan = self.context.plan.clone();
        self.phase = Phase::Running;
        self.context.window = Window { from: start + plan.warmup, to: start + plan.warmup + plan.duration };
        self.end = self.context.window.to;
        self.context.sending = true;
        self.began = start;
        self.begun = 0;
        self.cpu = Cpu { started: start.max(clock::now()), cpu: clock::thread_cpu(), waited: waited() };
        if let Some((_, next, _)) = &mut self.intervals {
            *next = self.context.window.from + plan.interval.unwrap_or(u64::MAX / 2);
        }
        match plan.work {
            Work::Rate(rate) => {
                self.context.schedule = Some(Schedule {
                    start,
                    interval: SECOND as f64 / rate,
                    threads: plan.threads as u64,
                    thread: self.thread as u64,
                    sessions: (self.sessions.len() as u64).max(1),
                    next: 0,
                });
            }
            Work::Window(_) | Work::Touch => {
                let window = if let Work::Window(window) = plan.work { window } else { 1 };
                for slot in 0..self.sessions.len() {
                    if self.sessions[slot].state == State::Open {
                        self.sessions[slot].due = window;
                        self.context.outstanding += window;
                        self.pump(slot, clock::now());
                    }
                }
            }
            Work::Hold | Work::Storm { .. } => {}
        }
    }

    fn pump(&mut self, slot: usize, now: u64) {
        if let Err(failure) = self.sessions[slot].pump(now, &mut self.context) {
            self.after(slot, Err(failure));
        }
    }

    /// Sends, or opens, what is due at `now`.
    fn drive(&mut self, now: u64) {
        if matches!(self.context.plan.work, Work::Storm { .. }) {
            if now < self.end {
                self.open_more(now);
            }
            return;
        }
        let Some(mut schedule) = self.context.schedule else { return };
        if self.sessions.is_empty() {
            return;
        }
        loop {
            let time = schedule.time(schedule.next);
            if time > now || time >= self.end {
                break;
            }
            let slot = (schedule.next % schedule.sessions) as usize;
            schedule.next += 1;
            let session = &mut self.sessions[slot];
            if session.state != State::Open {
                self.context.stats.unsent += u64::from(!self.shared.stop.load(Relaxed));
                continue;
            }
            session.due += 1;
            self.context.outstanding += 1;
            if !session.blocked {
                if self.context.window.contains(time) {
                    self.context.stats.lag.saturating_record(now - time);
                }
                self.touched.push(slot);
            }
        }
        self.context.schedule = Some(schedule);
        for slot in std::mem::take(&mut self.touched) {
            if self.sessions[slot].state == State::Open {
                self.pump(slot, now);
            }
        }
    }

    fn report_interval(&mut self, now: u64) {
        let Some((sender, next, number)) = &mut self.intervals else { return };
        if now < *next && now < self.end {
            return;
        }
        if let Some(interval) = &mut self.context.interval {
            let latency = std::mem::replace(interval, histogram());
            let _ = sender.send(Interval { number: *number, latency });
        }
        *number += 1;
        *next += self.context.plan.interval.unwrap_or(u64::MAX / 2);
    }

    fn finish(&mut self, now: u64) {
        self.phase = Phase::Draining;
        self.context.sending = false;
        self.drain_by = now + self.context.plan.grace;
        let wall = now.saturating_sub(self.cpu.started);
        // Shares of a moment say nothing.
        if wall > 20 * MILLISECOND {
            self.context.stats.busy = (clock::thread_cpu() - self.cpu.cpu) as f64 / wall as f64;
            self.context.stats.waited = (waited() - self.cpu.waited) as f64 / wall as f64;
        }
    }

    fn close_all(&mut self, now: u64) {
        self.phase = Phase::Closing;
        self.drain_by = now + END_PATIENCE;
        let timeout = self.context.plan.timeout;
        for slot in 0..self.sessions.len() {
            let unanswered = self.sessions[slot].unanswered();
            if unanswered > 0 {
                self.give_up(slot, now);
            } else if self.sessions[slot].state == State::Open {
                if let Err(failure) = self.sessions[slot].close(timeout, &mut self.context) {
                    self.after(slot, Err(failure));
                }
            } else if self.sessions[slot].state.is_setup() {
                let failure = self.sessions[slot].too_late(now - self.sessions[slot].times.start);
                self.after(slot, Err(failure));
            }
        }
    }

    /// Messages that never came back took at least as long as they were waited for.
    fn give_up(&mut self, slot: usize, now: u64) {
        let session = &self.sessions[slot];
        let (unanswered, first) = (session.unanswered(), session.in_next);
        for number in first..session.due {
            let sent = match self.context.plan.work {
                Work::Rate(_) => self.context.intended(session.number, number),
                _ => session.sent_at(number),
            };
            if self.context.window.contains(sent) {
                self.context.stats.latency.saturating_record(now - sent);
            }
        }
        self.context.stats.unanswered += unanswered;
        let seconds = self.context.plan.grace as f64 / SECOND as f64;
        let text =
            format!("{unanswered} messages, from message {first} on, were not answered {seconds} s after the end");
        self.after(slot, Err(Failure::new(Kind::Unanswered, text)));
    }

    fn open_more(&mut self, now: u64) {
        let plan = self.context.plan.clone();
        let storm = matches!(plan.work, Work::Storm { .. });
        let limit = if storm { usize::MAX } else { plan.concurrency.div_ceil(plan.threads) };
        while self.context.setting_up < limit && (storm || self.begun < self.sessions.len() as u64) {
            if now < self.next_open() {
                return;
            }
            let Some(slot) = self.free.pop() else { return };
            let from = plan.from.get(self.begun as usize % plan.from.len().max(1)).copied();
            self.begun += 1;
            let mut opened = self.sessions[slot].open(plan.route.address, from, plan.timeout);
            if opened.is_ok() {
                self.context.setting_up += 1;
                self.context.live += 1;
                opened = self.register(slot);
                if let Err(failure) = &opened {
                    self.fail(slot, failure);
                }
            } else if let Err(failure) = &opened {
                self.context.stats.failures.add(self.sessions[slot].number, failure);
            }
            if opened.is_err() && storm {
                // As fast as it goes is no use when nothing goes.
                self.free.insert(0, slot);
                return;
            }
        }
    }

    fn next_open(&self) -> u64 {
        let Some(rate) = self.context.plan.open_rate else { return 0 };
        self.began + (self.begun as f64 * SECOND as f64 * self.context.plan.threads as f64 / rate) as u64
    }

    fn register(&self, slot: usize) -> Result<(), Failure> {
        let data = EventData::new_u64(slot as u64 | u64::from(self.epochs[slot]) << 32);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let added = self.sessions[slot].fd().map(|fd| epoll::add(&self.epoll, fd, data, flags));
        match added {
            Some(Err(error)) => Err(Failure::new(Kind::Connect, format!("epoll: {error}"))),
            _ => Ok(()),
        }
    }

    /// Ends what took too long.
    fn sweep(&mut self, now: u64) {
        for slot in 0..self.sessions.len() {
            if now >= self.sessions[slot].deadline && self.sessions[slot].state != State::Absent {
                if self.sessions[slot].state == State::Ending {
                    // It has closed as it should; that its TCP stays open is no failure of a message.
                    self.sessions[slot].forget();
                    self.context.closed();
                    self.after(slot, Ok(Turn::Done));
                } else {
                    let failure = self.sessions[slot].too_late(self.context.plan.timeout);
                    self.after(slot, Err(failure));
                }
            }
        }
    }

    fn sleep(&mut self, now: u64, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        let wake = self.next_wake(now);
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let poll_only = wake <= now || !self.unfinished.is_empty();
        if !poll_only && self.timer_at != wake {
            self.timer_at = wake;
            let at = Timespec { tv_sec: (wake / SECOND) as i64, tv_nsec: (wake % SECOND) as i64 };
            let once = Itimerspec { it_interval: zero, it_value: at };
            timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        }
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), poll_only.then_some(&zero)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn next_wake(&self, now: u64) -> u64 {
        let regular = self.next_sweep;
        let soon = match self.phase {
            Phase::Waiting => now + MILLISECOND,
            Phase::Opening if self.context.plan.open_rate.is_some() => self.next_open().max(now + 1),
            Phase::Opening => regular,
            Phase::Running => {
                let next = match (&self.context.schedule, self.context.plan.work) {
                    (Some(schedule), _) if !self.sessions.is_empty() => schedule.time(schedule.next),
                    (_, Work::Storm { .. }) if !self.free.is_empty() => self.next_open().max(now + MILLISECOND / 4),
                    _ => u64::MAX,
                };
                next.min(self.end)
            }
            Phase::Draining | Phase::Closing => now + MILLISECOND,
        };
        soon.min(regular)
    }
}

/// How long this thread has been ready to run without a core to run on, in nanoseconds.
fn waited() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0)
}

impl Stages {
    fn record(&mut self, times: &super::session::Times) {
        let mut before = times.start;
        for (at, stage) in [
            (times.tcp, &mut self.tcp),
            (times.tls, &mut self.tls),
            (times.upgrade, &mut self.upgrade),
            (times.connected, &mut self.connected),
        ] {
            if at != 0 {
                stage.saturating_record(at.saturating_sub(before));
                before = at;
            }
        }
        self.total.saturating_record(before.saturating_sub(times.start));
    }
}
