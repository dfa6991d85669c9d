//! See the difference, choose what to write.

use crossterm::event::KeyEvent;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Wrap};

use super::Command;
use crate::error::Error;
use crate::postgres::diff::{Class, Filter, Page, TableDiff};
use crate::postgres::merge::Choice;
use crate::recovery::record::Fact;
use crate::ui::keymap::{Action, Place};
use crate::ui::theme::Theme;

#[derive(Debug)]
pub struct RowsScreen {
    diffs: Vec<TableDiff>,
}

impl RowsScreen {
    pub fn new(diffs: Vec<TableDiff>) -> Self {
        Self { diffs }
    }
    pub fn place(&self) -> Place {
        Place::Overview
    }
    pub fn wants_text(&self) -> bool {
        false
    }
    pub fn pending(&mut self) -> Option<Command> {
        None
    }
    pub fn page(&mut self, _table: usize, _filter: &Filter, _after: i64, _page: Page) {}
    pub fn count(&mut self, _table: usize, _filter: &Filter, _rows: u64) {}
    pub fn failed(&mut self, _error: Error) {}
    pub fn typed(&mut self, _key: KeyEvent) -> Option<Command> {
        None
    }
    pub fn act(&mut self, action: Action) -> Option<Command> {
        match action {
            Action::Write => Some(Command::Answer(Fact::Rows(
                self.diffs
                    .iter()
                    .map(|diff| Choice {
                        table: diff.table.clone(),
                        classes: [Class::Missing].into(),
                        columns: None,
                        transactions: None,
                        condition: None,
                        only: None,
                        except: std::collections::BTreeSet::new(),
                    })
                    .collect(),
            ))),
            Action::Back => Some(Command::Back),
            _ => None,
        }
    }
    pub fn draw(&mut self, frame: &mut Frame, area: Rect, _theme: &Theme) {
        let lines: Vec<Line> = self
            .diffs
            .iter()
            .map(|diff| Line::raw(format!("{} - {} ~ {} + {}", diff.table, diff.missing, diff.changed, diff.extra)))
            .collect();
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
    }
}
