//! Dumps made by `pg_dump`, read without `pg_restore` and at random access: the table of contents is read by itself, and
//! so are the rows of one table, wherever they lie. What that costs does not grow with the dump.
//!
//! ```text
//!  custom   PGDMP header | table of contents | block: kind, id, length+bytes, ..., 0 | block | ...
//!  folder   toc.dat (header and table of contents), 3055.dat.gz, 3056.dat.gz, ...
//!  tar      toc.dat, 3055.dat, 3056.dat, ..., restore.sql
//!  plain    SQL text in which rows stand between COPY ... FROM stdin; and \.
//! ```
//!
//! The layout of an archive is defined by PostgreSQL's `src/bin/pg_dump/pg_backup_archiver.c` and its neighbours; versions
//! 1.12 (PostgreSQL 9.6) to 1.16 (PostgreSQL 18) are read.
//!
//! Invariant: nothing that a dump says is believed before it is checked against what is there: lengths against the bytes
//! that remain, ids against each other, rows against their end marker. What a dump says twice has to agree. A damaged dump
//! gives an error, never fewer rows; which other damage to rows can be found is said in `archive/rows.rs`.

mod ddl;
mod decode;
mod input;
mod plain;
mod rows;
mod scan;
mod source;
mod split;
mod tables;
mod tar;
mod toc;
mod tokens;

use std::collections::HashMap;
use std::io::SeekFrom;
use std::ops::Range;
use std::sync::Arc;

use chrono::NaiveDateTime;
use serde::{Deserialize, Serialize};

use super::name::Name;
use super::schema::OnDelete;
use crate::error::{Error, Result};
use crate::progress::Progress;
pub use ddl::{Alone, Key};
use decode::{Codec, Packed};
use input::Input;
pub use rows::Rows;
use scan::Scan;
use source::open_file;
pub use source::{ReadSeek, Source};

/// What `pg_dump --format` made, told by content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `-Fc`: one file, which records where each table's rows lie when `pg_dump` could seek in it.
    Custom,
    /// `-Fd`: `toc.dat` and one file a table.
    Folder,
    /// `-Ft`: as a folder, in one tar archive, never compressed.
    Tar,
    /// `-Fp`: SQL text; a compressed file is one too.
    Plain,
}

/// How rows are packed, or for a plain dump the whole file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are. A damaged dump whose header could not be read says so too.
    None,
    /// Zlib streams in a custom archive, else gzip files.
    Gzip,
    /// Frames of LZ4, since PostgreSQL 16.
    Lz4,
    /// Frames of Zstandard, since PostgreSQL 16; plain text may be packed so by hand at any time.
    Zstd,
}

/// What a dump says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// By its first bytes, whatever the file is called.
    pub format: Format,
    /// The archive version, such as 1.16.0; a plain dump has none.
    pub version: Option<(u8, u8, u8)>,
    /// As the header records it; of a plain dump, by its first bytes.
    pub compression: Compression,
    /// When the dump began, by the clock of the machine that ran `pg_dump`. The zone is not recorded: this is no instant.
    pub created_local: Option<NaiveDateTime>,
    /// The database that was dumped; a plain dump knows it only by a `\connect` line.
    pub database: Option<String>,
    /// The server that was dumped, such as `16.4 (Debian 16.4-1)`.
    pub server_version: Option<String>,
    /// The `pg_dump` that made it.
    pub dump_version: Option<String>,
    /// The encoding of the rows, as PostgreSQL names it; whoever loads them sets `client_encoding` to it.
    pub encoding: Option<String>,
}

impl Header {
    /// Of a dump that cannot be read any further.
    pub fn unknown(format: Format) -> Self {
        Self {
            format,
            version: None,
            compression: Compression::None,
            created_local: None,
            database: None,
            server_version: None,
            dump_version: None,
            encoding: None,
        }
    }
}

/// One line of the table of contents. A plain dump has lines for its tables and constraints only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// What other entries call it; unique in the dump, from 1. In a plain dump it is our own count.
    pub dump_id: i32,
    /// `TABLE`, `TABLE DATA`, `FK CONSTRAINT`, `BLOBS`, and many more.
    pub kind: String,
    /// `None` for what lies in no schema: extensions, comments on the database, settings.
    pub schema: Option<String>,
    /// Unquoted; of a constraint, its table's name and its own, in a plain dump only the table's.
    pub name: String,
    /// Where it lay, unless in its database's own tablespace; a plain dump does not tell.
    pub tablespace: Option<String>,
    /// The role that owned it; empty when the dump does not tell, as a plain one.
    pub owner: String,
    /// SQL that creates the object.
    pub definition: String,
    /// The `dump_id`s of what it needs; not all need be in the dump. Empty for a plain dump.
    pub dependencies: Vec<i32>,
    /// Rows or large objects belong to it and are in this dump.
    pub has_data: bool,
    /// The COPY statement that the data belongs to; empty when the data is INSERT statements.
    #[serde(skip)]
    copy: String,
    #[serde(skip)]
    place: Place,
}

