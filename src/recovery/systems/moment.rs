//! A moment in time: what base backups and WAL lead to, a second cluster as of the moment, and tables that production has no
//! more.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};

use super::{Evidence, Systems, blocking, conninfo};
use crate::backup::base::{self, Base};
use crate::backup::wal::{Wal, Window};
use crate::backup::{EntryKind, Place, Repository};
use crate::config::System;
use crate::error::{Error, Kind, Result};
use crate::postgres::archive::{Archive, ReadSeek, Source};
use crate::postgres::cluster::{self, Answer, PORT, Reachable, Spec, Target, USER};
use crate::postgres::connect::server_error;
use crate::postgres::database::Asked;
use crate::postgres::merge::{self, Recreation};
use crate::postgres::name::Name;
use crate::postgres::origin::Origin;
use crate::postgres::programs;
use crate::postgres::waldump::{self, Each, Wanted};
use crate::progress::{Progress, Unit};
use crate::recovery::record::{Aim, Cloned, Finding, Moments, Reached};

/// Before the time that an operator knows, since damage is noticed later than it is done; and after it, since clocks differ.
const EARLIER: TimeDelta = TimeDelta::hours(24);
const LATER: TimeDelta = TimeDelta::hours(1);
/// How deep the size of a base backup is added up.
const MAX_DEPTH: usize = 32;

/// The base backups and the WAL archive of a system, opened.
#[derive(Clone)]
pub(super) struct Sources {
    /// The newest first.
    bases: Vec<Stored>,
    wal: Wal,
    windows: Vec<Reachable>,
    notes: Vec<String>,
}

/// A base backup, and where the copies of its tablespaces are, as far as the configuration says.
#[derive(Clone)]
struct Stored {
    base: Base,
    copies: BTreeMap<u32, Place>,
}

/// The beginning of the name of every clone's folder; the recovery's id comes after it.
const FOLDER: &str = "lifeboat-clone-";

impl Systems {
    /// Opens them once; `again` looks for what was added since.
    async fn sources(&self, again: bool, progress: &Progress) -> Result<Sources> {
        let mut held = self.sources.lock().await;
        if let Some(sources) = held.as_ref().filter(|_| !again) {
            return Ok(sources.clone());
        }
        let Some(archive) = self.system.wal_archive.clone().filter(|_| !self.system.base_backups.is_empty()) else {
            return Err(Error::operator("no base backup and no WAL archive is configured")
                .hint(
                    "Name them in the configuration: base_backups = [\"/backup/base\"], wal_archive = \"/backup/wal\".",
                )
                .hint("For a repository of pgBackRest: both are \"pgbackrest:STANZA\"."));
        };
        let restic = self.system.base_backups.iter().chain([&archive]).any(|given| given.starts_with(RESTIC));
        let repository = if restic { Some(self.repository().await?) } else { None };
        let (system, progress) = (self.system.clone(), progress.clone());
        let sources = blocking(move || open(&system, &archive, repository.as_ref(), &progress)).await?;
        Ok(held.insert(sources).clone())
    }

    pub(super) async fn moments(
        &self,
        recovery: &str,
        incident: Option<DateTime<Utc>>,
        progress: &Progress,
    ) -> Result<Finding> {
        let sources = self.sources(true, progress).await?;
        let mut moments = Moments {
            windows: sources.windows.clone(),
            suspects: Vec::new(),
            searched: None,
            notes: sources.notes.clone(),
        };
        let open = moments.windows.iter().filter(|window| window.refusal.is_none() && window.latest.is_some());
        let newest = open.clone().find(|window| incident.is_none_or(|at| window.holds(at)));
        let Some(window) = newest.or_else(|| open.clone().max_by_key(|window| window.latest)).cloned() else {
            return Ok(Finding::Moments(moments));
        };
        let latest = window.latest.unwrap_or_default();
        let around = incident.unwrap_or(latest).min(latest);
        let from = window.earliest.map_or(around - EARLIER, |earliest| earliest.max(around - EARLIER));
        // The incident may lie before all that can be reached.
        let until = latest.min((around + LATER).max(from + LATER));
        moments.searched = Some((from, until));
        progress.begin("asking production which table is in which file", Unit::Items, None);
        let (database, names, others) = match self.files_of_tables(recovery).await {
            Ok(known) => known,
            // The database may be gone, or the server: then a moment can be typed all the same.
            Err(error) => {
                moments.notes.push(format!("production, to tell which transaction did what: {}", error.message));
                return Ok(Finding::Moments(moments));
            }
        };
        let progress = progress.clone();
        moments.suspects = blocking(move || {
            let (base, on) = sources.at(&window)?;
            let programs = programs::server(base.major, None)?;
            let on = (base, &sources.wal, &on);
            let segments = cluster::between_instants(on, (from, until), &programs, &progress)?;
            let search = waldump::Search { database, names: &names, others: &others, from, until };
            let all = (base.label.start, Wanted::All);
            let read =
                |each: &mut Each| cluster::read_along((base, &sources.wal), segments, all, &programs, &progress, each);
            waldump::suspects(read, &search)
        })
        .await?;
        Ok(Finding::Moments(moments))
    }

