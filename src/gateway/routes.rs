//! What the paths of the public listener mean.
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Instant, SystemTime},
};

use serde::Serialize;

use super::{
    Shared,
    agents::{Admitted, Known},
    http::{Request, Response},
    keys::Key,
    playground, schema,
};
use crate::protocol::connect::Query;

/// What a request leads to.
#[derive(Debug)]
pub(super) enum Route {
    Answer(Response),
    /// An agent's control link or data channel begins.
    Agent(Admitted),
    /// The client protocol begins, once this Sec-WebSocket-Accept has been sent.
    WebSocket {
        accept: String,
        api_key: Option<String>,
    },
    /// The transparent form: the request is for the target that its query names.
    Transparent,
}

#[derive(Serialize)]
struct Docs<'a> {
    r#type: &'static str,
    status: u16,
    node_id: &'a str,
    message: String,
}

/// The answer to `GET /network/agents`.
#[derive(Serialize)]
struct Agents {
    agents: Vec<Agent>,
}

#[derive(Serialize)]
struct Agent {
    slug: String,
    country: Option<String>,
    up: bool,
}

const PATHS: [&str; 7] = ["/ws", "/ws/", "/ws/docs", "/ws/schema", "/healthz", "/usage", "/network/agents"];
/// There only where remote agents are taken.
const AGENT_PATHS: [&str; 2] = ["/agent/control", "/agent/data"];

/// `secure`: the request came through TLS.
pub(super) fn route(shared: &Shared, request: &Request, secure: bool) -> Route {
    let for_agents = shared.agents.takes_remote() && AGENT_PATHS.contains(&request.path.as_str());
    let known = for_agents || PATHS.contains(&request.path.as_str());
    if known && request.method != "GET" {
        let answer = Response::error(405, "method_not_allowed", "Only GET is allowed here").with("Allow", "GET");
        return Route::Answer(answer);
    }
    match request.path.as_str() {
        "/ws" | "/ws/" => websocket(shared, request),
        "/ws/docs" if playground::is_wanted(request) => Route::Answer(playground::page().with("Vary", "Accept")),
        "/ws/docs" => Route::Answer(docs(shared, request, secure).with("Vary", "Accept")),
        "/ws/schema" => Route::Answer(Response::json(200, schema::SCHEMA)),
        "/healthz" => Route::Answer(Response::json(200, r#"{"ok":true}"#)),
        "/usage" => Route::Answer(with_key(shared, request, |key| {
            serde_json::to_string(&shared.keys.usage(key, Instant::now()))
        })),
        "/network/agents" => Route::Answer(with_key(shared, request, |_| serde_json::to_string(&agents(shared)))),
        _ if for_agents => agent_link(shared, request),
        _ => Route::Answer(Response::error(404, "not_found", "There is nothing here; see /ws/docs")),
    }
}

fn websocket(shared: &Shared, request: &Request) -> Route {
    if !request.wants_websocket() {
        let message = "This is a WebSocket endpoint; see /ws/docs";
        return Route::Answer(Response::error(426, "upgrade_required", message).with("Upgrade", "websocket"));
    }
    if request.has_body {
        return Route::Answer(Response::error(400, "invalid_request", "Bad request: an opening handshake with a body"));
    }
    // RFC 6455 section 4.4.
    if !request.is_version_13() {
        let answer = Response::error(426, "unsupported_version", "Only WebSocket version 13 is spoken here");
        return Route::Answer(answer.with("Upgrade", "websocket").with("Sec-WebSocket-Version", "13"));
    }
    let route = match Query::read(request.query.as_deref().unwrap_or_default()) {
        // What its key is worth is for the target to say, as all else in that handshake.
        Some(_) => request.websocket_key().map(|_| Route::Transparent),
        None => request.websocket_accept().map(|accept| {
            let api_key = request.header("x-api-key").map(str::to_owned);
            Route::WebSocket { accept, api_key }
        }),
    };
    let route = match route {
        Ok(route) => route,
        Err(bad) => return Route::Answer(bad.into()),
    };
    // In the transparent form these are answers to a session's request like all others, and leave their line in the log.
    if matches!(route, Route::Transparent) {
        return route;
    }
    if shared.draining.load(Ordering::Relaxed) {
        let answer = Response::error(503, "draining", "This gateway is shutting down");
        return Route::Answer(answer.with("Retry-After", "1"));
    }
    if shared.sessions.load(Ordering::Relaxed) >= shared.limits.max_sessions {
        let answer = Response::error(503, "overloaded", "This gateway has as many sessions as it takes");
        return Route::Answer(answer.with("Retry-After", "1"));
    }
    route
}

/// An answer for whoever shows a key: in `X-API-Key`, else as a bearer token (RFC 6750 section 2.1).
fn with_key(shared: &Shared, request: &Request, answer: impl FnOnce(&Key) -> serde_json::Result<String>) -> Response {
    let secret = request.header("x-api-key").or_else(|| request.bearer());
    let key: Result<Arc<Key>, _> = shared.keys.authenticate(secret, SystemTime::now());
    match key {
        Ok(key) => Response::json(200, answer(&key).unwrap_or_default()),
        Err(failure) => Response::from(&failure),
    }
}

fn agents(shared: &Shared) -> Agents {
    let known = shared.agents.known().into_iter();
    Agents { agents: known.map(|Known { slug, country, up, .. }| Agent { slug, country, up }).collect() }
}

fn agent_link(shared: &Shared, request: &Request) -> Route {
    match shared.agents.judge(request, shared.draining.load(Ordering::Relaxed)) {
        Ok(admitted) => Route::Agent(admitted),
        Err(answer) => Route::Answer(answer),
    }
}

fn docs(shared: &Shared, request: &Request, secure: bool) -> Response {
    let base = match &shared.public_url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => {
            let host = request.header("host").filter(|host| !host.is_empty()).unwrap_or("<host>");
            format!("{}://{host}", if secure { "wss" } else { "ws" })
        }
    };
    let docs = Docs {
        r#type: "connected",
        status: 101,
        node_id: &shared.node_id,
        message: format!("This is a documentation endpoint. Connect via WebSocket at {base}/ws"),
    };
    Response::json(200, serde_json::to_string(&docs).unwrap_or_default())
}
