//! The gateway: takes connections from clients, sets sessions up, and hands them to the relay.
//!
//! Everything here happens before a session's first relayed byte. State that worker threads share is touched at
//! connect only; a connection belongs to the worker that accepted it.
mod agents;
mod arrival;
pub mod bucket;
mod connection;
pub mod http;
pub mod keys;
mod playground;
mod record;
mod routes;
mod schema;
mod session;
mod spread;
pub mod tls;
mod worker;

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use futures_channel::mpsc::{self, UnboundedReceiver, UnboundedSender};
use ipnet::IpNet;
use rustls_pki_types::CertificateDer;

use self::{
    agents::{Agents, Errand, Known},
    keys::Keys,
    record::Row,
    spread::Spread,
    tls::Acceptor,
    worker::Listener,
};
use crate::{
    admin::{Overview, RowsWanted},
    agent::{dial::Dialler, egress::Egress, tls as target_tls},
    config::{
        ConfigError, GatewayConfig, KeyEntry,
        agents::{self as agents_file, AgentEntry},
        certs,
        gateway::LimitsConfig,
        keys as keys_file,
    },
    protocol::drain::Drain,
    runtime::{
        driver::Driver,
        listen,
        reload::{self, Reloader},
        resolver::Resolver,
        threads::{Threads, allowed_cores},
    },
    telemetry::{counters::WorkerCounters, prometheus::Snapshot},
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
    /// There if there are TLS listeners.
    tls: Option<Acceptor>,
    /// Connections begin with a PROXY protocol header.
    proxy_protocol: bool,
    /// Who may connect; empty: everyone.
    proxy_protocol_from: Vec<IpNet>,
    /// Connections that have not got as far as a session.
    pending: AtomicU64,
    /// Sessions, from a validated connect message on.
    sessions: AtomicU64,
    /// Those of them that are relayed.
    relayed: Arc<AtomicUsize>,
    draining: AtomicBool,
    agents: Agents,
    spread: Spread,
    /// The embedded agent's.
    dialler: Dialler,
}

/// What the files hold that a configuration names.
#[derive(Debug, Default)]
pub struct Files {
    pub keys: Vec<KeyEntry>,
    /// Remote agents' tokens; without them no remote agents are taken.
    pub agent_tokens: Option<Vec<AgentEntry>>,
    /// What `wss://` targets may show beside the platform's own.
    pub roots: Vec<CertificateDer<'static>>,
    /// For the listeners of `[listen.tls]`.
    pub tls: Option<Acceptor>,
}

/// A gateway whose workers run.
#[derive(Debug)]
pub struct Gateway {
    /// The addresses it listens on, with the real ports: plain ones, and those with TLS.
    pub addresses: Vec<SocketAddr>,
    pub tls_addresses: Vec<SocketAddr>,
    pub shared: Arc<Shared>,
    reloaders: Arc<[Reloader]>,
    driver: &'static str,
    workers: Vec<Observed>,
}

/// A gateway, as the admin listener sees it.
#[derive(Debug)]
pub struct Observer {
    shared: Arc<Shared>,
    driver: &'static str,
    workers: Vec<Observed>,
}

/// A worker, as the admin listener sees it.
#[derive(Clone, Debug)]
struct Observed {
    counters: Arc<WorkerCounters>,
    rows: UnboundedSender<RowsWanted<Row>>,
}

impl Gateway {
    /// Binds the listeners and starts the workers on `threads`.
    ///
    /// # Errors
    /// An address cannot be bound, or a thread not be started; the error says which.
    pub fn start(config: GatewayConfig, files: Files, driver: &Driver, threads: &mut Threads) -> io::Result<Self> {
        let workers = config.runtime.worker_threads();
        let mut listeners: Vec<Vec<Listener>> = (0..workers).map(|_| Vec::new()).collect();
        let mut bind = |wanted: &[SocketAddr], tls: bool| -> io::Result<Vec<SocketAddr>> {
            let mut addresses = Vec::with_capacity(wanted.len());
            for address in wanted {
                let bound = listen::bind(*address, workers)?;
                addresses.extend(bound.first().map(TcpListener::local_addr).transpose()?);
                let bound = bound.into_iter().map(|socket| Listener { socket, tls });
                listeners.iter_mut().zip(bound).for_each(|(worker, listener)| worker.push(listener));
            }
            Ok(addresses)
        };
        let addresses = bind(&config.listen.addr, false)?;
        let wanted = config.listen.tls.as_ref().map_or(&[][..], |tls| &tls.addr);
        let tls_addresses = bind(wanted, true)?;
        let (keys_file, roots_file) = (config.keys.file.clone(), config.egress.ca_file.clone());
        let certificate = config.listen.tls.as_ref().map(|tls| tls.cert.clone());
        let tokens_file = config.agents.tokens.clone();
        let (spread, arrivals) = Spread::new(workers);
        let (shared, errands) = Shared::new(config, files, spread)?;
        let shared = Arc::new(shared);
        let reloaders = shared.reloaders(keys_file, roots_file, certificate, tokens_file).into();
        let cores = allowed_cores();
        let mut observed = Vec::new();
        let desks = listeners.into_iter().zip(errands).zip(arrivals);
        for (index, ((listeners, errands), arrivals)) in desks.enumerate() {
            let shared = shared.clone();
            let core = if cores.is_empty() { None } else { cores.get(index % cores.len()).copied() };
            let (rows, wanted) = mpsc::unbounded();
            let counters = Arc::new(WorkerCounters::default());
            observed.push(Observed { counters: counters.clone(), rows });
            let desk = worker::Desk { index, counters, rows: wanted, errands, arrivals };
            threads.spawn(&format!("worker-{index}"), driver.clone(), core, move |line| {
                worker::run(shared, listeners, desk, line)
            })?;
        }
        Ok(Self { addresses, tls_addresses, shared, reloaders, driver: driver.name(), workers: observed })
    }

