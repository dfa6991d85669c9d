//! A private world to practise in: a real PostgreSQL server with a real database, real dumps of it in a real, encrypted
//! restic repository, and an incident that has just happened.
//!
//! ```text
//!   /tmp/lifeboat-drill-x7Kd2a/
//!     owner.lock     locked for as long as the owner lives; its first line is the mark by which `reap` knows us
//!     pg/            the server: its socket, and data/
//!     repository/    restic; password beside it
//!     staging/       dumps on their way into the repository
//!     file-server/   the tree of the `fileserver` snapshots
//!
//!   backups of the nights ... last backup | honest work | incident | honest work | too late a backup | you are called
//!                                02:15 UTC                  =  sandbox.incident()
//! ```
//!
//! Invariant: a sandbox cannot reach anybody's system. Nothing here takes an address: the only server it knows is the one
//! that it has created, by the socket in its own folder, the environment (`PG*`, `RESTIC_*`) is not passed on to the
//! programs it runs, and no configuration is read. What it hands out is its own connection string.
//!
//! Invariant: the truth (database `drill_truth` of the same server) is complete before the operator is called, and
//! nothing but [`Sandbox::check`] reads it.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use chrono::{DateTime, NaiveTime, TimeDelta, Utc};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

use super::cluster::{Cluster, Guard, programs};
use super::scenarios::{DAMAGED_TABLE, Scenario};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// Nights that have a backup.
const DAYS: u32 = 5;
/// How long ago the last backup is at least, so that losing everything since then would hurt.
const LAST_BACKUP_AGE: TimeDelta = TimeDelta::hours(6);
const PREFIX: &str = "lifeboat-drill-";
const MARK: &str = "This folder is a sandbox of Lifeboat; the next drill removes it when its owner is gone.\n";
/// A Unix socket's path has at most 107 bytes; this is what we add to the temporary folder's.
const SOCKET_PATH_BYTES: usize = PREFIX.len() + "/xxxxxx/pg/.s.PGSQL.5432".len();

const SCHEMA: &str = include_str!("../../assets/drill/schema.sql");
const GENERATE: &str = include_str!("../../assets/drill/generate.sql");
const DATA: &str = include_str!("../../assets/drill/data.sql");
const DAY: &str = include_str!("../../assets/drill/day.sql");
const EXPORT: &str = include_str!("../../assets/drill/export.sql");
const IMPORT: &str = include_str!("../../assets/drill/import.sql");

/// Removes what the server's own guard leaves, once that one has stopped the server.
const REMOVE_REST: &str = r#"
tries=0
while [ -e "$1/pg" ] && [ "$tries" -lt 600 ]; do sleep 0.1; tries=$((tries + 1)); done
[ -e "$1/pg" ] || rm -rf "$1"
"#;

/// A running sandbox. Dropping it stops its server and removes its folder.
#[derive(Debug)]
pub struct Sandbox {
    // In the order in which they must go: the server, then its files, then the claim on them.
    cluster: Cluster,
    #[expect(dead_code, reason = "it acts when we are gone")]
    guard: Guard,
    #[expect(dead_code, reason = "locked as long as it is open")]
    owner: File,
    folder: TempDir,
    scenario: &'static Scenario,
    incident: DateTime<Utc>,
}

/// The end state compared with the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// At least one, in the order of the scenario's query.
    pub checks: Vec<Check>,
}

