//! Freezing the chosen rows in scratch space, and finding out beforehand what writing them would meet. Production is only
//! read.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use super::super::claim;
use super::super::connect::{Session, server_error};
use super::super::diff::compare::by_place;
use super::super::diff::page::{Matching, letter, place};
use super::super::diff::{Filter, Table};
use super::super::name::quote;
use super::super::schema::{Identity, triggers};
use super::super::stage::{self, Scratch, live_types};
use super::frozen::{self, CLASS, COLUMNS, GUARD, LiveColumn, ROW, Work};
use super::{ChangeSet, Choice, TableChange, Triggers, check, foreign_code, load};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// Freezes what was chosen, in the order in which foreign keys allow it. Tables without a choice are left out.
///
/// Errors: a table without a key; a missing privilege; a column or condition that is none. What would fail later is not an
/// error here but a [`super::Violation`] of its table.
pub async fn prepare(
    client: &Session,
    scratch: &Scratch,
    tables: &[Table],
    choices: &[Choice],
    triggers: Triggers,
    progress: &Progress,
) -> Result<ChangeSet> {
    let mut works = Vec::new();
    for choice in choices {
        let table = tables
            .iter()
            .find(|table| table.live.name == choice.table)
            .ok_or_else(|| Error::bug(format!("{} was chosen but not compared", choice.table)))?;
        progress.begin(format!("freezing {}", table.live.name), Unit::Rows, None);
        let freezing = async {
            claim::claim_or_refuse(client, &table.live.name, table.live.oid).await?;
            let work = freeze(client, scratch, table, choice, triggers).await?;
            allowed(client, &work).await?;
            Ok::<_, Error>(work)
        };
        works.push(stage::stoppable(client, progress, freezing).await?);
    }
    let mut works = parents_first(works);
    let mut tables = Vec::with_capacity(works.len());
    for place in 0..works.len() {
        progress.begin(format!("checking {}", works[place].table.live.name), Unit::Rows, None);
        let found = stage::stoppable(client, progress, check::run(client, scratch, &works, place)).await?;
        works[place].sequences.clone_from(&found.sequences);
        let work = &works[place];
        tables.push(TableChange {
            table: work.table.live.name.clone(),
            inserts: work.inserts,
            updates: work.updates,
            deletes: work.deletes,
            columns: work.columns.clone(),
            statements: work.script(scratch).statements(),
            triggers: found.triggers,
            sequences: found.sequences.into_iter().map(|held| held.step).collect(),
            cascades: found.cascades,
            violations: found.violations,
        });
    }
    frozen::save(client, scratch, &works).await?;
    let hash = stage::stoppable(client, progress, frozen::hash(client, scratch, &works)).await?;
    let load = load::estimate(client, scratch, &works).await?;
    Ok(ChangeSet { tables, triggers, load, hash })
}

async fn freeze(client: &Client, scratch: &Scratch, table: &Table, choice: &Choice, mode: Triggers) -> Result<Work> {
    let name = &table.live.name;
    if table.key.is_none() {
        return Err(Error::refused(format!("{name} has no key: its rows can be shown, not merged"))
            .hint("Name columns that say which rows are the same, if there are any."));
    }
    if let Some(column) = table.live.columns.iter().find(|column| column.name.starts_with("lifeboat_")) {
        return Err(Error::refused(format!("{name} has a column {}: names that begin so are ours", column.name)));
    }
    let change = scratch.table("change", table.number);
    let select = select(client, scratch, table, choice).await?;
    let failed = |error| server_error(error, &format!("freezing rows of {name}"));
    let outcome = async {
        client
            .batch_execute(&format!(
                "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL jit = off; SET LOCAL work_mem = '64MB'; \
                 DROP TABLE IF EXISTS {change}; \
                 CREATE UNLOGGED TABLE {change} WITH (autovacuum_enabled = off) AS {select}; \
                 CREATE UNIQUE INDEX ON {change} ({ROW}); ANALYZE {change}"
            ))
            .await
            .map_err(failed)
    };
    stage::finish(client, outcome.await).await?;
    count(client, scratch, table, mode).await
}

