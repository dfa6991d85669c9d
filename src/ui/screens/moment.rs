//! Which moment comes back: what can be reached, drawn as bars, and the transactions that may have done it.

use chrono::{DateTime, Local, Utc};
use crossterm::event::{KeyCode, KeyEvent};
use ratatui::Frame;
use ratatui::layout::{Position, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};
use tui_input::Input;
use tui_input::backend::crossterm::EventHandler as _;
use unicode_width::UnicodeWidthStr;

use super::question::draw_head;
use super::{Command, in_a_line};
use crate::postgres::cluster::{Reachable, Target};
use crate::postgres::waldump::Suspect;
use crate::recovery::flows::point_in_time::{WRITTEN, heaviest, parse_aim};
use crate::recovery::record::{Aim, Fact, Moments};
use crate::text::{self, clean};
use crate::ui::keymap::Action;
use crate::ui::table::{self, Cell, Column, Cursor, Focus, Mark, Row, Table};
use crate::ui::theme::Theme;

/// Windows that are drawn; the newest base backups come first.
const BARS: usize = 3;

/// Bars, suspects, and a line in which a moment can be typed.
#[derive(Debug)]
pub struct Moment {
    /// The question's.
    pub title: String,
    /// The question's.
    pub why: String,
    /// What can be reached and who may have done it.
    pub moments: Moments,
    /// As the operator knows it.
    pub incident: Option<DateTime<Utc>>,
    /// Its rows are the suspects.
    pub cursor: Cursor,
    /// What is being typed; `None`: nothing is.
    pub typing: Option<Input>,
    /// The clock, since a time without a date is read again at every key.
    pub now: fn() -> DateTime<Utc>,
    /// Why Enter did not take the text; gone with the next key.
    pub error: Option<String>,
}

fn columns() -> [Column; 6] {
    [
        Column::left("committed (UTC)", 18, 18, 0),
        Column::right("transaction", 11, 11, 0),
        Column::right("deleted", 7, 13, 0),
        Column::right("updated", 7, 13, 0),
        Column::right("dropped", 7, 9, 0),
        Column::left("tables", 12, 80, 1),
    ]
}

impl Moment {
    /// Selects the transaction after which most is gone.
    pub fn new(
        (title, why): (String, String),
        moments: Moments,
        incident: Option<DateTime<Utc>>,
        now: fn() -> DateTime<Utc>,
    ) -> Self {
        let most = heaviest(&moments).map(|most| most.lsn);
        let selected = moments.suspects.iter().position(|suspect| Some(suspect.lsn) == most).unwrap_or(0);
        let cursor = Cursor { selected, ..Cursor::default() };
        Self { title, why, moments, incident, cursor, typing: None, now, error: None }
    }

    /// Whether keys are text now.
    pub fn wants_text(&self) -> bool {
        self.typing.is_some()
    }

    /// Takes a key into the line; Enter answers, Esc closes the line.
    pub fn typed(&mut self, key: KeyEvent) -> Option<Command> {
        let input = self.typing.as_mut()?;
        match key.code {
            KeyCode::Esc => (self.typing, self.error) = (None, None),
            KeyCode::Enter => match parse_aim(input.value(), (self.now)()) {
                Ok(aim) => return Some(Command::Answer(Fact::Aim(aim))),
                Err(error) => self.error = Some(in_a_line(&error)),
            },
            _ => {
                self.error = None;
                input.handle_event(&crossterm::event::Event::Key(key));
            }
        }
        None
    }

    /// Moves, opens the line, or answers with the moment just before the selected transaction.
    pub fn act(&mut self, action: Action) -> Option<Command> {
        match action {
            Action::GoTo => self.typing = Some(Input::default()),
            Action::Enter => {
                return Some(match self.moments.suspects.get(self.cursor.selected) {
                    Some(suspect) => Command::Answer(Fact::Aim(Aim::before(suspect.xid))),
                    None => Command::Notice("no transaction is listed: type a moment with t".into()),
                });
            }
            Action::Back => return Some(Command::Back),
            _ => {
                self.cursor.act(action, self.moments.suspects.len());
            }
        }
        None
    }

