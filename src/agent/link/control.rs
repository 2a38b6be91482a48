//! The control link to one gateway: heartbeats both ways, and as many data channels as the gateway wants. Lives as
//! long as the process, and connects again whenever the link ends.
use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_channel::mpsc::UnboundedReceiver;
use futures_util::{FutureExt, StreamExt};
use serde::Serialize;

use super::{
    Event, Gateway, Instance, Ticket,
    dial::{self, Link, LinkFailure},
    pace::{Backoff, Complaints},
    stock::Stock,
};
use crate::{
    agent::worker::{Order, Worker},
    config::agent::Token,
    protocol::link::{
        self, FromAgent, FromGateway, LinkError,
        liveness::{Life, Liveness, next_heartbeat},
    },
    relay::{
        buffers::Buffer,
        deadline,
        socket::{Received, Socket},
    },
};

/// How long a try may take; while sessions wait for their gateway to come back, and otherwise.
const HURRIED_TRY: Duration = Duration::from_secs(3);
const TRY: Duration = Duration::from_secs(15);

/// How long the gateway may take to take a message of ours.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most bytes of a gateway's messages that are not whole. They are short.
const MAX_INPUT: usize = 128 * 1024;

/// A link that stood so long was a good one: when it ends, the first pause is short.
const STEADY: Duration = Duration::from_secs(5);

/// So many data channels in a row that come out at another gateway are no restart of it.
const MISMATCHES: u32 = 5;

pub struct Control {
    worker: Rc<Worker>,
    gateway: Arc<Gateway>,
    events: UnboundedReceiver<Event>,
    /// What the link that stands was made with.
    token: Option<Arc<Token>>,
    /// The process that answered last, and what is known of its life. `None` where it is lost.
    instance: Option<(Arc<Instance>, Liveness)>,
    stock: Stock,
    backoff: Backoff,
    complaints: Complaints,
    /// The same for data channels, and when they are tried again.
    channels_backoff: Backoff,
    channels_complaints: Complaints,
    channels_pause: Option<Instant>,
    mismatches: u32,
}

/// How a link ended, in words.
type End = String;

impl Control {
    pub fn new(worker: Rc<Worker>, gateway: Arc<Gateway>, events: UnboundedReceiver<Event>) -> Self {
        Self {
            worker,
            gateway,
            events,
            token: None,
            instance: None,
            stock: Stock::default(),
            backoff: Backoff::default(),
            complaints: Complaints::default(),
            channels_backoff: Backoff::default(),
            channels_complaints: Complaints::default(),
            channels_pause: None,
            mismatches: 0,
        }
    }

    /// Keeps the link up, for ever.
    pub async fn run(mut self) {
        loop {
            let least = match self.connect().await {
                Ok(link) => {
                    let began = Instant::now();
                    self.token = Some(self.worker.shared.token.load_full());
                    let end = self.serve(link).await;
                    if self.has_new_token() {
                        tracing::info!(gateway = %self.gateway.name, "the token has changed: linking anew with it");
                        continue;
                    }
                    self.gateway.up.store(false, Ordering::Relaxed);
                    tracing::warn!(gateway = %self.gateway.name, "the link to the gateway has ended: {end}");
                    if began.elapsed() >= STEADY {
                        self.backoff.reset();
                    }
                    None
                }
                Err(failure) => self.failed(&failure),
            };
            let pause = self.backoff.next(self.has_sessions(), fastrand::f64());
            self.rest(pause.max(least.unwrap_or_default())).await;
        }
    }

    /// One try.
    async fn connect(&mut self) -> Result<Link, LinkFailure> {
        let limit = Instant::now() + if self.has_sessions() { HURRIED_TRY } else { TRY };
        let stage = Cell::default();
        let tried = deadline::until(limit, Box::pin(dial::control(&self.worker.shared, &self.gateway, &stage))).await;
        self.settle_life();
        tried.unwrap_or_else(|| Err(LinkFailure::late(stage.get())))
    }

