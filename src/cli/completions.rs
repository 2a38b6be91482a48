//! `ringway completions`: completion scripts, made from the command line's own definition.
use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap_complete::Shell;

/// Where the scripts usually go.
const INSTALLING: &str = "\
Installing:
  bash        ringway completions bash > ~/.local/share/bash-completion/completions/ringway
  zsh         ringway completions zsh > ~/.zfunc/_ringway   (a folder of $fpath)
  fish        ringway completions fish > ~/.config/fish/completions/ringway.fish
  elvish      ringway completions elvish >> ~/.config/elvish/rc.elv
  powershell  ringway completions powershell >> $PROFILE";

#[derive(Debug, clap::Args)]
#[command(after_help = INSTALLING)]
pub struct Args {
    /// The shell that is to complete
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Writes the script for a shell to standard output.
///
/// # Errors
/// It cannot be written.
pub fn run(args: &Args, mut command: clap::Command) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "ringway", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
