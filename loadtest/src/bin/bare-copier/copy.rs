//! io_uring: multishot receives into rings of provided buffers, one send in flight for each direction.
#![allow(unsafe_code)] // It talks to the kernel in its own terms; buffers outlive the ring.

use std::{
    collections::VecDeque,
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, RawFd},
    ptr,
    sync::atomic::{AtomicU16, Ordering},
};

use io_uring::{
    IoUring, cqueue, opcode, squeue,
    types::{BufRingEntry, Fd, Fixed},
};

const SQ_ENTRIES: u32 = 4096;
const CQ_ENTRIES: u32 = 16_384;
const BUFFERS: u16 = 256;
const BUFFER_LEN: usize = 64 * 1024;
/// Sockets that may be registered; two for each session.
const FILES: u32 = 131_072;
/// Buffers that go out in one send.
const MAX_IOVECS: usize = 16;

const ACCEPT: u64 = 0;
const RECV: u64 = 1;
const SEND: u64 = 2;

/// One direction. Lane `l` receives from registered socket `l` and sends to socket `l ^ 1`; even ones come from clients.
#[derive(Default)]
struct Lane {
    queue: VecDeque<(u16, u32)>,
    /// Buffers at the front of the queue that are being sent, and their bytes.
    sending: usize,
    sending_len: u32,
    receiving: bool,
    ended: bool,
    /// Filled while a send of several buffers is in flight.
    message: Option<Box<Message>>,
}

struct Message {
    header: libc::msghdr,
    iovecs: [libc::iovec; MAX_IOVECS],
}

#[derive(Default)]
struct Session {
    sockets: Option<[TcpStream; 2]>,
}

pub fn run(listener: TcpListener, upstream: SocketAddr) -> io::Result<()> {
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_no_sqarray()
        .setup_clamp()
        .setup_cqsize(CQ_ENTRIES)
        .build(SQ_ENTRIES)?;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::from(FILES));
    ring.submitter().register_files_sparse(FILES.min(limit as u32))?;
    // One ring of buffers for each direction: what clients send must never keep what they are sent from moving.
    let buffers = [Buffers::new(&ring, 0)?, Buffers::new(&ring, 1)?];
    let mut copier = Copier {
        ring,
        buffers,
        upstream,
        listener,
        lanes: Vec::new(),
        sessions: Vec::new(),
        free: Vec::new(),
        starved: [Vec::new(), Vec::new()],
    };
    copier.arm_accept();
    copier.turn()
}

struct Copier {
    ring: IoUring,
    buffers: [Buffers; 2],
    upstream: SocketAddr,
    listener: TcpListener,
    lanes: Vec<Lane>,
    sessions: Vec<Session>,
    free: Vec<usize>,
    /// Lanes that found no buffer, for each direction.
    starved: [Vec<u32>; 2],
}

