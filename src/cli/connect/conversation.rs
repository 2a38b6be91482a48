//! A session from the client's side: the connect message, its answer, and messages both ways until a Close.
//!
//! Three futures share one thread and this struct: one reads, one writes, one keeps the time. A frame that is being
//! read or written is never dropped, so the reader alone decides what an end means, and the writer alone puts frames
//! in.
use std::{
    cell::{Cell, RefCell},
    io::{self, Cursor},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use fastwebsockets::{Frame, OpCode, Payload, Role, WebSocketError, WebSocketRead, WebSocketWrite};
use futures_util::future::{Either, join, select};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Notify, mpsc::Receiver},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    MAX_MESSAGE, Wait,
    dial::Opened,
    input::{self, Line, Source},
    screen::{Message, Screen, harmless},
};
use crate::protocol::close::CloseBody;

/// How long the gateway may take for its answer to the connect message: longer than any target that it dials.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the other side may be silent when it owes a Close, and how long it may take for it in all.
const CLOSE_SILENCE: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);
/// RFC 6455 section 5.5, in bytes of payload.
const MAX_CONTROL: usize = 125;
const NORMAL: u16 = 1000;
const PROTOCOL_ERROR: u16 = 1002;
const NOT_UTF8: u16 = 1007;
const TOO_BIG: u16 = 1009;

/// How the session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With Close 1000, or one without a code.
    Well,
    Badly,
}

pub struct Conversation<'a> {
    screen: &'a Screen,
    interrupted: &'a Arc<Notify>,
    binary: bool,
    wait: Wait,
    /// Control frames that wait to be sent. Only the newest ping needs an answer (RFC 6455 section 5.5.3).
    pong: RefCell<Option<Vec<u8>>>,
    close: RefCell<Option<Vec<u8>>>,
    /// There are some.
    to_write: Notify,
    /// The writer has sent a Close, or cannot send any more.
    written: Notify,
    /// There are no more messages to send.
    all_sent: Notify,
    last_received: Cell<Instant>,
    /// Something failed on our side.
    failed: Cell<bool>,
}

/// What the gateway answers to the connect message.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Answer {
    Connected { node_id: String, subprotocol: Option<String> },
    Error { message: String, code: Option<String>, retry_after_ms: Option<u64> },
}

/// Why there is nothing more to read.
#[derive(Debug)]
enum End {
    /// The other side's Close.
    Close { code: Option<u16>, reason: String },
    /// The other side broke the protocol, and is told so with this code.
    Broken(u16, String),
    /// The connection ended or failed without a Close.
    Lost(String),
    /// Standard output failed.
    Output(io::Error),
}

impl<'a> Conversation<'a> {
    pub fn new(screen: &'a Screen, interrupted: &'a Arc<Notify>, binary: bool, wait: Wait) -> Self {
        Self {
            screen,
            interrupted,
            binary,
            wait,
            pong: RefCell::default(),
            close: RefCell::default(),
            to_write: Notify::new(),
            written: Notify::new(),
            all_sent: Notify::new(),
            last_received: Cell::new(Instant::now()),
            failed: Cell::new(false),
        }
    }

    /// From the connect message to the end of the connection.
    ///
    /// # Errors
    /// The gateway did not answer the connect message, or standard input could not be read from.
    pub async fn hold(self, opened: Opened, connect_message: String, source: Source) -> anyhow::Result<Ended> {
        let (read_half, mut write_half) = tokio::io::split(opened.stream);
        let stream = Cursor::new(opened.received).chain(read_half);
        let mut incoming = Incoming::new(stream);
        let (_, mut outgoing) =
            fastwebsockets::after_handshake_split(tokio::io::empty(), &mut write_half, Role::Client);

        send(&mut outgoing, OpCode::Text, connect_message.into_bytes()).await?;
        let connected = self.connected(&mut incoming, &mut outgoing);
        let connected = timeout(ANSWER_TIMEOUT, connected).await;
        if !connected.map_err(|_| anyhow::anyhow!("no answer to the connect message in {ANSWER_TIMEOUT:?}"))?? {
            return Ok(Ended::Badly);
        }
        let (lines, editing) = input::start(source, self.binary, self.interrupted, self.screen)?;
        let end = self.talk(incoming, outgoing, lines).await;
        if let Some(editing) = editing {
            editing.finish(self.screen);
        }
        let _ = timeout(CLOSE_SILENCE, write_half.shutdown()).await;
        Ok(self.conclude(&end))
    }

