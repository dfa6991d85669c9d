//! Base backups as `pg_basebackup` makes them: a tree, or tars (plain, gzip, zstd), in a folder or in a snapshot.
//!
//! - Nothing of a base backup is trusted with a path: names are taken one at a time, and whatever leads out is refused.
//! - Symlinks are never followed. `pg_tblspc/OID` says where production keeps a tablespace; a tree of it is read only from
//!   where the operator says that its copy is. `pg_wal` may be a link too: the archive has what it held.
//! - Incremental base backups of PostgreSQL 17 and newer are told from others by their label; see [`super::chain`].
//! - A backup of pgBackRest is known by what `pgbackrest` says of it, and is only ever laid out by its restore; see
//!   [`super::pgbackrest`].
//! - Not read: backups of Barman. They are told from others by what they lack, `backup_label` or `global/pg_control`.

use std::collections::BTreeMap;
use std::io::Read;

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::Serialize;

use super::wal::{Lsn, Wal, text};
use super::{EntryKind, Place};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// Folders that are looked into for base backups.
const MAX_FOLDERS: usize = 2000;
/// How deep base backups are looked for beneath the folder that was given.
const MAX_LEVELS: usize = 3;
/// How deep a base backup's own tree goes; PostgreSQL's are four deep, and `pg_log` may hold anything.
const MAX_DEPTH: usize = 32;
/// Small files that are read whole.
const MAX_TEXT: u64 = 1 << 20;
/// A manifest of a million files.
const MAX_MANIFEST: u64 = 512 << 20;

/// How a base backup is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// `pg_basebackup --format=plain`: a data directory.
    Tree,
    /// `pg_basebackup --format=tar`, with the suffix of the tars.
    Tar(&'static str),
    /// In a repository of pgBackRest.
    PgBackRest,
}

/// The suffixes of tars that are read.
const TARS: [&str; 4] = [".tar", ".tar.gz", ".tgz", ".tar.zst"];

/// What `backup_label` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Label {
    /// Where replay has to begin.
    pub start: Lsn,
    /// On which the backup was made.
    pub timeline: u32,
    /// When the backup began, in the words of the server and its `log_timezone`.
    pub started_words: String,
    /// The same, where those words name a zone that means one thing everywhere; in whole seconds.
    pub started: Option<DateTime<Utc>>,
    /// What `pg_basebackup --label` was given.
    pub name: String,
    /// Of an incremental one: the timeline and the start of the base backup that it rests on.
    pub incremental_from: Option<(u32, Lsn)>,
}

/// A base backup, and what it says of itself.
#[derive(Clone)]
pub struct Base {
    /// The folder.
    pub place: Place,
    /// How it is stored.
    pub shape: Shape,
    /// What `backup_label` says.
    pub label: Label,
    /// Where the backup ended, by its manifest; `None`: it has none.
    pub end: Option<Lsn>,
    /// The cluster that was backed up.
    pub system: u64,
    /// The major version of the cluster: 15.
    pub major: u32,
    /// By number: where production keeps it.
    pub tablespaces: BTreeMap<u32, String>,
    /// Segments that came with the backup, by their file names.
    pub own_wal: Vec<String>,
    /// In bytes as it is stored; `None`: the folder has to be asked.
    pub stored: Option<u64>,
    /// What whoever made it found wrong in it, and went on.
    pub notes: Vec<String>,
}

/// Base backups with their places; or what is wrong with them.
pub type Found = Vec<(String, Result<Base>)>;

/// Finds the base backups in a folder and in the folders beneath it. What is wrong with one does not hide the others.
///
/// Errors: the folder cannot be read, or there is none in it.
pub fn find(place: &Place, progress: &Progress) -> Result<Found> {
    if let Place::PgBackRest(stanza) = place {
        progress.begin("asking pgbackrest for its backups", Unit::Items, None);
        return stanza.bases();
    }
    let found = all(place, progress)?;
    if found.is_empty() {
        return Err(Error::operator(format!("there is no base backup in {}", place.shown()))
            .hint("Give the folder that pg_basebackup wrote: with PG_VERSION and backup_label, or with base.tar.")
            .hint("One in a repository of pgBackRest is named by its stanza: pgbackrest:STANZA.")
            .hint("Backups of Barman are not read: restore one with its own tool."));
    }
    Ok(found)
}

