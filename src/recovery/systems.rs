//! The only door to anything outside: everything a recovery looks at or changes goes through here. On one side is a restic
//! repository or a dump on disk, on the other a PostgreSQL server.
//!
//! Repository reads block, so they run on blocking threads. One connection serves a recovery; when it was lost it is made
//! again, and the staging schema is found as it was.

mod database;
mod files;
mod moment;
mod points;
mod session;

use std::collections::HashMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::plan::Step;
use super::record::{CLONE, Contents, DISK, Finding, Look, NamedKey, Point, ServerFacts, TableState, Tables};
use crate::backup::{Location, Place, REFRESH, Repository, SharedLock, Snapshot};
use crate::config::System;
use crate::error::{Error, Result};
use crate::files::beside::Restored;
use crate::files::put::{self, Put};
use crate::postgres::archive::Archive;
use crate::postgres::claim;
use crate::postgres::connect::Server;
use crate::postgres::database::{self as whole, Exchanged};
use crate::postgres::diff::{self, Filter, Page, Start};
use crate::postgres::merge::{self, Applied, ChangeSet, Choice, Proof, Triggers};
use crate::postgres::name::Name;
use crate::postgres::origin::Origin;
use crate::postgres::schema;
use crate::postgres::stage;
use crate::progress::{Progress, Unit};
use crate::text;
pub use files::Beneath;
pub use points::location;
use points::{disk_point, look_into, search, source};
use session::Session;
pub use session::conninfo;

/// Dumps whose tables of contents are kept; a database of many thousand tables has a large one.
const KEPT_OPEN: usize = 4;

/// What a step did, as its own checks saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "evidence", content = "of", rename_all = "snake_case")]
pub enum Evidence {
    /// Committed, with these counts.
    Merged(Applied),
    /// Production was read again after COMMIT.
    Proved(Proof),
    /// Committed, with these counts: what was taken back.
    Undone(Applied),
    /// The staging schema is gone, or never was there.
    ScratchDropped,
    /// These schemas of other recoveries are gone.
    Removed(Vec<String>),
    /// Files lie in a new folder, and were read again.
    Restored(Restored),
    /// Files were put in place, and what stood there is kept.
    PutFiles(Put),
    /// Files were taken back; what was taken back is kept.
    UndoneFiles(Put),
    /// Production is in the repository as it was.
    BackedUp {
        /// Its full id.
        snapshot: String,
        /// Tables with rows in its dump, which was read again.
        tables: u64,
    },
    /// The restored database has production's name.
    Promoted(Exchanged),
    /// Seen through production's name.
    PromotionProved {
        /// Tables in it.
        tables: u64,
        /// Rows that were written to the earlier one since the restore began; `None`: not known, or there is none.
        left_behind: Option<u64>,
    },
    /// The restored database stays beside production.
    Kept {
        /// Its name.
        database: String,
    },
    /// The earlier database has production's name again.
    Returned(Exchanged),
    /// Committed, with so many rows table by table: tables that production had no more.
    Recreated(Applied),
    /// Production was read again after COMMIT.
    RecreatedProved {
        /// Rows of each.
        tables: Vec<(Name, u64)>,
        /// Lowercase fragments: what is not as it was.
        missing: Vec<String>,
    },
    /// Committed: the tables are in the schema that keeps pre-images.
    RecreatedRemoved(Applied),
    /// The cluster as of the moment is gone, or never was there.
    CloneDropped,
    /// It stays, and stands in this folder.
    CloneKept(String),
}

/// Everything outside that one configured system needs.
pub struct Systems {
    system: System,
    /// Read this dump instead of the repository.
    disk: Option<PathBuf>,
    repository: Mutex<Option<Repository>>,
    archives: Mutex<HashMap<(String, String), Archive>>,
    session: Mutex<Session>,
    listing: Mutex<files::Listing>,
    counted: Mutex<Option<database::Dump>>,
    sources: Mutex<Option<moment::Sources>>,
    clone: Mutex<Option<Origin>>,
}

/// The tables of a dump, and the server beside them when there is one.
#[derive(Debug, serde::Serialize)]
pub struct Listed {
    /// `None`: no database is configured.
    pub server: Option<ServerFacts>,
    /// All of the dump's, in its order.
    pub tables: Vec<TableState>,
}

