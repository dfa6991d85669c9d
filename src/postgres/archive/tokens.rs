//! SQL text split into words, names, symbols and literals, by the rules of SQL's quoting.

use std::ops::Range;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// An unquoted word, folded to lower case: a keyword or a name.
    Word(String),
    /// A quoted name.
    Quoted(String),
    Symbol(char),
    /// A string, which is never looked at.
    Literal,
}

/// Splits SQL into tokens. What is not closed ends with the text.
pub fn tokenize(text: &str) -> Vec<(Token, Range<usize>)> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(letter) = text[at..].chars().next() {
        let start = at;
        let rest = &bytes[at..];
        let token = match letter {
            _ if letter.is_whitespace() => {
                at += letter.len_utf8();
                continue;
            }
            '-' if rest.starts_with(b"--") => {
                at += memchr::memchr(b'\n', rest).unwrap_or(rest.len());
                continue;
            }
            '/' if rest.starts_with(b"/*") => {
                at += comment_length(rest);
                continue;
            }
            '"' => {
                at += quoted_length(rest, b'"', Escapes::None);
                let inner = text[start + 1..at].strip_suffix('"').unwrap_or(&text[start + 1..at]);
                Token::Quoted(inner.replace("\"\"", "\""))
            }
            '\'' => {
                at += quoted_length(rest, b'\'', Escapes::None);
                Token::Literal
            }
            'e' | 'E' if rest.get(1) == Some(&b'\'') => {
                at += 1 + quoted_length(&rest[1..], b'\'', Escapes::Backslash);
                Token::Literal
            }
            '$' if dollar_tag(rest).is_some() => {
                let tag = dollar_tag(rest).unwrap_or_default();
                let body = &rest[tag.len()..];
                at += memchr::memmem::find(body, tag).map_or(rest.len(), |end| end + 2 * tag.len());
                Token::Literal
            }
            _ if letter.is_alphabetic() || letter == '_' || !letter.is_ascii() => {
                let word = text[at..].split(|letter: char| !is_word_part(letter)).next().unwrap_or_default();
                at += word.len();
                // The server folds ASCII only.
                Token::Word(word.to_ascii_lowercase())
            }
            _ => {
                at += letter.len_utf8();
                Token::Symbol(letter)
            }
        };
        tokens.push((token, start..at));
    }
    tokens
}

fn is_word_part(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_' || letter == '$' || !letter.is_ascii()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    None,
    Backslash,
}

/// The length of a quoted thing with its quotes; a doubled quote does not end it.
fn quoted_length(bytes: &[u8], quote: u8, escapes: Escapes) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if escapes == Escapes::Backslash => at += 2,
            byte if byte == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The length of a block comment; these nest.
fn comment_length(bytes: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0_usize);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// `$$` or `$tag$` at the start of the bytes.
pub fn dollar_tag(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().skip(1).position(|byte| *byte == b'$')? + 1;
    let tag = &bytes[1..end];
    let word = tag.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80);
    (word && !tag.first().is_some_and(u8::is_ascii_digit)).then_some(&bytes[..=end])
}
