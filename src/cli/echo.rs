//! `ringway echo`: the echo target by itself.
use std::{
    net::SocketAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use super::{
    process::{self, ReadyArgs},
    supervise::{Reload, Service, supervise},
};
use crate::{config::gateway::Driver as Wanted, echo, protocol::drain::Drain, runtime::threads::Threads};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    pub listen: SocketAddr,
    #[command(flatten)]
    ready: ReadyArgs,
}

/// Runs until a signal ends it.
///
/// # Errors
/// Something could not be started; the error says what.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let ready = args.ready.take()?;
    let _logs = process::start_logs()?;
    let driver = process::prepare(Wanted::Auto)?;
    let mut threads = Threads::with_signals()?;
    let address = echo::start(args.listen, &driver, &mut threads)?;
    process::announce(address, "echo");
    Ok(supervise(&threads, &Echo(address), || ready.tell()))
}

struct Echo(SocketAddr);

impl Service for Echo {
    fn describe(&self) -> String {
        format!("echoing on {}", self.0)
    }

    fn sessions(&self) -> u64 {
        0
    }

    fn begin_drain(&self) -> Drain {
        Drain::new(Instant::now(), Duration::ZERO, 0, 0, 0)
    }

    fn reload(&self) -> Reload {
        Box::new(Vec::new)
    }
}