/// Where data lies; only the process that opened the dump knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Nowhere,
    /// A block of a custom archive, at this offset; `None` when the archive was written to a pipe and so holds no offsets.
    Block(Option<u64>),
    /// A file of the folder or a member of the tar archive.
    File(String),
    /// Sections of a plain dump, offsets of its text.
    Sections(Vec<Section>),
}

/// One COPY of a plain dump: where its rows begin and end, and how many there are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Section {
    bytes: Range<u64>,
    rows: u64,
}

/// Header and table of contents of an archive, as they stand in it, without any row.
#[derive(Debug)]
pub struct Head {
    /// Of a custom archive its beginning, of others the whole of `toc.dat`.
    pub bytes: Vec<u8>,
    /// Whether it is the `toc.dat` of a folder; that of a tar archive is the same.
    pub folder: bool,
}

/// A table of a dump: what it was like, and whether its rows are here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// A name without a schema is one of `public`.
    pub name: Name,
    /// From CREATE TABLE, in its order; empty when the dump holds data only.
    pub columns: Vec<Column>,
    /// The columns of the rows, in the order of the data.
    pub copied: Vec<String>,
    /// Bytes that its rows take in the dump; unknown for a dump without offsets and for a compressed plain dump.
    pub compressed_size: Option<u64>,
    /// An option of `pg_dump` may have left its rows out.
    pub has_data: bool,
    /// Its columns in the key's order; `None`: the dump defines none.
    pub primary_key: Option<Vec<String>>,
    /// What this table references.
    pub foreign_keys: Vec<ForeignKey>,
    /// The partitioned table that this one is a part of.
    pub partition_of: Option<Name>,
    /// Its data is INSERT statements, which are not read.
    pub inserts: bool,
    /// Its definition and its rows do not have the same columns.
    #[serde(skip)]
    mismatch: bool,
    #[serde(skip)]
    dump_id: i32,
    #[serde(skip)]
    place: Place,
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
            foreign_keys: Vec::new(),
            partition_of: None,
            inserts,
            mismatch: false,
            dump_id: 0,
            place: Place::Nowhere,
        }
    }
}

/// A column as its CREATE TABLE, its parents or its type define it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Unquoted.
    pub name: String,
    /// As the dump writes it: `character varying(40)`.
    pub type_sql: String,
    /// By the column itself, by a constraint, or by the primary key.
    pub not_null: bool,
    /// Computed by the server, so not part of the rows.
    pub generated: bool,
}

/// A foreign key as its ALTER TABLE defines it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignKey {
    /// Empty when the dump does not name it.
    pub constraint: String,
    /// The referring columns, in the key's order.
    pub columns: Vec<String>,
    /// The table that is referred to, which may be left out of the dump.
    pub parent: Name,
    /// One for each of `columns`; empty when the dump leaves them to the parent's primary key.
    pub parent_columns: Vec<String>,
    /// What becomes of rows that refer to a deleted one.
    pub on_delete: OnDelete,
}

/// How many rows a table of a dump has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// Rows that the dump holds; a table without data in it has no estimate, which is an error.
    pub rows: u64,
    /// Counted to the end; else extrapolated from the bytes that were read.
    pub exact: bool,
}

/// A longer table of contents is not handed out whole.
const LONGEST_HEAD: u64 = 1 << 30;

/// How much of a table's data an estimate reads, and how much is read ahead while rows are.
const ESTIMATE_BYTES: usize = 64 * 1024;
const READ_AHEAD: usize = 256 * 1024;

/// The end marker of rows with the longest line end.
const LONGEST_MARKER: u64 = 4;

/// What every error of a damaged dump advises.
const HINT_DAMAGED: &str = "Look into another recovery point, and check this one's repository.";

