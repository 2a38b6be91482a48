//! 2,000 sessions at once through the real binary: each exchanges 100 messages of random sizes with an echo target,
//! and every byte that comes back is compared. Afterwards the gateway has no more open files than before, and its
//! memory is back.
//!
//! The client and the target are here, raw and on one thread each: what is under load is the gateway.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // A test ends by a panic.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use sha1::{Digest as _, Sha1};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;

const SESSIONS: usize = 2_000;
const MESSAGES: usize = 100;
const PAYLOAD_MAX_BYTES: usize = 64 * 1024;
const RSS_SLACK_KIB: u64 = 16 * 1024;
const KEY: &str = "many-sessions-key";
/// SHA-256 of [`KEY`].
const KEY_SHA256: &str = "b94c2cc36063b04c950bb0b9d8b73ca8cba58a9a614d2a81c46cf880fc3e2ef1";

/// The drivers take turns: both at once would measure each other.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn two_thousand_sessions_on_io_uring() {
    run("io_uring");
}

#[test]
fn two_thousand_sessions_on_epoll() {
    run("epoll");
}

fn run(driver: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    raise_nofile();
    let target = start_target();
    let mut gateway = Gateway::start(driver);
    let pool = Arc::new(random_bytes(0x5eed, (1 << 20) + PAYLOAD_MAX_BYTES));

    // The first sessions fill pools and touch code: the baseline comes behind them.
    exchange(gateway.address, target, &pool, 200, 5);
    gateway.settle(usize::MAX, u64::MAX);
    let (files, rss_kib) = (gateway.files(), gateway.rss_kib());

    let began = Instant::now();
    let (bytes, peak_kib) = exchange_watched(&gateway, target, &pool);
    eprintln!(
        "{driver}: {SESSIONS} sessions x {MESSAGES} messages, {} MiB each way in {:.1?}; RSS {rss_kib} KiB before, {peak_kib} KiB at most",
        bytes >> 20,
        began.elapsed(),
    );

    gateway.settle(files, rss_kib + RSS_SLACK_KIB);
    assert!(gateway.files() <= files, "{} open files, {files} before", gateway.files());
    assert!(gateway.rss_kib() <= rss_kib + RSS_SLACK_KIB, "{} KiB of memory, {rss_kib} KiB before", gateway.rss_kib());
    gateway.stop();
}

fn exchange_watched(gateway: &Gateway, target: SocketAddr, pool: &Arc<Vec<u8>>) -> (u64, u64) {
    let (address, pool) = (gateway.address, Arc::clone(pool));
    let load = std::thread::spawn(move || exchange(address, target, &pool, SESSIONS, MESSAGES));
    let mut peak_kib = 0;
    while !load.is_finished() {
        peak_kib = peak_kib.max(gateway.rss_kib());
        std::thread::sleep(Duration::from_millis(100));
    }
    (load.join().expect("the load failed"), peak_kib)
}

// --- the client ---------------------------------------------------------------------------------------------------

/// Opens `sessions`, waits until all are connected, then lets each exchange its messages. Gives the bytes sent.
fn exchange(gateway: SocketAddr, target: SocketAddr, pool: &Arc<Vec<u8>>, sessions: usize, messages: usize) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let everyone = Arc::new(Barrier::new(sessions));
        let tasks: Vec<_> = (0..sessions)
            .map(|number| {
                let (pool, everyone) = (Arc::clone(pool), Arc::clone(&everyone));
                tokio::spawn(async move {
                    let limit = Duration::from_secs(240);
                    match tokio::time::timeout(limit, session(gateway, target, &pool, &everyone, number, messages))
                        .await
                    {
                        Ok(Ok(bytes)) => bytes,
                        Ok(Err(error)) => panic!("session {number}: {error}"),
                        Err(_) => panic!("session {number}: not done within {limit:?}"),
                    }
                })
            })
            .collect();
        let mut bytes = 0;
        for task in tasks {
            bytes += task.await.expect("a session failed");
        }
        bytes
    })
}

