//! The plain questions: a time, one of a few, the columns of a key; and the refusal, which is an answer too.

use std::collections::BTreeSet;

use chrono::{DateTime, Local, Utc};
use crossterm::event::{KeyCode, KeyEvent};
use ratatui::Frame;
use ratatui::layout::{Position, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};
use tui_input::Input;
use tui_input::backend::crossterm::EventHandler as _;
use unicode_width::UnicodeWidthStr;

use super::{Command, in_a_line};
use crate::postgres::name::Name;
use crate::recovery::flows::{Choice, Question, Refusal, rows};
use crate::recovery::record::{Fact, Incident};
use crate::text::clean;
use crate::ui::keymap::Action;
use crate::ui::table::{self, Cell, Column, Cursor, Focus, Mark, Row, Table};
use crate::ui::theme::Theme;
use crate::ui::wrap;

/// Title and reason of a question, wrapped; returns the room below.
pub fn draw_head(frame: &mut Frame, area: Rect, theme: Theme, title: &str, why: &str) -> Rect {
    let head = vec![Line::styled(title.to_owned(), theme.title()), Line::raw(why.to_owned()), Line::raw("")];
    let head = Paragraph::new(head).wrap(Wrap { trim: true });
    let height = u16::try_from(head.line_count(area.width)).unwrap_or(area.height).min(area.height.saturating_sub(2));
    frame.render_widget(head, Rect { height, ..area });
    Rect { y: area.y + height, height: area.height - height, ..area }
}

/// A time is typed; what is understood is echoed at once in every zone that matters.
#[derive(Debug)]
pub struct Time {
    /// Its title and reason are shown above the line.
    pub question: Question,
    /// What was typed so far.
    pub input: Input,
    /// The clock, since "2h ago" is read again at every key.
    pub now: fn() -> DateTime<Utc>,
    /// Why Enter did not take the text; gone with the next key.
    pub error: Option<String>,
}

impl Time {
    /// Takes a key into the line; Enter answers, Esc goes back.
    pub fn typed(&mut self, key: KeyEvent) -> Option<Command> {
        match key.code {
            KeyCode::Esc => return Some(Command::Back),
            KeyCode::Enter => match rows::parse_incident(self.input.value(), (self.now)()) {
                Ok(fact) => return Some(Command::Answer(fact)),
                Err(error) => self.error = Some(in_a_line(&error)),
            },
            _ => {
                self.error = None;
                self.input.handle_event(&crossterm::event::Event::Key(key));
            }
        }
        None
    }

    /// Draws the line, and below it the time as it is understood.
    pub fn draw(&self, frame: &mut Frame, area: Rect, theme: Theme) {
        let below = draw_head(frame, area, theme, &self.question.title, &self.question.why);
        let prompt = "Incident time: ";
        let mut lines = vec![
            Line::from(vec![Span::styled(prompt, theme.key()), Span::raw(clean(self.input.value()).into_owned())]),
            Line::raw(""),
        ];
        match (&self.error, rows::parse_incident(self.input.value(), (self.now)())) {
            (Some(error), _) => lines.push(Line::styled(error.clone(), theme.bad())),
            (None, Ok(Fact::Incident(Incident::At(instant)))) => {
                let local = instant.with_timezone(&Local);
                lines.push(Line::raw(format!("  your zone  {}", local.format("%a %Y-%m-%d %H:%M:%S %:z"))));
                lines.push(Line::raw(format!("  UTC        {}", instant.format("%a %Y-%m-%d %H:%M:%S"))));
                let ago = ((self.now)() - instant).to_std().unwrap_or_default();
                lines.push(Line::raw(format!("  that is    {} ago", crate::text::duration(ago))));
            }
            (None, Ok(_)) => {
                lines.push(Line::styled("Empty: nobody knows when. Points will not be ranked.", theme.quiet()));
            }
            (None, Err(_)) => lines.push(Line::styled("not a time yet", theme.quiet())),
        }
        lines.push(Line::raw(""));
        lines.push(Line::styled("Enter goes on, Esc goes back.", theme.quiet()));
        frame.render_widget(Paragraph::new(lines), below);
        let column = u16::try_from(prompt.width() + self.input.visual_cursor()).unwrap_or(0);
        frame.set_cursor_position(Position { x: (below.x + column).min(below.right().saturating_sub(1)), y: below.y });
    }
}

