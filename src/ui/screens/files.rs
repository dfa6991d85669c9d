//! Browsing a snapshot: a folder beside the one that is here now, a search through everything as it is typed, the versions of
//! one path, what changed since, and a look into a file. What is marked, in as many places as needed, comes back.
//!
//! ```text
//!   folder ── Enter ─> folder, or inside of a file       every view shows what a worker told, and asks for what it lacks;
//!     │ / search   v versions ─ d, D compared            Esc closes the view and goes back to the folder or the search;
//!     │ c changes  p go to a path                        another snapshot is gone on in without losing marks or place
//! ```

mod changes;
mod folder;
mod inside;
mod search;
mod versions;
mod words;

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use crossterm::event::{KeyCode, KeyEvent};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use tui_input::Input;
use tui_input::backend::crossterm::EventHandler as _;

use super::Command;
use crate::error::{Error, Kind, Result};
use crate::files::EntryKind;
use crate::files::history::{Side, Version, Versions};
use crate::files::live::Standing;
use crate::files::look::Compared;
use crate::progress::Report;
use crate::recovery::record::{Fact, Incident, Point, Scope};
use crate::recovery::worker::{FilesAsked, FilesTold, Request};
use crate::text::{self, clean};
use crate::ui::keymap::{Action, Place};
use crate::ui::table::{Cursor, Mark};
use crate::ui::theme::Theme;
use changes::ChangesView;
use folder::FolderView;
use inside::InsideView;
use search::SearchView;
use words::{draw_scrolled, draw_wait, draw_words, kind_name, minute};

/// What is asked of a worker and shown as soon as it is told; `None`: not told yet.
type Told<T> = Option<Result<T>>;

/// A snapshot that is browsed.
#[derive(Debug)]
pub struct Files {
    /// The one that is browsed.
    pub point: Point,
    /// Paths that come back, in the order of the snapshot.
    pub marked: BTreeSet<String>,
    /// So many marks fell since the snapshot that is browsed now does not hold them.
    fallen: usize,
    /// Whether it is to be asked which of the marked paths this snapshot holds.
    unchecked: bool,
    incident: Option<DateTime<Utc>>,
    /// The newest snapshot of the same files; `None`: this is it.
    newest: Option<Point>,
    /// The folder that is shown.
    path: String,
    folder: FolderView,
    /// Where the cursor was in each folder that was shown.
    left: HashMap<String, Cursor>,
    /// A name to put the cursor on when the folder is there.
    wanted: Option<String>,
    search: SearchView,
    over: Over,
    /// What was asked for and not told yet; nothing is asked for twice.
    asked: Option<FilesAsked>,
    /// How far the work for that is.
    report: Option<Report>,
}

/// What lies over the folder.
#[derive(Debug)]
enum Over {
    Nothing,
    Search,
    GoTo(Input),
    Versions(VersionsView),
    Changes(ChangesView),
    Inside(InsideView),
}

#[derive(Debug)]
struct VersionsView {
    path: String,
    told: Told<Versions>,
    cursor: Cursor,
    /// Two of them, or one and the file that is here.
    compared: Option<Comparison>,
}

#[derive(Debug)]
struct Comparison {
    from: Side,
    to: Side,
    told: Told<Compared>,
    scroll: u16,
}

impl Files {
    /// Begins at the root, or at the one folder that was backed up. `points` are all recovery points.
    pub fn new(point: Point, incident: Option<Incident>, points: &[Point]) -> Self {
        let path = common(&point).to_owned();
        Self {
            newest: newest(&point, points),
            point,
            marked: BTreeSet::new(),
            fallen: 0,
            unchecked: false,
            incident: versions::instant(incident),
            path,
            folder: FolderView::new(),
            left: HashMap::new(),
            wanted: None,
            search: SearchView::default(),
            over: Over::Nothing,
            asked: None,
            report: None,
        }
    }

    /// The same place, with the same marks, in the snapshot that is asked about now.
    #[must_use]
    pub fn resumed(mut self, asked: Self) -> Self {
        if self.point != asked.point {
            (self.point, self.newest) = (asked.point, asked.newest);
            self.folder.leave();
            (self.unchecked, self.fallen) = (!self.marked.is_empty(), 0);
            if !self.search.everywhere {
                self.search.forget();
            }
        }
        // What was on its way when this was left is asked for again.
        (self.asked, self.incident) = (None, asked.incident);
        self
    }

