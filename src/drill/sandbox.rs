//! A private world to practise in: a real PostgreSQL server with a real database, or the files of a real file server; real
//! backups of them in a real, encrypted restic repository; and an incident that has just happened.
//!
//! ```text
//!   /tmp/lifeboat-drill-x7Kd2a/
//!     owner.lock     locked for as long as the owner lives; its first line is the mark by which `reap` knows us
//!     repository/    restic; password beside it
//!     file-server/   the tree of the `fileserver` snapshots
//!     pg/            rows: the server: its socket, and data/
//!     staging/       rows: dumps on their way into the repository
//!     base/ wal/     tables that were dropped: a base backup, and what the server archives
//!     clones/        the same: where clusters as of a moment are laid out
//!     other-disk/    files: what a link of the tree leads to, and nobody may touch
//!
//!   backups of the nights ... last backup | honest work | incident | honest work | too late a backup | you are called
//!                                02:15 UTC                  =  sandbox.incident()
//! ```
//!
//! Invariant: a sandbox cannot reach anybody's system. Nothing here takes an address: the only server it knows is the one
//! that it has created, by the socket in its own folder, the environment (`PG*`, `RESTIC_*`) is not passed on to the
//! programs it runs, and no configuration is read. What it hands out is its own connection string, which leads nowhere when
//! it has no server.
//!
//! Invariant: the truth is complete before the operator is called, and nothing but [`Sandbox::check`] reads it.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use chrono::{DateTime, NaiveTime, TimeDelta, Utc};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

use super::cluster::{Guard, programs};
use super::database::{Database, Ending};
use super::dropped::{BASE, CLONES, WAL};
use super::files::FileServer;
use super::scenarios::{Scenario, Story};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// Nights that have a backup.
pub(super) const NIGHTS: u32 = 5;
/// How long ago the last backup is at least, so that losing everything since then would hurt.
const LAST_BACKUP_AGE: TimeDelta = TimeDelta::hours(6);
const PREFIX: &str = "lifeboat-drill-";
const MARK: &str = "This folder is a sandbox of Lifeboat; the next drill removes it when its owner is gone.\n";
/// A Unix socket's path has at most 107 bytes; this is what we add to the temporary folder's, at most: a clone's.
const SOCKET_PATH_BYTES: usize =
    PREFIX.len() + "/xxxxxx/clones/lifeboat-clone-20260115_143205_a1b2/.s.PGSQL.5432".len();

