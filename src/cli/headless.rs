//! The commands that need no screen: what the console shows and does, for scripts and benchmarks.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::watch::Watch;
use super::{print, recovery_folder, with_progress};
use crate::config::{Config, Environment, RepositorySettings, System};
use crate::drill::sandbox::{self, Sandbox};
use crate::drill::scenarios::Scenario;
use crate::error::{Error, Result};
use crate::files::choice::Choice;
use crate::postgres::diff::{Class, Filter, TableDiff};
use crate::postgres::name::Name;
use crate::progress::Progress;
use crate::recovery::answers::Script;
use crate::recovery::flows;
use crate::recovery::journal::{self, Entry, Line};
use crate::recovery::plan::{Plan, Step};
use crate::recovery::record::{Contents, Finding, Look, NamedKey, Record, State};
use crate::recovery::run::Standing;
use crate::recovery::systems::{Evidence, Systems};
use crate::recovery::worker::{Away, Workers};
use crate::recovery::{Flow, report};
use crate::text::{self, clean};

pub const ANSWERS_HELP: &str = r#"The answers file:
  incident = "2026-01-15T14:00:00Z"     when it happened; left out: not known
  point = "1a2b3c4d"                    left out: the newest recovery point before the incident

Rows come back:
  dump = "/backup/orders.dump"          only when the recovery point holds several
  tables = ["public.orders"]
  key = ["number"]                      only for a table without primary key and unique index
  triggers = "skip"                     or "fire"; left out: what the console would recommend
  consent = "public.orders"             the names of the tables that will be changed, in the plan's order

  [[rows]]                              one for each table; a table without one gets its missing rows
  table = "public.orders"
  classes = ["missing", "changed"]      "extra" deletes rows that only production has
  columns = ["status"]                  left out: every column that differs
  transactions = "largest"              or [774, 775]; left out: any
  condition = "live.status = 'void'"    SQL over "backup" and "live"; left out: none

Files come back:
  files = ["/srv/a.pdf", "/srv/plans"]  files and folders, by their whole paths
  into = "/home/me/restored"            a folder that is not there yet; left out: one in the home folder
  in_place = true                       instead: where they were; what stands there is kept as NAME.pre-RECOVERY
  policy = "missing_and_changed"        in place: which; or "missing", or "missing_and_marked": of what changed only files
                                        that are named here by themselves, and none that a named folder holds
  own = "names"                         whose they will be: or "numbers", or "me"; left out: as the console recommends
  consent = "put back 7 files"          in place: how many are written, or the name of the only one

The whole database comes back:
  database = "exchange"                 it takes production's place, which is kept; or "keep": it stays beside
  safety_backup = false                 left out: production is backed up into the repository first
  leave_writes = true                   what is written to production meanwhile may stay behind, in the one that is kept
  consent = "programme_db"              the name of the database, when it is exchanged"#;

pub async fn points(system: System, as_json: bool) -> Result<()> {
    let live = Systems::new(system, None);
    let progress = Progress::default();
    let finding = with_progress(&progress, live.look("", &Look::Points, &progress)).await?;
    let Finding::Points(points) = finding else {
        return Err(Error::bug("points were looked for, something else was found"));
    };
    let mut rows = Vec::new();
    for point in points {
        let look = Look::Contents { point: point.id.clone() };
        // One damaged recovery point must not hide the others.
        let contents = match with_progress(&progress, live.look("", &look, &progress)).await {
            Ok(Finding::Contents(contents)) => Ok(contents),
            Ok(_) => return Err(Error::bug("contents were looked for, something else was found")),
            Err(error) => Err(error),
        };
        rows.push((point, contents));
    }
    if as_json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(point, contents)| {
                json!({
                    "point": point,
                    "contents": contents.as_ref().ok(),
                    "error": contents.as_ref().err().map(ToString::to_string),
                })
            })
            .collect();
        return print(&json!({ "points": rows }).to_string());
    }
    for (point, contents) in &rows {
        let inside = contents.as_ref().map_or_else(ToString::to_string, describe);
        print(&format!(
            "{}  {}  {}  {}  {}  {}",
            point.short(),
            point.instant.format("%Y-%m-%d %H:%M:%S %:z"),
            clean(&point.host),
            clean(&point.tags.join(",")),
            clean(&point.paths.join(" ")),
            clean(&inside)
        ))?;
    }
    Ok(())
}

