//! A server's errors in plain words: what failed, why, what to do; the server's own words are kept for the details.

use std::error::Error as _;
use std::io;

use rustls::CertificateError;
use tokio_postgres::error::{DbError, SqlState};

use super::conninfo::{Host, Target};
use crate::error::{Error, Kind};

/// Maps the error of a query. `doing` says what was under way, as in `reading the catalog`.
#[expect(clippy::needless_pass_by_value, reason = "what remains of an error in every map_err")]
pub fn server_error(error: tokio_postgres::Error, doing: &str) -> Error {
    let Some(server) = error.as_db_error() else {
        if error.is_closed() || io_error(&error).is_some() {
            return Error::target(format!("{doing} failed: the connection to the server was lost"))
                .hint("Check that the server and the network are up, then try again.")
                .detail(chain(&error));
        }
        return Error::target(format!("{doing} failed: the server's answer was not understood"))
            .hint("Check that nothing between here and the server changes what it says.")
            .detail(chain(&error));
    };
    let detail = words(server);
    let code = server.code();
    if *code == SqlState::QUERY_CANCELED && server.message().contains("user request") {
        return Error { kind: Kind::Cancelled, message: format!("{doing} was cancelled"), ..Error::cancelled() }
            .detail(detail);
    }
    let (why, hint) = plain(server);
    Error::target(format!("{doing} failed: {why}")).hint(hint).detail(detail)
}

/// What the SQLSTATE means here, and what to do about it.
fn plain(server: &DbError) -> (String, &'static str) {
    let code = server.code();
    let said = server.message().to_owned();
    let fixed = |why: &str, hint| (why.to_owned(), hint);
    match *code {
        SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN => fixed(
            "the server ended the connection: it is shutting down, or somebody ended this session",
            "Wait until the server is back, then try again.",
        ),
        SqlState::CANNOT_CONNECT_NOW => (said, "Wait until the server takes connections, then try again."),
        SqlState::DISK_FULL => fixed(
            "the server's disk is full",
            "Make room on the server, or put less beside production, then try again.",
        ),
        SqlState::OUT_OF_MEMORY => fixed("the server is out of memory", "Try again when the server has less to do."),
        SqlState::TOO_MANY_CONNECTIONS => fixed(
            "the server has no connection left",
            "End connections that are not needed, or raise max_connections, then try again.",
        ),
        SqlState::LOCK_NOT_AVAILABLE => fixed(
            "somebody else holds a lock on it, and waiting longer would make the application wait behind us",
            "Find the holder with pg_blocking_pids or pg_locks, let it finish, then try again.",
        ),
        SqlState::T_R_DEADLOCK_DETECTED => {
            fixed("it and another transaction waited for each other, and the server chose to end ours", "Try again.")
        }
        SqlState::T_R_SERIALIZATION_FAILURE => fixed("another transaction changed the same rows", "Try again."),
        SqlState::QUERY_CANCELED => (said, "Try again when the server has less to do."),
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => {
            fixed("our transaction stood still for too long and the server ended it", "Try again.")
        }
        SqlState::INSUFFICIENT_PRIVILEGE => (said, "Have the owner grant the right, or connect as a role that has it."),
        SqlState::READ_ONLY_SQL_TRANSACTION => fixed(
            "the server is read-only: a standby, or fenced off on purpose",
            "Connect to the primary, or find out why it was made read-only.",
        ),
        SqlState::FOREIGN_KEY_VIOLATION => {
            (constraint("the foreign key", server), "Bring the referenced rows back too.")
        }
        SqlState::UNIQUE_VIOLATION => (
            constraint("the unique constraint", server),
            "Another row holds these values now; look at it before going on.",
        ),
        SqlState::CHECK_VIOLATION => {
            (constraint("the check", server), "The rule may be newer than the backup; correct the rows first.")
        }
        SqlState::NOT_NULL_VIOLATION => {
            let column = server.column().unwrap_or_default();
            (format!("column \"{column}\"{} takes no NULL", of(server)), "Choose rows that have a value there.")
        }
        SqlState::EXCLUSION_VIOLATION => {
            (constraint("the exclusion constraint", server), "Another row excludes these values now.")
        }
        _ => (said, "The details hold what the server said."),
    }
}

