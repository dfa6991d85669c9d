//! The first view: what differs in each table, who wrote it, and what would be written.
//!
//! ```text
//!   tables with their counts, what the symbols mean
//!   the selected table: key, definition drift, what happened in words
//!   by transaction | by column       (side by side when wide, else one of them)
//! ```

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span, Text};

use super::choosing::{Amount, Switch};
use super::{Choosing, Notice, RowsScreen, View, story};
use crate::postgres::cluster::Target;
use crate::postgres::diff::{Class, Drift, Filter, Pair, TableDiff, TransactionCount};
use crate::postgres::schema::{ForeignKey, Key, KeySource, OnDelete};
use crate::recovery::record::{Aim, Fact, Scope};
use crate::text;
use crate::ui::keymap::Action;
use crate::ui::screens::Command;
use crate::ui::table::{self, Cell, Column, Cursor, Focus, Mark, Row, Table};
use crate::ui::theme::Theme;
use crate::ui::wrap;

/// From this width on transactions and columns are shown side by side.
const WIDE: u16 = 110;

/// Definition notes shown above; all of them are in the list of columns.
const NOTES: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pane {
    Tables,
    Transactions,
    Columns,
}

/// One line of the list of transactions: one, or the small rest together.
#[derive(Debug, Clone)]
pub enum TransactionLine<'a> {
    One(&'a TransactionCount),
    Others(Vec<&'a TransactionCount>),
}

impl TransactionLine<'_> {
    fn xids(&self) -> Vec<u32> {
        match self {
            Self::One(count) => vec![count.xid],
            Self::Others(counts) => counts.iter().map(|count| count.xid).collect(),
        }
    }
}

/// One line of the list of columns.
enum ColumnLine<'a> {
    Differing(&'a str, u64),
    /// Cannot be compared or written, or only by a cast.
    Drifted(&'a Pair),
}

fn column_lines(diff: &TableDiff) -> Vec<ColumnLine<'_>> {
    let differing = diff.by_column.iter().map(|count| ColumnLine::Differing(&count.column, count.rows));
    let drifted = diff
        .pairs
        .iter()
        .filter(|pair| pair.drift != Drift::Same && !diff.by_column.iter().any(|count| count.column == pair.column));
    differing.chain(drifted.map(ColumnLine::Drifted)).collect()
}