/// One number that has to be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is counted, in words for the operator.
    pub name: String,
    /// As the truth has it.
    pub expected: u64,
    /// As the database has it now.
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
    pub fn create(progress: &Progress) -> Result<Self> {
        let programs = prerequisites()?;
        reap();
        progress.begin("Creating a private sandbox", Unit::Items, Some(u64::from(2 * DAYS) + 4));
        let (folder, owner) = private_folder()?;
        let guard = Guard::start(REMOVE_REST, folder.path()).map_err(|error| failed("guard", error))?;
        let scenario = &DAMAGED_TABLE;
        let nights = nights(Utc::now());
        let anchor = nights[nights.len() - 1].to_rfc3339();
        let repository = Repository::new(folder.path())?;

        let (cluster, incident) = std::thread::scope(|scope| {
            let initialised = scope.spawn(|| repository.initialise());
            let settings = ["track_commit_timestamp=on"];
            let cluster = Cluster::create(&folder.path().join("pg"), &programs, &settings)?;
            let story = Story { cluster: &cluster, anchor: &anchor };
            story.tell("postgres", "create database programme_db", &[])?;
            story.tell("programme_db", &[SCHEMA, GENERATE, DATA].concat(), &[])?;
            progress.advance(1);
            join(initialised)?;
            progress.advance(1);

            let mut backups = vec![scope.spawn(|| file_server(&repository, &nights, progress))];
            for (day, night) in (1..).zip(&nights) {
                progress.check()?;
                story.tell("programme_db", &[GENERATE, DAY].concat(), &[("day", &day.to_string())])?;
                let dump = story.dump(folder.path(), *night)?;
                let repository = &repository;
                backups.push(scope.spawn(move || {
                    repository.back_up_dump(&dump, Some(*night))?;
                    progress.advance(1);
                    Ok(())
                }));
            }
            progress.check()?;
            let incident = story.incident(scenario)?;
            progress.advance(1);
            let dump = story.dump(folder.path(), Utc::now())?;
            backups.push(scope.spawn(|| repository.back_up_dump(&{ dump }, None)));
            for backup in backups {
                join(backup)?;
            }
            progress.advance(1);
            Ok::<_, Error>((cluster, incident))
        })?;
        Ok(Self { cluster, guard, owner, folder, scenario, incident })
    }

    /// The sandbox's own folder; it is gone when the sandbox is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How to connect to the damaged database.
    pub fn conninfo(&self) -> String {
        self.cluster.conninfo("programme_db")
    }

    /// The restic repository, as `RESTIC_REPOSITORY` takes it.
    pub fn repository(&self) -> PathBuf {
        self.folder().join("repository")
    }

    /// As `RESTIC_PASSWORD_FILE` takes it.
    pub fn password_file(&self) -> PathBuf {
        self.folder().join("password")
    }

    /// The story that was told in it.
    pub fn scenario(&self) -> &'static Scenario {
        self.scenario
    }

    /// When the first of the bad transactions was committed, by the server's clock, to the microsecond.
    pub fn incident(&self) -> DateTime<Utc> {
        self.incident
    }

    /// What the operator is told when called, in paragraphs of one line each.
    pub fn briefing(&self) -> String {
        self.scenario.briefing(self.incident)
    }

    /// Compares the database as it is now with what it must be. Only the stamp `updated_at` of damaged rows, which a
    /// trigger sets, and further entries of the audit table may differ from the truth.
    pub fn check(&self) -> Result<Verdict> {
        let story = Story { cluster: &self.cluster, anchor: "" };
        let output = story.compare("found", self.scenario.check).map_err(|error| {
            Error::target("cannot compare the database with the truth")
                .detail(error.detail.unwrap_or(error.message))
                .hint("Check that the tables of programme_db still have their columns.")
        })?;
        let checks = output.lines().map(Check::parse).collect::<Option<Vec<_>>>();
        match checks {
            Some(checks) if !checks.is_empty() => Ok(Verdict { checks }),
            _ => Err(Error::bug("the check of a drill printed something else than checks").detail(output)),
        }
    }
}

impl Check {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('\t').skip(1);
        let name = fields.next()?.to_owned();
        let expected = fields.next()?.parse().ok()?;
        let found = fields.next()?.parse().ok()?;
        Some(Self { name, expected, found, examples: fields.next()?.to_owned(), ok: expected == found })
    }
}

/// Tells SQL to the sandbox's server.
struct Story<'a> {
    cluster: &'a Cluster,
    /// The instant of the last backup.
    anchor: &'a str,
}

