//! What writing the frozen rows would meet, found before consent: constraints that would fail, with the rows; rows of other
//! tables that deletes would reach; sequences that would collide; triggers that would fire.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::super::connect::server_error;
use super::super::name::quote;
use super::super::schema::{ForeignKey, Identity, OnDelete, Trigger};
use super::super::stage::Scratch;
use super::constraints::{checks, exclusive, foreign_key_operators, partition_condition};
use super::frozen::{CLASS, COLUMNS, Held, ROW, Work};
use super::prepare::unsettable;
use super::{Cascade, SequenceMove, Violation};
use crate::error::Result;

/// Keys that are shown of the rows that break a constraint.
const SAMPLE: usize = 10;

#[derive(Default)]
pub(super) struct Found {
    pub triggers: Vec<Trigger>,
    pub sequences: Vec<Held>,
    pub cascades: Vec<Cascade>,
    pub violations: Vec<Violation>,
}

/// Looks at one table's part; the others' are known, since rows may find their parents among them.
pub(super) async fn run(client: &Client, scratch: &Scratch, works: &[Work], place: usize) -> Result<Found> {
    let check = Check { client, scratch, works, work: &works[place] };
    let mut found = Found { triggers: check.triggers(), ..Found::default() };
    if check.work.inserts + check.work.updates > 0 {
        check.columns(&mut found).await?;
        check.conditions(&mut found).await?;
        check.clashes(&mut found).await?;
        check.parents(&mut found).await?;
    }
    if check.work.deletes > 0 {
        check.children(&mut found).await?;
    }
    if check.work.inserts > 0 {
        check.sequences(&mut found).await?;
    }
    Ok(found)
}

struct Check<'a> {
    client: &'a Client,
    scratch: &'a Scratch,
    works: &'a [Work],
    work: &'a Work,
}

