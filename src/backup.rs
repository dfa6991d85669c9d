//! Reading restic repositories, safely and at random access. restic stays the only writer.
//!
//! - Nothing is written, neither to the repository nor to a cache: a repository that is mounted read-only will do.
//! - Bytes are proven before use, on every read: the SHA-256 of a blob is its id, the SHA-256 of a repository file is
//!   its name. What does not match is an error that names it; all other data stays usable.
//! - Lengths have limits that are checked before anything is allocated, and no input is recursed on.
//! - Snapshots are read before the index, and the index is read again when something is not where it was, so that a
//!   backup or a prune that runs meanwhile cannot make a wrong byte.
//!
//! Calls block, also on the network: an asynchronous caller makes them on a blocking thread (`spawn_blocking`), and
//! drops a [`Repository`] there too.
//!
//! Format: restic's `doc/design.rst`, repository versions 1 and 2. `rustic_core` derives the key and takes names apart,
//! `rustic_backend` speaks REST and rclone; the head of each file here says why the rest is done by itself.

pub mod base;
mod blobs;
pub mod chain;
mod file;
mod index;
mod location;
mod lock;
pub mod pgbackrest;
mod place;
mod seal;
mod sftp;
mod storage;
mod tree;
pub mod wal;
mod walk;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, FixedOffset};
use rustic_core::Id;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::text;
use index::Index;
use seal::Seal;
use storage::{Failure, Storage, Stored, Why};

pub use file::File;
pub use location::{Location, Password};
pub use lock::{REFRESH, SharedLock};
pub use place::{Place, ReadSeek};
pub use rustic_core::Id as BlobId;
pub use tree::{Attribute, Entries, Entry, EntryKind, MAX_DEPTH, Node};
pub use walk::Visit;

/// One backup in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// 64 hexadecimal digits.
    pub id: String,
    /// When the backup was made, as the machine that made it knew the time and its zone.
    pub instant: DateTime<FixedOffset>,
    /// The machine that was backed up; empty when restic did not record it.
    pub host: String,
    /// Who ran the backup there; empty when restic did not record it.
    pub user: String,
    /// What was backed up, in full.
    pub paths: Vec<String>,
    /// Given with `--tag`; in the order in which restic wrote them.
    pub tags: Vec<String>,
    /// The root folder: 64 hexadecimal digits.
    #[serde(skip)]
    pub tree: String,
}

impl Snapshot {
    /// The first 8 digits of the id, as restic shows it.
    pub fn short(&self) -> &str {
        self.id.get(..8).unwrap_or(&self.id)
    }
}

/// A repository that is open for reading. Clones are the same repository.
#[derive(Clone)]
pub struct Repository(Arc<Inner>);

struct Inner {
    storage: Storage,
    seal: Seal,
    /// Read when the first folder or file is.
    index: Mutex<Option<Arc<Index>>>,
    /// A snapshot file never changes, so that each is read once.
    snapshots: Mutex<HashMap<Id, Snapshot>>,
    /// By the name of the damaged thing.
    damage: Mutex<BTreeMap<String, String>>,
    trees: Mutex<VecDeque<KeptTree>>,
}

/// A folder's blob, its length and its content.
type KeptTree = (Id, usize, Arc<Vec<Node>>);

#[derive(Deserialize)]
struct ConfigOfFile {
    version: u32,
}

#[derive(Deserialize)]
struct SnapshotOfFile {
    time: DateTime<FixedOffset>,
    tree: Id,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    username: String,
    paths: Option<Vec<String>>,
    tags: Option<Vec<String>>,
}

impl Repository {
    /// Opens a repository. Takes about 0.4 s for each key that is tried, by the intent of the key's derivation.
    /// Only the config and the keys are read.
    pub fn open(location: &Location) -> Result<Self> {
        let storage = Storage::connect(location)?;
        let config = storage.read_config().map_err(|failure| no_repository(&storage, failure))?;
        let password = location.password()?;
        let (seal, damage) = Seal::find(&storage, password.reveal())?;
        let damaged = |words| storage.damaged(&Stored::Config.file(&Id::default()), words).error;
        let config = seal.document(&config).map_err(damaged)?;
        let config: ConfigOfFile = serde_json::from_slice(&config).map_err(|error| damaged(error.to_string()))?;
        if !matches!(config.version, 1 | 2) {
            return Err(Error::backup(format!("repository {} has version {}", storage.shown, config.version))
                .hint("Versions 1 and 2 can be read. A newer Lifeboat or restic itself may read this one."));
        }
        Ok(Self(Arc::new(Inner {
            storage,
            seal,
            index: Mutex::default(),
            snapshots: Mutex::default(),
            damage: Mutex::new(damage),
            trees: Mutex::default(),
        })))
    }

