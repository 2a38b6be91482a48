//! What the kernel says of a TCP connection, where neither monoio nor socket2 passes it on.
//!
//! The only place that calls libc itself. It must not wait: every call here returns at once.
#![allow(unsafe_code)] // getsockopt and ioctl with results that no safe wrapper knows
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use crate::protocol::session::Progress;

/// Bytes of `struct tcp_info` that are read, up to and with `tcpi_bytes_acked` (Linux 4.1 and later).
const TCP_INFO_LEN: usize = 128;
const OFFSET_STATE: usize = 0;
const OFFSET_PROBES: usize = 3;
const OFFSET_UNACKED: usize = 24;
const OFFSET_LAST_ACK_RECEIVED: usize = 56;
const OFFSET_BYTES_ACKED: usize = 120;
/// `TCP_CLOSE` of the kernel's `enum tcp_state`: reset, or closed both ways.
const STATE_CLOSE: u8 = 7;

struct TcpInfo([u8; TCP_INFO_LEN]);

impl TcpInfo {
    fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let mut info = [0u8; TCP_INFO_LEN];
        let mut len = TCP_INFO_LEN as libc::socklen_t;
        // SAFETY: `info` is writable for `len` bytes, and the kernel writes no more than that.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if result == 0 { Ok(Self(info)) } else { Err(io::Error::last_os_error()) }
    }

    fn u32_at(&self, offset: usize) -> u32 {
        self.0[offset..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    fn u64_at(&self, offset: usize) -> u64 {
        self.0[offset..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }
}

/// How far the peer's TCP has come with what was sent to it. A socket that cannot tell has taken nothing.
pub fn progress(socket: BorrowedFd<'_>) -> Progress {
    let acknowledged = TcpInfo::of(socket).map_or(0, |info| info.u64_at(OFFSET_BYTES_ACKED));
    Progress { acknowledged, queued: queued(socket) }
}

/// Bytes that were sent and not acknowledged yet.
fn queued(socket: BorrowedFd<'_>) -> u64 {
    let mut queued: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
    if result == 0 { u64::try_from(queued).unwrap_or(0) } else { 0 }
}

/// What a peer's TCP owes, and how long it has been silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub progress: Progress,
    /// Since the last acknowledgement of any kind.
    pub silent: Duration,
    /// Something is on the way that it has not answered yet: bytes, or a probe of its closed window.
    pub asked: bool,
}

/// How the peer's TCP is. `None`: the socket cannot tell.
pub fn peer(socket: BorrowedFd<'_>) -> Option<Peer> {
    let info = TcpInfo::of(socket).ok()?;
    Some(Peer {
        progress: Progress { acknowledged: info.u64_at(OFFSET_BYTES_ACKED), queued: queued(socket) },
        silent: Duration::from_millis(info.u32_at(OFFSET_LAST_ACK_RECEIVED).into()),
        asked: info.u32_at(OFFSET_UNACKED) > 0 || info.0[OFFSET_PROBES] > 0,
    })
}

/// Whether the connection was reset, or is closed both ways; told without reading from it.
pub fn is_closed(socket: BorrowedFd<'_>) -> bool {
    TcpInfo::of(socket).is_ok_and(|info| info.0[OFFSET_STATE] == STATE_CLOSE)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        os::fd::AsFd,
    };

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn progress_counts_what_the_peer_has_acknowledged() {
        let (mut near, mut far) = pair();
        let before = progress(near.as_fd());
        near.write_all(&[0; 1000]).unwrap();
        far.read_exact(&mut [0; 1000]).unwrap();
        // The acknowledgement is under way when the bytes are there: ask until it has come.
        while progress(near.as_fd()).queued > 0 {
            std::thread::yield_now();
        }
        assert_eq!(progress(near.as_fd()).acknowledged - before.acknowledged, 1000);
    }

    #[test]
    fn a_peer_that_reads_nothing_is_queued_but_not_silent() {
        let (mut near, _far) = pair();
        near.set_nonblocking(true).unwrap();
        while near.write(&[0; 65536]).is_ok() {}
        let peer = peer(near.as_fd()).unwrap();
        assert!(peer.progress.queued > 0);
        assert!(peer.silent < Duration::from_secs(60), "{peer:?}");
        assert!(!is_closed(near.as_fd()));
    }

    #[test]
    fn a_reset_is_seen_without_reading() {
        let (near, far) = pair();
        socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
        drop(far);
        while !is_closed(near.as_fd()) {
            std::thread::yield_now();
        }
    }
}
