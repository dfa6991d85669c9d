//! A cluster that stands at a moment is looked into before it is used: it is asked in SQL, in the console, and is changed by
//! nothing that is typed; and the moment one commit earlier or later is one key away.

use std::path::Path;

use lifeboat::error::Result;
use lifeboat::postgres::cluster::{Answer, inspect};
use lifeboat::progress::Progress;

use crate::cluster::psql;
use crate::moment::{MIGRATION, World};
use crate::terminal::Terminal;

fn ask(folder: &Path, sql: &str) -> Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(inspect(folder, "shop", sql, &Progress::default()))
}

/// What the console shows for a query that is typed.
fn shown(terminal: &mut Terminal, sql: &str, expected: &str) {
    terminal.send(&format!("\x15{sql}\r"));
    terminal.wait_for(expected);
}

/// From the choices to a neighbour, and back to the choices there.
fn step(terminal: &mut Terminal, keys: &str, to: &str) {
    terminal.send("\x1b");
    terminal.wait_for("What is it for?");
    terminal.send(keys);
    terminal.wait_for("Lay out a second cluster as of");
    terminal.send("\r");
    terminal.wait_for(&format!("It stands {to}"));
    terminal.send("s");
    terminal.wait_for("SQL>");
}

#[test]
fn a_cluster_of_a_moment_is_asked_in_the_console_and_moved_by_one_commit() {
    // One that was rolled back is no neighbour.
    let incident = "revoke connect on database shop from public; insert into shop.checks values (1000, 'last'); \
        begin; insert into shop.checks values (2000, 'never'); rollback";
    let world = World::new(&format!("{incident}; {MIGRATION}"));
    let home = world.path("").display().to_string();
    let environment = [("HOME", home.as_str()), ("XDG_CONFIG_HOME", &home), ("XDG_STATE_HOME", &home)];
    let config = world.path("config.toml").display().to_string();
    let arguments = ["--config", &config, "console"];
    let mut terminal = Terminal::start(env!("CARGO_BIN_EXE_lifeboat"), &arguments, &environment, 24, 80);
    for (keys, screen) in [
        ("", "Begin a recovery"),
        ("\r", "When did it happen?"),
        ("\r", "What has to come back?"),
        ("\r", "Which moment should come back?"),
        ("\r", "Lay out a second cluster as of"),
        ("\r", "What is it for?"),
    ] {
        terminal.send(keys);
        terminal.wait_for(screen);
    }
    // Every choice is on the screen, and so are the checks of the configuration.
    for said in ["Checks: 1 of 1 hold.", "> Bring tables back", "A moment earlier: just before", "A moment later: with"]
    {
        assert!(terminal.text().contains(said), "{said}:\n{}", terminal.text());
    }
    terminal.send("s");
    terminal.wait_for("holds: gave 3000, at least 3000 expected");
    shown(&mut terminal, "select id, v from shop.keeps where id < 4 order by id desc", "3 rows, 2 columns");
    assert!(terminal.text().contains("▹    3  k3"), "{}", terminal.text());
    shown(&mut terminal, "select generate_series(1, 5000) as n", "the first 1,000 rows; THERE ARE MORE");
    shown(&mut terminal, "show work_mem", "this is not one query");
    shown(&mut terminal, "select nothing from shop.keeps", "column \"nothing\" does not exist (at character 8)");
    shown(&mut terminal, "select pg_sleep(600)", "Asking, for");
    // What is typed ahead does nothing; Esc cancels, on the server too.
    terminal.send("q\r\x1b");
    terminal.wait_for("Cancelled.");
    let [folder] = world.clones().try_into().unwrap();
    let conninfo = format!("host={} port=5432 user=postgres dbname=shop", folder.display());
    let sleeping = "select count(*) from pg_stat_activity where usename = 'lifeboat_reader' and state = 'active'";
    while psql(&conninfo, sleeping) != "0" {}
    nothing_is_changed(&folder, &conninfo);

    // The row that was written last, and the tables that went then.
    shown(&mut terminal, "select count(*) from shop.checks", "   300");
    step(&mut terminal, "Gk\r", "just before transaction");
    shown(&mut terminal, "select count(*) from shop.checks", "   299");
    step(&mut terminal, "G\r", "after transaction");
    shown(&mut terminal, "select count(*) from shop.checks", "   300");
    step(&mut terminal, "G\r", "after transaction");
    // What was asked of the cluster before is recalled.
    terminal.send("\x15\x1b[A\r");
    terminal.wait_for("relation \"shop.checks\" does not exist");
    terminal.send("\x1b");
    terminal.wait_for("What is it for?");
    terminal.send("q");
    terminal.wait_for("e ends it");
    terminal.send("e");
    assert!(terminal.child.wait().unwrap().success());
    while !world.clones().is_empty() || world.servers() > 0 {}
}

