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
use super::super::name::Name;
use super::Staged;
use super::binary::{Columns, END, HEAD};
use crate::error::{Error, Result};
use crate::progress::Progress;

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

/// The form of a COPY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Binary,
}

/// What the reading thread hands on; in binary form whole rows.
struct Piece {
    bytes: Bytes,
    form: Form,
    /// Line ends in text.
    rows: u64,
    /// Bytes of text that these are or were.
    text: u64,
}

type Chunk = Result<Piece>;

/// A COPY into a table.
#[derive(Debug)]
pub struct Statement {
    /// In text form.
    text: String,
    /// In binary form, for a table that takes it.
    binary: Option<(String, Columns)>,
}

impl Statement {
    /// Only in text form.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), binary: None }
    }

    /// The same in binary form, while that is possible.
    pub fn or_binary(self, binary: Option<(String, Columns)>) -> Self {
        Self { binary, ..self }
    }

    /// As several sessions say it.
    pub fn as_text(&self) -> &str {
        &self.text
    }

    fn in_form(&self, form: Form) -> (&str, Form) {
        match (form, &self.binary) {
            (Form::Binary, Some((sql, _))) => (sql, form),
            _ => (&self.text, Form::Text),
        }
    }
}

/// `, ENCODING '...'` for an encoding that the server knows.
pub(in super::super) async fn encoding_option(client: &Client, encoding: Option<&str>) -> Result<String> {
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

/// Sends rows to a COPY, in parts that are one transaction, which the caller has begun and ends.
pub(in super::super) async fn copy(
    client: &Client,
    statement: &Statement,
    table: &Name,
    rows: impl Read + Send + 'static,
    source: Option<Source>,
    progress: &Progress,
) -> Result<Staged> {
    let columns = statement.binary.as_ref().map(|(_, columns)| columns.clone());
    let mut reader = Reader::start(rows, table, columns, source, progress)?;
    let (mut part, mut staged): (Option<Part<'_>>, _) = (None, Staged { rows: 0, bytes: 0 });
    // Returning drops the sink, which tells the server that the COPY failed.
    while let Some(mut piece) = reader.next().await? {
        if let Some(rest) = part.as_ref().and_then(|part| part.rest(&piece))
            && let Some(mut full) = part.take()
        {
            full.send(piece.bytes.split_to(rest), progress).await?;
            staged.rows += full.finish().await?;
        }
        let part = match &mut part {
            Some(part) => part,
            none => none.insert(Part::begin(client, statement.in_form(piece.form), table, staged.rows).await?),
        };
        part.send(piece.bytes, progress).await?;
    }
    staged.rows += if let Some(last) = part { last.finish().await? } else { 0 };
    staged.bytes = reader.bytes;
    reader.all_taken(staged)
}

/// So many bytes go to one of two sessions before it is the other's turn.
const TURN: usize = 4 * 1024 * 1024;
/// Chunks that wait for one of them: its next turn is read while the other one still works on its own.
const WAITING_TURN: usize = 2 * TURN / CHUNK;

/// Sends rows through two sessions, a few megabytes to each in turn: what takes long is the server's own work on them, and two
/// sessions are two processors. Each is in a transaction of its own, which the caller has begun and ends.
pub(in super::super) async fn copy_by_two(
    sessions: [&Client; 2],
    sql: &str,
    table: &Name,
    rows: impl Read + Send + 'static,
    source: Option<Source>,
    progress: &Progress,
) -> Result<Staged> {
    let mut reader = Reader::start(rows, table, None, source, progress)?;
    let (to_first, first) = mpsc::channel(WAITING_TURN);
    let (to_second, second) = mpsc::channel(WAITING_TURN);
    // Each piece with the number of rows before its turn.
    let sharing = async {
        let (mut is_firsts, mut before, mut sent) = (true, 0, 0);
        while let Some(Piece { mut bytes, .. }) = reader.next().await? {
            let end = if sent >= TURN { memchr::memrchr(b'\n', &bytes) } else { None };
            let head = bytes.split_to(end.map_or(0, |end| end + 1));
            let turn = |is_firsts| if is_firsts { &to_first } else { &to_second };
            // Nobody takes it any more when a session has failed; that one tells why.
            if !head.is_empty() && turn(is_firsts).send((before, head)).await.is_err() {
                break;
            }
            if end.is_some() {
                (is_firsts, before, sent) = (!is_firsts, reader.lines, 0);
            }
            sent += bytes.len();
            if !bytes.is_empty() && turn(is_firsts).send((before, bytes)).await.is_err() {
                break;
            }
        }
        drop((to_first, to_second));
        Ok(reader)
    };
    let [one, other] = sessions;
    let (reader, one, other) =
        tokio::try_join!(sharing, turns(one, sql, table, first, progress), turns(other, sql, table, second, progress))?;
    let bytes = reader.bytes;
    reader.all_taken(Staged { rows: one + other, bytes })
}

/// Loads the turns of one session, each as a COPY. Returns the rows that the server took.
async fn turns(
    client: &Client,
    sql: &str,
    table: &Name,
    mut pieces: mpsc::Receiver<(u64, Bytes)>,
    progress: &Progress,
) -> Result<u64> {
    let (mut part, mut rows): (Option<Part<'_>>, u64) = (None, 0);
    while let Some((before, bytes)) = pieces.recv().await {
        let mut present = match part.take() {
            Some(present) if present.before == before => present,
            ended => {
                rows += if let Some(ended) = ended { ended.finish().await? } else { 0 };
                Part::begin(client, (sql, Form::Text), table, before).await?
            }
        };
        present.send(bytes, progress).await?;
        part = Some(present);
    }
    Ok(rows + if let Some(last) = part { last.finish().await? } else { 0 })
}

/// What a thread reads, chunk by chunk.
struct Reader<'a> {
    receiver: mpsc::Receiver<Chunk>,
    table: &'a Name,
    source: Option<Source>,
    progress: &'a Progress,
    lines: u64,
    bytes: u64,
    /// Compressed bytes that were told.
    told: u64,
}

impl<'a> Reader<'a> {
    fn start(
        rows: impl Read + Send + 'static,
        table: &'a Name,
        columns: Option<Columns>,
        source: Option<Source>,
        progress: &'a Progress,
    ) -> Result<Self> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let shown = table.to_string();
        std::thread::Builder::new()
            .name("staging".into())
            .spawn(move || read(rows, &shown, columns, &sender))
            .map_err(|error| Error::target("this machine gives us no thread to read with").detail(error))?;
        Ok(Self { receiver, table, source, progress, lines: 0, bytes: 0, told: 0 })
    }

    /// `None`: that was the last one.
    async fn next(&mut self) -> Result<Option<Piece>> {
        let chunk = tokio::select! {
            biased;
            () = self.progress.cancelled() => return Err(Error::cancelled()),
            chunk = self.receiver.recv() => chunk,
        };
        let Some(chunk) = chunk else { return Ok(None) };
        let piece = chunk?;
        self.lines += piece.rows;
        self.bytes += piece.text;
        match &self.source {
            None => self.progress.advance(piece.text),
            Some(source) => {
                let read = source.read.load(Ordering::Relaxed);
                self.progress.advance(read.saturating_sub(self.told));
                self.told = self.told.max(read);
            }
        }
        Ok(Some(piece))
    }

    /// A server stops reading at an end marker in the middle of the rows without a word, and takes a cut-off last row.
    fn all_taken(self, staged: Staged) -> Result<Staged> {
        if staged.rows == self.lines {
            return Ok(staged);
        }
        Err(Error::backup(format!(
            "the server took {} rows of {}, but the backup holds {}",
            staged.rows, self.table, self.lines
        )))
    }
}

/// One COPY of several in the same transaction.
struct Part<'a> {
    sink: Pin<Box<CopyInSink<Bytes>>>,
    form: Form,
    table: &'a Name,
    /// Rows that went before.
    before: u64,
    bytes: u64,
}

