//! Host names to addresses, on one thread of its own.
//!
//! Owns the thread `resolver`: a small tokio runtime that hickory's DNS client runs on, so that a slow name server
//! holds up no worker and hanging names no other name. Workers ask through a [`Resolver`] and await the answer on their
//! own runtime. The system's files are honoured as getaddrinfo honours them, and re-read when they change; getaddrinfo
//! itself is never called, nor is anything read from disk on a worker's thread.
//!
//! Must never judge an address: what comes back goes through `agent::egress` before it is dialled.

mod system;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::sync::Arc;
use std::{io, thread};

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use hickory_resolver::TokioResolver;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

pub(crate) use system::Settings;
use system::{Dns, System, Watcher};

/// A handle to the resolver's thread, which ends when the last handle is gone.
#[derive(Clone, Debug)]
pub struct Resolver {
    requests: mpsc::UnboundedSender<Request>,
    /// One for each lookup that may still start: the channel cannot grow beyond it.
    permits: Arc<Semaphore>,
}

/// The addresses of a host, each family in the order of the answer, at least one in all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    pub v6: Vec<Ipv6Addr>,
    pub v4: Vec<Ipv4Addr>,
}

/// Why there is no address, in words that may go to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("the name is not valid")]
    InvalidName,
    #[error("no such host")]
    NoSuchHost,
    #[error("the host has no address")]
    NoAddress,
    #[error("the name server did not answer")]
    NoAnswer,
    #[error("the name server cannot be reached")]
    Unreachable,
    #[error("the name server failed")]
    ServerFailed,
    #[error("no name server is configured")]
    NoNameServer,
    #[error("too many names are being looked up")]
    Overloaded,
    #[error("the resolver has stopped")]
    Stopped,
}

impl Resolver {
    /// Starts the thread, with the system's configuration. A file that is missing or broken is logged and no error.
    pub fn start() -> io::Result<Self> {
        Self::with_config(Settings::default())
    }

    pub(crate) fn with_config(settings: Settings) -> io::Result<Self> {
        let permits = Arc::new(Semaphore::new(settings.max_lookups));
        let (requests, inbox) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        thread::Builder::new()
            .name("resolver".to_owned())
            .spawn(move || runtime.block_on(serve(inbox, Watcher::new(settings))))?;
        Ok(Self { requests, permits })
    }

    /// Looks `name` up; an address in its usual form is its own answer. Runs on any runtime. It has no deadline beyond
    /// those of resolv.conf: drop it, and the queries behind it end.
    pub async fn lookup(&self, name: &str) -> Result<Answer, ResolveError> {
        if let Ok(ip) = name.parse::<IpAddr>() {
            return Ok(Answer::from(ip));
        }
        let name = query_name(name)?;
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| ResolveError::Overloaded)?;
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request { name, reply, _permit: permit }).map_err(|_| ResolveError::Stopped)?;
        answer.await.unwrap_or(Err(ResolveError::Stopped))
    }
}

impl From<IpAddr> for Answer {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self { v6: vec![], v4: vec![ip] },
            IpAddr::V6(ip) => Self { v6: vec![ip], v4: vec![] },
        }
    }
}

struct Request {
    name: Name,
    reply: oneshot::Sender<Result<Answer, ResolveError>>,
    _permit: OwnedSemaphorePermit,
}

/// The resolver's thread: each request is a task, so none waits for another.
async fn serve(mut inbox: mpsc::UnboundedReceiver<Request>, mut watcher: Watcher) {
    while let Some(request) = inbox.recv().await {
        tokio::spawn(answer(watcher.current(), request));
    }
}

async fn answer(system: Arc<System>, mut request: Request) {
    let outcome = {
        let lookup = pin!(resolve(&system, &request.name));
        match select(lookup, request.reply.cancellation()).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => return, // the caller has dropped its future
        }
    };
    // The caller may be gone by now; then nobody misses the answer.
    let _ = request.reply.send(outcome);
}

