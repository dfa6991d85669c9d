//! A clone is asked what an operator types. Whatever that is, it changes nothing: not the clone, and nothing outside it.
//!
//! - It is asked as a role of its own that is no superuser and may read everything. A superuser may run programs and read and
//!   write files of the server, in a read-only transaction too, and could become one again from within a query.
//! - It is one query, which the server has parsed by itself before it is put in parentheses: there, no other statement fits.
//! - Its transaction is read-only, has taken its snapshot, so that it cannot be made anything else, and is rolled back.
//! - It has limits: of time, of rows and bytes that are fetched, and of disk that the server may fill for it.
//!
//! The role is made with the first question, and goes when a clone is kept. It is the only thing that asking adds to a clone.
//! What the database itself lets everybody do can be done: foreign tables and dblink reach other servers, and functions of its
//! own that run with another's rights, or in a language that may do anything, do what they were written for.

use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use tokio_postgres::error::{ErrorPosition, SqlState};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, NoTls};

use super::ask::{connect, connect_as};
use crate::error::{Error, Result};
use crate::postgres::connect::server_error;
use crate::postgres::name::quote;
use crate::progress::Progress;

/// Whom a clone is asked as.
const READER: &str = "lifeboat_reader";
/// Tells our role from one of production's that has the same name.
const MARK: &str = "made by Lifeboat to look into this clone";
/// So many rows are fetched.
pub const ROWS: usize = 1000;
/// So many bytes of them.
const BYTES: usize = 4 << 20;
/// Characters of a value that are fetched; it ends in its length when it has more.
const CELL: usize = 10_000;
/// Seconds that a query may take.
const PATIENCE_SECONDS: u64 = 600;

/// What a query gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// By name, and whether it holds numbers.
    pub columns: Vec<(String, bool)>,
    /// As text, in the query's order; at most [`ROWS`].
    pub rows: Vec<Vec<Option<String>>>,
    /// Whether there are more rows than were fetched.
    pub cut: bool,
    /// Until the last row had come.
    pub took: Duration,
}

/// Asks a clone's database one query.
///
/// Errors: what was typed is not one query; the server's own words where it does not take it.
pub async fn inspect(into: &Path, database: &str, sql: &str, progress: &Progress) -> Result<Answer> {
    let client = reader(into, database).await?;
    let cancel = client.cancel_token();
    let mut asked = pin!(ask(&client, sql));
    tokio::select! {
        answer = &mut asked => answer,
        () = progress.cancelled() => {
            // The server may have ended it meanwhile; closing the connection does the rest.
            let _ = cancel.cancel_query(NoTls).await;
            Err(Error::cancelled())
        }
    }
}

/// A session of the role that may only read, which is made if it is not there yet.
async fn reader(into: &Path, database: &str) -> Result<Client> {
    const ASK: &str = "SELECT r.oid IS NOT NULL,
            pg_catalog.shobj_description(r.oid, 'pg_authid') IS NOT DISTINCT FROM $2,
            coalesce(pg_catalog.has_database_privilege(r.oid, pg_catalog.current_database(), 'CONNECT'), false)
        FROM (SELECT) one LEFT JOIN pg_catalog.pg_roles r ON r.rolname = $1";
    let failed = |error| server_error(error, "preparing to ask the clone");
    let owner = connect(into, database).await?;
    let known = owner.query_one(ASK, &[&READER, &MARK]).await.map_err(failed)?;
    let (there, ours, connects): (bool, bool, bool) = (known.get(0), known.get(1), known.get(2));
    if there && !ours {
        return Err(Error::refused(format!(
            "production has a role {READER} of its own, which cannot be used for this"
        ))
        .hint("Look into the cluster with psql."));
    }
    if !there {
        // Rows that row security hides would be missed; a sort must not fill this machine's disk.
        let made = owner
            .batch_execute(&format!(
                "BEGIN READ WRITE; CREATE ROLE {READER} LOGIN BYPASSRLS; GRANT pg_read_all_data TO {READER}; \
                 ALTER ROLE {READER} SET temp_file_limit = '4GB'; COMMENT ON ROLE {READER} IS '{MARK}'; COMMIT"
            ))
            .await;
        made.map_err(|error| match error.code() {
            Some(&SqlState::UNDEFINED_OBJECT) => {
                Error::refused("a cluster before PostgreSQL 14 cannot be asked here").hint("Look into it with psql.")
            }
            _ => failed(error),
        })?;
    }
    if !connects {
        let name = quote(database);
        let grant = format!("BEGIN READ WRITE; GRANT CONNECT ON DATABASE {name} TO {READER}; COMMIT");
        owner.batch_execute(&grant).await.map_err(failed)?;
    }
    connect_as(into, READER, database).await
}

