//! A look into a file: text with line numbers, bytes in hex, what an archive holds; further parts come as one scrolls.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::{Told, draw_wait, draw_words};
use crate::error::Result;
use crate::files::look::Inside;
use crate::progress::Report;
use crate::text::{self, clean};
use crate::ui::keymap::Action;
use crate::ui::screens::in_a_line;
use crate::ui::theme::Theme;

/// Bytes on a line of a file that is no text.
const HEX: usize = 16;
/// So much of a file is scrolled through, in bytes; `lifeboat cat` gives all of it.
const MOST: usize = 4 << 20;
/// Lines that one key scrolls.
const PAGE: usize = 20;

/// What was read of a file so far.
#[derive(Debug)]
pub(super) struct InsideView {
    /// From the root of the snapshot.
    pub path: String,
    told: Told<Inside>,
    /// Where each line begins; of a file that is no text, and of an archive, empty.
    lines: Vec<usize>,
    top: usize,
    /// Lines on screen when last drawn.
    page: usize,
}

impl InsideView {
    pub fn of(path: String) -> Self {
        Self { path, told: None, lines: Vec::new(), top: 0, page: PAGE }
    }

    /// Where the part begins that is needed next.
    pub fn wanted(&self) -> Option<u64> {
        match &self.told {
            None => Some(0),
            Some(Err(_)) => None,
            Some(Ok(inside)) => {
                let read = inside.bytes.len();
                let more = (read as u64) < inside.length && read < MOST && inside.members.is_none();
                (more && self.top + 3 * self.page > self.count()).then_some(read as u64)
            }
        }
    }

    /// Takes a part in; the first replaces everything.
    pub fn take(&mut self, offset: u64, told: Result<Inside>) {
        match (&mut self.told, told) {
            (Some(Ok(known)), Ok(part)) if offset == known.bytes.len() as u64 && offset > 0 => {
                known.bytes.extend_from_slice(&part.bytes);
                if part.bytes.is_empty() {
                    known.length = known.bytes.len() as u64;
                }
            }
            (_, told) => self.told = Some(told),
        }
        if let Some(Ok(inside)) = &self.told
            && inside.text
        {
            let ends = inside.bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
            self.lines = std::iter::once(0).chain(ends).filter(|begin| *begin < inside.bytes.len()).collect();
        }
    }

    /// Whether it is a dump, whose tables can be looked at.
    pub fn is_dump(&self) -> bool {
        matches!(&self.told, Some(Ok(inside)) if inside.dump)
    }

    fn count(&self) -> usize {
        match &self.told {
            Some(Ok(Inside { members: Some(members), .. })) => members.members.len(),
            Some(Ok(inside)) if inside.text => self.lines.len(),
            Some(Ok(inside)) => inside.bytes.len().div_ceil(HEX),
            _ => 0,
        }
    }

    pub fn act(&mut self, action: Action) {
        let last = self.count().saturating_sub(self.page);
        self.top = match action {
            Action::Up => self.top.saturating_sub(1),
            Action::Down => self.top + 1,
            Action::PageUp => self.top.saturating_sub(self.page),
            Action::PageDown => self.top + self.page,
            Action::Top => 0,
            Action::Bottom => last,
            _ => self.top,
        }
        .min(last);
    }

    pub fn draw(&mut self, frame: &mut Frame, area: Rect, theme: Theme, report: Option<&Report>) {
        let inside = match &self.told {
            None => return draw_wait(frame, area, "Reading the file ...", report, theme),
            Some(Err(error)) => return draw_words(frame, area, &in_a_line(error), theme),
            Some(Ok(inside)) => inside,
        };
        let head = vec![Line::styled(self.head(inside), theme.quiet()), Line::raw("")];
        self.page = usize::from(area.height).saturating_sub(head.len()).max(1);
        self.top = self.top.min(self.count().saturating_sub(self.page));
        let shown = self.top..(self.top + self.page).min(self.count());
        let body: Vec<Line> = match &inside.members {
            Some(members) => members.members[shown]
                .iter()
                .map(|member| {
                    let size = member.size.map_or_else(|| "?".into(), text::bytes);
                    let at = super::minute(member.modified);
                    Line::raw(format!("{size:>10}  {at:<16}  {}", clean(&member.name)))
                })
                .collect(),
            None if inside.text => shown.map(|number| self.text_line(inside, number, theme)).collect(),
            None => shown
                .map(|number| {
                    let part = &inside.bytes[number * HEX..inside.bytes.len().min((number + 1) * HEX)];
                    hex_line(number * HEX, part, theme)
                })
                .collect(),
        };
        frame.render_widget(ratatui::text::Text::from([head, body].concat()), area);
    }

    fn head(&self, inside: &Inside) -> String {
        let mut facts = vec![inside.kind.clone(), text::bytes(inside.length)];
        facts.extend(inside.facts.iter().cloned());
        if inside.dump {
            facts.push("a database dump: t opens its tables".into());
        }
        match &inside.members {
            Some(members) => {
                let number = text::counted(members.members.len() as u64, "member", "members");
                facts.push(if members.complete { number } else { format!("the first {number}") });
            }
            None if inside.bytes.len() >= MOST => {
                facts.push(format!("the first {}", text::bytes(inside.bytes.len() as u64)));
            }
            None => {}
        }
        format!("{}: {}", clean(&self.path), facts.join(", "))
    }

    fn text_line(&self, inside: &Inside, number: usize, theme: Theme) -> Line<'static> {
        let end = self.lines.get(number + 1).copied().unwrap_or(inside.bytes.len());
        let line = String::from_utf8_lossy(&inside.bytes[self.lines[number]..end]);
        Line::from(vec![
            Span::styled(format!("{:>6}  ", number + 1), theme.quiet()),
            Span::raw(clean(line.trim_end_matches(['\n', '\r'])).into_owned()),
        ])
    }
}

fn hex_line(at: usize, part: &[u8], theme: Theme) -> Line<'static> {
    let hex: String = part.iter().map(|byte| format!("{byte:02x} ")).collect();
    let letters: String = part
        .iter()
        .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' })
        .collect();
    Line::from(vec![
        Span::styled(format!("{at:08x}  "), theme.quiet()),
        Span::raw(format!("{hex:<48} ")),
        Span::raw(letters),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_parts_come_as_one_scrolls_and_lines_keep_their_numbers() {
        let part = |offset: u64, text: &str| Inside {
            kind: "text".into(),
            facts: Vec::new(),
            text: true,
            offset,
            bytes: text.as_bytes().to_vec(),
            length: 12,
            members: None,
            dump: false,
        };
        let mut view = InsideView::of("/a".into());
        assert_eq!(view.wanted(), Some(0));
        view.take(0, Ok(part(0, "one\ntw")));
        assert_eq!((view.count(), view.wanted()), (2, Some(6)));
        view.take(6, Ok(part(6, "o\nend\n")));
        assert_eq!((view.count(), view.wanted()), (3, None));
    }
}
