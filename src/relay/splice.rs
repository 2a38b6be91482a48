//! Large frames between two plain sockets, moved without a copy: splice(2) through a pipe.
//!
//! It is called directly and never waits, so the sockets must be non-blocking: SPLICE_F_NONBLOCK alone speaks of the
//! pipe only. io_uring's own splice always goes to a kernel worker thread.
use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice, tee},
};

use super::pool::Pool;
use crate::telemetry::counters::WorkerCounters;

/// What a pipe takes at once. Its places hold a piece of a packet each, so on a network it takes less.
const PIPE_LEN: usize = 1 << 20;
/// Less room than that is not worth the system calls. The system gives no more where a user has many pipes
/// (`fs.pipe-user-pages-soft`).
const LEAST_LEN: usize = 256 * 1024;
/// Pipes that a worker lends at a time, which bounds what they hold and their descriptors. Most sessions need theirs for
/// an instant; those whose receivers are slow keep theirs. Who gets none copies.
const LENT_AT_MOST: usize = 32;

thread_local! {
    static POOL: RefCell<Pool<Ends>> = const { RefCell::new(Pool::new()) };
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe, lent by the pool of this thread. It goes back when dropped; with bytes in it, it is closed.
#[derive(Debug)]
pub struct Pipe {
    ends: Option<Ends>,
    held: usize,
}

impl Pipe {
    /// Takes a pipe. `None`: too many are lent, or the system gives none.
    pub fn take() -> Option<Self> {
        Self::one_of(LENT_AT_MOST)
    }

    /// Takes a pipe unless so many are lent.
    fn one_of(at_most: usize) -> Option<Self> {
        let lend = |pool: &mut Pool<Ends>| if pool.lent() < at_most { pool.lend(make).ok() } else { None };
        let ends = POOL.with_borrow_mut(lend)?;
        Some(Self { ends: Some(ends), held: 0 })
    }

    /// Takes what there is from `socket`, which must be non-blocking, into this empty pipe, up to [`PIPE_LEN`] bytes. 0:
    /// its end.
    ///
    /// # Errors
    /// There is nothing (`WouldBlock`), or the connection failed.
    pub fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Ok(0) };
        let len = retried(|| splice(&socket, None, &ends.write, None, PIPE_LEN, FLAGS))?;
        self.held += len;
        Ok(len)
    }

    /// Gives `left` bytes of what it holds to `socket`, which must be non-blocking, as far as that takes them, and
    /// counts `left` down.
    ///
    /// # Errors
    /// It takes nothing now (`WouldBlock`), or the connection failed.
    pub fn give(&mut self, socket: impl AsFd, left: &mut usize) -> io::Result<()> {
        while let (Some(ends), 1..) = (&self.ends, *left) {
            match retried(|| splice(&ends.read, None, &socket, None, *left, FLAGS))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                len => {
                    self.held -= len.min(self.held);
                    *left -= len.min(*left);
                }
            }
        }
        Ok(())
    }

    /// So many bytes are in it.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Looks at what it holds, without taking it, as far as `out` has room for it; says how much that was.
    ///
    /// To look before it is taken from the socket would cost more: a receive with MSG_PEEK acknowledges what it leaves.
    pub fn peek(&self, out: &mut [u8]) -> usize {
        // One more than are lent for longer, or the last of those could not be looked at.
        let Some(mut copy) = Self::one_of(LENT_AT_MOST + 1) else { return 0 };
        let (Some(ends), Some(into)) = (&self.ends, &copy.ends) else { return 0 };
        copy.held = retried(|| tee(&ends.read, &into.write, out.len(), SpliceFlags::NONBLOCK)).unwrap_or(0);
        copy.read(out).unwrap_or(0)
    }

    /// Reads what it holds, as far as `out` has room for it.
    ///
    /// # Errors
    /// None that is known for a pipe with something in it.
    pub fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Ok(0) };
        let len = retried(|| rustix::io::read(&ends.read, &mut *out))?;
        self.held -= len.min(self.held);
        Ok(len)
    }

    /// Drops the next `len` bytes.
    pub fn skip(&mut self, mut len: usize) {
        let mut away = [0; 4096];
        while len > 0 {
            let some = len.min(away.len());
            match self.read(&mut away[..some]) {
                Ok(read @ 1..) => len -= read.min(len),
                _ => return,
            }
        }
    }
}

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

