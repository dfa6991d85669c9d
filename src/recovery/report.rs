//! The report of a recovery, in Markdown, made from its journal and nothing else: what was asked and answered, what was
//! found, what was done with which counts, and how it was proved.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

pub use summary::summary;

use super::Flow;
use super::journal::{self, Entry, Line, Outcome};
use super::plan::{Effect, Plan, Step, schemas_and_databases};
use super::record::{Fact, Incident, Promotion, Scope, Use, Where};
use super::systems::Evidence;
use crate::error::{Error, Result};
use crate::files::beside::Restored;
use crate::files::choice::{Action, Policy};
use crate::files::put::Put;
use crate::files::write::{Notes, Own};
use crate::postgres::database::{Exchange, Exchanged};
use crate::postgres::merge::{Applied, Choice, Proof, Triggers};
use crate::postgres::name::Name;
use crate::text::{self, clean, counted};

mod summary;

const FILE: &str = "report.md";
const HEAD: &str = "Head of the journal: ";

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join("; ")
}

/// Writes the report into the recovery's folder and returns its path.
pub fn write(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(FILE);
    let mut page = markdown(&journal::read(folder)?);
    if let Some(head) = journal::heads(folder)?.last() {
        let _ = writeln!(
            page,
            "\n{HEAD}{head}\n\nWhoever keeps this page can tell whether the journal was cut or rewritten later."
        );
    }
    std::fs::write(&path, page).map_err(|error| {
        Error::operator(format!("cannot write the report {}", path.display()))
            .detail(error)
            .hint("What was done stands in the journal beside it: lifeboat report prints it again.")
    })?;
    Ok(path)
}

/// The journal's head as the report on disk gives it; `None`: there is no report.
pub fn head(folder: &Path) -> Option<String> {
    let page = std::fs::read_to_string(folder.join(FILE)).ok()?;
    page.lines().find_map(|line| line.strip_prefix(HEAD)).map(str::to_owned)
}

/// The report as Markdown.
pub fn markdown(lines: &[Line]) -> String {
    let mut page = String::new();
    if let Some(Line { at, entry: Entry::Started { recovery, system, operator, .. }, .. }) = lines.first() {
        let _ = writeln!(page, "# Recovery {}\n", clean(recovery));
        let _ = writeln!(page, "- System: {}", clean(system));
        let _ = writeln!(page, "- Operator: {}", clean(&operator.told()));
        let _ = writeln!(page, "- Begun: {} UTC", at.format("%Y-%m-%d %H:%M:%S"));
    }
    if let Some(last) = lines.last() {
        let _ = writeln!(page, "- Last entry: {} UTC", last.at.format("%Y-%m-%d %H:%M:%S"));
    }
    let _ = writeln!(page, "- Outcome: **{}**", outcome(lines));
    let _ = writeln!(page, "- Changed in production: {}\n", changed(lines));
    for line in lines {
        if let Entry::Consented { hash, typed, plan, .. } = &line.entry {
            push_plan(&mut page, hash, typed, plan);
        }
    }
    for line in lines {
        if let Entry::Applied { evidence, .. } = &line.entry {
            push_evidence(&mut page, evidence);
        }
    }
    let _ = writeln!(page, "## Timeline (UTC)\n\n| time | what |\n|---|---|");
    for line in lines {
        let _ = writeln!(page, "| {} | {} |", line.at.format("%Y-%m-%d %H:%M:%S%.3f"), cell(&told(&line.entry)));
    }
    page
}

