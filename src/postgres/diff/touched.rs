//! Out of a clone of production's own cluster, only rows that somebody has touched since are copied and compared.
//!
//! A version of a row lies in one place (`ctid`) as long as it is there, and names the transaction that wrote it (`xmin`); its
//! place is used again only after that, by a later transaction. What lies in the same place of the same file on both sides,
//! written by the same transaction, is the same version, whatever the table's size. So both sides are asked for place and
//! writer of each row; what they do not share is the rows that were deleted, updated or inserted since.
//!
//! That holds where both sides have one history: the same cluster, database, table and file, the clone's timeline the one that
//! production is still on. It says something about values where their columns and types are the same in both catalogs. Where
//! any of it does not hold, or too much was touched, all rows are staged and compared, as those of a dump. Two servers that were
//! started from one copy look like one history; they have different rows written by transactions of one number, so the rows
//! that were written last are looked at value by value.

use std::collections::HashSet;
use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_postgres::Client;
use tokio_postgres::binary_copy::BinaryCopyOutStream;
use tokio_postgres::types::{FromSql, Type, accepts};

use super::super::cluster;
use super::super::connect::{Session, server_error};
use super::super::name::quote_list;
use super::super::schema::{KeySource, Kind};
use super::super::stage::{self, Scratch, Spec};
use super::compare::{self, Compared};
use super::{Drift, Table};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// Rows of one side; when more were touched, all are staged.
const MOST: usize = 2_000_000;
/// Rows written last that are looked at value by value.
const NEWEST: usize = 1000;
/// So many places are asked for in one query, or sent in one piece.
const AT_ONCE: usize = 10_000;
/// Progress is told after so many rows.
const STEP: u64 = 10_000;
/// Within so many transactions no number comes back.
const NO_RETURN: u64 = 1 << 31;

/// Where a version of a row lies in its table's file: `ctid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tid {
    block: u32,
    line: u16,
}

impl fmt::Display for Tid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "({},{})", self.block, self.line)
    }
}

impl<'a> FromSql<'a> for Tid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        let (block, line) = raw.split_at_checked(4).ok_or("a place is too short")?;
        Ok(Self { block: u32::from_be_bytes(block.try_into()?), line: u16::from_be_bytes(line.try_into()?) })
    }

    accepts!(TID);
}

/// The number of a transaction, as it stands in a row.
struct Xid(u32);

impl<'a> FromSql<'a> for Xid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(u32::from_be_bytes(raw.try_into()?)))
    }

    accepts!(XID);
}

/// What the two sides do not share.
pub(super) struct Touched {
    /// Rows of the clone that production does not have any more, by place.
    pub backup: Vec<Tid>,
    /// Rows of production that the clone does not have yet.
    pub live: Vec<Tid>,
    /// All rows of the clone.
    pub backup_rows: u64,
    /// All rows of production.
    pub live_rows: u64,
}

/// Finds them, in the transaction of the comparison, which the caller has begun. `None`: the two are not of one history, or
/// too much was touched.
pub(super) async fn find(
    client: &Session,
    system: &str,
    clone: &Client,
    table: &Table,
    progress: &Progress,
) -> Result<Option<Touched>> {
    let failed = |error| server_error(error, "looking into the clone");
    clone.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(failed)?;
    let Some(history) = one_history(client, system, clone, table).await? else { return Ok(None) };
    let doing = format!("looking which rows of {} were touched", table.live.name);
    progress.begin(doing, Unit::Rows, table.live.rows_estimate);
    let found = shared(client, clone, table, &history, progress).await?;
    Ok(match found {
        Some((touched, newest)) if alike(client, clone, table, &newest).await? => Some(touched),
        _ => None,
    })
}

/// The next transaction of the clone, on the wheel of 2^32 numbers, and how many production has begun since.
struct History {
    next: u32,
    since: u32,
}

impl History {
    /// How long ago a transaction was; less is newer. `None`: production has used the number since, and means its own
    /// transaction by it, not one of a turn of the wheel before.
    fn age(&self, xid: u32) -> Option<u32> {
        (xid.wrapping_sub(self.next) >= self.since).then(|| self.next.wrapping_sub(xid))
    }
}

/// What a catalog says of a table, to be compared with the other side's.
struct Facts {
    /// Database, table and file by number.
    file: String,
    /// Name, place in the row and type of each column that is compared.
    columns: Vec<String>,
    /// Number and text of all values of enums; a value may be added, and may get another text.
    enums: HashSet<String>,
    /// The key's index by number; it keeps the key unique there.
    index: Option<u32>,
}

