//! A repository of pgBackRest, read through `pgbackrest` itself: it knows its configuration, its ciphers and where the
//! repository is, and a backup that rests on others is put together by its restore.
//!
//! - Only `info`, `repo-ls`, `repo-get` and `restore` are run: nothing is ever written to a repository. A restore has a
//!   folder for locks of its own, so that it neither waits for production's runs nor stands in their way.
//! - It is told where it writes by the command line, which wins over its configuration: into the folder that was given, and
//!   into no tablespace and no link of production's.
//! - Its restore compares every file with the checksum in the manifest, and the server every record of WAL with its own. The
//!   SHA-1 in the name of a segment is not compared.
//! - The environment is handed on: `PGBACKREST_CONFIG` and its kin mean here what they mean to `pgbackrest`.
//! - Not read: segments compressed by bzip2, and `.partial` ones, which are as far as the fork in the timeline after them too.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::DateTime;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde::Deserialize;

use super::base::{Base, Found, Label, Shape};
use super::wal::Lsn;
use super::{EntryKind, Node, Place};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// In front of a stanza's name, where a base backup or an archive is named.
const PREFIX: &str = "pgbackrest:";
/// What `info` and `repo-ls` may say: some millions of segments.
const MAX_SAID: u64 = 512 << 20;
/// A file of an archive: the largest segment that PostgreSQL has, and what a cipher adds.
const MAX_FILE: u64 = (1 << 30) + (1 << 20);
/// Of the errors that it tells.
const MAX_ERRORS: u64 = 4000;
/// Files with damaged pages that are named.
const NAMED: usize = 4;
/// Between two looks at a restore.
const LOOK: Duration = Duration::from_millis(50);

/// What pgBackRest calls a cluster and all of its backups and WAL; or one backup of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stanza {
    name: String,
    /// One backup, by its label.
    backup: Option<String>,
    /// The number of the repository that the backup is in.
    repository: Option<u32>,
}

/// What `info` says of a stanza.
#[derive(Deserialize)]
struct Info {
    name: String,
    backup: Vec<Backup>,
    db: Vec<Database>,
    repo: Vec<Repository>,
}

#[derive(Deserialize)]
struct Repository {
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    code: u32,
    message: String,
}

/// Codes of [`Status`]: all is well; there is a stanza, without backups.
const WELL: [u32; 2] = [0, 2];
/// There is no such stanza, or nothing in it.
const NO_STANZA: [u32; 2] = [1, 3];

/// A cluster that was archived under this stanza; an upgrade makes another one.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Database {
    id: u32,
    #[serde(default = "first")]
    repo_key: u32,
    system_id: u64,
    version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Backup {
    archive: Archived,
    database: Of,
    /// Pages whose checksums do not match were found while it was made.
    #[serde(default)]
    error: Option<bool>,
    #[serde(default)]
    error_list: Option<Vec<String>>,
    info: Sizes,
    label: String,
    #[serde(default)]
    lsn: Option<Positions>,
    #[serde(default)]
    tablespace: Tablespaces,
    timestamp: Times,
}

