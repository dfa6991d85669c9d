//! The plan: everything that will happen, and the line where consent is typed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent};
use ratatui::Frame;
use ratatui::layout::{Position, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};
use tui_input::Input;
use tui_input::backend::crossterm::EventHandler as _;
use unicode_width::UnicodeWidthStr;

use super::{Command, in_a_line};
use crate::files::EntryKind;
use crate::files::choice::{self, Choice, Destination, Item};
use crate::files::put::Placed;
use crate::postgres::database::Exchange;
use crate::postgres::merge::{ChangeSet, Recreation, TableChange, Triggers, Undo};
use crate::recovery::flows::clean;
use crate::recovery::plan::{Effect, Plan, Step};
use crate::recovery::record::Fact;
use crate::text;
use crate::ui::keymap::{Action, Place};
use crate::ui::theme::Theme;

/// What is replaced stands first: a person who skims has to see it.
const SHOWN: [choice::Action; 3] = [choice::Action::Replace, choice::Action::Create, choice::Action::MakeFolder];

/// Keys that come sooner after the line opened were typed for something else.
const ARMING: Duration = Duration::from_millis(500);

/// A plan to read, and the line to consent to it.
#[derive(Debug)]
pub struct Review {
    plan: Plan,
    /// What was shown; consent is bound to it.
    hash: String,
    sql: Sql,
    scroll: u16,
    /// Of a plan that puts files in place: the selected one, and those that are marked to be left out.
    files: Files,
    /// The line where consent is typed, and when it opened.
    consent: Option<(Input, Instant)>,
    error: Option<String>,
    /// One person has consented: who, and until when a second one has to.
    first: Option<String>,
}

#[derive(Debug, Default)]
struct Files {
    selected: usize,
    marked: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sql {
    Hidden,
    Shown,
}

impl Review {
    /// `hash` is [`Plan::hash`] of the same plan: what is confirmed must be what is shown. `first` tells of a first consent,
    /// where two are required.
    pub fn new(plan: Plan, hash: String, first: Option<String>) -> Self {
        Self { plan, hash, sql: Sql::Hidden, scroll: 0, files: Files::default(), consent: None, error: None, first }
    }

    /// Which keys hold now.
    pub fn place(&self) -> Place {
        if self.items().is_empty() { Place::Plan } else { Place::FilesPlan }
    }

    /// What is put in place, in the order in which it is shown; empty for other plans.
    fn items(&self) -> Vec<&Item> {
        let items = self.plan.steps.iter().find_map(|step| match step {
            Step::PutFiles { choice } => Some(&choice.items),
            _ => None,
        });
        let items = items.map_or(&[][..], Vec::as_slice);
        let of = |action| items.iter().filter(move |item| item.action == action);
        SHOWN.into_iter().flat_map(of).collect()
    }

    /// Moves what is selected of the files, or scrolls a plan without any.
    fn go(&mut self, by: isize) {
        match self.items().len() {
            0 => self.scroll = self.scroll.saturating_add_signed(i16::try_from(by).unwrap_or(0)),
            number => self.files.selected = self.files.selected.saturating_add_signed(by).min(number - 1),
        }
    }

    /// Marks the selected file to be left out, or takes the mark off.
    fn mark(&mut self) -> Option<Command> {
        let narrowed = |step: &Step| matches!(step, Step::PutFiles { choice } if choice.is_narrowed());
        if self.plan.steps.iter().any(narrowed) {
            return Some(Command::Notice("Esc takes back what was left out; then mark anew.".into()));
        }
        let path = self.items().get(self.files.selected)?.path.clone();
        if !self.files.marked.remove(&path) {
            self.files.marked.insert(path);
        }
        None
    }

    /// Whether the line of consent is open.
    pub fn wants_text(&self) -> bool {
        self.consent.is_some()
    }

    /// Pasted text is not consent.
    pub fn pasted(&mut self) {
        self.error = Some("pasting is not consent: type the name".into());
    }