/// `None` unless places and transactions mean the same on both sides, and values print the same.
async fn one_history(client: &Client, system: &str, clone: &Client, table: &Table) -> Result<Option<History>> {
    let failed =
        |error| server_error(error, &format!("looking whether {} is in the clone as it is here", table.live.name));
    let printed_alike = table.pairs.iter().all(|pair| pair.drift != Drift::Retyped)
        && table.compared().all(|(_, column)| column.target.as_ref().is_some_and(|target| !target.is_words()));
    let named = table.key.as_ref().is_some_and(|key| key.source == KeySource::Named);
    if table.live.kind != Kind::Table || named || !printed_alike {
        return Ok(None);
    }
    let ours =
        "SELECT pg_catalog.pg_is_in_recovery(), (SELECT system_identifier::text FROM pg_catalog.pg_control_system())";
    let row = clone.query_one(ours, &[]).await.map_err(failed)?;
    if row.get(0) || row.get::<_, &str>(1) != system {
        return Ok(None);
    }
    let Some((clone_facts, _, clone_next)) = facts(clone, table).await? else { return Ok(None) };
    let Some((live_facts, timeline, live_next)) = facts(client, table).await? else { return Ok(None) };
    let keyed = table.key.is_none() || live_facts.index.is_some();
    let same_table = clone_facts.file == live_facts.file
        && clone_facts.columns == live_facts.columns
        && clone_facts.index == live_facts.index
        && clone_facts.enums.is_subset(&live_facts.enums);
    if !same_table || !keyed || branched_from(clone).await? != Some(timeline) {
        return Ok(None);
    }
    let since = live_next.checked_sub(clone_next).filter(|since| *since < NO_RETURN);
    Ok(since.and_then(|since| Some(History { next: wheel(clone_next), since: u32::try_from(since).ok()? })))
}

#[expect(clippy::cast_possible_truncation, reason = "rows hold the lower half of a transaction's number")]
fn wheel(xid: u64) -> u32 {
    xid as u32
}

/// Facts, the timeline, and the next transaction; `None`: it is no ordinary table there.
async fn facts(client: &Client, table: &Table) -> Result<Option<(Facts, u32, u64)>> {
    let failed = |error| server_error(error, &format!("looking where the rows of {} lie", table.live.name));
    let columns: Vec<&str> = table.compared().map(|(_, column)| column.name.as_str()).collect();
    let index = table.key.as_ref().and_then(|key| match &key.source {
        KeySource::Unique(index) => Some(index.as_str()),
        KeySource::Primary | KeySource::Named => None,
    });
    let sql = "SELECT pg_catalog.concat_ws(' ', d.oid, c.oid, pg_catalog.pg_relation_filenode(c.oid)),
            ARRAY(SELECT pg_catalog.concat_ws(' ', a.attname, a.attnum, a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
                WHERE a.attrelid = c.oid AND a.attname::text = ANY($3) AND NOT a.attisdropped ORDER BY a.attnum),
            ARRAY(SELECT pg_catalog.concat_ws(' ', oid, enumlabel) FROM pg_catalog.pg_enum),
            (SELECT i.indexrelid FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
                WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid
                    AND CASE WHEN $4::text IS NULL THEN i.indisprimary ELSE x.relname::text = $4 END),
            pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()),
            pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_am m ON m.oid = c.relam AND m.amname = 'heap'
        JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
        WHERE c.relkind = 'r' AND n.nspname::text = $1 AND c.relname::text = $2";
    let name = &table.live.name;
    let row = client.query_opt(sql, &[&name.schema, &name.name, &columns, &index]).await.map_err(failed)?;
    Ok(row.and_then(|row| {
        let enums = row.get::<_, Vec<String>>(2).into_iter().collect();
        let facts = Facts { file: row.get(0), columns: row.get(1), enums, index: row.get(3) };
        let timeline = row.get::<_, &str>(4).get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok())?;
        Some((facts, timeline, row.get::<_, &str>(5).parse().ok()?))
    }))
}

