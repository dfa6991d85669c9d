//! Taking a merge back: the pre-images are written over the rows that are still as the merge left them.
//!
//! A row is as we left it while its `xmin` is the merge's transaction. A row that we added is also kept when rows of others
//! refer to it by now: they would go with it.
//!
//! An undo keeps pre-images too, in the form of a merge's and under its own recovery's name: it is taken back in the same way.

use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::super::claim;
use super::super::connect::{Session, server_error};
use super::super::name::{Name, quote, quote_list};
use super::super::schema::{self, ForeignKey, Identity};
use super::super::stage;
use super::apply::{BEGIN, Failure, THEIR_PATH, committed, keep, retry, token};
use super::check::key_pairs;
use super::constraints::foreign_key_operators;
use super::frozen::{self, CLASS, COLUMNS, ROW, Work, hex, undo_schema};
use super::prove::transaction;
use super::{Applied, TableApplied, TableUndo, Undo, foreign_code};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// What recovery `own` can take back now of what `recovery` wrote, and how. Only reads.
///
/// Errors: there is nothing of that recovery to take back, or it has been taken back before.
pub async fn undo_plan(client: &Client, own: &str, recovery: &str) -> Result<Undo> {
    stage::check_id(own)?;
    stage::check_id(recovery)?;
    let schema = undo_schema(recovery);
    match stage::schema_mark(client, &schema).await? {
        Some(Some(mark)) if mark.lifeboat == recovery => {}
        _ => {
            return Err(Error::operator(format!("no merge of recovery {recovery} is known to this database"))
                .hint("Check the id, and that this is the database it was merged into."));
        }
    }
    let table = Name::new(&*schema, "applied").sql();
    let sql = format!("SELECT applied_at::text, by FROM {table} WHERE step = 'undo'");
    let failed = |error| server_error(error, "reading the token of the merge");
    if let Some(row) = client.query_opt(&sql, &[]).await.map_err(failed)? {
        let (at, by) = (row.get::<_, &str>(0), row.get::<_, &str>(1));
        return Err(Error::refused(format!("recovery {recovery} was taken back at {at} by recovery {by}"))
            .hint(format!("To bring the rows back once more, take that one back: lifeboat undo {by}.")));
    }
    let taking = Taking::load(client, own, recovery).await?;
    let mut tables = Vec::with_capacity(taking.works.len());
    for place in 0..taking.works.len() {
        tables.push(taking.table(place).await?);
    }
    let mut hash = Sha256::new();
    for table in &tables {
        hash.update(format!(
            "{} {} {} {} {}\n",
            table.table, table.remove, table.set_back, table.bring_back, table.kept
        ));
        for statement in &table.statements {
            hash.update((statement.len() as u64).to_be_bytes());
            hash.update(statement);
        }
    }
    Ok(Undo { tables, hash: hex(&hash.finalize()) })
}

/// Takes back what the plan says, in one transaction; any difference from the plan ends in ROLLBACK.
///
/// Errors: as of [`super::apply`].
pub async fn undo(
    client: &Session,
    own: &str,
    recovery: &str,
    plan: &Undo,
    journal: &str,
    progress: &Progress,
) -> Result<Applied> {
    if undo_plan(client, own, recovery).await? != *plan {
        return Err(differs());
    }
    let taking = Taking::load(client, own, recovery).await?;
    retry(progress, || async {
        let rows = plan.tables.iter().map(|table| table.remove + table.set_back + table.bring_back).sum();
        progress.begin("taking rows back", Unit::Rows, Some(rows));
        committed(client, progress, taking.write(plan, journal, progress)).await
    })
    .await
}

fn differs() -> Error {
    Error::refused("rows have changed since the plan of this undo was made")
        .hint("Nothing was changed. Look at the new plan and decide again.")
}

/// One merge being taken back.
struct Taking<'a> {
    client: &'a Client,
    /// The one that takes back, and the one that is taken back.
    own: &'a str,
    recovery: &'a str,
    works: Vec<Work>,
    /// For each table, its children's foreign keys with their operators.
    children: Vec<Vec<(ForeignKey, Vec<String>)>>,
    ours: u32,
}

impl<'a> Taking<'a> {
    async fn load(client: &'a Client, own: &'a str, recovery: &'a str) -> Result<Self> {
        let works = frozen::load(client, &undo_schema(recovery)).await?;
        let ours = transaction(client, recovery).await?;
        let mut children = Vec::with_capacity(works.len());
        for work in &works {
            // Foreign keys may have come since.
            let live = schema::live(client, Some(std::slice::from_ref(&work.table.live.name))).await?;
            let mut keys = Vec::new();
            for key in live.into_iter().flat_map(|live| live.children) {
                let operators = foreign_key_operators(client, &key).await?;
                keys.push((key, operators));
            }
            children.push(keys);
        }
        Ok(Self { client, own, recovery, works, children, ours })
    }

