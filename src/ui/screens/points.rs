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
use crate::ui::table::{self, Align, Cell, Column, Cursor};
use crate::ui::theme::Theme;

#[derive(Debug)]
pub struct Points {
    pub title: String,
    pub why: String,
    pub ranked: Vec<RankedPoint>,
    pub incident: Option<Incident>,
    pub now: DateTime<Utc>,
    /// What lies inside, as it becomes known; or why that is not known.
    pub contents: HashMap<String, Result<Contents, String>>,
    pub filter: FilterLine,
    pub cursor: Cursor,
    /// The point after the incident that Enter was pressed on once.
    warned: Option<String>,
}

const COLUMNS: [Column; 6] = [
    Column { title: "taken", least: 16, most: 16, yields: 0, align: Align::Left },
    Column { title: "against the incident", least: 24, most: 34, yields: 0, align: Align::Left },
    Column { title: "inside", least: 20, most: 60, yields: 1, align: Align::Left },
    Column { title: "host", least: 9, most: 20, yields: 3, align: Align::Left },
    Column { title: "id", least: 8, most: 8, yields: 4, align: Align::Left },
    Column { title: "tags and paths", least: 14, most: 80, yields: 5, align: Align::Left },
];

impl Points {
    pub fn new(
        title: String,
        why: String,
        ranked: Vec<RankedPoint>,
        incident: Option<Incident>,
        now: DateTime<Utc>,
    ) -> Self {
        let selected = ranked.iter().position(|ranked| matches!(ranked.place, Place::Proposed { .. })).unwrap_or(0);
        let cursor = Cursor { selected, top: selected.saturating_sub(3) };
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

    pub fn typed(&mut self, key: KeyEvent) -> Option<Command> {
        self.filter.typed(key);
        self.cursor = Cursor::default();
        None
    }

    pub fn act(&mut self, action: Action) -> Option<Command> {
        let shown = self.shown();
        match action {
            Action::Up => self.cursor.step(-1, shown.len()),
            Action::Down => self.cursor.step(1, shown.len()),
            Action::PageUp => self.cursor.step(-10, shown.len()),
            Action::PageDown => self.cursor.step(10, shown.len()),
            Action::Top => self.cursor.selected = 0,
            Action::Bottom => self.cursor.selected = shown.len().saturating_sub(1),
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
            _ => {}
        }
        None
    }

    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: &Theme) {
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
        table::draw(frame, below, theme, &COLUMNS, &mut self.cursor, shown.len(), |at| {
            row(&ranked[shown[at]], contents, now, theme)
        });
    }

    /// The points on a line of time, oldest left, with the incident marked beneath.
    fn timeline(&self, theme: &Theme, width: usize) -> Option<Vec<Line<'static>>> {
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
                marks[at] = mark.to_owned();
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
    theme: &Theme,
) -> (String, Vec<Cell>) {
    let point = &ranked.point;
    let (marker, place) = match ranked.place {
        Place::Proposed { loss } => {
            ("O", Cell::new(format!("PROPOSED, loses {}", text::duration(loss))).style(theme.good()))
        }
        Place::Before { loss } => ("o", Cell::new(format!("before it by {}", text::duration(loss)))),
        Place::NoDump => (".", Cell::new("no database dump inside").style(theme.quiet())),
        Place::After => ("x", Cell::new("after it: holds the damage").style(theme.bad())),
        Place::Unranked => (
            "o",
            Cell::new(format!("{} ago", text::duration((now - point.instant.to_utc()).to_std().unwrap_or_default()))),
        ),
    };
    let inside = contents.get(&point.id).map_or_else(
        || Cell::new("...").style(theme.quiet()),
        |contents| {
            let cell = Cell::new(clean(&describe(contents)));
            if contents.is_err() { cell.style(theme.bad()) } else { cell }
        },
    );
    let local = point.instant.with_timezone(&Local);
    let cells = vec![
        Cell::new(local.format("%Y-%m-%d %H:%M").to_string()),
        place,
        inside,
        Cell::new(clean(&point.host)),
        Cell::new(clean(point.short())),
        Cell::new(clean(&format!("{} {}", point.tags.join(","), point.paths.join(" ")))),
    ];
    (marker.into(), cells)
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
