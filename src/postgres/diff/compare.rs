//! The comparison itself: one statement, in the server, however large the table.

use tokio_postgres::Client;

use super::super::connect::server_error;
use super::super::name::{Name, quote};
use super::super::schema::KeySource;
use super::super::stage::{self, Compare, Scratch, StagedColumn, Target};
use super::key::join;
use super::{KeyColumn, Table};
use crate::error::Result;

/// Statistics say how well the order of rows follows a column; from here on a merge join beats a hash join, since both
/// sides come sorted.
const SORTED: f32 = 0.9;

/// Bounds of `work_mem`, in kB. A hash table may take twice as much.
const LEAST_MEMORY: i64 = 64 * 1024;
const MOST_MEMORY: i64 = 128 * 1024;

/// What can only be counted in the comparison's own snapshot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Compared {
    pub live_rows: u64,
}

/// Begins the transaction of a comparison: one snapshot for all its statements, or rows that the application writes meanwhile
/// would spoil the sums.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ";

/// Compares all rows of both sides.
pub(super) async fn run(client: &Client, scratch: &Scratch, table: &Table) -> Result<Compared> {
    let settings = settings(client, scratch, table).await?;
    let outcome = async {
        let failed = |error| server_error(error, &format!("comparing {}", table.live.name));
        client.batch_execute(&format!("{BEGIN}; {settings}")).await.map_err(failed)?;
        let count = format!("SELECT pg_catalog.count(*) FROM {}", table.source());
        let live_rows: i64 = client.query_one(&count, &[]).await.map_err(failed)?.get(0);
        fill(client, scratch, table, &table.source()).await?;
        Ok(Compared { live_rows: live_rows.unsigned_abs() })
    };
    stage::finish(client, outcome.await).await
}

/// Fills `diff<i>` with what differs between the staged rows and those of production that `live` selects.
pub(super) async fn fill(client: &Client, scratch: &Scratch, table: &Table, live: &str) -> Result<()> {
    let failed = |error| server_error(error, &format!("comparing {}", table.live.name));
    let diff = table.diff(scratch);
    let select = if table.key.is_some() { keyed(scratch, table, live) } else { multiset(scratch, table, live) };
    let create = format!(
        "DROP TABLE IF EXISTS {diff}; CREATE UNLOGGED TABLE {diff} WITH (autovacuum_enabled = off) AS {select}; \
         CREATE UNIQUE INDEX ON {diff} (n)"
    );
    client.batch_execute(&create).await.map_err(failed)
}

/// Settings for the planner, for this transaction only.
pub(super) async fn settings(client: &Client, scratch: &Scratch, table: &Table) -> Result<String> {
    let failed = |error| server_error(error, &format!("sizing the comparison of {}", table.live.name));
    let staging = table.staging(scratch);
    let first = table.key_columns.first().map_or("", |column| column.name.as_str());
    let sql = "SELECT pg_catalog.pg_relation_size($1::text::regclass) / 1024,
            (SELECT correlation FROM pg_catalog.pg_stats WHERE schemaname = $2 AND tablename = $3 AND attname = $6),
            (SELECT correlation FROM pg_catalog.pg_stats
             WHERE schemaname = $4 AND tablename = $5 AND attname = $6 AND NOT inherited)";
    let Name { schema, name } = &table.live.name;
    let staged = format!("t{}", table.number);
    let row =
        client.query_one(sql, &[&staging, &scratch.schema, &staged, schema, name, &first]).await.map_err(failed)?;
    let memory = row.get::<_, i64>(0).saturating_mul(2).clamp(LEAST_MEMORY, MOST_MEMORY);
    let sorted = |place| row.get::<_, Option<f32>>(place).is_some_and(|correlation| correlation >= SORTED);
    let indexed = table.key.as_ref().is_some_and(|key| key.source != KeySource::Named);
    let merge = indexed && sorted(1) && sorted(2);
    Ok(format!(
        // Compiling costs more than it gains here, and the operator can cancel where a timeout would only guess.
        "SET LOCAL jit = off; SET LOCAL statement_timeout = 0; SET LOCAL work_mem = {memory}; \
         SET LOCAL enable_hashjoin = {}",
        if merge { "off" } else { "on" }
    ))
}