/// The chosen rows of a diff with all their values.
async fn select(client: &Client, scratch: &Scratch, table: &Table, choice: &Choice) -> Result<String> {
    let filter = Filter { condition: choice.condition.clone(), ..Filter::default() };
    let matching = Matching::new(client, scratch, table, &filter).await?;
    let classes: Vec<_> = choice.classes.iter().map(|class| format!("'{}'", letter(*class))).collect();
    let mut terms = vec![
        matching.sql(),
        format!("d.class IN ({})", if classes.is_empty() { "NULL".into() } else { classes.join(", ") }),
    ];
    let mut columns = "d.cols".to_owned();
    if let Some(chosen) = &choice.columns {
        let places = chosen.iter().map(|column| place(table, column).map(|place| place.to_string()));
        let places = places.collect::<Result<Vec<_>>>()?.join(", ");
        columns =
            format!("ARRAY(SELECT c FROM pg_catalog.unnest(d.cols) AS c WHERE c = ANY (ARRAY[{places}]::smallint[]))");
        terms.push(format!("(d.class <> 'c' OR d.cols && ARRAY[{places}]::smallint[])"));
    }
    if let Some(transactions) = &choice.transactions {
        let xids: Vec<_> = transactions.iter().map(|xid| format!("'{xid}'::xid")).collect();
        terms.push(format!(
            "(d.class = 'm' OR d.live_xmin IN ({}))",
            if xids.is_empty() { "NULL".into() } else { xids.join(", ") }
        ));
    }
    if let Some(only) = &choice.only {
        terms.push(format!("d.n = ANY ({})", numbers(only)));
    }
    if !choice.except.is_empty() {
        terms.push(format!("d.n <> ALL ({})", numbers(&choice.except)));
    }
    let values: Vec<_> = table
        .compared()
        .map(|(_, column)| {
            let name = quote(&column.name);
            match table.key_columns.iter().position(|key| key.name == column.name) {
                // An extra row has no staged values, but its key.
                Some(place) => {
                    let cast = if table.key_columns[place].cast { "::text" } else { "" };
                    format!("coalesce(backup.{name}, d.k{}{cast}) AS {name}", place + 1)
                }
                None => format!("backup.{name} AS {name}"),
            }
        })
        .collect();
    let joins = if matching.condition.is_some() {
        matching.joins()
    } else {
        format!("LEFT JOIN {} backup ON backup.ctid = d.b", table.staging(scratch))
    };
    Ok(format!(
        "SELECT d.n AS {ROW}, d.class AS {CLASS}, d.live_xmin AS {GUARD}, {columns} AS {COLUMNS}, {}
         FROM {} d {joins} WHERE {} ORDER BY d.n",
        values.join(", "),
        table.diff(scratch),
        terms.join(" AND ")
    ))
}

fn numbers(numbers: &BTreeSet<i64>) -> String {
    let list: Vec<_> = numbers.iter().map(ToString::to_string).collect();
    format!("ARRAY[{}]::bigint[]", list.join(", "))
}

