//! The screens: plain structs that draw what a flow returned and hand back what the operator did. None of them decides.

pub mod done;
pub mod files;
pub mod home;
pub mod inspect;
pub mod moment;
pub mod plan;
pub mod points;
pub mod question;
pub mod rows;
pub mod run;
pub mod tables;

use crossterm::event::KeyEvent;
use ratatui::Frame;
use ratatui::layout::Rect;

use super::keymap::{Action, Place};
use super::theme::Theme;
use crate::error::Error;
use crate::recovery::record::Fact;
use crate::recovery::worker::Request;

/// What a screen asks the console to do.
#[derive(Debug)]
pub enum Command {
    /// Begin a recovery.
    Start,
    /// Begin the undo of an earlier recovery.
    Undo(String),
    /// Begin the removal of what recoveries have left.
    Clean,
    /// Show the report of an earlier recovery.
    Report(String),
    /// Look on at a recovery, by its id, or go on with it when its process has ended.
    GoOn(String),
    /// Take an answer into the record.
    Answer(Fact),
    /// Take so many answers back and give others instead.
    Instead {
        /// So many, from the last.
        back: usize,
        /// In this order.
        facts: Vec<Fact>,
    },
    /// Take the last answer back; before the first, go home.
    Back,
    /// Ask the worker for rows of the diff, or how many there are; it answers when it has them.
    Ask(Request),
    /// Do what was consented to.
    Consent {
        /// As it was typed.
        typed: String,
        /// The hash of the plan that was shown.
        shown: String,
    },
    /// Compare again with production as it is now.
    Refresh,
    /// Try again what failed: the look, or the plan from a new comparison on.
    Retry,
    /// Leave the recovery and show the first screen.
    Home,
    /// Put text on the terminal's clipboard.
    Copy(String),
    /// A line for the operator that goes away with the next key.
    Notice(String),
}

/// What is on the terminal between header and keys.
#[derive(Debug)]
pub enum Screen {
    /// To begin, or to look at an earlier recovery.
    Home(home::Home),
    /// When it happened.
    Time(question::Time),
    /// One of a few.
    Choice(question::One),
    /// The columns that pair rows.
    Key(question::KeyColumns),
    /// The flow's refusal.
    Refused(question::Refused),
    /// Which recovery point.
    Points(points::Points),
    /// Which moment.
    Moment(Box<moment::Moment>),
    /// What a cluster as of a moment is for, and what is in it.
    Use(Box<inspect::Stands>),
    /// Which tables are damaged.
    Tables(tables::Tables),
    /// Which files come back.
    Files(Box<files::Files>),
    /// Into which folder.
    Folder(question::Folder),
    /// What differs, and what is to be written.
    Rows(Box<rows::RowsScreen>),
    /// The plan, and consent.
    Plan(plan::Review),
    /// Until a look is done.
    Waiting(run::Waiting),
    /// Until a plan is done.
    Running(run::Running),
    /// The report.
    Done(done::Done),
    /// What went wrong.
    Failed(run::Failed),
}

impl Screen {
    /// Which keys hold now.
    pub fn place(&self) -> Place {
        match self {
            Self::Home(_) => Place::Home,
            Self::Time(_) | Self::Folder(_) => Place::Time,
            Self::Choice(_) => Place::Choice,
            Self::Key(_) => Place::Key,
            Self::Refused(_) => Place::Refused,
            Self::Points(_) => Place::Points,
            Self::Moment(screen) if screen.wants_text() => Place::Time,
            Self::Moment(_) => Place::Moment,
            Self::Use(screen) => screen.place(),
            Self::Tables(_) => Place::Tables,
            Self::Files(screen) => screen.place(),
            Self::Rows(screen) => screen.place(),
            Self::Plan(screen) => screen.place(),
            Self::Waiting(_) => Place::Waiting,
            Self::Running(_) => Place::Running,
            Self::Done(_) => Place::Done,
            Self::Failed(_) => Place::Failed,
        }
    }

    /// Whether keys are text now.
    pub fn wants_text(&self) -> bool {
        match self {
            Self::Time(_) | Self::Folder(_) => true,
            Self::Files(screen) => screen.wants_text(),
            Self::Points(screen) => screen.filter.typing(),
            Self::Moment(screen) => screen.wants_text(),
            Self::Use(screen) => screen.wants_text(),
            Self::Tables(screen) => screen.filter.typing(),
            Self::Rows(screen) => screen.wants_text(),
            Self::Plan(screen) => screen.wants_text(),
            Self::Home(_)
            | Self::Choice(_)
            | Self::Key(_)
            | Self::Refused(_)
            | Self::Waiting(_)
            | Self::Running(_)
            | Self::Done(_)
            | Self::Failed(_) => false,
        }
    }

