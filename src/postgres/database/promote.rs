//! Two databases exchange their names, in one transaction, while nobody can connect to either.
//!
//! `ALTER DATABASE ... RENAME` first takes the lock that every new connection to that database has to take, then waits up to
//! five seconds until the sessions in it have ended: they are ended from a second connection meanwhile. A client that comes
//! back waits for the lock, is told that the database was renamed, and finds the new one when it comes again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::super::connect::{Conninfo, server_error, session_name};
use super::super::name::quote;
use super::super::stage::Mark;
use super::needs::{Production, production};
use super::restore::Restored;
use super::{before_name, comment_sql, maintenance, mark_sql};
use crate::error::{Error, Kind, Result};

/// How often the sessions that stand in the way are ended again while the rename waits.
const AGAIN: Duration = Duration::from_millis(20);

/// Settings whose value is a list of quoted names.
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// How production stands just before the exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// `None`: there is no database of that name.
    pub production: Option<Production>,
    /// Rows that were inserted, updated and deleted in production since the restore began, as the server's statistics have
    /// it; `None`: they were reset meanwhile, or nobody could ask.
    pub written: Option<u64>,
    /// Statements that give the restored database what belongs to production's database itself: grants, settings, limits.
    pub carried: Vec<String>,
    /// The comment on production's database.
    pub comment: Option<String>,
}

/// What will be exchanged, as it was shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// The name that clients connect by.
    pub database: String,
    /// The number of the database that has it now; `None`: none has.
    pub production: Option<u32>,
    /// The name that this one gets.
    pub before: String,
    /// The name of the database that takes its place.
    pub restored: String,
    /// Its number.
    pub oid: u32,
    /// Run on it in the same transaction.
    pub carried: Vec<String>,
    /// What the one in production's place will be commented with.
    pub comment: Option<String>,
    /// As [`Restored::written_before`].
    pub written_before: Option<u64>,
}

impl Exchange {
    /// The exchange that puts a restored database in production's place.
    pub fn new(recovery: &str, database: &str, restored: &Restored, standing: &Standing) -> Result<Self> {
        Ok(Self {
            database: database.into(),
            production: standing.production.as_ref().map(|production| production.oid),
            before: before_name(recovery)?,
            restored: restored.database.clone(),
            oid: restored.oid,
            carried: standing.carried.clone(),
            comment: standing.comment.clone(),
            written_before: restored.written_before,
        })
    }

    /// What gives the way back in its turn, when this was taken back: the two have each other's parts. `None`: there was no
    /// database of that name before.
    pub fn reversed(&self) -> Option<Self> {
        Some(Self {
            database: self.database.clone(),
            production: Some(self.oid),
            before: self.restored.clone(),
            restored: self.before.clone(),
            oid: self.production?,
            carried: Vec::new(),
            comment: self.comment.clone(),
            written_before: None,
        })
    }

    /// The statements, as a person would run them.
    pub fn statements(&self) -> Vec<String> {
        let rename = |from: &str, to: &str| format!("ALTER DATABASE {} RENAME TO {}", quote(from), quote(to));
        let mut statements = self.carried.clone();
        if self.production.is_some() {
            statements.push(format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'",
                self.database.replace('\'', "''")
            ));
            statements.push(rename(&self.database, &self.before));
        }
        statements.push(rename(&self.restored, &self.database));
        statements
    }

    /// The statements of the way back.
    pub fn statements_back(&self) -> Vec<String> {
        let rename = |from: &str, to: &str| format!("ALTER DATABASE {} RENAME TO {}", quote(from), quote(to));
        let mut statements = vec![rename(&self.database, &self.restored)];
        statements.extend(self.production.map(|_| rename(&self.before, &self.database)));
        statements
    }
}

/// What an exchange came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchanged {
    /// From the first session that was ended until the new name was committed; 0 when that was not seen.
    pub outage_ms: u64,
    /// Sessions that were ended.
    pub ended: u64,
}

