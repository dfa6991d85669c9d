//! Which columns pair the rows, and by which operator: the one that production's own index uses, so that a key of type
//! citext or of a case-insensitive collation pairs rows as production would.

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::super::connect::server_error;
use super::super::name::{Name, quote};
use super::super::schema::{Key, KeySource};
use super::super::stage::Scratch;
use super::{Table, source};
use crate::error::{Error, Result};
use crate::text;

/// How rows are to be paired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyChoice {
    /// The live table's best key that the backup has too; without one, as a multiset.
    Best,
    /// These columns, which are proven unique and without NULL on both sides first.
    Named(Vec<String>),
    /// Count the copies of each row; nothing can be merged.
    Multiset,
}

/// One column of the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyColumn {
    /// The same on both sides.
    pub name: String,
    /// The type that values are compared in: the live type without domains.
    pub type_sql: String,
    /// `OPERATOR("public".=)`
    pub operator: String,
    /// Staged as text: cast before it is compared.
    pub cast: bool,
    /// Equal values are always the same, so a paired row cannot differ in this column.
    pub exact: bool,
    /// Production holds no NULL in it.
    pub not_null: bool,
}

impl KeyColumn {
    /// The staged value, ready to be compared, of a table called `alias`.
    pub(in crate::postgres) fn staged(&self, alias: &str) -> String {
        let column = format!("{alias}.{}", quote(&self.name));
        if self.cast { format!("{column}::{}", self.type_sql) } else { column }
    }

    pub(in crate::postgres) fn live(&self, alias: &str) -> String {
        format!("{alias}.{}", quote(&self.name))
    }
}

/// `a."id" OPERATOR("pg_catalog".=) b."id" AND ...`
pub(in crate::postgres) fn join(
    columns: &[KeyColumn],
    left: impl Fn(usize, &KeyColumn) -> String,
    right: impl Fn(usize, &KeyColumn) -> String,
) -> String {
    let terms: Vec<_> = columns
        .iter()
        .enumerate()
        .map(|(place, column)| format!("{} {} {}", left(place, column), column.operator, right(place, column)))
        .collect();
    terms.join(" AND ")
}

/// Sets the table's key.
pub(super) async fn choose(client: &Client, scratch: &Scratch, table: &mut Table, choice: &KeyChoice) -> Result<()> {
    let usable = |column: &String| table.compared().any(|(_, staged)| staged.name == *column);
    let key = match choice {
        KeyChoice::Multiset => None,
        KeyChoice::Best => table.live.keys.iter().find(|key| key.columns.iter().all(usable)).cloned(),
        KeyChoice::Named(columns) => {
            if columns.is_empty() {
                return Err(Error::operator("a key needs at least one column"));
            }
            if let Some(missing) = columns.iter().find(|column| !usable(column)) {
                return Err(Error::operator(format!(
                    "{missing} cannot be part of a key of {}: it is not on both sides",
                    table.live.name
                ))
                .hint("Name columns that both the backup and production have and that are not computed."));
            }
            Some(Key { source: KeySource::Named, columns: columns.clone() })
        }
    };
    table.key_columns = match &key {
        Some(key) => columns(client, table, key).await?,
        None => Vec::new(),
    };
    table.key = key;
    if let KeyChoice::Named(_) = choice {
        prove(client, &table.live.name, &source(&table.live), &table.key_columns, "production", KeyColumn::live)
            .await?;
        let staging = table.staging(scratch);
        prove(client, &table.live.name, &staging, &table.key_columns, "the backup", KeyColumn::staged).await?;
    }
    Ok(())
}

