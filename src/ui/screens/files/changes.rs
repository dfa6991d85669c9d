//! What became of a folder and everything beneath it since the snapshot: the folders that were hit hardest, since when, and
//! the files that are gone, changed or new.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::Line;

use super::{Told, draw_wait, draw_words};
use crate::files::history::{Change, Side, Story};
use crate::progress::Report;
use crate::text::{self, clean};
use crate::ui::keymap::Action;
use crate::ui::screens::in_a_line;
use crate::ui::table::{self, Cell, Column, Cursor, Focus, Mark, Row, Table};
use crate::ui::theme::Theme;

/// Which of the two lists keys go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pane {
    Folders,
    Files,
}

/// The story of a folder, and where the operator is in it.
#[derive(Debug)]
pub(super) struct ChangesView {
    /// From the root of the snapshot.
    pub path: String,
    /// With what it is compared.
    pub against: Side,
    pub told: Told<Story>,
    pane: Pane,
    folders: Cursor,
    files: Cursor,
}

impl ChangesView {
    pub fn of(path: String, against: Side) -> Self {
        let (folders, files) = Default::default();
        Self { path, against, told: None, pane: Pane::Folders, folders, files }
    }

    fn story(&self) -> Option<&Story> {
        self.told.as_ref()?.as_ref().ok()
    }

    /// Whether the list of files has the cursor.
    pub fn in_files(&self) -> bool {
        self.pane == Pane::Files
    }

    pub fn act(&mut self, action: Action) {
        let (folders, files) = self.story().map_or((0, 0), |story| (story.worst.len(), story.files.len()));
        match (action, self.pane) {
            (Action::NextPane | Action::PreviousPane, Pane::Folders) => self.pane = Pane::Files,
            (Action::NextPane | Action::PreviousPane, Pane::Files) => self.pane = Pane::Folders,
            (_, Pane::Folders) => _ = self.folders.act(action, folders),
            (_, Pane::Files) => _ = self.files.act(action, files),
        }
    }

    /// The path under the cursor, when the snapshot holds it.
    pub fn selected(&self) -> Option<String> {
        let story = self.story()?;
        match self.pane {
            Pane::Folders => story.worst.get(self.folders.selected).map(|worst| worst.path.clone()),
            Pane::Files => {
                let file = story.files.get(self.files.selected)?;
                (file.change != Change::New).then(|| file.path.clone())
            }
        }
    }

    pub fn draw(
        &mut self,
        frame: &mut Frame,
        area: Rect,
        theme: Theme,
        (report, against): (Option<&Report>, &str),
        mark: impl Fn(&str) -> Mark,
    ) {
        let story = match &self.told {
            None => return draw_wait(frame, area, "Comparing ...", report, theme),
            Some(Err(error)) => return draw_words(frame, area, &in_a_line(error), theme),
            Some(Ok(story)) => story,
        };
        let total = &story.total;
        let head = format!(
            "{} gone, {} changed, {} new, {} the same{}; against {against}",
            text::count(total.gone),
            text::count(total.changed),
            text::count(total.new),
            text::count(total.same),
            if story.complete { "" } else { "; NOT ALL could be read" }
        );
        let rows = u16::try_from(story.worst.len()).unwrap_or(u16::MAX).saturating_add(3).min(area.height / 2);
        let [line, above, below] =
            Layout::vertical([Constraint::Length(1), Constraint::Length(rows), Constraint::Fill(1)]).areas(area);
        frame.render_widget(Line::styled(head, theme.title()), line);
        let focus = |pane| if self.pane == pane { Focus::Here } else { Focus::Elsewhere };
        let (in_folders, in_files) = (focus(Pane::Folders), focus(Pane::Files));
        let folder = |at: usize| folder_row(story, at, &self.path, &mark, theme);
        let table = Table {
            title: Line::styled("Folders that were hit hardest", theme.quiet()),
            position: None,
            columns: &[
                Column::right("gone or changed", 15, 18, 0),
                Column::left("folder", 20, 120, 0),
                Column::left("first bad snapshot", 18, 30, 0),
            ],
            len: story.worst.len(),
            row: &folder,
            empty: "Nothing is gone or changed.",
            focus: in_folders,
        };
        table::draw(frame, above, &table, &mut self.folders, theme);
        let file = |at: usize| file_row(story, at, &self.path, &mark, theme);
        let title = if story.files.len() as u64 >= total.gone + total.changed + total.new {
            "Files".to_owned()
        } else {
            format!("The first {} files", text::count(story.files.len() as u64))
        };
        let table = Table {
            title: Line::styled(title, theme.quiet()),
            position: None,
            columns: &[
                Column::left("", 1, 1, 0),
                Column::left("", 7, 7, 0),
                Column::left("path", 30, 200, 0),
                Column::right("then", 8, 10, 1),
                Column::right("now", 8, 10, 2),
            ],
            len: story.files.len(),
            row: &file,
            empty: "No file is gone, changed or new.",
            focus: in_files,
        };
        table::draw(frame, below, &table, &mut self.files, theme);
    }
}

fn folder_row(story: &Story, at: usize, above: &str, mark: &impl Fn(&str) -> Mark, theme: Theme) -> Row {
    let worst = &story.worst[at];
    let lost = worst.folder.gone + worst.folder.changed;
    let since = worst.since.as_ref().map_or_else(
        || "none: after the last".to_owned(),
        |(id, at)| format!("{} {}", id.get(..8).unwrap_or(id), at.to_utc().format("%m-%d %H:%M UTC")),
    );
    let beneath = beneath(&worst.path, above);
    let shown = if beneath.is_empty() { "(this folder)" } else { beneath };
    let lost = if worst.whole {
        format!("all {}", text::count(lost))
    } else {
        format!("{} of {}", text::count(lost), text::count(lost + worst.folder.same))
    };
    Row {
        mark: mark(&worst.path),
        cells: vec![Cell::new(lost, theme.missing()), Cell::from(clean(shown)), Cell::from(since)],
    }
}

/// A path without that of the folder that is shown.
fn beneath<'a>(path: &'a str, above: &str) -> &'a str {
    path.strip_prefix(above).map_or(path, |rest| rest.trim_start_matches('/'))
}

fn file_row(story: &Story, at: usize, above: &str, mark: &impl Fn(&str) -> Mark, theme: Theme) -> Row {
    let file = &story.files[at];
    let (symbol, word, style) = match file.change {
        Change::Gone => ("-", "GONE", theme.missing()),
        Change::Changed => ("~", "changed", theme.changed()),
        Change::New => ("+", "new", theme.quiet()),
    };
    let size = |there: bool, size: u64| Cell::from(if there { text::bytes(size) } else { String::new() });
    Row {
        mark: if file.change == Change::New { Mark::None } else { mark(&file.path) },
        cells: vec![
            Cell::new(symbol, style),
            Cell::new(word, style),
            Cell::from(clean(beneath(&file.path, above))),
            size(file.change != Change::New, file.before),
            size(file.change != Change::Gone, file.after),
        ],
    }
}