impl Systems {
    /// Opens nothing yet. A dump on `disk` takes the place of the system's repository.
    pub fn new(system: System, disk: Option<PathBuf>) -> Self {
        Self {
            system,
            disk,
            repository: Mutex::default(),
            archives: Mutex::default(),
            session: Mutex::default(),
            listing: Mutex::default(),
            counted: Mutex::default(),
            sources: Mutex::default(),
            clone: Mutex::default(),
        }
    }

    /// Whether what changes production needs the consent of two people.
    pub fn requires_second_person(&self) -> bool {
        self.system.require_second_person
    }

    /// The full id of a recovery point from the beginning of one.
    pub async fn find(&self, id: &str) -> Result<String> {
        if self.disk.is_some() {
            return Ok(DISK.into());
        }
        let (repository, id) = (self.repository().await?, id.to_owned());
        blocking(move || repository.find(&id)).await.map(|snapshot| snapshot.id)
    }

    /// Bytes fetched from the repository so far.
    pub async fn bytes_read(&self) -> u64 {
        self.repository.lock().await.as_ref().map_or(0, Repository::bytes_read)
    }

    /// Connects to the server beforehand; whatever needs it would connect by itself.
    pub async fn connect(&self, recovery: &str) -> Result<()> {
        self.session.lock().await.server(&self.system, recovery).await.map(|_| ())
    }

    /// What production keeps of a recovery's journal: its head when the plan of that hash was carried out.
    pub async fn anchor(&self, recovery: &str, hash: &str) -> Result<Option<String>> {
        let mut session = self.session.lock().await;
        merge::anchor(&session.server(&self.system, recovery).await?.client, recovery, hash).await
    }

    /// The tables of a dump; beside the live ones when a database is configured.
    pub async fn tables(&self, point: &str, dump: &str, progress: &Progress) -> Result<Listed> {
        if self.system.database.is_some() {
            let Tables { server, tables } = self.compare_schemas("", point, dump, progress).await?;
            return Ok(Listed { server: Some(server), tables });
        }
        let origin = self.origin("", point, dump, progress).await?;
        let tables = self.estimated(&origin, progress).await?;
        Ok(Listed { server: None, tables })
    }

    async fn repository(&self) -> Result<Repository> {
        let mut held = self.repository.lock().await;
        if let Some(repository) = &*held {
            return Ok(repository.clone());
        }
        let location = location(&self.system)?;
        let repository = blocking(move || Repository::open(&location)).await?;
        *held = Some(repository.clone());
        Ok(repository)
    }

    async fn points(&self) -> Result<Vec<Point>> {
        if let Some(path) = &self.disk {
            return Ok(vec![disk_point(path)?]);
        }
        // With base backups and WAL a repository is not needed.
        let given = self.system.repository.is_some() || Location::from_environment()?.is_some();
        if !given && self.system.wal_archive.is_some() {
            return Ok(Vec::new());
        }
        let repository = self.repository().await?;
        let shown = repository.shown().to_owned();
        let snapshots = blocking(move || {
            repository.remove_left_locks();
            repository.snapshots()
        });
        let snapshots = snapshots.await?;
        let wanted = |snapshot: &Snapshot| {
            self.system.host.as_ref().is_none_or(|host| *host == snapshot.host)
                && self.system.tags.iter().all(|tag| snapshot.tags.contains(tag))
        };
        Ok(snapshots
            .into_iter()
            .filter(wanted)
            .map(|snapshot| Point {
                id: snapshot.id,
                repository: shown.clone(),
                instant: snapshot.instant,
                host: snapshot.host,
                paths: snapshot.paths,
                tags: snapshot.tags,
            })
            .collect())
    }

    async fn contents(&self, point: &str, progress: &Progress) -> Result<Contents> {
        if let Some(path) = self.disk.clone() {
            return blocking(move || {
                let size_bytes = std::fs::metadata(&path).map_or(0, |facts| facts.len());
                let found = look_into(String::new(), size_bytes, Place::Disk(path), &Progress::default())?;
                let dumps = found.into_iter().map(|(dump, _)| dump).collect();
                Ok(Contents { dumps, files: 0, bytes: 0, complete: true })
            })
            .await;
        }
        let (repository, id, progress) = (self.repository().await?, point.to_owned(), progress.clone());
        let (contents, opened) = blocking(move || search(&repository, &id, &progress)).await?;
        // What was opened to look into it is not read from the repository again.
        let mut archives = self.archives.lock().await;
        if archives.len() >= KEPT_OPEN {
            archives.clear();
        }
        archives.extend(opened.into_iter().map(|(path, archive)| ((point.to_owned(), path), archive)));
        Ok(contents)
    }

