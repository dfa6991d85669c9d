//! Faults of the way to the server.

use std::process::{Command, Stdio};

use super::*;

/// What the wire does to a merge that goes over it.
const MANGLED: [(&str, usize, bool); 3] =
    [("cut", usize::MAX, false), ("half closed", usize::MAX, true), ("dribbles", 3, false)];

#[tokio::test]
async fn fm_14_a_way_that_dribbles_stalls_or_is_cut_anywhere_leaves_all_or_nothing() {
    let mut repair = repair("fm_14").await;
    let (after, _) = rehearse(&repair).await;
    let proxy = Proxy::new(socket(&repair.bench.conninfo));
    let way = proxy.conninfo(&repair.bench.conninfo);
    let wire = Arc::clone(&proxy.wire);
    let counted = 1 << 40;

    // Whole, in pieces of a byte, with a pause: all arrives. Counts what a merge sends and receives.
    again(&mut repair).await;
    let client = session(&way).await;
    wire.left.store(counted, Ordering::SeqCst);
    wire.piece.store(1, Ordering::SeqCst);
    let pause = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        wire.stalled.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(2)).await;
        wire.stalled.store(false, Ordering::SeqCst);
    };
    assert!(all_or_nothing(&repair, client, pause, &after).await, "a slow way is no reason to fail");
    let total = counted - wire.left.load(Ordering::SeqCst);

    let (mut applied, mut runs) = (0, 0);
    for (what, piece, half) in MANGLED {
        for run in 0..9 {
            again(&mut repair).await;
            wire.left.store(i64::MAX, Ordering::SeqCst);
            wire.piece.store(usize::MAX, Ordering::SeqCst);
            let client = session(&way).await;
            wire.half.store(half, Ordering::SeqCst);
            wire.piece.store(piece, Ordering::SeqCst);
            // The last bytes are those of COMMIT and its reply, unless other tests have given the server more to tell since they
            // were counted; so one has bytes enough.
            let left = match run {
                0..4 => total * run / 4 + 1,
                4..8 => total - 8 * (run - 4) - 1,
                _ => 2 * total,
            };
            wire.left.store(left, Ordering::SeqCst);
            let merge = all_or_nothing(&repair, client, std::future::ready(()), &after);
            let outcome = tokio::time::timeout(Duration::from_mins(1), merge).await;
            applied += u32::from(outcome.unwrap_or_else(|_| panic!("{what} after {left} bytes: it hangs")));
            runs += 1;
        }
    }
    assert!(applied > 0 && applied < runs, "{applied} of {runs} were applied");
}

/// A network of its own for the operator, with one way to the server.
struct Elsewhere {
    name: String,
    server: String,
}

impl Elsewhere {
    /// `None` where making one is not allowed.
    fn new() -> Option<Self> {
        let number = std::process::id() % 200;
        let (name, server) = (format!("lifeboat{number}"), format!("10.213.{number}.1"));
        let script = format!(
            "set -e; ip netns add {name}; ip link add lb{number}a type veth peer name lb{number}b netns {name}
             ip addr add {server}/24 dev lb{number}a; ip link set lb{number}a up
             ip -n {name} addr add 10.213.{number}.2/24 dev lb{number}b; ip -n {name} link set lb{number}b up"
        );
        let elsewhere = Self { name, server };
        let made = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status().unwrap();
        made.success().then_some(elsewhere)
    }

    /// From now on nothing of the operator's arrives, and nobody tells the server.
    fn vanish(&self) {
        let arguments = ["-n", &self.name, "route", "add", "blackhole", &self.server];
        assert!(Command::new("ip").args(arguments).status().unwrap().success());
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

#[test]
fn fm_13_locks_are_free_ten_seconds_after_the_operator_vanished() {
    let Some(elsewhere) = Elsewhere::new() else {
        crate::not_run("fm_13 needs the right to make a network namespace");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let settings = [&format!("listen_addresses={}", elsewhere.server)];
    let cluster =
        Cluster::create(&folder.path().join("pg"), &programs().unwrap(), &settings.map(String::as_str)).unwrap();
    std::fs::write(cluster.data().join("pg_hba.conf"), "local all all trust\nhost all all 10.213.0.0/16 trust\n")
        .unwrap();
    let here = cluster.conninfo("postgres");
    psql(&here, "select pg_reload_conf()");
    psql(
        &here,
        "create table t (id int primary key, a text); insert into t select i, 'x' from generate_series(1, 9) i",
    );
    let dump = folder.path().join("t.dump");
    let mut pg_dump = Command::new(crate::cluster::pg_programs().join("pg_dump"));
    assert!(pg_dump.args(["-Fc", "-d", &here, "-f"]).arg(&dump).status().unwrap().success());
    // The merge is busy in the server while the way to it is lost.
    psql(
        &here,
        "update t set a = 'y' where id < 4;
         create function slow() returns trigger language plpgsql as $$begin perform pg_sleep(60); return new; end$$;
         create trigger slow before update on t for each row execute function slow()",
    );
    let answers = folder.path().join("answers.toml");
    std::fs::write(
        &answers,
        "tables = [\"t\"]\nconsent = \"public.t\"\ntriggers = \"fire\"\n[[rows]]\ntable = \"t\"\nclasses = [\"changed\"]\n",
    )
    .unwrap();
    let mut operator = Command::new("ip")
        .args(["netns", "exec", &elsewhere.name, env!("CARGO_BIN_EXE_lifeboat"), "recover", "--answers"])
        .arg(&answers)
        .arg("--dump")
        .arg(&dump)
        .args(["--database", &format!("host={} dbname=postgres user=postgres sslmode=disable", elsewhere.server)])
        .env("HOME", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let busy = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
    let begun = Instant::now();
    while psql(&here, busy) == "0" {
        assert!(begun.elapsed() < Duration::from_secs(30), "the merge did not begin");
        std::thread::sleep(Duration::from_millis(50));
    }
    elsewhere.vanish();
    let vanished = Instant::now();
    // The application wants a row that the merge holds.
    psql(&here, "alter table t disable trigger slow; update t set a = 'z' where id = 1");
    let waited = vanished.elapsed();
    let _ = operator.kill();
    let _ = operator.wait();
    assert_eq!(psql(&here, "select string_agg(a, '' order by id) from t"), "zyyxxxxxx", "nothing was merged");
    println!("locks were free after {waited:?}");
    assert!(waited > Duration::from_millis(500), "the merge held no lock");
    assert!(waited < Duration::from_secs(10), "{waited:?}");
}
