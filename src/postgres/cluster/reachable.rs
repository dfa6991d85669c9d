//! What can be reached from a base backup, told without reading all of its WAL: where a window begins is in its first
//! segments, where it ends in its last ones.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Reach, Target, reach, stage};
use crate::backup::base::Base;
use crate::backup::wal::{Fork, Gap, Key, Lsn, Span, Wal, Window};
use crate::error::{Error, Result};
use crate::postgres::waldump::{Each, End, Record, Wanted, read};
use crate::progress::Progress;

/// So many segments at the end are searched for the last transaction; a server that does nothing writes them all the same.
const IDLE: usize = 64;
/// So many segments are unpacked at a time.
const AT_ONCE: usize = 16;

/// What can be reached from one base backup on one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reachable {
    /// Where the base backup is, as it is opened again.
    pub base: String,
    /// What `pg_basebackup --label` was given.
    pub label: String,
    /// The major version of the cluster.
    pub major: u32,
    /// The system identifier of the cluster.
    pub system: String,
    /// On which replay ends.
    pub timeline: u32,
    /// Where the base backup ended.
    pub from: Lsn,
    /// Where the last segment before a gap ends.
    pub to: Lsn,
    /// The first instant that can be reached; `None`: the WAL does not say.
    pub earliest: Option<DateTime<Utc>>,
    /// The last one; `None`: no transaction ended in the WAL after the backup.
    pub latest: Option<DateTime<Utc>>,
    /// What is missing after it.
    pub gaps: Vec<Gap>,
    /// Why nothing can be reached: the error's message and its first hint.
    pub refusal: Option<(String, String)>,
}

impl Reachable {
    /// Whether an instant lies in it, as far as is known.
    pub fn holds(&self, at: DateTime<Utc>) -> bool {
        self.refusal.is_none()
            && self.earliest.is_none_or(|earliest| earliest <= at)
            && self.latest.is_some_and(|latest| at <= latest)
    }
}

/// The windows of a base backup, and the timelines that left its own too early.
///
/// Errors: the archive is of another cluster.
pub fn windows(base: &Base, wal: &Wal) -> Result<(Vec<Window>, Vec<Fork>)> {
    let end = base.end(wal)?.unwrap_or(base.label.start);
    let span = Span { start: base.label.start, end, timeline: base.label.timeline };
    let own = base.own_wal.iter().filter_map(|file| crate::backup::wal::key(file, wal.segment_size));
    let has: BTreeSet<_> = wal.segments.keys().copied().chain(own).collect();
    Ok(crate::backup::wal::windows(span, &has, &wal.histories, wal.segment_size))
}

/// The windows that a target may be in.
pub fn chosen(base: &Base, wal: &Wal, timeline: Option<u32>) -> Result<Vec<Window>> {
    let (mut windows, forked) = windows(base, wal)?;
    if let Some(wanted) = timeline {
        windows.retain(|window| window.timeline == wanted);
        let early = forked.iter().find(|(timeline, _)| *timeline == wanted);
        if windows.is_empty() {
            let why = early.map_or_else(String::new, |(_, at)| format!(": it left at {at}, before the backup ended"));
            return Err(Error::refused(format!("timeline {wanted} cannot be reached from this base backup{why}"))
                .hint("Take a base backup that was made before the fork, or one of that timeline.")
                .hint("lifeboat windows shows which timelines can be reached."));
        }
    }
    if windows.iter().any(Window::is_open) {
        windows.retain(Window::is_open);
        return Ok(windows);
    }
    Err(closed(windows.first()))
}

fn closed(window: Option<&Window>) -> Error {
    let error = Error::refused("the WAL does not lead past the end of the base backup: nothing can be reached from it");
    match window.and_then(|window| window.gaps.first()) {
        Some(gap) => {
            error.hint(format!("WAL segment {} is missing: find it, also in pg_wal of production.", gap.first))
        }
        None => error.hint("Look for later segments, also in pg_wal of production."),
    }
}

