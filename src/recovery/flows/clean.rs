//! Recoveries leave things in production: a staging schema when one was killed, pre-images on purpose. Those that nobody
//! needs any more are removed, after consent.

use serde::{Deserialize, Serialize};

use super::{Next, Refusal};
use crate::postgres::stage::{Leftover, LeftoverKind};
use crate::recovery::plan::{Plan, Step};
use crate::recovery::record::{Finding, Look, Record};
use crate::text;

/// What is kept, whatever is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// Pre-images that are not older than this, in seconds.
    pub undo_seconds: u64,
    /// Recoveries of this machine that are under way or were left in the middle: they need what they staged.
    pub open: Vec<String>,
}

/// What comes next.
pub fn next(keep: &Keep, record: &Record) -> Next {
    let Some(Finding::Leftovers(found)) = record.finding(&Look::Leftovers) else { return Next::Look(Look::Leftovers) };
    let (kept, leftovers): (Vec<_>, Vec<_>) =
        found.iter().cloned().partition(|leftover| kept(keep, leftover).is_some());
    if leftovers.is_empty() {
        let told = |leftover: &Leftover| Some(format!("{}: {}.", leftover.schema, self::kept(keep, leftover)?));
        let mut hints: Vec<_> = kept.iter().filter_map(told).collect();
        if hints.is_empty() {
            hints.push("This database holds nothing of Lifeboat's; nothing has to be done.".into());
        }
        return Next::Refuse(Refusal { why: "no recovery has left anything that could be removed".into(), hints });
    }
    Next::Ready(Plan { steps: vec![Step::RemoveLeftovers { leftovers }] })
}

/// Why something stays; `None`: nobody needs it any more.
pub fn kept(keep: &Keep, leftover: &Leftover) -> Option<String> {
    let Some(mark) = &leftover.mark else {
        return Some("its name is like ours, but it does not carry our mark; it is not touched".into());
    };
    if leftover.in_use {
        return Some(format!("recovery {} is connected", mark.lifeboat));
    }
    match (leftover.kind, leftover.age_seconds) {
        (LeftoverKind::Staging | LeftoverKind::RestoredDatabase, _) if keep.open.contains(&mark.lifeboat) => {
            Some(format!(
                "its recovery is under way, or was left in the middle: lifeboat resume {} settles it first",
                mark.lifeboat
            ))
        }
        (LeftoverKind::Staging | LeftoverKind::RestoredDatabase, _) => None,
        (_, Some(age)) if age >= keep.undo_seconds => None,
        _ => Some(format!(
            "with it recovery {} can be undone; it is kept for {}",
            mark.lifeboat,
            text::duration(std::time::Duration::from_secs(keep.undo_seconds))
        )),
    }
}

/// Why something exists, for the list before consent.
pub fn reason(leftover: &Leftover) -> String {
    let kind = match leftover.kind {
        LeftoverKind::Staging => "rows of a backup, staged by a recovery that did not clean up",
        LeftoverKind::Undo => "what a merge has overwritten, kept so that it can be undone",
        LeftoverKind::RestoredDatabase => "a database that was restored and not put in production's place",
        LeftoverKind::EarlierDatabase => {
            "the database that was in production's place before, kept so that it can go back"
        }
    };
    let of = leftover.mark.as_ref().map_or_else(String::new, |mark| {
        let age = leftover.age_seconds.map(|age| text::duration(std::time::Duration::from_secs(age)));
        let age = age.map_or_else(String::new, |age| format!(" {age} ago"));
        format!("; made{age} by {} from {}", mark.by, mark.host)
    });
    format!("{}, {kind}{of}", text::bytes(leftover.bytes))
}
