//! The row diff on a real server.

use lifeboat::error::Kind;
use lifeboat::postgres::diff::{self, Class, Filter, KeyChoice, Start};

use crate::stage::Bench;

fn counts(diff: &diff::TableDiff) -> (u64, u64, u64, u64) {
    (diff.missing, diff.changed, diff.extra, diff.same)
}

#[tokio::test]
async fn the_one_bad_update_stands_out_from_the_honest_work() {
    let bench = Bench::new(
        "diff_xmin",
        "create table t (id int primary key, status text, amount numeric); insert into t select i, 'active', i from generate_series(1, 20000) i; analyze t",
    )
    .await;
    let backup = bench.backup("t").await;
    bench.sql("update t set status = 'void' where id <= 5000");
    for id in 10_000..10_040 {
        bench.sql(&format!("update t set amount = amount + 1 where id = {id}"));
    }
    bench.sql("delete from t where id > 19990; insert into t values (30000, 'new', 1)");
    let (table, diff) = bench.diff(0, &backup).await;
    assert_eq!(counts(&diff), (10, 5040, 1, 14950));
    assert_eq!(diff.by_column[0].column, "status");
    assert_eq!((diff.by_column[0].rows, diff.by_column[1].rows), (5000, 40));
    let bad = &diff.by_transaction[0];
    assert_eq!((bad.changed, bad.extra, bad.columns.clone()), (5000, 0, vec!["status".to_owned()]));
    assert!(bad.committed_at.is_some());
    assert_eq!(diff.by_transaction.len(), 42);
    let filter = Filter { transaction: Some(bad.xid), ..Filter::default() };
    assert_eq!(diff::matches(&bench.client, &bench.scratch, &table, &filter).await.unwrap(), 5000);
    let page = diff::page(&bench.client, &bench.scratch, &table, &filter, Start::After(4990), 100).await.unwrap();
    assert_eq!(page.rows.len(), 10);
    let last = page.rows.last().unwrap();
    assert_eq!((last.number, last.class, last.xid), (5000, Class::Changed, Some(bad.xid)));
    assert_eq!(page.columns, ["id", "status", "amount"]);
    assert_eq!(last.backup.as_ref().unwrap()[1].as_deref(), Some("active"));
    assert_eq!(last.live.as_ref().unwrap()[1].as_deref(), Some("void"));
    assert_eq!(last.changed, [1]);
    let before = diff::page(&bench.client, &bench.scratch, &table, &filter, Start::Before(4000), 3).await.unwrap();
    assert_eq!(before.rows.iter().map(|row| row.number).collect::<Vec<_>>(), [3997, 3998, 3999]);
}

#[tokio::test]
async fn a_condition_cannot_escape_and_cannot_write() {
    let bench = Bench::new("diff_condition", "create table t (id int primary key, a text); insert into t select i, 'x' from generate_series(1, 9) i; create sequence s").await;
    let backup = bench.backup("t").await;
    bench.sql("update t set a = 'y' where id < 4; delete from t where id = 9");
    let (table, _) = bench.diff(0, &backup).await;
    let matches = async |condition: &str| {
        let filter = Filter { condition: Some(condition.into()), ..Filter::default() };
        diff::matches(&bench.client, &bench.scratch, &table, &filter).await
    };
    for (condition, expected) in [
        ("live.a = 'y' and backup.id > 1", 2),
        ("live.id is null", 1),
        ("true -- a comment", 4),
        ("true or live.a in (select 'y')", 4),
        ("  ", 4),
    ] {
        assert_eq!(matches(condition).await.unwrap(), expected, "{condition}");
    }
    for condition in
        ["true) or (true", "true /*", "true limit 1", "1", "a = '", "true; drop table t", "live.id = $1", ") or ("]
    {
        let error = matches(condition).await.unwrap_err();
        assert_eq!(error.kind, Kind::Operator, "{condition}: {error}");
    }
    let error = matches("pg_catalog.nextval('public.s') > 0").await.unwrap_err();
    assert!(error.message.contains("read-only"), "{error}");
    assert!(bench.client.simple_query("select 1").await.is_ok());
    assert_eq!(bench.sql("select count(*) from t"), "8");
}

