//! The files of a repository where they are stored: local, S3, SFTP, REST or rclone.
//!
//! Invariant: nothing here can write anything but locks of ours. Every byte that comes in is counted, every whole file is compared with its name
//! (which is its SHA-256), and every failure is told in our words, without the password that may be inside the URL.
//!
//! Local folders, S3 and SFTP are read directly and not through `rustic_backend`: its listings leave out what they could
//! not read, so that an unreadable folder looks like a repository without snapshots, and its SFTP creates the folder
//! it is pointed at.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use opendal::layers::{RetryLayer, TimeoutLayer};
use rustic_backend::BackendOptions;
use rustic_core::{FileType, Id, RusticError, WriteBackend};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Runtime;

use super::location::{Location, Target};
use super::seal::MAX_DOCUMENT;
use super::sftp::SftpFolder;
use crate::error::Error;
use crate::secret::Secret;
use crate::text;

/// How often a request is tried again, waiting 1 s, 2 s, 4 s.
const RETRIES: usize = 3;
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_mins(2);

/// What is stored in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    Config,
    Key,
    Snapshot,
    Index,
    Lock,
    Pack,
}

/// Why something could not be read, as far as a decision hangs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Missing,
    Damaged,
    Other,
}

#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub why: Why,
    pub error: Error,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

pub(super) struct Storage {
    place: Place,
    /// Where it is, for messages.
    pub shown: String,
    hidden: Vec<Secret>,
    fetched: AtomicU64,
}

enum Place {
    Local(PathBuf),
    S3(opendal::blocking::Operator),
    Sftp(SftpFolder),
    /// REST and rclone. The type could write; only its reading half is called.
    Rustic(Arc<dyn WriteBackend>),
}

impl Storage {
    pub(super) fn connect(location: &Location) -> Result<Self, Error> {
        let (shown, hidden) = (location.shown(), location.hidden());
        let connected = match location.target()? {
            Target::Local(path) => Ok(Place::Local(path)),
            Target::S3(options) => s3(options).map_err(|error| error.to_string()).map(Place::S3),
            Target::Sftp(sftp) => Ok(Place::Sftp(SftpFolder::new(sftp))),
            Target::Rest(url) => rustic(&format!("rest:{url}")).map(Place::Rustic),
            Target::Rclone(remote) => rustic(&format!("rclone:{remote}")).map(Place::Rustic),
        };
        let place = connected.map_err(|words| {
            let error = Error::operator(format!("cannot open repository {shown}")).detail(hide(words, &hidden));
            if shown.starts_with("rclone:") {
                error.hint("Check that `rclone` is installed and that `rclone lsd` shows the remote.")
            } else {
                error.hint("Check the repository's location and the settings of its storage.")
            }
        })?;
        Ok(Self { place, shown, hidden, fetched: AtomicU64::new(0) })
    }

    /// Bytes of repository files that were fetched since the repository was opened; listings are not counted.
    pub(super) fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// How many requests at once are worth while: a disk has no latency to hide, but what comes from it is decrypted,
    /// decompressed and hashed.
    pub(super) fn parallel(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        if matches!(self.place, Place::Local(_)) { cores().clamp(2, 8) } else { 8 }
    }

    /// So many bytes between two parts of a pack cost less to read than a further request does.
    pub(super) fn gap(&self) -> u32 {
        if matches!(self.place, Place::Local(_)) { 16 << 10 } else { 256 << 10 }
    }

    /// Names and sizes of all files of one kind that are named as repository files are.
    pub(super) fn list(&self, kind: Stored) -> Result<Vec<(Id, u64)>, Failure> {
        let folder = kind.folder();
        let listed = match &self.place {
            Place::Local(root) => list_local(&root.join(folder)).map_err(Trouble::from),
            Place::S3(operator) => list_s3(operator, folder).map_err(Trouble::from),
            Place::Sftp(sftp) => sftp.list(folder),
            Place::Rustic(backend) => match kind.rustic() {
                // The protocols can list locks, but this library cannot ask for them.
                None => Ok(Vec::new()),
                Some(kind) => backend
                    .list_with_size(kind)
                    .map(|files| files.into_iter().map(|(id, size)| (id.to_hex().to_string(), size.into())).collect())
                    .map_err(Trouble::from),
            },
        };
        let listed = listed.map_err(|trouble| self.failure(trouble, "list", folder))?;
        Ok(listed.into_iter().filter_map(|(name, size)| Some((name.parse().ok()?, size))).collect())
    }

