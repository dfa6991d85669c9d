//! Loading rows beside production, on a real server. The other row tests borrow [`Backup`] and [`Bench`] from here.

use std::io::{self, Read};

use lifeboat::error::{Error, Kind};
use lifeboat::postgres::archive::Column;
use lifeboat::postgres::connect::{Conninfo, Session, connect};
use lifeboat::postgres::diff::{self, KeyChoice, Table, TableDiff, pairs};
use lifeboat::postgres::name::Name;
use lifeboat::postgres::schema::{self, Live};
use lifeboat::postgres::stage::{self, LeftoverKind, Scratch, Spec, Staged};
use lifeboat::progress::Progress;

use crate::cluster::{database, psql};

/// A database of its own, a session, and scratch space.
pub struct Bench {
    pub conninfo: String,
    pub client: Session,
    pub scratch: Scratch,
}

/// What a dump would hold of one table: the definition as it is now, and its rows as COPY text.
#[derive(Clone)]
pub struct Backup {
    pub name: Name,
    pub columns: Vec<Column>,
    pub copied: Vec<String>,
    pub text: String,
}

impl Bench {
    pub async fn new(name: &str, sql: &str) -> Self {
        Self::on(database(name, sql)).await
    }

    /// In a database that is there already.
    pub async fn on(conninfo: String) -> Self {
        let client = session(&conninfo).await;
        let scratch = stage::create_scratch(&client, "r1").await.unwrap();
        Self { conninfo, client, scratch }
    }

    pub fn sql(&self, sql: &str) -> String {
        psql(&self.conninfo, sql)
    }

    pub async fn live(&self, table: &str) -> Live {
        let name = Name::parse(table).unwrap();
        schema::live(&self.client, Some(&[name])).await.unwrap().pop().unwrap()
    }

    /// Takes a backup of a table as it is now.
    pub async fn backup(&self, table: &str) -> Backup {
        let live = self.live(table).await;
        let columns: Vec<_> = live
            .columns
            .iter()
            .map(|column| Column {
                name: column.name.clone(),
                type_sql: column.type_sql.clone(),
                not_null: column.not_null,
                generated: column.generated,
            })
            .collect();
        let copied: Vec<_> =
            columns.iter().filter(|column| !column.generated).map(|column| column.name.clone()).collect();
        let list = lifeboat::postgres::name::quote_list(&copied);
        let sql = format!(
            "set search_path = ''; set timezone = 'UTC'; set extra_float_digits = 3; copy (select {list} from {}) to stdout",
            live.name.sql()
        );
        let mut text = self.sql(&sql);
        if !text.is_empty() {
            text.push('\n');
        }
        Backup { name: live.name, columns, copied, text }
    }

    pub async fn stage(&self, number: usize, backup: &Backup) -> Result<(Table, Staged), Error> {
        let live = self.live(&backup.name.to_string()).await;
        let pairs = pairs(&live, &backup.columns, &backup.copied);
        let columns = stage::columns(&self.client, &live, &pairs, &backup.copied).await?;
        let spec = Spec { table: backup.name.clone(), number, columns: columns.clone(), encoding: None };
        let rows = io::Cursor::new(backup.text.clone().into_bytes());
        let staged = stage::stage((&self.client, None), &self.scratch, &spec, rows, None, &Progress::default()).await?;
        let table = Table { number, live, pairs, staged: columns, key: None, key_columns: Vec::new() };
        Ok((table, staged))
    }

    pub async fn diff_by(&self, number: usize, backup: &Backup, key: &KeyChoice) -> Result<(Table, TableDiff), Error> {
        let (table, staged) = self.stage(number, backup).await?;
        diff::diff(&self.client, &self.scratch, table, key, staged.rows, &Progress::default()).await
    }

    pub async fn diff(&self, number: usize, backup: &Backup) -> (Table, TableDiff) {
        self.diff_by(number, backup, &KeyChoice::Best).await.unwrap()
    }
}

pub async fn session(conninfo: &str) -> Session {
    connect(&Conninfo::parse(conninfo).unwrap(), "lifeboat test").await.unwrap().client
}

