//! Rows of a backup, loaded beside production: in a schema that we made and marked, in unlogged tables that hold values and
//! no code.
//!
//! Invariants:
//! - A staging table has no CHECK, DEFAULT, GENERATED, trigger, domain or type of an extension: nothing that a dump says
//!   can make the server run anything but the input functions of built-in types.
//! - A table is there with all its rows or not at all: it is created, filled and committed in one transaction; a large one,
//!   which two sessions fill, is dropped again when one of them fails.
//! - What is dropped carries our mark; a schema of somebody else is never touched.

mod binary;
mod cast;
mod columns;
mod copy;

use std::io::Read;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

pub(super) use binary::Columns;
pub(super) use columns::live_types;
pub use columns::{Compare, StagedColumn, Target, columns};
pub use copy::Source;
pub(super) use copy::{Statement, copy, copy_by_two, encoding_option};

use super::connect::{Session, server_error, session_name};
use super::name::{Name, quote, quote_list};
use crate::error::{Error, Kind, Result};
use crate::progress::{Progress, Unit};

const SCRATCH: &str = "restore_staging_";
pub(super) const UNDO: &str = "lifeboat_undo_";

/// The longest recovery id that still makes a schema name.
const LONGEST_ID: usize = 40;

/// The scratch space of one recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scratch {
    /// `restore_staging_<recovery>`
    pub schema: String,
    /// The recovery's id; the schema's mark must say the same.
    pub recovery: String,
}

impl Scratch {
    /// The scratch space that a recovery has, or would have; nothing is looked at.
    pub fn of(recovery: &str) -> Result<Self> {
        check_id(recovery)?;
        Ok(Self { schema: format!("{SCRATCH}{recovery}"), recovery: recovery.into() })
    }

    /// A table in it, as SQL.
    pub(super) fn table(&self, kind: &str, number: usize) -> String {
        Name::new(&*self.schema, format!("{kind}{number}")).sql()
    }
}

/// What is written on every schema and database that we make, so that we know it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The recovery's id.
    pub lifeboat: String,
    /// By the server's clock.
    pub created: String,
    /// The role that made it.
    pub by: String,
    /// The machine that Lifeboat ran on.
    pub host: String,
    /// On a database: the one in whose place it is to go, or was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
}

impl Mark {
    /// Made by this machine now, by the server's clock.
    pub(super) async fn new(client: &Client, recovery: &str, database: Option<&str>) -> Result<Self> {
        let row = client.query_one("SELECT session_user::text, pg_catalog.now()::text", &[]).await;
        let row = row.map_err(|error| server_error(error, "asking the server who we are and what time it is"))?;
        let (by, created) = (row.get(0), row.get(1));
        Ok(Self { lifeboat: recovery.into(), created, by, host: host(), database: database.map(str::to_owned) })
    }

    /// How long ago it was made, by the server's clock.
    pub(super) fn age_seconds(&self, now: DateTime<Utc>) -> Option<u64> {
        let made = DateTime::parse_from_str(&self.created, "%Y-%m-%d %H:%M:%S%.f%#z").ok()?;
        u64::try_from((now - made.to_utc()).num_seconds()).ok()
    }
}

/// A schema or database of ours that is still there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// As the catalog holds it, of a database too; it may be another's, see `mark`.
    pub schema: String,
    /// By the beginning of its name.
    pub kind: LeftoverKind,
    /// `None`: the name is like ours but the mark is not; it is never touched.
    pub mark: Option<Mark>,
    /// As its tables take on the server's disk, with indexes and TOAST.
    pub bytes: u64,
    /// Since it was made, by the server's clock; `None` without a mark.
    pub age_seconds: Option<u64>,
    /// A session of its recovery is connected.
    pub in_use: bool,
}

/// What a schema or database of ours is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftoverKind {
    /// Scratch space: of use only while its recovery runs.
    Staging,
    /// Pre-images and token of a merge: dropping it makes undo impossible.
    Undo,
    /// A database that was restored, and is not in production's place.
    RestoredDatabase,
    /// The database that another one took the place of: dropping it makes going back impossible.
    EarlierDatabase,
}

impl LeftoverKind {
    /// Whether it is a whole database.
    pub fn is_database(self) -> bool {
        matches!(self, Self::RestoredDatabase | Self::EarlierDatabase)
    }
}