    /// A condition on a row `alias` of a table: it is as we left it, and nobody else's row refers to it.
    fn removable(&self, place: usize, alias: &str, seen: &[usize]) -> String {
        let mut terms = vec![format!("{alias}.xmin = '{}'::xid", self.ours)];
        for (number, (key, operators)) in self.children[place].iter().enumerate() {
            let child = format!("{alias}_{number}");
            let refers = key_pairs(key, operators, alias, &child);
            let other = self.works.iter().position(|work| work.table.live.name == key.child);
            let goes = match other {
                Some(other) if !seen.contains(&other) && other != place => {
                    let mut seen = seen.to_vec();
                    seen.push(place);
                    format!("({})", self.removable(other, &child, &seen))
                }
                _ => format!("{child}.xmin = '{}'::xid", self.ours),
            };
            terms.push(format!("NOT EXISTS (SELECT FROM {} {child} WHERE {refers} AND NOT {goes})", key.child.sql()));
        }
        terms.join(" AND ")
    }

    /// The rows that this undo changes as they are now, locked; for rows that it brings back, their keys.
    fn before(&self, place: usize, table: &TableUndo) -> Vec<String> {
        let work = &self.works[place];
        let (own, kept) = (work.kept(self.own, "before"), work.kept(self.recovery, "before"));
        let mut statements = vec![work.create_kept(&own)];
        if table.remove + table.set_back > 0 {
            let names: Vec<_> = work.live_columns.iter().map(|column| quote(&column.name)).collect();
            let live: Vec<_> = names.iter().map(|name| format!("live.{name}")).collect();
            statements.push(format!(
                "INSERT INTO {own} ({ROW}, {CLASS}, {COLUMNS}, {})\n\
                 SELECT b.{ROW}, CASE b.{CLASS} WHEN 'm' THEN 'x' ELSE b.{CLASS} END, b.{COLUMNS}, {}\n\
                 FROM {} AS live JOIN {kept} AS b ON {}\n\
                 WHERE CASE b.{CLASS} WHEN 'm' THEN {} WHEN 'c' THEN live.xmin = '{}'::xid END\nFOR UPDATE OF live",
                names.join(", "),
                live.join(", "),
                work.source(),
                work.on_kept_key("live", "b"),
                self.removable(place, "live", &[]),
                self.ours
            ));
        }
        if table.bring_back > 0 {
            let keys = quote_list(work.table.key_columns.iter().map(|column| &column.name));
            statements.push(format!(
                "INSERT INTO {own} ({ROW}, {CLASS}, {keys})\nSELECT {ROW}, 'm', {keys}\nFROM {kept} AS b\nWHERE b.{CLASS} = 'x' AND {}",
                self.absent(place)
            ));
        }
        statements
    }

    fn remove(&self, place: usize) -> String {
        let work = &self.works[place];
        format!(
            "DELETE FROM {} AS live\nUSING {} AS b\nWHERE b.{CLASS} = 'm' AND {} AND {}",
            work.source(),
            work.kept(self.recovery, "before"),
            work.on_kept_key("live", "b"),
            self.removable(place, "live", &[])
        )
    }

    fn set_back(&self, place: usize) -> String {
        let work = &self.works[place];
        let sets: Vec<_> = work
            .live_columns
            .iter()
            .filter(|column| column.identity != Identity::Always)
            .map(|column| format!("{name} = b.{name}", name = quote(&column.name)))
            .collect();
        format!(
            "UPDATE {} AS live\nSET {}\nFROM {} AS b\nWHERE b.{CLASS} = 'c' AND {} AND live.xmin = '{}'::xid",
            work.source(),
            sets.join(",\n    "),
            work.kept(self.recovery, "before"),
            work.on_kept_key("live", "b"),
            self.ours
        )
    }

    fn bring_back(&self, place: usize) -> String {
        let work = &self.works[place];
        let names = quote_list(work.live_columns.iter().map(|column| &column.name));
        let always = work.live_columns.iter().any(|column| column.identity == Identity::Always);
        format!(
            "INSERT INTO {} ({names}){}\nSELECT {names}\nFROM {} AS b\nWHERE b.{CLASS} = 'x' AND {}\nORDER BY b.{ROW}",
            work.table.live.name.sql(),
            if always { " OVERRIDING SYSTEM VALUE" } else { "" },
            work.kept(self.recovery, "before"),
            self.absent(place)
        )
    }

    fn absent(&self, place: usize) -> String {
        let work = &self.works[place];
        format!("NOT EXISTS (SELECT FROM {} live WHERE {})", work.source(), work.on_kept_key("live", "b"))
    }

