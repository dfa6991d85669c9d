//! How work reports and how it is stopped. Work never draws: it updates one latest-value cell, which a console or a
//! command line looks at as often as it likes, so a fast worker cannot flood a slow terminal.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::text;

/// What the amounts of a [`Report`] count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Those that travel; compressed ones where the total is known in compressed bytes.
    Bytes,
    /// Rows of a table.
    Rows,
    /// Whatever `doing` speaks of: files, tables, snapshots.
    Items,
}

/// The latest state of a piece of work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What is being done now, for a person: `staging public.registrations`.
    pub doing: String,
    /// In `unit`, since `since`.
    pub done: u64,
    /// In `unit`; `None`: nobody knows beforehand.
    pub total: Option<u64>,
    /// What `done` and `total` count.
    pub unit: Unit,
    /// When the present piece began, so that a viewer can show rate and time left.
    #[serde(with = "ago")]
    pub since: Instant,
}

impl Report {
    /// Amount per second over the present piece; `None` before there is enough to say.
    pub fn rate(&self) -> Option<f64> {
        let seconds = self.since.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for the eye")]
        (seconds > 0.25 && self.done > 0).then(|| self.done as f64 / seconds)
    }

    /// Time left at the present rate.
    pub fn eta(&self) -> Option<Duration> {
        let left = self.total?.saturating_sub(self.done);
        #[expect(clippy::cast_precision_loss, reason = "an estimate for the eye")]
        let seconds = left as f64 / self.rate()?;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

impl Report {
    /// What is done of how much, how fast, and how long it will take, as far as each is known: `12 MB of 30 MB`,
    /// `4 MB/s`, `5 s left`.
    pub fn amounts(&self) -> Vec<String> {
        let amount = |number: u64| match self.unit {
            Unit::Bytes => text::bytes(number),
            Unit::Rows => text::counted(number, "row", "rows"),
            Unit::Items => text::count(number),
        };
        let mut parts = Vec::new();
        match self.total {
            Some(total) => parts.push(format!("{} of {}", amount(self.done), amount(total))),
            None if self.done > 0 => parts.push(amount(self.done)),
            None => {}
        }
        if let Some(rate) = self.rate() {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive rate for the eye")]
            parts.push(format!("{}/s", amount(rate as u64)));
        }
        if let Some(eta) = self.eta() {
            parts.push(format!("{} left", text::duration(eta)));
        }
        parts
    }
}

/// An instant means nothing in another process; how long ago it was does.
mod ago {
    use std::time::{Duration, Instant};

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(since: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
        since.elapsed().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Instant, D::Error> {
        let ago = Duration::deserialize(deserializer)?;
        Ok(Instant::now().checked_sub(ago).unwrap_or_else(Instant::now))
    }
}

/// The worker's end: cheap to clone, shared by everything that takes part in the work.
#[derive(Debug, Clone)]
pub struct Progress {
    cell: watch::Sender<Report>,
    cancel: CancellationToken,
}

impl Default for Progress {
    fn default() -> Self {
        let report = Report { doing: String::new(), done: 0, total: None, unit: Unit::Items, since: Instant::now() };
        Self { cell: watch::Sender::new(report), cancel: CancellationToken::new() }
    }
}

impl Progress {
    /// Starts a new piece of work; amounts begin again at zero.
    pub fn begin(&self, doing: impl Into<String>, unit: Unit, total: Option<u64>) {
        let report = Report { doing: doing.into(), done: 0, total, unit, since: Instant::now() };
        self.cell.send_replace(report);
    }

    /// Says what is being done now, within the same piece of work.
    pub fn now(&self, doing: impl Into<String>) {
        self.cell.send_modify(|report| report.doing = doing.into());
    }

    /// Adds to what is done.
    pub fn advance(&self, amount: u64) {
        self.cell.send_modify(|report| report.done += amount);
    }

    /// The viewer's end.
    pub fn watch(&self) -> watch::Receiver<Report> {
        self.cell.subscribe()
    }

    /// Asks the work to stop at its next safe point.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Errors with `cancelled` when the operator asked to stop. Work calls this at safe points only, never inside a write.
    pub fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    }

    /// Resolves when the operator asks to stop.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }
}