/// Whoever types may be tired, or malicious: the clone stays as it is, and nothing outside it is read or written.
fn nothing_is_changed(folder: &Path, conninfo: &str) {
    let written = folder.join("written");
    let (program, export) = (
        format!("copy shop.keeps to program 'cat > {}'", written.display()),
        format!("select lo_export(1, '{}')", written.display()),
    );
    let state = || {
        psql(
            conninfo,
            "select (select md5(string_agg(k::text, ',' order by id)) from shop.keeps k),
                (select md5(string_agg(c::text, ',' order by oid)) from pg_class c),
                (select md5(string_agg(a::text, ',' order by oid)) from pg_authid a),
                (select count(*) from pg_largeobject_metadata), (select last_value from shop.homes_id_seq)",
        )
    };
    let before = state();
    let hostile = [
        ("update shop.keeps set v = 'x'", "this is not one query"),
        ("delete from shop.keeps returning id", "this is not one query"),
        ("commit", "this is not one query"),
        ("do $$begin delete from shop.keeps; end$$", "this is not one query"),
        (&program, "this is not one query"),
        (&export, "permission denied for function lo_export"),
        ("select 1; drop table shop.keeps", "cannot insert multiple commands"),
        ("select 1) t; drop table shop.keeps; --", "syntax error"),
        ("with d as (delete from shop.keeps returning 1) select * from d", "must be at the top level"),
        ("select * from shop.keeps for update", "read-only transaction"),
        ("select nextval('shop.homes_id_seq')", "permission denied for sequence homes_id_seq"),
        ("select set_config('transaction_read_only', 'off', true)", "must be set before any query"),
        ("select set_config('role', 'postgres', false)", "permission denied to set role"),
        ("select set_config('session_authorization', 'postgres', false)", "permission denied to set session"),
        ("select query_to_xml('delete from shop.keeps', true, true, '')", "is not allowed in a non-volatile function"),
        ("select pg_read_file('/etc/passwd')", "permission denied for function pg_read_file"),
        ("select pg_ls_dir('/')", "permission denied for function pg_ls_dir"),
        ("select $1::int", "there is a parameter in it"),
        ("", "this is not one query"),
    ];
    let told = |sql: &str| ask(folder, sql).map_or_else(|error| error.message, |answer| format!("{:?}", answer.rows));
    let wrong =
        hostile.map(|(sql, said)| (sql, said, told(sql))).into_iter().filter(|(_, said, told)| !told.contains(said));
    assert_eq!(wrong.collect::<Vec<_>>(), []);
    // An older server lets a large object be made, and is told to forget it.
    let _ = ask(folder, "select lo_creat(-1)");
    assert_eq!(state(), before);
    assert!(!written.exists());

    // What is asked for is told as it is, whatever its columns are called.
    let answer = ask(folder, "values (1, null), (2, E'a\\nb'); ").unwrap();
    assert_eq!(answer.rows, [[Some("1".into()), None], [Some("2".into()), Some("a\nb".into())]]);
    let answer =
        ask(folder, "select k.id, o.id, pg_sleep(0) from shop.keeps k, shop.keeps o where k.id = o.id -- both");
    let answer = answer.unwrap();
    assert_eq!(
        answer.columns.iter().map(|(name, number)| (&**name, *number)).collect::<Vec<_>>(),
        [("id", true), ("id", true), ("pg_sleep", false)]
    );
    let answer = ask(folder, "select n, repeat('x', 9000) from generate_series(1, 900) n order by n desc").unwrap();
    assert!(answer.cut && (400..600).contains(&answer.rows.len()), "{}", answer.rows.len());
    assert_eq!(answer.rows[1][0].as_deref(), Some("899"));
    let answer = ask(folder, "select repeat('x', 20000)").unwrap();
    assert!(answer.rows[0][0].as_ref().unwrap().ends_with("xx… [20000 characters]"));
}
