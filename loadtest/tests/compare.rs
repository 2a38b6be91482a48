//! The comparison as a whole: what is missing, what dies, and what the report says of it.
// Helpers of tests end by a panic too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway-loadtest");

const HEAD: &str = r#"
[run]
repetitions = 2
warmup = "50ms"
duration = "200ms"
baseline = "copier"
floor = "copier"

[[scenario]]
name = "small"
kind = "throughput"
size = "64"
sessions = 5

[[scenario]]
name = "steady"
kind = "latency"
size = "0-1000"
sessions = 5
rate = 500

[[scenario]]
name = "idle"
kind = "idle"
size = "64"
sessions = 20

[[contender]]
name = "direct"
title = "no relay"
form = "direct"

[[contender]]
name = "copier"
title = "bare copier"
program = "@bin@/bare-copier"
command = ["--listen", "127.0.0.1:@port@", "--upstream", "127.0.0.1:@echo_port@"]
version = ["--version"]
"#;

fn compare(name: &str, config: &str, more: &[&str]) -> (Output, PathBuf) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("compare.toml"), config).unwrap();
    let output = Command::new(PROGRAM)
        .args(["compare", "--config"])
        .arg(folder.join("compare.toml"))
        .arg("--out")
        .arg(&folder)
        .args(more)
        .output()
        .unwrap();
    (output, folder)
}

fn json(folder: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join("report.json")).unwrap()).unwrap()
}

