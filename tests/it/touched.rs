//! Out of a clone of production's own cluster only rows that somebody has touched are staged and compared: the same differences
//! are found as by comparing all rows, and where places and transactions do not tell, all rows are compared.

use std::path::Path;

use lifeboat::config::System;
use lifeboat::drill::cluster::Cluster;
use lifeboat::postgres::cluster::Target;
use lifeboat::postgres::diff::TableDiff;
use lifeboat::postgres::name::Name;
use lifeboat::progress::Progress;
use lifeboat::recovery::plan::Step;
use lifeboat::recovery::record::{Aim, CLONE, Finding, Look, NamedKey};
use lifeboat::recovery::systems::Systems;

use crate::cluster::{pg_programs, psql};
use crate::moment::World;

const RECOVERY: &str = "t";

/// A clone as of the restore point `before`, and production, which are compared.
struct Sides {
    systems: Systems,
    runtime: tokio::runtime::Runtime,
    conninfo: String,
    folder: String,
}

impl Sides {
    /// Marks the moment, and lays the clone out. Production is where `conninfo` leads.
    fn new(world: &World, conninfo: String) -> Self {
        let named = world.sql("select pg_create_restore_point('before')");
        assert!(!named.is_empty());
        archived(world);
        let path = |name: &str| world.path(name).display().to_string();
        let system = System {
            database: Some(conninfo.clone()),
            base_backups: vec![path("pg/base")],
            wal_archive: Some(path("pg/archive")),
            clones: Some(world.path("clones")),
            ..System::named("shop")
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut sides = Self { systems: Systems::new(system, None), runtime, conninfo, folder: String::new() };
        let aim = Aim { target: Target::Named("before".into()), before: false, timeline: None };
        let Finding::Reached(Ok(reached)) = sides.look(&Look::Reach { aim }) else { panic!("not reached") };
        sides.folder.clone_from(&reached.folder);
        sides.look(&Look::LayOut { reached });
        sides
    }

    fn look(&self, look: &Look) -> Finding {
        let progress = Progress::default();
        self.runtime.block_on(self.systems.look(RECOVERY, look, &progress)).unwrap()
    }

    fn execute(&self, step: &Step) {
        let progress = Progress::default();
        self.runtime.block_on(self.systems.execute(RECOVERY, step, "", &progress)).unwrap();
    }

    /// The diff of a table, how many rows were staged for it, and what it says of each differing row.
    fn diff(&self, database: &str, table: &str, key: Option<&str>) -> (TableDiff, u64, String) {
        let table = Name::new("shop", table);
        let columns = key.map(|key| key.split_whitespace().map(str::to_owned).collect());
        let keys = columns.map(|columns| NamedKey { table: table.clone(), columns }).into_iter().collect();
        let (point, dump) = (CLONE.to_owned(), database.to_owned());
        let Finding::Diff(diffs) = self.look(&Look::Diff { point, dump, tables: vec![table], keys }) else {
            panic!("no diff")
        };
        let scratch = format!("restore_staging_{RECOVERY}");
        let staged = psql(&self.conninfo, &format!("select count(*) from {scratch}.t0"));
        let by = if key == Some("") { "live_xmin" } else { "k1" };
        let rows = format!("select class, live_xmin, cols, {by} from {scratch}.diff0 order by 1, 2::text, 4::text");
        let left = format!(
            "select count(*) from pg_class where relname like 'touched%' and relnamespace = '{scratch}'::regnamespace"
        );
        assert_eq!(psql(&self.conninfo, &left), "0");
        let rows = psql(&self.conninfo, &rows);
        self.execute(&Step::DropScratch);
        (diffs[0].clone(), staged.parse().unwrap(), rows)
    }

    fn end(self) {
        self.execute(&Step::DropClone { folder: self.folder.clone() });
    }
}

/// Everything that was committed is in the archive when this returns.
fn archived(world: &World) {
    let last = world.sql("create table if not exists last (); select pg_walfile_name(pg_switch_wal())");
    crate::cluster::archived(&world.path("pg/archive").join(last));
}

fn numbers(diff: &TableDiff) -> (u64, u64, u64, u64) {
    (diff.missing, diff.changed, diff.extra, diff.same)
}

#[test]
fn rows_that_nobody_touched_are_neither_staged_nor_compared() {
    let world = World::new("select 1");
    let sides = Sides::new(&world, world.conninfo());
    // 3,001 rows at the moment: 3,000, and one that the world's clock put in.
    world.sql(
        "update shop.keeps set v = 'broken' where id <= 20; update shop.keeps set v = v where id = 30;
         delete from shop.keeps where id between 100 and 109; delete from shop.keeps where id = 200; vacuum shop.keeps;
         insert into shop.keeps values (200, 'k200'), (50001, 'new'), (50002, 'new');
         begin; update shop.keeps set v = 'never' where id = 300; rollback;
         begin; savepoint a; delete from shop.keeps where id = 400; rollback to a; update shop.keeps set v = 'sub' where id = 401;
         release a; commit; vacuum freeze shop.keeps; create type shop.mood as enum ('ok')",
    );
    let (diff, staged, rows) = sides.diff("shop", "keeps", None);
    assert_eq!(numbers(&diff), (10, 21, 2, 2970));
    assert_eq!((diff.backup_rows, diff.live_rows), (3001, 2993));
    assert_eq!(staged, 20 + 1 + 10 + 1 + 1, "what was touched");
    // The operator's own key is proven, for which everything is staged: the same is found.
    let (all, all_staged, all_rows) = sides.diff("shop", "keeps", Some("id"));
    assert_eq!(all_staged, 3001);
    assert_eq!((numbers(&all), &all_rows), (numbers(&diff), &rows));
    assert_eq!((all.by_transaction, all.by_column), (diff.by_transaction, diff.by_column));
    // Without a key a row that was written again with its own values is the same row.
    let (multiset, staged, _) = sides.diff("shop", "keeps", Some(""));
    assert_eq!((numbers(&multiset), staged), ((10 + 21, 0, 21 + 2, 2970), 33));
    // A table that nobody touched, and one whose key has another index by now, although its rows are the same.
    let (diff, staged, _) = sides.diff("shop", "homes", None);
    assert_eq!((numbers(&diff), staged), ((0, 0, 0, 1000), 0));
    sides.end();
}

#[test]
fn a_table_that_is_not_what_it_was_is_staged_whole() {
    let world = World::new(
        "create type shop.mood as enum ('ok', 'bad'); create table shop.moods (id int primary key, m shop.mood, n int);
         insert into shop.moods select i, 'ok', i from generate_series(1, 500) i",
    );
    let sides = Sides::new(&world, world.conninfo());
    let whole = |table: &str, sql: &str, expected: (u64, u64, u64, u64)| {
        world.sql(sql);
        let (diff, staged, _) = sides.diff("shop", table, None);
        assert_eq!((numbers(&diff), staged), (expected, diff.backup_rows), "{sql}");
        assert!(staged > 0);
    };
    let (_, staged, _) = sides.diff("shop", "moods", None);
    assert_eq!(staged, 0, "as it was");
    // Nothing was written, and all values print otherwise: as with a dump, the server does not know them.
    world.sql("alter type shop.mood rename value 'ok' to 'fine'");
    let (point, dump, tables) = (CLONE.to_owned(), "shop".to_owned(), vec![Name::new("shop", "moods")]);
    let look = Look::Diff { point, dump, tables, keys: vec![] };
    let refused = sides.runtime.block_on(sides.systems.look(RECOVERY, &look, &Progress::default())).unwrap_err();
    assert!(refused.detail.as_ref().is_some_and(|said| said.contains("invalid input value for enum")), "{refused:?}");
    world.sql("alter type shop.mood rename value 'fine' to 'ok'");
    whole("moods", "alter table shop.moods drop column n, add column n int", (0, 500, 0, 0));
    whole("keeps", "vacuum full shop.keeps; delete from shop.keeps where id = 1", (1, 0, 0, 3000));
    whole("checks", "alter table shop.checks drop constraint checks_pkey, add primary key (a)", (0, 0, 0, 299));
    whole("homes", "alter table shop.homes alter column id type bigint", (0, 0, 0, 1000));
    sides.end();
}

#[test]
fn two_servers_of_one_copy_are_not_taken_for_one_history() {
    let world = World::new("select 1");
    let home = tempfile::Builder::new().prefix("lb-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut twin = Cluster::create(&home.path().join("pg"), &pg_programs(), &[]).unwrap();
    twin.kill();
    std::fs::remove_dir_all(twin.data()).unwrap();
    let mut copy = world.cluster.command("pg_basebackup").unwrap();
    copy.arg("-D").arg(twin.data()).args(["-c", "fast", "--no-sync", "-X", "fetch"]);
    assert!(copy.output().unwrap().status.success());
    // It is production's copy that goes on by itself: same cluster, same timeline, same numbers of transactions.
    std::fs::write(twin.data().join("postgresql.auto.conf"), "").unwrap();
    twin.start().unwrap();
    let write = |conninfo: &str, value: &str| {
        psql(conninfo, &format!("update shop.keeps set v = '{value}' where id = 5 returning xmin, ctid"))
    };
    let (here, there) = (write(&world.conninfo(), "here"), write(&twin.conninfo("shop"), "there"));
    assert_eq!(here, there, "the same place, written by the same number");
    let sides = Sides::new(&world, twin.conninfo("shop"));
    let (diff, staged, _) = sides.diff("shop", "keeps", None);
    assert_eq!((numbers(&diff), staged), ((0, 1, 0, 3000), 3001));
    sides.end();
    drop(twin);
    assert!(!Path::new(&home.path().join("pg/data/postmaster.pid")).exists());
}

#[test]
fn a_clone_s_rows_keep_their_letters_in_every_encoding() {
    let world = World::new(
        "create database latin encoding 'LATIN1' locale 'C' template template0;
         \\c latin
         create schema shop; create table shop.t (id int primary key, v text);
         insert into shop.t select i, 'Grüße ' || i from generate_series(1, 20) i;
         \\c shop",
    );
    let latin = world.cluster.conninfo("latin");
    let sides = Sides::new(&world, latin.clone());
    psql(
        &latin,
        "set client_encoding = 'UTF8'; update shop.t set v = 'Äpfel' where id = 3; delete from shop.t where id = 4",
    );
    for key in [None, Some("id")] {
        let (diff, staged, _) = sides.diff("latin", "t", key);
        assert_eq!((numbers(&diff), staged), ((1, 1, 0, 18), if key.is_none() { 2 } else { 20 }));
    }
    sides.end();
}
