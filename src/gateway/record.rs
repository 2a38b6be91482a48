//! The record of one session, from its connect message to its end: its line in the access log, its row of `/sessions`,
//! and what the metrics say of it.
//!
//! Must never hold a key, a header, a cookie, a credential, or a target's path or query: what is not here cannot get
//! into a log.
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::SocketAddr,
    ops::Bound,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use serde::Serialize;

use super::{agents::Choice, keys::Key, worker::Worker};
use crate::{
    admin::RowsWanted,
    agent::dial::Timings,
    protocol::{
        answer::Failure,
        close::Close,
        session::{Ending, Party},
        target::Target,
    },
    relay::{Relay, Summary},
    telemetry::{
        counters::{self, Stage},
        log,
    },
};

/// Rows that a worker makes at a time, before it turns to its sessions again.
const BATCH: usize = 256;

/// What an agent that drains closes with.
const RESTART: u16 = Close::RESTART_CLIENT.code;

/// The records of one worker by their ids, as long as they are there: of its sessions, and of those that are refused.
#[derive(Default)]
pub(super) struct Records(RefCell<BTreeMap<u64, Weak<Record>>>);

/// A row of `/sessions`.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    id: String,
    key: String,
    client: SocketAddr,
    agent: Option<String>,
    /// Scheme, host and port.
    target: String,
    form: &'static str,
    worker: usize,
    started: String,
    age_s: f64,
    frames_in: u64,
    frames_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    state: &'static str,
}

/// How the client asked for the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Message,
    Transparent,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Transparent => "query",
        }
    }
}

/// Written down when dropped, at the latest.
pub(super) struct Record {
    worker: Rc<Worker>,
    id: u64,
    form: Form,
    client: SocketAddr,
    began: Instant,
    started: SystemTime,
    details: RefCell<Details>,
    written: Cell<bool>,
}

/// What becomes known on the way.
#[derive(Default)]
struct Details {
    key: Option<Arc<Key>>,
    /// Scheme, host and port.
    target: Option<Box<str>>,
    agent: Option<Choice>,
    /// It is one of the worker's sessions: its connect message was validated, and its token taken.
    admitted: bool,
    outcome: Option<&'static str>,
    connected_after_ms: Option<u32>,
    closed_by: Option<Party>,
    close_code: Option<u16>,
    relay: Option<Rc<Relay>>,
}

impl Details {
    fn agent_drains(&self) -> bool {
        matches!(&self.agent, Some(Choice::Remote(agent)) if agent.drains())
    }

    fn slug<'a>(&'a self, worker: &'a Worker) -> Option<&'a str> {
        match self.agent.as_ref()? {
            Choice::Remote(agent) => Some(&agent.slug),
            Choice::Embedded => worker.shared.agents.embedded().map(|embedded| embedded.slug.as_str()),
        }
    }
}

impl Record {
    /// Begins with a connect message, or a request in the transparent form, usable or not, that has come whole.
    pub fn new(worker: &Rc<Worker>, client: SocketAddr, form: Form) -> Rc<Self> {
        let started = SystemTime::now();
        // Without randomness the time serves: all that matters is that no id comes twice.
        let id = getrandom::u64()
            .unwrap_or_else(|_| started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64);
        let record = Rc::new(Self {
            worker: worker.clone(),
            id,
            form,
            client,
            began: Instant::now(),
            started,
            details: RefCell::default(),
            written: Cell::new(false),
        });
        worker.records.0.borrow_mut().insert(id, Rc::downgrade(&record));
        record
    }

    /// As in the log.
    pub fn id(&self) -> String {
        Hex(self.id).to_string()
    }

    pub fn identified(&self, key: &Arc<Key>) {
        self.details.borrow_mut().key = Some(key.clone());
    }

    /// The message is a usable one.
    pub fn validated(&self, target: &Target) {
        let scheme = if target.tls { "wss" } else { "ws" };
        self.details.borrow_mut().target = Some(format!("{scheme}://{}", target.host_and_port()).into());
    }

    /// From now on this is one of the worker's sessions.
    pub fn admitted(&self) {
        self.details.borrow_mut().admitted = true;
        self.worker.counters.sessions.add(1);
    }

    /// An agent was picked.
    pub fn agent(&self, choice: Choice, took: Duration) {
        self.worker.counters.took(Stage::Agent, took);
        self.details.borrow_mut().agent = Some(choice);
    }

    /// The dial has come to an end, good or bad.
    pub fn dialled(&self, timings: &Timings) {
        timings.count_in(&self.worker.counters);
    }

    /// The client has been told that it is connected.
    pub fn connected(&self) {
        let took = self.began.elapsed();
        self.worker.counters.took(Stage::Total, took);
        self.details.borrow_mut().connected_after_ms = u32::try_from(took.as_millis()).ok();
        self.outcome(counters::CONNECTED);
    }

    /// Bytes pass from now on.
    pub fn relayed(&self, relay: &Rc<Relay>) {
        self.details.borrow_mut().relay = Some(relay.clone());
    }

    /// `close_code`: of the Close that says so; in the transparent form there is none.
    pub fn failed(&self, failure: &Failure, close_code: Option<u16>) {
        self.outcome(failure.code());
        self.closed(Party::Gateway, close_code);
    }

    /// The client left before it was connected.
    pub fn client_gone(&self, close_code: Option<u16>) {
        self.outcome(counters::CLIENT_GONE);
        self.closed(Party::Client, close_code);
    }

