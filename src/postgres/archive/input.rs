//! A stream with its place and its end known, so that a length can be checked before anything is made of it, and an error
//! can say where it happened.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;

use super::ReadSeek;
use crate::error::{Error, Result};

pub struct Input {
    stream: BufReader<Box<dyn ReadSeek>>,
    label: String,
    /// The part that is read, and where we are in the stream.
    span: Range<u64>,
    at: u64,
}

impl Input {
    pub fn new(mut stream: Box<dyn ReadSeek>, label: &str, read_ahead: usize) -> Result<Self> {
        let cannot = |error| Error::from_read(error, || format!("cannot read {label}"));
        let length = stream.seek(SeekFrom::End(0)).map_err(cannot)?;
        stream.rewind().map_err(cannot)?;
        let stream = BufReader::with_capacity(read_ahead, stream);
        Ok(Self { stream, label: label.to_owned(), span: 0..length, at: 0 })
    }

    /// Only a part of the stream, as if it were a file of its own; offsets still count from the stream's start.
    pub fn part(stream: Box<dyn ReadSeek>, label: &str, span: Range<u64>) -> Result<Self> {
        let mut input = Self::new(stream, label, super::READ_AHEAD)?;
        if span.end > input.span.end || span.start > span.end {
            return Err(input.ends_early("a part of it"));
        }
        input.narrow(span)?;
        Ok(input)
    }

    /// Goes to a part of the stream and stays in it, or in as much of it as there is.
    pub fn narrow(&mut self, span: Range<u64>) -> Result<()> {
        self.seek(span.start)?;
        self.span = span.start..span.end.min(self.span.end);
        Ok(())
    }

    pub fn label(&self) -> &str {
        &self.label
    }

    pub fn position(&self) -> u64 {
        self.at
    }

    /// Where the readable part ends.
    pub fn length(&self) -> u64 {
        self.span.end
    }

    pub fn remaining(&self) -> u64 {
        self.span.end.saturating_sub(self.at)
    }

    /// The first bytes that come, without taking them; fewer than asked for only at the end.
    pub fn peek(&mut self) -> Result<&[u8]> {
        let label = &self.label;
        self.stream.fill_buf().map_err(|error| Error::from_read(error, || format!("cannot read {label}")))
    }

    pub fn seek(&mut self, offset: u64) -> Result<()> {
        let label = &self.label;
        let cannot = |error| Error::from_read(error, || format!("cannot read {label} at byte {offset}"));
        self.stream.seek(SeekFrom::Start(offset)).map_err(cannot)?;
        self.at = offset;
        Ok(())
    }

    /// Passes over bytes; those that are not buffered are not read.
    pub fn skip(&mut self, length: u64, what: &str) -> Result<()> {
        let (true, Ok(step)) = (length <= self.remaining(), i64::try_from(length)) else {
            return Err(self.ends_early(what));
        };
        self.stream.seek_relative(step).map_err(|error| self.broken(error, what))?;
        self.at += length;
        Ok(())
    }

    pub fn byte(&mut self, what: &str) -> Result<u8> {
        let mut byte = [0];
        self.exact(&mut byte, what)?;
        Ok(byte[0])
    }

    pub fn exact(&mut self, bytes: &mut [u8], what: &str) -> Result<()> {
        if (bytes.len() as u64) > self.remaining() {
            return Err(self.ends_early(what));
        }
        self.stream.read_exact(bytes).map_err(|error| self.broken(error, what))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// An integer as archives hold it: a byte for the sign, then four bytes, the lowest first.
    pub fn integer(&mut self, what: &str) -> Result<i32> {
        let mut bytes = [0; 5];
        self.exact(&mut bytes, what)?;
        let [sign, value @ ..] = bytes;
        match (sign, i32::try_from(u32::from_le_bytes(value))) {
            (0, Ok(value)) => Ok(value),
            (1, Ok(value)) => Ok(-value),
            _ => Err(self.damaged(what)),
        }
    }

    /// The id of a large object, which fills all of an unsigned integer, so that half of them are written as negative.
    pub fn large_object_id(&mut self) -> Result<u32> {
        let mut bytes = [0; 5];
        self.exact(&mut bytes, "a large object")?;
        let [_, value @ ..] = bytes;
        Ok(u32::from_le_bytes(value))
    }

    /// Bytes of a length that was read from the archive itself.
    pub fn bytes(&mut self, length: u64, what: &str) -> Result<Vec<u8>> {
        if length > self.remaining() {
            return Err(self.ends_early(what));
        }
        // `read_to_end` grows as bytes really arrive, should the stream be shorter than it said.
        let mut bytes = Vec::new();
        let read = (&mut self.stream).take(length).read_to_end(&mut bytes);
        let read = read.map_err(|error| self.broken(error, what))?;
        if (read as u64) < length {
            return Err(self.ends_early(what));
        }
        self.at += length;
        Ok(bytes)
    }

    pub fn damaged(&self, what: &str) -> Error {
        Error::backup(format!("{} is damaged before byte {}, in {what}", self.label, self.at)).hint(super::HINT_DAMAGED)
    }

    pub fn ends_early(&self, what: &str) -> Error {
        Error::backup(format!("{} ends early: {what} should be at byte {}", self.label, self.at))
            .hint(super::HINT_DAMAGED)
    }

    fn broken(&self, error: io::Error, what: &str) -> Error {
        if error.kind() == io::ErrorKind::UnexpectedEof && error.get_ref().is_none_or(|inner| !inner.is::<Error>()) {
            return self.ends_early(what);
        }
        Error::from_read(error, || format!("cannot read {} at byte {}, in {what}", self.label, self.at))
    }
}

impl Read for Input {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.remaining()).unwrap_or(usize::MAX).min(bytes.len());
        let read = self.stream.read(&mut bytes[..most])?;
        self.at += read as u64;
        Ok(read)
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let most = usize::try_from(self.span.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        if most == 0 {
            return Ok(&[]);
        }
        let bytes = self.stream.fill_buf()?;
        Ok(&bytes[..bytes.len().min(most)])
    }

    fn consume(&mut self, amount: usize) {
        self.stream.consume(amount);
        self.at += amount as u64;
    }
}
