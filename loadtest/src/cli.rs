//! The command line.
use std::{
    fs,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser, Subcommand};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
};

use crate::{
    compare, echo,
    engine::{
        Plan, Work,
        payload::Payloads,
        route::{Form, Route, Wanted},
    },
    load,
};

/// A measurement or a check failed. What is wrong with the command line, clap answers with 2.
pub const FAILED: u8 = 1;

/// Load for WebSocket relays. Every byte that comes back is verified.
#[derive(Debug, Parser)]
#[command(name = "ringway-loadtest", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  ringway-loadtest echo --addr 127.0.0.1:9000 &
  ringway-loadtest latency --direct ws://127.0.0.1:9000 --rate 10000 --sessions 100
  ringway-loadtest latency --gateway ws://127.0.0.1:8080/ws --key rw_... ws://127.0.0.1:9000
  RINGWAY_KEY=rw_... ringway-loadtest idle --gateway ws://127.0.0.1:8080 -n 10000 --relay-pid 4711 ws://127.0.0.1:9000

Exit codes: 0 every session and every byte was as it should be; 1 not so, or it could not be measured; 2 usage";

#[derive(Debug, Subcommand)]
enum Command {
    /// Latency at a fixed rate, from the time at which each message was meant to be sent
    #[command(after_help = "\
Open loop: messages are due at fixed times, spread evenly over the sessions, whatever comes back. A message that a slow
relay keeps from being sent in time counts from when it was due, so that a stall shows in every message that it hit.

  ringway-loadtest latency --direct ws://127.0.0.1:9000 --rate 10000 --sessions 100 --json out.json")]
    Latency {
        #[command(flatten)]
        load: LoadArgs,
        /// Messages a second, over all sessions
        #[arg(long, default_value_t = 1000.0, value_parser = positive)]
        rate: f64,
    },
    /// As many messages as go through, with so many on their way on each session
    #[command(after_help = "\
Closed loop: a message goes out when one came back. Its latencies say what such a client sees, and hide what a stall
would have done to others; for that there is `latency`.

  ringway-loadtest throughput --direct ws://127.0.0.1:9000 --sessions 100 --size 16KiB --window 4")]
    Throughput {
        #[command(flatten)]
        load: LoadArgs,
        /// Messages on their way on each session
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
        window: u64,
    },
    /// Sessions opened and closed, with the time that each stage took
    #[command(after_help = "\
  ringway-loadtest storm --direct ws://127.0.0.1:9000 --sessions 50
  ringway-loadtest storm --gateway ws://127.0.0.1:8080 --key rw_... --rate 500 --messages 3 ws://127.0.0.1:9000

--sessions is how many may be there at a time. Without --rate each is opened anew as soon as it has closed.")]
    Storm {
        #[command(flatten)]
        load: LoadArgs,
        /// Sessions to open each second; default: as fast as --sessions allows
        #[arg(long, value_parser = positive)]
        rate: Option<f64>,
        /// Messages on each session
        #[arg(long, default_value_t = 1)]
        messages: u64,
    },
    /// Memory that a session costs while nothing happens on it
    #[command(after_help = "\
PSS of --relay-pid and its children before the sessions, with them, and when they have gone. --duration is how long they
are held before memory is looked at.

  ringway-loadtest idle --gateway ws://127.0.0.1:8080 --key rw_... -n 10000 --relay-pid $(pidof ringway) ws://127.0.0.1:9000")]
    Idle {
        #[command(flatten)]
        load: LoadArgs,
        /// One message on each session before it idles
        #[arg(long)]
        touch: bool,
    },
    /// Hours of load at a fixed rate, with the drift of latency and memory
    #[command(after_help = "\
Ctrl-C ends it early, with the report of what there was.

  ringway-loadtest soak --direct ws://127.0.0.1:9000 --hours 8 --rate 5000 --sessions 1000 --relay-pid 4711")]
    Soak {
        #[command(flatten)]
        load: LoadArgs,
        /// How long, in hours (may be a fraction); takes the place of --duration
        #[arg(long, default_value_t = 1.0, value_parser = positive)]
        hours: f64,
        /// Messages a second, over all sessions
        #[arg(long, default_value_t = 1000.0, value_parser = positive)]
        rate: f64,
        /// Latency and memory are noted at the end of each
        #[arg(long, default_value = "1m", value_parser = humantime::parse_duration)]
        interval: Duration,
    },
    /// Relays side by side: starts each, measures each, and writes a report as HTML, Markdown and JSON
    #[command(after_help = "\
  ringway-loadtest compare                                     # all that is installed, in under 20 minutes
  ringway-loadtest compare --goals --out report                # all that ringway is meant to reach, judged; 25 minutes
  ringway-loadtest compare --only bare-copier,ringway,haproxy-tcp --scenario '64 B, 100' --repetitions 3
  ringway-loadtest compare --print-config > mine.toml; ringway-loadtest compare --config mine.toml --out report

What counts is the CPU time of the relay for a message that it passes one way, with everything on one core. Run a release
build on a quiet machine. Exit code 1 if a measurement failed; the report says which. A goal that is missed is a result,
no failure.")]
    Compare(compare::CompareArgs),
    /// The target: a WebSocket server that sends everything back, as cheaply as it can
    #[command(after_help = "\
  ringway-loadtest echo --addr 127.0.0.1:9000
  ringway-loadtest echo --addr 127.0.0.1:9443 --tls --write-ca ca.pem    # a fresh certificate for localhost and 127.0.0.1

Says `listening on ADDRESS` on standard error when it does.")]
    Echo(EchoArgs),
}

