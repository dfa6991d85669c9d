//! Writing files: beneath folders that are held open, one name at a time, never through a symlink.
//!
//! A file is made under a name that was free, filled from proven bytes, dressed (owner, permissions, attributes, times), read
//! again and compared. What cannot be applied is noted, never silently left out.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rustix::fs::{Advice, AtFlags, Gid, Mode, OFlags, RawMode, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::live::Present;
use crate::backup::{BlobId, Node, Repository};
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;

/// A run of zeros of this length, at such an offset, becomes a hole.
const PAGE: usize = 4096;
/// A file of up to so many bytes is small: one thread writes it and reads it again.
pub const SMALL: u64 = 4 << 20;
/// Attributes that lend rights to whoever runs the file.
const LENDS_RIGHTS: [&str; 1] = ["security.capability"];

/// A folder that is held open: what is done beneath it is done there, whatever becomes of its path.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    /// For messages.
    pub path: PathBuf,
}

const HOLD: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

impl Folder {
    /// Opens an absolute path. Errors: a symlink stands on the way; whatever the system says.
    pub fn open(path: &Path) -> Result<Self> {
        let cannot = |error| failed("open", path, error);
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let relative = path.strip_prefix("/").unwrap_or(path);
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let fd = rustix::fs::openat2(root.map_err(cannot)?, relative, HOLD, Mode::empty(), BENEATH).map_err(cannot)?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens what lies beneath, by a path without symlinks.
    pub fn beneath(&self, path: &Path) -> Result<Self> {
        let shown = self.path.join(path);
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let fd = rustix::fs::openat2(&self.fd, path, HOLD, Mode::empty(), BENEATH)
            .map_err(|error| failed("open", &shown, error))?;
        Ok(Self { fd, path: shown })
    }

    /// The path of a name in it, for messages.
    pub fn shown(&self, name: &[u8]) -> PathBuf {
        self.path.join(std::ffi::OsStr::from_bytes(name))
    }

    /// Makes a folder that was not there, for nobody else to enter.
    pub fn make(&self, name: &[u8]) -> Result<()> {
        rustix::fs::mkdirat(&self.fd, name, Mode::RWXU).map_err(|error| failed("make", &self.shown(name), error))
    }

    /// Makes a file that was not there, for nobody else to read.
    pub fn create(&self, name: &[u8]) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR);
        made.map(File::from).map_err(|error| failed("make", &self.shown(name), error))
    }

    /// Makes a symlink that was not there, dressed as far as symlinks can be.
    pub fn link(&self, name: &[u8], node: &Node, own: Own, notes: &mut Notes) -> Result<()> {
        let shown = self.shown(name);
        rustix::fs::symlinkat(node.target.as_bytes(), &self.fd, name).map_err(|error| failed("make", &shown, error))?;
        let (uid, gid) = own.ids(node);
        let owned = rustix::fs::chownat(&self.fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        notes.unless(owned, "the owner of symlinks", &shown);
        if let Some(times) = times(node) {
            let set = rustix::fs::utimensat(&self.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW);
            notes.unless(set, "the times of symlinks", &shown);
        }
        Ok(())
    }

    /// Gives a file that was made here a further name.
    pub fn link_again(&self, first: &Path, path: &Path) -> Result<()> {
        rustix::fs::linkat(&self.fd, first, &self.fd, path, AtFlags::empty())
            .map_err(|error| failed("make", &self.path.join(path), error))
    }

    /// What stands at a name.
    pub fn present(&self, name: &[u8]) -> Result<Option<Present>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            // The standard library knows how to read kinds and times; the folder is reached through its descriptor.
            Ok(_) => Present::at(&self.by_descriptor(name)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("look at", &self.shown(name), error)),
        }
    }

    /// A path that leads through the held folder, whatever became of its own.
    fn by_descriptor(&self, name: &[u8]) -> PathBuf {
        use std::os::fd::AsRawFd as _;
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd())).join(std::ffi::OsStr::from_bytes(name))
    }

    /// Opens a regular file in it to read.
    pub fn read(&self, name: &[u8]) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = rustix::fs::openat(&self.fd, name, flags, Mode::empty());
        opened.map(File::from).map_err(|error| failed("open", &self.shown(name), error))
    }

    /// Where a symlink in it points.
    pub fn target(&self, name: &[u8]) -> Result<Vec<u8>> {
        rustix::fs::readlinkat(&self.fd, name, Vec::new())
            .map(std::ffi::CString::into_bytes)
            .map_err(|error| failed("read", &self.shown(name), error))
    }

    /// Puts two names in each other's place, in one act.
    pub fn exchange(&self, a: &[u8], b: &[u8]) -> Result<()> {
        rustix::fs::renameat_with(&self.fd, a, &self.fd, b, rustix::fs::RenameFlags::EXCHANGE)
            .map_err(|error| failed("exchange", &self.shown(b), error))
    }

    /// Gives what stands at a name another one, which has to be free.
    pub fn rename(&self, from: &[u8], to: &[u8]) -> Result<()> {
        rustix::fs::renameat_with(&self.fd, from, &self.fd, to, rustix::fs::RenameFlags::NOREPLACE)
            .map_err(|error| failed("rename", &self.shown(from), error))
    }

    /// Removes a file that we made.
    pub fn remove(&self, name: &[u8]) -> Result<()> {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())
            .map_err(|error| failed("remove", &self.shown(name), error))
    }

    /// Removes a folder that we made, when nothing is in it.
    pub fn remove_folder(&self, name: &[u8]) -> Result<()> {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)
            .map_err(|error| failed("remove", &self.shown(name), error))
    }

    /// Removes a folder that we made, with everything in it. It is reached through the folder that is held, and no symlink in
    /// it is followed.
    pub fn remove_tree(&self, name: &[u8]) -> Result<()> {
        std::fs::remove_dir_all(self.by_descriptor(name))
            .map_err(|error| failed("remove", &self.shown(name), Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }

    /// Returns when the names in it are on disk.
    pub fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.fd).map_err(|error| failed("write", &self.path, error))
    }

    /// Returns when everything on its file system is on disk.
    pub fn sync_all(&self) -> Result<()> {
        rustix::fs::syncfs(&self.fd).map_err(|error| failed("write", &self.path, error))
    }

    /// Bytes that we may still write on its file system; `None`: it does not count them.
    pub fn free(&self) -> Result<Option<u64>> {
        let facts = rustix::fs::fstatvfs(&self.fd).map_err(|error| failed("look at", &self.path, error))?;
        Ok((facts.f_blocks > 0).then(|| facts.f_bavail.saturating_mul(facts.f_frsize)))
    }

    /// Files that may still be made on its file system; `None`: it does not count them.
    pub fn free_files(&self) -> Result<Option<u64>> {
        let facts = rustix::fs::fstatvfs(&self.fd).map_err(|error| failed("look at", &self.path, error))?;
        Ok((facts.f_files > 0).then_some(facts.f_favail))
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An error of the file system, in words.
pub fn failed(doing: &str, path: &Path, error: Errno) -> Error {
    let hint = match error {
        Errno::LOOP | Errno::NOTDIR => {
            "A symlink, or something else that is no folder, stands on the way; it is not followed. Bring it back beside, \
             and move it by hand."
        }
        Errno::NOSPC => "The disk is full. Free some space, or choose another place.",
        Errno::DQUOT => "The quota of this user is used up. Free some space, or choose another place.",
        Errno::ROFS => "The file system is mounted read-only. Choose another place.",
        Errno::ACCESS | Errno::PERM => {
            "This user may not do that there, or it is marked immutable (lsattr tells). Choose another place, or run as the \
             owner."
        }
        Errno::EXIST => "Something stands there already, and nothing is overwritten. Choose another place.",
        Errno::NAMETOOLONG => "The name is longer than this file system allows.",
        Errno::XDEV => "It lies on another file system.",
        Errno::BUSY => "Something is mounted there, or the system uses it. Bring it back beside, and copy it by hand.",
        Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP if doing == "exchange" || doing == "rename" => {
            "This file system cannot do that in one act. Bring it back beside, and move it by hand."
        }
        _ => "Check the path and the file system.",
    };
    Error::target(format!("cannot {doing} {}", path.display())).detail(std::io::Error::from(error)).hint(hint)
}

/// An error after which nothing more can be written there.
pub fn is_final(error: &Error) -> bool {
    let detail = error.detail.as_deref().unwrap_or_default();
    [Errno::NOSPC, Errno::DQUOT, Errno::ROFS, Errno::IO]
        .iter()
        .any(|errno| detail == std::io::Error::from(*errno).to_string())
}

/// Whose files will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Own {
    /// The recorded numbers.
    Numbers,
    /// The users and groups who have the recorded names here, or the numbers where nobody has.
    Names,
    /// Whoever runs this.
    Me,
}

