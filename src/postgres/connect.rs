//! Connections to a live server: the same settings on every one, made in one place, and a probe that they stuck.
//!
//! - Settings travel in the startup packet. A transaction pooler either refuses them there or loses them; we find out
//!   before anything is set in a session that belongs to somebody else.
//! - Whether the server may be written to is left as its administrator has set it, and reported ([`Facts::read_only`]).

mod conninfo;
mod failure;
mod passfile;
mod tls;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt as _;
use serde::Serialize;
use tokio::time::timeout;
use tokio_postgres::config::{ChannelBinding, SslNegotiation, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, SimpleQueryMessage, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

pub use conninfo::{Conninfo, Host, Target};
pub use failure::server_error;

use crate::error::{Error, Result};

/// `xid8` came with it, and a recovery needs transaction numbers that do not wrap.
const OLDEST: i32 = 130_000;
/// A server may say more than anybody reads.
const NOTICES: usize = 200;
/// How long the wish to stop may take to arrive.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);
/// Beyond this, times of this machine and of the server cannot be compared by eye.
const SKEW: TimeDelta = TimeDelta::seconds(2);

/// Name, value as it is set, value as the server shows it.
const SETTINGS: &[(&str, &str, &str)] = &[
    // Whoever waits for a lock makes all others wait behind him.
    ("lock_timeout", "2s", "2s"),
    ("statement_timeout", "0", "0"),
    ("idle_in_transaction_session_timeout", "60s", "1min"),
    // Rows that a policy hides must be an error, not a difference.
    ("row_security", "off", "off"),
    // How values turn into text and back.
    ("DateStyle", "ISO,YMD", "ISO, YMD"),
    ("IntervalStyle", "postgres", "postgres"),
    ("extra_float_digits", "1", "1"),
    ("bytea_output", "hex", "hex"),
    ("xmloption", "content", "content"),
    ("array_nulls", "on", "on"),
    // What SQL means.
    ("standard_conforming_strings", "on", "on"),
    ("transform_null_equals", "off", "off"),
    ("quote_all_identifiers", "off", "off"),
    ("default_transaction_isolation", "read\\ committed", "read committed"),
    ("default_transaction_deferrable", "off", "off"),
];

/// Everything that we write is qualified; what is not must not be found in a schema that others can write to. Set by a
/// statement, so that `DEFAULT` remains what the administrator chose: triggers of the application expect it.
const SEARCH_PATH: &str = "SET search_path = pg_catalog, pg_temp";

/// Set after the probe; servers that do not know one go without. A connection that was cut must give its locks back within
/// ten seconds, also while the server is busy for us: six until silence counts as a cut, one until a busy server looks.
const AFTERWARDS: &[&str] = &[
    "SET tcp_keepalives_idle = 3",
    "SET tcp_keepalives_interval = 1",
    "SET tcp_keepalives_count = 3",
    "SET tcp_user_timeout = '6s'",
    "SET client_connection_check_interval = '1s'",
    "SET idle_session_timeout = 0",
    "SET transaction_timeout = 0",
];

/// A connection that is ready for work.
pub struct Server {
    /// Settings are made and proven to stay.
    pub client: Session,
    /// As of when it was connected.
    pub facts: Facts,
    /// What the operator should know before going on, as lowercase fragments.
    pub warnings: Vec<String>,
    /// What the server said on the way, newest last; the oldest are dropped.
    pub notices: Arc<Mutex<VecDeque<String>>>,
}

/// What a server says about itself.
#[expect(clippy::struct_excessive_bools, reason = "each is an answer of the server's own")]
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Facts {
    /// The name by which it was reached, or the folder of its socket.
    pub host: String,
    /// The port that was asked for, also the one in a socket's name.
    pub port: u16,
    /// By the server's own word.
    pub database: String,
    /// `current_user` after the login.
    pub user: String,
    /// `15.14 (Debian 15.14-0+deb12u1)`
    pub version: String,
    /// `150014`
    pub version_number: i32,
    /// The same for a server and its standbys, and for a copy of its files. Empty where we may not ask.
    pub system_identifier: String,
    /// Its number in `pg_database`; a database that was dropped and made again has another.
    pub database_oid: u32,
    /// A standby, or a server that is being restored: it cannot be written to.
    pub in_recovery: bool,
    /// Transactions are read-only unless they ask otherwise: a standby, or fenced off on purpose.
    pub read_only: bool,
    /// Our role is one.
    pub superuser: bool,
    /// Whether the server knows when a transaction was committed.
    pub track_commit_timestamp: bool,
    /// Our role has CREATE on the database, so that rows can be staged.
    pub can_create_schema: bool,
    /// Of the database, as PostgreSQL names it: `UTF8`. `SQL_ASCII` tells nothing.
    pub encoding: String,
    /// The time zone that sessions of this role get.
    pub server_zone: String,
    /// The server's clock when we asked.
    pub now: DateTime<Utc>,
    /// The server's clock minus ours; half a round trip of error.
    pub clock_skew_ms: i64,
    /// As `pg_database_size` counts.
    pub database_size_bytes: i64,
    /// Sessions in this database, ours among them.
    pub connections: i64,
}

/// A client that can be told to stop over the same kind of connection as its own: a server that demands TLS demands it of
/// the wish to cancel too.
pub struct Session {
    client: Client,
    connector: MakeRustlsConnect,
}

impl Session {
    /// Asks the server to stop what it is doing for this session. The query itself tells whether it did.
    pub async fn cancel(&self) -> Result<()> {
        let token = self.client.cancel_token();
        match timeout(CANCEL_TIMEOUT, token.cancel_query(self.connector.clone())).await {
            Ok(asked) => asked.map_err(|error| server_error(error, "asking the server to stop")),
            Err(_) => Err(Error::target("the server did not take the wish to stop in time")
                .hint("End the session on the server with pg_terminate_backend, or wait until it is done.")),
        }
    }
}

impl std::ops::Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// What a recovery's sessions call themselves; without an id, what those of a command do that only looks.
pub fn session_name(recovery: &str) -> String {
    if recovery.is_empty() { "lifeboat".to_owned() } else { format!("lifeboat {recovery}") }
}

/// Connects to the first server that answers, sets the session up and proves that the settings stuck.
/// `application_name` is the recovery's id, so that an administrator can tell whose session it is.
pub async fn connect(conninfo: &Conninfo, application_name: &str) -> Result<Server> {
    let mut failure = None;
    for target in conninfo.targets()? {
        match reach(conninfo, &target, application_name).await {
            Ok((client, opened)) => {
                let settling = settle(client, opened, &target, application_name);
                // A server that lets us in and then says nothing is no better than one that does not answer.
                let Some(limit) = conninfo.connect_timeout()? else { return settling.await };
                let place = format!("{}:{}", target.host.shown(), target.port);
                return timeout(limit, settling).await.unwrap_or_else(|_| Err(failure::timed_out(&place)));
            }
            Err(Failed { error, next_host: true }) => failure = failure.or(Some(error)),
            Err(Failed { error, next_host: false }) => return Err(error),
        }
    }
    Err(failure.unwrap_or_else(|| Error::bug("no server was named")))
}

struct Opened {
    connector: MakeRustlsConnect,
    notices: Arc<Mutex<VecDeque<String>>>,
    warnings: Vec<String>,
}

struct Failed {
    error: Error,
    /// Another server of the list may do better. After a rejected login none is asked, as in libpq.
    next_host: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, next_host: false }
    }
}

