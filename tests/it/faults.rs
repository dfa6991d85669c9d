//! Faults in the middle of a merge, on real servers: the outcome is all or nothing, and it is known which. The names are
//! those of the fault matrix.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lifeboat::config::System;
use lifeboat::drill::cluster::{Cluster, programs};
use lifeboat::error::Kind;
use lifeboat::postgres::archive::Column;
use lifeboat::postgres::claim;
use lifeboat::postgres::connect::{Conninfo, Session, connect};
use lifeboat::postgres::diff::{self, Class, KeyChoice};
use lifeboat::postgres::merge::{self, Outcome};
use lifeboat::postgres::name::Name;
use lifeboat::postgres::schema;
use lifeboat::postgres::stage;
use lifeboat::progress::Progress;
use lifeboat::recovery::record::Look;
use lifeboat::recovery::systems::Systems;

use crate::cluster::{database, psql};
use crate::merge::{Repair, state};
use crate::stage::{Bench, session};

mod machine;
mod network;

const SCHEMA: &str = "create table t (id int primary key, status text, hits int not null default 0);
    insert into t select i, 'active' from generate_series(1, 3000) i; analyze t";
const DAMAGE: &str = "update t set status = 'void' where id <= 2000; delete from t where id > 2900";

/// What the proxy does when the client says COMMIT.
const PASS: u8 = 0;
const LOSE_REPLY: u8 = 1;
const LOSE_COMMIT: u8 = 2;

/// Stands between a client and the server's socket.
struct Proxy {
    folder: tempfile::TempDir,
    at_commit: Arc<AtomicU8>,
    wire: Arc<Wire>,
    /// The server's socket; another one is what a failover does.
    server: Arc<Mutex<PathBuf>>,
}

/// What the way itself does to the bytes.
struct Wire {
    /// Bytes that may still pass, in both directions; then the connection is cut.
    left: AtomicI64,
    /// The cut ends only the server's direction: the client may go on talking.
    half: AtomicBool,
    /// Bytes that pass at once.
    piece: AtomicUsize,
    /// Nothing passes while this is set.
    stalled: AtomicBool,
    /// A new connection waits so long before it is let through, in milliseconds.
    wait: AtomicU64,
}

impl Wire {
    /// Passes what was read on, as far as the way lets it.
    fn pass(&self, bytes: &[u8], to: &mut UnixStream) -> bool {
        for piece in bytes.chunks(self.piece.load(Ordering::SeqCst)) {
            while self.stalled.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let length = i64::try_from(piece.len()).unwrap();
            let left = self.left.fetch_sub(length, Ordering::SeqCst);
            let passes = usize::try_from(left.clamp(0, length)).unwrap();
            if to.write_all(&piece[..passes]).is_err() || passes < piece.len() {
                return false;
            }
        }
        true
    }
}

impl Proxy {
    fn new(server: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        let at_commit = Arc::new(AtomicU8::new(PASS));
        let mode = Arc::clone(&at_commit);
        let wire = Arc::new(Wire {
            left: AtomicI64::new(i64::MAX),
            half: AtomicBool::new(false),
            piece: AtomicUsize::new(usize::MAX),
            stalled: AtomicBool::new(false),
            wait: AtomicU64::new(0),
        });
        let way = Arc::clone(&wire);
        let server = Arc::new(Mutex::new(server));
        let target = Arc::clone(&server);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                std::thread::sleep(Duration::from_millis(way.wait.load(Ordering::SeqCst)));
                let server = UnixStream::connect(&*target.lock().unwrap()).unwrap();
                relay(client.unwrap(), server, Arc::clone(&mode), &way);
            }
        });
        Self { folder, at_commit, wire, server }
    }

    fn conninfo(&self, direct: &str) -> String {
        let words = direct.split(' ').filter(|word| !word.starts_with("host=") && !word.starts_with("port="));
        format!("host={} port=5432 {}", self.folder.path().display(), words.collect::<Vec<_>>().join(" "))
    }
}