    /// Draws the bars, and below them the line that is typed in or the transactions.
    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let mut below = draw_head(frame, area, theme, &self.title, &self.why);
        let mut lines = self.bars(usize::from(below.width), theme);
        lines.extend(
            self.moments
                .notes
                .iter()
                .take(2)
                .map(|note| Line::styled(format!("cannot be used: {}", clean(note)), theme.changed())),
        );
        lines.push(Line::raw(""));
        let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).min(below.height / 2);
        frame.render_widget(Paragraph::new(lines), Rect { height, ..below });
        below.y += height;
        below.height -= height;
        if let Some(input) = &self.typing {
            return self.draw_line(frame, below, theme, input);
        }
        let detail = self.moments.suspects.get(self.cursor.selected).map(details).unwrap_or_default();
        let detail = Paragraph::new(detail).wrap(Wrap { trim: false });
        let height = u16::try_from(detail.line_count(below.width)).unwrap_or(2).min(below.height / 3);
        below.height -= height;
        frame.render_widget(detail, Rect { y: below.y + below.height, height, ..below });
        let most = heaviest(&self.moments).map(|most| most.lsn);
        let suspects = &self.moments.suspects;
        let row =
            |at: usize| Row { mark: Mark::None, cells: cells(&suspects[at], most == Some(suspects[at].lsn), theme) };
        let list = Table {
            title: Line::default(),
            position: None,
            columns: &columns(),
            len: suspects.len(),
            row: &row,
            empty: "No transaction deleted, updated or dropped anything there. Type a moment with t.",
            focus: Focus::Here,
        };
        table::draw(frame, below, &list, &mut self.cursor, theme);
    }

    fn draw_line(&self, frame: &mut Frame, below: Rect, theme: Theme, input: &Input) {
        let prompt = "Moment: ";
        let mut lines = vec![
            Line::from(vec![Span::styled(prompt, theme.key()), Span::raw(clean(input.value()).into_owned())]),
            Line::raw(""),
        ];
        match (&self.error, parse_aim(input.value(), (self.now)())) {
            (Some(error), _) => lines.push(Line::styled(error.clone(), theme.bad())),
            (None, Ok(aim)) => {
                lines.push(Line::raw(format!("  {}", aim.told())));
                if let Target::Time(at) = aim.target {
                    let local = at.with_timezone(&Local);
                    lines.push(Line::raw(format!("  your zone  {}", local.format("%a %Y-%m-%d %H:%M:%S%.3f %:z"))));
                    let within = self.moments.windows.iter().any(|window| window.holds(at));
                    let (word, style) =
                        if within { ("within reach", theme.good()) } else { ("NOT within reach", theme.bad()) };
                    lines.push(Line::styled(format!("  {word}"), style));
                }
            }
            (None, Err(_)) => lines.push(Line::styled("not a moment yet", theme.quiet())),
        }
        lines.push(Line::raw(""));
        lines.push(Line::styled(format!("Write {WRITTEN}."), theme.quiet()));
        lines.push(Line::styled("Enter goes on, Esc goes back to the list.", theme.quiet()));
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), below);
        let column = u16::try_from(prompt.width() + input.visual_cursor()).unwrap_or(0);
        frame.set_cursor_position(Position { x: (below.x + column).min(below.right().saturating_sub(1)), y: below.y });
    }

    /// One bar for each window, on one scale; below them where the incident and the selected transaction are.
    fn bars(&self, width: usize, theme: Theme) -> Vec<Line<'static>> {
        let windows: Vec<&Reachable> = self.moments.windows.iter().take(BARS).collect();
        let ends = |window: &&&Reachable| Some((window.earliest?, window.latest?));
        let spans: Vec<_> = windows.iter().filter_map(|window| ends(&window)).collect();
        let first = spans.iter().map(|span| span.0).chain(self.incident).min();
        let last = spans.iter().map(|span| span.1).chain(self.incident).max();
        let (Some(first), Some(last)) = (first, last) else { return Vec::new() };
        let inner = width.saturating_sub(2).max(10);
        let place = |at: DateTime<Utc>| {
            let (whole, part) = ((last - first).num_milliseconds().max(1), (at - first).num_milliseconds().max(0));
            let cells = i64::try_from(inner - 1).unwrap_or(1);
            usize::try_from(part.saturating_mul(cells) / whole).unwrap_or(0).min(inner - 1)
        };
        let (full, empty) = theme.bar();
        let mut lines = Vec::new();
        for window in windows {
            let time = |at: Option<DateTime<Utc>>| {
                at.map_or_else(|| "?".into(), |at| at.format("%Y-%m-%d %H:%M:%S").to_string())
            };
            let gap = window.gaps.first().map_or_else(String::new, |gap| {
                format!("; then {} missing", text::counted(gap.segments, "WAL segment is", "WAL segments are"))
            });
            let told = match &window.refusal {
                Some((why, _)) => format!("\"{}\", timeline {}: {why}", window.label, window.timeline),
                None => format!(
                    "\"{}\", timeline {}: {} to {} UTC{gap}",
                    window.label,
                    window.timeline,
                    time(window.earliest),
                    time(window.latest)
                ),
            };
            lines.push(Line::raw(text::fit(&clean(&told), width).into_owned()));
            if let (None, Some((from, to))) = (&window.refusal, ends(&&window)) {
                let (from, to) = (place(from), place(to));
                lines.push(Line::from(vec![
                    Span::styled(format!(" {}", empty.repeat(from)), theme.quiet()),
                    Span::styled(full.repeat(to - from + 1), theme.good()),
                    Span::styled(empty.repeat(inner - 1 - to), theme.quiet()),
                ]));
            }
        }
        let mut marks = vec![' '; inner];
        if let Some(at) = self.incident {
            marks[place(at)] = '^';
        }
        if let Some(suspect) = self.moments.suspects.get(self.cursor.selected) {
            marks[place(suspect.at)] = '|';
        }
        let marks: String = marks.into_iter().collect();
        lines.push(Line::styled(format!(" {}", marks.trim_end()), theme.changed()));
        let incident = if self.incident.is_some() { "^ the incident time   " } else { "" };
        lines.push(Line::styled(format!(" {incident}| the selected transaction"), theme.quiet()));
        lines
    }
}

