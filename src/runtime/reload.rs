//! Reading files again while the process runs (SIGHUP).
//!
//! Each [`Reloader`] has files of its own and takes them over as a whole or not at all: broken ones leave in use what
//! there was. Runs on a thread of its own, since a file can keep it waiting; what it changes is there for what begins
//! from then on, and no session notices.
use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::config::{ConfigError, ConfigErrors};

/// Reads a file, takes over what it says, and tells in a few words what that was.
type Read = dyn Fn(&Path) -> Result<String, ConfigErrors> + Send + Sync;

/// One thing that a reload reads again.
pub struct Reloader {
    what: &'static str,
    file: PathBuf,
    reload: Box<Read>,
}

impl Reloader {
    /// `reload` reads `file`, takes over what it says, and tells in a few words what that was.
    pub fn new(
        what: &'static str,
        file: impl Into<PathBuf>,
        reload: impl Fn(&Path) -> Result<String, ConfigErrors> + Send + Sync + 'static,
    ) -> Self {
        Self { what, file: file.into(), reload: Box::new(reload) }
    }
}

impl fmt::Debug for Reloader {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Reloader").field("what", &self.what).field("file", &self.file).finish_non_exhaustive()
    }
}

/// Runs all of them, and logs what each came to. Gives what is wrong with files whose old content stays in use. `config`
/// names the configuration file, which is none of them.
pub fn run(reloaders: &[Reloader], config: &str) -> Vec<ConfigError> {
    let (mut wrong, mut stay) = (Vec::new(), Vec::new());
    for Reloader { what, file, reload } in reloaders {
        match reload(file) {
            Ok(now) => {
                tracing::info!("reloaded the {what} from {}: {now}", file.display());
            }
            Err(ConfigErrors(errors)) => {
                errors
                    .iter()
                    .for_each(|error| tracing::error!("the {what} are not reloaded, the old ones stay: {error}"));
                wrong.extend(errors);
                stay.push(*what);
            }
        }
    }
    if stay.is_empty() {
        tracing::info!("reload done; {config} itself is read at start only, so its changes need a restart");
    } else {
        tracing::error!("reload failed; in use as before: {}", stay.join("; "));
    }
    wrong
}
