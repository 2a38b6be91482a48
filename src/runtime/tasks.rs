//! The tasks of one worker: counted as long as they live, told when a drain begins, and kept from taking the thread
//! with them when one panics.
use std::{
    cell::{Cell, RefCell},
    panic::AssertUnwindSafe,
    pin::pin,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;

use super::memory;
use crate::{
    protocol::drain::Drain,
    relay::{deadline, wake::Signal},
};

/// How often a worker looks whether there is memory to be given back, and how many tasks must have ended for that. One
/// that ends alone leaves little, which the next one uses.
const LOOK_AFTER: Duration = Duration::from_secs(2);
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
    pub async fn keep_memory_low(&self) {
        let (mut before, mut looks_more) = (0, 0u32);
        loop {
            monoio::time::sleep(LOOK_AFTER).await;
            let ended = self.ended.get();
            let crowd = ended >= CROWD && (ended - before) * QUIET <= ended;
            before = ended;
            looks_more = if crowd { LOOKS_MORE } else { looks_more.saturating_sub(1) };
            if crowd || (looks_more > 0 && ended > 0) {
                memory::tidy(&mut self.live.borrow_mut());
                memory::give_back();
                self.ended.set(0);
                before = 0;
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
