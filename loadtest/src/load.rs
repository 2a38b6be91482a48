//! One run, watched: progress while it goes, the relay's CPU and memory beside it, and the report of it.
use std::{
    fs,
    io::{self, Write},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use hdrhistogram::Histogram;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::{
    cli::{FAILED, LoadArgs},
    clock,
    engine::{self, Observer, Plan, Snapshot, Work, seconds, stats::Distribution},
    process::{self, Sample},
    progress::Progress,
    report::{Drift, IntervalReport, Relay, Report, slope, time},
};

/// How long a relay may take to give memory back behind the last session.
const SETTLE: Duration = Duration::from_secs(2);

struct Watcher {
    progress: Progress,
    relay_pid: Option<u32>,
    sessions: u64,
    duration: u64,
    began: u64,
    before: Sample,
    at_begin: Sample,
    at_end: Sample,
    own_cpu: u64,
    last: Snapshot,
    first: Snapshot,
    ended: Snapshot,
    intervals: Vec<IntervalReport>,
    interval_s: f64,
}

impl Watcher {
    fn sample(&self) -> Sample {
        self.relay_pid.and_then(|pid| process::sample(pid).ok()).unwrap_or_default()
    }
}

impl Observer for Watcher {
    fn opening(&mut self, now: Snapshot) {
        let text = format!("{} of {} sessions, {} failed", now.opened, self.sessions, now.failed);
        self.progress.report("opening", now.opened + now.failed, self.sessions, &text);
        self.last = now;
    }

    fn begin(&mut self, now: Snapshot) {
        (self.began, self.first, self.last) = (now.time, now, now);
        self.at_begin = self.sample();
        self.own_cpu = clock::process_cpu();
    }

    fn running(&mut self, now: Snapshot) {
        if self.began == 0 || now.time < self.last.time + 100 * clock::MILLISECOND {
            return;
        }
        let elapsed = now.time - self.began;
        let rate = (now.messages - self.last.messages) as f64 / seconds(now.time - self.last.time);
        let opened = now.opened - self.last.opened;
        let text = if opened > 0 {
            format!(
                "{:.0} sessions/s, {rate:.0} messages/s, {} failed",
                opened as f64 / seconds(now.time - self.last.time),
                now.failed
            )
        } else {
            format!(
                "{:.0} of {:.0} s, {rate:.0} messages/s, {} failed",
                seconds(elapsed),
                seconds(self.duration),
                now.failed
            )
        };
        self.progress.report("measuring", elapsed, self.duration, &text);
        self.last = now;
    }

    fn end(&mut self, now: Snapshot) {
        self.own_cpu = clock::process_cpu() - self.own_cpu;
        self.ended = now;
        self.at_end = self.sample();
        self.progress.clear();
    }

    fn interval(&mut self, number: u64, latency: &Histogram<u64>) {
        let latency = Distribution::new(latency);
        let relay_pss_kib = self.relay_pid.and_then(|pid| process::sample(pid).ok()).map(|sample| sample.pss_kib);
        let at_s = (number + 1) as f64 * self.interval_s;
        let pss = relay_pss_kib.map(|kib| format!(", relay PSS {kib} KiB")).unwrap_or_default();
        self.progress.line(&format!(
            "{at_s:.0} s: {} messages, p50 {}, p99 {}, max {}{pss}",
            latency.count,
            time(latency.p50_us),
            time(latency.p99_us),
            time(latency.max_us)
        ));
        self.intervals.push(IntervalReport { at_s, latency, relay_pss_kib });
    }
}

/// Runs a plan and reports it.
///
/// # Errors
/// It could not be run, or the report not be written.
pub fn run(command: &str, args: &LoadArgs, plan: Plan) -> anyhow::Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second one ends the process at once.
        signal_hook::flag::register_conditional_shutdown(signal, FAILED.into(), stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    let before = args.relay_pid.map(process::sample).transpose().context("--relay-pid")?.unwrap_or_default();
    if let Some(files) = args.relay_pid.and_then(process::open_files_limit) {
        let each = if plan.route.relayed { 2 } else { 1 };
        engine::enough_files("the relay", plan.sessions as u64, each, files).context("--relay-pid")?;
    }
    let storm = matches!(plan.work, Work::Storm { .. });
    let mut report = Report {
        command: command.into(),
        version: env!("CARGO_PKG_VERSION"),
        route: plan.route.description.clone(),
        sessions: plan.sessions,
        threads: plan.threads,
        size_min: args.size().min,
        size_max: args.size().max,
        seed: args.seed(),
        wanted_per_second: if let Work::Rate(rate) = plan.work { Some(rate) } else { None },
        latency_from: if matches!(plan.work, Work::Rate(_)) { "intended" } else { "sent" },
        ..Report::default()
    };
    let mut watcher = Watcher {
        progress: Progress::new(args.quiet),
        relay_pid: args.relay_pid,
        sessions: plan.sessions as u64,
        duration: plan.duration,
        began: 0,
        before,
        at_begin: before,
        at_end: before,
        own_cpu: 0,
        last: Snapshot::default(),
        first: Snapshot::default(),
        ended: Snapshot::default(),
        intervals: Vec::new(),
        interval_s: plan.interval.map_or(0.0, seconds),
    };
    let stats = engine::run(plan, stop.clone(), &mut watcher)?;
    watcher.progress.clear();
    let span = watcher.ended.time.saturating_sub(watcher.first.time);
    report.seconds = seconds(span.min(watcher.duration));
    report.own.cpu_s = seconds(watcher.own_cpu);
    report.count(&stats);
    if storm {
        report.sessions_per_second = Some(stats.opened as f64 / report.seconds.max(1e-9));
    }
    if args.relay_pid.is_some() {
        report.relay = Some(relay(&watcher, stats.opened, storm));
    }
    report.intervals = std::mem::take(&mut watcher.intervals);
    report.drift = drift(&report.intervals);
    if stop.load(Relaxed) && stats.opened > 0 {
        report.warnings.push(format!("it was ended after {:.0} s", report.seconds));
    }
    publish(&report, args.json.as_deref())?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn relay(watcher: &Watcher, opened: u64, storm: bool) -> Relay {
    thread::sleep(SETTLE);
    let after = watcher.sample();
    let messages = watcher.ended.messages - watcher.first.messages;
    let cpu_s = watcher.at_end.cpu_s - watcher.at_begin.cpu_s;
    let grown = watcher.at_end.pss_kib.saturating_sub(watcher.before.pss_kib) as f64;
    Relay {
        cpu_s,
        cpu_us_per_one_way_message: if messages > 0 { cpu_s * 1e6 / (2 * messages) as f64 } else { 0.0 },
        pss_before_kib: watcher.before.pss_kib,
        pss_with_sessions_kib: watcher.at_end.pss_kib,
        pss_after_kib: after.pss_kib,
        kib_per_session: if storm { 0.0 } else { grown / opened.max(1) as f64 },
    }
}

fn drift(intervals: &[IntervalReport]) -> Option<Drift> {
    // The first one warms caches up.
    let intervals = if intervals.len() > 3 { &intervals[1..] } else { intervals };
    if intervals.len() < 2 {
        return None;
    }
    let hours = |interval: &IntervalReport| interval.at_s / 3600.0;
    let pss = intervals.iter().filter_map(|interval| Some((hours(interval), interval.relay_pss_kib? as f64)));
    Some(Drift {
        p50_us_per_hour: slope(intervals.iter().map(|interval| (hours(interval), interval.latency.p50_us))),
        p99_us_per_hour: slope(intervals.iter().map(|interval| (hours(interval), interval.latency.p99_us))),
        relay_pss_kib_per_hour: (pss.clone().count() > 1).then(|| slope(pss)),
    })
}

fn publish(report: &Report, json: Option<&str>) -> anyhow::Result<()> {
    let text = report.text();
    let Some(file) = json else {
        print!("{text}");
        return Ok(());
    };
    let mut data = serde_json::to_string_pretty(report)?;
    data.push('\n');
    if file == "-" {
        eprint!("{text}");
        io::stdout().write_all(data.as_bytes()).context("cannot write to standard output")
    } else {
        print!("{text}");
        fs::write(file, data).with_context(|| format!("cannot write {file}"))
    }
}
