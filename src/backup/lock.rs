//! Locks as restic makes them. A shared one of ours keeps a `restic prune` from taking packs away while we read; one of
//! somebody else is told of. We hold one where the storage lets us write, and read on without it where it does not: what a
//! prune moves is found again in the new index.
//!
//! Source: restic's `doc/design.rst`, "Locks".

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use chrono::{DateTime, FixedOffset, Local, Utc};
use nix::errno::Errno;
use rustic_core::Id;
use serde::{Deserialize, Serialize};

use super::Repository;
use super::storage::{Failure, Stored, Why};
use crate::error::Error;
use crate::text;

/// restic refreshes its locks this often,
pub const REFRESH: Duration = Duration::from_mins(5);
/// and takes one for stale that is older than this.
const STALE_MINUTES: i64 = 30;
/// Stands behind the user's name, so that people and we ourselves know our locks.
const OURS: &str = " (lifeboat)";

/// What a lock file says.
#[derive(Serialize, Deserialize)]
struct LockOfFile {
    time: DateTime<FixedOffset>,
    #[serde(default)]
    exclusive: bool,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    pid: u64,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
}

impl LockOfFile {
    fn ours() -> Self {
        let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
        let host = nix::unistd::gethostname().ok().and_then(|host| host.into_string().ok());
        Self {
            time: Local::now().fixed_offset(),
            exclusive: false,
            hostname: host.unwrap_or_default(),
            username: user.map(|user| user.name).unwrap_or_default() + OURS,
            pid: std::process::id().into(),
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
        }
    }

    /// Whether it is of a process of ours on this machine that was killed.
    fn is_left(&self) -> bool {
        let here = Self::ours();
        let process = i32::try_from(self.pid).unwrap_or(i32::MAX);
        let gone = || nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), None) == Err(Errno::ESRCH);
        self.username == here.username && self.hostname == here.hostname && self.pid > 0 && gone()
    }

    fn is_stale(&self) -> bool {
        self.age().num_minutes() >= STALE_MINUTES
    }

    fn age(&self) -> chrono::TimeDelta {
        Utc::now().signed_duration_since(self.time)
    }

    fn told(&self, repository: &str) -> String {
        let Self { hostname, username, pid, .. } = self;
        let since = text::duration(self.age().to_std().unwrap_or_default());
        let meaning = if self.is_stale() {
            "It is stale: if that process is gone, `restic unlock` removes it"
        } else {
            "A prune or check may be running: reading goes on, but what is being pruned may go away"
        };
        format!(
            "repository {repository} was locked exclusively {since} ago by process {pid} of {username} on {hostname}. {meaning}."
        )
    }
}

/// A shared lock of ours; removed when dropped.
#[derive(Debug)]
pub struct SharedLock {
    /// Dropped to end the thread that refreshes the lock.
    stop: Option<Sender<()>>,
    refreshing: Option<JoinHandle<()>>,
}

impl Repository {
    /// What else uses the repository now, and whether we can keep a prune away, one sentence each: reading goes on. Locks
    /// can be seen in local, S3 and SFTP repositories.
    pub fn warnings(&self) -> Vec<String> {
        let exclusive = self.others().into_iter().filter(|lock| lock.exclusive);
        let mut warnings: Vec<_> = exclusive.map(|lock| lock.told(self.shown())).collect();
        if warnings.is_empty()
            && self.0.storage.knows_locks()
            && let Err(failure) = self.write_lock().and_then(|id| self.0.storage.remove_lock(&id))
        {
            let why = failure.error.detail.unwrap_or(failure.error.message);
            warnings.push(format!(
                "repository {} cannot be locked ({why}): it is read all the same, and what a prune moves meanwhile is found again, \
                 but what it removes is gone.",
                self.shown()
            ));
        }
        warnings
    }

    /// Holds a shared lock, made anew each time that `every` has passed. `None`: somebody holds the repository exclusively,
    /// or it cannot be written, or is behind REST or rclone, whose library does not know locks.
    pub fn lock(&self, every: Duration) -> Option<SharedLock> {
        if self.others().iter().any(|lock| lock.exclusive && !lock.is_stale()) {
            return None;
        }
        let first = self.write_lock().ok()?;
        let (stop, stopped) = channel();
        let repository = self.clone();
        let refreshing = std::thread::Builder::new().name("lock".into()).spawn(move || {
            let mut held = first;
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                // The new one is there before the old one goes; one that cannot be made leaves the old one to its age.
                if let Ok(new) = repository.write_lock() {
                    let _ = repository.0.storage.remove_lock(&held);
                    held = new;
                }
            }
            // One that cannot be removed is stale in half an hour.
            let _ = repository.0.storage.remove_lock(&held);
        });
        if refreshing.is_err() {
            let _ = self.0.storage.remove_lock(&first);
        }
        Some(SharedLock { stop: Some(stop), refreshing: Some(refreshing.ok()?) })
    }

    /// Removes locks that killed processes of ours have left on this machine: they would keep a prune away for nothing.
    pub fn remove_left_locks(&self) {
        self.others();
    }

    /// The locks of others; those that killed processes of ours have left are removed on the way.
    fn others(&self) -> Vec<LockOfFile> {
        let mut others = Vec::new();
        for (id, size) in self.0.storage.list(Stored::Lock).unwrap_or_default() {
            let json = self.document(Stored::Lock, &id, size).unwrap_or_default();
            let Ok(lock) = serde_json::from_slice::<LockOfFile>(&json) else { continue };
            if lock.is_left() {
                // One that cannot be removed is stale in half an hour.
                let _ = self.0.storage.remove_lock(&id);
            } else {
                others.push(lock);
            }
        }
        others
    }

    fn write_lock(&self) -> Result<Id, Failure> {
        let cannot = |words: String| Failure {
            why: Why::Other,
            error: Error::bug("our lock of the repository cannot be sealed").detail(words),
        };
        let json = serde_json::to_vec(&LockOfFile::ours()).map_err(|error| cannot(error.to_string()))?;
        self.0.storage.write_lock(&self.0.seal.seal(&json).map_err(cannot)?)
    }
}

impl Drop for SharedLock {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(refreshing) = self.refreshing.take() {
            let _ = refreshing.join();
        }
    }
}
