//! The first screen: begin a recovery, or look at an earlier one.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Wrap};

use super::Command;
use crate::recovery::run::Standing;
use crate::text::clean;
use crate::ui::keymap::Action;
use crate::ui::table::{self, Cell, Column, Cursor, Focus, Mark, Row, Table};
use crate::ui::theme::Theme;

/// A recovery that was begun before.
#[derive(Debug, Clone)]
pub struct Earlier {
    /// The recovery's id.
    pub id: String,
    /// Where it stands, and what it has changed.
    pub standing: Standing,
}

/// The first line begins a recovery; each other one is an earlier recovery.
#[derive(Debug)]
pub struct Home {
    /// What the operator of a drill is told; it takes the place of the greeting.
    pub briefing: Option<String>,
    /// Those that were left in the middle or are under way come first; newest first among their kind.
    pub earlier: Vec<Earlier>,
    /// Counts the line that begins a recovery as 0.
    pub cursor: Cursor,
}

impl Home {
    /// Begins, shows a report or begins an undo, by what is selected.
    pub fn act(&mut self, action: Action) -> Option<Command> {
        let length = self.earlier.len() + 1;
        let selected = self.cursor.selected.checked_sub(1).and_then(|at| self.earlier.get(at));
        match action {
            Action::Clean => return Some(Command::Clean),
            Action::Report => {
                return Some(match selected {
                    None => Command::Notice("select an earlier recovery first".into()),
                    Some(earlier) => Command::Report(earlier.id.clone()),
                });
            }
            Action::Enter => {
                return Some(match selected {
                    None => Command::Start,
                    Some(earlier) if matches!(earlier.standing, Standing::Left { .. } | Standing::UnderWay { .. }) => {
                        Command::GoOn(earlier.id.clone())
                    }
                    Some(earlier) => Command::Report(earlier.id.clone()),
                });
            }
            Action::Undo => {
                return Some(match selected {
                    Some(Earlier { id, standing: Standing::Ended { changed } }) if changed != "nothing" => {
                        Command::Undo(id.clone())
                    }
                    Some(Earlier { standing: Standing::Left { .. }, .. }) => {
                        Command::Notice("it was left in the middle: Enter settles it first".into())
                    }
                    Some(_) => Command::Notice("this recovery wrote nothing that could be taken back".into()),
                    None => Command::Notice("select an earlier recovery first".into()),
                });
            }
            _ => {
                self.cursor.act(action, length);
            }
        }
        None
    }

    /// Draws the briefing or the greeting, then the list.
    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let mut top = Vec::new();
        if let Some(briefing) = &self.briefing {
            top.push(Line::styled("What you are told", theme.title()));
            top.extend(briefing.lines().map(|line| Line::raw(clean(line).into_owned())));
            top.push(Line::raw(""));
        } else if self.earlier.iter().any(|earlier| matches!(earlier.standing, Standing::Left { .. })) {
            top.push(Line::styled("A recovery was left in the middle: its process is gone.", theme.bad()));
            top.push(Line::raw(
                "Enter on it asks production what was committed. If it was, the plan goes on from there and is proved; if it \
                 was not, what was staged is removed.",
            ));
            top.push(Line::raw(""));
        } else if self.earlier.iter().any(|earlier| matches!(earlier.standing, Standing::UnderWay { .. })) {
            top.push(Line::styled("A recovery is under way.", theme.title()));
            top.push(Line::raw("Enter on it looks on: it is as it was left, or has gone on since."));
            top.push(Line::raw(""));
        } else {
            top.push(Line::styled("Something is lost? Begin a recovery.", theme.title()));
            top.push(Line::raw("Nothing is changed before you have seen exactly what, and typed its name."));
            top.push(Line::raw(""));
        }
        let top = Paragraph::new(top).wrap(Wrap { trim: true });
        let height =
            u16::try_from(top.line_count(area.width)).unwrap_or(area.height).min(area.height.saturating_sub(3));
        frame.render_widget(top, Rect { height, ..area });
        let below = Rect { y: area.y + height, height: area.height - height, ..area };
        let row = |at: usize| {
            let cells = match at.checked_sub(1).and_then(|at| self.earlier.get(at)) {
                None => vec![
                    Cell::new("Begin a recovery", theme.title()),
                    Cell::from("see what differs from a backup, and bring it back"),
                ],
                Some(earlier) => {
                    let told = earlier.standing.told();
                    let style = match earlier.standing {
                        Standing::Left { .. } => theme.bad(),
                        Standing::UnderWay { .. } => theme.title(),
                        Standing::Ended { .. } | Standing::Unreadable { .. } => theme.text(),
                    };
                    vec![Cell::from(clean(&earlier.id)), Cell::new(clean(&told).into_owned(), style)]
                }
            };
            Row { mark: Mark::None, cells }
        };
        let table = Table {
            title: Line::default(),
            position: None,
            columns: &[Column::left("", 16, 40, 0), Column::left("", 10, 140, 1)],
            len: self.earlier.len() + 1,
            row: &row,
            empty: "",
            focus: Focus::Here,
        };
        table::draw(frame, below, &table, &mut self.cursor, theme);
    }
}
