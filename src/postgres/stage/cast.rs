//! Columns whose type has changed since the backup: every value is cast to the live type, and back, and must print as it
//! did. A cast that fails or loses something is refused, with the column and the value.

use tokio_postgres::Client;

use super::super::connect::{Session, server_error};
use super::super::name::{Name, quote};
use super::{StagedColumn, Target, stoppable};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};
use crate::text;

/// How much of a value is quoted in an error.
const SHOWN: usize = 80;

/// Checks and casts what needs it in a filled staging table.
pub(super) async fn settle(
    client: &Session,
    table: &str,
    of: &Name,
    columns: &[StagedColumn],
    progress: &Progress,
) -> Result<()> {
    let needing: Vec<_> = columns
        .iter()
        .filter_map(|column| Some((column, column.target.as_ref()?)))
        .filter(|(_, target)| target.retyped || target.is_words())
        .collect();
    for (column, target) in &needing {
        progress.begin(format!("casting {} of {of}", column.name), Unit::Rows, None);
        let check = Check { table, of, column, target };
        stoppable(client, progress, check.run(client)).await?;
    }
    let changes: Vec<_> = needing
        .iter()
        .filter(|(_, target)| !target.is_words())
        .map(|(column, target)| {
            let name = quote(&column.name);
            format!("ALTER COLUMN {name} TYPE {} USING {name}::text::{}", target.base_sql, target.base_sql)
        })
        .collect();
    if changes.is_empty() {
        return Ok(());
    }
    let sql = format!("BEGIN; SET LOCAL statement_timeout = 0; ALTER TABLE {table} {}; COMMIT", changes.join(", "));
    let work = async {
        client
            .batch_execute(&sql)
            .await
            .map_err(|error| server_error(error, &format!("casting the staged rows of {of}")))
    };
    stoppable(client, progress, work).await
}

struct Check<'a> {
    table: &'a str,
    of: &'a Name,
    column: &'a StagedColumn,
    target: &'a Target,
}

impl Check<'_> {
    /// The value as the live type holds it; a domain's CHECK would be code, so only its base type counts here.
    fn cast(&self) -> String {
        format!("{}::text::{}", quote(&self.column.name), self.target.base_sql)
    }

    async fn run(&self, client: &Client) -> Result<()> {
        let (name, cast) = (quote(&self.column.name), self.cast());
        // Where the type is the same, the cast only has to succeed: how a type prints its values may differ by version.
        let lost = if self.target.retyped {
            format!("({cast})::text::{}::text IS DISTINCT FROM {name}::text", self.column.type_sql)
        } else {
            format!("({cast}) IS NULL AND {name} IS NOT NULL")
        };
        let sql = format!(
            "SELECT pg_catalog.count(*), pg_catalog.min({name}::text COLLATE \"C\") FROM {} WHERE {lost}",
            self.table
        );
        let row = match client.query_one(&sql, &[]).await {
            Ok(row) => row,
            Err(error) if error.as_db_error().is_some() => return Err(self.impossible(client, error).await),
            Err(error) => return Err(server_error(error, &format!("casting {} of {}", self.column.name, self.of))),
        };
        let (rows, sample): (i64, Option<String>) = (row.get(0), row.get(1));
        if rows == 0 {
            return Ok(());
        }
        Err(Error::refused(format!(
            "the column {} of {} is {} now, and {} of the backup would lose something in the cast from {}, for example \"{}\"",
            self.column.name,
            self.of,
            self.target.type_sql,
            text::counted(rows.unsigned_abs(), "value", "values"),
            self.column.type_sql,
            shorten(sample.as_deref().unwrap_or("")),
        ))
        .hint("Bring this table back without Lifeboat, or change the column's type back first."))
    }

    async fn impossible(&self, client: &Client, error: tokio_postgres::Error) -> Error {
        let sample = self.first_offender(client).await.unwrap_or_default();
        let example = sample.map_or_else(String::new, |value| format!(", for example \"{}\"", shorten(&value)));
        let error = server_error(error, "casting");
        let refused = Error::refused(format!(
            "the column {} of {} is {} now, and the backup's values cannot be cast to it{example}",
            self.column.name, self.of, self.target.type_sql
        ))
        .hint("Bring this table back without Lifeboat, or change the column's type back first.");
        match error.detail {
            Some(detail) => refused.detail(detail),
            None => refused,
        }
    }

    /// Halves the table's blocks, then the rows of one block, until one row is left that cannot be cast.
    async fn first_offender(&self, client: &Client) -> Result<Option<String>> {
        let failed = |error| server_error(error, "looking for the value that cannot be cast");
        let sql = "SELECT pg_catalog.pg_relation_size($1::text::regclass) / current_setting('block_size')::bigint";
        let blocks: i64 = client.query_one(sql, &[&self.table]).await.map_err(failed)?.get(0);
        let Some(block) = self.halve(client, 0, blocks, |at| format!("({at},0)")).await else { return Ok(None) };
        // A block of 32 kB holds at most some 1,160 rows.
        let Some(row) = self.halve(client, 1, 2048, |at| format!("({block},{at})")).await else { return Ok(None) };
        let sql =
            format!("SELECT {}::text FROM {} WHERE ctid = '({block},{row})'", quote(&self.column.name), self.table);
        Ok(client.query_opt(&sql, &[]).await.map_err(failed)?.and_then(|row| row.get(0)))
    }

    async fn halve(&self, client: &Client, mut from: i64, mut to: i64, tid: impl Fn(i64) -> String) -> Option<i64> {
        while to - from > 1 {
            let middle = from + (to - from) / 2;
            if self.fails(client, &tid(from), &tid(middle)).await {
                to = middle;
            } else {
                from = middle;
            }
        }
        self.fails(client, &tid(from), &tid(to)).await.then_some(from)
    }

    async fn fails(&self, client: &Client, from: &str, to: &str) -> bool {
        let mut cast = self.cast();
        if self.target.retyped {
            cast = format!("({cast})::text::{}", self.column.type_sql);
        }
        let sql =
            format!("SELECT pg_catalog.count({cast}) FROM {} WHERE ctid >= '{from}' AND ctid < '{to}'", self.table);
        client.batch_execute(&sql).await.is_err()
    }
}

fn shorten(value: &str) -> String {
    text::fit(&text::clean(value), SHOWN).into_owned()
}
