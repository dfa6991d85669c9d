//! What a live database holds, read from its catalog.

use serde::{Deserialize, Serialize};

use super::name::Name;

/// A table of the live database with everything that a recovery of its rows has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    pub name: Name,
    pub oid: u32,
    pub kind: Kind,
    pub columns: Vec<Column>,
    /// Keys that could pair rows, best first: the primary key, then unique indexes without NULLs, then the others.
    pub keys: Vec<Key>,
    /// Tables that this one references.
    pub parents: Vec<ForeignKey>,
    /// Tables that reference this one.
    pub children: Vec<ForeignKey>,
    pub triggers: Vec<Trigger>,
    pub sequences: Vec<Sequence>,
    /// The planner's estimate; `None` when the table was never analysed. Never called a count.
    pub rows_estimate: Option<u64>,
    pub size_bytes: u64,
    /// Row-level security applies to us, so that we would not see every row.
    pub row_security: bool,
    /// What our role may do, in words of SQL: `SELECT`, `INSERT`, `UPDATE`, `DELETE`; and whether it owns the table.
    pub privileges: Vec<String>,
    pub owned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Table,
    Partitioned,
    /// Views, foreign tables and the like: rows cannot be merged into them.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    /// As `format_type` prints it.
    pub type_sql: String,
    pub not_null: bool,
    /// Computed by the server; never compared, never written.
    pub generated: bool,
    pub identity: Identity,
    pub default_sql: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    None,
    Always,
    ByDefault,
}

