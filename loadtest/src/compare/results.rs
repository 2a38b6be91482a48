//! What a comparison has found, in the form in which it is written.
use std::{collections::BTreeMap, fs};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    config::{self, Scenario},
    goals::Judged,
};
use crate::engine::stats::{Distribution, histogram};

#[derive(Debug, Serialize)]
pub struct Results {
    pub started: String,
    pub seconds: f64,
    pub command: String,
    pub version: &'static str,
    pub machine: Machine,
    pub run: config::Run,
    pub goals: Vec<Judged>,
    pub contenders: Vec<ContenderResult>,
    pub scenarios: Vec<ScenarioResults>,
    pub notes: Vec<String>,
}

impl Default for Results {
    fn default() -> Self {
        let run = config::Run {
            repetitions: 0,
            warmup: std::time::Duration::ZERO,
            duration: std::time::Duration::ZERO,
            load_core: None,
            relay_core: None,
            echo_core: None,
            baseline: String::new(),
            floor: String::new(),
            budget: None,
        };
        Self {
            started: String::new(),
            seconds: 0.0,
            command: String::new(),
            version: "",
            machine: Machine::default(),
            run,
            goals: Vec::new(),
            contenders: Vec::new(),
            scenarios: Vec::new(),
            notes: Vec::new(),
        }
    }
}

#[derive(Debug, Default, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_gib: f64,
    pub kernel: String,
    pub system: String,
    /// Average load of the last minute when it began: what else the machine was doing.
    pub load_average: f64,
}

impl Machine {
    pub fn look() -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let field = |text: &str, name: &str, separator: char| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value =
                line.and_then(|line| line.split_once(separator)).map(|(_, value)| value.trim().trim_matches('"'));
            value.unwrap_or("unknown").to_owned()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal", ':');
        let kib: f64 = memory.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0.0);
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name", ':'),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: (kib / f64::from(1 << 20) * 10.0).round() / 10.0,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            system: field(&read("/etc/os-release"), "PRETTY_NAME", '='),
            load_average: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
        }
    }
}

#[derive(Debug, Serialize)]
pub struct ContenderResult {
    pub name: String,
    pub title: String,
    pub version: Option<String>,
    pub command: String,
    pub files: BTreeMap<String, String>,
    pub left_out: Option<String>,
}

impl ContenderResult {
    /// Whether it is what the report is about.
    pub fn is_own(&self) -> bool {
        self.name.starts_with("ringway")
    }
}

#[derive(Debug, Serialize)]
pub struct ScenarioResults {
    #[serde(flatten)]
    pub scenario: Scenario,
    /// One for each contender, in their order.
    pub entries: Vec<Entry>,
}

/// One contender in one scenario.
#[derive(Debug, Serialize)]
pub struct Entry {
    pub contender: String,
    /// Whether it takes part.
    pub asked: bool,
    pub runs: Vec<Run>,
    pub errors: Vec<String>,
    /// Of all runs together, with `latency`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Distribution>,
    #[serde(skip)]
    all: Option<Histogram<u64>>,
}

/// One measurement.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Run {
    /// Counted from 0; those of one number were measured within moments.
    pub repetition: usize,
    /// CPU time of the contender for each one-way message: an echo is two.
    pub cpu_us_per_message: Option<f64>,
    /// CPU time of the contender for each session, from accept to close, and sessions a second; in a storm.
    pub cpu_us_per_session: Option<f64>,
    pub sessions_per_second: Option<f64>,
    pub messages_per_second: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p999_us: Option<f64>,
    /// The median of the p99 of parts of the measured time: of its second half as a multiple of that of the first.
    pub p99_drift: Option<f64>,
    pub pss_kib: Option<u64>,
    pub pss_kib_per_session: Option<f64>,
    pub verified_bytes: u64,
    /// Share of time that the load generator's thread had a core, and that it waited for one.
    pub load_busy: f64,
    pub load_waited: f64,
    pub load_late_p99_us: f64,
}

/// A measurement that counts.
#[derive(Debug)]
pub struct Outcome {
    pub run: Run,
    pub latency: Option<Histogram<u64>>,
}

/// Median with the ends of the range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, min, max })
    }
}

impl Entry {
    pub fn new(contender: &str, asked: bool) -> Self {
        Self { contender: contender.into(), asked, runs: Vec::new(), errors: Vec::new(), latency: None, all: None }
    }

    pub fn add(&mut self, outcome: Outcome) {
        self.runs.push(outcome.run);
        if let Some(latency) = outcome.latency {
            let all = self.all.get_or_insert_with(histogram);
            let _ = all.add(&latency);
            self.latency = Some(Distribution::with_curve(all));
        }
    }

    pub fn spread(&self, value: impl Fn(&Run) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.runs.iter().filter_map(value))
    }

    pub fn cpu(&self) -> Option<Spread> {
        self.spread(|run| run.cpu_us_per_message)
    }

    pub fn session_cpu(&self) -> Option<Spread> {
        self.spread(|run| run.cpu_us_per_session)
    }

    pub fn verified_bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.verified_bytes).sum()
    }
}

impl Results {
    /// What went wrong, a line for each contender and scenario. A contender that is not installed is no problem.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        self.scenarios.iter().flat_map(|scenario| {
            let name = &scenario.scenario.name;
            scenario.entries.iter().filter_map(move |entry| {
                let first = entry.errors.first()?;
                let (failed, tried) = (entry.errors.len(), entry.errors.len() + entry.runs.len());
                Some(format!("{}, {name}: {failed} of {tried} failed, the first: {first}", entry.contender))
            })
        })
    }

    pub fn entry<'a>(&self, scenario: &'a ScenarioResults, contender: &str) -> Option<&'a Entry> {
        scenario.entries.iter().find(|entry| entry.contender == contender)
    }

    /// Contenders that were measured at least once in one of these scenarios.
    pub fn measured<'a>(
        &'a self,
        scenarios: &[&'a ScenarioResults],
    ) -> impl Iterator<Item = (usize, &'a ContenderResult)> {
        self.contenders
            .iter()
            .enumerate()
            .filter(move |(index, _)| scenarios.iter().any(|scenario| !scenario.entries[*index].runs.is_empty()))
    }

    /// The title of a contender, or its name if it is not among those that were chosen.
    pub fn title<'a>(&'a self, name: &'a str) -> &'a str {
        self.contenders.iter().find(|contender| contender.name == name).map_or(name, |contender| &contender.title)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0].into_iter()), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0].into_iter()), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of(std::iter::empty()), None);
    }
}
