//! The tables of the chosen dump beside production, to mark the damaged ones.

use std::collections::BTreeSet;

use crossterm::event::KeyEvent;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Wrap};

use super::Command;
use super::question::draw_head;
use crate::postgres::diff::Drift;
use crate::postgres::name::Name;
use crate::postgres::schema::OnDelete;
use crate::recovery::record::{Fact, State, TableState};
use crate::text::{self, clean};
use crate::ui::filter::FilterLine;
use crate::ui::keymap::Action;
use crate::ui::table::{self, Cell, Column, Cursor, Focus, Mark, Row, Table};
use crate::ui::theme::Theme;

/// Tables to mark the damaged ones in.
#[derive(Debug)]
pub struct Tables {
    /// The question's.
    pub title: String,
    /// The question's.
    pub why: String,
    /// By name.
    pub tables: Vec<TableState>,
    /// In the order in which they were marked.
    pub marked: Vec<Name>,
    /// Matches names.
    pub filter: FilterLine,
    /// Its rows are those that the filter lets through.
    pub cursor: Cursor,
}

fn columns() -> [Column; 6] {
    [
        Column::left("table", 25, 60, 0),
        Column::left("definition", 10, 10, 1),
        Column::right("backup rows", 11, 13, 0),
        Column::right("live rows", 9, 13, 0),
        Column::right("in dump", 8, 9, 2),
        Column::right("columns", 7, 7, 3),
    ]
}

impl Tables {
    /// Puts those that production has no more first, and all in the order of their names; none is marked.
    pub fn new(title: String, why: String, mut tables: Vec<TableState>) -> Self {
        let order = |table: &TableState| (table.state() != State::Dropped, table.backup.name.clone());
        tables.sort_by_cached_key(order);
        Self { title, why, tables, marked: Vec::new(), filter: FilterLine::default(), cursor: Cursor::default() }
    }

    fn shown(&self) -> Vec<usize> {
        self.filter.matching(self.tables.iter().map(|table| table.backup.name.to_string()))
    }

    /// Tables that refer to the marked ones and are not marked; a DELETE may have taken their rows along.
    fn related(&self) -> BTreeSet<Name> {
        let mut found: BTreeSet<Name> = BTreeSet::new();
        let mut left: Vec<&Name> = self.marked.iter().collect();
        while let Some(name) = left.pop() {
            let Some(table) = self.tables.iter().find(|table| table.backup.name == *name) else { continue };
            for key in table.live.iter().flat_map(|live| &live.children) {
                let takes_along = matches!(key.on_delete, OnDelete::Cascade | OnDelete::SetNull | OnDelete::SetDefault);
                if takes_along && !self.marked.contains(&key.child) && found.insert(key.child.clone()) {
                    left.push(&key.child);
                }
            }
        }
        found.retain(|name| self.tables.iter().any(|table| table.backup.name == *name));
        found
    }

    /// Takes a key into the filter line.
    pub fn typed(&mut self, key: KeyEvent) -> Option<Command> {
        self.filter.typed(key);
        self.cursor = Cursor::default();
        None
    }

    /// Filters, moves, marks, or answers with the marked tables.
    pub fn act(&mut self, action: Action) -> Option<Command> {
        let shown = self.shown();
        match action {
            Action::Filter => self.filter.open(),
            Action::Mark => {
                let name = self.tables[*shown.get(self.cursor.selected)?].backup.name.clone();
                if self.marked.contains(&name) {
                    self.marked.retain(|marked| *marked != name);
                } else {
                    self.marked.push(name);
                }
                self.cursor.move_by(1, shown.len());
            }
            Action::MarkRelated => {
                let related = self.related();
                if related.is_empty() {
                    return Some(Command::Notice("no unmarked table loses rows with the marked ones".into()));
                }
                self.marked.extend(related);
            }
            Action::Enter if self.marked.is_empty() => {
                return Some(Command::Notice("mark the damaged tables with Space first".into()));
            }
            Action::Enter => return Some(Command::Answer(Fact::Tables(self.marked.clone()))),
            Action::Back if self.filter.clear() => {}
            Action::Back => return Some(Command::Back),
            _ => {
                self.cursor.act(action, shown.len());
            }
        }
        None
    }

