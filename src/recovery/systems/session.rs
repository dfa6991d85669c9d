//! The connection to production that serves a recovery, and what is staged through it.

use crate::config::System;
use crate::error::{Error, Kind, Result};
use crate::postgres::archive::Table;
use crate::postgres::claim;
use crate::postgres::connect::{self, Conninfo, Server, session_name};
use crate::postgres::diff::{self, KeyChoice};
use crate::postgres::merge::{self, Applied};
use crate::postgres::name::Name;
use crate::postgres::origin::Origin;
use crate::postgres::schema;
use crate::postgres::stage::{self, Scratch};
use crate::progress::{Progress, Unit};
use crate::recovery::record::NamedKey;

/// The connection, and what is staged through it.
#[derive(Default)]
pub(super) struct Session {
    pub(super) server: Option<Server>,
    /// System identifier and database of the first connection: a later one must reach the same.
    pub(super) identity: Option<(String, u32)>,
    pub(super) scratch: Option<Scratch>,
    pub(super) compared: Vec<diff::Table>,
    /// The recovery that has restored a whole database, which is not in production's place yet.
    pub(super) restored: Option<String>,
    /// A session in that one, so that it is not taken for something that was left.
    pub(super) inside: Option<Box<Server>>,
}

impl Session {
    /// The open connection; made, or made again when it was lost.
    pub(super) async fn server(&mut self, system: &System, recovery: &str) -> Result<&Server> {
        if self.server.as_ref().is_some_and(|server| server.client.is_closed()) {
            self.server = None;
        }
        if self.server.is_none() {
            let conninfo = conninfo(system)?;
            let server = Box::pin(connect::connect(&conninfo, &session_name(recovery))).await?;
            let reached = (server.facts.system_identifier.clone(), server.facts.database_oid);
            if *self.identity.get_or_insert_with(|| reached.clone()) != reached {
                return Err(Error::refused("the connection was lost, and now leads to another server or database")
                    .hint("What was compared is on the first one. Find out which is production, and begin again."));
            }
            self.server = Some(server);
        }
        self.server.as_ref().ok_or_else(|| Error::bug("a connection was made and is not there"))
    }

    /// Another connection to the same database, to load a large table by two.
    async fn second(&mut self, system: &System, recovery: &str) -> Result<Server> {
        let server = connect::connect(&conninfo(system)?, &session_name(recovery)).await?;
        let reached = (server.facts.system_identifier.clone(), server.facts.database_oid);
        if self.identity.as_ref() != Some(&reached) {
            return Err(Error::refused("two connections lead to two servers or databases")
                .hint("Name one server: a list of hosts may lead anywhere."));
        }
        Ok(server)
    }

    /// What an attempt came to. When the reply to its COMMIT was lost, the token row in production knows.
    pub(super) async fn resolved(
        &mut self,
        system: &System,
        recovery: &str,
        merged: &str,
        hash: &str,
        outcome: Result<Applied>,
    ) -> Result<Applied> {
        let error = match outcome {
            Err(error) if error.kind == Kind::Unresolved => error,
            known => return known,
        };
        self.server = None;
        let server = self.server(system, recovery).await.map_err(|_| error.clone())?;
        match merge::resolve(&server.client, merged, hash).await.map_err(|_| error)? {
            merge::Outcome::Applied(applied) => Ok(applied),
            merge::Outcome::NotApplied => {
                Err(Error::target("the connection was lost, and the transaction was rolled back")
                    .hint("Nothing was changed. Try again."))
            }
        }
    }

    pub(super) async fn staged(&mut self, system: &System) -> Result<(&connect::Session, &Scratch, &[diff::Table])> {
        self.server(system, "").await?;
        match (&self.server, &self.scratch) {
            (Some(server), Some(scratch)) => Ok((&server.client, scratch, &self.compared)),
            _ => Err(Error::refused("nothing is staged").hint("Go back and compare the tables first.")),
        }
    }

