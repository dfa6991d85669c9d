//! What a diff says about what happened, in words, and which transactions stand out of the many.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use chrono::{DateTime, FixedOffset, Local, Utc};

use crate::postgres::diff::{TableDiff, TransactionCount};
use crate::text;

/// A transaction stands out when it last wrote at least this share of the changed rows,
const SHARE_PERCENT: u64 = 80;

/// and at least so many of them: four changed rows can as well be an ordinary day's work.
const ROWS: u64 = 5;

/// Up to so many transactions are listed one by one whatever their size.
const LISTED: usize = 6;

/// The zone in which times are shown beside UTC.
#[derive(Debug, Clone, Copy)]
pub enum Zone {
    /// This terminal's.
    Local,
    Fixed(FixedOffset),
}

impl Zone {
    fn at(self, instant: DateTime<Utc>) -> DateTime<FixedOffset> {
        match self {
            Self::Local => instant.with_timezone(&Local).fixed_offset(),
            Self::Fixed(offset) => instant.with_timezone(&offset),
        }
    }

    /// `2026-01-15 14:00:03 +01:00`, or `... UTC` where that is the zone.
    pub fn date_time(self, instant: DateTime<Utc>) -> String {
        let local = self.at(instant);
        let zone = if local.offset().local_minus_utc() == 0 { "UTC" } else { "%:z" };
        local.format(&format!("%Y-%m-%d %H:%M:%S {zone}")).to_string()
    }

    /// `14:00:03 (13:00:03 UTC)`, or `13:00:03 UTC` where that is the zone.
    pub fn time(self, instant: DateTime<Utc>) -> String {
        let local = self.at(instant);
        if local.offset().local_minus_utc() == 0 {
            local.format("%H:%M:%S UTC").to_string()
        } else {
            format!("{} ({})", local.format("%H:%M:%S"), instant.format("%H:%M:%S UTC"))
        }
    }
}

/// Whether a transaction changed more rows than a person at work does.
pub fn is_big(count: &TransactionCount) -> bool {
    count.changed >= ROWS
}

/// The transaction that last wrote nearly all of the changed rows.
pub fn culprit(diff: &TableDiff) -> Option<&TransactionCount> {
    let top = diff.by_transaction.iter().max_by_key(|count| count.changed)?;
    (is_big(top) && top.changed * 100 >= diff.changed * SHARE_PERCENT).then_some(top)
}

/// The culprits of all tables: what one did to one table it probably did to the others too.
pub fn culprits(diffs: &[TableDiff]) -> BTreeSet<u32> {
    diffs.iter().filter_map(culprit).map(|count| count.xid).collect()
}

/// Transactions as they are listed: some one by one, the small rest in one line.
pub struct Listed<'a> {
    pub single: Vec<&'a TransactionCount>,
    pub others: Vec<&'a TransactionCount>,
}

/// Singles out the transactions with at least a twentieth of the rows, or with many rows.
pub fn listed(diff: &TableDiff) -> Listed<'_> {
    let mut all: Vec<&TransactionCount> = diff.by_transaction.iter().collect();
    all.sort_by_key(|count| std::cmp::Reverse(rows(count)));
    if all.len() <= LISTED {
        return Listed { single: all, others: Vec::new() };
    }
    let total: u64 = all.iter().copied().map(rows).sum();
    let stands_out = |count: &&&TransactionCount| rows(count) * 20 >= total || rows(count) >= 100;
    let singles = all.iter().take_while(stands_out).count().clamp(1, 20);
    // A line "1 other" would say less than that one does.
    let singles = if all.len() - singles == 1 { all.len() } else { singles };
    let others = all.split_off(singles);
    Listed { single: all, others }
}

pub fn rows(count: &TransactionCount) -> u64 {
    count.changed + count.extra
}