    /// Takes a key into the line of consent; Enter hands the words on when they are right. The worker checks them again.
    pub fn typed(&mut self, key: KeyEvent) -> Option<Command> {
        let (input, opened) = self.consent.as_mut()?;
        if key.code == KeyCode::Esc {
            self.consent = None;
            self.error = None;
            return None;
        }
        if opened.elapsed() < ARMING {
            return None;
        }
        if key.code != KeyCode::Enter {
            self.error = None;
            input.handle_event(&crossterm::event::Event::Key(key));
            return None;
        }
        match self.plan.clone().confirm(input.value(), &self.hash) {
            Ok(_) => Some(Command::Consent { typed: input.value().into(), shown: self.hash.clone() }),
            Err(error) => {
                self.error = Some(in_a_line(&error));
                None
            }
        }
    }

    /// Scrolls, shows the SQL, or opens the line of consent.
    pub fn act(&mut self, action: Action) -> Option<Command> {
        match action {
            Action::Up => self.go(-1),
            Action::Down => self.go(1),
            Action::PageUp => self.go(-10),
            Action::PageDown => self.go(10),
            Action::Top => (self.scroll, self.files.selected) = (0, 0),
            Action::Bottom => {
                (self.scroll, self.files.selected) = (u16::MAX, self.items().len().saturating_sub(1));
            }
            Action::Mark => return self.mark(),
            Action::Enter if !self.files.marked.is_empty() => {
                return Some(Command::Answer(Fact::Except(self.files.marked.iter().cloned().collect())));
            }
            Action::Sql => self.sql = if self.sql == Sql::Shown { Sql::Hidden } else { Sql::Shown },
            Action::Enter => self.consent = Some((Input::default(), Instant::now())),
            Action::Copy => return Some(Command::Copy(self.statements().join("\n"))),
            Action::Back => return Some(Command::Back),
            _ => {}
        }
        None
    }

    fn statements(&self) -> Vec<String> {
        self.plan.steps.iter().flat_map(Step::statements).collect()
    }

