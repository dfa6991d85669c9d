//! Chains of incremental base backups, as PostgreSQL 17 and newer make them: `pg_basebackup --incremental` writes what has
//! changed since an earlier base backup, and is worth nothing without that one, and without those that it rests on itself.
//!
//! `backup_label` says on which one: `INCREMENTAL FROM LSN` is where that one begins, and no two begin at the same place.

use super::base::{Base, Found, all, trees};
use super::wal::Lsn;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// What an incremental base backup rests on.
#[derive(Clone)]
pub struct Chain {
    /// What is there of it, the nearest first; when nothing is missing, the last is a full base backup.
    pub ancestors: Vec<Base>,
    /// On which timeline the base backup that is missing begins, and where.
    pub missing: Option<(u32, Lsn)>,
    /// When something is missing: the newest earlier base backup that can still be used.
    pub usable: Option<Box<Base>>,
    /// Base backups that were looked at and cannot be used, and why.
    pub unusable: Vec<String>,
}

impl Chain {
    /// What is wrong with the chain; `None`: nothing is missing.
    pub fn broken(&self, of: &Base) -> Option<Error> {
        let (timeline, start) = self.missing?;
        let shown = of.place.shown();
        let mut error = Error::refused(format!(
            "the backup chain of {shown} is broken: the base backup that begins at {start} on timeline {timeline} is missing"
        ))
        .hint(format!(
            "Look for its folder, whose backup_label has \"START WAL LOCATION: {start}\": it has to be beside {shown}."
        ));
        for unusable in &self.unusable {
            error = error.hint(unusable.clone());
        }
        Some(error)
    }
}

impl Base {
    /// What an incremental base backup rests on, looked for in the folders beside it; in a snapshot, beside it in the same one.
    /// `None`: it is a full one. Tars are looked into only when trees do not lead to a full one: they have to be read whole.
    pub fn chain(&self, progress: &Progress) -> Result<Option<Chain>> {
        let Some(first) = self.label.incremental_from else { return Ok(None) };
        let beside = self.place.parent()?;
        let mut chain = self.chain_of(first, trees(&beside, progress)?);
        if chain.missing.is_some() {
            chain = self.chain_of(first, all(&beside, progress)?);
        }
        Ok(Some(chain))
    }

    /// Whether it needs no other, or all that it rests on are among these, beside it: then nothing has to be looked for.
    pub fn is_whole_among(&self, known: &[&Self]) -> Result<bool> {
        let Some(first) = self.label.incremental_from else { return Ok(true) };
        let beside = self.place.parent()?.shown();
        let mut there = Vec::new();
        for base in known.iter().filter(|base| base.system == self.system) {
            if base.place.parent()?.shown() == beside {
                there.push((*base).clone());
            }
        }
        Ok(follow(&there, first).1.is_none())
    }

    fn chain_of(&self, first: (u32, Lsn), found: Found) -> Chain {
        let (mut earlier, mut unusable) = (Vec::new(), Vec::new());
        for (shown, base) in found {
            match base {
                Ok(base) if base.system == self.system && base.label.start < self.label.start => earlier.push(base),
                Ok(_) => {}
                Err(error) => unusable.push(format!("{shown} cannot be used: {}", error.message)),
            }
        }
        let (ancestors, missing) = follow(&earlier, first);
        let whole = earlier
            .iter()
            .filter(|base| base.label.incremental_from.is_none_or(|from| follow(&earlier, from).1.is_none()));
        let usable = missing.and_then(|_| whole.max_by_key(|base| base.label.start)).cloned().map(Box::new);
        Chain { ancestors, missing, usable, unusable }
    }
}

/// What leads from a base backup to a full one, the nearest first, and what is missing on the way.
fn follow(there: &[Base], first: (u32, Lsn)) -> (Vec<Base>, Option<(u32, Lsn)>) {
    let (mut found, mut wanted): (Vec<Base>, _) = (Vec::new(), Some(first));
    while let Some((timeline, start)) = wanted {
        // Each begins before the one that rests on it, so this comes to an end whatever the labels say.
        let fits = |base: &&Base| {
            (base.label.timeline, base.label.start) == (timeline, start)
                && found.last().is_none_or(|last| start < last.label.start)
        };
        let Some(base) = there.iter().find(fits) else { return (found, wanted) };
        wanted = base.label.incremental_from;
        found.push(base.clone());
    }
    (found, None)
}
