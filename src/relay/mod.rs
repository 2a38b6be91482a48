//! The data path: moves a session's bytes between two sockets, and ends it as `protocol::session` says.
//!
//! A relay is two small tasks on one thread, a lane in each direction, and a third one, the warden, while there is a
//! time to keep. It knows nothing of JSON, keys or agents; whoever sets a session up hands it two connected sockets,
//! what was received behind the set-up, and what is to be dropped at the end. Must never block the thread, never hold
//! a buffer while idle, never drop a receive or a send.
pub mod buffers;
pub mod deadline;
mod lost;
mod pool;
mod pump;
pub mod socket;
mod splice;
pub mod tls;
mod turn;
pub mod wake;

use std::{
    any::Any,
    cell::{Cell, OnceCell, RefCell},
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::{Rc, Weak},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use futures_util::FutureExt;

use self::{lost::Debt, socket::Socket, wake::Signal};
use crate::{
    protocol::{
        close::Close,
        drain::Drain,
        frame::FrameCounts,
        session::{Ending, Place, Received, Session, Side},
    },
    runtime::{load::Load, memory, sys, threads::BEAT},
    telemetry::counters::{Bytes, WorkerCounters},
};

/// In so many beats each peer is looked at, whether it is lost, and how many sessions at a time: for a moment that
/// nobody notices.
const SWEEP: usize = 5;
const AT_A_TIME: usize = 32;

/// Sessions that are told to end before the other tasks of the thread have their turn.
const BATCH: usize = 64;

/// What a set-up hands over: two connected sockets, and what was received behind the set-up.
#[derive(Debug)]
pub struct Connected {
    pub client: Rc<Socket>,
    pub target: Rc<Socket>,
    /// Frames, or parts of some, that the client sent behind its connect message.
    pub from_client: Vec<u8>,
    /// The same of the target, behind its answer.
    pub from_target: Vec<u8>,
    pub idle_timeout: Option<Duration>,
    pub place: Place,
    /// Names the other hop, for [`Registry::abort`].
    pub hop: u64,
}

/// Where a session's traffic is counted, while it passes. Both must belong to this thread.
#[derive(Clone, Debug)]
pub struct Meter {
    pub worker: Arc<WorkerCounters>,
    /// The bytes of whoever the session is for.
    pub account: Option<Arc<Bytes>>,
}

/// What passed in a session so far, and how it ended.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    pub frames_from_client: u64,
    pub frames_from_target: u64,
    pub bytes_from_client: u64,
    pub bytes_from_target: u64,
    pub ending: Option<Ending>,
}

/// A session that is being relayed on this thread. This is what an idle one costs, with its two lanes and its sockets,
/// so what few sessions have at a time is in boxes.
pub struct Relay {
    session: RefCell<Session>,
    sockets: [Rc<Socket>; 2],
    lanes: [Signal; 2],
    /// Where the warden waits, if there is one.
    warden: OnceCell<Box<Signal>>,
    running: Cell<u8>,
    /// `None`: neither peer owed anything at the last look.
    debts: Cell<Option<Box<[Debt; 2]>>>,
    /// What the session holds of others as long as it lasts.
    held: Cell<Option<Box<dyn Any>>>,
    /// Which hop of ours the other one is, if one is.
    hop: u64,
    meter: Meter,
}

/// The sessions of one worker: to end them together, and to find dead peers.
#[derive(Debug, Default)]
pub struct Registry {
    relays: RefCell<Vec<Weak<Relay>>>,
    /// Sessions that are being relayed, of all workers together.
    relayed: Arc<AtomicUsize>,
    draining: RefCell<Option<Arc<Drain>>>,
}

impl Registry {
    /// `relayed` counts the sessions of all workers together.
    pub fn new(relayed: Arc<AtomicUsize>) -> Self {
        Self { relayed, ..Self::default() }
    }

