//! What is known in a recovery: the operator's answers, in order, and what was found by looking.
//!
//! Answers are facts, one of each kind. Going back drops the last answer and everything after it, so a stale one cannot
//! exist. Findings are kept by the exact look that produced them, so an answer given again finds its finding again.

use std::time::Duration;

use chrono::{DateTime, FixedOffset, Utc};
use serde::{Deserialize, Serialize};

use crate::postgres::archive;
use crate::postgres::diff::{Pair, TableDiff};
use crate::postgres::merge::{ChangeSet, Choice, Triggers, Undo};
use crate::postgres::name::Name;
use crate::postgres::schema::Live;

/// Something the operator decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fact", content = "value", rename_all = "snake_case")]
pub enum Fact {
    /// When it went wrong, as far as the operator knows.
    Incident(Incident),
    /// The id of the chosen recovery point.
    Point(String),
    Scope(Scope),
    /// The path of the chosen dump inside the recovery point.
    Dump(String),
    Tables(Vec<Name>),
    /// How rows of a table without a key are paired.
    Keys(Vec<NamedKey>),
    /// Loading the rows beside production was agreed to.
    Stage,
    /// Which rows are to be written.
    Rows(Vec<Choice>),
    Triggers(Triggers),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Incident {
    At(DateTime<Utc>),
    Unknown,
}

/// What is to come back: the four branches of the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    System,
    Tables,
    Files,
    Moment,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedKey {
    pub table: Name,
    /// Empty: compare as a multiset, merge nothing.
    pub columns: Vec<String>,
}

/// Something to look at outside. A look reads, or writes only in scratch space named after the recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "look", content = "of", rename_all = "snake_case")]
pub enum Look {
    /// All recovery points of the system.
    Points,
    /// What lies inside one recovery point.
    Contents { point: String },
    /// The tables of one dump beside the live ones.
    Tables { point: String, dump: String },
    /// Stage the tables and compare them with production.
    Diff { point: String, dump: String, tables: Vec<Name>, keys: Vec<NamedKey> },
    /// Freeze the chosen rows and find everything that writing them would meet.
    Freeze { rows: Vec<Choice>, triggers: Triggers },
    /// What an earlier recovery wrote and can still be taken back.
    Undo { recovery: String },
}

/// What a look found.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    Points(Vec<Point>),
    Contents(Contents),
    Tables(Tables),
    Diff(Vec<TableDiff>),
    Frozen(ChangeSet),
    Undo(Undo),
}

/// A moment that can be brought back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Point {
    /// The snapshot's full id.
    pub id: String,
    /// Which repository it is in, without secrets.
    pub repository: String,
    pub instant: DateTime<FixedOffset>,
    pub host: String,
    pub paths: Vec<String>,
    pub tags: Vec<String>,
}

impl Point {
    /// The first eight characters of the id, as restic shows it.
    pub fn short(&self) -> &str {
        self.id.get(..8).unwrap_or(&self.id)
    }
}

/// What lies inside a recovery point, found by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contents {
    pub dumps: Vec<Dump>,
    /// Other files, and whether all were counted or only the first ones.
    pub files: u64,
    pub bytes: u64,
    pub complete: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dump {
    pub path: String,
    pub size_bytes: u64,
    pub header: archive::Header,
    /// Tables with data in it; `None` when it could not be read, with the reason in `damage`.
    pub tables: Option<u64>,
    pub damage: Option<String>,
}

/// The tables of a dump, beside production.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tables {
    pub server: ServerFacts,
    pub tables: Vec<TableState>,
}

/// Which server this is, by its own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFacts {
    pub shown: String,
    pub database: String,
    pub version: String,
    pub system_identifier: String,
    /// Why nothing can be written there: a standby, a read-only database, no right to create a schema.
    pub refusal: Option<String>,
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableState {
    pub backup: archive::Table,
    /// Rows in the backup, estimated from its first bytes, or counted when those were all.
    pub backup_rows: Option<archive::Estimate>,
    /// `None`: the table was dropped from production.
    pub live: Option<Live>,
    pub pairs: Vec<Pair>,
}

