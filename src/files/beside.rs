//! Bringing files back beside: into a folder that was not there, with their paths kept.
//!
//! ```text
//!   make PLACE.partial-ID (0700) -> folders and files beneath it -> dress folders -> sync -> rename to PLACE
//! ```
//!
//! The last act makes the result usable, and it is one act. What fails before it, or is cancelled, takes the partial folder
//! away again. A file whose bytes are damaged in the repository is left out and named; everything else comes back.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::choice::content;
use super::write::{self, Folder, Near, Notes, Own, Zeros};
use crate::backup::{BlobId, EntryKind, MAX_DEPTH, Node, Repository, Snapshot, Visit};
use crate::error::{Error, Kind, Result};
use crate::progress::{Progress, Unit};

/// Files that wait for the threads that write them.
const BATCH: usize = 2048;

/// More folders or files are not brought back at once.
const MOST_FOLDERS: u64 = 4_000_000;
const MOST_FILES: u64 = 50_000_000;

/// Files of one folder that one thread writes.
const SHARE: usize = 128;

/// Bytes of small files that are fetched before they are written.
const NEAR: u64 = 16 << 20;

/// So many of the files that could not be brought back are named.
const NAMED: usize = 1000;

/// How much there is to bring back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// Regular files.
    pub files: u64,
    /// Folders, without those above what was chosen.
    pub folders: u64,
    /// Symlinks.
    pub symlinks: u64,
    /// Devices, pipes, sockets: never made.
    pub others: u64,
    /// Of all files.
    pub bytes: u64,
    /// Of those, bytes of long runs of zeros: they become holes and take no space.
    #[serde(default)]
    pub holes: u64,
    /// Whether every folder could be read.
    pub complete: bool,
}

/// What was brought back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Where it lies.
    pub folder: String,
    /// Written, read again, and the same as in the snapshot.
    pub files: u64,
    /// Made.
    pub folders: u64,
    /// Made.
    pub symlinks: u64,
    /// Of those files.
    pub bytes: u64,
    /// The first of those that could not be brought back, and why.
    pub failed: Vec<(String, String)>,
    /// How many could not in all.
    pub failures: u64,
    /// What could not be applied to what was brought back.
    pub notes: Notes,
}

impl Restored {
    fn fail(&mut self, path: &Path, why: impl Into<String>) {
        self.failures += 1;
        if self.failed.len() < NAMED {
            self.failed.push((path.display().to_string(), why.into()));
        }
    }

    fn merge(&mut self, other: Self) {
        self.files += other.files;
        self.folders += other.folders;
        self.symlinks += other.symlinks;
        self.bytes += other.bytes;
        self.failures += other.failures;
        self.failed.extend(other.failed);
        self.failed.truncate(NAMED);
        self.notes.merge(other.notes);
    }
}

/// Each path once, without those that come with a folder above them.
fn outermost(paths: &[String]) -> Vec<&String> {
    let all: BTreeMap<&str, &String> = paths.iter().map(|path| (path.trim_end_matches('/'), path)).collect();
    let is_outermost = |path: &str| !path.match_indices('/').any(|(end, _)| all.contains_key(&path[..end]));
    all.iter().filter(|(path, _)| is_outermost(path)).map(|(_, path)| *path).collect()
}

/// Counts what lies at some paths of a snapshot and beneath them. A folder that is there many times on one level is read once,
/// so that a snapshot whose levels each hold the next one twice is known for what it is.
///
/// Errors: it is more than any file system holds.
pub fn measure(repository: &Repository, snapshot: &Snapshot, paths: &[String], progress: &Progress) -> Result<Measure> {
    let mut measure = Measure { complete: true, ..Measure::default() };
    let mut level: HashMap<BlobId, u64> = HashMap::new();
    let mut zeros = Zeros::default();
    for path in outermost(paths) {
        let node = repository.node(snapshot, path)?;
        measure.add(&node, 1);
        measure.add_holes(repository, &mut zeros, &node, 1);
        if let Some(subtree) = node.subtree {
            *level.entry(subtree).or_default() += 1;
        }
    }
    progress.begin("counting", Unit::Items, None);
    for depth in 0..=MAX_DEPTH {
        if depth == MAX_DEPTH && !level.is_empty() {
            measure.complete = false;
            break;
        }
        let mut next: HashMap<BlobId, u64> = HashMap::new();
        repository.walk(level.into_iter().collect(), progress, |times, visit, _| {
            let Visit::Nodes(nodes) = visit else {
                measure.complete = false;
                return Ok(());
            };
            progress.advance(nodes.len() as u64);
            for node in &nodes {
                measure.add(node, times);
                measure.add_holes(repository, &mut zeros, node, times);
                if let Some(subtree) = node.subtree {
                    let known = next.entry(subtree).or_default();
                    *known = known.saturating_add(times);
                }
            }
            Ok(())
        })?;
        if measure.folders > MOST_FOLDERS || measure.files > MOST_FILES {
            return Err(Error::refused("there are more files and folders than any file system holds")
                .hint("Choose less: something deeper down."));
        }
        level = next;
    }
    Ok(measure)
}

