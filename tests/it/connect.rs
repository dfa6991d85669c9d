//! Connecting as libpq does, to real servers: over a socket, over TCP with and without TLS, through a pooler, to a standby.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use lifeboat::drill::cluster::{Cluster, programs};
use lifeboat::error::{Error, Kind};
use lifeboat::postgres::connect::{Conninfo, Server, connect};

use crate::cluster::psql;

/// Every password here is this, so that no error may hold it.
const CANARY: &str = "canary-f3c1";
const NAME: &str = "db.lifeboat.test";

/// A server that listens on TCP too, and wants passwords, TLS and certificates from some.
struct Network {
    folder: tempfile::TempDir,
    cluster: Cluster,
    port: u16,
}

static NETWORK: LazyLock<Network> = LazyLock::new(|| {
    let folder = tempfile::Builder::new().prefix("lifeboat-test-").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let port = free_port();
    let settings = ["listen_addresses=127.0.0.1", &format!("port={port}"), "password_encryption=scram-sha-256"];
    let cluster = Cluster::create(&folder.path().join("pg"), &programs().unwrap(), &settings).unwrap();
    certificates(&cluster);
    std::fs::write(
        cluster.data().join("pg_hba.conf"),
        "local all all trust\n\
         local replication all trust\n\
         hostssl certified all 127.0.0.1/32 trust clientcert=verify-ca\n\
         hostssl encrypted all 127.0.0.1/32 trust\n\
         host postgres app 127.0.0.1/32 scram-sha-256\n\
         host postgres locked 127.0.0.1/32 scram-sha-256\n\
         host nobody all 127.0.0.1/32 reject\n\
         host postgres,readonly,closed,gone postgres,ghost,plain 127.0.0.1/32 trust\n",
    )
    .unwrap();
    let network = Network { folder, cluster, port };
    let file = |name: &str| network.cluster.folder().join(name).display().to_string();
    psql(
        &network.socket("postgres"),
        &format!(
            "alter system set ssl = on;
             alter system set ssl_cert_file = '{}';
             alter system set ssl_key_file = '{}';
             alter system set ssl_ca_file = '{}';
             create role app login password '{CANARY}';
             create role locked nologin password '{CANARY}';
             create role plain login;
             create database certified;
             create database encrypted;
             create database readonly;
             alter database readonly set default_transaction_read_only = on;
             create database closed;
             revoke connect on database closed from public;
             select pg_reload_conf();",
            file("server.crt"),
            file("server.key"),
            file("ca.crt")
        ),
    );
    wait(|| {
        let ssl = psql(&network.socket("postgres"), "show ssl");
        (ssl == "on").then_some(())
    });
    network
});

impl Network {
    fn socket(&self, database: &str) -> String {
        format!("{} port={}", self.cluster.conninfo(database), self.port)
    }

    fn tcp(&self, database: &str, user: &str) -> String {
        format!("host=127.0.0.1 port={} dbname={database} user={user}", self.port)
    }

    /// Reached by a name, as a server on another machine would be.
    fn named(&self, name: &str, database: &str, more: &str) -> String {
        format!("host={name} hostaddr=127.0.0.1 port={} dbname={database} user=postgres {more}", self.port)
    }

