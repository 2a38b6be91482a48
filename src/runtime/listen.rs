//! Listening sockets: one for each address and worker, all on one port through SO_REUSEPORT.
use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted by one worker.
const BACKLOG: i32 = 4096;

/// Binds `count` sockets to the same address. With port 0 the kernel picks a free one, the same for all.
///
/// # Errors
/// The address cannot be bound, or somebody listens there, be it another ringway; the error says which.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let name = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
    let mut address = address;
    // With SO_REUSEPORT alone two gateways would share an address, and its connections, without anybody noticing.
    if address.port() != 0 {
        bind_one(address, false).map_err(name)?;
    }
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let listener = bind_one(address, true).map_err(name)?;
        address = listener.local_addr().map_err(name)?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// The address itself if nobody listens there, in this process or another; else the same with any free port.
pub fn free_or_any(preferred: SocketAddr) -> SocketAddr {
    // Bound without SO_REUSEPORT, so that a listener that has it is seen too.
    if bind_one(preferred, false).is_ok() { preferred } else { SocketAddr::new(preferred.ip(), 0) }
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
