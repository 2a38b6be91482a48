//! The tokens with which agents come, known by their SHA-256 only.
use std::collections::HashMap;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::agents::AgentEntry;

/// What a file of tokens says.
#[derive(Debug, Default)]
pub struct Tokens(HashMap<[u8; 32], AgentEntry, ahash::RandomState>);

impl Tokens {
    pub fn new(entries: Vec<AgentEntry>) -> Self {
        Self(entries.into_iter().map(|entry| (entry.sha256, entry)).collect())
    }

    /// Whose token this is.
    pub fn authenticate(&self, token: &str) -> Option<&AgentEntry> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        // The lookup's time depends on a hash, which tells a stranger nothing; the comparison's on nothing.
        self.0.get(&hash).filter(|entry| bool::from(entry.sha256.ct_eq(&hash)))
    }

    /// Whether the token of this hash is still for that slug in that country.
    pub fn stands_for(&self, sha256: &[u8; 32], slug: &str, country: &str) -> bool {
        self.0.get(sha256).is_some_and(|entry| {
            let country_fits = entry.country.as_deref().is_none_or(|expected| expected.eq_ignore_ascii_case(country));
            entry.slug.eq_ignore_ascii_case(slug) && country_fits
        })
    }

    pub fn entries(&self) -> impl Iterator<Item = &AgentEntry> {
        self.0.values()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_hash() {
        let entry = |slug: &str, token: &str| AgentEntry {
            slug: slug.into(),
            sha256: Sha256::digest(token.as_bytes()).into(),
            country: None,
        };
        let tokens = Tokens::new(vec![entry("de1", "a"), entry("de1", "b"), entry("us1", "c")]);
        assert_eq!(tokens.authenticate("b").map(|entry| entry.slug.as_str()), Some("de1"));
        assert_eq!(tokens.authenticate("c").map(|entry| entry.slug.as_str()), Some("us1"));
        for token in ["", "d", "A"] {
            assert_eq!(tokens.authenticate(token), None, "{token:?}");
        }
        assert!(!format!("{tokens:?}").contains("\"a\""));
    }
}
