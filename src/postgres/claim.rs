//! Who works on a table. A recovery that compares a table claims it: another one, from this machine or any other, may look,
//! and is told who has it; it may not write. A claim is an advisory lock of the recovery's session, so it dies with it.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::connect::server_error;
use super::name::Name;
use super::stage::{self, Scratch};
use crate::error::{Error, Result};

/// Our part of the number space that all programs share, together with the table's oid.
const CLASS: i32 = 0x4c_46_42_54;

/// How long the server may take to notice that a connection of ours is gone; its keepalives end sooner.
const LOST: Duration = Duration::from_secs(12);

/// A recovery that has a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The claimed table.
    pub table: Name,
    /// Its `application_name`, which names the recovery.
    pub session: String,
    /// Its role.
    pub role: String,
    /// It bears our own session's name: a connection that was lost, and that the server has not given up yet.
    pub lost: bool,
    /// What its staging schema says of it: since when, from which machine.
    pub begun: Option<String>,
}

impl Claim {
    /// Who has it, since when, from where, in words.
    pub fn told(&self) -> String {
        let begun = self.begun.as_deref().map(|begun| format!(", {begun}")).unwrap_or_default();
        format!("{} is in the hands of {} as {}{begun}", self.table, self.session, self.role)
    }
}

/// Claims a table for this session, unless another one has it. Whether it is ours now.
pub async fn claim(client: &Client, oid: u32) -> Result<bool> {
    let sql = "SELECT CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()
                AND classid = $1::int4::oid AND objid = $2 AND objsubid = 2) THEN true
            ELSE pg_catalog.pg_try_advisory_lock($1, $2::oid::int8::bit(32)::int4) END";
    let row = client.query_one(sql, &[&CLASS, &oid]).await;
    Ok(row.map_err(|error| server_error(error, "claiming a table"))?.get(0))
}

/// As [`claim`], but that another one has it is an error, which says who. A session of the same name is this recovery's own,
/// lost, and about to end: it is waited for.
pub async fn claim_or_refuse(client: &Client, table: &Name, oid: u32) -> Result<()> {
    let begun = Instant::now();
    let holder = loop {
        if claim(client, oid).await? {
            return Ok(());
        }
        let holder = others(client).await?.into_iter().find(|claim| claim.table == *table);
        let ours = holder.as_ref().is_some_and(|claim| claim.lost);
        if !ours || begun.elapsed() > LOST {
            break holder;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let told = holder.map_or_else(|| format!("{table} is in the hands of another recovery"), |claim| claim.told());
    Err(Error::refused(told)
        .hint("Nothing was changed. Two repairs of one table at once would undo each other: speak with whoever has it.")
        .hint("The claim ends with that recovery, at the latest when its session does."))
}

/// Gives all of this session's claims back.
pub async fn release(client: &Client) -> Result<()> {
    let released = client.batch_execute("SELECT pg_catalog.pg_advisory_unlock_all()").await;
    released.map_err(|error| server_error(error, "giving claimed tables back"))
}

/// The claims of other sessions on tables of this database.
pub async fn others(client: &Client) -> Result<Vec<Claim>> {
    let sql =
        "SELECT n.nspname::text, c.relname::text, coalesce(a.application_name, ''), coalesce(a.usename::text, ''),
            coalesce(a.application_name = pg_catalog.current_setting('application_name'), false)
        FROM pg_catalog.pg_locks l
        JOIN pg_catalog.pg_database d ON d.oid = l.database AND d.datname = pg_catalog.current_database()
        JOIN pg_catalog.pg_class c ON c.oid = l.objid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
        WHERE l.locktype = 'advisory' AND l.classid = $1::int4::oid AND l.objsubid = 2 AND l.granted
          AND l.pid <> pg_catalog.pg_backend_pid() ORDER BY 1, 2";
    let rows = client.query(sql, &[&CLASS]).await.map_err(|error| server_error(error, "looking who has tables"))?;
    let mut claims = Vec::with_capacity(rows.len());
    for row in rows {
        let session: String = row.get(2);
        let begun = match session.strip_prefix("lifeboat ").map(Scratch::of) {
            Some(Ok(scratch)) => stage::schema_mark(client, &scratch.schema).await?.flatten(),
            _ => None,
        };
        claims.push(Claim {
            table: Name::new(row.get::<_, String>(0), row.get::<_, String>(1)),
            session,
            role: row.get(3),
            lost: row.get(4),
            begun: begun.map(|mark| format!("since {} from {}", mark.created, mark.host)),
        });
    }
    Ok(claims)
}