    /// Which keys hold now.
    pub fn place(&self) -> Place {
        match &self.over {
            Over::Nothing => Place::Files,
            Over::Search => Place::Found,
            Over::GoTo(_) => Place::Typing,
            Over::Versions(VersionsView { compared: Some(_), .. }) => Place::Compared,
            Over::Versions(_) => Place::Versions,
            Over::Changes(_) => Place::Changes,
            Over::Inside(_) => Place::Inside,
        }
    }

    /// Whether keys are text now.
    pub fn wants_text(&self) -> bool {
        match self.over {
            Over::Search => self.search.line.typing(),
            Over::GoTo(_) => true,
            _ => false,
        }
    }

    /// What has to be asked of the worker for this to be shown whole.
    pub fn pending(&mut self) -> Option<Command> {
        let point = self.point.id.clone();
        let of_view = match &self.over {
            Over::Search => self.search.wanted(&point),
            Over::Versions(VersionsView { path, compared: Some(Comparison { from, to, told: None, .. }), .. }) => {
                Some(FilesAsked::Compare { path: path.clone(), from: from.clone(), to: to.clone() })
            }
            Over::Versions(VersionsView { path, told: None, .. }) => Some(FilesAsked::Versions { path: path.clone() }),
            Over::Changes(ChangesView { path, against, told: None, .. }) => {
                let (point, path) = (point.clone(), root(path));
                Some(FilesAsked::Changes { point, path, against: against.clone() })
            }
            Over::Inside(inside) => {
                let part = |offset| FilesAsked::Inside { point: point.clone(), path: inside.path.clone(), offset };
                inside.wanted().map(part)
            }
            _ => None,
        };
        let of_folder = || match (&self.folder.rows, &self.folder.beneath) {
            (None, _) => Some(FilesAsked::Folder { point: point.clone(), path: root(&self.path) }),
            (Some(Ok(_)), None) if self.folder.wants_beneath => {
                Some(FilesAsked::Beneath { point: point.clone(), path: root(&self.path) })
            }
            _ => None,
        };
        let of_marks = self
            .unchecked
            .then(|| FilesAsked::Absent { point: point.clone(), paths: self.marked.iter().cloned().collect() });
        let asked = of_marks.or(of_view).or_else(of_folder)?;
        if self.asked.as_ref() == Some(&asked) {
            return None;
        }
        // A search that is under way is let come to its end: the next one goes on from there.
        if matches!((&self.asked, &asked), (Some(FilesAsked::Search { .. }), FilesAsked::Search { .. })) {
            return None;
        }
        (self.asked, self.report) = (Some(asked.clone()), None);
        Some(Command::Ask(Request::Files(asked)))
    }

    /// Takes in how far the work is.
    pub fn reported(&mut self, asked: &FilesAsked, report: Report) {
        if self.asked.as_ref() == Some(asked) {
            self.report = Some(report);
        }
    }

