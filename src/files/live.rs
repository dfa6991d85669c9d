//! What stands on this machine now, beside what a snapshot holds. Nothing is written, and no symlink is followed.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::excludes::Excludes;
use crate::backup::{BlobId, EntryKind, Node, Repository};
use crate::error::{Error, Result};

/// What stands at a path, well enough to know it again: another one with the same facts would have to be the same file,
/// unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Present {
    /// A symlink is one itself.
    pub kind: EntryKind,
    /// In bytes.
    pub size: u64,
    /// The file's number on its file system.
    pub inode: u64,
    /// The file system.
    pub device: u64,
    /// So many names the file has.
    pub links: u64,
    /// Content last changed: seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Content, owner, permissions or names last changed: seconds and nanoseconds.
    pub changed: (i64, i64),
    /// Permissions with set-uid, set-gid and sticky.
    pub mode: u32,
    /// Of the owner.
    pub uid: u32,
    /// Of the group.
    pub gid: u32,
}

impl Present {
    /// Of what a path names; `None`: nothing is there, or nothing that can be reached.
    pub fn at(path: &Path) -> Result<Option<Self>> {
        match fs::symlink_metadata(path) {
            Ok(facts) => Ok(Some(Self::of(&facts))),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(Error::operator(format!("cannot look at {}", path.display()))
                .detail(error)
                .hint("Check that you may read the folders above it.")),
        }
    }

    /// Of a file's facts.
    pub fn of(facts: &fs::Metadata) -> Self {
        let kind = facts.file_type();
        Self {
            kind: if kind.is_file() {
                EntryKind::File
            } else if kind.is_dir() {
                EntryKind::Folder
            } else if kind.is_symlink() {
                EntryKind::Symlink
            } else {
                debug_assert!(kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device());
                EntryKind::Other
            },
            size: facts.size(),
            inode: facts.ino(),
            device: facts.dev(),
            links: facts.nlink(),
            modified: (facts.mtime(), facts.mtime_nsec()),
            changed: (facts.ctime(), facts.ctime_nsec()),
            mode: facts.mode() & 0o7777,
            uid: facts.uid(),
            gid: facts.gid(),
        }
    }

    /// When its content last changed.
    pub fn modified(&self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(self.modified.0, u32::try_from(self.modified.1).unwrap_or(0))
    }
}

/// How something of a snapshot stands to what is here now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The same size and time, or, of a folder, a folder.
    Same,
    /// Another size, time, target or kind.
    Changed,
    /// Not here.
    Missing,
    /// Only here.
    Extra,
    /// Only here, and left out of backups on purpose.
    Excluded,
    /// The snapshot is of another machine: what is here is something else.
    Elsewhere,
}

/// Compares by size and time, without reading.
pub fn standing(node: &Node, present: Option<&Present>, path: &Path) -> Standing {
    let Some(present) = present else { return Standing::Missing };
    let same = node.kind == present.kind
        && match node.kind {
            EntryKind::File => {
                let seconds = node.modified.map(|at| (at.timestamp(), i64::from(at.timestamp_subsec_nanos())));
                node.size == present.size && seconds == Some(present.modified)
            }
            EntryKind::Symlink => {
                fs::read_link(path).is_ok_and(|target| target.as_os_str().as_bytes() == node.target.as_bytes())
            }
            EntryKind::Folder | EntryKind::Other => true,
        };
    if same { Standing::Same } else { Standing::Changed }
}

/// A name of a folder in a snapshot, here, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// As [`crate::backup::Entry::path`] writes its last name.
    pub name: String,
    /// Of the snapshot's, or of this machine's where only that has it.
    pub kind: EntryKind,
    /// In the snapshot, in bytes; 0 for what is not a file.
    pub size: u64,
    /// In the snapshot.
    pub modified: Option<DateTime<Utc>>,
    /// The owner's name, or number, in the snapshot; of an extra one its number here.
    pub owner: String,
    /// Permissions with set-uid, set-gid and sticky.
    pub mode: u32,
    /// What stands here.
    pub present: Option<Present>,
    /// How the two compare.
    pub standing: Standing,
}

/// A folder of a snapshot beside the one of the same path here: folders first, then by name. Where this machine's cannot be
/// read, everything counts as missing.
pub fn beside(nodes: &[Node], here: &Path, excludes: &Excludes) -> Vec<Beside> {
    let mut rows: Vec<Beside> = nodes
        .iter()
        .map(|node| {
            let path = node.file_name().map(|name| here.join(std::ffi::OsStr::from_bytes(name)));
            let present = path.as_deref().and_then(|path| Present::at(path).ok().flatten());
            let standing = standing(node, present.as_ref(), path.as_deref().unwrap_or(here));
            Beside {
                name: node.name.clone(),
                kind: node.kind,
                size: node.size,
                modified: node.modified.map(|at| at.to_utc()),
                owner: if node.user.is_empty() { node.uid.to_string() } else { node.user.clone() },
                mode: node.mode,
                present,
                standing,
            }
        })
        .collect();
    rows.extend(extra(nodes, here, excludes));
    rows.sort_by(|a, b| (a.kind != EntryKind::Folder, &a.name).cmp(&(b.kind != EntryKind::Folder, &b.name)));
    rows
}

/// What is only here.
pub fn extra(nodes: &[Node], here: &Path, excludes: &Excludes) -> Vec<Beside> {
    let known: std::collections::HashSet<&[u8]> = nodes.iter().filter_map(Node::file_name).collect();
    let mut rows = Vec::new();
    for entry in fs::read_dir(here).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if known.contains(name.as_bytes()) {
            continue;
        }
        let Ok(facts) = entry.metadata() else { continue };
        let present = Present::of(&facts);
        let left_out = excludes.leave_out(&here.join(&name));
        rows.push(Beside {
            name: name.to_string_lossy().into_owned(),
            kind: present.kind,
            size: 0,
            modified: None,
            owner: present.uid.to_string(),
            mode: present.mode,
            standing: if left_out { Standing::Excluded } else { Standing::Extra },
            present: Some(present),
        });
    }
    rows
}

/// Whether a file here has the content that a snapshot holds, by reading it: each part is hashed against its id, so that
/// nothing is fetched from the repository.
pub fn has_content(repository: &Repository, node: &Node, path: &Path) -> Result<bool> {
    let Ok(mut file) = open(path) else { return Ok(false) };
    let mut buffer = Vec::new();
    for id in &node.content {
        buffer.resize(repository.part_length(id)? as usize, 0);
        if file.read_exact(&mut buffer).is_err() || BlobId::new(Sha256::digest(&buffer).into()) != *id {
            return Ok(false);
        }
    }
    Ok(file.read(&mut [0]).is_ok_and(|more| more == 0))
}

/// Opens a regular file and nothing else: no symlink, and no pipe that would wait for ever.
pub fn open(path: &Path) -> std::io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = fs::OpenOptions::new().read(true).custom_flags(i32::try_from(flags.bits()).unwrap_or(0)).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::Error::other("not a regular file")) }
}

/// The path of this machine that a path of a snapshot stands for.
///
/// Errors: a name in it can be none of a file.
pub fn here(repository_path: &[&[u8]]) -> PathBuf {
    let mut path = PathBuf::from("/");
    for name in repository_path {
        path.push(std::ffi::OsStr::from_bytes(name));
    }
    path
}
