//! The tasks of one worker: counted as long as they live, told when a drain begins, and kept from taking the thread
//! with them when one panics.
use std::{
    cell::{Cell, RefCell},
    panic::AssertUnwindSafe,
    pin::pin,
    rc::{Rc, Weak},
    sync::Arc,
    time::Instant,
};

use futures_util::FutureExt;

use super::memory;
use crate::{
    protocol::drain::Drain,
    relay::{deadline, wake::Signal},
};

/// After how many beats a worker looks whether there is memory to be given back, and how many tasks must have ended for
/// that. One that ends alone leaves little, which the next one uses.
const LOOK_AFTER: u32 = 2;
const CROWD: usize = 100;
/// As long as more than one in so many of them ended since the last look, others are about to use what they leave.
const QUIET: usize = 10;
/// How often more it looks for those who leave late.
const LOOKS_MORE: u32 = 30;

#[derive(Debug, Default)]
pub struct Tasks {
    /// One for each task, as long as it has not ended.
    live: RefCell<Vec<Weak<Signal>>>,
    draining: RefCell<Option<Arc<Drain>>>,
    /// Set when, in a drain, one of the counts below has gone down.
    fewer: Signal,
    /// Set-ups and sessions that a drain waits for.
    awaited: Cell<usize>,
    /// How many tasks are live.
    count: Cell<usize>,
    /// Tasks, and what a drain waits for, that have ended since memory was given back.
    ended: Cell<usize>,
}

/// Whether there is memory to be given back, from look to look.
#[derive(Debug, Default)]
struct Looks {
    /// What had ended at the last look, since memory was given back.
    ended: usize,
    /// For so many looks those who leave late count, too.
    more: u32,
}

impl Looks {
    /// So many have ended since this was last answered with yes.
    fn worth_it(&mut self, ended: usize) -> bool {
        let just_now = ended - std::mem::replace(&mut self.ended, ended);
        let crowd = ended >= CROWD && just_now * QUIET <= ended;
        self.more = if crowd { LOOKS_MORE } else { self.more.saturating_sub(1) };
        let worth_it = crowd || (self.more > 0 && (1..CROWD).contains(&ended));
        if worth_it {
            self.ended = 0;
        }
        worth_it
    }
}

/// A set-up or a session that a drain waits for until this is dropped.
#[derive(Debug)]
pub struct Awaited(Rc<Tasks>);

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.awaited.set(self.0.awaited.get() - 1);
        self.0.ended.set(self.0.ended.get() + 1);
        self.0.tell_of_fewer();
    }
}

impl Tasks {
    /// Runs a task that counts as live until it ends. The signal is set when a drain begins.
    pub fn spawn<F, R>(self: &Rc<Self>, run: F)
    where
        F: FnOnce(Rc<Signal>) -> R,
        R: Future<Output = ()> + 'static,
    {
        let signal = Rc::new(Signal::default());
        {
            let mut live = self.live.borrow_mut();
            memory::make_room(&mut live, |one| one.strong_count() > 0);
            live.push(Rc::downgrade(&signal));
        }
        self.count.set(self.count.get() + 1);
        // In a box, or the task below would have room for it twice: before its first turn, and while it is awaited.
        let task = Box::pin(AssertUnwindSafe(run(signal.clone())).catch_unwind());
        let tasks = self.clone();
        monoio::spawn(async move {
            if task.await.is_err() {
                tracing::error!("a connection failed: its task panicked");
            }
            drop(signal);
            tasks.count.set(tasks.count.get() - 1);
            tasks.ended.set(tasks.ended.get() + 1);
            tasks.tell_of_fewer();
        });
    }

    /// One more set-up or session that a drain waits for.
    pub fn awaited(self: &Rc<Self>) -> Awaited {
        self.awaited.set(self.awaited.get() + 1);
        Awaited(self.clone())
    }

    /// Awaits a future that may be dropped, in a drain until its window ends: `None` if that comes first. `draining`
    /// is the signal of the task that this is called from.
    pub async fn within_window<F: Future>(&self, draining: &Signal, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let drains = self.draining.borrow().is_some();
        if !drains && let Some(output) = draining.or(future.as_mut()).await {
            return Some(output);
        }
        let window_end = self.draining.borrow().as_ref().map(|drain| drain.window_end());
        deadline::until(window_end.unwrap_or_else(Instant::now), future).await
    }

    /// Gives memory back when a crowd has come, whose set-ups have left theirs, or gone; and for a while as those
    /// leave who are late.
    pub async fn keep_memory_low(&self, beat: &Signal) {
        let mut looks = Looks::default();
        loop {
            for _ in 0..LOOK_AFTER {
                beat.wait().await;
            }
            if looks.worth_it(self.ended.get()) {
                memory::tidy(&mut self.live.borrow_mut());
                memory::give_back();
                self.ended.set(0);
            }
        }
    }

    /// Tells every task that a drain begins.
    pub fn drain(&self, drain: Arc<Drain>) {
        *self.draining.borrow_mut() = Some(drain);
        let tasks: Vec<_> = self.live.borrow().iter().filter_map(Weak::upgrade).collect();
        tasks.iter().for_each(|task| task.set());
    }

    /// In a drain: until the last of what it waits for is gone.
    pub async fn none_awaited(&self) {
        while self.awaited.get() > 0 {
            self.fewer.wait().await;
        }
    }

    /// In a drain: until the last task has ended, or `deadline`.
    pub async fn all_ended(&self, deadline: Instant) {
        while self.count.get() > 0 && deadline::until(deadline, self.fewer.wait()).await.is_some() {}
    }

    fn tell_of_fewer(&self) {
        if self.draining.borrow().is_some() {
            self.fewer.set();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many end before each look; the looks, from 0, at which memory is given back.
    fn given_back_at(ending: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let (mut looks, mut ended) = (Looks::default(), 0);
        let mut look = |more: usize| {
            ended += more;
            looks.worth_it(ended) && std::mem::take(&mut ended) > 0
        };
        ending.into_iter().enumerate().filter_map(|(at, more)| look(more).then_some(at)).collect()
    }

    #[test]
    fn memory_is_given_back_when_a_crowd_is_through() {
        assert_eq!(given_back_at([0, 3000, 2000, 0, 0, 0]), [3]);
        assert_eq!(given_back_at([0, CROWD - 1, 0, 0]), [0; 0]);
        // Then those who are late, for a while.
        let mut late = vec![5000, 0, 1, 0, 7];
        late.extend([0; LOOKS_MORE as usize]);
        late.push(1);
        assert_eq!(given_back_at(late), [1, 2, 4]);
    }

    #[test]
    fn sessions_that_come_and_go_all_the_time_do_not_have_it_given_back_each_time() {
        let at = given_back_at([400; 100]);
        assert!((5..=10).contains(&at.len()), "{at:?}");
    }
}
