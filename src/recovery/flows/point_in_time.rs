//! A moment in time: a base backup and WAL become a second cluster beside production, as of just before the damage.
//!
//! What can be reached is looked up first, together with the transactions that deleted, updated or dropped something around
//! the incident. The operator is asked: which moment, whether the cluster may be laid out, and what it is for, which can also
//! be answered with the moment one commit earlier or later. Tables are brought back out of it (by the same questions as from a dump, [`super::rows`]; those that production has no more are made
//! again), or its whole database takes production's place ([`super::database`]), or it stays to be looked into.

use chrono::{DateTime, Utc};

use super::{Answers, Choice, Next, Question, Refusal};
use crate::backup::wal::Lsn;
use crate::error::{Error, Result};
use crate::postgres::cluster::{Commit, Target};
use crate::postgres::waldump::Suspect;
use crate::recovery::plan::{Plan, Step};
use crate::recovery::record::{Aim, CLONE, Cloned, Fact, Finding, Incident, Look, Moments, Reached, Record, Use};
use crate::text;

/// So much more room than the base backup takes is asked for: it may be packed, and WAL grows it.
const ROOM: u64 = 4;
/// So many settings are named.
const NAMED: usize = 6;

/// What comes next, when the incident time is known as well as it is.
pub fn next(record: &Record, incident: Incident) -> Next {
    let incident = if let Incident::At(at) = incident { Some(at) } else { None };
    let look = Look::Moments { incident };
    let Some(Finding::Moments(moments)) = record.finding(&look) else { return Next::Look(look) };
    if moments.searched.is_none() {
        return Next::Refuse(out_of_reach(moments));
    }
    let Some(aim) = record.aim() else { return Next::Ask(ask_moment(moments, incident)) };

    let look = Look::Reach { aim: aim.clone() };
    let Some(Finding::Reached(reached)) = record.finding(&look) else { return Next::Look(look) };
    let reached = match reached {
        Ok(reached) => reached,
        Err((why, hints)) => {
            let clean = |text: &String| text::clean(text).into_owned();
            return Next::Refuse(Refusal { why: clean(why), hints: hints.iter().map(clean).collect() });
        }
    };
    if record.lay_out().is_none() {
        return Next::Ask(ask_lay_out(aim, reached));
    }

    let look = Look::LayOut { reached: reached.clone() };
    let Some(Finding::Cloned(clone)) = record.finding(&look) else { return Next::Look(look) };
    match (record.clone_use(), &clone.database) {
        (None, _) => Next::Ask(ask_use(aim, clone, reached)),
        (Some(Use::Tables), Some(database)) => super::rows::from_origin(record, CLONE, database),
        (Some(Use::Whole), Some(database)) => super::database::next(record, CLONE, database),
        (Some(_), _) => Next::Ready(Plan { steps: vec![Step::KeepClone { clone: (**clone).clone() }] }),
    }
}

/// The last step of whatever a clone was for; none for a dump.
pub(super) fn drop_clone(record: &Record, point: &str) -> Option<Step> {
    let folder = record.lay_out().filter(|_| point == CLONE)?;
    Some(Step::DropClone { folder: folder.to_owned() })
}

fn out_of_reach(moments: &Moments) -> Refusal {
    let windows = moments.windows.iter().map(|window| {
        let why = window
            .refusal
            .as_ref()
            .map_or_else(|| "no transaction ended in the WAL after it".into(), |(why, hint)| format!("{why}. {hint}"));
        format!("{}: {why}", window.base)
    });
    let hints: Vec<_> =
        windows.chain(moments.notes.iter().cloned()).take(NAMED).map(|hint| text::clean(&hint).into_owned()).collect();
    Refusal { why: "no moment can be reached from the base backups and the WAL that are configured".into(), hints }
}

/// The transaction that is proposed: the one after which most is gone.
pub fn heaviest(moments: &Moments) -> Option<&Suspect> {
    moments.suspects.iter().max_by_key(|suspect| suspect.weight())
}

fn ask_moment(moments: &Moments, incident: Option<DateTime<Utc>>) -> Question {
    let between = moments.searched.map_or_else(String::new, |(from, until)| {
        let day = "%Y-%m-%d %H:%M:%S";
        format!(
            " These deleted, updated or dropped something between {} and {} UTC.",
            from.format(day),
            until.format(day)
        )
    });
    let outside = match incident {
        Some(at) if !moments.windows.iter().any(|window| window.holds(at)) => {
            " The incident time itself is not among the instants that can be reached."
        }
        _ => "",
    };
    Question {
        title: "Which moment should come back?".into(),
        why: format!("Stop just before the transaction that did it, and nothing else is lost.{between}{outside}"),
        answers: Answers::Moment(Box::new(moments.clone())),
    }
}

