//! What is known in a recovery: the operator's answers, in order, and what was found by looking.
//!
//! Answers are facts, one of each kind. Going back drops the last answer and everything after it, so a stale one cannot
//! exist. Findings are kept by the exact look that produced them, so an answer given again finds its finding again.

mod moment;

use std::time::Duration;

use chrono::{DateTime, FixedOffset, Utc};
use serde::{Deserialize, Serialize};

use crate::files::beside::Measure;
use crate::files::choice::{self as files, Destination, Policy};
use crate::files::put::Placed;
use crate::files::write::Own;
use crate::postgres::archive;
use crate::postgres::database::{Checked, Exchange, Needs, Restored, Standing};
use crate::postgres::diff::{Pair, TableDiff};
use crate::postgres::merge::{ChangeSet, Choice, Recreation, Triggers, Undo};
use crate::postgres::name::Name;
use crate::postgres::schema::Live;
use crate::postgres::stage::Leftover;
pub use moment::{Aim, CLONE, Cloned, Moments, Reached, Use};

/// Something the operator decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fact", content = "value", rename_all = "snake_case")]
pub enum Fact {
    /// When it went wrong, as far as the operator knows.
    Incident(Incident),
    /// The id of the chosen recovery point.
    Point(String),
    /// What is to come back.
    Scope(Scope),
    /// The path of the chosen dump inside the recovery point.
    Dump(String),
    /// The tables that are damaged, in the operator's order; each is in the dump.
    Tables(Vec<Name>),
    /// How rows of a table without a key are paired.
    Keys(Vec<NamedKey>),
    /// Loading the rows beside production was agreed to.
    Stage,
    /// Which rows are to be written.
    Rows(Vec<Choice>),
    /// What the tables' own triggers do while rows are written.
    Triggers(Triggers),
    /// The files and folders that come back, by their paths in the recovery point.
    Files(Vec<String>),
    /// Where files go.
    Where(Where),
    /// The whole path of the new folder that files go into.
    Folder(String),
    /// Which of the files that are still there are replaced.
    Policy(Policy),
    /// Whose the files will be.
    Own(Own),
    /// What the plan names and is left where it is: paths of files and folders.
    Except(Vec<String>),
    /// Restoring a whole dump beside production was agreed to.
    Restore,
    /// What becomes of the restored database.
    Promotion(Promotion),
    /// Whether production is backed up before another database takes its place.
    Safety(bool),
    /// What was written to production since the restore began may stay behind.
    LeaveWrites,
    /// The moment that is to come back.
    Aim(Aim),
    /// Laying out a second cluster beside production was agreed to, in this folder.
    LayOut(String),
    /// What the cluster as of the moment is for.
    Use(Use),
}

impl Fact {
    /// Whether it is of the same kind: of those there is only one among the answers.
    pub fn is_alike(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// What becomes of a restored database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Promotion {
    /// It takes production's place.
    Exchange,
    /// It stays beside production.
    Keep,
}

/// Where files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Where {
    /// Into a new folder.
    Beside,
    /// Where they were.
    InPlace,
}

/// What the operator knows of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Incident {
    /// When it went wrong; a point of that very moment still counts as one before it.
    At(DateTime<Utc>),
    /// Nobody knows; recovery points are not ranked then.
    Unknown,
}

/// What is to come back: the four branches of the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The whole database.
    System,
    /// Rows of some tables.
    Tables,
    /// Files of the recovery point.
    Files,
    /// Everything as it was at a time between two recovery points, by WAL.
    Moment,
}

/// The key of one table, where production has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedKey {
    /// A table without a primary key and a unique index.
    pub table: Name,
    /// Empty: compare as a multiset, merge nothing.
    pub columns: Vec<String>,
}

