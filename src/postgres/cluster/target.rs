//! Where replay is to stop: found in the WAL before anything is laid out, so that what cannot be reached is refused with what
//! can.
//!
//! PostgreSQL stops at the first end of a transaction that is later than a target in time; when there is none it gives up at
//! the end. So an instant is within reach from the last commit before the base backup ended up to the last end of a
//! transaction that the WAL holds.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::reachable::from_instant;
use super::{Ends, read_along};
use crate::backup::base::Base;
use crate::backup::wal::{Lsn, Wal, Window};
use crate::error::{Error, Result};
use crate::postgres::waldump::{End, Record, Wanted};
use crate::progress::Progress;

/// Records that are read past the target for the next commit: one that writes very much has not ended after them.
const FURTHER: u32 = 1_000_000;
/// Names of restore points that are kept for an error that lists them.
const NAMED: usize = 8;

/// What the operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// Everything that was committed up to this instant.
    Time(DateTime<Utc>),
    /// Up to and with the record at this position.
    Position(Lsn),
    /// Up to and with this transaction.
    Transaction(u32),
    /// What `pg_create_restore_point` was given.
    Named(String),
}

/// Where replay stops, in PostgreSQL's terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    target: Target,
    /// Just before it, instead of with it.
    before: bool,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.before { "just before" } else { "after" };
        match &self.target {
            Target::Time(at) if self.before => write!(f, "just before {}", shown(*at)),
            Target::Time(at) => write!(f, "at {}", shown(*at)),
            Target::Position(lsn) => write!(f, "{how} the record at {lsn}"),
            Target::Transaction(xid) => write!(f, "{how} transaction {xid}"),
            Target::Named(name) => write!(f, "at restore point \"{name}\""),
        }
    }
}

impl Stop {
    /// Lines of postgresql.conf.
    pub(super) fn settings(&self) -> String {
        let (name, value) = match &self.target {
            Target::Time(at) => ("recovery_target_time", at.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()),
            Target::Position(lsn) => ("recovery_target_lsn", lsn.to_string()),
            Target::Transaction(xid) => ("recovery_target_xid", xid.to_string()),
            Target::Named(name) => ("recovery_target_name", name.replace('\\', "\\\\").replace('\'', "''")),
        };
        let inclusive = if self.before { "off" } else { "on" };
        format!("{name} = '{value}'\nrecovery_target_inclusive = {inclusive}\n")
    }

    /// What the server writes to its log when it stops there.
    pub(super) fn log_words(&self) -> String {
        let how = if self.before { "before" } else { "after" };
        match &self.target {
            // The first end of a transaction that is too late is what it stops before.
            Target::Time(_) => "recovery stopping before ".to_owned(),
            Target::Position(lsn) => format!("recovery stopping {how} WAL location (LSN) \"{lsn}\""),
            Target::Transaction(xid) => format!("recovery stopping {how} commit of transaction {xid},"),
            Target::Named(name) => format!("recovery stopping at restore point \"{name}\""),
        }
    }
}

/// A transaction that was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Its number.
    pub xid: u32,
    /// When, by the server's clock.
    pub at: DateTime<Utc>,
    /// Where its commit is.
    pub lsn: Lsn,
}

impl Commit {
    fn of(end: &End) -> Option<Self> {
        end.committed.then_some(Self { xid: end.xid, at: end.at, lsn: end.lsn })
    }
}

/// What can be reached from a base backup on one timeline, and where the target is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reach {
    /// Where the base backup ended.
    pub end: Lsn,
    /// The first instant that can be reached; `None`: the WAL does not say when the backup was made.
    pub earliest: Option<DateTime<Utc>>,
    /// The last one; `None`: no transaction ended after the backup.
    pub latest: Option<DateTime<Utc>>,
    /// Of the transaction that ended last before the target, when one was asked for.
    pub before: Option<DateTime<Utc>>,
    /// Of the transaction that ends replay: everything from it on is left out.
    pub after: Option<DateTime<Utc>>,
    /// The last commit before the target that can also be stopped before; one step earlier.
    pub earlier: Option<Commit>,
    /// The first commit that is left out; with it, one step later. `None`: there is none, or it is far.
    pub later: Option<Commit>,
    /// Where replay stops.
    pub stop: Stop,
    /// The record at which it stops: no WAL after that is needed.
    pub until: Lsn,
}

