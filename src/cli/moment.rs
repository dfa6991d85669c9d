//! The commands about moments in time: what can be reached from base backups and WAL, a cluster as of a moment, and when a
//! table was written to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chrono::{DateTime, FixedOffset, Local, TimeZone as _, Utc};
use serde_json::json;

use super::{print, tell, with_progress};
use crate::backup::base::{self, Base};
use crate::backup::wal::{Lsn, Wal};
use crate::backup::{Place, Repository};
use crate::config::System;
use crate::error::{Error, Result};
use crate::postgres::cluster::{self, PORT, Proof, Reach, Spec, State, Stop, Target, USER};
use crate::postgres::connect::{connect, session_name};
use crate::postgres::name::Name;
use crate::postgres::programs;
use crate::postgres::waldump::{self, Each, Wanted};
use crate::progress::Progress;
use crate::recovery::flows::rows::{unzoned, zoned};
use crate::recovery::systems::{conninfo, location};
use crate::text::{self, clean};

/// What `lifeboat windows` is asked.
#[derive(Debug, clap::Args)]
pub struct Windows {
    /// Folders with base backups in or beneath them, trees or tars, each on disk or as SNAPSHOT:PATH; or pgbackrest:STANZA
    #[arg(required = true, value_name = "BASE")]
    bases: Vec<String>,
    #[command(flatten)]
    wal: Source,
    #[arg(long)]
    json: bool,
}

/// Where WAL is, and what reads it.
#[derive(Debug, clap::Args)]
pub struct Source {
    /// The WAL archive: a folder on disk, SNAPSHOT:PATH, or pgbackrest:STANZA
    #[arg(long, value_name = "FOLDER")]
    wal: Option<String>,
    /// Where the server's programs are, of the base backup's major version
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
}

/// What `lifeboat clone` is asked.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("target").args(["to", "lsn", "xid", "name"]))]
pub struct Clone {
    /// The base backup: a folder on disk, SNAPSHOT:PATH, or pgbackrest:STANZA/BACKUP
    #[arg(required_unless_present_any = ["drop", "resume"], requires = "target", requires = "wal", requires = "into")]
    base: Option<String>,
    #[command(flatten)]
    wal: Source,
    /// Everything committed up to this time; without a zone it is this machine's
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Up to and with the record at this position, as in 0/4004E98
    #[arg(long)]
    lsn: Option<String>,
    /// Up to and with this transaction
    #[arg(long)]
    xid: Option<u32>,
    /// Up to a named restore point
    #[arg(long)]
    name: Option<String>,
    /// Stop just before the target instead of with it
    #[arg(long, conflicts_with = "name", requires = "target")]
    before: bool,
    /// On which timeline, when several lead to the target
    #[arg(long)]
    timeline: Option<u32>,
    /// Where the copy of a tablespace is, for a base backup that is a tree; may be given several times
    #[arg(long = "tablespace", value_name = "OID=FOLDER")]
    tablespaces: Vec<String>,
    /// The folder of the new cluster: a whole path that is not there yet
    #[arg(long, value_name = "FOLDER")]
    into: Option<PathBuf>,
    /// Stop a cluster that was made so, and remove its folder
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["base", "resume", "into"])]
    drop: Option<PathBuf>,
    /// Go on with a cluster whose replay was cut off
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["base", "into"])]
    resume: Option<PathBuf>,
    #[arg(long)]
    json: bool,
}

/// What `lifeboat moments` is asked.
#[derive(Debug, clap::Args)]
pub struct Moments {
    /// The base backup: a folder on disk, SNAPSHOT:PATH, or pgbackrest:STANZA/BACKUP
    base: String,
    #[command(flatten)]
    wal: Source,
    /// The table; --database says who knows its file: production, or a clone as lifeboat clone prints it
    #[arg(long, value_name = "SCHEMA.NAME", required_unless_present = "relation")]
    table: Option<String>,
    /// The table's file instead, as tablespace/database/file: for a table that is gone
    #[arg(long, value_name = "OID/OID/NUMBER", conflicts_with = "table")]
    relation: Option<String>,
    /// From this time; without a zone it is this machine's
    #[arg(long)]
    from: String,
    #[arg(long)]
    until: String,
    /// On which timeline (default: the base backup's own)
    #[arg(long)]
    timeline: Option<u32>,
    #[arg(long)]
    json: bool,
}

/// Opens places, and the repository once.
struct Places {
    system: System,
    repository: Option<Repository>,
}

