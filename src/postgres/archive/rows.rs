//! The rows of one table: COPY text up to its end marker, the line `\.`, which is looked for but never passed on.
//!
//! The text itself is not parsed. In COPY text a backslash in a value is written twice, so a line that is just `\.`
//! cannot be a row. A server that is given one ends the COPY there and quietly ignores what follows, which is why more
//! text after the marker is an error here.
//!
//! What damage can be found depends on the dump. Rows that end early are always found. A changed value is found by the
//! CRC of gzip and, but for rare collisions, by the Adler-32 of zlib, which custom archives have; without compression, and
//! with lz4 and zstd as `pg_dump` uses them, there is no checksum.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memchr::memmem;

use super::decode::{Codec, Decoder, Packed};
use crate::error::{Error, Result};

const WINDOW: usize = 128 * 1024;

/// The rows of one table, as a stream of COPY text.
pub struct Rows {
    table: String,
    window: Window,
    taken: Arc<AtomicU64>,
    /// Bytes at the start of the window that are rows.
    ready: usize,
    /// Whether the window starts at the start of a line.
    line_start: bool,
    /// Length of the end marker that comes after the ready bytes.
    marker: Option<usize>,
    then: Then,
}

/// What comes after the end marker.
enum Then {
    /// Nothing but empty lines.
    End,
    /// Other text, and perhaps more sections of the same table.
    Sections(VecDeque<Range<u64>>),
    Done,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("table", &self.table).finish_non_exhaustive()
    }
}

impl Rows {
    /// Rows that are all of a data block or a file. `taken` counts the bytes of it, and may be counted up by others.
    pub(super) fn whole(table: String, packed: Packed, codec: Codec, taken: Arc<AtomicU64>) -> Result<Self> {
        Self::new(table, packed, codec, taken, Then::End)
    }

    /// Rows between other text. `position` is where the packed bytes begin, in the same text that the spans count.
    pub(super) fn sections(
        table: String,
        packed: Packed,
        codec: Codec,
        position: u64,
        spans: VecDeque<Range<u64>>,
    ) -> Result<Self> {
        let mut rows = Self::new(table, packed, codec, Arc::default(), Then::Sections(spans))?;
        rows.window.position = position;
        rows.marker = Some(0);
        Ok(rows)
    }

    fn new(table: String, packed: Packed, codec: Codec, taken: Arc<AtomicU64>, then: Then) -> Result<Self> {
        let decoder = Decoder::new(codec, packed, Arc::clone(&taken));
        let decoder =
            decoder.map_err(|error| Error::from_read(error, || format!("cannot read the data of {table}")))?;
        let window = Window::new(decoder);
        Ok(Self { table, window, taken, ready: 0, line_start: true, marker: None, then })
    }

    /// How many compressed bytes were taken so far, to be compared with [`super::Table::compressed_size`].
    pub fn compressed_bytes_read(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.taken)
    }

    /// Counts rows until about that many compressed bytes were taken: the rows, the bytes, and whether these were all.
    pub(super) fn count_within(&mut self, compressed: u64) -> io::Result<(u64, u64, bool)> {
        let mut lines = 0;
        loop {
            let text = self.fill_buf()?;
            if text.is_empty() {
                return Ok((lines, self.taken.load(Ordering::Relaxed), true));
            }
            lines += memchr::memchr_iter(b'\n', text).count() as u64;
            let length = text.len();
            self.consume(length);
            let taken = self.taken.load(Ordering::Relaxed);
            if taken >= compressed {
                return Ok((lines, taken, false));
            }
        }
    }

    /// Makes bytes ready, or finds the end.
    fn advance(&mut self) -> Result<(), io::Error> {
        let mut ended = false;
        while self.ready == 0 {
            if matches!(self.then, Then::Done) {
                return Ok(());
            }
            if let Some(marker) = self.marker.take() {
                self.window.consume(marker);
                self.after_marker()?;
                continue;
            }
            match find_end(self.window.text(), self.line_start, ended) {
                Found::End { rows, marker } => (self.ready, self.marker) = (rows, Some(marker)),
                Found::Rows(rows) if rows > 0 => self.ready = rows,
                Found::Rows(_) if ended => return Err(self.wrong("ends early", "its end marker is missing")),
                Found::Rows(_) => ended = !self.window.more()?,
            }
        }
        // No encoding of a server has such bytes, but the lengths between chunks do, should one of those be wrong.
        if memchr::memchr(0, &self.window.text()[..self.ready]).is_some() {
            self.ready = 0;
            return Err(self.wrong("is damaged", "a zero byte is among its rows"));
        }
        Ok(())
    }

    fn after_marker(&mut self) -> io::Result<()> {
        match &mut self.then {
            Then::End => {
                loop {
                    if self.window.text().iter().any(|byte| !matches!(byte, b'\n' | b'\r')) {
                        return Err(self.wrong("is damaged", "there is data after the end marker"));
                    }
                    self.window.consume(self.window.text().len());
                    if !self.window.more()? {
                        break;
                    }
                }
                self.window.decoder.finish()?;
                self.then = Then::Done;
            }
            Then::Sections(spans) => {
                let Some(span) = spans.pop_front() else {
                    self.then = Then::Done;
                    return Ok(());
                };
                while self.window.position < span.start {
                    let skip = usize::try_from(span.start - self.window.position).unwrap_or(usize::MAX);
                    self.window.consume(skip.min(self.window.text().len()));
                    if self.window.text().is_empty() && !self.window.more()? {
                        return Err(self.wrong("ends early", "the dump is shorter than when it was opened"));
                    }
                }
                self.line_start = true;
            }
            Then::Done => {}
        }
        Ok(())
    }

    fn wrong(&self, how: &str, why: &str) -> io::Error {
        let error = format!("the data of {} {how}: {why}, at byte {} of its text", self.table, self.window.position);
        io::Error::other(Error::backup(error).hint(super::HINT_DAMAGED))
    }
}

