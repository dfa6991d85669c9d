//! Most of a database is gone, or all of it: a dump is restored whole, beside production, checked, and put in its place.
//!
//! After the recovery point and the dump are chosen, every row of the dump is decoded and counted, and it is looked what the
//! server lacks. The operator is asked: whether to restore it beside production, whether it takes production's place when it
//! is checked, whether production as it is now is backed up first, and whether writes since the restore began may stay
//! behind. Production's database is never dropped: it gets another name, and goes back by one command.

use super::{Answers, Choice, Next, Question, Refusal};
use crate::error::Error;
use crate::postgres::database::{Checked, Exchange, How, Needs, RESTORE, Restored, Rows, Standing};
use crate::recovery::plan::{Plan, Step};
use crate::recovery::record::{Fact, Finding, Look, Promotion, Record};
use crate::text;

/// So many tables or objects are named in a question.
const NAMED: usize = 6;

/// What comes next, when the recovery point and the dump are known.
pub fn next(record: &Record, point: &str, dump: &str) -> Next {
    let look = Look::Needs { point: point.into(), dump: dump.into() };
    let Some(Finding::Needs(needs)) = record.finding(&look) else { return Next::Look(look) };
    if let Some((why, hint)) = &needs.refusal {
        return Next::Refuse(Refusal {
            why: text::clean(why).into_owned(),
            hints: vec![text::clean(hint).into_owned()],
        });
    }
    if !record.restore() {
        return Next::Ask(ask_restore(needs));
    }

    let look = Look::RestoreDatabase { point: point.into(), dump: dump.into() };
    let Some(Finding::RestoredDatabase(restored, checked)) = record.finding(&look) else { return Next::Look(look) };
    match record.promotion() {
        None => return Next::Ask(ask_promotion(needs, restored, checked)),
        Some(Promotion::Keep) => {
            let keep = Step::KeepDatabase { restored: (**restored).clone() };
            return Next::Ready(Plan {
                steps: [keep].into_iter().chain(super::point_in_time::drop_clone(record, point)).collect(),
            });
        }
        Some(Promotion::Exchange) => {}
    }

    let look = Look::Standing { restored: restored.clone() };
    let Some(Finding::Standing(standing)) = record.finding(&look) else { return Next::Look(look) };
    let safety = match record.safety() {
        Some(safety) => safety,
        None if standing.production.is_some() => return Next::Ask(ask_safety(needs)),
        None => false,
    };
    if standing.production.is_some() && standing.written != Some(0) && !record.leave_writes() {
        return Next::Ask(ask_writes(needs, standing));
    }
    match plan(needs, restored, standing, safety) {
        Ok(mut plan) => {
            plan.steps.extend(super::point_in_time::drop_clone(record, point));
            Next::Ready(plan)
        }
        Err(error) => Next::Refuse(Refusal { why: error.message, hints: error.hints }),
    }
}

fn plan(needs: &Needs, restored: &Restored, standing: &Standing, safety: bool) -> Result<Plan, Error> {
    let recovery = restored.database.strip_prefix(RESTORE).unwrap_or_default();
    let exchange = Exchange::new(recovery, &needs.database, restored, standing)?;
    let mut steps = Vec::new();
    if safety {
        steps.push(Step::SafetyBackup { database: needs.database.clone() });
    }
    steps.push(Step::Promote { exchange: exchange.clone() });
    steps.push(Step::ProvePromotion { exchange });
    Ok(Plan { steps })
}

