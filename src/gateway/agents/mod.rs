//! The agents of a gateway: which are linked, which of them a session gets, and their data channels.
//!
//! What workers share of an agent is here: counts and flags, read without locks. Channels belong to one worker each
//! (`channels.rs`); what one worker has to say to another goes as an [`Errand`].
mod channels;
mod control;
mod exchange;
mod hello;
mod pick;
mod tokens;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_channel::{
    mpsc::{self, UnboundedReceiver, UnboundedSender},
    oneshot,
};

pub use self::{
    channels::Channels,
    control::{admit_channel, run_control, run_errands},
    exchange::{Unmet, exchange},
    hello::{Admitted, Hello},
};
use self::{pick::Candidate, tokens::Tokens};
use super::http::{Request, Response};
use crate::{
    config::{agents::AgentEntry, gateway::EmbeddedAgentConfig},
    protocol::{connect::Selection, link::FromGateway},
    relay::socket::Parcel,
    telemetry::prometheus::AgentCounts,
};

/// The most processes of one slug that are linked at once: a fleet is smaller, and a leaked token does no more.
const MAX_PROCESSES: usize = 256;
/// The most idle channels of one process beyond those that are wanted: those that sessions asked for and gave up.
const SPARE_CHANNELS: usize = 256;

/// The number of no link.
const LOST: u64 = 0;

/// What one worker wants of another.
#[derive(Debug)]
pub enum Errand {
    /// A fresh channel is yours.
    Channel { agent: Arc<Agent>, parcel: Parcel },
    /// Hand over an idle channel of this agent, if you have one.
    Take { agent: u64, reply: oneshot::Sender<Option<Parcel>> },
    /// This agent is lost: end its sessions.
    Lost { agent: u64 },
}

/// All agents of a gateway.
#[derive(Debug)]
pub struct Agents {
    /// Names this process, so that no channel meant for another gets in.
    instance: String,
    embedded: Option<Embedded>,
    /// `None`: remote agents are not taken.
    tokens: Option<ArcSwap<Tokens>>,
    linked: ArcSwap<Vec<Arc<Agent>>>,
    /// Numbers of agents and of links, from 1.
    numbers: AtomicU64,
    /// Idle channels wanted for each agent and worker.
    idle_channels: u32,
    workers: Vec<UnboundedSender<Errand>>,
    /// Agents that were left for another one, unseen by the client.
    failovers: AtomicU64,
}

#[derive(Debug)]
struct Embedded {
    config: EmbeddedAgentConfig,
    sessions: Arc<AtomicU64>,
}

/// One process of an agent that is linked, or was a moment ago.
pub struct Agent {
    /// Names it in this process.
    pub id: u64,
    pub slug: String,
    pub country: String,
    pub node_id: String,
    process: String,
    max_sessions: u64,
    token: ArcSwap<[u8; 32]>,
    /// The number of its control link; a later one replaces it.
    link: AtomicU64,
    outbox: ArcSwapOption<UnboundedSender<FromGateway>>,
    /// Its link stands, and it is heard.
    up: AtomicBool,
    draining: AtomicBool,
    /// Its token is not in the file any more.
    revoked: AtomicBool,
    /// Its sessions of this gateway, from the pick on.
    sessions: Arc<AtomicU64>,
    /// All its sessions, as it says.
    reported: AtomicU64,
    /// For each worker: channels that are ready, and sessions that wait for one.
    idle: Box<[AtomicUsize]>,
    waiting: Box<[AtomicUsize]>,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("id", &self.id).field("slug", &self.slug).finish_non_exhaustive()
    }
}

/// The agent that a session gets.
#[derive(Debug)]
pub enum Choice {
    Embedded,
    Remote(Arc<Agent>),
}

/// A session of an agent's, counted until it is dropped.
#[derive(Debug)]
pub struct InUse(Arc<AtomicU64>);

