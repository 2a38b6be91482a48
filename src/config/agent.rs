//! agent.toml: its keys, defaults and limits, and the token that it points at.
//!
//! Owns [`AgentConfig`], complete and checked, and [`Token`]. Tables that gateway.toml has too are read by the same
//! code. Must never show a token, nor repeat a gateway's address that is refused, which may hold a password.
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use tracing::warn;

use super::error::{ConfigError, ConfigErrors, Wrong};
use super::reader::{self, Section};
pub use super::tables::AgentLimits;
use super::tables::{self, AdminConfig, EgressConfig, MAX_CONNECTIONS, RuntimeConfig};
use super::{names, read_file, value};
use crate::protocol::target::{Host, Target};

const DEFAULT_MAX_SESSIONS: u64 = 20_000;
/// Of a token's file, the line break at its end included. Far more than a token has, and less than a request's head
/// may have.
const MAX_TOKEN_FILE_BYTES: u64 = 4096;
const GATEWAY_EXAMPLE: &str = "write \"wss://relay.example.com/agent\"";

/// All of agent.toml.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentConfig {
    /// As written; compare without regard to case.
    pub slug: String,
    /// Two upper-case letters.
    pub country: String,
    pub node_id: String,
    /// At least one, each once.
    pub gateways: Vec<GatewayUrl>,
    /// For [`load_token`].
    pub token_file: PathBuf,
    /// `ws://` to other machines is allowed.
    pub insecure: bool,
    /// Extra roots for `wss://` gateways; those for targets are in `egress`.
    pub ca_file: Option<PathBuf>,
    /// At a time, over all gateways; at least 1.
    pub max_sessions: u64,
    pub runtime: RuntimeConfig,
    pub egress: EgressConfig,
    pub limits: AgentLimits,
    pub admin: AdminConfig,
}

/// Where a gateway lets agents in. `/control` and `/data` come behind the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayUrl {
    /// `wss://`, so TLS.
    pub tls: bool,
    pub host: Host,
    pub port: u16,
    /// Begins with `/` and does not end with it, at least two characters; fit for a request line.
    pub path: String,
    /// The whole address in one spelling, without the scheme's default port. There is no secret in it.
    pub text: String,
}

impl AgentConfig {
    /// Reads and checks a file. The files that it names are not looked at.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        Self::parse(&read_file(path)?, path)
    }

    /// Checks a file's text. `path` is for errors, and for the folder that relative paths count from.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigErrors> {
        let folder = path.parent().unwrap_or(Path::new(""));
        reader::read(text, path, |root| read(root, folder))
    }

    /// What stands in `ca_file`: roots to trust for gateways beside the platform's own.
    pub fn roots(&self) -> Result<Vec<CertificateDer<'static>>, ConfigErrors> {
        tables::roots(self.ca_file.as_deref())
    }
}

/// Every part is read before the first missing one ends it, so that all problems are reported together.
fn read(root: &mut Section<'_, '_>, folder: &Path) -> Option<AgentConfig> {
    let slug = root.required("slug", value::text(names::slug));
    let country = root.required("country", value::text(names::country));
    let node_id = tables::node_id(root);
    let insecure = root.value("insecure", value::boolean).unwrap_or(false);
    let gateways = gateways(root, insecure);
    let token_file = root.required("token_file", value::path("token's file", "token_file = \"agent.token\""));
    let ca_file = tables::ca_file(root, folder);
    let max_sessions = root.value("max_sessions", value::whole(1..=MAX_CONNECTIONS)).unwrap_or(DEFAULT_MAX_SESSIONS);
    let runtime = tables::runtime(root.table("runtime", "[runtime]"));
    let egress = tables::egress(root.table("egress", "[egress]"), folder);
    let limits = tables::agent_limits(&mut root.table("limits", "[limits]"));
    let admin = AdminConfig { addr: tables::admin_addr(&mut root.table("admin", "[admin]")).flatten() };
    Some(AgentConfig {
        slug: slug?,
        country: country?,
        node_id,
        gateways: gateways?,
        token_file: folder.join(token_file?),
        insecure,
        ca_file,
        max_sessions,
        runtime,
        egress,
        limits,
        admin,
    })
}

