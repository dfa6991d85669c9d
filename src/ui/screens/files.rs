//! Browsing a snapshot: a folder beside the one that is here now, a search through everything as it is typed, the versions of
//! one path, and a look into a file. What is marked, in as many places as needed, comes back.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use crossterm::event::{KeyCode, KeyEvent};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};

use super::{Command, in_a_line};
use crate::error::Result;
use crate::files::EntryKind;
use crate::files::catalog::{Hits, QUERY_HELP};
use crate::files::history::Versions;
use crate::files::live::{Beside, Standing};
use crate::files::look::Inside;
use crate::recovery::record::{Fact, Point};
use crate::recovery::worker::{FilesAsked, FilesTold, Request};
use crate::text::{self, clean};
use crate::ui::filter::FilterLine;
use crate::ui::keymap::{Action, Place};
use crate::ui::table::{self, Cell, Column, Cursor, Focus, Mark, Row, Table};
use crate::ui::theme::Theme;

/// Bytes on a line of a file that is no text.
const HEX: usize = 16;

/// What is asked of a worker and shown as soon as it is told; `None`: not told yet.
type Told<T> = Option<Result<T>>;

/// A snapshot that is browsed.
#[derive(Debug)]
pub struct Files {
    /// The one that is browsed.
    pub point: Point,
    /// Paths that come back, in the order of the snapshot.
    pub marked: BTreeSet<String>,
    /// The folder that is shown.
    folder: String,
    rows: Told<Vec<Beside>>,
    cursor: Cursor,
    /// Where the cursor was in each folder that was shown.
    left: HashMap<String, Cursor>,
    /// A name to put the cursor on when the folder is there.
    wanted: Option<String>,
    search: FilterLine,
    hits: Told<Hits>,
    found: Cursor,
    over: Over,
    /// What was asked for and not told yet; nothing is asked for twice.
    asked: Option<FilesAsked>,
}

/// What lies over the folder.
#[derive(Debug)]
enum Over {
    Nothing,
    Search,
    Versions { path: String, told: Told<Versions>, cursor: Cursor },
    Inside { path: String, told: Told<Inside>, scroll: u16 },
}

impl Files {
    /// Begins at the root, or at the one folder that was backed up.
    pub fn new(point: Point) -> Self {
        let folder = match point.paths.as_slice() {
            [only] => only.trim_end_matches('/').to_owned(),
            _ => String::new(),
        };
        Self {
            point,
            marked: BTreeSet::new(),
            folder,
            rows: None,
            cursor: Cursor::default(),
            left: HashMap::new(),
            wanted: None,
            search: FilterLine::default(),
            hits: None,
            found: Cursor::default(),
            over: Over::Nothing,
            asked: None,
        }
    }

    /// Which keys hold now.
    pub fn place(&self) -> Place {
        match self.over {
            Over::Nothing => Place::Files,
            Over::Search => Place::Found,
            Over::Versions { .. } => Place::Versions,
            Over::Inside { .. } => Place::Inside,
        }
    }

    /// Whether keys are text now.
    pub fn wants_text(&self) -> bool {
        matches!(self.over, Over::Search) && self.search.typing()
    }

    /// What has to be asked of the worker for this to be shown whole.
    pub fn pending(&mut self) -> Option<Command> {
        let point = self.point.id.clone();
        let asked = match &self.over {
            Over::Search if self.hits.is_none() && !self.search.text().trim().is_empty() => {
                FilesAsked::Search { point, typed: self.search.text().to_owned() }
            }
            Over::Versions { path, told: None, .. } => FilesAsked::Versions { path: path.clone() },
            Over::Inside { path, told: None, .. } => FilesAsked::Inside { point, path: path.clone(), offset: 0 },
            _ if self.rows.is_none() => FilesAsked::Folder { point, path: root(&self.folder) },
            _ => return None,
        };
        if self.asked.as_ref() == Some(&asked) {
            return None;
        }
        // A search that is under way is let come to its end: the next one goes on from there.
        if matches!((&self.asked, &asked), (Some(FilesAsked::Search { .. }), FilesAsked::Search { .. })) {
            return None;
        }
        self.asked = Some(asked.clone());
        Some(Command::Ask(Request::Files(asked)))
    }

