//! The deed: one transaction that writes what was frozen, proves it to itself, and commits; or leaves no trace.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::{Severity, SqlState};

use super::super::claim;
use super::super::connect::{Session, server_error};
use super::super::diff::compare::by_place;
use super::super::name::Name;
use super::super::schema;
use super::super::stage::{self, Scratch};
use super::frozen::{self, CLASS, GUARD, ROW, Work, undo_schema};
use super::{Applied, ChangeSet, TableApplied, foreign_code};
use crate::error::{Error, Kind, Result};
use crate::progress::{Progress, Unit};

/// How often a merge is begun anew when the application holds a lock that it needs.
const ATTEMPTS: u32 = 3;

/// Settings of the transaction.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '2s'; \
     SET LOCAL statement_timeout = 0; SET LOCAL jit = off; SET LOCAL work_mem = '64MB'";

/// Triggers expect the search path that their own application has. What we read and hash is printed with ours: the name of a
/// table is written with its schema or without, as the search path says.
pub(super) const THEIR_PATH: &str = "SET LOCAL search_path TO DEFAULT";
const OUR_PATH: &str = "SET LOCAL search_path = pg_catalog, pg_temp";

/// What is told while a COMMIT is under way.
const COMMITTING: &str = "too late to cancel: committing";

/// What a transaction whose end nobody saw has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The token is there: it was committed, with these counts.
    Applied(Applied),
    /// There is no token: it was rolled back or never began, and changed nothing.
    NotApplied,
}

/// Why an attempt ended.
pub(super) struct Failure {
    pub error: Error,
    /// Somebody held a lock; a moment later he may not.
    pub again: bool,
}

impl Failure {
    pub fn server(error: tokio_postgres::Error, doing: &str) -> Self {
        let again =
            [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE];
        let again = error.code().is_some_and(|code| again.contains(code));
        Self { error: server_error(error, doing), again }
    }
}

impl AsRef<Error> for Failure {
    fn as_ref(&self) -> &Error {
        &self.error
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, again: false }
    }
}

impl Outcome {
    /// What was written, if it was.
    pub fn applied(self) -> Option<Applied> {
        match self {
            Self::Applied(applied) => Some(applied),
            Self::NotApplied => None,
        }
    }
}

/// Writes an approved change-set in one transaction.
///
/// Errors: [`Kind::Unresolved`] when the reply to COMMIT was lost; with every other error nothing was changed. Rows that
/// moved since the preview, a count that is not the promised one, a value that a trigger has changed: all end in ROLLBACK.
///
/// `journal` is the head of the recovery's journal: kept with the token, where nobody on the operator's side can change it.
pub async fn apply(
    client: &Session,
    scratch: &Scratch,
    changes: &ChangeSet,
    journal: &str,
    progress: &Progress,
) -> Result<Applied> {
    let works = frozen::load(client, &scratch.schema).await?;
    let same = works.len() == changes.tables.len()
        && works.iter().zip(&changes.tables).all(|(work, table)| {
            work.table.live.name == table.table && work.script(scratch).statements() == table.statements
        });
    if !same {
        return Err(altered());
    }
    let merge = Merge { client, scratch, works: &works, hash: &changes.hash, journal };
    retry(progress, || committed(client, progress, merge.write(progress))).await
}

/// Tries again for a while when a lock was in the way.
pub(super) async fn retry<F: Future<Output = Result<Applied, Failure>>>(
    progress: &Progress,
    attempt: impl Fn() -> F,
) -> Result<Applied> {
    let mut made = 1;
    loop {
        match attempt().await {
            Ok(applied) => return Ok(applied),
            Err(Failure { again: true, .. }) if made < ATTEMPTS => {
                progress.begin("another session holds a lock; trying again", Unit::Rows, None);
                tokio::time::sleep(Duration::from_secs(u64::from(made))).await;
                progress.check()?;
                made += 1;
            }
            Err(Failure { error, again }) => {
                return Err(if again {
                    error.hint("Nothing was changed. Wait until that session is done, or look at it in pg_stat_activity; then try again.")
                } else {
                    error
                });
            }
        }
    }
}