    /// Waits for the answer to the connect message; whether it is "connected". What else it is has been said.
    async fn connected(
        &self,
        incoming: &mut Incoming<impl AsyncRead + Unpin>,
        outgoing: &mut WebSocketWrite<impl AsyncWrite + Unpin>,
    ) -> anyhow::Result<bool> {
        loop {
            let event = {
                let next = pin!(incoming.next());
                let interrupted = pin!(self.interrupted.notified());
                match select(next, interrupted).await {
                    Either::Left((event, _)) => event,
                    Either::Right(_) => {
                        send(outgoing, OpCode::Close, NORMAL.to_be_bytes().to_vec()).await?;
                        anyhow::bail!("interrupted");
                    }
                }
            };
            match event {
                Ok(Event::Message(Message::Text(text))) => match serde_json::from_str(&text) {
                    Ok(Answer::Connected { node_id, subprotocol }) => {
                        let subprotocol = subprotocol.map(|name| format!(", subprotocol {name}")).unwrap_or_default();
                        self.screen.status(&harmless(&format!("Connected through {node_id}{subprotocol}")));
                        return Ok(true);
                    }
                    Ok(Answer::Error { message, code, retry_after_ms }) => {
                        let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
                        let retry = retry_after_ms.map(|ms| format!("; try again in {ms} ms")).unwrap_or_default();
                        self.screen.error(&harmless(&format!("{message}{code}{retry}")));
                    }
                    Err(_) => anyhow::bail!("this is no ringway gateway: its answer is not \"connected\" or \"error\""),
                },
                Ok(Event::Message(Message::Binary(_))) => {
                    anyhow::bail!("this is no ringway gateway: its answer is a binary message")
                }
                Ok(Event::Ping(payload)) => send(outgoing, OpCode::Pong, payload).await?,
                Ok(Event::Pong) => {}
                Ok(Event::Close { payload, code, reason }) => {
                    let _ = send(outgoing, OpCode::Close, payload).await;
                    self.conclude(&End::Close { code, reason });
                    return Ok(false);
                }
                Err(end) => {
                    if let End::Broken(code, _) = &end {
                        let _ = send(outgoing, OpCode::Close, code.to_be_bytes().to_vec()).await;
                    }
                    self.conclude(&end);
                    return Ok(false);
                }
            }
        }
    }

    /// Messages both ways, until the connection is of no more use.
    async fn talk(
        &self,
        mut incoming: Incoming<impl AsyncRead + Unpin>,
        outgoing: WebSocketWrite<impl AsyncWrite + Unpin>,
        lines: Receiver<Line>,
    ) -> End {
        self.last_received.set(Instant::now());
        let reader = pin!(self.read(&mut incoming));
        let others = pin!(join(self.write(outgoing, lines), self.keep_time()));
        match select(reader, others).await {
            Either::Left((end, others)) => {
                // An answer, or what is wrong, still goes out, behind the message that is being sent.
                if self.close.borrow().is_some() {
                    self.to_write.notify_one();
                    let written = pin!(timeout(CLOSE_SILENCE, self.written.notified()));
                    select(written, others).await;
                }
                end
            }
            Either::Right((((), end), _)) => end,
        }
    }

    async fn read(&self, incoming: &mut Incoming<impl AsyncRead + Unpin>) -> End {
        loop {
            let event = incoming.next().await;
            self.last_received.set(Instant::now());
            match event {
                Ok(Event::Message(message)) => {
                    if let Err(error) = self.screen.message(&message) {
                        self.request_close(NORMAL);
                        return End::Output(error);
                    }
                    if !self.screen.is_read() {
                        self.interrupted.notify_one();
                    }
                }
                Ok(Event::Ping(payload)) => {
                    *self.pong.borrow_mut() = Some(payload);
                    self.to_write.notify_one();
                }
                Ok(Event::Pong) => {}
                Ok(Event::Close { payload, code, reason }) => {
                    self.close.borrow_mut().get_or_insert(payload);
                    return End::Close { code, reason };
                }
                Err(end) => {
                    if let End::Broken(code, _) = &end {
                        self.request_close(*code);
                    }
                    return end;
                }
            }
        }
    }

