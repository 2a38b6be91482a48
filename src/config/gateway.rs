//! gateway.toml: its keys, defaults and limits.
//!
//! Owns [`GatewayConfig`], complete and checked: whoever holds one need not look at a value twice. What the contract
//! has and this version has not is refused by name. Must never read the files that gateway.toml names; it only makes
//! their paths count from the file's own folder.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use rustls_pki_types::CertificateDer;

use super::egress::EgressRule;
use super::error::{ConfigErrors, Wrong};
use super::reader::{self, Section};
use super::{certs, names, read_file, value};

const MAX_WORKERS: u64 = 1024;
const MAX_CONNECTIONS: u64 = 100_000_000;
/// Zero would mean "never" to some and "at once" to others; more than a day is a typing error.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=DAY;
/// Zero is meant here: close everything at once.
const DRAIN: RangeInclusive<Duration> = Duration::ZERO..=DAY;
/// Linux takes whole seconds, at most 32767.
const KEEPALIVE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(9 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// All of gateway.toml that is built. `default()` is what an empty file means.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewayConfig {
    /// Of this gateway; its embedded agent's is in [`EmbeddedAgentConfig`].
    pub node_id: String,
    /// `ws://` or `wss://`, without a trailing slash and without `/ws`.
    pub public_url: Option<String>,
    pub runtime: RuntimeConfig,
    pub listen: ListenConfig,
    pub admin: AdminConfig,
    pub keys: KeysConfig,
    pub agents: AgentsConfig,
    /// `None`: the gateway answers `no_agent`.
    pub embedded_agent: Option<EmbeddedAgentConfig>,
    pub egress: EgressConfig,
    pub limits: LimitsConfig,
}

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
pub struct ListenConfig {
    /// Plain listeners; at least one if there is no TLS. Each address once, port 0 excepted.
    pub addr: Vec<SocketAddr>,
    pub tls: Option<TlsListenConfig>,
    /// Every connection, plain or TLS, begins with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// Who may send it; empty: everyone.
    pub proxy_protocol_from: Vec<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsListenConfig {
    /// At least one; each once, and none that is a plain listener's, port 0 excepted.
    pub addr: Vec<SocketAddr>,
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// `None`: there is no admin listener.
    pub addr: Option<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgentsConfig {
    pub tokens: Option<PathBuf>,
    pub idle_channels: u32,
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysConfig {
    pub file: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddedAgentConfig {
    /// As written; compare without regard to case.
    pub slug: String,
    /// Two upper-case letters.
    pub country: String,
    /// The gateway's own where the file names none.
    pub node_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EgressConfig {
    pub allow: Vec<EgressRule>,
    pub deny: Vec<EgressRule>,
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitsConfig {
    pub header_timeout: Duration,
    pub connect_timeout: Duration,
    pub target_timeout: Duration,
    pub max_sessions: u64,
    pub max_pending: u64,
    pub drain: Duration,
    pub tcp_keepalive: Duration,
}

impl GatewayConfig {
    /// Reads and checks a file. The files that it names are not looked at.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        Self::parse(&read_file(path)?, path)
    }

    /// Checks a file's text. `path` is for errors, and for the folder that relative paths count from.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigErrors> {
        let folder = path.parent().unwrap_or(Path::new(""));
        reader::read(text, path, |root| read(root, folder))
    }
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            agents: Default::default(),
            node_id: host_name().unwrap_or_else(|| "localhost".to_owned()),
            public_url: None,
            runtime: RuntimeConfig::default(),
            listen: ListenConfig::default(),
            admin: AdminConfig::default(),
            keys: KeysConfig::default(),
            embedded_agent: None,
            egress: EgressConfig::default(),
            limits: LimitsConfig::default(),
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
        self.ca_file.as_deref().map_or(Ok(Vec::new()), certs::load_roots)
    }
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            addr: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))],
            tls: None,
            proxy_protocol: false,
            proxy_protocol_from: Vec::new(),
        }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { addr: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9091))) }
    }
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self { file: PathBuf::from("keys.toml") }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            target_timeout: Duration::from_secs(15),
            max_sessions: 100_000,
            max_pending: 10_000,
            drain: Duration::from_secs(30),
            tcp_keepalive: Duration::from_secs(60),
        }
    }
}