/// Rows that were inserted, updated and deleted in a session's database since its statistics were reset; those of transactions
/// that are open are not in it.
pub async fn written(client: &Client) -> Result<Option<u64>> {
    let sql = "SELECT coalesce(pg_catalog.sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint FROM pg_catalog.pg_stat_user_tables";
    let row = client.query_one(sql, &[]).await;
    let row = row.map_err(|error| server_error(error, "reading the statistics of production"))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).ok())
}

/// Looks how production stands now. `written` is what [`written`] says of it.
pub async fn standing(client: &Client, database: &str, restored: &Restored, written: Option<u64>) -> Result<Standing> {
    let production = production(client, database).await?;
    let (carried, comment) = match &production {
        Some(production) => {
            (carried(client, production.oid, &restored.database).await?, comment(client, production.oid).await?)
        }
        None => (Vec::new(), None),
    };
    let written = restored.written_before.zip(written).and_then(|(before, now)| now.checked_sub(before));
    Ok(Standing { production, written, carried, comment })
}

async fn comment(client: &Client, oid: u32) -> Result<Option<String>> {
    let row = client.query_one("SELECT pg_catalog.shobj_description($1::oid, 'pg_database')", &[&oid]).await;
    Ok(row.map_err(|error| server_error(error, "reading a database's comment"))?.get(0))
}

/// What belongs to a database and is not in it, as statements for another one.
async fn carried(client: &Client, oid: u32, to: &str) -> Result<Vec<String>> {
    let failed = |error| server_error(error, "reading the settings and grants of production's database");
    let to_sql = quote(to);
    let mut statements = Vec::new();
    let grants = "SELECT a.privilege_type, a.is_grantable, r.rolname::text
        FROM pg_catalog.pg_database d, pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) a
        LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
        WHERE d.oid = $1 AND (a.grantee = 0 OR r.rolname IS NOT NULL) ORDER BY 3 NULLS FIRST, 1";
    for row in client.query(grants, &[&oid]).await.map_err(failed)? {
        let right: &str = row.get(0);
        let Some(right) = ["CREATE", "CONNECT", "TEMPORARY"].into_iter().find(|known| *known == right) else {
            continue;
        };
        let grantee = row.get::<_, Option<&str>>(2).map_or_else(|| "PUBLIC".into(), quote);
        let option = if row.get(1) { " WITH GRANT OPTION" } else { "" };
        statements.push(format!("GRANT {right} ON DATABASE {to_sql} TO {grantee}{option}"));
    }
    let limit = "SELECT datconnlimit FROM pg_catalog.pg_database WHERE oid = $1";
    let limit: i32 = client.query_one(limit, &[&oid]).await.map_err(failed)?.get(0);
    if limit >= 0 {
        statements.push(format!("ALTER DATABASE {to_sql} CONNECTION LIMIT {limit}"));
    }
    let settings = "SELECT r.rolname::text, s.setting FROM (
            SELECT setrole, pg_catalog.unnest(setconfig) AS setting FROM pg_catalog.pg_db_role_setting WHERE setdatabase = $1
        ) s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole WHERE s.setrole = 0 OR r.rolname IS NOT NULL ORDER BY 1 NULLS FIRST, 2";
    for row in client.query(settings, &[&oid]).await.map_err(failed)? {
        let Some((name, value)) = row.get::<_, &str>(1).split_once('=') else { continue };
        let values = if LISTS.contains(&name) { elements(value) } else { vec![value.to_owned()] };
        let quoted =
            "SELECT pg_catalog.string_agg(pg_catalog.quote_literal(v), ', ') FROM pg_catalog.unnest($1::text[]) v";
        let quoted: Option<String> = client.query_one(quoted, &[&values]).await.map_err(failed)?.get(0);
        let whose = match row.get::<_, Option<&str>>(0) {
            Some(role) => format!("ALTER ROLE {} IN DATABASE {to_sql}", quote(role)),
            None => format!("ALTER DATABASE {to_sql}"),
        };
        statements.push(format!("{whose} SET {} TO {}", quote(name), quoted.unwrap_or_else(|| "''".into())));
    }
    Ok(statements)
}