    /// The number of production's database, its tables by their files, and files of what is none.
    async fn files_of_tables(&self, recovery: &str) -> Result<(u32, HashMap<u32, String>, HashSet<u32>)> {
        let failed = |error| server_error(error, "asking which table is in which file");
        let sql = "SELECT pg_catalog.pg_relation_filenode(c.oid), n.nspname::text, c.relname::text,
                c.relkind IN ('r', 'm') AND n.nspname !~ '^(pg_|restore_staging_|lifeboat_undo_)' AND n.nspname <> 'information_schema'
            FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE pg_catalog.pg_relation_filenode(c.oid) IS NOT NULL";
        let mut session = self.session.lock().await;
        let server = session.server(&self.system, recovery).await?;
        let (mut names, mut others) = (HashMap::new(), HashSet::new());
        for row in server.client.query(sql, &[]).await.map_err(failed)? {
            let file: u32 = row.get(0);
            if row.get(3) {
                names.insert(file, Name::new(row.get::<_, String>(1), row.get::<_, String>(2)).to_string());
            } else {
                others.insert(file);
            }
        }
        Ok((server.facts.database_oid, names, others))
    }

    /// Where replay has to stop for an aim, from which base backup, and what it takes.
    pub(super) async fn reach(&self, recovery: &str, aim: &Aim, progress: &Progress) -> Result<Finding> {
        let sources = self.sources(false, progress).await?;
        let folder = self.clone_folder(recovery)?;
        let (system, near) = self.asked_of_production(recovery, aim).await;
        let (aim, progress) = (aim.clone(), progress.clone());
        let found = blocking(move || match find(&sources, &aim, near, &progress) {
            Ok((Stored { base, copies }, window, reach)) => {
                let parent = folder.parent().unwrap_or(Path::new("/"));
                let free = rustix::fs::statvfs(parent).ok();
                Ok(Ok(Box::new(Reached {
                    base: base.place.shown(),
                    started: base.label.started_words.clone(),
                    timeline: window.timeline,
                    stop: reach.stop,
                    before: reach.before,
                    after: reach.after,
                    earlier: reach.earlier,
                    later: reach.later,
                    bytes: taken(base, copies, &progress)?,
                    segments: window.segments.len() as u64,
                    folder: folder.display().to_string(),
                    free: free.map(|facts| facts.f_bavail.saturating_mul(facts.f_frsize)),
                    same_system: system.is_none_or(|system| system.is_empty() || system == base.system.to_string()),
                })))
            }
            Err(error) if matches!(error.kind, Kind::Refused | Kind::Operator) => Ok(Err((error.message, error.hints))),
            Err(error) => Err(error),
        });
        found.await.map(Finding::Reached)
    }

    /// Production's system identifier, and when it committed the transaction that is aimed at. Nothing, where it cannot be
    /// asked, or does not know.
    async fn asked_of_production(&self, recovery: &str, aim: &Aim) -> (Option<String>, Option<DateTime<Utc>>) {
        let mut session = self.session.lock().await;
        let Ok(server) = session.server(&self.system, recovery).await else { return (None, None) };
        let mut near = None;
        if let Target::Transaction(xid) = aim.target {
            // An error where the server does not keep it (track_commit_timestamp), or not of one so old.
            let sql = "SELECT pg_catalog.pg_xact_commit_timestamp($1::text::xid)";
            let row = server.client.query_one(sql, &[&xid.to_string()]).await;
            near = row.ok().and_then(|row| row.try_get(0).ok().flatten());
        }
        (Some(server.facts.system_identifier.clone()), near)
    }