/// An opened dump. It holds no stream, and clones share what is known of it.
#[derive(Debug, Clone)]
pub struct Archive {
    /// What the dump says about itself; of a plain dump, what was found in its text.
    pub header: Header,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    source: Source,
    entries: Vec<Entry>,
    tables: Vec<Table>,
    by_name: HashMap<Name, usize>,
    /// Custom format: what was learned of the blocks whose offsets are not recorded.
    scan: Scan,
    /// Tar format: where each member's bytes are.
    members: HashMap<String, Range<u64>>,
}

impl Archive {
    /// Says by the first bytes of a file (four kilobytes; for SQL compressed by zstd it takes 128) whether it can be opened,
    /// and as what. A folder's `toc.dat` is told from a custom archive by its own header.
    pub fn sniff(first_bytes: &[u8]) -> Option<Format> {
        if first_bytes.starts_with(toc::MAGIC) {
            return Some(if first_bytes.get(10) == Some(&toc::FORMAT_CUSTOM) {
                Format::Custom
            } else {
                Format::Folder
            });
        }
        if tar::is_dump(first_bytes) {
            return Some(Format::Tar);
        }
        plain::is_dump(first_bytes).then_some(Format::Plain)
    }

    /// Reads the header and the table of contents. A plain dump has neither, so all of it is read once; `progress` is for
    /// that.
    pub fn open(source: &Source, progress: &Progress) -> Result<Self> {
        if source.folder {
            return Self::open_folder(source);
        }
        let mut input = Input::new(source.open("")?, &source.label, READ_AHEAD)?;
        let first_bytes = input.peek()?;
        // Of a compressed file not even the first line may be in them; reading it tells.
        let packed = decode::compression_of(first_bytes) != Compression::None;
        match Self::sniff(first_bytes).or(packed.then_some(Format::Plain)) {
            Some(Format::Custom) => {
                let toc = toc::read(&mut input, Format::Custom)?;
                let with_data = toc.entries.iter().filter(|entry| entry.has_data);
                let scan = Scan::new(input.position(), with_data.map(|entry| entry.dump_id));
                let mut sizes = block_sizes(&toc.entries, input.length());
                let tables = tables::build(&source.label, &toc.entries, |entry| sizes.remove(&entry.dump_id))?;
                Ok(Self::new(source, toc.header, toc.entries, tables, scan, HashMap::new()))
            }
            Some(Format::Tar) => {
                // Little is read ahead, because it goes from one header to the next.
                let mut input = Input::new(source.open("")?, &source.label, 4096)?;
                let members = tar::members(&mut input)?;
                let span = members
                    .get("toc.dat")
                    .ok_or_else(|| Error::backup(format!("{} has no toc.dat in it", source.label)))?
                    .clone();
                let mut input = Input::part(source.open("")?, &format!("toc.dat of {}", source.label), span)?;
                let toc = toc::read(&mut input, Format::Tar)?;
                let size = |entry: &Entry| match &entry.place {
                    Place::File(name) => members.get(name).map(|span| span.end - span.start),
                    Place::Nowhere | Place::Block(_) | Place::Sections(_) => None,
                };
                let tables = tables::build(&source.label, &toc.entries, size)?;
                Ok(Self::new(source, toc.header, toc.entries, tables, Scan::default(), members))
            }
            Some(Format::Folder) => Err(Error::operator(format!("{} is part of a dump folder", source.label))
                .hint("Open the folder that it lies in.")),
            Some(Format::Plain) => {
                let (header, entries) = plain::read(source, progress)?;
                let compression = header.compression;
                let size = |entry: &Entry| match (&entry.place, compression) {
                    (Place::Sections(sections), Compression::None) => {
                        Some(sections.iter().map(|section| section.bytes.end - section.bytes.start).sum())
                    }
                    _ => None,
                };
                let tables = tables::build(&source.label, &entries, size)?;
                Ok(Self::new(source, header, entries, tables, Scan::default(), HashMap::new()))
            }
            None => Err(Error::backup(format!("{} is not a dump made by pg_dump", source.label))
                .hint("Choose a file in custom, tar or plain format, or the folder of a directory-format dump.")),
        }
    }

    fn open_folder(source: &Source) -> Result<Self> {
        let label = format!("toc.dat of {}", source.label);
        let mut input = Input::new(source.open("toc.dat")?, &label, READ_AHEAD)?;
        let toc = toc::read(&mut input, Format::Folder)?;
        // A file that cannot be opened now is an error when its rows are asked for, not for all other tables.
        let size = |entry: &Entry| match &entry.place {
            Place::File(name) => {
                let (mut stream, _) = open_file(source, name, toc.header.compression).ok()?;
                stream.seek(SeekFrom::End(0)).ok()
            }
            Place::Nowhere | Place::Block(_) | Place::Sections(_) => None,
        };
        let tables = tables::build(&source.label, &toc.entries, size)?;
        Ok(Self::new(source, toc.header, toc.entries, tables, Scan::default(), HashMap::new()))
    }