/// What the WAL was searched for.
#[derive(Default, Clone)]
struct Found {
    /// When the backup began, or the last commit before it ended: nothing earlier can be reached.
    inside: Option<DateTime<Utc>>,
    /// The last end of a transaction that was looked at.
    last: Option<End>,
    /// The end of a transaction that is later than a target in time.
    later: Option<End>,
    transaction: Option<End>,
    named: Option<Lsn>,
    /// The last commit before the target.
    committed: Option<Commit>,
    /// The first one after it.
    next: Option<Commit>,
    /// The target was found; so many records are still looked at for the next commit.
    beyond: Option<u32>,
    names: Vec<String>,
    end: Option<Lsn>,
    /// The last [`Record::Overwritten`].
    overwritten: Option<Lsn>,
    /// Databases that are being dropped: by transactions that have not ended yet, and from where on they cannot be used.
    drops: Vec<(u32, Lsn)>,
}

/// Looks in the WAL for where the target is.
///
/// `near`: when the target is known to be about; then not all of the WAL is read.
///
/// Errors: the target cannot be reached; hints name the nearest instants on both sides that can.
pub fn reach(
    (base, wal, window): (&Base, &Wal, &Window),
    (target, before, near): (&Target, bool, Option<DateTime<Utc>>),
    programs: &Path,
    now: DateTime<Utc>,
    progress: &Progress,
) -> Result<Reach> {
    if let Target::Time(at) = target
        && *at > now
    {
        return Err(Error::operator(format!("{} lies in the future", shown(*at)))
            .hint("Check the zone: write it with the time, as in 2026-01-15T14:00:00+01:00."));
    }
    let near = if let Target::Time(at) = target { Some(*at) } else { near };
    let (found, reached) = match near {
        None => search((base, wal, window), (target, before), programs, progress)?,
        Some(at) => match search_near((base, wal, window), (target, before, at), programs, progress)? {
            (found, reached) if found.later.is_some() || found.transaction.is_some() => (found, reached),
            _ => search((base, wal, window), (target, before), programs, progress)?,
        },
    };
    let Some(end) = found.end.filter(|end| reached >= Lsn(end.0.saturating_sub(1 << 13))) else {
        return Err(Error::refused(
            "the WAL ends before the base backup ended, so that nothing can be reached from it",
        )
        .hint(gap_hint(window)));
    };
    let latest = found.last.as_ref().or(found.later.as_ref()).map(|end| end.at);
    let ends = Ends { end, earliest: found.inside, latest: found.later.as_ref().map(|later| later.at).or(latest) };
    let stop = match target {
        Target::Time(at) => found.time(*at, before, &ends, window)?,
        Target::Position(lsn) if *lsn < end || *lsn > reached => {
            return Err(unreachable(&format!("position {lsn}"), &ends, window)
                .hint(format!("Positions from {end} to {reached} can be reached.")));
        }
        Target::Transaction(xid) => match &found.transaction {
            Some(end) if end.committed => Stop { target: target.clone(), before },
            Some(end) => {
                return Err(Error::refused(format!("transaction {xid} was rolled back, at {}", shown(end.at)))
                    .hint("It changed nothing: give a time or another transaction."));
            }
            None => return Err(unreachable(&format!("transaction {xid}"), &ends, window)),
        },
        Target::Named(name) if found.named.is_none() => {
            let names = if found.names.is_empty() { "none".into() } else { found.names.join(", ") };
            return Err(unreachable(&format!("restore point \"{name}\""), &ends, window)
                .hint(format!("Restore points that can be reached: {names}.")));
        }
        Target::Position(_) | Target::Named(_) => Stop { target: target.clone(), before },
    };
    let until = match target {
        Target::Position(lsn) => Some(*lsn),
        Target::Named(_) => found.named,
        Target::Transaction(_) => found.transaction.as_ref().map(|end| end.lsn),
        Target::Time(_) => found.later.as_ref().or(found.last.as_ref()).map(|end| end.lsn),
    };
    let reach = Reach {
        end,
        earliest: ends.earliest,
        latest: ends.latest,
        before: found.last.map(|end| end.at),
        after: found.later.map(|end| end.at),
        earlier: found.committed,
        later: found.next,
        stop,
        until: until.unwrap_or(reached),
    };
    // A database is made invalid, and its files go, before the transaction that drops it ends: to have it, replay stops before.
    let dropped = found.drops.iter().map(|(_, lsn)| *lsn).filter(|lsn| *lsn >= end).min();
    match (dropped, &reach.stop.target) {
        (Some(lsn), Target::Time(_) | Target::Transaction(_))
            if reach.stop.before || matches!(reach.stop.target, Target::Time(_)) =>
        {
            // Whoever committed since then is left out too, and is no neighbour.
            let earlier = reach.earlier.filter(|commit| commit.lsn < lsn);
            let stop = Stop { target: Target::Position(lsn), before: true };
            Ok(Reach { stop, earlier, later: None, ..reach })
        }
        _ => Ok(reach),
    }
}

