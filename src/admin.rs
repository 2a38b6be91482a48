//! The admin listener of a gateway or an agent: metrics, health, live sessions, and the beginning of a drain, for the
//! operator only.
//!
//! On a thread of its own, so that no scrape holds up a worker. Counters are read where the workers keep them; rows of
//! sessions are asked for by message, and each worker makes them of its own sessions. Must never show a key, a header,
//! or a target's path or query.
use std::{
    cell::Cell,
    fmt::Write as _,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use futures_channel::mpsc::{self, UnboundedSender};
use futures_util::StreamExt;
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener as Listener, TcpStream},
    sync::Semaphore,
    task::LocalSet,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    gateway::http::{HeadReader, Request, Response},
    runtime::listen,
    telemetry::{
        log,
        prometheus::{self, Snapshot},
    },
};

/// Connections at a time; more are told so.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may wait for its next request: Prometheus keeps its own between two scrapes.
const IDLE: Duration = Duration::from_secs(120);
/// How long a request head may take from its first byte on.
const HEAD: Duration = Duration::from_secs(10);
/// How long an answer may take to be taken.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a peer may take to end its connection when we have ended ours.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long the workers may take for the rows of all their sessions.
const ROWS: Duration = Duration::from_secs(10);
/// How long accepting rests when it fails: for want of file descriptors, as a rule.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What `POST /drain` does.
pub type OnDrain = Box<dyn Fn() + Send>;

const GET_PATHS: [&str; 4] = ["/metrics", "/healthz", "/readyz", "/sessions"];
const DRAIN_PATH: &str = "/drain";

/// What programs do not send. A page can change the first, but not leave it out; browsers send the last one to
/// addresses that they trust only.
const OF_BROWSERS: [&str; 3] = ["accept-language", "origin", "sec-fetch-site"];

/// An admin listener that listens, and answers once it is started.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

/// What the admin listener tells of.
pub trait Overview: Send + 'static {
    /// Of `/sessions`.
    type Row: Serialize + Send + 'static;

    /// What `/metrics` exports.
    fn snapshot(&self) -> Snapshot;

    /// Why no session can begin, if none can: a code, and words.
    fn not_ready(&self) -> Option<(&'static str, &'static str)>;

    /// Has every worker send the rows of its sessions.
    fn ask_for_rows(&self, wanted: &RowsWanted<Self::Row>);

    /// From now on no session begins.
    fn begin_drain(&self);
}

/// A request for the rows of a worker's sessions, which come in batches.
#[derive(Debug)]
pub struct RowsWanted<Row>(pub UnboundedSender<Vec<Row>>);

impl<Row> Clone for RowsWanted<Row> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Server<O> {
    overview: O,
    on_drain: OnDrain,
    drained: Cell<bool>,
    /// One at a time may have the rows of all sessions in memory.
    rows: Semaphore,
}

impl Admin {
    /// Binds its address.
    ///
    /// # Errors
    /// The address cannot be bound; the error says which, and what to do.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = listen::bind_alone(address).map_err(|error| {
            io::Error::new(error.kind(), format!("admin.addr: {error}; write another address, or \"\" for none"))
        })?;
        let address = listener.local_addr()?;
        if !address.ip().is_loopback() {
            tracing::warn!("the admin listener on {address} serves whoever reaches it, POST /drain too");
        }
        Ok(Self { listener, address })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers from now on, as long as the process lives. `on_drain` is called once, at the first `POST /drain`.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(self, overview: impl Overview, on_drain: OnDrain) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        self.listener.set_nonblocking(true)?;
        thread::Builder::new().name("admin".into()).spawn(move || {
            let server = Rc::new(Server { overview, on_drain, drained: Cell::new(false), rows: Semaphore::new(1) });
            LocalSet::new().block_on(&runtime, async move {
                match Listener::from_std(self.listener) {
                    Ok(listener) => server.accept(listener).await,
                    Err(error) => tracing::error!("the admin listener failed: {error}"),
                }
            });
        })?;
        Ok(())
    }
}

