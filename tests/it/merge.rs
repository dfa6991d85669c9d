//! Merging, proving and undoing on a real server: everything or nothing, and never over somebody else's work.

use std::collections::BTreeSet;

use lifeboat::drill::cluster::{Cluster, programs};
use lifeboat::error::{Error, Kind};
use lifeboat::postgres::claim;
use lifeboat::postgres::connect::{Conninfo, connect};
use lifeboat::postgres::diff::{Class, KeyChoice, Table};
use lifeboat::postgres::merge::{self, Applied, ChangeSet, Choice, Outcome, Proof, Triggers, Undo};
use lifeboat::postgres::name::quote;
use lifeboat::postgres::schema::OnDelete;
use lifeboat::postgres::stage;
use lifeboat::progress::Progress;

use crate::cluster::psql;
use crate::stage::{Bench, session};

/// Some tables that were backed up, damaged, staged and compared.
pub struct Repair {
    pub bench: Bench,
    pub tables: Vec<Table>,
    pub damaged: String,
}

/// Everything that production holds, as text: rows of every table, and where sequences stand.
pub fn state(conninfo: &str) -> String {
    psql(
        conninfo,
        "select c.oid::regclass || ' ' || (xpath('//h/text()', query_to_xml(format(
            'select count(*) || '' '' || coalesce(md5(string_agg(t::text, chr(10) order by t::text)), '''') as h from %s t', c.oid::regclass),
            false, true, '')))[1]
         from pg_class c where relkind = 'r' and relnamespace = 'public'::regnamespace order by 1;
         select schemaname, sequencename, last_value from pg_sequences order by 1, 2",
    )
}

impl Repair {
    pub async fn new(name: &str, schema: &str, tables: &[&str], damage: &str) -> Self {
        Self::by(name, schema, tables, damage, &KeyChoice::Best).await
    }

    pub async fn by(name: &str, schema: &str, tables: &[&str], damage: &str, key: &KeyChoice) -> Self {
        Self::of(Bench::new(name, schema).await, tables, damage, key).await
    }

    /// On a bench of its own.
    pub async fn of(bench: Bench, tables: &[&str], damage: &str, key: &KeyChoice) -> Self {
        let mut backups = Vec::new();
        for table in tables {
            backups.push(bench.backup(table).await);
        }
        bench.sql(damage);
        let mut compared = Vec::new();
        for (number, backup) in backups.iter().enumerate() {
            compared.push(bench.diff_by(number, backup, key).await.unwrap().0);
        }
        let damaged = state(&bench.conninfo);
        Self { bench, tables: compared, damaged }
    }

    pub fn choice(&self, table: usize, classes: &[Class]) -> Choice {
        Choice {
            table: self.tables[table].live.name.clone(),
            classes: classes.iter().copied().collect(),
            columns: None,
            transactions: None,
            condition: None,
            only: None,
            except: BTreeSet::new(),
        }
    }

    /// Missing and changed rows of every table.
    pub fn back(&self) -> Vec<Choice> {
        (0..self.tables.len()).map(|table| self.choice(table, &[Class::Missing, Class::Changed])).collect()
    }

    pub async fn prepare(&self, choices: &[Choice]) -> Result<ChangeSet, Error> {
        self.prepare_with(choices, Triggers::Fire).await
    }

    pub async fn prepare_with(&self, choices: &[Choice], triggers: Triggers) -> Result<ChangeSet, Error> {
        let Bench { client, scratch, .. } = &self.bench;
        merge::prepare(client, scratch, &self.tables, choices, triggers, &Progress::default()).await
    }

    pub async fn apply(&self, changes: &ChangeSet) -> Result<Applied, Error> {
        let Bench { client, scratch, .. } = &self.bench;
        merge::apply(client, scratch, changes, "", &Progress::default()).await
    }

    pub async fn prove(&self, changes: &ChangeSet) -> Proof {
        merge::prove(&self.bench.client, &self.bench.scratch, changes).await.unwrap()
    }

    pub async fn undo_plan(&self) -> Undo {
        merge::undo_plan(&self.bench.client, "u1", "r1").await.unwrap()
    }

    pub async fn undo(&self, plan: &Undo) -> Result<Applied, Error> {
        merge::undo(&self.bench.client, "u1", "r1", plan, "", &Progress::default()).await
    }

    pub fn state(&self) -> String {
        state(&self.bench.conninfo)
    }

    /// Prepares and applies what must not be applied; gives the error after checking that nothing was changed.
    pub async fn refused(&self, changes: &ChangeSet) -> Error {
        let before = self.state();
        let error = self.apply(changes).await.unwrap_err();
        assert_eq!(self.state(), before, "something was changed: {error}");
        assert_eq!(self.bench.sql("select count(*) from pg_namespace where nspname = 'lifeboat_undo_r1'"), "0");
        assert!(self.bench.client.simple_query("select 1").await.is_ok(), "the session goes on");
        error
    }
}

/// Sums of a change-set.
fn promised(changes: &ChangeSet) -> (u64, u64, u64) {
    changes.tables.iter().fold((0, 0, 0), |(inserts, updates, deletes), table| {
        (inserts + table.inserts, updates + table.updates, deletes + table.deletes)
    })
}

const PEOPLE: &str = "create table people (id int generated always as identity primary key, name text not null, status text,
        label text generated always as (name || '!') stored);
    insert into people (name, status) select 'p' || i, 'active' from generate_series(1, 1000) i;
    create table gifts (id serial primary key, person int not null references people on delete cascade, amount numeric(8,2));
    insert into gifts (person, amount) select i, i from generate_series(1, 1000) i; analyze";

const DAMAGE: &str = "update people set status = 'void' where id <= 500; delete from people where id > 990;
    insert into people (name, status) values ('new', 'active'); update gifts set amount = 1.5 where id = 700";

#[tokio::test]
async fn fm_35_rows_come_back_with_identities_and_generated_columns_and_undo_takes_them_away() {
    let repair = Repair::new("merge_whole", PEOPLE, &["people", "gifts"], DAMAGE).await;
    let mut choices = repair.back();
    choices[1].classes = BTreeSet::from([Class::Missing]);
    let changes = repair.prepare(&choices).await.unwrap();
    assert_eq!(promised(&changes), (20, 500, 0));
    assert!(changes.tables.iter().all(|table| table.violations.is_empty()), "{changes:#?}");
    assert_eq!(repair.state(), repair.damaged, "preparing changes nothing of production");

    let applied = repair.apply(&changes).await.unwrap();
    assert_eq!((applied.tables[0].inserted, applied.tables[0].updated, applied.tables[1].inserted), (10, 500, 10));
    let sql =
        "select count(*), count(*) filter (where status = 'active'), max(label) filter (where id = 1000) from people";
    assert_eq!(repair.bench.sql(sql), "1001|1001|p1000!");
    assert_eq!(repair.bench.sql("select amount from gifts where id = 700"), "1.50", "work that was not chosen stays");

    let proof = repair.prove(&changes).await;
    assert!(proof.tables.iter().all(|table| table.differing == 0), "{proof:?}");
    assert_eq!(proof.foreign_keys, [("public.gifts: gifts_person_fkey".to_owned(), 0)]);
    let outcome = merge::resolve(&repair.bench.client, "r1", &changes.hash).await.unwrap();
    assert_eq!(outcome, Outcome::Applied(applied.clone()));

    let error = repair.apply(&changes).await.unwrap_err();
    assert!(error.message.contains("has been merged before"), "{error}");

    let plan = repair.undo_plan().await;
    assert_eq!((plan.tables[0].remove, plan.tables[0].set_back, plan.tables[1].remove), (10, 500, 10));
    assert!(plan.tables.iter().all(|table| table.kept == 0));
    repair.undo(&plan).await.unwrap();
    assert_eq!(repair.state(), repair.damaged, "exactly as it was before");
    let error = merge::undo_plan(&repair.bench.client, "u1", "r1").await.unwrap_err();
    assert!(error.message.contains("was taken back") && error.message.ends_with("by recovery u1"), "{error}");
}

#[tokio::test]
async fn fm_50_an_undo_is_itself_undone_and_so_on_also_after_the_server_restarted() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut cluster = Cluster::create(&folder.path().join("pg"), &programs().unwrap(), &[]).unwrap();
    psql(&cluster.conninfo("postgres"), "create database fm_50");
    let conninfo = cluster.conninfo("fm_50");
    psql(&conninfo, PEOPLE);
    let bench = Bench::on(conninfo.clone()).await;
    let repair = Repair::of(bench, &["people", "gifts"], DAMAGE, &KeyChoice::Best).await;
    let mut choices = repair.back();
    choices[0].classes = BTreeSet::from([Class::Missing, Class::Changed, Class::Extra]);
    let changes = repair.prepare(&choices).await.unwrap();
    assert_eq!(promised(&changes), (20, 501, 1));
    repair.apply(&changes).await.unwrap();
    // A crash lets sequences skip some numbers.
    let rows =
        |state: &str| state.lines().filter(|line| !line.contains("_seq|")).map(str::to_owned).collect::<Vec<_>>();
    let merged = repair.state();
    claim::release(&repair.bench.client).await.unwrap();
    // Back and forth: each undo takes back the one before it.
    for (own, earlier) in [("u1", "r1"), ("u2", "u1"), ("u3", "u2")] {
        if own == "u2" {
            cluster.kill();
            cluster.start().unwrap();
        }
        let client = session(&conninfo).await;
        let plan = merge::undo_plan(&client, own, earlier).await.unwrap();
        let back: u64 = plan.tables.iter().map(|table| table.remove + table.set_back + table.bring_back).sum();
        assert_eq!((back, plan.tables.iter().map(|table| table.kept).sum::<u64>()), (522, 0), "{own}: {plan:?}");
        merge::undo(&client, own, earlier, &plan, "", &Progress::default()).await.unwrap();
        claim::release(&client).await.unwrap();
        let expected = if own == "u2" { &merged } else { &repair.damaged };
        assert_eq!(rows(&state(&conninfo)), rows(expected), "{own}");
    }
    // What somebody has changed since stays.
    psql(&conninfo, "update people set name = 'moved' where id = 3");
    let client = session(&conninfo).await;
    let plan = merge::undo_plan(&client, "u4", "u3").await.unwrap();
    assert_eq!((plan.tables[0].kept, plan.tables[0].kept_sample.clone()), (1, vec!["3".to_owned()]));
    merge::undo(&client, "u4", "u3", &plan, "", &Progress::default()).await.unwrap();
    assert_eq!(psql(&conninfo, "select status from people where id in (3, 4) order by id"), "void\nactive");
}

#[tokio::test]
async fn fm_34_rows_that_a_delete_took_along_come_back_with_their_parents() {
    let bench = Bench::new("fm_34", PEOPLE).await;
    let before = state(&bench.conninfo);
    let repair = Repair::of(bench, &["people", "gifts"], "delete from people where id % 5 = 0", &KeyChoice::Best).await;
    // The parents alone: the children that are gone with them are named, by the way they went.
    let child = &repair.tables[0].live.children[0];
    assert_eq!((child.child.to_string(), child.on_delete), ("public.gifts".to_owned(), OnDelete::Cascade));
    let changes = repair.prepare(&repair.back()).await.unwrap();
    assert_eq!(promised(&changes), (400, 0, 0));
    assert_eq!(
        changes.tables.iter().map(|table| table.table.to_string()).collect::<Vec<_>>(),
        ["public.people", "public.gifts"]
    );
    repair.apply(&changes).await.unwrap();
    assert_eq!(repair.state(), before, "all of it");
    // The children alone would have nobody to belong to: that is told before consent.
    let alone = Repair::new("fm_34_alone", PEOPLE, &["people", "gifts"], "delete from people where id % 5 = 0").await;
    let choice = alone.choice(1, &[Class::Missing]);
    let changes = alone.prepare(&[choice]).await.unwrap();
    assert_eq!(changes.tables[0].violations[0].rows, 200, "{changes:#?}");
}

#[tokio::test]
async fn fm_47_a_merge_that_was_acknowledged_is_durable_whatever_the_role_has_set() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // Without ours, half a minute of commits would be lost.
    let settings = ["fsync=on", "synchronous_commit=off", "wal_writer_delay=10s", "wal_writer_flush_after=1GB"];
    let mut cluster = Cluster::create(&folder.path().join("pg"), &programs().unwrap(), &settings).unwrap();
    for run in 0..3 {
        psql(&cluster.conninfo("postgres"), &format!("create database run{run}"));
        let conninfo = cluster.conninfo(&format!("run{run}"));
        psql(&conninfo, &format!("alter role current_user set synchronous_commit = off; {PEOPLE}"));
        let repair = Repair::of(Bench::on(conninfo.clone()).await, &["people"], DAMAGE, &KeyChoice::Best).await;
        let changes = repair.prepare(&repair.back()).await.unwrap();
        psql(&conninfo, "checkpoint");
        repair.apply(&changes).await.unwrap();
        cluster.kill();
        cluster.start().unwrap();
        assert_eq!(psql(&conninfo, "select count(*) from lifeboat_undo_r1.applied"), "1", "run {run}");
        assert_eq!(psql(&conninfo, "select count(*) from people where status = 'void'"), "0", "run {run}");
    }
}

#[tokio::test]
async fn extra_rows_go_only_when_they_are_chosen_and_undo_brings_them_back() {
    let repair = Repair::new("merge_extra", PEOPLE, &["people"], DAMAGE).await;
    let changes = repair.prepare(&[repair.choice(0, &[Class::Extra])]).await.unwrap();
    assert_eq!(promised(&changes), (0, 0, 1));
    repair.apply(&changes).await.unwrap();
    assert_eq!(repair.bench.sql("select count(*) from people where name = 'new'"), "0");
    let plan = repair.undo_plan().await;
    assert_eq!(plan.tables[0].bring_back, 1);
    repair.undo(&plan).await.unwrap();
    assert_eq!(repair.state(), repair.damaged);
}

#[tokio::test]
async fn a_choice_narrows_by_column_transaction_condition_and_row() {
    let damage = "update people set status = 'void', name = 'x' || name where id <= 500;
        update people set name = 'typo' where id = 600; update people set name = 'typo' where id = 601";
    let repair = Repair::new("merge_choice", PEOPLE, &["people"], damage).await;
    let bad: u32 = repair.bench.sql("select xmin from people where id = 1").parse().unwrap();
    let mut choice = repair.choice(0, &[Class::Changed]);
    choice.columns = Some(vec!["status".into()]);
    choice.transactions = Some(vec![bad]);
    choice.condition = Some("backup.id between 11 and 700".into());
    choice.except = BTreeSet::from([11]);
    let changes = repair.prepare(std::slice::from_ref(&choice)).await.unwrap();
    assert_eq!(promised(&changes), (0, 489, 0));
    assert_eq!(changes.tables[0].columns, ["status"]);
    repair.apply(&changes).await.unwrap();
    assert_eq!(repair.bench.sql("select count(*) from people where status = 'void'"), "11");
    assert_eq!(repair.bench.sql("select count(*) from people where name like 'xp%'"), "500", "names were not chosen");
    assert_eq!(repair.bench.sql("select status from people where id = 11"), "void", "a row that was left out");
}

#[tokio::test]
async fn fm_26_a_key_that_the_application_has_taken_meanwhile_is_not_overwritten() {
    let repair = Repair::new("fm_26", PEOPLE, &["people"], DAMAGE).await;
    let changes = repair.prepare(&[repair.choice(0, &[Class::Missing])]).await.unwrap();
    repair.bench.sql("insert into people (id, name, status) overriding system value values (995, 'theirs', 'active')");
    let error = repair.refused(&changes).await;
    assert_eq!(error.kind, Kind::Refused);
    assert!(error.message.contains("1 missing rows of public.people came back since the preview"), "{error}");
    assert_eq!(error.detail.as_deref(), Some("for example 995"));
}

#[tokio::test]
async fn fm_27_rows_that_moved_since_the_preview_stop_the_merge() {
    for (name, meanwhile) in [
        ("fm_27_update", "update people set name = 'theirs' where id = 17"),
        ("fm_27_same", "update people set name = name where id = 17"),
        ("fm_27_delete", "delete from people where id = 17"),
    ] {
        let repair = Repair::new(name, PEOPLE, &["people"], DAMAGE).await;
        let changes = repair.prepare(&[repair.choice(0, &[Class::Changed])]).await.unwrap();
        repair.bench.sql(meanwhile);
        let error = repair.refused(&changes).await;
        assert_eq!(error.message, "1 rows of public.people moved since the preview");
        assert_eq!(error.detail.as_deref(), Some("for example 17"));
    }
}

#[tokio::test]
async fn fm_28_a_parent_that_is_gone_is_named_before_consent_and_stops_the_merge_after_it() {
    let repair = Repair::new(
        "fm_28",
        PEOPLE,
        &["gifts"],
        "delete from gifts where id > 995; delete from people where id = 1000",
    )
    .await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    let [violation] = changes.tables[0].violations.as_slice() else { panic!("{changes:#?}") };
    assert_eq!((violation.constraint.as_str(), violation.rows), ("gifts_person_fkey", 1));
    assert_eq!(violation.what, "person refers to a row of public.people that does not exist");
    assert_eq!(violation.sample, ["1000"]);
    let error = repair.refused(&changes).await;
    assert!(error.detail.as_deref().unwrap_or_default().contains("gifts_person_fkey"), "{error:?}");

    let later = Repair::new("fm_28_later", PEOPLE, &["gifts"], "delete from gifts where id > 995").await;
    let changes = later.prepare(&later.back()).await.unwrap();
    assert!(changes.tables[0].violations.is_empty());
    later.bench.sql("delete from people where id = 999");
    later.refused(&changes).await;
}

#[tokio::test]
async fn fm_29_without_a_key_rows_are_merged_only_by_one_that_is_named_and_unique() {
    let schema = "create table log (at int, what text); insert into log select i, 'x' from generate_series(1, 100) i";
    let damage = "delete from log where at > 90; update log set what = 'y' where at < 10";
    let key = KeyChoice::Named(vec!["at".into()]);
    let repair = Repair::by("fm_29", schema, &["log"], damage, &key).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    assert_eq!(promised(&changes), (10, 9, 0));
    repair.apply(&changes).await.unwrap();
    assert_eq!(repair.bench.sql("select count(*), count(distinct at), min(what), max(what) from log"), "100|100|x|x");
    let plan = repair.undo_plan().await;
    repair.undo(&plan).await.unwrap();
    assert_eq!(repair.state(), repair.damaged);

    let blind = Repair::by("fm_29_multiset", schema, &["log"], damage, &KeyChoice::Multiset).await;
    let error = blind.prepare(&blind.back()).await.unwrap_err();
    assert!(error.message.contains("has no key"), "{error}");
}

#[tokio::test]
async fn fm_31_triggers_fire_with_the_applications_search_path_or_are_skipped() {
    let schema =
        "create table t (id int primary key, a text); insert into t select i, 'x' from generate_series(1, 10) i;
        create table audit (id int, op text, sync text);
        create function note() returns trigger language plpgsql as
            $$begin insert into audit values (new.id, tg_op, current_setting('synchronous_commit')); return null; end$$;
        create trigger note after insert or update on t for each row execute function note();
        create trigger late after insert on t for each row execute function note();
        alter table t enable always trigger late";
    let damage = "alter role current_user set synchronous_commit = off; delete from t where id > 8; update t set a = 'y' where id < 3; truncate audit";
    let repair = Repair::new("fm_31_fire", schema, &["t"], damage).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    assert_eq!(changes.tables[0].triggers.len(), 2);
    assert_eq!(changes.tables[0].triggers[1].name, "note");
    repair.apply(&changes).await.unwrap();
    // fm_47: whatever the role prefers, what was confirmed is durable.
    let sql = "select count(*), min(sync), max(sync) from audit";
    assert_eq!(repair.bench.sql(sql), "6|on|on");

    let repair = Repair::new("fm_31_skip", schema, &["t"], damage).await;
    let changes = repair.prepare_with(&repair.back(), Triggers::Skip).await.unwrap();
    repair.apply(&changes).await.unwrap();
    assert_eq!(repair.bench.sql("select count(*) from audit"), "0");
    let sql = "select tgname, tgenabled from pg_trigger where tgrelid = 't'::regclass order by 1";
    assert_eq!(repair.bench.sql(sql), "late|A\nnote|O", "switched on again as they were");
    repair.bench.sql("alter role current_user reset synchronous_commit");
}

#[tokio::test]
async fn fm_31_triggers_of_a_partition_are_listed_skipped_and_may_not_change_after_the_preview() {
    let schema = "create table t (id int primary key, a text) partition by range (id);
        create table low partition of t for values from (0) to (100);
        create table high partition of t for values from (100) to (200);
        insert into t select i, 'x' from generate_series(1, 150) i;
        create table audit (id int, op text);
        create function note() returns trigger language plpgsql as
            $$begin insert into audit values (new.id, tg_op || ' of ' || tg_table_name); return null; end$$;
        create trigger for_all after update on t for each row execute function note();
        create trigger of_high after update on high for each row execute function note();
        create trigger of_statements after update on high for each statement execute function note()";
    let damage = "update t set a = 'y' where id in (7, 107); truncate audit";
    let repair = Repair::new("fm_31_partition", schema, &["t"], damage).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    let listed: Vec<_> = changes.tables[0].triggers.iter().map(|t| format!("{} of {}", t.name, t.table.name)).collect();
    assert_eq!(listed, ["for_all of t", "of_high of high"]);
    let skipping = repair.prepare_with(&repair.back(), Triggers::Skip).await.unwrap();
    repair.apply(&skipping).await.unwrap();
    assert_eq!(repair.bench.sql("select count(*) from audit"), "0");
    let sql = "select tgname, tgenabled from pg_trigger where tgparentid = 0 order by 1";
    assert_eq!(repair.bench.sql(sql), "for_all|O\nof_high|O\nof_statements|O", "switched on again");

    let repair = Repair::new("fm_31_added", schema, &["t"], damage).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    repair.bench.sql("create trigger more after update on low for each row execute function note()");
    let error = repair.refused(&changes).await;
    assert_eq!(error.message, "the triggers of public.t changed since the preview");
    let changes = repair.prepare(&repair.back()).await.unwrap();
    repair.apply(&changes).await.unwrap();
    assert_eq!(
        repair.bench.sql("select id, op from audit order by 1, 2"),
        "7|UPDATE of low\n7|UPDATE of low\n107|UPDATE of high\n107|UPDATE of high"
    );
}

#[tokio::test]
async fn fm_23_a_table_in_the_hands_of_another_recovery_is_not_written() {
    let repair = Repair::new("fm_23", PEOPLE, &["people", "gifts"], DAMAGE).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    let conninfo = Conninfo::parse(&repair.bench.conninfo).unwrap();
    let other = connect(&conninfo, "lifeboat r2").await.unwrap().client;
    stage::create_scratch(&other, "r2").await.unwrap();
    let people = repair.tables[0].live.oid;
    // Who freezes first has it; the other one is told who that is.
    assert!(!claim::claim(&other, people).await.unwrap());
    let told: Vec<_> = claim::others(&other).await.unwrap().iter().map(|claim| claim.table.to_string()).collect();
    assert_eq!(told, ["public.gifts", "public.people"]);
    claim::release(&repair.bench.client).await.unwrap();
    assert!(claim::claim(&other, people).await.unwrap());
    for error in [repair.refused(&changes).await, repair.prepare(&repair.back()).await.unwrap_err()] {
        assert_eq!(error.kind, Kind::Refused);
        assert!(
            error.message.starts_with("public.people is in the hands of lifeboat r2 as postgres, since 20"),
            "{error:?}"
        );
        assert!(error.message.contains(" from "), "{error:?}");
    }
    // The claim dies with its holder.
    drop(other);
    let begun = std::time::Instant::now();
    while let Err(error) = repair.apply(&changes).await {
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{error:?}");
    }
    let other = session(&repair.bench.conninfo).await;
    assert!(claim::claim(&other, people).await.is_ok_and(|ours| !ours), "kept until the recovery ends");
    claim::release(&repair.bench.client).await.unwrap();
    assert!(claim::claim(&other, people).await.unwrap());
    assert_eq!(repair.undo(&repair.undo_plan().await).await.unwrap_err().kind, Kind::Refused);
}

#[tokio::test]
async fn fm_45_no_transaction_is_open_while_a_human_thinks() {
    let repair = Repair::new("fm_45", PEOPLE, &["people", "gifts"], DAMAGE).await;
    repair.prepare(&repair.back()).await.unwrap();
    let sql = "select state, backend_xid is null, backend_xmin is null,
            (select count(*) from pg_locks l where l.pid = a.pid and locktype not in ('virtualxid', 'advisory'))
        from pg_stat_activity a
        where datname = 'fm_45' and pid <> pg_backend_pid() and backend_type = 'client backend'";
    assert_eq!(repair.bench.sql(sql), "idle|t|t|0");
}

#[tokio::test]
async fn fm_62_ten_thousand_names_are_quoted_as_the_server_would() {
    let bench = Bench::new("fm_62", "").await;
    let pieces = [
        "a",
        "B",
        "0",
        "\"",
        "'",
        "\\",
        " ",
        ";",
        "--",
        "/*",
        "$$",
        "\n",
        "\u{e9}",
        "\u{202e}",
        "\u{1f600}",
        ".",
        "select",
        "\t",
        "%",
        "?",
    ];
    let (mut names, mut state) = (Vec::new(), 62_u64);
    for _ in 0..10_000 {
        let mut name = String::new();
        for _ in 0..=(state >> 40) % 6 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            name.push_str(pieces[usize::try_from(state >> 33).unwrap() % pieces.len()]);
        }
        names.push(name);
    }
    for part in names.chunks(500) {
        let columns: Vec<_> = part.iter().map(|name| format!("1 AS {}", quote(name))).collect();
        let statement = bench.client.prepare(&format!("SELECT {}", columns.join(", "))).await.unwrap();
        let read: Vec<_> = statement.columns().iter().map(tokio_postgres::Column::name).collect();
        assert_eq!(read, part);
    }
}

#[tokio::test]
async fn fm_32_a_superuser_lends_his_rights_to_nobody() {
    let schema = "create role fm_32_mallory;
        create table t (id int primary key, a text); insert into t select i, 'x' from generate_series(1, 10) i;
        create function grab() returns trigger language plpgsql as
            $$begin alter role fm_32_mallory superuser; return new; end$$;
        create function fine(text) returns boolean language plpgsql immutable as
            $$begin alter role fm_32_mallory superuser; return true; end$$;
        alter function grab() owner to fm_32_mallory; alter function fine(text) owner to fm_32_mallory";
    let mallory = "select rolsuper from pg_roles where rolname = 'fm_32_mallory'";
    let refused = |error: &Error, what: &str| {
        assert_eq!(error.kind, Kind::Refused);
        assert!(error.message.contains(&format!("{what} of fm_32_mallory")), "{error:?}");
        assert!(error.hints[0].starts_with("Connect as the owner"), "{error:?}");
    };
    let repair = Repair::new("fm_32", schema, &["t"], "update t set a = 'y' where id < 3").await;
    for (plant, uproot, what) in [
        (
            "create trigger g before update on t for each row execute function grab()",
            "drop trigger g on t",
            "public.grab()",
        ),
        (
            "alter table t add constraint c check (fine(a)) not valid",
            "alter table t drop constraint c",
            "public.fine(text)",
        ),
        ("create index i on t (fine(a)) where false", "drop index i", "public.fine(text)"),
    ] {
        let changes = repair.prepare(&repair.back()).await.unwrap();
        repair.bench.sql(plant);
        // Whether it was there before the preview or came after it.
        refused(&repair.prepare(&repair.back()).await.unwrap_err(), what);
        if what.contains("fine") {
            refused(&repair.refused(&changes).await, what);
        } else {
            repair.prepare_with(&repair.back(), Triggers::Skip).await.unwrap();
        }
        repair.bench.sql(uproot);
        assert_eq!(repair.bench.sql(mallory), "f", "{plant}");
    }
    // The same in the hands of a superuser is his own business, and an undo is guarded too.
    let changes = repair.prepare(&repair.back()).await.unwrap();
    repair.apply(&changes).await.unwrap();
    repair.bench.sql("create trigger g before update on t for each row execute function grab()");
    refused(&repair.undo(&repair.undo_plan().await).await.unwrap_err(), "public.grab()");
    repair.bench.sql("drop trigger g on t");
    repair.undo(&repair.undo_plan().await).await.unwrap();
    assert_eq!(repair.bench.sql(mallory), "f");
    assert_eq!(repair.state(), repair.damaged);
    repair.bench.sql("drop owned by fm_32_mallory cascade; drop role fm_32_mallory");
}

#[tokio::test]
async fn a_trigger_that_changes_or_swallows_what_is_written_stops_the_merge() {
    let schema =
        "create table t (id int primary key, a text); insert into t select i, 'x' from generate_series(1, 10) i";
    let upper =
        "create function up() returns trigger language plpgsql as $$begin new.a := upper(new.a); return new; end$$;
        delete from t where id > 8; create trigger up before insert on t for each row execute function up()";
    let repair = Repair::new("merge_trigger_changes", schema, &["t"], upper).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    let error = repair.refused(&changes).await;
    assert_eq!(error.message, "2 rows of public.t are not what was written in a: a trigger has changed them");

    let swallow = "create function no() returns trigger language plpgsql as $$begin return null; end$$;
        delete from t where id > 8; create trigger no before insert on t for each row when (new.id = 9) execute function no()";
    let repair = Repair::new("merge_trigger_swallows", schema, &["t"], swallow).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    let error = repair.refused(&changes).await;
    assert!(error.message.contains("the server wants to insert 1 rows of public.t, and 2 were promised"), "{error}");
    assert_eq!(promised(&repair.prepare_with(&repair.back(), Triggers::Skip).await.unwrap()), (2, 0, 0));
}

#[tokio::test]
async fn fm_33_circles_and_references_to_itself_come_back() {
    let schema = "create table a (id int primary key, b int, boss int references a); create table b (id int primary key, a int references a deferrable initially deferred);
        alter table a add constraint a_b foreign key (b) references b deferrable initially deferred;
        begin; insert into a select i, i, greatest(1, i - 1) from generate_series(1, 50) i; insert into b select i, i from generate_series(1, 50) i; commit";
    let damage = "begin; delete from b where id > 40; delete from a where id > 40; commit";
    let repair = Repair::new("fm_33", schema, &["a", "b"], damage).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    assert!(changes.tables.iter().all(|table| table.violations.is_empty()), "{changes:#?}");
    repair.apply(&changes).await.unwrap();
    let proof = repair.prove(&changes).await;
    assert_eq!(proof.foreign_keys.len(), 3);
    assert!(proof.foreign_keys.iter().all(|(_, orphans)| *orphans == 0));
    let plan = repair.undo_plan().await;
    assert_eq!((plan.tables[0].remove, plan.tables[1].remove), (10, 10));
    repair.undo(&plan).await.unwrap();
    assert_eq!(repair.state(), repair.damaged);
}

#[tokio::test]
async fn fm_36_sequences_move_forward_and_never_back() {
    let schema = "create table t (id bigserial primary key, a int); insert into t (a) select i from generate_series(1, 100) i;
        create table u (id int generated by default as identity primary key); insert into u select from generate_series(1, 100)";
    let damage = "delete from t where id > 90; delete from u where id > 90; select setval('t_id_seq', 90); select setval('u_id_seq', 5000)";
    let repair = Repair::new("fm_36", schema, &["t", "u"], damage).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    let moves: Vec<_> = changes.tables.iter().flat_map(|table| &table.sequences).collect();
    assert_eq!(moves.len(), 1);
    assert_eq!((moves[0].sequence.to_string().as_str(), moves[0].from, moves[0].to), ("public.t_id_seq", 90, 100));
    repair.apply(&changes).await.unwrap();
    assert_eq!(
        repair.bench.sql("insert into t (a) select 0 from generate_series(1, 1000); select max(id) from t"),
        "1100"
    );
    assert_eq!(repair.bench.sql("insert into u default values returning id"), "5001");
}

#[tokio::test]
async fn fm_37_constraints_that_would_fail_are_listed_with_their_rows() {
    let schema = "create table t (id int primary key, mail text, age int, during int4range, extra text);
        insert into t select i, 'm' || i, i, int4range(i * 10, i * 10 + 5), null from generate_series(1, 20) i;
        create extension btree_gist";
    let damage = "delete from t where id > 15; insert into t values (100, 'm16', 1, '[1000,1001)', null);
        insert into t values (101, 'other', 1, '[171,172)', null);
        create unique index t_mail on t (lower(mail)); alter table t add constraint adult check (age < 19) not valid;
        alter table t add constraint apart exclude using gist (during with &&);
        update t set extra = 'x'; alter table t alter extra set not null";
    let repair = Repair::new("fm_37", schema, &["t"], damage).await;
    let changes = repair.prepare(&[repair.choice(0, &[Class::Missing])]).await.unwrap();
    let found: Vec<_> = changes.tables[0]
        .violations
        .iter()
        .map(|violation| format!("{} {} {}", violation.constraint, violation.rows, violation.sample.join(",")))
        .collect();
    assert_eq!(found, ["extra 5 16,17,18,19,20", "adult 2 19,20", "apart 1 17", "t_mail 1 16"]);
    repair.refused(&changes).await;
}

#[tokio::test]
async fn fm_39_rows_go_to_their_partitions_and_a_missing_one_is_named() {
    let schema = "create table p (id int, at date, v text, primary key (id, at)) partition by range (at);
        create table p1 partition of p for values from ('2026-01-01') to ('2026-02-01');
        create table p2 partition of p for values from ('2026-02-01') to ('2026-03-01');
        insert into p select i, date '2026-01-01' + i, 'v' from generate_series(0, 50) i";
    let repair = Repair::new(
        "fm_39",
        schema,
        &["p"],
        "delete from p where id > 20 and id < 40; update p set v = 'w' where id = 2",
    )
    .await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    assert_eq!(promised(&changes), (19, 1, 0));
    repair.apply(&changes).await.unwrap();
    assert_eq!(repair.bench.sql("select count(*), max(v) from p"), "51|v");
    let plan = repair.undo_plan().await;
    repair.undo(&plan).await.unwrap();
    assert_eq!(repair.state(), repair.damaged);

    let repair = Repair::new("fm_39_gone", schema, &["p"], "drop table p2").await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    let [violation] = changes.tables[0].violations.as_slice() else { panic!("{changes:#?}") };
    assert_eq!((violation.what.as_str(), violation.rows), ("no partition takes it", 20));
}

#[tokio::test]
async fn fm_43_a_lock_of_the_application_is_not_waited_for_long() {
    let repair = Repair::new("fm_43", PEOPLE, &["people"], DAMAGE).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    let holder = session(&repair.bench.conninfo).await;
    holder.batch_execute("begin; lock table public.people in access exclusive mode").await.unwrap();
    let error = repair.apply(&changes).await.unwrap_err();
    assert_eq!(error.kind, Kind::Target, "{error}");
    holder.batch_execute("rollback").await.unwrap();
    assert_eq!(repair.state(), repair.damaged);

    holder.batch_execute("begin; select 1 from public.people where id = 3 for update").await.unwrap();
    let error = repair.apply(&changes).await.unwrap_err();
    assert_eq!(error.message, "1 rows of public.people are locked by another session");
    holder.batch_execute("rollback").await.unwrap();
    assert_eq!(repair.state(), repair.damaged);
    repair.apply(&changes).await.unwrap();
}

#[tokio::test]
async fn fm_44_after_a_short_lock_the_merge_succeeds() {
    let repair = Repair::new("fm_44", PEOPLE, &["people"], DAMAGE).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    let holder = session(&repair.bench.conninfo).await;
    holder.batch_execute("begin; lock table public.people in share mode").await.unwrap();
    let release = tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        holder.batch_execute("commit").await.unwrap();
    });
    assert_eq!(repair.apply(&changes).await.unwrap().tables[0].updated, 500);
    release.await.unwrap();
}

#[tokio::test]
async fn what_was_frozen_cannot_be_exchanged_after_consent() {
    let repair = Repair::new("merge_tampered", PEOPLE, &["people"], DAMAGE).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    repair.bench.sql("update restore_staging_r1.change0 set status = 'rich' where id = 1");
    let error = repair.refused(&changes).await;
    assert_eq!(error.message, "what is frozen on the server is not what was approved");

    let changes = repair.prepare(&repair.back()).await.unwrap();
    repair.bench.sql(r#"update restore_staging_r1.frozen set work = replace(work, '"deletes":0', '"deletes":1')"#);
    let error = repair.refused(&changes).await;
    assert_eq!(error.message, "what is frozen on the server is not what was approved");
}

#[tokio::test]
async fn fm_49_undo_keeps_what_others_have_done_since() {
    let repair = Repair::new("fm_49", PEOPLE, &["people"], DAMAGE).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    repair.apply(&changes).await.unwrap();
    repair.bench.sql("update people set name = 'married' where id = 7; insert into gifts (person, amount) values (995, 3); delete from people where id = 996");
    let plan = repair.undo_plan().await;
    let table = &plan.tables[0];
    assert_eq!((table.remove, table.set_back, table.kept), (8, 499, 3));
    assert_eq!(table.kept_sample, ["7", "995", "996"]);
    repair.bench.sql("update people set name = 'again' where id = 8");
    let error = repair.undo(&plan).await.unwrap_err();
    assert!(error.message.contains("rows have changed since"), "{error}");
    let plan = repair.undo_plan().await;
    repair.undo(&plan).await.unwrap();
    assert_eq!(
        repair.bench.sql("select name, status from people where id in (7, 8) order by id"),
        "married|active\nagain|active"
    );
    assert_eq!(repair.bench.sql("select count(*) from gifts where person = 995"), "1", "nobody's row went with ours");
}

#[tokio::test]
async fn privileges_that_are_missing_are_named_before_consent() {
    let repair = Repair::new("merge_rights", PEOPLE, &["people"], DAMAGE).await;
    let role = format!("weak_{}", std::process::id());
    repair.bench.sql(&format!(
        "create role {role} login; grant select, insert on people to {role}; grant create on database merge_rights to {role};
         grant all on schema restore_staging_r1 to {role}; grant all on all tables in schema restore_staging_r1 to {role}"
    ));
    let conninfo = repair.bench.conninfo.replace("user=postgres", &format!("user={role}"));
    assert!(conninfo.contains(&role), "{conninfo}");
    let weak = session(&conninfo).await;
    let name = lifeboat::postgres::name::Name::parse("people").unwrap();
    let mut table = repair.tables[0].clone();
    table.live = lifeboat::postgres::schema::live(&weak, Some(&[name])).await.unwrap().pop().unwrap();
    let error =
        merge::prepare(&weak, &repair.bench.scratch, &[table], &repair.back(), Triggers::Fire, &Progress::default())
            .await;
    let error = error.unwrap_err();
    assert!(error.message.contains("UPDATE on public.people") || error.message.contains("owner"), "{error:?}");
    repair.bench.sql(&format!("drop owned by {role}; drop role {role}"));
}

#[tokio::test]
async fn hostile_names_are_only_names() {
    let long = "x".repeat(63);
    let schema = format!(
        "create table \"a\"\"b; drop table x--\" (\"i'd\" int primary key, \"{long}\" text, \"na\nme\" text, \"c%d\" text);
         insert into \"a\"\"b; drop table x--\" select i, E'\\e[31m' || i, E'tab\\there', 'back\\slash' from generate_series(1, 20) i"
    );
    let table = "\"a\"\"b; drop table x--\"";
    let damage = format!(
        "delete from {table} where \"i'd\" > 15; update {table} set \"{long}\" = null, \"na\nme\" = 'x' where \"i'd\" < 5"
    );
    let repair = Repair::new("merge_names", &schema, &[table], &damage).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    assert_eq!(promised(&changes), (5, 4, 0));
    repair.apply(&changes).await.unwrap();
    assert_eq!(
        repair.bench.sql(&format!("select count(*), count(\"{long}\"), min(\"na\nme\") from {table}")),
        "20|20|tab\there"
    );
    let plan = repair.undo_plan().await;
    repair.undo(&plan).await.unwrap();
    assert_eq!(repair.state(), repair.damaged);
}

#[tokio::test]
async fn values_that_print_by_the_search_path_are_the_same_in_preview_and_deed() {
    let schema = "create table t (id int primary key, what regclass, kind regtype);
        create type public.mood as enum ('sad'); insert into t select i, 't', 'mood' from generate_series(1, 20) i";
    let damage = "update t set what = 'pg_class', kind = 'int4' where id < 10; delete from t where id > 15";
    let repair = Repair::new("merge_path", schema, &["t"], damage).await;
    let changes = repair.prepare(&repair.back()).await.unwrap();
    repair.apply(&changes).await.unwrap();
    assert_eq!(
        repair.bench.sql("select count(*), min(what::text), min(kind::text), max(kind::text) from t"),
        "20|t|mood|mood"
    );
    assert_eq!(repair.prove(&changes).await.tables[0].differing, 0);
    let plan = repair.undo_plan().await;
    repair.undo(&plan).await.unwrap();
    assert_eq!(repair.state(), repair.damaged);
}
