//! `ringway agent-token new`: makes an agent's token and its entry in agents.toml. The token is shown once and stored
//! nowhere.
use std::{path::PathBuf, process::ExitCode};

use super::secret::{self, Fresh};
use crate::config::{agents, names};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a token: print it once, and print or store its entry, which holds its SHA-256 only
    New(NewArgs),
}

#[derive(Debug, clap::Args)]
struct NewArgs {
    /// The only slug that an agent with this token may have; several tokens may be for one
    #[arg(long, value_name = "NAME", value_parser = names::slug)]
    slug: String,
    /// The only country that it may say it is in, like DE [default: any]
    #[arg(long, value_name = "CODE", value_parser = names::country)]
    country: Option<String>,
    /// Append the entry to this file, and make the file where there is none
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Runs a command on agents' tokens.
///
/// # Errors
/// The file cannot be read or written, or is broken.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Command::New(args) = &args.command;
    let token = secret::generate("rwa_")?;
    let entry = block(args, &token);
    let fresh = Fresh { noun: "token", file_noun: "agents file", name: &args.slug, secret: token, entry };
    fresh.hand_out(args.file.as_deref(), agents::parse, |_| Ok(()))
}

/// The `[[agent]]` table.
fn block(args: &NewArgs, token: &str) -> String {
    let mut block = format!("[[agent]]\nslug = \"{}\"\nsha256 = \"{}\"\n", args.slug, secret::sha256_hex(token));
    if let Some(country) = &args.country {
        block += &format!("country = \"{country}\"\n");
    }
    block
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::config::AgentEntry;

    #[test]
    fn block_is_read_back_as_given() {
        let token = secret::generate("rwa_").unwrap();
        for country in [Some("DE".to_owned()), None] {
            let args = NewArgs { slug: "de1".into(), country: country.clone(), file: None };
            let text = block(&args, &token);
            assert!(!text.contains(&token));
            let read = agents::parse(&text, Path::new("agents.toml")).unwrap();
            assert_eq!(read, [AgentEntry { slug: "de1".into(), sha256: Sha256::digest(&token).into(), country }]);
        }
    }
}