    /// Takes in what the worker told.
    pub fn told(&mut self, asked: &FilesAsked, told: Result<FilesTold>) {
        if self.asked.as_ref() == Some(asked) {
            self.asked = None;
        }
        match (asked, &mut self.over) {
            (FilesAsked::Folder { path, .. }, _) if *path == root(&self.folder) => {
                self.rows = Some(told.and_then(|told| match told {
                    FilesTold::Folder(rows) => Ok(rows),
                    _ => Err(crate::error::Error::bug("a folder was asked for")),
                }));
                self.cursor = self.left.get(&self.folder).copied().unwrap_or_default();
                if let (Some(Ok(rows)), Some(wanted)) = (&self.rows, self.wanted.take()) {
                    self.cursor.selected = rows.iter().position(|row| row.name == wanted).unwrap_or(0);
                }
            }
            (FilesAsked::Search { typed, .. }, Over::Search) if typed == self.search.text() => {
                self.hits = Some(told.and_then(|told| match told {
                    FilesTold::Search(hits) => Ok(hits),
                    _ => Err(crate::error::Error::bug("a search was asked for")),
                }));
            }
            (FilesAsked::Versions { path: of }, Over::Versions { path, told: here, .. }) if of == path => {
                *here = Some(told.and_then(|told| match told {
                    FilesTold::Versions(versions) => Ok(versions),
                    _ => Err(crate::error::Error::bug("versions were asked for")),
                }));
            }
            (FilesAsked::Inside { path: of, .. }, Over::Inside { path, told: here, .. }) if of == path => {
                *here = Some(told.and_then(|told| match told {
                    FilesTold::Inside(inside) => Ok(inside),
                    _ => Err(crate::error::Error::bug("a file was asked for")),
                }));
            }
            _ => {}
        }
    }

    /// Takes a key into the search line.
    pub fn typed(&mut self, key: KeyEvent) -> Option<Command> {
        match key.code {
            KeyCode::Esc => self.over = Over::Nothing,
            KeyCode::Down | KeyCode::Up | KeyCode::Enter => self.search.typed(KeyEvent::from(KeyCode::Enter)),
            _ => {
                self.search.typed(key);
                self.hits = None;
                self.found = Cursor::default();
            }
        }
        None
    }

    /// Moves, opens, marks, searches, or answers with what is marked.
    pub fn act(&mut self, action: Action) -> Option<Command> {
        match (&mut self.over, action) {
            (_, Action::Write) => {
                return Some(if self.marked.is_empty() {
                    Command::Notice("mark what is to come back with Space first".into())
                } else {
                    Command::Answer(Fact::Files(self.marked.iter().cloned().collect()))
                });
            }
            (Over::Nothing | Over::Search, Action::Filter) => {
                self.over = Over::Search;
                self.search.open();
            }
            (Over::Nothing | Over::Search, Action::Mark) => self.mark(),
            (Over::Nothing | Over::Search, Action::Versions) => {
                if let Some((path, _)) = self.selected() {
                    self.over = Over::Versions { path, told: None, cursor: Cursor::default() };
                }
            }
            (Over::Nothing, Action::Enter | Action::Right) | (Over::Search, Action::Enter) => self.open(),
            (Over::Nothing, Action::Left) => self.up(),
            (Over::Nothing, Action::Back) => return Some(Command::Back),
            (Over::Nothing, _) => {
                let length = self.rows.as_ref().and_then(|rows| rows.as_ref().ok()).map_or(0, Vec::len);
                self.cursor.act(action, length);
            }
            (Over::Search, Action::Back) => self.over = Over::Nothing,
            (Over::Search, Action::Up) if self.found.selected == 0 => self.search.open(),
            (Over::Search, _) => {
                let length = self.hits.as_ref().and_then(|hits| hits.as_ref().ok()).map_or(0, |hits| hits.best.len());
                self.found.act(action, length);
            }
            (Over::Versions { .. } | Over::Inside { .. }, Action::Back | Action::Enter | Action::Left) => {
                self.over = if self.search.text().is_empty() { Over::Nothing } else { Over::Search };
            }
            (Over::Versions { told, cursor, .. }, _) => {
                let length = told.as_ref().and_then(|told| told.as_ref().ok()).map_or(0, |told| told.versions.len());
                cursor.act(action, length);
            }
            (Over::Inside { scroll, .. }, _) => match action {
                Action::Up => *scroll = scroll.saturating_sub(1),
                Action::Down => *scroll = scroll.saturating_add(1),
                Action::PageUp => *scroll = scroll.saturating_sub(20),
                Action::PageDown => *scroll = scroll.saturating_add(20),
                Action::Top => *scroll = 0,
                Action::Bottom => *scroll = u16::MAX,
                _ => {}
            },
        }
        None
    }

