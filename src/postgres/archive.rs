//! pg_dump archives, read natively and at random access: the table of contents and one table's rows, nothing else.
//!
//! ```text
//!  custom:  PGDMP | header | table of contents (entries with the offset of their data) | block | block | ...
//!           block = 1, dump id, then chunks (length, bytes) up to a chunk of length 0; the bytes of all chunks are one
//!           compressed stream, and that is the table's COPY text
//! ```
//!
//! Format: PostgreSQL's `pg_backup_archiver.c` and `pg_backup_custom.c`, archive versions 1.12 to 1.16 (PostgreSQL 9.6 to 18).

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{NaiveDate, NaiveDateTime};
use serde::Serialize;

use super::name::Name;
use crate::error::{Error, Result};
use crate::progress::Progress;

mod definition;

pub trait ReadSeek: Read + Seek + Send {}
impl<T: Read + Seek + Send> ReadSeek for T {}

type Open = dyn Fn(&str) -> Result<Box<dyn ReadSeek>> + Send + Sync;

/// Where an archive's bytes come from: "" is the archive file itself, in a folder a name is a file in it.
#[derive(Clone)]
pub struct Source {
    pub open: Arc<Open>,
    pub folder: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Custom,
    Folder,
    Tar,
    Plain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    Gzip,
    Lz4,
    Zstd,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Header {
    pub format: Format,
    pub version: Option<(u8, u8, u8)>,
    pub compression: Compression,
    /// The local time of the machine that dumped; its zone is not in the archive.
    pub created_local: Option<NaiveDateTime>,
    pub database: Option<String>,
    pub server_version: Option<String>,
    pub dump_version: Option<String>,
}

impl Header {
    /// Of an archive that cannot be read any further.
    pub fn unknown(format: Format) -> Self {
        Self {
            format,
            version: None,
            compression: Compression::None,
            created_local: None,
            database: None,
            server_version: None,
            dump_version: None,
        }
    }
}

/// An entry of the table of contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub dump_id: i64,
    pub kind: String,
    pub schema: String,
    pub name: String,
    pub owner: String,
    pub definition: String,
    copy: String,
    has_data: bool,
    dependencies: Vec<i64>,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Unknown,
    Nothing,
    Offset(u64),
    File(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Column {
    pub name: String,
    pub type_sql: String,
    pub not_null: bool,
    pub generated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    pub name: Name,
    pub columns: Vec<Column>,
    /// The columns of its COPY statement, in the order of the data.
    pub copied: Vec<String>,
    pub compressed_size: Option<u64>,
    pub has_data: bool,
    pub primary_key: Option<Vec<String>>,
    pub partition_of: Option<Name>,
    /// Dumped as INSERT statements, which are not run.
    pub inserts: bool,
    #[serde(skip)]
    data: Option<i64>,
}

impl Table {
    /// A table without data behind it, for tests of what is decided about tables.
    pub fn fixture(name: Name, columns: Vec<Column>, has_data: bool, inserts: bool) -> Self {
        let copied = columns.iter().map(|column| column.name.clone()).collect();
        Self {
            name,
            columns,
            copied,
            compressed_size: Some(100_000),
            has_data,
            primary_key: None,
            partition_of: None,
            inserts,
            data: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Estimate {
    pub rows: u64,
    pub exact: bool,
}

#[derive(Clone)]
pub struct Archive(Arc<Inner>);

struct Inner {
    source: Source,
    header: Header,
    widths: Widths,
    entries: Vec<Entry>,
    tables: Vec<Table>,
    /// Where the first data block begins.
    data_start: u64,
}

#[derive(Debug, Clone, Copy)]
struct Widths {
    int: u8,
    offset: u8,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").field("header", &self.0.header).finish_non_exhaustive()
    }
}

const OLDEST: (u8, u8) = (1, 10);
const NEWEST: (u8, u8) = (1, 16);
const MOST_ENTRIES: i64 = 10_000_000;
const LONGEST_TEXT: i64 = 256 << 20;
const LONGEST_CHUNK: i64 = 256 << 20;

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::backup(format!("the dump is damaged: {what}"))
        .hint("Choose another recovery point; this one cannot be trusted.")
}

impl Archive {
    pub fn sniff(first: &[u8]) -> Option<Format> {
        if first.starts_with(b"PGDMP") { Some(Format::Custom) } else { None }
    }

    pub fn open(source: &Source, progress: &Progress) -> Result<Self> {
        progress.check()?;
        let stream = (source.open)(if source.folder { "toc.dat" } else { "" })?;
        let mut reader =
            Reader { stream: BufReader::with_capacity(64 << 10, stream), widths: Widths { int: 4, offset: 8 } };
        let mut header = reader.header()?;
        if source.folder {
            header.format = Format::Folder;
        }
        let version = header.version.map_or((0, 0), |version| (version.0, version.1));
        let count = reader.int()?;
        if !(0..=MOST_ENTRIES).contains(&count) {
            return Err(damaged(format!("its table of contents claims {count} entries")));
        }
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(reader.entry(version, header.format)?);
        }
        let data_start = reader.stream.stream_position().map_err(|error| failed(&error))?;
        let length = reader.stream.seek(SeekFrom::End(0)).map_err(|error| failed(&error))?;
        let tables = tables(&entries, length);
        Ok(Self(Arc::new(Inner { source: source.clone(), header, widths: reader.widths, entries, tables, data_start })))
    }

    pub fn header(&self) -> &Header {
        &self.0.header
    }

    pub fn entries(&self) -> &[Entry] {
        &self.0.entries
    }

    pub fn tables(&self) -> &[Table] {
        &self.0.tables
    }

    pub fn table(&self, name: &Name) -> Option<&Table> {
        self.0.tables.iter().find(|table| table.name == *name)
    }

    pub fn rows(&self, table: &Table) -> Result<Rows> {
        let nothing = || {
            Error::refused(format!("the dump holds no rows of {}", table.name))
                .hint("Choose another dump or another recovery point.")
        };
        if table.inserts {
            return Err(Error::refused(format!("{} was dumped as INSERT statements, which are not run", table.name))
                .hint("Choose a dump made without --inserts."));
        }
        let id = table.data.ok_or_else(nothing)?;
        let entry = self.0.entries.iter().find(|entry| entry.dump_id == id).ok_or_else(nothing)?;
        let read = Arc::new(AtomicU64::new(0));
        let raw: Box<dyn Read + Send> = match &entry.place {
            Place::File(name) => Box::new(Counted { inner: (self.0.source.open)(name)?, read: read.clone() }),
            Place::Nothing => Box::new(io::empty()),
            Place::Offset(offset) => Box::new(self.block(id, Some(*offset), &read)?),
            Place::Unknown => Box::new(self.block(id, None, &read)?),
        };
        let plain: Box<dyn Read + Send> = match self.0.header.compression {
            Compression::None => raw,
            Compression::Gzip => Box::new(flate2::read::ZlibDecoder::new(BufReader::with_capacity(64 << 10, raw))),
            Compression::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(raw)),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(raw).map_err(|error| failed(&error))?),
        };
        Ok(Rows {
            lines: BufReader::with_capacity(256 << 10, plain),
            table: table.name.clone(),
            state: State::LineStart,
            read,
        })
    }

