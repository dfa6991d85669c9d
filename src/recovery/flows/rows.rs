//! Rows were lost or damaged: somebody ran an UPDATE without a WHERE, or a DELETE that cascaded.
//!
//! The table is still there. Rows of a `pg_dump` archive are loaded beside production, compared by key, and the chosen ones
//! are written back. Not for a table that was dropped whole. When most of the database is gone, [`super::database`] goes on
//! from the dump that was chosen here.
//!
//! The operator is asked: when it happened, from which recovery point, what is to come back, which dump, which tables,
//! whether loading them beside production is all right, how to pair rows where there is no key, which rows to write, and
//! what the table's triggers should do meanwhile. Consent comes last, when everything is known.

use std::time::Duration;

use chrono::{DateTime, FixedOffset, Local, LocalResult, NaiveDateTime, NaiveTime, TimeZone, Utc};

use super::{Answers, Choice, Next, Place, Question, RankedPoint, Refusal};
use crate::error::{Error, Result};
use crate::postgres::diff::TableDiff;
use crate::postgres::merge::{ChangeSet, Triggers};
use crate::postgres::name::Name;
use crate::recovery::plan::{Plan, Step};
use crate::recovery::record::{
    CLONE, Contents, DISK, Fact, Finding, Incident, Look, NamedKey, Point, Record, Scope, State, TableState, Tables,
};
use crate::text;

/// What comes next, from everything that is known.
pub fn next(record: &Record) -> Next {
    let Some(points) = record.points() else { return Next::Look(Look::Points) };
    if points.is_empty() && !record.wal {
        return refuse(
            "there is no recovery point in this repository",
            &["Check the repository, and the tags and host of the configuration."],
        );
    }
    let Some(incident) = record.incident() else { return Next::Ask(ask_incident()) };
    let Some(scope) = record.scope() else { return Next::Ask(ask_scope(points, record.wal)) };
    if scope == Scope::Files {
        let Some(point) = record.point() else { return Next::Ask(ask_point_of_files(record, points, incident)) };
        let Some(point) = points.iter().find(|found| found.id == point) else {
            return refuse("the recovery point is not there any more", &["Go back and choose another one."]);
        };
        return super::files::next(record, point);
    }
    if scope == Scope::Moment {
        return super::point_in_time::next(record, incident);
    }
    let Some(point) = record.point() else {
        return match propose(record, points, incident) {
            Ok(proposed) => Next::Ask(ask_point(record, points, incident, proposed)),
            Err(look) => Next::Look(look),
        };
    };

    let look = Look::Contents { point: point.into() };
    let Some(Finding::Contents(contents)) = record.finding(&look) else { return Next::Look(look) };
    let dump = match (record.dump(), contents.dumps.as_slice()) {
        (Some(dump), _) => dump,
        (None, []) => {
            return refuse(
                "no database dump lies in this recovery point",
                &["Go back and choose one whose \"inside\" column names a database."],
            );
        }
        (None, [dump]) if dump.damage.is_none() => &dump.path,
        (None, _) => return ask_dump(contents),
    };

    if scope == Scope::System {
        return super::database::next(record, point, dump);
    }
    from_origin(record, point, dump)
}