#[test]
fn those_who_are_there_are_measured() {
    let (output, folder) = compare("compare-good", HEAD, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report = json(&folder);
    let [small, steady, idle] = [0, 1, 2].map(|at| &report["scenarios"][at]["entries"]);
    for run in small[1]["runs"].as_array().unwrap() {
        assert!(run["cpu_us_per_message"].as_f64() > Some(0.1), "{run}");
        assert!(run["verified_bytes"].as_u64() > Some(6400), "{run}");
    }
    assert_eq!(small[1]["runs"].as_array().unwrap().len(), 2);
    assert!(small[0]["runs"][0]["cpu_us_per_message"].is_null(), "nobody relays in the direct line");
    // Both repetitions together: half of the rate's messages each.
    assert_eq!(steady[1]["latency"]["count"], 200);
    for run in steady[1]["runs"].as_array().unwrap() {
        assert!(run["cpu_us_per_message"].as_f64() > Some(0.1), "{run}");
        assert!(run["p99_drift"].as_f64() > Some(0.0), "{run}");
    }
    assert!(idle[1]["runs"][0]["pss_kib_per_session"].is_number());

    let page = fs::read_to_string(folder.join("report.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 3);
    assert!(page.contains("bare copier") && page.contains("--upstream 127.0.0.1:9000"));
    for outside in ["<script", "<link", "src=", "href=", "url("] {
        assert!(!page.contains(outside), "the page is not self-contained: {outside}");
    }
    let markdown = fs::read_to_string(folder.join("report.md")).unwrap();
    assert!(markdown.contains("| bare copier |"), "{markdown}");
}

#[test]
fn whatever_a_contender_has_started_ends_with_it() {
    let config = format!(
        "{HEAD}
[[contender]]
name = \"pair\"
title = \"two copiers\"
program = \"sh\"
command = [\"-c\", \"@bin@/bare-copier --listen 127.0.0.1:@port2@ --upstream 127.0.0.1:@echo_port@ & exec @bin@/bare-copier --listen 127.0.0.1:@port@ --upstream 127.0.0.1:@port2@\"]
"
    );
    let marked =
        config.replace("bare-copier --listen 127.0.0.1:@port2@", "bare-copier --splice --listen 127.0.0.1:@port2@");
    let (output, folder) = compare("compare-pair", &marked, &["--scenario", "small", "--only", "pair"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(json(&folder)["scenarios"][0]["entries"][0]["runs"].as_array().unwrap().len(), 2);
    let left = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.starts_with(concat!(env!("CARGO_BIN_EXE_bare-copier"), " --splice --listen")).then_some(line)
    });
    // Other tests start it with the words in another order.
    assert_eq!(left.collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn who_dies_or_is_missing_does_not_stop_the_others() {
    let config = format!(
        "{HEAD}
[[contender]]
name = \"dies\"
title = \"dies soon\"
program = \"timeout\"
command = [\"-s\", \"KILL\", \"0.15\", \"@bin@/bare-copier\", \"--listen\", \"127.0.0.1:@port@\", \"--upstream\", \"127.0.0.1:@echo_port@\"]

[[contender]]
name = \"stumbles\"
title = \"does not start\"
program = \"sh\"
command = [\"-c\", \"echo no configuration >&2; exit 3\"]

[[contender]]
name = \"missing\"
title = \"not installed\"
program = \"no-such-program-anywhere\"
"
    );
    let (output, folder) = compare("compare-bad", &config, &["--scenario", "small"]);
    assert_eq!(output.status.code(), Some(1));
    let report = json(&folder);
    let entries = &report["scenarios"][0]["entries"];
    assert_eq!(entries[1]["runs"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(entries[2]["runs"].as_array().unwrap().len(), 0);
    assert_eq!(entries[2]["errors"].as_array().unwrap().len(), 2);
    let stumbled = entries[3]["errors"][0].as_str().unwrap();
    assert!(stumbled.contains("exit status: 3") && stumbled.contains("no configuration"), "{stumbled}");
    let left_out = report["contenders"][4]["left_out"].as_str().unwrap();
    assert!(left_out.contains("no-such-program-anywhere is not installed"), "{left_out}");
    let page = fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(page.contains("What went wrong") && page.contains("is not installed"));
}

#[test]
fn a_relay_that_changes_bytes_is_not_measured() {
    // It answers every connection with the same bytes.
    let config = format!(
        "{HEAD}
[[contender]]
name = \"liar\"
title = \"liar\"
program = \"python3\"
command = [\"@dir@/liar.py\", \"@port@\"]

[contender.files]
\"liar.py\" = '''
import base64, hashlib, socket, sys, threading
listener = socket.create_server((\"127.0.0.1\", int(sys.argv[1])), backlog=64)
def serve(tcp):
    head = b\"\"
    while not head.endswith(b\"\\r\\n\\r\\n\"):
        more = tcp.recv(4096)
        if not more:
            return
        head += more
    key = [line.split(b\": \")[1] for line in head.split(b\"\\r\\n\") if line.startswith(b\"Sec-WebSocket-Key\")][0]
    accept = base64.b64encode(hashlib.sha1(key + b\"258EAFA5-E914-47DA-95CA-C5AB0DC85B11\").digest())
    tcp.sendall(b\"HTTP/1.1 101 x\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Accept: \" + accept + b\"\\r\\n\\r\\n\")
    while tcp.recv(4096):
        tcp.sendall(b\"\\x82\\x40\" + b\"A\" * 64)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
'''
"
    );
    let (output, folder) = compare("compare-liar", &config, &["--scenario", "small", "--only", "direct,liar"]);
    assert_eq!(output.status.code(), Some(1));
    let error = json(&folder)["scenarios"][0]["entries"][1]["errors"][0].as_str().unwrap().to_owned();
    assert!(error.contains("Mismatch") && error.contains("differs at byte"), "{error}");
}

#[test]
fn a_file_that_makes_no_sense() {
    let (output, _) = compare("compare-config", &HEAD.replace("rate = 500", ""), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("scenario \"steady\": latency needs a rate"));
    let (output, _) = compare("compare-name", HEAD, &["--only", "nobody"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("there are direct, copier"));
}

/// Two copiers in a row, which cost more than one; TLS passed on to a target that speaks it; and who is not there.
const MORE: &str = r#"
[groups]
others = ["pair", "missing"]
everybody = ["copier", "others"]

[[scenario]]
name = "coming and going"
kind = "storm"
size = "64"
sessions = 8
contenders = ["copier"]

[[scenario]]
name = "hops"
section = "One hop and two"
kind = "throughput"
size = "64"
sessions = 5
window = 4
contenders = ["everybody"]
baseline = "pair"

[[scenario]]
name = "encrypted"
kind = "throughput"
size = "0-70000"
sessions = 3
contenders = ["through"]

[[scenario]]
name = "nowhere"
kind = "throughput"
size = "64"
sessions = 3
contenders = ["pair"]
relay_core = 1000

[[goal]]
scenarios = ["hops"]
measure = "cpu"
of = "copier"
against = ["others"]
at_most = 0.99

[[goal]]
scenarios = ["hops"]
measure = "cpu"
of = "copier"
against = ["missing"]
at_most = 1

[[goal]]
scenarios = ["coming and going"]
measure = "setups"
of = "copier"
at_least = 1e9

[[goal]]
scenarios = ["nowhere"]
measure = "cpu"
of = "pair"
at_most = 1e9

[[contender]]
name = "pair"
title = "two copiers"
program = "sh"
command = ["-c", "@bin@/bare-copier --listen 127.0.0.1:@port2@ --upstream 127.0.0.1:@echo_port@ & exec @bin@/bare-copier --listen 127.0.0.1:@port@ --upstream 127.0.0.1:@port2@"]

[[contender]]
name = "through"
title = "bare copier, TLS from end to end"
tls = true
target_tls = true
program = "@bin@/bare-copier"
command = ["--listen", "127.0.0.1:@port@", "--upstream", "127.0.0.1:@echo_port@"]

[[contender]]
name = "missing"
title = "not installed"
program = "@bin@/no-such-program"
"#;

#[test]
fn goals_are_judged_and_come_first() {
    let config = format!("{HEAD}{MORE}").replace("duration = \"200ms\"", "duration = \"400ms\"");
    let only = ["--scenario", "hops", "--scenario", "coming", "--scenario", "encrypted", "--scenario", "nowhere"];
    let (output, folder) = compare("compare-goals", &config, &only);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "there is no core 1000: {said}");
    let report = json(&folder);
    let goals = report["goals"].as_array().unwrap();
    let verdicts: Vec<&str> = goals.iter().map(|goal| goal["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["met", "not_measured", "missed", "missed"], "{goals:#?}");
    assert_eq!((&goals[0]["against"], &goals[0]["without"][0]), (&"pair".into(), &"missing".into()));
    let ratio = goals[0]["value"]["median"].as_f64().unwrap();
    assert!((0.2..0.9).contains(&ratio), "one of two hops: {ratio}");
    assert!(said.contains("1 met, 2 missed, 1 not measured"), "{said}");

    let entry = |scenario: usize, contender: usize| &report["scenarios"][scenario]["entries"][contender];
    let storm = &entry(0, 0)["runs"][0];
    assert!(storm["sessions_per_second"].as_f64() > Some(10.0), "{storm}");
    assert!(storm["cpu_us_per_session"].as_f64() > Some(1.0), "{storm}");
    assert!(entry(2, 2)["runs"][1]["verified_bytes"].as_u64() > Some(100_000), "TLS from end to end");
    assert!(entry(3, 1)["errors"][0].as_str().unwrap().contains("core 1000"));
    assert_eq!((&entry(3, 0)["asked"], &entry(3, 1)["asked"]), (&false.into(), &true.into()));

    let page = fs::read_to_string(folder.join("report.html")).unwrap();
    let markdown = fs::read_to_string(folder.join("report.md")).unwrap();
    for text in [&page, &markdown] {
        let first = text.find("What was wanted").unwrap();
        assert!(first < text.find("What went wrong").unwrap() && first < text.find("CPU of the relay").unwrap());
        assert!(text.contains("BIN/bare-copier --listen 127.0.0.1:8001"), "the command as it was given");
        let folder = Path::new(PROGRAM).parent().unwrap().to_str().unwrap();
        assert!(!text.contains(folder) && !text.contains("/tmp/"), "a path of this machine is in the report");
    }
    assert!(page.contains("<tr class=\"met\">") && page.contains("<tr class=\"missed\">"));
    assert!(markdown.contains("### One hop and two"), "{markdown}");
}

#[test]
fn no_repetition_begins_that_would_not_end_in_time() {
    let config = HEAD.replace("repetitions = 2", "repetitions = 50\nbudget = \"1ms\"");
    let (output, folder) = compare("compare-budget", &config, &["--scenario", "small", "--only", "copier"]);
    assert_eq!(output.status.code(), Some(0));
    let report = json(&folder);
    assert_eq!(report["scenarios"][0]["entries"][0]["runs"].as_array().unwrap().len(), 1);
    assert_eq!(report["notes"][0], "there was time for 1 of 50 repetitions");
}
