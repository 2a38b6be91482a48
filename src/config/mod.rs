//! The files a user writes: gateway.toml, agent.toml, keys.toml and agents.toml, with errors that say where and what to
//! write instead.
//!
//! Owns every key, its default, its limits and the words with which a wrong one is refused. A key that is unknown, or
//! known but not built yet, is an error and never ignored; all problems of a file are reported together. Must never
//! open a socket, start anything, or put the text of a key, a password or a hash into an error.
//!
//! | module | owns |
//! | --- | --- |
//! | [`gateway`] | gateway.toml |
//! | [`agent`] | agent.toml, and the token that it points at |
//! | `tables` | what those two have alike |
//! | [`keys`] | keys.toml |
//! | [`agents`] | agents.toml |
//! | [`egress`] | one rule of `[egress] allow` and `deny` |
//! | [`certs`] | PEM files that a configuration names |
//! | [`kind`] | which of the files a text is |
//! | [`names`], [`units`] | what a slug, a country, `"10s"` or `"64KiB"` is |
//! | `reader`, `value`, `error` | walking a parsed TOML file and collecting what is wrong with it |
pub mod agent;
pub mod agents;
pub mod certs;
pub mod egress;
mod error;
pub mod gateway;
pub mod keys;
pub mod kind;
pub mod names;
mod reader;
mod tables;
pub mod units;
mod value;

use std::path::Path;

pub use agent::AgentConfig;
pub use agents::AgentEntry;
pub use egress::EgressRule;
pub use error::{ConfigError, ConfigErrors};
pub use gateway::GatewayConfig;
pub use keys::KeyEntry;

/// Reads a configuration file as text; what cannot be read, or is not UTF-8, is an error that names the file.
pub fn read_file(path: &Path) -> Result<String, ConfigErrors> {
    let bytes = std::fs::read(path).map_err(|error| ConfigError::unreadable(path, &error))?;
    utf8(bytes, path)
}

/// A configuration file's bytes as text; `path` is for the error.
pub fn utf8(bytes: Vec<u8>, path: &Path) -> Result<String, ConfigErrors> {
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..good].iter().filter(|&&byte| byte == b'\n').count();
        ConfigError::new(path, "the file is not UTF-8 text").at_line(line).into()
    })
}