    /// Says what is wrong, and gives the least pause.
    fn failed(&mut self, failure: &LinkFailure) -> Option<Duration> {
        if self.complaints.is_news(&failure.to_string(), Instant::now()) {
            let gateway = &self.gateway.name;
            match failure {
                LinkFailure::Token | LinkFailure::Forbidden(_) => {
                    tracing::error!(%gateway, "no link to the gateway: {failure}; trying again seldom");
                }
                _ => tracing::warn!(%gateway, "no link to the gateway: {failure}; trying again"),
            }
        }
        match failure {
            LinkFailure::Token | LinkFailure::Forbidden(_) | LinkFailure::Version(_) => {
                self.backoff.slow_down();
                None
            }
            LinkFailure::Busy { retry_after, .. } => retry_after.map(|after| after.min(TRY)),
            _ => None,
        }
    }

    /// Serves a link that stands, until it ends.
    async fn serve(&mut self, link: Link) -> End {
        let Link { socket, received: mut input, address, accepted } = link;
        let now = Instant::now();
        let instance = self.adopt(accepted.instance, now);
        self.stock.want(accepted.channels);
        self.gateway.up.store(true, Ordering::Relaxed);
        self.worker.shared.linked();
        let again = if self.complaints.over() { " again" } else { "" };
        tracing::info!(gateway = %self.gateway.name, %address, channels = accepted.channels, "linked{again}");
        let (mut drain_told, mut beat) = (false, None);
        loop {
            loop {
                match link::decode(&mut input) {
                    Ok(Some(message)) => self.hear(message),
                    Ok(None) if input.len() <= MAX_INPUT => break,
                    Ok(None) => return LinkError::TooLong(input.len()).to_string(),
                    Err(error) => return error.to_string(),
                }
            }
            if self.settle_life() != Some(Life::Up) {
                // Its connection may stand, but nobody is there.
                socket.abort();
                return "three heartbeats are missing".into();
            }
            let draining = self.worker.shared.draining();
            if draining && !std::mem::replace(&mut drain_told, true) {
                if let Err(error) = say(&socket, &FromAgent::Draining).await {
                    return ended(&error);
                }
                self.stock.want_none();
            }
            self.open_channels(&instance, address);
            let now = Instant::now();
            if beat.is_none_or(|last| now >= next_heartbeat(last)) {
                let heartbeat = FromAgent::Heartbeat { sessions: self.worker.shared.sessions() };
                if let Err(error) = say(&socket, &heartbeat).await {
                    return ended(&error);
                }
                beat = Some(now);
            }
            let deadlines = [beat.map(next_heartbeat), self.next_change(now), self.channels_pause];
            let next = deadlines.into_iter().flatten().min().unwrap_or(now);
            let readable = {
                // None of these loses anything when it is dropped.
                let mut event = self.events.next().fuse();
                let mut readable = std::pin::pin!(deadline::until(next, socket.readable()).fuse());
                futures_util::select_biased! {
                    event = event => Err(event),
                    readable = readable => Ok(readable.is_some()),
                }
            };
            match readable {
                Err(Some(Event::Reloaded)) if self.has_new_token() => return "the token has changed".into(),
                Err(event) => self.note(event),
                Ok(false) => {}
                Ok(true) => {
                    let (received, buffer) = deadline::within(&socket, PATIENCE, socket.recv(Buffer::take(), 0)).await;
                    match received {
                        Ok(Received::Data(len)) => input.extend_from_slice(&buffer[..len]),
                        Ok(Received::Nothing) => {}
                        Ok(Received::End) => return "the gateway closed it".into(),
                        Err(error) => return ended(&error),
                    }
                }
            }
        }
    }

    /// Whether the link came about with a token that has been replaced since.
    fn has_new_token(&self) -> bool {
        let now = self.worker.shared.token.load();
        self.token.as_ref().is_some_and(|token| token.reveal() != now.reveal())
    }

    /// The gateway's process that has answered: the one before, or a new one.
    fn adopt(&mut self, id: String, now: Instant) -> Arc<Instance> {
        if let Some((known, liveness)) = &mut self.instance
            && known.id == id
        {
            liveness.heard(now);
            return known.clone();
        }
        self.lose("another process answers at its address");
        let instance = Arc::new(Instance {
            gateway: self.gateway.clone(),
            id,
            hop: self.worker.shared.next_hop(),
            sessions: Default::default(),
            lost: Default::default(),
        });
        self.instance = Some((instance.clone(), Liveness::new(now)));
        instance
    }

