//! The command line: one file a command.
mod dev;
mod echo;
mod gateway;
mod key;
mod process;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::config::ConfigErrors;

#[derive(Debug, Parser)]
#[command(name = "ringway", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A gateway, an agent and an echo target on this machine, with lines to paste
    Dev(dev::Args),
    /// The gateway
    Gateway(gateway::Args),
    /// A WebSocket server that sends back what it gets
    Echo(echo::Args),
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Dev(args) => dev::run(&args),
        Command::Gateway(args) => gateway::run(&args),
        Command::Echo(args) => echo::run(&args),
    };
    result.unwrap_or_else(|error| {
        let usage = error.is::<ConfigErrors>() || error.is::<process::UsageError>();
        let _ = writeln!(io::stderr(), "ringway: {error:#}");
        ExitCode::from(if usage { process::USAGE } else { process::FAILED })
    })
}