/// The hosts file, then `localhost`, then DNS.
async fn resolve(system: &System, name: &Name) -> Result<Answer, ResolveError> {
    if let Some(answer) = system.in_hosts_file(name) {
        return Ok(answer);
    }
    // RFC 6761, 6.3: these are loopback, and no name server is asked.
    if name.iter().next_back().is_some_and(|label| label.eq_ignore_ascii_case(b"localhost")) {
        return Ok(Answer { v6: vec![Ipv6Addr::LOCALHOST], v4: vec![Ipv4Addr::LOCALHOST] });
    }
    let dns = system.dns.as_ref().ok_or(ResolveError::NoNameServer)?;
    let mut error = ResolveError::NoSuchHost;
    for candidate in dns.candidates(name) {
        match look_up_both(dns, &candidate).await {
            Ok(answer) => return Ok(answer),
            // Only a definite no leads on to the next domain of the search list: a name server's failure must not
            // turn one name into another.
            Err(ResolveError::NoSuchHost) => {}
            Err(ResolveError::NoAddress) => error = ResolveError::NoAddress,
            Err(failure) => return Err(failure),
        }
    }
    Err(error)
}

/// Asks for both families at once, AAAA first (RFC 8305, 3).
///
/// The RFC would start to dial as soon as AAAA is there, and give AAAA the Resolution Delay when A is. Here the dialler
/// takes one list, so A gets the delay too: 50 ms at most, for an IPv4 address to fall back to.
async fn look_up_both(dns: &Dns, name: &Name) -> Result<Answer, ResolveError> {
    let v6 = pin!(look_up(&dns.client, name, RecordType::AAAA, |ip| match ip {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    }));
    let v4 = pin!(look_up(&dns.client, name, RecordType::A, |ip| match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }));
    let (v6, v4) = match select(v6, v4).await {
        Either::Left((v6, v4)) => {
            let v4 = dns.other_family(v6.is_ok(), v4).await;
            (v6, v4)
        }
        Either::Right((v4, v6)) => {
            let v6 = dns.other_family(v4.is_ok(), v6).await;
            (v6, v4)
        }
    };
    match (v6, v4) {
        (Err(v6), Err(v4)) => Err(most_telling(v6, v4)),
        (v6, v4) => Ok(Answer { v6: v6.unwrap_or_default(), v4: v4.unwrap_or_default() }),
    }
}

/// The addresses of one family, never none.
async fn look_up<T>(
    client: &TokioResolver,
    name: &Name,
    family: RecordType,
    pick: fn(IpAddr) -> Option<T>,
) -> Result<Vec<T>, ResolveError> {
    let lookup = client.lookup(name.clone(), family).await.map_err(|error| {
        tracing::debug!(%name, %family, %error, "lookup failed");
        in_words(&error)
    })?;
    let found: Vec<T> = lookup.answers().iter().filter_map(|record| record.data.ip_addr().and_then(pick)).collect();
    if found.is_empty() { Err(ResolveError::NoAddress) } else { Ok(found) }
}

fn in_words(error: &NetError) -> ResolveError {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(answer)) => match answer.response_code {
            ResponseCode::NXDomain => ResolveError::NoSuchHost,
            ResponseCode::NoError => ResolveError::NoAddress,
            _ => ResolveError::ServerFailed,
        },
        NetError::Timeout => ResolveError::NoAnswer,
        NetError::Io(_) | NetError::NoConnections | NetError::Busy => ResolveError::Unreachable,
        _ => ResolveError::ServerFailed,
    }
}

/// Of two failures, the one that explains more. "No such host" is about the name, whatever the family; "no address" is
/// certain only if neither family says otherwise.
fn most_telling(a: ResolveError, b: ResolveError) -> ResolveError {
    match (a, b) {
        (ResolveError::NoSuchHost, _) | (_, ResolveError::NoSuchHost) => ResolveError::NoSuchHost,
        (ResolveError::NoAddress, other) | (other, _) => other,
    }
}

/// Checks a name and makes it one for DNS, lower-case. Letters, digits, `-` and `_` only, as glibc has it; what ends in
/// a number is an address written in some odd way, or nothing at all (RFC 3696, 2), and never sent.
fn query_name(name: &str) -> Result<Name, ResolveError> {
    let name = name.to_ascii_lowercase();
    let labels = name.strip_suffix('.').unwrap_or(&name);
    let legal = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let is_number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    // RFC 1035, 2.3.4: 255 octets with the lengths of the labels and the root.
    if labels.len() > 253 || !labels.split('.').all(legal) || labels.rsplit('.').next().is_some_and(is_number) {
        return Err(ResolveError::InvalidName);
    }
    Name::from_ascii(&name).map_err(|_| ResolveError::InvalidName)
}