impl RowsScreen {
    fn transaction_lines(&self) -> Vec<TransactionLine<'_>> {
        let listed = story::listed(&self.diffs[self.table()]);
        let mut lines: Vec<_> = listed.single.into_iter().map(TransactionLine::One).collect();
        if self.expanded == Some(self.table()) {
            lines.extend(listed.others.into_iter().map(TransactionLine::One));
        } else if !listed.others.is_empty() {
            lines.push(TransactionLine::Others(listed.others));
        }
        lines
    }

    pub(super) fn act_on_overview(&mut self, action: Action) -> Option<Command> {
        if self.move_on_overview(action) {
            return None;
        }
        match action {
            Action::NextPane | Action::Right => self.pane = next_pane(self.pane),
            Action::PreviousPane | Action::Left => self.pane = next_pane(next_pane(self.pane)),
            Action::Mark => self.mark_on_overview(),
            Action::Enter => self.open_on_overview(),
            Action::Filter => {
                self.list(Filter::default());
                return self.ask_condition(super::Aim::Listing);
            }
            Action::PickOnly => {
                self.pick_only();
                self.list(Filter::default());
            }
            Action::MomentBefore => return self.moment_before(),
            Action::Back => return Some(Command::Back),
            _ => {}
        }
        None
    }

    /// Another recovery than from the dump: of the moment just before the selected transaction.
    fn moment_before(&mut self) -> Option<Command> {
        let Some(back) = self.before_moment else {
            let how = "Base backups and WAL have to be configured for that: base_backups and wal_archive.";
            self.notice = Some(Notice::Hint(how.into()));
            return None;
        };
        let selected = match self.transaction_lines().get(self.transactions.selected) {
            Some(TransactionLine::One(count)) => Some(count.xid),
            Some(TransactionLine::Others(_)) | None => None,
        };
        let Some(xid) = selected else {
            self.notice = Some(Notice::Hint("Select one transaction first: Tab goes to their list.".into()));
            return None;
        };
        let aim = Aim { target: Target::Transaction(xid), before: true, timeline: None };
        Some(Command::Instead { back, facts: vec![Fact::Scope(Scope::Moment), Fact::Aim(aim)] })
    }

    /// Moves the selection of the pane that has the focus; tells whether the key was for that.
    fn move_on_overview(&mut self, action: Action) -> bool {
        let len = match self.pane {
            Pane::Tables => self.diffs.len(),
            Pane::Transactions => self.transaction_lines().len(),
            Pane::Columns => column_lines(&self.diffs[self.table()]).len(),
        };
        let before = self.table();
        let cursor = match self.pane {
            Pane::Tables => &mut self.tables,
            Pane::Transactions => &mut self.transactions,
            Pane::Columns => &mut self.columns,
        };
        let moved = cursor.act(action, len);
        if self.table() != before {
            self.transactions = Cursor::default();
            self.columns = Cursor::default();
        }
        moved
    }

    fn mark_on_overview(&mut self) {
        let table = self.table();
        match self.pane {
            Pane::Tables => {
                if self.choosing[table].choice(&self.diffs[table], &self.counts[table]).is_none() {
                    self.propose_again();
                } else {
                    let nothing = Choosing::nothing();
                    self.change(|choosing, _| *choosing = nothing);
                }
            }
            Pane::Transactions => {
                let lines = self.transaction_lines();
                let Some(xids) = lines.get(self.transactions.selected).map(TransactionLine::xids) else { return };
                self.change(|choosing, _| choosing.mark_transactions(&xids));
            }
            Pane::Columns => {
                let lines = column_lines(&self.diffs[table]);
                match lines.get(self.columns.selected) {
                    Some(ColumnLine::Differing(column, _)) => {
                        let column = (*column).to_owned();
                        self.choosing[table].mark_column(&self.diffs[table], &self.counts[table], &column);
                    }
                    Some(ColumnLine::Drifted(pair)) => {
                        self.notice = Some(Notice::Hint(format!("Nothing to mark: {}.", drift_note(pair))));
                    }
                    None => {}
                }
            }
        }
    }

    fn open_on_overview(&mut self) {
        let table = self.table();
        let filter = match self.pane {
            Pane::Tables => Some(Filter::default()),
            Pane::Transactions => match self.transaction_lines().get(self.transactions.selected) {
                Some(TransactionLine::One(count)) => Some(Filter { transaction: Some(count.xid), ..Filter::default() }),
                Some(TransactionLine::Others(_)) => None,
                None => Some(Filter::default()),
            },
            Pane::Columns => match column_lines(&self.diffs[table]).get(self.columns.selected) {
                Some(ColumnLine::Differing(column, _)) => {
                    Some(Filter { column: Some((*column).to_owned()), ..Filter::default() })
                }
                Some(ColumnLine::Drifted(_)) | None => Some(Filter::default()),
            },
        };
        match filter {
            Some(filter) => self.list(filter),
            None => self.expanded = Some(table),
        }
    }

    pub(super) fn draw_overview(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        debug_assert!(self.view == View::Overview);
        let about = wrap::all(&self.about(theme), area.width);
        let height = usize::from(area.height);
        // Tables and the list below share what is left; each keeps a usable minimum.
        let tables = (self.diffs.len() + 2).min((height / 3).max(3));
        let room = height.saturating_sub(tables + 1 + 4);
        let about_lines = about.len().min(room);
        let length = |lines: usize| Constraint::Length(u16::try_from(lines).unwrap_or(u16::MAX));
        let [upper, legend, middle, lower] = area.layout(&Layout::vertical([
            length(tables),
            Constraint::Length(1),
            length(about_lines),
            Constraint::Min(0),
        ]));
        self.draw_tables(frame, upper, theme);
        frame.render_widget(legend_line(theme, legend.width), legend);
        frame.render_widget(Text::from(about), middle);
        if area.width >= WIDE {
            let [left, right] =
                lower.layout(&Layout::horizontal([Constraint::Percentage(62), Constraint::Percentage(38)]).spacing(2));
            self.draw_transactions(frame, left, theme);
            self.draw_columns(frame, right, theme);
        } else if self.pane == Pane::Columns {
            self.draw_columns(frame, lower, theme);
        } else {
            self.draw_transactions(frame, lower, theme);
        }
    }

    fn focus(&self, pane: Pane) -> Focus {
        if self.pane == pane { Focus::Here } else { Focus::Elsewhere }
    }

    fn draw_tables(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let columns = [
            Column::left("table", 16, 40, 0),
            Column::right("- missing", 9, 12, 1),
            Column::right("~ changed", 9, 12, 1),
            Column::right("+ extra", 7, 12, 1),
            Column::right("= same", 7, 12, 3),
            Column::left("will write", 10, 30, 2),
            Column::left("key", 4, 20, 5),
            Column::right("in backup", 9, 12, 6),
            Column::right("in production", 13, 13, 6),
        ];
        let row = |index: usize| {
            let diff = &self.diffs[index];
            let sum = self.sum(index);
            let number = |rows: u64, style| Cell::new(text::count(rows), if rows > 0 { style } else { theme.quiet() });
            Row {
                mark: if sum.is_none() { Mark::Off } else { Mark::On },
                cells: vec![
                    text::clean(&diff.table.to_string()).into_owned().into(),
                    number(diff.missing, theme.missing()),
                    number(diff.changed, theme.changed()),
                    number(diff.extra, theme.extra()),
                    number(diff.same, theme.quiet()),
                    Cell(will_write_short(&sum, theme)),
                    key_columns(diff.key.as_ref()).into(),
                    text::count(diff.backup_rows).into(),
                    text::count(diff.live_rows).into(),
                ],
            }
        };
        let table = Table {
            title: Line::styled("Compared with the backup", theme.title()),
            position: None,
            columns: &columns,
            len: self.diffs.len(),
            row: &row,
            empty: "",
            focus: self.focus(Pane::Tables),
        };
        let mut cursor = self.tables;
        table::draw(frame, area, &table, &mut cursor, theme);
        self.tables = cursor;
    }

    /// The selected table in words: key, rows, drift of its definition, what happened.
    fn about(&self, theme: Theme) -> Vec<Line<'static>> {
        let diff = &self.diffs[self.table()];
        let mut lines = vec![Line::styled(
            format!(
                "{}: {}; {} in the backup, {} in production",
                text::clean(&diff.table.to_string()),
                key_told(diff.key.as_ref()),
                text::counted(diff.backup_rows, "row", "rows"),
                text::count(diff.live_rows)
            ),
            theme.quiet(),
        )];
        let notes: Vec<_> = diff.pairs.iter().filter(|pair| pair.drift != Drift::Same).collect();
        let shown = if notes.len() > NOTES + 1 { NOTES } else { notes.len() };
        for pair in &notes[..shown] {
            lines.push(Line::styled(format!("! {}", drift_note(pair)), theme.bad()));
        }
        if shown < notes.len() {
            lines.push(Line::styled(
                format!(
                    "! {} more columns are defined differently: Tab to the columns shows them",
                    notes.len() - shown
                ),
                theme.bad(),
            ));
        }
        if diff.unkeyed_backup + diff.unkeyed_live > 0 {
            lines.push(Line::styled(
                format!(
                    "! rows with NULL in the key are never written: {} in the backup, {} in production",
                    text::count(diff.unkeyed_backup),
                    text::count(diff.unkeyed_live)
                ),
                theme.bad(),
            ));
        }
        let compared = |key: &&ForeignKey| self.diffs.iter().any(|diff| diff.table == key.child);
        let alone: Vec<_> =
            diff.children.iter().filter(|key| key.on_delete == OnDelete::Cascade && !compared(key)).collect();
        if diff.missing > 0 && !alone.is_empty() {
            let names: Vec<_> = alone.iter().map(|key| key.child.to_string()).collect();
            lines.push(Line::styled(
                format!(
                    "! rows of {} that referred to the missing ones went with them: Esc, and mark that table too",
                    text::clean(&names.join(", "))
                ),
                theme.bad(),
            ));
        }
        lines.push(Line::styled(story::told(diff, &self.culprits, self.zone), theme.title()));
        for (rare, xid) in self.choosing[self.table()].rare(diff, &self.counts[self.table()]) {
            lines.push(Line::styled(
                format!(
                    "{} differs in only {} of the rows of {xid}, probably honest work from before: not proposed.",
                    text::clean(&rare.column),
                    text::count(rare.rows)
                ),
                theme.bad(),
            ));
        }
        lines
    }

    fn draw_transactions(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let columns = [
            Column::left("transaction", 11, 24, 0),
            Column::left("committed", 20, 26, 2),
            Column::right("~ changed", 9, 12, 1),
            Column::right("+ extra", 7, 12, 1),
            Column::left("columns", 8, 60, 3),
            Column::left("in UTC", 8, 8, 4),
        ];
        let lines = self.transaction_lines();
        let choosing = &self.choosing[self.table()];
        let row = |index: usize| {
            let Some(line) = lines.get(index) else { return Row { mark: Mark::Off, cells: Vec::new() } };
            self.transaction_row(line, choosing, theme)
        };
        let other = match self.pane {
            Pane::Transactions if self.before_moment.is_some() && !lines.is_empty() => "  M: the moment before it",
            Pane::Tables | Pane::Columns if area.width < WIDE => "  Tab: mark them, or columns",
            _ => "",
        };
        let table = Table {
            title: Line::from(vec![
                Span::styled("By transaction that last wrote the row", theme.title()),
                Span::styled(other, theme.quiet()),
            ]),
            position: None,
            columns: &columns,
            len: lines.len(),
            row: &row,
            empty: "No row of production was changed or added since the backup.",
            focus: self.focus(Pane::Transactions),
        };
        let mut cursor = self.transactions;
        table::draw(frame, area, &table, &mut cursor, theme);
        self.transactions = cursor;
    }

    fn transaction_row(&self, line: &TransactionLine, choosing: &Choosing, theme: Theme) -> Row {
        let marked = line.xids().iter().filter(|xid| choosing.marked.contains(xid)).count();
        let mark = match marked {
            0 => Mark::Off,
            _ if marked == line.xids().len() => Mark::On,
            _ => Mark::Part,
        };
        let cells = match line {
            TransactionLine::One(count) => {
                let columns: Vec<_> = count.columns.iter().map(|column| text::clean(column)).collect();
                vec![
                    Cell::from(count.xid.to_string()),
                    match count.committed_at {
                        Some(at) => self.zone.date_time(at).into(),
                        None => Cell::new("not recorded", theme.quiet()),
                    },
                    Cell::new(text::count(count.changed), theme.changed()),
                    Cell::new(text::count(count.extra), theme.extra()),
                    columns.join(", ").into(),
                    count.committed_at.map(|at| at.format("%H:%M:%S").to_string()).unwrap_or_default().into(),
                ]
            }
            TransactionLine::Others(counts) => vec![
                Cell::from(story::others(counts)),
                Cell::new("Enter lists them", theme.quiet()),
                Cell::new(text::count(counts.iter().map(|count| count.changed).sum()), theme.changed()),
                Cell::new(text::count(counts.iter().map(|count| count.extra).sum()), theme.extra()),
            ],
        };
        Row { mark, cells }
    }

    fn draw_columns(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let columns =
            [Column::left("column", 10, 30, 0), Column::right("~ changed", 9, 12, 1), Column::left("", 8, 60, 2)];
        let diff = &self.diffs[self.table()];
        let lines = column_lines(diff);
        let chosen = self.choosing[self.table()].columns(diff, &self.counts[self.table()]);
        let most = diff.by_column.iter().map(|count| count.rows).max().unwrap_or(0);
        let row = |index: usize| match lines.get(index) {
            Some(ColumnLine::Differing(column, rows)) => {
                let drift = diff.pairs.iter().find(|pair| pair.column == *column && pair.drift != Drift::Same);
                let mut third = vec![Span::styled(bar(*rows, most, 12, theme), theme.changed())];
                third.extend(drift.map(|pair| Span::styled(format!(" {}", drift_note(pair)), theme.bad())));
                Row {
                    mark: if chosen.contains(*column) { Mark::On } else { Mark::Off },
                    cells: vec![text::clean(column).into_owned().into(), text::count(*rows).into(), Cell(third)],
                }
            }
            Some(ColumnLine::Drifted(pair)) => Row {
                mark: Mark::None,
                cells: vec![
                    text::clean(&pair.column).into_owned().into(),
                    Cell::default(),
                    Cell::new(drift_note(pair), theme.bad()),
                ],
            },
            None => Row { mark: Mark::None, cells: Vec::new() },
        };
        let table = Table {
            title: Line::styled("By column; marked ones are put back", theme.title()),
            position: None,
            columns: &columns,
            len: lines.len(),
            row: &row,
            empty: "No column differs.",
            focus: self.focus(Pane::Columns),
        };
        let mut cursor = self.columns;
        table::draw(frame, area, &table, &mut cursor, theme);
        self.columns = cursor;
    }

    /// `will write to public.a: - 300 missing, ~ 5,000 changed (2 columns), no deletes`
    pub(super) fn will_write(&self, theme: Theme) -> Line<'static> {
        let index = self.table();
        let (diff, choosing, sum) = (&self.diffs[index], &self.choosing[index], self.sum(index));
        let name = text::clean(&diff.table.to_string()).into_owned();
        if sum.is_none() {
            return Line::from(vec![
                Span::styled(format!("will write to {name}: "), theme.title()),
                Span::styled("nothing", theme.quiet()),
            ]);
        }
        let mut spans = vec![Span::styled(format!("will write to {name}: "), theme.title())];
        spans.push(Span::styled(format!("- {} missing", amount(sum.missing)), theme.missing()));
        let columns = if sum.columns == 0 {
            String::new()
        } else {
            format!(" ({})", text::counted(sum.columns as u64, "column", "columns"))
        };
        spans.push(Span::raw(", "));
        spans.push(Span::styled(format!("~ {} changed{columns}", amount(sum.changed)), theme.changed()));
        if choosing.deletes == Switch::On && !sum.deletes.is_none() {
            spans.push(Span::raw(", "));
            spans.push(Span::styled(format!("! DELETES {} rows", amount(sum.deletes)), theme.live()));
        } else {
            spans.push(Span::styled(", 0 deletes", theme.quiet()));
        }
        if choosing.picked.is_some() {
            spans.push(Span::styled("; only picked rows", theme.bad()));
        } else {
            if let Some(condition) = &choosing.condition {
                let condition = text::clean(condition).into_owned();
                spans.push(Span::styled(format!("; where {condition}"), theme.key()));
            }
            let left_out = choosing.left_out.values().filter(|known| choosing.rule_covers(**known)).count();
            if left_out > 0 {
                spans.push(Span::styled(format!("; {left_out} left out"), theme.bad()));
            }
        }
        Line::from(spans)
    }
}

