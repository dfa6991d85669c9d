//! What the WAL tells, by `pg_waldump` of the server's own version: its records have another form in every version, and
//! PostgreSQL's own program is the one that knows them.
//!
//! Segments are read from a folder that [`crate::postgres::cluster::stage`] filled; nothing else is in it.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::connect::server_error;
use super::name::Name;
use crate::backup::wal::{Key, Lsn};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// A line of `pg_waldump`; a commit names every cache entry and every subtransaction.
const MAX_LINE: u64 = 64 << 20;
/// Transactions that are open at one time.
const MAX_OPEN: usize = 1 << 20;

/// The file of a table, as the WAL names it: `1663/5/16390`; `None`: there is no such table, or it has no file.
pub async fn relation_of(client: &Client, table: &Name) -> Result<Option<String>> {
    let sql = "SELECT (CASE WHEN c.reltablespace = 0 THEN d.dattablespace ELSE c.reltablespace END)::text
            || '/' || d.oid::text || '/' || pg_catalog.pg_relation_filenode(c.oid)::text
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace, pg_catalog.pg_database d
        WHERE d.datname = pg_catalog.current_database() AND n.nspname = $1 AND c.relname = $2";
    let row = client.query_opt(sql, &[&table.schema, &table.name]).await;
    let row = row.map_err(|error| server_error(error, "asking for the table's file"))?;
    Ok(row.and_then(|row| row.get(0)))
}

/// One record that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A transaction came to its end.
    End(End),
    /// `pg_create_restore_point` was called.
    RestorePoint {
        /// Where the record begins.
        lsn: Lsn,
        /// What it was given.
        name: String,
    },
    /// The end of the base backup that began at `start`.
    BackupEnd {
        /// Where the record begins.
        lsn: Lsn,
        /// As in `backup_label`.
        start: Lsn,
    },
    /// A row of a catalog of the whole cluster was written over where it stands, which no rollback undoes. A database that is
    /// being dropped is made invalid so.
    Overwritten {
        /// Where the record begins.
        lsn: Lsn,
    },
    /// The files of a database go. Its transaction ends after that: who stops before the end has lost them already.
    DatabaseDrop {
        /// Where the record begins.
        lsn: Lsn,
        /// Of the transaction.
        xid: u32,
    },
    /// Rows of a relation were written.
    Rows {
        /// Of the transaction, or of a subtransaction of it.
        xid: u32,
        /// `1663/5/16390`: tablespace, database, file.
        relation: String,
        /// What was done.
        change: Change,
        /// How many.
        rows: u64,
    },
}

/// What happens to rows; counts of them stand in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// INSERT, COPY.
    Insert,
    /// UPDATE.
    Update,
    /// DELETE.
    Delete,
}

/// The end of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Where the record begins.
    pub lsn: Lsn,
    /// The transaction's number.
    pub xid: u32,
    /// By the server's clock. Of commits that follow one another in the WAL, it may now and then go back a little.
    pub at: DateTime<Utc>,
    /// Else it was rolled back.
    pub committed: bool,
    /// Subtransactions that ended with it.
    pub parts: Vec<u32>,
    /// Files of relations that went with it: DROP, TRUNCATE, or a rewrite of the table.
    pub dropped: Vec<String>,
}

