//! The end: the report, the proof, and in a drill the truth.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};

use super::Command;
use crate::text::clean;
use crate::ui::keymap::Action;
use crate::ui::theme::Theme;
use crate::ui::wrap;

/// A check of a drill: what it asks, whether it holds, what was found.
pub type Check = (String, bool, String);

#[derive(Debug)]
pub struct Done {
    pub title: String,
    pub recovery: String,
    /// Whether it wrote something that can be taken back.
    pub wrote: bool,
    /// Markdown, made from the journal.
    pub report: String,
    pub path: String,
    pub verdict: Option<Result<Vec<Check>, String>>,
    pub scroll: u16,
}

impl Done {
    pub fn act(&mut self, action: Action) -> Option<Command> {
        match action {
            Action::Up => self.scroll = self.scroll.saturating_sub(1),
            Action::Down => self.scroll = self.scroll.saturating_add(1),
            Action::PageUp => self.scroll = self.scroll.saturating_sub(10),
            Action::PageDown => self.scroll = self.scroll.saturating_add(10),
            Action::Top => self.scroll = 0,
            Action::Bottom => self.scroll = u16::MAX,
            Action::Copy => return Some(Command::Copy(self.report.clone())),
            Action::Undo if self.wrote => return Some(Command::Undo(self.recovery.clone())),
            Action::Undo => {
                return Some(Command::Notice("this recovery wrote nothing that could be taken back".into()));
            }
            Action::Enter | Action::Back => return Some(Command::Home),
            _ => {}
        }
        None
    }

    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: Theme) {
        let mut lines = vec![Line::styled(self.title.clone(), theme.good())];
        match &self.verdict {
            None => {}
            Some(Err(error)) => {
                lines.push(Line::styled(format!("The truth could not be checked: {}", clean(error)), theme.bad()));
            }
            Some(Ok(checks)) => {
                let held = checks.iter().filter(|(_, held, _)| *held).count();
                let all = held == checks.len();
                lines.push(Line::styled(
                    format!(
                        "Checked against the truth: {held} of {} hold{}",
                        checks.len(),
                        if all { ". Recovered." } else { "" }
                    ),
                    if all { theme.good() } else { theme.bad() },
                ));
                for (check, held, detail) in checks {
                    let (symbol, style) = if *held { ("+", theme.text()) } else { ("x", theme.bad()) };
                    let text = format!("{}: {}", clean(check), clean(detail));
                    for (number, line) in wrap::indented(&text, style, 4, area.width).into_iter().enumerate() {
                        let mut spans = line.spans;
                        if number == 0 {
                            spans[0] = Span::styled(format!("  {symbol} "), style);
                        }
                        lines.push(Line::from(spans));
                    }
                }
            }
        }
        lines.push(Line::raw(""));
        lines.push(Line::styled(format!("The report, also in {}", clean(&self.path)), theme.quiet()));
        lines.push(Line::raw(""));
        lines.extend(self.report.lines().map(|line| {
            let style = if line.starts_with('#') { theme.title() } else { theme.text() };
            Line::styled(clean(line).into_owned(), style)
        }));
        let page = Paragraph::new(lines).wrap(Wrap { trim: false });
        let most = u16::try_from(page.line_count(area.width)).unwrap_or(u16::MAX).saturating_sub(area.height);
        self.scroll = self.scroll.min(most);
        frame.render_widget(page.scroll((self.scroll, 0)), area);
    }
}
