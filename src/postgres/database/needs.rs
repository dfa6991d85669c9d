//! What a dump needs to be restored whole, and what the server has: looked at before anything is made.

use std::collections::BTreeSet;
use std::io::BufRead as _;
use std::sync::atomic::Ordering;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::super::archive::{Archive, Format};
use super::super::connect::server_error;
use super::super::name::Name;
use super::super::origin::Origin;
use super::super::programs;
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};
use crate::text;

/// Rows of one table of the dump, each of them decoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// As the dump has it.
    pub table: Name,
    /// To the end of its data.
    pub rows: u64,
    /// Of COPY text.
    pub bytes: u64,
}

/// What stands against restoring a dump, and what it would stand beside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// The name of the database to recover.
    pub database: String,
    /// `host:port`; for a socket its folder and the port.
    pub server: String,
    /// `None`: there is no database of that name any more.
    pub production: Option<Production>,
    /// Every table with rows in the dump.
    pub counted: Vec<Counted>,
    /// The program that will create the definitions: `pg_restore 15.14`.
    pub program: String,
    /// Owners in the dump that the server does not know: their objects will belong to our role.
    pub missing_roles: Vec<String>,
    /// Tablespaces that the server does not have: what lay in them goes to the default one.
    pub missing_tablespaces: Vec<String>,
    /// Bytes that are free where the server keeps its databases; `None`: it is another machine, or does not say where.
    #[serde(default)]
    pub free: Option<u64>,
    /// Why it cannot be restored, with what can be done: a lowercase fragment and a sentence.
    pub refusal: Option<(String, String)>,
}

impl Needs {
    /// Rows of all tables.
    pub fn rows(&self) -> u64 {
        self.counted.iter().map(|table| table.rows).sum()
    }

    /// COPY text of all tables.
    pub fn bytes(&self) -> u64 {
        self.counted.iter().map(|table| table.bytes).sum()
    }

    /// What the restored database takes at least, as far as it can be guessed: as much as production, whose indexes are not
    /// in the dump, and not less than its text.
    pub fn room(&self) -> u64 {
        self.production.as_ref().map_or(0, |production| production.bytes).max(self.bytes())
    }
}

/// The database that is to be replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Production {
    /// Its number, which a rename does not change.
    pub oid: u32,
    /// Of its files.
    pub bytes: u64,
    /// Its role.
    pub owner: String,
    /// Who is connected.
    pub visitors: Vec<Visitor>,
    /// Logical replication slots: they belong to the database, whatever its name.
    pub slots: Vec<String>,
}

/// Sessions of one kind in a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visitor {
    /// The role.
    pub user: String,
    /// As it calls itself; may be empty.
    pub application: String,
    /// Its address; empty for a socket.
    pub address: String,
    /// How many.
    pub sessions: u64,
}

