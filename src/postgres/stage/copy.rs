//! The stream of COPY rows: a thread reads (and decompresses) them, the session sends them, neither waits longer than a few
//! chunks for the other.

use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::SinkExt;
use tokio::sync::mpsc;
use tokio_postgres::{Client, CopyInSink};

use super::super::connect::server_error;
use super::{Spec, Staged};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// Big enough to keep both sides busy, small enough that memory does not matter.
const CHUNK: usize = 128 * 1024;
/// Chunks that may wait between reader and session.
const WAITING: usize = 8;

/// How far the reader has come in the compressed bytes, so that progress can be told against a known total.
#[derive(Debug, Clone)]
pub struct Source {
    /// Compressed bytes taken so far, counted by the reader.
    pub read: Arc<AtomicU64>,
    /// Compressed bytes of the whole table; `None`: the dump does not tell.
    pub total: Option<u64>,
}

/// One message of the reading thread: bytes, and the number of line ends in them.
type Chunk = Result<(Bytes, u64)>;

/// `, ENCODING '...'` for an encoding that the server knows.
pub(super) async fn encoding_option(client: &Client, encoding: Option<&str>) -> Result<String> {
    let Some(encoding) = encoding else { return Ok(String::new()) };
    let sql = "SELECT pg_catalog.pg_encoding_to_char(pg_catalog.pg_char_to_encoding($1::text::name))::text";
    let row =
        client.query_one(sql, &[&encoding]).await.map_err(|error| server_error(error, "looking up an encoding"))?;
    let known: String = row.get(0);
    // It goes into a statement, and a name that the server printed has no quotes in it; make sure all the same.
    if known.is_empty() || !known.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(Error::backup(format!(
            "the backup's rows are in the encoding \"{encoding}\", unknown to this server"
        )));
    }
    Ok(format!(", ENCODING '{known}'"))
}

/// The server says what is wrong with a row, or that its disk is full, only at the end of a COPY, so that many bytes may
/// have travelled in vain. A part is one COPY; all parts are one transaction.
const PART: u64 = 64 * 1024 * 1024;

pub(super) async fn copy(
    client: &Client,
    sql: &str,
    spec: &Spec,
    rows: impl Read + Send + 'static,
    source: Option<Source>,
    progress: &Progress,
) -> Result<Staged> {
    progress.begin(format!("staging {}", spec.table), Unit::Bytes, source.as_ref().and_then(|source| source.total));
    let mut part = Part::begin(client, sql, spec, 0).await?;
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
        let (mut bytes, ends) = chunk?;
        lines += ends;
        staged.bytes += bytes.len() as u64;
        let length = bytes.len() as u64;
        if part.bytes >= PART
            && let Some(end) = memchr::memrchr(b'\n', &bytes)
        {
            let head = bytes.split_to(end + 1);
            part.send(head, progress).await?;
            staged.rows += part.finish().await?;
            part = Part::begin(client, sql, spec, staged.rows).await?;
        }
        part.send(bytes, progress).await?;
        match &source {
            None => progress.advance(length),
            Some(source) => {
                let read = source.read.load(Ordering::Relaxed);
                progress.advance(read.saturating_sub(counted));
                counted = counted.max(read);
            }
        }
    }
    staged.rows += part.finish().await?;
    // A server stops reading at an end marker in the middle of the rows without a word, and takes a cut-off last row.
    if staged.rows != lines {
        return Err(Error::backup(format!(
            "the server took {} rows of {}, but the backup holds {lines}",
            staged.rows, spec.table
        )));
    }
    Ok(staged)
}

/// One COPY of several in the same transaction.
struct Part<'a> {
    sink: Pin<Box<CopyInSink<Bytes>>>,
    spec: &'a Spec,
    /// Rows that went before.
    before: u64,
    bytes: u64,
}

impl<'a> Part<'a> {
    async fn begin(client: &Client, sql: &str, spec: &'a Spec, before: u64) -> Result<Self> {
        let sink = client.copy_in(sql).await.map_err(|error| failed(error, spec, before))?;
        Ok(Self { sink: Box::pin(sink), spec, before, bytes: 0 })
    }

    async fn send(&mut self, bytes: Bytes, progress: &Progress) -> Result<()> {
        self.bytes += bytes.len() as u64;
        tokio::select! {
            biased;
            () = progress.cancelled() => Err(Error::cancelled()),
            sent = self.sink.send(bytes) => sent.map_err(|error| failed(error, self.spec, self.before)),
        }
    }

    async fn finish(mut self) -> Result<u64> {
        self.sink.as_mut().finish().await.map_err(|error| failed(error, self.spec, self.before))
    }
}

/// The server's error, with the place that it names: `COPY t0, line 3, column a: "three"`. Lines are counted from the
/// first row of the table.
fn failed(error: tokio_postgres::Error, spec: &Spec, before: u64) -> Error {
    let place = error.as_db_error().and_then(|server| server.where_()).map(str::to_owned);
    let mut error = server_error(error, &format!("loading the backup's rows of {}", spec.table));
    let Some(place) = place else { return error };
    let place = match place.split_once(", line ").map(|(copy, rest)| (copy, rest.split_at(digits(rest)))) {
        Some((copy, (line, rest))) if before > 0 => {
            format!("{copy}, line {}{rest}", line.parse::<u64>().unwrap_or(0).saturating_add(before))
        }
        _ => place,
    };
    let detail = error.detail.get_or_insert_default();
    if !detail.contains(&place) {
        detail.push_str("; ");
        detail.push_str(&place);
    }
    error
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// Runs in a thread of its own. Ends at the end of the rows, at an error, or when nobody listens any more.
fn read(mut rows: impl Read, table: &str, sender: &mpsc::Sender<Chunk>) {
    loop {
        let mut chunk = BytesMut::zeroed(CHUNK);
        let filled = match fill(&mut rows, &mut chunk) {
            Ok(0) => break,
            Ok(filled) => filled,
            Err(error) => {
                let message = || format!("cannot read the rows of {table} from the backup");
                let _ = sender.blocking_send(Err(Error::from_read(error, message)));
                return;
            }
        };
        chunk.truncate(filled);
        let ends = memchr::memchr_iter(b'\n', &chunk).count() as u64;
        if sender.blocking_send(Ok((chunk.freeze(), ends))).is_err() {
            return;
        }
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