/// The timeline that a clone was on until it was opened.
async fn branched_from(clone: &Client) -> Result<Option<u32>> {
    let sql = "SELECT pg_catalog.pg_read_file('pg_wal/' || pg_catalog.left(
        pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8) || '.history')";
    let row = clone.query_one(sql, &[]).await.map_err(|error| server_error(error, "reading the clone's history"))?;
    let history: &str = row.get(0);
    let last = history.lines().rev().find(|line| !line.trim().is_empty());
    Ok(last.and_then(|line| line.split_whitespace().next()?.parse().ok()))
}

/// Reads place and writer of all rows on both sides. `None`: too much was touched. With it come the places of shared rows
/// that were written last.
async fn shared(
    client: &Client,
    clone: &Client,
    table: &Table,
    history: &History,
    progress: &Progress,
) -> Result<Option<(Touched, Vec<Tid>)>> {
    let (mut backup, mut live) = (Side::open(clone, table).await?, Side::open(client, table).await?);
    let mut touched = Touched { backup: Vec::new(), live: Vec::new(), backup_rows: 0, live_rows: 0 };
    let (mut newest, mut too_many) = (Vec::new(), false);
    let (mut one, mut other) = (backup.next().await?, live.next().await?);
    loop {
        let (of_backup, of_live) = match (&one, &other) {
            (None, None) => break,
            (Some((at_backup, by)), Some((at_live, also_by))) if at_backup == at_live => {
                if let (true, Some(age)) = (by == also_by, history.age(*by)) {
                    newest.push((age, *at_backup));
                    if newest.len() >= 2 * NEWEST {
                        newest.select_nth_unstable(NEWEST);
                        newest.truncate(NEWEST);
                    }
                } else {
                    touched.backup.push(*at_backup);
                    touched.live.push(*at_live);
                }
                (true, true)
            }
            (Some((at_backup, _)), at_live) if at_live.as_ref().is_none_or(|(at_live, _)| at_backup < at_live) => {
                touched.backup.push(*at_backup);
                (true, false)
            }
            (_, Some((at_live, _))) => {
                touched.live.push(*at_live);
                (false, true)
            }
            (Some(_), None) => return Err(Error::bug("two sides were not told apart")),
        };
        // Both are read to their ends all the same: a COPY cannot be left in the middle.
        if touched.backup.len().max(touched.live.len()) > MOST {
            too_many = true;
            touched.backup.clear();
            touched.live.clear();
        }
        if of_backup {
            one = backup.next().await?;
        }
        if of_live {
            if live.rows % STEP == 0 {
                progress.check()?;
                progress.advance(STEP);
            }
            other = live.next().await?;
        }
    }
    (touched.backup_rows, touched.live_rows) = (backup.rows, live.rows);
    newest.sort_unstable();
    newest.truncate(NEWEST);
    let newest = newest.into_iter().map(|(_, tid)| tid).collect();
    Ok((!too_many).then_some((touched, newest)))
}

/// Place and writer of one side's rows, as they come.
struct Side {
    stream: Pin<Box<BinaryCopyOutStream>>,
    last: Option<Tid>,
    rows: u64,
}

impl Side {
    async fn open(client: &Client, table: &Table) -> Result<Self> {
        let failed = |error| server_error(error, &format!("reading where the rows of {} lie", table.live.name));
        // In the order of their places: by one process, from the first block on.
        let settings = "SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL synchronize_seqscans = off";
        client.batch_execute(settings).await.map_err(failed)?;
        let sql = format!("COPY (SELECT ctid, xmin FROM {}) TO STDOUT (FORMAT binary)", table.source());
        let stream = client.copy_out(&sql).await.map_err(failed)?;
        let stream = Box::pin(BinaryCopyOutStream::new(stream, &[Type::TID, Type::XID]));
        Ok(Self { stream, last: None, rows: 0 })
    }

    async fn next(&mut self) -> Result<Option<(Tid, u32)>> {
        let failed = |error| server_error(error, "reading where rows lie");
        let Some(row) = self.stream.next().await else { return Ok(None) };
        let row = row.map_err(failed)?;
        let (tid, Xid(xid)) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        if self.last.is_some_and(|last| last >= tid) {
            return Err(Error::bug("rows did not come in the order of their places"));
        }
        (self.last, self.rows) = (Some(tid), self.rows + 1);
        Ok(Some((tid, xid)))
    }
}

