//! What a recovery point holds: the dumps in it, found by their first bytes, wherever they lie.

use chrono::{DateTime, Utc};

use crate::backup::{EntryKind, Location, Password, Place, Repository};
use crate::config::System;
use crate::error::{Error, Kind, Result};
use crate::postgres::archive::{self, Archive, Format, Source};
use crate::progress::{Progress, Unit};
use crate::recovery::record::{Contents, DISK, Dump, Point};

/// A walk for dumps stops after so many files; a file server's snapshot is not searched to its end for one.
const WALK_LIMIT: usize = 20_000;
/// In a snapshot of no more files than this, every file is looked into; in a larger one only those named like a dump.
const LOOK_INTO_ALL: usize = 64;
/// Enough to tell a dump from another file.
const FIRST_BYTES: u64 = 4096;
const DUMP_NAMES: [&str; 9] = [".dump", ".pgdump", ".backup", ".bak", ".sql", ".sql.gz", ".sql.zst", ".tar", "toc.dat"];

pub(super) fn disk_point(path: &std::path::Path) -> Result<Point> {
    let facts = std::fs::metadata(path).map_err(|error| {
        Error::operator(format!("cannot read {}", path.display()))
            .detail(error)
            .hint("Check the path and that you may read it.")
    })?;
    let modified: DateTime<Utc> = facts.modified().map_or_else(|_| Utc::now(), DateTime::from);
    Ok(Point {
        id: DISK.into(),
        repository: "a file on this machine, dated by its modification time".into(),
        instant: modified.into(),
        host: crate::recovery::journal::operator().host,
        paths: vec![path.display().to_string()],
        tags: Vec::new(),
    })
}

/// Where a system's repository is, and its password.
pub fn location(system: &System) -> Result<Location> {
    let Some(settings) = &system.repository else {
        return Location::from_environment()?.ok_or_else(|| {
            Error::operator("no repository is given")
                .hint("Set RESTIC_REPOSITORY and RESTIC_PASSWORD_FILE, or name a system in ~/.config/lifeboat/config.toml.")
                .hint("Without a backup at hand, lifeboat drill shows how a recovery goes.")
        });
    };
    let password = match (&settings.password_file, &settings.password_command) {
        (Some(file), _) => Password::File(file.clone()),
        (None, Some(command)) => Password::Command(command.clone()),
        (None, None) => {
            return Err(Error::operator(format!(
                "system \"{}\" has no password_file and no password_command",
                system.name
            ))
            .hint("Add one of them to the configuration."));
        }
    };
    Ok(Location { url: settings.url.clone(), password })
}

pub(super) fn source(place: Place) -> Result<Source> {
    let label = match &place {
        Place::Disk(_) | Place::PgBackRest(_) => place.shown(),
        Place::Snapshot { snapshot, path, .. } => format!("{path} of {}", snapshot.short()),
    };
    let folder = place.is_folder()?;
    let open = move |name: &str| Ok(Box::new(place.open(name)?) as Box<dyn archive::ReadSeek>);
    Ok(if folder { Source::folder(label, open) } else { Source::file(label, open) })
}

/// Walks a snapshot for dumps.
pub(super) fn search(
    repository: &Repository,
    point: &str,
    progress: &Progress,
) -> Result<(Contents, Vec<(String, Archive)>)> {
    let mut opened = Vec::new();
    let snapshot = repository.find(point)?;
    progress.begin(format!("looking into {}", snapshot.short()), Unit::Items, None);
    let walk = repository.entries(&snapshot, WALK_LIMIT)?;
    let files: Vec<_> = walk.entries.into_iter().filter(|entry| entry.kind == EntryKind::File).collect();
    let look_into_all = files.len() <= LOOK_INTO_ALL;
    let mut contents = Contents { dumps: Vec::new(), files: 0, bytes: 0, complete: walk.complete };
    for entry in files {
        progress.check()?;
        progress.advance(1);
        if look_into_all || is_named_like_a_dump(&entry.path) {
            // A dump in folder format is the folder that holds toc.dat.
            let path = entry.path.strip_suffix("/toc.dat").unwrap_or(&entry.path).to_owned();
            let place =
                Place::Snapshot { repository: repository.clone(), snapshot: snapshot.clone(), path: path.clone() };
            if let Some((dump, archive)) = look_into(path, entry.size, place, progress)? {
                opened.extend(archive.map(|archive| (dump.path.clone(), archive)));
                contents.dumps.push(dump);
                continue;
            }
        }
        contents.files += 1;
        contents.bytes += entry.size;
    }
    Ok((contents, opened))
}

/// What a file is, by its first bytes: `None` when it is no dump. A damaged dump is listed with what is wrong; so is one
/// whose first bytes cannot be read, when its name says that it is a dump.
pub(super) fn look_into(
    path: String,
    size_bytes: u64,
    place: Place,
    progress: &Progress,
) -> Result<Option<(Dump, Option<Archive>)>> {
    let source = source(place)?;
    let damaged = |format, error: Error| {
        let header = archive::Header::unknown(format);
        let path = path.clone();
        Some((Dump { path, size_bytes, header, tables: None, damage: Some(error.message) }, None))
    };
    let first = match first_bytes(&source) {
        Ok(first) => first,
        Err(error) if error.kind == Kind::Cancelled => return Err(error),
        Err(error) if source.is_folder() => return Ok(damaged(Format::Folder, error)),
        // What stands on disk was named by the operator.
        Err(error) if path.is_empty() || is_named_like_a_dump(&path) => return Ok(damaged(Format::Custom, error)),
        Err(_) => return Ok(None),
    };
    let Some(format) = Archive::sniff(&first) else { return Ok(None) };
    Ok(match Archive::open(&source, progress) {
        Ok(archive) => {
            let tables = archive.tables().iter().filter(|table| table.has_data).count() as u64;
            let header = archive.header.clone();
            Some((Dump { path, size_bytes, header, tables: Some(tables), damage: None }, Some(archive)))
        }
        Err(error) if error.kind == Kind::Cancelled => return Err(error),
        Err(error) => damaged(format, error),
    })
}

fn is_named_like_a_dump(path: &str) -> bool {
    DUMP_NAMES.iter().any(|name| path.ends_with(name))
}

pub(super) fn first_bytes(source: &Source) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut first = Vec::new();
    let stream = source.open(if source.is_folder() { "toc.dat" } else { "" })?;
    let cannot = || "its first bytes cannot be read".to_owned();
    stream.take(FIRST_BYTES).read_to_end(&mut first).map_err(|error| Error::from_read(error, cannot))?;
    Ok(first)
}
