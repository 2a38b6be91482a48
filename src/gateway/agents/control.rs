//! Control links and fresh data channels, from the answer to the agent's request on.
use std::{
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use futures_channel::mpsc::UnboundedReceiver;
use futures_util::{
    StreamExt,
    future::{Either, select},
};

use super::{Agent, Errand, Hello};
use crate::{
    gateway::{
        connection::{Client, Filled},
        http,
        worker::Worker,
    },
    protocol::link::{
        self, FromAgent, FromGateway, header,
        liveness::{Life, Liveness, next_heartbeat},
    },
    relay::{deadline, socket::Socket},
    runtime::sockets,
};

/// How a control link ends.
enum End {
    /// Another link of the same process is there.
    Replaced,
    /// The agent may come back.
    Gone(String),
    /// Nothing was heard for so long that it is lost.
    Lost,
    /// Its token was removed, and its last session has ended.
    Revoked,
}

/// Runs a control link as long as it lives, and then waits whether the agent comes back.
pub async fn run_control(worker: &Rc<Worker>, mut client: Client, hello: Hello) {
    let agents = &worker.shared.agents;
    let (agent, number, mut to_say) = agents.link(&hello);
    let mut liveness = Liveness::new(Instant::now());
    let answer = http::switching_to(
        link::UPGRADE_TOKEN,
        &[
            (header::PROTOCOL, &hello.protocol.to_string()),
            (header::INSTANCE, &agents.instance),
            (header::CHANNELS, &agents.channels_wanted().to_string()),
        ],
    );
    sockets::set_user_timeout(&client.socket, Some(sockets::DEAD_LINK));
    tracing::info!(agent = agent.slug, country = agent.country, node = agent.node_id, client = %client.peer, "agent linked");
    let end = match client.send(&answer).await {
        Ok(()) => talk(worker, &mut client, &agent, &mut to_say, &mut liveness).await,
        Err(error) => End::Gone(error.to_string()),
    };
    drop(client);
    match end {
        End::Replaced => return,
        End::Revoked => {
            tracing::info!(agent = agent.slug, "its token was removed, and its last session has ended: link closed");
            return agents.lose(&agent, number);
        }
        End::Lost => {}
        // A link that has a successor says nothing of the agent any more.
        End::Gone(_) if agent.link.load(Ordering::SeqCst) != number => return,
        End::Gone(why) => {
            liveness.ended(Instant::now());
            agent.up.store(false, Ordering::Relaxed);
            tracing::warn!(
                agent = agent.slug,
                node = agent.node_id,
                sessions = agent.sessions(),
                "agent's link ended: {why}"
            );
            if comes_back(&agent, number, &mut to_say, &liveness).await {
                return;
            }
        }
    }
    tracing::warn!(agent = agent.slug, node = agent.node_id, sessions = agent.sessions(), "agent lost");
    agents.lose(&agent, number);
}

async fn talk(
    worker: &Worker,
    client: &mut Client,
    agent: &Agent,
    to_say: &mut UnboundedReceiver<FromGateway>,
    liveness: &mut Liveness,
) -> End {
    let mut beat_at = Instant::now();
    if worker.draining() {
        agent.say(FromGateway::Draining);
    }
    loop {
        loop {
            match link::decode::<FromAgent>(&mut client.input) {
                Ok(Some(FromAgent::Heartbeat { sessions })) => agent.reported.store(sessions, Ordering::Relaxed),
                Ok(Some(FromAgent::Draining)) => {
                    if !agent.draining.swap(true, Ordering::Relaxed) {
                        tracing::info!(agent = agent.slug, node = agent.node_id, "agent drains");
                    }
                }
                Ok(Some(FromAgent::Unknown)) => {}
                Ok(None) => break,
                Err(error) => return End::Gone(error.to_string()),
            }
        }
        let now = Instant::now();
        let life = liveness.life(now);
        let was_up = agent.up.swap(life == Life::Up, Ordering::Relaxed);
        match life {
            Life::Lost => return End::Lost,
            Life::Missed if was_up => {
                tracing::warn!(agent = agent.slug, node = agent.node_id, "agent is silent: it gets no new sessions");
            }
            _ => {}
        }
        if agent.revoked.load(Ordering::Relaxed) && agent.sessions() == 0 {
            return End::Revoked;
        }
        if now >= beat_at {
            beat_at = next_heartbeat(now);
            // A stopped agent takes nothing: that is what the missed heartbeats are for, not this send.
            agent.say(FromGateway::Heartbeat);
        }
        let wake = liveness.next_change(now).map_or(beat_at, |change| change.min(beat_at));
        let event = {
            let next = pin!(to_say.next());
            let readable = pin!(client.readable(wake));
            match select(next, readable).await {
                Either::Left((message, _)) => Either::Left(message),
                Either::Right((filled, _)) => Either::Right(filled),
            }
        };
        match event {
            Either::Left(None) => return End::Replaced,
            Either::Left(Some(message)) => {
                if let Err(error) = client.send(&link::encode(&message)).await {
                    return End::Gone(error.to_string());
                }
            }
            Either::Right(Filled::Draining) => agent.say(FromGateway::Draining),
            Either::Right(Filled::Late) => {}
            Either::Right(Filled::More | Filled::Ended) => match client.receive(Instant::now() + link::HEARTBEAT).await
            {
                Filled::More => liveness.heard(Instant::now()),
                _ => return End::Gone("it closed the connection".into()),
            },
        }
    }
}

/// Waits whether another link of the same process comes in time.
async fn comes_back(
    agent: &Agent,
    number: u64,
    to_say: &mut UnboundedReceiver<FromGateway>,
    liveness: &Liveness,
) -> bool {
    while agent.link.load(Ordering::Relaxed) == number {
        let Some(change) = liveness.next_change(Instant::now()) else { return false };
        // What is said meanwhile nobody hears. The outbox ends when a new link has one of its own.
        if let Some(None) = deadline::until(change, to_say.next()).await {
            return true;
        }
    }
    true
}

/// A data channel has come: answers it, and gives it to the worker that needs it most.
pub async fn admit_channel(worker: &Rc<Worker>, client: Client, agent: u64) {
    let agents = &worker.shared.agents;
    let Some(agent) = agents.by_id(agent) else { return };
    let answer = http::switching_to(link::UPGRADE_TOKEN, &[]);
    if client.send(&answer).await.is_err() || !client.input.is_empty() {
        // An agent says nothing before it is asked.
        return;
    }
    let Client { socket, .. } = client;
    let Some(socket) = Rc::into_inner(socket) else { return };
    let to = agent.neediest();
    if to == worker.index {
        return keep(worker, &agent, socket);
    }
    match socket.into_parcel() {
        Ok(parcel) => agents.tell(to, Errand::Channel { agent, parcel }),
        Err(error) => tracing::error!("a data channel could not be moved: {error}"),
    }
}

/// Keeps a fresh channel here, or passes it on where somebody has begun to wait meanwhile.
fn keep(worker: &Rc<Worker>, agent: &Arc<Agent>, socket: Socket) {
    worker.channels.add(worker.index, agent, socket);
    let Some(other) = agent.needy(worker.index) else { return };
    let (worker, agent) = (worker.clone(), agent.clone());
    monoio::spawn(async move {
        let socket = worker.channels.pop(agent.id).await;
        if let Some(Ok(parcel)) = socket.map(Socket::into_parcel) {
            worker.shared.agents.tell(other, Errand::Channel { agent, parcel });
        }
    });
}

/// Does what other workers want of this one, as long as the process lives.
pub async fn run_errands(worker: &Rc<Worker>, mut errands: UnboundedReceiver<Errand>) {
    while let Some(errand) = errands.next().await {
        match errand {
            Errand::Channel { agent, parcel } => match parcel.open() {
                Ok(socket) => keep(worker, &agent, socket),
                Err(error) => tracing::error!("a data channel could not be taken over: {error}"),
            },
            Errand::Take { agent, reply } => {
                let worker = worker.clone();
                monoio::spawn(async move {
                    let socket = worker.channels.pop(agent).await;
                    let _ = reply.send(socket.and_then(|socket| socket.into_parcel().ok()));
                });
            }
            Errand::Lost { agent } => {
                worker.channels.forget(agent);
                let worker = worker.clone();
                monoio::spawn(async move { worker.registry.abort(agent).await });
            }
        }
    }
}