/// Whether the rows of production are found again by their place instead of by an index on the key.
pub(in crate::postgres) fn by_place(table: &Table) -> bool {
    table.key.as_ref().is_none_or(|key| key.source == KeySource::Named)
}

/// The classes in `diff<i>`: `m`issing, `c`hanged, e`x`tra; and rows with NULL in the key, `u` of the backup, `v` of production.
fn keyed(scratch: &Scratch, table: &Table, live: &str) -> String {
    let key = &table.key_columns;
    let differing: Vec<_> = table
        .compared()
        .filter(|(_, column)| !key.iter().any(|key| key.exact && key.name == column.name))
        .filter_map(|(index, column)| Some((index, differs(column, column.target.as_ref()?))))
        .collect();
    let cols: Vec<_> =
        differing.iter().map(|(index, differs)| format!("CASE WHEN {differs} THEN {index}::smallint END")).collect();
    let values: Vec<_> = key
        .iter()
        .enumerate()
        .map(|(place, column)| {
            let (staged, live) = (column.staged("b"), column.live("l"));
            format!("coalesce({staged}, {live}::{}) AS k{}", column.type_sql, place + 1)
        })
        .collect();
    let order: Vec<_> = (1..=key.len()).map(|place| format!("k{place}")).collect();
    let null = |alias| {
        let terms: Vec<_> = key.iter().map(|column| format!("{} IS NULL", column.live(alias))).collect();
        terms.join(" OR ")
    };
    // An unmatched row has NULL in every column of the other side; looking at a key column is cheaper than at ctid.
    let first = key
        .first()
        .map_or_else(String::new, |column| format!("{} IS NULL OR {} IS NULL", column.live("b"), column.live("l")));
    let mut filter = vec![first];
    filter.extend(differing.into_iter().map(|(_, differs)| differs));
    format!(
        "SELECT pg_catalog.row_number() OVER (ORDER BY (d.class IN ('u', 'v')), {order}) AS n, d.* FROM (
            SELECT CASE WHEN l.xmin IS NULL THEN CASE WHEN {null_b} THEN 'u'::\"char\" ELSE 'm'::\"char\" END
                        WHEN b.ctid IS NULL THEN CASE WHEN {null_l} THEN 'v'::\"char\" ELSE 'x'::\"char\" END
                        ELSE 'c'::\"char\" END AS class,
                l.xmin AS live_xmin, b.ctid AS b, {place}
                CASE WHEN b.ctid IS NOT NULL AND l.xmin IS NOT NULL
                     THEN pg_catalog.array_remove(ARRAY[{cols}]::smallint[], NULL) END AS cols,
                {values}
            FROM {live} l FULL JOIN {staging} b ON {join}
            WHERE {filter}) d",
        order = order.join(", "),
        null_b = null("b"),
        null_l = null("l"),
        place = if by_place(table) { "l.ctid AS l, l.tableoid AS l_table," } else { "" },
        cols = cols.join(", "),
        values = values.join(", "),
        staging = table.staging(scratch),
        join = join(key, |_, column| column.staged("b"), |_, column| column.live("l")),
        filter = filter.join("\n OR "),
    )
}

