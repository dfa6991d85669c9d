//! The first screen: begin a recovery, or look at an earlier one.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Wrap};

use super::Command;
use crate::text::clean;
use crate::ui::keymap::Action;
use crate::ui::table::{self, Align, Cell, Column, Cursor};
use crate::ui::theme::Theme;

/// A recovery that was begun before.
#[derive(Debug, Clone)]
pub struct Earlier {
    pub id: String,
    pub what: String,
    /// Whether something was written that could be taken back.
    pub wrote: bool,
}

#[derive(Debug)]
pub struct Home {
    pub briefing: Option<String>,
    pub earlier: Vec<Earlier>,
    pub cursor: Cursor,
}

const COLUMNS: [Column; 2] = [
    Column { title: "", least: 22, most: 40, yields: 0, align: Align::Left },
    Column { title: "", least: 10, most: 140, yields: 1, align: Align::Left },
];

impl Home {
    pub fn act(&mut self, action: Action) -> Option<Command> {
        let length = self.earlier.len() + 1;
        let selected = self.cursor.selected.checked_sub(1).and_then(|at| self.earlier.get(at));
        match action {
            Action::Up => self.cursor.step(-1, length),
            Action::Down => self.cursor.step(1, length),
            Action::Top => self.cursor.selected = 0,
            Action::Bottom => self.cursor.selected = length - 1,
            Action::Enter | Action::Report => {
                return Some(match selected {
                    None => Command::Start,
                    Some(earlier) => Command::Report(earlier.id.clone()),
                });
            }
            Action::Undo => {
                return Some(match selected {
                    Some(earlier) if earlier.wrote => Command::Undo(earlier.id.clone()),
                    Some(_) => Command::Notice("this recovery wrote nothing that could be taken back".into()),
                    None => Command::Notice("select an earlier recovery first".into()),
                });
            }
            _ => {}
        }
        None
    }

    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: &Theme) {
        let mut top = Vec::new();
        if let Some(briefing) = &self.briefing {
            top.push(Line::styled("What you are told", theme.title()));
            top.extend(briefing.lines().map(|line| Line::raw(clean(line).into_owned())));
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
        table::draw(frame, below, theme, &COLUMNS, &mut self.cursor, self.earlier.len() + 1, |at| {
            let cells = match at.checked_sub(1).and_then(|at| self.earlier.get(at)) {
                None => vec![
                    Cell::new("Begin a recovery").style(theme.title()),
                    Cell::new("choose a recovery point, see what differs, bring rows back"),
                ],
                Some(earlier) => vec![Cell::new(clean(&earlier.id)), Cell::new(clean(&earlier.what))],
            };
            (String::new(), cells)
        });
    }
}