/// What every kind of load takes.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// The target's URL, as the relay will dial it (with --gateway)
    #[arg(value_name = "TARGET_URL", required_unless_present = "direct", conflicts_with = "direct")]
    target: Option<String>,
    /// Connect here and nowhere else: the target itself, or a peer that passes everything on
    #[arg(long, value_name = "URL")]
    direct: Option<String>,
    /// The relay to go through; /ws is its path if none is given
    #[arg(long, value_name = "URL", required_unless_present = "direct", conflicts_with = "direct")]
    gateway: Option<String>,
    /// API key for the relay
    #[arg(long, value_name = "KEY", env = "RINGWAY_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Name the target in the query of the upgrade, not in a connect message
    #[arg(long, requires = "gateway")]
    transparent: bool,
    /// Root certificates for wss://, instead of the system's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Accept any certificate
    #[arg(long)]
    insecure: bool,
    /// Sessions
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = count)]
    sessions: usize,
    /// Payload of a message in bytes, or a range of it: 64, 16KiB, 0-4096
    #[arg(long, value_name = "SIZE[-SIZE]", default_value = "64")]
    size: Size,
    /// Lengths and contents of all messages follow from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long is measured
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Load before that, which is not measured
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    warmup: Duration,
    /// How long echoes are waited for at the end
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// How long a session may take to open, and to close
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Sessions that are being opened at a time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = count)]
    concurrency: usize,
    /// Sessions to open each second, at most
    #[arg(long, value_name = "N", value_parser = positive)]
    open_rate: Option<f64>,
    /// Threads; default: one for each core, but no more than sessions
    #[arg(long, value_name = "N", value_parser = count)]
    threads: Option<usize>,
    /// Pin the threads to these cores, in turn: 0,1
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    cores: Vec<usize>,
    /// Source addresses, in turn; one has about 28,000 ports for one destination
    #[arg(long, value_name = "IP,...", value_delimiter = ',')]
    from: Vec<IpAddr>,
    /// Report CPU and memory of this process and its children
    #[arg(long, value_name = "PID")]
    pub relay_pid: Option<u32>,
    /// Write the results as JSON; without FILE (then behind all else) to standard output
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-", value_parser = json_file)]
    pub json: Option<String>,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Args, Debug)]
struct EchoArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9000")]
    addr: SocketAddr,
    /// Threads; default: one for each core
    #[arg(long, value_name = "N", value_parser = count)]
    threads: Option<usize>,
    /// Pin the threads to these cores, in turn
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    cores: Vec<usize>,
    /// wss://, with a fresh certificate unless --cert and --cert-key name one
    #[arg(long)]
    tls: bool,
    /// Certificate chain, PEM
    #[arg(long, value_name = "FILE", requires = "cert_key")]
    cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    cert_key: Option<PathBuf>,
    /// Write the fresh certificate here, for clients to trust
    #[arg(long, value_name = "FILE", requires = "tls")]
    write_ca: Option<PathBuf>,
}

/// A payload size or a range of them, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub min: usize,
    pub max: usize,
}

/// A payload is in memory once for all sessions.
const MAX_SIZE: usize = 1 << 30;

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one = |text: &str| {
            let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let factor = match &text[digits.len()..] {
                "" | "B" => 1,
                "K" | "KiB" => 1 << 10,
                "M" | "MiB" => 1 << 20,
                _ => return None,
            };
            digits.parse::<usize>().ok()?.checked_mul(factor).filter(|&size| size <= MAX_SIZE)
        };
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        match (one(min), one(max)) {
            (Some(min), Some(max)) if min <= max => Ok(Self { min, max }),
            _ => Err("write bytes, KiB or MiB up to 1024MiB, or a range: 64, 16KiB, 0-4KiB".into()),
        }
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1e9 => Ok(value),
        _ => Err("a number above 0, at most 1000000000".into()),
    }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(value @ 1..=10_000_000) => Ok(value),
        _ => Err("a whole number from 1 to 10000000".into()),
    }
}

fn json_file(text: &str) -> Result<String, String> {
    if text.starts_with("ws://") || text.starts_with("wss://") {
        return Err("this is a URL, not a file; put --json behind it".into());
    }
    Ok(text.into())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn nanoseconds(duration: Duration) -> u64 {
    // A century is as good as any longer time, and does not overflow when added up.
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).min(100 * 365 * 86_400 * crate::clock::SECOND)
}

