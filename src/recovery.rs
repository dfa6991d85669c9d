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

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::error::Result;
use flows::Next;
use journal::{Entry, Journal};
use record::{Fact, Finding, Look, Record};

/// What kind of recovery it is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "flow", rename_all = "snake_case")]
pub enum Flow {
    /// Bring rows of some tables back; see [`flows::rows`].
    Rows,
    /// Take back what an earlier recovery wrote; see [`flows::undo`].
    Undo {
        /// The earlier recovery's id.
        recovery: String,
    },
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
    record: Record,
}

impl Recovery {
    /// Starts a recovery: makes its folder beneath the state folder and opens its journal.
    pub fn start(flow: Flow, system: &str, state: &std::path::Path) -> Result<Self> {
        let started = Utc::now();
        let id = journal::new_id(started);
        let mut journal = Journal::create(&state.join("recoveries").join(&id))?;
        journal.write(Entry::Started {
            recovery: id.clone(),
            flow: flow.clone(),
            system: system.into(),
            operator: journal::operator(),
        })?;
        Ok(Self { id, flow, started, journal, record: Record::default() })
    }

    /// Compares data-loss windows with what the system's owner tolerates.
    #[must_use]
    pub fn with_rpo(mut self, rpo: Option<Duration>) -> Self {
        self.record.rpo = rpo;
        self
    }

    /// What comes next. Pure; asking twice changes nothing.
    pub fn next(&self) -> Next {
        match &self.flow {
            Flow::Rows => flows::rows::next(&self.record),
            Flow::Undo { recovery } => flows::undo::next(recovery, &self.record),
        }
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
        while self.record.rows().is_some() {
            self.back()?;
        }
        self.record.forget_diffs();
        Ok(())
    }

    /// Where the journal lies and the report is written.
    pub fn folder(&self) -> PathBuf {
        self.journal.folder().to_owned()
    }
}
