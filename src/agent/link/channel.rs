//! A data channel: opened, ready until a request comes over it, and from then on one session.
//!
//! Ready, it owns no buffer and has no receive in flight. Whatever the gateway says, the target is dialled only if this
//! agent's own egress policy lets it.
use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    os::fd::AsFd,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};

use super::{
    Ticket,
    dial::{self, Link, LinkFailure},
};
use crate::{
    agent::{
        dial::{Dialled, Timings},
        handshake::Accepted,
        record::Record,
        worker::Worker,
    },
    protocol::{
        answer::Failure,
        connect::{ConnectRequest, Handshake, Opening, Proxy, Selection},
        link::{self, Head, Reply, Request, Took},
        session::Place,
        target::Target,
    },
    relay::{
        self, Connected, Meter,
        buffers::Buffer,
        deadline,
        socket::{Received, Socket},
        wake::Signal,
    },
    runtime::{load::Load, sockets, sys},
    telemetry::counters::{self, Stage},
};

/// How long opening may take.
const OPENING: Duration = Duration::from_secs(10);
/// How long a channel is ready before another takes its place: at most, and how much sooner at most, so that those that
/// were opened together are not all replaced together.
const READY: Duration = Duration::from_secs(5 * 60);
const SOONER: Duration = Duration::from_secs(30);
/// A channel that ends so soon, without a request, was of no use: another one at once would be the same.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long a request may take from its first byte on.
const REQUEST: Duration = Duration::from_secs(5);
/// How long the gateway may take to take a message of ours, or to end the connection when we have.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most bytes behind a request that are held while its target is dialled; beyond, nothing is read.
const MAX_HELD: usize = 64 * 1024;
/// Of a session's id, in bytes.
const MAX_SESSION_ID: usize = 64;
/// How often a gateway that is not being read from is looked at for a reset.
const BLIND_LOOK: Duration = Duration::from_millis(250);

/// A channel whose request has come.
struct Asked {
    socket: Rc<Socket>,
    request: Request,
    /// What came behind it.
    held: Vec<u8>,
    since: Instant,
}