    async fn place(&self, point: &str, dump: &str) -> Result<Place> {
        if let Some(path) = &self.disk {
            return Ok(Place::Disk(path.clone()));
        }
        let (repository, point, path) = (self.repository().await?, point.to_owned(), dump.to_owned());
        blocking(move || {
            let snapshot = repository.find(&point)?;
            Ok(Place::Snapshot { repository, snapshot, path })
        })
        .await
    }

    async fn archive(&self, point: &str, dump: &str, progress: &Progress) -> Result<Archive> {
        let address = (point.to_owned(), dump.to_owned());
        if let Some(archive) = self.archives.lock().await.get(&address) {
            return Ok(archive.clone());
        }
        let (place, progress) = (self.place(point, dump).await?, progress.clone());
        let archive = blocking(move || Archive::open(&source(place)?, &progress)).await?;
        self.archives.lock().await.insert(address, archive.clone());
        Ok(archive)
    }

    /// A dump, or the clone of this recovery.
    async fn origin(&self, recovery: &str, point: &str, dump: &str, progress: &Progress) -> Result<Origin> {
        match point {
            CLONE => self.clone_origin(recovery, dump, progress).await,
            _ => self.archive(point, dump, progress).await.map(Origin::dump),
        }
    }

    /// The tables of a dump with their estimated rows, and nothing of production.
    async fn estimated(&self, origin: &Origin, progress: &Progress) -> Result<Vec<TableState>> {
        let (origin, progress) = (origin.clone(), progress.clone());
        blocking(move || {
            let tables = origin.archive.tables();
            progress.begin("estimating rows", Unit::Items, Some(tables.len() as u64));
            let estimated = tables.iter().map(|table| {
                progress.check()?;
                progress.advance(1);
                // A table that cannot be read is listed all the same; reading its rows will say why.
                let backup_rows = if table.has_data { origin.estimate(table) } else { None };
                Ok(TableState { backup: table.clone(), backup_rows, live: None, pairs: Vec::new() })
            });
            estimated.collect()
        })
        .await
    }

    async fn compare_schemas(&self, recovery: &str, point: &str, dump: &str, progress: &Progress) -> Result<Tables> {
        let origin = self.origin(recovery, point, dump, progress).await?;
        let mut tables = self.estimated(&origin, progress).await?;
        progress.begin("reading the catalog of production", Unit::Items, None);
        let mut session = self.session.lock().await;
        let server = session.server(&self.system, recovery).await?;
        let live = schema::live(&server.client, None).await?;
        let mut left = left_behind(&server.client, recovery).await?;
        left.splice(
            0..0,
            claim::others(&server.client).await?.iter().filter(|claim| !claim.lost).map(claim::Claim::told),
        );
        for table in &mut tables {
            table.live = live.iter().find(|live| live.name == table.backup.name).cloned();
            if let Some(live) = &table.live {
                table.pairs = diff::pairs(live, &table.backup.columns, &table.backup.copied);
            }
        }
        let mut server = server_facts(server);
        server.warnings.extend(left);
        if let Some(repository) = self.repository.lock().await.clone() {
            server.warnings.extend(blocking(move || Ok(repository.warnings())).await?);
        }
        Ok(Tables { server, tables })
    }

    async fn stage_and_diff(
        &self,
        recovery: &str,
        (point, dump): (&str, &str),
        names: &[Name],
        keys: &[NamedKey],
        progress: &Progress,
    ) -> Result<Finding> {
        progress.begin("opening the dump", Unit::Items, None);
        let origin = self.origin(recovery, point, dump, progress).await?;
        let mut session = self.session.lock().await;
        let session = &mut *session;
        let refusal = server_facts(session.server(&self.system, recovery).await?).refusal;
        if let Some(why) = refusal {
            return Err(Error::refused(why).hint("Connect to the primary as a role that may create a schema."));
        }
        session.drop_scratch(&self.system, recovery).await?;
        let lock = self.lock().await;
        let outcome = session.stage_all(&self.system, recovery, &origin, names, keys, progress).await;
        if outcome.is_err() {
            // Nothing is left behind; what went wrong matters more than a failure to clean up, which `clean` finds.
            let _ = session.drop_scratch(&self.system, recovery).await;
        }
        // Removing it may take a round trip to the storage.
        let _ = tokio::task::spawn_blocking(move || drop(lock)).await;
        outcome.map(Finding::Diff)
    }

