//! A cluster stands at a moment: what is it for? Before that is answered it can be asked, in SQL, and its rows looked at.
//!
//! ```text
//!   choices  --s-->  line  --Tab-->  rows  --Enter-->  one row, value by value
//!                    Enter asks      Esc always goes one back
//! ```
//!
//! Keys stay with the line when rows have come, so that what is typed ahead cannot mean anything else.

use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent};
use ratatui::Frame;
use ratatui::layout::{Position, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::Paragraph;
use tui_input::Input;
use tui_input::backend::crossterm::EventHandler as _;
use unicode_width::UnicodeWidthStr as _;

use super::Command;
use super::question::One;
use super::rows::value;
use crate::error::{Error, Kind, Result};
use crate::postgres::cluster::{Answer, ROWS};
use crate::recovery::record::Cloned;
use crate::recovery::worker::Request;
use crate::text::{self, clean};
use crate::ui::keymap::{Action, Place};
use crate::ui::table::{self, Cell, Column, Cursor, Focus, Mark, Row, Table};
use crate::ui::theme::Theme;
use crate::ui::wrap;

/// The widest cell; more of a value is on the screen of its row.
const WIDEST: u16 = 40;
/// Of a column's name beside its value.
const WIDEST_NAME: usize = 24;
/// A shorter wait shows nothing.
const SHOW_AFTER: Duration = Duration::from_millis(250);
/// What everybody wants to know first.
const TABLES: &str = "SELECT oid::regclass AS \"table\", pg_size_pretty(pg_table_size(oid)) AS size FROM pg_class \
    WHERE relkind = 'r' AND oid >= 16384 ORDER BY relname";
const PROMPT: &str = "SQL> ";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    Choices,
    Line,
    Rows,
    Values,
}

/// The choices, and what was asked before choosing.
#[derive(Debug)]
pub struct Stands {
    choices: One,
    clone: Cloned,
    view: View,
    input: Input,
    /// Queries to be asked again, the newest last; those that are ready from the beginning come first.
    history: Vec<String>,
    /// Which of them is in the line; what was typed before waits in the draft.
    recalled: Option<usize>,
    draft: String,
    /// What is under way, and since when.
    asking: Option<(String, Instant)>,
    answer: Option<(String, Result<Answer>)>,
    cursor: Cursor,
    /// How far a whole row is scrolled, and lines on screen when it was last drawn.
    scrolled: u16,
    page: u16,
}

impl Stands {
    /// Nothing is asked by itself.
    pub fn new(choices: One, clone: Cloned) -> Self {
        let mut history: Vec<_> = clone.asked.iter().map(|asked| asked.query.clone()).collect();
        history.push(TABLES.into());
        Self {
            choices,
            clone,
            view: View::Choices,
            input: Input::default(),
            history,
            recalled: None,
            draft: String::new(),
            asking: None,
            answer: None,
            cursor: Cursor::default(),
            scrolled: 0,
            page: 1,
        }
    }

    /// As it was left; of another cluster only what can be asked again.
    #[must_use]
    pub fn resumed(self, asked: Self) -> Self {
        if self.clone == asked.clone && self.choices.choices == asked.choices.choices {
            return self;
        }
        Self { history: self.history, ..asked }
    }

    /// Which keys hold now.
    pub fn place(&self) -> Place {
        match self.view {
            View::Choices => Place::Use,
            View::Line if self.asking.is_some() => Place::Asking,
            View::Line => Place::Query,
            View::Rows => Place::Answer,
            View::Values => Place::Values,
        }
    }

    /// Whether keys are text now.
    pub fn wants_text(&self) -> bool {
        self.view == View::Line
    }

    /// Whether an answer is waited for.
    pub fn asking(&self) -> bool {
        self.asking.is_some()
    }

    fn rows(&self) -> &[Vec<Option<String>>] {
        match &self.answer {
            Some((_, Ok(answer))) => &answer.rows,
            _ => &[],
        }
    }

    /// Takes a key into the line. While an answer is waited for it is cancelled, and nothing else.
    pub fn typed(&mut self, key: KeyEvent) -> Option<Command> {
        if self.asking.is_some() {
            return (key.code == KeyCode::Esc).then_some(Command::Ask(Request::Cancel));
        }
        let len = self.rows().len();
        match key.code {
            KeyCode::Esc => self.view = View::Choices,
            KeyCode::Enter => return self.ask(),
            KeyCode::Up => self.recall(-1),
            KeyCode::Down => self.recall(1),
            KeyCode::PageUp => self.cursor.move_by_pages(-1, len),
            KeyCode::PageDown => self.cursor.move_by_pages(1, len),
            KeyCode::Tab if len > 0 => self.view = View::Rows,
            _ => {
                self.input.handle_event(&crossterm::event::Event::Key(key));
            }
        }
        None
    }