    /// Sends messages and control frames, up to a Close.
    async fn write(&self, mut outgoing: WebSocketWrite<impl AsyncWrite + Unpin>, mut lines: Receiver<Line>) {
        let opcode = if self.binary { OpCode::Binary } else { OpCode::Text };
        let mut more = true;
        loop {
            let pong = self.pong.borrow_mut().take();
            let close = self.close.borrow().clone();
            let sent = match (pong, close) {
                (Some(payload), _) => send(&mut outgoing, OpCode::Pong, payload).await,
                (None, Some(payload)) => {
                    let _ = send(&mut outgoing, OpCode::Close, payload).await;
                    break;
                }
                (None, None) => {
                    let next = {
                        let control = pin!(self.to_write.notified());
                        let line = pin!(async { if more { lines.recv().await } else { std::future::pending().await } });
                        match select(control, line).await {
                            Either::Left(_) => continue,
                            Either::Right((line, _)) => line,
                        }
                    };
                    match next {
                        Some(Ok(message)) => send(&mut outgoing, opcode, message).await,
                        Some(Err(why)) => {
                            self.screen.error(&why);
                            self.failed.set(true);
                            self.request_close(NORMAL);
                            self.all_sent.notify_one();
                            continue;
                        }
                        None => {
                            more = false;
                            self.all_sent.notify_one();
                            continue;
                        }
                    }
                }
            };
            if sent.is_err() {
                // The reader finds out why, and what else has come.
                break;
            }
        }
        self.all_sent.notify_one();
        self.written.notify_one();
    }

    /// Closes when it is time to, and gives up when that does not help.
    async fn keep_time(&self) -> End {
        let interrupted = {
            let sent = pin!(self.all_sent.notified());
            let interrupted = pin!(self.interrupted.notified());
            matches!(select(sent, interrupted).await, Either::Right(_))
        };
        // From the last message sent on: an answer cannot come before.
        let sent_at = Instant::now();
        if !interrupted && self.close.borrow().is_none() {
            let over = async {
                match self.wait {
                    Wait::Forever => std::future::pending().await,
                    Wait::Exactly(limit) => sleep(limit).await,
                    Wait::Silence(limit) => loop {
                        let until = self.last_received.get().max(sent_at) + limit;
                        if Instant::now() >= until {
                            return;
                        }
                        sleep_until(until).await;
                    },
                }
            };
            select(pin!(over), pin!(self.interrupted.notified())).await;
        }
        self.request_close(NORMAL);
        let closed_at = Instant::now();
        let silent = async {
            loop {
                let until = (self.last_received.get().max(closed_at) + CLOSE_SILENCE).min(closed_at + CLOSE_TIMEOUT);
                if Instant::now() >= until {
                    return;
                }
                sleep_until(until).await;
            }
        };
        let interrupted = async {
            // When nobody reads standard output any more, that alone is no reason not to wait for the Close.
            loop {
                self.interrupted.notified().await;
                if self.screen.is_read() {
                    return;
                }
            }
        };
        match select(pin!(silent), pin!(interrupted)).await {
            Either::Left(_) => End::Lost("the other side does not answer the Close".into()),
            Either::Right(_) => End::Lost("interrupted".into()),
        }
    }

    fn request_close(&self, code: u16) {
        self.close.borrow_mut().get_or_insert(code.to_be_bytes().to_vec());
        self.to_write.notify_one();
    }

    /// Says how it ended.
    fn conclude(&self, end: &End) -> Ended {
        let well = match end {
            End::Close { code, reason } => {
                let code_text = code.map_or("none".to_owned(), |code| code.to_string());
                let text = format!("Disconnected (code: {code_text}, reason: {reason:?})");
                let well = code.is_none_or(|code| code == NORMAL);
                if well {
                    self.screen.status(&text);
                } else {
                    self.screen.error(&text);
                }
                well
            }
            End::Broken(_, why) => {
                self.screen.error(&format!("Disconnected: the other side broke the protocol: {why}"));
                false
            }
            End::Lost(why) => {
                self.screen.error(&format!("Disconnected: {why}"));
                false
            }
            End::Output(error) => {
                self.screen.error(&format!("standard output: {error}"));
                false
            }
        };
        if well && !self.failed.get() { Ended::Well } else { Ended::Badly }
    }
}

async fn send<S: AsyncWrite + Unpin>(
    outgoing: &mut WebSocketWrite<S>,
    opcode: OpCode,
    payload: Vec<u8>,
) -> Result<(), WebSocketError> {
    outgoing.write_frame(Frame::new(true, opcode, None, Payload::Owned(payload))).await?;
    // A TLS stream keeps what it was given until then.
    outgoing.flush().await
}

