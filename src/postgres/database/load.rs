//! Rows of a dump go into the tables that were created for them: by COPY, straight from the repository. Their indexes follow.
//!
//! One session that sends a large table in binary form, with FREEZE, was faster on two processors than two that send text: they
//! wait for each other's pages and log, and leave the hint bits to later scans (6 s instead of 7.3 s for 750 MB of rows). To read
//! ahead in one more thread, so that rows are taken apart while the next ones are decoded, gained nothing: both are busy.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::task::JoinSet;

use super::super::archive::Table;
use super::super::connect::{Conninfo, Session, connect, server_error, session_name};
use super::super::name::{Name, quote_list};
use super::super::origin::Origin;
use super::super::stage;
use super::index::{self, Build};
use super::needs::{Counted, Needs};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// Tables that are loaded at once, where there are processors enough; each takes one on the server too.
const MOST_AT_ONCE: usize = 8;
pub(super) fn at_once() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, MOST_AT_ONCE)
}

/// Loads all tables, several at once, each in a transaction of its own, and builds the indexes of each as soon as its rows are
/// in. Returns what was loaded, and the entries of the dump whose indexes are there.
///
/// First, one after the other, come tables that are a large part of everything and have to go as text ([`stage::Columns`]), each
/// by two sessions: the server then takes longer than decoding does. Few tables would leave sessions without work: then two
/// share each of these.
pub(super) async fn load(
    conninfo: &Conninfo,
    recovery: &str,
    database: &str,
    origin: &Origin,
    needs: &Needs,
    progress: &Progress,
) -> Result<(Vec<Counted>, BTreeSet<i32>)> {
    let mut builds = index::builds(&origin.archive, &needs.counted);
    let all = || builds.values().flatten();
    let total = needs.bytes() + all().map(|build| build.bytes).sum::<u64>();
    let number = at_once().min(needs.counted.len() + all().count());
    progress.begin("loading rows and building indexes", Unit::Bytes, Some(total));
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
                progress.now(format!("loading {}", wanted.table));
                load_by_two([&one.client, &other.client], origin, &wanted, progress).await?;
                loaded.push(wanted);
            }
        }
    }
    let mut builds_of = |table: &Counted| builds.remove(&table.table).unwrap_or_default().into_iter().map(Task::Build);
    let mut ready = Ready::default();
    for table in &loaded {
        ready.extend(builds_of(table));
    }
    ready.extend(small.into_iter().map(Task::Load));
    let mut idle = Vec::new();
    for _ in 0..number {
        let session = connect(&conninfo, &name).await?.client;
        idle.push(Worker { process: index::prepare(&session).await?, session });
    }
    let watcher = connect(&conninfo, &name).await?.client;
    index::prepare(&watcher).await?;
    let mut at_work = AtWork { progress, by_process: BTreeMap::new() };
    let (mut working, mut indexes) = (JoinSet::new(), Vec::new());
    let mut look = tokio::time::interval(Duration::from_millis(500));
    loop {
        while !idle.is_empty()
            && let Some(task) = ready.largest()
            && let Some(worker) = idle.pop()
        {
            at_work.begins(worker.process, &task);
            working.spawn(worker.does(task, origin.clone(), progress.clone()));
        }
        let ended = tokio::select! {
            ended = working.join_next() => ended,
            _ = look.tick() => {
                at_work.looked(&index::how_far(&watcher).await?);
                continue;
            }
        };
        // The first error ends the others too, and their transactions.
        let Some(ended) = ended else { break };
        let ended: Result<(Worker, Task)> =
            ended.map_err(|error| Error::bug("a loading session ended").detail(error))?;
        let (worker, task) = ended?;
        at_work.ends(worker.process);
        idle.push(worker);
        match task {
            Task::Load(table) => {
                ready.extend(builds_of(&table));
                loaded.push(table);
            }
            Task::Build(index) => indexes.push(index),
        }
    }
    progress.now("making keys");
    index::make_keys(&watcher, &indexes, progress).await?;
    loaded.sort_by(|a, b| a.table.cmp(&b.table));
    Ok((loaded, indexes.iter().map(|index| index.dump_id).collect()))
}

enum Task {
    Load(Counted),
    Build(Build),
}

