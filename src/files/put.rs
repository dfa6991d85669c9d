//! Putting files back in place, and taking that back.
//!
//! ```text
//!   make each NAME.new-ID ready: written, read again, dressed, synced          nothing that was there is touched
//!   for each: still as it was looked at? -> exchange NAME and NAME.new-ID      one act; or rename, where nothing stood
//!   NAME.new-ID, which is the present one now, becomes NAME.pre-ID             kept
//! ```
//!
//! When one of them has changed since it was looked at, all that were exchanged are exchanged back. Undo is the same
//! exchange once more: what came back is then kept as NAME.pre-ID. Nothing is ever deleted but what we made ready ourselves.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::choice::{Action, Choice, Item, aside, content, here, ready};
use super::live::Present;
use super::write::{self, Folder, Notes};
use crate::backup::{EntryKind, Repository, Snapshot};
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

/// Folders that are held open from the first look to the last act, each once: a choice may have thousands of files in it.
#[derive(Default)]
struct Held(HashMap<PathBuf, Rc<Folder>>);

impl Held {
    /// The folder that a path's last name is in.
    fn above(&mut self, path: &Path) -> Result<Rc<Folder>> {
        let above = path.parent().unwrap_or(Path::new("/"));
        if let Some(folder) = self.0.get(above) {
            return Ok(folder.clone());
        }
        let folder = Rc::new(Folder::open(above)?);
        self.0.insert(above.to_owned(), folder.clone());
        Ok(folder)
    }
}

/// One item on its way.
struct Way<'a> {
    item: &'a Item,
    folder: Rc<Folder>,
    path: PathBuf,
    name: Vec<u8>,
    ready: Vec<u8>,
    aside: Vec<u8>,
}

impl<'a> Way<'a> {
    fn to(item: &'a Item, path: PathBuf, recovery: &str, held: &mut Held) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().as_bytes().to_vec();
        let folder = held.above(&path)?;
        let (ready, aside) = (ready(&name, recovery), aside(&name, recovery));
        Ok(Self { item, folder, path, name, ready, aside })
    }

    /// Whether what stands there is what was looked at. Exchanging names changes the time of the last change of the inode,
    /// so that one counts only before anything was done.
    fn is_as_seen(&self) -> Result<bool> {
        Ok(self.folder.present(&self.name)? == self.item.present)
    }
}

/// Whether two are the same file with the same content and rights, whatever names it has had meanwhile.
fn is_same(a: &Present, b: &Present) -> bool {
    let facts = |one: &Present| (one.inode, one.device, one.size, one.modified, one.mode, one.uid, one.gid);
    facts(a) == facts(b)
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
    let mut made: Vec<PathBuf> = Vec::new();
    let (mut ways, mut held): (Vec<Way>, _) = (Vec::new(), Held::default());
    let prepared = choice.items.iter().try_for_each(|item| {
        progress.check()?;
        let path = path_of(repository, snapshot, item)?;
        let way = Way::to(item, path, recovery, &mut held)?;
        if item.action == Action::MakeFolder {
            way.folder.make(&way.name)?;
            made.push(way.path);
            return Ok(());
        }
        prepare((repository, snapshot), choice, &way, &mut notes, progress)?;
        ways.push(way);
        Ok(())
    });
    let outcome = prepared.and_then(|()| {
        progress.check()?;
        progress.begin("exchanging names", Unit::Items, Some(ways.len() as u64));
        exchange_all(&ways, progress)
    });
    if let Err(error) = outcome {
        for way in &ways {
            let _ = way.folder.remove(&way.ready);
        }
        for folder in made.iter().rev() {
            let _ = std::fs::remove_dir(folder);
        }
        return Err(error);
    }
    let mut put = Put { placed: Vec::new(), notes };
    for item in choice.items.iter().filter(|item| item.action == Action::MakeFolder).rev() {
        let path = path_of(repository, snapshot, item)?;
        let node = repository.node(snapshot, &item.path)?;
        write::dress(&Folder::open(&path)?, &node, choice.own, &path, &mut put.notes);
    }
    for item in &choice.items {
        put.placed.push(placed((repository, snapshot), item, recovery)?);
    }
    Ok(put)
}