    pub fn estimate(&self, table: &Table) -> Result<Estimate> {
        let mut rows = self.rows(table)?;
        let counter = rows.compressed_bytes_read();
        let mut buffer = vec![0; 64 << 10];
        let (mut lines, mut bytes) = (0u64, 0u64);
        while bytes < 256 << 10 {
            let read = rows.read(&mut buffer).map_err(|error| failed(&error))?;
            if read == 0 {
                return Ok(Estimate { rows: lines, exact: true });
            }
            bytes += read as u64;
            lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        let (consumed, size) = (counter.load(Ordering::Relaxed).max(1), table.compressed_size.unwrap_or(0));
        Ok(Estimate {
            rows: u64::try_from(u128::from(lines) * u128::from(size.max(consumed)) / u128::from(consumed))
                .unwrap_or(u64::MAX),
            exact: false,
        })
    }

    /// The data block of an entry, by its offset or by walking over the blocks before it.
    fn block(&self, id: i64, offset: Option<u64>, read: &Arc<AtomicU64>) -> Result<Chunks> {
        let stream = (self.0.source.open)("")?;
        let mut reader = Reader { stream: BufReader::with_capacity(64 << 10, stream), widths: self.0.widths };
        reader.stream.seek(SeekFrom::Start(offset.unwrap_or(self.0.data_start))).map_err(|error| failed(&error))?;
        loop {
            let kind = reader.byte()?;
            let found = reader.int()?;
            match (kind, found == id) {
                (1, true) => return Ok(Chunks { reader, left: 0, ended: false, read: read.clone() }),
                (1, false) if offset.is_none() => reader.skip_chunks()?,
                (3, _) if offset.is_none() => {
                    while reader.int()? != 0 {
                        reader.skip_chunks()?;
                    }
                }
                _ => {
                    return Err(damaged(format!(
                        "where the data of entry {id} should begin is a block of kind {kind} of entry {found}"
                    )));
                }
            }
        }
    }
}

fn failed(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it ends early"),
        _ => Error::backup("cannot read the dump")
            .detail(error)
            .hint("Try again; if it stays, choose another recovery point."),
    }
}