/// Removes the role again: a clone that stays is as production was.
pub(super) async fn forget_reader(client: &Client) -> Result<()> {
    let failed = |error| server_error(error, "removing the role that the clone was asked as");
    let sql = "SELECT FROM pg_catalog.pg_roles
        WHERE rolname = $1 AND pg_catalog.shobj_description(oid, 'pg_authid') = $2";
    if client.query_opt(sql, &[&READER, &MARK]).await.map_err(failed)?.is_none() {
        return Ok(());
    }
    // Owned by it is nothing; its right to connect goes.
    let sql = format!("BEGIN READ WRITE; DROP OWNED BY {READER}; DROP ROLE {READER}; COMMIT");
    client.batch_execute(&sql).await.map_err(failed)
}

async fn ask(client: &Client, sql: &str) -> Result<Answer> {
    let begun = Instant::now();
    let lost = |error| server_error(error, "asking the clone");
    let not_one = || {
        Error::operator("this is not one query").hint("Type one SELECT, VALUES, TABLE or WITH; psql takes the rest.")
    };
    let typed = sql.trim().trim_end_matches(';');
    if typed.is_empty() {
        return Err(not_one());
    }
    // The query in it takes the snapshot after which a transaction stays read-only.
    let transaction = format!("BEGIN READ ONLY; SET LOCAL statement_timeout = '{PATIENCE_SECONDS}s'; SELECT");
    client.batch_execute(&transaction).await.map_err(lost)?;
    let parsed = client.prepare(typed).await.map_err(said)?;
    if !parsed.params().is_empty() {
        return Err(Error::operator("there is a parameter in it").hint("Write the value itself."));
    }
    let columns: Vec<_> =
        parsed.columns().iter().map(|column| (column.name().to_owned(), is_number(column.type_()))).collect();
    if columns.is_empty() {
        return Err(not_one());
    }
    let statement = client.prepare(&wrapped(typed, columns.len())).await.map_err(|error| match error.code() {
        Some(&SqlState::SYNTAX_ERROR) => not_one(),
        _ => said(error),
    })?;
    let mut found = pin!(client.query_raw(&statement, Vec::<String>::new()).await.map_err(said)?);
    let (mut rows, mut bytes, mut cut) = (Vec::new(), 0, false);
    while let Some(row) = found.try_next().await.map_err(said)? {
        if rows.len() == ROWS || bytes > BYTES {
            cut = true;
            break;
        }
        let cells = (0..columns.len()).map(|at| row.try_get::<_, Option<String>>(at).map_err(lost));
        let cells = cells.collect::<Result<Vec<_>>>()?;
        bytes += cells.iter().flatten().map(String::len).sum::<usize>();
        rows.push(cells);
    }
    Ok(Answer { columns, rows, cut, took: begun.elapsed() })
}

/// The query in parentheses, its values as text and cut. `OFFSET 0` keeps the server from working a value out anew wherever
/// it is named. What is typed has lines of its own, so that a comment at its end stays its own.
fn wrapped(typed: &str, columns: usize) -> String {
    let names: Vec<_> = (1..=columns).map(|number| format!("c{number}")).collect();
    let cells: Vec<_> = names
        .iter()
        .map(|name| {
            format!(
                "pg_catalog.left({name}::text, {CELL}) || CASE WHEN pg_catalog.length({name}::text) > {CELL} \
                 THEN '… [' || pg_catalog.length({name}::text) || ' characters]' ELSE '' END"
            )
        })
        .collect();
    format!(
        "SELECT {} FROM (SELECT * FROM (\n{typed}\n) typed OFFSET 0) AS typed({}) LIMIT {}",
        cells.join(", "),
        names.join(", "),
        ROWS + 1
    )
}

fn is_number(kind: &Type) -> bool {
    [Type::INT2, Type::INT4, Type::INT8, Type::FLOAT4, Type::FLOAT8, Type::NUMERIC, Type::OID].contains(kind)
}

/// The server's own words for what the operator typed.
fn said(error: tokio_postgres::Error) -> Error {
    let Some(server) = error.as_db_error() else { return server_error(error, "asking the clone") };
    if *server.code() == SqlState::QUERY_CANCELED {
        return Error::refused(format!("the query took longer than {} minutes, and was ended", PATIENCE_SECONDS / 60))
            .hint("Ask for less, or with psql.");
    }
    let at = match server.position() {
        Some(ErrorPosition::Original(at)) => format!(" (at character {at})"),
        _ => String::new(),
    };
    let mut told = Error::operator(format!("{}{at}", server.message()));
    told.hints.extend(server.hint().map(str::to_owned));
    match server.detail() {
        Some(detail) => told.detail(detail),
        None => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_stands_in_parentheses_on_lines_of_its_own() {
        let sql = wrapped("SELECT 1 -- one", 1);
        assert!(sql.contains("(\nSELECT 1 -- one\n) typed OFFSET 0) AS typed(c1) LIMIT 1001"), "{sql}");
    }
}
