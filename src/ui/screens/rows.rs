//! See the difference, choose what to write: the heart of the console.
//!
//! ```text
//!   overview  --Enter-->  rows  --Enter-->  record  --Enter-->  one value, whole
//!   tables, transactions, columns, what will be written         Esc always goes one back
//! ```
//!
//! The screen holds pages of the diff only, and asks for them: after every [`act`](RowsScreen::act),
//! [`typed`](RowsScreen::typed) and every answer the caller drains [`pending`](RowsScreen::pending). At most one page and
//! one count are on their way at a time, so an error belongs to one of them.

mod choosing;
mod listing;
mod overview;
mod pager;
mod record;
mod story;
pub(super) mod value;

use std::collections::BTreeSet;

use chrono::FixedOffset;
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span, Text};
use tui_input::Input;

use super::Command;
use crate::error::Error;
use crate::postgres::diff::{Class, Filter, Page, TableDiff};
use crate::postgres::merge::Choice;
use crate::recovery::record::Fact;
use crate::recovery::worker::Request;
use crate::text;
use crate::ui::keymap::{Action, Place};
use crate::ui::table::Cursor;
use crate::ui::theme::Theme;
use crate::ui::wrap;
use choosing::{Changed, Choosing, Counts, Known, Sum, Switch};
use listing::Listing;
use overview::Pane;
use story::Zone;

/// What is on the screen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    Overview,
    Rows,
    Record,
    Value,
}

/// Something that has to be typed or confirmed first.
#[derive(Debug)]
enum Prompt {
    /// A SQL condition for what is written, or for what is listed.
    Condition { aim: Aim, input: Input },
    /// Whether rows that are only in production are to be deleted.
    Deletes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    Choice,
    Listing,
}

/// The last thing that has to be said; gone with the next key.
#[derive(Debug)]
enum Notice {
    Hint(String),
    Error(Error),
}

/// The rows of some tables, compared, and what is to be written of them.
#[derive(Debug)]
pub struct RowsScreen {
    diffs: Vec<TableDiff>,
    choosing: Vec<Choosing>,
    counts: Vec<Counts>,
    culprits: BTreeSet<u32>,
    zone: Zone,
    view: View,
    pane: Pane,
    tables: Cursor,
    transactions: Cursor,
    columns: Cursor,
    /// The table whose small transactions are listed one by one.
    expanded: Option<usize>,
    listing: Option<Listing>,
    /// The column on the record view, and how far its whole value is scrolled.
    cell: Cursor,
    scrolled: u16,
    prompt: Option<Prompt>,
    notice: Option<Notice>,
    /// The count that is on its way.
    counting: Option<(usize, Filter)>,
    /// A condition that was typed and is not yet known to be valid.
    checking: Option<(usize, Aim, String)>,
    /// After an error nothing is asked again by itself.
    stalled: bool,
    /// Where a moment in time can be brought back: how many answers have to be taken back for it.
    before_moment: Option<usize>,
}

impl RowsScreen {
    /// One choice for each table, as proposed; nothing is fetched before [`RowsScreen::pending`] is asked.
    pub fn new(diffs: Vec<TableDiff>) -> Self {
        let culprits = story::culprits(&diffs);
        Self {
            choosing: diffs.iter().map(|diff| Choosing::proposed(diff, &culprits)).collect(),
            counts: diffs.iter().map(|_| Counts::default()).collect(),
            diffs,
            culprits,
            zone: Zone::Local,
            view: View::Overview,
            pane: Pane::Tables,
            tables: Cursor::default(),
            transactions: Cursor::default(),
            columns: Cursor::default(),
            expanded: None,
            listing: None,
            cell: Cursor::default(),
            scrolled: 0,
            prompt: None,
            notice: None,
            counting: None,
            checking: None,
            stalled: false,
            before_moment: None,
        }
    }

    /// Offers the moment before a transaction; so many answers have to be taken back for it.
    #[must_use]
    pub fn with_moments(mut self, back: Option<usize>) -> Self {
        self.before_moment = back;
        self
    }

    /// Shows times in this zone instead of the terminal's, for pictures and tests.
    #[must_use]
    pub fn in_zone(mut self, offset: FixedOffset) -> Self {
        self.zone = Zone::Fixed(offset);
        self
    }

    /// Whether both are about the same tables.
    pub fn same_tables(&self, other: &Self) -> bool {
        self.diffs.iter().map(|diff| &diff.table).eq(other.diffs.iter().map(|diff| &diff.table))
    }

