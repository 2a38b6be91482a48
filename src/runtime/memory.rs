//! Gives memory back to the system.
#![allow(unsafe_code)] // the allocator's own interface

/// Gives the pages that this thread has no more use for back to the system.
///
/// mimalloc does so only while a thread goes on allocating: when a crowd of sessions has left, and nobody comes, what
/// they needed would stay. Costs a walk over the thread's pages, so it is for rare occasions.
pub fn give_back() {
    // SAFETY: may be called at any time from any thread (mimalloc.h), also where another allocator is in use.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
