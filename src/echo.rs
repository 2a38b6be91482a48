//! The echo target: a WebSocket server that sends back what it gets. For trying things out, for tests and for load.
//!
//! An endpoint of its own on fastwebsockets, so that what passes a relay is judged by other code than the relay's.
//! Data frames come back with their opcode, their fragmentation and their payload; pings are answered.
use std::{
    io::{self, Cursor},
    net::SocketAddr,
    time::Duration,
};

use fastwebsockets::{Frame, OpCode, Role, WebSocket, WebSocketError};
use monoio::{
    io::{AsyncReadRent, AsyncWriteRentExt, PrefixedReadIo},
    net::{TcpListener, TcpStream},
};
use monoio_compat::{AsyncReadExt, AsyncWriteExt, StreamWrapper};

use crate::{
    gateway::http::{self, HeadReader, Response},
    runtime::{driver::Driver, listen, sockets, threads::Threads},
};

/// The largest frame that is echoed, in bytes of payload; it is in memory as a whole.
const MAX_FRAME: usize = 64 << 20;
/// How long a client may take to end its connection behind the Closes.
const PATIENCE: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How many bytes one connection may have echoed, each frame counted as so many more, before others have their turn: on
/// epoll a task whose socket is always ready never waits, and starves all others.
const TURN: usize = 256 << 10;
const TURN_PER_FRAME: usize = 1 << 10;
/// How long accepting rests when the process has no file descriptors left.
const ACCEPT_REST: Duration = Duration::from_millis(100);

type Stream = StreamWrapper<PrefixedReadIo<TcpStream, Cursor<Vec<u8>>>>;

/// Listens on `address` and echoes on a thread of its own. Returns the address with its real port.
///
/// # Errors
/// The address cannot be bound, or the thread not be started.
pub fn start(address: SocketAddr, driver: &Driver, threads: &mut Threads) -> io::Result<SocketAddr> {
    let mut listeners = listen::bind(address, 1)?;
    let listener = listeners.pop().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let address = listener.local_addr()?;
    threads.spawn("echo", driver.clone(), None, move |mut line| async move {
        let listener = sockets::listener(listener)?;
        monoio::spawn(accept(listener));
        // Echoes until the process ends: whoever drains drains in front of a target.
        line.order().await;
        Ok(())
    })?;
    Ok(address)
}

async fn accept(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                sockets::prepare(&tcp, KEEPALIVE);
                monoio::spawn(async move {
                    if let Err(error) = serve(tcp).await {
                        tracing::debug!(%peer, "echo: {error}");
                    }
                });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => monoio::time::sleep(ACCEPT_REST).await,
        }
    }
}

async fn serve(mut tcp: TcpStream) -> Result<(), WebSocketError> {
    let Some(behind) = open(&mut tcp).await? else { return Ok(()) };
    let stream = StreamWrapper::new(PrefixedReadIo::new(tcp, Cursor::new(behind)));
    let mut socket = WebSocket::after_handshake(stream, Role::Server);
    socket.set_max_message_size(MAX_FRAME);
    // It would answer pings without end before it gave a frame.
    socket.set_auto_pong(false);
    let result = echo(&mut socket).await;
    if let Err(Some(code)) = result.as_ref().map_err(close_code) {
        socket.write_frame(Frame::close(code, b"")).await?;
    }
    // The wrapper says that it has written before it has: it must be flushed before it goes.
    socket.flush().await?;
    let mut stream = socket.into_inner();
    stream.shutdown().await?;
    let _ = monoio::time::timeout(PATIENCE, read_to_end(&mut stream)).await;
    result
}

async fn echo(socket: &mut WebSocket<Stream>) -> Result<(), WebSocketError> {
    let mut in_message = false;
    let mut turn = 0;
    loop {
        let frame = socket.read_frame().await?;
        turn += TURN_PER_FRAME + frame.payload.len();
        if turn >= TURN {
            turn = 0;
            monoio::spawn(async {}).await;
        }
        match frame.opcode {
            // fastwebsockets has answered it.
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary | OpCode::Continuation => {
                // RFC 6455 section 5.4, which read_frame leaves to whoever assembles messages.
                if in_message != (frame.opcode == OpCode::Continuation) {
                    return Err(WebSocketError::InvalidContinuationFrame);
                }
                in_message = !frame.fin;
                socket.write_frame(Frame::new(frame.fin, frame.opcode, None, frame.payload)).await?;
                socket.flush().await?;
            }
            OpCode::Ping => {
                socket.write_frame(Frame::pong(frame.payload)).await?;
                socket.flush().await?;
            }
            OpCode::Pong => {}
        }
    }
}

/// RFC 6455 section 7.4.1: the code of the Close that a broken frame is answered with.
fn close_code(error: &WebSocketError) -> Option<u16> {
    match error {
        WebSocketError::UnexpectedEOF | WebSocketError::IoError(_) | WebSocketError::ConnectionClosed => None,
        // fastwebsockets has answered it.
        WebSocketError::InvalidCloseCode => None,
        WebSocketError::InvalidUTF8 => Some(1007),
        WebSocketError::FrameTooLarge => Some(1009),
        _ => Some(1002),
    }
}

async fn read_to_end(stream: &mut Stream) -> io::Result<()> {
    let mut scratch = [0; 4096];
    while stream.read(&mut scratch).await? > 0 {}
    Ok(())
}

/// The opening handshake; `None` if the client wanted something else, and has been told.
async fn open(tcp: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut input = Vec::new();
    let mut reader = HeadReader::default();
    let answer = loop {
        match reader.next(&mut input) {
            Ok(Some(request)) if !request.wants_websocket() => {
                let answer = Response::error(426, "upgrade_required", "This is a WebSocket echo target");
                break Err(answer.with("Upgrade", "websocket"));
            }
            Ok(Some(request)) => break request.websocket_accept().map_err(Response::from),
            Err(bad) => break Err(Response::from(bad)),
            Ok(None) => {}
        }
        let (received, chunk) = tcp.read(Vec::with_capacity(4096)).await;
        if received? == 0 {
            return Ok(None);
        }
        input.extend_from_slice(&chunk);
    };
    let (bytes, opened) = match answer {
        Ok(accept) => (http::switching_protocols(&accept), true),
        Err(answer) => (answer.to_bytes(false), false),
    };
    tcp.write_all(bytes).await.0?;
    Ok(opened.then_some(input))
}
