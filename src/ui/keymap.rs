//! The one table of keys. Lookup, footer, help and palette are made from it, so they cannot drift apart.

mod files;
mod inspect;
mod place;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use Place as P;
use place::LISTS;
pub use place::Place;

/// What a key means. Screens handle the actions that concern them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// One row up.
    Up,
    /// One row down.
    Down,
    /// Earlier columns, the list before, or the row before.
    Left,
    /// Later columns, the next list, or the next row.
    Right,
    /// A screen up.
    PageUp,
    /// A screen down.
    PageDown,
    /// To the first row.
    Top,
    /// To the last row.
    Bottom,
    /// Goes on: what that is, each screen says.
    Enter,
    /// One step back: closes what is open, else takes the last answer back.
    Back,
    /// Marks what is selected or takes the mark off; of a row, leaves it out or takes it in again.
    Mark,
    /// Marks the tables whose rows a DELETE in the marked ones may have taken along.
    MarkRelated,
    /// Opens the line that narrows a list down.
    Filter,
    /// To the next list of the overview.
    NextPane,
    /// To the list before it.
    PreviousPane,
    /// Missing rows come back, or not.
    Missing,
    /// Changed rows: of the marked transactions, all, or none.
    Changed,
    /// Extra rows are deleted, or not; asked for once more.
    Extra,
    /// Opens the line for a condition that written rows must meet.
    Condition,
    /// Drops what was chosen for a table and proposes anew.
    Proposal,
    /// Only rows that are marked one by one are written, or by rule again.
    PickOnly,
    /// The listed rows' next class, then all.
    FilterClass,
    /// The next column that listed rows must differ in, then any.
    FilterColumn,
    /// Only rows of the selected row's transaction, then all.
    FilterTransaction,
    /// Brings back the moment just before the selected transaction, out of base backups and WAL.
    MomentBefore,
    /// Lists all differing rows again.
    FilterNone,
    /// Yes, to what a screen asks about deleting.
    Confirm,
    /// Goes on to the plan with what is chosen.
    Write,
    /// Compares with production as it is now.
    Refresh,
    /// Shows or hides a plan's SQL.
    Sql,
    /// Begins the undo of a recovery.
    Undo,
    /// Opens the report of an earlier recovery.
    Report,
    /// Shows the contents that the selected path has had.
    Versions,
    /// Shows what became of the folder and everything beneath it since the snapshot.
    Changes,
    /// Compares with something else: this machine, or the newest snapshot.
    Against,
    /// Compares the selected content with the file that is here now.
    Compare,
    /// Compares the selected content with the one before it.
    CompareBefore,
    /// Opens the line in which a path, or a moment, is typed to go to.
    GoTo,
    /// Puts a folder in another order.
    Sort,
    /// Shows only what differs from this machine, or everything again.
    OnlyDiffering,
    /// Finds out what lies beneath each folder, and how much of it differs.
    Sizes,
    /// Opens the line in which a query is typed.
    Query,
    /// Opens the tables of the dump that is looked into.
    Tables,
    /// Removes what recoveries have left in production, after consent.
    Clean,
    /// Tries what failed again; what was compared is compared anew.
    Retry,
    /// Shows or hides the other side's own words.
    Details,
    /// Copies what is shown to the terminal's clipboard.
    Copy,
    /// Every key of the screen.
    Help,
    /// All actions of the screen, to be found by their help.
    Palette,
    /// Leaves the console, after a question when something would be lost.
    Quit,
    /// Stops what is running at its next safe point.
    Cancel,
}

/// A key press, as far as bindings tell presses apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A letter or sign as it comes out, so Shift is in it: `G`, `?`.
    Char(char),
    /// With Ctrl; upper and lower case are the same.
    Ctrl(char),
    /// A key that types nothing, such as Enter or an arrow.
    Code(KeyCode),
}

/// One line of the table of keys.
pub struct Binding {
    /// Each does the same; the first is the one that is shown.
    pub keys: &'static [Key],
    /// What the keys mean there.
    pub action: Action,
    /// Empty: everywhere but where text is typed.
    pub places: &'static [Place],
    /// Two words for the footer; empty keeps it out of there.
    pub label: &'static str,
    /// A sentence for help and palette.
    pub help: &'static str,
}

/// Every key of the console. The first binding that fits wins, so a screen's own keys stand before the general ones.
fn all() -> impl Iterator<Item = &'static Binding> {
    files::BINDINGS.iter().chain(inspect::BINDINGS).chain(BINDINGS)
}

