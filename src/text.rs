//! Numbers to words, and the one sanitiser that all text from outside passes before it reaches a screen, a log or a
//! report.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// More combining marks than this on one base are shown escaped: a thousand of them can hide a line.
const MARKS_PER_CLUSTER: usize = 8;

/// Makes outside text safe to draw: control characters, escape sequences, direction overrides and invisible characters
/// become visible escapes (`\x1b`, `\u{202e}`), everything else stays as it is.
pub fn clean(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for cluster in text.graphemes(true) {
        let crowded = cluster.chars().count() > MARKS_PER_CLUSTER;
        for (position, letter) in cluster.chars().enumerate() {
            match letter {
                '\n' => safe.push_str("\\n"),
                '\r' => safe.push_str("\\r"),
                '\t' => safe.push_str("\\t"),
                _ if is_unsafe(letter) || (crowded && position > 0) => push_escape(&mut safe, letter),
                _ => safe.push(letter),
            }
        }
    }
    Cow::Owned(safe)
}

fn push_escape(safe: &mut String, letter: char) {
    let code = u32::from(letter);
    let _ = if code < 0x100 { write!(safe, "\\x{code:02x}") } else { write!(safe, "\\u{{{code:x}}}") };
}

/// Characters that steer a terminal, change the reading direction, or cannot be seen.
fn is_unsafe(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            '\u{00ad}' | '\u{034f}' | '\u{061c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{e000}'..='\u{f8ff}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{10ffff}')
}

/// Cuts text to a number of terminal columns, ending in `…` when something was cut.
pub fn fit(text: &str, columns: usize) -> Cow<'_, str> {
    if text.width() <= columns {
        return Cow::Borrowed(text);
    }
    let mut cut = String::new();
    let mut used = 0;
    for cluster in text.graphemes(true) {
        let width = cluster.width();
        if used + width + 1 > columns {
            break;
        }
        used += width;
        cut.push_str(cluster);
    }
    if columns > 0 {
        cut.push('…');
    }
    Cow::Owned(cut)
}

/// `12,345`
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 row`, `12,345 rows`
pub fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// `1.5 MB`, decimal units.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let mut amount = number as f64;
    let mut unit = 0;
    while amount >= 999.5 && unit + 1 < UNITS.len() {
        amount /= 1000.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && amount < 99.95);
    format!("{amount:.decimals$} {}", UNITS[unit])
}

/// `45 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`
pub fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_what_steers_a_terminal() {
        assert_eq!(clean("a\x1b[2Jb\u{9b}c"), "a\\x1b[2Jb\\x9bc");
        assert_eq!(clean("fdp\u{202e}exe.\u{200b}"), "fdp\\u{202e}exe.\\u{200b}");
        assert_eq!(clean("line\r\nnext\tcell"), "line\\r\\nnext\\tcell");
        assert_eq!(clean("Zoë 東京 🛟"), "Zoë 東京 🛟");
    }

    #[test]
    fn shows_a_crowd_of_marks_as_escapes() {
        let crowd = format!("e{}", "\u{301}".repeat(10_000));
        assert!(clean(&crowd).starts_with("e\\u{301}\\u{301}"));
    }

    #[test]
    fn every_scalar_comes_out_drawable() {
        for code in 0..=0x10_ffff {
            let Some(letter) = char::from_u32(code) else { continue };
            let text = letter.to_string();
            assert!(!clean(&text).chars().any(is_unsafe), "U+{code:04X} passed");
        }
    }

    #[test]
    fn cuts_by_columns_not_by_characters() {
        assert_eq!(fit("東京都", 6), "東京都");
        assert_eq!(fit("東京都", 5), "東京…");
        assert_eq!(fit("abcdef", 4), "abc…");
        assert_eq!(fit("abc", 0), "");
    }

    #[test]
    fn says_numbers_in_words() {
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(counted(1, "row", "rows"), "1 row");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_536), "1.5 kB");
        assert_eq!(bytes(250_000_000), "250 MB");
        assert_eq!(duration(Duration::from_mins(125)), "2 h 5 min");
    }
}