    /// The path and kind under the cursor, of what the snapshot holds.
    fn selected(&self) -> Option<(String, EntryKind)> {
        if let Over::Search = self.over {
            let hits = self.hits.as_ref()?.as_ref().ok()?;
            return hits.best.get(self.found.selected).map(|hit| (hit.path.clone(), hit.kind));
        }
        let row = self.rows.as_ref()?.as_ref().ok()?.get(self.cursor.selected)?;
        (row.standing != Standing::Extra).then(|| (format!("{}/{}", self.folder, row.name), row.kind))
    }

    fn mark(&mut self) {
        let Some((path, _)) = self.selected() else { return };
        if !self.marked.remove(&path) {
            // What lies beneath a marked folder comes back with it.
            self.marked.retain(|marked| !lies_beneath(marked, &path));
            self.marked.insert(path);
        }
        self.act(Action::Down);
    }

    /// A path without what all of a snapshot have in common, which would push the names out of a narrow column.
    fn beneath(&self, path: &str) -> String {
        match self.point.paths.as_slice() {
            [only] => path.strip_prefix(only.as_str()).map_or(path.to_owned(), |rest| format!("…{rest}")),
            _ => path.to_owned(),
        }
    }

    /// Whether something comes back, by itself or with a folder above it.
    fn comes_back(&self, path: &str) -> Mark {
        if self.marked.contains(path) || self.marked.iter().any(|marked| lies_beneath(path, marked)) {
            Mark::On
        } else if self.marked.iter().any(|marked| lies_beneath(marked, path)) {
            Mark::Part
        } else {
            Mark::Off
        }
    }

    fn open(&mut self) {
        let Some((path, kind)) = self.selected() else { return };
        match kind {
            EntryKind::Folder => self.go_to(path, None),
            EntryKind::File => self.over = Over::Inside { path, told: None, scroll: 0 },
            EntryKind::Symlink | EntryKind::Other => {
                let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
                self.go_to(folder.to_owned(), Some(name.to_owned()));
            }
        }
    }

    fn up(&mut self) {
        if let Some((above, name)) = self.folder.clone().rsplit_once('/') {
            self.go_to(above.to_owned(), Some(name.to_owned()));
        }
    }

    fn go_to(&mut self, folder: String, wanted: Option<String>) {
        self.left.insert(self.folder.clone(), self.cursor);
        self.search.clear();
        self.hits = None;
        (self.folder, self.wanted, self.over, self.rows, self.asked) = (folder, wanted, Over::Nothing, None, None);
    }

