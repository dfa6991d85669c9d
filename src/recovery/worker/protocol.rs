//! What consoles and workers say to each other. Both are of one version: a worker that outlives an upgrade of the program is
//! finished with the console of its own version.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::catalog::Hits;
use crate::files::history::{Side, Story, Versions};
use crate::files::live::Beside;
use crate::files::look::{Compared, Inside};
use crate::postgres::cluster::Answer;
use crate::postgres::diff::{Filter, Page};
use crate::progress::Report;
use crate::recovery::Flow;
use crate::recovery::journal::Operator;
use crate::recovery::plan::Plan;
use crate::recovery::record::{Contents, Fact, Finding, Look, Record};
use crate::recovery::run::Settled;
use crate::recovery::systems::Beneath;

/// What a viewer asks for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// The first words of every viewer.
    Attach {
        /// Who looks on.
        operator: Operator,
    },
    /// Takes an answer into the record; in the place of one of its kind, with all that was answered after that.
    Answer {
        /// The answer.
        fact: Fact,
        /// The version of the record that was on screen.
        seen: u64,
    },
    /// Takes the last answer back.
    Back {
        /// The version of the record that was on screen.
        seen: u64,
    },
    /// Compares again with production as it is now.
    Refresh {
        /// The version of the record that was on screen.
        seen: u64,
    },
    /// Tries again what failed.
    Retry {
        /// The version of the record that was on screen.
        seen: u64,
    },
    /// Runs the plan that was shown.
    Consent {
        /// As it was typed.
        typed: String,
        /// The plan's hash.
        shown: String,
    },
    /// Stops the look or the plan at its next safe point, and the asker's query at once.
    Cancel,
    /// Asks the cluster that stands at a moment; answered to the asker only.
    Query {
        /// As it was typed.
        sql: String,
    },
    /// What lies inside a recovery point; answered to the asker only.
    Inside {
        /// Its full id.
        point: String,
    },
    /// Rows of the diff; answered to the asker only.
    Page {
        /// The table's place among the compared ones.
        table: usize,
        /// Which rows are wanted.
        filter: Filter,
        /// 0 is the beginning.
        after: i64,
        /// At most so many rows.
        limit: u32,
    },
    /// How many rows of the diff match; answered to the asker only.
    Count {
        /// The table's place among the compared ones.
        table: usize,
        /// Which rows are counted.
        filter: Filter,
    },
    /// Something of a snapshot's files; answered to the asker only.
    Files(FilesAsked),
    /// Takes so many answers back and gives these instead: goes on in another snapshot, or in a dump that lies in this one.
    Instead {
        /// So many, from the last.
        back: usize,
        /// In this order.
        facts: Vec<Fact>,
        /// The version of the record that was on screen.
        seen: u64,
    },
    /// Ends the recovery: what runs is cancelled, what was staged is removed.
    End,
}

/// What a worker tells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// Everything that is known, to a viewer that has just come.
    Attached(Box<View>),
    /// The record has changed, or the stage, or both.
    Moved {
        /// In order.
        changes: Vec<Change>,
        /// Where the recovery stands now.
        stage: Stage,
        /// Of the record, from now on.
        version: u64,
    },
    /// The latest state of the look or the step that is under way.
    Report(Report),
    /// So many steps of the running plan are done.
    Ended(usize),
    /// So many consoles look on.
    Viewers(usize),
    /// What lies inside a recovery point; the error is its message.
    Inside(String, Result<Contents, String>),
    /// Rows of the diff, as they were asked for.
    Paged {
        /// The table's place among the compared ones.
        table: usize,
        /// The one that was asked with.
        filter: Filter,
        /// The row number after which the page begins.
        after: i64,
        /// Errors: a condition that the server does not take, or whatever else it says.
        page: Result<Page>,
    },
    /// How many rows of the diff match.
    Counted {
        /// The table's place among the compared ones.
        table: usize,
        /// The one that was asked with.
        filter: Filter,
        /// Errors: as of a page.
        rows: Result<u64>,
    },
    /// What the cluster that stands at a moment gave, and what it was asked.
    Answered {
        /// As it was typed.
        sql: String,
        /// Errors: in the server's words.
        answer: Result<Answer>,
    },
    /// Something of a snapshot's files, and what was asked.
    Files(FilesAsked, Result<FilesTold>),
    /// How far the work for that is.
    FilesReport(FilesAsked, Report),
    /// What was asked for was not done, and why: a line for the operator.
    Refused(String),
    /// The recovery has been left, and its worker ends.
    Gone,
}

