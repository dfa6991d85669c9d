//! What can be trained. A scenario is a story in SQL, told to the sandbox's own database in five parts, and a briefing.

use chrono::{DateTime, Utc};

/// One incident: what leads to it, what it is, and what is right in the end.
#[derive(Debug)]
pub struct Scenario {
    /// The name on the command line.
    pub name: &'static str,
    /// A line for a list.
    pub title: &'static str,
    /// Ordinary work after the last backup, before the incident.
    pub(super) business: &'static str,
    /// The incident itself. Prints its commit instant as RFC 3339.
    pub(super) incident: &'static str,
    /// Ordinary work that went on after it.
    pub(super) aftermath: &'static str,
    /// Derives from images of before and after what the rows must be in the end.
    pub(super) truth: &'static str,
    /// Compares an image with that: columns name, expected, found, examples.
    pub(super) check: &'static str,
    briefing: &'static str,
    answers: &'static str,
}

impl Scenario {
    /// An answers file that recovers from it.
    pub fn answers(&self, incident: DateTime<Utc>) -> String {
        self.answers.replace("{incident}", &incident.to_rfc3339())
    }

    /// What the operator is told when called, in paragraphs of one line each.
    pub fn briefing(&self, incident: DateTime<Utc>) -> String {
        self.briefing.trim_end().replace("{incident}", &incident.format("%Y-%m-%d %H:%M:%S UTC").to_string())
    }
}

/// The main job: an UPDATE that lost half of its WHERE, and a DELETE that cascaded.
pub const DAMAGED_TABLE: Scenario = Scenario {
    name: "damaged-table",
    title: "An UPDATE hit 5,000 rows instead of one, and a DELETE took payments along",
    business: include_str!("../../assets/drill/damaged-table/business.sql"),
    incident: include_str!("../../assets/drill/damaged-table/incident.sql"),
    aftermath: include_str!("../../assets/drill/damaged-table/aftermath.sql"),
    truth: include_str!("../../assets/drill/damaged-table/truth.sql"),
    check: include_str!("../../assets/drill/damaged-table/check.sql"),
    briefing: include_str!("../../assets/drill/damaged-table/briefing.txt"),
    answers: include_str!("../../assets/drill/damaged-table/answers.toml"),
};