async fn reach(conninfo: &Conninfo, target: &Target, application_name: &str) -> Result<(Client, Opened), Failed> {
    let tls::Protection { attempts, connector, warning } = tls::protection(conninfo, &target.host)?;
    let limit = conninfo.connect_timeout()?;
    let mut config = config(conninfo, target, application_name)?;
    let mut outcome = Err(Error::bug("no way to connect was tried").into());
    for mode in attempts {
        config.ssl_mode(*mode);
        let attempt = config.connect(connector.clone());
        let answer = match limit {
            Some(limit) => timeout(limit, attempt).await.map_err(|_| {
                let place = format!("{}:{}", target.host.shown(), target.port);
                Failed { error: failure::timed_out(&place), next_host: true }
            })?,
            None => attempt.await,
        };
        match answer {
            Ok((client, connection)) => {
                let notices = Arc::default();
                tokio::spawn(listen(connection, Arc::clone(&notices)));
                return Ok((client, Opened { connector, notices, warnings: warning.into_iter().collect() }));
            }
            Err(error) => {
                let (other_mode, next_host) = (worth_another_mode(&error), worth_another_host(&error));
                outcome = Err(Failed { error: failure::connect_error(&error, target), next_host });
                if !other_mode {
                    break;
                }
            }
        }
    }
    outcome
}

/// The handshake failed, or `pg_hba.conf` wants it with or without TLS.
fn worth_another_mode(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        Some(code) => *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        None => error.to_string().contains("TLS"),
    }
}

fn worth_another_host(error: &tokio_postgres::Error) -> bool {
    error.code().is_none_or(|code| *code == SqlState::CANNOT_CONNECT_NOW || *code == SqlState::TOO_MANY_CONNECTIONS)
}

