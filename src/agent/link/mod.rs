//! The link between an agent and its gateways, the agent's side.
//!
//! | module | owns |
//! | --- | --- |
//! | [`control`] | the control link to one gateway: heartbeats, how many channels there are, reconnecting |
//! | [`channel`] | a data channel: waiting, one session's set-up, and handing it to the relay |
//! | `dial` | reaching a gateway: DNS, TCP, TLS, Upgrade, each with its own failure |
//! | `upgrade` | the Upgrade as text |
//! | `stock` | the books of a gateway's channels |
//! | `pace` | when to try again, and when to say that it does not work |
//!
//! A control link is a task of one worker; its data channels are spread over all of them. What they share is here.
//! Must never let the token, a header, or a target's path or query into a log or an error.
pub mod channel;
pub mod control;
mod dial;
mod pace;
mod stock;
mod upgrade;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use futures_channel::mpsc::UnboundedSender;

use self::{dial::LinkFailure, stock::Stage};
use crate::{config::agent::GatewayUrl, protocol::target::Host};

/// A gateway of the configuration, as all threads see it.
#[derive(Debug)]
pub struct Gateway {
    pub tls: bool,
    pub host: Host,
    pub port: u16,
    /// In front of `/control` and `/data`.
    pub path: String,
    /// Host and port, for logs and metrics.
    pub name: String,
    /// The control link stands.
    pub up: AtomicBool,
    /// Data channels that wait for a request.
    pub ready: AtomicU64,
    events: UnboundedSender<Event>,
}

/// What the task of a control link hears from elsewhere.
#[derive(Debug)]
pub enum Event {
    /// A data channel of this hop stands.
    Opened { hop: u64 },
    /// A data channel of this hop is none that waits any more, or never became one.
    Ended { hop: u64, was: Stage, failure: Option<LinkFailure> },
    /// The agent drains.
    Drain,
    /// The token and the roots have been read again.
    Reloaded,
}

impl Gateway {
    pub fn new(url: &GatewayUrl, events: UnboundedSender<Event>) -> Self {
        Self {
            tls: url.tls,
            host: url.host.clone(),
            port: url.port,
            path: url.path.trim_end_matches('/').to_owned(),
            name: format!("{}:{}", url.host, url.port),
            up: AtomicBool::new(false),
            ready: AtomicU64::new(0),
            events,
        }
    }

    /// Tells the task of its control link.
    pub fn tell(&self, event: Event) {
        // Without that task the worker is gone, and the process about to end.
        let _ = self.events.unbounded_send(event);
    }
}

/// One process of a gateway, as long as it may have sessions here.
#[derive(Debug)]
pub struct Instance {
    pub gateway: Arc<Gateway>,
    /// What it calls itself.
    pub id: String,
    /// What the relay calls it.
    pub hop: u64,
    /// Sessions that it has here.
    pub sessions: AtomicU64,
    lost: AtomicBool,
}

impl Instance {
    /// From now on no session of it begins. Those that are there must be told.
    fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }

    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }
}

/// A data channel in the books of its gateway: whatever becomes of it, they are told.
#[derive(Debug)]
pub struct Ticket {
    pub instance: Arc<Instance>,
    /// `None`: it has its session.
    stage: Option<Stage>,
    failure: Option<LinkFailure>,
}

impl Ticket {
    fn new(instance: Arc<Instance>) -> Self {
        Self { instance, stage: Some(Stage::Opening), failure: None }
    }

    fn opened(&mut self) {
        self.stage = Some(Stage::Ready);
        self.instance.gateway.tell(Event::Opened { hop: self.instance.hop });
    }

    /// Its request has come.
    fn taken(&mut self) {
        self.end();
    }

    fn failed(mut self, failure: LinkFailure) {
        self.failure = Some(failure);
    }

    fn end(&mut self) {
        if let Some(was) = self.stage.take() {
            self.instance.gateway.tell(Event::Ended { hop: self.instance.hop, was, failure: self.failure.take() });
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.end();
    }
}
