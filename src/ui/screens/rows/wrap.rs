//! Words into lines, by display width, keeping styles; so that the height of a text is known before it is drawn.

use ratatui::text::{Line, Span};
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// Wraps at spaces; a word that is longer than a line is cut into lines.
pub fn wrapped(line: &Line, width: u16) -> Vec<Line<'static>> {
    let width = usize::from(width.max(1));
    let mut lines: Vec<Vec<Span<'static>>> = vec![Vec::new()];
    let mut used = 0;
    for span in &line.spans {
        let style = line.style.patch(span.style);
        for word in span.content.split_word_bounds() {
            let columns = word.width();
            if used + columns > width && used > 0 {
                lines.push(Vec::new());
                used = 0;
                // The space at which a line was broken is not carried to the next one.
                if word == " " {
                    continue;
                }
            }
            if columns <= width {
                push(&mut lines, word, style);
                used += columns;
                continue;
            }
            for cluster in word.graphemes(true) {
                if used + cluster.width() > width {
                    lines.push(Vec::new());
                    used = 0;
                }
                push(&mut lines, cluster, style);
                used += cluster.width();
            }
        }
    }
    lines.into_iter().map(Line::from).collect()
}

/// Wraps every line.
pub fn all(lines: &[Line], width: u16) -> Vec<Line<'static>> {
    lines.iter().flat_map(|line| wrapped(line, width)).collect()
}

fn push(lines: &mut [Vec<Span<'static>>], text: &str, style: ratatui::style::Style) {
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
    fn wraps_between_words_and_cuts_only_what_is_too_long() {
        assert_eq!(plain("one two three", 8), ["one two ", "three"]);
        assert_eq!(plain("abcdefgh ij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(plain("東京都東京都", 5), ["東京", "都東", "京都"]);
        assert_eq!(plain("", 5), [""]);
    }
}