    /// Takes in what the worker told.
    pub fn told(&mut self, asked: &FilesAsked, told: Result<FilesTold>) {
        if self.asked.as_ref() == Some(asked) {
            (self.asked, self.report) = (None, None);
        }
        let other = || Error::bug("something else was told than was asked for");
        match (asked, &mut self.over) {
            (FilesAsked::Absent { point, .. }, _) if *point == self.point.id => {
                self.unchecked = false;
                if let Ok(FilesTold::Absent(absent)) = told {
                    self.fallen = absent.len();
                    self.marked.retain(|marked| !absent.contains(marked));
                }
            }
            // What was backed up by a relative path is not where the snapshot says: then it begins at the root.
            (FilesAsked::Folder { path, .. }, _)
                if told.as_ref().is_err_and(|error| error.kind == Kind::Operator)
                    && self.left.is_empty()
                    && *path == root(common(&self.point)) =>
            {
                self.path = String::new();
            }
            (FilesAsked::Folder { point, path }, _) if *path == root(&self.path) && *point == self.point.id => {
                self.folder.rows = Some(match told {
                    Ok(FilesTold::Folder(rows, all)) => {
                        self.folder.all = all;
                        Ok(rows)
                    }
                    Ok(_) => Err(other()),
                    Err(error) => Err(error),
                });
                self.folder.cursor = self.left.get(&self.path).copied().unwrap_or_default();
                self.folder.arrange();
                if let Some(wanted) = self.wanted.take() {
                    self.folder.select(&wanted);
                }
            }
            (FilesAsked::Beneath { point, path }, _) if *path == root(&self.path) && *point == self.point.id => {
                self.folder.beneath = Some(match told {
                    Ok(FilesTold::Beneath(beneath)) => Ok(beneath),
                    Ok(_) => Err(other()),
                    Err(error) => Err(error),
                });
                self.folder.arrange();
            }
            (FilesAsked::Search { .. }, Over::Search) if self.search.wanted(&self.point.id).as_ref() == Some(asked) => {
                self.search.hits = Some(match told {
                    Ok(FilesTold::Search(hits, points)) => Ok((hits, points)),
                    Ok(_) => Err(other()),
                    Err(error) => Err(error),
                });
            }
            (FilesAsked::Versions { path }, Over::Versions(view)) if *path == view.path => {
                view.told = Some(match told {
                    Ok(FilesTold::Versions(versions)) => {
                        view.cursor.selected = versions::proposed(&versions, self.incident);
                        Ok(versions)
                    }
                    Ok(_) => Err(other()),
                    Err(error) => Err(error),
                });
            }
            (FilesAsked::Compare { path, from, to }, Over::Versions(VersionsView { path: of, compared, .. })) => {
                if let Some(compared) = compared.as_mut().filter(|compared| of == path && compared.is_of(from, to)) {
                    compared.told = Some(match told {
                        Ok(FilesTold::Compared(compared)) => Ok(compared),
                        Ok(_) => Err(other()),
                        Err(error) => Err(error),
                    });
                }
            }
            (FilesAsked::Changes { path, against, .. }, Over::Changes(view))
                if *path == root(&view.path) && *against == view.against =>
            {
                view.told = Some(match told {
                    Ok(FilesTold::Changes(story)) => Ok(story),
                    Ok(_) => Err(other()),
                    Err(error) => Err(error),
                });
            }
            (FilesAsked::Inside { path, offset, .. }, Over::Inside(view)) if *path == view.path => {
                let told =
                    told.and_then(|told| if let FilesTold::Inside(inside) = told { Ok(inside) } else { Err(other()) });
                view.take(*offset, told);
            }
            _ => {}
        }
    }

    /// Takes a key into the line that is open.
    pub fn typed(&mut self, key: KeyEvent) -> Option<Command> {
        if let Over::GoTo(input) = &mut self.over {
            match key.code {
                KeyCode::Esc => self.over = Over::Nothing,
                KeyCode::Enter => {
                    let path = format!("/{}", input.value().trim().trim_matches('/'));
                    let (folder, name) = path.rsplit_once('/').unwrap_or(("", ""));
                    let (folder, name) = (folder.to_owned(), name.to_owned());
                    self.go_to(folder, Some(name));
                }
                _ => _ = input.handle_event(&crossterm::event::Event::Key(key)),
            }
            return None;
        }
        match key.code {
            KeyCode::Esc => self.over = Over::Nothing,
            KeyCode::Down | KeyCode::Up | KeyCode::Enter => self.search.line.typed(KeyEvent::from(KeyCode::Enter)),
            KeyCode::Tab => {
                self.search.everywhere = !self.search.everywhere;
                self.search.forget();
            }
            _ => {
                self.search.line.typed(key);
                self.search.forget();
            }
        }
        None
    }

    /// Moves, opens, marks, searches, compares, or answers with what is marked.
    pub fn act(&mut self, action: Action) -> Option<Command> {
        if action == Action::Write {
            return Some(if self.marked.is_empty() {
                Command::Notice("mark what is to come back with Space first".into())
            } else {
                Command::Answer(Fact::Files(self.marked.iter().cloned().collect()))
            });
        }
        match &mut self.over {
            Over::Nothing => self.act_on_folder(action),
            Over::Search => self.act_on_search(action),
            Over::GoTo(_) => None,
            Over::Versions(_) => self.act_on_versions(action),
            Over::Changes(_) => self.act_on_changes(action),
            Over::Inside(view) => {
                match action {
                    Action::Tables if view.is_dump() => return Some(self.tables()),
                    Action::Tables => return Some(Command::Notice("this is no dump of a database".into())),
                    Action::Back | Action::Enter | Action::Left => self.close(),
                    _ => view.act(action),
                }
                None
            }
        }
    }

