//! A clone that stands at its target is asked: which databases it has, how its tables are defined, and for their rows.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio_postgres::{Client, NoTls};

use super::{PORT, USER, command, state};
use crate::error::{Error, Result};
use crate::postgres::connect::server_error;
use crate::postgres::name::Name;

/// Pieces of rows that wait for whoever loads them.
const WAITING: usize = 8;
/// So many rows are one piece, where they have come already: the server sends each by itself.
const ROWS: usize = 1024;

/// Connects to a database of a clone. Rows come as `pg_dump` would write them.
pub(in super::super) async fn connect(into: &Path, database: &str) -> Result<Client> {
    const SETTINGS: &str = "SET search_path = ''; SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; \
        SET extra_float_digits = 3; SET bytea_output = 'hex'; SET timezone = 'UTC'; SET xmloption = 'content'; \
        SET statement_timeout = 0; SET row_security = off";
    let client = connect_as(into, USER, database).await?;
    client.batch_execute(SETTINGS).await.map_err(|error| not_asked(into, error))?;
    Ok(client)
}

/// The same as some role, with its own settings.
pub(super) async fn connect_as(into: &Path, user: &str, database: &str) -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    config.host(into.to_str().unwrap_or_default()).port(PORT).user(user).dbname(database);
    let (client, connection) = config.connect(NoTls).await.map_err(|error| not_asked(into, error))?;
    tokio::spawn(connection);
    Ok(client)
}

fn not_asked(into: &Path, error: tokio_postgres::Error) -> Error {
    let hint = format!("If its server was killed, start it again: lifeboat clone --resume {}", into.display());
    unanswered(format!("the clone in {} cannot be asked", into.display()), &hint, error)
}

/// What a clone's server did not do, with its own words.
pub(super) fn unanswered(what: impl Into<String>, hint: &str, error: tokio_postgres::Error) -> Error {
    Error { message: what.into(), hints: vec![hint.into()], ..server_error(error, "asking the clone") }
}

/// A database of a clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// By name: bytes on disk and the planner's estimate of rows, of tables that hold rows themselves.
    pub tables: HashMap<Name, (u64, Option<u64>)>,
}

/// Looks at the tables of a database. `None`: the clone has no database of that name.
pub async fn database(into: &Path, name: &str) -> Result<Option<Database>> {
    let failed = |error| server_error(error, "looking at the clone's tables");
    let client = connect(into, "template1").await?;
    let there = client.query_opt("SELECT FROM pg_catalog.pg_database WHERE datname = $1", &[&name]).await;
    if there.map_err(failed)?.is_none() {
        return Ok(None);
    }
    let client = connect(into, name).await?;
    let sql = "SELECT n.nspname::text, c.relname::text, pg_catalog.pg_table_size(c.oid), c.reltuples::float8
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r'
            AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";
    let rows = client.query(sql, &[]).await.map_err(failed)?;
    let tables = rows.iter().map(|row| {
        let name = Name::new(row.get::<_, String>(0), row.get::<_, String>(1));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an estimate of whole rows")]
        let estimate = Some(row.get::<_, f64>(3)).filter(|rows| *rows >= 0.0).map(|rows| rows as u64);
        (name, (row.get::<_, i64>(2).try_into().unwrap_or(0), estimate))
    });
    Ok(Some(Database { tables: tables.collect() }))
}

