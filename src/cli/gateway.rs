//! `ringway gateway`: the gateway, as its file says.
use std::{path::PathBuf, process::ExitCode};

use super::{
    process::{self, ReadyArgs},
    supervise::{Reload, Service, supervise},
};
use crate::{
    admin::Admin,
    config::{GatewayConfig, agents, keys},
    gateway::{Files, Gateway, tls::Acceptor},
    protocol::drain::Drain,
    runtime::threads::Threads,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The gateway's configuration file
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    ready: ReadyArgs,
}

/// Runs until a signal ends it.
///
/// # Errors
/// The files are not usable, or something could not be started; the error says what.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let ready = args.ready.take()?;
    let _logs = process::start_logs()?;
    // Early: a SIGHUP that comes while the files are read must not end the process.
    let mut threads = Threads::with_reload()?;
    let config = GatewayConfig::load(&args.config)?;
    let files = Files {
        keys: keys::load(&config.keys.file)?,
        agent_tokens: config.agents.tokens.as_deref().map(agents::load).transpose()?,
        roots: config.egress.roots()?,
        tls: config.listen.tls.as_ref().map(Acceptor::load).transpose()?,
    };
    threads.listen_for_termination()?;
    let driver = process::prepare(config.runtime.driver)?;
    let admin = config.admin.addr.map(Admin::bind).transpose()?;
    let gateway = Gateway::start(config, files, &driver, &mut threads)?;
    for address in &gateway.addresses {
        process::announce(*address, "public");
    }
    for address in &gateway.tls_addresses {
        process::announce(*address, "public, tls");
    }
    if let Some(admin) = admin {
        process::announce(admin.address(), "admin");
        let drain = threads.drain_handle();
        admin.start(gateway.observer(), Box::new(move || drain.drain()))?;
    }
    Ok(supervise(&threads, &gateway, || ready.tell()))
}

impl Service for Gateway {
    fn describe(&self) -> String {
        let addresses = self.addresses.iter().chain(&self.tls_addresses);
        let addresses: Vec<String> = addresses.map(ToString::to_string).collect();
        format!("listening on {}", addresses.join(", "))
    }

    fn sessions(&self) -> u64 {
        self.shared.sessions()
    }

    fn begin_drain(&self) -> Drain {
        self.shared.begin_drain()
    }

    fn reload(&self) -> Reload {
        Box::new(Self::reload(self))
    }
}