    async fn table(&self, place: usize) -> Result<TableUndo> {
        let work = &self.works[place];
        let name = &work.table.live.name;
        let goes = format!(
            "CASE b.{CLASS} WHEN 'm' THEN live.tableoid IS NOT NULL AND {} WHEN 'c' THEN live.xmin = '{}'::xid ELSE live.tableoid IS NULL END",
            self.removable(place, "live", &[]),
            self.ours
        );
        let sql = format!(
            "SELECT pg_catalog.count(*) FILTER (WHERE goes AND class = 'm'), pg_catalog.count(*) FILTER (WHERE goes AND class = 'c'),
                pg_catalog.count(*) FILTER (WHERE goes AND class = 'x'), pg_catalog.count(*) FILTER (WHERE NOT goes),
                (pg_catalog.array_agg(key ORDER BY row) FILTER (WHERE NOT goes))[1:10]
             FROM (SELECT b.{ROW} AS row, b.{CLASS} AS class, {} AS key, coalesce({goes}, false) AS goes
                   FROM {} b LEFT JOIN {} live ON {}) s",
            work.key_text("b"),
            work.kept(self.recovery, "before"),
            work.source(),
            work.on_kept_key("live", "b")
        );
        let doing = format!("looking which rows of {name} nobody has changed since");
        let row = self.client.query_one(&sql, &[]).await.map_err(|error| server_error(error, &doing))?;
        let number = |place| row.get::<_, i64>(place).unsigned_abs();
        let mut table = TableUndo {
            table: name.clone(),
            remove: number(0),
            set_back: number(1),
            bring_back: number(2),
            kept: number(3),
            kept_sample: row
                .get::<_, Option<Vec<Option<String>>>>(4)
                .unwrap_or_default()
                .into_iter()
                .flatten()
                .collect(),
            statements: Vec::new(),
        };
        let (disable, enable) = work.switches();
        table.statements.extend(self.before(place, &table));
        table.statements.extend(disable);
        for (rows, sql) in [
            (table.remove, self.remove(place)),
            (table.set_back, self.set_back(place)),
            (table.bring_back, self.bring_back(place)),
        ] {
            if rows > 0 {
                table.statements.push(sql);
            }
        }
        table.statements.extend(enable);
        Ok(table)
    }

    /// Everything but COMMIT: the merge, step by step backwards.
    async fn write(&self, plan: &Undo, journal: &str, progress: &Progress) -> Result<Applied, Failure> {
        self.run(BEGIN, "beginning the transaction").await?;
        for work in &self.works {
            let name = &work.table.live.name;
            claim::claim_or_refuse(self.client, name, work.table.live.oid).await?;
            self.run(&format!("LOCK TABLE {} IN ROW EXCLUSIVE MODE", name.sql()), &format!("locking {name}")).await?;
            foreign_code::refuse(self.client, work).await?;
        }
        let works: Vec<_> = self.works.iter().zip(&plan.tables).map(|(work, table)| work.taken_back(table)).collect();
        keep(self.client, self.own, &works).await?;
        for (place, table) in plan.tables.iter().enumerate() {
            let mut kept = 0;
            for statement in self.before(place, table) {
                let failed =
                    |error| Failure::server(error, &format!("keeping the rows of {} as they are now", table.table));
                kept += self.client.execute(&statement, &[]).await.map_err(failed)?;
            }
            if kept != table.remove + table.set_back + table.bring_back {
                return Err(differs().into());
            }
        }
        self.run(THEIR_PATH, "setting the search path").await?;
        for work in &self.works {
            for statement in work.switches().0 {
                self.run(&statement, &format!("skipping triggers of {}", work.table.live.name)).await?;
            }
        }
        let mut tables: Vec<_> = plan
            .tables
            .iter()
            .map(|table| TableApplied { table: table.table.clone(), inserted: 0, updated: 0, deleted: 0 })
            .collect();
        for (place, (table, done)) in plan.tables.iter().zip(&mut tables).enumerate().rev() {
            done.deleted = self.promised(table.remove, self.remove(place), progress).await?;
            done.updated = self.promised(table.set_back, self.set_back(place), progress).await?;
        }
        for (place, (table, done)) in plan.tables.iter().zip(&mut tables).enumerate() {
            done.inserted = self.promised(table.bring_back, self.bring_back(place), progress).await?;
        }
        self.run("SET CONSTRAINTS ALL IMMEDIATE", "checking the constraints").await?;
        for work in &self.works {
            for statement in work.switches().1 {
                self.run(&statement, &format!("finishing {}", work.table.live.name)).await?;
            }
        }
        let earlier = undo_schema(self.recovery);
        token(self.client, &earlier, ("undo", self.own), &plan.hash, journal, &tables).await?;
        // For an undo of this undo, which takes it for a merge.
        let own = undo_schema(self.own);
        let transaction = token(self.client, &own, ("merge", self.own), &plan.hash, journal, &tables).await?;
        Ok(Applied { tables, transaction })
    }

    async fn run(&self, sql: &str, doing: &str) -> Result<(), Failure> {
        self.client.batch_execute(sql).await.map_err(|error| Failure::server(error, doing))
    }

    async fn promised(&self, promised: u64, sql: String, progress: &Progress) -> Result<u64, Failure> {
        if promised == 0 {
            return Ok(0);
        }
        let rows = self.client.execute(&sql, &[]).await.map_err(|error| Failure::server(error, "taking rows back"))?;
        if rows != promised {
            return Err(differs().into());
        }
        progress.advance(rows);
        Ok(rows)
    }
}
