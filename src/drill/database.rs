//! The database of a drill about rows: a story told in SQL to a server of the sandbox's own, with a dump of every night, and
//! the truth about it.
//!
//! Invariant: the truth (database `drill_truth` of the same server, or [`Images`] in memory) is complete before the operator is called, and nothing but
//! [`Database::check`] reads it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use chrono::{DateTime, Utc};

use super::cluster::{Cluster, programs};
use super::documents::pdf;
use super::dropped::{self, Image, Images, Migration};
use super::repository::Repository;
use super::sandbox::{Check, NIGHTS, failed, join, run};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

const SCHEMA: &str = include_str!("../../assets/drill/schema.sql");
const GENERATE: &str = include_str!("../../assets/drill/generate.sql");
const DATA: &str = include_str!("../../assets/drill/data.sql");
const DAY: &str = include_str!("../../assets/drill/day.sql");
const EXPORT: &str = include_str!("../../assets/drill/export.sql");
const IMPORT: &str = include_str!("../../assets/drill/import.sql");
const HASHES: &str = include_str!("../../assets/drill/lost-database/check.sql");

/// A story in SQL, in five parts.
#[derive(Debug)]
pub(super) struct Script {
    /// Ordinary work after the last backup, before the incident.
    pub(super) business: &'static str,
    /// The incident itself. Prints its commit instant as RFC 3339.
    pub(super) incident: &'static str,
    /// Ordinary work that went on after it.
    pub(super) aftermath: &'static str,
    /// Derives from images of before and after what the rows must be in the end.
    pub(super) truth: &'static str,
    /// Compares an image with that: columns name, expected, found, examples.
    pub(super) check: &'static str,
}