fn ask_restore(needs: &Needs) -> Question {
    let mut consequences = vec![
        format!(
            "{} in {}, {} of text, all decoded and counted. Into a database of Lifeboat's own on {}.",
            text::counted(needs.rows(), "row", "rows"),
            text::counted(needs.counted.len() as u64, "table", "tables"),
            text::bytes(needs.bytes()),
            text::clean(&needs.server)
        ),
        format!(
            "Definitions of the dump are run there, by {}, and those of indexes by Lifeboat: the dump's own SQL.",
            text::clean(&needs.program)
        ),
    ];
    if needs.production.is_some() {
        consequences.push("Production stays as it is. It shares the server's disk and processors meanwhile.".into());
    }
    let free = match needs.free {
        Some(free) => format!("{} are free", text::bytes(free)),
        None => "how much is free cannot be seen from here".into(),
    };
    consequences.push(format!("On the server's disk about {}, and WAL besides; {free}.", text::bytes(needs.room())));
    if !needs.missing_roles.is_empty() {
        let create: Vec<_> =
            needs.missing_roles.iter().take(NAMED).map(|role| format!("CREATE ROLE {}", text::clean(role))).collect();
        consequences.push(format!(
            "NOT on this server, so what they own will be yours: {}. To keep them: {}, then look again.",
            text::clean(&needs.missing_roles.join(", ")),
            create.join("; ")
        ));
    }
    if !needs.missing_tablespaces.is_empty() {
        consequences.push(format!(
            "Tablespaces that this server lacks: {}. All goes to the default one.",
            text::clean(&needs.missing_tablespaces.join(", "))
        ));
    }
    let why = match &needs.production {
        None => format!("There is no database {} on this server any more.", text::clean(&needs.database)),
        Some(production) => {
            let sessions: u64 = production.visitors.iter().map(|visitor| visitor.sessions).sum();
            let who = production.visitors.iter().take(3).map(|visitor| {
                let name = if visitor.application.is_empty() { &visitor.user } else { &visitor.application };
                format!("{} ({})", text::clean(name), text::count(visitor.sessions))
            });
            let who = if sessions == 0 { String::new() } else { format!(": {}", who.collect::<Vec<_>>().join(", ")) };
            format!(
                "{} is there, {} large, {} connected{who}. It will keep running.",
                text::clean(&needs.database),
                text::bytes(production.bytes),
                text::counted(sessions, "session", "sessions")
            )
        }
    };
    Question {
        title: if needs.production.is_some() {
            "Restore the whole dump beside production?".into()
        } else {
            "Restore the whole dump into a new database?".into()
        },
        why,
        answers: Answers::One(vec![Choice {
            label: "Restore it".into(),
            consequences,
            fact: Fact::Restore,
            recommended: true,
            unavailable: None,
        }]),
    }
}

fn ask_promotion(needs: &Needs, restored: &Restored, checked: &Checked) -> Question {
    let rows: u64 = restored.loaded.iter().map(|table| table.rows).sum();
    let mut why = format!(
        "{} in {} are back, as many as the dump holds.",
        text::counted(rows, "row", "rows"),
        text::counted(restored.loaded.len() as u64, "table", "tables")
    );
    let failed = checked.asked.iter().find(|asked| !asked.holds());
    for asked in &checked.asked {
        let found = match &asked.found {
            Ok(found) => found.to_string(),
            Err(error) => text::clean(error).into_owned(),
        };
        let verdict = if asked.holds() { "holds" } else { "FAILS" };
        why.push_str(&format!(" {verdict}: {} gave {found}, at least {}.", text::clean(&asked.query), asked.at_least));
    }
    let mut consequences = Vec::new();
    if needs.production.is_some() {
        consequences.push(format!(
            "Sessions of {} are ended, and the two exchange names in one act, in well under a second.",
            text::clean(&needs.database)
        ));
        consequences.push("The present one is kept under another name: one command goes back.".into());
        let slots = needs.production.iter().flat_map(|production| &production.slots);
        let slots: Vec<_> = slots.map(|slot| text::clean(slot)).collect();
        if !slots.is_empty() {
            let slots = slots.join(", ");
            consequences
                .push(format!("Replication slots stay with the present one, and so do their readers: {slots}."));
        }
        consequences.extend(told_rows(checked));
        consequences.extend(told_differences(checked));
    } else {
        consequences.push(format!("It gets the name {}.", text::clean(&needs.database)));
    }
    if !restored.notes.is_empty() {
        let notes = restored.notes.iter().take(2).map(|note| text::clean(note)).collect::<Vec<_>>().join("; ");
        consequences.push(format!("{} not applied: {notes}.", text::count(restored.notes.len() as u64)));
    }
    for (what, which) in
        [("Sequences behind their rows", &checked.behind), ("Constraints not valid", &checked.not_valid)]
    {
        if !which.is_empty() {
            consequences.push(format!("{what}: {}.", text::clean(&which.join(", "))));
        }
    }
    Question {
        title: if needs.production.is_some() {
            "It is restored and checked. Should it take production's place?".into()
        } else {
            format!("It is restored and checked. Should it be {}?", text::clean(&needs.database))
        },
        why,
        answers: Answers::One(vec![
            Choice {
                label: if needs.production.is_some() { "Yes: exchange the names".into() } else { "Yes".into() },
                consequences,
                fact: Fact::Promotion(Promotion::Exchange),
                recommended: failed.is_none(),
                unavailable: failed.map(|_| "a check of the configuration fails".into()),
            },
            Choice {
                label: "No: keep it under its own name".into(),
                consequences: vec![
                    format!("It stays as {}, to look into, until lifeboat clean removes it.", restored.database),
                    "Nothing else changes.".into(),
                ],
                fact: Fact::Promotion(Promotion::Keep),
                recommended: failed.is_some(),
                unavailable: None,
            },
        ]),
    }
}

