//! What an agent says when it comes: the headers of its two requests, and the answers.
//!
//! The token is looked at first. A stranger learns no more than that it is not known.
use std::ops::RangeInclusive;

use super::{Agents, MAX_PROCESSES, tokens::Tokens};
use crate::{
    config::{agents::AgentEntry, names},
    gateway::http::{Request, Response},
    protocol::link::{self, header},
};

/// The longest value that a header of an agent's may have, in bytes.
const MAX_VALUE: usize = 256;

/// An agent that asks for a control link.
#[derive(Clone, Debug)]
pub struct Hello {
    /// What the file says of its token.
    pub entry: AgentEntry,
    pub country: String,
    pub node_id: String,
    pub process: String,
    pub max_sessions: u64,
    pub protocol: u16,
}

/// A request of an agent's that may go on.
#[derive(Debug)]
pub enum Admitted {
    Control(Hello),
    /// A data channel of the agent with this number.
    Data(u64),
}

/// Judges a request to `/agent/control` or `/agent/data`.
///
/// # Errors
/// The answer for an agent that may not go on.
pub fn judge(agents: &Agents, tokens: &Tokens, request: &Request, draining: bool) -> Result<Admitted, Response> {
    let token = request.bearer().filter(|token| !token.is_empty());
    let Some(entry) = token.and_then(|token| tokens.authenticate(token)) else {
        let answer = Response::error(401, "invalid_token", "Invalid or missing agent token");
        return Err(answer.with("WWW-Authenticate", "Bearer"));
    };
    if !request.upgrades_to(link::UPGRADE_TOKEN) {
        let answer = Response::error(426, "upgrade_required", "Agents link here with an upgrade to ringway");
        return Err(answer.with("Upgrade", link::UPGRADE_TOKEN));
    }
    if request.has_body {
        return Err(Response::error(400, "invalid_request", "Bad request: an upgrade with a body"));
    }
    let value = |name| text(request, name);
    let process = value(header::PROCESS)?;
    if request.path.ends_with(link::DATA) {
        if value(header::INSTANCE)? != agents.instance {
            return Err(Response::error(421, "other_instance", "This data channel is for another gateway"));
        }
        let agent = agents.by_process(process).filter(|agent| agent.slug == entry.slug);
        let agent = agent.ok_or_else(|| Response::error(421, "not_linked", "No control link of this agent is here"))?;
        if agent.has_too_many_channels(agents.channels_wanted()) {
            let answer = Response::error(503, "too_many_channels", "More idle data channels than anybody asked for");
            return Err(answer.with("Retry-After", "1"));
        }
        return Ok(Admitted::Data(agent.id));
    }
    let protocol = protocol(request)?;
    let slug = value(header::SLUG)?;
    if !slug.eq_ignore_ascii_case(&entry.slug) {
        let message = format!("This token is for the agent {}, not for {slug}", entry.slug);
        return Err(Response::error(403, "other_slug", &message));
    }
    let country = &names::country(value(header::COUNTRY)?).map_err(|_| bad(header::COUNTRY))?;
    if let Some(expected) = entry.country.as_deref().filter(|expected| !expected.eq_ignore_ascii_case(country)) {
        let message = format!("The agent {slug} is in {expected} here, not in {country}");
        return Err(Response::error(403, "other_country", &message));
    }
    let max_sessions = value(header::MAX_SESSIONS)?.parse();
    let max_sessions = max_sessions.map_err(|_| bad(header::MAX_SESSIONS))?;
    if agents.by_process(process).is_none() && agents.processes(slug) >= MAX_PROCESSES {
        let message = format!("{MAX_PROCESSES} agents of the slug {slug} are linked already");
        return Err(Response::error(503, "too_many_agents", &message).with("Retry-After", "1"));
    }
    let has_sessions = agents.by_process(process).is_some_and(|agent| agent.sessions() > 0);
    if draining && !has_sessions {
        let answer = Response::error(503, "draining", "This gateway is shutting down");
        return Err(answer.with("Retry-After", "1"));
    }
    Ok(Admitted::Control(Hello {
        entry: entry.clone(),
        country: country.clone(),
        node_id: value(header::NODE_ID)?.to_owned(),
        process: process.to_owned(),
        max_sessions,
        protocol,
    }))
}

fn protocol(request: &Request) -> Result<u16, Response> {
    let number = |name| text(request, name)?.parse::<u16>().map_err(|_| bad(name));
    let newest = number(header::PROTOCOL)?;
    let theirs = if request.has(header::OLDEST_PROTOCOL) { number(header::OLDEST_PROTOCOL)? } else { newest }..=newest;
    link::in_common(theirs.clone()).ok_or_else(|| {
        let older = if newest < *link::PROTOCOLS.start() { "agent" } else { "gateway" };
        let message = format!(
            "The agent speaks link protocol {}, this gateway {}: update the {older}",
            range(&theirs),
            range(&link::PROTOCOLS)
        );
        Response::error(426, "unsupported_protocol", &message).with("Upgrade", link::UPGRADE_TOKEN)
    })
}

fn range(numbers: &RangeInclusive<u16>) -> String {
    let (oldest, newest) = (numbers.start(), numbers.end());
    if oldest == newest { newest.to_string() } else { format!("{oldest} to {newest}") }
}

fn text<'a>(request: &'a Request, name: &'static str) -> Result<&'a str, Response> {
    let legal = |value: &&str| (1..=MAX_VALUE).contains(&value.len()) && !value.contains(char::is_control);
    request.header(name).map(str::trim).filter(legal).ok_or_else(|| bad(name))
}

fn bad(name: &str) -> Response {
    Response::error(400, "invalid_request", &format!("Bad request: the {name} header is missing or not usable"))
}
