//! Instruction counts of ringway's inner parts against a committed baseline. They are the same in each run, but for a
//! thousandth where a hash map has a random seed.
//!
//!     benches/count              the table
//!     benches/count --check      exit code 1 if something got slower (CI)
//!     benches/count --renew      writes benches/instructions.toml
//!
//! Needs valgrind. It shows every program the same CPU, wherever the real one has AVX2: no SHA, no AVX-512. So what
//! libraries choose at run time (simd-json, memchr, libc's memcpy, sha2) does not depend on the machine's model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // It ends by a panic where it cannot go on.
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "inputs/mod.rs"]
mod inputs;

use std::{
    collections::BTreeMap,
    env, fs,
    hint::black_box,
    process::{Command, ExitCode},
    time::{Duration, Instant, SystemTime},
};

use ringway::{
    gateway::bucket::Bucket,
    protocol::{
        frame::FrameCounts,
        session::{Place, Session, Side},
    },
};
use serde::{Deserialize, Serialize};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// By how much a count may grow. The compiler's mood is less; anything one would call slower is more.
const TOLERANCE: f64 = 0.03;
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.toml");
const RENEW: &str = "benches/count --renew";

// --- what is counted ------------------------------------------------------------------------------------------------

type Work = Box<dyn FnMut()>;

/// Each part with its name. What it prepares is not counted.
fn parts() -> Vec<(String, Work)> {
    let mut parts: Vec<(String, Work)> = Vec::new();
    for (name, payload, read) in [
        ("frame scan, 1 MiB of 64 B", 64, 64 << 10),
        ("frame scan, 1 MiB of 16 KiB", 16 << 10, 64 << 10),
        ("frame scan, 1 MiB of 64 B in reads of 1448 B", 64, 1448),
    ] {
        let stream = inputs::frames(payload, 1 << 20);
        parts.push((name.to_owned(), Box::new(move || assert!(inputs::scan(black_box(&stream), read) > 0))));
    }
    // What a lane asks for each receive.
    let (stream, now) = (inputs::frames(64, 64), Instant::now());
    let mut session = Session::new(Place::Whole, Some(Duration::from_secs(60)), now);
    let receives = move || {
        for _ in 0..1000 {
            let mut counts = FrameCounts::default();
            let received = session.received(Side::Target, black_box(&stream), &mut counts, now);
            assert_eq!(black_box(received).forward, stream.len());
            session.sent(Side::Target);
            black_box(session.step(Side::Target));
        }
    };
    parts.push(("session, 1000 receives of 64 B".to_owned(), Box::new(receives)));
    for message in inputs::messages() {
        let name = format!("connect message, {}", message.name);
        let read = move || assert_eq!(inputs::read(&mut message.text.clone()).is_some(), message.usable);
        parts.push((name, Box::new(read)));
    }
    let client = inputs::Client::new(inputs::small_message("ws://127.0.0.1:9000/").as_bytes());
    let (keys, now) = (inputs::keys(), (SystemTime::now(), Instant::now()));
    parts.push(("set-up".to_owned(), Box::new(move || drop(black_box(inputs::set_up(&client, &keys, now))))));
    let bucket = Bucket::new(1e9, u32::MAX);
    let take = move || (0..1000).for_each(|now| assert!(bucket.take(black_box(now)).is_ok()));
    parts.push(("bucket, 1000 tokens".to_owned(), Box::new(take)));
    parts
}

/// callgrind counts in here, and nowhere else.
#[inline(never)]
fn counted_part(work: &mut Work) {
    work();
    // Not the last thing that it does, or it would be a jump, and callgrind would not see it end.
    black_box(());
}

/// Does one part, in the process that callgrind watches.
fn run(name: &str) {
    let (_, mut work) = parts().into_iter().find(|(part, _)| part == name).expect("there is no such part");
    // The first time the allocator gets its pages, and lazy things are made.
    work();
    counted_part(&mut work);
}

// --- counting -------------------------------------------------------------------------------------------------------

/// benches/instructions.toml, which is for one profile only: others inline other things.
#[derive(Serialize, Deserialize)]
struct Baseline {
    made_with: MadeWith,
    instructions: BTreeMap<String, u64>,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct MadeWith {
    target: String,
    rustc: String,
    valgrind: String,
    libc: String,
}

impl MadeWith {
    fn here() -> Option<Self> {
        Some(Self {
            target: env::consts::ARCH.to_owned(),
            rustc: first_line("rustc", &["--version"]).unwrap_or_else(|| "unknown".to_owned()),
            valgrind: first_line("valgrind", &["--version"])?,
            libc: first_line("getconf", &["GNU_LIBC_VERSION"]).unwrap_or_else(|| "unknown".to_owned()),
        })
    }
}

fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
}