/// Reads a line of `pg_waldump`; `None`: it says nothing that matters here.
fn parse(line: &str) -> Option<Record> {
    let (head, said) = line.split_once(", desc: ")?;
    let manager = head.strip_prefix("rmgr: ")?.split_whitespace().next()?;
    let field = |name: &str| Some(head.split_once(name)?.1.split(',').next()?.trim());
    let lsn = Lsn::parse(field("lsn: ")?)?;
    let xid = field("tx: ")?.parse().ok()?;
    let (verb, rest) = said.split_once(' ').unwrap_or((said, ""));
    let verb = verb.strip_suffix("+INIT").unwrap_or(verb);
    match (manager, verb) {
        ("Transaction", "COMMIT" | "COMMIT_PREPARED" | "ABORT" | "ABORT_PREPARED") => {
            end(lsn, xid, verb, rest).map(Record::End)
        }
        ("XLOG", "RESTORE_POINT") => Some(Record::RestorePoint { lsn, name: rest.to_owned() }),
        ("XLOG", "BACKUP_END") => Some(Record::BackupEnd { lsn, start: Lsn::parse(rest)? }),
        ("Heap", "INPLACE") if rest.contains("rel 1664/0/") => Some(Record::Overwritten { lsn }),
        ("Database", "DROP") => Some(Record::DatabaseDrop { lsn, xid }),
        ("Heap" | "Heap2", _) => {
            let (change, rows) = match verb {
                "INSERT" => (Change::Insert, 1),
                "MULTI_INSERT" => {
                    let numbers = rest.split(|letter: char| !letter.is_ascii_digit());
                    (
                        Change::Insert,
                        numbers.filter(|number| !number.is_empty()).find_map(|number| number.parse().ok())?,
                    )
                }
                "UPDATE" | "HOT_UPDATE" => (Change::Update, 1),
                "DELETE" => (Change::Delete, 1),
                _ => return None,
            };
            let relation = rest.split_once("rel ")?.1.split_whitespace().next()?.to_owned();
            Some(Record::Rows { xid, relation, change, rows })
        }
        _ => None,
    }
}

fn end(lsn: Lsn, mut xid: u32, verb: &str, rest: &str) -> Option<End> {
    let mut parts = rest.split("; ");
    let mut time = parts.next()?;
    if let Some((prepared, after)) = time.split_once(": ").filter(|_| verb.ends_with("_PREPARED")) {
        // The record is written by another session than the transaction was.
        (xid, time) = (prepared.trim().parse().ok()?, after);
    }
    let time = time.trim().trim_end_matches(';').strip_suffix(" UTC")?;
    let at = NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S%.f").ok()?.and_utc();
    let mut end = End { lsn, xid, at, committed: verb.starts_with("COMMIT"), parts: Vec::new(), dropped: Vec::new() };
    for part in parts {
        if let Some(list) = part.strip_prefix("subxacts: ") {
            end.parts = list.split_whitespace().filter_map(|xid| xid.parse().ok()).collect();
        } else if let Some(list) = part.strip_prefix("rels: ") {
            end.dropped = list.split_whitespace().map(str::to_owned).collect();
        }
    }
    Some(end)
}

/// What is done with each record, and whether reading goes on.
pub type Each<'a> = dyn FnMut(Record) -> ControlFlow<()> + 'a;

/// Which records are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// All that [`Record`] tells of.
    All,
    /// Ends of transactions alone, which takes a fraction of the time: nothing else has to be printed and read again.
    Ends,
    /// Databases that are made and dropped.
    Databases,
}