impl Check<'_> {
    fn triggers(&self) -> Vec<Trigger> {
        let work = self.work;
        let fires = |trigger: &&Trigger| {
            (trigger.on_insert && work.inserts > 0)
                || (trigger.on_update && work.updates > 0)
                || (trigger.on_delete && work.deletes > 0)
        };
        work.triggers.iter().filter(fires).cloned().collect()
    }

    /// Counts rows, with a sample of their keys. `rows` yields `key_text`.
    async fn violation(&self, found: &mut Found, constraint: &str, what: String, rows: &str) -> Result<()> {
        let sql = format!(
            "SELECT pg_catalog.count(*), (pg_catalog.array_agg(lifeboat_key))[1:{SAMPLE}] FROM ({rows}) AS broken"
        );
        let doing = format!("checking {constraint} of {}", self.work.table.live.name);
        let row = self.client.query_one(&sql, &[]).await.map_err(|error| server_error(error, &doing))?;
        let rows = row.get::<_, i64>(0).unsigned_abs();
        if rows > 0 {
            let sample: Option<Vec<Option<String>>> = row.get(1);
            found.violations.push(Violation {
                constraint: constraint.into(),
                what,
                rows,
                sample: sample.unwrap_or_default().into_iter().flatten().collect(),
            });
        }
        Ok(())
    }

    /// Columns that cannot hold what they would have to.
    async fn columns(&self, found: &mut Found) -> Result<()> {
        let work = self.work;
        for column in unsettable(work) {
            let rows = format!(
                "SELECT {} AS lifeboat_key FROM {} c WHERE c.{CLASS} = 'c'",
                work.key_text("c"),
                work.change(self.scratch)
            );
            let what =
                format!("{} is GENERATED ALWAYS AS IDENTITY: it can be given to new rows, not set back", column.name);
            self.violation(found, &column.name, what, &rows).await?;
        }
        for column in work.table.live.columns.iter().filter(|column| column.not_null && !column.generated) {
            let name = quote(&column.name);
            let rows = if work.written().any(|(_, staged, _)| staged.name == column.name) {
                format!("SELECT lifeboat_key FROM ({}) f WHERE f.{name} IS NULL", resulting(self.scratch, work))
            } else if column.default_sql.is_none() && column.identity == Identity::None && work.inserts > 0 {
                format!(
                    "SELECT {} AS lifeboat_key FROM {} c WHERE c.{CLASS} = 'm'",
                    work.key_text("c"),
                    work.change(self.scratch)
                )
            } else {
                continue;
            };
            self.violation(found, &column.name, format!("{} must not be NULL", column.name), &rows).await?;
        }
        Ok(())
    }

    /// CHECK constraints and partition bounds, over the rows as they would be.
    async fn conditions(&self, found: &mut Found) -> Result<()> {
        let work = self.work;
        let name = quote(&work.table.live.name.name);
        let rows = resulting(self.scratch, work);
        for (constraint, expression) in checks(self.client, &work.table.live).await? {
            let rows = format!("SELECT lifeboat_key FROM ({rows}) AS {name} WHERE NOT ({expression})");
            self.violation(found, &constraint, format!("CHECK {expression} does not hold"), &rows).await?;
        }
        if let Some(condition) = partition_condition(self.client, &work.table.live).await? {
            let rows = format!("SELECT lifeboat_key FROM ({rows}) AS {name} WHERE ({condition}) IS NOT TRUE");
            self.violation(found, "partitions", "no partition takes it".into(), &rows).await?;
        }
        Ok(())
    }

    /// Unique indexes and exclusion constraints: against rows that stay as they are, and among the new ones.
    async fn clashes(&self, found: &mut Found) -> Result<()> {
        let work = self.work;
        let key = work.table.key.as_ref().map_or(&[][..], |key| &key.columns);
        let (table, rows) = (quote(&work.table.live.name.name), resulting(self.scratch, work));
        for index in exclusive(self.client, &work.table.live, key).await? {
            let values: Vec<_> = index
                .expressions
                .iter()
                .enumerate()
                .map(|(place, expression)| format!("({expression}) AS lifeboat_e{place}"))
                .collect();
            let values = values.join(", ");
            let predicate = index.predicate.as_deref().unwrap_or("true");
            let clash: Vec<_> = index
                .operators
                .iter()
                .enumerate()
                .map(|(place, operator)| format!("f.lifeboat_e{place} {operator} o.lifeboat_e{place}"))
                .collect();
            let clash = clash.join(" AND ");
            let new = format!("SELECT lifeboat_key, {ROW}, {values} FROM ({rows}) AS {table} WHERE {predicate}");
            let old = format!(
                "SELECT {values} FROM {} AS {table} WHERE ({predicate}) AND NOT EXISTS (
                    SELECT FROM {} c WHERE c.{CLASS} <> 'm' AND {})",
                work.source(),
                work.change(self.scratch),
                work.on_key(&table, "c")
            );
            let rows = format!(
                "SELECT lifeboat_key FROM ({new}) f WHERE EXISTS (SELECT FROM ({old}) o WHERE {clash})
                 UNION ALL SELECT f.lifeboat_key FROM ({new}) f JOIN ({new}) o ON {clash} AND o.{ROW} < f.{ROW}"
            );
            let list = index.expressions.join(", ");
            self.violation(found, &index.name, format!("another row has the same {list}"), &rows).await?;
        }
        Ok(())
    }

    /// Rows whose parent neither exists nor comes back with them.
    async fn parents(&self, found: &mut Found) -> Result<()> {
        let work = self.work;
        for key in &work.table.live.parents {
            let places: Vec<_> = work
                .written()
                .filter(|(_, column, _)| key.child_columns.contains(&column.name))
                .map(|(place, ..)| place.to_string())
                .collect();
            if places.is_empty() {
                continue;
            }
            let operators = foreign_key_operators(self.client, key).await?;
            let on = |parent: &str| key_pairs(key, &operators, parent, "f");
            let set: Vec<_> =
                key.child_columns.iter().map(|column| format!("f.{} IS NOT NULL", quote(column))).collect();
            let mut parent = format!("SELECT FROM {} p WHERE {}", key.parent.sql(), on("p"));
            let mut among = String::new();
            if let Some(other) = self.works.iter().find(|other| other.table.live.name == key.parent) {
                if other.deletes > 0 {
                    parent.push_str(&format!(
                        " AND NOT EXISTS (SELECT FROM {} c WHERE c.{CLASS} = 'x' AND {})",
                        other.change(self.scratch),
                        other.on_key("p", "c")
                    ));
                }
                if other.inserts > 0 {
                    among = format!(
                        " AND NOT EXISTS (SELECT FROM ({}) n WHERE n.{CLASS} = 'm' AND {})",
                        resulting(self.scratch, other),
                        on("n")
                    );
                }
            }
            let rows = format!(
                "SELECT lifeboat_key FROM ({}) f WHERE (f.{CLASS} = 'm' OR f.{COLUMNS} && ARRAY[{}]::smallint[])
                 AND {} AND NOT EXISTS ({parent}){among}",
                resulting(self.scratch, work),
                places.join(", "),
                set.join(" AND ")
            );
            let list = key.child_columns.join(", ");
            let what = format!("{list} refers to a row of {} that does not exist", key.parent);
            self.violation(found, &key.constraint, what, &rows).await?;
        }
        Ok(())
    }

    /// Rows of other tables that refer to rows which would be deleted.
    async fn children(&self, found: &mut Found) -> Result<()> {
        for key in &self.work.table.live.children {
            let rows = referring(self.client, self.scratch, self.works, self.work, key).await?;
            let what = match key.on_delete {
                OnDelete::NoAction | OnDelete::Restrict => format!("rows of {} refer to it", key.child),
                OnDelete::Cascade | OnDelete::SetNull | OnDelete::SetDefault => {
                    let sql = format!("SELECT pg_catalog.count(*) FROM ({rows}) r");
                    let doing = format!("counting rows of {} that refer to {}", key.child, key.parent);
                    let row = self.client.query_one(&sql, &[]).await.map_err(|error| server_error(error, &doing))?;
                    let rows = row.get::<_, i64>(0).unsigned_abs();
                    if rows > 0 {
                        let (constraint, child) = (key.constraint.clone(), key.child.clone());
                        found.cascades.push(Cascade { constraint, child, rows });
                    }
                    // No pre-image would be taken of them, so they could not be brought back.
                    format!(
                        "rows of {} would change with it by ON DELETE, out of sight of undo: choose those rows as well",
                        key.child
                    )
                }
            };
            self.violation(found, &key.constraint, what, &rows).await?;
        }
        Ok(())
    }

    /// Sequences that would hand out a value that a restored row already has.
    async fn sequences(&self, found: &mut Found) -> Result<()> {
        let work = self.work;
        for sequence in &work.table.live.sequences {
            if !work.written().any(|(_, column, _)| column.name == sequence.column) {
                continue;
            }
            let column = quote(&sequence.column);
            let sql = format!(
                "SELECT s.last_value, pg_catalog.max(c.{column})::bigint, q.seqincrement,
                    pg_catalog.max(c.{column})::bigint > CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END,
                    pg_catalog.max(c.{column})::bigint > q.seqmax
                 FROM {} c, {} s JOIN pg_catalog.pg_sequence q ON q.seqrelid = s.tableoid
                 WHERE c.{CLASS} = 'm' GROUP BY s.last_value, s.is_called, q.seqincrement, q.seqmax",
                work.change(self.scratch),
                sequence.name.sql()
            );
            let doing = format!("reading the sequence {}", sequence.name);
            let rows = match self.client.query(&sql, &[]).await {
                Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                    found.violations.push(Violation {
                        constraint: sequence.name.to_string(),
                        what: "this role may not see where the sequence stands, so it may collide with the rows".into(),
                        rows: work.inserts,
                        sample: Vec::new(),
                    });
                    continue;
                }
                rows => rows.map_err(|error| server_error(error, &doing))?,
            };
            let Some(row) = rows.first() else { continue };
            let increment: i64 = row.get(2);
            let (Some(to), Some(true), Some(false)) = (row.get(1), row.get(3), row.get(4)) else { continue };
            if increment < 0 {
                continue;
            }
            if sequence.owned {
                let step = SequenceMove {
                    sequence: sequence.name.clone(),
                    column: sequence.column.clone(),
                    from: row.get(0),
                    to,
                };
                found.sequences.push(Held { step, increment });
            } else {
                found.violations.push(Violation {
                    constraint: sequence.name.to_string(),
                    what: format!("the sequence must move to {to}, which only its owner can do safely"),
                    rows: work.inserts,
                    sample: Vec::new(),
                });
            }
        }
        Ok(())
    }
}