    fn ask(&mut self) -> Option<Command> {
        let sql = self.input.value().trim().to_owned();
        if sql.is_empty() {
            return None;
        }
        self.history.retain(|asked| *asked != sql);
        self.history.push(sql.clone());
        (self.recalled, self.answer) = (None, None);
        self.asking = Some((sql.clone(), Instant::now()));
        Some(Command::Ask(Request::Query { sql }))
    }

    /// Puts an earlier query into the line, or a later one.
    fn recall(&mut self, by: isize) {
        let last = self.history.len();
        let place = self.recalled.unwrap_or(last).saturating_add_signed(by).min(last);
        if self.recalled.is_none() {
            self.draft = self.input.value().to_owned();
        }
        self.recalled = (place < last).then_some(place);
        let text = self.recalled.map_or_else(|| self.draft.clone(), |place| self.history[place].clone());
        self.input = Input::new(text);
    }

    /// Takes the answer in; what was not taken stays in the line, to be put right.
    pub fn told(&mut self, sql: String, answer: Result<Answer>) {
        if self.asking.as_ref().is_none_or(|(asked, _)| *asked != sql) {
            return;
        }
        self.asking = None;
        if answer.is_ok() {
            self.input.reset();
        }
        self.cursor = Cursor::default();
        self.answer = Some((sql, answer));
    }

    /// Moves, answers, or looks closer.
    pub fn act(&mut self, action: Action) -> Option<Command> {
        match (self.view, action) {
            (View::Choices, Action::Query) | (View::Rows, Action::Query | Action::Back) => self.view = View::Line,
            (View::Choices, _) => return self.choices.act(action),
            (View::Rows | View::Values, Action::Copy) => {
                let row = self.rows().get(self.cursor.selected)?;
                let cells: Vec<_> = row.iter().map(|cell| cell.as_deref().unwrap_or("NULL")).collect();
                return Some(Command::Copy(cells.join("\t")));
            }
            (View::Rows, Action::Enter) => (self.view, self.scrolled) = (View::Values, 0),
            (View::Rows, Action::Left) => self.cursor.left = self.cursor.left.saturating_sub(1),
            (View::Rows, Action::Right) => self.cursor.left += 1,
            (View::Rows, _) => {
                let len = self.rows().len();
                self.cursor.act(action, len);
            }
            (View::Values, Action::Back) => self.view = View::Rows,
            (View::Values, _) => self.scroll(action),
            (View::Line, _) => {}
        }
        None
    }

    fn scroll(&mut self, action: Action) {
        let len = self.rows().len();
        self.scrolled = match action {
            Action::Up => self.scrolled.saturating_sub(1),
            Action::Down => self.scrolled.saturating_add(1),
            Action::PageUp => self.scrolled.saturating_sub(self.page),
            Action::PageDown => self.scrolled.saturating_add(self.page),
            Action::Top => 0,
            Action::Bottom => u16::MAX,
            Action::Left | Action::Right => {
                self.cursor.move_by(if action == Action::Left { -1 } else { 1 }, len);
                0
            }
            _ => self.scrolled,
        };
    }

