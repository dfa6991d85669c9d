//! Waiting for a look, running a plan, and what is shown when either fails.

use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};
use tokio::sync::watch;

use super::Command;
use crate::error::{Error, Kind};
use crate::progress::Report;
use crate::recovery::plan::{Effect, Plan};
use crate::text::{self, clean};
use crate::ui::keymap::Action;
use crate::ui::theme::Theme;

/// Shorter waits show nothing: a flash of text is worse than a blink of patience.
const SHOW_AFTER: Duration = Duration::from_millis(250);

/// A look is under way.
#[derive(Debug)]
pub struct Waiting {
    /// The look's latest state.
    pub reports: watch::Receiver<Report>,
    /// When it began; a short one is never shown.
    pub since: Instant,
    /// The operator asked to stop; the look has not ended yet.
    pub cancelling: bool,
    /// Whether it goes on without this console.
    pub detached: bool,
}

impl Waiting {
    /// Draws how far the look is, once it takes long enough to be read.
    pub fn draw(&self, frame: &mut Frame, area: Rect, theme: Theme) {
        if self.since.elapsed() < SHOW_AFTER {
            return;
        }
        let report = self.reports.borrow().clone();
        let mut lines = progress(&report, theme, area.width);
        lines.push(Line::raw(""));
        lines.push(Line::styled(
            if self.cancelling {
                "Cancelling at the next safe point..."
            } else {
                "Ctrl-C cancels. Nothing of production is changed by this; what was staged is removed."
            },
            theme.quiet(),
        ));
        lines.extend(self.detached.then(|| safe(theme)));
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
    }
}

/// What an operator on a bad line wants to know.
fn safe(theme: Theme) -> Line<'static> {
    Line::styled(
        "Safe to disconnect: this goes on without the terminal. lifeboat attach brings you back.",
        theme.good(),
    )
}

/// What is being done, how far, how fast, how long still.
fn progress(report: &Report, theme: Theme, width: u16) -> Vec<Line<'static>> {
    let mut lines = vec![Line::styled(clean(&report.doing).into_owned(), theme.title()), Line::raw("")];
    if let Some(total) = report.total.filter(|total| *total > 0) {
        let room = u64::from(width.saturating_sub(2).min(60));
        let full = usize::try_from(report.done.min(total) * room / total).unwrap_or(0);
        let (done, left) = theme.bar();
        lines.push(Line::from(vec![
            Span::styled(done.repeat(full), theme.good()),
            Span::styled(left.repeat(usize::try_from(room).unwrap_or(0) - full), theme.quiet()),
        ]));
    }
    let mut parts = report.amounts();
    if report.eta().is_none() {
        parts.push(format!("for {}", text::duration(report.since.elapsed())));
    }
    lines.push(Line::raw(parts.join(", ")));
    lines
}

/// A confirmed plan is being done.
#[derive(Debug)]
pub struct Running {
    /// The confirmed one.
    pub plan: Plan,
    /// The latest state of the step that is under way.
    pub reports: watch::Receiver<Report>,
    /// Steps that ended; the next one is under way.
    pub ended: usize,
    /// The operator asked to stop; the run has not ended yet.
    pub cancelling: bool,
    /// Whether it goes on without this console.
    pub detached: bool,
}

impl Running {
    /// Draws the steps, the progress of the present one, and its SQL.
    pub fn draw(&self, frame: &mut Frame, area: Rect, theme: Theme) {
        let mut lines = vec![Line::styled("Doing what you consented to", theme.title()), Line::raw("")];
        let mut live = false;
        for (number, step) in self.plan.steps.iter().enumerate() {
            let (mark, style) = match number.cmp(&self.ended) {
                std::cmp::Ordering::Less => ("done   ", theme.good()),
                std::cmp::Ordering::Equal => ("now    ", theme.title()),
                std::cmp::Ordering::Greater => ("       ", theme.quiet()),
            };
            live |= number == self.ended && step.effect() == Effect::Live;
            lines.push(Line::styled(format!("{mark}{}", step.title()), style));
        }
        lines.push(Line::raw(""));
        lines.extend(progress(&self.reports.borrow(), theme, area.width));
        lines.push(Line::raw(""));
        lines.push(Line::styled(
            match (live, self.cancelling) {
                (true, false) => "One transaction: all or nothing, also when this terminal goes away. Ctrl-C rolls it back until it commits.",
                (false, false) => "What was written is committed. The rest only reads and cleans up.",
                (_, true) => "Cancelling at the next safe point; if it is committing already, it is too late and you will be told.",
            },
            theme.quiet(),
        ));
        lines.extend(self.detached.then(|| safe(theme)));
        let statements =
            self.plan.steps.get(self.ended).map(crate::recovery::plan::Step::statements).unwrap_or_default();
        for statement in statements {
            lines.push(Line::raw(""));
            lines.extend(statement.lines().map(|line| Line::styled(clean(line).into_owned(), theme.quiet())));
        }
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
    }
}

/// Something went wrong: what, what has been changed so far, what to do.
#[derive(Debug)]
pub struct Failed {
    /// As it came from below; its words are sanitised where they are drawn.
    pub error: Error,
    /// From the journal, never guessed.
    pub changed: String,
    /// Whether the other side's own words are shown.
    pub details: bool,
}

impl Failed {
    /// Tries again, or finds out first what the outcome was; shows details, copies, or goes back.
    pub fn act(&mut self, action: Action) -> Option<Command> {
        match action {
            Action::Retry => return Some(Command::Retry),
            Action::Details => self.details = !self.details,
            Action::Copy => {
                let detail = self.error.detail.clone().unwrap_or_default();
                return Some(Command::Copy(format!("{}\n{detail}", self.error.message)));
            }
            Action::Back => return Some(Command::Back),
            _ => {}
        }
        None
    }

    /// Draws what happened, what has been changed so far, and what can be done.
    pub fn draw(&self, frame: &mut Frame, area: Rect, theme: Theme) {
        let title = if self.error.kind == Kind::Cancelled { "Cancelled" } else { "This did not work" };
        let mut lines = vec![
            Line::styled(title, theme.bad()),
            Line::raw(""),
            Line::raw(clean(&self.error.message).into_owned()),
            Line::raw(""),
            Line::from(vec![Span::styled("Changed so far: ", theme.title()), Span::raw(format!("{}.", self.changed))]),
            Line::raw(""),
        ];
        lines.extend(self.error.hints.iter().map(|hint| Line::raw(format!("- {}", clean(hint)))));
        lines.push(Line::raw(if self.error.kind == Kind::Unresolved {
            "- r finds out what was committed, and goes on from there. Nothing is done twice."
        } else {
            "- r tries the same again, Esc goes back."
        }));
        if let Some(detail) = &self.error.detail {
            lines.push(Line::raw(""));
            if self.details {
                lines.extend(detail.lines().map(|line| Line::styled(format!("| {}", clean(line)), theme.quiet())));
            } else {
                lines.push(Line::styled("d shows the other side's own words.", theme.quiet()));
            }
        }
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
    }
}
