//! The ruler checked: what goes wrong between the load and the echo is noticed, counted and shown.
//!
//! A small TCP proxy between the two flips a byte, loses one, delays, stalls or refuses.
// Helpers of tests end by a panic too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use ringway::protocol::{
    frame::{self, Header, Opcode, Parsed},
    opening,
};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway-loadtest");

// --- without a fault ------------------------------------------------------------------------------------------------

#[test]
fn all_is_well_without_a_fault() {
    let proxy = Proxy::start(Fault::None);
    for command in ["latency", "throughput", "storm", "soak"] {
        let mut arguments = vec![command, "--size", "0-3000", "--duration", "600ms", "--warmup", "100ms", "-n", "20"];
        if command == "soak" {
            arguments.extend(["--hours", "0.0002", "--interval", "200ms"]);
        }
        let (code, report) = proxy.load(&arguments);
        assert_eq!(code, 0, "{report}");
        assert_eq!(report["ok"], true);
        assert_eq!(report["failures"], serde_json::json!({}), "{report}");
        assert!(report["verified_messages"].as_u64() > Some(20), "{report}");
    }
}

#[test]
fn the_percentile_curve_rises_to_the_maximum_and_counts_every_message() {
    let proxy = Proxy::start(Fault::None);
    let (_, report) = proxy.load(&["latency", "--rate", "500", "--duration", "2s", "--warmup", "100ms"]);
    let messages = report["messages"].as_u64().unwrap();
    // The clock decides how many messages there are, nothing else.
    assert_eq!(messages, 1000);
    let curve = report["latency"]["curve"].as_array().unwrap();
    assert!(curve.is_sorted_by_key(|point| (point["us"].as_f64().unwrap() * 1e3) as u64), "{curve:?}");
    let last = curve.last().unwrap();
    assert_eq!((last["percentile"].as_f64(), last["count"].as_u64()), (Some(100.0), Some(messages)));
}

#[test]
fn idle_reports_the_memory_of_sessions_that_are_held() {
    let echo = Echo::start(&[]);
    let pid = echo.child.id().to_string();
    let (code, report) = load(&[
        "idle",
        "--direct",
        &format!("ws://{}", echo.address),
        "-n",
        "500",
        "--duration",
        "300ms",
        "--relay-pid",
        &pid,
        "--touch",
    ]);
    assert_eq!(code, 0, "{report}");
    assert!(report["relay"]["pss_before_kib"].as_u64() > Some(100), "{report}");
    assert_eq!(report["verified_messages"], 500);
}

#[test]
fn tls_is_verified_against_its_roots() {
    let ca = concat!(env!("CARGO_TARGET_TMPDIR"), "/loadtest-ca.pem");
    let echo = Echo::start(&["--tls", "--write-ca", ca]);
    let url = format!("wss://{}", echo.address);
    let run = |more: &[&str]| {
        let mut arguments =
            vec!["throughput", "--direct", &url, "-n", "5", "--duration", "300ms", "--size", "0-100KiB"];
        arguments.extend(more);
        load(&arguments)
    };
    let (code, report) = run(&["--ca-file", ca]);
    assert_eq!(code, 0, "{report}");
    assert!(report["stages"].as_array().unwrap().iter().any(|stage| stage["stage"] == "tls"), "{report}");
    assert_eq!(run(&["--insecure"]).0, 0);
    let (code, report) = run(&[]);
    assert_eq!(code, 1);
    assert_eq!(report["failures"]["tls"]["count"], 5, "{report}");
}

// --- bytes ----------------------------------------------------------------------------------------------------------

#[test]
fn a_flipped_byte_is_noticed_on_either_way() {
    for fault in [Fault::Flip { back: true, at: 5_000 }, Fault::Flip { back: false, at: 5_000 }] {
        let proxy = Proxy::start(fault);
        let (code, report) = proxy.load(&["throughput", "-n", "1", "--size", "1000", "--duration", "500ms"]);
        assert_eq!(code, 1, "{report}");
        assert_eq!(report["ok"], false);
        assert_eq!(report["failures"]["mismatch"]["count"], 1, "{report}");
        let example = report["failures"]["mismatch"]["examples"][0].as_str().unwrap();
        assert!(example.contains("message 4 differs at byte"), "{example}");
    }
}

#[test]
fn a_lost_byte_is_noticed() {
    for (command, size) in [("throughput", "1000"), ("latency", "64"), ("latency", "100KiB")] {
        let proxy = Proxy::start(Fault::Lose { at: 5_000 });
        let (code, report) =
            proxy.load(&[command, "-n", "1", "--size", size, "--duration", "1s", "--warmup", "0s", "--grace", "500ms"]);
        assert_eq!(code, 1, "{command} {size}: {report}");
        let failures = report["failures"].as_object().unwrap();
        let total: u64 = failures.values().map(|tally| tally["count"].as_u64().unwrap()).sum();
        assert_eq!(total, 1, "{report}");
    }
}

