//! The agent: reaches targets (egress policy, DNS, TCP, proxy, TLS, opening handshake), inside a gateway or as a process of
//! its own that is linked to gateways.
//!
//! The process opens no port for anybody but its operator: it dials every gateway, and takes sessions over the
//! connections that it made.
pub mod dial;
pub mod egress;
pub mod handshake;
pub mod insecure;
pub mod link;
mod proxy;
mod record;
pub mod tls;
mod worker;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use futures_channel::mpsc::{self, UnboundedSender};
use rustls_pki_types::CertificateDer;

use self::{
    dial::Dialler,
    egress::Egress,
    link::{Event, Gateway, Ticket},
    record::Row,
    worker::{Desk, Order},
};
use crate::{
    admin::{Overview, RowsWanted},
    config::{
        AgentConfig, ConfigError, ConfigErrors,
        agent::{self, AgentLimits, Token},
        certs,
    },
    protocol::drain::Drain,
    runtime::{
        driver::Driver,
        load::Load,
        reload::{self, Reloader},
        resolver::Resolver,
        threads::{ReadyHandle, Threads, allowed_cores},
    },
    telemetry::{
        counters::WorkerCounters,
        prometheus::{LinkedGateway, Snapshot},
    },
};

/// What all workers of an agent share.
#[derive(Debug)]
pub struct Shared {
    slug: String,
    country: String,
    node_id: String,
    /// Names this process to gateways: random.
    process: String,
    limits: AgentLimits,
    max_sessions: u64,
    token: ArcSwap<Token>,
    /// For connections to gateways.
    link_tls: Arc<ArcSwap<rustls::ClientConfig>>,
    dialler: Dialler,
    gateways: Vec<Arc<Gateway>>,
    workers: Vec<Handle>,
    /// Sessions, from a request on, and those of them that are relayed.
    sessions: AtomicU64,
    relayed: Arc<AtomicUsize>,
    /// The numbers of sessions and of hops so far.
    numbers: AtomicU64,
    hops: AtomicU64,
    draining: AtomicBool,
    linked: AtomicBool,
    ready: ReadyHandle,
}

/// A worker, as the others see it.
#[derive(Clone, Debug)]
struct Handle {
    orders: UnboundedSender<Order>,
    load: Arc<AtomicUsize>,
    counters: Arc<WorkerCounters>,
}

/// An agent whose workers run.
#[derive(Debug)]
pub struct Agent {
    pub shared: Arc<Shared>,
    reloaders: Arc<[Reloader]>,
    driver: &'static str,
}

/// An agent, as the admin listener sees it.
#[derive(Debug)]
pub struct Observer {
    shared: Arc<Shared>,
    driver: &'static str,
}

/// What an agent's files hold that is secret, or not its own.
#[derive(Debug)]
pub struct Files {
    pub token: Token,
    /// What `wss://` gateways may show beside the platform's own.
    pub gateway_roots: Vec<CertificateDer<'static>>,
    /// The same of `wss://` targets.
    pub target_roots: Vec<CertificateDer<'static>>,
}

impl Agent {
    /// Starts the workers on `threads`, which begin to link.
    ///
    /// # Errors
    /// A root is none, or a thread could not be started; the error says which.
    pub fn start(config: AgentConfig, files: Files, driver: &Driver, threads: &mut Threads) -> io::Result<Self> {
        let workers = config.runtime.worker_threads();
        let paths = Paths {
            token: config.token_file.clone(),
            gateway_roots: config.ca_file.clone(),
            target_roots: config.egress.ca_file.clone(),
        };
        let (mut gateways, mut desks) = (Vec::new(), Vec::new());
        let mut handles = Vec::new();
        for index in 0..workers {
            let (orders, receiver) = mpsc::unbounded();
            let counters = Arc::new(WorkerCounters::default());
            handles.push(Handle { orders, load: Arc::default(), counters: counters.clone() });
            desks.push(Desk { index, counters, orders: receiver, gateways: Vec::new() });
        }
        for (index, url) in config.gateways.iter().enumerate() {
            let (events, receiver) = mpsc::unbounded();
            let gateway = Arc::new(Gateway::new(url, events));
            gateways.push(gateway.clone());
            desks[index % workers].gateways.push((gateway, receiver));
        }
        let shared = Arc::new(Shared::new(config, files, gateways, handles, threads.ready_handle())?);
        let cores = allowed_cores();
        for desk in desks {
            let shared = shared.clone();
            let core = if cores.is_empty() { None } else { cores.get(desk.index % cores.len()).copied() };
            let name = format!("worker-{}", desk.index);
            threads.spawn(&name, driver.clone(), core, move |line| worker::run(shared, desk, line))?;
        }
        Ok(Self { reloaders: shared.reloaders(paths).into(), shared, driver: driver.name() })
    }

    /// For the admin listener.
    pub fn observer(&self) -> Observer {
        Observer { shared: self.shared.clone(), driver: self.driver }
    }

    /// What reads again what may be read again, logs what came of it, and gives what is wrong with files whose old
    /// content stays in use. It waits for files, so it must run on a thread that nobody waits for.
    pub fn reload(&self) -> impl FnOnce() -> Vec<ConfigError> + Send + use<> {
        let (reloaders, shared) = (self.reloaders.clone(), self.shared.clone());
        move || {
            let wrong = reload::run(&reloaders, "agent.toml");
            shared.gateways.iter().for_each(|gateway| gateway.tell(Event::Reloaded));
            wrong
        }
    }
}

/// The files that a reload reads again.
struct Paths {
    token: PathBuf,
    gateway_roots: Option<PathBuf>,
    target_roots: Option<PathBuf>,
}