    pub(super) async fn drop_scratch(&mut self, system: &System, recovery: &str) -> Result<()> {
        self.compared.clear();
        if let Some(scratch) = self.scratch.clone() {
            let server = self.server(system, recovery).await?;
            stage::drop_scratch(&server.client, &scratch).await?;
            self.scratch = None;
        }
        match self.server.as_ref().filter(|server| !server.client.is_closed()) {
            Some(server) => claim::release(&server.client).await,
            None => Ok(()),
        }
    }

    pub(super) async fn stage_all(
        &mut self,
        system: &System,
        recovery: &str,
        origin: &Origin,
        names: &[Name],
        keys: &[NamedKey],
        progress: &Progress,
    ) -> Result<Vec<diff::TableDiff>> {
        let server = self.server(system, recovery).await?;
        let live = schema::live(&server.client, Some(names)).await?;
        let scratch = stage::create_scratch(&server.client, recovery).await?;
        self.scratch = Some(scratch.clone());
        let large =
            |name: &Name| origin.archive.table(name).and_then(|table| table.compressed_size) >= Some(stage::LARGE);
        let second = if names.iter().any(large) { Some(Box::pin(self.second(system, recovery)).await?) } else { None };
        let server = self.server(system, recovery).await?;
        let (mut compared, mut diffs) = (Vec::new(), Vec::new());
        for (number, name) in names.iter().enumerate() {
            let table = origin.archive.table(name).ok_or_else(|| {
                Error::operator(format!("the dump holds no table {name}")).hint("lifeboat tables lists what it holds.")
            })?;
            let live = live.iter().find(|live| live.name == *name).ok_or_else(|| {
                Error::operator(format!("{name} does not exist in production"))
                    .hint("Create it first, then its rows can be brought back.")
            })?;
            let key = match keys.iter().find(|key| key.table == *name) {
                None => KeyChoice::Best,
                Some(key) if key.columns.is_empty() => KeyChoice::Multiset,
                Some(key) => KeyChoice::Named(key.columns.clone()),
            };
            // Another recovery's claim forbids writing, not looking; it is told again before anything is frozen.
            claim::claim(&server.client, live.oid).await?;
            let pairs = diff::pairs(live, &table.columns, &table.copied);
            let staged = stage::columns(&server.client, live, &pairs, &table.copied).await?;
            let (live, key_columns) = (live.clone(), Vec::new());
            let context = diff::Table { number, live, pairs, staged, key: None, key_columns };
            let known = diff::diff_touched(server, &scratch, context.clone(), &key, origin, progress).await?;
            let (context, diff) = if let Some(known) = known {
                known
            } else {
                let second = second.as_ref().filter(|_| large(name)).map(|second| &second.client);
                let rows = stage_one((server, second), &scratch, &context, origin, table, progress).await?;
                diff::diff(&server.client, &scratch, context, &key, rows, progress).await?
            };
            compared.push(context);
            diffs.push(diff);
        }
        self.compared = compared;
        Ok(diffs)
    }
}

/// Loads one table's rows beside production. Returns how many there are.
async fn stage_one(
    (server, second): (&Server, Option<&connect::Session>),
    scratch: &Scratch,
    context: &diff::Table,
    origin: &Origin,
    table: &Table,
    progress: &Progress,
) -> Result<u64> {
    let rows = origin.rows(table).await?;
    progress.begin(format!("staging {}", table.name), Unit::Bytes, table.compressed_size);
    let encoding = origin.encoding().map(str::to_owned);
    let (number, columns) = (context.number, context.staged.clone());
    let spec = stage::Spec { table: table.name.clone(), number, columns, encoding };
    let sessions = (&server.client, second);
    let loaded = stage::stage(sessions, scratch, &spec, rows.stream, Some(rows.source), progress).await?;
    Ok(loaded.rows)
}

/// How production is reached.
pub fn conninfo(system: &System) -> Result<Conninfo> {
    system.database.as_deref().map_or_else(Conninfo::from_environment, Conninfo::parse)
}