/// Every part is read, present or not, so that all of its keys are known when the unknown ones are reported.
fn read(root: &mut Section<'_, '_>, folder: &Path) -> Option<GatewayConfig> {
    let node_id = root.value("node_id", |value| Ok(names::node_id(value::string(value)?)?)).or_else(host_name);
    if node_id.is_none() {
        root.error_about("node_id", "this machine's host name cannot serve as node id, so write one");
    }
    let node_id = node_id.unwrap_or_default();
    let public_url = root.value("public_url", |value| public_url(value::string(value)?));
    let runtime = runtime(root.table("runtime", "[runtime]"));
    let listen = listen(root.table("listen", "[listen]"), folder);
    let admin = admin(root.table("admin", "[admin]"), &listen);
    let keys = keys(root.table("keys", "[keys]"), folder);
    let embedded_agent = embedded_agent(root.table("embedded_agent", "[embedded_agent]"), &node_id);
    let egress = egress(root.table("egress", "[egress]"), folder);
    let limits = limits(root.table("limits", "[limits]"));
    let agents = agents(root.table("agents", "[agents]"), folder);
    Some(GatewayConfig { node_id, public_url, runtime, listen, admin, keys, agents, embedded_agent, egress, limits })
}

fn runtime(mut table: Section<'_, '_>) -> RuntimeConfig {
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

fn agents(mut table: Section<'_, '_>, folder: &Path) -> AgentsConfig {
    AgentsConfig {
        tokens: table.value("tokens", |value| Ok(value::string(value)?.to_owned())).map(|name| folder.join(name)),
        idle_channels: table.value("idle_channels", value::whole(1..=64)).unwrap_or(4) as u32,
    }
}

fn listen(mut table: Section<'_, '_>, folder: &Path) -> ListenConfig {
    let default = ListenConfig::default();
    let addr = table.list("addr", "[\"127.0.0.1:8080\"]", value::socket_addr).unwrap_or(default.addr);
    if let Some(one) = named_twice(&addr, &[]) {
        table.error_about("addr", format!("names {one} twice"));
    }
    let section = table.table("tls", "[listen.tls]");
    let has_tls = section.is_present();
    let tls = listen_tls(section, folder, &addr);
    if addr.is_empty() && !has_tls {
        let no_listener = Wrong::from("names no address, and there is no [listen.tls], so nothing would listen");
        table.error_about("addr", no_listener.hint("write addr = [\"127.0.0.1:8080\"]"));
    }
    let proxy_protocol = table.value("proxy_protocol", value::boolean);
    let from = table.list("proxy_protocol_from", "[\"10.0.0.0/8\"]", network).unwrap_or_default();
    if !from.is_empty() && proxy_protocol != Some(true) {
        let unused = Wrong::from("has no meaning without \"proxy_protocol\", and keeps nobody out");
        table.error_about("proxy_protocol_from", unused.hint("write proxy_protocol = true, or leave it out"));
    }
    ListenConfig { addr, tls, proxy_protocol: proxy_protocol.unwrap_or(false), proxy_protocol_from: from }
}

fn listen_tls(mut table: Section<'_, '_>, folder: &Path, plain: &[SocketAddr]) -> Option<TlsListenConfig> {
    table.required("addr", |_| Ok(()));
    let addr = table.list("addr", "[\"0.0.0.0:443\"]", value::socket_addr);
    if addr.as_ref().is_some_and(Vec::is_empty) {
        let no_listener =
            Wrong::from("names no address").hint("write addr = [\"0.0.0.0:443\"], or leave [listen.tls] out");
        table.error_about("addr", no_listener);
    }
    if let Some(one) = named_twice(addr.as_deref().unwrap_or_default(), plain) {
        let where_else = if plain.contains(&one) { ", which [listen] names too" } else { " twice" };
        table.error_about("addr", format!("names {one}{where_else}"));
    }
    let mut file = |key, what: &str, example: &str| {
        let file = table.required(key, |value| match value::string(value)? {
            "" => {
                Err(Wrong::from(format!("is the path of the {what}, and empty here")).hint(format!("write {example}")))
            }
            file => Ok(PathBuf::from(file)),
        });
        file.map(|file| folder.join(file))
    };
    let cert = file("cert", "certificate, a PEM file", "cert = \"cert.pem\"");
    let key = file("key", "certificate's private key, a PEM file", "key = \"key.pem\"");
    Some(TlsListenConfig { addr: addr?, cert: cert?, key: key? })
}

/// An address that stands in the list before, or in `others`. Port 0 is another one each time.
fn named_twice(addresses: &[SocketAddr], others: &[SocketAddr]) -> Option<SocketAddr> {
    let taken = |i: usize, one: &SocketAddr| addresses[..i].contains(one) || others.contains(one);
    addresses.iter().enumerate().find(|(i, one)| one.port() != 0 && taken(*i, one)).map(|(_, one)| *one)
}

/// An address or a network, in the notation of the egress rules.
fn network(value: &toml::de::DeValue<'_>) -> Result<IpNet, Wrong> {
    let wrong = || Wrong::from(format!("a network is written \"10.0.0.0/8\", not {}", value::show(value)));
    let text = value.as_str().ok_or_else(wrong)?;
    let names_an_address = text.split('/').next().is_some_and(|address| address.parse::<IpAddr>().is_ok());
    match names_an_address.then(|| text.parse::<EgressRule>()) {
        Some(Ok(EgressRule::Net(net))) => Ok(net),
        Some(Err(why)) => Err(why.into()),
        _ => Err(wrong()),
    }
}

fn keys(mut table: Section<'_, '_>, folder: &Path) -> KeysConfig {
    table.refuse("store");
    let file = table.value("file", |value| match value::string(value)? {
        "" => Err(Wrong::from("is the path of the keys file, and empty here").hint("write file = \"keys.toml\"")),
        file => Ok(PathBuf::from(file)),
    });
    KeysConfig { file: folder.join(file.unwrap_or(KeysConfig::default().file)) }
}

fn embedded_agent(mut table: Section<'_, '_>, gateway_node_id: &str) -> Option<EmbeddedAgentConfig> {
    let slug = table.required("slug", |value| Ok(names::slug(value::string(value)?)?));
    let country = table.required("country", |value| Ok(names::country(value::string(value)?)?));
    let node_id = table.value("node_id", |value| Ok(names::node_id(value::string(value)?)?));
    let node_id = node_id.unwrap_or_else(|| gateway_node_id.to_owned());
    Some(EmbeddedAgentConfig { slug: slug?, country: country?, node_id })
}

fn egress(mut table: Section<'_, '_>, folder: &Path) -> EgressConfig {
    let rule = |value: &toml::de::DeValue<'_>| Ok(value::string(value)?.parse::<EgressRule>()?);
    let allow = table.list("allow", "[\"10.0.0.0/8\", \"db.example.com\"]", rule).unwrap_or_default();
    let deny = table.list("deny", "[\"10.0.0.0/8\", \"db.example.com\"]", rule).unwrap_or_default();
    let ca_file = table.value("ca_file", |value| Ok(value::string(value)?.to_owned()));
    let ca_file = ca_file.filter(|file| !file.is_empty()).map(|file| folder.join(file));
    table.refuse_unless("proxy", |value| value.as_str() == Some(""));
    EgressConfig { allow, deny, ca_file }
}

fn limits(mut table: Section<'_, '_>) -> LimitsConfig {
    let default = LimitsConfig::default();
    let mut duration = |key, range, default| table.value(key, value::duration(range)).unwrap_or(default);
    let header_timeout = duration("header_timeout", TIMEOUT, default.header_timeout);
    let connect_timeout = duration("connect_timeout", TIMEOUT, default.connect_timeout);
    let target_timeout = duration("target_timeout", TIMEOUT, default.target_timeout);
    let drain = duration("drain", DRAIN, default.drain);
    let tcp_keepalive = duration("tcp_keepalive", KEEPALIVE, default.tcp_keepalive);
    let mut count = |key, default| table.value(key, value::whole(1..=MAX_CONNECTIONS)).unwrap_or(default);
    let max_sessions = count("max_sessions", default.max_sessions);
    let max_pending = count("max_pending", default.max_pending);
    LimitsConfig { header_timeout, connect_timeout, target_timeout, max_sessions, max_pending, drain, tcp_keepalive }
}

fn admin(mut table: Section<'_, '_>, listen: &ListenConfig) -> AdminConfig {
    let addr = table.value("addr", |value| match value.as_str() {
        Some("") => Ok(None),
        _ => value::socket_addr(value).map(Some),
    });
    let addr = addr.unwrap_or(AdminConfig::default().addr);
    if let Some(addr) = addr.filter(|addr| addr.port() != 0 && listen.addr.contains(addr)) {
        table.error_about("addr", format!("names {addr}, which [listen] names already"));
    }
    AdminConfig { addr }
}

/// The address that clients are told. It is repeated to everybody, so it must carry no password.
fn public_url(text: &str) -> Result<String, Wrong> {
    let wrong = |why: &str| Wrong::from(why).hint("write \"wss://relay.example.com\"");
    let url = url::Url::parse(text).map_err(|_| wrong("is the gateway's public address as a ws:// or wss:// URL"))?;
    let is_websocket = matches!(url.scheme(), "ws" | "wss");
    if !is_websocket || !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("is a ws:// or wss:// URL without user and password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("is a URL without \"?\" and \"#\""));
    }
    let base = url.as_str().trim_end_matches('/');
    if base.ends_with("/ws") {
        return Err(wrong("is the address without \"/ws\", which is added"));
    }
    Ok(base.to_owned())
}

fn host_name() -> Option<String> {
    let name = hostname::get().ok()?;
    names::node_id(name.to_str()?).ok()
}

#[cfg(test)]
#[path = "gateway_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "gateway_tls_tests.rs"]
mod tls_tests;
