//! The flows: what is asked, what is looked at, and when a plan is ready. Each is one pure function over a
//! [`Record`](super::record::Record), read from top to bottom, run again from the top after every answer.

pub mod rows;
pub mod undo;

use super::plan::Plan;
use super::record::{Fact, Look, Point, TableState};
use crate::postgres::diff::TableDiff;
use crate::postgres::name::Name;

/// What a flow wants next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    Ask(Question),
    Look(Look),
    Ready(Plan),
    Refuse(Refusal),
}

/// A question to the operator: what, why, and how it can be answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    pub title: String,
    /// Why it is asked and what hangs on it.
    pub why: String,
    pub answers: Answers,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Answers {
    /// One of a few; each carries the fact it would add.
    One(Vec<Choice>),
    /// When it happened, typed; [`rows::parse_incident`] reads it.
    Time,
    /// One recovery point; ranked, newest before the incident proposed.
    Point(Vec<RankedPoint>),
    /// Some tables.
    Tables(Vec<TableState>),
    /// The columns that pair rows of a table that has no key.
    Key { table: Name, columns: Vec<String> },
    /// Which differing rows to write.
    Rows(Vec<TableDiff>),
}

/// One way to answer, with what it leads to.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub label: String,
    /// Cost in time, rows lost, whether it can be undone: one line each.
    pub consequences: Vec<String>,
    pub fact: Fact,
    pub recommended: bool,
    /// Why it cannot be chosen.
    pub unavailable: Option<String>,
}

/// A recovery point beside the incident.
#[derive(Debug, Clone, PartialEq)]
pub struct RankedPoint {
    pub point: Point,
    pub place: Place,
}

/// Where a recovery point stands to the incident time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The newest one before the incident. `loss`: the data-loss window.
    Proposed {
        loss: std::time::Duration,
    },
    Before {
        loss: std::time::Duration,
    },
    /// Made after the incident: the damage is in it.
    After,
    /// Looked into: nothing in it that this flow could use.
    NoDump,
    /// No incident time was given.
    Unranked,
}

/// Why the flow cannot go on, and what to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub why: String,
    pub hints: Vec<String>,
}
