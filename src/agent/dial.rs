//! Dials a target on the session's own worker thread: egress policy, DNS, TCP, proxy, TLS, opening handshake.
//!
//! The whole dial is one future without a clock of its own besides the pace of connection attempts: whoever asked
//! for it bounds its time and may drop it, which closes what it had open.
use std::{
    borrow::Cow,
    cell::Cell,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures_util::{
    FutureExt,
    stream::{FuturesUnordered, StreamExt},
};
use monoio::{net::TcpStream, time::sleep};

use super::{
    egress::{Egress, Verdict},
    handshake::{self, Accepted, AnswerReader, Asked},
    proxy, tls,
};
use crate::{
    protocol::{
        answer::Failure,
        connect::{ConnectRequest, Opening, Proxy},
        opening,
        target::Host,
    },
    relay::{
        buffers::Buffer,
        socket::{Received, Socket},
    },
    runtime::{resolver::Resolver, sockets},
    telemetry::counters::{Stage, WorkerCounters},
};

/// RFC 8305 section 5: how long one connection attempt has the field for itself.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// What a worker needs to dial targets.
#[derive(Clone, Debug)]
pub struct Dialler {
    pub egress: Arc<Egress>,
    pub resolver: Resolver,
    /// The same for all workers, also when it is replaced.
    pub tls: Arc<ArcSwap<rustls::ClientConfig>>,
    pub tcp_keepalive: Duration,
    /// The operator's own, for sessions that name none.
    pub proxy: Option<Arc<Proxy>>,
}

/// A target that has answered 101.
#[derive(Debug)]
pub struct Dialled {
    pub socket: Rc<Socket>,
    /// What came right behind the answer.
    pub received: Vec<u8>,
    pub accepted: Accepted,
}

/// What a dial connects to first: the target, or the proxy in front of it.
#[derive(Debug)]
pub struct Way {
    /// All that may be dialled.
    addresses: Vec<IpAddr>,
    port: u16,
}

/// A connection that ends at the target.
#[derive(Debug)]
pub struct Line {
    socket: Socket,
    /// What has come over it so far, behind a proxy's yes.
    received: Vec<u8>,
}

/// How long the parts of a dial took: those that came to a good end, so all of them in one that has succeeded. The
/// name is not looked up where the target is an address, and there is no TLS towards `ws://`. With a proxy, name and TCP
/// are the proxy's.
#[derive(Debug, Default)]
pub struct Timings {
    pub dns: Cell<Option<Duration>>,
    pub tcp: Cell<Option<Duration>>,
    /// From the connection to the proxy to its yes.
    pub proxy: Cell<Option<Duration>>,
    pub tls: Cell<Option<Duration>>,
    pub upgrade: Cell<Option<Duration>>,
    /// There is a proxy that has not said yes.
    pub awaits_proxy: Cell<bool>,
}

impl Timings {
    /// Into the histograms of the worker that dialled, or asked for it.
    pub fn count_in(&self, counters: &WorkerCounters) {
        let stages = [
            (Stage::Dns, &self.dns),
            (Stage::Tcp, &self.tcp),
            (Stage::Proxy, &self.proxy),
            (Stage::Tls, &self.tls),
            (Stage::Upgrade, &self.upgrade),
        ];
        for (stage, time) in stages {
            if let Some(time) = time.get() {
                counters.took(stage, time);
            }
        }
    }

    /// What it means that the dial's time is over.
    #[must_use]
    pub fn late(&self) -> Failure {
        if self.awaits_proxy.get() { Failure::ProxyFailed("no answer in time".into()) } else { Failure::TargetTimeout }
    }
}

impl Dialler {
    /// Connects to the target of `connect` and performs the opening handshake. `timings` is filled in on the way, so
    /// it tells of a dial that is given up, too.
    ///
    /// # Errors
    /// Why there is no session with that target.
    pub async fn dial(&self, connect: &ConnectRequest, timings: &Timings) -> Result<Dialled, Failure> {
        let way = self.way(connect, timings).await?;
        let line = self.connect(connect, way, timings).await?;
        self.open(connect, line, timings).await
    }

    /// The proxy in front of the target, if there is one.
    pub fn proxy_of<'a>(&'a self, connect: &'a ConnectRequest) -> Option<&'a Proxy> {
        connect.proxy.as_ref().or(self.proxy.as_deref())
    }

    /// The first part of a dial, in which no packet goes to the target or its proxy.
    ///
    /// # Errors
    /// There is no address, or the egress policy forbids the target, or the proxy that the client named.
    pub async fn way(&self, connect: &ConnectRequest, timings: &Timings) -> Result<Way, Failure> {
        let target = &connect.target;
        let Some(proxy) = self.proxy_of(connect) else {
            let addresses = self.allowed(&target.host, timings, Failure::TargetUnreachable).await?;
            return Ok(Way { addresses, port: target.port });
        };
        // What the proxy does with it is out of our sight.
        let may_reach = match &target.host {
            Host::Ip(address) => self.egress.vet(false, *address),
            Host::Name(name) => self.egress.check_name_behind_proxy(name).is_ok(),
        };
        if !may_reach {
            return Err(Failure::TargetNotAllowed);
        }
        timings.awaits_proxy.set(true);
        let addresses = match (&proxy.host, &connect.proxy) {
            (host, Some(_)) => self.allowed(host, timings, Failure::ProxyFailed).await?,
            // The operator's own is wherever the operator says.
            (Host::Ip(address), None) => vec![*address],
            (Host::Name(name), None) => self.resolve(name, timings).await.map_err(Failure::ProxyFailed)?,
        };
        Ok(Way { addresses, port: proxy.port })
    }

    /// The second part: a connection to the target, through its proxy if there is one.
    ///
    /// # Errors
    /// The target cannot be reached, or the proxy has not said yes.
    pub async fn connect(&self, connect: &ConnectRequest, way: Way, timings: &Timings) -> Result<Line, Failure> {
        let tcp = connect_first(in_order(way.addresses), way.port, self.tcp_keepalive);
        let tcp = timed(&timings.tcp, tcp).await;
        let Some(proxy) = self.proxy_of(connect) else {
            return Ok(Line { socket: Socket::plain(tcp.map_err(unreachable)?), received: Vec::new() });
        };
        let socket = Socket::plain(tcp.map_err(|error| Failure::ProxyFailed(explain(&error)))?);
        let received = timed(&timings.proxy, proxy::establish(&socket, proxy, &connect.target)).await;
        let received = received.map_err(Failure::ProxyFailed)?;
        timings.awaits_proxy.set(false);
        Ok(Line { socket, received })
    }

    /// The last part: TLS, and the opening handshake.
    ///
    /// # Errors
    /// The target fails in either, or refuses.
    pub async fn open(&self, connect: &ConnectRequest, line: Line, timings: &Timings) -> Result<Dialled, Failure> {
        let target = &connect.target;
        if !target.tls {
            return timed(&timings.upgrade, open(Rc::new(line.socket), line.received, connect)).await;
        }
        let connection = tls::connection(&self.tls.load_full(), &target.server_name())
            .map_err(|error| Failure::TargetUnreachable(format!("TLS: {error}")))?;
        let socket = timed(&timings.tls, line.socket.secure(connection, &line.received))
            .await
            .map_err(|error| Failure::TargetUnreachable(tls::explain(&error)))?;
        timed(&timings.upgrade, open(Rc::new(socket), Vec::new(), connect)).await
    }

    /// All addresses of `host` that the egress policy lets, in the order in which they came. `failed`: where there are
    /// none.
    async fn allowed(
        &self,
        host: &Host,
        timings: &Timings,
        failed: fn(String) -> Failure,
    ) -> Result<Vec<IpAddr>, Failure> {
        let (host_allowed, addresses) = match host {
            Host::Ip(address) => (false, vec![*address]),
            Host::Name(name) => match self.egress.check_name(name) {
                Verdict::Refused => return Err(Failure::TargetNotAllowed),
                Verdict::Resolve { host_allowed } => (host_allowed, self.resolve(name, timings).await.map_err(failed)?),
            },
        };
        self.egress.filter(host_allowed, addresses).map_err(|_| Failure::TargetNotAllowed)
    }

    async fn resolve(&self, name: &str, timings: &Timings) -> Result<Vec<IpAddr>, String> {
        let answer = timed(&timings.dns, self.resolver.lookup(name)).await;
        let answer = answer.map_err(|error| format!("DNS: {error}"))?;
        let v6 = answer.v6.into_iter().map(IpAddr::V6);
        Ok(v6.chain(answer.v4.into_iter().map(IpAddr::V4)).collect())
    }
}

/// Notes how long a part took, if it came to a good end.
async fn timed<T, E>(time: &Cell<Option<Duration>>, part: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let began = Instant::now();
    let result = part.await;
    if result.is_ok() {
        time.set(Some(began.elapsed()));
    }
    result
}

/// RFC 8305 section 4: the families take turns, IPv6 first.
pub(super) fn in_order(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (v6, v4): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let len = v6.len().max(v4.len());
    (0..len).flat_map(|index| [v6.get(index), v4.get(index)]).flatten().copied().collect()
}

/// RFC 8305 section 5: attempts begin one after the other, each when the one before has failed or has had its time;
/// the first connection made is taken, and the other attempts are given up.
pub(super) async fn connect_first(addresses: Vec<IpAddr>, port: u16, keepalive: Duration) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter().map(|address| SocketAddr::new(address, port));
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        match waiting.next() {
            Some(address) => attempts.push(TcpStream::connect_addr(address)),
            None if attempts.is_empty() => return Err(failure),
            None => {}
        }
        let mut pace = std::pin::pin!(sleep(ATTEMPT_DELAY).fuse());
        loop {
            let last = waiting.len() == 0;
            let attempt = futures_util::select_biased! {
                attempt = attempts.next() => attempt,
                () = pace => if last { continue } else { break },
            };
            match attempt {
                Some(Ok(tcp)) => {
                    sockets::prepare(&tcp, keepalive);
                    return Ok(tcp);
                }
                Some(Err(error)) => {
                    failure = error;
                    if !last {
                        break;
                    }
                }
                None => return Err(failure),
            }
        }
    }
}

