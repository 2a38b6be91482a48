//! `ringway check`: says what is wrong with a configuration file before anything is started with it.
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::config::{ConfigError, ConfigErrors, GatewayConfig, keys, kind::FileKind, read_file};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file to check: gateway.toml, with the files that it names, or keys.toml
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Checks a file, and those that it names.
///
/// # Errors
/// All that is wrong with them.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let path = &args.config;
    let text = read_file(path)?;
    let found = match FileKind::detect(&text, path) {
        FileKind::Gateway => gateway(&text, path)?,
        FileKind::Keys => count(keys::parse(&text, path)?.len(), "key"),
        FileKind::Agent | FileKind::Agents => {
            let message = "is a file of remote agents, which are not supported yet";
            return Err(ConfigErrors::from(ConfigError::new(path, message)).into());
        }
    };
    let _ = writeln!(io::stdout(), "{}: ok, {found}", path.display());
    Ok(ExitCode::SUCCESS)
}

/// Everything that is wrong with the file and those that it names, at once.
fn gateway(text: &str, path: &Path) -> Result<String, ConfigErrors> {
    let config = GatewayConfig::parse(text, path)?;
    let keys = keys::load(&config.keys.file);
    let roots = config.egress.roots();
    match (keys, roots) {
        (Ok(keys), Ok(_)) => Ok(format!("with {} in {}", count(keys.len(), "key"), config.keys.file.display())),
        (keys, roots) => {
            Err(ConfigErrors([keys.err(), roots.err()].into_iter().flatten().flat_map(|errors| errors.0).collect()))
        }
    }
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