impl BufRead for Rows {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.ready == 0
            && let Err(error) = self.advance()
        {
            let taken = self.taken.load(Ordering::Relaxed);
            let message = || format!("the data of {} is damaged near byte {taken} of it", self.table);
            return Err(io::Error::other(match Error::from_read(error, message) {
                error if error.hints.is_empty() => error.hint(super::HINT_DAMAGED),
                error => error,
            }));
        }
        Ok(&self.window.text()[..self.ready])
    }

    fn consume(&mut self, amount: usize) {
        let amount = amount.min(self.ready);
        if amount > 0 {
            self.line_start = self.window.text()[amount - 1] == b'\n';
            self.window.consume(amount);
            self.ready -= amount;
        }
    }
}

impl Read for Rows {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let ready = self.fill_buf()?;
        let amount = ready.len().min(bytes.len());
        bytes[..amount].copy_from_slice(&ready[..amount]);
        self.consume(amount);
        Ok(amount)
    }
}

/// A sliding part of the text.
pub(super) struct Window {
    pub decoder: Decoder,
    /// Always of full length, so that it is not cleared for each of many small reads.
    bytes: Vec<u8>,
    /// The part of it that is text.
    filled: Range<usize>,
    /// Where the window starts in the text.
    pub position: u64,
}

impl Window {
    pub fn new(decoder: Decoder) -> Self {
        Self { decoder, bytes: vec![0; WINDOW], filled: 0..0, position: 0 }
    }

    pub fn text(&self) -> &[u8] {
        &self.bytes[self.filled.clone()]
    }

    pub fn consume(&mut self, amount: usize) {
        self.filled.start += amount;
        self.position += amount as u64;
    }