    /// Draws the plan, as far as it is scrolled, and the line of consent below it.
    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let foot_height = match (&self.consent, &self.first) {
            (Some(_), _) => 5,
            (None, Some(_)) => 4,
            (None, None) => 2,
        };
        let body = Rect { height: area.height.saturating_sub(foot_height), ..area };
        let foot = Rect { y: area.y + body.height, height: area.height - body.height, ..area };
        let (lines, selected) = self.page(theme);
        let rows = |lines: &[Line<'static>]| {
            let page = Paragraph::new(lines.to_vec()).wrap(Wrap { trim: false });
            u16::try_from(page.line_count(body.width)).unwrap_or(u16::MAX)
        };
        if let Some(line) = selected {
            // The selected one is in sight; the first with all that stands above it.
            let (begin, end) = (rows(&lines[..line]), rows(&lines[..=line]));
            let begin = if self.files.selected == 0 { 0 } else { begin };
            self.scroll =
                self.scroll.clamp(end.saturating_sub(body.height), begin.max(end.saturating_sub(body.height)));
        }
        let most = rows(&lines).saturating_sub(body.height);
        self.scroll = self.scroll.min(most);
        let page = Paragraph::new(lines).wrap(Wrap { trim: false });
        let more = most > self.scroll;
        frame.render_widget(page.scroll((self.scroll, 0)), body);
        let Some((input, _)) = &self.consent else {
            let more = if more { "More below (j, PgDn). " } else { "" };
            let line = match &self.first {
                Some(first) => format!("{more}{first}"),
                None if !self.files.marked.is_empty() => {
                    let marked = text::counted(self.files.marked.len() as u64, "file", "files");
                    format!("{more}Nothing has been changed yet. Enter: the plan without {marked}.")
                }
                None => format!("{more}Nothing has been changed yet. Enter: to consent."),
            };
            let lines = vec![Line::raw(""), Line::styled(line, theme.title())];
            frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), foot);
            return;
        };
        let phrase = self.plan.phrase();
        let prompt = "> ";
        let lines = vec![
            Line::styled(theme.rule().repeat(usize::from(foot.width)), theme.live()),
            Line::from(vec![
                Span::raw("This changes production. To consent, type  "),
                Span::styled(text::clean(&phrase).into_owned(), theme.live()),
            ]),
            Line::from(vec![Span::styled(prompt, theme.live()), Span::raw(text::clean(input.value()).into_owned())]),
            Line::styled(
                self.error
                    .clone()
                    .unwrap_or_else(|| "Enter writes, Esc goes back to the plan. Nothing has been changed yet.".into()),
                if self.error.is_some() { theme.bad() } else { theme.quiet() },
            ),
        ];
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), foot);
        let shift = u16::try_from((44 + phrase.width()) / usize::from(foot.width.max(1))).unwrap_or(0);
        let column = u16::try_from(prompt.width() + input.visual_cursor()).unwrap_or(0);
        frame.set_cursor_position(Position {
            x: (foot.x + column).min(foot.right().saturating_sub(1)),
            y: (foot.y + 2 + shift).min(foot.bottom().saturating_sub(1)),
        });
    }

    /// The lines, and which of them is the selected file's.
    fn page(&self, theme: Theme) -> (Vec<Line<'static>>, Option<usize>) {
        let mut selected = None;
        let mut page = vec![Line::styled("What will be done", theme.title()), Line::raw("")];
        for (number, step) in self.plan.steps.iter().enumerate() {
            let effect = match step.effect() {
                Effect::Read => Span::styled("reads only", theme.quiet()),
                Effect::Scratch => Span::styled("scratch space only", theme.quiet()),
                Effect::Live => Span::styled("CHANGES PRODUCTION, can be undone", theme.live()),
                Effect::Final => Span::styled("CANNOT BE UNDONE", theme.live()),
            };
            page.push(Line::from(vec![Span::raw(format!("{}. {}  ", number + 1, step.title())), effect]));
            match step {
                Step::MergeRows { changes } => push_changes(&mut page, changes, theme),
                Step::UndoRows { undo, .. } => push_undo(&mut page, undo, theme),
                Step::RemoveLeftovers { leftovers } => {
                    for leftover in leftovers {
                        let told = format!("   {}: {}", leftover.schema, clean::reason(leftover));
                        page.push(Line::raw(text::clean(&told).into_owned()));
                    }
                }
                Step::RestoreFiles { choice } | Step::PutFiles { choice } => {
                    selected = push_files(&mut page, choice, &self.files, theme).or(selected);
                }
                Step::UndoFiles { placed, .. } => push_undo_of_files(&mut page, placed, theme),
                Step::Promote { exchange } => push_exchange(&mut page, exchange),
                Step::ExchangeBack { exchange, .. } => {
                    page.push(Line::raw("   Sessions are ended; whoever connects again finds the earlier database."));
                    let kept =
                        format!("   What was written since stays in the other one, kept as {}.", exchange.restored);
                    page.push(Line::raw(kept));
                }
                Step::RecreateTables { recreation } => push_recreation(&mut page, recreation, theme),
                Step::RemoveRecreated { recovery, .. } => {
                    let aside = format!("   They go into the schema lifeboat_undo_{recovery}, with all their rows.");
                    page.push(Line::raw(text::clean(&aside).into_owned()));
                    page.push(Line::raw("   Nothing is dropped: by hand, ALTER TABLE ... SET SCHEMA moves them back."));
                }
                Step::KeepClone { clone } => {
                    page.push(Line::raw(
                        text::clean(&format!("   psql \"{} dbname=...\"", clone.conninfo)).into_owned(),
                    ));
                    page.push(Line::raw("   s shows how the service is switched to it by hand."));
                }
                Step::Prove { .. }
                | Step::DropScratch
                | Step::DropClone { .. }
                | Step::ProveRecreated { .. }
                | Step::SafetyBackup { .. }
                | Step::ProvePromotion { .. }
                | Step::KeepDatabase { .. } => {}
            }
        }
        page.push(Line::raw(""));
        page.push(Line::styled(
            format!("plan {}   s shows the exact SQL, y copies it", &self.hash[..self.hash.len().min(12)]),
            theme.quiet(),
        ));
        if self.sql == Sql::Shown {
            for statement in self.statements() {
                page.push(Line::raw(""));
                page.extend(statement.lines().map(|line| Line::raw(text::clean(line).into_owned())));
            }
        }
        (page, selected)
    }
}

