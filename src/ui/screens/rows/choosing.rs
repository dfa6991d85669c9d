//! What the operator wants written to one table: the choice while it is being made, what it would touch, and the exact
//! [`Choice`] that the merge gets. Pure; nothing here draws.
//!
//! A choice is either a *rule* (classes, transactions, columns, a condition, less the rows left out) or a list of *picked*
//! rows. One [`Choice`] cannot hold a rule plus some rows, so neither can this.

use std::collections::{BTreeMap, BTreeSet};

use super::story;
use crate::postgres::diff::{Class, ColumnCount, Filter, Row, TableDiff, TransactionCount};
use crate::postgres::merge::Choice;

/// A transaction's column that differs in fewer of its rows than one in this many is left out of the proposal: those rows
/// were most likely edited by honest work before the damage, and the damage only came on top.
pub const RARE: u64 = 20;

/// With more parts than this a choice is not counted while it is made; the freeze counts it before consent.
const COUNTED_PARTS: usize = 24;

/// Which changed rows are set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    None,
    /// Those last written by the marked transactions.
    Marked,
    All,
}

/// Whether something is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    Off,
    On,
}

impl Switch {
    pub fn flipped(self) -> Self {
        match self {
            Self::Off => Self::On,
            Self::On => Self::Off,
        }
    }
}

/// The columns of changed rows that are put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Columns {
    /// What the marked transactions touched, less rare ones; else all that differ.
    Proposed,
    These(BTreeSet<String>),
}

/// Whether a row will be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    No,
    Yes,
    IfConditionHolds,
}

/// What has to be remembered of a row that was left out or picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    pub class: Class,
    pub xid: Option<u32>,
}

impl Known {
    pub fn of(row: &Row) -> Self {
        Self { class: row.class, xid: row.xid }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choosing {
    pub missing: Switch,
    pub changed: Changed,
    pub deletes: Switch,
    pub marked: BTreeSet<u32>,
    pub columns: Columns,
    pub condition: Option<String>,
    /// Rows of the rule that are left out, by number.
    pub left_out: BTreeMap<i64, Known>,
    /// `Some`: only these rows, by number; the rule is not used.
    pub picked: Option<BTreeMap<i64, Known>>,
}

/// A number of rows, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    Exactly(u64),
    AtMost(u64),
    /// Being counted.
    Open,
}

impl Amount {
    fn add(self, other: Self) -> Self {
        match (self, other) {
            (Self::Open, _) | (_, Self::Open) => Self::Open,
            (Self::Exactly(a), Self::Exactly(b)) => Self::Exactly(a + b),
            (Self::Exactly(a) | Self::AtMost(a), Self::Exactly(b) | Self::AtMost(b)) => Self::AtMost(a + b),
        }
    }

    pub fn is_none(self) -> bool {
        self == Self::Exactly(0)
    }
}

/// What would be written to one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    pub missing: Amount,
    pub changed: Amount,
    pub deletes: Amount,
    /// Columns of changed rows that would be written.
    pub columns: usize,
}

impl Sum {
    pub fn is_none(&self) -> bool {
        self.missing.is_none() && self.changed.is_none() && self.deletes.is_none()
    }
}

/// Answers to counts asked for one table.
#[derive(Debug, Default)]
pub struct Counts(Vec<(Filter, u64)>);

impl Counts {
    pub fn know(&mut self, filter: &Filter, rows: u64) {
        self.0.retain(|(known, _)| known != filter);
        self.0.push((filter.clone(), rows));
    }

    /// From what was counted, or from the diff itself where that says it.
    pub fn get(&self, diff: &TableDiff, filter: &Filter) -> Option<u64> {
        let counted = self.0.iter().find(|(known, _)| known == filter).map(|(_, rows)| *rows);
        counted.or_else(|| counted_by_diff(diff, filter))
    }
}

