//! Whether the other end of a control link is there (CONTRACT's section 7).
use std::time::{Duration, Instant};

use super::HEARTBEAT;

/// Three heartbeats.
const SILENCE: Duration = Duration::from_secs(15);
/// How long a peer that is gone may take to come back before its sessions end.
const GRACE: Duration = Duration::from_secs(15);

/// What is known of a peer's life.
#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    heard: Instant,
    /// When the link ended, if it has, and no other has come in its place.
    ended: Option<Instant>,
}

/// What that comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Up,
    /// It takes no new sessions; those that it has go on.
    Missed,
    /// Its sessions end.
    Lost,
}

impl Liveness {
    /// A link that stands since `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { heard: now, ended: None }
    }

    /// Something came over the link, or a new one of the same process stands.
    pub fn heard(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// The link has ended, by FIN, reset, or its own fault.
    pub fn ended(&mut self, now: Instant) {
        self.ended.get_or_insert(now);
    }

    /// Silence is as good as an end, from the moment when three heartbeats have been missed.
    fn gone_since(&self) -> Instant {
        let silent = self.heard + SILENCE;
        self.ended.map_or(silent, |ended| ended.min(silent))
    }

    #[must_use]
    pub fn life(&self, now: Instant) -> Life {
        let gone = self.gone_since();
        if now < gone {
            Life::Up
        } else if now < gone + GRACE {
            Life::Missed
        } else {
            Life::Lost
        }
    }

    /// When [`Liveness::life`] changes next if nothing is heard; `None` once it is lost.
    #[must_use]
    pub fn next_change(&self, now: Instant) -> Option<Instant> {
        let gone = self.gone_since();
        [gone, gone + GRACE].into_iter().find(|change| *change > now)
    }
}

/// When the next heartbeat of ours is due, if the last one went out at `last`.
#[must_use]
pub fn next_heartbeat(last: Instant) -> Instant {
    last + HEARTBEAT
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn silence_takes_an_agent_out_and_then_ends_its_sessions() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        liveness.heard(start + s(5));
        for (at, life) in
            [(5, Life::Up), (19, Life::Up), (20, Life::Missed), (34, Life::Missed), (35, Life::Lost), (99, Life::Lost)]
        {
            assert_eq!(liveness.life(start + s(at)), life, "after {at} s");
        }
        assert_eq!(liveness.next_change(start + s(5)), Some(start + s(20)));
        assert_eq!(liveness.next_change(start + s(20)), Some(start + s(35)));
        assert_eq!(liveness.next_change(start + s(35)), None);
    }

    #[test]
    fn an_end_counts_at_once() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        liveness.ended(start + s(1));
        liveness.ended(start + s(4)); // It is the first that counts.
        assert_eq!(liveness.life(start + s(1)), Life::Missed);
        assert_eq!(liveness.life(start + s(15)), Life::Missed);
        assert_eq!(liveness.life(start + s(16)), Life::Lost);
        liveness.heard(start + s(10));
        assert_eq!(liveness.life(start + s(24)), Life::Up);
    }

    #[test]
    fn an_end_behind_a_silence_does_not_prolong_it() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        liveness.ended(start + s(29));
        assert_eq!(liveness.life(start + s(30)), Life::Lost);
    }
}
