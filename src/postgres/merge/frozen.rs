//! What was frozen: one table's part with all that it takes to write it, the exact statements, and the hash over both.

use bytes::Bytes;
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::super::connect::server_error;
use super::super::diff::Table;
use super::super::diff::compare::differ;
use super::super::diff::key::join;
use super::super::name::{Name, quote, quote_list};
use super::super::schema::{Identity, Trigger};
use super::super::stage::{Scratch, StagedColumn, Target, UNDO};
use super::{SequenceMove, TableUndo, Triggers};
use crate::error::{Error, Result};

/// Our own columns of `change<i>` and `before<i>`, beside those of the table.
pub(super) const ROW: &str = "lifeboat_row";
pub(super) const CLASS: &str = "lifeboat_class";
pub(super) const GUARD: &str = "lifeboat_guard";
pub(super) const COLUMNS: &str = "lifeboat_columns";

/// A live column, for pre-images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LiveColumn {
    pub name: String,
    /// Without domains, so that a pre-image can hold NULL where a new row has no value.
    pub base_sql: String,
    pub identity: Identity,
}

/// One table's part, as it is kept in scratch space and, for undo, in the undo schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Work {
    pub table: Table,
    pub inserts: u64,
    pub updates: u64,
    pub deletes: u64,
    /// Columns that some update writes; and whether every update writes all of them.
    pub columns: Vec<String>,
    pub uniform: bool,
    /// All but the generated ones.
    pub live_columns: Vec<LiveColumn>,
    /// Those that fire in a session like ours, as of when the rows were frozen.
    pub triggers: Vec<Trigger>,
    pub mode: Triggers,
    pub sequences: Vec<Held>,
}

/// A sequence that moves, and its own increment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    pub step: SequenceMove,
    pub increment: i64,
}

/// One table's statements, apart by when they run.
#[derive(Debug, Clone, Default)]
pub(super) struct Script {
    pub disable: Vec<String>,
    pub before: Vec<String>,
    pub delete: Option<String>,
    pub update: Option<String>,
    pub insert: Option<String>,
    pub enable: Vec<String>,
    pub sequences: Vec<String>,
}

impl Script {
    /// As shown, hashed and run.
    pub fn statements(&self) -> Vec<String> {
        let mut all = self.disable.clone();
        all.extend(self.before.iter().cloned());
        all.extend(self.delete.iter().chain(&self.update).chain(&self.insert).cloned());
        all.extend(self.enable.iter().cloned());
        all.extend(self.sequences.iter().cloned());
        all
    }
}

/// The schema that keeps a recovery's pre-images.
pub(super) fn undo_schema(recovery: &str) -> String {
    format!("{UNDO}{recovery}")
}

impl Work {
    pub fn change(&self, scratch: &Scratch) -> String {
        scratch.table("change", self.table.number)
    }

    /// A table of the undo schema.
    pub fn kept(&self, recovery: &str, kind: &str) -> String {
        Name::new(undo_schema(recovery), format!("{kind}{}", self.table.number)).sql()
    }

    /// The live rows, as SQL.
    pub fn source(&self) -> String {
        self.table.source()
    }

    /// `live."id" = c."id"`, by production's operator, for a frozen row `c`.
    pub fn on_key(&self, live: &str, c: &str) -> String {
        join(&self.table.key_columns, |_, column| column.live(live), |_, column| column.staged(c))
    }

    /// The same for rows of a pre-image, which have live types.
    pub fn on_kept_key(&self, live: &str, b: &str) -> String {
        join(&self.table.key_columns, |_, column| column.live(live), |_, column| column.live(b))
    }

    /// A frozen value as the live type takes it.
    pub fn value(c: &str, column: &StagedColumn, target: &Target) -> String {
        let value = format!("{c}.{}", quote(&column.name));
        if target.is_words() || target.type_sql != target.base_sql {
            format!("{value}::{}", target.type_sql)
        } else {
            value
        }
    }

    /// The key of a frozen row as text, for messages.
    pub fn key_text(&self, c: &str) -> String {
        let columns: Vec<_> = self.table.key_columns.iter().map(|column| format!("{}::text", column.live(c))).collect();
        format!("pg_catalog.concat_ws(', ', {})", columns.join(", "))
    }

    /// Whether a frozen value `c` is what production holds in `live` now; only columns that the row writes count.
    /// `None`: no row writes that column.
    pub fn unlike(&self, place: usize, column: &StagedColumn, target: &Target) -> Option<String> {
        let name = quote(&column.name);
        let base = if target.base_sql == target.type_sql { String::new() } else { format!("::{}", target.base_sql) };
        let differs = differ(target, &format!("c.{name}"), &format!("live.{name}{base}"));
        let updated = self.columns.contains(&column.name);
        match (self.inserts > 0, updated) {
            (true, true) => Some(format!("((c.{CLASS} = 'm' OR {place} = ANY (c.{COLUMNS})) AND {differs})")),
            (true, false) => Some(format!("(c.{CLASS} = 'm' AND {differs})")),
            (false, true) if self.uniform => Some(format!("({differs})")),
            (false, true) => Some(format!("({place} = ANY (c.{COLUMNS}) AND {differs})")),
            (false, false) => None,
        }
    }