/// The columns that say which rows are the same row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub source: KeySource,
    pub columns: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeySource {
    Primary,
    /// The unique index of that name.
    Unique(String),
    /// Named by the operator and proven unique on both sides.
    Named,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignKey {
    pub constraint: String,
    pub child: Name,
    pub child_columns: Vec<String>,
    pub parent: Name,
    pub parent_columns: Vec<String>,
    pub on_delete: OnDelete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDelete {
    NoAction,
    Restrict,
    Cascade,
    SetNull,
    SetDefault,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is one bit of the catalog, and any of them may be set")]
pub struct Trigger {
    pub name: String,
    pub before: bool,
    pub per_row: bool,
    pub on_insert: bool,
    pub on_update: bool,
    pub on_delete: bool,
    pub function: Name,
    /// Who owns the function, since it runs with our rights unless it is SECURITY DEFINER.
    pub owner: String,
    /// `CREATE TRIGGER ...` as the server prints it.
    pub definition: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    pub name: Name,
    /// The column whose values come from it.
    pub column: String,
    /// 0 when it was never used, and when our role may not know.
    pub last_value: i64,
    /// Whether our role may move it safely (it takes ownership to hold back `nextval` meanwhile).
    pub owned: bool,
}

use std::collections::HashMap;

use tokio_postgres::{Client, Row};

use super::connect::server_error;
use crate::error::Result;

/// Ordinary and partitioned tables outside the system's schemas and ours.
const TABLES: &str = "
select c.oid, n.nspname::text as schema, c.relname::text as name, c.relkind::text as kind,
       case when c.reltuples < 0 then null else c.reltuples::bigint end as estimate,
       pg_total_relation_size(c.oid) as size,
       row_security_active(c.oid) as row_security,
       array_remove(array[
           case when has_table_privilege(c.oid, 'SELECT') then 'SELECT' end,
           case when has_table_privilege(c.oid, 'INSERT') then 'INSERT' end,
           case when has_table_privilege(c.oid, 'UPDATE') then 'UPDATE' end,
           case when has_table_privilege(c.oid, 'DELETE') then 'DELETE' end], null) as privileges,
       pg_has_role(c.relowner, 'USAGE') as owned
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v', 'm', 'f')
  and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
  and n.nspname !~ '^(pg_temp_|pg_toast_temp_|restore_staging_|lifeboat_undo_)'
order by n.nspname, c.relname";

const COLUMNS: &str = "
select a.attrelid as oid, a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type_sql, a.attnotnull as not_null,
       a.attgenerated <> '' as generated, a.attidentity::text as identity, pg_get_expr(d.adbin, d.adrelid) as default_sql
from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where a.attrelid = any($1) and a.attnum > 0 and not a.attisdropped
order by a.attrelid, a.attnum";

/// Primary keys first, then unique indexes of NOT NULL columns, then the other unique ones. Partial indexes and indexes on
/// expressions do not pair all rows.
const KEYS: &str = "
select i.indrelid as oid, x.relname::text as index, i.indisprimary as is_primary,
       array(select a.attname::text from unnest(i.indkey::int2[]) with ordinality k(attnum, position)
             join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
             where k.position <= i.indnkeyatts order by k.position) as columns
from pg_index i join pg_class x on x.oid = i.indexrelid
where i.indrelid = any($1) and i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null
order by i.indrelid, not i.indisprimary,
         (select bool_and(a.attnotnull) from pg_attribute a where a.attrelid = i.indrelid and a.attnum = any(i.indkey::int2[])) is not true,
         i.indnkeyatts, x.relname";

const FOREIGN_KEYS: &str = "
select k.conname::text as name, k.conrelid as child_oid, k.confrelid as parent_oid,
       cn.nspname::text as child_schema, c.relname::text as child, pn.nspname::text as parent_schema, p.relname::text as parent,
       k.confdeltype::text as on_delete,
       array(select a.attname::text from unnest(k.conkey) with ordinality u(attnum, position)
             join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.attnum order by u.position) as child_columns,
       array(select a.attname::text from unnest(k.confkey) with ordinality u(attnum, position)
             join pg_attribute a on a.attrelid = k.confrelid and a.attnum = u.attnum order by u.position) as parent_columns
from pg_constraint k
join pg_class c on c.oid = k.conrelid join pg_namespace cn on cn.oid = c.relnamespace
join pg_class p on p.oid = k.confrelid join pg_namespace pn on pn.oid = p.relnamespace
where k.contype = 'f' and k.conparentid = 0 and (k.conrelid = any($1) or k.confrelid = any($1))
order by k.conname, k.conrelid";

/// Bits of `tgtype`: 1 for each row, 2 before, 4 insert, 8 delete, 16 update (PostgreSQL, `catalog/pg_trigger.h`).
const TRIGGERS: &str = "
select t.tgrelid as oid, t.tgname::text as name, t.tgtype::int4 as bits, n.nspname::text as function_schema, f.proname::text as function,
       pg_get_userbyid(f.proowner)::text as owner, pg_get_triggerdef(t.oid) as definition
from pg_trigger t join pg_proc f on f.oid = t.tgfoid join pg_namespace n on n.oid = f.pronamespace
where t.tgrelid = any($1) and not t.tgisinternal and t.tgenabled in ('O', 'A')
order by t.tgrelid, t.tgname";

const SEQUENCES: &str = "
select d.refobjid as oid, a.attname::text as column, n.nspname::text as schema, s.relname::text as name,
       case when has_sequence_privilege(s.oid, 'USAGE, SELECT') then coalesce(pg_sequence_last_value(s.oid), 0) else 0 end as last_value, pg_has_role(s.relowner, 'USAGE') as owned
from pg_depend d
join pg_class s on s.oid = d.objid and s.relkind = 'S' join pg_namespace n on n.oid = s.relnamespace
join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i') and d.refobjid = any($1)
order by d.refobjid, a.attnum, s.relname";

/// The live tables, or those of the given names; in name order. A handful of queries, however many tables there are.
pub async fn live(client: &Client, names: Option<&[Name]>) -> Result<Vec<Live>> {
    let failed = |error| server_error(error, "reading the catalog");
    let mut tables: Vec<Live> = client.query(TABLES, &[]).await.map_err(failed)?.iter().map(table).collect();
    if let Some(names) = names {
        tables.retain(|table| names.contains(&table.name));
    }
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let places: HashMap<u32, usize> = oids.iter().enumerate().map(|(place, oid)| (*oid, place)).collect();
    let place = |row: &Row, column: &str| places.get(&row.get::<_, u32>(column)).copied();
    for row in client.query(COLUMNS, &[&oids]).await.map_err(failed)? {
        if let Some(place) = place(&row, "oid") {
            tables[place].columns.push(column(&row));
        }
    }
    for row in client.query(KEYS, &[&oids]).await.map_err(failed)? {
        if let Some(place) = place(&row, "oid") {
            let source = if row.get("is_primary") { KeySource::Primary } else { KeySource::Unique(row.get("index")) };
            tables[place].keys.push(Key { source, columns: row.get("columns") });
        }
    }
    for row in client.query(FOREIGN_KEYS, &[&oids]).await.map_err(failed)? {
        let key = foreign_key(&row);
        if let Some(place) = place(&row, "child_oid") {
            tables[place].parents.push(key.clone());
        }
        if let Some(place) = place(&row, "parent_oid") {
            tables[place].children.push(key);
        }
    }
    for row in client.query(TRIGGERS, &[&oids]).await.map_err(failed)? {
        if let Some(place) = place(&row, "oid") {
            tables[place].triggers.push(trigger(&row));
        }
    }
    for row in client.query(SEQUENCES, &[&oids]).await.map_err(failed)? {
        if let Some(place) = place(&row, "oid") {
            tables[place].sequences.push(Sequence {
                name: Name::new(row.get::<_, String>("schema"), row.get::<_, String>("name")),
                column: row.get("column"),
                last_value: row.get("last_value"),
                owned: row.get("owned"),
            });
        }
    }
    Ok(tables)
}

fn table(row: &Row) -> Live {
    Live {
        name: Name::new(row.get::<_, String>("schema"), row.get::<_, String>("name")),
        oid: row.get("oid"),
        kind: match row.get::<_, &str>("kind") {
            "r" => Kind::Table,
            "p" => Kind::Partitioned,
            _ => Kind::Other,
        },
        columns: Vec::new(),
        keys: Vec::new(),
        parents: Vec::new(),
        children: Vec::new(),
        triggers: Vec::new(),
        sequences: Vec::new(),
        rows_estimate: row.get::<_, Option<i64>>("estimate").and_then(|rows| u64::try_from(rows).ok()),
        size_bytes: u64::try_from(row.get::<_, i64>("size")).unwrap_or(0),
        row_security: row.get("row_security"),
        privileges: row.get("privileges"),
        owned: row.get("owned"),
    }
}

fn column(row: &Row) -> Column {
    Column {
        name: row.get("name"),
        type_sql: row.get("type_sql"),
        not_null: row.get("not_null"),
        generated: row.get("generated"),
        identity: match row.get::<_, &str>("identity") {
            "a" => Identity::Always,
            "d" => Identity::ByDefault,
            _ => Identity::None,
        },
        default_sql: row.get("default_sql"),
    }
}

fn foreign_key(row: &Row) -> ForeignKey {
    ForeignKey {
        constraint: row.get("name"),
        child: Name::new(row.get::<_, String>("child_schema"), row.get::<_, String>("child")),
        child_columns: row.get("child_columns"),
        parent: Name::new(row.get::<_, String>("parent_schema"), row.get::<_, String>("parent")),
        parent_columns: row.get("parent_columns"),
        on_delete: match row.get::<_, &str>("on_delete") {
            "r" => OnDelete::Restrict,
            "c" => OnDelete::Cascade,
            "n" => OnDelete::SetNull,
            "d" => OnDelete::SetDefault,
            _ => OnDelete::NoAction,
        },
    }
}

fn trigger(row: &Row) -> Trigger {
    let bits: i32 = row.get("bits");
    Trigger {
        name: row.get("name"),
        before: bits & 2 != 0,
        per_row: bits & 1 != 0,
        on_insert: bits & 4 != 0,
        on_update: bits & 16 != 0,
        on_delete: bits & 8 != 0,
        function: Name::new(row.get::<_, String>("function_schema"), row.get::<_, String>("function")),
        owner: row.get("owner"),
        definition: row.get("definition"),
    }
}