    /// Takes a key as text; only while [`Screen::wants_text`].
    pub fn typed(&mut self, key: KeyEvent) -> Option<Command> {
        match self {
            Self::Time(screen) => screen.typed(key),
            Self::Folder(screen) => screen.typed(key),
            Self::Files(screen) => screen.typed(key),
            Self::Points(screen) => screen.typed(key),
            Self::Moment(screen) => screen.typed(key),
            Self::Use(screen) => screen.typed(key),
            Self::Tables(screen) => screen.typed(key),
            Self::Rows(screen) => screen.typed(key),
            Self::Plan(screen) => screen.typed(key),
            Self::Home(_)
            | Self::Choice(_)
            | Self::Key(_)
            | Self::Refused(_)
            | Self::Waiting(_)
            | Self::Running(_)
            | Self::Done(_)
            | Self::Failed(_) => None,
        }
    }

    /// Takes an action that is not the console's own.
    pub fn act(&mut self, action: Action) -> Option<Command> {
        match self {
            Self::Home(screen) => screen.act(action),
            Self::Time(_) | Self::Folder(_) | Self::Refused(_) => (action == Action::Back).then_some(Command::Back),
            Self::Choice(screen) => screen.act(action),
            Self::Key(screen) => screen.act(action),
            Self::Points(screen) => screen.act(action),
            Self::Moment(screen) => screen.act(action),
            Self::Use(screen) => screen.act(action),
            Self::Tables(screen) => screen.act(action),
            Self::Files(screen) => screen.act(action),
            Self::Rows(screen) => screen.act(action),
            Self::Plan(screen) => screen.act(action),
            Self::Waiting(_) | Self::Running(_) => None,
            Self::Done(screen) => screen.act(action),
            Self::Failed(screen) => screen.act(action),
        }
    }

    /// Draws into `area` only; remembers what had to be moved to fit.
    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        match self {
            Self::Home(screen) => screen.draw(frame, area, theme),
            Self::Time(screen) => screen.draw(frame, area, theme),
            Self::Choice(screen) => screen.draw(frame, area, theme),
            Self::Key(screen) => screen.draw(frame, area, theme),
            Self::Refused(screen) => screen.draw(frame, area, theme),
            Self::Points(screen) => screen.draw(frame, area, theme),
            Self::Moment(screen) => screen.draw(frame, area, theme),
            Self::Use(screen) => screen.draw(frame, area, theme),
            Self::Tables(screen) => screen.draw(frame, area, theme),
            Self::Files(screen) => screen.draw(frame, area, theme),
            Self::Folder(screen) => screen.draw(frame, area, theme),
            Self::Rows(screen) => screen.draw(frame, area, theme),
            Self::Plan(screen) => screen.draw(frame, area, theme),
            Self::Waiting(screen) => screen.draw(frame, area, theme),
            Self::Running(screen) => screen.draw(frame, area, theme),
            Self::Done(screen) => screen.draw(frame, area, theme),
            Self::Failed(screen) => screen.draw(frame, area, theme),
        }
    }
}

/// Whether a screen that was left asked the same question.
pub fn same_question(left: &Screen, asked: &Screen) -> bool {
    match (left, asked) {
        (Screen::Rows(left), Screen::Rows(asked)) => left.same_tables(asked),
        (Screen::Tables(left), Screen::Tables(asked)) => left.tables == asked.tables,
        (Screen::Files(_), Screen::Files(_)) | (Screen::Use(_), Screen::Use(_)) => true,
        (Screen::Moment(left), Screen::Moment(asked)) => left.moments == asked.moments,
        (Screen::Time(left), Screen::Time(asked)) => left.question == asked.question,
        (Screen::Choice(left), Screen::Choice(asked)) => left.title == asked.title && left.choices == asked.choices,
        _ => false,
    }
}

/// Words of an error for a line: what happened and the first thing to do.
pub fn in_a_line(error: &Error) -> String {
    match error.hints.first() {
        Some(hint) => format!("{}. {hint}", error.message),
        None => error.message.clone(),
    }
}