fn relay(client: UnixStream, server: UnixStream, mode: Arc<AtomicU8>, wire: &Arc<Wire>) {
    let silent = Arc::new(AtomicBool::new(false));
    let (mut from_server, mut to_client, muted) =
        (server.try_clone().unwrap(), client.try_clone().unwrap(), Arc::clone(&silent));
    let way = Arc::clone(wire);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok(read @ 1..) = from_server.read(&mut buffer) {
            if muted.load(Ordering::SeqCst) || !way.pass(&buffer[..read], &mut to_client) {
                break;
            }
        }
        let half = way.half.load(Ordering::SeqCst);
        let _ = to_client.shutdown(if half { std::net::Shutdown::Write } else { std::net::Shutdown::Both });
    });
    let way = Arc::clone(wire);
    std::thread::spawn(move || {
        let (mut from_client, mut to_server) = (client, server);
        let mut buffer = vec![0; 65536];
        while let Ok(read @ 1..) = from_client.read(&mut buffer) {
            let commit = buffer[..read].ends_with(b"COMMIT\0");
            let mode = if commit { mode.load(Ordering::SeqCst) } else { PASS };
            silent.store(mode != PASS, Ordering::SeqCst);
            if mode == LOSE_COMMIT || !way.pass(&buffer[..read], &mut to_server) {
                break;
            }
        }
        let _ = from_client.shutdown(std::net::Shutdown::Both);
        let _ = to_server.shutdown(std::net::Shutdown::Both);
    });
}

fn socket(conninfo: &str) -> PathBuf {
    let word =
        |name: &str| conninfo.split(' ').find_map(|word| word.strip_prefix(name)).map(|word| word.trim_matches('\''));
    Path::new(word("host=").unwrap()).join(format!(".s.PGSQL.{}", word("port=").unwrap_or("5432")))
}

/// How often a fault is tried: so many times, and in a soak once for every so many kills of a recovery.
fn times(usual: u32, kills_a_time: u32) -> u32 {
    std::env::var("LIFEBOAT_KILLS").map_or(usual, |kills| usual.max(kills.parse::<u32>().unwrap() / kills_a_time))
}

/// Drops the database of a repair.
fn remove(repair: Repair) {
    let (other, name) = repair.bench.conninfo.rsplit_once("dbname=").unwrap();
    let (other, name) = (format!("{other}dbname=postgres"), name.to_owned());
    drop(repair);
    psql(&other, &format!("drop database {name} with (force)"));
}

async fn repair(name: &str) -> Repair {
    Repair::new(name, SCHEMA, &["t"], DAMAGE).await
}

#[tokio::test]
async fn fm_03_a_commit_whose_reply_was_lost_is_resolved_and_never_repeated() {
    let runs = times(4, 2);
    for run in 0..runs {
        let mode = if run % 2 == 0 { LOSE_REPLY } else { LOSE_COMMIT };
        let repair = repair(&format!("fm_03_{run}")).await;
        let changes = repair.prepare(&repair.back()).await.unwrap();
        let proxy = Proxy::new(socket(&repair.bench.conninfo));
        let through = session(&proxy.conninfo(&repair.bench.conninfo)).await;
        proxy.at_commit.store(mode, Ordering::SeqCst);
        claim::release(&repair.bench.client).await.unwrap();
        let scratch = &repair.bench.scratch;
        let error = merge::apply(&through, scratch, &changes, "", &Progress::default()).await.unwrap_err();
        assert_eq!(error.kind, Kind::Unresolved, "{error:?}");
        let outcome = merge::resolve(&repair.bench.client, "r1", &changes.hash).await.unwrap();
        if mode == LOSE_REPLY {
            let Outcome::Applied(applied) = outcome else { panic!("{outcome:?}") };
            assert_eq!((applied.tables[0].updated, applied.tables[0].inserted), (2000, 100));
            assert_eq!(repair.bench.sql("select count(*) from lifeboat_undo_r1.applied"), "1");
            assert!(repair.apply(&changes).await.unwrap_err().message.contains("has been merged before"));
        } else {
            assert_eq!(outcome, Outcome::NotApplied);
            assert_eq!(repair.state(), repair.damaged);
            repair.apply(&changes).await.unwrap();
        }
        assert_eq!(repair.bench.sql("select count(*) from t where status = 'active'"), "3000");
        drop(through);
        remove(repair);
    }
    println!("{runs} lost replies to COMMIT, each applied once");
}

