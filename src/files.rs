//! Files of a snapshot: found, looked into, compared with what is here now, and brought back.
//!
//! - Names of a snapshot are data. They are shown escaped, and a path of this machine is made of them one name at a time,
//!   each beneath a folder that is held open: no link, no `..` and no race leads anywhere else ([`mod@write`]).
//! - What is written is hashed against the snapshot after it was written, by reading it again.
//! - Nothing is ever deleted. Bringing back beside makes a folder that was not there; putting back in place exchanges two
//!   names in one act and keeps what was there under a name of its own ([`put`]).
//! - Calls block: an asynchronous caller makes them on a blocking thread.

pub mod beside;
pub mod catalog;
pub mod choice;
pub mod excludes;
pub mod history;
pub mod live;
pub mod look;
pub mod members;
pub mod put;
pub mod write;

pub use crate::backup::EntryKind;