/// Decodes and counts every row of the dump, unless that was done before, and looks what the server has. `client` is in another
/// database than the one to recover.
///
/// Errors: the dump is damaged, or of a kind that cannot be restored.
pub async fn needs(
    client: &Client,
    (server, version): (&str, i32),
    database: &str,
    (origin, counted): (&Origin, Option<Vec<Counted>>),
    progress: &Progress,
) -> Result<Needs> {
    let archive = &origin.archive;
    check_kind(archive)?;
    let counted = if let Some(counted) = counted {
        counted
    } else if origin.is_clone() {
        count_in_clone(origin, progress).await?
    } else {
        let (dump, counting) = (archive.clone(), progress.clone());
        tokio::task::spawn_blocking(move || count(&dump, &counting))
            .await
            .map_err(|error| Error::bug("a counting thread ended").detail(error))??
    };
    progress.begin("looking what the server has", Unit::Items, None);
    let program = programs::pg_restore(archive)?;
    let failed = |error| server_error(error, "looking what the server has");
    let names = |sql: &'static str| async move {
        let rows = client.query(sql, &[]).await.map_err(failed)?;
        Ok::<BTreeSet<String>, Error>(rows.iter().map(|row| row.get(0)).collect())
    };
    let roles = names("SELECT rolname::text FROM pg_catalog.pg_roles").await?;
    let extensions = names("SELECT name::text FROM pg_catalog.pg_available_extensions").await?;
    let tablespaces = names("SELECT spcname::text FROM pg_catalog.pg_tablespace").await?;
    let entries = archive.entries();
    let missing = |wanted: BTreeSet<&str>, there: &BTreeSet<String>| -> Vec<String> {
        wanted.into_iter().filter(|name| !name.is_empty() && !there.contains(*name)).map(str::to_owned).collect()
    };
    let missing_roles = missing(entries.iter().map(|entry| entry.owner.as_str()).collect(), &roles);
    let missing_tablespaces =
        missing(entries.iter().filter_map(|entry| entry.tablespace.as_deref()).collect(), &tablespaces);
    let wanted = entries.iter().filter(|entry| entry.kind == "EXTENSION").map(|entry| entry.name.as_str());
    let missing_extensions = missing(wanted.collect(), &extensions);
    let may = "SELECT rolcreatedb OR rolsuper, rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user";
    let may = client.query_one(may, &[]).await.map_err(failed)?;
    let large_objects = origin.large_objects().await?;
    let refusal = refusal(archive, version, &missing_extensions, may.get(0)).or_else(|| {
        (large_objects > 0).then(|| {
            (
                format!("the database has {large_objects} large objects, which are not copied out of a clone"),
                "Bring tables back out of it, or pg_dump the clone and restore that dump.".into(),
            )
        })
    });
    let needs = Needs {
        database: database.into(),
        server: server.into(),
        production: production(client, database).await?,
        counted,
        program: program.told(),
        missing_roles,
        missing_tablespaces,
        free: free(client, server).await?,
        refusal,
    };
    let refusal = needs.refusal.clone().or_else(|| no_room(&needs));
    Ok(Needs { refusal, ..needs })
}

/// Who restores onto a disk that becomes full stops everybody who writes to that server.
fn no_room(needs: &Needs) -> Option<(String, String)> {
    let free = needs.free.filter(|free| *free < needs.room())?;
    Some((
        format!(
            "the server's disk has {} free, and the restored database takes about {}",
            text::bytes(free),
            text::bytes(needs.room())
        ),
        "Make room there, or restore into another server: a full disk would stop production too.".into(),
    ))
}

/// Room in the server's data directory, where that is on this machine: behind a socket. An address may be a tunnel's.
async fn free(client: &Client, server: &str) -> Result<Option<u64>> {
    if !server.starts_with('/') {
        return Ok(None);
    }
    // Not shown to everybody.
    let sql = "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'data_directory'";
    let row = client.query_opt(sql, &[]).await;
    let row = row.map_err(|error| server_error(error, "asking where the server keeps its databases"))?;
    let facts = row.and_then(|row| rustix::fs::statvfs(row.get::<_, &str>(0)).ok());
    Ok(facts.map(|facts| facts.f_bavail.saturating_mul(facts.f_frsize)))
}

/// Refuses what could only be restored by running it, or not whole.
fn check_kind(archive: &Archive) -> Result<()> {
    if archive.header.format == Format::Plain {
        return Err(Error::refused("a plain dump is a script, which is not run").hint(
            "Choose a dump in custom, folder or tar format; of this one, rows of some tables can be brought back.",
        ));
    }
    if let Some(table) = archive.tables().iter().find(|table| table.inserts) {
        return Err(Error::refused(format!("{} was dumped as INSERT statements, which are not run", table.name))
            .hint("Choose a dump made without --inserts, or restore this one by hand with pg_restore."));
    }
    let large_objects = archive.entries().iter().any(|entry| entry.kind == "BLOBS" && entry.has_data);
    if large_objects && archive.header.format != Format::Custom {
        return Err(Error::refused("large objects of a dump in folder or tar format are not brought back")
            .hint("Choose a dump in custom format, or restore this one by hand with pg_restore."));
    }
    Ok(())
}

