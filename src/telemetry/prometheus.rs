//! The counters as Prometheus reads them: text format 0.0.4. Every series is there from the start, with 0, so that
//! rates and alerts work before the first event. Labels come from fixed lists, but for the slugs of agents, which the
//! operator's own files bound.
use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet, prometheus_text},
    metrics::MetricType,
    registry::Registry,
};

use super::counters::{self, BOUNDS, Bytes, Stage, Stock, WorkerCounters};
use crate::protocol::{frame::Opcode, session::Side};

pub use prometheus_text::CONTENT_TYPE;

/// What a process exports, at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub workers: Vec<Arc<WorkerCounters>>,
    pub driver: &'static str,
    pub agents: Vec<AgentCounts>,
    /// Sessions that went to another agent, unseen by the client.
    pub failovers: u64,
    /// Connections without a validated connect message.
    pub pending: u64,
    pub draining: bool,
    /// Of an agent that is linked to gateways. It has no clients of its own, so what is said of those is left out.
    pub gateways: Option<Vec<LinkedGateway>>,
    pub log_lines_dropped: u64,
}

/// A gateway that an agent is linked to.
#[derive(Debug)]
pub struct LinkedGateway {
    /// Host and port.
    pub name: String,
    pub up: bool,
    pub channels_ready: u64,
}

/// The agents of one slug.
#[derive(Debug, Default)]
pub struct AgentCounts {
    pub slug: String,
    pub up: bool,
    pub sessions: u64,
    /// Data channels that are ready.
    pub idle_channels: u64,
}

const DIRECTIONS: [(Side, &str); 2] = [(Side::Client, "client_to_target"), (Side::Target, "target_to_client")];
const SIDES: [(Side, &str); 2] = [(Side::Client, "client"), (Side::Target, "target")];

/// The text of a scrape.
///
/// # Errors
/// The text could not be made, which nothing here gives a reason for.
pub fn text(snapshot: Snapshot) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("ringway");
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = Family { encoder: &mut encoder };
        let sum = |read: &dyn Fn(&WorkerCounters) -> u64| self.workers.iter().map(|worker| read(worker)).sum::<u64>();

        let active = sum(&|worker| worker.sessions.get());
        family.gauges("sessions_active", "Sessions, from a validated connect message on", [(NoLabels, active)])?;
        let outcomes = self.summed(|worker| worker.outcomes().collect());
        let outcomes = outcomes.into_iter().map(|(outcome, count)| ([("outcome", outcome)], count));
        family.counters("sessions", "Connect messages, by what became of them", outcomes)?;

        let mut frames: Vec<([(&str, &str); 2], u64)> = Vec::new();
        for (side, direction) in DIRECTIONS {
            for opcode in 0..16 {
                let labels = [("direction", direction), ("opcode", counters::opcode_label(Opcode(opcode)))];
                let count = sum(&|worker| worker.frames[side as usize][usize::from(opcode)].get());
                match frames.iter_mut().find(|(known, _)| *known == labels) {
                    Some((_, counted)) => *counted += count,
                    None => frames.push((labels, count)),
                }
            }
        }
        family.counters("frames", "Frames that passed, when their header did", frames)?;
        let by_direction = |bytes: fn(&WorkerCounters) -> &Bytes| {
            DIRECTIONS.map(|(side, direction)| ([("direction", direction)], sum(&|worker| bytes(worker).get(side))))
        };
        let bytes = by_direction(|worker| &worker.bytes);
        family.counters("bytes", "Bytes of frames that passed, headers included", bytes)?;
        let spliced = by_direction(|worker| &worker.spliced);
        family.counters("spliced_bytes", "Those among them that were never in user space", spliced)?;
        let stock = |stock: fn(&WorkerCounters) -> &Stock| {
            let states = [("lent", Stock::lent as fn(&Stock) -> u64), ("free", Stock::free)];
            states.map(|(state, read)| ([("state", state)], sum(&|worker| read(stock(worker)))))
        };
        let buffers = stock(|worker| &worker.buffers);
        family.gauges("relay_buffers", "Receive buffers of 64 KiB, lent to connections or free", buffers)?;
        let pipes = stock(|worker| &worker.pipes);
        family.gauges("relay_pipes", "Pipes for large frames, lent to sessions or free", pipes)?;

        let places = SIDES.into_iter().flat_map(|side| (0..counters::CLOSE_CODES).map(move |at| (side, at)));
        let closes = places.map(|((side, name), at)| {
            let labels = [("side", name.to_owned()), ("code", counters::close_code_label(at))];
            (labels, sum(&|worker| worker.closes[side as usize][at].get()))
        });
        family.counters("closes", "Closes sent to each side, forwarded or made here, by code", closes)?;

        self.connect_seconds(&mut family)?;

        match &self.gateways {
            Some(gateways) => links(gateways, &mut family)?,
            None => self.clients(&mut family)?,
        }

        let sessions = self.by_worker(|worker| worker.sessions.get());
        family.gauges("worker_sessions", "Sessions of each worker", sessions)?;
        let help = "Log lines dropped because standard error did not take them in time";
        family.counters("log_lines_dropped", help, [(NoLabels, self.log_lines_dropped)])?;
        family.gauges("draining", "1 from the beginning of a drain on", [(NoLabels, u64::from(self.draining))])?;
        family.gauges("driver", "How the workers talk to the kernel", [([("name", self.driver)], 1)])?;
        let build = [("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)];
        family.gauges("build_info", "The version that runs", [(build, 1)])
    }
}

