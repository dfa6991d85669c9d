//! A whole database of 1.3 GB: the peer is `restic restore` and `pg_restore -j2`, which looks at nothing before or after. So two
//! more lines say where the time goes: our restore by itself, and the peer with our checks done by hand. And how long clients
//! are out of reach while names are exchanged.
//!
//! Of our 17 s on two processors 3.5 are the first decoding, which keeps one of them, 6 the load, 1 the checks, and 6.5 the
//! indexes, which are the server's work in either case. Load and indexes keep both processors, mostly with the server: they alone
//! are 0.7 of the peer, so that 0.75 with a decoding before them would take one that costs nothing.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lifeboat::drill::cluster::programs;

use crate::rows::{Stage, WANTED, neighbour, psql};
use crate::{best, heading, line, peak_of_worker, ratio, seconds, shell};

/// Names are exchanged so many times under clients that come back at once.
const SWAPS: usize = 100;
const CLIENTS: usize = 50;

pub fn run() {
    let stage = Stage::new();
    psql(&stage.cluster.conninfo("postgres"), "create database bench");
    stage.psql(WANTED);
    stage.psql(&neighbour(5_000_000));
    stage.psql(
        "alter table neighbour add primary key (id); create index on neighbour (a); create index on wanted (customer)",
    );
    std::fs::write(stage.path("password"), "bench\n").unwrap();
    shell(&format!("{} init --repository-version 2", stage.restic()));
    let (snapshot, dump) = stage.back_up("whole.dump");
    let size: f64 = stage.psql("select pg_database_size('bench')").parse().unwrap();
    println!("\na database of {:.1} GB, a dump of {} MB", size / 1e9, dump >> 20);
    heading();
    restoring(&stage, &snapshot);
    exchanging(&stage);
}

/// The answers that restore a snapshot beside production.
fn answers(stage: &Stage, snapshot: &str) -> String {
    let path = stage.path("answers.toml");
    std::fs::write(&path, format!("point = \"{snapshot}\"\ndatabase = \"keep\"\nconsent = \"\"\n")).unwrap();
    path.display().to_string()
}

fn restoring(stage: &Stage, snapshot: &str) {
    let answers = answers(stage, snapshot);
    let ours = || stage.lifeboat(&["recover", "--json", "--answers", &answers]);
    let drop_ours = || {
        let names = stage.psql("select datname from pg_database where datname ~ '^lifeboat_restore_'");
        for name in names.lines() {
            psql(&stage.cluster.conninfo("postgres"), &format!("drop database \"{name}\""));
        }
    };
    let (mut alone, mut by_hand, mut checked_by_hand) = (Duration::MAX, Duration::MAX, Duration::MAX);
    let whole = best(|| {
        stage.psql("checkpoint");
        let begun = Instant::now();
        let output = ours().output().unwrap();
        let took = begun.elapsed();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let journal = String::from_utf8(output.stdout).unwrap();
        alone = alone.min(Duration::from_millis(number_after(&journal, "\"took_ms\":").into()));
        drop_ours();
        stage.psql("checkpoint");
        let (restored, checked) = restored_by_hand(stage, snapshot);
        (by_hand, checked_by_hand) = (by_hand.min(restored), checked_by_hand.min(checked));
        took
    });
    for (what, ours, peer) in [
        ("whole database, checked / restic restore + pg_restore -j2", whole, by_hand),
        ("the restore alone, without our count and checks / the same", alone, by_hand),
        ("whole database, checked / by hand with the same checks", whole, checked_by_hand),
    ] {
        line(what, &seconds(ours), &seconds(peer), ratio(ours, peer), 0.75);
    }
    let most = peak_of_worker(&mut ours(), &format!("XDG_STATE_HOME={}", stage.path("state").display()));
    drop_ours();
    #[expect(clippy::cast_precision_loss, reason = "a ratio for the eye")]
    line("peak memory of that / 250 MB", &format!("{:.0} MB", most as f64 / 1e6), "250 MB", most as f64 / 250e6, 1.0);
}

