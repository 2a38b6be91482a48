//! `ringway agent`: an agent that is linked to gateways, as its file says.
use std::{os::fd::RawFd, path::PathBuf, process::ExitCode};

use anyhow::Context;

use super::{
    process,
    supervise::{Service, supervise},
};
use crate::{
    admin::Admin,
    agent::{Agent, Files},
    config::{AgentConfig, ConfigError, agent, certs},
    protocol::drain::Drain,
    runtime::{
        driver::Driver,
        memory,
        threads::{self, Threads},
    },
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's configuration file
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Write "ready" to this file descriptor and close it once the first gateway has accepted the link
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(3..))]
    pub ready_fd: Option<RawFd>,
}

/// Runs until a signal ends it.
///
/// # Errors
/// The files are not usable, or something could not be started; the error says what.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let ready = process::take_ready_fd(args.ready_fd)?;
    let _logs = process::start_logs()?;
    // Early: a SIGHUP that comes while the files are read must not end the process.
    let mut threads = Threads::with_signals_and_reload()?;
    let config = AgentConfig::load(&args.config)?;
    let files = Files {
        token: agent::load_token(&config.token_file)?,
        gateway_roots: config.ca_file.as_deref().map(certs::load_roots).transpose()?.unwrap_or_default(),
        target_roots: config.egress.roots()?,
    };
    threads::raise_open_files();
    memory::keep_pages_small();
    let driver = Driver::choose(config.runtime.driver).context("runtime.driver")?;
    driver.log();
    let admin = config.admin.addr.map(Admin::bind).transpose()?;
    let agent = Agent::start(config, files, &driver, &mut threads)?;
    if let Some(admin) = admin {
        process::announce(admin.address(), "admin");
        let drain = threads.drain_handle();
        admin.start(agent.observer(), Box::new(move || drain.drain()))?;
    }
    supervise(&threads, &agent, || Ok(process::tell_ready(ready)?))
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

    fn reload(&self) -> Vec<ConfigError> {
        Self::reload(self).errors
    }
}
