//! All recovery points, newest first, ranked against the incident, with what lies inside each.

use std::collections::HashMap;

use chrono::{DateTime, Local, Utc};
use crossterm::event::KeyEvent;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::Command;
use super::question::draw_head;
use crate::recovery::flows::{Place, RankedPoint};
use crate::recovery::record::{Contents, Fact, Incident};
use crate::text::{self, clean};
use crate::ui::filter::FilterLine;
use crate::ui::keymap::Action;
use crate::ui::table::{self, Cell, Column, Cursor, Focus, Mark, Row, Table};
use crate::ui::theme::Theme;

/// Recovery points to choose one from.
#[derive(Debug)]
pub struct Points {
    /// The question's.
    pub title: String,
    /// The question's.
    pub why: String,
    /// In the flow's order, newest first.
    pub ranked: Vec<RankedPoint>,
    /// Marked on the line of time; without a known one there is no such line.
    pub incident: Option<Incident>,
    /// When the question was asked; ages are told from it.
    pub now: DateTime<Utc>,
    /// What lies inside, as it becomes known; or why that is not known.
    pub contents: HashMap<String, Result<Contents, String>>,
    /// Matches all that a line shows, what lies inside too.
    pub filter: FilterLine,
    /// Its rows are those that the filter lets through.
    pub cursor: Cursor,
    /// The point after the incident that Enter was pressed on once.
    warned: Option<String>,
}

fn columns() -> [Column; 7] {
    [
        Column::left("", 1, 1, 0),
        Column::left("taken", 16, 16, 0),
        Column::left("against the incident", 24, 34, 0),
        Column::left("inside", 20, 60, 1),
        Column::left("host", 9, 20, 3),
        Column::left("id", 8, 8, 4),
        Column::left("tags and paths", 14, 80, 5),
    ]
}

impl Points {
    /// Selects the proposed point, or else the newest one that may hold a dump; what lies inside of others is not known yet.
    pub fn new(
        title: String,
        why: String,
        ranked: Vec<RankedPoint>,
        incident: Option<Incident>,
        now: DateTime<Utc>,
    ) -> Self {
        // Where nothing is proposed, the newest one that can be used.
        let proposed = ranked.iter().position(|ranked| matches!(ranked.place, Place::Proposed { .. }));
        let usable = || ranked.iter().position(|ranked| !matches!(ranked.place, Place::NoDump));
        let selected = proposed.or_else(usable).unwrap_or(0);
        let cursor = Cursor { selected, top: selected.saturating_sub(3), ..Cursor::default() };
        Self {
            title,
            why,
            ranked,
            incident,
            now,
            contents: HashMap::new(),
            filter: FilterLine::default(),
            cursor,
            warned: None,
        }
    }

    /// The points that are on screen and not yet looked into, in order.
    pub fn unknown(&self) -> Option<String> {
        let shown = self.shown();
        let near = shown.iter().skip(self.cursor.top).chain(shown.iter());
        near.map(|at| &self.ranked[*at].point.id).find(|id| !self.contents.contains_key(*id)).cloned()
    }

    fn shown(&self) -> Vec<usize> {
        self.filter.matching(self.ranked.iter().map(|ranked| {
            let point = &ranked.point;
            let inside = self.contents.get(&point.id).map(describe).unwrap_or_default();
            format!(
                "{} {} {} {} {} {inside}",
                point.id,
                point.instant.format("%Y-%m-%d %H:%M"),
                point.host,
                point.tags.join(" "),
                point.paths.join(" ")
            )
        }))
    }

    /// Takes a key into the filter line.
    pub fn typed(&mut self, key: KeyEvent) -> Option<Command> {
        self.filter.typed(key);
        self.cursor = Cursor::default();
        None
    }

    /// Filters, moves, or answers; a point after the incident takes Enter twice.
    pub fn act(&mut self, action: Action) -> Option<Command> {
        let shown = self.shown();
        match action {
            Action::Filter => self.filter.open(),
            Action::Back if self.filter.clear() => {}
            Action::Back => return Some(Command::Back),
            Action::Enter => {
                let ranked = &self.ranked[*shown.get(self.cursor.selected)?];
                let id = ranked.point.id.clone();
                if ranked.place == Place::After && self.warned.as_ref() != Some(&id) {
                    self.warned = Some(id);
                    return Some(Command::Notice("this point was taken after the incident and holds the damage; Enter again uses it all the same".into()));
                }
                return Some(Command::Answer(Fact::Point(id)));
            }
            _ => {
                self.cursor.act(action, shown.len());
            }
        }
        None
    }

