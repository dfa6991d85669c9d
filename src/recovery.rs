//! One recovery from "something is lost" to "it is back, and here is the proof".
//!
//! ```text
//!   flows::rows::next(&Record) -> Ask | Look | Ready | Refuse      pure: no I/O, no clock
//!        ^                         |      |      |
//!        +------ answer, finding --+------+      consent -> Confirmed -> run -> journal, report
//! ```
//!
//! [`systems`] is the only door to anything outside: it looks, it executes steps, and nothing else does.

pub mod answers;
pub mod flows;
pub mod journal;
pub mod plan;
pub mod record;
pub mod report;
pub mod run;
pub mod systems;
pub mod worker;

use std::path::PathBuf;

use chrono::{DateTime, Utc};

use crate::config::System;
use crate::error::{Error, Result};
use flows::Next;
use journal::{Entry, Journal, Operator};
use record::{Fact, Finding, Look, Record};

/// What kind of recovery it is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "flow", rename_all = "snake_case")]
pub enum Flow {
    /// Bring rows of some tables back; see [`flows::rows`].
    Rows,
    /// Remove what other recoveries have left; see [`flows::clean`].
    Clean(flows::clean::Keep),
    /// Take back what an earlier recovery wrote; see [`flows::undo`].
    Undo {
        /// The earlier recovery's id.
        recovery: String,
    },
    /// Take back the files that an earlier recovery put in place; see [`flows::undo`].
    UndoFiles {
        /// The earlier recovery's id.
        recovery: String,
        /// As its journal has them.
        placed: Vec<crate::files::put::Placed>,
    },
    /// Move tables aside that an earlier recovery made again; see [`flows::undo`].
    UndoTables {
        /// The earlier recovery's id.
        recovery: String,
        /// As its journal has them.
        recreation: Box<crate::postgres::merge::Recreation>,
    },
    /// Give production's name back to the database that an earlier recovery exchanged for another; see [`flows::undo`].
    UndoDatabase {
        /// The earlier recovery's id.
        recovery: String,
        /// As its journal has it.
        exchange: Box<crate::postgres::database::Exchange>,
    },
}

impl Flow {
    /// What comes next by what is known. Pure; asking twice changes nothing.
    pub fn next(&self, record: &Record) -> Next {
        match self {
            Self::Rows => flows::rows::next(record),
            Self::Undo { recovery } => flows::undo::next(recovery, record),
            Self::UndoFiles { recovery, placed } => flows::undo::next_files(recovery, placed, record),
            Self::UndoDatabase { recovery, exchange } => flows::undo::next_database(recovery, exchange, record),
            Self::UndoTables { recovery, recreation } => flows::undo::next_tables(recovery, recreation),
            Self::Clean(keep) => flows::clean::next(keep, record),
        }
    }
}

/// Whether a recovery may have staged something in the database.
fn has_staged(lines: &[journal::Line]) -> bool {
    lines.iter().any(|line| matches!(line.entry, Entry::Answered { fact: Fact::Stage }))
}

/// Whether a recovery may have restored a whole database beside production.
fn has_restored(lines: &[journal::Line]) -> bool {
    lines.iter().any(|line| matches!(line.entry, Entry::Answered { fact: Fact::Restore }))
}

/// The folder of the cluster that a recovery laid out beside production, or may have.
pub fn laid_out(lines: &[journal::Line]) -> Option<&str> {
    lines.iter().rev().find_map(|line| match &line.entry {
        Entry::Answered { fact: Fact::LayOut(folder) } => Some(folder.as_str()),
        _ => None,
    })
}

/// The same, unless it is kept on purpose.
fn clone_of(lines: &[journal::Line]) -> Option<&str> {
    let kept =
        |line: &journal::Line| matches!(&line.entry, Entry::Applied { evidence: systems::Evidence::CloneKept(_), .. });
    if lines.iter().any(kept) { None } else { laid_out(lines) }
}

/// One attempt, with an id, a folder, a journal and a record of what is known.
#[derive(Debug)]
pub struct Recovery {
    /// As [`journal::new_id`] makes it; also part of the names of its schemas and the name of its folder.
    pub id: String,
    /// Decided at the start; it never changes.
    pub flow: Flow,
    /// By this machine's clock.
    pub started: DateTime<Utc>,
    /// Open to append: everything that is done is written here first.
    pub journal: Journal,
    /// Who is at the keyboard.
    pub operator: Operator,
    record: Record,
}

impl Recovery {
    /// Starts a recovery: makes its folder beneath the state folder and opens its journal.
    pub fn start(flow: Flow, system: &str, state: &std::path::Path, operator: Operator) -> Result<Self> {
        let started = Utc::now();
        let id = journal::new_id(started);
        let mut journal = Journal::create(&state.join("recoveries").join(&id))?;
        journal.write(Entry::Started {
            recovery: id.clone(),
            flow: flow.clone(),
            system: system.into(),
            operator: operator.clone().here(),
        })?;
        Ok(Self { id, flow, started, journal, operator, record: Record::default() })
    }

