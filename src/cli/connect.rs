//! `ringway connect`: a client for the terminal and for pipes. Lines go in, messages come out.
//!
//! An ordinary client of the protocol: it knows nothing of a gateway but its address. Its WebSocket is fastwebsockets,
//! so that what passes a relay is judged by other code than the relay's own.
mod conversation;
mod dial;
mod input;
mod screen;

use std::{
    fmt,
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use serde::{Serialize, Serializer, ser::SerializeMap};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use tokio::sync::Notify;

use self::{
    conversation::{Conversation, Ended},
    screen::Screen,
};
use super::process::{FAILED, UsageError};
use crate::{
    config::{certs, read_file},
    protocol::{connect, target::Target},
};

/// The longest message in either direction, in bytes; it is in memory as a whole.
const MAX_MESSAGE: usize = 64 << 20;
/// How long the answers to the last message may pause before a pipe's session ends.
const SILENCE: Duration = Duration::from_secs(1);
/// The environment variable that the key may come from.
const KEY_VARIABLE: &str = "RINGWAY_KEY";

const EXAMPLES: &str = "\
On a terminal, each line that is typed is sent as one message; Ctrl-D or Ctrl-C closes. In a pipe, standard output \
carries messages only: each text message and a line end, or the bytes of each binary message as they are; \
everything else is on standard error. A line of text ends with LF or CR LF; with --binary it ends with LF only, and a CR \
in front of it is sent. A message may have up to 64 MiB.

Examples:
  export RINGWAY_KEY=rw_...
  ringway connect -g wss://relay.example.com/ws wss://target.example.com/stream
  ringway connect -g wss://relay.example.com/ws --geo US,DE \\
      -H 'Origin: https://example.com' wss://target.example.com/stream
  echo hello | ringway connect -g ws://127.0.0.1:8080/ws ws://127.0.0.1:8081
  ringway connect -g ws://127.0.0.1:8080/ws ws://127.0.0.1:8081 -x hello -w 5

Exit codes: 0 after Close 1000 or one without a code, 1 after anything else, 2 usage";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The target to reach, a ws:// or wss:// URL
    url: String,
    /// The gateway to go through, a ws:// or wss:// URL; without a path, /ws is meant
    #[arg(short, long, value_name = "URL")]
    gateway: String,
    /// The API key; in the process list others can read it, so rather set RINGWAY_KEY [default: RINGWAY_KEY]
    #[arg(long, value_name = "KEY")]
    key: Option<Secret>,
    /// Read the API key from this file
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    key_file: Option<PathBuf>,
    /// Countries of the agent, like US,DE [default: any]
    #[arg(long, value_name = "CODES")]
    geo: Option<String>,
    /// Slugs of the agent, like de1,at5 [default: any]
    #[arg(long, value_name = "SLUGS")]
    agent: Option<String>,
    /// A header for the target; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// A cookie for the target; may be repeated
    #[arg(long = "cookie", value_name = "NAME=VALUE", value_parser = cookie)]
    cookies: Vec<(String, String)>,
    /// The proxy behind which the agent reaches the target, a socks5:// or http:// URL; in the process list others can
    /// read its password
    #[arg(long, value_name = "URL")]
    proxy: Option<Secret>,
    /// Seconds without a message from the target after which the gateway ends the session [default: 0, none]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    idle_timeout: Option<f64>,
    /// More roots to trust for a wss:// gateway: a PEM file
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Do not verify the certificate of a wss:// gateway: anybody in between can read the key
    #[arg(short = 'k', long)]
    insecure: bool,
    /// Send lines as text messages (the default)
    #[arg(long, overrides_with = "binary")]
    text: bool,
    /// Send lines as binary messages
    #[arg(long)]
    binary: bool,
    /// Send this message instead of reading standard input; may be repeated
    #[arg(short = 'x', long = "execute", value_name = "MESSAGE", allow_hyphen_values = true)]
    execute: Vec<String>,
    /// Seconds to stay after the last message was sent, -1 for as long as the target likes
    /// [default: until nothing has come for 1 second; on a terminal 0]
    #[arg(short, long, value_name = "SECONDS", value_parser = wait, allow_negative_numbers = true)]
    wait: Option<Wait>,
    /// No colours; the environment variable NO_COLOR does the same
    #[arg(long)]
    no_color: bool,
}