fn shown(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(|| "not known".into(), |at| at.format("%Y-%m-%d %H:%M:%S%.6f UTC").to_string())
}

fn ask_lay_out(aim: &Aim, reached: &Reached) -> Question {
    let mut consequences = vec![
        format!(
            "From {}, begun {}, and up to {} of WAL on timeline {}.",
            text::clean(&reached.base),
            text::clean(&reached.started),
            text::counted(reached.segments, "segment", "segments"),
            reached.timeline
        ),
        format!(
            "Into {}: the base backup takes {} as it is stored{}.",
            text::clean(&reached.folder),
            text::bytes(reached.bytes),
            reached.free.map_or_else(String::new, |free| format!(", {} are free there", text::bytes(free)))
        ),
        "A server of its own on this machine: no network, no archiving, no subscriptions, no jobs. Production is not touched."
            .into(),
        "It is removed again at the end, unless you keep it.".into(),
    ];
    if !reached.same_system {
        consequences.push(
            "NOTE: the base backup is of another cluster than the server you are connected to: another system identifier."
                .into(),
        );
    }
    if reached.free.is_some_and(|free| free < reached.bytes.saturating_mul(ROOM)) {
        consequences.push("NOTE: unpacked it may take several times that. There may be too little room.".into());
    }
    Question {
        title: format!("Lay out a second cluster as of {}?", aim.told()),
        why: format!(
            "It can be reached. The last transaction in it ended {}, the first one left out {}.",
            shown(reached.before),
            reached.after.map_or_else(|| "is not in the WAL".into(), |at| shown(Some(at)))
        ),
        answers: Answers::One(vec![Choice {
            label: "Lay it out and replay".into(),
            consequences,
            fact: Fact::LayOut(reached.folder.clone()),
            recommended: true,
            unavailable: None,
        }]),
    }
}

fn ask_use(aim: &Aim, clone: &Cloned, reached: &Reached) -> Question {
    let no_database = clone.database.is_none().then(|| "it has no database of production's name".to_owned());
    let choice = |label: &str, consequences: Vec<String>, what, recommended| Choice {
        label: label.into(),
        consequences,
        fact: Fact::Use(what),
        recommended,
        unavailable: if what == Use::Keep { None } else { no_database.clone() },
    };
    let mut choices = vec![
        choice(
            "Bring tables back out of it",
            vec![
                format!(
                    "One of {}: rows are compared and merged as from a dump.",
                    text::counted(clone.tables, "table", "tables")
                ),
                "Those that production has no more are made again. Can be undone.".into(),
            ],
            Use::Tables,
            clone.database.is_some(),
        ),
        choice(
            "Its whole database takes production's place",
            vec![
                "Copied beside production, checked, exchanged; the present one is kept.".into(),
                "Every write since that moment stays behind in it. Can be undone.".into(),
            ],
            Use::Whole,
            false,
        ),
        choice(
            "Keep it as it is",
            vec![
                "To look into, or to switch the service to it by hand: the plan says how.".into(),
                "lifeboat status lists it until it is dropped. Nothing else changes.".into(),
            ],
            Use::Keep,
            clone.database.is_none(),
        ),
    ];
    choices.extend(neighbours(aim, reached));
    Question {
        title: format!("It stands {}. What is it for?", text::clean(&clone.stop)),
        why: format!(
            "Proved: replayed up to {}; the last transaction in it ended {}{}.{} Look into it before you choose.",
            text::clean(&clone.proof.replay_lsn),
            shown(clone.proof.last_transaction),
            if reached.before == clone.proof.last_transaction { ", as the WAL said" } else { "" },
            checked(clone),
        ),
        answers: Answers::Use { clone: Box::new(clone.clone()), choices },
    }
}

/// What the queries of the configuration say of it.
fn checked(clone: &Cloned) -> String {
    let (all, held) = (clone.asked.len(), clone.asked.iter().filter(|asked| asked.holds()).count());
    let Some(wrong) = clone.asked.iter().find(|asked| !asked.holds()) else {
        return if all == 0 { String::new() } else { format!(" Checks: {held} of {all} hold.") };
    };
    let found = match &wrong.found {
        Ok(found) => format!("{found}, at least {} expected", wrong.at_least),
        Err(why) => why.clone(),
    };
    let (query, found) = (text::clean(&wrong.query), text::clean(&found));
    format!(" Checks: only {held} of {all} hold. NOT \"{query}\": {found}.")
}