    /// Draws the tables, and below them what is known of the selected one.
    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let mut below = draw_head(frame, area, theme, &self.title, &self.why);
        let shown = self.shown();
        let detail =
            shown.get(self.cursor.selected).map(|at| self.details(&self.tables[*at], theme)).unwrap_or_default();
        let detail = Paragraph::new(detail).wrap(Wrap { trim: false });
        let height = u16::try_from(detail.line_count(below.width)).unwrap_or(6).clamp(1, (below.height / 2).max(1));
        let (list, foot) = (below.height.saturating_sub(height + 1), height);
        frame.render_widget(
            detail,
            Rect { y: below.y + list + 1, height: foot.min(below.height.saturating_sub(list + 1)), ..below },
        );
        below.height = list;
        if self.filter.typing() || !self.filter.text().is_empty() {
            let line = format!("filter: {}   {} of {}", clean(self.filter.text()), shown.len(), self.tables.len());
            frame.render_widget(
                Paragraph::new(Line::styled(line, theme.key())),
                Rect { height: 1.min(below.height), ..below },
            );
            below.y += 1.min(below.height);
            below.height = below.height.saturating_sub(1);
        }
        let (tables, marked) = (&self.tables, &self.marked);
        let row = |at: usize| {
            let table = &tables[shown[at]];
            let mark = if marked.contains(&table.backup.name) { Mark::On } else { Mark::Off };
            Row { mark, cells: cells(table, theme) }
        };
        let list = Table {
            title: Line::default(),
            position: None,
            columns: &columns(),
            len: shown.len(),
            row: &row,
            empty: "No table matches the filter. Esc shows all.",
            focus: Focus::Here,
        };
        table::draw(frame, below, &list, &mut self.cursor, theme);
    }

    fn details(&self, table: &TableState, theme: Theme) -> Vec<Line<'static>> {
        let mut lines = vec![Line::styled(clean(&table.backup.name.to_string()).into_owned(), theme.title())];
        if let Some(live) = &table.live {
            let key = live.keys.first().map_or_else(|| "none: you will be asked".into(), |key| key.columns.join(", "));
            lines.push(Line::raw(format!("key: {}", clean(&key))));
            let parents: Vec<_> =
                live.parents.iter().map(|key| format!("{} ({})", key.parent, key.child_columns.join(", "))).collect();
            if !parents.is_empty() {
                lines.push(Line::raw(format!("refers to: {}", clean(&parents.join("; ")))));
            }
            let children: Vec<_> =
                live.children.iter().map(|key| format!("{} ({})", key.child, on_delete(key.on_delete))).collect();
            if !children.is_empty() {
                lines.push(Line::raw(format!("referred to by: {}", clean(&children.join("; ")))));
            }
        } else {
            lines.push(Line::styled("not in production any more", theme.bad()));
        }
        let drift: Vec<_> = table
            .pairs
            .iter()
            .filter_map(|pair| match pair.drift {
                Drift::Same | Drift::Generated => None,
                Drift::Retyped => Some(format!(
                    "{}: {} became {}",
                    pair.column,
                    pair.backup_type.as_deref().unwrap_or("?"),
                    pair.live_type.as_deref().unwrap_or("?")
                )),
                Drift::OnlyInBackup => Some(format!("{}: dropped since", pair.column)),
                Drift::OnlyInLive => Some(format!("{}: added since", pair.column)),
            })
            .collect();
        if !drift.is_empty() {
            lines.push(Line::styled(format!("drift: {}", clean(&drift.join("; "))), theme.changed()));
        }
        let related = self.related();
        if !related.is_empty() {
            let names: Vec<_> = related.iter().map(ToString::to_string).collect();
            lines.push(Line::styled(
                format!("A DELETE takes rows of {} along: a marks them too.", clean(&names.join(", "))),
                theme.bad(),
            ));
        }
        lines
    }
}

fn on_delete(rule: OnDelete) -> &'static str {
    match rule {
        OnDelete::NoAction => "a DELETE is refused at commit",
        OnDelete::Restrict => "a DELETE is refused",
        OnDelete::Cascade => "a DELETE takes them along",
        OnDelete::SetNull => "a DELETE sets them to NULL",
        OnDelete::SetDefault => "a DELETE sets them to the default",
    }
}

fn cells(table: &TableState, theme: Theme) -> Vec<Cell> {
    let (word, style) = match table.state() {
        State::Unchanged => ("the same", theme.text()),
        State::Drifted => ("differs", theme.changed()),
        State::Dropped => ("dropped", theme.bad()),
    };
    let backup = match table.backup_rows {
        Some(estimate) => format!("{}{}", if estimate.exact { "" } else { "~" }, text::count(estimate.rows)),
        None if table.backup.has_data => "?".into(),
        None => "-".into(),
    };
    let live = table
        .live
        .as_ref()
        .and_then(|live| live.rows_estimate)
        .map_or_else(|| "?".into(), |rows| format!("~{}", text::count(rows)));
    vec![
        Cell::from(clean(&table.backup.name.to_string())),
        Cell::new(word, style),
        Cell::from(backup),
        Cell::from(if table.live.is_some() { live } else { "-".into() }),
        Cell::from(table.backup.compressed_size.map_or_else(|| "-".into(), text::bytes)),
        Cell::from(table.backup.columns.len().to_string()),
    ]
}
