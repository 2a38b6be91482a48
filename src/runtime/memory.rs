//! Takes little memory, and gives it back to the system.
#![allow(unsafe_code)] // the allocator's own interface

use std::rc::Weak;

/// Makes room for one more in a list of what may be gone, without a walk over it each time: as many as are there now
/// can be added before the next one.
pub fn make_room<T>(list: &mut Vec<T>, is_there: impl FnMut(&T) -> bool) {
    if list.len() == list.capacity() {
        list.retain(is_there);
        list.reserve(list.len().max(1));
    }
}

/// Drops what is gone from such a list, and gives back what room it has too much.
pub fn tidy<T>(list: &mut Vec<Weak<T>>) {
    list.retain(|one| one.strong_count() > 0);
    list.shrink_to(list.len() * 2);
}

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

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn a_list_is_walked_over_no_more_often_than_it_doubles() {
        // A crowd has left, and those who stay are joined by others who leave at once.
        let stay: Vec<Rc<()>> = (0..1000).map(|_| Rc::new(())).collect();
        let mut list: Vec<Weak<()>> = stay.iter().map(Rc::downgrade).collect();
        list.extend((0..9000).map(|_| Weak::new()));
        tidy(&mut list);
        assert!((2000..4000).contains(&list.capacity()), "{}", list.capacity());
        let mut walks = 0;
        for _ in 0..10_000 {
            walks += usize::from(list.len() == list.capacity());
            make_room(&mut list, |one| one.strong_count() > 0);
            list.push(Weak::new());
        }
        assert!(walks <= 10, "{walks}");
        assert!(list.capacity() < 4000, "what is gone takes no room for ever: {}", list.capacity());
    }
}
