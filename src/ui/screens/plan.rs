//! The plan: everything that will happen, and the line where consent is typed.

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
use crate::files::choice::{self, Choice, Destination};
use crate::files::put::Placed;
use crate::postgres::merge::{ChangeSet, TableChange, Triggers, Undo};
use crate::recovery::flows::clean;
use crate::recovery::plan::{Effect, Plan, Step};
use crate::text;
use crate::ui::keymap::Action;
use crate::ui::theme::Theme;

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
    /// The line where consent is typed, and when it opened.
    consent: Option<(Input, Instant)>,
    error: Option<String>,
    /// One person has consented: who, and until when a second one has to.
    first: Option<String>,
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
        Self { plan, hash, sql: Sql::Hidden, scroll: 0, consent: None, error: None, first }
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
            Action::Up => self.scroll = self.scroll.saturating_sub(1),
            Action::Down => self.scroll = self.scroll.saturating_add(1),
            Action::PageUp => self.scroll = self.scroll.saturating_sub(10),
            Action::PageDown => self.scroll = self.scroll.saturating_add(10),
            Action::Top => self.scroll = 0,
            Action::Bottom => self.scroll = u16::MAX,
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
        let page = Paragraph::new(self.page(theme)).wrap(Wrap { trim: false });
        let most = u16::try_from(page.line_count(body.width)).unwrap_or(u16::MAX).saturating_sub(body.height);
        self.scroll = self.scroll.min(most);
        let more = most > self.scroll;
        frame.render_widget(page.scroll((self.scroll, 0)), body);
        let Some((input, _)) = &self.consent else {
            let more = if more { "More below (j, PgDn). " } else { "" };
            let line = match &self.first {
                Some(first) => format!("{more}{first}"),
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

    fn page(&self, theme: Theme) -> Vec<Line<'static>> {
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
                Step::RestoreFiles { choice } | Step::PutFiles { choice } => push_files(&mut page, choice, theme),
                Step::UndoFiles { placed, .. } => push_undo_of_files(&mut page, placed, theme),
                Step::Prove { .. } | Step::DropScratch => {}
            }
        }
        page.push(Line::raw(""));
        let files = self
            .plan
            .steps
            .iter()
            .any(|step| matches!(step, Step::RestoreFiles { .. } | Step::PutFiles { .. } | Step::UndoFiles { .. }));
        let exact = if files { "how it is done by hand" } else { "the exact SQL" };
        page.push(Line::styled(
            format!("plan {}   s shows {exact}, y copies it", &self.hash[..self.hash.len().min(12)]),
            theme.quiet(),
        ));
        if self.sql == Sql::Shown {
            for statement in self.statements() {
                page.push(Line::raw(""));
                page.extend(statement.lines().map(|line| Line::raw(text::clean(line).into_owned())));
            }
        }
        page
    }
}

fn push_files(page: &mut Vec<Line<'static>>, choice: &Choice, theme: Theme) {
    page.push(Line::raw(format!("   {} are free there.", text::bytes(choice.free))));
    match &choice.destination {
        Destination::Beside(folder) => {
            for path in &choice.paths {
                let told = format!("   {path}  ->  {folder}{path}");
                page.push(Line::raw(text::clean(&told).into_owned()));
            }
            push_left_out(page, choice, theme);
        }
        Destination::InPlace => {
            page.push(Line::raw("   All of it or nothing. What is not as you saw it stops everything."));
            // What is replaced and what is left out stand first: a person who skims has to see them.
            let replaced = ("~", "replaced; what is there is kept as NAME.pre-RECOVERY", theme.changed());
            push_items(page, choice, choice::Action::Replace, replaced);
            push_left_out(page, choice, theme);
            let created = ("-", "brought back where nothing stands now", theme.missing());
            push_items(page, choice, choice::Action::Create, created);
            push_items(page, choice, choice::Action::MakeFolder, ("+", "made for them", theme.text()));
            if choice.same > 0 {
                let same = text::counted(choice.same, "file is", "files are");
                page.push(Line::styled(format!("   {same} there already, with the same content"), theme.quiet()));
            }
        }
    }
}

fn push_left_out(page: &mut Vec<Line<'static>>, choice: &Choice, theme: Theme) {
    if choice.left_out.is_empty() {
        return;
    }
    let left_out = text::counted(choice.left_out.len() as u64, "path is", "paths are");
    page.push(Line::styled(format!("   {left_out} LEFT OUT:"), theme.live()));
    let told = choice.left_out.iter().map(|(path, why)| (path.as_str(), format!(": {why}")));
    push_by_folder(page, told, theme.live());
}

/// What happens in one way, under a line that counts it.
fn push_items(
    page: &mut Vec<Line<'static>>,
    choice: &Choice,
    action: choice::Action,
    (symbol, what, style): (&str, &str, Style),
) {
    let items: Vec<_> = choice.items.iter().filter(|item| item.action == action).collect();
    if items.is_empty() {
        return;
    }
    let (one, several) = if action == choice::Action::MakeFolder { ("folder", "folders") } else { ("file", "files") };
    let count = text::counted(items.len() as u64, one, several);
    page.push(Line::styled(format!("   {symbol} {count} {what}:"), style));
    let told = items.iter().map(|item| {
        let size = if item.kind == EntryKind::File { format!("  {}", text::bytes(item.size)) } else { String::new() };
        let instead = item.present.as_ref().filter(|_| action == choice::Action::Replace);
        let instead = instead.map(|present| format!(" instead of {}", text::bytes(present.size)));
        (item.path.as_str(), size + &instead.unwrap_or_default())
    });
    push_by_folder(page, told, style);
}

/// Paths with something to be told of each, under the folders that they are in: a folder's path is read once.
fn push_by_folder<'a>(page: &mut Vec<Line<'static>>, told: impl Iterator<Item = (&'a str, String)>, style: Style) {
    let mut under = None;
    for (path, told) in told {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        if under != Some(folder) {
            page.push(Line::raw(text::clean(&format!("     {folder}/")).into_owned()));
            under = Some(folder);
        }
        page.push(Line::styled(text::clean(&format!("       {name}{told}")).into_owned(), style));
    }
}

fn push_undo_of_files(page: &mut Vec<Line<'static>>, placed: &[Placed], theme: Theme) {
    page.push(Line::raw("   Only files that nobody has changed since are taken back. Nothing is deleted."));
    let paths: Vec<_> = placed.iter().map(|placed| placed.path.display().to_string()).collect();
    let told = placed.iter().zip(&paths).map(|(placed, path)| {
        let arrow = if placed.before.is_some() { "<->" } else { "->" };
        let aside = placed.aside.file_name().unwrap_or_default();
        (path.as_str(), format!("  {arrow}  {}", aside.display()))
    });
    push_by_folder(page, told, theme.text());
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
