//! A connection from its accept on: HTTP requests, one after the other, until one of them opens a WebSocket.
use std::{
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use monoio::net::TcpStream;

use super::{
    agents::{self, Admitted},
    arrival,
    http::{HeadReader, Request, Response},
    routes::{self, Route},
    session,
    spread::Arrival,
    worker::Worker,
};
use crate::{
    protocol::frame::{FrameCounts, Scanner, Stop, Until},
    relay::{
        buffers::Buffer,
        deadline,
        socket::{Received, Socket},
        wake::Signal,
    },
    runtime::load::Load,
    telemetry::counters,
};

/// How long a peer may take to take something of ours, or to end its connection when we have ended ours.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How long a connection without a request stays open when the gateway begins to drain: one may be on its way.
const LAST_REQUEST: Duration = Duration::from_millis(250);

/// The client's connection while a session is being set up.
pub(super) struct Client {
    pub socket: Rc<Socket>,
    /// What was received and not used yet.
    pub input: Vec<u8>,
    /// Its address; behind a proxy that speaks the PROXY protocol what that says.
    pub peer: SocketAddr,
    /// Whether it came to a TLS listener.
    pub secure: bool,
    /// Set when the gateway begins to drain.
    pub draining: Rc<Signal>,
    pub load: Load,
}

/// What waiting for more input came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    More,
    /// The client has ended its side, or the connection failed.
    Ended,
    Late,
    Draining,
}

/// What a client still does when its session has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// It will answer our Close; until then it may send frames.
    Close,
    /// Bytes without a meaning, until it ends its connection.
    Garbage,
    /// Nothing that matters: it has closed already, or knows that this was the last answer.
    End,
}

pub(super) async fn run(worker: Rc<Worker>, arrival: Arrival<TcpStream>, draining: Rc<Signal>) {
    let Arrival { tcp, peer, secure, pending, load } = arrival;
    // For all that comes in front of the answer to the first request.
    let deadline = Instant::now() + worker.shared.limits.header_timeout;
    let client = Client { socket: Rc::new(Socket::plain(tcp)), input: Vec::new(), peer, secure, draining, load };
    // In boxes, here and below: what a stranger who says nothing costs is this future without those.
    let Some(mut client) = Box::pin(arrival::arrive(&worker, client, deadline)).await else { return };
    match requests(&worker, &mut client, deadline).await {
        Some(Begun::WebSocket { accept, api_key }) => {
            Box::pin(session::message::set_up(&worker, client, &accept, api_key, pending)).await;
        }
        Some(Begun::Transparent(request)) => {
            Box::pin(session::transparent::set_up(&worker, client, request, pending)).await;
        }
        Some(Begun::Agent(admitted)) => {
            drop(pending);
            match admitted {
                Admitted::Control(hello) => Box::pin(agents::run_control(&worker, client, hello)).await,
                Admitted::Data(agent) => Box::pin(agents::admit_channel(&worker, client, agent)).await,
            }
        }
        None if client.secure => {
            // Said before the end of TCP, close_notify tells that nothing was cut off.
            deadline::within(&client.socket, PATIENCE, client.socket.end_write()).await;
        }
        None => {}
    }
}

/// What a request has begun other than its answer.
enum Begun {
    WebSocket { accept: String, api_key: Option<String> },
    Transparent(Box<Request>),
    Agent(Admitted),
}

/// Answers requests until one opens a WebSocket, or an agent's link.
async fn requests(worker: &Worker, client: &mut Client, mut deadline: Instant) -> Option<Begun> {
    let mut first = true;
    loop {
        let mut reader = HeadReader::default();
        let (answer, keep_alive) = loop {
            match reader.next(&mut client.input) {
                Ok(Some(request)) => match routes::route(&worker.shared, &request, client.secure) {
                    Route::WebSocket { accept, api_key } => return Some(Begun::WebSocket { accept, api_key }),
                    Route::Transparent => return Some(Begun::Transparent(Box::new(request))),
                    Route::Agent(admitted) => return Some(Begun::Agent(admitted)),
                    Route::Answer(answer) => {
                        break (answer.to(&request), request.keep_alive && !worker.draining());
                    }
                },
                Ok(None) => {}
                Err(bad) => break (Response::from(bad), false),
            }
            match client.fill(deadline).await {
                Filled::More => {}
                // A request that is on its way still gets its answer.
                Filled::Draining => deadline = deadline.min(Instant::now() + LAST_REQUEST),
                Filled::Late if first || !client.input.is_empty() => {
                    worker.counters.refused(counters::TIMEOUT_HEAD);
                    return None;
                }
                Filled::Ended | Filled::Late => return None,
            }
        };
        first = false;
        if let Some(code) = answer.code() {
            worker.counters.refused(code);
        }
        client.send(&answer.to_bytes(keep_alive)).await.ok()?;
        if !keep_alive {
            client.farewell(Expected::End).await;
            return None;
        }
        deadline = Instant::now() + worker.shared.limits.header_timeout;
    }
}

impl Client {
    /// Waits for more input.
    pub async fn fill(&mut self, deadline: Instant) -> Filled {
        match self.readable(deadline).await {
            Filled::More => {}
            other => return other,
        }
        self.receive(deadline).await
    }