/// How a set-up ends other than in a session.
enum End {
    /// The gateway has given up, or is gone: there is nobody to tell.
    Gone,
    /// Nothing was begun, so another agent may.
    Refused(&'static str),
    Failed(Failure),
    /// The time of a drain is over.
    Drained,
}

/// Opens a channel, and serves it to its end. `draining` is set when the agent drains or the gateway is lost.
pub async fn run(worker: Rc<Worker>, mut ticket: Ticket, load: Load, address: SocketAddr, draining: Rc<Signal>) {
    let stage = Cell::default();
    let opening = Box::pin(dial::data(&worker.shared, &ticket.instance, address, &stage));
    let opened = deadline::until(Instant::now() + OPENING, opening).await;
    let Link { socket, received, .. } = match opened.unwrap_or_else(|| Err(LinkFailure::late(stage.get()))) {
        Ok(link) => link,
        Err(failure) => return ticket.failed(failure),
    };
    ticket.opened();
    let opened = Instant::now();
    let Some(asked) = wait_for_request(&worker, &ticket, socket, received, &draining).await else {
        if opened.elapsed() < AT_ONCE {
            ticket.failed(LinkFailure::Unused);
        }
        return;
    };
    ticket.taken();
    Box::pin(serve(worker, ticket, load, asked, draining)).await;
}

/// Waits for readiness only. `None`: the channel is over, for whatever reason.
async fn wait_for_request(
    worker: &Worker,
    ticket: &Ticket,
    socket: Rc<Socket>,
    mut input: Vec<u8>,
    draining: &Rc<Signal>,
) -> Option<Asked> {
    worker.waits(ticket.instance.hop, draining);
    let end = Instant::now() + READY - SOONER.mul_f64(fastrand::f64());
    let mut deadline = end;
    let mut began = !input.is_empty();
    loop {
        if ticket.instance.is_lost() {
            socket.abort();
            return None;
        }
        if began && deadline == end {
            deadline = Instant::now() + REQUEST;
        }
        match link::decode(&mut input) {
            Ok(Some(request)) => {
                let mut request: Request = request;
                // It goes into logs.
                request.session.retain(|c| c.is_ascii_alphanumeric());
                request.session.truncate(MAX_SESSION_ID);
                return Some(Asked { socket, request, held: input, since: Instant::now() });
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(gateway = %ticket.instance.gateway.name, "a request cannot be read: {error}");
                return None;
            }
        }
        match draining.or(deadline::until(deadline, socket.readable())).await {
            // Draining, it is still there for a request that is on its way.
            None => continue,
            Some(Some(_)) => {}
            Some(None) => {
                // Its time is over.
                deadline::within(&socket, PATIENCE, socket.end_write()).await;
                return None;
            }
        }
        let (received, buffer) = deadline::within(&socket, PATIENCE, socket.recv(Buffer::take(), 0)).await;
        match received {
            Ok(Received::Data(len)) => {
                input.extend_from_slice(&buffer[..len]);
                began = true;
            }
            Ok(Received::Nothing) => {}
            Ok(Received::End) | Err(_) => return None,
        }
    }
}

/// Serves a request: from "accepted" to the relay, or to what is said instead.
async fn serve(worker: Rc<Worker>, ticket: Ticket, load: Load, asked: Asked, draining: Rc<Signal>) {
    let Asked { socket, request, held, since } = asked;
    // A peer that reads slowly is no dead peer.
    sockets::set_user_timeout(&*socket, None);
    let timings = Timings::default();
    let session = match admit(&worker, &ticket, &request) {
        Ok(session) => session,
        Err(end) => return end.say(&worker, &socket, &request, &timings).await,
    };
    let SessionOf { connect, record } = session;
    let _awaited = worker.tasks.awaited();
    let limit = Duration::from_millis(request.timeout_ms).min(worker.shared.limits.target_timeout);
    let dialled = dial(&worker, &socket, &connect, held, since + limit, &timings, &draining).await;
    timings.count_in(&worker.counters);
    match dialled {
        Ok((dialled, held)) => {
            let (subprotocol, head) = match dialled.accepted.clone() {
                Accepted::Ours { subprotocol } => (subprotocol, None),
                Accepted::Passed(head) => (None, Some(Head(head))),
            };
            let connected = Reply::Connected { subprotocol, head, took: took(&timings) };
            if say(&socket, &connected).await.is_err() {
                return worker.counters.outcome(counters::CLIENT_GONE);
            }
            worker.counters.outcome(counters::CONNECTED);
            worker.counters.took(Stage::Total, since.elapsed());
            begin(&worker, ticket, load, record, socket, dialled, held);
        }
        Err(_) if ticket.instance.is_lost() => End::Gone.say(&worker, &socket, &request, &timings).await,
        Err(end) => end.say(&worker, &socket, &request, &timings).await,
    }
}

/// A session that may begin.
struct SessionOf {
    connect: ConnectRequest,
    record: Record,
}

fn admit(worker: &Rc<Worker>, ticket: &Ticket, request: &Request) -> Result<SessionOf, End> {
    if worker.shared.draining() {
        return Err(End::Refused("draining"));
    }
    let unreadable = End::Refused("a request that cannot be read");
    let Ok(target) = Target::parse(&request.url) else { return Err(unreadable) };
    let Ok(proxy) = request.proxy.as_deref().map(Proxy::parse).transpose() else { return Err(unreadable) };
    let record = Record::new(worker, ticket.instance.clone(), &request.session, &target);
    let record = record.ok_or(End::Refused("full"))?;
    let connect = ConnectRequest {
        target,
        opening: match &request.head {
            Some(Head(head)) => Opening::Passed(head.clone()),
            None => Opening::Ours(Handshake {
                host: request.host.clone(),
                headers: request.headers.clone(),
                subprotocols: request.subprotocols.clone(),
            }),
        },
        selection: Selection::new(None, None),
        idle_timeout: None,
        proxy,
    };
    Ok(SessionOf { connect, record })
}

/// Dials the target, while the channel is watched: a gateway that ends it has given up.
async fn dial(
    worker: &Worker,
    socket: &Socket,
    connect: &ConnectRequest,
    mut held: Vec<u8>,
    deadline: Instant,
    timings: &Timings,
    draining: &Signal,
) -> Result<(Dialled, Vec<u8>), End> {
    let proxy = worker.shared.dialler.proxy_of(connect).is_some();
    say(socket, &Reply::Accepted { proxy }).await.map_err(|_| End::Gone)?;
    let stop = Signal::default();
    let dialled = {
        let dial = Box::pin(dial_in_time(worker, socket, connect, deadline, timings, draining));
        let watch = pin!(watch(socket, &mut held, &stop));
        match select(dial, watch).await {
            Either::Left((dialled, watch)) => {
                // The watch may be receiving just now, which must come to its end.
                stop.set();
                watch.await.and(dialled)
            }
            Either::Right((Ok(()), dial)) => dial.await,
            // Whatever the dial was sending goes with the channel.
            Either::Right((Err(end), _)) => Err(end),
        }
    };
    dialled.map(|dialled| (dialled, held))
}

async fn dial_in_time(
    worker: &Worker,
    socket: &Socket,
    connect: &ConnectRequest,
    deadline: Instant,
    timings: &Timings,
    draining: &Signal,
) -> Result<Dialled, End> {
    let dialler = &worker.shared.dialler;
    let way = step(worker, draining, deadline, timings, dialler.way(connect, timings)).await;
    let way = way.ok_or(End::Refused("draining"))?.map_err(End::Failed)?;
    // Not within that time: a send is awaited to its end.
    say(socket, &Reply::Dialing).await.map_err(|_| End::Gone)?;
    let connected = Box::pin(dialler.connect(connect, way, timings));
    let connected = step(worker, draining, deadline, timings, connected).await.ok_or(End::Drained)?;
    let line = connected.map_err(End::Failed)?;
    if dialler.proxy_of(connect).is_some() {
        say(socket, &Reply::ProxyAccepted).await.map_err(|_| End::Gone)?;
    }
    let opened = Box::pin(dialler.open(connect, line, timings));
    step(worker, draining, deadline, timings, opened).await.ok_or(End::Drained)?.map_err(End::Failed)
}

/// One step of a dial, as long as there is time for it. `None`: the time of a drain is over.
async fn step<T>(
    worker: &Worker,
    draining: &Signal,
    deadline: Instant,
    timings: &Timings,
    step: impl Future<Output = Result<T, Failure>>,
) -> Option<Result<T, Failure>> {
    let done = worker.tasks.within_window(draining, deadline::until(deadline, step)).await?;
    Some(done.unwrap_or_else(|| Err(timings.late())))
}

/// Keeps what comes until stopped. Ends early when the channel ends.
async fn watch(socket: &Socket, held: &mut Vec<u8>, stop: &Signal) -> Result<(), End> {
    loop {
        if held.len() >= MAX_HELD {
            // Not reading, a reset is all that can be noticed.
            if stop.or(monoio::time::sleep(BLIND_LOOK)).await.is_none() {
                return Ok(());
            }
            if sys::is_closed(socket.as_fd()) {
                return Err(End::Gone);
            }
            continue;
        }
        if stop.or(socket.readable()).await.is_none() {
            return Ok(());
        }
        // It must come to its end, which with TLS a gateway that reads nothing could keep it from.
        let (received, buffer) = deadline::within(socket, PATIENCE, socket.recv(Buffer::take(), 0)).await;
        match received {
            Ok(Received::Data(len)) => held.extend_from_slice(&buffer[..len]),
            Ok(Received::Nothing) => {}
            Ok(Received::End) | Err(_) => return Err(End::Gone),
        }
    }
}

/// Hands the session to the relay.
fn begin(
    worker: &Rc<Worker>,
    ticket: Ticket,
    load: Load,
    record: Record,
    socket: Rc<Socket>,
    dialled: Dialled,
    held: Vec<u8>,
) {
    let connected = Connected {
        client: socket,
        target: dialled.socket,
        from_client: held,
        from_target: dialled.received,
        idle_timeout: None,
        place: Place::Agent,
        hop: ticket.instance.hop,
    };
    let meter = Meter { worker: worker.counters.clone(), account: None };
    if ticket.instance.is_lost() {
        // Behind the abort that all others of this hop were told of.
        connected.client.abort();
    }
    let awaited = worker.tasks.awaited();
    relay::begin(connected, &worker.registry, meter, |relay| {
        record.relayed(relay);
        (record, ticket, load, awaited)
    });
}

async fn say(socket: &Socket, reply: &Reply) -> io::Result<()> {
    deadline::within(socket, PATIENCE, socket.send_bytes(&link::encode(reply))).await
}

fn took(timings: &Timings) -> Took {
    let us = |time: &Cell<Option<Duration>>| time.get().map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    Took {
        dns_us: us(&timings.dns),
        tcp_us: us(&timings.tcp),
        proxy_us: us(&timings.proxy),
        tls_us: us(&timings.tls),
        upgrade_us: us(&timings.upgrade),
    }
}

impl End {
    /// Tells the gateway, and closes the channel.
    async fn say(self, worker: &Worker, socket: &Socket, request: &Request, timings: &Timings) {
        let session = &request.session;
        let reply = match self {
            Self::Gone => {
                tracing::debug!(%session, "the gateway gave the session up");
                return worker.counters.outcome(counters::CLIENT_GONE);
            }
            Self::Refused(reason) => {
                tracing::debug!(%session, "refused: {reason}");
                worker.counters.outcome(if reason == "full" { "overloaded" } else { counters::DRAINING });
                Reply::Refused { reason: reason.to_owned() }
            }
            Self::Drained => {
                worker.counters.outcome(counters::DRAINING);
                Reply::Failed {
                    code: link::DRAINED.to_owned(),
                    detail: String::new(),
                    status: None,
                    took: took(timings),
                }
            }
            Self::Failed(failure) => {
                if let Failure::TargetUnreachable(why)
                | Failure::TargetHandshakeInvalid(why)
                | Failure::ProxyFailed(why) = &failure
                {
                    tracing::debug!(%session, code = failure.code(), "no session: {why}");
                }
                worker.counters.outcome(failure.code());
                Reply::failed(&failure, took(timings))
            }
        };
        if say(socket, &reply).await.is_ok() {
            farewell(socket).await;
        }
    }
}

/// Reads what still comes until the gateway ends the channel: what is unread would reset it, and our last word be lost.
async fn farewell(socket: &Socket) {
    deadline::within(socket, PATIENCE, socket.end_write()).await;
    let deadline = Instant::now() + PATIENCE;
    while deadline::until(deadline, socket.readable()).await.is_some() {
        let (received, _) = deadline::within(socket, PATIENCE, socket.recv(Buffer::take(), 0)).await;
        if matches!(received, Ok(Received::End) | Err(_)) {
            return;
        }
    }
}
