//! What is wrong with a configuration file, where, and what to write instead.
//!
//! One [`ConfigError`] is one problem and displays as one line, `gateway.toml:12: …; did you mean …`, which editors
//! and terminals turn into a link. Must never hold the text of a secret: whoever writes a message decides what of the
//! file it repeats.
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// One problem in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    pub path: PathBuf,
    /// Counted from 1; `None` where the problem is the file as a whole.
    pub line: Option<usize>,
    /// Counted from 1 in characters; given where the line alone does not say enough, that is for broken TOML.
    pub column: Option<usize>,
    pub message: String,
    /// What to write instead, or where to look.
    pub hint: Option<String>,
}

impl ConfigError {
    pub fn new(path: &Path, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line: None, column: None, message: message.into(), hint: None }
    }

    /// A file that could not be opened or read.
    pub fn unreadable(path: &Path, error: &io::Error) -> Self {
        Self::new(path, format!("cannot be read: {error}"))
    }

    #[must_use]
    pub fn at_line(self, line: usize) -> Self {
        Self { line: Some(line), ..self }
    }

    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path.display())?;
        for position in [self.line, self.column].into_iter().flatten() {
            write!(f, "{position}:")?;
        }
        write!(f, " {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}

/// All problems of a file, in the order of its lines; never empty. Displays as one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            let line_break = if i == 0 { "" } else { "\n" };
            write!(f, "{line_break}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// A value that cannot be used, before it is known where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub message: String,
    pub hint: Option<String>,
}

impl Wrong {
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl<T: Into<String>> From<T> for Wrong {
    fn from(message: T) -> Self {
        Self { message: message.into(), hint: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_as_a_link_to_the_line() {
        let error = ConfigError::new(Path::new("gateway.toml"), "unknown key \"adress\" in [listen]");
        assert_eq!(error.to_string(), "gateway.toml: unknown key \"adress\" in [listen]");
        let error = error.at_line(12).with_hint("did you mean \"addr\"?");
        assert_eq!(error.to_string(), "gateway.toml:12: unknown key \"adress\" in [listen]; did you mean \"addr\"?");
        let syntax = ConfigError { column: Some(3), hint: None, ..error };
        assert!(syntax.to_string().starts_with("gateway.toml:12:3: unknown"));
        let both = ConfigErrors(vec![syntax.clone(), syntax]);
        assert_eq!(both.to_string().lines().count(), 2);
    }
}
