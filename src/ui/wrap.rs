//! Words into lines, by display width, keeping styles; so that the height of a text is known before it is drawn.

use ratatui::style::Style;
use ratatui::text::{Line, Span};
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// Wraps at spaces; a word that is longer than a line is cut into lines. Spaces at the beginning stay.
pub fn wrapped(line: &Line, width: u16) -> Vec<Line<'static>> {
    let width = usize::from(width.max(1));
    let mut lines: Vec<Vec<Span<'static>>> = vec![Vec::new()];
    let (mut used, mut spaces) = (0, 0);
    let mut place = |word: &mut Vec<(&str, Style)>, spaces: usize| {
        let columns: usize = word.iter().map(|(cluster, _)| cluster.width()).sum();
        if used + spaces + columns > width && used > 0 {
            // The spaces at which a line was broken are not carried to the next one.
            lines.push(Vec::new());
            used = 0;
        } else if spaces > 0 {
            push(&mut lines, &" ".repeat(spaces), Style::new());
            used += spaces;
        }
        for (cluster, style) in word.drain(..) {
            if used + cluster.width() > width {
                lines.push(Vec::new());
                used = 0;
            }
            push(&mut lines, cluster, style);
            used += cluster.width();
        }
    };
    let mut word = Vec::new();
    for span in &line.spans {
        for cluster in span.content.graphemes(true) {
            if cluster != " " {
                word.push((cluster, line.style.patch(span.style)));
                continue;
            }
            if !word.is_empty() {
                place(&mut word, std::mem::take(&mut spaces));
            }
            spaces += 1;
        }
    }
    if !word.is_empty() {
        place(&mut word, spaces);
    }
    // What lies between words has the line's own style, as a line that is selected.
    lines.into_iter().map(|spans| Line::from(spans).style(line.style)).collect()
}

/// Wraps a paragraph that stands in by some columns.
pub fn indented(text: &str, style: Style, indent: u16, width: u16) -> Vec<Line<'static>> {
    let before = Span::raw(" ".repeat(indent.into()));
    let lines = wrapped(&Line::styled(text.to_owned(), style), width.saturating_sub(indent));
    lines.into_iter().map(|line| [before.clone()].into_iter().chain(line.spans).collect()).collect()
}

/// Wraps every line.
pub fn all(lines: &[Line], width: u16) -> Vec<Line<'static>> {
    lines.iter().flat_map(|line| wrapped(line, width)).collect()
}

fn push(lines: &mut [Vec<Span<'static>>], text: &str, style: Style) {
    let Some(line) = lines.last_mut() else { return };
    match line.last_mut() {
        Some(last) if last.style == style => last.content.to_mut().push_str(text),
        _ => line.push(Span::styled(text.to_owned(), style)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str, width: u16) -> Vec<String> {
        wrapped(&Line::raw(text.to_owned()), width).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_comma_stays_with_its_word_also_when_it_has_another_style() {
        let line = Line::from(vec![Span::raw("one two"), Span::styled(", three", Style::new().bold())]);
        let lines: Vec<_> = wrapped(&line, 8).iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["one two,", "three"]);
    }

    #[test]
    fn a_style_of_the_whole_line_has_no_gaps_between_words() {
        let selected = Style::new().reversed();
        let lines = wrapped(&Line::from(vec![Span::raw("one two"), Span::raw(" three")]).style(selected), 8);
        assert!(lines.len() == 2 && lines.iter().all(|line| line.style == selected), "{lines:?}");
    }

    #[test]
    fn wraps_between_words_and_cuts_only_what_is_too_long() {
        assert_eq!(plain("one two three", 8), ["one two", "three"]);
        assert_eq!(plain("abcdefgh ij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(plain("東京都東京都", 5), ["東京", "都東", "京都"]);
        assert_eq!(plain("", 5), [""]);
        assert_eq!(plain("  a b", 9), ["  a b"]);
    }
}
