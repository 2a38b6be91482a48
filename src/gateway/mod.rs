//! The gateway: takes connections from clients, sets sessions up, and hands them to the relay.
//!
//! Everything here happens before a session's first relayed byte. State that worker threads share is touched at
//! connect only; a connection belongs to the worker that accepted it.
pub mod admin;
pub mod bucket;
mod connection;
pub mod http;
pub mod keys;
mod record;
mod routes;
mod schema;
mod session;
mod worker;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use futures_channel::mpsc::{self, UnboundedSender};
use rustls_pki_types::CertificateDer;

use self::{keys::Keys, record::RowsWanted};
use crate::{
    agent::{dial::Dialler, egress::Egress, tls},
    config::{
        GatewayConfig, KeyEntry,
        gateway::{EmbeddedAgentConfig, LimitsConfig},
    },
    runtime::{
        driver::Driver,
        listen,
        resolver::Resolver,
        threads::{Threads, allowed_cores},
    },
    telemetry::counters::WorkerCounters,
};

/// What all workers of a gateway share.
#[derive(Debug)]
pub struct Shared {
    node_id: String,
    public_url: Option<String>,
    limits: LimitsConfig,
    /// How many workers there are.
    workers: usize,
    keys: Keys,
    /// Connections that have not got as far as a session.
    pending: AtomicU64,
    /// Sessions, from a validated connect message on.
    sessions: AtomicU64,
    draining: AtomicBool,
    agent: Option<(EmbeddedAgentConfig, Dialler)>,
}

/// A gateway whose workers run.
#[derive(Debug)]
pub struct Gateway {
    /// The addresses it listens on, with the real ports.
    pub addresses: Vec<SocketAddr>,
    pub shared: Arc<Shared>,
    driver: &'static str,
    workers: Vec<Observed>,
}

/// A worker, as the admin listener sees it.
#[derive(Clone, Debug)]
struct Observed {
    counters: Arc<WorkerCounters>,
    rows: UnboundedSender<RowsWanted>,
}

impl Gateway {
    /// Binds the listeners and starts the workers on `threads`. `roots` are what `wss://` targets may show beside the
    /// platform's own.
    ///
    /// # Errors
    /// An address cannot be bound, or a thread not be started; the error says which.
    pub fn start(
        config: GatewayConfig,
        keys: Vec<KeyEntry>,
        roots: Vec<CertificateDer<'static>>,
        driver: &Driver,
        threads: &mut Threads,
    ) -> io::Result<Self> {
        let workers = config.runtime.worker_threads();
        let mut addresses = Vec::new();
        let mut listeners: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
        for address in &config.listen.addr {
            let bound = listen::bind(*address, workers)?;
            addresses.extend(bound.first().map(TcpListener::local_addr).transpose()?);
            listeners.iter_mut().zip(bound).for_each(|(worker, listener)| worker.push(listener));
        }
        let shared = Arc::new(Shared::new(config, keys, roots)?);
        let cores = allowed_cores();
        let mut observed = Vec::new();
        for (index, listeners) in listeners.into_iter().enumerate() {
            let shared = shared.clone();
            let core = if cores.is_empty() { None } else { cores.get(index % cores.len()).copied() };
            let (rows, wanted) = mpsc::unbounded();
            let counters = Arc::new(WorkerCounters::default());
            observed.push(Observed { counters: counters.clone(), rows });
            let desk = worker::Desk { index, counters, rows: wanted };
            threads.spawn(&format!("worker-{index}"), driver.clone(), core, move |commands| {
                worker::run(shared, listeners, desk, commands)
            })?;
        }
        Ok(Self { addresses, shared, driver: driver.name(), workers: observed })
    }
}

impl Shared {
    /// From now on no session begins; requests for one are told so.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The slugs of all agents, and whether one of that slug is up.
    fn agents_up(&self) -> Vec<(String, bool)> {
        self.agent.iter().map(|(agent, _)| (agent.slug.clone(), true)).collect()
    }

    fn new(config: GatewayConfig, keys: Vec<KeyEntry>, roots: Vec<CertificateDer<'static>>) -> io::Result<Self> {
        let dialler = Dialler {
            egress: Arc::new(Egress::new(config.egress.allow, config.egress.deny)),
            resolver: Resolver::start()?,
            tls: tls::client_config(roots)?,
            tcp_keepalive: config.limits.tcp_keepalive,
        };
        Ok(Self {
            workers: config.runtime.worker_threads(),
            node_id: config.node_id,
            public_url: config.public_url,
            limits: config.limits,
            keys: Keys::new(keys),
            pending: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            agent: config.embedded_agent.map(|agent| (agent, dialler)),
        })
    }
}