enum Event {
    Message(Message),
    Ping(Vec<u8>),
    Pong,
    /// A Close, with the payload that answers it.
    Close {
        payload: Vec<u8>,
        code: Option<u16>,
        reason: String,
    },
}

/// Reads messages, of a bounded size in all their frames.
struct Incoming<S> {
    frames: WebSocketRead<S>,
    /// The message in progress, and whether it is text.
    message: Option<(bool, Vec<u8>)>,
}

impl<S: AsyncRead + Unpin> Incoming<S> {
    fn new(stream: S) -> Self {
        // As a server reads, so that a masked frame is unmasked before its text is judged: what is wrong is the mask.
        let (mut frames, _) = fastwebsockets::after_handshake_split(stream, tokio::io::sink(), Role::Server);
        frames.set_auto_close(false);
        frames.set_auto_pong(false);
        frames.set_max_message_size(MAX_MESSAGE + 1);
        Self { frames, message: None }
    }

    /// The next event. Not to be dropped while more than the end is to come.
    async fn next(&mut self) -> Result<Event, End> {
        loop {
            let mut frame = self.frames.read_frame(&mut |_| async { Ok::<_, io::Error>(()) }).await.map_err(explain)?;
            let broken = |why: &str| End::Broken(PROTOCOL_ERROR, why.into());
            if is_masked(&mut frame) {
                return Err(broken("a masked frame, which only a client may send"));
            }
            if is_control(frame.opcode) && frame.payload.len() > MAX_CONTROL {
                return Err(broken("a control frame of more than 125 bytes"));
            }
            let text = match (frame.opcode, &self.message) {
                (OpCode::Ping, _) => return Ok(Event::Ping(frame.payload.to_vec())),
                (OpCode::Pong, _) => return Ok(Event::Pong),
                (OpCode::Close, _) => {
                    let body = CloseBody::parse(&frame.payload).ok_or_else(|| broken("an illegal Close"))?;
                    let code = match body {
                        CloseBody::Empty => None,
                        CloseBody::Code(code) => Some(code),
                    };
                    let reason = String::from_utf8_lossy(frame.payload.get(2..).unwrap_or_default()).into_owned();
                    return Ok(Event::Close { payload: body.answer(), code, reason });
                }
                (OpCode::Continuation, Some((text, _))) => *text,
                (OpCode::Continuation, None) => return Err(broken("a continuation of nothing")),
                (_, Some(_)) => return Err(broken("a new message inside another")),
                (opcode, None) => opcode == OpCode::Text,
            };
            let (_, bytes) = self.message.get_or_insert_with(|| (text, Vec::new()));
            if bytes.len() + frame.payload.len() > MAX_MESSAGE {
                return Err(explain(WebSocketError::FrameTooLarge));
            }
            if bytes.is_empty() {
                *bytes = frame.payload.to_vec();
            } else {
                bytes.extend_from_slice(&frame.payload);
            }
            if frame.fin {
                let bytes = std::mem::take(bytes);
                self.message = None;
                let message = if text {
                    Message::Text(String::from_utf8(bytes).map_err(|_| explain(WebSocketError::InvalidUTF8))?)
                } else {
                    Message::Binary(bytes)
                };
                return Ok(Event::Message(message));
            }
        }
    }
}

/// RFC 6455 section 5.1: a client fails the connection then. fastwebsockets shows the masking key in the header only.
fn is_masked(frame: &mut Frame<'_>) -> bool {
    let mut header = [0; 14];
    frame.fmt_head(&mut header);
    header[1] & 0x80 != 0
}

fn is_control(opcode: OpCode) -> bool {
    matches!(opcode, OpCode::Close | OpCode::Ping | OpCode::Pong)
}

fn explain(error: WebSocketError) -> End {
    match error {
        WebSocketError::UnexpectedEOF => End::Lost("the connection ended without a Close".into()),
        WebSocketError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            End::Lost("the connection ended without a Close".into())
        }
        WebSocketError::IoError(error) => End::Lost(error.to_string()),
        WebSocketError::FrameTooLarge => {
            End::Broken(TOO_BIG, format!("a message is longer than {} MiB", MAX_MESSAGE >> 20))
        }
        WebSocketError::InvalidUTF8 => End::Broken(NOT_UTF8, "a text message is not UTF-8".into()),
        other => End::Broken(PROTOCOL_ERROR, other.to_string()),
    }
}