    /// All snapshots, newest first. A damaged snapshot is left out and named in [`Repository::damage`].
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let files = self.0.storage.list(Stored::Snapshot)?;
        let read = at_once(self.parallel(), &files, |(id, size)| self.snapshot(id, *size));
        let mut snapshots = Vec::with_capacity(files.len());
        for snapshot in read {
            match snapshot {
                Ok(snapshot) => snapshots.push(snapshot),
                // Damage is kept; a snapshot that has just been forgotten is not one any more.
                Err(Failure { why: Why::Damaged | Why::Missing, .. }) => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        snapshots.sort_by(|a, b| b.instant.cmp(&a.instant).then_with(|| a.id.cmp(&b.id)));
        Ok(snapshots)
    }

    /// The one snapshot whose id is given, or begins with what is given. An ambiguous beginning is an error that lists
    /// the candidates, and there is no `latest`: the newest backup may well be one of the damaged data.
    pub fn find(&self, prefix_or_id: &str) -> Result<Snapshot> {
        let prefix = prefix_or_id.trim().to_ascii_lowercase();
        let hint = "Give the first digits of a snapshot's id; `lifeboat points` lists them.";
        if prefix.is_empty() || prefix.len() > 64 || !prefix.bytes().all(|letter| letter.is_ascii_hexdigit()) {
            return Err(Error::operator(format!("{prefix_or_id:?} is not the id of a snapshot")).hint(hint));
        }
        let mut files = self.0.storage.list(Stored::Snapshot)?;
        files.retain(|(id, _)| id.to_hex().starts_with(&prefix));
        files.sort_unstable();
        match files.as_slice() {
            [] => {
                Err(Error::operator(format!("no snapshot of repository {} begins with {prefix}", self.shown()))
                    .hint(hint))
            }
            [(id, size)] => Ok(self.snapshot(id, *size)?),
            several => {
                let candidates = several.iter().take(8).filter_map(|(id, size)| self.snapshot(id, *size).ok());
                let shown: Vec<_> = candidates
                    .map(|one| {
                        let digits = (prefix.len() + 4).clamp(8, 64);
                        let time = one.instant.format("%Y-%m-%d %H:%M:%S %:z");
                        format!("{} of {time} on {}", &one.id[..digits], one.host)
                    })
                    .collect();
                let number = text::counted(several.len() as u64, "snapshot begins", "snapshots begin");
                Err(Error::operator(format!("{number} with {prefix}"))
                    .hint(format!("Choose one of: {}.", shown.join(", ")))
                    .hint("Give more digits of the id."))
            }
        }
    }

    /// Walks the whole snapshot and gives up to `limit` entries. Symlinks are listed and not followed.
    pub fn entries(&self, snapshot: &Snapshot, limit: usize) -> Result<Entries> {
        let mut found = Entries { entries: Vec::new(), complete: true, damage: Vec::new() };
        let mut open = vec![(self.root(snapshot)?, 0_usize, String::new())];
        while let Some((nodes, next, folder)) = open.last_mut() {
            let Some(node) = nodes.get(*next) else {
                open.pop();
                continue;
            };
            *next += 1;
            if found.entries.len() >= limit {
                found.complete = false;
                break;
            }
            let (entry, subtree) = (node.entry(folder), node.subtree);
            let inner = entry.path.clone();
            found.entries.push(entry);
            let Some(subtree) = subtree else { continue };
            if open.len() >= MAX_DEPTH {
                found.complete = false;
                continue;
            }
            match self.tree(&subtree) {
                Ok(nodes) => open.push((nodes, 0, inner)),
                Err(Failure { why: Why::Damaged | Why::Missing, error }) => {
                    found.complete = false;
                    found.damage.push(format!("{inner}: {error}"));
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        Ok(found)
    }

    /// What is in a folder, by its literal path; `/` is the root of the snapshot.
    pub fn list_folder(&self, snapshot: &Snapshot, path: &str) -> Result<Vec<Entry>> {
        let names = tree::names(path);
        let nodes = self.folder(snapshot, &names)?;
        let folder = if names.is_empty() { String::new() } else { format!("/{}", names.join("/")) };
        Ok(nodes.iter().map(|node| node.entry(&folder)).collect())
    }

    /// What is at a path; the root is a folder.
    pub fn entry(&self, snapshot: &Snapshot, path: &str) -> Result<Entry> {
        let names = tree::names(path);
        let Some((name, folders)) = names.split_last() else {
            return Ok(Entry { path: "/".into(), kind: EntryKind::Folder, size: 0, modified: None });
        };
        let nodes = self.folder(snapshot, folders)?;
        let folder = if folders.is_empty() { String::new() } else { format!("/{}", folders.join("/")) };
        Ok(child(&nodes, name, folders, snapshot)?.entry(&folder))
    }

    /// Everything that is recorded of what is at a path; the root is a folder without a name.
    pub fn node(&self, snapshot: &Snapshot, path: &str) -> Result<Node> {
        let names = tree::names(path);
        let Some((name, folders)) = names.split_last() else {
            let tree = snapshot.tree.parse().ok();
            return Ok(Node::root(tree));
        };
        let nodes = self.folder(snapshot, folders)?;
        child(&nodes, name, folders, snapshot).cloned()
    }

    /// What is in a folder, by its content's id.
    pub fn nodes(&self, folder: &BlobId) -> Result<Arc<Vec<Node>>> {
        Ok(self.tree(folder)?)
    }

    /// Opens a file by its node. `shown` names it in errors.
    pub fn open_node(&self, node: &Node, shown: String) -> Result<File> {
        File::new(self.clone(), shown, node.content.clone())
    }

    /// The bytes of a part of a file, proven by their SHA-256, which is `id`.
    pub fn part(&self, id: &BlobId) -> Result<Vec<u8>> {
        self.blob(index::BlobKind::Data, id)
    }

    /// Hands on the bytes of parts of a file, each proven by its SHA-256 and with its place among `ids`; in a few threads, and
    /// not in order. An error of `work`, or a part that cannot be read, ends it.
    pub fn parts(&self, ids: &[BlobId], work: impl Fn(usize, &[u8]) -> Result<()> + Sync) -> Result<()> {
        let ended = AtomicBool::new(false);
        let done = self.fetch_each(index::BlobKind::Data, ids, |number, bytes| {
            if ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            let done = bytes.map_err(Error::from).and_then(|bytes| work(number, &bytes));
            ended.fetch_or(done.is_err(), Ordering::Relaxed);
            done
        });
        done?.into_iter().collect()
    }

    /// The bytes of those parts that can be read and proven. What is missing says why when it is asked for by itself.
    pub fn readable_parts(&self, ids: &[BlobId]) -> Result<HashMap<BlobId, Vec<u8>>> {
        let read = self.fetch_each(index::BlobKind::Data, ids, |_, bytes| bytes.ok())?;
        Ok(ids.iter().copied().zip(read).filter_map(|(id, bytes)| Some((id, bytes?))).collect())
    }

    /// How many bytes a part of a file has.
    pub fn part_length(&self, id: &BlobId) -> Result<u32> {
        self.blob_length(id)
    }

    /// Opens a file by its literal path: no name in it is a pattern, and symlinks are not followed.
    pub fn open_file(&self, snapshot: &Snapshot, path: &str) -> Result<File> {
        let names = tree::names(path);
        let whole = || format!("{} of snapshot {}", tree::folder_shown(&names), snapshot.short());
        let not_a_file = |what: &str| Error::operator(format!("{} is {what}", whole()));
        let Some((name, folders)) = names.split_last() else {
            return Err(not_a_file("a folder").hint("Name a file in it."));
        };
        let nodes = self.folder(snapshot, folders)?;
        let node = child(&nodes, name, folders, snapshot)?;
        match node.kind {
            EntryKind::File => File::new(self.clone(), whole(), node.content.clone()),
            EntryKind::Folder => Err(not_a_file("a folder").hint("Name a file in it.")),
            EntryKind::Symlink => {
                Err(not_a_file("a symlink").hint(format!("It points to {}; open that instead.", node.target)))
            }
            EntryKind::Other => Err(not_a_file("neither a file nor a folder").hint("Name a file.")),
        }
    }

    /// Bytes fetched from the repository's storage so far: packs, index, snapshots, keys. Listings are not counted.
    pub fn bytes_read(&self) -> u64 {
        self.0.storage.fetched()
    }

    /// Where the repository is, without any password.
    pub fn shown(&self) -> &str {
        &self.0.storage.shown
    }

    /// Everything that was found damaged so far, one sentence each. Nothing here keeps other data from being read.
    pub fn damage(&self) -> Vec<String> {
        held(&self.0.damage).values().cloned().collect()
    }

    fn parallel(&self) -> usize {
        self.0.storage.parallel()
    }

    fn snapshot(&self, id: &Id, size: u64) -> Result<Snapshot, Failure> {
        if let Some(snapshot) = held(&self.0.snapshots).get(id) {
            return Ok(snapshot.clone());
        }
        let json = self.document(Stored::Snapshot, id, size)?;
        let read: SnapshotOfFile = serde_json::from_slice(&json)
            .map_err(|error| self.damaged(&Stored::Snapshot.file(id), error.to_string()))?;
        let snapshot = Snapshot {
            id: id.to_hex().to_string(),
            instant: read.time,
            host: read.hostname,
            user: read.username,
            paths: read.paths.unwrap_or_default(),
            tags: read.tags.unwrap_or_default(),
            tree: read.tree.to_hex().to_string(),
        };
        held(&self.0.snapshots).insert(*id, snapshot.clone());
        Ok(snapshot)
    }

    /// The JSON of a repository file, proven by its name and its seal.
    fn document(&self, kind: Stored, id: &Id, size: u64) -> Result<Vec<u8>, Failure> {
        let sealed =
            self.0.storage.read_whole(kind, id, size).inspect_err(|failure| self.remember(&kind.file(id), failure))?;
        self.0.seal.document(&sealed).map_err(|words| self.damaged(&kind.file(id), words))
    }

    fn damaged(&self, object: &str, words: String) -> Failure {
        let failure = self.0.storage.damaged(object, words);
        self.remember(object, &failure);
        failure
    }

    fn remember(&self, object: &str, failure: &Failure) {
        if failure.why == Why::Damaged {
            held(&self.0.damage).insert(object.to_owned(), sentence(&failure.error));
        }
    }

    fn root(&self, snapshot: &Snapshot) -> Result<Arc<Vec<Node>>> {
        let id =
            snapshot.tree.parse::<Id>().map_err(|_| Error::bug(format!("no tree in snapshot {}", snapshot.short())))?;
        Ok(self.tree(&id)?)
    }

    fn folder(&self, snapshot: &Snapshot, names: &[&str]) -> Result<Arc<Vec<Node>>> {
        let mut nodes = self.root(snapshot)?;
        for (depth, name) in names.iter().enumerate() {
            let node = child(&nodes, name, &names[..depth], snapshot)?;
            let Some(subtree) = node.subtree else {
                let path = tree::folder_shown(&names[..=depth]);
                return Err(Error::operator(format!("{path} of snapshot {} is not a folder", snapshot.short()))
                    .hint("Correct the path."));
            };
            nodes = self.tree(&subtree)?;
        }
        Ok(nodes)
    }
}

fn sentence(error: &Error) -> String {
    error.detail.as_ref().map_or_else(|| error.message.clone(), |detail| format!("{}: {detail}", error.message))
}

fn no_repository(storage: &Storage, failure: Failure) -> Error {
    if failure.why != Why::Missing {
        return failure.error;
    }
    let error = Error::operator(format!("there is no repository at {}", storage.shown));
    let error = if let Some(detail) = failure.error.detail { error.detail(detail) } else { error };
    error.hint("Check the location: a repository has a file named config. A disk or share may not be mounted.")
}

/// The one node of a name.
fn child<'a>(nodes: &'a [Node], name: &str, folders: &[&str], snapshot: &Snapshot) -> Result<&'a Node> {
    let mut named = nodes.iter().filter(|node| node.name == name);
    let folder = tree::folder_shown(folders);
    match (named.next(), named.next()) {
        (Some(node), None) => Ok(node),
        (Some(_), Some(_)) => {
            Err(Error::backup(format!("{folder} of snapshot {} holds {name} twice", snapshot.short()))
                .hint("Restore it with restic, which can tell them apart."))
        }
        (None, _) => Err(Error::operator(format!("there is no {name} in {folder} of snapshot {}", snapshot.short()))
            .hint(tree::nearby(nodes, name))),
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does the work for all items in a few threads, and keeps their order.
fn at_once<I: Sync, T: Send>(threads: usize, items: &[I], work: impl Fn(&I) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let mut done: Vec<(usize, T)> = std::thread::scope(|scope| {
        let worker = || {
            let mut mine = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(number) else { return mine };
                mine.push((number, work(item)));
            }
        };
        let others: Vec<_> = (1..threads.min(items.len())).map(|_| scope.spawn(worker)).collect();
        let mut done = worker();
        for other in others {
            match other.join() {
                Ok(mine) => done.extend(mine),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}
