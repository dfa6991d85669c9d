//! The header and the table of contents of an archive, which are the same in custom, folder and tar format but for the
//! way an entry says where its data lies.

use std::collections::HashSet;

use chrono::{NaiveDate, NaiveDateTime};

use super::input::Input;
use super::{Compression, Entry, Format, Header, Place};
use crate::error::{Error, Result};

pub const MAGIC: &[u8] = b"PGDMP";
pub const FORMAT_CUSTOM: u8 = 1;

/// The versions whose layout is known: 1.12 is PostgreSQL 9.0 to 10.2, later ones added fields.
const OLDEST: (u8, u8) = (1, 12);
const NEWEST: (u8, u8) = (1, 16);

/// No real table of contents comes near these.
const MOST_ENTRIES: u64 = 10_000_000;
const LONGEST_STRING: u64 = 1 << 30;
/// An entry is at least a dozen integers and strings of five bytes each.
const SMALLEST_ENTRY: u64 = 60;

pub struct Toc {
    pub header: Header,
    pub entries: Vec<Entry>,
}

/// Reads from the start of the input, and leaves it where the table of contents ends.
pub fn read(input: &mut Input, format: Format) -> Result<Toc> {
    let mut reader = Reader { input, version: (0, 0), offset_size: 8 };
    let mut header = reader.header(format)?;
    let entries = reader.entries(format)?;
    header.encoding = entries.iter().find(|entry| entry.kind == "ENCODING").and_then(|entry| {
        // SET client_encoding = 'UTF8';
        Some(entry.definition.split('\'').nth(1)?.to_owned())
    });
    Ok(Toc { header, entries })
}

struct Reader<'a> {
    input: &'a mut Input,
    version: (u8, u8),
    offset_size: usize,
}

