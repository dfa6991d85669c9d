//! The journal: what was asked, answered, meant and done, as JSON Lines, one folder a recovery.
//!
//! Each line carries the SHA-256 of the line before it, so that an edit, a removal or a reordering shows. A line is on disk
//! (file and folder synced) before [`Journal::write`] returns: what is intended is known before it is done, and what was
//! done is known before anybody is told.
//!
//! ```text
//!   {"n":7,"at":"2026-01-15T14:32:05.118Z","prev":"9f2c…","entry":"intent","step":0,…}
//! ```

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Flow;
use super::record::Fact;
use super::systems::Evidence;
use crate::error::{Error, Result};

/// The form of a journal; another one is refused with words.
pub const VERSION: u32 = 2;

const FILE: &str = "journal.jsonl";

/// Bytes that a run and its report fit into many times.
const RESERVED: i64 = 256 << 10;

/// Something that happened in a recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// The first line.
    Started {
        /// The recovery's id.
        recovery: String,
        /// Which flow it follows.
        flow: Flow,
        /// The configured system's name.
        system: String,
        /// Who started it.
        operator: Operator,
    },
    /// Another process took the recovery over, since the one that held it had ended.
    Resumed {
        /// Who did.
        operator: Operator,
    },
    /// Another console looks on, and may answer.
    Attached {
        /// Who is at it.
        operator: Operator,
    },
    /// The operator decided something.
    Answered {
        /// The answer, whole.
        fact: Fact,
    },
    /// The last answer, and all that followed from it, no longer holds.
    WentBack,
    /// A look that took work: what and with what outcome, for a person.
    Looked {
        /// What was looked at, in words.
        what: String,
        /// What was found, in words.
        outcome: String,
    },
    /// The operator typed the phrase; `plan` is the plan itself, `hash` what they saw.
    Consented {
        /// Of the plan, SHA-256 in hex.
        hash: String,
        /// The phrase, in full.
        typed: String,
        /// With everything in it, so that the journal alone tells what was approved.
        plan: super::plan::Plan,
        /// Who typed it.
        by: Operator,
        /// Who typed it too, where two people are required.
        second: Option<Operator>,
    },
    /// About to do a step.
    Intent {
        /// Its place in the plan, from 0.
        step: usize,
        /// As [`Step::title`](super::plan::Step::title) words it.
        title: String,
        /// The plan's.
        hash: String,
    },
    /// A step was done, and is committed where it is a transaction.
    Applied {
        /// Its place in the plan, from 0.
        step: usize,
        /// What its own checks saw.
        evidence: Evidence,
    },
    /// A step failed: it was rolled back, or its evidence is not what the plan promised.
    NotApplied {
        /// Its place in the plan, from 0.
        step: usize,
        /// The error's message.
        error: String,
    },
    /// The connection was lost before the outcome was known.
    Unknown {
        /// Its place in the plan, from 0.
        step: usize,
        /// The error's message.
        error: String,
    },
    /// Nothing is left to do: a plan came to its end, or the recovery was left and what it had staged is gone.
    Finished {
        /// How it ended.
        outcome: Outcome,
    },
}

/// How a run of a plan ended, or a recovery that came to none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every step of the plan was done.
    Recovered,
    /// A step failed, and none after it was tried.
    Failed,
    /// Left before anything was changed.
    Abandoned,
}

/// Who did it, and from where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// The name of this process's user; `unknown` when it has none.
    pub user: String,
    /// Who logged in, where that is somebody else: the account is shared, and entered by sudo or su.
    pub login: Option<String>,
    /// The machine that Lifeboat runs on.
    pub host: String,
    /// The SSH client's address, when there is one.
    pub from: Option<String>,
    /// The terminal's device, when there is one.
    pub terminal: Option<String>,
    /// The process.
    pub pid: u32,
}

impl Operator {
    /// The person, as far as the machine knows.
    pub fn person(&self) -> &str {
        self.login.as_deref().unwrap_or(&self.user)
    }

    /// Who, on which machine, from where and at which terminal, in words.
    pub fn told(&self) -> String {
        let account = self.login.as_ref().map(|_| format!(" as {}", self.user)).unwrap_or_default();
        let mut told = format!("{}{account} on {}", self.person(), self.host);
        for (label, place) in [("connected from", &self.from), ("terminal", &self.terminal)] {
            if let Some(place) = place {
                told.extend([", ", label, " ", place]);
            }
        }
        told
    }

