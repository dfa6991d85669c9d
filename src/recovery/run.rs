//! Doing what was consented to: each step is journaled as an intent before it begins and with its outcome after it ends.
//! The first failure stops the run; nothing after it is attempted, and what was done before it stands in the journal.

use serde::{Deserialize, Serialize};

use super::Recovery;
use super::journal::{self, Entry, Line, Outcome};
use super::plan::{Confirmed, Effect, Plan, Step};
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
pub async fn run(
    confirmed: &Confirmed,
    systems: &Systems,
    recovery: &mut Recovery,
    progress: &Progress,
    on_step: impl FnMut(StepEvent) + Send,
) -> Result<Vec<Evidence>> {
    let (plan, hash) = (confirmed.plan(), confirmed.hash());
    if systems.requires_second_person() && plan.effect() >= Effect::Live && confirmed.second().is_none() {
        return Err(Error::refused("this system requires the consent of a second person")
            .hint("Open the console; the second person looks on with lifeboat attach, and types the same."));
    }
    recovery.journal.reserve()?;
    recovery.journal.write(Entry::Consented {
        hash: hash.into(),
        typed: plan.phrase(),
        plan: plan.clone(),
        by: recovery.operator.clone(),
        second: confirmed.second().cloned(),
    })?;
    steps(plan, 0, systems, recovery, progress, on_step).await
}

/// What became of a recovery whose process had ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Settled {
    /// It had come to its end by itself.
    Before,
    /// What was consented to is done, now to its end.
    Done,
    /// Nothing was changed, and nothing of it is left.
    Nothing,
}

impl Settled {
    /// A sentence for the operator.
    pub fn told(self) -> &'static str {
        match self {
            Self::Before => "It had come to its end; nothing was left to do.",
            Self::Done => "What was consented to is committed, and the rest of the plan is done now.",
            Self::Nothing => "Nothing was changed in production, and what was staged is gone.",
        }
    }
}

/// Where a recovery stands, by its journal and by who holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// A process has it in hand.
    UnderWay {
        /// The process, by the journal.
        process: u32,
        /// The step of the plan that it is in.
        doing: Option<String>,
    },
    /// Nothing is left to do.
    Ended {
        /// As [`report::changed`].
        changed: String,
    },
    /// Its process ended in the middle: it has to be resumed.
    Left {
        /// As [`report::changed`].
        changed: String,
    },
    /// Its journal cannot be read.
    Unreadable {
        /// The error's message.
        why: String,
    },
}

impl Standing {
    /// The recoveries beneath a state folder that are under way, or were left in the middle.
    pub fn open(state: &std::path::Path) -> Vec<String> {
        let open = |id: &String| {
            matches!(Self::of(&state.join("recoveries").join(id)), Self::Left { .. } | Self::UnderWay { .. })
        };
        journal::list(state).into_iter().filter(open).collect()
    }

    /// Looks at a recovery's folder.
    pub fn of(folder: &std::path::Path) -> Self {
        // Looked at before and after: between the two its process may have begun, or come to its end.
        let (before, read, after) = (journal::is_held(folder), journal::read(folder), journal::is_held(folder));
        let read = if before && !after { journal::read(folder) } else { read };
        let held = after;
        let lines = match read {
            Ok(lines) => lines,
            Err(error) => return Self::Unreadable { why: error.message },
        };
        let changed = report::changed(&lines);
        match journal::holder(&lines) {
            // Without its first line nothing was begun.
            None if !held => Self::Ended { changed },
            _ if !held && journal::is_finished(&lines) => Self::Ended { changed },
            Some(holder) if held => {
                let doing = report::open(&lines).map(|(_, step)| step.title());
                Self::UnderWay { process: holder.pid, doing }
            }
            _ => Self::Left { changed },
        }
    }

