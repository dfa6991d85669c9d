//! A folder of the snapshot beside the one of the same path here: sorted, narrowed to what differs, with sizes on demand.

use std::collections::BTreeMap;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;

use super::{Told, draw_wait, kind_name, minute};
use crate::files::EntryKind;
use crate::files::live::{Beside, Standing};
use crate::progress::Report;
use crate::recovery::systems::Beneath;
use crate::text::{self, clean};
use crate::ui::screens::in_a_line;
use crate::ui::table::{self, Cell, Column, Cursor, Focus, Mark, Row, Table};
use crate::ui::theme::Theme;

/// In which order rows stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Name,
    Size,
    Time,
    Differing,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Name => Self::Size,
            Self::Size => Self::Time,
            Self::Time => Self::Differing,
            Self::Differing => Self::Name,
        }
    }

    fn told(self) -> &'static str {
        match self {
            Self::Name => "by name",
            Self::Size => "largest first",
            Self::Time => "newest first",
            Self::Differing => "differing first",
        }
    }
}

/// The rows of a folder, and how they are shown.
#[derive(Debug)]
pub(super) struct FolderView {
    /// As they came; `None`: not told yet.
    pub rows: Told<Vec<Beside>>,
    /// How many there are in the folder.
    pub all: u64,
    /// Beneath each folder; `None`: not asked for, or not told yet.
    pub beneath: Told<BTreeMap<String, Beneath>>,
    /// Whether that is wanted.
    pub wants_beneath: bool,
    pub cursor: Cursor,
    sort: Sort,
    only_differing: bool,
    /// Places among the rows, in the order in which they are shown.
    shown: Vec<usize>,
}

impl FolderView {
    pub fn new() -> Self {
        Self {
            rows: None,
            all: 0,
            beneath: None,
            wants_beneath: false,
            cursor: Cursor::default(),
            sort: Sort::Name,
            only_differing: false,
            shown: Vec::new(),
        }
    }

    /// Another folder is shown from now on; the order stays as it was chosen.
    pub fn leave(&mut self) {
        (self.rows, self.beneath, self.wants_beneath, self.cursor) = (None, None, false, Cursor::default());
        self.shown.clear();
    }

    pub fn sort_next(&mut self) {
        self.sort = self.sort.next();
        self.arrange();
    }

    pub fn show_only_differing(&mut self) {
        self.only_differing = !self.only_differing;
        self.arrange();
        self.cursor = Cursor { page: self.cursor.page, ..Cursor::default() };
    }

    /// Puts the rows in order; to be called when they, or what lies beneath them, have come.
    pub fn arrange(&mut self) {
        let Some(Ok(rows)) = &self.rows else { return };
        let beneath = self.beneath.as_ref().and_then(|told| told.as_ref().ok());
        let of = |row: &Beside| beneath.and_then(|all| all.get(&row.name)).copied();
        let differs = |row: &Beside| {
            !matches!(row.standing, Standing::Same | Standing::Excluded | Standing::Elsewhere)
                || of(row).is_some_and(|beneath| beneath.missing + beneath.changed + beneath.extra > 0)
        };
        let mut shown: Vec<usize> = (0..rows.len()).filter(|at| !self.only_differing || differs(&rows[*at])).collect();
        let size = |row: &Beside| of(row).map_or(row.size, |beneath| beneath.bytes);
        match self.sort {
            Sort::Name => {}
            Sort::Size => shown.sort_by_key(|at| std::cmp::Reverse(size(&rows[*at]))),
            Sort::Time => shown.sort_by_key(|at| std::cmp::Reverse(rows[*at].modified)),
            Sort::Differing => shown.sort_by_key(|at| !differs(&rows[*at])),
        }
        self.shown = shown;
    }

    pub fn len(&self) -> usize {
        self.shown.len()
    }

    /// Puts the cursor on a name; where only what differs is shown and it does not, everything is shown again.
    pub fn select(&mut self, name: &str) {
        let Some(Ok(rows)) = &self.rows else { return };
        let Some(row) = rows.iter().position(|row| row.name == name) else { return };
        if !self.shown.contains(&row) {
            self.only_differing = false;
            self.arrange();
        }
        self.cursor.selected = self.shown.iter().position(|at| *at == row).unwrap_or(0);
    }

    pub fn selected(&self) -> Option<&Beside> {
        let rows = self.rows.as_ref()?.as_ref().ok()?;
        rows.get(*self.shown.get(self.cursor.selected)?)
    }

    fn title(&self, rows: &[Beside]) -> String {
        let count = |standing| rows.iter().filter(|row| row.standing == standing).count() as u64;
        let mut title = format!(
            "{} changed, {} missing, {} extra here; {}",
            text::count(count(Standing::Changed)),
            text::count(count(Standing::Missing)),
            text::count(count(Standing::Extra)),
            self.sort.told()
        );
        if self.beneath.is_none() && rows.iter().any(|row| row.kind == EntryKind::Folder) {
            title.push_str("; z looks beneath folders");
        }
        if self.only_differing {
            title.push_str("; only what differs");
        }
        if self.all > rows.len() as u64 {
            title.push_str(&format!(
                "; the first {} of {}: / finds the others",
                text::count(rows.len() as u64),
                text::count(self.all)
            ));
        }
        title
    }

