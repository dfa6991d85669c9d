//! What a comparison found, in numbers that must add up.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use tokio_postgres::Client;

use super::super::connect::server_error;
use super::super::stage::Scratch;
use super::compare::Compared;
use super::key::duplicates;
use super::{ColumnCount, Table, TableDiff, TransactionCount};
use crate::error::{Error, Result};
use crate::text;

/// Transactions that are told apart, those with most rows first. Where every row was written by another one, the list
/// would be as long as the table.
const TRANSACTIONS: i64 = 1000;

pub(super) async fn run(
    client: &Client,
    scratch: &Scratch,
    table: &Table,
    backup_rows: u64,
    compared: Compared,
) -> Result<TableDiff> {
    let diff = table.diff(scratch);
    let failed = |error| server_error(error, &format!("counting the differences of {}", table.live.name));
    let sql = format!("SELECT class::text, pg_catalog.count(*) FROM {diff} GROUP BY class");
    let classes: HashMap<String, u64> = client
        .query(&sql, &[])
        .await
        .map_err(failed)?
        .iter()
        .map(|row| (row.get(0), row.get::<_, i64>(1).unsigned_abs()))
        .collect();
    let class = |name: &str| classes.get(name).copied().unwrap_or(0);
    let (missing, changed, extra) = (class("m"), class("c"), class("x"));
    let (unkeyed_backup, unkeyed_live) = (class("u"), class("v"));
    // The rows that are the same, seen from either side.
    let of_live = compared.live_rows.checked_sub(changed + extra + unkeyed_live);
    let of_backup = backup_rows.checked_sub(changed + missing + unkeyed_backup);
    unique(client, scratch, table, of_live != of_backup, missing).await?;
    let (Some(same), true) = (of_live, of_live == of_backup) else {
        return Err(Error::bug(format!(
            "the rows of {} do not add up: backup {backup_rows}, production {}, missing {missing}, changed {changed}, \
             extra {extra}, without a key {unkeyed_backup} and {unkeyed_live}",
            table.live.name, compared.live_rows
        )));
    };
    Ok(TableDiff {
        table: table.live.name.clone(),
        key: table.key.clone(),
        pairs: table.pairs.clone(),
        backup_rows,
        live_rows: compared.live_rows,
        missing,
        changed,
        extra,
        same,
        unkeyed_backup,
        unkeyed_live,
        by_column: by_column(client, &diff, table).await?,
        by_transaction: by_transaction(client, &diff, table).await?,
        parents: table.live.parents.clone(),
        children: table.live.children.clone(),
    })
}

/// Production's index holds the key unique there; the backup's rows have no index, so a damaged or hand-made dump could
/// hold one key twice, and a merge would write one of its rows at random.
async fn unique(client: &Client, scratch: &Scratch, table: &Table, unequal: bool, missing: u64) -> Result<()> {
    if table.key.is_none() || (!unequal && missing == 0) {
        return Ok(());
    }
    let (rows, columns) = if unequal {
        (table.staging(scratch), table.key_columns.iter().map(|column| column.staged("r")).collect::<Vec<_>>())
    } else {
        // A key that occurs twice and that production has too would have shown in the sums.
        let missing = format!("(SELECT * FROM {} WHERE class = 'm')", table.diff(scratch));
        (missing, (1..=table.key_columns.len()).map(|place| format!("r.k{place}")).collect())
    };
    let (keys, sample) = duplicates(client, &rows, &columns).await?;
    if keys == 0 {
        return Ok(());
    }
    let list = table.key_columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ");
    Err(Error::backup(format!(
        "{} of {list} occur more than once in the backup of {}, for example {}",
        text::counted(keys, "value", "values"),
        table.live.name,
        text::clean(&sample.join("; "))
    ))
    .hint("Choose another recovery point, or compare this table without a key."))
}

async fn by_column(client: &Client, diff: &str, table: &Table) -> Result<Vec<ColumnCount>> {
    let sql = format!(
        "SELECT c::int, pg_catalog.count(*) FROM {diff}, pg_catalog.unnest(cols) AS c WHERE class = 'c'
         GROUP BY c ORDER BY 2 DESC, 1"
    );
    let failed = |error| server_error(error, &format!("counting the differences of {}", table.live.name));
    let rows = client.query(&sql, &[]).await.map_err(failed)?;
    Ok(rows
        .iter()
        .map(|row| ColumnCount { column: column(table, row.get(0)), rows: row.get::<_, i64>(1).unsigned_abs() })
        .collect())
}

fn column(table: &Table, index: i32) -> String {
    usize::try_from(index)
        .ok()
        .and_then(|index| table.pairs.get(index))
        .map_or_else(String::new, |pair| pair.column.clone())
}

async fn by_transaction(client: &Client, diff: &str, table: &Table) -> Result<Vec<TransactionCount>> {
    let failed = |error| server_error(error, &format!("counting the transactions of {}", table.live.name));
    let sql = format!(
        "SELECT live_xmin::text, pg_catalog.count(*) FILTER (WHERE class = 'c'), pg_catalog.count(*) FILTER (WHERE class = 'x')
         FROM {diff} WHERE class IN ('c', 'x') GROUP BY live_xmin ORDER BY pg_catalog.count(*) DESC, live_xmin::text LIMIT {TRANSACTIONS}"
    );
    let mut transactions = Vec::new();
    for row in client.query(&sql, &[]).await.map_err(failed)? {
        transactions.push(TransactionCount {
            xid: number(row.get(0))?,
            committed_at: None,
            changed: row.get::<_, i64>(1).unsigned_abs(),
            extra: row.get::<_, i64>(2).unsigned_abs(),
            columns: Vec::new(),
        });
    }
    let xids: Vec<String> = transactions.iter().map(|transaction| transaction.xid.to_string()).collect();
    let sql = format!(
        "SELECT live_xmin::text, c::int FROM {diff}, pg_catalog.unnest(cols) AS c
         WHERE class = 'c' AND live_xmin::text = ANY($1) GROUP BY live_xmin, c ORDER BY pg_catalog.count(*) DESC, c"
    );
    let mut columns: HashMap<u32, Vec<String>> = HashMap::new();
    for row in client.query(&sql, &[&xids]).await.map_err(failed)? {
        columns.entry(number(row.get(0))?).or_default().push(column(table, row.get(1)));
    }
    let times = commit_times(client, &xids).await;
    for transaction in &mut transactions {
        transaction.columns = columns.remove(&transaction.xid).unwrap_or_default();
        transaction.committed_at = times.get(&transaction.xid).copied();
    }
    Ok(transactions)
}

/// Empty unless the server tracks commit times; it forgets those of old transactions, and says so in several ways, none of
/// which should stop a recovery.
async fn commit_times(client: &Client, xids: &[String]) -> HashMap<u32, DateTime<Utc>> {
    let sql = "SELECT x, (extract(epoch FROM pg_catalog.pg_xact_commit_timestamp(x::xid)) * 1000000)::bigint
        FROM pg_catalog.unnest(CASE WHEN pg_catalog.current_setting('track_commit_timestamp') = 'on' THEN $1::text[] END) AS x";
    let Ok(rows) = client.query(sql, &[&xids]).await else { return HashMap::new() };
    rows.iter()
        .filter_map(|row| {
            let time = DateTime::from_timestamp_micros(row.get::<_, Option<i64>>(1)?)?;
            Some((row.get::<_, &str>(0).parse().ok()?, time))
        })
        .collect()
}

fn number(xid: &str) -> Result<u32> {
    xid.parse().map_err(|_| Error::bug(format!("{xid} is not a transaction id")))
}
