//! Tables that production has no more are made again out of a clone, with everything that went with them: sequences, indexes,
//! keys, triggers, views, grants, and the keys of others that referred to them. One transaction; all rows, or nothing.
//!
//! The definitions are production's own, as its catalog had them at that moment and as `pg_dump` of its version prints them.
//! They are shown whole, and run in this flow only. What tables and rows need is strict: any error ends in ROLLBACK. What
//! hangs on them (views, triggers, foreign keys, owners, grants) may need what production has no more either: each is tried by
//! itself, and what the server refuses is told. Functions in checks and index expressions run with our rights while rows come
//! in, as in any restore.
//!
//! Taking it back drops nothing: the tables move into the schema that keeps pre-images.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::super::archive::{Archive, Entry, Source};
use super::super::cluster;
use super::super::connect::{Session, server_error};
use super::super::name::{Name, quote, quote_list};
use super::super::stage;
use super::apply::{BEGIN, Failure, committed, keep, retry, token};
use super::frozen::undo_schema;
use super::{Applied, TableApplied};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// What is made again, frozen and shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recreation {
    /// The clone's folder.
    pub folder: String,
    /// The database, there and here.
    pub database: String,
    /// In the operator's order.
    pub tables: Vec<Recreated>,
    /// Views that depend on them and that production lacks too.
    pub views: Vec<Name>,
    /// Foreign keys of other tables that referred to them: the table and the key's name.
    pub foreign_keys: Vec<(Name, String)>,
    /// Tables and what their rows need, in order.
    pub before: Vec<String>,
    /// Sequences, keys and indexes, in order; any that fails undoes all.
    pub after: Vec<String>,
    /// What hangs on them, in order; each that fails is told and left out.
    pub lenient: Vec<String>,
    /// Lowercase fragments: what is not made again.
    pub notes: Vec<String>,
    /// Why it cannot be done, and what to do.
    pub refusal: Option<(String, String)>,
    /// SHA-256, in hex, over all of the above.
    pub hash: String,
}

/// One table that is made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recreated {
    /// As it was.
    pub name: Name,
    /// Counted in the clone, which does not change.
    pub rows: u64,
    /// As SQL, in the order of the rows; empty for a table that holds none itself.
    pub columns: Option<String>,
}

impl Recreated {
    fn copy_sql(&self) -> Option<String> {
        Some(format!("COPY {} ({}) FROM STDIN", self.name.sql(), self.columns.as_ref()?))
    }
}

impl Recreation {
    /// Everything that runs, in order, as it is shown.
    pub fn statements(&self) -> Vec<String> {
        let copies = self.tables.iter().filter_map(Recreated::copy_sql);
        let parts = self.before.iter().cloned().chain(copies).chain(self.after.iter().cloned());
        parts.chain(self.lenient.clone()).map(|statement| statement + ";").collect()
    }

    /// What takes it back.
    pub fn statements_back(&self, recovery: &str) -> Vec<String> {
        let schema = quote(&undo_schema(recovery));
        let keys = self
            .foreign_keys
            .iter()
            .map(|(table, key)| format!("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}", table.sql(), quote(key)));
        let views =
            self.views.iter().rev().map(|view| format!("ALTER TABLE IF EXISTS {} SET SCHEMA {schema}", view.sql()));
        let tables = self.tables.iter().map(|table| format!("ALTER TABLE {} SET SCHEMA {schema}", table.name.sql()));
        keys.chain(views).chain(tables).collect()
    }

    /// SHA-256, in hex, over what takes it back.
    pub fn hash_back(&self, recovery: &str) -> String {
        super::frozen::hex(&Sha256::digest(self.statements_back(recovery).join(";\n")))
    }