/// What comes next, when it is known where rows come from: a dump, or a database of the clone that is a moment in time.
pub(super) fn from_origin(record: &Record, point: &str, dump: &str) -> Next {
    let look = Look::Tables { point: point.into(), dump: dump.into() };
    let Some(Finding::Tables(found)) = record.finding(&look) else { return Next::Look(look) };
    if let Some(why) = &found.server.refusal {
        return refuse(
            why,
            &["Connect to the primary as a role that may create a schema, and own or write the tables."],
        );
    }
    let Some(names) = record.tables() else { return Next::Ask(ask_tables(found, point)) };
    let chosen: Vec<&TableState> =
        names.iter().filter_map(|name| found.tables.iter().find(|table| table.backup.name == *name)).collect();
    if point == CLONE && chosen.iter().any(|table| table.state() == State::Dropped) {
        return lost_tables(record, &chosen, dump);
    }
    if let Some(refusal) = unfit(&chosen) {
        return Next::Refuse(refusal);
    }
    if !record.stage() {
        return Next::Ask(ask_stage(&chosen, found, point));
    }
    let Some(keys) = record.keys().or_else(|| chosen.iter().all(|table| has_key(table)).then_some(&[])) else {
        return Next::Ask(ask_key(&chosen));
    };

    let look = Look::Diff { point: point.into(), dump: dump.into(), tables: names.to_vec(), keys: keys.to_vec() };
    let Some(Finding::Diff(diffs)) = record.finding(&look) else { return Next::Look(look) };
    if diffs.iter().all(|diff| diff.missing + diff.changed + diff.extra == 0) {
        return refuse(
            "production and the backup hold the same rows in these tables: there is nothing to bring back",
            &["Go back and choose other tables, or an earlier recovery point."],
        );
    }
    let Some(rows) = record.rows() else { return Next::Ask(ask_rows(diffs)) };
    if rows.iter().all(|choice| choice.classes.is_empty()) {
        return refuse("no row was chosen", &["Go back and choose rows to write."]);
    }
    let triggers = match record.triggers() {
        Some(triggers) => triggers,
        None if fires(&chosen, rows) => return Next::Ask(ask_triggers(&chosen)),
        None => Triggers::Fire,
    };

    let look = Look::Freeze { rows: rows.to_vec(), triggers };
    let Some(Finding::Frozen(changes)) = record.finding(&look) else { return Next::Look(look) };
    if let Some(refusal) = blocked(changes) {
        return Next::Refuse(refusal);
    }
    let mut plan = plan(changes);
    plan.steps.extend(super::point_in_time::drop_clone(record, point));
    Next::Ready(plan)
}

/// Tables that production has no more are made again out of the clone, with all their rows.
fn lost_tables(record: &Record, chosen: &[&TableState], database: &str) -> Next {
    if chosen.iter().any(|table| table.state() != State::Dropped) {
        return refuse(
            "some of these tables are in production, and others are not any more",
            &["Go back and choose the lost ones alone: they are made again. Compare the others after that."],
        );
    }
    let tables: Vec<Name> = chosen.iter().map(|table| table.backup.name.clone()).collect();
    let look = Look::Recreate { dump: database.into(), tables };
    let Some(Finding::Recreate(recreation)) = record.finding(&look) else { return Next::Look(look) };
    if let Some((why, hint)) = &recreation.refusal {
        return refuse(&text::clean(why), &[&text::clean(hint)]);
    }
    let steps = [
        Step::RecreateTables { recreation: recreation.clone() },
        Step::ProveRecreated { recreation: recreation.clone() },
    ];
    Next::Ready(Plan { steps: steps.into_iter().chain(super::point_in_time::drop_clone(record, CLONE)).collect() })
}

fn ask_incident() -> Question {
    Question {
        title: "When did it happen?".into(),
        why: "The newest recovery point before that moment is the one to use. Write 14:00, 2026-01-15 14:00, \
              2026-01-15T14:00:00Z or \"2h ago\"; leave it empty when nobody knows."
            .into(),
        answers: Answers::Time,
    }
}

/// Reads what an operator types for the incident time. Without a zone it is the zone of this terminal; a time without a
/// date is the last time the clock showed it.
pub fn parse_incident(text: &str, now: DateTime<Utc>) -> Result<Fact> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(Fact::Incident(Incident::Unknown));
    }
    let instant = parse_instant(text, now).ok_or_else(|| {
        Error::operator(format!("\"{}\" is not a time", text::clean(text)))
            .hint("Write 14:00, 2026-01-15 14:00, 2026-01-15T14:00:00Z or \"2h ago\".")
    })?;
    if instant > now {
        return Err(Error::operator("that is in the future").hint("Check the date and the zone."));
    }
    Ok(Fact::Incident(Incident::At(instant)))
}