    /// The same person, by way of this process.
    #[must_use]
    pub fn here(mut self) -> Self {
        self.pid = std::process::id();
        self
    }
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Counts from 0, without gaps.
    pub n: u64,
    /// By this machine's clock, just before it was written.
    pub at: DateTime<Utc>,
    /// SHA-256, in hex, of the line before, without its line end; the first line's is over the form's name and version.
    pub prev: String,
    /// On the same level of the JSON object.
    #[serde(flatten)]
    pub entry: Entry,
}

/// An open journal, to append to.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    /// Locked, so that one process only writes; the lock dies with it.
    file: Flock<File>,
    next: u64,
    head: String,
    /// A write failed. What is on disk is not known since then, so nothing is written after it.
    broken: bool,
}

impl Journal {
    /// Creates the folder (mode 0700) and an empty journal (mode 0600) in it.
    pub fn create(folder: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::operator(format!("cannot create the recovery's folder {}", folder.display()))
                .detail(error)
                .hint("Check that the folder's parent can be written and that the disk is not full; XDG_STATE_HOME chooses another place.")
        };
        // The first recovery of a user makes the state folder, too: what leads to a journal has to outlive a power cut with it.
        let missing = folder.ancestors().skip(1).take_while(|parent| !parent.exists()).count();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let file = File::options().create_new(true).append(true).mode(0o600).open(folder.join(FILE)).map_err(failed)?;
        for made in folder.ancestors().take(missing + 2) {
            sync_folder(made).map_err(failed)?;
        }
        let file = locked(file).map_err(|(_, error)| failed(error.into()))?;
        Ok(Self { folder: folder.to_owned(), file, next: 0, head: seed(), broken: false })
    }

    /// Opens the journal of a recovery whose process has ended, and gives what is in it.
    ///
    /// Errors: the recovery is still in another process's hands; the chain does not hold.
    pub fn open(folder: &Path) -> Result<(Self, Vec<Line>)> {
        let path = folder.join(FILE);
        let failed = |error: std::io::Error| {
            Error::operator(format!("cannot open the journal {}", path.display()))
                .detail(error)
                .hint("Check the recovery's id, and that the journal is yours: lifeboat status lists them.")
        };
        let file = File::options().append(true).read(true).open(&path).map_err(failed)?;
        let file = locked(file).map_err(|(_, error)| match error {
            Errno::EWOULDBLOCK => {
                let lines = read(folder).unwrap_or_default();
                let by = holder(&lines).map_or_else(String::new, |holder| format!(", process {}", holder.pid));
                Error::refused(format!("the recovery is still under way{by}")).hint(
                    "lifeboat abort asks it to stop first. A process that hangs or is suspended has to be killed.",
                )
            }
            error => failed(error.into()),
        })?;
        let (lines, sound) = whole(&path)?;
        // A line that was cut off was never acknowledged: what follows must not be glued to it.
        file.set_len(sound).and_then(|()| file.sync_all()).map_err(failed)?;
        let head = lines.last().map_or_else(seed, |(_, digest)| digest.clone());
        let lines: Vec<_> = lines.into_iter().map(|(line, _)| line).collect();
        Ok((Self { folder: folder.to_owned(), file, next: lines.len() as u64, head, broken: false }, lines))
    }

    /// Appends an entry and returns when it is on disk. An error here is final: nothing may be done that was not written.
    pub fn write(&mut self, entry: Entry) -> Result<()> {
        let line = Line { n: self.next, at: Utc::now(), prev: self.head.clone(), entry };
        let mut text = serde_json::to_string(&line)
            .map_err(|error| Error::bug("a journal entry cannot be written").detail(error))?;
        let head = digest(&text);
        text.push('\n');
        let cannot = || Error::operator(format!("cannot write the journal in {}", self.folder.display()));
        if self.broken {
            return Err(cannot().hint("An earlier write failed. Free some space or repair the disk, then start again."));
        }
        if self.file.metadata().is_ok_and(|facts| facts.nlink() == 0) {
            return Err(Error::operator(format!("the journal in {} was deleted", self.folder.display())).hint(
                "Nothing more is done that no journal knows of. lifeboat clean finds what is left in production.",
            ));
        }
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all());
        written.map_err(|error| {
            self.broken = true;
            cannot().detail(error).hint(
                "Nothing more is done that the journal does not know of. Free some space or repair the disk, then start again.",
            )
        })?;
        self.next += 1;
        self.head = head;
        Ok(())
    }

    /// Sets space aside, so that a disk that fills up meanwhile cannot keep the outcome from being written. Where the file
    /// system cannot do that, this does nothing.
    pub fn reserve(&self) -> Result<()> {
        let end = self.file.metadata().map_or(0, |facts| facts.len());
        let offset = i64::try_from(end).unwrap_or(i64::MAX);
        match fallocate(&*self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, RESERVED) {
            Err(error @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EIO)) => {
                Err(Error::operator(format!("there is no room for the journal in {}", self.folder.display()))
                    .detail(std::io::Error::from(error))
                    .hint("Free some space, or choose another place with XDG_STATE_HOME, then start again."))
            }
            _ => Ok(()),
        }
    }

    /// Gives back what [`reserve`](Self::reserve) set aside and nobody needed.
    pub fn release(&self) {
        // A reserve that stays costs space and nothing else.
        let _ = self.file.metadata().and_then(|facts| self.file.set_len(facts.len()));
    }

    /// The SHA-256 of the last line: whoever keeps it can tell whether the journal was cut later.
    pub fn head(&self) -> &str {
        &self.head
    }

    /// Holds `journal.jsonl` and whatever else belongs to the recovery.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Reads a journal and checks its chain. The error names the first line that does not fit. A last line without its end was
