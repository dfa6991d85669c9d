//! The dump becomes a database beside production: definitions by `pg_restore`, rows by our own COPY.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio_postgres::Client;

use super::super::archive::Archive;
use super::super::connect::{Conninfo, connect, server_error, session_name};
use super::super::name::{Name, quote};
use super::super::origin::Origin;
use super::super::programs::{self, Program};
use super::super::stage::Mark;
use super::load::{at_once, load};
use super::needs::{Counted, Needs};
use super::{mark_sql, restore_name};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// So many complaints of `pg_restore` are kept.
const COMPLAINTS: usize = 200;

/// A database that was restored, and is not in production's place yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// `lifeboat_restore_<recovery>`
    pub database: String,
    /// Its number, which a rename does not change.
    pub oid: u32,
    /// Rows that the server took, table by table; as many as the dump holds.
    pub loaded: Vec<Counted>,
    /// What could not be applied, and does no harm to the rest: an owner or a grant to a role that is not there.
    pub notes: Vec<String>,
    /// How long that took: not the counting before it, nor the checks after.
    #[serde(default)]
    pub took_ms: u64,
    /// What [`super::written`] said of production when the restore began.
    pub written_before: Option<u64>,
}

/// Restores a dump beside production. What goes wrong, or is cancelled, leaves a database of ours that has to be dropped
/// ([`super::drop_restored`]).
///
/// Errors: the server does not take a definition or a row; a table whose rows are not as many as were counted.
pub async fn restore(
    (client, conninfo, superuser): (&Client, &Conninfo, bool),
    recovery: &str,
    origin: &Origin,
    needs: &Needs,
    progress: &Progress,
) -> Result<Restored> {
    let (archive, begun) = (&origin.archive, Instant::now());
    let database = restore_name(recovery)?;
    progress.begin("creating the database", Unit::Items, None);
    super::drop_restored(client, recovery).await?;
    create(client, recovery, &database, archive, needs).await?;
    let folder = tempfile::Builder::new().prefix("lifeboat-").tempdir().map_err(|error| no_space(&error))?;
    let head = lay_out(archive, folder.path())?;
    let restorer = Restorer {
        program: programs::pg_restore(archive)?,
        environment: environment(conninfo, folder.path(), recovery, superuser)?,
        database: &database,
        head,
        without_tablespaces: !needs.missing_tablespaces.is_empty(),
        progress,
    };
    let definitions = archive.entries().len() as u64;
    let mut notes = restorer.run("creating tables and functions", &["--section=pre-data"], definitions).await?;
    let (loaded, built) = load(conninfo, recovery, &database, origin, needs, progress).await?;
    let of_kind = |kind: &str| archive.entries().iter().filter(|entry| entry.kind == kind).collect::<Vec<_>>();
    let sequences = of_kind("SEQUENCE SET");
    if !sequences.is_empty() {
        let list = Restorer::list(folder.path(), sequences.iter().map(|entry| entry.dump_id))?;
        notes.extend(restorer.run("setting sequences", &[&list], sequences.len() as u64).await?);
    }
    if origin.is_clone() {
        progress.begin("setting sequences", Unit::Items, None);
        let server = connect(&conninfo.to_database(&database), &session_name(recovery)).await?;
        for statement in origin.sequences().await? {
            let set = server.client.batch_execute(&statement).await;
            set.map_err(|error| server_error(error, "setting sequences"))?;
        }
    }
    let large_objects: Vec<_> = of_kind("BLOBS").into_iter().filter(|entry| entry.has_data).collect();
    if !large_objects.is_empty() {
        let list = Restorer::list(folder.path(), large_objects.iter().map(|entry| entry.dump_id))?;
        notes.extend(restorer.pipe(archive, &list).await?);
    }
    let left = archive.entries().iter().map(|entry| entry.dump_id).filter(|id| !built.contains(id));
    let (jobs, list) = (format!("--jobs={}", at_once()), Restorer::list(folder.path(), left)?);
    let arguments = ["--section=post-data", &jobs, &list];
    notes.extend(restorer.run("creating constraints, triggers and other indexes", &arguments, definitions).await?);
    let server = connect(&conninfo.to_database(&database), &session_name(recovery)).await?;
    if origin.is_clone() {
        // Definitions alone leave them empty; they are listed after those that they build on.
        for view in of_kind("MATERIALIZED VIEW") {
            let name = Name::new(view.schema.as_deref().unwrap_or("public"), &view.name);
            progress.begin(format!("filling {name}"), Unit::Items, None);
            let sql = format!("SET statement_timeout = 0; REFRESH MATERIALIZED VIEW {}", name.sql());
            if let Err(error) = stoppable(progress, server.client.batch_execute(&sql), "filling a view").await {
                progress.check()?;
                notes.push(format!("{name} is not filled: {}", error.detail.unwrap_or(error.message)));
            }
        }
    }
    // They name the database, which has another name yet; production has its own.
    let of_database = archive.entries().iter().filter(|entry| {
        entry.kind == "DATABASE PROPERTIES" || (entry.kind == "ACL" && entry.name.starts_with("DATABASE "))
    });
    if needs.production.is_none() {
        notes.extend(of_database.map(|entry| format!("to be run by hand: {}", entry.definition.trim())));
    }
    notes.sort();
    notes.dedup();
    let oid = server.facts.database_oid;
    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Restored { database, oid, loaded, notes, took_ms, written_before: None })
}

