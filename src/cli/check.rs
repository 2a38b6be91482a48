//! `ringway check`: says what is wrong with a configuration file before anything is started with it.
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::config::{
    AgentConfig, ConfigError, ConfigErrors, GatewayConfig, agent, agents, certs, keys, kind::FileKind, read_file,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file to check: gateway.toml or agent.toml, with the files that it names, keys.toml or agents.toml
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
        FileKind::Agent => agent(&text, path)?,
        FileKind::Keys => count(keys::parse(&text, path)?.len(), "key"),
        FileKind::Agents => count(agents::parse(&text, path)?.len(), "agent token"),
    };
    let _ = writeln!(io::stdout(), "{}: ok, {found}", path.display());
    Ok(ExitCode::SUCCESS)
}

/// Everything that is wrong with the file and those that it names, at once.
fn gateway(text: &str, path: &Path) -> Result<String, ConfigErrors> {
    let config = GatewayConfig::parse(text, path)?;
    let mut named = NamedFiles::default();
    let keys = named.read(keys::load(&config.keys.file));
    let tokens = config.agents.tokens.as_deref().map(|file| (file, named.read(agents::load(file))));
    named.read(config.egress.roots());
    if let Some(tls) = &config.listen.tls {
        let identity = named.read(certs::load_identity(&tls.cert, &tls.key));
        named.warnings.extend(identity.into_iter().flat_map(|identity| identity.warnings));
    }
    named.finish("it can be served")?;
    let in_file = |number, noun, file: &Path| format!("{} in {}", count(number, noun), file.display());
    let mut found = format!("with {}", in_file(keys.map_or(0, |keys| keys.len()), "key", &config.keys.file));
    if let Some((file, Some(tokens))) = tokens {
        found += &format!(" and {}", in_file(tokens.len(), "agent token", file));
    }
    Ok(found)
}

fn agent(text: &str, path: &Path) -> Result<String, ConfigErrors> {
    let config = AgentConfig::parse(text, path)?;
    let mut named = NamedFiles::default();
    named.read(agent::load_token(&config.token_file));
    named.warnings.extend(agent::exposed(&config.token_file));
    named.read(config.roots());
    named.read(config.egress.roots());
    named.finish("it can be used")?;
    Ok(format!("{:?} for {}", config.slug, count(config.gateways.len(), "gateway")))
}

/// What is wrong with the files that a file names.
#[derive(Default)]
struct NamedFiles {
    errors: Vec<ConfigError>,
    warnings: Vec<ConfigError>,
}

impl NamedFiles {
    fn read<T>(&mut self, file: Result<T, ConfigErrors>) -> Option<T> {
        file.map_err(|errors| self.errors.extend(errors.0)).ok()
    }

    /// Prints the warnings if they are all there is; `nevertheless` says why they are no errors.
    fn finish(self, nevertheless: &str) -> Result<(), ConfigErrors> {
        if !self.errors.is_empty() {
            return Err(ConfigErrors(self.errors));
        }
        for warning in self.warnings {
            let _ = writeln!(io::stderr(), "{warning} (a warning: {nevertheless})");
        }
        Ok(())
    }
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
