//! The row diff: backup against production by key, computed inside the server, kept there, and read a page at a time.
//!
//! ```text
//!  restore_staging_<recovery>.t<i>      FULL JOIN on the key      production's table
//!                       \                      |                      /
//!                        restore_staging_<recovery>.diff<i>: one line per differing row, in key order
//!                        n | class | live_xmin | cols | b (ctid in t<i>) | k1, k2, ...
//! ```
//!
//! Out of a clone of production's own cluster `t<i>` has only the rows that somebody has touched since (`diff/touched.rs`).
//!
//! Invariants:
//! - The comparison and the count of production's rows see one snapshot, so every row of both sides is in exactly one
//!   class; a sum that does not add up is an error, never a rounding.
//! - A row is called changed when some value of it prints differently, and only then.

pub(super) mod compare;
mod count;
pub(super) mod key;
pub(super) mod page;
mod touched;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::archive;
use super::connect::{Server, Session, server_error};
use super::name::Name;
use super::origin::Origin;
use super::schema::{ForeignKey, Key, Kind, Live};
use super::stage::{self, Scratch, StagedColumn};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

pub use key::{KeyChoice, KeyColumn};
pub use page::{CELL, Start, matches, page};

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
    /// Its name on both sides: columns are paired by name and by nothing else.
    pub column: String,
    /// As the dump writes it; `None`: the backup does not have the column.
    pub backup_type: Option<String>,
    /// As `format_type` prints it; `None`: production does not have the column.
    pub live_type: Option<String>,
    /// What follows from the two types.
    pub drift: Drift,
}

/// How a column of the backup stands to production's of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Drift {
    /// Both print the same type; defaults and constraints do not count.
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
    /// The same name in the backup and in production.
    pub table: Name,
    /// `None`: no key; rows are compared as a multiset and cannot be merged.
    pub key: Option<Key>,
    /// Every column of either side, as [`pairs`] puts them.
    pub pairs: Vec<Pair>,
    /// All rows of the backup, whether or not they had to be staged.
    pub backup_rows: u64,
    /// All rows that production had in the comparison's snapshot.
    pub live_rows: u64,
    /// Rows of [`Class::Missing`].
    pub missing: u64,
    /// Rows of [`Class::Changed`].
    pub changed: u64,
    /// Rows of [`Class::Extra`].
    pub extra: u64,
    /// Rows that are alike on both sides: what is left of either, and both remainders must be equal.
    pub same: u64,
    /// Rows with NULL in the key: shown, never merged.
    pub unkeyed_backup: u64,
    /// The same in production.
    pub unkeyed_live: u64,
    /// Changed rows per column, most first.
    pub by_column: Vec<ColumnCount>,
    /// Changed and extra rows by the transaction that last wrote the production row, most first.
    pub by_transaction: Vec<TransactionCount>,
    /// What the table refers to, as [`Live::parents`].
    pub parents: Vec<ForeignKey>,
    /// What refers to the table, as [`Live::children`].
    pub children: Vec<ForeignKey>,
}

/// How many changed rows differ in a column. A row that differs in two is counted in both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnCount {
    /// A compared column that differs at least once.
    pub column: String,
    /// Changed rows in which it differs, at least 1.
    pub rows: u64,
}

/// What one transaction wrote last, among the rows that differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionCount {
    /// `xmin` of the production rows.
    pub xid: u32,
    /// Known when the server runs with `track_commit_timestamp`.
    pub committed_at: Option<DateTime<Utc>>,
    /// Changed rows, which have values of it now.
    pub changed: u64,
    /// Extra rows.
    pub extra: u64,
    /// The columns that differ in its changed rows, most first.
    pub columns: Vec<String>,
}

/// Which rows of a diff are meant. Everything set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// `None`: all three.
    pub class: Option<Class>,
    /// Changed rows that differ in it. Errors: it is not a compared column.
    pub column: Option<String>,
    /// Changed and extra rows that it wrote last (`xmin`).
    pub transaction: Option<u32>,
    /// A SQL condition over `backup` and `live`, typed by the operator: `live.status = 'void' and backup.amount > 100`.
    pub condition: Option<String>,
}

/// Some rows of a diff, in key order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// What the cells of every row are of: each column of either side, in the order of [`TableDiff::pairs`].
    pub columns: Vec<String>,
    /// At most as many as were asked for; fewer when there are no more.
    pub rows: Vec<Row>,
}

/// One differing row. Cells are text as the server prints them; `None` is NULL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its place in the diff, from 1; stable for the life of the staging schema.
    pub number: i64,
    /// What was found when the tables were compared; the values may have changed since.
    pub class: Class,
    /// The transaction that last wrote the production row.
    pub xid: Option<u32>,
    /// One cell for each of the page's columns, cut at [`CELL`]; `None`: the row is not in the backup.
    pub backup: Option<Vec<Option<String>>>,
    /// As production holds it now; `None`: the row is missing, or gone since.
    pub live: Option<Vec<Option<String>>>,
    /// Indexes into `columns` of the cells that differ.
    pub changed: Vec<usize>,
}

/// One staged table beside its live one: all that paging, freezing and proving need to know about it. It can be kept and
/// read back, as long as the scratch space is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Which table of the recovery it is: `t<number>`, `diff<number>`, `change<number>` in scratch space.
    pub number: usize,
    /// The table as the catalog described it before it was staged.
    pub live: Live,
    /// As [`pairs`] puts them; the diff's `cols` are places in this list.
    pub pairs: Vec<Pair>,
    /// The columns of `t<number>`, in the order of the COPY rows.
    pub staged: Vec<StagedColumn>,
    /// `None`: not chosen yet, or rows are compared as a multiset.
    pub key: Option<Key>,
    /// The columns of `key`, and how they are compared.
    pub key_columns: Vec<KeyColumn>,
}

