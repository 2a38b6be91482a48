//! The echo target: sends back every frame, unmasked, while it comes in.
//!
//! Made to cost as little as it can, so that it is not what a measurement measures: no frame is held, whatever its
//! size, and what came in one receive goes out in one send. It judges little; the clients do.
use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
};

use anyhow::Context as _;
use ringway::{
    protocol::{
        frame::{Header, MAX_HEADER, Opcode, Parsed},
        opening,
    },
    runtime::listen,
};
use rustix::{
    event::epoll::{self, EventData, EventFlags},
    fd::OwnedFd,
};
use rustls::{ServerConfig, ServerConnection};

use crate::engine::{
    payload::{mask_into, write_header},
    pin,
    transport::Transport,
};

const BUFFER: usize = 256 * 1024;
const MAX_HEAD: usize = 64 * 1024;
const MAX_READS: usize = 16;
const LISTENER: u64 = u64::MAX;

/// Listens and serves on `threads` threads, for as long as the process lives. Returns the address.
///
/// # Errors
/// The address cannot be bound, or a thread not be started.
pub fn start(
    address: SocketAddr,
    threads: usize,
    cores: &[usize],
    tls: Option<Arc<ServerConfig>>,
) -> anyhow::Result<(SocketAddr, Vec<thread::JoinHandle<io::Result<()>>>)> {
    ringway::runtime::threads::raise_open_files();
    let listeners = listen::bind(address, threads)?;
    let address = listeners.first().context("no thread")?.local_addr()?;
    let mut handles = Vec::new();
    for (index, listener) in listeners.into_iter().enumerate() {
        let core = (!cores.is_empty()).then(|| cores[index % cores.len()]);
        let tls = tls.clone();
        let thread = thread::Builder::new().name(format!("echo-{index}")).spawn(move || {
            if let Some(core) = core {
                pin(core).map_err(io::Error::other)?;
            }
            Server::new(listener, tls)?.run()
        });
        handles.push(thread.context("cannot start a thread")?);
    }
    Ok((address, handles))
}

struct Server {
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    epoll: OwnedFd,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Connections that had more to read than their turn allowed.
    unfinished: Vec<usize>,
}

impl Server {
    fn new(listener: TcpListener, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        Ok(Self { listener, tls, epoll, connections: Vec::new(), free: Vec::new(), unfinished: Vec::new() })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(1024);
        let mut buffers = Buffers { input: vec![0; BUFFER], output: vec![0; BUFFER + 1024] };
        let zero = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            let timeout = (!self.unfinished.is_empty()).then_some(&zero);
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for slot in std::mem::take(&mut self.unfinished) {
                self.serve(slot, EventFlags::IN | EventFlags::RDHUP, &mut buffers);
            }
            let mut accept = false;
            for event in events.drain(..) {
                match event.data.u64() {
                    LISTENER => accept = true,
                    slot => self.serve(slot as usize, event.flags, &mut buffers),
                }
            }
            // Last, so that no event of this batch is taken for one of a connection that got a free slot.
            if accept {
                self.accept();
            }
        }
    }

    fn accept(&mut self) {
        // A bounded number, so that those who are connected get their turn.
        for _ in 0..64 {
            let tcp = match self.listener.accept() {
                Ok((tcp, _)) => tcp,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
                        thread::sleep(std::time::Duration::from_millis(10));
                    }
                    return;
                }
            };
            if tcp.set_nonblocking(true).is_err() || tcp.set_nodelay(true).is_err() {
                continue;
            }
            let transport = match &self.tls {
                None => Transport::plain(tcp),
                Some(config) => match ServerConnection::new(config.clone()) {
                    Ok(tls) => Transport::tls(tcp, tls),
                    Err(_) => continue,
                },
            };
            let slot = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            if epoll::add(&self.epoll, &transport.tcp, EventData::new_u64(slot as u64), flags).is_ok() {
                self.connections[slot] = Some(Connection::new(transport));
            } else {
                self.free.push(slot);
            }
        }
    }

    fn serve(&mut self, slot: usize, flags: EventFlags, buffers: &mut Buffers) {
        let Some(connection) = &mut self.connections[slot] else { return };
        match connection.serve(flags, buffers) {
            Ok(true) => {}
            Ok(false) => self.unfinished.push(slot),
            Err(_) => {
                self.connections[slot] = None;
                self.free.push(slot);
            }
        }
    }
}