/// Reads segments in order and hands on what matters, until there is no more or `each` breaks off. Returns how far it read:
/// the last record of those that were wanted.
pub fn read(
    (programs, folder): (&Path, &Path),
    (segments, segment_size): (&[Key], u32),
    (from, wanted): (Lsn, Wanted),
    progress: &Progress,
    mut each: impl FnMut(Record) -> ControlFlow<()>,
) -> Result<Lsn> {
    let size = u64::from(segment_size);
    progress.begin("reading the WAL", Unit::Bytes, Some(segments.len() as u64 * size));
    let (mut reached, mut told) = (from, from);
    for run in segments.chunk_by(|one, next| one.0 == next.0) {
        let (Some((timeline, first)), Some((_, last))) = (run.first(), run.last()) else { continue };
        let begin = Lsn(from.0.max(first * size));
        let mut command = Command::new(programs.join("pg_waldump"));
        command.env_clear().env("TZ", "UTC").env("LC_ALL", "C").current_dir("/");
        command.arg("--path").arg(folder).args(["--timeline", &timeline.to_string(), "--start", &begin.to_string()]);
        command.args(["--end", &Lsn((last + 1) * size).to_string()]);
        match wanted {
            Wanted::All => {}
            Wanted::Ends => _ = command.arg("--rmgr=Transaction"),
            Wanted::Databases => _ = command.arg("--rmgr=Database"),
        }
        let failed = |error: std::io::Error| Error::operator("pg_waldump does not run").detail(error);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
        let mut ended = false;
        let mut printed = false;
        if let Some(output) = child.stdout.take() {
            let mut output = BufReader::with_capacity(1 << 18, output);
            let mut line = Vec::new();
            loop {
                line.clear();
                let read = (&mut output).take(MAX_LINE).read_until(b'\n', &mut line).map_err(failed)?;
                if read == 0 {
                    break;
                }
                printed = true;
                let line = String::from_utf8_lossy(&line);
                if let Some(lsn) = line.split_once("lsn: ").and_then(|(_, rest)| Lsn::parse(rest.split(',').next()?)) {
                    reached = lsn;
                    if lsn.0 > told.0 + (1 << 20) {
                        progress.advance(lsn.0 - told.0);
                        told = lsn;
                    }
                }
                if progress.check().is_err() || parse(line.trim_end()).is_some_and(|record| each(record).is_break()) {
                    ended = true;
                    break;
                }
            }
        }
        if ended {
            let _ = child.kill();
            let _ = child.wait();
            progress.check()?;
            break;
        }
        let output = child.wait_with_output().map_err(failed)?;
        // Running into the end of what was written is how it always ends; not having read anything is not, but where little is
        // wanted there may be none of it.
        if !printed && wanted == Wanted::All && !output.status.success() {
            return Err(Error::backup(format!("the WAL cannot be read from {begin} on"))
                .detail(String::from_utf8_lossy(&output.stderr))
                .hint("Fetch that segment again from where it was archived first."));
        }
    }
    Ok(reached)
}

/// A transaction that touched a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// Its number.
    pub xid: u32,
    /// When it was committed, by the server's clock.
    pub at: DateTime<Utc>,
    /// Where its commit is.
    pub lsn: Lsn,
    /// Rows that it inserted.
    pub inserted: u64,
    /// Rows that it updated.
    pub updated: u64,
    /// Rows that it deleted.
    pub deleted: u64,
    /// The file of the table went with it: TRUNCATE, DROP, or a rewrite (VACUUM FULL, CLUSTER, some ALTER TABLE). After it
    /// the table, if there still is one, is in another file.
    pub file_dropped: bool,
}