/// Tables of which production has other numbers of rows: the reason for all this, or what would be lost.
fn told_rows(checked: &Checked) -> Vec<String> {
    let number = |rows: Option<u64>| rows.map_or_else(|| "not there".into(), text::count);
    let counted = |table: &&Rows| !checked.not_counted.contains(&table.table);
    let other: Vec<_> =
        checked.rows.iter().filter(|table| table.restored != table.production).filter(counted).collect();
    let mut told: Vec<String> = other
        .iter()
        .take(NAMED)
        .map(|table| {
            format!(
                "{}: {} restored, {} in production now",
                text::clean(&table.table.to_string()),
                number(table.restored),
                number(table.production)
            )
        })
        .collect();
    if other.len() > NAMED {
        told.push(format!("and {} more tables with other numbers of rows", text::count((other.len() - NAMED) as u64)));
    }
    if !checked.not_counted.is_empty() {
        let names: Vec<_> = checked.not_counted.iter().take(NAMED).map(ToString::to_string).collect();
        told.push(format!(
            "Not counted in production, for want of rights or time: {}.",
            text::clean(&names.join(", "))
        ));
    }
    told
}

fn told_differences(checked: &Checked) -> Vec<String> {
    let of = |how| {
        let names: Vec<_> = checked.differences.iter().filter(|difference| difference.how == how).collect();
        let shown: Vec<_> = names.iter().take(NAMED).map(|difference| text::clean(&difference.object)).collect();
        let more = names.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        (!names.is_empty()).then(|| format!("{}{more}", shown.join(", ")))
    };
    [
        ("Only production has, and will be missing", of(How::OnlyProduction)),
        ("Production lacks, and will be there again", of(How::OnlyRestored)),
        ("Will be defined as in the dump, not as now", of(How::Different)),
    ]
    .into_iter()
    .filter_map(|(what, which)| Some(format!("{what}: {}.", which?)))
    .collect()
}

fn ask_safety(needs: &Needs) -> Question {
    let choice = |label: &str, consequence: &str, safety, recommended| Choice {
        label: label.into(),
        consequences: vec![consequence.into()],
        fact: Fact::Safety(safety),
        recommended,
        unavailable: None,
    };
    Question {
        title: "Back up production as it is now, before the exchange?".into(),
        why: format!(
            "The present {} stays on the server under another name either way. A backup survives the server too.",
            text::clean(&needs.database)
        ),
        answers: Answers::One(vec![
            choice(
                "Back it up into the same repository",
                "pg_dump into restic, tagged lifeboat-safety. Takes as long as your nightly backup; the exchange waits.",
                true,
                true,
            ),
            choice("Go on without", "Quicker. What was damaged is kept on the server alone.", false, false),
        ]),
    }
}

fn ask_writes(needs: &Needs, standing: &Standing) -> Question {
    let much = match standing.written {
        Some(rows) => format!(
            "{} inserted, updated or deleted in {} since the restore began.",
            text::counted(rows, "row was", "rows were"),
            text::clean(&needs.database)
        ),
        None => {
            format!("Nobody knows how much was written to {} since the restore began.", text::clean(&needs.database))
        }
    };
    Question {
        title: "What was written meanwhile will not be in the restored database. Go on?".into(),
        why: format!("{much} It stays in the present one, which is kept; more may come until the exchange."),
        answers: Answers::One(vec![Choice {
            label: "Go on: those writes stay behind".into(),
            consequences: vec![
                "Rows can be brought over later: as some tables, from a dump of the kept database.".into(),
                "To lose none, stop the application, go back, and look again.".into(),
            ],
            fact: Fact::LeaveWrites,
            recommended: false,
            unavailable: None,
        }]),
    }
}
