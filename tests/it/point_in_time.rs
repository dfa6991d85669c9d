//! A moment in time, on a real PostgreSQL that archives: a workload keeps its own ledger, clones are laid out at random
//! targets, and what they hold is compared with the ledger. Each bad input is refused, with what can be done.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use lifeboat::drill::cluster::Cluster;
use serde_json::Value;

use crate::cluster::{archived, pg_programs, psql};

/// One transaction of the workload, and what the table held after it.
struct Committed {
    xid: u64,
    /// In microseconds since 1970.
    at: i64,
    deleted: usize,
    rows: BTreeMap<i64, i64>,
}

struct Lab {
    root: tempfile::TempDir,
    cluster: Cluster,
    ledger: Vec<Committed>,
    seed: u64,
    /// Nobody drops a static: a shell removes the folder once we are gone and the server's own guard has done its duty.
    _broom: std::process::Child,
}

static LAB: LazyLock<Lab> = LazyLock::new(Lab::new);

impl Lab {
    fn new() -> Self {
        let root = tempfile::Builder::new().prefix("lb-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let archive = root.path().join("pg/archive");
        let command = format!("archive_command=test ! -f {0}/%f && cp %p {0}/%f", archive.display());
        let preload = "session_preload_libraries=auto_explain";
        let settings = ["archive_mode=on", &command, "track_commit_timestamp=on", "max_connections=120", preload];
        let cluster = Cluster::create(&root.path().join("pg"), &pg_programs(), &settings).unwrap();
        for name in ["archive", "space"] {
            let folder = root.path().join("pg").join(name);
            fs::create_dir(&folder).unwrap();
            let owner = fs::metadata(root.path().join("pg")).unwrap();
            std::os::unix::fs::chown(&folder, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let seed = u64::from(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos()) | 1;
        let wait = "trap '' INT HUP TERM; cat > /dev/null; while [ -e \"$1/pg\" ]; do sleep 0.1; done; rm -rf \"$1\"";
        let mut broom = Command::new("/bin/sh");
        broom.args(["-c", wait, "broom"]).arg(root.path()).current_dir("/").stdin(std::process::Stdio::piped());
        // The output of a test is waited for until nobody holds it any more.
        broom.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let broom = std::os::unix::process::CommandExt::process_group(&mut broom, 0).spawn().unwrap();
        let mut lab = Self { root, cluster, ledger: Vec::new(), seed, _broom: broom };
        let sql = lab.conninfo();
        psql(&sql, &format!("create tablespace ts location '{}/pg/space'", lab.root.path().display()));
        psql(&sql, "create table ledger (id bigint primary key, v bigint); create table far (a int) tablespace ts");
        psql(&sql, "insert into far values (42)");
        // Settings that must not come to life in a clone.
        psql(&sql, "alter system set primary_conninfo = 'host=production password=hidden'");
        lab.base("tar", &["-Ft", "-z"]);
        let moved = format!("{0}/pg/space={0}/pg/tree-space", lab.root.path().display());
        lab.base("tree", &["-Fp", "-T", &moved]);
        lab.work(40);
        psql(&sql, "select pg_create_restore_point('before the ''fix''')");
        lab.work(10);
        psql(&sql, "select pg_switch_wal()");
        lab.base("late", &["-Ft"]);
        // The last segment is there once the server says so.
        let last = psql(&sql, "insert into far values (1); select pg_walfile_name(pg_switch_wal())");
        archived(&lab.archive().join(last));
        lab
    }

    fn base(&self, name: &str, arguments: &[&str]) {
        let mut command = self.cluster.command("pg_basebackup").unwrap();
        command.arg("-D").arg(self.base_folder(name)).args(["-c", "fast", "--no-sync"]).args(arguments);
        ok(command.output().unwrap());
    }

    fn work(&mut self, transactions: usize) {
        let mut rows = self.ledger.last().map(|last| last.rows.clone()).unwrap_or_default();
        for _ in 0..transactions {
            let mut sql = String::from("set timezone = 'UTC'; begin;\n");
            let mut deleted = 0;
            for _ in 0..=self.random(3) {
                let (id, v) = (self.random(50).cast_signed(), self.random(1000).cast_signed());
                if self.random(4) == 0 {
                    deleted += rows.len();
                    rows.retain(|known, _| known % 5 != id % 5);
                    deleted -= rows.len();
                    sql.push_str(&format!("delete from ledger where id % 5 = {id} % 5;\n"));
                } else {
                    rows.insert(id, v);
                    sql.push_str(&format!(
                        "insert into ledger values ({id}, {v}) on conflict (id) do update set v = excluded.v;\n"
                    ));
                }
            }
            sql.push_str("select txid_current() as x \\gset\ncommit;\n");
            sql.push_str("select :x, (extract(epoch from pg_xact_commit_timestamp(:'x'::xid)) * 1000000)::bigint");
            let said = psql(&self.conninfo(), &sql);
            let (xid, at) = said.split_once('|').unwrap();
            let (xid, at) = (xid.parse().unwrap(), at.parse().unwrap());
            self.ledger.push(Committed { xid, at, deleted, rows: rows.clone() });
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    fn conninfo(&self) -> String {
        self.cluster.conninfo("postgres")
    }

    fn archive(&self) -> PathBuf {
        self.root.path().join("pg/archive")
    }

    fn base_folder(&self, name: &str) -> PathBuf {
        self.root.path().join("pg").join(name)
    }

    /// A folder of a test's own, removed at its end.
    fn scratch(&self) -> tempfile::TempDir {
        let folder = tempfile::Builder::new().prefix("s").tempdir_in(self.root.path()).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    fn at(&self, number: usize, micros_later: i64) -> String {
        let at = chrono::DateTime::from_timestamp_micros(self.ledger[number].at + micros_later).unwrap();
        at.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
    }
}

pub fn ok(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn lifeboat(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command.args(arguments).env("XDG_CONFIG_HOME", "/nonexistent").env("TZ", "UTC").output().unwrap()
}

/// What a refusal says; it must leave nothing behind in the folder.
pub fn refused(arguments: &[&str]) -> String {
    let output = lifeboat(arguments);
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(matches!(output.status.code(), Some(2..=5)), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A clone that is removed at its end.
pub struct Cloned {
    pub folder: PathBuf,
    pub report: Value,
}

impl Cloned {
    pub fn new(base: &Path, wal: &Path, folder: PathBuf, target: &[&str]) -> Self {
        let mut arguments = vec!["clone", path(base), "--wal", path(wal), "--into", path(&folder), "--json"];
        arguments.extend(target);
        let report = serde_json::from_str(&ok(lifeboat(&arguments))).unwrap();
        Self { folder, report }
    }

    pub fn ask(&self, sql: &str) -> String {
        psql(&format!("{} dbname=postgres", self.report["conninfo"].as_str().unwrap()), sql)
    }

    fn rows(&self) -> BTreeMap<i64, i64> {
        let said = self.ask("select id, v from ledger");
        let pairs = said.lines().map(|line| line.split_once('|').unwrap());
        pairs.map(|(id, v)| (id.parse().unwrap(), v.parse().unwrap())).collect()
    }
}

impl Drop for Cloned {
    fn drop(&mut self) {
        let _ = lifeboat(&["clone", "--drop", path(&self.folder)]);
    }
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Names, lengths and times of an archive's files, and what is in them.
fn fingerprint(folder: &Path) -> BTreeSet<(String, Vec<u8>, std::time::SystemTime)> {
    use sha2::Digest as _;
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    files
        .map(|file| {
            let hash = sha2::Sha256::digest(fs::read(file.path()).unwrap()).to_vec();
            (file.file_name().into_string().unwrap(), hash, file.metadata().unwrap().modified().unwrap())
        })
        .collect()
}

/// A copy of the archive, without some files.
fn archive_without(folder: &Path, missing: impl Fn(&str) -> bool) -> PathBuf {
    let copy = folder.join("archive");
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(LAB.archive()).unwrap().map(|entry| entry.unwrap()) {
        if !missing(file.file_name().to_str().unwrap()) {
            fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
    }
    copy
}

pub fn segments(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.len() == 24).collect();
    names.sort();
    names
}

#[test]
fn ten_random_targets_hold_what_the_ledger_held() {
    let lab = &*LAB;
    let before = fingerprint(&lab.archive());
    let scratch = lab.scratch();
    let mut seed = lab.seed;
    for round in 0..10 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = 1 + (seed >> 33) as usize % (lab.ledger.len() - 2);
        let xid = lab.ledger[number].xid.to_string();
        let gap = lab.ledger[number + 1].at - lab.ledger[number].at;
        let (target, expected) = match round % 4 {
            0 => (vec!["--to".to_owned(), lab.at(number, gap / 2)], number),
            1 => (vec!["--xid".to_owned(), xid], number),
            2 => (vec!["--before".to_owned(), "--xid".to_owned(), xid], number - 1),
            // Exactly at a commit: it is in.
            _ => (vec!["--to".to_owned(), lab.at(number, 0)], number),
        };
        let target: Vec<_> = target.iter().map(String::as_str).collect();
        let clone = Cloned::new(&lab.base_folder("tar"), &lab.archive(), scratch.path().join("c"), &target);
        assert_eq!(clone.rows(), lab.ledger[expected].rows, "seed {}, {target:?}: {}", lab.seed, clone.report);
        assert_eq!(clone.report["proof"]["paused"], true);
        let last = clone.report["proof"]["last_transaction"].as_str().unwrap();
        let last = chrono::DateTime::parse_from_rfc3339(last).unwrap().timestamp_micros();
        assert_eq!(last, lab.ledger[expected].at);
    }
    assert_eq!(fingerprint(&lab.archive()), before, "the archive was written to");
}

#[test]
fn a_restore_point_and_the_last_transaction_are_targets_too() {
    let (lab, scratch) = (&*LAB, LAB.scratch());
    let named = ["--name", "before the 'fix'"];
    let clone = Cloned::new(&lab.base_folder("tar"), &lab.archive(), scratch.path().join("c"), &named);
    assert_eq!(clone.rows(), lab.ledger[39].rows);
    drop(clone);
    let base = path(&lab.base_folder("tar")).to_owned();
    let windows = ok(lifeboat(&["windows", &base, "--wal", path(&lab.archive()), "--json"]));
    let windows: Value = serde_json::from_str(&windows).unwrap();
    let reach = &windows["bases"][0]["windows"][0]["reach"];
    let latest = reach["latest"].as_str().unwrap();
    let clone = Cloned::new(Path::new(&base), &lab.archive(), scratch.path().join("c"), &["--to", latest]);
    assert_eq!(clone.rows(), lab.ledger[49].rows);
    assert_eq!(clone.ask("select count(*) from far"), "2");
    // Both ends of the window are within reach.
    drop(clone);
    let earliest = reach["earliest"].as_str().unwrap();
    let clone = Cloned::new(Path::new(&base), &lab.archive(), scratch.path().join("c"), &["--to", earliest]);
    assert_eq!(clone.rows(), BTreeMap::new());
}

#[test]
fn moments_tell_which_transaction_deleted_how_many_rows() {
    let lab = &*LAB;
    let (number, worst) = lab.ledger.iter().enumerate().max_by_key(|(_, committed)| committed.deleted).unwrap();
    let (base, archive, live) = (lab.base_folder("tar"), lab.archive(), lab.conninfo());
    let asked = ["moments", path(&base), "--wal", path(&archive), "--table", "public.ledger", "--database", &live];
    let (from, until) = (lab.at(0, 0), lab.at(49, 0));
    let said = ok(lifeboat(&[&asked[..], &["--from", &from, "--until", &until, "--json"]].concat()));
    let said: Value = serde_json::from_str(&said).unwrap();
    let moments = said["moments"].as_array().unwrap();
    let found = moments.iter().find(|moment| moment["xid"] == worst.xid).unwrap();
    // A row that is inserted and deleted by one transaction is in both.
    assert!(found["deleted"].as_u64().unwrap() >= worst.deleted as u64, "{found}");
    let at = chrono::DateTime::parse_from_rfc3339(found["at"].as_str().unwrap()).unwrap().timestamp_micros();
    assert_eq!(at, worst.at);
    let only = [lab.at(number, 0), lab.at(number, 0)];
    let said = ok(lifeboat(&[&asked[..], &["--from", &only[0], "--until", &only[1]]].concat()));
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(&format!("--xid {} --before", worst.xid)), "{said}");
}

/// WAL is unpacked some segments at a time: nothing may be missed or counted twice where one part ends and the next begins.
#[test]
fn wal_of_many_segments_is_read_without_a_seam() {
    const TRANSACTIONS: usize = 40;
    const ROWS: u64 = 8000;
    let root = tempfile::Builder::new().prefix("lb-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let archive = root.path().join("pg/archive");
    let command = format!("archive_command=cp %p {}/%f", archive.display());
    let cluster = Cluster::create(&root.path().join("pg"), &pg_programs(), &["archive_mode=on", &command]).unwrap();
    fs::create_dir(&archive).unwrap();
    let owner = fs::metadata(root.path().join("pg")).unwrap();
    std::os::unix::fs::chown(&archive, Some(owner.uid()), Some(owner.gid())).unwrap();
    let (live, base) = (cluster.conninfo("postgres"), root.path().join("pg/base"));
    psql(&live, "create table wide (n int, pad text); alter table wide alter pad set storage plain");
    let mut backup = cluster.command("pg_basebackup").unwrap();
    ok(backup.arg("-D").arg(&base).args(["-Ft", "-c", "fast", "--no-sync"]).output().unwrap());
    for number in 0..TRANSACTIONS {
        psql(&live, &format!("insert into wide select {number}, repeat('x', 1000) from generate_series(1, {ROWS})"));
    }
    psql(&live, "select pg_create_restore_point('full'); delete from wide");
    let last = archive.join(psql(&live, "select pg_walfile_name(pg_switch_wal())"));
    archived(&last);
    assert!(segments(&archive).len() > 20);
    let asked = ["moments", path(&base), "--wal", path(&archive), "--table", "public.wide", "--database", &live];
    let said = ok(lifeboat(
        &[&asked[..], &["--from", "2000-01-01T00:00:00Z", "--until", "2100-01-01T00:00:00Z", "--json"]].concat(),
    ));
    let said: Value = serde_json::from_str(&said).unwrap();
    let counts = |kind: &str| -> Vec<u64> {
        said["moments"].as_array().unwrap().iter().map(|moment| moment[kind].as_u64().unwrap()).collect()
    };
    assert_eq!(counts("inserted"), [vec![ROWS; TRANSACTIONS], vec![0]].concat());
    assert_eq!(counts("deleted"), [vec![0; TRANSACTIONS], vec![ROWS * TRANSACTIONS as u64]].concat());
    // No more WAL lies beside a clone than replay needs.
    let clone = Cloned::new(&base, &archive, root.path().join("c"), &["--name", "full"]);
    assert_eq!(clone.ask("select count(*) from wide"), (ROWS * TRANSACTIONS as u64).to_string());
    let (staged, all) = (segments(&root.path().join("c/wal")).len(), segments(&archive).len());
    assert!(staged > 16 && staged < all, "{staged} of {all}");
}

#[test]
fn a_base_backup_and_wal_in_a_snapshot_are_read_there_and_compressed_segments_too() {
    let (lab, scratch) = (&*LAB, LAB.scratch());
    let archive = archive_without(scratch.path(), |_| false);
    for (number, file) in segments(&archive).iter().enumerate() {
        let (from, bytes) = (archive.join(file), fs::read(archive.join(file)).unwrap());
        match number % 3 {
            0 => {
                let gz = fs::File::create(archive.join(format!("{file}.gz"))).unwrap();
                let mut gz = flate2::write::GzEncoder::new(gz, flate2::Compression::fast());
                std::io::Write::write_all(&mut gz, &bytes).unwrap();
                gz.finish().unwrap();
            }
            1 => fs::write(archive.join(format!("{file}.zst")), zstd::encode_all(&bytes[..], 1).unwrap()).unwrap(),
            _ => continue,
        }
        fs::remove_file(from).unwrap();
    }
    let (repository, password) = (scratch.path().join("repository"), scratch.path().join("password"));
    fs::write(&password, "secret").unwrap();
    let restic = |arguments: &[&str]| {
        let mut restic = Command::new("restic");
        restic.args(arguments).args(["--no-cache", "--json", "-q"]);
        restic.env("RESTIC_REPOSITORY", &repository).env("RESTIC_PASSWORD_FILE", &password);
        ok(restic.output().unwrap())
    };
    restic(&["init"]);
    restic(&["backup", path(&lab.base_folder("tar")), path(&archive)]);
    let snapshots: Value = serde_json::from_str(&restic(&["snapshots"])).unwrap();
    let id = snapshots[0]["short_id"].as_str().unwrap();
    let folder = scratch.path().join("c");
    let (base, wal) = (format!("{id}:{}", path(&lab.base_folder("tar"))), format!("{id}:{}", path(&archive)));
    let xid = lab.ledger[20].xid.to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command.args(["clone", &base, "--wal", &wal, "--xid", &xid, "--json", "--into"]).arg(&folder);
    command.env("RESTIC_REPOSITORY", &repository).env("RESTIC_PASSWORD_FILE", &password);
    let report = serde_json::from_str(&ok(command.env("XDG_CONFIG_HOME", "/nonexistent").output().unwrap())).unwrap();
    let clone = Cloned { folder, report };
    assert_eq!(clone.rows(), lab.ledger[20].rows);
}

#[test]
fn fm_69_a_gap_is_shown_and_what_lies_behind_it_is_refused_with_the_nearest_instants() {
    let (lab, scratch) = (&*LAB, LAB.scratch());
    let all = segments(&lab.archive());
    let base = lab.base_folder("tar");
    let gone = all[all.len() - 3].clone();
    let archive = archive_without(scratch.path(), |name| name == gone);
    let said = ok(lifeboat(&["windows", path(&base), "--wal", path(&archive)]));
    assert!(said.contains("gap: 1 segment is missing") && said.contains(&gone), "{said}");
    let into = scratch.path().join("c");
    let said = refused(&["clone", path(&base), "--wal", path(&archive), "--to", &lab.at(49, 0), "--into", path(&into)]);
    assert!(said.contains("cannot be reached") || said.contains("nothing can be reached"), "{said}");
    assert!(said.contains(&format!("WAL segment {gone} is missing")), "{said}");
    assert!(!into.exists());
}

#[test]
fn fm_69_a_segment_that_is_cut_off_is_told_and_not_used() {
    let (lab, scratch) = (&*LAB, LAB.scratch());
    let (base, archive) = (lab.base_folder("tar"), archive_without(scratch.path(), |_| false));
    let last = segments(&archive).pop().unwrap();
    let at = lab.at(49, 0);
    let cut = |bytes: u64| fs::File::options().write(true).open(archive.join(&last)).unwrap().set_len(bytes).unwrap();
    cut(15_663_104);
    let said = ok(lifeboat(&["windows", path(&base), "--wal", path(&archive)]));
    assert!(said.contains(&format!("{last} is cut off, or being copied right now: it has 15,663,104")), "{said}");
    // What lies before it is reached all the same.
    let clone = Cloned::new(&base, &archive, scratch.path().join("c"), &["--to", &lab.at(5, 0)]);
    assert_eq!(clone.rows(), lab.ledger[5].rows);
    drop(clone);
    // In the middle it is a gap; also when it is empty.
    let first = segments(&archive)[2].clone();
    fs::write(archive.join(&first), "").unwrap();
    let into = scratch.path().join("c");
    let said = refused(&["clone", path(&base), "--wal", path(&archive), "--to", &at, "--into", path(&into)]);
    assert!(said.contains(&format!("WAL segment {first} is missing")), "{said}");
    assert!(!into.exists());
}

#[test]
fn fm_69_targets_before_the_end_of_the_backup_in_the_future_or_unknown_are_refused() {
    let (lab, scratch) = (&*LAB, LAB.scratch());
    let (base, late, archive) = (lab.base_folder("tar"), lab.base_folder("late"), lab.archive());
    let into = scratch.path().join("c");
    let ask = |base: &Path, target: &[&str]| {
        let asked = ["clone", path(base), "--wal", path(&archive), "--into", path(&into)];
        let said = refused(&[&asked[..], target].concat());
        assert!(!into.exists(), "{said}");
        said
    };
    let said = ask(&late, &["--to", &lab.at(5, 0)]);
    assert!(said.contains("cannot be reached") && said.contains("an older base backup is needed"), "{said}");
    assert!(said.contains("nearest instants that can be reached: not before"), "{said}");
    let said = ask(&base, &["--to", "2999-01-01T00:00:00Z"]);
    assert!(said.contains("lies in the future"), "{said}");
    let said = ask(&base, &["--to", &chrono::Utc::now().to_rfc3339()]);
    assert!(said.contains("not after"), "{said}");
    let said = ask(&base, &["--xid", "4000000000"]);
    assert!(said.contains("transaction 4000000000 cannot be reached"), "{said}");
    let said = ask(&base, &["--name", "nobody made it"]);
    assert!(said.contains("Restore points that can be reached: \"before the 'fix'\""), "{said}");
    let said = ask(&base, &["--lsn", "FF/0"]);
    assert!(said.contains("Positions from"), "{said}");
}

#[test]
fn fm_69_wal_of_another_cluster_is_refused() {
    let (lab, scratch) = (&*LAB, LAB.scratch());
    let archive = archive_without(scratch.path(), |_| false);
    let names = segments(&archive);
    let foreign = |name: &String| {
        let mut bytes = fs::read(archive.join(name)).unwrap();
        bytes[24] ^= 1;
        fs::write(archive.join(name), bytes).unwrap();
    };
    let (base, into) = (lab.base_folder("tar"), scratch.path().join("c"));
    let asked = ["clone", path(&base), "--wal", path(&archive), "--to", &lab.at(30, 0), "--into", path(&into)];
    // One in the middle, then all.
    foreign(&names[names.len() / 2]);
    let said = refused(&asked);
    assert!(said.contains("mixes two clusters"), "{said}");
    assert!(!into.exists());
    names.iter().enumerate().filter(|(number, _)| *number != names.len() / 2).for_each(|(_, name)| foreign(name));
    let said = refused(&asked);
    assert!(said.contains("and the WAL in") && said.contains("of system"), "{said}");
}

#[test]
fn fm_69_a_fork_asks_for_the_timeline_and_one_from_before_the_backup_is_refused() {
    let (lab, scratch) = (&*LAB, LAB.scratch());
    let (base, late) = (lab.base_folder("tar"), lab.base_folder("late"));
    let archive = archive_without(scratch.path(), |_| false);
    let xid = lab.ledger[10].xid.to_string();
    let clone = Cloned::new(&base, &lab.archive(), scratch.path().join("c"), &["--xid", &xid]);
    // Somebody promotes it, and works there.
    clone.ask("select pg_wal_replay_resume()");
    while clone.ask("select pg_is_in_recovery()") == "t" {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    clone.ask("insert into ledger values (777, 777); select pg_switch_wal(); checkpoint");
    for file in fs::read_dir(clone.folder.join("data/pg_wal")).unwrap().map(|entry| entry.unwrap()) {
        if file.file_name().to_str().unwrap().starts_with("00000002") {
            fs::copy(file.path(), archive.join(file.file_name())).unwrap();
        }
    }
    let mut expected = clone.rows();
    drop(clone);
    expected.remove(&777);
    let into = scratch.path().join("d");
    let gap = lab.ledger[11].at - lab.ledger[10].at;
    let at = lab.at(10, gap / 2);
    let asked = ["clone", path(&base), "--wal", path(&archive), "--to", &at, "--into", path(&into)];
    let said = refused(&asked);
    assert!(said.contains("on several timelines: 1, 2") && said.contains("--timeline"), "{said}");
    let said = refused(&[
        "clone",
        path(&late),
        "--wal",
        path(&archive),
        "--to",
        &at,
        "--into",
        path(&into),
        "--timeline",
        "2",
    ]);
    assert!(said.contains("timeline 2 cannot be reached from this base backup"), "{said}");
    let clone = Cloned::new(&base, &archive, into, &["--to", &at, "--timeline", "2"]);
    assert_eq!(clone.rows(), expected);
}

#[test]
fn fm_69_a_clone_killed_in_replay_goes_on_and_is_removed() {
    let (lab, scratch) = (&*LAB, LAB.scratch());
    let into = scratch.path().join("c");
    let xid = lab.ledger[25].xid.to_string();
    let clone = Cloned::new(&lab.base_folder("tar"), &lab.archive(), into.clone(), &["--xid", &xid]);
    let pid = fs::read_to_string(into.join("data/postmaster.pid")).unwrap();
    let pid: i32 = pid.lines().next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(-pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    ok(lifeboat(&["clone", "--resume", path(&into), "--json"]));
    assert_eq!(clone.rows(), lab.ledger[25].rows);
    drop(clone);
    assert!(!into.exists());
    // What is not a clone is never removed.
    let said = refused(&["clone", "--drop", path(&lab.archive())]);
    assert!(said.contains("is not a clone that Lifeboat made"), "{said}");
    assert!(lab.archive().exists());
}

#[test]
fn plain_and_zstd_tars_are_read_and_a_position_is_a_target() {
    let (lab, scratch) = (&*LAB, LAB.scratch());
    let xid = lab.ledger[30].xid.to_string();
    let mut target = ["--xid".to_owned(), xid];
    for suffix in ["tar", "tar.zst"] {
        let base = scratch.path().join(suffix);
        copy_tree(&lab.base_folder("tar"), &base);
        for file in fs::read_dir(&base).unwrap().map(|entry| entry.unwrap().path()) {
            let Some(name) = path(&file).strip_suffix(".tar.gz") else { continue };
            let mut bytes = Vec::new();
            let mut gz = flate2::read::MultiGzDecoder::new(fs::File::open(&file).unwrap());
            std::io::Read::read_to_end(&mut gz, &mut bytes).unwrap();
            let bytes = if suffix == "tar" { bytes } else { zstd::encode_all(&bytes[..], 1).unwrap() };
            fs::write(format!("{name}.{suffix}"), bytes).unwrap();
            fs::remove_file(&file).unwrap();
        }
        let words: Vec<_> = target.iter().map(String::as_str).collect();
        let clone = Cloned::new(&base, &lab.archive(), scratch.path().join("c"), &words);
        assert_eq!(clone.rows(), lab.ledger[30].rows, "{suffix}, {target:?}: {}", clone.report);
        // Where the first one stands is the second one's target: the record there commits nothing.
        let stands = clone.report["proof"]["replay_lsn"].as_str().unwrap().to_owned();
        target = ["--lsn".to_owned(), stands];
    }
}

#[test]
fn a_partial_last_segment_is_replayed_too() {
    let (lab, scratch) = (&*LAB, LAB.scratch());
    let archive = archive_without(scratch.path(), |_| false);
    let last = segments(&archive).pop().unwrap();
    fs::rename(archive.join(&last), archive.join(format!("{last}.partial"))).unwrap();
    let base = lab.base_folder("tar");
    let windows = ok(lifeboat(&["windows", path(&base), "--wal", path(&archive), "--json"]));
    let windows: Value = serde_json::from_str(&windows).unwrap();
    let latest = windows["bases"][0]["windows"][0]["reach"]["latest"].as_str().unwrap().to_owned();
    let clone = Cloned::new(&base, &archive, scratch.path().join("c"), &["--to", &latest]);
    assert_eq!(clone.rows(), lab.ledger[49].rows);
    assert_eq!(clone.ask("select count(*) from far"), "2");
}

#[test]
fn fm_69_a_clone_killed_on_its_way_to_the_target_goes_on() {
    let (lab, scratch) = (&*LAB, LAB.scratch());
    let (base, archive, into) = (lab.base_folder("tar"), lab.archive(), scratch.path().join("c"));
    let xid = lab.ledger[49].xid.to_string();
    // A server may be quicker than we are; then it did not die in replay, and another one has to.
    for _ in 0..10 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(["clone", path(&base), "--wal", path(&archive), "--xid", &xid, "--into", path(&into)]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut console = command.env("XDG_CONFIG_HOME", "/nonexistent").spawn().unwrap();
        let log = || fs::read_to_string(into.join("log")).unwrap_or_default();
        while !log().contains("restored log file") && console.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let pid = fs::read_to_string(into.join("data/postmaster.pid")).unwrap();
        let pid: i32 = pid.lines().next().unwrap().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(-pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        let _ = console.kill();
        console.wait().unwrap();
        if log().contains("recovery stopping") {
            ok(lifeboat(&["clone", "--drop", path(&into)]));
            continue;
        }
        let report = serde_json::from_str(&ok(lifeboat(&["clone", "--resume", path(&into), "--json"]))).unwrap();
        let clone = Cloned { folder: into.clone(), report };
        assert_eq!(clone.rows(), lab.ledger[49].rows);
        return;
    }
    panic!("no server could be killed before it stood at its target");
}

#[test]
fn fm_69_a_clone_that_was_not_laid_out_to_its_end_is_never_started() {
    let (lab, scratch) = (&*LAB, LAB.scratch());
    let into = scratch.path().join("c");
    let base = scratch.path().join("base");
    copy_tree(&lab.base_folder("tar"), &base);
    // The tar of the tablespace is cut off.
    let tars = fs::read_dir(&base).unwrap().map(|entry| entry.unwrap().path());
    let tar = tars.into_iter().find(|tar| !path(tar).contains("base/base") && path(tar).contains("base/1")).unwrap();
    let length = fs::metadata(&tar).unwrap().len();
    fs::File::options().write(true).open(&tar).unwrap().set_len(length / 2).unwrap();
    let said =
        refused(&["clone", path(&base), "--wal", path(&lab.archive()), "--to", &lab.at(9, 0), "--into", path(&into)]);
    assert!(said.contains("damaged or cut off"), "{said}");
    assert!(!into.exists());
    fs::create_dir(&into).unwrap();
    let state = r#"{"lifeboat_clone":1,"laid_out":false,"programs":"/","system":1,"stop":"","set_aside":[]}"#;
    fs::write(into.join("clone.json"), state).unwrap();
    let said = refused(&["clone", "--resume", path(&into)]);
    assert!(said.contains("was not laid out to its end") && said.contains("--drop"), "{said}");
    ok(lifeboat(&["clone", "--drop", path(&into)]));
    assert!(!into.exists());
}

fn copy_tree(from: &Path, to: &Path) {
    ok(Command::new("cp").arg("-a").arg(from).arg(to).output().unwrap());
}

#[test]
fn fm_70_a_tree_with_a_tablespace_asks_for_its_copy_and_keeps_it_in_the_clone() {
    let (lab, scratch) = (&*LAB, LAB.scratch());
    let (tree, archive) = (lab.base_folder("tree"), lab.archive());
    let oid = psql(&lab.conninfo(), "select oid from pg_tablespace where spcname = 'ts'");
    let into = scratch.path().join("c");
    let xid = lab.ledger[5].xid.to_string();
    let said = refused(&["clone", path(&tree), "--wal", path(&archive), "--xid", &xid, "--into", path(&into)]);
    assert!(said.contains("is not followed") && said.contains(&format!("--tablespace {oid}=FOLDER")), "{said}");
    let copy = format!("{oid}={}", path(&lab.base_folder("tree-space")));
    let before = fingerprint(&archive);
    let clone = Cloned::new(&tree, &archive, into.clone(), &["--xid", &xid, "--tablespace", &copy]);
    assert_eq!(clone.ask("select a from far"), "42");
    assert_eq!(fs::read_link(into.join("data/pg_tblspc").join(&oid)).unwrap(), into.join("tablespaces").join(&oid));
    assert_eq!(clone.rows(), lab.ledger[5].rows);
    assert_eq!(fingerprint(&archive), before);
    drop(clone);

    // In a recovery, the configuration says where; else the base backup is told as one that cannot be used.
    let home = scratch.path();
    let recover = |tablespaces: &str| {
        let config = format!(
            "[[system]]\nname = \"s\"\ndatabase = \"{}\"\nbase_backups = [\"{}\"]\nwal_archive = \"{}\"\nclones = \"{}\"\n{tablespaces}",
            lab.conninfo(),
            path(&tree),
            path(&archive),
            path(home)
        );
        fs::write(home.join("config.toml"), config).unwrap();
        fs::write(home.join("answers"), format!("moment = \"xid {xid}\"\nkeep_clone = true\nconsent = \"\"\n"))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.arg("--config").arg(home.join("config.toml")).args(["recover", "--answers"]).arg(home.join("answers"));
        command.env("HOME", home).output().unwrap()
    };
    let output = recover("");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(&format!("tablespaces = [\"{oid}=FOLDER\"]")), "{said}");
    for given in ["tree-space".to_owned(), path(&lab.base_folder("tree-space")).to_owned()] {
        ok(recover(&format!("tablespaces = [\"{oid}={given}\"]\n")));
        let clones = fs::read_dir(home).unwrap().map(|entry| entry.unwrap().path());
        let folder = clones.into_iter().find(|at| path(at).contains("lifeboat-clone-")).unwrap();
        let report = serde_json::json!({ "conninfo": format!("host={} port=5432 user=postgres", path(&folder)) });
        let clone = Cloned { folder, report };
        assert_eq!(
            (clone.ask("select a from far"), clone.rows()),
            ("42".into(), lab.ledger[5].rows.clone()),
            "{given}"
        );
    }
}

#[test]
fn fm_70_a_symlink_out_a_missing_label_and_programs_of_another_version_are_refused() {
    let (lab, scratch) = (&*LAB, LAB.scratch());
    let (tree, archive, into) = (scratch.path().join("tree"), lab.archive(), scratch.path().join("c"));
    copy_tree(&lab.base_folder("tree"), &tree);
    let oid = psql(&lab.conninfo(), "select oid from pg_tablespace where spcname = 'ts'");
    let copy = format!("{oid}={}", path(&lab.base_folder("tree-space")));
    let to = lab.at(9, 0);
    let asked =
        ["clone", path(&tree), "--wal", path(&archive), "--to", &to, "--into", path(&into), "--tablespace", &copy];
    symlink("/etc/passwd", tree.join("base/1/evil")).unwrap();
    let said = refused(&asked);
    assert!(said.contains("base/1/evil of the base backup is a symlink to /etc/passwd"), "{said}");
    fs::remove_file(tree.join("base/1/evil")).unwrap();
    let other = scratch.path().join("programs");
    fs::create_dir(&other).unwrap();
    for name in ["postgres", "pg_waldump"] {
        fs::write(other.join(name), "#!/bin/sh\necho 'postgres (PostgreSQL) 14.9'\n").unwrap();
        fs::set_permissions(other.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let said = refused(&[&asked[..], &["--programs", path(&other)]].concat());
    assert!(said.contains("are of PostgreSQL 14, and the base backup is of 15"), "{said}");
    fs::remove_file(tree.join("backup_label")).unwrap();
    let said = refused(&asked);
    assert!(said.contains("has no backup_label") && said.contains("Take another base backup"), "{said}");
    assert!(!into.exists());
}

#[test]
fn fm_71_nothing_of_production_s_settings_comes_to_life_in_a_clone() {
    let (lab, scratch) = (&*LAB, LAB.scratch());
    let xid = lab.ledger[5].xid.to_string();
    let clone = Cloned::new(&lab.base_folder("tar"), &lab.archive(), scratch.path().join("c"), &["--xid", &xid]);
    for (setting, value) in [
        ("listen_addresses", ""),
        ("archive_mode", "off"),
        ("shared_preload_libraries", ""),
        ("session_preload_libraries", ""),
        ("primary_conninfo", ""),
        ("max_logical_replication_workers", "0"),
        ("restore_command", "cp -- ../wal/%f %p"),
        ("max_connections", "120"),
        ("recovery_target_action", "pause"),
    ] {
        assert_eq!(clone.ask(&format!("show {setting}")), value, "{setting}");
    }
    let report = clone.report.to_string();
    assert!(report.contains("primary_conninfo (postgresql.auto.conf)"), "{report}");
    assert!(!report.contains("hidden"), "{report}");
    let backends =
        clone.ask("select string_agg(distinct backend_type, ',' order by backend_type) from pg_stat_activity");
    assert!(
        !backends.contains("logical") && !backends.contains("archiver") && !backends.contains("walreceiver"),
        "{backends}"
    );
    let mode = fs::metadata(&clone.folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
