//! The reader of dumps against real `pg_dump` of several versions: every format and compression of one hard database must
//! give the rows that the server itself copies out, and the tables as its catalog has them.

mod cost;
mod damage;
mod libraries;
mod older;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use lifeboat::drill::cluster::{Cluster, programs};
use lifeboat::error::{Error, Kind};
use lifeboat::postgres::archive::{Archive, Compression, Format, Source, Table};
use lifeboat::postgres::name::{Name, quote_list};
use lifeboat::progress::Progress;
use serde_json::{Value, json};

use crate::cluster::psql;

/// A server with the hard database, and the `pg_dump` programs that can dump it.
struct Server {
    folder: tempfile::TempDir,
    cluster: Cluster,
}

impl Server {
    fn start(programs: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("lifeboat-archive-").tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let cluster = Cluster::create(&folder.path().join("pg"), programs, &[]).unwrap();
        Self { folder, cluster }
    }

    fn database(&self, name: &str, sql: &str) -> String {
        psql(&self.cluster.conninfo("postgres"), &format!("create database \"{name}\""));
        let conninfo = self.cluster.conninfo(name);
        let file = self.file(&format!("{name}.sql"));
        std::fs::write(&file, sql).unwrap();
        run(Command::new("psql").args(["-Xq", "-v", "ON_ERROR_STOP=1", "-d", &conninfo, "-f"]).arg(file));
        conninfo
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// The version that is installed here, which runs the shared server.
static SERVER: LazyLock<Server> = LazyLock::new(|| Server::start(&programs().unwrap()));

const HARD: &str = include_str!("archive/hard.sql");

/// The hard database, and the truth about it.
static DATABASE: LazyLock<(String, Truth)> = LazyLock::new(|| {
    let conninfo = SERVER.database("hard", HARD);
    let truth = Truth::of(&conninfo);
    (conninfo, truth)
});

/// Programs of PostgreSQL 16 or 18, which `tests/get-postgres` fetches.
pub fn fetched(version: u32) -> PathBuf {
    let folder = std::env::var_os("LIFEBOAT_TEST_POSTGRES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/postgres"), PathBuf::from);
    let bin = folder.join(version.to_string()).join("bin");
    assert!(bin.join("pg_dump").exists(), "{} is missing; run tests/get-postgres", bin.display());
    bin
}

/// The folders of every version that can dump the shared server: a `pg_dump` refuses servers that are newer.
fn dumpers() -> Vec<(u32, PathBuf)> {
    let own = programs().unwrap();
    let version = |bin: &Path| {
        let output = Command::new(bin.join("pg_dump")).arg("--version").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split([' ', '.', '\n']).find_map(|word| word.parse::<u32>().ok()).unwrap()
    };
    let server = version(&own);
    let mut found = BTreeMap::from([(server, own)]);
    for other in [16, 18] {
        if other > server {
            found.insert(other, fetched(other));
        }
    }
    found.into_iter().collect()
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn pg_dump(bin: &Path, conninfo: &str, options: &[&str], to: &Path) {
    run(Command::new(bin.join("pg_dump")).args(["-d", conninfo]).args(options).arg("-f").arg(to));
}

/// Through a pipe, so that `pg_dump` cannot go back and fill in the offsets.
fn pg_dump_to_pipe(bin: &Path, conninfo: &str, options: &[&str], to: &Path) {
    let mut dump = Command::new(bin.join("pg_dump"));
    dump.args(["-d", conninfo]).args(options).stdout(Stdio::piped());
    let mut child = dump.spawn().unwrap();
    std::io::copy(child.stdout.as_mut().unwrap(), &mut File::create(to).unwrap()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn open(path: &Path) -> Archive {
    Archive::open(&Source::path(path), &Progress::default())
        .unwrap_or_else(|error| panic!("{}: {error:?}", path.display()))
}

fn read(archive: &Archive, table: &Table) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    archive.rows(table)?.read_to_end(&mut text).map_err(|error| Error::from_read(error, String::new))?;
    Ok(text)
}

/// What the server says: the rows of each table, and its shape as JSON.
struct Truth {
    rows: BTreeMap<Name, Vec<u8>>,
    copied: BTreeMap<Name, Vec<String>>,
    shapes: BTreeMap<Name, Value>,
}

const CATALOG: &str = "
set search_path = '';
select json_agg(json_build_object('schema', n.nspname, 'name', c.relname, 'copied', c.relkind = 'r',
    'shape', json_build_object(
        'columns', coalesce((select json_agg(json_build_object('name', attname, 'type', format_type(atttypid, atttypmod),
                'not_null', attnotnull, 'generated', attgenerated <> '') order by attnum)
            from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped), '[]'),
        'primary_key', (select json_agg(a.attname order by k.place) from pg_constraint p,
            unnest(p.conkey) with ordinality k (number, place), pg_attribute a
            where p.conrelid = c.oid and p.contype = 'p' and a.attrelid = c.oid and a.attnum = k.number),
        'foreign_keys', coalesce((select json_agg(json_build_object('name', f.conname, 'on_delete', f.confdeltype,
                'parent', format('%I.%I', rn.nspname, r.relname),
                'columns', (select json_agg(a.attname order by k.place) from unnest(f.conkey) with ordinality k (number, place),
                    pg_attribute a where a.attrelid = c.oid and a.attnum = k.number),
                'parent_columns', (select json_agg(a.attname order by k.place) from unnest(f.confkey)
                    with ordinality k (number, place), pg_attribute a where a.attrelid = r.oid and a.attnum = k.number))
                order by f.conname)
            from pg_constraint f, pg_class r, pg_namespace rn
            where f.conrelid = c.oid and f.contype = 'f' and f.conparentid = 0 and r.oid = f.confrelid
                and rn.oid = r.relnamespace), '[]'),
        'partition_of', (select format('%I.%I', pn.nspname, p.relname) from pg_inherits i, pg_class p, pg_namespace pn
            where c.relispartition and i.inhrelid = c.oid and p.oid = i.inhparent and pn.oid = p.relnamespace))))
from pg_class c, pg_namespace n
where n.oid = c.relnamespace and c.relkind in ('r', 'p', 'f') and n.nspname !~ '^(pg_|information_schema)'";

impl Truth {
    fn of(conninfo: &str) -> Self {
        let mut truth = Self { rows: BTreeMap::new(), copied: BTreeMap::new(), shapes: BTreeMap::new() };
        let catalog: Vec<Value> = serde_json::from_str(&psql(conninfo, CATALOG)).unwrap();
        for table in catalog {
            let text = |field: &str| table[field].as_str().unwrap().to_owned();
            let name = Name::new(text("schema"), text("name"));
            let columns = table["shape"]["columns"].as_array().unwrap();
            let copied = columns.iter().filter(|column| column["generated"] == json!(false));
            let copied: Vec<_> = copied.map(|column| column["name"].as_str().unwrap().to_owned()).collect();
            if table["copied"] == json!(true) {
                let what = if copied.is_empty() { String::new() } else { format!("({})", quote_list(&copied)) };
                // pg_dump asks for times and numbers just like this.
                let sql = format!("set datestyle = iso; set intervalstyle = postgres; copy only_ {what} to stdout")
                    .replace("only_", &name.sql());
                let output = Command::new("psql").args(["-XqAt", "-d", conninfo, "-c", &sql]).output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                truth.rows.insert(name.clone(), output.stdout);
                truth.copied.insert(name.clone(), copied);
            }
            truth.shapes.insert(name, table["shape"].clone());
        }
        truth
    }

    /// Every table, row, column and key of a dump of the whole database.
    fn check(&self, archive: &Archive, path: &Path) {
        self.check_shapes(archive, path);
        self.check_rows(archive, path);
    }

    fn check_shapes(&self, archive: &Archive, path: &Path) {
        for (name, shape) in &self.shapes {
            let table = archive.table(name).unwrap_or_else(|| panic!("{}: no {name}", path.display()));
            let read = shape_of(table);
            let columns = |shape: &Value| shape["columns"].as_array().unwrap().clone();
            for (column, expected) in columns(&read).iter().zip(&columns(shape)) {
                assert_eq!(column, expected, "{name} of {}", path.display());
            }
            assert_eq!(&read, shape, "{name} of {}", path.display());
        }
        let known: Vec<_> = archive.tables().iter().map(|table| &table.name).collect();
        assert_eq!(known.len(), self.shapes.len(), "{}: {known:?}", path.display());
    }

    fn check_rows(&self, archive: &Archive, path: &Path) {
        let (mut in_all, length) = (0, archive.tables().len());
        for (name, rows) in &self.rows {
            let table = archive.table(name).unwrap_or_else(|| panic!("{}: no {name} of {length}", path.display()));
            assert!(table.has_data && !table.inserts, "{name} of {}", path.display());
            assert_eq!(table.copied, self.copied[name], "{name} of {}", path.display());
            let mut stream = archive.rows(table).unwrap();
            let taken = stream.compressed_bytes_read();
            let mut text = Vec::new();
            stream.read_to_end(&mut text).map_err(|error| Error::from_read(error, String::new)).unwrap();
            assert!(text == *rows, "rows of {name} of {} differ: {} bytes, {}", path.display(), text.len(), rows.len());
            let lines = memchr::memchr_iter(b'\n', rows).count() as u64;
            let estimate = archive.estimate(table).unwrap();
            if estimate.exact {
                assert_eq!(estimate.rows, lines, "{name} of {}", path.display());
            } else {
                // A row with a long value is no measure for the others; the large table's rows are alike.
                let alike = name.name != "big" || estimate.rows.abs_diff(lines) < lines / 10;
                assert!(alike, "{name} of {}: {} of {lines} rows", path.display(), estimate.rows);
            }
            if let Some(size) = table.compressed_size {
                let taken = taken.load(std::sync::atomic::Ordering::Relaxed);
                // A custom archive has five bytes before each chunk; a plain dump's end marker is not counted.
                assert!(taken <= size + 4 && size > 0 || rows.is_empty(), "{name}: {taken} of {size}");
                in_all += size;
            }
        }
        if path.is_file() {
            assert!(in_all <= path.metadata().unwrap().len(), "{}: {in_all}", path.display());
        }
    }
}

/// A table of a dump as the catalog query says it.
fn shape_of(table: &Table) -> Value {
    use lifeboat::postgres::schema::OnDelete;
    let mut foreign_keys = table.foreign_keys.clone();
    foreign_keys.sort_by(|a, b| a.constraint.cmp(&b.constraint));
    let display = |name: &Name| name.to_string();
    json!({
        "columns": table.columns.iter().map(|column| json!({
            "name": column.name, "type": column.type_sql, "not_null": column.not_null, "generated": column.generated,
        })).collect::<Vec<_>>(),
        "primary_key": table.primary_key,
        "foreign_keys": foreign_keys.iter().map(|key| json!({
            "name": key.constraint, "columns": key.columns, "parent": display(&key.parent),
            "parent_columns": key.parent_columns,
            "on_delete": match key.on_delete {
                OnDelete::NoAction => "a",
                OnDelete::Restrict => "r",
                OnDelete::Cascade => "c",
                OnDelete::SetNull => "n",
                OnDelete::SetDefault => "d",
            },
        })).collect::<Vec<_>>(),
        "partition_of": table.partition_of.as_ref().map(display),
    })
}

/// Version 15 knows gzip only, and a later one may have been built without the other libraries.
fn can_compress(bin: &Path, option: &str) -> bool {
    let output = Command::new(bin.join("pg_dump")).args([option, "-d", "host=/nonexistent"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    !said.contains("does not support compression") && !said.contains("invalid value") && !said.contains("must be an")
}

/// Dumps the hard database in a format with each compression that the version can, and checks all of it.
fn check_format(letter: &str, format: Format, compressions: &[Compression]) {
    let (conninfo, truth) = &*DATABASE;
    for (version, bin) in dumpers() {
        for compression in compressions {
            let option = match compression {
                Compression::None => "--compress=0",
                Compression::Gzip => "--compress=1",
                Compression::Lz4 => "--compress=lz4",
                Compression::Zstd => "--compress=zstd:1",
            };
            if !can_compress(&bin, option) {
                continue;
            }
            let path = SERVER.file(&format!("hard.{version}.{letter}.{compression:?}"));
            let mut options = vec![letter];
            if format != Format::Tar {
                options.push(option);
            }
            pg_dump(&bin, conninfo, &options, &path);
            let archive = open(&path);
            assert_eq!((archive.header.format, archive.header.compression), (format, *compression));
            let dump_version = archive.header.dump_version.as_deref().unwrap();
            assert!(dump_version.starts_with(&version.to_string()), "{dump_version}");
            assert_eq!(archive.header.encoding.as_deref(), Some("UTF8"));
            if format == Format::Plain {
                assert_eq!(archive.seekable(), *compression == Compression::None);
            } else {
                assert_eq!(archive.header.database.as_deref(), Some("hard"));
                assert!(archive.header.created_local.is_some() && archive.seekable());
            }
            truth.check(&archive, &path);
            if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
        }
    }
}

const ALL: &[Compression] = &[Compression::None, Compression::Gzip, Compression::Lz4, Compression::Zstd];

#[test]
fn custom_dumps_of_every_version_and_compression_are_read_as_the_server_has_them() {
    check_format("-Fc", Format::Custom, ALL);
}

#[test]
fn folder_dumps_of_every_version_and_compression_are_read_as_the_server_has_them() {
    check_format("-Fd", Format::Folder, ALL);
}

#[test]
fn tar_dumps_of_every_version_are_read_as_the_server_has_them() {
    check_format("-Ft", Format::Tar, &[Compression::None]);
}

#[test]
fn plain_dumps_of_every_version_and_compression_are_read_as_the_server_has_them() {
    check_format("-Fp", Format::Plain, ALL);
}

#[test]
fn dumps_that_were_written_to_a_pipe_are_read_without_offsets() {
    let (conninfo, truth) = &*DATABASE;
    for (version, bin) in dumpers() {
        for (letter, compress) in [("-Fc", "-Z1"), ("-Fc", "-Z0"), ("-Ft", "-Z0"), ("-Fp", "-Z1")] {
            let path = SERVER.file(&format!("piped.{version}.{letter}{compress}"));
            pg_dump_to_pipe(&bin, conninfo, &[letter, compress], &path);
            let archive = open(&path);
            assert_eq!(archive.seekable(), letter == "-Ft");
            truth.check(&archive, &path);
        }
    }
}

#[test]
fn dumps_of_a_newer_server_are_read_with_what_only_it_writes() {
    let server = Server::start(&fetched(18));
    let newer = "
        create table app.virtual (a integer, b integer generated always as (a * 2) virtual, c integer,
            constraint \"named, (not) null\" not null c);
        insert into app.virtual (a, c) values (1, 2);
        create table app.inherits_not_null (constraint mine not null extra) inherits (app.base);
        insert into app.inherits_not_null values (1, 'a', 'b');
        create table app.temporal (id int4range, period tstzrange, primary key (id, period without overlaps));
        create table app.of_temporal (id int4range, period tstzrange,
            foreign key (id, period period) references app.temporal (id, period period));";
    let conninfo = server.database("hard", &format!("{HARD}{newer}"));
    let truth = Truth::of(&conninfo);
    for options in [&["-Fc", "--statistics"][..], &["-Fp", "--statistics"], &["-Fd", "-j2"]] {
        let path = server.file(&format!("newer{}", options[0]));
        pg_dump(&fetched(18), &conninfo, options, &path);
        truth.check(&open(&path), &path);
    }
    // pg_restore agrees, byte by byte.
    let path = server.file("newer-Fc");
    let restored = server.file("restored.sql");
    run(Command::new(fetched(18).join("pg_restore")).args(["--data-only", "-f"]).arg(&restored).arg(&path));
    truth.check_rows(&open(&restored), &restored);
}

#[test]
fn a_dump_of_data_only_and_one_of_a_part_hold_just_that() {
    let (conninfo, truth) = &*DATABASE;
    for (version, bin) in dumpers() {
        for letter in ["-Fc", "-Fp"] {
            let path = SERVER.file(&format!("part.{version}{letter}"));
            pg_dump(&bin, conninfo, &[letter, "--data-only"], &path);
            let archive = open(&path);
            assert!(archive.tables().iter().all(|table| table.columns.is_empty()));
            truth.check_rows(&archive, &path);

            pg_dump(&bin, conninfo, &[letter, "-n", "\"Odd\"*"], &path);
            let odd = Name::new("Odd \"Schema\".x", "a \"b\", (c) 'd'; --e /* $f$ .g");
            let names: Vec<_> = open(&path).tables().iter().map(|table| table.name.clone()).collect();
            assert_eq!(names, std::slice::from_ref(&odd));
            assert_eq!(read(&open(&path), open(&path).table(&odd).unwrap()).unwrap(), truth.rows[&odd]);

            pg_dump(&bin, conninfo, &[letter, "-t", "app.lines"], &path);
            let archive = open(&path);
            assert_eq!(archive.tables().len(), 1);
            assert_eq!(shape_of(&archive.tables()[0]), truth.shapes[&Name::new("app", "lines")]);

            pg_dump(&bin, conninfo, &[letter, "--schema-only"], &path);
            let archive = open(&path);
            truth.check_shapes(&archive, &path);
            let error = archive.rows(archive.table(&Name::new("app", "big")).unwrap()).unwrap_err();
            assert_eq!((error.kind, &*error.message), (Kind::Backup, "the dump holds no rows of app.big"));
        }
    }
}

#[test]
fn rows_that_are_insert_statements_are_told_from_no_rows() {
    let (conninfo, truth) = &*DATABASE;
    for (version, bin) in dumpers() {
        for (letter, option) in [("-Fc", "--inserts"), ("-Fp", "--inserts"), ("-Fp", "--rows-per-insert=100")] {
            let path = SERVER.file(&format!("inserts.{version}{letter}"));
            pg_dump(&bin, conninfo, &[letter, option, "--exclude-table-data=app.big"], &path);
            let archive = open(&path);
            truth.check_shapes(&archive, &path);
            let filled = truth.rows.iter().filter(|(name, rows)| name.name != "big" && !rows.is_empty());
            for name in filled.map(|(name, _)| name) {
                let table = archive.table(name).unwrap();
                assert!(table.inserts, "{name} of {}", path.display());
                let error = archive.rows(table).unwrap_err();
                assert_eq!(error.kind, Kind::Backup);
                assert!(error.message.contains("INSERT"), "{}", error.message);
                assert!(archive.estimate(table).is_err(), "{name}");
            }
        }
    }
}

#[test]
fn rows_of_partitions_that_are_loaded_through_their_root_are_read() {
    let (conninfo, truth) = &*DATABASE;
    for (_, bin) in dumpers() {
        let path = SERVER.file("root.custom");
        pg_dump(&bin, conninfo, &["-Fc", "-Z1", "--load-via-partition-root", "-t", "app.events*"], &path);
        let archive = open(&path);
        for table in archive.tables().iter().filter(|table| table.has_data) {
            assert_eq!(read(&archive, table).unwrap(), truth.rows[&table.name], "{}", table.name);
        }
        assert_eq!(archive.tables().iter().filter(|table| table.has_data).count(), 3);
    }
}