/// The counts that a diff carries.
fn counted_by_diff(diff: &TableDiff, filter: &Filter) -> Option<u64> {
    let Filter { class, column, transaction, condition: None } = filter else { return None };
    match (class, column, transaction) {
        (None, None, None) => Some(diff.missing + diff.changed + diff.extra),
        (Some(class), None, None) => Some(match class {
            Class::Missing => diff.missing,
            Class::Changed => diff.changed,
            Class::Extra => diff.extra,
        }),
        (None | Some(Class::Changed), Some(column), None) => {
            diff.by_column.iter().find(|count| count.column == *column).map(|count| count.rows)
        }
        (class, None, Some(xid)) => {
            diff.by_transaction.iter().find(|count| count.xid == *xid).map(|count| match class {
                None => count.changed + count.extra,
                Some(Class::Missing) => 0,
                Some(Class::Changed) => count.changed,
                Some(Class::Extra) => count.extra,
            })
        }
        _ => None,
    }
}

impl Choosing {
    /// What is proposed: missing rows come back; changed rows only where one transaction stands out, in this table or in
    /// another one; nothing is deleted.
    pub fn proposed(diff: &TableDiff, culprits: &BTreeSet<u32>) -> Self {
        let marked: BTreeSet<u32> = diff
            .by_transaction
            .iter()
            .filter(|count| count.changed > 0 && culprits.contains(&count.xid))
            .map(|count| count.xid)
            .collect();
        Self {
            missing: Switch::On,
            changed: if marked.is_empty() { Changed::None } else { Changed::Marked },
            marked,
            ..Self::nothing()
        }
    }

    /// Nothing is written.
    pub fn nothing() -> Self {
        Self {
            missing: Switch::Off,
            changed: Changed::None,
            deletes: Switch::Off,
            marked: BTreeSet::new(),
            columns: Columns::Proposed,
            condition: None,
            left_out: BTreeMap::new(),
            picked: None,
        }
    }

    /// None, only the marked transactions (when some are marked), all.
    pub fn cycle_changed(&mut self) {
        self.changed = match self.changed {
            Changed::None if self.marked.is_empty() => Changed::All,
            Changed::None => Changed::Marked,
            Changed::Marked => Changed::All,
            Changed::All => Changed::None,
        };
    }

    /// Marks or unmarks transactions: all of them are marked unless all were.
    pub fn mark_transactions(&mut self, xids: &[u32]) {
        if xids.iter().all(|xid| self.marked.contains(xid)) {
            self.marked.retain(|xid| !xids.contains(xid));
        } else {
            self.marked.extend(xids);
        }
        self.changed = if self.marked.is_empty() { Changed::None } else { Changed::Marked };
    }

    pub fn mark_column(&mut self, diff: &TableDiff, counts: &Counts, column: &str) {
        let mut columns = self.columns(diff, counts);
        if !columns.remove(column) {
            columns.insert(column.to_owned());
        }
        self.columns = Columns::These(columns);
    }

    fn marked_counts<'a>(&'a self, diff: &'a TableDiff) -> impl Iterator<Item = &'a TransactionCount> {
        diff.by_transaction.iter().filter(|count| self.marked.contains(&count.xid))
    }

    /// The columns of changed rows that are put back.
    pub fn columns(&self, diff: &TableDiff, counts: &Counts) -> BTreeSet<String> {
        match &self.columns {
            Columns::These(columns) => columns.clone(),
            Columns::Proposed if self.changed == Changed::Marked && self.picked.is_none() => self
                .marked_counts(diff)
                .flat_map(|count| count.columns.iter().filter(|column| !is_rare(diff, counts, count, column)))
                .cloned()
                .collect(),
            Columns::Proposed => diff.by_column.iter().map(|count| count.column.clone()).collect(),
        }
    }

    /// Columns that the proposal leaves out, with how many rows of which transaction they differ in.
    pub fn rare(&self, diff: &TableDiff, counts: &Counts) -> Vec<(ColumnCount, u32)> {
        if self.columns != Columns::Proposed || self.changed != Changed::Marked || self.picked.is_some() {
            return Vec::new();
        }
        let proposed = self.columns(diff, counts);
        let mut rare: Vec<(ColumnCount, u32)> = Vec::new();
        for count in self.marked_counts(diff) {
            for column in count.columns.iter().filter(|column| !proposed.contains(*column)) {
                if let Some(rows) = counts.get(diff, &column_filter(count.xid, column)) {
                    rare.push((ColumnCount { column: column.clone(), rows }, count.xid));
                }
            }
        }
        rare
    }