/// The moments next to this one, one commit away on either side. A cluster whose replay has ended cannot go on from where it
/// is, and none can go back: both are laid out anew, after the question that tells what it takes.
fn neighbours(aim: &Aim, reached: &Reached) -> Vec<Choice> {
    let choice = |commit: Commit, before, (word, how): (&str, &str), consequence: &str| {
        let (xid, at) = (commit.xid, commit.at.format("%Y-%m-%d %H:%M:%S%.3f UTC"));
        Choice {
            label: format!("A moment {word}: {how} transaction {xid}, {at}"),
            consequences: vec![consequence.into()],
            fact: Fact::Aim(Aim { target: Target::Transaction(xid), before, timeline: aim.timeline }),
            recommended: false,
            unavailable: None,
        }
    };
    let earlier = reached.earlier.map(|commit| {
        let told = "Without that one, too. Laid out anew: replay cannot go backwards.";
        choice(commit, true, ("earlier", "just before"), told)
    });
    let later = reached.later.map(|commit| {
        let told = "With that one, too. Laid out anew: replay has ended here.";
        choice(commit, false, ("later", "with"), told)
    });
    earlier.into_iter().chain(later).collect()
}

impl Aim {
    /// Just before a transaction.
    pub fn before(xid: u32) -> Self {
        Self { target: Target::Transaction(xid), before: true, timeline: None }
    }

    /// In words: `just before transaction 774`.
    pub fn told(&self) -> String {
        let what = match &self.target {
            Target::Time(at) => shown(Some(*at)),
            Target::Position(lsn) => format!("position {lsn}"),
            Target::Transaction(xid) => format!("transaction {xid}"),
            Target::Named(name) => format!("restore point \"{}\"", text::clean(name)),
        };
        let before = if self.before { "just before " } else { "" };
        let timeline = self.timeline.map_or_else(String::new, |timeline| format!(" on timeline {timeline}"));
        format!("{before}{what}{timeline}")
    }
}

/// How a moment is written, for whoever types one.
pub const WRITTEN: &str = "14:00:03, 2026-01-15T14:00:00.123Z, xid 774, 0/4004E98, or name RESTORE POINT; \
    \"before\" in front stops just before it";

/// Reads what an operator types for a moment; `on timeline N` may follow it.
pub fn parse_aim(text: &str, now: DateTime<Utc>) -> Result<Aim> {
    let text = text.trim();
    let (text, timeline) = match text.rsplit_once("on timeline ") {
        Some((rest, number)) => (rest.trim(), Some(number.trim())),
        None => (text, None),
    };
    let not_read =
        || Error::operator(format!("\"{}\" is no moment", text::clean(text))).hint(format!("Write {WRITTEN}."));
    let timeline = timeline.map(|number| number.parse().map_err(|_| not_read())).transpose()?;
    let (text, before) = text.strip_prefix("before ").map_or((text, false), |rest| (rest.trim(), true));
    let after_word = |words: [&str; 2]| words.iter().find_map(|word| text.strip_prefix(word)).map(str::trim);
    let target = if let Some(number) = after_word(["xid ", "transaction "]) {
        Target::Transaction(number.parse().map_err(|_| not_read())?)
    } else if let Some(name) = after_word(["name ", "restore point "]) {
        if before || name.is_empty() || name.len() > 63 || name.contains(char::is_control) {
            return Err(not_read());
        }
        Target::Named(name.to_owned())
    } else if let Some(lsn) = Lsn::parse(text) {
        Target::Position(lsn)
    } else {
        match super::rows::parse_incident(text, now) {
            Ok(Fact::Incident(Incident::At(at))) => Target::Time(at),
            Err(error) if error.message.contains("future") => return Err(error),
            Ok(_) | Err(_) => return Err(not_read()),
        }
    };
    Ok(Aim { target, before, timeline })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_people_write_them() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
        let told = |text: &str| parse_aim(text, now).map_or_else(|error| error.message, |aim| aim.told());
        for (text, expected) in [
            ("before xid 774", "just before transaction 774"),
            ("transaction 774 on timeline 2", "transaction 774 on timeline 2"),
            ("0/4004E98", "position 0/4004E98"),
            ("name before the 'fix'", "restore point \"before the 'fix'\""),
            ("2026-01-15T14:00:00.123Z", "2026-01-15 14:00:00.123000 UTC"),
            ("before 2026-01-15T14:00:00Z", "just before 2026-01-15 14:00:00.000000 UTC"),
            ("2999-01-15T14:00:00Z", "that is in the future"),
            ("", "\"\" is no moment"),
            ("xid -1", "\"xid -1\" is no moment"),
            ("before name x", "\"before name x\" is no moment"),
            ("14:00 on timeline x", "\"14:00\" is no moment"),
        ] {
            assert_eq!(told(text), expected, "{text}");
        }
    }
}