#[derive(Deserialize)]
struct Archived {
    start: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Of {
    id: u32,
    #[serde(default = "first")]
    repo_key: u32,
}

/// In bytes.
#[derive(Deserialize)]
struct Sizes {
    size: u64,
    repository: Stored,
}

#[derive(Deserialize)]
struct Stored {
    size: Option<u64>,
}

#[derive(Deserialize)]
struct Positions {
    start: Option<Lsn>,
    stop: Option<Lsn>,
}

#[derive(Deserialize)]
struct Times {
    start: i64,
}

/// Told of one backup alone.
#[derive(Default, Deserialize)]
#[serde(from = "Option<Vec<Tablespace>>")]
enum Tablespaces {
    #[default]
    NotTold,
    Told(Vec<Tablespace>),
}

impl From<Option<Vec<Tablespace>>> for Tablespaces {
    fn from(told: Option<Vec<Tablespace>>) -> Self {
        Self::Told(told.unwrap_or_default())
    }
}

#[derive(Deserialize)]
struct Tablespace {
    oid: u32,
}

fn first() -> u32 {
    1
}

impl Place {
    /// The place that `pgbackrest:STANZA` or `pgbackrest:STANZA/BACKUP` names; `None`: it is not written so.
    pub fn of_pgbackrest(given: &str) -> Option<Result<Self>> {
        let rest = given.strip_prefix(PREFIX)?;
        let (name, backup) = rest.split_once('/').map_or((rest, None), |(name, label)| (name, Some(label)));
        let odd = |word: &str| {
            word.is_empty() || word.starts_with('.') || word.contains(['/', '\\']) || word.contains(char::is_control)
        };
        if odd(name) || backup.is_some_and(odd) {
            return Some(Err(Error::operator(format!("{given:?} names no stanza of pgBackRest")).hint(
                "Write pgbackrest:STANZA, or pgbackrest:STANZA/BACKUP with a label as pgbackrest info shows it.",
            )));
        }
        Some(Ok(Self::PgBackRest(Stanza { name: name.into(), backup: backup.map(str::to_owned), repository: None })))
    }
}

impl Stanza {
    /// As it is named where a place is given.
    pub(super) fn shown(&self) -> String {
        let backup = self.backup.iter().map(|label| format!("/{label}")).collect::<String>();
        format!("{PREFIX}{}{backup}", self.name)
    }

    /// The backup with that label.
    pub(super) fn inside(&self, label: &str) -> Self {
        Self { backup: Some(label.into()), ..self.clone() }
    }

    /// The backups of the stanza, or the one that is named; what is wrong with one does not hide the others.
    pub(super) fn bases(&self) -> Result<Found> {
        let info = self.info(&[])?;
        let backups =
            info.backup.iter().filter(|backup| self.backup.as_ref().is_none_or(|label| *label == backup.label));
        let found: Found = backups
            .map(|backup| {
                let stanza = Self { repository: Some(backup.database.repo_key), ..self.inside(&backup.label) };
                (stanza.shown(), stanza.base(backup, &info.db))
            })
            .collect();
        if found.is_empty() {
            return Err(Error::operator(format!("there is no backup {}", self.shown()))
                .hint(format!("Look at what there is: pgbackrest --stanza={} info.", self.name)));
        }
        Ok(found)
    }

    fn base(self, backup: &Backup, databases: &[Database]) -> Result<Base> {
        let shown = self.shown();
        let of = databases.iter().find(|one| (one.id, one.repo_key) == (backup.database.id, backup.database.repo_key));
        let cluster = of.and_then(|one| Some((one.system_id, one.version.split('.').next()?.parse().ok()?)));
        let (Some((system, major)), Some(started)) = (cluster, DateTime::from_timestamp(backup.timestamp.start, 0))
        else {
            return Err(Error::backup(format!("pgbackrest does not say of which cluster {shown} is"))
                .hint("Look at it: pgbackrest info."));
        };
        let timeline = backup.archive.start.as_ref().and_then(|name| u32::from_str_radix(name.get(..8)?, 16).ok());
        let ends = backup.lsn.as_ref().and_then(|lsn| Some((lsn.start?, lsn.stop?)));
        let (Some(timeline), Some((start, end))) = (timeline, ends) else {
            return Err(Error::refused(format!(
                "pgbackrest does not say between which positions of the WAL {shown} was made"
            ))
            .hint("It was made of a server that was stopped, or pgbackrest is older than that of Debian 12 (2.45).")
            .hint("Take another one, or restore it by pgbackrest itself."));
        };
        let notes = if backup.error == Some(true) { vec![self.wrong_pages()] } else { Vec::new() };
        let label = Label {
            start,
            timeline,
            started_words: started.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
            started: Some(started),
            name: backup.label.clone(),
            incremental_from: None,
        };
        Ok(Base {
            place: Place::PgBackRest(self),
            shape: Shape::PgBackRest,
            label,
            end: Some(end),
            system,
            major,
            tablespaces: BTreeMap::new(),
            own_wal: Vec::new(),
            stored: Some(backup.info.repository.size.unwrap_or(backup.info.size)),
            notes,
        })
    }