/// How long it takes, and how long with the checks that a careful person adds: the dump is decoded once before anything is made,
/// and statistics are gathered and rows counted on both sides after.
fn restored_by_hand(stage: &Stage, snapshot: &str) -> (Duration, Duration) {
    let (target, programs) = (stage.path("restored"), programs().unwrap());
    let (postgres, restored) = (stage.cluster.conninfo("postgres"), stage.cluster.conninfo("by_hand"));
    let pg_restore = |arguments: &str| {
        shell(&format!("{}/pg_restore {arguments} $(find {} -type f)", programs.display(), target.display()));
    };
    let timed = |work: &dyn Fn()| {
        let begun = Instant::now();
        work();
        begun.elapsed()
    };
    let copied = timed(&|| _ = shell(&format!("{} restore {snapshot} --target {}", stage.restic(), target.display())));
    let decoded = timed(&|| pg_restore("-f /dev/null"));
    let loaded = timed(&|| {
        psql(&postgres, "create database by_hand template template0");
        pg_restore(&format!("-j2 -d '{restored}'"));
    });
    let checked = timed(&|| {
        psql(&restored, "analyze");
        for side in [&restored, &stage.cluster.conninfo("bench")] {
            psql(side, "select (select count(*) from neighbour), (select count(*) from wanted)");
        }
    });
    psql(&postgres, "drop database by_hand");
    std::fs::remove_dir_all(target).unwrap();
    (copied + loaded, copied + decoded + loaded + checked)
}

/// A small database, so that what is measured is the exchange.
fn exchanging(stage: &Stage) {
    psql(&stage.cluster.conninfo("postgres"), "create database swapped");
    let conninfo = stage.cluster.conninfo("swapped");
    psql(&conninfo, "create table t (id int primary key); insert into t select generate_series(1, 1000)");
    let dump = stage.path("small.dump");
    shell(&format!("{}/pg_dump -Fc -d '{conninfo}' -f {}", programs().unwrap().display(), dump.display()));
    let path = stage.path("swap.toml");
    let text = "database = \"exchange\"\nsafety_backup = false\nleave_writes = true\nconsent = \"swapped\"\n";
    std::fs::write(&path, text).unwrap();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(crate::LIFEBOAT);
        command.args(arguments).args(["--database", &conninfo]).env("XDG_STATE_HOME", stage.path("state"));
        command.env("XDG_CONFIG_HOME", stage.path("config")).stdin(Stdio::null());
        command
    };
    let stop = AtomicBool::new(false);
    let mut outages = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| clients(&conninfo, &stop));
        }
        for _ in 0..SWAPS / 2 {
            let output =
                command(&["recover", "--json", "--answers", path.to_str().unwrap(), "--dump", dump.to_str().unwrap()])
                    .output()
                    .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let done: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            outages.push(outage(&done["journal"].to_string()));
            let id = done["recovery"].as_str().unwrap();
            let output = command(&["undo", id, "--consent", "swapped"]).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            outages.push(told_outage(&String::from_utf8(output.stdout).unwrap()));
            psql(&stage.cluster.conninfo("postgres"), &format!("drop database \"lifeboat_restore_{id}\""));
        }
        stop.store(true, Ordering::Relaxed);
    });
    outages.sort_unstable();
    let worst = outages[outages.len() * 99 / 100];
    line(
        "out of reach at an exchange, 50 clients, p99 of 100 / 1 s",
        &format!("{worst} ms"),
        "1000 ms",
        f64::from(worst) / 1000.0,
        1.0,
    );
}

/// Asks, and comes back at once when the session is ended.
fn clients(conninfo: &str, stop: &AtomicBool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        while !stop.load(Ordering::Relaxed) {
            let Ok((client, connection)) = tokio_postgres::connect(conninfo, tokio_postgres::NoTls).await else {
                continue;
            };
            let connection = tokio::spawn(connection);
            while !stop.load(Ordering::Relaxed) && client.query_one("select count(*) from t", &[]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            connection.abort();
        }
    });
}

fn outage(journal: &str) -> u32 {
    number_after(journal, "\"outage_ms\":")
}

fn told_outage(report: &str) -> u32 {
    number_after(report, "out of reach for ")
}

fn number_after(text: &str, words: &str) -> u32 {
    let (_, rest) = text.split_once(words).unwrap();
    rest.split(|letter: char| !letter.is_ascii_digit()).next().unwrap().parse().unwrap()
}