/// `38 others, 1-2 rows each`
pub fn others(counts: &[&TransactionCount]) -> String {
    let least = counts.iter().copied().map(rows).min().unwrap_or(0);
    let most = counts.iter().copied().map(rows).max().unwrap_or(0);
    let transactions = text::counted(counts.len() as u64, "other", "others");
    if least == most {
        format!("{transactions}, {} each", text::counted(most, "row", "rows"))
    } else {
        format!("{transactions}, {}-{} rows each", text::count(least), text::count(most))
    }
}

/// What happened to this table, as far as the numbers tell.
pub fn told(diff: &TableDiff, culprits: &BTreeSet<u32>, zone: Zone) -> String {
    if diff.missing + diff.changed + diff.extra == 0 {
        return "Production and the backup hold the same rows here: nothing to bring back.".into();
    }
    if diff.key.is_none() {
        return "This table has no key, so rows cannot be paired: differences are shown, nothing can be written."
            .into();
    }
    let mut told = told_changed(diff, culprits, zone);
    if diff.missing > 0 {
        let _ = write!(
            told,
            " {} gone from production; who deleted rows is not recorded.",
            text::counted(diff.missing, "row is", "rows are")
        );
    }
    if diff.extra > 0 && diff.changed == 0 {
        let _ = write!(
            told,
            " {} only in production: usually honest work since the backup.",
            text::counted(diff.extra, "row is", "rows are")
        );
    }
    told.trim_start().to_owned()
}

/// A damaged column that differs in a few more rows than the culprit still holds: somebody else wrote those rows since, and
/// the damage is beneath his work.
fn written_over(diff: &TableDiff, culprit: &TransactionCount) -> Option<(String, u64)> {
    let more = |column: &String| {
        let rows = diff.by_column.iter().find(|count| count.column == *column)?.rows;
        let surplus = rows.checked_sub(culprit.changed)?;
        (surplus > 0).then(|| (column.clone(), surplus))
    };
    culprit.columns.iter().filter_map(more).min_by_key(|(_, surplus)| *surplus)
}

fn told_changed(diff: &TableDiff, culprits: &BTreeSet<u32>, zone: Zone) -> String {
    if diff.changed == 0 {
        return String::new();
    }
    let changed = text::counted(diff.changed, "changed row", "changed rows");
    if let Some(count) = culprit(diff) {
        let at = count.committed_at.map(|at| format!(" at {}", zone.time(at))).unwrap_or_default();
        let columns: Vec<_> = count.columns.iter().take(3).map(|column| text::clean(column)).collect();
        let more = if count.columns.len() > 3 { ", ..." } else { "" };
        let mut told = format!(
            "Most of the damage comes from one transaction: {}{at} wrote {} of the {changed} ({}{more}). Only its rows are \
             proposed.",
            count.xid,
            text::count(count.changed),
            columns.join(", ")
        );
        if let Some((column, rows)) = written_over(diff, count) {
            let _ = write!(
                told,
                " But {} also differs in at least {} that others wrote since: look at those (c takes them too).",
                text::clean(&column),
                text::counted(rows, "row", "rows")
            );
        }
        return told;
    }
    let shared: Vec<_> = diff.by_transaction.iter().filter(|count| culprits.contains(&count.xid)).collect();
    if let Some(count) = shared.first() {
        return format!(
            "Transaction {}, which did the damage in another table, wrote {} of the {changed} here too: they are proposed.",
            count.xid,
            text::count(count.changed)
        );
    }
    let writers = diff.by_transaction.iter().filter(|count| count.changed > 0).count() as u64;
    let most = diff.by_transaction.iter().map(|count| count.changed).max().unwrap_or(0);
    if most < ROWS {
        format!(
            "No transaction stands out: {changed}, written by {}, at most {} each. This looks like ordinary work, so none is \
             proposed.",
            text::counted(writers, "transaction", "transactions"),
            text::counted(most, "row", "rows")
        )
    } else {
        format!(
            "{changed} were last written by {}, the largest {}. None holds nearly all: mark those that did the damage.",
            text::counted(writers, "transaction", "transactions"),
            text::counted(most, "row", "rows")
        )
    }
}
