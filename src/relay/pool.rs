//! What a worker thread lends to its sessions while they need it: buffers, pipes. What comes back is kept for the next
//! one, and what nobody has needed for a while goes back to the system.
use std::sync::Arc;

use crate::telemetry::counters::{Stock, WorkerCounters};

/// Where a pool shows among the counters of its thread.
type Which = fn(&WorkerCounters) -> &Stock;

/// A pool of one thread.
#[derive(Debug)]
pub(super) struct Pool<T> {
    free: Vec<T>,
    /// The fewest that were free at a time since the last [`Pool::trim`]: so many were of no use.
    spare: usize,
    lent: usize,
    counted: Option<(Arc<WorkerCounters>, Which)>,
}

impl<T> Pool<T> {
    pub const fn new() -> Self {
        Self { free: Vec::new(), spare: 0, lent: 0, counted: None }
    }

    /// From now on what there is shows in these counters, which must belong to this thread.
    pub fn count_in(&mut self, counters: Arc<WorkerCounters>, which: Which) {
        self.counted = Some((counters, which));
        self.count();
    }

    /// Lends one that is free, or a new one.
    ///
    /// # Errors
    /// There is none, and none could be made.
    pub fn lend<E>(&mut self, make: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let one = self.free.pop().map_or_else(make, Ok)?;
        self.spare = self.spare.min(self.free.len());
        self.lent += 1;
        self.count();
        Ok(one)
    }

    pub fn lent(&self) -> usize {
        self.lent
    }

    /// One that was lent is back; `None`: it is of no use any more.
    pub fn give_back(&mut self, one: Option<T>) {
        self.free.extend(one);
        self.lent -= 1;
        self.count();
    }

    /// Takes out those that nobody has needed since this was called last.
    pub fn trim(&mut self) -> Vec<T> {
        let spare = self.free.drain(..self.spare).collect();
        self.spare = self.free.len();
        if self.free.len() < self.free.capacity() / 4 {
            self.free.shrink_to(self.free.len() * 2);
        }
        self.count();
        spare
    }

    fn count(&self) {
        if let Some((counters, which)) = &self.counted {
            which(counters).set(self.lent as u64, self.free.len() as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_lent_again_and_what_nobody_needs_goes() {
        let mut pool = Pool::new();
        let counters = Arc::new(WorkerCounters::default());
        pool.count_in(counters.clone(), |counters| &counters.buffers);
        let counted = || (counters.buffers.lent(), counters.buffers.free());
        let many: Vec<u32> = (0..10).filter_map(|number| pool.lend(|| Ok::<_, ()>(number)).ok()).collect();
        assert_eq!((pool.lent(), counted()), (10, (10, 0)));
        assert_eq!(pool.lend(|| Err("none")), Err("none"));
        many.into_iter().for_each(|one| pool.give_back(Some(one)));
        assert_eq!(counted(), (0, 10));
        assert_eq!(pool.trim().len(), 0, "all of them were needed just now");
        let two = [pool.lend(|| Err(())), pool.lend(|| Err(()))];
        assert_eq!(two, [Ok(9), Ok(8)]);
        pool.give_back(two[0].ok());
        pool.give_back(None);
        assert_eq!(pool.trim(), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(counted(), (0, 1));
        assert_eq!(pool.trim(), [9]);
    }
}
