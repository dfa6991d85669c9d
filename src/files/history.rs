//! One path through all snapshots, and what changed between two of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use chrono::{DateTime, FixedOffset};
use serde::{Deserialize, Serialize};

use super::choice;
use super::excludes::Excludes;
use super::live::{self, Present, Standing};
use crate::backup::{BlobId, EntryKind, MAX_DEPTH, Node, Repository, Snapshot};
use crate::error::{Error, Kind, Result};
use crate::progress::{Progress, Unit};

/// Folders that one comparison looks into: more than any file system holds.
const MOST: usize = 4_000_000;
/// So many of the worst folders are told.
const WORST: usize = 100;

/// One content of a path, and the snapshots that hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The newest snapshot that holds it: its full id.
    pub last: String,
    /// When that one was made.
    pub last_instant: DateTime<FixedOffset>,
    /// The oldest snapshot that holds it: its full id.
    pub first: String,
    /// When that one was made.
    pub first_instant: DateTime<FixedOffset>,
    /// So many snapshots hold it.
    pub snapshots: u64,
    /// A symlink is one itself.
    pub kind: EntryKind,
    /// In bytes; 0 for everything but files.
    pub size: u64,
    /// As the newest of them recorded it.
    pub modified: Option<DateTime<FixedOffset>>,
}

/// The history of one path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Distinct contents, the one held last first.
    pub versions: Vec<Version>,
    /// Every snapshot that holds one, newest first: when it was made, and the content's place among them.
    pub held: Vec<(DateTime<FixedOffset>, usize)>,
    /// Snapshots in which there is nothing at the path; of those, the ones newer than the newest version first.
    pub without: Vec<String>,
    /// Snapshots that could not be looked into, and why.
    pub damage: Vec<String>,
}

/// What tells one content from another.
#[derive(PartialEq, Eq, Hash)]
struct Content {
    kind: EntryKind,
    parts: Vec<BlobId>,
    folder: Option<BlobId>,
    target: String,
}

/// The distinct contents of a path. `snapshots` are newest first.
pub fn versions(repository: &Repository, snapshots: &[Snapshot], path: &str, progress: &Progress) -> Result<Versions> {
    progress.begin("looking into every snapshot", Unit::Items, Some(snapshots.len() as u64));
    let mut found = Versions::default();
    let mut known: HashMap<Content, usize> = HashMap::new();
    for snapshot in snapshots {
        progress.check()?;
        progress.advance(1);
        let node = match repository.node(snapshot, path) {
            Ok(node) => node,
            Err(error) if error.kind == Kind::Operator => {
                found.without.push(snapshot.id.clone());
                continue;
            }
            Err(error) if error.kind == Kind::Backup => {
                found.damage.push(format!("{}: {error}", snapshot.short()));
                continue;
            }
            Err(error) => return Err(error),
        };
        let content = Content { kind: node.kind, parts: node.content, folder: node.subtree, target: node.target };
        let place = known.get(&content).copied().unwrap_or(found.versions.len());
        found.held.push((snapshot.instant, place));
        if let Some(version) = found.versions.get_mut(place) {
            version.first.clone_from(&snapshot.id);
            version.first_instant = snapshot.instant;
            version.snapshots += 1;
            continue;
        }
        known.insert(content, place);
        found.versions.push(Version {
            last: snapshot.id.clone(),
            last_instant: snapshot.instant,
            first: snapshot.id.clone(),
            first_instant: snapshot.instant,
            snapshots: 1,
            kind: node.kind,
            size: node.size,
            modified: node.modified,
        });
    }
    if found.versions.is_empty() && found.damage.is_empty() {
        return Err(
            Error::operator(format!("no snapshot holds {path}")).hint("lifeboat find searches for a part of the name.")
        );
    }
    Ok(found)
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Only in the earlier snapshot.
    Gone,
    /// Other content in the later one, or another kind.
    Changed,
    /// Only in the later snapshot.
    New,
}

/// A file that is not the same in two snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// From the root of the snapshots.
    pub path: String,
    /// What became of it.
    pub change: Change,
    /// In bytes, in the earlier one.
    pub before: u64,
    /// In bytes, in the later one.
    pub after: u64,
}

/// A folder in which files changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    /// Files directly in it that are gone.
    pub gone: u64,
    /// Files directly in it with other content.
    pub changed: u64,
    /// Files directly in it that are new.
    pub new: u64,
    /// Files directly in it that are the same.
    pub same: u64,
}

