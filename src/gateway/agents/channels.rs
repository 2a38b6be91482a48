//! The idle data channels of one worker, and the sessions there that wait for one.
//!
//! An idle channel belongs to a task that waits for its end and for somebody who wants it, whichever comes first, with
//! no receive in flight: so it can be handed to a session, also to one of another worker.
use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    pin::pin,
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
    waiting: RefCell<HashMap<u64, VecDeque<oneshot::Sender<Socket>>>>,
}

impl Channels {
    /// A fresh channel of `agent` for this worker: for the session that has waited longest, or to be kept.
    pub fn add(&self, worker: usize, agent: &Arc<Agent>, mut socket: Socket) {
        if agent.is_lost() {
            // Behind the errand that says so, nobody would ever forget it.
            return;
        }
        while let Some(waiting) = self.next_waiting(agent.id) {
            match waiting.send(socket) {
                Ok(()) => return,
                // That one has given up.
                Err(refused) => socket = refused,
            }
        }
        let (want, wanted) = oneshot::channel::<oneshot::Sender<Socket>>();
        {
            let mut idle = self.idle.borrow_mut();
            let idle = idle.entry(agent.id).or_default();
            // Those that have ended since.
            idle.retain(|want| !want.is_canceled());
            idle.push_back(want);
        }
        agent.idle[worker].fetch_add(1, Ordering::SeqCst);
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
            agent.idle[worker].fetch_sub(1, Ordering::SeqCst);
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
        if let Some(socket) = take_of_another(agents, worker, agent, deadline).await {
            return Some(socket);
        }
        if agent.is_lost() {
            return None;
        }
        let (hand, mut handed) = oneshot::channel();
        self.waiting.borrow_mut().entry(agent.id).or_default().push_back(hand);
        let _waits = Waits::new(&agent.waiting[worker]);
        // One that another worker got just now: whoever kept it did not know yet that somebody waits here.
        let taken = take_of_another(agents, worker, agent, deadline).await;
        match taken {
            Some(socket) => {
                if let Ok(Some(second)) = handed.try_recv() {
                    self.add(worker, agent, second);
                }
                Some(socket)
            }
            None => {
                agent.open(1);
                deadline::until(deadline, handed).await.and_then(Result::ok)
            }
        }
    }

    /// That agent is lost: its channels are closed, and nobody waits for one any more.
    pub fn forget(&self, agent: u64) {
        self.idle.borrow_mut().remove(&agent);
        self.waiting.borrow_mut().remove(&agent);
    }

    fn next_waiting(&self, agent: u64) -> Option<oneshot::Sender<Socket>> {
        let mut waiting = self.waiting.borrow_mut();
        let queue = waiting.get_mut(&agent)?;
        while let Some(next) = queue.pop_front() {
            if !next.is_canceled() {
                return Some(next);
            }
        }
        None
    }
}

/// A session that waits; it is counted until this is dropped, also when its client leaves.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An idle channel of the worker that has most.
async fn take_of_another(agents: &Agents, worker: usize, agent: &Agent, deadline: Instant) -> Option<Socket> {
    let other = agent.most_idle(worker)?;
    let (reply, handed) = oneshot::channel();
    agents.tell(other, Errand::Take { agent: agent.id, reply });
    let within = deadline.min(Instant::now() + HAND_OVER);
    let parcel = deadline::until(within, handed).await?.ok()??;
    Parcel::open(parcel).ok()
}
