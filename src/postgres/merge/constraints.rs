//! Production's constraints as SQL that can be asked about rows which are not there yet. Expressions are the server's own
//! print of its catalog.

use tokio_postgres::Client;

use super::super::connect::server_error;
use super::super::name::quote;
use super::super::schema::{ForeignKey, Kind, Live};
use crate::error::Result;

/// A unique index or exclusion constraint.
pub(super) struct Exclusive {
    pub name: String,
    /// Columns or expressions over the table's columns.
    pub expressions: Vec<String>,
    /// For each expression, the operator by which two rows clash.
    pub operators: Vec<String>,
    /// A partial index concerns rows for which this holds.
    pub predicate: Option<String>,
}

/// Every unique index and exclusion constraint but the one that pairs rows.
pub(super) async fn exclusive(client: &Client, live: &Live, key: &[String]) -> Result<Vec<Exclusive>> {
    let sql = "SELECT x.relname::text,
            ARRAY(SELECT pg_catalog.pg_get_indexdef(i.indexrelid, k, false)
                  FROM pg_catalog.generate_series(1, i.indnkeyatts) AS k ORDER BY k),
            pg_catalog.pg_get_expr(i.indpred, i.indrelid),
            ARRAY(SELECT n.nspname::text FROM pg_catalog.unnest(o.operators) WITH ORDINALITY AS u(oid, place)
                  JOIN pg_catalog.pg_operator p ON p.oid = u.oid JOIN pg_catalog.pg_namespace n ON n.oid = p.oprnamespace
                  ORDER BY u.place),
            ARRAY(SELECT p.oprname::text FROM pg_catalog.unnest(o.operators) WITH ORDINALITY AS u(oid, place)
                  JOIN pg_catalog.pg_operator p ON p.oid = u.oid ORDER BY u.place),
            i.indexprs IS NULL AND i.indpred IS NULL AND i.indisunique,
            ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
                  JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                  WHERE k.place <= i.indnkeyatts)
        FROM pg_catalog.pg_index i
        JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
        LEFT JOIN pg_catalog.pg_constraint c ON c.conindid = i.indexrelid AND c.conrelid = i.indrelid AND c.contype = 'x'
        CROSS JOIN LATERAL (SELECT coalesce(c.conexclop, ARRAY(
            SELECT p.amopopr FROM pg_catalog.unnest(i.indclass::oid[]) WITH ORDINALITY AS u(class, place)
            JOIN pg_catalog.pg_opclass oc ON oc.oid = u.class
            JOIN pg_catalog.pg_amop p ON p.amopfamily = oc.opcfamily AND p.amopstrategy = 3
                AND p.amoplefttype = oc.opcintype AND p.amoprighttype = oc.opcintype
            ORDER BY u.place)) AS operators) o
        WHERE i.indrelid = $1 AND (i.indisunique OR c.oid IS NOT NULL) AND i.indisvalid
        ORDER BY x.relname";
    let failed = |error| server_error(error, &format!("reading the unique indexes of {}", live.name));
    let rows = client.query(sql, &[&live.oid]).await.map_err(failed)?;
    let same = |columns: &[String]| columns.len() == key.len() && columns.iter().all(|column| key.contains(column));
    Ok(rows
        .iter()
        .filter(|row| !(row.get::<_, bool>(5) && same(&row.get::<_, Vec<String>>(6))))
        .map(|row| {
            let (schemas, names): (Vec<String>, Vec<String>) = (row.get(3), row.get(4));
            Exclusive {
                name: row.get(0),
                expressions: row.get(1),
                operators: operators(&schemas, &names),
                predicate: row.get(2),
            }
        })
        .filter(|index| index.operators.len() == index.expressions.len())
        .collect())
}

/// The operators by which a foreign key compares: parent's column on the left, child's on the right.
pub(super) async fn foreign_key_operators(client: &Client, key: &ForeignKey) -> Result<Vec<String>> {
    let sql = "SELECT n.nspname::text, p.oprname::text
        FROM pg_catalog.pg_constraint c
        JOIN pg_catalog.pg_class t ON t.oid = c.conrelid JOIN pg_catalog.pg_namespace s ON s.oid = t.relnamespace
        CROSS JOIN LATERAL pg_catalog.unnest(c.conpfeqop) WITH ORDINALITY AS u(oid, place)
        JOIN pg_catalog.pg_operator p ON p.oid = u.oid JOIN pg_catalog.pg_namespace n ON n.oid = p.oprnamespace
        WHERE c.contype = 'f' AND c.conname = $1 AND t.relname = $2 AND s.nspname = $3 ORDER BY u.place";
    let failed = |error| server_error(error, &format!("reading the foreign key {}", key.constraint));
    let rows = client.query(sql, &[&key.constraint, &key.child.name, &key.child.schema]).await.map_err(failed)?;
    let schemas: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let names: Vec<String> = rows.iter().map(|row| row.get(1)).collect();
    Ok(operators(&schemas, &names))
}

/// An operator's name is made of symbols only; the catalog allows nothing else.
fn operators(schemas: &[String], names: &[String]) -> Vec<String> {
    schemas.iter().zip(names).map(|(schema, name)| format!("OPERATOR({}.{name})", quote(schema))).collect()
}

/// Name and expression of every CHECK.
pub(super) async fn checks(client: &Client, live: &Live) -> Result<Vec<(String, String)>> {
    let sql = "SELECT conname::text, pg_catalog.pg_get_expr(conbin, conrelid) FROM pg_catalog.pg_constraint
        WHERE conrelid = $1 AND contype = 'c' ORDER BY conname";
    let failed = |error| server_error(error, &format!("reading the checks of {}", live.name));
    Ok(client.query(sql, &[&live.oid]).await.map_err(failed)?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What a row must fulfil to have a place: for a partition its bounds, for a partitioned table those of some partition.
pub(super) async fn partition_condition(client: &Client, live: &Live) -> Result<Option<String>> {
    let failed = |error| server_error(error, &format!("reading the partitions of {}", live.name));
    let sql = match live.kind {
        Kind::Partitioned => {
            "SELECT pg_catalog.pg_get_partition_constraintdef(relid) FROM pg_catalog.pg_partition_tree($1::oid::regclass) WHERE isleaf"
        }
        Kind::Table | Kind::Other => {
            "SELECT pg_catalog.pg_get_partition_constraintdef(oid) FROM pg_catalog.pg_class WHERE oid = $1 AND relispartition"
        }
    };
    let rows = client.query(sql, &[&live.oid]).await.map_err(failed)?;
    let bounds: Option<Vec<String>> = rows.iter().map(|row| row.get::<_, Option<String>>(0)).collect();
    // A single partition without bounds takes every row.
    Ok(match (live.kind, bounds) {
        (_, None) => None,
        (Kind::Partitioned, Some(bounds)) if bounds.is_empty() => Some("false".into()),
        (_, Some(bounds)) if bounds.is_empty() => None,
        (_, Some(bounds)) => Some(bounds.iter().map(|bound| format!("({bound})")).collect::<Vec<_>>().join(" OR ")),
    })
}
