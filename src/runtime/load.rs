//! How much each worker has, as the other threads see it.
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// One of the things that a worker has, until it is dropped: who has fewest gets the next.
#[derive(Debug)]
pub struct Load(Arc<AtomicUsize>);

impl Load {
    pub fn on(worker: &Arc<AtomicUsize>) -> Self {
        worker.fetch_add(1, Ordering::Relaxed);
        Self(worker.clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