/// Something to look at outside. A look reads, or writes only in scratch space named after the recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "look", content = "of", rename_all = "snake_case")]
pub enum Look {
    /// All recovery points of the system.
    Points,
    /// What lies inside one recovery point.
    Contents {
        /// Its full id.
        point: String,
    },
    /// The tables of one dump beside the live ones.
    Tables {
        /// Its full id.
        point: String,
        /// The dump's path in the point; empty for a dump on disk.
        dump: String,
    },
    /// Stage the tables and compare them with production.
    Diff {
        /// Its full id.
        point: String,
        /// The dump's path in the point; empty for a dump on disk.
        dump: String,
        /// In the operator's order; a table's place is its number in scratch space.
        tables: Vec<Name>,
        /// For tables that have no key of their own; empty when all have one.
        keys: Vec<NamedKey>,
    },
    /// Freeze the chosen rows and find everything that writing them would meet.
    Freeze {
        /// At most one choice a table.
        rows: Vec<Choice>,
        /// For all tables alike.
        triggers: Triggers,
    },
    /// What an earlier recovery wrote and can still be taken back.
    Undo {
        /// Its id.
        recovery: String,
    },
    /// The schemas that recoveries have left in production.
    Leftovers,
    /// How much files are, and what this machine makes of them.
    Gather {
        /// Its full id.
        point: String,
        /// As they were marked.
        paths: Vec<String>,
    },
    /// What bringing files back would meet, item by item.
    Choose {
        /// Its full id.
        point: String,
        /// As they were marked.
        paths: Vec<String>,
        /// Where they go.
        destination: Destination,
        /// Which of those that are there are replaced.
        policy: Policy,
        /// Whose they will be.
        own: Own,
        /// Left out, by paths.
        #[serde(default)]
        except: Vec<String>,
    },
    /// What a dump needs to be restored whole, and what the server has; every row of it is decoded.
    Needs {
        /// Its full id.
        point: String,
        /// The dump's path in the point; empty for a dump on disk.
        dump: String,
    },
    /// Restore the whole dump into a database of our own, and check it.
    RestoreDatabase {
        /// Its full id.
        point: String,
        /// The dump's path in the point; empty for a dump on disk.
        dump: String,
    },
    /// What can be reached from base backups and WAL, and which transactions may have done it.
    Moments {
        /// Around which transactions are looked for; `None`: the last day that can be reached.
        incident: Option<DateTime<Utc>>,
    },
    /// Where replay has to stop, and from which base backup it begins.
    Reach {
        /// As it was given.
        aim: Aim,
    },
    /// A second cluster beside production, as of a moment.
    LayOut {
        /// Where it was found.
        reached: Box<Reached>,
    },
    /// How tables that production has no more are made again.
    Recreate {
        /// The clone's database.
        dump: String,
        /// In the operator's order.
        tables: Vec<Name>,
    },
    /// How production stands, just before the restored database takes its place.
    Standing {
        /// As it was restored.
        restored: Box<Restored>,
    },
    /// Whether the database that gave way can come back.
    WayBack {
        /// The exchange of an earlier recovery.
        exchange: Box<Exchange>,
    },
    /// Which of the files that an earlier recovery put in place can be taken back.
    Placed {
        /// Its id.
        recovery: String,
        /// As its journal has them.
        placed: Vec<Placed>,
    },
}

impl Look {
    /// Whether it looks into the cluster as of a moment, or at what came out of it.
    fn is_of_clone(&self) -> bool {
        match self {
            Self::Tables { point, .. }
            | Self::Diff { point, .. }
            | Self::Needs { point, .. }
            | Self::RestoreDatabase { point, .. } => point == CLONE,
            Self::LayOut { .. } | Self::Recreate { .. } | Self::Freeze { .. } | Self::Standing { .. } => true,
            Self::Points
            | Self::Contents { .. }
            | Self::Undo { .. }
            | Self::Leftovers
            | Self::Gather { .. }
            | Self::Choose { .. }
            | Self::Moments { .. }
            | Self::Reach { .. }
            | Self::WayBack { .. }
            | Self::Placed { .. } => false,
        }
    }
}

