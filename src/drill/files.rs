//! The file server of a drill about files: a tree with a backup of every night, an incident in it, and the truth about it.
//!
//! A document is overwritten with rubbish, a folder is deleted, and another one is encrypted for ransom, in the middle of a
//! day's work. What has to come back is as it was in the last backup; what people have written since stays as they have left
//! it, in the damaged folders too; and nothing is deleted, since the police want to see it.
//!
//! Invariant: the truth is kept in this process's memory, is complete before the operator is called, and nothing but
//! [`FileServer::check`] reads it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use sha2::{Digest as _, Sha256};

use super::repository::Repository;
use super::sandbox::{Check, NIGHTS, failed, host, join};
use super::tree::{Span, Tree};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

const DOCUMENT: &str = "var/www/uploads/important-document.pdf";
const DELETED: &str = "home/shared/project-files/Korvane – North";
const ENCRYPTED: &str = "home/shared/finance/cash-books";
const NOTE: &str = "home/shared/finance/cash-books/HOW TO GET YOUR FILES BACK.txt";
/// Typed in again from paper after the incident, under the old name.
const RETYPED: &str = "home/shared/finance/cash-books/06/cash-book 02.csv";
/// Changed between the last backup and the incident: what comes back is the backup's all the same.
const LOST_EDIT: &str = "home/shared/finance/cash-books/11/cash-book 04.csv";
/// Made between the last backup and the incident: no backup has it.
const LOST_FILE: &str = "home/shared/finance/cash-books/11/cash-book 05.csv";
/// Thrown away on purpose since the last backup.
const THROWN_AWAY: [&str; 2] = ["home/shared/templates/letter 03.txt", "home/olga/Desktop/notes 02.txt"];
/// A folder beside the tree, which a link of the tree leads to.
const OUTSIDE: &str = "other-disk";
/// How a kept copy is called: `NAME.pre-RECOVERY`.
const KEPT: &str = ".pre-";

/// How long ago it happened, and how long ago somebody made a backup in alarm.
const INCIDENT_AGE: TimeDelta = TimeDelta::minutes(173);
const LATE_BACKUP_AGE: TimeDelta = TimeDelta::minutes(48);

/// A damaged tree, and what it must be in the end.
#[derive(Debug)]
pub(super) struct FileServer {
    root: PathBuf,
    outside: PathBuf,
    /// As the last backup has it.
    backup: Image,
    /// When the operator was called.
    called: Image,
    /// Of the folder outside.
    untouchable: Image,
}

/// Everything beneath a folder, by path.
type Image = BTreeMap<PathBuf, Facts>;

/// What is compared of a file, a folder or a symlink.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    content: Content,
    mode: u32,
    owner: (u32, u32),
    /// Seconds and nanoseconds; of folders nothing, since whatever is done in them changes it.
    modified: Option<(i64, i64)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Folder,
    /// SHA-256.
    File([u8; 32]),
    Symlink(PathBuf),
    Other,
}

/// What a path has to do with the incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Overwritten,
    Deleted,
    Encrypted,
    /// What the attacker has left.
    Evidence,
    /// Written by honest people since the last backup.
    Work,
    /// Nothing has happened to it.
    Sound,
}

impl FileServer {
    /// Makes the tree and its backups, and tells the story up to `now`, when the operator is called. Returns when the
    /// incident was as well.
    pub(super) fn build(
        folder: &Path,
        nights: &[DateTime<Utc>],
        now: DateTime<Utc>,
        progress: &Progress,
    ) -> Result<(Self, DateTime<Utc>)> {
        progress.begin("Creating a private sandbox", Unit::Items, Some(u64::from(NIGHTS) + 3));
        let repository = Repository::new(folder)?;
        let (root, outside) = (repository.tree(), folder.join(OUTSIDE));
        fs::create_dir(&outside)
            .and_then(|()| fs::write(outside.join("of nobody's business.txt"), "Leave it alone.\n"))
            .map_err(|error| failed(OUTSIDE, error))?;
        let (first, last) = (nights[0], nights[nights.len() - 1]);
        let mut tree = std::thread::scope(|scope| {
            let initialised = scope.spawn(|| repository.initialise());
            let tree = Tree::grow(&root, OUTSIDE, first)?;
            join(initialised)?;
            Ok::<_, Error>(tree)
        })?;
        progress.advance(1);
        let host = host();
        let store = |at| repository.back_up_files(&host, &format!("fileserver,{host}"), &[&root], at);
        for (number, night) in nights.iter().enumerate() {
            progress.check()?;
            let day = Span { from: *night - TimeDelta::hours(19), to: *night - TimeDelta::hours(9) };
            tree.work(day, (14, 6), &[DOCUMENT])?;
            if number % 2 == 0 {
                let content = tree.content(DOCUMENT)?;
                tree.replace(DOCUMENT, &content, day.to)?;
            }
            store(*night)?;
            progress.advance(1);
        }
        let backup = image(&root)?;

        let incident = (now - INCIDENT_AGE).trunc_subsecs(0);
        let late = now - LATE_BACKUP_AGE;
        work_before(&mut tree, Span { from: last + TimeDelta::hours(1), to: incident - TimeDelta::minutes(5) })?;
        strike(&mut tree, incident)?;
        progress.advance(1);
        work_after(&mut tree, Span { from: incident + TimeDelta::minutes(20), to: late })?;
        store(late)?;
        tree.work(Span { from: late, to: now - TimeDelta::minutes(2) }, (4, 3), &[DOCUMENT, ENCRYPTED])?;
        let (called, untouchable) = (image(&root)?, image(&outside)?);
        progress.advance(1);
        Ok((Self { root, outside, backup, called, untouchable }, incident))
    }

