//! What is wanted, and whether it was met.
//!
//! A contender is put in relation to the best of others: the one with the best median over all repetitions. The ratio is
//! taken within each repetition, between two figures that were measured within moments, and its median is judged. So a
//! machine that changes its pace changes both figures. To choose the best of several by their medians favours them by
//! what chance favours; that is on the safe side for those who judge their own.
use serde::Serialize;

use super::{
    config::{Goal, Kind, Measure},
    results::{Entry, Results, Run, ScenarioResults, Spread},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Met,
    Missed,
    NotMeasured,
}

impl Verdict {
    pub fn words(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::NotMeasured => "not measured",
        }
    }
}

/// A goal in one scenario, judged.
#[derive(Debug, Serialize)]
pub struct Judged {
    pub scenario: String,
    pub measure: Measure,
    /// The measure, for people.
    pub what: &'static str,
    pub unit: &'static str,
    pub of: String,
    /// The best of those that it is compared with.
    pub against: Option<String>,
    /// How many it was chosen from.
    pub chosen_from: usize,
    /// Those that it would have been chosen from too, had they been measured.
    pub without: Vec<String>,
    pub own: Option<f64>,
    pub other: Option<f64>,
    /// What is judged: the ratio, or where nobody is compared with the figure.
    pub value: Option<Spread>,
    pub at_most: Option<f64>,
    pub at_least: Option<f64>,
    /// Repetitions in which it was met, and all that could be judged.
    pub met_in: usize,
    pub repetitions: usize,
    /// Measurements of it that failed. With one of them no goal is met, whatever the figures of the others are.
    pub failed: usize,
    pub verdict: Verdict,
}

impl Measure {
    fn of(self, run: &Run) -> Option<f64> {
        match self {
            Self::Cpu => run.cpu_us_per_message.or(run.cpu_us_per_session),
            Self::P50 => run.p50_us,
            Self::P99 => run.p99_us,
            Self::P999 => run.p999_us,
            Self::P99Drift => run.p99_drift,
            Self::Memory => run.pss_kib_per_session,
            Self::Setups => run.sessions_per_second,
        }
    }

    fn more_is_better(self) -> bool {
        self == Self::Setups
    }

    fn words(self, kind: Kind) -> (&'static str, &'static str) {
        match self {
            Self::Cpu if kind == Kind::Storm => ("CPU a session", "µs"),
            Self::Cpu => ("CPU a message", "µs"),
            Self::P50 => ("p50", "µs"),
            Self::P99 => ("p99", "µs"),
            Self::P999 => ("p99.9", "µs"),
            Self::P99Drift => ("p99, second half to first", ""),
            Self::Memory => ("memory a session", "KiB"),
            Self::Setups => ("sessions a second", "a second"),
        }
    }
}

/// As it is shown and judged: with two digits behind the point, like the limits.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

impl Goal {
    fn meets(&self, value: f64) -> bool {
        let value = rounded(value);
        self.at_most.is_none_or(|most| value <= most) && self.at_least.is_none_or(|least| value >= least)
    }

    /// Judges this goal in each of its scenarios that was asked.
    pub fn judge(&self, results: &Results) -> Vec<Judged> {
        let scenario = |name: &String| results.scenarios.iter().find(|scenario| scenario.scenario.name == *name);
        self.scenarios.iter().filter_map(scenario).map(|scenario| self.judge_in(results, scenario)).collect()
    }

    fn judge_in(&self, results: &Results, scenario: &ScenarioResults) -> Judged {
        let measure = self.measure;
        let entry = |name: &str| results.entry(scenario, name);
        let median = |name: &str| Some(entry(name)?.spread(|run| measure.of(run))?.median);
        let (measured, without): (Vec<&String>, Vec<&String>) =
            self.against.iter().partition(|name| median(name).is_some());
        let better = |a: &f64, b: &f64| if measure.more_is_better() { b.total_cmp(a) } else { a.total_cmp(b) };
        let best = measured
            .iter()
            .filter_map(|name| Some((name, median(name)?)))
            .min_by(|(_, a), (_, b)| better(a, b))
            .map(|(name, _)| name.to_string());
        let values: Vec<f64> = match (entry(&self.of), &best) {
            (Some(own), _) if self.against.is_empty() => own.runs.iter().filter_map(|run| measure.of(run)).collect(),
            (Some(own), Some(best)) => entry(best).map(|other| ratios(own, other, measure)).unwrap_or_default(),
            _ => Vec::new(),
        };
        let value = Spread::of(values.iter().copied());
        let (what, unit) = measure.words(scenario.scenario.kind);
        let failed = entry(&self.of).map_or(0, |own| own.errors.len());
        Judged {
            scenario: scenario.scenario.name.clone(),
            measure,
            what,
            unit,
            of: self.of.clone(),
            other: best.as_deref().and_then(median),
            against: best,
            chosen_from: measured.len(),
            without: without.into_iter().cloned().collect(),
            own: median(&self.of),
            value,
            at_most: self.at_most,
            at_least: self.at_least,
            met_in: values.iter().filter(|value| self.meets(**value)).count(),
            repetitions: values.len(),
            failed,
            verdict: match value {
                _ if failed > 0 => Verdict::Missed,
                None => Verdict::NotMeasured,
                Some(value) if self.meets(value.median) => Verdict::Met,
                Some(_) => Verdict::Missed,
            },
        }
    }
}

