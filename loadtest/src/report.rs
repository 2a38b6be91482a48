//! What a run reports: as JSON for programs, as a few lines for people.
use std::fmt::Write as _;

use serde::Serialize;

use crate::engine::{
    failure::Failures,
    stats::{Distribution, Stats},
};

/// Shares of a thread's time, and delays, from which on the load generator may be what limits.
const BUSY_LIMIT: f64 = 0.9;
const WAITED_LIMIT: f64 = 0.1;
const LAG_LIMIT_US: f64 = 1_000.0;

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub command: String,
    pub version: &'static str,
    pub ok: bool,
    pub route: String,
    pub sessions: usize,
    pub threads: usize,
    pub size_min: usize,
    pub size_max: usize,
    pub seed: u64,
    /// The measured time.
    pub seconds: f64,
    /// Echoes of the measured time, and a second of it.
    pub messages: u64,
    pub messages_per_second: f64,
    pub payload_mib_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted_per_second: Option<f64>,
    pub verified_messages: u64,
    pub verified_bytes: u64,
    pub unanswered: u64,
    pub unsent: u64,
    pub sessions_opened: u64,
    pub sessions_closed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions_per_second: Option<f64>,
    pub failures: Failures,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Distribution>,
    /// "intended": from when a message was due. "sent": from when it went out.
    pub latency_from: &'static str,
    pub stages: Vec<Stage>,
    pub own: Own,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay: Option<Relay>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub intervals: Vec<IntervalReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
    pub warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Stage {
    pub stage: &'static str,
    #[serde(flatten)]
    pub time: Distribution,
}

/// The load generator itself.
#[derive(Debug, Default, Serialize)]
pub struct Own {
    /// CPU time of all its threads in the measured time.
    pub cpu_s: f64,
    pub cpu_us_per_message: f64,
    /// Of its busiest thread: the share of time with a core, and waiting for one.
    pub busiest_thread: f64,
    pub waited_for_core: f64,
    /// How late messages were handed to the kernel.
    pub schedule_lag: Distribution,
}

/// The process named with `--relay-pid`, with its children.
#[derive(Debug, Default, Serialize)]
pub struct Relay {
    pub cpu_s: f64,
    /// For each one-way message: an echo is two.
    pub cpu_us_per_one_way_message: f64,
    pub pss_before_kib: u64,
    pub pss_with_sessions_kib: u64,
    pub pss_after_kib: u64,
    pub kib_per_session: f64,
}

#[derive(Debug, Serialize)]
pub struct IntervalReport {
    pub at_s: f64,
    pub latency: Distribution,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay_pss_kib: Option<u64>,
}

/// Slopes of straight lines through the intervals' values, for each hour.
#[derive(Debug, Serialize)]
pub struct Drift {
    pub p50_us_per_hour: f64,
    pub p99_us_per_hour: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay_pss_kib_per_hour: Option<f64>,
}

impl Report {
    /// Takes over what was counted, and warns where the ruler may be what was measured.
    pub fn count(&mut self, stats: &Stats) {
        self.messages = stats.messages;
        self.verified_messages = stats.verified_messages;
        self.verified_bytes = stats.verified_bytes;
        self.unanswered = stats.unanswered;
        self.unsent = stats.unsent;
        self.sessions_opened = stats.opened;
        self.sessions_closed = stats.closed;
        self.failures = stats.failures.clone();
        self.messages_per_second = stats.messages as f64 / self.seconds.max(1e-9);
        let mean_size = (self.size_min + self.size_max) as f64 / 2.0;
        self.payload_mib_per_second = self.messages_per_second * mean_size / f64::from(1 << 20);
        self.own.cpu_us_per_message = self.own.cpu_s * 1e6 / stats.messages.max(1) as f64;
        self.own.busiest_thread = stats.busy;
        self.own.waited_for_core = stats.waited;
        self.own.schedule_lag = Distribution::new(&stats.lag);
        if !stats.latency.is_empty() {
            self.latency = Some(Distribution::with_curve(&stats.latency));
        }
        self.stages = stats
            .stages
            .each()
            .into_iter()
            .filter(|(_, histogram)| !histogram.is_empty())
            .map(|(stage, histogram)| Stage { stage, time: Distribution::new(histogram) })
            .collect();
        self.ok = stats.failures.is_empty() && stats.unanswered == 0 && stats.unsent == 0 && stats.opened > 0;
        self.warn();
    }