    fn hashed(&self) -> String {
        let mut hash = Sha256::new();
        for part in self.statements() {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        for table in &self.tables {
            hash.update(table.rows.to_be_bytes());
        }
        super::frozen::hex(&hash.finalize())
    }
}

/// Looks how tables of a clone are made again in production. Both are only read.
pub async fn recreation(
    production: &Client,
    (folder, database): (&std::path::Path, &str),
    tables: &[Name],
    progress: &Progress,
) -> Result<Recreation> {
    progress.begin("reading the definitions of the lost tables", Unit::Items, None);
    let clone = cluster::connect(folder, database).await?;
    let views = views(&clone, production, tables).await?;
    let (archive, _file) = archive_of(folder, database, [tables, &views].concat()).await?;
    let mut made = Recreation {
        folder: folder.display().to_string(),
        database: database.into(),
        tables: Vec::new(),
        views,
        foreign_keys: Vec::new(),
        before: Vec::new(),
        after: Vec::new(),
        lenient: Vec::new(),
        notes: Vec::new(),
        refusal: None,
        hash: String::new(),
    };
    for name in tables {
        progress.check()?;
        let known = archive.table(name).ok_or_else(|| Error::bug(format!("pg_dump left out {name}")))?;
        let sql = "SELECT FROM pg_catalog.pg_partitioned_table WHERE partrelid = $1::text::regclass";
        let partitioned = clone.query_opt(sql, &[&name.sql()]).await;
        let partitioned = partitioned.map_err(|error| server_error(error, "looking at the clone's tables"))?;
        let copied: Vec<_> =
            known.columns.iter().filter(|column| !column.generated).map(|column| &column.name).collect();
        let columns = (partitioned.is_none() && !copied.is_empty()).then(|| quote_list(copied));
        let rows = match &columns {
            Some(_) => cluster::count(folder, database, name).await?,
            None => 0,
        };
        made.tables.push(Recreated { name: name.clone(), rows, columns });
    }
    let mut sequences = Vec::new();
    for entry in archive.entries() {
        made.take(entry);
        if entry.kind == "SEQUENCE" {
            sequences.push(Name::new(entry.schema.as_deref().unwrap_or("public"), &entry.name));
        }
    }
    let mut values = Vec::new();
    for sequence in &sequences {
        values.push(value_sql(&clone, sequence).await?);
    }
    made.after.splice(0..0, values);
    made.add_foreign_keys(&clone, production, tables).await?;
    made.refusal = refusal(production, tables, &sequences).await?;
    made.hash = made.hashed();
    Ok(made)
}

/// The definitions of some tables and views, by `pg_dump` of the clone; the file goes when it is dropped.
async fn archive_of(
    folder: &std::path::Path,
    database: &str,
    only: Vec<Name>,
) -> Result<(Archive, tempfile::NamedTempFile)> {
    let file = tempfile::NamedTempFile::new()
        .map_err(|error| Error::operator("cannot make a temporary file").detail(error).hint("Make room in TMPDIR."))?;
    let (into, database, path) = (folder.to_owned(), database.to_owned(), file.path().to_owned());
    let read = tokio::task::spawn_blocking(move || {
        cluster::definitions(&into, &database, &only, &path)?;
        let source = Source::file("the clone's definitions", move |_| {
            let file = std::fs::File::open(&path)
                .map_err(|error| Error::operator("a temporary file is gone").detail(error))?;
            Ok(Box::new(file) as Box<dyn super::super::archive::ReadSeek>)
        });
        Archive::open(&source, &Progress::default())
    });
    let archive = read.await.map_err(|error| Error::bug("a reading thread ended").detail(error))??;
    Ok((archive, file))
}

/// Views that depend on the tables in the clone, and that production lacks; those that others build on come first.
async fn views(clone: &Client, production: &Client, tables: &[Name]) -> Result<Vec<Name>> {
    let sql = "WITH RECURSIVE v(oid, depth) AS (
            SELECT t.name::regclass::oid, 0 FROM pg_catalog.unnest($1::text[]) t(name)
            UNION
            SELECT r.ev_class, v.depth + 1 FROM v
            JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = v.oid
                AND d.classid = 'pg_catalog.pg_rewrite'::regclass
            JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid WHERE r.ev_class <> v.oid AND v.depth < 100)
        SELECT n.nspname::text, c.relname::text FROM v JOIN pg_catalog.pg_class c ON c.oid = v.oid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('v', 'm') GROUP BY 1, 2 ORDER BY pg_catalog.max(v.depth), 1, 2";
    let names: Vec<String> = tables.iter().map(Name::sql).collect();
    let rows = clone.query(sql, &[&names]).await;
    let rows = rows.map_err(|error| server_error(error, "looking for views of the lost tables"))?;
    let mut views = Vec::new();
    for row in rows {
        let view = Name::new(row.get::<_, String>(0), row.get::<_, String>(1));
        if !exists(production, &view).await? {
            views.push(view);
        }
    }
    Ok(views)
}

async fn exists(client: &Client, name: &Name) -> Result<bool> {
    let row = client.query_one("SELECT pg_catalog.to_regclass($1::text) IS NOT NULL", &[&name.sql()]).await;
    Ok(row.map_err(|error| server_error(error, "looking what production has"))?.get(0))
}