impl TableState {
    pub fn state(&self) -> State {
        use crate::postgres::diff::Drift;
        match &self.live {
            None => State::Dropped,
            Some(_) if self.pairs.iter().all(|pair| matches!(pair.drift, Drift::Same | Drift::Generated)) => {
                State::Unchanged
            }
            Some(_) => State::Drifted,
        }
    }
}

/// How the live table's definition stands to the backup's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Unchanged,
    Drifted,
    Dropped,
}

/// Answers in order, and findings.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// The longest data-loss window that the system's owner tolerates.
    pub rpo: Option<Duration>,
    answers: Vec<Fact>,
    findings: Vec<(Look, Finding)>,
}

impl Record {
    pub fn answers(&self) -> &[Fact] {
        &self.answers
    }

    pub fn answer(&mut self, fact: Fact) {
        debug_assert!(
            self.answers.iter().all(|given| std::mem::discriminant(given) != std::mem::discriminant(&fact)),
            "one fact of a kind"
        );
        self.answers.push(fact);
    }

    /// Drops the last answer. Returns whether there was one.
    pub fn back(&mut self) -> bool {
        self.answers.pop().is_some()
    }

    pub fn found(&mut self, look: Look, finding: Finding) {
        self.forget(&look);
        self.findings.push((look, finding));
    }

    pub fn finding(&self, look: &Look) -> Option<&Finding> {
        self.findings.iter().find(|(made, _)| made == look).map(|(_, finding)| finding)
    }

    /// Drops a finding, so that it is looked up again.
    pub fn forget(&mut self, look: &Look) {
        self.findings.retain(|(made, _)| made != look);
    }

    /// Drops what was staged, compared and frozen.
    pub fn forget_diffs(&mut self) {
        self.findings.retain(|(made, _)| !matches!(made, Look::Diff { .. } | Look::Freeze { .. }));
    }

    pub fn incident(&self) -> Option<Incident> {
        self.answers.iter().find_map(|fact| if let Fact::Incident(incident) = fact { Some(*incident) } else { None })
    }

    pub fn point(&self) -> Option<&str> {
        self.answers.iter().find_map(|fact| if let Fact::Point(point) = fact { Some(point.as_str()) } else { None })
    }

    pub fn scope(&self) -> Option<Scope> {
        self.answers.iter().find_map(|fact| if let Fact::Scope(scope) = fact { Some(*scope) } else { None })
    }

    pub fn dump(&self) -> Option<&str> {
        self.answers.iter().find_map(|fact| if let Fact::Dump(dump) = fact { Some(dump.as_str()) } else { None })
    }

    pub fn tables(&self) -> Option<&[Name]> {
        self.answers.iter().find_map(|fact| if let Fact::Tables(tables) = fact { Some(&**tables) } else { None })
    }

    pub fn keys(&self) -> Option<&[NamedKey]> {
        self.answers.iter().find_map(|fact| if let Fact::Keys(keys) = fact { Some(&**keys) } else { None })
    }

    pub fn stage(&self) -> bool {
        self.answers.contains(&Fact::Stage)
    }

    pub fn rows(&self) -> Option<&[Choice]> {
        self.answers.iter().find_map(|fact| if let Fact::Rows(rows) = fact { Some(&**rows) } else { None })
    }

    pub fn triggers(&self) -> Option<Triggers> {
        self.answers.iter().find_map(|fact| if let Fact::Triggers(triggers) = fact { Some(*triggers) } else { None })
    }

    /// The points found, if they were looked for.
    pub fn points(&self) -> Option<&[Point]> {
        if let Some(Finding::Points(points)) = self.finding(&Look::Points) { Some(points) } else { None }
    }
}