    /// Reads more text behind what is there; false at the end. The caller leaves only a few bytes unconsumed.
    pub fn more(&mut self) -> io::Result<bool> {
        let kept = self.filled.len();
        self.bytes.copy_within(self.filled.clone(), 0);
        self.filled = 0..kept;
        if kept == WINDOW {
            return Err(io::Error::other(Error::bug("a window of the dump is full")));
        }
        let read = loop {
            match self.decoder.read(&mut self.bytes[kept..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.filled.end += read;
        Ok(read > 0)
    }
}

/// What a piece of text begins with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// So many bytes of rows; what follows cannot be told yet.
    Rows(usize),
    /// Rows, and then the end marker with its line end.
    End { rows: usize, marker: usize },
}

/// Looks for the end marker. `line_start` says that the text starts a line; `ended`, that there is no more text to come.
pub(super) fn find_end(text: &[u8], line_start: bool, ended: bool) -> Found {
    let first = (line_start && text.starts_with(b"\\.")).then_some(0);
    let others = memmem::find_iter(text, b"\n\\.").map(|newline| newline + 1);
    for at in first.into_iter().chain(others) {
        match &text[at + 2..] {
            [b'\n', ..] => return Found::End { rows: at, marker: 3 },
            [b'\r', b'\n', ..] => return Found::End { rows: at, marker: 4 },
            rest @ ([] | [b'\r']) if ended => return Found::End { rows: at, marker: 2 + rest.len() },
            [] | [b'\r'] => return Found::Rows(at),
            _ => {}
        }
    }
    let backslash = text.len().saturating_sub(1);
    let begins_line = if backslash == 0 { line_start } else { text[backslash - 1] == b'\n' };
    if !ended && text.last() == Some(&b'\\') && begins_line { Found::Rows(backslash) } else { Found::Rows(text.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads text that comes in pieces of a given size.
    fn read(text: &[u8], piece: usize) -> Result<Vec<u8>, String> {
        struct Pieces(Vec<u8>, usize);
        impl Read for Pieces {
            fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
                let amount = bytes.len().min(self.1).min(self.0.len());
                bytes[..amount].copy_from_slice(&self.0[..amount]);
                self.0.drain(..amount);
                Ok(amount)
            }
        }
        let packed = io::BufReader::with_capacity(piece, Pieces(text.to_owned(), piece));
        let mut rows = Rows::whole("public.t".to_owned(), Box::new(packed), Codec::None, Arc::default()).unwrap();
        let mut read = Vec::new();
        rows.read_to_end(&mut read).map_err(|error| Error::from_read(error, String::new).message)?;
        Ok(read)
    }

    #[test]
    fn rows_end_at_the_line_that_is_just_the_marker() {
        let early = "the data of public.t ends early: its end marker is missing, at byte";
        let after = "the data of public.t is damaged: there is data after the end marker, at byte";
        for piece in 1..9 {
            for (text, rows) in [
                ("\\.\n\n\n", Ok("")),
                ("\\.", Ok("")),
                ("\n\\.\n", Ok("\n")),
                ("1\n2\n\\.\n\n\n", Ok("1\n2\n")),
                ("1\r\n\\.\r\n", Ok("1\r\n")),
                ("\\\\.\n\\N\n\\.x\na\\.\n\\.\n", Ok("\\\\.\n\\N\n\\.x\na\\.\n")),
                ("\\N\\.\n\\\n\\.\n", Ok("\\N\\.\n\\\n")),
                ("", Err(early)),
                ("1\n", Err(early)),
                ("1\n\\", Err(early)),
                ("1\\.\n", Err(early)),
                ("1\n\\.\n2\n\\.\n", Err(after)),
                ("1\n\\.\n\n \n", Err(after)),
            ] {
                match (read(text.as_bytes(), piece), rows) {
                    (Ok(read), Ok(rows)) => assert_eq!(String::from_utf8(read).unwrap(), rows, "{text:?} by {piece}"),
                    (Err(error), Err(start)) => assert!(error.starts_with(start), "{error}"),
                    (read, rows) => panic!("{text:?} by {piece}: {read:?}, expected {rows:?}"),
                }
            }
        }
    }

    /// The same, said simply: lines up to the marker, and nothing but empty lines after it.
    fn expected(text: &str) -> Option<&str> {
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            if matches!(line, "\\.\n" | "\\.\r\n") || at + line.len() == text.len() && matches!(line, "\\." | "\\.\r") {
                let blank = text[at + line.len()..].bytes().all(|byte| matches!(byte, b'\n' | b'\r'));
                return blank.then_some(&text[..at]);
            }
            at += line.len();
        }
        None
    }

    proptest::proptest! {
        #[test]
        fn rows_are_told_from_their_end_however_the_text_is_cut(
            pieces in proptest::collection::vec("\\\\\\.|\n|\r|\\\\|\\.|\n\\\\\\.\n|[xN]", 0..12),
            end in "|\n\\\\\\.|\\\\\\.\n\n\n",
            piece in 1_usize..20,
        ) {
            let text = pieces.concat() + &end;
            proptest::prop_assert_eq!(
                read(text.as_bytes(), piece).ok().map(|rows| String::from_utf8(rows).unwrap()),
                expected(&text).map(str::to_owned),
                "{:?}", text
            );
        }

        #[test]
        fn any_values_that_a_server_writes_come_back(
            values in proptest::collection::vec(proptest::collection::vec(proptest::prelude::any::<u8>(), 0..6), 0..20),
            piece in 1_usize..20,
        ) {
            let mut rows = Vec::new();
            for value in values {
                for byte in value {
                    match byte {
                        0 => {}
                        b'\\' => rows.extend(b"\\\\"),
                        b'\n' => rows.extend(b"\\n"),
                        b'\r' => rows.extend(b"\\r"),
                        b'\t' => rows.extend(b"\\t"),
                        _ => rows.push(byte),
                    }
                }
                rows.push(b'\n');
            }
            let text = [&rows[..], b"\\.\n\n\n"].concat();
            proptest::prop_assert_eq!(read(&text, piece).unwrap(), rows);
        }
    }
}