#[test]
fn echoes_that_never_come_are_noticed_and_not_left_out_of_the_latencies() {
    let proxy = Proxy::start(Fault::Swallow { at: 5_000 });
    let (code, report) = proxy.load(&[
        "latency",
        "-n",
        "1",
        "--rate",
        "200",
        "--size",
        "100",
        "--duration",
        "1s",
        "--warmup",
        "0s",
        "--grace",
        "500ms",
    ]);
    assert_eq!(code, 1, "{report}");
    assert_eq!(report["failures"]["unanswered"]["count"], 1, "{report}");
    assert!(report["unanswered"].as_u64() > Some(100), "{report}");
    assert_eq!(report["latency"]["count"], 200);
    assert!(report["latency"]["p50_us"].as_f64() > Some(500_000.0), "{report}");
}

// --- time -----------------------------------------------------------------------------------------------------------

#[test]
fn a_delay_shows_in_the_percentiles() {
    // Every 20th piece that comes back, so 5 % of the messages.
    let proxy = Proxy::start(Fault::Delay { every: 20, by: Duration::from_millis(60) });
    let (code, report) = proxy.load(&["latency", "-n", "1", "--rate", "10", "--duration", "6s", "--warmup", "0s"]);
    assert_eq!(code, 0, "{report}");
    let latency = |name: &str| report["latency"][name].as_f64().unwrap();
    assert!(latency("p99_us") > 60_000.0, "{report}");
    assert!(latency("p50_us") < 60_000.0, "{report}");
}

#[test]
fn a_stall_shows_in_every_message_that_it_hit() {
    let stall = Fault::Stall { after: Duration::from_millis(1_000), length: Duration::from_millis(1_000) };
    let proxy = Proxy::start(stall);
    let (code, report) = proxy.load(&["latency", "-n", "1", "--rate", "200", "--duration", "3s", "--warmup", "0s"]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["messages"], 600);
    // A third of the messages were due in that second, and waited half a second on average.
    assert!(report["latency"]["p90_us"].as_f64() > Some(500_000.0), "{report}");
    assert!(report["latency"]["max_us"].as_f64() > Some(900_000.0), "{report}");

    // A closed loop sends one message in that second: it has to say that it hides the others.
    let proxy = Proxy::start(stall);
    let (_, report) = proxy.load(&["throughput", "-n", "1", "--duration", "3s", "--warmup", "0s"]);
    assert!(report["latency"]["p90_us"].as_f64() < Some(500_000.0), "{report}");
    assert_eq!(report["latency_from"], "sent");
}

#[test]
fn a_full_socket_does_not_stop_the_clock() {
    // While nobody reads, messages fill the sockets and then cannot even be sent: they are due nevertheless.
    let proxy = Proxy::start(Fault::Deaf { after: Duration::from_millis(500), length: Duration::from_millis(2_000) });
    let (code, report) =
        proxy.load(&["latency", "-n", "1", "--rate", "50", "--size", "512KiB", "--duration", "3s", "--warmup", "0s"]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["messages"], 150);
    assert!(report["latency"]["p90_us"].as_f64() > Some(1_000_000.0), "{report}");
    // That is the peer's doing, not the generator's.
    assert!(report["own"]["schedule_lag"]["p50_us"].as_f64() < Some(1_000_000.0), "{report}");
}

// --- sessions -------------------------------------------------------------------------------------------------------

#[test]
fn refused_sessions_are_counted_and_the_others_go_on() {
    let proxy = Proxy::start(Fault::Refuse { first: 2, count: 3 });
    let (code, report) =
        proxy.load(&["latency", "-n", "10", "--duration", "500ms", "--concurrency", "1", "--threads", "1"]);
    assert_eq!(code, 1, "{report}");
    assert_eq!(report["failures"]["lost"]["count"], 3, "{report}");
    assert_eq!(report["sessions_opened"], 7);
    assert!(report["verified_messages"].as_u64() > Some(100), "{report}");
}

#[test]
fn nobody_listens() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let started = Instant::now();
    let (code, report) = load(&["latency", "--direct", &format!("ws://{free}"), "-n", "4", "--duration", "60s"]);
    assert_eq!(code, 1);
    assert_eq!(report["failures"]["connect"]["count"], 4, "{report}");
    assert!(started.elapsed() < Duration::from_secs(20), "it waited for nothing");
}

#[test]
fn a_session_that_does_not_open_in_time_has_failed() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", silent.local_addr().unwrap());
    let (code, report) = load(&["latency", "--direct", &url, "-n", "3", "--timeout", "300ms"]);
    assert_eq!(code, 1);
    assert_eq!(report["failures"]["timeout"]["count"], 3, "{report}");
    assert!(report["failures"]["timeout"]["examples"][0].as_str().unwrap().contains("the answer to the upgrade"));
}