async fn count(client: &Client, scratch: &Scratch, table: &Table, mode: Triggers) -> Result<Work> {
    let failed = |error| server_error(error, &format!("counting the frozen rows of {}", table.live.name));
    let change = scratch.table("change", table.number);
    let sql = format!(
        "SELECT pg_catalog.count(*) FILTER (WHERE {CLASS} = 'm'), pg_catalog.count(*) FILTER (WHERE {CLASS} = 'c'),
            pg_catalog.count(*) FILTER (WHERE {CLASS} = 'x'),
            pg_catalog.count(DISTINCT {COLUMNS}) FILTER (WHERE {CLASS} = 'c') <= 1,
            ARRAY(SELECT DISTINCT c::int FROM {change}, pg_catalog.unnest({COLUMNS}) AS c WHERE {CLASS} = 'c' ORDER BY 1)
         FROM {change}"
    );
    let row = client.query_one(&sql, &[]).await.map_err(failed)?;
    let number = |place| row.get::<_, i64>(place).unsigned_abs();
    let places: Vec<i32> = row.get(4);
    let columns = places.iter().filter_map(|place| table.pairs.get(usize::try_from(*place).ok()?));
    let triggers = triggers(client, &[table.live.oid]).await?;
    let types = live_types(client, &table.live).await?;
    let live_columns = table.live.columns.iter().filter(|column| !column.generated);
    Ok(Work {
        inserts: number(0),
        updates: number(1),
        deletes: number(2),
        uniform: row.get(3),
        columns: columns.map(|pair| pair.column.clone()).collect(),
        live_columns: live_columns
            .map(|column| LiveColumn {
                name: column.name.clone(),
                base_sql: types.get(&column.name).unwrap_or(&column.type_sql).clone(),
                identity: column.identity,
            })
            .collect(),
        triggers: triggers.into_iter().map(|(_, trigger)| trigger).collect(),
        mode,
        sequences: Vec::new(),
        table: table.clone(),
    })
}

/// Refuses what our role may not do, before anybody is asked for consent.
async fn allowed(client: &Client, work: &Work) -> Result<()> {
    let live = &work.table.live;
    let needed = [("SELECT", 1), ("INSERT", work.inserts), ("UPDATE", work.updates), ("DELETE", work.deletes)];
    let lacking: Vec<_> = needed
        .into_iter()
        .filter(|(privilege, rows)| *rows > 0 && !live.privileges.iter().any(|held| held == privilege))
        .map(|(privilege, _)| privilege)
        .collect();
    if !lacking.is_empty() {
        let lacking = lacking.join(", ");
        return Err(Error::refused(format!("this role has no right to {lacking} on {}", live.name))
            .hint(format!("Connect as another role, or have its owner run: GRANT {lacking} ON {} TO ...", live.name)));
    }
    if work.mode == Triggers::Skip && !live.owned && !work.triggers.is_empty() {
        return Err(Error::refused(format!("only the owner of {} can skip its triggers", live.name))
            .hint("Connect as its owner, or let the triggers fire."));
    }
    if by_place(&work.table) && work.inserts > 0 && !live.owned && !live.privileges.iter().any(|held| held == "UPDATE")
    {
        return Err(Error::refused(format!("this role may not lock {}", live.name))
            .hint("Without a unique index the table is locked while rows are added; connect as its owner."));
    }
    let sql = "SELECT pg_catalog.string_agg(rulename::text, ', ') FROM pg_catalog.pg_rewrite WHERE ev_class = $1";
    let failed = |error| server_error(error, &format!("reading the rules of {}", live.name));
    if let Some(rules) = client.query_one(sql, &[&live.oid]).await.map_err(failed)?.get::<_, Option<String>>(0) {
        return Err(Error::refused(format!("{} has rules that rewrite statements: {rules}", live.name))
            .hint("What a rule does cannot be promised; drop the rule first, or bring the rows back by hand."));
    }
    foreign_code::refuse(client, work).await
}

/// Sorts parents before the tables that refer to them. Tables in a circle keep their order at its end.
fn parents_first(mut works: Vec<Work>) -> Vec<Work> {
    let mut sorted: Vec<Work> = Vec::with_capacity(works.len());
    while !works.is_empty() {
        let free = works.iter().position(|work| {
            let name = &work.table.live.name;
            work.table
                .live
                .parents
                .iter()
                .all(|key| key.parent == *name || works.iter().all(|other| other.table.live.name != key.parent))
        });
        sorted.push(works.remove(free.unwrap_or(0)));
    }
    sorted
}

/// Whether a chosen row would have to set a column that production numbers itself.
pub(super) fn unsettable(work: &Work) -> Vec<&LiveColumn> {
    work.live_columns
        .iter()
        .filter(|column| column.identity == Identity::Always && work.columns.contains(&column.name))
        .collect()
}
