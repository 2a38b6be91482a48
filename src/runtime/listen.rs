//! Listening sockets: one for each address and worker, all on one port through SO_REUSEPORT.
use std::{
    io,
    net::{SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted by one worker.
const BACKLOG: i32 = 4096;

/// How long an address that is in use is tried again: the kernel lets go of the listeners of a process on io_uring a moment
/// after its end, which is too late for who starts it anew at once.
const LETTING_GO: Duration = Duration::from_secs(1);
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// Binds `count` sockets to the same address. With port 0 the kernel picks a free one, the same for all.
///
/// # Errors
/// The address cannot be bound, or somebody listens there, be it another ringway; the error says which.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let name = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
    let mut address = address;
    // With SO_REUSEPORT alone two gateways would share an address, and its connections, without anybody noticing.
    if address.port() != 0 {
        bind_soon(address).map_err(name)?;
    }
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let listener = bind_one(address, true).map_err(name)?;
        address = listener.local_addr().map_err(name)?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Binds one socket to an address that nobody else listens on, this program in another process neither.
///
/// # Errors
/// As for [`bind`].
pub fn bind_alone(address: SocketAddr) -> io::Result<TcpListener> {
    bind_soon(address).map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}

/// The address itself if nobody listens there, in this process or another; else the same with any free port.
pub fn free_or_any(preferred: SocketAddr) -> SocketAddr {
    // Bound without SO_REUSEPORT, so that a listener that has it is seen too.
    if bind_one(preferred, false).is_ok() { preferred } else { SocketAddr::new(preferred.ip(), 0) }
}

/// Binds one socket to an address that nobody else listens on, or is about to let go of. Blocks the thread.
fn bind_soon(address: SocketAddr) -> io::Result<TcpListener> {
    let end = Instant::now() + LETTING_GO;
    loop {
        match bind_one(address, false) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => thread::sleep(TRY_AGAIN),
            done => return done,
        }
    }
}

fn bind_one(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // An IPv4 address is listed by itself where it is wanted.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
