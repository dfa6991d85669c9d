//! One file of a snapshot, at random access.
//!
//! ```text
//!   read(offset) -> which blob covers it -> the few blobs kept -> else read ahead -> else fetched now
//! ```
//!
//! Opening costs nothing but the file's list of blobs. Reading costs the blobs that cover what is read, about 1 MiB
//! each, whatever the size of the file. A reader that goes on in order gets the next blobs from threads that fetch,
//! decrypt and decompress them meanwhile; how far they run ahead grows with how long the reader has gone straight on,
//! so that a reader that jumps does not pay for blobs it will never use.
//!
//! Invariant: memory is bounded by [`KEPT`] and [`AHEAD`] (or one blob each, where a blob is larger), plus 40 bytes for
//! each blob of the file.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustic_core::Id;

use super::Repository;
use super::index::BlobKind;
use crate::error::{Error, Result};

/// Bytes of blobs that are kept after they were read.
const KEPT: usize = 6 << 20;
/// Bytes of blobs that are fetched ahead.
const AHEAD: usize = 8 << 20;
/// How many blobs in a row make a reader one that goes straight on.
const STRAIGHT: usize = 2;

/// A file of a snapshot. Its errors are [`io::Error`]s that carry ours: [`Error::from_read`] takes it out again.
pub struct File {
    blobs: Arc<Blobs>,
    position: u64,
    kept: VecDeque<(usize, Arc<Vec<u8>>)>,
    /// The blob that was read last, and how many were read in a row before it.
    last: Option<usize>,
    run: usize,
    ahead: Option<Ahead>,
}

struct Blobs {
    repository: Repository,
    /// For messages: `/var/backups/db.dump of snapshot 1234abcd`.
    name: String,
    ids: Vec<Id>,
    /// Where each blob ends in the file.
    ends: Vec<u64>,
    largest: usize,
}

impl File {
    pub(super) fn new(repository: Repository, name: String, ids: Vec<Id>) -> Result<Self> {
        let mut ends = Vec::with_capacity(ids.len());
        let (mut end, mut largest) = (0_u64, 1);
        for id in &ids {
            let length = repository.blob_length(id).map_err(|error| in_file(&name, error))?;
            end += u64::from(length);
            largest = largest.max(length as usize);
            ends.push(end);
        }
        let blobs = Arc::new(Blobs { repository, name, ids, ends, largest });
        Ok(Self { blobs, position: 0, kept: VecDeque::new(), last: None, run: 0, ahead: None })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.blobs.ends.last().copied().unwrap_or_default()
    }

    /// Whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn blob(&mut self, number: usize) -> Result<Arc<Vec<u8>>> {
        if let Some((_, blob)) = self.kept.iter().find(|(kept, _)| *kept == number) {
            return Ok(blob.clone());
        }
        self.run = if self.last.is_some_and(|last| last + 1 == number) { self.run + 1 } else { 0 };
        self.last = Some(number);
        if self.ahead.as_ref().is_some_and(|ahead| ahead.expected != number) {
            self.ahead = None;
        }
        let blob = if let Some(ahead) = &mut self.ahead {
            ahead.take(number, self.run / 2)
        } else {
            // Started before our own fetch, so that both are under way at the same time.
            if self.run >= STRAIGHT && number + 1 < self.blobs.ids.len() {
                self.ahead = Some(Ahead::start(&self.blobs, number + 1));
            }
            self.blobs.fetch(number)
        }?;
        while !self.kept.is_empty() && self.kept.iter().map(|(_, kept)| kept.len()).sum::<usize>() + blob.len() > KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((number, blob.clone()));
        Ok(blob)
    }
}

impl Blobs {
    fn fetch(&self, number: usize) -> Result<Arc<Vec<u8>>> {
        let blob =
            self.repository.blob(BlobKind::Data, &self.ids[number]).map_err(|error| in_file(&self.name, error))?;
        let begin = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        if begin + blob.len() as u64 == self.ends[number] {
            return Ok(Arc::new(blob));
        }
        Err(Error::backup(format!(
            "{} is damaged: blob {} has another length than the index says",
            self.name, self.ids[number]
        )))
    }
}

fn in_file(name: &str, mut error: Error) -> Error {
    error.message = format!("cannot read {name}: {}", error.message);
    error
}

impl Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.position >= self.len() {
            return Ok(0);
        }
        let number = self.blobs.ends.partition_point(|end| *end <= self.position);
        let blob = self.blob(number).map_err(io::Error::other)?;
        let left = usize::try_from(self.blobs.ends[number] - self.position).unwrap_or(usize::MAX);
        let rest = &blob[blob.len() - left.min(blob.len())..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.position += length as u64;
        Ok(length)
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.len().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

/// Threads that fetch the blobs that come next. They end when this is dropped, or when the file ends.
struct Ahead {
    blobs: Arc<Blobs>,
    shared: Arc<Shared>,
    /// The blob that the reader takes next, if it goes straight on.
    expected: usize,
    /// The most blobs that may wait.
    most: usize,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The next blob that a thread takes on.
    next: usize,
    /// Blobs from here on are not wanted yet.
    limit: usize,
    ready: BTreeMap<usize, Result<Arc<Vec<u8>>>>,
    threads: usize,
    stopped: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ahead {
    fn start(blobs: &Arc<Blobs>, first: usize) -> Self {
        let most = (AHEAD / blobs.largest).clamp(1, 16);
        let threads = blobs.repository.parallel().div_ceil(2).min(most);
        let state = State { next: first, limit: first + 1, ready: BTreeMap::new(), threads, stopped: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        for _ in 0..threads {
            let worker = Worker { blobs: blobs.clone(), shared: shared.clone() };
            let spawned = std::thread::Builder::new().name("read ahead".into()).spawn(move || worker.run());
            // Without a thread the worker is dropped, which takes it off the count: `take` then fetches by itself.
            drop(spawned);
        }
        Self { blobs: blobs.clone(), shared, expected: first, most }
    }

    /// The blob that is expected; lets the threads run up to `window` blobs beyond it.
    fn take(&mut self, number: usize, window: usize) -> Result<Arc<Vec<u8>>> {
        self.expected = number + 1;
        let mut state = self.shared.state();
        state.limit = number + 1 + window.clamp(1, self.most);
        self.shared.changed.notify_all();
        loop {
            if let Some(blob) = state.ready.remove(&number) {
                return blob;
            }
            if state.threads == 0 {
                drop(state);
                return self.blobs.fetch(number);
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.shared.state().stopped = true;
        self.shared.changed.notify_all();
    }
}

struct Worker {
    blobs: Arc<Blobs>,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(self) {
        loop {
            let mut state = self.shared.state();
            let number = loop {
                if state.stopped || state.next >= self.blobs.ids.len() {
                    return;
                }
                if state.next < state.limit {
                    break state.next;
                }
                state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            state.next += 1;
            drop(state);
            let blob = self.blobs.fetch(number);
            self.shared.state().ready.insert(number, blob);
            self.shared.changed.notify_all();
        }
    }
}

impl Drop for Worker {
    /// Also after a panic: a reader must never wait for a thread that is gone.
    fn drop(&mut self) {
        self.shared.state().threads -= 1;
        self.shared.changed.notify_all();
    }
}
