//! The servers that the tests share: one PostgreSQL for the whole binary, one database for each test.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use lifeboat::drill::cluster::{Cluster, programs};

struct Shared {
    _folder: tempfile::TempDir,
    cluster: Cluster,
}

static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    let folder = tempfile::Builder::new().prefix("lifeboat-test-").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let settings = ["track_commit_timestamp=on", "max_connections=200", "max_prepared_transactions=5"];
    let cluster = Cluster::create(&folder.path().join("pg"), &programs().unwrap(), &settings).unwrap();
    Shared { _folder: folder, cluster }
});

/// Creates an empty database on the shared server, runs SQL in it with psql, and returns its connection string.
pub fn database(name: &str, sql: &str) -> String {
    psql(&SHARED.cluster.conninfo("postgres"), &format!("create database \"{name}\""));
    let conninfo = SHARED.cluster.conninfo(name);
    psql(&conninfo, sql);
    conninfo
}

/// Runs SQL with the real psql and returns what it prints, unaligned and without headers.
pub fn psql(conninfo: &str, sql: &str) -> String {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut child = Command::new("psql")
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", conninfo])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "psql: {}\n{sql}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// Where `pg_dump` and `pg_restore` of the shared server's version are.
/// Waits until a segment of WAL is in an archive, all of it: `cp` is not done at once.
pub fn archived(segment: &Path) {
    let begun = std::time::Instant::now();
    while !std::fs::metadata(segment).is_ok_and(|facts| facts.len() == 16 << 20) {
        assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{} is not archived", segment.display());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

pub fn pg_programs() -> PathBuf {
    programs().unwrap()
}

#[test]
fn a_private_server_starts_answers_and_keeps_its_rows_through_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut cluster = Cluster::create(&folder.path().join("pg"), &programs().unwrap(), &[]).unwrap();
    let conninfo = cluster.conninfo("postgres");
    psql(&conninfo, "create table t as select 1 as id; checkpoint");
    cluster.kill();
    cluster.start().unwrap();
    assert_eq!(psql(&conninfo, "select count(*) from t"), "1");
}