impl Shared {
    fn new(
        config: AgentConfig,
        files: Files,
        gateways: Vec<Arc<Gateway>>,
        workers: Vec<Handle>,
        ready: ReadyHandle,
    ) -> io::Result<Self> {
        let mut process = [0; 16];
        getrandom::fill(&mut process).map_err(|_| io::Error::other("no random numbers to be had"))?;
        let dialler = Dialler {
            egress: Arc::new(Egress::new(config.egress.allow, config.egress.deny)),
            resolver: Resolver::start()?,
            tls: Arc::new(ArcSwap::new(tls::client_config(files.target_roots)?)),
            tcp_keepalive: config.limits.tcp_keepalive,
            proxy: config.egress.proxy.map(Arc::new),
        };
        Ok(Self {
            slug: config.slug,
            country: config.country,
            node_id: config.node_id,
            process: format!("{:032x}", u128::from_be_bytes(process)),
            limits: config.limits,
            max_sessions: config.max_sessions,
            token: ArcSwap::from_pointee(files.token),
            link_tls: Arc::new(ArcSwap::new(tls::client_config(files.gateway_roots)?)),
            dialler,
            gateways,
            workers,
            sessions: AtomicU64::new(0),
            relayed: Arc::default(),
            numbers: AtomicU64::new(0),
            hops: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            linked: AtomicBool::new(false),
            ready,
        })
    }

    fn reloaders(self: &Arc<Self>, paths: Paths) -> Vec<Reloader> {
        let shared = self.clone();
        let mut reloaders = vec![Reloader::new("token", paths.token, move |file| {
            shared.token.store(Arc::new(agent::load_token(file)?));
            Ok("the next link uses it".to_owned())
        })];
        let roots = [
            ("roots for wss:// gateways", paths.gateway_roots, self.link_tls.clone()),
            ("roots for wss:// targets", paths.target_roots, self.dialler.tls.clone()),
        ];
        for (what, file, tls) in roots {
            reloaders.extend(file.map(|file| {
                Reloader::new(what, file, move |file| {
                    let roots = certs::load_roots(file)?;
                    let count = roots.len();
                    let config = tls::client_config(roots)
                        .map_err(|error| ConfigErrors::from(ConfigError::new(file, error.to_string())))?;
                    tls.store(config);
                    Ok(format!("{count} beside the system's own"))
                })
            }));
        }
        reloaders
    }

    /// From now on no session begins, and the gateways are told. What there is ends as the drain says, of which the
    /// workers must be told.
    pub fn begin_drain(&self) -> Drain {
        self.draining.store(true, Ordering::SeqCst);
        self.gateways.iter().for_each(|gateway| gateway.tell(Event::Drain));
        let relayed = self.relayed.load(Ordering::SeqCst);
        let all = usize::try_from(self.sessions()).unwrap_or(usize::MAX);
        let dials = all.saturating_sub(relayed);
        Drain::new(Instant::now(), self.limits.drain.max(Drain::LEAST), relayed, dials, fastrand::u64(..))
    }

    /// Sessions now, from a request on.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// How many gateways are linked, and how many there are.
    pub fn links(&self) -> (usize, usize) {
        let up = self.gateways.iter().filter(|gateway| gateway.up.load(Ordering::Relaxed));
        (up.count(), self.gateways.len())
    }

    /// Whether a gateway has ever accepted the link.
    pub fn has_linked(&self) -> bool {
        self.linked.load(Ordering::SeqCst)
    }

    fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A gateway has accepted the link.
    fn linked(&self) {
        if !self.linked.swap(true, Ordering::SeqCst) {
            self.ready.ready();
        }
    }

    fn next_hop(&self) -> u64 {
        self.hops.fetch_add(1, Ordering::Relaxed)
    }

    /// Has the worker that has least to do open a data channel.
    fn order(&self, ticket: Ticket, address: SocketAddr) {
        let least = self.workers.iter().min_by_key(|worker| worker.load.load(Ordering::Relaxed));
        if let Some(worker) = least {
            // A worker that has ended takes the process with it.
            let _ = worker.orders.unbounded_send(Order::Open(ticket, Load::on(&worker.load), address));
        }
    }

    fn order_all(&self, order: impl Fn() -> Order) {
        for worker in &self.workers {
            let _ = worker.orders.unbounded_send(order());
        }
    }
}

impl Overview for Observer {
    type Row = Row;

    fn snapshot(&self) -> Snapshot {
        // Two that differ in their paths only are one here.
        let mut gateways: BTreeMap<&str, LinkedGateway> = BTreeMap::new();
        for gateway in &self.shared.gateways {
            let name = gateway.name.clone();
            let entry = gateways.entry(&gateway.name);
            let one = entry.or_insert(LinkedGateway { name, up: false, channels_ready: 0 });
            one.up |= gateway.up.load(Ordering::Relaxed);
            one.channels_ready += gateway.ready.load(Ordering::Relaxed);
        }
        Snapshot {
            workers: self.shared.workers.iter().map(|worker| worker.counters.clone()).collect(),
            driver: self.driver,
            gateways: Some(gateways.into_values().collect()),
            draining: self.shared.draining(),
            ..Snapshot::default()
        }
    }

    fn not_ready(&self) -> Option<(&'static str, &'static str)> {
        if self.shared.draining() {
            return Some(("draining", "This agent is shutting down"));
        }
        (self.shared.links().0 == 0).then_some(("no_gateway", "No gateway is linked"))
    }

    fn ask_for_rows(&self, wanted: &RowsWanted<Row>) {
        self.shared.order_all(|| Order::Rows(wanted.clone()));
    }

    fn begin_drain(&self) {
        self.shared.begin_drain();
    }
}
