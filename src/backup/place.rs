//! A dump, a base backup or an archive of WAL wherever it is: in a snapshot, on a disk of this machine, or in a repository of
//! pgBackRest. Readers need not know which.

use std::fs;
use std::io::{BufReader, Read, Seek};
use std::path::{Component, Path, PathBuf};

use super::pgbackrest::Stanza;
use super::{EntryKind, Node, Repository, Snapshot};
use crate::error::{Error, Result};

/// A file or folder that holds one.
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
    /// In a repository of pgBackRest: in it are the files of the stanza's archive.
    PgBackRest(Stanza),
}

/// Something that can be read from any position.
pub trait ReadSeek: Read + Seek + Send {}

impl<T: Read + Seek + Send> ReadSeek for T {}

/// A folder of more entries is not listed.
const MAX_ENTRIES: usize = 4_000_000;

impl Place {
    /// What is in the folder itself (`beneath` is empty), or in a folder inside it; in no order. Symlinks are listed with where
    /// they point and not followed, save the folder itself.
    pub fn list(&self, beneath: &str) -> Result<Vec<Node>> {
        no_way_out(beneath)?;
        match self {
            Self::Snapshot { repository, snapshot, path } => {
                let node = repository.node(snapshot, &format!("{path}/{beneath}"))?;
                let Some(subtree) = node.subtree else {
                    return Err(Error::operator(format!("{} is not a folder", self.inside(beneath).shown()))
                        .hint("Give the path of a folder."));
                };
                Ok(repository.nodes(&subtree)?.to_vec())
            }
            Self::Disk(root) => list_on_disk(root, beneath),
            Self::PgBackRest(stanza) => stanza.archive(),
        }
    }

    /// The place of something inside the folder. The name is checked when it is opened.
    #[must_use]
    pub fn inside(&self, beneath: &str) -> Self {
        match self {
            _ if beneath.is_empty() => self.clone(),
            Self::Snapshot { repository, snapshot, path } => Self::Snapshot {
                repository: repository.clone(),
                snapshot: snapshot.clone(),
                path: format!("{}/{beneath}", path.trim_end_matches('/')),
            },
            Self::Disk(path) => Self::Disk(path.join(beneath)),
            Self::PgBackRest(stanza) => Self::PgBackRest(stanza.inside(beneath)),
        }
    }

    /// The folder that it is in; of one that has none above it, itself.
    pub fn parent(&self) -> Result<Self> {
        Ok(match self {
            Self::Disk(folder) => {
                let folder = std::path::absolute(folder).map_err(|error| {
                    Error::operator("the place of the base backup is no path").detail(error).hint("Give a whole path.")
                })?;
                Self::Disk(folder.parent().unwrap_or(&folder).to_owned())
            }
            Self::Snapshot { repository, snapshot, path } => Self::Snapshot {
                repository: repository.clone(),
                snapshot: snapshot.clone(),
                path: path.trim_end_matches('/').rsplit_once('/').map_or("", |(parent, _)| parent).to_owned(),
            },
            Self::PgBackRest(_) => self.clone(),
        })
    }

    /// For people: a path, `1a2b3c4d:/path`, or `pgbackrest:STANZA`.
    pub fn shown(&self) -> String {
        match self {
            Self::Snapshot { snapshot, path, .. } => format!("{}:{path}", snapshot.short()),
            Self::Disk(path) => path.display().to_string(),
            Self::PgBackRest(stanza) => stanza.shown(),
        }
    }

    /// Whether it is a folder; an error when there is nothing.
    pub fn is_folder(&self) -> Result<bool> {
        match self {
            Self::Snapshot { repository, snapshot, path } => {
                Ok(repository.entry(snapshot, path)?.kind == EntryKind::Folder)
            }
            Self::Disk(path) => Ok(fs::metadata(path).map_err(|error| unreadable(path, &error))?.is_dir()),
            Self::PgBackRest(_) => Ok(true),
        }
    }

    /// Opens the file itself (`beneath` is empty), or a file inside the folder by its literal name. A name that would
    /// lead out of the folder is refused, on a disk also one that passes through a symlink.
    pub fn open(&self, beneath: &str) -> Result<Box<dyn ReadSeek>> {
        no_way_out(beneath)?;
        match self {
            Self::Snapshot { repository, snapshot, path } if beneath.is_empty() => {
                Ok(Box::new(repository.open_file(snapshot, path)?))
            }
            Self::Snapshot { repository, snapshot, path } => {
                Ok(Box::new(repository.open_file(snapshot, &format!("{path}/{beneath}"))?))
            }
            Self::Disk(path) => open_on_disk(path, beneath),
            Self::PgBackRest(stanza) => Ok(Box::new(stanza.open(beneath)?)),
        }
    }
}

fn no_way_out(beneath: &str) -> Result<()> {
    if beneath.starts_with('/') || beneath.contains('\0') || beneath.split('/').any(|name| name == "..") {
        return Err(Error::refused(format!("the name {beneath:?} leads out of the dump's folder"))
            .hint("The dump may have been made to do harm: do not restore it before you know where it comes from."));
    }
    Ok(())
}

fn list_on_disk(root: &Path, beneath: &str) -> Result<Vec<Node>> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut folder = root.to_owned();
    for name in beneath.split('/').filter(|name| !name.is_empty()) {
        folder.push(name);
        if fs::symlink_metadata(&folder).map_err(|error| unreadable(&folder, &error))?.is_symlink() {
            return Err(Error::refused(format!("{} is a symlink", folder.display()))
                .hint("Replace it by the folder that it points to."));
        }
    }
    let mut nodes = Vec::new();
    for entry in fs::read_dir(&folder).map_err(|error| unreadable(&folder, &error))? {
        let entry = entry.map_err(|error| unreadable(&folder, &error))?;
        let facts = entry.metadata().map_err(|error| unreadable(&entry.path(), &error))?;
        let Ok(name) = entry.file_name().into_string() else {
            return Err(Error::refused(format!("{} has a name that is not UTF-8", entry.path().display()))
                .hint("Take it out of the folder: nothing of PostgreSQL's has such a name."));
        };
        let kind = match facts.file_type() {
            kind if kind.is_file() => EntryKind::File,
            kind if kind.is_dir() => EntryKind::Folder,
            kind if kind.is_symlink() => EntryKind::Symlink,
            _ => EntryKind::Other,
        };
        let target = match kind {
            EntryKind::Symlink => fs::read_link(entry.path()).unwrap_or_default().display().to_string(),
            EntryKind::File | EntryKind::Folder | EntryKind::Other => String::new(),
        };
        let size = if kind == EntryKind::File { facts.len() } else { 0 };
        nodes.push(Node { name, kind, size, target, mode: facts.permissions().mode() & 0o7777, ..Node::default() });
        if nodes.len() > MAX_ENTRIES {
            return Err(Error::refused(format!("there are too many files in {}", folder.display()))
                .hint("Name a folder that holds fewer."));
        }
    }
    Ok(nodes)
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