fn constraint(what: &str, server: &DbError) -> String {
    format!("{what} \"{}\"{} forbids it", server.constraint().unwrap_or_default(), of(server))
}

fn of(server: &DbError) -> String {
    match (server.schema(), server.table()) {
        (Some(schema), Some(table)) => format!(" of {schema}.{table}"),
        _ => String::new(),
    }
}

/// Everything that the server said, as psql prints it with VERBOSITY verbose, without the places in its source.
fn words(server: &DbError) -> String {
    let mut words = format!("{}:  {}", server.severity(), server.message());
    let more = [("DETAIL", server.detail()), ("HINT", server.hint()), ("CONTEXT", server.where_())];
    for (label, text) in more {
        if let Some(text) = text {
            words.push_str(&format!("\n{label}:  {text}"));
        }
    }
    words.push_str(&format!("\nSQLSTATE:  {}", server.code().code()));
    words
}

/// Maps the error of a connection attempt.
pub(super) fn connect_error(error: &tokio_postgres::Error, target: &Target) -> Error {
    let place = format!("{}:{}", target.host.shown(), target.port);
    let mapped = if let Some(server) = error.as_db_error() {
        login_error(server, target, &place)
    } else if let Some(tls) = tls_error(error) {
        certificate_error(tls, target, &place)
    } else if let Some(io) = io_error(error) {
        network_error(io, target, &place)
    } else {
        other_error(error, target, &place)
    };
    let mapped = mapped.detail(error.as_db_error().map_or_else(|| chain(error), words));
    match &target.passfile_refused {
        Some(why) => mapped.hint(format!("A password may be missing: {why}.")),
        None => mapped,
    }
}

fn login_error(server: &DbError, target: &Target, place: &str) -> Error {
    let Target { user, database, .. } = target;
    let said = server.message();
    match *server.code() {
        SqlState::PROTOCOL_VIOLATION if said.contains("startup parameter") => super::pooler(place),
        SqlState::INVALID_PASSWORD => {
            Error::operator(format!("the password of role {user} is not accepted at {place}"))
                .hint("Check the password: ~/.pgpass, PGPASSWORD, or the service file.")
        }
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION if said.contains("pg_hba.conf") => Error::operator(format!(
            "the server at {place} does not let role {user} into database {database} from here"
        ))
        .hint("Have a line added to its pg_hba.conf, or connect from a machine that it lists.")
        .hint("If the line demands or forbids TLS, set sslmode to match."),
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            Error::operator(format!("role {user} cannot log in at {place}")).hint("Check the user name.")
        }
        SqlState::INVALID_CATALOG_NAME => Error::operator(format!("there is no database {database} at {place}"))
            .hint("List the databases with psql -l, then correct dbname."),
        SqlState::INSUFFICIENT_PRIVILEGE => {
            Error::operator(format!("role {user} may not connect to database {database} at {place}"))
                .hint(format!("Have the owner run GRANT CONNECT ON DATABASE, or connect as another role than {user}."))
        }
        _ => {
            let (why, hint) = plain(server);
            Error::target(format!("cannot connect to {place}: {why}")).hint(hint)
        }
    }
}

