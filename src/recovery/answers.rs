//! A recovery without a screen: the same flow, answered from a file. The file is TOML:
//!
//! ```toml
//! incident = "2026-01-15T14:00:00Z"      # left out: not known
//! point = "1a2b3c4d"                     # left out: the newest before the incident
//! tables = ["public.registrations", "public.distributions"]
//! triggers = "skip"                      # or "fire"
//! consent = "public.registrations public.distributions"
//!
//! # or, instead of tables:
//! files = ["/srv/a.pdf", "/srv/plans"]
//! in_place = true                        # left out: beside, `into` a new folder
//! policy = "missing_and_marked"          # in place; left out: what is gone and what changed
//! own = "names"                          # left out: what the flow recommends
//!
//! # or, instead of tables and files:
//! database = "exchange"                  # the whole database takes production's place; or "keep": it stays beside
//! safety_backup = false                  # left out: production is backed up first
//! leave_writes = true                    # what is written to production meanwhile may stay behind
//!
//! # or a moment in time, with tables = [...], or database, or:
//! moment = "find"                        # the transaction after which most is gone; or "before xid 774", "14:00:03"
//! clone_tables = "dropped"               # all tables that production has no more
//! keep_clone = true                      # only the cluster as of the moment
//!
//! [[rows]]
//! table = "public.registrations"
//! classes = ["missing", "changed"]
//! columns = ["status"]                   # left out: every column that differs
//! transactions = "largest"               # or [774, 775]; left out: any
//! condition = "live.status = 'closed'"   # left out: none
//! ```

use std::path::Path;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::flows::point_in_time::{heaviest, parse_aim};
use super::flows::rows::parse_incident;
use super::flows::{Answers, Place, Question};
use super::record::{Aim, Fact, Incident, Moments, NamedKey, Promotion, Record, Scope, Use, Where};
use crate::error::{Error, Result};
use crate::files::choice::Policy;
use crate::files::write::Own;
use crate::postgres::diff::{Class, TableDiff};
use crate::postgres::merge::{Choice, Triggers};
use crate::postgres::name::Name;
use crate::text::clean;

/// The answers file. A key that is not known is an error, so that a typing error cannot widen a recovery.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// As a person would type it ([`parse_incident`]); `None`: nobody knows.
    pub incident: Option<String>,
    /// The beginning of one id; `None`: the proposed point, or the only one.
    pub point: Option<String>,
    /// The dump's path in the point; `None` will do when there is only one.
    pub dump: Option<String>,
    /// At least one, each as [`Name::parse`] reads it, unless `files` are named.
    #[serde(default)]
    pub tables: Vec<String>,
    /// Files and folders of the recovery point, by their whole paths.
    #[serde(default)]
    pub files: Vec<String>,
    /// The new folder that files go into; `None`: the proposed one.
    pub into: Option<String>,
    /// Files go back where they were.
    #[serde(default)]
    pub in_place: bool,
    /// `None`: what is gone and what changed.
    pub policy: Option<Policy>,
    /// `None`: what the flow recommends.
    pub own: Option<Own>,
    /// In place: what the plan names and is left where it is, by whole paths.
    #[serde(default)]
    pub except: Vec<String>,
    /// The whole database comes back.
    pub database: Option<Promotion>,
    /// `None`: production is backed up before another database takes its place.
    pub safety_backup: Option<bool>,
    /// What is written to production while a whole database is restored may stay behind.
    #[serde(default)]
    pub leave_writes: bool,
    /// A moment in time comes back: `find`, or as [`parse_aim`] reads it.
    pub moment: Option<String>,
    /// Instead of naming tables: those that production has no more.
    pub clone_tables: Option<Lost>,
    /// The cluster as of the moment stays, and nothing else is done.
    #[serde(default)]
    pub keep_clone: bool,
    /// The columns that pair rows of a table without a key.
    #[serde(default)]
    pub key: Vec<String>,
    /// `None`: what the flow recommends.
    pub triggers: Option<Firing>,
    /// Tables without an entry get their missing rows only.
    #[serde(default)]
    pub rows: Vec<Rows>,
    /// What a person would type to consent.
    pub consent: Option<String>,
}

/// Words for tables of a clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lost {
    /// All that production has no more.
    Dropped,
}

/// The words for [`Triggers`].
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firing {
    /// `fire`: as [`Triggers::Fire`].
    Fire,
    /// `skip`: as [`Triggers::Skip`].
    Skip,
}