/// The same, of which there may be none.
pub(super) fn all(place: &Place, progress: &Progress) -> Result<Found> {
    search(place, |_| true, progress)
}

/// The same for trees alone: tars would have to be read to know what they are.
pub(super) fn trees(place: &Place, progress: &Progress) -> Result<Found> {
    search(place, |shape| shape == Shape::Tree, progress)
}

fn search(place: &Place, wanted: impl Fn(Shape) -> bool, progress: &Progress) -> Result<Found> {
    progress.begin("looking for base backups", Unit::Items, None);
    let (mut found, mut visited) = (Vec::new(), 0);
    let mut level = vec![place.clone()];
    for _ in 0..MAX_LEVELS {
        let mut next = Vec::new();
        for folder in level {
            progress.check()?;
            visited += 1;
            let nodes = folder.list("")?;
            if let Some(shape) = shape(nodes.iter().map(|node| (node.name.as_str(), node.kind))) {
                if wanted(shape) {
                    found.push((folder.shown(), Base::read(folder, shape, progress)));
                }
                continue;
            }
            let folders = nodes.iter().filter(|node| node.kind == EntryKind::Folder && visited < MAX_FOLDERS);
            next.extend(folders.map(|node| folder.inside(&node.name)));
            next.truncate(MAX_FOLDERS);
        }
        level = next;
    }
    Ok(found)
}

fn shape<'a>(nodes: impl Iterator<Item = (&'a str, EntryKind)>) -> Option<Shape> {
    let (mut version, mut global, mut tar) = (false, false, None);
    for (name, kind) in nodes {
        version |= name == "PG_VERSION" && kind == EntryKind::File;
        global |= name == "global" && kind == EntryKind::Folder;
        let suffix = name.strip_prefix("base").and_then(|rest| TARS.into_iter().find(|suffix| *suffix == rest));
        tar = tar.or(suffix.filter(|_| kind == EntryKind::File));
    }
    tar.map(Shape::Tar).or((version && global).then_some(Shape::Tree))
}

/// What is read of a base backup before it is laid out.
#[derive(Default)]
struct Facts {
    label: Option<String>,
    version: Option<String>,
    control: Option<Vec<u8>>,
    map: Option<String>,
}

impl Base {
    /// The one base backup in a folder.
    pub fn open(place: &Place, progress: &Progress) -> Result<Self> {
        let mut found = find(place, progress)?;
        match found.pop() {
            Some((_, base)) if found.is_empty() => base,
            last => {
                let places: Vec<_> = found.into_iter().chain(last).map(|(place, _)| place).take(8).collect();
                Err(Error::operator(format!("there are several base backups in {}", place.shown()))
                    .hint(format!("Name one of them: {}.", places.join(", "))))
            }
        }
    }