fn config(conninfo: &Conninfo, target: &Target, application_name: &str) -> Result<Config> {
    let mut config = Config::new();
    config.user(&target.user).dbname(&target.database).port(target.port).application_name(application_name);
    match &target.host {
        Host::Socket(folder) => config.host_path(folder),
        Host::Tcp { name, address } => {
            if let Some(address) = address {
                config.hostaddr(*address);
            }
            config.host(name)
        }
    };
    if let Some(password) = &target.password {
        config.password(password.reveal());
    }
    config.keepalives_idle(Duration::from_secs(5)).keepalives_interval(Duration::from_secs(2)).keepalives_retries(2);
    config.tcp_user_timeout(Duration::from_secs(8));
    // The last one wins, so that the operator's own options cannot undo ours.
    let mut options = conninfo.value("options").unwrap_or_default().to_owned();
    for (name, value, _) in SETTINGS {
        options.push_str(&format!(" -c {name}={value}"));
    }
    config.options(options.trim_start());
    let unknown = |keyword: &str| Error::operator(format!("{keyword} of the database connection is not known"));
    match conninfo.value("target_session_attrs") {
        None | Some("any") => {}
        Some("read-write" | "primary") => {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        Some(_) => {
            return Err(
                unknown("target_session_attrs").hint("Use any, read-write or primary: a recovery has to write.")
            );
        }
    }
    match conninfo.value("channel_binding") {
        None | Some("prefer") => {}
        Some("disable") => {
            config.channel_binding(ChannelBinding::Disable);
        }
        Some("require") => {
            config.channel_binding(ChannelBinding::Require);
        }
        Some(_) => return Err(unknown("channel_binding").hint("Use disable, prefer or require.")),
    }
    match conninfo.value("sslnegotiation") {
        None | Some("postgres") => {}
        Some("direct") => {
            config.ssl_negotiation(SslNegotiation::Direct);
        }
        Some(_) => return Err(unknown("sslnegotiation").hint("Use postgres or direct.")),
    }
    Ok(config)
}

/// Moves bytes until the client is dropped or the server goes away, and keeps what the server says unasked.
async fn listen<S>(mut connection: tokio_postgres::Connection<Socket, S>, notices: Arc<Mutex<VecDeque<String>>>)
where
    S: tokio_postgres::tls::TlsStream + Unpin,
{
    let mut messages = futures_util::stream::poll_fn(move |context| connection.poll_message(context));
    while let Some(message) = messages.next().await {
        // After an error every further poll gives it again: the session is over.
        let over = message.is_err();
        let said = match message {
            Ok(AsyncMessage::Notice(notice)) => format!("{}: {}", notice.severity(), notice.message()),
            Ok(_) => continue,
            Err(error) => match error.as_db_error() {
                Some(server) => format!("{}: {}", server.severity(), server.message()),
                None => error.to_string(),
            },
        };
        let mut notices = notices.lock().unwrap_or_else(PoisonError::into_inner);
        if notices.len() == NOTICES {
            notices.pop_front();
        }
        notices.push_back(said);
        if over {
            break;
        }
    }
}

/// Proves that this session is ours alone, then learns what the server is.
async fn settle(client: Client, opened: Opened, target: &Target, application_name: &str) -> Result<Server> {
    let place = format!("{}:{}", target.host.shown(), target.port);
    let first = probe(&client).await?;
    let number: i32 = first.version.parse().unwrap_or_default();
    if number < OLDEST {
        return Err(Error::refused(format!("the server at {place} is older than PostgreSQL 13"))
            .hint("Restore into a newer server, and copy the rows back by hand.")
            .detail(format!("server_version_num is {}", first.version)));
    }
    check(&first, application_name, &place)?;
    for _ in 0..2 {
        if probe(&client).await? != first {
            return Err(pooler(&place).detail("the session changed between two statements"));
        }
    }
    let server_zone = first.zone;
    let failed = |error| server_error(error, "setting up the session");
    client.batch_execute("SET TimeZone = 'UTC'").await.map_err(failed)?;
    client.batch_execute(SEARCH_PATH).await.map_err(failed)?;
    for setting in AFTERWARDS {
        match client.batch_execute(setting).await {
            Err(error) if error.as_db_error().is_none() => return Err(failed(error)),
            // Older servers do not know all of them, and some systems cannot do all of them.
            _ => {}
        }
    }
    let Opened { connector, notices, mut warnings } = opened;
    let facts = facts(&client, target, server_zone).await?;
    if let Some(why) = &target.passfile_refused {
        warnings.push(why.clone());
    }
    if TimeDelta::milliseconds(facts.clock_skew_ms.abs()) > SKEW {
        let (seconds, side) =
            (facts.clock_skew_ms.abs() / 1000, if facts.clock_skew_ms > 0 { "ahead of" } else { "behind" });
        warnings.push(format!("the server's clock is {seconds} s {side} this machine's"));
    }
    if facts.encoding == "SQL_ASCII" {
        warnings.push("the database does not say how its text is encoded (SQL_ASCII)".into());
    }
    Ok(Server { client: Session { client, connector }, facts, warnings, notices })
}

/// What identifies a session.
#[derive(PartialEq, Eq)]
struct Probe {
    process: String,
    version: String,
    zone: String,
    application_name: String,
    replication_role: String,
    /// In the order of [`SETTINGS`].
    settings: Vec<String>,
}

/// One round trip without a prepared statement: behind a pooler that would fail for a reason of its own.
async fn probe(client: &Client) -> Result<Probe> {
    let fixed = ["server_version_num", "TimeZone", "application_name", "session_replication_role"];
    let names = fixed.into_iter().chain(SETTINGS.iter().map(|(name, _, _)| *name));
    let columns: Vec<_> = names.map(|name| format!("pg_catalog.current_setting('{name}')")).collect();
    let sql = format!("SELECT pg_catalog.pg_backend_pid(), {}", columns.join(", "));
    let answer = client.simple_query(&sql).await.map_err(|error| server_error(error, "probing the session"))?;
    let row =
        answer.iter().find_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None });
    let row = row.ok_or_else(|| Error::bug("the probe of the session gave no row"))?;
    let mut values = (0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned());
    let mut next = || values.next().unwrap_or_default();
    Ok(Probe {
        process: next(),
        version: next(),
        zone: next(),
        application_name: next(),
        replication_role: next(),
        settings: values.collect(),
    })
}

