//! Looking at a diff: some rows at a time, by number, however many there are.

use tokio_postgres::Client;

use super::super::connect::server_error;
use super::super::name::quote;
use super::super::stage::{self, Scratch};
use super::compare::{by_place, diff_key};
use super::key::join;
use super::{Class, Filter, Page, Row, Table};
use crate::error::{Error, Result};

/// Characters of a value that are fetched for a page. A longer one ends in `… [123456 characters]`.
pub const CELL: usize = 10_000;

/// A condition typed by hand may be expensive; it must not run for ever.
const PATIENCE: &str = "SET LOCAL statement_timeout = '60s'; SET LOCAL jit = off";

/// Where a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the first matching row after this number; 0 is the beginning.
    After(i64),
    /// So that it ends with the last matching row before this number.
    Before(i64),
}

/// Up to `limit` rows of a diff that match, in key order, with the values as they are now.
///
/// Errors: a condition that is not one, with the server's words.
pub async fn page(
    client: &Client,
    scratch: &Scratch,
    table: &Table,
    filter: &Filter,
    start: Start,
    limit: u32,
) -> Result<Page> {
    let matching = Matching::new(client, scratch, table, filter).await?;
    let (number, bound, order) = match start {
        Start::After(number) => (number, "d.n > $1", "ASC"),
        Start::Before(number) => (number, "d.n < $1", "DESC"),
    };
    let cells = |alias: &str, has: &dyn Fn(&str) -> bool| {
        let cells: Vec<_> = table.pairs.iter().map(|pair| cell(alias, &pair.column, has(&pair.column))).collect();
        format!("ARRAY[{}]::text[]", cells.join(", "))
    };
    let staged = cells("backup", &|name| table.staged.iter().any(|column| column.name == name));
    let live = cells("live", &|name| table.live.columns.iter().any(|column| column.name == name));
    let joins = matching.joins();
    // Rows are picked first and joined then, unless the condition needs the values to pick them.
    let picked = if matching.condition.is_some() { joins.as_str() } else { "" };
    let sql = format!(
        "SELECT d.n, d.class::text, d.live_xmin::text, d.cols::int[],
            CASE WHEN backup.ctid IS NOT NULL THEN {staged} END, CASE WHEN live.ctid IS NOT NULL THEN {live} END
         FROM (SELECT d.* FROM {} d {picked} WHERE {bound} AND {} ORDER BY d.n {order} LIMIT $2) d {joins} ORDER BY d.n",
        table.diff(scratch),
        matching.sql()
    );
    let rows = read_only(client, &sql, &[&number, &i64::from(limit)], table).await?;
    Ok(Page {
        columns: table.pairs.iter().map(|pair| pair.column.clone()).collect(),
        rows: rows.iter().map(row).collect::<Result<_>>()?,
    })
}

/// How many rows of a diff match.
pub async fn matches(client: &Client, scratch: &Scratch, table: &Table, filter: &Filter) -> Result<u64> {
    let matching = Matching::new(client, scratch, table, filter).await?;
    let joins = if matching.condition.is_some() { matching.joins() } else { String::new() };
    let sql = format!("SELECT pg_catalog.count(*) FROM {} d {joins} WHERE {}", table.diff(scratch), matching.sql());
    let rows = read_only(client, &sql, &[], table).await?;
    Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0).unsigned_abs()))
}

/// A filter as SQL, over `d`, `backup` and `live`.
pub(in crate::postgres) struct Matching<'a> {
    table: &'a Table,
    scratch: &'a Scratch,
    terms: Vec<String>,
    pub condition: Option<String>,
}

impl<'a> Matching<'a> {
    pub async fn new(client: &Client, scratch: &'a Scratch, table: &'a Table, filter: &Filter) -> Result<Self> {
        let class = filter
            .class
            .map_or_else(|| "d.class IN ('m', 'c', 'x')".into(), |class| format!("d.class = '{}'", letter(class)));
        let mut terms = vec![class];
        if let Some(column) = &filter.column {
            terms.push(format!("{} = ANY (d.cols)", place(table, column)?));
        }
        if let Some(xid) = filter.transaction {
            terms.push(format!("d.live_xmin = '{xid}'::xid"));
        }
        let condition = filter.condition.as_deref().map(str::trim).filter(|condition| !condition.is_empty());
        if let Some(condition) = condition {
            check(client, scratch, table, condition).await?;
        }
        Ok(Self { table, scratch, terms, condition: condition.map(str::to_owned) })
    }

