//! The set-up of a session over a data channel: the request, and what the agent answers.
use std::{
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use crate::{
    agent::{
        dial::{Dialled, Timings},
        handshake::Accepted,
    },
    protocol::{
        answer::Failure,
        connect::{ConnectRequest, Handshake, Opening, Proxy},
        link::{self, Head, Reply, Request, Took},
    },
    relay::{
        buffers::Buffer,
        deadline,
        socket::{Received, Socket},
    },
};

/// Why a channel led to no session.
#[derive(Debug)]
pub enum Unmet {
    /// Nothing has been begun: another channel or another agent may do it.
    Again(String),
    /// The agent takes no session now, in its own words. It has begun nothing.
    Refused(String),
    /// The dial had begun, so nobody else may try.
    Failed(Failure),
    /// The agent drains, and the dial did not come to its end in time.
    Drained,
}

/// Asks the agent at the other end of `socket` for a session. The whole may be dropped, which closes the channel; the
/// caller bounds its time.
pub async fn exchange(
    socket: Socket,
    session: String,
    request: &ConnectRequest,
    time: Duration,
    timings: &Timings,
) -> Result<Dialled, Unmet> {
    let (ours, head) = match &request.opening {
        Opening::Ours(ours) => (ours.clone(), None),
        Opening::Passed(head) => (Handshake::default(), Some(Head(head.clone()))),
    };
    let Handshake { host, headers, subprotocols } = ours;
    let timeout_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let proxy = request.proxy.as_ref().map(Proxy::to_url);
    let asked = Request { session, url: request.target.to_url(), host, headers, subprotocols, head, proxy, timeout_ms };
    // Of an agent before this one, perhaps.
    timings.awaits_proxy.set(false);
    let socket = Rc::new(socket);
    let asked_at = Instant::now();
    let sent = deadline::within(&socket, link::ACCEPT, socket.send_bytes(&link::encode(&asked))).await;
    sent.map_err(|error| Unmet::Again(error.to_string()))?;
    let mut input = Vec::new();
    let accepted = deadline::until(Instant::now() + link::ACCEPT, next(&socket, &mut input)).await;
    match accepted {
        // One that has passed it over dials the target itself, for the little time that the channel still has.
        Some(Ok(Reply::Accepted { proxy: false })) if request.proxy.is_some() => {
            return Err(Unmet::Again("it knows nothing of proxies".into()));
        }
        Some(Ok(Reply::Accepted { proxy })) => timings.awaits_proxy.set(proxy),
        Some(Ok(Reply::Refused { reason })) => return Err(Unmet::Refused(link::readable(&reason))),
        Some(Ok(_)) => return Err(Unmet::Again("an answer that was not expected".into())),
        Some(Err(error)) => return Err(Unmet::Again(error.to_string())),
        None => return Err(Unmet::Again(format!("no answer within {:?}", link::ACCEPT))),
    }
    let mut begun = false;
    loop {
        let lost = |begun: bool, why: String| {
            if begun { Unmet::Failed(Failure::AgentFailure) } else { Unmet::Again(why) }
        };
        match next(&socket, &mut input).await {
            Ok(Reply::Dialing) => begun = true,
            Ok(Reply::ProxyAccepted) => timings.awaits_proxy.set(false),
            Ok(Reply::Connected { subprotocol, head, took }) => {
                note(&took, asked_at.elapsed(), timings);
                let accepted = judge(&request.opening, subprotocol, head);
                let accepted = accepted.ok_or(Unmet::Failed(Failure::AgentFailure))?;
                return Ok(Dialled { socket, received: input, accepted });
            }
            Ok(Reply::Failed { code, detail, status, took }) => {
                note(&took, asked_at.elapsed(), timings);
                if code == link::DRAINED {
                    return Err(Unmet::Drained);
                }
                return Err(Unmet::Failed(link::failure(&code, &detail, status)));
            }
            Ok(Reply::Refused { reason }) if !begun => return Err(Unmet::Refused(link::readable(&reason))),
            Ok(Reply::Refused { reason }) => return Err(lost(begun, link::readable(&reason))),
            Ok(Reply::Accepted { .. } | Reply::Unknown) => {}
            Err(error) => return Err(lost(begun, error.to_string())),
        }
    }
}

/// `None`: it is no answer to what was asked.
fn judge(asked: &Opening, subprotocol: Option<String>, head: Option<Head>) -> Option<Accepted> {
    match (asked, head) {
        (Opening::Ours(ours), None) => {
            let offered = subprotocol.as_ref().is_none_or(|selected| ours.subprotocols.contains(selected));
            offered.then_some(Accepted::Ours { subprotocol })
        }
        (Opening::Passed(_), Some(Head(head))) => Some(Accepted::Passed(head)),
        _ => None,
    }
}

/// The next message; what is received behind it stays in `input`.
async fn next(socket: &Socket, input: &mut Vec<u8>) -> io::Result<Reply> {
    loop {
        if let Some(reply) = link::decode(input).map_err(io::Error::other)? {
            return Ok(reply);
        }
        socket.readable().await?;
        let (received, buffer) = socket.recv(Buffer::take(), 0).await;
        match received? {
            Received::Data(len) => input.extend_from_slice(&buffer[..len]),
            Received::Nothing => {}
            Received::End => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// `all`: how long all of it took here, than which no part of it can have taken longer.
fn note(took: &Took, all: Duration, timings: &Timings) {
    let time = |us: Option<u64>| us.map(|us| Duration::from_micros(us).min(all));
    timings.dns.set(time(took.dns_us));
    timings.tcp.set(time(took.tcp_us));
    timings.proxy.set(time(took.proxy_us));
    timings.tls.set(time(took.tls_us));
    timings.upgrade.set(time(took.upgrade_us));
}