impl Folder {
    fn add(&mut self, other: &Self) {
        self.gone += other.gone;
        self.changed += other.changed;
        self.new += other.new;
        self.same += other.same;
    }

    /// Files that are not as they were.
    pub fn touched(&self) -> u64 {
        self.gone + self.changed + self.new
    }
}

/// What changed between two snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// By path; of each kind no more than were asked for.
    pub files: Vec<Changed>,
    /// By path: the folders with files that are not as they were. A folder that is new or gone counts whole.
    pub folders: BTreeMap<String, Folder>,
    /// Over all folders.
    pub total: Folder,
    /// False when folders could not be read.
    pub complete: bool,
    /// Where it was looked, without a slash at its end.
    beneath: String,
    /// The folders that are as they were, or hold a file that is.
    kept: BTreeSet<String>,
}

/// With what a snapshot is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Another one, by its full id.
    Point(String),
    /// This machine, as it is now.
    Here,
}

impl Changes {
    fn beneath(path: &str) -> Self {
        Self { complete: true, beneath: path.trim_end_matches('/').to_owned(), ..Self::default() }
    }

    /// Takes in what became of the files of one folder. So many of each kind are named.
    fn take(&mut self, path: &str, files: Vec<(String, Standing, u64, u64)>, limit: usize) {
        let mut folder = Folder::default();
        for (name, standing, before, after) in files {
            let change = match standing {
                Standing::Same | Standing::Excluded | Standing::Elsewhere => {
                    folder.same += u64::from(standing == Standing::Same);
                    continue;
                }
                Standing::Missing => Change::Gone,
                Standing::Changed => Change::Changed,
                Standing::Extra => Change::New,
            };
            let (known, number) = match change {
                Change::Gone => (self.total.gone, &mut folder.gone),
                Change::Changed => (self.total.changed, &mut folder.changed),
                Change::New => (self.total.new, &mut folder.new),
            };
            *number += 1;
            // Each kind by itself: new files do not crowd out those that are gone.
            if known + *number <= limit as u64 {
                self.files.push(Changed { path: format!("{path}/{name}"), change, before, after });
            }
        }
        self.total.add(&folder);
        if folder.same > 0 {
            self.kept.insert(path.into());
        }
        if folder.touched() > 0 {
            self.folders.insert(if path.is_empty() { "/".into() } else { path.into() }, folder);
        }
    }

    /// The topmost folder at or above a path in which nothing is as it was, at any depth.
    fn lost_whole<'a>(&self, path: &'a str) -> Option<&'a str> {
        let kept = |path: &str| {
            let beneath = format!("{path}/");
            let first = self.kept.range::<str, _>((Bound::Included(&*beneath), Bound::Unbounded)).next();
            self.kept.contains(path) || first.is_some_and(|first| first.starts_with(&beneath))
        };
        let above = path.match_indices('/').map(|(end, _)| &path[..end]).chain([path]);
        above.filter(|path| path.len() > 1 && lies_within(path, &self.beneath)).find(|path| !kept(path))
    }
}