/// A value that nothing shows.
#[derive(Clone)]
struct Secret(String);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// When to close, once there is nothing more to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// When nothing has come for so long.
    Silence(Duration),
    /// After so long, whatever comes.
    Exactly(Duration),
    Forever,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write it as 'Name: value'")?;
    Ok((name.to_owned(), value.trim().to_owned()))
}

fn cookie(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn wait(text: &str) -> Result<Wait, String> {
    match text.parse::<f64>() {
        Ok(-1.0) => Ok(Wait::Forever),
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map(Wait::Exactly).map_err(|_| ()),
        Err(_) => Err(()),
    }
    .map_err(|()| "must be a number of seconds, 0 or more, or -1".to_owned())
}

/// Connects, and talks until either side closes.
///
/// # Errors
/// What the user wrote is not usable, or the gateway cannot be reached; the error says what.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut gateway = Target::parse(&args.gateway).map_err(|error| UsageError::new(format!("--gateway: {error}")))?;
    if gateway.path_and_query == "/" {
        gateway.path_and_query = "/ws".to_owned();
    }
    let message = connect_message(args, &key(args)?)?;
    let roots = args.ca_file.as_deref().map(certs::load_roots).transpose()?.unwrap_or_default();
    let tls = if gateway.tls { Some(dial::client_config(roots, args.insecure)?) } else { None };

    let interrupted = Arc::new(Notify::new());
    listen_for_signals(interrupted.clone())?;
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let colours = terminal && !args.no_color && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let screen = Screen::new(terminal, colours);
    let source = match &args.execute[..] {
        [] if terminal => input::Source::Terminal,
        [] => input::Source::Pipe,
        messages => input::Source::Messages(messages.to_vec()),
    };
    let wait = match (args.wait, &source) {
        (Some(wait), _) => wait,
        (None, input::Source::Terminal) => Wait::Exactly(Duration::ZERO),
        (None, _) => Wait::Silence(SILENCE),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let stream = {
            let dialling = std::pin::pin!(dial::dial(&gateway, tls));
            let cancelled = std::pin::pin!(interrupted.notified());
            match futures_util::future::select(dialling, cancelled).await {
                futures_util::future::Either::Left((dialled, _)) => dialled?,
                futures_util::future::Either::Right(_) => anyhow::bail!("interrupted"),
            }
        };
        let conversation = Conversation::new(&screen, &interrupted, args.binary, wait);
        conversation.hold(stream, message, source).await
    })?;
    // A look-up of a name may be under way on a thread of the runtime, and nobody waits for it any more.
    runtime.shutdown_background();
    Ok(match ended {
        Ended::Well => ExitCode::SUCCESS,
        Ended::Badly => ExitCode::from(FAILED),
    })
}

/// The key, from wherever it comes.
fn key(args: &Args) -> anyhow::Result<String> {
    let key = if let Some(Secret(key)) = &args.key {
        key.clone()
    } else if let Some(file) = &args.key_file {
        read_file(file)?.trim().to_owned()
    } else {
        let variable = std::env::var_os(KEY_VARIABLE).unwrap_or_default();
        variable.into_string().map_err(|_| UsageError::new(format!("{KEY_VARIABLE} is not UTF-8")))?
    };
    if key.is_empty() {
        let message = format!("no API key: set {KEY_VARIABLE}, or name a file with --key-file");
        return Err(UsageError::new(message).into());
    }
    Ok(key)
}

