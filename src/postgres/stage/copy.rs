//! The stream of COPY rows: a thread reads (and decompresses) them, the session sends them, neither waits longer than a few
//! chunks for the other.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::SinkExt;
use tokio::sync::mpsc;
use tokio_postgres::{Client, CopyInSink};

use super::{Spec, Staged, server_error};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// Big enough to keep both sides busy, small enough that memory does not matter.
const CHUNK: usize = 128 * 1024;
/// Chunks that may wait between reader and session.
const WAITING: usize = 8;

/// How far the reader has come in the compressed bytes, so that progress can be told against a known total.
#[derive(Debug, Clone)]
pub struct Source {
    pub read: Arc<AtomicU64>,
    pub total: Option<u64>,
}

/// One message of the reading thread: bytes, and the number of line ends in them.
type Chunk = Result<(Bytes, u64)>;

/// `, ENCODING '...'` for an encoding that the server knows.
pub(super) async fn encoding_option(client: &Client, encoding: Option<&str>) -> Result<String> {
    let Some(encoding) = encoding else { return Ok(String::new()) };
    let sql = "SELECT pg_catalog.pg_encoding_to_char(pg_catalog.pg_char_to_encoding($1::text::name))::text";
    let row = client.query_one(sql, &[&encoding]).await.map_err(|error| server_error(error, "look up an encoding"))?;
    let known: String = row.get(0);
    // It goes into a statement, and a name that the server printed has no quotes in it; make sure all the same.
    if known.is_empty() || !known.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(Error::backup(format!("the backup's rows are in the encoding \"{encoding}\", unknown to this server")));
    }
    Ok(format!(", ENCODING '{known}'"))
}

pub(super) async fn copy(
    client: &Client,
    sql: &str,
    spec: &Spec,
    rows: impl Read + Send + 'static,
    source: Option<Source>,
    progress: &Progress,
) -> Result<Staged> {
    let failed = |error| server_error(error, &format!("take the backup's rows of {}", spec.table));
    progress.begin(format!("staging {}", spec.table), Unit::Bytes, source.as_ref().and_then(|source| source.total));
    let sink: CopyInSink<Bytes> = client.copy_in(sql).await.map_err(failed)?;
    tokio::pin!(sink);
    let (sender, mut receiver) = mpsc::channel(WAITING);
    let table = spec.table.to_string();
    std::thread::Builder::new()
        .name("staging".into())
        .spawn(move || read(rows, &table, &sender))
        .map_err(|error| Error::target("this machine gives us no thread to read with").detail(error))?;

    let mut staged = Staged { rows: 0, bytes: 0 };
    let mut lines = 0;
    let mut counted = 0;
    loop {
        // Returning drops the sink, which tells the server that the COPY failed.
        let chunk = tokio::select! {
            biased;
            () = progress.cancelled() => return Err(Error::cancelled()),
            chunk = receiver.recv() => chunk,
        };
        let Some(chunk) = chunk else { break };
        let (bytes, ends) = chunk?;
        lines += ends;
        staged.bytes += bytes.len() as u64;
        let length = bytes.len() as u64;
        tokio::select! {
            biased;
            () = progress.cancelled() => return Err(Error::cancelled()),
            sent = sink.send(bytes) => sent.map_err(failed)?,
        }
        match &source {
            None => progress.advance(length),
            Some(source) => {
                let read = source.read.load(Ordering::Relaxed);
                progress.advance(read.saturating_sub(counted));
                counted = counted.max(read);
            }
        }
    }
    staged.rows = sink.finish().await.map_err(failed)?;
    if staged.rows != lines {
        return Err(Error::backup(format!(
            "the server took {} rows of {}, but the backup holds {lines}",
            staged.rows, spec.table
        )));
    }
    Ok(staged)
}

/// Runs in a thread of its own. Ends at the end of the rows, at an error, or when nobody listens any more.
fn read(mut rows: impl Read, table: &str, sender: &mpsc::Sender<Chunk>) {
    let mut lines = Lines::default();
    loop {
        let mut chunk = BytesMut::zeroed(CHUNK);
        let filled = match fill(&mut rows, &mut chunk) {
            Ok(0) => break,
            Ok(filled) => filled,
            Err(error) => {
                let _ = sender.blocking_send(Err(unreadable(error, table)));
                return;
            }
        };
        chunk.truncate(filled);
        match lines.take(&mut chunk) {
            Err(why) => {
                let _ = sender.blocking_send(Err(Error::backup(format!("the backup's rows of {table} are damaged: {why}"))));
                return;
            }
            Ok(ends) => {
                if sender.blocking_send(Ok((chunk.freeze(), ends))).is_err() {
                    return;
                }
            }
        }
    }
    if let Err(why) = lines.end() {
        let _ = sender.blocking_send(Err(Error::backup(format!("the backup's rows of {table} are damaged: {why}"))));
    }
}

