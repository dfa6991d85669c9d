//! Plain dumps: SQL text that has to be read through once to know what is in it, since nothing says where a table's rows
//! are. Where they begin and end is remembered, and so is how many there are.
//!
//! Only `COPY ... FROM stdin` is looked for among the rows, and only the statements that shape tables among the rest. But
//! all text is split into statements as `psql` splits it, so that a COPY inside of a function's body is none.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ddl::{Reference, Statement, statements};
use super::decode::{Codec, Decoder, compression_of};
use super::input::Input;
use super::rows::{Found, Window, find_end};
use super::split::{Splitter, Stop};
use super::{Compression, Entry, Format, Header, Place, READ_AHEAD, Section, Source};
use crate::error::{Error, Result};
use crate::postgres::name::Name;
use crate::progress::{Progress, Unit};

/// How far into a dump its first lines are looked for.
pub const HEAD: usize = 4096;

/// Whether a file starts like a plain dump. What is compressed is unpacked as far as the bytes allow.
pub fn is_dump(first_bytes: &[u8]) -> bool {
    let compression = compression_of(first_bytes);
    if compression == Compression::None {
        return is_sql(first_bytes);
    }
    let packed = Box::new(io::Cursor::new(first_bytes.to_vec()));
    let Ok(decoder) = Decoder::new(Codec::of_file(compression), packed, Arc::default()) else { return false };
    let mut window = Window::new(decoder);
    while window.text().len() < HEAD && window.more().unwrap_or(false) {}
    // The first block of an lz4 file may be larger than what we were given, but it starts with plain text.
    is_sql(window.text()) || (compression == Compression::Lz4 && is_sql(first_bytes))
}

fn is_sql(text: &[u8]) -> bool {
    let head = &text[..text.len().min(HEAD)];
    let has = |words: &str| memchr::memmem::find(head, words.as_bytes()).is_some();
    has("PostgreSQL database dump") || has("PostgreSQL database cluster dump") || has("SET statement_timeout = 0;")
}

/// Reads all of a dump, and returns what it holds as if it had a table of contents.
pub fn read(source: &Source, progress: &Progress) -> Result<(Header, Vec<Entry>)> {
    let mut input = Input::new(source.open("")?, &source.label, READ_AHEAD)?;
    progress.begin(format!("reading {}", source.label), Unit::Bytes, Some(input.length()));
    let compression = compression_of(input.peek()?);
    let taken = Arc::new(AtomicU64::new(0));
    let decoder = Decoder::new(Codec::of_file(compression), Box::new(input), Arc::clone(&taken))
        .map_err(|error| Error::from_read(error, || format!("cannot read {}", source.label)))?;
    let mut scanner = Scanner {
        label: &source.label,
        progress,
        window: Window::new(decoder),
        taken,
        reported: 0,
        contents: Contents::new(compression),
    };
    scanner.check_head()?;
    scanner.scan()?;
    Ok((scanner.contents.header, scanner.contents.entries))
}

struct Scanner<'a> {
    label: &'a str,
    progress: &'a Progress,
    window: Window,
    taken: Arc<AtomicU64>,
    reported: u64,
    contents: Contents,
}