    /// Receives what there is. Must be awaited to its end, which comes at `deadline` at the latest.
    pub async fn receive(&mut self, deadline: Instant) -> Filled {
        // With TLS a receive may have something to answer, which a client that reads nothing can make wait.
        let left = deadline.saturating_duration_since(Instant::now());
        let received = self.socket.recv(Buffer::take(), 0);
        let (received, buffer) = deadline::within(&self.socket, left, received).await;
        match received {
            Ok(Received::Data(len)) => {
                self.input.extend_from_slice(&buffer[..len]);
                Filled::More
            }
            Ok(Received::Nothing) => Filled::More,
            Err(_) if Instant::now() >= deadline => Filled::Late,
            Ok(Received::End) | Err(_) => Filled::Ended,
        }
    }

    /// Waits until there is something to receive; whatever that is, the receive tells.
    pub async fn readable(&self, deadline: Instant) -> Filled {
        match self.draining.or(deadline::until(deadline, self.socket.readable())).await {
            None => Filled::Draining,
            Some(None) => Filled::Late,
            Some(Some(_)) => Filled::More,
        }
    }

    /// Sends something short of ours.
    ///
    /// # Errors
    /// The connection failed, or the client did not take it in time.
    pub async fn send(&self, bytes: &[u8]) -> std::io::Result<()> {
        deadline::within(&self.socket, PATIENCE, self.socket.send_bytes(bytes)).await
    }

    /// Says a last word, and closes once the client has done the same.
    pub async fn finish(mut self, bytes: &[u8], expected: Expected) {
        if self.send(bytes).await.is_ok() {
            self.farewell(expected).await;
        }
    }

    /// Reads and drops what the client still sends, so that our last word is not lost in a reset, and ends the
    /// connection: the server side first (RFC 6455 section 7.1.1), as soon as both have closed.
    pub async fn farewell(&mut self, expected: Expected) {
        let deadline = Instant::now() + PATIENCE;
        let mut scanner = (expected == Expected::Close).then(Scanner::default);
        loop {
            let closed = match &mut scanner {
                Some(frames) => {
                    let scanned = frames.scan(&self.input, Until::InputEnd, &mut FrameCounts::default());
                    self.input.drain(..scanned.len);
                    if scanned.stop == Stop::LengthOverflow {
                        // Nobody knows where the next frame begins.
                        scanner = None;
                    }
                    scanned.stop == Stop::Close
                }
                None => {
                    self.input.clear();
                    expected == Expected::End
                }
            };
            if closed {
                break;
            }
            if !self.more(deadline).await {
                break;
            }
        }
        // With TLS that sends something, which a client that reads nothing can make wait.
        deadline::within(&self.socket, PATIENCE, self.socket.end_write()).await;
        loop {
            self.input.clear();
            if !self.more(deadline).await {
                return;
            }
        }
    }

    async fn more(&mut self, deadline: Instant) -> bool {
        match self.fill(deadline).await {
            Filled::More | Filled::Draining => true,
            Filled::Ended | Filled::Late => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        io::Write,
        net::{TcpListener, TcpStream as StdStream},
        sync::{Arc, mpsc},
        thread,
    };

    use rustls::{
        ClientConnection, DEFAULT_VERSIONS, crypto::aws_lc_rs::default_provider, server::UnbufferedServerConnection,
    };
    use socket2::SockRef;

    use super::*;
    use crate::{relay::tls::testing, runtime::driver::Driver};

    /// A server and a client that know each other.
    fn tls() -> (UnbufferedServerConnection, ClientConnection) {
        let (server, client) = testing::configs("localhost", default_provider(), DEFAULT_VERSIONS);
        let client = ClientConnection::new(client, "localhost".try_into().unwrap()).unwrap();
        (UnbufferedServerConnection::new(server).unwrap(), client)
    }

    #[test]
    fn a_client_that_takes_no_alert_has_its_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (server, mut client) = tls();
        let mut theirs = StdStream::connect(listener.local_addr().unwrap()).unwrap();
        let (tcp, peer) = listener.accept().unwrap();
        tcp.set_nonblocking(true).unwrap();
        let mut full = tcp.try_clone().unwrap();
        let (sender, ended) = mpsc::channel();
        let (shaken, begin) = mpsc::channel();
        thread::spawn(move || {
            Driver::Epoll(None).block_on(async move {
                let socket = Socket::handshake(TcpStream::from_std(tcp).unwrap(), server.into()).await.unwrap();
                shaken.send(()).unwrap();
                let (socket, draining) = (Rc::new(socket), Rc::default());
                let load = Load::on(&Arc::default());
                let mut client = Client { socket, input: Vec::new(), peer, secure: true, draining, load };
                let deadline = Instant::now() + Duration::from_secs(2);
                let mut filled = Filled::More;
                while filled == Filled::More {
                    filled = client.fill(deadline).await;
                }
                sender.send(filled).unwrap();
            })
        });
        while client.is_handshaking() || client.wants_write() {
            client.complete_io(&mut theirs).unwrap();
        }
        begin.recv().unwrap();
        // Nothing more goes out from there; then comes a record that is answered with an alert.
        SockRef::from(&full).set_send_buffer_size(1).unwrap();
        for _ in 0..20 {
            while full.write(&[0; 64 << 10]).is_ok() || full.write(&[0]).is_ok() {}
            thread::sleep(Duration::from_millis(5));
        }
        theirs.write_all(&[23, 3, 3, 0, 32]).unwrap();
        theirs.write_all(&[0; 32]).unwrap();
        assert_eq!(ended.recv_timeout(Duration::from_secs(20)), Ok(Filled::Late));
    }

    #[test]
    fn a_connection_that_says_nothing_is_small() {
        // What every connection costs before its request, of which strangers may open `limits.max_pending`.
        fn size<F>(_: fn(Rc<Worker>, Arrival<TcpStream>, Rc<Signal>) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(run);
        assert!(size <= 3584, "its future has {size} bytes");
    }
}
