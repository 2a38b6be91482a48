//! What went wrong with sessions, counted by kind with a few examples each.
use std::collections::BTreeMap;

use serde::Serialize;

/// Texts that are kept for each kind.
const EXAMPLES: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// No TCP connection.
    Connect,
    Tls,
    /// No 101.
    Upgrade,
    /// The relay answered the connect message with an error.
    Refused,
    /// Something else came back than was sent.
    Mismatch,
    /// The peer sent a Close.
    Closed,
    /// The connection ended without a Close.
    Lost,
    /// Messages did not come back.
    Unanswered,
    /// Set-up or Close took too long.
    Timeout,
}

/// Why one session failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: Kind,
    pub text: String,
}

impl Failure {
    pub fn new(kind: Kind, text: String) -> Self {
        Self { kind, text }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    pub count: u64,
    pub examples: Vec<String>,
}

/// All failures of a run.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Failures(pub BTreeMap<Kind, Tally>);

impl Failures {
    pub fn add(&mut self, session: u64, failure: &Failure) {
        let tally = self.0.entry(failure.kind).or_default();
        tally.count += 1;
        if tally.examples.len() < EXAMPLES {
            tally.examples.push(format!("session {session}: {}", failure.text));
        }
    }

    pub fn merge(&mut self, other: &Self) {
        for (kind, theirs) in &other.0 {
            let ours = self.0.entry(*kind).or_default();
            ours.count += theirs.count;
            let room = EXAMPLES.saturating_sub(ours.examples.len());
            ours.examples.extend(theirs.examples.iter().take(room).cloned());
        }
    }

    pub fn count(&self) -> u64 {
        self.0.values().map(|tally| tally.count).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
