//! The configuration file: the systems that can be recovered, each with its repository, its database and what its owner
//! was promised. Without the file there is one system, which the environment describes.
//!
//! - Invariant: the file holds no secret. A key or a URL that would carry one is refused, with the place it belongs.
//! - Invariant: an error names the file, the line and the key, and never repeats a value: it could be a misplaced secret.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

mod keys;

use keys::{Keys, Lines, Value};

const SYSTEM: &[&str] = &[
    "name",
    "environment",
    "repository",
    "database",
    "host",
    "tags",
    "excludes",
    "base_backups",
    "tablespaces",
    "wal_archive",
    "clones",
    "rpo",
    "rto",
    "keep_undo",
    "require_second_person",
    "documentation",
    "check",
];
const CHECK: &[&str] = &["query", "at_least"];
const REPOSITORY: &[&str] = &["url", "password_file", "password_command"];

/// A month: longer than it takes to notice that a repair was wrong.
const KEEP_UNDO: Duration = Duration::from_hours(30 * 24);

/// The systems that can be recovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// At least one.
    pub systems: Vec<System>,
}

/// One system that can be recovered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// What `--system` chooses by; no two systems have the same.
    pub name: String,
    /// Told on the screens in capitals; production when the file says nothing.
    pub environment: Environment,
    /// `None`: `RESTIC_REPOSITORY` and its kin name it.
    pub repository: Option<RepositorySettings>,
    /// A libpq URL or keywords, without a password; `None`: the `PG*` variables name it.
    pub database: Option<String>,
    /// Only snapshots of this host are recovery points.
    pub host: Option<String>,
    /// Only snapshots with all of these tags are recovery points.
    pub tags: Vec<String>,
    /// A file of patterns, as `restic --exclude-file` takes it: what is only on this machine and matches them is not missed
    /// in a backup.
    pub excludes: Option<PathBuf>,
    /// Folders with base backups in or beneath them: on disk, or as `restic:PATH` in the newest snapshot that has it; or
    /// `pgbackrest:STANZA`.
    pub base_backups: Vec<String>,
    /// Where base backups that are trees have the copies of their tablespaces, by number: a whole path, or the name of a folder
    /// beside the base backup's own.
    pub tablespaces: BTreeMap<u32, String>,
    /// Where the server archives its WAL: a folder on disk, `restic:PATH`, or `pgbackrest:STANZA`.
    pub wal_archive: Option<String>,
    /// The folder that clusters as of a moment in time are laid out in; `None`: the one for temporary files.
    pub clones: Option<PathBuf>,
    /// How much work may be lost: the longest tolerable data-loss window.
    pub rpo: Option<Duration>,
    /// How long a recovery may take.
    pub rto: Option<Duration>,
    /// How long pre-images are kept before `lifeboat clean` offers to remove them.
    pub keep_undo: Duration,
    /// A plan that changes production needs the consent of two people, at two terminals.
    pub require_second_person: bool,
    /// Where the written procedure is: a URL or a path, for people to read.
    pub documentation: Option<String>,
    /// What has to hold of a database that was restored whole before it may take production's place.
    pub checks: Vec<Check>,
}

/// A query that a restored database has to answer well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// SQL that changes nothing; the first column of its first row is a whole number.
    pub query: String,
    /// That number, at least.
    pub at_least: i64,
}

/// A repository, and where its password is; the password itself is never here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositorySettings {
    /// As restic takes it; one that carries a password was refused.
    pub url: String,
    /// Its first line is the password. Either this or `password_command` is set, never both.
    pub password_file: Option<PathBuf>,
    /// Run without a shell; the first line that it prints is the password.
    pub password_command: Option<String>,
}

/// What is at stake where a system runs. It prints in capitals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Environment {
    /// What people depend on; taken for granted unless the file says otherwise.
    #[default]
    Production,
    /// A copy that may be written over.
    Staging,
    /// A practice system made by `lifeboat drill`; the file cannot name it.
    Drill,
}

impl std::fmt::Display for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Production => "PRODUCTION",
            Self::Staging => "STAGING",
            Self::Drill => "DRILL",
        })
    }
}

impl System {
    /// A system of which nothing is configured: the environment describes it.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            environment: Environment::default(),
            repository: None,
            database: None,
            host: None,
            tags: Vec::new(),
            excludes: None,
            base_backups: Vec::new(),
            tablespaces: BTreeMap::new(),
            wal_archive: None,
            clones: None,
            rpo: None,
            keep_undo: KEEP_UNDO,
            require_second_person: false,
            rto: None,
            documentation: None,
            checks: Vec::new(),
        }
    }
}