/// Commits what was done in a transaction, or rolls it back. `work` begins the transaction.
pub(super) async fn committed(
    client: &Session,
    progress: &Progress,
    work: impl Future<Output = Result<Applied, Failure>>,
) -> Result<Applied, Failure> {
    match stage::stoppable(client, progress, work).await {
        Ok(applied) => {
            progress.begin(COMMITTING, Unit::Rows, None);
            commit(client).await.map(|()| applied)
        }
        Err(failure) => {
            stage::rollback(client).await;
            Err(failure)
        }
    }
}

fn altered() -> Error {
    Error::refused("what is frozen on the server is not what was approved")
        .hint("Nothing was changed. Go back and compare again.")
}

struct Merge<'a> {
    client: &'a Session,
    scratch: &'a Scratch,
    works: &'a [Work],
    hash: &'a str,
    journal: &'a str,
}

impl Merge<'_> {
    /// Everything but COMMIT.
    async fn write(&self, progress: &Progress) -> Result<Applied, Failure> {
        let rows = self.works.iter().map(|work| work.inserts + work.updates + work.deletes).sum();
        progress.begin("merging: the frozen rows are compared with what was approved", Unit::Rows, None);
        self.run(BEGIN, "beginning the transaction").await?;
        for work in self.works {
            claim::claim_or_refuse(self.client, &work.table.live.name, work.table.live.oid).await?;
        }
        // Nobody can change what is hashed here before it is written.
        for work in self.works {
            self.run(&format!("LOCK TABLE {} IN SHARE MODE", work.change(self.scratch)), "locking the frozen rows")
                .await?;
        }
        if frozen::hash(self.client, self.scratch, self.works).await? != self.hash {
            return Err(altered().into());
        }
        progress.begin("merging: the rows are kept as they are now, for undo", Unit::Rows, None);
        keep(self.client, &self.scratch.recovery, self.works).await?;
        let scripts: Vec<_> = self.works.iter().map(|work| (work, work.script(self.scratch))).collect();
        for (work, script) in &scripts {
            self.guard(work, &script.before).await?;
            self.unchanged(work).await?;
        }
        self.run(THEIR_PATH, "setting the search path").await?;
        for (work, script) in &scripts {
            for statement in &script.disable {
                self.run(statement, &format!("skipping triggers of {}", work.table.live.name)).await?;
            }
        }
        // One statement for each table and kind of row: the server says nothing before each is done.
        progress.begin("merging: rows are written", Unit::Rows, Some(rows));
        let mut tables: Vec<_> = self.works.iter().map(blank).collect();
        // Rows go before those that they refer to, and come after them.
        for ((work, script), table) in scripts.iter().zip(&mut tables).rev() {
            table.deleted = self.promised(work, script.delete.as_deref(), work.deletes, "delete", progress).await?;
        }
        for ((work, script), table) in scripts.iter().zip(&mut tables) {
            table.updated = self.promised(work, script.update.as_deref(), work.updates, "update", progress).await?;
            table.inserted = self.promised(work, script.insert.as_deref(), work.inserts, "insert", progress).await?;
        }
        self.run("SET CONSTRAINTS ALL IMMEDIATE", "checking the constraints").await?;
        self.run(OUR_PATH, "setting the search path").await?;
        progress.begin("merging: what was written is read again", Unit::Rows, None);
        for (work, script) in &scripts {
            self.hold(work).await?;
            for statement in script.enable.iter().chain(&script.sequences) {
                self.run(statement, &format!("finishing {}", work.table.live.name)).await?;
            }
        }
        let recovery = &self.scratch.recovery;
        let schema = undo_schema(recovery);
        let transaction = token(self.client, &schema, ("merge", recovery), self.hash, self.journal, &tables).await?;
        Ok(Applied { tables, transaction })
    }

    async fn run(&self, sql: &str, doing: &str) -> Result<(), Failure> {
        self.client.batch_execute(sql).await.map_err(|error| Failure::server(error, doing))
    }

    /// Takes pre-images, and with them a lock on each row that is still the one that was compared; all of them must be.
    async fn guard(&self, work: &Work, statements: &[String]) -> Result<(), Failure> {
        let name = &work.table.live.name;
        let doing = format!("keeping the rows of {name} as they are now");
        if by_place(&work.table) && work.inserts > 0 {
            // No index keeps others from adding a row with the same key meanwhile.
            self.run(&format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", name.sql()), &doing).await?;
        }
        let mut kept = 0;
        for statement in statements {
            kept += self.client.execute(statement, &[]).await.map_err(|error| Failure::server(error, &doing))?;
        }
        if kept != work.inserts + work.updates + work.deletes {
            return Err(self.moved(work).await?);
        }
        if work.inserts > 0 {
            let sql = format!(
                "SELECT pg_catalog.count(*), (pg_catalog.array_agg({}))[1:10] FROM {} c WHERE c.{CLASS} = 'm'
                 AND EXISTS (SELECT FROM {} live WHERE {})",
                work.key_text("c"),
                work.change(self.scratch),
                work.source(),
                work.on_key("live", "c")
            );
            let row = self.client.query_one(&sql, &[]).await.map_err(|error| Failure::server(error, &doing))?;
            let rows: i64 = row.get(0);
            if rows > 0 {
                return Err(Error::refused(format!("{rows} missing rows of {name} came back since the preview"))
                    .hint("Nothing was changed. Go back and compare again.")
                    .detail(format!("for example {}", sample(row.get(1))))
                    .into());
            }
        }
        Ok(())
    }

    /// Why not every row could be kept: it is another version now, or somebody is about to make one.
    async fn moved(&self, work: &Work) -> Result<Failure, Failure> {
        let name = &work.table.live.name;
        let key = work.key_text("c");
        let sql = format!(
            "SELECT pg_catalog.count(*) FILTER (WHERE live.tableoid IS NULL),
                (pg_catalog.array_agg({key}) FILTER (WHERE live.tableoid IS NULL))[1:10],
                pg_catalog.count(*) FILTER (WHERE live.tableoid IS NOT NULL),
                (pg_catalog.array_agg({key}) FILTER (WHERE live.tableoid IS NOT NULL))[1:10]
             FROM {} c LEFT JOIN {} live ON {} AND live.xmin = c.{GUARD}
             WHERE c.{CLASS} <> 'm' AND NOT EXISTS (SELECT FROM {} b WHERE b.{ROW} = c.{ROW})",
            work.change(self.scratch),
            work.source(),
            work.on_key("live", "c"),
            work.kept(&self.scratch.recovery, "before")
        );
        let failed = |error| Failure::server(error, &format!("looking at the rows of {name} that have moved"));
        let row = self.client.query_one(&sql, &[]).await.map_err(failed)?;
        let (moved, locked): (i64, i64) = (row.get(0), row.get(2));
        Ok(if moved > 0 {
            Error::refused(format!("{moved} rows of {name} moved since the preview"))
                .hint("Nothing was changed. Go back and compare again: what the application wrote meanwhile stays.")
                .detail(format!("for example {}", sample(row.get(1))))
                .into()
        } else {
            let error = Error::target(format!("{locked} rows of {name} are locked by another session"))
                .detail(format!("for example {}", sample(row.get(3))));
            Failure { error, again: true }
        })
    }

    /// What would run while rows are written is what was shown; nobody can add to it now, as the rows are locked.
    async fn unchanged(&self, work: &Work) -> Result<(), Failure> {
        let live = &work.table.live;
        let triggers = schema::triggers(self.client, &[live.oid]).await?;
        if triggers.iter().map(|(_, trigger)| trigger).ne(&work.triggers) {
            return Err(Error::refused(format!("the triggers of {} changed since the preview", live.name))
                .hint("Nothing was changed. Go back and compare again.")
                .into());
        }
        Ok(foreign_code::refuse(self.client, work).await?)
    }

    async fn promised(
        &self,
        work: &Work,
        statement: Option<&str>,
        promised: u64,
        verb: &str,
        progress: &Progress,
    ) -> Result<u64, Failure> {
        let Some(statement) = statement else { return Ok(0) };
        let name = &work.table.live.name;
        let failed = |error| Failure::server(error, &format!("the {verb} of {promised} rows of {name}"));
        let rows = self.client.execute(statement, &[]).await.map_err(failed)?;
        if rows != promised {
            return Err(Error::refused(format!("the server wants to {verb} {rows} rows of {name}, and {promised} were promised"))
                .hint("Nothing was changed. A trigger that swallows or adds rows may be the reason; let it be skipped, or compare again.")
                .into());
        }
        progress.advance(rows);
        Ok(rows)
    }

    /// Every row must be what was approved, after all triggers.
    async fn hold(&self, work: &Work) -> Result<(), Failure> {
        let name = &work.table.live.name;
        let failed = |error| Failure::server(error, &format!("reading {name} again"));
        let row =
            self.client.query_one(&differing(work, &work.change(self.scratch), None), &[]).await.map_err(failed)?;
        let rows: i64 = row.get(0);
        if rows == 0 {
            return Ok(());
        }
        let sql = differing_columns(work, &work.change(self.scratch));
        let places: Vec<i32> = self.client.query_one(&sql, &[]).await.map_err(failed)?.get(0);
        let columns =
            work.written().filter(|(place, ..)| places.iter().any(|wrong| usize::try_from(*wrong) == Ok(*place)));
        let columns: Vec<_> = columns.map(|(_, column, _)| column.name.as_str()).collect();
        let what = if columns.is_empty() { String::new() } else { format!(" in {}", columns.join(", ")) };
        let error =
            Error::refused(format!("{rows} rows of {name} are not what was written{what}: a trigger has changed them"))
                .hint(
                    "Nothing was changed. Go back and choose to skip the triggers, or leave those columns as they are.",
                )
                .detail(format!("for example {}", sample(row.get(2))));
        Err(error.into())
    }
}

