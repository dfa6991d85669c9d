//! The only door to anything outside: everything a recovery looks at or changes goes through here.

mod live;

use std::future::Future;

use serde::{Deserialize, Serialize};

use super::plan::Step;
use super::record::{Finding, Look};
use crate::error::Result;
use crate::postgres::diff::{Filter, Page};
use crate::postgres::merge::{Applied, Proof};
use crate::progress::Progress;

pub use live::Live;

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
}

/// The project's one trait, since tests need a scripted second implementation. Drills use the real one.
pub trait Systems: Send + Sync + 'static {
    /// Reads, or writes only in scratch space named after the recovery.
    fn look(&self, recovery: &str, look: &Look, progress: &Progress) -> impl Future<Output = Result<Finding>> + Send;

    /// Does one step of a confirmed plan. `journal` is the journal's head: production keeps it with what was changed, so that
    /// a journal that is cut or rewritten later shows.
    fn execute(
        &self,
        recovery: &str,
        step: &Step,
        journal: &str,
        progress: &Progress,
    ) -> impl Future<Output = Result<Evidence>> + Send;

    /// Takes over from a process of the same recovery that has ended: finds the scratch space it left, and what became of
    /// the step that it may have been in the middle of. `None`: the step was not committed, and will not be any more.
    fn take_over(&self, recovery: &str, open: Option<&Step>) -> impl Future<Output = Result<Option<Evidence>>> + Send;

    /// Some rows of the present diff's `table`-th table, after row number `after`.
    fn page(&self, table: usize, filter: &Filter, after: i64, limit: u32) -> impl Future<Output = Result<Page>> + Send;

    /// How many rows of that diff match.
    fn matches(&self, table: usize, filter: &Filter) -> impl Future<Output = Result<u64>> + Send;
}
