//! shim until merged
use super::{ConfigError, ConfigErrors};
use std::path::Path;
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentEntry {
    pub slug: String,
    pub sha256: [u8; 32],
    pub country: Option<String>,
}
pub fn load(path: &Path) -> Result<Vec<AgentEntry>, ConfigErrors> {
    let text = super::read_file(path)?;
    let table: toml::Table =
        text.parse().map_err(|_| ConfigErrors::from(ConfigError::new(path, "broken".to_owned())))?;
    let mut out = Vec::new();
    for one in table["agent"].as_array().unwrap() {
        let Some(slug) = one["slug"].as_str() else {
            return Err(ConfigError::new(path, "broken".to_owned()).at_line(2).into());
        };
        let hex = one["sha256"].as_str().unwrap();
        let mut sha256 = [0; 32];
        for (i, b) in sha256.iter_mut().enumerate() {
            *b = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap();
        }
        out.push(AgentEntry {
            slug: slug.into(),
            sha256,
            country: one.get("country").map(|c| c.as_str().unwrap().to_owned()),
        });
    }
    Ok(out)
}