/// The rows of production as they would be after the merge, for inserted and updated rows, under the table's own column
/// names; with our marks and `lifeboat_key`, the key as text. Columns that the backup does not have are NULL in new rows:
/// their defaults are the server's business.
fn resulting(scratch: &Scratch, work: &Work) -> String {
    let mut columns = Vec::new();
    for column in &work.table.live.columns {
        let name = quote(&column.name);
        let base = work
            .live_columns
            .iter()
            .find(|live| live.name == column.name)
            .map_or(&column.type_sql, |live| &live.base_sql);
        let value = match work.written().find(|(_, staged, _)| staged.name == column.name) {
            Some((place, _, target)) => {
                let value = if target.is_words() { format!("c.{name}::{base}") } else { format!("c.{name}") };
                format!(
                    "CASE WHEN c.{CLASS} = 'm' OR {place} = ANY (c.{COLUMNS}) THEN {value} ELSE live.{name}::{base} END"
                )
            }
            None => format!("live.{name}::{base}"),
        };
        columns.push(format!("{value} AS {name}"));
    }
    format!(
        "SELECT c.{ROW}, c.{CLASS}, c.{COLUMNS}, {} AS lifeboat_key, {} FROM {} c
         LEFT JOIN {} live ON c.{CLASS} = 'c' AND {} WHERE c.{CLASS} <> 'x'",
        work.key_text("c"),
        columns.join(", "),
        work.change(scratch),
        work.source(),
        work.on_key("live", "c")
    )
}

