//! A whole database out of a dump: restored beside production into a database of its own, counted and compared, and put in
//! production's place by exchanging two names in one transaction. Nothing of production is dropped.
//!
//! ```text
//!  needs     what the dump needs and the server has; every row of the dump decoded and counted
//!  restore   lifeboat_restore_<recovery>: definitions by pg_restore, rows by COPY straight from the repository, their indexes
//!  check     rows against the dump's own count, and both databases' objects against each other
//!  promote   production -> lifeboat_before_<recovery>, lifeboat_restore_<recovery> -> production, in one transaction
//! ```
//!
//! **Who runs what.** Definitions are the dump's own SQL, and recreating them is what this flow is for. They are run by
//! `pg_restore` of at least the version that made the dump: it knows what an entry of each version means (owners, access
//! methods, defaults of old versions), and it would take years to know as much. It is given the table of contents alone, a
//! file of some kilobytes, from which it can create everything and can load nothing. Rows go by our own COPY, several tables
//! at once, out of the repository: `pg_restore` can read in parallel only what was first copied to a disk. Where the columns
//! allow it they go in binary form, which takes a server less work than text does (`postgres/stage/binary.rs`).
//!
//! Indexes and keys that are nothing but that are built by our own sessions too, each as soon as its table's rows are in
//! (`postgres/database/index.rs`); what is left, `pg_restore` creates at the end.
//!
//! Indexes are built under the server's own `maintenance_work_mem`. More of it was slower: of 5 million texts 6 s with the
//! default 64 MB, 8 s with 256 MB to 1 GB, whose sorts no longer stay in a processor's cache.
//!
//! Invariants:
//! - The name of production's database leads to a whole database at any instant: both renames are one transaction.
//! - While names are exchanged nobody can connect to either database: the rename holds the lock that every new connection
//!   takes, and a connection that has waited for it is told to come again, and finds the new one.
//! - What is dropped carries our mark.

mod check;
mod index;
mod load;
mod needs;
mod promote;
mod restore;

use tokio_postgres::Client;

pub use check::{Asked, Checked, Difference, How, Rows, check, tables};
pub use needs::{Counted, Needs, Production, Visitor, needs};
pub use promote::{Exchange, Exchanged, Standing, back, holder, promote, standing, way_back, written};
pub use restore::{Restored, pg_dump, restore, write_secret};

use super::connect::{Conninfo, Server, connect, server_error};
use super::name::quote;
use super::stage::{Leftover, LeftoverKind, Mark, check_id};
use crate::error::{Error, Result};

/// Databases that were restored and are not in production's place.
pub const RESTORE: &str = "lifeboat_restore_";
/// Databases that were in production's place.
pub const BEFORE: &str = "lifeboat_before_";

/// Databases that a session can be in while others are renamed; most servers have the first.
const MAINTENANCE: [&str; 2] = ["postgres", "template1"];