async fn session(
    gateway: SocketAddr,
    target: SocketAddr,
    pool: &[u8],
    everyone: &Barrier,
    number: usize,
    messages: usize,
) -> io::Result<u64> {
    let stream = TcpStream::connect(gateway).await?;
    stream.set_nodelay(true)?;
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {gateway}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    write_all(&stream, request.as_bytes()).await?;
    let head = read_head(&stream).await?;
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));

    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1));
    let message = format!(r#"{{"apiKey":"{KEY}","url":"ws://{target}/"}}"#);
    write_all(&stream, &frame(0x1, message.as_bytes(), random.mask())).await?;
    let mut answer = [0; 2];
    read_exactly(&stream, &mut answer).await?;
    assert!(answer[0] == 0x81 && answer[1] < 126, "{answer:?}");
    let mut json = vec![0; usize::from(answer[1])];
    read_exactly(&stream, &mut json).await?;
    assert!(json.starts_with(br#"{"type":"connected""#), "{}", String::from_utf8_lossy(&json));

    everyone.wait().await;
    let mut sent_bytes = 0;
    for _ in 0..messages {
        let size = random.below(PAYLOAD_MAX_BYTES + 1);
        let at = random.below(pool.len() - size + 1);
        // The target gives back the frame as it came, mask and all: nobody on the way may mind.
        let made = masked_as_is(0x2, &pool[at..at + size], random.mask());
        write_all(&stream, &made).await?;
        expect(&stream, &made).await?;
        sent_bytes += made.len() as u64;
    }
    let close = frame(0x8, &1000_u16.to_be_bytes(), random.mask());
    write_all(&stream, &close).await?;
    expect(&stream, &close).await?;
    let mut rest = [0; 16];
    let count = read_some(&stream, &mut rest).await?;
    assert_eq!(count, 0, "{:?} behind the Close", &rest[..count]);
    Ok(sent_bytes)
}

/// The next bytes are exactly these.
async fn expect(stream: &TcpStream, wanted: &[u8]) -> io::Result<()> {
    let mut buffer = vec![0; wanted.len().min(64 * 1024)];
    let mut at = 0;
    while at < wanted.len() {
        let limit = buffer.len().min(wanted.len() - at);
        let count = read_some(stream, &mut buffer[..limit]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        assert!(buffer[..count] == wanted[at..at + count], "bytes differ behind {at} of {}", wanted.len());
        at += count;
    }
    Ok(())
}

// --- the target -----------------------------------------------------------------------------------------------------

/// Echoes bytes, and closes TCP behind the first Close frame.
fn start_target() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    // What goes wrong here the client sees.
                    let _ = echo(stream).await;
                });
            }
        });
    });
    address
}

async fn echo(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let head = read_head(&stream).await?;
    let head = String::from_utf8_lossy(&head);
    let key = head
        .lines()
        .find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim().to_owned())
        })
        .expect("a request without Sec-WebSocket-Key");
    let digest = Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    let accept = base64::engine::general_purpose::STANDARD.encode(digest);
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    write_all(&stream, answer.as_bytes()).await?;

    let mut frames = Frames::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = read_some(&stream, &mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        write_all(&stream, &buffer[..count]).await?;
        if frames.closed_by(&buffer[..count]) {
            return Ok(());
        }
    }
}

/// Finds the end of the first Close in a stream of masked frames.
#[derive(Default)]
struct Frames {
    header: Vec<u8>,
    payload_left: usize,
    closing: bool,
}

impl Frames {
    fn closed_by(&mut self, mut data: &[u8]) -> bool {
        loop {
            let skipped = self.payload_left.min(data.len());
            self.payload_left -= skipped;
            data = &data[skipped..];
            if self.closing && self.payload_left == 0 {
                return true;
            }
            let Some((&byte, rest)) = data.split_first() else { return false };
            data = rest;
            self.header.push(byte);
            let form = self.header.get(1).map_or(0, |second| second & 0x7f);
            let whole = match form {
                127 => 14,
                126 => 8,
                _ => 6,
            };
            if self.header.len() < whole {
                continue;
            }
            self.payload_left = match form {
                127 => self.header[2..10].iter().fold(0, |sum, &b| (sum << 8) | usize::from(b)),
                126 => (usize::from(self.header[2]) << 8) | usize::from(self.header[3]),
                short => usize::from(short),
            };
            self.closing = self.header[0] & 0x0f == 0x8;
            self.header.clear();
        }
    }
}

