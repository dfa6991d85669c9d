//! A plan: the flat list of what will be done, and the consent it takes.
//!
//! [`Step`] is the complete list of things this program can change on anybody's systems. A step's [`Effect`] alone decides
//! how consent is asked. After consent nothing branches: [`crate::recovery::run`] accepts nothing but [`Confirmed`], which
//! only [`Plan::confirm`] makes, and which holds the hash of what was shown.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::journal::Operator;
use super::record::Cloned;
use crate::backup::EntryKind;
use crate::error::{Error, Result};
use crate::files::choice::{Action, Choice, Destination, Item};
use crate::files::put::Placed;
use crate::postgres::database::{BEFORE, Exchange, RESTORE, Restored};
use crate::postgres::merge::{ChangeSet, Recreation, Undo};
use crate::postgres::name::quote;
use crate::postgres::stage::Leftover;
use crate::text;

/// Everything that can be done to a system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Write the frozen rows into production, in one transaction.
    MergeRows {
        /// As they were frozen and shown.
        changes: ChangeSet,
    },
    /// Compare what was written with the backup again, and check foreign keys.
    Prove {
        /// The same as were merged.
        changes: ChangeSet,
    },
    /// Write the pre-images of an earlier recovery back.
    UndoRows {
        /// The earlier one's id.
        recovery: String,
        /// As it was looked up and shown.
        undo: Undo,
    },
    /// Remove the staging schema.
    DropScratch,
    /// Bring files back into a folder that is not there yet.
    RestoreFiles {
        /// As it was looked at and shown.
        choice: Choice,
    },
    /// Put files back where they were; what stands there is kept.
    PutFiles {
        /// As it was looked at and shown.
        choice: Choice,
    },
    /// Exchange files that an earlier recovery put in place with what it kept of them.
    UndoFiles {
        /// The earlier one's id.
        recovery: String,
        /// As they were looked at and shown.
        placed: Vec<Placed>,
    },
    /// Back production up as it is, into the repository.
    SafetyBackup {
        /// The database.
        database: String,
    },
    /// Put the restored database in production's place, which gets another name.
    Promote {
        /// As it was looked at and shown.
        exchange: Exchange,
    },
    /// Look through production's name which database it leads to, and whether everything is as it was promised.
    ProvePromotion {
        /// The same as was carried out.
        exchange: Exchange,
    },
    /// Leave the restored database beside production.
    KeepDatabase {
        /// As it was restored.
        restored: Restored,
    },
    /// Make tables again that production has no more, in one transaction, with their rows out of the clone.
    RecreateTables {
        /// As it was looked at and shown.
        recreation: Recreation,
    },
    /// Look what production has of them now.
    ProveRecreated {
        /// The same as were made again.
        recreation: Recreation,
    },
    /// Move tables aside that an earlier recovery made again.
    RemoveRecreated {
        /// The earlier one's id.
        recovery: String,
        /// As that one made them.
        recreation: Recreation,
    },
    /// Stop the cluster as of the moment, and remove it.
    DropClone {
        /// Its folder.
        folder: String,
    },
    /// Leave the cluster as of the moment beside production.
    KeepClone {
        /// As it stands.
        clone: Cloned,
    },
    /// Give production's name back to the database that had it.
    ExchangeBack {
        /// The earlier recovery's id.
        recovery: String,
        /// As that one carried it out.
        exchange: Exchange,
    },
    /// Remove schemas and databases that other recoveries have left.
    RemoveLeftovers {
        /// As they were shown.
        leftovers: Vec<Leftover>,
    },
}

/// What a step does to the world; it alone decides the consent asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Changes nothing anywhere.
    Read,
    /// Only in space that this recovery made for itself.
    Scratch,
    /// Changes production; pre-images are kept, so it can be undone.
    Live,
    /// Cannot be undone.
    Final,
}