fn bytes(choice: &Choice) -> u64 {
    choice.items.iter().map(|item| item.size).sum()
}

fn path_of(repository: &Repository, snapshot: &Snapshot, item: &Item) -> Result<PathBuf> {
    here(repository, snapshot, &item.path)?
        .ok_or_else(|| Error::bug(format!("{} was chosen and can be no path", item.path)))
}

/// Makes what comes back ready beside its place.
fn prepare(
    (repository, snapshot): (&Repository, &Snapshot),
    choice: &Choice,
    way: &Way,
    notes: &mut Notes,
    progress: &Progress,
) -> Result<()> {
    let node = repository.node(snapshot, &way.item.path)?;
    if content(&node) != way.item.content {
        return Err(Error::bug(format!("{} is not what was chosen", way.item.path)));
    }
    if node.kind == EntryKind::Symlink {
        return way.folder.link(&way.ready, &node, choice.own, notes);
    }
    let file = way.folder.create(&way.ready)?;
    let filled = write::fill(&file, (repository, &write::Near::new()), &node, &way.path, progress).and_then(|()| {
        write::dress(&file, &node, choice.own, &way.path, notes);
        label(way, &file, notes);
        file.sync_all().map_err(|error| {
            write::failed("write", &way.path, rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))
        })?;
        if write::holds(&file, repository, &node)? {
            return Ok(());
        }
        Err(Error::target(format!("what was written to {} is not what was read again", way.path.display()))
            .hint("Check the disk. Nothing that was there has been touched."))
    });
    if filled.is_err() {
        let _ = way.folder.remove(&way.ready);
    }
    filled
}

/// A file that comes without a security label gets the one of the file in whose place it goes.
fn label(way: &Way, file: &std::fs::File, notes: &mut Notes) {
    const LABEL: &str = "security.selinux";
    let mut value = [0; 256];
    let Ok(present) = way.folder.read(&way.name) else { return };
    let Ok(length) = rustix::fs::fgetxattr(&present, LABEL, &mut value[..]) else { return };
    if rustix::fs::fsetxattr(file, LABEL, &value[..length], rustix::fs::XattrFlags::empty()).is_err() {
        notes.add("the security label", &way.path);
    }
}

/// The deed. Whatever fails, what was exchanged is exchanged back.
fn exchange_all(ways: &[Way], progress: &Progress) -> Result<()> {
    let mut done = Vec::new();
    let outcome = ways.iter().try_for_each(|way| {
        if !way.is_as_seen()? {
            return Err(Error::refused(format!("{} is not as it was when it was looked at", way.path.display()))
                .hint("Nothing was put in place. Look again, and consent to what stands there now."));
        }
        exchange(way)?;
        done.push(way);
        progress.advance(1);
        Ok(())
    });
    if outcome.is_ok() {
        for way in ways {
            if way.item.action == Action::Replace {
                way.folder.rename(&way.ready, &way.aside)?;
            }
            way.folder.sync()?;
        }
        return Ok(());
    }
    for way in done {
        put_back(way)?;
    }
    outcome
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
    way.folder.exchange(&way.ready, &way.name)?;
    Err(Error::refused(format!("{} was changed in this very moment", way.path.display()))
        .hint("Nothing was put in place. Look again, and consent to what stands there now."))
}

fn put_back(way: &Way) -> Result<()> {
    match way.item.action {
        Action::Create => way.folder.rename(&way.name, &way.ready),
        _ => way.folder.exchange(&way.ready, &way.name),
    }
}

