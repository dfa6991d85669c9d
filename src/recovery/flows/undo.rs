//! A merge turned out to be wrong: its pre-images are written back, for the rows that nobody has changed since.
//!
//! Nothing is asked but consent: what can be taken back is looked up fresh, and the rows that cannot are listed.

use super::{Next, Refusal};
use crate::files::put::Placed;
use crate::postgres::database::Exchange;
use crate::postgres::merge::Recreation;
use crate::recovery::plan::{Plan, Step};
use crate::recovery::record::{Finding, Look, Record};

/// What comes next in undoing the merge of `recovery`.
pub fn next(recovery: &str, record: &Record) -> Next {
    let look = Look::Undo { recovery: recovery.into() };
    let Some(Finding::Undo(undo)) = record.finding(&look) else { return Next::Look(look) };
    if undo.tables.iter().all(|table| table.remove + table.set_back + table.bring_back == 0) {
        return Next::Refuse(Refusal {
            why: "every row that this recovery wrote has been changed since by somebody else: there is nothing to take back".into(),
            hints: vec!["The pre-images are still there; compare them by hand if you need to.".into()],
        });
    }
    Next::Ready(Plan { steps: vec![Step::UndoRows { recovery: recovery.into(), undo: undo.clone() }] })
}

/// What comes next in giving production's name back to the database that had it before `recovery`.
pub fn next_database(recovery: &str, exchange: &Exchange, record: &Record) -> Next {
    let look = Look::WayBack { exchange: Box::new(exchange.clone()) };
    let Some(Finding::WayBack(way)) = record.finding(&look) else { return Next::Look(look) };
    if let Err(why) = way {
        return Next::Refuse(Refusal {
            why: format!("the earlier database cannot come back: {why}"),
            hints: vec![
                "Somebody has renamed or dropped one of them since. lifeboat clean lists what is there.".into(),
            ],
        });
    }
    Next::Ready(Plan { steps: vec![Step::ExchangeBack { recovery: recovery.into(), exchange: exchange.clone() }] })
}

/// What comes next in moving tables aside that `recovery` made again. Nothing has to be looked up: they move with all their
/// rows, whoever wrote them.
pub fn next_tables(recovery: &str, recreation: &Recreation) -> Next {
    Next::Ready(Plan {
        steps: vec![Step::RemoveRecreated { recovery: recovery.into(), recreation: recreation.clone() }],
    })
}

/// What comes next in taking back the files that `recovery` put in place.
pub fn next_files(recovery: &str, placed: &[Placed], record: &Record) -> Next {
    let look = Look::Placed { recovery: recovery.into(), placed: placed.to_vec() };
    let Some(Finding::Placed(can, cannot)) = record.finding(&look) else { return Next::Look(look) };
    if can.is_empty() {
        let hints = cannot.iter().take(5).map(|(path, why)| format!("{path}: {why}.")).collect();
        return Next::Refuse(Refusal { why: "none of these files can be taken back".into(), hints });
    }
    Next::Ready(Plan { steps: vec![Step::UndoFiles { recovery: recovery.into(), placed: can.clone() }] })
}
