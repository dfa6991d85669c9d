//! What a finding says, in a line of the journal.

use chrono::{DateTime, Utc};

use super::super::record::{Finding, Incident, Look, Record};
use super::join;
use crate::postgres::database::{Checked, How};
use crate::text::{self, counted};

/// So many objects are named.
const NAMED: usize = 20;

/// What a finding says, for the journal; `None` for looks that the recovery does not go on from.
pub fn summary(record: &Record, look: &Look, finding: &Finding) -> Option<(String, String)> {
    let what = match look {
        Look::Points => return None,
        Look::Contents { point } => {
            if record.point() != Some(point) {
                return None;
            }
            "recovery point"
        }
        Look::Tables { .. } => "server",
        Look::Diff { .. } => "difference",
        Look::Freeze { .. } => "change-set",
        Look::Undo { .. } | Look::Placed { .. } => "what can be taken back",
        Look::Leftovers => "what recoveries have left",
        Look::Gather { .. } => "files",
        Look::Needs { .. } => "dump",
        Look::RestoreDatabase { .. } => "restored database",
        Look::Standing { .. } => "production",
        Look::Moments { .. } => "what can be reached",
        Look::Reach { .. } => "moment",
        Look::LayOut { .. } => "cluster as of the moment",
        Look::Recreate { .. } => "lost tables",
        Look::WayBack { .. } => "way back",
        Look::Choose { .. } => "choice of files",
    };
    let outcome = match finding {
        Finding::Points(_) => return None,
        Finding::Contents(_) => chosen_point(record)?,
        Finding::Tables(tables) => format!(
            "{}, {}, system identifier {}",
            tables.server.shown, tables.server.version, tables.server.system_identifier
        ),
        Finding::Diff(diffs) => join(diffs.iter().map(|diff| {
            format!(
                "{}: {} missing, {} changed, {} extra, {} same (backup {}, production {})",
                diff.table,
                text::count(diff.missing),
                text::count(diff.changed),
                text::count(diff.extra),
                text::count(diff.same),
                text::count(diff.backup_rows),
                text::count(diff.live_rows)
            )
        })),
        Finding::Frozen(changes) => format!(
            "{}; SHA-256 {}",
            join(changes.tables.iter().map(|table| {
                format!(
                    "{}: {} to insert, {} to update, {} to delete",
                    table.table,
                    text::count(table.inserts),
                    text::count(table.updates),
                    text::count(table.deletes)
                )
            })),
            changes.hash
        ),
        Finding::Gathered(_) | Finding::Chosen(_) | Finding::Placed(..) => summary_of_files(finding)?,
        Finding::Needs(_) | Finding::RestoredDatabase(..) | Finding::Standing(_) | Finding::WayBack(_) => {
            summary_of_database(finding)?
        }
        Finding::Moments(_) | Finding::Reached(_) | Finding::Cloned(_) | Finding::Recreate(_) => {
            summary_of_moment(finding)?
        }
        Finding::Leftovers(leftovers) => {
            join(leftovers.iter().map(|leftover| format!("{} ({})", leftover.schema, text::bytes(leftover.bytes))))
        }
        Finding::Undo(undo) => join(undo.tables.iter().map(|table| {
            format!(
                "{}: {} to remove, {} to set back, {} to bring back, {} kept since they were changed",
                table.table,
                text::count(table.remove),
                text::count(table.set_back),
                text::count(table.bring_back),
                text::count(table.kept)
            )
        })),
    };
    Some((what.into(), outcome))
}

fn summary_of_moment(finding: &Finding) -> Option<String> {
    let shown = |at: Option<DateTime<Utc>>| {
        at.map_or_else(|| "not known".into(), |at| at.format("%Y-%m-%d %H:%M:%S%.6f UTC").to_string())
    };
    Some(match finding {
        Finding::Moments(moments) => {
            let open = moments.windows.iter().filter(|window| window.refusal.is_none());
            let open = open.map(|window| {
                let (from, to) = (shown(window.earliest), shown(window.latest));
                format!("{}, timeline {}: {from} to {to}", window.base, window.timeline)
            });
            format!("{}; {} transactions of interest", join(open), moments.suspects.len())
        }
        Finding::Reached(Ok(reached)) => format!(
            "{}, from {} on timeline {}; the last transaction before ended {}, the first after {}",
            reached.stop,
            reached.base,
            reached.timeline,
            shown(reached.before),
            shown(reached.after)
        ),
        Finding::Reached(Err((why, _))) => why.clone(),
        Finding::Cloned(clone) => format!(
            "stands {} in {}; replayed up to {}, last transaction ended {}; {} of {} checks hold; the server said: {}",
            clone.stop,
            clone.folder,
            clone.proof.replay_lsn,
            shown(clone.proof.last_transaction),
            clone.asked.iter().filter(|asked| asked.holds()).count(),
            clone.asked.len(),
            clone.proof.log
        ),
        Finding::Recreate(recreation) => format!(
            "{}; SHA-256 {}",
            join(recreation.tables.iter().map(|table| format!("{}: {} rows", table.name, text::count(table.rows)))),
            recreation.hash
        ),
        _ => return None,
    })
}