impl Scanner<'_> {
    fn check_head(&mut self) -> Result<()> {
        while self.window.text().len() < HEAD && self.more()? {}
        let text = self.window.text();
        if text.starts_with(super::toc::MAGIC) || super::tar::is_dump(text) {
            return Err(Error::backup(format!("{} is an archive that was compressed once more", self.label))
                .hint("Decompress the file, and open what comes out."));
        }
        if is_sql(text) {
            return Ok(());
        }
        Err(Error::backup(format!("{} is not a dump made by pg_dump", self.label)))
    }

    /// Reads on; false at the end.
    fn more(&mut self) -> Result<bool> {
        self.progress.check()?;
        let position = self.window.position;
        let more = self.window.more().map_err(|error| {
            Error::from_read(error, || format!("{} is damaged after byte {position} of its text", self.label))
                .hint(super::HINT_DAMAGED)
        })?;
        let taken = self.taken.load(Ordering::Relaxed);
        self.progress.advance(taken - self.reported);
        self.reported = taken;
        Ok(more)
    }

    fn scan(&mut self) -> Result<()> {
        let mut splitter = Splitter::default();
        let mut ended = false;
        loop {
            let (amount, stop) = splitter.feed(self.window.text(), ended);
            self.window.consume(amount);
            match stop {
                Some(Stop::Statement(text)) => {
                    // Rows whose COPY was damaged would be taken for statements.
                    let copies = text.starts_with("COPY ") || text.ends_with("FROM stdin;");
                    let statement = self.contents.statement(&text);
                    if copies && statement.is_none()
                        || !text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '(')
                    {
                        return Err(self.damaged("a statement cannot be read"));
                    }
                    if let Some((table, text)) = statement {
                        let section = self.section(&table)?;
                        self.contents.copy(&table, text, section)?;
                    }
                }
                Some(Stop::Command(line)) => self.contents.command(&line, self.label)?,
                Some(Stop::Comment(line)) => self.contents.comment(&line),
                None if ended => break,
                None => ended = !self.more()?,
            }
        }
        if splitter.is_open() || self.contents.unfinished > 0 {
            return Err(Error::backup(format!(
                "{} ends early, at byte {} of its text",
                self.label, self.window.position
            ))
            .hint(super::HINT_DAMAGED));
        }
        self.window.decoder.finish().map_err(|error| Error::from_read(error, || format!("{} is damaged", self.label)))
    }

    fn damaged(&self, how: &str) -> Error {
        let at = self.window.position;
        Error::backup(format!("{} is damaged: {how}, before byte {at} of its text", self.label))
            .hint(super::HINT_DAMAGED)
    }

    /// Passes over the rows of a COPY.
    fn section(&mut self, table: &Name) -> Result<Section> {
        let early = |scanner: &Self| {
            let at = scanner.window.position;
            Error::backup(format!(
                "the data of {table} ends early: its end marker is missing, at byte {at} of the text"
            ))
            .hint(super::HINT_DAMAGED)
        };
        // The rows begin on the line after the statement.
        loop {
            let newline = memchr::memchr(b'\n', self.window.text());
            let line = &self.window.text()[..newline.unwrap_or(self.window.text().len())];
            if !line.iter().all(|byte| matches!(byte, b' ' | b'\r')) {
                return Err(self.damaged("more text follows a COPY on its line"));
            }
            self.window.consume(newline.map_or(self.window.text().len(), |newline| newline + 1));
            if newline.is_some() {
                break;
            }
            if !self.more()? {
                return Err(early(self));
            }
        }
        let start = self.window.position;
        let (mut rows, mut line_start, mut ended) = (0, true, false);
        loop {
            let text = self.window.text();
            let (amount, marker) = match find_end(text, line_start, ended) {
                Found::Rows(amount) => (amount, None),
                Found::End { rows, marker } => (rows, Some(marker)),
            };
            rows += memchr::memchr_iter(b'\n', &text[..amount]).count() as u64;
            line_start = if amount == 0 { line_start } else { text[amount - 1] == b'\n' };
            self.window.consume(amount);
            if let Some(marker) = marker {
                let end = self.window.position;
                self.window.consume(marker);
                while self.window.text().is_empty() && self.more()? {}
                // pg_dump leaves lines empty here. Anything else could be rows after a marker that is none.
                return match self.window.text().first() {
                    None | Some(b'\n' | b'\r' | b'-' | b'\\') => Ok(Section { bytes: start..end, rows }),
                    Some(_) => Err(self.damaged(&format!("there is data after the end marker of {table}"))),
                };
            }
            if ended {
                return Err(early(self));
            }
            ended = !self.more()?;
        }
    }
}

/// What was found so far.
struct Contents {
    header: Header,
    entries: Vec<Entry>,
    /// The entries that hold data, by table.
    data: HashMap<Name, usize>,
    /// The schema of names that have none.
    schema: String,
    /// Dumps that began with the customary line, less those that ended with it.
    unfinished: u32,
}

impl Contents {
    fn new(compression: Compression) -> Self {
        let header = Header {
            format: Format::Plain,
            version: None,
            compression,
            created_local: None,
            database: None,
            server_version: None,
            dump_version: None,
            encoding: None,
        };
        Self { header, entries: Vec::new(), data: HashMap::new(), schema: "public".to_owned(), unfinished: 0 }
    }