    fn act_on_folder(&mut self, action: Action) -> Option<Command> {
        match action {
            Action::Filter => {
                self.over = Over::Search;
                self.search.line.open();
            }
            Action::Mark => return self.mark(),
            Action::Versions => self.show_versions(),
            Action::Changes => {
                let against = if self.can_be_here() { Side::Here } else { self.newest_side()? };
                self.over = Over::Changes(ChangesView::of(self.path.clone(), against));
            }
            Action::GoTo => self.over = Over::GoTo(Input::new(format!("{}/", self.path))),
            Action::Sort => self.folder.sort_next(),
            Action::OnlyDiffering => self.folder.show_only_differing(),
            Action::Sizes => self.folder.wants_beneath = true,
            Action::Enter | Action::Right => self.open(),
            Action::Left => self.up(),
            Action::Back => return Some(Command::Back),
            _ => {
                let length = self.folder.len();
                self.folder.cursor.act(action, length);
            }
        }
        None
    }

    fn act_on_search(&mut self, action: Action) -> Option<Command> {
        match action {
            Action::Filter => self.search.line.open(),
            Action::Up if self.search.cursor.selected == 0 => self.search.line.open(),
            Action::NextPane | Action::PreviousPane => {
                self.search.everywhere = !self.search.everywhere;
                self.search.forget();
            }
            Action::Mark => return self.mark(),
            Action::Versions => self.show_versions(),
            // The newest snapshot that holds it may be from after the incident: its contents are shown to choose from.
            Action::Enter if self.is_held_elsewhere() => self.show_versions(),
            Action::Enter => self.open(),
            Action::Back => self.over = Over::Nothing,
            _ => {
                let length = self.search.len();
                self.search.cursor.act(action, length);
            }
        }
        None
    }

    fn act_on_versions(&mut self, action: Action) -> Option<Command> {
        let here = self.can_be_here();
        let Over::Versions(view) = &mut self.over else { return None };
        if let Some(compared) = &mut view.compared {
            match action {
                Action::Back | Action::Enter | Action::Left => view.compared = None,
                Action::Up => compared.scroll = compared.scroll.saturating_sub(1),
                Action::Down => compared.scroll = compared.scroll.saturating_add(1),
                Action::PageUp => compared.scroll = compared.scroll.saturating_sub(20),
                Action::PageDown => compared.scroll = compared.scroll.saturating_add(20),
                Action::Top => compared.scroll = 0,
                Action::Bottom => compared.scroll = u16::MAX,
                _ => {}
            }
            return None;
        }
        let versions: &[Version] = match &view.told {
            Some(Ok(told)) => &told.versions,
            _ => &[],
        };
        let selected = versions.get(view.cursor.selected);
        let side = |version: &Version| Side::Point(version.last.clone());
        match action {
            Action::Compare if !here => return Some(Command::Notice("the snapshot is of another machine".into())),
            Action::Compare => {
                view.compared = selected.map(|version| Comparison::of(side(version), Side::Here));
            }
            Action::CompareBefore => match (versions.get(view.cursor.selected + 1), selected) {
                (Some(before), Some(version)) => view.compared = Some(Comparison::of(side(before), side(version))),
                _ => return Some(Command::Notice("there is no content before this one".into())),
            },
            Action::Enter => {
                let (holder, path) = (selected?.last.clone(), view.path.clone());
                self.marked.insert(path.clone());
                self.go_above(&path);
                return (holder != self.point.id).then(|| other_point(holder));
            }
            Action::Back | Action::Left => self.close(),
            _ => {
                let length = versions.len();
                view.cursor.act(action, length);
            }
        }
        None
    }

