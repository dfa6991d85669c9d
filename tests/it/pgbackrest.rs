//! Base backups and WAL in a repository of pgBackRest, encrypted and compressed by lz4, of a real server that archives by it:
//! what can be reached, a clone out of an incremental backup, rows that come back, and what is said when it cannot be read.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use lifeboat::drill::cluster::Cluster;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::{pg_programs, psql};
use crate::point_in_time::{ok, path};

const STANZA: &str = "pgbackrest:main";

/// A server, a full and an incremental backup of it, and a day's work around an incident.
struct Lab {
    root: tempfile::TempDir,
    cluster: Cluster,
    full: String,
    incremental: String,
    /// The transaction that deletes rows and drops a table.
    incident: String,
    /// The tables as they were just before it.
    before: String,
    /// A segment between two later ones.
    middle: String,
    /// Nobody drops a static: a shell removes the folder once we are gone and the server's own guard has done its duty.
    _broom: Child,
}

static LAB: LazyLock<Lab> = LazyLock::new(Lab::new);

impl Lab {
    fn new() -> Self {
        let root = tempfile::Builder::new().prefix("lb-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let settings = format!(
            "archive_command=pgbackrest --config={}/main.conf --stanza=main archive-push %p",
            path(root.path())
        );
        let settings = ["archive_mode=on", &settings, "track_commit_timestamp=on"];
        let cluster = Cluster::create(&root.path().join("pg"), &pg_programs(), &settings).unwrap();
        let owner = fs::metadata(root.path().join("pg")).unwrap();
        for name in ["repository", "locks", "space"] {
            let folder = root.path().join("pg").join(name);
            fs::create_dir(&folder).unwrap();
            std::os::unix::fs::chown(&folder, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let wait = "trap '' INT HUP TERM; cat > /dev/null; while [ -e \"$1/pg\" ]; do sleep 0.1; done; rm -rf \"$1\"";
        let mut broom = Command::new("/bin/sh");
        broom.args(["-c", wait, "broom"]).arg(root.path()).current_dir("/").stdin(Stdio::piped());
        // The output of a test is waited for until nobody holds it any more.
        broom.stdout(Stdio::null()).stderr(Stdio::null());
        let broom = std::os::unix::process::CommandExt::process_group(&mut broom, 0).spawn().unwrap();
        let [full, incremental, incident, before, middle] = Default::default();
        let mut lab = Self { root, cluster, full, incremental, incident, before, middle, _broom: broom };
        lab.config("main.conf", |text| text);
        lab.fill();
        lab
    }

    fn fill(&mut self) {
        psql(
            &self.cluster.conninfo("postgres"),
            &format!("create tablespace ts location '{}/pg/space'", path(self.root.path())),
        );
        psql(&self.cluster.conninfo("postgres"), "create database shop");
        // Settings that must not come to life in a clone.
        psql(
            &self.cluster.conninfo("postgres"),
            "alter system set primary_conninfo = 'host=production password=hidden'",
        );
        self.sql("create table keeps (id int primary key, v text); create table far (a int) tablespace ts");
        self.sql("insert into keeps select i, 'k' || i from generate_series(1, 3000) i; insert into far values (42)");
        self.pgbackrest(&["stanza-create"]);
        self.full = self.back_up("full");
        self.sql("insert into keeps select i, 'since' from generate_series(3001, 3500) i; insert into far values (43)");
        self.incremental = self.back_up("incr");
        self.sql("update keeps set v = 'late' where id <= 10; insert into far values (44)");
        self.before = self.content();
        self.incident = self.sql("begin; delete from keeps where id > 1000; drop table far; select txid_current() as x \\gset\ncommit; select :x");
        let switch = "select pg_walfile_name(pg_switch_wal())";
        self.sql(switch);
        self.sql("insert into keeps values (99998, 'now')");
        self.middle = self.sql(switch);
        self.sql("insert into keeps values (99999, 'now')");
        let last = self.sql(switch);
        let begun = Instant::now();
        while self.sql("select last_archived_wal from pg_stat_archiver") < last {
            assert!(begun.elapsed() < Duration::from_secs(30), "{last} is not archived");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn sql(&self, sql: &str) -> String {
        psql(&self.cluster.conninfo("shop"), sql)
    }

    fn content(&self) -> String {
        self.sql(CONTENT)
    }

    fn pgbackrest(&self, arguments: &[&str]) -> String {
        let mut command = self.cluster.command("/usr/bin/pgbackrest").unwrap();
        command.env("PGBACKREST_CONFIG", self.root.path().join("main.conf")).arg("--stanza=main").args(arguments);
        ok(command.output().unwrap())
    }

    fn back_up(&self, kind: &str) -> String {
        self.pgbackrest(&["backup", &format!("--type={kind}")]);
        let said: Value = serde_json::from_str(&self.pgbackrest(&["info", "--output=json"])).unwrap();
        let newest = said[0]["backup"].as_array().unwrap().last().unwrap();
        assert_eq!(newest["type"], kind);
        newest["label"].as_str().unwrap().to_owned()
    }

    /// Another configuration of pgBackRest.
    fn config(&self, name: &str, change: impl Fn(String) -> String) -> PathBuf {
        let (root, file) = (path(self.root.path()), self.root.path().join(name));
        let text = format!(
            "[global]\nrepo1-path={root}/pg/repository\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=secret\nrepo1-retention-full=9\n\
             lock-path={root}/pg/locks\nlog-level-file=off\nstart-fast=y\ncompress-type=lz4\n[main]\npg1-path={root}/pg/data\n\
             pg1-socket-path={root}/pg\npg1-user=postgres\n"
        );
        fs::write(&file, change(text)).unwrap();
        file
    }

    /// A folder of a test's own, removed at its end.
    fn scratch(&self) -> tempfile::TempDir {
        let folder = tempfile::Builder::new().prefix("s").tempdir_in(self.root.path()).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    /// Every file of the repository: its length and when it was written.
    fn repository(&self) -> BTreeMap<PathBuf, (u64, SystemTime)> {
        let (mut found, mut open) = (BTreeMap::new(), vec![self.root.path().join("pg/repository")]);
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
                let facts = entry.metadata().unwrap();
                if facts.is_dir() {
                    open.push(entry.path());
                } else {
                    found.insert(entry.path(), (facts.len(), facts.modified().unwrap()));
                }
            }
        }
        found
    }

    /// Where an archived segment is.
    fn segment(&self, name: &str) -> PathBuf {
        let mut files = self.repository().into_keys();
        files.find(|file| file.file_name().unwrap().to_str().unwrap().starts_with(name)).unwrap()
    }
}

const CONTENT: &str = "select (select md5(string_agg(k::text, ',' order by id)) from keeps k), \
    (select string_agg(a::text, ',' order by a) from far)";

fn lifeboat(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command.args(arguments).env("XDG_CONFIG_HOME", "/nonexistent").env("TZ", "UTC").env("PGBACKREST_CONFIG", config);
    command
}

fn refused(mut command: Command) -> String {
    let output: Output = command.output().unwrap();
    assert!(matches!(output.status.code(), Some(2..=5)), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn windows(config: &Path) -> Vec<Value> {
    let said = ok(lifeboat(config, &["windows", STANZA, "--wal", STANZA, "--json"]).output().unwrap());
    serde_json::from_str::<Value>(&said).unwrap()["bases"].as_array().unwrap().clone()
}

/// How many processes work inside a folder.
fn inside(folder: &Path) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter(|process| fs::read_link(process.path().join("cwd")).is_ok_and(|at| at.starts_with(folder))).count()
}

#[test]
fn windows_of_a_full_and_an_incremental_backup_are_told_and_a_lost_segment_is_a_gap() {
    let lab = &*LAB;
    let main = lab.root.path().join("main.conf");
    let bases = windows(&main);
    let labels: Vec<_> = bases.iter().map(|base| base["label"]["name"].as_str().unwrap()).collect();
    assert_eq!(labels, [&lab.full, &lab.incremental]);
    for base in &bases {
        assert_eq!((&base["shape"], &base["notes"]), (&"pgbackrest".into(), &serde_json::json!([])), "{base}");
        let window = &base["windows"][0];
        assert_eq!((&window["open"], &window["window"]["gaps"]), (&true.into(), &serde_json::json!([])), "{base}");
        assert!(window["reach"]["latest"].is_string() && window["reach"]["earliest"].is_string(), "{base}");
    }
    let latest = bases[1]["windows"][0]["reach"]["latest"].as_str().unwrap();

    // The same repository without one segment.
    let scratch = lab.scratch();
    let copy = scratch.path().join("repository");
    let original = lab.root.path().join("pg/repository");
    ok(Command::new("cp").arg("-r").args([&original, &copy]).output().unwrap());
    fs::remove_file(copy.join(lab.segment(&lab.middle).strip_prefix(&original).unwrap())).unwrap();
    // It tries again after a quarter of a minute, in case it is the network.
    let cut = lab.config("cut.conf", |text| {
        text.replace(path(&original), path(&copy)).replace("[main]\n", "job-retry=0\n[main]\n")
    });
    for base in windows(&cut) {
        let window = &base["windows"][0];
        assert_eq!(window["window"]["gaps"][0]["first"], lab.middle, "{base}");
        assert_eq!(window["window"]["gaps"][0]["segments"], 1, "{base}");
        assert!(window["reach"]["latest"].as_str().unwrap() < latest, "{base}");
    }
    let (base, into) = (format!("{STANZA}/{}", lab.incremental), scratch.path().join("c"));
    let asked = ["clone", &base, "--wal", STANZA, "--into", path(&into), "--to", latest];
    let said = refused(lifeboat(&cut, &asked));
    assert!(said.contains("cannot be reached") && said.contains("The nearest instants"), "{said}");
    assert!(said.contains(&format!("WAL segment {} is missing", lab.middle)), "{said}");
    // A backup that was damaged on its way, and a segment.
    let file = copy.join("backup/main").join(&lab.full).join("pg_data/global/1262.lz4");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let earliest = bases[1]["windows"][0]["reach"]["earliest"].as_str().unwrap();
    let full = format!("{STANZA}/{}", lab.full);
    let asked = ["clone", &full, "--wal", STANZA, "--into", path(&into), "--to", earliest];
    let said = refused(lifeboat(&cut, &asked));
    assert!(said.contains("pgbackrest restore fails: "), "{said}");
    let (high, low) = bases[0]["label"]["start"].as_str().unwrap().split_once('/').unwrap();
    let number = u32::from_str_radix(low, 16).unwrap() >> 24;
    let first = lab.segment(&format!("00000001{high:0>8}{number:08X}-"));
    let first = copy.join(first.strip_prefix(&original).unwrap());
    fs::write(first, "damaged").unwrap();
    let said = refused(lifeboat(&cut, &asked));
    assert!(said.contains("pgbackrest repo-get fails"), "{said}");
    // Which of several backups is meant has to be said.
    let said = refused(lifeboat(&cut, &["clone", STANZA, "--wal", STANZA, "--into", path(&into), "--to", latest]));
    assert!(said.contains("several base backups") && said.contains(&base), "{said}");
    assert!(!into.exists());
}

#[test]
fn fm_70_an_incremental_backup_comes_back_as_of_just_before_the_incident_whatever_its_configuration_says() {
    let lab = &*LAB;
    let scratch = lab.scratch();
    let (evil, into) = (scratch.path().join("evil"), scratch.path().join("c"));
    let hostile = lab.config("hostile.conf", |text| {
        let (evil, text) = (path(&evil), text.replace("[main]\n", "[main]\npg1-host=nowhere.invalid\n"));
        format!(
            "{text}[global:restore]\ndelta=y\nlink-all=y\ntablespace-map=ts={evil}\nlink-map=pg_wal={evil}-wal\ndb-exclude=shop\n\
             archive-mode=off\nrecovery-option=restore_command=touch {evil}\n"
        )
    });
    let (repository, space) = (lab.repository(), path(lab.root.path()).to_owned() + "/pg/space");
    let base = format!("{STANZA}/{}", lab.incremental);
    let asked = ["clone", &base, "--wal", STANZA, "--into", path(&into), "--xid", &lab.incident, "--before", "--json"];
    let report: Value = serde_json::from_str(&ok(lifeboat(&hostile, &asked).output().unwrap())).unwrap();
    let ask = |sql: &str| psql(&format!("{} dbname=shop", report["conninfo"].as_str().unwrap()), sql);
    // What the transaction is about to drop is locked while it is paused.
    ask("select pg_wal_replay_resume()");
    let begun = Instant::now();
    while ask("select pg_is_in_recovery()") == "t" {
        assert!(begun.elapsed() < Duration::from_secs(30), "replay does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ask(CONTENT), lab.before);
    assert_eq!(ask("show archive_mode"), "off");
    assert_eq!(ask("show restore_command"), "cp -- ../wal/%f %p");
    assert_eq!(ask("show primary_conninfo"), "");
    assert_eq!(report["settings_set_aside"], serde_json::json!(["primary_conninfo (postgresql.auto.conf)"]));
    let spaces: Vec<_> =
        fs::read_dir(into.join("data/pg_tblspc")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [link] = spaces.as_slice() else { panic!("{spaces:?}") };
    let target = fs::read_link(link).unwrap();
    assert_eq!(target, into.join("tablespaces").join(link.file_name().unwrap()));
    let far = ask("select pg_relation_filepath('far')");
    assert!(into.join("data").join(&far).is_file(), "{far}");
    assert!(Path::new(&space).exists() && !evil.exists() && !scratch.path().join("evil-wal").exists());
    ok(lifeboat(&hostile, &["clone", "--drop", path(&into)]).output().unwrap());
    assert!(!into.exists());
    let now = lab.repository();
    assert!(repository.iter().all(|(file, facts)| now.get(file) == Some(facts)), "the repository was written to");
}

#[test]
fn rows_as_of_a_moment_come_back_out_of_a_repository_of_pgbackrest() {
    let lab = &*LAB;
    let scratch = lab.scratch();
    let (config, answers) = (scratch.path().join("config.toml"), scratch.path().join("answers.toml"));
    fs::create_dir(scratch.path().join("c")).unwrap();
    let system = format!(
        "[[system]]\nname = \"shop\"\ndatabase = \"{}\"\nbase_backups = [\"{STANZA}\"]\nwal_archive = \"{STANZA}\"\nclones = \"{}/c\"\n",
        lab.cluster.conninfo("shop"),
        path(scratch.path())
    );
    fs::write(&config, system).unwrap();
    let answer = "moment = \"find\"\ntables = [\"public.keeps\"]\nconsent = \"public.keeps\"\n[[rows]]\ntable = \"public.keeps\"\n\
        classes = [\"missing\"]";
    fs::write(&answers, answer).unwrap();
    let mut recover = lifeboat(
        &lab.root.path().join("main.conf"),
        &["--config", path(&config), "recover", "--answers", path(&answers), "--json"],
    );
    let said: Value = serde_json::from_str(&ok(recover.env("HOME", scratch.path()).output().unwrap())).unwrap();
    assert!(said["recovery"].is_string(), "{said}");
    let held = "select md5(string_agg(k::text, ',' order by id)) || '|' || count(*) from keeps k where id < 99998";
    assert_eq!(lab.sql(held), format!("{}|3500", lab.before.split_once('|').unwrap().0));
    assert_eq!(lab.sql("select count(*) from keeps where v = 'now'"), "2");
    assert_eq!(fs::read_dir(scratch.path().join("c")).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_read_is_told_with_what_to_do() {
    let lab = &*LAB;
    let scratch = lab.scratch();
    let main = lab.root.path().join("main.conf");
    let asked = ["windows", STANZA, "--wal", STANZA];
    let said = refused(lifeboat(&main, &["windows", "pgbackrest:nosuch", "--wal", STANZA]));
    assert!(said.contains("has no stanza nosuch") && said.contains("It has: main"), "{said}");
    let said = refused(lifeboat(&main, &["windows", "pgbackrest:main/20200101-000000F", "--wal", STANZA]));
    assert!(said.contains("there is no backup pgbackrest:main/20200101-000000F"), "{said}");
    let open = lab.config("open.conf", |text| text.replace("repo1-cipher-pass=secret\n", ""));
    let said = refused(lifeboat(&open, &asked));
    assert!(said.contains("is encrypted, and there is no pass phrase") && said.contains("repo1-cipher-pass"), "{said}");
    let wrong = lab.config("wrong.conf", |text| text.replace("=secret", "=guessed"));
    let said = refused(lifeboat(&wrong, &asked));
    assert!(said.contains("cannot read stanza main") && said.contains("another pass phrase"), "{said}");
    let said = refused(lifeboat(Path::new("/nonexistent/pgbackrest.conf"), &asked));
    assert!(said.contains("pgbackrest info fails: unable to open missing file"), "{said}");
    let mut without = lifeboat(&main, &asked);
    without.env("PATH", "/nonexistent");
    let said = refused(without);
    assert!(said.contains("is not installed") && said.contains("apt-get install pgbackrest"), "{said}");

    // A stand-in for a backup during which damaged pages were found, and for a program that says something else.
    let stand_in = |script: &str| {
        let program = scratch.path().join("pgbackrest");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = lifeboat(&main, &asked);
        command.env("PATH", format!("{}:/usr/bin:/bin", path(scratch.path())));
        command
    };
    let damaged = stand_in("/usr/bin/pgbackrest \"$@\" | sed 's/\"error\":false/\"error\":true/g'").output();
    let said = ok(damaged.unwrap());
    assert!(said.contains("NOTE: pages with wrong checksums were found"), "{said}");
    let said = refused(stand_in("echo nonsense"));
    assert!(said.contains("what pgbackrest info says is not understood"), "{said}");
}

#[test]
fn a_restore_that_is_cut_off_is_never_started_and_one_that_is_cancelled_leaves_nothing() {
    let lab = &*LAB;
    let scratch = lab.scratch();
    let (main, base) = (lab.root.path().join("main.conf"), format!("{STANZA}/{}", lab.full));
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let into = scratch.path().join(signal.as_str());
        let asked = ["clone", &base, "--wal", STANZA, "--into", path(&into), "--xid", &lab.incident];
        let mut child = lifeboat(&main, &asked).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while !into.join("data/base").exists() {
            assert!(begun.elapsed() < Duration::from_secs(30), "nothing is restored");
            std::thread::sleep(Duration::from_millis(1));
        }
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let status = child.wait().unwrap();
        if signal == Signal::SIGINT {
            assert_eq!(status.code(), Some(130));
            assert_eq!((into.exists(), inside(&into)), (false, 0));
            continue;
        }
        // Nobody listens to pgbackrest any more: it gives up, before it comes to what makes the clone startable.
        while inside(&into) > 0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "pgbackrest goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!into.join("data/global/pg_control").exists());
        let said = refused(lifeboat(&main, &["clone", "--resume", path(&into)]));
        assert!(said.contains("was not laid out to its end"), "{said}");
        ok(lifeboat(&main, &["clone", "--drop", path(&into)]).output().unwrap());
        assert!(!into.exists());
    }
}