fn certificate_error(tls: &rustls::Error, target: &Target, place: &str) -> Error {
    let host = target.host.shown();
    let untrusted = |why: &str| Error::operator(format!("the certificate of {place} is not accepted: {why}"));
    match tls {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer => untrusted("an authority signed it that is not trusted here")
                .hint("Give the authority's certificate: sslrootcert=FILE, or ~/.postgresql/root.crt."),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                untrusted(&format!("it was made out to another name than {host}"))
                    .hint("Connect by a name that the certificate carries (a subjectAltName), or have it made anew.")
                    .hint("If the name is right, somebody else may be answering: find out before you go on.")
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                untrusted("it has expired").hint("Have it renewed; check that this machine's clock is right.")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                untrusted("it is not valid yet").hint("Check that this machine's clock is right.")
            }
            _ => untrusted("it does not hold up").hint(
                "A self-signed certificate must be made with basicConstraints=CA:FALSE, and be given as sslrootcert.",
            ),
        },
        rustls::Error::AlertReceived(_) => Error::operator(format!("the server at {place} ended the TLS handshake"))
            .hint("If it asks for a client certificate, give sslcert and sslkey."),
        _ => Error::target(format!("the TLS handshake with {place} failed"))
            .hint("Check that a PostgreSQL server with TLS 1.2 or newer answers there."),
    }
}

fn network_error(io: &io::Error, target: &Target, place: &str) -> Error {
    let said = io.to_string();
    match (&target.host, io.kind()) {
        (Host::Socket(folder), io::ErrorKind::NotFound) => {
            Error::target(format!("there is no PostgreSQL socket for port {} in {}", target.port, folder.display()))
                .hint("Start the server, or give its host and port: host=NAME port=NUMBER.")
        }
        (Host::Socket(folder), io::ErrorKind::PermissionDenied) => {
            Error::operator(format!("this user may not open the PostgreSQL socket in {}", folder.display()))
                .hint("Run as a user who may, or connect over TCP: host=localhost.")
        }
        (_, io::ErrorKind::ConnectionRefused) => Error::target(format!("nothing answers at {place}"))
            .hint("Check host and port, and that the server is running and listens there."),
        (_, io::ErrorKind::TimedOut) => timed_out(place),
        (host, _) if said.contains("lookup address") => {
            Error::operator(format!("the host {} is not known", host.shown())).hint("Check the name, and DNS.")
        }
        (_, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            Error::target(format!("the connection to {place} was closed before it was made"))
                .hint("Check that a PostgreSQL server answers there, and look into its log.")
        }
        (_, io::ErrorKind::PermissionDenied) if said.contains("writes") || said.contains("read only") => {
            Error::target(format!("the server at {place} does not fit target_session_attrs: {said}"))
                .hint("Name the primary, or all servers of the cluster.")
        }
        _ => Error::target(format!("cannot reach {place}")).hint("Check host, port and the network in between."),
    }
}

fn other_error(error: &tokio_postgres::Error, target: &Target, place: &str) -> Error {
    let said = chain(error);
    if said.contains("password missing") {
        Error::operator(format!(
            "the server at {place} asks for the password of role {}, and none is given",
            target.user
        ))
        .hint("Put it into ~/.pgpass (mode 0600), or name a passfile; never into a command line.")
    } else if said.contains("does not support TLS") {
        Error::operator(format!("the server at {place} offers no TLS, and this connection demands it"))
            .hint("Switch on ssl on the server, or reach it through a tunnel.")
            .hint("If the network in between is yours, say so with sslmode=disable.")
    } else {
        Error::target(format!("cannot log in at {place}"))
            .hint("Check that a PostgreSQL server answers there, and how it wants its users to log in.")
    }
}

pub(super) fn timed_out(place: &str) -> Error {
    Error::target(format!("{place} did not answer in time"))
        .hint("Check host, port and firewalls, or allow more time: connect_timeout=30.")
}

/// Every cause, outermost first.
fn chain(error: &tokio_postgres::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !said.contains(&text) {
            said.push_str(&format!(": {text}"));
        }
        cause = inner.source();
    }
    said
}

fn io_error(error: &tokio_postgres::Error) -> Option<&io::Error> {
    error.source()?.downcast_ref()
}

fn tls_error(error: &tokio_postgres::Error) -> Option<&rustls::Error> {
    io_error(error)?.get_ref()?.downcast_ref()
}