fn next_pane(pane: Pane) -> Pane {
    match pane {
        Pane::Tables => Pane::Transactions,
        Pane::Transactions => Pane::Columns,
        Pane::Columns => Pane::Tables,
    }
}

/// What the symbols mean, as long as the terminal allows.
pub(super) fn legend_line(theme: Theme, width: u16) -> Line<'static> {
    let extra = if width >= 72 { "only in production" } else { "only in prod." };
    let missing = if width >= 72 { "missing in production" } else { "missing" };
    Line::from(vec![
        Span::styled("- ", theme.missing()),
        Span::styled(format!("{missing}  "), theme.quiet()),
        Span::styled("~ ", theme.changed()),
        Span::styled("changed  ", theme.quiet()),
        Span::styled("+ ", theme.extra()),
        Span::styled(format!("{extra}  "), theme.quiet()),
        Span::styled("= same", theme.quiet()),
    ])
}

pub(super) fn symbol(class: Class) -> &'static str {
    match class {
        Class::Missing => "-",
        Class::Changed => "~",
        Class::Extra => "+",
    }
}

fn amount(amount: Amount) -> String {
    match amount {
        Amount::Exactly(rows) => text::count(rows),
        Amount::AtMost(rows) => format!("at most {}", text::count(rows)),
        Amount::Open => "... (counting)".into(),
    }
}