    /// One word, for scripts.
    pub fn word(&self) -> &'static str {
        match self {
            Self::UnderWay { .. } => "under way",
            Self::Ended { .. } => "ended",
            Self::Left { .. } => "left",
            Self::Unreadable { .. } => "unreadable",
        }
    }

    /// One line, for a list.
    pub fn told(&self) -> String {
        match self {
            Self::UnderWay { process, doing } => {
                format!("under way in process {process}: {}", doing.as_deref().unwrap_or("deciding what to do"))
            }
            Self::Ended { changed } => format!("changed: {changed}"),
            Self::Left { changed } => format!("LEFT IN THE MIDDLE, its process is gone; changed: {changed}"),
            Self::Unreadable { why } => why.clone(),
        }
    }
}

/// Goes on where the process that held the recovery ended. The one thing that may not be known is what became of a step
/// that changes production: the server is asked. When it was done, the plan goes on from there; when it was not, it is not
/// begun again, since rows may have moved since consent: what was staged goes.
///
/// Errors: the server cannot be asked, or a later step fails.
pub async fn resume(
    recovery: &mut Recovery,
    lines: &[Line],
    systems: &Systems,
    progress: &Progress,
) -> Result<Settled> {
    if journal::is_finished(lines) {
        return Ok(Settled::Before);
    }
    for line in lines {
        if let Entry::Consented { hash, plan, .. } = &line.entry
            && plan.hash()? != *hash
        {
            return Err(Error::refused("the plan in the journal is not the one that was consented to").hint(
                "The journal was edited. lifeboat journal verify tells more; production keeps what was committed.",
            ));
        }
    }
    recovery.journal.write(Entry::Resumed { operator: recovery.operator.clone().here() })?;
    let open = report::open(lines).map(|(number, step)| (number, step.clone()));
    let live =
        open.clone().filter(|(_, step)| step.effect() == Effect::Live || matches!(step, Step::RestoreFiles { .. }));
    let (has_staged, has_restored) = (super::has_staged(lines), super::has_restored(lines));
    let found = if live.is_some() || has_staged {
        systems.take_over(&recovery.id, live.as_ref().map(|(_, step)| step)).await?
    } else {
        if has_restored {
            systems.hold_restored(&recovery.id).await;
        }
        None
    };
    let (plan, since) = lines
        .iter()
        .enumerate()
        .rev()
        .find_map(|(at, line)| match &line.entry {
            Entry::Consented { plan, .. } => Some((Some(plan.clone()), &lines[at..])),
            _ => None,
        })
        .unwrap_or((None, &[]));
    let last_applied = since.iter().rev().find_map(|line| match &line.entry {
        Entry::Applied { step, .. } => Some(*step),
        _ => None,
    });
    let from = match (live, found) {
        (Some((number, step)), Some(evidence)) => {
            kept(&step, &evidence)?;
            recovery.journal.write(Entry::Applied { step: number, evidence })?;
            Some(number + 1)
        }
        (Some((number, _)), None) => {
            let error = "the process ended before it was committed".into();
            recovery.journal.write(Entry::NotApplied { step: number, error })?;
            None
        }
        (None, _) => {
            // Between two steps, or in one that can be done again: reading, and removing what is to be gone.
            let again = open.filter(|(_, step)| last_applied.is_some() || step.effect() == Effect::Final);
            again.map(|(number, _)| number).or(last_applied.map(|step| step + 1))
        }
    };
    if let (Some(plan), Some(from)) = (plan, from) {
        if let Err(error) = steps(&plan, from, systems, recovery, progress, |_| ()).await {
            recovery.leave(systems).await;
            return Err(error);
        }
        return Ok(Settled::Done);
    }
    if has_staged || has_restored {
        systems.execute(&recovery.id, &Step::DropScratch, "", progress).await?;
    }
    if let Some(folder) = super::clone_of(lines) {
        systems.execute(&recovery.id, &Step::DropClone { folder: folder.to_owned() }, "", progress).await?;
    }
    recovery.journal.write(Entry::Finished { outcome: Outcome::Abandoned })?;
    report::write(recovery.journal.folder())?;
    Ok(Settled::Nothing)
}