    fn act_on_changes(&mut self, action: Action) -> Option<Command> {
        let Over::Changes(view) = &mut self.over else { return None };
        match action {
            Action::Against => {
                let other = match view.against {
                    Side::Here => self.newest.as_ref().map(|newest| Side::Point(newest.id.clone())),
                    Side::Point(_) => self.can_be_here().then_some(Side::Here),
                };
                let Over::Changes(view) = &mut self.over else { return None };
                match other {
                    Some(other) => *view = ChangesView::of(view.path.clone(), other),
                    None => return Some(Command::Notice("there is nothing else to compare it with".into())),
                }
            }
            Action::Mark => {
                if let Some(path) = view.selected() {
                    self.turn_mark(path);
                    self.act_on_changes(Action::Down);
                }
            }
            Action::Enter => {
                let (path, in_files) = (view.selected()?, view.in_files());
                if in_files { self.go_above(&path) } else { self.go_to(path, None) }
            }
            Action::Versions => self.show_versions(),
            Action::Back => self.over = Over::Nothing,
            _ => view.act(action),
        }
        None
    }

    /// Whether this machine is the one that the snapshot is of.
    fn can_be_here(&self) -> bool {
        crate::recovery::journal::operator().host == self.point.host
    }

    fn newest_side(&self) -> Option<Side> {
        self.newest.as_ref().map(|newest| Side::Point(newest.id.clone()))
    }

    fn close(&mut self) {
        self.over = if self.search.line.text().is_empty() { Over::Nothing } else { Over::Search };
    }

    /// The path and kind under the cursor, of what the snapshot holds.
    fn selected(&self) -> Option<(String, EntryKind)> {
        match &self.over {
            Over::Search => self.search.selected().map(|(hit, _)| (hit.path.clone(), hit.kind)),
            Over::Changes(view) => view.selected().map(|path| (path, EntryKind::File)),
            _ => {
                let row = self.folder.selected()?;
                let held = !matches!(row.standing, Standing::Extra | Standing::Excluded);
                held.then(|| (format!("{}/{}", self.path, row.name), row.kind))
            }
        }
    }

    fn show_versions(&mut self) {
        if let Some((path, _)) = self.selected() {
            self.over = Over::Versions(VersionsView { path, told: None, cursor: Cursor::default(), compared: None });
        }
    }

    fn mark(&mut self) -> Option<Command> {
        if self.is_held_elsewhere() {
            return Some(Command::Notice("Enter shows the contents that it has had; take one of them".into()));
        }
        let Some((path, _)) = self.selected() else {
            return Some(Command::Notice("only this machine has it: there is nothing to bring back".into()));
        };
        self.turn_mark(path);
        self.act(Action::Down)
    }

    /// Whether the hit under the cursor was found in another snapshot than the one that is browsed.
    fn is_held_elsewhere(&self) -> bool {
        let Over::Search = self.over else { return false };
        self.search.selected().is_some_and(|(_, holder)| holder.is_some_and(|holder| holder != self.point.id))
    }

    fn turn_mark(&mut self, path: String) {
        self.fallen = 0;
        if !self.marked.remove(&path) {
            // What lies beneath a marked folder comes back with it.
            self.marked.retain(|marked| !lies_beneath(marked, &path));
            self.marked.insert(path);
        }
    }

    fn open(&mut self) {
        let Some((path, kind)) = self.selected() else { return };
        match kind {
            EntryKind::Folder => self.go_to(path, None),
            EntryKind::File => self.over = Over::Inside(InsideView::of(path)),
            EntryKind::Symlink | EntryKind::Other => self.go_above(&path),
        }
    }

    /// On in the tables of the dump that is looked into.
    fn tables(&self) -> Command {
        let Over::Inside(view) = &self.over else { return Command::Notice("no file is open".into()) };
        Command::Instead {
            back: 2,
            facts: vec![Fact::Scope(Scope::Tables), Fact::Point(self.point.id.clone()), Fact::Dump(view.path.clone())],
        }
    }

    fn up(&mut self) {
        self.go_above(&self.path.clone());
    }

    /// To the folder that a path's last name is in, with the cursor on it.
    fn go_above(&mut self, path: &str) {
        if let Some((above, name)) = path.rsplit_once('/') {
            self.go_to(above.to_owned(), Some(name.to_owned()));
        }
    }