impl Measure {
    fn add_holes(&mut self, repository: &Repository, zeros: &mut Zeros, node: &Node, times: u64) {
        // A part that is not there is told of when the file is brought back.
        let bytes = zeros.of(repository, node).and_then(|()| zeros.bytes(repository, node)).unwrap_or_default();
        self.holes = self.holes.saturating_add(bytes.min(node.size).saturating_mul(times));
    }

    /// Bytes that are written.
    pub fn written(&self) -> u64 {
        self.bytes.saturating_sub(self.holes)
    }

    fn add(&mut self, node: &Node, times: u64) {
        let number = match node.kind {
            EntryKind::File => {
                self.bytes = self.bytes.saturating_add(node.size.saturating_mul(times));
                &mut self.files
            }
            EntryKind::Folder => &mut self.folders,
            EntryKind::Symlink => &mut self.symlinks,
            EntryKind::Other => &mut self.others,
        };
        *number = number.saturating_add(times);
    }
}

/// The name under which a folder is filled.
fn partial(folder: &Path, recovery: &str) -> Result<(PathBuf, Vec<u8>, Vec<u8>)> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
        return Err(Error::operator(format!("{} is no place for a new folder", folder.display()))
            .hint("Name a folder that is not there yet, in one that is."));
    };
    let mut filled = name.as_bytes().to_vec();
    filled.extend_from_slice(format!(".partial-{recovery}").as_bytes());
    Ok((parent.to_owned(), name.as_bytes().to_vec(), filled))
}

/// Removes what a process that ended has left of a folder that it was filling. Returns whether the folder was finished.
pub fn settle(folder: &Path, recovery: &str) -> Result<bool> {
    let (parent, name, filled) = partial(folder, recovery)?;
    let Ok(held) = Folder::open(&parent) else { return Ok(false) };
    if held.present(&filled)?.is_some() {
        held.remove_tree(&filled)?;
        return Ok(false);
    }
    Ok(held.present(&name)?.is_some())
}

/// Brings back what lies at some paths of a snapshot, into a folder that is not there yet.
pub fn restore(
    (repository, snapshot): (&Repository, &Snapshot),
    paths: &[String],
    (folder, own): (&Path, Own),
    recovery: &str,
    (measure, progress): (&Measure, &Progress),
) -> Result<Restored> {
    let (parent, name, filled) = partial(folder, recovery)?;
    let held = Folder::open(&parent)?;
    if held.present(&name)?.is_some() {
        return Err(Error::refused(format!("{} is there already", folder.display()))
            .hint("Name a folder that is not there yet: nothing is overwritten."));
    }
    held.make(&filled)?;
    progress.begin("writing files", Unit::Bytes, Some(measure.bytes));
    let root = held.beneath(Path::new(std::ffi::OsStr::from_bytes(&filled)));
    let outcome = root.and_then(|root| {
        let durable = Durable::of(measure);
        let work = Work { repository, own, durable, root, links: Mutex::default(), progress };
        let mut restored = work.all(snapshot, paths)?;
        progress.check()?;
        match durable {
            Durable::Each => work.root.sync()?,
            Durable::Whole => work.root.sync_all()?,
        }
        held.rename(&filled, &name)?;
        // What may be lost with the power is not said to be there.
        held.sync().inspect_err(|_| drop(held.rename(&name, &filled)))?;
        restored.folder = folder.display().to_string();
        Ok(restored)
    });
    if outcome.is_err() {
        // What went wrong matters more than what could not be cleaned up after it; `resume` removes the rest.
        let _ = held.remove_tree(&filled);
    }
    outcome
}

/// A folder that is made, by its path beneath the root.
struct Made {
    path: PathBuf,
    node: Node,
}

/// What the names of one file have in common: device, inode, and the content, since a snapshot may lie about the others.
type Linked = (u64, u64, String);

/// Files that are to be written, by their folder.
#[derive(Default)]
struct Waiting {
    small: Vec<(PathBuf, Vec<Node>)>,
    /// Large ones, and those of several names.
    alone: Vec<(PathBuf, Node)>,
    files: usize,
    /// Of the small ones.
    bytes: u64,
}

impl Waiting {
    fn add(&mut self, repository: &Repository, folder: &Path, node: Node) {
        self.files += 1;
        // What the index says, since what the node says of its length need not be so.
        let lengths = node.content.iter().map(|id| repository.part_length(id).ok().map(u64::from));
        match lengths.sum::<Option<u64>>() {
            Some(bytes) if bytes <= write::SMALL && node.links <= 1 => {
                self.bytes += bytes;
                match self.small.last_mut() {
                    Some((last, nodes)) if last == folder && nodes.len() < SHARE => nodes.push(node),
                    _ => self.small.push((folder.to_owned(), vec![node])),
                }
            }
            _ => self.alone.push((folder.to_owned(), node)),
        }
    }

