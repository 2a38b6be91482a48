//! The API keys that a gateway knows: who may open a session, how often, and how many at a time.
//!
//! Shared by all worker threads and touched at connect only. Keys are known by their SHA-256; the key itself is
//! never stored, logged or put into an error.
use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use arc_swap::{ArcSwap, Guard};
use serde::Serialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::bucket::Bucket;
use crate::{
    config::keys::KeyEntry,
    protocol::{answer::Failure, session::Side},
    telemetry::counters::Bytes,
};

/// All keys of a gateway.
#[derive(Debug)]
pub struct Keys {
    by_hash: ArcSwap<ByHash>,
    /// Every key that is known or still has sessions, so that one that comes back finds them. Locked by reloads only.
    by_id: Mutex<HashMap<String, Weak<Key>>>,
    /// The zero of the buckets' clock.
    epoch: Instant,
}

type ByHash = HashMap<[u8; 32], Arc<Key>, ahash::RandomState>;

/// One key, with what is counted for it. It is the same one as long as its id is.
#[derive(Debug)]
pub struct Key {
    pub id: String,
    /// What the file says of it; the bucket goes by the same.
    entry: ArcSwap<KeyEntry>,
    bucket: Bucket,
    sessions: AtomicU64,
    used: Arc<Used>,
}

/// What a key has been used for since the gateway started.
#[derive(Debug, Default)]
struct Used {
    sessions: AtomicU64,
    /// One account for each worker, so that each has one writer; opened with the key's first session there.
    bytes: OnceLock<Box<[OnceLock<Arc<Bytes>>]>>,
}

/// The answer to `GET /usage`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Usage<'a> {
    pub id: &'a str,
    pub rate: f64,
    pub burst: u32,
    /// What the bucket holds now, in whole thousandths, rounded down.
    pub tokens: f64,
    pub sessions_active: u64,
    pub sessions_total: u64,
    pub bytes_client_to_target: u64,
    pub bytes_target_to_client: u64,
}

/// One of the sessions that a key may have at a time; given back when dropped.
#[derive(Debug)]
pub struct SessionOfKey(Arc<Key>);

/// What a reload changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub keys: usize,
    pub added: usize,
    pub changed: usize,
    pub removed: usize,
}

impl fmt::Display for Changes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { keys, added, changed, removed } = self;
        write!(out, "{keys} in all, {added} added, {changed} changed, {removed} removed")
    }
}

impl Key {
    /// What the file says of it now.
    pub fn entry(&self) -> Guard<Arc<KeyEntry>> {
        self.entry.load()
    }

    /// Whether it is still good.
    ///
    /// # Errors
    /// [`Failure::InvalidKey`]: it has expired.
    pub fn check_expiry(&self, now: SystemTime) -> Result<(), Failure> {
        if self.entry().expires.is_some_and(|expires| expires <= now) { Err(Failure::InvalidKey) } else { Ok(()) }
    }
}

impl Keys {
    pub fn new(entries: Vec<KeyEntry>) -> Self {
        let keys = Self { by_hash: ArcSwap::default(), by_id: Mutex::default(), epoch: Instant::now() };
        keys.replace(entries, Instant::now());
        keys
    }

    /// Takes over what a file says now. A key that stays, known by its id, keeps its sessions and its bucket's level,
    /// cut to the new burst; one that is gone takes no new sessions.
    pub fn replace(&self, entries: Vec<KeyEntry>, now: Instant) -> Changes {
        let mut by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.by_hash.load_full();
        let listed_before = before.values().map(|key| key.id.as_str());
        let mut gone: HashSet<&str> = listed_before.collect();
        let mut changes = Changes { keys: entries.len(), ..Changes::default() };
        let mut by_hash = ByHash::with_capacity_and_hasher(entries.len(), Default::default());
        for entry in entries {
            let stays = gone.remove(entry.id.as_str());
            changes.added += usize::from(!stays);
            let sha256 = entry.sha256;
            let key = match by_id.get(&entry.id).and_then(Weak::upgrade) {
                Some(key) => {
                    if **key.entry.load() != entry {
                        changes.changed += usize::from(stays);
                        key.bucket.change(entry.rate, entry.burst, self.nanos(now));
                        key.entry.store(Arc::new(entry));
                    }
                    key
                }
                None => {
                    let key = Arc::new(Key {
                        id: entry.id.clone(),
                        bucket: Bucket::new(entry.rate, entry.burst),
                        sessions: AtomicU64::new(0),
                        used: Arc::default(),
                        entry: ArcSwap::from_pointee(entry),
                    });
                    by_id.insert(key.id.clone(), Arc::downgrade(&key));
                    key
                }
            };
            by_hash.insert(sha256, key);
        }
        changes.removed = gone.len();
        self.by_hash.store(Arc::new(by_hash));
        drop(gone);
        drop(before);
        by_id.retain(|_, key| key.strong_count() > 0);
        changes
    }

