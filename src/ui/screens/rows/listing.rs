//! The differing rows, one per line: a window of pages over however many there are.

use std::collections::HashSet;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::choosing::Written;
use super::overview::symbol;
use super::pager::Pager;
use super::{Aim, Notice, RowsScreen, View, value};
use crate::postgres::diff::{self, Class, Filter, TableDiff};
use crate::text;
use crate::ui::keymap::Action;
use crate::ui::screens::Command;
use crate::ui::table::{self, Cell, Column, Cursor, Focus, Mark, Row, Table};
use crate::ui::theme::Theme;

/// The widest cell; more of a value is in the record view.
const WIDEST: u16 = 40;

/// The rows of one table that match a filter.
#[derive(Debug)]
pub struct Listing {
    pub table: usize,
    pub filter: Filter,
    pub pager: Pager,
    /// Where the view is; its selection follows the pager's.
    pub cursor: Cursor,
}

impl Listing {
    pub fn new(table: usize, filter: Filter) -> Self {
        Self { table, filter, pager: Pager::default(), cursor: Cursor::default() }
    }

    /// Starts again with another filter.
    pub fn show(&mut self, filter: Filter) {
        *self = Self::new(self.table, filter);
    }
}

impl RowsScreen {
    pub(super) fn act_on_rows(&mut self, action: Action) -> Option<Command> {
        let table = self.table();
        let Some(listing) = &mut self.listing else {
            self.view = View::Overview;
            return None;
        };
        let diff = &self.diffs[table];
        let page = isize::try_from(listing.cursor.page.max(2) - 1).unwrap_or(1);
        match action {
            Action::Up => listing.pager.move_by(-1),
            Action::Down => listing.pager.move_by(1),
            Action::PageUp => listing.pager.move_by(-page),
            Action::PageDown => listing.pager.move_by(page),
            Action::Top => listing.pager.go_to_start(),
            Action::Bottom => listing.pager.go_to_end(diff.missing + diff.changed + diff.extra),
            Action::Left => listing.cursor.left = listing.cursor.left.saturating_sub(1),
            Action::Right => listing.cursor.left += 1,
            Action::Mark => self.mark_row(),
            Action::PickOnly => self.pick_only(),
            Action::Enter if listing.pager.selected_row().is_some() => {
                self.view = View::Record;
                self.cell = Cursor::default();
            }
            Action::Filter => return self.ask_condition(Aim::Listing),
            Action::FilterClass => {
                let class = next_class(diff, listing.filter.class);
                listing.show(Filter { class, ..listing.filter.clone() });
            }
            Action::FilterColumn => {
                let column = next_column(diff, listing.filter.column.as_deref());
                listing.show(Filter { column, ..listing.filter.clone() });
            }
            Action::FilterTransaction => {
                let transaction = match listing.filter.transaction {
                    Some(_) => None,
                    None => listing.pager.selected_row().and_then(|row| row.xid),
                };
                if transaction == listing.filter.transaction {
                    self.notice =
                        Some(Notice::Hint("A missing row has no transaction: who deleted it is not recorded.".into()));
                } else {
                    listing.show(Filter { transaction, ..listing.filter.clone() });
                }
            }
            Action::FilterNone => listing.show(Filter::default()),
            Action::Back => {
                self.listing = None;
                self.view = View::Overview;
            }
            _ => {}
        }
        None
    }

    /// `12/4,832`, as far as it is known.
    pub(super) fn row_position(&self) -> Option<String> {
        let listing = self.listing.as_ref()?;
        let total = self.counts[listing.table].get(&self.diffs[listing.table], &listing.filter);
        let known = |number: Option<u64>| number.map_or_else(|| "?".into(), text::count);
        Some(format!("{}/{}", known(listing.pager.place(total).map(|place| place + 1)), known(total)))
    }

    /// What is listed: table, class, column, transaction, condition.
    pub(super) fn listed(&self, theme: Theme) -> Line<'static> {
        let Some(listing) = &self.listing else { return Line::default() };
        let diff = &self.diffs[listing.table];
        let filter = &listing.filter;
        let mut spans = vec![Span::styled(text::clean(&diff.table.to_string()).into_owned(), theme.title())];
        let mut part = |text: String| spans.push(Span::styled(format!(" | {text}"), theme.key()));
        match filter.class {
            None => part("all differing rows".into()),
            Some(Class::Missing) => part("- missing in production".into()),
            Some(Class::Changed) => part("~ changed".into()),
            Some(Class::Extra) => part("+ only in production".into()),
        }
        if let Some(xid) = filter.transaction {
            part(format!("by transaction {xid}"));
        }
        if let Some(column) = &filter.column {
            part(format!("{} differs", text::clean(column)));
        }
        if let Some(condition) = &filter.condition {
            part(format!("where {}", text::clean(condition)));
        }
        Line::from(spans)
    }

    pub(super) fn draw_rows(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let title = self.listed(theme);
        let position = self.row_position();
        let Some(mut listing) = self.listing.take() else { return };
        let [upper, legend] = area.layout(&Layout::vertical([Constraint::Min(0), Constraint::Length(1)]));
        let diff = &self.diffs[listing.table];
        let (choosing, counts) = (&self.choosing[listing.table], &self.counts[listing.table]);
        let names = &listing.pager.columns;
        let order = column_order(diff, &listing.filter, names);
        let columns = columns(diff, &order, names);
        let row = |index: usize| {
            let row = &listing.pager.rows[index];
            let mut cells = vec![
                Cell::new(text::count(row.number.unsigned_abs()), theme.quiet()),
                Cell::new(symbol(row.class), class_style(row.class, theme)),
            ];
            cells.extend(order.iter().map(|column| Cell(cell(diff, row, names, *column, theme))));
            let mark = match choosing.writes(diff, counts, row, listing.filter.condition.as_deref()) {
                Written::No => Mark::Off,
                Written::Yes => Mark::On,
                Written::IfConditionHolds => Mark::Open,
            };
            Row { mark, cells }
        };
        let empty = if listing.pager.is_empty() {
            "No row matches. x shows all differing rows again, Esc goes back."
        } else if self.stalled {
            "The rows could not be read. Any key tries again."
        } else {
            "Reading rows..."
        };
        let table = Table {
            title,
            position,
            columns: &columns,
            len: listing.pager.rows.len(),
            row: &row,
            empty,
            focus: Focus::Here,
        };
        let mut cursor = Cursor { selected: listing.pager.selected, ..listing.cursor };
        table::draw(frame, upper, &table, &mut cursor, theme);
        listing.cursor = cursor;
        self.listing = Some(listing);
        let arrow = theme.symbols().becomes;
        frame.render_widget(
            Line::from(vec![
                Span::styled(
                    match &choosing.condition {
                        Some(_) => "[x] written  [?] if the condition holds   ",
                        None => "[x] will be written   cells: ",
                    },
                    theme.quiet(),
                ),
                Span::styled("in production", live_style(theme)),
                Span::styled(format!(" {arrow} "), theme.quiet()),
                Span::styled("in the backup", backup_style(theme)),
            ]),
            legend,
        );
    }
}

