//! Side by side: each contender in turn under the same load on the same cores, several times over, and the report.
//!
//! A contender is started anew for each measurement and ended behind it, so that none sees what another left, and one
//! that dies costs one figure. Repetitions are interleaved (all contenders, then all again, in another order), so that
//! a machine that changes its pace changes it for all.
mod config;
mod contender;
mod html;
mod markdown;
mod results;
mod svg;
mod tables;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use sha2::{Digest, Sha256};
use signal_hook::consts::{SIGINT, SIGTERM};

use self::{
    config::{Config, Contender, Form, Kind, Scenario},
    contender::{Certificate, Running, Values},
    results::{Entry, Machine, Outcome, Results, Run, ScenarioResults},
};
use crate::{
    cli::FAILED,
    clock,
    engine::{
        self, Observer, Plan, Snapshot, Work,
        payload::Payloads,
        route::{self, Route},
        seconds,
        stats::Stats,
    },
    progress::Progress,
};

/// Failures in a row after which a contender is not tried any more.
const MAX_FAILURES: usize = 3;
/// How long a contender may rest before its memory is looked at.
const SETTLE: Duration = Duration::from_millis(300);
const GRACE: u64 = 3 * clock::SECOND;
const TIMEOUT: u64 = 10 * clock::SECOND;

#[derive(Args, Debug)]
pub struct CompareArgs {
    /// Contenders and scenarios; default: the built-in ones (see --print-config)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the built-in file, to start one's own from
    #[arg(long)]
    print_config: bool,
    /// Only these contenders
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    only: Vec<String>,
    /// Only scenarios that have one of these in their name
    #[arg(long, value_name = "TEXT")]
    scenario: Vec<String>,
    /// Repetitions, instead of the file's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    repetitions: Option<u64>,
    /// Measured time of each repetition, instead of the file's
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// No further repetition begins after this; what there is is reported
    #[arg(long, value_name = "TIME", default_value = "18m", value_parser = humantime::parse_duration)]
    budget: Duration,
    /// The ringway program; default: beside this program, else in PATH
    #[arg(long, value_name = "FILE", env = "RINGWAY_BIN")]
    ringway: Option<PathBuf>,
    /// Folder for report.html, report.md and report.json
    #[arg(long, value_name = "FOLDER", default_value = "loadtest-report")]
    out: PathBuf,
    /// No progress
    #[arg(short, long)]
    quiet: bool,
}