    /// The folder that is backed up.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn fate(&self, path: &Path) -> Fate {
        let lost = self.backup.contains_key(path) && !self.called.contains_key(path);
        if path == Path::new(DOCUMENT) {
            Fate::Overwritten
        } else if lost && path.starts_with(DELETED) {
            Fate::Deleted
        } else if lost && path.starts_with(ENCRYPTED) {
            Fate::Encrypted
        } else if path == Path::new(NOTE) || path.as_os_str().as_bytes().ends_with(b".locked") {
            Fate::Evidence
        } else if self.backup.get(path) == self.called.get(path) {
            Fate::Sound
        } else {
            Fate::Work
        }
    }

    /// What has to be there in the end.
    fn expected(&self) -> BTreeMap<&Path, (&Facts, Fate)> {
        let comes_back = |fate| matches!(fate, Fate::Overwritten | Fate::Deleted | Fate::Encrypted);
        let mut expected = BTreeMap::new();
        for (path, facts) in &self.called {
            expected.insert(path.as_path(), (facts, self.fate(path)));
        }
        for (path, facts) in &self.backup {
            let fate = self.fate(path);
            if comes_back(fate) {
                expected.insert(path.as_path(), (facts, fate));
            }
        }
        expected
    }

    /// Compares the tree as it is now with what it must be. Only copies that were kept of what was replaced may be there
    /// besides, and folders may have another time.
    pub(super) fn check(&self) -> Result<Vec<Check>> {
        let cannot = |error: Error| {
            Error::target("cannot compare the files with the truth").detail(error.detail.unwrap_or(error.message))
        };
        let found = image(&self.root).map_err(cannot)?;
        let expected = self.expected();
        let same = |a: &Facts, b: &Facts| a == b;
        let content = |a: &Facts, b: &Facts| a.content == b.content;
        let dress = |a: &Facts, b: &Facts| (a.mode, a.owner, a.modified) == (b.mode, b.owner, b.modified);
        let of = |fate: Fate, name: &str, holds: &dyn Fn(&Facts, &Facts) -> bool| {
            let all = expected.iter().filter(|(_, (_, its))| *its == fate);
            let wrong = all.clone().filter(|(path, (facts, _))| !found.get(**path).is_some_and(|is| holds(facts, is)));
            let wrong: Vec<&Path> = wrong.map(|(path, _)| *path).collect();
            let count = all.count();
            check(name, count, count - wrong.len(), &wrong)
        };
        let mut checks = vec![
            of(Fate::Overwritten, "important-document.pdf: content as in the last backup", &content),
            of(Fate::Overwritten, "important-document.pdf: owner, mode and time as in the last backup", &dress),
            of(Fate::Deleted, "Korvane – North: all that was in it is back", &content),
            of(Fate::Deleted, "Korvane – North: owners, modes and times as in the last backup", &dress),
            of(Fate::Encrypted, "cash-books: files are back under their names, readable", &content),
            of(Fate::Encrypted, "cash-books: owners, modes and times as in the last backup", &dress),
            of(Fate::Work, "files written since the last backup are as people have left them", &same),
            of(Fate::Evidence, "encrypted files and the note are still there, for the police", &same),
            of(Fate::Sound, "all other files and folders are untouched", &same),
        ];
        let others: Vec<_> = found.iter().filter(|(path, _)| !expected.contains_key(path.as_path())).collect();
        checks.extend(self.check_others(&others));
        let outside = image(&self.outside).map_err(cannot)?;
        let moved = self.untouchable.iter().filter(|(path, facts)| outside.get(*path) != Some(facts)).count();
        let added = outside.keys().filter(|path| !self.untouchable.contains_key(*path)).count();
        checks.push(check("things outside the tree that changed", 0, moved + added, &[]));
        Ok(checks)
    }

    /// What is there and was not expected: copies that were kept, and what should not be there.
    fn check_others(&self, others: &[(&PathBuf, &Facts)]) -> [Check; 2] {
        let (kept, wrong): (Vec<_>, Vec<_>) = others.iter().partition(|(path, _)| {
            kept_of(path).is_some_and(|name| self.called.contains_key(&name) || self.backup.contains_key(&name))
        });
        let spoilt = kept.iter().filter(|(path, facts)| {
            let name = kept_of(path).unwrap_or_default();
            let stood = [self.called.get(&name), self.backup.get(&name)];
            !stood.into_iter().flatten().any(|stood| stood.content == facts.content)
        });
        let spoilt: Vec<&Path> = spoilt.map(|(path, _)| path.as_path()).collect();
        let wrong: Vec<&Path> = wrong.iter().map(|(path, _)| path.as_path()).collect();
        [
            check(
                "copies kept as NAME.pre-RECOVERY hold what stood there",
                kept.len(),
                kept.len() - spoilt.len(),
                &spoilt,
            ),
            check("files and folders that should not be there", 0, wrong.len(), &wrong),
        ]
    }
}