async fn columns(client: &Client, table: &Table, key: &Key) -> Result<Vec<KeyColumn>> {
    // An index knows the operator class of each column; for a named key it is the type's default one.
    let sql = "SELECT a.attname::text, o.oprname::text, n.nspname::text, a.attnotnull, coalesce(c.collisdeterministic, true)
        FROM pg_catalog.unnest($2::text[]) WITH ORDINALITY AS k(name, place)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attname = k.name AND NOT a.attisdropped
        CROSS JOIN LATERAL (
            WITH RECURSIVE base AS (
                SELECT a.atttypid AS typ
                UNION ALL
                SELECT t.typbasetype FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typ WHERE t.typtype = 'd'
            )
            SELECT t.oid, t.typtype, t.typcategory FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typ WHERE t.typtype <> 'd'
        ) t
        LEFT JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation
        LEFT JOIN pg_catalog.pg_class x ON x.relname = $3::text AND x.relnamespace =
            (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = $1)
        LEFT JOIN pg_catalog.pg_index i ON i.indrelid = $1
            AND CASE WHEN $3::text IS NULL THEN i.indisprimary ELSE i.indexrelid = x.oid END AND NOT $4
        LEFT JOIN LATERAL (
            SELECT oc.opcfamily, oc.opcintype 
            FROM ROWS FROM (pg_catalog.unnest(i.indclass::oid[]), pg_catalog.unnest(i.indkey::int2[])) AS u(class, attnum)
            JOIN pg_catalog.pg_opclass oc ON oc.oid = u.class WHERE u.attnum = a.attnum
            UNION ALL
            SELECT oc.opcfamily, oc.opcintype FROM pg_catalog.pg_opclass oc
            WHERE i.indexrelid IS NULL AND oc.opcdefault
                AND oc.opcmethod = (SELECT oid FROM pg_catalog.pg_am WHERE amname = 'btree')
                AND (oc.opcintype = t.oid
                    OR (oc.opcintype <> t.oid AND NOT EXISTS (
                            SELECT FROM pg_catalog.pg_opclass own
                            WHERE own.opcdefault AND own.opcmethod = oc.opcmethod AND own.opcintype = t.oid)
                        AND ((t.typcategory = 'E' AND oc.opcintype = 'pg_catalog.anyenum'::pg_catalog.regtype)
                            OR (t.typcategory = 'A' AND oc.opcintype = 'pg_catalog.anyarray'::pg_catalog.regtype)
                            OR (t.typtype = 'r' AND oc.opcintype = 'pg_catalog.anyrange'::pg_catalog.regtype)
                            OR (t.oid = 'pg_catalog.varchar'::pg_catalog.regtype
                                AND oc.opcintype = 'pg_catalog.text'::pg_catalog.regtype))))
        ) f ON true
        LEFT JOIN pg_catalog.pg_amop p ON p.amopfamily = f.opcfamily AND p.amopstrategy = 3
            AND p.amoplefttype = f.opcintype AND p.amoprighttype = f.opcintype
        LEFT JOIN pg_catalog.pg_operator o ON o.oid = p.amopopr
        LEFT JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
        ORDER BY k.place";
    let (index, named) = match &key.source {
        KeySource::Primary => (None, false),
        KeySource::Unique(index) => (Some(index.as_str()), false),
        KeySource::Named => (None, true),
    };
    let failed = |error| server_error(error, &format!("describing the key of {}", table.live.name));
    let rows = client.query(sql, &[&table.live.oid, &key.columns, &index, &named]).await.map_err(failed)?;
    rows.iter()
        .map(|row| {
            let name: String = row.get(0);
            let (Some(operator), Some(schema)) = (row.get::<_, Option<String>>(1), row.get::<_, Option<String>>(2))
            else {
                return Err(Error::operator(format!("{name} cannot be part of a key: its type has no equality"))
                    .hint("Name other columns."));
            };
            let column = table.compared().find(|(_, staged)| staged.name == name);
            let target = column
                .and_then(|(_, staged)| staged.target.as_ref())
                .ok_or_else(|| Error::bug(format!("the key column {name} of {} is not compared", table.live.name)))?;
            Ok(KeyColumn {
                type_sql: target.base_sql.clone(),
                // The operator's name is symbols only; the catalog allows nothing else.
                operator: format!("OPERATOR({}.{operator})", quote(&schema)),
                cast: target.is_words(),
                exact: target.compare.is_exact() && row.get::<_, bool>(4),
                not_null: row.get(3),
                name,
            })
        })
        .collect()
}

/// Refuses columns that are not a key of one side's rows.
async fn prove(
    client: &Client,
    name: &Name,
    rows: &str,
    key: &[KeyColumn],
    side: &str,
    value: impl Fn(&KeyColumn, &str) -> String,
) -> Result<()> {
    let failed = |error| server_error(error, &format!("proving the key of {name}"));
    let columns: Vec<_> = key.iter().map(|column| value(column, "r")).collect();
    let nulls: Vec<_> = columns.iter().map(|column| format!("{column} IS NULL")).collect();
    let sql = format!("SELECT pg_catalog.count(*) FROM {rows} r WHERE {}", nulls.join(" OR "));
    let empty: i64 = client.query_one(&sql, &[]).await.map_err(failed)?.get(0);
    let list = key.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ");
    if empty > 0 {
        return Err(Error::refused(format!(
            "{list} is not a key of {name}: {} of {side} have NULL in it",
            text::counted(empty.unsigned_abs(), "row", "rows")
        ))
        .hint("Name other columns."));
    }
    let (values, sample) = duplicates(client, rows, &columns).await?;
    if values > 0 {
        return Err(Error::refused(format!(
            "{list} is not a key of {name}: {} of it occur more than once in {side}, for example {}",
            text::counted(values, "value", "values"),
            text::clean(&sample.join("; "))
        ))
        .hint("Name more columns, or other ones."));
    }
    Ok(())
}

/// How many values occur more than once, and the text of up to five.
pub(super) async fn duplicates(client: &Client, rows: &str, columns: &[String]) -> Result<(u64, Vec<String>)> {
    let list = columns.join(", ");
    let shown: Vec<_> = columns.iter().map(|column| format!("{column}::text")).collect();
    let sql = format!(
        "SELECT pg_catalog.count(*) OVER (), pg_catalog.concat_ws(', ', {}) FROM {rows} r GROUP BY {list}
         HAVING pg_catalog.count(*) > 1 ORDER BY 2 LIMIT 5",
        shown.join(", ")
    );
    let rows = client.query(&sql, &[]).await.map_err(|error| server_error(error, "looking for duplicate keys"))?;
    let count = rows.first().map_or(0, |row| row.get::<_, i64>(0).unsigned_abs());
    Ok((count, rows.iter().map(|row| row.get(1)).collect()))
}