/// Compares what two snapshots hold at and beneath a path. Folders that are the same are not looked into, so that it costs
/// what changed.
pub fn changes(
    repository: &Repository,
    (before, after): (&Snapshot, &Snapshot),
    beneath: &str,
    limit: usize,
    progress: &Progress,
) -> Result<Changes> {
    progress.begin(format!("comparing {} with {}", before.short(), after.short()), Unit::Items, None);
    let mut changes = Changes::beneath(beneath);
    let root = |snapshot: &Snapshot| match repository.node(snapshot, beneath) {
        Ok(node) => Ok(node.subtree),
        // It is gone, or was not there yet.
        Err(error) if error.kind == Kind::Operator => Ok(None),
        Err(error) => Err(error),
    };
    let mut open = vec![(changes.beneath.clone(), root(before)?, root(after)?)];
    let mut looked = 0_usize;
    while let Some((path, old, new)) = open.pop() {
        progress.check()?;
        progress.advance(1);
        looked += 1;
        if looked > MOST || path.matches('/').count() > MAX_DEPTH {
            changes.complete = false;
            continue;
        }
        let (Ok(old), Ok(new)) = (nodes(repository, old), nodes(repository, new)) else {
            changes.complete = false;
            continue;
        };
        let mut pairs: BTreeMap<&str, (Option<&Node>, Option<&Node>)> = BTreeMap::new();
        for node in &*old {
            pairs.entry(&node.name).or_default().0 = Some(node);
        }
        for node in &*new {
            pairs.entry(&node.name).or_default().1 = Some(node);
        }
        let mut files = Vec::new();
        for (name, (old, new)) in pairs {
            let subtrees = (old.and_then(|node| node.subtree), new.and_then(|node| node.subtree));
            if subtrees.0 != subtrees.1 {
                if looked + open.len() < MOST {
                    open.push((format!("{path}/{name}"), subtrees.0, subtrees.1));
                } else {
                    changes.complete = false;
                }
            } else if subtrees.0.is_some() {
                changes.kept.insert(format!("{path}/{name}"));
            }
            // A folder is what is in it; what took its place, or gave way to it, is a file.
            let file = |node: &&Node| node.kind != EntryKind::Folder;
            let standing = match (old.filter(file), new.filter(file)) {
                (None, None) => continue,
                (Some(_), None) => Standing::Missing,
                (None, Some(_)) => Standing::Extra,
                (Some(a), Some(b)) if is_same(a, b) => Standing::Same,
                (Some(_), Some(_)) => Standing::Changed,
            };
            let size = |node: Option<&Node>| node.map_or(0, |node| node.size);
            files.push((name.to_owned(), standing, size(old), size(new)));
        }
        changes.take(&path, files, limit);
    }
    changes.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

fn is_same(a: &Node, b: &Node) -> bool {
    a.kind == b.kind && a.content == b.content && a.target == b.target
}

/// Compares what a snapshot holds at and beneath a path with what is here now, by size and time, without reading. A folder
/// that is only here counts as one new thing.
pub fn changes_here(
    repository: &Repository,
    (snapshot, beneath): (&Snapshot, &str),
    excludes: &Excludes,
    limit: usize,
    progress: &Progress,
) -> Result<Changes> {
    progress.begin(format!("comparing {} with this machine", snapshot.short()), Unit::Items, None);
    let mut changes = Changes::beneath(beneath);
    let root = repository.node(snapshot, beneath)?.subtree;
    let here = choice::here(repository, snapshot, beneath)?;
    let mut open = vec![(changes.beneath.clone(), here, root)];
    let backed_up = backed_up(repository, snapshot);
    let mut looked = 0_usize;
    while let Some((path, here, subtree)) = open.pop() {
        progress.check()?;
        looked += 1;
        if looked > MOST || path.matches('/').count() > MAX_DEPTH {
            changes.complete = false;
            continue;
        }
        let Ok(nodes) = nodes(repository, subtree) else {
            changes.complete = false;
            continue;
        };
        progress.advance(nodes.len() as u64 + 1);
        let mut files = Vec::new();
        for node in &*nodes {
            let child = here.as_ref().zip(node.file_name()).map(|(here, name)| here.join(OsStr::from_bytes(name)));
            let present = child.as_deref().and_then(|child| Present::at(child).ok().flatten());
            if node.kind == EntryKind::Folder {
                // Without a folder here, everything in it is gone.
                let child = child.filter(|_| present.is_some_and(|present| present.kind == EntryKind::Folder));
                if looked + open.len() < MOST {
                    open.push((format!("{path}/{}", node.name), child, node.subtree));
                } else {
                    changes.complete = false;
                }
                continue;
            }
            let standing = live::standing(node, present.as_ref(), child.as_deref().unwrap_or(Path::new("/")));
            files.push((node.name.clone(), standing, node.size, present.map_or(0, |present| present.size)));
        }
        let within = backed_up.iter().any(|root| lies_within(&path, root));
        let extra = here.iter().filter(|_| within).flat_map(|here| live::extra(&nodes, here, excludes));
        files.extend(extra.map(|row| {
            let name = if row.kind == EntryKind::Folder { row.name + "/" } else { row.name };
            (name, row.standing, 0, row.present.map_or(0, |present| present.size))
        }));
        changes.take(&path, files, limit);
    }
    changes.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

/// The paths that were backed up, where the tree has them: above them, everything else on the machine would count as new.
/// Backups of relative paths record paths that are not in the tree; then it is the whole of it.
fn backed_up(repository: &Repository, snapshot: &Snapshot) -> Vec<String> {
    let there = snapshot.paths.iter().filter(|path| repository.node(snapshot, path).is_ok());
    let there: Vec<String> = there.map(|path| path.trim_end_matches('/').to_owned()).collect();
    if there.is_empty() { vec![String::new()] } else { there }
}

fn lies_within(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A folder in which much was lost, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worst {
    /// From the root of the snapshots.
    pub path: String,
    /// Whether nothing at any depth is as it was. Then the numbers are of everything beneath, else of the files directly in it.
    pub whole: bool,
    /// What became of the files.
    pub folder: Folder,
    /// The first snapshot in which most of them are gone or changed, and when it was made; `None`: no snapshot, so it
    /// happened after the last one.
    pub since: Option<(String, DateTime<FixedOffset>)>,
}

/// What became of the files at and beneath a path, the worst folders first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// Over all folders.
    pub total: Folder,
    /// False when folders could not be read.
    pub complete: bool,
    /// The folders of which the largest part is gone or changed. What lies in one that is lost whole is not named again.
    pub worst: Vec<Worst>,
    /// By path; of each kind no more than were asked for.
    pub files: Vec<Changed>,
}

/// Tells when the worst folders went bad: `later` are the snapshots after the first one, oldest first.
pub fn story(
    repository: &Repository,
    (before, later): (&Snapshot, &[Snapshot]),
    changes: Changes,
    progress: &Progress,
) -> Result<Story> {
    let mut told = worst(&changes, WORST);
    for worst in &mut told {
        progress.begin("finding the first bad snapshot", Unit::Items, None);
        for snapshot in later {
            progress.check()?;
            let lost = if worst.whole {
                let then = self::changes(repository, (before, snapshot), &worst.path, 0, progress)?.total;
                then.gone + then.changed
            } else {
                lost_directly(repository, (before, snapshot), &worst.path)
            };
            if lost * 2 > worst.folder.gone + worst.folder.changed + worst.folder.same {
                worst.since = Some((snapshot.id.clone(), snapshot.instant));
                break;
            }
        }
    }
    Ok(Story { total: changes.total, complete: changes.complete, worst: told, files: changes.files })
}

/// How many files directly in a folder are gone or changed.
fn lost_directly(repository: &Repository, (before, after): (&Snapshot, &Snapshot), path: &str) -> u64 {
    let files = |snapshot: &Snapshot| {
        let nodes = repository.node(snapshot, path).and_then(|node| nodes(repository, node.subtree));
        nodes.unwrap_or_default()
    };
    let (before, after) = (files(before), files(after));
    let after: HashMap<&str, &Node> = after.iter().map(|node| (&*node.name, node)).collect();
    let good = before.iter().filter(|node| node.kind != EntryKind::Folder);
    good.filter(|good| !after.get(&*good.name).is_some_and(|node| is_same(good, node))).count() as u64
}

fn nodes(repository: &Repository, folder: Option<BlobId>) -> Result<std::sync::Arc<Vec<Node>>> {
    folder.map_or_else(|| Ok(std::sync::Arc::default()), |id| repository.nodes(&id))
}

/// The folders of which the largest part changed, the worst first: what ransomware or a bad deployment leaves. Nobody has
/// looked yet since when.
pub fn worst(changes: &Changes, limit: usize) -> Vec<Worst> {
    let mut folders: BTreeMap<&str, (bool, Folder)> = BTreeMap::new();
    for (path, folder) in changes.folders.iter().filter(|(_, folder)| folder.gone + folder.changed > 0) {
        let whole = changes.lost_whole(path);
        let (_, sum) = folders.entry(whole.unwrap_or(path)).or_insert_with(|| (whole.is_some(), Folder::default()));
        sum.add(folder);
    }
    let mut folders: Vec<Worst> = folders
        .into_iter()
        .map(|(path, (whole, folder))| Worst { path: path.to_owned(), whole, folder, since: None })
        .collect();
    // By path already, which decides between equal ones.
    folders.sort_by_key(|Worst { folder, .. }| {
        let lost = folder.gone + folder.changed;
        let part = lost * 1000 / (lost + folder.same);
        // Ten files of ten are worse than one of one.
        std::cmp::Reverse((part * u64::from(lost.ilog2().max(1)), lost))
    });
    folders.truncate(limit);
    folders
}
