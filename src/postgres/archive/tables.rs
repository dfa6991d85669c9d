//! The tables of a dump, put together from the entries that speak of them: definition, data, keys, partitions.

use std::collections::HashMap;

use super::ddl::{Definition, Reference, Statement, statements};
use super::{Column, Entry, Place, Table};
use crate::error::{Error, Result};
use crate::postgres::name::Name;

/// Builds the tables. `size` says how many bytes of the dump an entry's data takes.
///
/// A name is said several times in a dump, so that one which was damaged does not agree with the others.
pub fn build(label: &str, entries: &[Entry], mut size: impl FnMut(&Entry) -> Option<u64>) -> Result<Vec<Table>> {
    let mut tables = Tables::default();
    for entry in entries {
        let schema = entry.schema.as_deref().unwrap_or("public");
        match entry.kind.as_str() {
            "TABLE" | "FOREIGN TABLE" | "TYPE" | "CONSTRAINT" | "FK CONSTRAINT" | "TABLE ATTACH" => {
                let name = Name::new(schema, &entry.name);
                if entry.kind == "TABLE" {
                    tables.at(&name);
                }
                for statement in statements(&entry.definition) {
                    if let Statement::Table(definition) = &statement
                        && entry.kind == "TABLE"
                        && definition.name.clone().within(schema) != name
                    {
                        let other = definition.name.clone().within(schema);
                        return Err(damaged(label, &format!("the definition of {name} is of {other}")));
                    }
                    tables.apply(statement, schema);
                }
            }
            "TABLE DATA" => {
                let name = Name::new(schema, &entry.name);
                let table = tables.at(&name);
                if table.dump_id != 0 {
                    return Err(damaged(label, &format!("it has the data of {name} twice")));
                }
                table.has_data = entry.has_data;
                table.dump_id = entry.dump_id;
                table.place = entry.place.clone();
                let copy = statements(&entry.copy).into_iter().next();
                table.inserts = entry.has_data && copy.is_none();
                if let Some(Statement::Copy(into, columns)) = copy {
                    table.copied = columns.unwrap_or_default();
                    let into = into.within(schema);
                    if into != name {
                        tables.elsewhere.push((name.clone(), into));
                    }
                } else if entry.has_data && entry.copy.trim_ascii_start().starts_with("COPY") {
                    return Err(damaged(label, &format!("the COPY statement of {name} cannot be read")));
                }
                let table = tables.at(&name);
                table.compressed_size = if entry.has_data { size(entry) } else { None };
            }
            _ => {}
        }
    }
    for table in &tables.found {
        let several = matches!(&table.place, Place::Sections(sections) if sections.len() > 1);
        let root = tables.found.iter().any(|other| other.partition_of.as_ref() == Some(&table.name));
        if several && !table.columns.is_empty() && !root {
            return Err(damaged(label, &format!("it has the data of {} twice", table.name)));
        }
    }
    for (name, into) in &tables.elsewhere {
        // With --load-via-partition-root the rows of a partition are copied into its root.
        if !tables.partitions(name).any(|root| root == into) {
            return Err(damaged(label, &format!("the data of {name} is said to be of {into}")));
        }
    }
    Ok(tables.finish())
}

fn damaged(label: &str, how: &str) -> Error {
    Error::backup(format!("{label} is damaged: {how}")).hint(super::HINT_DAMAGED)
}

#[derive(Default)]
struct Tables {
    found: Vec<Table>,
    by_name: HashMap<Name, usize>,
    /// Columns of composite types.
    types: HashMap<Name, Vec<Column>>,
    /// What a table's columns begin with: those of its parents or of its type.
    inherits: HashMap<usize, Vec<Name>>,
    /// Columns that a constraint of their table says are never null.
    not_null: HashMap<usize, Vec<String>>,
    /// Tables whose rows are copied into another one.
    elsewhere: Vec<(Name, Name)>,
}

impl Tables {
    fn at(&mut self, name: &Name) -> &mut Table {
        let index = *self.by_name.entry(name.clone()).or_insert_with(|| {
            self.found.push(Table {
                name: name.clone(),
                columns: Vec::new(),
                copied: Vec::new(),
                compressed_size: None,
                has_data: false,
                primary_key: None,
                foreign_keys: Vec::new(),
                partition_of: None,
                inserts: false,
                dump_id: 0,
                mismatch: false,
                place: Place::Nowhere,
            });
            self.found.len() - 1
        });
        &mut self.found[index]
    }

