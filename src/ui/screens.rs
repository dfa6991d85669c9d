//! The screens: plain structs that draw what a flow returned and hand back what the operator did. None of them decides.

pub mod done;
pub mod home;
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
use crate::postgres::diff::Filter;
use crate::recovery::plan::Confirmed;
use crate::recovery::record::Fact;

/// What a screen asks the console to do.
#[derive(Debug)]
pub enum Command {
    /// Begin a recovery.
    Start,
    /// Begin the undo of an earlier recovery.
    Undo(String),
    /// Show the report of an earlier recovery.
    Report(String),
    Answer(Fact),
    Back,
    /// Fetch rows of the diff of the `table`-th table after a row number.
    Page {
        table: usize,
        filter: Filter,
        after: i64,
        limit: u32,
    },
    Count {
        table: usize,
        filter: Filter,
    },
    Run(Box<Confirmed>),
    /// Compare again with production as it is now.
    Refresh,
    Retry,
    Home,
    Copy(String),
    /// A line for the operator that goes away with the next key.
    Notice(String),
}

#[derive(Debug)]
pub enum Screen {
    Home(home::Home),
    Time(question::Time),
    Choice(question::One),
    Key(question::KeyColumns),
    Refused(question::Refused),
    Points(points::Points),
    Tables(tables::Tables),
    Rows(Box<rows::RowsScreen>),
    Plan(plan::Review),
    Waiting(run::Waiting),
    Running(run::Running),
    Done(done::Done),
    Failed(run::Failed),
}

impl Screen {
    pub fn place(&self) -> Place {
        match self {
            Self::Home(_) => Place::Home,
            Self::Time(_) => Place::Time,
            Self::Choice(_) => Place::Choice,
            Self::Key(_) => Place::Key,
            Self::Refused(_) => Place::Refused,
            Self::Points(_) => Place::Points,
            Self::Tables(_) => Place::Tables,
            Self::Rows(screen) => screen.place(),
            Self::Plan(_) => Place::Plan,
            Self::Waiting(_) => Place::Waiting,
            Self::Running(_) => Place::Running,
            Self::Done(_) => Place::Done,
            Self::Failed(_) => Place::Failed,
        }
    }

    /// Whether keys are text now.
    pub fn wants_text(&self) -> bool {
        match self {
            Self::Time(_) => true,
            Self::Points(screen) => screen.filter.typing(),
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

    pub fn typed(&mut self, key: KeyEvent) -> Option<Command> {
        match self {
            Self::Time(screen) => screen.typed(key),
            Self::Points(screen) => screen.typed(key),
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

    pub fn act(&mut self, action: Action) -> Option<Command> {
        match self {
            Self::Home(screen) => screen.act(action),
            Self::Time(_) | Self::Refused(_) => (action == Action::Back).then_some(Command::Back),
            Self::Choice(screen) => screen.act(action),
            Self::Key(screen) => screen.act(action),
            Self::Points(screen) => screen.act(action),
            Self::Tables(screen) => screen.act(action),
            Self::Rows(screen) => screen.act(action),
            Self::Plan(screen) => screen.act(action),
            Self::Waiting(_) | Self::Running(_) => None,
            Self::Done(screen) => screen.act(action),
            Self::Failed(screen) => screen.act(action),
        }
    }

    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        match self {
            Self::Home(screen) => screen.draw(frame, area, theme),
            Self::Time(screen) => screen.draw(frame, area, theme),
            Self::Choice(screen) => screen.draw(frame, area, theme),
            Self::Key(screen) => screen.draw(frame, area, theme),
            Self::Refused(screen) => screen.draw(frame, area, theme),
            Self::Points(screen) => screen.draw(frame, area, theme),
            Self::Tables(screen) => screen.draw(frame, area, theme),
            Self::Rows(screen) => screen.draw(frame, area, theme),
            Self::Plan(screen) => screen.draw(frame, area, theme),
            Self::Waiting(screen) => screen.draw(frame, area, theme),
            Self::Running(screen) => screen.draw(frame, area, theme),
            Self::Done(screen) => screen.draw(frame, area, theme),
            Self::Failed(screen) => screen.draw(frame, area, theme),
        }
    }
}

/// Words of an error for a line: what happened and the first thing to do.
pub fn in_a_line(error: &Error) -> String {
    match error.hints.first() {
        Some(hint) => format!("{}. {hint}", error.message),
        None => error.message.clone(),
    }
}
