//! What is to be brought back, frozen: where each thing goes, what stands there now, and what is left out. What is shown is
//! what is done: [`super::put`] does nothing that is not here.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::beside::{self, Measure};
use super::live::{self, Present};
use super::write::{Folder, Own, Zeros};
use crate::backup::{BlobId, EntryKind, MAX_DEPTH, Node, Repository, Snapshot};
use crate::error::{Error, Kind, Result};
use crate::progress::{Progress, Unit};
use crate::text;

/// More files than this are not put in place one by one: they are brought back beside, and moved. No more are left out, each
/// with its reason.
const MOST: usize = 10_000;

/// Descriptors for everything else than the folders that are held.
const OTHERS: u64 = 100;

/// Entries that are compared with what stands there now.
const MOST_COMPARED: u64 = 1_000_000;

/// Where things go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// Into this folder, which is not there yet; paths are kept beneath it.
    Beside(String),
    /// Where they were.
    InPlace,
}

/// Which files are put in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Only those that are gone.
    Missing,
    /// Those that are gone, and those with other content; the present ones are kept under another name.
    MissingAndChanged,
    /// Those that are gone; of those with other content the ones that were marked by themselves, and none that a marked
    /// folder holds. The present ones are kept under another name.
    MissingAndMarked,
}

/// What happens at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing stands there.
    Create,
    /// What stands there changes places with what comes back, and is kept.
    Replace,
    /// A folder that is not there.
    MakeFolder,
}

/// One thing that is put in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// In the snapshot, and on this machine.
    pub path: String,
    /// What happens there.
    pub action: Action,
    /// A symlink is one itself.
    pub kind: EntryKind,
    /// In bytes; 0 for everything but files.
    pub size: u64,
    /// SHA-256, in hex, over the ids of the parts, or over the target of a symlink: what will be there.
    pub content: String,
    /// What stands there, as it was looked at.
    pub present: Option<Present>,
}

/// What is to be brought back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The snapshot's full id.
    pub point: String,
    /// What was marked.
    pub paths: Vec<String>,
    /// Where it goes.
    pub destination: Destination,
    /// Whose it will be.
    pub own: Own,
    /// How much it is.
    pub measure: Measure,
    /// What is put in place; empty when it goes beside.
    pub items: Vec<Item>,
    /// In place: so many are there already, with the same content.
    pub same: u64,
    /// What will not be done, and why: by path.
    pub left_out: BTreeMap<String, String>,
    /// Bytes that are free where it goes; 0 also where the file system does not count them.
    pub free: u64,
}

impl Choice {
    /// Leaves some paths out, and what is beneath them.
    ///
    /// Errors: a path at which nothing would be put in place.
    pub fn without(mut self, except: &[String]) -> Result<Self> {
        let named = |path: &str| self.items.iter().any(|item| is_beneath(&item.path, path));
        if let Some(path) = except.iter().find(|path| !named(path)) {
            return Err(Error::operator(format!("nothing would be put in place at {path}"))
                .hint("Leave out what the plan names, by its whole path."));
        }
        self.items.retain(|item| !except.iter().any(|path| is_beneath(&item.path, path)));
        self.left_out.extend(except.iter().map(|path| (path.clone(), BY_YOU.to_owned())));
        Ok(self)
    }

    /// Whether somebody has left something out that would be put in place.
    pub fn is_narrowed(&self) -> bool {
        self.left_out.values().any(|why| why == BY_YOU)
    }

    /// How many things are written in place, folders not counted.
    pub fn writes(&self) -> u64 {
        self.items.iter().filter(|item| item.action != Action::MakeFolder).count() as u64
    }
}

/// Why something is left out that would be put in place.
const BY_YOU: &str = "you left it out";

