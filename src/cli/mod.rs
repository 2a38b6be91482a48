//! The command line: one file a command.
mod agent;
mod agent_token;
mod check;
mod completions;
mod connect;
mod dev;
mod echo;
mod gateway;
mod key;
mod man;
mod process;
mod secret;
mod supervise;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::ConfigErrors;

/// A WebSocket relay for edge nodes: clients connect to a gateway, name a target, and every frame passes untouched.
#[derive(Debug, Parser)]
#[command(name = "ringway", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Start with `ringway dev`.

Environment:
  RINGWAY_LOG         log levels: error, warn, info (default), debug, trace; also of
                      a module, like info,ringway::agent=debug
  RINGWAY_LOG_FORMAT  text (default) or json
  RINGWAY_KEY         the API key of `ringway connect`
  NO_COLOR            no colours in `ringway connect`

Signals (gateway, agent):
  SIGHUP              read keys or token, certificates and CA files again
  SIGTERM, SIGINT     drain: close sessions spread over limits.drain, then
                      exit 0; the second one exits 1 at once

Exit codes: 0 done, 1 failed while running, 2 usage or configuration";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a gateway, an agent and an echo target on this machine, and print a page's address and lines to paste
    Dev(dev::Args),
    /// Run the gateway. SIGHUP reads keys and certificates again, SIGTERM closes its sessions bit by bit and ends it
    Gateway(gateway::Args),
    /// Run an agent: it dials gateways and takes their sessions. SIGHUP reads its token again, SIGTERM drains it
    Agent(agent::Args),
    /// Check a configuration file
    Check(check::Args),
    /// Make API keys
    Key(key::Args),
    /// Make tokens of agents
    AgentToken(agent_token::Args),
    /// Connect to a target through a gateway: lines in, messages out
    Connect(connect::Args),
    /// Run a WebSocket server that sends back what it gets
    Echo(echo::Args),
    /// Print a script that completes this command line in a shell
    Completions(completions::Args),
    /// Print man pages
    Man(man::Args),
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Dev(args) => dev::run(&args),
        Command::Gateway(args) => gateway::run(&args),
        Command::Agent(args) => agent::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Key(args) => key::run(&args),
        Command::AgentToken(args) => agent_token::run(&args),
        Command::Connect(args) => connect::run(&args),
        Command::Echo(args) => echo::run(&args),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command()),
    };
    result.unwrap_or_else(|error| {
        // Its lines begin with the file's name, as compilers' do, so that editors find the place.
        if let Some(errors) = error.downcast_ref::<ConfigErrors>() {
            let _ = writeln!(io::stderr(), "{errors}");
            return ExitCode::from(process::USAGE);
        }
        let _ = writeln!(io::stderr(), "ringway: {error:#}");
        ExitCode::from(if error.is::<process::UsageError>() { process::USAGE } else { process::FAILED })
    })
}
