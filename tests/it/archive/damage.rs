//! Damaged dumps: whatever is cut off or flipped, the answer is an error or the right rows, never fewer of them.

use std::collections::HashMap;
use std::io::{Cursor, Write as _};
use std::sync::Arc;

use lifeboat::error::{Error, Result};
use lifeboat::postgres::archive::ReadSeek;

use super::*;

/// The files of a dump by name; a dump that is one file has it under the empty name.
type Files = HashMap<String, Arc<[u8]>>;

fn files(path: &Path) -> Files {
    let read = |path: &Path| Arc::from(std::fs::read(path).unwrap());
    if path.is_file() {
        return HashMap::from([(String::new(), read(path))]);
    }
    let entries = std::fs::read_dir(path).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), read(&entry.path()))).collect()
}

fn source(files: Files) -> Source {
    let folder = !files.contains_key("");
    let open = move |name: &str| {
        let bytes = files.get(name).ok_or_else(|| Error::operator(format!("no {name}")))?;
        Ok(Box::new(Cursor::new(Arc::clone(bytes))) as Box<dyn ReadSeek>)
    };
    if folder { Source::folder("dump", open) } else { Source::file("dump", open) }
}

/// The rows of every table, each by itself, as far as they can be read.
fn read_all(files: Files, truth: &Truth) -> Result<Vec<(Name, Result<Vec<u8>>)>> {
    let archive = Archive::open(&source(files), &Progress::default())?;
    let missing = || Err(Error::backup("no such table"));
    let rows = |name: &Name| archive.table(name).map_or_else(missing, |table| read(&archive, table));
    Ok(truth.rows.keys().map(|name| (name.clone(), rows(name))).collect())
}

const SQL: &str = r"
    create table a (id integer primary key, note text, sum numeric);
    insert into a select n, 'note ' || md5(n::text), n / 7.0 from generate_series(1, 600) n;
    create table b (id integer primary key, note text, sum numeric);
    insert into b select n, 'other ' || md5(n::text), n / 3.0 from generate_series(1, 400) n;
    create table lines (line text);
    insert into lines select case n % 4 when 0 then E'\n' when 1 then '\.' when 2 then null else 'x' || n end
        from generate_series(1, 300) n;
    create table none (id integer references a);
    select lo_from_bytea(0, decode(repeat('00ff5c2e0a', 1000), 'hex'));
";

/// How much a dump protects its rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checksum {
    /// CRC-32, of gzip files: damaged rows are always found.
    Strong,
    /// Adler-32, of zlib streams in custom archives: a few digits may change so that it stays the same.
    Weak,
    /// A bit that flips inside of a value makes another value, and nothing can tell.
    None,
}

/// Small dumps in every format.
type Dumps = Vec<(String, Checksum, Files)>;

static DUMPS: LazyLock<(Dumps, Truth)> = LazyLock::new(|| {
    let conninfo = SERVER.database("damage", SQL);
    let mut dumps = Vec::new();
    let mut add = |name: &str, checksum, path: &Path| dumps.push((name.to_owned(), checksum, files(path)));
    for (version, bin) in dumpers() {
        for (letter, compress, checksum) in [
            ("-Fc", "-Z6", Checksum::Weak),
            ("-Fc", "-Z0", Checksum::None),
            ("-Fd", "-Z6", Checksum::Strong),
            ("-Ft", "-Z0", Checksum::None),
            ("-Fp", "-Z0", Checksum::None),
            ("-Fp", "-Z6", Checksum::Strong),
        ] {
            let name = format!("damage.{version}.{letter}{compress}");
            pg_dump(&bin, &conninfo, &[letter, compress], &SERVER.file(&name));
            add(&name, checksum, &SERVER.file(&name));
        }
        let piped = SERVER.file(&format!("damage.{version}.piped"));
        pg_dump_to_pipe(&bin, &conninfo, &["-Fc", "-Z6"], &piped);
        add(&format!("piped {version}"), Checksum::Weak, &piped);
    }
    (dumps, Truth::of(&conninfo))
});

/// Evenly distributed numbers, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// Any file of the dump by its size, and a place in it. Every second place is in what describes the dump, most of which is
/// in its first part.
fn place(files: &Files, numbers: &mut Numbers) -> (String, usize) {
    let mut names: Vec<_> = files.keys().filter(|name| !name.starts_with("blob")).collect();
    names.sort_unstable();
    let name = names[numbers.below(names.len())].clone();
    let length = files[&name].len();
    let at = if numbers.below(2) == 0 { numbers.below(length) } else { numbers.below(length.min(6000)) };
    (name, at)
}

fn check_error(error: &Error, what: &str) {
    let folder = error.kind == Kind::Operator && error.message.contains("part of a dump folder");
    assert!(error.kind == Kind::Backup || folder, "{what}: {error:?}");
    assert!(!error.message.is_empty());
}

#[test]
fn a_dump_that_is_cut_off_gives_an_error_or_the_right_rows() {
    let (dumps, truth) = &*DUMPS;
    for (name, _, files) in dumps {
        let mut numbers = Numbers(1);
        let mut errors = 0;
        for _ in 0..60 {
            let (file, at) = place(files, &mut numbers);
            let what = format!("{name}: {file} cut at {at}");
            let mut cut = files.clone();
            cut.insert(file.clone(), files[&file][..at].into());
            match read_all(cut, truth) {
                Ok(tables) => {
                    for (table, rows) in tables {
                        match rows {
                            Ok(rows) => assert!(rows == truth.rows[&table], "{what}: {table}"),
                            Err(error) => check_error(&error, &what),
                        }
                    }
                }
                Err(error) => {
                    errors += 1;
                    check_error(&error, &what);
                }
            }
        }
        assert!(errors > 0, "{name}");
    }
}