/// What stands at the place of an item that was put there, checked once more.
fn placed((repository, snapshot): (&Repository, &Snapshot), item: &Item, recovery: &str) -> Result<Placed> {
    let path = path_of(repository, snapshot, item)?;
    let wrong = |what: &str| {
        Error::target(format!("{what} at {}", path.display()))
            .hint("What was there before is kept beside it: undo brings it back.")
    };
    let now = Present::at(&path)?.ok_or_else(|| wrong("nothing stands any more"))?;
    if now.kind != item.kind || item.kind == EntryKind::File && now.size != item.size {
        return Err(wrong("something else stands"));
    }
    let name = path.file_name().unwrap_or_default().as_bytes().to_vec();
    let aside = path.with_file_name(std::ffi::OsStr::from_bytes(&aside(&name, recovery)));
    Ok(Placed { path, action: item.action, aside, now, before: item.present.clone() })
}

/// Finds out what became of a choice whose process ended in the middle: all of it was put in place, or what was is put back
/// and nothing is.
pub fn settle(
    (repository, snapshot): (&Repository, &Snapshot),
    choice: &Choice,
    recovery: &str,
) -> Result<Option<Put>> {
    let (mut ways, mut held) = (Vec::new(), Held::default());
    for item in choice.items.iter().filter(|item| item.action != Action::MakeFolder) {
        let path = path_of(repository, snapshot, item)?;
        match Way::to(item, path, recovery, &mut held) {
            Ok(way) => ways.push(way),
            // Its folder was to be made, and was not.
            Err(_) => return undo_ready(repository, snapshot, choice, &ways).map(|()| None),
        }
    }
    let standing: Vec<Step> = ways.iter().map(standing).collect::<Result<_>>()?;
    if standing.iter().all(|step| *step == Step::Done) {
        for way in ways.iter().filter(|way| way.item.action == Action::Replace) {
            if way.folder.present(&way.ready)?.is_some() {
                way.folder.rename(&way.ready, &way.aside)?;
            }
        }
        let placed: Result<Vec<_>> =
            choice.items.iter().map(|item| placed((repository, snapshot), item, recovery)).collect();
        return Ok(Some(Put { placed: placed?, notes: Notes::default() }));
    }
    for (way, step) in ways.iter().zip(&standing) {
        if *step == Step::Done {
            if way.item.action == Action::Replace && way.folder.present(&way.aside)?.is_some() {
                way.folder.rename(&way.aside, &way.ready)?;
            }
            put_back(way)?;
        }
    }
    undo_ready(repository, snapshot, choice, &ways)?;
    Ok(None)
}

#[derive(PartialEq, Eq)]
enum Step {
    NotYet,
    Done,
}

fn standing(way: &Way) -> Result<Step> {
    let (ready, aside) = (way.folder.present(&way.ready)?, way.folder.present(&way.aside)?);
    let is_old = |one: &Present| way.item.present.as_ref().is_some_and(|old| is_same(old, one));
    Ok(match way.item.action {
        // Ours is made ready before anything is exchanged: without it the name was given to it, or nothing was begun.
        Action::Create
            if ready.is_none()
                && way
                    .folder
                    .present(&way.name)?
                    .is_some_and(|now| now.kind == way.item.kind && now.size == way.item.size) =>
        {
            Step::Done
        }
        Action::Replace if aside.as_ref().is_some_and(is_old) || ready.as_ref().is_some_and(is_old) => Step::Done,
        _ => Step::NotYet,
    })
}

/// Removes what was made ready, and the folders that were made for it.
fn undo_ready(repository: &Repository, snapshot: &Snapshot, choice: &Choice, ways: &[Way]) -> Result<()> {
    for way in ways {
        if way.folder.present(&way.ready)?.is_some() {
            way.folder.remove(&way.ready)?;
        }
    }
    for item in choice.items.iter().filter(|item| item.action == Action::MakeFolder).rev() {
        // One that somebody has put something into stays.
        let _ = std::fs::remove_dir(path_of(repository, snapshot, item)?);
    }
    Ok(())
}

/// Which of the things that were put in place nobody has changed since; of the others, why they stay.
pub fn undoable(placed: &[Placed]) -> (Vec<Placed>, Vec<(String, String)>) {
    let (mut can, mut cannot) = (Vec::new(), Vec::new());
    for placed in placed.iter().filter(|placed| placed.action != Action::MakeFolder) {
        match undo_check(placed) {
            Ok(now) => can.push(now),
            Err(why) => cannot.push((placed.path.display().to_string(), why)),
        }
    }
    (can, cannot)
}

