//! Which type a staged column gets, and how it is compared with production.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::super::connect::server_error;
use super::super::diff::{Drift, Pair};
use super::super::name::{Name, quote};
use super::super::schema::Live;
use crate::error::{Error, Result};

/// A column of a staging table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedColumn {
    /// As the live column of the same name, or the backup's.
    pub name: String,
    /// Its type while rows are copied in: from the server's catalog, or checked by `plain_type`, never a dump's own text.
    pub type_sql: String,
    /// The live column's collation when it is not the database's.
    pub collation: Option<Name>,
    /// `None`: production does not have the column, or computes it; it is shown, not compared, not written.
    pub target: Option<Target>,
}

/// The live column that a staged one is compared with and written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The live type, domains and all.
    pub type_sql: String,
    /// The live type with domains taken off. After staging the column has this type, or is text ([`Compare::Words`]).
    pub base_sql: String,
    /// The type has changed since the backup: every value must survive the cast.
    pub retyped: bool,
    /// How a difference is found.
    pub compare: Compare,
}

/// How to find out that two values are not exactly the same. `=` is not always the answer: `1.0 = 1.00`, `-0 = 0`,
/// `'1 month' = '30 days'`, and json, point and xml have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compare {
    /// Equal values of this type are always the same.
    Plain,
    /// As [`Compare::Plain`], under the collation that compares bytes.
    Text,
    /// Equal, and with as many digits after the point.
    Numeric,
    /// Equal, and with as many trailing blanks, which both `=` and a cast to text ignore.
    Padded,
    /// Equal, and zero has the same sign.
    Float4,
    /// As [`Compare::Float4`], for `double precision`.
    Float8,
    /// By the bytes as they are stored, then, where these differ, by the text.
    Image,
    /// Staged as text because the type is not built in: by text, then, where that differs, as the live type prints it.
    Words,
}

impl StagedColumn {
    /// For CREATE TABLE.
    pub(super) fn definition(&self) -> String {
        let collation = self.collation.as_ref().map_or_else(String::new, |name| format!(" COLLATE {}", name.sql()));
        format!("{} {}{collation}", quote(&self.name), self.type_sql)
    }
}

impl Target {
    /// Whether the staged column is text that stands for another type.
    pub fn is_words(&self) -> bool {
        self.compare == Compare::Words
    }
}

/// What the catalog says about a live column.
struct Fact {
    type_sql: String,
    base_sql: String,
    stageable: bool,
    compare: Compare,
    collation: Option<Name>,
}

/// The columns of the staging table, in the order of `copied`.
///
/// The same type on both sides is staged as the live type without its domains; a type that has changed as the backup's when
/// that is built in; types of extensions, composites and the like as text.
pub async fn columns(client: &Client, live: &Live, pairs: &[Pair], copied: &[String]) -> Result<Vec<StagedColumn>> {
    let facts = facts(client, live).await?;
    let mut staged = Vec::with_capacity(copied.len());
    for name in copied {
        let pair = pairs
            .iter()
            .find(|pair| pair.column == *name)
            .ok_or_else(|| Error::bug(format!("the column {name} of {} is copied but not mapped", live.name)))?;
        let of_backup = match &pair.backup_type {
            Some(text) if pair.drift != Drift::Same => backup_type(client, text).await?,
            _ => None,
        };
        let fact = facts.get(name);
        staged.push(match (pair.drift, fact) {
            (Drift::Same | Drift::Retyped, Some(fact)) => {
                let retyped = pair.drift == Drift::Retyped;
                let compare = if fact.stageable { fact.compare } else { Compare::Words };
                let type_sql = match (compare, retyped) {
                    (Compare::Words, _) => "text".into(),
                    (_, false) => fact.base_sql.clone(),
                    (_, true) => of_backup.unwrap_or_else(|| "text".into()),
                };
                StagedColumn {
                    name: name.clone(),
                    // A column that is cast later gets its collation then.
                    collation: fact.collation.clone().filter(|_| !retyped && compare != Compare::Words),
                    type_sql,
                    target: Some(Target {
                        type_sql: fact.type_sql.clone(),
                        base_sql: fact.base_sql.clone(),
                        retyped,
                        compare,
                    }),
                }
            }
            _ => StagedColumn {
                name: name.clone(),
                type_sql: of_backup.unwrap_or_else(|| "text".into()),
                collation: None,
                target: None,
            },
        });
    }
    Ok(staged)
}

/// The type of each live column with its domains taken off, as SQL.
pub(in super::super) async fn live_types(client: &Client, live: &Live) -> Result<HashMap<String, String>> {
    Ok(facts(client, live).await?.into_iter().map(|(name, fact)| (name, fact.base_sql)).collect())
}