    /// This screen when its question is asked again. After another comparison rows have other numbers: the rules stay,
    /// what was marked row by row does not.
    #[must_use]
    pub fn resumed(self, asked: Self) -> Self {
        if self.diffs == asked.diffs {
            return self;
        }
        let by_row = self.choosing.iter().any(|choosing| choosing.picked.is_some() || !choosing.left_out.is_empty());
        let mut choosing = self.choosing;
        for (choosing, proposed) in choosing.iter_mut().zip(&asked.choosing) {
            if choosing.picked.take().is_some() {
                choosing.clone_from(proposed);
            }
            choosing.left_out.clear();
        }
        let hint = if by_row {
            "Compared again. Rows that you left out or picked one by one have to be marked again."
        } else {
            "Compared again. What you chose still holds; look at the new numbers."
        };
        Self { choosing, notice: Some(Notice::Hint(hint.into())), ..asked }
    }

    /// What would be written, table by table; tables of which nothing is chosen are left out.
    pub fn choices(&self) -> Vec<Choice> {
        (0..self.diffs.len())
            .filter_map(|table| self.choosing[table].choice(&self.diffs[table], &self.counts[table]))
            .collect()
    }

    /// Which of its views the keys are for.
    pub fn place(&self) -> Place {
        match (&self.prompt, self.view) {
            (Some(Prompt::Deletes), _) => Place::Deletes,
            (_, View::Overview) => Place::Overview,
            (_, View::Rows) => Place::Rows,
            (_, View::Record) => Place::Record,
            (_, View::Value) => Place::Value,
        }
    }

    /// Whether a condition is being typed.
    pub fn wants_text(&self) -> bool {
        matches!(self.prompt, Some(Prompt::Condition { .. }))
    }

    /// The next thing to fetch for this screen. To be asked until it is `None`.
    pub fn pending(&mut self) -> Option<Command> {
        if self.stalled {
            return None;
        }
        if let Some(listing) = &mut self.listing
            && let Some(after) = listing.pager.want()
        {
            return Some(Command::Ask(Request::Page {
                table: listing.table,
                filter: listing.filter.clone(),
                after,
                limit: pager::LIMIT,
            }));
        }
        if self.counting.is_some() {
            return None;
        }
        let (table, filter) = self.open_count()?;
        self.counting = Some((table, filter.clone()));
        Some(Command::Ask(Request::Count { table, filter }))
    }

    /// A count that is missing: of a condition to be checked, of the rows listed, of the choices.
    fn open_count(&self) -> Option<(usize, Filter)> {
        if let Some((table, _, condition)) = &self.checking {
            return Some((*table, Filter { condition: Some(condition.clone()), ..Filter::default() }));
        }
        if let Some(listing) = &self.listing
            && self.counts[listing.table].get(&self.diffs[listing.table], &listing.filter).is_none()
        {
            return Some((listing.table, listing.filter.clone()));
        }
        let open = |table: usize| {
            let wanted = self.choosing[table].open_counts(&self.diffs[table], &self.counts[table]);
            wanted.into_iter().next().map(|filter| (table, filter))
        };
        open(self.table()).or_else(|| (0..self.diffs.len()).find_map(open))
    }

    /// Takes rows that were read after row `after`.
    pub fn page(&mut self, table: usize, filter: &Filter, after: i64, page: Page) {
        if let Some(listing) =
            self.listing.as_mut().filter(|listing| listing.table == table && listing.filter == *filter)
        {
            listing.pager.take(after, page);
        }
    }

    /// Takes a count.
    pub fn count(&mut self, table: usize, filter: &Filter, rows: u64) {
        if self.counting.as_ref().is_some_and(|(asked, wanted)| *asked == table && wanted == filter) {
            self.counting = None;
        }
        let Some(counts) = self.counts.get_mut(table) else { return };
        counts.know(filter, rows);
        let checked = self
            .checking
            .take_if(|(asked, _, condition)| *asked == table && filter.condition.as_ref() == Some(condition));
        if let Some((_, aim, condition)) = checked {
            match aim {
                Aim::Choice => self.choosing[table].condition = Some(condition),
                Aim::Listing => {
                    if let Some(listing) = self.listing.as_mut().filter(|listing| listing.table == table) {
                        listing.show(Filter { condition: Some(condition), ..listing.filter.clone() });
                    }
                }
            }
        }
    }

