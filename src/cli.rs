//! The command line: the console, and a headless twin of everything it does. Results go to stdout, progress and errors to
//! stderr.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{CommandFactory as _, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch as latest;

use crate::config::{Config, System};
use crate::drill::scenarios;
use crate::error::{Error, Result};
use crate::files::choice::Policy;
use crate::files::write::Own;
use crate::progress::{Progress, Report};
use crate::recovery::answers::Script;
use crate::recovery::worker::{self, Away, Workers};
use crate::text;

mod files;
mod headless;
mod moment;
mod watch;

/// What a recovery from a repository with many packs needs, and room to spare.
const DESCRIPTORS: u64 = 128;

/// What is asked for beyond that, where it is allowed.
const MANY_DESCRIPTORS: u64 = 16_384;

/// What the runtime, the archive's and the repository's readers have at work at once, and room to spare.
const THREADS: usize = 16;

/// Brings lost data back: shows what a backup holds, what differs from production, writes what you approve, proves it, and
/// can undo it.
#[derive(Debug, Parser)]
#[command(
    name = "lifeboat",
    version,
    after_help = "\
Without a command, opens the console.

Examples:
  lifeboat drill                            learn it on a private sandbox, with a real incident
  lifeboat drill lost-files                 another one: files instead of rows
  lifeboat points                           what can be brought back
  lifeboat tables 1a2b3c4d                  what lies in a recovery point
  lifeboat diff 1a2b3c4d public.orders      backup against production, row by row; changes nothing
  lifeboat find important-doc               which snapshots hold such a file
  lifeboat versions /srv/a.pdf              what contents it has had, and when
  lifeboat restore-files 1a2b3c4d /srv/a.pdf   bring it back, beside what is there
  lifeboat recover --answers answers.toml   a whole recovery from a file
  lifeboat status                           what is under way, and what was left in the middle
  lifeboat attach                           back to a recovery whose terminal was lost

A repository is taken from RESTIC_REPOSITORY and RESTIC_PASSWORD_FILE (or _COMMAND), a database from PG* variables, or
both from ~/.config/lifeboat/config.toml.