fn parse_instant(text: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    if let Some(ago) = text.strip_suffix("ago") {
        let ago = ago.trim();
        let unit = ago.find(|letter: char| !letter.is_ascii_digit())?;
        let amount: i64 = ago[..unit].parse().ok()?;
        let seconds = match ago[unit..].trim() {
            "m" | "min" | "minutes" => 60,
            "h" | "hour" | "hours" => 3600,
            "d" | "day" | "days" => 86400,
            _ => return None,
        };
        return now.checked_sub_signed(chrono::Duration::try_seconds(amount.checked_mul(seconds)?)?);
    }
    if let Some(instant) = zoned(text) {
        return Some(instant.to_utc());
    }
    let (text, local) = match text.strip_suffix("UTC").or_else(|| text.strip_suffix('Z')) {
        Some(rest) => (rest.trim(), false),
        None => (text, true),
    };
    let instant = |naive: NaiveDateTime| match (local, Local.from_local_datetime(&naive)) {
        (false, _) => Some(naive.and_utc()),
        (true, LocalResult::Single(instant) | LocalResult::Ambiguous(_, instant)) => Some(instant.to_utc()),
        (true, LocalResult::None) => None,
    };
    if let Some(naive) = unzoned(text) {
        return instant(naive);
    }
    let time =
        NaiveTime::parse_from_str(text, "%H:%M:%S").or_else(|_| NaiveTime::parse_from_str(text, "%H:%M")).ok()?;
    let today = if local { now.with_timezone(&Local).date_naive() } else { now.date_naive() };
    let candidate = instant(today.and_time(time))?;
    if candidate > now { instant(today.pred_opt()?.and_time(time)) } else { Some(candidate) }
}

/// A date and time that are written with their zone: they mean one instant, wherever and whenever they are read.
pub fn zoned(text: &str) -> Option<DateTime<FixedOffset>> {
    if let Some(utc) = text.strip_suffix("UTC").or_else(|| text.strip_suffix('Z')) {
        return unzoned(utc.trim()).map(|naive| naive.and_utc().fixed_offset());
    }
    ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M"].iter().find_map(|format| {
        let with = |zone: &str| DateTime::parse_from_str(text, &format!("{format}{zone}")).ok();
        with("%#z").or_else(|| with(" %#z"))
    })
}

/// A date and time without a zone.
pub fn unzoned(text: &str) -> Option<NaiveDateTime> {
    ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"]
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
}

/// Further points than this are not looked into for a dump before the operator is asked.
const LOOKED_INTO: usize = 50;

/// The newest point before the incident that holds a readable dump; or the look that is still needed to know.
fn propose<'a>(record: &Record, points: &'a [Point], incident: Incident) -> Result<Option<&'a Point>, Look> {
    let before = |point: &&Point| match incident {
        Incident::At(incident) => point.instant <= incident,
        Incident::Unknown => true,
    };
    let mut candidates: Vec<&Point> = points.iter().filter(before).collect();
    candidates.sort_by_key(|point| std::cmp::Reverse(point.instant));
    for point in candidates.into_iter().take(LOOKED_INTO) {
        match holds_dump(record, point) {
            Some(true) => return Ok(Some(point)),
            Some(false) => {}
            None => return Err(Look::Contents { point: point.id.clone() }),
        }
    }
    Ok(None)
}

/// Whether a readable dump lies in a point; `None` while nobody has looked.
fn holds_dump(record: &Record, point: &Point) -> Option<bool> {
    match record.finding(&Look::Contents { point: point.id.clone() }) {
        Some(Finding::Contents(contents)) => Some(contents.dumps.iter().any(|dump| dump.damage.is_none())),
        _ => None,
    }
}

/// Files may lie in any point; the newest before the incident is proposed.
fn ask_point_of_files(record: &Record, points: &[Point], incident: Incident) -> Question {
    let newest = |incident| points.iter().filter(|point| point.instant <= incident).max_by_key(|point| point.instant);
    let proposed = if let Incident::At(incident) = incident { newest(incident) } else { None };
    let mut question = ask_point(record, points, incident, proposed);
    question
        .why
        .push_str(" Look into any of them: v on a file shows since when it has been what; Esc comes back here.");
    if let Answers::Point(ranked) = &mut question.answers {
        for ranked in ranked.iter_mut().filter(|ranked| ranked.place == Place::NoDump) {
            ranked.place = match incident {
                Incident::At(incident) => {
                    let loss = (incident - ranked.point.instant.to_utc()).to_std().unwrap_or_default();
                    Place::Before { loss }
                }
                Incident::Unknown => Place::Unranked,
            };
        }
    }
    question
}

fn ask_point(record: &Record, points: &[Point], incident: Incident, proposed: Option<&Point>) -> Question {
    let ranked = rank(record, points, incident, proposed);
    let loss =
        ranked.iter().find_map(|ranked| if let Place::Proposed { loss } = ranked.place { Some(loss) } else { None });
    let objective = match (loss, record.rpo) {
        (Some(loss), Some(rpo)) => format!(
            " It loses {}, which is {} this system's RPO of {}.",
            text::duration(loss),
            if loss > rpo { "MORE than" } else { "within" },
            text::duration(rpo)
        ),
        _ => String::new(),
    };
    Question {
        title: "Which recovery point?".into(),
        why: match incident {
            Incident::At(_) => {
                format!("The newest one before the incident loses least. Those after it hold the damage.{objective}")
            }
            Incident::Unknown => {
                "Nobody knows when it happened: take the newest one that you believe is from before the damage.".into()
            }
        },
        answers: Answers::Point(ranked),
    }
}