    fn new(
        source: &Source,
        header: Header,
        entries: Vec<Entry>,
        tables: Vec<Table>,
        scan: Scan,
        members: HashMap<String, Range<u64>>,
    ) -> Self {
        let by_name = tables.iter().enumerate().map(|(index, table)| (table.name.clone(), index)).collect();
        Self { header, inner: Arc::new(Inner { source: source.clone(), entries, tables, by_name, scan, members }) }
    }

    /// The same definitions, with rows that are somewhere else: of which tables, and how many bytes they take there.
    #[must_use]
    pub fn with_rows_elsewhere(&self, sizes: &HashMap<Name, u64>) -> Self {
        let tables = self.inner.tables.iter().cloned().map(|mut table| {
            table.compressed_size = sizes.get(&table.name).copied();
            table.has_data = table.compressed_size.is_some();
            let copied = table.columns.iter().filter(|column| !column.generated);
            table.copied = copied.map(|column| column.name.clone()).collect();
            table
        });
        let inner = Inner {
            source: self.inner.source.clone(),
            entries: self.inner.entries.clone(),
            tables: tables.collect(),
            by_name: self.inner.by_name.clone(),
            scan: Scan::default(),
            members: HashMap::new(),
        };
        Self { header: self.header.clone(), inner: Arc::new(inner) }
    }

    /// The table of contents, in the dump's order.
    pub fn entries(&self) -> &[Entry] {
        &self.inner.entries
    }

    /// The tables, in the dump's order: those that are defined and those that only have data.
    pub fn tables(&self) -> &[Table] {
        &self.inner.tables
    }

    /// `None`: the dump neither defines such a table nor holds rows of it.
    pub fn table(&self, name: &Name) -> Option<&Table> {
        self.inner.by_name.get(name).map(|index| &self.inner.tables[*index])
    }

    /// Whether the rows of a table can be found without reading what lies before them. Not so for a custom archive that was
    /// written to a pipe, and for a compressed plain dump.
    pub fn seekable(&self) -> bool {
        match self.header.format {
            Format::Custom => !self.inner.tables.iter().any(|table| table.place == Place::Block(None)),
            Format::Folder | Format::Tar => true,
            Format::Plain => self.header.compression == Compression::None,
        }
    }

    /// The table's rows as COPY text in the dump's encoding, streamed in constant memory, up to but without the `\.` line.
    ///
    /// The stream ends well only after the end marker, the compressed stream's own checksum and the end of the data were
    /// all seen; a consumer that stops earlier has not had that proof. Its errors are turned into ours by [`Error::from_read`].
    pub fn rows(&self, table: &Table) -> Result<Rows> {
        self.stream(table, READ_AHEAD)
    }

    /// Estimates the number of rows from the first 64 KiB of the table's data. In a custom archive without offsets the
    /// first estimate of a table reads the block headers of everything before and of the table itself.
    pub fn estimate(&self, table: &Table) -> Result<Estimate> {
        if let Place::Sections(sections) = &table.place {
            return Ok(Estimate { rows: sections.iter().map(|section| section.rows).sum(), exact: true });
        }
        let mut rows = self.stream(table, ESTIMATE_BYTES)?;
        let (lines, read, ended) = rows
            .count_within(ESTIMATE_BYTES as u64)
            .map_err(|error| Error::from_read(error, || "cannot read the rows of a dump".to_owned()))?;
        if ended {
            return Ok(Estimate { rows: lines, exact: true });
        }
        drop(rows);
        let size = match table.compressed_size {
            Some(size) => size,
            None => self.inner.scan.size(&self.inner.source, table.dump_id, &table.name)?,
        };
        let rows = u128::from(lines) * u128::from(size.max(read)) / u128::from(read.max(1));
        Ok(Estimate { rows: u64::try_from(rows).unwrap_or(u64::MAX), exact: false })
    }

