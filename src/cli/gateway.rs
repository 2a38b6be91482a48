//! `ringway gateway`: the gateway, as its file says.
use std::{os::fd::RawFd, path::PathBuf, process::ExitCode};

use anyhow::Context;

use super::process;
use crate::{
    config::{GatewayConfig, keys},
    gateway::Gateway,
    runtime::{
        driver::Driver,
        threads::{self, Threads},
    },
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The gateway's configuration file
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Write "ready" to this file descriptor and close it once every listener listens
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
    let config = GatewayConfig::load(&args.config)?;
    let keys = keys::load(&config.keys.file)?;
    let roots = config.egress.roots()?;
    threads::raise_open_files();
    let driver = Driver::choose(config.runtime.driver).context("runtime.driver")?;
    driver.log();
    let drain = config.limits.drain;
    let mut threads = Threads::with_signals()?;
    let gateway = Gateway::start(config, keys, roots, &driver, &mut threads)?;
    for address in &gateway.addresses {
        process::announce(*address, "public");
    }
    process::tell_ready(ready)?;
    Ok(process::supervise(&threads, drain, || gateway.shared.begin_drain()))
}
