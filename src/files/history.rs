//! One path through all snapshots, and what changed between two of them.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, FixedOffset};
use serde::{Deserialize, Serialize};

use crate::backup::{BlobId, EntryKind, MAX_DEPTH, Node, Repository, Snapshot};
use crate::error::{Error, Kind, Result};
use crate::progress::{Progress, Unit};

/// Folders that one comparison looks into: more than any file system holds.
const MOST: usize = 4_000_000;

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Distinct contents, the one held last first.
    pub versions: Vec<Version>,
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
    let mut found = Versions { versions: Vec::new(), without: Vec::new(), damage: Vec::new() };
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
        if let Some(version) = known.get(&content).and_then(|place| found.versions.get_mut(*place)) {
            version.first.clone_from(&snapshot.id);
            version.first_instant = snapshot.instant;
            version.snapshots += 1;
            continue;
        }
        known.insert(content, found.versions.len());
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
    /// Files that are not as they were.
    pub fn touched(&self) -> u64 {
        self.gone + self.changed + self.new
    }
}

/// What changed between two snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// By path; no more than were asked for.
    pub files: Vec<Changed>,
    /// By path: the folders with files that are not as they were. A folder that is new or gone counts whole.
    pub folders: BTreeMap<String, Folder>,
    /// Over all folders.
    pub total: Folder,
    /// False when folders could not be read.
    pub complete: bool,
}

/// Compares two snapshots. Folders that are the same are not looked into, so that it costs what changed.
pub fn changes(
    repository: &Repository,
    (before, after): (&Snapshot, &Snapshot),
    limit: usize,
    progress: &Progress,
) -> Result<Changes> {
    progress.begin(format!("comparing {} with {}", before.short(), after.short()), Unit::Items, None);
    let mut changes = Changes { complete: true, ..Changes::default() };
    let root = |snapshot: &Snapshot| repository.node(snapshot, "/").map(|node| node.subtree);
    let mut open = vec![(String::new(), root(before)?, root(after)?)];
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
        let mut folder = Folder::default();
        let mut pairs: BTreeMap<&str, (Option<&Node>, Option<&Node>)> = BTreeMap::new();
        for node in &*old {
            pairs.entry(&node.name).or_default().0 = Some(node);
        }
        for node in &*new {
            pairs.entry(&node.name).or_default().1 = Some(node);
        }
        for (name, (old, new)) in pairs {
            let subtrees = (old.and_then(|node| node.subtree), new.and_then(|node| node.subtree));
            if subtrees.0 != subtrees.1 {
                if looked + open.len() < MOST {
                    open.push((format!("{path}/{name}"), subtrees.0, subtrees.1));
                } else {
                    changes.complete = false;
                }
            }
            // A folder is what is in it; what took its place, or gave way to it, is a file.
            let file = |node: &&Node| node.kind != EntryKind::Folder;
            let (old, new) = (old.filter(file), new.filter(file));
            let change = match (old, new) {
                (None, None) => continue,
                (Some(_), None) => Change::Gone,
                (None, Some(_)) => Change::New,
                (Some(a), Some(b)) if a.kind == b.kind && a.content == b.content && a.target == b.target => {
                    folder.same += 1;
                    continue;
                }
                (Some(_), Some(_)) => Change::Changed,
            };
            match change {
                Change::Gone => folder.gone += 1,
                Change::Changed => folder.changed += 1,
                Change::New => folder.new += 1,
            }
            if changes.files.len() < limit {
                let size = |node: Option<&Node>| node.map_or(0, |node| node.size);
                let path = format!("{path}/{name}");
                changes.files.push(Changed { path, change, before: size(old), after: size(new) });
            }
        }
        changes.total.gone += folder.gone;
        changes.total.changed += folder.changed;
        changes.total.new += folder.new;
        changes.total.same += folder.same;
        if folder.touched() > 0 {
            changes.folders.insert(if path.is_empty() { "/".into() } else { path }, folder);
        }
    }
    changes.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

fn nodes(repository: &Repository, folder: Option<BlobId>) -> Result<std::sync::Arc<Vec<Node>>> {
    folder.map_or_else(|| Ok(std::sync::Arc::default()), |id| repository.nodes(&id))
}

/// The folders of which the largest part changed, the worst first: what ransomware or a bad deployment leaves.
pub fn worst(changes: &Changes, limit: usize) -> Vec<(String, Folder)> {
    let mut folders: Vec<_> = changes.folders.iter().filter(|(_, folder)| folder.gone + folder.changed > 0).collect();
    folders.sort_by_key(|(path, folder)| {
        let lost = folder.gone + folder.changed;
        let part = lost * 1000 / (lost + folder.same);
        // Ten files of ten are worse than one of one.
        (std::cmp::Reverse(part * u64::from(lost.ilog2().max(1))), std::cmp::Reverse(lost), (*path).clone())
    });
    folders.into_iter().take(limit).map(|(path, folder)| (path.clone(), folder.clone())).collect()
}
