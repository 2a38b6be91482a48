//! The gateway: takes connections from clients, sets sessions up, and hands them to the relay.
//!
//! Everything here happens before a session's first relayed byte. State that worker threads share is touched at
//! connect only; a connection belongs to the worker that accepted it.
pub mod bucket;
mod connection;
pub mod http;
pub mod keys;
mod reload;
mod routes;
mod session;
mod worker;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use rustls_pki_types::CertificateDer;

use self::{
    keys::Keys,
    reload::{Reloaded, Reloader},
};
use crate::{
    agent::{dial::Dialler, egress::Egress, tls},
    config::{
        ConfigError, GatewayConfig, KeyEntry, certs,
        gateway::{EmbeddedAgentConfig, LimitsConfig},
        keys as keys_file,
    },
    protocol::drain::Drain,
    runtime::{
        driver::Driver,
        listen,
        resolver::Resolver,
        threads::{Threads, allowed_cores},
    },
};

/// What all workers of a gateway share.
#[derive(Debug)]
pub struct Shared {
    node_id: String,
    public_url: Option<String>,
    limits: LimitsConfig,
    keys: Keys,
    /// Connections that have not got as far as a session.
    pending: AtomicU64,
    /// Sessions, from a validated connect message on.
    sessions: AtomicU64,
    /// Those of them that are relayed.
    relayed: Arc<AtomicUsize>,
    draining: AtomicBool,
    agent: Option<(EmbeddedAgentConfig, Dialler)>,
}

/// A gateway whose workers run.
#[derive(Debug)]
pub struct Gateway {
    /// The addresses it listens on, with the real ports.
    pub addresses: Vec<SocketAddr>,
    pub shared: Arc<Shared>,
    reloaders: Vec<Reloader>,
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
        let files = (config.keys.file.clone(), config.egress.ca_file.clone());
        let shared = Arc::new(Shared::new(config, keys, roots)?);
        let reloaders = shared.reloaders(files.0, files.1);
        let cores = allowed_cores();
        for (index, listeners) in listeners.into_iter().enumerate() {
            let shared = shared.clone();
            let core = if cores.is_empty() { None } else { cores.get(index % cores.len()).copied() };
            threads.spawn(&format!("worker-{index}"), driver.clone(), core, move |line| {
                worker::run(shared, listeners, line)
            })?;
        }
        Ok(Self { addresses, shared, reloaders })
    }

    /// Reads again what may be read again, and logs what came of it. Must not be called on a worker: it waits for
    /// files.
    pub fn reload(&self) -> Reloaded {
        reload::run(&self.reloaders)
    }
}

impl Shared {
    /// From now on no session begins; requests for one are told so. What there is ends as the drain says, of which
    /// the workers must be told.
    pub fn begin_drain(&self) -> Drain {
        self.draining.store(true, Ordering::SeqCst);
        let relayed = self.relayed.load(Ordering::SeqCst);
        let all = usize::try_from(self.sessions()).unwrap_or(usize::MAX);
        Drain::new(Instant::now(), self.limits.drain, relayed, all.saturating_sub(relayed), fastrand::u64(..))
    }

    /// Sessions now, from a validated connect message on.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// What a reload reads again, each with its file. Whatever else has files of its own adds its line.
    fn reloaders(self: &Arc<Self>, keys: PathBuf, roots: Option<PathBuf>) -> Vec<Reloader> {
        let shared = self.clone();
        let mut reloaders = vec![Reloader::new("API keys", keys, move |file| {
            let entries = keys_file::load(file)?;
            Ok(shared.keys.replace(entries, Instant::now()).to_string())
        })];
        if let (Some((_, dialler)), Some(file)) = (&self.agent, roots) {
            let dialler = dialler.clone();
            reloaders.push(Reloader::new("roots for wss:// targets", file, move |file| {
                let roots = certs::load_roots(file)?;
                let count = roots.len();
                let config = tls::client_config(roots).map_err(|error| ConfigError::new(file, error.to_string()))?;
                dialler.tls.store(config);
                Ok(format!("{count} beside the system's own"))
            }));
        }
        reloaders
    }

    fn new(config: GatewayConfig, keys: Vec<KeyEntry>, roots: Vec<CertificateDer<'static>>) -> io::Result<Self> {
        let dialler = Dialler {
            egress: Arc::new(Egress::new(config.egress.allow, config.egress.deny)),
            resolver: Resolver::start()?,
            tls: Arc::new(ArcSwap::new(tls::client_config(roots)?)),
            tcp_keepalive: config.limits.tcp_keepalive,
        };
        Ok(Self {
            node_id: config.node_id,
            public_url: config.public_url,
            limits: config.limits,
            keys: Keys::new(keys),
            pending: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            relayed: Arc::default(),
            draining: AtomicBool::new(false),
            agent: config.embedded_agent.map(|agent| (agent, dialler)),
        })
    }
}