impl<'a> Part<'a> {
    async fn begin(client: &Client, (sql, form): (&str, Form), table: &'a Name, before: u64) -> Result<Self> {
        let sink = client.copy_in(sql).await.map_err(|error| failed(error, table, before))?;
        let mut part = Self { sink: Box::pin(sink), form, table, before, bytes: 0 };
        if form == Form::Binary {
            part.put(Bytes::from_static(HEAD)).await?;
        }
        Ok(part)
    }

    /// How much of a piece still belongs to it, when it is full or of another form: text up to its last row, which may have
    /// begun before.
    fn rest(&self, piece: &Piece) -> Option<usize> {
        match (self.form, piece.form) {
            (Form::Text, Form::Text) if self.bytes >= PART => Some(memchr::memrchr(b'\n', &piece.bytes)? + 1),
            (Form::Binary, Form::Binary) if self.bytes >= PART => Some(0),
            (one, other) => (one != other).then_some(0),
        }
    }

    async fn send(&mut self, bytes: Bytes, progress: &Progress) -> Result<()> {
        self.bytes += bytes.len() as u64;
        tokio::select! {
            biased;
            () = progress.cancelled() => Err(Error::cancelled()),
            sent = self.put(bytes) => sent,
        }
    }

    async fn put(&mut self, bytes: Bytes) -> Result<()> {
        self.sink.send(bytes).await.map_err(|error| failed(error, self.table, self.before))
    }

