//! The stream of COPY rows: a thread reads (and decompresses) them, the session sends them, neither waits longer than a few
//! chunks for the other.

use std::io::Read;
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
    pub read: Arc<AtomicU64>,
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

pub(super) async fn copy(
    client: &Client,
    sql: &str,
    spec: &Spec,
    rows: impl Read + Send + 'static,
    source: Option<Source>,
    progress: &Progress,
) -> Result<Staged> {
    let failed = |error: tokio_postgres::Error| {
        // `COPY t0, line 3, column a: "three"`
        let place = error.as_db_error().and_then(|server| server.where_()).map(str::to_owned);
        let mut error = server_error(error, &format!("loading the backup's rows of {}", spec.table));
        if let (Some(detail), Some(place)) = (&mut error.detail, place)
            && !detail.contains(&place)
        {
            detail.push_str("; ");
            detail.push_str(&place);
        }
        error
    };
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
    // A server stops reading at an end marker in the middle of the rows without a word, and takes a cut-off last row.
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

fn unreadable(error: std::io::Error, table: &str) -> Error {
    error
        .downcast::<Error>()
        .unwrap_or_else(|error| Error::backup(format!("cannot read the rows of {table} from the backup")).detail(error))
}