/// Connects to a database that is neither production nor ours, so that both can be renamed.
pub async fn maintenance(conninfo: &Conninfo, application_name: &str) -> Result<Server> {
    let production = conninfo.database()?;
    let mut failure = None;
    for name in MAINTENANCE.into_iter().filter(|name| *name != production) {
        match connect(&conninfo.to_database(name), application_name).await {
            Ok(server) => return Ok(server),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let error = failure.unwrap_or_else(|| Error::refused(format!("{production} is no database to replace")));
    Err(error.hint("A database beside the one to recover is needed to work from: postgres or template1."))
}

/// Databases that recoveries of one database have left: restored ones, and those that gave way to one. A server may hold other
/// systems' too.
pub async fn leftovers(client: &Client, production: &str) -> Result<Vec<Leftover>> {
    let sql = "SELECT d.datname::text, pg_catalog.shobj_description(d.oid, 'pg_database'),
            CASE WHEN pg_catalog.has_database_privilege(d.oid, 'CONNECT') THEN pg_catalog.pg_database_size(d.oid) ELSE 0 END,
            EXISTS (SELECT FROM pg_catalog.pg_stat_activity a WHERE a.datid = d.oid AND a.pid <> pg_catalog.pg_backend_pid()),
            pg_catalog.clock_timestamp()
        FROM pg_catalog.pg_database d
        WHERE pg_catalog.starts_with(d.datname::text, $1) OR pg_catalog.starts_with(d.datname::text, $2) ORDER BY 1";
    let rows = client
        .query(sql, &[&RESTORE, &BEFORE])
        .await
        .map_err(|error| server_error(error, "listing the databases of Lifeboat"))?;
    let leftover = |row: &tokio_postgres::Row| {
        let name: String = row.get(0);
        let restored = name.starts_with(RESTORE);
        let mark = row.get::<_, Option<String>>(1).and_then(|text| serde_json::from_str::<Mark>(&text).ok());
        Leftover {
            schema: name,
            kind: if restored { LeftoverKind::RestoredDatabase } else { LeftoverKind::EarlierDatabase },
            age_seconds: mark.as_ref().and_then(|mark| mark.age_seconds(row.get(4))),
            mark,
            bytes: row.get::<_, i64>(2).try_into().unwrap_or(0),
            in_use: row.get(3),
        }
    };
    let of_this =
        |leftover: &Leftover| leftover.mark.as_ref().is_none_or(|mark| mark.database.as_deref() == Some(production));
    Ok(rows.iter().map(leftover).filter(of_this).collect())
}

/// The name of the database that a recovery restores into.
pub fn restore_name(recovery: &str) -> Result<String> {
    check_id(recovery)?;
    Ok(format!("{RESTORE}{recovery}"))
}

/// The name that production's database gets when another one takes its place.
pub fn before_name(recovery: &str) -> Result<String> {
    check_id(recovery)?;
    Ok(format!("{BEFORE}{recovery}"))
}

/// Drops the database that a recovery restored, with the sessions in it; one that is in production's place has another name
/// and is not found. Does nothing when it is gone.
///
/// One without any comment goes too: a database cannot be made and marked in one act, and its name holds the recovery's id.
pub async fn drop_restored(client: &Client, recovery: &str) -> Result<()> {
    let name = restore_name(recovery)?;
    let sql = "SELECT pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database WHERE datname = $1";
    let row = client.query_opt(sql, &[&name]).await;
    let Some(row) = row.map_err(|error| server_error(error, "looking for the restored database"))? else {
        return Ok(());
    };
    let is_ours = row
        .get::<_, Option<String>>(0)
        .is_none_or(|comment| serde_json::from_str::<Mark>(&comment).is_ok_and(|mark| mark.lifeboat == recovery));
    if !is_ours {
        return Err(Error::refused(format!("the database {name} was not made by this recovery"))
            .hint("Look at it, rename or drop it by hand, and try again."));
    }
    drop(client, &name, " WITH (FORCE)").await
}

/// Removes a database that a recovery has left, after another look: it must be ours, and nobody may be connected to it.
pub async fn remove(client: &Client, leftover: &Leftover) -> Result<()> {
    let of = leftover.mark.as_ref().and_then(|mark| mark.database.clone()).unwrap_or_default();
    let now = leftovers(client, &of).await?.into_iter().find(|now| now.schema == leftover.schema);
    match now {
        None => Ok(()),
        Some(now) if now.mark.is_some() && now.mark == leftover.mark && !now.in_use => {
            drop(client, &now.schema, "").await
        }
        Some(now) => Err(Error::refused(format!("{} is in use, or has changed since it was shown", now.schema))
            .hint("Look again with lifeboat clean.")),
    }
}

async fn drop(client: &Client, database: &str, how: &str) -> Result<()> {
    client
        .batch_execute(&format!("DROP DATABASE {}{how}", quote(database)))
        .await
        .map_err(|error| server_error(error, &format!("dropping the database {database}")))
}

/// The statement that writes our mark on a database.
async fn mark_sql(client: &Client, database: &str, mark: &Mark) -> Result<String> {
    let mark = serde_json::to_string(mark).map_err(|error| Error::bug("a mark cannot be written").detail(error))?;
    comment_sql(client, database, Some(&mark)).await
}

/// A comment cannot be bound; the server itself quotes it.
async fn comment_sql(client: &Client, database: &str, comment: Option<&str>) -> Result<String> {
    let sql = "SELECT pg_catalog.format('COMMENT ON DATABASE %I IS %L', $1::text, $2::text)";
    let row = client.query_one(sql, &[&database, &comment]).await;
    Ok(row.map_err(|error| server_error(error, "naming a database"))?.get(0))
}