/// What to write to one table; a table without an entry gets its missing rows only.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    /// As [`Name::parse`] reads it; the last entry of a table counts.
    pub table: String,
    /// `missing` rows are inserted, `changed` updated, `extra` deleted; empty: nothing is written.
    pub classes: Vec<Class>,
    /// Changed rows: only these columns; `None`: every column that differs.
    pub columns: Option<Vec<String>>,
    /// Changed and extra rows: only those last written by these; `None`: by any.
    pub transactions: Option<Transactions>,
    /// SQL over `backup` and `live`; `None`: all rows.
    pub condition: Option<String>,
}

/// Transactions by number, or by a word.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Transactions {
    /// As the diff prints them (`xmin`).
    Ids(Vec<u32>),
    /// Found when the tables have been compared.
    Named(Largest),
}

/// The words that choose a transaction.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Largest {
    /// The transaction that last wrote most of the changed rows.
    Largest,
}

impl Script {
    /// Reads a script from its file. Errors: the file or what is in it, with the parser's words.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |error: &dyn std::fmt::Display| {
            Error::operator(format!("cannot use the answers file {}", path.display()))
                .detail(error)
                .hint("lifeboat recover --help shows what the file looks like.")
        };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
        Self::parse(&text).map_err(|error| wrong(&error.detail.unwrap_or(error.message)))
    }

    /// Reads a script from its text.
    pub fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| Error::operator("the answers cannot be read").detail(error))
    }

    /// What the script says to a question of the flow.
    ///
    /// Errors: it says nothing, or what cannot be chosen; the message names what is missing.
    pub fn answer(&self, question: &Question, record: &Record, now: DateTime<Utc>) -> Result<Fact> {
        match &question.answers {
            Answers::Time => match &self.incident {
                Some(text) => parse_incident(text, now),
                None => Ok(Fact::Incident(Incident::Unknown)),
            },
            Answers::Point(points) => self.point(points, record),
            Answers::One(choices) | Answers::Use { choices, .. } => self.choose(question, choices),
            Answers::Moment(moments) => self.moment(moments, now),
            Answers::Tables(found) if self.clone_tables == Some(Lost::Dropped) => {
                let lost = found.iter().filter(|table| table.live.is_none());
                let mut names: Vec<Name> = lost.map(|table| table.backup.name.clone()).collect();
                names.sort();
                if names.is_empty() {
                    return Err(Error::operator("production has all tables that the clone has")
                        .hint("Name the damaged ones instead: tables = [\"public.orders\"]."));
                }
                Ok(Fact::Tables(names))
            }
            Answers::Tables(found) => {
                let names = self.tables.iter().map(|text| Name::parse(text)).collect::<Result<Vec<_>>>()?;
                for name in &names {
                    if !found.iter().any(|table| table.backup.name == *name) {
                        return Err(Error::operator(format!("the dump holds no table {name}"))
                            .hint("lifeboat tables lists what it holds."));
                    }
                }
                if names.is_empty() {
                    return Err(
                        Error::operator("no table was named").hint("Name at least one: tables = [\"public.orders\"].")
                    );
                }
                Ok(Fact::Tables(names))
            }
            Answers::Key { table, .. } => {
                Ok(Fact::Keys(vec![NamedKey { table: table.clone(), columns: self.key.clone() }]))
            }
            Answers::Files { .. } => Ok(Fact::Files(self.files.clone())),
            Answers::Folder { proposed } => Ok(Fact::Folder(self.into.clone().unwrap_or_else(|| proposed.clone()))),
            Answers::Rows(diffs) => diffs.iter().map(|diff| self.rows_of(diff)).collect::<Result<_>>().map(Fact::Rows),
        }
    }

    fn moment(&self, moments: &Moments, now: DateTime<Utc>) -> Result<Fact> {
        match self.moment.as_deref() {
            Some("find") => heaviest(moments).map(|suspect| Fact::Aim(Aim::before(suspect.xid))).ok_or_else(|| {
                Error::refused("no transaction deleted, updated or dropped anything around the incident")
                    .hint("Name the moment: moment = \"2026-01-15T14:00:00Z\".")
            }),
            Some(text) => parse_aim(text, now).map(Fact::Aim),
            None => Err(Error::operator("no moment is named")
                .hint("moment = \"find\", or a moment as the console takes it: \"before xid 774\".")),
        }
    }

    fn point(&self, points: &[super::flows::RankedPoint], record: &Record) -> Result<Fact> {
        let chosen = match &self.point {
            Some(prefix) => {
                let mut matching = points.iter().filter(|ranked| ranked.point.id.starts_with(prefix.as_str()));
                match (matching.next(), matching.next()) {
                    (Some(ranked), None) => Some(ranked),
                    (Some(_), Some(_)) => {
                        return Err(Error::operator(format!(
                            "more than one recovery point begins with {}",
                            clean(prefix)
                        ))
                        .hint("Write more of its id."));
                    }
                    (None, _) => None,
                }
            }
            None => match points {
                // A dump on disk is the only one.
                [only] => Some(only),
                _ => points.iter().find(|ranked| matches!(ranked.place, Place::Proposed { .. })),
            },
        };
        let Some(chosen) = chosen else {
            let why = if record.incident() == Some(Incident::Unknown) && self.point.is_none() {
                "neither an incident time nor a recovery point is given"
            } else if self.point.is_some() {
                "there is no such recovery point"
            } else {
                "there is no recovery point before the incident"
            };
            return Err(Error::operator(why).hint("lifeboat points lists them; name one with point = \"ID\"."));
        };
        Ok(Fact::Point(chosen.point.id.clone()))
    }

    fn choose(&self, question: &Question, choices: &[super::flows::Choice]) -> Result<Fact> {
        let wanted = choices.iter().find(|choice| match &choice.fact {
            Fact::Scope(scope) => {
                let wanted = match (self.database, self.files.is_empty()) {
                    _ if self.moment.is_some() => Scope::Moment,
                    (Some(_), _) => Scope::System,
                    (None, true) => Scope::Tables,
                    (None, false) => Scope::Files,
                };
                *scope == wanted
            }
            Fact::Promotion(promotion) => self.database == Some(*promotion),
            Fact::Safety(safety) => self.safety_backup.unwrap_or(true) == *safety,
            Fact::LeaveWrites => self.leave_writes,
            Fact::Use(what) => {
                *what
                    == match (self.database, self.keep_clone) {
                        (_, true) => Use::Keep,
                        (Some(_), _) => Use::Whole,
                        (None, _) => Use::Tables,
                    }
            }
            Fact::Where(place) => *place == if self.in_place { Where::InPlace } else { Where::Beside },
            Fact::Policy(policy) => self.policy.map_or(choice.recommended, |wanted| wanted == *policy),
            Fact::Own(own) => self.own.map_or(choice.recommended, |wanted| wanted == *own),
            Fact::Dump(path) => self.dump.as_ref().map_or(choice.recommended, |wanted| wanted == path),
            Fact::Triggers(triggers) => match self.triggers {
                Some(Firing::Fire) => *triggers == Triggers::Fire,
                Some(Firing::Skip) => *triggers == Triggers::Skip,
                None => choice.recommended,
            },
            _ => choice.recommended,
        });
        let unanswered = || {
            let labels: Vec<_> = choices.iter().map(|choice| clean(&choice.label).into_owned()).collect();
            Error::operator(format!("the answers file does not answer \"{}\"", question.title))
                .hint(format!("The choices are: {}.", labels.join(", ")))
        };
        let choice = wanted.ok_or_else(unanswered)?;
        match &choice.unavailable {
            Some(why) => Err(Error::refused(format!("\"{}\" cannot be chosen: {why}", choice.label))),
            None => Ok(choice.fact.clone()),
        }
    }

    fn rows_of(&self, diff: &TableDiff) -> Result<Choice> {
        let mut entry = None;
        for rows in &self.rows {
            if Name::parse(&rows.table)? == diff.table {
                entry = Some(rows);
            }
        }
        let transactions = match entry.and_then(|rows| rows.transactions.as_ref()) {
            None => None,
            Some(Transactions::Ids(ids)) => Some(ids.clone()),
            Some(Transactions::Named(Largest::Largest)) => Some(
                diff.by_transaction
                    .iter()
                    .max_by_key(|transaction| transaction.changed)
                    .map(|most| most.xid)
                    .into_iter()
                    .collect(),
            ),
        };
        Ok(Choice {
            table: diff.table.clone(),
            classes: entry.map_or_else(|| [Class::Missing].into(), |rows| rows.classes.iter().copied().collect()),
            columns: entry.and_then(|rows| rows.columns.clone()),
            transactions,
            condition: entry.and_then(|rows| rows.condition.clone()),
            only: None,
            except: std::collections::BTreeSet::new(),
        })
    }
}
