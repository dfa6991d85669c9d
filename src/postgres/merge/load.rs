//! What a merge costs the server and those that follow it, told before consent: a merge is one transaction, so it cannot be
//! slowed down or stopped half-way for a standby's sake.

use tokio_postgres::Client;

use super::super::connect::server_error;
use super::super::stage::Scratch;
use super::frozen::Work;
use super::{Follower, Load};
use crate::error::Result;

/// An index entry with its WAL record, roughly.
const INDEX_ENTRY: u64 = 150;
/// A row's header and its WAL records, roughly.
const ROW: u64 = 200;

/// Estimates; the server's own bookkeeping says how large tables are and how far behind others stand.
pub(super) async fn estimate(client: &Client, scratch: &Scratch, works: &[Work]) -> Result<Load> {
    let mut wal_bytes = 0;
    for work in works {
        let failed = |error| server_error(error, &format!("estimating the load of {}", work.table.live.name));
        let sql = "SELECT pg_catalog.pg_table_size($1::text::regclass),
                (SELECT pg_catalog.sum(pg_catalog.pg_relation_size(relid)) FROM
                    (SELECT $2::oid AS relid UNION SELECT relid::oid FROM pg_catalog.pg_partition_tree($2)) AS r)::int8,
                (SELECT pg_catalog.count(*) FROM pg_catalog.pg_index WHERE indrelid = $2),
                pg_catalog.current_setting('block_size')::int8";
        let row = client.query_one(sql, &[&work.change(scratch), &work.table.live.oid]).await.map_err(failed)?;
        let number = |place: usize| row.get::<_, Option<i64>>(place).unwrap_or(0).unsigned_abs();
        let (frozen, table, indexes, page) = (number(0), number(1), number(2), number(3));
        let rows = work.inserts + work.updates + work.deletes;
        // The first change of a page after a checkpoint logs it whole: in the table, and in each index.
        let pages = (rows * page).min(table) + indexes * (rows * page).min(table / 4);
        // Written to the table, kept as they were, kept as they became.
        wal_bytes += 3 * frozen + rows * (ROW + indexes * INDEX_ENTRY) + pages;
    }
    Ok(Load { wal_bytes, followers: followers(client).await? })
}

/// Replication slots: anybody may read them, while `pg_stat_replication` tells most roles nothing.
async fn followers(client: &Client) -> Result<Vec<Follower>> {
    let sql = "SELECT slot_name::text, pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn)::int8, safe_wal_size
        FROM pg_catalog.pg_replication_slots WHERE restart_lsn IS NOT NULL ORDER BY slot_name";
    let rows = client.query(sql, &[]).await.map_err(|error| server_error(error, "looking who follows this server"))?;
    let follower = |row: &tokio_postgres::Row| Follower {
        slot: row.get(0),
        behind_bytes: row.get::<_, i64>(1).max(0).unsigned_abs(),
        spare_bytes: row.get::<_, Option<i64>>(2).map(|spare| spare.max(0).unsigned_abs()),
    };
    Ok(rows.iter().map(follower).collect())
}
