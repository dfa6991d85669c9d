//! The restic repository of a sandbox, written by restic itself.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use chrono::{DateTime, Utc};

use super::sandbox::{failed, finish};
use crate::error::Result;

/// A repository in the sandbox's folder, its password beside it.
pub(super) struct Repository {
    folder: PathBuf,
}

impl Repository {
    /// Makes the tree's folder and a password; there is no repository before [`Repository::initialise`].
    pub(super) fn new(folder: &Path) -> Result<Self> {
        fs::create_dir(folder.join("file-server")).map_err(|error| failed("file-server", error))?;
        let mut noise = [0; 16];
        let password = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut noise)).and_then(|()| {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(folder.join("password"))?;
            writeln!(file, "{:032x}", u128::from_ne_bytes(noise))
        });
        password.map_err(|error| failed("password", error))?;
        Ok(Self { folder: folder.to_owned() })
    }

    pub(super) fn initialise(&self) -> Result<()> {
        finish(self.restic(&["init", "--repository-version", "2"]).output(), "restic init").map(drop)
    }

    /// The folder of the file server's tree.
    pub(super) fn tree(&self) -> PathBuf {
        self.folder.join("file-server")
    }

    /// Stores a dump under the path that it has on the database server of the procedure, and removes the file.
    /// `at` is the snapshot's instant; without it, it is now.
    pub(super) fn back_up_dump(&self, dump: &Path, at: Option<DateTime<Utc>>) -> Result<()> {
        let name = Path::new("/backup/staging").join(dump.file_name().unwrap_or_default());
        let file = File::open(dump).map_err(|error| failed("dump", error))?;
        let mut restic = self.restic(&["backup", "--host", "db-server", "--tag", "postgresql,programme_db", "--stdin"]);
        restic.arg("--stdin-filename").arg(name).stdin(file);
        if let Some(at) = at {
            restic.arg("--time").arg(time(at));
        }
        finish(restic.output(), "restic backup")?;
        fs::remove_file(dump).map_err(|error| failed("dump", error))
    }

    /// Stores files of the file server, as of that instant. A path that is relative is one of its tree, and is stored as if
    /// the tree were all that there is.
    pub(super) fn back_up_files(&self, host: &str, tags: &str, paths: &[&Path], at: DateTime<Utc>) -> Result<()> {
        let mut restic = self.restic(&["backup", "--host", host, "--tag", tags]);
        restic.args(paths).arg("--time").arg(time(at));
        finish(restic.output(), "restic backup").map(drop)
    }

    fn restic(&self, arguments: &[&str]) -> Command {
        let mut restic = Command::new("restic");
        restic.args(arguments).args(["--quiet", "--no-cache"]).current_dir(self.tree());
        // Nothing of the caller's environment: RESTIC_REPOSITORY there may well be the real one.
        restic.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("TZ", "UTC");
        restic.env("HOME", &self.folder).env("TMPDIR", &self.folder);
        restic.env("RESTIC_REPOSITORY", self.folder.join("repository"));
        restic.env("RESTIC_PASSWORD_FILE", self.folder.join("password"));
        restic
    }
}

fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S").to_string()
}