Exit codes: 0 done, 2 wrong input, 3 refused (nothing was changed), 4 the backup is missing or damaged, 5 the server said
no or went away, 6 not known whether a commit happened, 70 a defect of Lifeboat, 130 cancelled."
)]
struct Arguments {
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE", env = "LIFEBOAT_CONFIG")]
    config: Option<PathBuf>,
    /// Which system of the configuration is meant
    #[arg(long, global = true, value_name = "NAME")]
    system: Option<String>,
    /// The database, as a libpq URL or keywords (without a password: use .pgpass or a service)
    #[arg(long, global = true, value_name = "CONNINFO")]
    database: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Open the console (the default), on a repository or on a dump
    Console {
        /// A dump on disk (file or folder) instead of a repository
        #[arg(long, value_name = "PATH")]
        dump: Option<PathBuf>,
    },
    /// Practise on a private sandbox: a real server, a real repository, a real incident
    Drill {
        /// What has happened
        #[arg(default_value = scenarios::ALL[0].name, value_parser = scenario_names())]
        scenario: String,
        /// Answer from a file instead of opening the console (the default without a terminal)
        #[arg(long, value_name = "FILE")]
        answers: Option<PathBuf>,
    },
    /// List the recovery points, newest first
    Points {
        #[arg(long)]
        json: bool,
    },
    /// List the tables of a dump, beside the live ones when a database is given
    Tables {
        /// A snapshot, SNAPSHOT:PATH, or a dump on disk
        point: String,
        #[arg(long)]
        json: bool,
    },
    /// Stage tables beside production, compare them row by row, report, and clean up
    Diff {
        /// A snapshot, SNAPSHOT:PATH, or a dump on disk
        point: String,
        #[arg(required = true, value_name = "SCHEMA.TABLE")]
        tables: Vec<String>,
        #[arg(long)]
        json: bool,
        /// Print up to N differing rows of each table
        #[arg(long, value_name = "N", default_value_t = 0)]
        rows: u32,
        /// Columns that pair the rows of a table without a key
        #[arg(long, value_name = "COLUMN", value_delimiter = ',')]
        key: Vec<String>,
    },
    /// A whole recovery, answered from a file; consent is the typed name, given in the file
    #[command(after_help = headless::ANSWERS_HELP)]
    Recover {
        #[arg(long, value_name = "FILE")]
        answers: PathBuf,
        /// A dump on disk (file or folder) instead of a repository
        #[arg(long, value_name = "PATH")]
        dump: Option<PathBuf>,
        #[arg(long)]
        json: bool,
    },
    /// List a folder of a snapshot, beside what is here now
    Ls {
        /// A snapshot, or SNAPSHOT:PATH
        point: String,
        /// Everything beneath it, a path a line
        #[arg(long, short)]
        recursive: bool,
        #[arg(long)]
        json: bool,
    },
    /// Search the files of all snapshots, or of one, by some letters of the path
    #[command(after_help = format!("Words that narrow a search: {}", crate::files::catalog::QUERY_HELP))]
    Find {
        #[arg(required = true)]
        words: Vec<String>,
        /// Search only this snapshot
        #[arg(long, value_name = "SNAPSHOT")]
        point: Option<String>,
        #[arg(long, default_value_t = 50)]
        limit: usize,
        #[arg(long)]
        json: bool,
    },
    /// List the contents that one path has had over all snapshots
    Versions {
        path: String,
        /// Compare two of them line by line: each is a snapshot, or "live"
        #[arg(long, num_args = 2, value_names = ["FROM", "TO"])]
        diff: Option<Vec<String>>,
        #[arg(long)]
        json: bool,
    },
    /// List what changed since a snapshot, the worst folders first, and the first snapshot that has the damage
    Changes {
        before: String,
        /// Another snapshot, or "live": this machine now
        after: String,
        /// Only at and beneath this path
        #[arg(long, default_value = "/")]
        path: String,
        #[arg(long, default_value_t = 100)]
        limit: usize,
        #[arg(long)]
        json: bool,
    },
    /// Print a file of a snapshot
    Cat {
        /// SNAPSHOT:PATH
        file: String,
    },
    /// Bring files and folders back: into a new folder, or in place of the present ones, which are kept
    RestoreFiles(RestoreFiles),
    /// List what moments can be reached from base backups and a WAL archive, and the gaps
    Windows(moment::Windows),
    /// Lay out a second cluster as of a moment in time, beside production; or remove it
    Clone(moment::Clone),
    /// List the commits that touched a table in a span of time, out of the WAL
    Moments(moment::Moments),
    /// Take back what a recovery wrote, for the rows that nobody changed since
    Undo {
        recovery: String,
        /// What you would type to consent: the names of the tables
        #[arg(long, value_name = "NAMES")]
        consent: Option<String>,
    },
    /// List the recoveries: which are under way, which have ended, and which were left in the middle
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Open the console on a recovery that is under way (the newest one, unless said otherwise)
    Attach { recovery: Option<String> },
    /// Take over a recovery whose process was killed: find out what was committed, prove it, clean up
    Resume { recovery: String },
    /// Ask a recovery that is under way to stop, and clean up after it
    Abort { recovery: String },
    /// Remove what killed recoveries have left in production, and pre-images that are old enough
    Clean {
        /// What you would type to consent: "remove 2 schemas"
        #[arg(long, value_name = "WORDS")]
        consent: Option<String>,
    },
    /// Print the journal of a recovery, or verify it
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Journal {
        #[arg(required = true)]
        recovery: Option<String>,
        #[command(subcommand)]
        verify: Option<Verify>,
    },
    /// Print the report of a recovery
    Report { recovery: String },
    /// Hold a recovery for consoles to look on; started by them
    #[command(hide = true)]
    Worker,
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
    /// Print the manual page
    Man,
}

/// The drills that there are, each with what happened.
fn scenario_names() -> PossibleValuesParser {
    scenarios::ALL.map(|scenario| PossibleValue::new(scenario.name).help(scenario.title)).into()
}

/// What is brought back, and how.
#[derive(Debug, clap::Args)]
struct RestoreFiles {
    /// A snapshot
    point: String,
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
    /// The whole path of a folder that is not there yet (default: one in the home folder)
    #[arg(long, value_name = "FOLDER", conflicts_with = "in_place")]
    into: Option<PathBuf>,
    /// Put them back where they were; what stands there is kept as NAME.pre-RECOVERY
    #[arg(long)]
    in_place: bool,
    /// In place: only what is gone
    #[arg(long, requires = "in_place")]
    missing_only: bool,
    /// In place: what is gone, and of what changed only files that are named here by themselves
    #[arg(long, requires = "in_place", conflicts_with = "missing_only")]
    keep_in_folders: bool,
    /// In place: leave this file or folder as it is, of those that the plan names; may be given several times
    #[arg(long, value_name = "PATH", requires = "in_place")]
    except: Vec<String>,
    /// Whose they will be
    #[arg(long, value_enum)]
    owner: Option<Owner>,
    /// What you would type to consent, in place: the file's name, or "put back 2 files"
    #[arg(long, value_name = "WORDS")]
    consent: Option<String>,
}