impl Table {
    pub(super) fn staging(&self, scratch: &Scratch) -> String {
        scratch.table("t", self.number)
    }

    pub(super) fn diff(&self, scratch: &Scratch) -> String {
        scratch.table("diff", self.number)
    }

    /// The live table's own rows, as SQL. A dump of a table has no rows of its children by inheritance, while one of a
    /// partitioned table is all its partitions.
    pub(super) fn source(&self) -> String {
        source(&self.live)
    }

    /// The staged column of that name that production has too.
    pub(super) fn compared(&self) -> impl Iterator<Item = (usize, &StagedColumn)> {
        self.pairs.iter().enumerate().filter_map(|(index, pair)| {
            let column = self.staged.iter().find(|column| column.name == pair.column)?;
            column.target.is_some().then_some((index, column))
        })
    }
}

fn source(live: &Live) -> String {
    match live.kind {
        Kind::Partitioned => live.name.sql(),
        Kind::Table | Kind::Other => format!("ONLY {}", live.name.sql()),
    }
}

/// The map between the columns of a backup and those of production: the backup's in their order, then the ones added since.
pub fn pairs(live: &Live, backup: &[archive::Column], copied: &[String]) -> Vec<Pair> {
    let mut pairs = Vec::with_capacity(backup.len());
    for column in backup {
        let live_column = live.columns.iter().find(|live| live.name == column.name);
        let drift = match live_column {
            Some(live) if live.generated => Drift::Generated,
            // Computed when the dump was made, an ordinary column now: the dump has no values of it.
            Some(_) if !copied.contains(&column.name) => Drift::OnlyInLive,
            Some(live) if live.type_sql == column.type_sql => Drift::Same,
            Some(_) => Drift::Retyped,
            None => Drift::OnlyInBackup,
        };
        pairs.push(Pair {
            column: column.name.clone(),
            backup_type: Some(column.type_sql.clone()),
            live_type: live_column.map(|live| live.type_sql.clone()),
            drift,
        });
    }
    for column in live.columns.iter().filter(|live| backup.iter().all(|column| column.name != live.name)) {
        pairs.push(Pair {
            column: column.name.clone(),
            backup_type: None,
            live_type: Some(column.type_sql.clone()),
            drift: if column.generated { Drift::Generated } else { Drift::OnlyInLive },
        });
    }
    pairs
}

/// Compares a staged table with production and keeps the differing rows in scratch space, in key order.
///
/// `table` comes from [`stage`]: its `key` is chosen here, by `choice`. Errors: a key that is not one, with counts and a
/// sample; row-level security that would hide rows; whatever the server says.
pub async fn diff(
    client: &Session,
    scratch: &Scratch,
    mut table: Table,
    choice: &KeyChoice,
    staged_rows: u64,
    progress: &Progress,
) -> Result<(Table, TableDiff)> {
    comparable(&table.live)?;
    progress.begin(format!("comparing {}", table.live.name), Unit::Rows, None);
    key::choose(client, scratch, &mut table, choice).await?;
    let compared = stage::stoppable(client, progress, compare::run(client, scratch, &table)).await?;
    let outcome =
        stage::stoppable(client, progress, count::run(client, scratch, &table, staged_rows, compared)).await?;
    Ok((table, outcome))
}

fn comparable(live: &Live) -> Result<()> {
    if live.row_security {
        return Err(Error::refused(format!("row-level security of {} hides rows from this role", live.name))
            .hint("Connect as its owner or as a role with BYPASSRLS."));
    }
    if live.kind == Kind::Other {
        return Err(Error::refused(format!("{} is not a table: rows cannot be compared with it", live.name)));
    }
    Ok(())
}

/// Compares a table of a clone of production's own cluster, where only rows that were touched since have to be staged.
/// `table` is not staged yet. `None`: it has to be, and [`diff`] compares it.
///
/// Errors: as [`diff`], without those of a key, which is none of the operator's here.
pub async fn diff_touched(
    server: &Server,
    scratch: &Scratch,
    mut table: Table,
    choice: &KeyChoice,
    origin: &Origin,
    progress: &Progress,
) -> Result<Option<(Table, TableDiff)>> {
    let client = &server.client;
    comparable(&table.live)?;
    // Columns that the operator named are proven to be a key, for which all rows are needed.
    if matches!(choice, KeyChoice::Named(_)) {
        return Ok(None);
    }
    let Some(clone) = origin.connect().await? else { return Ok(None) };
    key::choose(client, scratch, &mut table, choice).await?;
    let work = async {
        let failed = |error| server_error(error, &format!("comparing {}", table.live.name));
        // While one side's rows are read the other one waits.
        let patience = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";
        client.batch_execute(&format!("{}; {patience}", compare::BEGIN)).await.map_err(failed)?;
        let system = &server.facts.system_identifier;
        let Some(touched) = touched::find(client, system, &clone, &table, progress).await? else { return Ok(None) };
        let all = touched.backup_rows;
        touched::compare(client, scratch, clone, &table, touched, progress).await.map(|compared| Some((all, compared)))
    };
    let outcome = stage::stoppable(client, progress, work).await;
    let Some((all, compared)) = stage::finish(client, outcome).await? else { return Ok(None) };
    let outcome = stage::stoppable(client, progress, count::run(client, scratch, &table, all, compared)).await?;
    Ok(Some((table, outcome)))
}