    /// Keeps a prune from the repository while rows are read out of it, where that can be done.
    async fn lock(&self) -> Option<SharedLock> {
        let repository = self.repository.lock().await.clone()?;
        blocking(move || Ok(repository.lock(REFRESH))).await.ok()?
    }

    async fn freeze(&self, rows: &[Choice], triggers: Triggers, progress: &Progress) -> Result<ChangeSet> {
        let mut session = self.session.lock().await;
        let (client, scratch, compared) = session.staged(&self.system).await?;
        merge::prepare(client, scratch, compared, rows, triggers, progress).await
    }

    async fn merge(&self, recovery: &str, changes: &ChangeSet, journal: &str, progress: &Progress) -> Result<Evidence> {
        let mut session = self.session.lock().await;
        let (client, scratch, _) = session.staged(&self.system).await?;
        let outcome = merge::apply(client, scratch, changes, journal, progress).await;
        session.resolved(&self.system, recovery, recovery, &changes.hash, outcome).await.map(Evidence::Merged)
    }
}

impl Systems {
    /// Reads, or writes only in scratch space named after the recovery.
    pub async fn look(&self, recovery: &str, look: &Look, progress: &Progress) -> Result<Finding> {
        match look {
            Look::Points => {
                progress.begin("reading the repository", Unit::Items, None);
                self.points().await.map(Finding::Points)
            }
            Look::Contents { point } => self.contents(point, progress).await.map(Finding::Contents),
            Look::Tables { point, dump } => {
                progress.begin("reading the dump's table of contents", Unit::Items, None);
                self.compare_schemas(recovery, point, dump, progress).await.map(Finding::Tables)
            }
            Look::Diff { point, dump, tables, keys } => {
                Box::pin(self.stage_and_diff(recovery, (point, dump), tables, keys, progress)).await
            }
            Look::Freeze { rows, triggers } => {
                progress.begin("freezing the chosen rows and checking what writing them would meet", Unit::Items, None);
                self.freeze(rows, *triggers, progress).await.map(Finding::Frozen)
            }
            Look::Undo { recovery: earlier } => {
                progress.begin("looking what can be taken back", Unit::Items, None);
                let mut session = self.session.lock().await;
                let server = session.server(&self.system, recovery).await?;
                merge::undo_plan(&server.client, recovery, earlier).await.map(Finding::Undo)
            }
            Look::Needs { point, dump } => Box::pin(self.needs(recovery, point, dump, progress)).await,
            Look::RestoreDatabase { point, dump } => {
                Box::pin(self.restore_database(recovery, (point, dump), progress)).await
            }
            Look::Moments { incident } => Box::pin(self.moments(recovery, *incident, progress)).await,
            Look::Reach { aim } => Box::pin(self.reach(recovery, aim, progress)).await,
            Look::LayOut { reached } => Box::pin(self.lay_out(recovery, reached, progress)).await,
            Look::Recreate { dump, tables } => Box::pin(self.recreation(recovery, dump, tables, progress)).await,
            Look::Standing { restored } => Box::pin(self.standing(recovery, restored, progress)).await,
            Look::WayBack { exchange } => Box::pin(self.way_back(recovery, exchange)).await,
            Look::Leftovers => {
                progress.begin("looking what recoveries have left in production", Unit::Items, None);
                let mut session = self.session.lock().await;
                let server = session.server(&self.system, recovery).await?;
                let mut leftovers = stage::leftovers(&server.client).await?;
                leftovers.extend(whole::leftovers(&server.client, &server.facts.database).await?);
                Ok(Finding::Leftovers(leftovers))
            }
            Look::Gather { point, paths } => self.gather(point, paths, progress).await.map(Finding::Gathered),
            Look::Choose { point, paths, destination, policy, own, except } => {
                let to = (destination, *policy, *own);
                let choice = self.choose(recovery, (point, paths), to, progress).await?;
                choice.without(except).map(Finding::Chosen)
            }
            Look::Placed { placed, .. } => {
                progress.begin("looking what can be taken back", Unit::Items, None);
                let placed = placed.clone();
                blocking(move || {
                    let (can, cannot) = put::undoable(&placed);
                    Ok(Finding::Placed(can, cannot))
                })
                .await
            }
        }
    }