/// Waits for a statement, or for the wish to stop; the session is not used any more then, and the server ends what it did.
pub(super) async fn stoppable<T>(
    progress: &Progress,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    doing: &str,
) -> Result<T> {
    tokio::select! {
        biased;
        () = progress.cancelled() => Err(Error::cancelled()),
        done = work => done.map_err(|error| server_error(error, doing)),
    }
}

fn no_space(error: &std::io::Error) -> Error {
    Error::operator("cannot write to the folder for temporary files").detail(error).hint(
        "The dump's table of contents goes there, some kilobytes. Make room, or set TMPDIR to a folder that has some.",
    )
}

/// An empty database, private and marked, with production's encoding and locale.
async fn create(client: &Client, recovery: &str, database: &str, archive: &Archive, needs: &Needs) -> Result<()> {
    let failed = |error| server_error(error, "creating a database beside production");
    let facts = "SELECT pg_catalog.to_jsonb(d)::text, pg_catalog.pg_encoding_to_char(encoding)::text,
            pg_catalog.pg_get_userbyid(datdba)::text FROM pg_catalog.pg_database d WHERE datname = $1";
    let mut options = String::new();
    if let Some(row) = client.query_opt(facts, &[&needs.database]).await.map_err(failed)? {
        let facts: serde_json::Value = serde_json::from_str(row.get(0)).unwrap_or_default();
        let value = |key: &str| facts.get(key).and_then(serde_json::Value::as_str);
        push(client, &mut options, "ENCODING", Some(row.get::<_, &str>(1))).await?;
        push(client, &mut options, "LC_COLLATE", value("datcollate")).await?;
        push(client, &mut options, "LC_CTYPE", value("datctype")).await?;
        // Named since PostgreSQL 15, and one of them otherwise since 17.
        let locale = value("datlocale").or_else(|| value("daticulocale"));
        match value("datlocprovider") {
            Some("i") => {
                push(client, &mut options, "LOCALE_PROVIDER", Some("icu")).await?;
                push(client, &mut options, "ICU_LOCALE", locale).await?;
            }
            Some("b") => {
                push(client, &mut options, "LOCALE_PROVIDER", Some("builtin")).await?;
                push(client, &mut options, "BUILTIN_LOCALE", locale).await?;
            }
            _ => {}
        }
        let _ = write!(options, " OWNER {}", quote(row.get(2)));
    } else {
        push(client, &mut options, "ENCODING", archive.header.encoding.as_deref()).await?;
        let owner = archive.entries().iter().find(|entry| entry.kind == "DATABASE").map(|entry| &entry.owner);
        if let Some(owner) = owner.filter(|owner| !needs.missing_roles.contains(owner) && !owner.is_empty()) {
            let _ = write!(options, " OWNER {}", quote(owner));
        }
    }
    let name = quote(database);
    // Neither can stand in a transaction with another statement.
    let create = format!("CREATE DATABASE {name} WITH TEMPLATE template0{options}");
    client.batch_execute(&create).await.map_err(failed)?;
    let mark = mark_sql(client, database, &Mark::new(client, recovery, Some(&needs.database)).await?).await?;
    client.batch_execute(&format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC; {mark}")).await.map_err(failed)
}

/// An option of CREATE DATABASE; the server itself quotes its value.
async fn push(client: &Client, options: &mut String, word: &str, value: Option<&str>) -> Result<()> {
    let Some(value) = value else { return Ok(()) };
    let row = client.query_one("SELECT pg_catalog.quote_literal($1::text)", &[&value]).await;
    let quoted: String = row.map_err(|error| server_error(error, "quoting a locale"))?.get(0);
    let _ = write!(options, " {word} {quoted}");
    Ok(())
}

/// Writes the dump's table of contents where `pg_restore` can read it: a custom archive as a file, others as a folder.
fn lay_out(archive: &Archive, folder: &Path) -> Result<PathBuf> {
    let head = archive.head()?;
    let (path, file) = if head.folder {
        let path = folder.join("head");
        std::fs::create_dir(&path).map_err(|error| no_space(&error))?;
        (path.clone(), path.join("toc.dat"))
    } else {
        (folder.join("head"), folder.join("head"))
    };
    std::fs::write(file, head.bytes).map_err(|error| no_space(&error))?;
    Ok(path)
}

/// What `pg_restore` connects by. A password goes through a file that only we can read: an environment can be read by others
/// of the same user, and by who looks at a crash.
fn environment(
    conninfo: &Conninfo,
    folder: &Path,
    recovery: &str,
    superuser: bool,
) -> Result<Vec<(&'static str, String)>> {
    let mut environment = conninfo.for_programs();
    if let Some(password) = conninfo.password() {
        let file = folder.join("pgpass");
        let escaped = password.reveal().replace('\\', "\\\\").replace(':', "\\:");
        write_secret(&file, &format!("*:*:*:*:{escaped}")).map_err(|error| no_space(&error))?;
        environment.push(("PGPASSFILE", file.display().to_string()));
    }
    // Messages are told apart by their words; only a superuser may choose the language.
    let words = if superuser { " -c lc_messages=C" } else { "" };
    let options = format!(
        "{} -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0{words}",
        conninfo.value("options").unwrap_or_default()
    );
    environment.push(("PGOPTIONS", options));
    environment.push(("PGAPPNAME", session_name(recovery)));
    environment.push(("LC_ALL", "C".into()));
    Ok(environment)
}

/// Writes a line that only we can read, into a file that is not there yet.
pub fn write_secret(file: &Path, line: &str) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
    writeln!(options.open(file)?, "{line}")
}