    /// Tells of pages whose checksums did not match when the backup was made, and in which files.
    fn wrong_pages(&self) -> String {
        let files = self.detail().ok().and_then(|backup| backup.error_list).unwrap_or_default();
        let named = files.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
        let which = if named.is_empty() { named } else { format!(" ({named})") };
        format!(
            "pages with wrong checksums were found when it was made{which}: take an earlier one if those tables matter"
        )
    }

    /// The files of the archive, each as `REPOSITORY/CLUSTER/…/NAME`: of the cluster that is archived now, from all
    /// repositories.
    pub(super) fn archive(&self) -> Result<Vec<Node>> {
        #[derive(Deserialize)]
        struct Listed {
            #[serde(rename = "type")]
            kind: String,
            #[serde(default)]
            size: u64,
        }
        let info = self.info(&[])?;
        let system = info.db.iter().max_by_key(|one| one.id).map(|one| one.system_id);
        let mut nodes = Vec::new();
        for of in info.db.iter().filter(|of| Some(of.system_id) == system) {
            let cluster = format!("{}-{}", of.version, of.id);
            let repository = format!("--repo={}", of.repo_key);
            let folder = format!("archive/{}/{cluster}", self.name);
            let said = self.run("repo-ls", &[&repository, "--recurse", "--output=json", &folder])?;
            let files: BTreeMap<String, Listed> =
                serde_json::from_slice(&said).map_err(|error| not_understood("repo-ls", error))?;
            nodes.extend(files.into_iter().filter(|(_, file)| file.kind == "file").map(|(name, file)| Node {
                name: format!("{}/{cluster}/{name}", of.repo_key),
                kind: EntryKind::File,
                size: file.size,
                ..Node::default()
            }));
        }
        Ok(nodes)
    }

    /// A file of the archive, as it is stored, but decrypted; whole before a byte of it is used.
    pub(super) fn open(&self, file: &str) -> Result<fs::File> {
        let (repository, name) = file.split_once('/').unwrap_or(("1", file));
        let path = format!("archive/{}/{name}", self.name);
        let mut command = self.command("repo-get", SILENT);
        command.arg(format!("--repo={repository}")).arg(path);
        let mut spooled = tempfile::tempfile().map_err(no_room)?;
        output(command, "repo-get", |stdout| {
            let length = std::io::copy(&mut stdout.take(MAX_FILE + 1), &mut spooled).map_err(no_room)?;
            if length > MAX_FILE { Err(too_much("repo-get")) } else { Ok(()) }
        })?;
        spooled.rewind().map_err(no_room)?;
        Ok(spooled)
    }

