//! The floor of every comparison: copies bytes between two TCP connections, and knows nothing of WebSocket.
//!
//! A fixture to measure with, not a part of the product: one thread, one upstream, no limits, no deadlines. It shows
//! what the kernel charges for moving the bytes. Two ways: `copy` (io_uring), and with `--splice` `splice` (no byte
//! is seen by user space).
mod copy;
mod splice;

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
};

use clap::Parser;

/// Copies bytes between each connection and one upstream, as cheaply as the kernel lets it.
#[derive(Debug, Parser)]
#[command(name = "bare-copier", version)]
struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where each connection is copied to
    #[arg(long, value_name = "IP:PORT")]
    upstream: SocketAddr,
    /// splice(2) through pipes instead of receiving and sending
    #[arg(long)]
    splice: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "bare-copier: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> io::Result<()> {
    ringway::runtime::threads::raise_open_files();
    let mut listeners = ringway::runtime::listen::bind(args.listen, 1)?;
    let listener = listeners.pop().ok_or(io::ErrorKind::AddrNotAvailable)?;
    // Accepted sockets inherit it.
    socket2::SockRef::from(&listener).set_tcp_nodelay(true)?;
    let _ = writeln!(io::stderr(), "listening on {}", listener.local_addr()?);
    if args.splice { splice::run(listener, args.upstream) } else { copy::run(listener, args.upstream) }
}

/// Connects while everything else waits, which on loopback is no time.
fn connect(upstream: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(upstream)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Accepts without waiting.
fn accept(listener: &TcpListener) -> io::Result<Option<TcpStream>> {
    match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
        Err(error) => Err(error),
    }
}