    /// The config file, which alone is not named by its hash; its seal authenticates it.
    pub(super) fn read_config(&self) -> Result<Bytes, Failure> {
        self.fetch(Stored::Config, &Id::default(), None)
    }

    /// A whole file, proven by its name. `size` is what the listing said.
    pub(super) fn read_whole(&self, kind: Stored, id: &Id, size: u64) -> Result<Bytes, Failure> {
        if size > MAX_DOCUMENT as u64 {
            return Err(self.damaged(&kind.file(id), format!("it has {}", text::bytes(size))));
        }
        let bytes = self.fetch(kind, id, None)?;
        if hash(&bytes) == *id {
            return Ok(bytes);
        }
        Err(self.damaged(&kind.file(id), "its SHA-256 is not its name".into()))
    }

    /// Whether locks can be listed and written: the library for REST and rclone cannot.
    pub(super) fn knows_locks(&self) -> bool {
        !matches!(self.place, Place::Rustic(_))
    }

    /// Writes a lock, named by its hash as everything is. Where locks cannot even be listed, none can be written.
    pub(super) fn write_lock(&self, sealed: &[u8]) -> Result<Id, Failure> {
        let id = hash(sealed);
        let path = Stored::Lock.path(&id);
        let written = match &self.place {
            Place::Local(root) => write_local(&root.join(path), sealed).map_err(Trouble::from),
            Place::S3(operator) => operator.write(&path, sealed.to_vec()).map(drop).map_err(Trouble::from),
            Place::Sftp(sftp) => sftp.write(&path, sealed),
            Place::Rustic(_) => Err(unsupported()),
        };
        written.map(|()| id).map_err(|trouble| self.failure(trouble, "write", &Stored::Lock.file(&id)))
    }

    /// Removes a lock that we wrote.
    pub(super) fn remove_lock(&self, id: &Id) -> Result<(), Failure> {
        let path = Stored::Lock.path(id);
        let removed = match &self.place {
            Place::Local(root) => fs::remove_file(root.join(path)).map_err(Trouble::from),
            Place::S3(operator) => operator.delete(&path).map_err(Trouble::from),
            Place::Sftp(sftp) => sftp.remove(&path),
            Place::Rustic(_) => Err(unsupported()),
        };
        removed.map_err(|trouble| self.failure(trouble, "remove", &Stored::Lock.file(id)))
    }

    /// A part of a pack; what it holds is proven by its blobs.
    pub(super) fn read_part(&self, pack: &Id, offset: u32, length: u32) -> Result<Bytes, Failure> {
        let bytes = self.fetch(Stored::Pack, pack, Some((offset, length)))?;
        if bytes.len() == length as usize {
            return Ok(bytes);
        }
        Err(self.damaged(&Stored::Pack.file(pack), "it is shorter than the index says".into()))
    }