/// being written when the process died, and counts for nothing.
pub fn read(folder: &Path) -> Result<Vec<Line>> {
    Ok(whole(&folder.join(FILE))?.0.into_iter().map(|(line, _)| line).collect())
}

/// The SHA-256 of each line, in order: every head that the journal has had.
pub fn heads(folder: &Path) -> Result<Vec<String>> {
    Ok(whole(&folder.join(FILE))?.0.into_iter().map(|(_, digest)| digest).collect())
}

/// The whole lines with their digests, and where they end.
fn whole(path: &Path) -> Result<(Vec<(Line, String)>, u64)> {
    let wrong = |n: usize, why: &str| {
        Error::operator(format!("line {} of {} {why}", n + 1, path.display()))
            .hint("The journal was edited or damaged from that line on; what stands before it is sound.")
    };
    let cannot = |error: std::io::Error| {
        Error::operator(format!("cannot read the journal {}", path.display()))
            .detail(error)
            .hint("Check the recovery's id, which lifeboat status lists, and the disk.")
    };
    let mut file = File::open(path).map(BufReader::new).map_err(cannot)?;
    let (mut lines, mut end, mut text): (Vec<(Line, String)>, u64, String) = (Vec::new(), 0, String::new());
    loop {
        let n = lines.len();
        text.clear();
        let length = match file.read_line(&mut text) {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return Err(wrong(n, "is not text")),
            Err(error) => return Err(cannot(error)),
        };
        let Some(text) = text.strip_suffix('\n') else { return Ok((lines, end)) };
        let line: Line =
            serde_json::from_str(text).map_err(|error| wrong(n, "is not a journal entry").detail(error))?;
        let follows = lines.last().map_or_else(seed, |(_, digest)| digest.clone());
        if n == 0 && line.prev != follows {
            return Err(Error::operator(format!(
                "{} is not a journal that this version of Lifeboat writes",
                path.display()
            ))
            .hint("Settle it with the version that wrote it, or its beginning was changed."));
        }
        if line.prev != follows || line.n != n as u64 {
            return Err(wrong(n, "does not follow from the line before it"));
        }
        lines.push((line, digest(text)));
        end += length as u64;
    }
}

/// Whether a process has the recovery in its hands.
pub fn is_held(folder: &Path) -> bool {
    File::open(folder.join(FILE))
        .is_ok_and(|file| matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK))))
}

/// Who took the recovery in hand last.
pub fn holder(lines: &[Line]) -> Option<&Operator> {
    lines.iter().rev().find_map(|line| match &line.entry {
        Entry::Started { operator, .. } | Entry::Resumed { operator } => Some(operator),
        _ => None,
    })
}

/// Whether the last run came to its end, or nothing was left to run.
pub fn is_finished(lines: &[Line]) -> bool {
    lines.last().is_some_and(|line| matches!(line.entry, Entry::Finished { .. }))
}

fn locked(file: File) -> Result<Flock<File>, (File, Errno)> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
}

/// The recoveries beneath a state folder, newest first.
pub fn list(state: &Path) -> Vec<String> {
    let folder = fs::read_dir(state.join("recoveries"));
    let mut ids: Vec<_> =
        folder.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    ids.sort_unstable_by(|a, b| b.cmp(a));
    ids
}