/// The path of a new folder is typed; an empty line is the proposed one.
#[derive(Debug)]
pub struct Folder {
    /// Its title and reason are shown above the line.
    pub question: Question,
    /// What an empty line means.
    pub proposed: String,
    /// What was typed so far.
    pub input: Input,
    /// Why Enter did not take the text; gone with the next key.
    pub error: Option<String>,
}

impl Folder {
    /// Takes a key into the line; Enter answers, Esc goes back.
    pub fn typed(&mut self, key: KeyEvent) -> Option<Command> {
        match key.code {
            KeyCode::Esc => return Some(Command::Back),
            KeyCode::Enter => {
                let typed = self.input.value().trim();
                let folder = if typed.is_empty() { &self.proposed } else { typed };
                if folder.starts_with('/') {
                    return Some(Command::Answer(Fact::Folder(folder.to_owned())));
                }
                self.error = Some("give the whole path: it begins with /".into());
            }
            _ => {
                self.error = None;
                self.input.handle_event(&crossterm::event::Event::Key(key));
            }
        }
        None
    }

    /// Draws the line.
    pub fn draw(&self, frame: &mut Frame, area: Rect, theme: Theme) {
        let below = draw_head(frame, area, theme, &self.question.title, &self.question.why);
        let prompt = "New folder: ";
        let mut lines = vec![
            Line::from(vec![Span::styled(prompt, theme.key()), Span::raw(clean(self.input.value()).into_owned())]),
            Line::raw(""),
        ];
        lines.extend(self.error.iter().map(|error| Line::styled(error.clone(), theme.bad())));
        lines.push(Line::styled("Enter goes on, Esc goes back.", theme.quiet()));
        frame.render_widget(Paragraph::new(lines), below);
        let column = u16::try_from(prompt.width() + self.input.visual_cursor()).unwrap_or(0);
        frame.set_cursor_position(Position { x: (below.x + column).min(below.right().saturating_sub(1)), y: below.y });
    }
}

/// One of a few choices, each with what it leads to.
#[derive(Debug)]
pub struct One {
    /// The question's.
    pub title: String,
    /// The question's.
    pub why: String,
    /// In the flow's order; those that are unavailable are shown too.
    pub choices: Vec<Choice>,
    /// A place in `choices`.
    pub selected: usize,
}

impl One {
    /// Selects the recommended choice, or else the first.
    pub fn new(title: String, why: String, choices: Vec<Choice>) -> Self {
        let selected = choices.iter().position(|choice| choice.recommended).unwrap_or(0);
        Self { title, why, choices, selected }
    }

    /// Moves, answers, or says why a choice is not available.
    pub fn act(&mut self, action: Action) -> Option<Command> {
        match action {
            Action::Up => self.selected = self.selected.saturating_sub(1),
            Action::Down => self.selected = (self.selected + 1).min(self.choices.len().saturating_sub(1)),
            Action::Top => self.selected = 0,
            Action::Bottom => self.selected = self.choices.len().saturating_sub(1),
            Action::Enter => {
                let choice = self.choices.get(self.selected)?;
                return Some(match &choice.unavailable {
                    Some(why) => Command::Notice(format!("cannot be chosen: {why}")),
                    None => Command::Answer(choice.fact.clone()),
                });
            }
            Action::Back => return Some(Command::Back),
            _ => {}
        }
        None
    }

