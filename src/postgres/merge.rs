//! Writing what was approved, exactly: a frozen, hashed change-set goes into production in one transaction, with
//! pre-images, row guards and a token; and undo, which writes the pre-images back.
//!
//! ```text
//!  diff<i> + t<i>  --prepare-->  change<i>  --apply-->  production           one transaction, ends with COMMIT
//!                  (scratch)     (scratch)      |
//!                                               +--->  lifeboat_undo_<recovery>.before<i>   pre-images
//!                                               +--->  lifeboat_undo_<recovery>.applied     the token
//! ```
//!
//! Invariants:
//! - What runs is what was shown: the statements are made again from what was frozen and must be the approved ones, and the
//!   frozen rows must have the approved hash.
//! - A row of production is written only while it is the version that was compared (its `xmin`); else nothing is written.
//! - No lock is waited for while others are held, longer than two seconds, or while a person thinks.
//! - Every promise (row counts, values as they are afterwards) is checked inside the transaction, before COMMIT.

mod apply;
mod check;
mod constraints;
mod frozen;
mod prepare;
mod prove;
mod undo;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::diff::Class;
use super::name::Name;
use super::schema::Trigger;

pub use apply::{Outcome, apply, resolve};
pub use prepare::prepare;
pub use prove::prove;
pub use undo::{undo, undo_plan};

/// What the operator wants written to one table. Everything set must hold for a row to be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    pub table: Name,
    /// Insert missing rows, update changed rows, delete extra rows.
    pub classes: BTreeSet<Class>,
    /// Changed rows: only these columns are put back. `None`: every column that differs.
    pub columns: Option<Vec<String>>,
    /// Changed and extra rows: only those last written by these transactions.
    pub transactions: Option<Vec<u32>>,
    /// A SQL condition over `backup` and `live`.
    pub condition: Option<String>,
    /// Only these row numbers of the diff.
    pub only: Option<BTreeSet<i64>>,
    /// Not these row numbers of the diff.
    pub except: BTreeSet<i64>,
}

/// What to do with the table's own triggers while we write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Triggers {
    Fire,
    /// Switched off inside our transaction only; foreign keys are still enforced. Writers wait for us meanwhile.
    Skip,
}

/// A frozen change-set: rows copied aside in scratch space, hashed; nothing of production was touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeSet {
    pub tables: Vec<TableChange>,
    pub triggers: Triggers,
    /// SHA-256, in hex, over every table's statements and frozen rows in order.
    pub hash: String,
}

/// One table's part, in the order in which foreign keys allow it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableChange {
    pub table: Name,
    pub inserts: u64,
    pub updates: u64,
    pub deletes: u64,
    /// Columns that updates will write.
    pub columns: Vec<String>,
    /// The statements that will run, exactly.
    pub statements: Vec<String>,
    /// Triggers that will fire (or be skipped).
    pub triggers: Vec<Trigger>,
    pub sequences: Vec<SequenceMove>,
    /// Rows of other tables that deletes would remove or change by ON DELETE.
    pub cascades: Vec<Cascade>,
    /// What would fail, found before consent.
    pub violations: Vec<Violation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceMove {
    pub sequence: Name,
    pub column: String,
    pub from: i64,
    /// At least this; always forward.
    pub to: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cascade {
    pub constraint: String,
    pub child: Name,
    pub rows: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    pub constraint: String,
    /// What is wrong, for a person: `registration_id refers to a row of registrations that does not exist`.
    pub what: String,
    pub rows: u64,
    /// The keys of up to ten such rows, as text.
    pub sample: Vec<String>,
}

/// What a merge did, checked inside its transaction before COMMIT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    pub tables: Vec<TableApplied>,
    /// The transaction's 64-bit id, as text; the token row carries it too.
    pub transaction: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableApplied {
    pub table: Name,
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
}

/// The evidence after COMMIT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Rows of the change-set that still differ from the backup in a written column: 0 when all is well, or rows that
    /// the application has changed since COMMIT.
    pub tables: Vec<TableProof>,
    /// Foreign keys that were checked by an anti-join, and orphans found (0).
    pub foreign_keys: Vec<(String, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableProof {
    pub table: Name,
    pub written: u64,
    pub differing: u64,
    /// Of those that differ, rows that another transaction has written since.
    pub moved_since: u64,
}

/// What an undo can take back now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    pub tables: Vec<TableUndo>,
    pub hash: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableUndo {
    pub table: Name,
    /// Inserted rows to remove, updated rows to set back, deleted rows to bring back.
    pub remove: u64,
    pub set_back: u64,
    pub bring_back: u64,
    /// Rows that somebody has changed since; they stay as they are. Count, and keys of up to ten.
    pub kept: u64,
    pub kept_sample: Vec<String>,
    pub statements: Vec<String>,
}
