//! PostgreSQL's own programs, of a version that knows the dump, the server or the base backup.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::archive::Archive;
use crate::error::{Error, Result};

/// A program of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// As it tells: `15.14`.
    pub version: String,
}

impl Program {
    /// `pg_restore 15.14`
    pub fn told(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        format!("{name} {}", self.version)
    }
}

/// The first number of a version: 16 of `16.4 (Debian 16.4-1)`.
pub fn major(version: &str) -> Option<i32> {
    version.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// The oldest `pg_restore` here that is not older than the `pg_dump` that made the dump: a newer one may use words that the
/// server does not know.
pub fn pg_restore(archive: &Archive) -> Result<Program> {
    oldest("pg_restore", archive.header.dump_version.as_deref().and_then(major).unwrap_or_default())
}

/// The oldest program here of that version or a newer one.
pub fn oldest(name: &str, wanted: i32) -> Result<Program> {
    let mut found: Vec<(i32, Program)> = folders()
        .iter()
        .filter_map(|folder| version(&folder.join(name)))
        .filter_map(|program| Some((major(&program.version)?, program)))
        .collect();
    found.sort_by_key(|(major, _)| *major);
    let newest = found.last().map(|(_, program)| program.told());
    found.into_iter().find(|(major, _)| *major >= wanted).map(|(_, program)| program).ok_or_else(|| {
        let there = newest.map_or_else(|| format!("there is no {name} here"), |newest| format!("here is {newest}"));
        Error::refused(format!("{name} of PostgreSQL {wanted} or newer is needed, and {there}"))
            .hint(format!("Install postgresql-client-{wanted} or newer on this machine, then look again."))
    })
}

/// Where the programs of a major version are, `postgres` and `pg_waldump` among them.
///
/// Errors: they are not on this machine, or those that were named are of another version.
pub fn server(wanted: u32, named: Option<&Path>) -> Result<PathBuf> {
    let usual = ["/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin", "/usr/local/pgsql-{}/bin"];
    let usual = usual.map(|folder| PathBuf::from(folder.replace("{}", &wanted.to_string())));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = match named {
        Some(folder) => vec![folder.to_owned()],
        None => usual.into_iter().chain(std::env::split_paths(&path)).collect(),
    };
    if let Some(folder) = folders.iter().find(|folder| server_major(folder) == Some(wanted)) {
        return Ok(folder.clone());
    }
    let what = match named.map(|folder| (folder, server_major(folder))) {
        Some((folder, Some(other))) => {
            format!(
                "the programs in {} are of PostgreSQL {other}, and the base backup is of {wanted}",
                folder.display()
            )
        }
        Some((folder, None)) => format!("there is no postgres program in {}", folder.display()),
        None => format!("the base backup is of PostgreSQL {wanted}, whose server programs are not on this machine"),
    };
    Err(Error::operator(what)
        .hint(format!("Install them: sudo apt-get install postgresql-{wanted}."))
        .hint("Or say where they are: --programs FOLDER. Another major version cannot read the files of this one."))
}

fn server_major(folder: &Path) -> Option<u32> {
    let program = folder.join("pg_waldump").is_file().then(|| version(&folder.join("postgres"))).flatten()?;
    major(&program.version)?.try_into().ok()
}

/// Debian's folders, and those of PATH.
fn folders() -> Vec<PathBuf> {
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let path = std::env::var_os("PATH").unwrap_or_default();
    debian.map(|entry| entry.path().join("bin")).chain(std::env::split_paths(&path)).collect()
}

/// `pg_restore (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`
fn version(program: &Path) -> Option<Program> {
    let output = Command::new(program).arg("--version").output().ok().filter(|output| output.status.success())?;
    let told = String::from_utf8(output.stdout).ok()?;
    let version = told.split_whitespace().nth(2)?.to_owned();
    Some(Program { path: program.to_owned(), version })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_begins_with_its_major_number() {
        let known = ["16.4 (Debian 16.4-1)", "18beta1", "9.6.24", "devel", ""].map(major);
        assert_eq!(known, [Some(16), Some(18), Some(9), None, None]);
    }
}
