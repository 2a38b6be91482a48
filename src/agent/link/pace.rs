//! When to try again, and when to say that it still does not work. Times go in, decisions come out.
use std::time::{Duration, Instant};

/// The longest pause before the first try, and before any.
const FIRST: Duration = Duration::from_secs(1);
const SLOWEST: Duration = Duration::from_secs(30);
/// While sessions wait for their gateway to come back.
const HURRIED: Duration = Duration::from_secs(2);

/// What is known already is said again after so long.
const REMIND: Duration = Duration::from_secs(10 * 60);

/// How long to wait between two tries: doubling, and never the same for a crowd that was lost together.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
}

impl Backoff {
    pub fn reset(&mut self) {
        self.tries = 0;
    }

    /// The next pause is the longest that there is.
    pub fn slow_down(&mut self) {
        self.tries = u32::MAX;
    }

    /// The pause before the next try. `random` is 0 up to 1; `hurry`: sessions wait for it.
    pub fn next(&mut self, hurry: bool, random: f64) -> Duration {
        let longest = 2u32.checked_pow(self.tries).map_or(SLOWEST, |times| FIRST.saturating_mul(times).min(SLOWEST));
        self.tries = self.tries.saturating_add(1);
        let pause = longest.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
        if hurry { pause.min(HURRIED) } else { pause }
    }
}

/// Says what is wrong when it is new, and seldom when it is not.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    last: Option<(String, Instant)>,
}

impl Complaints {
    /// Whether this is to be logged.
    pub fn is_news(&mut self, cause: &str, now: Instant) -> bool {
        let known = self.last.as_ref().is_some_and(|(last, at)| last == cause && now < *at + REMIND);
        if !known {
            self.last = Some((cause.to_owned(), now));
        }
        !known
    }

    /// It works. Whether something was wrong before.
    pub fn over(&mut self) -> bool {
        self.last.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn pauses_double_up_to_the_slowest_pace_and_have_jitter() {
        for (random, expected) in [
            (0.0, [500, 1000, 2000, 4000, 8000, 15_000, 15_000]),
            (1.0, [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]),
        ] {
            let mut backoff = Backoff::default();
            assert_eq!(expected.map(|_| backoff.next(false, random)), expected.map(ms));
            backoff.reset();
            assert_eq!(backoff.next(false, random), ms(expected[0]));
        }
        let mut endless = Backoff::default();
        assert!((0..1000).all(|_| endless.next(false, 1.0) <= SLOWEST));
    }

    #[test]
    fn sessions_do_not_wait_long_and_a_refused_token_is_tried_seldom() {
        let mut backoff = Backoff::default();
        assert!((0..100).all(|_| backoff.next(true, 1.0) <= HURRIED));
        let mut refused = Backoff::default();
        refused.slow_down();
        assert_eq!(refused.next(false, 0.0), ms(15_000));
        refused.slow_down();
        assert_eq!(refused.next(false, 1.0), ms(30_000));
    }

    #[test]
    fn a_complaint_is_made_once_and_again_after_long() {
        let (mut complaints, start) = (Complaints::default(), Instant::now());
        assert!(!complaints.over());
        assert!(complaints.is_news("DNS", start));
        assert!(!complaints.is_news("DNS", start + ms(1000)));
        assert!(complaints.is_news("TCP", start + ms(2000)));
        assert!(complaints.is_news("DNS", start + ms(3000)));
        assert!(!complaints.is_news("DNS", start + REMIND));
        assert!(complaints.is_news("DNS", start + ms(3000) + REMIND));
        assert!(complaints.over());
        assert!(complaints.is_news("DNS", start + ms(4000) + REMIND));
    }
}
