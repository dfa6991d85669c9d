//! Rows: the peer is the hand procedure, corrected: `restic restore`, `pg_restore` of one table into a staging schema through
//! `sed` and `psql`, and one full join.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat::config::System;
use lifeboat::drill::cluster::{Cluster, programs};
use lifeboat::postgres::archive::{Archive, Source};
use lifeboat::postgres::connect::{self, Conninfo, Server};
use lifeboat::postgres::diff::{self, Class, KeyChoice};
use lifeboat::postgres::merge::{self, Choice, Triggers};
use lifeboat::postgres::name::Name;
use lifeboat::postgres::schema;
use lifeboat::postgres::stage::{self, Scratch};
use lifeboat::progress::Progress;
use lifeboat::recovery::Flow;
use lifeboat::recovery::flows::Next;
use lifeboat::recovery::journal;
use lifeboat::recovery::plan::Step;
use lifeboat::recovery::record::{Fact, Incident, Look, Scope};
use lifeboat::recovery::systems::Systems;
use lifeboat::recovery::worker::{Request, Stage as WorkerStage, Workers};

use crate::{LIFEBOAT, RUNS, best, heading, line, peak, ratio, seconds, shell, terminal};

/// 500,000 rows to recover.
pub const WANTED: &str = "
create table public.wanted (id bigint primary key, customer bigint not null, state text not null, amount numeric(12,2),
    note text, ordered_at timestamptz not null, touched_at timestamptz, payload jsonb);
insert into public.wanted select i, i * 7919 % 100003, (array['open','paid','sent','void'])[1 + i % 4], (i * 37 % 100000) / 100.0,
    case when i % 5 = 0 then null else md5(i::text) end, timestamptz '2026-01-01 00:00Z' + i * interval '7 seconds',
    timestamptz '2026-01-02 00:00Z' + i * interval '11 seconds', jsonb_build_object('n', i, 'tag', md5((i % 977)::text))
    from generate_series(1::bigint, 500000) i;
analyze public.wanted;";

pub fn neighbour(rows: u64) -> String {
    format!(
        "drop table if exists public.neighbour;
         create table public.neighbour (id bigint, a text, b text, c text, d double precision);
         insert into public.neighbour select i, md5(i::text), md5((i * 31)::text), left(md5((i * 37)::text) || md5((i * 41)::text), 42), sqrt(i) from generate_series(1::bigint, {rows}) i;"
    )
}

/// One transaction damages 5,000 rows, 300 are deleted, 40 are changed and 25 are added in honest work.
pub const DAMAGE: &str = "
begin; update public.wanted set state = 'void', amount = 0 where id % 100 = 3; commit;
delete from public.wanted where id % 1000 = 7 and id < 300000;
update public.wanted set note = 'called back' where id % 12500 = 11;
insert into public.wanted select i, 1, 'open', 1, null, now(), now(), '{}' from generate_series(600001, 600025) i;
analyze public.wanted;";

pub struct Stage {
    folder: tempfile::TempDir,
    pub cluster: Cluster,
}

impl Stage {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("lifeboat-bench-").tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let settings = ["shared_buffers=512MB", "max_wal_size=4GB", "track_commit_timestamp=on"];
        let cluster = Cluster::create(&folder.path().join("pg"), &programs().unwrap(), &settings).unwrap();
        Self { folder, cluster }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn psql(&self, sql: &str) -> String {
        psql(&self.cluster.conninfo("bench"), sql)
    }

    /// Dumps the database and backs the dump up; returns the snapshot's id and the dump's size.
    pub fn back_up(&self, name: &str) -> (String, u64) {
        let dump = self.path(name);
        shell(&format!(
            "{}/pg_dump -Fc -d '{}' -f {}",
            programs().unwrap().display(),
            self.cluster.conninfo("bench"),
            dump.display()
        ));
        let output = shell(&format!("{} backup --json {}", self.restic(), dump.display()));
        let summary = output.lines().last().unwrap();
        let summary: serde_json::Value = serde_json::from_str(summary).unwrap();
        let size = std::fs::metadata(&dump).unwrap().len();
        (summary["snapshot_id"].as_str().unwrap().to_owned(), size)
    }

    pub fn restic(&self) -> String {
        format!(
            "restic -q --no-cache -r {} --password-file {}",
            self.path("repository").display(),
            self.path("password").display()
        )
    }