impl InUse {
    fn new(sessions: &Arc<AtomicU64>) -> Self {
        sessions.fetch_add(1, Ordering::Relaxed);
        Self(sessions.clone())
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A slug, as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub slug: String,
    /// `None`: its token says nothing of it, and it has never been here.
    pub country: Option<String>,
    pub up: bool,
    pub sessions: u64,
    pub idle_channels: u64,
}

impl Known {
    /// For the metrics.
    pub fn counts(self) -> AgentCounts {
        let Self { slug, up, sessions, idle_channels, .. } = self;
        AgentCounts { slug, up, sessions, idle_channels }
    }
}

impl Agent {
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    fn load(&self) -> u64 {
        self.sessions().max(self.reported.load(Ordering::Relaxed))
    }

    fn takes_sessions(&self) -> bool {
        self.is_up() && self.load() < self.max_sessions
    }

    /// Its channels that are ready, of all workers.
    fn idle(&self) -> usize {
        self.idle.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Its sessions end, and it does not come back under this number.
    pub fn is_lost(&self) -> bool {
        self.link.load(Ordering::SeqCst) == LOST
    }

    /// It is there for new sessions, unless it is full.
    fn is_up(&self) -> bool {
        let flag = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        flag(&self.up) && !flag(&self.draining) && !flag(&self.revoked)
    }

    /// It has said that it drains.
    pub fn drains(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether it has so many idle channels that another one is no help, but a burden.
    fn has_too_many_channels(&self, wanted: usize) -> bool {
        self.idle() >= wanted + SPARE_CHANNELS
    }

    /// Asks it for so many channels more than it would have ready.
    fn open(&self, count: u32) {
        self.say(FromGateway::Open { count });
    }

    fn say(&self, message: FromGateway) {
        if let Some(outbox) = &*self.outbox.load() {
            let _ = outbox.unbounded_send(message);
        }
    }

    /// The worker with most idle channels, if one other than `worker` has any.
    fn most_idle(&self, worker: usize) -> Option<usize> {
        let counts = self.idle.iter().enumerate().filter(|(at, _)| *at != worker);
        let counts = counts.map(|(at, count)| (count.load(Ordering::SeqCst), at));
        counts.max().filter(|(count, _)| *count > 0).map(|(_, at)| at)
    }

    /// A worker other than this one with sessions that wait, and no channel for them.
    fn needy(&self, worker: usize) -> Option<usize> {
        let waits = |at: usize| self.waiting[at].load(Ordering::SeqCst) > self.idle[at].load(Ordering::SeqCst);
        (0..self.idle.len()).find(|at| *at != worker && waits(*at))
    }

    /// The worker that a fresh channel is for: one with sessions that wait, else the one with fewest.
    fn neediest(&self) -> usize {
        let key = |at: usize| {
            let idle = self.idle[at].load(Ordering::Relaxed);
            let waiting = self.waiting[at].load(Ordering::Relaxed);
            (std::cmp::Reverse(waiting.saturating_sub(idle)), idle)
        };
        (0..self.idle.len()).min_by_key(|at| key(*at)).unwrap_or_default()
    }
}

impl Agents {
    /// `tokens`: the entries of their file, if remote agents are taken at all. Gives what each worker has to do.
    pub fn new(
        embedded: Option<EmbeddedAgentConfig>,
        tokens: Option<Vec<AgentEntry>>,
        idle_channels: u32,
        workers: usize,
    ) -> (Self, Vec<UnboundedReceiver<Errand>>) {
        let (senders, receivers) = (0..workers).map(|_| mpsc::unbounded()).unzip();
        let random = [(); 2].map(|()| getrandom::u64().unwrap_or_else(|_| fastrand::u64(..)));
        let agents = Self {
            instance: format!("{:016x}{:016x}", random[0], random[1]),
            embedded: embedded.map(|config| Embedded { config, sessions: Arc::default() }),
            tokens: tokens.map(|entries| ArcSwap::from_pointee(Tokens::new(entries))),
            linked: ArcSwap::default(),
            numbers: AtomicU64::new(1),
            idle_channels,
            workers: senders,
            failovers: AtomicU64::new(0),
        };
        (agents, receivers)
    }

    /// Whether there are paths for agents at all.
    pub fn takes_remote(&self) -> bool {
        self.tokens.is_some()
    }

    /// Judges an agent's request.
    ///
    /// # Errors
    /// The answer for one that may not go on.
    pub fn judge(&self, request: &Request, draining: bool) -> Result<Admitted, Response> {
        match &self.tokens {
            Some(tokens) => hello::judge(self, &tokens.load(), request, draining),
            None => Err(Response::error(404, "not_found", "There is nothing here; see /ws/docs")),
        }
    }

    /// Takes over what the file of tokens says now. An agent whose token is gone gets no new session and no new channel;
    /// its link ends when its last session has.
    pub fn replace_tokens(&self, entries: Vec<AgentEntry>) -> String {
        let Some(tokens) = &self.tokens else { return String::new() };
        tokens.store(Arc::new(Tokens::new(entries)));
        let tokens = tokens.load();
        let mut removed = 0;
        for agent in self.linked.load().iter() {
            let revoked = !tokens.stands_for(&agent.token.load(), &agent.slug, &agent.country);
            if revoked && !agent.revoked.swap(true, Ordering::Relaxed) {
                removed += 1;
                tracing::warn!(
                    agent = agent.slug,
                    "its token was removed, or is for another agent now: it gets no new sessions"
                );
                agent.say(FromGateway::Draining);
            } else if !revoked {
                agent.revoked.store(false, Ordering::Relaxed);
            }
        }
        format!("{} in all, {removed} linked agents lose theirs", tokens.len())
    }

    /// Picks an agent that fits, and none of `tried`.
    pub fn pick(&self, selection: &Selection, tried: &[u64]) -> Option<(Choice, InUse)> {
        let linked = self.linked.load();
        let linked: Vec<&Arc<Agent>> =
            linked.iter().filter(|agent| agent.takes_sessions() && !tried.contains(&agent.id)).collect();
        let mut candidates: Vec<Candidate<'_>> = linked
            .iter()
            .map(|agent| Candidate { slug: &agent.slug, country: &agent.country, load: agent.load() })
            .collect();
        if let Some(Embedded { config, sessions }) = &self.embedded {
            let load = sessions.load(Ordering::Relaxed);
            candidates.push(Candidate { slug: &config.slug, country: &config.country, load });
        }
        let at = pick::pick(&candidates, selection, |below| fastrand::usize(..below))?;
        match (linked.get(at), &self.embedded) {
            (Some(agent), _) => Some((Choice::Remote(Arc::clone(agent)), InUse::new(&agent.sessions))),
            (None, Some(embedded)) => Some((Choice::Embedded, InUse::new(&embedded.sessions))),
            (None, None) => None,
        }
    }

    pub fn embedded(&self) -> Option<&EmbeddedAgentConfig> {
        self.embedded.as_ref().map(|embedded| &embedded.config)
    }

    /// An agent failed before it began, and another one is tried.
    pub fn failed_over(&self, agent: &Agent, why: &str) {
        self.failovers.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(agent = agent.slug, node = agent.node_id, "a session goes to another agent: {why}");
    }

    pub fn failovers(&self) -> u64 {
        self.failovers.load(Ordering::Relaxed)
    }

    /// One entry a slug: those that are linked, and those of the tokens' file that are not.
    pub fn known(&self) -> Vec<Known> {
        let mut known: Vec<Known> = Vec::new();
        let mut add = |new: Known| match known.iter_mut().find(|known| known.slug.eq_ignore_ascii_case(&new.slug)) {
            Some(known) => {
                known.up |= new.up;
                known.country = known.country.take().or(new.country);
                known.sessions += new.sessions;
                known.idle_channels += new.idle_channels;
            }
            None => known.push(new),
        };
        if let Some(Embedded { config, sessions }) = &self.embedded {
            add(Known {
                slug: config.slug.clone(),
                country: Some(config.country.clone()),
                up: true,
                sessions: sessions.load(Ordering::Relaxed),
                idle_channels: 0,
            });
        }
        for agent in self.linked.load().iter() {
            add(Known {
                slug: agent.slug.clone(),
                country: Some(agent.country.clone()),
                up: agent.is_up(),
                sessions: agent.sessions(),
                idle_channels: agent.idle() as u64,
            });
        }
        if let Some(tokens) = &self.tokens {
            let tokens = tokens.load();
            let mut entries: Vec<&AgentEntry> = tokens.entries().collect();
            entries.sort_by(|a, b| a.slug.cmp(&b.slug));
            for entry in entries {
                let (slug, country) = (entry.slug.clone(), entry.country.clone());
                add(Known { slug, country, up: false, sessions: 0, idle_channels: 0 });
            }
        }
        known
    }

    pub fn any_up(&self) -> bool {
        self.embedded.is_some() || self.linked.load().iter().any(|agent| agent.is_up())
    }

    /// How many processes are linked with tokens of this slug.
    fn processes(&self, slug: &str) -> usize {
        self.linked.load().iter().filter(|agent| agent.slug.eq_ignore_ascii_case(slug)).count()
    }

    fn by_process(&self, process: &str) -> Option<Arc<Agent>> {
        self.linked.load().iter().find(|agent| agent.process == process).cloned()
    }

    fn by_id(&self, id: u64) -> Option<Arc<Agent>> {
        self.linked.load().iter().find(|agent| agent.id == id).cloned()
    }

    /// A control link begins: of an agent that is new here, or of one whose link is replaced. Gives the link's number,
    /// and what is to be said over it.
    fn link(&self, hello: &Hello) -> (Arc<Agent>, u64, UnboundedReceiver<FromGateway>) {
        let link = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (outbox, to_say) = mpsc::unbounded();
        let known = self.by_process(&hello.process);
        let same = |agent: &Arc<Agent>| agent.slug == hello.entry.slug && agent.country == hello.country;
        // One that is being lost just now does not come back.
        let next = |before| (before != LOST).then_some(link);
        let known = known.filter(same);
        let known = known.filter(|agent| agent.link.try_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok());
        let agent = known.clone().unwrap_or_else(|| {
            let counts = || (0..self.workers.len()).map(|_| AtomicUsize::new(0)).collect();
            Arc::new(Agent {
                id: self.numbers.fetch_add(1, Ordering::Relaxed),
                slug: hello.entry.slug.clone(),
                country: hello.country.clone(),
                node_id: hello.node_id.clone(),
                process: hello.process.clone(),
                max_sessions: hello.max_sessions,
                token: ArcSwap::from_pointee(hello.entry.sha256),
                link: AtomicU64::new(link),
                outbox: ArcSwapOption::empty(),
                up: AtomicBool::new(false),
                draining: AtomicBool::new(false),
                revoked: AtomicBool::new(false),
                sessions: Arc::default(),
                reported: AtomicU64::new(0),
                idle: counts(),
                waiting: counts(),
            })
        });
        agent.token.store(Arc::new(hello.entry.sha256));
        agent.revoked.store(false, Ordering::Relaxed);
        agent.outbox.store(Some(Arc::new(outbox)));
        agent.up.store(true, Ordering::Relaxed);
        if known.is_none() {
            self.linked.rcu(|linked| {
                let mut linked = Vec::clone(linked);
                linked.push(agent.clone());
                linked
            });
        }
        if !self
            .tokens
            .as_ref()
            .is_some_and(|tokens| tokens.load().stands_for(&hello.entry.sha256, &agent.slug, &agent.country))
        {
            // It was removed since the request was judged, and whoever did that may not have seen this agent.
            agent.revoked.store(true, Ordering::SeqCst);
        }
        (agent, link, to_say)
    }

    /// That agent is gone for good: its sessions end, its channels are closed.
    fn lose(&self, agent: &Agent, link: u64) {
        if agent.link.compare_exchange(link, LOST, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            return; // It has come back at the last moment.
        }
        agent.up.store(false, Ordering::Relaxed);
        self.linked
            .rcu(|linked| -> Vec<Arc<Agent>> { linked.iter().filter(|other| other.id != agent.id).cloned().collect() });
        for worker in 0..self.workers.len() {
            self.tell(worker, Errand::Lost { agent: agent.id });
        }
    }

    fn tell(&self, worker: usize, errand: Errand) {
        if let Some(worker) = self.workers.get(worker) {
            let _ = worker.unbounded_send(errand);
        }
    }

    /// How many idle channels an agent is to have ready in all.
    fn channels_wanted(&self) -> usize {
        self.workers.len() * self.idle_channels as usize
    }
}

/// How long a session waits for a fresh channel of one agent while another one fits.
pub const COLD_CHANNEL: Duration = Duration::from_secs(3);
/// So much earlier than a dial must be done, an agent that has not even begun is given up.
pub const LAST_MOMENT: Duration = Duration::from_millis(100);

/// When to give up waiting for a channel.
pub fn cold_until(now: Instant, deadline: Instant, another_fits: bool) -> Instant {
    let last = deadline.checked_sub(LAST_MOMENT).unwrap_or(deadline);
    if another_fits { last.min(now + COLD_CHANNEL) } else { last }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{TcpListener, TcpStream as StdStream};

    use monoio::net::TcpStream;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::{gateway::http::HeadReader, relay::socket::Socket, runtime::driver::Driver};

    fn hello() -> Hello {
        let sha256 = Sha256::digest("token").into();
        Hello {
            entry: AgentEntry { slug: "de1".into(), sha256, country: None },
            country: "DE".into(),
            node_id: "node".into(),
            process: "process".into(),
            max_sessions: 9,
            protocol: 1,
        }
    }

    fn agents() -> Agents {
        Agents::new(None, Some(vec![hello().entry]), 4, 1).0
    }

    #[test]
    fn a_token_that_is_removed_while_its_link_begins_gets_no_sessions() {
        let agents = agents();
        let (kept, ..) = agents.link(&hello());
        assert!(kept.takes_sessions());
        agents.replace_tokens(Vec::new());
        // Judged before that.
        for process in ["process", "another"] {
            let (agent, ..) = agents.link(&Hello { process: process.into(), ..hello() });
            assert!(!agent.takes_sessions(), "{process}");
        }
    }

    #[test]
    fn an_agent_has_no_more_channels_waiting_than_an_agent_may_have() {
        let agents = agents();
        let (agent, ..) = agents.link(&hello());
        let request = format!(
            "GET /agent/data HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: ringway\r\n\
             Authorization: Bearer token\r\nRingway-Process: process\r\nRingway-Instance: {}\r\n\r\n",
            agents.instance
        );
        let request = HeadReader::default().next(&mut request.into_bytes()).unwrap().unwrap();
        assert!(matches!(agents.judge(&request, false), Ok(Admitted::Data(id)) if id == agent.id));
        agent.idle[0].store(5120, Ordering::Relaxed);
        let refused = agents.judge(&request, false).map_err(|answer| answer.code().map(str::to_owned));
        assert_eq!(refused.unwrap_err().as_deref(), Some("too_many_channels"));
    }

    #[test]
    fn nobody_waits_for_a_lost_agent_and_its_channels_are_closed() {
        let agents = agents();
        let (agent, link, _) = agents.link(&hello());
        agents.lose(&agent, link);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = StdStream::connect(listener.local_addr().unwrap()).unwrap();
        theirs.set_nonblocking(true).unwrap();
        Driver::Epoll(None)
            .block_on(async {
                let channels = Channels::default();
                // What comes behind the errand that says that it is lost.
                channels.forget(agent.id);
                channels.add(0, &agent, Socket::plain(TcpStream::from_std(theirs).unwrap()));
                assert_eq!(agent.idle(), 0);
                let deadline = Instant::now() + Duration::from_secs(20);
                assert!(channels.take(&agents, 0, &agent, deadline).await.is_none());
                assert!(Instant::now() < deadline, "it waited");
            })
            .unwrap();
    }
}
