//! What a worker counts, for metrics and for the usage of keys.
//!
//! A counter has one writer, the worker that owns it, and stands on cache lines of its own, so counting is an ordinary
//! load and store: no locked instruction, and no line that two cores fight for. Readers add the workers up.
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::protocol::{
    frame::{FrameCounts, Opcode},
    session::Side,
};

/// A number that one thread changes and any may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Only to be called by the thread that owns this counter: of two that add at a time, one would be forgotten.
    pub fn add(&self, number: u64) {
        self.0.store(self.get().wrapping_add(number), Ordering::Relaxed);
    }

    /// As [`Counter::add`], for what goes up and down.
    pub fn subtract(&self, number: u64) {
        self.0.store(self.get().wrapping_sub(number), Ordering::Relaxed);
    }

    /// As [`Counter::add`], for what is known as a whole.
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bytes that passed in each direction, for one account of one worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Bytes([Counter; 2]);

impl Bytes {
    pub fn add(&self, from: Side, bytes: u64) {
        self.0[from as usize].add(bytes);
    }

    pub fn get(&self, from: Side) -> u64 {
        self.0[from as usize].get()
    }
}

/// What a worker lends to its sessions: how many of it there are.
#[derive(Debug, Default)]
pub struct Stock {
    lent: Counter,
    free: Counter,
}

impl Stock {
    /// As for [`Counter::add`], only the owning thread may call it.
    pub fn set(&self, lent: u64, free: u64) {
        self.lent.set(lent);
        self.free.set(free);
    }

    pub fn lent(&self) -> u64 {
        self.lent.get()
    }

    pub fn free(&self) -> u64 {
        self.free.get()
    }
}

/// The parts of a session's set-up that are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the gateway's 101 to the end of the connect message: the client's own time.
    Message,
    /// The pick of an agent.
    Agent,
    Dns,
    Tcp,
    /// From the connection to a proxy to its yes.
    Proxy,
    Tls,
    /// The opening handshake with the target.
    Upgrade,
    /// From the connect message to "connected".
    Total,
}

impl Stage {
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::Message, "message"),
        (Self::Agent, "agent"),
        (Self::Dns, "dns"),
        (Self::Tcp, "tcp"),
        (Self::Proxy, "proxy"),
        (Self::Tls, "tls"),
        (Self::Upgrade, "upgrade"),
        (Self::Total, "total"),
    ];
}

/// Upper bounds of the buckets, in seconds: from a target on this machine to the longest that a set-up may take by
/// default.
pub const BOUNDS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0];

/// How long something took, many times.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last is for what is above all bounds.
    buckets: [Counter; BOUNDS.len() + 1],
    nanoseconds: Counter,
}

impl Histogram {
    fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[at].add(1);
        self.nanoseconds.add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many fell into each bucket and no smaller one, and the sum in seconds.
    pub fn read(&self) -> ([u64; BOUNDS.len() + 1], f64) {
        (std::array::from_fn(|at| self.buckets[at].get()), self.nanoseconds.get() as f64 / 1e9)
    }
}

/// What became of a connect message: `connected`, a failure's code, or one of these.
pub const CONNECTED: &str = "connected";
/// The client left before its target had answered.
pub const CLIENT_GONE: &str = "client_gone";
/// The gateway drained before the target had answered.
pub const DRAINING: &str = "draining";
/// A bug of ours ended the set-up.
pub const INTERNAL: &str = "internal";
pub const OUTCOMES: [&str; 16] = [
    CONNECTED,
    "invalid_connect_message",
    "invalid_request",
    "invalid_key",
    "too_many_sessions",
    "overloaded",
    "rate_limited",
    "no_agent",
    "agent_failure",
    "proxy_failed",
    "target_not_allowed",
    "target_unreachable",
    "target_rejected",
    "target_timeout",
    CLIENT_GONE,
    DRAINING,
];

/// Why a connection came to nothing before it sent a connect message, or a request was refused.
pub const TOO_MANY_PENDING: &str = "too_many_pending";
pub const TIMEOUT_HEAD: &str = "timeout_head";
pub const TIMEOUT_MESSAGE: &str = "timeout_message";
pub const BAD_FRAME: &str = "bad_frame";
pub const ADDRESS: &str = "address";
pub const PROXY_PROTOCOL: &str = "proxy_protocol";
pub const TLS_HANDSHAKE: &str = "tls_handshake";
pub const REFUSALS: [&str; 17] = [
    TOO_MANY_PENDING,
    ADDRESS,
    PROXY_PROTOCOL,
    TLS_HANDSHAKE,
    TIMEOUT_HEAD,
    TIMEOUT_MESSAGE,
    BAD_FRAME,
    "bad_request",
    "uri_too_long",
    "head_too_large",
    "not_found",
    "method_not_allowed",
    "upgrade_required",
    "unsupported_version",
    "invalid_key",
    "overloaded",
    "draining",
];

/// 1000 to 1014 one by one, and all others together.
pub const CLOSE_CODES: usize = 16;
const FIRST_CODE: u16 = 1000;