fn undo_check(placed: &Placed) -> std::result::Result<Placed, String> {
    let at = |path: &Path| Present::at(path).map_err(|error| error.to_string());
    let kept = at(&placed.aside)?;
    match at(&placed.path)? {
        Some(now) if is_same(&now, &placed.now) => {}
        // It was taken back, and that is to be taken back.
        None if placed.action == Action::Create && kept.as_ref().is_some_and(|kept| is_same(kept, &placed.now)) => {
            return Ok(placed.clone());
        }
        Some(_) => return Err("somebody has changed it since".into()),
        None => return Err("it is not there any more".into()),
    }
    match (&placed.before, &kept) {
        (Some(before), Some(kept)) if is_same(before, kept) => Ok(placed.clone()),
        (Some(_), _) => Err(format!("what stood there is not kept any more as {}", placed.aside.display())),
        (None, None) => Ok(placed.clone()),
        (None, Some(_)) => Err(format!("{} is taken", placed.aside.display())),
    }
}

/// Exchanges everything once more. Returns what stands where now, so that this can be taken back in turn.
pub fn undo(items: &[Placed], progress: &Progress) -> Result<Put> {
    progress.begin("exchanging names", Unit::Items, Some(items.len() as u64));
    let (mut done, mut held): (Vec<(Rc<Folder>, &Placed)>, _) = (Vec::new(), Held::default());
    let outcome = items.iter().try_for_each(|placed| {
        progress.check()?;
        undo_check(placed).map_err(|why| {
            Error::refused(format!("{}: {why}", placed.path.display()))
                .hint("Nothing was taken back. Look again, and consent to what can be taken back now.")
        })?;
        let folder = held.above(&placed.path)?;
        turn(&folder, placed)?;
        done.push((folder, placed));
        progress.advance(1);
        Ok(())
    });
    if let Err(error) = outcome {
        for (folder, placed) in done {
            turn(&folder, placed)?;
        }
        return Err(error);
    }
    let mut put = Put::default();
    for (folder, placed) in done {
        folder.sync()?;
        put.placed.push(turned(placed));
    }
    Ok(put)
}

/// The exchange, either way.
fn turn(folder: &Folder, placed: &Placed) -> Result<()> {
    let name = |path: &Path| path.file_name().unwrap_or_default().as_bytes().to_vec();
    let (name, aside) = (name(&placed.path), name(&placed.aside));
    if placed.before.is_some() {
        return folder.exchange(&name, &aside);
    }
    match folder.present(&name)? {
        Some(_) => folder.rename(&name, &aside),
        None => folder.rename(&aside, &name),
    }
}

/// What stands where after a turn.
fn turned(placed: &Placed) -> Placed {
    match &placed.before {
        Some(before) => Placed { now: before.clone(), before: Some(placed.now.clone()), ..placed.clone() },
        None => placed.clone(),
    }
}

/// Finds out what became of an undo whose process ended in the middle: all of it was done, or it is turned back.
pub fn settle_undo(items: &[Placed]) -> Result<Option<Put>> {
    let is_turned = |placed: &Placed| {
        let aside = Present::at(&placed.aside)?;
        Ok(match &placed.before {
            Some(_) => aside.is_some_and(|aside| is_same(&aside, &placed.now)),
            None => aside.is_some(),
        })
    };
    let turned_now: Vec<bool> = items.iter().map(is_turned).collect::<Result<_>>()?;
    if turned_now.iter().all(|turned| *turned) {
        return Ok(Some(Put { placed: items.iter().map(turned).collect(), notes: Notes::default() }));
    }
    for (placed, _) in items.iter().zip(&turned_now).filter(|(_, turned)| **turned) {
        turn(&Folder::open(placed.path.parent().unwrap_or(Path::new("/")))?, placed)?;
    }
    Ok(None)
}