    /// Ends all sessions of this worker, and each that begins from now on, when its turn in the drain has come: 1012
    /// to clients, 1001 to targets. Done when each that was there has been told.
    pub async fn drain(&self, drain: Arc<Drain>) {
        *self.draining.borrow_mut() = Some(drain.clone());
        let mut relays = self.live();
        // The first one to draw has the first turn, and must not be the oldest session each time.
        fastrand::shuffle(&mut relays);
        let now = Instant::now();
        let draw = |relay| (drain.draw(now, fastrand::f64()), Rc::downgrade(relay));
        let mut turns: Vec<(Instant, Weak<Relay>)> = relays.iter().map(draw).collect();
        drop(relays);
        turns.sort_by_key(|(turn, _)| *turn);
        for (index, (turn, relay)) in turns.into_iter().enumerate() {
            if turn > Instant::now() {
                sleep_until(turn).await;
            } else if index % BATCH == BATCH - 1 {
                monoio::spawn(async {}).await;
            }
            if let Some(relay) = relay.upgrade() {
                relay.restart(&drain);
            }
        }
    }

    /// Looks for dead peers again and again, and gives back what the thread's sessions have no use for.
    pub async fn watch(&self, beat: &Signal) {
        loop {
            let mut at = 0;
            for beats_left in (1..=SWEEP).rev() {
                beat.wait().await;
                let share = self.relays.borrow().len().saturating_sub(at).div_ceil(beats_left);
                at = self.look_at(at, share).await;
            }
            let mut relays = self.relays.borrow_mut();
            if relays.len() < relays.capacity() / 4 {
                memory::tidy(&mut relays);
            }
            drop(relays);
            buffers::trim();
            splice::trim();
        }
    }

    /// That hop is lost: aborts the connections to it, so that each session ends as the loss of that peer has it.
    pub async fn abort(&self, hop: u64) {
        for (index, relay) in self.live().into_iter().enumerate() {
            if index % BATCH == BATCH - 1 {
                monoio::spawn(async {}).await;
            }
            let side = relay.session.borrow().place().other_hop();
            if let Some(side) = side.filter(|_| relay.hop == hop) {
                relay.socket(side).abort();
            }
        }
    }

    /// Looks at `count` peers within a beat, from this place in the list on, and says where to go on.
    async fn look_at(&self, mut at: usize, count: usize) -> usize {
        let slices = count.div_ceil(AT_A_TIME);
        let pause = BEAT / u32::try_from(slices.max(1)).unwrap_or(u32::MAX);
        for slice in 0..slices {
            if slice > 0 {
                monoio::time::sleep(pause).await;
            }
            at = self.look_at_some(at, AT_A_TIME.min(count - slice * AT_A_TIME));
        }
        at
    }

    /// None is looked at twice in a round: what moves in the list moves to the front, or to the place that is looked at.
    fn look_at_some(&self, mut at: usize, count: usize) -> usize {
        let mut relays = self.relays.borrow_mut();
        for _ in 0..count {
            match relays.get(at).map(Weak::upgrade) {
                Some(Some(relay)) => {
                    relay.abort_lost();
                    at += 1;
                }
                Some(None) => {
                    relays.swap_remove(at);
                }
                None => break,
            }
        }
        at
    }

