//! Indexes of tables whose rows are in, several at once, also of one table.
//!
//! `pg_restore` makes a key by ALTER TABLE, which nobody else may be at the same table meanwhile, so that a table's indexes and
//! its keys are built one after the other. An index that becomes a key afterwards needs no such lock. Only definitions that do
//! this and nothing else are taken ([`Alone`]); all others remain `pg_restore`'s.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::super::archive::{Alone, Archive, Key};
use super::super::connect::{Session, server_error};
use super::super::name::{Name, quote, quote_list};
use super::needs::Counted;
use super::restore::stoppable;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// An index to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Build {
    /// The entry of the dump that it stands for.
    pub dump_id: i32,
    /// Its name, for a person.
    pub name: String,
    /// Of COPY text of its table, all of which it reads.
    pub bytes: u64,
    sql: String,
    /// What makes it a key.
    key: Option<String>,
}

/// By table, those that can be built as soon as its rows are in.
pub(super) fn builds(archive: &Archive, counted: &[Counted]) -> BTreeMap<Name, Vec<Build>> {
    let bytes: BTreeMap<&Name, u64> = counted.iter().map(|counted| (&counted.table, counted.bytes)).collect();
    let mut builds: BTreeMap<Name, Vec<Build>> = BTreeMap::new();
    let entries = archive.entries().iter().filter(|entry| matches!(entry.kind.as_str(), "INDEX" | "CONSTRAINT"));
    for entry in entries.filter(|entry| entry.tablespace.is_none()) {
        let (table, name, sql, key) = match Alone::of(&entry.definition) {
            None => continue,
            Some(Alone::Index(table)) => (table, entry.name.clone(), entry.definition.clone(), None),
            Some(Alone::Key(Key { table, constraint, primary, columns })) => {
                let (name, kind) = (quote(&constraint), if primary { "PRIMARY KEY" } else { "UNIQUE" });
                let index = format!("CREATE UNIQUE INDEX {name} ON {} ({})", table.sql(), quote_list(&columns));
                let key = format!("ALTER TABLE ONLY {} ADD CONSTRAINT {name} {kind} USING INDEX {name}", table.sql());
                (table, constraint, index, Some(key))
            }
        };
        let Some(&bytes) = bytes.get(&table) else { continue };
        builds.entry(table).or_default().push(Build { dump_id: entry.dump_id, name, bytes, sql, key });
    }
    builds
}

/// Makes the settings of a session that builds, as `pg_restore` does. Returns its process on the server.
pub(super) async fn prepare(client: &Session) -> Result<i32> {
    let failed = |error| server_error(error, "setting up the session");
    let settings = "SET statement_timeout = 0; SET lock_timeout = 0; SET default_tablespace = ''";
    client.batch_execute(settings).await.map_err(failed)?;
    Ok(client.query_one("SELECT pg_catalog.pg_backend_pid()", &[]).await.map_err(failed)?.get(0))
}

/// Builds one, and waits for the server.
pub(super) async fn build(client: &Session, build: &Build, progress: &Progress) -> Result<()> {
    let made = stoppable(progress, client.batch_execute(&build.sql), &format!("building {}", build.name)).await;
    made.map_err(left)
}

/// Makes keys of those that are to be; every index of their tables is there.
pub(super) async fn make_keys(client: &Session, builds: &[Build], progress: &Progress) -> Result<()> {
    for build in builds {
        let Some(key) = &build.key else { continue };
        let made = stoppable(progress, client.batch_execute(key), &format!("making {} a key", build.name)).await;
        made.map_err(left)?;
    }
    Ok(())
}

fn left(error: Error) -> Error {
    error.hint("Nothing of production was changed, and what was restored is removed.")
}

/// How far the server is with each, by its process: from 0 to 1. The table is read in the first half, and the index written in the
/// second.
pub(super) async fn how_far(client: &Client) -> Result<BTreeMap<i32, f64>> {
    let sql = "SELECT pid, CASE WHEN phase ~ 'sorting|loading' THEN 0.5 ELSE
                coalesce(blocks_done::float8 / nullif(blocks_total, 0), 0) / 2 END
            + coalesce(tuples_done::float8 / nullif(tuples_total, 0), 0) / 2
        FROM pg_catalog.pg_stat_progress_create_index WHERE datname = pg_catalog.current_database()";
    let rows = client.query(sql, &[]).await.map_err(|error| server_error(error, "looking how far indexes are"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get::<_, f64>(1).clamp(0.0, 1.0))).collect())
}
