//! Where a worker runs: in a process of its own for a configured system, in the console's for a drill, whose sandbox goes away
//! with the console. A console finds it by the socket in the recovery's folder.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Event, Input, Start, Viewer, serve};
use crate::config::System;
use crate::error::{Error, Result};
use crate::recovery::journal::{self, Operator};
use crate::recovery::run::Standing;
use crate::recovery::systems::Systems;
use crate::recovery::{Flow, Recovery};

const SOCKET: &str = "worker.sock";

/// How long a process that was killed may still seem to be there.
const ENDING: Duration = Duration::from_secs(2);

/// How long a worker may take to begin.
const BEGINNING: Duration = Duration::from_secs(20);

/// How long a recovery waits for an answer with nobody looking on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Away {
    /// Half a day: whoever began it in a console comes back.
    Person,
    /// Some seconds: a command that is gone answers no more.
    Command,
}

impl Away {
    pub(super) fn longest(self) -> Duration {
        match self {
            Self::Person => Duration::from_hours(12),
            Self::Command => Duration::from_secs(10),
        }
    }
}

/// How a console gets at workers.
pub enum Workers {
    /// Each in a process of its own, which outlives the console.
    Detached {
        /// The system that recoveries are of.
        system: System,
        /// A dump on disk in place of the system's repository.
        dump: Option<PathBuf>,
        /// Who may come back to them.
        away: Away,
    },
    /// In this process: what they work on goes away with it.
    Here {
        /// The way to everything outside.
        systems: Arc<Systems>,
        /// The system that recoveries are of.
        system: System,
    },
}

/// What a worker is started for; handed over on its standard input, since arguments are for everybody to read.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    system: System,
    dump: Option<PathBuf>,
    state: PathBuf,
    operator: Operator,
    task: Task,
    away: Away,
}

/// By their ids: recoveries whose process has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Task {
    Begin(Flow),
    /// Go on with what was being decided, or settle what was consented to.
    TakeOver(String),
    /// Settle what was consented to, or leave it.
    Settle(String),
}

type Attached = (Viewer, UnboundedReceiver<Event>);

impl Workers {
    /// Begins a recovery and looks on.
    pub async fn begin(&self, flow: Flow, state: &Path) -> Result<Attached> {
        self.start(Task::Begin(flow), state).await
    }

    /// Looks on at a recovery, whose process is taken over from when it has ended.
    pub async fn go_on(&self, id: &str, state: &Path) -> Result<Attached> {
        let begun = Instant::now();
        while let Standing::UnderWay { .. } = Standing::of(&state.join("recoveries").join(id)) {
            match Self::attach(id, state).await {
                // A process that is being killed lets nobody in, and keeps its lock for a moment more.
                Err(_) if begun.elapsed() < ENDING => tokio::time::sleep(Duration::from_millis(50)).await,
                attached => return attached,
            }
        }
        self.start(Task::TakeOver(id.into()), state).await
    }

    /// Finds out what became of a recovery whose process has ended, brings it to its end, and looks on at that.
    ///
    /// Errors: it is under way; it is not there, or its journal is damaged.
    pub async fn settle(&self, id: &str, state: &Path) -> Result<Attached> {
        self.start(Task::Settle(id.into()), state).await
    }

    /// Looks on at a recovery that is under way.
    ///
    /// Errors: its process has no socket, since it is none of ours or has just ended.
    pub async fn attach(id: &str, state: &Path) -> Result<Attached> {
        let folder = state.join("recoveries").join(id);
        let stream = connect(&folder).await.map_err(|error| {
            Error::target(format!("cannot attach to recovery {id}"))
                .detail(error)
                .hint("It may have just ended: lifeboat status tells.")
        })?;
        // Whoever can write into the folder could have put a socket there; only root and we ourselves can.
        let owner = stream.peer_cred().map_or(u32::MAX, |peer| peer.uid());
        if owner != nix::unistd::geteuid().as_raw() {
            return Err(Error::refused(format!("the worker of recovery {id} runs as another user, {owner}")));
        }
        Viewer::attach(stream).await
    }

