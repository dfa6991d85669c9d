//! A walk through whole snapshots: every folder once, breadth first, read by a few threads at a time.

use super::index::BlobKind;
use super::storage::{Failure, Why};
use super::tree::{self, MAX_DEPTH, Node};
use super::{BlobId, Repository, at_once};
use crate::error::Result;
use crate::progress::Progress;

/// Folders that are read before any of them is handed on: enough to keep the threads busy, few enough to be small.
const BATCH: usize = 1024;

/// What a walk hands on.
pub enum Visit {
    /// What is in the folder.
    Nodes(Vec<Node>),
    /// It cannot be read, and why: a sentence. The walk goes on.
    Damaged(String),
    /// It lies deeper than any path that an operating system can open.
    TooDeep,
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
        while !level.is_empty() {
            let mut next = Vec::new();
            for batch in level.chunks(BATCH) {
                progress.check()?;
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
                        Err(Failure { why: Why::Damaged | Why::Missing, error }) => Visit::Damaged(error.to_string()),
                        Err(failure) => return Err(failure.into()),
                    };
                    visit(*number, visited, &mut next)?;
                }
            }
            (level, depth) = (next, depth + 1);
        }
        Ok(())
    }

    /// A folder, past the ones that are kept: a walk reads each once.
    fn read_tree(&self, id: &BlobId) -> Result<Vec<Node>, Failure> {
        let json = self.fetch(BlobKind::Tree, id)?;
        tree::parse(&json).map_err(|error| self.damaged(&format!("folder {id}"), error))
    }
}