/// What an agent says of its gateways.
fn links(gateways: &[LinkedGateway], family: &mut Family<'_, '_>) -> fmt::Result {
    let up = gateways.iter().map(|gateway| ([("gateway", gateway.name.as_str())], u64::from(gateway.up)));
    family.gauges("links_up", "Gateways whose control link stands", up)?;
    let ready = gateways.iter().map(|gateway| ([("gateway", gateway.name.as_str())], gateway.channels_ready));
    family.gauges("channels_ready", "Data channels that wait for a session", ready)
}

impl Snapshot {
    /// What a gateway says of its clients and agents.
    fn clients(&self, family: &mut Family<'_, '_>) -> fmt::Result {
        let by_slug = |read: fn(&AgentCounts) -> u64| {
            self.agents.iter().map(move |agent| ([("slug", agent.slug.as_str())], read(agent)))
        };
        let up = by_slug(|agent| u64::from(agent.up));
        family.gauges("agents_up", "1 for each slug of which an agent is there", up)?;
        family.gauges("agent_sessions", "Sessions of the agents of a slug", by_slug(|agent| agent.sessions))?;
        let idle = by_slug(|agent| agent.idle_channels);
        family.gauges("agent_channels_idle", "Data channels that are ready for sessions", idle)?;
        let help = "Sessions for which another agent was taken, because one failed before it began";
        family.counters("agent_failovers", help, [(NoLabels, self.failovers)])?;
        let limited: u64 = self
            .workers
            .iter()
            .flat_map(|worker| worker.outcomes())
            .filter_map(|(outcome, count)| (outcome == "rate_limited").then_some(count))
            .sum();
        family.counters(
            "rate_limited",
            "Connect messages refused by the bucket of their key",
            [(NoLabels, limited)],
        )?;

        let accepts = self.by_worker(|worker| worker.accepts.get());
        family.counters("accepts", "Connections accepted", accepts)?;
        let help = "Connections that have no validated connect message yet";
        family.gauges("pending", help, [(NoLabels, self.pending)])?;
        let refusals = self.summed(|worker| worker.refusals().collect());
        let refusals = refusals.into_iter().map(|(reason, count)| ([("reason", reason)], count));
        family.counters("refused", "Connections and requests refused before any connect message", refusals)
    }