/// Measures and reports.
///
/// # Errors
/// The configuration is not usable, nothing could be measured, or the report not be written.
pub fn run(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    if args.print_config {
        print!("{}", config::DEFAULT);
        return Ok(ExitCode::SUCCESS);
    }
    let mut config = Config::load(args.config.as_deref())?;
    config.select(&args.only, &args.scenario)?;
    if let Some(repetitions) = args.repetitions {
        config.run.repetitions = repetitions as usize;
        config.scenarios.iter_mut().for_each(|scenario| scenario.repetitions = None);
    }
    if let Some(duration) = args.duration {
        config.run.duration = duration;
        config.scenarios.iter_mut().for_each(|scenario| scenario.duration = None);
    }
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let mut comparison = Comparison::new(args, config)?;
    comparison.measure_all();
    let results = comparison.finish();
    ensure!(results.scenarios.iter().any(|scenario| scenario.entries.iter().any(|entry| !entry.runs.is_empty())), {
        let reasons: Vec<String> = results.problems().collect();
        format!("nothing could be measured: {}", reasons.join("; "))
    });
    let write = |name: &str, text: String| {
        let file = args.out.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    };
    write("report.json", serde_json::to_string_pretty(&results)? + "\n")?;
    write("report.md", markdown::report(&results))?;
    write("report.html", html::report(&results))?;
    print!("{}", markdown::summary(&results));
    println!("\nThe report is in {}: report.html, report.md, report.json", args.out.display());
    Ok(if results.problems().next().is_some() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

struct Comparison {
    config: Config,
    results: Results,
    values: Values,
    certificate: Certificate,
    key: String,
    echo: EchoProcess,
    progress: Progress,
    stop: Arc<AtomicBool>,
    budget: Duration,
    /// Failures in a row, by contender.
    failures: Vec<usize>,
    folder: PathBuf,
}

/// The echo target, as a process of its own.
struct EchoProcess {
    child: std::process::Child,
    port: u16,
}

impl Drop for EchoProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl EchoProcess {
    fn start(program: &Path, core: Option<usize>) -> anyhow::Result<Self> {
        let port = contender::free_port()?;
        let mut command = Command::new(program);
        command.args(["echo", "--threads", "1", "--addr"]).arg(format!("127.0.0.1:{port}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut echo = Self { child: contender::spawn_on(core, &mut command)?, port };
        let started = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Ok(Some(status)) = echo.child.try_wait() {
                bail!("the echo target ended at once: {status}");
            }
            ensure!(started.elapsed() < Duration::from_secs(10), "the echo target does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(echo)
    }
}

impl Comparison {
    fn new(args: &CompareArgs, config: Config) -> anyhow::Result<Self> {
        ringway::runtime::threads::raise_open_files();
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, FAILED.into(), stop.clone())?;
            signal_hook::flag::register(signal, stop.clone())?;
        }
        let own = std::env::current_exe().context("where this program is")?;
        let bin = own.parent().context("where this program is")?.to_path_buf();
        let beside = bin.join("ringway");
        let ringway = match &args.ringway {
            Some(file) => std::path::absolute(file)?,
            None if beside.is_file() => beside,
            None => contender::find("ringway").unwrap_or(beside),
        };
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).context("no random bytes")?;
        let key: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let key_sha256 = Sha256::digest(&key).iter().map(|byte| format!("{byte:02x}")).collect();
        let echo = EchoProcess::start(&own, config.run.echo_core)?;
        let folder = std::env::temp_dir().join(format!("ringway-loadtest-{}", std::process::id()));
        let values = Values { port: 0, port2: 0, echo_port: echo.port, dir: folder.clone(), bin, ringway, key_sha256 };
        let mut results = Results {
            started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
            version: env!("CARGO_PKG_VERSION"),
            machine: Machine::look(),
            run: config.run.clone(),
            ..Results::default()
        };
        for contender in &config.contenders {
            let example =
                Values { port: 8000, port2: 8001, echo_port: 9000, dir: PathBuf::from("DIR"), ..values.clone() };
            let missing = contender::missing(contender, &values);
            results.contenders.push(results::ContenderResult {
                name: contender.name.clone(),
                title: contender.title.clone(),
                version: if missing.is_some() { None } else { contender::version(contender, &values) },
                command: shown_command(contender, &example),
                files: contender.files.iter().map(|(name, text)| (name.clone(), example.fill(text))).collect(),
                left_out: missing,
            });
        }
        for scenario in &config.scenarios {
            results.scenarios.push(ScenarioResults {
                scenario: scenario.clone(),
                entries: config.contenders.iter().map(|contender| Entry::new(&contender.name)).collect(),
            });
        }
        let failures = vec![0; config.contenders.len()];
        let progress = Progress::new(args.quiet);
        for left_out in results.contenders.iter().filter_map(|c| Some(format!("{}: {}", c.name, c.left_out.as_ref()?)))
        {
            progress.line(&format!("left out: {left_out}"));
        }
        Ok(Self {
            config,
            results,
            values,
            certificate: Certificate::new()?,
            key,
            echo,
            progress,
            stop,
            budget: args.budget,
            failures,
            folder,
        })
    }

    fn measure_all(&mut self) {
        let started = Instant::now();
        let most = self.config.scenarios.iter().map(|scenario| self.repetitions(scenario)).max().unwrap_or(0);
        let each = self.config.contenders.len() as u64;
        let total: u64 = self.config.scenarios.iter().map(|scenario| self.repetitions(scenario) as u64 * each).sum();
        let mut done = 0;
        for repetition in 0..most {
            if repetition > 0 && started.elapsed() > self.budget {
                self.results.notes.push(format!("the time was up after {repetition} repetitions of {most}"));
                break;
            }
            for at in 0..self.config.scenarios.len() {
                let scenario = self.config.scenarios[at].clone();
                if repetition >= self.repetitions(&scenario) {
                    continue;
                }
                for turn in 0..self.config.contenders.len() {
                    // Another one is first each time.
                    let index = (turn + repetition) % self.config.contenders.len();
                    if self.stop.load(Relaxed) {
                        self.results.notes.push("it was ended by a signal".into());
                        return;
                    }
                    let contender = self.config.contenders[index].clone();
                    let text = format!("{}/{most} {}: {}", repetition + 1, scenario.name, contender.title);
                    self.progress.report("comparing", done, total, &text);
                    done += 1;
                    if self.results.contenders[index].left_out.is_none() {
                        self.measure(at, index, &scenario, &contender);
                    }
                }
            }
        }
        self.results.seconds = started.elapsed().as_secs_f64();
        self.progress.clear();
    }

    fn repetitions(&self, scenario: &Scenario) -> usize {
        scenario.repetitions.unwrap_or(self.config.run.repetitions)
    }

    fn measure(&mut self, at: usize, index: usize, scenario: &Scenario, contender: &Contender) {
        let entry_name = &contender.name;
        match self.try_measure(scenario, contender) {
            Ok(outcome) => {
                self.failures[index] = 0;
                self.results.scenarios[at].entries[index].add(outcome);
            }
            Err(error) if self.stop.load(Relaxed) => drop(error),
            Err(error) => {
                self.failures[index] += 1;
                self.progress.line(&format!("{entry_name}, {}: {error:#}", scenario.name));
                self.results.scenarios[at].entries[index].errors.push(format!("{error:#}"));
                if self.failures[index] >= MAX_FAILURES {
                    self.results.contenders[index].left_out =
                        Some(format!("it failed {MAX_FAILURES} times in a row, at last: {error:#}"));
                }
            }
        }
    }

    fn try_measure(&mut self, scenario: &Scenario, contender: &Contender) -> anyhow::Result<Outcome> {
        if self.echo.child.try_wait()?.is_some() {
            self.echo = EchoProcess::start(&std::env::current_exe()?, self.config.run.echo_core)?;
        }
        self.values.echo_port = self.echo.port;
        (self.values.port, self.values.port2) = (contender::free_port()?, contender::free_port()?);
        self.values.dir = self.folder.join(&contender.name);
        let direct = contender.form == Form::Direct;
        let mut running = match direct {
            true => None,
            false => Some(Running::start(contender, &self.values, &self.certificate, self.config.run.relay_core)?),
        };
        if scenario.kind == Kind::Idle {
            std::thread::sleep(SETTLE);
        }
        let mut watcher = Watcher { running: running.as_ref(), ..Watcher::default() };
        watcher.pss_before = watcher.pss();
        let plan = self.plan(scenario, contender)?;
        let stats = engine::run(plan, self.stop.clone(), &mut watcher)?;
        let (first, last) = (watcher.first, watcher.last);
        let (cpu, pss_before, pss_with) = (watcher.cpu, watcher.pss_before, watcher.pss_with);
        if let Some(running) = &mut running
            && let Some(status) = running.ended()
        {
            bail!("it died during the measurement ({status}): {}", running.said());
        }
        check(&stats)?;
        let elapsed = seconds(last.time - first.time);
        let messages = last.messages - first.messages;
        ensure!(messages > 0 || scenario.kind == Kind::Idle, "no message came back in the measured time");
        let cpu_us = match (cpu, messages) {
            (Some(cpu), 1..) if scenario.kind != Kind::Idle => Some(cpu * 1e6 / (2 * messages) as f64),
            _ => None,
        };
        let latency = (!stats.latency.is_empty()).then_some(&stats.latency);
        let at = |quantile: f64| latency.map(|latency| latency.value_at_quantile(quantile) as f64 / 1e3);
        Ok(Outcome {
            run: Run {
                cpu_us_per_message: cpu_us,
                messages_per_second: messages as f64 / elapsed,
                p50_us: at(0.5),
                p99_us: at(0.99),
                p999_us: at(0.999),
                pss_kib: pss_with,
                pss_kib_per_session: pss_with
                    .zip(pss_before)
                    .filter(|_| scenario.kind == Kind::Idle)
                    .map(|(with, before)| with.saturating_sub(before) as f64 / scenario.sessions as f64),
                verified_bytes: stats.verified_bytes,
                load_busy: stats.busy,
                load_late_p99_us: stats.lag.value_at_quantile(0.99) as f64 / 1e3,
            },
            latency: (scenario.kind == Kind::Latency).then_some(stats.latency),
        })
    }

    fn plan(&self, scenario: &Scenario, contender: &Contender) -> anyhow::Result<Plan> {
        let echo = format!("ws://127.0.0.1:{}/", self.values.echo_port);
        let port = if contender.form == Form::Direct { self.values.echo_port } else { self.values.port };
        let scheme = if contender.tls { "wss" } else { "ws" };
        let peer = format!("{scheme}://127.0.0.1:{port}/");
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
        let duration = scenario.duration.unwrap_or(self.config.run.duration);
        Ok(Plan {
            route: Route::new(&wanted)?,
            payloads: Payloads::new(1, size.min, size.max),
            sessions: scenario.sessions,
            threads: 1,
            work: match scenario.kind {
                Kind::Throughput => Work::Window(scenario.window),
                Kind::Latency => Work::Rate(scenario.rate.unwrap_or(1000.0)),
                Kind::Idle => Work::Touch,
            },
            concurrency: 64,
            open_rate: None,
            warmup: self.config.run.warmup.as_nanos() as u64,
            duration: duration.as_nanos() as u64,
            grace: GRACE,
            timeout: TIMEOUT,
            cores: self.config.run.load_core.into_iter().collect(),
            from: Vec::new(),
            interval: None,
        })
    }

    fn finish(mut self) -> Results {
        let _ = fs::remove_dir_all(&self.folder);
        for (index, contender) in self.results.contenders.iter().enumerate() {
            let measured = self.results.scenarios.iter().any(|s| !s.entries[index].runs.is_empty());
            if let (Some(reason), true) = (&contender.left_out, measured) {
                self.results.notes.push(format!("{} was not measured to the end: {reason}", contender.name));
            }
        }
        let shared = self.config.run.load_core.is_some() && self.config.run.load_core == self.config.run.relay_core;
        if !shared {
            let limited = |run: &Run| run.load_busy > 0.9;
            for scenario in &self.results.scenarios {
                for entry in scenario.entries.iter().filter(|entry| entry.runs.iter().any(limited)) {
                    let text =
                        format!("{}, {}: the load generator was the limit", entry.contender, scenario.scenario.name);
                    self.results.notes.push(text);
                }
            }
        }
        self.results
    }
}

fn shown_command(contender: &Contender, values: &Values) -> String {
    if contender.form == Form::Direct {
        return "(none: the load goes straight to the echo target)".into();
    }
    let program = values.fill(&contender.program);
    let name = Path::new(&program).file_name().map_or(program.clone(), |name| name.to_string_lossy().into_owned());
    std::iter::once(name)
        .chain(contender.command.iter().map(|argument| values.fill(argument)))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A measurement counts only if every session and every byte was as it should be.
fn check(stats: &Stats) -> anyhow::Result<()> {
    if let Some((kind, tally)) = stats.failures.0.first_key_value() {
        let example = tally.examples.first().map(String::as_str).unwrap_or_default();
        bail!("{} sessions failed, {} of them {kind:?}: {example}", stats.failures.count(), tally.count);
    }
    ensure!(stats.opened > 0, "no session was opened");
    Ok(())
}

/// Looks at a contender's CPU time and memory at both ends of the measured time.
#[derive(Default)]
struct Watcher<'a> {
    running: Option<&'a Running>,
    pss_before: Option<u64>,
    pss_with: Option<u64>,
    cpu: Option<f64>,
    first: Snapshot,
    last: Snapshot,
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
        self.cpu = self.cpu_s();
        self.first = now;
    }

    fn end(&mut self, now: Snapshot) {
        self.last = now;
        self.cpu = self.cpu.zip(self.cpu_s()).map(|(before, after)| after - before);
        self.pss_with = self.pss();
    }
}
