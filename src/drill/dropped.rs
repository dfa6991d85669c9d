//! Tables that a migration dropped, on a server that archives its WAL. What is told apart from the other stories about a
//! database is here: the base backup, the archive, and the truth.
//!
//! ```text
//!   dumps of the nights | base backup | honest work | migration | honest work | too late a dump | you are called
//!                                                 before      after
//! ```
//!
//! Time is real here. A commit carries the server's own clock into the WAL, so that neither the base backup nor the
//! migration can be made to look older than it is.
//!
//! The truth is two images. What is only in the first was dropped, and has to be as it is there; everything else has to be
//! as it is in the second.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::unistd::chown;

use super::cluster::Cluster;
use super::sandbox::{Check, failed, run};
use crate::error::{Error, Result};
use crate::postgres::cluster::ordinary_user;

/// The folder of base backups, in the sandbox's.
pub(super) const BASE: &str = "base";
/// The folder that WAL is archived in.
pub(super) const WAL: &str = "wal";
/// The folder that clones are laid out in.
pub(super) const CLONES: &str = "clones";
/// What the base backup's folder and its label are called.
const NAME: &str = "nightly";
/// The server's working folder is its data, and the archive two folders above: nothing has to be quoted.
pub(super) const ARCHIVING: [&str; 5] = [
    "wal_level=replica",
    "max_wal_senders=2",
    "full_page_writes=on",
    "archive_mode=on",
    "archive_command=test ! -f ../../wal/%f && cp %p ../../wal/%f",
];
/// How long the server may take to archive a segment.
const PATIENCE: Duration = Duration::from_mins(1);

/// Prints an image of the database.
pub(super) const IMAGE: &str = include_str!("../../assets/drill/dropped-tables/image.sql");

/// A story in SQL, in four parts.
#[derive(Debug)]
pub(super) struct Migration {
    /// Further tables, there from the beginning.
    pub(super) tables: &'static str,
    /// Ordinary work after the base backup.
    pub(super) business: &'static str,
    /// The migration. Prints when it was through, as RFC 3339.
    pub(super) sql: &'static str,
    /// Ordinary work that went on after it.
    pub(super) aftermath: &'static str,
}

/// Makes the folders beside the server's. The server writes to two of them, and its user has to get through the third.
pub(super) fn make_folders(sandbox: &Path) -> Result<()> {
    let make = |name: &str, mode: u32| {
        let folder = sandbox.join(name);
        fs::create_dir(&folder).and_then(|()| fs::set_permissions(&folder, Permissions::from_mode(mode)))?;
        Ok::<_, std::io::Error>(folder)
    };
    for name in [BASE, WAL] {
        let folder = make(name, 0o700).map_err(|error| failed(name, error))?;
        if let Some(user) = ordinary_user()? {
            chown(&folder, Some(user.uid), Some(user.gid)).map_err(|error| failed(name, error))?;
        }
    }
    make(CLONES, 0o711).map_err(|error| failed(CLONES, error))?;
    Ok(())
}

/// Takes a base backup, as the procedure does it, and removes the WAL that is older: nothing can be reached from it.
pub(super) fn base_backup(cluster: &Cluster, sandbox: &Path) -> Result<()> {
    let mut command = cluster.command("pg_basebackup")?;
    command.arg("-D").arg(sandbox.join(BASE).join(NAME));
    command.args(["-F", "t", "-z", "-X", "none", "--checkpoint=fast", "--no-sync"]).arg(format!("--label={NAME}"));
    run(&mut command, "pg_basebackup", Stdio::null(), b"")?;
    // It has waited for the archive, which holds a file named after the backup's first segment since.
    let archive = sandbox.join(WAL);
    let entries = fs::read_dir(&archive).map_err(|error| failed("reading the WAL archive", error))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mark = names.filter(|name| Path::new(name).extension().is_some_and(|last| last == "backup")).max();
    let mark = mark.ok_or_else(|| failed("the base backup", "the WAL archive does not tell of it"))?;
    let mut command = cluster.command("pg_archivecleanup")?;
    run(command.arg(&archive).arg(mark), "pg_archivecleanup", Stdio::null(), b"")?;
    Ok(())
}