    fn clone_folder(&self, recovery: &str) -> Result<PathBuf> {
        let parent = self.system.clones.clone().unwrap_or_else(std::env::temp_dir);
        std::path::absolute(parent.join(format!("{FOLDER}{recovery}")))
            .map_err(|error| Error::operator("clones of the configuration is no path").detail(error))
    }

    /// Lays the cluster out and waits until it stands at the moment. One that this recovery made before is taken when it
    /// stands there, and else removed.
    pub(super) async fn lay_out(&self, recovery: &str, reached: &Reached, progress: &Progress) -> Result<Finding> {
        let folder = self.clone_folder(recovery)?;
        *self.clone.lock().await = None;
        let known =
            cluster::state(&folder).ok().filter(|state| state.laid_out && state.stop == reached.stop.to_string());
        if known.is_none() {
            // Rows that were counted in the one before are not this one's.
            *self.counted.lock().await = None;
            let sources = self.sources(false, progress).await?;
            let (into, wanted, laying) = (folder.clone(), reached.clone(), progress.clone());
            let laid_out = blocking(move || lay_out(&sources, &wanted, &into, &laying)).await;
            laid_out.map_err(cluster::full_disk)?;
        }
        let outcome = async {
            let proof = match known {
                None => cluster::start(&folder, &reached.stop, progress).await?,
                Some(_) => cluster::resume(&folder, progress).await?,
            };
            // Whoever was killed before this had left it paused.
            cluster::open(&folder, &proof, progress).await?;
            let database = conninfo(&self.system)?.database()?;
            let found = cluster::database(&folder, &database).await?;
            Ok((proof, database, found))
        };
        let outcome: Result<_> = outcome.await;
        if outcome.is_err() {
            // What went wrong matters more than what could not be cleaned up after it; status lists the rest.
            let into = folder.clone();
            let _ = blocking(move || cluster::drop_clone(&into)).await;
        }
        let hint = "What was laid out is removed again. Give another moment, or try again.";
        let removed = |error| cluster::full_disk(Error { hints: vec![hint.into()], ..error });
        let (proof, database, found) = outcome.map_err(removed)?;
        let state = cluster::state(&folder)?;
        let mut asked = Vec::new();
        for check in self.system.checks.iter().filter(|_| found.is_some()) {
            progress.begin(format!("asking {}", check.query), Unit::Items, None);
            let answer = cluster::inspect(&folder, &database, &check.query, progress).await;
            progress.check()?;
            asked.push(Asked { query: check.query.clone(), at_least: check.at_least, found: number(answer) });
        }
        Ok(Finding::Cloned(Box::new(Cloned {
            folder: folder.display().to_string(),
            stop: state.stop,
            proof,
            set_aside: state.set_aside,
            conninfo: format!("host={} port={PORT} user={USER}", folder.display()),
            tables: found.as_ref().map_or(0, |found| found.tables.len() as u64),
            database: found.map(|_| database),
            asked,
        })))
    }

    /// What an operator wants to know of the clone; of its own database where it has not production's.
    pub async fn query(
        &self,
        recovery: &str,
        database: Option<&str>,
        sql: &str,
        progress: &Progress,
    ) -> Result<Answer> {
        cluster::inspect(&self.clone_folder(recovery)?, database.unwrap_or("postgres"), sql, progress).await
    }

    /// The definitions of a clone's database, and the way to its rows.
    pub(super) async fn clone_origin(&self, recovery: &str, database: &str, progress: &Progress) -> Result<Origin> {
        let mut held = self.clone.lock().await;
        if let Some(origin) = held.as_ref() {
            return Ok(origin.clone());
        }
        let folder = self.clone_folder(recovery)?;
        progress.begin("reading the definitions of the clone", Unit::Items, None);
        let found = cluster::database(&folder, database).await?.ok_or_else(|| {
            Error::refused(format!("the clone has no database {database}")).hint("Give another moment.")
        })?;
        let (into, name, file) = (folder.clone(), database.to_owned(), folder.join("definitions"));
        let archive = blocking(move || {
            cluster::definitions(&into, &name, &[], &file)?;
            let open = move |_: &str| {
                let opened = std::fs::File::open(&file);
                let opened =
                    opened.map_err(|error| Error::operator("the clone's definitions are gone").detail(error))?;
                Ok(Box::new(opened) as Box<dyn ReadSeek>)
            };
            Archive::open(&Source::file("the clone's definitions", open), &Progress::default())
        });
        let archive = archive.await.map_err(cluster::full_disk)?;
        Ok(held.insert(Origin::clone_of(folder, database, &archive, &found)).clone())
    }

