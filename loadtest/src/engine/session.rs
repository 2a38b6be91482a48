//! One session: from the TCP connection over upgrade and connect message to messages, and to the Close.
//!
//! Works on readiness that the thread reports (edge-triggered), with the thread's buffers. Between events it owns
//! no buffer: what a full socket did not take is made anew from the seed when it takes more.
use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
};

use ringway::protocol::{
    frame::{self, Header, MAX_HEADER, Opcode, Parsed},
    opening,
};
use rustix::event::epoll::EventFlags;
use serde::Deserialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    failure::{Failure, Kind},
    payload::{self, mix},
    transport::Transport,
    worker::Context,
};
use crate::clock;

/// What a response head, or what comes in place of "connected", may have.
const MAX_SETUP: usize = 64 * 1024;
/// Receives in a row on one session before others get their turn.
const MAX_READS: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not opened, or done.
    Absent,
    Connecting,
    Tls,
    Upgrade,
    /// The connect message is on its way, or its answer.
    Connect,
    Open,
    /// Our Close is on its way, or the peer's.
    Closing,
    /// Close went both ways; the end of TCP is to come.
    Ending,
}

impl State {
    pub fn is_setup(self) -> bool {
        matches!(self, Self::Connecting | Self::Tls | Self::Upgrade | Self::Connect)
    }

    pub fn is_end(self) -> bool {
        matches!(self, Self::Closing | Self::Ending)
    }

    fn what(self) -> &'static str {
        match self {
            Self::Absent => "nothing",
            Self::Connecting => "the TCP connection",
            Self::Tls => "the TLS handshake",
            Self::Upgrade => "the answer to the upgrade",
            Self::Connect => "the answer to the connect message",
            Self::Open => "an echo",
            Self::Closing => "the Close",
            Self::Ending => "the end of the connection",
        }
    }
}

/// Whether the session has more to read than its turn allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Done,
    Unfinished,
}

/// When its stages were reached; nanoseconds, 0 if not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    pub start: u64,
    pub tcp: u64,
    pub tls: u64,
    pub upgrade: u64,
    pub connected: u64,
}

/// The frame that is being received.
#[derive(Clone, Copy, Debug)]
struct Incoming {
    opcode: Opcode,
    fin: bool,
    left: u64,
}

#[derive(Debug)]
pub struct Session {
    /// Number of the session in the whole run; its payloads follow from it.
    pub number: u64,
    transport: Option<Transport>,
    pub state: State,
    pub times: Times,
    /// When the present state must have ended, while it is not `Open`.
    pub deadline: u64,
    header: [u8; MAX_HEADER],
    header_len: usize,
    incoming: Option<Incoming>,
    /// Whether a message has begun, and how much of it has come.
    in_message: bool,
    in_pos: usize,
    /// The message that comes next; those before it were verified.
    pub in_next: u64,
    /// The message that is sent next, or in part, and how much of its frame was sent.
    out_next: u64,
    out_pos: usize,
    /// Messages before this one are to be sent.
    pub due: u64,
    pub blocked: bool,
    /// Bytes that are no message of ours, to be sent between two frames.
    control_out: Vec<u8>,
    control_at: usize,
    control_in: Vec<u8>,
    setup_in: Vec<u8>,
    /// When messages of the window were sent, by number modulo its size.
    sent_at: Box<[u64]>,
}

impl Session {
    /// `window`: how many messages may be on their way whose sending time must be kept.
    pub fn new(number: u64, window: usize) -> Self {
        Self {
            number,
            transport: None,
            state: State::Absent,
            times: Times::default(),
            deadline: u64::MAX,
            header: [0; MAX_HEADER],
            header_len: 0,
            incoming: None,
            in_message: false,
            in_pos: 0,
            in_next: 0,
            out_next: 0,
            out_pos: 0,
            due: 0,
            blocked: false,
            control_out: Vec::new(),
            control_at: 0,
            control_in: Vec::new(),
            setup_in: Vec::new(),
            sent_at: vec![0; window].into(),
        }
    }