fn refusal(archive: &Archive, version: i32, missing_extensions: &[String], may: bool) -> Option<(String, String)> {
    let major = archive.header.server_version.as_deref().and_then(programs::major);
    if let Some(major) = major.filter(|major| *major > version / 10_000) {
        return Some((
            format!("the dump is of PostgreSQL {major}, and the server is older: {}", version / 10_000),
            format!("Restore it into a server of version {major} or newer."),
        ));
    }
    if !missing_extensions.is_empty() {
        return Some((
            format!("the server lacks extensions that the dump uses: {}", missing_extensions.join(", ")),
            "Install their packages on the server (postgresql-NN-postgis, postgresql-contrib, ...), then look again."
                .into(),
        ));
    }
    (!may).then(|| {
        ("this role may not create a database".into(), "Connect as a role with CREATEDB, or a superuser.".into())
    })
}

/// The database of that name, and who is in it.
pub(super) async fn production(client: &Client, database: &str) -> Result<Option<Production>> {
    let failed = |error| server_error(error, "looking at the database to recover");
    let sql = "SELECT oid, pg_catalog.pg_database_size(oid), pg_catalog.pg_get_userbyid(datdba)::text
        FROM pg_catalog.pg_database WHERE datname = $1";
    let Some(row) = client.query_opt(sql, &[&database]).await.map_err(failed)? else { return Ok(None) };
    let oid: u32 = row.get(0);
    let sql = "SELECT coalesce(usename::text, ''), coalesce(application_name, ''), coalesce(host(client_addr), ''),
            pg_catalog.count(*)
        FROM pg_catalog.pg_stat_activity WHERE datid = $1 AND backend_type = 'client backend'
        GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3";
    let visitors = client.query(sql, &[&oid]).await.map_err(failed)?;
    let visitors = visitors.iter().map(|row| Visitor {
        user: row.get(0),
        application: row.get(1),
        address: row.get(2),
        sessions: row.get::<_, i64>(3).try_into().unwrap_or(0),
    });
    let slots = "SELECT slot_name::text FROM pg_catalog.pg_replication_slots WHERE database = $1 ORDER BY 1";
    let slots = client.query(slots, &[&database]).await.map_err(failed)?;
    Ok(Some(Production {
        slots: slots.iter().map(|row| row.get(0)).collect(),
        oid,
        bytes: row.get::<_, i64>(1).try_into().unwrap_or(0),
        owner: row.get(2),
        visitors: visitors.collect(),
    }))
}

/// Every row of every table of a clone, counted by its server.
async fn count_in_clone(origin: &Origin, progress: &Progress) -> Result<Vec<Counted>> {
    let tables: Vec<_> = origin.archive.tables().iter().filter(|table| table.has_data).collect();
    progress.begin("counting every row of the clone", Unit::Items, Some(tables.len() as u64));
    let mut counted = Vec::new();
    for table in tables {
        progress.check()?;
        let rows = origin.count(&table.name).await?;
        counted.push(Counted { table: table.name.clone(), rows, bytes: table.compressed_size.unwrap_or_default() });
        progress.advance(1);
    }
    Ok(counted)
}

/// Decodes every row of every table; the largest first, so that all threads end together.
fn count(archive: &Archive, progress: &Progress) -> Result<Vec<Counted>> {
    let mut tables: Vec<_> = archive.tables().iter().filter(|table| table.has_data).collect();
    tables.sort_by_key(|table| std::cmp::Reverse(table.compressed_size));
    let total = tables.iter().map(|table| table.compressed_size).sum::<Option<u64>>();
    progress.begin("decoding and counting every row of the dump", Unit::Bytes, total);
    let count = |table: &&super::super::archive::Table| {
        let mut rows = archive.rows(table)?;
        let read = rows.compressed_bytes_read();
        let (mut lines, mut bytes, mut before) = (0, 0, 0);
        loop {
            progress.check()?;
            let text = rows.fill_buf().map_err(|error| {
                Error::from_read(error, || format!("cannot read the rows of {} from the backup", table.name))
            })?;
            if text.is_empty() {
                break;
            }
            lines += memchr::memchr_iter(b'\n', text).count() as u64;
            let length = text.len();
            rows.consume(length);
            bytes += length as u64;
            let now = read.load(Ordering::Relaxed);
            progress.advance(now - before);
            before = now;
        }
        Ok(Counted { table: table.name.clone(), rows: lines, bytes })
    };
    // One of the largest for each thread, and whoever is ready takes the next.
    tables.par_iter().with_max_len(1).map(count).collect()
}