struct Reader<R> {
    stream: BufReader<R>,
    widths: Widths,
}

impl<R: Read + Seek> Reader<R> {
    fn header(&mut self) -> Result<Header> {
        let mut magic = [0; 5];
        self.stream.read_exact(&mut magic).map_err(|error| failed(&error))?;
        if &magic != b"PGDMP" {
            return Err(Error::backup("this is not a pg_dump archive")
                .hint("Choose a dump made with pg_dump -Fc, -Fd, -Ft or -Fp."));
        }
        let version = (self.byte()?, self.byte()?, self.byte()?);
        if (version.0, version.1) < OLDEST || (version.0, version.1) > NEWEST {
            return Err(Error::backup(format!(
                "archive version {}.{} is not one that this Lifeboat reads (1.10 to 1.16)",
                version.0, version.1
            ))
            .hint("Restore it with the pg_restore of its own version."));
        }
        self.widths = Widths { int: self.byte()?, offset: self.byte()? };
        if !(1..=8).contains(&self.widths.int) || !(1..=8).contains(&self.widths.offset) {
            return Err(damaged("its header names impossible sizes"));
        }
        let format = match self.byte()? {
            1 => Format::Custom,
            3 => Format::Tar,
            5 => Format::Folder,
            other => return Err(damaged(format!("its header names format {other}"))),
        };
        let compression = if (version.0, version.1) >= (1, 15) {
            match self.byte()? {
                0 => Compression::None,
                1 => Compression::Gzip,
                2 => Compression::Lz4,
                3 => Compression::Zstd,
                other => return Err(damaged(format!("its header names compression {other}"))),
            }
        } else if self.int()? == 0 {
            Compression::None
        } else {
            Compression::Gzip
        };
        let mut time = [0; 7];
        for field in &mut time {
            *field = u32::try_from(self.int()?).unwrap_or(u32::MAX);
        }
        let [second, minute, hour, day, month, year, _] = time;
        let created_local = i32::try_from(year.saturating_add(1900))
            .ok()
            .and_then(|year| NaiveDate::from_ymd_opt(year, month.saturating_add(1), day))
            .and_then(|date| date.and_hms_opt(hour, minute, second));
        Ok(Header {
            format,
            version: Some(version),
            compression,
            created_local,
            database: self.text()?,
            server_version: self.text()?,
            dump_version: self.text()?,
        })
    }