// --- the gateway ------------------------------------------------------------------------------------------------------

struct Gateway {
    child: Child,
    address: SocketAddr,
    folder: PathBuf,
}

impl Gateway {
    fn start(driver: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("ringway-many-{driver}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
        write(
            "keys.toml",
            format!("[[key]]\nid = \"many\"\nsha256 = \"{KEY_SHA256}\"\nrate = 100000.0\nburst = 100000\n"),
        );
        write(
            "gateway.toml",
            format!(
                "node_id = \"many\"\n[runtime]\nworkers = 2\ndriver = \"{driver}\"\n[listen]\naddr = [\"127.0.0.1:0\"]\n\
                 [keys]\nfile = \"keys.toml\"\n[embedded_agent]\nslug = \"de1\"\ncountry = \"DE\"\n[egress]\nallow = [\"127.0.0.0/8\"]\n"
            ),
        );
        let binary = std::env::var("RINGWAY_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_ringway").to_owned());
        let mut child = Command::new(binary)
            .args(["gateway", "-c"])
            .arg(folder.join("gateway.toml"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary does not start");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("the gateway ended before it listened").unwrap();
            eprintln!("gateway: {line}");
            if let Some(address) = line.strip_prefix("listening on ").and_then(|rest| rest.strip_suffix(" (public)")) {
                break address.parse().unwrap();
            }
        };
        // A pipe that nobody empties would stop the log.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = writeln!(io::stderr(), "gateway: {line}");
            }
        });
        Self { child, address, folder }
    }

    /// Waits until it holds so few files and so little memory, at most 30 s, at least until nothing changes any more.
    fn settle(&self, files: usize, rss_kib: u64) {
        let mut last = (0, 0);
        for _ in 0..60 {
            std::thread::sleep(Duration::from_millis(500));
            let now = (self.files(), self.rss_kib());
            if now.0 <= files && now.1 <= rss_kib && now.0 == last.0 && now.1.abs_diff(last.1) < 256 {
                return;
            }
            last = now;
        }
    }

    fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// SIGTERM, and exit code 0.
    fn stop(&mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        for _ in 0..100 {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the gateway still runs 10 s after SIGTERM");
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

// --- helpers ------------------------------------------------------------------------------------------------------------

fn raise_nofile() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}

async fn read_some(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.readable().await?,
            done => return done,
        }
    }
}

async fn read_exactly(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    let mut at = 0;
    while at < buffer.len() {
        match read_some(stream, &mut buffer[at..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => at += count,
        }
    }
    Ok(())
}

/// Up to the empty line. Neither side sends more before it was answered.
async fn read_head(stream: &TcpStream) -> io::Result<Vec<u8>> {
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    while !head.ends_with(b"\r\n\r\n") {
        match read_some(stream, &mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => head.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(head)
}

async fn write_all(stream: &TcpStream, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match stream.try_write(data) {
            Ok(count) => data = &data[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn frame(opcode: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let masked: Vec<u8> = payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    masked_as_is(opcode, &masked, mask)
}

/// A masked frame whose payload is already what goes over the wire.
fn masked_as_is(opcode: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut made = Vec::with_capacity(payload.len() + 14);
    made.push(0x80 | opcode);
    match payload.len() {
        short @ 0..=125 => made.push(0x80 | short as u8),
        medium @ 126..=0xffff => {
            made.push(0x80 | 126);
            made.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            made.push(0x80 | 127);
            made.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    made.extend_from_slice(&mask);
    made.extend_from_slice(payload);
    made
}

/// xorshift64*: the same sizes and bytes in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    fn mask(&mut self) -> [u8; 4] {
        ((self.next() >> 32) as u32).to_be_bytes()
    }
}

fn random_bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..count.div_ceil(8)).flat_map(|_| random.next().to_be_bytes()).take(count).collect()
}
