//! `ringway dev`: everything on this machine, with a page to try it in and lines to paste. For a first look, and for
//! developing clients.
use std::{
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};

use super::{
    key,
    process::{self, ReadyArgs},
    supervise::supervise,
};
use crate::{
    admin::Admin,
    config::{EgressRule, GatewayConfig, gateway::EmbeddedAgentConfig},
    echo,
    gateway::{Files, Gateway},
    runtime::{listen, threads::Threads},
};

/// Where the gateway, its admin listener and the echo target listen, if nobody else does.
const GATEWAY_PORT: u16 = 8080;
const ADMIN_PORT: u16 = 9091;
const ECHO_PORT: u16 = 8081;
/// The slug and country of its agent; the country is a code that belongs to nobody.
const SLUG: &str = "dev1";
const COUNTRY: &str = "ZZ";
/// Sessions end soon: nobody wants to wait for a development server.
const DRAIN: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// More roots to trust for wss:// targets: a PEM file
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    #[command(flatten)]
    ready: ReadyArgs,
}

/// Runs until Ctrl-C.
///
/// # Errors
/// Something could not be started; the error says what.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let ready = args.ready.take()?;
    let _logs = process::start_logs()?;
    let config = configuration(args);
    let roots = config.egress.roots()?;
    let driver = process::prepare(config.runtime.driver)?;
    let secret = key::generate()?;
    let keys = vec![key::entry("dev", &secret)];

    let mut threads = Threads::with_signals()?;
    // The echo target outlives the sessions that end on Ctrl-C.
    let mut target = threads.apart();
    let echo = echo::start(listen::free_or_any(loopback(ECHO_PORT)), &driver, &mut target)?;
    let admin = Admin::bind(loopback(ADMIN_PORT)).or_else(|_| Admin::bind(loopback(0)))?;
    let gateway = Gateway::start(config, Files { keys, roots, ..Files::default() }, &driver, &mut threads)?;
    let public = gateway.addresses[0];
    process::announce(public, "public");
    let admin_address = admin.address();
    process::announce(admin_address, "admin");
    let drain = threads.drain_handle();
    admin.start(gateway.observer(), Box::new(move || drain.drain()))?;
    process::announce(echo, "echo");
    Ok(supervise(&threads, &gateway, || {
        ready.tell();
        // Somebody who only wants the server may have closed standard output.
        let _ = io::stdout().write_all(introduction(public, admin_address, echo, &secret).as_bytes());
    }))
}

/// The defaults, an agent, and leave to reach this machine.
fn configuration(args: &Args) -> GatewayConfig {
    let mut config = GatewayConfig::default();
    config.limits.drain = DRAIN;
    config.listen.addr = vec![listen::free_or_any(loopback(GATEWAY_PORT))];
    config.egress.ca_file = args.ca_file.clone();
    config.egress.allow = vec![
        EgressRule::Net(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8).into()),
        EgressRule::Net(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128).into()),
    ];
    let node_id = config.node_id.clone();
    config.embedded_agent = Some(EmbeddedAgentConfig { slug: SLUG.into(), country: COUNTRY.into(), node_id });
    config
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn introduction(public: SocketAddr, admin: SocketAddr, echo: SocketAddr, key: &str) -> String {
    let message = format!(r#"{{"apiKey":"{key}","url":"ws://{echo}"}}"#);
    format!(
        r#"
ringway dev: a gateway, an agent and an echo target on this machine

Open this in a browser, and give it the API key:

  http://{public}/ws/docs#url=ws://{echo}

  API key   {key}
  gateway   ws://{public}/ws
  echo      ws://{echo}
  metrics   http://{admin}/metrics

Or try it with wscat:

  npx wscat -c ws://{public}/ws

and paste the connect message; whatever you type behind it comes back:

  {message}

With ringway itself:

  RINGWAY_KEY={key} ringway connect -g ws://{public}/ws ws://{echo}

In a browser's console:

  ws = new WebSocket("ws://{public}/ws")
  ws.onmessage = (event) => console.log(event.data)
  ws.onopen = () => ws.send('{message}')

With curl:

  curl -s http://{public}/ws/docs

With Python (pip install websockets):

  import asyncio, json, websockets

  async def main():
      async with websockets.connect("ws://{public}/ws") as ws:
          await ws.send(json.dumps({message}))
          print(await ws.recv())
          await ws.send("hello world")
          print(await ws.recv())

  asyncio.run(main())

Ctrl-C ends it.
"#
    )
}
