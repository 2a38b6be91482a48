//! Side by side: each contender in turn under the same load on the same cores, several times over, and the report.
//!
//! A contender is started anew for each measurement and ended behind it, so that none sees what another left, and one
//! that dies costs one figure. Repetitions are interleaved (all contenders, then all again, in another order), so that
//! a machine that changes its pace changes it for all.
mod config;
mod contender;
mod goals;
mod html;
mod markdown;
mod measure;
mod results;
mod svg;
mod tables;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, ensure};
use clap::Args;
use sha2::{Digest, Sha256};
use signal_hook::consts::{SIGINT, SIGTERM};

use self::{
    config::{Config, Contender, Form, Kind, Scenario},
    contender::{Certificate, Values},
    measure::EchoProcess,
    results::{Entry, Machine, Results, Run, ScenarioResults},
};
use crate::{cli::FAILED, progress::Progress};

/// Failures in a row after which a contender is not tried any more.
const MAX_FAILURES: usize = 3;
/// How long all of it may take, where nobody says.
const BUDGET: Duration = Duration::from_secs(18 * 60);

#[derive(Args, Debug)]
pub struct CompareArgs {
    /// Contenders and scenarios; default: the built-in ones (see --print-config)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The long built-in file: all that ringway is meant to reach, in some 25 minutes
    #[arg(long, conflicts_with = "config")]
    goals: bool,
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
    /// No repetition begins that would not end within this, as long as the one before took; default: the file's, or 18m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    budget: Option<Duration>,
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
    let built_in = if args.goals { config::GOALS } else { config::DEFAULT };
    if args.print_config {
        print!("{built_in}");
        return Ok(ExitCode::SUCCESS);
    }
    let mut config = Config::load(args.config.as_deref(), built_in)?;
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
    /// Echo targets, one for each core and each of plain and TLS that was wanted so far.
    echoes: Vec<EchoProcess>,
    progress: Progress,
    stop: Arc<AtomicBool>,
    budget: Duration,
    /// Failures in a row, by contender.
    failures: Vec<usize>,
    folder: PathBuf,
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
        let folder = std::env::temp_dir().join(format!("ringway-loadtest-{}", std::process::id()));
        let values = Values { port: 0, port2: 0, echo_port: 0, dir: folder.clone(), bin, ringway, key_sha256 };
        let mut results = Results {
            started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            command: std::env::args().map(without_folder).collect::<Vec<_>>().join(" "),
            version: env!("CARGO_PKG_VERSION"),
            machine: Machine::look(),
            run: config.run.clone(),
            ..Results::default()
        };
        for contender in &config.contenders {
            let example = values.example();
            let missing = contender::missing(contender, &values).map(|reason| values.hide(&reason));
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
                entries: config
                    .contenders
                    .iter()
                    .map(|contender| Entry::new(&contender.name, config.takes_part(&contender.name, scenario)))
                    .collect(),
            });
        }
        let failures = vec![0; config.contenders.len()];
        let progress = Progress::new(args.quiet);
        for left_out in results.contenders.iter().filter_map(|c| Some(format!("{}: {}", c.name, c.left_out.as_ref()?)))
        {
            progress.line(&format!("left out: {left_out}"));
        }
        let budget = args.budget.or(config.run.budget).unwrap_or(BUDGET);
        Ok(Self {
            config,
            results,
            values,
            certificate: Certificate::new()?,
            key,
            echoes: Vec::new(),
            progress,
            stop,
            budget,
            failures,
            folder,
        })
    }

    fn measure_all(&mut self) {
        let started = Instant::now();
        let scenarios = self.config.scenarios.clone();
        let most = scenarios.iter().map(|scenario| self.repetitions(scenario)).max().unwrap_or(0);
        let asked = |at: usize| self.results.scenarios[at].entries.iter().filter(|entry| entry.asked).count() as u64;
        let total: u64 = (0..scenarios.len()).map(|at| self.repetitions(&scenarios[at]) as u64 * asked(at)).sum();
        let mut done = 0;
        let mut longest = Duration::ZERO;
        for repetition in 0..most {
            let began = started.elapsed();
            if repetition > 0 && began + longest > self.budget {
                self.results.notes.push(format!("there was time for {repetition} of {most} repetitions"));
                break;
            }
            for (at, scenario) in scenarios.iter().enumerate() {
                if repetition < self.repetitions(scenario)
                    && !self.measure_scenario(at, scenario, repetition, &mut done, total)
                {
                    self.results.notes.push("it was ended by a signal".into());
                    break;
                }
            }
            if self.stop.load(Relaxed) {
                break;
            }
            longest = longest.max(started.elapsed() - began);
        }
        self.results.seconds = started.elapsed().as_secs_f64();
        self.progress.clear();
    }

    /// All who take part, in turn. False if a signal ended it.
    fn measure_scenario(
        &mut self,
        at: usize,
        scenario: &Scenario,
        repetition: usize,
        done: &mut u64,
        total: u64,
    ) -> bool {
        let entries = &self.results.scenarios[at].entries;
        let mut asked: Vec<usize> = (0..entries.len()).filter(|&index| entries[index].asked).collect();
        // Another one is first each time.
        let first = repetition % asked.len().max(1);
        asked.rotate_left(first);
        for index in asked {
            if self.stop.load(Relaxed) {
                return false;
            }
            let contender = self.config.contenders[index].clone();
            let text =
                format!("{}/{total}, repetition {}, {}: {}", *done + 1, repetition + 1, scenario.name, contender.title);
            self.progress.report("comparing", *done, total, &text);
            *done += 1;
            if self.results.contenders[index].left_out.is_none() {
                self.measure(at, index, repetition, scenario, &contender);
            }
        }
        true
    }

    fn repetitions(&self, scenario: &Scenario) -> usize {
        scenario.repetitions.unwrap_or(self.config.run.repetitions)
    }

    fn measure(&mut self, at: usize, index: usize, repetition: usize, scenario: &Scenario, contender: &Contender) {
        match self.try_measure(scenario, contender) {
            Ok(mut outcome) => {
                self.failures[index] = 0;
                outcome.run.repetition = repetition;
                self.results.scenarios[at].entries[index].add(outcome);
            }
            Err(error) if self.stop.load(Relaxed) => drop(error),
            Err(error) => {
                self.failures[index] += 1;
                let error = self.values.hide(&format!("{error:#}"));
                self.progress.line(&format!("{}, {}: {error}", contender.name, scenario.name));
                if self.failures[index] >= MAX_FAILURES {
                    self.results.contenders[index].left_out =
                        Some(format!("it failed {MAX_FAILURES} times in a row, at last: {error}"));
                }
                self.results.scenarios[at].entries[index].errors.push(error);
            }
        }
    }

    fn finish(mut self) -> Results {
        let _ = fs::remove_dir_all(&self.folder);
        for (index, contender) in self.results.contenders.iter().enumerate() {
            let measured = self.results.scenarios.iter().any(|s| !s.entries[index].runs.is_empty());
            if let (Some(reason), true) = (&contender.left_out, measured) {
                self.results.notes.push(format!("{} was not measured to the end: {reason}", contender.name));
            }
        }
        let limited = |run: &Run| run.load_busy + run.load_waited > 0.9;
        for scenario in self.results.scenarios.iter().filter(|scenario| scenario.scenario.kind != Kind::Idle) {
            let (load, relay) = self.results.run.load_and_relay(&scenario.scenario);
            // On a core that they share, the load generator gets what the relay leaves.
            if load.is_some() && load == relay {
                continue;
            }
            let names: Vec<&str> = scenario
                .entries
                .iter()
                .filter(|entry| entry.runs.iter().any(limited))
                .map(|entry| self.results.title(&entry.contender))
                .collect();
            if !names.is_empty() {
                self.results.notes.push(format!(
                    "{}: the load generator's core, not the relay, was the limit for {}. The relay's CPU a message is \
                     right, its speed is not",
                    scenario.scenario.name,
                    names.join("; ")
                ));
            }
        }
        self.results.goals = self.config.goals.iter().flat_map(|goal| goal.judge(&self.results)).collect();
        self.results
    }
}

/// An argument as others may see it: of a path that begins at the root, its last part.
fn without_folder(argument: String) -> String {
    let path = Path::new(&argument);
    match path.file_name() {
        Some(name) if path.is_absolute() => name.to_string_lossy().into_owned(),
        _ => argument,
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
        .map(|argument| if argument.contains([' ', '&']) { format!("'{argument}'") } else { argument })
        .collect::<Vec<_>>()
        .join(" ")
}