impl Places {
    fn new(system: System) -> Self {
        Self { system, repository: None }
    }

    /// What exists on disk is meant; else a stanza of pgBackRest, or `SNAPSHOT:PATH`.
    fn open(&mut self, text: &str) -> Result<Place> {
        let disk = Path::new(text);
        if disk.exists() {
            return Ok(Place::Disk(disk.to_owned()));
        }
        if let Some(place) = Place::of_pgbackrest(text) {
            return place;
        }
        let Some((id, path)) = text.split_once(':') else {
            return Err(Error::operator(format!("there is no folder {text}"))
                .hint("Give a folder on disk, SNAPSHOT:PATH of one in a snapshot, or pgbackrest:STANZA."));
        };
        let repository = match &self.repository {
            Some(repository) => repository.clone(),
            None => self.repository.insert(Repository::open(&location(&self.system)?)?).clone(),
        };
        Ok(Place::Snapshot { snapshot: repository.find(id)?, repository, path: path.into() })
    }

    fn wal(&mut self, source: &Source, progress: &Progress) -> Result<Wal> {
        let given = source.wal.as_deref().ok_or_else(|| {
            Error::operator("no WAL archive is given")
                .hint("Name it: --wal FOLDER, --wal SNAPSHOT:PATH, or --wal pgbackrest:STANZA.")
        })?;
        Wal::open(self.open(given)?, progress)
    }
}

/// Runs what blocks on a thread that may, with its progress shown.
async fn blocking<T: Send + 'static>(work: impl FnOnce(&Progress) -> Result<T> + Send + 'static) -> Result<T> {
    let progress = Progress::default();
    let inner = progress.clone();
    with_progress(&progress, async move {
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .map_err(|error| Error::bug("work ended").detail(error))?
    })
    .await
}

/// An instant; without a zone it is this machine's.
fn instant(text: &str) -> Result<DateTime<FixedOffset>> {
    let words = text.trim();
    if let Some(at) = zoned(words) {
        return Ok(at);
    }
    let local = unzoned(words).and_then(|at| Local.from_local_datetime(&at).single());
    local.map(|at| at.fixed_offset()).ok_or_else(|| {
        Error::operator(format!("{text:?} is no time that means one instant"))
            .hint("Write it as 2026-01-15T14:00:00.123+01:00, or with UTC or Z at its end.")
    })
}

fn shown(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(|| "not known".into(), |at| at.format("%Y-%m-%d %H:%M:%S%.6f UTC").to_string())
}

pub async fn windows(system: System, asked: Windows) -> Result<()> {
    let as_json = asked.json;
    let (rows, cut) = blocking(move |progress| {
        let mut places = Places::new(system);
        let wal = places.wal(&asked.wal, progress)?;
        let mut rows = Vec::new();
        for given in &asked.bases {
            for (place, base) in base::find(&places.open(given)?, progress)? {
                let described = base.and_then(|base| describe(&base, &wal, &asked.wal, progress));
                rows.push((place, described));
            }
        }
        Ok((rows, wal.cut))
    })
    .await?;
    if as_json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(place, described)| match described {
                Ok((json, _)) => json.clone(),
                Err(error) => json!({ "place": place, "error": error.message, "hints": error.hints }),
            })
            .collect();
        return print(&json!({ "bases": rows, "cut": cut }).to_string());
    }
    for (place, described) in rows {
        print(&format!("base backup {}", clean(&place)))?;
        match described {
            Ok((_, lines)) => lines.iter().try_for_each(|line| print(&format!("  {}", clean(line))))?,
            Err(error) => {
                print(&format!("  cannot be used: {}", clean(&error.message)))?;
                error.hints.iter().try_for_each(|hint| print(&format!("    {}", clean(hint))))?;
            }
        }
    }
    cut.iter().try_for_each(|cut| print(&clean(cut)))
}