    async fn start(&self, task: Task, state: &Path) -> Result<Attached> {
        let operator = journal::operator();
        match self {
            Self::Detached { system, dump, away } => {
                let (system, dump, state) = (system.clone(), dump.clone(), state.to_owned());
                let order = Order { system, dump, state, operator, task, away: *away };
                let id = tokio::time::timeout(BEGINNING, spawn(&order)).await.unwrap_or_else(|_| {
                    Err(Error::target("the worker did not begin in time")
                        .hint("This machine may be overloaded. lifeboat status tells whether it has begun since."))
                })?;
                Self::attach(&id, &order.state).await
            }
            Self::Here { systems, system } => {
                let (recovery, start) = open(&task, system, state, operator)?;
                let failed = |error| Error::bug("no socket could be made").detail(error);
                let (ours, theirs) = UnixStream::pair().map_err(failed)?;
                let (inputs, incoming) = unbounded_channel();
                let _ = inputs.send(Input::Arrived(theirs));
                tokio::spawn(serve(recovery, start, systems.clone(), (inputs, incoming), None));
                Viewer::attach(ours).await
            }
        }
    }
}

fn open(task: &Task, system: &System, state: &Path, operator: Operator) -> Result<(Recovery, Start)> {
    let (recovery, start) = match task {
        Task::Begin(flow) => (Recovery::start(flow.clone(), &system.name, state, operator)?, Start::Anew),
        Task::TakeOver(id) => {
            let (recovery, lines) = Recovery::reopen(id, state, operator)?;
            (recovery, Start::Again(lines))
        }
        Task::Settle(id) => {
            let (recovery, lines) = Recovery::reopen(id, state, operator)?;
            (recovery, Start::Settle(lines))
        }
    };
    Ok((recovery.of_system(system), start))
}

/// Starts this program again as a worker. Returns the recovery's id when it has begun and can be attached to.
async fn spawn(order: &Order) -> Result<String> {
    let program = std::env::current_exe().map_err(|error| cannot_start(&error))?;
    let text = serde_json::to_vec(order).map_err(|error| Error::bug("an order cannot be written").detail(error))?;
    if let Some(mut scope) = scope() {
        scope.arg(&program);
        // A session that systemd does not manage after all is none that it ends.
        if let Ok(begun) = hand_over(scope, &text).await {
            return begun;
        }
    }
    hand_over(Command::new(program), &text).await?
}

/// Gives a process its order. The error: it did not get so far as to answer.
async fn hand_over(mut command: Command, order: &[u8]) -> Result<Result<String>> {
    let failed = |error: std::io::Error| cannot_start(&error);
    command.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(Error::bug("a child has no pipes"));
    };
    stdin.write_all(order).await.map_err(failed)?;
    drop(stdin);
    let mut answer = String::new();
    BufReader::new(stdout).read_line(&mut answer).await.map_err(failed)?;
    // Whatever becomes of it later, its exit is waited for, so that no dead process stays.
    tokio::spawn(async move { child.wait().await });
    serde_json::from_str(&answer).map_err(|error| cannot_start(&error))
}

fn cannot_start(error: &dyn std::error::Error) -> Error {
    Error::operator("cannot start the worker of this recovery")
        .detail(error)
        .hint("Check the limits of processes and memory of this user, then try again.")
}

/// Where systemd ends everything of a session at logout, the worker goes into a scope of its own.
fn scope() -> Option<Command> {
    let managed = Path::new("/run/systemd/system").exists();
    let root = nix::unistd::geteuid().is_root();
    let reachable = root || std::env::var_os("XDG_RUNTIME_DIR").is_some();
    let found = std::env::split_paths(&std::env::var_os("PATH")?).any(|folder| folder.join("systemd-run").is_file());
    (managed && reachable && found).then(|| {
        let mut command = Command::new("systemd-run");
        command.args(if root { &[][..] } else { &["--user"] });
        command.args(["--scope", "--quiet", "--collect", "--"]);
        command
    })
}

