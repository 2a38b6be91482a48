//! Reading files again while the process runs (SIGHUP).
//!
//! Each [`Reloader`] has files of its own and takes them over as a whole or not at all: broken ones leave in use what
//! there was. Runs on the main thread, never on a worker; what it changes is there for what begins from then on, and
//! no session notices.
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

/// What a reload came to.
#[derive(Debug, Default)]
pub struct Reloaded {
    /// The files that are in use now as they are.
    pub files: Vec<PathBuf>,
    /// What is wrong with the others, of which the old content stays in use.
    pub errors: Vec<ConfigError>,
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

/// Runs all of them, and logs what each came to. `file` names the configuration file that is not one of them.
pub fn run(reloaders: &[Reloader], file: &str) -> Reloaded {
    let mut reloaded = Reloaded::default();
    for Reloader { what, file: path, reload } in reloaders {
        match reload(path) {
            Ok(now) => {
                tracing::info!("reloaded the {what} from {}: {now}", path.display());
                reloaded.files.push(path.clone());
            }
            Err(ConfigErrors(errors)) => {
                errors
                    .iter()
                    .for_each(|error| tracing::error!("the {what} are not reloaded, the old ones stay: {error}"));
                reloaded.errors.extend(errors);
            }
        }
    }
    tracing::info!("reload done; {file} itself is read at start only, so its changes need a restart");
    reloaded
}