    pub(super) async fn recreation(
        &self,
        recovery: &str,
        database: &str,
        tables: &[Name],
        progress: &Progress,
    ) -> Result<Finding> {
        let folder = self.clone_folder(recovery)?;
        let mut session = self.session.lock().await;
        let server = session.server(&self.system, recovery).await?;
        merge::recreation(&server.client, (&folder, database), tables, progress).await.map(Finding::Recreate)
    }

    pub(super) async fn recreate(
        &self,
        recovery: &str,
        recreation: &Recreation,
        journal: &str,
        progress: &Progress,
    ) -> Result<Evidence> {
        let mut session = self.session.lock().await;
        let server = session.server(&self.system, recovery).await?;
        let outcome = merge::recreate(&server.client, recovery, recreation, journal, progress).await;
        session.resolved(&self.system, recovery, recovery, &recreation.hash, outcome).await.map(Evidence::Recreated)
    }

    pub(super) async fn prove_recreated(&self, recovery: &str, recreation: &Recreation) -> Result<Evidence> {
        let mut session = self.session.lock().await;
        let server = session.server(&self.system, recovery).await?;
        let (tables, missing) = merge::prove_recreated(&server.client, recreation).await?;
        Ok(Evidence::RecreatedProved { tables, missing })
    }

    pub(super) async fn remove_recreated(
        &self,
        (recovery, earlier): (&str, &str),
        recreation: &Recreation,
        journal: &str,
        progress: &Progress,
    ) -> Result<Evidence> {
        let mut session = self.session.lock().await;
        let server = session.server(&self.system, recovery).await?;
        let outcome = merge::remove_recreated(&server.client, (recovery, earlier), recreation, journal, progress).await;
        let hash = recreation.hash_back(earlier);
        session.resolved(&self.system, recovery, earlier, &hash, outcome).await.map(Evidence::RecreatedRemoved)
    }

    pub(super) async fn keep_clone(&self, folder: &str, progress: &Progress) -> Result<Evidence> {
        cluster::keep(Path::new(folder), progress).await?;
        Ok(Evidence::CloneKept(folder.to_owned()))
    }

    pub(super) async fn drop_clone(&self, folder: &str) -> Result<Evidence> {
        *self.clone.lock().await = None;
        let into = PathBuf::from(folder);
        if into.exists() {
            blocking(move || cluster::drop_clone(&into)).await?;
        }
        Ok(Evidence::CloneDropped)
    }
}

/// The first column of the first row.
fn number(answer: Result<Answer>) -> Result<i64, String> {
    let answer = answer.map_err(|error| error.message)?;
    let first = answer.rows.into_iter().flatten().next().ok_or("it gave no row")?;
    let first = first.unwrap_or_else(|| "NULL".into());
    first.parse().map_err(|_| format!("it gave \"{}\", which is no whole number", crate::text::clean(&first)))
}

/// In front of a path: in the newest snapshot that has it.
const RESTIC: &str = "restic:";

fn place(given: &str, repository: Option<&Repository>) -> Result<Place> {
    if let Some(place) = Place::of_pgbackrest(given) {
        return place;
    }
    let Some(path) = given.strip_prefix(RESTIC) else { return Ok(Place::Disk(given.into())) };
    let repository = repository.ok_or_else(|| Error::bug("a repository was not opened"))?;
    let mut snapshots = repository.snapshots()?;
    snapshots.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.instant));
    let found = snapshots.into_iter().find(|snapshot| repository.node(snapshot, path).is_ok());
    let snapshot = found.ok_or_else(|| {
        Error::operator(format!("no snapshot has {path}"))
            .hint("Check base_backups and wal_archive of the configuration.")
    })?;
    Ok(Place::Snapshot { repository: repository.clone(), snapshot, path: path.into() })
}