impl Own {
    fn ids(self, node: &Node) -> (Option<Uid>, Option<Gid>) {
        let user = || nix::unistd::User::from_name(&node.user).ok().flatten().map(|user| user.uid.as_raw());
        let group = || nix::unistd::Group::from_name(&node.group).ok().flatten().map(|group| group.gid.as_raw());
        let (uid, gid) = match self {
            Self::Numbers => (node.uid, node.gid),
            Self::Names => (user().unwrap_or(node.uid), group().unwrap_or(node.gid)),
            Self::Me => return (None, None),
        };
        // The number that means "leave it" can be nobody's.
        let valid = |id: u32| id != u32::MAX;
        (valid(uid).then(|| Uid::from_raw(uid)), valid(gid).then(|| Gid::from_raw(gid)))
    }
}

/// What could not be applied: each kind with how often, and one example.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes(pub BTreeMap<String, (u64, String)>);

impl Notes {
    /// Notes what was left out.
    pub fn add(&mut self, what: impl Into<String>, path: &Path) {
        self.0.entry(what.into()).or_insert_with(|| (0, path.display().to_string())).0 += 1;
    }

    fn unless(&mut self, done: rustix::io::Result<()>, what: &str, path: &Path) {
        if let Err(error) = done {
            self.add(format!("{what}: {}", std::io::Error::from(error)), path);
        }
    }