    /// The gateway drained before the client was connected.
    pub fn drained(&self, close_code: Option<u16>) {
        self.outcome(counters::DRAINING);
        self.closed(Party::Gateway, close_code);
    }

    fn outcome(&self, outcome: &'static str) {
        self.worker.counters.outcome(outcome);
        self.details.borrow_mut().outcome = Some(outcome);
    }

    fn closed(&self, by: Party, code: Option<u16>) {
        let mut details = self.details.borrow_mut();
        details.closed_by = Some(by);
        details.close_code = code;
    }

    /// The line in the access log, once.
    fn write(&self) {
        if self.written.replace(true) {
            return;
        }
        if self.details.borrow().outcome.is_none() {
            // Nothing that ends a set-up in order leaves it without an outcome.
            self.outcome(counters::INTERNAL);
        }
        let details = self.details.borrow();
        let passed = details.relay.as_ref().map(|relay| relay.summary());
        let (closed_by, close_code) = match passed.and_then(|passed| passed.ending) {
            // A draining agent closes its sessions itself.
            Some(Ending { by: Party::Target, code }) if code == Some(RESTART) && details.agent_drains() => {
                (Some(Party::Agent), code)
            }
            Some(Ending { by, code }) => (Some(by), code),
            None => (details.closed_by, details.close_code),
        };
        tracing::info!(
            target: "access",
            session = %Hex(self.id),
            key = details.key.as_ref().map(|key| key.id.as_str()),
            client = %self.client,
            form = self.form.name(),
            agent = details.slug(&self.worker),
            upstream = details.target.as_deref().map(host_and_port),
            outcome = details.outcome,
            connect_ms = details.connected_after_ms,
            duration_ms = milliseconds(self.began.elapsed()),
            frames_in = passed.map(|passed| passed.frames_from_client),
            frames_out = passed.map(|passed| passed.frames_from_target),
            bytes_in = passed.map(|passed| passed.bytes_from_client),
            bytes_out = passed.map(|passed| passed.bytes_from_target),
            closed_by = closed_by.map(name),
            close_code,
        );
    }

    /// `None`: it is no session, and will be none.
    fn row(&self) -> Option<Row> {
        let details = self.details.borrow();
        if !details.admitted {
            return None;
        }
        let passed = details.relay.as_ref().map(|relay| relay.summary());
        let count = |read: fn(&Summary) -> u64| passed.as_ref().map_or(0, read);
        let state = match &details.relay {
            None => "dialling",
            Some(relay) if relay.is_ending() => "closing",
            Some(_) => "connected",
        };
        Some(Row {
            id: Hex(self.id).to_string(),
            key: details.key.as_ref().map(|key| key.id.clone()).unwrap_or_default(),
            client: self.client,
            agent: details.slug(&self.worker).map(str::to_owned),
            target: details.target.as_deref().unwrap_or_default().to_owned(),
            form: self.form.name(),
            worker: self.worker.index,
            started: humantime::format_rfc3339_millis(self.started).to_string(),
            age_s: milliseconds(self.began.elapsed()) as f64 / 1000.0,
            frames_in: count(|passed| passed.frames_from_client),
            frames_out: count(|passed| passed.frames_from_target),
            bytes_in: count(|passed| passed.bytes_from_client),
            bytes_out: count(|passed| passed.bytes_from_target),
            state,
        })
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.write();
        self.worker.records.0.borrow_mut().remove(&self.id);
        if self.details.borrow().admitted {
            self.worker.counters.sessions.subtract(1);
        }
    }
}

impl Records {
    /// Sends the rows of all sessions of this worker. Rests between the batches, so that sessions are not held up.
    pub async fn send(&self, wanted: RowsWanted<Row>) {
        let mut after = Bound::Unbounded;
        loop {
            let batch = self.behind(after);
            let Some((last, _)) = batch.last() else { return };
            after = Bound::Excluded(*last);
            let rows = batch.iter().filter_map(|(_, record)| record.upgrade()?.row()).collect();
            if wanted.0.unbounded_send(rows).is_err() {
                return;
            }
            monoio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Writes the lines of all that are still there: the process ends, and they end with it. As many at a time as the
    /// log takes, which drops what it has no room for.
    pub async fn write_all(&self) {
        let mut after = Bound::Unbounded;
        loop {
            while !log::has_room() {
                monoio::time::sleep(Duration::from_millis(1)).await;
            }
            let batch = self.behind(after);
            let Some((last, _)) = batch.last() else { return };
            after = Bound::Excluded(*last);
            batch.iter().filter_map(|(_, record)| record.upgrade()).for_each(|record| record.write());
        }
    }

    fn behind(&self, after: Bound<u64>) -> Vec<(u64, Weak<Record>)> {
        let records = self.0.borrow();
        records.range((after, Bound::Unbounded)).take(BATCH).map(|(id, weak)| (*id, weak.clone())).collect()
    }
}

/// A session's id.
struct Hex(u64);

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Who ended a session, as the access log says it.
fn name(party: Party) -> &'static str {
    match party {
        Party::Client => "client",
        Party::Target => "target",
        Party::Agent => "agent",
        Party::Gateway => "gateway",
    }
}

fn host_and_port(target: &str) -> &str {
    target.split_once("://").map_or(target, |(_, rest)| rest)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