    /// Draws the choices, or the line and what was answered.
    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        match self.view {
            View::Choices => return self.choices.draw(frame, area, theme),
            View::Values => return self.draw_values(frame, area, theme),
            View::Line | View::Rows => {}
        }
        let database = self.clone.database.as_deref().unwrap_or("postgres");
        let stands = format!("{} as it stands {}.", clean(database), clean(&self.clone.stop));
        let head = vec![
            Line::styled(text::fit(&format!("Look into {stands}"), area.width.into()).into_owned(), theme.title()),
            Line::styled("One query at a time, by a role that can only read.", theme.quiet()),
            Line::raw(""),
        ];
        let mut below = below(frame, area, head);
        self.draw_line(frame, Rect { height: 1.min(below.height), ..below }, theme);
        below.y += 2.min(below.height);
        below.height = below.height.saturating_sub(2);
        match (&self.asking, &self.answer) {
            (Some((_, since)), _) if since.elapsed() < SHOW_AFTER => {}
            (Some((_, since)), _) => {
                let told = format!("Asking, for {}. Esc cancels.", text::duration(since.elapsed()));
                frame.render_widget(Line::styled(told, theme.title()), below);
            }
            (None, None) => self.draw_ready(frame, below, theme),
            (None, Some((_, Err(error)))) => draw_error(frame, below, error, theme),
            (None, Some((sql, Ok(answer)))) => {
                let mut cursor = self.cursor;
                let focus = if self.view == View::Rows { Focus::Here } else { Focus::Elsewhere };
                draw_answer(frame, below, (sql, answer), (&mut cursor, focus), theme);
                self.cursor = cursor;
            }
        }
    }

    fn draw_line(&self, frame: &mut Frame, area: Rect, theme: Theme) {
        let room = usize::from(area.width).saturating_sub(PROMPT.width() + 1);
        let scrolled = self.input.visual_scroll(room);
        let typing = self.view == View::Line && self.asking.is_none();
        let style = if typing { theme.key() } else { theme.quiet() };
        frame.render_widget(Span::styled(PROMPT, style), area);
        let prompt = u16::try_from(PROMPT.width()).unwrap_or(0).min(area.width);
        let line = Rect { x: area.x + prompt, width: area.width - prompt, ..area };
        let typed = Paragraph::new(clean(self.input.value()).into_owned());
        frame.render_widget(typed.scroll((0, u16::try_from(scrolled).unwrap_or(0))), line);
        if typing {
            let column = u16::try_from(self.input.visual_cursor().saturating_sub(scrolled)).unwrap_or(0);
            frame.set_cursor_position(Position { x: (line.x + column).min(area.right().saturating_sub(1)), y: line.y });
        }
    }

    /// What can be asked without typing, and what the configuration's queries gave.
    fn draw_ready(&self, frame: &mut Frame, area: Rect, theme: Theme) {
        let width = usize::from(area.width);
        let mut lines = vec![Line::styled("Ready, by Up and Down:", theme.title())];
        for query in self.history.iter().rev() {
            lines.push(Line::raw(text::fit(&format!("  {}", clean(query)), width).into_owned()));
            let Some(asked) = self.clone.asked.iter().find(|asked| asked.query == *query) else { continue };
            let found = match &asked.found {
                Ok(found) => format!("gave {found}, at least {} expected", asked.at_least),
                Err(why) => clean(why).into_owned(),
            };
            let (word, style) = if asked.holds() { ("holds", theme.good()) } else { ("does NOT hold", theme.bad()) };
            lines.push(Line::styled(text::fit(&format!("    {word}: {found}"), width).into_owned(), style));
        }
        lines.push(Line::raw(""));
        let database = self.clone.database.as_deref().unwrap_or("postgres");
        let psql = format!("psql \"{} dbname={}\"", clean(&self.clone.conninfo), clean(database));
        lines.push(Line::styled("Or from another terminal, as superuser:", theme.quiet()));
        lines.extend(wrap::indented(&psql, theme.quiet(), 2, area.width));
        frame.render_widget(Text::from(lines), area);
    }

    fn draw_values(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let Some((_, Ok(answer))) = &self.answer else { return };
        let Some(row) = answer.rows.get(self.cursor.selected) else { return };
        let position = self.cursor.position(answer.rows.len());
        let mut lines = vec![Line::styled(format!("Row {position}"), theme.title())];
        lines.push(Line::default());
        let names: Vec<_> = answer.columns.iter().map(|(name, _)| clean(name)).collect();
        let widest = names.iter().map(|name| name.width()).max().unwrap_or(0).min(WIDEST_NAME);
        for (name, cell) in names.iter().zip(row) {
            let said = match cell {
                None => Line::from(value::shown(None, 4, Style::new())),
                Some(cell) => Line::raw(value::printed(value::head(cell))),
            };
            let room = usize::from(area.width).saturating_sub(widest + 2).max(1);
            let mut name = text::fit(name, widest).into_owned();
            for part in wrap::wrapped(&said, u16::try_from(room).unwrap_or(u16::MAX)) {
                let gap = " ".repeat((widest + 2).saturating_sub(name.width()));
                let before = [Span::styled(std::mem::take(&mut name), theme.key()), Span::raw(gap)];
                lines.push(before.into_iter().chain(part.spans).collect());
            }
        }
        let most = lines.len().saturating_sub(area.height.into());
        self.scrolled = self.scrolled.min(u16::try_from(most).unwrap_or(u16::MAX));
        self.page = area.height.max(2) - 1;
        let seen: Vec<_> = lines.into_iter().skip(self.scrolled.into()).take(area.height.into()).collect();
        frame.render_widget(Text::from(seen), area);
    }
}

/// Draws some lines; the room below them.
fn below(frame: &mut Frame, area: Rect, lines: Vec<Line>) -> Rect {
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).min(area.height);
    frame.render_widget(Text::from(lines), Rect { height, ..area });
    Rect { y: area.y + height, height: area.height - height, ..area }
}

fn draw_error(frame: &mut Frame, area: Rect, error: &Error, theme: Theme) {
    if error.kind == Kind::Cancelled {
        return frame.render_widget(Line::styled("Cancelled.", theme.title()), area);
    }
    let mut lines = vec![Line::styled(clean(&error.message).into_owned(), theme.bad())];
    let said = error.detail.iter().flat_map(|detail| detail.lines());
    lines.extend(said.map(|line| Line::raw(clean(line).into_owned())));
    lines.extend(error.hints.iter().map(|hint| Line::raw(clean(hint).into_owned())));
    frame.render_widget(Text::from(wrap::all(&lines, area.width)), area);
}