impl Reader<'_> {
    fn header(&mut self, format: Format) -> Result<Header> {
        const WHAT: &str = "the header";
        let mut first = [0; 11];
        self.input.exact(&mut first, WHAT)?;
        let [b'P', b'G', b'D', b'M', b'P', major, minor, revision, integer_size, offset_size, kind] = first else {
            return Err(Error::backup(format!("{} is not an archive of pg_dump", self.input.label())));
        };
        self.version = (major, minor);
        self.check_version()?;
        // A folder's toc.dat calls itself tar.
        let expected: &[u8] = if format == Format::Custom { &[FORMAT_CUSTOM] } else { &[3, 5] };
        // Every build of pg_dump has written integers of four bytes.
        if integer_size != 4 || !(4..=8).contains(&offset_size) || !expected.contains(&kind) {
            return Err(self.input.damaged(WHAT));
        }
        self.offset_size = usize::from(offset_size);
        let compression = if self.version >= (1, 15) {
            match self.input.byte(WHAT)? {
                0 => Compression::None,
                1 => Compression::Gzip,
                2 => Compression::Lz4,
                3 => Compression::Zstd,
                _ => return Err(self.input.damaged("the compression of the header")),
            }
        } else {
            // The level of gzip; -1 is its default level.
            match self.integer(WHAT)? {
                0 => Compression::None,
                -1..=9 => Compression::Gzip,
                _ => return Err(self.input.damaged("the compression of the header")),
            }
        };
        Ok(Header {
            format,
            version: Some((major, minor, revision)),
            compression,
            created_local: self.time()?,
            database: self.string(WHAT)?,
            server_version: self.string(WHAT)?,
            dump_version: self.string(WHAT)?,
            encoding: None,
        })
    }

    fn check_version(&self) -> Result<()> {
        let (major, minor) = self.version;
        let reads = format!("this Lifeboat reads ({}.12 to {}.{})", OLDEST.0, NEWEST.0, NEWEST.1);
        if self.version > NEWEST {
            return Err(Error::backup(format!("archive version {major}.{minor} is newer than {reads}"))
                .hint("Use a newer Lifeboat, or restore this dump with the pg_restore that belongs to it."));
        }
        if self.version < OLDEST {
            return Err(Error::backup(format!("archive version {major}.{minor} is older than {reads}"))
                .hint("Restore this dump with pg_restore."));
        }
        Ok(())
    }

    /// The C library's broken-down local time, without its zone. A date that does not exist is left out.
    fn time(&mut self) -> Result<Option<NaiveDateTime>> {
        let mut fields = [0; 7];
        for field in &mut fields {
            *field = self.integer("the time of the header")?;
        }
        let [second, minute, hour, day, month, year, _daylight_saving] = fields;
        let unsigned = |field: i32| u32::try_from(field).ok();
        let read = || {
            let date =
                NaiveDate::from_ymd_opt(year.checked_add(1900)?, unsigned(month)?.checked_add(1)?, unsigned(day)?)?;
            date.and_hms_opt(unsigned(hour)?, unsigned(minute)?, unsigned(second)?)
        };
        Ok(read())
    }

    fn entries(&mut self, format: Format) -> Result<Vec<Entry>> {
        const WHAT: &str = "the length of the table of contents";
        let count = self.integer(WHAT)?;
        let count = u64::try_from(count).map_err(|_| self.input.damaged(WHAT))?;
        if count > MOST_ENTRIES {
            return Err(self.input.damaged(WHAT));
        }
        if count.saturating_mul(SMALLEST_ENTRY) > self.input.remaining() {
            return Err(self.input.ends_early("its table of contents"));
        }
        let mut entries = Vec::new();
        let mut ids = HashSet::new();
        for number in 1..=count {
            let what = format!("entry {number} of {count} of the table of contents");
            let entry = self.entry(format, &what)?;
            if !ids.insert(entry.dump_id) {
                return Err(self.input.damaged(&what));
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn entry(&mut self, format: Format, what: &str) -> Result<Entry> {
        let dump_id = self.integer(what)?;
        let has_data = match self.integer(what)? {
            0 => false,
            1 => true,
            _ => return Err(self.input.damaged(what)),
        };
        if dump_id <= 0 {
            return Err(self.input.damaged(what));
        }
        let _catalog = self.string(what)?;
        let _oid = self.string(what)?;
        let name = self.string(what)?.unwrap_or_default();
        let kind = self.string(what)?.unwrap_or_default();
        if self.version >= (1, 11) {
            let _section = self.integer(what)?;
        }
        let definition = self.string(what)?.unwrap_or_default();
        let _drop = self.string(what)?;
        let copy = self.string(what)?.unwrap_or_default();
        let schema = self.string(what)?.filter(|schema| !schema.is_empty());
        let tablespace = self.string(what)?.filter(|tablespace| !tablespace.is_empty());
        if self.version >= (1, 14) {
            let _access_method = self.string(what)?;
        }
        if self.version >= (1, 16) {
            let _relation_kind = self.integer(what)?;
        }
        let owner = self.string(what)?.unwrap_or_default();
        let _with_oids = self.string(what)?;
        let mut dependencies = Vec::new();
        while let Some(id) = self.string(what)? {
            dependencies.push(id.parse().map_err(|_| self.input.damaged(what))?);
        }
        let place = if format == Format::Custom { self.offset(what)? } else { self.file_name(what)? };
        // Whether there is data is said twice, and a file is named after its entry; what does not agree is damaged.
        let named = match &place {
            Place::File(file) => file.split('.').next() == Some(&dump_id.to_string()) || kind != "TABLE DATA",
            Place::Nowhere | Place::Block(_) | Place::Sections(_) => true,
        };
        if has_data != (place != Place::Nowhere) || !named {
            return Err(self.input.damaged(what));
        }
        Ok(Entry { dump_id, kind, schema, name, tablespace, owner, definition, dependencies, has_data, copy, place })
    }

    fn offset(&mut self, what: &str) -> Result<Place> {
        let state = self.input.byte(what)?;
        let mut bytes = [0; 8];
        self.input.exact(&mut bytes[..self.offset_size], what)?;
        match (state, u64::from_le_bytes(bytes)) {
            (1, 0) => Ok(Place::Block(None)),
            (2, offset) => Ok(Place::Block(Some(offset))),
            (3, 0) => Ok(Place::Nowhere),
            _ => Err(self.input.damaged(what)),
        }
    }

    fn file_name(&mut self, what: &str) -> Result<Place> {
        match self.string(what)? {
            None => Ok(Place::Nowhere),
            Some(name) if name.is_empty() => Ok(Place::Nowhere),
            // pg_dump writes numbers and a suffix here; anything else could lead out of the folder.
            Some(name)
                if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_'))
                    && !name.starts_with('.') =>
            {
                Ok(Place::File(name))
            }
            Some(_) => Err(self.input.damaged(what)),
        }
    }

    fn integer(&mut self, what: &str) -> Result<i32> {
        self.input.integer(what)
    }

    /// Text of the dump's encoding; what is not UTF-8 is shown with replacement characters.
    fn string(&mut self, what: &str) -> Result<Option<String>> {
        let length = self.integer(what)?;
        let Ok(length) = u64::try_from(length) else {
            return if length == -1 { Ok(None) } else { Err(self.input.damaged(what)) };
        };
        if length > LONGEST_STRING {
            return Err(self.input.damaged(what));
        }
        let bytes = self.input.bytes(length, what)?;
        Ok(Some(
            String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
        ))
    }
}