    async fn finish(mut self) -> Result<u64> {
        if self.form == Form::Binary {
            self.put(Bytes::from_static(END)).await?;
        }
        self.sink.as_mut().finish().await.map_err(|error| failed(error, self.table, self.before))
    }
}

/// The server's error, with the place that it names: `COPY t0, line 3, column a: "three"`. Lines are counted from the
/// first row of the table.
fn failed(error: tokio_postgres::Error, table: &Name, before: u64) -> Error {
    let place = error.as_db_error().and_then(|server| server.where_()).map(str::to_owned);
    let mut error = server_error(error, &format!("loading the backup's rows of {table}"));
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

/// Runs in a thread of its own. Ends at the end of the rows, at an error, or when nobody listens any more. What cannot be
/// converted for these columns stays text, with all that follows.
fn read(mut rows: impl Read, table: &str, mut columns: Option<Columns>, sender: &mpsc::Sender<Chunk>) {
    // A row in binary form is whole; of one that is cut, the beginning waits here, always less than a chunk.
    let mut cut = Bytes::new();
    loop {
        let mut chunk = BytesMut::zeroed(CHUNK);
        chunk[..cut.len()].copy_from_slice(&cut);
        let filled = match fill(&mut rows, &mut chunk[cut.len()..]) {
            Ok(0) if cut.is_empty() => break,
            Ok(filled) => cut.len() + filled,
            Err(error) => {
                let message = || format!("cannot read the rows of {table} from the backup");
                let _ = sender.blocking_send(Err(Error::from_read(error, message)));
                return;
            }
        };
        chunk.truncate(filled);
        let mut chunk = chunk.freeze();
        let piece = if let Some(converted) = columns.as_ref().and_then(|columns| columns.convert(&chunk)) {
            cut = chunk.split_off(converted.taken);
            let (form, text) = (Form::Binary, converted.taken as u64);
            Piece { bytes: converted.bytes, form, rows: converted.rows, text }
        } else {
            (cut, columns) = (Bytes::new(), None);
            let (rows, text) = (memchr::memchr_iter(b'\n', &chunk).count() as u64, chunk.len() as u64);
            Piece { bytes: chunk, form: Form::Text, rows, text }
        };
        if sender.blocking_send(Ok(piece)).is_err() {
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