/// `p."id" = f."parent_id" AND ...`
pub(super) fn key_pairs(key: &ForeignKey, operators: &[String], parent: &str, child: &str) -> String {
    let columns = key.parent_columns.iter().zip(&key.child_columns).zip(operators);
    let terms: Vec<_> = columns
        .map(|((parent_column, child_column), operator)| {
            format!("{parent}.{} {operator} {child}.{}", quote(parent_column), quote(child_column))
        })
        .collect();
    terms.join(" AND ")
}

/// Rows of a child table that refer to rows which the change-set deletes, but which it does not delete themselves; as SQL
/// that yields the key of the row referred to.
pub(super) async fn referring(
    client: &Client,
    scratch: &Scratch,
    works: &[Work],
    work: &Work,
    key: &ForeignKey,
) -> Result<String> {
    let operators = foreign_key_operators(client, key).await?;
    let mut rows = format!(
        "SELECT {} AS lifeboat_key FROM {} c JOIN {} p ON {} JOIN {} child ON {} WHERE c.{CLASS} = 'x'",
        work.key_text("c"),
        work.change(scratch),
        work.source(),
        work.on_key("p", "c"),
        key.child.sql(),
        key_pairs(key, &operators, "p", "child")
    );
    if let Some(other) = works.iter().find(|other| other.table.live.name == key.child && other.deletes > 0) {
        rows.push_str(&format!(
            " AND NOT EXISTS (SELECT FROM {} o WHERE o.{CLASS} = 'x' AND {})",
            other.change(scratch),
            other.on_key("child", "o")
        ));
    }
    Ok(rows)
}

/// A whole foreign key, checked: rows that refer to nothing.
pub(super) async fn orphans(client: &Client, key: &ForeignKey) -> Result<u64> {
    let operators = foreign_key_operators(client, key).await?;
    let set: Vec<_> = key.child_columns.iter().map(|column| format!("f.{} IS NOT NULL", quote(column))).collect();
    let sql = format!(
        "SELECT pg_catalog.count(*) FROM {} f WHERE {} AND NOT EXISTS (SELECT FROM {} p WHERE {})",
        key.child.sql(),
        set.join(" AND "),
        key.parent.sql(),
        key_pairs(key, &operators, "p", "f")
    );
    let doing = format!("checking the foreign key {}", key.constraint);
    let row = client.query_one(&sql, &[]).await.map_err(|error| server_error(error, &doing))?;
    Ok(row.get::<_, i64>(0).unsigned_abs())
}
