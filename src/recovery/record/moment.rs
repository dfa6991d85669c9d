//! What is known of a moment in time: as it was asked for, what leads to it, and the cluster that stands at it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::postgres::cluster::{Commit, Proof, Reachable, Stop, Target};
use crate::postgres::database::Asked;
use crate::postgres::waldump::Suspect;

/// A moment, as the operator gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aim {
    /// In PostgreSQL's terms.
    pub target: Target,
    /// Just before it, instead of with it.
    pub before: bool,
    /// Of several pasts the one that is meant.
    pub timeline: Option<u32>,
}

/// What a cluster as of a moment is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// Tables are brought back out of it.
    Tables,
    /// Its database takes production's place.
    Whole,
    /// It stays, to be looked into or to be switched to.
    Keep,
}

/// What base backups and WAL lead to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moments {
    /// The newest base backup first.
    pub windows: Vec<Reachable>,
    /// Transactions that deleted, updated or dropped something, in the order of the WAL.
    pub suspects: Vec<Suspect>,
    /// Between which instants they were looked for; `None`: nothing can be reached.
    pub searched: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// Base backups that cannot be used and why; lowercase fragments.
    pub notes: Vec<String>,
}

/// A moment that can be reached, and what it takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// Where the base backup is.
    pub base: String,
    /// When the base backup began, in the server's words.
    pub started: String,
    /// On which replay ends.
    pub timeline: u32,
    /// Where it ends.
    pub stop: Stop,
    /// When the last transaction before it ended.
    pub before: Option<DateTime<Utc>>,
    /// When the first one after it ended.
    pub after: Option<DateTime<Utc>>,
    /// The last transaction in it, without which it would be the moment before; `None`: there is none, or not known.
    #[serde(default)]
    pub earlier: Option<Commit>,
    /// The first one that it leaves out, with which it would be the moment after; `None`: there is none, or not known.
    #[serde(default)]
    pub later: Option<Commit>,
    /// Of the base backup, as it is stored.
    pub bytes: u64,
    /// Segments of WAL to replay, at most.
    pub segments: u64,
    /// The folder that is made for it.
    pub folder: String,
    /// In bytes, where the folder will be; `None`: not known.
    pub free: Option<u64>,
    /// False: production is another cluster than the one that was backed up.
    pub same_system: bool,
}

/// A cluster that stands at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cloned {
    /// Where it is.
    pub folder: String,
    /// Where it stands, in words.
    pub stop: String,
    /// The server's own words and where it stands.
    pub proof: Proof,
    /// Dangerous settings of production that it does not have.
    pub set_aside: Vec<String>,
    /// For psql, without the database.
    pub conninfo: String,
    /// The database that production has; `None`: the clone has none of that name.
    pub database: Option<String>,
    /// Tables in it.
    pub tables: u64,
    /// What the queries of the configuration gave there.
    #[serde(default)]
    pub asked: Vec<Asked>,
}

/// The id of the one recovery point that a clone is.
pub const CLONE: &str = "clone";
