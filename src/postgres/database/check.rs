//! Whether a restored database is what it should be: its rows against the dump's own count, its objects against production's,
//! sequences, constraints, and the queries of the configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::super::connect::server_error;
use super::super::name::{Name, quote};
use super::needs::Counted;
use super::restore::stoppable;
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// How long one table of production is counted; it has other work.
const PATIENCE: &str = "SET LOCAL statement_timeout = '60s'";
/// So many differences are named.
const NAMED: usize = 500;

/// Rows of one table on all sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// In the dump, in production, or in both.
    pub table: Name,
    /// Counted when the dump was decoded; `None`: the dump has no rows of it.
    pub dump: Option<u64>,
    /// `None`: it is only in production.
    pub restored: Option<u64>,
    /// `None`: it is not there, or could not be counted; see [`Checked::not_counted`].
    pub production: Option<u64>,
}

/// An object that is not the same in the restored database and in production.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// `index public.orders_by_day`
    pub object: String,
    /// On which side it is, or that it is another one.
    pub how: How,
}

/// How an object differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Production does not have it.
    OnlyRestored,
    /// Made since the backup: it will be missing.
    OnlyProduction,
    /// Both have it, defined in other words.
    Different,
}

/// What a query of the configuration gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// As it is configured.
    pub query: String,
    /// The first column of its first row has to be at least this.
    pub at_least: i64,
    /// What it was; an error's words where there was one.
    pub found: std::result::Result<i64, String>,
}

impl Asked {
    /// Whether it holds.
    pub fn holds(&self) -> bool {
        self.found.as_ref().is_ok_and(|found| *found >= self.at_least)
    }
}

/// What was checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// By table.
    pub rows: Vec<Rows>,
    /// Tables of production that we may not read, or not in a minute.
    pub not_counted: Vec<Name>,
    /// The first of them, by object; empty also when there is no production.
    pub differences: Vec<Difference>,
    /// How many there are.
    pub different: u64,
    /// Constraints that are not valid, as they were not when the dump was made.
    pub not_valid: Vec<String>,
    /// Sequences that are behind the rows which they number.
    pub behind: Vec<String>,
    /// As they are configured.
    pub asked: Vec<Asked>,
}

/// Gathers statistics, counts and compares. `queries` are those of the configuration, each with the least that it has to give.
///
/// Both databases are looked at at once, while a second session in the restored one gathers its statistics: that takes one
/// processor for as long as counting takes another. Queries of the configuration come after it, for their plans' sake.
///
/// Errors: a table has other rows than the dump.
pub async fn check(
    [restored, gathering]: [&Client; 2],
    production: Option<&Client>,
    loaded: &[Counted],
    queries: &[(String, i64)],
    progress: &Progress,
) -> Result<Checked> {
    let (here, there) =
        (tables(restored).await?, if let Some(client) = production { tables(client).await? } else { Vec::new() });
    let total = (here.len() + there.len()) as u64;
    progress.begin("gathering statistics, and counting rows on both sides", Unit::Items, Some(total));
    let statistics = gathering.batch_execute("SET statement_timeout = 0; ANALYZE");
    let statistics = stoppable(progress, statistics, "gathering statistics");
    let ours = async { Ok::<_, Error>((count_all(restored, &here, None, progress).await?, objects(restored).await?)) };
    let theirs = async {
        let Some(client) = production else { return Ok(None) };
        Ok(Some((count_all(client, &there, Some(PATIENCE), progress).await?, objects(client).await?)))
    };
    let ((ours, made), theirs, ()) = tokio::try_join!(ours, theirs, statistics)?;
    let mut rows: BTreeMap<Name, Rows> = BTreeMap::new();
    let mut of = |table: &Name, tell: &dyn Fn(&mut Rows)| {
        let new = Rows { table: table.clone(), dump: None, restored: None, production: None };
        tell(rows.entry(table.clone()).or_insert(new));
    };
    for counted in loaded {
        of(&counted.table, &|rows| rows.dump = Some(counted.rows));
    }
    for (table, number) in here.iter().zip(ours) {
        of(table, &|rows| rows.restored = number);
    }
    let (mut not_counted, mut found) = (Vec::new(), (Vec::new(), 0));
    if let Some((numbers, objects)) = theirs {
        for (table, number) in there.iter().zip(numbers) {
            not_counted.extend(number.is_none().then(|| table.clone()));
            of(table, &|rows| rows.production = number);
        }
        found = differences(&made, &objects);
    }
    let rows: Vec<Rows> = rows.into_values().collect();
    let partitioned = |table: &Rows| table.restored.is_none();
    if let Some(wrong) =
        rows.iter().find(|table| table.dump.is_some() && !partitioned(table) && table.dump != table.restored)
    {
        return Err(Error::target(format!(
            "{} has {} rows after it was restored, and the dump holds {}",
            wrong.table,
            wrong.restored.unwrap_or_default(),
            wrong.dump.unwrap_or_default()
        ))
        .hint("Something on the server writes to databases by itself. Nothing of production was changed."));
    }
    progress.begin("looking at constraints and sequences", Unit::Items, None);
    let mut asked = Vec::new();
    for (query, at_least) in queries {
        progress.check()?;
        asked.push(Asked { query: query.clone(), at_least: *at_least, found: ask(restored, query).await? });
    }
    let (not_valid, behind) = (not_valid(restored).await?, behind(restored).await?);
    let (differences, different) = found;
    Ok(Checked { rows, not_counted, differences, different, not_valid, behind, asked })
}