/// Reads all of the WAL up to the target. Returns how far it read.
fn search(
    (base, wal, window): (&Base, &Wal, &Window),
    (target, before): (&Target, bool),
    programs: &Path,
    progress: &Progress,
) -> Result<(Found, Lsn)> {
    let mut found = Found { end: base.end(wal)?, inside: base.label.started, ..Found::default() };
    let all = (base.label.start, Wanted::All);
    let reached = read_along((base, wal), &window.segments, all, programs, progress, &mut |record| {
        found.take(record, base.label.start, target, before)
    })?;
    Ok((found, reached))
}

/// Reads the WAL up to the end of the base backup, and about an instant.
fn search_near(
    (base, wal, window): (&Base, &Wal, &Window),
    (target, before, near): (&Target, bool, DateTime<Utc>),
    programs: &Path,
    progress: &Progress,
) -> Result<(Found, Lsn)> {
    let mut found = Found { end: base.end(wal)?, inside: base.label.started, ..Found::default() };
    let all = (base.label.start, Wanted::All);
    let mut reached = read_along((base, wal), &window.segments, all, programs, progress, &mut |record| {
        let ends = matches!(&record, Record::BackupEnd { start, .. } if *start == base.label.start);
        match found.take(record, base.label.start, target, before) {
            ControlFlow::Continue(()) if ends => ControlFlow::Break(()),
            flow => flow,
        }
    })?;
    if found.end.is_some() && found.later.is_none() && found.transaction.is_none() {
        let segments = from_instant((base, wal, window), near, programs, progress)?;
        let size = u64::from(wal.segment_size);
        let from = segments.first().map_or(reached, |(_, number)| Lsn(number * size)).max(base.label.start);
        let before_it = found.clone();
        let ends = (from, Wanted::Ends);
        reached = read_along((base, wal), segments, ends, programs, progress, &mut |record| {
            found.take(record, base.label.start, target, before)
        })?;
        let Some(at) = found.transaction.as_ref().or(found.later.as_ref()).map(|end| end.lsn) else {
            return Ok((found, reached));
        };
        // Where a database is dropped on the way, more than ends of transactions has to be known.
        let on_the_way = &segments[..segments.partition_point(|(_, number)| number * size <= at.0)];
        let mut dropped = false;
        read_along((base, wal), on_the_way, (from, Wanted::Databases), programs, progress, &mut |record| {
            dropped |= matches!(record, Record::DatabaseDrop { .. });
            if dropped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if dropped {
            found = before_it;
            reached = read_along((base, wal), segments, (from, Wanted::All), programs, progress, &mut |record| {
                found.take(record, base.label.start, target, before)
            })?;
        }
    }
    Ok((found, reached))
}

impl Found {
    /// Goes on past the target until the next commit is known.
    fn take(&mut self, record: Record, start: Lsn, target: &Target, before: bool) -> ControlFlow<()> {
        if let Some(left) = self.beyond {
            self.beyond = Some(left.saturating_sub(1));
            if let Record::End(end) = record {
                self.next = Commit::of(&end);
                self.later.get_or_insert(end);
            }
        } else if self.take_before(record, start, target, before).is_break() {
            self.beyond = Some(FURTHER);
            self.next = self.later.as_ref().and_then(Commit::of);
        }
        let ends = self.beyond == Some(0) || self.next.is_some();
        if ends { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn take_before(&mut self, record: Record, start: Lsn, target: &Target, before: bool) -> ControlFlow<()> {
        if let Record::End(end) = &record {
            let stops = match target {
                Target::Time(at) => end.at > *at || before && end.at == *at,
                Target::Transaction(xid) => before && end.xid == *xid,
                _ => false,
            };
            if !stops {
                self.drops.retain(|(xid, _)| *xid != end.xid);
            }
        }
        match record {
            Record::Overwritten { lsn } => self.overwritten = Some(lsn),
            Record::DatabaseDrop { lsn, xid } => self.drops.push((xid, self.overwritten.unwrap_or(lsn))),
            Record::BackupEnd { lsn, start: of } if of == start && self.end.is_none() => self.end = Some(lsn),
            Record::End(end) if self.end.is_none_or(|backup| end.lsn < backup) => {
                if end.committed {
                    self.inside = self.inside.max(Some(end.at));
                }
            }
            Record::End(end) => {
                match target {
                    // A target that is too early is refused, with how far one could go: the search goes on.
                    Target::Time(at)
                        if self.inside.is_none_or(|earliest| earliest <= *at)
                            && (end.at > *at || before && end.at == *at) =>
                    {
                        self.later = Some(end);
                        return ControlFlow::Break(());
                    }
                    Target::Transaction(xid) if end.xid == *xid => {
                        self.transaction = Some(end.clone());
                        if !before {
                            self.committed = Commit::of(&end);
                        }
                        *(if before { &mut self.later } else { &mut self.last }) = Some(end);
                        return ControlFlow::Break(());
                    }
                    Target::Position(lsn) if end.lsn > *lsn || before && end.lsn == *lsn => {
                        self.later = Some(end);
                        return ControlFlow::Break(());
                    }
                    Target::Time(_) | Target::Transaction(_) | Target::Position(_) | Target::Named(_) => {}
                }
                self.committed = Commit::of(&end).or(self.committed);
                self.last = Some(end);
            }
            Record::RestorePoint { lsn, name } if self.end.is_some_and(|backup| lsn >= backup) => {
                if matches!(target, Target::Named(wanted) if *wanted == name) {
                    self.named = Some(lsn);
                    return ControlFlow::Break(());
                }
                if self.names.len() < NAMED {
                    self.names.push(format!("\"{name}\""));
                }
            }
            Record::BackupEnd { .. } | Record::RestorePoint { .. } | Record::Rows { .. } => {}
        }
        ControlFlow::Continue(())
    }

    fn time(&self, at: DateTime<Utc>, before: bool, reach: &Ends, window: &Window) -> Result<Stop> {
        let wanted = Target::Time(at);
        if reach.earliest.is_some_and(|earliest| at < earliest) {
            return Err(outside(&shown(at), reach, window)
                .hint("It lies before the end of this base backup: an older base backup is needed."));
        }
        match (&self.later, &self.last) {
            (Some(_), _) => Ok(Stop { target: wanted, before }),
            // PostgreSQL would look for a later one and give up; everything up to this record is the same state.
            (None, Some(last)) if last.at == at && !before => {
                Ok(Stop { target: Target::Position(last.lsn), before: false })
            }
            (None, _) => Err(unreachable(&shown(at), reach, window)),
        }
    }
}

/// An instant as it is shown everywhere here, with its zone.
fn shown(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S%.6f UTC").to_string()
}

fn gap_hint(window: &Window) -> String {
    match window.gaps.first() {
        Some(gap) if gap.first == gap.last => format!("WAL segment {} is missing: find it.", gap.first),
        Some(gap) => format!("{} WAL segments are missing, {} to {}: find them.", gap.segments, gap.first, gap.last),
        None => "The WAL ends there: look for later segments, also in pg_wal of production.".into(),
    }
}

fn unreachable(what: &str, reach: &Ends, window: &Window) -> Error {
    outside(what, reach, window).hint(gap_hint(window))
}

/// The refusal of a target, with the nearest instants on both sides.
fn outside(what: &str, reach: &Ends, window: &Window) -> Error {
    let error = Error::refused(format!("{what} cannot be reached on timeline {}", window.timeline));
    match (reach.earliest.or(reach.latest), reach.latest) {
        (Some(earliest), Some(latest)) => error.hint(format!(
            "The nearest instants that can be reached: not before {}, not after {}.",
            shown(earliest),
            shown(latest)
        )),
        (_, _) => error.hint("No transaction ended in the WAL after this base backup."),
    }
}
