//! The one table of the console: columns that give way when the terminal is narrow, a selection that shows without colour,
//! and a position in a list of any length.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr;

use super::theme::Theme;
use crate::text::fit;

/// A column: how wide it may be, and when it gives way.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub title: &'static str,
    pub least: u16,
    pub most: u16,
    /// Columns with the highest number go first when there is no room; 0 always stays.
    pub yields: u8,
    pub align: Align,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// A cell's text, which must have passed [`crate::text::clean`], and its style.
#[derive(Debug, Clone)]
pub struct Cell {
    pub text: String,
    pub style: Style,
}

impl Cell {
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), style: Style::new() }
    }

    #[must_use]
    pub fn style(mut self, style: Style) -> Self {
        self.style = style;
        self
    }
}

/// The selected row of a list and the first one on screen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor {
    pub selected: usize,
    pub top: usize,
}

impl Cursor {
    /// Moves by so many rows, stopping at both ends.
    pub fn step(&mut self, rows: isize, length: usize) {
        self.selected = self.selected.saturating_add_signed(rows).min(length.saturating_sub(1));
    }

    /// Keeps the selection on screen.
    pub fn follow(&mut self, height: usize, length: usize) {
        self.selected = self.selected.min(length.saturating_sub(1));
        if self.selected < self.top {
            self.top = self.selected;
        } else if height > 0 && self.selected >= self.top + height {
            self.top = self.selected + 1 - height;
        }
    }
}

/// Gives every column its width: at least `least`, the widest need first served in order, none when it had to yield.
pub fn layout(columns: &[Column], needs: &[u16], room: u16) -> Vec<Option<u16>> {
    let mut kept: Vec<bool> = vec![true; columns.len()];
    let least = |kept: &[bool]| -> u16 {
        columns
            .iter()
            .zip(kept)
            .filter(|(_, kept)| **kept)
            .map(|(column, _)| column.least + 2)
            .sum::<u16>()
            .saturating_sub(2)
    };
    while least(&kept) > room {
        let goes = columns
            .iter()
            .enumerate()
            .filter(|(at, column)| kept[*at] && column.yields > 0)
            .max_by_key(|(_, column)| column.yields);
        let Some((at, _)) = goes else { break };
        kept[at] = false;
    }
    let mut widths: Vec<Option<u16>> =
        columns.iter().zip(&kept).map(|(column, kept)| kept.then_some(column.least)).collect();
    let mut left = room.saturating_sub(least(&kept));
    for (at, column) in columns.iter().enumerate() {
        if let Some(width) = &mut widths[at] {
            let more = needs[at].min(column.most).saturating_sub(*width).min(left);
            *width += more;
            left -= more;
        }
    }
    widths
}

/// Draws a header and the rows that fit. `row` makes the cells of a row, called only for rows on screen; `marker` is drawn
/// before each row (two columns).
pub fn draw(
    frame: &mut Frame,
    area: Rect,
    theme: &Theme,
    columns: &[Column],
    cursor: &mut Cursor,
    length: usize,
    row: impl Fn(usize) -> (String, Vec<Cell>),
) {
    let height = usize::from(area.height.saturating_sub(1));
    cursor.follow(height, length);
    let visible: Vec<(usize, (String, Vec<Cell>))> =
        (cursor.top..length.min(cursor.top + height)).map(|at| (at, row(at))).collect();
    let needs: Vec<u16> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let cells = visible.iter().filter_map(|(_, (_, cells))| cells.get(at)).map(|cell| cell.text.width());
            u16::try_from(cells.chain([column.title.width()]).max().unwrap_or(0)).unwrap_or(u16::MAX)
        })
        .collect();
    let widths = layout(columns, &needs, area.width.saturating_sub(4));
    let mut header = vec![Span::raw("    ")];
    for (column, width) in columns.iter().zip(&widths) {
        if let Some(width) = width {
            header.push(Span::styled(pad(column.title, usize::from(*width), column.align), theme.quiet()));
            header.push(Span::raw("  "));
        }
    }
    let mut lines = vec![Line::from(header)];
    for (at, (marker, cells)) in visible {
        let selected = at == cursor.selected;
        let pointer = if selected { "> " } else { "  " };
        let mut spans = vec![Span::raw(format!("{pointer}{}", pad(&marker, 2, Align::Left)))];
        for ((column, width), cell) in columns.iter().zip(&widths).zip(cells) {
            if let Some(width) = width {
                spans.push(Span::styled(pad(&cell.text, usize::from(*width), column.align), cell.style));
                spans.push(Span::raw("  "));
            }
        }
        let line = Line::from(spans);
        lines.push(if selected { line.style(theme.selected()) } else { line });
    }
    frame.render_widget(ratatui::widgets::Paragraph::new(lines), area);
}

/// Fits a text into a number of columns exactly.
pub fn pad(text: &str, width: usize, align: Align) -> String {
    let text = fit(text, width);
    let space = " ".repeat(width.saturating_sub(text.width()));
    match align {
        Align::Left => format!("{text}{space}"),
        Align::Right => format!("{space}{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] = [
        Column { title: "name", least: 6, most: 20, yields: 0, align: Align::Left },
        Column { title: "size", least: 6, most: 10, yields: 2, align: Align::Right },
        Column { title: "host", least: 6, most: 10, yields: 1, align: Align::Left },
    ];

    #[test]
    fn columns_yield_by_priority() {
        assert_eq!(layout(&COLUMNS, &[10, 6, 6], 40), [Some(10), Some(6), Some(6)]);
        assert_eq!(layout(&COLUMNS, &[10, 6, 6], 15), [Some(7), None, Some(6)]);
        assert_eq!(layout(&COLUMNS, &[10, 6, 6], 8), [Some(8), None, None]);
    }

    #[test]
    fn wide_characters_do_not_break_the_columns() {
        assert_eq!(pad("東京都庁", 6, Align::Left).width(), 6);
        assert_eq!(pad("ab", 4, Align::Right), "  ab");
    }

    #[test]
    fn the_selection_stays_on_screen() {
        let mut cursor = Cursor::default();
        cursor.step(25, 30);
        cursor.follow(10, 30);
        assert_eq!(cursor, Cursor { selected: 25, top: 16 });
        cursor.step(-100, 30);
        cursor.follow(10, 30);
        assert_eq!(cursor, Cursor { selected: 0, top: 0 });
    }
}