fn no_table(bench: &Bench) {
    assert_eq!(bench.sql("select count(*) from pg_class where relname = 't0'"), "0");
}

/// Endless rows.
pub struct Endless;

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for (place, byte) in buffer.iter_mut().enumerate() {
            *byte = if place % 2 == 0 { b'7' } else { b'\n' };
        }
        Ok(buffer.len() / 2 * 2)
    }
}

/// Some rows, then an error.
struct Broken(Option<Error>);

impl Read for Broken {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.take() {
            Some(error) if buffer.len() < 2 => Err(io::Error::other(error)),
            Some(error) => {
                buffer[..2].copy_from_slice(b"1\n");
                self.0 = Some(error);
                // The next read, into what is left of the buffer, fails.
                if buffer.len() > 2 { Err(io::Error::other(self.0.take().unwrap())) } else { Ok(2) }
            }
            None => Ok(0),
        }
    }
}

async fn one_column(name: &str) -> (Bench, Spec) {
    let bench = Bench::new(name, "create table t (a int primary key)").await;
    let live = bench.live("t").await;
    let columns = [Column { name: "a".into(), type_sql: "integer".into(), not_null: true, generated: false }];
    let pairs = pairs(&live, &columns, &["a".to_owned()]);
    let columns = stage::columns(&bench.client, &live, &pairs, &["a".to_owned()]).await.unwrap();
    (bench, Spec { table: Name::new("public", "t"), number: 0, columns, encoding: None })
}

#[tokio::test]
async fn cancelled_staging_leaves_nothing_and_the_session_goes_on() {
    let (bench, spec) = one_column("stage_cancel").await;
    let progress = Progress::default();
    let canceller = progress.clone();
    tokio::spawn(async move {
        let mut seen = canceller.watch();
        seen.wait_for(|report| report.done > 1_000_000).await.unwrap();
        canceller.cancel();
    });
    let error = stage::stage((&bench.client, None), &bench.scratch, &spec, Endless, None, &progress).await.unwrap_err();
    assert_eq!(error.kind, Kind::Cancelled);
    no_table(&bench);
    assert!(bench.client.simple_query("select 1").await.is_ok());
}

#[tokio::test]
async fn an_error_of_the_reader_is_the_error_and_nothing_stays() {
    let (bench, spec) = one_column("stage_broken").await;
    let broken = Broken(Some(Error::backup("blob 12 is damaged")));
    let error = stage::stage((&bench.client, None), &bench.scratch, &spec, broken, None, &Progress::default())
        .await
        .unwrap_err();
    assert_eq!(error, Error::backup("blob 12 is damaged"));
    no_table(&bench);
}

#[tokio::test]
async fn a_row_that_the_server_does_not_take_is_named_by_line_and_column() {
    let (bench, spec) = one_column("stage_bad_row").await;
    let rows = io::Cursor::new("1\n2\nthree\n");
    let error =
        stage::stage((&bench.client, None), &bench.scratch, &spec, rows, None, &Progress::default()).await.unwrap_err();
    let words = format!("{error} {}", error.detail.as_deref().unwrap_or_default());
    assert!(words.contains("three"), "{words}");
    assert!(words.contains("line 3, column a"), "{words}");
    no_table(&bench);
}

