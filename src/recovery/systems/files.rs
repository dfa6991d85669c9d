//! Files: the snapshot on one side, this machine's file systems on the other. Everything here blocks, on threads that may.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::MutexGuard;

use super::{Evidence, Step, Systems, blocking};
use crate::backup::{EntryKind, Node, Repository, Snapshot};
use crate::error::{Error, Result};
use crate::files::beside;
use crate::files::catalog::{Catalog, Hits, Query, Search};
use crate::files::choice::{self, Choice, Destination, Policy};
use crate::files::excludes::Excludes;
use crate::files::history::{self, Side, Story, Versions};
use crate::files::live::{self, Beside, Present, Standing};
use crate::files::look::{self, Compared, Inside};
use crate::files::put::{self, Placed};
use crate::files::write::Own;
use crate::postgres::archive::Archive;
use crate::progress::Progress;
use crate::recovery::record::Gathered;

/// Best matches that a search gives.
const HITS: usize = 500;

/// Files of up to this length are compared line by line.
const COMPARED: u64 = 16 << 20;

/// What a search looks through.
#[derive(Clone, PartialEq, Eq)]
enum Through {
    Point(String),
    EveryPoint,
}

/// A whole tree, or all of them, and the search that goes on in it.
#[derive(Default)]
pub(super) struct Listing {
    through: Option<Through>,
    catalog: Arc<Catalog>,
    /// The snapshots that were read, newest first, and which of them holds each entry, where there is more than one.
    snapshots: Vec<String>,
    holders: Vec<u32>,
    search: Search,
}

/// What lies beneath a folder, and how it stands to this machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beneath {
    /// Of all files.
    pub bytes: u64,
    /// In the snapshot.
    pub files: u64,
    /// Files that are not here any more.
    pub missing: u64,
    /// Files with other content here.
    pub changed: u64,
    /// Files and folders that are only here.
    pub extra: u64,
}

impl Systems {
    async fn snapshot(&self, point: &str) -> Result<(Repository, Snapshot)> {
        let (repository, point) = (self.repository().await?, point.to_owned());
        blocking(move || {
            let snapshot = repository.find(&point)?;
            Ok((repository, snapshot))
        })
        .await
    }

    /// What is in a folder of a snapshot, beside the folder of the same path here; at most `limit` rows, and how many
    /// there are.
    pub async fn folder(&self, point: &str, path: &str, limit: usize) -> Result<(Vec<Beside>, u64)> {
        let ((repository, snapshot), path) = (self.snapshot(point).await?, path.to_owned());
        let excludes = self.excludes()?;
        blocking(move || {
            let node = repository.node(&snapshot, &path)?;
            let nodes = node.subtree.map(|id| repository.nodes(&id)).transpose()?.unwrap_or_default();
            let here = choice::here(&repository, &snapshot, &path)?;
            let here = here.filter(|_| snapshot.host == this_host());
            let mut rows = live::beside(&nodes, here.as_deref().unwrap_or(Path::new("/dev/null")), &excludes);
            if here.is_none() {
                for row in &mut rows {
                    row.standing = Standing::Elsewhere;
                }
            }
            let all = rows.len() as u64;
            rows.truncate(limit);
            Ok((rows, all))
        })
        .await
    }

    fn excludes(&self) -> Result<Excludes> {
        self.system.excludes.as_deref().map_or_else(|| Ok(Excludes::default()), Excludes::read)
    }

    /// Which of some paths a snapshot does not hold.
    pub async fn absent(&self, point: &str, paths: &[String]) -> Result<Vec<String>> {
        let ((repository, snapshot), paths) = (self.snapshot(point).await?, paths.to_vec());
        blocking(move || Ok(paths.into_iter().filter(|path| repository.node(&snapshot, path).is_err()).collect())).await
    }

    /// What lies beneath each folder in a folder of a snapshot, by name.
    pub async fn beneath(&self, point: &str, path: &str, progress: &Progress) -> Result<BTreeMap<String, Beneath>> {
        let ((repository, snapshot), path) = (self.snapshot(point).await?, path.to_owned());
        let (excludes, progress) = (self.excludes()?, progress.clone());
        blocking(move || {
            let node = repository.node(&snapshot, &path)?;
            let nodes = node.subtree.map(|id| repository.nodes(&id)).transpose()?.unwrap_or_default();
            let mut all = BTreeMap::new();
            for folder in nodes.iter().filter(|node| node.kind == EntryKind::Folder) {
                let path = format!("{}/{}", path.trim_end_matches('/'), folder.name);
                let measure = beside::measure(&repository, &snapshot, std::slice::from_ref(&path), &progress)?;
                let changes = if snapshot.host == this_host() {
                    history::changes_here(&repository, (&snapshot, &path), &excludes, 0, &progress)?.total
                } else {
                    history::Folder::default()
                };
                all.insert(
                    folder.name.clone(),
                    Beneath {
                        bytes: measure.bytes,
                        files: measure.files,
                        missing: changes.gone,
                        changed: changes.changed,
                        extra: changes.new,
                    },
                );
            }
            Ok(all)
        })
        .await
    }

