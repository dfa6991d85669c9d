//! A walk through whole snapshots: every folder once, breadth first. The next folders are read by a few threads while the
//! caller is busy with those before them.

use super::blobs::WIDE;
use super::index::BlobKind;
use super::storage::{Failure, Why};
use super::tree::{MAX_DEPTH, Node};
use super::{BlobId, Repository, sentence};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// Folders that are read before any of them is handed on: enough to keep the threads busy, few enough to be small.
const BATCH: usize = 2048;
/// Bytes of their JSON.
const BATCH_BYTES: u64 = 16 << 20;

/// Folders that one walk visits. A folder of which each level holds the next one twice is small in the repository, and has
/// more paths than there are atoms.
const MAX_FOLDERS: usize = 4_000_000;
/// Entries that one walk hands on, for the same reason.
const MAX_ENTRIES: usize = 50_000_000;

/// Of a very wide folder so many entries are handed on at a time.
const PART: usize = 8192;

/// A folder that was read, or is to be read when its turn comes.
enum Tree {
    Read(Vec<Node>),
    Wide,
}

/// What a walk hands on.
pub enum Visit {
    /// What is in the folder; of a very wide one a part, and the others follow.
    Nodes(Vec<Node>),
    /// It cannot be read, and why: a sentence. The walk goes on.
    Damaged(String),
    /// It lies deeper than any path that an operating system can open.
    TooDeep,
    /// The walk has handed on more than any real snapshot holds; this folder, or some beneath it, are left out.
    TooMany,
}

impl Repository {
    /// Visits the `roots` and whatever `visit` adds to its list. The number beside a folder's id is the caller's own.
    pub fn walk<T: Copy + Sync>(
        &self,
        roots: Vec<(BlobId, T)>,
        progress: &Progress,
        mut visit: impl FnMut(T, Visit, &mut Vec<(BlobId, T)>) -> Result<()>,
    ) -> Result<()> {
        let (mut level, mut depth) = (roots, 0);
        let (mut folders, mut entries) = (0, 0);
        while !level.is_empty() {
            let mut next = Vec::new();
            if depth >= MAX_DEPTH {
                for (_, number) in level {
                    visit(number, Visit::TooDeep, &mut next)?;
                }
                return Ok(());
            }
            let batches = self.batches(&level)?;
            let mut batches = batches.iter();
            let mut read = batches.next().map(|batch| (batch, self.read_trees(batch)));
            while let Some((batch, trees)) = read {
                progress.check()?;
                read = std::thread::scope(|scope| {
                    let ahead = batches.next().map(|batch| (batch, scope.spawn(|| self.read_trees(batch))));
                    for ((id, number, _), tree) in batch.iter().zip(trees?) {
                        if entries > MAX_ENTRIES {
                            visit(*number, Visit::TooMany, &mut next)?;
                            continue;
                        }
                        let mut visit = |visited| {
                            entries += if let Visit::Nodes(nodes) = &visited { nodes.len() } else { 0 };
                            visit(*number, visited, &mut next)?;
                            if next.len() > MAX_FOLDERS - folders {
                                next.truncate(MAX_FOLDERS - folders);
                                visit(*number, Visit::TooMany, &mut Vec::new())?;
                            }
                            Ok(())
                        };
                        let damaged = match tree {
                            Ok(Tree::Read(nodes)) => visit(Visit::Nodes(nodes)).map(|()| None),
                            Ok(Tree::Wide) => self.visit_wide(id, progress, &mut visit),
                            Err(failure) => spared(failure),
                        }?;
                        if let Some(why) = damaged {
                            visit(Visit::Damaged(why))?;
                        }
                    }
                    Ok::<_, Error>(ahead.map(|(batch, trees)| match trees.join() {
                        Ok(trees) => (batch, trees),
                        Err(panic) => std::panic::resume_unwind(panic),
                    }))
                })?;
            }
            folders += next.len();
            (level, depth) = (next, depth + 1);
        }
        Ok(())
    }

    /// Cuts a level into batches; beside each folder is the length of its JSON.
    fn batches<T: Copy>(&self, level: &[(BlobId, T)]) -> Result<Vec<Vec<(BlobId, T, u32)>>> {
        let (mut batches, mut bytes) = (vec![Vec::new()], 0_u64);
        for (id, number) in level {
            let length = self.tree_length(id)?;
            let held = if length > WIDE { 0 } else { u64::from(length) };
            let full = |batch: &Vec<_>| batch.len() >= BATCH || bytes + held > BATCH_BYTES;
            if batches.last().is_some_and(full) {
                batches.push(Vec::new());
                bytes = 0;
            }
            bytes += held;
            batches.last_mut().into_iter().for_each(|batch| batch.push((*id, *number, length)));
        }
        Ok(batches)
    }

    /// Folders, past the ones that are kept: a walk reads each once.
    fn read_trees<T>(&self, batch: &[(BlobId, T, u32)]) -> Result<Vec<Result<Tree, Failure>>, Failure> {
        let narrow: Vec<BlobId> = batch.iter().filter(|(.., length)| *length <= WIDE).map(|(id, ..)| *id).collect();
        let read = self.fetch_each(BlobKind::Tree, &narrow, |number, json| self.parse_tree(&narrow[number], &json?))?;
        let mut read = read.into_iter();
        let trees = batch.iter().map(|(.., length)| {
            if *length > WIDE { Some(Ok(Tree::Wide)) } else { read.next().map(|nodes| nodes.map(Tree::Read)) }
        });
        Ok(trees.flatten().collect())
    }

    /// Hands on a very wide folder in parts. Returns why it could not be read, if it could not.
    fn visit_wide(
        &self,
        id: &BlobId,
        progress: &Progress,
        visit: &mut impl FnMut(Visit) -> Result<()>,
    ) -> Result<Option<String>> {
        let mut part = Vec::with_capacity(PART);
        let streamed = self.stream_tree(id, |node| {
            part.push(node);
            if part.len() < PART {
                return Ok(());
            }
            progress.check()?;
            visit(Visit::Nodes(std::mem::replace(&mut part, Vec::with_capacity(PART))))
        });
        match streamed {
            Err(failure) => spared(failure),
            Ok(()) => visit(Visit::Nodes(part)).map(|()| None),
        }
    }
}

/// Damage of one folder does not end a walk; what keeps everything from being read does.
fn spared(failure: Failure) -> Result<Option<String>> {
    match failure.why {
        Why::Damaged | Why::Missing => Ok(Some(sentence(&failure.error))),
        Why::Other => Err(failure.into()),
    }
}