fn push_recreation(page: &mut Vec<Line<'static>>, recreation: &Recreation, theme: Theme) {
    page.push(Line::raw("   One transaction: every row that was counted is there, or nothing is."));
    page.push(Line::raw("   Definitions are production's own of that moment: s shows all that runs."));
    for table in &recreation.tables {
        let told = format!("     - {}: {}", table.name, text::counted(table.rows, "row", "rows"));
        page.push(Line::styled(text::clean(&told).into_owned(), theme.missing()));
    }
    let names = recreation.views.iter().map(|view| format!("view {view}"));
    let keys = recreation.foreign_keys.iter().map(|(table, key)| format!("foreign key {key} of {table}"));
    for told in names.chain(keys) {
        page.push(Line::raw(text::clean(&format!("     - {told}")).into_owned()));
    }
    page.push(Line::raw(format!(
        "   {} for sequences, keys and indexes.",
        text::counted(recreation.after.len() as u64, "statement", "statements")
    )));
    page.push(Line::raw(format!(
        "   {} for owners, grants, views, triggers and foreign keys:",
        text::count(recreation.lenient.len() as u64)
    )));
    page.push(Line::raw("   of these, what the server refuses is left out and told in the proof."));
    for note in &recreation.notes {
        page.push(Line::styled(text::clean(&format!("   NOTE: {note}")).into_owned(), theme.changed()));
    }
}

fn push_exchange(page: &mut Vec<Line<'static>>, exchange: &Exchange) {
    let mut lines = Vec::new();
    if exchange.production.is_some() {
        lines.push("   Its sessions are ended; whoever connects again finds the restored one.".to_owned());
        lines.push(format!(
            "   {} settings and grants of the database go along.",
            text::count(exchange.carried.len() as u64)
        ));
        lines
            .push("   Both renames are one transaction: the name leads to a whole database at any instant.".to_owned());
        lines.push(
            "   lifeboat undo goes back; lifeboat clean removes what is kept when it is not needed any more."
                .to_owned(),
        );
    }
    page.extend(lines.into_iter().map(Line::raw));
}

fn push_files(page: &mut Vec<Line<'static>>, choice: &Choice, files: &Files, theme: Theme) -> Option<usize> {
    let mut selected = None;
    if choice.free > 0 {
        page.push(Line::raw(format!("   {} are free there.", text::bytes(choice.free))));
    }
    match &choice.destination {
        Destination::Beside(folder) => {
            for path in &choice.paths {
                let told = format!("   {path}  ->  {}{path}", folder.trim_end_matches('/'));
                page.push(Line::raw(text::clean(&told).into_owned()));
            }
            push_left_out(page, choice, theme);
        }
        Destination::InPlace => {
            page.push(Line::raw("   All of it or nothing. What is not as you saw it stops everything."));
            let mut number = 0;
            for action in SHOWN {
                let shown = push_items(page, choice, action, (files, &mut number), theme);
                selected = selected.or(shown);
                if action == choice::Action::Replace {
                    push_left_out(page, choice, theme);
                }
            }
            if choice.same > 0 {
                let same = text::counted(choice.same, "file is", "files are");
                page.push(Line::styled(format!("   {same} there already, with the same content"), theme.quiet()));
            }
        }
    }
    selected
}

fn push_left_out(page: &mut Vec<Line<'static>>, choice: &Choice, theme: Theme) {
    if choice.left_out.is_empty() {
        return;
    }
    let left_out = text::counted(choice.left_out.len() as u64, "path is", "paths are");
    page.push(Line::styled(format!("   {left_out} LEFT OUT:"), theme.live()));
    let told = choice.left_out.iter().map(|(path, why)| (path.as_str(), format!(": {why}"), theme.live()));
    push_by_folder(page, told);
}