/// Whether rows in these places have the same values on both sides.
async fn alike(client: &Client, clone: &Client, table: &Table, places: &[Tid]) -> Result<bool> {
    let columns = quote_list(table.compared().map(|(_, column)| &column.name));
    if columns.is_empty() {
        return Ok(false);
    }
    let mut places = places.to_vec();
    places.sort_unstable();
    let sql = select_sql(&table.source(), &format!("ctid, {columns}"), &places);
    let values = async |client: &Client| {
        let failed = |error| server_error(error, &format!("reading rows of {}", table.live.name));
        client.batch_execute("SET LOCAL timezone = 'UTC'; SET LOCAL extra_float_digits = 3").await.map_err(failed)?;
        let rows = client.copy_out(&format!("COPY {sql} TO STDOUT")).await.map_err(failed)?;
        let mut rows = std::pin::pin!(rows);
        let mut lines = Vec::new();
        while let Some(row) = rows.next().await {
            lines.push(row.map_err(failed)?);
        }
        lines.sort_unstable();
        Ok::<_, Error>(lines)
    };
    Ok(values(client).await? == values(clone).await?)
}

/// A query of the rows in these places.
fn select_sql(source: &str, columns: &str, places: &[Tid]) -> String {
    let places: Vec<String> = places.iter().map(|place| format!("\"{place}\"")).collect();
    format!("(SELECT {columns} FROM {source} WHERE ctid = ANY('{{{}}}'::pg_catalog.tid[]))", places.join(","))
}

/// Stages the clone's touched rows and compares them with production's, in the transaction of the comparison.
pub(super) async fn compare(
    client: &Session,
    scratch: &Scratch,
    clone: Client,
    table: &Table,
    touched: Touched,
    progress: &Progress,
) -> Result<Compared> {
    let failed = |error| server_error(error, &format!("comparing {}", table.live.name));
    let columns = quote_list(table.staged.iter().map(|column| &column.name));
    let (source, places, live_rows) = (table.source(), touched.backup, touched.live_rows);
    let (from, mut first) = (source.clone(), 0);
    let queries = std::iter::from_fn(move || {
        let some = places.get(first..(first + AT_ONCE).min(places.len())).filter(|some| !some.is_empty())?;
        first += some.len();
        Some(select_sql(&from, &columns, some))
    });
    let spec = Spec {
        table: table.live.name.clone(),
        number: table.number,
        columns: table.staged.clone(),
        // As every session of ours reads and writes it.
        encoding: None,
    };
    progress.begin(format!("staging what was touched of {}", spec.table), Unit::Bytes, None);
    let rows = cluster::copied(clone, &spec.table, queries);
    stage::load(client, &table.staging(scratch), &spec, "", rows, None, progress).await?;

    progress.begin(format!("comparing {}", spec.table), Unit::Rows, None);
    let list = scratch.table("touched", table.number);
    client.batch_execute(&format!("CREATE UNLOGGED TABLE {list} (place tid)")).await.map_err(failed)?;
    let sink = client.copy_in(&format!("COPY {list} FROM STDIN")).await.map_err(failed)?;
    let mut sink = std::pin::pin!(sink);
    for some in touched.live.chunks(AT_ONCE) {
        let lines: String = some.iter().map(|place| format!("{place}\n")).collect();
        sink.send(Bytes::from(lines)).await.map_err(failed)?;
    }
    sink.finish().await.map_err(failed)?;
    let settings = compare::settings(client, scratch, table).await?;
    client.batch_execute(&settings).await.map_err(failed)?;
    let live = format!("(SELECT r.ctid, r.tableoid, r.xmin, r.* FROM {list} p JOIN {source} r ON r.ctid = p.place)");
    compare::fill(client, scratch, table, &live).await?;
    client.batch_execute(&format!("DROP TABLE {list}")).await.map_err(failed)?;
    Ok(Compared { live_rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_came_back_is_not_the_same_transaction() {
        let history = History { next: 1000, since: 50 };
        assert_eq!(history.age(999), Some(1));
        assert_eq!(history.age(3), Some(997));
        assert_eq!((history.age(1000), history.age(1049)), (None, None));
        // Of a turn before, and frozen long ago.
        assert_eq!(history.age(1050), Some(u32::MAX - 49));
        let over_the_end = History { next: u32::MAX - 5, since: 20 };
        assert_eq!(
            (over_the_end.age(u32::MAX), over_the_end.age(13), over_the_end.age(14)),
            (None, None, Some(u32::MAX - 19))
        );
        assert_eq!(over_the_end.age(u32::MAX - 6), Some(1));
        assert_eq!(History { next: 700, since: 0 }.age(700), Some(0), "nothing was begun since");
    }
}