#[tokio::test]
async fn fm_41_every_type_is_compared_exactly() {
    let zoo = [
        ("numeric", "1.0", "1.00"),
        ("float8", "-0", "0"),
        ("float4", "-0", "0"),
        ("json", "{\"a\":1}", "{\"a\": 1}"),
        ("jsonb", "{\"a\":1.0}", "{\"a\":1.00}"),
        ("xml", "<a/>", "<a></a>"),
        ("point", "(1,2)", "(1,3)"),
        ("interval", "1 month", "30 days"),
        ("text", "a", "a "),
        ("char(5)", "a", "b"),
        ("bpchar", "a", "a "),
        ("citext", "Abc", "abc"),
        ("text collate ci", "Abc", "abc"),
        ("int[]", "{1,NULL}", "{1,2}"),
        ("inet", "10.0.0.1", "10.0.0.1/8"),
        ("bytea", "\\x00", "\\x0000"),
        ("tsvector", "a:1", "a:2"),
        ("timestamptz", "2026-01-01 00:00+00", "2026-01-01 00:00:00.000001+00"),
        ("int4range", "[1,5)", "[1,6)"),
        ("polygon", "((0,0),(1,1))", "((0,0),(1,2))"),
        ("mood", "sad", "happy"),
        ("mood[]", "{sad}", "{happy}"),
        ("hstore", "a=>1", "a=>2"),
        ("pair", "(1,2)", "(1,)"),
        ("dom", "1.0", "1.00"),
        ("timetz", "10:00+00", "11:00+01"),
        ("bit(3)", "101", "100"),
        ("money", "1", "2"),
        ("uuid", "00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000001"),
        ("regclass", "pg_class", "pg_type"),
        ("box", "(1,1),(0,0)", "(2,2),(0,0)"),
        ("name", "a", "b"),
        ("\"char\"", "a", "b"),
        ("bool", "t", "f"),
        ("int8", "1", "2"),
        ("domarr", "{1.0}", "{1.00}"),
        ("dom[]", "{1.0}", "{1.00}"),
        ("numeric(6,2)", "1", "1.01"),
        ("jsonpath", "$.a", "$.b"),
        ("oid", "1", "2"),
        ("varbit", "1", "10"),
        ("text[]", "{a,NULL}", "{a,\"NULL\"}"),
        ("macaddr", "08:00:2b:01:02:03", "08:00:2b:01:02:04"),
        ("date", "infinity", "-infinity"),
        ("float8[]", "{0}", "{-0}"),
        ("int8multirange", "{[1,2)}", "{[1,3)}"),
    ];
    let columns: Vec<_> = zoo.iter().enumerate().map(|(place, (kind, ..))| format!("c{place} {kind}")).collect();
    let values = |second: bool, skip: Option<usize>| {
        let values: Vec<_> = zoo
            .iter()
            .enumerate()
            .map(|(place, (_, one, two))| format!("'{}'", if second && Some(place) == skip { two } else { one }))
            .collect();
        values.join(", ")
    };
    let bench = Bench::new("diff_zoo", &format!(
        "create extension citext; create extension hstore; create type mood as enum ('sad', 'happy'); create type pair as (a int, b int);
         create domain dom as numeric; create domain domarr as numeric[];
         create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         create table t (id int primary key, {})", columns.join(", "))).await;
    bench.sql(&format!("insert into t select i, {} from generate_series(0, {}) i", values(false, None), zoo.len() + 1));
    // A null bitmap that is not needed, and a value that is compressed on one side only, print the same.
    let backup = bench.backup("t").await;
    for (place, (_, _, two)) in zoo.iter().enumerate() {
        bench.sql(&format!("update t set c{place} = '{two}' where id = {place}"));
    }
    bench.sql(&format!(
        "update t set {} where id = {}",
        zoo.iter().enumerate().map(|(place, _)| format!("c{place} = null")).collect::<Vec<_>>().join(", "),
        zoo.len()
    ));
    let (table, diff) = bench.diff(0, &backup).await;
    let page =
        diff::page(&bench.client, &bench.scratch, &table, &Filter::default(), Start::After(0), 1000).await.unwrap();
    let found: Vec<_> = page.rows.iter().map(|row| (row.number, row.changed.clone())).collect();
    let mut expected: Vec<_> =
        (0..zoo.len()).map(|place| (i64::try_from(place + 1).unwrap(), vec![place + 1])).collect();
    expected.push((i64::try_from(zoo.len() + 1).unwrap(), (1..=zoo.len()).collect()));
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected, "{:?}", zoo.get(usize::try_from(expected.0 - 1).unwrap()));
    }
    assert_eq!(counts(&diff), (0, zoo.len() as u64 + 1, 0, 1));
}