impl RestoreFiles {
    /// The answers that a console would be given, and the words of consent.
    fn script(self) -> Result<(Script, Option<String>)> {
        let policies = [(self.missing_only, Policy::Missing), (self.keep_in_folders, Policy::MissingAndMarked)];
        let script = Script {
            point: Some(self.point),
            files: self.paths,
            into: self.into.map(|folder| whole(&folder)).transpose()?,
            in_place: self.in_place,
            policy: policies.iter().find_map(|(wanted, policy)| wanted.then_some(*policy)),
            except: self.except,
            own: self.owner.map(|owner| match owner {
                Owner::Names => Own::Names,
                Owner::Numbers => Own::Numbers,
                Owner::Me => Own::Me,
            }),
            ..Script::default()
        };
        Ok((script, self.consent))
    }
}

/// Whose files will be.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Owner {
    /// Whoever has the recorded name here
    Names,
    /// The recorded numbers
    Numbers,
    /// Whoever runs this
    Me,
}

#[derive(Debug, Subcommand)]
enum Verify {
    /// Check the chain of hashes, and the heads that production and the report keep
    Verify { recovery: String },
}

/// Runs the command line and returns the exit code.
pub fn main() -> u8 {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => 0,
        Err(error) => {
            explain(&error);
            error.exit_code()
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    match &arguments.command {
        Some(Command::Completions { shell }) => {
            clap_complete::generate(*shell, &mut Arguments::command(), "lifeboat", &mut io::stdout());
            return Ok(());
        }
        Some(Command::Man) => {
            return clap_mangen::Man::new(Arguments::command())
                .render(&mut io::stdout())
                .map_err(|error| output_failed(&error));
        }
        Some(_) | None => {}
    }
    enough_descriptors()?;
    enough_threads()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::operator("cannot start threads").detail(error))?;
    let done = runtime.block_on(dispatch(arguments));
    // A blocking read of a slow repository must not hold the terminal hostage after the operator left.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// Libraries below panic where no file can be opened; better to say so before anything is begun.
fn enough_descriptors() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return Ok(()) };
    // Each folder in which files are put back is held open.
    let raised = soft.max(hard.min(MANY_DESCRIPTORS));
    let most = setrlimit(Resource::RLIMIT_NOFILE, raised, hard).map_or(soft, |()| raised);
    if most >= DESCRIPTORS {
        return Ok(());
    }
    Err(Error::operator(format!("this process may open no more than {most} files at once"))
        .hint(format!("Allow more, and start again: ulimit -n {DESCRIPTORS}.")))
}

/// The runtime waits for ever for a thread that it cannot have; better to say so before anything is begun.
fn enough_threads() -> Result<()> {
    let gate = Mutex::new(());
    let started = std::thread::scope(|scope| {
        let _held = gate.lock();
        let start = || std::thread::Builder::new().spawn_scoped(scope, || drop(gate.lock())).map(drop);
        (0..THREADS).try_for_each(|_| start())
    });
    started.map_err(|error| {
        Error::operator(format!("this process cannot start {THREADS} threads"))
            .detail(error)
            .hint("Allow more processes to this user (ulimit -u), or end some, and start again.")
    })
}