/// Makes the schema that undo and the resolver read. A schema that is there says that this recovery has been merged.
pub(super) async fn keep(client: &Client, recovery: &str, works: &[Work]) -> Result<(), Failure> {
    let schema = undo_schema(recovery);
    if stage::schema_mark(client, &schema).await?.is_some() {
        return Err(Error::refused(format!("recovery {recovery} has been merged before"))
            .hint("Begin a new recovery to bring back more rows.")
            .detail(format!("its pre-images are in the schema {schema}"))
            .into());
    }
    let create = stage::create_schema_sql(client, &schema, recovery).await?;
    let (frozen, applied) = (Name::new(&*schema, "frozen").sql(), Name::new(&*schema, "applied").sql());
    let sql = format!(
        "{create}; CREATE TABLE {frozen} (place int PRIMARY KEY, work text); \
         CREATE TABLE {applied} (step text, by text, hash text, transaction pg_catalog.xid8, applied_at timestamptz, tables text, journal text)"
    );
    let made = client.batch_execute(&sql).await;
    made.map_err(|error| Failure::server(error, "making room for the pre-images"))?;
    Ok(frozen::insert(client, &frozen, works).await?)
}

fn blank(work: &Work) -> TableApplied {
    TableApplied { table: work.table.live.name.clone(), inserted: 0, updated: 0, deleted: 0 }
}

