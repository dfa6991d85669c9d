//! A walk through whole snapshots: every folder once, breadth first, read by a few threads at a time.

use super::index::BlobKind;
use super::storage::{Failure, Why};
use super::tree::{self, MAX_DEPTH, Node};
use super::{BlobId, Repository, at_once, sentence};
use crate::error::Result;
use crate::progress::Progress;

/// Folders that are read before any of them is handed on: enough to keep the threads busy, few enough to be small.
const BATCH: usize = 1024;
/// Bytes of folder blobs that are read before any of them is handed on, unless a single one is larger.
const BATCH_BYTES: u64 = 16 << 20;
/// Folders that one walk visits. A folder of which each level holds the next one twice is small in the repository, and has
/// more paths than there are atoms.
const MAX_FOLDERS: usize = 4_000_000;
/// Entries that one walk hands on, for the same reason.
const MAX_ENTRIES: usize = 50_000_000;

/// What a walk hands on.
pub enum Visit {
    /// What is in the folder.
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
            let mut rest = level.as_slice();
            while !rest.is_empty() {
                progress.check()?;
                let (batch, behind) = rest.split_at(self.batch(rest)?);
                rest = behind;
                if entries > MAX_ENTRIES {
                    for (_, number) in batch {
                        visit(*number, Visit::TooMany, &mut next)?;
                    }
                    continue;
                }
                if depth >= MAX_DEPTH {
                    for (_, number) in batch {
                        visit(*number, Visit::TooDeep, &mut next)?;
                    }
                    continue;
                }
                let read = at_once(self.parallel(), batch, |(id, _)| self.read_tree(id));
                for ((_, number), nodes) in batch.iter().zip(read) {
                    let visited = match nodes {
                        Ok(nodes) => Visit::Nodes(nodes),
                        Err(Failure { why: Why::Damaged | Why::Missing, error }) => Visit::Damaged(sentence(&error)),
                        Err(failure) => return Err(failure.into()),
                    };
                    entries += if let Visit::Nodes(nodes) = &visited { nodes.len() } else { 0 };
                    visit(*number, visited, &mut next)?;
                    if next.len() > MAX_FOLDERS - folders {
                        next.truncate(MAX_FOLDERS - folders);
                        visit(*number, Visit::TooMany, &mut Vec::new())?;
                    }
                }
            }
            folders += next.len();
            (level, depth) = (next, depth + 1);
        }
        Ok(())
    }

    /// How many of the folders are read at once: at least one.
    fn batch<T>(&self, level: &[(BlobId, T)]) -> Result<usize> {
        let mut bytes = 0;
        for (number, (id, _)) in level.iter().take(BATCH).enumerate() {
            bytes += u64::from(self.tree_length(id)?);
            if bytes > BATCH_BYTES {
                return Ok(number.max(1));
            }
        }
        Ok(level.len().min(BATCH))
    }

    /// A folder, past the ones that are kept: a walk reads each once.
    fn read_tree(&self, id: &BlobId) -> Result<Vec<Node>, Failure> {
        let json = self.fetch(BlobKind::Tree, id)?;
        tree::parse(&json).map_err(|error| self.damaged(&format!("folder {id}"), error))
    }
}
