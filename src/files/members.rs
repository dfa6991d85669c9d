//! What lies in an archive: names, sizes and times of a tar, a zip, or what gzip holds, without unpacking anything.
//!
//! Archives come from outside: so many members are listed and no more, and of what has to be decompressed to be listed, only
//! so much. What was not looked at is said to be missing.

use std::io::{Read, Seek, SeekFrom};

use chrono::{DateTime, Utc};
use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};

/// More members than this are not listed.
const MOST: usize = 2000;
/// So much of a compressed archive is decompressed to list it, in bytes.
const DECOMPRESSED: u64 = 64 << 20;
/// Where a tar says that it is one.
const TAR_MAGIC: std::ops::Range<usize> = 257..262;

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// As the archive has it; never used as a path.
    pub name: String,
    /// In bytes, unpacked; `None`: the archive does not tell.
    pub size: Option<u64>,
    /// In a zip it has no zone, and is taken for UTC.
    pub modified: Option<DateTime<Utc>>,
}

/// The members of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// In the archive's order.
    pub members: Vec<Member>,
    /// False when there are more, or the rest could not be read.
    pub complete: bool,
}

/// Lists what lies in an archive; `None`: it is none that is known. `first` is how the file begins.
pub fn list(first: &[u8], file: &mut (impl Read + Seek)) -> Option<Members> {
    file.rewind().ok()?;
    if first.starts_with(b"PK\x03\x04") || first.starts_with(b"PK\x05\x06") {
        return zip(file);
    }
    if is_tar(first) {
        let length = file.seek(SeekFrom::End(0)).and_then(|length| file.rewind().map(|()| length)).ok()?;
        let (mut found, end) = tar(tar::Archive::new(file).entries_with_seek());
        // Seeking goes beyond the end of a file that was cut off without noticing.
        found.complete &= end <= length;
        return Some(found);
    }
    if first.starts_with(&[0x1f, 0x8b]) {
        return Some(gzip(file));
    }
    None
}

fn is_tar(first: &[u8]) -> bool {
    first.get(TAR_MAGIC) == Some(b"ustar")
}

/// Long names and the like stand in entries of their own, which could be of any length: so much of one is read.
const EXTENSION: u64 = 64 << 10;

/// The members, and where the last of them ends.
fn tar<R: Read>(entries: std::io::Result<tar::Entries<'_, R>>) -> (Members, u64) {
    let (mut found, mut end) = (Members { members: Vec::new(), complete: false }, 0);
    let Ok(entries) = entries else { return (found, end) };
    let mut long_name = None;
    for entry in entries.raw(true) {
        let (Ok(mut entry), true) = (entry, found.members.len() < MOST) else { return (found, end) };
        end = entry.raw_file_position().saturating_add(entry.size());
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            let mut extension = Vec::new();
            if entry.by_ref().take(EXTENSION).read_to_end(&mut extension).is_err() {
                return (found, end);
            }
            long_name = if kind.is_gnu_longname() { Some(extension) } else { pax_path(&extension) };
            continue;
        }
        if kind.is_gnu_longlink() || kind.is_pax_global_extensions() {
            continue;
        }
        let name = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
        found.members.push(Member {
            name: String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned(),
            size: Some(entry.size()),
            modified: entry.header().mtime().ok().and_then(|at| DateTime::from_timestamp(i64::try_from(at).ok()?, 0)),
        });
    }
    found.complete = true;
    (found, end)
}

/// The name in a pax header: records of `LENGTH KEY=VALUE`, a line each.
fn pax_path(extension: &[u8]) -> Option<Vec<u8>> {
    let mut records = extension.split(|byte| *byte == b'\n');
    records.find_map(|record| {
        let (_, rest) = record.split_at_checked(record.iter().position(|byte| *byte == b' ')? + 1)?;
        rest.strip_prefix(b"path=").map(<[u8]>::to_vec)
    })
}