fn open(system: &System, archive: &str, repository: Option<&Repository>, progress: &Progress) -> Result<Sources> {
    let wal = Wal::open(place(archive, repository)?, progress)?;
    let (mut bases, mut windows, mut notes): (Vec<Stored>, _, _) = (Vec::new(), Vec::new(), Vec::new());
    notes.extend(wal.cut.iter().cloned());
    for given in &system.base_backups {
        let found = place(given, repository).and_then(|place| base::find(&place, progress));
        progress.check()?;
        match found {
            Ok(found) => {
                for (shown, base) in found {
                    match base.and_then(|base| Ok(Stored { copies: copies(system, &base, repository)?, base })) {
                        Ok(stored) => {
                            notes.extend(stored.base.notes.iter().map(|note| format!("{shown}: {note}")));
                            bases.push(stored);
                        }
                        Err(error) => notes.push(format!("{shown}: {}", error.message)),
                    }
                }
            }
            Err(error) => notes.push(format!("{given}: {}", error.message)),
        }
    }
    bases.sort_by_key(|stored| std::cmp::Reverse(stored.base.label.start));
    let known: Vec<&Base> = bases.iter().map(|stored| &stored.base).collect();
    for Stored { base, copies } in &bases {
        let usable = base.check_copies(copies).and_then(|()| base.is_whole_among(&known));
        let usable = usable.and_then(|is_whole| if is_whole { Ok(None) } else { base.chain(progress) });
        let reachable = usable.and_then(|chain| {
            if let Some(broken) = chain.and_then(|chain| chain.broken(base)) {
                return Err(broken);
            }
            let programs = programs::server(base.major, None)?;
            cluster::reachable(&base.place.shown(), base, &wal, &programs, progress)
        });
        progress.check()?;
        match reachable {
            Ok(reachable) => windows.extend(reachable),
            Err(error) => {
                let hint = error.hints.first().map(|hint| format!(". {hint}")).unwrap_or_default();
                notes.push(format!("{}: {}{hint}", base.place.shown(), error.message));
            }
        }
    }
    Ok(Sources { bases, wal, windows, notes })
}

impl Sources {
    fn stored(&self, shown: &str) -> Option<&Stored> {
        self.bases.iter().find(|stored| stored.base.place.shown() == shown)
    }

    /// The base backup and the window behind what was shown.
    fn at(&self, reachable: &Reachable) -> Result<(&Base, Window)> {
        let Stored { base, .. } = self.stored(&reachable.base).ok_or_else(|| Error::bug("a base backup was lost"))?;
        let windows = cluster::chosen(base, &self.wal, Some(reachable.timeline))?;
        let window = windows.into_iter().next().ok_or_else(|| Error::bug("a window was lost"))?;
        Ok((base, window))
    }
}

/// Where the copies of a base backup's tablespaces are, as far as the configuration says.
fn copies(system: &System, base: &Base, repository: Option<&Repository>) -> Result<BTreeMap<u32, Place>> {
    let mut copies = BTreeMap::new();
    for oid in base.tablespaces.keys() {
        let Some(given) = system.tablespaces.get(oid) else { continue };
        let is_whole = given.starts_with('/') || given.starts_with(RESTIC);
        copies.insert(*oid, if is_whole { place(given, repository)? } else { base.place.parent()?.inside(given) });
    }
    Ok(copies)
}

/// The newest base backup from which the target can be reached.
fn find<'a>(
    sources: &'a Sources,
    aim: &Aim,
    near: Option<DateTime<Utc>>,
    progress: &Progress,
) -> Result<(&'a Stored, Window, cluster::Reach)> {
    let may = |reachable: &&Reachable| {
        reachable.refusal.is_none()
            && aim.timeline.is_none_or(|timeline| timeline == reachable.timeline)
            && match &aim.target {
                Target::Time(at) => reachable.holds(*at),
                Target::Position(lsn) => (reachable.from..=reachable.to).contains(lsn),
                _ => true,
            }
    };
    let mut failed = None;
    for stored in &sources.bases {
        let base = &stored.base;
        let shown = base.place.shown();
        let on: Vec<_> = sources.windows.iter().filter(|window| window.base == shown).filter(may).collect();
        if on.is_empty() {
            continue;
        }
        let mut windows = cluster::chosen(base, &sources.wal, aim.timeline)?;
        windows.retain(|window| on.iter().any(|reachable| reachable.timeline == window.timeline));
        let programs = programs::server(base.major, None)?;
        let target = (&aim.target, aim.before, near);
        match cluster::locate((base, &sources.wal, &windows), target, &programs, progress) {
            Ok((window, reach)) => return Ok((stored, window, reach)),
            Err(error) if error.kind == Kind::Cancelled => return Err(error),
            Err(error) => failed = Some(failed.unwrap_or(error)),
        }
    }
    Err(failed.unwrap_or_else(|| out_of_reach(sources, aim)))
}

