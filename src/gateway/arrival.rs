//! What comes in front of the first request of a connection: the PROXY protocol's header, and the TLS handshake.
use std::{io, rc::Rc, time::Instant};

use super::{
    connection::{Client, Expected, Filled},
    http::Response,
    worker::Worker,
};
use crate::{
    protocol::proxy,
    relay::{deadline, socket::Socket, tls::Connection},
    telemetry::counters,
};

/// Takes a connection to the point where requests can be read from it, until `deadline`. `None`: it came to nothing,
/// and is closed.
pub(super) async fn arrive(worker: &Worker, mut client: Client, deadline: Instant) -> Option<Client> {
    let shared = &worker.shared;
    if shared.proxy_protocol && !read_proxy_header(&mut client, deadline).await {
        worker.counters.refused(counters::PROXY_PROTOCOL);
        return None;
    }
    match (&shared.tls, client.secure) {
        (Some(acceptor), true) => match acceptor.connection() {
            Ok(connection) => {
                let shaken = handshake(client, connection, deadline).await;
                if shaken.is_none() {
                    worker.counters.refused(counters::TLS_HANDSHAKE);
                }
                shaken
            }
            Err(error) => {
                tracing::error!(client = %client.peer, "cannot begin TLS: {error}");
                None
            }
        },
        _ => Some(client),
    }
}

/// Whether a usable header came; then the client's address is what it says.
async fn read_proxy_header(client: &mut Client, deadline: Instant) -> bool {
    loop {
        match proxy::parse(&client.input) {
            Ok(Some(header)) => {
                client.input.drain(..header.len);
                let proxy = client.peer;
                client.peer = header.client.unwrap_or(proxy);
                tracing::debug!(%proxy, client = %client.peer, "a connection through a proxy");
                return true;
            }
            Ok(None) => {}
            Err(broken) => {
                tracing::debug!(peer = %client.peer, "connection refused: {broken}");
                return false;
            }
        }
        match client.fill(deadline).await {
            // A drain is told of in the answer to the request.
            Filled::More | Filled::Draining => {}
            Filled::Ended | Filled::Late => {
                tracing::debug!(peer = %client.peer, "connection refused: no whole PROXY protocol header came");
                return false;
            }
        }
    }
}

async fn handshake(mut client: Client, connection: Connection, deadline: Instant) -> Option<Client> {
    while client.input.is_empty() {
        match client.fill(deadline).await {
            Filled::More | Filled::Draining => {}
            Filled::Ended | Filled::Late => return None,
        }
    }
    // A TLS record begins with its type, which is no letter; a request line with one.
    if client.input.first().is_some_and(u8::is_ascii_alphabetic) {
        tracing::debug!(client = %client.peer, "connection refused: HTTP where TLS is expected");
        let answer = Response::error(400, "tls_required", "This port expects TLS: use wss:// or https://");
        client.finish(&answer.to_bytes(false), Expected::End).await;
        return None;
    }
    let peer = client.peer;
    match drive(client, connection, deadline).await {
        Ok(client) => client,
        Err(error) => {
            tracing::debug!(client = %peer, "TLS handshake failed: {}", explain(&error));
            None
        }
    }
}

async fn drive(mut client: Client, connection: Connection, deadline: Instant) -> io::Result<Option<Client>> {
    let received = std::mem::take(&mut client.input);
    let Some(socket) = Rc::into_inner(client.socket) else { return Ok(None) };
    client.socket = Rc::new(socket.with_tls(connection));
    let socket: &Socket = &client.socket;
    // A client that takes nothing can make our own flight wait, so that has its time too.
    let left = || deadline.saturating_duration_since(Instant::now());
    let mut complete = deadline::within(socket, left(), socket.begin_handshake(&received)).await?;
    while !complete {
        match client.readable(deadline).await {
            Filled::Late => return Err(io::ErrorKind::TimedOut.into()),
            Filled::Draining => continue,
            // Whatever it is that came, the receive tells.
            Filled::More | Filled::Ended => {}
        }
        complete = deadline::within(socket, left(), socket.advance_handshake()).await?;
    }
    Ok(Some(client))
}

fn explain(error: &io::Error) -> String {
    match (error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()), error.kind()) {
        (Some(error), _) => error.to_string(),
        (None, io::ErrorKind::UnexpectedEof) => "the client closed the connection".into(),
        (None, io::ErrorKind::TimedOut) => "it was not complete in time".into(),
        (None, _) => error.to_string(),
    }
}