#[test]
fn a_connection_that_ends_in_the_middle_is_noticed() {
    let proxy = Proxy::start(Fault::Cut { at: 5_000 });
    let (code, report) = proxy.load(&["throughput", "-n", "1", "--size", "1000", "--duration", "500ms"]);
    assert_eq!(code, 1, "{report}");
    assert_eq!(report["failures"]["lost"]["count"], 1, "{report}");
    assert!(report["failures"]["lost"]["examples"][0].as_str().unwrap().contains("in the middle of a frame"));
}

// --- through a relay ------------------------------------------------------------------------------------------------

#[test]
fn through_a_relay_that_speaks_the_connect_message() {
    let echo = Echo::start(&[]);
    let gateway = gateway(echo.address, r#"{"type":"connected","status":101,"node_id":"n"}"#);
    let url = format!("ws://{gateway}");
    let target = format!("ws://{}/", echo.address);
    let (code, report) =
        load(&["throughput", "--gateway", &url, "--key", "rw_secret", "-n", "5", "--duration", "300ms", &target]);
    assert_eq!(code, 0, "{report}");
    assert!(report["stages"].as_array().unwrap().iter().any(|stage| stage["stage"] == "connected"), "{report}");
    assert!(!report.to_string().contains("rw_secret"));
}

#[test]
fn what_a_relay_refuses_is_repeated() {
    let echo = Echo::start(&[]);
    let refusal = r#"{"type":"error","message":"Invalid or missing API key","code":"invalid_key"}"#;
    let url = format!("ws://{}", gateway(echo.address, refusal));
    let (code, report) = load(&["latency", "--gateway", &url, "--key", "rw_secret", "-n", "2", "ws://127.0.0.1:1/"]);
    assert_eq!(code, 1);
    assert_eq!(report["failures"]["refused"]["count"], 2, "{report}");
    let example = report["failures"]["refused"]["examples"][0].as_str().unwrap();
    assert!(example.contains("Invalid or missing API key (invalid_key)"), "{example}");
    assert!(!report.to_string().contains("rw_secret"));
}

#[test]
fn too_few_open_files_are_told_in_numbers_before_anything_is_opened() {
    let run = |limit: &str, arguments: &[&str]| {
        let script = format!("ulimit -n {limit}; exec \"$0\" \"$@\"");
        let output = Command::new("sh").args(["-c", &script, PROGRAM]).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // Nobody listens there: whoever tries to open a session says something else.
    let (code, said) = run("200", &["latency", "--direct", "ws://127.0.0.1:1", "-n", "500"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("500 sessions are 564 open files for the load generator"), "{said}");
    assert!(said.contains("it may have 200; at most 136 sessions"), "{said}");

    let mut relay = Command::new("sh").args(["-c", "ulimit -n 300; exec sleep 60"]).spawn().unwrap();
    let pid = relay.id().to_string();
    // The limit is there once sleep is.
    while fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() != "sleep" {
        thread::yield_now();
    }
    let arguments =
        ["idle", "--gateway", "ws://127.0.0.1:1", "--key", "k", "--relay-pid", &pid, "-n", "200", "ws://127.0.0.1:1"];
    let (code, said) = run("2000", &arguments);
    relay.kill().unwrap();
    relay.wait().unwrap();
    assert_eq!(code, Some(1));
    assert!(said.contains("200 sessions are 464 open files for the relay (2 each"), "{said}");
    assert!(said.contains("it may have 300; at most 118 sessions"), "{said}");
}

#[test]
fn usage_errors_have_their_own_exit_code() {
    for arguments in
        [&["latency"][..], &["latency", "--direct", "ws://a", "--size", "x"], &["storm", "--gateway", "ws://a"]]
    {
        let output = Command::new(PROGRAM).args(arguments).env_remove("RINGWAY_KEY").output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    let output = Command::new(PROGRAM).args(["latency", "--direct", "http://a"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the scheme must be ws or wss"));
}

// --- the parts ------------------------------------------------------------------------------------------------------

/// Runs the load generator. Its exit code and its report.
fn load(arguments: &[&str]) -> (i32, Value) {
    let mut command = Command::new(PROGRAM);
    command.arg(arguments[0]).args(&arguments[1..]).arg("--json").stdin(Stdio::null());
    let output = command.output().unwrap();
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().expect("ended by a signal"), report)
}

/// The echo target, as its own process.
struct Echo {
    child: Child,
    address: SocketAddr,
}

impl Echo {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["echo", "--addr", "127.0.0.1:0", "--threads", "1"])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").expect(&line).parse().unwrap();
        Self { child, address }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the proxy does to each connection. Bytes count from its beginning, handshake included.
#[derive(Clone, Copy)]
enum Fault {
    None,
    Flip {
        back: bool,
        at: usize,
    },
    /// Of what comes back.
    Lose {
        at: usize,
    },
    /// All that comes back from here on.
    Swallow {
        at: usize,
    },
    /// Ends both ways.
    Cut {
        at: usize,
    },
    Delay {
        every: usize,
        by: Duration,
    },
    /// Holds what comes back.
    Stall {
        after: Duration,
        length: Duration,
    },
    /// Does not read what is sent.
    Deaf {
        after: Duration,
        length: Duration,
    },
    /// Closes connections at once, counted from 0.
    Refuse {
        first: usize,
        count: usize,
    },
}

struct Proxy {
    address: SocketAddr,
    _echo: Echo,
}

impl Proxy {
    fn start(fault: Fault) -> Self {
        let echo = Echo::start(&[]);
        let target = echo.address;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                let client = client.unwrap();
                if let Fault::Refuse { first, count } = fault
                    && (first..first + count).contains(&number)
                {
                    continue;
                }
                let server = TcpStream::connect(target).unwrap();
                for stream in [&client, &server] {
                    stream.set_nodelay(true).unwrap();
                }
                let (client2, server2) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || copy(client, server, false, fault));
                thread::spawn(move || copy(server2, client2, true, fault));
            }
        });
        Self { address, _echo: echo }
    }

    fn load(&self, arguments: &[&str]) -> (i32, Value) {
        let url = format!("ws://{}", self.address);
        let mut all = arguments.to_vec();
        all.extend(["--direct", &url]);
        load(&all)
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, back: bool, fault: Fault) {
    let started = Instant::now();
    let mut held = false;
    let mut buffer = vec![0; 64 * 1024];
    let (mut passed, mut pieces) = (0, 0);
    loop {
        if let Fault::Deaf { after, length } = fault
            && !back
            && !held
            && started.elapsed() >= after
        {
            held = true;
            thread::sleep(length);
        }
        let Ok(len @ 1..) = from.read(&mut buffer) else { break };
        let mut piece = buffer[..len].to_vec();
        let hit = |at: usize| (passed..passed + len).contains(&at);
        match fault {
            Fault::Flip { back: way, at } if way == back && hit(at) => piece[at - passed] ^= 0x20,
            Fault::Lose { at } if back && hit(at) => drop(piece.remove(at - passed)),
            Fault::Swallow { at } if back && passed + len > at => piece.truncate(at.saturating_sub(passed)),
            Fault::Cut { at } if back && hit(at) => {
                let _ = to.write_all(&piece[..at - passed]);
                break;
            }
            Fault::Delay { every, by } if back => {
                pieces += 1;
                if pieces % every == 0 {
                    thread::sleep(by);
                }
            }
            Fault::Stall { after, length } if back && !held && started.elapsed() >= after => {
                held = true;
                thread::sleep(length);
            }
            _ => {}
        }
        passed += len;
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Takes a connect message, answers it, and passes bytes on to the target.
fn gateway(target: SocketAddr, answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let sessions = Arc::new(AtomicUsize::new(0));
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            sessions.fetch_add(1, SeqCst);
            thread::spawn(move || serve(client, target, answer));
        }
    });
    address
}

fn serve(mut client: TcpStream, target: SocketAddr, answer: &str) -> io::Result<()> {
    client.set_nodelay(true)?;
    let head = read_head(&mut client)?;
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
    let accept = opening::accept_for(key.as_bytes());
    write!(
        client,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )?;
    let mut message = [0; 1024];
    let len = client.read(&mut message)?;
    let Parsed::Header(header) = Header::parse(&message[..len]) else { panic!("no frame") };
    let mut json = message[header.header_len..len].to_vec();
    frame::mask(&mut json, header.masking_key.unwrap(), 0);
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["apiKey"], "rw_secret");

    let mut server = TcpStream::connect(target)?;
    server.set_nodelay(true)?;
    write!(server, "GET / HTTP/1.1\r\nHost: x\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")?;
    read_head(&mut server)?;
    let mut out = Vec::new();
    // A ping before it must not confuse anybody.
    frame::write(&mut out, Opcode::PING, None, b"ping");
    frame::write(&mut out, Opcode::TEXT, None, answer.as_bytes());
    client.write_all(&out)?;
    let (client2, server2) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || copy(server2, client2, true, Fault::None));
    // The pong is ours, not the target's.
    let mut pong = [0; 10];
    client.read_exact(&mut pong)?;
    assert_eq!(pong[0], 0x8A);
    copy(client, server, false, Fault::None);
    Ok(())
}

fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8(head).unwrap())
}