    /// Draws every choice with its consequences, the selected one always on screen.
    pub fn draw(&self, frame: &mut Frame, area: Rect, theme: Theme) {
        let below = draw_head(frame, area, theme, &clean(&self.title), &self.why);
        let told: Vec<Vec<Line>> = (0..self.choices.len()).map(|at| self.lines(at, below.width, theme)).collect();
        let height = usize::from(below.height);
        // Blank lines between them are for where there is room.
        let spaced = told.iter().map(|lines| lines.len() + 1).sum::<usize>() <= height + 1;
        let (mut lines, mut end_of_selected) = (Vec::new(), 0);
        for (at, choice) in told.into_iter().enumerate() {
            lines.extend(choice);
            if at == self.selected {
                end_of_selected = lines.len();
            }
            lines.extend(spaced.then(|| Line::raw("")));
        }
        let scroll = u16::try_from(end_of_selected.saturating_sub(height)).unwrap_or(0);
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).scroll((scroll, 0)), below);
    }

    /// A choice with its consequences.
    fn lines(&self, at: usize, width: u16, theme: Theme) -> Vec<Line<'static>> {
        let (choice, selected) = (&self.choices[at], at == self.selected);
        let pointer = if selected { "> " } else { "  " };
        let mut title = vec![
            Span::raw(pointer),
            Span::styled(
                clean(&choice.label).into_owned(),
                if choice.unavailable.is_some() { theme.quiet() } else { theme.title() },
            ),
        ];
        if choice.recommended {
            title.push(Span::styled("  (recommended)", theme.good()));
        }
        if let Some(why) = &choice.unavailable {
            title.push(Span::styled(format!("  ({})", clean(why)), theme.quiet()));
        }
        let line = Line::from(title);
        let mut lines = wrap::wrapped(&if selected { line.style(theme.selected()) } else { line }, width);
        for consequence in &choice.consequences {
            let style = if choice.unavailable.is_some() { theme.quiet() } else { theme.text() };
            lines.extend(wrap::indented(consequence, style, 4, width));
        }
        lines
    }
}

/// The columns that pair the rows of a table without a key.
#[derive(Debug)]
pub struct KeyColumns {
    /// The question's.
    pub title: String,
    /// The question's.
    pub why: String,
    /// The one that the key is for.
    pub table: Name,
    /// Those that may be named.
    pub columns: Vec<String>,
    /// Places in `columns`; none answers that there is no key.
    pub marked: BTreeSet<usize>,
    /// Its rows are `columns`.
    pub cursor: Cursor,
}

impl KeyColumns {
    /// Moves, marks, or answers with the marked columns in their order in the table.
    pub fn act(&mut self, action: Action) -> Option<Command> {
        match action {
            Action::Mark => {
                if !self.marked.remove(&self.cursor.selected) {
                    self.marked.insert(self.cursor.selected);
                }
            }
            Action::Enter => {
                let columns = self.marked.iter().filter_map(|at| self.columns.get(*at).cloned()).collect();
                return Some(Command::Answer(rows::named_keys(self.table.clone(), columns)));
            }
            Action::Back => return Some(Command::Back),
            _ => {
                self.cursor.act(action, self.columns.len());
            }
        }
        None
    }

    /// Draws the columns with their marks.
    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let below = draw_head(frame, area, theme, &self.title, &self.why);
        let row = |at: usize| Row {
            mark: if self.marked.contains(&at) { Mark::On } else { Mark::Off },
            cells: vec![Cell::from(clean(&self.columns[at]))],
        };
        let table = Table {
            title: Line::default(),
            position: None,
            columns: &[Column::left("column", 10, 63, 0)],
            len: self.columns.len(),
            row: &row,
            empty: "This table has no columns.",
            focus: Focus::Here,
        };
        table::draw(frame, below, &table, &mut self.cursor, theme);
    }
}

/// The flow cannot go on.
#[derive(Debug)]
pub struct Refused {
    /// In the flow's words.
    pub refusal: Refusal,
}

impl Refused {
    /// Draws why, that nothing was changed, and what can be done.
    pub fn draw(&self, frame: &mut Frame, area: Rect, theme: Theme) {
        let mut lines = vec![
            Line::styled("This cannot go on", theme.bad()),
            Line::raw(""),
            Line::raw(self.refusal.why.clone()),
            Line::raw(""),
            Line::styled("Changed so far: nothing.", theme.title()),
            Line::raw(""),
        ];
        lines.extend(self.refusal.hints.iter().map(|hint| Line::raw(format!("- {hint}"))));
        lines.push(Line::raw("- Esc goes back to the last question."));
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
    }
}