    /// Whether the rule or the list covers this row.
    pub fn covers(&self, row: &Row) -> bool {
        match &self.picked {
            Some(picked) => picked.contains_key(&row.number),
            None => self.rule_covers(Known::of(row)) && !self.left_out.contains_key(&row.number),
        }
    }

    /// Whether this row will be written, as far as it can be told here: the server decides about a condition, unless only
    /// rows that meet it are listed.
    pub fn writes(&self, diff: &TableDiff, counts: &Counts, row: &Row, listed: Option<&str>) -> Written {
        let columns = self.columns(diff, counts);
        let name = |index: &usize| diff.pairs.get(*index).is_some_and(|pair| columns.contains(&pair.column));
        let differs = row.class != Class::Changed || row.changed.iter().any(name);
        if !self.covers(row) || !differs {
            Written::No
        } else if self.picked.is_none() && self.condition.is_some() && self.condition.as_deref() != listed {
            Written::IfConditionHolds
        } else {
            Written::Yes
        }
    }

    /// Whether the rule covers such a row; a condition is not looked at.
    pub fn rule_covers(&self, known: Known) -> bool {
        let by_marked = known.xid.is_some_and(|xid| self.marked.contains(&xid));
        match known.class {
            Class::Missing => self.missing == Switch::On,
            Class::Changed => match self.changed {
                Changed::None => false,
                Changed::Marked => by_marked,
                Changed::All => true,
            },
            Class::Extra => self.deletes == Switch::On && (self.changed != Changed::Marked || by_marked),
        }
    }

    /// What the merge gets; `None` when nothing of this table is to be written.
    pub fn choice(&self, diff: &TableDiff, counts: &Counts) -> Option<Choice> {
        diff.key.as_ref()?;
        let columns = self.columns(diff, counts);
        let mut classes = match &self.picked {
            Some(picked) => picked.values().map(|known| known.class).collect(),
            None => self.classes(diff),
        };
        if columns.is_empty() {
            classes.remove(&Class::Changed);
        }
        if classes.is_empty() {
            return None;
        }
        let every = diff.by_column.iter().all(|count| columns.contains(&count.column));
        let columns = (!every && classes.contains(&Class::Changed)).then(|| columns.into_iter().collect());
        Some(match &self.picked {
            Some(picked) => Choice {
                table: diff.table.clone(),
                classes,
                columns,
                transactions: None,
                condition: None,
                only: Some(picked.keys().copied().collect()),
                except: BTreeSet::new(),
            },
            None => Choice {
                table: diff.table.clone(),
                classes,
                columns,
                transactions: (self.changed == Changed::Marked).then(|| self.marked.iter().copied().collect()),
                condition: self.condition.clone(),
                only: None,
                except: self
                    .left_out
                    .iter()
                    .filter(|(_, known)| self.rule_covers(**known))
                    .map(|(number, _)| *number)
                    .collect(),
            },
        })
    }

    /// The classes that the rule writes, of those that there are.
    fn classes(&self, diff: &TableDiff) -> BTreeSet<Class> {
        let mut classes = BTreeSet::new();
        if self.missing == Switch::On && diff.missing > 0 {
            classes.insert(Class::Missing);
        }
        if self.changed != Changed::None && diff.changed > 0 {
            classes.insert(Class::Changed);
        }
        if self.deletes == Switch::On && diff.extra > 0 {
            classes.insert(Class::Extra);
        }
        classes
    }

    /// How many rows would be written, as far as it is known.
    pub fn sum(&self, diff: &TableDiff, counts: &Counts) -> Sum {
        let columns = self.columns(diff, counts);
        let none = Amount::Exactly(0);
        let Some(choice) = self.choice(diff, counts) else {
            return Sum { missing: none, changed: none, deletes: none, columns: 0 };
        };
        let amount = |class| {
            if !choice.classes.contains(&class) {
                return none;
            }
            if let Some(picked) = &self.picked {
                let rows = picked.values().filter(|known| known.class == class).count() as u64;
                // A picked changed row may differ in none of the marked columns.
                return if class == Class::Changed && choice.columns.is_some() {
                    Amount::AtMost(rows)
                } else {
                    Amount::Exactly(rows)
                };
            }
            self.amount(diff, counts, class, &columns)
        };
        let changed = amount(Class::Changed);
        Sum {
            missing: amount(Class::Missing),
            changed,
            deletes: amount(Class::Extra),
            columns: if changed.is_none() { 0 } else { columns.len() },
        }
    }