/// What a look found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Finding {
    /// Those of the configured host and tags, newest first; a dump on disk is the only one.
    Points(Vec<Point>),
    /// Of one point.
    Contents(Contents),
    /// Of one dump.
    Tables(Tables),
    /// One for each table, in the look's order.
    Diff(Vec<TableDiff>),
    /// Production was only read.
    Frozen(ChangeSet),
    /// Of one earlier recovery.
    Undo(Undo),
    /// All of the database, also those that are in use.
    Leftovers(Vec<Leftover>),
    /// Nothing was written.
    Gathered(Gathered),
    /// Nothing was written.
    Chosen(files::Choice),
    /// Those that nobody has changed since, and why the others stay, by path.
    Placed(Vec<Placed>, Vec<(String, String)>),
    /// Nothing was made.
    Needs(Needs),
    /// Beside production, and whole.
    RestoredDatabase(Box<Restored>, Checked),
    /// Nothing was made.
    Moments(Moments),
    /// Where, or why it cannot be reached and what can.
    Reached(Result<Box<Reached>, (String, Vec<String>)>),
    /// It stands at the moment.
    Cloned(Box<Cloned>),
    /// Production was only read.
    Recreate(Recreation),
    /// Production was only read.
    Standing(Standing),
    /// Why it cannot, or how many sessions would be ended.
    WayBack(Result<u64, String>),
}

/// What was marked, and what this machine makes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gathered {
    /// How much it is.
    pub measure: Measure,
    /// Owners who are somebody else here, or nobody.
    pub strangers: Vec<files::Stranger>,
    /// This machine.
    pub host: String,
    /// A folder that is not there, to bring files back into.
    pub folder: String,
    /// Whether this user may give files to others.
    pub privileged: bool,
}

/// The id of the one recovery point that a dump on disk is.
pub const DISK: &str = "on disk";

/// A moment that can be brought back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The snapshot's full id.
    pub id: String,
    /// Which repository it is in, without secrets.
    pub repository: String,
    /// When the backup was made, in the zone of the machine that made it; of a dump on disk, its modification time.
    pub instant: DateTime<FixedOffset>,
    /// The machine that was backed up, as restic recorded it; for a dump on disk, this one.
    pub host: String,
    /// What was backed up, in full.
    pub paths: Vec<String>,
    /// As restic has them; empty for a dump on disk.
    pub tags: Vec<String>,
}

impl Point {
    /// The first eight characters of the id, as restic shows it.
    pub fn short(&self) -> &str {
        self.id.get(..8).unwrap_or(&self.id)
    }
}

/// What lies inside a recovery point, found by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// In the walk's order; damaged ones too.
    pub dumps: Vec<Dump>,
    /// Other files, and whether all were counted or only the first ones.
    pub files: u64,
    /// Size of those files as they were when they were backed up.
    pub bytes: u64,
    /// False when the walk ended at its limit, or when a folder could not be read.
    pub complete: bool,
}

/// A database dump, known by its first bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// From the root of the snapshot; of a folder, the folder itself. Empty for a dump on disk.
    pub path: String,
    /// Of the file; where the dump is a folder, it says nothing of the rows.
    pub size_bytes: u64,
    /// [`archive::Header::unknown`] when it could not be read.
    pub header: archive::Header,
    /// Tables with data in it; `None` when it could not be read, with the reason in `damage`.
    pub tables: Option<u64>,
    /// The error's message, without its hints.
    pub damage: Option<String>,
}

/// The tables of a dump, beside production.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tables {
    /// The one that the tables were compared with.
    pub server: ServerFacts,
    /// All of the dump's, in its order; tables that only production has are not here.
    pub tables: Vec<TableState>,
}

/// Which server this is, by its own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// `host:port`; for a socket its folder and the port.
    pub shown: String,
    /// By the server's own word.
    pub database: String,
    /// As [`crate::postgres::connect::Facts::version`].
    pub version: String,
    /// Empty where our role may not ask.
    pub system_identifier: String,
    /// Why nothing can be written there: a standby, a read-only database, no right to create a schema.
    pub refusal: Option<String>,
    /// Lowercase fragments: of the connection, and of staging schemas that others left.
    pub warnings: Vec<String>,
}

/// A table of the dump, and what production has in its place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableState {
    /// As the dump defines it.
    pub backup: archive::Table,
    /// Rows in the backup, estimated from its first bytes, or counted when those were all.
    pub backup_rows: Option<archive::Estimate>,
    /// `None`: the table was dropped from production.
    pub live: Option<Live>,
    /// Empty when there is no live table.
    pub pairs: Vec<Pair>,
}