/// The instructions of one part.
fn count(name: &str) -> u64 {
    let file = env::temp_dir().join(format!("ringway-instructions-{}", std::process::id()));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*counted_part*"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(env::current_exe().unwrap())
        .args(["--part", name])
        // What is in the environment moves the stack, and with it what memcpy does about alignment.
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .output()
        .expect("valgrind cannot be started");
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "valgrind failed on {name:?}:\n{printed}");
    let written = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    let total = written.lines().find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")));
    let total = total.and_then(|total| total.trim().parse().ok()).unwrap_or(0);
    assert!(total > 0, "callgrind counted nothing in {name:?}:\n{printed}");
    total
}

fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    return true;
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let has = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
    if let Some(at) = arguments.iter().position(|argument| argument == "--part") {
        run(&arguments[at + 1]);
        return ExitCode::SUCCESS;
    }
    if !has("--count") {
        if has("--bench") {
            println!("instructions: benches/count counts them, built as its baseline was");
        } else {
            // `cargo test --benches`: does it work at all?
            parts().into_iter().for_each(|(_, mut work)| work());
        }
        return ExitCode::SUCCESS;
    }
    let Some(here) = MadeWith::here() else {
        eprintln!("instructions: valgrind is not installed");
        return ExitCode::from(2);
    };
    let baseline: Option<Baseline> = fs::read_to_string(BASELINE).ok().map(|text| toml::from_str(&text).unwrap());
    let counts: Vec<(String, u64)> = parts().into_iter().map(|(name, _)| (name.clone(), count(&name))).collect();
    if has("--renew") {
        renew(here, counts);
        return ExitCode::SUCCESS;
    }
    let slower = compare(&counts, baseline.as_ref());
    if !has("--check") {
        return ExitCode::SUCCESS;
    }
    judge(&slower, baseline.as_ref(), &here)
}

fn renew(here: MadeWith, counts: Vec<(String, u64)>) {
    let baseline = Baseline { made_with: here, instructions: counts.into_iter().collect() };
    let text = toml::to_string(&baseline).unwrap();
    fs::write(BASELINE, format!("# Instructions of ringway's inner parts. Written by: {RENEW}\n\n{text}")).unwrap();
    println!("instructions: {} counts written to {BASELINE}", baseline.instructions.len());
}

/// Prints the table. Gives the parts that got slower, and those that the baseline does not know.
fn compare(counts: &[(String, u64)], baseline: Option<&Baseline>) -> Vec<String> {
    let mut slower = Vec::new();
    println!("{:<50} {:>12} {:>12} {:>8}", "instructions", "baseline", "now", "change");
    for (name, now) in counts {
        let Some(before) = baseline.and_then(|baseline| baseline.instructions.get(name)) else {
            println!("{name:<50} {:>12} {now:>12} {:>8}", "-", "-");
            slower.push(format!("{name}: not in the baseline"));
            continue;
        };
        let change = *now as f64 / *before as f64 - 1.0;
        let verdict = match change {
            change if change > TOLERANCE => "SLOWER",
            change if change < -TOLERANCE => "faster: renew the baseline",
            _ => "",
        };
        println!("{name:<50} {before:>12} {now:>12} {:>+7.2}% {verdict}", change * 100.0);
        if change > TOLERANCE {
            slower.push(format!("{name}: {before} instructions before, {now} now ({:+.1}%)", change * 100.0));
        }
    }
    slower
}

fn judge(slower: &[String], baseline: Option<&Baseline>, here: &MadeWith) -> ExitCode {
    if slower.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("\ninstructions: more than {:.0}% over the baseline:", TOLERANCE * 100.0);
    slower.iter().for_each(|part| eprintln!("  {part}"));
    if let Some(made_with) = baseline.map(|baseline| &baseline.made_with).filter(|made_with| *made_with != here) {
        eprintln!("The baseline was made with other tools, which may be all that it is:");
        for (before, now) in [
            (&made_with.target, &here.target),
            (&made_with.rustc, &here.rustc),
            (&made_with.valgrind, &here.valgrind),
            (&made_with.libc, &here.libc),
        ] {
            if before != now {
                eprintln!("  {before} then, {now} now");
            }
        }
        if made_with.target != here.target || !has_avx2() {
            eprintln!("This machine cannot be compared with it, and so it does not count as a failure.");
            return ExitCode::SUCCESS;
        }
    }
    eprintln!(
        "If it is worth its price, renew the baseline in the same commit, and say there what was bought:\n  {RENEW}"
    );
    ExitCode::FAILURE
}