#[tokio::test]
async fn values_that_print_the_same_are_never_called_changed() {
    let bench = Bench::new("diff_same", "create table t (id int primary key, a int[], b text, j json, n numeric, f float8); create table big (id int primary key, b text)").await;
    bench.sql("insert into t select i, array[1,2,null], repeat('x', 100000), json_build_object('a', repeat('y', 100000)), 'NaN', 'NaN' from generate_series(1, 3) i");
    let backup = bench.backup("t").await;
    bench.sql("alter table t alter b set storage external, alter j set storage external; update t set a = array_remove(array[1,2,null,99], 99), b = b || '', j = (j::text || '')::json, f = '-NaN'::float8");
    let (_, diff) = bench.diff(0, &backup).await;
    assert_eq!(counts(&diff), (0, 0, 0, 3));
}

#[tokio::test]
async fn fm_42_keys_are_equal_when_production_says_so() {
    let bench = Bench::new("diff_citext", "create extension citext; create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        create table a (k citext primary key, v int); create table b (k text collate ci primary key, v int); create table c (k numeric primary key, v int);
        insert into a values ('Ann', 1), ('bob', 2); insert into b select * from a; insert into c values (1.0, 1), (2, 2)").await;
    for (number, (name, change)) in [
        ("a", "update a set k = 'ANN' where v = 1"),
        ("b", "update b set k = 'ANN' where v = 1"),
        ("c", "update c set k = 1.00 where v = 1"),
    ]
    .into_iter()
    .enumerate()
    {
        let backup = bench.backup(name).await;
        bench.sql(change);
        let (_, diff) = bench.diff(number, &backup).await;
        assert_eq!(counts(&diff), (0, 1, 0, 1), "{name}");
        assert_eq!(diff.by_column[0].column, "k");
    }
}

#[tokio::test]
async fn fm_30_duplicate_keys_in_the_backup_are_refused_with_a_sample() {
    let bench = Bench::new(
        "diff_duplicates",
        "create table t (id int primary key, a int); insert into t values (1, 1), (2, 2)",
    )
    .await;
    let good = bench.backup("t").await;
    for (text, sample) in [
        ("1\t1\n1\t1\n2\t2\n", "1"),
        ("1\t1\n1\t5\n2\t2\n", "1"),
        ("1\t1\n7\t1\n7\t1\n", "7"),
        ("1\t5\n1\t6\n2\t2\n", "1"),
    ] {
        let mut backup = good.clone();
        backup.text = text.into();
        let error = bench.diff_by(0, &backup, &KeyChoice::Best).await.unwrap_err();
        assert_eq!(
            error.message,
            format!("1 value of id occur more than once in the backup of public.t, for example {sample}")
        );
        assert_eq!(error.kind, Kind::Backup);
    }
}

#[tokio::test]
async fn fm_30_rows_with_null_in_the_key_are_counted_apart() {
    let bench = Bench::new("diff_nulls", "create table t (a int, b int, v int, unique (a, b)); insert into t values (1, 1, 1), (1, null, 2), (null, null, 3), (2, 2, 2)").await;
    let backup = bench.backup("t").await;
    bench.sql("delete from t where b is null and a = 1; update t set v = 9 where a = 2; insert into t values (null, 7, 7), (3, 3, 3)");
    let (table, diff) = bench.diff(0, &backup).await;
    assert_eq!(counts(&diff), (0, 1, 1, 1));
    assert_eq!((diff.unkeyed_backup, diff.unkeyed_live), (2, 2));
    let page =
        diff::page(&bench.client, &bench.scratch, &table, &Filter::default(), Start::After(0), 100).await.unwrap();
    assert_eq!(page.rows.iter().map(|row| row.number).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn fm_29_without_a_key_copies_of_rows_are_counted() {
    let bench = Bench::new("diff_heap", "create table t (a int, b json); insert into t select 1, '{}' from generate_series(1, 5); insert into t values (2, null), (3, '[]')").await;
    let backup = bench.backup("t").await;
    bench.sql("delete from t where ctid in (select ctid from t where a = 1 limit 2); insert into t values (3, '[]'), (4, '4')");
    let (table, diff) = bench.diff(0, &backup).await;
    assert_eq!(diff.key, None);
    assert_eq!(counts(&diff), (2, 0, 2, 5));
    let page =
        diff::page(&bench.client, &bench.scratch, &table, &Filter::default(), Start::After(0), 100).await.unwrap();
    let shown: Vec<_> = page.rows.iter().map(|row| (row.class, row.backup.is_some(), row.live.is_some())).collect();
    assert_eq!(
        shown,
        [
            (Class::Missing, true, false),
            (Class::Missing, true, false),
            (Class::Extra, false, true),
            (Class::Extra, false, true)
        ]
    );
    let error = bench.diff_by(0, &backup, &KeyChoice::Named(vec!["a".into()])).await.unwrap_err();
    assert_eq!(
        error.message,
        "a is not a key of public.t: 2 values of it occur more than once in production, for example 1; 3"
    );
    bench.sql("delete from t");
    let error = bench.diff_by(0, &backup, &KeyChoice::Named(vec!["a".into()])).await.unwrap_err();
    assert_eq!(
        error.message,
        "a is not a key of public.t: 1 value of it occur more than once in the backup, for example 1"
    );
}

#[tokio::test]
async fn a_key_that_the_operator_names_pairs_rows() {
    let bench = Bench::new(
        "diff_named",
        "create table t (a int, b text, v int); insert into t select i, 'x', i from generate_series(1, 100) i",
    )
    .await;
    let backup = bench.backup("t").await;
    bench.sql("update t set v = 0 where a = 5; delete from t where a = 6; insert into t values (200, 'y', 1)");
    let key = KeyChoice::Named(vec!["b".into(), "a".into()]);
    let (table, diff) = bench.diff_by(0, &backup, &key).await.unwrap();
    assert_eq!(counts(&diff), (1, 1, 1, 98));
    let page =
        diff::page(&bench.client, &bench.scratch, &table, &Filter::default(), Start::After(0), 100).await.unwrap();
    assert_eq!(page.rows[0].live.as_ref().unwrap()[2].as_deref(), Some("0"));
    bench.sql("insert into t values (null, 'x', 1)");
    let error = bench.diff_by(0, &backup, &key).await.unwrap_err();
    assert_eq!(error.message, "b, a is not a key of public.t: 1 row of production have NULL in it");
}

#[tokio::test]
async fn fm_38_drift_is_mapped_column_by_column() {
    let bench = Bench::new("diff_drift", "create table t (id int primary key, gone text, kept text, wide varchar(50), n int, g int generated always as (id * 2) stored);
        insert into t (id, gone, kept, wide, n) select i, 'g', 'k', 'w', i from generate_series(1, 10) i").await;
    let backup = bench.backup("t").await;
    bench.sql("alter table t drop gone, alter wide type varchar(20), alter n type bigint, add fresh text not null default 'f'; update t set kept = 'z' where id = 1; delete from t where id = 2");
    let (table, diff) = bench.diff(0, &backup).await;
    let drift: Vec<_> = diff.pairs.iter().map(|pair| format!("{} {:?}", pair.column, pair.drift)).collect();
    assert_eq!(
        drift,
        ["id Same", "gone OnlyInBackup", "kept Same", "wide Retyped", "n Retyped", "g Generated", "fresh OnlyInLive"]
    );
    assert_eq!(counts(&diff), (1, 1, 0, 8));
    let page = diff::page(&bench.client, &bench.scratch, &table, &Filter::default(), Start::After(0), 9).await.unwrap();
    assert_eq!(page.rows[0].changed, [2]);
    assert_eq!(
        page.rows[0].live.as_ref().unwrap(),
        &["1", "", "z", "w", "1", "2", "f"].map(|cell| (!cell.is_empty()).then(|| cell.to_owned()))
    );
}

#[tokio::test]
async fn odd_names_and_huge_cells_are_carried() {
    let odd = "we\"ird\nña'me";
    let long = "x".repeat(63);
    let quoted = odd.replace('"', "\"\"");
    let bench = Bench::new("diff_odd", &format!("create schema \"{quoted}\"; create table \"{quoted}\".\"{long}\" (\"{quoted}\" int primary key, \"{long}\" text); insert into \"{quoted}\".\"{long}\" values (1, repeat('é', 20000)), (2, 'z')")).await;
    let name = format!("\"{quoted}\".\"{long}\"");
    let backup = bench.backup(&name).await;
    bench.sql(&format!("update {name} set \"{long}\" = 'y'"));
    let (table, diff) = bench.diff(0, &backup).await;
    assert_eq!(counts(&diff), (0, 2, 0, 0));
    let page = diff::page(&bench.client, &bench.scratch, &table, &Filter::default(), Start::After(0), 9).await.unwrap();
    let cell = page.rows[0].backup.as_ref().unwrap()[1].clone().unwrap();
    assert!(cell.ends_with("é… [20000 characters]"));
    assert_eq!(cell.chars().filter(|letter| *letter == 'é').count(), diff::CELL);
}

#[tokio::test]
async fn fm_39_partitions_and_heirs_are_compared_as_they_were_dumped() {
    let bench = Bench::new("diff_partitions", "create table p (id int primary key, v int) partition by range (id); create table p1 partition of p for values from (0) to (100); create table p2 partition of p for values from (100) to (200);
        insert into p select i, i from generate_series(1, 150) i; create table parent (id int primary key, v int); create table heir () inherits (parent); insert into parent values (1, 1); insert into heir values (2, 2)").await;
    let (root, leaf) = (bench.backup("p").await, bench.backup("p2").await);
    let mut parent = bench.backup("parent").await;
    parent.text = "1\t1\n".into();
    bench.sql("update p set v = 0 where id in (5, 120); delete from p where id = 130");
    assert_eq!(counts(&bench.diff(0, &root).await.1), (1, 2, 0, 147));
    assert_eq!(counts(&bench.diff(1, &leaf).await.1), (1, 1, 0, 49));
    assert_eq!(counts(&bench.diff(2, &parent).await.1), (0, 0, 0, 1));
}

#[tokio::test]
async fn fm_40_row_level_security_is_an_error_not_a_false_diff() {
    let bench = Bench::new("diff_rls", "create role clerk login; grant create on database diff_rls to clerk; create table t (id int primary key); insert into t values (1), (2); alter table t enable row level security; create policy p on t using (id = 1); grant select on t to clerk").await;
    let backup = bench.backup("t").await;
    bench.client.batch_execute("set role clerk").await.unwrap();
    let scratch = lifeboat::postgres::stage::create_scratch(&bench.client, "clerk").await.unwrap();
    let bench = Bench { scratch, ..bench };
    let error = bench.diff_by(0, &backup, &KeyChoice::Best).await.unwrap_err();
    assert_eq!(error.message, "row-level security of public.t hides rows from this role");
    bench.sql("drop owned by clerk; drop role clerk");
}
