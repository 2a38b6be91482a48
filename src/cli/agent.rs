//! `ringway agent`: an agent that is linked to gateways, as its file says.
use std::{path::PathBuf, process::ExitCode};

use super::{
    process::{self, ReadyArgs},
    supervise::{Reload, Service, supervise},
};
use crate::{
    admin::Admin,
    agent::{Agent, Files},
    config::{AgentConfig, agent},
    protocol::drain::Drain,
    runtime::threads::Threads,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's configuration file
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
    let config = AgentConfig::load(&args.config)?;
    let files = Files {
        token: agent::load_token(&config.token_file)?,
        gateway_roots: config.roots()?,
        target_roots: config.egress.roots()?,
    };
    threads.listen_for_termination()?;
    let driver = process::prepare(config.runtime.driver)?;
    let admin = config.admin.addr.map(Admin::bind).transpose()?;
    let agent = Agent::start(config, files, &driver, &mut threads)?;
    if let Some(admin) = admin {
        process::announce(admin.address(), "admin");
        let drain = threads.drain_handle();
        admin.start(agent.observer(), Box::new(move || drain.drain()))?;
    }
    Ok(supervise(&threads, &agent, || ready.tell()))
}

impl Service for Agent {
    fn describe(&self) -> String {
        let (up, all) = self.shared.links();
        format!("linked to {up} of {all} gateways")
    }

    fn sessions(&self) -> u64 {
        self.shared.sessions()
    }

    fn is_ready(&self) -> bool {
        self.shared.has_linked()
    }

    fn begin_drain(&self) -> Drain {
        self.shared.begin_drain()
    }

    fn reload(&self) -> Reload {
        Box::new(Self::reload(self))
    }
}