    fn is_full(&self) -> bool {
        self.files >= BATCH || self.bytes >= NEAR
    }
}

/// How everything comes to be on disk before the folder gets its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Durable {
    /// Each file and folder by itself: nobody waits for what others have written to the same file system.
    Each,
    /// The whole file system, once: for many files that is quicker.
    Whole,
}

/// Up to so many files and folders are put on disk each by itself.
const EACH: u64 = 64;

impl Durable {
    fn of(measure: &Measure) -> Self {
        let few = measure.complete && measure.files + measure.folders + measure.symlinks <= EACH;
        if few { Self::Each } else { Self::Whole }
    }

    fn sync(self, file: &impl AsFd, shown: &Path) -> Result<()> {
        match self {
            Self::Each => rustix::fs::fsync(file).map_err(|error| write::failed("write", shown, error)),
            Self::Whole => Ok(()),
        }
    }
}

struct Work<'a> {
    repository: &'a Repository,
    own: Own,
    durable: Durable,
    root: Folder,
    /// Files of several names: the first of them that was written.
    links: Mutex<HashMap<Linked, PathBuf>>,
    progress: &'a Progress,
}

impl Work<'_> {
    fn all(&self, snapshot: &Snapshot, paths: &[String]) -> Result<Restored> {
        let mut restored = Restored::default();
        let mut made: Vec<Made> = Vec::new();
        let mut roots = Vec::new();
        let mut waiting = Waiting::default();
        for path in outermost(paths) {
            let (above, node) = self.above(snapshot, path, &mut made)?;
            match (node.subtree, node.file_name()) {
                (Some(subtree), Some(name)) if node.kind == EntryKind::Folder => {
                    let path = above.join(std::ffi::OsStr::from_bytes(name));
                    if self.make(&path).is_ok() {
                        roots.push((subtree, made.len()));
                        made.push(Made { path, node });
                        restored.folders += 1;
                    }
                }
                (Some(subtree), None) => {
                    // The whole snapshot.
                    roots.push((subtree, made.len()));
                    made.push(Made { path: above, node });
                }
                _ => waiting.add(self.repository, &above, node),
            }
        }
        self.repository.walk(roots, self.progress, |folder, visit, more| {
            let path = made[folder].path.clone();
            let nodes = match visit {
                Visit::Nodes(nodes) => nodes,
                Visit::Damaged(why) => {
                    restored.fail(&path, why);
                    return Ok(());
                }
                Visit::TooDeep => {
                    restored.fail(&path, "it lies deeper than a path can be");
                    return Ok(());
                }
                Visit::TooMany => {
                    restored.fail(&path, "there are more folders in it than any file system holds");
                    return Ok(());
                }
            };
            for mut node in nodes {
                let (Some(subtree), Some(name)) = (node.subtree, node.file_name()) else {
                    waiting.add(self.repository, &path, node);
                    if waiting.is_full() {
                        restored.merge(self.files(std::mem::take(&mut waiting))?);
                    }
                    continue;
                };
                let path = path.join(std::ffi::OsStr::from_bytes(name));
                match self.make(&path) {
                    Ok(()) => {
                        more.push((subtree, made.len()));
                        restored.folders += 1;
                        node.content = Vec::new();
                        made.push(Made { path, node });
                    }
                    Err(error) if write::is_final(&error) => return Err(error),
                    Err(error) => restored.fail(&path, reason(error)),
                }
            }
            Ok(())
        })?;
        restored.merge(self.files(waiting)?);
        // Folders last, the deepest first: what is made in one changes its times.
        for Made { path, node } in made.iter().rev().filter(|made| !made.path.as_os_str().is_empty()) {
            match self.root.beneath(path) {
                Ok(folder) => {
                    write::dress(&folder, node, self.own, path, &mut restored.notes);
                    self.durable.sync(&folder, path)?;
                }
                Err(error) => restored.notes.add(error.message, path),
            }
        }
        Ok(restored)
    }

    /// Makes the folders above a path, as the snapshot has them. Returns the path of the last, and what is at the path.
    fn above(&self, snapshot: &Snapshot, path: &str, made: &mut Vec<Made>) -> Result<(PathBuf, Node)> {
        let mut names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        let node = self.repository.node(snapshot, path)?;
        names.pop();
        let (mut here, mut there) = (PathBuf::new(), String::new());
        for name in names {
            there.push('/');
            there.push_str(name);
            let node = self.repository.node(snapshot, &there)?;
            let Some(name) = node.file_name() else {
                return Err(Error::backup(format!("{path} has a name in it that can be none of a folder")));
            };
            here.push(std::ffi::OsStr::from_bytes(name));
            if !made.iter().any(|made| made.path == here) {
                self.make(&here)?;
                made.push(Made { path: here.clone(), node });
            }
        }
        Ok((here, node))
    }

    fn make(&self, path: &Path) -> Result<()> {
        let parent = self.root.beneath(path.parent().unwrap_or(Path::new("")))?;
        parent.make(path.file_name().unwrap_or_default().as_bytes())
    }

    /// Writes files: the small ones beside each other, from parts that are fetched for all of them at once, in the order in
    /// which they lie in the repository. Large ones come one after the other, each written by all threads; so do those of
    /// several names, since which is the first has to be known.
    fn files(&self, waiting: Waiting) -> Result<Restored> {
        let ids: Vec<_> =
            waiting.small.iter().flat_map(|(_, nodes)| nodes).flat_map(|node| &node.content).copied().collect();
        let near = self.repository.readable_parts(&ids)?;
        let small = waiting.small.into_par_iter().map(|(folder, nodes)| self.files_of(&folder, &nodes, &near));
        let mut done: Vec<Restored> = small.collect::<Result<_>>()?;
        for (folder, node) in waiting.alone {
            done.push(self.files_of(&folder, std::slice::from_ref(&node), &Near::new())?);
        }
        let mut all = Restored::default();
        for one in done {
            all.merge(one);
        }
        Ok(all)
    }

    fn files_of(&self, folder: &Path, nodes: &[Node], near: &Near) -> Result<Restored> {
        let mut restored = Restored::default();
        let held = self.root.beneath(folder)?;
        for node in nodes {
            self.progress.check()?;
            let Some(name) = node.file_name() else {
                restored.fail(&folder.join(&node.name), "that is no name of a file");
                continue;
            };
            let path = folder.join(std::ffi::OsString::from_vec(name.to_vec()));
            let done = match node.kind {
                EntryKind::File => self.file(&held, (name, node, near), &path, &mut restored),
                EntryKind::Symlink => {
                    held.link(name, node, self.own, &mut restored.notes).map(|()| restored.symlinks += 1)
                }
                EntryKind::Folder => Err(Error::backup("a folder without content")),
                EntryKind::Other => Err(Error::refused("devices, pipes and sockets are not made")),
            };
            match done {
                Ok(()) => {}
                Err(error) if error.kind == Kind::Cancelled || write::is_final(&error) => return Err(error),
                Err(error) => restored.fail(&path, reason(error)),
            }
        }
        Ok(restored)
    }

    fn file(
        &self,
        held: &Folder,
        (name, node, near): (&[u8], &Node, &Near),
        path: &Path,
        restored: &mut Restored,
    ) -> Result<()> {
        if node.links < 2 {
            return self.write(held, (name, node, near), path, restored);
        }
        // Files of several names come one after the other: whether this is the first is known.
        let first = self.links.lock().unwrap_or_else(PoisonError::into_inner).get(&linked(node)).cloned();
        if let Some(first) = first {
            match self.root.link_again(&first, path) {
                Ok(()) => {
                    restored.files += 1;
                    return Ok(());
                }
                Err(error) => {
                    restored.notes.add(format!("hard links: {}", error.detail.unwrap_or_default()), path);
                }
            }
        }
        self.write(held, (name, node, near), path, restored)?;
        self.links
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(linked(node))
            .or_insert_with(|| path.to_owned());
        Ok(())
    }

    fn write(
        &self,
        held: &Folder,
        (name, node, near): (&[u8], &Node, &Near),
        path: &Path,
        restored: &mut Restored,
    ) -> Result<()> {
        let file = held.create(name)?;
        let written = write::fill(&file, (self.repository, near), node, path, self.progress).and_then(|()| {
            if write::holds(&file, self.repository, node)? {
                return Ok(());
            }
            Err(Error::target("what was written is not what was read again").hint("Check the disk."))
        });
        if let Err(error) = written {
            // Bytes that are not the snapshot's do not stay under its name.
            let _ = held.remove(name);
            return Err(error);
        }
        write::dress(&file, node, self.own, path, &mut restored.notes);
        self.durable.sync(&file, path)?;
        let length = file.metadata().map_or(node.size, |facts| facts.len());
        if length != node.size {
            restored.notes.add("the size that the snapshot tells of: its parts have another one", path);
        }
        restored.files += 1;
        restored.bytes += length;
        Ok(())
    }
}

/// Why something could not be brought back, with the words of whoever said so.
fn reason(error: Error) -> String {
    match error.detail {
        Some(detail) => format!("{}: {detail}", error.message),
        None => error.message,
    }
}

fn linked(node: &Node) -> Linked {
    (node.device, node.inode, content(node))
}