impl TableState {
    /// By columns and types alone; what else differs shows when rows are compared.
    pub fn state(&self) -> State {
        use crate::postgres::diff::Drift;
        match &self.live {
            None => State::Dropped,
            Some(_) if self.pairs.iter().all(|pair| matches!(pair.drift, Drift::Same | Drift::Generated)) => {
                State::Unchanged
            }
            Some(_) => State::Drifted,
        }
    }
}

/// How the live table's definition stands to the backup's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The same columns with the same types.
    Unchanged,
    /// Columns came, went or have another type; rows can still be compared.
    Drifted,
    /// Not in production, or no database is configured to look into.
    Dropped,
}

/// Answers in order, and findings.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Record {
    /// The longest data-loss window that the system's owner tolerates.
    pub rpo: Option<Duration>,
    /// Base backups and a WAL archive are configured.
    #[serde(default)]
    pub wal: bool,
    answers: Vec<Fact>,
    findings: Vec<(Look, Finding)>,
}

impl Record {
    /// As they were given, oldest first.
    pub fn answers(&self) -> &[Fact] {
        &self.answers
    }

    /// Adds an answer; one of its kind must not be there yet.
    pub fn answer(&mut self, fact: Fact) {
        debug_assert!(!self.answers.iter().any(|given| given.is_alike(&fact)), "one fact of a kind");
        self.answers.push(fact);
    }

    /// How many answers have to be taken back before this one can be given: those from the one of its kind on.
    pub fn in_the_way(&self, fact: &Fact) -> usize {
        let given = self.answers.iter().position(|given| given.is_alike(fact));
        given.map_or(0, |given| self.answers.len() - given)
    }

    /// How many answers have to be taken back before a moment in time can be chosen; `None`: there are no base backups for that.
    pub fn back_to_moments(&self) -> Option<usize> {
        self.wal.then(|| self.in_the_way(&Fact::Scope(Scope::Moment)))
    }

    /// Drops the last answer. Returns whether there was one.
    pub fn back(&mut self) -> bool {
        let dropped = self.answers.pop();
        // One cluster stands at a time: what was seen in it does not hold for one that is laid out at another moment.
        if let Some(Fact::LayOut(_)) = dropped {
            self.findings.retain(|(made, _)| !made.is_of_clone());
        }
        dropped.is_some()
    }

    /// Keeps a finding, in the place of one by the same look.
    pub fn found(&mut self, look: Look, finding: Finding) {
        self.forget(&look);
        self.findings.push((look, finding));
    }

    /// What exactly this look found; `None`: not looked yet, or forgotten.
    pub fn finding(&self, look: &Look) -> Option<&Finding> {
        self.findings.iter().find(|(made, _)| made == look).map(|(_, finding)| finding)
    }

