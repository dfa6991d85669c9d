//! Putting files back in place, and taking that back.
//!
//! ```text
//!   make each NAME.new-ID ready: written, read again, dressed, synced          nothing that was there is touched
//!   for each: still as it was looked at? -> exchange NAME and NAME.new-ID      one act; or rename, where nothing stood
//!   NAME.new-ID, which is the present one now, becomes NAME.pre-ID             kept
//! ```
//!
//! When one of them has changed since it was looked at, or anything else fails, all that were exchanged are exchanged back.
//! Undo is the same exchange once more: what came back is then kept as NAME.pre-ID.
//!
//! Invariant: nothing is deleted but what we made ready ourselves and nobody has changed since. Which of two names holds
//! what is never remembered but looked up, by inode while the process lives and by content after it was killed: NAME.new-ID
//! may be ours or, after the exchange, the only copy of what stood there.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::choice::{Action, Choice, Item, aside, content, here, ready};
use super::live::Present;
use super::write::{self, Folder, Notes};
use crate::backup::{EntryKind, Node, Repository, Snapshot};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// What was put in place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// In the choice's order.
    pub placed: Vec<Placed>,
    /// What could not be applied to them.
    pub notes: Notes,
}

/// One thing that was put in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// As bytes in hex: a name need not be text.
    #[serde(with = "hex")]
    pub path: PathBuf,
    /// What happened there.
    pub action: Action,
    /// The name of what is kept; of what nothing stood in the place of, the name that it gets when it is taken back.
    #[serde(with = "hex")]
    pub aside: PathBuf,
    /// What was put there.
    pub now: Present,
    /// What stood there.
    pub before: Option<Present>,
}

/// Paths in JSON, whatever bytes they have.
mod hex {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        let bytes = path.as_os_str().as_bytes();
        match std::str::from_utf8(bytes) {
            Ok(text) if !text.starts_with("hex:") => to.serialize_str(text),
            _ => to.serialize_str(&bytes.iter().fold("hex:".to_owned(), |text, byte| text + &format!("{byte:02x}"))),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        let text = String::deserialize(from)?;
        let Some(digits) = text.strip_prefix("hex:") else { return Ok(text.into()) };
        let pair = |at: usize| digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(pair).collect();
        bytes.map(|bytes| std::ffi::OsString::from_vec(bytes).into()).ok_or_else(|| D::Error::custom("no hex digits"))
    }
}

/// One item on its way.
struct Way<'a> {
    item: &'a Item,
    node: Node,
    folder: Arc<Folder>,
    path: PathBuf,
    name: Vec<u8>,
    ready: Vec<u8>,
    aside: Vec<u8>,
    /// What we made ready; `None` in a process that did not make it.
    made: Option<Present>,
}

/// Folders that are held open, by path: each once, however many files go into it.
#[derive(Default)]
struct Folders(HashMap<PathBuf, Arc<Folder>>);

impl Folders {
    /// The folder in which a path lies.
    fn above(&mut self, path: &Path) -> Result<Arc<Folder>> {
        let above = path.parent().unwrap_or(Path::new("/"));
        if let Some(held) = self.0.get(above) {
            return Ok(held.clone());
        }
        let held = Arc::new(Folder::open(above)?);
        self.0.insert(above.to_owned(), held.clone());
        Ok(held)
    }

    /// Returns when the names in all of them are on disk.
    fn sync(&self) -> Result<()> {
        self.0.values().try_for_each(|folder| folder.sync())
    }
}

impl<'a> Way<'a> {
    fn to(item: &'a Item, node: Node, path: PathBuf, recovery: &str, folders: &mut Folders) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().as_bytes().to_vec();
        let folder = folders.above(&path)?;
        let (ready, aside) = (ready(&name, recovery), aside(&name, recovery));
        Ok(Self { item, node, folder, path, name, ready, aside, made: None })
    }

    /// Whether what stands there is what was looked at. Exchanging names changes the time of the last change of the inode,
    /// so that one counts only before anything was done.
    fn is_as_seen(&self) -> Result<bool> {
        Ok(self.folder.present(&self.name)? == self.item.present)
    }