impl Story<'_> {
    /// Runs a psql script and returns what it prints, one row a line, tabs between the columns.
    fn tell(&self, database: &str, script: &str, variables: &[(&str, &str)]) -> Result<String> {
        let mut psql = self.cluster.command("psql")?;
        psql.args(["-X", "-q", "-A", "-t", "-F", "\t", "-d", database, "-v", "ON_ERROR_STOP=1"]);
        psql.arg("-v").arg(format!("anchor={}", self.anchor)).arg("-v").arg(format!("days={DAYS}"));
        for (name, value) in variables {
            psql.arg("-v").arg(format!("{name}={value}"));
        }
        run(&mut psql, "a script of the drill", Stdio::piped(), script.as_bytes())
    }

    /// Work, the incident, more work; and the truth about it. Returns when the incident was committed.
    fn incident(&self, scenario: &Scenario) -> Result<DateTime<Utc>> {
        self.tell("programme_db", &[GENERATE, scenario.business].concat(), &[])?;
        self.tell("postgres", "create database drill_truth template programme_db", &[])?;
        let printed = self.tell("programme_db", scenario.incident, &[])?;
        self.tell("programme_db", &[GENERATE, scenario.aftermath].concat(), &[])?;
        self.compare("live", scenario.truth)?;
        printed.trim().parse().map_err(|_| Error::bug("an incident did not print its instant").detail(printed))
    }

    /// Carries an image of the database beside the truth, as the schema of that name, and runs a script there.
    fn compare(&self, image: &str, script: &str) -> Result<String> {
        let folder = self.cluster.data().join("drill_image");
        // The server writes these files, so the server's user makes their folder.
        run(self.cluster.command("/bin/mkdir")?.arg("-p").arg(&folder), "mkdir", Stdio::null(), b"")?;
        let variables = [("folder", &*folder.to_string_lossy()), ("image", image)];
        self.tell("programme_db", &[EXPORT, IMPORT, script].concat(), &variables)
    }

    /// Dumps the database as the procedure does. A file, not a pipe, so that the dump has data offsets.
    fn dump(&self, folder: &Path, at: DateTime<Utc>) -> Result<PathBuf> {
        let path = folder.join("staging").join(at.format("programme_db_%Y%m%d_%H%M%S.dump").to_string());
        let file = File::create(&path).map_err(|error| failed("dump", error))?;
        run(self.cluster.command("pg_dump")?.args(["-Fc", "programme_db"]), "pg_dump", file.into(), b"")?;
        Ok(path)
    }
}

/// The restic repository, written by restic itself.
struct Repository {
    folder: PathBuf,
}

impl Repository {
    /// Makes the folders and a password.
    fn new(folder: &Path) -> Result<Self> {
        for name in ["staging", "file-server"] {
            fs::create_dir(folder.join(name)).map_err(|error| failed(name, error))?;
        }
        let mut noise = [0; 16];
        let password = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut noise)).and_then(|()| {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(folder.join("password"))?;
            writeln!(file, "{:032x}", u128::from_ne_bytes(noise))
        });
        password.map_err(|error| failed("password", error))?;
        Ok(Self { folder: folder.to_owned() })
    }

    fn initialise(&self) -> Result<()> {
        finish(self.restic(&["init", "--repository-version", "2"]).output(), "restic init").map(drop)
    }

    /// Stores a dump under the path that it has on the database server of the procedure, and removes the file.
    /// `at` is the snapshot's instant; without it, it is now.
    fn back_up_dump(&self, dump: &Path, at: Option<DateTime<Utc>>) -> Result<()> {
        let name = Path::new("/backup/staging").join(dump.file_name().unwrap_or_default());
        let file = File::open(dump).map_err(|error| failed("dump", error))?;
        let mut restic = self.restic(&["backup", "--host", "db-server", "--tag", "postgresql,programme_db", "--stdin"]);
        restic.arg("--stdin-filename").arg(name).stdin(file);
        if let Some(at) = at {
            restic.arg("--time").arg(restic_time(at));
        }
        finish(restic.output(), "restic backup")?;
        fs::remove_file(dump).map_err(|error| failed("dump", error))
    }

    fn restic(&self, arguments: &[&str]) -> Command {
        let mut restic = Command::new("restic");
        restic.args(arguments).args(["--quiet", "--no-cache"]).current_dir(self.folder.join("file-server"));
        // Nothing of the caller's environment: RESTIC_REPOSITORY there may well be the real one.
        restic.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("TZ", "UTC");
        restic.env("HOME", &self.folder).env("TMPDIR", &self.folder);
        restic.env("RESTIC_REPOSITORY", self.folder.join("repository"));
        restic.env("RESTIC_PASSWORD_FILE", self.folder.join("password"));
        restic
    }
}