fn fill(rows: &mut impl Read, chunk: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match rows.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn unreadable(error: std::io::Error, table: &str) -> Error {
    error.downcast::<Error>().unwrap_or_else(|error| {
        Error::backup(format!("cannot read the rows of {table} from the backup")).detail(error)
    })
}

/// Counts rows, and takes the end marker (`\.` on a line of its own) out of the stream: a server stops reading there without
/// a word, so rows behind it would be lost silently.
#[derive(Default)]
struct Lines {
    /// How much of `\.` the unfinished last line consists of, when it consists of nothing else.
    start: Start,
    ended: bool,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Nothing of the line was seen yet.
    #[default]
    Empty,
    /// `\`, held back until the next byte is known.
    Backslash,
    /// `\.`, held back as well.
    Marker,
    /// Anything else.
    Row,
}

impl Lines {
    /// Returns how many rows end in the chunk, and removes what is not a row.
    fn take(&mut self, chunk: &mut BytesMut) -> Result<u64, &'static str> {
        if self.ended {
            return self.tail(chunk).map(|()| 0);
        }
        // What was held back of the last chunk comes first again.
        let held: &[u8] = match self.start {
            Start::Empty | Start::Row => b"",
            Start::Backslash => b"\\",
            Start::Marker => b"\\.",
        };
        if !held.is_empty() {
            let mut joined = BytesMut::with_capacity(held.len() + chunk.len());
            joined.extend_from_slice(held);
            joined.extend_from_slice(chunk);
            *chunk = joined;
            self.start = Start::Empty;
        }
        let marker = self.marker(chunk);
        if let Some(position) = marker {
            let mut tail = chunk.split_off(position);
            let mut tail = tail.split_off(2);
            self.ended = true;
            self.start = Start::Empty;
            self.tail(&mut tail)?;
            return Ok(memchr::memchr_iter(b'\n', chunk).count() as u64);
        }
        self.hold_back(chunk);
        Ok(memchr::memchr_iter(b'\n', chunk).count() as u64)
    }

    /// Where a complete marker line begins.
    fn marker(&self, chunk: &[u8]) -> Option<usize> {
        if self.start == Start::Empty && (chunk.starts_with(b"\\.\n") || chunk.starts_with(b"\\.\r")) {
            return Some(0);
        }
        memchr::memmem::find_iter(chunk, b"\n\\.")
            .find(|position| matches!(chunk.get(position + 3), Some(b'\n' | b'\r')))
            .map(|position| position + 1)
    }

    /// Keeps the beginning of what may become a marker for the next chunk.
    fn hold_back(&mut self, chunk: &mut BytesMut) {
        let line = memchr::memrchr(b'\n', chunk).map_or(0, |position| position + 1);
        let whole = line > 0 || self.start == Start::Empty;
        self.start = match &chunk[line..] {
            _ if !whole => Start::Row,
            b"" => Start::Empty,
            b"\\" => Start::Backslash,
            b"\\." => Start::Marker,
            _ => Start::Row,
        };
        if matches!(self.start, Start::Backslash | Start::Marker) {
            chunk.truncate(line);
        }
    }

    fn tail(&self, chunk: &mut BytesMut) -> Result<(), &'static str> {
        if chunk.iter().any(|byte| !matches!(byte, b'\n' | b'\r')) {
            return Err("something follows the end marker");
        }
        chunk.clear();
        Ok(())
    }

    fn end(&self) -> Result<(), &'static str> {
        match self.start {
            Start::Empty | Start::Marker => Ok(()),
            Start::Backslash | Start::Row => Err("the last row is cut off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds text in pieces of every size.
    fn lines(text: &str) -> Vec<Result<(String, u64), &'static str>> {
        (1..=text.len().max(1))
            .map(|size| {
                let mut lines = Lines::default();
                let (mut kept, mut rows) = (String::new(), 0);
                for piece in text.as_bytes().chunks(size) {
                    let mut chunk = BytesMut::from(piece);
                    rows += lines.take(&mut chunk)?;
                    kept.push_str(std::str::from_utf8(&chunk).unwrap());
                }
                lines.end()?;
                Ok((kept, rows))
            })
            .collect()
    }

    #[test]
    fn rows_behind_the_end_marker_are_an_error() {
        assert!(lines("1\n\\.\n2\n").iter().all(|found| *found == Err("something follows the end marker")));
    }

    #[test]
    fn a_cut_off_last_row_is_an_error() {
        assert!(lines("1\n2").iter().all(|found| *found == Err("the last row is cut off")));
        assert!(lines("1\n2\\").iter().all(|found| *found == Err("the last row is cut off")));
    }

    #[test]
    fn the_end_marker_is_taken_out_wherever_the_pieces_end() {
        for (text, kept, rows) in [
            ("1\n2\n\\.\n\n\n", "1\n2\n", 2),
            ("1\n2\n", "1\n2\n", 2),
            ("\\.\n", "", 0),
            ("", "", 0),
            ("a\\.\n\\.b\n\\\\.\n", "a\\.\n\\.b\n\\\\.\n", 3),
            ("\\N\tx\\.\n\\.", "\\N\tx\\.\n", 1),
        ] {
            for found in lines(text) {
                assert_eq!(found, Ok((kept.to_owned(), rows)), "{text:?}");
            }
        }
    }
}
