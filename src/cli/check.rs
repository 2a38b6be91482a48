//! `ringway check`: says what is wrong with a configuration file before anything is started with it.
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::config::{ConfigError, ConfigErrors, GatewayConfig, certs, keys, kind::FileKind, read_file};

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
    let identity = config.listen.tls.as_ref().map(|tls| certs::load_identity(&tls.cert, &tls.key)).transpose();
    match (keys, roots, identity) {
        (Ok(keys), Ok(_), Ok(identity)) => {
            for warning in identity.iter().flat_map(|identity| &identity.warnings) {
                let _ = writeln!(io::stderr(), "{warning} (a warning: it can be served)");
            }
            Ok(format!("with {} in {}", count(keys.len(), "key"), config.keys.file.display()))
        }
        (keys, roots, identity) => {
            let errors = [keys.err(), roots.err(), identity.err()].into_iter().flatten();
            Err(ConfigErrors(errors.flat_map(|errors| errors.0).collect()))
        }
    }
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
