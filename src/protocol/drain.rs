//! How a process that ends spreads the ends of its sessions: who has its turn when, and how long everything may take.
//!
//! One [`Drain`] is shared by all worker threads. Each session draws a turn from it, so that order and spread hold
//! across the workers without one of them knowing the others' sessions. There is no I/O and no clock here.
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// What of the whole time is kept behind the window: the last sessions' peers answer their Closes in it.
const ANSWERS: Duration = Duration::from_secs(5);
/// So few sessions are not worth a spread: their clients cannot come back as a crowd.
const FEW: usize = 10;
const SPREAD_OF_FEW: Duration = Duration::from_secs(1);
/// What a frame in progress has at least, so that a session whose turn comes with the window's end is not cut for a
/// frame that is just passing.
const LEAST_FOR_A_FRAME: Duration = Duration::from_secs(1);

/// The end of all sessions, as it was settled when it began.
#[derive(Debug)]
pub struct Drain {
    began: Instant,
    window_end: Instant,
    end: Instant,
    /// Over how much time the sessions are spread that were there when it began, and those that come later.
    spread: Duration,
    spread_of_late: Duration,
    /// A place in the spread for each session that was there, in random order.
    places: Vec<u32>,
    drawn: AtomicUsize,
}

impl Drain {
    /// The shortest time for one: even with none at all, the Closes go out.
    pub const LEAST: Duration = Duration::from_millis(250);

    /// Everything is over `time` after `began`. There are so many `sessions` now, and so many `dials` in progress that
    /// may still become some. `seed` makes the order.
    pub fn new(began: Instant, time: Duration, sessions: usize, dials: usize, seed: u64) -> Self {
        let window = time.saturating_sub(ANSWERS);
        let spread = |sessions: usize| if sessions < FEW { window.min(SPREAD_OF_FEW) } else { window };
        let mut places: Vec<u32> = (0..u32::try_from(sessions).unwrap_or(u32::MAX)).collect();
        // "The first at once": whoever draws first has the first place.
        if let Some(behind_the_first) = places.get_mut(1..) {
            fastrand::Rng::with_seed(seed).shuffle(behind_the_first);
        }
        Self {
            began,
            window_end: began + window,
            end: began + time,
            spread: spread(sessions),
            spread_of_late: spread(sessions.saturating_add(dials)),
            places,
            drawn: AtomicUsize::new(0),
        }
    }

    /// When dials in progress are given up, and frames in progress are cut.
    pub fn window_end(&self) -> Instant {
        self.window_end
    }

    /// When the process ends, whatever is left.
    pub fn end(&self) -> Instant {
        self.end
    }

    /// Draws the turn of one more session, at `now`. Those that were there when the drain began are spread evenly;
    /// one that came later, or finds its place past, has `random` (0 up to 1) of the rest of the spread.
    pub fn draw(&self, now: Instant, random: f64) -> Instant {
        let place = self.places.get(self.drawn.fetch_add(1, Ordering::Relaxed));
        let turn = place.map(|place| self.began + offset(*place, self.places.len(), self.spread));
        match turn {
            Some(turn) if turn >= now => turn,
            // Its place was passed before its worker heard of the drain.
            Some(_) if now < self.began + SPREAD_OF_FEW => now,
            _ => {
                let rest = (self.began + self.spread_of_late).saturating_duration_since(now);
                now + rest.mul_f64(random.clamp(0.0, 1.0))
            }
        }
    }

    /// Until when a session whose turn is at `turn` may wait for the end of its frame in progress.
    pub fn frame_end(&self, turn: Instant) -> Instant {
        let half_of_the_rest = self.end.saturating_duration_since(turn) / 2;
        self.window_end.max(turn + half_of_the_rest.min(LEAST_FOR_A_FRAME))
    }
}