    /// Takes the failure of what was on its way. A condition that was being checked is given back for correction.
    pub fn failed(&mut self, error: Error) {
        self.counting = None;
        if let Some(listing) = &mut self.listing {
            listing.pager.give_up();
        }
        if let Some((_, aim, condition)) = self.checking.take() {
            self.prompt = Some(Prompt::Condition { aim, input: Input::new(condition) });
        } else {
            self.stalled = true;
        }
        self.notice = Some(Notice::Error(error));
    }

    fn table(&self) -> usize {
        self.tables.selected.min(self.diffs.len().saturating_sub(1))
    }

    /// One key, as the keymap reads it.
    pub fn act(&mut self, action: Action) -> Option<Command> {
        if self.diffs.is_empty() {
            return (action == Action::Back).then_some(Command::Back);
        }
        self.notice = None;
        self.stalled = false;
        if let Some(Prompt::Deletes) = self.prompt {
            return self.answer_deletes(action);
        }
        let command = match action {
            Action::Write => self.go_on(),
            Action::Refresh => Some(Command::Refresh),
            Action::Missing => self.change(|choosing, _| choosing.missing = choosing.missing.flipped()),
            Action::Changed => self.change(|choosing, _| choosing.cycle_changed()),
            Action::Extra => self.ask_deletes(),
            Action::Condition => self.ask_condition(Aim::Choice),
            Action::Proposal => self.propose_again(),
            _ => match self.view {
                View::Overview => self.act_on_overview(action),
                View::Rows => self.act_on_rows(action),
                View::Record => self.act_on_record(action),
                View::Value => self.act_on_value(action),
            },
        };
        command.or_else(|| self.pending())
    }

    /// Changes the rule of the selected table, unless it cannot have one.
    fn change(&mut self, change: impl FnOnce(&mut Choosing, &TableDiff)) -> Option<Command> {
        let table = self.table();
        let diff = &self.diffs[table];
        if diff.key.is_none() {
            self.notice = Some(Notice::Hint(NO_KEY.into()));
        } else if self.choosing[table].picked.is_some() {
            self.notice = Some(Notice::Hint(
                "Only the rows you picked are written now. Press p for the proposal to choose by rule again.".into(),
            ));
        } else {
            change(&mut self.choosing[table], diff);
        }
        None
    }

    fn propose_again(&mut self) -> Option<Command> {
        let table = self.table();
        self.choosing[table] = Choosing::proposed(&self.diffs[table], &self.culprits);
        self.notice = Some(Notice::Hint("Back to what is proposed for this table.".into()));
        None
    }

    /// The answer, or what is missing for one.
    fn go_on(&mut self) -> Option<Command> {
        if let Some((_, _, condition)) = &self.checking {
            self.notice = Some(Notice::Hint(format!("Still checking the condition {}.", text::clean(condition))));
            return None;
        }
        let choices = self.choices();
        if choices.is_empty() {
            self.notice = Some(Notice::Hint(self.what_to_choose()));
            return None;
        }
        let open: Vec<usize> = (0..self.diffs.len()).filter(|table| self.sum(*table).is_none()).collect();
        if open.len() == self.diffs.len() {
            self.notice = Some(Notice::Hint("No row meets what you chose, so there is nothing to write.".into()));
            return None;
        }
        Some(Command::Answer(Fact::Rows(choices)))
    }

    /// Why there is nothing to write, and which keys change that.
    fn what_to_choose(&self) -> String {
        let diff = &self.diffs[self.table()];
        if self.diffs.iter().all(|diff| diff.key.is_none()) {
            return NO_KEY.into();
        }
        let mut ways = Vec::new();
        if diff.missing > 0 {
            ways.push("m brings missing rows back");
        }
        if diff.changed > 0 {
            ways.push("Tab and Space mark the transactions that did the damage");
            ways.push("c takes all changed rows");
        }
        if ways.is_empty() {
            return "Nothing is chosen to be written, and nothing of this table can come back: choose in another table, or \
                    press Esc."
                .into();
        }
        format!("Nothing is chosen to be written yet: {}.", ways.join("; "))
    }

    fn sum(&self, table: usize) -> Sum {
        self.choosing[table].sum(&self.diffs[table], &self.counts[table])
    }