/// Places every point beside the incident; newest first, as they came.
fn rank(record: &Record, points: &[Point], incident: Incident, proposed: Option<&Point>) -> Vec<RankedPoint> {
    let place = |point: &Point| {
        let Incident::At(incident) = incident else {
            return if holds_dump(record, point) == Some(false) { Place::NoDump } else { Place::Unranked };
        };
        match (incident - point.instant.to_utc()).to_std() {
            Err(_) => Place::After,
            Ok(loss) if proposed.is_some_and(|proposed| proposed.id == point.id) => Place::Proposed { loss },
            Ok(_) if holds_dump(record, point) == Some(false) => Place::NoDump,
            Ok(loss) => Place::Before { loss },
        }
    };
    points.iter().map(|point| RankedPoint { point: point.clone(), place: place(point) }).collect()
}

fn ask_scope(points: &[Point], wal: bool) -> Question {
    let no_point = points.is_empty().then(|| "there is no recovery point in the repository".to_owned());
    // A repository of nothing but file servers, tagged as the procedure tags them.
    let only_files = !points.is_empty() && points.iter().all(|point| point.tags.iter().any(|tag| tag == "fileserver"));
    let tables = Choice {
        label: "Some tables".into(),
        consequences: vec![
            "Rows of chosen tables come back; everything else in production stays as it is.".into(),
            "You see every difference before anything changes. Can be undone.".into(),
        ],
        fact: Fact::Scope(Scope::Tables),
        recommended: !only_files && !points.is_empty(),
        unavailable: no_point.clone(),
    };
    let files = Choice {
        label: "Some files".into(),
        consequences: vec![
            "Files and folders come back beside the present ones, or in their place; what is there is kept.".into(),
            "Can be undone.".into(),
        ],
        fact: Fact::Scope(Scope::Files),
        recommended: only_files,
        unavailable: no_point
            .clone()
            .or_else(|| points.iter().all(|point| point.id == DISK).then(|| "a dump on disk holds no files".into())),
    };
    Question {
        title: "What has to come back?".into(),
        why: "The smallest scope that covers the damage loses least: everything written since the recovery point is kept \
              outside that scope."
            .into(),
        answers: Answers::One(vec![
            tables,
            files,
            Choice {
                label: "A moment in time".into(),
                consequences: vec![
                    "A base backup and WAL are replayed to just before the damage, in a second cluster beside production.".into(),
                    "Loses least of all. Tables are brought back out of it, also dropped ones, or all of it.".into(),
                ],
                fact: Fact::Scope(Scope::Moment),
                recommended: points.is_empty(),
                unavailable: (!wal).then(|| "base_backups and wal_archive are not configured".into()),
            },
            Choice {
                label: "The full system".into(),
                consequences: vec![
                    "The whole database is restored beside production, checked, and takes its place.".into(),
                    "For when most of it is gone: every write since the recovery point is lost. Can be undone.".into(),
                ],
                fact: Fact::Scope(Scope::System),
                recommended: false,
                unavailable: no_point,
            },
        ]),
    }
}

fn ask_dump(contents: &Contents) -> Next {
    let choices = contents.dumps.iter().map(|dump| {
        let database = dump.header.database.as_deref().unwrap_or("an unnamed database");
        Choice {
            label: dump.path.clone(),
            consequences: vec![match dump.tables {
                Some(tables) => format!(
                    "{}, {}, {}",
                    text::clean(database),
                    text::counted(tables, "table", "tables"),
                    text::bytes(dump.size_bytes)
                ),
                None => format!("{}, cannot be read", text::bytes(dump.size_bytes)),
            }],
            fact: Fact::Dump(dump.path.clone()),
            recommended: false,
            unavailable: dump.damage.clone(),
        }
    });
    Next::Ask(Question {
        title: "Which dump?".into(),
        why: "The recovery point holds these database dumps, found by their content.".into(),
        answers: Answers::One(choices.collect()),
    })
}

