//! One worker thread of an agent: opens data channels as it is told, runs their sessions, and ends them when the agent
//! drains or a gateway is lost.
use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use futures_channel::mpsc::UnboundedReceiver;
use futures_util::StreamExt;

use super::{
    Shared,
    link::{Event, Gateway, Ticket, channel, control::Control},
    record::{Records, Row},
};
use crate::{
    admin::RowsWanted,
    protocol::drain::Drain,
    relay::{self, Registry, wake::Signal},
    runtime::{
        load::Load,
        memory,
        tasks::Tasks,
        threads::{self, Line},
    },
    telemetry::counters::WorkerCounters,
};

/// When a worker has drained: how long gateways have to hear of it, and to have requests refused that are on their way.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// What a worker is told.
#[derive(Debug)]
pub enum Order {
    /// Open a data channel to this address.
    Open(Ticket, Load, SocketAddr),
    /// The gateway of this hop is lost.
    Abort(u64),
    /// Somebody wants to see the sessions.
    Rows(RowsWanted<Row>),
}

/// What the tasks of one worker share.
pub struct Worker {
    pub shared: Arc<Shared>,
    /// From 0.
    pub index: usize,
    pub counters: Arc<WorkerCounters>,
    pub records: Records,
    pub registry: Registry,
    pub tasks: Rc<Tasks>,
    /// Channels that wait for a request, by their hops, as long as they do.
    waiting: RefCell<Vec<(u64, Weak<Signal>)>>,
}

/// What a worker has of its own.
#[derive(Debug)]
pub struct Desk {
    pub index: usize,
    pub counters: Arc<WorkerCounters>,
    pub orders: UnboundedReceiver<Order>,
    /// The gateways whose control links it keeps.
    pub gateways: Vec<(Arc<Gateway>, UnboundedReceiver<Event>)>,
}

/// Runs a worker as long as the process lives.
pub async fn run(shared: Arc<Shared>, desk: Desk, mut line: Line) -> io::Result<()> {
    let Desk { index, counters, mut orders, gateways } = desk;
    relay::count_in(&counters);
    let registry = Registry::new(shared.relayed.clone());
    let worker = Rc::new(Worker {
        shared,
        index,
        counters,
        records: Records::default(),
        registry,
        tasks: Rc::default(),
        waiting: RefCell::default(),
    });
    for (gateway, events) in gateways {
        monoio::spawn(Control::new(worker.clone(), gateway, events).run());
    }
    let (watcher, beat) = (worker.clone(), line.beat());
    monoio::spawn(async move { watcher.registry.watch(&beat).await });
    let (housekeeper, beat) = (worker.tasks.clone(), line.beat());
    monoio::spawn(async move { housekeeper.keep_memory_low(&beat).await });
    let obedient = worker.clone();
    monoio::spawn(async move {
        while let Some(order) = orders.next().await {
            obedient.obey(order);
        }
    });
    while let Some(order) = line.order().await {
        let worker = worker.clone();
        let reporter = line.reporter();
        match order {
            threads::Order::Drain(drain) => {
                monoio::spawn(async move {
                    worker.drain(drain).await;
                    reporter.drained();
                });
            }
            // It writes nothing down.
            threads::Order::Finish => reporter.finished(),
        }
    }
    Ok(())
}

impl Worker {
    fn obey(self: &Rc<Self>, order: Order) {
        let worker = self.clone();
        match order {
            Order::Open(ticket, load, address) => {
                self.tasks.spawn(move |draining| channel::run(worker, ticket, load, address, draining));
            }
            Order::Abort(hop) => {
                self.waiting.borrow_mut().retain(|(of, signal)| match signal.upgrade() {
                    Some(signal) if *of == hop => {
                        signal.set();
                        false
                    }
                    other => other.is_some(),
                });
                monoio::spawn(async move { worker.registry.abort(hop).await });
            }
            Order::Rows(wanted) => {
                monoio::spawn(async move { worker.records.send(wanted).await });
            }
        }
    }

    /// This channel waits for a request: it is woken when its hop is lost.
    pub fn waits(&self, hop: u64, signal: &Rc<Signal>) {
        let mut waiting = self.waiting.borrow_mut();
        memory::make_room(&mut waiting, |(_, signal)| signal.strong_count() > 0);
        waiting.push((hop, Rc::downgrade(signal)));
    }

    /// Ends all sessions as the drain says. Done when none is left.
    async fn drain(self: &Rc<Self>, drain: Arc<Drain>) {
        self.tasks.drain(drain.clone());
        let worker = self.clone();
        monoio::spawn(async move { worker.registry.drain(drain).await });
        self.tasks.none_awaited().await;
        monoio::time::sleep(LAST_WORDS).await;
    }
}
