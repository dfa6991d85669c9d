//! Dumps compressed by lz4 and zstd where no `pg_dump` at hand was built with them: uncompressed ones, packed as it packs
//! them (`compress_lz4.c`, `compress_zstd.c`), by the libraries that it would call.

use super::*;

fn pack(compression: Compression, text: &[u8]) -> Vec<u8> {
    if compression == Compression::Zstd {
        return zstd::encode_all(text, 1).unwrap();
    }
    let (from, to) = (SERVER.file("pack.text"), SERVER.file("pack.lz4"));
    std::fs::write(&from, text).unwrap();
    // Blocks of 64 kB that refer to each other, and no checksum.
    run(Command::new("lz4").args(["-q", "-f", "-B4", "-BD", "--no-frame-crc"]).arg(&from).arg(&to));
    std::fs::read(to).unwrap()
}

/// Where an archive's header says how it is compressed, and what.
const COMPRESSION_AT: usize = 11;

fn code(compression: Compression) -> u8 {
    if compression == Compression::Lz4 { 2 } else { 3 }
}

fn integer(bytes: &[u8]) -> Option<usize> {
    let bytes: [u8; 5] = bytes.get(..5)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]])).ok()
}

/// Takes the chunks at a place: their bytes together, and where they end.
fn chunks(bytes: &[u8], mut at: usize) -> Option<(Vec<u8>, usize)> {
    let mut text = Vec::new();
    loop {
        let length = integer(bytes.get(at..)?)?;
        at += 5;
        if length == 0 {
            return Some((text, at));
        }
        text.extend(bytes.get(at..at + length)?);
        at += length;
    }
}

/// Packs the blocks from a place to the end; none when these are no blocks.
fn pack_blocks(bytes: &[u8], mut at: usize, compression: Option<Compression>) -> Option<Vec<u8>> {
    let mut packed = Vec::new();
    while at < bytes.len() {
        let head = bytes.get(at..at + 6)?;
        at += 6;
        packed.extend(head);
        if head[0] == 1 {
            let (text, end) = chunks(bytes, at)?;
            at = end;
            if let Some(compression) = compression {
                for chunk in pack(compression, &text).chunks(4096) {
                    packed.push(0);
                    packed.extend(u32::try_from(chunk.len()).unwrap().to_le_bytes());
                    packed.extend(chunk);
                }
                packed.extend([0; 5]);
            }
        } else if head[0] == 3 {
            while bytes.get(at..at + 5)? != [0; 5] {
                let end = chunks(bytes, at + 5)?.1;
                packed.extend(&bytes[at..end]);
                at = end;
            }
            packed.extend([0; 5]);
            at += 5;
        } else {
            return None;
        }
    }
    Some(packed)
}

#[test]
fn dumps_that_lz4_or_zstd_packed_are_read_in_every_format() {
    let (conninfo, truth) = &*DATABASE;
    let (version, bin) = dumpers().pop().unwrap();
    assert!(version >= 16, "run tests/get-postgres");
    let (custom, folder, plain) = (SERVER.file("pack.custom"), SERVER.file("pack.folder"), SERVER.file("pack.sql"));
    pg_dump_to_pipe(&bin, conninfo, &["-Fc", "-Z0"], &custom);
    pg_dump(&bin, conninfo, &["-Fd", "-Z0"], &folder);
    pg_dump(&bin, conninfo, &["-Fp", "-Z0"], &plain);
    let bytes = std::fs::read(&custom).unwrap();
    let blocks = (0..bytes.len()).find(|at| bytes[*at] == 1 && pack_blocks(&bytes, *at, None).is_some()).unwrap();
    for compression in [Compression::Lz4, Compression::Zstd] {
        let mut packed = bytes[..blocks].to_vec();
        packed[COMPRESSION_AT] = code(compression);
        packed.extend(pack_blocks(&bytes, blocks, Some(compression)).unwrap());
        let path = SERVER.file(&format!("packed.custom.{compression:?}"));
        std::fs::write(&path, packed).unwrap();
        check(&path, Format::Custom, compression, truth);

        let path = SERVER.file(&format!("packed.sql.{compression:?}"));
        std::fs::write(&path, pack(compression, &std::fs::read(&plain).unwrap())).unwrap();
        check(&path, Format::Plain, compression, truth);

        let path = SERVER.file(&format!("packed.folder.{compression:?}"));
        std::fs::create_dir(&path).unwrap();
        for file in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let (name, mut bytes) = (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap());
            if name == "toc.dat" {
                bytes[COMPRESSION_AT] = code(compression);
                std::fs::write(path.join(name), bytes).unwrap();
            } else {
                let suffix = if compression == Compression::Lz4 { "lz4" } else { "zst" };
                std::fs::write(path.join(format!("{name}.{suffix}")), pack(compression, &bytes)).unwrap();
            }
        }
        check(&path, Format::Folder, compression, truth);
    }
}

fn check(path: &Path, format: Format, compression: Compression, truth: &Truth) {
    let archive = open(path);
    assert_eq!((archive.header.format, archive.header.compression), (format, compression));
    truth.check(&archive, path);
}