/// Asks until the server has archived what was waited for.
pub(super) fn wait(mut archived: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !archived()? {
        if Instant::now() > deadline {
            return Err(failed("archiving WAL", "the server has not archived the last segment within a minute"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A row, by a name for people and by all that is in it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Row {
    key: String,
    hash: u128,
}

/// A table, a column, an index and the like.
#[derive(Debug, PartialEq, Eq)]
struct Object {
    /// The table or view that it goes with.
    part_of: String,
    hash: u128,
}

/// A database as of one moment.
#[derive(Debug, Default)]
pub(super) struct Image {
    /// By table; one without a row is none, and the story has none.
    rows: BTreeMap<String, Vec<Row>>,
    /// By kind and name.
    objects: BTreeMap<(String, String), Object>,
    sequences: BTreeMap<String, i64>,
    /// Names of schemas that a recovery should have removed.
    staging: Vec<String>,
}

/// The database just before the migration, and when the operator was called.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) before: Image,
    pub(super) after: Image,
}

impl Image {
    /// Reads what [`IMAGE`] has printed.
    pub(super) fn parse(printed: &str) -> Result<Self> {
        let mut image = Self::default();
        for line in printed.lines() {
            image
                .add(line)
                .ok_or_else(|| Error::bug("the image of a drill printed something else than lines").detail(line))?;
        }
        Ok(image)
    }

    fn add(&mut self, line: &str) -> Option<()> {
        let hash = |digits: &str| u128::from_str_radix(digits, 16).ok();
        match *line.split('\t').collect::<Vec<_>>() {
            ["row", table, key, digits] => {
                let row = Row { key: key.to_owned(), hash: hash(digits)? };
                match self.rows.get_mut(table) {
                    Some(rows) => rows.push(row),
                    None => drop(self.rows.insert(table.to_owned(), vec![row])),
                }
            }
            ["object", kind, part_of, name, digits] => {
                let object = Object { part_of: part_of.to_owned(), hash: hash(digits)? };
                self.objects.insert((kind.to_owned(), name.to_owned()), object);
            }
            ["sequence", name, value] => drop(self.sequences.insert(name.to_owned(), value.parse().ok()?)),
            ["staging", name] => self.staging.push(name.to_owned()),
            _ => return None,
        }
        Some(())
    }

    fn rows_of(&self, table: &str) -> &[Row] {
        self.rows.get(table).map_or(&[], Vec::as_slice)
    }
}

impl Images {
    /// Compares the database as it is now with what it must be.
    pub(super) fn compare(&self, found: &Image) -> Vec<Check> {
        let (before, after) = (&self.before, &self.after);
        let mut checks = Vec::new();
        let dropped: BTreeSet<&String> = before.rows.keys().filter(|table| !after.rows.contains_key(*table)).collect();
        for table in &dropped {
            let words = "every row is back as it was just before the migration";
            checks.extend(rows(table, words, before.rows_of(table), found.rows_of(table)));
        }
        self.compare_dropped_objects(&dropped, found, &mut checks);

        // What the migration was made for.
        let (made, others): (Vec<_>, Vec<_>) =
            after.objects.iter().partition(|(name, object)| before.objects.get(*name) != Some(*object));
        checks.push(objects("what the migration was made for is still there", &made, found));
        for (table, expected) in &after.rows {
            let words = "rows are as work has left them, also since the migration";
            checks.extend(rows(table, words, expected, found.rows_of(table)));
        }
        let strange =
            |name: &&(String, String)| !before.objects.contains_key(*name) && !after.objects.contains_key(*name);
        let differing = others.iter().filter(|(name, object)| found.objects.get(*name) != Some(*object));
        let differing: Vec<&str> =
            differing.map(|(name, _)| *name).chain(found.objects.keys().filter(strange)).map(|name| &*name.1).collect();
        checks.push(none("other tables, triggers, constraints and objects that differ", &differing));
        let behind: Vec<&str> = (after.sequences.iter())
            .filter(|(name, value)| found.sequences.get(*name) < Some(*value))
            .map(|(name, _)| name.as_str())
            .collect();
        checks.push(none("other sequences that moved backwards", &behind));
        let staging: Vec<&str> = found.staging.iter().map(String::as_str).collect();
        checks.push(none("staging schemas left behind", &staging));
        checks
    }

    /// What went with the tables, or hung on them.
    fn compare_dropped_objects(&self, dropped: &BTreeSet<&String>, found: &Image, checks: &mut Vec<Check>) {
        let (before, after) = (&self.before, &self.after);
        let lost: Vec<_> = before.objects.iter().filter(|(name, _)| !after.objects.contains_key(*name)).collect();
        for (kind, own, words) in [
            ("view", false, "views that were dropped along are back"),
            ("constraint", false, "foreign keys of other tables that were dropped along are back, and valid"),
            ("relation", true, "owners, grants and comments of what was dropped are as before"),
            ("column", true, "columns of what was dropped: types, defaults and grants are as before"),
            ("constraint", true, "keys, checks and foreign keys of the dropped tables are back, and valid"),
            ("index", true, "indexes of the dropped tables are back"),
            ("trigger", true, "triggers of the dropped tables are back, and fire"),
        ] {
            // Constraints are told apart by whose they are.
            let wanted = |((of, _), object): &(&(String, String), &Object)| {
                of == kind && (kind != "constraint" || dropped.contains(&object.part_of) == own)
            };
            let of_kind: Vec<_> = lost.iter().copied().filter(wanted).collect();
            checks.push(objects(words, &of_kind, found));
        }
        let sequences: Vec<_> =
            before.sequences.iter().filter(|(name, _)| !after.sequences.contains_key(*name)).collect();
        let behind = sequences.iter().filter(|(name, value)| found.sequences.get(*name) < Some(*value));
        let behind: Vec<&str> = behind.map(|(name, _)| name.as_str()).collect();
        checks.push(all("sequences of the dropped tables are back, and not behind", sequences.len(), &behind));
    }
}

/// Two checks of a table: its rows are all there, and no other one is.
fn rows(table: &str, words: &str, expected: &[Row], found: &[Row]) -> [Check; 2] {
    let wrong: Vec<&str> = minus(expected, found).map(|row| row.key.as_str()).collect();
    let changed: BTreeSet<&str> = wrong.iter().copied().collect();
    // A row that was changed is told once, as one that is not as it was.
    let strange: Vec<&str> =
        minus(found, expected).map(|row| row.key.as_str()).filter(|key| !changed.contains(key)).collect();
    [
        all(&format!("{table}: {words}"), expected.len(), &wrong),
        none(&format!("{table}: rows that should not be there"), &strange),
    ]
}

/// The rows that are not among the others; two that are equal are not one.
fn minus<'a>(rows: &'a [Row], others: &'a [Row]) -> impl Iterator<Item = &'a Row> {
    let mut left: HashMap<&Row, usize> = HashMap::new();
    for row in others {
        *left.entry(row).or_default() += 1;
    }
    rows.iter().filter(move |row| match left.get_mut(*row) {
        Some(number) if *number > 0 => {
            *number -= 1;
            false
        }
        _ => true,
    })
}

/// Whether all of these are there, each as it must be.
fn objects(words: &str, expected: &[(&(String, String), &Object)], found: &Image) -> Check {
    let wrong = expected.iter().filter(|(name, object)| found.objects.get(*name) != Some(*object));
    let wrong: Vec<&str> = wrong.map(|(name, _)| name.1.as_str()).collect();
    all(words, expected.len(), &wrong)
}

/// So many are right, except these.
fn all(words: &str, expected: usize, wrong: &[&str]) -> Check {
    check(words, expected, expected - wrong.len(), wrong)
}

/// There should not be any.
fn none(words: &str, found: &[&str]) -> Check {
    check(words, 0, found.len(), found)
}

fn check(words: &str, expected: usize, found: usize, wrong: &[&str]) -> Check {
    Check {
        name: words.to_owned(),
        expected: expected as u64,
        found: found as u64,
        examples: wrong.iter().take(3).copied().collect::<Vec<_>>().join(", "),
        ok: expected == found,
    }
}
