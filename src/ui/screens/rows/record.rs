//! One row on the whole screen, column by column; and one value of it, whole.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span, Text};

use super::choosing::Written;
use super::listing::{backup_style, class_style, live_style};
use super::overview::{drift_note, symbol};
use super::{RowsScreen, View, value};
use crate::postgres::diff::{self, Class, Drift};
use crate::text;
use crate::ui::keymap::Action;
use crate::ui::screens::Command;
use crate::ui::table::{self, Cell, Column, Cursor, Focus, Mark, Row, Table};
use crate::ui::theme::Theme;
use crate::ui::wrap;

impl RowsScreen {
    fn record(&self) -> Option<(&diff::Row, &[String])> {
        let pager = &self.listing.as_ref()?.pager;
        Some((pager.selected_row()?, &pager.columns))
    }

    pub(super) fn act_on_record(&mut self, action: Action) -> Option<Command> {
        let len = self.record().map_or(0, |(_, names)| names.len());
        let mut cell = self.cell;
        if cell.act(action, len) {
            self.cell = cell;
            return None;
        }
        match action {
            Action::Right => self.move_record(1),
            Action::Left => self.move_record(-1),
            Action::Mark => self.mark_row(),
            Action::PickOnly => self.pick_only(),
            Action::Enter if len > 0 => {
                self.scrolled = 0;
                self.view = View::Value;
            }
            Action::Back => self.view = View::Rows,
            _ => {}
        }
        None
    }

    fn move_record(&mut self, rows: isize) {
        if let Some(listing) = &mut self.listing {
            listing.pager.move_by(rows);
        }
    }

    pub(super) fn act_on_value(&mut self, action: Action) -> Option<Command> {
        let page = u16::try_from(self.cell.page.max(2) - 1).unwrap_or(1);
        match action {
            Action::Up => self.scrolled = self.scrolled.saturating_sub(1),
            Action::Down => self.scrolled = self.scrolled.saturating_add(1),
            Action::PageUp => self.scrolled = self.scrolled.saturating_sub(page),
            Action::PageDown => self.scrolled = self.scrolled.saturating_add(page),
            Action::Top => self.scrolled = 0,
            Action::Bottom => self.scrolled = u16::MAX,
            Action::Right => self.move_record(1),
            Action::Left => self.move_record(-1),
            Action::Mark => self.mark_row(),
            Action::Back | Action::Enter => self.view = View::Record,
            _ => {}
        }
        None
    }

