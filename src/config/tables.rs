//! The tables that gateway.toml and agent.toml have alike.
//!
//! Owns their keys, defaults and limits, so that the two files cannot come to differ in them.
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use super::egress::EgressRule;
use super::error::{ConfigErrors, Wrong};
use super::reader::Section;
use super::{certs, names, value};
use crate::protocol::connect::Proxy;

const MAX_WORKERS: u64 = 1024;
pub(super) const MAX_CONNECTIONS: u64 = 100_000_000;
/// Zero would mean "never" to some and "at once" to others; more than a day is a typing error.
pub(super) const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=DAY;
/// Zero is meant here: close everything at once.
const DRAIN: RangeInclusive<Duration> = Duration::ZERO..=DAY;
/// Linux takes whole seconds, at most 32767.
const KEEPALIVE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(9 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const PROXY_EXAMPLE: &str = "write \"socks5://127.0.0.1:1080\" or \"http://127.0.0.1:3128\"";

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeConfig {
    /// 0: one a core; see [`RuntimeConfig::worker_threads`].
    pub workers: usize,
    pub driver: Driver,
}

/// How monoio talks to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Driver {
    /// io_uring where the kernel lets us, else epoll.
    #[default]
    Auto,
    IoUring,
    Epoll,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// `None`: there is no admin listener.
    pub addr: Option<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EgressConfig {
    pub allow: Vec<EgressRule>,
    pub deny: Vec<EgressRule>,
    pub ca_file: Option<PathBuf>,
    /// Behind which targets are reached where a session names no proxy.
    pub proxy: Option<Proxy>,
}

/// `[limits]` of agent.toml, which stand in gateway.toml too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentLimits {
    /// For name, TCP, proxy, TLS and opening handshake of the target together.
    pub target_timeout: Duration,
    /// How long a shutdown waits at most.
    pub drain: Duration,
    pub tcp_keepalive: Duration,
}

impl Default for AgentLimits {
    fn default() -> Self {
        Self {
            target_timeout: Duration::from_secs(15),
            drain: Duration::from_secs(30),
            tcp_keepalive: Duration::from_secs(60),
        }
    }
}

impl RuntimeConfig {
    /// How many worker threads to start: what the file says, or one for each core that this process may use.
    pub fn worker_threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
        if self.workers == 0 { cores() } else { self.workers }
    }
}

impl EgressConfig {
    /// What stands in `ca_file`: roots to trust beside the platform's own.
    pub fn roots(&self) -> Result<Vec<CertificateDer<'static>>, ConfigErrors> {
        roots(self.ca_file.as_deref())
    }
}

/// The certificates of a `ca_file`, none where the file names none.
pub(super) fn roots(ca_file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, ConfigErrors> {
    ca_file.map_or(Ok(Vec::new()), certs::load_roots)
}

/// `node_id` at the top of a file: the host's name where it names none.
pub(super) fn node_id(root: &mut Section<'_, '_>) -> String {
    let node_id = root.value("node_id", value::text(names::node_id)).or_else(host_name);
    if node_id.is_none() {
        root.error_about("node_id", "this machine's host name cannot serve as node id, so write one");
    }
    node_id.unwrap_or_default()
}

/// `[admin] addr`; the inner `None`: no admin listener.
pub(super) fn admin_addr(table: &mut Section<'_, '_>) -> Option<Option<SocketAddr>> {
    table.value("addr", |value| match value.as_str() {
        Some("") => Ok(None),
        _ => value::socket_addr(value).map(Some),
    })
}

/// The limits that both files have.
pub(super) fn agent_limits(table: &mut Section<'_, '_>) -> AgentLimits {
    let default = AgentLimits::default();
    let mut duration = |key, range, default| table.value(key, value::duration(range)).unwrap_or(default);
    AgentLimits {
        target_timeout: duration("target_timeout", TIMEOUT, default.target_timeout),
        drain: duration("drain", DRAIN, default.drain),
        tcp_keepalive: duration("tcp_keepalive", KEEPALIVE, default.tcp_keepalive),
    }
}

/// A `ca_file`, in [egress] or elsewhere; `""` names none.
pub(super) fn ca_file(table: &mut Section<'_, '_>, folder: &Path) -> Option<PathBuf> {
    let file = table.value("ca_file", |value| Ok(value::string(value)?.to_owned()));
    file.filter(|file| !file.is_empty()).map(|file| folder.join(file))
}

pub(super) fn runtime(mut table: Section<'_, '_>) -> RuntimeConfig {
    let workers = table.value("workers", value::whole(0..=MAX_WORKERS)).unwrap_or(0);
    let driver = table.value("driver", |value| match value.as_str() {
        Some("auto") => Ok(Driver::Auto),
        Some("io_uring") => Ok(Driver::IoUring),
        Some("epoll") => Ok(Driver::Epoll),
        _ => Err(format!("is \"auto\", \"io_uring\" or \"epoll\", not {}", value::show(value)).into()),
    });
    table.refuse("relay");
    RuntimeConfig { workers: usize::try_from(workers).unwrap_or(0), driver: driver.unwrap_or_default() }
}

pub(super) fn egress(mut table: Section<'_, '_>, folder: &Path) -> EgressConfig {
    let mut rules = |key| {
        let rules = table.list(key, "[\"10.0.0.0/8\", \"db.example.com\"]", value::text(str::parse::<EgressRule>));
        rules.unwrap_or_default()
    };
    let (allow, deny) = (rules("allow"), rules("deny"));
    let ca_file = ca_file(&mut table, folder);
    let proxy = table.value("proxy", |value| match value::string(value)? {
        "" => Ok(None),
        url => Proxy::parse(url).map(Some).map_err(|error| Wrong::from(error.to_string()).hint(PROXY_EXAMPLE)),
    });
    EgressConfig { allow, deny, ca_file, proxy: proxy.flatten() }
}

pub(super) fn host_name() -> Option<String> {
    let name = hostname::get().ok()?;
    names::node_id(name.to_str()?).ok()
}