/// Removes what the server's own guard leaves, once that one has stopped the server. A clone outlives the console that
/// started it: its server is stopped, if the process that its folder names lives there.
const REMOVE_REST: &str = r#"
for data in "$1"/clones/*/data; do
    pid=$(head -n 1 "$data/postmaster.pid" 2> /dev/null) || continue
    [ "$(readlink "/proc/$pid/cwd")" = "$(realpath "$data")" ] && kill -QUIT "$pid"
    while [ "$(readlink "/proc/$pid/cwd")" = "$(realpath "$data")" ]; do sleep 0.1; done
done
tries=0
while [ -e "$1/pg" ] && [ "$tries" -lt 600 ]; do sleep 0.1; tries=$((tries + 1)); done
[ -e "$1/pg" ] || rm -rf "$1"
"#;

/// A running sandbox. Dropping it stops its server and removes its folder.
#[derive(Debug)]
pub struct Sandbox {
    // In the order in which they must go: the server, then its files, then the claim on them.
    world: World,
    #[expect(dead_code, reason = "it acts when we are gone")]
    guard: Guard,
    #[expect(dead_code, reason = "locked as long as it is open")]
    owner: File,
    folder: TempDir,
    scenario: &'static Scenario,
    incident: DateTime<Utc>,
}

/// What the incident has hit.
#[derive(Debug)]
enum World {
    Rows(Database),
    Files(FileServer),
}

/// The end state compared with the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// At least one, in the order of the scenario.
    pub checks: Vec<Check>,
}

/// One number that has to be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is counted, in words for the operator.
    pub name: String,
    /// As the truth has it.
    pub expected: u64,
    /// As it is now.
    pub found: u64,
    /// Keys or names of a few of the wrong ones; empty when there is none.
    pub examples: String,
    /// Whether the two are equal.
    pub ok: bool,
}

impl Verdict {
    /// Everything is as it must be.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }
}

impl Sandbox {
    /// Builds the sandbox, tells the story, and returns when the operator would be called; takes about ten seconds.
    /// First removes what sandboxes of dead owners have left.
    pub fn create(scenario: &'static Scenario, progress: &Progress) -> Result<Self> {
        prerequisites(scenario)?;
        reap();
        let (folder, owner) = private_folder()?;
        let guard = Guard::start(REMOVE_REST, folder.path()).map_err(|error| failed("guard", error))?;
        let now = Utc::now();
        let nights = nights(now);
        let (world, incident) = match &scenario.story {
            Story::Rows(script) => {
                let ending = Ending::Damaged(script);
                let (database, incident) = Database::build(folder.path(), &nights, ending, progress)?;
                (World::Rows(database), incident)
            }
            Story::Gone => {
                let (database, incident) = Database::build(folder.path(), &nights, Ending::Gone, progress)?;
                (World::Rows(database), incident)
            }
            Story::Dropped(migration) => {
                let ending = Ending::Dropped(migration);
                let (database, incident) = Database::build(folder.path(), &nights, ending, progress)?;
                (World::Rows(database), incident)
            }
            Story::Files => {
                let (server, incident) = FileServer::build(folder.path(), &nights, now, progress)?;
                (World::Files(server), incident)
            }
        };
        Ok(Self { world, guard, owner, folder, scenario, incident })
    }

    /// The sandbox's own folder; it is gone when the sandbox is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How to connect to the damaged database. Where files are damaged there is none, and this leads nowhere: without it the
    /// environment's would be meant.
    pub fn conninfo(&self) -> String {
        match &self.world {
            World::Rows(database) => database.conninfo(),
            World::Files(_) => {
                format!("host={} user=nobody dbname=none", self.folder().join("no-server").display())
            }
        }
    }

    /// The file server's tree, where files are damaged.
    pub fn tree(&self) -> Option<&Path> {
        match &self.world {
            World::Rows(_) => None,
            World::Files(server) => Some(server.root()),
        }
    }

    /// The restic repository, as `RESTIC_REPOSITORY` takes it.
    pub fn repository(&self) -> PathBuf {
        self.folder().join("repository")
    }

    /// As `RESTIC_PASSWORD_FILE` takes it.
    pub fn password_file(&self) -> PathBuf {
        self.folder().join("password")
    }

    /// Where base backups are; nowhere unless tables were dropped.
    pub fn base_backups(&self) -> Vec<String> {
        self.archives().then(|| self.folder().join(BASE).display().to_string()).into_iter().collect()
    }

    /// Where the server archives its WAL, if it does.
    pub fn wal_archive(&self) -> Option<String> {
        self.archives().then(|| self.folder().join(WAL).display().to_string())
    }

    /// Where clusters as of a moment may be laid out: in the sandbox, so that they are gone when it is.
    pub fn clones(&self) -> Option<PathBuf> {
        self.archives().then(|| self.folder().join(CLONES))
    }

    fn archives(&self) -> bool {
        matches!(self.scenario.story, Story::Dropped(_))
    }

    /// When it happened: of rows, when the first of the bad transactions was committed, by the server's clock, to the
    /// microsecond; of dropped tables, the first whole second after that.
    pub fn incident(&self) -> DateTime<Utc> {
        self.incident
    }

    /// What the operator is told when called, in paragraphs of one line each.
    pub fn briefing(&self) -> String {
        let incident = self.incident.format("%Y-%m-%d %H:%M:%S UTC").to_string();
        self.fill(self.scenario.briefing.trim_end(), &incident)
    }

    /// An answers file that recovers from it.
    pub fn answers(&self) -> String {
        self.fill(self.scenario.answers, &self.incident.to_rfc3339())
    }

    /// What only this sandbox knows, in a text of the scenario.
    fn fill(&self, text: &str, incident: &str) -> String {
        let tree = self.tree().unwrap_or(self.folder()).display().to_string();
        text.replace("{incident}", incident).replace("{tree}", &tree).replace("{host}", &host())
    }

    /// Compares what is there now with what must be.
    pub fn check(&self) -> Result<Verdict> {
        let checks = match &self.world {
            World::Rows(database) => database.check(),
            World::Files(server) => server.check(),
        };
        checks.map(|checks| Verdict { checks })
    }
}

/// When the backups ran: 02:15 UTC of the nights before `now`, oldest first, the last of them old enough.
fn nights(now: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    let quarter_past_two = NaiveTime::MIN + TimeDelta::minutes(135);
    let limit = now - LAST_BACKUP_AGE;
    let today = limit.date_naive().and_time(quarter_past_two).and_utc();
    let last = if today <= limit { today } else { today - TimeDelta::days(1) };
    (0..NIGHTS).rev().map(|days| last - TimeDelta::days(days.into())).collect()
}

/// This machine's name.
pub(super) fn host() -> String {
    crate::recovery::journal::operator().host
}

/// Refuses when something that the scenario needs is not installed.
fn prerequisites(scenario: &Scenario) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let restic = std::env::split_paths(&path).any(|folder| folder.join("restic").is_file());
    let server = match scenario.story {
        Story::Rows(_) | Story::Gone | Story::Dropped(_) => programs().is_ok(),
        Story::Files => true,
    };
    let missing: Vec<_> = [("postgresql", server), ("restic", restic)]
        .iter()
        .filter_map(|(name, installed)| (!installed).then_some(*name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::operator(format!("a drill needs {}, not installed on this machine", missing.join(" and ")))
        .hint(format!("Install what is missing: sudo apt-get install {}", missing.join(" "))))
}

/// Not under `XDG_RUNTIME_DIR`: that is memory, often little, and root's is closed to the user who runs the server.
fn base_folder() -> PathBuf {
    let folder = std::env::temp_dir();
    if folder.as_os_str().len() + SOCKET_PATH_BYTES > 107 { PathBuf::from("/tmp") } else { folder }
}

/// A new folder that is ours, with its claim: the lock is taken before the mark is written, so a folder with a mark and
/// without a lock has a dead owner.
fn private_folder() -> Result<(TempDir, File)> {
    let base = base_folder();
    // The server of a sandbox that root makes runs as another user, who must get to its own folder inside.
    let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
    let create = || {
        let folder =
            tempfile::Builder::new().prefix(PREFIX).permissions(Permissions::from_mode(mode)).tempdir_in(&base)?;
        fs::set_permissions(folder.path(), Permissions::from_mode(mode))?;
        let mut owner =
            File::options().read(true).write(true).create_new(true).open(folder.path().join("owner.lock"))?;
        owner.lock()?;
        owner.write_all(MARK.as_bytes())?;
        Ok((folder, owner))
    };
    create().map_err(|error: std::io::Error| {
        Error::operator(format!("cannot create a folder for the sandbox in {}", base.display()))
            .detail(error)
            .hint("Set TMPDIR to a folder that you may write to.")
    })
}

/// Removes the sandboxes whose owners are gone, and returns how many there were. Their guards have seen to it already,
/// except when those were killed as well.
pub fn reap() -> usize {
    let entries = fs::read_dir(base_folder()).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .filter(|entry| reap_folder(&entry.path()).is_some())
        .count()
}

fn reap_folder(folder: &Path) -> Option<()> {
    let metadata = fs::symlink_metadata(folder).ok()?;
    if !metadata.is_dir() || metadata.uid() != geteuid().as_raw() {
        return None;
    }
    let mut owner = File::open(folder.join("owner.lock")).ok()?;
    owner.try_lock().ok()?;
    let mut mark = String::new();
    owner.read_to_string(&mut mark).ok()?;
    if mark != MARK {
        return None;
    }
    let clones = fs::read_dir(folder.join(CLONES)).into_iter().flatten().flatten();
    for server in clones.map(|clone| clone.path()).chain([folder.join("pg")]) {
        if let Ok(data) = server.join("data").canonicalize() {
            stop_server(&data);
        }
    }
    fs::remove_dir_all(folder).ok()
}

/// Stops the server of a data folder, when the process that its file names is one and lives there: by now the number
/// may be another program's.
fn stop_server(data: &Path) -> Option<()> {
    let pid: i32 = fs::read_to_string(data.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()?;
    let home = || fs::read_link(format!("/proc/{pid}/cwd")).ok().filter(|home| home == data);
    home()?;
    kill(Pid::from_raw(pid), Signal::SIGQUIT).ok()?;
    (0..600).find(|_| {
        std::thread::sleep(Duration::from_millis(20));
        home().is_none()
    });
    Some(())
}

/// Runs a program to its end with this input, and returns what it printed when that goes to a pipe.
pub(super) fn run(command: &mut Command, what: &str, stdout: Stdio, input: &[u8]) -> Result<String> {
    let child = command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| failed(what, error))?;
    // A program that stops reading has failed, and says why itself.
    child.stdin.take().and_then(|mut stdin| stdin.write_all(input).ok());
    finish(child.wait_with_output(), what)
}

pub(super) fn finish(output: std::io::Result<std::process::Output>, what: &str) -> Result<String> {
    let output = output.map_err(|error| failed(what, error))?;
    if !output.status.success() {
        return Err(failed(what, String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(super) fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

pub(super) fn failed(what: &str, why: impl std::fmt::Display) -> Error {
    Error::operator(format!("cannot create the sandbox: {what} failed"))
        .detail(why)
        .hint("Check that the temporary folder has 300 MB of free space.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_backup_is_at_least_six_hours_old() {
        let last = |now: &str| nights(now.parse().unwrap()).pop().unwrap().to_rfc3339();
        assert_eq!(last("2026-01-15T14:00:00Z"), "2026-01-15T02:15:00+00:00");
        assert_eq!(last("2026-01-15T08:15:00Z"), "2026-01-15T02:15:00+00:00");
        assert_eq!(last("2026-01-15T08:14:59Z"), "2026-01-14T02:15:00+00:00");
        assert_eq!(last("2026-01-15T00:30:00Z"), "2026-01-14T02:15:00+00:00");
    }

    #[test]
    fn a_folder_without_our_mark_is_left_alone() {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("owner.lock"), "something else").unwrap();
        assert_eq!(reap_folder(folder.path()), None);
        assert!(folder.path().exists());
    }
}
