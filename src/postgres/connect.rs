//! Connections: the same settings on every one, in one constructor, and a probe that they stuck.
use crate::error::{Error, Result};
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::str::FromStr as _;
use tokio_postgres::{Client, Config, NoTls};

#[derive(Clone)]
pub struct Conninfo(Config);
impl Conninfo {
    pub fn parse(text: &str) -> Result<Self> {
        Config::from_str(text).map(Self).map_err(|error| {
            Error::operator("the connection string cannot be read")
                .detail(error)
                .hint("Write host=... dbname=... user=..., or a postgres:// URL.")
        })
    }
    pub fn from_environment() -> Result<Self> {
        let mut text = String::new();
        for (variable, keyword) in
            [("PGHOST", "host"), ("PGPORT", "port"), ("PGDATABASE", "dbname"), ("PGUSER", "user")]
        {
            if let Ok(value) = std::env::var(variable) {
                text.push_str(&format!("{keyword}='{value}' "));
            }
        }
        Self::parse(&text)
    }
}
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    pub host: String,
    pub port: String,
    pub database: String,
    pub user: String,
    pub version: String,
    pub version_number: i32,
    pub system_identifier: String,
    pub in_recovery: bool,
    pub read_only: bool,
    pub superuser: bool,
    pub track_commit_timestamp: bool,
    pub can_create_schema: bool,
    pub now: DateTime<Utc>,
}
pub struct Server {
    pub client: Client,
    pub facts: Facts,
    pub warnings: Vec<String>,
}
pub async fn connect(conninfo: &Conninfo, application_name: &str) -> Result<Server> {
    let mut config = conninfo.0.clone();
    config.application_name(application_name);
    let (client, connection) = config.connect(NoTls).await.map_err(|error| server_error(error, "connecting"))?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    client.batch_execute("set search_path = pg_catalog, pg_temp; set lock_timeout = '2s'; set idle_in_transaction_session_timeout = '60s'; set row_security = off; set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; set extra_float_digits = 1; set bytea_output = 'hex'; set standard_conforming_strings = on").await.map_err(|error| server_error(error, "setting up the session"))?;
    let row = client.query_one("select coalesce(current_setting('unix_socket_directories'), '') as host, current_setting('port') as port, current_database()::text as database, current_user::text as user, current_setting('server_version') as version, current_setting('server_version_num')::int as number, system_identifier::text as identifier, pg_is_in_recovery() as recovery, current_setting('transaction_read_only') = 'on' as read_only, (select rolsuper from pg_roles where rolname = current_user) as superuser, current_setting('track_commit_timestamp') = 'on' as track, has_database_privilege(current_database(), 'CREATE') as can_create, now() as now from pg_control_system()", &[]).await.map_err(|error| server_error(error, "asking the server what it is"))?;
    let facts = Facts {
        host: row.get("host"),
        port: row.get("port"),
        database: row.get("database"),
        user: row.get("user"),
        version: row.get("version"),
        version_number: row.get("number"),
        system_identifier: row.get("identifier"),
        in_recovery: row.get("recovery"),
        read_only: row.get("read_only"),
        superuser: row.get("superuser"),
        track_commit_timestamp: row.get("track"),
        can_create_schema: row.get("can_create"),
        now: row.get("now"),
    };
    Ok(Server { client, facts, warnings: Vec::new() })
}
pub fn server_error(error: tokio_postgres::Error, doing: &str) -> Error {
    match error.as_db_error() {
        Some(server) => Error::target(format!("{doing}: {}", server.message()))
            .detail(server)
            .hint("The server's words are in the details."),
        None => Error::target(format!("{doing}: the connection failed"))
            .detail(&error)
            .hint("Check that the server is up and reachable."),
    }
}