    /// Does one step of a confirmed plan. `journal` is the journal's head: production keeps it with what was changed, so that
    /// a journal that is cut or rewritten later shows.
    pub async fn execute(&self, recovery: &str, step: &Step, journal: &str, progress: &Progress) -> Result<Evidence> {
        match step {
            Step::MergeRows { changes } => self.merge(recovery, changes, journal, progress).await,
            Step::Prove { changes } => {
                progress.begin("comparing the written rows with the backup again", Unit::Items, None);
                let mut session = self.session.lock().await;
                let (client, scratch, _) = session.staged(&self.system).await?;
                merge::prove(client, scratch, changes).await.map(Evidence::Proved)
            }
            Step::UndoRows { recovery: earlier, undo } => {
                progress.begin("taking rows back", Unit::Items, None);
                let mut session = self.session.lock().await;
                let server = session.server(&self.system, recovery).await?;
                let outcome = merge::undo(&server.client, recovery, earlier, undo, journal, progress).await;
                if !server.client.is_closed() {
                    claim::release(&server.client).await?;
                }
                session.resolved(&self.system, recovery, earlier, &undo.hash, outcome).await.map(Evidence::Undone)
            }
            Step::RestoreFiles { choice } => self.restore_files(recovery, choice, progress).await,
            Step::PutFiles { choice } => self.put_files(recovery, choice, progress).await,
            Step::UndoFiles { placed, .. } => self.undo_files(placed, progress).await,
            Step::SafetyBackup { database } => Box::pin(self.safety_backup(recovery, database, progress)).await,
            Step::Promote { exchange } => Box::pin(self.promote(recovery, exchange, progress)).await,
            Step::ProvePromotion { exchange } => Box::pin(self.prove_promotion(recovery, exchange)).await,
            Step::KeepDatabase { restored } => {
                // From here on it is not ours to remove without being asked.
                let mut session = self.session.lock().await;
                (session.restored, session.inside) = (None, None);
                Ok(Evidence::Kept { database: restored.database.clone() })
            }
            Step::RecreateTables { recreation } => {
                Box::pin(self.recreate(recovery, recreation, journal, progress)).await
            }
            Step::ProveRecreated { recreation } => {
                progress.begin("comparing the tables with the cluster they came from", Unit::Items, None);
                Box::pin(self.prove_recreated(recovery, recreation)).await
            }
            Step::RemoveRecreated { recovery: earlier, recreation } => {
                Box::pin(self.remove_recreated((recovery, earlier), recreation, journal, progress)).await
            }
            Step::DropClone { folder } => self.drop_clone(folder).await,
            Step::KeepClone { clone } => self.keep_clone(&clone.folder, progress).await,
            Step::ExchangeBack { recovery: earlier, exchange } => {
                Box::pin(self.exchange_back(recovery, earlier, exchange, progress)).await
            }
            Step::DropScratch => {
                let mut session = self.session.lock().await;
                if session.restored.is_some() {
                    session.drop_restored(&conninfo(&self.system)?).await?;
                    return Ok(Evidence::ScratchDropped);
                }
                session.drop_scratch(&self.system, recovery).await?;
                Ok(Evidence::ScratchDropped)
            }
            Step::RemoveLeftovers { leftovers } => {
                progress.begin("removing what was left", Unit::Items, Some(leftovers.len() as u64));
                let mut session = self.session.lock().await;
                let server = session.server(&self.system, recovery).await?;
                for leftover in leftovers {
                    progress.check()?;
                    if leftover.kind.is_database() {
                        whole::remove(&server.client, leftover).await?;
                    } else {
                        stage::remove(&server.client, leftover).await?;
                    }
                    progress.advance(1);
                }
                Ok(Evidence::Removed(leftovers.iter().map(|leftover| leftover.schema.clone()).collect()))
            }
        }
    }