/// Runs as a worker: takes the order from standard input, tells on standard output how it began, and returns when the
/// recovery has come to its end or was left.
pub async fn attend() -> Result<()> {
    // Of a session of its own no terminal can take it along. One that leads a session already was started by hand.
    let _ = nix::unistd::setsid();
    let cannot = |error: std::io::Error| Error::operator("cannot read the order").detail(error);
    let mut text = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut tokio::io::stdin(), &mut text).await.map_err(cannot)?;
    let order: Order = serde_json::from_str(&text).map_err(|error| {
        Error::operator("this is no order for a worker")
            .detail(error)
            .hint("Workers are started by the console: lifeboat.")
    })?;
    crate::panics::keep();
    let begun = open(&order.task, &order.system, &order.state, order.operator.clone()).and_then(|(recovery, start)| {
        let listener = listen(&recovery.folder())?;
        Ok((recovery, start, listener))
    });
    let answer = begun.as_ref().map(|(recovery, ..)| recovery.id.clone()).map_err(Clone::clone);
    let answer =
        serde_json::to_string(&answer).map_err(|error| Error::bug("no answer can be written").detail(error))?;
    // A console that is gone by now finds the recovery in its list.
    let mut stdout = tokio::io::stdout();
    let _ = stdout.write_all((answer + "\n").as_bytes()).await;
    let _ = stdout.flush().await;
    let Ok((recovery, start, listener)) = begun else { return Ok(()) };
    let folder = recovery.folder();
    let (inputs, incoming) = unbounded_channel();
    tokio::spawn(let_in(listener, inputs.clone()));
    tokio::spawn(heed_signals(inputs.clone()));
    let systems = Arc::new(Systems::new(order.system, order.dump));
    serve(recovery, start, systems, (inputs, incoming), Some(order.away)).await;
    let _ = fs::remove_file(folder.join(SOCKET));
    Ok(())
}

/// The recovery's folder by a short name: a socket's path has little room.
fn short(folder: &fs::File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(SOCKET)
}

async fn connect(folder: &Path) -> std::io::Result<UnixStream> {
    let folder = fs::File::open(folder)?;
    UnixStream::connect(short(&folder)).await
}

/// Only who holds the journal comes here, so that a socket that is there already belongs to nobody.
fn listen(folder: &Path) -> Result<UnixListener> {
    let failed = |error: std::io::Error| {
        Error::operator(format!("cannot make a socket in {}", folder.display())).detail(error).hint(
            "Check that the folder can be written and that the disk is not full; XDG_STATE_HOME chooses another place.",
        )
    };
    let _ = fs::remove_file(folder.join(SOCKET));
    let held = fs::File::open(folder).map_err(failed)?;
    let listener = UnixListener::bind(short(&held)).map_err(failed)?;
    fs::set_permissions(folder.join(SOCKET), fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

async fn let_in(listener: UnixListener, inputs: UnboundedSender<Input>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let same = stream.peer_cred().is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw());
                if same && inputs.send(Input::Arrived(stream)).is_err() {
                    break;
                }
            }
            // Too many files are open; later there may be fewer.
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// A terminal that hangs up means nothing to a worker; being asked to stop does.
async fn heed_signals(inputs: UnboundedSender<Input>) {
    let (Ok(mut terminated), Ok(mut hung_up), Ok(mut interrupted)) =
        (signal(SignalKind::terminate()), signal(SignalKind::hangup()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    loop {
        tokio::select! {
            _ = terminated.recv() => {
                if inputs.send(Input::Terminated).is_err() {
                    return;
                }
            }
            _ = hung_up.recv() => {}
            _ = interrupted.recv() => {}
        }
    }
}
