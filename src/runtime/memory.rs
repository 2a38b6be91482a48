//! Takes little memory, and gives it back to the system.
#![allow(unsafe_code)] // the allocator's own interface

/// Gives the pages that this thread has no more use for back to the system.
///
/// mimalloc does so only while a thread goes on allocating: when a crowd of sessions has left, and nobody comes, what
/// they needed would stay. Costs a walk over the thread's pages, so it is for rare occasions.
pub fn give_back() {
    // SAFETY: may be called at any time from any thread (mimalloc.h), also where another allocator is in use.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// Keeps this process to pages of the usual size.
///
/// The allocator's arenas are sparse once a crowd of sessions has left. Where transparent huge pages are on, the kernel
/// collapses what remains of them into pages of 2 MiB (khugepaged takes a range with one page in use), and memory that
/// was given back is there again: 25 MiB of 68 MiB after 2,000 sessions. A kernel without huge pages needs nothing.
pub fn keep_pages_small() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "transparent huge pages stay as they are");
    }
}