/// What lies inside a recovery point, in one line.
fn describe(contents: &Contents) -> String {
    let mut parts: Vec<String> = contents
        .dumps
        .iter()
        .map(|dump| {
            let database = dump.header.database.as_deref().unwrap_or("a database");
            let server = dump
                .header
                .server_version
                .as_deref()
                .map(|version| format!(" of PostgreSQL {version}"))
                .unwrap_or_default();
            match (&dump.damage, dump.tables) {
                (Some(damage), _) => format!("{}: {damage}", dump.path),
                (None, Some(tables)) => format!(
                    "{database}{server}, {}, {}",
                    text::counted(tables, "table", "tables"),
                    text::bytes(dump.size_bytes)
                ),
                (None, None) => format!("{database}{server}, {}", text::bytes(dump.size_bytes)),
            }
        })
        .collect();
    if contents.files > 0 {
        let more = if contents.complete { "" } else { " or more" };
        parts.push(format!(
            "{}{more}, {}",
            text::counted(contents.files, "other file", "other files"),
            text::bytes(contents.bytes)
        ));
    }
    if parts.is_empty() { "empty".into() } else { parts.join("; ") }
}

/// Splits `SNAPSHOT[:PATH]`; something that exists on disk is a dump there.
fn address(point: &str) -> (String, Option<String>, Option<PathBuf>) {
    let path = Path::new(point);
    if path.exists() {
        return (String::new(), Some(String::new()), Some(path.to_owned()));
    }
    match point.split_once(':') {
        Some((id, path)) => (id.into(), Some(path.into()), None),
        None => (point.into(), None, None),
    }
}

/// The full id of the recovery point and the path of the dump in it.
async fn resolve(live: &Systems, id: &str, dump: Option<String>, progress: &Progress) -> Result<(String, String)> {
    let point = live.find(id).await?;
    if let Some(dump) = dump {
        return Ok((point, dump));
    }
    let finding = with_progress(progress, live.look("", &Look::Contents { point: point.clone() }, progress)).await?;
    let Finding::Contents(contents) = finding else {
        return Err(Error::bug("contents were looked for, something else was found"));
    };
    match contents.dumps.as_slice() {
        [dump] => Ok((point, dump.path.clone())),
        [] => Err(Error::operator("no database dump lies in this recovery point")
            .hint("lifeboat points shows what lies in each.")),
        several => {
            let paths: Vec<_> = several.iter().map(|dump| clean(&dump.path).into_owned()).collect();
            Err(Error::operator("several dumps lie in this recovery point")
                .hint(format!("Name one as SNAPSHOT:PATH: {}.", paths.join(", "))))
        }
    }
}

pub async fn tables(system: System, point: &str, as_json: bool) -> Result<()> {
    let (id, dump, disk) = address(point);
    let live = Systems::new(system, disk);
    let progress = Progress::default();
    let (point, dump) = resolve(&live, &id, dump, &progress).await?;
    let finding = with_progress(&progress, live.tables(&point, &dump, &progress)).await?;
    if as_json {
        return print(
            &serde_json::to_string(&finding).map_err(|error| Error::bug("tables cannot be written").detail(error))?,
        );
    }
    for table in &finding.tables {
        let rows = table.backup_rows.map_or_else(
            || "?".into(),
            |estimate| format!("{}{}", if estimate.exact { "" } else { "~" }, text::count(estimate.rows)),
        );
        let state = match (&finding.server, table.state()) {
            (None, _) => "",
            (Some(_), State::Unchanged) => "unchanged",
            (Some(_), State::Drifted) => "drifted",
            (Some(_), State::Dropped) => "dropped",
        };
        print(&format!(
            "{:<40} {:>3} columns {:>10} {:>12} rows  {state}",
            clean(&table.backup.name.to_string()),
            table.backup.columns.len(),
            table.backup.compressed_size.map_or_else(|| "?".into(), text::bytes),
            rows,
        ))?;
    }
    Ok(())
}

/// What `lifeboat diff` was asked.
pub struct Diff {
    pub point: String,
    pub tables: Vec<String>,
    pub rows: u32,
    pub key: Vec<String>,
}

