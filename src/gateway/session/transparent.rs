//! The transparent form, `GET /ws?url=…`: the target is dialled first, and its answer is the client's.
use std::{rc::Rc, sync::atomic::Ordering};

use super::{Admitted, End, admit, establish, key};
use crate::{
    gateway::{
        connection::{Client, Expected},
        http::{Request, Response},
        record::{Form, Record},
        worker::{Counted, Worker},
    },
    protocol::{
        answer::Failure,
        close::Close,
        connect::Query,
        transparent::{KeyCameIn, request_head},
    },
};

pub(in crate::gateway) async fn set_up(worker: &Rc<Worker>, client: Client, request: Box<Request>, pending: Counted) {
    let _awaited = worker.tasks.awaited();
    let record = Record::new(worker, client.peer, Form::Transparent);
    let admitted = match begin(worker).and_then(|()| judge(worker, &record, &request)) {
        Ok(admitted) => admitted,
        Err(end) => return say(end, worker, client, &record).await,
    };
    drop((pending, request));
    if let Err((client, end)) = establish(worker, client, &record, admitted).await {
        say(end, worker, client, &record).await;
    }
}

/// Whether the gateway takes sessions at all just now.
fn begin(worker: &Worker) -> Result<(), End> {
    if worker.draining() {
        return Err(End::Close(Close::RESTART_CLIENT));
    }
    if worker.shared.sessions.load(Ordering::Relaxed) >= worker.shared.limits.max_sessions {
        return Err(End::Failure(Failure::Overloaded));
    }
    Ok(())
}

/// The checks of a request, in their order: key, fields, and what is common to both forms.
fn judge(worker: &Worker, record: &Record, request: &Request) -> Result<Admitted, End> {
    let invalid = |what: String| End::Failure(Failure::InvalidRequest(what));
    let query = Query::read(request.query.as_deref().unwrap_or_default());
    let query = query.ok_or_else(|| invalid("url: is required".into()))?;
    let (secret, came_in) = secret(request, &query);
    let secret = secret.as_deref().filter(|secret| !secret.is_empty());
    let key = key(worker, record, secret)?;
    let asked = query.validate(|target| request_head(target, request.headers(), came_in, secret.unwrap_or_default()));
    admit(worker, record, &key, asked.map_err(|error| invalid(error.to_string()))?)
}

/// The API key, and where it was found. What is there but cannot be read is no key, and keeps the others from being
/// looked at.
fn secret(request: &Request, query: &Query<'_>) -> (Option<String>, KeyCameIn) {
    if request.has("x-api-key") {
        return (request.header("x-api-key").map(str::to_owned), KeyCameIn::Header);
    }
    match query.key() {
        Some(key) => (Some(key), KeyCameIn::Query),
        None => (request.bearer().map(str::to_owned), KeyCameIn::Bearer),
    }
}

/// Answers the request with what went wrong, and closes.
async fn say(end: End, worker: &Worker, client: Client, record: &Record) {
    end.note(worker, Some(record), None);
    let answer = match &end {
        End::Gone => return,
        End::Answer(_) | End::Broken => {
            Response::error(400, "invalid_request", "Bad request: a Close before the answer to the opening handshake")
        }
        End::Close(_) => {
            let who = if worker.draining() { "gateway" } else { "agent" };
            Response::error(503, "draining", &format!("This {who} is shutting down")).with("Retry-After", "1")
        }
        End::Failure(failure) => Response::from(failure),
    };
    // Frames that the client has sent without waiting are read and dropped, so that the answer is not lost in a reset.
    client.finish(&answer.to_bytes(false), Expected::End).await;
}
