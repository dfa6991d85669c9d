//! The flows: what is asked, what is looked at, and when a plan is ready. Each is one pure function over a
//! [`Record`](super::record::Record), read from top to bottom, run again from the top after every answer.

pub mod clean;
pub mod database;
pub mod files;
pub mod point_in_time;
pub mod rows;
pub mod undo;

use super::plan::Plan;
use super::record::{Cloned, Fact, Look, Moments, Point, TableState};
use crate::postgres::diff::TableDiff;
use crate::postgres::name::Name;

/// What a flow wants next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// The operator has to decide something.
    Ask(Question),
    /// Something has to be known first; [`super::systems`] looks.
    Look(Look),
    /// Everything is decided and known; consent comes next.
    Ready(Plan),
    /// There is no way on from here, only back.
    Refuse(Refusal),
}

/// A question to the operator: what, why, and how it can be answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// A question that fits on a line.
    pub title: String,
    /// Why it is asked and what hangs on it.
    pub why: String,
    /// What can be answered, and nothing else can.
    pub answers: Answers,
}

/// The shape of an answer, with what there is to choose from.
#[derive(Debug, Clone, PartialEq)]
pub enum Answers {
    /// One of a few; each carries the fact it would add.
    One(Vec<Choice>),
    /// When it happened, typed; [`rows::parse_incident`] reads it.
    Time,
    /// One recovery point; ranked, newest before the incident proposed.
    Point(Vec<RankedPoint>),
    /// A moment: the one before a transaction, or typed; [`point_in_time::parse_aim`] reads it.
    Moment(Box<Moments>),
    /// What a cluster as of a moment is for. It can be looked into before: that is no answer.
    Use {
        /// The one that stands.
        clone: Box<Cloned>,
        /// Each carries the fact it would add; one of a kind that was given before takes that one's place.
        choices: Vec<Choice>,
    },
    /// Some tables.
    Tables(Vec<TableState>),
    /// The columns that pair rows of a table that has no key.
    Key {
        /// The only one of the choice that has none.
        table: Name,
        /// Those that the backup has rows of; naming none compares without a key.
        columns: Vec<String>,
    },
    /// Which differing rows to write.
    Rows(Vec<TableDiff>),
    /// Files and folders of a recovery point, marked while it is browsed.
    Files {
        /// The chosen one.
        point: Point,
    },
    /// The whole path of a folder that is not there yet, typed.
    Folder {
        /// What an empty line means.
        proposed: String,
    },
}

/// One way to answer, with what it leads to.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// A few words to choose it by.
    pub label: String,
    /// Cost in time, rows lost, whether it can be undone: one line each.
    pub consequences: Vec<String>,
    /// What choosing it adds to the record.
    pub fact: Fact,
    /// What the flow would choose; true for one choice of a question at most.
    pub recommended: bool,
    /// Why it cannot be chosen.
    pub unavailable: Option<String>,
}

/// A recovery point beside the incident.
#[derive(Debug, Clone, PartialEq)]
pub struct RankedPoint {
    /// As it was found.
    pub point: Point,
    /// What the incident time makes of it.
    pub place: Place,
}

/// Where a recovery point stands to the incident time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The newest one before the incident. `loss`: the data-loss window.
    Proposed {
        /// From the point to the incident: what was written then is not in the backup.
        loss: std::time::Duration,
    },
    /// Another one before the incident.
    Before {
        /// From the point to the incident: what was written then is not in the backup.
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
    /// A lowercase fragment, as an error's message.
    pub why: String,
    /// Whole sentences, each something that the operator can do.
    pub hints: Vec<String>,
}