pub async fn diff(system: System, asked: &Diff, as_json: bool) -> Result<()> {
    let begun = Instant::now();
    let names = asked.tables.iter().map(|text| Name::parse(text)).collect::<Result<Vec<_>>>()?;
    let (id, dump, disk) = address(&asked.point);
    let live = Systems::new(system, disk);
    let progress = Progress::default();
    let recovery = journal::new_id(chrono::Utc::now());
    // The repository's key keeps the processors busy, and the server is far away: both at once.
    let (found, connected) = tokio::join!(resolve(&live, &id, dump, &progress), live.connect(&recovery));
    let (point, dump) = found?;
    connected?;
    let opened = begun.elapsed();
    let keys = if asked.key.is_empty() {
        Vec::new()
    } else {
        names.iter().map(|table| NamedKey { table: table.clone(), columns: asked.key.clone() }).collect()
    };
    let look = Look::Diff { point, dump, tables: names, keys };
    let result = with_progress(&progress, async {
        let Finding::Diff(diffs) = live.look(&recovery, &look, &progress).await? else {
            return Err(Error::bug("a difference was looked for, something else was found"));
        };
        let compared = begun.elapsed();
        let mut samples = Vec::new();
        for table in 0..diffs.len() {
            samples.push(if asked.rows == 0 {
                None
            } else {
                Some(live.page(table, &Filter::default(), 0, asked.rows).await?)
            });
        }
        Ok((diffs, samples, compared))
    })
    .await;
    // The staging schema goes whatever happened.
    let dropped = live.execute(&recovery, &Step::DropScratch, "", &Progress::default()).await;
    let (diffs, samples, compared) = result?;
    dropped?;
    if as_json {
        let tables: Vec<_> = diffs.iter().zip(&samples).map(|(diff, page)| diff_json(diff, page.as_ref())).collect();
        let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        return print(
            &json!({
                "tables": tables,
                "bytes_read": live.bytes_read().await,
                "timings": {
                    "open_ms": ms(opened),
                    "stage_and_diff_ms": ms(compared.saturating_sub(opened)),
                    "total_ms": ms(begun.elapsed()),
                },
            })
            .to_string(),
        );
    }
    for (diff, page) in diffs.iter().zip(&samples) {
        print_diff(diff)?;
        for row in page.iter().flat_map(|page| &page.rows) {
            let symbol = match row.class {
                Class::Missing => '-',
                Class::Changed => '~',
                Class::Extra => '+',
            };
            let cells = row.backup.as_ref().or(row.live.as_ref()).into_iter().flatten();
            let cells: Vec<_> = cells
                .map(|cell| cell.as_deref().map_or_else(|| "NULL".into(), |text| clean(text).into_owned()))
                .collect();
            print(&format!("  {symbol} {}", cells.join(" | ")))?;
        }
    }
    Ok(())
}

fn diff_json(diff: &TableDiff, page: Option<&crate::postgres::diff::Page>) -> serde_json::Value {
    let mut value = json!({
        "table": diff.table.to_string(),
        "key": diff.key.as_ref().map(|key| &key.columns),
        "backup_rows": diff.backup_rows,
        "live_rows": diff.live_rows,
        "missing": diff.missing,
        "changed": diff.changed,
        "extra": diff.extra,
        "same": diff.same,
        "unkeyed_backup": diff.unkeyed_backup,
        "unkeyed_live": diff.unkeyed_live,
        "by_column": diff.by_column,
        "by_transaction": diff.by_transaction,
        "drift": diff.pairs,
        "parents": diff.parents,
        "children": diff.children,
    });
    if let (Some(page), Some(object)) = (page, value.as_object_mut()) {
        let rows: Vec<_> = page
            .rows
            .iter()
            .map(|row| {
                json!({
                    "number": row.number, "class": row.class, "transaction": row.xid,
                    "backup": row.backup, "live": row.live, "changed": row.changed,
                })
            })
            .collect();
        object.insert("rows".into(), json!({ "columns": page.columns, "rows": rows }));
    }
    value
}

