//! Archive versions 1.12 and 1.13, of PostgreSQL 9.6 to 11, whose `pg_dump` cannot be had here. A table of contents of version
//! 1.14 is written again as they wrote it: without the access method of each entry. That it is one of theirs, the real
//! `pg_restore` says: it must read the same out of it as out of the original.

use std::path::Path;
use std::process::Command;

use lifeboat::postgres::archive::Format;

use super::{DATABASE, SERVER, dumpers, open, pg_dump, pg_dump_to_pipe};

/// Copies a table of contents, leaving out what a version did not know.
struct Copy<'a> {
    from: &'a [u8],
    to: Vec<u8>,
    /// Where data offsets stand in `to`.
    offsets: Vec<usize>,
}

impl Copy<'_> {
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let (taken, rest) = self.from.split_at(length);
        self.from = rest;
        self.to.extend_from_slice(taken);
        taken.to_vec()
    }

    /// A sign and four bytes.
    fn integer(&mut self) -> i64 {
        let bytes = self.bytes(5);
        let number = i64::from(u32::from_le_bytes(bytes[1..].try_into().unwrap()));
        if bytes[0] == 0 { number } else { -number }
    }

    /// Whether there was text; `-1` for a length says that there is none.
    fn text(&mut self) -> bool {
        let length = self.integer();
        self.bytes(usize::try_from(length).unwrap_or(0));
        length >= 0
    }

    fn without(&mut self, part: impl FnOnce(&mut Self)) {
        let length = self.to.len();
        part(self);
        self.to.truncate(length);
    }

    /// Everything before the data.
    fn contents(&mut self, minor: u8, custom: bool) {
        let header = self.bytes(11);
        assert_eq!((&header[..5], &header[5..7]), (&b"PGDMP"[..], &[1, 14][..]));
        let place = self.to.len() - 5;
        self.to[place] = minor;
        for _compression_and_time in 0..8 {
            self.integer();
        }
        for _database_and_versions in 0..3 {
            self.text();
        }
        for _entry in 0..self.integer() {
            self.integer();
            self.integer();
            for _catalog_oid_name_kind in 0..4 {
                self.text();
            }
            self.integer();
            for _definition_drop_copy_schema_tablespace in 0..5 {
                self.text();
            }
            self.without(|copy| _ = copy.text());
            for _owner_and_oids in 0..2 {
                self.text();
            }
            while self.text() {}
            if custom {
                let place = self.bytes(9);
                if place[0] == 2 {
                    self.offsets.push(self.to.len() - 8);
                }
            } else {
                self.text();
            }
        }
    }
}

/// The same archive as an older `pg_dump` would have written it.
fn rewritten(bytes: &[u8], minor: u8, custom: bool) -> Vec<u8> {
    let mut copy = Copy { from: bytes, to: Vec::new(), offsets: Vec::new() };
    copy.contents(minor, custom);
    let shorter = (bytes.len() - copy.from.len() - copy.to.len()) as u64;
    for place in copy.offsets {
        let offset = u64::from_le_bytes(copy.to[place..place + 8].try_into().unwrap());
        copy.to[place..place + 8].copy_from_slice(&(offset - shorter).to_le_bytes());
    }
    copy.to.extend_from_slice(copy.from);
    copy.to
}

/// All that `pg_restore` would run, but for what only a version that knows access methods sets, and the random word that
/// guards what psql runs.
fn restored(bin: &Path, path: &Path) -> Vec<String> {
    let output = Command::new(bin.join("pg_restore")).args(["-f", "-"]).arg(path).output().unwrap();
    assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let skipped = |line: &str| {
        line.is_empty() || line.contains("restrict ") || line.starts_with("SET default_table_access_method")
    };
    text.lines().filter(|line| !skipped(line)).map(str::to_owned).collect()
}

#[test]
fn archives_of_versions_1_12_and_1_13_are_read_as_pg_restore_reads_them() {
    let (conninfo, truth) = &*DATABASE;
    let (_, bin) =
        dumpers().into_iter().find(|(version, _)| *version == 15).expect("PostgreSQL 15 writes version 1.14");
    for minor in [12, 13] {
        for (name, options, piped) in [
            ("offsets", ["-Fc", "-Z1"], false),
            ("piped", ["-Fc", "-Z1"], true),
            ("plain", ["-Fc", "-Z0"], false),
            ("folder", ["-Fd", "-Z1"], false),
        ] {
            let custom = options[0] == "-Fc";
            let path = SERVER.file(&format!("older.{minor}.{name}"));
            let dump = if piped { pg_dump_to_pipe } else { pg_dump };
            dump(&bin, conninfo, &options, &path);
            let as_written = restored(&bin, &path);
            let contents = if custom { path.clone() } else { path.join("toc.dat") };
            let older = rewritten(&std::fs::read(&contents).unwrap(), minor, custom);
            std::fs::write(&contents, older).unwrap();
            let as_rewritten = restored(&bin, &path);
            let differs = as_written.iter().zip(&as_rewritten).find(|(one, other)| one != other);
            assert_eq!((differs, as_written.len()), (None, as_rewritten.len()), "1.{minor}, {name}");
            let archive = open(&path);
            assert_eq!(archive.header.version.map(|(major, minor, _)| (major, minor)), Some((1, minor)));
            assert_eq!(archive.header.format, if custom { Format::Custom } else { Format::Folder });
            assert_eq!(archive.seekable(), !piped);
            truth.check(&archive, &path);
        }
    }
}
