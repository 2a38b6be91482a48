//! The idle data channels of one worker, and the sessions there that wait for one.
//!
//! An idle channel belongs to a task that waits for its end and for somebody who wants it, whichever comes first, with
//! no receive in flight: so it can be handed to a session, also to one of another worker.
use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_channel::oneshot;
use futures_util::future::{Either, select};

use super::{Agent, Agents, Errand};
use crate::{
    relay::{
        deadline,
        socket::{Parcel, Socket},
    },
    runtime::sockets,
};

/// How long another worker may take to hand a channel over.
const HAND_OVER: Duration = Duration::from_secs(1);

/// A channel that a worker has ready, as whoever wants it sees it.
type Idle = oneshot::Sender<oneshot::Sender<Socket>>;

/// By the agents' numbers.
#[derive(Default)]
pub struct Channels {
    idle: RefCell<HashMap<u64, VecDeque<Idle>>>,
    waiting: RefCell<HashMap<u64, VecDeque<Waiting>>>,
}

/// A session that waits for a channel, counted as long as it does.
struct Waiting {
    hand: oneshot::Sender<Socket>,
    _counted: Counted,
}

/// One in the counts of an agent for a worker, until it is dropped.
#[derive(Debug)]
pub struct Counted {
    agent: Arc<Agent>,
    count: fn(&Agent) -> &[AtomicUsize],
    worker: usize,
}

impl Counted {
    pub fn new(agent: &Arc<Agent>, count: fn(&Agent) -> &[AtomicUsize], worker: usize) -> Self {
        count(agent)[worker].fetch_add(1, Ordering::Relaxed);
        Self { agent: agent.clone(), count, worker }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.count)(&self.agent)[self.worker].fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes a session that has given up out of the queue, however it did.
struct Queued<'a> {
    channels: &'a Channels,
    agent: u64,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if let Some(queue) = self.channels.waiting.borrow_mut().get_mut(&self.agent) {
            queue.retain(|waiting| !waiting.hand.is_canceled());
        }
    }
}

impl Channels {
    /// A fresh channel of `agent` for this worker: for the session that has waited longest, or to be kept.
    pub fn add(self: &Rc<Self>, worker: usize, agent: &Arc<Agent>, mut socket: Socket) {
        while let Some(waiting) = self.next_waiting(agent.id) {
            match waiting.hand.send(socket) {
                Ok(()) => return,
                // That one has given up.
                Err(refused) => socket = refused,
            }
        }
        let (want, wanted) = oneshot::channel::<oneshot::Sender<Socket>>();
        self.idle.borrow_mut().entry(agent.id).or_default().push_back(want);
        agent.idle[worker].fetch_add(1, Ordering::Relaxed);
        let agent = agent.clone();
        sockets::set_user_timeout(&socket, Some(sockets::DEAD_LINK));
        monoio::spawn(async move {
            let wanted = {
                let readable = pin!(socket.readable());
                match select(wanted, readable).await {
                    Either::Left((Ok(want), _)) => Some(want),
                    // Wanted by nobody any more, or at its end: an agent says nothing unasked.
                    _ => None,
                }
            };
            agent.idle[worker].fetch_sub(1, Ordering::Relaxed);
            if let Some(want) = wanted {
                sockets::set_user_timeout(&socket, None);
                // Whoever wanted it may be gone: then the channel goes too, and the agent makes another.
                let _ = want.send(socket);
            }
        });
    }

    /// An idle channel of this worker.
    pub async fn pop(&self, agent: u64) -> Option<Socket> {
        loop {
            // The oldest is tried first, so that all stay fresh.
            let idle = self.idle.borrow_mut().get_mut(&agent)?.pop_front()?;
            let (want, wanted) = oneshot::channel();
            // One that has ended meanwhile does not answer.
            if idle.send(want).is_ok()
                && let Ok(socket) = wanted.await
            {
                return Some(socket);
            }
        }
    }

    /// A channel of `agent` for a session of this worker: one that is ready here, or at another worker, or a fresh one.
    /// `None`: none came until `deadline`, or the agent is lost.
    pub async fn take(&self, agents: &Agents, worker: usize, agent: &Arc<Agent>, deadline: Instant) -> Option<Socket> {
        if let Some(socket) = self.pop(agent.id).await {
            return Some(socket);
        }
        if let Some(other) = agent.most_idle(worker) {
            let (reply, handed) = oneshot::channel();
            agents.tell(other, Errand::Take { agent: agent.id, reply });
            let within = deadline.min(Instant::now() + HAND_OVER);
            if let Some(Ok(Some(parcel))) = deadline::until(within, handed).await
                && let Ok(socket) = Parcel::open(parcel)
            {
                return Some(socket);
            }
        }
        // Dropped behind the receiver, also when this future is dropped where it waits.
        let _queued = Queued { channels: self, agent: agent.id };
        let (hand, handed) = oneshot::channel();
        let _counted = Counted::new(agent, |agent| &agent.waiting, worker);
        self.waiting.borrow_mut().entry(agent.id).or_default().push_back(Waiting { hand, _counted });
        agent.open(1);
        deadline::until(deadline, handed).await?.ok()
    }

    /// That agent is lost: its channels are closed, and nobody waits for one any more.
    pub fn forget(&self, agent: u64) {
        self.idle.borrow_mut().remove(&agent);
        self.waiting.borrow_mut().remove(&agent);
    }

    fn next_waiting(&self, agent: u64) -> Option<Waiting> {
        self.waiting.borrow_mut().get_mut(&agent)?.pop_front()
    }
}