    fn go_to(&mut self, folder: String, wanted: Option<String>) {
        self.left.insert(self.path.clone(), self.folder.cursor);
        self.folder.leave();
        self.search.line.clear();
        self.search.forget();
        (self.path, self.wanted, self.over, self.asked) = (folder, wanted, Over::Nothing, None);
    }

    /// Draws the folder, or what lies over it.
    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let head = Rect { height: 2.min(area.height), ..area };
        let below = Rect { y: area.y + head.height, height: area.height - head.height, ..area };
        frame.render_widget(Paragraph::new(self.head(theme)), head);
        let (marked, report) = (&self.marked, self.report.as_ref());
        match &mut self.over {
            Over::Nothing | Over::GoTo(_) => {
                let folder = &self.path;
                let mark = |name: &str| comes_back(marked, &format!("{folder}/{name}"));
                self.folder.draw(frame, below, theme, report, mark);
            }
            Over::Search => {
                let common = common(&self.point);
                self.search.draw(frame, below, theme, (common, report), |path| comes_back(marked, path));
            }
            Over::Versions(VersionsView { path, compared: Some(compared), .. }) => {
                let shown = (path.as_str(), &compared.told, report);
                versions::draw_compared(frame, below, theme, shown, &mut compared.scroll);
            }
            Over::Versions(view) => {
                let shown = (view.path.as_str(), &view.told, report);
                versions::draw(frame, below, theme, shown, (&mut view.cursor, self.incident));
            }
            Over::Changes(view) => {
                let against = match (&view.against, &self.newest) {
                    (Side::Point(_), Some(newest)) => format!("snapshot {}", newest.short()),
                    _ => "this machine now".to_owned(),
                };
                view.draw(frame, below, theme, (report, &against), |path| comes_back(marked, path));
            }
            Over::Inside(view) => view.draw(frame, below, theme, report),
        }
    }

    fn head(&self, theme: Theme) -> Vec<Line<'static>> {
        let fallen = match self.fallen {
            0 => Span::raw(""),
            number => Span::styled(
                format!("  {} not in this snapshot: unmarked", text::counted(number as u64, "path is", "paths are")),
                theme.live(),
            ),
        };
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
        let place = match &self.over {
            Over::GoTo(input) => Line::from(vec![
                Span::styled("go to path (Enter goes, Esc stays): ", theme.key()),
                Span::raw(clean(input.value()).into_owned()),
                Span::styled("_", theme.key()),
            ]),
            _ => Line::styled(clean(&root(&self.path)).into_owned(), theme.title()),
        };
        vec![Line::from(vec![Span::raw(point), basket, fallen]), place]
    }
}

impl Comparison {
    fn of(from: Side, to: Side) -> Self {
        Self { from, to, told: None, scroll: 0 }
    }

    fn is_of(&self, from: &Side, to: &Side) -> bool {
        self.from == *from && self.to == *to
    }
}

/// Goes on browsing in another snapshot: the answer before this question is exchanged.
fn other_point(id: String) -> Command {
    Command::Instead { back: 1, facts: vec![Fact::Point(id)] }
}

/// The newest snapshot of the same host and paths, when it is newer.
fn newest(point: &Point, points: &[Point]) -> Option<Point> {
    let alike = points.iter().filter(|other| other.host == point.host && other.paths == point.paths);
    alike.max_by_key(|other| other.instant).filter(|newest| newest.instant > point.instant).cloned()
}

/// What all paths of a snapshot begin with: the one folder that was backed up; empty when there are several.
fn common(point: &Point) -> &str {
    match point.paths.as_slice() {
        [only] => only.trim_end_matches('/'),
        _ => "",
    }
}

/// Whether something comes back, by itself or with a folder above it.
fn comes_back(marked: &BTreeSet<String>, path: &str) -> Mark {
    if marked.contains(path) || marked.iter().any(|marked| lies_beneath(path, marked)) {
        Mark::On
    } else if marked.iter().any(|marked| lies_beneath(marked, path)) {
        Mark::Part
    } else {
        Mark::Off
    }
}

fn root(folder: &str) -> String {
    if folder.is_empty() { "/".into() } else { folder.into() }
}

fn lies_beneath(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/') && rest.len() > 1)
}