/// What can be reached from a base backup, as JSON and in words.
fn describe(base: &Base, wal: &Wal, source: &Source, progress: &Progress) -> Result<(serde_json::Value, Vec<String>)> {
    let rests_on = whole(base, wal, progress)?;
    let (open, forked) = cluster::windows(base, wal)?;
    let label = &base.label;
    let mut lines = vec![format!(
        "\"{}\" of PostgreSQL {}, system {}, begun {} at {} on timeline {}",
        label.name, base.major, base.system, label.started_words, label.start, label.timeline
    )];
    lines.extend(base.notes.iter().map(|note| format!("NOTE: {note}")));
    lines.extend(rests_on.iter().map(|ancestor| format!("incremental, rests on {ancestor}")));
    lines.extend(base.tablespaces.iter().map(|(oid, was)| format!("tablespace {oid}, in production at {was}")));
    let programs = programs::server(base.major, source.programs.as_deref());
    let mut rows = Vec::new();
    for window in open {
        let reach = match &programs {
            Ok(programs) if window.is_open() => cluster::ends((base, wal, &window), programs, progress),
            Ok(_) => Err(Error::refused("the WAL does not lead past the end of the base backup")),
            Err(error) => Err(error.clone()),
        };
        lines.push(match &reach {
            Ok(reach) => format!(
                "timeline {}: from {} to {} ({} to {})",
                window.timeline,
                shown(reach.earliest),
                shown(reach.latest),
                reach.end,
                window.to
            ),
            Err(error) if window.is_open() => {
                format!("timeline {}: {} to {}; times are not known: {error}", window.timeline, window.from, window.to)
            }
            Err(error) => format!("timeline {}: nothing can be reached: {error}", window.timeline),
        });
        lines.extend(window.gaps.iter().map(|gap| {
            let segments = text::counted(gap.segments, "segment is", "segments are");
            format!("  gap: {segments} missing, {} to {}; nothing after it can be reached", gap.first, gap.last)
        }));
        rows.push(json!({
            "window": &window,
            "open": window.is_open(),
            "reach": reach.as_ref().ok(),
            "why_no_times": reach.as_ref().err().map(ToString::to_string),
        }));
    }
    for (timeline, at) in &forked {
        lines
            .push(format!("timeline {timeline}: left this one at {at}, before the backup ended; it cannot be reached"));
    }
    let json = json!({
        "place": base.place.shown(), "shape": base.shape, "label": label, "end": base.end, "system": base.system.to_string(),
        "major": base.major, "rests_on": rests_on, "tablespaces": base.tablespaces, "notes": base.notes, "windows": rows, "forked_before_the_end": forked,
    });
    Ok((json, lines))
}

pub async fn clone(system: System, asked: Clone) -> Result<()> {
    if let Some(folder) = &asked.drop {
        let folder = absolute(folder)?;
        let shown = folder.display().to_string();
        blocking(move |_| cluster::drop_clone(&folder)).await?;
        return print(&format!("{} is stopped and removed", clean(&shown)));
    }
    let progress = Progress::default();
    if let Some(folder) = &asked.resume {
        let folder = absolute(folder)?;
        let proof = with_progress(&progress, cluster::resume(&folder, &progress)).await?;
        return report(&folder, &cluster::state(&folder)?, &proof, asked.json);
    }
    let (as_json, into) = (asked.json, absolute(asked.into.as_deref().unwrap_or(Path::new("")))?);
    let folder = into.clone();
    let laid_out = blocking(move |progress| lay_out(system, &asked, &folder, progress)).await;
    let (state, stop) = laid_out.map_err(cluster::full_disk)?;
    let proof = with_progress(&progress, cluster::start(&into, &stop, &progress)).await?;
    report(&into, &state, &proof, as_json)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::operator("that is no path").detail(error))
}

fn target(asked: &Clone) -> Result<Target> {
    match (&asked.to, &asked.lsn, asked.xid, &asked.name) {
        (Some(time), ..) => {
            let at = instant(time)?;
            tell(&format!("the target is {} = {}", at.format("%Y-%m-%d %H:%M:%S%.6f %:z"), shown(Some(at.to_utc()))));
            Ok(Target::Time(at.to_utc()))
        }
        (_, Some(lsn), ..) => Lsn::parse(lsn).map(Target::Position).ok_or_else(|| {
            Error::operator(format!("{lsn:?} is no position in the WAL"))
                .hint("Write it as pg_current_wal_lsn() does: 0/4004E98.")
        }),
        (_, _, Some(xid), _) => Ok(Target::Transaction(xid)),
        (_, _, _, Some(name)) if name.len() < 64 && !name.contains(char::is_control) => Ok(Target::Named(name.clone())),
        (_, _, _, Some(_)) => Err(Error::operator("that is no name of a restore point")
            .hint("Names have up to 63 bytes, without line breaks.")),
        (None, None, None, None) => {
            Err(Error::operator("no moment is given").hint("Name one: --to TIME, --lsn, --xid or --name."))
        }
    }
}