    /// Restores the backup into a data directory, which is there and empty, and its tablespaces beside each other into
    /// another folder, by their numbers. `locks` is a folder of its own; it goes again.
    ///
    /// It ends when this process does: it tells of every file, and gives up when nobody listens. Its working folder is the
    /// data directory, so that it is found by that.
    pub fn restore(&self, data: &Path, tablespaces: &Path, locks: &Path, progress: &Progress) -> Result<()> {
        let backup = self.detail()?;
        let Tablespaces::Told(spaces) = backup.tablespace else {
            return Err(Error::operator("pgbackrest is too old to say which tablespaces a backup has")
                .hint("Install the one of Debian 12 (2.45) or a newer one."));
        };
        let mut command = self.command("restore", EVERY_FILE);
        // Whatever its configuration says to the contrary: all of it, with no recovery of its own, and nothing elsewhere.
        command.args(["--type=none", "--no-delta", "--no-link-all", "--reset-pg1-host"]);
        for option in ["link-map", "db-include", "db-exclude", "recovery-option", "archive-mode"] {
            command.arg(format!("--reset-{option}"));
        }
        let given = |option: &str, path: &Path| {
            let mut argument = std::ffi::OsString::from(option);
            argument.push(path);
            argument
        };
        command.arg(given("--pg1-path=", data)).arg(given("--lock-path=", locks));
        if spaces.is_empty() {
            command.arg("--reset-tablespace-map");
        }
        for Tablespace { oid } in spaces {
            let into = tablespaces.join(oid.to_string());
            command.arg(given(&format!("--tablespace-map={oid}="), &into));
        }
        command.arg(format!("--set={}", backup.label)).arg(format!("--repo={}", backup.database.repo_key));
        command.current_dir(data).process_group(0);
        let outcome = followed(command, backup.info.size, progress);
        match fs::remove_dir_all(locks) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => outcome.and(Err(no_room(error))),
            Ok(()) | Err(_) => outcome,
        }
    }

    /// All that `info` says of the one backup.
    fn detail(&self) -> Result<Backup> {
        let label = self.backup.clone().unwrap_or_default();
        let set = format!("--set={label}");
        let repository = self.repository.map(|number| format!("--repo={number}"));
        let arguments: Vec<&str> = [set.as_str()].into_iter().chain(repository.as_deref()).collect();
        let info = self.info(&arguments)?;
        let found = info.backup.into_iter().find(|backup| backup.label == label);
        found.ok_or_else(|| {
            Error::operator(format!("{} is not there any more", self.shown())).hint("Look again: backups expire.")
        })
    }

    fn info(&self, arguments: &[&str]) -> Result<Info> {
        let said = self.run("info", &[&["--output=json"], arguments].concat())?;
        let stanzas = stanzas(&said).map_err(|error| not_understood("info", error))?;
        let Some(info) = stanzas.into_iter().find(|info| info.name == self.name) else { return Err(self.unknown()) };
        // What one repository lacks another one may have.
        let bad = info.repo.iter().find(|repository| !WELL.contains(&repository.status.code));
        match bad {
            Some(bad) if info.db.is_empty() && NO_STANZA.contains(&bad.status.code) => Err(self.unknown()),
            Some(bad) if info.db.is_empty() => {
                // What could not be read may follow, whatever it is.
                let why = bad.status.message.split(": FormatError: ").next().unwrap_or_default();
                Err(Error::backup(format!("pgbackrest cannot read stanza {}: {why}", self.name))
                    .hint("The repository is damaged, or is encrypted with another pass phrase than its configuration has.")
                    .hint(format!("See for yourself: pgbackrest --stanza={} info.", self.name)))
            }
            _ => Ok(info),
        }
    }

    fn unknown(&self) -> Error {
        let mut all = command("info", SILENT);
        all.arg("--output=json");
        let stanzas = said(all, "info").ok().and_then(|said| stanzas(&said).ok());
        let names: Vec<_> = stanzas.into_iter().flatten().map(|info| info.name).collect();
        let error = Error::operator(format!("the repository of pgBackRest has no stanza {}", self.name));
        let error = if names.is_empty() { error } else { error.hint(format!("It has: {}.", names.join(", "))) };
        error.hint(
            "Which repository it is says /etc/pgbackrest/pgbackrest.conf, or the file that PGBACKREST_CONFIG names.",
        )
    }

    /// `what` of its commands, which tells on its standard output what it does as far as `console` says.
    fn command(&self, what: &str, console: &str) -> Command {
        let mut command = command(what, console);
        command.arg(format!("--stanza={}", self.name));
        command
    }

    fn run(&self, what: &str, arguments: &[&str]) -> Result<Vec<u8>> {
        let mut command = self.command(what, SILENT);
        command.args(arguments);
        said(command, what)
    }
}

