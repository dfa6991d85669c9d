//! The drill about dropped tables: what its sandbox holds, that a recovery by hand with PostgreSQL's own tools holds against
//! the truth, and that the mistakes that lie near do not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lifeboat::drill::sandbox::Sandbox;
use lifeboat::drill::scenarios::DROPPED_TABLES;
use lifeboat::progress::Progress;
use serde_json::Value;

use crate::cluster::{pg_programs, psql};

const FOREIGN_KEY: &str = "alter table complaints add constraint complaints_referral_id_fkey
    foreign key (referral_id) references referrals on delete set null";

fn ok(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn lifeboat(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    ok(command.args(arguments).env("XDG_CONFIG_HOME", "/nonexistent").env("TZ", "UTC").output().unwrap())
}

fn wrong(sandbox: &Sandbox) -> Vec<String> {
    let checks = sandbox.check().unwrap().checks;
    let wrong = checks.iter().filter(|check| !check.ok);
    wrong.map(|c| format!("{}: {} expected, {} found", c.name, c.expected, c.found)).collect()
}

/// A cluster as of just before a transaction: its folder, and how to connect to its `programme_db`.
fn clone(sandbox: &Sandbox, xid: &str, name: &str) -> (PathBuf, String) {
    let folder = sandbox.clones().unwrap().join(name);
    let (base, wal) = (format!("{}/nightly", sandbox.base_backups()[0]), sandbox.wal_archive().unwrap());
    let into = folder.to_str().unwrap();
    let said = lifeboat(&["clone", &base, "--wal", &wal, "--xid", xid, "--before", "--into", into, "--json"]);
    let report: Value = serde_json::from_str(&said).unwrap();
    let conninfo = format!("{} dbname=programme_db", report["conninfo"].as_str().unwrap());
    // While it is paused, the migration is still in progress there, and what it is about to drop is locked.
    psql(&conninfo, "select pg_wal_replay_resume()");
    while psql(&conninfo, "select pg_is_in_recovery()") == "t" {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    (folder, conninfo)
}

/// The script that brings the tables and the view back, by `pg_dump`.
fn dump(conninfo: &str) -> String {
    let mut command = Command::new(pg_programs().join("pg_dump"));
    for name in ["home_visits", "referral_notes", "referrals", "open_referrals"] {
        command.args(["-t", name]);
    }
    ok(command.args(["-d", conninfo]).output().unwrap())
}

/// The migration, by the row that it wrote of itself.
fn migration(sandbox: &Sandbox) -> String {
    psql(&sandbox.conninfo(), "select xmin from schema_migrations where version = '0042'")
}

#[test]
fn the_check_fails_until_the_tables_are_back_and_nothing_else_is_touched() {
    let sandbox = Sandbox::create(&DROPPED_TABLES, &Progress::default()).unwrap();
    let conninfo = sandbox.conninfo();
    told_what_happened(&sandbox);

    let damage = [
        "home_visits: every row is back as it was just before the migration: 1815 expected, 0 found",
        "referral_notes: every row is back as it was just before the migration: 3624 expected, 0 found",
        "referrals: every row is back as it was just before the migration: 2423 expected, 0 found",
        "views that were dropped along are back: 1 expected, 0 found",
        "foreign keys of other tables that were dropped along are back, and valid: 1 expected, 0 found",
        "owners, grants and comments of what was dropped are as before: 7 expected, 0 found",
        "columns of what was dropped: types, defaults and grants are as before: 27 expected, 0 found",
        "keys, checks and foreign keys of the dropped tables are back, and valid: 11 expected, 0 found",
        "indexes of the dropped tables are back: 6 expected, 0 found",
        "triggers of the dropped tables are back, and fire: 2 expected, 0 found",
        "sequences of the dropped tables are back, and not behind: 3 expected, 0 found",
    ];
    assert_eq!(wrong(&sandbox), damage);

    let xid = migration(&sandbox);
    let (folder, cloned) = clone(&sandbox, &xid, "lifeboat-clone-hand");
    let databases = "select string_agg(datname, ' ' order by datname) from pg_database where not datistemplate";
    assert_eq!(psql(&cloned, databases), "postgres programme_db", "the truth is not in the WAL");
    let script = dump(&cloned);
    lifeboat(&["clone", "--drop", folder.to_str().unwrap()]);
    psql(&conninfo, &script);
    let key = "foreign keys of other tables that were dropped along are back, and valid: 1 expected, 0 found";
    assert_eq!(wrong(&sandbox), [key]);
    psql(&conninfo, &format!("{FOREIGN_KEY} not valid"));
    assert_eq!(wrong(&sandbox), [key]);
    psql(&conninfo, "alter table complaints validate constraint complaints_referral_id_fkey");
    assert_eq!(wrong(&sandbox), [""; 0]);

    mistakes_are_told(&sandbox);
    a_clone_that_was_left_running_goes_with_its_sandbox(sandbox, &xid);
}

fn told_what_happened(sandbox: &Sandbox) {
    let conninfo = sandbox.conninfo();
    let briefing = sandbox.briefing();
    assert!(briefing.contains(&sandbox.incident().format("%Y-%m-%d %H:%M:%S UTC").to_string()), "{briefing}");
    assert!(sandbox.answers().contains(&sandbox.incident().to_rfc3339()));
    // The second that people name lies between the migration and the work that went on after it.
    let asked = "select pg_xact_commit_timestamp(xmin) < :'incident' and :'incident' <=
            (select min(pg_xact_commit_timestamp(xmin)) from complaints where body = 'Nobody can find my referral.')
            and :'incident'::timestamptz - pg_xact_commit_timestamp(xmin) <= interval '1 second'
        from schema_migrations where version = '0042'";
    let incident = format!("'{}'", sandbox.incident().to_rfc3339());
    assert_eq!(psql(&conninfo, &asked.replace(":'incident'", &incident)), "t");

    let (bases, wal) = (sandbox.base_backups(), sandbox.wal_archive().unwrap());
    let windows: Value = serde_json::from_str(&lifeboat(&["windows", &bases[0], "--wal", &wal, "--json"])).unwrap();
    assert!(windows.to_string().contains("nightly"), "{windows}");
    let reached = lifeboat(&["windows", &bases[0], "--wal", &wal]);
    assert!(!reached.contains("gap"), "{reached}");
}

/// One by one; each is taken back.
fn mistakes_are_told(sandbox: &Sandbox) {
    let conninfo = sandbox.conninfo();
    for (mistake, remedy, told) in [
        (
            "update home_visits set needs = needs || '{\"people\": 9}' where id = 1815",
            "update home_visits set needs = needs || '{\"people\": 4}' where id = 1815",
            "home_visits: every row is back as it was just before the migration: 1815 expected, 1814 found",
        ),
        (
            "insert into referral_notes (id, referral_id, body) values (9999, 1, 'twice')",
            "delete from referral_notes where id = 9999",
            "referral_notes: rows that should not be there: 0 expected, 1 found",
        ),
        (
            "select setval('referral_notes_id_seq', 3600)",
            "select setval('referral_notes_id_seq', 3700)",
            "sequences of the dropped tables are back, and not behind: 3 expected, 2 found",
        ),
        (
            "revoke update (outcome) on referrals from partner_clinic",
            "grant update (outcome) on referrals to partner_clinic",
            "columns of what was dropped: types, defaults and grants are as before: 27 expected, 26 found",
        ),
        (
            "revoke select on open_referrals from partner_clinic",
            "grant select on open_referrals to partner_clinic",
            "owners, grants and comments of what was dropped are as before: 7 expected, 6 found",
        ),
        (
            "alter table referrals disable trigger referrals_touch",
            "alter table referrals enable trigger referrals_touch",
            "triggers of the dropped tables are back, and fire: 2 expected, 1 found",
        ),
        (
            "drop index referrals_open_idx",
            "create index referrals_open_idx on referrals (urgency, opened_at) where closed_at is null",
            "indexes of the dropped tables are back: 6 expected, 5 found",
        ),
        (
            // The whole database as of before would lose what the release is about.
            "alter table complaints alter priority drop default",
            "alter table complaints alter priority set default 3",
            "what the migration was made for is still there: 11 expected, 10 found",
        ),
        (
            "update complaints set settled = false where id = 5",
            "update complaints set settled = true where id = 5",
            "complaints: rows are as work has left them, also since the migration: 614 expected, 613 found",
        ),
        (
            // What a trigger does that fires while rows come back.
            "insert into registrations_audit (id, registration_id, action) overriding system value
                values (999999, 1, 'referral insert')",
            "delete from registrations_audit where id = 999999",
            "registrations_audit: rows that should not be there: 0 expected, 1 found",
        ),
        (
            "insert into sms_log select * from sms_log where phone = '+999 2220001' limit 1",
            "delete from sms_log where ctid = (select max(ctid) from sms_log)",
            "sms_log: rows that should not be there: 0 expected, 1 found",
        ),
        (
            "create table referrals_old (id bigint)",
            "drop table referrals_old",
            "other tables, triggers, constraints and objects that differ: 0 expected, 2 found",
        ),
        (
            "create schema restore_staging_by_hand",
            "drop schema restore_staging_by_hand",
            "staging schemas left behind: 0 expected, 1 found",
        ),
    ] {
        psql(&conninfo, mistake);
        assert_eq!(wrong(sandbox), [told], "{mistake}");
        psql(&conninfo, remedy);
        assert_eq!(wrong(sandbox), [""; 0], "{remedy}");
    }
}

fn a_clone_that_was_left_running_goes_with_its_sandbox(sandbox: Sandbox, xid: &str) {
    let (folder, cloned) = clone(&sandbox, xid, "lifeboat-clone-left");
    assert_eq!(psql(&cloned, "select count(*) from referrals"), "2423");
    let pid = fs::read_to_string(folder.join("data/postmaster.pid")).unwrap();
    let process = Path::new("/proc").join(pid.lines().next().unwrap());
    assert!(process.exists());
    let root = sandbox.folder().to_owned();
    drop(sandbox);
    // One that has ended may wait there for whoever started it.
    assert!(fs::read_link(process.join("cwd")).is_err(), "{}", process.display());
    assert!(!root.exists(), "{}", root.display());
}