    /// Draws the folder, or what lies over it.
    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let head = Rect { height: 2.min(area.height), ..area };
        let below = Rect { y: area.y + head.height, height: area.height - head.height, ..area };
        frame.render_widget(Paragraph::new(self.head(theme)), head);
        match &mut self.over {
            Over::Nothing => self.draw_folder(frame, below, theme),
            Over::Search => self.draw_search(frame, below, theme),
            Over::Versions { path, told, cursor } => draw_versions(frame, below, theme, (path, told), cursor),
            Over::Inside { path, told, scroll } => draw_inside(frame, below, theme, (path, told), scroll),
        }
    }

    fn head(&self, theme: Theme) -> Vec<Line<'static>> {
        let basket = match self.marked.len() {
            0 => Span::styled("nothing marked yet", theme.quiet()),
            number => Span::styled(
                format!("{} marked: w goes on", text::counted(number as u64, "path", "paths")),
                theme.good(),
            ),
        };
        let point = format!(
            "{} of {}, {} UTC   ",
            self.point.short(),
            clean(&self.point.host),
            self.point.instant.to_utc().format("%Y-%m-%d %H:%M")
        );
        vec![
            Line::from(vec![Span::raw(point), basket]),
            Line::styled(clean(&root(&self.folder)).into_owned(), theme.title()),
        ]
    }

    fn draw_folder(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let rows: &[Beside] = match &self.rows {
            None => return draw_words(frame, area, "Reading the folder ...", theme),
            Some(Err(error)) => return draw_words(frame, area, &in_a_line(error), theme),
            Some(Ok(rows)) => rows,
        };
        let count = |standing| rows.iter().filter(|row| row.standing == standing).count() as u64;
        let title = format!(
            "against this machine: {} changed, {} missing, {} extra",
            count(Standing::Changed),
            count(Standing::Missing),
            count(Standing::Extra)
        );
        let columns = [
            Column::left("", 1, 1, 0),
            Column::left("name", 20, 70, 0),
            Column::right("size", 8, 10, 0),
            Column::left("modified (UTC)", 16, 16, 1),
            Column::left("here now", 8, 26, 0),
            Column::left("owner", 6, 12, 3),
            Column::left("mode", 4, 4, 4),
        ];
        let (folder, this) = (&self.folder, &*self);
        let row = |at: usize| {
            let row = &rows[at];
            let (symbol, here, style) = match row.standing {
                Standing::Same => (" ", "same".to_owned(), theme.quiet()),
                Standing::Missing => ("-", "MISSING".into(), theme.missing()),
                Standing::Extra => ("+", "only here".into(), theme.quiet()),
                Standing::Changed => {
                    let size = row.present.as_ref().map_or(0, |present| present.size);
                    ("~", format!("changed, {}", text::bytes(size)), theme.changed())
                }
            };
            let extra = row.standing == Standing::Extra;
            let name = if row.kind == EntryKind::Folder { format!("{}/", row.name) } else { row.name.clone() };
            let mark = if extra { Mark::None } else { this.comes_back(&format!("{folder}/{}", row.name)) };
            let cells = vec![
                Cell::new(symbol, style),
                Cell::new(clean(&name), if extra { theme.quiet() } else { theme.text() }),
                Cell::from(if row.kind == EntryKind::File && !extra { text::bytes(row.size) } else { String::new() }),
                Cell::from(minute(row.modified)),
                Cell::new(here, style),
                Cell::from(clean(&row.owner)),
                Cell::from(format!("{:04o}", row.mode)),
            ];
            Row { mark, cells }
        };
        let table = Table {
            title: Line::styled(title, theme.quiet()),
            position: None,
            columns: &columns,
            len: rows.len(),
            row: &row,
            empty: "The folder is empty.",
            focus: Focus::Here,
        };
        let mut cursor = self.cursor;
        table::draw(frame, area, &table, &mut cursor, theme);
        self.cursor = cursor;
    }

    fn draw_search(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let line = Line::from(vec![
            Span::styled("search: ", theme.key()),
            Span::raw(clean(self.search.text()).into_owned()),
            Span::styled(if self.search.typing() { "_" } else { "" }, theme.key()),
        ]);
        frame.render_widget(Paragraph::new(line), Rect { height: 1.min(area.height), ..area });
        let below = Rect { y: area.y + 1.min(area.height), height: area.height.saturating_sub(1), ..area };
        let hits = match &self.hits {
            None if self.search.text().trim().is_empty() => {
                return draw_words(frame, below, &format!("Type some letters of the path. {QUERY_HELP}"), theme);
            }
            None => return draw_words(frame, below, "Searching the whole snapshot ...", theme),
            Some(Err(error)) => return draw_words(frame, below, &in_a_line(error), theme),
            Some(Ok(hits)) => hits,
        };
        let title = format!("{} of {} match", text::count(hits.matching), text::count(hits.entries));
        let columns = [
            Column::left("path", 60, 200, 0),
            Column::right("size", 8, 10, 0),
            Column::left("modified (UTC)", 16, 16, 1),
            Column::left("owner", 6, 12, 2),
        ];
        let this = &*self;
        let row = |at: usize| {
            let hit = &hits.best[at];
            let path = this.beneath(&hit.path);
            let path = if hit.kind == EntryKind::Folder { format!("{path}/") } else { path };
            let cells = vec![
                Cell::from(clean(&path)),
                Cell::from(if hit.kind == EntryKind::File { text::bytes(hit.size) } else { String::new() }),
                Cell::from(minute(hit.modified)),
                Cell::from(clean(&hit.owner)),
            ];
            Row { mark: this.comes_back(&hit.path), cells }
        };
        let table = Table {
            title: Line::styled(title, theme.quiet()),
            position: None,
            columns: &columns,
            len: hits.best.len(),
            row: &row,
            empty: "Nothing matches. Fewer letters match more.",
            focus: if self.search.typing() { Focus::Elsewhere } else { Focus::Here },
        };
        let mut cursor = self.found;
        table::draw(frame, below, &table, &mut cursor, theme);
        self.found = cursor;
    }
}