    fn ask_condition(&mut self, aim: Aim) -> Option<Command> {
        let now = match aim {
            Aim::Choice => self.choosing[self.table()].condition.clone(),
            Aim::Listing => self.listing.as_ref().and_then(|listing| listing.filter.condition.clone()),
        };
        if aim == Aim::Choice && self.diffs[self.table()].key.is_none() {
            self.notice = Some(Notice::Hint(NO_KEY.into()));
            return None;
        }
        self.prompt = Some(Prompt::Condition { aim, input: Input::new(now.unwrap_or_default()) });
        None
    }

    fn ask_deletes(&mut self) -> Option<Command> {
        let table = self.table();
        let diff = &self.diffs[table];
        if diff.key.is_none() {
            self.notice = Some(Notice::Hint(NO_KEY.into()));
        } else if diff.extra == 0 {
            self.notice = Some(Notice::Hint("No row of this table is only in production.".into()));
        } else if self.choosing[table].deletes == Switch::On {
            self.choosing[table].deletes = Switch::Off;
            if let Some(picked) = &mut self.choosing[table].picked {
                picked.retain(|_, known| known.class != Class::Extra);
            }
        } else {
            self.prompt = Some(Prompt::Deletes);
        }
        None
    }

    fn answer_deletes(&mut self, action: Action) -> Option<Command> {
        self.prompt = None;
        if action == Action::Confirm {
            let table = self.table();
            self.choosing[table].deletes = Switch::On;
        } else {
            self.notice = Some(Notice::Hint("Nothing will be deleted.".into()));
        }
        self.pending()
    }

    /// One key while text is typed.
    pub fn typed(&mut self, key: KeyEvent) -> Option<Command> {
        use tui_input::backend::crossterm::EventHandler as _;
        let Some(Prompt::Condition { aim, input }) = &mut self.prompt else { return None };
        let aim = *aim;
        match (key.code, key.modifiers) {
            (KeyCode::Esc, _) | (KeyCode::Char('c'), KeyModifiers::CONTROL) => {
                self.prompt = None;
                self.notice = None;
            }
            (KeyCode::Enter, _) => {
                let condition = input.value().trim().to_owned();
                self.prompt = None;
                self.notice = None;
                self.stalled = false;
                self.set_condition(aim, condition);
            }
            _ => {
                input.handle_event(&crossterm::event::Event::Key(key));
            }
        }
        self.pending()
    }

    fn set_condition(&mut self, aim: Aim, condition: String) {
        let table = self.table();
        if !condition.is_empty() {
            self.checking = Some((table, aim, condition));
            // A count that was on its way answers another question; its late answer is still welcome.
            self.counting = None;
            return;
        }
        match (aim, &mut self.listing) {
            (Aim::Choice, _) => self.choosing[table].condition = None,
            (Aim::Listing, Some(listing)) => listing.show(Filter { condition: None, ..listing.filter.clone() }),
            (Aim::Listing, None) => {}
        }
    }

    /// Opens the rows of the selected table that match.
    fn list(&mut self, filter: Filter) {
        self.listing = Some(Listing::new(self.table(), filter));
        self.view = View::Rows;
    }

    /// Leaves out or takes in one row; says why when it cannot.
    fn mark_row(&mut self) {
        let Some(row) = self.listing.as_ref().and_then(|listing| listing.pager.selected_row()) else { return };
        let known = Known::of(row);
        let number = row.number;
        let table = self.table();
        let choosing = &mut self.choosing[table];
        if self.diffs[table].key.is_none() {
            self.notice = Some(Notice::Hint(NO_KEY.into()));
            return;
        }
        if let Some(picked) = &mut choosing.picked {
            if picked.remove(&number).is_none() {
                if known.class == Class::Extra && choosing.deletes == Switch::Off {
                    self.notice = Some(Notice::Hint(DELETES_OFF.into()));
                } else {
                    picked.insert(number, known);
                }
            }
        } else if choosing.left_out.remove(&number).is_some() {
        } else if choosing.rule_covers(known) {
            choosing.left_out.insert(number, known);
        } else {
            self.notice = Some(Notice::Hint(match known.class {
                Class::Missing => "Missing rows are not written now: m brings them back, o picks single rows.".into(),
                Class::Extra => DELETES_OFF.into(),
                Class::Changed => format!(
                    "This row is not among those to write: {}. To pick single rows press o.",
                    match known.xid {
                        Some(xid) => format!("transaction {xid} is not marked"),
                        None => "changed rows are off".into(),
                    }
                ),
            }));
        }
    }