/// The nightly snapshots of a file server with a small tree, which changes a little every day.
fn file_server(repository: &Repository, nights: &[DateTime<Utc>], progress: &Progress) -> Result<()> {
    let root = repository.folder.join("file-server");
    let write = |path: String, contents: &[u8]| {
        let path = root.join(path);
        let parent = path.parent().unwrap_or(&root);
        fs::create_dir_all(parent).and_then(|()| fs::write(&path, contents)).map_err(|error| failed("file", error))
    };
    write("home/shared/project-files/budget [final] (2).csv".into(), b"item,amount\nblankets,18200\nfilters,9400\n")?;
    write("home/shared/project-files/maps/korvane – north.geojson".into(), br#"{"type":"Point","coordinates":[1,2]}"#)?;
    for night in nights {
        progress.check()?;
        let day = night.format("%Y-%m-%d");
        write("var/www/uploads/important-document.pdf".into(), &pdf(&format!("Agreement, as of {day}")))?;
        write(format!("home/shared/project-files/minutes/{day}.txt"), format!("Minutes of {day}\n").as_bytes())?;
        let mut restic = repository.restic(&["backup", "--host", "file-server", "--tag", "fileserver", "home", "var"]);
        run(restic.arg("--time").arg(restic_time(*night)), "restic backup", Stdio::null(), b"")?;
        progress.advance(1);
    }
    Ok(())
}

/// A PDF of one page with one line of text. The text must have no parentheses.
fn pdf(text: &str) -> Vec<u8> {
    let drawing = format!("BT /F1 24 Tf 72 720 Td ({text}) Tj ET");
    let objects = [
        "<< /Type /Catalog /Pages 2 0 R >>".into(),
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".into(),
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>"
            .into(),
        format!("<< /Length {} >>\nstream\n{drawing}\nendstream", drawing.len()),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_owned(),
    ];
    let mut file = "%PDF-1.4\n".to_owned();
    let mut table = format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
    for (number, object) in (1..).zip(&objects) {
        let _ = writeln!(table, "{:010} 00000 n ", file.len());
        let _ = write!(file, "{number} 0 obj\n{object}\nendobj\n");
    }
    let start = file.len();
    let trailer = format!("trailer\n<< /Size {} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n", objects.len() + 1);
    (file + &table + &trailer).into_bytes()
}

/// When the backups ran: 02:15 UTC of the nights before `now`, oldest first, the last of them old enough.
fn nights(now: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    let quarter_past_two = NaiveTime::MIN + TimeDelta::minutes(135);
    let limit = now - LAST_BACKUP_AGE;
    let today = limit.date_naive().and_time(quarter_past_two).and_utc();
    let last = if today <= limit { today } else { today - TimeDelta::days(1) };
    (0..DAYS).rev().map(|days| last - TimeDelta::days(days.into())).collect()
}

fn restic_time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S").to_string()
}

/// The PostgreSQL programs, when everything that a sandbox needs is installed.
fn prerequisites() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let restic = std::env::split_paths(&path).any(|folder| folder.join("restic").is_file());
    match (programs(), restic) {
        (Ok(programs), true) => Ok(programs),
        (programs, restic) => {
            let missing: Vec<_> = [("postgresql", programs.is_ok()), ("restic", restic)]
                .iter()
                .filter_map(|(name, installed)| (!installed).then_some(*name))
                .collect();
            Err(Error::operator(format!("a drill needs {}, not installed on this machine", missing.join(" and ")))
                .hint(format!("Install what is missing: sudo apt-get install {}", missing.join(" "))))
        }
    }
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
    if let Ok(data) = folder.join("pg/data").canonicalize() {
        stop_server(&data);
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
fn run(command: &mut Command, what: &str, stdout: Stdio, input: &[u8]) -> Result<String> {
    let child = command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| failed(what, error))?;
    // A program that stops reading has failed, and says why itself.
    child.stdin.take().and_then(|mut stdin| stdin.write_all(input).ok());
    finish(child.wait_with_output(), what)
}

fn finish(output: std::io::Result<std::process::Output>, what: &str) -> Result<String> {
    let output = output.map_err(|error| failed(what, error))?;
    if !output.status.success() {
        return Err(failed(what, String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn failed(what: &str, why: impl std::fmt::Display) -> Error {
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