    fn warn(&mut self) {
        let own = &self.own;
        if own.busiest_thread > BUSY_LIMIT {
            self.warnings.push(format!(
                "a thread of the load generator was busy {:.0} % of the time: it, not the relay, may be the limit",
                own.busiest_thread * 100.0
            ));
        }
        if own.waited_for_core > WAITED_LIMIT {
            self.warnings.push(format!(
                "a thread of the load generator waited for a core {:.0} % of the time: it shares cores with others",
                own.waited_for_core * 100.0
            ));
        }
        if own.schedule_lag.p99_us > LAG_LIMIT_US {
            self.warnings.push(format!(
                "1 % of the messages were sent {} late or later by the load generator itself; their latencies contain that",
                time(own.schedule_lag.p99_us)
            ));
        }
        let wanted = self.wanted_per_second.filter(|_| self.sessions_opened > 0);
        if let Some(wanted) = wanted.filter(|wanted| self.messages_per_second < wanted * 0.99) {
            let got = self.messages_per_second;
            self.warnings
                .push(format!("{got:.0} messages a second came back of {wanted:.0} that were meant to go out"));
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{} of {}", self.command, self.route)?;
        let size = if self.size_min == self.size_max {
            format!("{} B", self.size_min)
        } else {
            format!("{} to {} B", self.size_min, self.size_max)
        };
        writeln!(
            out,
            "  sessions    {} opened, {} closed, {} threads, payload {size}",
            self.sessions_opened, self.sessions_closed, self.threads
        )?;
        if let Some(rate) = self.sessions_per_second {
            writeln!(out, "  rate        {rate:.0} sessions a second")?;
        }
        if self.messages > 0 {
            let (rate, volume) = (self.messages_per_second, self.payload_mib_per_second);
            writeln!(
                out,
                "  messages    {} in {:.1} s, {rate:.0}/s, {volume:.1} MiB/s of payload",
                self.messages, self.seconds
            )?;
        }
        writeln!(out, "  verified    {} messages, {} bytes", self.verified_messages, self.verified_bytes)?;
        if let Some(latency) = &self.latency {
            writeln!(
                out,
                "  latency     {}   (from {})",
                line(latency),
                match self.latency_from {
                    "intended" => "when each message was due",
                    _ => "when each message was sent; closed loop",
                }
            )?;
        }
        for stage in &self.stages {
            writeln!(out, "  {:<11} {}", stage.stage, line(&stage.time))?;
        }
        if let Some(relay) = &self.relay {
            if relay.cpu_us_per_one_way_message > 0.0 {
                writeln!(
                    out,
                    "  relay CPU   {:.2} s, {:.2} µs for each one-way message",
                    relay.cpu_s, relay.cpu_us_per_one_way_message
                )?;
            }
            writeln!(
                out,
                "  relay PSS   {} KiB before, {} with sessions ({:.2} KiB each), {} after",
                relay.pss_before_kib, relay.pss_with_sessions_kib, relay.kib_per_session, relay.pss_after_kib
            )?;
        }
        if let Some(drift) = &self.drift {
            write!(
                out,
                "  drift       p50 {:+.1} µs, p99 {:+.1} µs an hour",
                drift.p50_us_per_hour, drift.p99_us_per_hour
            )?;
            match drift.relay_pss_kib_per_hour {
                Some(pss) => writeln!(out, ", relay PSS {pss:+.0} KiB an hour")?,
                None => writeln!(out)?,
            }
        }
        writeln!(
            out,
            "  generator   {:.2} s CPU, busiest thread {:.0} %, late p99 {}",
            self.own.cpu_s,
            self.own.busiest_thread * 100.0,
            time(self.own.schedule_lag.p99_us)
        )?;
        for (kind, tally) in &self.failures.0 {
            writeln!(out, "  FAILED      {} x {kind:?}", tally.count)?;
            for example in &tally.examples {
                writeln!(out, "              {example}")?;
            }
        }
        if self.unsent > 0 {
            writeln!(out, "  FAILED      {} messages were not sent, because their sessions were gone", self.unsent)?;
        }
        for warning in &self.warnings {
            writeln!(out, "  warning     {warning}")?;
        }
        Ok(())
    }
}

fn line(times: &Distribution) -> String {
    let [p50, p90, p99, p999, max] = [times.p50_us, times.p90_us, times.p99_us, times.p999_us, times.max_us].map(time);
    format!("p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p999}, max {max}")
}

/// Microseconds, for people.
pub fn time(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.2} s", us / 1e6),
        us if us >= 1e4 => format!("{:.1} ms", us / 1e3),
        us if us >= 1e3 => format!("{:.2} ms", us / 1e3),
        us => format!("{us:.0} µs"),
    }
}

/// Slope of the line with the least squares through points; 0 for fewer than two.
pub fn slope(points: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let count = points.clone().count() as f64;
    if count < 2.0 {
        return 0.0;
    }
    let (sum_x, sum_y) = points.clone().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (mean_x, mean_y) = (sum_x / count, sum_y / count);
    let (over, under) =
        points.fold((0.0, 0.0), |(o, u), (x, y)| (o + (x - mean_x) * (y - mean_y), u + (x - mean_x).powi(2)));
    if under == 0.0 { 0.0 } else { over / under }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes() {
        assert_eq!(slope([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)].into_iter()), 2.0);
        assert_eq!(slope([(1.0, 1.0)].into_iter()), 0.0);
        assert_eq!(slope([(1.0, 1.0), (1.0, 2.0)].into_iter()), 0.0);
    }
}