fn draw_versions(
    frame: &mut Frame,
    area: Rect,
    theme: Theme,
    (path, told): (&str, &Told<Versions>),
    cursor: &mut Cursor,
) {
    let versions = match told {
        None => return draw_words(frame, area, "Looking into every snapshot ...", theme),
        Some(Err(error)) => return draw_words(frame, area, &in_a_line(error), theme),
        Some(Ok(versions)) => versions,
    };
    let title = format!(
        "{}, not in {}: {}",
        text::counted(versions.versions.len() as u64, "content", "contents"),
        text::counted(versions.without.len() as u64, "snapshot", "snapshots"),
        clean(path)
    );
    let columns = [
        Column::left("newest in", 9, 9, 0),
        Column::left("from", 16, 16, 0),
        Column::left("to", 16, 16, 0),
        Column::right("size", 8, 10, 0),
        Column::left("modified (UTC)", 16, 16, 1),
        Column::right("snapshots", 9, 9, 2),
    ];
    let row = |at: usize| {
        let version = &versions.versions[at];
        let cells = vec![
            Cell::from(version.last.get(..8).unwrap_or(&version.last).to_owned()),
            Cell::from(version.first_instant.to_utc().format("%Y-%m-%d %H:%M").to_string()),
            Cell::from(version.last_instant.to_utc().format("%Y-%m-%d %H:%M").to_string()),
            Cell::from(text::bytes(version.size)),
            Cell::from(minute(version.modified.map(|at| at.to_utc()))),
            Cell::from(text::count(version.snapshots)),
        ];
        Row { mark: Mark::None, cells }
    };
    let table = Table {
        title: Line::styled(title, theme.quiet()),
        position: None,
        columns: &columns,
        len: versions.versions.len(),
        row: &row,
        empty: "No snapshot holds it.",
        focus: Focus::Here,
    };
    table::draw(frame, area, &table, cursor, theme);
}

fn draw_inside(frame: &mut Frame, area: Rect, theme: Theme, (path, told): (&str, &Told<Inside>), scroll: &mut u16) {
    let inside = match told {
        None => return draw_words(frame, area, "Reading the file ...", theme),
        Some(Err(error)) => return draw_words(frame, area, &in_a_line(error), theme),
        Some(Ok(inside)) => inside,
    };
    let mut facts = vec![inside.kind.clone(), text::bytes(inside.length)];
    facts.extend(inside.facts.iter().cloned());
    if inside.length > inside.bytes.len() as u64 {
        facts.push(format!("the first {}", text::bytes(inside.bytes.len() as u64)));
    }
    let mut lines = vec![Line::styled(format!("{}: {}", clean(path), facts.join(", ")), theme.quiet()), Line::raw("")];
    if inside.text {
        let text = String::from_utf8_lossy(&inside.bytes);
        lines.extend(text.lines().enumerate().map(|(number, line)| {
            Line::from(vec![
                Span::styled(format!("{:>5}  ", number + 1), theme.quiet()),
                Span::raw(clean(line).into_owned()),
            ])
        }));
    } else {
        lines.extend(inside.bytes.chunks(HEX).enumerate().map(|(number, part)| hex_line(number * HEX, part, theme)));
    }
    let most = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_sub(area.height);
    *scroll = (*scroll).min(most);
    frame.render_widget(Paragraph::new(lines).scroll((*scroll, 0)), area);
}

fn hex_line(at: usize, part: &[u8], theme: Theme) -> Line<'static> {
    let hex: String = part.iter().map(|byte| format!("{byte:02x} ")).collect();
    let letters: String = part
        .iter()
        .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' })
        .collect();
    Line::from(vec![
        Span::styled(format!("{at:08x}  "), theme.quiet()),
        Span::raw(format!("{hex:<48} ")),
        Span::raw(letters),
    ])
}

fn draw_words(frame: &mut Frame, area: Rect, words: &str, theme: Theme) {
    let line = Line::styled(clean(words).into_owned(), theme.quiet());
    frame.render_widget(Paragraph::new(line).wrap(Wrap { trim: true }), area);
}

fn minute(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(String::new, |at| at.format("%Y-%m-%d %H:%M").to_string())
}

fn root(folder: &str) -> String {
    if folder.is_empty() { "/".into() } else { folder.into() }
}

fn lies_beneath(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/') && rest.len() > 1)
}
