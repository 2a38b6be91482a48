//! A session's set-up: from a request whose key is known through the dial to the relay. How the two forms ask for one, and
//! how they are told of its end, is in [`message`] and [`transparent`].
//!
//! Ends where the relay begins: this future is large (buffers, JSON, the dial's own state), so it hands a small struct
//! to a fresh task and goes.
pub(super) mod message;
pub(super) mod transparent;

use std::{
    os::fd::AsFd,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::{Either, select};

use super::{
    agents::{self, Agent, Choice, InUse, Unmet},
    connection::{Client, PATIENCE},
    keys::{Key, SessionOfKey},
    record::Record,
    worker::{Counted, Worker},
};
use crate::{
    agent::{
        dial::{Dialled, Timings},
        handshake::Accepted,
    },
    protocol::{
        answer::{self, Failure},
        close::Close,
        connect::ConnectRequest,
        session::Place,
        setup::{Held, Watch},
        transparent::answer_head,
    },
    relay::{
        self, Connected, Meter,
        buffers::Buffer,
        deadline,
        socket::{Received, Socket},
        wake::Signal,
    },
    runtime::sys,
    telemetry::counters,
};

/// How often a client that is not being read from is looked at for a reset.
const BLIND_LOOK: Duration = Duration::from_millis(250);

/// How many channels of one agent are tried before it is left for another.
const CHANNELS_OF_AN_AGENT: u32 = 2;

/// How a set-up ends other than in a session.
enum End {
    /// The client is gone, so there is nobody to tell.
    Gone,
    /// The client closes, and its Close is answered with this payload.
    Answer(Vec<u8>),
    /// A Close of ours without a message in front of it.
    Close(Close),
    /// The same, for a client whose bytes cannot be read as frames any more.
    Broken,
    /// An error message, and its Close.
    Failure(Failure),
}

/// Why no agent has reached a target.
enum Unreached {
    Failure(Failure),
    /// The agent drains.
    Restart,
}

impl From<Failure> for Unreached {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// A target that an agent has reached.
struct Reached {
    dialled: Dialled,
    /// Of the agent.
    node_id: String,
    place: Place,
    /// `None`: it is the embedded one.
    agent: Option<Arc<Agent>>,
    in_use: InUse,
}

/// A session that may begin, as soon as its target has answered.
struct Admitted {
    request: ConnectRequest,
    of_key: SessionOfKey,
    counted: Counted,
}

/// The key that `secret` is, known and not expired. An expired one is named in the record.
fn key(worker: &Worker, record: &Record, secret: Option<&str>) -> Result<Arc<Key>, End> {
    let key = worker.shared.keys.identify(secret).map_err(End::Failure)?;
    record.identified(&key);
    key.check_expiry(SystemTime::now()).map_err(End::Failure)?;
    Ok(key)
}

/// The checks of a request that is known to be usable, in their order: sessions in all, sessions of the key, bucket.
fn admit(worker: &Worker, record: &Record, key: &Arc<Key>, request: ConnectRequest) -> Result<Admitted, End> {
    let shared = &worker.shared;
    record.validated(&request.target);
    // Looked at in the upgrade already; those who passed it together are counted here.
    let counted = Counted::new(shared, |shared| &shared.sessions, shared.limits.max_sessions)
        .ok_or(End::Failure(Failure::Overloaded))?;
    let of_key = shared.keys.admit(key, Instant::now()).map_err(End::Failure)?;
    record.admitted();
    Ok(Admitted { request, of_key, counted })
}

/// Reaches the target, and hands the session to the relay.
///
/// # Errors
/// It came to another end, which the client is to be told of.
async fn establish(
    worker: &Rc<Worker>,
    mut client: Client,
    record: &Rc<Record>,
    admitted: Admitted,
) -> Result<(), (Client, End)> {
    match dial(worker, &mut client, record, &admitted.request).await {
        Ok((reached, held)) => begin(worker, client, record.clone(), admitted, reached, held).await,
        Err(end) => Err((client, end)),
    }
}

/// Dials the target while the client's frames are held. The client may make the dial pointless.
async fn dial(
    worker: &Worker,
    client: &mut Client,
    record: &Record,
    request: &ConnectRequest,
) -> Result<(Reached, Held), End> {
    let timings = Timings::default();
    let mut held = Held::new(std::mem::take(&mut client.input));
    let stop = Signal::default();
    let deadline = Instant::now() + worker.shared.limits.target_timeout;
    let dialled = {
        // In a box, which those who wait for a connect message have no need of.
        let dial = Box::pin(reach(worker, record, request, &timings, deadline));
        let dial = pin!(worker.tasks.within_window(&client.draining, deadline::until(deadline, dial)));
        let watch = pin!(watch(&client.socket, &mut held, &stop));
        match select(dial, watch).await {
            Either::Left((dialled, watch)) => {
                // The watch may be receiving just now, which must come to its end.
                stop.set();
                watch.await.map(|()| dialled)
            }
            Either::Right((Ok(()), dial)) => Ok(dial.await),
            Either::Right((Err(end), _)) => Err(end),
        }
    };
    record.dialled(&timings);
    match dialled {
        Ok(Some(Some(Ok(reached)))) => Ok((reached, held)),
        other => {
            client.input = held.into_bytes();
            Err(match other {
                Ok(Some(Some(Err(Unreached::Failure(failure))))) => End::Failure(failure),
                Ok(Some(None)) => End::Failure(timings.late()),
                Err(end) => end,
                _ => End::Close(Close::RESTART_CLIENT),
            })
        }
    }
}

/// Has an agent that fits dial the target. One that fails before it began is replaced by another.
async fn reach(
    worker: &Worker,
    record: &Record,
    request: &ConnectRequest,
    timings: &Timings,
    deadline: Instant,
) -> Result<Reached, Unreached> {
    let agents = &worker.shared.agents;
    let asked = Instant::now();
    let mut tried = Vec::new();
    let mut failed = false;
    loop {
        // Of an agent before this one, perhaps.
        timings.awaits_proxy.set(false);
        let Some((choice, in_use)) = agents.pick(&request.selection, &tried) else {
            return Err(if failed { Failure::AgentFailure } else { Failure::NoAgent }.into());
        };
        let agent = match choice {
            Choice::Remote(agent) => agent,
            Choice::Embedded => {
                let Some(embedded) = agents.embedded() else { return Err(Failure::NoAgent.into()) };
                record.agent(Choice::Embedded, asked.elapsed());
                let dialled = worker.shared.dialler.dial(request, timings).await?;
                let node_id = embedded.node_id.clone();
                return Ok(Reached { dialled, node_id, place: Place::Whole, agent: None, in_use });
            }
        };
        record.agent(Choice::Remote(agent.clone()), asked.elapsed());
        tried.push(agent.id);
        let another_fits = agents.pick(&request.selection, &tried).is_some();
        match reach_through(worker, record, &agent, request, timings, deadline, another_fits).await {
            Ok(dialled) => {
                let node_id = agent.node_id.clone();
                return Ok(Reached { dialled, node_id, place: Place::Gateway, agent: Some(agent), in_use });
            }
            Err(Unmet::Failed(failure)) => return Err(failure.into()),
            Err(Unmet::Drained) => return Err(Unreached::Restart),
            // It is full, or drains, which may not be known here yet.
            Err(Unmet::Refused(why)) => agents.failed_over(&agent, &why),
            Err(Unmet::Again(why)) => {
                failed = true;
                agents.failed_over(&agent, &why);
            }
        }
    }
}

/// Asks one agent, over another channel if the first one fails.
async fn reach_through(
    worker: &Worker,
    record: &Record,
    agent: &Arc<Agent>,
    request: &ConnectRequest,
    timings: &Timings,
    deadline: Instant,
    another_fits: bool,
) -> Result<Dialled, Unmet> {
    let mut why = String::new();
    for _ in 0..CHANNELS_OF_AN_AGENT {
        let until = agents::cold_until(Instant::now(), deadline, another_fits);
        let Some(channel) = worker.channels.take(&worker.shared.agents, worker.index, agent, until).await else {
            return Err(Unmet::Again(if why.is_empty() { "no data channel in time".into() } else { why }));
        };
        let time = deadline.saturating_duration_since(Instant::now());
        match agents::exchange(channel, record.id(), request, time, timings).await {
            Err(Unmet::Again(again)) => why = again,
            met => return met,
        }
    }
    Err(Unmet::Again(why))
}

/// Keeps what the client sends until stopped. Ends early when the client makes the dial pointless.
async fn watch(socket: &Socket, held: &mut Held, stop: &Signal) -> Result<(), End> {
    loop {
        match held.watch() {
            Watch::On => {}
            Watch::Closed(Some(body)) => return Err(End::Answer(body.answer())),
            Watch::Closed(None) => return Err(End::Broken),
            // Not reading, a reset is all that can be noticed.
            Watch::Blind => loop {
                if stop.or(monoio::time::sleep(BLIND_LOOK)).await.is_none() {
                    return Ok(());
                }
                if sys::is_closed(socket.as_fd()) {
                    return Err(End::Gone);
                }
            },
        }
        if stop.or(socket.readable()).await.is_none() {
            return Ok(());
        }
        // It must come to its end, which with TLS a client that reads nothing could keep it from.
        let received = deadline::within(socket, PATIENCE, socket.recv(Buffer::take(), 0));
        let (received, buffer) = received.await;
        match received {
            Ok(Received::Data(len)) => held.push(&buffer[..len]),
            Ok(Received::Nothing) => {}
            Ok(Received::End) | Err(_) => return Err(End::Gone),
        }
    }
}

/// Tells the client, and hands the session to the relay.
async fn begin(
    worker: &Rc<Worker>,
    client: Client,
    record: Rc<Record>,
    admitted: Admitted,
    reached: Reached,
    held: Held,
) -> Result<(), (Client, End)> {
    let Reached { dialled, node_id, place, agent, in_use } = reached;
    let message = match &dialled.accepted {
        Accepted::Ours { subprotocol } => Some(answer::connected(&node_id, subprotocol.as_deref())),
        Accepted::Passed(head) => answer_head(head, &node_id, &record.id()),
    };
    // An agent on another host can say anything.
    let Some(message) = message else { return Err((client, End::Failure(Failure::AgentFailure))) };
    match client.send(&message).await {
        Ok(()) => record.connected(),
        // The relay finds the same, and tells the target.
        Err(_) => record.client_gone(None),
    }
    let Admitted { request, of_key, counted } = admitted;
    let load = client.load;
    let connected = Connected {
        client: client.socket,
        target: dialled.socket,
        from_client: held.into_bytes(),
        from_target: dialled.received,
        idle_timeout: request.idle_timeout,
        place,
        hop: agent.as_ref().map_or(0, |agent| agent.id),
    };
    let account = of_key.key().account(worker.index, worker.shared.workers);
    let meter = Meter { worker: worker.counters.clone(), account };
    if agent.is_some_and(|agent| agent.is_lost()) {
        // Behind the abort that all its other sessions were told of.
        connected.target.abort();
    }
    let awaited = worker.tasks.awaited();
    relay::begin(connected, &worker.registry, meter, |relay| {
        record.relayed(relay);
        (record, of_key, counted, in_use, awaited, load)
    });
    Ok(())
}

impl End {
    /// Into the session's record, or the counters where there is none yet. `code`: of the Close that will say so.
    fn note(&self, worker: &Worker, record: Option<&Record>, code: Option<u16>) {
        match (self, record) {
            (Self::Gone | Self::Answer(_) | Self::Broken, Some(record)) => record.client_gone(code),
            (Self::Close(_), Some(record)) => record.drained(code),
            (Self::Failure(failure), Some(record)) => record.failed(failure, code),
            (Self::Close(close), None) if *close == Close::CONNECT_TIMEOUT => {
                worker.counters.refused(counters::TIMEOUT_MESSAGE);
            }
            (Self::Close(_), None) => worker.counters.refused(counters::DRAINING),
            (Self::Broken, None) => worker.counters.refused(counters::BAD_FRAME),
            (Self::Gone | Self::Answer(_) | Self::Failure(_), None) => {}
        }
        // Some texts name headers and cookies, which the client chose, so only the cause of a failed dial is logged.
        if let Self::Failure(failure) = self
            && let Failure::TargetUnreachable(why) | Failure::TargetHandshakeInvalid(why) | Failure::ProxyFailed(why) =
                failure
        {
            tracing::debug!(code = failure.code(), "session refused: {why}");
        }
    }
}
