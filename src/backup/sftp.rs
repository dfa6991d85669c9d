//! A folder on a machine that `ssh` reaches, read through its SFTP subsystem as restic does: with the user's own ssh
//! configuration, keys and known hosts. It never asks a question, because a console has the terminal.

use std::process::Stdio;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use openssh_sftp_client::error::SftpErrorKind;
use openssh_sftp_client::{Error as SftpError, Sftp as Client, SftpOptions};
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncSeekExt as _;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use super::location::Sftp;
use super::storage::{Cause, Trouble, runtime};

/// The most that is asked for at once; servers may give less.
const CHUNK: u32 = 256 << 10;
/// How long ssh may take to connect, in seconds.
const CONNECT_TIMEOUT: u32 = 20;

pub(super) struct SftpFolder {
    sftp: Sftp,
    /// Made when first needed, and made again after it broke.
    connection: Mutex<Option<Arc<Connection>>>,
}

struct Connection {
    client: Client,
    /// Killed when dropped.
    ssh: Mutex<Child>,
}

impl SftpFolder {
    pub(super) fn new(sftp: Sftp) -> Self {
        Self { sftp, connection: Mutex::new(None) }
    }

    /// Names and sizes of the files in a folder.
    pub(super) fn list(&self, folder: &str) -> Result<Vec<(String, u64)>, Trouble> {
        let path = self.path(folder);
        runtime().block_on(async {
            let connection = self.connection().await?;
            let listed = async {
                let mut files = Vec::new();
                let mut entries = Box::pin(connection.client.fs().open_dir(&path).await?.read_dir());
                while let Some(entry) = entries.next().await {
                    let entry = entry?;
                    if entry.file_type().is_some_and(|kind| kind.is_file()) {
                        let name = entry.filename().to_string_lossy().into_owned();
                        files.push((name, entry.metadata().len().unwrap_or_default()));
                    }
                }
                Ok(files)
            };
            self.told(&connection, listed.await).await
        })
    }

    /// A whole file, or `length` bytes from `offset`.
    pub(super) fn read(&self, path: &str, part: Option<(u32, u32)>) -> Result<Bytes, Trouble> {
        let path = self.path(path);
        runtime().block_on(async {
            let connection = self.connection().await?;
            let read = async {
                let mut file = connection.client.open(&path).await?;
                let mut left = match part {
                    None => u32::MAX,
                    Some((offset, length)) => {
                        file.seek(std::io::SeekFrom::Start(offset.into())).await.map_err(SftpError::from)?;
                        length
                    }
                };
                let mut bytes = BytesMut::new();
                while left > 0 {
                    let Some(more) = file.read(left.min(CHUNK), BytesMut::new()).await? else { break };
                    left = left.saturating_sub(u32::try_from(more.len()).unwrap_or(u32::MAX));
                    bytes.extend_from_slice(&more);
                }
                Ok(bytes.freeze())
            };
            self.told(&connection, read.await).await
        })
    }

    /// Writes a small file that is not there yet.
    pub(super) fn write(&self, path: &str, bytes: &[u8]) -> Result<(), Trouble> {
        let path = self.path(path);
        runtime().block_on(async {
            let connection = self.connection().await?;
            let written = async {
                let mut file = connection.client.options().write(true).create_new(true).open(&path).await?;
                file.write_all(bytes).await?;
                file.close().await
            };
            self.told(&connection, written.await).await
        })
    }

    /// Removes a file.
    pub(super) fn remove(&self, path: &str) -> Result<(), Trouble> {
        let path = self.path(path);
        runtime().block_on(async {
            let connection = self.connection().await?;
            let removed = connection.client.fs().remove_file(&path).await;
            self.told(&connection, removed).await
        })
    }

    fn path(&self, beneath: &str) -> String {
        format!("{}/{beneath}", self.sftp.path.trim_end_matches('/'))
    }

    async fn connection(&self) -> Result<Arc<Connection>, Trouble> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = &*held {
            return Ok(connection.clone());
        }
        let connection = Arc::new(Connection::open(&self.sftp).await?);
        *held = Some(connection.clone());
        Ok(connection)
    }

    /// Turns an error into ours, and gives the connection up when the error is not just one file's.
    async fn told<T>(&self, connection: &Arc<Connection>, result: Result<T, SftpError>) -> Result<T, Trouble> {
        match result {
            Ok(value) => Ok(value),
            Err(SftpError::SftpError(kind, words)) => {
                let cause = match kind {
                    SftpErrorKind::NoSuchFile => Cause::Missing,
                    SftpErrorKind::PermDenied => Cause::Denied,
                    _ => Cause::Unknown,
                };
                Err(Trouble { cause, words: format!("{kind:?}: {words}") })
            }
            Err(error) => {
                let mut held = self.connection.lock().await;
                held.take_if(|current| Arc::ptr_eq(current, connection));
                Err(connection.broken(&error).await)
            }
        }
    }
}

impl Connection {
    async fn open(sftp: &Sftp) -> Result<Self, Trouble> {
        let mut command = Command::new("ssh");
        command.args(["-o", "BatchMode=yes", "-o", "ServerAliveInterval=30", "-o"]);
        command.arg(format!("ConnectTimeout={CONNECT_TIMEOUT}"));
        if let Some(port) = sftp.port {
            command.args(["-p", &port.to_string()]);
        }
        command.args(["-s", "--", &sftp.destination, "sftp"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut ssh = command
            .spawn()
            .map_err(|error| Trouble { cause: Cause::Unknown, words: format!("cannot start ssh: {error}") })?;
        let (Some(to), Some(from)) = (ssh.stdin.take(), ssh.stdout.take()) else {
            return Err(Trouble { cause: Cause::Unknown, words: "ssh has no pipes".into() });
        };
        match Client::new(to, from, SftpOptions::default()).await {
            Ok(client) => Ok(Self { client, ssh: Mutex::new(ssh) }),
            Err(error) => Err(words_of(&mut ssh, &error).await),
        }
    }

    async fn broken(&self, error: &SftpError) -> Trouble {
        words_of(&mut *self.ssh.lock().await, error).await
    }
}

/// Why the connection ended: what ssh said before it went, else what the protocol noticed.
async fn words_of(ssh: &mut Child, error: &SftpError) -> Trouble {
    let _ = ssh.start_kill();
    let mut said = String::new();
    if let Some(stderr) = ssh.stderr.take() {
        let _ = stderr.take(16 << 10).read_to_string(&mut said).await;
    }
    let cause = if said.contains("Permission denied") || said.contains("Host key verification failed") {
        Cause::Denied
    } else {
        Cause::Unreachable
    };
    let said = said.trim();
    Trouble { cause, words: if said.is_empty() { error.to_string() } else { said.to_owned() } }
}