    /// Takes in those of another.
    pub fn merge(&mut self, other: Self) {
        for (what, (times, example)) in other.0 {
            self.0.entry(what).or_insert_with(|| (0, example)).0 += times;
        }
    }
}

/// Parts of files that are nothing but zeros: neither fetched nor written, and not counted as space that is needed.
#[derive(Default)]
pub struct Zeros(HashMap<BlobId, bool>);

impl Zeros {
    /// Finds those of one file. Only a part that follows on itself is looked at: a hole of some size is cut into parts that
    /// are all the same, and hardly anything else is.
    pub fn of(&mut self, repository: &Repository, node: &Node) -> Result<()> {
        for (id, next) in node.content.iter().zip(node.content.iter().skip(1)) {
            if id == next && !self.0.contains_key(id) {
                let zeros = vec![0; repository.part_length(id)? as usize];
                self.0.insert(*id, BlobId::new(Sha256::digest(&zeros).into()) == *id);
            }
        }
        Ok(())
    }

    fn contains(&self, id: &BlobId) -> bool {
        self.0.get(id).is_some_and(|zeros| *zeros)
    }

    /// So many bytes of a file they are.
    pub fn bytes(&self, repository: &Repository, node: &Node) -> Result<u64> {
        let parts = node.content.iter().filter(|id| self.contains(id));
        parts.map(|id| repository.part_length(id).map(u64::from)).sum()
    }
}

/// Parts of files that were fetched before they are written, each by its id.
pub type Near = HashMap<BlobId, Vec<u8>>;

/// Writes a file's content; runs of zeros become holes. Parts that are not `near` are fetched and written by a few threads, in
/// the order in which the repository holds them.
pub fn fill(
    file: &File,
    (repository, near): (&Repository, &Near),
    node: &Node,
    shown: &Path,
    progress: &Progress,
) -> Result<()> {
    let cannot = |error: std::io::Error| failed("write", shown, Errno::from_io_error(&error).unwrap_or(Errno::IO));
    let parts = Parts::of(repository, node)?;
    file.set_len(parts.length).map_err(cannot)?;
    let mut zeros = Zeros::default();
    zeros.of(repository, node)?;
    let write = |number: usize, bytes: &[u8]| {
        progress.check()?;
        let (begin, length) = parts.place(number);
        if bytes.len() as u64 != length {
            return Err(Error::backup(format!("{} has another length than the index says", node.content[number])));
        }
        write_dense(file, bytes, begin).map_err(cannot)?;
        if parts.length > SMALL {
            // The kernel begins to write it to the disk now, and not when everything waits for that.
            let _ = rustix::fs::fadvise(file, begin, NonZeroU64::new(length), Advice::DontNeed);
        }
        progress.advance(length);
        Ok(())
    };
    if let Some(parts) = node.content.iter().map(|id| near.get(id)).collect::<Option<Vec<_>>>() {
        return parts.into_iter().enumerate().try_for_each(|(number, bytes)| write(number, bytes));
    }
    // What is nothing but zeros is a hole already: the file has its length.
    let dense: Vec<usize> = (0..node.content.len()).filter(|number| !zeros.contains(&node.content[*number])).collect();
    progress.advance(zeros.bytes(repository, node)?);
    let ids: Vec<BlobId> = dense.iter().map(|number| node.content[*number]).collect();
    repository.parts(&ids, |at, bytes| write(dense[at], bytes)).map_err(|mut error| {
        if error.kind == Kind::Backup {
            error.message = format!("cannot read {}: {}", shown.display(), error.message);
        }
        error
    })
}

/// Where the parts of a file lie in it.
struct Parts {
    ends: Vec<u64>,
    length: u64,
}

impl Parts {
    fn of(repository: &Repository, node: &Node) -> Result<Self> {
        let (mut ends, mut length) = (Vec::with_capacity(node.content.len()), 0);
        for id in &node.content {
            length += u64::from(repository.part_length(id)?);
            ends.push(length);
        }
        Ok(Self { ends, length })
    }