/// Writes the definitions of a clone's database into an archive, by `pg_dump` of its version: all, or of some tables and views.
///
/// Errors: `pg_dump` fails; the words are its own.
pub fn definitions(into: &Path, database: &str, only: &[Name], file: &Path) -> Result<()> {
    let failed =
        |error: &dyn std::fmt::Display| Error::operator(format!("cannot write {}", file.display())).detail(error);
    let known = state(into)?;
    let mut command = command(&known.programs, "pg_dump")?;
    command.args(["--format=custom", "--schema-only", "--host"]).arg(into).args(["--username", USER]);
    command.args(["--port", &PORT.to_string(), "--no-sync"]);
    // In quotes nothing is a wildcard.
    let pattern = |name: &Name| format!("--table={}", name.sql());
    command.args(only.iter().map(pattern)).args(["--dbname", &dbname(database)]);
    let output = fs::File::create(file).map_err(|error| failed(&error))?;
    let output = command.stdin(Stdio::null()).stdout(output).output().map_err(|error| failed(&error))?;
    if !output.status.success() {
        return Err(Error::target("pg_dump cannot read the clone's definitions")
            .detail(String::from_utf8_lossy(&output.stderr))
            .hint("Look at the clone's log."));
    }
    Ok(())
}

/// A name as libpq takes it where it would also take a whole connection string.
fn dbname(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// How many rows a clone's table holds itself.
pub async fn count(into: &Path, database: &str, table: &Name) -> Result<u64> {
    let client = connect(into, database).await?;
    let row = client.query_one(&format!("SELECT pg_catalog.count(*) FROM ONLY {}", table.sql()), &[]).await;
    let row = row.map_err(|error| server_error(error, &format!("counting {table} of the clone")))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
}

/// The statements that bring every sequence of the database's users to where it is in the clone.
pub async fn sequences(into: &Path, database: &str) -> Result<Vec<String>> {
    let failed = |error| server_error(error, "reading the clone's sequences");
    let client = connect(into, database).await?;
    let sql = "SELECT pg_catalog.format('SELECT pg_catalog.setval(%L, %s, %L)',
            pg_catalog.format('%I.%I', schemaname, sequencename), coalesce(last_value, start_value), last_value IS NOT NULL)
        FROM pg_catalog.pg_sequences ORDER BY schemaname, sequencename";
    let rows = client.query(sql, &[]).await.map_err(failed)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// How many large objects a clone's database has.
pub async fn large_objects(into: &Path, database: &str) -> Result<u64> {
    let client = connect(into, database).await?;
    let row = client.query_one("SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata", &[]).await;
    let row = row.map_err(|error| server_error(error, "counting the clone's large objects"))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
}

/// The rows of a clone's table as COPY text, as they come. Has to be called, and read, while the runtime lives.
pub async fn rows(into: &Path, database: &str, table: &Name, columns: &str) -> Result<impl Read + Send + 'static> {
    let client = connect(into, database).await?;
    Ok(copied(client, table, std::iter::once(format!("{} ({columns})", table.sql()))))
}

/// What COPY says of one thing after the other, tables or queries, as it comes.
pub(in super::super) fn copied(
    client: Client,
    table: &Name,
    things: impl Iterator<Item = String> + Send + 'static,
) -> impl Read + Send + 'static {
    let (sender, receiver) = mpsc::channel(WAITING);
    let doing = format!("reading {table} of the clone");
    tokio::spawn(async move {
        let failed = |error| std::io::Error::other(server_error(error, &doing));
        for thing in things {
            let stream = match client.copy_out(&format!("COPY {thing} TO STDOUT")).await {
                Ok(stream) => stream,
                Err(error) => return drop(sender.send(Err(failed(error))).await),
            };
            let mut stream = std::pin::pin!(stream.ready_chunks(ROWS));
            while let Some(rows) = stream.next().await {
                let length = rows.iter().flatten().map(Bytes::len).sum();
                let mut piece = BytesMut::with_capacity(length);
                let joined = rows.into_iter().try_for_each(|row| row.map(|row| piece.extend_from_slice(&row)));
                let piece = joined.map(|()| piece.freeze()).map_err(failed);
                // Nobody reads on when the rows are not wanted any more.
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        }
    });
    Stream { receiver, piece: Bytes::new() }
}

struct Stream {
    receiver: mpsc::Receiver<std::io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let taken = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..taken]);
        Ok(taken)
    }
}