    /// Takes over from a process of the same recovery that has ended: finds the scratch space it left, and what became of
    /// the step that it may have been in the middle of. `None`: the step was not committed, and will not be any more.
    pub async fn take_over(&self, recovery: &str, open: Option<&Step>) -> Result<Option<Evidence>> {
        if let Some(step @ (Step::RestoreFiles { .. } | Step::PutFiles { .. } | Step::UndoFiles { .. })) = open {
            return self.settle_files(recovery, step).await;
        }
        match open {
            Some(Step::Promote { exchange }) => {
                let settled = self.settle_exchange(recovery, exchange, Some(exchange.oid)).await?;
                self.session.lock().await.restored = settled.is_none().then(|| recovery.to_owned());
                return Ok(settled.map(Evidence::Promoted));
            }
            Some(Step::ExchangeBack { exchange, .. }) => {
                let settled = self.settle_exchange(recovery, exchange, exchange.production).await?;
                return Ok(settled.map(Evidence::Returned));
            }
            _ => {}
        }
        let mut session = self.session.lock().await;
        let server = session.server(&self.system, recovery).await?;
        let outcome = match open {
            Some(Step::MergeRows { changes }) => {
                merge::resolve(&server.client, recovery, &changes.hash).await?.applied().map(Evidence::Merged)
            }
            Some(Step::UndoRows { recovery: earlier, undo }) => {
                merge::resolve(&server.client, earlier, &undo.hash).await?.applied().map(Evidence::Undone)
            }
            Some(Step::RecreateTables { recreation }) => {
                merge::resolve(&server.client, recovery, &recreation.hash).await?.applied().map(Evidence::Recreated)
            }
            Some(Step::RemoveRecreated { recovery: earlier, recreation }) => {
                let hash = recreation.hash_back(earlier);
                merge::resolve(&server.client, earlier, &hash).await?.applied().map(Evidence::RecreatedRemoved)
            }
            _ => None,
        };
        session.scratch = stage::find_scratch(&session.server(&self.system, recovery).await?.client, recovery).await?;
        Ok(outcome)
    }

    /// Some rows of the present diff's `table`-th table, after row number `after`.
    pub async fn page(&self, table: usize, filter: &Filter, after: i64, limit: u32) -> Result<Page> {
        let mut session = self.session.lock().await;
        let (client, scratch, compared) = session.staged(&self.system).await?;
        diff::page(client, scratch, nth(compared, table)?, filter, Start::After(after), limit).await
    }

    /// How many rows of that diff match.
    pub async fn matches(&self, table: usize, filter: &Filter) -> Result<u64> {
        let mut session = self.session.lock().await;
        let (client, scratch, compared) = session.staged(&self.system).await?;
        diff::matches(client, scratch, nth(compared, table)?, filter).await
    }
}

fn nth(compared: &[diff::Table], table: usize) -> Result<&diff::Table> {
    compared.get(table).ok_or_else(|| Error::bug(format!("table {table} is not staged")))
}

/// Staging schemas of other recoveries: of one that runs now, or that was killed.
async fn left_behind(client: &tokio_postgres::Client, recovery: &str) -> Result<Vec<String>> {
    let left = stage::leftovers(client).await?.into_iter().filter_map(|leftover| {
        let mark = leftover.mark.filter(|mark| mark.lifeboat != recovery)?;
        (leftover.kind == stage::LeftoverKind::Staging).then(|| {
            format!(
                "{} ({}) is there since {}, made from {}: lifeboat clean removes it when no recovery uses it any more",
                leftover.schema,
                text::bytes(leftover.bytes),
                mark.created.get(..16).unwrap_or(&mark.created),
                mark.host
            )
        })
    });
    Ok(left.collect())
}

fn server_facts(server: &Server) -> ServerFacts {
    let facts = &server.facts;
    let refusal = if facts.in_recovery {
        Some("the server is a standby: nothing can be written there".into())
    } else if facts.read_only {
        Some("the database is read-only".into())
    } else if facts.can_create_schema {
        None
    } else {
        Some(format!("role {} may not create a schema in {}", facts.user, facts.database))
    };
    ServerFacts {
        shown: format!("{}:{}", facts.host, facts.port),
        database: facts.database.clone(),
        version: facts.version.clone(),
        system_identifier: facts.system_identifier.clone(),
        refusal,
        warnings: server.warnings.clone(),
    }
}

/// Runs a blocking read on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::bug("a reading thread ended").detail(error)),
    }
}
