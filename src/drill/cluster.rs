//! A private PostgreSQL server in a folder: Unix socket only, no TCP, gone when dropped. Drills run against it, and so do
//! the tests. PostgreSQL refuses to run as root, so root starts it as an ordinary user.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, chown};

use crate::error::{Error, Result};
use crate::postgres::cluster::ordinary_user;

/// How long a server may take to start or to stop.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running server. Dropping it stops the server and removes its folder, also when this process is killed.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    programs: PathBuf,
    settings: Vec<String>,
    server: Option<Child>,
    /// Dropped after `Drop` has stopped the server, so that it finds nothing to stop when we go in good order.
    #[expect(dead_code, reason = "it acts when we are gone")]
    guard: Option<Guard>,
}

/// What the guard of a server does: stops the server and removes its folder.
const STOP_AND_REMOVE: &str = r#"
if pid=$(head -n 1 "$1/data/postmaster.pid" 2> /dev/null); then
    kill -QUIT "$pid"
    while kill -0 "$pid" 2> /dev/null; do sleep 0.1; done
fi
rm -rf "$1"
"#;

impl Cluster {
    /// Creates and starts a server in a folder that must not exist yet. `programs` holds `initdb` and `postgres`.
    /// Settings are like `track_commit_timestamp=on`.
    pub fn create(folder: &Path, programs: &Path, settings: &[&str]) -> Result<Self> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Error::operator(format!("cannot create the private PostgreSQL server in {}", folder.display()))
                .detail(format!("{what}: {error}"))
        };
        fs::create_dir(folder).map_err(|error| failed("folder", &error))?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(|error| failed("folder", &error))?;
        if let Some(user) = ordinary_user()? {
            chown(folder, Some(user.uid), Some(user.gid)).map_err(|error| failed("owner", &error))?;
        }
        let mut cluster = Self {
            folder: folder.to_owned(),
            programs: programs.to_owned(),
            settings: settings.iter().map(ToString::to_string).collect(),
            server: None,
            guard: Some(Guard::start(STOP_AND_REMOVE, folder).map_err(|error| failed("guard", &error))?),
        };
        let output = cluster
            .command("initdb")?
            .arg("--pgdata")
            .arg(cluster.data())
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"])
            .output()
            .map_err(|error| failed("initdb", &error))?;
        if !output.status.success() {
            return Err(failed("initdb", &String::from_utf8_lossy(&output.stderr)));
        }
        cluster.start()?;
        Ok(cluster)
    }

    /// Starts the server again after [`Cluster::kill`].
    pub fn start(&mut self) -> Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.log());
        let failed = |why: String| Error::operator("the private PostgreSQL server does not start").detail(why);
        let log = log.map_err(|error| failed(error.to_string()))?;
        let mut command = self.command("postgres")?;
        command.arg("-D").arg(self.data()).args(["-c", "listen_addresses=", "-c"]);
        command.arg(format!("unix_socket_directories={}", self.folder.display()));
        // Durability is not lost with fsync off as long as the machine itself stays up, and a sandbox does not outlive it.
        for setting in ["fsync=off", "logging_collector=off", "timezone=UTC"].iter().copied() {
            command.args(["-c", setting]);
        }
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut server = command.spawn().map_err(|error| failed(error.to_string()))?;
            while matches!(server.try_wait(), Ok(None)) && Instant::now() < deadline {
                // The first line is the process, which may have been killed; the last says what state the server is in:
                // `ready` once connections are taken.
                let state = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
                let ours = state.lines().next().is_some_and(|line| line.trim() == server.id().to_string());
                if ours && state.lines().nth(7).is_some_and(|line| line.trim() == "ready") {
                    self.server = Some(server);
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let said = fs::read_to_string(self.log()).unwrap_or_default();
            // After a crash the old server's sessions may take a moment to notice that it is gone.
            if Instant::now() > deadline
                || !said.trim_end().lines().next_back().is_some_and(|line| {
                    line.contains("old server") || line.contains("still in use") || line.contains("lock file")
                })
            {
                self.server = Some(server);
                return Err(failed(said));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the server as a crash would: SIGKILL to the postmaster and everything it started.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let group = Pid::from_raw(-i32::try_from(server.id()).unwrap_or(i32::MAX));
            let _ = kill(group, Signal::SIGKILL);
            let _ = server.wait();
        }
    }

    /// A libpq connection string for one of its databases.
    pub fn conninfo(&self, database: &str) -> String {
        format!("host={} user=postgres dbname={database}", self.folder.display())
    }

    /// The folder that holds the socket.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A command of this server's version, run as the server's user.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir("/").env_clear().env("LC_ALL", "C.UTF-8").env("PATH", "/usr/bin:/bin").env("TZ", "UTC");
        command.env("PGHOST", &self.folder).env("PGUSER", "postgres");
        if let Some(user) = ordinary_user()? {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        Ok(command)
    }

    /// The data directory, as `initdb` made it.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What the server prints, in one file.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        // SIGINT asks for a fast shutdown: open transactions are rolled back, nobody is waited for.
        let _ = kill(Pid::from_raw(i32::try_from(server.id()).unwrap_or(i32::MAX)), Signal::SIGINT);
        let deadline = Instant::now() + PATIENCE;
        while matches!(server.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                self.server = Some(server);
                self.kill();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A shell that waits until we are gone, and then cleans up after us. Its standard input is a pipe that only we hold: the
/// kernel closes it whatever we die of, kill -9 included.
#[derive(Debug)]
pub(super) struct Guard(Child);

impl Guard {
    /// `duty` is a script, run once we are gone; its `$1` is the folder.
    pub(super) fn start(duty: &str, folder: &Path) -> std::io::Result<Self> {
        Command::new("/bin/sh")
            .args(["-c", &format!("trap '' INT HUP TERM\ncat > /dev/null\n{duty}"), "guard"])
            .arg(folder)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map(Self)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Waiting closes its standard input first, so it does its duty now, and has done it when we go on.
        let _ = self.0.wait();
    }
}

/// The newest PostgreSQL server on this machine: Debian's folders first, then PATH.
pub fn programs() -> Result<PathBuf> {
    let mut versions: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some((entry.as_ref().ok()?.file_name().to_str()?.parse::<u32>().ok()?, entry.ok()?.path())))
        .collect();
    versions.sort();
    let debian = versions.into_iter().rev().map(|(_, path)| path.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    debian
        .chain(std::env::split_paths(&path).collect::<Vec<_>>())
        .find(|folder| folder.join("initdb").is_file())
        .ok_or_else(|| {
            Error::operator("no PostgreSQL server is installed on this machine")
                .hint("Install it: sudo apt-get install postgresql.")
        })
}