    fn place(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn file(&self, name: &str) -> String {
        self.cluster.folder().join(name).display().to_string()
    }
}

/// A test authority, a server certificate for [`NAME`] and a client certificate, by openssl, owned by the server's user.
fn certificates(cluster: &Cluster) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    let signed = |name: &str, subject: &str, more: &str| {
        format!(
            "openssl req {key} -keyout {name}.key -out {name}.csr -subj /CN={subject}
             printf 'basicConstraints=CA:FALSE\\n{more}' > {name}.ext
             openssl x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile {name}.ext -out {name}.crt\n"
        )
    };
    let script = format!(
        "set -e; umask 077; cd \"$1\"
         openssl req -x509 {key} -keyout ca.key -out ca.crt -days 2 -subj /CN=lifeboat-test-authority
         openssl req -x509 {key} -keyout other.key -out other.crt -days 2 -subj /CN=another-authority\n{}{}",
        signed("server", NAME, &format!("subjectAltName=DNS:{NAME}\\n")),
        signed("client", "postgres", "extendedKeyUsage=clientAuth\\n")
    );
    let output =
        cluster.command("/bin/sh").unwrap().args(["-c", &script, "sh"]).arg(cluster.folder()).output().unwrap();
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn wait<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not happen");
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// A connection string in an environment of its own, whose home folder has nothing in it.
fn given(text: &str, variables: &[(&str, &str)]) -> Conninfo {
    let mut environment = vec![("HOME", "/nonexistent"), ("PGSYSCONFDIR", "/nonexistent")];
    environment.extend(variables);
    let environment = environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    Conninfo::with_environment(text, &environment).unwrap()
}

async fn open(text: &str, variables: &[(&str, &str)]) -> Server {
    match connect(&given(text, variables), "lifeboat_test").await {
        Ok(server) => server,
        Err(error) => panic!("{text}: {error:?}"),
    }
}

/// The error of a connection that must not come about: with a hint, and without the password.
async fn refusal(text: &str, variables: &[(&str, &str)]) -> Error {
    let conninfo = given(text, variables);
    let Err(error) = connect(&conninfo, "lifeboat_test").await else { panic!("{text}: connected") };
    assert!(!error.hints.is_empty(), "{error:?}");
    assert!(!format!("{error:?} {conninfo:?} {}", conninfo.shown()).contains(CANARY), "{error:?} {conninfo:?}");
    assert!(!format!("{:?}", conninfo.targets()).contains(CANARY));
    error
}

async fn value(server: &Server, sql: &str) -> String {
    server.client.query_one(sql, &[]).await.unwrap().get(0)
}

fn pass_file(folder: &Path, line: &str, mode: u32) -> String {
    let file = folder.join("pass");
    std::fs::write(&file, format!("# comment\n{line}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    file.display().to_string()
}

#[tokio::test]
async fn a_wrong_or_missing_password_is_said_without_the_password() {
    let app = NETWORK.tcp("postgres", "app");
    let error = refusal(&format!("{app} password=wrong-{CANARY}"), &[]).await;
    assert_eq!(error.message, format!("the password of role app is not accepted at {}", NETWORK.place()));
    let error = refusal(&app, &[]).await;
    assert!(error.message.contains("asks for the password of role app"), "{error:?}");
    let error = refusal(&NETWORK.tcp("postgres", "locked"), &[("PGPASSWORD", CANARY)]).await;
    assert!(error.message.contains("role locked cannot log in"), "{error:?}");
}

#[tokio::test]
async fn what_is_not_there_is_named_with_its_place() {
    let place = NETWORK.place();
    let error = refusal(&NETWORK.tcp("gone", "postgres"), &[]).await;
    assert_eq!(error.message, format!("there is no database gone at {place}"));
    let error = refusal(&NETWORK.tcp("postgres", "ghost"), &[]).await;
    assert!(error.message.contains("role ghost") && error.message.contains(&place), "{error:?}");
    let error = refusal(&NETWORK.tcp("closed", "plain"), &[]).await;
    assert_eq!(error.message, format!("role plain may not connect to database closed at {place}"));
    let error = refusal(&NETWORK.tcp("nobody", "postgres"), &[]).await;
    assert!(error.message.contains("does not let role postgres into database nobody"), "{error:?}");
    let port = free_port();
    let error = refusal(&format!("host=127.0.0.1 port={port} user=app"), &[]).await;
    assert_eq!((error.kind, error.message), (Kind::Target, format!("nothing answers at 127.0.0.1:{port}")));
    let error = refusal("host=nowhere.invalid sslmode=require user=app", &[]).await;
    assert_eq!(error.message, "the host nowhere.invalid is not known");
    let error = refusal(&format!("host={} port=1 user=app", NETWORK.cluster.folder().display()), &[]).await;
    assert!(error.message.starts_with("there is no PostgreSQL socket for port 1 in "), "{error:?}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let error = refusal(&format!("host=127.0.0.1 port={port} user=app connect_timeout=2"), &[]).await;
    assert_eq!(error.message, format!("127.0.0.1:{port} did not answer in time"));
}

#[test]
fn no_part_of_a_badly_written_password_is_repeated() {
    for text in [
        format!("host=db password=one {CANARY}"),
        format!("host=db password=one {CANARY}=1"),
        format!("host=db password='{CANARY}"),
        format!("postgresql://app:one/{CANARY}@db/shop"),
        format!("postgresql://app:1/{CANARY}@db/shop"),
        format!("postgresql://app:%{CANARY}@db/shop"),
        format!("host=db port={CANARY}"),
        format!("postgresql://app:one@db:{CANARY}/shop"),
    ] {
        let outcome = Conninfo::with_environment(&text, &[("HOME".to_owned(), "/nonexistent".to_owned())].into());
        let Err(error) = outcome else { panic!("{text}") };
        assert_eq!(error.kind, Kind::Operator);
        assert!(!format!("{error:?}").contains(CANARY), "{error:?}");
    }
    let odd = given(&format!("postgresql://app:a?b={CANARY}@db/shop"), &[]);
    assert_eq!(odd.shown(), "db:5432/shop as app");
    assert_eq!(odd.targets().unwrap()[0].password.as_ref().unwrap().reveal(), format!("a?b={CANARY}"));
}

#[tokio::test]
async fn a_password_file_is_used_unless_others_can_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let app = NETWORK.tcp("postgres", "app");
    let line = format!("127.0.0.1:{}:*:app:{CANARY}", NETWORK.port);
    let file = pass_file(folder.path(), &line, 0o644);
    let error = refusal(&format!("{app} passfile={file}"), &[]).await;
    assert!(error.hints.iter().any(|hint| hint.contains(&file) && hint.contains("0600")), "{error:?}");
    // Where no password is asked for, the file is still worth a word.
    let server = open(&format!("{} passfile={file}", NETWORK.tcp("postgres", "postgres")), &[]).await;
    assert!(server.warnings.iter().any(|warning| warning.contains(&file)), "{:?}", server.warnings);

    pass_file(folder.path(), &line, 0o600);
    assert_eq!(open(&format!("{app} passfile={file}"), &[]).await.facts.user, "app");
    std::fs::rename(&file, folder.path().join(".pgpass")).unwrap();
    let home = folder.path().display().to_string();
    let server = open(&app, &[("HOME", &home)]).await;
    assert_eq!((server.facts.user.as_str(), server.warnings.as_slice()), ("app", &[][..]));
    let error = refusal(&NETWORK.tcp("postgres", "locked"), &[("HOME", &home)]).await;
    assert!(error.message.contains("asks for the password of role locked"), "{error:?}");
}

#[tokio::test]
async fn a_service_and_the_environment_complete_a_connection_string_in_libpqs_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("services").display().to_string();
    let port = NETWORK.port.to_string();
    std::fs::write(
        &file,
        format!("[other]\nhost=nowhere\n\n# ours\n[shop]\nhost=127.0.0.1\nport={port}\ndbname=readonly\nuser=app\npassword={CANARY}\n"),
    )
    .unwrap();
    let variables = [("PGSERVICEFILE", file.as_str()), ("PGUSER", "ghost"), ("PGPORT", "1")];
    let server = open("service=shop dbname=postgres", &variables).await;
    assert_eq!((server.facts.database.as_str(), server.facts.user.as_str()), ("postgres", "app"));
    let error = Conninfo::with_environment("service=gone", &[("PGSERVICEFILE".to_owned(), file.clone())].into());
    assert_eq!(error.unwrap_err().message, "there is no service \"gone\"");

    let variables = [("PGHOST", "127.0.0.1"), ("PGPORT", &port), ("PGUSER", "app"), ("PGDATABASE", "postgres")];
    let server = open("", &[&variables[..], &[("PGPASSWORD", CANARY)]].concat()).await;
    assert_eq!(
        (server.facts.host.as_str(), server.facts.port, server.facts.user.as_str()),
        ("127.0.0.1", NETWORK.port, "app")
    );
    let url = format!("postgresql://postgres@127.0.0.1:{port}/encrypted?application_name=x");
    assert_eq!(open(&url, &variables).await.facts.database, "encrypted");
    let two = format!("host=127.0.0.1,127.0.0.1 port={},{port} dbname=postgres user=postgres", free_port());
    assert_eq!(open(&two, &[]).await.facts.port, NETWORK.port);
}

#[tokio::test]
async fn a_server_must_prove_the_name_it_was_reached_by() {
    let root = format!("sslrootcert={}", NETWORK.file("ca.crt"));
    let encrypted = "select ssl::text from pg_stat_ssl where pid = pg_backend_pid()";
    let server = open(&NETWORK.named(NAME, "encrypted", &format!("{root} sslmode=verify-full")), &[]).await;
    assert_eq!(value(&server, encrypted).await, "true");
    assert_eq!(server.warnings, [""; 0]);
    // It is what happens when nothing is said, too.
    open(&NETWORK.named(NAME, "encrypted", &root), &[]).await;

    let wrong = "other.lifeboat.test";
    for more in [root.clone(), format!("{root} sslmode=verify-full")] {
        let error = refusal(&NETWORK.named(wrong, "encrypted", &more), &[]).await;
        assert!(error.message.contains("another name than other.lifeboat.test"), "{error:?}");
    }
    let other = format!("sslrootcert={}", NETWORK.file("other.crt"));
    for more in [other.clone(), format!("{other} sslmode=verify-ca"), format!("{other} sslmode=require")] {
        let error = refusal(&NETWORK.named(NAME, "encrypted", &more), &[]).await;
        assert!(error.message.contains("an authority signed it that is not trusted here"), "{more}: {error:?}");
    }
    let error = refusal(&NETWORK.named(NAME, "encrypted", "sslrootcert=/nonexistent/ca.crt"), &[]).await;
    assert_eq!(error.message, "cannot read certificates from /nonexistent/ca.crt");
    open(&NETWORK.named(wrong, "encrypted", &format!("{root} sslmode=verify-ca")), &[]).await;
    let server = open(&NETWORK.named(wrong, "encrypted", "sslmode=require"), &[]).await;
    assert_eq!(value(&server, encrypted).await, "true");
}

#[tokio::test]
async fn a_server_that_demands_tls_or_a_certificate_gets_it_or_is_named() {
    let error = refusal(&NETWORK.named(NAME, "encrypted", "sslmode=disable"), &[]).await;
    assert!(error.hints.iter().any(|hint| hint.contains("sslmode")), "{error:?}");
    open(&NETWORK.named(NAME, "encrypted", "sslmode=allow"), &[]).await;
    let error = refusal(&NETWORK.named(NAME, "certified", "sslmode=require"), &[]).await;
    assert!(error.message.contains("postgres"), "{error:?}");
    assert!(error.detail.as_ref().unwrap().contains("valid client certificate"), "{error:?}");

    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &str, mode| {
        let to = folder.path().join(name);
        std::fs::copy(NETWORK.file(name), &to).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(mode)).unwrap();
        to.display().to_string()
    };
    let identity =
        format!("sslmode=require sslcert={} sslkey={}", copy("client.crt", 0o644), copy("client.key", 0o644));
    let error = refusal(&NETWORK.named(NAME, "certified", &identity), &[]).await;
    assert!(error.message.contains("can be read by others"), "{error:?}");
    copy("client.key", 0o600);
    assert_eq!(open(&NETWORK.named(NAME, "certified", &identity), &[]).await.facts.database, "certified");
}

#[tokio::test]
async fn a_running_query_is_cancelled_where_tls_is_demanded() {
    let root = format!("sslrootcert={}", NETWORK.file("ca.crt"));
    let server = open(&NETWORK.named(NAME, "encrypted", &root), &[]).await;
    let query = server.client.batch_execute("select pg_sleep(600)");
    let stop = async {
        let sleeping =
            "select count(*) from pg_stat_activity where datname = 'encrypted' and query like '%pg_sleep(600)%'
            and pid <> pg_backend_pid() and state = 'active'";
        let asleep = || wait(|| (psql(&NETWORK.socket("postgres"), sleeping) == "1").then_some(()));
        tokio::task::spawn_blocking(asleep).await.unwrap();
        server.client.cancel().await.unwrap();
    };
    let (outcome, ()) = tokio::join!(query, stop);
    assert_eq!(outcome.unwrap_err().code().unwrap().code(), "57014");
}

#[tokio::test]
async fn settings_stick_and_the_administrators_search_path_is_one_default_away() {
    psql(
        &NETWORK.socket("postgres"),
        "create role tuned login superuser;
         alter role tuned set search_path = app, public;
         alter role tuned set lock_timeout = '9min';
         alter role tuned set bytea_output = 'escape';
         alter role tuned set timezone = 'Asia/Kolkata'",
    );
    let text = NETWORK.socket("postgres").replace("user=postgres", "user=tuned");
    let server = open(&text, &[("PGOPTIONS", "-c row_security=on -c work_mem=5MB"), ("PGAPPNAME", "mine")]).await;
    for (name, wanted) in [
        ("search_path", "pg_catalog, pg_temp"),
        ("lock_timeout", "2s"),
        ("bytea_output", "hex"),
        ("row_security", "off"),
        ("work_mem", "5MB"),
        ("TimeZone", "UTC"),
        ("application_name", "lifeboat_test"),
        ("client_encoding", "UTF8"),
        ("client_connection_check_interval", "1s"),
    ] {
        assert_eq!(value(&server, &format!("select current_setting('{name}')")).await, wanted, "{name}");
    }
    assert_eq!(server.facts.server_zone, "Asia/Kolkata");
    server.client.batch_execute("begin; set local search_path to default").await.unwrap();
    assert_eq!(value(&server, "select current_setting('search_path')").await, "app, public");
    server.client.batch_execute("rollback").await.unwrap();
    assert_eq!(value(&server, "select current_setting('search_path')").await, "pg_catalog, pg_temp");

    let server = open(&NETWORK.tcp("postgres", "postgres"), &[]).await;
    for (name, wanted) in [("tcp_keepalives_idle", "3"), ("tcp_keepalives_interval", "1"), ("tcp_user_timeout", "6000")]
    {
        assert_eq!(value(&server, &format!("select current_setting('{name}')")).await, wanted, "{name}");
    }
    psql(&NETWORK.socket("postgres"), "alter role tuned set session_replication_role = replica");
    let error = refusal(&text, &[]).await;
    assert_eq!(error.kind, Kind::Refused);
    assert!(error.message.contains("foreign keys and triggers switched off"), "{error:?}");
}

#[tokio::test]
async fn a_server_fenced_off_by_default_transaction_read_only_is_recognised() {
    let server = open(&NETWORK.socket("readonly"), &[]).await;
    assert!(server.facts.read_only && !server.facts.in_recovery);
    let server = open(&NETWORK.socket("postgres"), &[]).await;
    assert!(!server.facts.read_only && !server.facts.in_recovery && server.facts.superuser);
    assert!(server.facts.version_number >= 130_000 && server.facts.encoding == "UTF8");
    assert!(server.facts.clock_skew_ms.abs() < 2000 && server.warnings.is_empty());
    assert!(!open(&NETWORK.tcp("postgres", "plain"), &[]).await.facts.can_create_schema);
}

/// A server process of a test, killed when the test is over however it ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command) -> Running {
    Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

#[tokio::test]
async fn a_hot_standby_is_recognised() {
    let folder = NETWORK.cluster.folder().join("standby");
    let mut copy = NETWORK.cluster.command("pg_basebackup").unwrap();
    copy.arg("-D").arg(&folder).args(["-R", "-X", "stream", "-c", "fast", "-p", &NETWORK.port.to_string()]);
    let output = copy.output().unwrap();
    assert!(output.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&output.stderr));
    let port = free_port();
    let mut command = NETWORK.cluster.command("postgres").unwrap();
    command.arg("-D").arg(&folder).args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c"]);
    command.arg(format!("port={port}")).args(["-c", "unix_socket_directories="]);
    let _standby = start(&mut command);
    wait(|| {
        let pid = std::fs::read_to_string(folder.join("postmaster.pid")).unwrap_or_default();
        pid.lines().nth(7).is_some_and(|line| line.trim() == "ready").then_some(())
    });
    let text = format!("host=127.0.0.1 port={port} dbname=postgres user=postgres");
    let server = open(&text, &[]).await;
    assert!(server.facts.in_recovery && server.facts.read_only);
    let primary = open(&NETWORK.socket("postgres"), &[]).await;
    assert_eq!(server.facts.system_identifier, primary.facts.system_identifier);
    let error = refusal(&format!("{text} target_session_attrs=read-write"), &[]).await;
    assert!(error.message.contains("target_session_attrs"), "{error:?}");
    let both = format!("host=127.0.0.1,127.0.0.1 port={port},{} dbname=postgres user=postgres", NETWORK.port);
    assert_eq!(open(&format!("{both} target_session_attrs=primary"), &[]).await.facts.port, NETWORK.port);
}