fn gateways(root: &mut Section<'_, '_>, insecure: bool) -> Option<Vec<GatewayUrl>> {
    root.required("gateways", |_| Ok(()));
    let mut seen = Vec::new();
    let gateways = root.list("gateways", "[\"wss://relay.example.com/agent\"]", |value| {
        let url = GatewayUrl::parse(value::string(value)?, insecure)?;
        if seen.contains(&url) {
            return Err("this gateway stands in the list already".into());
        }
        seen.push(url.clone());
        Ok(url)
    })?;
    if gateways.is_empty() {
        let none = Wrong::from("names no gateway, so there is nothing to do");
        root.error_about("gateways", none.hint("write gateways = [\"wss://relay.example.com/agent\"]"));
    }
    Some(gateways)
}

impl GatewayUrl {
    fn parse(text: &str, insecure: bool) -> Result<Self, Wrong> {
        let wrong = |why: &str| Err(Wrong::from(why).hint(GATEWAY_EXAMPLE));
        let target = match Target::parse(text) {
            Ok(target) => target,
            Err(error) => return wrong(&error.to_string()),
        };
        if target.basic.is_some() {
            return wrong("a gateway is named without user and password; the agent's token stands in \"token_file\"");
        }
        if target.path_and_query.contains('?') {
            return wrong("a gateway is named without \"?\"; the agent's token stands in \"token_file\"");
        }
        let path = target.path_and_query.trim_end_matches('/');
        if path.is_empty() {
            return wrong("a gateway is named with its path, which is \"/agent\" as a rule");
        }
        if path.ends_with("/agent/control") || path.ends_with("/agent/data") {
            return wrong("a gateway is named without \"/control\" and \"/data\", which are added");
        }
        if !target.tls && !insecure && !is_this_machine(&target.host) {
            let clear = "ws:// to another machine is refused: the token and all that is relayed would travel in clear";
            return Err(Wrong::from(clear).hint("write wss://, or insecure = true if nobody can listen on the way"));
        }
        let text = format!("{}://{}{path}", target.scheme(), target.authority());
        Ok(Self { tls: target.tls, port: target.port, path: path.to_owned(), text, host: target.host })
    }
}

fn is_this_machine(host: &Host) -> bool {
    match host {
        Host::Name(name) => name.strip_suffix('.').unwrap_or(name) == "localhost",
        Host::Ip(ip) => ip.to_canonical().is_loopback(),
    }
}

/// What an agent shows to its gateways: printable ASCII without spaces, 1 to 4096 bytes.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The secret itself, for the request's header and nothing else.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        match bytes.trim_ascii_end() {
            [] => Err("is empty, so there is no token in it"),
            token if token.contains(&b'\n') => Err("has more than one line, and only one can be the token"),
            token if !token.iter().all(u8::is_ascii_graphic) => {
                Err("holds no token: there are spaces or other characters in it that no token has")
            }
            token => Ok(Self(String::from_utf8_lossy(token).into_owned())),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(not shown)")
    }
}

/// Reads a token's file: the token alone, and white space behind it. Warns in the log of a file that others can read.
///
/// # Errors
/// The file cannot be read, has more than 4096 bytes, or holds no token.
pub fn load_token(path: &Path) -> Result<Token, ConfigErrors> {
    let token = read_token(path)?;
    if let Some(warning) = exposed(path) {
        warn!("{warning}");
    }
    Ok(token)
}

fn read_token(path: &Path) -> Result<Token, ConfigError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_TOKEN_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| ConfigError::unreadable(path, &error))?;
    let token = match bytes.len() as u64 {
        ..=MAX_TOKEN_FILE_BYTES => Token::parse(&bytes),
        _ => Err("has more than 4096 bytes, so it holds no token"),
    };
    token.map_err(|message| {
        ConfigError::new(path, message).with_hint("write what `ringway agent-token new` printed in its first line")
    })
}

/// The warning about a secret's file that others than its owner can read or write.
#[must_use]
pub fn exposed(path: &Path) -> Option<ConfigError> {
    const OTHERS: u32 = 0o077;
    let metadata = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let mode = metadata.permissions().mode() & 0o777;
    (mode & OTHERS != 0).then(|| {
        let message = format!("holds a secret and is open to others than its owner (mode {mode:04o})");
        ConfigError::new(path, message).with_hint(format!("`chmod 600 {}` closes it", path.display()))
    })
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
