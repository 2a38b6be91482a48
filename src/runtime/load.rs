//! How much a worker, or all of them, have, as any thread may see it.
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// One of the things that are counted, until it is dropped.
#[derive(Debug)]
pub struct Load(Arc<AtomicUsize>);

impl Load {
    pub fn on(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
