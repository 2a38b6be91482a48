//! The token bucket of a key: one for all worker threads, exact, without a lock.
//!
//! Kept as a single time (GCRA, the "virtual scheduling" form of ITU-T I.371): the moment at which the bucket will
//! be full again. Time is nanoseconds of a monotonic clock; one that steps back gives nothing.
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;

/// In the place of a time: these terms are replaced, and nothing is taken on them any more.
const REPLACED: u64 = u64::MAX;

#[derive(Debug)]
pub struct Bucket {
    terms: ArcSwap<Terms>,
}

/// A bucket's rate and burst, with its level on these terms.
#[derive(Debug)]
struct Terms {
    /// Nanoseconds in which one token comes.
    interval: u64,
    /// Nanoseconds in which an empty bucket becomes full.
    capacity: u64,
    full_at: AtomicU64,
}

impl Bucket {
    /// A full bucket: `rate` tokens a second, at most `burst` at a time.
    pub fn new(rate: f64, burst: u32) -> Self {
        Self { terms: ArcSwap::from_pointee(Terms::new(rate, burst)) }
    }

    /// Takes one token at `now`.
    ///
    /// # Errors
    /// There is none; the time until there will be one.
    pub fn take(&self, now: u64) -> Result<(), Duration> {
        loop {
            if let Some(taken) = self.terms.load().take(now) {
                return taken;
            }
        }
    }

    /// Goes on at another rate and burst. The level stays, cut to the new burst.
    pub fn change(&self, rate: f64, burst: u32, now: u64) {
        let old = self.terms.load_full();
        let new = Terms::new(rate, burst);
        if (new.interval, new.capacity) == (old.interval, old.capacity) {
            return;
        }
        let before = old.full_at.load(Ordering::Acquire);
        let level = old.capacity.saturating_sub(before.saturating_sub(now));
        let level = new.in_interval(level, old.interval).min(new.capacity);
        new.full_at.store(now.saturating_add(new.capacity - level), Ordering::Relaxed);
        let new = std::sync::Arc::new(new);
        self.terms.store(new.clone());
        // What was taken on the old terms since they were looked at is owed on the new ones.
        let after = old.full_at.swap(REPLACED, Ordering::AcqRel);
        let owed = new.in_interval(after.max(now) - before.max(now), old.interval);
        let owe = |full_at: u64| (full_at != REPLACED).then(|| full_at.saturating_add(owed).min(REPLACED - 1));
        let _ = new.full_at.try_update(Ordering::AcqRel, Ordering::Acquire, owe);
    }
}

impl Terms {
    fn new(rate: f64, burst: u32) -> Self {
        // Bounded so that the sums below hold: a rate of next to nothing is one token in centuries.
        let longest = (u64::MAX / 4) as f64 / (f64::from(burst) + 1.0);
        let interval = (1e9 / rate).clamp(1.0, longest) as u64;
        Self { interval, capacity: interval * u64::from(burst), full_at: AtomicU64::new(0) }
    }

    /// `None`: they are replaced.
    fn take(&self, now: u64) -> Option<Result<(), Duration>> {
        let mut full_at = self.full_at.load(Ordering::Acquire);
        loop {
            if full_at == REPLACED {
                return None;
            }
            let next = full_at.max(now).saturating_add(self.interval);
            let missing = (next - now).saturating_sub(self.capacity);
            if missing > 0 {
                return Some(Err(Duration::from_nanos(missing)));
            }
            match self.full_at.compare_exchange_weak(full_at, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(Ok(())),
                Err(current) => full_at = current,
            }
        }
    }