fn ask_tables(found: &Tables, point: &str) -> Question {
    let warnings = found.server.warnings.iter().map(|warning| format!(" Note: {}.", text::clean(warning)));
    let warnings: String = warnings.collect();
    Question {
        title: "Which tables are damaged?".into(),
        why: format!(
            "Mark them with Space. Rows that a DELETE took along by ON DELETE CASCADE are in the tables that refer to it: \
             mark those too.{} Compared with {} on {}.{warnings}",
            if point == CLONE { " Those that are not in production any more are made again." } else { "" },
            text::clean(&found.server.database),
            text::clean(&found.server.shown)
        ),
        answers: Answers::Tables(found.tables.clone()),
    }
}

/// Tables that this flow cannot serve.
fn unfit(chosen: &[&TableState]) -> Option<Refusal> {
    if chosen.iter().filter(|table| table.live.is_some() && !has_key(table)).count() > 1 {
        return Some(Refusal {
            why: "more than one of these tables has no key".into(),
            hints: vec!["Go back and take them one at a time: each needs a key of its own.".into()],
        });
    }
    for table in chosen {
        let name = text::clean(&table.backup.name.to_string()).into_owned();
        let (why, hint) = if table.backup.inserts {
            (
                format!("{name} was dumped as INSERT statements, which are not run"),
                "Choose a dump made without --inserts.",
            )
        } else if !table.backup.has_data {
            (format!("the dump holds no rows of {name}"), "Choose another dump or another recovery point.")
        } else if table.state() == State::Dropped {
            (
                format!("{name} does not exist in production any more"),
                "Create it first, from what pg_restore --schema-only prints of it; then its rows can be brought back here.",
            )
        } else if table.live.as_ref().is_some_and(|live| live.row_security) {
            (
                format!("row-level security of {name} hides rows from this role"),
                "Connect as its owner or as a role with BYPASSRLS.",
            )
        } else {
            continue;
        };
        return Some(Refusal { why, hints: vec![hint.into()] });
    }
    None
}

fn ask_stage(chosen: &[&TableState], found: &Tables, point: &str) -> Question {
    let bytes: u64 = chosen.iter().filter_map(|table| table.backup.compressed_size).sum();
    let rows: u64 = chosen.iter().filter_map(|table| table.backup_rows.map(|estimate| estimate.rows)).sum();
    let how_many = if point == CLONE {
        format!(
            "Of about {}, only those that somebody has touched since; all, where that cannot be told. Into a schema of \
             Lifeboat's own.",
            text::counted(rows, "row", "rows")
        )
    } else {
        format!(
            "About {} ({} compressed) into a schema of Lifeboat's own.",
            text::counted(rows, "row", "rows"),
            text::bytes(bytes)
        )
    };
    let load = Choice {
        label: "Load them beside production".into(),
        consequences: vec![
            how_many,
            "Unlogged tables, nobody else can read them, removed at the end. No table of yours is touched.".into(),
        ],
        fact: Fact::Stage,
        recommended: true,
        unavailable: None,
    };
    Question {
        title: "Load the backup's rows beside production?".into(),
        why: format!(
            "To compare, the rows have to be in the same server: {} on {}.",
            text::clean(&found.server.database),
            text::clean(&found.server.shown)
        ),
        answers: Answers::One(vec![load]),
    }
}

fn has_key(table: &TableState) -> bool {
    table.live.as_ref().is_some_and(|live| !live.keys.is_empty())
}

fn ask_key(chosen: &[&TableState]) -> Question {
    let table = chosen.iter().find(|table| !has_key(table));
    let (name, columns) = table.map_or_else(
        || (Name::new("", ""), Vec::new()),
        |table| (table.backup.name.clone(), table.backup.copied.clone()),
    );
    Question {
        title: format!("Which columns say that two rows of {} are the same?", text::clean(&name.to_string())),
        why: "It has no primary key and no unique index. The columns you name are proven unique on both sides before \
              anything is compared. Name none to compare without a key: you will see how many copies of each row are \
              missing, but nothing can be merged."
            .into(),
        answers: Answers::Key { table: name, columns },
    }
}

fn ask_rows(diffs: &[TableDiff]) -> Question {
    Question {
        title: "Which rows should be written?".into(),
        why:
            "Missing rows come back, changed rows get the backup's values again. Extra rows are new business: they are \
              never deleted unless you choose them."
                .into(),
        answers: Answers::Rows(diffs.to_vec()),
    }
}