/// Whether a path is the other one, or lies beneath it.
fn is_beneath(path: &str, above: &str) -> bool {
    path.strip_prefix(above.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// An owner of the snapshot who is somebody else on this machine, or nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stranger {
    /// The number there.
    pub uid: u32,
    /// The name there; empty when it had none.
    pub was: String,
    /// Who has the number here; empty: nobody.
    pub is: String,
}

/// Looks what bringing back would meet.
///
/// Errors: a path that the snapshot does not hold; not enough space; more than can be put in place one by one.
pub fn freeze(
    (repository, snapshot): (&Repository, &Snapshot),
    paths: &[String],
    (destination, policy, own): (&Destination, Policy, Own),
    recovery: &str,
    progress: &Progress,
) -> Result<Choice> {
    let measure = beside::measure(repository, snapshot, paths, progress)?;
    let mut choice = Choice {
        point: snapshot.id.clone(),
        paths: paths.to_vec(),
        destination: destination.clone(),
        own,
        measure,
        items: Vec::new(),
        same: 0,
        left_out: BTreeMap::new(),
        free: 0,
    };
    match destination {
        Destination::Beside(folder) => {
            let folder = Path::new(folder);
            let parent = folder.parent().filter(|_| folder.is_absolute()).ok_or_else(|| {
                Error::operator(format!("{} is no place for a new folder", folder.display()))
                    .hint("Give the whole path of a folder that is not there yet, in one that is.")
            })?;
            let held = Folder::open(parent)?;
            if Present::at(folder)?.is_some() {
                return Err(Error::refused(format!("{} is there already", folder.display()))
                    .hint("Name a folder that is not there yet: nothing is overwritten."));
            }
            choice.free = held.free()?.unwrap_or_default();
            enough(&held, measure.written(), measure.files + measure.folders + measure.symlinks)?;
        }
        Destination::InPlace => in_place(repository, snapshot, policy, recovery, &mut choice, progress)?,
    }
    Ok(choice)
}

/// Refuses before anything is written what would not fit.
fn enough(held: &Folder, bytes: u64, files: u64) -> Result<()> {
    if let Some(free) = held.free()?.filter(|free| bytes > *free) {
        return Err(Error::refused(format!(
            "{} are free at {}, and {} are to be written",
            text::bytes(free),
            held.path.display(),
            text::bytes(bytes)
        ))
        .hint("Free some space, choose less, or choose another place."));
    }
    match held.free_files()? {
        Some(free) if files > free => Err(Error::refused(format!(
            "{} can hold {} more files, and {} are to be made",
            held.path.display(),
            text::count(free),
            text::count(files)
        ))
        .hint("Choose less, or choose another place.")),
        _ => Ok(()),
    }
}

fn in_place(
    repository: &Repository,
    snapshot: &Snapshot,
    policy: Policy,
    recovery: &str,
    choice: &mut Choice,
    progress: &Progress,
) -> Result<()> {
    let measure = &choice.measure;
    if measure.files + measure.folders + measure.symlinks + measure.others > MOST_COMPARED {
        return Err(too_many(&format!("more than {} things would be compared", text::count(MOST_COMPARED))));
    }
    progress.begin("looking what stands there now", Unit::Items, None);
    let mut zeros = Zeros::default();
    let mut needed: BTreeMap<u64, (PathBuf, u64, u64)> = BTreeMap::new();
    let mut met: BTreeSet<String> = BTreeSet::new();
    let marked: BTreeSet<String> = choice.paths.iter().cloned().collect();
    let mut open: Vec<(String, Node)> = Vec::new();
    for path in choice.paths.iter().rev() {
        open.push((path.clone(), repository.node(snapshot, path)?));
    }
    while let Some((path, node)) = open.pop() {
        progress.check()?;
        progress.advance(1);
        if choice.items.len().max(choice.left_out.len()) > MOST {
            let most = text::count(MOST as u64);
            return Err(too_many(&format!("more than {most} things would be put in place, or left out")));
        }
        // What is marked by itself and with a folder above it is met twice.
        if !met.insert(path.clone()) {
            continue;
        }
        let Some(here) = here(repository, snapshot, &path)? else {
            choice.left_out.insert(path, "that is no name of a file".into());
            continue;
        };
        if path.split('/').count() > MAX_DEPTH {
            choice.left_out.insert(path, "it lies deeper than a path can be".into());
            continue;
        }
        let present = match Present::at(&here) {
            Ok(present) => present,
            Err(error) => {
                choice.left_out.insert(path, error.to_string());
                continue;
            }
        };
        let mut push = |action| {
            choice.items.push(Item {
                path: path.clone(),
                action,
                kind: node.kind,
                size: node.size,
                content: content(&node),
                present: present.clone(),
            });
        };
        if node.kind == EntryKind::Folder {
            match &present {
                None => match reachable(&here) {
                    Ok(()) => push(Action::MakeFolder),
                    Err(why) => {
                        choice.left_out.insert(path, why);
                        continue;
                    }
                },
                Some(present) if present.kind == EntryKind::Folder => {}
                Some(_) => {
                    choice.left_out.insert(path, "a folder comes back, and something else stands there".into());
                    continue;
                }
            }
            open_folder(repository, &path, &node, &mut open, &mut choice.left_out)?;
            continue;
        }
        let policy = match policy {
            Policy::MissingAndMarked if marked.contains(&path) => Policy::MissingAndChanged,
            Policy::MissingAndMarked => Policy::Missing,
            Policy::Missing | Policy::MissingAndChanged => policy,
        };
        match action(repository, &node, &here, present.as_ref(), policy, recovery) {
            Ok(Ok(Some(action))) => push(action),
            Ok(Ok(None)) => {
                choice.same += 1;
                continue;
            }
            Ok(Err(why)) => {
                choice.left_out.insert(path, why);
                continue;
            }
            // One damaged file does not keep the others from coming back.
            Err(error) if error.kind == Kind::Backup => {
                choice.left_out.insert(path, error.to_string());
                continue;
            }
            Err(error) => return Err(error),
        }
        if let Some((parent, device)) = nearest(&here) {
            let entry = needed.entry(device).or_insert((parent, 0, 0));
            let holes = zeros.of(repository, &node).and_then(|()| zeros.bytes(repository, &node)).unwrap_or_default();
            (entry.1, entry.2) = (entry.1.saturating_add(node.size.saturating_sub(holes)), entry.2 + 1);
        }
    }
    for (folder, bytes, files) in needed.values() {
        let held = Folder::open(folder)?;
        choice.free = choice.free.max(held.free()?.unwrap_or_default());
        enough(&held, *bytes, *files)?;
    }
    can_be_held(choice)
}

/// Each folder that something is put into is held open from the first look to the last act.
fn can_be_held(choice: &Choice) -> Result<()> {
    let above = |item: &Item| item.path.rfind('/').map_or(0, |end| end);
    let folders: BTreeSet<&str> = choice.items.iter().map(|item| &item.path[..above(item)]).collect();
    let (most, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    if folders.len() as u64 + OTHERS <= most {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{} folders would be written to at once, and this process may open {most} files",
        text::count(folders.len() as u64)
    ))
    .hint("Choose less, allow more with ulimit -n, or bring them back beside and move the folder."))
}