/// Everything up to the start of the server. What fails takes the folder away again.
fn lay_out(system: System, asked: &Clone, into: &Path, progress: &Progress) -> Result<(State, Stop)> {
    let target = target(asked)?;
    let mut places = Places::new(system);
    let base = places.open(asked.base.as_deref().unwrap_or_default())?;
    let base = Base::open(&base, progress)?;
    let programs = programs::server(base.major, asked.wal.programs.as_deref())?;
    let wal = places.wal(&asked.wal, progress)?;
    let copies = asked.tablespaces.iter().map(|given| {
        let parts = given.split_once('=').and_then(|(oid, folder)| Some((oid.parse().ok()?, folder)));
        let (oid, folder) = parts.ok_or_else(|| {
            Error::operator(format!("{given:?} does not say where a tablespace is"))
                .hint("Write it as 16384=/backup/16384.")
        })?;
        Ok((oid, places.open(folder)?))
    });
    let copies: BTreeMap<u32, Place> = copies.collect::<Result<_>>()?;
    base.check_copies(&copies)?;
    whole(&base, &wal, progress)?;
    let windows = cluster::chosen(&base, &wal, asked.timeline)?;
    cluster::prepare(into, &programs, base.system)?;
    let wanted = (&target, asked.before, None);
    let outcome = cluster::locate((&base, &wal, &windows), wanted, &programs, progress).and_then(
        |(window, Reach { stop, .. })| {
            cluster::stage(&base, &wal, &window.segments, &into.join("wal"), progress)?;
            let (timeline, programs) = (window.timeline, programs.as_path());
            let spec = Spec { base: &base, copies: &copies, timeline, stop: &stop, into, programs, durable: true };
            Ok((cluster::lay_out(&spec, progress)?, stop))
        },
    );
    outcome.inspect_err(|_| {
        // What went wrong matters more than what could not be cleaned up after it; `--drop` removes the rest.
        let _ = cluster::drop_clone(into);
    })
}

/// What an incremental base backup rests on, in words, the nearest first.
///
/// Errors: something of it is missing; hints name what can be used instead, and what is lost by that.
fn whole(base: &Base, wal: &Wal, progress: &Progress) -> Result<Vec<String>> {
    let Some(chain) = base.chain(progress)? else { return Ok(Vec::new()) };
    let Some(broken) = chain.broken(base) else {
        return Ok(chain.ancestors.iter().map(|base| base.place.shown()).collect());
    };
    let Some(usable) = chain.usable else {
        return Err(
            broken.hint("There is no earlier base backup beside it that is whole: look where older ones are kept.")
        );
    };
    let (windows, _) = cluster::windows(&usable, wal)?;
    let window = windows.into_iter().find(|window| window.timeline == base.label.timeline);
    let broken = broken.hint(format!(
        "Still whole is {}, begun {} at {}: name it as the base backup instead.",
        usable.place.shown(),
        usable.label.started_words,
        usable.label.start
    ));
    Err(match window {
        Some(window) if window.is_open() && window.to > base.label.start => broken.hint(format!(
            "The WAL leads from it without a gap past the broken one, up to {}: nothing is lost by that, it replays longer.",
            window.to
        )),
        Some(window) => {
            let gap = window.gaps.first().map_or_else(String::new, |gap| {
                format!(" WAL segment {} is missing: find it, also in pg_wal of production.", gap.first)
            });
            broken.hint(format!(
                "From it the WAL leads up to {} only: what was committed after that, before and since {}, is lost with the chain.{gap}",
                window.to, base.label.started_words
            ))
        }
        None => broken.hint("No WAL leads from it to the timeline of the broken one: what came after it is lost with the chain."),
    })
}

fn report(into: &Path, state: &State, proof: &Proof, as_json: bool) -> Result<()> {
    let conninfo = format!("host={} port={PORT} user={USER}", into.display());
    if as_json {
        return print(
            &json!({
                "folder": into, "socket": into, "port": PORT, "user": USER, "conninfo": conninfo, "stop": state.stop,
                "system": state.system.to_string(), "settings_set_aside": state.set_aside, "proof": proof,
            })
            .to_string(),
        );
    }
    print(&format!("the clone stands {}", clean(&state.stop)))?;
    print(&format!("  the server said: {}", clean(&proof.log)))?;
    print(&format!("  replayed up to {}, and paused there", clean(&proof.replay_lsn)))?;
    print(&format!("  the last transaction in it was committed at {}", shown(proof.last_transaction)))?;
    if !state.set_aside.is_empty() {
        print(&format!("  not used of production's settings: {}", clean(&state.set_aside.join(", "))))?;
    }
    print("  what the transaction it stopped before had locked cannot be read while it is paused;")?;
    print("  SELECT pg_wal_replay_resume() ends replay there, and everything can")?;
    print(&format!("connect: psql \"{} dbname=DATABASE\"", clean(&conninfo)))?;
    print(&format!("remove:  lifeboat clone --drop {}", clean(&into.display().to_string())))
}

