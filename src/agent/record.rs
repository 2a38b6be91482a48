//! The record of one session of an agent, as long as it is there: what is counted, and its row of `/sessions`.
//!
//! Must never hold a header, a cookie, a credential, or a target's path or query.
use std::{
    cell::{OnceCell, RefCell},
    collections::BTreeMap,
    ops::Bound,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use serde::Serialize;

use super::{link::Instance, worker::Worker};
use crate::{
    admin::RowsWanted,
    protocol::target::Target,
    relay::{Relay, Summary},
};

/// Rows that a worker makes at a time, before it turns to its sessions again.
const BATCH: usize = 256;

/// The sessions of one worker, in the order in which they came.
#[derive(Default)]
pub struct Records(RefCell<BTreeMap<u64, Weak<Details>>>);

/// A row of `/sessions`.
#[derive(Debug, Serialize)]
pub struct Row {
    /// As in the gateway's log.
    id: String,
    gateway: String,
    /// Scheme, host and port.
    target: String,
    worker: usize,
    started: String,
    age_s: f64,
    frames_in: u64,
    frames_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    state: &'static str,
}

/// One that counts as a session until it is dropped.
pub struct Record {
    worker: Rc<Worker>,
    number: u64,
    details: Rc<Details>,
}

struct Details {
    id: String,
    instance: Arc<Instance>,
    target: String,
    worker: usize,
    began: Instant,
    started: SystemTime,
    relay: OnceCell<Rc<Relay>>,
}

impl Record {
    /// `None`: the agent has as many sessions as it takes.
    pub fn new(worker: &Rc<Worker>, instance: Arc<Instance>, id: &str, target: &Target) -> Option<Self> {
        let (sessions, max) = (&worker.shared.sessions, worker.shared.max_sessions);
        let number = worker.shared.numbers.fetch_add(1, Ordering::Relaxed);
        let below = |count: u64| (count < max).then_some(count + 1);
        sessions.try_update(Ordering::Relaxed, Ordering::Relaxed, below).ok()?;
        instance.sessions.fetch_add(1, Ordering::Relaxed);
        worker.counters.sessions.add(1);
        let scheme = if target.tls { "wss" } else { "ws" };
        let details = Rc::new(Details {
            id: id.to_owned(),
            instance,
            target: format!("{scheme}://{}", target.host_and_port()),
            worker: worker.index,
            began: Instant::now(),
            started: SystemTime::now(),
            relay: OnceCell::new(),
        });
        worker.records.0.borrow_mut().insert(number, Rc::downgrade(&details));
        Some(Self { worker: worker.clone(), number, details })
    }

    /// Bytes pass from now on.
    pub fn relayed(&self, relay: &Rc<Relay>) {
        let _ = self.details.relay.set(relay.clone());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.worker.records.0.borrow_mut().remove(&self.number);
        self.worker.counters.sessions.subtract(1);
        self.details.instance.sessions.fetch_sub(1, Ordering::Relaxed);
        self.worker.shared.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Details {
    fn row(&self) -> Row {
        let passed = self.relay.get().map(|relay| relay.summary());
        let count = |read: fn(&Summary) -> u64| passed.as_ref().map_or(0, read);
        let state = match self.relay.get() {
            None => "dialling",
            Some(relay) if relay.is_ending() => "closing",
            Some(_) => "connected",
        };
        Row {
            id: self.id.clone(),
            gateway: self.instance.gateway.name.clone(),
            target: self.target.clone(),
            worker: self.worker,
            started: humantime::format_rfc3339_millis(self.started).to_string(),
            age_s: self.began.elapsed().as_millis() as f64 / 1000.0,
            frames_in: count(|passed| passed.frames_from_client),
            frames_out: count(|passed| passed.frames_from_target),
            bytes_in: count(|passed| passed.bytes_from_client),
            bytes_out: count(|passed| passed.bytes_from_target),
            state,
        }
    }
}

impl Records {
    /// Sends the rows of all sessions of this worker. Rests between the batches, so that sessions are not held up.
    pub async fn send(&self, wanted: RowsWanted<Row>) {
        let mut after = Bound::Unbounded;
        loop {
            let batch: Vec<(u64, Weak<Details>)> = {
                let records = self.0.borrow();
                records
                    .range((after, Bound::Unbounded))
                    .take(BATCH)
                    .map(|(number, weak)| (*number, weak.clone()))
                    .collect()
            };
            let Some((last, _)) = batch.last() else { return };
            after = Bound::Excluded(*last);
            let rows = batch.iter().filter_map(|(_, record)| Some(record.upgrade()?.row())).collect();
            if wanted.0.unbounded_send(rows).is_err() {
                return;
            }
            monoio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