impl Step {
    /// What the step does to the world.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Prove { .. } | Self::ProvePromotion { .. } | Self::ProveRecreated { .. } => Effect::Read,
            Self::DropScratch
            | Self::DropClone { .. }
            | Self::KeepClone { .. }
            | Self::RestoreFiles { .. }
            | Self::SafetyBackup { .. }
            | Self::KeepDatabase { .. } => Effect::Scratch,
            Self::RemoveLeftovers { .. } => Effect::Final,
            Self::MergeRows { .. }
            | Self::UndoRows { .. }
            | Self::RecreateTables { .. }
            | Self::RemoveRecreated { .. }
            | Self::PutFiles { .. }
            | Self::UndoFiles { .. }
            | Self::Promote { .. }
            | Self::ExchangeBack { .. } => Effect::Live,
        }
    }

    /// One line for the plan and the journal.
    pub fn title(&self) -> String {
        match self {
            Self::MergeRows { changes } => {
                let rows: u64 = changes.tables.iter().map(|table| table.inserts + table.updates + table.deletes).sum();
                format!("write {} in one transaction", text::counted(rows, "row", "rows"))
            }
            Self::Prove { .. } => "prove it: compare the written rows with the backup again, check foreign keys".into(),
            Self::UndoRows { recovery, undo } => {
                let rows: u64 = undo.tables.iter().map(|table| table.remove + table.set_back + table.bring_back).sum();
                format!("take back {} written by recovery {recovery}", text::counted(rows, "row", "rows"))
            }
            Self::DropScratch => "remove the staging schema".into(),
            Self::RecreateTables { recreation } => {
                let rows: u64 = recreation.tables.iter().map(|table| table.rows).sum();
                let tables = text::counted(recreation.tables.len() as u64, "table", "tables");
                format!("make {tables} again, with {}, in one transaction", text::counted(rows, "row", "rows"))
            }
            Self::ProveRecreated { .. } => "prove it: compare the tables with the cluster they came from".into(),
            Self::RemoveRecreated { recovery, recreation } => format!(
                "move {} aside that recovery {recovery} made again",
                text::counted(recreation.tables.len() as u64, "table", "tables")
            ),
            Self::DropClone { folder } => format!("stop the cluster in {} and remove it", text::clean(folder)),
            Self::KeepClone { clone } => format!("keep the cluster in {}", text::clean(&clone.folder)),
            Self::RestoreFiles { choice } => {
                let Destination::Beside(folder) = &choice.destination else { return "bring files back".into() };
                let files = text::counted(choice.measure.files, "file", "files");
                format!("bring {files} ({}) back into {}", text::bytes(choice.measure.bytes), text::clean(folder))
            }
            Self::PutFiles { choice } => {
                let of = |action| choice.items.iter().filter(|item| item.action == action).count() as u64;
                let (new, replaced) = (of(Action::Create), of(Action::Replace));
                format!(
                    "put {} back in place, {} of them instead of a present one",
                    text::counted(new + replaced, "file", "files"),
                    text::count(replaced)
                )
            }
            Self::UndoFiles { recovery, placed } => {
                format!(
                    "take back {} put in place by recovery {recovery}",
                    text::counted(placed.len() as u64, "file", "files")
                )
            }
            Self::RemoveLeftovers { leftovers } => {
                format!("remove {}", schemas_and_databases(leftovers.iter().map(|leftover| leftover.schema.as_str())))
            }
            Self::SafetyBackup { database } => {
                format!("back up {} as it is now, into the repository", text::clean(database))
            }
            Self::Promote { exchange } => format!(
                "put {} in the place of {}{}",
                exchange.restored,
                text::clean(&exchange.database),
                if exchange.production.is_some() { format!(", kept as {}", exchange.before) } else { String::new() }
            ),
            Self::ProvePromotion { exchange } => {
                format!("prove it: connect to {} as clients do, and look", text::clean(&exchange.database))
            }
            Self::KeepDatabase { restored } => format!("keep {} beside production", restored.database),
            Self::ExchangeBack { exchange, .. } => match exchange.production {
                Some(_) => {
                    format!("give {} back to the database kept as {}", text::clean(&exchange.database), exchange.before)
                }
                None => format!("take the name {} away from the restored database", text::clean(&exchange.database)),
            },
        }
    }

    /// The equivalent SQL, so that a person could do it by hand.
    pub fn statements(&self) -> Vec<String> {
        match self {
            Self::MergeRows { changes } => changes.tables.iter().flat_map(|table| table.statements.clone()).collect(),
            Self::UndoRows { undo, .. } => undo.tables.iter().flat_map(|table| table.statements.clone()).collect(),
            Self::RemoveLeftovers { leftovers } => {
                let drop = |leftover: &Leftover| {
                    let name = quote(&leftover.schema);
                    if leftover.kind.is_database() {
                        format!("DROP DATABASE {name}")
                    } else {
                        format!("DROP SCHEMA {name} CASCADE")
                    }
                };
                leftovers.iter().map(drop).collect()
            }
            Self::RestoreFiles { choice } => {
                let into = if let Destination::Beside(folder) = &choice.destination { folder } else { "" };
                let paths = choice.paths.iter().map(|path| format!(" --include {}", shell(path)));
                vec![format!(
                    "restic restore {} --target {}{}",
                    short(&choice.point),
                    shell(into),
                    paths.collect::<String>()
                )]
            }
            Self::PutFiles { choice } => choice.items.iter().map(|item| by_hand(item, &choice.point)).collect(),
            Self::UndoFiles { placed, .. } => placed
                .iter()
                .map(|one| {
                    let (path, aside) = (one.path.display().to_string(), one.aside.display().to_string());
                    match one.before {
                        Some(_) => format!("mv --exchange {} {}", shell(&aside), shell(&path)),
                        None => format!("mv --no-clobber {} {}", shell(&path), shell(&aside)),
                    }
                })
                .collect(),
            Self::SafetyBackup { database } => {
                let name = shell(&format!("{database}.dump"));
                vec![format!(
                    "pg_dump -Fc {} | restic backup --stdin --stdin-filename {name} --tag lifeboat-safety --tag {}",
                    shell(database),
                    shell(database)
                )]
            }
            Self::RecreateTables { recreation } => recreation.statements(),
            Self::RemoveRecreated { recovery, recreation } => recreation.statements_back(recovery),
            Self::DropClone { folder } => vec![format!("lifeboat clone --drop {}", shell(folder))],
            Self::KeepClone { clone } => by_hand_from(clone),
            Self::Promote { exchange } => exchange.statements(),
            Self::ExchangeBack { exchange, .. } => exchange.statements_back(),
            Self::Prove { .. }
            | Self::DropScratch
            | Self::ProvePromotion { .. }
            | Self::ProveRecreated { .. }
            | Self::KeepDatabase { .. } => Vec::new(),
        }
    }

    /// What has to be typed for it: the tables of production that it writes to, or what it does that cannot be undone.
    fn targets(&self) -> Vec<String> {
        match self {
            Self::MergeRows { changes } => changes.tables.iter().map(|table| table.table.to_string()).collect(),
            Self::UndoRows { undo, .. } => undo.tables.iter().map(|table| table.table.to_string()).collect(),
            Self::RemoveLeftovers { .. } => vec![self.title()],
            Self::PutFiles { choice } => {
                let files: Vec<_> = choice.items.iter().filter(|item| item.action != Action::MakeFolder).collect();
                match files.as_slice() {
                    [one] => vec![last_name(&one.path)],
                    several => vec![format!("put back {}", text::counted(several.len() as u64, "file", "files"))],
                }
            }
            Self::UndoFiles { placed, .. } => match placed.as_slice() {
                [one] => vec![last_name(&one.path.display().to_string())],
                several => vec![format!("take back {}", text::counted(several.len() as u64, "file", "files"))],
            },
            Self::Promote { exchange } | Self::ExchangeBack { exchange, .. } => vec![exchange.database.clone()],
            Self::RecreateTables { recreation } | Self::RemoveRecreated { recreation, .. } => {
                recreation.tables.iter().map(|table| table.name.to_string()).collect()
            }
            Self::Prove { .. }
            | Self::DropScratch
            | Self::DropClone { .. }
            | Self::KeepClone { .. }
            | Self::ProveRecreated { .. }
            | Self::RestoreFiles { .. }
            | Self::SafetyBackup { .. }
            | Self::ProvePromotion { .. }
            | Self::KeepDatabase { .. } => Vec::new(),
        }
    }
}