    fn entry(&mut self, version: (u8, u8), format: Format) -> Result<Entry> {
        let dump_id = self.int()?;
        let has_data = self.int()? != 0;
        let (_table_oid, _oid) = (self.text()?, self.text()?);
        let name = self.text()?.unwrap_or_default();
        let kind = self.text()?.unwrap_or_default();
        if version >= (1, 11) {
            self.int()?;
        }
        let definition = self.text()?.unwrap_or_default();
        let _drop = self.text()?;
        let copy = self.text()?.unwrap_or_default();
        let schema = self.text()?.unwrap_or_default();
        let _tablespace = self.text()?;
        if version >= (1, 14) {
            self.text()?;
        }
        if version >= (1, 16) {
            self.int()?;
        }
        let owner = self.text()?.unwrap_or_default();
        let _with_oids = self.text()?;
        let mut dependencies = Vec::new();
        while let Some(dependency) = self.text()? {
            dependencies.push(dependency.parse().map_err(|_| damaged("a dependency is not a number"))?);
        }
        let place = if format == Format::Custom {
            match self.byte()? {
                1 => {
                    self.offset()?;
                    Place::Unknown
                }
                2 => Place::Offset(self.offset()?),
                3 => {
                    self.offset()?;
                    Place::Nothing
                }
                other => return Err(damaged(format!("the offset of entry {dump_id} is of kind {other}"))),
            }
        } else {
            self.text()?.filter(|name| !name.is_empty()).map_or(Place::Nothing, Place::File)
        };
        Ok(Entry { dump_id, kind, schema, name, owner, definition, copy, has_data, dependencies, place })
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).map_err(|error| failed(&error))?;
        Ok(byte[0])
    }

    fn int(&mut self) -> Result<i64> {
        let negative = self.byte()? != 0;
        let value =
            i64::try_from(self.little_endian(self.widths.int)?).map_err(|_| damaged("a number is too large"))?;
        Ok(if negative { -value } else { value })
    }

    fn offset(&mut self) -> Result<u64> {
        self.little_endian(self.widths.offset)
    }

    fn little_endian(&mut self, width: u8) -> Result<u64> {
        let mut bytes = [0; 8];
        self.stream.read_exact(&mut bytes[..usize::from(width)]).map_err(|error| failed(&error))?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn text(&mut self) -> Result<Option<String>> {
        let length = self.int()?;
        if length < 0 {
            return Ok(None);
        }
        if length > LONGEST_TEXT {
            return Err(damaged(format!("a text claims {length} bytes")));
        }
        let mut bytes = Vec::new();
        let length = length.unsigned_abs();
        (&mut self.stream).take(length).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
        if bytes.len() as u64 != length {
            return Err(damaged("it ends early"));
        }
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn skip_chunks(&mut self) -> Result<()> {
        loop {
            let length = self.int()?;
            if length == 0 {
                return Ok(());
            }
            if !(0..=LONGEST_CHUNK).contains(&length) {
                return Err(damaged(format!("a chunk claims {length} bytes")));
            }
            self.stream.seek_relative(length).map_err(|error| failed(&error))?;
        }
    }
}

struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// The chunks of one block as one stream.
struct Chunks {
    reader: Reader<Box<dyn ReadSeek>>,
    left: u64,
    ended: bool,
    read: Arc<AtomicU64>,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            let length = self.reader.int().map_err(io::Error::other)?;
            if !(0..=LONGEST_CHUNK).contains(&length) {
                return Err(io::Error::other(damaged(format!("a chunk claims {length} bytes"))));
            }
            self.left = length.unsigned_abs();
            self.ended = length == 0;
        }
        if self.ended {
            return Ok(0);
        }
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.reader.stream.read(&mut buffer[..want])?;
        if read == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// A table's rows as COPY text, up to the line `\.` that ends them.
pub struct Rows {
    lines: BufReader<Box<dyn Read + Send>>,
    table: Name,
    state: State,
    read: Arc<AtomicU64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    LineStart,
    InLine,
    Ended,
}

impl Rows {
    /// Compressed bytes read so far, shared with whoever shows progress.
    pub fn compressed_bytes_read(&self) -> Arc<AtomicU64> {
        self.read.clone()
    }

    fn finish(&mut self) -> io::Result<usize> {
        let mut rest = Vec::new();
        (&mut self.lines).take(1 << 20).read_to_end(&mut rest)?;
        if rest.iter().any(|byte| *byte != b'\n') {
            return Err(io::Error::other(damaged(format!("data follows the end marker of {}", self.table))));
        }
        self.state = State::Ended;
        Ok(0)
    }
}

impl Read for Rows {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.state == State::Ended || buffer.is_empty() {
            return Ok(0);
        }
        let mut written = 0;
        while written < buffer.len() {
            let available = self.lines.fill_buf()?;
            if available.is_empty() {
                if self.state == State::LineStart && written == 0 {
                    return Err(io::Error::other(damaged(format!("the data of {} ends early", self.table))));
                }
                return if written > 0 { Ok(written) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            if self.state == State::LineStart && available[0] == b'\\' {
                if written > 0 {
                    return Ok(written);
                }
                // Few bytes decide whether this line is the end marker; they are read one by one.
                let mut line = Vec::new();
                (&mut self.lines).take(3).read_until(b'\n', &mut line)?;
                if line == b"\\.\n" {
                    return self.finish();
                }
                if buffer.len() < line.len() {
                    return Err(io::Error::other("the buffer is too small"));
                }
                buffer[..line.len()].copy_from_slice(&line);
                self.state = if line.ends_with(b"\n") { State::LineStart } else { State::InLine };
                return Ok(line.len());
            }
            let room = available.len().min(buffer.len() - written);
            // Copy up to the last line end that is followed by no backslash; a backslash at a line's start is looked at above.
            let stop = find(&available[..room], b"\n\\").map_or(room, |at| at + 1);
            buffer[written..written + stop].copy_from_slice(&available[..stop]);
            self.state = if available[stop - 1] == b'\n' { State::LineStart } else { State::InLine };
            self.lines.consume(stop);
            written += stop;
        }
        Ok(written)
    }
}

fn find(haystack: &[u8], needle: &[u8; 2]) -> Option<usize> {
    haystack.windows(2).position(|pair| pair == needle)
}

fn tables(entries: &[Entry], length: u64) -> Vec<Table> {
    let mut offsets: Vec<u64> = entries
        .iter()
        .filter_map(|entry| if let Place::Offset(offset) = entry.place { Some(offset) } else { None })
        .collect();
    offsets.push(length);
    offsets.sort_unstable();
    let size = |entry: &Entry| match entry.place {
        Place::Offset(offset) => {
            offsets.get(offsets.partition_point(|other| *other <= offset)).map(|next| next - offset)
        }
        _ => None,
    };
    let data = |entry: &Entry| {
        entries.iter().find(|data| data.kind == "TABLE DATA" && data.schema == entry.schema && data.name == entry.name)
    };
    entries
        .iter()
        .filter(|entry| entry.kind == "TABLE")
        .map(|entry| {
            let data = data(entry);
            let columns = definition::columns(&entry.definition);
            let copied = data.and_then(|data| definition::copied(&data.copy));
            let copied = copied.unwrap_or_else(|| {
                columns.iter().filter(|column| !column.generated).map(|column| column.name.clone()).collect()
            });
            Table {
                name: Name::new(entry.schema.clone(), entry.name.clone()),
                columns,
                copied,
                compressed_size: data.and_then(size),
                has_data: data.is_some_and(|data| data.has_data),
                primary_key: None,
                partition_of: None,
                inserts: data.is_some_and(|data| data.has_data && data.copy.is_empty()),
                data: data.map(|data| data.dump_id),
            }
        })
        .collect()
}
