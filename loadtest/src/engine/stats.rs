//! What a run has measured.
use hdrhistogram::Histogram;
use serde::Serialize;

use super::failure::Failures;
use crate::clock::SECOND;

/// Three digits from 1 µs on, up to an hour; values are nanoseconds.
#[allow(clippy::expect_used)]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 3600 * SECOND, 3).expect("these bounds are valid")
}

/// Time from stage to stage of sessions' set-up.
#[derive(Debug)]
pub struct Stages {
    pub tcp: Histogram<u64>,
    pub tls: Histogram<u64>,
    pub upgrade: Histogram<u64>,
    pub connected: Histogram<u64>,
    /// From the first SYN until messages may flow.
    pub total: Histogram<u64>,
}

impl Default for Stages {
    fn default() -> Self {
        let [tcp, tls, upgrade, connected, total] = std::array::from_fn(|_| histogram());
        Self { tcp, tls, upgrade, connected, total }
    }
}

impl Stages {
    pub fn each(&self) -> [(&'static str, &Histogram<u64>); 5] {
        [
            ("tcp", &self.tcp),
            ("tls", &self.tls),
            ("upgrade", &self.upgrade),
            ("connected", &self.connected),
            ("total", &self.total),
        ]
    }
}

/// Counts of one thread, or of all.
#[derive(Debug)]
pub struct Stats {
    /// Messages inside the measured time.
    pub messages: u64,
    /// All messages that came back as they were sent, and their payload bytes.
    pub verified_messages: u64,
    pub verified_bytes: u64,
    /// Messages that never came back, and that could not be sent because their session was gone.
    pub unanswered: u64,
    pub unsent: u64,
    pub opened: u64,
    pub closed: u64,
    pub failures: Failures,
    pub latency: Histogram<u64>,
    /// How late messages were handed to the kernel although their socket had room.
    pub lag: Histogram<u64>,
    pub stages: Stages,
    /// CPU time of the thread as a share of time, and the share it waited for a core; of the worst thread.
    pub busy: f64,
    pub waited: f64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            messages: 0,
            verified_messages: 0,
            verified_bytes: 0,
            unanswered: 0,
            unsent: 0,
            opened: 0,
            closed: 0,
            failures: Failures::default(),
            latency: histogram(),
            lag: histogram(),
            stages: Stages::default(),
            busy: 0.0,
            waited: 0.0,
        }
    }
}

impl Stats {
    pub fn merge(&mut self, other: &Self) {
        self.messages += other.messages;
        self.verified_messages += other.verified_messages;
        self.verified_bytes += other.verified_bytes;
        self.unanswered += other.unanswered;
        self.unsent += other.unsent;
        self.opened += other.opened;
        self.closed += other.closed;
        self.failures.merge(&other.failures);
        // All have the same bounds, so adding cannot fail.
        let _ = self.latency.add(&other.latency);
        let _ = self.lag.add(&other.lag);
        let ours = &mut self.stages;
        for (ours, theirs) in [&mut ours.tcp, &mut ours.tls, &mut ours.upgrade, &mut ours.connected, &mut ours.total]
            .into_iter()
            .zip(other.stages.each())
        {
            let _ = ours.add(theirs.1);
        }
        self.busy = self.busy.max(other.busy);
        self.waited = self.waited.max(other.waited);
    }
}

/// One point of a percentile curve.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Point {
    pub percentile: f64,
    pub us: f64,
    /// Values up to here.
    pub count: u64,
}

/// A distribution, for a report. Times in microseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Distribution {
    pub count: u64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub curve: Vec<Point>,
}

impl Distribution {
    pub fn new(histogram: &Histogram<u64>) -> Self {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            count: histogram.len(),
            mean_us: if histogram.is_empty() { 0.0 } else { histogram.mean() / 1e3 },
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max() as f64 / 1e3,
            curve: Vec::new(),
        }
    }

    /// With the curve as HdrHistogram plots it: ever finer towards 100 %.
    pub fn with_curve(histogram: &Histogram<u64>) -> Self {
        let curve = histogram.iter_quantiles(10).map(|value| Point {
            percentile: value.quantile_iterated_to() * 100.0,
            us: value.value_iterated_to() as f64 / 1e3,
            count: histogram.count_between(0, value.value_iterated_to()),
        });
        Self { curve: curve.collect(), ..Self::new(histogram) }
    }
}