const BINDINGS: &[Binding] = &[
    Binding {
        keys: &[Key::Code(KeyCode::Enter)],
        action: Action::Enter,
        places: &[P::Home, P::Time, P::Choice, P::Use],
        label: "choose",
        help: "Choose what is selected and go on.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Enter)],
        action: Action::Enter,
        places: &[P::Points],
        label: "use point",
        help: "Use the selected recovery point.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Enter)],
        action: Action::Enter,
        places: &[P::Moment],
        label: "stop before it",
        help: "Bring back everything up to just before the selected transaction.",
    },
    Binding {
        keys: &[Key::Char('t')],
        action: Action::GoTo,
        places: &[P::Moment],
        label: "type a moment",
        help: "Type a moment: a time, a transaction, a position or a restore point.",
    },
    Binding {
        keys: &[Key::Char(' ')],
        action: Action::Mark,
        places: &[P::Tables, P::Key],
        label: "mark",
        help: "Mark or unmark what is selected.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Enter)],
        action: Action::Enter,
        places: &[P::Tables, P::Key],
        label: "go on",
        help: "Go on with what is marked.",
    },
    Binding {
        keys: &[Key::Char('a')],
        action: Action::MarkRelated,
        places: &[P::Tables],
        label: "mark related",
        help: "Also mark the tables that refer to the marked ones: a DELETE may have taken their rows along.",
    },
    Binding {
        keys: &[Key::Char('w')],
        action: Action::Write,
        places: &[P::Overview, P::Rows, P::Record, P::Value],
        label: "go on",
        help: "Go on to the plan with what is chosen. Nothing is written before you have seen it and typed the name.",
    },
    Binding {
        keys: &[Key::Char(' ')],
        action: Action::Mark,
        places: &[P::Overview],
        label: "choose",
        help: "Choose the selected line or not: a table's proposal, a transaction's rows, or a column.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Enter)],
        action: Action::Enter,
        places: &[P::Overview],
        label: "see rows",
        help: "See the differing rows of the selected table, transaction or column.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Tab)],
        action: Action::NextPane,
        places: &[P::Overview],
        label: "next list",
        help: "Go to the next list: tables, transactions, columns.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::BackTab)],
        action: Action::PreviousPane,
        places: &[P::Overview],
        label: "",
        help: "Go to the list before.",
    },
    Binding {
        keys: &[Key::Char(' ')],
        action: Action::Mark,
        places: &[P::Rows, P::Record, P::Value],
        label: "leave out",
        help: "Leave this row out of what is written, or take it in again.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Enter), Key::Char('v')],
        action: Action::Enter,
        places: &[P::Rows],
        label: "whole row",
        help: "See the whole row, column by column.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Enter)],
        action: Action::Enter,
        places: &[P::Record],
        label: "whole value",
        help: "See the selected value whole.",
    },
    Binding {
        keys: &[Key::Char('/')],
        action: Action::Filter,
        places: &[P::Overview, P::Rows],
        label: "filter",
        help: "Show only rows that meet a SQL condition over backup and live.",
    },
    Binding {
        keys: &[Key::Char('m')],
        action: Action::Missing,
        places: &[P::Overview, P::Rows],
        label: "missing",
        help: "Bring missing rows back, or not.",
    },
    Binding {
        keys: &[Key::Char('c')],
        action: Action::Changed,
        places: &[P::Overview, P::Rows],
        label: "changed",
        help: "Changed rows: those of the marked transactions, all, or none.",
    },
    Binding {
        keys: &[Key::Char('s')],
        action: Action::Condition,
        places: &[P::Overview, P::Rows],
        label: "condition",
        help: "Type a SQL condition over backup and live that rows must meet to be written: live.status = 'void'.",
    },
    Binding {
        keys: &[Key::Char('f')],
        action: Action::FilterClass,
        places: &[P::Rows],
        label: "class",
        help: "Show all rows, or only missing, changed or extra ones.",
    },
    Binding {
        keys: &[Key::Char('F')],
        action: Action::FilterColumn,
        places: &[P::Rows],
        label: "",
        help: "Show only rows that differ in one column, then in the next.",
    },
    Binding {
        keys: &[Key::Char('t')],
        action: Action::FilterTransaction,
        places: &[P::Rows],
        label: "",
        help: "Show only rows that the selected row's transaction wrote, or all again.",
    },
    Binding {
        keys: &[Key::Char('M')],
        action: Action::MomentBefore,
        places: &[P::Overview],
        label: "",
        help: "Bring back the moment just before the selected transaction, out of base backups and WAL, instead of the dump.",
    },
    Binding {
        keys: &[Key::Char('x')],
        action: Action::FilterNone,
        places: &[P::Rows],
        label: "",
        help: "Show all differing rows again.",
    },
    Binding {
        keys: &[Key::Char('p')],
        action: Action::Proposal,
        places: &[P::Overview, P::Rows],
        label: "",
        help: "Go back to what is proposed for this table.",
    },
    Binding {
        keys: &[Key::Char('o')],
        action: Action::PickOnly,
        places: &[P::Overview, P::Rows, P::Record],
        label: "",
        help: "Write only rows that you mark one by one, or choose by rule again.",
    },
    Binding {
        keys: &[Key::Char('D')],
        action: Action::Extra,
        places: &[P::Overview, P::Rows],
        label: "",
        help: "Delete the rows that only production has, or not. Never on by itself.",
    },
    Binding {
        keys: &[Key::Char('r')],
        action: Action::Refresh,
        places: &[P::Overview, P::Rows],
        label: "",
        help: "Compare again with production as it is now.",
    },
    Binding {
        keys: &[Key::Char('y')],
        action: Action::Confirm,
        places: &[P::Deletes],
        label: "delete them",
        help: "Choose deleting. Nothing is deleted before you have seen the plan and typed the name.",
    },
    Binding {
        keys: &[Key::Char(' ')],
        action: Action::Mark,
        places: &[P::FilesPlan],
        label: "leave out",
        help: "Leave the selected file out of what is put in place, or take it in again; Enter shows the plan without it.",
    },
    Binding {
        keys: &[Key::Char('s')],
        action: Action::Sql,
        places: &[P::Plan],
        label: "SQL",
        help: "Show or hide the exact SQL, or the commands by which a person would do it.",
    },
    Binding {
        keys: &[Key::Char('s')],
        action: Action::Sql,
        places: &[P::FilesPlan],
        label: "by hand",
        help: "Show or hide the commands by which a person would do it.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Enter), Key::Char('c')],
        action: Action::Enter,
        places: &[P::Plan, P::FilesPlan],
        label: "consent",
        help: "Go to the line where you type the name to consent.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Enter)],
        action: Action::Enter,
        places: &[P::Done],
        label: "home",
        help: "Go to the first screen.",
    },
    Binding {
        keys: &[Key::Char('u')],
        action: Action::Undo,
        places: &[P::Done, P::Home],
        label: "undo",
        help: "Take back what this recovery wrote, after a preview and your consent.",
    },
    Binding {
        keys: &[Key::Char('o')],
        action: Action::Report,
        places: &[P::Home],
        label: "report",
        help: "Read the report of the selected recovery.",
    },
    Binding {
        keys: &[Key::Char('c')],
        action: Action::Clean,
        places: &[Place::Home],
        label: "clean up",
        help: "Remove what recoveries have left in production. Lists it first, and asks for consent.",
    },
    Binding {
        keys: &[Key::Char('r')],
        action: Action::Retry,
        places: &[P::Failed],
        label: "try again",
        help: "Try the same again.",
    },
    Binding {
        keys: &[Key::Char('d')],
        action: Action::Details,
        places: &[P::Failed],
        label: "details",
        help: "Show or hide the other side's own words.",
    },
    Binding {
        keys: &[Key::Char('y')],
        action: Action::Copy,
        places: &[P::Failed, P::Plan, P::FilesPlan, P::Done],
        label: "copy",
        help: "Copy what is shown to the clipboard of your terminal (OSC 52).",
    },
    Binding {
        keys: &[Key::Char('/')],
        action: Action::Filter,
        places: &[P::Points, P::Tables],
        label: "filter",
        help: "Filter by typing some letters.",
    },
    Binding {
        keys: &[Key::Ctrl('c')],
        action: Action::Cancel,
        places: &[P::Waiting, P::Running, P::Asking],
        label: "cancel",
        help: "Cancel what is running, at its next safe point.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Up), Key::Char('k')],
        action: Action::Up,
        places: LISTS,
        label: "",
        help: "One up.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Down), Key::Char('j')],
        action: Action::Down,
        places: LISTS,
        label: "",
        help: "One down.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Left), Key::Char('h')],
        action: Action::Left,
        places: LISTS,
        label: "",
        help: "Left: earlier columns, or the row before in the whole-row view.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Right), Key::Char('l')],
        action: Action::Right,
        places: LISTS,
        label: "",
        help: "Right: later columns, or the next row in the whole-row view.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::PageUp), Key::Ctrl('b')],
        action: Action::PageUp,
        places: LISTS,
        label: "",
        help: "A page up.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::PageDown), Key::Ctrl('f')],
        action: Action::PageDown,
        places: LISTS,
        label: "",
        help: "A page down.",
    },
    Binding {
        keys: &[Key::Char('g'), Key::Code(KeyCode::Home)],
        action: Action::Top,
        places: LISTS,
        label: "",
        help: "To the first.",
    },
    Binding {
        keys: &[Key::Char('G'), Key::Code(KeyCode::End)],
        action: Action::Bottom,
        places: LISTS,
        label: "",
        help: "To the last.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Esc), Key::Code(KeyCode::Backspace)],
        action: Action::Back,
        places: &[],
        label: "back",
        help: "Back: takes the last answer back. Never leaves the console.",
    },
    Binding {
        keys: &[Key::Char('?')],
        action: Action::Help,
        places: &[],
        label: "help",
        help: "Every key of this screen.",
    },
    Binding {
        keys: &[Key::Char(':'), Key::Ctrl('p')],
        action: Action::Palette,
        places: &[],
        label: "",
        help: "Find an action by its name.",
    },
    Binding {
        keys: &[Key::Char('q')],
        action: Action::Quit,
        places: &[],
        label: "leave",
        help: "Leave. Asks first when something would be lost.",
    },
    Binding { keys: &[Key::Ctrl('c')], action: Action::Quit, places: &[], label: "", help: "Leave." },
];