pub(super) fn check_id(recovery: &str) -> Result<()> {
    let plain = recovery.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    if plain && (1..=LONGEST_ID).contains(&recovery.len()) {
        Ok(())
    } else {
        Err(Error::operator(format!("\"{recovery}\" is not the id of a recovery"))
            .hint("An id has up to 40 lower-case letters, digits, hyphens and underscores."))
    }
}

/// Makes the scratch space of a recovery, or finds it again when the recovery made it before. Refuses a schema of that
/// name that is not ours.
pub async fn create_scratch(client: &Client, recovery: &str) -> Result<Scratch> {
    let scratch = Scratch::of(recovery)?;
    if let Some(mark) = schema_mark(client, &scratch.schema).await? {
        return match mark {
            Some(mark) if mark.lifeboat == recovery => Ok(scratch),
            _ => Err(not_ours(&scratch.schema)),
        };
    }
    let sql = format!("BEGIN; {}; COMMIT", create_schema_sql(client, &scratch.schema, recovery).await?);
    if let Err(error) = client.batch_execute(&sql).await {
        rollback(client).await;
        return Err(server_error(error, "creating the staging schema"));
    }
    Ok(scratch)
}

/// The scratch space that the recovery made before, if it is still there.
pub async fn find_scratch(client: &Client, recovery: &str) -> Result<Option<Scratch>> {
    let scratch = Scratch::of(recovery)?;
    let mark = schema_mark(client, &scratch.schema).await?;
    Ok(mark.flatten().filter(|mark| mark.lifeboat == recovery).map(|_| scratch))
}

/// Removes the scratch space with everything in it, whatever state the session is in. Does nothing when it is gone.
pub async fn drop_scratch(client: &Client, scratch: &Scratch) -> Result<()> {
    rollback(client).await;
    drop_schema(client, &scratch.schema, &scratch.recovery).await
}

/// Schemas that recoveries have left: scratch space that outlived a crash, and the pre-images that undo needs.
pub async fn leftovers(client: &Client) -> Result<Vec<Leftover>> {
    let sql = "SELECT n.nspname::text, pg_catalog.obj_description(n.oid, 'pg_namespace'),
            (SELECT coalesce(pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid)), 0)::bigint
             FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p')),
            pg_catalog.clock_timestamp()
        FROM pg_catalog.pg_namespace n
        WHERE pg_catalog.starts_with(n.nspname::text, $1) OR pg_catalog.starts_with(n.nspname::text, $2)
        ORDER BY n.nspname";
    let in_use = "SELECT DISTINCT application_name FROM pg_catalog.pg_stat_activity
        WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid()";
    let failed = |error| server_error(error, "looking which recoveries are connected");
    let in_use: Vec<Option<String>> =
        client.query(in_use, &[]).await.map_err(failed)?.iter().map(|row| row.get(0)).collect();
    let rows = client
        .query(sql, &[&SCRATCH, &UNDO])
        .await
        .map_err(|error| server_error(error, "listing the schemas of Lifeboat"))?;
    Ok(rows
        .iter()
        .map(|row| {
            let schema: String = row.get(0);
            let kind = if schema.starts_with(UNDO) { LeftoverKind::Undo } else { LeftoverKind::Staging };
            let mark = row.get::<_, Option<String>>(1).and_then(|text| serde_json::from_str::<Mark>(&text).ok());
            let age = mark.as_ref().and_then(|mark| mark.age_seconds(row.get(3)));
            let session = mark.as_ref().map(|mark| session_name(&mark.lifeboat));
            let in_use = in_use.contains(&session);
            Leftover {
                schema,
                kind,
                mark,
                bytes: row.get::<_, i64>(2).try_into().unwrap_or(0),
                age_seconds: age,
                in_use,
            }
        })
        .collect())
}

/// Removes a schema that a recovery has left, after another look: it must be ours, and nobody may be using it.
pub async fn remove(client: &Client, leftover: &Leftover) -> Result<()> {
    let now = leftovers(client).await?.into_iter().find(|now| now.schema == leftover.schema);
    match (now, &leftover.mark) {
        (None, _) => Ok(()),
        (Some(now), Some(mark)) if now.mark.as_ref() == Some(mark) && !now.in_use => {
            drop_schema(client, &now.schema, &mark.lifeboat).await
        }
        (Some(now), _) => Err(Error::refused(format!("{} is in use, or has changed since it was shown", now.schema))
            .hint("Look again with lifeboat clean.")),
    }
}