#[tokio::test]
async fn a_large_table_is_loaded_by_two_and_is_there_whole_or_not_at_all() {
    let (bench, spec) = one_column("stage_two").await;
    let second = session(&bench.conninfo).await;
    let by_two = (&bench.client, Some(&second));
    // Several turns of four megabytes for each.
    let number = 3_000_000;
    let text: String = (1..=number).map(|row| format!("{row}\n")).collect();
    let rows = || io::Cursor::new(text.clone().into_bytes());
    let progress = Progress::default();
    let staged = stage::stage(by_two, &bench.scratch, &spec, rows(), None, &progress).await.unwrap();
    assert_eq!((staged.rows, staged.bytes), (number, text.len() as u64));
    let whole =
        "select count(*), count(distinct a), sum(a::bigint), count(distinct xmin::text) from restore_staging_r1.t0";
    assert_eq!(bench.sql(whole), format!("{number}|{number}|{}|2", number * (number + 1) / 2));

    // A bad row is named by its line in the whole table, whichever session meets it.
    for line in [700_000, 1_300_000, 2_999_999] {
        let bad = text.replacen(&format!("\n{line}\n"), "\nbad\n", 1);
        let rows = io::Cursor::new(bad.into_bytes());
        let error = stage::stage(by_two, &bench.scratch, &spec, rows, None, &progress).await.unwrap_err();
        let words = format!("{error} {}", error.detail.as_deref().unwrap_or_default());
        assert!(words.contains(&format!("line {line}, column a")), "{words}");
        no_table(&bench);
    }
    // The backup breaks off, the operator cancels, the second session is ended: nothing stays, and the first one goes on.
    let broken = rows().chain(Broken(Some(Error::backup("blob 12 is damaged"))));
    let error = stage::stage(by_two, &bench.scratch, &spec, broken, None, &progress).await.unwrap_err();
    assert_eq!(error, Error::backup("blob 12 is damaged"));
    no_table(&bench);
    let stopped = Progress::default();
    let canceller = stopped.clone();
    tokio::spawn(async move {
        canceller.watch().wait_for(|report| report.done > 12_000_000).await.unwrap();
        canceller.cancel();
    });
    let error = stage::stage(by_two, &bench.scratch, &spec, Endless, None, &stopped).await.unwrap_err();
    assert_eq!(error.kind, Kind::Cancelled);
    no_table(&bench);
    let cut = Progress::default();
    let (watched, conninfo) = (cut.clone(), bench.conninfo.clone());
    let process: i32 = second.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    tokio::spawn(async move {
        watched.watch().wait_for(|report| report.done > 12_000_000).await.unwrap();
        tokio::task::spawn_blocking(move || psql(&conninfo, &format!("select pg_terminate_backend({process})")));
    });
    let error = stage::stage(by_two, &bench.scratch, &spec, Endless, None, &cut).await.unwrap_err();
    assert_eq!(error.kind, Kind::Target, "{error:?}");
    no_table(&bench);
    let one = (&bench.client, None);
    assert_eq!(stage::stage(one, &bench.scratch, &spec, rows(), None, &progress).await.unwrap().rows, number);
}

#[tokio::test]
async fn fm_48_what_is_staged_is_known_to_the_planner_at_once() {
    let bench = Bench::new("fm_48", "create table t (id int primary key, a text); insert into t select i, 'x' from generate_series(1, 5000) i; analyze t").await;
    let backup = bench.backup("t").await;
    bench.stage(0, &backup).await.unwrap();
    let known = "select reltuples::int, (select count(*) from pg_stats where schemaname = 'restore_staging_r1' and tablename = 't0')
        from pg_class where oid = 'restore_staging_r1.t0'::regclass";
    assert_eq!(bench.sql(known), "5000|2");
}

#[tokio::test]
async fn rows_behind_an_end_marker_are_not_lost_silently() {
    let (bench, spec) = one_column("stage_marker").await;
    for rows in ["1\n\\.\n2\n", "1\n2"] {
        let rows = io::Cursor::new(rows);
        let error = stage::stage((&bench.client, None), &bench.scratch, &spec, rows, None, &Progress::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind, Kind::Backup, "{error}");
        no_table(&bench);
    }
}

#[tokio::test]
async fn a_schema_of_somebody_else_is_never_touched() {
    let conninfo =
        database("stage_theirs", "create schema restore_staging_x; create table restore_staging_x.precious (a int)");
    let client = session(&conninfo).await;
    let error = stage::create_scratch(&client, "x").await.unwrap_err();
    assert_eq!(error.message, "the schema restore_staging_x exists and was not made by this recovery");
    assert!(stage::drop_scratch(&client, &Scratch::of("x").unwrap()).await.is_err());
    assert_eq!(psql(&conninfo, "select count(*) from restore_staging_x.precious"), "0");
    assert_eq!(stage::create_scratch(&client, "X;").await.unwrap_err().kind, Kind::Operator);
}