    /// Begins to connect.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn open(&mut self, to: SocketAddr, from: Option<IpAddr>, timeout: u64) -> Result<(), Failure> {
        let now = clock::now();
        let fail = |error: io::Error| Failure::new(Kind::Connect, format!("cannot connect to {to}: {error}"));
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
            .map_err(fail)?;
        socket.set_tcp_nodelay(true).map_err(fail)?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::new(from, 0).into()).map_err(fail)?;
        }
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(fail(error)),
        }
        self.transport = Some(Transport::plain(socket.into()));
        self.state = State::Connecting;
        self.times = Times { start: now, ..Times::default() };
        self.deadline = now + timeout;
        Ok(())
    }

    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.transport.as_ref().map(|transport| transport.tcp.as_fd())
    }

    /// Messages that were due and have not come back.
    pub fn unanswered(&self) -> u64 {
        self.due - self.in_next
    }

    /// When a message of the window was sent.
    pub fn sent_at(&self, number: u64) -> u64 {
        self.sent_at.get(number as usize % self.sent_at.len().max(1)).copied().unwrap_or(0)
    }

    /// Why the present state did not end in time.
    pub fn too_late(&self, timeout: u64) -> Failure {
        let seconds = timeout as f64 / clock::SECOND as f64;
        Failure::new(Kind::Timeout, format!("no sign of {} within {seconds} s", self.state.what()))
    }

    /// Drops the connection.
    pub fn forget(&mut self) {
        *self = Self { sent_at: std::mem::take(&mut self.sent_at), ..Self::new(self.number, 0) };
    }

    /// Readiness was reported.
    ///
    /// # Errors
    /// The session has failed.
    pub fn event(&mut self, flags: EventFlags, buffer: &mut [u8], context: &mut Context) -> Result<Turn, Failure> {
        if self.state == State::Connecting {
            self.tcp_connected(context)?;
        }
        if self.state == State::Tls {
            self.handshake(context)?;
        }
        let ended = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        let mut turn = Turn::Done;
        if !matches!(self.state, State::Absent | State::Connecting | State::Tls) {
            if flags.contains(EventFlags::OUT) && (self.blocked || !self.transport().is_plain()) {
                self.pump(clock::now(), context)?;
            }
            if flags.intersects(EventFlags::IN | ended) {
                turn = self.receive(flags.intersects(ended), buffer, context)?;
            }
        }
        Ok(turn)
    }

    #[allow(clippy::expect_used)]
    fn transport(&mut self) -> &mut Transport {
        self.transport.as_mut().expect("a session that is not absent has a connection")
    }

    // --- set-up ---------------------------------------------------------------------------------------------------

    fn tcp_connected(&mut self, context: &mut Context) -> Result<(), Failure> {
        let fail = |error: io::Error| {
            Failure::new(Kind::Connect, format!("cannot connect to {}: {error}", context.plan.route.address))
        };
        let tcp = &self.transport().tcp;
        if let Some(error) = tcp.take_error().map_err(fail)? {
            return Err(fail(error));
        }
        match tcp.peer_addr() {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(()),
            Err(error) => return Err(fail(error)),
        }
        self.times.tcp = clock::now();
        match &context.plan.route.tls {
            None => return self.send_request(context),
            Some((config, name)) => {
                let tls = rustls::ClientConnection::new(config.clone(), name.clone())
                    .map_err(|error| Failure::new(Kind::Tls, error.to_string()))?;
                if let Some(plain) = self.transport.take() {
                    self.transport = Some(Transport::tls(plain.tcp, tls));
                }
                self.state = State::Tls;
            }
        }
        Ok(())
    }

    fn handshake(&mut self, context: &mut Context) -> Result<(), Failure> {
        match self.transport().handshake() {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.times.tls = clock::now();
                self.send_request(context)
            }
            Err(error) => Err(Failure::new(Kind::Tls, format!("TLS handshake: {error}"))),
        }
    }

    fn nonce(&self) -> String {
        let halves = [mix(self.times.start ^ self.number), mix(self.number)].map(u64::to_le_bytes);
        let mut nonce = [0; 16];
        nonce.copy_from_slice(halves.as_flattened());
        opening::key_from(nonce)
    }

    fn send_request(&mut self, context: &mut Context) -> Result<(), Failure> {
        self.state = State::Upgrade;
        self.control_out = format!("{}{}\r\n\r\n", context.plan.route.request, self.nonce()).into_bytes();
        self.pump(clock::now(), context)
    }

    /// Reads the response head from what has come. Returns how much of `data` belonged to it.
    fn response(&mut self, data: &[u8], context: &mut Context) -> Result<usize, Failure> {
        let before = self.setup_in.len();
        self.setup_in.extend_from_slice(data);
        let mut headers = [httparse::EMPTY_HEADER; 100];
        let mut response = httparse::Response::new(&mut headers);
        let head_len = match response.parse(&self.setup_in) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if self.setup_in.len() < MAX_SETUP => return Ok(data.len()),
            Ok(httparse::Status::Partial) => {
                return Err(Failure::new(Kind::Upgrade, "the answer to the upgrade does not end".into()));
            }
            Err(error) => {
                return Err(Failure::new(Kind::Upgrade, format!("the answer to the upgrade is no HTTP: {error}")));
            }
        };
        let code = response.code.unwrap_or(0);
        if code != 101 {
            let body = String::from_utf8_lossy(&self.setup_in[head_len..]).trim().chars().take(200).collect::<String>();
            return Err(Failure::new(Kind::Upgrade, format!("the upgrade was answered with HTTP {code} {body}")));
        }
        let accept = opening::accept_for(self.nonce().as_bytes());
        let answered = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("sec-websocket-accept"));
        if answered.is_none_or(|header| header.value.trim_ascii() != accept.as_bytes()) {
            return Err(Failure::new(Kind::Upgrade, "the 101 has no, or a wrong, Sec-WebSocket-Accept".into()));
        }
        self.setup_in = Vec::new();
        self.times.upgrade = clock::now();
        match &context.plan.route.connect_message {
            None => self.opened(context)?,
            Some(message) => {
                self.state = State::Connect;
                let mut out = Vec::new();
                let key = (mix(self.number) as u32).to_le_bytes();
                frame::write(&mut out, Opcode::TEXT, Some(key), message.as_bytes());
                self.control_out = out;
                self.pump(clock::now(), context)?;
            }
        }
        Ok(head_len - before)
    }

    /// The answer to the connect message has come as a whole.
    fn answer(&mut self, context: &mut Context) -> Result<(), Failure> {
        #[derive(Deserialize)]
        struct Answer {
            r#type: String,
            message: Option<String>,
            code: Option<String>,
        }
        let text = std::mem::take(&mut self.setup_in);
        match serde_json::from_slice::<Answer>(&text) {
            Ok(answer) if answer.r#type == "connected" => {
                self.times.connected = clock::now();
                self.opened(context)
            }
            Ok(answer) if answer.r#type == "error" => {
                let message = answer.message.unwrap_or_default();
                let code = answer.code.map(|code| format!(" ({code})")).unwrap_or_default();
                Err(Failure::new(Kind::Refused, format!("the relay refused: {message}{code}")))
            }
            _ => Err(Failure::new(Kind::Refused, "the connect message was answered with something else".into())),
        }
    }

    fn opened(&mut self, context: &mut Context) -> Result<(), Failure> {
        self.state = State::Open;
        self.deadline = u64::MAX;
        context.opened(self)?;
        if self.due == 0 {
            return Ok(());
        }
        self.pump(clock::now(), context)
    }

    // --- sending --------------------------------------------------------------------------------------------------

    /// Sends what is due, as far as the socket takes it.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn pump(&mut self, now: u64, context: &mut Context) -> Result<(), Failure> {
        self.blocked = false;
        loop {
            let sent = if self.out_pos == 0 && !self.control_out.is_empty() {
                self.send_control()
            } else if self.out_pos > 0 || (self.state == State::Open && self.out_next < self.due) {
                self.send_messages(now, context)
            } else {
                self.transport().flush().map(|()| false)
            };
            match sent {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return Ok(());
                }
                // What the peer said before it went away tells more, and comes with the next receive.
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    self.blocked = true;
                    return Ok(());
                }
                Err(error) => return Err(self.lost(&error)),
            }
        }
    }

    fn send_control(&mut self) -> io::Result<bool> {
        let control = std::mem::take(&mut self.control_out);
        let sent = self.transport.as_mut().map_or(Ok(0), |transport| transport.send(&control[self.control_at..]));
        self.control_at += *sent.as_ref().unwrap_or(&0);
        if self.control_at < control.len() {
            self.control_out = control;
        } else {
            self.control_at = 0;
        }
        sent.map(|_| true)
    }

    fn send_messages(&mut self, now: u64, context: &mut Context) -> io::Result<bool> {
        // A Close waits for the end of the frame in progress, not for more.
        let end = if self.state == State::Open { self.due } else { self.out_next + 1 };
        let payloads = &context.plan.payloads;
        let out = &mut context.scratch;
        let (mut next, mut pos, mut filled) = (self.out_next, self.out_pos, 0);
        while next < end && filled < out.len() {
            let message = payloads.message(self.number, next);
            if pos == 0 && !self.sent_at.is_empty() {
                let slot = next as usize % self.sent_at.len();
                self.sent_at[slot] = now;
            }
            let written = payloads.write_frame(&message, pos, &mut out[filled..]);
            filled += written;
            pos += written;
            if pos == payload::frame_len(&message) {
                (next, pos) = (next + 1, 0);
            }
        }
        let sent = self.transport.as_mut().map_or(Ok(0), |transport| transport.send(&out[..filled]))?;
        if sent == filled {
            (self.out_next, self.out_pos) = (next, pos);
            return Ok(true);
        }
        let mut left = sent;
        while left > 0 {
            let rest = payload::frame_len(&payloads.message(self.number, self.out_next)) - self.out_pos;
            if left < rest {
                self.out_pos += left;
                break;
            }
            left -= rest;
            (self.out_next, self.out_pos) = (self.out_next + 1, 0);
        }
        Ok(true)
    }

    /// Sends a Close behind the frame in progress.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn close(&mut self, timeout: u64, context: &mut Context) -> Result<(), Failure> {
        self.state = State::Closing;
        self.deadline = clock::now() + timeout;
        self.queue(Opcode::CLOSE, &1000_u16.to_be_bytes());
        self.pump(clock::now(), context)
    }

    fn queue(&mut self, opcode: Opcode, payload: &[u8]) {
        let key = (mix(self.number ^ self.in_next) as u32).to_le_bytes();
        frame::write(&mut self.control_out, opcode, Some(key), payload);
    }

    // --- receiving ------------------------------------------------------------------------------------------------

    /// Goes on where [`Turn::Unfinished`] left off.
    ///
    /// # Errors
    /// The session has failed.
    pub fn receive(&mut self, ended: bool, buffer: &mut [u8], context: &mut Context) -> Result<Turn, Failure> {
        for _ in 0..MAX_READS {
            match self.transport().recv(buffer) {
                Ok(0) => {
                    self.end(context)?;
                    return Ok(Turn::Done);
                }
                Ok(len) => {
                    self.received(&buffer[..len], context)?;
                    if self.state == State::Absent {
                        return Ok(Turn::Done);
                    }
                    let open = self.state == State::Open && self.out_next < self.due;
                    if !self.blocked && (open || !self.control_out.is_empty()) {
                        self.pump(clock::now(), context)?;
                    }
                    if len < buffer.len() && !ended && self.transport().is_plain() {
                        return Ok(Turn::Done);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Done),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) if self.state == State::Ending => {
                    self.end(context)?;
                    return Ok(Turn::Done);
                }
                Err(error) => return Err(self.lost(&error)),
            }
        }
        Ok(Turn::Unfinished)
    }

    fn lost(&self, error: &io::Error) -> Failure {
        Failure::new(Kind::Lost, format!("the connection was lost while waiting for {}: {error}", self.state.what()))
    }

    /// The peer's TCP has ended.
    fn end(&mut self, context: &mut Context) -> Result<(), Failure> {
        if self.state == State::Ending {
            self.forget();
            context.closed();
            return Ok(());
        }
        let cut = if self.incoming.is_some() || self.header_len > 0 { ", in the middle of a frame" } else { "" };
        Err(Failure::new(Kind::Lost, format!("the peer ended TCP in place of {}{cut}", self.state.what())))
    }

    fn received(&mut self, mut data: &[u8], context: &mut Context) -> Result<(), Failure> {
        if self.state == State::Upgrade {
            let taken = self.response(data, context)?;
            data = &data[taken..];
        }
        let mut now = 0;
        while !data.is_empty() {
            let Some(mut incoming) = self.incoming.take() else {
                let (header, rest) = self.next_header(data)?;
                data = rest;
                let Some(header) = header else { break };
                self.begin(&header)?;
                let frame = Incoming { opcode: header.opcode, fin: header.fin, left: header.payload_len };
                if frame.left == 0 {
                    self.finish(frame, &mut now, context)?;
                } else {
                    self.incoming = Some(frame);
                }
                continue;
            };
            let (payload, rest) = data.split_at(data.len().min(incoming.left.min(usize::MAX as u64) as usize));
            data = rest;
            self.take_payload(&incoming, payload, context)?;
            incoming.left -= payload.len() as u64;
            if incoming.left == 0 {
                self.finish(incoming, &mut now, context)?;
            } else {
                self.incoming = Some(incoming);
            }
        }
        Ok(())
    }

    /// The next frame's header, and what stands behind it; `None` if it is not complete.
    fn next_header<'d>(&mut self, data: &'d [u8]) -> Result<(Option<Header>, &'d [u8]), Failure> {
        let (parsed, rest) = if self.header_len == 0 {
            let parsed = Header::parse(data);
            let len = if let Parsed::Header(header) = parsed { header.header_len } else { 0 };
            (parsed, &data[len..])
        } else {
            let take = data.len().min(MAX_HEADER - self.header_len);
            let (before, whole) = (self.header_len, self.header_len + take);
            self.header[before..whole].copy_from_slice(&data[..take]);
            let parsed = Header::parse(&self.header[..whole]);
            let used = if let Parsed::Header(header) = parsed { header.header_len - before } else { 0 };
            (parsed, &data[used..])
        };
        match parsed {
            Parsed::Header(header) => {
                self.header_len = 0;
                Ok((Some(header), rest))
            }
            Parsed::Incomplete => {
                let take = rest.len();
                self.header[self.header_len..self.header_len + take].copy_from_slice(rest);
                self.header_len += take;
                Ok((None, &[]))
            }
            Parsed::LengthOverflow => Err(mismatch("a frame with an impossible length came")),
        }
    }

    fn begin(&mut self, header: &Header) -> Result<(), Failure> {
        if header.reserved != 0 || header.masking_key.is_some() {
            return Err(mismatch("a frame came with reserved bits or a mask, which no server sends"));
        }
        let opcode = header.opcode;
        if opcode.is_control() {
            if !header.fin || header.payload_len > 125 || opcode.0 > Opcode::PONG.0 {
                return Err(mismatch("a control frame came that RFC 6455 does not allow"));
            }
            return Ok(());
        }
        let wanted = match (self.in_message, self.state) {
            (true, _) => Opcode::CONTINUATION,
            (false, State::Connect) => Opcode::TEXT,
            (false, _) => Opcode::BINARY,
        };
        if opcode != wanted {
            return Err(mismatch(&format!("a frame with opcode {} came in place of {}", opcode.0, wanted.0)));
        }
        if !self.in_message {
            self.in_message = true;
            self.in_pos = 0;
            let sent = self.in_next < self.out_next || (self.in_next == self.out_next && self.out_pos > 0);
            if self.state == State::Open && !sent {
                return Err(mismatch(&format!("message {} came before it was sent", self.in_next)));
            }
        }
        Ok(())
    }

    fn take_payload(&mut self, frame: &Incoming, payload: &[u8], context: &mut Context) -> Result<(), Failure> {
        if frame.opcode.is_control() {
            self.control_in.extend_from_slice(payload);
            return Ok(());
        }
        if self.state == State::Connect {
            if self.setup_in.len() + payload.len() > MAX_SETUP {
                return Err(Failure::new(Kind::Refused, "the answer to the connect message does not end".into()));
            }
            self.setup_in.extend_from_slice(payload);
            return Ok(());
        }
        if self.state != State::Open {
            return Ok(()); // The run is over; whatever was unanswered has been counted.
        }
        let message = context.plan.payloads.message(self.number, self.in_next);
        let at = self.in_pos;
        let content = context.plan.payloads.content(&message);
        self.in_pos += payload.len();
        let Some(wanted) = content.get(at..self.in_pos) else {
            let text = format!("message {} came with more than its {} bytes", self.in_next, message.len);
            return Err(mismatch(&text));
        };
        if payload != wanted {
            let differs = payload.iter().zip(wanted).position(|(came, sent)| came != sent).unwrap_or(0);
            return Err(mismatch(&format!(
                "message {} differs at byte {} of {}: {:#04x} came back for {:#04x}",
                self.in_next,
                at + differs,
                message.len,
                payload[differs],
                wanted[differs]
            )));
        }
        Ok(())
    }

    fn finish(&mut self, frame: Incoming, now: &mut u64, context: &mut Context) -> Result<(), Failure> {
        if frame.opcode.is_control() {
            let payload = std::mem::take(&mut self.control_in);
            return self.control(frame.opcode, &payload, context);
        }
        if !frame.fin {
            return Ok(());
        }
        self.in_message = false;
        match self.state {
            State::Connect => self.answer(context),
            State::Open => {
                let message = context.plan.payloads.message(self.number, self.in_next);
                if self.in_pos != message.len {
                    let text = format!("message {} came with {} of {} bytes", self.in_next, self.in_pos, message.len);
                    return Err(mismatch(&text));
                }
                // Whatever came in one piece came at the same time.
                if *now == 0 {
                    *now = clock::now();
                }
                self.in_next += 1;
                context.answered(self, message.len, *now)
            }
            _ => Ok(()),
        }
    }

    fn control(&mut self, opcode: Opcode, payload: &[u8], context: &mut Context) -> Result<(), Failure> {
        match opcode {
            Opcode::PING if !self.state.is_end() => self.queue(Opcode::PONG, payload),
            Opcode::CLOSE if self.state == State::Closing => {
                self.state = State::Ending;
                self.deadline = clock::now() + context.plan.timeout.min(2 * clock::SECOND);
            }
            Opcode::CLOSE if self.state != State::Ending => {
                let code = payload.first_chunk::<2>().map_or(1005, |code| u16::from_be_bytes(*code));
                let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned();
                let text = format!("the peer closed with {code} {reason:?} in place of {}", self.state.what());
                return Err(Failure::new(Kind::Closed, text));
            }
            _ => {}
        }
        Ok(())
    }
}

fn mismatch(text: &str) -> Failure {
    Failure::new(Kind::Mismatch, text.into())
}
