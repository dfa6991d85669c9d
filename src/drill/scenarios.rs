//! What can be trained. A scenario is a story that is told to the sandbox, a briefing, and an answers file that recovers from
//! it.

use super::database::Script;
use super::dropped::Migration;

/// One incident: what leads to it, what it is, and what is right in the end.
#[derive(Debug)]
pub struct Scenario {
    /// The name on the command line.
    pub name: &'static str,
    /// A line for a list.
    pub title: &'static str,
    pub(super) story: Story,
    pub(super) briefing: &'static str,
    pub(super) answers: &'static str,
}

/// What is damaged, and how that comes about.
#[derive(Debug)]
pub(super) enum Story {
    /// Rows of a database.
    Rows(Script),
    /// The database itself, which is gone.
    Gone,
    /// Tables of a database, on a server that archives its WAL.
    Dropped(Migration),
    /// Files of a file server, as [`super::files`] tells it.
    Files,
}

/// Every scenario; the first one is what a drill is unless said otherwise.
pub static ALL: [&Scenario; 4] = [&DAMAGED_TABLE, &LOST_FILES, &LOST_DATABASE, &DROPPED_TABLES];

/// The main job: an UPDATE that lost half of its WHERE, and a DELETE that cascaded.
pub static DAMAGED_TABLE: Scenario = Scenario {
    name: "damaged-table",
    title: "An UPDATE hit 5,000 rows instead of one, and a DELETE took payments along",
    story: Story::Rows(Script {
        business: include_str!("../../assets/drill/damaged-table/business.sql"),
        incident: include_str!("../../assets/drill/damaged-table/incident.sql"),
        aftermath: include_str!("../../assets/drill/damaged-table/aftermath.sql"),
        truth: include_str!("../../assets/drill/damaged-table/truth.sql"),
        check: include_str!("../../assets/drill/damaged-table/check.sql"),
    }),
    briefing: include_str!("../../assets/drill/damaged-table/briefing.txt"),
    answers: include_str!("../../assets/drill/damaged-table/answers.toml"),
};

/// The commonest one: a document overwritten, a folder deleted, and one encrypted for ransom.
pub static LOST_FILES: Scenario = Scenario {
    name: "lost-files",
    title: "A document cannot be opened, a folder is gone, and another one asks for ransom",
    story: Story::Files,
    briefing: include_str!("../../assets/drill/lost-files/briefing.txt"),
    answers: include_str!("../../assets/drill/lost-files/answers.toml"),
};

/// The worst one: a script for test servers was run against production.
pub static LOST_DATABASE: Scenario = Scenario {
    name: "lost-database",
    title: "The whole database is gone: a script for test servers dropped it",
    story: Story::Gone,
    briefing: include_str!("../../assets/drill/lost-database/briefing.txt"),
    answers: include_str!("../../assets/drill/lost-database/answers.toml"),
};

/// The one that no dump can mend: three tables dropped by a migration, with work in them that is younger than the night.
pub static DROPPED_TABLES: Scenario = Scenario {
    name: "dropped-tables",
    title: "The migration dropped three tables, and nobody noticed for an hour",
    story: Story::Dropped(Migration {
        tables: include_str!("../../assets/drill/dropped-tables/tables.sql"),
        business: include_str!("../../assets/drill/dropped-tables/business.sql"),
        sql: include_str!("../../assets/drill/dropped-tables/migration.sql"),
        aftermath: include_str!("../../assets/drill/dropped-tables/aftermath.sql"),
    }),
    briefing: include_str!("../../assets/drill/dropped-tables/briefing.txt"),
    answers: include_str!("../../assets/drill/dropped-tables/answers.toml"),
};
