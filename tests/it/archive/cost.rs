//! What reading one table costs, counted in bytes that were really read.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// A file that counts.
struct Counting(File, Arc<AtomicU64>);

impl Read for Counting {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(bytes)?;
        self.1.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Seek for Counting {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

/// Bytes that it takes to open a dump, estimate a table and read its rows.
fn cost(path: &Path) -> u64 {
    let (count, root) = (Arc::new(AtomicU64::new(0)), path.to_owned());
    let counter = Arc::clone(&count);
    let open = move |name: &str| {
        let path = if name.is_empty() { root.clone() } else { root.join(name) };
        let file = File::open(path).map_err(|error| Error::operator(error.to_string()))?;
        let stream: Box<dyn lifeboat::postgres::archive::ReadSeek> = Box::new(Counting(file, Arc::clone(&counter)));
        Ok(stream)
    };
    let source = if path.is_dir() { Source::folder("dump", open) } else { Source::file("dump", open) };
    let archive = Archive::open(&source, &Progress::default()).unwrap();
    let table = archive.table(&Name::new("public", "m")).unwrap();
    assert!(archive.estimate(table).unwrap().rows > 0);
    assert_eq!(memchr::memchr_iter(b'\n', &read(&archive, table).unwrap()).count(), 1000);
    count.load(Ordering::Relaxed)
}

#[test]
fn reading_one_table_costs_the_same_however_large_its_neighbours_are() {
    let rows =
        |count| format!("select n, md5(n::text) t, repeat(md5((n + 1)::text), 4) u from generate_series(1, {count}) n");
    let database = |name, count| {
        let tables = [("a", count), ("m", 1000), ("z", count)];
        let sql: String =
            tables.iter().map(|(name, count)| format!("create table {name} as {};", rows(*count))).collect();
        SERVER.database(name, &sql)
    };
    let (small, large) = (database("small_neighbours", 15_000), database("large_neighbours", 60_000));
    for (version, bin) in dumpers() {
        for options in [&["-Fc", "-Z1"][..], &["-Fc", "-Z0"], &["-Fd", "-Z1"], &["-Ft"]] {
            let path = |size: &str| SERVER.file(&format!("cost.{version}.{size}.{}", options.concat()));
            pg_dump(&bin, &small, options, &path("small"));
            pg_dump(&bin, &large, options, &path("large"));
            let (of_small, of_large) = (cost(&path("small")), cost(&path("large")));
            assert!(of_large.abs_diff(of_small) < 1024, "{options:?} of {version}: {of_small} bytes, then {of_large}");
            assert!(of_large < 2_000_000, "{options:?} of {version}: {of_large} bytes");
        }
    }
}
