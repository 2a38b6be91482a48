//! How much a thread has to do at a time.
//!
//! Through the ring, a receive or a send costs an entry, a completion and a turn of the run queue; a system call of its
//! own costs the way into the kernel. So where a turn of the thread finds one or two connections ready, plain system
//! calls are cheaper, and where it finds many, the ring's batches are.
use std::{
    cell::{Cell, OnceCell},
    rc::Rc,
};

use super::wake::Signal;

/// Up to so many connections ready in a turn are few.
const FEW: u32 = 2;

#[derive(Debug)]
struct Turns {
    /// Connections that were ready in this turn so far, and in the last one.
    now: Cell<u32>,
    before: Cell<u32>,
    /// Woken behind all that are ready in this turn.
    end: OnceCell<Rc<Signal>>,
}

thread_local! {
    static TURNS: Turns = const { Turns { now: Cell::new(0), before: Cell::new(0), end: OnceCell::new() } };
}

/// A connection of this thread is ready. Must be called on a runtime.
pub(super) fn ready() {
    // There, everything is a plain system call anyway.
    if monoio::utils::is_legacy() {
        return;
    }
    TURNS.with(|turns| {
        let now = turns.now.get();
        turns.now.set(now + 1);
        if now == 0 {
            turns.end.get_or_init(begin).set();
        }
    });
}

/// Whether few connections are ready at a time just now, so that plain system calls are the way.
pub(super) fn is_quiet() -> bool {
    TURNS.with(|turns| turns.end.get().is_some() && turns.now.get() <= FEW && turns.before.get() <= FEW)
}

fn begin() -> Rc<Signal> {
    let end = Rc::<Signal>::default();
    let signal = end.clone();
    monoio::spawn(async move {
        loop {
            signal.wait().await;
            TURNS.with(|turns| turns.before.set(turns.now.replace(0)));
        }
    });
    end
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{config::gateway::Driver as Wanted, runtime::driver::Driver};

    #[test]
    fn a_turn_with_many_is_no_quiet_one_nor_is_the_one_behind_it() {
        let Ok(driver) = Driver::choose(Wanted::IoUring) else { return };
        let run = async {
            assert!(!is_quiet(), "nothing is known yet");
            for many in [1, FEW] {
                (0..many).for_each(|_| ready());
                assert!(is_quiet());
                monoio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            (0..=FEW).for_each(|_| ready());
            assert!(!is_quiet());
            monoio::time::sleep(std::time::Duration::from_millis(1)).await;
            ready();
            assert!(!is_quiet());
            monoio::time::sleep(std::time::Duration::from_millis(1)).await;
            assert!(is_quiet());
        };
        driver.block_on(run).unwrap();
    }

    #[test]
    fn on_epoll_there_is_nothing_to_choose() {
        let run = async {
            ready();
            assert!(!is_quiet());
        };
        Driver::Epoll(None).block_on(run).unwrap();
    }
}