fn print_diff(diff: &TableDiff) -> Result<()> {
    print(&format!(
        "{}: {} missing, {} changed, {} extra, {} same",
        clean(&diff.table.to_string()),
        text::count(diff.missing),
        text::count(diff.changed),
        text::count(diff.extra),
        text::count(diff.same)
    ))?;
    for column in diff.by_column.iter().take(10) {
        print(&format!("  column {}: {}", clean(&column.column), text::counted(column.rows, "row", "rows")))?;
    }
    for transaction in diff.by_transaction.iter().take(10) {
        let at =
            transaction.committed_at.map(|at| at.format(" of %Y-%m-%d %H:%M:%S UTC").to_string()).unwrap_or_default();
        print(&format!(
            "  transaction {}{at}: {} changed, {} extra ({})",
            transaction.xid,
            text::count(transaction.changed),
            text::count(transaction.extra),
            clean(&transaction.columns.join(", "))
        ))?;
    }
    Ok(())
}

pub async fn recover(system: System, answers: &Path, dump: Option<PathBuf>, state: &Path, as_json: bool) -> Result<()> {
    let script = Script::read(answers)?;
    let workers = Workers::Detached { system, dump, away: Away::Command };
    let id = scripted(&workers, &script, state).await?;
    let lines = read_done(state, &id)?;
    if as_json {
        return print(&json!({ "recovery": id, "journal": lines }).to_string());
    }
    print(&report::markdown(&lines))
}

/// From the first question to the last step. Returns the recovery's id.
async fn scripted(workers: &Workers, script: &Script, state: &Path) -> Result<String> {
    let mut watch = Watch::begin(workers, Flow::Rows, state).await?;
    let id = watch.id().to_owned();
    let outcome = async {
        let plan = watch.decide(script).await?;
        let Some(consent) = &script.consent else {
            return Err(Error::refused("the answers file gives no consent")
                .hint(format!("Add: consent = \"{}\".", plan.phrase())));
        };
        watch.consent(plan, consent).await
    }
    .await;
    watch.end(outcome, state).await.map(|()| id)
}

/// The journal of a recovery that came to its end.
fn read_done(state: &Path, id: &str) -> Result<Vec<Line>> {
    journal::read(&recovery_folder(state, id)?)
        .map_err(|error| error.hint(format!("It is done, all of it. lifeboat report {id} shows it.")))
}

pub async fn undo(system: System, earlier: &str, consent: Option<String>, state: &Path) -> Result<()> {
    let folder = recovery_folder(state, earlier)?;
    // A recovery of another machine has no journal here, and may have written rows.
    let lines = journal::read(&folder).unwrap_or_default();
    let flow = report::undo_of(earlier, &lines).unwrap_or(Flow::Undo { recovery: earlier.into() });
    consented(system, flow, &Script::default(), consent, state).await
}

/// Brings files back from a snapshot.
pub async fn restore_files(system: System, script: &Script, consent: Option<String>, state: &Path) -> Result<()> {
    // Into a folder that is not there yet nothing has to be typed.
    let consent = if script.in_place { consent } else { Some(String::new()) };
    consented(system, Flow::Rows, script, consent, state).await
}

/// Lists what recoveries have left in production and why, and removes what nobody needs any more.
pub async fn clean_up(system: System, consent: Option<String>, state: &Path) -> Result<()> {
    let keep = flows::clean::Keep { undo_seconds: system.keep_undo.as_secs(), open: Standing::open(state) };
    consented(system, Flow::Clean(keep), &Script::default(), consent, state).await
}