const OURS: &str = "n.nspname !~ '^(pg_|restore_staging_|lifeboat_undo_)' AND n.nspname <> 'information_schema'";

/// Tables that hold rows themselves, without those of extensions.
pub async fn tables(client: &Client) -> Result<Vec<Name>> {
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'r' AND {OURS} AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
            WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') ORDER BY 1, 2"
    );
    let rows = client.query(&sql, &[]).await.map_err(|error| server_error(error, "listing tables"))?;
    Ok(rows.iter().map(|row| Name::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

/// Of each table.
async fn count_all(
    client: &Client,
    tables: &[Name],
    patience: Option<&str>,
    progress: &Progress,
) -> Result<Vec<Option<u64>>> {
    let mut counted = Vec::new();
    for table in tables {
        progress.check()?;
        counted.push(count(client, table, patience).await?);
        progress.advance(1);
    }
    Ok(counted)
}

/// `None`: it took too long.
async fn count(client: &Client, table: &Name, patience: Option<&str>) -> Result<Option<u64>> {
    let failed = |error| server_error(error, &format!("counting {table}"));
    let patience = patience.unwrap_or("SET LOCAL statement_timeout = 0");
    client.batch_execute(&format!("BEGIN READ ONLY; {patience}")).await.map_err(failed)?;
    let counted = client.query_one(&format!("SELECT pg_catalog.count(*) FROM ONLY {}", table.sql()), &[]).await;
    client.batch_execute("ROLLBACK").await.map_err(failed)?;
    match counted {
        Ok(row) => Ok(u64::try_from(row.get::<_, i64>(0)).ok()),
        // What we may not read, or not for so long, is not known.
        Err(error) if matches!(error.code(), Some(&SqlState::QUERY_CANCELED | &SqlState::INSUFFICIENT_PRIVILEGE)) => {
            Ok(None)
        }
        Err(error) => Err(failed(error)),
    }
}

/// The first column of the first row of a query that changes nothing, or what the server says against it.
async fn ask(client: &Client, query: &str) -> Result<std::result::Result<i64, String>> {
    let failed = |error| server_error(error, "asking a query of the configuration");
    client.batch_execute("BEGIN READ ONLY; SET LOCAL statement_timeout = '10min'").await.map_err(failed)?;
    let answer = client.simple_query(query).await;
    client.batch_execute("ROLLBACK").await.map_err(failed)?;
    let rows = match answer {
        Ok(rows) => rows,
        Err(error) if error.as_db_error().is_none() => return Err(failed(error)),
        Err(error) => {
            return Ok(Err(error.as_db_error().map(|server| server.message().to_owned()).unwrap_or_default()));
        }
    };
    let first = rows.iter().find_map(|row| match row {
        tokio_postgres::SimpleQueryMessage::Row(row) if !row.is_empty() => {
            Some(row.get(0).unwrap_or_default().to_owned())
        }
        _ => None,
    });
    Ok(first.ok_or_else(|| "it gave no row".to_owned()).and_then(|text| {
        text.parse().map_err(|_| format!("it gave \"{}\", which is no whole number", crate::text::clean(&text)))
    }))
}

/// What an object's owner and grants are listed as, before the object itself.
const OWNED: &str = "owner and grants of ";

/// Every object of the database's users, with its definition hashed, and its owner and grants, whoever granted them.
async fn objects(client: &Client) -> Result<BTreeMap<String, String>> {
    let sql = format!(
        "WITH n AS (SELECT oid, nspname, nspowner, nspacl FROM pg_catalog.pg_namespace n WHERE {OURS}),
        ext AS (SELECT classid, objid FROM pg_catalog.pg_depend WHERE deptype = 'e'),
        c AS (SELECT c.oid, c.relkind, c.relowner, c.relacl, CASE c.relkind WHEN 'v' THEN 'view ' WHEN 'm' THEN 'materialized view '
                WHEN 'S' THEN 'sequence ' WHEN 'f' THEN 'foreign table ' ELSE 'table ' END || pg_catalog.format('%I.%I', n.nspname, c.relname) AS object
            FROM pg_catalog.pg_class c JOIN n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
            AND NOT EXISTS (SELECT FROM ext WHERE classid = 'pg_catalog.pg_class'::regclass AND objid = c.oid)),
        o(object, definition) AS (
            SELECT 'schema ' || nspname, '' FROM n
            UNION ALL SELECT 'extension ' || extname, '' FROM pg_catalog.pg_extension
            UNION ALL SELECT c.object, CASE WHEN c.relkind IN ('v', 'm') THEN pg_catalog.pg_get_viewdef(c.oid) WHEN c.relkind = 'S' THEN ''
                ELSE (SELECT pg_catalog.string_agg(pg_catalog.format('%s %s %s %s', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod),
                        a.attnotnull, pg_catalog.pg_get_expr(f.adbin, f.adrelid)), ',' ORDER BY a.attname)
                    FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
                    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) END FROM c
            UNION ALL SELECT 'index ' || pg_catalog.format('%I.%I', n.nspname, c.relname), pg_catalog.pg_get_indexdef(c.oid)
                FROM pg_catalog.pg_class c JOIN n ON n.oid = c.relnamespace WHERE c.relkind IN ('i', 'I')
                AND NOT EXISTS (SELECT FROM ext WHERE classid = 'pg_catalog.pg_class'::regclass AND objid = c.oid)
            UNION ALL SELECT 'constraint ' || k.conname || ' of ' || k.conrelid::regclass, pg_catalog.pg_get_constraintdef(k.oid)
                FROM pg_catalog.pg_constraint k JOIN n ON n.oid = k.connamespace WHERE k.conrelid <> 0
            UNION ALL SELECT 'function ' || p.oid::regprocedure, CASE WHEN p.prokind = 'a' THEN '' ELSE pg_catalog.pg_get_functiondef(p.oid) END
                FROM pg_catalog.pg_proc p JOIN n ON n.oid = p.pronamespace
                WHERE NOT EXISTS (SELECT FROM ext WHERE classid = 'pg_catalog.pg_proc'::regclass AND objid = p.oid)
            UNION ALL SELECT 'trigger ' || t.tgname || ' of ' || t.tgrelid::regclass, pg_catalog.pg_get_triggerdef(t.oid)
                FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN n ON n.oid = c.relnamespace
                WHERE NOT t.tgisinternal
            UNION ALL SELECT 'policy ' || p.polname || ' of ' || p.polrelid::regclass,
                pg_catalog.concat(p.polcmd, pg_catalog.pg_get_expr(p.polqual, p.polrelid), pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid))
                FROM pg_catalog.pg_policy p
            UNION ALL SELECT 'type ' || t.oid::regtype, (SELECT pg_catalog.string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder)
                FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid)
                FROM pg_catalog.pg_type t JOIN n ON n.oid = t.typnamespace WHERE t.typtype IN ('e', 'd', 'r')
                AND NOT EXISTS (SELECT FROM ext WHERE classid = 'pg_catalog.pg_type'::regclass AND objid = t.oid)),
        owned(object, owner, acl, columns, by_default) AS (
            SELECT 'schema ' || nspname, nspowner, coalesce(nspacl, pg_catalog.acldefault('n', nspowner)), NULL, false FROM n
            UNION ALL SELECT c.object, c.relowner,
                coalesce(c.relacl, pg_catalog.acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", c.relowner)),
                (SELECT pg_catalog.string_agg(a.attname || a.attacl::text, ',' ORDER BY a.attname) FROM pg_catalog.pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL AND NOT a.attisdropped), false FROM c
            UNION ALL SELECT 'function ' || p.oid::regprocedure, p.proowner, coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner)), NULL, false
                FROM pg_catalog.pg_proc p JOIN n ON n.oid = p.pronamespace
            UNION ALL SELECT 'type ' || t.oid::regtype, t.typowner, coalesce(t.typacl, pg_catalog.acldefault('T', t.typowner)), NULL, false
                FROM pg_catalog.pg_type t JOIN n ON n.oid = t.typnamespace
            UNION ALL SELECT pg_catalog.format('default privileges of %s for %s in %s', pg_catalog.pg_get_userbyid(d.defaclrole),
                    CASE d.defaclobjtype WHEN 'r' THEN 'tables' WHEN 'S' THEN 'sequences' WHEN 'f' THEN 'functions' WHEN 'T' THEN 'types' ELSE 'schemas' END,
                    coalesce(n.nspname, 'every schema')), d.defaclrole, d.defaclacl, NULL, true
                FROM pg_catalog.pg_default_acl d LEFT JOIN pg_catalog.pg_namespace n ON n.oid = d.defaclnamespace)
        SELECT object, pg_catalog.md5(coalesce(definition, '')) FROM o
        UNION ALL SELECT CASE WHEN by_default THEN '' ELSE '{OWNED}' END || object,
            pg_catalog.md5(pg_catalog.concat(pg_catalog.pg_get_userbyid(owner), columns,
                (SELECT pg_catalog.string_agg(pg_catalog.concat(' ', g.grantee::regrole, g.privilege_type, g.is_grantable), ''
                    ORDER BY g.grantee::regrole::text, g.privilege_type) FROM pg_catalog.aclexplode(acl) g)))
            FROM owned WHERE by_default OR object IN (SELECT object FROM o)"
    );
    let rows =
        client.query(&sql, &[]).await.map_err(|error| server_error(error, "listing the objects of a database"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The first differences, and how many there are.
fn differences(restored: &BTreeMap<String, String>, production: &BTreeMap<String, String>) -> (Vec<Difference>, u64) {
    let mut all: Vec<Difference> = Vec::new();
    for (object, definition) in restored {
        let how = match production.get(object) {
            // That the object itself is missing says enough.
            None if object.starts_with(OWNED) => continue,
            None => How::OnlyRestored,
            Some(other) if other != definition => How::Different,
            Some(_) => continue,
        };
        all.push(Difference { object: object.clone(), how });
    }
    let only = production.keys().filter(|object| !restored.contains_key(*object) && !object.starts_with(OWNED));
    all.extend(only.map(|object| Difference { object: object.clone(), how: How::OnlyProduction }));
    // What is there or not, and how it is defined, says more than whose it is.
    all.sort_by_cached_key(|difference| (difference.object.starts_with(OWNED), difference.object.clone()));
    let number = all.len() as u64;
    all.truncate(NAMED);
    (all, number)
}

async fn not_valid(client: &Client) -> Result<Vec<String>> {
    let sql = "SELECT pg_catalog.format('%s of %s', conname, conrelid::regclass) FROM pg_catalog.pg_constraint
        WHERE NOT convalidated ORDER BY 1";
    let rows = client.query(sql, &[]).await.map_err(|error| server_error(error, "looking at constraints"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Sequences that would give a number which a row has already.
async fn behind(client: &Client) -> Result<Vec<String>> {
    let failed = |error| server_error(error, "looking at sequences");
    let sql = "SELECT sn.nspname::text, s.relname::text, tn.nspname::text, t.relname::text, a.attname::text
        FROM pg_catalog.pg_depend d
        JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S' JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace
        JOIN pg_catalog.pg_class t ON t.oid = d.refobjid JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
        JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i') AND a.atttypid IN (20, 21, 23) ORDER BY 1, 2";
    let mut behind = Vec::new();
    for row in client.query(sql, &[]).await.map_err(failed)? {
        let name = |schema: usize| Name::new(row.get::<_, String>(schema), row.get::<_, String>(schema + 1));
        let (sequence, table) = (name(0), name(2));
        let column = quote(row.get(4));
        let sql = format!(
            "SELECT s.last_value < m.most OR (s.last_value = m.most AND NOT s.is_called)
             FROM {} s, (SELECT pg_catalog.max({column})::bigint AS most FROM {}) m",
            sequence.sql(),
            table.sql()
        );
        // A table without rows has nothing that a sequence could be behind of.
        if client.query_one(&sql, &[]).await.map_err(failed)?.get::<_, Option<bool>>(0) == Some(true) {
            behind.push(sequence.to_string());
        }
    }
    Ok(behind)
}
