//! A recovery outlives its process: killed at any instant, it is known what was committed, and the rest is done or undone.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::{database, pg_programs, psql};
use crate::merge::state;
use crate::terminal::Terminal;

const SCHEMA: &str = "create table t (id int primary key, status text, note text);
    insert into t select i, 'active', md5(i::text) from generate_series(1, 20000) i; analyze t";
const DAMAGE: &str = "update t set status = 'void' where id <= 9000; delete from t where id > 19500; analyze t";

/// Kills that every run of the tests makes; `make soak` asks for more.
const KILLS: u32 = 100;

/// A damaged database and a dump from before.
pub struct Incident {
    name: String,
    pub conninfo: String,
    pub folder: tempfile::TempDir,
    pub damaged: String,
    pub repaired: String,
}

impl Incident {
    pub fn new(name: &str) -> Self {
        let conninfo = database(name, SCHEMA);
        let folder = tempfile::tempdir().unwrap();
        let pg_dump = pg_programs().join("pg_dump");
        let made =
            Command::new(pg_dump).args(["-Fc", "-d", &conninfo, "-f"]).arg(folder.path().join("t.dump")).status();
        assert!(made.unwrap().success());
        let answers = "tables = [\"public.t\"]\nconsent = \"public.t\"\n[[rows]]\ntable = \"public.t\"\nclasses = [\"missing\", \"changed\"]\n";
        std::fs::write(folder.path().join("answers.toml"), answers).unwrap();
        let repaired = state(&conninfo);
        psql(&conninfo, &format!("{DAMAGE}; create table pristine as table t"));
        psql(&conninfo, "create schema aside; alter table pristine set schema aside");
        let damaged = state(&conninfo);
        Self { name: name.into(), conninfo, folder, damaged, repaired }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("HOME", self.folder.path()).args(["--database", &self.conninfo]).stdin(Stdio::null());
        command
    }