fn check(probe: &Probe, application_name: &str, place: &str) -> Result<()> {
    let mut wrong = Vec::new();
    for ((name, _, wanted), shown) in SETTINGS.iter().zip(&probe.settings) {
        if shown != wanted {
            wrong.push(format!("{name} is \"{shown}\" instead of \"{wanted}\""));
        }
    }
    // The server cuts a long name.
    if probe.application_name.is_empty() || !application_name.starts_with(&probe.application_name) {
        wrong.push(format!("application_name is \"{}\"", probe.application_name));
    }
    if !wrong.is_empty() {
        return Err(pooler(place).detail(wrong.join("\n")));
    }
    if probe.replication_role != "origin" {
        return Err(Error::refused("this role's sessions run with foreign keys and triggers switched off")
            .detail(format!("session_replication_role is {}", probe.replication_role))
            .hint("Connect as another role, or run ALTER ROLE ... RESET session_replication_role."));
    }
    Ok(())
}

/// Refuses a connection whose settings do not stay.
fn pooler(place: &str) -> Error {
    Error::refused(format!("what answers at {place} is not the server itself but a connection pooler"))
        .hint("Connect to the PostgreSQL server directly; behind PgBouncer that is another host or port, mostly 5432.")
        .hint("Behind a pooler, settings, locks and transactions could end up in somebody else's session.")
}

const FACTS: &str = "
SELECT current_database()::text, current_user::text, current_setting('server_version'),
       current_setting('server_version_num')::int, d.oid, pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
       coalesce((SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user), false),
       current_setting('track_commit_timestamp') = 'on', has_database_privilege(d.oid, 'CREATE'),
       pg_encoding_to_char(d.encoding)::text, clock_timestamp(), pg_database_size(d.oid),
       (SELECT count(*) FROM pg_stat_activity a WHERE a.datid = d.oid)
FROM pg_database d WHERE d.datname = current_database()";

async fn facts(client: &Client, target: &Target, server_zone: String) -> Result<Facts> {
    let failed = |error| server_error(error, "asking the server what it is");
    // Some hosted servers keep it to themselves.
    let identifier = client.query_opt("SELECT system_identifier::text FROM pg_control_system()", &[]).await;
    let system_identifier = match identifier {
        Ok(row) => row.map(|row| row.get(0)).unwrap_or_default(),
        Err(error) if error.as_db_error().is_some() => String::new(),
        Err(error) => return Err(failed(error)),
    };
    let statement = client.prepare(FACTS).await.map_err(failed)?;
    let before = Utc::now();
    let row = client.query_one(&statement, &[]).await.map_err(failed)?;
    let now: DateTime<Utc> = row.get(11);
    let ours = before + (Utc::now() - before) / 2;
    Ok(Facts {
        host: target.host.shown(),
        port: target.port,
        database: row.get(0),
        user: row.get(1),
        version: row.get(2),
        version_number: row.get(3),
        system_identifier,
        database_oid: row.get(4),
        in_recovery: row.get(5),
        read_only: row.get(6),
        superuser: row.get(7),
        track_commit_timestamp: row.get(8),
        can_create_schema: row.get(9),
        encoding: row.get(10),
        server_zone,
        now,
        clock_skew_ms: (now - ours).num_milliseconds(),
        database_size_bytes: row.get(12),
        connections: row.get(13),
    })
}