    /// Runs `lifeboat diff --json` and returns its answer and the time it took.
    pub fn diff(&self, snapshot: &str) -> (serde_json::Value, Duration) {
        let begun = Instant::now();
        let output = self.lifeboat(&["diff", snapshot, "public.wanted", "--json"]).output().unwrap();
        let took = begun.elapsed();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (serde_json::from_slice(&output.stdout).unwrap(), took)
    }

    pub fn lifeboat(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(LIFEBOAT);
        command
            .args(arguments)
            .args(["--database", &self.cluster.conninfo("bench")])
            .env("RESTIC_REPOSITORY", self.path("repository"))
            .env("RESTIC_PASSWORD_FILE", self.path("password"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_CONFIG_HOME", self.path("config"));
        command
    }

    /// The hand procedure, corrected, from snapshot to three-class counts.
    pub fn by_hand(&self, snapshot: &str) -> Duration {
        let target = self.path("restored");
        let conninfo = self.cluster.conninfo("bench");
        let begun = Instant::now();
        shell(&format!("{} restore {snapshot} --target {}", self.restic(), target.display()));
        self.psql("create schema by_hand; create unlogged table by_hand.wanted (like public.wanted)");
        shell(&format!(
            "{programs}/pg_restore --data-only --schema=public --table=wanted -f - $(find {target} -type f) \
             | sed 's/^COPY public\\.wanted /COPY by_hand.wanted /' | psql -X -q -v ON_ERROR_STOP=1 -d '{conninfo}' > {null}",
            programs = programs().unwrap().display(),
            target = target.display(),
            null = "/dev/null",
        ));
        self.psql(&format!("analyze by_hand.wanted; {}", full_join("by_hand.wanted")));
        let took = begun.elapsed();
        self.psql("drop schema by_hand cascade");
        std::fs::remove_dir_all(target).unwrap();
        took
    }
}

/// One statement that a careful person writes: three classes, every column compared exactly.
pub fn full_join(staged: &str) -> String {
    let columns = ["customer", "state", "amount", "note", "ordered_at", "touched_at", "payload"];
    let differs: Vec<_> = columns.iter().map(|column| format!("b.{column} is distinct from p.{column}")).collect();
    format!(
        "select count(*) filter (where p.id is null), count(*) filter (where b.id is not null and p.id is not null and ({})),
                count(*) filter (where b.id is null) from {staged} b full join public.wanted p on b.id = p.id",
        differs.join(" or ")
    )
}

pub fn psql(conninfo: &str, sql: &str) -> String {
    let mut child = Command::new("psql")
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", conninfo])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{sql}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[expect(clippy::cast_precision_loss, reason = "ratios are printed with three digits")]
pub fn run() {
    let stage = Stage::new();
    psql(&stage.cluster.conninfo("postgres"), "create database bench");
    std::fs::write(stage.path("password"), "bench\n").unwrap();
    shell(&format!("{} init --repository-version 2", stage.restic()));
    stage.psql(WANTED);
    stage.psql(&neighbour(3_000_000));
    let (small, small_size) = stage.back_up("small.dump");
    stage.psql(&neighbour(14_000_000));
    let (large, large_size) = stage.back_up("large.dump");
    stage.psql("drop table public.neighbour");
    stage.psql(DAMAGE);
    println!("dumps: {} and {}", lifeboat::text::bytes(small_size), lifeboat::text::bytes(large_size));
    heading();

    let mut answer = serde_json::Value::Null;
    let ours = best(|| {
        let (value, took) = stage.diff(&small);
        answer = value;
        took
    });
    let by_hand = best(|| stage.by_hand(&small));
    println!("timings of the last run: {}", answer["timings"]);
    line("snapshot to three-class diff / by hand", &seconds(ours), &seconds(by_hand), ratio(ours, by_hand), 0.6);
    let ours_large = best(|| stage.diff(&large).1);
    line(
        "the same, the dump four times larger / our own",
        &seconds(ours_large),
        &seconds(ours),
        ratio(ours_large, ours),
        1.1,
    );

    let listed = stage.lifeboat(&["tables", &small, "--json"]).output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let table =
        listed["tables"].as_array().unwrap().iter().find(|table| table["backup"]["name"]["name"] == "wanted").unwrap();
    let compressed = table["backup"]["compressed_size"].as_u64().unwrap();
    let read = answer["bytes_read"].as_u64().unwrap();
    let allowed = compressed as f64 * 1.1 + 8e6;
    line(
        "bytes read / (1.1 x compressed size + 8 MB)",
        &lifeboat::text::bytes(read),
        &lifeboat::text::bytes(compressed),
        read as f64 / allowed,
        1.0,
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(engines(&stage));
    runtime.block_on(workers(&stage));
    memory(&stage);
    console(&stage);
}

/// The row diff and the merge by themselves, beside one statement that a careful person writes, and reladiff.
async fn engines(stage: &Stage) {
    let server = connect::connect(&Conninfo::parse(&stage.cluster.conninfo("bench")).unwrap(), "bench").await.unwrap();
    let scratch = stage::create_scratch(&server.client, "bench").await.unwrap();
    let (table, rows) = stage_wanted(stage, &server, &scratch).await;
    let staged = "restore_staging_bench.t0";
    let mut ours = Duration::MAX;
    let mut compared = None;
    for _ in 0..RUNS {
        let begun = Instant::now();
        compared = Some(
            diff::diff(&server.client, &scratch, table.clone(), &KeyChoice::Best, rows, &Progress::default())
                .await
                .unwrap(),
        );
        ours = ours.min(begun.elapsed());
        server.client.batch_execute("drop table if exists restore_staging_bench.diff0").await.unwrap();
    }
    let by_hand = best(|| {
        let begun = Instant::now();
        stage.psql(&full_join(staged));
        begun.elapsed()
    });
    line("row diff / one hand-written full join in psql", &seconds(ours), &seconds(by_hand), ratio(ours, by_hand), 1.1);
    let reladiff = reladiff(stage, staged);
    line("row diff / reladiff 0.6.0 listing the rows", &seconds(ours), &seconds(reladiff), ratio(ours, reladiff), 0.05);
    drop(compared);
    merges(stage, &server, &scratch, &table, rows).await;
    stage::drop_scratch(&server.client, &scratch).await.unwrap();
}

async fn stage_wanted(stage: &Stage, server: &Server, scratch: &Scratch) -> (diff::Table, u64) {
    let source = Source::path(&stage.path("small.dump"));
    let archive = Archive::open(&source, &Progress::default()).unwrap();
    let name = Name::new("public", "wanted");
    let table = archive.table(&name).unwrap();
    let live = schema::live(&server.client, Some(std::slice::from_ref(&name))).await.unwrap().remove(0);
    let pairs = diff::pairs(&live, &table.columns, &table.copied);
    let staged = stage::columns(&server.client, &live, &pairs, &table.copied).await.unwrap();
    let spec = stage::Spec { table: name, number: 0, columns: staged.clone(), encoding: None };
    let rows = archive.rows(table).unwrap();
    let loaded = stage::stage((&server.client, None), scratch, &spec, rows, None, &Progress::default()).await.unwrap();
    (diff::Table { number: 0, live, pairs, staged, key: None, key_columns: Vec::new() }, loaded.rows)
}

/// 30,000 damaged rows put back: guarded, with pre-images, against the same change as one plain statement.
async fn merges(stage: &Stage, server: &Server, scratch: &Scratch, table: &diff::Table, rows: u64) {
    const DAMAGE: &str =
        "update public.wanted set state = 'lost' where id % 16 = 1 and id <= 480000; analyze public.wanted";
    const BY_HAND: &str = "update public.wanted p set state = b.state from restore_staging_bench.t0 b
        where p.id = b.id and p.state is distinct from b.state and p.state = 'lost'";
    let mut ours = Duration::MAX;
    let mut by_hand = Duration::MAX;
    for _ in 0..RUNS {
        stage.psql(DAMAGE);
        let compared = diff::diff(&server.client, scratch, table.clone(), &KeyChoice::Best, rows, &Progress::default())
            .await
            .unwrap();
        let choice = Choice {
            table: table.live.name.clone(),
            classes: [Class::Changed].into(),
            columns: None,
            transactions: None,
            condition: Some("live.state = 'lost'".into()),
            only: None,
            except: std::collections::BTreeSet::new(),
        };
        let tables = [compared.0];
        let changes = merge::prepare(&server.client, scratch, &tables, &[choice], Triggers::Fire, &Progress::default())
            .await
            .unwrap();
        assert_eq!(changes.tables[0].updates, 30_000);
        let begun = Instant::now();
        merge::apply(&server.client, scratch, &changes, "", &Progress::default()).await.unwrap();
        ours = ours.min(begun.elapsed());
        stage.psql(DAMAGE);
        let begun = Instant::now();
        stage.psql(BY_HAND);
        by_hand = by_hand.min(begun.elapsed());
        server
            .client
            .batch_execute("drop table if exists restore_staging_bench.diff0, restore_staging_bench.change0; drop schema lifeboat_undo_bench cascade")
            .await
            .unwrap();
    }
    line("merge of 30,000 rows / the same as plain SQL", &seconds(ours), &seconds(by_hand), ratio(ours, by_hand), 2.0);
}

fn reladiff(stage: &Stage, staged: &str) -> Duration {
    let python = stage.path("python");
    shell(&format!("python3 -m venv {0} && {0}/bin/pip install -q reladiff==0.6.0 psycopg2-binary", python.display()));
    // It takes a socket's folder from the environment only, and ends with 0 also when it cannot connect.
    let host = stage.cluster.folder().display();
    let columns = "-c customer -c state -c amount -c note -c ordered_at -c touched_at -c payload";
    let begun = Instant::now();
    let listed = shell(&format!(
        "PGHOST={host} {}/bin/reladiff postgresql://postgres@/bench {staged} public.wanted -k id {columns} | wc -l",
        python.display()
    ));
    let took = begun.elapsed();
    assert!(listed.trim().parse::<u64>().unwrap() > 10_000, "reladiff lists the rows that differ: {listed}");
    took
}

/// The most memory that staging and comparing ten million rows takes.
fn memory(stage: &Stage) {
    stage.psql(
        "create table public.tall (id bigint primary key, word text not null, at timestamptz not null);
         insert into public.tall select i, md5(i::text), timestamptz '2026-01-01 00:00Z' + i * interval '1 second' from generate_series(1, 10000000) i;
         analyze public.tall;",
    );
    let (snapshot, _) = stage.back_up("tall.dump");
    stage.psql("update public.tall set word = 'lost' where id % 1000 = 1");
    let most = peak(&mut stage.lifeboat(&["diff", &snapshot, "public.tall", "--json"]));
    #[expect(clippy::cast_precision_loss, reason = "a ratio is printed")]
    line(
        "peak memory, staging and comparing 10 M rows / 200 MB",
        &lifeboat::text::bytes(most),
        "200 MB",
        most as f64 / 200e6,
        1.0,
    );
}

/// How soon a key shows while work runs, and that nothing is drawn while nothing happens.
fn console(stage: &Stage) {
    let environment = [
        ("XDG_STATE_HOME", stage.path("state").display().to_string()),
        ("XDG_CONFIG_HOME", stage.path("config").display().to_string()),
    ];
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let dump = stage.path("tall.dump").display().to_string();
    let database = stage.cluster.conninfo("bench");
    let arguments = ["--database", &database, "console", "--dump", &dump];
    let mut terminal = terminal::Terminal::start(LIFEBOAT, &arguments, &environment, 24, 80);
    terminal.wait_for("Begin a recovery");
    terminal.settle();
    let before = terminal.written().len();
    std::thread::sleep(Duration::from_secs(3));
    let idle = terminal.written().len() - before;
    line("bytes drawn in 3 idle seconds", &idle.to_string(), "0", if idle == 0 { 0.0 } else { 9.0 }, 0.0);
    for (keys, wait) in [
        ("\r", "When did it happen"),
        ("\r", "What has to come back"),
        ("\r", "Which recovery point"),
        ("\r", "Which tables"),
        ("/tall\r ", "[x] public.tall"),
        ("\r", "Load the backup"),
        ("\r", "staging"),
    ] {
        terminal.send(keys);
        terminal.wait_for(wait);
    }
    let mut took = Vec::new();
    for round in 0..100 {
        let (key, shows) = if round % 2 == 0 { ("?", true) } else { ("x", false) };
        let begun = Instant::now();
        terminal.send(key);
        while terminal.text().contains("Keys of this screen") != shows {
            assert!(begun.elapsed() < Duration::from_secs(5), "no frame after a key:\n{}", terminal.text());
            std::thread::sleep(Duration::from_micros(200));
        }
        took.push(begun.elapsed());
        std::thread::sleep(Duration::from_millis(40));
    }
    terminal.child.kill().unwrap();
    reattach(&database, &environment);
    let aborted = stage.lifeboat(&["status", "--json"]).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&aborted.stdout).unwrap();
    let id = status["recoveries"][0]["recovery"].as_str().unwrap().to_owned();
    assert!(stage.lifeboat(&["abort", &id]).output().unwrap().status.success());
    took.sort();
    let p99 = took[98];
    line(
        "key to frame while staging, p99 / 16 ms",
        &format!("{:.1} ms", p99.as_secs_f64() * 1e3),
        "16 ms",
        ratio(p99, Duration::from_millis(16)),
        1.0,
    );
}

/// How soon another console shows the staging that is under way, from the start of its process.
fn reattach(database: &str, environment: &[(&str, &str)]) {
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let begun = Instant::now();
        let terminal = terminal::Terminal::start(LIFEBOAT, &["--database", database, "attach"], environment, 24, 80);
        while !(terminal.text().contains("ing public.tall") && terminal.text().contains("safe to disconnect")) {
            assert!(begun.elapsed() < Duration::from_secs(5), "no frame:\n{}", terminal.text());
            std::thread::sleep(Duration::from_micros(200));
        }
        slowest = slowest.max(begun.elapsed());
    }
    let limit = Duration::from_millis(200);
    let shown = format!("{:.0} ms", slowest.as_secs_f64() * 1e3);
    line("reattach to first frame, slowest of 10 / 200 ms", &shown, "200 ms", ratio(slowest, limit), 1.0);
}

/// Staging and comparing in a worker that a console looks on at, beside the same in one's own process.
async fn workers(stage: &Stage) {
    let system = System { database: Some(stage.cluster.conninfo("bench")), ..System::named("default") };
    let (dump, beneath) = (stage.path("small.dump"), stage.path("state/lifeboat"));
    let order = serde_json::json!({
        "system": system, "dump": dump, "state": beneath, "operator": journal::operator(), "task": { "Begin": Flow::Rows },
        "away": "Person",
    });
    let mut child = Command::new(LIFEBOAT).arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(order.to_string().as_bytes()).unwrap();
    let mut begun = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut begun).unwrap();
    let begun: serde_json::Value = serde_json::from_str(&begun).unwrap();
    let (mut viewer, mut events) = Workers::attach(begun["Ok"].as_str().unwrap(), &beneath).await.unwrap();
    let tables = vec![Name::new("public", "wanted")];
    let facts = [
        Fact::Incident(Incident::Unknown),
        Fact::Scope(Scope::Tables),
        Fact::Point("on disk".into()),
        Fact::Tables(tables.clone()),
        Fact::Stage,
    ];
    let mut ours = Duration::MAX;
    for round in 0..RUNS {
        let facts = if round == 0 { &facts[..] } else { &[] };
        let mut asked = Instant::now();
        for fact in facts {
            while !matches!(viewer.stage, WorkerStage::Deciding) {
                viewer.take(events.recv().await.unwrap());
            }
            let seen = viewer.seen();
            asked = Instant::now();
            viewer.ask(Request::Answer { fact: fact.clone(), seen });
            while viewer.seen() == seen {
                viewer.take(events.recv().await.unwrap());
            }
        }
        if round > 0 {
            let seen = viewer.seen();
            viewer.ask(Request::Refresh { seen });
            while viewer.seen() == seen {
                viewer.take(events.recv().await.unwrap());
            }
        }
        while !matches!(viewer.stage, WorkerStage::Deciding) {
            viewer.take(events.recv().await.unwrap());
        }
        assert!(matches!(viewer.next(), Next::Ask(_)), "{:?}", viewer.stage);
        ours = ours.min(asked.elapsed());
    }
    viewer.ask(Request::End);
    while events.recv().await.is_some() {}
    child.wait().unwrap();
    let systems = Systems::new(system, Some(dump));
    let look = Look::Diff { point: "on disk".into(), dump: String::new(), tables, keys: Vec::new() };
    let mut alone = Duration::MAX;
    for _ in 0..RUNS {
        let begun = Instant::now();
        systems.look("bench2", &look, &Progress::default()).await.unwrap();
        alone = alone.min(begun.elapsed());
    }
    systems.execute("bench2", &Step::DropScratch, "", &Progress::default()).await.unwrap();
    line(
        "staging and diff in a worker / in one's own process",
        &seconds(ours),
        &seconds(alone),
        ratio(ours, alone),
        1.02,
    );
}