    /// Joins both sides' values to a row `d` of the diff.
    pub fn joins(&self) -> String {
        joins(self.scratch, self.table)
    }

    pub fn sql(&self) -> String {
        let mut terms = self.terms.clone();
        // Its own lines, so that a comment at its end stays its own.
        terms.extend(self.condition.as_ref().map(|condition| format!("(\n{condition}\n)")));
        terms.join(" AND ")
    }
}

/// The staged row is found by its place, which does not change; the live one by its key, as it is now.
pub(in crate::postgres) fn joins(scratch: &Scratch, table: &Table) -> String {
    let live = if by_place(table) {
        "live.ctid = d.l AND live.tableoid = d.l_table AND live.xmin = d.live_xmin".to_owned()
    } else {
        join(&table.key_columns, |_, column| column.live("live"), diff_key("d"))
    };
    format!(
        "LEFT JOIN {} backup ON backup.ctid = d.b LEFT JOIN {} live ON {live} AND d.class <> 'm'",
        table.staging(scratch),
        table.source()
    )
}

/// The index of a column in `cols`.
pub(in crate::postgres) fn place(table: &Table, column: &str) -> Result<usize> {
    table
        .compared()
        .find(|(_, staged)| staged.name == column)
        .map(|(place, _)| place)
        .ok_or_else(|| Error::operator(format!("{column} is not a compared column of {}", table.live.name)))
}

pub(in crate::postgres) fn letter(class: Class) -> char {
    match class {
        Class::Missing => 'm',
        Class::Changed => 'c',
        Class::Extra => 'x',
    }
}

/// The server parses the condition twice: alone at the end of a statement, where every parenthesis must close by itself and
/// nothing was opened before; and in parentheses, where only an expression fits. What passes both cannot reach beyond the
/// parentheses that it is put in. Nothing runs here.
async fn check(client: &Client, scratch: &Scratch, table: &Table, condition: &str) -> Result<()> {
    let from = format!("SELECT FROM {} AS backup, {} AS live WHERE", table.staging(scratch), table.source());
    for sql in [format!("{from}\n{condition}\n"), format!("{from} (\n{condition}\n)")] {
        let parsed = client.prepare(&sql).await.map_err(|error| {
            let not_one = Error::operator(format!("this is not a condition over backup and live: {condition}"))
                .hint("Write SQL as in WHERE, for example: live.status = 'void' and backup.amount > 100.");
            match error.as_db_error() {
                Some(server) => not_one.detail(server.message()),
                None => server_error(error, "checking the condition"),
            }
        })?;
        if !parsed.params().is_empty() {
            return Err(Error::operator(format!("this condition has a parameter in it: {condition}"))
                .hint("Write the value itself."));
        }
    }
    Ok(())
}

fn cell(alias: &str, column: &str, exists: bool) -> String {
    if !exists {
        return "NULL".into();
    }
    let value = format!("{alias}.{}::text", quote(column));
    format!(
        "pg_catalog.left({value}, {CELL}) || CASE WHEN pg_catalog.length({value}) > {CELL} \
         THEN '… [' || pg_catalog.length({value}) || ' characters]' ELSE '' END"
    )
}

fn row(row: &tokio_postgres::Row) -> Result<Row> {
    let class = match row.get::<_, &str>(1) {
        "m" => Class::Missing,
        "c" => Class::Changed,
        "x" => Class::Extra,
        other => return Err(Error::bug(format!("{other} is not a class of rows"))),
    };
    let changed: Option<Vec<i32>> = row.get(3);
    Ok(Row {
        number: row.get(0),
        class,
        xid: row.get::<_, Option<&str>>(2).and_then(|xid| xid.parse().ok()),
        backup: row.get(4),
        live: row.get(5),
        changed: changed.unwrap_or_default().into_iter().filter_map(|index| usize::try_from(index).ok()).collect(),
    })
}

/// Runs a query that must not change anything, whatever functions a condition calls.
async fn read_only(
    client: &Client,
    sql: &str,
    parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    table: &Table,
) -> Result<Vec<tokio_postgres::Row>> {
    let outcome = async {
        let failed = |error| server_error(error, &format!("reading the differences of {}", table.live.name));
        client.batch_execute(&format!("BEGIN READ ONLY; {PATIENCE}")).await.map_err(failed)?;
        client.query(sql, parameters).await.map_err(failed)
    };
    stage::finish(client, outcome.await).await
}
