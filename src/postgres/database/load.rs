//! Rows of a dump go into the tables that were created for them: by COPY, straight from the repository.
//!
//! One session that sends a large table in binary form, with FREEZE, was faster on two processors than two that send text: they
//! wait for each other's pages and log, and leave the hint bits to later scans (6 s instead of 7.3 s for 750 MB of rows). To read
//! ahead in one more thread, so that rows are taken apart while the next ones are decoded, gained nothing: both are busy.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;

use super::super::archive::Table;
use super::super::connect::{Conninfo, Session, connect, server_error, session_name};
use super::super::name::{Name, quote_list};
use super::super::origin::Origin;
use super::super::stage;
use super::needs::{Counted, Needs};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// Tables that are loaded at once, where there are processors enough; each takes one on the server too.
const MOST_AT_ONCE: usize = 8;
pub(super) fn at_once() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, MOST_AT_ONCE)
}

/// Loads all tables, several at once, each in a transaction of its own. But first, one after the other, those that are a large
/// part of everything and have to go as text ([`stage::Columns`]), each by two sessions: the server then takes longer than
/// decoding does. Few tables would leave sessions without work: then two share each of these.
pub(super) async fn load(
    conninfo: &Conninfo,
    recovery: &str,
    database: &str,
    origin: &Origin,
    needs: &Needs,
    progress: &Progress,
) -> Result<Vec<Counted>> {
    progress.begin("loading rows", Unit::Bytes, Some(needs.bytes()));
    let part = needs.bytes() / at_once() as u64;
    let least = if needs.counted.len() > 2 * at_once() { part.max(stage::LARGE) } else { stage::LARGE };
    let (large, mut small): (Vec<Counted>, Vec<Counted>) =
        needs.counted.iter().cloned().partition(|table| table.bytes > least);
    let (conninfo, name) = (conninfo.to_database(database), session_name(recovery));
    let mut loaded = Vec::new();
    if !large.is_empty() {
        let (one, other) = tokio::try_join!(connect(&conninfo, &name), connect(&conninfo, &name))?;
        for wanted in large {
            if binary(&one.client, origin, &wanted.table).await?.is_some() {
                small.push(wanted);
            } else {
                loaded.push(load_by_two([&one.client, &other.client], origin, &wanted, progress).await?);
            }
        }
    }
    // The largest first, so that all sessions end together.
    small.sort_by_key(|table| std::cmp::Reverse(table.bytes));
    let number = at_once().min(small.len());
    let queue = Arc::new(Mutex::new(VecDeque::from(small)));
    let mut sessions = JoinSet::new();
    for _ in 0..number {
        let (conninfo, name, origin) = (conninfo.clone(), name.clone(), origin.clone());
        let (queue, progress) = (Arc::clone(&queue), progress.clone());
        sessions.spawn(async move {
            let server = connect(&conninfo, &name).await?;
            let mut loaded = Vec::new();
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(wanted) = next else { return Ok(loaded) };
                loaded.push(load_one(&server.client, &origin, &wanted, &progress).await?);
            }
        });
    }
    // The first error ends the others too, and their transactions.
    while let Some(ended) = sessions.join_next().await {
        let ended: Result<Vec<Counted>> = ended.map_err(|error| Error::bug("a loading session ended").detail(error))?;
        loaded.extend(ended?);
    }
    loaded.sort_by(|a, b| a.table.cmp(&b.table));
    Ok(loaded)
}

/// A table on its way: its rows, and the statements around them.
struct Way {
    table: Table,
    rows: Box<dyn std::io::Read + Send>,
    /// Whether the dump has made it, and it holds its rows itself: it is empty, and can be emptied. One that came with an
    /// extension has rows of its own.
    plain: bool,
    encoding: String,
    binary: Option<stage::Columns>,
}

