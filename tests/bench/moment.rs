//! A moment in time: the peer is the hand procedure, corrected: unpack the base backup, replay, `pg_dump` of one table into a
//! staging schema, one full join. And clones at random targets of a writing workload, compared with the workload's own ledger.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use lifeboat::config::System;
use lifeboat::drill::cluster::{Cluster, programs};
use lifeboat::postgres::name::Name;
use lifeboat::progress::Progress;
use lifeboat::recovery::record::{Aim, CLONE, Finding, Look};
use lifeboat::recovery::systems::Systems;

use crate::rows::{DAMAGE, WANTED, full_join, neighbour, psql};
use crate::{LIFEBOAT, best, heading, line, ratio, seconds, shell};

/// Moments of the workload that are laid out.
const TARGETS: usize = 50;
/// Transactions of the workload.
const TRANSACTIONS: usize = 400;

/// A server that archives, and a base backup of it.
struct Archiving {
    cluster: Cluster,
    folder: tempfile::TempDir,
}

impl Archiving {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("lb-bench-").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let archive = folder.path().join("pg/archive");
        let command = format!("archive_command=test ! -f {0}/%f && cp %p {0}/%f", archive.display());
        let settings =
            ["shared_buffers=512MB", "max_wal_size=4GB", "track_commit_timestamp=on", "archive_mode=on", &command];
        let cluster = Cluster::create(&folder.path().join("pg"), &programs().unwrap(), &settings).unwrap();
        let owner = std::fs::metadata(folder.path().join("pg")).unwrap();
        for name in ["archive", "clones", "hand"] {
            let path = folder.path().join("pg").join(name);
            std::fs::create_dir(&path).unwrap();
            std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        psql(&cluster.conninfo("postgres"), "create database bench");
        Self { cluster, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("pg").join(name)
    }

    fn psql(&self, sql: &str) -> String {
        psql(&self.cluster.conninfo("bench"), sql)
    }

    fn base_backup(&self) {
        let mut base = self.cluster.command("pg_basebackup").unwrap();
        base.arg("-D").arg(self.path("base")).args(["-Ft", "-X", "none", "-c", "fast", "--no-sync"]);
        assert!(base.output().unwrap().status.success());
    }

    fn archived(&self) {
        let last = self.psql("create table if not exists last (a int); select pg_walfile_name(pg_switch_wal())");
        // A copy is not done at once.
        while !std::fs::metadata(self.path("archive").join(&last)).is_ok_and(|facts| facts.len() == 16 << 20) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub fn run() {
    println!("\na moment in time");
    heading();
    to_a_diff();
    random_targets();
}

fn to_a_diff() {
    let world = Archiving::new();
    world.psql(WANTED);
    world.psql(&neighbour(3_000_000));
    world.base_backup();
    world.psql("update neighbour set d = 0 where id <= 300000");
    world.psql(DAMAGE);
    let xid = world.psql("select xmin from public.wanted where id % 100 = 3 limit 1");
    world.archived();
    let size: f64 = world.psql("select pg_database_size('bench')").parse().unwrap();
    println!(
        "a cluster of {:.1} GB, {} segments of WAL",
        size / 1e9,
        std::fs::read_dir(world.path("archive")).unwrap().count()
    );
    let system = System {
        database: Some(world.cluster.conninfo("bench")),
        base_backups: vec![world.path("base").display().to_string()],
        wal_archive: Some(world.path("archive").display().to_string()),
        clones: Some(world.path("clones")),
        ..System::named("bench")
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let aim = Aim::before(xid.parse().unwrap());
    let mut by_hand = Duration::MAX;
    let ours = best(|| {
        world.psql("checkpoint");
        let took = runtime.block_on(ours(&system, &aim));
        world.psql("checkpoint");
        by_hand = by_hand.min(restored_by_hand(&world, &xid));
        took
    });
    line("point in time to three-class diff / by hand", &seconds(ours), &seconds(by_hand), ratio(ours, by_hand), 0.8);
}

/// From what is configured to the numbers of the diff.
async fn ours(system: &System, aim: &Aim) -> Duration {
    let (systems, progress) = (Systems::new(system.clone(), None), Progress::default());
    let look = async |look: Look| systems.look("bench", &look, &progress).await.unwrap();
    let begun = Instant::now();
    let Finding::Reached(Ok(reached)) = look(Look::Reach { aim: aim.clone() }).await else { panic!("not reached") };
    let folder = reached.folder.clone();
    let reached_after = begun.elapsed();
    look(Look::LayOut { reached }).await;
    let laid_out_after = begun.elapsed();
    let (point, dump) = (CLONE.to_owned(), "bench".to_owned());
    let tables = vec![Name::new("public", "wanted")];
    let Finding::Diff(diffs) = look(Look::Diff { point, dump, tables, keys: vec![] }).await else { panic!("no diff") };
    let took = begun.elapsed();
    assert_eq!((diffs[0].missing, diffs[0].extra), (300, 25), "the diff");
    println!("reached after {}, laid out after {}", seconds(reached_after), seconds(laid_out_after));
    let drop = lifeboat::recovery::plan::Step::DropClone { folder };
    systems.execute("bench", &lifeboat::recovery::plan::Step::DropScratch, "", &progress).await.unwrap();
    systems.execute("bench", &drop, "", &progress).await.unwrap();
    took
}

fn restored_by_hand(world: &Archiving, xid: &str) -> Duration {
    let (data, programs) = (world.path("hand/data"), programs().unwrap());
    let user = if nix::unistd::geteuid().is_root() { "runuser -u postgres -- " } else { "" };
    let begun = Instant::now();
    shell(&format!(
        "cd /; {user}mkdir -m 700 {data}; {user}tar -xf {base}/base.tar -C {data}
         printf \"%s\\n\" \"restore_command = 'cp {archive}/%f %p'\" \"recovery_target_xid = '{xid}'\" 'recovery_target_inclusive = off' \
            'recovery_target_action = promote' \"unix_socket_directories = '{hand}'\" \"listen_addresses = ''\" 'fsync = off' \
            'archive_mode = off' >> {data}/postgresql.conf
         {user}touch {data}/recovery.signal
         {user}{programs}/pg_ctl -s -w -t 600 -D {data} -l {hand}/log start
         until psql -X -At -h {hand} -U postgres -d bench -c 'select pg_is_in_recovery()' 2>&1 | grep -q f; do sleep 0.1; done",
        data = data.display(),
        base = world.path("base").display(),
        archive = world.path("archive").display(),
        hand = world.path("hand").display(),
        programs = programs.display(),
    ));
    world.psql("create schema by_hand; create unlogged table by_hand.wanted (like public.wanted)");
    shell(&format!(
        "{}/pg_dump --data-only --table=public.wanted -h {} -U postgres bench | sed 's/^COPY public\\.wanted /COPY by_hand.wanted /' \
         | psql -X -q -v ON_ERROR_STOP=1 -d '{}' > /dev/null",
        programs.display(),
        world.path("hand").display(),
        world.cluster.conninfo("bench"),
    ));
    world.psql(&format!("analyze by_hand.wanted; {}", full_join("by_hand.wanted")));
    let took = begun.elapsed();
    world.psql("drop schema by_hand cascade");
    shell(&format!("cd /; {user}{}/pg_ctl -s -D {} -m immediate stop", programs.display(), data.display()));
    std::fs::remove_dir_all(data).unwrap();
    took
}

/// Each clone has to be what the ledger says of that instant, every time.
fn random_targets() {
    let world = Archiving::new();
    world.psql("create table ledger (id bigint primary key, v bigint)");
    world.base_backup();
    let mut seed: u64 = 20_261_129;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let (mut rows, mut ledger) = (BTreeMap::new(), Vec::new());
    for _ in 0..TRANSACTIONS {
        let (id, v, part) = (random(200), random(1000), random(7));
        let change = if random(3) == 0 {
            rows.retain(|known: &u64, _| known % 7 != part);
            format!("delete from ledger where id % 7 = {part}")
        } else {
            rows.insert(id, v);
            format!("insert into ledger values ({id}, {v}) on conflict (id) do update set v = excluded.v")
        };
        let at = "select (extract(epoch from pg_xact_commit_timestamp(:'x'::xid)) * 1000000)::bigint";
        let said = world.psql(&format!("begin; {change}; select txid_current() as x \\gset\ncommit;\nselect :x; {at}"));
        let (xid, at) = said.split_once('\n').unwrap();
        ledger.push((xid.to_owned(), at.parse::<i64>().unwrap(), rows.clone()));
    }
    world.archived();
    let (mut right, mut longest) = (0, Duration::ZERO);
    for number in 0..TARGETS {
        let place = usize::try_from(random(TRANSACTIONS as u64 - 1)).unwrap();
        let (xid, at, _) = &ledger[place];
        // By transaction, just before one, and by time between two commits.
        let (arguments, expected) = match number % 3 {
            0 => (vec!["--xid".to_owned(), xid.clone()], &ledger[place].2),
            1 if place > 0 => (vec!["--xid".into(), xid.clone(), "--before".into()], &ledger[place - 1].2),
            _ => {
                let between = at + (ledger[place + 1].1 - at) / 2;
                let between = chrono::DateTime::from_timestamp_micros(between).unwrap();
                (vec!["--to".into(), between.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()], &ledger[place].2)
            }
        };
        let folder = world.path("clones").join("c");
        let begun = Instant::now();
        let mut clone = Command::new(LIFEBOAT);
        clone.arg("clone").arg(world.path("base")).arg("--wal").arg(world.path("archive")).args(&arguments);
        let output = clone.arg("--into").arg(&folder).arg("--json").output().unwrap();
        longest = longest.max(begun.elapsed());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let conninfo = format!("host={} port=5432 user=postgres dbname=bench", folder.display());
        let found = psql(&conninfo, "select id || ' ' || v from ledger order by id");
        let expected: Vec<_> = expected.iter().map(|(id, v)| format!("{id} {v}")).collect();
        right += usize::from(found.lines().eq(expected.iter().map(String::as_str)));
        let dropped = Command::new(LIFEBOAT).args(["clone", "--drop"]).arg(&folder).output().unwrap();
        assert!(dropped.status.success());
    }
    #[expect(clippy::cast_precision_loss, reason = "a ratio for the eye")]
    line(
        &format!("random targets that are as the ledger, longest {}", seconds(longest)),
        &format!("{right} of {TARGETS}"),
        "all",
        (TARGETS - right) as f64,
        0.0,
    );
}