fn draw_answer(
    frame: &mut Frame,
    area: Rect,
    (sql, answer): (&str, &Answer),
    (cursor, focus): (&mut Cursor, Focus),
    theme: Theme,
) {
    let asked = text::fit(&clean(sql), area.width.into()).into_owned();
    let area = below(frame, area, vec![Line::styled(asked, theme.quiet())]);
    let rows = answer.rows.len() as u64;
    let mut told = match answer.cut {
        true if answer.rows.len() == ROWS => format!("the first {} rows; THERE ARE MORE", text::count(rows)),
        true => format!("the first {}; THERE ARE MORE, and they are long", text::counted(rows, "row", "rows")),
        false => text::counted(rows, "row", "rows"),
    };
    if answer.columns.len() > 1 {
        told.push_str(&format!(", {} columns", answer.columns.len()));
    }
    let style = if answer.cut { theme.bad() } else { theme.title() };
    let title =
        Line::from(vec![Span::styled(told, style), Span::styled(format!(", {}", length(answer.took)), theme.quiet())]);
    let columns: Vec<_> = answer
        .columns
        .iter()
        .map(|(name, number)| {
            let name = clean(name).into_owned();
            if *number { Column::right(name, 4, WIDEST, 1) } else { Column::left(name, 12, WIDEST, 1) }
        })
        .collect();
    let row = |at: usize| Row {
        mark: Mark::None,
        cells: answer.rows[at]
            .iter()
            .map(|cell| Cell(value::shown(cell.as_deref(), WIDEST.into(), Style::new())))
            .collect(),
    };
    let names: Vec<_> = answer.columns.iter().map(|(name, _)| clean(name)).collect();
    let empty = format!("No row has come, of the columns {}.", names.join(", "));
    let table =
        Table { title, position: None, columns: &columns, len: answer.rows.len(), row: &row, empty: &empty, focus };
    table::draw(frame, area, &table, cursor, theme);
}

/// `12 ms`, `3.4 s`, and longer ones in words.
fn length(took: Duration) -> String {
    match took.as_millis() {
        short @ 0..1000 => format!("{short} ms"),
        1000..60_000 => format!("{:.1} s", took.as_secs_f64()),
        _ => text::duration(took),
    }
}

#[cfg(test)]
mod tests {
    use crossterm::event::{KeyEvent, KeyModifiers};

    use super::*;

    fn stands() -> Stands {
        let clone = serde_json::json!({
            "folder": "/c", "stop": "just before transaction 774", "set_aside": [], "conninfo": "host=/c", "database": "shop",
            "proof": { "log": "", "replay_lsn": "0/1", "last_transaction": null, "paused": true, "system": 7 }, "tables": 1,
            "asked": [{ "query": "SELECT 1", "at_least": 1, "found": { "Ok": 1 } }],
        });
        let one = One::new("It stands.".into(), String::new(), Vec::new());
        let mut stands = Stands::new(one, serde_json::from_value(clone).unwrap());
        stands.act(Action::Query);
        stands
    }

    fn press(stands: &mut Stands, code: KeyCode) -> Option<Command> {
        stands.typed(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn earlier_queries_are_recalled_and_what_was_being_typed_waits() {
        let mut stands = stands();
        press(&mut stands, KeyCode::Char('x'));
        for (code, expected) in [
            (KeyCode::Up, TABLES),
            (KeyCode::Up, "SELECT 1"),
            (KeyCode::Up, "SELECT 1"),
            (KeyCode::Down, TABLES),
            (KeyCode::Down, "x"),
            (KeyCode::Down, "x"),
        ] {
            press(&mut stands, code);
            assert_eq!(stands.input.value(), expected);
        }
    }

    #[test]
    fn what_is_typed_while_an_answer_is_waited_for_does_nothing_and_a_late_answer_is_not_taken() {
        let mut stands = stands();
        press(&mut stands, KeyCode::Char('x'));
        assert!(matches!(press(&mut stands, KeyCode::Enter), Some(Command::Ask(Request::Query { sql })) if sql == "x"));
        assert!(press(&mut stands, KeyCode::Enter).is_none() && press(&mut stands, KeyCode::Char('q')).is_none());
        assert!(matches!(press(&mut stands, KeyCode::Esc), Some(Command::Ask(Request::Cancel))));
        stands.told("y".into(), Err(Error::cancelled()));
        assert!(stands.asking());
        stands.told("x".into(), Err(Error::cancelled()));
        // To be put right, or asked again.
        assert!(!stands.asking() && stands.input.value() == "x" && stands.place() == Place::Query);
    }
}
