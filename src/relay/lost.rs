//! Telling a dead peer from a slow one, by what its TCP owes.
//!
//! "A peer that reads slowly, or not at all for a while, is no dead peer. One that has acknowledged nothing for 60 s
//! while bytes of ours are on the way, its TCP not even answering probes, is lost." TCP_USER_TIMEOUT would reset the
//! slow one too.
use std::time::{Duration, Instant};

use crate::runtime::sys::Peer;

/// How long a peer may owe an answer before it is taken for dead.
const SILENCE: Duration = Duration::from_secs(60);

/// What one peer owes.
#[derive(Debug, Default)]
pub(super) struct Debt {
    /// Since when it has owed something without a sign of life.
    since: Option<Instant>,
    /// It was due at the last look already. One look alone may fall between a probe, which a closed window gets every
    /// two minutes in the end, and its answer.
    due: bool,
}

impl Debt {
    pub fn is_owed(&self) -> bool {
        self.since.is_some()
    }

    /// Looks at the peer again, which must be seconds after the last time; whether it is lost.
    pub fn look(&mut self, peer: Peer, now: Instant) -> bool {
        if peer.progress.queued == 0 {
            *self = Self::default();
            return false;
        }
        let since = self.since.get_or_insert(now);
        // Not before it owed: an idle connection has been silent for long.
        *since = (*since).max(now.checked_sub(peer.silent).unwrap_or(now));
        let due = peer.asked && now.duration_since(*since) >= SILENCE;
        std::mem::replace(&mut self.due, due) && due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::session::Progress;

    /// One look every 5 s: (queued, silent seconds, asked). When it is lost, in seconds from the start.
    fn lost_after(looks: impl IntoIterator<Item = (u64, u64, bool)>) -> Option<u64> {
        let (mut debt, start) = (Debt::default(), Instant::now() + Duration::from_secs(1000));
        looks.into_iter().zip((0..).step_by(5)).find_map(|((queued, silent, asked), at)| {
            let progress = Progress { queued, acknowledged: 0 };
            let peer = Peer { progress, silent: Duration::from_secs(silent), asked };
            debt.look(peer, start + Duration::from_secs(at)).then_some(at)
        })
    }

    #[test]
    fn a_dead_peer_is_lost_after_a_minute() {
        assert_eq!(lost_after((0..).step_by(5).map(|at| (9, at, true)).take(100)), Some(65));
    }

    #[test]
    fn an_idle_one_is_not() {
        // Keepalive probes are on the way, its last answer is a minute old, and it owes nothing.
        assert_eq!(lost_after((0..200).map(|_| (0, 60, true))), None);
        // Something was sent just now, after an hour of silence, and is acknowledged at once.
        assert_eq!(lost_after((0..200).map(|n| if n % 20 == 0 { (9, 3600, true) } else { (0, 3600, false) })), None);
    }

    #[test]
    fn one_that_reads_nothing_is_not() {
        // Its window is closed; each probe is answered, and now and then a look falls in between.
        let looks = (0..500u64).map(|n| {
            let silent = n * 5 % 120;
            (9, if silent == 0 { 120 } else { silent }, silent == 0)
        });
        assert_eq!(lost_after(looks), None);
    }

    #[test]
    fn one_that_was_idle_for_long_has_its_minute() {
        assert_eq!(lost_after((0..).map(|n| (9, 3600 + n * 5, true)).take(100)), Some(65));
    }
}