/// What the journal says was changed so far, for every place that shows an error.
pub fn changed(lines: &[Line]) -> String {
    let mut done = Vec::new();
    for line in lines {
        if let Entry::Applied { evidence: Evidence::Merged(applied) | Evidence::Undone(applied), .. } = &line.entry {
            done.push(counts(applied));
        }
        if let Entry::Applied { evidence: Evidence::Recreated(applied), .. } = &line.entry {
            done.push(format!("made again: {}", counts(applied)));
        }
        if let Entry::Applied { evidence: Evidence::RecreatedRemoved(applied), .. } = &line.entry {
            let names: Vec<_> = applied.tables.iter().map(|table| table.table.to_string()).collect();
            done.push(format!("moved aside: {}", names.join(", ")));
        }
        if let Entry::Applied { evidence: Evidence::Removed(schemas), .. } = &line.entry {
            let removed = schemas_and_databases(schemas.iter().map(String::as_str));
            done.push(format!("{removed} of earlier recoveries removed"));
        }
    }
    for line in lines {
        match &line.entry {
            Entry::Applied { evidence: Evidence::Promoted(_), .. } => {
                done.push("the restored database took production's place, which is kept".into());
            }
            Entry::Applied { evidence: Evidence::Returned(_), .. } => {
                done.push("the earlier database has production's name again".into());
            }
            Entry::Applied { evidence: Evidence::PutFiles(put), .. } => done.push(told_put(put)),
            Entry::Applied { evidence: Evidence::UndoneFiles(put), .. } => {
                done.push(format!("{} taken back", counted(put.placed.len() as u64, "file", "files")));
            }
            _ => {}
        }
    }
    if let Some((_, step)) = open(lines).filter(|(_, step)| step.effect() >= Effect::Live) {
        done.push(format!("not known whether it was done: {}", step.title()));
    }
    if done.is_empty() { "nothing".into() } else { done.join("; ") }
}

fn told_put(put: &Put) -> String {
    let files = put.placed.iter().filter(|placed| placed.action != Action::MakeFolder).count() as u64;
    let kept = put.placed.iter().filter(|placed| placed.before.is_some()).count() as u64;
    format!(
        "{} put in place, {} kept beside them",
        counted(files, "file", "files"),
        counted(kept, "earlier one", "earlier ones")
    )
}

/// The flow that takes back what a recovery did; `None`: it did nothing that could be.
pub fn undo_of(recovery: &str, lines: &[Line]) -> Option<Flow> {
    lines.iter().rev().find_map(|line| match &line.entry {
        Entry::Applied { evidence: Evidence::Promoted(_), .. } => {
            let exchange = exchange_of(lines)?;
            Some(Flow::UndoDatabase { recovery: recovery.into(), exchange: Box::new(exchange) })
        }
        Entry::Applied { evidence: Evidence::Returned(_), .. } => {
            let exchange = exchange_of(lines)?.reversed()?;
            Some(Flow::UndoDatabase { recovery: recovery.into(), exchange: Box::new(exchange) })
        }
        Entry::Applied { evidence: Evidence::Merged(_) | Evidence::Undone(_), .. } => {
            Some(Flow::Undo { recovery: recovery.into() })
        }
        Entry::Applied { evidence: Evidence::Recreated(_), .. } => {
            let recreation = lines.iter().rev().find_map(|line| match &line.entry {
                Entry::Consented { plan, .. } => plan.steps.iter().find_map(|step| match step {
                    Step::RecreateTables { recreation } => Some(recreation.clone()),
                    _ => None,
                }),
                _ => None,
            })?;
            Some(Flow::UndoTables { recovery: recovery.into(), recreation: Box::new(recreation) })
        }
        Entry::Applied { evidence: Evidence::PutFiles(put) | Evidence::UndoneFiles(put), .. } => {
            Some(Flow::UndoFiles { recovery: recovery.into(), placed: put.placed.clone() })
        }
        _ => None,
    })
}

fn exchange_of(lines: &[Line]) -> Option<Exchange> {
    let plans = lines.iter().rev().filter_map(|line| match &line.entry {
        Entry::Consented { plan, .. } => Some(plan),
        _ => None,
    });
    plans.flat_map(|plan| &plan.steps).find_map(|step| match step {
        Step::Promote { exchange } | Step::ExchangeBack { exchange, .. } => Some(exchange.clone()),
        _ => None,
    })
}