/// Whether triggers of ours to decide about would fire.
fn fires(chosen: &[&TableState], rows: &[crate::postgres::merge::Choice]) -> bool {
    use crate::postgres::diff::Class;
    chosen.iter().any(|table| {
        let Some(live) = &table.live else { return false };
        let Some(choice) = rows.iter().find(|choice| choice.table == live.name) else { return false };
        live.triggers.iter().any(|trigger| {
            (trigger.on_insert && choice.classes.contains(&Class::Missing))
                || (trigger.on_update && choice.classes.contains(&Class::Changed))
                || (trigger.on_delete && choice.classes.contains(&Class::Extra))
        })
    })
}

fn ask_triggers(chosen: &[&TableState]) -> Question {
    let triggers: Vec<_> =
        chosen.iter().filter_map(|table| table.live.as_ref()).flat_map(|live| &live.triggers).collect();
    // A BEFORE trigger can replace the very values that are being put back.
    let rewrites = triggers.iter().any(|trigger| trigger.before && trigger.per_row);
    let names: Vec<_> = triggers
        .iter()
        .map(|trigger| {
            let when = if trigger.before { "before" } else { "after" };
            format!("{} ({when}, runs {})", text::clean(&trigger.name), text::clean(&trigger.function.to_string()))
        })
        .collect();
    let owned = chosen.iter().filter_map(|table| table.live.as_ref()).all(|live| live.owned);
    Question {
        title: "Should the tables' triggers fire?".into(),
        why: format!("These would: {}.", names.join(", ")),
        answers: Answers::One(vec![
            Choice {
                label: "Skip them for this merge".into(),
                consequences: vec![
                    "The backup's values are written as they are; foreign keys are still enforced.".into(),
                    "Writers of these tables wait while the merge runs.".into(),
                ],
                fact: Fact::Triggers(Triggers::Skip),
                recommended: rewrites && owned,
                unavailable: (!owned).then(|| "only the table's owner can do that".into()),
            },
            Choice {
                label: "Let them fire".into(),
                consequences: vec![
                    "Audit rows are written, notifications are sent, as for any change.".into(),
                    "If one changes the values that are put back, everything is rolled back and you are told which."
                        .into(),
                ],
                fact: Fact::Triggers(Triggers::Fire),
                recommended: !(rewrites && owned),
                unavailable: None,
            },
        ]),
    }
}

/// What would make the merge fail.
fn blocked(changes: &ChangeSet) -> Option<Refusal> {
    if changes.tables.iter().all(|table| table.inserts + table.updates + table.deletes == 0) {
        return Some(Refusal {
            why: "no row was chosen".into(),
            hints: vec!["Go back and choose rows to write.".into()],
        });
    }
    let violations: Vec<_> = changes
        .tables
        .iter()
        .flat_map(|table| table.violations.iter().map(move |violation| (table, violation)))
        .collect();
    if violations.is_empty() {
        return None;
    }
    let why = violations.iter().map(|(table, violation)| {
        format!(
            "{}: {}, in {} ({}), for example {}",
            text::clean(&table.table.to_string()),
            text::clean(&violation.what),
            text::counted(violation.rows, "row", "rows"),
            text::clean(&violation.constraint),
            text::clean(&violation.sample.join("; "))
        )
    });
    Some(Refusal {
        why: format!("these rows cannot be written. {}", why.collect::<Vec<_>>().join(". ")),
        hints: vec!["Go back and choose the tables they refer to as well, or leave those rows out.".into()],
    })
}

fn plan(changes: &ChangeSet) -> Plan {
    Plan {
        steps: vec![
            Step::MergeRows { changes: changes.clone() },
            Step::Prove { changes: changes.clone() },
            Step::DropScratch,
        ],
    }
}

fn refuse(why: &str, hints: &[&str]) -> Next {
    Next::Refuse(Refusal { why: why.into(), hints: hints.iter().map(ToString::to_string).collect() })
}

/// How long an incident window is, for the places that show it.
pub fn loss(place: Place) -> Option<Duration> {
    match place {
        Place::Proposed { loss } | Place::Before { loss } => Some(loss),
        Place::After | Place::NoDump | Place::Unranked => None,
    }
}

/// A key for each table of the choice that has none, from one answer.
pub fn named_keys(table: Name, columns: Vec<String>) -> Fact {
    Fact::Keys(vec![NamedKey { table, columns }])
}
