//! The file that says what is measured, and of whom.
use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::cli::Size;

/// What is measured unless a file says otherwise.
pub const DEFAULT: &str = include_str!("../../compare.toml");

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub run: Run,
    #[serde(rename = "scenario")]
    pub scenarios: Vec<Scenario>,
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
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    pub kind: Kind,
    pub size: String,
    pub sessions: usize,
    #[serde(default = "one")]
    pub window: u64,
    /// Messages a second, of `latency`.
    pub rate: Option<f64>,
    pub repetitions: Option<usize>,
    #[serde(default, deserialize_with = "some_duration", serialize_with = "write_some_duration")]
    pub duration: Option<Duration>,
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
    /// Reads a file, or the one that is built in.
    ///
    /// # Errors
    /// It cannot be read, or does not make sense; the error says what.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(file) = file else { return Self::parse(DEFAULT).context("the built-in file") };
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("{}", file.display()))
    }

    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        ensure!(config.run.repetitions > 0, "repetitions must be 1 or more");
        ensure!(!config.scenarios.is_empty(), "no [[scenario]]");
        ensure!(!config.contenders.is_empty(), "no [[contender]]");
        for scenario in &config.scenarios {
            let name = &scenario.name;
            scenario.size().with_context(|| format!("scenario {name:?}"))?;
            ensure!(scenario.sessions > 0, "scenario {name:?}: sessions must be 1 or more");
            ensure!((1..=1024).contains(&scenario.window), "scenario {name:?}: window must be 1 to 1024");
            let rated = scenario.rate.is_some_and(|rate| rate > 0.0 && rate <= 1e9);
            ensure!(rated || scenario.kind != Kind::Latency, "scenario {name:?}: latency needs a rate");
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
        if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
            bail!("contender {:?} is there twice", twice.1);
        }
        Ok(config)
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
        if !contenders.is_empty() {
            self.contenders.retain(|contender| contenders.contains(&contender.name));
        }
        if !scenarios.is_empty() {
            self.scenarios.retain(|scenario| scenarios.iter().any(|wanted| scenario.name.contains(wanted)));
        }
        Ok(())
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
        for file in [DEFAULT, include_str!("../../compare-more.toml")] {
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
        assert_eq!((config.contenders.len(), config.scenarios.len()), (1, 3));
        assert!(config.select(&["nobody".into()], &[]).is_err());
    }
}