/// How far into `spread` the turn at `place` of `places` is.
fn offset(place: u32, places: usize, spread: Duration) -> Duration {
    let nanos = spread.as_nanos() * u128::from(place) / (places.max(1) as u128);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What all sessions draw at the moment in which the drain begins, in the order in which they draw.
    fn turns(drain: &Drain, sessions: usize) -> Vec<Duration> {
        (0..sessions).map(|_| drain.draw(drain.began, 0.5) - drain.began).collect()
    }

    #[test]
    fn the_order_is_random() {
        let began = Instant::now();
        let orders: Vec<_> = (0..2).map(|seed| turns(&Drain::new(began, 30 * SECOND, 100, 0, seed), 100)).collect();
        assert_ne!(orders[0], orders[1]);
        assert!(!orders[0].is_sorted());
    }

    #[test]
    fn workers_draw_from_one_spread() {
        let began = Instant::now();
        let drain = Drain::new(began, 30 * SECOND, 1000, 0, 7);
        let mut drawn: Vec<Duration> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| turns(&drain, 250))).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        drawn.sort();
        let expected: Vec<_> = (0..1000).map(|place| 25 * SECOND * place / 1000).collect();
        assert_eq!(drawn, expected);
    }

    #[test]
    fn a_frame_has_until_the_windows_end() {
        let began = Instant::now();
        let drain = Drain::new(began, 30 * SECOND, 1000, 0, 7);
        assert_eq!(drain.frame_end(began), drain.window_end());
        assert_eq!(drain.frame_end(drain.window_end()), drain.window_end() + SECOND);
        // Without a window, half of the time is for the frame and half for the answer, as far as there is any.
        let short = Drain::new(began, SECOND, 1, 0, 7);
        assert_eq!(short.frame_end(began), began + SECOND / 2);
        let none = Drain::new(began, Duration::ZERO, 1, 0, 7);
        assert_eq!(none.frame_end(began), began);
    }

    proptest! {
        #[test]
        fn turns_are_spread_evenly(time_ms in 0..100_000u64, sessions in 1..500usize, seed: u64) {
            let time = Duration::from_millis(time_ms);
            let drain = Drain::new(Instant::now(), time, sessions, 0, seed);
            let mut drawn = turns(&drain, sessions);
            prop_assert_eq!(drawn[0], Duration::ZERO, "the first at once");
            drawn.sort();
            let mut window = time.saturating_sub(5 * SECOND);
            if sessions < 10 {
                window = window.min(SECOND);
            }
            // The slow, obvious reference: equal steps, up to rounding.
            let step = window.as_secs_f64() / sessions as f64;
            for (place, turn) in drawn.iter().enumerate() {
                prop_assert!((turn.as_secs_f64() - step * place as f64).abs() < 1e-6, "{:?} at {}", turn, place);
            }
        }

        #[test]
        fn late_sessions_have_their_turn_within_the_window(
            time_ms in 0..60_000u64,
            sessions in 0..30usize,
            dials in 0..30usize,
            late_ms in 0..60_000u64,
            random in 0.0..1.0,
        ) {
            let began = Instant::now();
            let drain = Drain::new(began, Duration::from_millis(time_ms), sessions, dials, 7);
            turns(&drain, sessions);
            let now = began + Duration::from_millis(late_ms);
            for turn in (0..dials).map(|_| drain.draw(now, random)) {
                prop_assert!(turn >= now);
                prop_assert!(turn <= drain.window_end().max(now));
                if sessions + dials < 10 {
                    prop_assert!(turn <= now.max(began + SECOND));
                }
            }
        }

        #[test]
        fn frames_end_in_time(time_ms in 0..60_000u64, turn_ms in 0..60_000u64) {
            let began = Instant::now();
            let drain = Drain::new(began, Duration::from_millis(time_ms), 1, 0, 7);
            let turn = began + Duration::from_millis(turn_ms.min(time_ms));
            prop_assert!(drain.frame_end(turn) >= drain.window_end());
            prop_assert!(drain.frame_end(turn) <= drain.end());
        }
    }
}