    /// The key that `secret` is, if it is known and has not expired.
    ///
    /// # Errors
    /// [`Failure::InvalidKey`], whatever the reason.
    pub fn authenticate(&self, secret: Option<&str>, now: SystemTime) -> Result<Arc<Key>, Failure> {
        let key = self.identify(secret)?;
        key.check_expiry(now)?;
        Ok(key)
    }

    /// The key that `secret` is, expired or not.
    ///
    /// # Errors
    /// [`Failure::InvalidKey`]: it is none that is known.
    pub fn identify(&self, secret: Option<&str>) -> Result<Arc<Key>, Failure> {
        let hash: [u8; 32] = Sha256::digest(secret.unwrap_or_default()).into();
        let by_hash = self.by_hash.load();
        // What a look-up's time could tell is about hashes, from which no key can be made; the comparison that
        // decides is in constant time all the same.
        let (known, key) = by_hash.get_key_value(&hash).ok_or(Failure::InvalidKey)?;
        let equal = bool::from(known.ct_eq(&hash));
        if secret.is_some() && equal { Ok(key.clone()) } else { Err(Failure::InvalidKey) }
    }

    /// Admits one session of this key: counts it, and takes its token.
    ///
    /// # Errors
    /// [`Failure::TooManySessions`], which costs nothing, or [`Failure::RateLimited`].
    pub fn admit(&self, key: &Arc<Key>, now: Instant) -> Result<SessionOfKey, Failure> {
        let limit = key.entry().max_sessions.unwrap_or(u64::MAX);
        let counted = key
            .sessions
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |sessions| (sessions < limit).then_some(sessions + 1));
        if counted.is_err() {
            return Err(Failure::TooManySessions);
        }
        let session = SessionOfKey(key.clone());
        key.bucket.take(self.nanos(now)).map_err(|retry_after| Failure::RateLimited { retry_after })?;
        key.used.sessions.fetch_add(1, Ordering::Relaxed);
        Ok(session)
    }

    /// What this key is used for, at `now`.
    pub fn usage<'k>(&self, key: &'k Key, now: Instant) -> Usage<'k> {
        let accounts = key.used.bytes.get().into_iter().flat_map(|workers| workers.iter().filter_map(OnceLock::get));
        let (mut from_client, mut from_target) = (0, 0);
        for account in accounts {
            from_client += account.get(Side::Client);
            from_target += account.get(Side::Target);
        }
        let entry = key.entry();
        Usage {
            id: &key.id,
            rate: entry.rate,
            burst: entry.burst,
            tokens: (key.bucket.level(self.nanos(now)) * 1000.0).floor() / 1000.0,
            sessions_active: key.sessions.load(Ordering::Relaxed),
            sessions_total: key.used.sessions.load(Ordering::Relaxed),
            bytes_client_to_target: from_client,
            bytes_target_to_client: from_target,
        }
    }

    /// On the buckets' clock.
    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Key {
    /// Where `worker`, one of `workers`, counts this key's bytes.
    pub fn account(&self, worker: usize, workers: usize) -> Option<Arc<Bytes>> {
        let accounts = self.used.bytes.get_or_init(|| (0..workers).map(|_| OnceLock::new()).collect());
        Some(accounts.get(worker)?.get_or_init(Arc::default).clone())
    }
}