fn summary_of_database(finding: &Finding) -> Option<String> {
    Some(match finding {
        Finding::Needs(needs) => format!(
            "{} of {} decoded, {}; {}",
            counted(needs.rows(), "row", "rows"),
            counted(needs.counted.len() as u64, "table", "tables"),
            text::bytes(needs.bytes()),
            needs.server
        ),
        Finding::RestoredDatabase(restored, checked) => {
            let failed = checked.asked.iter().filter(|asked| !asked.holds()).count();
            let checks = if checked.asked.is_empty() {
                String::new()
            } else {
                format!("; {failed} of {} checks FAIL", checked.asked.len())
            };
            let notes: Vec<_> = restored.notes.iter().map(|note| note.replace('\n', " ")).collect();
            let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) };
            let tables =
                restored.loaded.iter().map(|table| format!("{}: {} rows", table.table, text::count(table.rows)));
            format!(
                "{}, {} not applied{notes}, {} from production{}{checks}; {}",
                restored.database,
                text::count(restored.notes.len() as u64),
                counted(checked.different, "object differs", "objects differ"),
                differences(checked),
                join(tables)
            )
        }
        Finding::Standing(standing) => match (&standing.production, standing.written) {
            (None, _) => "there is no database of that name".into(),
            (Some(_), Some(rows)) => format!("{} written since the restore began", counted(rows, "row", "rows")),
            (Some(_), None) => "not known how much was written since the restore began".into(),
        },
        Finding::WayBack(Ok(sessions)) => format!("open; {} connected", counted(*sessions, "session", "sessions")),
        Finding::WayBack(Err(why)) => why.clone(),
        _ => return None,
    })
}

/// The first of them, by name.
fn differences(checked: &Checked) -> String {
    let named = checked.differences.iter().take(NAMED).map(|difference| {
        let how = match difference.how {
            How::OnlyRestored => "only restored",
            How::OnlyProduction => "only in production",
            How::Different => "not the same",
        };
        format!("{}: {how}", text::clean(&difference.object))
    });
    let named: Vec<_> = named.collect();
    let more = checked.different.saturating_sub(named.len() as u64);
    let more = if more > 0 { format!("; {} more", text::count(more)) } else { String::new() };
    if named.is_empty() { String::new() } else { format!(" ({}{more})", named.join("; ")) }
}

fn summary_of_files(finding: &Finding) -> Option<String> {
    Some(match finding {
        Finding::Gathered(gathered) => format!(
            "{} in {}, {}",
            counted(gathered.measure.files, "file", "files"),
            counted(gathered.measure.folders, "folder", "folders"),
            text::bytes(gathered.measure.bytes)
        ),
        Finding::Chosen(choice) => format!(
            "{} to put in place, {} the same, {} left out",
            counted(choice.writes(), "file", "files"),
            text::count(choice.same),
            text::count(choice.left_out.len() as u64)
        ),
        Finding::Placed(can, cannot) => format!(
            "{}, {} kept as they are",
            counted(can.len() as u64, "file", "files"),
            text::count(cannot.len() as u64)
        ),
        _ => return None,
    })
}

/// The chosen recovery point, and what it loses.
fn chosen_point(record: &Record) -> Option<String> {
    let point = record.points()?.iter().find(|point| record.point() == Some(&point.id))?;
    let loss = match record.incident() {
        Some(Incident::At(incident)) => match (incident - point.instant.to_utc()).to_std() {
            Ok(loss) => {
                let objective = match record.rpo {
                    Some(rpo) if loss > rpo => format!(" (more than the RPO of {})", text::duration(rpo)),
                    Some(rpo) => format!(" (within the RPO of {})", text::duration(rpo)),
                    None => String::new(),
                };
                format!(", data-loss window {}{objective}", text::duration(loss))
            }
            Err(_) => ", made after the incident".into(),
        },
        Some(Incident::Unknown) | None => String::new(),
    };
    Some(format!(
        "{} of {} from {} ({}){loss}, in {}",
        point.short(),
        point.instant.format("%Y-%m-%d %H:%M:%S %:z"),
        point.host,
        point.tags.join(", "),
        point.repository
    ))
}
