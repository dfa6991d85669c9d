//! The row diff: backup against production by key, computed inside the server, kept there, and read a page at a time.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::name::Name;
use super::schema::{ForeignKey, Key};

/// How a row differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Only in the backup.
    Missing,
    /// In both, with other values.
    Changed,
    /// Only in production.
    Extra,
}

/// One column of the map between backup and production.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    pub column: String,
    pub backup_type: Option<String>,
    pub live_type: Option<String>,
    pub drift: Drift,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Drift {
    Same,
    /// Both have it, with different types: compared and written through a cast that must not lose anything.
    Retyped,
    /// Dropped since the backup: staged and shown, not compared, not written.
    OnlyInBackup,
    /// Added since the backup: missing rows get its default, changed rows keep what they have.
    OnlyInLive,
    /// Computed by the server.
    Generated,
}

/// The outcome for one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDiff {
    pub table: Name,
    /// `None`: no key; rows are compared as a multiset and cannot be merged.
    pub key: Option<Key>,
    pub pairs: Vec<Pair>,
    pub backup_rows: u64,
    pub live_rows: u64,
    pub missing: u64,
    pub changed: u64,
    pub extra: u64,
    pub same: u64,
    /// Rows with NULL in the key: shown, never merged.
    pub unkeyed_backup: u64,
    pub unkeyed_live: u64,
    /// Changed rows per column, most first.
    pub by_column: Vec<ColumnCount>,
    /// Changed and extra rows by the transaction that last wrote the production row, most first.
    pub by_transaction: Vec<TransactionCount>,
    pub parents: Vec<ForeignKey>,
    pub children: Vec<ForeignKey>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnCount {
    pub column: String,
    pub rows: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionCount {
    /// `xmin` of the production rows.
    pub xid: u32,
    /// Known when the server runs with `track_commit_timestamp`.
    pub committed_at: Option<DateTime<Utc>>,
    pub changed: u64,
    pub extra: u64,
    /// The columns that differ in its changed rows, most first.
    pub columns: Vec<String>,
}

/// Which rows of a diff are meant. Everything set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    pub class: Option<Class>,
    pub column: Option<String>,
    pub transaction: Option<u32>,
    /// A SQL condition over `backup` and `live`, typed by the operator: `live.status = 'void' and backup.amount > 100`.
    pub condition: Option<String>,
}

/// Some rows of a diff, in key order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
}

/// One differing row. Cells are text as the server prints them; `None` is NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its place in the diff, from 1; stable for the life of the staging schema.
    pub number: i64,
    pub class: Class,
    /// The transaction that last wrote the production row.
    pub xid: Option<u32>,
    pub backup: Option<Vec<Option<String>>>,
    pub live: Option<Vec<Option<String>>>,
    /// Indexes into `columns` of the cells that differ.
    pub changed: Vec<usize>,
}