    /// Draws it; `mark` tells whether a name comes back.
    pub fn draw(
        &mut self,
        frame: &mut Frame,
        area: Rect,
        theme: Theme,
        report: Option<&Report>,
        mark: impl Fn(&str) -> Mark,
    ) {
        let rows: &[Beside] = match &self.rows {
            None => return draw_wait(frame, area, "Reading the folder ...", report, theme),
            Some(Err(error)) => {
                let words = format!("{} h goes to the folder above, p to a path.", in_a_line(error));
                return super::draw_words(frame, area, &words, theme);
            }
            Some(Ok(rows)) => rows,
        };
        let beneath = self.beneath.as_ref().and_then(|told| told.as_ref().ok());
        let title = match (&self.beneath, self.wants_beneath) {
            (None, true) => "Looking beneath each folder ...".to_owned(),
            (Some(Err(error)), _) => in_a_line(error),
            _ => self.title(rows),
        };
        let row = |at: usize| {
            let row = &rows[self.shown[at]];
            let extra = matches!(row.standing, Standing::Extra | Standing::Excluded);
            Row {
                mark: if extra { Mark::None } else { mark(&row.name) },
                cells: cells(row, beneath.and_then(|all| all.get(&row.name)), theme),
            }
        };
        let table = Table {
            title: Line::styled(title, theme.quiet()),
            position: None,
            columns: &columns(),
            len: self.shown.len(),
            row: &row,
            empty: if self.only_differing && !rows.is_empty() {
                "Nothing differs from this machine here. f shows everything again."
            } else {
                "The folder is empty."
            },
            focus: Focus::Here,
        };
        table::draw(frame, area, &table, &mut self.cursor, theme);
    }
}

/// What the snapshot has on the left, what is here now on the right; a narrow terminal drops facts, never names.
fn columns() -> [Column; 11] {
    [
        Column::left("", 1, 1, 0),
        Column::left("in the snapshot", 24, 70, 0),
        Column::right("size", 8, 10, 0),
        Column::left("modified (UTC)", 16, 16, 1),
        Column::left("owner", 6, 12, 3),
        Column::left("mode", 4, 4, 4),
        Column::left("here now", 15, 40, 0),
        Column::right("size", 8, 10, 5),
        Column::left("modified (UTC)", 16, 16, 6),
        Column::left("owner", 6, 8, 7),
        Column::left("mode", 4, 4, 8),
    ]
}

fn cells(row: &Beside, beneath: Option<&Beneath>, theme: Theme) -> Vec<Cell> {
    let (symbol, mut here, mut style) = match row.standing {
        // Of a folder only that it is there is known, until what lies beneath it was compared.
        Standing::Same if row.kind == EntryKind::Folder && beneath.is_none() => {
            (" ", "there".to_owned(), theme.quiet())
        }
        Standing::Same => (" ", "same".to_owned(), theme.quiet()),
        Standing::Missing => ("-", "MISSING".into(), theme.missing()),
        Standing::Extra => ("+", "only here".into(), theme.quiet()),
        Standing::Excluded => (" ", "only here, excluded".into(), theme.quiet()),
        Standing::Changed => ("~", "changed".into(), theme.changed()),
        Standing::Elsewhere => (" ", "(another machine)".into(), theme.quiet()),
    };
    if let Some(beneath) = beneath.filter(|_| row.standing == Standing::Same) {
        let parts = [(beneath.changed, "changed"), (beneath.missing, "MISSING"), (beneath.extra, "extra")];
        let parts: Vec<_> = parts.iter().filter(|(number, _)| *number > 0).collect();
        if !parts.is_empty() {
            here = parts
                .iter()
                .map(|(number, word)| format!("{} {word}", text::count(*number)))
                .collect::<Vec<_>>()
                .join(", ");
            style = if beneath.missing > 0 { theme.missing() } else { theme.changed() };
        }
    }
    let extra = matches!(row.standing, Standing::Extra | Standing::Excluded);
    let then = |text: String| Cell::from(if extra { String::new() } else { text });
    let now = |text: String| Cell::new(text, theme.quiet());
    let size = match (row.kind, beneath) {
        (EntryKind::File, _) => text::bytes(row.size),
        (EntryKind::Folder, Some(beneath)) => text::bytes(beneath.bytes),
        _ => String::new(),
    };
    let present = row.present.as_ref();
    let is_file = present.is_some_and(|present| present.kind == EntryKind::File);
    vec![
        Cell::new(symbol, style),
        Cell::new(clean(&kind_name(&row.name, row.kind)), if extra { theme.quiet() } else { theme.text() }),
        then(size),
        then(minute(row.modified)),
        then(clean(&row.owner).into_owned()),
        then(format!("{:04o}", row.mode)),
        Cell::new(here, style),
        now(present.filter(|_| is_file).map_or_else(String::new, |present| text::bytes(present.size))),
        now(present.map_or_else(String::new, |present| minute(present.modified()))),
        now(present.map_or_else(String::new, |present| present.uid.to_string())),
        now(present.map_or_else(String::new, |present| format!("{:04o}", present.mode))),
    ]
}