/// The step of the last plan that was begun and whose outcome nobody wrote down, with its place.
pub fn open(lines: &[Line]) -> Option<(usize, &Step)> {
    let (mut plan, mut begun) = (None, None);
    for line in lines {
        match &line.entry {
            Entry::Consented { plan: consented, .. } => (plan, begun) = (Some(consented), None),
            Entry::Intent { step, .. } => begun = Some(*step),
            Entry::Applied { .. } | Entry::NotApplied { .. } => begun = None,
            _ => {}
        }
    }
    Some((begun?, plan?.steps.get(begun?)?))
}

fn outcome(lines: &[Line]) -> &'static str {
    let last = lines
        .iter()
        .rev()
        .find_map(|line| if let Entry::Finished { outcome } = line.entry { Some(outcome) } else { None });
    match last {
        Some(Outcome::Recovered) => "done and proved",
        Some(Outcome::Failed) => "failed",
        Some(Outcome::Abandoned) if changed(lines) == "nothing" => "left before anything was changed",
        Some(Outcome::Abandoned) => "left",
        None => "not finished",
    }
}

fn push_plan(page: &mut String, hash: &str, typed: &str, plan: &Plan) {
    let _ = writeln!(page, "## What was consented to\n\nTyped: `{}`. SHA-256 of the plan: `{hash}`.\n", clean(typed));
    for (number, step) in plan.steps.iter().enumerate() {
        let effect = match step.effect() {
            Effect::Read => "reads",
            Effect::Scratch => "scratch space",
            Effect::Live => "**changes production**",
            Effect::Final => "**cannot be undone**",
        };
        let _ = writeln!(page, "{}. {} ({effect})", number + 1, step.title());
    }
    let statements: Vec<_> = plan.steps.iter().flat_map(Step::statements).collect();
    if !statements.is_empty() {
        let _ = writeln!(page, "\n```");
        for line in statements.iter().flat_map(|statement| statement.lines()) {
            let _ = writeln!(page, "{}", clean(line));
        }
        let _ = writeln!(page, "```\n");
    }
}

fn push_evidence(page: &mut String, evidence: &Evidence) {
    match evidence {
        Evidence::Merged(applied) | Evidence::Undone(applied) => {
            let _ = writeln!(page, "## What was written\n\nIn one transaction, {}.\n", clean(&applied.transaction));
            let _ = writeln!(page, "| table | inserted | updated | deleted |\n|---|---:|---:|---:|");
            for table in &applied.tables {
                let _ = writeln!(
                    page,
                    "| {} | {} | {} | {} |",
                    cell(&table.table.to_string()),
                    text::count(table.inserted),
                    text::count(table.updated),
                    text::count(table.deleted)
                );
            }
            page.push('\n');
        }
        Evidence::Proved(proof) => push_proof(page, proof),
        Evidence::Restored(restored) => push_restored(page, restored),
        Evidence::PutFiles(put) => push_put(page, "What was put in place", put),
        Evidence::UndoneFiles(put) => push_put(page, "What was taken back", put),
        Evidence::Removed(schemas) => {
            let _ = writeln!(page, "## What was removed\n");
            for schema in schemas {
                let _ = writeln!(page, "- {}", clean(schema));
            }
            page.push('\n');
        }
        Evidence::BackedUp { snapshot, tables } => {
            let _ = writeln!(
                page,
                "## Safety backup\n\nProduction as it was is in snapshot `{}`, tagged lifeboat-safety: {} with rows, read again.\n",
                clean(snapshot),
                counted(*tables, "table", "tables")
            );
        }
        Evidence::Promoted(_) | Evidence::Returned(_) => {
            let _ = writeln!(page, "## Exchange\n\n{}.\n", told_exchange(evidence));
        }
        Evidence::PromotionProved { .. } => {
            let _ = writeln!(page, "## Proof\n\n{}.\n", told_exchange(evidence));
        }
        Evidence::Kept { database } => {
            let _ = writeln!(page, "## Kept\n\n`{}` stays beside production.\n", clean(database));
        }
        Evidence::Recreated(applied) => {
            let _ = writeln!(page, "## Tables made again\n\nIn one transaction, {}.\n", clean(&applied.transaction));
            for table in &applied.tables {
                let name = clean(&table.table.to_string()).into_owned();
                let _ = writeln!(page, "- {name}: {}", counted(table.inserted, "row", "rows"));
            }
            page.push('\n');
        }
        Evidence::RecreatedProved { tables, missing } => {
            let _ = writeln!(page, "## Proof\n\n{}.\n", clean(&told_recreated(tables, missing)));
            for object in missing {
                let _ = writeln!(page, "- **{}**", clean(object));
            }
            page.push('\n');
        }
        Evidence::CloneKept(folder) => {
            let _ = writeln!(page, "## Kept\n\nThe cluster as of the moment stays in `{}`.\n", clean(folder));
        }
        Evidence::ScratchDropped | Evidence::CloneDropped | Evidence::RecreatedRemoved(_) => {}
    }
}

