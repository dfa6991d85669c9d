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
mod foreign_code;
mod frozen;
mod load;
mod prepare;
mod prove;
mod recreate;
mod undo;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::diff::Class;
use super::name::Name;
use super::schema::Trigger;

pub use apply::{Outcome, anchor, apply, resolve};
pub use prepare::prepare;
pub use prove::prove;
pub use recreate::{Recreated, Recreation, prove_recreated, recreate, recreation, remove_recreated};
pub use undo::{undo, undo_plan};

/// What the operator wants written to one table. Everything set must hold for a row to be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// One of those that were compared.
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
    /// They run as for any writer. A written value that they change is noticed, and ends in ROLLBACK.
    Fire,
    /// Switched off inside our transaction only; foreign keys are still enforced. Writers wait for us meanwhile.
    Skip,
}

/// A frozen change-set: rows copied aside in scratch space, hashed; nothing of production was touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeSet {
    /// Parents before the tables that refer to them; tables without a choice are left out.
    pub tables: Vec<TableChange>,
    /// As the operator chose, for all tables.
    pub triggers: Triggers,
    /// As of when the rows were frozen.
    pub load: Load,
    /// SHA-256, in hex, over every table's statements and frozen rows in order.
    pub hash: String,
}

/// What a merge will make the server write, and who has to follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Of write-ahead log: an estimate, rather too high.
    pub wal_bytes: u64,
    /// Standbys and subscribers that the server knows by a replication slot.
    pub followers: Vec<Follower>,
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follower {
    /// Its name.
    pub slot: String,
    /// How much log is kept for it by now.
    pub behind_bytes: u64,
    /// How much more may be written before the server drops what it needs; `None`: no limit is set
    /// (`max_slot_wal_keep_size`).
    pub spare_bytes: Option<u64>,
}

/// One table's part, in the order in which foreign keys allow it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableChange {
    /// Where the rows are written.
    pub table: Name,
    /// Missing rows that come back.
    pub inserts: u64,
    /// Changed rows that are set back, in `columns`.
    pub updates: u64,
    /// Extra rows that go.
    pub deletes: u64,
    /// Columns that updates will write.
    pub columns: Vec<String>,
    /// The statements that will run, exactly.
    pub statements: Vec<String>,
    /// Triggers that will fire (or be skipped).
    pub triggers: Vec<Trigger>,
    /// Those that would otherwise hand out a value that an inserted row has.
    pub sequences: Vec<SequenceMove>,
    /// Rows of other tables that deletes would remove or change by ON DELETE.
    pub cascades: Vec<Cascade>,
    /// What would fail, found before consent.
    pub violations: Vec<Violation>,
}

/// A sequence that must be moved, since the inserted rows bring their own values along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceMove {
    /// The one to move.
    pub sequence: Name,
    /// The column that it feeds.
    pub column: String,
    /// Its `last_value` when the rows were frozen.
    pub from: i64,
    /// At least this; always forward.
    pub to: i64,
}

/// What deletes would do to another table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cascade {
    /// The foreign key that does it.
    pub constraint: String,
    /// The table that refers to the deleted rows.
    pub child: Name,
    /// Rows that refer to them and are not deleted by the change-set itself.
    pub rows: u64,
}

/// Something that keeps the change-set from being written as it is, or from being undone whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The constraint or index; the column for NOT NULL, the sequence, or `partitions` where no partition takes a row.
    pub constraint: String,
    /// What is wrong, for a person: `registration_id refers to a row of registrations that does not exist`.
    pub what: String,
    /// How many frozen rows break it; of rows that refer to a deleted one, how many do.
    pub rows: u64,
    /// The keys of up to ten such rows, as text.
    pub sample: Vec<String>,
}

/// What a merge did, checked inside its transaction before COMMIT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// In the order of the change-set or, for an undo, of its plan.
    pub tables: Vec<TableApplied>,
    /// The transaction's 64-bit id, as text; the token row carries it too.
    pub transaction: String,
}

/// The counts that the server reported; they are the promised ones, else nothing was committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableApplied {
    /// Where the rows were written.
    pub table: Name,
    /// Missing rows that are back; of an undo, deleted rows.
    pub inserted: u64,
    /// Changed rows that are set back; of an undo, updated rows.
    pub updated: u64,
    /// Extra rows that are gone; of an undo, inserted rows.
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

/// What production holds of one table's part, read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableProof {
    /// Where the rows were written.
    pub table: Name,
    /// Rows of the change-set, whatever was done to them.
    pub written: u64,
    /// Of these, rows that production does not hold as approved; a deleted one that is there again counts too.
    pub differing: u64,
    /// Of those that differ, rows that another transaction has written since.
    pub moved_since: u64,
}

/// What an undo can take back now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// In the order of the merge.
    pub tables: Vec<TableUndo>,
    /// SHA-256, in hex, over the counts and statements of every table; the undo's token carries it.
    pub hash: String,
}

/// What an undo can take back of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableUndo {
    /// Where the merge wrote.
    pub table: Name,
    /// Inserted rows to remove, updated rows to set back, deleted rows to bring back.
    pub remove: u64,
    /// Updated rows that are still as we left them.
    pub set_back: u64,
    /// Deleted rows whose keys are still free.
    pub bring_back: u64,
    /// Rows that somebody has changed since; they stay as they are. Count, and keys of up to ten.
    pub kept: u64,
    /// As text, in the order of the merge.
    pub kept_sample: Vec<String>,
    /// The statements that will run, exactly; a kind of rows that there is none of has none.
    pub statements: Vec<String>,
}