    /// Takes a recovery in hand whose process has ended, with what its journal says. Its answers are known again, what was
    /// found is not.
    ///
    /// Errors: as of [`Journal::open`]; a journal without a beginning.
    pub fn reopen(id: &str, state: &std::path::Path, operator: Operator) -> Result<(Self, Vec<journal::Line>)> {
        let (journal, lines) = Journal::open(&state.join("recoveries").join(id))?;
        let Some(journal::Line { at, entry: Entry::Started { recovery, flow, .. }, .. }) = lines.first() else {
            return Err(Error::operator(format!("the journal of recovery {id} has no beginning"))
                .hint("Its process died as it began; nothing was done. Remove its folder."));
        };
        let mut record = Record::default();
        for line in &lines {
            match &line.entry {
                Entry::Answered { fact } => record.answer(fact.clone()),
                Entry::WentBack => _ = record.back(),
                _ => {}
            }
        }
        Ok((Self { id: recovery.clone(), flow: flow.clone(), started: *at, journal, operator, record }, lines))
    }

    /// Goes on deciding where a process ended that had consented to nothing. An answer that speaks of rows of a comparison
    /// falls with the comparison.
    pub fn decide_again(&mut self) -> Result<()> {
        self.journal.write(Entry::Resumed { operator: self.operator.clone().here() })?;
        self.refresh()
    }

    /// Takes what the flows have to know of a system: what its owner tolerates, and whether there is WAL.
    #[must_use]
    pub fn of_system(mut self, system: &System) -> Self {
        self.record.rpo = system.rpo;
        self.record.wal = system.wal_archive.is_some() && !system.base_backups.is_empty();
        self
    }

    /// What comes next. Pure; asking twice changes nothing.
    pub fn next(&self) -> Next {
        self.flow.next(&self.record)
    }

    /// What is known so far; it changes by [`Recovery::answer`], [`Recovery::found`] and the ways back only.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Journals and takes an answer.
    pub fn answer(&mut self, fact: Fact) -> Result<()> {
        self.journal.write(Entry::Answered { fact: fact.clone() })?;
        self.record.answer(fact);
        Ok(())
    }

    /// Takes the last answer back. Returns whether there was one.
    pub fn back(&mut self) -> Result<bool> {
        if self.record.answers().is_empty() {
            return Ok(false);
        }
        self.journal.write(Entry::WentBack)?;
        Ok(self.record.back())
    }

    /// Takes a finding, and journals what it says when the recovery goes on from it.
    pub fn found(&mut self, look: Look, finding: Finding) -> Result<()> {
        if let Some((what, outcome)) = report::summary(&self.record, &look, &finding) {
            self.journal.write(Entry::Looked { what, outcome })?;
        }
        self.record.found(look, finding);
        Ok(())
    }

    /// Forgets the diff and everything after it, so that production is compared afresh.
    pub fn refresh(&mut self) -> Result<()> {
        while self.record.rows().is_some() || self.record.promotion().is_some() {
            self.back()?;
        }
        self.record.forget_diffs();
        Ok(())
    }

    /// Leaves a recovery that goes no further: what it staged is removed and its end is journaled. One in which nobody knows
    /// what became of a step, or whose scratch space cannot be removed now, stays as it is, so that it can be resumed.
    pub async fn leave(&mut self, systems: &systems::Systems) {
        let lines = journal::read(self.journal.folder());
        // A journal that was deleted under us tells nothing: something may have been staged.
        let staged = lines.as_deref().map_or(true, |lines| has_staged(lines) || has_restored(lines));
        let lines = lines.unwrap_or_default();
        if report::open(&lines).is_some_and(|(_, step)| step.effect() == plan::Effect::Live) {
            return;
        }
        // A disk or a server that fails may be why it is left, and there is nobody left to tell.
        let progress = crate::progress::Progress::default();
        if let Some(folder) = clone_of(&lines) {
            // What could not be removed is listed by `lifeboat status`.
            let drop = plan::Step::DropClone { folder: folder.to_owned() };
            let _ = systems.execute(&self.id, &drop, "", &progress).await;
        }
        let cleaned = !staged || systems.execute(&self.id, &plan::Step::DropScratch, "", &progress).await.is_ok();
        if cleaned && !journal::is_finished(&lines) {
            let failed = matches!(lines.last(), Some(journal::Line { entry: Entry::NotApplied { .. }, .. }));
            let outcome = if failed { journal::Outcome::Failed } else { journal::Outcome::Abandoned };
            if self.journal.write(Entry::Finished { outcome }).is_ok() && failed {
                let _ = report::write(self.journal.folder());
            }
        }
    }

    /// Where the journal lies and the report is written.
    pub fn folder(&self) -> PathBuf {
        self.journal.folder().to_owned()
    }
}