/// A folder for links to segments; it goes when it is dropped.
fn scratch() -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("lifeboat-wal-").tempdir().map_err(|error| {
        Error::operator("cannot make a scratch folder")
            .detail(error)
            .hint("Make room in TMPDIR, or set it to another folder.")
    })
}

/// What can be reached from a base backup, timeline by timeline. What is wrong with one is told in its place.
pub fn reachable(given: &str, base: &Base, wal: &Wal, programs: &Path, progress: &Progress) -> Result<Vec<Reachable>> {
    let (windows, _) = windows(base, wal)?;
    let told = |window: &Window| {
        let ends =
            if window.is_open() { ends((base, wal, window), programs, progress) } else { Err(closed(Some(window))) };
        progress.check()?;
        Ok(Reachable {
            base: given.to_owned(),
            label: base.label.name.clone(),
            major: base.major,
            system: base.system.to_string(),
            timeline: window.timeline,
            from: window.from,
            to: window.to,
            earliest: ends.as_ref().ok().and_then(|ends| ends.earliest),
            latest: ends.as_ref().ok().and_then(|ends| ends.latest),
            gaps: window.gaps.clone(),
            refusal: ends.err().map(|error| {
                let hint = error.hints.first().cloned().unwrap_or_default();
                (error.message, hint)
            }),
        })
    };
    windows.iter().map(told).collect()
}

/// The ends of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ends {
    /// Where the base backup ended.
    pub end: Lsn,
    /// The first instant that can be reached; `None`: the WAL does not say.
    pub earliest: Option<DateTime<Utc>>,
    /// The last one; `None`: no transaction ended in the WAL after the backup.
    pub latest: Option<DateTime<Utc>>,
}

/// Finds the ends of a window that is open.
///
/// Errors: the WAL does not lead past the end of the base backup.
pub fn ends((base, wal, window): (&Base, &Wal, &Window), programs: &Path, progress: &Progress) -> Result<Ends> {
    // A target lies after the last transaction that ended while the backup was being made.
    let (mut earliest, mut end) = (base.label.started, base.end(wal)?);
    let all = (base.label.start, Wanted::All);
    read_along((base, wal), &window.segments, all, programs, progress, &mut |record| match record {
        Record::BackupEnd { lsn, start } if start == base.label.start => {
            end = Some(lsn);
            ControlFlow::Break(())
        }
        Record::End(record) if end.is_some_and(|end| record.lsn >= end) => ControlFlow::Break(()),
        Record::End(record) if record.committed => {
            earliest = earliest.max(Some(record.at));
            ControlFlow::Continue(())
        }
        _ => ControlFlow::Continue(()),
    })?;
    let end = end.ok_or_else(|| closed(Some(window)))?;
    for key in window.segments.iter().rev().take(IDLE) {
        let mut latest = None;
        ends_of((base, wal), *key, programs, progress, |found| {
            if found.lsn >= end {
                latest = latest.max(Some(found.at));
            }
            ControlFlow::Continue(())
        })?;
        if latest.is_some() {
            return Ok(Ends { end, earliest, latest });
        }
    }
    Ok(Ends { end, earliest, latest: None })
}

/// The one timeline on which a target is, and what was found there; of its segments those that replay needs.
///
/// Errors: it cannot be reached, or on several timelines.
pub fn locate(
    (base, wal, windows): (&Base, &Wal, &[Window]),
    target: (&Target, bool, Option<DateTime<Utc>>),
    programs: &Path,
    progress: &Progress,
) -> Result<(Window, Reach)> {
    let (mut found, mut failed) = (Vec::new(), None);
    for window in windows {
        match reach((base, wal, window), target, programs, Utc::now(), progress) {
            Ok(reach) => found.push((window, reach)),
            Err(error) => failed = Some(failed.unwrap_or(error)),
        }
    }
    match (found.len(), found.pop(), failed) {
        (1, Some((window, reach)), _) => {
            let size = u64::from(wal.segment_size);
            // One more, since a record may go on in it.
            let needed = window.segments.partition_point(|(_, number)| number * size <= reach.until.0) + 1;
            let segments = window.segments.iter().take(needed).copied().collect();
            Ok((Window { segments, gaps: window.gaps.clone(), ..*window }, reach))
        }
        (0, _, Some(error)) => Err(error),
        (_, last, _) => {
            let timelines = found.iter().chain(&last).map(|(window, _)| window.timeline.to_string());
            let timelines: Vec<_> = timelines.collect();
            Err(Error::refused(format!("the target can be reached on several timelines: {}", timelines.join(", ")))
                .hint("They are different pasts: say which one with --timeline, or as in \"14:00 on timeline 2\".")
                .hint(
                    "A new timeline begins where a standby was promoted or a recovery ended; .history files tell why.",
                ))
        }
    }
}

