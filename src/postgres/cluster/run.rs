//! A clone's server: started, watched while it replays, asked for proof, stopped, and removed.
//!
//! The server is a process of its own and stays when this program ends, also when it is killed: [`resume`] looks at it or
//! starts it again, [`drop_clone`] ends and removes it.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio_postgres::NoTls;

use super::ask::unanswered;
use super::inspect::forget_reader;
use super::{FULL, NO_SPACE, PORT, ROOM, State, Stop, boot, command, failed, own, save, state, sync};
use crate::error::{Error, Kind, Result};
use crate::progress::{Progress, Unit};

/// The role that a clone is asked as; its authentication lets every role of the cluster in.
pub const USER: &str = "postgres";
/// How long a server may take to stop.
const PATIENCE: Duration = Duration::from_mins(1);
const SEE_LOG: &str = "Look at its log.";
/// Between two looks at the log.
const LOOK: Duration = Duration::from_millis(20);
/// Of the log's end that an error carries.
const SAID: usize = 12;
/// Of the log that is read at a time.
const MAX_LOG: u64 = 64 << 20;

/// That the target was reached, by three witnesses: what the server logged, where it stands, what it replayed last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The line of the server's log.
    pub log: String,
    /// Where replay stands: `0/4004E98`.
    pub replay_lsn: String,
    /// When the transaction that was replayed last was committed; `None`: none was.
    pub last_transaction: Option<DateTime<Utc>>,
    /// The server's own word; while it is paused nothing moves.
    pub paused: bool,
    /// The cluster that it is a copy of.
    pub system: u64,
}

/// Starts a clone that is laid out, waits until it stands at its target, and proves it.
pub async fn start(into: &Path, stop: &Stop, progress: &Progress) -> Result<Proof> {
    run(into, &stop.log_words(), progress).await
}

/// The same for a clone whose replay was cut off; PostgreSQL goes on where it was. One that was opened is started.
pub async fn resume(into: &Path, progress: &Progress) -> Result<Proof> {
    let known = state(into)?;
    let Some(proof) = known.opened.clone() else { return run(into, "recovery stopping ", progress).await };
    survived(into, &known)?;
    if server(into).is_none() {
        spawn(into, &known)?;
    }
    open(into, &proof, progress).await?;
    Ok(proof)
}