/// A recovery's id: sorts by time, and fits into a schema's name: `20260115_143205_a1b2`. What follows the second is its
/// fraction, in 65,536ths: two that begin within one second are told apart and in order. Of two that begin within the
/// same 15 µs, [`Journal::create`] refuses the second.
pub fn new_id(now: DateTime<Utc>) -> String {
    let fraction = (u64::from(now.timestamp_subsec_nanos()) << 16) / 1_000_000_000;
    // A leap second is the end of the second before it.
    format!("{}_{:04x}", now.format("%Y%m%d_%H%M%S"), fraction.min(0xffff))
}

/// Who is at the keyboard.
pub fn operator() -> Operator {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.name);
    let login = login().filter(|login| user.as_ref() != Some(login));
    let host = nix::unistd::gethostname().ok().and_then(|host| host.into_string().ok());
    let from = std::env::var("SSH_CONNECTION").ok().and_then(|from| from.split(' ').next().map(str::to_owned));
    let terminal = nix::unistd::ttyname(std::io::stdin()).ok().map(|path| path.display().to_string());
    Operator {
        user: user.unwrap_or_else(|| "unknown".into()),
        login,
        host: host.unwrap_or_else(|| "unknown".into()),
        from,
        terminal,
        pid: std::process::id(),
    }
}

/// Who logged in, by what the kernel keeps of it since (`pam_loginuid`); where nothing set that, by what sudo says.
fn login() -> Option<String> {
    let kept = fs::read_to_string("/proc/self/loginuid").ok().and_then(|text| text.trim().parse::<u32>().ok());
    let number = kept.filter(|uid| *uid != u32::MAX);
    let user = number.and_then(|uid| nix::unistd::User::from_uid(uid.into()).ok().flatten()).map(|user| user.name);
    user.or_else(|| std::env::var("SUDO_USER").ok())
}

fn seed() -> String {
    digest(&format!("lifeboat journal {VERSION}"))
}

fn digest(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(folder: &Path) -> PathBuf {
        let folder = folder.join("r");
        let mut journal = Journal::create(&folder).unwrap();
        for outcome in ["3 points", "1 dump", "5 tables"] {
            journal.write(Entry::Looked { what: "look".into(), outcome: outcome.into() }).unwrap();
        }
        folder
    }

    #[test]
    fn every_edit_and_removal_is_found() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = journal(temporary.path());
        assert_eq!(read(&folder).unwrap().len(), 3);
        let path = folder.join(FILE);
        let sound = fs::read_to_string(&path).unwrap();
        let edited = sound.replace("3 points", "4 points");
        fs::write(&path, edited).unwrap();
        assert!(read(&folder).unwrap_err().message.starts_with("line 2 of"));
        let removed: Vec<_> = sound.lines().enumerate().filter(|(n, _)| *n != 1).map(|(_, line)| line).collect();
        fs::write(&path, removed.join("\n") + "\n").unwrap();
        assert!(read(&folder).unwrap_err().message.ends_with("does not follow from the line before it"));
    }

    #[test]
    fn fm_20_a_line_that_was_cut_off_counts_for_nothing_and_is_not_glued_to_the_next() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = journal(temporary.path());
        let path = folder.join(FILE);
        let sound = fs::read_to_string(&path).unwrap();
        for cut in 1..100 {
            fs::write(&path, &sound[..sound.len() - cut]).unwrap();
            assert_eq!(read(&folder).unwrap().len(), 2);
            let (mut journal, lines) = Journal::open(&folder).unwrap();
            assert_eq!(lines.len(), 2);
            journal.write(Entry::WentBack).unwrap();
            assert_eq!(read(&folder).unwrap().len(), 3);
        }
    }

    #[test]
    fn one_process_at_a_time_writes() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("r");
        let journal = Journal::create(&folder).unwrap();
        assert!(is_held(&folder));
        assert!(Journal::open(&folder).unwrap_err().message.starts_with("the recovery is still under way"));
        drop(journal);
        assert!(!is_held(&folder));
        Journal::open(&folder).unwrap();
    }

    #[test]
    fn ids_sort_by_time() {
        let at = |seconds, nanos| new_id(DateTime::from_timestamp(seconds, nanos).unwrap());
        let ids = [
            at(1_700_000_000, 0),
            at(1_700_000_000, 16_000),
            at(1_700_000_000, 999_999_999),
            at(1_700_000_001, 0),
            at(1_800_000_000, 0),
        ];
        assert!(ids.is_sorted_by(|a, b| a < b) && ids.iter().all(|id| id.len() == 20), "{ids:?}");
    }
}