    /// Everything found, in order.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().map(|(_, finding)| finding)
    }

    /// Drops a finding, so that it is looked up again.
    pub fn forget(&mut self, look: &Look) {
        self.findings.retain(|(made, _)| made != look);
    }

    /// Drops what was staged, compared and frozen, and how production stood. A database that was restored whole is as it was.
    pub fn forget_diffs(&mut self) {
        let staged = |look: &Look| {
            matches!(look, Look::Diff { .. } | Look::Freeze { .. } | Look::Choose { .. } | Look::Standing { .. })
        };
        self.findings.retain(|(made, _)| !staged(made));
    }

    /// `None`: not answered; that nobody knows is an answer.
    pub fn incident(&self) -> Option<Incident> {
        self.answers.iter().find_map(|fact| if let Fact::Incident(incident) = fact { Some(*incident) } else { None })
    }

    /// The chosen point's full id; `None`: not answered.
    pub fn point(&self) -> Option<&str> {
        self.answers.iter().find_map(|fact| if let Fact::Point(point) = fact { Some(point.as_str()) } else { None })
    }

    /// `None`: not answered.
    pub fn scope(&self) -> Option<Scope> {
        self.answers.iter().find_map(|fact| if let Fact::Scope(scope) = fact { Some(*scope) } else { None })
    }

    /// `None`: not answered, as when the point holds only one dump.
    pub fn dump(&self) -> Option<&str> {
        self.answers.iter().find_map(|fact| if let Fact::Dump(dump) = fact { Some(dump.as_str()) } else { None })
    }

    /// `None`: not answered.
    pub fn tables(&self) -> Option<&[Name]> {
        self.answers.iter().find_map(|fact| if let Fact::Tables(tables) = fact { Some(&**tables) } else { None })
    }

    /// `None`: not answered, as when every table has a key.
    pub fn keys(&self) -> Option<&[NamedKey]> {
        self.answers.iter().find_map(|fact| if let Fact::Keys(keys) = fact { Some(&**keys) } else { None })
    }

    /// Whether loading beside production was agreed to.
    pub fn stage(&self) -> bool {
        self.answers.contains(&Fact::Stage)
    }

    /// `None`: not answered.
    pub fn rows(&self) -> Option<&[Choice]> {
        self.answers.iter().find_map(|fact| if let Fact::Rows(rows) = fact { Some(&**rows) } else { None })
    }

    /// `None`: not answered, as when no trigger would fire.
    pub fn triggers(&self) -> Option<Triggers> {
        self.answers.iter().find_map(|fact| if let Fact::Triggers(triggers) = fact { Some(*triggers) } else { None })
    }

    /// `None`: not answered.
    pub fn files(&self) -> Option<&[String]> {
        self.answers.iter().find_map(|fact| if let Fact::Files(files) = fact { Some(&**files) } else { None })
    }

    /// `None`: not answered.
    pub fn place(&self) -> Option<Where> {
        self.answers.iter().find_map(|fact| if let Fact::Where(place) = fact { Some(*place) } else { None })
    }

    /// `None`: not answered, as when files go in place.
    pub fn folder(&self) -> Option<&str> {
        self.answers.iter().find_map(|fact| if let Fact::Folder(folder) = fact { Some(folder.as_str()) } else { None })
    }

    /// `None`: not answered, as when files go beside.
    pub fn policy(&self) -> Option<Policy> {
        self.answers.iter().find_map(|fact| if let Fact::Policy(policy) = fact { Some(*policy) } else { None })
    }

    /// `None`: not answered, as when all owners are the same here.
    pub fn own(&self) -> Option<Own> {
        self.answers.iter().find_map(|fact| if let Fact::Own(own) = fact { Some(*own) } else { None })
    }

    /// Empty: not answered; everything that the plan names is put in place.
    pub fn except(&self) -> &[String] {
        let except =
            self.answers.iter().find_map(|fact| if let Fact::Except(paths) = fact { Some(&**paths) } else { None });
        except.unwrap_or_default()
    }

    /// Whether restoring beside production was agreed to.
    pub fn restore(&self) -> bool {
        self.answers.contains(&Fact::Restore)
    }

    /// `None`: not answered.
    pub fn promotion(&self) -> Option<Promotion> {
        self.answers.iter().find_map(|fact| if let Fact::Promotion(what) = fact { Some(*what) } else { None })
    }

    /// `None`: not answered, as when there is no production.
    pub fn safety(&self) -> Option<bool> {
        self.answers.iter().find_map(|fact| if let Fact::Safety(safety) = fact { Some(*safety) } else { None })
    }

    /// `None`: not answered.
    pub fn aim(&self) -> Option<&Aim> {
        self.answers.iter().find_map(|fact| if let Fact::Aim(aim) = fact { Some(aim) } else { None })
    }

    /// Where a second cluster was agreed to; `None`: not answered.
    pub fn lay_out(&self) -> Option<&str> {
        self.answers.iter().find_map(|fact| if let Fact::LayOut(folder) = fact { Some(folder.as_str()) } else { None })
    }

    /// `None`: not answered.
    pub fn clone_use(&self) -> Option<Use> {
        self.answers.iter().find_map(|fact| if let Fact::Use(what) = fact { Some(*what) } else { None })
    }

    /// Whether writes since the restore began may stay behind.
    pub fn leave_writes(&self) -> bool {
        self.answers.contains(&Fact::LeaveWrites)
    }

    /// The points found, if they were looked for.
    pub fn points(&self) -> Option<&[Point]> {
        if let Some(Finding::Points(points)) = self.finding(&Look::Points) { Some(points) } else { None }
    }
}