    fn comment(&mut self, line: &str) {
        if let Some(version) = line.strip_prefix("Dumped from database version ") {
            self.header.server_version = Some(version.to_owned());
        } else if let Some(version) = line.strip_prefix("Dumped by pg_dump version ") {
            self.header.dump_version = Some(version.to_owned());
        } else if line == "PostgreSQL database dump" {
            self.unfinished += 1;
        } else if line == "PostgreSQL database dump complete" {
            self.unfinished = self.unfinished.saturating_sub(1);
        }
    }

    fn command(&mut self, line: &str, label: &str) -> Result<()> {
        let Some(database) = line.strip_prefix("\\connect ").or_else(|| line.strip_prefix("\\c ")) else {
            return Ok(());
        };
        if !self.entries.is_empty() {
            return Err(Error::backup(format!("{label} holds several databases"))
                .hint("Cut the part of one database out of it, from its \\connect to the next, and open that."));
        }
        let database = database.trim();
        let plain = !database.starts_with('-') && !database.contains([' ', '=']);
        self.header.database = plain.then(|| database.trim_matches('"').replace("\"\"", "\""));
        Ok(())
    }

    /// Takes a statement; returns table and text of a COPY, whose rows come next.
    fn statement(&mut self, text: &str) -> Option<(Name, String)> {
        if let Some(encoding) = text.strip_prefix("SET client_encoding = '") {
            self.header.encoding = encoding.split('\'').next().map(str::to_owned);
            return None;
        }
        if text.starts_with("SELECT pg_catalog.set_config('search_path', ''") {
            "public".clone_into(&mut self.schema);
            return None;
        }
        let kind = |statement: &Statement| match statement {
            Statement::Table(_) => "TABLE",
            Statement::Type(..) => "TYPE",
            Statement::PrimaryKey(..) => "CONSTRAINT",
            Statement::ForeignKey(..) => "FK CONSTRAINT",
            Statement::Attach(..) => "TABLE ATTACH",
            Statement::Copy(..) | Statement::Insert(_) | Statement::SearchPath(_) => "",
        };
        let statement = statements(text).into_iter().next()?;
        let kind = kind(&statement);
        match statement {
            Statement::Table(super::ddl::Definition { name, .. })
            | Statement::Type(name, _)
            | Statement::PrimaryKey(name, _)
            | Statement::ForeignKey(name, _)
            | Statement::Attach(name, _) => {
                self.entry(kind, name, text.to_owned());
            }
            Statement::Copy(table, _) => return Some((table.within(&self.schema), text.to_owned())),
            Statement::Insert(table) => {
                let table = table.within(&self.schema);
                // Rows that came by COPY as well are not all of them, so the table is refused as a whole.
                self.data(&table).copy.clear();
            }
            Statement::SearchPath(schema) => self.schema = schema.unwrap_or_else(|| "public".to_owned()),
        }
        None
    }

    fn entry(&mut self, kind: &str, name: Reference, definition: String) -> &mut Entry {
        let Name { schema, name } = name.within(&self.schema);
        let index = self.entries.len();
        self.entries.push(Entry {
            dump_id: i32::try_from(index + 1).unwrap_or(i32::MAX),
            kind: kind.to_owned(),
            schema: Some(schema),
            name,
            tablespace: None,
            owner: String::new(),
            definition,
            dependencies: Vec::new(),
            has_data: false,
            copy: String::new(),
            place: Place::Nowhere,
        });
        &mut self.entries[index]
    }

    fn data(&mut self, table: &Name) -> &mut Entry {
        if let Some(index) = self.data.get(table) {
            return &mut self.entries[*index];
        }
        self.data.insert(table.clone(), self.entries.len());
        let name = Reference { schema: Some(table.schema.clone()), name: table.name.clone() };
        let entry = self.entry("TABLE DATA", name, String::new());
        entry.has_data = true;
        entry
    }

    /// Adds rows to a table. With `--load-via-partition-root` one table is copied several times.
    fn copy(&mut self, table: &Name, text: String, section: Section) -> Result<()> {
        let entry = self.data(table);
        match &mut entry.place {
            Place::Sections(sections) if entry.copy == text => sections.push(section),
            Place::Sections(_) => {
                return Err(Error::backup(format!("the dump copies {table} several times with different columns")));
            }
            Place::Nowhere | Place::Block(_) | Place::File(_) => {
                entry.place = Place::Sections(vec![section]);
                entry.copy = text;
            }
        }
        Ok(())
    }
}
