//! Turns on the epoll driver, so that timers fire however busy a thread is.
//!
//! There, a receive or a send that need not wait completes at once, and a task whose peer is always ready runs on for
//! ever: no other task has a turn. Timers fire only when all tasks wait. On io_uring every operation waits for its
//! completion, so this comes by itself.
use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// How long a thread may work without looking at its timers.
const TURN: Duration = Duration::from_millis(10);
/// The shortest time that a timer knows.
const TICK: Duration = Duration::from_millis(1);

thread_local! {
    /// Since when the timer that shows that timers fire has been waiting.
    static WAITING_SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Waits a moment if the timers of this thread are late. May be dropped.
pub async fn take_turns() {
    if !monoio::utils::is_legacy() {
        return;
    }
    match WAITING_SINCE.get() {
        None => {
            WAITING_SINCE.set(Some(Instant::now()));
            monoio::spawn(async {
                monoio::time::sleep(TICK).await;
                WAITING_SINCE.set(None);
            });
        }
        // All who are busy come here and wait, so that nobody is left to run but the timers.
        // In a box, since it is rare, and every waiting session would keep room for it.
        Some(since) if since.elapsed() >= TURN => Box::pin(monoio::time::sleep(TICK)).await,
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    fn in_a_busy_thread(busy: impl AsyncFn()) -> bool {
        let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().enable_timer().build().unwrap();
        runtime.block_on(async {
            let fired = Rc::new(Cell::new(false));
            let seen = fired.clone();
            monoio::spawn(async move {
                monoio::time::sleep(Duration::from_millis(20)).await;
                seen.set(true);
            });
            // Let the timer begin, then never wait for anything.
            monoio::time::sleep(TICK).await;
            let began = Instant::now();
            while !fired.get() && began.elapsed() < Duration::from_millis(300) {
                busy().await;
            }
            fired.get()
        })
    }

    #[test]
    fn timers_fire_in_a_busy_thread() {
        assert!(in_a_busy_thread(take_turns));
        // What it is about: without turns they do not.
        assert!(!in_a_busy_thread(async || {}));
    }
}