    /// Begin and length of a part.
    fn place(&self, number: usize) -> (u64, u64) {
        let begin = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        (begin, self.ends[number] - begin)
    }
}

/// Writes the pages that are not empty, of a file that is empty there.
fn write_dense(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    // A part begins anywhere; the pages are the file's.
    let first = (PAGE - usize::try_from(at % PAGE as u64).unwrap_or(0)).min(bytes.len());
    let (head, pages) = bytes.split_at(if first == PAGE { 0 } else { first });
    let mut dense = (0, head.len());
    for page in pages.chunks(PAGE) {
        let end = dense.1;
        if page.len() < PAGE || page.iter().any(|byte| *byte != 0) {
            dense.1 = end + page.len();
            continue;
        }
        write_at(file, bytes, dense, at)?;
        dense = (end + PAGE, end + PAGE);
    }
    write_at(file, bytes, dense, at)
}

fn write_at(file: &File, bytes: &[u8], (begin, end): (usize, usize), at: u64) -> std::io::Result<()> {
    if begin == end { Ok(()) } else { file.write_all_at(&bytes[begin..end], at + begin as u64) }
}

/// Whether a file has exactly the content of a node: every part is read and hashed against its id, several at a time.
pub fn holds(file: &File, repository: &Repository, node: &Node) -> Result<bool> {
    let parts = Parts::of(repository, node)?;
    let mut zeros = Zeros::default();
    zeros.of(repository, node)?;
    let same = |buffer: &mut Vec<u8>, number: usize| {
        let (begin, length) = parts.place(number);
        if zeros.contains(&node.content[number]) && is_hole(file, begin, length) {
            return true;
        }
        buffer.resize(usize::try_from(length).unwrap_or(0), 0);
        let read = file.read_exact_at(buffer, begin).is_ok();
        read && BlobId::new(Sha256::digest(&*buffer).into()) == node.content[number]
    };
    let holds = if parts.length <= SMALL {
        let mut buffer = Vec::new();
        (0..node.content.len()).all(|number| same(&mut buffer, number))
    } else {
        (0..node.content.len()).into_par_iter().map_init(Vec::new, same).all(|same| same)
    };
    Ok(holds && file.metadata().is_ok_and(|facts| facts.len() == parts.length))
}

/// Whether the file system itself says that nothing is written there, so that zeros are read.
fn is_hole(file: &File, at: u64, length: u64) -> bool {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => data >= at + length,
        // No data up to the end, which may lie before that of the part.
        Err(Errno::NXIO) => file.metadata().is_ok_and(|facts| facts.len() >= at + length),
        Err(_) => false,
    }
}

/// Gives a file or folder its owner, attributes, permissions and times, in the order in which none undoes another, and none
/// needs a right that another has taken away. Rights that it would lend to whoever runs it are left out, and noted.
pub fn dress(file: &impl AsFd, node: &Node, own: Own, shown: &Path, notes: &mut Notes) {
    let (uid, gid) = own.ids(node);
    if uid.is_some() || gid.is_some() {
        notes.unless(rustix::fs::fchown(file, uid, gid), "the owner", shown);
    } else if node.uid != nix::unistd::geteuid().as_raw() {
        notes.add("the owner: it belongs to whoever brought it back", shown);
    }
    for attribute in &node.attributes {
        if LENDS_RIGHTS.contains(&attribute.name.as_str()) {
            notes.add(format!("{}: left out, since it lends rights", attribute.name), shown);
            continue;
        }
        let set = rustix::fs::fsetxattr(file, &*attribute.name, &attribute.value, rustix::fs::XattrFlags::empty());
        notes.unless(set, &attribute.name, shown);
    }
    if node.mode & 0o6000 != 0 && node.kind == crate::backup::EntryKind::File {
        notes.add("the set-uid or set-gid bit: left out, since it lends rights", shown);
    }
    let mode = if node.kind == crate::backup::EntryKind::File { node.mode & 0o1777 } else { node.mode & 0o7777 };
    notes.unless(rustix::fs::fchmod(file, Mode::from_raw_mode(mode as RawMode)), "the permissions", shown);
    if let Some(times) = times(node) {
        notes.unless(rustix::fs::futimens(file, &times), "the times", shown);
    }
}

/// The recorded time of the last change, for both times: restic does not always record the other one.
fn times(node: &Node) -> Option<Timestamps> {
    let at = node.modified?;
    let time = Timespec { tv_sec: at.timestamp(), tv_nsec: i64::from(at.timestamp_subsec_nanos()) };
    Some(Timestamps { last_access: time, last_modification: time })
}
