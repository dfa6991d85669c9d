//! The one list widget: columns that fit the terminal, a selection that can be seen without colour, marks, and a position.
//!
//! Invariants: a drawn row never wraps and never leaves its columns, whatever is in its cells (wide and combining
//! characters are measured, not counted); the selection is always on screen. Cells hold text that is already sanitised.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr;

use super::keymap::Action;
use super::theme::Theme;
use crate::text;

/// Blank columns between two columns.
const GAP: u16 = 2;

/// On which side of its column a cell stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// For text.
    Left,
    /// For numbers.
    Right,
}

/// One column: how wide, and how soon it is given up when the terminal is narrow.
#[derive(Debug, Clone)]
pub struct Column {
    /// Empty headers of all columns take no line.
    pub header: String,
    /// Of the header and of every cell.
    pub align: Align,
    /// In terminal columns; with less it is given up, or cut if it must stay.
    pub min: u16,
    /// In terminal columns; what is wider is cut.
    pub max: u16,
    /// 0 stays whatever happens; of the others the highest goes first, and the rightmost among equals.
    pub priority: u8,
}

impl Column {
    /// A column of text; for `priority` see [`Column::priority`].
    pub fn left(header: impl Into<String>, min: u16, max: u16, priority: u8) -> Self {
        Self { header: header.into(), align: Align::Left, min, max, priority }
    }

    /// A column of numbers.
    pub fn right(header: impl Into<String>, min: u16, max: u16, priority: u8) -> Self {
        Self { align: Align::Right, ..Self::left(header, min, max, priority) }
    }
}

/// One cell: a line of sanitised text.
#[derive(Debug, Clone, Default)]
pub struct Cell(pub Vec<Span<'static>>);

impl Cell {
    /// All of it in one style; for more than one, fill it with spans.
    pub fn new(text: impl Into<String>, style: Style) -> Self {
        Self(vec![Span::styled(text.into(), style)])
    }

    fn width(&self) -> usize {
        self.0.iter().map(|span| span.content.width()).sum()
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Style::new())
    }
}

/// What stands before a row in a list where rows can be marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// This list has no marks.
    None,
    /// Not chosen.
    Off,
    /// Chosen.
    On,
    /// Some of what this row stands for.
    Part,
    /// Not known here.
    Open,
}

impl Mark {
    fn symbol(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Off => "[ ] ",
            Self::On => "[x] ",
            Self::Part => "[-] ",
            Self::Open => "[?] ",
        }
    }
}

/// One row of a list, made when it is drawn.
#[derive(Debug, Clone)]
pub struct Row {
    /// Drawn before the first cell.
    pub mark: Mark,
    /// One for each column; missing ones are blank.
    pub cells: Vec<Cell>,
}

/// Whether keys go to this list now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Focus {
    /// The selection is drawn in full.
    Here,
    /// The selection is only hinted at.
    Elsewhere,
}

/// Where the selection and the view are; the owner of a list keeps one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor {
    /// A row number, from 0; drawing brings it back below the list's length.
    pub selected: usize,
    /// The first row on screen.
    pub top: usize,
    /// Columns (of those that may be given up) scrolled out to the left.
    pub left: usize,
    /// Rows on screen when last drawn.
    pub page: usize,
}

impl Cursor {
    /// Moves the selection by `rows`, up when negative, and stops at either end of `len` rows.
    pub fn move_by(&mut self, rows: isize, len: usize) {
        self.selected = self.selected.saturating_add_signed(rows).min(len.saturating_sub(1));
    }

    /// One screen down or up.
    pub fn move_by_pages(&mut self, pages: isize, len: usize) {
        let page = isize::try_from(self.page.max(2) - 1).unwrap_or(1);
        self.move_by(pages.saturating_mul(page), len);
    }

    /// Moves as the key says; tells whether the key was for moving.
    pub fn act(&mut self, action: Action, len: usize) -> bool {
        match action {
            Action::Up => self.move_by(-1, len),
            Action::Down => self.move_by(1, len),
            Action::PageUp => self.move_by_pages(-1, len),
            Action::PageDown => self.move_by_pages(1, len),
            Action::Top => self.selected = 0,
            Action::Bottom => self.selected = len.saturating_sub(1),
            _ => return false,
        }
        true
    }

    /// Brings the selection onto the screen.
    fn show(&mut self, len: usize, height: usize) {
        self.page = height;
        self.selected = self.selected.min(len.saturating_sub(1));
        let lowest = self.selected.saturating_sub(height.saturating_sub(1));
        self.top = self.top.clamp(lowest, self.selected.max(lowest)).min(len.saturating_sub(height));
    }

    /// `12/4,832`
    pub fn position(&self, len: usize) -> String {
        if len == 0 {
            return "0".into();
        }
        format!("{}/{}", text::count(self.selected as u64 + 1), text::count(len as u64))
    }
}