struct Buffers {
    input: Vec<u8>,
    /// As long as the input and one header more, since a frame does not get longer.
    output: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The request head is to come.
    Head,
    Open,
    /// The Close was answered.
    Ended,
}

#[derive(Clone, Copy, Debug)]
struct Incoming {
    close: bool,
    key: [u8; 4],
    /// Payload bytes that have come, and that are to come.
    at: usize,
    left: u64,
}

struct Connection {
    transport: Transport,
    handshaken: bool,
    state: State,
    head: Vec<u8>,
    header: [u8; MAX_HEADER],
    header_len: usize,
    incoming: Option<Incoming>,
    /// What the socket did not take.
    pending: Vec<u8>,
}

impl Connection {
    fn new(transport: Transport) -> Self {
        Self {
            transport,
            handshaken: false,
            state: State::Head,
            head: Vec::new(),
            header: [0; MAX_HEADER],
            header_len: 0,
            incoming: None,
            pending: Vec::new(),
        }
    }

    /// True when there is nothing left to do until the next event. An error is the end of the connection.
    fn serve(&mut self, flags: EventFlags, buffers: &mut Buffers) -> io::Result<bool> {
        if !self.handshaken {
            self.handshaken = self.transport.handshake()?;
            if !self.handshaken {
                return Ok(true);
            }
        }
        let was_blocked = !self.pending.is_empty();
        if flags.contains(EventFlags::OUT) && !self.flush()? {
            return Ok(true);
        }
        let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        if !self.pending.is_empty() || !(was_blocked || ended || flags.contains(EventFlags::IN)) {
            return Ok(true);
        }
        for _ in 0..MAX_READS {
            let len = match self.transport.recv(&mut buffers.input) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            };
            let (input, output) = (&buffers.input[..len], &mut buffers.output);
            let filled = match self.state {
                State::Ended => 0,
                State::Open => self.translate(input, output)?,
                State::Head => self.answer(input, output)?,
            };
            self.send(&output[..filled])?;
            if self.state == State::Ended && filled > 0 && self.pending.is_empty() {
                self.transport.end_write();
            }
            if !self.pending.is_empty() {
                return Ok(true);
            }
            if len < buffers.input.len() && !ended && self.transport.is_plain() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn send(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            match self.transport.send(data) {
                Ok(len) => data = &data[len..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.pending.extend_from_slice(data);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// True when nothing is pending any more.
    fn flush(&mut self) -> io::Result<bool> {
        let mut pending = std::mem::take(&mut self.pending);
        let mut sent = 0;
        while sent < pending.len() {
            match self.transport.send(&pending[sent..]) {
                Ok(len) => sent += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    pending.drain(..sent);
                    self.pending = pending;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        if sent > 0 && self.state == State::Ended {
            self.transport.end_write();
        }
        match self.transport.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(true),
        }
    }

    /// The opening handshake; what stands behind it is echoed. Returns how much of `output` was filled.
    fn answer(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<usize> {
        self.head.extend_from_slice(input);
        let mut headers = [httparse::EMPTY_HEADER; 100];
        let mut request = httparse::Request::new(&mut headers);
        let head_len = match request.parse(&self.head).map_err(io::Error::other)? {
            httparse::Status::Complete(len) => len,
            httparse::Status::Partial if self.head.len() < MAX_HEAD => return Ok(0),
            httparse::Status::Partial => return Err(ErrorKind::InvalidData.into()),
        };
        let key = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("sec-websocket-key"));
        let Some(key) = key else {
            self.state = State::Ended;
            let answer = b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
            output[..answer.len()].copy_from_slice(answer);
            return Ok(answer.len());
        };
        let accept = opening::accept_for(key.value);
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        output[..answer.len()].copy_from_slice(answer.as_bytes());
        self.state = State::Open;
        let head = std::mem::take(&mut self.head);
        Ok(answer.len() + self.translate(&head[head_len..], &mut output[answer.len()..])?)
    }

    /// Makes a client's bytes a server's. Returns how much of `output` was filled.
    fn translate(&mut self, mut input: &[u8], output: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while !input.is_empty() && self.state == State::Open {
            let Some(mut incoming) = self.incoming.take() else {
                let (parsed, used) = self.next_header(input);
                input = &input[used..];
                match parsed {
                    Parsed::Incomplete => break,
                    Parsed::LengthOverflow => return Err(ErrorKind::InvalidData.into()),
                    Parsed::Header(header) => {
                        let mut out = [0; MAX_HEADER];
                        let len = write_header(&mut out, first_byte(&header), header.payload_len, None);
                        output[filled..filled + len].copy_from_slice(&out[..len]);
                        filled += len;
                        let incoming = Incoming {
                            close: header.opcode == Opcode::CLOSE,
                            key: header.masking_key.unwrap_or_default(),
                            at: 0,
                            left: header.payload_len,
                        };
                        self.go_on(incoming);
                    }
                }
                continue;
            };
            let len = input.len().min(incoming.left.min(usize::MAX as u64) as usize);
            let (payload, rest) = input.split_at(len);
            input = rest;
            mask_into(&mut output[filled..filled + len], payload, incoming.key, incoming.at);
            filled += len;
            incoming.at += len;
            incoming.left -= len as u64;
            self.go_on(incoming);
        }
        Ok(filled)
    }

    fn go_on(&mut self, incoming: Incoming) {
        if incoming.left > 0 {
            self.incoming = Some(incoming);
        } else if incoming.close {
            self.state = State::Ended;
        }
    }

    /// The next header, and how much of `input` it took.
    fn next_header(&mut self, input: &[u8]) -> (Parsed, usize) {
        let before = self.header_len;
        let take = input.len().min(MAX_HEADER - before);
        self.header[before..before + take].copy_from_slice(&input[..take]);
        let parsed = Header::parse(&self.header[..before + take]);
        match parsed {
            Parsed::Header(header) => {
                self.header_len = 0;
                (parsed, header.header_len - before)
            }
            _ => {
                self.header_len = before + take;
                (parsed, take)
            }
        }
    }
}

/// FIN, reserved bits and opcode as they came, but a pong for a ping.
fn first_byte(header: &Header) -> u8 {
    let opcode = if header.opcode == Opcode::PING { Opcode::PONG } else { header.opcode };
    u8::from(header.fin) << 7 | header.reserved << 4 | opcode.0
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };

    use ringway::protocol::frame;

    use super::*;

    #[test]
    fn frames_come_back_unmasked_however_they_are_cut() {
        let (address, _) = start(([127, 0, 0, 1], 0).into(), 1, &[], None).unwrap();
        let mut tcp = TcpStream::connect(address).unwrap();
        tcp.set_nodelay(true).unwrap();
        let mut sent = Vec::new();
        let mut wanted = Vec::new();
        for (opcode, back, len) in [(2, 2, 0), (1, 1, 5), (9, 10, 125), (2, 2, 126), (2, 2, 70_000), (8, 8, 2)] {
            let payload: Vec<u8> = (0..len).map(|at: usize| at as u8).collect();
            frame::write(&mut sent, Opcode(opcode), Some([1, 2, 3, opcode]), &payload);
            frame::write(&mut wanted, Opcode(back), None, &payload);
        }
        let head = "GET / HTTP/1.1\r\nHost: x\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        // The first frames stand right behind the request; the first hundred bytes come one by one.
        tcp.write_all(head.as_bytes()).unwrap();
        let (single, rest) = sent.split_at(400);
        for byte in single.chunks(1) {
            tcp.write_all(byte).unwrap();
        }
        tcp.write_all(rest).unwrap();
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        assert!(answer.starts_with(b"HTTP/1.1 101 "));
        assert!(answer[..end].windows(28).any(|bytes| bytes == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(answer[end..] == wanted, "{} bytes for {}", answer.len() - end, wanted.len());
    }
}
