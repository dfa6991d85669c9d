//! The screens, as far as keys differ between them.

/// The screens, as far as keys differ between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The first screen.
    Home,
    /// Typing the incident time.
    Time,
    /// The recovery points.
    Points,
    /// One of a few choices.
    Choice,
    /// The moments that can be reached.
    Moment,
    /// What a cluster as of a moment is for.
    Use,
    /// Typing a query for it.
    Query,
    /// A query is under way.
    Asking,
    /// The rows that it gave.
    Answer,
    /// One of them, value by value.
    Values,
    /// The dump's tables beside production.
    Tables,
    /// A folder of a snapshot.
    Files,
    /// What a search through a snapshot found.
    Found,
    /// The contents that a path has had.
    Versions,
    /// Two contents of a path, line by line.
    Compared,
    /// What changed since a snapshot.
    Changes,
    /// A file, looked into.
    Inside,
    /// The columns of a named key.
    Key,
    /// Tables, transactions and columns of the diff.
    Overview,
    /// Differing rows, listed.
    Rows,
    /// One differing row, column by column.
    Record,
    /// One value, whole.
    Value,
    /// Whether rows that only production has are to be deleted.
    Deletes,
    /// The plan before consent.
    Plan,
    /// A plan that puts files in place: each of them can be left out.
    FilesPlan,
    /// A look is under way.
    Waiting,
    /// A plan is being done.
    Running,
    /// A report, at the end or of an earlier recovery.
    Done,
    /// The flow cannot go on.
    Refused,
    /// An error.
    Failed,
    /// Text is being typed into a line.
    Typing,
}

/// Where something can be moved through.
pub(super) const LISTS: &[Place] = &[
    Place::Home,
    Place::Points,
    Place::Choice,
    Place::Moment,
    Place::Use,
    Place::Answer,
    Place::Values,
    Place::Tables,
    Place::Files,
    Place::Found,
    Place::Versions,
    Place::Compared,
    Place::Changes,
    Place::Inside,
    Place::Key,
    Place::Overview,
    Place::Rows,
    Place::Record,
    Place::Value,
    Place::Plan,
    Place::FilesPlan,
    Place::Done,
];