impl Copier {
    fn turn(&mut self) -> io::Result<()> {
        let mut completions = Vec::with_capacity(CQ_ENTRIES as usize);
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => {}
                Err(error) => return Err(error),
            }
            completions.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result(), entry.flags())));
            for (data, result, flags) in completions.drain(..) {
                let lane = (data >> 8) as u32;
                match data & 0xFF {
                    ACCEPT => self.accepted(result, flags)?,
                    RECV => self.received(lane, result, flags),
                    _ => self.sent(lane, result),
                }
            }
            for side in 0..2 {
                self.buffers[side].publish();
                // Buffers that came back may serve those who found none.
                let count = self.starved[side].len().min(self.buffers[side].available());
                for _ in 0..count {
                    if let Some(lane) = self.starved[side].pop() {
                        self.arm_receive(lane);
                    }
                }
            }
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: what entries refer to (buffers, messages in boxes) lives until their completion has been seen.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            let _ = self.ring.submit();
        }
    }

    fn arm_accept(&mut self) {
        let entry = opcode::AcceptMulti::new(Fd(self.listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
        self.push(&entry.user_data(ACCEPT));
    }

    fn accepted(&mut self, result: i32, flags: u32) -> io::Result<()> {
        if !cqueue::more(flags) {
            self.arm_accept();
        }
        if result < 0 {
            return match -result {
                libc::ECONNABORTED => Ok(()),
                code => Err(io::Error::from_raw_os_error(code)),
            };
        }
        // SAFETY: the kernel has just made this descriptor, and it is nobody else's.
        let client: TcpStream = unsafe { std::os::fd::FromRawFd::from_raw_fd(result) };
        let Ok(upstream) = super::connect(self.upstream) else { return Ok(()) };
        let index = self.free.pop().unwrap_or_else(|| {
            self.sessions.push(Session::default());
            self.lanes.extend([Lane::default(), Lane::default()]);
            self.sessions.len() - 1
        });
        let lane = (2 * index) as u32;
        let fds = [client.as_raw_fd(), upstream.as_raw_fd()];
        if self.ring.submitter().register_files_update(lane, &fds).is_err() {
            self.free.push(index);
            return Ok(());
        }
        self.sessions[index].sockets = Some([client, upstream]);
        self.arm_receive(lane);
        self.arm_receive(lane + 1);
        Ok(())
    }

    fn arm_receive(&mut self, lane: u32) {
        let state = &mut self.lanes[lane as usize];
        if state.receiving || state.ended || self.sessions[lane as usize / 2].sockets.is_none() {
            return;
        }
        state.receiving = true;
        let entry = opcode::RecvMulti::new(Fixed(lane), (lane & 1) as u16).build();
        self.push(&entry.user_data(u64::from(lane) << 8 | RECV));
    }

    fn received(&mut self, lane: u32, result: i32, flags: u32) {
        let state = &mut self.lanes[lane as usize];
        state.receiving = cqueue::more(flags);
        self.buffers[lane as usize & 1].taken += u16::from(cqueue::buffer_select(flags).is_some());
        match (result, cqueue::buffer_select(flags)) {
            (len @ 1.., Some(buffer)) => {
                state.queue.push_back((buffer, len as u32));
                if !state.receiving {
                    self.arm_receive(lane);
                }
                self.send(lane);
            }
            (result, buffer) => {
                if let Some(buffer) = buffer {
                    self.buffers[lane as usize & 1].give(buffer);
                }
                if result == -libc::ENOBUFS {
                    self.starved[lane as usize & 1].push(lane);
                    return;
                }
                self.lanes[lane as usize].ended = true;
                if result < 0 {
                    self.shut(lane, Shutdown::Both);
                } else if self.lanes[lane as usize].queue.is_empty() {
                    self.shut(lane ^ 1, Shutdown::Write);
                }
                self.reap(lane);
            }
        }
    }

    /// Sends what is queued, unless something is being sent.
    fn send(&mut self, lane: u32) {
        let buffers = &self.buffers[lane as usize & 1];
        let state = &mut self.lanes[lane as usize];
        if state.sending > 0 || state.queue.is_empty() {
            return;
        }
        let (to, flags) = (Fixed(lane ^ 1), libc::MSG_NOSIGNAL | libc::MSG_WAITALL);
        state.sending = state.queue.len().min(MAX_IOVECS);
        let entry = if state.sending == 1 {
            let (buffer, len) = state.queue[0];
            state.sending_len = len;
            opcode::Send::new(to, buffers.at(buffer), len).flags(flags).build()
        } else {
            // SAFETY: all zero is a valid value of these plain C structs.
            let message = state.message.get_or_insert_with(|| Box::new(unsafe { std::mem::zeroed() }));
            state.sending_len = 0;
            for (iovec, &(buffer, len)) in message.iovecs.iter_mut().zip(&state.queue) {
                *iovec = libc::iovec { iov_base: buffers.at(buffer).cast_mut().cast(), iov_len: len as usize };
                state.sending_len += len;
            }
            message.header.msg_iov = message.iovecs.as_mut_ptr();
            message.header.msg_iovlen = state.sending;
            opcode::SendMsg::new(to, &raw const message.header).flags(flags as u32).build()
        };
        self.push(&entry.user_data(u64::from(lane) << 8 | SEND));
    }

    fn sent(&mut self, lane: u32, result: i32) {
        let state = &mut self.lanes[lane as usize];
        let whole = result == state.sending_len as i32;
        for (buffer, _) in state.queue.drain(..state.sending) {
            self.buffers[lane as usize & 1].give(buffer);
        }
        state.sending = 0;
        if !whole {
            // With MSG_WAITALL only a connection that is lost takes less.
            for (buffer, _) in state.queue.drain(..) {
                self.buffers[lane as usize & 1].give(buffer);
            }
            self.shut(lane, Shutdown::Both);
            self.shut(lane ^ 1, Shutdown::Both);
        } else if !state.queue.is_empty() {
            self.send(lane);
            return;
        } else if state.ended {
            self.shut(lane ^ 1, Shutdown::Write);
        }
        self.reap(lane);
    }

    fn shut(&self, socket: u32, how: Shutdown) {
        if let Some(sockets) = &self.sessions[socket as usize / 2].sockets {
            let _ = sockets[socket as usize & 1].shutdown(how);
        }
    }

    /// Closes a session of which both directions have ended and nothing is in flight.
    fn reap(&mut self, lane: u32) {
        let index = lane as usize / 2;
        let pair = &self.lanes[2 * index..2 * index + 2];
        let over = pair.iter().all(|lane| lane.ended && !lane.receiving && lane.sending == 0 && lane.queue.is_empty());
        if over && self.sessions[index].sockets.take().is_some() {
            let none: [RawFd; 2] = [-1, -1];
            let _ = self.ring.submitter().register_files_update(2 * index as u32, &none);
            self.lanes[2 * index] = Lane::default();
            self.lanes[2 * index + 1] = Lane::default();
            self.free.push(index);
        }
    }
}

/// A ring of buffers that the kernel receives into.
struct Buffers {
    ring: *mut BufRingEntry,
    memory: *mut u8,
    tail: u16,
    published: u16,
    /// Buffers that are with us.
    taken: u16,
}

impl Buffers {
    fn new(ring: &IoUring, group: u16) -> io::Result<Self> {
        let entries = map(usize::from(BUFFERS) * size_of::<BufRingEntry>())?.cast::<BufRingEntry>();
        let memory = map(usize::from(BUFFERS) * BUFFER_LEN)?;
        // SAFETY: the memory is mapped for the life of the process, and used as this ring only.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, BUFFERS, group, 0)? };
        let mut made = Self { ring: entries, memory, tail: 0, published: 0, taken: BUFFERS };
        for buffer in 0..BUFFERS {
            made.give(buffer);
        }
        made.publish();
        Ok(made)
    }

    fn at(&self, buffer: u16) -> *const u8 {
        self.memory.wrapping_add(usize::from(buffer) * BUFFER_LEN)
    }

    /// Puts a buffer back; the kernel sees it with the next `publish`.
    fn give(&mut self, buffer: u16) {
        let address = self.at(buffer) as u64;
        // SAFETY: the index is below the number of entries, and the kernel does not read behind the published tail.
        let entry = unsafe { &mut *self.ring.add(usize::from(self.tail & (BUFFERS - 1))) };
        entry.set_addr(address);
        entry.set_len(BUFFER_LEN as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        self.taken -= 1;
    }

    fn publish(&mut self) {
        if self.tail != self.published {
            self.published = self.tail;
            // SAFETY: `ring` is the beginning of the mapped ring; the kernel reads the tail at any time, atomically.
            unsafe { (*BufRingEntry::tail(self.ring).cast::<AtomicU16>()).store(self.tail, Ordering::Release) };
        }
    }

    /// Buffers that the kernel has.
    fn available(&self) -> usize {
        usize::from(BUFFERS - self.taken)
    }
}

fn map(len: usize) -> io::Result<*mut u8> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    // SAFETY: a new anonymous mapping refers to nothing else.
    let memory =
        unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)? };
    Ok(memory.cast())
}