/// A list to draw. `row` is asked only for rows on screen, so a list may be as long as it likes.
pub struct Table<'a> {
    /// Drawn above the headers with the position at its right; no line at all when empty.
    pub title: Line<'a>,
    /// Instead of the cursor's own position, for a list that is a window of a longer one.
    pub position: Option<String>,
    /// In their order on screen.
    pub columns: &'a [Column],
    /// How many rows there are, on screen or not.
    pub len: usize,
    /// Makes the row of that number, from 0 and less than `len`.
    pub row: &'a dyn Fn(usize) -> Row,
    /// Said when there is no row.
    pub empty: &'a str,
    /// Where the keys go now.
    pub focus: Focus,
}

/// Which columns are drawn, and how wide: `(index, width)`. `natural`: the widest cell of each column on screen.
///
/// Columns are given up by priority until the minimal widths fit; what is left over goes to the columns in order of
/// priority, up to their natural width.
pub fn layout(columns: &[Column], natural: &[u16], left: usize, width: u16) -> Vec<(usize, u16)> {
    let wish = |index: usize| {
        let natural = natural.get(index).copied().unwrap_or(0);
        natural.min(columns[index].max).max(columns[index].min)
    };
    let least = |index: usize| columns[index].min.min(wish(index));
    let mut scrolled = left;
    let mut shown: Vec<usize> = (0..columns.len())
        .filter(|index| {
            let gone = columns[*index].priority > 0 && scrolled > 0;
            scrolled -= usize::from(gone);
            !gone
        })
        .collect();
    let needed = |shown: &[usize]| -> u16 {
        let gaps = GAP.saturating_mul(u16::try_from(shown.len().saturating_sub(1)).unwrap_or(u16::MAX));
        shown.iter().fold(gaps, |sum, index| sum.saturating_add(least(*index)))
    };
    while needed(&shown) > width {
        let Some(position) = (0..shown.len())
            .filter(|position| columns[shown[*position]].priority > 0)
            .max_by_key(|position| columns[shown[*position]].priority)
        else {
            break;
        };
        shown.remove(position);
    }
    let mut spare = width.saturating_sub(needed(&shown));
    let mut widths: Vec<(usize, u16)> = shown.iter().map(|index| (*index, least(*index))).collect();
    let mut order: Vec<usize> = (0..widths.len()).collect();
    order.sort_by_key(|position| columns[widths[*position].0].priority);
    for position in order {
        let (index, given) = widths[position];
        let more = wish(index).saturating_sub(given).min(spare);
        widths[position].1 += more;
        spare -= more;
    }
    // Even the columns that stay do not fit: the last of them give way.
    let mut room = width;
    for (position, (_, width)) in widths.iter_mut().enumerate() {
        room = room.saturating_sub(if position == 0 { 0 } else { GAP });
        *width = (*width).min(room);
        room -= *width;
    }
    widths.retain(|(_, width)| *width > 0);
    widths
}

/// Draws the list into `area` and keeps the selection on screen.
pub fn draw(frame: &mut Frame, area: Rect, table: &Table, cursor: &mut Cursor, theme: Theme) {
    let mut lines = area.rows().collect::<Vec<_>>().into_iter();
    let position = table.position.clone().unwrap_or_else(|| cursor.position(table.len));
    if table.title.width() > 0
        && let Some(line) = lines.next()
    {
        draw_title(frame, line, table, &position, theme);
    }
    if table.len == 0 {
        if let Some(line) = lines.next() {
            frame.render_widget(Line::styled(text::fit(table.empty, line.width.into()), theme.quiet()), line);
        }
        return;
    }
    let has_headers = table.columns.iter().any(|column| !column.header.is_empty());
    let header = if has_headers && lines.len() > 1 { lines.next() } else { None };
    cursor.show(table.len, lines.len());
    let rows: Vec<Row> = (cursor.top..table.len).take(lines.len()).map(table.row).collect();
    let marks = rows.iter().map(|row| row.mark.symbol().len()).max().unwrap_or(0);
    let before = u16::try_from(marks + 2).unwrap_or(u16::MAX);
    let natural: Vec<u16> = (0..table.columns.len())
        .map(|index| {
            let cells = rows.iter().filter_map(|row| row.cells.get(index)).map(Cell::width);
            let widest = cells.max().unwrap_or(0).max(table.columns[index].header.width());
            u16::try_from(widest).unwrap_or(u16::MAX)
        })
        .collect();
    let most = table.columns.iter().filter(|column| column.priority > 0).count().saturating_sub(1);
    cursor.left = cursor.left.min(most);
    let widths = layout(table.columns, &natural, cursor.left, area.width.saturating_sub(before));
    if let Some(line) = header {
        let mut spans = vec![Span::raw(" ".repeat(before.into()))];
        for (position, (index, width)) in widths.iter().enumerate() {
            let column = &table.columns[*index];
            push_cell(&mut spans, position, &Cell::from(column.header.as_str()), column.align, *width);
        }
        frame.render_widget(Line::from(spans).style(theme.quiet()), line);
    }
    for (index, (row, line)) in rows.iter().zip(lines).enumerate() {
        let selected = cursor.top + index == cursor.selected;
        let marker = match (selected, table.focus) {
            (true, Focus::Here) => theme.symbols().selected,
            (true, Focus::Elsewhere) => theme.symbols().selected_elsewhere,
            (false, _) => " ",
        };
        let mut spans = vec![Span::raw(format!("{marker} {:marks$}", row.mark.symbol()))];
        for (position, (index, width)) in widths.iter().enumerate() {
            let empty = Cell::default();
            let cell = row.cells.get(*index).unwrap_or(&empty);
            push_cell(&mut spans, position, cell, table.columns[*index].align, *width);
        }
        let style = if selected && table.focus == Focus::Here { theme.selected() } else { Style::new() };
        frame.render_widget(Line::from(spans), line);
        frame.buffer_mut().set_style(line, style);
    }
}