/// A flow that asks nothing but consent.
async fn consented(system: System, flow: Flow, script: &Script, consent: Option<String>, state: &Path) -> Result<()> {
    let workers = Workers::Detached { system, dump: None, away: Away::Command };
    let mut watch = Watch::begin(&workers, flow, state).await?;
    let id = watch.id().to_owned();
    let outcome = async {
        let plan = watch.decide(script).await?;
        if let (Flow::Clean(keep), Some(Finding::Leftovers(found))) =
            (watch.flow(), watch.record().finding(&Look::Leftovers))
        {
            for leftover in found {
                let fate =
                    flows::clean::kept(keep, leftover).map_or_else(|| "goes".into(), |why| format!("stays: {why}"));
                print(&clean(&format!("{}: {}; {fate}", leftover.schema, flows::clean::reason(leftover))))?;
            }
        }
        if let Some(choice) = choice_of(watch.record()) {
            for (path, why) in &choice.left_out {
                print(&clean(&format!("left out: {path}: {why}")))?;
            }
        }
        for step in &plan.steps {
            print(&step.title())?;
            for statement in step.statements() {
                print(&clean_lines(&statement))?;
            }
        }
        let typed = match consent {
            Some(typed) => typed,
            None => ask(&mut watch, &plan).await?,
        };
        watch.consent(plan, &typed).await
    }
    .await;
    watch.end(outcome, state).await?;
    let lines = read_done(state, &id)?;
    print(&report::markdown(&lines))?;
    // What is done is done; that some of it could not be is no success.
    let restored = lines.iter().find_map(|line| match &line.entry {
        Entry::Applied { evidence: Evidence::Restored(restored), .. } => Some(restored),
        _ => None,
    });
    match restored {
        Some(restored) if restored.failures > 0 => Err(Error::backup(format!(
            "{} could not be brought back",
            text::counted(restored.failures, "file", "files")
        ))
        .hint("The report names them. Another recovery point may hold them: lifeboat versions PATH.")),
        _ => Ok(()),
    }
}

fn choice_of(record: &Record) -> Option<&Choice> {
    record.findings().find_map(|finding| if let Finding::Chosen(choice) = finding { Some(choice) } else { None })
}

async fn ask(watch: &mut Watch, plan: &Plan) -> Result<String> {
    let phrase = plan.phrase();
    if !std::io::stdin().is_terminal() {
        return Err(Error::refused("consent has to be typed, and there is no terminal")
            .hint(format!("Give it with --consent \"{phrase}\".")));
    }
    let _ = write!(std::io::stderr(), "Type {phrase} to consent: ");
    watch.typed().await
}

fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

pub fn journal(state: &Path, recovery: &str) -> Result<()> {
    let lines = journal::read(&recovery_folder(state, recovery)?)?;
    for line in &lines {
        print(&format!("{}  {}", line.at.format("%Y-%m-%d %H:%M:%S%.3f"), clean(&report::told(&line.entry))))?;
    }
    print(&format!("{}, the chain of hashes holds", text::counted(lines.len() as u64, "entry", "entries")))
}

/// Checks a journal against itself, and against the heads of it that are kept elsewhere.
pub async fn verify(system: System, recovery: &str, state: &Path) -> Result<()> {
    let folder = recovery_folder(state, recovery)?;
    let (lines, heads) = (journal::read(&folder)?, journal::heads(&folder)?);
    print(&format!("{}, the chain of hashes holds", text::counted(lines.len() as u64, "entry", "entries")))?;
    let rewritten = |keeper: &str, head: &str| {
        Error::refused(format!("the journal of recovery {recovery} was cut or rewritten"))
            .detail(format!("{keeper} keeps the head {head}, which no line of the journal has"))
            .hint("Believe the keeper: what the journal says since its beginning cannot be relied on.")
    };
    match report::head(&folder) {
        Some(head) if heads.contains(&head) => print("the head in its report is among them")?,
        Some(head) => return Err(rewritten("the report", &head)),
        None => print("there is no report beside it")?,
    }
    let live = Systems::new(system, None);
    for line in &lines {
        let Entry::Consented { plan, .. } = &line.entry else { continue };
        for step in &plan.steps {
            let (of, hash) = match step {
                Step::MergeRows { changes } => (recovery, changes.hash.clone()),
                Step::UndoRows { recovery: earlier, undo } => (earlier.as_str(), undo.hash.clone()),
                Step::RecreateTables { recreation } => (recovery, recreation.hash.clone()),
                Step::RemoveRecreated { recovery: earlier, recreation } => {
                    (earlier.as_str(), recreation.hash_back(earlier))
                }
                _ => continue,
            };
            match live.anchor(of, &hash).await {
                Ok(Some(head)) if heads.contains(&head) => print("the head that production keeps is among them")?,
                Ok(Some(head)) => return Err(rewritten("production", &head)),
                Ok(None) => print("production keeps nothing of it")?,
                Err(error) => print(&format!("production could not be asked: {}", clean(&error.message)))?,
            }
        }
    }
    Ok(())
}