    /// Whether what stands at a name is what we made ready, and nobody has changed it.
    fn is_ours(&self, repository: &Repository, name: &[u8]) -> Result<bool> {
        let Some(now) = self.folder.present(name)? else { return Ok(false) };
        if let Some(made) = &self.made {
            return Ok(is_same(&now, made));
        }
        match (now.kind, self.node.kind) {
            (EntryKind::File, EntryKind::File) => write::holds(&self.folder.read(name)?, repository, &self.node),
            (EntryKind::Symlink, EntryKind::Symlink) => Ok(self.folder.target(name)? == self.node.target.as_bytes()),
            _ => Ok(false),
        }
    }

    /// The name at which what stood there is kept now, when it is: what is not ours, while we know ours.
    fn kept(&self) -> Result<Option<&[u8]>> {
        for name in [&self.ready, &self.aside] {
            let Some(now) = self.folder.present(name)? else { continue };
            let is_kept = match &self.made {
                Some(made) => !is_same_inode(&now, made),
                None => self.item.present.as_ref().is_some_and(|old| is_same_inode(&now, old)),
            };
            if is_kept {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    fn is_folder(&self) -> bool {
        self.item.action == Action::MakeFolder
    }

    /// As it is told, and taken back by.
    fn placed(&self, now: Present) -> Placed {
        let aside = self.path.with_file_name(OsStr::from_bytes(&self.aside));
        let before = self.item.present.clone();
        Placed { path: self.path.clone(), action: self.item.action, aside, now, before }
    }

    /// Whether it was put in place.
    fn is_done(&self, repository: &Repository) -> Result<bool> {
        Ok(match self.item.action {
            Action::MakeFolder => false,
            Action::Create => self.folder.present(&self.ready)?.is_none() && self.is_ours(repository, &self.name)?,
            Action::Replace => self.kept()?.is_some() && self.is_ours(repository, &self.name)?,
        })
    }
}

fn is_same_inode(a: &Present, b: &Present) -> bool {
    (a.inode, a.device, a.kind) == (b.inode, b.device, b.kind)
}

/// Whether two are the same file with the same content and rights, whatever names it has had meanwhile.
fn is_same(a: &Present, b: &Present) -> bool {
    let facts = |one: &Present| (one.size, one.modified, one.mode, one.uid, one.gid);
    is_same_inode(a, b) && facts(a) == facts(b)
}

/// Puts everything of a choice in place, or nothing.
pub fn put(
    (repository, snapshot): (&Repository, &Snapshot),
    choice: &Choice,
    recovery: &str,
    progress: &Progress,
) -> Result<Put> {
    progress.begin("making files ready beside the present ones", Unit::Bytes, Some(bytes(choice)));
    let mut notes = Notes::default();
    let mut held = Folders::default();
    let mut ways: Vec<Way> = Vec::new();
    let outcome = choice.items.iter().try_for_each(|item| {
        progress.check()?;
        let node = repository.node(snapshot, &item.path)?;
        let mut way = Way::to(item, node, path_of(repository, snapshot, item)?, recovery, &mut held)?;
        way.made = Some(prepare(repository, choice, &way, &mut notes, progress)?);
        ways.push(way);
        Ok(())
    });
    let (folders, files): (Vec<Way>, Vec<Way>) = ways.into_iter().partition(Way::is_folder);
    let outcome = outcome.and_then(|()| {
        progress.check()?;
        progress.begin("exchanging names", Unit::Items, Some(files.len() as u64));
        exchange_all(&files, progress)?;
        held.sync()
    });
    if let Err(error) = outcome {
        take_back(repository, &files, &folders)
            .and_then(|()| held.sync())
            .map_err(|again| unknown(&error, again, "what was put in place could not be taken away again"))?;
        return Err(error);
    }
    // It is done: from here on nothing is an error. Folders last: what is made in one changes its times.
    for way in folders.iter().rev() {
        match way.folder.beneath(Path::new(OsStr::from_bytes(&way.name))) {
            Ok(held) => {
                write::dress(&held, &way.node, choice.own, &way.path, &mut notes);
                if let Err(error) = held.sync() {
                    notes.add(error.message, &way.path);
                }
            }
            Err(error) => notes.add(error.message, &way.path),
        }
    }
    let (mut folders, mut files) = (folders.iter(), files.iter());
    let in_order = choice.items.iter().filter_map(|item| {
        let way = if item.action == Action::MakeFolder { folders.next() } else { files.next() }?;
        way.made.clone().map(|made| way.placed(made))
    });
    Ok(Put { placed: in_order.collect(), notes })
}

/// An error after which nobody knows what stands where; [`settle`] finds out.
fn unknown(first: &Error, then: Error, what: &str) -> Error {
    Error::unresolved(format!("{}, and {what}: {}", first.message, then.message))
        .detail(then.detail.unwrap_or_default())
        .hint("What stood there is kept, as NAME.new-RECOVERY or NAME.pre-RECOVERY.")
}

fn bytes(choice: &Choice) -> u64 {
    choice.items.iter().map(|item| item.size).sum()
}

fn path_of(repository: &Repository, snapshot: &Snapshot, item: &Item) -> Result<PathBuf> {
    here(repository, snapshot, &item.path)?
        .ok_or_else(|| Error::bug(format!("{} was chosen and can be no path", item.path)))
}

/// Makes what comes back ready beside its place; a folder, in its place. Returns what was made.
fn prepare(
    repository: &Repository,
    choice: &Choice,
    way: &Way,
    notes: &mut Notes,
    progress: &Progress,
) -> Result<Present> {
    let (node, folder) = (&way.node, &way.folder);
    if content(node) != way.item.content {
        return Err(Error::bug(format!("{} is not what was chosen", way.item.path)));
    }
    let made = match node.kind {
        EntryKind::Folder => {
            folder.make(&way.name)?;
            folder.present(&way.name)
        }
        EntryKind::Symlink => {
            folder.link(&way.ready, node, choice.own, notes)?;
            folder.present(&way.ready)
        }
        EntryKind::File | EntryKind::Other => {
            let file = folder.create(&way.ready)?;
            fill(repository, choice, way, &file, notes, progress).and_then(|()| folder.present(&way.ready))
        }
    };
    let vanished = || Error::target(format!("what was made ready beside {} is gone again", way.path.display()));
    let made = made.and_then(|made| made.ok_or_else(vanished));
    if made.is_err() {
        let _ = if way.is_folder() { folder.remove_folder(&way.name) } else { folder.remove(&way.ready) };
    }
    made
}

fn fill(
    repository: &Repository,
    choice: &Choice,
    way: &Way,
    file: &File,
    notes: &mut Notes,
    progress: &Progress,
) -> Result<()> {
    write::fill(file, (repository, &write::Near::new()), &way.node, &way.path, progress)?;
    write::dress(file, &way.node, choice.own, &way.path, notes);
    label(way, file, notes);
    file.sync_all().map_err(|error| {
        let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
        write::failed("write", &way.path, errno)
    })?;
    if write::holds(file, repository, &way.node)? {
        return Ok(());
    }
    Err(Error::target(format!("what was written to {} is not what was read again", way.path.display()))
        .hint("Check the disk. Nothing that was there has been touched."))
}

/// A file that comes without a security label gets the one of the file in whose place it goes.
fn label(way: &Way, file: &File, notes: &mut Notes) {
    const LABEL: &str = "security.selinux";
    let mut value = [0; 256];
    let Ok(present) = way.folder.read(&way.name) else { return };
    let Ok(length) = rustix::fs::fgetxattr(&present, LABEL, &mut value[..]) else { return };
    if rustix::fs::fsetxattr(file, LABEL, &value[..length], rustix::fs::XattrFlags::empty()).is_err() {
        notes.add("the security label", &way.path);
    }
}

/// The deed. Whoever calls it takes back what was exchanged when it fails.
fn exchange_all(ways: &[Way], progress: &Progress) -> Result<()> {
    for way in ways {
        if !way.is_as_seen()? {
            return Err(Error::refused(format!("{} is not as it was when it was looked at", way.path.display()))
                .hint("Nothing was put in place. Look again, and consent to what stands there now."));
        }
        exchange(way)?;
        progress.advance(1);
    }
    for way in ways.iter().filter(|way| way.item.action == Action::Replace) {
        way.folder.rename(&way.ready, &way.aside)?;
    }
    Ok(())
}

fn exchange(way: &Way) -> Result<()> {
    if way.item.action == Action::Create {
        return way.folder.rename(&way.ready, &way.name);
    }
    way.folder.exchange(&way.ready, &way.name)?;
    // Between the look and the act somebody may have put another file there: it has to be the one that was seen.
    let seen = way.item.present.as_ref();
    let got = way.folder.present(&way.ready)?;
    if got.as_ref().zip(seen).is_some_and(|(got, seen)| is_same(got, seen)) {
        return Ok(());
    }
    Err(Error::refused(format!("{} was changed in this very moment", way.path.display()))
        .hint("Nothing was put in place. Look again, and consent to what stands there now."))
}

/// Puts back what was exchanged, and removes what we made.
fn take_back(repository: &Repository, files: &[Way], folders: &[Way]) -> Result<()> {
    let mut begun = false;
    for way in files.iter().rev() {
        if !way.is_done(repository)? {
            continue;
        }
        begun = true;
        match way.kept()? {
            Some(kept) => way.folder.exchange(kept, &way.name)?,
            None => way.folder.rename(&way.name, &way.ready)?,
        }
    }
    for way in files {
        discard(repository, way, begun)?;
    }
    for way in folders.iter().rev() {
        // One that somebody has put something into stays.
        let _ = way.folder.remove_folder(&way.name);
    }
    Ok(())
}

/// Removes what we made ready and did not put in place. What is not ours, or was changed since, is kept.
fn discard(repository: &Repository, way: &Way, begun: bool) -> Result<()> {
    for name in [&way.ready, &way.aside] {
        let Some(now) = way.folder.present(name)? else { continue };
        // A process that was killed may have left it half filled; then nothing was exchanged yet.
        let is_half_filled = || {
            let old = way.item.present.as_ref().is_some_and(|old| is_same_inode(old, &now));
            let fresh = way.made.is_none() && !begun && !old && *name == way.ready;
            Ok::<_, Error>(fresh && !way.is_ours(repository, &way.name)?)
        };
        if way.is_ours(repository, name)? || is_half_filled()? {
            way.folder.remove(name)?;
        } else if *name == way.ready && way.folder.present(&way.aside)?.is_none() {
            way.folder.rename(&way.ready, &way.aside)?;
        }
    }
    Ok(())
}

/// Finds out what became of a choice whose process ended in the middle: all of it was put in place, or what was is put back
/// and nothing is.
///
/// Errors: a folder cannot be reached, so that it cannot be told; nothing is changed then.
pub fn settle(
    (repository, snapshot): (&Repository, &Snapshot),
    choice: &Choice,
    recovery: &str,
) -> Result<Option<Put>> {
    let (mut files, mut folders, mut whole) = (Vec::new(), Vec::new(), true);
    let mut held = Folders::default();
    for item in &choice.items {
        let path = path_of(repository, snapshot, item)?;
        // Its folder was to be made, and was not.
        if Present::at(path.parent().unwrap_or(Path::new("/")))?.is_none() {
            whole = false;
            continue;
        }
        let way = Way::to(item, repository.node(snapshot, &item.path)?, path, recovery, &mut held)?;
        if way.is_folder() { folders.push(way) } else { files.push(way) }
    }
    let done: Vec<bool> = files.iter().map(|way| way.is_done(repository)).collect::<Result<_>>()?;
    if !whole || done.contains(&false) {
        take_back(repository, &files, &folders)?;
        held.sync()?;
        return Ok(None);
    }
    for way in &files {
        if way.kept()? == Some(way.ready.as_slice()) {
            way.folder.rename(&way.ready, &way.aside)?;
        }
    }
    held.sync()?;
    let (mut folders, mut files) = (folders.iter(), files.iter());
    let mut put = Put::default();
    for item in &choice.items {
        let Some(way) = (if item.action == Action::MakeFolder { folders.next() } else { files.next() }) else { break };
        put.placed.extend(way.folder.present(&way.name)?.map(|now| way.placed(now)));
    }
    Ok(Some(put))
}

/// Which of the things that were put in place nobody has changed since; of the others, why they stay.
pub fn undoable(placed: &[Placed]) -> (Vec<Placed>, Vec<(String, String)>) {
    let (mut can, mut cannot) = (Vec::new(), Vec::new());
    for placed in placed.iter().filter(|placed| placed.action != Action::MakeFolder) {
        match undo_check(placed) {
            Ok(()) => can.push(placed.clone()),
            Err(why) => cannot.push((placed.path.display().to_string(), why)),
        }
    }
    (can, cannot)
}

fn undo_check(placed: &Placed) -> std::result::Result<(), String> {
    let at = |path: &Path| Present::at(path).map_err(|error| error.to_string());
    match at(&placed.path)? {
        Some(now) if is_same(&now, &placed.now) => {}
        Some(_) => return Err("somebody has changed it since".into()),
        None => return Err("it is not there any more".into()),
    }
    match (&placed.before, at(&placed.aside)?) {
        (Some(before), Some(kept)) if is_same(before, &kept) => Ok(()),
        (Some(_), _) => Err(format!("what stood there is not kept any more as {}", placed.aside.display())),
        (None, None) => Ok(()),
        (None, Some(_)) => Err(format!("{} is taken", placed.aside.display())),
    }
}

/// One thing that is taken back, in its folder.
struct Turn<'a> {
    placed: &'a Placed,
    folder: Arc<Folder>,
    name: Vec<u8>,
    aside: Vec<u8>,
}

impl<'a> Turn<'a> {
    fn all(items: &'a [Placed], held: &mut Folders) -> Result<Vec<Self>> {
        let name = |path: &Path| path.file_name().unwrap_or_default().as_bytes().to_vec();
        let of = |placed: &'a Placed| {
            let folder = held.above(&placed.path)?;
            Ok(Self { placed, folder, name: name(&placed.path), aside: name(&placed.aside) })
        };
        items.iter().map(of).collect()
    }

    /// Whether what came back is kept aside now.
    fn is_turned(&self) -> Result<bool> {
        Ok(self.folder.present(&self.aside)?.is_some_and(|aside| is_same_inode(&aside, &self.placed.now)))
    }

    fn turn(&self) -> Result<()> {
        match self.placed.before {
            Some(_) => self.folder.exchange(&self.aside, &self.name),
            None => self.folder.rename(&self.name, &self.aside),
        }
    }

    fn undo_turn(&self) -> Result<()> {
        match self.placed.before {
            Some(_) => self.folder.exchange(&self.aside, &self.name),
            None => self.folder.rename(&self.aside, &self.name),
        }
    }

    fn turn_back(&self) -> Result<()> {
        if self.is_turned()? { self.undo_turn() } else { Ok(()) }
    }

    /// What stands where after it, so that it can be taken back in turn.
    fn turned(&self) -> Placed {
        let placed = self.placed.clone();
        match &placed.before {
            Some(before) => Placed { now: before.clone(), before: Some(placed.now.clone()), ..placed },
            None => Placed { path: placed.aside, aside: placed.path, ..placed },
        }
    }
}

/// Exchanges everything once more, or nothing. Returns what stands where now, so that this can be taken back in turn.
pub fn undo(items: &[Placed], progress: &Progress) -> Result<Put> {
    progress.begin("exchanging names", Unit::Items, Some(items.len() as u64));
    let mut held = Folders::default();
    let turns = Turn::all(items, &mut held)?;
    let outcome = turns.iter().try_for_each(|turn| {
        progress.check()?;
        let refused = |why: &str| {
            Error::refused(format!("{}: {why}", turn.placed.path.display()))
                .hint("Nothing was taken back. Look again, and consent to what can be taken back now.")
        };
        undo_check(turn.placed).map_err(|why| refused(&why))?;
        turn.turn()?;
        // Between the look and the act somebody may have put another file there.
        if !turn.folder.present(&turn.aside)?.is_some_and(|now| is_same(&now, &turn.placed.now)) {
            turn.undo_turn()?;
            return Err(refused("it was changed in this very moment"));
        }
        progress.advance(1);
        Ok(())
    });
    let outcome = outcome.and_then(|()| held.sync());
    if let Err(error) = outcome {
        turns
            .iter()
            .rev()
            .try_for_each(Turn::turn_back)
            .map_err(|again| unknown(&error, again, "what was taken back could not be put in place again"))?;
        return Err(error);
    }
    Ok(Put { placed: turns.iter().map(Turn::turned).collect(), notes: Notes::default() })
}

/// Finds out what became of an undo whose process ended in the middle: all of it was done, or it is turned back.
pub fn settle_undo(items: &[Placed]) -> Result<Option<Put>> {
    let mut held = Folders::default();
    let turns = Turn::all(items, &mut held)?;
    let turned: Vec<bool> = turns.iter().map(Turn::is_turned).collect::<Result<_>>()?;
    if turned.iter().all(|turned| *turned) {
        held.sync()?;
        return Ok(Some(Put { placed: turns.iter().map(Turn::turned).collect(), notes: Notes::default() }));
    }
    turns.iter().rev().try_for_each(Turn::turn_back)?;
    held.sync()?;
    Ok(None)
}