impl Drop for Pipe {
    fn drop(&mut self) {
        let ends = self.ends.take().filter(|_| self.held == 0);
        // The pool is gone when the thread ends; then the pipe simply goes too.
        let _ = POOL.try_with(|pool| pool.borrow_mut().give_back(ends));
    }
}

/// Gives back to the system what nobody has needed since this was called last.
pub(super) fn trim() {
    drop(POOL.with_borrow_mut(Pool::trim));
}

/// From now on the pipes of this thread show in these counters, which must belong to it.
pub(super) fn count_in(counters: &Arc<WorkerCounters>) {
    POOL.with_borrow_mut(|pool| pool.count_in(counters.clone(), |counters| &counters.pipes));
}

fn make() -> Result<Ends, Errno> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let len = fcntl_setpipe_size(&write, PIPE_LEN).or_else(|_| fcntl_setpipe_size(&write, LEAST_LEN))?;
    if len < LEAST_LEN { Err(Errno::NOMEM) } else { Ok(Ends { read, write }) }
}

fn retried(mut call: impl FnMut() -> Result<usize, Errno>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        near.set_nonblocking(true).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn bytes_pass_and_a_full_socket_keeps_nothing_waiting() {
        let ((from, mut sender), (to, mut receiver)) = (pair(), pair());
        let mut pipe = Pipe::take().unwrap();
        assert_eq!(pipe.fill(&from).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // The receiver reads nothing until its socket is full.
        let sent: Vec<u8> = (0..8 << 20).map(|byte: u32| ((byte * 31) >> 3) as u8).collect();
        let copy = sent.clone();
        let writer = std::thread::spawn(move || sender.write_all(&copy));
        let mut passed = 0;
        let mut stuck = false;
        let mut received = Vec::new();
        while passed < sent.len() {
            match pipe.fill(&from) {
                Ok(len) => passed += len,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    std::thread::yield_now();
                }
            }
            let mut left = pipe.held();
            while let Err(error) = pipe.give(&to, &mut left) {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                stuck = true;
                let mut some = vec![0; 1 << 20];
                let len = receiver.read(&mut some).unwrap();
                received.extend_from_slice(&some[..len]);
            }
        }
        assert!(stuck, "the socket took all of it");
        drop(to);
        receiver.read_to_end(&mut received).unwrap();
        assert!(received == sent);
        writer.join().unwrap().unwrap();
        assert_eq!(pipe.fill(&from).unwrap(), 0);
    }

    /// A pipe with these bytes in it.
    fn pipe_with_bytes(bytes: &[u8]) -> Pipe {
        let (from, mut sender) = pair();
        sender.write_all(bytes).unwrap();
        let mut pipe = Pipe::take().unwrap();
        while pipe.held() < bytes.len() {
            let _ = pipe.fill(&from);
        }
        pipe
    }

    #[test]
    fn a_look_takes_nothing() {
        let mut pipe = pipe_with_bytes(b"abcdef");
        let mut seen = [0; 4];
        assert_eq!((pipe.peek(&mut seen), &seen), (4, b"abcd"));
        let mut seen = [0; 14];
        assert_eq!((pipe.peek(&mut seen), &seen[..6]), (6, &b"abcdef"[..]));
        let (to, mut receiver) = pair();
        let mut left = 2;
        pipe.give(&to, &mut left).unwrap();
        assert_eq!((left, pipe.held()), (0, 4));
        assert_eq!((pipe.peek(&mut seen), &seen[..4]), (4, &b"cdef"[..]));
        pipe.skip(1);
        assert_eq!((pipe.read(&mut seen).unwrap(), &seen[..3]), (3, &b"def"[..]));
        assert_eq!((pipe.peek(&mut seen), pipe.held()), (0, 0));
        drop(to);
        let mut received = Vec::new();
        receiver.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"ab");
    }

    #[test]
    fn a_pipe_with_something_in_it_is_not_lent_again() {
        drop(pipe_with_bytes(b"abc"));
        let other = Pipe::take().unwrap();
        assert_eq!(other.peek(&mut [0; 3]), 0);
    }

    #[test]
    fn too_many_are_not_lent() {
        let lent: Vec<Pipe> = std::iter::from_fn(Pipe::take).take(LENT_AT_MOST + 1).collect();
        assert!(lent.len() <= LENT_AT_MOST);
        drop(lent);
        assert!(Pipe::take().is_some());
    }
}