/// The statements that make a schema of ours, private and marked.
pub(super) async fn create_schema_sql(client: &Client, schema: &str, recovery: &str) -> Result<String> {
    let failed = |error| server_error(error, "naming the schema to create");
    let mark = Mark::new(client, recovery, None).await?;
    let mark =
        serde_json::to_string(&mark).map_err(|error| Error::bug("a schema's mark cannot be written").detail(error))?;
    // A comment cannot be bound; the server itself quotes it.
    let comment = "SELECT pg_catalog.format('COMMENT ON SCHEMA %I IS %L', $1::text, $2::text)";
    let comment: String = client.query_one(comment, &[&schema, &mark]).await.map_err(failed)?.get(0);
    let schema = quote(schema);
    Ok(format!("CREATE SCHEMA {schema}; REVOKE ALL ON SCHEMA {schema} FROM PUBLIC; {comment}"))
}

/// Drops a schema that carries the mark of that recovery.
pub(super) async fn drop_schema(client: &Client, schema: &str, recovery: &str) -> Result<()> {
    match schema_mark(client, schema).await? {
        None => Ok(()),
        Some(Some(mark)) if mark.lifeboat == recovery => client
            .batch_execute(&format!("DROP SCHEMA {} CASCADE", quote(schema)))
            .await
            .map_err(|error| server_error(error, &format!("dropping the schema {schema}"))),
        Some(_) => Err(not_ours(schema)),
    }
}

/// `None`: there is no such schema. `Some(None)`: there is, and it does not carry a mark of ours.
pub(super) async fn schema_mark(client: &Client, schema: &str) -> Result<Option<Option<Mark>>> {
    let sql = "SELECT pg_catalog.obj_description(oid, 'pg_namespace') FROM pg_catalog.pg_namespace WHERE nspname = $1";
    let row = client
        .query_opt(sql, &[&schema])
        .await
        .map_err(|error| server_error(error, "looking for the schema of this recovery"))?;
    Ok(row.map(|row| row.get::<_, Option<String>>(0).and_then(|text| serde_json::from_str(&text).ok())))
}

fn not_ours(schema: &str) -> Error {
    Error::refused(format!("the schema {schema} exists and was not made by this recovery"))
        .hint("Look at it, rename or drop it by hand, and try again.")
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "?".into(), |name| name.trim().into())
}

/// What is to be staged.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The table in the backup, for messages.
    pub table: Name,
    /// Which table of the recovery it is; the staging table is called `t<number>`.
    pub number: usize,
    /// In the order of the COPY rows.
    pub columns: Vec<StagedColumn>,
    /// The encoding of the rows, when it is not UTF8.
    pub encoding: Option<String>,
}

/// What was staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// All that were loaded: one a line of COPY text.
    pub rows: u64,
    /// Uncompressed COPY text.
    pub bytes: u64,
}

/// From so many compressed bytes on a second session is worth its while.
pub const LARGE: u64 = 8 * 1024 * 1024;

/// Loads rows in COPY text format, without the end marker, into a new staging table, brings columns whose type has
/// changed to the live type, and gathers statistics. A `second` session loads a part of the rows. On an error or when
/// cancelled nothing of the table stays, and the sessions can go on.
///
/// Errors: what `rows` reports (an [`Error`] inside an [`std::io::Error`] is handed on as it is); a row that the server
/// does not take, with its line; a value that does not fit the live type, with the column and a sample.
pub async fn stage(
    (client, second): (&Session, Option<&Session>),
    scratch: &Scratch,
    spec: &Spec,
    rows: impl Read + Send + 'static,
    source: Option<Source>,
    progress: &Progress,
) -> Result<Staged> {
    if spec.columns.is_empty() {
        return Err(Error::refused(format!("{} has no columns to load", spec.table)));
    }
    let total = source.as_ref().and_then(|source| source.total);
    progress.begin(format!("staging {}", spec.table), Unit::Bytes, total);
    let encoding = encoding_option(client, spec.encoding.as_deref()).await?;
    let table = scratch.table("t", spec.number);
    let failed = |error| server_error(error, &format!("creating the staging table of {}", spec.table));
    let loaded = if let Some(second) = second {
        // The table is there before two transactions fill it, and goes again when one of them fails.
        client.batch_execute(&format!("BEGIN; {}; COMMIT", create_sql(&table, spec))).await.map_err(failed)?;
        let sql = copy_sql(&table, spec, &encoding);
        let outcome = async {
            for session in [client, second] {
                session.batch_execute("BEGIN; SET LOCAL statement_timeout = 0").await.map_err(failed)?;
            }
            copy_by_two([client, second], &sql, &spec.table, rows, source, progress).await
        };
        let outcome = finish(client, outcome.await).await;
        finish(second, outcome).await
    } else {
        let outcome = async {
            client.batch_execute("BEGIN").await.map_err(failed)?;
            load(client, &table, spec, &encoding, rows, source, progress).await
        };
        finish(client, outcome.await).await
    };
    let staged = match loaded {
        Ok(staged) => settle(client, &table, spec, progress).await.map(|()| staged),
        Err(error) => Err(error),
    };
    if staged.is_err() {
        rollback(client).await;
        // The first error is the one to tell; what cannot be dropped here goes with the scratch space.
        let _ = client.batch_execute(&format!("DROP TABLE IF EXISTS {table}")).await;
    }
    staged
}