/// An ordinary morning, also in what will be damaged.
fn work_before(tree: &mut Tree, morning: Span) -> Result<()> {
    tree.work(morning, (24, 12), &[DOCUMENT, DELETED, ENCRYPTED])?;
    let content = tree.content(LOST_EDIT)?;
    tree.replace(LOST_EDIT, &content, morning.to)?;
    let content = tree.content(LOST_FILE)?;
    tree.make(LOST_FILE, &content, morning.to)?;
    THROWN_AWAY.iter().try_for_each(|path| tree.remove(path, morning.to))
}

/// The incident.
fn strike(tree: &mut Tree, at: DateTime<Utc>) -> Result<()> {
    let rubbish = tree.rubbish(18_211);
    tree.replace(DOCUMENT, &rubbish, at)?;
    tree.remove_folder(DELETED, at + TimeDelta::seconds(40))?;
    for (second, path) in (60..).zip(tree.beneath(ENCRYPTED)) {
        let at = at + TimeDelta::seconds(second);
        let rubbish = tree.rubbish(2048 + 16 * u32::try_from(second).unwrap_or(0));
        tree.make(&format!("{path}.locked"), &rubbish, at)?;
        tree.remove(&path, at)?;
    }
    let note =
        "All your files are locked. Send 3 coins to the address below within 72 hours, and do not call anybody.\n";
    tree.make(NOTE, note.as_bytes(), at + TimeDelta::minutes(4))
}

/// People go on working, also in a damaged folder.
fn work_after(tree: &mut Tree, span: Span) -> Result<()> {
    tree.work(span, (9, 5), &[DOCUMENT, ENCRYPTED])?;
    let content = tree.content(RETYPED)?;
    tree.make(RETYPED, &content, span.to - TimeDelta::minutes(15))?;
    let list = format!("{ENCRYPTED}/06/missing receipts, list by Amina.txt");
    tree.make(&list, b"02: typed in again from paper. The others are at the bank.\n", span.to - TimeDelta::minutes(10))
}

fn check(name: &str, expected: usize, found: usize, wrong: &[&Path]) -> Check {
    let examples: Vec<_> = wrong.iter().take(3).map(|path| path.display().to_string()).collect();
    let (expected, found) = (expected as u64, found as u64);
    Check { name: name.into(), expected, found, examples: examples.join(", "), ok: expected == found }
}

/// The path whose copy this is, by its name.
fn kept_of(path: &Path) -> Option<PathBuf> {
    let (name, recovery) = path.file_name()?.to_str()?.rsplit_once(KEPT)?;
    (!recovery.is_empty()).then(|| path.with_file_name(name))
}

/// Everything beneath a folder, read whole. No symlink is followed.
fn image(root: &Path) -> Result<Image> {
    let (mut image, mut open) = (Image::new(), vec![root.to_owned()]);
    while let Some(folder) = open.pop() {
        let at = |error: std::io::Error| failed(&folder.display().to_string(), error);
        for entry in fs::read_dir(&folder).map_err(at)? {
            let path = entry.map_err(at)?.path();
            let (facts, is_folder) = facts(&path).map_err(|error| failed(&path.display().to_string(), error))?;
            image.insert(path.strip_prefix(root).unwrap_or(&path).to_owned(), facts);
            open.extend(is_folder.then_some(path));
        }
    }
    Ok(image)
}

fn facts(path: &Path) -> std::io::Result<(Facts, bool)> {
    let facts = fs::symlink_metadata(path)?;
    let content = if facts.is_dir() {
        Content::Folder
    } else if facts.is_symlink() {
        Content::Symlink(fs::read_link(path)?)
    } else if facts.is_file() {
        let mut hash = Sha256::new();
        std::io::copy(&mut File::open(path)?, &mut hash)?;
        Content::File(hash.finalize().into())
    } else {
        Content::Other
    };
    let modified = (!facts.is_dir()).then(|| (facts.mtime(), facts.mtime_nsec()));
    Ok((Facts { content, mode: facts.mode() & 0o7777, owner: (facts.uid(), facts.gid()), modified }, facts.is_dir()))
}