impl SessionOfKey {
    pub fn key(&self) -> &Key {
        &self.0
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
    fn usage_of_a_key() {
        let keys = keys(None, None);
        let key = keys.authenticate(Some("secret"), SystemTime::now()).unwrap();
        let now = Instant::now();
        let fresh = keys.usage(&key, now);
        assert_eq!((fresh.id, fresh.rate, fresh.burst, fresh.tokens), ("acme", 1.0, 2, 2.0));
        let session = keys.admit(&key, now).unwrap();
        for (worker, bytes) in [(0, 1), (2, 10), (2, 100)] {
            let account = session.key().account(worker, 3).unwrap();
            account.add(Side::Client, bytes);
            account.add(Side::Target, 2 * bytes);
        }
        assert!(session.key().account(3, 3).is_none());
        let used = keys.usage(&key, now);
        assert_eq!((used.tokens, used.sessions_active, used.sessions_total), (1.0, 1, 1));
        assert_eq!((used.bytes_client_to_target, used.bytes_target_to_client), (111, 222));
        drop(session);
        let later = keys.usage(&key, now + Duration::from_millis(500));
        assert_eq!((later.tokens, later.sessions_active, later.sessions_total), (1.5, 0, 1));
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
    fn entry(id: &str, secret: &str) -> KeyEntry {
        let sha256 = Sha256::digest(secret).into();
        KeyEntry { id: id.into(), sha256, rate: 1e-6, burst: 3, max_sessions: Some(2), expires: None }
    }

    #[test]
    fn a_reload_keeps_sessions_and_level() {
        let (now, today) = (Instant::now(), SystemTime::now());
        let keys = Keys::new(vec![entry("acme", "one"), entry("other", "two")]);
        let session = keys.admit(&keys.authenticate(Some("one"), today).unwrap(), now).unwrap();
        // Another secret, burst and bound of the same key; the other one is gone.
        let changed = KeyEntry { burst: 50, max_sessions: Some(3), ..entry("acme", "new") };
        let changes = keys.replace(vec![changed], now);
        assert_eq!(changes, Changes { keys: 1, added: 0, changed: 1, removed: 1 });
        for gone in ["one", "two"] {
            assert_eq!(keys.authenticate(Some(gone), today).unwrap_err(), Failure::InvalidKey);
        }
        let key = keys.authenticate(Some("new"), today).unwrap();
        let more = [keys.admit(&key, now).unwrap(), keys.admit(&key, now).unwrap()];
        assert_eq!(keys.admit(&key, now).unwrap_err(), Failure::TooManySessions, "the first one counts");
        drop((session, more));
        assert!(matches!(keys.admit(&key, now).unwrap_err(), Failure::RateLimited { .. }), "3 of 3 were taken");
    }

    #[test]
    fn a_key_that_comes_back_finds_its_sessions_as_long_as_there_are_some() {
        let (now, today) = (Instant::now(), SystemTime::now());
        let keys = Keys::new(vec![entry("acme", "one")]);
        let admit = || keys.admit(&keys.authenticate(Some("one"), today).unwrap(), now);
        let sessions = [admit().unwrap(), admit().unwrap()];
        assert_eq!(keys.replace(vec![], now).removed, 1);
        let changes = keys.replace(vec![entry("acme", "one")], now);
        assert_eq!(changes, Changes { keys: 1, added: 1, changed: 0, removed: 0 });
        assert_eq!(admit().unwrap_err(), Failure::TooManySessions);
        drop(sessions);
        keys.replace(vec![], now);
        assert!(keys.by_id.lock().unwrap().is_empty(), "nothing is kept of a key without sessions");
    }

    #[test]
    fn a_reload_can_end_a_key_by_its_time() {
        let (now, today) = (Instant::now(), SystemTime::now());
        let keys = Keys::new(vec![entry("acme", "one")]);
        keys.replace(vec![KeyEntry { expires: Some(today), ..entry("acme", "one") }], now);
        assert_eq!(keys.authenticate(Some("one"), today).unwrap_err(), Failure::InvalidKey);
    }
}