/// Applies while `fault` is at work; the result must be known, and all or nothing.
async fn all_or_nothing(repair: &Repair, client: Session, fault: impl Future<Output = ()>, after: &str) -> bool {
    let changes = repair.prepare(&repair.back()).await.unwrap();
    let scratch = repair.bench.scratch.clone();
    let progress = Progress::default();
    claim::release(&repair.bench.client).await.unwrap();
    let (applied, ()) = tokio::join!(merge::apply(&client, &scratch, &changes, "", &progress), fault);
    let applied = match applied {
        Ok(_) => true,
        Err(error) if error.kind == Kind::Unresolved => {
            let client = session(&repair.bench.conninfo).await;
            matches!(merge::resolve(&client, "r1", &changes.hash).await.unwrap(), Outcome::Applied(_))
        }
        Err(_) => false,
    };
    let now = state(&repair.bench.conninfo);
    assert_eq!(
        now,
        if applied { after } else { &repair.damaged },
        "half applied, or not what was said (applied: {applied})"
    );
    drop(client);
    while !claim::others(&repair.bench.client).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if applied {
        let undo = merge::undo_plan(&repair.bench.client, "u1", "r1").await.unwrap();
        merge::undo(&repair.bench.client, "u1", "r1", &undo, "", &Progress::default()).await.unwrap();
        repair.bench.sql("drop schema lifeboat_undo_r1 cascade; drop schema if exists lifeboat_undo_u1 cascade");
        repair.bench.sql("select count(*) from t");
        assert_eq!(state(&repair.bench.conninfo), repair.damaged);
    }
    applied
}

/// How a whole merge leaves production, and how long it takes.
async fn rehearse(repair: &Repair) -> (String, Duration) {
    let changes = repair.prepare(&repair.back()).await.unwrap();
    let started = Instant::now();
    repair.apply(&changes).await.unwrap();
    let (after, took) = (repair.state(), started.elapsed());
    repair.undo(&repair.undo_plan().await).await.unwrap();
    repair.bench.sql("drop schema lifeboat_undo_r1 cascade; drop schema if exists lifeboat_undo_u1 cascade");
    (after, took)
}

/// Undo gave every row a new version: compare again.
async fn again(repair: &mut Repair) {
    let table = repair.tables[0].clone();
    let rows = repair.bench.sql("select count(*) from restore_staging_r1.t0").parse().unwrap();
    let Bench { client, scratch, .. } = &repair.bench;
    let compared = diff::diff(client, scratch, table, &KeyChoice::Best, rows, &Progress::default()).await.unwrap();
    repair.tables = vec![compared.0];
}

#[tokio::test]
async fn fm_08_a_wish_to_stop_that_arrives_late_stops_nothing_else() {
    let repair = repair("fm_08_late").await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    claim::release(&repair.bench.client).await.unwrap();
    let proxy = Proxy::new(socket(&repair.bench.conninfo));
    let through = session(&proxy.conninfo(&repair.bench.conninfo)).await;
    proxy.wire.wait.store(500, Ordering::SeqCst);
    let (holder, progress) = (session(&repair.bench.conninfo).await, Progress::default());
    holder.batch_execute("begin; lock table public.t in share mode").await.unwrap();
    let cancelling = async {
        let waiting = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
        while holder.query(waiting, &[]).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        progress.cancel();
        tokio::time::sleep(Duration::from_millis(50)).await;
        // What was to be stopped goes on and ends by itself before the wish is there.
        holder.batch_execute("rollback").await.unwrap();
    };
    let (applied, ()) =
        tokio::join!(merge::apply(&through, &repair.bench.scratch, &changes, "", &progress), cancelling);
    assert_eq!(applied.unwrap_err().kind, Kind::Cancelled);
    through.batch_execute("select pg_sleep(1)").await.unwrap();
    assert_eq!(repair.state(), repair.damaged);
}

#[tokio::test]
async fn fm_11_a_session_that_is_terminated_at_any_moment_leaves_all_or_nothing() {
    let mut repair = repair("fm_11").await;
    let (after, took) = rehearse(&repair).await;
    let mut applied = 0;
    for run in 0..24_u32 {
        again(&mut repair).await;
        let client = session(&repair.bench.conninfo).await;
        let pid: i32 = client.query_one("select pg_catalog.pg_backend_pid()", &[]).await.unwrap().get(0);
        let killer = session(&repair.bench.conninfo).await;
        let fault = async {
            tokio::time::sleep(took * run / 20).await;
            killer.execute("select pg_catalog.pg_terminate_backend($1)", &[&pid]).await.unwrap();
        };
        applied += u32::from(all_or_nothing(&repair, client, fault, &after).await);
    }
    assert!(applied > 0 && applied < 24, "{applied} of 24 were applied");
}