/// Adds what is in a folder to what is still to be looked at.
fn open_folder(
    repository: &Repository,
    path: &str,
    node: &Node,
    open: &mut Vec<(String, Node)>,
    left_out: &mut BTreeMap<String, String>,
) -> Result<()> {
    let nodes = match node.subtree.map(|id| repository.nodes(&id)).transpose() {
        Ok(nodes) => nodes.unwrap_or_default(),
        Err(error) if error.kind == Kind::Backup => {
            left_out.insert(path.into(), error.to_string());
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let mut names: HashMap<&str, u32> = HashMap::new();
    for child in &*nodes {
        *names.entry(&child.name).or_default() += 1;
    }
    for child in nodes.iter().rev() {
        let path = format!("{}/{}", path.trim_end_matches('/'), child.name);
        if names.get(child.name.as_str()) == Some(&1) {
            open.push((path, child.clone()));
        } else {
            left_out.insert(path, "the snapshot holds it twice".into());
        }
    }
    Ok(())
}

fn too_many(what: &str) -> Error {
    Error::refused(what).hint("Choose less, or bring them back beside and move the folder.")
}

/// Whether the nearest folder above that is there can be reached without a symlink; the error: why not.
fn reachable(here: &Path) -> std::result::Result<(), String> {
    match here.ancestors().skip(1).find(|above| above.symlink_metadata().is_ok()).map(Folder::open) {
        Some(Err(error)) => Err(format!("{}: {}", error.message, error.hints.first().cloned().unwrap_or_default())),
        _ => Ok(()),
    }
}

/// What is to be done with one file or symlink; `Ok(None)`: it is there. The inner error: why it is left out.
fn action(
    repository: &Repository,
    node: &Node,
    here: &Path,
    present: Option<&Present>,
    policy: Policy,
    recovery: &str,
) -> Result<std::result::Result<Option<Action>, String>> {
    if node.kind == EntryKind::Other {
        return Ok(Err("devices, pipes and sockets are not made".into()));
    }
    let name = here.file_name().unwrap_or_default().as_bytes();
    if aside(name, recovery).len() > 255 {
        return Ok(Err("its name is too long to keep the present one under another".into()));
    }
    if let Err(why) = reachable(here) {
        return Ok(Err(why));
    }
    if node.kind == EntryKind::File {
        let mut parts = 0;
        for id in &node.content {
            parts += u64::from(repository.part_length(id)?);
        }
        if parts != node.size {
            let (parts, size) = (text::bytes(parts), text::bytes(node.size));
            return Ok(Err(format!("the snapshot says that it has {size}, and its parts have {parts}")));
        }
    }
    let Some(present) = present else { return Ok(Ok(Some(Action::Create))) };
    Ok(match (node.kind, present.kind) {
        (EntryKind::File, EntryKind::File)
            if node.size == present.size && live::has_content(repository, node, here)? =>
        {
            Ok(None)
        }
        (EntryKind::Symlink, EntryKind::Symlink)
            if std::fs::read_link(here).is_ok_and(|target| target.as_os_str().as_bytes() == node.target.as_bytes()) =>
        {
            Ok(None)
        }
        (_, EntryKind::Folder) => Err("a folder stands there".into()),
        (_, EntryKind::Other) => Err("a device, pipe or socket stands there".into()),
        (EntryKind::File, EntryKind::Symlink) => Err("a symlink stands there; it is not followed".into()),
        _ if present.links > 1 => Err(format!(
            "what stands there has {} names (hard links): the others would keep the present content",
            present.links
        )),
        _ if policy == Policy::Missing => Err("it has changed, and was not to be replaced".into()),
        _ if is_immutable(here) => Err("what stands there is marked immutable (lsattr tells)".into()),
        _ => Ok(Some(Action::Replace)),
    })
}

/// Whether not even its owner may rename it. Not every file system knows of that.
fn is_immutable(path: &Path) -> bool {
    use rustix::fs::IFlags;
    let flags = live::open(path).ok().and_then(|file| rustix::fs::ioctl_getflags(file).ok());
    flags.is_some_and(|flags| flags.intersects(IFlags::IMMUTABLE | IFlags::APPEND))
}

/// The nearest folder above that is there, and its file system.
fn nearest(path: &Path) -> Option<(PathBuf, u64)> {
    path.ancestors().skip(1).find_map(|above| {
        let present = Present::at(above).ok().flatten()?;
        (present.kind == EntryKind::Folder).then(|| (above.to_owned(), present.device))
    })
}

/// The path of this machine; `None`: a name in it can be none of a file.
pub fn here(repository: &Repository, snapshot: &Snapshot, path: &str) -> Result<Option<PathBuf>> {
    let (mut here, mut there) = (PathBuf::from("/"), String::new());
    for name in path.split('/').filter(|name| !name.is_empty()) {
        there.push('/');
        there.push_str(name);
        // Only names that are written with escapes are not simply their bytes.
        if !name.contains("\\x") {
            here.push(name);
            continue;
        }
        match repository.node(snapshot, &there)?.file_name() {
            Some(name) => here.push(OsStr::from_bytes(name)),
            None => return Ok(None),
        }
    }
    Ok(Some(here))
}

/// The name under which what stood there is kept.
pub fn aside(name: &[u8], recovery: &str) -> Vec<u8> {
    [name, b".pre-", recovery.as_bytes()].concat()
}

/// The name under which what comes back is made ready.
pub fn ready(name: &[u8], recovery: &str) -> Vec<u8> {
    [name, b".new-", recovery.as_bytes()].concat()
}

/// What will be there, as one hash.
pub fn content(node: &Node) -> String {
    let mut hash = Sha256::new();
    for id in &node.content {
        hash.update(id.to_hex().as_str());
    }
    hash.update(node.target.as_bytes());
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Owners of what was chosen who are somebody else here, or nobody.
pub fn strangers(
    repository: &Repository,
    snapshot: &Snapshot,
    paths: &[String],
    progress: &Progress,
) -> Result<Vec<Stranger>> {
    let mut owners: BTreeSet<(u32, String)> = BTreeSet::new();
    let mut seen: HashSet<BlobId> = HashSet::new();
    let mut roots = Vec::new();
    for path in paths {
        let node = repository.node(snapshot, path)?;
        if !path.trim_matches('/').is_empty() {
            owners.insert((node.uid, node.user.clone()));
        }
        roots.extend(node.subtree.map(|subtree| (subtree, ())));
    }
    progress.begin("looking whose files they are", Unit::Items, None);
    repository.walk(roots, progress, |(), visit, more| {
        if let crate::backup::Visit::Nodes(nodes) = visit {
            progress.advance(nodes.len() as u64);
            for node in &nodes {
                owners.insert((node.uid, node.user.clone()));
                more.extend(node.subtree.filter(|id| seen.insert(*id)).map(|subtree| (subtree, ())));
            }
        }
        Ok(())
    })?;
    let here = |uid: u32| {
        let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
        user.map_or_else(String::new, |user| user.name)
    };
    Ok(owners
        .into_iter()
        .map(|(uid, was)| Stranger { uid, is: here(uid), was })
        .filter(|stranger| stranger.was != stranger.is)
        .collect())
}
