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

/// How often a worker looks whether a crowd has left, and how many tasks are one. A session that ends alone leaves
/// little, which the next one uses.
const LOOK_AFTER: Duration = Duration::from_secs(5);
const CROWD: usize = 100;
/// How often more it looks for those who leave late.
const LOOKS_MORE: i32 = 12;

#[derive(Debug, Default)]
pub struct Tasks {
    /// One for each task, as long as it has not ended.
    live: RefCell<Vec<Weak<Signal>>>,
    draining: RefCell<Option<Arc<Drain>>>,
    /// Set when, in a drain, one of the counts below has gone down.
    fewer: Signal,
    /// Set-ups and sessions that a drain waits for.
    awaited: Cell<usize>,
    /// How many are live, and the most there were since memory was given back.
    count: Cell<usize>,
    most: Cell<usize>,
}

/// A set-up or a session that a drain waits for until this is dropped.
#[derive(Debug)]
pub struct Awaited(Rc<Tasks>);

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.awaited.set(self.0.awaited.get() - 1);
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
        self.most.set(self.most.get().max(self.count.get()));
        // In a box, or the task below would have room for it twice: before its first turn, and while it is awaited.
        let task = Box::pin(AssertUnwindSafe(run(signal.clone())).catch_unwind());
        let tasks = self.clone();
        monoio::spawn(async move {
            if task.await.is_err() {
                tracing::error!("a connection failed: its task panicked");
            }
            drop(signal);
            tasks.count.set(tasks.count.get() - 1);
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

    /// Gives memory back when half of a crowd has left, and for a while as the rest of it leaves.
    pub async fn keep_memory_low(&self) {
        let mut leaving = 0;
        loop {
            monoio::time::sleep(LOOK_AFTER).await;
            let (count, most) = (self.count.get(), self.most.get());
            let crowd = most - count >= CROWD && count <= most / 2;
            leaving = if crowd { LOOKS_MORE } else { leaving - i32::from(leaving > 0) };
            if crowd || (leaving > 0 && count < most) {
                memory::tidy(&mut self.live.borrow_mut());
                memory::give_back();
                self.most.set(count);
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
