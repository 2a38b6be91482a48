//! key
use crate::config::KeyEntry;
use sha2::{Digest, Sha256};
pub fn generate() -> anyhow::Result<String> {
    let mut b = [0u8; 32];
    getrandom::fill(&mut b).map_err(|e| anyhow::anyhow!("{e}"))?;
    use base64::Engine;
    Ok(format!("rw_{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(b)))
}
pub fn entry(id: &str, secret: &str) -> KeyEntry {
    KeyEntry {
        id: id.into(),
        sha256: Sha256::digest(secret).into(),
        rate: 10.0,
        burst: 10,
        max_sessions: None,
        expires: None,
    }
}
