//! Values of a database as they are shown: what cannot be told apart by eye is made different, long ones are cut and say
//! their length.
//!
//! | value | shown |
//! |---|---|
//! | NULL | `NULL`, dim and in italics |
//! | empty text | `""` |
//! | the text NULL, or text that looks quoted | in quotes |
//! | spaces at an end | `·` |
//! | line breaks, escapes, invisible characters | `\n`, `\x1b`, `\u{202e}` |
//! | longer than there is room for | `beginning…(2,341)`: its length in characters, or in bytes from 64 kB on |

use ratatui::style::{Modifier, Style};
use ratatui::text::Span;
use unicode_width::UnicodeWidthStr;

use crate::text;

/// From this size on a value's characters are not counted at every frame.
const COUNTED_BYTES: usize = 65_536;

/// Of a long value no more than this can be on a screen at once, so no more is sanitised.
const LOOKED_AT: usize = 16_384;

/// A whole value in at most `room` columns.
pub fn shown(value: Option<&str>, room: usize, style: Style) -> Vec<Span<'static>> {
    let Some(value) = value else {
        let style = style.add_modifier(Modifier::DIM | Modifier::ITALIC);
        return vec![Span::styled(text::fit("NULL", room).into_owned(), style)];
    };
    let whole = printed(head(value));
    if value.len() <= LOOKED_AT && whole.width() <= room {
        return vec![Span::styled(whole, style)];
    }
    let length = format!("({})", length(value));
    // A length with no beginning would say nothing.
    let cut = if room < length.width() + 4 {
        text::fit(&whole, room).into_owned()
    } else {
        text::fit(&whole, room - length.width()).into_owned() + &length
    };
    vec![Span::styled(cut, style)]
}

/// The value as it is printed when there is room for all of it.
pub fn printed(value: &str) -> String {
    if value.is_empty() || value == "NULL" || value.starts_with(['"', '·']) || value.ends_with('·') {
        return format!("\"{}\"", text::clean(value));
    }
    let inner = value.trim_matches(' ');
    if inner.is_empty() {
        return "·".repeat(value.len());
    }
    let before = value.len() - value.trim_start_matches(' ').len();
    let after = value.len() - value.trim_end_matches(' ').len();
    format!("{}{}{}", "·".repeat(before), text::clean(inner), "·".repeat(after))
}

/// As much of a value as can matter for one screen.
pub fn head(value: &str) -> &str {
    if value.len() <= LOOKED_AT {
        return value;
    }
    let end = (0..=LOOKED_AT).rev().find(|end| value.is_char_boundary(*end)).unwrap_or(0);
    &value[..end]
}

/// `2,341` characters, or bytes with their unit when there are very many.
pub fn length(value: &str) -> String {
    if value.len() < COUNTED_BYTES {
        text::count(value.chars().count() as u64)
    } else {
        text::bytes(value.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(value: Option<&str>, room: usize) -> String {
        shown(value, room, Style::new()).iter().map(|span| span.content.as_ref()).collect()
    }

    #[test]
    fn null_the_empty_text_and_the_word_null_are_three_different_things() {
        assert_eq!(plain(None, 20), "NULL");
        assert_eq!(plain(Some(""), 20), "\"\"");
        assert_eq!(plain(Some("NULL"), 20), "\"NULL\"");
        assert_eq!(plain(Some("\"\""), 20), "\"\"\"\"");
    }

    #[test]
    fn spaces_at_the_ends_can_be_seen() {
        assert_eq!(plain(Some(" a b  "), 20), "·a b··");
        assert_eq!(plain(Some("   "), 20), "···");
        assert_eq!(plain(Some("·a"), 20), "\"·a\"");
    }

    #[test]
    fn a_long_value_says_how_long_it_is() {
        assert_eq!(plain(Some(&"x".repeat(2_341)), 12), "xxxx…(2,341)");
        assert_eq!(plain(Some(&"東".repeat(100)), 11), "東東…(100)");
        assert_eq!(plain(Some(&"x".repeat(70_000)), 14), "xxxx…(70.0 kB)");
        assert_eq!(plain(Some("abcdefgh"), 5), "abcd…");
        assert_eq!(plain(Some("abcdefgh"), 8), "abcdefgh");
        assert_eq!(plain(Some("abc"), 0), "");
    }

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        assert_eq!(plain(Some("a\x1b[31m\n"), 20), "a\\x1b[31m\\n");
    }
}
