//! One error for the whole program, and the rules for writing one.
//!
//! - `message` is a lowercase fragment without a full stop that names the object: `cannot open /srv/restic`.
//! - `hints` are whole sentences, each something the reader can do now.
//! - `detail` keeps the other side's own words (a server, a library); it is shown one key away, never instead of ours.
//! - What has been changed so far is not part of an error: the journal knows it, and every screen that shows an error
//!   asks the journal.
//!
//! Text that came from outside is sanitised where an error is shown ([`crate::text::clean`]), so an error can carry it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whose move it is after an error; it decides the exit code and the colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Lifeboat declined before anything was changed: going on would have been unsafe.
    Refused,
    /// A mistake in what the operator gave: a path, a password, an option, a configuration.
    Operator,
    /// The system being recovered said no or went away.
    Target,
    /// The backup is missing, damaged or not what it was taken for.
    Backup,
    /// The connection was lost in the one moment that matters, and nobody could be asked what happened since.
    Unresolved,
    /// The operator asked to stop.
    Cancelled,
    /// Lifeboat itself is wrong.
    Bug,
}

/// What went wrong, and what can be done about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// Whose move it is.
    pub kind: Kind,
    /// A lowercase fragment without a full stop.
    pub message: String,
    /// Whole sentences; where there is room for one only, the first is shown.
    pub hints: Vec<String>,
    /// The other side's words, verbatim and unsanitised.
    pub detail: Option<String>,
}

/// A result with our error, unless another one is named.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hints: Vec::new(), detail: None }
    }

    /// An error of [`Kind::Refused`].
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// An error of [`Kind::Operator`].
    pub fn operator(message: impl Into<String>) -> Self {
        Self::new(Kind::Operator, message)
    }

    /// An error of [`Kind::Target`].
    pub fn target(message: impl Into<String>) -> Self {
        Self::new(Kind::Target, message)
    }

    /// An error of [`Kind::Backup`].
    pub fn backup(message: impl Into<String>) -> Self {
        Self::new(Kind::Backup, message)
    }

    /// An error of [`Kind::Bug`].
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Kind::Bug, message)
    }

    /// An error of [`Kind::Unresolved`].
    pub fn unresolved(message: impl Into<String>) -> Self {
        Self::new(Kind::Unresolved, message)
    }

    /// The one error of [`Kind::Cancelled`]; it needs no words of its own.
    pub fn cancelled() -> Self {
        Self::new(Kind::Cancelled, "cancelled")
    }

    /// Adds a sentence that tells the reader what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Keeps the other side's own words, verbatim.
    #[must_use]
    pub fn detail(mut self, detail: impl fmt::Display) -> Self {
        self.detail = Some(detail.to_string());
        self
    }

    /// What a stream failed with: readers of ours hand our own error on inside an [`std::io::Error`], and any other is a
    /// backup that cannot be read.
    pub fn from_read(error: std::io::Error, message: impl FnOnce() -> String) -> Self {
        error.downcast::<Self>().unwrap_or_else(|error| Self::backup(message()).detail(error))
    }

    /// The process exit code that `--help` documents.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Operator => 2,
            Kind::Refused => 3,
            Kind::Backup => 4,
            Kind::Target => 5,
            Kind::Unresolved => 6,
            Kind::Bug => 70,
            Kind::Cancelled => 130,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl AsRef<Self> for Error {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl std::error::Error for Error {}