#[test]
fn a_dump_with_a_flipped_bit_gives_an_error_or_the_right_rows() {
    let (dumps, truth) = &*DUMPS;
    for (name, checksum, files) in dumps {
        let mut numbers = Numbers(2);
        for _ in 0..300 {
            let (file, at) = place(files, &mut numbers);
            let bit = numbers.below(8);
            let what = format!("{name}: {file} flipped at {at}, bit {bit}");
            let mut bytes = files[&file].to_vec();
            bytes[at] ^= 1 << bit;
            let mut flipped = files.clone();
            flipped.insert(file, bytes.into());
            match read_all(flipped, truth) {
                Ok(tables) => {
                    for (table, rows) in tables {
                        match rows {
                            Ok(rows) => {
                                check_flipped(&rows, &truth.rows[&table], *checksum, &format!("{what}: {table}"));
                            }
                            Err(error) => check_error(&error, &what),
                        }
                    }
                }
                Err(error) => check_error(&error, &what),
            }
        }
    }
}

/// Rows without a checksum may have the very bit wrong that was flipped, but there are as many bytes of them. If that bit
/// was the line end before the marker of a plain dump, what follows is taken for rows; the server refuses those.
fn check_flipped(rows: &[u8], truth: &[u8], checksum: Checksum, what: &str) {
    let wrong: u32 = rows.iter().zip(truth).map(|(a, b)| (a ^ b).count_ones()).sum();
    match checksum {
        Checksum::Strong => assert!(rows == truth, "{what}: {wrong} bits, {} bytes of {}", rows.len(), truth.len()),
        Checksum::Weak => {
            let lines = |text: &[u8]| memchr::memchr_iter(b'\n', text).count();
            assert!(
                rows.len() == truth.len() && lines(rows) == lines(truth),
                "{what}: {} of {}",
                rows.len(),
                truth.len()
            );
        }
        Checksum::None => {
            assert!(wrong <= 1 && rows.len() >= truth.len(), "{what}: {wrong} bits, {} of {}", rows.len(), truth.len());
        }
    }
}

/// A custom dump, uncompressed.
fn custom() -> Vec<u8> {
    let (_, _, files) = DUMPS.0.iter().find(|(name, ..)| name.ends_with("-Fc-Z0")).unwrap();
    files[""].to_vec()
}

fn refusal(bytes: Vec<u8>) -> Error {
    Archive::open(&source(HashMap::from([(String::new(), bytes.into())])), &Progress::default()).unwrap_err()
}

#[test]
fn an_archive_version_that_is_not_known_is_named() {
    for (major, minor) in [(1, 17), (2, 0), (1, 9), (0, 3)] {
        let mut bytes = custom();
        (bytes[5], bytes[6]) = (major, minor);
        let error = refusal(bytes);
        assert_eq!(error.kind, Kind::Backup);
        assert!(error.message.contains(&format!("{major}.{minor}")) && !error.hints.is_empty(), "{error:?}");
    }
}

#[test]
fn what_is_no_dump_is_said_to_be_none() {
    let gzip = |text: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    };
    let mut numbers = Numbers(3);
    let random: Vec<u8> = (0..100_000).map(|_| u8::try_from(numbers.below(256)).unwrap()).collect();
    let program = std::fs::read("/proc/self/exe").unwrap()[..100_000].to_vec();
    for bytes in [Vec::new(), b"x".to_vec(), gzip(&random), random, program, b"select 1;\n".to_vec(), gzip(b"")] {
        let error = refusal(bytes);
        assert_eq!(error.kind, Kind::Backup);
        assert!(error.message.contains("not a dump"), "{error:?}");
    }
    let archived = refusal(gzip(&custom()));
    assert!(archived.message.contains("compressed once more"), "{archived:?}");
}

/// The most memory that this process ever had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn sizes_that_a_dump_only_claims_take_no_memory() {
    let before = peak();
    let head = b"--\n-- PostgreSQL database dump\n--\n\nSET statement_timeout = 0;\n";
    let bomb = |text: &[u8], count: usize| {
        let mut encoder = flate2::write::GzEncoder::new(head.to_vec(), flate2::Compression::fast());
        encoder.get_mut().clear();
        encoder.write_all(&[head, text].concat()).unwrap();
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..count {
            encoder.write_all(&piece).unwrap();
        }
        encoder.finish().unwrap()
    };
    // A line that never ends, a statement that never ends, a comment that never ends.
    for (text, count) in [(&b"COPY public.t (a) FROM stdin;\n"[..], 768), (b"CREATE TABLE ", 24), (b"-- ", 768)] {
        let error = refusal(bomb(text, count));
        assert!(error.kind == Kind::Backup && error.message.contains("ends early"), "{error:?}");
    }
    // Integers of the header, at their largest.
    for at in (12..400).step_by(5) {
        let mut bytes = custom();
        bytes[at..at + 5].copy_from_slice(&[0, 255, 255, 255, 127]);
        if let Err(error) = Archive::open(&source(HashMap::from([(String::new(), bytes.into())])), &Progress::default())
        {
            check_error(&error, "a large integer");
        }
    }
    // Other tests run meanwhile, but none takes near as much as the text that was unpacked.
    assert!(peak() - before < 512 << 20, "{} bytes", peak() - before);
}