    fn amount(&self, diff: &TableDiff, counts: &Counts, class: Class, columns: &BTreeSet<String>) -> Amount {
        let parts = self.parts(diff, class);
        let countable = parts.len() <= COUNTED_PARTS;
        let whole = parts.iter().fold(Amount::Exactly(0), |sum, part| {
            sum.add(match counts.get(diff, part) {
                Some(rows) if class == Class::Changed => narrowed(diff, counts, part, rows, columns),
                Some(rows) => Amount::Exactly(rows),
                None if countable => Amount::Open,
                None => Amount::AtMost(counts.get(diff, &Filter { condition: None, ..part.clone() }).unwrap_or(0)),
            })
        });
        let left_out =
            self.left_out.values().filter(|known| known.class == class && self.rule_covers(**known)).count() as u64;
        match whole {
            // Whether a row that was left out meets the condition or the columns is not known here.
            Amount::Exactly(rows) if left_out > 0 && self.condition.is_some() => Amount::AtMost(rows),
            Amount::Exactly(rows) => Amount::Exactly(rows.saturating_sub(left_out)),
            other => other,
        }
    }

    /// The filters whose rows together are the rule's rows of one class.
    fn parts(&self, diff: &TableDiff, class: Class) -> Vec<Filter> {
        let part =
            |transaction| Filter { class: Some(class), column: None, transaction, condition: self.condition.clone() };
        if class == Class::Missing || self.changed != Changed::Marked {
            return vec![part(None)];
        }
        let has_some = |count: &&TransactionCount| match class {
            Class::Extra => count.extra > 0,
            Class::Missing | Class::Changed => count.changed > 0,
        };
        self.marked_counts(diff).filter(has_some).map(|count| part(Some(count.xid))).collect()
    }

    /// What should be counted so that the sum and the proposal are as exact as they can be.
    pub fn open_counts(&self, diff: &TableDiff, counts: &Counts) -> Vec<Filter> {
        if diff.key.is_none() || self.picked.is_some() {
            return Vec::new();
        }
        let mut wanted = Vec::new();
        if self.changed == Changed::Marked && self.columns == Columns::Proposed {
            for count in self.marked_counts(diff).filter(|count| story::is_big(count)).take(4) {
                let columns = count.columns.iter().take(COUNTED_PARTS);
                wanted.extend(columns.map(|column| column_filter(count.xid, column)));
            }
        }
        for class in self.classes(diff) {
            let parts = self.parts(diff, class);
            if parts.len() <= COUNTED_PARTS {
                wanted.extend(parts);
            }
        }
        wanted.retain(|filter| counts.get(diff, filter).is_none());
        wanted
    }
}

/// How many of some changed rows differ in one of these columns: at least as many as in the column that differs most, at
/// most all of them.
fn narrowed(diff: &TableDiff, counts: &Counts, part: &Filter, rows: u64, columns: &BTreeSet<String>) -> Amount {
    let theirs = part.transaction.and_then(|xid| diff.by_transaction.iter().find(|count| count.xid == xid));
    let covered = match theirs {
        Some(count) => count.columns.iter().all(|column| columns.contains(column)),
        None => diff.by_column.iter().all(|count| columns.contains(&count.column)),
    };
    let in_column =
        |column: &String| counts.get(diff, &Filter { column: Some(column.clone()), ..part.clone() }).unwrap_or(0);
    if covered || columns.iter().any(|column| in_column(column) == rows) {
        Amount::Exactly(rows)
    } else {
        Amount::AtMost(rows)
    }
}

fn is_rare(diff: &TableDiff, counts: &Counts, count: &TransactionCount, column: &str) -> bool {
    story::is_big(count)
        && counts.get(diff, &column_filter(count.xid, column)).is_some_and(|rows| rows * RARE < count.changed)
}

fn column_filter(xid: u32, column: &str) -> Filter {
    Filter { class: Some(Class::Changed), column: Some(column.into()), transaction: Some(xid), condition: None }
}