/// The statement that brings a sequence to where it was.
async fn value_sql(clone: &Client, sequence: &Name) -> Result<String> {
    let failed = |error| server_error(error, &format!("reading the sequence {sequence}"));
    let sql = format!(
        "SELECT pg_catalog.format('SELECT pg_catalog.setval(%L, %s, %L)', $1::text, last_value, is_called) FROM {}",
        sequence.sql()
    );
    Ok(clone.query_one(&sql, &[&sequence.sql()]).await.map_err(failed)?.get(0))
}

async fn refusal(production: &Client, tables: &[Name], sequences: &[Name]) -> Result<Option<(String, String)>> {
    for name in tables.iter().chain(sequences) {
        if exists(production, name).await? {
            return Ok(Some((
                format!("{name} is in production by now"),
                "Go back and compare its rows instead; or rename it first.".into(),
            )));
        }
        let sql = "SELECT pg_catalog.to_regnamespace($1::text) IS NOT NULL";
        let row = production.query_one(sql, &[&quote(&name.schema)]).await;
        let row = row.map_err(|error| server_error(error, "looking what production has"))?;
        if !row.get::<_, bool>(0) {
            let create = format!("CREATE SCHEMA {}", quote(&name.schema));
            return Ok(Some((
                format!("production has no schema {} any more", name.schema),
                format!("Make it first: {create}."),
            )));
        }
    }
    Ok(None)
}

impl Recreation {
    /// Puts one entry of the definitions where it belongs.
    fn take(&mut self, entry: &Entry) {
        let definition = entry.definition.trim().trim_end_matches(';').to_owned();
        let name = Name::new(entry.schema.as_deref().unwrap_or("public"), &entry.name);
        match entry.kind.as_str() {
            _ if definition.is_empty() => {}
            "ENCODING" | "STDSTRINGS" | "SEARCHPATH" | "DATABASE" | "DATABASE PROPERTIES" => {}
            "TABLE" | "SEQUENCE" | "SEQUENCE OWNED BY" | "DEFAULT" | "TABLE ATTACH" => {
                let is_made = definition.starts_with("CREATE ");
                self.before.push(definition);
                if is_made && !entry.owner.is_empty() && matches!(entry.kind.as_str(), "TABLE" | "SEQUENCE") {
                    // A sequence has the owner of its table, which comes first.
                    self.lenient.push(owner_sql(&entry.kind, &name, &entry.owner));
                }
            }
            "CONSTRAINT" | "CHECK CONSTRAINT" | "INDEX" | "INDEX ATTACH" | "STATISTICS" | "ROW SECURITY" => {
                self.after.push(definition);
            }
            "FK CONSTRAINT" => self.lenient.push(definition),
            "VIEW" | "MATERIALIZED VIEW" => {
                self.lenient.push(definition);
                if !entry.owner.is_empty() {
                    self.lenient.push(owner_sql(&entry.kind, &name, &entry.owner));
                }
                if entry.kind == "MATERIALIZED VIEW" {
                    self.lenient.push(format!("REFRESH MATERIALIZED VIEW {}", name.sql()));
                }
            }
            "TRIGGER" | "RULE" | "POLICY" | "ACL" | "COMMENT" | "PUBLICATION TABLE" | "SECURITY LABEL" => {
                self.lenient.push(definition);
            }
            other => self.notes.push(format!("{} {} is not made again", other.to_lowercase(), entry.name)),
        }
    }

    /// The foreign keys of other tables that went with the lost ones.
    async fn add_foreign_keys(&mut self, clone: &Client, production: &Client, tables: &[Name]) -> Result<()> {
        let sql = "SELECT n.nspname::text, c.relname::text, k.conname::text, pg_catalog.pg_get_constraintdef(k.oid)
            FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace,
                (SELECT pg_catalog.array_agg(t.name::regclass::oid) AS lost FROM pg_catalog.unnest($1::text[]) t(name)) l
            WHERE k.contype = 'f' AND k.confrelid = ANY(l.lost) AND k.conrelid <> ALL(l.lost) AND k.conparentid = 0
            ORDER BY 1, 2, 3";
        let names: Vec<String> = tables.iter().map(Name::sql).collect();
        let rows = clone.query(sql, &[&names]).await;
        for row in rows.map_err(|error| server_error(error, "looking for keys that referred to the lost tables"))? {
            let (table, key) = (Name::new(row.get::<_, String>(0), row.get::<_, String>(1)), row.get::<_, String>(2));
            if !exists(production, &table).await? {
                self.notes.push(format!("{key} of {table} is not made again: production has no such table"));
                continue;
            }
            let there = "SELECT FROM pg_catalog.pg_constraint WHERE conrelid = $1::text::regclass AND conname = $2";
            let there = production.query_opt(there, &[&table.sql(), &key]).await;
            if there.map_err(|error| server_error(error, "looking what production has"))?.is_some() {
                continue;
            }
            let definition: String = row.get(3);
            let (table_sql, key_sql) = (table.sql(), quote(&key));
            let valid = if definition.ends_with("NOT VALID") { "" } else { " NOT VALID" };
            self.lenient.push(format!("ALTER TABLE {table_sql} ADD CONSTRAINT {key_sql} {definition}{valid}"));
            if !valid.is_empty() {
                // Rows may have come since that refer to nothing; then the key holds for what comes from now on.
                self.lenient.push(format!("ALTER TABLE {table_sql} VALIDATE CONSTRAINT {key_sql}"));
            }
            self.foreign_keys.push((table, key));
        }
        Ok(())
    }
}