    fn live(&self) -> Vec<Rc<Relay>> {
        self.relays.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    fn add(&self, relay: &Rc<Relay>) {
        let mut relays = self.relays.borrow_mut();
        memory::make_room(&mut relays, |one| one.strong_count() > 0);
        relays.push(Rc::downgrade(relay));
        drop(relays);
        let draining = self.draining.borrow().clone();
        if let Some(drain) = draining {
            let turn = drain.draw(Instant::now(), fastrand::f64());
            let relay = Rc::downgrade(relay);
            monoio::spawn(async move {
                sleep_until(turn).await;
                if let Some(relay) = relay.upgrade() {
                    relay.restart(&drain);
                }
            });
        }
    }
}

/// From now on the buffers and pipes of this thread show in these counters, which must belong to it.
pub fn count_in(counters: &Arc<WorkerCounters>) {
    buffers::count_in(counters);
    splice::count_in(counters);
}

async fn sleep_until(moment: Instant) {
    monoio::time::sleep_until(monoio::time::Instant::from_std(moment)).await;
}

/// Begins to relay a session, which runs by itself. `held` is asked for what is to be dropped when it has ended.
pub fn begin<H: Any>(connected: Connected, registry: &Registry, meter: Meter, held: impl FnOnce(&Rc<Relay>) -> H) {
    let Connected { client, target, from_client, from_target, idle_timeout, place, hop } = connected;
    let relay = Rc::new(Relay {
        session: RefCell::new(Session::new(place, idle_timeout, Instant::now())),
        sockets: [client, target],
        lanes: Default::default(),
        warden: OnceCell::new(),
        running: Cell::new(2),
        debts: Cell::default(),
        held: Cell::default(),
        hop,
        meter,
    });
    registry.add(&relay);
    relay.held.set(Some(Box::new((held(&relay), Load::on(&registry.relayed)))));
    relay.clone().spawn_lane(Side::Client, from_client);
    relay.clone().spawn_lane(Side::Target, from_target);
    relay.time_changed();
}

impl Relay {
    /// Whether one of the peers has closed, left, or been told to.
    pub fn is_ending(&self) -> bool {
        self.session.borrow().is_ending()
    }

    fn spawn_lane(self: Rc<Self>, from: Side, first: Vec<u8>) {
        // It stays as long as the lane does, so it brings no room that it has no use for.
        let first = if first.is_empty() { Vec::new() } else { first };
        let lane = AssertUnwindSafe(pump::run(self.clone(), from, first)).catch_unwind();
        // Not awaited in an async block, which would have room for it twice.
        monoio::spawn(lane.map(move |ended| {
            if ended.is_err() {
                self.failed(format_args!("its lane from the {from:?}"));
            }
            self.lane_ended();
        }));
    }

    fn lane_ended(&self) {
        self.running.set(self.running.get() - 1);
        if let Some(warden) = self.warden.get() {
            warden.set();
        }
        if self.running.get() > 0 {
            return;
        }
        let held = self.held.take();
        if catch_unwind(AssertUnwindSafe(|| drop(held))).is_err() {
            self.failed(format_args!("its end"));
        }
    }

    /// A bug of ours ends this session, and no other.
    fn failed(&self, what: std::fmt::Arguments<'_>) {
        tracing::error!("a session failed: {what} panicked");
        self.sockets.iter().for_each(|socket| socket.abort());
    }

    /// When the next tick is due may have changed: wakes the warden, and has one as soon as there is a time to keep.
    fn time_changed(self: &Rc<Self>) {
        if let Some(warden) = self.warden.get() {
            return warden.set();
        }
        if self.session.borrow().next_tick(Instant::now()).is_none() {
            return;
        }
        self.warden.get_or_init(Box::default);
        let relay = self.clone();
        monoio::spawn(async move {
            let Some(warden) = relay.warden.get() else { return };
            if AssertUnwindSafe(relay.keep_time(warden)).catch_unwind().await.is_err() {
                relay.failed(format_args!("its warden"));
            }
        });
    }

    /// The warden: keeps the session's time until both lanes are done.
    async fn keep_time(self: &Rc<Self>, warden: &Signal) {
        while self.running.get() > 0 {
            let next = self.session.borrow().next_tick(Instant::now());
            match next {
                None => warden.wait().await,
                Some(at) => {
                    // In a box: a timer is large, and aligned to more than anything else here.
                    let sleep = Box::pin(monoio::time::sleep_until(monoio::time::Instant::from_std(at)));
                    if warden.or(sleep).await.is_some() {
                        self.tick();
                    }
                }
            }
        }
    }

    fn tick(self: &Rc<Self>) {
        let tick = self.change(|session| session.tick(|side| self.socket(side).progress(), Instant::now()));
        if tick.abort_client {
            self.socket(Side::Client).abort();
        }
        if tick.abort_target {
            self.socket(Side::Target).abort();
        }
    }