/// One ratio for each repetition in which both were measured.
fn ratios(own: &Entry, other: &Entry, measure: Measure) -> Vec<f64> {
    own.runs
        .iter()
        .filter_map(|run| {
            let beside = other.runs.iter().find(|beside| beside.repetition == run.repetition)?;
            let ratio = measure.of(run)? / measure.of(beside)?;
            ratio.is_finite().then_some(ratio)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{super::config::Config, *};

    /// Contenders with CPU times, one for each repetition; 0 is a failed one.
    fn results(figures: &[(&str, &[f64])]) -> Results {
        let mut config = Config::parse(super::super::config::DEFAULT).unwrap();
        let mut results = Results::default();
        let mut scenario = config.scenarios.remove(0);
        scenario.name = "s".into();
        let entries = figures.iter().map(|(name, cpu)| {
            let mut entry = Entry::new(name, true);
            for (repetition, &us) in cpu.iter().enumerate().filter(|(_, us)| **us > 0.0) {
                let cpu_us_per_message = Some(us);
                entry.runs.push(Run { repetition, cpu_us_per_message, ..Run::default() });
            }
            entry
        });
        results.scenarios.push(ScenarioResults { scenario, entries: entries.collect() });
        results
    }

    fn goal(against: &[&str], at_most: f64) -> Goal {
        Goal {
            scenarios: vec!["s".into()],
            measure: Measure::Cpu,
            of: "own".into(),
            against: against.iter().map(|name| (*name).into()).collect(),
            at_most: Some(at_most),
            at_least: None,
        }
    }

    #[test]
    fn the_ratio_is_taken_within_each_repetition() {
        // The machine is at half its pace in the second one; the medians alone would say 4 / 5.
        let results = results(&[("own", &[4.0, 8.0, 4.0]), ("good", &[5.0, 10.0, 10.0]), ("bad", &[9.0, 9.0, 9.0])]);
        let judged = &goal(&["bad", "good"], 0.8).judge(&results)[0];
        assert_eq!(judged.against.as_deref(), Some("bad"), "9 is the better median");
        let judged = &goal(&["good"], 0.8).judge(&results)[0];
        assert_eq!(judged.value, Some(Spread { median: 0.8, min: 0.4, max: 0.8 }));
        assert_eq!((judged.verdict, judged.met_in, judged.repetitions), (Verdict::Met, 3, 3));
        assert_eq!(goal(&["good"], 0.79).judge(&results)[0].verdict, Verdict::Missed);
    }

    #[test]
    fn what_failed_is_in_no_ratio_and_who_is_missing_is_named() {
        let results = results(&[("own", &[4.0, 0.0, 4.0]), ("other", &[4.0, 1.0, 0.0]), ("dead", &[0.0])]);
        let judged = &goal(&["other", "dead", "gone"], 1.0).judge(&results)[0];
        assert_eq!((judged.repetitions, judged.verdict), (1, Verdict::Met));
        assert_eq!((judged.chosen_from, judged.without.join(" ")), (1, "dead gone".to_owned()));
        assert_eq!(goal(&["dead", "gone"], 1.0).judge(&results)[0].verdict, Verdict::NotMeasured);
        let mut other = goal(&["other"], 1.0);
        other.of = "dead".into();
        assert_eq!(other.judge(&results)[0].verdict, Verdict::NotMeasured);
    }

    #[test]
    fn with_one_failed_measurement_no_goal_is_met() {
        let mut results = results(&[("own", &[4.0, 4.0]), ("other", &[8.0, 8.0])]);
        assert_eq!(goal(&["other"], 1.0).judge(&results)[0].verdict, Verdict::Met);
        results.scenarios[0].entries[0].errors.push("one byte was wrong".into());
        let judged = &goal(&["other"], 1.0).judge(&results)[0];
        assert_eq!((judged.verdict, judged.failed), (Verdict::Missed, 1));
    }

    #[test]
    fn a_figure_is_judged_as_it_is_shown() {
        let results = results(&[("own", &[1.604])]);
        assert_eq!(goal(&[], 1.6).judge(&results)[0].verdict, Verdict::Met);
        assert_eq!(goal(&[], 1.59).judge(&results)[0].verdict, Verdict::Missed);
        let mut least = goal(&[], 0.0);
        (least.at_most, least.at_least) = (None, Some(1.61));
        assert_eq!(least.judge(&results)[0].verdict, Verdict::Missed);
    }
}