/// What a person would type to look into a cluster as of a moment, and to switch a service to it.
fn by_hand_from(clone: &Cloned) -> Vec<String> {
    let data = shell(&format!("{}/data", clone.folder));
    let psql = format!("psql {}", shell(&format!("{} dbname=DATABASE", clone.conninfo)));
    vec![
        psql.clone(),
        "# to switch the service to it: stop the application and the present server first, then set listen_addresses,"
            .into(),
        "# port, archiving, autovacuum and default_transaction_read_only in postgresql.conf, and access in pg_hba.conf"
            .into(),
        format!("# of {data}; those that end in .base are production's. Then"),
        format!("pg_ctl restart -D {data}"),
        format!("lifeboat clone --drop {}   # when it is not needed any more", shell(&clone.folder)),
    ]
}

/// How many schemas and databases of ours some names are: `2 schemas and 1 database`.
pub(super) fn schemas_and_databases<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let (databases, schemas): (Vec<_>, Vec<_>) =
        names.partition(|name| name.starts_with(RESTORE) || name.starts_with(BEFORE));
    let parts = [(schemas.len() as u64, "schema", "schemas"), (databases.len() as u64, "database", "databases")];
    let parts = parts.iter().filter(|(number, ..)| *number > 0);
    let parts: Vec<_> = parts.map(|(number, one, more)| text::counted(*number, one, more)).collect();
    parts.join(" and ")
}