    /// The whole tree of a snapshot; read once.
    pub async fn catalog(&self, point: &str, progress: &Progress) -> Result<Arc<Catalog>> {
        Ok(self.listing(Through::Point(point.into()), progress).await?.catalog.clone())
    }

    /// The tree or trees that are searched; what was read last is kept.
    async fn listing(&self, through: Through, progress: &Progress) -> Result<MutexGuard<'_, Listing>> {
        let mut listing = self.listing.lock().await;
        if listing.through.as_ref() == Some(&through) {
            return Ok(listing);
        }
        let (repository, progress) = (self.repository().await?, progress.clone());
        let ids = match &through {
            Through::Point(point) => vec![point.clone()],
            Through::EveryPoint => self.points().await?.into_iter().map(|point| point.id).collect(),
        };
        // What was read before goes first: two of them may be more than there is room for.
        *listing = Listing::default();
        *listing = blocking(move || {
            let snapshots = ids.iter().map(|id| repository.find(id)).collect::<Result<Vec<_>>>()?;
            let (catalog, holders) = match snapshots.as_slice() {
                [snapshot] => (Catalog::read(&repository, snapshot, &progress)?, Vec::new()),
                snapshots => Catalog::read_all(&repository, snapshots, &progress)?,
            };
            let through = Some(through);
            Ok(Listing { through, catalog: catalog.into(), snapshots: ids, holders, search: Search::default() })
        })
        .await?;
        Ok(listing)
    }

    /// The best matches of what somebody types, in a snapshot or in all of them; in all, with the newest that holds each.
    pub async fn search(&self, point: Option<&str>, typed: &str, progress: &Progress) -> Result<(Hits, Vec<String>)> {
        let query = Query::parse(typed)?;
        self.search_for(point, query, HITS, progress).await
    }

    /// As [`Systems::search`], for a query and with a limit.
    pub async fn search_for(
        &self,
        point: Option<&str>,
        query: Query,
        limit: usize,
        progress: &Progress,
    ) -> Result<(Hits, Vec<String>)> {
        let through = point.map_or(Through::EveryPoint, |point| Through::Point(point.into()));
        let mut listing = self.listing(through, progress).await?;
        let (catalog, mut search) = (listing.catalog.clone(), std::mem::take(&mut listing.search));
        let ((hits, numbers), search) = blocking(move || {
            let found = search.go(&catalog, &query, limit);
            Ok((found, search))
        })
        .await?;
        listing.search = search;
        if point.is_some() {
            return Ok((hits, Vec::new()));
        }
        let holder = |number: &u32| {
            let place = listing.holders.get(*number as usize).copied().unwrap_or(0);
            listing.snapshots.get(place as usize).cloned().unwrap_or_default()
        };
        Ok((hits, numbers.iter().map(holder).collect()))
    }

    /// The contents that a path has had.
    pub async fn versions(&self, path: &str, progress: &Progress) -> Result<Versions> {
        let points = self.points().await?;
        let (repository, path, progress) = (self.repository().await?, path.to_owned(), progress.clone());
        blocking(move || {
            let snapshots: Result<Vec<_>> = points.iter().map(|point| repository.find(&point.id)).collect();
            history::versions(&repository, &snapshots?, &path, &progress)
        })
        .await
    }

    /// What became of the files at and beneath a path since a snapshot, and in which later snapshot the worst folders went
    /// bad; at most `limit` files are named.
    pub async fn changes(
        &self,
        before: &str,
        after: &Side,
        path: &str,
        limit: usize,
        progress: &Progress,
    ) -> Result<Story> {
        let ((repository, before), path) = (self.snapshot(before).await?, path.to_owned());
        let (points, excludes) = (self.points().await?, self.excludes()?);
        let (after, progress) = (after.clone(), progress.clone());
        blocking(move || {
            let until = match &after {
                Side::Here => None,
                Side::Point(point) => Some(repository.find(point)?),
            };
            let alike = points.iter().rev().filter(|point| point.host == before.host && point.paths == before.paths);
            let later = alike.filter(|point| point.instant > before.instant);
            let later = later.filter(|point| until.as_ref().is_none_or(|until| point.instant <= until.instant));
            let later = later.map(|point| repository.find(&point.id)).collect::<Result<Vec<_>>>()?;
            let changes = match &until {
                None => history::changes_here(&repository, (&before, &path), &excludes, limit, &progress)?,
                Some(after) => history::changes(&repository, (&before, after), &path, limit, &progress)?,
            };
            history::story(&repository, (&before, &later), changes, &progress)
        })
        .await
    }

    /// How two contents of a path compare.
    pub async fn compare(&self, path: &str, (from, to): (&Side, &Side)) -> Result<Compared> {
        let repository = self.repository().await?;
        let (path, from, to) = (path.to_owned(), from.clone(), to.clone());
        blocking(move || {
            let content = |side: &Side| Content::of(&repository, side, &path);
            let (old, new) = (content(&from)?, content(&to)?);
            let same = match (&old.node, &new.node) {
                (Some(old), Some(new)) => old.content == new.content && old.target == new.target,
                (Some(node), None) | (None, Some(node)) => live::has_content(&repository, node, Path::new(&path))?,
                (None, None) => true,
            };
            let small = old.size.max(new.size) <= COMPARED && !same;
            let read = small.then(|| Ok::<_, Error>((old.read(&repository, &path)?, new.read(&repository, &path)?)));
            let read = read.transpose()?;
            let contents = read.as_ref().map(|(old, new)| (old.as_slice(), new.as_slice()));
            Ok(look::compare((old.name, new.name), (old.size, new.size), same, contents))
        })
        .await
    }

    /// A part of a file, and what it is.
    pub async fn look_into_file(&self, point: &str, path: &str, offset: u64, most: usize) -> Result<Inside> {
        let ((repository, snapshot), path) = (self.snapshot(point).await?, path.to_owned());
        blocking(move || {
            let node = repository.node(&snapshot, &path)?;
            let mut inside = look::into(&repository, &node, &path, offset, most)?;
            inside.dump = offset == 0 && Archive::sniff(&inside.bytes).is_some();
            Ok(inside)
        })
        .await
    }

    /// The whole of a file of a snapshot, to be read.
    pub async fn file(&self, point: &str, path: &str) -> Result<crate::backup::File> {
        let ((repository, snapshot), path) = (self.snapshot(point).await?, path.to_owned());
        blocking(move || repository.open_file(&snapshot, &path)).await
    }

    pub(super) async fn gather(&self, point: &str, paths: &[String], progress: &Progress) -> Result<Gathered> {
        let ((repository, snapshot), progress) = (self.snapshot(point).await?, progress.clone());
        let paths = paths.to_vec();
        blocking(move || {
            let measure = beside::measure(&repository, &snapshot, &paths, &progress)?;
            let privileged = nix::unistd::geteuid().is_root();
            let strangers =
                if privileged { choice::strangers(&repository, &snapshot, &paths, &progress)? } else { Vec::new() };
            let host = crate::recovery::journal::operator().host;
            Ok(Gathered { measure, strangers, host, folder: free_folder(snapshot.short()), privileged })
        })
        .await
    }

    pub(super) async fn choose(
        &self,
        recovery: &str,
        (point, paths): (&str, &[String]),
        (destination, policy, own): (&Destination, Policy, Own),
        progress: &Progress,
    ) -> Result<Choice> {
        let ((repository, snapshot), progress) = (self.snapshot(point).await?, progress.clone());
        let (paths, destination, recovery) = (paths.to_vec(), destination.clone(), recovery.to_owned());
        blocking(move || {
            choice::freeze((&repository, &snapshot), &paths, (&destination, policy, own), &recovery, &progress)
        })
        .await
    }

    pub(super) async fn restore_files(&self, recovery: &str, choice: &Choice, progress: &Progress) -> Result<Evidence> {
        let ((repository, snapshot), progress) = (self.snapshot(&choice.point).await?, progress.clone());
        let (choice, recovery) = (choice.clone(), recovery.to_owned());
        let lock = self.lock().await;
        let restored = blocking(move || {
            let Destination::Beside(folder) = &choice.destination else {
                return Err(Error::bug("files that go in place were to go beside"));
            };
            let into = (Path::new(folder), choice.own);
            beside::restore((&repository, &snapshot), &choice.paths, into, &recovery, (&choice.measure, &progress))
        })
        .await;
        let _ = tokio::task::spawn_blocking(move || drop(lock)).await;
        restored.map(Evidence::Restored)
    }

    pub(super) async fn put_files(&self, recovery: &str, choice: &Choice, progress: &Progress) -> Result<Evidence> {
        let ((repository, snapshot), progress) = (self.snapshot(&choice.point).await?, progress.clone());
        let (choice, recovery) = (choice.clone(), recovery.to_owned());
        let lock = self.lock().await;
        let put = blocking(move || put::put((&repository, &snapshot), &choice, &recovery, &progress)).await;
        let _ = tokio::task::spawn_blocking(move || drop(lock)).await;
        put.map(Evidence::PutFiles)
    }

    pub(super) async fn undo_files(&self, placed: &[Placed], progress: &Progress) -> Result<Evidence> {
        let (placed, progress) = (placed.to_vec(), progress.clone());
        blocking(move || put::undo(&placed, &progress)).await.map(Evidence::UndoneFiles)
    }

    /// What became of a step that writes files and whose process ended in the middle: done to its end, or taken back.
    pub(super) async fn settle_files(&self, recovery: &str, step: &Step) -> Result<Option<Evidence>> {
        match step {
            Step::RestoreFiles { choice } => {
                let (choice, recovery) = (choice.clone(), recovery.to_owned());
                blocking(move || {
                    let Destination::Beside(folder) = &choice.destination else { return Ok(None) };
                    let measure = choice.measure;
                    let mut notes = crate::files::write::Notes::default();
                    notes.add("the process ended before it could tell what was left out", Path::new(folder));
                    let restored = beside::Restored {
                        folder: folder.clone(),
                        files: measure.files,
                        folders: measure.folders,
                        symlinks: measure.symlinks,
                        bytes: measure.bytes,
                        notes,
                        ..beside::Restored::default()
                    };
                    Ok(beside::settle(Path::new(folder), &recovery)?.then_some(Evidence::Restored(restored)))
                })
                .await
            }
            Step::PutFiles { choice } => {
                let ((repository, snapshot), choice) = (self.snapshot(&choice.point).await?, choice.clone());
                let recovery = recovery.to_owned();
                let settled = blocking(move || put::settle((&repository, &snapshot), &choice, &recovery)).await?;
                Ok(settled.map(Evidence::PutFiles))
            }
            Step::UndoFiles { placed, .. } => {
                let placed = placed.clone();
                Ok(blocking(move || put::settle_undo(&placed)).await?.map(Evidence::UndoneFiles))
            }
            _ => Ok(None),
        }
    }
}

