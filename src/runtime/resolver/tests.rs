//! The resolver against a tiny name server: one UDP socket and a thread, which answers by the first label of the name.

use std::collections::HashSet;
use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use futures_util::future::{FutureExt, join_all};
use hickory_resolver::proto::op::{Message, OpCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA};
use hickory_resolver::proto::rr::{RData, Record};

use super::*;

const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

/// A folder with a hosts file and a resolv.conf of its own, removed at the end, and the queries that came.
struct Fixture {
    dir: PathBuf,
    port: u16,
    queries: Receiver<(String, RecordType)>,
}

impl Fixture {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("ringway-resolver-{}-{count}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (port, queries) = name_server();
        let fixture = Self { dir, port, queries };
        fixture.write("hosts", "");
        fixture.write("resolv.conf", "nameserver 127.0.0.1\n");
        fixture
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Puts a file in place as editors do, so that its stamp changes whatever the clock's resolution.
    fn write(&self, file: &str, text: &str) {
        let new = self.path("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path(file)).unwrap();
    }

    fn settings(&self) -> Settings {
        Settings {
            hosts: self.path("hosts"),
            resolv_conf: self.path("resolv.conf"),
            port: self.port,
            recheck_after: Duration::ZERO,
            // Long, so that a busy machine does not lose a family: only what hangs may be missing.
            resolution_delay: Duration::from_secs(30),
            ..Settings::default()
        }
    }

    fn resolver(&self) -> Resolver {
        Resolver::with_config(self.settings()).unwrap()
    }

    fn lookup(&self, name: &str) -> Result<Answer, ResolveError> {
        let resolver = self.resolver();
        on_worker(async move { resolver.lookup(name).await })
    }

    /// The names asked for so far, each once, in order.
    fn asked(&self) -> Vec<String> {
        let mut names: Vec<_> = self.queries.try_iter().map(|(name, _)| name).collect();
        names.dedup();
        names
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Runs a future as a worker does: on monoio, in another thread than the resolver's.
fn on_worker<F: Future>(future: F) -> F::Output {
    monoio::RuntimeBuilder::<monoio::FusionDriver>::new().enable_timer().build().unwrap().block_on(future)
}

fn name_server() -> (u16, Receiver<(String, RecordType)>) {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let (log, queries) = channel();
    thread::spawn(move || {
        let mut packet = [0; 2048];
        let mut seen = HashSet::new();
        loop {
            let (len, from) = socket.recv_from(&mut packet).unwrap();
            let query = Message::from_vec(&packet[..len]).unwrap();
            let (name, family) = (query.queries[0].name().to_string(), query.queries[0].query_type());
            if log.send((name.clone(), family)).is_err() {
                return; // the test is over
            }
            let again = !seen.insert((name.clone(), family));
            let silent = again && name.starts_with("once.");
            if let Some(answer) = reply(&query, &name, family).filter(|_| !silent) {
                socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
            }
        }
    });
    (port, queries)
}

/// What the name server says; `None` is silence.
fn reply(query: &Message, name: &str, family: RecordType) -> Option<Message> {
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.add_query(query.queries[0].clone());
    let v4 = (family == RecordType::A).then_some(RData::A(A(V4)));
    let v6 = (family == RecordType::AAAA).then_some(RData::AAAA(AAAA(V6)));
    let found = match name.split('.').next().unwrap() {
        "both" | "once" => v4.or(v6),
        "v4only" => v4,
        "v6only" => v6,
        "empty" => None,
        "slow6" => Some(v4?),
        "slow4" => Some(v6?),
        "failing" => {
            answer.metadata.response_code = ResponseCode::ServFail;
            None
        }
        "hanging" => return None,
        _ => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            None
        }
    };
    if let Some(data) = found {
        answer.add_answer(Record::from_rdata(query.queries[0].name().clone(), 60, data));
    }
    Some(answer)
}

fn both() -> Answer {
    Answer { v6: vec![V6], v4: vec![V4] }
}

fn only_v4() -> Answer {
    Answer { v6: vec![], v4: vec![V4] }
}

fn only_v6() -> Answer {
    Answer { v6: vec![V6], v4: vec![] }
}

#[test]
fn both_families_or_the_one_there_is() {
    let fixture = Fixture::new();
    assert_eq!(fixture.lookup("both.test"), Ok(both()));
    assert_eq!(fixture.lookup("BOTH.test."), Ok(both()));
    assert_eq!(fixture.lookup("v4only.test"), Ok(only_v4()));
    assert_eq!(fixture.lookup("v6only.test"), Ok(only_v6()));
}

#[test]
fn failures_are_told_apart() {
    let fixture = Fixture::new();
    assert_eq!(fixture.lookup("missing.test"), Err(ResolveError::NoSuchHost));
    assert_eq!(fixture.lookup("empty.test"), Err(ResolveError::NoAddress));
    assert_eq!(fixture.lookup("failing.test"), Err(ResolveError::ServerFailed));
    fixture.write("resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n");
    assert_eq!(fixture.lookup("hanging.test"), Err(ResolveError::NoAnswer));
}

#[test]
fn a_family_that_hangs_is_not_waited_for() {
    let fixture = Fixture::new();
    let resolution_delay = Settings::default().resolution_delay;
    let resolver = Resolver::with_config(Settings { resolution_delay, ..fixture.settings() }).unwrap();
    let start = Instant::now();
    assert_eq!(on_worker(resolver.lookup("slow6.test")), Ok(only_v4()));
    assert_eq!(on_worker(resolver.lookup("slow4.test")), Ok(only_v6()));
    // The query itself would have taken ten seconds.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn hanging_names_do_not_hold_up_others() {
    let fixture = Fixture::new();
    let resolver = fixture.resolver();
    let start = Instant::now();
    on_worker(async {
        let names: Vec<_> = (0..200).map(|i| format!("hanging.n{i}.test")).collect();
        let hanging = pin!(join_all(names.iter().map(|name| resolver.lookup(name))));
        // Polled first: all 200 are on their way before the one that is answered.
        let Either::Right((answer, _)) = select(hanging, pin!(resolver.lookup("both.test"))).await else {
            panic!("names without an answer came first");
        };
        assert_eq!(answer, Ok(both()));
    });
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn a_dropped_lookup_ends() {
    let fixture = Fixture::new();
    let resolver = Resolver::with_config(Settings { max_lookups: 1, ..fixture.settings() }).unwrap();
    on_worker(async {
        {
            let mut lookup = pin!(resolver.lookup("hanging.test"));
            assert!(lookup.as_mut().now_or_never().is_none());
            // Its query is out, so the task is under way.
            fixture.queries.recv_timeout(Duration::from_secs(5)).unwrap();
            assert_eq!(resolver.lookup("both.test").await, Err(ResolveError::Overloaded));
        }
        // Comes when the task ends, long before the ten seconds of its query.
        let ended = pin!(resolver.permits.acquire());
        let deadline = pin!(monoio::time::sleep(Duration::from_secs(5)));
        assert!(matches!(select(ended, deadline).await, Either::Left(_)), "the lookup goes on");
    });
}

#[test]
fn the_number_of_lookups_is_bounded() {
    let fixture = Fixture::new();
    let resolver = Resolver::with_config(Settings { max_lookups: 2, ..fixture.settings() }).unwrap();
    on_worker(async {
        let hanging = pin!(join_all(["hanging.a.test", "hanging.b.test"].map(|name| resolver.lookup(name))));
        let Either::Right((answer, _)) = select(hanging, pin!(resolver.lookup("both.test"))).await else {
            panic!("names without an answer came first");
        };
        assert_eq!(answer, Err(ResolveError::Overloaded));
    });
}

#[test]
fn names_that_no_name_server_is_asked_for() {
    let fixture = Fixture::new();
    let long = format!("{}.test", "a".repeat(64));
    let longer = ["a".repeat(60), "b".repeat(60), "c".repeat(60), "d".repeat(60), "e".repeat(60)].join(".");
    let names =
        ["", ".", "..", "a..test", ".test", "a b.test", "a\\046b.test", "ä.test", "a@b", "1", "0127.0.0.1", "x.2."];
    for name in names.into_iter().chain([&*long, &*longer]) {
        assert_eq!(fixture.lookup(name), Err(ResolveError::InvalidName), "{name}");
    }
    let loopback = Answer { v6: vec![Ipv6Addr::LOCALHOST], v4: vec![Ipv4Addr::LOCALHOST] };
    for name in ["localhost", "LOCALHOST.", "a.b.localhost"] {
        assert_eq!(fixture.lookup(name), Ok(loopback.clone()), "{name}");
    }
    assert_eq!(fixture.lookup("192.0.2.7"), Ok(only_v4()));
    assert_eq!(fixture.lookup("2001:db8::7"), Ok(only_v6()));
    assert_eq!(fixture.asked(), Vec::<String>::new());
}

#[test]
fn the_hosts_file_comes_before_dns() {
    let fixture = Fixture::new();
    let hosts = b"# caf\xe9\n192.0.2.7 Known.test known\n2001:db8::7 six\n127.0.0.2 localhost\n192.0.2.7 twice\n2001:db8::7 twice\n";
    fs::write(fixture.path("hosts"), hosts).unwrap();
    fixture.write("resolv.conf", "nameserver 127.0.0.1\nsearch corp.test\n");
    for name in ["known", "KNOWN", "known.test", "known.test."] {
        assert_eq!(fixture.lookup(name), Ok(only_v4()), "{name}");
    }
    assert_eq!(fixture.lookup("six"), Ok(only_v6()));
    assert_eq!(fixture.lookup("twice"), Ok(both()));
    assert_eq!(fixture.lookup("localhost"), Ok(Answer::from(IpAddr::from([127, 0, 0, 2]))));
    assert_eq!(fixture.asked(), Vec::<String>::new());
}

#[test]
fn search_domains_and_ndots() {
    let fixture = Fixture::new();
    let asked = |conf: &str, name: &str| {
        fixture.write("resolv.conf", conf);
        let outcome = fixture.lookup(name);
        let mut asked = fixture.asked();
        asked.sort();
        asked.dedup();
        (outcome, asked)
    };
    let conf = "nameserver 127.0.0.1\nsearch a.test b.test\n";
    assert_eq!(asked(conf, "both"), (Ok(both()), vec!["both.a.test.".into()]));
    let all = vec!["no.".into(), "no.a.test.".into(), "no.b.test.".into()];
    assert_eq!(asked(conf, "no"), (Err(ResolveError::NoSuchHost), all));
    assert_eq!(asked(conf, "both.x"), (Ok(both()), vec!["both.x.".into()]));
    assert_eq!(asked(conf, "no."), (Err(ResolveError::NoSuchHost), vec!["no.".into()]));
    // A family that this name lacks is not looked for under another one.
    assert_eq!(asked(conf, "v4only"), (Ok(only_v4()), vec!["v4only.a.test.".into()]));
    let failed = (Err(ResolveError::ServerFailed), vec!["failing.a.test.".into()]);
    assert_eq!(asked(conf, "failing"), failed);
    let conf = "nameserver 127.0.0.1\nsearch a.test\noptions ndots:2\n";
    assert_eq!(asked(conf, "both.x"), (Ok(both()), vec!["both.x.a.test.".into()]));
    assert_eq!(asked("nameserver 127.0.0.1\nsearch .\n", "both"), (Ok(both()), vec!["both.".into()]));
}

#[test]
fn changed_files_are_read_again() {
    let fixture = Fixture::new();
    fs::remove_file(fixture.path("resolv.conf")).unwrap();
    fs::remove_file(fixture.path("hosts")).unwrap();
    let resolver = fixture.resolver();
    let lookup = |name: &'static str| on_worker(resolver.lookup(name));

    assert_eq!(lookup("both.test"), Err(ResolveError::NoNameServer));
    assert!(lookup("localhost").is_ok());
    fixture.write("hosts", "192.0.2.7 both.test\n");
    assert_eq!(lookup("both.test"), Ok(only_v4()));
    fixture.write("hosts", "");
    fixture.write("resolv.conf", "nameserver 127.0.0.1\n");
    assert_eq!(lookup("both.test"), Ok(both()));
    // What cannot be used changes nothing.
    fixture.write("resolv.conf", "nonsense\n");
    assert_eq!(lookup("both.test"), Ok(both()));
    fs::remove_file(fixture.path("resolv.conf")).unwrap();
    assert_eq!(lookup("v6only.test"), Ok(only_v6()));
}

#[test]
fn answers_are_kept_for_their_ttl() {
    let fixture = Fixture::new();
    let resolver = fixture.resolver();
    for _ in 0..3 {
        assert_eq!(on_worker(resolver.lookup("once.test")), Ok(both()));
    }
}

#[test]
fn start_works_whatever_the_system_files_say() {
    let resolver = Resolver::start().unwrap();
    assert!(on_worker(resolver.lookup("localhost")).is_ok());
}
