//! The commands without a screen, as a script runs them: the built program, a real server, a real repository.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use lifeboat::drill::sandbox::Sandbox;
use lifeboat::drill::scenarios::DAMAGED_TABLE;
use lifeboat::progress::Progress;

use crate::cluster::psql;
use crate::merge::state;

const CANARY: &str = "canary-7d1f";

/// The program in a clean environment, with a state folder of its own.
struct Program<'a> {
    sandbox: &'a Sandbox,
    home: &'a Path,
}

impl Program<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.home);
        command
            .env("RESTIC_REPOSITORY", self.sandbox.repository())
            .env("RESTIC_PASSWORD_FILE", self.sandbox.password_file());
        // The sandbox asks for no password; whatever is given must not show up anywhere.
        command.env("PGPASSWORD", CANARY);
        command.args(["--database", &self.sandbox.conninfo()]).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a command that succeeds prints.
    fn out(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.out(arguments)).unwrap()
    }

    /// Exit code and message of one that does not.
    fn fails(&self, arguments: &[&str]) -> (i32, String) {
        failed(&self.run(arguments))
    }
}

fn failed(output: &Output) -> (i32, String) {
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

fn file(home: &Path, text: &str) -> String {
    let path = home.join("answers.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// One sandbox, one story: look, refuse, recover, prove, undo.
#[test]
fn a_whole_recovery_without_a_screen() {
    let sandbox = Sandbox::create(&DAMAGED_TABLE, &Progress::default()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let program = Program { sandbox: &sandbox, home: home.path() };
    let conninfo = sandbox.conninfo();
    let damaged = state(&conninfo);

    let points = program.json(&["points", "--json"]);
    let points = points["points"].as_array().unwrap();
    assert_eq!(points.len(), 11);
    let incident = sandbox.incident();
    let instant = |point: &serde_json::Value| {
        point["point"]["instant"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap()
    };
    let point = points.iter().find(|point| {
        instant(point) < incident && point["contents"]["dumps"].as_array().is_some_and(|dumps| !dumps.is_empty())
    });
    let point = point.unwrap();
    assert_eq!(point["contents"]["dumps"][0]["header"]["database"], "programme_db");
    let id = &point["point"]["id"].as_str().unwrap()[..8];
    assert_eq!(program.out(&["points"]).lines().count(), 11);

    let tables = program.json(&["tables", id, "--json"]);
    let table = tables["tables"]
        .as_array()
        .unwrap()
        .iter()
        .find(|table| table["backup"]["name"]["name"] == "registrations")
        .unwrap();
    assert_eq!(table["backup"]["primary_key"][0], "id");
    assert!(program.out(&["tables", id]).contains("public.registrations"));

    let diff = program.json(&["diff", id, "registrations", "payments", "--json", "--rows", "3"]);
    let table = &diff["tables"][0];
    assert_eq!(
        (&table["missing"], &table["changed"], &table["extra"]),
        (&303.into(), &5047.into(), &30.into()),
        "{table}"
    );
    assert_eq!(table["key"][0], "id");
    let column = |name: &str| {
        table["by_column"].as_array().unwrap().iter().find(|column| column["column"] == name).unwrap()["rows"].clone()
    };
    assert_eq!(column("vulnerability_score"), 5000, "{}", table["by_column"]);
    assert!(table["by_transaction"][0]["changed"].as_u64().unwrap() >= 4990, "{}", table["by_transaction"]);
    assert_eq!(table["children"][0]["child"]["name"], "distributions");
    assert_eq!(table["rows"]["rows"].as_array().unwrap().len(), 3);
    assert!(diff["bytes_read"].as_u64().unwrap() > 0 && diff["timings"]["total_ms"].as_u64().is_some());
    assert!(
        program
            .out(&["diff", id, "registrations"])
            .starts_with("public.registrations: 303 missing, 5,047 changed, 30 extra")
    );

    let (code, words) = program.fails(&["diff", id, "nothing"]);
    assert_eq!(code, 2, "{words}");
    assert!(words.contains("the dump holds no table public.nothing"), "{words}");
    let (code, words) = program.fails(&["tables", "ffffffff"]);
    assert_eq!(code, 2, "{words}");
    let wrong = file(home.path(), "not the password");
    let output = program.command(&["points"]).env("RESTIC_PASSWORD_FILE", wrong).output().unwrap();
    let (code, words) = failed(&output);
    assert!(code == 2 && words.contains("password"), "{code} {words}");

    let answers = sandbox.answers();
    let without = answers.replace("consent =", "# consent =");
    let (code, words) = program.fails(&["recover", "--answers", &file(home.path(), &without)]);
    assert!(code == 3 && words.contains("gives no consent"), "{code} {words}");
    let other = answers.replace("consent = \"public.registrations", "consent = \"public.registration");
    let (code, words) = program.fails(&["recover", "--answers", &file(home.path(), &other)]);
    assert!(code == 3 || code == 2, "{code} {words}");
    assert!(words.contains("nothing"), "an error says what was changed: {words}");
    let (code, words) = program.fails(&["recover", "--answers", &file(home.path(), "tabels = []")]);
    assert!(code == 2 && words.contains("tabels"), "{code} {words}");
    assert_eq!(state(&conninfo), damaged);
    assert_eq!(psql(&conninfo, "select count(*) from pg_namespace where nspname like 'restore_staging_%'"), "0");

    let report = program.out(&["recover", "--answers", &file(home.path(), &answers)]);
    assert!(report.contains("| public.registrations | 5,300 | 0 | 0 |"), "{report}");
    let verdict = sandbox.check().unwrap();
    assert!(verdict.checks.iter().all(|check| check.ok), "{verdict:?}");

    let journal = program.out(&["status"]);
    let line = journal
        .lines()
        .find(|line| line.contains("registrations") || line.contains("5,"))
        .unwrap_or_else(|| panic!("{journal}"));
    let recovery = line.split_whitespace().next().unwrap();
    assert_eq!(program.out(&["report", recovery]).trim_end(), report.trim_end());
    assert!(program.out(&["journal", recovery]).contains("the chain of hashes holds"));
    journals_that_are_cut_or_rewritten(&program, recovery);

    let (code, words) = failed_any(&program.run(&["undo", recovery]));
    assert!(code == 3 && words.contains("--consent"), "{code} {words}");
    let undone =
        program.out(&["undo", recovery, "--consent", "public.registrations public.distributions public.payments"]);
    assert!(undone.contains("DELETE FROM"), "the statements are shown");
    assert_eq!(without_sequences(&state(&conninfo)), without_sequences(&damaged), "exactly as it was before");
    let (code, words) = program.fails(&["undo", recovery, "--consent", "x"]);
    assert!(code == 3 && words.contains("was taken back"), "{code} {words}");
    let (code, _) = program.fails(&["undo", "../../etc"]);
    assert_eq!(code, 2);
    assert!(program.out(&["completions", "bash"]).contains("recover"));
    fm_86_no_secret_is_kept(&sandbox, home.path());
}

/// Whatever is taken from a journal or changed in it is found: by its own chain, by the report's head, by production's.
fn journals_that_are_cut_or_rewritten(program: &Program, recovery: &str) {
    let folder = program.home.join(".local/state/lifeboat/recoveries").join(recovery);
    let (journal, report) = (folder.join("journal.jsonl"), folder.join("report.md"));
    let (sound, page) = (std::fs::read_to_string(&journal).unwrap(), std::fs::read_to_string(&report).unwrap());
    let told = program.out(&["journal", "verify", recovery]);
    assert!(told.contains("the head in its report is among them"), "{told}");
    assert!(told.contains("the head that production keeps is among them"), "{told}");
    let lines: Vec<_> = sound.split_inclusive('\n').collect();
    let intent = lines.iter().position(|line| line.contains("\"entry\":\"intent\"")).unwrap();
    for kept in 1..lines.len() {
        std::fs::write(&journal, lines[..kept].concat()).unwrap();
        std::fs::write(&report, &page).unwrap();
        let (code, words) = failed_any(&program.run(&["journal", "verify", recovery]));
        assert!(code == 3 && words.contains("the report keeps the head"), "{kept}: {words}");
        // Whoever cuts the journal removes the report too; what production keeps he cannot.
        std::fs::remove_file(&report).unwrap();
        let output = program.run(&["journal", "verify", recovery]);
        let consented = lines[..kept].concat().contains("\"entry\":\"consented\"");
        assert_eq!(output.status.success(), kept > intent || !consented, "{kept}: {output:?}");
    }
    for (at, byte) in sound.bytes().enumerate().step_by(97) {
        let mut edited = sound.clone().into_bytes();
        edited[at] = if byte == b'0' { b'1' } else { b'0' };
        std::fs::write(&journal, edited).unwrap();
        assert!(!program.run(&["journal", "verify", recovery]).status.success(), "byte {at}");
    }
    std::fs::write(&journal, &sound).unwrap();
    std::fs::write(&report, &page).unwrap();
}

/// Neither the repository's password nor the database's is in what was written on the way: journals, reports, server log.
fn fm_86_no_secret_is_kept(sandbox: &Sandbox, home: &Path) {
    let password = std::fs::read_to_string(sandbox.password_file()).unwrap();
    let (mut folders, mut files) = (vec![home.to_owned(), sandbox.folder().join("state")], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.push(sandbox.folder().join("pg").join("log"));
    assert!(files.iter().any(|file| file.ends_with("journal.jsonl")), "{files:?}");
    for file in files {
        let bytes = String::from_utf8_lossy(&std::fs::read(&file).unwrap_or_default()).into_owned();
        assert!(!bytes.contains(password.trim()) && !bytes.contains(CANARY), "a secret is in {}", file.display());
    }
}

fn failed_any(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

/// Sequences only move forward, also when rows are taken back.
fn without_sequences(state: &str) -> Vec<&str> {
    state.lines().filter(|line| !line.contains("_seq|")).collect()
}

#[test]
fn a_dump_on_disk_needs_no_repository() {
    let sandbox = Sandbox::create(&DAMAGED_TABLE, &Progress::default()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let program = Program { sandbox: &sandbox, home: home.path() };
    let dump = home.path().join("now.dump");
    let made = Command::new(crate::cluster::pg_programs().join("pg_dump"))
        .args(["-Fc", "-f"])
        .arg(&dump)
        .arg(sandbox.conninfo())
        .status()
        .unwrap();
    assert!(made.success());
    let dump = dump.display().to_string();
    let bare = |arguments: &[&str]| {
        let mut command = program.command(arguments);
        command.env_remove("RESTIC_REPOSITORY").env_remove("RESTIC_PASSWORD_FILE");
        command.output().unwrap()
    };
    let output = bare(&["diff", &dump, "registrations", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let diff: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&diff["tables"][0]["missing"], &diff["tables"][0]["changed"]), (&0.into(), &0.into()));
    let answers = file(home.path(), "tables = [\"registrations\"]\nconsent = \"public.registrations\"");
    let (code, words) = failed(&bare(&["recover", "--dump", &dump, "--answers", &answers]));
    assert!(code == 3 && words.contains("there is nothing to bring back"), "{code} {words}");
    let (code, words) = failed(&bare(&["points"]));
    assert!(code == 2 && words.contains("no repository is given"), "{code} {words}");

    // A dump that was cut off says so, before anything is staged.
    let bytes = std::fs::read(&dump).unwrap();
    std::fs::write(&dump, &bytes[..bytes.len() / 3]).unwrap();
    let (code, words) = failed(&bare(&["diff", &dump, "registrations"]));
    assert_eq!(code, 4, "{words}");
    assert_eq!(
        psql(&sandbox.conninfo(), "select count(*) from pg_namespace where nspname like 'restore_staging_%'"),
        "0"
    );
}

#[test]
fn fm_01_a_console_that_is_killed_while_staging_leaves_production_as_it_was_and_is_told_of() {
    let sandbox = Sandbox::create(&DAMAGED_TABLE, &Progress::default()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let program = Program { sandbox: &sandbox, home: home.path() };
    let conninfo = sandbox.conninfo();
    let damaged = state(&conninfo);
    let points = program.json(&["points", "--json"]);
    let holds =
        |point: &&serde_json::Value| point["contents"]["dumps"].as_array().is_some_and(|dumps| !dumps.is_empty());
    let id =
        points["points"].as_array().unwrap().iter().find(holds).unwrap()["point"]["id"].as_str().unwrap().to_owned();
    let mut left = 0;
    for run in 0..12_u32 {
        let mut child = program.command(&["diff", &id, "registrations", "distributions", "payments"]);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(u64::from(run) * 60));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(state(&conninfo), damaged);
    }
    // What the server still had to end is ended when its clients are gone.
    let schemas = "select nspname from pg_namespace where nspname like 'restore_staging_%'";
    for schema in psql(&conninfo, schemas).lines() {
        left += 1;
        let tables = program.json(&["tables", &id, "--json"]);
        let warnings = tables["server"]["warnings"].to_string();
        assert!(warnings.contains(schema), "{schema} in {warnings}");
        psql(&conninfo, &format!("drop schema {schema} cascade"));
    }
    println!("{left} staging schemas were left and told of");
    assert!(program.out(&["diff", &id, "payments"]).starts_with("public.payments"));
    assert_eq!(psql(&conninfo, schemas), "");
}
