//! Doing what was consented to: each step is journaled as an intent before it begins and with its outcome after it ends.
//! The first failure stops the run; nothing after it is attempted, and what was done before it stands in the journal.

use super::Recovery;
use super::journal::{Entry, Outcome};
use super::plan::{Confirmed, Step};
use super::report;
use super::systems::{Evidence, Systems};
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;

/// A step began, or ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepEvent {
    /// The step of that place in the plan, from 0; its intent is in the journal.
    Began(usize),
    /// The same step is done, and its evidence is in the journal.
    Ended(usize),
}

/// Runs a confirmed plan to its end or its first failure, and writes the report either way.
pub async fn run<S: Systems>(
    confirmed: &Confirmed,
    systems: &S,
    recovery: &mut Recovery,
    progress: &Progress,
    mut on_step: impl FnMut(StepEvent) + Send,
) -> Result<Vec<Evidence>> {
    let (plan, hash) = (confirmed.plan(), confirmed.hash());
    recovery.journal.reserve()?;
    recovery.journal.write(Entry::Consented { hash: hash.into(), typed: plan.phrase(), plan: plan.clone() })?;
    let mut all = Vec::new();
    for (number, step) in plan.steps.iter().enumerate() {
        recovery.journal.write(Entry::Intent { step: number, title: step.title(), hash: hash.into() })?;
        on_step(StepEvent::Began(number));
        let outcome = systems.execute(&recovery.id, step, hash, progress).await;
        match outcome.and_then(|evidence| kept(step, &evidence).map(|()| evidence)) {
            Ok(evidence) => {
                let applied = Entry::Applied { step: number, evidence: evidence.clone() };
                recovery.journal.write(applied).map_err(|error| {
                    error.hint(format!("This was done all the same, and stays done: {}.", step.title()))
                })?;
                on_step(StepEvent::Ended(number));
                all.push(evidence);
            }
            Err(error) => {
                let text = error.to_string();
                recovery.journal.write(if error.kind == Kind::Unresolved {
                    Entry::Unknown { step: number, error: text }
                } else {
                    Entry::NotApplied { step: number, error: text }
                })?;
                recovery.journal.write(Entry::Finished { outcome: Outcome::Failed })?;
                recovery.journal.release();
                report::write(recovery.journal.folder())?;
                return Err(error);
            }
        }
    }
    recovery.journal.write(Entry::Finished { outcome: Outcome::Recovered })?;
    recovery.journal.release();
    report::write(recovery.journal.folder())?;
    Ok(all)
}

/// Compares what a step did with what the plan promised. The engines have checked the same inside their transactions; this
/// is the second look that costs nothing.
fn kept(step: &Step, evidence: &Evidence) -> Result<()> {
    match (step, evidence) {
        (Step::MergeRows { changes }, Evidence::Merged(applied)) => {
            let promised =
                changes.tables.iter().map(|table| (&table.table, table.inserts, table.updates, table.deletes));
            let done = applied.tables.iter().map(|table| (&table.table, table.inserted, table.updated, table.deleted));
            if !promised.eq(done) {
                return Err(Error::bug("the merge was committed with other counts than the plan promised"));
            }
        }
        (Step::UndoRows { undo, .. }, Evidence::Undone(applied)) => {
            let promised =
                undo.tables.iter().map(|table| (&table.table, table.bring_back, table.set_back, table.remove));
            let done = applied.tables.iter().map(|table| (&table.table, table.inserted, table.updated, table.deleted));
            if !promised.eq(done) {
                return Err(Error::bug("the undo was committed with other counts than the plan promised"));
            }
        }
        (Step::Prove { .. }, Evidence::Proved(proof)) => {
            // Rows that the application has written since COMMIT may differ; rows that only we wrote may not.
            let wrong: u64 = proof.tables.iter().map(|table| table.differing.saturating_sub(table.moved_since)).sum();
            let orphans: u64 = proof.foreign_keys.iter().map(|(_, orphans)| orphans).sum();
            if wrong + orphans > 0 {
                return Err(Error::bug(format!(
                    "the proof failed: {wrong} written rows differ from the backup, {orphans} orphans"
                ))
                .hint("The merge is committed. Undo takes it back; lifeboat undo shows what it would do first."));
            }
        }
        (Step::DropScratch, Evidence::ScratchDropped) => {}
        _ => return Err(Error::bug("a step answered with the evidence of another step")),
    }
    Ok(())
}