/// `PgBouncer`, as an ordinary user, in front of the server. `more` are settings of it.
fn pooler(name: &str, more: &str) -> (Running, u16) {
    let program =
        ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let program = program.expect("pgbouncer is not installed; make test installs it");
    let (port, settings) = (free_port(), NETWORK.folder.path().join(format!("{name}.ini")));
    let to = NETWORK.socket("postgres").replace("dbname=postgres", "");
    std::fs::write(
        &settings,
        format!(
            "[databases]\n* = {to}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = 3\n{more}\n"
        ),
    )
    .unwrap();
    let running = start(NETWORK.cluster.command(&program.display().to_string()).unwrap().arg(&settings));
    wait(|| std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    (running, port)
}

#[tokio::test]
async fn fm_15_a_transaction_pooler_in_the_path_is_refused_with_the_reason() {
    for (name, more) in [
        ("strict", ""),
        ("lenient", "ignore_startup_parameters = options,extra_float_digits"),
        ("tuned", "ignore_startup_parameters = options,extra_float_digits\nserver_reset_query_always = 1"),
    ] {
        let (_running, port) = pooler(name, more);
        let error = refusal(&format!("host=127.0.0.1 port={port} dbname=postgres user=postgres"), &[]).await;
        assert_eq!(error.kind, Kind::Refused, "{error:?}");
        assert!(error.message.contains(&format!("127.0.0.1:{port} is not the server itself")), "{error:?}");
        assert!(error.hints[0].contains("directly"), "{error:?}");
    }
}