    /// Columns that take part, with their place in the map and their target.
    pub fn written(&self) -> impl Iterator<Item = (usize, &StagedColumn, &Target)> {
        self.table.compared().filter_map(|(place, column)| Some((place, column, column.target.as_ref()?)))
    }

    /// As an undo of this leaves it, for an undo of that undo.
    pub fn taken_back(&self, undo: &TableUndo) -> Self {
        let (inserts, updates, deletes) = (undo.bring_back, undo.set_back, undo.remove);
        Self { inserts, updates, deletes, ..self.clone() }
    }

    /// What switches the table's triggers off and on again; nothing when they are to fire.
    pub fn switches(&self) -> (Vec<String>, Vec<String>) {
        if self.mode == Triggers::Fire {
            return (Vec::new(), Vec::new());
        }
        let switch = |trigger: &Trigger| {
            let (table, name) = (trigger.table.sql(), quote(&trigger.name));
            let always = if trigger.always { "ALWAYS " } else { "" };
            (
                format!("ALTER TABLE {table} DISABLE TRIGGER {name}"),
                format!("ALTER TABLE {table} ENABLE {always}TRIGGER {name}"),
            )
        };
        self.triggers.iter().map(switch).unzip()
    }

    /// The statements of a merge.
    pub fn script(&self, scratch: &Scratch) -> Script {
        let mut script = Script { before: self.before(scratch), ..Script::default() };
        (script.disable, script.enable) = self.switches();
        let (change, source) = (self.change(scratch), self.source());
        let key = self.on_key("live", "c");
        if self.deletes > 0 {
            script.delete = Some(format!(
                "DELETE FROM {source} AS live\nUSING {change} AS c\n\
                 WHERE c.{CLASS} = 'x' AND {key} AND live.xmin = c.{GUARD}"
            ));
        }
        if self.updates > 0 {
            script.update = Some(format!(
                "UPDATE {source} AS live\nSET {}\nFROM {change} AS c\n\
                 WHERE c.{CLASS} = 'c' AND {key} AND live.xmin = c.{GUARD}",
                self.assignments()
            ));
        }
        if self.inserts > 0 {
            script.insert = Some(self.insert(&change));
        }
        for Held { step, increment } in &self.sequences {
            let name = step.sequence.sql();
            // Any ALTER makes others wait for their next value until we commit, and makes setval part of the transaction;
            // this one changes nothing.
            script.sequences.push(format!("ALTER SEQUENCE {name} INCREMENT BY {increment}"));
            script.sequences.push(format!(
                "SELECT pg_catalog.setval(tableoid::regclass, {to}) FROM {name} \
                 WHERE last_value < {to} OR (last_value = {to} AND NOT is_called)",
                to = step.to
            ));
        }
        script
    }

    fn assignments(&self) -> String {
        let sets: Vec<_> = self
            .written()
            .filter(|(_, column, _)| self.columns.contains(&column.name))
            .map(|(place, column, target)| {
                let (name, value) = (quote(&column.name), Self::value("c", column, target));
                if self.uniform {
                    format!("{name} = {value}")
                } else {
                    format!("{name} = CASE WHEN {place} = ANY (c.{COLUMNS}) THEN {value} ELSE live.{name} END")
                }
            })
            .collect();
        sets.join(",\n    ")
    }

    fn insert(&self, change: &str) -> String {
        let columns: Vec<_> = self.written().collect();
        let always = self.live_columns.iter().any(|column| {
            column.identity == Identity::Always && columns.iter().any(|(_, written, _)| written.name == column.name)
        });
        let values: Vec<_> = columns.iter().map(|(_, column, target)| Self::value("c", column, target)).collect();
        format!(
            "INSERT INTO {} ({}){}\nSELECT {}\nFROM {change} AS c\nWHERE c.{CLASS} = 'm'\nORDER BY c.{ROW}",
            self.table.live.name.sql(),
            quote_list(columns.iter().map(|(_, column, _)| &column.name)),
            if always { " OVERRIDING SYSTEM VALUE" } else { "" },
            values.join(", ")
        )
    }