/// The commits that touched a relation between two instants, in the order of the WAL. `relation` is `1663/5/16390`; `read` reads
/// the WAL that matters.
pub fn moments(
    read: impl FnOnce(&mut Each) -> Result<Lsn>,
    relation: &str,
    (from, until): (DateTime<Utc>, DateTime<Utc>),
) -> Result<Vec<Moment>> {
    let mut open: HashMap<u32, [u64; 3]> = HashMap::new();
    let (mut found, mut crowded) = (Vec::new(), false);
    let (database, file) =
        relation.split_once('/').map_or(("", relation), |(_, rest)| rest.split_once('/').unwrap_or(("", rest)));
    let ending = format!("/{database}/{file}");
    read(&mut |record| {
        match record {
            Record::Rows { xid, relation: touched, change, rows } if touched == relation => {
                let counts = open.entry(xid).or_default();
                counts[change as usize] += rows;
                crowded = open.len() > MAX_OPEN;
            }
            Record::End(end) => {
                let mut sum = [0; 3];
                for xid in end.parts.iter().chain([&end.xid]) {
                    let counts = open.remove(xid).unwrap_or_default();
                    sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
                }
                let file_dropped = end.dropped.iter().any(|path| path.ends_with(&ending));
                let touched = file_dropped || sum.iter().any(|count| *count > 0);
                if touched && end.committed && (from..=until).contains(&end.at) {
                    let [inserted, updated, deleted] = sum;
                    found.push(Moment {
                        xid: end.xid,
                        at: end.at,
                        lsn: end.lsn,
                        inserted,
                        updated,
                        deleted,
                        file_dropped,
                    });
                }
            }
            Record::Rows { .. }
            | Record::RestorePoint { .. }
            | Record::BackupEnd { .. }
            | Record::Overwritten { .. }
            | Record::DatabaseDrop { .. } => {}
        }
        if crowded { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if crowded {
        return Err(Error::refused("more than a million transactions on that table are open at once")
            .hint("Give a shorter window."));
    }
    Ok(found)
}

/// A transaction that deleted, updated or dropped something of one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspect {
    /// Its number.
    pub xid: u32,
    /// When it was committed, by the server's clock.
    pub at: DateTime<Utc>,
    /// Where its commit is.
    pub lsn: Lsn,
    /// Rows that it inserted.
    pub inserted: u64,
    /// Rows that it updated.
    pub updated: u64,
    /// Rows that it deleted.
    pub deleted: u64,
    /// Files of tables and indexes that went with it: DROP, TRUNCATE, or a rewrite.
    pub dropped: u64,
    /// Which tables it wrote to, most rows first, and how many rows of each.
    pub tables: Vec<(String, u64)>,
}

impl Suspect {
    /// How much is gone by it, for comparing: a file that was dropped counts as very many rows.
    pub fn weight(&self) -> u64 {
        const FILE: u64 = 100_000;
        self.deleted.saturating_add(self.updated).saturating_add(self.dropped.saturating_mul(FILE))
    }
}

/// Suspects that are kept: the heaviest.
const MAX_SUSPECTS: usize = 200;
/// Tables of one that are named.
const MAX_TABLES: usize = 3;

/// What is looked for: in which database, and between which two instants.
pub struct Search<'a> {
    /// Its number.
    pub database: u32,
    /// Tables by their files, those of the system left out; a file that is not here is of a table that is gone.
    pub names: &'a HashMap<u32, String>,
    /// Files that are not of interest: of catalogs, and of indexes.
    pub others: &'a std::collections::HashSet<u32>,
    /// By the server's clock.
    pub from: DateTime<Utc>,
    /// By the server's clock.
    pub until: DateTime<Utc>,
}

/// The commits that deleted, updated or dropped something, the heaviest of them, in the order of the WAL. `read` reads the WAL
/// that matters.
pub fn suspects(read: impl FnOnce(&mut Each) -> Result<Lsn>, search: &Search) -> Result<Vec<Suspect>> {
    type Written = HashMap<u32, [u64; 3]>;
    // Commits are not quite in the order of their times.
    let late = search.until + chrono::TimeDelta::minutes(1);
    let file_of = |path: &str| {
        let mut parts = path.rsplit('/');
        let (file, database) = (parts.next()?.parse::<u32>().ok()?, parts.next()?.parse::<u32>().ok()?);
        // Files of the system keep the numbers below until they are rewritten.
        (database == search.database && file >= 16_384 && !search.others.contains(&file)).then_some(file)
    };
    let (mut open, mut found, mut crowded): (HashMap<u32, Written>, Vec<Suspect>, bool) =
        (HashMap::new(), Vec::new(), false);
    read(&mut |record| {
        match record {
            Record::Rows { xid, relation, change, rows } => {
                let Some(file) = file_of(&relation) else { return ControlFlow::Continue(()) };
                let counts = open.entry(xid).or_default().entry(file).or_default();
                counts[change as usize] += rows;
                crowded = open.len() > MAX_OPEN;
            }
            Record::End(end) => {
                let mut written = Written::new();
                for xid in end.parts.iter().chain([&end.xid]) {
                    for (file, counts) in open.remove(xid).unwrap_or_default() {
                        let sum = written.entry(file).or_default();
                        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
                    }
                }
                let dropped = end.dropped.iter().filter(|path| file_of(path).is_some()).count() as u64;
                let sum = |place: usize| written.values().map(|counts| counts[place]).sum::<u64>();
                let [inserted, updated, deleted] = [0, 1, 2].map(sum);
                if end.committed && updated + deleted + dropped > 0 && (search.from..=search.until).contains(&end.at) {
                    let mut tables: Vec<(String, u64)> = written
                        .iter()
                        .map(|(file, counts)| {
                            let name = search.names.get(file).map_or("a table that is gone", String::as_str);
                            (name.to_owned(), counts.iter().sum())
                        })
                        .collect();
                    tables.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
                    tables.truncate(MAX_TABLES);
                    let (xid, at, lsn) = (end.xid, end.at, end.lsn);
                    found.push(Suspect { xid, at, lsn, inserted, updated, deleted, dropped, tables });
                    if found.len() > 2 * MAX_SUSPECTS {
                        found.sort_by_key(|suspect| std::cmp::Reverse(suspect.weight()));
                        found.truncate(MAX_SUSPECTS);
                    }
                }
                if end.at > late {
                    return ControlFlow::Break(());
                }
            }
            Record::RestorePoint { .. }
            | Record::BackupEnd { .. }
            | Record::Overwritten { .. }
            | Record::DatabaseDrop { .. } => {}
        }
        if crowded { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if crowded {
        return Err(Error::refused("more than a million transactions are open at once in the WAL")
            .hint("Give the moment yourself."));
    }
    found.sort_by_key(|suspect| std::cmp::Reverse(suspect.weight()));
    found.truncate(MAX_SUSPECTS);
    found.sort_by_key(|suspect| suspect.lsn);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(manager: &str, said: &str) -> Option<Record> {
        parse(&format!(
            "rmgr: {manager} len (rec/tot):     46/    46, tx:        727, lsn: 0/04004E00, prev 0/04004DB0, desc: {said}"
        ))
    }

    #[test]
    fn ends_of_transactions_are_read() {
        let said =
            "COMMIT 2026-11-28 21:20:14.614161 UTC; subxacts: 728 729; rels: base/5/16390; inval msgs: catcache 55";
        let Some(Record::End(end)) = record("Transaction", said) else { panic!("{said}") };
        assert_eq!((end.xid, end.committed, end.parts), (727, true, vec![728, 729]));
        assert_eq!(end.dropped, ["base/5/16390"]);
        assert_eq!(end.at.to_rfc3339(), "2026-11-28T21:20:14.614161+00:00");
        let Some(Record::End(end)) = record("Transaction", "ABORT_PREPARED 9: 2026-11-28 21:20:14.6 UTC") else {
            panic!()
        };
        assert_eq!((end.xid, end.committed), (9, false));
    }

    #[test]
    fn rows_are_counted_in_the_words_of_each_version() {
        let rows = |said: &str| match record("Heap2", said) {
            Some(Record::Rows { relation, change, rows, .. }) => Some((relation, change, rows)),
            _ => None,
        };
        let relation = "1663/5/16390".to_owned();
        for said in [
            "MULTI_INSERT+INIT 49 tuples flags 0x02, blkref #0: rel 1663/5/16390 blk 2",
            "MULTI_INSERT ntuples: 49, flags: 0x02, offsets: [1], blkref #0: rel 1663/5/16390 blk 2",
        ] {
            assert_eq!(rows(said), Some((relation.clone(), Change::Insert, 49)));
        }
        let said = "DELETE off 6 flags 0x00 KEYS_UPDATED , blkref #0: rel 1663/5/16390 blk 0";
        assert_eq!(rows(said), Some((relation.clone(), Change::Delete, 1)));
        let said = "HOT_UPDATE off 3 xmax 720 flags 0x20 ; new off 6 xmax 0, blkref #0: rel 1663/5/16390 blk 0";
        assert_eq!(rows(said), Some((relation, Change::Update, 1)));
        assert_eq!(rows("LOCK off 1: xid 5: flags 0x00 LOCK_ONLY, blkref #0: rel 1663/5/16390 blk 0"), None);
    }

    #[test]
    fn what_a_restore_point_is_called_may_hold_anything() {
        let name = "before, desc: lsn: 9/9".to_owned();
        let lsn = Lsn(0x400_4E00);
        assert_eq!(record("XLOG", &format!("RESTORE_POINT {name}")), Some(Record::RestorePoint { lsn, name }));
    }
}