/// A `pg_dump` that knows the server, ready to be given a database.
pub fn pg_dump(conninfo: &Conninfo, server_version: i32, folder: &Path, recovery: &str) -> Result<Command> {
    let program = programs::oldest("pg_dump", server_version / 10_000)?;
    Ok(command(&program, &environment(conninfo, folder, recovery, false)?))
}

/// A program that connects by this environment alone, asks for nothing, and ends when nobody waits for it any more.
fn command(program: &Program, environment: &[(&'static str, String)]) -> Command {
    let mut command = Command::new(&program.path);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
    command.envs(environment.iter().map(|(name, value)| (*name, value))).arg("--no-password");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// How `pg_restore` is run.
struct Restorer<'a> {
    program: Program,
    environment: Vec<(&'static str, String)>,
    database: &'a str,
    head: PathBuf,
    without_tablespaces: bool,
    progress: &'a Progress,
}

impl Restorer<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(&self.program, &self.environment);
        command.args(["--verbose", "--dbname", self.database]).args(arguments);
        if self.without_tablespaces {
            command.arg("--no-tablespaces");
        }
        command
    }

    /// A file that chooses entries of the dump.
    fn list(folder: &Path, ids: impl Iterator<Item = i32>) -> Result<String> {
        let file = folder.join("list");
        let lines: String = ids.map(|id| format!("{id};\n")).collect();
        std::fs::write(&file, lines).map_err(|error| no_space(&error))?;
        Ok(format!("--use-list={}", file.display()))
    }

    /// Runs it over the table of contents alone. Returns what could not be applied and does no harm.
    async fn run(&self, doing: &str, arguments: &[&str], total: u64) -> Result<Vec<String>> {
        self.progress.begin(doing, Unit::Items, Some(total));
        let mut command = self.command(arguments);
        command.arg(&self.head);
        self.wait(command.spawn(), doing).await
    }

    /// Runs it over the whole dump, which it reads from a pipe, passing over what was not chosen.
    async fn pipe(&self, archive: &Archive, list: &str) -> Result<Vec<String>> {
        const DOING: &str = "loading large objects";
        self.progress.begin(DOING, Unit::Items, None);
        let mut command = self.command(&[list, "--format=custom"]);
        let mut child = command.stdin(Stdio::piped()).spawn();
        let input = child.as_mut().ok().and_then(|child| child.stdin.take());
        let mut dump = archive.stream_of_all()?;
        let fed = tokio::task::spawn_blocking(move || {
            let Some(Ok(input)) = input.map(tokio::process::ChildStdin::into_owned_fd) else { return Ok(()) };
            // It ends when it has what it wants; then the rest of the dump is not read, which is no error.
            match std::io::copy(&mut dump, &mut std::fs::File::from(input)) {
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                    Err(Error::from_read(error, || "cannot read the large objects from the backup".into()))
                }
                _ => Ok(()),
            }
        });
        let notes = self.wait(child, DOING).await?;
        fed.await.map_err(|error| Error::bug("a reading thread ended").detail(error))??;
        Ok(notes)
    }

    async fn wait(&self, child: std::io::Result<tokio::process::Child>, doing: &str) -> Result<Vec<String>> {
        let failed = |why: &dyn std::fmt::Display| {
            Error::operator(format!("cannot run {}", self.program.path.display())).detail(why)
        };
        let mut child = child.map_err(|error| failed(&error))?;
        let Some(stderr) = child.stderr.take() else { return Err(Error::bug("pg_restore was run without a voice")) };
        let (mut lines, mut said) = (BufReader::new(stderr).split(b'\n'), Complaints::default());
        loop {
            let line = tokio::select! {
                biased;
                () = self.progress.cancelled() => return Err(Error::cancelled()),
                line = lines.next_segment() => line.map_err(|error| failed(&error))?,
            };
            let Some(line) = line else { break };
            if said.hear(&String::from_utf8_lossy(&line)) {
                self.progress.advance(1);
            }
        }
        let status = child.wait().await.map_err(|error| failed(&error))?;
        let (notes, fatal) = said.sorted();
        if let Some(first) = fatal.first() {
            let count = fatal.len() as u64;
            return Err(Error::target(format!(
                "{doing} failed: {}",
                crate::text::counted(
                    count,
                    "definition of the dump was refused",
                    "definitions of the dump were refused"
                )
            ))
            .detail(fatal.join("\n"))
            .hint(remedy(first)));
        }
        // Complaints that do no harm make it end with 1.
        if !status.success() && notes.is_empty() {
            return Err(Error::target(format!("{doing} failed: pg_restore ended with {status}"))
                .hint("Restore the dump by hand once to see what it says; nothing of production was changed."));
        }
        Ok(notes)
    }
}

