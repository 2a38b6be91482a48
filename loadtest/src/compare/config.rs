//! The file that says what is measured, and of whom.
use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::cli::Size;

/// What is measured unless a file says otherwise.
pub const DEFAULT: &str = include_str!("../../compare.toml");
/// All that ringway is meant to reach.
pub const GOALS: &str = include_str!("../../compare-goals.toml");

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub run: Run,
    /// Names for lists of contenders; a list may name other lists.
    #[serde(default)]
    pub groups: BTreeMap<String, Vec<String>>,
    #[serde(rename = "scenario")]
    pub scenarios: Vec<Scenario>,
    #[serde(default, rename = "goal")]
    pub goals: Vec<Goal>,
    #[serde(rename = "contender")]
    pub contenders: Vec<Contender>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    pub repetitions: usize,
    #[serde(deserialize_with = "duration", serialize_with = "write_duration")]
    pub warmup: Duration,
    #[serde(deserialize_with = "duration", serialize_with = "write_duration")]
    pub duration: Duration,
    /// Cores that load, contender and echo target are pinned to; without one they run where they like.
    pub load_core: Option<usize>,
    pub relay_core: Option<usize>,
    pub echo_core: Option<usize>,
    /// The contender that others are put in relation to.
    pub baseline: String,
    /// The contender that shows what cannot be undercut.
    pub floor: String,
    /// How long all of it may take, unless the command line says otherwise.
    #[serde(default, deserialize_with = "some_duration", serialize_with = "write_some_duration")]
    pub budget: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Closed loop: CPU time of a message.
    Throughput,
    /// Open loop: latencies.
    Latency,
    /// Memory of a session.
    Idle,
    /// Sessions opened and closed, with one message on each: what that costs.
    Storm,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    pub kind: Kind,
    /// Scenarios of one section stand side by side in the report.
    #[serde(default)]
    pub section: String,
    /// Who is asked, contenders or groups of them; all if there is nobody.
    #[serde(default)]
    pub contenders: Vec<String>,
    pub size: String,
    pub sessions: usize,
    #[serde(default = "one")]
    pub window: u64,
    /// Messages a second, of `latency`.
    pub rate: Option<f64>,
    pub repetitions: Option<usize>,
    #[serde(default, deserialize_with = "some_duration", serialize_with = "write_some_duration")]
    pub duration: Option<Duration>,
    /// Whom others are put in relation to, where it is not those of the run.
    pub baseline: Option<String>,
    pub floor: Option<String>,
    /// Cores, where they are others than the run's.
    pub load_core: Option<usize>,
    pub relay_core: Option<usize>,
    pub echo_core: Option<usize>,
}

/// What is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Measure {
    /// CPU time of a message, or of a session in a storm.
    #[serde(rename = "cpu")]
    Cpu,
    #[serde(rename = "p50")]
    P50,
    #[serde(rename = "p99")]
    P99,
    #[serde(rename = "p99.9")]
    P999,
    /// The median p99 of tenths of the measured time: of its second half as a multiple of that of the first.
    #[serde(rename = "p99_drift")]
    P99Drift,
    /// User memory of a session.
    #[serde(rename = "memory")]
    Memory,
    /// Sessions set up a second.
    #[serde(rename = "setups")]
    Setups,
}

/// What is wanted of a contender, in relation to others or as it is.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    /// Each is judged for itself.
    pub scenarios: Vec<String>,
    pub measure: Measure,
    /// The contender that is judged.
    pub of: String,
    /// Contenders or groups: it is put in relation to the best of them; if there is nobody, the figure itself counts.
    #[serde(default)]
    pub against: Vec<String>,
    pub at_most: Option<f64>,
    pub at_least: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// No process: the echo target itself.
    Direct,
    /// Passes on whatever comes.
    #[default]
    Plain,
    /// Takes the connect message at /ws.
    Message,
    /// Takes the target in the query at /ws.
    Transparent,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Contender {
    pub name: String,
    pub title: String,
    #[serde(default)]
    pub form: Form,
    /// It speaks TLS; server.crt, server.key and server.pem (both) are in its folder.
    #[serde(default)]
    pub tls: bool,
    /// So does the echo target behind it, with the same certificate.
    #[serde(default)]
    pub target_tls: bool,
    #[serde(default)]
    pub program: String,
    #[serde(default)]
    pub command: Vec<String>,
    /// Arguments that make the program tell its version.
    #[serde(default)]
    pub version: Vec<String>,
    /// An address whose `/readyz` answers 200 once it is ready, where listening is not enough.
    #[serde(default)]
    pub ready: Option<String>,
    /// Files that must be there, or it is left out.
    #[serde(default)]
    pub needs: Vec<String>,
    #[serde(default)]
    pub files: BTreeMap<String, String>,
}

