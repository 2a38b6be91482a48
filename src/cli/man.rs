//! `ringway man`: man pages, made from the command line's own definition.
use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the pages of all commands into this folder, which is made where there is none
    /// [default: ringway's own page, to standard output]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Writes the pages.
///
/// # Errors
/// They cannot be written; the error says where.
pub fn run(args: &Args, command: clap::Command) -> anyhow::Result<ExitCode> {
    match &args.dir {
        Some(dir) => {
            let place = || dir.display().to_string();
            fs::create_dir_all(dir).with_context(place)?;
            clap_mangen::generate_to(command, dir).with_context(place)?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            io::stdout().write_all(&page)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