/// What to do about a definition that the server refused.
fn remedy(complaint: &str) -> &'static str {
    let has = |words: &str| complaint.contains(words);
    if has("already exists") {
        "Something of that name is in template0's copy already: look what the administrator put there."
    } else if has("extension") && (has("is not available") || has("could not open extension control file")) {
        "Install the extension's package on the server, then try again."
    } else if has("permission denied") || has("must be superuser") || has("must be owner") {
        "Connect as a superuser, who may create everything that the dump holds."
    } else if has("No space left") || has("disk full") {
        "The server's disk is full: make room, then try again."
    } else if has("could not access file") {
        "A library that the dump's functions need is missing on the server: install its package."
    } else {
        "Read the server's own words; nothing of production was changed, and what was restored is removed."
    }
}

/// What `pg_restore` says, taken apart. An error goes on over the lines that follow, up to the next that names the program.
#[derive(Default)]
struct Complaints(Vec<String>);

impl Complaints {
    /// Takes a line. Returns whether it tells that another object is made.
    fn hear(&mut self, line: &str) -> bool {
        const PROGRAM: &str = "pg_restore: ";
        match line.strip_prefix(PROGRAM).or_else(|| line.split_once(PROGRAM).map(|(_, said)| said)) {
            Some(said) if said.starts_with("error: ") => {
                if self.0.len() < COMPLAINTS {
                    self.0.push(said.trim_start_matches("error: ").to_owned());
                } else {
                    // What follows belongs to none of those that are kept.
                    self.0.push(String::new());
                    self.0.truncate(COMPLAINTS);
                }
                false
            }
            Some(said) => {
                said.starts_with("creating ") || said.starts_with("finished item ") || said.starts_with("executing ")
            }
            None => {
                if let Some(last) = self.0.last_mut().filter(|last| last.len() < 1000) {
                    last.push('\n');
                    last.push_str(line);
                }
                false
            }
        }
    }