impl<O: Overview> Server<O> {
    async fn accept(self: Rc<Self>, listener: Listener) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let anteroom = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let mut stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!("the admin listener cannot accept: {error}");
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            match room.clone().try_acquire_owned() {
                Ok(place) => {
                    let server = self.clone();
                    tokio::task::spawn_local(async move {
                        server.serve(stream).await;
                        drop(place);
                    });
                }
                Err(_) => {
                    let answer = Response::error(503, "overloaded", "Too many connections to the admin listener");
                    let _ = stream.try_write(&answer.with("Retry-After", "1").to_bytes(false));
                    if let Ok(place) = anteroom.clone().try_acquire_owned() {
                        tokio::task::spawn_local(async move {
                            farewell(&mut stream).await;
                            drop(place);
                        });
                    }
                }
            }
        }
    }

    /// Answers requests, one after the other.
    async fn serve(&self, mut stream: TcpStream) {
        let mut input = Vec::new();
        while let Some(request) = next_request(&mut stream, &mut input).await {
            let (keep_alive, path) = match &request {
                Ok(request) => (request.keep_alive, request.path.as_str()),
                Err(_) => (false, ""),
            };
            // Kept until the answer has been taken.
            let place = if path == "/sessions" { self.rows.acquire().await.ok() } else { None };
            let (answer, drain) = match request {
                Ok(request) => self.answer(&request).await,
                Err(bad) => (bad, false),
            };
            let bytes = answer.to_bytes(keep_alive);
            let mut unsent = &bytes[..];
            if drain && !self.drained.replace(true) {
                // As much of the answer as goes out without a wait comes first: a process without sessions ends at
                // once. A peer that takes nothing holds up no drain.
                let sent = stream.try_write(unsent).unwrap_or_default();
                unsent = unsent.get(sent..).unwrap_or_default();
                (self.on_drain)();
            }
            let sent = timeout(ANSWER, stream.write_all(unsent)).await;
            drop(place);
            if !keep_alive || !matches!(sent, Ok(Ok(()))) {
                break;
            }
        }
        farewell(&mut stream).await;
    }

    /// The answer, and whether the process is to drain.
    async fn answer(&self, request: &Request) -> (Response, bool) {
        let (method, path) = (request.method.as_str(), request.path.as_str());
        if may_be_rebound(request) {
            let message = "Not for web pages: ask for it by IP address, or as localhost";
            return (Response::error(403, "forbidden", message).to(request), false);
        }
        let allowed = if path == DRAIN_PATH { "POST" } else { "GET" };
        if path != DRAIN_PATH && !GET_PATHS.contains(&path) {
            let message = "There is nothing here; see /metrics, /healthz, /readyz, /sessions and POST /drain";
            return (Response::error(404, "not_found", message).to(request), false);
        }
        if method != allowed {
            let answer = Response::error(405, "method_not_allowed", &format!("Only {allowed} is allowed here"));
            return (answer.with("Allow", allowed).to(request), false);
        }
        let answer = match path {
            "/metrics" => self.metrics(),
            "/readyz" => self.readiness(),
            "/sessions" => self.sessions().await,
            DRAIN_PATH => return self.drain(request),
            _ => Response::json(200, r#"{"ok":true}"#),
        };
        (answer, false)
    }

    fn metrics(&self) -> Response {
        let snapshot = Snapshot { log_lines_dropped: log::dropped_lines(), ..self.overview.snapshot() };
        match prometheus::text(snapshot) {
            Ok(text) => Response::text(200, prometheus::CONTENT_TYPE, text),
            Err(_) => Response::error(500, "internal", "The metrics could not be written"),
        }
    }

    fn readiness(&self) -> Response {
        if let Some((code, message)) = self.overview.not_ready() {
            return Response::error(503, code, message);
        }
        Response::json(200, r#"{"ok":true}"#)
    }

    /// A page in the operator's own browser can make requests to loopback addresses, but not without `Origin`.
    fn drain(&self, request: &Request) -> (Response, bool) {
        if request.has("origin") {
            return (Response::error(403, "forbidden", "Not for web pages"), false);
        }
        self.overview.begin_drain();
        (Response::json(202, r#"{"draining":true}"#), true)
    }

    async fn sessions(&self) -> Response {
        let (sender, mut rows) = mpsc::unbounded();
        self.overview.ask_for_rows(&RowsWanted(sender));
        let mut body = String::from(r#"{"sessions":["#);
        let gathered = timeout(ROWS, async {
            let mut separator = "";
            while let Some(batch) = rows.next().await {
                for row in batch {
                    let row = serde_json::to_string(&row).unwrap_or_default();
                    let _ = write!(body, "{separator}{row}");
                    separator = ",";
                }
            }
        });
        if gathered.await.is_err() {
            return Response::error(503, "timeout", "A worker did not list its sessions in time");
        }
        body.push_str("]}");
        Response::json(200, body)
    }
}

/// Whether this may come from a web page whose own name has been made to resolve to this address (DNS rebinding), so
/// that the browser takes the answer for the page's own. Addresses, and names without a dot, nobody can do that with.
/// Other names are for programs (Prometheus), which send none of what browsers always do; a drain is not for them.
fn may_be_rebound(request: &Request) -> bool {
    let Some(host) = request.header("host") else { return false };
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_address = host.starts_with('[') || name.parse::<Ipv4Addr>().is_ok();
    let is_program = || request.method == "GET" && !OF_BROWSERS.iter().any(|header| request.has(header));
    !is_address && name.contains('.') && !is_program()
}

/// Reads what the peer still sends until its end: what is unread would reset the connection, and the last answer be
/// lost.
async fn farewell(stream: &mut TcpStream) {
    let _ = stream.shutdown().await;
    let _ = timeout(FAREWELL, async { while !matches!(stream.read(&mut [0; 4096]).await, Ok(0) | Err(_)) {} }).await;
}

/// The next request, or the answer to what is none; `None`: the connection is over.
async fn next_request(stream: &mut TcpStream, input: &mut Vec<u8>) -> Option<Result<Request, Response>> {
    let mut reader = HeadReader::default();
    let mut deadline = Instant::now() + if input.is_empty() { IDLE } else { HEAD };
    loop {
        match reader.next(input) {
            Ok(Some(request)) => return Some(Ok(request)),
            Ok(None) => {}
            Err(bad) => return Some(Err(Response::from(bad))),
        }
        let first = input.is_empty();
        match timeout_at(deadline, stream.read_buf(input)).await {
            Ok(Ok(read)) if read > 0 => {}
            _ => return None,
        }
        if first {
            deadline = deadline.min(Instant::now() + HEAD);
        }
    }
}