    /// Pre-images: the rows as they are, locked while they are read; for rows that will be new, their keys.
    fn before(&self, scratch: &Scratch) -> Vec<String> {
        let before = self.kept(&scratch.recovery, "before");
        let change = self.change(scratch);
        let names = quote_list(self.live_columns.iter().map(|column| &column.name));
        let mut statements = vec![self.create_kept(&before)];
        if self.updates + self.deletes > 0 {
            // A weaker lock lets the application go on adding rows that refer to these.
            let keyed = self.deletes > 0
                || self.table.key_columns.iter().any(|key| self.columns.contains(&key.name))
                || self
                    .table
                    .live
                    .children
                    .iter()
                    .any(|key| key.parent_columns.iter().any(|column| self.columns.contains(column)));
            let lock = if keyed { "UPDATE" } else { "NO KEY UPDATE" };
            let columns: Vec<_> =
                self.live_columns.iter().map(|column| format!("live.{}", quote(&column.name))).collect();
            statements.push(format!(
                "INSERT INTO {before} ({ROW}, {CLASS}, {COLUMNS}, {names})\n\
                 SELECT c.{ROW}, c.{CLASS}, c.{COLUMNS}, {}\n\
                 FROM {change} AS c JOIN {} AS live ON {} AND live.xmin = c.{GUARD}\n\
                 WHERE c.{CLASS} <> 'm'\nFOR {lock} OF live SKIP LOCKED",
                columns.join(", "),
                self.source(),
                self.on_key("live", "c")
            ));
        }
        if self.inserts > 0 {
            let keys: Vec<_> = self.table.key_columns.iter().map(|column| column.staged("c")).collect();
            statements.push(format!(
                "INSERT INTO {before} ({ROW}, {CLASS}, {})\nSELECT c.{ROW}, c.{CLASS}, {}\nFROM {change} AS c\nWHERE c.{CLASS} = 'm'",
                quote_list(self.table.key_columns.iter().map(|column| &column.name)),
                keys.join(", ")
            ));
        }
        statements
    }

    pub fn create_kept(&self, kept: &str) -> String {
        let columns: Vec<_> = self
            .live_columns
            .iter()
            .map(|column| format!("live.{name}::{} AS {name}", column.base_sql, name = quote(&column.name)))
            .collect();
        format!(
            "CREATE TABLE {kept} AS\nSELECT NULL::bigint AS {ROW}, NULL::\"char\" AS {CLASS}, NULL::smallint[] AS {COLUMNS}, {}\n\
             FROM {} AS live\nWITH NO DATA",
            columns.join(", "),
            self.source()
        )
    }
}

/// Keeps what was frozen in scratch space.
pub(super) async fn save(client: &Client, scratch: &Scratch, works: &[Work]) -> Result<()> {
    let table = Name::new(&*scratch.schema, "frozen").sql();
    let failed = |error| server_error(error, "keeping what was frozen");
    client
        .batch_execute(&format!(
            "DROP TABLE IF EXISTS {table}; CREATE TABLE {table} (place int PRIMARY KEY, work text)"
        ))
        .await
        .map_err(failed)?;
    insert(client, &table, works).await
}

pub(super) async fn insert(client: &Client, table: &str, works: &[Work]) -> Result<()> {
    let failed = |error| server_error(error, "keeping what was frozen");
    for (place, work) in (0_i32..).zip(works) {
        let json = serde_json::to_string(work)
            .map_err(|error| Error::bug("what was frozen cannot be written down").detail(error))?;
        client.execute(&format!("INSERT INTO {table} VALUES ($1, $2)"), &[&place, &json]).await.map_err(failed)?;
    }
    Ok(())
}

/// Reads it back from the scratch space or the undo schema.
pub(super) async fn load(client: &Client, schema: &str) -> Result<Vec<Work>> {
    let table = Name::new(schema, "frozen").sql();
    let failed = |error| server_error(error, "reading what was frozen");
    let rows = client.query(&format!("SELECT work FROM {table} ORDER BY place"), &[]).await.map_err(failed)?;
    rows.iter()
        .map(|row| {
            serde_json::from_str(row.get(0))
                .map_err(|error| Error::bug("what was frozen cannot be read back").detail(error))
        })
        .collect()
}

/// SHA-256, in hex, over every table's statements and its frozen rows in order. Rows stream through, however many.
pub(super) async fn hash(client: &Client, scratch: &Scratch, works: &[Work]) -> Result<String> {
    let failed = |error| server_error(error, "reading the frozen rows");
    let mut hash = Sha256::new();
    for work in works {
        for statement in work.script(scratch).statements() {
            hash.update((statement.len() as u64).to_be_bytes());
            hash.update(statement);
        }
        let sql = format!("COPY (SELECT * FROM {} ORDER BY {ROW}) TO STDOUT", work.change(scratch));
        let stream = client.copy_out(&sql).await.map_err(failed)?;
        tokio::pin!(stream);
        let mut bytes = 0;
        while let Some(chunk) = stream.try_next().await.map_err(failed)? {
            let chunk: Bytes = chunk;
            bytes += chunk.len() as u64;
            hash.update(&chunk);
        }
        hash.update(bytes.to_be_bytes());
    }
    Ok(hex(&hash.finalize()))
}

pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