fn told_recreated(tables: &[(Name, u64)], missing: &[String]) -> String {
    let rows = join(tables.iter().map(|(table, rows)| format!("{table}: {}", counted(*rows, "row", "rows"))));
    match missing.len() {
        0 => format!("{rows}; keys, indexes, triggers, views, owners and grants are as they were"),
        many => format!("{rows}; {} not as it was", counted(many as u64, "object is", "objects are")),
    }
}

fn told_exchange(evidence: &Evidence) -> String {
    match evidence {
        Evidence::Promoted(Exchanged { outage_ms, ended }) | Evidence::Returned(Exchanged { outage_ms, ended }) => {
            format!(
                "names exchanged in one transaction; {} ended, out of reach for {} ms",
                counted(*ended, "session", "sessions"),
                text::count(*outage_ms)
            )
        }
        Evidence::PromotionProved { tables, left_behind } => {
            let behind = match left_behind {
                Some(rows) => {
                    format!("{} written to the earlier one since the restore began", counted(*rows, "row", "rows"))
                }
                None => "how much was written to the earlier one meanwhile is not known".into(),
            };
            format!(
                "production's name leads to the restored database, {} in it; {behind}",
                counted(*tables, "table", "tables")
            )
        }
        _ => String::new(),
    }
}

fn push_restored(page: &mut String, restored: &Restored) {
    let _ = writeln!(
        page,
        "## What was brought back\n\nInto `{}`: {} ({}), {}, {}. Each file was read again after it was written, and is the \
         same as in the snapshot, part by part, by SHA-256.\n",
        clean(&restored.folder),
        counted(restored.files, "file", "files"),
        text::bytes(restored.bytes),
        counted(restored.folders, "folder", "folders"),
        counted(restored.symlinks, "symlink", "symlinks")
    );
    if restored.failures > 0 {
        let _ = writeln!(page, "**{} could not be brought back:**\n", counted(restored.failures, "file", "files"));
        for (path, why) in &restored.failed {
            let _ = writeln!(page, "- `{}`: {}", clean(path), clean(why));
        }
        page.push('\n');
    }
    push_notes(page, &restored.notes);
}

fn push_put(page: &mut String, title: &str, put: &Put) {
    let _ = writeln!(page, "## {title}\n\n| path | what stood there is now |\n|---|---|");
    for placed in &put.placed {
        let kept = match (&placed.action, &placed.before) {
            (Action::MakeFolder, _) => "(a new folder)".into(),
            (_, None) => "(nothing stood there)".into(),
            (_, Some(_)) => cell(&placed.aside.display().to_string()),
        };
        let _ = writeln!(page, "| {} | {kept} |", cell(&placed.path.display().to_string()));
    }
    page.push('\n');
    push_notes(page, &put.notes);
}

fn push_notes(page: &mut String, notes: &Notes) {
    if notes.0.is_empty() {
        return;
    }
    let _ = writeln!(page, "Not applied:\n");
    for (what, (times, example)) in &notes.0 {
        let _ =
            writeln!(page, "- {}: {}, for example `{}`", clean(what), counted(*times, "time", "times"), clean(example));
    }
    page.push('\n');
}