fn draw_title(frame: &mut Frame, line: Rect, table: &Table, position: &str, theme: Theme) {
    let position_width = u16::try_from(position.width()).unwrap_or(u16::MAX);
    let room = line.width.saturating_sub(position_width + 2);
    let title = fit(&table.title.spans, room.into());
    frame.render_widget(Line::from(title), line);
    if table.len > 0 && position_width < line.width {
        let right = Rect { x: line.right() - position_width, width: position_width, ..line };
        frame.render_widget(Line::styled(position, theme.quiet()), right);
    }
}

fn push_cell(spans: &mut Vec<Span<'static>>, position: usize, cell: &Cell, align: Align, width: u16) {
    if position > 0 {
        spans.push(Span::raw(" ".repeat(GAP.into())));
    }
    let fitted = fit(&cell.0, width.into());
    let used: usize = fitted.iter().map(|span| span.content.width()).sum();
    let pad = Span::raw(" ".repeat(usize::from(width).saturating_sub(used)));
    match align {
        Align::Left => {
            spans.extend(fitted);
            spans.push(pad);
        }
        Align::Right => {
            spans.push(pad);
            spans.extend(fitted);
        }
    }
}

/// Cuts a line of several styles to a number of terminal columns, ending in `…` when something was cut.
pub fn fit(spans: &[Span], columns: usize) -> Vec<Span<'static>> {
    debug_assert!(
        spans.iter().all(|span| !span.content.chars().any(char::is_control)),
        "text from outside is sanitised before it is drawn"
    );
    let whole: usize = spans.iter().map(|span| span.content.width()).sum();
    let mut room = columns;
    let mut rest = whole;
    let mut fitted = Vec::with_capacity(spans.len());
    for span in spans {
        let width = span.content.width();
        rest -= width;
        // A span may use the last column only when nothing follows it.
        let cut = if width < room || (width == room && rest == 0) {
            span.content.to_string()
        } else {
            let mut cut = text::fit(&span.content, room).into_owned();
            if width == room && room > 0 {
                cut = text::fit(&format!("{cut}…"), room).into_owned();
            }
            fitted.push(Span::styled(cut, span.style));
            break;
        };
        room -= width;
        fitted.push(Span::styled(cut, span.style));
    }
    fitted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_yield_by_priority_and_the_first_ones_get_what_is_left() {
        let columns = [Column::left("name", 6, 20, 0), Column::right("size", 6, 10, 2), Column::left("host", 6, 10, 1)];
        assert_eq!(layout(&columns, &[10, 6, 6], 0, 40), [(0, 10), (1, 6), (2, 6)]);
        assert_eq!(layout(&columns, &[10, 6, 6], 0, 15), [(0, 7), (2, 6)]);
        assert_eq!(layout(&columns, &[10, 6, 6], 0, 8), [(0, 8)]);
        assert_eq!(layout(&columns, &[10, 6, 6], 1, 40), [(0, 10), (2, 6)]);
    }

    #[test]
    fn wide_characters_are_measured_and_what_is_cut_shows() {
        let width = |spans: &[Span]| spans.iter().map(|span| span.content.width()).sum::<usize>();
        assert_eq!(width(&fit(&[Span::raw("東京"), Span::raw("都庁")], 8)), 8);
        let cut = fit(&[Span::raw("東京"), Span::raw("都庁")], 6);
        assert!(width(&cut) <= 6 && cut.iter().any(|span| span.content.contains('…')), "{cut:?}");
    }

    #[test]
    fn the_selection_stays_on_screen() {
        let mut cursor = Cursor::default();
        cursor.move_by(25, 30);
        cursor.show(30, 10);
        assert_eq!((cursor.selected, cursor.top), (25, 16));
        cursor.move_by(-100, 30);
        cursor.show(30, 10);
        assert_eq!((cursor.selected, cursor.top), (0, 0));
    }
}
