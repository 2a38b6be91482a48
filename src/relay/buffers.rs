//! The worker's pool of receive buffers.
//!
//! A buffer belongs to a session only while bytes are on their way through it; an idle session owns none. Each
//! worker thread has its own pool, so taking and giving back costs no synchronisation.
#![allow(unsafe_code)] // monoio's buffer traits are unsafe to implement
use std::{
    cell::RefCell,
    convert::Infallible,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use monoio::buf::{IoBuf, IoBufMut};

use super::pool::Pool;
use crate::telemetry::counters::WorkerCounters;

/// So much is received at once: large enough that 16 KiB frames cost few system calls, small enough to lend freely.
pub const BUFFER_LEN: usize = 64 * 1024;
/// What TLS adds to so much: with room for it four full records are received, or sent, at once, and not three and then
/// the rest.
const RECORD_OVERHEAD: usize = 1024;

thread_local! {
    static POOL: RefCell<Pool<Box<[u8]>>> = const { RefCell::new(Pool::new()) };
}

/// A buffer of [`BUFFER_LEN`] bytes and a little more, lent by the pool of this thread; it goes back when dropped.
#[derive(Debug)]
pub struct Buffer(Box<[u8]>);

impl Buffer {
    /// Takes a buffer. What it holds is left over from other sessions: only what is received into it may be used.
    pub fn take() -> Self {
        let make = || Ok::<_, Infallible>(vec![0; BUFFER_LEN + RECORD_OVERHEAD].into_boxed_slice());
        let Ok(bytes) = POOL.with_borrow_mut(|pool| pool.lend(make));
        Self(bytes)
    }
}

/// Gives back to the system what nobody has needed since this was called last.
pub(super) fn trim() {
    drop(POOL.with_borrow_mut(Pool::trim));
}

/// From now on the buffers of this thread show in these counters, which must belong to it.
pub(super) fn count_in(counters: &Arc<WorkerCounters>) {
    POOL.with_borrow_mut(|pool| pool.count_in(counters.clone(), |counters| &counters.buffers));
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // The pool is gone when the thread ends; then the buffer simply goes too.
        let _ = POOL.try_with(|pool| pool.borrow_mut().give_back(Some(bytes)));
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

// SAFETY: the bytes are on the heap, so they stay where they are when the buffer is moved, and all of them are
// initialised from the start.
unsafe impl IoBuf for Buffer {
    fn read_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.0.len()
    }
}

// SAFETY: as above; `bytes_total` is the length of the allocation.
unsafe impl IoBufMut for Buffer {
    fn write_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    fn bytes_total(&mut self) -> usize {
        self.0.len()
    }

    unsafe fn set_init(&mut self, _pos: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_given_back_is_lent_again() {
        let first = Buffer::take();
        let address = first.as_ptr();
        drop(first);
        assert_eq!(Buffer::take().as_ptr(), address);
    }
}
