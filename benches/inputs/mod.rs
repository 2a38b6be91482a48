//! What the benchmarks work on: streams of frames, connect messages, requests. The same bytes in each run.
// Each benchmark uses some of it.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::time::{Instant, SystemTime};

use ringway::{
    config::KeyEntry,
    gateway::{
        http::{self, HeadReader},
        keys::{Keys, SessionOfKey},
    },
    protocol::{
        answer, connect,
        connect::ConnectRequest,
        frame::{self, FrameCounts, MAX_HEADER, Opcode, Scanner, Until},
        setup::{Event, MAX_MESSAGE, Setup},
    },
};
use sha2::{Digest, Sha256};

pub const KEY: &str = "rw_benchmarks-benchmarks-benchmarks-benchmarks";

const MASKING_KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

// --- frames ---------------------------------------------------------------------------------------------------------

/// Masked binary frames of `payload` bytes each, `bytes` of stream in all or somewhat more.
pub fn frames(payload: usize, bytes: usize) -> Vec<u8> {
    let content: Vec<u8> = (0..payload).map(|at| (at * 31) as u8).collect();
    let mut stream = Vec::new();
    while stream.len() < bytes {
        frame::write(&mut stream, Opcode::BINARY, Some(MASKING_KEY), &content);
    }
    stream
}

/// Scans a stream that comes in reads of `read` bytes, as a lane does: what is left of a header comes again in front
/// of the next read. Gives the number of frames.
pub fn scan(stream: &[u8], read: usize) -> u64 {
    let mut scanner = Scanner::default();
    let mut counts = FrameCounts::default();
    let (mut begin, mut end) = (0, 0);
    while end < stream.len() {
        end = (end + read).min(stream.len());
        begin += scanner.scan(&stream[begin..end], Until::InputEnd, &mut counts).len;
        assert!(end - begin < MAX_HEADER);
    }
    counts.iter().sum()
}

// --- connect messages -----------------------------------------------------------------------------------------------

/// A connect message and what is to become of it.
pub struct Message {
    pub name: &'static str,
    pub text: Vec<u8>,
    pub usable: bool,
}

/// From what clients send to what attackers would.
pub fn messages() -> Vec<Message> {
    let usable = |name, text: String| Message { name, text: text.into_bytes(), usable: true };
    let broken = |name, text: String| Message { name, text: text.into_bytes(), usable: false };
    let all = vec![
        usable("small", small_message("ws://127.0.0.1:9000/")),
        usable("browser headers", with_headers(12, 60)),
        usable("64 KiB of headers", with_headers(90, 660)),
        // Each of them must be told from all others.
        usable("64 KiB of short headers", with_headers(2900, 3)),
        // Every byte is written as six.
        usable("64 KiB of escapes", escapes()),
        // Nothing deeper than 1024 is read.
        broken("64 KiB of brackets", format!(r#"{{"apiKey":"{KEY}","x":{}"#, "[".repeat(65_000))),
        // Known only at the last byte.
        broken("64 KiB without an end", with_headers(90, 660).trim_end_matches('}').to_owned()),
    ];
    assert!(all.iter().all(|message| message.text.len() <= MAX_MESSAGE));
    all
}

pub fn small_message(url: &str) -> String {
    format!(r#"{{"apiKey":"{KEY}","url":"{url}","headers":{{"Origin":"https://example.com"}},"idle_timeout":60}}"#)
}

fn with_headers(count: usize, value: usize) -> String {
    let value = "v".repeat(value);
    let headers: Vec<String> = (0..count).map(|index| format!(r#""X-Header-{index}":"{value}""#)).collect();
    format!(r#"{{"apiKey":"{KEY}","url":"wss://target.example.com/stream","headers":{{{}}}}}"#, headers.join(","))
}

fn escapes() -> String {
    let value = r"\u0061".repeat(10_000);
    format!(r#"{{"apiKey":"{KEY}","url":"wss://target.example.com/stream","headers":{{"X":"{value}"}}}}"#)
}

/// As the gateway reads it: as far as the key, then the rest. The text is changed.
pub fn read(text: &mut [u8]) -> Option<ConnectRequest> {
    let message = connect::parse(text).ok()?;
    message.key(None)?;
    message.validate().ok()
}

// --- set-up ---------------------------------------------------------------------------------------------------------

/// What a client sends up to its connect message: a browser's request, and the message in a frame.
pub struct Client {
    pub request: Vec<u8>,
    pub message: Vec<u8>,
}

impl Client {
    pub fn new(text: &[u8]) -> Self {
        let request = b"GET /ws HTTP/1.1\r\nHost: relay.example.com\r\nConnection: Upgrade\r\nPragma: no-cache\r\n\
            Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
            Chrome/140.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\nOrigin: https://example.com\r\n\
            Sec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";
        let mut message = Vec::new();
        frame::write(&mut message, Opcode::TEXT, Some(MASKING_KEY), text);
        Self { request: request.to_vec(), message }
    }
}

/// [`KEY`] among 1000 others, with a bucket that nobody empties.
pub fn keys() -> Keys {
    let entry = |id: String, secret: &str| KeyEntry {
        id,
        sha256: Sha256::digest(secret).into(),
        rate: 1e9,
        burst: u32::MAX,
        max_sessions: None,
        expires: None,
    };
    let others = (0..1000).map(|index| entry(format!("other-{index}"), &format!("rw_other-{index}")));
    Keys::new(others.chain([entry("benchmarks".to_owned(), KEY)]).collect())
}

/// All that a gateway decides for a session before it dials, and what it says, without sockets. Gives the bytes that
/// go to the client.
pub fn set_up(client: &Client, keys: &Keys, now: (SystemTime, Instant)) -> (usize, SessionOfKey) {
    let mut input = client.request.clone();
    let request = HeadReader::default().next(&mut input).unwrap().unwrap();
    assert!(request.wants_websocket() && request.is_version_13());
    let upgraded = http::switching_protocols(&request.websocket_accept().unwrap());
    input.extend_from_slice(&client.message);
    let Event::Message(mut text) = Setup::default().next(&mut input) else { panic!("there is no message") };
    let message = connect::parse(&mut text).unwrap();
    let key = keys.authenticate(message.key(None), now.0).unwrap();
    message.validate().unwrap();
    let session = keys.admit(&key, now.1).unwrap();
    let connected = answer::connected("benchmarks", None);
    (upgraded.len() + connected.len(), session)
}