    /// What a partition is a partition of, and that one in turn, as far as the dump says.
    fn partitions<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = &'a Name> {
        let above = |name: &&'a Name| self.found[*self.by_name.get(*name)?].partition_of.as_ref();
        std::iter::successors(above(&name), above).take(self.found.len())
    }

    /// What a constraint says of a table that the dump does not hold is of no use.
    fn known(&mut self, table: Reference, schema: &str) -> Option<&mut Table> {
        let index = *self.by_name.get(&table.within(schema))?;
        Some(&mut self.found[index])
    }

    fn apply(&mut self, statement: Statement, schema: &str) {
        match statement {
            Statement::Table(definition) => self.define(definition, schema),
            Statement::Type(name, columns) => {
                self.types.insert(name.within(schema), columns);
            }
            Statement::PrimaryKey(table, columns) => {
                if let Some(table) = self.known(table, schema) {
                    table.primary_key = Some(columns);
                }
            }
            Statement::ForeignKey(table, foreign) => {
                if let Some(table) = self.known(table, schema) {
                    table.foreign_keys.push(foreign.within(schema));
                }
            }
            Statement::Attach(partition, root) => {
                let root = root.within(schema);
                if let Some(table) = self.known(partition, schema) {
                    table.partition_of = Some(root);
                }
            }
            Statement::Copy(..) | Statement::Insert(_) | Statement::SearchPath(_) => {}
        }
    }

    fn define(&mut self, definition: Definition, schema: &str) {
        let name = definition.name.within(schema);
        let partition_of = definition.partition_of.map(|root| root.within(schema));
        let table = self.at(&name);
        table.columns = definition.elements.columns;
        table.primary_key = definition.elements.primary_key;
        table.partition_of = partition_of;
        let index = self.by_name[&name];
        self.not_null.insert(index, definition.elements.not_null);
        if !definition.inherits.is_empty() {
            let parents = definition.inherits.into_iter().map(|parent| parent.within(schema)).collect();
            self.inherits.insert(index, parents);
        }
    }

    fn finish(mut self) -> Vec<Table> {
        self.inherit();
        for (index, table) in self.found.iter_mut().enumerate() {
            let key = table.primary_key.iter().chain(self.not_null.get(&index)).flatten().collect::<Vec<_>>();
            for column in &mut table.columns {
                column.not_null |= key.contains(&&column.name);
            }
            let rows: Vec<_> =
                table.columns.iter().filter(|column| !column.generated).map(|column| &column.name).collect();
            // Of what inherits columns not all may be known.
            let known = !table.columns.is_empty() && !self.inherits.contains_key(&index);
            table.mismatch = known && table.has_data && !table.inserts && !table.copied.iter().eq(rows);
        }
        self.found
    }

    /// Gives each table the columns that its CREATE TABLE left to its parents. A dump lists parents before children, but
    /// that is not relied upon: a table waits until its parents are done, and a circle, which is no real dump, stays undone.
    fn inherit(&mut self) {
        let mut waiting: Vec<usize> = self.inherits.keys().copied().collect();
        waiting.sort_unstable();
        loop {
            let before = waiting.len();
            let open: std::collections::HashSet<_> =
                waiting.iter().map(|index| self.found[*index].name.clone()).collect();
            let (ready, not_yet): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|index| !self.inherits[index].iter().any(|parent| open.contains(parent)));
            for index in ready {
                let mut columns: Vec<Column> = Vec::new();
                for parent in &self.inherits[&index] {
                    let of_table = self.by_name.get(parent).map(|parent| &self.found[*parent].columns);
                    for column in of_table.or_else(|| self.types.get(parent)).into_iter().flatten() {
                        if !columns.iter().any(|known| known.name == column.name) {
                            columns.push(column.clone());
                        }
                    }
                }
                self.merge(index, columns);
            }
            if not_yet.is_empty() || not_yet.len() == before {
                return;
            }
            waiting = not_yet;
        }
    }

    /// Puts inherited columns before a table's own; what it says itself of one of them is added to it.
    fn merge(&mut self, index: usize, mut columns: Vec<Column>) {
        for own in std::mem::take(&mut self.found[index].columns) {
            match columns.iter_mut().find(|column| column.name == own.name) {
                Some(column) => {
                    column.not_null |= own.not_null;
                    column.generated |= own.generated;
                    if !own.type_sql.is_empty() && !own.type_sql.eq_ignore_ascii_case("options") {
                        column.type_sql = own.type_sql;
                    }
                }
                None => columns.push(own),
            }
        }
        self.found[index].columns = columns;
    }
}
