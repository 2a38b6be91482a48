use std::time::SystemTime;
#[derive(Debug, Clone)]
pub struct KeyEntry { pub id: String, pub sha256: [u8; 32], pub rate: f64, pub burst: u32, pub max_sessions: Option<u64>, pub expires: Option<SystemTime> }