/// Tasks that can be begun.
#[derive(Default)]
struct Ready {
    /// By their bytes, and a number of their own.
    tasks: BTreeMap<(u64, u64), Task>,
    next: u64,
}

impl Ready {
    fn extend(&mut self, tasks: impl IntoIterator<Item = Task>) {
        for task in tasks {
            let (Task::Load(Counted { bytes, .. }) | Task::Build(Build { bytes, .. })) = &task;
            self.tasks.insert((*bytes, self.next), task);
            self.next += 1;
        }
    }

    /// The largest come first, so that all sessions end together.
    fn largest(&mut self) -> Option<Task> {
        self.tasks.pop_last().map(|(_, task)| task)
    }
}

/// A session, and its process on the server.
struct Worker {
    process: i32,
    session: Session,
}

impl Worker {
    async fn does(self, task: Task, origin: Origin, progress: Progress) -> Result<(Self, Task)> {
        match &task {
            Task::Load(table) => load_one(&self.session, &origin, table, &progress).await?,
            Task::Build(build) => index::build(&self.session, build, &progress).await?,
        }
        Ok((self, task))
    }
}

/// What is being done, for who looks at it.
struct AtWork<'a> {
    progress: &'a Progress,
    by_process: BTreeMap<i32, Doing>,
}

struct Doing {
    words: String,
    /// That an index has to read; rows tell by themselves.
    bytes: u64,
    /// Of these.
    told: u64,
}

impl AtWork<'_> {
    fn begins(&mut self, process: i32, task: &Task) {
        let (words, bytes) = match task {
            Task::Load(table) => (format!("loading {}", table.table), 0),
            Task::Build(build) => (format!("building {}", build.name), build.bytes),
        };
        self.by_process.insert(process, Doing { words, bytes, told: 0 });
        self.say();
    }

    fn ends(&mut self, process: i32) {
        let Some(done) = self.by_process.remove(&process) else { return };
        self.progress.advance(done.bytes - done.told);
        if !self.by_process.is_empty() {
            self.say();
        }
    }

    fn looked(&mut self, how_far: &BTreeMap<i32, f64>) {
        for (process, doing) in &mut self.by_process {
            let part = how_far.get(process).copied().unwrap_or_default();
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "for the eye"
            )]
            let done = (part * doing.bytes as f64) as u64;
            let more = done.min(doing.bytes).saturating_sub(doing.told);
            self.progress.advance(more);
            doing.told += more;
        }
    }

    fn say(&self) {
        let mut words: Vec<&str> = self.by_process.values().take(2).map(|doing| doing.words.as_str()).collect();
        let more = format!("{} more", self.by_process.len().saturating_sub(2));
        words.extend((self.by_process.len() > 2).then_some(more.as_str()));
        self.progress.now(words.join(", "));
    }
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

async fn load_one(client: &Session, origin: &Origin, wanted: &Counted, progress: &Progress) -> Result<()> {
    let way = Way::to(client, origin, wanted).await?;
    // Emptied in the transaction that fills it, so that FREEZE spares every later scan the hint bits.
    let (empty, freeze) =
        if way.plain { (format!("; TRUNCATE ONLY {}", way.table.name.sql()), ", FREEZE") } else { (String::new(), "") };
    begin(client, &way.table.name, &empty).await?;
    let outcome = stage::copy(client, &way.copy(freeze), &way.table.name, way.rows, None, progress).await;
    check_count(wanted, &stage::finish(client, outcome).await?)
}

async fn load_by_two(sessions: [&Session; 2], origin: &Origin, wanted: &Counted, progress: &Progress) -> Result<()> {
    let way = Way::to(sessions[0], origin, wanted).await?;
    for session in sessions {
        begin(session, &way.table.name, "").await?;
    }
    let clients = sessions.map(|session| &**session);
    let outcome = stage::copy_by_two(clients, way.copy("").as_text(), &way.table.name, way.rows, None, progress).await;
    let outcome = stage::finish(sessions[0], outcome).await;
    check_count(wanted, &stage::finish(sessions[1], outcome).await?)
}

fn check_count(wanted: &Counted, staged: &stage::Staged) -> Result<()> {
    if staged.rows != wanted.rows {
        return Err(Error::backup(format!(
            "{} rows of {} were loaded, and {} were counted before",
            staged.rows, wanted.table, wanted.rows
        )));
    }
    Ok(())
}
