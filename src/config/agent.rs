//! interim
use super::{
    ConfigError, ConfigErrors,
    gateway::{AdminConfig, EgressConfig, GatewayConfig, RuntimeConfig},
    read_file,
};
use crate::protocol::target::{Host, Target};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

#[derive(Debug, Clone, PartialEq)]
pub struct AgentConfig {
    pub slug: String,
    pub country: String,
    pub node_id: String,
    pub gateways: Vec<GatewayUrl>,
    pub token_file: PathBuf,
    pub ca_file: Option<PathBuf>,
    pub max_sessions: u64,
    pub runtime: RuntimeConfig,
    pub egress: EgressConfig,
    pub limits: LimitsConfig,
    pub admin: AdminConfig,
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayUrl {
    pub tls: bool,
    pub host: Host,
    pub port: u16,
    pub path: String,
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitsConfig {
    pub target_timeout: Duration,
    pub drain: Duration,
    pub tcp_keepalive: Duration,
}

pub fn load_token(path: &Path) -> Result<String, ConfigErrors> {
    Ok(read_file(path)?.trim().to_owned())
}

impl AgentConfig {
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let text = read_file(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let table: toml::Table =
            text.parse().map_err(|e: toml::de::Error| ConfigErrors::from(ConfigError::new(path, e.to_string())))?;
        // [runtime], [egress], [admin], [limits] as in gateway.toml
        let mut shared = toml::Table::new();
        for name in ["runtime", "egress", "admin", "limits"] {
            if let Some(t) = table.get(name) {
                shared.insert(name.into(), t.clone());
            }
        }
        let g = GatewayConfig::parse(&shared.to_string(), path)?;
        let s = |n: &str| table.get(n).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        let gateways = table.get("gateways").and_then(|v| v.as_array()).cloned().unwrap_or_default();
        let gateways = gateways
            .iter()
            .filter_map(|v| {
                let t = Target::parse(v.as_str()?).ok()?;
                Some(GatewayUrl { tls: t.tls, host: t.host, port: t.port, path: t.path_and_query })
            })
            .collect();
        Ok(Self {
            slug: s("slug"),
            country: s("country"),
            node_id: s("node_id"),
            gateways,
            token_file: folder.join(s("token_file")),
            ca_file: table.get("ca_file").and_then(|v| v.as_str()).map(|f| folder.join(f)),
            max_sessions: table.get("max_sessions").and_then(|v| v.as_integer()).unwrap_or(20000) as u64,
            runtime: g.runtime,
            egress: g.egress,
            admin: AdminConfig { addr: table.get("admin").and(g.admin.addr) },
            limits: LimitsConfig {
                target_timeout: g.limits.target_timeout,
                drain: g.limits.drain,
                tcp_keepalive: g.limits.tcp_keepalive,
            },
        })
    }
}
