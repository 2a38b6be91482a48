//! The API keys that a gateway knows: who may open a session, how often, and how many at a time.
//!
//! Shared by all worker threads and touched at connect only. Keys are known by their SHA-256; the key itself is
//! never stored, logged or put into an error.
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::bucket::Bucket;
use crate::{config::keys::KeyEntry, protocol::answer::Failure};

/// All keys of a gateway.
#[derive(Debug)]
pub struct Keys {
    by_hash: HashMap<[u8; 32], Arc<Key>, ahash::RandomState>,
    /// The zero of the buckets' clock.
    epoch: Instant,
}

/// One key, with what is counted for it.
#[derive(Debug)]
pub struct Key {
    pub id: String,
    bucket: Bucket,
    max_sessions: Option<u64>,
    expires: Option<SystemTime>,
    sessions: AtomicU64,
}

/// One of the sessions that a key may have at a time; given back when dropped.
#[derive(Debug)]
pub struct SessionOfKey(Arc<Key>);

impl Keys {
    pub fn new(entries: Vec<KeyEntry>) -> Self {
        let by_hash = entries.into_iter().map(|entry| {
            let key = Key {
                id: entry.id,
                bucket: Bucket::new(entry.rate, entry.burst),
                max_sessions: entry.max_sessions,
                expires: entry.expires,
                sessions: AtomicU64::new(0),
            };
            (entry.sha256, Arc::new(key))
        });
        Self { by_hash: by_hash.collect(), epoch: Instant::now() }
    }

    /// The key that `secret` is, if it is known and has not expired.
    ///
    /// # Errors
    /// [`Failure::InvalidKey`], whatever the reason.
    pub fn authenticate(&self, secret: Option<&str>, now: SystemTime) -> Result<Arc<Key>, Failure> {
        let hash: [u8; 32] = Sha256::digest(secret.unwrap_or_default()).into();
        // What a look-up's time could tell is about hashes, from which no key can be made; the comparison that
        // decides is in constant time all the same.
        let (known, key) = self.by_hash.get_key_value(&hash).ok_or(Failure::InvalidKey)?;
        let equal = bool::from(known.ct_eq(&hash));
        let expired = key.expires.is_some_and(|expires| expires <= now);
        if secret.is_some() && equal && !expired { Ok(key.clone()) } else { Err(Failure::InvalidKey) }
    }

    /// Admits one session of this key: counts it, and takes its token.
    ///
    /// # Errors
    /// [`Failure::TooManySessions`], which costs nothing, or [`Failure::RateLimited`].
    pub fn admit(&self, key: &Arc<Key>, now: Instant) -> Result<SessionOfKey, Failure> {
        let limit = key.max_sessions.unwrap_or(u64::MAX);
        let counted = key
            .sessions
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |sessions| (sessions < limit).then_some(sessions + 1));
        if counted.is_err() {
            return Err(Failure::TooManySessions);
        }
        let session = SessionOfKey(key.clone());
        let now = u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX);
        key.bucket.take(now).map_err(|retry_after| Failure::RateLimited { retry_after })?;
        Ok(session)
    }
}

impl SessionOfKey {
    pub fn id(&self) -> &str {
        &self.0.id
    }
}

impl Drop for SessionOfKey {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn keys(max_sessions: Option<u64>, expires: Option<SystemTime>) -> Keys {
        let sha256 = Sha256::digest("secret").into();
        Keys::new(vec![KeyEntry { id: "acme".into(), sha256, rate: 1.0, burst: 2, max_sessions, expires }])
    }

    #[test]
    fn only_the_key_itself_is_accepted() {
        let now = SystemTime::now();
        let keys = keys(None, None);
        assert_eq!(keys.authenticate(Some("secret"), now).unwrap().id, "acme");
        for wrong in [None, Some(""), Some("Secret"), Some("secret ")] {
            assert_eq!(keys.authenticate(wrong, now).unwrap_err(), Failure::InvalidKey);
        }
    }

    #[test]
    fn an_expired_key_is_an_invalid_one() {
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let keys = keys(None, Some(expires));
        keys.authenticate(Some("secret"), expires - Duration::from_nanos(1)).unwrap();
        assert_eq!(keys.authenticate(Some("secret"), expires).unwrap_err(), Failure::InvalidKey);
    }

    #[test]
    fn too_many_sessions_cost_no_token_and_an_ended_one_makes_room() {
        let keys = keys(Some(1), None);
        let now = Instant::now();
        let key = keys.authenticate(Some("secret"), SystemTime::now()).unwrap();
        let session = keys.admit(&key, now).unwrap();
        for _ in 0..10 {
            assert_eq!(keys.admit(&key, now).unwrap_err(), Failure::TooManySessions);
        }
        drop(session);
        drop(keys.admit(&key, now).unwrap());
        // The bucket is empty now; that refusal must not keep the session counted.
        assert!(matches!(keys.admit(&key, now).unwrap_err(), Failure::RateLimited { .. }));
        keys.admit(&key, now + Duration::from_secs(1)).unwrap();
    }
}
