//! Files: the snapshot on one side, this machine's file systems on the other. Everything here blocks, on threads that may.

use std::path::Path;
use std::sync::Arc;

use super::{Evidence, Step, Systems, blocking};
use crate::backup::{Repository, Snapshot};
use crate::error::Result;
use crate::files::beside;
use crate::files::catalog::{Catalog, Hits, Query, Search};
use crate::files::choice::{self, Choice, Destination, Policy};
use crate::files::history::{self, Changes, Versions};
use crate::files::live::{self, Beside};
use crate::files::look::{self, Inside};
use crate::files::put::{self, Placed};
use crate::files::write::Own;
use crate::progress::Progress;
use crate::recovery::record::Gathered;

/// Best matches that a search gives.
const HITS: usize = 500;

/// The whole tree of one snapshot, and the search that goes on in it.
#[derive(Default)]
pub(super) struct Listing {
    point: String,
    catalog: Option<Arc<Catalog>>,
    search: Search,
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

    /// What is in a folder of a snapshot, beside the folder of the same path here when the snapshot is of this machine.
    pub async fn folder(&self, point: &str, path: &str) -> Result<Vec<Beside>> {
        let ((repository, snapshot), path) = (self.snapshot(point).await?, path.to_owned());
        blocking(move || {
            let node = repository.node(&snapshot, &path)?;
            let nodes = node.subtree.map(|id| repository.nodes(&id)).transpose()?.unwrap_or_default();
            let here = choice::here(&repository, &snapshot, &path)?;
            Ok(live::beside(&nodes, here.as_deref().unwrap_or(Path::new("/dev/null"))))
        })
        .await
    }

    /// The whole tree of a snapshot; read once.
    pub async fn catalog(&self, point: &str, progress: &Progress) -> Result<Arc<Catalog>> {
        let mut listing = self.listing.lock().await;
        if let (true, Some(catalog)) = (listing.point == point, &listing.catalog) {
            return Ok(catalog.clone());
        }
        let ((repository, snapshot), progress) = (self.snapshot(point).await?, progress.clone());
        let catalog = blocking(move || Catalog::read(&repository, &snapshot, &progress)).await?;
        let catalog = Arc::new(catalog);
        *listing = Listing { point: point.into(), catalog: Some(catalog.clone()), search: Search::default() };
        Ok(catalog)
    }

    /// The best matches of what somebody types.
    pub async fn search(&self, point: &str, typed: &str, progress: &Progress) -> Result<Hits> {
        let query = Query::parse(typed)?;
        let catalog = self.catalog(point, progress).await?;
        let mut search = std::mem::take(&mut self.listing.lock().await.search);
        let (hits, search) = blocking(move || {
            let hits = search.go(&catalog, &query, HITS);
            Ok((hits, search))
        })
        .await?;
        self.listing.lock().await.search = search;
        Ok(hits)
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

    /// What changed between two snapshots; at most `limit` files are named.
    pub async fn changes(&self, before: &str, after: &str, limit: usize, progress: &Progress) -> Result<Changes> {
        let ((repository, before), (_, after)) = (self.snapshot(before).await?, self.snapshot(after).await?);
        let progress = progress.clone();
        blocking(move || history::changes(&repository, (&before, &after), limit, &progress)).await
    }

    /// A part of a file, and what it is.
    pub async fn look_into_file(&self, point: &str, path: &str, offset: u64, most: usize) -> Result<Inside> {
        let ((repository, snapshot), path) = (self.snapshot(point).await?, path.to_owned());
        blocking(move || {
            let node = repository.node(&snapshot, &path)?;
            look::into(&repository, &node, &path, offset, most)
        })
        .await
    }

    /// The whole of a file of a snapshot, to be read.
    pub async fn file(&self, point: &str, path: &str) -> Result<crate::backup::File> {
        let ((repository, snapshot), path) = (self.snapshot(point).await?, path.to_owned());
        blocking(move || repository.open_file(&snapshot, &path)).await
    }

    /// The best matches over all snapshots, each with the newest that holds it.
    pub async fn search_all(&self, query: &Query, limit: usize, progress: &Progress) -> Result<(Hits, Vec<String>)> {
        let points = self.points().await?;
        let (repository, query, progress) = (self.repository().await?, query.clone(), progress.clone());
        blocking(move || {
            let snapshots = points.iter().map(|point| repository.find(&point.id)).collect::<Result<Vec<_>>>()?;
            let (catalog, holders) = Catalog::read_all(&repository, &snapshots, &progress)?;
            let found = catalog.search_numbered(&query, limit);
            let points =
                found.1.iter().map(|number| snapshots[holders[*number as usize] as usize].id.clone()).collect();
            Ok((found.0, points))
        })
        .await
    }

    /// The whole content of a file of at most `most` bytes.
    pub async fn whole_file(&self, point: &str, path: &str, most: u64) -> Result<Vec<u8>> {
        let ((repository, snapshot), path) = (self.snapshot(point).await?, path.to_owned());
        blocking(move || {
            let node = repository.node(&snapshot, &path)?;
            look::whole(&repository, &node, &path, most)
        })
        .await
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
                return Err(crate::error::Error::bug("files that go in place were to go beside"));
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