/// What it could not decrypt it puts into its messages as it is.
fn stanzas(said: &[u8]) -> serde_json::Result<Vec<Info>> {
    serde_json::from_str(&String::from_utf8_lossy(said).replace(char::is_control, " "))
}

/// Levels of what is told on the console: nothing, and every file.
const SILENT: &str = "off";
const EVERY_FILE: &str = "detail";

fn command(what: &str, console: &str) -> Command {
    let mut command = Command::new("pgbackrest");
    // Warnings are not mixed with what is asked for, and no log of ours is put among production's.
    command.args(["--log-level-file=off", "--log-level-stderr=error", "--no-log-timestamp"]);
    command.arg(format!("--log-level-console={console}")).arg(what).stdin(Stdio::null());
    command
}

/// Starts it; what it says of errors goes to a file: a pipe that nobody reads would stop it.
fn spawn(mut command: Command) -> Result<(Child, fs::File)> {
    let errors = tempfile::tempfile().map_err(no_room)?;
    let written = errors.try_clone().map_err(no_room)?;
    match command.stdout(Stdio::piped()).stderr(written).spawn() {
        Ok(child) => Ok((child, errors)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::operator(
            "pgbackrest is not installed on this machine",
        )
        .hint("Install it: sudo apt-get install pgbackrest. Its configuration has to say where the repository is.")),
        Err(error) => Err(does_not_run(error)),
    }
}

/// Runs it to its end, and hands on what it says.
fn output(command: Command, what: &str, read: impl FnOnce(&mut dyn Read) -> Result<()>) -> Result<()> {
    let (mut child, errors) = spawn(command)?;
    let outcome = child.stdout.take().map_or(Ok(()), |mut stdout| read(&mut stdout));
    if outcome.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(does_not_run)?;
    outcome?;
    if status.success() { Ok(()) } else { Err(failed(what, errors)) }
}

fn said(command: Command, what: &str) -> Result<Vec<u8>> {
    let mut said = Vec::new();
    output(command, what, |stdout| {
        let read = stdout.take(MAX_SAID + 1).read_to_end(&mut said);
        let length = read.map_err(|error| not_understood(what, error))?;
        if length as u64 > MAX_SAID { Err(too_much(what)) } else { Ok(()) }
    })?;
    Ok(said)
}

/// Runs a restore of so many bytes; when it is cancelled, nothing of it runs any more.
fn followed(command: Command, bytes: u64, progress: &Progress) -> Result<()> {
    progress.begin("restoring with pgbackrest", Unit::Bytes, Some(bytes));
    let (mut child, errors) = spawn(command)?;
    let lines = child.stdout.take().map(|stdout| BufReader::new(stdout).split(b'\n'));
    let restored = AtomicU64::new(0);
    let status = std::thread::scope(|scope| {
        scope.spawn(|| {
            for line in lines.into_iter().flatten().map_while(Result::ok) {
                if let Some(hundredths) = hundredths(&String::from_utf8_lossy(&line)) {
                    restored.fetch_max(bytes / 10_000 * hundredths, Ordering::Relaxed);
                }
            }
        });
        let mut told = 0;
        loop {
            let now = restored.load(Ordering::Relaxed);
            progress.advance(now - told);
            told = now;
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(error) => return Err(does_not_run(error)),
            }
            if let Err(cancelled) = progress.check() {
                // Also the processes that it has started: they would go on writing.
                let group = Pid::from_raw(-i32::try_from(child.id()).unwrap_or(i32::MAX));
                let _ = kill(group, Signal::SIGKILL);
                let _ = child.wait();
                return Err(cancelled);
            }
            std::thread::sleep(LOOK);
        }
    })?;
    if status.success() { Ok(()) } else { Err(failed("restore", errors)) }
}