/// What a viewer that browses a snapshot wants to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilesAsked {
    /// What is in a folder, beside what is here now.
    Folder {
        /// The snapshot's full id.
        point: String,
        /// From the root of the snapshot.
        path: String,
    },
    /// Which of some paths a snapshot does not hold.
    Absent {
        /// The snapshot's full id.
        point: String,
        /// From the root of the snapshot.
        paths: Vec<String>,
    },
    /// What lies beneath each folder of a folder.
    Beneath {
        /// The snapshot's full id.
        point: String,
        /// From the root of the snapshot.
        path: String,
    },
    /// The best matches of what was typed.
    Search {
        /// The snapshot's full id; `None`: every snapshot is searched.
        point: Option<String>,
        /// As [`Query::parse`](crate::files::catalog::Query::parse) reads it.
        typed: String,
    },
    /// The contents that a path has had.
    Versions {
        /// From the root of the snapshots.
        path: String,
    },
    /// How two contents of a path compare.
    Compare {
        /// From the root of the snapshots.
        path: String,
        /// The earlier one.
        from: Side,
        /// The later one.
        to: Side,
    },
    /// What became of a folder and everything beneath it.
    Changes {
        /// The snapshot's full id.
        point: String,
        /// From the root of the snapshot.
        path: String,
        /// With what it is compared.
        against: Side,
    },
    /// A part of a file.
    Inside {
        /// The snapshot's full id.
        point: String,
        /// From the root of the snapshot.
        path: String,
        /// Where the part begins.
        offset: u64,
    },
}

/// What it saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilesTold {
    /// Of a folder: its first rows, and how many there are.
    Folder(Vec<Beside>, u64),
    /// Those of the paths.
    Absent(Vec<String>),
    /// Of the folders in a folder, by name.
    Beneath(BTreeMap<String, Beneath>),
    /// Of a search; through every snapshot, with the newest that holds each.
    Search(Hits, Vec<String>),
    /// Of a path.
    Versions(Versions),
    /// Of two contents.
    Compared(Compared),
    /// Of a folder and everything beneath it.
    Changes(Story),
    /// Of a file.
    Inside(Inside),
}

/// How a record changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Change {
    /// An answer was given.
    Answered(Fact),
    /// The last answer was taken back.
    WentBack,
    /// Something was found.
    Found(Look, Box<Finding>),
    /// What was compared no longer counts.
    ForgotDiffs,
}

impl Change {
    /// Makes the same change in a viewer's record.
    pub(super) fn apply(self, record: &mut Record) {
        match self {
            Self::Answered(fact) => record.answer(fact),
            Self::WentBack => _ = record.back(),
            Self::Found(look, finding) => record.found(look, *finding),
            Self::ForgotDiffs => record.forget_diffs(),
        }
    }
}

/// Where a recovery stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Stage {
    /// The flow knows what comes next: a question, a refusal, or a plan to consent to.
    Deciding,
    /// A plan that two people have to consent to has the consent of one.
    Seconding {
        /// Who has consented.
        first: Operator,
        /// Until when another one may; the consent is void then.
        until: DateTime<Utc>,
    },
    /// A look is under way.
    Looking,
    /// A confirmed plan is being done.
    Running {
        /// The confirmed one.
        plan: Box<Plan>,
        /// Steps that are done.
        ended: usize,
    },
    /// A look or a plan failed.
    Failed {
        /// Why.
        error: Error,
        /// As [`changed`](crate::recovery::report::changed).
        changed: String,
    },
    /// It came to its end; the report is in its folder.
    Done,
    /// It was taken over from a process that had ended, and brought to its end.
    Settled(Settled),
}

impl Stage {
    /// Who has consented, and what is missing, as a sentence for the plan's screen.
    pub fn first_consent(&self) -> Option<String> {
        let Self::Seconding { first, until } = self else { return None };
        Some(format!(
            "{} has consented. A second person consents with Enter, from another terminal (lifeboat attach), until {} UTC.",
            first.told(),
            until.format("%H:%M")
        ))
    }
}

/// Everything a viewer needs to show the same as every other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct View {
    /// The recovery's id.
    pub recovery: String,
    /// Which flow it follows.
    pub flow: Flow,
    /// What is known.
    pub record: Record,
    /// Counts the record's changes.
    pub version: u64,
    /// Where it stands.
    pub stage: Stage,
    /// The look or step that is under way, or was last.
    pub report: Report,
    /// Consoles that look on, this one among them.
    pub viewers: usize,
    /// Whether the recovery goes on without any console.
    pub detached: bool,
}