fn twice<'a>(names: &[&'a str]) -> Option<&'a str> {
    names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)).map(|(_, name)| *name)
}

fn one() -> u64 {
    1
}

fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(input)?;
    humantime::parse_duration(&text).map_err(|error| D::Error::custom(format!("{text:?} is no duration: {error}")))
}

fn some_duration<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    duration(input).map(Some)
}

fn write_duration<S: serde::Serializer>(value: &Duration, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(&humantime::format_duration(*value).to_string())
}

fn write_some_duration<S: serde::Serializer>(value: &Option<Duration>, out: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => write_duration(value, out),
        None => out.serialize_none(),
    }
}

impl Config {
    /// Reads a file, or a text that is built in.
    ///
    /// # Errors
    /// It cannot be read, or does not make sense; the error says what.
    pub fn load(file: Option<&Path>, built_in: &str) -> anyhow::Result<Self> {
        let Some(file) = file else { return Self::parse(built_in).context("the built-in file") };
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("{}", file.display()))
    }

    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        ensure!(config.run.repetitions > 0, "repetitions must be 1 or more");
        ensure!(!config.scenarios.is_empty(), "no [[scenario]]");
        ensure!(!config.contenders.is_empty(), "no [[contender]]");
        for scenario in &config.scenarios {
            config.check_scenario(scenario).with_context(|| format!("scenario {:?}", scenario.name))?;
        }
        let names: Vec<&str> = config.scenarios.iter().map(|scenario| scenario.name.as_str()).collect();
        if let Some(name) = twice(&names) {
            bail!("scenario {name:?} is there twice");
        }
        for contender in &config.contenders {
            let name = &contender.name;
            ensure!(
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)),
                "contender {name:?}: a name has letters, digits, '-', '_' and '.'"
            );
            ensure!(contender.form == Form::Direct || !contender.program.is_empty(), "contender {name:?}: no program");
            for file in contender.files.keys() {
                ensure!(
                    Path::new(file).components().count() == 1 && !file.starts_with('.') && !file.starts_with("server."),
                    "contender {name:?}: {file:?} is not the name of a file in its folder"
                );
            }
        }
        let names: Vec<&str> = config.contenders.iter().map(|contender| contender.name.as_str()).collect();
        if let Some(name) = twice(&names) {
            bail!("contender {name:?} is there twice");
        }
        for (name, members) in &config.groups {
            ensure!(!names.contains(&name.as_str()), "{name:?} is a contender and a group");
            config.members(members).with_context(|| format!("group {name:?}"))?;
        }
        for goal in &config.goals {
            let scenarios = goal.scenarios.join("; ");
            config.check_goal(goal).with_context(|| format!("goal of {} in {scenarios:?}", goal.of))?;
        }
        Ok(config)
    }

    fn check_scenario(&self, scenario: &Scenario) -> anyhow::Result<()> {
        scenario.size()?;
        ensure!(scenario.sessions > 0, "sessions must be 1 or more");
        ensure!((1..=1024).contains(&scenario.window), "window must be 1 to 1024");
        let rated = scenario.rate.is_some_and(|rate| rate > 0.0 && rate <= 1e9);
        ensure!(rated || scenario.kind != Kind::Latency, "latency needs a rate");
        let marks: Vec<String> = scenario.baseline.iter().chain(&scenario.floor).cloned().collect();
        self.members(&marks)?;
        self.members(&scenario.contenders).map(drop)
    }

    fn check_goal(&self, goal: &Goal) -> anyhow::Result<()> {
        ensure!(self.contenders.iter().any(|contender| contender.name == goal.of), "{:?} is no contender", goal.of);
        ensure!(goal.at_most.is_some() != goal.at_least.is_some(), "give at_most or at_least");
        self.members(&goal.against)?;
        ensure!(!goal.scenarios.is_empty(), "no scenarios");
        for name in &goal.scenarios {
            let scenario = self.scenarios.iter().find(|scenario| scenario.name == *name);
            let scenario = scenario.with_context(|| format!("no scenario is called {name:?}"))?;
            let fits = match goal.measure {
                Measure::Cpu => scenario.kind != Kind::Idle,
                Measure::P50 | Measure::P99 | Measure::P999 | Measure::P99Drift => scenario.kind == Kind::Latency,
                Measure::Memory => scenario.kind == Kind::Idle,
                Measure::Setups => scenario.kind == Kind::Storm,
            };
            ensure!(fits, "scenario {name:?} does not measure that");
            for asked in self.members(&goal.against)?.iter().chain([&goal.of]) {
                ensure!(self.takes_part(asked, scenario), "{asked} does not take part in {name:?}");
            }
        }
        Ok(())
    }

    /// The contenders that a list means, each once.
    ///
    /// # Errors
    /// A name is neither a contender's nor a group's.
    pub fn members(&self, list: &[String]) -> anyhow::Result<Vec<String>> {
        let mut found: Vec<String> = Vec::new();
        let mut seen: Vec<&String> = Vec::new();
        let mut open: Vec<&String> = list.iter().rev().collect();
        while let Some(name) = open.pop() {
            if let Some(members) = self.groups.get(name) {
                // Once is enough, also where a group names itself.
                if !seen.contains(&name) {
                    seen.push(name);
                    open.extend(members.iter().rev());
                }
            } else {
                let known = self.contenders.iter().any(|contender| contender.name == *name);
                ensure!(known, "{name:?} is no contender and no group");
                if !found.contains(name) {
                    found.push(name.clone());
                }
            }
        }
        Ok(found)
    }

    /// Whether a scenario is asked of a contender.
    pub fn takes_part(&self, contender: &str, scenario: &Scenario) -> bool {
        scenario.contenders.is_empty()
            || self.members(&scenario.contenders).is_ok_and(|members| members.iter().any(|name| name == contender))
    }

    /// Leaves only those that a user named.
    ///
    /// # Errors
    /// A name fits none.
    pub fn select(&mut self, contenders: &[String], scenarios: &[String]) -> anyhow::Result<()> {
        for wanted in contenders {
            let known = self.contenders.iter().any(|contender| contender.name == *wanted);
            let names: Vec<&str> = self.contenders.iter().map(|contender| contender.name.as_str()).collect();
            ensure!(known, "no contender is called {wanted:?}; there are {}", names.join(", "));
        }
        for wanted in scenarios {
            let known = self.scenarios.iter().any(|scenario| scenario.name.contains(wanted));
            let names: Vec<&str> = self.scenarios.iter().map(|scenario| scenario.name.as_str()).collect();
            ensure!(known, "no scenario has {wanted:?} in its name; there are {}", names.join("; "));
        }
        // Who takes part, and who is compared, is settled before anybody goes.
        for at in 0..self.scenarios.len() {
            let takes_part = |contender: &&Contender| self.takes_part(&contender.name, &self.scenarios[at]);
            let names = self.contenders.iter().filter(takes_part).map(|contender| contender.name.clone()).collect();
            self.scenarios[at].contenders = names;
        }
        for at in 0..self.goals.len() {
            self.goals[at].against = self.members(&self.goals[at].against)?;
        }
        self.groups.clear();
        let named = |name: &String| contenders.is_empty() || contenders.contains(name);
        let meant = |name: &String| scenarios.is_empty() || scenarios.iter().any(|wanted| name.contains(wanted));
        self.contenders.retain(|contender| named(&contender.name));
        self.scenarios.retain_mut(|scenario| {
            scenario.contenders.retain(named);
            meant(&scenario.name) && !scenario.contenders.is_empty()
        });
        ensure!(!self.scenarios.is_empty(), "none of these contenders takes part in any of these scenarios");
        self.goals.iter_mut().for_each(|goal| goal.scenarios.retain(meant));
        self.goals.retain(|goal| !goal.scenarios.is_empty() && named(&goal.of));
        self.contenders.retain(|contender| self.scenarios.iter().any(|s| s.contenders.contains(&contender.name)));
        Ok(())
    }
}