/// How a story ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ending {
    /// Rows are damaged, and work goes on.
    Damaged(&'static Script),
    /// The database is dropped, just as the last backup has it.
    Gone,
    /// Tables are dropped by a migration, and work goes on.
    Dropped(&'static Migration),
}

/// What the end state is compared with.
#[derive(Debug)]
enum Truth {
    /// Rows of `drill_truth`, as the script derives them.
    Rows(&'static Script),
    /// All of `drill_truth`.
    Whole,
    /// Images in memory: WAL is archived here, and a database of that name would be in every clone.
    Images(Images),
}

/// A running server with a damaged database.
#[derive(Debug)]
pub(super) struct Database {
    cluster: Cluster,
    truth: Truth,
}

impl Database {
    /// Tells the story up to the moment when the operator is called. Returns when the incident was committed as well.
    pub(super) fn build(
        folder: &Path,
        nights: &[DateTime<Utc>],
        ending: Ending,
        progress: &Progress,
    ) -> Result<(Self, DateTime<Utc>)> {
        progress.begin("Creating a private sandbox", Unit::Items, Some(u64::from(2 * NIGHTS) + 4));
        let anchor = nights[nights.len() - 1].to_rfc3339();
        let repository = Repository::new(folder)?;
        std::fs::create_dir(folder.join("staging")).map_err(|error| failed("staging", error))?;
        let programs = programs()?;
        let (cluster, incident, truth) = std::thread::scope(|scope| {
            let initialised = scope.spawn(|| repository.initialise());
            let mut settings = vec!["track_commit_timestamp=on"];
            if let Ending::Dropped(_) = ending {
                settings.extend(dropped::ARCHIVING);
                dropped::make_folders(folder)?;
            }
            let cluster = Cluster::create(&folder.join("pg"), &programs, &settings)?;
            let story = Story { cluster: &cluster, anchor: &anchor };
            story.tell("postgres", "create database programme_db", &[])?;
            story.tell("programme_db", &[SCHEMA, GENERATE, DATA].concat(), &[])?;
            if let Ending::Dropped(migration) = ending {
                story.tell("programme_db", migration.tables, &[])?;
            }
            progress.advance(1);
            join(initialised)?;
            progress.advance(1);

            let mut backups = vec![scope.spawn(|| file_server(&repository, nights, progress))];
            for (day, night) in (1..).zip(nights) {
                progress.check()?;
                story.tell("programme_db", &[GENERATE, DAY].concat(), &[("day", &day.to_string())])?;
                let dump = story.dump(folder, *night)?;
                let repository = &repository;
                backups.push(scope.spawn(move || {
                    repository.back_up_dump(&dump, Some(*night))?;
                    progress.advance(1);
                    Ok(())
                }));
            }
            progress.check()?;
            let (incident, truth) = match ending {
                Ending::Damaged(script) => (story.incident(script)?, Truth::Rows(script)),
                Ending::Gone => (story.drop_all()?, Truth::Whole),
                Ending::Dropped(migration) => {
                    let (incident, images) = story.migrate(migration, folder, progress)?;
                    (incident, Truth::Images(images))
                }
            };
            if !matches!(truth, Truth::Whole) {
                let dump = story.dump(folder, Utc::now())?;
                backups.push(scope.spawn(|| repository.back_up_dump(&{ dump }, None)));
            }
            progress.advance(1);
            for backup in backups {
                join(backup)?;
            }
            progress.advance(1);
            Ok::<_, Error>((cluster, incident, truth))
        })?;
        Ok((Self { cluster, truth }, incident))
    }

    /// How to connect to it.
    pub(super) fn conninfo(&self) -> String {
        self.cluster.conninfo("programme_db")
    }

    /// Compares the database as it is now with what it must be. Only the stamp `updated_at` of damaged rows, which a
    /// trigger sets, and further entries of the audit table may differ from the truth.
    pub(super) fn check(&self) -> Result<Vec<Check>> {
        let story = Story { cluster: &self.cluster, anchor: "" };
        let not_comparable = |error: Error| {
            Error::target("cannot compare the database with the truth")
                .detail(error.detail.unwrap_or(error.message))
                .hint("Check that the tables of programme_db still have their columns.")
        };
        let script = match &self.truth {
            Truth::Rows(script) => script,
            Truth::Whole => return story.check_all(),
            Truth::Images(images) => return Ok(images.compare(&story.image().map_err(not_comparable)?)),
        };
        let output = story.compare("found", script.check).map_err(not_comparable)?;
        let checks = output.lines().map(parse).collect::<Option<Vec<_>>>();
        checks
            .filter(|checks| !checks.is_empty())
            .ok_or_else(|| Error::bug("the check of a drill printed something else than checks").detail(output))
    }
}

/// A line that the check has printed.
fn parse(line: &str) -> Option<Check> {
    let mut fields = line.split('\t').skip(1);
    let name = fields.next()?.to_owned();
    let expected = fields.next()?.parse().ok()?;
    let found = fields.next()?.parse().ok()?;
    Some(Check { name, expected, found, examples: fields.next()?.to_owned(), ok: expected == found })
}

/// Tells SQL to the sandbox's server.
struct Story<'a> {
    cluster: &'a Cluster,
    /// The instant of the last backup.
    anchor: &'a str,
}

impl Story<'_> {
    /// Runs a psql script and returns what it prints, one row a line, tabs between the columns.
    fn tell(&self, database: &str, script: &str, variables: &[(&str, &str)]) -> Result<String> {
        let mut psql = self.cluster.command("psql")?;
        psql.args(["-X", "-q", "-A", "-t", "-F", "\t", "-d", database, "-v", "ON_ERROR_STOP=1"]);
        psql.arg("-v").arg(format!("anchor={}", self.anchor)).arg("-v").arg(format!("days={NIGHTS}"));
        for (name, value) in variables {
            psql.arg("-v").arg(format!("{name}={value}"));
        }
        run(&mut psql, "a script of the drill", Stdio::piped(), script.as_bytes())
    }

    /// Work, the incident, more work; and the truth about it. Returns when the incident was committed.
    fn incident(&self, script: &Script) -> Result<DateTime<Utc>> {
        self.tell("programme_db", &[GENERATE, script.business].concat(), &[])?;
        self.tell("postgres", "create database drill_truth template programme_db", &[])?;
        let printed = self.tell("programme_db", script.incident, &[])?;
        self.tell("programme_db", &[GENERATE, script.aftermath].concat(), &[])?;
        self.compare("live", script.truth)?;
        printed.trim().parse().map_err(|_| Error::bug("an incident did not print its instant").detail(printed))
    }

    /// The truth, and the end of the database. Returns when that was.
    fn drop_all(&self) -> Result<DateTime<Utc>> {
        self.tell("postgres", "create database drill_truth template programme_db", &[])?;
        let script = "drop database programme_db with (force);
            select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        let printed = self.tell("postgres", script, &[])?;
        printed.trim().parse().map_err(|_| Error::bug("an incident did not print its instant").detail(printed))
    }

    /// A base backup, work, the migration, more work; and the truth about it. Returns when the migration was through.
    fn migrate(&self, migration: &Migration, folder: &Path, progress: &Progress) -> Result<(DateTime<Utc>, Images)> {
        dropped::base_backup(self.cluster, folder)?;
        self.tell("programme_db", migration.business, &[])?;
        let before = self.image()?;
        let printed = self.tell("programme_db", migration.sql, &[])?;
        self.tell("programme_db", &[GENERATE, migration.aftermath].concat(), &[])?;
        let images = Images { before, after: self.image()? };
        // A segment that is not full is archived when the server goes on to the next one.
        let last = self.tell("postgres", "select pg_walfile_name(pg_switch_wal())", &[])?;
        dropped::wait(|| {
            progress.check()?;
            let archived = "select last_archived_wal collate \"C\" >= :'last' from pg_stat_archiver";
            Ok(self.tell("postgres", archived, &[("last", last.trim())])?.trim() == "t")
        })?;
        let at = printed.trim().parse();
        Ok((at.map_err(|_| Error::bug("an incident did not print its instant").detail(printed))?, images))
    }

    /// What the database is like now.
    fn image(&self) -> Result<Image> {
        Image::parse(&self.tell("programme_db", dropped::IMAGE, &[])?)
    }

    /// Compares the whole database with the truth: each table's rows, and all definitions.
    fn check_all(&self) -> Result<Vec<Check>> {
        let there = self.tell("postgres", "select 1 from pg_database where datname = 'programme_db'", &[])?;
        let found = if there.trim().is_empty() { String::new() } else { self.tell("programme_db", HASHES, &[])? };
        let truth = self.tell("drill_truth", HASHES, &[])?;
        let rows = |line: &str| line.split('\t').nth(1).and_then(|rows| rows.parse::<u64>().ok()).unwrap_or_default();
        let mut checks: Vec<Check> = truth
            .lines()
            .map(|line| {
                let name = line.split('\t').next().unwrap_or_default();
                let same = found.lines().find(|other| other.split('\t').next() == Some(name));
                Check {
                    name: format!("{name}: every row is back as it was"),
                    expected: rows(line),
                    found: same.map_or(0, rows),
                    examples: String::new(),
                    ok: same == Some(line),
                }
            })
            .collect();
        let definitions = |database: &str| {
            let text = run(self.cluster.command("pg_dump")?.args(["-s", database]), "pg_dump", Stdio::piped(), b"")?;
            // What keeps a script from steering psql is drawn anew each time.
            let lines = text.lines().filter(|line| !line.contains("restrict ")).map(str::to_owned);
            Ok::<_, Error>(lines.collect::<std::collections::BTreeSet<String>>())
        };
        let wanted = definitions("drill_truth")?;
        let now =
            if there.trim().is_empty() { std::collections::BTreeSet::new() } else { definitions("programme_db")? };
        let differing: Vec<&String> = wanted.symmetric_difference(&now).collect();
        checks.push(Check {
            name: "definitions, owners and grants that differ".into(),
            expected: 0,
            found: differing.len() as u64,
            examples: differing.iter().take(3).map(|line| line.as_str()).collect::<Vec<_>>().join(" | "),
            ok: differing.is_empty(),
        });
        Ok(checks)
    }

    /// Carries an image of the database beside the truth, as the schema of that name, and runs a script there.
    fn compare(&self, image: &str, script: &str) -> Result<String> {
        let folder = self.cluster.data().join("drill_image");
        // The server writes these files, so the server's user makes their folder.
        run(self.cluster.command("/bin/mkdir")?.arg("-p").arg(&folder), "mkdir", Stdio::null(), b"")?;
        let variables = [("folder", &*folder.to_string_lossy()), ("image", image)];
        self.tell("programme_db", &[EXPORT, IMPORT, script].concat(), &variables)
    }

    /// Dumps the database as the procedure does. A file, not a pipe, so that the dump has data offsets.
    fn dump(&self, folder: &Path, at: DateTime<Utc>) -> Result<PathBuf> {
        let path = folder.join("staging").join(at.format("programme_db_%Y%m%d_%H%M%S.dump").to_string());
        let file = File::create(&path).map_err(|error| failed("dump", error))?;
        run(self.cluster.command("pg_dump")?.args(["-Fc", "programme_db"]), "pg_dump", file.into(), b"")?;
        Ok(path)
    }
}

/// The nightly snapshots of another machine, a file server with a small tree, which changes a little every day.
fn file_server(repository: &Repository, nights: &[DateTime<Utc>], progress: &Progress) -> Result<()> {
    let root = repository.tree();
    let write = |path: String, contents: &[u8]| {
        let path = root.join(path);
        let parent = path.parent().unwrap_or(&root);
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::write(&path, contents))
            .map_err(|error| failed("file", error))
    };
    write("home/shared/project-files/budget [final] (2).csv".into(), b"item,amount\nblankets,18200\nfilters,9400\n")?;
    write("home/shared/project-files/maps/korvane – north.geojson".into(), br#"{"type":"Point","coordinates":[1,2]}"#)?;
    for night in nights {
        progress.check()?;
        let day = night.format("%Y-%m-%d");
        write("var/www/uploads/important-document.pdf".into(), &pdf(&format!("Agreement, as of {day}")))?;
        write(format!("home/shared/project-files/minutes/{day}.txt"), format!("Minutes of {day}\n").as_bytes())?;
        repository.back_up_files("file-server", "fileserver", &[Path::new("home"), Path::new("var")], *night)?;
        progress.advance(1);
    }
    Ok(())
}