/// What a transaction did, in words.
fn details(suspect: &Suspect) -> String {
    let rows = [(suspect.deleted, "deleted"), (suspect.updated, "updated"), (suspect.inserted, "inserted")];
    let rows = rows.iter().filter(|(rows, _)| *rows > 0);
    let mut told: Vec<_> = rows.map(|(rows, what)| format!("{} {what}", text::counted(*rows, "row", "rows"))).collect();
    if suspect.dropped > 0 {
        let files = text::counted(suspect.dropped, "file", "files");
        told.push(format!("{files} of tables and indexes dropped (DROP, TRUNCATE or a rewrite)"));
    }
    let at = suspect.at.format("%Y-%m-%d %H:%M:%S%.6f UTC");
    let tables = suspect.tables.iter().map(|(table, rows)| format!("{} ({})", clean(table), text::count(*rows)));
    let tables = tables.collect::<Vec<_>>().join(", ");
    let tables = if tables.is_empty() { tables } else { format!(" In {tables}.") };
    format!("Transaction {}, {at}: {}.{tables}", suspect.xid, told.join(", "))
}

fn cells(suspect: &Suspect, most: bool, theme: Theme) -> Vec<Cell> {
    let number = |number: u64| if number == 0 { "-".into() } else { text::count(number) };
    let style = if most { theme.bad() } else { theme.text() };
    let tables = suspect.tables.iter().map(|(table, rows)| format!("{} ({})", clean(table), text::count(*rows)));
    let tables: Vec<_> = tables.collect();
    vec![
        Cell::new(suspect.at.format("%m-%d %H:%M:%S%.3f").to_string(), style),
        Cell::new(suspect.xid.to_string(), style),
        Cell::from(number(suspect.deleted)),
        Cell::from(number(suspect.updated)),
        Cell::new(number(suspect.dropped), if suspect.dropped > 0 { theme.bad() } else { theme.text() }),
        Cell::from(tables.join(", ")),
    ]
}