/// The name of the system that a recovery was started on.
pub fn system_of(state: &Path, recovery: &str) -> Result<String> {
    let lines = journal::read(&recovery_folder(state, recovery)?)?;
    let system = lines.into_iter().find_map(|line| match line.entry {
        Entry::Started { system, .. } => Some(system),
        _ => None,
    });
    system.ok_or_else(|| Error::operator(format!("the journal of recovery {recovery} does not name a system")))
}

/// A drill: on the console, or by itself from an answers file where there is no terminal.
pub async fn drill(scenario: &'static Scenario, answers: Option<PathBuf>, config: &Config) -> Result<()> {
    let progress = Progress::default();
    let work = {
        let progress = progress.clone();
        tokio::task::spawn_blocking(move || Sandbox::create(scenario, &progress))
    };
    let sandbox = with_progress(&progress, async {
        work.await.map_err(|error| Error::bug("the sandbox's thread ended").detail(error))?
    })
    .await?;
    let sandbox = Arc::new(sandbox);
    refuse_configured(&sandbox, config)?;
    let state = sandbox.folder().join("state");
    let system = System {
        environment: Environment::Drill,
        repository: Some(RepositorySettings {
            url: sandbox.repository().display().to_string(),
            password_file: Some(sandbox.password_file()),
            password_command: None,
        }),
        database: Some(sandbox.conninfo()),
        base_backups: sandbox.base_backups(),
        wal_archive: sandbox.wal_archive(),
        clones: sandbox.clones(),
        ..System::named("drill")
    };
    if answers.is_none() && std::io::stdout().is_terminal() && std::io::stdin().is_terminal() {
        let verdict = {
            let sandbox = sandbox.clone();
            Arc::new(move || verdict(&sandbox)) as crate::ui::Verdict
        };
        let systems = Arc::new(Systems::new(system.clone(), None));
        let console = crate::ui::Console {
            system: system.name.clone(),
            environment: system.environment.to_string(),
            keep_undo: system.keep_undo,
            workers: Arc::new(Workers::Here { systems, system }),
            state,
            attach: None,
            machine: sandbox.tree().map(|_| journal::operator().host),
            briefing: Some(sandbox.briefing()),
            verdict: Some(verdict),
            now: chrono::Utc::now,
        };
        return crate::ui::run(console).await;
    }
    let script = match answers {
        Some(path) => Script::read(&path)?,
        None => Script::parse(&sandbox.answers())?,
    };
    print(&sandbox.briefing())?;
    let workers = Workers::Here { systems: Arc::new(Systems::new(system.clone(), None)), system };
    let id = scripted(&workers, &script, &state).await?;
    print(&report::markdown(&read_done(&state, &id)?))?;
    let checks = verdict(&sandbox)?;
    print("## Checked against the truth\n")?;
    for (check, held, detail) in &checks {
        print(&format!("- [{}] {check}: {detail}", if *held { "x" } else { " " }))?;
    }
    if checks.iter().all(|(_, held, _)| *held) {
        print("\nRecovered, checked against the truth.")
    } else {
        Err(Error::target("the drill's recovery does not hold against the truth"))
    }
}

/// A drill damages what it works on. The sandbox is new, in a folder with a random name; should the configuration name it
/// all the same, nothing is touched.
fn refuse_configured(sandbox: &Sandbox, config: &Config) -> Result<()> {
    let folder = sandbox.folder().display().to_string();
    let names = |system: &&System| {
        let repository = system.repository.as_ref().is_some_and(|repository| repository.url.contains(&folder));
        repository || system.database.as_ref().is_some_and(|database| database.contains(&folder))
    };
    match config.systems.iter().find(names) {
        Some(system) => {
            Err(Error::refused(format!("the drill's sandbox is named in the configuration as {}", system.name))
                .hint("Remove that system from the configuration: a sandbox goes away with its drill."))
        }
        None => Ok(()),
    }
}

/// The drill's end state against the truth, in words.
fn verdict(sandbox: &Sandbox) -> Result<Vec<crate::ui::screens::done::Check>> {
    let words = |check: sandbox::Check| {
        let mut words = format!("{} of {}", text::count(check.found), text::count(check.expected));
        if !check.ok && !check.examples.is_empty() {
            words.push_str(&format!(", for example {}", check.examples));
        }
        (check.name, check.ok, words)
    };
    Ok(sandbox.check()?.checks.into_iter().map(words).collect())
}