fn zip(file: &mut (impl Read + Seek)) -> Option<Members> {
    let mut archive = zip::ZipArchive::new(file).ok()?;
    let mut members = Vec::new();
    for number in 0..archive.len().min(MOST) {
        let Ok(entry) = archive.by_index_raw(number) else { continue };
        let modified = entry.last_modified().and_then(|at| {
            let day = chrono::NaiveDate::from_ymd_opt(at.year().into(), at.month().into(), at.day().into())?;
            Some(day.and_hms_opt(at.hour().into(), at.minute().into(), at.second().into())?.and_utc())
        });
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        members.push(Member { name, size: Some(entry.size()), modified });
    }
    Some(Members { complete: archive.len() == members.len(), members })
}

fn gzip(file: &mut (impl Read + Seek)) -> Members {
    let mut unpacked = MultiGzDecoder::new(&mut *file).take(DECOMPRESSED);
    let mut begin = Vec::new();
    let read = unpacked.by_ref().take(512).read_to_end(&mut begin);
    if read.is_ok() && is_tar(&begin) {
        let whole = std::io::Cursor::new(begin).chain(unpacked);
        return tar(tar::Archive::new(whole).entries()).0;
    }
    let decoder = unpacked.into_inner();
    let header = decoder.header();
    let name = header.and_then(flate2::GzHeader::filename).map(|name| String::from_utf8_lossy(name).into_owned());
    let modified = header.filter(|header| header.mtime() > 0);
    let modified = modified.and_then(|header| DateTime::from_timestamp(header.mtime().into(), 0));
    let member = Member { name: name.unwrap_or_else(|| "(without a name)".into()), size: None, modified };
    Members { members: vec![member], complete: read.is_ok() }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write as _};

    use super::*;

    fn listed(bytes: &[u8]) -> Option<Members> {
        list(&bytes[..bytes.len().min(8192)], &mut Cursor::new(bytes))
    }

    fn a_tar(members: usize) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for number in 0..members {
            let mut header = tar::Header::new_ustar();
            header.set_size(3);
            header.set_mtime(1_700_000_000);
            header.set_cksum();
            builder.append_data(&mut header, format!("folder/{number}"), &b"abc"[..]).unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        builder.append_data(&mut header, "long/".repeat(30) + "name", &b""[..]).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_tar_is_listed_plain_and_compressed_and_so_much_of_it() {
        let plain = a_tar(2);
        let found = listed(&plain).unwrap();
        assert!(found.complete && found.members.len() == 3, "{found:?}");
        assert_eq!((found.members[1].name.as_str(), found.members[1].size), ("folder/1", Some(3)));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        assert_eq!(listed(&gzip.finish().unwrap()).unwrap(), found);
        assert!(found.members[2].name.ends_with("long/name") && found.members[2].name.len() == 154, "{found:?}");
        let many = listed(&a_tar(MOST + 1)).unwrap();
        assert!(!many.complete && many.members.len() == MOST);
        assert!(!listed(&plain[..514]).unwrap().complete);
    }

    #[test]
    fn a_zip_is_listed_and_whatever_else_is_none_or_incomplete() {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        writer.start_file("a/b.txt", stored).unwrap();
        writer.write_all(b"hello").unwrap();
        let bytes = writer.finish().unwrap().into_inner();
        let found = listed(&bytes).unwrap();
        assert_eq!((found.members[0].name.as_str(), found.members[0].size, found.complete), ("a/b.txt", Some(5), true));
        assert!(listed(&bytes[..20]).is_none());
        assert!(listed(b"plain text").is_none() && listed(b"").is_none());
        assert!(!listed(&[0x1f, 0x8b, 8, 0, 0, 0]).unwrap().complete);
        // What unpacks to far more than is looked at ends all the same.
        let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        for _ in 0..200 {
            bomb.write_all(&vec![0; 1 << 20]).unwrap();
        }
        assert_eq!(listed(&bomb.finish().unwrap()).unwrap().members.len(), 1);
    }
}
