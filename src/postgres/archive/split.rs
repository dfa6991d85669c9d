//! Splits the SQL text of a plain dump into statements as `psql` does, whatever pieces it comes in, in bounded memory.

use super::plain::HEAD;
use super::tokens::dollar_tag;

/// A statement is kept up to this length, which no definition of a table reaches.
const LONGEST_STATEMENT: usize = 16 << 20;
/// Of an INSERT only the table's name is of interest.
const LONGEST_INSERT: usize = 512;
/// Decisions need at most this much text ahead: the tag of a dollar quote is a name.
const LOOKAHEAD: usize = 256;
pub enum Stop {
    Statement(String),
    /// A line for psql itself, such as `\connect`.
    Command(String),
    /// A comment line without its dashes.
    Comment(String),
}

/// Splits SQL text into statements, whatever pieces it comes in.
#[derive(Default)]
pub struct Splitter {
    inside: Inside,
    statement: Vec<u8>,
    parentheses: usize,
}

#[derive(Default, PartialEq, Eq)]
enum Inside {
    #[default]
    Nothing,
    Comment(Vec<u8>),
    Command(Vec<u8>),
    /// A block comment, and how deep.
    Block(usize),
    /// A quote, and whether backslashes escape in it.
    Quoted(u8, bool),
    /// A dollar quote and its tag.
    Dollar(Vec<u8>),
}

impl Splitter {
    pub fn is_open(&self) -> bool {
        let blank = self.statement.iter().all(u8::is_ascii_whitespace);
        !blank || !matches!(self.inside, Inside::Nothing | Inside::Comment(_) | Inside::Command(_))
    }

    fn keep(&mut self, bytes: &[u8]) {
        let most = if self.statement.starts_with(b"INSERT") { LONGEST_INSERT } else { LONGEST_STATEMENT };
        let room = most.saturating_sub(self.statement.len());
        self.statement.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Takes text up to the end of the next statement, command or comment, or as far as can be decided.
    pub fn feed(&mut self, text: &[u8], ended: bool) -> (usize, Option<Stop>) {
        let mut at = 0;
        while at < text.len() && (ended || text.len() - at >= LOOKAHEAD) {
            let rest = &text[at..];
            let (taken, stop) = match &mut self.inside {
                Inside::Nothing => self.outside(rest),
                Inside::Comment(line) | Inside::Command(line) => {
                    let end = memchr::memchr(b'\n', rest);
                    let part = &rest[..end.unwrap_or(rest.len())];
                    line.extend_from_slice(&part[..part.len().min(HEAD.saturating_sub(line.len()))]);
                    (end.map_or(rest.len(), |end| end + 1), end.and_then(|_| self.end_of_line()))
                }
                Inside::Block(depth) => {
                    let taken = match rest {
                        [b'/', b'*', ..] => {
                            *depth += 1;
                            2
                        }
                        [b'*', b'/', ..] => {
                            *depth -= 1;
                            2
                        }
                        _ => 1,
                    };
                    if *depth == 0 {
                        self.inside = Inside::Nothing;
                    }
                    (taken, None)
                }
                Inside::Quoted(quote, escapes) => {
                    let taken = match rest {
                        [b'\\', _, ..] if *escapes => 2,
                        [first, second, ..] if first == quote && second == quote => 2,
                        [first, ..] if first == quote => {
                            self.inside = Inside::Nothing;
                            1
                        }
                        _ => rest
                            .iter()
                            .take_while(|byte| !matches!(**byte, b'\\' | b'\'' | b'"'))
                            .count()
                            .clamp(1, rest.len()),
                    };
                    // The lookahead is only certain for the first byte of a step.
                    self.keep(&rest[..taken]);
                    (taken, None)
                }
                Inside::Dollar(tag) => match memchr::memmem::find(rest, tag) {
                    Some(end) => {
                        let taken = end + tag.len();
                        self.inside = Inside::Nothing;
                        self.keep(b"$$");
                        (taken, None)
                    }
                    None if ended => (rest.len(), None),
                    None => (rest.len() + 1 - tag.len(), None),
                },
            };
            at += taken;
            if stop.is_some() {
                return (at, stop);
            }
        }
        (at, None)
    }

    fn end_of_line(&mut self) -> Option<Stop> {
        match std::mem::take(&mut self.inside) {
            Inside::Comment(line) => {
                self.keep(b"\n");
                Some(Stop::Comment(String::from_utf8_lossy(&line).trim().to_owned()))
            }
            Inside::Command(line) => Some(Stop::Command(String::from_utf8_lossy(&line).trim_end().to_owned())),
            other => {
                self.inside = other;
                None
            }
        }
    }

    /// One step outside of quotes and comments.
    fn outside(&mut self, rest: &[u8]) -> (usize, Option<Stop>) {
        let word_before = self.statement.last().is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
        let taken = match rest {
            [b'-', b'-', ..] => {
                self.inside = Inside::Comment(Vec::new());
                return (2, None);
            }
            [b'/', b'*', ..] => {
                self.inside = Inside::Block(1);
                return (2, None);
            }
            [b'\\', ..] if self.statement.iter().all(u8::is_ascii_whitespace) => {
                self.statement.clear();
                self.inside = Inside::Command(Vec::new());
                return (0, None);
            }
            [b'e' | b'E', b'\'', ..] if !word_before => {
                self.inside = Inside::Quoted(b'\'', true);
                2
            }
            [quote @ (b'\'' | b'"'), ..] => {
                self.inside = Inside::Quoted(*quote, false);
                1
            }
            [b'$', ..] if !word_before && dollar_tag(&rest[..rest.len().min(LOOKAHEAD)]).is_some() => {
                let tag = dollar_tag(&rest[..rest.len().min(LOOKAHEAD)]).unwrap_or_default();
                self.inside = Inside::Dollar(tag.to_vec());
                return (tag.len(), None);
            }
            [b';', ..] if self.parentheses == 0 => {
                self.keep(b";");
                let statement = std::mem::take(&mut self.statement);
                return (1, Some(Stop::Statement(String::from_utf8_lossy(statement.trim_ascii_start()).into_owned())));
            }
            [b'(', ..] => {
                self.parentheses += 1;
                1
            }
            [b')', ..] => {
                self.parentheses = self.parentheses.saturating_sub(1);
                1
            }
            [byte, ..] if byte.is_ascii_whitespace() && self.statement.is_empty() => return (1, None),
            _ => 1,
        };
        self.keep(&rest[..taken]);
        (taken, None)
    }
}