/// Ends replay where it stands. A clone that is paused just before the end of a transaction still has that one in progress:
/// what it had locked, as what it was about to drop, cannot be read until it is taken for rolled back.
///
/// Sessions are read-only unless they ask for more.
pub async fn open(into: &Path, proof: &Proof, progress: &Progress) -> Result<()> {
    progress.begin("ending replay, so that everything can be read", Unit::Items, None);
    let mut known = state(into)?;
    if known.opened.is_none() {
        let path = into.join("data/postgresql.conf");
        let settings = fs::File::options().append(true).open(&path);
        let written =
            settings.and_then(|mut file| file.write_all(b"default_transaction_read_only = on\nautovacuum = off\n"));
        written.map_err(|error| failed(&path, error))?;
        // Known before it is done: whoever comes after a kill ends it too.
        known.opened = Some(proof.clone());
        save(into, &known)?;
    }
    let lost =
        |error: tokio_postgres::Error| ended(into, unanswered("the clone does not end its replay", SEE_LOG, error));
    let began = Instant::now();
    let mut asked = false;
    loop {
        progress.check()?;
        // A server that was just started does not let anybody in yet.
        match super::connect(into, "template1").await {
            Err(error) if began.elapsed() > PATIENCE => return Err(error),
            Err(_) => {}
            Ok(client) => {
                let row = client.query_one("SELECT pg_is_in_recovery()", &[]).await.map_err(lost)?;
                if !row.get::<_, bool>(0) {
                    return Ok(());
                }
                if !asked {
                    client
                        .batch_execute("SELECT pg_reload_conf(); SELECT pg_wal_replay_resume()")
                        .await
                        .map_err(lost)?;
                    asked = true;
                }
            }
        }
        if server(into).is_none() {
            return Err(gave_up(into));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn run(into: &Path, words: &str, progress: &Progress) -> Result<Proof> {
    let known = state(into)?;
    if !known.laid_out {
        return Err(Error::refused(format!("{} was not laid out to its end, and cannot be started", into.display()))
            .hint(format!("Remove it and begin again: lifeboat clone --drop {}", into.display())));
    }
    survived(into, &known)?;
    if server(into).is_none() {
        spawn(into, &known)?;
    }
    progress.begin("replaying WAL segments", Unit::Items, None);
    let line = wait(into, words, progress).await?;
    prove(into, &known, line).await.map_err(|error| ended(into, error))
}

/// What was wrong with a query, or with the server: one that ends while it is asked loses the connection, and its log says why.
fn ended(into: &Path, error: Error) -> Error {
    if error.kind == Kind::Target && tail(into).contains(NO_SPACE) { gave_up(into) } else { error }
}

/// What was not put on disk does not outlive its machine.
fn survived(into: &Path, known: &State) -> Result<()> {
    match &known.boot {
        Some(then) if *then != boot()? => Err(Error::refused(format!(
            "the machine was restarted since {} was laid out, and it was not put on disk",
            into.display()
        ))
        .hint(format!("Remove it and begin again: lifeboat clone --drop {}", into.display()))),
        _ => Ok(()),
    }
}

/// Puts an opened clone on disk, so that it can stay.
pub async fn keep(into: &Path, progress: &Progress) -> Result<()> {
    progress.begin("putting the cluster on disk", Unit::Items, None);
    let mut known = state(into)?;
    let client = super::connect(into, "template1").await?;
    forget_reader(&client).await?;
    if known.boot.is_none() {
        return Ok(());
    }
    let path = into.join("data/postgresql.conf");
    let settings = fs::File::options().append(true).open(&path);
    settings.and_then(|mut file| file.write_all(b"fsync = on\n")).map_err(|error| failed(&path, error))?;
    let done = client.batch_execute("SELECT pg_reload_conf()").await;
    let done = match done {
        Ok(()) => client.batch_execute("CHECKPOINT").await,
        failed => failed,
    };
    done.map_err(|error| unanswered("the clone cannot be put on disk", SEE_LOG, error))?;
    sync(into)?;
    known.boot = None;
    save(into, &known)?;
    sync(into)
}

fn spawn(into: &Path, known: &State) -> Result<()> {
    // A number in a lock file may by now be another process's, so PostgreSQL may refuse for ever; where nothing runs in the
    // data directory any more, the files of a server that was killed mean nothing.
    quiet(into)?;
    for lock in ["data/postmaster.pid", ".s.PGSQL.5432.lock"] {
        let _ = fs::remove_file(into.join(lock));
    }
    let path = into.join("log");
    // What an earlier start said is not proof of this one.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&path, error)),
        Ok(()) | Err(_) => {}
    }
    let log = fs::File::options().create_new(true).append(true).open(&path).map_err(|error| failed(&path, error))?;
    own(&path)?;
    let mut command = command(&known.programs, "postgres")?;
    command.arg("-D").arg(into.join("data")).args(["-p", &PORT.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
    let mut child =
        command.spawn().map_err(|error| Error::operator("the clone's server does not start").detail(error))?;
    let deadline = Instant::now() + PATIENCE;
    while server(into).is_none() {
        if !matches!(child.try_wait(), Ok(None)) || Instant::now() > deadline {
            return Err(gave_up(into));
        }
        std::thread::sleep(LOOK / 5);
    }
    // Somebody has to take its end, as long as we are here.
    std::thread::spawn(move || drop(child.wait()));
    Ok(())
}

/// The running server of a clone, if there is one: its process, which really has that data directory.
fn server(into: &Path) -> Option<Pid> {
    let data = into.join("data");
    let pid: i32 = fs::read_to_string(data.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()?;
    let at = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (pid > 1 && at == fs::canonicalize(&data).ok()?).then(|| Pid::from_raw(pid))
}

/// Waits until nothing runs in a clone's data directory. Processes of a server that was killed end by themselves.
fn quiet(into: &Path) -> Result<()> {
    let Ok(data) = fs::canonicalize(into.join("data")) else { return Ok(()) };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut inside =
            processes.filter(|process| fs::read_link(process.path().join("cwd")).is_ok_and(|at| at == data));
        let Some(process) = inside.next() else { return Ok(()) };
        if Instant::now() > deadline {
            let number = process.file_name().display().to_string();
            return Err(Error::target(format!("process {number} still runs in {}", data.display()))
                .hint("End it, and try again."));
        }
        std::thread::sleep(LOOK / 5);
    }
}

/// Waits for the line that says where the server stopped, and that it has paused there.
async fn wait(into: &Path, words: &str, progress: &Progress) -> Result<String> {
    let (mut seen, mut stopped) = (0_u64, None);
    let mut rest = String::new();
    loop {
        // Asked before the log is read: what it said last is then in it.
        let runs = server(into).is_some();
        rest.push_str(&more(into, &mut seen)?);
        while let Some((line, after)) = rest.split_once('\n') {
            let line = line.to_owned();
            rest = after.to_owned();
            if line.contains("restored log file") {
                progress.advance(1);
            } else if line.contains(words) {
                stopped = Some(line);
            } else if line.contains("insufficient parameter settings") || line.contains("hot standby is not possible") {
                return Err(Error::target("production was given larger settings while the WAL was written, and replay waits")
                    .detail(line)
                    .hint(format!("Raise that setting in {}/data/postgresql.conf, stop the server, and go on: lifeboat clone --resume.", into.display())));
            } else if line.contains("pausing at the end of recovery") {
                return stopped.ok_or_else(|| {
                    Error::target("the server paused, and did not say where")
                        .detail(tail(into))
                        .hint("Look at its log.")
                });
            }
        }
        if !runs {
            return Err(gave_up(into));
        }
        if progress.check().is_err() {
            end(into)?;
            return Err(Error {
                hints: vec![format!(
                    "Go on: lifeboat clone --resume {0}; or remove it: lifeboat clone --drop {0}",
                    into.display()
                )],
                ..Error::cancelled()
            });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What was added to the log since.
fn more(into: &Path, seen: &mut u64) -> Result<String> {
    let path = into.join("log");
    let mut bytes = Vec::new();
    let read = fs::File::open(&path).and_then(|mut log| {
        log.seek(SeekFrom::Start(*seen))?;
        log.take(MAX_LOG).read_to_end(&mut bytes)
    });
    *seen += read.map_err(|error| failed(&path, error))? as u64;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn tail(into: &Path) -> String {
    let said = more(into, &mut 0).unwrap_or_default();
    let lines: Vec<_> = said.lines().collect();
    lines[lines.len().saturating_sub(SAID)..].join("\n")
}

/// The server ended before it stood at its target.
fn gave_up(into: &Path) -> Error {
    let said = tail(into);
    let drop = format!("Remove what was laid out: lifeboat clone --drop {}", into.display());
    let resume = format!("lifeboat clone --resume {}", into.display());
    // A segment that did not fit looks to PostgreSQL like one that is not there.
    if said.contains(NO_SPACE) {
        return Error::target(FULL).detail(said).hint(ROOM).hint(format!("Go on: {resume}")).hint(drop);
    }
    if said.contains("recovery ended before configured recovery target was reached") {
        return Error::refused("the WAL ended before the target was reached")
            .detail(said)
            .hint("Ask lifeboat windows what can be reached, and give an earlier target.")
            .hint(drop);
    }
    Error::target("the clone's server ended before it stood at its target")
        .detail(said)
        .hint(format!("Go on if it was killed: {resume}"))
        .hint(drop)
}

async fn prove(into: &Path, known: &State, log: String) -> Result<Proof> {
    const ASK: &str = "SELECT pg_is_wal_replay_paused(), pg_last_wal_replay_lsn()::text, \
        pg_last_xact_replay_timestamp(), (SELECT system_identifier FROM pg_control_system())";
    let lost = |error| unanswered("the clone cannot be asked where it stands", SEE_LOG, error);
    let host = into.to_str().unwrap_or_default();
    let mut config = tokio_postgres::Config::new();
    config.host(host).port(PORT).user(USER).dbname("template1").connect_timeout(PATIENCE);
    let (client, connection) = config.connect(NoTls).await.map_err(lost)?;
    let connection = tokio::spawn(connection);
    let deadline = Instant::now() + PATIENCE;
    let proof = loop {
        let row = client.query_one(ASK, &[]).await.map_err(lost)?;
        let proof = Proof {
            log: log.clone(),
            paused: row.get(0),
            replay_lsn: row.get::<_, Option<String>>(1).unwrap_or_default(),
            last_transaction: row.get(2),
            system: row.get::<_, i64>(3).cast_unsigned(),
        };
        if proof.paused || Instant::now() > deadline {
            break proof;
        }
        tokio::time::sleep(LOOK).await;
    };
    drop(client);
    let _ = connection.await;
    if !proof.paused || proof.system != known.system {
        return Err(Error::target("the clone does not stand where it should")
            .detail(format!("paused: {}, system {}, expected {}", proof.paused, proof.system, known.system))
            .hint("Remove it with lifeboat clone --drop, and lay it out again."));
    }
    Ok(proof)
}

/// Stops a clone's server, if it runs.
fn end(into: &Path) -> Result<()> {
    // SIGINT: a fast shutdown; SIGQUIT: at once, which a clone survives as well.
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let Some(pid) = server(into) else { break };
        let _ = kill(pid, signal);
        let deadline = Instant::now() + PATIENCE;
        while server(into).is_some() && Instant::now() < deadline {
            std::thread::sleep(LOOK / 5);
        }
    }
    quiet(into)
}

/// Stops a clone's server and removes its folder. What is not a clone of ours is refused; links are removed, and what they
/// point to stays.
pub fn drop_clone(into: &Path) -> Result<()> {
    state(into).map_err(|error| Error { kind: Kind::Refused, ..error })?;
    end(into)?;
    // What makes it startable goes first, and what says that it is ours goes last.
    let _ = fs::remove_file(into.join("data/global/pg_control"));
    for entry in fs::read_dir(into).map_err(|error| failed(into, error))? {
        let entry = entry.map_err(|error| failed(into, error))?;
        if entry.file_name() == super::STATE {
            continue;
        }
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(failed(&path, error)),
        })?;
    }
    fs::remove_dir_all(into).map_err(|error| failed(into, error))
}
