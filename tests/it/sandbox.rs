//! The sandbox that drills run in: what it holds, what its check says, and that nothing of it is left behind.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use lifeboat::drill::sandbox::{Sandbox, Verdict, reap};
use lifeboat::progress::Progress;

use crate::cluster::{pg_programs, psql};

/// Its guard removes it when the test binary ends.
static SHARED: LazyLock<Sandbox> = LazyLock::new(|| Sandbox::create(&Progress::default()).unwrap());

/// Set in the process that [`a_killed_owner_leaves_nothing_behind`] starts and kills.
const CHILD: &str = "LIFEBOAT_TEST_SANDBOX_OWNER";

fn restic(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("restic")
        .args(arguments)
        .args(["--no-cache", "--repo"])
        .arg(SHARED.repository())
        .arg("--password-file")
        .arg(SHARED.password_file())
        .env("TZ", "UTC")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Of each snapshot with this tag, oldest first: time, host, tags, first path.
fn snapshots(tag: &str) -> Vec<[String; 4]> {
    let listed: serde_json::Value = serde_json::from_slice(&restic(&["snapshots", "--json", "--tag", tag])).unwrap();
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
    let database = snapshots("postgresql,programme_db");
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

    let files = snapshots("fileserver");
    assert_eq!(files.len(), 5);
    assert!(files.iter().all(|[_, host, ..]| host == "file-server"));
    let listing = String::from_utf8(restic(&["ls", "latest", "--tag", "fileserver"])).unwrap();
    assert!(listing.contains("\n/var/www/uploads/important-document.pdf\n"), "{listing}");
    assert_eq!(listing.matches("/home/shared/project-files/minutes/").count(), 5, "{listing}");
}

#[test]
fn the_last_dump_before_the_incident_has_the_rows_of_the_procedure() {
    let [time, _, _, path] = snapshots("postgresql")[4].clone();
    let listed: serde_json::Value =
        serde_json::from_slice(&restic(&["snapshots", "--json", "--tag", "postgresql"])).unwrap();
    let snapshot = listed.as_array().unwrap().iter().find(|snapshot| snapshot["time"] == time.as_str()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump");
    std::fs::write(&dump, restic(&["dump", snapshot["id"].as_str().unwrap(), &path])).unwrap();

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
fn owns_a_sandbox_until_killed() {
    // Not a test by itself: the other end of the next one.
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let sandbox = Sandbox::create(&Progress::default()).unwrap();
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

    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::owns_a_sandbox_until_killed", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The harness prints the test's name on the line that the first of ours ends.
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut told = lines.filter_map(|line| Some(line.unwrap().split_once("sandbox ")?.1.to_owned()));
    let (conninfo, folder) = (told.next().unwrap(), PathBuf::from(told.next().unwrap()));
    assert_ne!(system(&conninfo), ours);
    reap();
    assert!(folder.join("owner.lock").exists(), "a living owner's sandbox was reaped");

    child.kill().unwrap();
    child.wait().unwrap();
    assert!(gone(&folder), "{} is still there", folder.display());
    assert_eq!(system(&SHARED.conninfo()), ours);
}

/// The guard cleans up by itself, in its own time.
fn gone(folder: &Path) -> bool {
    let deadline = Instant::now() + Duration::from_mins(1);
    while folder.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    !folder.exists()
}