    /// Draws the question, the line of time and the points.
    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let mut below = draw_head(frame, area, theme, &self.title, &self.why);
        if let Some(bar) = self.timeline(theme, usize::from(below.width)) {
            frame.render_widget(Paragraph::new(bar), Rect { height: 2.min(below.height), ..below });
            below.y += 3.min(below.height);
            below.height = below.height.saturating_sub(3);
        }
        let shown = self.shown();
        if self.filter.typing() || !self.filter.text().is_empty() {
            let line = format!("filter: {}   {} of {}", clean(self.filter.text()), shown.len(), self.ranked.len());
            frame.render_widget(
                Paragraph::new(Line::styled(line, theme.key())),
                Rect { height: 1.min(below.height), ..below },
            );
            below.y += 1.min(below.height);
            below.height = below.height.saturating_sub(1);
        }
        let (ranked, contents, now) = (&self.ranked, &self.contents, self.now);
        let row = |at: usize| row(&ranked[shown[at]], contents, now, theme);
        let table = Table {
            title: Line::default(),
            position: None,
            columns: &columns(),
            len: shown.len(),
            row: &row,
            empty: "No recovery point matches the filter. Esc shows all.",
            focus: Focus::Here,
        };
        table::draw(frame, below, &table, &mut self.cursor, theme);
    }

    /// The points on a line of time, oldest left, with the incident marked beneath.
    fn timeline(&self, theme: Theme, width: usize) -> Option<Vec<Line<'static>>> {
        let Some(Incident::At(incident)) = self.incident else { return None };
        let oldest = self.ranked.iter().map(|ranked| ranked.point.instant.to_utc()).min()?.min(incident);
        let span = (self.now - oldest).num_seconds().max(1);
        let room = width.saturating_sub(2).max(10);
        let column = |instant: DateTime<Utc>| {
            let share = (instant - oldest).num_seconds().clamp(0, span);
            usize::try_from(share * i64::try_from(room - 1).unwrap_or(1) / span).unwrap_or(0)
        };
        let mut marks = vec![theme.rule().to_owned(); room];
        for ranked in &self.ranked {
            let mark = match ranked.place {
                Place::Proposed { .. } => "O",
                Place::Before { .. } | Place::Unranked => "o",
                Place::NoDump => ".",
                Place::After => "x",
            };
            let at = column(ranked.point.instant.to_utc());
            if marks[at] != "O" {
                mark.clone_into(&mut marks[at]);
            }
        }
        let at = column(incident);
        let local = incident.with_timezone(&Local);
        let label = format!("^ incident {}", local.format("%a %H:%M"));
        let pad = if at + label.len() <= room { at } else { room.saturating_sub(label.len()) };
        let label =
            if pad < at { format!("{}^", label.replacen('^', "", 1).trim_start().to_owned() + " ") } else { label };
        let pad = if label.ends_with('^') { (at + 1).saturating_sub(label.len()) } else { pad };
        Some(vec![
            Line::raw(marks.concat()),
            Line::from(Span::styled(format!("{}{label}", " ".repeat(pad)), theme.live())),
        ])
    }
}

fn row(
    ranked: &RankedPoint,
    contents: &HashMap<String, Result<Contents, String>>,
    now: DateTime<Utc>,
    theme: Theme,
) -> Row {
    let point = &ranked.point;
    let (marker, place) = match ranked.place {
        Place::Proposed { loss } => ("O", Cell::new(format!("PROPOSED, loses {}", text::duration(loss)), theme.good())),
        Place::Before { loss } => ("o", Cell::from(format!("before it by {}", text::duration(loss)))),
        Place::NoDump => (".", Cell::new("no database dump inside", theme.quiet())),
        Place::After => ("x", Cell::new("after it: holds the damage", theme.bad())),
        Place::Unranked => (
            "o",
            Cell::from(format!("{} ago", text::duration((now - point.instant.to_utc()).to_std().unwrap_or_default()))),
        ),
    };
    let inside = contents.get(&point.id).map_or_else(
        || Cell::new("...", theme.quiet()),
        |contents| Cell::new(clean(&describe(contents)), if contents.is_err() { theme.bad() } else { theme.text() }),
    );
    let local = point.instant.with_timezone(&Local);
    let cells = vec![
        Cell::from(marker),
        Cell::from(local.format("%Y-%m-%d %H:%M").to_string()),
        place,
        inside,
        Cell::from(clean(&point.host)),
        Cell::from(clean(point.short())),
        Cell::from(clean(&format!("{} {}", point.tags.join(","), point.paths.join(" ")))),
    ];
    Row { mark: Mark::None, cells }
}

/// What lies inside a point, in a few words.
fn describe(contents: &Result<Contents, String>) -> String {
    let contents = match contents {
        Ok(contents) => contents,
        Err(error) => return error.clone(),
    };
    let mut parts: Vec<String> = contents
        .dumps
        .iter()
        .map(|dump| {
            let database = dump.header.database.as_deref().unwrap_or("a dump");
            match (&dump.damage, dump.tables) {
                (Some(damage), _) => format!("{database}: {damage}"),
                (None, tables) => {
                    let version = dump
                        .header
                        .server_version
                        .as_deref()
                        .and_then(|version| version.split(' ').next())
                        .unwrap_or("?");
                    format!(
                        "{database}, {}, {}, PostgreSQL {version}",
                        text::counted(tables.unwrap_or(0), "table", "tables"),
                        text::bytes(dump.size_bytes)
                    )
                }
            }
        })
        .collect();
    if contents.files > 0 {
        parts.push(format!(
            "{}{}",
            text::counted(contents.files, "file", "files"),
            if contents.complete { "" } else { " or more" }
        ));
    }
    if parts.is_empty() { "empty".into() } else { parts.join("; ") }
}