fn owner_sql(kind: &str, name: &Name, owner: &str) -> String {
    format!("ALTER {kind} {} OWNER TO {}", name.sql(), quote(owner))
}

/// Makes the tables again, in one transaction.
///
/// Errors: as of [`super::apply`].
pub async fn recreate(
    client: &Session,
    recovery: &str,
    recreation: &Recreation,
    journal: &str,
    progress: &Progress,
) -> Result<Applied> {
    if recreation.hashed() != recreation.hash {
        return Err(Error::refused("what is to be made again is not what was approved")
            .hint("Nothing was changed. Go back and look again."));
    }
    let attempt = || committed(client, progress, write(client, recovery, recreation, journal, progress));
    retry(progress, attempt).await
}

async fn write(
    client: &Session,
    recovery: &str,
    recreation: &Recreation,
    journal: &str,
    progress: &Progress,
) -> Result<Applied, Failure> {
    // As pg_dump expects it: every name has its schema.
    const AS_DUMPED: &str =
        "SET LOCAL search_path = ''; SET LOCAL check_function_bodies = off; SET LOCAL default_tablespace = ''";
    let run = async |sql: &str| {
        let doing = || format!("running {}", crate::text::clean(sql.lines().next().unwrap_or_default()));
        client.batch_execute(sql).await.map_err(|error| Failure::server(error, &doing()))
    };
    progress.begin("making the tables again", Unit::Items, None);
    run(BEGIN).await?;
    keep(client, recovery, &[]).await?;
    run(AS_DUMPED).await?;
    for statement in &recreation.before {
        run(statement).await?;
    }
    let total = recreation.tables.iter().map(|table| table.rows).sum();
    progress.begin("copying rows from the clone", Unit::Rows, Some(total));
    let mut tables = Vec::new();
    for table in &recreation.tables {
        let applied = |inserted| TableApplied { table: table.name.clone(), inserted, updated: 0, deleted: 0 };
        let (Some(sql), Some(columns)) = (table.copy_sql(), &table.columns) else {
            tables.push(applied(0));
            continue;
        };
        let folder = std::path::Path::new(&recreation.folder);
        let rows = cluster::rows(folder, &recreation.database, &table.name, columns).await?;
        let staged = stage::copy(client, &stage::Statement::text(sql), &table.name, rows, None, progress).await?;
        if staged.rows != table.rows {
            return Err(Error::target(format!(
                "{} of {} rows of {} came out of the clone",
                staged.rows, table.rows, table.name
            ))
            .hint("Nothing was changed. Look at the clone's log.")
            .into());
        }
        tables.push(applied(staged.rows));
    }
    progress.begin("keys and indexes", Unit::Items, Some(recreation.after.len() as u64));
    for statement in &recreation.after {
        run(statement).await?;
        progress.advance(1);
    }
    progress.begin("what hangs on them", Unit::Items, Some(recreation.lenient.len() as u64));
    for statement in &recreation.lenient {
        run("SAVEPOINT hanging").await?;
        let outcome = client.batch_execute(statement).await;
        match outcome {
            Ok(()) => run("RELEASE SAVEPOINT hanging").await?,
            Err(error) if error.as_db_error().is_some() => run("ROLLBACK TO SAVEPOINT hanging").await?,
            Err(error) => return Err(Failure::server(error, "making what hangs on the tables")),
        }
        progress.advance(1);
    }
    run("SET CONSTRAINTS ALL IMMEDIATE; SET LOCAL search_path = pg_catalog, pg_temp").await?;
    let transaction =
        token(client, &undo_schema(recovery), ("recreate", recovery), &recreation.hash, journal, &tables).await?;
    Ok(Applied { tables, transaction })
}

