//! A dump wherever it is: in a snapshot, or on a disk of this machine. Readers of dumps need not know which.

use std::fs;
use std::io::{BufReader, Read, Seek};
use std::path::{Component, Path, PathBuf};

use super::{EntryKind, Repository, Snapshot};
use crate::error::{Error, Result};

/// A file or folder that holds a dump.
#[derive(Clone)]
pub enum Place {
    /// In a repository.
    Snapshot {
        /// Open, for as long as the place is needed.
        repository: Repository,
        /// One of that repository.
        snapshot: Snapshot,
        /// Literal, as [`super::Entry::path`].
        path: String,
    },
    /// On this machine; as the operator gave it.
    Disk(PathBuf),
}

/// Something that can be read from any position.
pub trait ReadSeek: Read + Seek + Send {}

impl<T: Read + Seek + Send> ReadSeek for T {}

impl Place {
    /// Whether it is a folder; an error when there is nothing.
    pub fn is_folder(&self) -> Result<bool> {
        match self {
            Self::Snapshot { repository, snapshot, path } => {
                Ok(repository.entry(snapshot, path)?.kind == EntryKind::Folder)
            }
            Self::Disk(path) => Ok(fs::metadata(path).map_err(|error| unreadable(path, &error))?.is_dir()),
        }
    }

    /// Opens the file itself (`beneath` is empty), or a file inside the folder by its literal name. A name that would
    /// lead out of the folder is refused, on a disk also one that passes through a symlink.
    pub fn open(&self, beneath: &str) -> Result<Box<dyn ReadSeek>> {
        if beneath.starts_with('/') || beneath.contains('\0') || beneath.split('/').any(|name| name == "..") {
            return Err(Error::refused(format!("the name {beneath:?} leads out of the dump's folder")).hint(
                "The dump may have been made to do harm: do not restore it before you know where it comes from.",
            ));
        }
        match self {
            Self::Snapshot { repository, snapshot, path } if beneath.is_empty() => {
                Ok(Box::new(repository.open_file(snapshot, path)?))
            }
            Self::Snapshot { repository, snapshot, path } => {
                Ok(Box::new(repository.open_file(snapshot, &format!("{path}/{beneath}"))?))
            }
            Self::Disk(path) => open_on_disk(path, beneath),
        }
    }
}

fn open_on_disk(root: &Path, beneath: &str) -> Result<Box<dyn ReadSeek>> {
    let mut path = root.to_owned();
    for part in Path::new(beneath).components() {
        let Component::Normal(name) = part else { continue };
        path.push(name);
        if fs::symlink_metadata(&path).map_err(|error| unreadable(&path, &error))?.is_symlink() {
            return Err(Error::refused(format!("{} is a symlink inside a dump's folder", path.display()))
                .hint("Replace it by the file that it points to."));
        }
    }
    // Opening anything but a regular file could wait for ever.
    if !fs::metadata(&path).map_err(|error| unreadable(&path, &error))?.is_file() {
        return Err(Error::operator(format!("{} is not a file", path.display())).hint("Give the path of a dump file."));
    }
    let file = fs::File::open(&path).map_err(|error| unreadable(&path, &error))?;
    Ok(Box::new(BufReader::with_capacity(64 << 10, file)))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::operator(format!("cannot read {}", path.display()))
        .detail(error)
        .hint("Check the path and that you may read it.")
}