fn push_proof(page: &mut String, proof: &Proof) {
    let _ = writeln!(
        page,
        "## Proof\n\n| table | rows written | differ from the backup now | of those, written by others since |\n|---|---:|---:|---:|"
    );
    for table in &proof.tables {
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} |",
            cell(&table.table.to_string()),
            text::count(table.written),
            text::count(table.differing),
            text::count(table.moved_since)
        );
    }
    page.push('\n');
    for (constraint, orphans) in &proof.foreign_keys {
        let _ = writeln!(page, "- foreign key {}: {}", clean(constraint), counted(*orphans, "orphan", "orphans"));
    }
    page.push('\n');
}

fn counts(applied: &Applied) -> String {
    join(applied.tables.iter().map(|table| {
        format!(
            "{}: {} inserted, {} updated, {} deleted",
            clean(&table.table.to_string()),
            text::count(table.inserted),
            text::count(table.updated),
            text::count(table.deleted)
        )
    }))
}

/// One journal entry as a sentence.
pub fn told(entry: &Entry) -> String {
    match entry {
        Entry::Started { recovery, .. } => format!("recovery {recovery} begun"),
        Entry::Resumed { operator } => {
            format!("taken over by {}, process {}", operator.told(), operator.pid)
        }
        Entry::Attached { operator } => format!("another console looks on: {}", operator.told()),
        Entry::Answered { fact } => told_fact(fact),
        Entry::WentBack => "last answer taken back".into(),
        Entry::Looked { what, outcome } => format!("{what}: {outcome}"),
        Entry::Consented { hash, typed, by, second, .. } => {
            let second = second.as_ref().map(|second| format!(" and {}", second.told())).unwrap_or_default();
            format!("consent given by {}{second}, typing {typed}; plan {}", by.told(), &hash[..hash.len().min(12)])
        }
        Entry::Intent { title, .. } => format!("begin: {title}"),
        Entry::Applied { evidence, .. } => match evidence {
            Evidence::Merged(applied) => format!("committed: {}", counts(applied)),
            Evidence::Undone(applied) => format!("taken back: {}", counts(applied)),
            Evidence::Proved(proof) => format!(
                "proved: {} differ",
                counted(proof.tables.iter().map(|table| table.differing).sum(), "written row", "written rows")
            ),
            Evidence::ScratchDropped => "scratch space removed".into(),
            Evidence::BackedUp { snapshot, .. } => {
                format!("backed up as snapshot {}", snapshot.get(..8).unwrap_or(snapshot))
            }
            Evidence::Promoted(_) | Evidence::Returned(_) | Evidence::PromotionProved { .. } => told_exchange(evidence),
            Evidence::Kept { database } => format!("{database} stays beside production"),
            Evidence::Restored(restored) => format!(
                "{} brought back into {}{}",
                counted(restored.files, "file", "files"),
                restored.folder,
                if restored.failures > 0 {
                    format!(", {} FAILED", text::count(restored.failures))
                } else {
                    String::new()
                }
            ),
            Evidence::PutFiles(put) => told_put(put),
            Evidence::UndoneFiles(put) => {
                format!("{} taken back", counted(put.placed.len() as u64, "file", "files"))
            }
            Evidence::Removed(schemas) => format!("removed: {}", schemas.join(", ")),
            Evidence::Recreated(applied) => format!("committed, made again: {}", counts(applied)),
            Evidence::RecreatedProved { tables, missing } => told_recreated(tables, missing),
            Evidence::RecreatedRemoved(_) => "moved aside".into(),
            Evidence::CloneDropped => "the cluster as of the moment is removed".into(),
            Evidence::CloneKept(folder) => format!("the cluster as of the moment stays in {folder}"),
        },
        Entry::NotApplied { error, .. } => format!("not applied, rolled back: {error}"),
        Entry::Unknown { error, .. } => format!("outcome not known: {error}"),
        Entry::Finished { outcome } => match outcome {
            Outcome::Recovered => "finished".into(),
            Outcome::Failed => "stopped at the first failure".into(),
            Outcome::Abandoned => "left".into(),
        },
    }
}