/// What production has of it after COMMIT: rows table by table, and in words what is not as it was.
pub async fn prove_recreated(client: &Client, recreation: &Recreation) -> Result<(Vec<(Name, u64)>, Vec<String>)> {
    let clone = cluster::connect(std::path::Path::new(&recreation.folder), &recreation.database).await?;
    let failed = |error| server_error(error, "looking at the tables that were made again");
    let mut rows = Vec::new();
    for table in &recreation.tables {
        let counted =
            client.query_one(&format!("SELECT pg_catalog.count(*) FROM ONLY {}", table.name.sql()), &[]).await;
        rows.push((table.name.clone(), u64::try_from(counted.map_err(failed)?.get::<_, i64>(0)).unwrap_or_default()));
    }
    let names: Vec<String> = recreation.tables.iter().map(|table| table.name.sql()).collect();
    let views: Vec<String> = recreation.views.iter().map(Name::sql).collect();
    // The same question on both sides; what only the clone answers is missing.
    let sql = "WITH t AS (SELECT pg_catalog.to_regclass(name)::oid AS oid FROM pg_catalog.unnest($1::text[]) name)
        SELECT 'trigger ' || pg_catalog.pg_get_triggerdef(g.oid) FROM pg_catalog.pg_trigger g JOIN t ON t.oid = g.tgrelid WHERE NOT g.tgisinternal
        UNION ALL SELECT pg_catalog.format('%s of %s: %s', k.conname, k.conrelid::regclass, pg_catalog.pg_get_constraintdef(k.oid))
            FROM pg_catalog.pg_constraint k JOIN t ON t.oid IN (k.conrelid, k.confrelid)
            WHERE k.contype <> 't' AND EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = k.conrelid)
        UNION ALL SELECT pg_catalog.pg_get_indexdef(i.indexrelid) FROM pg_catalog.pg_index i JOIN t ON t.oid = i.indrelid
        UNION ALL SELECT pg_catalog.format('grant of %s to %s on %s', a.privilege_type,
                CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.pg_get_userbyid(a.grantee)::text END, c.oid::regclass)
            FROM pg_catalog.pg_class c JOIN t ON t.oid = c.oid, pg_catalog.aclexplode(c.relacl) a
        UNION ALL SELECT pg_catalog.format('owner %s of %s', pg_catalog.pg_get_userbyid(c.relowner), c.oid::regclass)
            FROM pg_catalog.pg_class c JOIN t ON t.oid = c.oid
        UNION ALL SELECT pg_catalog.format('view %s', pg_catalog.to_regclass(name)) FROM pg_catalog.unnest($2::text[]) name
            WHERE pg_catalog.to_regclass(name) IS NOT NULL";
    client.batch_execute("BEGIN READ ONLY; SET LOCAL search_path = ''").await.map_err(failed)?;
    let here = client.query(sql, &[&names, &views]).await.map_err(failed);
    client.batch_execute("ROLLBACK").await.map_err(failed)?;
    let here: std::collections::BTreeSet<String> = here?.iter().map(|row| row.get(0)).collect();
    let there = clone.query(sql, &[&names, &views]).await.map_err(failed)?;
    let missing = there.iter().map(|row| row.get::<_, String>(0)).filter(|object| !here.contains(object));
    Ok((rows, missing.map(|object| format!("not as it was: {object}")).collect()))
}

/// Takes tables back that were made again: they move aside, with the rows that were written since.
pub async fn remove_recreated(
    client: &Session,
    (own, earlier): (&str, &str),
    recreation: &Recreation,
    journal: &str,
    progress: &Progress,
) -> Result<Applied> {
    progress.begin("moving the tables aside", Unit::Items, None);
    let schema = undo_schema(earlier);
    match stage::schema_mark(client, &schema).await? {
        Some(Some(mark)) if mark.lifeboat == earlier => {}
        _ => {
            return Err(Error::operator(format!("nothing of recovery {earlier} is known to this database"))
                .hint("Check the id, and that this is the database it was brought back into."));
        }
    }
    let tables: Vec<_> = recreation
        .tables
        .iter()
        .map(|table| TableApplied { table: table.name.clone(), inserted: 0, updated: 0, deleted: 0 })
        .collect();
    retry(progress, || async {
        let work = async {
            let run = async |sql: &str| {
                client.batch_execute(sql).await.map_err(|error| Failure::server(error, "moving the tables aside"))
            };
            run(BEGIN).await?;
            for statement in recreation.statements_back(earlier) {
                run(&statement).await?;
            }
            let transaction =
                token(client, &schema, ("undo", own), &recreation.hash_back(earlier), journal, &tables).await?;
            Ok(Applied { tables: tables.clone(), transaction })
        };
        committed(client, progress, work).await
    })
    .await
}
