//! The sandbox that drills run in: what it holds, what its check says, and that nothing of it is left behind.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use lifeboat::drill::sandbox::{Sandbox, Verdict, reap};
use lifeboat::drill::scenarios::{DAMAGED_TABLE, LOST_FILES, Scenario};
use lifeboat::progress::Progress;

use crate::cluster::{pg_programs, psql};

/// Its guard removes it when the test binary ends.
static SHARED: LazyLock<Sandbox> = LazyLock::new(|| Sandbox::create(&DAMAGED_TABLE, &Progress::default()).unwrap());

static FILES: LazyLock<Sandbox> = LazyLock::new(|| Sandbox::create(&LOST_FILES, &Progress::default()).unwrap());

/// Set in the process that [`a_killed_owner_leaves_nothing_behind`] starts and kills: the name of its scenario.
const CHILD: &str = "LIFEBOAT_TEST_SANDBOX_OWNER";

fn restic(sandbox: &Sandbox, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("restic")
        .args(arguments)
        .args(["--no-cache", "--repo"])
        .arg(sandbox.repository())
        .arg("--password-file")
        .arg(sandbox.password_file())
        .env("TZ", "UTC")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Of each snapshot with this tag, oldest first: time, host, tags, first path.
fn snapshots(sandbox: &Sandbox, tag: &str) -> Vec<[String; 4]> {
    let listed = restic(sandbox, &["snapshots", "--json", "--tag", tag]);
    let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let mut listed: Vec<_> = (listed.as_array().unwrap().iter())
        .map(|snapshot| {
            let tags: Vec<_> = snapshot["tags"].as_array().unwrap().iter().map(text).collect();
            [text(&snapshot["time"]), text(&snapshot["hostname"]), tags.join(","), text(&snapshot["paths"][0])]
        })
        .collect();
    listed.sort();
    listed
}

fn wrong(verdict: &Verdict) -> Vec<String> {
    let wrong = verdict.checks.iter().filter(|check| !check.ok);
    wrong.map(|c| format!("{}: {} expected, {} found", c.name, c.expected, c.found)).collect()
}

#[test]
fn the_repository_holds_five_nights_and_a_dump_made_too_late() {
    let database = snapshots(&SHARED, "postgresql,programme_db");
    assert_eq!(database.len(), 6);
    for [time, host, tags, path] in &database {
        assert_eq!((host.as_str(), tags.as_str()), ("db-server", "postgresql,programme_db"));
        assert!(path.starts_with("/backup/staging/programme_db_") && path.to_lowercase().ends_with(".dump"), "{path}");
        assert!(path.contains(&time[..10].replace('-', "")), "{path} of {time}");
    }
    let nights: Vec<_> = database.iter().filter(|[time, ..]| time.ends_with("T02:15:00Z")).collect();
    assert_eq!(nights.len(), 5);
    let instant = |time: &str| time.parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    assert!(SHARED.incident() - instant(&nights[4][0]) >= chrono::TimeDelta::hours(6));
    assert!(instant(&database[5][0]) > SHARED.incident());

    let files = snapshots(&SHARED, "fileserver");
    assert_eq!(files.len(), 5);
    assert!(files.iter().all(|[_, host, ..]| host == "file-server"));
    let listing = String::from_utf8(restic(&SHARED, &["ls", "latest", "--tag", "fileserver"])).unwrap();
    assert!(listing.contains("\n/var/www/uploads/important-document.pdf\n"), "{listing}");
    assert_eq!(listing.matches("/home/shared/project-files/minutes/").count(), 5, "{listing}");
}

#[test]
fn the_last_dump_before_the_incident_has_the_rows_of_the_procedure() {
    let [time, _, _, path] = snapshots(&SHARED, "postgresql")[4].clone();
    let listed: serde_json::Value =
        serde_json::from_slice(&restic(&SHARED, &["snapshots", "--json", "--tag", "postgresql"])).unwrap();
    let snapshot = listed.as_array().unwrap().iter().find(|snapshot| snapshot["time"] == time.as_str()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump");
    std::fs::write(&dump, restic(&SHARED, &["dump", snapshot["id"].as_str().unwrap(), &path])).unwrap();

    let restore = |arguments: &[&str]| {
        let output = Command::new(pg_programs().join("pg_restore")).args(arguments).arg(&dump).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let list = restore(&["--list"]);
    for line in
        ["TABLE DATA public distributions_archive", "VIEW public district_summary", "TRIGGER public registrations"]
    {
        assert!(list.contains(line), "{line} is not in\n{list}");
    }
    let rows = |table: &str| {
        let script = restore(&["--data-only", "--table", table, "--file", "-"]);
        let data = script.split_once("FROM stdin;\n").unwrap().1.split_once("\n\\.\n").unwrap().0;
        data.lines().count()
    };
    assert_eq!((rows("registrations"), rows("distributions")), (45_678, 12_345));
}

#[test]
fn the_check_fails_until_exactly_the_damage_is_repaired() {
    let sandbox = &*SHARED;
    let damage = [
        "distributions: deleted rows are back as they were: 83 expected, 0 found",
        "payments: deleted rows are back as they were: 61 expected, 0 found",
        "registrations: deleted rows are back as they were: 300 expected, 0 found",
        "registrations: status and vulnerability_score of the corrupted rows are as before: 5000 expected, 0 found",
    ];
    assert_eq!(wrong(&sandbox.check().unwrap()), damage);
    assert!(sandbox.briefing().contains(&sandbox.incident().format("%Y-%m-%d %H:%M:%S UTC").to_string()));

    // Staged from the image that the truth was made of, which has the same rows as the last dump has of these.
    let conninfo = sandbox.conninfo();
    let truth = conninfo.replace("dbname=programme_db", "dbname=drill_truth");
    psql(&conninfo, "create schema restore_staging_by_hand");
    for table in ["registrations", "distributions", "payments"] {
        let copied = psql(&truth, &format!("copy public.{table} to stdout"));
        psql(
            &conninfo,
            &format!(
                "create table restore_staging_by_hand.{table} (like public.{table} including generated);
                 copy restore_staging_by_hand.{table} from stdin;\n{copied}\n\\.\n"
            ),
        );
    }
    let repair = "update registrations live set status = b.status, vulnerability_score = b.vulnerability_score
        from restore_staging_by_hand.registrations b where live.id = b.id and b.district_id = 7;
        insert into registrations overriding system value
        select * from restore_staging_by_hand.registrations b
        where district_id = 3 and not exists (select from registrations where id = b.id);
        insert into distributions (id, registration_id, item, quantity, unit_value, distributed_on, staff_id, remarks)
        select id, registration_id, item, quantity, unit_value, distributed_on, staff_id, remarks
        from restore_staging_by_hand.distributions b where not exists (select from distributions where id = b.id);
        insert into payments
        select * from restore_staging_by_hand.payments b where not exists (select from payments where id = b.id)";
    psql(&conninfo, repair);
    assert_eq!(wrong(&sandbox.check().unwrap()), ["staging schemas left behind: 0 expected, 1 found"]);

    // The mistakes that lie near: whole rows written back, all that is missing brought back, a sequence reset.
    // The three duplicates are no longer in what the truth was made of, so they are invented again.
    let before = psql(&conninfo, "select id, phone from registrations where id in (906, 18006, 36006) order by id");
    let mistakes = "update registrations live set phone = b.phone
        from restore_staging_by_hand.registrations b where live.id = b.id and b.district_id = 7;
        insert into registrations (id, household_code, full_name, district_id, vulnerability_score)
        overriding system value
        select n, 'FON-0' || n, 'A Duplicate', 5, 1 from unnest(array[14404, 21604, 28804]) n;
        select setval('payments_id_seq', 8700);
        alter table registrations disable trigger registrations_audit";
    psql(&conninfo, mistakes);
    let verdict = sandbox.check().unwrap();
    assert_eq!(
        wrong(&verdict),
        [
            "registrations: the other columns of the corrupted rows are as work has left them: 5000 expected, 4997 found",
            "registrations: rows that should not be there: 0 expected, 3 found",
            "tables, triggers, constraints and other objects that differ: 0 expected, 1 found",
            "sequences that moved backwards: 0 expected, 1 found",
            "staging schemas left behind: 0 expected, 1 found",
        ]
    );
    assert_eq!(verdict.checks.iter().find(|check| !check.ok).unwrap().examples, "906, 18006, 36006");

    let undo: String = (before.lines())
        .filter_map(|row| row.split_once('|'))
        .map(|(id, phone)| format!("update registrations set phone = '{phone}' where id = {id};"))
        .collect();
    psql(
        &conninfo,
        &format!(
            "{undo} alter table registrations enable trigger registrations_audit;
             delete from registrations where id in (14404, 21604, 28804);
             select setval('payments_id_seq', 8705);
             drop schema restore_staging_by_hand cascade"
        ),
    );
    let verdict = sandbox.check().unwrap();
    assert!(verdict.passed(), "{:#?}", wrong(&verdict));
}

#[test]
fn the_file_server_has_five_nights_and_a_backup_made_too_late() {
    let snapshots = snapshots(&FILES, "fileserver");
    let tree = FILES.tree().unwrap().display().to_string();
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    assert_eq!(snapshots.len(), 6);
    for [_, of, tags, path] in &snapshots {
        // Of this machine, so that files can be put back in place.
        assert_eq!((of, tags, path), (&host, &format!("fileserver,{host}"), &tree));
    }
    let instant = |place: usize| snapshots[place][0].parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    assert!(snapshots[..5].iter().all(|[time, ..]| time.ends_with("T02:15:00Z")));
    assert!(FILES.incident() - instant(4) >= chrono::TimeDelta::hours(3) && instant(5) > FILES.incident());

    let last = String::from_utf8(restic(&FILES, &["ls", "--long", "--json", "latest"])).unwrap();
    let late: Vec<serde_json::Value> = last.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| late.iter().filter(|node| node["type"] == kind).count();
    assert!((1900..2200).contains(&of("file")) && (140..180).contains(&of("dir")), "{} {}", of("file"), of("dir"));
    let names = late.iter().filter_map(|node| node["path"].as_str());
    assert_eq!(names.clone().filter(|name| name.ends_with(".locked")).count(), 87);
    for part in [" [field]/", "тарас", "(final).pdf", " – North"] {
        let there = names.clone().any(|name| name.contains(part));
        assert_eq!(there, part != " – North", "{part}");
    }
    // The briefing tells what people see: no folder, no time.
    let briefing = FILES.briefing();
    assert!(!briefing.contains(&FILES.incident().format("%H:%M").to_string()) && !briefing.contains("cash-books"));
    let image = FILES.tree().unwrap().join("home/shared/archive/disk image.img");
    assert!(std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(image).unwrap()) < 100, "a hole is no data");
}

#[test]
fn the_check_of_files_fails_until_exactly_the_damage_is_repaired() {
    let tree = FILES.tree().unwrap();
    let damage = [
        "important-document.pdf: content as in the last backup: 1 expected, 0 found",
        "important-document.pdf: owner, mode and time as in the last backup: 1 expected, 0 found",
        "Korvane – North: all that was in it is back: 69 expected, 0 found",
        "Korvane – North: owners, modes and times as in the last backup: 69 expected, 0 found",
        "cash-books: files are back under their names, readable: 85 expected, 0 found",
        "cash-books: owners, modes and times as in the last backup: 85 expected, 0 found",
    ];
    assert_eq!(wrong(&FILES.check().unwrap()), damage);

    let shell = |script: &str| {
        let output = Command::new("sh").args(["-euc", script]).current_dir(tree).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let nights: serde_json::Value = serde_json::from_slice(&restic(&FILES, &["snapshots", "--json"])).unwrap();
    let night = nights.as_array().unwrap().iter().rfind(|night| night["time"].as_str().unwrap().contains("T02:15:00"));
    let aside = tempfile::tempdir().unwrap();
    let target = aside.path().display().to_string();
    restic(&FILES, &["restore", night.unwrap()["id"].as_str().unwrap(), "--target", &target]);
    let backup = format!("{target}{}", tree.display());
    let document = "var/www/uploads/important-document.pdf";
    shell(&format!("mv {document} {document}.pre-by_hand; cp -a '{backup}/{document}' {document}"));
    shell(&format!("cp -a '{backup}/home/shared/project-files/Korvane – North' home/shared/project-files/"));
    assert_eq!(wrong(&FILES.check().unwrap()).len(), 2);
    shell(&format!("cp -an '{backup}/home/shared/finance/cash-books' home/shared/finance/"));
    assert_eq!(wrong(&FILES.check().unwrap()), [""; 0]);

    // The mistakes that lie near, one by one; each is taken back.
    let books = "home/shared/finance/cash-books";
    for (mistake, remedy, told) in [
        (
            // The whole folder copied over what was typed in again.
            format!("cp -a {books}/06 '{target}/06'; cp -a '{backup}/{books}/06/cash-book 02.csv' {books}/06/"),
            format!("cp -a '{target}/06/cash-book 02.csv' {books}/06/"),
            "files written since the last backup are as people have left them: 59 expected, 58 found",
        ),
        (
            format!("mv {books}/12/*.locked '{target}'"),
            format!("mv '{target}'/*.locked {books}/12/"),
            "encrypted files and the note are still there, for the police: 88 expected, 81 found",
        ),
        (
            "mkdir restored".into(),
            "rmdir restored".into(),
            "files and folders that should not be there: 0 expected, 1 found",
        ),
        (
            format!("mv {document} '{target}'; cp '{target}/important-document.pdf' {document}"),
            format!("mv '{target}/important-document.pdf' {document}"),
            "important-document.pdf: owner, mode and time as in the last backup: 1 expected, 0 found",
        ),
        (
            format!("cp -a {document}.pre-by_hand '{target}'; echo > {document}.pre-by_hand"),
            format!("mv '{target}/important-document.pdf.pre-by_hand' {document}.pre-by_hand"),
            "copies kept as NAME.pre-RECOVERY hold what stood there: 1 expected, 0 found",
        ),
        (
            "echo > home/shared/other-disk/new".into(),
            "rm home/shared/other-disk/new".into(),
            "things outside the tree that changed: 0 expected, 1 found",
        ),
        (
            "chmod 777 home/shared/templates".into(),
            format!("chmod --reference '{backup}/home/shared/templates' home/shared/templates"),
            "all other files and folders are untouched",
        ),
    ] {
        shell(&mistake);
        let found = wrong(&FILES.check().unwrap());
        assert!(found.len() == 1 && found[0].starts_with(told), "{mistake}: {found:?}");
        shell(&remedy);
        assert_eq!(wrong(&FILES.check().unwrap()), [""; 0], "{remedy}");
    }
}

#[test]
fn without_a_terminal_a_drill_about_files_recovers_by_itself() {
    let home = tempfile::tempdir().unwrap();
    let mut drill = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    drill.args(["drill", "lost-files"]).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    // What the environment names is somebody's: it is not asked.
    drill.env("HOME", home.path()).env("PGHOST", "production.invalid").env("RESTIC_REPOSITORY", "/production");
    let output = drill.stdin(Stdio::null()).output().unwrap();
    let (report, told) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}\n{report}");
    assert!(report.contains("put in place, 1 earlier one kept beside them"), "{report}");
    assert!(report.ends_with("Recovered, checked against the truth.\n"), "{report}");
    assert_eq!(report.matches("\n- [x] ").count(), 12, "{report}");
    let tree = report.split_once("its files are in ").unwrap().1.split_once("/file-server").unwrap().0;
    assert!(gone(Path::new(tree)), "{tree} is still there");
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn owns_a_sandbox_until_killed() {
    // Not a test by itself: the other end of the next one.
    let Some(scenario) = std::env::var_os(CHILD) else { return };
    let scenario = if scenario == LOST_FILES.name { &LOST_FILES } else { &DAMAGED_TABLE };
    let sandbox = Sandbox::create(scenario, &Progress::default()).unwrap();
    println!("sandbox {}", sandbox.conninfo());
    println!("sandbox {}", sandbox.folder().display());
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_owner_leaves_nothing_behind_and_other_sandboxes_live_on() {
    let system = |conninfo: &str| psql(conninfo, "select system_identifier from pg_control_system()");
    let ours = system(&SHARED.conninfo());

    let (mut child, conninfo, folder) = owner(&DAMAGED_TABLE);
    assert_ne!(system(&conninfo), ours);
    reap();
    assert!(folder.join("owner.lock").exists(), "a living owner's sandbox was reaped");

    child.kill().unwrap();
    child.wait().unwrap();
    assert!(gone(&folder), "{} is still there", folder.display());
    assert_eq!(system(&SHARED.conninfo()), ours);
}

#[test]
fn a_killed_owner_of_files_leaves_nothing_behind() {
    let (mut child, _, folder) = owner(&LOST_FILES);
    assert!(folder.join("file-server/var/www/uploads/important-document.pdf").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(gone(&folder), "{} is still there", folder.display());
}

/// Another process with a sandbox: how to connect to it, and its folder.
fn owner(scenario: &Scenario) -> (Child, String, PathBuf) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::owns_a_sandbox_until_killed", "--nocapture"])
        .env(CHILD, scenario.name)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The harness prints the test's name on the line that the first of ours ends.
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut told = lines.filter_map(|line| Some(line.unwrap().split_once("sandbox ")?.1.to_owned()));
    let (conninfo, folder) = (told.next().unwrap(), PathBuf::from(told.next().unwrap()));
    (child, conninfo, folder)
}

/// The guard cleans up by itself, in its own time.
fn gone(folder: &Path) -> bool {
    let deadline = Instant::now() + Duration::from_mins(1);
    while folder.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    !folder.exists()
}