/// The opening handshake over a connection that stands. `bytes`: what the target has sent already.
async fn open(socket: Rc<Socket>, mut bytes: Vec<u8>, connect: &ConnectRequest) -> Result<Dialled, Failure> {
    let key;
    let (request, asked) = match &connect.opening {
        Opening::Ours(ours) => {
            let mut nonce = [0; 16];
            getrandom::fill(&mut nonce)
                .map_err(|_| Failure::TargetUnreachable("no random numbers to be had".into()))?;
            key = opening::key_from(nonce);
            let asked = Asked::Ours { key: &key, subprotocols: &ours.subprotocols };
            (Cow::Owned(handshake::request(&connect.target, ours, &key)), asked)
        }
        Opening::Passed(head) => (Cow::Borrowed(&head[..]), Asked::Passed),
    };
    socket.send_bytes(&request).await.map_err(unreachable)?;
    let mut reader = AnswerReader::default();
    loop {
        if !bytes.is_empty()
            && let Some(accepted) = reader.next(&mut bytes, asked)?
        {
            return Ok(Dialled { socket, received: bytes, accepted });
        }
        socket.readable().await.map_err(unreachable)?;
        let (received, buffer) = socket.recv(Buffer::take(), 0).await;
        match received.map_err(unreachable)? {
            Received::Data(len) => bytes.extend_from_slice(&buffer[..len]),
            Received::Nothing => {}
            Received::End => {
                return Err(Failure::TargetUnreachable("it closed the connection before its answer".into()));
            }
        }
    }
}

fn unreachable(error: io::Error) -> Failure {
    Failure::TargetUnreachable(explain(&error))
}

/// What a failed connection means, in words.
pub fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "it reset the connection".into(),
        io::ErrorKind::HostUnreachable => "host unreachable".into(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".into(),
        io::ErrorKind::TimedOut => "connection timed out".into(),
        _ => match error.get_ref() {
            Some(inner) => inner.to_string(),
            // The bare text of the system's error, without Rust's "(os error 113)".
            None => error.to_string().split(" (os error").next().unwrap_or_default().to_lowercase(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_families_take_turns() {
        let parse = |text: &str| text.split(' ').map(|address| address.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(in_order(parse("1.1.1.1 1.1.1.2 1.1.1.3 ::1 ::2")), parse("::1 1.1.1.1 ::2 1.1.1.2 1.1.1.3"));
    }

    #[test]
    fn errors_in_words() {
        assert_eq!(explain(&io::Error::from_raw_os_error(libc::ECONNREFUSED)), "connection refused");
        assert_eq!(explain(&io::Error::from_raw_os_error(libc::EADDRNOTAVAIL)), "cannot assign requested address");
        assert_eq!(explain(&io::Error::other("why")), "why");
    }
}
