//! Incremental base backups of a real PostgreSQL 18: a full one, two that rest on it, and what is said when one is missing.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat::drill::cluster::Cluster;
use serde_json::Value;

use crate::archive::fetched;
use crate::cluster::{archived, psql};
use crate::point_in_time::{Cloned, lifeboat, ok, path, refused, segments};

/// A server that archives and summarizes its WAL; it ends before its folder goes.
struct Lab {
    cluster: Cluster,
    root: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let root = tempfile::Builder::new().prefix("lb-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let archive =
            format!("archive_command=test ! -f {0}/pg/archive/%f && cp %p {0}/pg/archive/%f", path(root.path()));
        let settings = ["archive_mode=on", &archive, "summarize_wal=on", "track_commit_timestamp=on"];
        let cluster = Cluster::create(&root.path().join("pg"), &fetched(18), &settings).unwrap();
        let owner = fs::metadata(root.path().join("pg")).unwrap();
        for name in ["archive", "backups"] {
            let folder = root.path().join("pg").join(name);
            fs::create_dir(&folder).unwrap();
            std::os::unix::fs::chown(&folder, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        Self { cluster, root }
    }

    fn sql(&self, sql: &str) -> String {
        psql(&self.cluster.conninfo("postgres"), sql)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.root.path().join("pg").join(name)
    }

    fn base(&self, name: &str, on: Option<&str>) {
        let mut command = self.cluster.command("pg_basebackup").unwrap();
        command.arg("-D").arg(self.folder(name)).args(["-c", "fast", "--no-sync", "-l", name]);
        if let Some(on) = on {
            command.arg("--incremental").arg(self.folder(on).join("backup_manifest"));
        }
        ok(command.output().unwrap());
    }

    /// What a transaction of the ledger is called, and when it was committed.
    fn add(&self, from: u32, to: u32) -> (String, String) {
        let said = self.sql(&format!(
            "begin; insert into ledger select i, i from generate_series({from}, {to}) as i; \
             update ledger set v = v + 1 where id <= 3; select txid_current() as x \\gset\ncommit; \
             select :x, to_char(pg_xact_commit_timestamp(:'x'::xid) at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.USZ')"
        ));
        let (xid, at) = said.split_once('|').unwrap();
        (xid.to_owned(), at.to_owned())
    }
}

fn sums(clone: &Cloned) -> String {
    clone.ask("select count(*), sum(v), max(id) from ledger")
}

#[test]
fn a_chain_of_incremental_base_backups_is_combined_and_a_broken_one_is_told_with_what_is_left() {
    let lab = Lab::new();
    lab.sql("create table ledger (id int primary key, v int); create table big as select i, repeat('x', 500) as t from generate_series(1, 20000) i");
    lab.add(1, 100);
    lab.base("backups/full", None);
    lab.add(101, 200);
    lab.base("backups/one", Some("backups/full"));
    lab.add(201, 300);
    lab.base("backups/two", Some("backups/one"));
    let moved = |name: &str| lab.folder("backups").join(name);
    let (xid, at) = lab.add(301, 400);
    let expected = lab.sql("select count(*), sum(v), max(id) from ledger");
    lab.add(401, 500);
    let last = lab.sql("select pg_walfile_name(pg_switch_wal())");
    let archive = lab.folder("archive");
    archived(&archive.join(&last));
    let programs = fetched(18);
    let scratch = lab.root.path();

    let ask = |bases: &Path, archive: &Path| {
        let asked = ["windows", path(bases), "--wal", path(archive), "--programs", path(&programs), "--json"];
        serde_json::from_str::<Value>(&ok(lifeboat(&asked))).unwrap()["bases"].clone()
    };
    let bases = ask(&lab.folder("backups"), &archive);
    let two = bases.as_array().unwrap().iter().find(|base| base["label"]["name"] == "backups/two").unwrap();
    assert_eq!(two["rests_on"], serde_json::json!([path(&moved("one")), path(&moved("full"))]), "{bases}");
    assert_eq!(two["windows"][0]["open"], true, "{bases}");

    let target = ["--programs", path(&programs), "--xid", &xid];
    let clone = Cloned::new(&moved("two"), &archive, scratch.join("c"), &target);
    assert_eq!(sums(&clone), expected);
    assert_eq!(clone.ask("select count(*), sum(length(t)) from big"), "20000|10000000");
    assert_eq!(clone.ask("show archive_mode"), "off");
    let left = ok(Command::new("find").arg(&clone.folder).args(["-name", "INCREMENTAL.*"]).output().unwrap());
    assert_eq!(left, "");
    drop(clone);
    let clone = Cloned::new(&moved("one"), &archive, scratch.join("c"), &["--programs", path(&programs), "--to", &at]);
    assert_eq!(sums(&clone), expected);
    drop(clone);

    // The one in the middle is gone: the chain is broken, the full one still leads everywhere.
    fs::rename(moved("one"), scratch.join("elsewhere")).unwrap();
    let into = scratch.join("d");
    let newest = moved("two");
    let asked = ["clone", path(&newest), "--wal", path(&archive), "--into", path(&into)];
    let said = refused(&[&asked[..], &target].concat());
    assert!(said.contains("the backup chain of") && said.contains("is missing"), "{said}");
    assert!(said.contains(&format!("Still whole is {}", path(&moved("full")))), "{said}");
    assert!(said.contains("nothing is lost by that"), "{said}");
    assert!(!into.exists());
    let bases = ask(&lab.folder("backups"), &archive).to_string();
    assert!(bases.contains("is broken") && bases.contains("Still whole is"), "{bases}");
    let clone = Cloned::new(&moved("full"), &archive, scratch.join("c"), &target);
    assert_eq!(sums(&clone), expected);
    drop(clone);

    // A recovery takes the one that is whole by itself, and tells of the other.
    let clones = scratch.join("clones");
    fs::create_dir(&clones).unwrap();
    let (config, answers) = (scratch.join("config.toml"), scratch.join("answers.toml"));
    let text = format!(
        "[[system]]\nname = \"s\"\ndatabase = \"{}\"\nbase_backups = [\"{}\"]\nwal_archive = \"{}\"\nclones = \"{}\"\n",
        lab.cluster.conninfo("postgres"),
        path(&lab.folder("backups")),
        path(&archive),
        path(&clones)
    );
    fs::write(&config, text).unwrap();
    fs::write(&answers, format!("moment = \"xid {xid}\"\nkeep_clone = true\nconsent = \"\"\n")).unwrap();
    let recover = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(["--config", path(&config), "recover", "--answers", path(&answers)]).env("HOME", scratch);
        let search = format!("{}:{}", path(&programs), std::env::var("PATH").unwrap());
        command.env("XDG_STATE_HOME", scratch.join("state")).env("PATH", search).output().unwrap()
    };
    let report = ok(recover());
    assert!(report.contains(path(&moved("full"))) && !report.contains(path(&moved("two"))), "{report}");
    let kept = fs::read_dir(&clones).unwrap().next().unwrap().unwrap().path();
    ok(lifeboat(&["clone", "--drop", path(&kept)]));
    // The newest is taken again when it is whole.
    fs::rename(scratch.join("elsewhere"), moved("one")).unwrap();
    let report = ok(recover());
    assert!(report.contains(path(&moved("two"))), "{report}");
    let kept = fs::read_dir(&clones).unwrap().next().unwrap().unwrap().path();
    ok(lifeboat(&["clone", "--drop", path(&kept)]));
    fs::rename(moved("one"), scratch.join("elsewhere")).unwrap();

    // With WAL missing as well, what is lost is said.
    let start = ok(Command::new("head").args(["-n", "1"]).arg(moved("two").join("backup_label")).output().unwrap());
    let cut = start.split("file ").nth(1).unwrap().trim_end().trim_end_matches(')').to_owned();
    let gone = segments(&archive).into_iter().rfind(|name| *name < cut).unwrap();
    fs::rename(archive.join(&gone), scratch.join(&gone)).unwrap();
    let said = refused(&[&asked[..], &target].concat());
    assert!(said.contains("is lost with the chain") && said.contains(&gone), "{said}");

    // Nothing whole is left at all.
    fs::rename(moved("full"), scratch.join("full")).unwrap();
    let said = refused(&[&asked[..], &target].concat());
    assert!(said.contains("no earlier base backup beside it that is whole"), "{said}");
}

#[test]
fn a_chain_is_combined_out_of_tars_and_out_of_a_snapshot() {
    let lab = Lab::new();
    lab.sql("create table ledger (id int primary key, v int)");
    lab.add(1, 100);
    lab.base("backups/full", None);
    lab.add(101, 200);
    let mut command = lab.cluster.command("pg_basebackup").unwrap();
    command.arg("-D").arg(lab.folder("backups/one")).args(["-c", "fast", "--no-sync", "-Ft", "-z", "--incremental"]);
    ok(command.arg(lab.folder("backups/full/backup_manifest")).output().unwrap());
    lab.add(201, 300);
    lab.base("backups/two", Some("backups/one"));
    let (xid, _) = lab.add(301, 400);
    let expected = lab.sql("select count(*), sum(v), max(id) from ledger");
    lab.add(401, 500);
    let last = lab.sql("select pg_walfile_name(pg_switch_wal())");
    archived(&lab.folder("archive").join(&last));
    let (programs, archive, scratch) = (fetched(18), lab.folder("archive"), lab.root.path());
    let target = ["--programs", path(&programs), "--xid", &xid];
    // A tree that rests on tars, and tars that rest on a tree.
    for newest in ["two", "one"] {
        let clone = Cloned::new(&lab.folder("backups").join(newest), &archive, scratch.join("c"), &target);
        assert_eq!(sums(&clone), expected, "{newest}");
        assert!(!clone.folder.join("chain").exists(), "{newest}");
    }

    let (repository, password) = (scratch.join("repository"), scratch.join("password"));
    fs::write(&password, "secret").unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).env("XDG_CONFIG_HOME", "/nonexistent");
        command.env("RESTIC_REPOSITORY", &repository).env("RESTIC_PASSWORD_FILE", &password);
        ok(command.output().unwrap())
    };
    run("restic", &["init", "-q"]);
    run("restic", &["backup", "-q", "--no-cache", path(&lab.folder("backups"))]);
    let newest = || {
        let snapshots: Value = serde_json::from_str(&run("restic", &["snapshots", "--json", "--no-cache"])).unwrap();
        let id = snapshots.as_array().unwrap().last().unwrap()["short_id"].as_str().unwrap().to_owned();
        format!("{id}:{}", path(&lab.folder("backups/two")))
    };
    let (base, folder) = (newest(), scratch.join("c"));
    let asked = ["clone", &base, "--wal", path(&archive), "--into", path(&folder), "--json"];
    let report = serde_json::from_str(&run(env!("CARGO_BIN_EXE_lifeboat"), &[&asked[..], &target].concat())).unwrap();
    let clone = Cloned { folder: folder.clone(), report };
    assert_eq!(sums(&clone), expected);
    drop(clone);

    // Only the newest is in the snapshot.
    run("restic", &["backup", "-q", "--no-cache", path(&lab.folder("backups/two"))]);
    let base = newest();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    let asked = ["clone", &base, "--wal", path(&archive), "--into", path(&folder)];
    command.args([&asked[..], &target].concat()).env("XDG_CONFIG_HOME", "/nonexistent");
    let output = command.env("RESTIC_REPOSITORY", &repository).env("RESTIC_PASSWORD_FILE", &password).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("is broken"), "{said}");
    assert!(!scratch.join("c").exists());
}