    fn fetch(&self, kind: Stored, id: &Id, part: Option<(u32, u32)>) -> Result<Bytes, Failure> {
        let path = kind.path(id);
        let fetched = match (&self.place, part) {
            (Place::Local(root), None) => fs::read(root.join(path)).map(Bytes::from).map_err(Trouble::from),
            (Place::Local(root), Some((offset, length))) => {
                read_local_part(&root.join(path), offset, length).map_err(Trouble::from)
            }
            (Place::S3(operator), part) => read_s3(operator, &path, part).map_err(Trouble::from),
            (Place::Sftp(sftp), part) => sftp.read(&path, part),
            (Place::Rustic(backend), part) => match (kind.rustic(), part) {
                (None, _) => Ok(Bytes::new()),
                (Some(kind), None) => backend.read_full(kind, id).map_err(Trouble::from),
                (Some(kind), Some((offset, length))) => {
                    backend.read_partial(kind, id, false, offset, length).map_err(Trouble::from)
                }
            },
        };
        let bytes = fetched.map_err(|trouble| self.failure(trouble, "read", &kind.file(id)))?;
        self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    /// The error for bytes that are not what they must be.
    pub(super) fn damaged(&self, object: &str, reason: String) -> Failure {
        let error = Error::backup(format!("{object} of repository {} is damaged", self.shown))
            .detail(hide(reason, &self.hidden))
            .hint("Other data of this repository is still usable: choose another recovery point or file.")
            .hint("Run `restic check --read-data` to learn the extent of the damage before anything is repaired.");
        Failure { why: Why::Damaged, error }
    }

    fn failure(&self, trouble: Trouble, action: &str, object: &str) -> Failure {
        let words = hide(trouble.words, &self.hidden);
        let error = Error::backup(format!("cannot {action} {object} of repository {}", self.shown)).detail(&words);
        let (why, error) = match trouble.cause {
            Cause::Missing => (Why::Missing, error.hint("It is not there; a prune may have removed it. Try again.")),
            Cause::Short => return self.damaged(object, words),
            Cause::Denied => (Why::Other, error.hint("Access was denied: check the permissions, keys or credentials.")),
            Cause::Unreachable => {
                let hint = "The storage does not answer: check its address, the network and that it runs.";
                (Why::Other, error.hint(hint))
            }
            Cause::Unknown => {
                (Why::Other, error.hint("Check that restic itself can read the repository: `restic snapshots`."))
            }
        };
        Failure { why, error }
    }
}

impl Stored {
    pub(super) fn folder(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Key => "keys",
            Self::Snapshot => "snapshots",
            Self::Index => "index",
            Self::Lock => "locks",
            Self::Pack => "data",
        }
    }

    /// What a message calls the file.
    pub(super) fn file(self, id: &Id) -> String {
        let name = match self {
            Self::Config => return "the config file".to_owned(),
            Self::Key => "key",
            Self::Snapshot => "snapshot",
            Self::Index => "index file",
            Self::Lock => "lock",
            Self::Pack => "pack",
        };
        format!("{name} {id}")
    }

    fn path(self, id: &Id) -> String {
        let name = id.to_hex();
        match self {
            Self::Config => "config".to_owned(),
            Self::Pack => format!("data/{}/{}", &name[..2], &*name),
            _ => format!("{}/{}", self.folder(), &*name),
        }
    }

    fn rustic(self) -> Option<FileType> {
        Some(match self {
            Self::Config => FileType::Config,
            Self::Key => FileType::Key,
            Self::Snapshot => FileType::Snapshot,
            Self::Index => FileType::Index,
            Self::Lock => return None,
            Self::Pack => FileType::Pack,
        })
    }
}

pub(super) fn hash(bytes: &[u8]) -> Id {
    Id::new(Sha256::digest(bytes).into())
}

/// What went wrong, in the words of whoever said so.
pub(super) struct Trouble {
    pub cause: Cause,
    pub words: String,
}

#[derive(Clone, Copy)]
pub(super) enum Cause {
    Missing,
    /// There, and shorter than it must be.
    Short,
    Denied,
    Unreachable,
    Unknown,
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        let cause = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Cause::Missing,
            io::ErrorKind::UnexpectedEof => Cause::Short,
            io::ErrorKind::PermissionDenied => Cause::Denied,
            _ => Cause::Unknown,
        };
        Self { cause, words: error.to_string() }
    }
}

impl From<opendal::Error> for Trouble {
    fn from(error: opendal::Error) -> Self {
        let words = with_sources(&error);
        let cause = match error.kind() {
            opendal::ErrorKind::NotFound => Cause::Missing,
            opendal::ErrorKind::RangeNotSatisfied => Cause::Short,
            opendal::ErrorKind::PermissionDenied => Cause::Denied,
            _ => cause_in(&words),
        };
        Self { cause, words }
    }
}