fn told_fact(fact: &Fact) -> String {
    match fact {
        Fact::Incident(Incident::At(instant)) => format!("incident time {} UTC", instant.format("%Y-%m-%d %H:%M:%S")),
        Fact::Incident(Incident::Unknown) => "incident time not known".into(),
        Fact::Point(point) => format!("recovery point {}", point.get(..8).unwrap_or(point)),
        Fact::Scope(Scope::System) => "the full system".into(),
        Fact::Scope(Scope::Tables) => "some tables".into(),
        Fact::Scope(Scope::Files) => "some files".into(),
        Fact::Scope(Scope::Moment) => "a moment in time".into(),
        Fact::Dump(path) => format!("dump {path}"),
        Fact::Tables(tables) => format!("tables {}", join(tables.iter().map(ToString::to_string))),
        Fact::Keys(keys) => {
            join(keys.iter().map(|key| format!("rows of {} paired by {}", key.table, key.columns.join(", "))))
        }
        Fact::Stage => "agreed to load the rows beside production".into(),
        Fact::Rows(choices) => join(choices.iter().map(told_choice)),
        Fact::Triggers(Triggers::Fire) => "triggers fire".into(),
        Fact::Triggers(Triggers::Skip) => "triggers skipped".into(),
        Fact::Files(paths) => format!("files {}", join(paths.iter().cloned())),
        Fact::Where(Where::Beside) => "beside what is there".into(),
        Fact::Where(Where::InPlace) => "in place".into(),
        Fact::Folder(folder) => format!("into {folder}"),
        Fact::Policy(Policy::Missing) => "only what is gone".into(),
        Fact::Policy(Policy::MissingAndChanged) => "what is gone and what changed".into(),
        Fact::Policy(Policy::MissingAndMarked) => "what is gone, and what changed of what was marked by itself".into(),
        Fact::Except(paths) => format!("without {}", join(paths.iter().cloned())),
        Fact::Own(Own::Numbers) => "owners by number".into(),
        Fact::Own(Own::Names) => "owners by name".into(),
        Fact::Own(Own::Me) => "owned by whoever runs this".into(),
        Fact::Restore => "agreed to restore the whole dump beside production".into(),
        Fact::Promotion(Promotion::Exchange) => "the restored database takes production's place".into(),
        Fact::Promotion(Promotion::Keep) => "the restored database stays beside production".into(),
        Fact::Safety(true) => "production is backed up first".into(),
        Fact::Safety(false) => "production is not backed up first".into(),
        Fact::Aim(aim) => format!("the moment: {}", aim.told()),
        Fact::LayOut(folder) => format!("agreed to lay out a second cluster in {folder}"),
        Fact::Use(Use::Tables) => "tables are brought back out of it".into(),
        Fact::Use(Use::Whole) => "the whole database is brought back out of it".into(),
        Fact::Use(Use::Keep) => "it stays beside production".into(),
        Fact::LeaveWrites => "what was written meanwhile may stay behind".into(),
    }
}

fn told_choice(choice: &Choice) -> String {
    let classes =
        choice.classes.iter().map(|class| format!("{class:?}").to_lowercase()).collect::<Vec<_>>().join(" and ");
    let mut told = format!("write {} rows of {}", if classes.is_empty() { "no" } else { &classes }, choice.table);
    if let Some(columns) = &choice.columns {
        let _ = write!(told, ", columns {}", columns.join(", "));
    }
    if let Some(transactions) = &choice.transactions {
        let ids: Vec<_> = transactions.iter().map(ToString::to_string).collect();
        let _ = write!(told, ", last written by transaction {}", ids.join(", "));
    }
    if let Some(condition) = &choice.condition {
        let _ = write!(told, ", where {condition}");
    }
    if let Some(only) = &choice.only {
        let _ = write!(told, ", only {}", counted(only.len() as u64, "row", "rows"));
    }
    if !choice.except.is_empty() {
        let _ = write!(told, ", without {}", counted(choice.except.len() as u64, "row", "rows"));
    }
    told
}

fn cell(text: &str) -> String {
    clean(text).replace('|', "\\|")
}