impl Way {
    async fn to(client: &Session, origin: &Origin, wanted: &Counted) -> Result<Self> {
        let table = origin.archive.table(&wanted.table).cloned();
        let table = table.ok_or_else(|| Error::bug(format!("{} was counted and is not there", wanted.table)))?;
        let kind = "SELECT relkind::text FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1)";
        let kind = client.query_opt(kind, &[&table.name.sql()]).await;
        let kind = kind.map_err(|error| server_error(error, &format!("loading {}", table.name)))?;
        let kind: String = kind.map(|row| row.get(0)).ok_or_else(|| {
            Error::target(format!("{} is not there after the dump's definitions were created", table.name))
                .hint("The dump does not define it: bring its rows back as some tables, into production's own.")
        })?;
        if kind == "f" {
            return Err(Error::refused(format!(
                "{} is a table of another server, whose rows would be written there",
                table.name
            ))
            .hint("Restore this dump by hand with pg_restore."));
        }
        let encoding = stage::encoding_option(client, origin.encoding()).await?;
        let rows = origin.rows(&table).await?.stream;
        let plain = kind == "r" && !table.columns.is_empty();
        let binary = binary(client, origin, &table.name).await?;
        Ok(Self { table, rows, plain, encoding, binary })
    }

    fn copy(&self, freeze: &str) -> stage::Statement {
        let columns = match self.table.copied.as_slice() {
            [] => String::new(),
            columns => format!(" ({})", quote_list(columns)),
        };
        let copy = format!("COPY {}{columns} FROM STDIN WITH (FORMAT", self.table.name.sql());
        let binary = self.binary.clone().map(|columns| (format!("{copy} binary{freeze})"), columns));
        stage::Statement::text(format!("{copy} text{freeze}{})", self.encoding)).or_binary(binary)
    }
}

/// The columns of a table's rows, when these can be sent in binary form. Text in it is in the session's encoding, UTF8; instants
/// are whole microseconds, but on a server before version 10 that was built otherwise.
async fn binary(client: &Session, origin: &Origin, table: &Name) -> Result<Option<stage::Columns>> {
    let Some(copied) = origin.archive.table(table).map(|table| &table.copied) else { return Ok(None) };
    if origin.encoding() != Some("UTF8") {
        return Ok(None);
    }
    let sql = "SELECT a.atttypid FROM pg_catalog.unnest($2::text[]) WITH ORDINALITY c(name, place)
        JOIN pg_catalog.pg_attribute a ON a.attname = c.name AND a.attrelid = pg_catalog.to_regclass($1)
        WHERE a.attnum > 0 AND NOT a.attisdropped AND pg_catalog.current_setting('integer_datetimes') = 'on' ORDER BY c.place";
    let rows = client.query(sql, &[&table.sql(), copied]).await;
    let types: Vec<u32> =
        rows.map_err(|error| server_error(error, &format!("loading {table}")))?.iter().map(|row| row.get(0)).collect();
    Ok(stage::Columns::of(&types).filter(|_| types.len() == copied.len()))
}

async fn begin(session: &Session, table: &Name, also: &str) -> Result<()> {
    let sql = format!("BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL synchronous_commit = off{also}");
    session.batch_execute(&sql).await.map_err(|error| server_error(error, &format!("loading {table}")))
}

async fn load_one(client: &Session, origin: &Origin, wanted: &Counted, progress: &Progress) -> Result<Counted> {
    let way = Way::to(client, origin, wanted).await?;
    // Emptied in the transaction that fills it, so that FREEZE spares every later scan the hint bits.
    let (empty, freeze) =
        if way.plain { (format!("; TRUNCATE ONLY {}", way.table.name.sql()), ", FREEZE") } else { (String::new(), "") };
    begin(client, &way.table.name, &empty).await?;
    let outcome = stage::copy(client, &way.copy(freeze), &way.table.name, way.rows, None, progress).await;
    as_counted(wanted, &stage::finish(client, outcome).await?)
}

async fn load_by_two(
    sessions: [&Session; 2],
    origin: &Origin,
    wanted: &Counted,
    progress: &Progress,
) -> Result<Counted> {
    let way = Way::to(sessions[0], origin, wanted).await?;
    for session in sessions {
        begin(session, &way.table.name, "").await?;
    }
    let clients = sessions.map(|session| &**session);
    let outcome = stage::copy_by_two(clients, way.copy("").as_text(), &way.table.name, way.rows, None, progress).await;
    let outcome = stage::finish(sessions[0], outcome).await;
    as_counted(wanted, &stage::finish(sessions[1], outcome).await?)
}

fn as_counted(wanted: &Counted, staged: &stage::Staged) -> Result<Counted> {
    if staged.rows != wanted.rows {
        return Err(Error::backup(format!(
            "{} rows of {} were loaded, and {} were counted before",
            staged.rows, wanted.table, wanted.rows
        )));
    }
    Ok(wanted.clone())
}
