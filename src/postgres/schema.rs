//! What a live database holds, read from its catalog.

use serde::{Deserialize, Serialize};

use super::name::Name;

/// A table of the live database with everything that a recovery of its rows has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    pub name: Name,
    pub oid: u32,
    pub kind: Kind,
    pub columns: Vec<Column>,
    /// Keys that could pair rows, best first: the primary key, then unique indexes without NULLs, then the others.
    pub keys: Vec<Key>,
    /// Tables that this one references.
    pub parents: Vec<ForeignKey>,
    /// Tables that reference this one.
    pub children: Vec<ForeignKey>,
    pub triggers: Vec<Trigger>,
    pub sequences: Vec<Sequence>,
    /// The planner's estimate; `None` when the table was never analysed. Never called a count.
    pub rows_estimate: Option<u64>,
    pub size_bytes: u64,
    /// Row-level security applies to us, so that we would not see every row.
    pub row_security: bool,
    /// What our role may do, in words of SQL: `SELECT`, `INSERT`, `UPDATE`, `DELETE`; and whether it owns the table.
    pub privileges: Vec<String>,
    pub owned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Table,
    Partitioned,
    /// Views, foreign tables and the like: rows cannot be merged into them.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    /// As `format_type` prints it.
    pub type_sql: String,
    pub not_null: bool,
    /// Computed by the server; never compared, never written.
    pub generated: bool,
    pub identity: Identity,
    pub default_sql: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    None,
    Always,
    ByDefault,
}

/// The columns that say which rows are the same row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub source: KeySource,
    pub columns: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeySource {
    Primary,
    /// The unique index of that name.
    Unique(String),
    /// Named by the operator and proven unique on both sides.
    Named,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignKey {
    pub constraint: String,
    pub child: Name,
    pub child_columns: Vec<String>,
    pub parent: Name,
    pub parent_columns: Vec<String>,
    pub on_delete: OnDelete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDelete {
    NoAction,
    Restrict,
    Cascade,
    SetNull,
    SetDefault,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    pub name: String,
    pub before: bool,
    pub per_row: bool,
    pub on_insert: bool,
    pub on_update: bool,
    pub on_delete: bool,
    pub function: Name,
    /// Who owns the function, since it runs with our rights unless it is SECURITY DEFINER.
    pub owner: String,
    /// `CREATE TRIGGER ...` as the server prints it.
    pub definition: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    pub name: Name,
    /// The column whose values come from it.
    pub column: String,
    pub last_value: i64,
    /// Whether our role may move it safely (it takes ownership to hold back `nextval` meanwhile).
    pub owned: bool,
}