/// How much of a backup is restored, in hundredths of a percent, out of `… restore file PATH (8KB, 97.26%) checksum …`.
fn hundredths(line: &str) -> Option<u64> {
    let (before, _) = line.rsplit_once("%)")?;
    let (whole, part) = before.rsplit_once(", ")?.1.split_once('.')?;
    let number = |digits: &str| if digits.len() <= 3 { digits.parse::<u64>().ok() } else { None };
    let part = if part.len() == 2 { number(part)? } else { return None };
    Some((number(whole)? * 100 + part).min(10_000)).filter(|_| line.contains("restore file "))
}

fn failed(what: &str, mut errors: fs::File) -> Error {
    let mut bytes = Vec::new();
    let _ = errors.rewind().and_then(|()| errors.take(MAX_ERRORS).read_to_end(&mut bytes));
    let said = String::from_utf8_lossy(&bytes).trim().to_owned();
    if said.contains("requires option: repo") && said.contains("cipher-pass") {
        return Error::operator("the repository of pgBackRest is encrypted, and there is no pass phrase for it")
            .detail(said)
            .hint("Put repo1-cipher-pass into its configuration, or set PGBACKREST_REPO1_CIPHER_PASS.");
    }
    // `ERROR: [055]: why`.
    let first = said.lines().next().unwrap_or("it did not say why");
    let why = first.split_once("]: ").map_or(first, |(_, why)| why).to_owned();
    let error = Error::backup(format!("pgbackrest {what} fails: {why}")).detail(said);
    let error = error.hint(
        "Its configuration is /etc/pgbackrest/pgbackrest.conf, or what PGBACKREST_CONFIG and the like say: pgbackrest info.",
    );
    if geteuid().is_root() {
        error.hint(
            "It was run as root. If it is set up for another user, as the keys of ssh are, start Lifeboat as that one.",
        )
    } else {
        error
    }
}

fn does_not_run(error: std::io::Error) -> Error {
    Error::operator("pgbackrest does not run").detail(error).hint("Try it by hand: pgbackrest version.")
}

fn no_room(error: std::io::Error) -> Error {
    Error::operator("a file of pgBackRest cannot be put into a temporary one")
        .detail(error)
        .hint("Make room in TMPDIR, or set it to another folder.")
}

fn too_much(what: &str) -> Error {
    Error::refused(format!("pgbackrest {what} says more than is read"))
        .hint("Look at what it says: the repository may be damaged.")
}

fn not_understood(what: &str, error: impl std::fmt::Display) -> Error {
    Error::backup(format!("what pgbackrest {what} says is not understood"))
        .detail(error)
        .hint("Lifeboat knows the one of Debian 12 (2.45): pgbackrest version.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_of_lines_about_files_alone() {
        let line =
            |rest: &str| hundredths(&format!("P01 DETAIL: restore file /c/data/base/5/16390{rest} checksum 7cf4"));
        assert_eq!(line(" (11.5MB, 97.26%)"), Some(9726));
        assert_eq!(line(", 1.00%) (0B, 100.00%)"), Some(10_000));
        for other in ["", " (8KB, 7%)", " (8KB, 7.5%)", " (8KB, -7.55%)", " (8KB, 99999999999999999999.55%)"] {
            assert_eq!(line(other), None, "{other}");
        }
        assert_eq!(hundredths("P00   INFO: restore size = 32.4MB (1, 50.00%)"), None);
    }

    #[test]
    fn stanzas_and_backups_are_named_without_a_way_out() {
        let shown = |given: &str| Place::of_pgbackrest(given).map(|place| place.map(|place| place.shown()));
        for given in ["pgbackrest:main", "pgbackrest:a b-1", "pgbackrest:main/20261129-042933F_20261129-042937I"] {
            assert_eq!(shown(given).unwrap().unwrap(), given);
        }
        for given in [
            "pgbackrest:",
            "pgbackrest:../x",
            "pgbackrest:main/",
            "pgbackrest:main/a/b",
            "pgbackrest:main/..",
            "pgbackrest:a\nb",
        ] {
            assert!(shown(given).unwrap().is_err(), "{given}");
        }
        assert!(shown("/backup/pgbackrest:main").is_none());
    }
}