async fn dispatch(arguments: Arguments) -> Result<()> {
    let mut command = arguments.command.unwrap_or(Command::Console { dump: None });
    if let Command::Drill { scenario, answers } = command {
        let config = Config::load(arguments.config.as_deref())?;
        let scenario = scenarios::ALL.into_iter().find(|known| known.name == scenario);
        let scenario = scenario.ok_or_else(|| Error::bug("a drill was chosen that does not exist"))?;
        return Box::pin(headless::drill(scenario, answers, &config)).await;
    }
    if let Command::Worker = command {
        return worker::attend().await;
    }
    let state = crate::config::state_folder()?;
    match command {
        Command::Journal { recovery: Some(recovery), .. } => return headless::journal(&state, &recovery),
        Command::Report { recovery } => return headless::report(&state, &recovery),
        Command::Status { json } => return headless::status(&state, json),
        _ => {}
    }
    if let Command::Attach { recovery: recovery @ None } = &mut command {
        *recovery = Some(headless::newest_under_way(&state)?);
    }
    let mut config = Config::load(arguments.config.as_deref())?;
    if let (
        None,
        Command::Attach { recovery: Some(recovery) }
        | Command::Resume { recovery }
        | Command::Abort { recovery }
        | Command::Journal { verify: Some(Verify::Verify { recovery }), .. },
    ) = (&arguments.system, &command)
    {
        // A recovery knows its system.
        let name = headless::system_of(&state, recovery)?;
        config.systems.retain(|system| system.name == name);
    }
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    if config.systems.len() > 1 && arguments.system.is_none() && terminal && matches!(command, Command::Console { .. })
    {
        let place = ask_system(&config)?;
        config.systems = vec![config.systems.swap_remove(place)];
    }
    let mut system = choose(config, arguments.system.as_deref())?;
    if let Some(database) = arguments.database {
        system.database = Some(database);
    }
    match command {
        Command::Console { dump } => console(system, dump, None, state).await,
        Command::Attach { recovery } => console(system, None, recovery, state).await,
        Command::Points { json } => Box::pin(headless::points(system, json)).await,
        Command::Tables { point, json } => Box::pin(headless::tables(system, &point, json)).await,
        Command::Diff { point, tables, json, rows, key } => {
            Box::pin(headless::diff(system, &headless::Diff { point, tables, rows, key }, json)).await
        }
        Command::Recover { answers, dump, json } => {
            Box::pin(headless::recover(system, &answers, dump, &state, json)).await
        }
        Command::Ls { point, recursive, json } => files::ls(system, &point, recursive, json).await,
        Command::Find { words, point, limit, json } => files::find(system, point.as_deref(), &words, limit, json).await,
        Command::Versions { path, diff, json } => {
            let pair = diff.and_then(|pair| <[String; 2]>::try_from(pair).ok()).map(|[from, to]| (from, to));
            files::versions(system, &path, pair, json).await
        }
        Command::Changes { before, after, path, limit, json } => {
            let asked = files::Changes { before: &before, after: &after, path: &path, limit };
            files::changes(system, &asked, json).await
        }
        Command::Cat { file } => files::cat(system, &file).await,
        Command::RestoreFiles(asked) => {
            let (script, consent) = asked.script()?;
            headless::restore_files(system, &script, consent, &state).await
        }
        Command::Resume { recovery } => Box::pin(headless::resume(system, &recovery, &state)).await,
        Command::Abort { recovery } => Box::pin(headless::abort(system, &recovery, &state)).await,
        Command::Journal { verify: Some(Verify::Verify { recovery }), .. } => {
            Box::pin(headless::verify(system, &recovery, &state)).await
        }
        Command::Clean { consent } => headless::clean_up(system, consent, &state).await,
        Command::Windows(asked) => moment::windows(system, asked).await,
        Command::Clone(asked) => Box::pin(moment::clone(system, asked)).await,
        Command::Moments(asked) => Box::pin(moment::moments(system, asked)).await,
        Command::Undo { recovery, consent } => Box::pin(headless::undo(system, &recovery, consent, &state)).await,
        Command::Drill { .. }
        | Command::Worker
        | Command::Journal { .. }
        | Command::Status { .. }
        | Command::Report { .. }
        | Command::Completions { .. }
        | Command::Man => Err(Error::bug("a command was lost on its way")),
    }
}

/// The whole path of one that may be relative to where we are.
fn whole(path: &Path) -> Result<String> {
    let whole = std::path::absolute(path).map_err(|error| Error::operator("that is no path").detail(error))?;
    whole.into_os_string().into_string().map_err(|_| Error::operator("a folder to restore into needs a name in UTF-8"))
}

async fn console(system: System, dump: Option<PathBuf>, attach: Option<String>, state: PathBuf) -> Result<()> {
    crate::ui::run(crate::ui::Console {
        system: system.name.clone(),
        environment: system.environment.to_string(),
        keep_undo: system.keep_undo,
        workers: Arc::new(Workers::Detached { system, dump, away: Away::Person }),
        state,
        attach,
        machine: None,
        briefing: None,
        verdict: None,
        now: chrono::Utc::now,
    })
    .await
}

/// The system that is meant: the named one, or the only one.
fn choose(config: Config, name: Option<&str>) -> Result<System> {
    let names: Vec<_> = config.systems.iter().map(|system| system.name.clone()).collect();
    let mut systems = config.systems.into_iter();
    let system = match name {
        Some(name) => systems.find(|system| system.name == name),
        None if names.len() == 1 => systems.next(),
        None => None,
    };
    system.ok_or_else(|| {
        match name {
            Some(name) => Error::operator(format!("there is no system \"{name}\" in the configuration")),
            None => Error::operator("the configuration names several systems"),
        }
        .hint(format!("Choose one with --system: {}.", names.join(", ")))
    })
}