    pub fn start(&self) -> Child {
        let mut command = self.command(&["recover"]);
        command.arg("--answers").arg(self.path("answers.toml")).arg("--dump").arg(self.path("t.dump"));
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// A recovery whose merge waits, since the application holds the table; it gives up after some seconds.
    pub fn waiting(&self) -> (Child, Child) {
        let holder = self.hold();
        let child = self.start();
        self.until_merge_waits();
        (child, holder)
    }

    /// The application holds the table: rows can be compared, and not merged.
    pub fn hold(&self) -> Child {
        let holder = Command::new("psql")
            .args(["-X", "-q", "-d", &self.conninfo, "-c", "begin; lock table t in share mode; select pg_sleep(60)"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let held = "select count(*) from pg_locks where relation = 't'::regclass and mode = 'ShareLock' and granted";
        self.until(held, "1");
        holder
    }

    pub fn until_merge_waits(&self) {
        let waiting = "select count(*) from pg_stat_activity
            where application_name ~ '^lifeboat ' and wait_event_type = 'Lock' and datname = current_database()";
        self.until(waiting, "1");
    }

    /// The application gives the table back.
    pub fn let_go(&self, mut holder: Child) {
        let _ = holder.kill();
        let _ = holder.wait();
        psql(
            &self.conninfo,
            "select pg_terminate_backend(pid) from pg_stat_activity
             where query ~ 'pg_sleep' and pid <> pg_backend_pid() and datname = current_database()",
        );
    }

    pub fn until(&self, sql: &str, wanted: &str) {
        let begun = Instant::now();
        while psql(&self.conninfo, sql) != wanted {
            assert!(begun.elapsed() < Duration::from_secs(20), "{sql} is not {wanted}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub fn recoveries(&self) -> Vec<(String, String, String)> {
        let output = self.command(&["status", "--json"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let rows = status["recoveries"].as_array().unwrap();
        rows.iter().map(|row| (text(&row["recovery"]), text(&row["state"]), text(&row["told"]))).collect()
    }

    /// The processes that do the work of this incident's recoveries.
    pub fn workers(&self) -> Vec<i32> {
        workers(&format!("HOME={}", self.folder.path().display()))
    }

    /// Kills a command and the process that does its work. Returns how the command had ended.
    pub fn kill(&self, mut child: Child) -> std::process::ExitStatus {
        let _ = child.kill();
        let status = child.wait().unwrap();
        loop {
            let workers = self.workers();
            if workers.is_empty() {
                return status;
            }
            for worker in workers {
                let _ = kill(Pid::from_raw(worker), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Settles whatever was left, and gives its id and what is said of it then. What was consented to is waited for, what was
    /// not is ended.
    pub fn settle(&self) -> Vec<(String, String)> {
        let begun = Instant::now();
        // One that has just been started may not have begun its recovery yet.
        while !self.workers().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", self.recoveries());
            for (id, state, told) in self.recoveries() {
                if state == "under way" && told.ends_with("deciding what to do") {
                    let output = self.command(&["abort", &id]).output().unwrap();
                    assert!(output.status.success(), "{id}: {}", String::from_utf8_lossy(&output.stderr));
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // The kernel takes a moment to let go of the locks of a killed process.
        while self.recoveries().iter().any(|(_, state, _)| state == "under way") {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", self.recoveries());
            std::thread::sleep(Duration::from_millis(5));
        }
        for (id, state, _) in self.recoveries() {
            if state == "left" {
                let output = self.command(&["resume", &id]).output().unwrap();
                assert!(output.status.success(), "{id}: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        self.recoveries()
            .into_iter()
            .map(|(id, state, told)| {
                assert_eq!(state, "ended", "{id}: {told}");
                assert!(!told.contains("not known"), "{id}: {told}");
                (id, told)
            })
            .collect()
    }

    /// Puts the damage back, and forgets the recoveries.
    pub fn again(&self) {
        psql(&self.conninfo, "truncate t; insert into t table aside.pristine; analyze t");
        assert_eq!(state(&self.conninfo), self.damaged);
        for schema in psql(&self.conninfo, "select nspname from pg_namespace where nspname ~ '^lifeboat_undo_'").lines()
        {
            psql(&self.conninfo, &format!("set client_min_messages = error; drop schema {schema} cascade"));
        }
        let _ = std::fs::remove_dir_all(self.path(".local"));
    }

    /// Staging schemas, and sessions of ours that have not ended when the server has had time to notice.
    pub fn leftovers(&self) -> String {
        let begun = Instant::now();
        loop {
            let left = psql(
                &self.conninfo,
                &format!(
                    "select string_agg(nspname, ' ') from pg_namespace where nspname ~ '^restore_staging_';
                     select string_agg(application_name, ' ') from pg_stat_activity
                     where datname = '{}' and application_name ~ '^lifeboat'",
                    self.name
                ),
            );
            if left.is_empty() || begun.elapsed() > Duration::from_secs(5) {
                return left;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The workers that have this in their environment.
pub fn workers(home: &str) -> Vec<i32> {
    let has = |process: &std::path::Path, file: &str, word: &str| {
        let words = std::fs::read(process.join(file)).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|found| found == word.as_bytes())
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let ours = processes.filter(|process| has(process, "cmdline", "worker") && has(process, "environ", home));
    ours.filter_map(|process| process.file_name()?.to_str()?.parse().ok()).collect()
}

pub fn kills() -> u32 {
    std::env::var("LIFEBOAT_KILLS").map_or(KILLS, |number| number.parse().unwrap())
}

/// How long a run is taken to be, after one that came to its end by itself after so long, or was killed late in it. A machine
/// is busier at one time than at another, and kills have to be spread over all of a run, its end too.
pub fn longer_or_shorter(whole: Duration, delay: Duration, ended: Option<Duration>) -> Duration {
    match ended {
        Some(length) => (whole * 3 + length) / 4,
        None if delay > whole.mul_f64(0.9) => whole.mul_f64(1.1),
        None => whole,
    }
}

/// Waits so long. When the process came to a good end by itself meanwhile, tells after how long.
fn ended_before(child: &mut Child, delay: Duration) -> Option<Duration> {
    let begun = Instant::now();
    while begun.elapsed() < delay {
        if let Some(status) = child.try_wait().unwrap() {
            return status.success().then(|| begun.elapsed());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// Uniform in 0..1, and the same for the same seed.
pub fn random(seed: &mut u64) -> f64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    #[expect(clippy::cast_precision_loss, reason = "53 bits are random enough")]
    let fraction = (*seed >> 11) as f64 / (1_u64 << 53) as f64;
    fraction
}

/// Every other time the process that does the work is killed too.
#[test]
fn fm_01_02_a_command_that_is_killed_at_any_instant_is_settled_and_nothing_is_half_done() {
    let incident = Incident::new("fm_01_02");
    let begun = Instant::now();
    assert!(incident.start().wait().unwrap().success());
    let mut whole = begun.elapsed();
    assert_eq!(state(&incident.conninfo), incident.repaired);
    incident.again();
    let mut seed: u64 = std::env::var("LIFEBOAT_SEED").map_or(20_260_115, |seed| seed.parse().unwrap());
    println!("LIFEBOAT_SEED={seed}, {} kills over {whole:?}", kills());
    let (mut applied, mut killed) = (0, 0);
    for run in 0..kills() {
        let delay = whole.mul_f64(random(&mut seed) * 1.1);
        let mut child = incident.start();
        whole = longer_or_shorter(whole, delay, ended_before(&mut child, delay));
        let status = if run % 2 == 0 {
            incident.kill(child)
        } else {
            let _ = child.kill();
            child.wait().unwrap()
        };
        killed += u32::from(status.signal().is_some());
        let why = format!("run {run}, killed after {delay:?}");
        let settled = incident.settle();
        let now = state(&incident.conninfo);
        let done = now == incident.repaired;
        assert!(done || now == incident.damaged, "{why}: half done");
        let told = settled.first().map_or("", |(_, told)| told);
        assert_eq!(told.contains("500 inserted, 9,000 updated"), done, "{why}: {told}");
        assert_eq!(incident.leftovers(), "", "{why}");
        if let (Some((id, _)), true) = (settled.first(), done) {
            // What was applied was proved, and can be taken back.
            let report = incident.command(&["report", id]).output().unwrap();
            let report = String::from_utf8(report.stdout).unwrap();
            assert!(report.contains("## Proof"), "{why}: {report}");
            if run % 4 == 0 {
                let undo = incident.command(&["undo", id, "--consent", "public.t"]).output().unwrap();
                assert!(undo.status.success(), "{why}: {}", String::from_utf8_lossy(&undo.stderr));
                assert_eq!(state(&incident.conninfo), incident.damaged, "{why}: undone");
            }
        }
        applied += u32::from(done);
        incident.again();
    }
    println!("{killed} were killed, {applied} had been applied");
    assert!(killed > kills() / 2 && applied > 0 && applied < kills(), "{killed} killed, {applied} applied");
}

#[test]
fn fm_23_of_two_operators_one_merges() {
    let incident = Incident::new("fm_23_two");
    for run in 0..10 {
        let mut both = [incident.start(), incident.start()];
        let done = both.iter_mut().filter_map(|child| child.wait().unwrap().success().then_some(())).count();
        assert_eq!(done, 1, "run {run}");
        assert_eq!(state(&incident.conninfo), incident.repaired, "run {run}");
        let merged = "select count(*) from pg_namespace where nspname ~ '^lifeboat_undo_'";
        assert_eq!(psql(&incident.conninfo, merged), "1", "run {run}");
        assert_eq!(incident.leftovers(), "", "run {run}");
        incident.again();
    }
}

#[test]
fn an_undo_that_is_killed_at_any_instant_is_settled_too() {
    let incident = Incident::new("killed_undo");
    let mut seed = 7;
    let mut undone = 0;
    let runs = kills() / 5;
    for run in 0..runs {
        assert!(incident.start().wait().unwrap().success());
        let id = incident.settle()[0].0.clone();
        let mut undo = incident.command(&["undo", &id, "--consent", "public.t"]);
        let child = undo.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let delay = Duration::from_millis(400).mul_f64(random(&mut seed));
        std::thread::sleep(delay);
        incident.kill(child);
        let settled = incident.settle();
        let now = state(&incident.conninfo);
        let done = now == incident.damaged;
        assert!(done || now == incident.repaired, "run {run}, killed after {delay:?}: half undone");
        let told = settled.iter().find(|(other, _)| *other != id).map_or("", |(_, told)| told);
        assert_eq!(told.contains("t: "), done, "run {run}, killed after {delay:?}: {told}");
        undone += u32::from(done);
        incident.again();
    }
    println!("{undone} of {runs} had been taken back");
    assert!(undone > 0 && undone < runs, "{undone} of {runs}");
}

#[test]
fn a_recovery_under_way_is_shown_kept_from_others_and_aborted() {
    let incident = Incident::new("abort");
    let (mut child, holder) = incident.waiting();
    let (id, standing, told) = incident.recoveries().pop().unwrap();
    assert_eq!(standing, "under way", "{told}");
    assert_eq!(incident.workers().len(), 1);
    assert!(told.contains(&format!("process {}", incident.workers()[0])), "{told}");
    let refused = incident.command(&["resume", &id]).output().unwrap();
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("still under way, process"));
    let aborted = incident.command(&["abort", &id]).output().unwrap();
    assert!(aborted.status.success(), "{}", String::from_utf8_lossy(&aborted.stderr));
    assert_eq!(child.wait().unwrap().code(), Some(130));
    incident.let_go(holder);
    assert_eq!(incident.recoveries()[0].1, "ended");
    assert_eq!(state(&incident.conninfo), incident.damaged);
    assert!(!psql(&incident.conninfo, "select nspname from pg_namespace").contains("restore_staging"));
}

#[test]
fn what_killed_recoveries_have_left_is_listed_and_removed_after_consent() {
    let incident = Incident::new("clean");
    let run = |arguments: &[&str]| {
        let output = incident.command(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, _, words) = run(&["clean"]);
    assert_eq!(code, 3, "{words}");
    assert!(words.contains("no recovery has left anything"), "{words}");

    // One merge, whose pre-images stay; one recovery that is killed with its rows staged; a schema of somebody else.
    assert!(incident.start().wait().unwrap().success());
    psql(&incident.conninfo, DAMAGE);
    psql(&incident.conninfo, "create schema restore_staging_mine");
    let (child, holder) = incident.waiting();
    let (_, _, words) = run(&["clean"]);
    assert!(words.contains("is connected") && words.contains("does not carry our mark"), "{words}");
    incident.kill(child);
    incident.let_go(holder);
    incident.until(
        "select count(*) from pg_stat_activity where application_name ~ '^lifeboat ' and datname = current_database()",
        "0",
    );
    let (code, _, words) = run(&["clean"]);
    assert_eq!(code, 3);
    assert!(words.contains("lifeboat resume") && words.contains("can be undone; it is kept for 30 d"), "{words}");
    // On another machine nobody knows of the recovery.
    std::fs::remove_dir_all(incident.path(".local")).unwrap();
    let before = state(&incident.conninfo);
    let (code, list, words) = run(&["clean"]);
    assert_eq!(code, 3, "{words}");
    assert!(words.contains("--consent \"remove 1 schema\""), "{words}");
    assert!(list.contains("staged by a recovery that did not clean up") && list.contains("DROP SCHEMA"), "{list}");
    let schemas = "select nspname from pg_namespace where nspname ~ '^(restore_staging|lifeboat_undo)_' order by 1";
    assert_eq!(psql(&incident.conninfo, schemas).lines().count(), 3);
    let (code, report, words) = run(&["clean", "--consent", "remove 1 schema"]);
    assert_eq!(code, 0, "{words}");
    assert!(report.contains("## What was removed"), "{report}");
    let left = psql(&incident.conninfo, schemas);
    assert!(
        left.starts_with("lifeboat_undo_") && left.ends_with("restore_staging_mine") && left.lines().count() == 2,
        "{left}"
    );
    // Pre-images go when they are old enough.
    let config = incident.path("config.toml");
    std::fs::write(
        &config,
        format!("[[system]]\nname = \"shop\"\ndatabase = \"{}\"\nkeep_undo = \"1s\"\n", incident.conninfo),
    )
    .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let (code, _, words) = run(&["clean", "--consent", "remove 1 schema", "--config", config.to_str().unwrap()]);
    assert_eq!(code, 0, "{words}");
    assert_eq!(psql(&incident.conninfo, schemas), "restore_staging_mine");
    assert_eq!(state(&incident.conninfo), before);
}

#[test]
fn fm_24_a_recovery_that_is_suspended_is_in_nobody_elses_hands() {
    let incident = Incident::new("fm_24");
    let (mut child, holder) = incident.waiting();
    let signal = |signal: Signal| kill(Pid::from_raw(incident.workers()[0]), signal).unwrap();
    signal(Signal::SIGSTOP);
    let (id, standing, _) = incident.recoveries().pop().unwrap();
    assert_eq!(standing, "under way");
    assert_eq!(incident.command(&["resume", &id]).output().unwrap().status.code(), Some(3));
    incident.let_go(holder);
    signal(Signal::SIGCONT);
    assert!(child.wait().unwrap().success());
    assert_eq!(state(&incident.conninfo), incident.repaired);
    incident.again();

    // Killed while it was suspended, it is settled by another process, once.
    let (child, holder) = incident.waiting();
    signal(Signal::SIGSTOP);
    incident.kill(child);
    incident.let_go(holder);
    let settled = incident.settle();
    assert!(settled[0].1.contains("changed: nothing"), "{settled:?}");
    assert_eq!(state(&incident.conninfo), incident.damaged);
    assert_eq!(incident.leftovers(), "");
}

#[test]
fn the_console_lists_what_was_left_in_the_middle_first_and_settles_it() {
    let incident = Incident::new("left");
    // Ended well, then one that is killed while its merge waits.
    assert!(incident.start().wait().unwrap().success());
    psql(&incident.conninfo, DAMAGE);
    let (child, holder) = incident.waiting();
    let home = incident.folder.path().display().to_string();
    let environment = [("HOME", home.as_str()), ("XDG_CONFIG_HOME", &home)];
    let console = || {
        let arguments = ["--database", &incident.conninfo];
        Terminal::start(env!("CARGO_BIN_EXE_lifeboat"), &arguments, &environment, 24, 80)
    };
    let mut watching = console();
    watching.wait_for(&format!("under way in process {}", incident.workers()[0]));
    watching.send("q");
    assert!(watching.child.wait().unwrap().success());
    incident.kill(child);
    incident.let_go(holder);
    let mut terminal = console();
    terminal.wait_for("left in the middle: its process is gone");
    terminal.settle();
    assert!(terminal.text().contains("▸ 20"), "{}", terminal.text());
    terminal.send("\r");
    terminal.wait_for("Nothing was changed in production, and what was staged is gone.");
    terminal.send("q");
    assert!(terminal.child.wait().unwrap().success());
    assert!(incident.recoveries().iter().all(|(_, standing, _)| standing == "ended"));
    assert_eq!(incident.leftovers(), "");
}

#[test]
fn fm_08_ctrl_c_at_any_instant_ends_as_it_says() {
    let incident = Incident::new("fm_08");
    let begun = Instant::now();
    assert!(incident.start().wait().unwrap().success());
    let whole = begun.elapsed();
    incident.again();
    let (mut seed, mut done, runs) = (8, 0, 40);
    for run in 0..runs {
        let mut child = incident.start();
        let delay = whole.mul_f64(random(&mut seed));
        std::thread::sleep(delay);
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let status = child.wait().unwrap();
        let now = state(&incident.conninfo);
        let why = format!("run {run}, after {delay:?}: {status:?}");
        match (status.code(), status.signal()) {
            (Some(0), _) => assert_eq!(now, incident.repaired, "{why}"),
            // Before the program listens for it, the signal ends it.
            (Some(130), _) | (None, Some(2)) => assert_eq!(now, incident.damaged, "{why}"),
            _ => panic!("{why}"),
        }
        done += u32::from(status.success());
        for (_, told) in incident.settle() {
            assert_eq!(told.contains("inserted"), status.success(), "{why}: {told}");
        }
        assert_eq!(incident.leftovers(), "", "{why}");
        incident.again();
    }
    assert!(done > 0 && done < runs, "{done} of {runs} were done");
}

#[test]
fn a_journal_that_was_edited_is_not_gone_on_from() {
    let incident = Incident::new("edited");
    let (child, holder) = incident.waiting();
    incident.kill(child);
    incident.let_go(holder);
    let id = incident.recoveries().pop().unwrap().0;
    let journal = incident.path(".local/state/lifeboat/recoveries").join(&id).join("journal.jsonl");
    let sound = std::fs::read_to_string(&journal).unwrap();
    let schemas = "select count(*) from pg_namespace where nspname ~ '^restore_staging_'";
    for (edited, words) in [
        (sound.replace("\"updates\":9000", "\"updates\":1"), "does not follow from the line before it"),
        (sound.replacen("\"prev\":\"", "\"prev\":\"0", 1), "is not a journal that this version of Lifeboat writes"),
        (sound.replacen("\"entry\":\"started\"", "\"entry\":\"begun\"", 1), "is not a journal entry"),
    ] {
        assert_ne!(edited, sound);
        std::fs::write(&journal, edited).unwrap();
        let output = incident.command(&["resume", &id]).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && told.contains(words), "{told}");
        assert_eq!(psql(&incident.conninfo, schemas), "1", "nothing was done");
    }
    std::fs::write(&journal, sound).unwrap();
    incident.settle();
    assert_eq!(psql(&incident.conninfo, schemas), "0");
    assert_eq!(state(&incident.conninfo), incident.damaged);
}