/// What happens in one way, under a line that counts it. Returns the line of the selected one, when it is among them;
/// `number` is its place among all.
fn push_items(
    page: &mut Vec<Line<'static>>,
    choice: &Choice,
    action: choice::Action,
    (files, number): (&Files, &mut usize),
    theme: Theme,
) -> Option<usize> {
    let items: Vec<_> = choice.items.iter().filter(|item| item.action == action).collect();
    if items.is_empty() {
        return None;
    }
    let (symbol, what, style) = match action {
        choice::Action::Replace => ("~", "replaced; what is there is kept as NAME.pre-RECOVERY", theme.changed()),
        choice::Action::Create => ("-", "brought back where nothing stands now", theme.missing()),
        choice::Action::MakeFolder => ("+", "made for them", theme.text()),
    };
    let (one, several) = if action == choice::Action::MakeFolder { ("folder", "folders") } else { ("file", "files") };
    let count = text::counted(items.len() as u64, one, several);
    page.push(Line::styled(format!("   {symbol} {count} {what}:"), style));
    let first = *number;
    *number += items.len();
    let told = items.iter().zip(first..).map(|(item, number)| {
        let size = if item.kind == EntryKind::File { format!("  {}", text::bytes(item.size)) } else { String::new() };
        let instead = item.present.as_ref().filter(|_| action == choice::Action::Replace);
        let instead = instead.map(|present| format!(" instead of {}", text::bytes(present.size)));
        let marked = files.marked.contains(&item.path);
        let told = if marked { "  WILL BE LEFT OUT".into() } else { size + &instead.unwrap_or_default() };
        let style = if marked { theme.quiet() } else { style };
        (item.path.as_str(), told, if number == files.selected { theme.selected() } else { style })
    });
    let lines = push_by_folder(page, told);
    files.selected.checked_sub(first).and_then(|at| lines.get(at).copied())
}

/// Paths with something to be told of each, under the folders that they are in: a folder's path is read once. Returns which
/// line each came to stand on.
fn push_by_folder<'a>(
    page: &mut Vec<Line<'static>>,
    told: impl Iterator<Item = (&'a str, String, Style)>,
) -> Vec<usize> {
    let (mut under, mut lines) = (None, Vec::new());
    for (path, told, style) in told {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        if under != Some(folder) {
            page.push(Line::raw(text::clean(&format!("     {folder}/")).into_owned()));
            under = Some(folder);
        }
        lines.push(page.len());
        page.push(Line::styled(text::clean(&format!("       {name}{told}")).into_owned(), style));
    }
    lines
}

fn push_undo_of_files(page: &mut Vec<Line<'static>>, placed: &[Placed], theme: Theme) {
    page.push(Line::raw("   Only files that nobody has changed since are taken back. Nothing is deleted."));
    let paths: Vec<_> = placed.iter().map(|placed| placed.path.display().to_string()).collect();
    let told = placed.iter().zip(&paths).map(|(placed, path)| {
        let arrow = if placed.before.is_some() { "<->" } else { "->" };
        let aside = placed.aside.file_name().unwrap_or_default();
        (path.as_str(), format!("  {arrow}  {}", aside.display()), theme.text())
    });
    push_by_folder(page, told);
}

fn push_changes(page: &mut Vec<Line<'static>>, changes: &ChangeSet, theme: Theme) {
    page.push(Line::raw("   One transaction, all or nothing. If a row has moved since you saw it, or a"));
    page.push(Line::raw("   count is not the one promised here, it is rolled back and you are told."));
    let wal = changes.load.wal_bytes;
    page.push(Line::raw(format!("   The server writes up to about {} of log.", text::bytes(wal))));
    for follower in &changes.load.followers {
        let (slot, behind) = (text::clean(&follower.slot), text::bytes(follower.behind_bytes));
        page.push(match follower.spare_bytes {
            Some(spare) if spare < wal => Line::styled(
                format!("   Replication slot {slot} may be LOST: it has room for {} more.", text::bytes(spare)),
                theme.live(),
            ),
            _ => Line::raw(format!("   Replication slot {slot} is {behind} behind and has to follow.")),
        });
    }
    for table in &changes.tables {
        page.push(Line::raw(""));
        page.push(Line::styled(format!("   {}", text::clean(&table.table.to_string())), theme.title()));
        for (symbol, rows, what, style) in [
            ("-", table.inserts, "inserted: they are missing in production", theme.missing()),
            ("~", table.updates, "updated to the backup's values", theme.changed()),
            ("+", table.deletes, "DELETED: only production has them", theme.live()),
        ] {
            if rows > 0 {
                page.push(Line::styled(format!("     {symbol} {} {what}", text::counted(rows, "row", "rows")), style));
            }
        }
        push_consequences(page, table, changes.triggers, theme);
    }
}