pub(super) fn sample(keys: Option<Vec<Option<String>>>) -> String {
    keys.unwrap_or_default().into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// Counts the frozen rows that production does not hold: all; of these, those that are gone or that a transaction other
/// than ours wrote last; and keys of up to ten.
pub(super) fn differing(work: &Work, change: &str, ours: Option<u32>) -> String {
    let unlike: Vec<_> =
        work.written().filter_map(|(place, column, target)| work.unlike(place, column, target)).collect();
    let unlike = if unlike.is_empty() { "false".into() } else { unlike.join("\n OR ") };
    let moved =
        ours.map_or_else(|| "false".into(), |xid| format!("(live.tableoid IS NULL OR live.xmin <> '{xid}'::xid)"));
    format!(
        "SELECT pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE {moved}), (pg_catalog.array_agg({}))[1:10]
         FROM {change} c LEFT JOIN {} live ON {}
         WHERE CASE WHEN c.{CLASS} = 'x' THEN live.tableoid IS NOT NULL ELSE live.tableoid IS NULL OR {unlike} END",
        work.key_text("c"),
        work.source(),
        work.on_key("live", "c")
    )
}

/// The places of the columns in which they differ.
fn differing_columns(work: &Work, change: &str) -> String {
    let columns: Vec<_> = work
        .written()
        .filter_map(|(place, column, target)| {
            let unlike = work.unlike(place, column, target)?;
            Some(format!("CASE WHEN pg_catalog.bool_or({unlike}) THEN {place} END"))
        })
        .collect();
    format!(
        "SELECT pg_catalog.array_remove(ARRAY[{}]::int[], NULL) FROM {change} c JOIN {} live ON {} WHERE c.{CLASS} <> 'x'",
        columns.join(", "),
        work.source(),
        work.on_key("live", "c")
    )
}

/// Writes the token that proves the commit; gives the transaction's number.
pub(super) async fn token(
    client: &Client,
    schema: &str,
    (step, by): (&str, &str),
    hash: &str,
    journal: &str,
    tables: &[TableApplied],
) -> Result<String, Failure> {
    let table = Name::new(schema, "applied").sql();
    let sql = format!(
        "INSERT INTO {table} VALUES ($1, $2, $3, pg_catalog.pg_current_xact_id(), pg_catalog.clock_timestamp(), $4, $5)
         RETURNING transaction::text"
    );
    let tables =
        serde_json::to_string(tables).map_err(|error| Error::bug("a token cannot be written").detail(error))?;
    let row = client.query_one(&sql, &[&step, &by, &hash, &tables, &journal]).await;
    Ok(row.map_err(|error| Failure::server(error, "writing the token"))?.get(0))
}

/// Commits. An error of the transaction means ROLLBACK; a session that died while committing means that nobody knows.
async fn commit(client: &Client) -> Result<(), Failure> {
    let Err(error) = client.batch_execute("COMMIT").await else { return Ok(()) };
    let rolled_back = error.as_db_error().is_some_and(|server| server.parsed_severity() == Some(Severity::Error));
    if rolled_back {
        stage::rollback(client).await;
        return Err(Failure::server(error, "committing"));
    }
    let known = server_error(error, "committing");
    Err(Error {
        kind: Kind::Unresolved,
        ..Error::unresolved("the connection was lost while committing").detail(known.detail.unwrap_or(known.message))
    }
    .into())
}

/// The head of the journal as it was when the plan of that hash was carried out; `None`: production keeps nothing of it.
pub async fn anchor(client: &Client, recovery: &str, hash: &str) -> Result<Option<String>> {
    let schema = undo_schema(recovery);
    if stage::schema_mark(client, &schema).await?.is_none() {
        return Ok(None);
    }
    let sql = format!("SELECT journal FROM {} WHERE hash = $1", Name::new(&*schema, "applied").sql());
    let row = client.query_opt(&sql, &[&hash]).await;
    Ok(row.map_err(|error| server_error(error, "reading the token of the merge"))?.map(|row| row.get(0)))
}

/// Finds out what became of a merge or an undo whose end nobody saw; `hash` is that of its plan. While its session is still
/// at work, this waits for it.
///
/// Errors: [`Kind::Unresolved`] when the session does not end.
pub async fn resolve(client: &Client, recovery: &str, hash: &str) -> Result<Outcome> {
    let failed = |error| server_error(error, "looking for the token of the merge");
    // Our lost session may still be committing: it is the one that has the recovery's name and is in a transaction.
    let sql = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity
        WHERE pid <> pg_catalog.pg_backend_pid() AND datname = pg_catalog.current_database() AND xact_start IS NOT NULL
          AND usename = session_user AND application_name = pg_catalog.current_setting('application_name')";
    let mut waited = 0;
    while client.query_one(sql, &[]).await.map_err(failed)?.get::<_, i64>(0) > 0 {
        if waited == 120 {
            return Err(Error::unresolved("the lost session has not ended yet")
                .hint("Look at it in pg_stat_activity; its application_name is this recovery's."));
        }
        waited += 1;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let schema = undo_schema(recovery);
    if stage::schema_mark(client, &schema).await?.is_none() {
        return Ok(Outcome::NotApplied);
    }
    let table = Name::new(&*schema, "applied").sql();
    let sql = format!("SELECT tables, transaction::text FROM {table} WHERE hash = $1");
    let Some(row) = client.query_opt(&sql, &[&hash]).await.map_err(failed)? else {
        return Ok(Outcome::NotApplied);
    };
    let tables = serde_json::from_str(row.get(0))
        .map_err(|error| Error::bug("the token of the merge cannot be read").detail(error))?;
    Ok(Outcome::Applied(Applied { tables, transaction: row.get(1) }))
}