    /// As many tokens as `nanos` are at one token in `interval`, in the nanoseconds of these terms.
    fn in_interval(&self, nanos: u64, interval: u64) -> u64 {
        let nanos = u128::from(nanos) * u128::from(self.interval) / u128::from(interval);
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_new_bucket_is_full_and_refills_at_its_rate() {
        let bucket = Bucket::new(2.0, 3);
        let now = 50 * SECOND;
        for _ in 0..3 {
            bucket.take(now).unwrap();
        }
        assert_eq!(bucket.take(now), Err(Duration::from_millis(500)));
        assert_eq!(bucket.take(now + SECOND / 4), Err(Duration::from_millis(250)));
        bucket.take(now + SECOND / 2).unwrap();
        bucket.take(now + SECOND / 2).unwrap_err();
        for _ in 0..3 {
            bucket.take(now + 100 * SECOND).unwrap();
        }
        bucket.take(now + 100 * SECOND).unwrap_err();
    }

    #[test]
    fn fractions_and_extremes() {
        let slow = Bucket::new(0.1, 1);
        slow.take(0).unwrap();
        assert_eq!(slow.take(SECOND), Err(Duration::from_secs(9)));
        let frozen = Bucket::new(f64::MIN_POSITIVE, u32::MAX);
        frozen.take(u64::MAX / 4).unwrap();
        let torrent = Bucket::new(f64::MAX, 1);
        torrent.take(0).unwrap();
        torrent.take(1).unwrap();
    }

    #[test]
    fn it_is_one_bucket_across_threads() {
        let bucket = Bucket::new(1.0, 1000);
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..1000).filter(|_| bucket.take(SECOND).is_ok()).count())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1000);
    }

    #[test]
    fn a_change_keeps_the_level_and_cuts_it_to_the_new_burst() {
        let tokens = |bucket: &Bucket, now| (0..100).take_while(|_| bucket.take(now).is_ok()).count();
        let now = 50 * SECOND;
        let used = |taken| {
            let bucket = Bucket::new(1.0, 10);
            (0..taken).for_each(|_| bucket.take(now).unwrap());
            bucket
        };
        for (taken, rate, burst, left) in [
            (4, 1.0, 10, 6),
            (4, 1.0, 20, 6),
            (4, 1.0, 3, 3),
            (4, 100.0, 10, 6),
            (4, 0.01, 10, 6),
            (10, 7.0, 5, 0),
            (0, 0.5, 20, 10),
        ] {
            let bucket = used(taken);
            bucket.change(rate, burst, now);
            assert_eq!(tokens(&bucket, now), left, "{taken} of 10 taken, then {burst} at {rate}");
        }
        let bucket = used(10);
        bucket.change(4.0, 10, now);
        assert_eq!(bucket.take(now), Err(Duration::from_millis(250)), "the new rate holds");
        assert_eq!(tokens(&bucket, now + SECOND), 4);
    }

    #[test]
    fn no_token_is_gained_by_changes_while_others_take() {
        let bucket = Bucket::new(1e-6, 10_000);
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..4000).filter(|_| bucket.take(SECOND).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            for turn in 0..1000 {
                bucket.change(if turn % 2 == 0 { 2e-6 } else { 1e-6 }, 10_000, SECOND);
            }
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let left = (0..10_000).take_while(|_| bucket.take(SECOND).is_ok()).count();
        // The level is rounded down with each change, by far less than a token in all.
        assert!((9_999..=10_000).contains(&(taken + left)), "{taken} and {left}");
    }

    proptest! {
        /// The slow, obvious reference: a level that is filled up before each take.
        #[test]
        fn it_agrees_with_a_level_that_is_filled_up(
            rate in 1..50u32,
            burst in 1..20u32,
            steps in prop::collection::vec(0..2_000u64, 1..200),
        ) {
            let bucket = Bucket::new(f64::from(rate), burst);
            let interval = bucket.terms.load().interval;
            let (mut level, mut filled_at, mut now) = (u64::from(burst) * interval, 0, 0);
            for step in steps {
                now += step * 1_000_000;
                level = (level + now - filled_at).min(u64::from(burst) * interval);
                filled_at = now;
                let expected = level >= interval;
                if expected {
                    level -= interval;
                }
                prop_assert_eq!(bucket.take(now).is_ok(), expected);
            }
        }

        #[test]
        fn a_clock_that_steps_back_gives_nothing(back in 0..10 * SECOND) {
            let bucket = Bucket::new(1.0, 5);
            let now = 20 * SECOND;
            for _ in 0..5 {
                bucket.take(now).unwrap();
            }
            prop_assert!(bucket.take(now - back).is_err());
            prop_assert!(bucket.take(now).is_err());
        }
    }
}