    /// `- missing in production`, `~ changed, last written by 774 at 14:00:03`, and whether it will be written.
    fn record_head(&self, theme: Theme) -> Line<'static> {
        let Some((row, _)) = self.record() else { return Line::default() };
        let diff = &self.diffs[self.table()];
        let what = match row.class {
            Class::Missing => "missing in production",
            Class::Changed => "changed",
            Class::Extra => "only in production",
        };
        let mut spans = vec![Span::styled(format!("{} {what}", symbol(row.class)), class_style(row.class, theme))];
        if let Some(xid) = row.xid {
            let known = diff.by_transaction.iter().find(|count| count.xid == xid);
            let at = known.and_then(|count| count.committed_at);
            let at = at.map(|at| format!(" at {}", self.zone.time(at))).unwrap_or_default();
            spans.push(Span::styled(format!("; last written by {xid}{at}"), theme.quiet()));
        }
        let listed = self.listing.as_ref().and_then(|listing| listing.filter.condition.as_deref());
        let written = self.choosing[self.table()].writes(diff, &self.counts[self.table()], row, listed);
        spans.push(match written {
            Written::Yes => Span::styled("; [x] will be written", theme.title()),
            Written::IfConditionHolds => Span::styled("; [?] will be written if the condition holds", theme.title()),
            Written::No => Span::styled("; [ ] will not be written", theme.quiet()),
        });
        Line::from(spans)
    }

    pub(super) fn draw_record(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let [title, head, lower] =
            area.layout(&Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Min(0)]));
        let position = self.row_position().unwrap_or_default();
        let listed = self.listed(theme);
        let mut spans = listed.spans;
        spans.push(Span::styled(format!(" | row {position}"), theme.title()));
        frame.render_widget(Line::from(table::fit(&spans, title.width.into())), title);
        let first = self.record_head(theme);
        frame.render_widget(Line::from(table::fit(&first.spans, head.width.into())), head);
        let Some((record, names)) = self.record() else {
            frame.render_widget(Line::styled("Reading rows...", theme.quiet()), lower);
            return;
        };
        let diff = &self.diffs[self.table()];
        // Both sides get the same share, and a long name does not push them out.
        let side = (lower.width.saturating_sub(28) / 2).max(10);
        let columns = [
            Column::left("", 1, 1, 0),
            Column::left("column", 8, 24, 0),
            Column::left("in the backup", 10, side, 0),
            Column::left("in production", 10, side, 0),
        ];
        let row = |index: usize| {
            let changed = record.class == Class::Changed && record.changed.contains(&index);
            let drift = diff.pairs.iter().any(|pair| pair.column == names[index] && pair.drift != Drift::Same);
            let (mark, backup, live) = if changed {
                ("~", backup_style(theme), live_style(theme))
            } else {
                (if drift { "!" } else { " " }, Style::new(), Style::new())
            };
            let value = |cells: &Option<Vec<Option<String>>>, style| match cells {
                Some(cells) => {
                    Cell(value::shown(cells.get(index).and_then(|cell| cell.as_deref()), side.into(), style))
                }
                None => Cell::new("no such row", theme.quiet()),
            };
            Row {
                mark: Mark::None,
                cells: vec![
                    Cell::new(mark, theme.changed()),
                    text::clean(&names[index]).into_owned().into(),
                    value(&record.backup, backup),
                    value(&record.live, live),
                ],
            }
        };
        let table = Table {
            title: Line::default(),
            position: None,
            columns: &columns,
            len: names.len(),
            row: &row,
            empty: "",
            focus: Focus::Here,
        };
        let mut cursor: Cursor = self.cell;
        table::draw(frame, lower, &table, &mut cursor, theme);
        self.cell = cursor;
    }

    pub(super) fn draw_value(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let Some((record, names)) = self.record() else { return };
        let Some(name) = names.get(self.cell.selected) else { return };
        let diff = &self.diffs[self.table()];
        let mut lines = vec![Line::styled(text::clean(name).into_owned(), theme.title())];
        lines.extend(
            diff.pairs
                .iter()
                .filter(|pair| pair.column == *name && pair.drift != Drift::Same)
                .map(|pair| Line::styled(drift_note(pair), theme.bad())),
        );
        for (side, cells) in [("in the backup", &record.backup), ("in production", &record.live)] {
            let cell = cells.as_ref().map(|cells| cells.get(self.cell.selected).and_then(|cell| cell.as_deref()));
            let about = match cell {
                None => ": no such row".into(),
                Some(None) => String::new(),
                Some(Some(value)) if value::head(value).len() < value.len() => {
                    format!(": {}, the beginning of it", value::length(value))
                }
                Some(Some(value)) => format!(": {} characters", value::length(value)),
            };
            lines.push(Line::default());
            lines.push(Line::styled(format!("{side}{about}"), theme.title()));
            match cell {
                Some(None) => lines.push(Line::from(value::shown(None, 4, Style::new()))),
                Some(Some(value)) => lines.push(Line::raw(value::printed(value::head(value)))),
                None => {}
            }
        }
        let whole = wrap::all(&lines, area.width);
        let height = usize::from(area.height);
        let most = whole.len().saturating_sub(height);
        self.scrolled = self.scrolled.min(u16::try_from(most).unwrap_or(u16::MAX));
        self.cell.page = height;
        let seen: Vec<_> = whole.into_iter().skip(self.scrolled.into()).take(height).collect();
        frame.render_widget(Text::from(seen), area);
    }
}
