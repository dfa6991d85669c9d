//! What can be trained. A scenario is a story that is told to the sandbox, a briefing, and an answers file that recovers from
//! it.

use super::database::Script;

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
    /// Files of a file server, as [`super::files`] tells it.
    Files,
}

/// Every scenario; the first one is what a drill is unless said otherwise.
pub static ALL: [&Scenario; 3] = [&DAMAGED_TABLE, &LOST_FILES, &LOST_DATABASE];

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