/// One of two contents that are compared.
struct Content {
    /// In words.
    name: String,
    /// `None`: it is the one here.
    node: Option<Node>,
    size: u64,
}

impl Content {
    fn of(repository: &Repository, side: &Side, path: &str) -> Result<Self> {
        match side {
            Side::Point(point) => {
                let snapshot = repository.find(point)?;
                let node = repository.node(&snapshot, path)?;
                let name =
                    format!("{} of {}", snapshot.short(), snapshot.instant.to_utc().format("%Y-%m-%d %H:%M UTC"));
                Ok(Self { name, size: node.size, node: Some(node) })
            }
            Side::Here => {
                let present = Present::at(Path::new(path))?.filter(|present| present.kind == EntryKind::File);
                let present = present.ok_or_else(|| {
                    Error::operator(format!("{path} is no file on this machine")).hint("Compare two snapshots instead.")
                })?;
                Ok(Self { name: "this machine now".into(), node: None, size: present.size })
            }
        }
    }

    /// The first bytes of it, as far as contents are compared by lines.
    fn read(&self, repository: &Repository, path: &str) -> Result<Vec<u8>> {
        use std::io::Read as _;
        let Some(node) = &self.node else {
            let mut bytes = Vec::new();
            let file = live::open(Path::new(path));
            let read = file.and_then(|file| file.take(COMPARED).read_to_end(&mut bytes));
            return read.map(|_| bytes).map_err(|error| {
                Error::operator(format!("cannot read {path}")).detail(error).hint("Check that you may read it.")
            });
        };
        look::whole(repository, node, path, COMPARED)
    }
}

fn this_host() -> String {
    crate::recovery::journal::operator().host
}

/// A folder that is not there, in the home of whoever runs this.
fn free_folder(point: &str) -> String {
    let home = std::env::var_os("HOME").map_or_else(std::env::temp_dir, std::path::PathBuf::from);
    let named = |number: u32| {
        let more = if number == 1 { String::new() } else { format!("-{number}") };
        home.join(format!("restored-{point}{more}"))
    };
    let free = (1..1000).map(named).find(|folder| folder.symlink_metadata().is_err());
    free.unwrap_or_else(|| named(1000)).display().to_string()
}
