//! gateway.toml: its keys, defaults and limits.
//!
//! Owns [`GatewayConfig`], complete and checked: whoever holds one need not look at a value twice. What the contract
//! has and this version has not is refused by name. Must never read the files that gateway.toml names; it only makes
//! their paths count from the file's own folder.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::egress::EgressRule;
use super::error::{ConfigErrors, Wrong};
use super::reader::{self, Section};
use super::tables::{self, AgentLimits, MAX_CONNECTIONS, TIMEOUT};
pub use super::tables::{AdminConfig, Driver, EgressConfig, RuntimeConfig};
use super::{names, read_file, value};

/// Each is an open connection on both sides that nobody uses; more than a burst of sessions needs only costs.
const IDLE_CHANNELS: std::ops::RangeInclusive<u64> = 1..=64;

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
pub struct KeysConfig {
    pub file: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentsConfig {
    /// agents.toml; `None`: no remote agent is let in.
    pub tokens: Option<PathBuf>,
    /// Data channels kept ready for each agent and worker, 1 to 64.
    pub idle_channels: u32,
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
            node_id: tables::host_name().unwrap_or_else(|| "localhost".to_owned()),
            public_url: None,
            runtime: RuntimeConfig::default(),
            listen: ListenConfig::default(),
            admin: AdminConfig::default(),
            keys: KeysConfig::default(),
            agents: AgentsConfig::default(),
            embedded_agent: None,
            egress: EgressConfig::default(),
            limits: LimitsConfig::default(),
        }
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

impl Default for AgentsConfig {
    fn default() -> Self {
        Self { tokens: None, idle_channels: 4 }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let AgentLimits { target_timeout, drain, tcp_keepalive } = AgentLimits::default();
        Self {
            header_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            target_timeout,
            max_sessions: 100_000,
            max_pending: 10_000,
            drain,
            tcp_keepalive,
        }
    }
}

/// Every part is read, present or not, so that all of its keys are known when the unknown ones are reported.
fn read(root: &mut Section<'_, '_>, folder: &Path) -> Option<GatewayConfig> {
    let node_id = tables::node_id(root);
    let public_url = root.value("public_url", |value| public_url(value::string(value)?));
    let runtime = tables::runtime(root.table("runtime", "[runtime]"));
    let listen = listen(root.table("listen", "[listen]"), folder);
    let admin = admin(root.table("admin", "[admin]"), &listen);
    let keys = keys(root.table("keys", "[keys]"), folder);
    let agents = agents(root.table("agents", "[agents]"), folder);
    let embedded_agent = embedded_agent(root.table("embedded_agent", "[embedded_agent]"), &node_id);
    let egress = tables::egress(root.table("egress", "[egress]"), folder);
    let limits = limits(root.table("limits", "[limits]"));
    Some(GatewayConfig { node_id, public_url, runtime, listen, admin, keys, agents, embedded_agent, egress, limits })
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
    let mut file = |key, what, example| table.required(key, value::path(what, example)).map(|file| folder.join(file));
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
    let file = table.value("file", value::path("keys file", "file = \"keys.toml\""));
    KeysConfig { file: folder.join(file.unwrap_or(KeysConfig::default().file)) }
}

fn agents(mut table: Section<'_, '_>, folder: &Path) -> AgentsConfig {
    let default = AgentsConfig::default();
    let tokens = table.value("tokens", value::path("agents file", "tokens = \"agents.toml\", or leave it out"));
    let idle_channels = table.value("idle_channels", value::whole(IDLE_CHANNELS));
    AgentsConfig {
        tokens: tokens.map(|file| folder.join(file)),
        idle_channels: idle_channels.and_then(|number| number.try_into().ok()).unwrap_or(default.idle_channels),
    }
}

fn embedded_agent(mut table: Section<'_, '_>, gateway_node_id: &str) -> Option<EmbeddedAgentConfig> {
    let slug = table.required("slug", value::text(names::slug));
    let country = table.required("country", value::text(names::country));
    let node_id = table.value("node_id", value::text(names::node_id));
    let node_id = node_id.unwrap_or_else(|| gateway_node_id.to_owned());
    Some(EmbeddedAgentConfig { slug: slug?, country: country?, node_id })
}

fn limits(mut table: Section<'_, '_>) -> LimitsConfig {
    let default = LimitsConfig::default();
    let mut timeout = |key, default| table.value(key, value::duration(TIMEOUT)).unwrap_or(default);
    let header_timeout = timeout("header_timeout", default.header_timeout);
    let connect_timeout = timeout("connect_timeout", default.connect_timeout);
    let AgentLimits { target_timeout, drain, tcp_keepalive } = tables::agent_limits(&mut table);
    let mut count = |key, default| table.value(key, value::whole(1..=MAX_CONNECTIONS)).unwrap_or(default);
    let max_sessions = count("max_sessions", default.max_sessions);
    let max_pending = count("max_pending", default.max_pending);
    LimitsConfig { header_timeout, connect_timeout, target_timeout, max_sessions, max_pending, drain, tcp_keepalive }
}

fn admin(mut table: Section<'_, '_>, listen: &ListenConfig) -> AdminConfig {
    let addr = tables::admin_addr(&mut table).unwrap_or(AdminConfig::default().addr);
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

#[cfg(test)]
#[path = "gateway_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "gateway_tls_tests.rs"]
mod tls_tests;
