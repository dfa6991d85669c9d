//! Faults of the machine that the operator works on, met by the built program: whatever fails, production is as it was or
//! as it was approved, and the program says which.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::{Small, state};
use crate::cluster::{database, pg_programs, psql};

const SCHEMA: &str = "create table t (id int primary key, status text);
    insert into t select i, 'active' from generate_series(1, 500) i; analyze t";
const DAMAGE: &str = "update t set status = 'void' where id <= 200; delete from t where id > 450";

/// A damaged database, a dump from before, and answers that repair it.
struct Incident {
    conninfo: String,
    folder: tempfile::TempDir,
    /// How production stands before the repair, and how after it.
    damaged: String,
    repaired: String,
}

impl Incident {
    fn new(name: &str) -> Self {
        let conninfo = database(name, SCHEMA);
        let folder = tempfile::tempdir().unwrap();
        let dump = pg_programs().join("pg_dump");
        let made = Command::new(dump).args(["-Fc", "-d", &conninfo, "-f"]).arg(folder.path().join("t.dump")).status();
        assert!(made.unwrap().success());
        let answers = "tables = [\"public.t\"]\nconsent = \"public.t\"\n[[rows]]\ntable = \"public.t\"\nclasses = [\"missing\", \"changed\"]\n";
        std::fs::write(folder.path().join("answers.toml"), answers).unwrap();
        let repaired = state(&conninfo);
        psql(&conninfo, DAMAGE);
        let damaged = state(&conninfo);
        Self { conninfo, folder, damaged, repaired }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, wrapper: &[&str], home: &Path) -> Command {
        // To hang is a failure too.
        let mut command = Command::new("timeout");
        command
            .arg("60")
            .args(wrapper)
            .arg(env!("CARGO_BIN_EXE_lifeboat"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", home);
        command.args(["--database", &self.conninfo]).stdin(Stdio::null());
        command
    }

    fn recover(&self, wrapper: &[&str], home: &Path) -> Output {
        let mut command = self.command(wrapper, home);
        command.arg("recover").arg("--answers").arg(self.path("answers.toml")).arg("--dump").arg(self.path("t.dump"));
        command.output().unwrap()
    }

    /// Whether the repair was made; production holds either all of it or nothing. Puts the damage back.
    fn applied(&self, why: &str) -> bool {
        let now = state(&self.conninfo);
        let applied = now == self.repaired;
        assert!(applied || now == self.damaged, "{why}: half applied");
        let ours = "select nspname from pg_namespace where nspname ~ '^(lifeboat|restore)_'";
        for schema in psql(&self.conninfo, ours).lines() {
            psql(&self.conninfo, &format!("set client_min_messages = error; drop schema {schema} cascade"));
        }
        psql(&self.conninfo, DAMAGE);
        assert_eq!(state(&self.conninfo), self.damaged);
        applied
    }

    /// Runs the recovery under a fault. Success means all of it; every failure is one that was foreseen, with words, and
    /// says what has been changed.
    fn under(&self, fault: &str, wrapper: &[&str], home: &Path) -> (bool, String) {
        let output = self.recover(wrapper, home);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code();
        let applied = self.applied(fault);
        match code {
            Some(0) => assert!(applied, "{fault}: said to be done, and is not"),
            Some(2..=6) => {
                assert!(words.starts_with("lifeboat: "), "{fault}: {words}");
                let told = words.contains("stays done")
                    || words.contains("It is done")
                    || words.contains("inserted")
                    || words.contains("not known");
                assert!(!applied || told, "{fault}: applied, and not told: {words}");
            }
            // The loader failed before the program began.
            Some(127) => assert!(!applied, "{fault}"),
            _ => panic!("{fault}: {:?} {words}", output.status),
        }
        (applied, words)
    }
}

#[test]
fn fm_17_too_few_descriptors_are_an_error_with_words() {
    let incident = Incident::new("fm_17");
    let home = tempfile::tempdir().unwrap();
    let (mut failed, mut done) = (0, 0);
    for limit in [4, 8, 16, 32, 64, 127, 128, 256] {
        let (applied, _) = incident.under(
            &format!("{limit} descriptors"),
            &["prlimit", &format!("--nofile={limit}:{limit}")],
            home.path(),
        );
        if applied { done += 1 } else { failed += 1 }
    }
    assert!(failed > 0 && done > 0, "{failed} failed, {done} done");
}

#[test]
fn fm_21_a_full_disk_of_the_operator_stops_before_anything_is_changed() {
    let incident = Incident::new("fm_21");
    for size in ["4k", "8k", "12k", "16k", "24k", "1m"] {
        let folder = tempfile::tempdir().unwrap();
        let Some(_disk) = Small::mount(folder.path(), size) else {
            crate::not_run("fm_21 needs the right to mount a file system");
            return;
        };
        let (applied, words) = incident.under(&format!("a disk of {size}"), &[], folder.path());
        assert_eq!(applied, size == "1m", "{size}: {words}");
        if !applied {
            assert!(words.contains("No space left on device"), "{size}: {words}");
        }
        // What is written of the journal can be read.
        let journal = incident.command(&[], folder.path()).arg("status").output().unwrap();
        assert!(journal.status.success(), "{}", String::from_utf8_lossy(&journal.stderr));
    }
}

/// How often the recovery makes a system call.
fn calls(incident: &Incident, call: &str, home: &Path) -> usize {
    let log = incident.path("strace.log");
    let trace = format!("trace={call}");
    let wrapper = ["strace", "-f", "-qq", "-o", log.to_str().unwrap(), "-e", &trace];
    let output = incident.recover(&wrapper, home);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(incident.applied(call));
    std::fs::read_to_string(&log).unwrap().lines().filter(|line| line.contains(&format!(" {call}("))).count()
}

/// A disk between the program and the real one, which counts what reaches it, fails, and loses what does not reach it.
struct Disk {
    folder: tempfile::TempDir,
    library: PathBuf,
}

impl Disk {
    fn new(incident: &Incident) -> Self {
        let library = incident.path("fsync.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/faults/fsync.c");
        let compiled =
            Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl").status();
        assert!(compiled.unwrap().success());
        Self { folder: tempfile::tempdir().unwrap(), library }
    }

    /// The recovery over this disk, with a fault at one call.
    fn recover(&self, incident: &Incident, home: &Path, fault: &str) -> Output {
        for file in std::fs::read_dir(self.folder.path()).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        let preload = format!("LD_PRELOAD={}", self.library.display());
        let disk = format!("DISK={}", self.folder.path().display());
        incident.recover(&["env", &preload, &disk, fault], home)
    }

    /// So many calls were made.
    fn count(&self) -> u64 {
        std::fs::metadata(self.folder.path().join("count")).unwrap().len()
    }

    /// Makes a folder as it is found after the power was lost: with what was synced and nothing else.
    fn restore(&self, inode: u64, path: &Path) {
        std::fs::create_dir(path).unwrap();
        let Ok(entries) = std::fs::read_to_string(self.folder.path().join(inode.to_string())) else { return };
        for entry in entries.lines() {
            let (inode, name) = entry.split_once(' ').unwrap();
            let kept = self.folder.path().join(inode);
            if name.contains('.') && !name.starts_with('.') {
                std::fs::write(path.join(name), std::fs::read(kept).unwrap_or_default()).unwrap();
            } else {
                self.restore(inode.parse().unwrap(), &path.join(name));
            }
        }
    }
}

#[test]
fn fm_19_a_failed_fsync_is_never_followed_by_a_claim() {
    let incident = Incident::new("fm_19");
    let disk = Disk::new(&incident);
    let home = tempfile::tempdir().unwrap();
    assert!(disk.recover(&incident, home.path(), "FAIL=0").status.success());
    assert!(incident.applied("no fault"));
    let number = disk.count();
    assert!(number > 8, "{number} fsyncs");
    let mut applied = 0;
    for n in 1..=number {
        let home = tempfile::tempdir().unwrap();
        let output = disk.recover(&incident, home.path(), &format!("FAIL={n}"));
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "fsync {n} of {number} failed, and all was said to be well");
        assert!(words.contains("cannot write the journal") || words.contains("cannot create"), "{n}: {words}");
        let done = incident.applied(&format!("fsync {n}"));
        assert!(!done || words.contains("stays done") || words.contains("50 inserted"), "{n}: {words}");
        applied += u64::from(done);
    }
    assert!(applied > 0 && applied < number, "{applied} of {number}");
}

#[test]
fn fm_20_after_a_power_cut_at_any_fsync_the_journal_knows_what_production_holds() {
    let incident = Incident::new("fm_20");
    let disk = Disk::new(&incident);
    let first = tempfile::tempdir().unwrap();
    assert!(disk.recover(&incident, first.path(), "CUT=0").status.success());
    assert!(incident.applied("no cut"));
    let (number, mut applied) = (disk.count(), 0);
    for n in 1..=number {
        let (home, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(!disk.recover(&incident, home.path(), &format!("CUT={n}")).status.success());
        let found = after.path().join("home");
        disk.restore(std::fs::metadata(home.path()).unwrap().ino(), &found);
        let status = incident.command(&[], &found).args(["status", "--json"]).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        for recovery in status["recoveries"].as_array().unwrap() {
            if recovery["state"] == "left" {
                let resumed =
                    incident.command(&[], &found).arg("resume").arg(recovery["recovery"].as_str().unwrap()).output();
                let resumed = resumed.unwrap();
                assert!(resumed.status.success(), "cut at {n}: {}", String::from_utf8_lossy(&resumed.stderr));
            } else {
                assert_eq!(recovery["state"], "ended", "cut at {n}: {recovery}");
            }
        }
        let staged = psql(&incident.conninfo, "select count(*) from pg_namespace where nspname ~ '^restore_staging_'");
        assert_eq!(staged, "0", "cut at {n}: {status}");
        let status = incident.command(&[], &found).args(["status"]).output().unwrap();
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        let done = incident.applied(&format!("cut at fsync {n}"));
        assert_eq!(status.contains("50 inserted, 200 updated"), done, "cut at {n}: {status}");
        applied += u64::from(done);
    }
    println!("cut at each of {number} calls, {applied} had been applied");
    assert!(applied > 0 && applied < number, "{applied} of {number}");
}

#[test]
fn fm_18_any_system_call_may_fail() {
    let incident = Incident::new("fm_18");
    let home = tempfile::tempdir().unwrap();
    let mut tried = 0;
    // Not `write`: the runtime wakes itself by it, and fm_21 fills a real disk.
    for (call, error) in [
        ("mkdir", "ENOSPC"),
        ("openat", "EACCES"),
        ("openat", "EMFILE"),
        ("read", "EIO"),
        ("statx", "EACCES"),
        ("connect", "ECONNREFUSED"),
        ("sendto", "ECONNRESET"),
        ("recvfrom", "ECONNRESET"),
        ("clone3", "EAGAIN"),
    ] {
        let number = calls(&incident, call, home.path());
        // All of them where they are few; else the first ones, and some over the whole length.
        let step = number.div_ceil(8).max(1);
        for n in (1..=number).step_by(step) {
            let inject = format!("inject={call}:error={error}:when={n}");
            let trace = format!("trace={call}");
            let wrapper = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
            incident.under(&inject, &wrapper, home.path());
            tried += 1;
        }
    }
    println!("{tried} failing calls");
    assert!(tried > 30, "{tried}");
}

#[test]
fn fm_25_a_wrong_clock_chooses_the_same_point_and_is_told() {
    let incident = Incident::new("fm_25");
    let home = tempfile::tempdir().unwrap();
    for shift in ["-1d", "+1d"] {
        let mut command = incident.command(&["faketime", "-f", shift], home.path());
        let tables = command.arg("tables").arg(incident.path("t.dump")).arg("--json").output().unwrap();
        assert!(tables.status.success(), "{}", String::from_utf8_lossy(&tables.stderr));
        let tables: serde_json::Value = serde_json::from_slice(&tables.stdout).unwrap();
        let warnings = tables["server"]["warnings"].to_string();
        let side = if shift == "-1d" { "ahead of" } else { "behind" };
        assert!(warnings.contains("the server's clock is 86") && warnings.contains(side), "{warnings}");
        let (applied, words) = incident.under(shift, &["faketime", "-f", shift], home.path());
        assert!(applied, "{words}");
    }
}

#[test]
fn fm_16_without_memory_it_ends_and_nothing_is_half_done() {
    let incident = Incident::new("fm_16");
    let home = tempfile::tempdir().unwrap();
    let (mut ended, mut done) = (0, 0);
    for megabytes in [2, 8, 16, 20, 24, 28, 32, 40, 48, 64, 256] {
        let limit = format!("--data={}", megabytes << 20);
        // An allocation that fails ends the program where it stands; what counts is what it leaves behind.
        let output = incident.recover(&["prlimit", &limit], home.path());
        let applied = incident.applied(&format!("{megabytes} MB of memory"));
        assert!(!output.status.success() || applied, "{megabytes} MB: said to be done, and is not");
        assert!(output.status.success() || megabytes < 256, "{}", String::from_utf8_lossy(&output.stderr));
        if output.status.success() { done += 1 } else { ended += 1 }
    }
    assert!(ended > 0 && done > 0, "{ended} ended early, {done} came to their end");
}
