//! A window of rows over a diff of any size, read by key set: pages can only be asked for "after row number N", and the
//! numbers of the rows that match a filter have gaps. Constant memory, one page on its way at a time.
//!
//! ```text
//!   1 ......... low | row row row ... row | ......... last      the window holds every matching row in (low, high]
//! ```

use crate::postgres::diff::{Page, Row};

/// Rows asked for at once.
pub const LIMIT: u32 = 100;

/// Rows held at most; those farthest from the selection go first.
const HELD: usize = 1_000;

/// So near to an edge of the window the next page is asked for.
const NEAR: usize = 50;

#[derive(Debug, Clone, PartialEq)]
enum Asked {
    Down {
        after: i64,
    },
    /// Looking back: every matching row in (start, low] is gathered before it is put in front.
    Up {
        start: i64,
        after: i64,
        gathered: Vec<Row>,
    },
}

impl Asked {
    fn after(&self) -> i64 {
        match self {
            Self::Down { after } | Self::Up { after, .. } => *after,
        }
    }
}

/// Whether there are rows after the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Unknown,
    Reached,
}

#[derive(Debug, Clone)]
pub struct Pager {
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
    pub selected: usize,
    low: i64,
    end: End,
    /// How many matching rows come before the window, where that is known.
    before: Option<u64>,
    /// How far back, in row numbers, the next look goes; grows while matches are sparse.
    span: i64,
    asked: Option<Asked>,
    /// A look back that needs one more page.
    unfinished: Option<Asked>,
    /// After a jump to the end the selection stays on the last row until the end is reached.
    to_end: bool,
}

impl Default for Pager {
    fn default() -> Self {
        Self::starting_after(0)
    }
}

impl Pager {
    fn starting_after(low: i64) -> Self {
        Self {
            columns: Vec::new(),
            rows: Vec::new(),
            selected: 0,
            low,
            end: End::Unknown,
            before: (low == 0).then_some(0),
            span: i64::from(LIMIT),
            asked: None,
            unfinished: None,
            to_end: false,
        }
    }

    pub fn selected_row(&self) -> Option<&Row> {
        self.rows.get(self.selected)
    }

    /// Whether it is certain that no row matches.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.low == 0 && self.end == End::Reached
    }

    /// The selection's place among all matching rows, from 0, where it is known.
    pub fn place(&self, total: Option<u64>) -> Option<u64> {
        let before = match (self.before, self.end, total) {
            (Some(before), ..) => Some(before),
            (None, End::Reached, Some(total)) => total.checked_sub(self.rows.len() as u64),
            _ => None,
        };
        Some(before? + self.selected as u64)
    }

    pub fn move_by(&mut self, rows: isize) {
        self.to_end = false;
        self.selected = self.selected.saturating_add_signed(rows).min(self.rows.len().saturating_sub(1));
    }

    pub fn to_start(&mut self) {
        self.to_end = false;
        if self.low == 0 {
            self.selected = 0;
        } else {
            self.restart(0);
        }
    }

    /// Goes to the last matching row. `numbers`: how many rows the whole diff has.
    pub fn to_end(&mut self, numbers: u64) {
        if self.end == End::Reached {
            self.selected = self.rows.len().saturating_sub(1);
            return;
        }
        let start = i64::try_from(numbers).unwrap_or(i64::MAX) - i64::from(LIMIT);
        // What is already loaded comes nearer than that: just go on from there.
        if self.rows.last().is_none_or(|row| row.number < start) {
            self.restart(start.max(0));
        }
        self.to_end = true;
        self.selected = self.rows.len().saturating_sub(1);
    }

    fn restart(&mut self, low: i64) {
        let columns = std::mem::take(&mut self.columns);
        *self = Self { columns, ..Self::starting_after(low) };
    }

    /// The row number after which a page is to be read now, if one is needed. It is then on its way.
    pub fn want(&mut self) -> Option<i64> {
        if self.asked.is_some() {
            return None;
        }
        let near_end = self.to_end || self.selected + NEAR >= self.rows.len();
        let asked = if let Some(unfinished) = self.unfinished.take() {
            unfinished
        } else if self.end == End::Unknown && near_end {
            Asked::Down { after: self.rows.last().map_or(self.low, |row| row.number) }
        } else if self.low > 0 && self.selected < NEAR {
            let start = self.low.saturating_sub(self.span).max(0);
            Asked::Up { start, after: start, gathered: Vec::new() }
        } else {
            return None;
        };
        let after = asked.after();
        self.asked = Some(asked);
        Some(after)
    }

    /// Forgets the page that was on its way.
    pub fn give_up(&mut self) {
        self.asked = None;
        self.unfinished = None;
    }

    /// Takes the page that was read after row `after`; any other one is late and dropped.
    pub fn take(&mut self, after: i64, page: Page) {
        let asked = match self.asked.take() {
            Some(asked) if asked.after() == after => asked,
            other => {
                self.asked = other;
                return;
            }
        };
        self.columns = page.columns;
        let full = page.rows.len() >= LIMIT as usize;
        match asked {
            Asked::Down { .. } => self.append(page.rows, full),
            Asked::Up { start, mut gathered, .. } => {
                let arrived = !full || page.rows.last().is_some_and(|row| row.number > self.low);
                let last = page.rows.last().map(|row| row.number);
                gathered.extend(page.rows.into_iter().take_while(|row| row.number <= self.low));
                match last {
                    Some(last) if !arrived => {
                        self.unfinished = Some(Asked::Up { start, after: last, gathered });
                    }
                    _ => self.prepend(start, gathered),
                }
            }
        }
    }

    fn append(&mut self, rows: Vec<Row>, full: bool) {
        self.rows.extend(rows);
        if !full {
            self.end = End::Reached;
        }
        if self.to_end {
            self.selected = self.rows.len().saturating_sub(1);
            self.to_end = self.end == End::Unknown;
        }
        if let Some(surplus) = self.rows.len().checked_sub(HELD).filter(|surplus| *surplus <= self.selected) {
            if let Some(last) = self.rows.drain(..surplus).next_back() {
                self.low = last.number;
                self.before = self.before.map(|before| before + surplus as u64);
            }
            self.selected -= surplus;
        }
    }

    fn prepend(&mut self, start: i64, gathered: Vec<Row>) {
        let limit = LIMIT as usize;
        if gathered.len() < limit / 2 {
            self.span = self.span.saturating_mul(2);
        } else if gathered.len() > limit * 2 {
            self.span = (self.span / 2).max(i64::from(LIMIT));
        }
        self.low = start;
        self.before = match self.before {
            _ if start == 0 => Some(0),
            Some(before) => before.checked_sub(gathered.len() as u64),
            None => None,
        };
        self.selected += gathered.len();
        self.rows.splice(..0, gathered);
        if self.rows.len() > HELD && self.selected < HELD {
            self.rows.truncate(HELD);
            self.end = End::Unknown;
        }
    }
}
