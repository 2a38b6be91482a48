//! The connect-message form: the gateway accepts the WebSocket itself, and the client says in a message whom it wants to
//! reach.
use std::{rc::Rc, time::Instant};

use super::{Admitted, End, admit, establish, key};
use crate::{
    gateway::{
        connection::{Client, Expected, Filled},
        http,
        record::{Form, Record},
        worker::{Counted, Worker},
    },
    protocol::{
        answer::Failure,
        close::Close,
        connect::{self, ConnectError},
        frame::{self, Opcode},
        session::Side,
        setup::{Event, Setup},
    },
    telemetry::counters::Stage,
};

pub(in crate::gateway) async fn set_up(
    worker: &Rc<Worker>,
    mut client: Client,
    accept: &str,
    api_key: Option<String>,
    pending: Counted,
) {
    let _awaited = worker.tasks.awaited();
    if client.send(&http::switching_protocols(accept)).await.is_err() {
        return;
    }
    let upgraded = Instant::now();
    let message = match connect_message(worker, &mut client).await {
        Ok(message) => Ok(message),
        Err(end @ End::Failure(_)) => Err(end),
        Err(end) => return say(end, worker, client, None).await,
    };
    let record = Record::new(worker, client.peer, Form::Message);
    worker.counters.took(Stage::Message, upgraded.elapsed());
    let admitted = match message.and_then(|mut message| judge(worker, &record, &mut message, api_key.as_deref())) {
        Ok(admitted) => admitted,
        Err(end) => return say(end, worker, client, Some(&record)).await,
    };
    drop(pending);
    if let Err((client, end)) = establish(worker, client, &record, admitted).await {
        say(end, worker, client, Some(&record)).await;
    }
}

/// Waits for the connect message, as a strict WebSocket server.
async fn connect_message(worker: &Worker, client: &mut Client) -> Result<Vec<u8>, End> {
    let deadline = Instant::now() + worker.shared.limits.connect_timeout;
    let mut setup = Setup::default();
    let mut pongs = Vec::new();
    loop {
        let event = setup.next(&mut client.input);
        if let Event::Ping(payload) = &event {
            // Sent together when the input is used up: a client can pack thousands of pings into one segment.
            frame::write(&mut pongs, Opcode::PONG, None, payload);
            continue;
        }
        if !pongs.is_empty() {
            client.send(&std::mem::take(&mut pongs)).await.map_err(|_| End::Gone)?;
        }
        match event {
            Event::Message(message) => return Ok(message),
            Event::Close(body) => return Err(End::Answer(body.answer())),
            Event::Binary => return Err(unusable(&ConnectError::Binary)),
            Event::TooLarge => return Err(unusable(&ConnectError::TooLarge)),
            Event::Broken(why) => {
                tracing::debug!(client = %client.peer, "a client broke the WebSocket protocol: {why}");
                return Err(End::Broken);
            }
            Event::Ping(_) | Event::Incomplete => {}
        }
        match client.fill(deadline).await {
            Filled::More => {}
            Filled::Ended => return Err(End::Gone),
            Filled::Late => return Err(End::Close(Close::CONNECT_TIMEOUT)),
            Filled::Draining => return Err(End::Close(Close::RESTART_CLIENT)),
        }
    }
}

/// The checks of a connect message, in their order: JSON, key, fields, and what is common to both forms.
fn judge(worker: &Worker, record: &Record, message: &mut [u8], header_key: Option<&str>) -> Result<Admitted, End> {
    let message = connect::parse(message).map_err(|error| unusable(&error))?;
    let key = key(worker, record, message.key(header_key))?;
    let request = message.validate().map_err(|error| unusable(&error))?;
    admit(worker, record, &key, request)
}

fn unusable(error: &ConnectError) -> End {
    End::Failure(Failure::InvalidConnectMessage(error.to_string()))
}

/// Says to the client what there is to say, and closes. `record`: where there was a connect message.
async fn say(end: End, worker: &Worker, mut client: Client, record: Option<&Record>) {
    let code = match &end {
        End::Gone => None,
        End::Answer(payload) => payload.first_chunk().map(|code| u16::from_be_bytes(*code)),
        End::Close(close) => Some(close.code),
        End::Broken => Some(Close::PROTOCOL_ERROR.code),
        End::Failure(failure) => Some(failure.close_code()),
    };
    end.note(worker, record, code);
    let (bytes, expected) = match end {
        End::Gone => return,
        End::Answer(payload) => {
            let mut bytes = Vec::new();
            frame::write(&mut bytes, Opcode::CLOSE, None, &payload);
            (bytes, Expected::End)
        }
        End::Close(close) => (close.to_bytes(None), Expected::Close),
        End::Broken => (Close::PROTOCOL_ERROR.to_bytes(None), Expected::Garbage),
        End::Failure(failure) => (failure.to_frames(), Expected::Close),
    };
    if client.send(&bytes).await.is_ok() {
        worker.counters.closed(Side::Client, code);
        client.farewell(expected).await;
    }
}