    /// Those that do no harm to the rest, and those that do.
    fn sorted(self) -> (Vec<String>, Vec<String>) {
        let (notes, fatal): (Vec<String>, Vec<String>) = self.0.into_iter().partition(|said| is_harmless(said));
        (notes.iter().map(|said| note(said)).collect(), fatal)
    }
}

/// An owner or a grant that cannot be set, the schema that every database has, a setting that this server does not know, and
/// the comment of an extension that belongs to somebody else.
fn is_harmless(said: &str) -> bool {
    let (message, command) = said.split_once("Command was: ").unwrap_or((said, ""));
    let command = command.trim_start();
    (message.contains("role \"") && message.contains("does not exist"))
        || message.contains("schema \"public\" already exists")
        || (message.contains("unrecognized configuration parameter") && command.starts_with("SET "))
        || (message.contains("must be owner of extension") && command.starts_with("COMMENT ON EXTENSION"))
}

/// One line: what the server said, and of which command.
fn note(said: &str) -> String {
    let (message, command) = said.split_once("Command was: ").unwrap_or((said, ""));
    let message = message.trim().trim_start_matches("could not execute query: ").trim_start_matches("ERROR: ").trim();
    let command = command.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    format!("{message} ({})", command.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_told_apart() {
        let mut said = Complaints::default();
        let lines = "pg_restore: connecting to database for restore
pg_restore: creating TABLE \"public.t\"
pg_restore: while PROCESSING TOC:
pg_restore: from TOC entry 215; 1259 16385 TABLE t nobody
pg_restore: error: could not execute query: ERROR:  role \"nobody_here\" does not exist
Command was: ALTER TABLE public.t OWNER TO nobody_here;


pg_restore: error: could not execute query: ERROR:  type \"public.geometry\" does not exist
LINE 3:     place public.geometry
Command was: CREATE TABLE public.u (
pg_restore: warning: errors ignored on restore: 2";
        let made = lines.lines().filter(|line| said.hear(line)).count();
        let (notes, fatal) = said.sorted();
        assert_eq!(made, 1);
        assert_eq!(notes, ["role \"nobody_here\" does not exist (ALTER TABLE public.t OWNER TO nobody_here;)"]);
        assert_eq!(fatal.len(), 1);
        assert!(fatal[0].contains("geometry") && fatal[0].contains("LINE 3"), "{fatal:?}");
    }
}