#[tokio::test]
async fn fm_09_10_a_backend_or_a_server_that_is_killed_at_any_moment_leaves_all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut cluster = Cluster::create(&folder.path().join("pg"), &programs().unwrap(), &["fsync=on"]).unwrap();
    let conninfo = cluster.conninfo("postgres");
    let (runs, mut kept) = (times(16, 2), 0);
    for run in 0..runs {
        let name = format!("run{run}");
        psql(&conninfo, &format!("create database {name}"));
        let database = cluster.conninfo(&name);
        psql(&database, SCHEMA);
        let repair = Repair::of(Bench::on(database).await, &["t"], DAMAGE, &KeyChoice::Best).await;
        let changes = repair.prepare(&repair.back()).await.unwrap();
        let delay = Duration::from_millis(u64::from(run / 2 % 8) * 20 + u64::from(run / 16 % 20));
        let backend: i32 = repair.bench.client.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
        let witness = session(&repair.bench.conninfo).await;
        let killed = async {
            tokio::time::sleep(delay).await;
            if run % 2 == 0 {
                cluster.kill();
            } else {
                // The server takes that for a crash: it ends every session and recovers by itself.
                let killed = std::process::Command::new("kill").args(["-9", &backend.to_string()]).status();
                assert!(killed.unwrap().success());
            }
        };
        let (outcome, ()) = tokio::join!(repair.apply(&changes), killed);
        while !witness.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if run % 2 == 0 {
            cluster.start().unwrap();
        }
        let client = back_again(&repair.bench.conninfo).await;
        let resolved = merge::resolve(&client, "r1", &changes.hash).await.unwrap();
        let applied = matches!(resolved, Outcome::Applied(_));
        kept += u32::from(applied);
        match &outcome {
            Ok(_) => assert!(applied, "confirmed, and lost"),
            Err(error) if error.kind == Kind::Unresolved => {}
            Err(error) => assert!(!applied, "said to have failed, and applied: {error:?}"),
        }
        if applied {
            assert_eq!(repair.bench.sql("select count(*) from t where status = 'active'"), "3000");
            // The crash has emptied what the proof compares with, and a proof of nothing is none.
            let error = merge::prove(&client, &repair.bench.scratch, &changes).await.unwrap_err();
            assert!(error.message.contains("frozen rows are gone"), "{error:?}");
        } else {
            assert_eq!(repair.state(), repair.damaged);
        }
        // Unlogged staging does not survive a crash; what is left of it can be removed.
        stage::drop_scratch(&client, &repair.bench.scratch).await.unwrap();
        drop(client);
        remove(repair);
    }
    println!("{runs} kills of a server or a backend, {kept} merges were committed before");
}