impl From<Box<RusticError>> for Trouble {
    fn from(error: Box<RusticError>) -> Self {
        let words = error.source().map_or_else(|| error.display_log(), with_sources);
        Self { cause: cause_in(&words), words }
    }
}

/// `rustic_backend` hides the HTTP client's error type, so that its text is the only place that holds the cause.
fn cause_in(words: &str) -> Cause {
    let holds = |marks: &[&str]| marks.iter().any(|mark| words.contains(mark));
    if holds(&["404 Not Found", "NoSuchBucket"]) {
        Cause::Missing
    } else if holds(&["416 Range Not Satisfiable"]) {
        Cause::Short
    } else if holds(&["401 Unauthorized", "403 Forbidden"]) {
        Cause::Denied
    } else if holds(&[
        "error sending request",
        "onnection refused",
        "dns error",
        "timed out",
        "timeout",
        "502 Bad Gateway",
        "503 Service",
    ]) {
        Cause::Unreachable
    } else {
        Cause::Unknown
    }
}

fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        next = source.source();
    }
    words
}

fn hide(words: String, hidden: &[Secret]) -> String {
    hidden.iter().fold(words, |words, secret| words.replace(secret.reveal(), "***"))
}

fn rustic(url: &str) -> Result<Arc<dyn WriteBackend>, String> {
    let options = [("retry", RETRIES.to_string()), ("timeout", format!("{}s", TIMEOUT.as_secs()))];
    BackendOptions::default()
        .repository(url)
        .options(options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>())
        .to_backends()
        .map(|backends| backends.repository())
        .map_err(|error| error.display_log())
}

/// The runtime that the asynchronous clients run in; callers of this module are ordinary blocking threads.
pub(super) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let built = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("repository")
            .enable_all()
            .build();
        match built {
            Ok(runtime) => runtime,
            Err(error) => panic!("BUG: no threads for the repository's storage: {error}"),
        }
    })
}

fn s3(options: BTreeMap<&'static str, String>) -> opendal::Result<opendal::blocking::Operator> {
    let options = options.into_iter().map(|(name, value)| (name.to_owned(), value));
    let operator = opendal::Operator::via_iter("s3", options)?
        .layer(TimeoutLayer::new().with_timeout(TIMEOUT).with_io_timeout(TIMEOUT))
        .layer(RetryLayer::new().with_max_times(RETRIES).with_jitter());
    let _guard = runtime().enter();
    opendal::blocking::Operator::new(operator)
}

fn list_s3(operator: &opendal::blocking::Operator, folder: &str) -> opendal::Result<Vec<(String, u64)>> {
    let entries = operator.list(&format!("{folder}/"))?;
    let files = entries.into_iter().filter(|entry| entry.metadata().is_file());
    Ok(files.map(|entry| (entry.name().to_owned(), entry.metadata().content_length())).collect())
}

fn read_s3(operator: &opendal::blocking::Operator, path: &str, part: Option<(u32, u32)>) -> opendal::Result<Bytes> {
    let Some((offset, length)) = part else { return Ok(operator.read(path)?.to_bytes()) };
    let range = u64::from(offset)..u64::from(offset) + u64::from(length);
    let options = opendal::options::ReadOptions { range: range.into(), ..Default::default() };
    Ok(operator.read_options(path, options)?.to_bytes())
}

fn unsupported() -> Trouble {
    Trouble { cause: Cause::Unknown, words: "this storage's library does not know locks".into() }
}

/// Under its name only when it is whole: others read locks at any time.
fn write_local(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(folder)?;
    io::Write::write_all(&mut file, bytes)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

fn list_local(folder: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(metadata) if metadata.is_file() => {
                files.push((entry.file_name().to_string_lossy().into_owned(), metadata.len()));
            }
            Ok(_) => {}
            // Removed since the folder was read: a prune or an unlock is at work.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

fn read_local_part(path: &Path, offset: u32, length: u32) -> io::Result<Bytes> {
    let mut part = vec![0; length as usize];
    fs::File::open(path)?.read_exact_at(&mut part, offset.into())?;
    Ok(part.into())
}