/// The steps from the given one on.
async fn steps(
    plan: &Plan,
    from: usize,
    systems: &Systems,
    recovery: &mut Recovery,
    progress: &Progress,
    mut on_step: impl FnMut(StepEvent) + Send,
) -> Result<Vec<Evidence>> {
    let hash = plan.hash()?;
    let mut all = Vec::new();
    for (number, step) in plan.steps.iter().enumerate().skip(from) {
        recovery.journal.write(Entry::Intent { step: number, title: step.title(), hash: hash.clone() })?;
        on_step(StepEvent::Began(number));
        let head = recovery.journal.head().to_owned();
        let outcome = systems.execute(&recovery.id, step, &head, progress).await;
        match outcome.and_then(|evidence| kept(step, &evidence).map(|()| evidence)) {
            Ok(evidence) => {
                let applied = Entry::Applied { step: number, evidence: evidence.clone() };
                recovery.journal.write(applied).map_err(|error| {
                    error.hint(format!("This was done all the same, and stays done: {}.", step.title()))
                })?;
                on_step(StepEvent::Ended(number));
                all.push(evidence);
            }
            // Nobody knows: the recovery stays open, and resuming it asks the server.
            Err(error) if error.kind == Kind::Unresolved => {
                recovery.journal.write(Entry::Unknown { step: number, error: error.to_string() })?;
                return Err(
                    error.hint(format!("lifeboat resume {} finds out, when the server answers again.", recovery.id))
                );
            }
            Err(error) => {
                // Its end is journaled when what it staged is gone, by [`Recovery::leave`]: until then another try may follow.
                recovery.journal.write(Entry::NotApplied { step: number, error: error.to_string() })?;
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
        (Step::PutFiles { choice }, Evidence::PutFiles(put)) => {
            if put.placed.len() != choice.items.len() {
                return Err(Error::bug("other files were put in place than the plan promised"));
            }
        }
        (Step::UndoFiles { placed, .. }, Evidence::UndoneFiles(put)) => {
            if put.placed.len() != placed.len() {
                return Err(Error::bug("other files were taken back than the plan promised"));
            }
        }
        (Step::RecreateTables { recreation }, Evidence::Recreated(applied)) => {
            let promised = recreation.tables.iter().map(|table| (&table.name, table.rows));
            if !promised.eq(applied.tables.iter().map(|table| (&table.table, table.inserted))) {
                return Err(Error::bug("tables were made again with other rows than the plan promised"));
            }
        }
        (Step::SafetyBackup { .. }, Evidence::BackedUp { tables, .. }) => {
            if *tables == 0 {
                return Err(Error::target("the safety backup holds no table")
                    .hint("Look at it by hand, or go back and go on without it. Nothing was exchanged."));
            }
        }
        (Step::RestoreFiles { .. }, Evidence::Restored(_))
        | (Step::Promote { .. }, Evidence::Promoted(_))
        | (Step::ProvePromotion { .. }, Evidence::PromotionProved { .. })
        | (Step::KeepDatabase { .. }, Evidence::Kept { .. })
        | (Step::ExchangeBack { .. }, Evidence::Returned(_))
        | (Step::ProveRecreated { .. }, Evidence::RecreatedProved { .. })
        | (Step::RemoveRecreated { .. }, Evidence::RecreatedRemoved(_))
        | (Step::DropClone { .. }, Evidence::CloneDropped)
        | (Step::KeepClone { .. }, Evidence::CloneKept(_))
        | (Step::DropScratch, Evidence::ScratchDropped)
        | (Step::RemoveLeftovers { .. }, Evidence::Removed(_)) => {}
        _ => return Err(Error::bug("a step answered with the evidence of another step")),
    }
    Ok(())
}
