//! agents.toml: which agents a gateway lets in.
//!
//! Owns [`AgentEntry`], one `[[agent]]`. Several may have one slug: a fleet behind it, or a token that is about to be
//! replaced. A token itself never stands in the file, only its SHA-256, and whatever stands in that place is never
//! repeated in an error: people paste the token there.
use std::path::Path;

use super::error::ConfigErrors;
use super::reader::{self, FirstOffsets, Section};
use super::{names, read_file, value};

/// One token, known by the hash of its bytes, and whom it lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentEntry {
    /// As written; compare without regard to case. Others may have it too.
    pub slug: String,
    /// Unique.
    pub sha256: [u8; 32],
    /// Two upper-case letters that the agent's own country must equal; `None`: any will do.
    pub country: Option<String>,
}

/// Reads and checks a file. Order is kept; no agent at all is valid.
pub fn load(path: &Path) -> Result<Vec<AgentEntry>, ConfigErrors> {
    parse(&read_file(path)?, path)
}

/// Checks a file's text; `path` is for errors.
pub fn parse(text: &str, path: &Path) -> Result<Vec<AgentEntry>, ConfigErrors> {
    reader::read(text, path, |root| {
        let mut entries = Vec::new();
        let mut hashes = FirstOffsets::new();
        root.each_table("agent", "[[agent]]", |table| entries.extend(entry(table, &mut hashes)));
        Some(entries)
    })
}

fn entry(table: &mut Section<'_, '_>, hashes: &mut FirstOffsets<[u8; 32]>) -> Option<AgentEntry> {
    const MAKE_ONE: &str = "`ringway agent-token new --slug NAME` makes a token and its entry";
    let slug = table.required("slug", value::text(names::slug));
    let sha256 = table.required("sha256", value::sha256("token", MAKE_ONE));
    let country = table.value("country", value::text(names::country));
    table.refuse_second("sha256", sha256.as_ref(), hashes);
    Some(AgentEntry { slug: slug?, sha256: sha256?, country })
}

#[cfg(test)]
#[path = "agents_tests.rs"]
mod tests;