/// The elements of `"$user", public`.
fn elements(list: &str) -> Vec<String> {
    let (mut elements, mut element, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = list.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.next_if_eq(&'"').is_some() => element.push('"'),
            '"' => quoted = !quoted,
            ',' if !quoted => elements.push(std::mem::take(&mut element)),
            ' ' if !quoted => {}
            _ => element.push(letter),
        }
    }
    elements.push(element);
    elements
}

/// One database that gets another name, and must still be the one that was looked at.
struct Rename<'a> {
    oid: u32,
    from: &'a str,
    to: &'a str,
}

/// Puts the restored database in production's place.
pub async fn promote(conninfo: &Conninfo, recovery: &str, exchange: &Exchange) -> Result<Exchanged> {
    let client = maintenance(conninfo, &session_name(recovery)).await?.client;
    let mut last = exchange.carried.clone();
    if exchange.production.is_some() {
        let mark = Mark::new(&client, recovery, Some(&exchange.database)).await?;
        last.push(mark_sql(&client, &exchange.database, &mark).await?);
    }
    last.push(comment_sql(&client, &exchange.restored, exchange.comment.as_deref()).await?);
    let gives_way = exchange.production.map(|oid| Rename { oid, from: &exchange.database, to: &exchange.before });
    let takes_over = Rename { oid: exchange.oid, from: &exchange.restored, to: &exchange.database };
    rename(conninfo, recovery, &client, &last, gives_way, Some(takes_over)).await
}

/// Puts the earlier database back in its place.
pub async fn back(conninfo: &Conninfo, recovery: &str, earlier: &str, exchange: &Exchange) -> Result<Exchanged> {
    let client = maintenance(conninfo, &session_name(recovery)).await?.client;
    // It has the name that its recovery gave it, and so its recovery's mark.
    let mark = Mark::new(&client, earlier, Some(&exchange.database)).await?;
    let mut first = vec![mark_sql(&client, &exchange.database, &mark).await?];
    if exchange.production.is_some() {
        first.push(comment_sql(&client, &exchange.before, exchange.comment.as_deref()).await?);
    }
    let gives_way = Rename { oid: exchange.oid, from: &exchange.database, to: &exchange.restored };
    let takes_over = exchange.production.map(|oid| Rename { oid, from: &exchange.before, to: &exchange.database });
    rename(conninfo, recovery, &client, &first, Some(gives_way), takes_over).await
}

async fn rename(
    conninfo: &Conninfo,
    recovery: &str,
    client: &Client,
    first: &[String],
    gives_way: Option<Rename<'_>>,
    takes_over: Option<Rename<'_>>,
) -> Result<Exchanged> {
    let other = maintenance(conninfo, &session_name(recovery)).await?.client;
    for one in gives_way.iter().chain(&takes_over) {
        still_there(client, one).await?;
    }
    let failed = |error| server_error(error, "exchanging the databases");
    let begin =
        "BEGIN; SET LOCAL lock_timeout = '10s'; SET LOCAL statement_timeout = 0; SET LOCAL synchronous_commit = on";
    client.batch_execute(begin).await.map_err(failed)?;
    let (mut since, mut sessions) = (Instant::now(), BTreeSet::new());
    let outcome = async {
        for statement in first {
            client.batch_execute(statement).await.map_err(failed)?;
        }
        since = Instant::now();
        for one in gives_way.iter().chain(&takes_over) {
            let sql = format!("ALTER DATABASE {} RENAME TO {}", quote(one.from), quote(one.to));
            sessions.extend(alone(client.batch_execute(&sql), &other, one.oid).await?);
        }
        // Under the lock now: they are the ones that were looked at.
        for one in gives_way.iter().chain(&takes_over) {
            let now = holder(client, one.to).await?;
            if now != Some(one.oid) {
                return Err(changed(one.to));
            }
        }
        Ok(())
    };
    if let Err(error) = outcome.await {
        let _ = client.batch_execute("ROLLBACK").await;
        return Err(error.hint("Nothing was exchanged: production has its name, and its clients may connect again."));
    }
    let committed = client.batch_execute("COMMIT").await;
    let outage_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    match committed {
        Ok(()) => Ok(Exchanged { outage_ms, ended: sessions.len() as u64 }),
        Err(error) if error.as_db_error().is_some() => Err(failed(error)),
        Err(error) => Err(Error { kind: Kind::Unresolved, ..failed(error) }),
    }
}