    /// The header and the table of contents by themselves.
    ///
    /// Errors: a plain dump has neither.
    pub fn head(&self) -> Result<Head> {
        let source = &self.inner.source;
        let (mut input, end) = match self.header.format {
            Format::Custom => {
                let mut input = Input::new(source.open("")?, &source.label, READ_AHEAD)?;
                toc::read(&mut input, Format::Custom)?;
                let end = input.position();
                input.seek(0)?;
                (input, end)
            }
            Format::Folder => {
                let input = Input::new(source.open("toc.dat")?, &source.label, READ_AHEAD)?;
                let end = input.length();
                (input, end)
            }
            Format::Tar => {
                let span = self.inner.members.get("toc.dat").cloned().unwrap_or_default();
                let end = span.end - span.start;
                (Input::part(source.open("")?, &source.label, span)?, end)
            }
            Format::Plain => return Err(Error::refused("a plain dump has no table of contents")),
        };
        if end > LONGEST_HEAD {
            return Err(Error::refused("the dump's table of contents is longer than 1 GiB"));
        }
        let bytes = input.bytes(end, "the table of contents")?;
        Ok(Head { bytes, folder: self.header.format != Format::Custom })
    }

    /// All bytes of a dump that is one file.
    pub fn stream_of_all(&self) -> Result<Box<dyn ReadSeek>> {
        self.inner.source.open("")
    }

    fn stream(&self, table: &Table, read_ahead: usize) -> Result<Rows> {
        let source = &self.inner.source;
        if table.inserts {
            return Err(Error::backup(format!("the rows of {} are INSERT statements, which are not read", table.name))
                .hint("Restore this dump into an empty database with the PostgreSQL tools, and dump that again without --inserts."));
        }
        let nothing = || {
            Error::backup(format!("the dump holds no rows of {}", table.name))
                .hint("It was left out by an option of pg_dump; look into another recovery point.")
        };
        if !table.has_data {
            return Err(nothing());
        }
        if table.mismatch {
            return Err(Error::backup(format!("the definition of {} and its rows have different columns", table.name))
                .hint(HINT_DAMAGED));
        }
        match &table.place {
            Place::Nowhere => Err(nothing()),
            Place::Block(offset) => {
                let offset = match offset {
                    Some(offset) => *offset,
                    None => self.inner.scan.find(source, table.dump_id, &table.name)?,
                };
                let input = Input::new(source.open("")?, &source.label, read_ahead)?;
                let taken = Arc::default();
                let blocks = scan::open_block(input, offset, table.dump_id, &table.name, Arc::clone(&taken))?;
                let codec = Codec::of_blocks(self.header.compression);
                Rows::whole(table.name.to_string(), Box::new(blocks), codec, taken)
            }
            Place::File(name) if self.header.format == Format::Tar => {
                let span = self.inner.members.get(name).cloned().ok_or_else(|| {
                    Error::backup(format!("{} has no {name} in it, the data of {}", source.label, table.name))
                })?;
                let input = Input::part(source.open("")?, &source.label, span)?;
                Rows::whole(table.name.to_string(), Box::new(input), Codec::None, Arc::default())
            }
            Place::File(name) => {
                let (stream, codec) = open_file(source, name, self.header.compression)?;
                let input = Input::new(stream, &source.label, read_ahead)?;
                Rows::whole(table.name.to_string(), Box::new(input), codec, Arc::default())
            }
            Place::Sections(sections) => {
                let spans = sections.iter().map(|section| section.bytes.clone()).collect();
                let mut input = Input::new(source.open("")?, &source.label, read_ahead)?;
                let mut position = 0;
                if self.header.compression == Compression::None
                    && let (Some(first), Some(last)) = (sections.first(), sections.last())
                {
                    position = first.bytes.start;
                    input.narrow(position..last.bytes.end + LONGEST_MARKER)?;
                }
                let packed: Packed = Box::new(input);
                Rows::sections(table.name.to_string(), packed, Codec::of_file(self.header.compression), position, spans)
            }
        }
    }
}

/// The bytes that each block of a custom archive takes: it ends where the next one begins.
fn block_sizes(entries: &[Entry], length: u64) -> HashMap<i32, u64> {
    let mut offsets: Vec<_> = entries
        .iter()
        .filter_map(|entry| match entry.place {
            Place::Block(Some(offset)) if offset < length => Some((offset, entry.dump_id)),
            _ => None,
        })
        .collect();
    offsets.sort_unstable();
    let ends = offsets.iter().skip(1).map(|(offset, _)| *offset).chain([length]);
    offsets.iter().zip(ends).map(|((offset, id), end)| (*id, end - offset)).collect()
}