    /// For the admin listener.
    pub fn observer(&self) -> Observer {
        Observer { shared: self.shared.clone(), driver: self.driver, workers: self.workers.clone() }
    }

    /// What reads again what may be read again, logs what came of it, and gives what is wrong with files whose old
    /// content stays in use. It waits for files, so it must run on a thread that nobody waits for.
    pub fn reload(&self) -> impl FnOnce() -> Vec<ConfigError> + Send + use<> {
        let reloaders = self.reloaders.clone();
        move || reload::run(&reloaders, "gateway.toml")
    }
}

impl Overview for Observer {
    type Row = Row;

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            workers: self.workers.iter().map(|worker| worker.counters.clone()).collect(),
            driver: self.driver,
            agents: self.shared.agents.known().into_iter().map(Known::counts).collect(),
            failovers: self.shared.agents.failovers(),
            pending: self.shared.pending.load(Ordering::Relaxed),
            draining: self.shared.draining.load(Ordering::Relaxed),
            ..Snapshot::default()
        }
    }

    fn not_ready(&self) -> Option<(&'static str, &'static str)> {
        if self.shared.draining.load(Ordering::Relaxed) {
            return Some(("draining", "This gateway is shutting down"));
        }
        (!self.shared.agents.any_up()).then_some(("no_agent", "No agent is up"))
    }

    fn ask_for_rows(&self, wanted: &RowsWanted<Row>) {
        for worker in &self.workers {
            // A worker that has ended has no sessions.
            let _ = worker.rows.unbounded_send(wanted.clone());
        }
    }

    fn begin_drain(&self) {
        self.shared.begin_drain();
    }
}

impl Shared {
    /// From now on no session begins; requests for one are told so. What there is ends as the drain says, of which
    /// the workers must be told.
    pub fn begin_drain(&self) -> Drain {
        self.draining.store(true, Ordering::SeqCst);
        let relayed = self.relayed.load(Ordering::SeqCst);
        let all = usize::try_from(self.sessions()).unwrap_or(usize::MAX);
        Drain::new(
            Instant::now(),
            self.limits.drain.max(Drain::LEAST),
            relayed,
            all.saturating_sub(relayed),
            fastrand::u64(..),
        )
    }

    /// Sessions now, from a validated connect message on.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// What a reload reads again, each with its file. Whatever else has files of its own adds its line.
    fn reloaders(
        self: &Arc<Self>,
        keys: PathBuf,
        roots: Option<PathBuf>,
        certificate: Option<PathBuf>,
        agent_tokens: Option<PathBuf>,
    ) -> Vec<Reloader> {
        let shared = self.clone();
        let mut reloaders = vec![Reloader::new("API keys", keys, move |file| {
            let entries = keys_file::load(file)?;
            Ok(shared.keys.replace(entries, Instant::now()).to_string())
        })];
        if let Some(file) = agent_tokens {
            let shared = self.clone();
            reloaders.push(Reloader::new("agent tokens", file, move |file| {
                Ok(shared.agents.replace_tokens(agents_file::load(file)?))
            }));
        }
        if let (Some(_), Some(file)) = (self.agents.embedded(), roots) {
            let dialler = self.dialler.clone();
            reloaders.push(Reloader::new("roots for wss:// targets", file, move |file| {
                let roots = certs::load_roots(file)?;
                let count = roots.len();
                let config =
                    target_tls::client_config(roots).map_err(|error| ConfigError::new(file, error.to_string()))?;
                dialler.tls.store(config);
                Ok(format!("{count} beside the system's own"))
            }));
        }
        if let Some(file) = certificate {
            let shared = self.clone();
            reloaders.push(Reloader::new("TLS certificate and key", file, move |_| {
                shared.tls.as_ref().map_or(Ok(()), Acceptor::reload)?;
                Ok("new connections get it".to_owned())
            }));
        }
        reloaders
    }

    /// Whether a connection from this address is taken at all.
    fn may_connect(&self, from: IpAddr) -> bool {
        self.proxy_protocol_from.is_empty() || self.proxy_protocol_from.iter().any(|net| net.contains(&from))
    }

    fn new(config: GatewayConfig, files: Files, spread: Spread) -> io::Result<(Self, Vec<UnboundedReceiver<Errand>>)> {
        let Files { keys, agent_tokens, roots, tls } = files;
        let dialler = Dialler {
            egress: Arc::new(Egress::new(config.egress.allow, config.egress.deny)),
            resolver: Resolver::start()?,
            tls: Arc::new(ArcSwap::new(target_tls::client_config(roots)?)),
            tcp_keepalive: config.limits.tcp_keepalive,
            proxy: config.egress.proxy.map(Arc::new),
        };
        let workers = config.runtime.worker_threads();
        let (agents, errands) = Agents::new(config.embedded_agent, agent_tokens, config.agents.idle_channels, workers);
        let shared = Self {
            workers,
            node_id: config.node_id,
            public_url: config.public_url,
            limits: config.limits,
            keys: Keys::new(keys),
            tls,
            proxy_protocol: config.listen.proxy_protocol,
            proxy_protocol_from: config.listen.proxy_protocol_from,
            pending: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            relayed: Arc::default(),
            draining: AtomicBool::new(false),
            agents,
            spread,
            dialler,
        };
        Ok((shared, errands))
    }
}