/// A session with a server that is recovering.
async fn back_again(conninfo: &str) -> Session {
    let begun = Instant::now();
    loop {
        match connect(&Conninfo::parse(conninfo).unwrap(), "lifeboat test").await {
            Ok(server) => return server.client,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(30), "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn fm_27_an_application_that_writes_all_the_while_loses_nothing() {
    let mut repair = repair("fm_27_ledger").await;
    // Few damaged rows, so that some merges meet none of the application's writes, and some do.
    repair.bench.sql("update t set status = 'active' where id > 60");
    let stop = Arc::new(AtomicBool::new(false));
    let (acknowledged, slowest) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut writers = Vec::new();
    let begun = Instant::now();
    for seed in 1..=12_u64 {
        let client = session(&repair.bench.conninfo).await;
        let (stop, acknowledged, slowest) = (Arc::clone(&stop), Arc::clone(&acknowledged), Arc::clone(&slowest));
        writers.push(tokio::spawn(async move {
            let mut random = seed;
            while !stop.load(Ordering::Relaxed) {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let id = i32::try_from(random >> 33).unwrap_or(0) % 2900 + 1;
                let asked = Instant::now();
                client.execute("update public.t set hits = hits + 1 where id = $1", &[&id]).await.unwrap();
                slowest.fetch_max(u64::try_from(asked.elapsed().as_millis()).unwrap(), Ordering::Relaxed);
                acknowledged.fetch_add(1, Ordering::Relaxed);
                // Of twelve, two hundred a second and more, also on a busy machine.
                tokio::time::sleep(Duration::from_millis(40).saturating_sub(asked.elapsed())).await;
            }
        }));
    }
    let (mut merged, mut moved) = (0, 0);
    while merged < times(10, 5) {
        assert!(moved < 100 * (merged + 1), "hardly anything can be merged beside the application");
        again(&mut repair).await;
        let mut choice = repair.choice(0, &[Class::Changed]);
        choice.columns = Some(vec!["status".into()]);
        let changes = repair.prepare(&[choice]).await.unwrap();
        match repair.apply(&changes).await {
            Ok(_) => {
                merged += 1;
                repair.bench.sql("drop schema lifeboat_undo_r1 cascade; update t set status = 'void' where id <= 60");
            }
            Err(error) => {
                moved += 1;
                assert!(error.message.contains("moved since") || error.message.contains("are locked"), "{error:?}");
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(repair.bench.sql("select sum(hits) from t"), acknowledged.load(Ordering::Relaxed).to_string());
    let (written, slowest) = (acknowledged.load(Ordering::Relaxed), slowest.load(Ordering::Relaxed));
    let rate = written / begun.elapsed().as_secs().max(1);
    println!(
        "{merged} merged beside {written} writes ({rate}/s, the slowest took {slowest} ms), {moved} refused since rows had moved"
    );
}

/// A file system of its own, unmounted at the end.
pub struct Small(PathBuf);

impl Small {
    /// `None`: that takes a right that we do not have.
    pub fn mount(folder: &Path, size: &str) -> Option<Self> {
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "tmpfs"])
            .arg(folder)
            .output()
            .unwrap();
        mounted.status.success().then(|| Self(folder.to_owned()))
    }

    /// Makes it so large that so many bytes are free.
    pub fn leave(&self, free: u64) {
        let facts = rustix::fs::statvfs(&self.0).unwrap();
        let size = (facts.f_blocks - facts.f_bfree) * facts.f_frsize + free;
        let mut resize = std::process::Command::new("mount");
        resize.args(["-o", &format!("remount,size={size}")]).arg(&self.0);
        assert!(resize.status().unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn fm_22_a_full_disk_of_the_server_ends_staging_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let Some(_disk) = Small::mount(folder.path(), "200m") else {
        crate::not_run("fm_22 needs the right to mount a file system");
        return;
    };
    let settings = ["max_wal_size=32MB", "min_wal_size=32MB"];
    let cluster = Cluster::create(&folder.path().join("pg"), &programs().unwrap(), &settings).unwrap();
    let conninfo = cluster.conninfo("postgres");
    psql(&conninfo, "create table t (a int primary key)");
    let client = session(&conninfo).await;
    let scratch = stage::create_scratch(&client, "r1").await.unwrap();
    let live = schema::live(&client, Some(&[Name::new("public", "t")])).await.unwrap().pop().unwrap();
    let columns = [Column { name: "a".into(), type_sql: "integer".into(), not_null: true, generated: false }];
    let pairs = diff::pairs(&live, &columns, &["a".to_owned()]);
    let columns = stage::columns(&client, &live, &pairs, &["a".to_owned()]).await.unwrap();
    let spec = stage::Spec { table: Name::new("public", "t"), number: 0, columns, encoding: None };
    let error = stage::stage((&client, None), &scratch, &spec, crate::stage::Endless, None, &Progress::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Target, "{error:?}");
    assert!(error.message.contains("full") || error.message.contains("space"), "{error:?}");
    assert_eq!(psql(&conninfo, "select count(*) from pg_class where relname = 't0'"), "0");
    stage::drop_scratch(&client, &scratch).await.unwrap();
    assert_eq!(psql(&conninfo, "select count(*) from t"), "0");
    drop(cluster);
}

#[tokio::test]
async fn fm_12_a_failover_to_another_server_in_the_middle_is_refused() {
    let sql = "create table t (id int primary key); insert into t values (1), (2)";
    let here = database("fm_12_failover", sql);
    let dump = tempfile::NamedTempFile::new().unwrap();
    let made = std::process::Command::new(crate::cluster::pg_programs().join("pg_dump"))
        .args(["-Fc", "-f"])
        .arg(dump.path())
        .args(["-d", &here])
        .status()
        .unwrap();
    assert!(made.success());
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let other = Cluster::create(&folder.path().join("pg"), &programs().unwrap(), &[]).unwrap();
    psql(&other.conninfo("postgres"), "create database fm_12_failover");
    let there = other.conninfo("fm_12_failover");
    psql(&there, sql);

    let proxy = Proxy::new(socket(&here));
    let system = System { database: Some(proxy.conninfo(&here)), ..System::named("shop") };
    let live = Systems::new(system, Some(dump.path().to_owned()));
    let progress = Progress::default();
    let look = Look::Tables { point: "on disk".into(), dump: String::new() };
    live.look("r12", &look, &progress).await.unwrap();
    psql(
        &here,
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    live.look("r12", &look, &progress).await.unwrap();
    *proxy.server.lock().unwrap() = socket(&there);
    psql(
        &here,
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    let names = vec![Name::new("public", "t")];
    let diff = Look::Diff { point: "on disk".into(), dump: String::new(), tables: names, keys: Vec::new() };
    let error = live.look("r12", &diff, &progress).await.unwrap_err();
    assert!(error.message.contains("leads to another server"), "{error:?}");
    assert_eq!(psql(&there, "select count(*) from pg_namespace where nspname like 'restore_staging_%'"), "0");
}

#[tokio::test]
async fn fm_46_a_large_merge_says_what_it_costs_and_a_standby_follows() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let settings = ["max_slot_wal_keep_size=512MB", "max_wal_size=256MB"];
    let cluster = Cluster::create(&folder.path().join("pg"), &programs().unwrap(), &settings).unwrap();
    let conninfo = cluster.conninfo("postgres");
    let copy = cluster.folder().join("standby");
    let mut backup = cluster.command("pg_basebackup").unwrap();
    backup.args(["-R", "-c", "fast", "-C", "-S", "follower", "-d", &conninfo, "-D"]).arg(&copy);
    let output = backup.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sockets = copy.display().to_string();
    let mut standby = cluster.command("postgres").unwrap();
    standby.arg("-D").arg(&copy).args(["-k", &sockets, "-c", "listen_addresses=", "-c", "fsync=off"]);
    let mut standby = standby.stderr(std::process::Stdio::null()).spawn().unwrap();

    let schema = "create table t (id int primary key, status text, note text);
        create index on t (note);
        insert into t select i, 'active', md5(i::text) from generate_series(1, 60000) i; analyze t";
    psql(&conninfo, schema);
    let damage = "update t set status = 'void' where id % 2 = 0; delete from t where id > 59000; checkpoint";
    let repair = Repair::of(Bench::on(conninfo.clone()).await, &["t"], damage, &KeyChoice::Best).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    let [follower] = changes.load.followers.as_slice() else { panic!("{:?}", changes.load) };
    assert_eq!(follower.slot, "follower");
    assert!(follower.spare_bytes.is_some_and(|spare| spare > 100 << 20), "{follower:?}");
    repair.bench.sql("checkpoint");
    let position = "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::int8";
    let before: u64 = repair.bench.sql(position).parse().unwrap();
    repair.apply(&changes).await.unwrap();
    let written = repair.bench.sql(position).parse::<u64>().unwrap() - before;
    let estimate = changes.load.wal_bytes;
    println!("{written} bytes of log were written, {estimate} were announced");
    assert!(written < estimate && estimate < 5 * written, "{written} bytes of log, {estimate} announced");

    let other = conninfo.replacen(&cluster.folder().display().to_string(), &sockets, 1);
    assert_ne!(other, conninfo);
    let begun = Instant::now();
    let caught_up = "select pg_current_wal_lsn() <= replay_lsn from pg_stat_replication";
    while psql(&conninfo, caught_up) != "t" {
        assert!(begun.elapsed() < Duration::from_secs(30), "the standby did not follow");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(state(&other), repair.state());
    standby.kill().unwrap();
    standby.wait().unwrap();
}