impl Binding {
    fn holds(&self, place: Place) -> bool {
        if self.places.is_empty() { place != Place::Typing } else { self.places.contains(&place) }
    }

    /// The first key as it is written on screens.
    pub fn key(&self) -> String {
        self.keys.first().map(ToString::to_string).unwrap_or_default()
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Char(' ') => f.write_str("Space"),
            Self::Char(letter) => write!(f, "{letter}"),
            Self::Ctrl(letter) => write!(f, "Ctrl-{}", letter.to_ascii_uppercase()),
            Self::Code(code) => write!(f, "{code}"),
        }
    }
}

/// What a key means on a screen.
pub fn lookup(place: Place, event: KeyEvent) -> Option<Action> {
    let control = event.modifiers.contains(KeyModifiers::CONTROL);
    let pressed = |key: &Key| match (key, event.code) {
        (Key::Char(letter), KeyCode::Char(typed)) => !control && *letter == typed,
        (Key::Ctrl(letter), KeyCode::Char(typed)) => control && letter.eq_ignore_ascii_case(&typed),
        (Key::Code(code), typed) => *code == typed,
        _ => false,
    };
    bindings(place).find(|binding| binding.keys.iter().any(pressed)).map(|binding| binding.action)
}

/// The bindings of a screen, its own before the general ones.
pub fn bindings(place: Place) -> impl Iterator<Item = &'static Binding> {
    all().filter(move |binding| binding.holds(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: [Place; 26] = [
        Place::Home,
        Place::Time,
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
        Place::Inside,
        Place::Key,
        Place::Overview,
        Place::Rows,
        Place::Record,
        Place::Value,
        Place::Deletes,
        Place::Plan,
        Place::FilesPlan,
        Place::Waiting,
        Place::Running,
        Place::Done,
        Place::Refused,
        Place::Failed,
    ];

    #[test]
    fn every_screen_has_a_way_back_and_help() {
        for place in PLACES {
            for action in [Action::Back, Action::Help, Action::Quit] {
                assert!(bindings(place).any(|binding| binding.action == action), "{place:?} lacks {action:?}");
            }
        }
    }

    #[test]
    fn no_key_of_a_screen_means_two_things_by_accident() {
        for place in PLACES {
            let own: Vec<_> = all().filter(|binding| binding.places.contains(&place)).collect();
            for (position, binding) in own.iter().enumerate() {
                for other in &own[position + 1..] {
                    assert!(
                        binding.action == other.action || !binding.keys.iter().any(|key| other.keys.contains(key)),
                        "{place:?}: {:?} and {:?} share a key",
                        binding.action,
                        other.action
                    );
                }
            }
        }
    }
}