    /// Lists of the same names, one a worker, added up.
    fn summed(&self, read: impl Fn(&WorkerCounters) -> Vec<(&'static str, u64)>) -> Vec<(&'static str, u64)> {
        let mut all = read(&WorkerCounters::default());
        for worker in &self.workers {
            all.iter_mut().zip(read(worker)).for_each(|(sum, (_, count))| sum.1 += count);
        }
        all
    }

    fn by_worker(
        &self,
        read: impl Fn(&WorkerCounters) -> u64,
    ) -> impl Iterator<Item = ([(&'static str, String); 1], u64)> {
        self.workers.iter().enumerate().map(move |(index, worker)| ([("worker", index.to_string())], read(worker)))
    }

    fn connect_seconds(&self, family: &mut Family<'_, '_>) -> fmt::Result {
        let help = "How long the parts of a session's set-up took";
        let mut metric = family.encoder.encode_descriptor("connect_seconds", help, None, MetricType::Histogram)?;
        for (stage, name) in Stage::ALL {
            let (mut counts, mut seconds) = ([0; BOUNDS.len() + 1], 0.0);
            for worker in &self.workers {
                let (more, took) = worker.stage(stage).read();
                counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
                seconds += took;
            }
            let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
            metric.encode_family(&[("stage", name)])?.encode_histogram::<NoLabelSet>(
                seconds,
                counts.iter().sum(),
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}

/// No labels at all.
struct NoLabels;

impl prometheus_client::encoding::EncodeLabelSet for NoLabels {
    fn encode(&self, _: &mut prometheus_client::encoding::LabelSetEncoder<'_>) -> fmt::Result {
        Ok(())
    }
}

struct Family<'a, 'e> {
    encoder: &'a mut DescriptorEncoder<'e>,
}

impl Family<'_, '_> {
    /// `name` without the `_total` that a counter's name ends in, which the encoder adds.
    fn counters<L: prometheus_client::encoding::EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, count) in series {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, f64>(&count, None)?;
        }
        Ok(())
    }

    fn gauges<L: prometheus_client::encoding::EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::time::Duration;

    use super::*;

    #[test]
    fn workers_are_added_up_and_nothing_is_missing_from_the_start() {
        let workers: Vec<_> = (0..2).map(|_| Arc::new(WorkerCounters::default())).collect();
        for worker in &workers {
            let mut frames = [0; 16];
            frames[1] = 2;
            frames[3] = 1;
            frames[15] = 1;
            worker.passed(Side::Target, &frames, 100);
            worker.spliced.add(Side::Target, 40);
            worker.buffers.set(3, 1);
            worker.closed(Side::Client, Some(1000));
            worker.outcome("rate_limited");
            worker.took(Stage::Dns, Duration::from_millis(3));
            worker.sessions.add(1);
        }
        let agents = vec![AgentCounts { slug: "de1".to_owned(), up: true, sessions: 5, idle_channels: 4 }];
        let snapshot =
            Snapshot { workers, driver: "epoll", agents, pending: 3, log_lines_dropped: 7, ..Snapshot::default() };
        let text = text(snapshot).unwrap();
        for line in [
            "# TYPE ringway_sessions_total counter",
            "ringway_sessions_active 2",
            "ringway_sessions_total{outcome=\"rate_limited\"} 2",
            "ringway_sessions_total{outcome=\"connected\"} 0",
            "ringway_frames_total{direction=\"target_to_client\",opcode=\"text\"} 4",
            "ringway_frames_total{direction=\"target_to_client\",opcode=\"reserved\"} 4",
            "ringway_frames_total{direction=\"client_to_target\",opcode=\"ping\"} 0",
            "ringway_bytes_total{direction=\"target_to_client\"} 200",
            "ringway_spliced_bytes_total{direction=\"target_to_client\"} 80",
            "ringway_relay_buffers{state=\"lent\"} 6",
            "ringway_relay_buffers{state=\"free\"} 2",
            "ringway_relay_pipes{state=\"lent\"} 0",
            "ringway_closes_total{side=\"client\",code=\"1000\"} 2",
            "ringway_closes_total{side=\"target\",code=\"other\"} 0",
            "# TYPE ringway_connect_seconds histogram",
            "ringway_connect_seconds_count{stage=\"dns\"} 2",
            "ringway_connect_seconds_bucket{stage=\"dns\",le=\"0.005\"} 2",
            "ringway_connect_seconds_bucket{stage=\"tls\",le=\"+Inf\"} 0",
            "ringway_agents_up{slug=\"de1\"} 1",
            "ringway_agent_sessions{slug=\"de1\"} 5",
            "ringway_agent_channels_idle{slug=\"de1\"} 4",
            "ringway_agent_failovers_total 0",
            "ringway_rate_limited_total 2",
            "ringway_accepts_total{worker=\"1\"} 0",
            "ringway_worker_sessions{worker=\"0\"} 1",
            "ringway_pending 3",
            "ringway_refused_total{reason=\"too_many_pending\"} 0",
            "ringway_log_lines_dropped_total 7",
            "ringway_driver{name=\"epoll\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        assert!(text.contains("ringway_build_info{version="), "{text}");
    }
}
