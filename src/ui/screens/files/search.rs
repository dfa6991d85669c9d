//! The search through a whole snapshot, or through all of them, as it is typed.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::{Told, draw_wait, draw_words, kind_name, minute};
use crate::files::EntryKind;
use crate::files::catalog::{Found, Hits, QUERY_HELP};
use crate::progress::Report;
use crate::recovery::worker::FilesAsked;
use crate::text::{self, clean};
use crate::ui::filter::FilterLine;
use crate::ui::screens::in_a_line;
use crate::ui::table::{self, Cell, Column, Cursor, Focus, Mark, Row, Table};
use crate::ui::theme::Theme;

/// What is typed and what was found.
#[derive(Debug, Default)]
pub(super) struct SearchView {
    pub line: FilterLine,
    /// Through every snapshot, or only the one that is browsed.
    pub everywhere: bool,
    /// With the snapshots that hold them when every one is searched.
    pub hits: Told<(Hits, Vec<String>)>,
    pub cursor: Cursor,
}

impl SearchView {
    /// What is to be asked; `None`: nothing, or it was told.
    pub fn wanted(&self, point: &str) -> Option<FilesAsked> {
        let typed = self.line.text();
        if self.hits.is_some() || typed.trim().is_empty() {
            return None;
        }
        Some(FilesAsked::Search { point: (!self.everywhere).then(|| point.to_owned()), typed: typed.to_owned() })
    }

    /// What was found counts no more.
    pub fn forget(&mut self) {
        self.hits = None;
        self.cursor = Cursor { page: self.cursor.page, ..Cursor::default() };
    }

    pub fn len(&self) -> usize {
        self.hits.as_ref().and_then(|hits| hits.as_ref().ok()).map_or(0, |(hits, _)| hits.best.len())
    }

    /// The hit under the cursor, and the snapshot that holds it when every one is searched.
    pub fn selected(&self) -> Option<(&Found, Option<&str>)> {
        let (hits, points) = self.hits.as_ref()?.as_ref().ok()?;
        let at = self.cursor.selected;
        Some((hits.best.get(at)?, points.get(at).map(String::as_str)))
    }

    pub fn draw(
        &mut self,
        frame: &mut Frame,
        area: Rect,
        theme: Theme,
        (common, report): (&str, Option<&Report>),
        mark: impl Fn(&str) -> Mark,
    ) {
        let line = Line::from(vec![
            Span::styled(
                if self.everywhere { "search every snapshot: " } else { "search this snapshot: " },
                theme.key(),
            ),
            Span::raw(clean(self.line.text()).into_owned()),
            Span::styled(if self.line.typing() { "_" } else { "" }, theme.key()),
        ]);
        frame.render_widget(Paragraph::new(line), Rect { height: 1.min(area.height), ..area });
        let below = Rect { y: area.y + 1.min(area.height), height: area.height.saturating_sub(1), ..area };
        let (hits, points) = match &self.hits {
            None if self.line.text().trim().is_empty() => {
                let words = format!(
                    "Type some letters of the path; Tab searches every snapshot, or only this one. Narrower: {QUERY_HELP}"
                );
                return draw_words(frame, below, &words, theme);
            }
            None => return draw_wait(frame, below, "Searching ...", report, theme),
            Some(Err(error)) => return draw_words(frame, below, &in_a_line(error), theme),
            Some(Ok(found)) => found,
        };
        let title = format!("{} of {} match", text::count(hits.matching), text::count(hits.entries));
        let mut columns = vec![
            Column::left("name", 22, 60, 0),
            Column::left("in", 20, 140, 0),
            Column::right("size", 8, 10, 0),
            Column::left("modified (UTC)", 16, 16, 2),
            Column::left("owner", 6, 12, 3),
        ];
        if !points.is_empty() {
            columns.push(Column::left("newest in", 9, 9, 1));
        }
        let row = |at: usize| {
            let hit = &hits.best[at];
            let newest = points.get(at).map_or("", |point| point.get(..8).unwrap_or(point));
            // The name first: it is what was looked for, and a narrow column cuts the end.
            let (folder, name) = hit.path.rsplit_once('/').unwrap_or(("", &hit.path));
            let cells = vec![
                Cell::from(clean(&kind_name(name, hit.kind))),
                Cell::new(clean(&beneath(folder, common)), theme.quiet()),
                Cell::from(if hit.kind == EntryKind::File { text::bytes(hit.size) } else { String::new() }),
                Cell::from(minute(hit.modified)),
                Cell::from(clean(&hit.owner)),
                Cell::from(newest),
            ];
            Row { mark: mark(&hit.path), cells }
        };
        let table = Table {
            title: Line::styled(title, theme.quiet()),
            position: None,
            columns: &columns,
            len: hits.best.len(),
            row: &row,
            empty: "Nothing matches. Fewer letters match more; Tab searches every snapshot.",
            focus: if self.line.typing() { Focus::Elsewhere } else { Focus::Here },
        };
        table::draw(frame, below, &table, &mut self.cursor, theme);
    }
}

/// A path without what all of a snapshot have in common, which would push the names out of a narrow column.
fn beneath(path: &str, common: &str) -> String {
    let rest = path.strip_prefix(common).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match rest.filter(|_| !common.is_empty()) {
        Some(rest) => format!("...{rest}/"),
        None => format!("{path}/"),
    }
}