/// Asks which system the console is to be opened on. Returns its place in the configuration.
fn ask_system(config: &Config) -> Result<usize> {
    print("Which system?")?;
    for (number, system) in config.systems.iter().enumerate() {
        let mut line = format!("  {}  {}  {}", number + 1, text::clean(&system.name), system.environment);
        for (label, objective) in [("RPO", system.rpo), ("RTO", system.rto)] {
            if let Some(objective) = objective {
                line.extend(["  ", label, " ", &text::duration(objective)]);
            }
        }
        if let Some(documentation) = &system.documentation {
            line.extend(["  ", &text::clean(documentation)]);
        }
        print(&line)?;
    }
    loop {
        let _ = write!(io::stdout(), "Its number or name (nothing to leave): ").and_then(|()| io::stdout().flush());
        let mut answer = String::new();
        let read = io::stdin().read_line(&mut answer);
        read.map_err(|error| Error::operator("cannot read the answer").detail(error))?;
        let answer = answer.trim();
        if answer.is_empty() {
            return Err(Error::cancelled());
        }
        // A name goes first: it may look like a number.
        let named = config.systems.iter().position(|system| system.name == answer);
        let numbered = || answer.parse().ok().filter(|number| (1..=config.systems.len()).contains(number));
        if let Some(place) = named.or_else(|| numbered().map(|number: usize| number - 1)) {
            return Ok(place);
        }
    }
}

/// Prints an error as plain text on stderr: what happened, the other side's words, what to do.
fn explain(error: &Error) {
    let mut stderr = io::stderr().lock();
    let _ = writeln!(stderr, "lifeboat: {}", text::clean(&error.message));
    for line in error.detail.iter().flat_map(|detail| detail.lines()) {
        let _ = writeln!(stderr, "  | {}", text::clean(line));
    }
    for hint in &error.hints {
        let _ = writeln!(stderr, "  {}", text::clean(hint));
    }
}

/// Tells the operator something that is no result.
fn tell(words: &str) {
    let _ = writeln!(io::stderr(), "lifeboat: {}", text::clean(words));
}

/// Prints a line on stdout. A reader that went away ends the program as it would end any other filter.
fn print(line: &str) -> Result<()> {
    writeln!(io::stdout(), "{line}").map_err(|error| output_failed(&error))
}

fn output_failed(error: &io::Error) -> Error {
    Error::operator("cannot write the output").detail(error)
}

/// What may ask a command to stop.
struct Signals {
    interrupted: Signal,
    terminated: Signal,
    hung_up: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|error| Error::operator("cannot listen for signals").detail(error));
        Ok(Self {
            interrupted: listen(SignalKind::interrupt())?,
            terminated: listen(SignalKind::terminate())?,
            hung_up: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupted.recv() => SignalKind::interrupt(),
            _ = self.terminated.recv() => SignalKind::terminate(),
            _ = self.hung_up.recv() => SignalKind::hangup(),
        }
    }

    /// Waits for the operator's wish; a terminal that goes away is none.
    async fn wish(&mut self) {
        while self.next().await == SignalKind::hangup() {}
    }
}

/// Shows progress on stderr while a future runs: a line that rewrites itself on a terminal, nothing elsewhere.
async fn showing<T>(
    mut reports: latest::Receiver<Report>,
    stop: impl Fn(SignalKind),
    signals: &mut Signals,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> T {
    let terminal = io::stderr().is_terminal();
    let begun = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let mut shown = false;
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            kind = signals.next() => stop(kind),
            _ = tick.tick(), if terminal => {
                if begun.elapsed() > Duration::from_millis(250) && reports.has_changed().unwrap_or(false) {
                    let line = progress_line(&reports.borrow_and_update());
                    let _ = write!(io::stderr(), "\r\x1b[K{line}");
                    shown = true;
                }
            }
        }
    };
    if shown {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    result
}

/// Shows the progress of what this process does itself. Ctrl-C, SIGTERM and a terminal that goes away cancel.
async fn with_progress<T>(progress: &Progress, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut signals = Signals::listen()?;
    showing(progress.watch(), |_| progress.cancel(), &mut signals, pin!(work)).await
}

fn progress_line(report: &Report) -> String {
    let amounts = report.amounts();
    let doing = text::clean(&report.doing);
    if amounts.is_empty() { doing.into_owned() } else { format!("{doing}: {}", amounts.join(", ")) }
}

/// A recovery's folder beneath the state folder; the id may not lead anywhere else.
fn recovery_folder(state: &Path, id: &str) -> Result<PathBuf> {
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(
            Error::operator(format!("\"{id}\" is not the id of a recovery")).hint("lifeboat status lists them.")
        );
    }
    Ok(state.join("recoveries").join(id))
}