    fn hear(&mut self, message: FromGateway) {
        if let Some((_, liveness)) = &mut self.instance {
            liveness.heard(Instant::now());
        }
        match message {
            FromGateway::Open { count } if !self.worker.shared.draining() => self.stock.ask(count),
            FromGateway::Draining => {
                tracing::info!(gateway = %self.gateway.name, "the gateway drains: it has no new sessions");
                self.stock.want_none();
            }
            FromGateway::Open { .. } | FromGateway::Heartbeat | FromGateway::Unknown => {}
        }
    }

    /// Has workers open what is missing.
    fn open_channels(&mut self, instance: &Arc<Instance>, address: SocketAddr) {
        if self.channels_pause.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.channels_pause = None;
        for _ in 0..self.stock.open() {
            self.worker.shared.order(Ticket::new(instance.clone()), address);
        }
    }

    /// Something has happened elsewhere.
    fn note(&mut self, event: Option<Event>) {
        let hop = self.instance.as_ref().map(|(instance, _)| instance.hop);
        match event {
            Some(Event::Opened { hop: of }) if Some(of) == hop => {
                self.stock.opened();
                self.mismatches = 0;
                self.channels_backoff.reset();
                self.channels_complaints.over();
            }
            Some(Event::Ended { hop: of, was, failure }) if Some(of) == hop => {
                self.stock.ended(was);
                if let Some(failure) = failure {
                    self.channel_failed(&failure);
                }
            }
            _ => {}
        }
        self.gateway.ready.store(self.stock.ready().into(), Ordering::Relaxed);
    }

    fn channel_failed(&mut self, failure: &LinkFailure) {
        let gateway = &self.gateway.name;
        let now = Instant::now();
        self.mismatches = if *failure == LinkFailure::Mismatch { self.mismatches + 1 } else { 0 };
        if self.mismatches == MISMATCHES {
            tracing::error!(%gateway, "several gateways behind one address: list each in `gateways`");
        }
        // The others of one batch fail for the same reason.
        if self.channels_pause.is_none_or(|until| now >= until) {
            let pause = self.channels_backoff.next(self.has_sessions(), fastrand::f64());
            self.channels_pause = Some(now + pause);
        }
        if *failure == LinkFailure::Unused {
            // A client that left early does that, too.
            return tracing::debug!(%gateway, "{failure}");
        }
        let told = failure.to_string();
        if self.channels_complaints.is_news(&told, now) {
            tracing::warn!(gateway = %self.gateway.name, "no data channel to the gateway: {told}; trying again");
        }
    }

    /// Waits before the next try, and keeps the books meanwhile.
    async fn rest(&mut self, pause: Duration) {
        if let Some((_, liveness)) = &mut self.instance {
            liveness.ended(Instant::now());
        }
        let end = Instant::now() + pause;
        loop {
            self.settle_life();
            let now = Instant::now();
            if now >= end {
                return;
            }
            let next = self.next_change(now).map_or(end, |change| change.min(end));
            match deadline::until(next, self.events.next()).await {
                Some(Some(Event::Reloaded)) => return,
                Some(event) => self.note(event),
                None => {}
            }
        }
    }

    /// How its gateway's process is. One that is lost is given up here, with all its sessions.
    fn settle_life(&mut self) -> Option<Life> {
        let life = self.instance.as_ref().map(|(_, liveness)| liveness.life(Instant::now()));
        if life == Some(Life::Lost) {
            self.lose("it has been silent, or away, for too long");
        }
        life
    }

    fn next_change(&self, now: Instant) -> Option<Instant> {
        self.instance.as_ref().and_then(|(_, liveness)| liveness.next_change(now))
    }

    fn lose(&mut self, why: &str) {
        let Some((instance, _)) = self.instance.take() else { return };
        instance.lose();
        self.stock.clear();
        self.gateway.ready.store(0, Ordering::Relaxed);
        let sessions = instance.sessions.load(Ordering::Relaxed);
        tracing::warn!(gateway = %self.gateway.name, sessions, "the gateway is lost, and its sessions end: {why}");
        self.worker.shared.order_all(|| Order::Abort(instance.hop));
    }

    fn has_sessions(&self) -> bool {
        self.instance.as_ref().is_some_and(|(instance, _)| instance.sessions.load(Ordering::Relaxed) > 0)
    }
}

async fn say(socket: &Socket, message: &impl Serialize) -> io::Result<()> {
    deadline::within(socket, PATIENCE, socket.send_bytes(&link::encode(message))).await
}

fn ended(error: &io::Error) -> End {
    crate::agent::dial::explain(error)
}
