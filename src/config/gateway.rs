use std::{net::SocketAddr, path::PathBuf, time::Duration};
use crate::agent::egress::Rule as EgressRule;
#[derive(Debug, Clone, Copy)]
pub enum Driver { Auto, IoUring, Epoll }
#[derive(Debug, Clone)]
pub struct GatewayConfig { pub node_id: String, pub public_url: Option<String>, pub runtime: Runtime, pub listen: Listen, pub keys: KeysFile, pub embedded_agent: Option<EmbeddedAgent>, pub egress: Egress, pub limits: Limits }
#[derive(Debug, Clone)]
pub struct Runtime { pub workers: usize, pub driver: Driver }
#[derive(Debug, Clone)]
pub struct Listen { pub addr: Vec<SocketAddr> }
#[derive(Debug, Clone)]
pub struct KeysFile { pub file: PathBuf }
#[derive(Debug, Clone)]
pub struct EmbeddedAgent { pub slug: String, pub country: String, pub node_id: String }
#[derive(Debug, Clone)]
pub struct Egress { pub allow: Vec<EgressRule>, pub deny: Vec<EgressRule>, pub ca_file: Option<PathBuf> }
#[derive(Debug, Clone)]
pub struct Limits { pub header_timeout: Duration, pub connect_timeout: Duration, pub target_timeout: Duration, pub max_sessions: usize, pub max_pending: usize, pub drain: Duration, pub tcp_keepalive: Duration }
