//! What the views of the browser draw alike: words where rows will be, what is waited for, long texts, names and times.

use chrono::{DateTime, Utc};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Wrap};

use crate::files::EntryKind;
use crate::progress::Report;
use crate::text::clean;
use crate::ui::theme::Theme;

pub(super) fn draw_words(frame: &mut Frame, area: Rect, words: &str, theme: Theme) {
    let line = Line::styled(clean(words).into_owned(), theme.quiet());
    frame.render_widget(Paragraph::new(line).wrap(Wrap { trim: true }), area);
}

/// What is waited for, how far that is, and how to leave it.
pub(super) fn draw_wait(frame: &mut Frame, area: Rect, words: &str, report: Option<&Report>, theme: Theme) {
    let Some(report) = report else { return draw_words(frame, area, words, theme) };
    let lines = vec![
        Line::styled(clean(&report.doing).into_owned(), theme.title()),
        Line::raw(report.amounts().join(", ")),
        Line::styled("Esc goes back; nothing is changed by looking.", theme.quiet()),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

pub(super) fn draw_scrolled(frame: &mut Frame, area: Rect, lines: Vec<Line<'static>>, scroll: &mut u16) {
    let most = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_sub(area.height);
    *scroll = (*scroll).min(most);
    frame.render_widget(Paragraph::new(lines).scroll((*scroll, 0)), area);
}

/// A name, or a path, with a slash behind it when it is a folder's.
pub(super) fn kind_name(name: &str, kind: EntryKind) -> String {
    if kind == EntryKind::Folder { format!("{name}/") } else { name.to_owned() }
}

pub(super) fn minute(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(String::new, |at| at.format("%Y-%m-%d %H:%M").to_string())
}