impl Run {
    /// The cores of load generator and relay in a scenario.
    pub fn load_and_relay(&self, scenario: &Scenario) -> (Option<usize>, Option<usize>) {
        (scenario.load_core.or(self.load_core), scenario.relay_core.or(self.relay_core))
    }
}

impl Scenario {
    /// # Errors
    /// It is no size.
    pub fn size(&self) -> anyhow::Result<Size> {
        self.size.parse().map_err(anyhow::Error::msg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_here_are_valid_and_have_their_marks() {
        for file in [DEFAULT, GOALS] {
            let config = Config::parse(file).unwrap();
            for name in [&config.run.baseline, &config.run.floor] {
                assert!(config.contenders.iter().any(|contender| contender.name == *name), "{name}");
            }
        }
    }

    #[test]
    fn what_does_not_make_sense() {
        let change = |from: &str, to: &str| {
            assert!(DEFAULT.contains(from), "{from}");
            format!("{:#}", Config::parse(&DEFAULT.replacen(from, to, 1)).unwrap_err())
        };
        assert!(change("kind = \"throughput\"", "kind = \"speed\"").contains("unknown variant"));
        assert!(change("rate = 5000\n", "").contains("latency needs a rate"));
        assert!(change("size = \"64\"", "size = \"big\"").contains("64 B, 1 session"));
        assert!(change("name = \"bare-copier-splice\"", "name = \"bare-copier\"").contains("there twice"));
        assert!(change("\"gateway.toml\" =", "\"../gateway.toml\" =").contains("is not the name of a file"));
        assert!(change("1500ms", "1500").contains("is no duration"));
        assert!(change("sessions = 1\n", "session = 1\n").contains("unknown field"));
    }

    #[test]
    fn selection() {
        let mut config = Config::parse(DEFAULT).unwrap();
        config.select(&["direct".into()], &["64 B, 100".into()]).unwrap();
        assert_eq!((config.contenders.len(), config.scenarios.len(), config.goals.len()), (1, 3, 0));
        assert!(config.select(&["nobody".into()], &[]).is_err());
    }

    #[test]
    fn who_is_not_asked_is_not_there() {
        let mut config = Config::parse(GOALS).unwrap();
        config.select(&[], &["two hops, 64 B".into()]).unwrap();
        let names: Vec<&str> = config.contenders.iter().map(|contender| contender.name.as_str()).collect();
        assert_eq!(names, ["bare-copier-pair", "ringway-pair", "haproxy-tcp-pair", "nginx-stream-pair"]);
        assert_eq!((config.scenarios.len(), config.goals.len()), (1, 3));

        let mut config = Config::parse(GOALS).unwrap();
        config.select(&["ringway".into(), "haproxy-tcp".into()], &["64 B, 100 sessions".into()]).unwrap();
        // The groups are gone, those whom they meant are still known to be missing.
        let best = config.goals.iter().find(|goal| goal.at_most == Some(0.88)).unwrap();
        assert!(best.against.contains(&"envoy-http".to_owned()), "{best:?}");
        let error = config.select(&["haproxy-tcp".into()], &["TLS".into()]).unwrap_err();
        assert!(error.to_string().contains("no scenario has"), "{error}");
    }

    #[test]
    fn groups_name_groups_and_nobody_twice() {
        let text =
            DEFAULT.replacen("peers = [", "all = [\"ringway\", \"peers\", \"nginx-http\", \"all\"]\npeers = [", 1);
        let config = Config::parse(&text).unwrap();
        let all = config.members(&["all".into()]).unwrap();
        assert_eq!(all, ["ringway", "haproxy-tcp", "haproxy-splice", "haproxy-http", "nginx-stream", "nginx-http"]);
    }

    #[test]
    fn goals_that_cannot_be_judged() {
        let change = |from: &str, to: &str| {
            assert!(DEFAULT.contains(from), "{from}");
            format!("{:#}", Config::parse(&DEFAULT.replacen(from, to, 1)).unwrap_err())
        };
        assert!(change("peers = [\"haproxy-tcp\"", "peers = [\"squid\"").contains("\"squid\" is no contender"));
        assert!(change("peers = [", "ringway = []\npeers = [").contains("a contender and a group"));
        assert!(change("at_most = 1.1", "").contains("at_most or at_least"));
        assert!(change("at_most = 1.1", "at_most = 1.1\nat_least = 1").contains("at_most or at_least"));
        assert!(change("measure = \"cpu\"", "measure = \"p99\"").contains("does not measure that"));
        assert!(change("of = \"ringway\"", "of = \"x\"").contains("\"x\" is no contender"));
        assert!(change("scenarios = [\"64 B, 1 s", "scenarios = [\"65 B, 1 s").contains("no scenario is called"));
        let left = "kind = \"throughput\"\ncontenders = [\"ringway\"]";
        assert!(change("kind = \"throughput\"", left).contains("haproxy-tcp does not take part"));
    }
}