impl Config {
    /// Reads the file that the operator named, or else the one in its usual place, which may be missing.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let Some(file) = path.map(Path::to_owned).or_else(usual_file) else { return Ok(Self::without_file()) };
        let failed = |error: std::io::Error| {
            Error::operator(format!("cannot read the configuration {}", file.display()))
                .detail(error)
                .hint("Check the path and that you may read it.")
        };
        match std::fs::metadata(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.is_none() => {
                return Ok(Self::without_file());
            }
            Err(error) => return Err(failed(error)),
            Ok(facts) => refuse_loose(&file, &facts)?,
        }
        Self::parse(&std::fs::read_to_string(&file).map_err(failed)?, &file)
    }

    /// Reads the text of a configuration. `file` is for messages, and its folder is where relative paths start.
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let lines = Lines { text, file };
        let (document, errors) = toml::de::DeTable::parse_recoverable(text);
        // The parser goes on after a mistake; what it says about the rest follows from the first.
        let start = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
        if let Some(error) = errors.iter().min_by_key(|error| start(error)) {
            // All of what the parser says would quote the line.
            return Err(Error::operator(format!("{} is not TOML", lines.place(start(error))))
                .detail(error.message())
                .hint("Put text in double quotes; start each system with a line [[system]]."));
        }
        let mut top = Keys::of(document.get_ref(), &lines, &["system"], "The file")?;
        let mut systems: Vec<System> = Vec::new();
        for value in top.take("system").map(|value| value.tables()).transpose()?.unwrap_or_default() {
            let (system, name_at) = system(&value)?;
            if systems.iter().any(|other| other.name == system.name) {
                let error = Error::operator(format!("{} names system \"{}\" again", lines.place(name_at), system.name));
                return Err(error.hint("Give each system a name of its own."));
            }
            systems.push(system);
        }
        Ok(if systems.is_empty() { Self::without_file() } else { Self { systems } })
    }

    fn without_file() -> Self {
        Self { systems: vec![System::named("default")] }
    }
}

/// One system, and where its name stands.
fn system(value: &Value<'_>) -> Result<(System, usize)> {
    let mut keys = value.keys(SYSTEM, "A system")?;
    let name = keys.take("name").ok_or_else(|| {
        value.wrong("starts a system without a name").hint("Add a line like name = \"shop\"; --system chooses by it.")
    })?;
    let environment = match keys.take("environment") {
        None => Environment::default(),
        Some(value) => match value.text()?.as_str() {
            "production" => Environment::Production,
            "staging" => Environment::Staging,
            _ => return Err(value.wrong("has an environment that is not known").hint("Use production or staging.")),
        },
    };
    let repository = keys.take("repository").map(|value| repository(&value)).transpose()?;
    let database = keys.take("database").map(|value| database(&value)).transpose()?;
    let duration = |value: Value<'_>| -> Result<Duration> {
        parse_duration(&value.text()?).ok_or_else(|| {
            value
                .wrong("has a duration that cannot be read")
                .hint("Write it like \"30min\", \"24h\", \"1h30min\" or \"7d\".")
        })
    };
    let text = |value: Value<'_>| value.text();
    Ok((
        System {
            name: name.text()?,
            environment,
            repository,
            database,
            host: keys.take("host").map(text).transpose()?,
            tags: keys.take("tags").map(|value| value.texts()).transpose()?.unwrap_or_default(),
            excludes: keys.take("excludes").map(|value| value.path()).transpose()?,
            base_backups: keys.take("base_backups").map(|value| value.texts()).transpose()?.unwrap_or_default(),
            tablespaces: keys.take("tablespaces").map(|value| tablespaces(&value)).transpose()?.unwrap_or_default(),
            wal_archive: keys.take("wal_archive").map(text).transpose()?,
            clones: keys.take("clones").map(|value| value.path()).transpose()?,
            rpo: keys.take("rpo").map(duration).transpose()?,
            rto: keys.take("rto").map(duration).transpose()?,
            keep_undo: keys.take("keep_undo").map(duration).transpose()?.unwrap_or(KEEP_UNDO),
            require_second_person: keys
                .take("require_second_person")
                .map(|value| value.flag())
                .transpose()?
                .unwrap_or_default(),
            documentation: keys.take("documentation").map(text).transpose()?,
            checks: checks(keys.take("check"))?,
        },
        name.at,
    ))
}

fn tablespaces(value: &Value<'_>) -> Result<BTreeMap<u32, String>> {
    let one = |given: &String| {
        let (number, folder) = given.split_once('=')?;
        Some((number.parse().ok()?, folder.to_owned()))
    };
    let all: Option<BTreeMap<u32, String>> = value.texts()?.iter().map(one).collect();
    all.ok_or_else(|| {
        value
            .wrong("does not say where a tablespace is")
            .hint("Write tablespaces = [\"16384=/backup/fast\"]: the number, and the folder of its copy.")
    })
}

