//! A plan: the flat list of what will be done, and the consent it takes.
//!
//! [`Step`] is the complete list of things this program can change on anybody's systems. A step's [`Effect`] alone decides
//! how consent is asked. After consent nothing branches: [`crate::recovery::run`] accepts nothing but [`Confirmed`], which
//! only [`Plan::confirm`] makes, and which holds the hash of what was shown.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::journal::Operator;
use crate::error::{Error, Result};
use crate::postgres::merge::{ChangeSet, Undo};
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
    /// Remove schemas that other recoveries have left.
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
            Self::Prove { .. } => Effect::Read,
            Self::DropScratch => Effect::Scratch,
            Self::RemoveLeftovers { .. } => Effect::Final,
            Self::MergeRows { .. } | Self::UndoRows { .. } => Effect::Live,
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
            Self::RemoveLeftovers { leftovers } => {
                format!("remove {}", text::counted(leftovers.len() as u64, "schema", "schemas"))
            }
        }
    }

    /// The equivalent SQL, so that a person could do it by hand.
    pub fn statements(&self) -> Vec<String> {
        match self {
            Self::MergeRows { changes } => changes.tables.iter().flat_map(|table| table.statements.clone()).collect(),
            Self::UndoRows { undo, .. } => undo.tables.iter().flat_map(|table| table.statements.clone()).collect(),
            Self::RemoveLeftovers { leftovers } => {
                let drop = |leftover: &Leftover| format!("DROP SCHEMA {} CASCADE", quote(&leftover.schema));
                leftovers.iter().map(drop).collect()
            }
            Self::Prove { .. } | Self::DropScratch => Vec::new(),
        }
    }

    /// What has to be typed for it: the tables of production that it writes to, or what it does that cannot be undone.
    fn targets(&self) -> Vec<String> {
        match self {
            Self::MergeRows { changes } => changes.tables.iter().map(|table| table.table.to_string()).collect(),
            Self::UndoRows { undo, .. } => undo.tables.iter().map(|table| table.table.to_string()).collect(),
            Self::RemoveLeftovers { .. } => vec![self.title()],
            Self::Prove { .. } | Self::DropScratch => Vec::new(),
        }
    }
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
