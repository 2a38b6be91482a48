//! The token bucket of a key: one for all worker threads, exact, without a lock.
//!
//! Kept as a single time (GCRA, the "virtual scheduling" form of ITU-T I.371): the moment at which the bucket will
//! be full again. Time is nanoseconds of a monotonic clock; one that steps back gives nothing.
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

#[derive(Debug)]
pub struct Bucket {
    /// Nanoseconds in which one token comes.
    interval: u64,
    /// Nanoseconds in which an empty bucket becomes full.
    capacity: u64,
    full_at: AtomicU64,
}

impl Bucket {
    /// A full bucket: `rate` tokens a second, at most `burst` at a time.
    pub fn new(rate: f64, burst: u32) -> Self {
        // Bounded so that the sums below hold: a rate of next to nothing is one token in centuries.
        let longest = (u64::MAX / 4) as f64 / (f64::from(burst) + 1.0);
        let interval = (1e9 / rate).clamp(1.0, longest) as u64;
        Self { interval, capacity: interval * u64::from(burst), full_at: AtomicU64::new(0) }
    }

    /// Takes one token at `now`.
    ///
    /// # Errors
    /// There is none; the time until there will be one.
    pub fn take(&self, now: u64) -> Result<(), Duration> {
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            let next = full_at.max(now).saturating_add(self.interval);
            let missing = (next - now).saturating_sub(self.capacity);
            if missing > 0 {
                return Err(Duration::from_nanos(missing));
            }
            match self.full_at.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(current) => full_at = current,
            }
        }
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

    proptest! {
        /// The slow, obvious reference: a level that is filled up before each take.
        #[test]
        fn it_agrees_with_a_level_that_is_filled_up(
            rate in 1..50u32,
            burst in 1..20u32,
            steps in prop::collection::vec(0..2_000u64, 1..200),
        ) {
            let bucket = Bucket::new(f64::from(rate), burst);
            let interval = bucket.interval;
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
