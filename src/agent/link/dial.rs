//! Reaching a gateway: DNS, TCP, TLS, Upgrade, each with its own failure, in words that say what is needed.
//!
//! One future, which may be dropped: that closes what it had open.
use std::{
    cell::Cell,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use monoio::net::TcpStream;

use super::{
    Gateway, Instance,
    upgrade::{self, Accepted, Refusal},
};
use crate::{
    agent::{Shared, dial, tls},
    protocol::{
        link::{self, PROTOCOLS, header},
        target::Host,
    },
    relay::{
        buffers::Buffer,
        socket::{Received, Socket},
    },
    runtime::{resolver::ResolveError, sockets},
};

/// What a dial is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    #[default]
    Dns,
    Tcp,
    Tls,
    Upgrade,
}

/// Why there is no link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkFailure {
    #[error("DNS: {0}")]
    Dns(ResolveError),
    #[error("TCP: {0}")]
    Tcp(String),
    /// The words name TLS.
    #[error("{0}")]
    Tls(String),
    #[error("the connection failed before the gateway's answer: {0}")]
    Answer(String),
    #[error("{0}")]
    Late(&'static str),
    #[error("its token is refused: what token_file holds must be one of the gateway's agents.toml, for this slug")]
    Token,
    #[error("slug or country is refused{0}: agents.toml of the gateway says which token is for which")]
    Forbidden(String),
    /// With the gateway's words.
    #[error(
        "the versions do not fit: {0} (this agent speaks link protocol {oldest} to {newest}); update the older one",
        oldest = PROTOCOLS.start(),
        newest = PROTOCOLS.end()
    )]
    Version(String),
    #[error("it takes no agents now{}", .why)]
    Busy { retry_after: Option<Duration>, why: String },
    #[error("it ended a data channel at once")]
    Unused,
    #[error("another gateway answered where this one had been")]
    Mismatch,
    #[error("what answers there is no ringway gateway of this version, or the path is wrong: {0}")]
    NoGateway(String),
}

impl LinkFailure {
    /// It took too long.
    pub(super) fn late(stage: Stage) -> Self {
        Self::Late(match stage {
            Stage::Dns => "DNS: the name server did not answer in time",
            Stage::Tcp => "TCP: no connection in time: is the address right, and does a firewall let it pass?",
            Stage::Tls => "TLS: the handshake took too long: is this a TLS port?",
            Stage::Upgrade => "connected, but the gateway did not answer in time",
        })
    }
}

impl From<Refusal> for LinkFailure {
    fn from(refusal: Refusal) -> Self {
        let told = |why: String| if why.is_empty() { why } else { format!(" ({why})") };
        match refusal {
            Refusal::Token => Self::Token,
            Refusal::Forbidden(why) => Self::Forbidden(told(why)),
            Refusal::Mismatch => Self::Mismatch,
            Refusal::Version(why) => Self::Version(why),
            Refusal::Busy { retry_after, why } => Self::Busy { retry_after, why: told(why) },
            Refusal::Other(what) => Self::NoGateway(what),
        }
    }
}

/// A link that the gateway has accepted.
#[derive(Debug)]
pub(super) struct Link {
    pub socket: Rc<Socket>,
    /// What came right behind the answer.
    pub received: Vec<u8>,
    pub address: SocketAddr,
    pub accepted: Accepted,
}

/// Opens a control link. `stage` is kept up to date, for whoever bounds the time.
pub(super) async fn control(shared: &Shared, gateway: &Gateway, stage: &Cell<Stage>) -> Result<Link, LinkFailure> {
    let addresses: Vec<IpAddr> = match &gateway.host {
        Host::Ip(address) => vec![*address],
        Host::Name(name) => {
            let answer = shared.dialler.resolver.lookup(name).await.map_err(LinkFailure::Dns)?;
            let v6 = answer.v6.into_iter().map(IpAddr::V6);
            v6.chain(answer.v4.into_iter().map(IpAddr::V4)).collect()
        }
    };
    stage.set(Stage::Tcp);
    let tcp = dial::connect_first(dial::in_order(addresses), gateway.port, shared.limits.tcp_keepalive).await;
    let tcp = tcp.map_err(|error| LinkFailure::Tcp(dial::explain(&error)))?;
    let address = tcp.peer_addr().map_err(|error| LinkFailure::Tcp(dial::explain(&error)))?;
    let max_sessions = shared.max_sessions.to_string();
    let headers = [(header::MAX_SESSIONS, max_sessions.as_str())];
    let link = open(shared, gateway, tcp, address, link::CONTROL, &headers, stage).await?;
    if link.accepted.instance.is_empty() || link.accepted.protocol.is_none() {
        return Err(LinkFailure::NoGateway("it does not say who it is".into()));
    }
    Ok(link)
}

/// Opens a data channel, to the address that the control link goes to.
pub(super) async fn data(
    shared: &Shared,
    instance: &Instance,
    address: SocketAddr,
    stage: &Cell<Stage>,
) -> Result<Link, LinkFailure> {
    stage.set(Stage::Tcp);
    let tcp = TcpStream::connect_addr(address).await;
    let tcp = tcp.map_err(|error| LinkFailure::Tcp(dial::explain(&error)))?;
    sockets::prepare(&tcp, shared.limits.tcp_keepalive);
    let headers = [(header::INSTANCE, instance.id.as_str())];
    open(shared, &instance.gateway, tcp, address, link::DATA, &headers, stage).await
}

/// TLS where the gateway has it, and the Upgrade.
async fn open(
    shared: &Shared,
    gateway: &Gateway,
    tcp: TcpStream,
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    stage: &Cell<Stage>,
) -> Result<Link, LinkFailure> {
    let socket = Rc::new(if gateway.tls {
        stage.set(Stage::Tls);
        let connection = tls::connection(&shared.link_tls.load_full(), &gateway.host.server_name())
            .map_err(|error| LinkFailure::Tls(format!("TLS: {error}")))?;
        Socket::handshake(tcp, connection).await.map_err(|error| LinkFailure::Tls(tls::explain(&error)))?
    } else {
        Socket::plain(tcp)
    });
    sockets::set_user_timeout(&*socket, Some(sockets::DEAD_LINK));
    stage.set(Stage::Upgrade);
    let default_port = if gateway.tls { 443 } else { 80 };
    let authority = if gateway.port == default_port { gateway.host.to_string() } else { gateway.name.clone() };
    let mut all = vec![
        (header::SLUG, shared.slug.as_str()),
        (header::COUNTRY, &shared.country),
        (header::NODE_ID, &shared.node_id),
        (header::PROCESS, &shared.process),
    ];
    all.extend_from_slice(headers);
    let request = upgrade::request(&format!("{}{path}", gateway.path), &authority, shared.token.load().reveal(), &all);
    socket.send_bytes(&request).await.map_err(|error| broken(&error))?;
    let mut input = Vec::new();
    loop {
        socket.readable().await.map_err(|error| broken(&error))?;
        let (received, buffer) = socket.recv(Buffer::take(), 0).await;
        match received.map_err(|error| broken(&error))? {
            Received::Data(len) => input.extend_from_slice(&buffer[..len]),
            Received::Nothing => continue,
            Received::End => return Err(LinkFailure::Answer("it closed the connection".into())),
        }
        drop(buffer);
        if let Some(accepted) = upgrade::answer(&mut input)? {
            return Ok(Link { socket, received: input, address, accepted });
        }
    }
}

fn broken(error: &io::Error) -> LinkFailure {
    LinkFailure::Answer(dial::explain(error))
}