#[tokio::test]
async fn scratch_space_is_private_marked_listed_and_dropped_from_a_failed_transaction() {
    let bench = Bench::new("stage_scratch", "create role stranger").await;
    assert_eq!(stage::create_scratch(&bench.client, "r1").await.unwrap(), bench.scratch);
    assert_eq!(bench.sql("select has_schema_privilege('stranger', 'restore_staging_r1', 'usage')"), "f");
    let left = stage::leftovers(&bench.client).await.unwrap();
    assert_eq!((left[0].schema.as_str(), left[0].kind), ("restore_staging_r1", LeftoverKind::Staging));
    assert_eq!(left[0].mark.as_ref().unwrap().lifeboat, "r1");
    let _ = bench.client.batch_execute("begin; select 1/0").await;
    stage::drop_scratch(&bench.client, &bench.scratch).await.unwrap();
    stage::drop_scratch(&bench.client, &bench.scratch).await.unwrap();
    assert!(stage::leftovers(&bench.client).await.unwrap().is_empty());
    bench.sql("drop role stranger");
}

#[tokio::test]
async fn fm_64_staging_runs_no_code_of_the_backup_or_of_production() {
    let bench = Bench::new(
        "stage_code",
        "create table marker (a int);
         create function evil() returns boolean language sql as 'insert into marker values (1); select true';
         create domain d as int check (evil());
         create extension citext; create type mood as enum ('sad', 'happy'); create type pair as (a int, b int);
         create table t (a int primary key, d int, c citext, m mood, p pair, x int default 7, r regclass, ds int[])",
    )
    .await;
    bench.sql("insert into t values (1, 2, 'x', 'sad', '(1,2)', 3, 'pg_class', '{1}')");
    let backup = bench.backup("t").await;
    bench.sql("alter table t alter d type d, add check (evil()); delete from marker");
    let (table, staged) = bench.stage(0, &backup).await.unwrap();
    assert_eq!(staged.rows, 1);
    assert_eq!(
        bench.sql("select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum) from pg_attribute where attrelid = 'restore_staging_r1.t0'::regclass and attnum > 0"),
        "a integer, d integer, c text, m mood, p text, x integer, r text, ds integer[]"
    );
    assert_eq!(bench.sql("select count(*) from pg_constraint where conrelid = 'restore_staging_r1.t0'::regclass"), "0");
    assert_eq!(bench.sql("select relpersistence from pg_class where oid = 'restore_staging_r1.t0'::regclass"), "u");
    assert_eq!(table.staged.len(), 8);
}

#[tokio::test]
async fn a_cast_that_is_impossible_or_loses_something_is_refused_with_a_sample() {
    let mut rows = String::new();
    for id in 1..=5000 {
        rows.push_str(&format!("({id}, '{}', 1.25),", if id == 4321 { "12x".into() } else { id.to_string() }));
    }
    let bench = Bench::new(
        "stage_cast",
        &format!(
            "create table t (id int primary key, a text, b numeric(10,2)); insert into t values {}",
            rows.trim_end_matches(',')
        ),
    )
    .await;
    let backup = bench.backup("t").await;
    bench.sql("delete from t; alter table t alter a type int using 0");
    let error = bench.stage(0, &backup).await.unwrap_err();
    assert_eq!(
        error.message,
        "the column a of public.t is integer now, and the backup's values cannot be cast to it, for example \"12x\""
    );
    no_table(&bench);
    bench.sql("alter table t alter a type text, alter b type numeric(10,1)");
    let error = bench.stage(0, &backup).await.unwrap_err();
    assert_eq!(
        error.message,
        "the column b of public.t is numeric(10,1) now, and 5,000 values of the backup would lose something in the cast from numeric(10,2), for example \"1.25\""
    );
    bench.sql("alter table t alter b type numeric(12,4)");
    assert_eq!(bench.stage(0, &backup).await.unwrap().1.rows, 5000);
}