/// The live columns with their domains resolved.
async fn facts(client: &Client, live: &Live) -> Result<HashMap<String, Fact>> {
    let sql = "WITH RECURSIVE base AS (
            SELECT a.attnum, a.attname, a.atttypid AS typ, a.atttypmod AS typmod, a.attcollation,
                pg_catalog.format_type(a.atttypid, a.atttypmod) AS type_sql
            FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
            UNION ALL
            SELECT b.attnum, b.attname, t.typbasetype, t.typtypmod, b.attcollation, b.type_sql
            FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typ WHERE t.typtype = 'd'
        )
        SELECT b.attname::text, b.type_sql, pg_catalog.format_type(b.typ, b.typmod), t.typname::text, t.typtype::text,
            t.oid < 16384, e.typtype::text, e.oid < 16384, b.typmod >= 0, coalesce(c.collisdeterministic, true),
            CASE WHEN c.collname <> 'default' THEN n.nspname::text END, c.collname::text, t.typcategory = 'A',
            e.typname::text
        FROM base b
        JOIN pg_catalog.pg_type t ON t.oid = b.typ AND t.typtype <> 'd'
        LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
        LEFT JOIN pg_catalog.pg_collation c ON c.oid = b.attcollation
        LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace";
    let failed = |error| server_error(error, &format!("describing the columns of {}", live.name));
    let rows = client.query(sql, &[&live.oid]).await.map_err(failed)?;
    Ok(rows
        .iter()
        .map(|row| {
            let name: &str = row.get(3);
            let (kind, built_in): (&str, bool) = (row.get(4), row.get(5));
            let (element_kind, element_built_in): (Option<&str>, Option<bool>) = (row.get(6), row.get(7));
            let element: Option<&str> = row.get(13);
            let plain = |kind: &str, built_in: bool, name: &str| {
                kind == "e" || (built_in && matches!(kind, "b" | "r" | "m") && !names_objects(name))
            };
            let stageable = if row.get(12) {
                plain(element_kind.unwrap_or("?"), element_built_in.unwrap_or(false), element.unwrap_or("?"))
            } else {
                plain(kind, built_in, name)
            };
            let fact = Fact {
                type_sql: row.get(1),
                base_sql: row.get(2),
                stageable,
                compare: if kind == "e" { Compare::Plain } else { compare(name, row.get(8)) },
                collation: row.get::<_, Option<String>>(10).map(|schema| Name::new(schema, row.get::<_, String>(11))),
            };
            (row.get(0), fact)
        })
        .collect())
}

/// Types whose values name objects of the catalog, or that the server makes for itself: their text is kept as it is.
fn names_objects(name: &str) -> bool {
    name.starts_with("reg") || name.starts_with("pg_") && name != "pg_lsn" || matches!(name, "aclitem" | "refcursor")
}

/// For built-in types, by the name in the catalog.
fn compare(name: &str, has_modifier: bool) -> Compare {
    match name {
        "bool" | "int2" | "int4" | "int8" | "oid" | "date" | "time" | "timetz" | "timestamp" | "timestamptz"
        | "uuid" | "bytea" | "char" | "macaddr" | "macaddr8" | "money" | "pg_lsn" | "bit" | "varbit" => Compare::Plain,
        "text" | "varchar" | "name" => Compare::Text,
        // With a length, values are padded to it, so equal ones are the same.
        "bpchar" if has_modifier => Compare::Text,
        "bpchar" => Compare::Padded,
        // With a scale, all values have it.
        "numeric" if has_modifier => Compare::Plain,
        "numeric" => Compare::Numeric,
        "float4" => Compare::Float4,
        "float8" => Compare::Float8,
        _ => Compare::Image,
    }
}

/// The backup's type, when it is a built-in one and nothing more than a type.
async fn backup_type(client: &Client, text: &str) -> Result<Option<String>> {
    if !plain_type(text) {
        return Ok(None);
    }
    // The server parses the text as a type name and nothing else. A text that is none is an error on some versions.
    let sql = "SELECT t.typname::text, e.typname::text FROM pg_catalog.pg_type t
        LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
        WHERE t.oid = pg_catalog.to_regtype($1::text) AND t.oid < 16384
            AND t.typtype IN ('b', 'r', 'm') AND (e.oid IS NULL OR e.typtype = 'b')";
    let Ok(Some(row)) = client.query_opt(sql, &[&text]).await else { return Ok(None) };
    let names = [row.get::<_, Option<&str>>(0), row.get(1)];
    Ok((!names.into_iter().flatten().any(names_objects)).then(|| text.to_owned()))
}

/// `character varying(20)`, `numeric(10,2)`, `timestamp(3) without time zone`, `integer[]`: words, at most one pair of
/// parentheses with numbers in it, words, brackets. Nothing that could end a column definition.
fn plain_type(text: &str) -> bool {
    let base = text.trim_end_matches("[]");
    let word = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == ' ' || letter == '_';
    match base.split_once('(') {
        None => !base.is_empty() && base.chars().all(word),
        Some((before, rest)) => rest.split_once(')').is_some_and(|(numbers, after)| {
            !before.is_empty()
                && before.chars().all(word)
                && !numbers.is_empty()
                && numbers.chars().all(|letter| letter.is_ascii_digit() || letter == ',' || letter == '-')
                && after.chars().all(word)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_of_a_dump_cannot_smuggle_sql() {
        for text in
            ["integer, b text", "text); DROP TABLE t", "integer --", "integer/*", "\"char\"", "a.b", "", "(1)", "x(1"]
        {
            assert!(!plain_type(text), "{text}");
        }
        for text in ["integer", "numeric(10,2)", "numeric(3,-2)", "timestamp(3) without time zone", "text[]", "bit(5)"]
        {
            assert!(plain_type(text), "{text}");
        }
    }
}
