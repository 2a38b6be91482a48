//! One measurement: the echo target, a contender in front of it, the load, and what the kernel booked meanwhile.
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;

use super::{
    Comparison,
    config::{Contender, Form, Kind, Scenario},
    contender::{self, Certificate, Running},
    results::{Outcome, Run, Spread},
};
use crate::{
    clock,
    engine::{
        self, Observer, Plan, Snapshot, Work,
        payload::Payloads,
        route::{self, Route},
        seconds,
        stats::Stats,
    },
};

/// How long a contender may rest before its memory is looked at.
const SETTLE: Duration = Duration::from_millis(300);
/// Parts of the measured time of an open loop that are looked at for themselves, to see a drift.
const INTERVALS: u64 = 10;
const GRACE: u64 = 3 * clock::SECOND;
const TIMEOUT: u64 = 10 * clock::SECOND;

/// An echo target, as a process of its own.
pub struct EchoProcess {
    child: Child,
    pub port: u16,
    core: Option<usize>,
    tls: bool,
}

impl Drop for EchoProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl EchoProcess {
    /// With a certificate if it is to speak TLS, which is then written to `folder`.
    ///
    /// # Errors
    /// It does not start.
    fn start(core: Option<usize>, tls: Option<&Certificate>, folder: &Path) -> anyhow::Result<Self> {
        let port = contender::free_port()?;
        let mut command = Command::new(std::env::current_exe().context("where this program is")?);
        command.args(["echo", "--threads", "1", "--addr"]).arg(format!("127.0.0.1:{port}"));
        if let Some(certificate) = tls {
            let folder = folder.join("echo");
            certificate.write(&folder)?;
            command.arg("--cert").arg(folder.join("server.crt")).arg("--cert-key").arg(folder.join("server.key"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut echo = Self { child: contender::spawn_on(core, &mut command)?, port, core, tls: tls.is_some() };
        let started = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(!echo.ended(), "the echo target ended at once");
            ensure!(started.elapsed() < Duration::from_secs(10), "the echo target does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(echo)
    }

    fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Comparison {
    /// The port of an echo target on this core; one that was started before, if it still runs.
    fn echo(&mut self, core: Option<usize>, tls: bool) -> anyhow::Result<u16> {
        self.echoes.retain_mut(|echo| !echo.ended());
        if let Some(echo) = self.echoes.iter().find(|echo| echo.core == core && echo.tls == tls) {
            return Ok(echo.port);
        }
        let echo = EchoProcess::start(core, tls.then_some(&self.certificate), &self.folder)?;
        let port = echo.port;
        self.echoes.push(echo);
        Ok(port)
    }

    /// Starts a contender, measures it, and ends it.
    ///
    /// # Errors
    /// It does not start, dies, or one session or byte was not as it should be.
    pub(super) fn try_measure(&mut self, scenario: &Scenario, contender: &Contender) -> anyhow::Result<Outcome> {
        let run = &self.config.run;
        let (echo_core, relay_core) = (scenario.echo_core.or(run.echo_core), scenario.relay_core.or(run.relay_core));
        self.values.echo_port = self.echo(echo_core, contender.target_tls)?;
        (self.values.port, self.values.port2) = (contender::free_port()?, contender::free_port()?);
        self.values.dir = self.folder.join(&contender.name);
        let mut running = match contender.form {
            Form::Direct => None,
            _ => Some(Running::start(contender, &self.values, &self.certificate, relay_core)?),
        };
        let mut watcher = Watcher { running: running.as_ref(), seen: Seen::default() };
        if scenario.kind == Kind::Idle {
            std::thread::sleep(SETTLE);
            watcher.seen.pss_before = watcher.pss();
        }
        let plan = self.plan(scenario, contender)?;
        let stats = engine::run(plan, self.stop.clone(), &mut watcher)?;
        let seen = watcher.seen;
        if let Some(running) = &mut running
            && let Some(status) = running.ended()
        {
            bail!("it died during the measurement ({status}): {}", running.said());
        }
        ensure!(!self.stop.load(Relaxed), "it was ended by a signal");
        check(&stats)?;
        outcome(scenario, stats, &seen)
    }

    fn plan(&self, scenario: &Scenario, contender: &Contender) -> anyhow::Result<Plan> {
        let scheme = |tls: bool| if tls { "wss" } else { "ws" };
        let echo = format!("{}://127.0.0.1:{}/", scheme(contender.target_tls), self.values.echo_port);
        let peer = match contender.form {
            Form::Direct => echo.clone(),
            _ => format!("{}://127.0.0.1:{}/", scheme(contender.tls), self.values.port),
        };
        let form = match contender.form {
            Form::Direct | Form::Plain => route::Form::Direct,
            Form::Message => route::Form::Message,
            Form::Transparent => route::Form::Transparent,
        };
        let wanted = route::Wanted {
            form,
            peer,
            target: Some(echo),
            key: Some(self.key.clone()),
            ca_file: None,
            insecure: true,
        };
        let size = scenario.size()?;
        let run = &self.config.run;
        let duration = scenario.duration.unwrap_or(run.duration).as_nanos() as u64;
        Ok(Plan {
            route: Route::new(&wanted)?,
            payloads: Payloads::new(1, size.min, size.max),
            sessions: scenario.sessions,
            threads: 1,
            work: match scenario.kind {
                Kind::Throughput => Work::Window(scenario.window),
                Kind::Latency => Work::Rate(scenario.rate.unwrap_or(1000.0)),
                Kind::Idle => Work::Touch,
                Kind::Storm => Work::Storm { messages: 1 },
            },
            concurrency: 64,
            open_rate: None,
            warmup: run.warmup.as_nanos() as u64,
            duration,
            grace: GRACE,
            timeout: TIMEOUT,
            cores: scenario.load_core.or(run.load_core).into_iter().collect(),
            from: Vec::new(),
            interval: (scenario.kind == Kind::Latency).then_some((duration / INTERVALS).max(clock::MILLISECOND)),
        })
    }
}

/// A measurement counts only if every session and every byte was as it should be.
fn check(stats: &Stats) -> anyhow::Result<()> {
    if let Some((kind, tally)) = stats.failures.0.first_key_value() {
        let example = tally.examples.first().map(String::as_str).unwrap_or_default();
        bail!("{} sessions failed, {} of them {kind:?}: {example}", stats.failures.count(), tally.count);
    }
    ensure!(stats.opened > 0, "no session was opened");
    ensure!(stats.unsent == 0 && stats.unanswered == 0, "{} messages are missing", stats.unsent + stats.unanswered);
    Ok(())
}

fn outcome(scenario: &Scenario, stats: Stats, seen: &Seen) -> anyhow::Result<Outcome> {
    let kind = scenario.kind;
    let elapsed = seconds(seen.last.time - seen.first.time);
    let messages = seen.last.messages - seen.first.messages;
    let sessions = seen.last.opened - seen.first.opened;
    ensure!(messages > 0 || kind == Kind::Idle, "no message came back in the measured time");
    ensure!(sessions > 0 || kind != Kind::Storm, "no session was opened in the measured time");
    let each = |count: u64| seen.cpu_s.map(|cpu| cpu * 1e6 / count as f64);
    let latency = (!stats.latency.is_empty()).then_some(&stats.latency);
    let at = |quantile: f64| latency.map(|latency| latency.value_at_quantile(quantile) as f64 / 1e3);
    let storm = kind == Kind::Storm;
    Ok(Outcome {
        run: Run {
            repetition: 0,
            cpu_us_per_message: if storm || kind == Kind::Idle { None } else { each(2 * messages) },
            cpu_us_per_session: if storm { each(sessions) } else { None },
            sessions_per_second: storm.then_some(sessions as f64 / elapsed),
            messages_per_second: messages as f64 / elapsed,
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            p99_drift: drift(&seen.p99s),
            pss_kib: seen.pss_with,
            pss_kib_per_session: seen
                .pss_with
                .zip(seen.pss_before)
                .map(|(with, before)| with.saturating_sub(before) as f64 / scenario.sessions as f64),
            verified_bytes: stats.verified_bytes,
            load_busy: stats.busy,
            load_waited: stats.waited,
            load_late_p99_us: stats.lag.value_at_quantile(0.99) as f64 / 1e3,
        },
        latency: (kind == Kind::Latency).then_some(stats.latency),
    })
}

/// The median of the second half as a multiple of that of the first: one stall of the machine is no drift.
fn drift(p99s: &[f64]) -> Option<f64> {
    let (first, second) = p99s.split_at(p99s.len() / 2);
    let median = |half: &[f64]| Spread::of(half.iter().copied()).map(|spread| spread.median);
    Some(median(second)? / median(first)?)
}

/// Looks at a contender's CPU time and memory at both ends of the measured time.
struct Watcher<'a> {
    running: Option<&'a Running>,
    seen: Seen,
}

/// What a watcher has seen.
#[derive(Default)]
struct Seen {
    /// In the measured time.
    cpu_s: Option<f64>,
    pss_before: Option<u64>,
    pss_with: Option<u64>,
    first: Snapshot,
    last: Snapshot,
    /// p99 of each interval of an open loop, in nanoseconds.
    p99s: Vec<f64>,
}

impl Watcher<'_> {
    fn cpu_s(&self) -> Option<f64> {
        self.running.and_then(|running| running.cpu_s().ok())
    }

    fn pss(&self) -> Option<u64> {
        self.running.and_then(|running| running.sample().ok()).map(|sample| sample.pss_kib)
    }
}

impl Observer for Watcher<'_> {
    fn begin(&mut self, now: Snapshot) {
        self.seen.cpu_s = self.cpu_s();
        self.seen.first = now;
    }

    fn end(&mut self, now: Snapshot) {
        self.seen.last = now;
        self.seen.cpu_s = self.seen.cpu_s.zip(self.cpu_s()).map(|(before, after)| after - before);
        // To look at memory takes the relay's locks for a moment, so it is done only where memory is what is measured.
        if self.seen.pss_before.is_some() {
            self.seen.pss_with = self.pss();
        }
    }

    fn interval(&mut self, _number: u64, latency: &Histogram<u64>) {
        if !latency.is_empty() {
            self.seen.p99s.push(latency.value_at_quantile(0.99) as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_stall_is_no_drift() {
        assert_eq!(drift(&[10.0, 10.0, 10.0, 10.0, 900.0, 10.0]), Some(1.0));
        assert_eq!(drift(&[10.0, 10.0, 10.0, 20.0, 30.0, 40.0]), Some(3.0));
        assert_eq!((drift(&[10.0]), drift(&[])), (None, None));
    }
}