impl LoadArgs {
    fn plan(&self, work: Work) -> anyhow::Result<Plan> {
        let form = match (&self.direct, self.transparent) {
            (Some(_), _) => Form::Direct,
            (None, true) => Form::Transparent,
            (None, false) => Form::Message,
        };
        let peer = self.direct.as_ref().or(self.gateway.as_ref()).context("give --direct or --gateway")?;
        let route = Route::new(&Wanted {
            form,
            peer: peer.clone(),
            target: self.target.clone(),
            key: self.key.clone(),
            ca_file: self.ca_file.clone(),
            insecure: self.insecure,
        })?;
        Ok(Plan {
            route,
            payloads: Payloads::new(self.seed, self.size.min, self.size.max),
            sessions: self.sessions,
            threads: self.threads.unwrap_or_else(cores).min(self.sessions),
            work,
            concurrency: self.concurrency,
            open_rate: self.open_rate,
            warmup: nanoseconds(self.warmup),
            duration: nanoseconds(self.duration),
            grace: nanoseconds(self.grace),
            timeout: nanoseconds(self.timeout),
            cores: self.cores.clone(),
            from: self.from.clone(),
            interval: None,
        })
    }

    pub fn size(&self) -> Size {
        self.size
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Latency { load, rate } => {
            load.plan(Work::Rate(rate)).and_then(|plan| load::run("latency", &load, plan))
        }
        Command::Throughput { load, window } => {
            load.plan(Work::Window(window)).and_then(|plan| load::run("throughput", &load, plan))
        }
        Command::Storm { load, rate, messages } => load.plan(Work::Storm { messages }).and_then(|mut plan| {
            plan.open_rate = rate.or(plan.open_rate);
            load::run("storm", &load, plan)
        }),
        Command::Idle { load, touch } => idle(&load, touch),
        Command::Soak { load, hours, rate, interval } => load.plan(Work::Rate(rate)).and_then(|mut plan| {
            plan.duration = nanoseconds(Duration::from_secs_f64((hours * 3600.0).min(1e9)));
            plan.interval = Some(nanoseconds(interval).max(crate::clock::MILLISECOND));
            load::run("soak", &load, plan)
        }),
        Command::Compare(args) => compare::run(&args),
        Command::Echo(args) => run_echo(&args),
    };
    result.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "ringway-loadtest: {error:#}");
        ExitCode::from(FAILED)
    })
}

fn idle(load: &LoadArgs, touch: bool) -> anyhow::Result<ExitCode> {
    ensure!(load.relay_pid.is_some(), "idle measures memory: name the relay's process with --relay-pid");
    // A message on each within the warm-up, and then none.
    let mut plan = load.plan(if touch { Work::Touch } else { Work::Hold })?;
    if touch {
        plan.warmup = plan.warmup.max(crate::clock::SECOND);
    }
    load::run("idle", load, plan)
}

fn run_echo(args: &EchoArgs) -> anyhow::Result<ExitCode> {
    let tls = server_config(args)?;
    let (address, threads) = echo::start(args.addr, args.threads.unwrap_or_else(cores), &args.cores, tls)?;
    eprintln!("listening on {address}");
    for thread in threads {
        match thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error).context("a thread of the echo target ended"),
            Err(_) => bail!("a thread of the echo target has panicked"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn server_config(args: &EchoArgs) -> anyhow::Result<Option<Arc<ServerConfig>>> {
    let (chain, key) = match (&args.cert, &args.cert_key) {
        (Some(cert), Some(key)) => {
            let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let chain = chain.map_err(io::Error::other).with_context(|| format!("{}", cert.display()))?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(io::Error::other);
            (chain, key.context("the private key cannot be read")?)
        }
        _ if args.tls => {
            let names = ["localhost".into(), "127.0.0.1".into(), "::1".into(), args.addr.ip().to_string()];
            let made = rcgen::generate_simple_self_signed(names)?;
            if let Some(file) = &args.write_ca {
                fs::write(file, made.cert.pem()).with_context(|| format!("cannot write {}", file.display()))?;
            }
            let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
            (vec![made.cert.der().clone()], key.into())
        }
        _ => return Ok(None),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Some(Arc::new(config.with_no_client_auth().with_single_cert(chain, key)?)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!("64".parse(), Ok(Size { min: 64, max: 64 }));
        assert_eq!("0-4KiB".parse(), Ok(Size { min: 0, max: 4096 }));
        assert_eq!("1MiB".parse(), Ok(Size { min: 1 << 20, max: 1 << 20 }));
        for bad in ["", "-", "5-4", "4-", "1GiB", "x", "18446744073709551615K", "1025MiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_url_is_no_json_file() {
        let error = Cli::try_parse_from(["x", "latency", "--gateway", "ws://a", "--json", "ws://b"]).unwrap_err();
        assert!(error.to_string().contains("put --json behind it"), "{error}");
    }
}