    /// Switches between the rule and single rows.
    fn pick_only(&mut self) {
        let table = self.table();
        if self.diffs[table].key.is_none() {
            self.notice = Some(Notice::Hint(NO_KEY.into()));
            return;
        }
        let choosing = &mut self.choosing[table];
        let hint = if choosing.picked.take().is_some() {
            "Rows are chosen by the rule again."
        } else {
            choosing.picked = Some(std::collections::BTreeMap::new());
            "Only rows that you mark with Space are written now. Press o again to choose by rule."
        };
        self.notice = Some(Notice::Hint(hint.into()));
    }

    /// Draws the present view, and below it what will be written and what has to be said.
    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        if self.diffs.is_empty() {
            frame.render_widget(Line::styled("No table was compared.", theme.quiet()), area);
            return;
        }
        let bottom = wrap::all(&self.bottom(theme), area.width);
        // However long a server's words are, the rows stay on screen.
        let lines = u16::try_from(bottom.len()).unwrap_or(u16::MAX).min((area.height / 2).max(1));
        let [above, below] = area.layout(&Layout::vertical([Constraint::Min(0), Constraint::Length(lines)]));
        match self.view {
            View::Overview => self.draw_overview(frame, above, theme),
            View::Rows => self.draw_rows(frame, above, theme),
            View::Record => self.draw_record(frame, above, theme),
            View::Value => self.draw_value(frame, above, theme),
        }
        frame.render_widget(Text::from(bottom), below);
    }

    /// What will be written, and below it what has to be answered or was said.
    fn bottom(&self, theme: Theme) -> Vec<Line<'static>> {
        let mut lines = vec![self.will_write(theme)];
        match &self.notice {
            Some(Notice::Hint(hint)) => lines.push(Line::styled(hint.clone(), theme.bad())),
            Some(Notice::Error(error)) => {
                lines.push(Line::styled(text::clean(&error.message).into_owned(), theme.bad()));
                lines.extend(error.detail.iter().map(|detail| Line::raw(text::clean(detail).into_owned())));
                lines.extend(error.hints.iter().map(|hint| Line::raw(text::clean(hint).into_owned())));
            }
            None => {}
        }
        match &self.prompt {
            Some(Prompt::Condition { aim, input }) => {
                let what = match aim {
                    Aim::Choice => "write only rows where",
                    Aim::Listing => "show only rows where",
                };
                lines.push(Line::from(vec![
                    Span::styled(format!("{what}: "), theme.key()),
                    Span::raw(text::clean(input.value()).into_owned()),
                    Span::styled(theme.symbols().caret, theme.key()),
                ]));
                lines.push(Line::styled(
                    "SQL over backup and live, as in  live.status = 'void' and backup.amount > 100    Enter check  Esc leave \
                     as it was",
                    theme.quiet(),
                ));
            }
            Some(Prompt::Deletes) => lines.push(Line::styled(self.deletes_asked(), theme.live())),
            None => {}
        }
        if let Some((_, _, condition)) = &self.checking {
            lines.push(Line::styled(format!("checking: {}", text::clean(condition)), theme.quiet()));
        }
        lines
    }

    fn deletes_asked(&self) -> String {
        let diff = &self.diffs[self.table()];
        let choosing = &self.choosing[self.table()];
        let whose = if choosing.changed == Changed::Marked { " written by the marked transactions" } else { "" };
        let cascades: BTreeSet<String> = diff
            .children
            .iter()
            .filter(|key| key.on_delete == crate::postgres::schema::OnDelete::Cascade)
            .map(|key| text::clean(&key.child.to_string()).into_owned())
            .collect();
        let cascades = if cascades.is_empty() {
            String::new()
        } else {
            format!(" Rows of {} that refer to them would go too.", cascades.into_iter().collect::<Vec<_>>().join(", "))
        };
        format!(
            "! Delete rows{whose} that are only in production ({} in all)? Most such rows are honest work since the \
             backup.{cascades} y chooses deleting, Esc leaves them alone.",
            text::count(diff.extra)
        )
    }
}

const NO_KEY: &str = "This table has no key, so rows cannot be paired and nothing can be written to it. Go back and name a key \
                      to be able to.";
const DELETES_OFF: &str = "This row is only in production, and deleting is off: D turns it on.";