/// No window has it: the nearest instants on both sides.
fn out_of_reach(sources: &Sources, aim: &Aim) -> Error {
    let shown = |at: DateTime<Utc>| at.format("%Y-%m-%d %H:%M:%S%.6f UTC").to_string();
    let Target::Time(at) = aim.target else {
        return Error::refused("that cannot be reached from any base backup")
            .hint("Look at what can be reached, and give another moment.");
    };
    let open = || sources.windows.iter().filter(|window| window.refusal.is_none());
    let before = open().filter_map(|window| window.latest).filter(|latest| *latest < at).max();
    let after = open().filter_map(|window| window.earliest).filter(|earliest| *earliest > at).min();
    let mut error = Error::refused(format!("{} cannot be reached from any base backup", shown(at)));
    if let Some(before) = before {
        error = error.hint(format!("The nearest instant before it that can be: {}.", shown(before)));
    }
    if let Some(after) = after {
        error = error.hint(format!("The nearest instant after it that can be: {}.", shown(after)));
    }
    match sources.windows.iter().flat_map(|window| &window.gaps).next() {
        Some(gap) => error.hint(format!(
            "{} missing, {} to {}: with them more can be reached.",
            crate::text::counted(gap.segments, "WAL segment is", "WAL segments are"),
            gap.first,
            gap.last
        )),
        None => error,
    }
}

/// Everything up to the start of the server. What fails takes the folder away again.
fn lay_out(sources: &Sources, reached: &Reached, into: &Path, progress: &Progress) -> Result<()> {
    if cluster::state(into).is_ok() {
        cluster::drop_clone(into)?;
    }
    let stored = sources.stored(&reached.base);
    let Stored { base, copies } =
        stored.ok_or_else(|| Error::refused("the base backup is not there any more").hint("Look again."))?;
    let programs = programs::server(base.major, None)?;
    let windows = cluster::chosen(base, &sources.wal, Some(reached.timeline))?;
    let window = windows.first().ok_or_else(|| Error::bug("a window was lost"))?;
    cluster::prepare(into, &programs, base.system)?;
    // No more than replay needs.
    let needed = usize::try_from(reached.segments).unwrap_or(usize::MAX).min(window.segments.len());
    let segments = &window.segments[..needed];
    let outcome = cluster::stage(base, &sources.wal, segments, &into.join("wal"), progress).and_then(|()| {
        let (timeline, stop) = (reached.timeline, &reached.stop);
        let spec = Spec { base, copies, timeline, stop, into, programs: &programs, durable: false };
        cluster::lay_out(&spec, progress)
    });
    outcome.map(drop).inspect_err(|_| {
        let _ = cluster::drop_clone(into);
    })
}

/// Bytes that a base backup takes when it is laid out, as they are stored: with its tablespaces, and those that it rests on.
fn taken(base: &Base, copies: &BTreeMap<u32, Place>, progress: &Progress) -> Result<u64> {
    let mut sum = base.stored.map_or_else(|| size(&base.place, "", 0), Ok)?;
    let chain = base.chain(progress)?;
    let ancestors = chain.iter().flat_map(|chain| &chain.ancestors).map(|ancestor| &ancestor.place);
    for place in copies.values().chain(ancestors) {
        sum = sum.saturating_add(size(place, "", 0)?);
    }
    Ok(sum)
}

/// Bytes of a folder, as they are stored.
fn size(place: &Place, beneath: &str, depth: usize) -> Result<u64> {
    let mut sum = 0_u64;
    for node in place.list(beneath)? {
        let path = if beneath.is_empty() { node.name.clone() } else { format!("{beneath}/{}", node.name) };
        sum = sum.saturating_add(match node.kind {
            EntryKind::File => node.size,
            EntryKind::Folder if depth < MAX_DEPTH => size(place, &path, depth + 1)?,
            _ => 0,
        });
    }
    Ok(sum)
}