/// What a person would type for one item.
fn by_hand(item: &Item, point: &str) -> String {
    let path = shell(&item.path);
    let ready = shell(&format!("{}.new", item.path));
    let get = format!("restic dump {} {path} > {ready}", short(point));
    match (item.action, item.kind) {
        (Action::MakeFolder, _) => format!("mkdir {path}"),
        (Action::Create, EntryKind::Symlink) => format!("ln -s ... {path}"),
        (Action::Create, _) => format!("{get} && mv --no-clobber {ready} {path}"),
        (Action::Replace, _) => format!("{get} && mv --exchange {ready} {path}"),
    }
}

fn short(point: &str) -> &str {
    point.get(..8).unwrap_or(point)
}

/// A name that can be typed: the last of a path, as it is shown.
fn last_name(path: &str) -> String {
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    text::clean(name).trim().to_owned()
}

/// Quoted for a shell.
fn shell(text: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+=:@%".contains(letter);
    if !text.is_empty() && text.chars().all(plain) { text.into() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// What will be done, frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// They run in this order; the first failure ends the plan.
    pub steps: Vec<Step>,
}

impl Plan {
    /// SHA-256, in hex, over the steps with everything in them.
    pub fn hash(&self) -> Result<String> {
        let bytes =
            serde_json::to_vec(&self.steps).map_err(|error| Error::bug("a plan cannot be written").detail(error))?;
        Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// What it does to the world, at its worst.
    pub fn effect(&self) -> Effect {
        self.steps.iter().map(Step::effect).max().unwrap_or(Effect::Read)
    }

    /// What the operator types to consent: the names of the tables that production will see changed, or what is removed.
    pub fn phrase(&self) -> String {
        let mut names: Vec<String> = self.steps.iter().flat_map(Step::targets).collect();
        names.dedup();
        names.join(" ")
    }

    /// Turns a plan into permission to run it. `typed` is what the operator typed, `shown` the hash of the plan they saw.
    pub fn confirm(self, typed: &str, shown: &str) -> Result<Confirmed> {
        let hash = self.hash()?;
        if shown != hash {
            return Err(Error::refused("the plan is not the one that was shown")
                .hint("Read the plan again, then consent to it."));
        }
        let phrase = self.phrase();
        if typed.trim() != phrase {
            return Err(Error::refused(format!("consent was not given: \"{}\" is not \"{phrase}\"", typed.trim()))
                .hint(format!("Type {phrase} exactly, or go back: nothing has been changed.")));
        }
        Ok(Confirmed { plan: self, hash, second: None })
    }
}

/// A plan that the operator consented to. Nothing else can be run.
#[derive(Debug, Clone)]
pub struct Confirmed {
    plan: Plan,
    hash: String,
    second: Option<Operator>,
}

impl Confirmed {
    /// Exactly what was shown.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// As [`Plan::hash`] of what was shown.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// With the consent of a second person, to the same plan.
    ///
    /// Errors: it is the same person, or the same terminal.
    pub fn seconded(self, first: &Operator, second: &Operator) -> Result<Self> {
        let same = if first.person() == second.person() {
            format!("both consents are of {}", first.person())
        } else if (&first.host, &first.terminal) == (&second.host, &second.terminal) {
            "both consents come from one terminal".to_owned()
        } else {
            return Ok(Self { second: Some(second.clone()), ..self });
        };
        Err(Error::refused(same)
            .hint("This system requires a second person, who logs in as themselves: lifeboat attach."))
    }

    /// The second person, where there was one.
    pub fn second(&self) -> Option<&Operator> {
        self.second.as_ref()
    }
}