pub async fn moments(system: System, asked: Moments) -> Result<()> {
    let (from, until) = (instant(&asked.from)?.to_utc(), instant(&asked.until)?.to_utc());
    if from > until {
        return Err(Error::operator("--from lies after --until").hint("Give the earlier time with --from."));
    }
    let relation = match (&asked.relation, &asked.table) {
        (Some(relation), _) => relation.clone(),
        (None, Some(table)) => relation_of(&system, &Name::parse(table)?).await?,
        (None, None) => return Err(Error::operator("no table is given").hint("Name it: --table SCHEMA.NAME.")),
    };
    let parts: Vec<_> = relation.split('/').collect();
    if parts.len() != 3 || parts.iter().any(|part| part.parse::<u32>().is_err()) {
        return Err(Error::operator(format!("{relation:?} is no file of a table"))
            .hint("Write it as pg_waldump does: tablespace/database/file, as in 1663/5/16390."));
    }
    let (as_json, file) = (asked.json, relation.clone());
    let found = blocking(move |progress| {
        let mut places = Places::new(system);
        let base = Base::open(&places.open(&asked.base)?, progress)?;
        let programs = programs::server(base.major, asked.wal.programs.as_deref())?;
        let wal = places.wal(&asked.wal, progress)?;
        let timeline = Some(asked.timeline.unwrap_or(base.label.timeline));
        let windows = cluster::chosen(&base, &wal, timeline)?;
        let window = windows.first().ok_or_else(|| Error::bug("a window was lost"))?;
        let all = (window.from, Wanted::All);
        let read =
            |each: &mut Each| cluster::read_along((&base, &wal), &window.segments, all, &programs, progress, each);
        waldump::moments(read, &relation, (from, until))
    })
    .await?;
    if as_json {
        return print(&json!({ "relation": file, "from": from, "until": until, "moments": found }).to_string());
    }
    for moment in &found {
        let rows = [(moment.deleted, "deleted"), (moment.updated, "updated"), (moment.inserted, "inserted")];
        let mut parts: Vec<_> = rows
            .iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| format!("{} {what}", text::counted(*number, "row", "rows")))
            .collect();
        if moment.file_dropped {
            parts.push("its file was dropped (TRUNCATE, DROP or a rewrite)".into());
        }
        print(&format!(
            "transaction {}, {}: {}; stop just before it: --xid {} --before",
            moment.xid,
            shown(Some(moment.at)),
            parts.join(", "),
            moment.xid
        ))?;
    }
    if found.is_empty() {
        tell(&format!("no commit touched {file} between {} and {}", shown(Some(from)), shown(Some(until))));
    }
    Ok(())
}

/// The file of a table, as the WAL names it, by the word of a server that has the table.
async fn relation_of(system: &System, table: &Name) -> Result<String> {
    let conninfo = conninfo(system)?;
    let server = connect(&conninfo, &session_name("")).await?;
    waldump::relation_of(&server.client, table).await?.ok_or_else(|| {
        Error::operator(format!("there is no table {table} on {}", conninfo.shown()))
            .hint("If it was dropped, ask a clone from before: --database with what lifeboat clone prints.")
            .hint("If it is partitioned, name a partition.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_mean_one_instant_or_are_refused() {
        for text in [
            "2026-01-15T14:00:00Z",
            "2026-01-15 15:00:00+01",
            "2026-01-15T14:00:00.000+00:00",
            "2026-01-15 14:00:00 UTC",
        ] {
            assert_eq!(instant(text).unwrap().to_utc().to_rfc3339(), "2026-01-15T14:00:00+00:00", "{text}");
        }
        for text in ["", "14:00", "2026-13-01 00:00:00Z", "2026-01-15 14:00:00 IST"] {
            assert!(instant(text).is_err(), "{text}");
        }
    }
}