fn push_consequences(page: &mut Vec<Line<'static>>, table: &TableChange, triggers: Triggers, theme: Theme) {
    if table.updates > 0 {
        page.push(Line::raw(format!("     columns put back: {}", text::clean(&table.columns.join(", ")))));
    }
    for trigger in &table.triggers {
        let word = match triggers {
            Triggers::Fire => "fires",
            Triggers::Skip => "is skipped",
        };
        let partition =
            if trigger.table == table.table { String::new() } else { format!(" of partition {}", trigger.table) };
        page.push(Line::raw(format!("     trigger {}{} {word}", text::clean(&trigger.name), text::clean(&partition))));
    }
    for sequence in &table.sequences {
        page.push(Line::raw(format!(
            "     sequence {} moves forward from {} to {}",
            text::clean(&sequence.sequence.to_string()),
            sequence.from,
            sequence.to
        )));
    }
    for cascade in &table.cascades {
        page.push(Line::styled(
            format!(
                "     takes along {} of {} ({})",
                text::counted(cascade.rows, "row", "rows"),
                text::clean(&cascade.child.to_string()),
                text::clean(&cascade.constraint)
            ),
            theme.live(),
        ));
    }
}

fn push_undo(page: &mut Vec<Line<'static>>, undo: &Undo, theme: Theme) {
    page.push(Line::raw("   Only rows that nobody has changed since are taken back."));
    for table in &undo.tables {
        page.push(Line::raw(""));
        page.push(Line::styled(format!("   {}", text::clean(&table.table.to_string())), theme.title()));
        for (rows, what) in [
            (table.remove, "removed again"),
            (table.set_back, "set back to what they were"),
            (table.bring_back, "brought back"),
        ] {
            if rows > 0 {
                page.push(Line::raw(format!("     {} {what}", text::counted(rows, "row", "rows"))));
            }
        }
        if table.kept > 0 {
            page.push(Line::styled(
                format!(
                    "     {} changed since, left as they are: {}",
                    text::counted(table.kept, "row", "rows"),
                    text::clean(&table.kept_sample.join(", "))
                ),
                theme.bad(),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::beside::Measure;
    use crate::files::write::Own;

    #[test]
    fn what_is_marked_is_answered_to_be_left_out() {
        let item = |path: &str| Item {
            path: path.into(),
            action: choice::Action::Create,
            kind: EntryKind::File,
            size: 1,
            content: String::new(),
            present: None,
        };
        let choice = Choice {
            point: "b".repeat(64),
            paths: vec!["/srv".into()],
            destination: Destination::InPlace,
            own: Own::Numbers,
            measure: Measure::default(),
            items: vec![item("/srv/a"), item("/srv/b")],
            same: 0,
            left_out: std::collections::BTreeMap::new(),
            free: 1,
        };
        let review = |choice: &Choice| {
            let plan = Plan { steps: vec![Step::PutFiles { choice: choice.clone() }] };
            Review::new(plan.clone(), plan.hash().unwrap(), None)
        };
        let mut screen = review(&choice);
        assert_eq!(screen.place(), Place::FilesPlan);
        for action in [Action::Down, Action::Down, Action::Mark] {
            assert!(screen.act(action).is_none());
        }
        let answer = screen.act(Action::Enter);
        assert!(matches!(answer, Some(Command::Answer(Fact::Except(paths))) if paths == ["/srv/b"]));
        // What was left out is one answer: it is taken back before another one is given.
        let mut narrowed = review(&choice.without(&["/srv/b".into()]).unwrap());
        assert!(matches!(narrowed.act(Action::Mark), Some(Command::Notice(_))));
        assert!(narrowed.act(Action::Enter).is_none() && narrowed.wants_text());
    }
}