/// Names and values in their order, as a JSON object.
struct Pairs<'a>(&'a [(String, String)]);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// The connect message, judged as a gateway will judge it, so that errors come at once.
fn connect_message(args: &Args, key: &str) -> Result<String, UsageError> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Message<'a> {
        api_key: &'a str,
        url: &'a str,
        #[serde(skip_serializing_if = "is_empty")]
        headers: Pairs<'a>,
        #[serde(skip_serializing_if = "is_empty")]
        cookies: Pairs<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        geo: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        agent: Option<&'a str>,
        #[serde(rename = "idle_timeout", skip_serializing_if = "Option::is_none")]
        idle_timeout: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        proxy: Option<&'a str>,
    }
    fn is_empty(pairs: &Pairs<'_>) -> bool {
        pairs.0.is_empty()
    }
    // JSON has no such numbers.
    if let Some(seconds) = args.idle_timeout {
        connect::idle_timeout(seconds).map_err(|error| UsageError::new(error.to_string()))?;
    }
    let message = Message {
        api_key: key,
        url: &args.url,
        headers: Pairs(&args.headers),
        cookies: Pairs(&args.cookies),
        geo: args.geo.as_deref(),
        agent: args.agent.as_deref(),
        idle_timeout: args.idle_timeout,
        proxy: args.proxy.as_ref().map(|Secret(proxy)| proxy.as_str()),
    };
    let text = serde_json::to_string(&message).map_err(|error| UsageError::new(error.to_string()))?;
    let mut judged = text.clone().into_bytes();
    connect::parse(&mut judged)
        .and_then(connect::ConnectMessage::validate)
        .map_err(|error| UsageError::new(error.to_string()))?;
    Ok(text)
}

/// The first signal closes the session, the second ends the process at once.
fn listen_for_signals(interrupted: Arc<Notify>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for (count, _) in signals.forever().enumerate() {
            if count > 0 {
                std::process::exit(FAILED.into());
            }
            interrupted.notify_one();
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        let words = ["connect", "--gateway", "ws://127.0.0.1:1/ws"].iter().chain(words);
        Command::try_parse_from(words).unwrap().args
    }

    #[test]
    fn connect_message_has_what_was_given_and_no_more() {
        assert_eq!(connect_message(&args(&["ws://t"]), "k\"").unwrap(), r#"{"apiKey":"k\"","url":"ws://t"}"#);
        let all = args(&[
            "-H",
            "X-B: 1",
            "-H",
            "x-a:  2 ",
            "--cookie",
            "s=a=b",
            "--geo",
            "US,DE",
            "--agent",
            "de1",
            "--idle-timeout",
            "0.5",
            "--proxy",
            "socks5://u:p@h",
            "ws://t/?q",
        ]);
        let expected = concat!(
            r#"{"apiKey":"k","url":"ws://t/?q","headers":{"X-B":"1","x-a":"2"},"cookies":{"s":"a=b"},"#,
            r#""geo":"US,DE","agent":"de1","idle_timeout":0.5,"proxy":"socks5://u:p@h"}"#
        );
        assert_eq!(connect_message(&all, "k").unwrap(), expected);
    }

    #[test]
    fn what_a_gateway_would_refuse_is_refused_here() {
        for (words, expected) in [
            (&["http://t"][..], "url: must start with ws:// or wss://, not http://"),
            (&["-H", "a b: c", "ws://t"], "headers.a b: not a legal header name"),
            (&["--cookie", "a=b;c", "ws://t"], "cookies.a: not a legal cookie value"),
            (&["--idle-timeout=-1", "ws://t"], "idle_timeout: must be a finite number, 0 or more"),
            (&["--idle-timeout", "inf", "ws://t"], "idle_timeout: must be a finite number, 0 or more"),
            (&["--proxy", "u:p@h", "ws://t"], "proxy: must start with socks5://, socks5h:// or http://"),
        ] {
            assert_eq!(connect_message(&args(words), "k").unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn waits() {
        assert_eq!(wait("-1"), Ok(Wait::Forever));
        assert_eq!(wait("0"), Ok(Wait::Exactly(Duration::ZERO)));
        assert_eq!(wait("1.5"), Ok(Wait::Exactly(Duration::from_millis(1500))));
        for text in ["", "x", "-2", "nan", "inf", "1e300"] {
            assert!(wait(text).is_err(), "{text}");
        }
    }

    #[test]
    fn debug_keeps_the_key() {
        let args = args(&["--key", "hunter2", "--proxy", "http://u:hunter2@h", "ws://t"]);
        assert!(!format!("{args:?}").contains("hunter2"));
    }
}