/// Creates a staging table and fills it, in the transaction of the caller: so FREEZE spares every later scan the hint bits.
pub(super) async fn load(
    client: &Session,
    table: &str,
    spec: &Spec,
    encoding: &str,
    rows: impl Read + Send + 'static,
    source: Option<Source>,
    progress: &Progress,
) -> Result<Staged> {
    let failed = |error| server_error(error, &format!("creating the staging table of {}", spec.table));
    client.batch_execute(&create_sql(table, spec)).await.map_err(failed)?;
    let sql = Statement::text(copy_sql(table, spec, &format!(", FREEZE{encoding}")));
    copy(client, &sql, &spec.table, rows, source, progress).await
}

fn create_sql(table: &str, spec: &Spec) -> String {
    let definitions: Vec<_> = spec.columns.iter().map(StagedColumn::definition).collect();
    format!(
        "SET LOCAL statement_timeout = 0; DROP TABLE IF EXISTS {table}; \
         CREATE UNLOGGED TABLE {table} ({}) WITH (autovacuum_enabled = off)",
        definitions.join(", ")
    )
}

fn copy_sql(table: &str, spec: &Spec, options: &str) -> String {
    let columns = quote_list(spec.columns.iter().map(|column| &column.name));
    format!("COPY {table} ({columns}) FROM STDIN WITH (FORMAT text{options})")
}

/// Casts what has to be cast, then gathers just enough statistics for the planner: it needs the number of rows, and
/// whether they lie in the order of their key.
async fn settle(client: &Session, table: &str, spec: &Spec, progress: &Progress) -> Result<()> {
    cast::settle(client, table, &spec.table, &spec.columns, progress).await?;
    let sql = format!("BEGIN; SET LOCAL default_statistics_target = 10; ANALYZE {table}; COMMIT");
    client.batch_execute(&sql).await.map_err(|error| server_error(error, "analysing the staging table"))
}

/// Commits when the work went well, else rolls back; the work's own error comes first.
pub(super) async fn finish<T>(client: &Client, outcome: Result<T>) -> Result<T> {
    match outcome {
        Ok(value) => match client.batch_execute("COMMIT").await {
            Ok(()) => Ok(value),
            Err(error) => {
                rollback(client).await;
                Err(server_error(error, "committing"))
            }
        },
        Err(error) => {
            rollback(client).await;
            Err(error)
        }
    }
}

/// Leaves whatever transaction the session is in. Its own failure says nothing new: the session is gone then.
pub(super) async fn rollback(client: &Client) {
    let _ = client.batch_execute("ROLLBACK").await;
}

/// Waits for a piece of server work and asks the server to stop it when the operator does.
pub(super) async fn stoppable<T, E: From<Error> + AsRef<Error>>(
    client: &Session,
    progress: &Progress,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::pin!(work);
    progress.check()?;
    tokio::select! {
        outcome = &mut work => outcome,
        () = progress.cancelled() => {
            let _ = client.cancel().await;
            // The session is usable again only when the statement has ended.
            let stopped_by_the_server = work.await.is_err_and(|error| {
                let error: &Error = error.as_ref();
                error.kind == Kind::Cancelled && error.detail.is_some()
            });
            if !stopped_by_the_server {
                meet_late_cancel(client).await;
            }
            Err(Error::cancelled().into())
        }
    }
}

/// A wish to stop travels on a connection of its own. When the statement that it was meant for has ended by itself, it
/// hits a later one, which could be the removal of what was staged: it is given a statement to hit.
async fn meet_late_cancel(client: &Client) {
    rollback(client).await;
    let _ = client.batch_execute("SELECT pg_catalog.pg_sleep(5)").await;
}
