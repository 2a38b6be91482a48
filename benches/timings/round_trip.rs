//! A message to the echo target and back, over loopback: through a gateway of this process, and without one.
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
};

use criterion::{Criterion, Throughput};
use ringway::{
    config::{GatewayConfig, gateway::EmbeddedAgentConfig},
    echo,
    gateway::{Files, Gateway},
    protocol::{
        frame::{self, Header, Opcode, Parsed},
        opening,
    },
    runtime::{driver::Driver, threads::Threads},
};

use crate::inputs::{self, KEY};

pub fn round_trip(criterion: &mut Criterion) {
    let mut threads = Threads::without_signals();
    let driver = Driver::choose(Default::default()).unwrap();
    let loopback: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    let echo = echo::start(loopback, &driver, &mut threads).unwrap();
    let gateway =
        Gateway::start(configuration(loopback), Files { keys: vec![key()], ..Files::default() }, &driver, &mut threads)
            .unwrap();
    let gateway = gateway.addresses[0];

    for (name, size) in [("64 B", 64), ("16 KiB", 16 << 10), ("256 KiB", 256 << 10)] {
        let mut group = criterion.benchmark_group(format!("round trip/{name}"));
        group.throughput(Throughput::Bytes(size as u64));
        for (way, mut session) in [("direct", Session::direct(echo)), ("ringway", Session::through(gateway, echo))] {
            let message = inputs::frames(size, 1);
            let payload = session.exchange(&message).to_vec();
            assert_eq!(payload.len(), size);
            group.bench_function(way, |bencher| bencher.iter(|| session.exchange(&message).len()));
            assert!(session.exchange(&message) == payload, "the echo is another one");
        }
        group.finish();
    }
}

fn configuration(address: SocketAddr) -> GatewayConfig {
    let mut config = GatewayConfig::default();
    config.runtime.workers = 1;
    config.listen.addr = vec![address];
    config.egress.allow = vec!["127.0.0.0/8".parse().unwrap()];
    let node_id = config.node_id.clone();
    config.embedded_agent = Some(EmbeddedAgentConfig { slug: "bench".into(), country: "ZZ".into(), node_id });
    config
}

fn key() -> ringway::config::KeyEntry {
    use sha2::{Digest, Sha256};
    ringway::config::KeyEntry {
        id: "bench".into(),
        sha256: Sha256::digest(KEY).into(),
        rate: 1e6,
        burst: 1_000_000,
        max_sessions: None,
        expires: None,
    }
}

/// A client's WebSocket, as little of it as the measurement needs.
struct Session {
    tcp: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

impl Session {
    fn direct(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_nodelay(true).unwrap();
        let mut session = Self { tcp, buffer: vec![0; 1 << 20], filled: 0 };
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        session.tcp.write_all(request.as_bytes()).unwrap();
        let end = loop {
            if let Some(end) = opening::head_end(&session.buffer[..session.filled], 0) {
                break end;
            }
            session.fill();
        };
        assert!(session.buffer.starts_with(b"HTTP/1.1 101 "));
        assert_eq!(session.filled, end, "nothing is said before the client has spoken");
        session.filled = 0;
        session
    }

    fn through(gateway: SocketAddr, target: SocketAddr) -> Self {
        let mut session = Self::direct(gateway);
        let mut message = Vec::new();
        let text = inputs::small_message(&format!("ws://{target}/"));
        frame::write(&mut message, Opcode::TEXT, Some([1, 2, 3, 4]), text.as_bytes());
        let answer = session.exchange(&message);
        assert!(answer.starts_with(br#"{"type":"connected""#), "{}", String::from_utf8_lossy(answer));
        session
    }

    /// Sends one frame and waits for one. Gives its payload.
    fn exchange(&mut self, message: &[u8]) -> &[u8] {
        self.tcp.write_all(message).unwrap();
        self.filled = 0;
        loop {
            self.fill();
            if let Parsed::Header(header) = Header::parse(&self.buffer[..self.filled]) {
                let end = header.header_len + header.payload_len as usize;
                if self.filled >= end {
                    assert_eq!(self.filled, end, "one message has one echo");
                    return &self.buffer[header.header_len..end];
                }
            }
        }
    }

    fn fill(&mut self) {
        let len = self.tcp.read(&mut self.buffer[self.filled..]).unwrap();
        assert!(len > 0, "the connection has ended");
        self.filled += len;
    }
}