fn checks(value: Option<Value<'_>>) -> Result<Vec<Check>> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let check = |value: &Value<'_>| {
        let mut keys = value.keys(CHECK, "A check")?;
        let (Some(query), Some(at_least)) = (keys.take("query"), keys.take("at_least")) else {
            return Err(value
                .wrong("gives a check without its query or its number")
                .hint("Write query = \"SELECT count(*) FROM orders\" and at_least = 45678."));
        };
        Ok(Check { query: query.text()?, at_least: at_least.integer()? })
    };
    value.tables()?.iter().map(check).collect()
}

fn repository(value: &Value<'_>) -> Result<RepositorySettings> {
    let mut keys = value.keys(REPOSITORY, "A repository")?;
    let url = keys.take("url").ok_or_else(|| {
        value
            .wrong("gives a repository without a url")
            .hint("Write it as restic does, for example url = \"sftp:backup@store:/srv/restic\".")
    })?;
    if holds_password(&url.text()?) {
        return Err(url
            .wrong("holds a password in the repository's url")
            .hint("Set RESTIC_REST_USERNAME and RESTIC_REST_PASSWORD in the environment instead."));
    }
    let file = keys.take("password_file").map(|value| value.path()).transpose()?;
    let command = keys.take("password_command").map(|value| value.text()).transpose()?;
    if file.is_some() == command.is_some() {
        let what = if file.is_some() {
            "gives both password_file and password_command"
        } else {
            "gives a repository without its password"
        };
        return Err(value.wrong(what).hint("Give one of password_file and password_command."));
    }
    Ok(RepositorySettings { url: url.text()?, password_file: file, password_command: command })
}

fn database(value: &Value<'_>) -> Result<String> {
    let text = value.text()?;
    if holds_password(&text) || names_password(&text) {
        return Err(value.wrong("holds a password in database").hint(
            "Put the password into ~/.pgpass (mode 0600) as HOST:PORT:DATABASE:USER:PASSWORD, and leave it out here.",
        ));
    }
    Ok(text)
}

/// Whether a URL has one where URLs have it: `scheme://user:password@host`.
fn holds_password(text: &str) -> bool {
    let Some((_, rest)) = text.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // A password with a slash in it, as people write them, ends the authority early.
    let login = authority.rsplit_once('@').or_else(|| rest.rsplit_once('@')).map(|(login, _)| login);
    login.is_some_and(|login| login.split_once(':').is_some_and(|(_, password)| !password.is_empty()))
}

/// Whether libpq's keywords or a URL's parameters set a password.
fn names_password(text: &str) -> bool {
    ["password", "sslpassword"].iter().any(|keyword| {
        text.match_indices(keyword).any(|(at, _)| {
            let starts = text[..at].ends_with(|letter: char| letter.is_whitespace() || matches!(letter, '?' | '&'));
            (at == 0 || starts) && text[at + keyword.len()..].trim_start().starts_with('=')
        })
    })
}

/// `90s`, `30min`, `24h`, `7d`, `2w`, and several of them in a row; never nothing.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut seconds: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|letter: char| !letter.is_ascii_digit())?);
        let after = after.trim_start();
        let (unit, after) =
            after.split_at(after.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(after.len()));
        let unit = match unit {
            "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 24 * 3600,
            "w" => 7 * 24 * 3600,
            _ => return None,
        };
        seconds = seconds.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = after.trim_start();
    }
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// Whoever can write the file chooses which command we run and which server we write to.
fn refuse_loose(file: &Path, facts: &std::fs::Metadata) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if facts.is_file() && facts.permissions().mode() & 0o002 != 0 {
        return Err(Error::operator(format!("anybody may write to the configuration {}", file.display()))
            .hint(format!("Look at it, then run chmod o-w {}.", file.display())));
    }
    Ok(())
}

fn usual_file() -> Option<PathBuf> {
    Some(base("XDG_CONFIG_HOME", ".config")?.join("lifeboat/config.toml"))
}

/// The folder beneath which recoveries are kept.
pub fn state_folder() -> Result<PathBuf> {
    let base = base("XDG_STATE_HOME", ".local/state");
    Ok(base.ok_or_else(|| Error::operator("neither XDG_STATE_HOME nor HOME is set"))?.join("lifeboat"))
}

/// A base folder of the XDG specification, which says that one that is not absolute is to be ignored.
fn base(variable: &str, below_home: &str) -> Option<PathBuf> {
    let given = std::env::var_os(variable).map(PathBuf::from).filter(|folder| folder.is_absolute());
    given.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(below_home)))
}

#[cfg(test)]
mod tests;