/// The label of a close code's place.
pub fn close_code_label(at: usize) -> String {
    if at + 1 < CLOSE_CODES { (usize::from(FIRST_CODE) + at).to_string() } else { "other".to_owned() }
}

/// The label of an opcode (RFC 6455 section 5.2), the reserved ones together.
pub fn opcode_label(opcode: Opcode) -> &'static str {
    match opcode {
        Opcode::CONTINUATION => "continuation",
        Opcode::TEXT => "text",
        Opcode::BINARY => "binary",
        Opcode::CLOSE => "close",
        Opcode::PING => "ping",
        Opcode::PONG => "pong",
        _ => "reserved",
    }
}

/// Everything that one worker counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Frames that went on, by the side they came from and by opcode, when their header did.
    pub frames: [[Counter; 16]; 2],
    /// Bytes of frames that went on, headers included.
    pub bytes: Bytes,
    /// Those among them that were spliced.
    pub spliced: Bytes,
    /// Receive buffers of 64 KiB, and pipes to splice through.
    pub buffers: Stock,
    pub pipes: Stock,
    /// Closes that were sent to each side, forwarded ones too, by code.
    pub closes: [[Counter; CLOSE_CODES]; 2],
    pub accepts: Counter,
    /// Sessions that there are now, from a validated connect message on.
    pub sessions: Counter,
    outcomes: [Counter; OUTCOMES.len() + 1],
    refusals: [Counter; REFUSALS.len() + 1],
    stages: [Histogram; Stage::ALL.len()],
}

impl WorkerCounters {
    /// Frames whose headers went on from this side, and bytes.
    pub fn passed(&self, from: Side, frames: &FrameCounts, bytes: u64) {
        for (counter, began) in self.frames[from as usize].iter().zip(frames) {
            if *began > 0 {
                counter.add(*began);
            }
        }
        self.bytes.add(from, bytes);
    }

    /// A Close was sent to this side. `None`: without a code.
    pub fn closed(&self, to: Side, code: Option<u16>) {
        let at = code.and_then(|code| code.checked_sub(FIRST_CODE)).map_or(CLOSE_CODES, usize::from);
        self.closes[to as usize][at.min(CLOSE_CODES - 1)].add(1);
    }

    /// One of [`OUTCOMES`]; any other counts as [`INTERNAL`].
    pub fn outcome(&self, outcome: &str) {
        self.outcomes[place(&OUTCOMES, outcome)].add(1);
    }

    /// One of [`REFUSALS`], or an HTTP error's code; any other counts as `other`.
    pub fn refused(&self, reason: &str) {
        let reason = if reason == "invalid_request" { "bad_request" } else { reason };
        self.refusals[place(&REFUSALS, reason)].add(1);
    }

    pub fn took(&self, stage: Stage, time: Duration) {
        self.stages[stage as usize].observe(time);
    }

    pub fn stage(&self, stage: Stage) -> &Histogram {
        &self.stages[stage as usize]
    }

    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OUTCOMES.into_iter().chain([INTERNAL]).zip(self.outcomes.iter().map(Counter::get))
    }

    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        REFUSALS.into_iter().chain(["other"]).zip(self.refusals.iter().map(Counter::get))
    }
}

fn place(names: &[&str], name: &str) -> usize {
    names.iter().position(|known| *known == name).unwrap_or(names.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_codes_have_their_places() {
        let counters = WorkerCounters::default();
        for code in [Some(1000), Some(1014), Some(1015), Some(999), Some(0), Some(u16::MAX), Some(4000), None] {
            counters.closed(Side::Client, code);
        }
        let counted = |at: usize| (close_code_label(at), counters.closes[0][at].get());
        assert_eq!(counted(0), ("1000".into(), 1));
        assert_eq!(counted(14), ("1014".into(), 1));
        assert_eq!(counted(15), ("other".into(), 6));
    }

    #[test]
    fn a_time_falls_into_the_bucket_that_it_does_not_exceed() {
        let histogram = Histogram::default();
        for time in [Duration::ZERO, Duration::from_millis(1), Duration::from_nanos(1_000_001), Duration::from_secs(60)]
        {
            histogram.observe(time);
        }
        let (buckets, sum) = histogram.read();
        assert_eq!(buckets[..3], [1, 1, 1]);
        assert_eq!(buckets[BOUNDS.len()], 1);
        assert!((sum - 60.002_000_001).abs() < 1e-9, "{sum}");
        assert!(BOUNDS.is_sorted());
    }

    #[test]
    fn stages_stand_at_their_own_index() {
        for (at, (stage, _)) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, at);
        }
    }

    #[test]
    fn unknown_names_do_not_get_lost() {
        let counters = WorkerCounters::default();
        counters.outcome("no such outcome");
        counters.refused("no such reason");
        assert_eq!(counters.outcomes().last(), Some((INTERNAL, 1)));
        assert_eq!(counters.refusals().last(), Some(("other", 1)));
    }

    #[test]
    fn no_two_workers_share_a_cache_line() {
        assert_eq!(align_of::<WorkerCounters>() % 128, 0);
        assert_eq!(align_of::<Bytes>() % 128, 0);
    }
}