/// Reads segments of an archive, some at a time: no more room is needed than for those, where they have to be unpacked.
/// Returns how far it read, as [`read`].
pub fn read_along(
    (base, wal): (&Base, &Wal),
    segments: &[Key],
    (from, wanted): (Lsn, Wanted),
    programs: &Path,
    progress: &Progress,
    each: &mut Each,
) -> Result<Lsn> {
    let (mut reached, mut begin) = (from, from);
    for first in (0..segments.len()).step_by(AT_ONCE) {
        // One more, for a record that goes on in it; what begins there has been read then.
        let keys = &segments[first..segments.len().min(first + AT_ONCE + 1)];
        if first > 0 && keys.len() == 1 {
            break;
        }
        let (folder, mut ended) = (scratch()?, false);
        stage(base, wal, keys, folder.path(), progress)?;
        let place = (programs, folder.path());
        reached = read(place, (keys, wal.segment_size), (begin, wanted), progress, |record| {
            let flow = each(record);
            ended = flow.is_break();
            flow
        })?;
        if ended {
            break;
        }
        begin = Lsn(reached.0 + 1);
    }
    Ok(reached)
}

/// The ends of transactions in one segment; there may be none.
fn ends_of(
    (base, wal): (&Base, &Wal),
    key: Key,
    programs: &Path,
    progress: &Progress,
    mut each: impl FnMut(End) -> ControlFlow<()>,
) -> Result<()> {
    let from = base.label.start.max(Lsn(key.1 * u64::from(wal.segment_size)));
    let mut each = |record| if let Record::End(end) = record { each(end) } else { ControlFlow::Continue(()) };
    read_along((base, wal), &[key], (from, Wanted::Ends), programs, progress, &mut each).map(drop)
}

/// The segments of a window from an instant on, and one more, since a transaction may have begun earlier than it ended.
pub fn from_instant<'a>(
    window: (&Base, &Wal, &'a Window),
    at: DateTime<Utc>,
    programs: &Path,
    progress: &Progress,
) -> Result<&'a [Key]> {
    let first = first_from(window, at, programs, progress)?;
    Ok(&window.2.segments[first.saturating_sub(2)..])
}

/// The same up to another instant.
pub fn between_instants<'a>(
    window: (&Base, &Wal, &'a Window),
    (from, until): (DateTime<Utc>, DateTime<Utc>),
    programs: &Path,
    progress: &Progress,
) -> Result<&'a [Key]> {
    let segments = &window.2.segments;
    let first = first_from(window, from, programs, progress)?.saturating_sub(2);
    let last = first_from(window, until, programs, progress)?;
    Ok(&segments[first..segments.len().min(last + 1)])
}

/// The first segment in which no transaction ended before an instant, found by halving.
fn first_from(
    (base, wal, window): (&Base, &Wal, &Window),
    at: DateTime<Utc>,
    programs: &Path,
    progress: &Progress,
) -> Result<usize> {
    // The first end of a transaction in a segment, or in one of those that follow.
    let begins = |from: usize| -> Result<Option<DateTime<Utc>>> {
        for key in window.segments[from..].iter().take(IDLE) {
            let mut found = None;
            ends_of((base, wal), *key, programs, progress, |end| {
                found = Some(end.at);
                ControlFlow::Break(())
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    };
    let (mut low, mut high) = (0, window.segments.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        if begins(middle)?.is_some_and(|begins| begins < at) { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}