    /// Its turn in the drain has come.
    fn restart(self: &Rc<Self>, drain: &Drain) {
        let now = Instant::now();
        self.change(|session| session.close(Close::RESTART_CLIENT, Close::RESTART_TARGET, drain.frame_end(now), now));
    }

    fn abort_lost(&self) {
        let now = Instant::now();
        let mut debts = self.debts.take().map_or_else(Default::default, |debts| *debts);
        for (socket, debt) in self.sockets.iter().zip(&mut debts) {
            if sys::peer(socket.as_fd()).is_some_and(|peer| debt.look(peer, now)) {
                socket.abort();
            }
        }
        if debts.iter().any(Debt::is_owed) {
            self.debts.set(Some(Box::new(debts)));
        }
    }

    /// Changes the session's state, and wakes whom that may concern.
    fn change<T>(self: &Rc<Self>, change: impl FnOnce(&mut Session) -> T) -> T {
        let mut session = self.session.borrow_mut();
        let result = change(&mut session);
        let changed = session.take_changed();
        drop(session);
        if changed {
            self.lanes.iter().for_each(Signal::set);
            self.time_changed();
        }
        result
    }

    /// Asks the session what becomes of these bytes, and counts it.
    fn receive(self: &Rc<Self>, from: Side, bytes: &[u8]) -> Received {
        let mut began = FrameCounts::default();
        let received = self.change(|session| session.received(from, bytes, &mut began, Instant::now()));
        self.passed(from, &began, received.forward as u64);
        received
    }

    /// The same for a pipe, which holds this header, if any, and payload that the session lets pass unseen.
    fn receive_unseen(self: &Rc<Self>, from: Side, header: &[u8], held: usize) {
        let mut began = FrameCounts::default();
        let now = Instant::now();
        self.change(|session| {
            if !header.is_empty() {
                session.received(from, header, &mut began, now);
            }
            session.received_unseen(from, (held - header.len()) as u64, now);
        });
        self.passed(from, &began, held as u64);
        self.meter.worker.spliced.add(from, held as u64);
    }

    /// What was to be forwarded from this side has been sent, or could not be.
    fn sent(self: &Rc<Self>, from: Side, ok: bool) {
        self.change(|session| if ok { session.sent(from) } else { session.send_failed(from, Instant::now()) });
    }

    fn passed(&self, from: Side, began: &FrameCounts, bytes: u64) {
        self.meter.worker.passed(from, began, bytes);
        if let Some(account) = &self.meter.account {
            account.add(from, bytes);
        }
    }

    /// Whether bytes can be spliced between the sockets of this session, from now on.
    fn prepare_for_splicing(&self) -> bool {
        self.sockets.iter().all(|socket| socket.is_plain() && socket.set_nonblocking().is_ok())
    }

    fn close_passed(&self, to: Side, code: Option<u16>) {
        self.meter.worker.closed(to, code);
    }

    async fn send_close(&self, to: Side, close: Close) -> std::io::Result<()> {
        let masking_key = match to {
            Side::Client => None,
            // Section 5.3: a fresh key for each frame, from a strong source of entropy.
            Side::Target => {
                let mut key = [0; 4];
                getrandom::fill(&mut key).map_err(|_| std::io::ErrorKind::Other)?;
                Some(key)
            }
        };
        self.socket(to).send_bytes(&close.to_bytes(masking_key)).await?;
        self.close_passed(to, Some(close.code));
        Ok(())
    }

    fn socket(&self, side: Side) -> &Socket {
        &self.sockets[side as usize]
    }

    fn lane(&self, from: Side) -> &Signal {
        &self.lanes[from as usize]
    }

    /// What has passed so far; complete once the session has ended.
    pub fn summary(&self) -> Summary {
        let session = self.session.borrow();
        let (frames_from_client, bytes_from_client) = session.passed(Side::Client);
        let (frames_from_target, bytes_from_target) = session.passed(Side::Target);
        Summary {
            frames_from_client,
            frames_from_target,
            bytes_from_client,
            bytes_from_target,
            ending: session.ending(),
        }
    }
}