pub(super) fn class_style(class: Class, theme: Theme) -> Style {
    match class {
        Class::Missing => theme.missing(),
        Class::Changed => theme.changed(),
        Class::Extra => theme.extra(),
    }
}

/// The value that is there now and would go.
pub(super) fn live_style(theme: Theme) -> Style {
    theme.quiet()
}

/// The value that would come back: also told apart without colour.
pub(super) fn backup_style(theme: Theme) -> Style {
    theme.changed().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
}

/// Key columns, then those that differ in what is listed, then the rest as the table has them.
fn column_order(diff: &TableDiff, filter: &Filter, names: &[String]) -> Vec<usize> {
    let place = |name: &String| names.iter().position(|known| known == name);
    let keys = diff.key.iter().flat_map(|key| &key.columns).filter_map(place);
    let theirs = filter.transaction.and_then(|xid| diff.by_transaction.iter().find(|count| count.xid == xid));
    let theirs = theirs.iter().flat_map(|count| &count.columns).filter_map(place);
    let asked = filter.column.iter().filter_map(place);
    let differing = diff.by_column.iter().filter_map(|count| place(&count.column));
    let mut seen = HashSet::new();
    keys.chain(asked).chain(theirs).chain(differing).chain(0..names.len()).filter(|index| seen.insert(*index)).collect()
}

fn columns(diff: &TableDiff, order: &[usize], names: &[String]) -> Vec<Column> {
    let mut columns = vec![Column::right("row", 3, 11, 0), Column::left("", 1, 1, 0)];
    for index in order {
        let name = &names[*index];
        let header = text::clean(name).into_owned();
        let is_key = diff.key.as_ref().is_some_and(|key| key.columns.contains(name));
        columns.push(if is_key { Column::left(header, 4, 24, 0) } else { Column::left(header, 12, WIDEST, 1) });
    }
    columns
}

/// One cell: the one value there is, or `in production ⇒ in the backup` where they differ. Of a changed row only its key
/// and what differs is shown.
fn cell(diff: &TableDiff, row: &diff::Row, names: &[String], column: usize, theme: Theme) -> Vec<Span<'static>> {
    let room = usize::from(WIDEST);
    match row.class {
        Class::Missing => shown(row.backup.as_deref(), column, room, Style::new()),
        Class::Extra => shown(row.live.as_deref(), column, room, Style::new()),
        Class::Changed if row.changed.contains(&column) => {
            let half = room / 2 - 2;
            let mut spans = shown(row.live.as_deref(), column, half, live_style(theme));
            spans.push(Span::raw(format!(" {} ", theme.symbols().becomes)));
            spans.extend(shown(row.backup.as_deref(), column, half, backup_style(theme)));
            spans
        }
        Class::Changed if diff.key.as_ref().is_some_and(|key| key.columns.contains(&names[column])) => {
            shown(row.live.as_deref(), column, room, Style::new())
        }
        Class::Changed => Vec::new(),
    }
}

fn shown(side: Option<&[Option<String>]>, column: usize, room: usize, style: Style) -> Vec<Span<'static>> {
    match side.and_then(|cells| cells.get(column)) {
        Some(value) => value::shown(value.as_deref(), room, style),
        None => Vec::new(),
    }
}

fn next_class(diff: &TableDiff, now: Option<Class>) -> Option<Class> {
    let classes = [(Class::Missing, diff.missing), (Class::Changed, diff.changed), (Class::Extra, diff.extra)];
    let there = classes.into_iter().filter(|(_, rows)| *rows > 0).map(|(class, _)| class);
    there.into_iter().find(|class| now.is_none_or(|now| *class > now))
}

fn next_column(diff: &TableDiff, now: Option<&str>) -> Option<String> {
    let place = now.and_then(|now| diff.by_column.iter().position(|count| count.column == now));
    let next = if now.is_none() { 0 } else { place.map_or(usize::MAX, |place| place + 1) };
    diff.by_column.get(next).map(|count| count.column.clone())
}