/// Waits for a rename and ends the sessions of its database meanwhile. Returns the processes that were ended.
async fn alone(
    rename: impl Future<Output = Result<(), tokio_postgres::Error>>,
    other: &Client,
    oid: u32,
) -> Result<BTreeSet<i32>> {
    let end = "SELECT pid, pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
        WHERE datid = $1 AND pid <> pg_catalog.pg_backend_pid()";
    let mut rename = std::pin::pin!(rename);
    let mut ended = BTreeSet::new();
    loop {
        // The rename is looked at first: it has to hold its lock before anybody is ended, or they would come back in time.
        let renamed = tokio::select! {
            biased;
            renamed = &mut rename => Some(renamed),
            () = tokio::time::sleep(AGAIN) => None,
        };
        match renamed {
            Some(Ok(())) => return Ok(ended),
            Some(Err(error)) => {
                let error = server_error(error, "exchanging the databases");
                return Err(error
                    .hint("Prepared transactions and logical replication slots of the database hold its name too."));
            }
            None => {
                let rows = other.query(end, &[&oid]).await;
                let rows = rows.map_err(|error| server_error(error, "ending the sessions of the database"))?;
                ended.extend(rows.iter().map(|row| row.get::<_, i32>(0)));
            }
        }
    }
}

/// The number of the database that has a name now: what an exchange whose reply was lost is settled by.
pub async fn holder(client: &Client, name: &str) -> Result<Option<u32>> {
    let row = client.query_opt("SELECT oid FROM pg_catalog.pg_database WHERE datname = $1", &[&name]).await;
    Ok(row.map_err(|error| server_error(error, "looking which database has a name"))?.map(|row| row.get(0)))
}

async fn still_there(client: &Client, one: &Rename<'_>) -> Result<()> {
    if holder(client, one.from).await? != Some(one.oid) {
        return Err(changed(one.from));
    }
    if holder(client, one.to).await?.is_some_and(|oid| oid != one.oid) && one.to.starts_with("lifeboat_") {
        return Err(Error::refused(format!("there is a database named {} already", one.to))
            .hint("Look at it, rename or drop it by hand, and try again."));
    }
    Ok(())
}

fn changed(name: &str) -> Error {
    Error::refused(format!("the database {name} is not the one that was looked at")).hint(
        "Somebody has renamed, dropped or made a database meanwhile. Look again, and consent to what is there now.",
    )
}

/// Why the earlier database cannot come back, or how many sessions of the present one would be ended.
pub async fn way_back(client: &Client, exchange: &Exchange) -> Result<std::result::Result<u64, String>> {
    if holder(client, &exchange.database).await? != Some(exchange.oid) {
        return Ok(Err(format!("{} is not the database that this recovery put there", exchange.database)));
    }
    if exchange.production.is_some() && holder(client, &exchange.before).await? != exchange.production {
        return Ok(Err(format!("{} is not there any more", exchange.before)));
    }
    let present = production(client, &exchange.database).await?;
    Ok(Ok(present.map_or(0, |present| present.visitors.iter().map(|visitor| visitor.sessions).sum())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_names_is_taken_apart() {
        assert_eq!(elements(r#""$user", public"#), ["$user", "public"]);
        assert_eq!(elements(r#""a ""b"", c",d"#), [r#"a "b", c"#, "d"]);
        assert_eq!(elements(r#""""#), [""]);
    }
}