    fn read(place: Place, shape: Shape, progress: &Progress) -> Result<Self> {
        let shown = place.shown();
        let (facts, own_wal, tablespaces) = match shape {
            Shape::Tree => read_tree(&place)?,
            Shape::Tar(suffix) => read_tars(&place, suffix, progress)?,
            Shape::PgBackRest => return Err(Error::bug("a backup of pgBackRest is not read as a folder")),
        };
        let label = facts.label.as_deref().ok_or_else(|| {
            Error::refused(format!("{shown} has no backup_label"))
                .hint("Without it nobody knows where replay has to begin, and a copy of a running server is torn.")
                .hint("Take another base backup: pg_basebackup writes this file, and nothing may remove it.")
        })?;
        let label = parse_label(label).ok_or_else(|| {
            Error::backup(format!("backup_label of {shown} is not what PostgreSQL writes"))
                .hint("Take another base backup.")
        })?;
        let control = facts.control.unwrap_or_default();
        let system = control.get(..8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let version = facts.version.as_deref().and_then(|version| version.trim().parse().ok());
        let (Some(system), Some(major)) = (system, version) else {
            return Err(Error::backup(format!("{shown} has no global/pg_control or no PG_VERSION: it is not whole"))
                .hint("Take another base backup."));
        };
        let end = manifest_end(&place, label.timeline)?;
        Ok(Self { place, shape, label, end, system, major, tablespaces, own_wal, stored: None, notes: Vec::new() })
    }

    /// Where the backup ended: by its manifest, or by the `.backup` file of the archive. `None`: only the WAL itself tells.
    ///
    /// Errors: the archive is of another cluster.
    pub fn end(&self, wal: &Wal) -> Result<Option<Lsn>> {
        if wal.system != self.system {
            return Err(Error::refused(format!(
                "the base backup is of system {}, and the WAL in {} of system {}",
                self.system,
                wal.place.shown(),
                wal.system
            ))
            .hint(
                "Give the WAL archive of the cluster that was backed up: pg_controldata shows its system identifier.",
            ));
        }
        if self.end.is_some() {
            return Ok(self.end);
        }
        let file = wal.backup_file((self.label.timeline, self.label.start))?;
        Ok(file.and_then(|text| value(&text, "STOP WAL LOCATION").and_then(first_word).and_then(Lsn::parse)))
    }

    /// Hands on everything in the base backup, folders before what is in them. Segments of WAL come as `pg_wal/NAME`.
    /// `copies` says where the trees of tablespaces are, by their numbers.
    pub fn each(
        &self,
        copies: &BTreeMap<u32, Place>,
        progress: &Progress,
        mut visit: impl FnMut(Member, &mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        match self.shape {
            Shape::Tree => {
                each_of_tree(&self.place, None, progress, &mut visit)?;
                for oid in self.tablespaces.keys() {
                    let Some(copy) = copies.get(oid) else { return Err(self.no_copy(*oid)) };
                    each_of_tree(copy, Some(*oid), progress, &mut visit)?;
                }
            }
            Shape::Tar(suffix) => {
                each_of_tar(&self.place, &format!("base{suffix}"), None, progress, &mut visit)?;
                for oid in self.tablespaces.keys() {
                    each_of_tar(&self.place, &format!("{oid}{suffix}"), Some(*oid), progress, &mut visit)?;
                }
                if own_wal_tar(&self.place)?.is_some() {
                    self.each_wal(progress, &mut visit)?;
                }
            }
            Shape::PgBackRest => return Err(Error::bug("a backup of pgBackRest is restored by pgbackrest")),
        }
        Ok(())
    }

    /// Hands on the segments that came with the backup, as `pg_wal/NAME`.
    pub fn each_wal(
        &self,
        progress: &Progress,
        mut visit: impl FnMut(Member, &mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        match (self.shape, own_wal_tar(&self.place)?) {
            // The archive has them.
            (Shape::PgBackRest, _) => Ok(()),
            (Shape::Tree, _) => {
                for file in &self.own_wal {
                    let path = format!("pg_wal/{file}");
                    let mut stream = self.place.open(&path)?;
                    visit(Member { path, tablespace: None, is_folder: false, size: 0 }, &mut stream)?;
                }
                Ok(())
            }
            (Shape::Tar(_), Some(tar)) => each_of_tar(&self.place, &tar, None, progress, |mut member, stream| {
                member.path = format!("pg_wal/{}", member.path);
                visit(member, stream)
            }),
            // `--wal-method=fetch` puts them where the server had them.
            (Shape::Tar(suffix), None) => {
                each_of_tar(&self.place, &format!("base{suffix}"), None, progress, |member, stream| {
                    if member.path.starts_with("pg_wal/") { visit(member, stream) } else { Ok(()) }
                })
            }
        }
    }

    /// Errors when a tablespace's tree is needed and nobody said where it is.
    pub fn check_copies(&self, copies: &BTreeMap<u32, Place>) -> Result<()> {
        if let Some(unknown) = copies.keys().find(|oid| !self.tablespaces.contains_key(oid)) {
            return Err(Error::operator(format!("the base backup has no tablespace {unknown}"))
                .hint("Leave out --tablespace for it."));
        }
        match self.tablespaces.keys().find(|oid| self.shape == Shape::Tree && !copies.contains_key(oid)) {
            Some(oid) => Err(self.no_copy(*oid)),
            None => Ok(()),
        }
    }

    fn no_copy(&self, oid: u32) -> Error {
        let was = self.tablespaces.get(&oid).map_or("", String::as_str);
        Error::refused(format!(
            "tablespace {oid} is a symlink to {was}, which leads out of the base backup and is not followed"
        ))
        .hint(format!(
            "Say where its copy is (of pg_basebackup's -T; a folder PG_{}_… is in it): tablespaces = [\"{oid}=FOLDER\"] in the configuration, --tablespace {oid}=FOLDER of lifeboat clone.",
            self.major
        ))
    }
}

/// One file or folder of a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Beneath the data directory, or beneath the tablespace; names are neither empty nor `.` or `..`.
    pub path: String,
    /// Of which it is; `None`: of the data directory.
    pub tablespace: Option<u32>,
    /// A folder; else a file.
    pub is_folder: bool,
    /// In bytes.
    pub size: u64,
}

fn read_tree(place: &Place) -> Result<(Facts, Vec<String>, BTreeMap<u32, String>)> {
    let nodes = place.list("")?;
    let has = |name: &str| nodes.iter().any(|node| node.name == name && node.kind == EntryKind::File);
    let read = |name: &str| if has(name) { text(place, name).map(Some) } else { Ok(None) };
    let mut facts = Facts { label: read("backup_label")?, version: read("PG_VERSION")?, ..Facts::default() };
    if place.list("global")?.iter().any(|node| node.name == "pg_control") {
        facts.control = Some(bounded(place.open("global/pg_control")?, "global/pg_control", MAX_TEXT)?);
    }
    let folder = |name: &str| nodes.iter().any(|node| node.name == name && node.kind == EntryKind::Folder);
    let wal = if folder("pg_wal") { place.list("pg_wal")? } else { Vec::new() };
    let own = wal.into_iter().filter(|node| node.kind == EntryKind::File).map(|node| node.name).collect();
    let mut tablespaces = BTreeMap::new();
    for node in if folder("pg_tblspc") { place.list("pg_tblspc")? } else { Vec::new() } {
        let Ok(oid) = node.name.parse() else { continue };
        if node.kind == EntryKind::Symlink {
            tablespaces.insert(oid, node.target);
        }
    }
    Ok((facts, own, tablespaces))
}

fn read_tars(place: &Place, suffix: &str, progress: &Progress) -> Result<(Facts, Vec<String>, BTreeMap<u32, String>)> {
    let (mut facts, mut own) = (Facts::default(), Vec::new());
    each_of_tar(place, &format!("base{suffix}"), None, progress, |member, stream| {
        let file = member.path.as_str();
        match file {
            "backup_label" | "PG_VERSION" | "tablespace_map" => {
                let words = String::from_utf8_lossy(&bounded(stream, file, MAX_TEXT)?).into_owned();
                match file {
                    "backup_label" => facts.label = Some(words),
                    "PG_VERSION" => facts.version = Some(words),
                    _ => facts.map = Some(words),
                }
            }
            "global/pg_control" => facts.control = Some(bounded(stream, file, MAX_TEXT)?),
            _ => own.extend(file.strip_prefix("pg_wal/").filter(|_| !member.is_folder).map(str::to_owned)),
        }
        Ok(())
    })?;
    if let Some(tar) = own_wal_tar(place)? {
        each_of_tar(place, &tar, None, progress, |member, _| {
            own.push(member.path);
            Ok(())
        })?;
    }
    // A line for each: number, space, where production keeps it.
    let lines = facts.map.as_deref().unwrap_or_default().lines();
    let tablespaces = lines.filter_map(|line| {
        let (oid, was) = line.split_once(' ')?;
        Some((oid.parse().ok()?, was.to_owned()))
    });
    let tablespaces = tablespaces.collect();
    Ok((facts, own, tablespaces))
}

fn own_wal_tar(place: &Place) -> Result<Option<String>> {
    let names = place.list("")?.into_iter().map(|node| node.name);
    Ok(names.into_iter().find(|name| name.strip_prefix("pg_wal").is_some_and(|rest| TARS.contains(&rest))))
}

fn bounded(stream: impl Read, file: &str, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let cannot = |error| Error::from_read(error, || format!("cannot read {file} of the base backup"));
    stream.take(most).read_to_end(&mut bytes).map_err(cannot)?;
    Ok(bytes)
}

fn each_of_tree(
    root: &Place,
    tablespace: Option<u32>,
    progress: &Progress,
    visit: &mut impl FnMut(Member, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let mut open = vec![(String::new(), 0)];
    while let Some((folder, depth)) = open.pop() {
        for node in root.list(&folder)? {
            progress.check()?;
            let path = if folder.is_empty() { node.name.clone() } else { format!("{folder}/{}", node.name) };
            // A name that is not its own bytes is one that is no name, or not PostgreSQL's.
            if node.file_name() != Some(node.name.as_bytes()) {
                return Err(odd(&path, "is no name of a file"));
            }
            let known = tablespace.is_none() && (folder == "pg_tblspc" || path == "pg_wal");
            let member =
                Member { path: path.clone(), tablespace, is_folder: node.kind == EntryKind::Folder, size: node.size };
            match node.kind {
                EntryKind::Folder if depth >= MAX_DEPTH => return Err(odd(&path, "lies too deep")),
                EntryKind::Folder => {
                    visit(member, &mut std::io::empty())?;
                    open.push((path, depth + 1));
                }
                EntryKind::File => visit(member, &mut root.open(&path)?)?,
                EntryKind::Symlink if known => {}
                EntryKind::Symlink => {
                    return Err(odd(&path, &format!("is a symlink to {}, which is not followed", node.target)));
                }
                // A socket of a server that was running.
                EntryKind::Other => {}
            }
        }
    }
    Ok(())
}

fn each_of_tar(
    place: &Place,
    file: &str,
    tablespace: Option<u32>,
    progress: &Progress,
    mut visit: impl FnMut(Member, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let stream = place.open(file)?;
    let damaged = |error| {
        let error = Error::from_read(error, || format!("{file} of {} is damaged or cut off", place.shown()));
        error.hint("Fetch it again, or take another base backup; pg_verifybackup and tar tell more.")
    };
    let packed: Box<dyn Read> = match file.rsplit_once('.') {
        Some((_, "gz" | "tgz")) => Box::new(flate2::read::MultiGzDecoder::new(stream)),
        Some((_, "zst")) => Box::new(zstd::Decoder::new(stream).map_err(damaged)?),
        _ => {
            // Files that nobody reads are passed over.
            let mut archive = tar::Archive::new(stream);
            let entries = archive.entries_with_seek().map_err(damaged)?;
            return each_entry(entries, tablespace, damaged, progress, &mut visit);
        }
    };
    let mut archive = tar::Archive::new(packed);
    each_entry(archive.entries().map_err(damaged)?, tablespace, damaged, progress, &mut visit)
}

fn each_entry<R: Read>(
    entries: tar::Entries<'_, R>,
    tablespace: Option<u32>,
    damaged: impl Fn(std::io::Error) -> Error,
    progress: &Progress,
    visit: &mut impl FnMut(Member, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    for entry in entries {
        progress.check()?;
        let mut entry = entry.map_err(&damaged)?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).trim_end_matches('/').to_owned();
        let path = path.strip_prefix("./").unwrap_or(&path).to_owned();
        if path == "." {
            continue;
        }
        if path.contains('\0') || path.split('/').any(|name| matches!(name, "" | "." | "..")) {
            return Err(odd(&path, "leads out of the base backup"));
        }
        let kind = entry.header().entry_type();
        let is_folder = match kind {
            tar::EntryType::Directory => true,
            tar::EntryType::Regular => false,
            // The archive has what `pg_wal` held; tablespaces are in tars of their own.
            tar::EntryType::Symlink if path == "pg_wal" || path.starts_with("pg_tblspc/") => continue,
            _ => return Err(odd(&path, "is neither a file nor a folder, and is not followed")),
        };
        let member = Member { path, tablespace, is_folder, size: entry.size() };
        visit(member, &mut entry)?;
    }
    Ok(())
}

fn odd(path: &str, why: &str) -> Error {
    Error::refused(format!("{path} of the base backup {why}"))
        .hint("Nothing of a base backup is followed out of its folder: put the files themselves in its place.")
}

fn value<'a>(text: &'a str, keyword: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.strip_prefix(keyword)?.strip_prefix(':')?.trim()))
}

fn first_word(text: &str) -> Option<&str> {
    text.split_whitespace().next()
}

fn parse_label(text: &str) -> Option<Label> {
    let start = Lsn::parse(first_word(value(text, "START WAL LOCATION")?)?)?;
    let timeline = value(text, "START TIMELINE")?.parse().ok()?;
    let started_words = value(text, "START TIME")?.to_owned();
    // Other abbreviations of zones mean different things to different people.
    let plain = ["UTC", "GMT"].iter().find_map(|zone| started_words.strip_suffix(zone));
    let started = plain.and_then(|words| NaiveDateTime::parse_from_str(words.trim(), "%Y-%m-%d %H:%M:%S").ok());
    let name = value(text, "LABEL").unwrap_or_default().to_owned();
    // A label that says that it is incremental and not of what is none.
    let incremental_from = match value(text, "INCREMENTAL FROM LSN") {
        Some(lsn) => Some((value(text, "INCREMENTAL FROM TLI")?.parse().ok()?, Lsn::parse(first_word(lsn)?)?)),
        None => None,
    };
    Some(Label { start, timeline, started: started.map(|at| at.and_utc()), started_words, name, incremental_from })
}

/// Where the backup ended on its timeline, by the manifest; `None`: there is no manifest.
fn manifest_end(place: &Place, timeline: u32) -> Result<Option<Lsn>> {
    #[derive(serde::Deserialize)]
    struct Manifest {
        #[serde(rename = "WAL-Ranges")]
        ranges: Vec<Range>,
    }
    #[derive(serde::Deserialize)]
    struct Range {
        #[serde(rename = "Timeline")]
        timeline: u32,
        #[serde(rename = "End-LSN")]
        end: String,
    }
    const FILE: &str = "backup_manifest";
    if !place.list("")?.iter().any(|node| node.name == FILE && node.kind == EntryKind::File) {
        return Ok(None);
    }
    let damaged = |error: serde_json::Error| {
        Error::backup(format!("{FILE} of {} is damaged", place.shown()))
            .detail(error)
            .hint("Fetch it again. Without that file, the end of the backup is looked for in the WAL.")
    };
    let stream = std::io::BufReader::new(place.open(FILE)?.take(MAX_MANIFEST));
    let manifest: Manifest = serde_json::from_reader(stream).map_err(damaged)?;
    let end =
        manifest.ranges.iter().filter(|range| range.timeline == timeline).filter_map(|range| Lsn::parse(&range.end));
    Ok(end.max())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "START WAL LOCATION: 0/3000028 (file 000000010000000000000003)\nCHECKPOINT LOCATION: 0/3000060\n\
        BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-11-28 21:20:14 UTC\nLABEL: nightly\nSTART TIMELINE: 7\n";

    #[test]
    fn a_label_is_read() {
        let label = parse_label(LABEL).unwrap();
        assert_eq!((label.start, label.timeline, label.name.as_str()), (Lsn(0x300_0028), 7, "nightly"));
        assert_eq!(label.started.unwrap().to_rfc3339(), "2026-11-28T21:20:14+00:00");
    }

    #[test]
    fn a_zone_of_many_meanings_is_not_guessed() {
        let label = parse_label(&LABEL.replace("UTC", "IST")).unwrap();
        assert_eq!((label.started, label.started_words.as_str()), (None, "2026-11-28 21:20:14 IST"));
    }

    #[test]
    fn an_incremental_label_names_what_it_rests_on_or_is_none() {
        assert_eq!(parse_label(LABEL).unwrap().incremental_from, None);
        let label = format!("{LABEL}INCREMENTAL FROM LSN: 0/2000028\nINCREMENTAL FROM TLI: 6\n");
        assert_eq!(parse_label(&label).unwrap().incremental_from, Some((6, Lsn(0x200_0028))));
        assert_eq!(parse_label(&label.replace("TLI: 6", "TLI: six")), None);
    }

    #[test]
    fn a_label_without_a_start_is_none() {
        assert_eq!(parse_label(&LABEL.replace("0/3000028", "zero")), None);
    }
}