/// Without a key, equal rows are numbered on each side and paired by row text and number; what is left over is missing or
/// extra, copy by copy.
fn multiset(scratch: &Scratch, table: &Table, source: &str) -> String {
    let texts = |value: &dyn Fn(&StagedColumn, &Target) -> String| {
        let cells: Vec<_> =
            table.compared().filter_map(|(_, column)| Some(value(column, column.target.as_ref()?))).collect();
        // A row's text quotes its cells, so different rows never look alike; a hash of it keeps the sort small.
        format!("pg_catalog.sha256(pg_catalog.convert_to(ROW({})::text, 'UTF8'))", cells.join(", "))
    };
    let staged = texts(&|column, target| {
        let name = quote(&column.name);
        if target.is_words() { format!("{name}::{}::text", target.base_sql) } else { format!("{name}::text") }
    });
    let live = texts(&|column, _| format!("{}::text", quote(&column.name)));
    format!(
        "SELECT pg_catalog.row_number() OVER (ORDER BY d.class, d.b, d.l_table, d.l) AS n, d.* FROM (
            SELECT CASE WHEN l.copy IS NULL THEN 'm'::\"char\" ELSE 'x'::\"char\" END AS class, l.version AS live_xmin,
                b.place AS b, l.place AS l, l.source AS l_table, NULL::smallint[] AS cols
            FROM (SELECT hash, place, pg_catalog.row_number() OVER (PARTITION BY hash) AS copy
                  FROM (SELECT {staged} AS hash, ctid AS place FROM {staging}) s) b
            FULL JOIN (SELECT hash, place, source, version, pg_catalog.row_number() OVER (PARTITION BY hash) AS copy
                  FROM (SELECT {live} AS hash, ctid AS place, tableoid AS source, xmin AS version FROM {source} r) s) l
            ON b.hash = l.hash AND b.copy = l.copy
            WHERE b.copy IS NULL OR l.copy IS NULL) d",
        staging = table.staging(scratch),
    )
}

/// A condition that holds when the staged value `b` and the live value `l` are not exactly the same.
pub(in crate::postgres) fn differs(column: &StagedColumn, target: &Target) -> String {
    let name = quote(&column.name);
    let base = if target.base_sql == target.type_sql { String::new() } else { format!("::{}", target.base_sql) };
    differ(target, &format!("b.{name}"), &format!("l.{name}{base}"))
}

/// The same for any two expressions: the first as staged, the second of the live type without domains.
pub(in crate::postgres) fn differ(target: &Target, b: &str, l: &str) -> String {
    match target.compare {
        Compare::Plain => format!("{b} IS DISTINCT FROM {l}"),
        Compare::Text => format!("{b} COLLATE \"C\" IS DISTINCT FROM {l}"),
        Compare::Numeric => {
            format!("({b} IS DISTINCT FROM {l} OR pg_catalog.scale({b}) IS DISTINCT FROM pg_catalog.scale({l}))")
        }
        Compare::Padded => format!(
            "({b} COLLATE \"C\" IS DISTINCT FROM {l} \
             OR pg_catalog.octet_length({b}) IS DISTINCT FROM pg_catalog.octet_length({l}))"
        ),
        // Only zero has two images that are equal.
        Compare::Float4 => zero(b, l, "float4send"),
        Compare::Float8 => zero(b, l, "float8send"),
        // The image is cheap and works for every type; but two images can print the same (an array with and without a null
        // bitmap), and the text is what counts.
        Compare::Image => format!(
            "(pg_catalog.record_image_ne(ROW({b}), ROW({l})) AND {b}::text COLLATE \"C\" IS DISTINCT FROM {l}::text)"
        ),
        Compare::Words => format!(
            "({b} COLLATE \"C\" IS DISTINCT FROM {l}::text AND {b}::{}::text COLLATE \"C\" IS DISTINCT FROM {l}::text)",
            target.base_sql
        ),
    }
}

fn zero(b: &str, l: &str, send: &str) -> String {
    format!(
        "({b} IS DISTINCT FROM {l} OR ({b} = 0 AND pg_catalog.{send}({b}) IS DISTINCT FROM pg_catalog.{send}({l})))"
    )
}

impl Compare {
    /// Equal values are always the same.
    pub(super) fn is_exact(self) -> bool {
        matches!(self, Self::Plain | Self::Text)
    }
}

/// The key columns of `diff<i>`, by place.
pub(in crate::postgres) fn diff_key(alias: &str) -> impl Fn(usize, &KeyColumn) -> String + use<'_> {
    move |place, _| format!("{alias}.k{}", place + 1)
}