fn will_write_short(sum: &super::Sum, theme: Theme) -> Vec<Span<'static>> {
    if sum.is_none() {
        return vec![Span::styled("nothing", theme.quiet())];
    }
    let part = |symbol: &str, rows: Amount, style| {
        (!rows.is_none()).then(|| {
            let rows = match rows {
                Amount::Exactly(rows) => text::count(rows),
                Amount::AtMost(rows) => format!("<={}", text::count(rows)),
                Amount::Open => "...".into(),
            };
            Span::styled(format!("{symbol}{rows} "), style)
        })
    };
    [
        part("- ", sum.missing, theme.missing()),
        part("~ ", sum.changed, theme.changed()),
        part("! deletes ", sum.deletes, theme.live()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn key_columns(key: Option<&Key>) -> String {
    key.map_or_else(|| "none".into(), |key| text::clean(&key.columns.join(", ")).into_owned())
}

fn key_told(key: Option<&Key>) -> String {
    let Some(key) = key else { return "no key, rows cannot be paired".into() };
    let source = match &key.source {
        KeySource::Primary => "primary key".into(),
        KeySource::Unique(index) => format!("unique index {}", text::clean(index)),
        KeySource::Named => "named by you, proven unique".into(),
    };
    format!("rows paired by {} ({source})", text::clean(&key.columns.join(", ")))
}

/// What became of a column since the backup.
pub(super) fn drift_note(pair: &Pair) -> String {
    let column = text::clean(&pair.column);
    let shown = |sql: &Option<String>| text::clean(sql.as_deref().unwrap_or("?")).into_owned();
    match pair.drift {
        Drift::Same => format!("{column} is defined as before"),
        Drift::Retyped => format!(
            "{column} was {} in the backup and is {} now: compared and written through a cast that must lose nothing",
            shown(&pair.backup_type),
            shown(&pair.live_type)
        ),
        Drift::OnlyInBackup => format!("{column} was dropped since the backup: shown, not compared, not written"),
        Drift::OnlyInLive => {
            format!("{column} was added since the backup: missing rows get its default, changed rows keep theirs")
        }
        Drift::Generated => format!("{column} is computed by the server: not compared, not written"),
    }
}

fn bar(rows: u64, most: u64, width: u64, theme: Theme) -> String {
    let cells = (rows * width).div_ceil(most.max(1)).clamp(1, width);
    theme.symbols().bar.repeat(usize::try_from(cells).unwrap_or(0))
}
