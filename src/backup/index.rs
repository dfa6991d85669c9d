//! Where each blob is: the index files of a repository, as one sorted table. Packs themselves are never walked.

use rustic_core::Id;
use serde::Deserialize;
use serde::de::{Deserializer, Visitor};

use super::seal::OVERHEAD;

/// The plain length that a blob of file data may have. restic cuts files into at most 8 MiB.
const MAX_DATA_BLOB: u32 = 64 << 20;
/// The plain length that a folder's blob may have: about two million files in one folder.
const MAX_TREE_BLOB: u32 = 1 << 30;

/// Every blob of the repository, sorted by id. A blob may be in several packs; all of them are kept, so that a damaged
/// or removed pack can be stood in for by another.
#[derive(Default)]
pub(super) struct Index {
    /// The index files that were read, sorted.
    pub files: Vec<Id>,
    packs: Vec<Id>,
    blobs: Vec<Blob>,
}

#[derive(Clone, Copy)]
struct Blob {
    id: Id,
    pack: u32,
    offset: u32,
    /// Sealed.
    length: u32,
    /// Plain; 0 when the blob is not compressed.
    compressed_from: u32,
}

/// Where one copy of a blob is. All lengths are within the limits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copy {
    pub pack: Id,
    pub offset: u32,
    /// Of the sealed bytes.
    pub length: u32,
    pub compressed_from: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlobKind {
    Data,
    Tree,
}

impl Copy {
    pub(super) fn plain_length(&self) -> u32 {
        self.compressed_from.unwrap_or(self.length - OVERHEAD)
    }
}

#[derive(Deserialize)]
struct IndexFile {
    packs: Option<Vec<PackOfFile>>,
}

#[derive(Deserialize)]
struct PackOfFile {
    id: Hex,
    blobs: Option<Vec<BlobOfFile>>,
}

#[derive(Deserialize)]
struct BlobOfFile {
    id: Hex,
    offset: u32,
    length: u32,
    #[serde(default)]
    uncompressed_length: u32,
}

/// What the blobs are sorted by: a hash's first bytes nearly always tell two apart.
fn order(id: &Id) -> (u32, Id) {
    (id.as_u32(), *id)
}

/// An id as JSON holds it. A repository has as many as it has blobs, and the library takes them apart a digit at a time.
pub(super) struct Hex(pub Id);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Digits;
        impl Visitor<'_> for Digits {
            type Value = Hex;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("64 hexadecimal digits")
            }

            fn visit_str<E: serde::de::Error>(self, digits: &str) -> Result<Hex, E> {
                let mut id = [0; 32];
                let (mut wrong, pairs) = (digits.len() != 64, digits.as_bytes().chunks_exact(2));
                for (byte, pair) in id.iter_mut().zip(pairs) {
                    let (high, low) = (DIGITS[usize::from(pair[0])], DIGITS[usize::from(pair[1])]);
                    wrong |= (high | low) > 15;
                    *byte = high << 4 | low & 15;
                }
                if wrong {
                    Err(E::invalid_value(serde::de::Unexpected::Str(digits), &self))
                } else {
                    Ok(Hex(Id::new(id)))
                }
            }
        }
        from.deserialize_str(Digits)
    }
}

/// What each letter counts as a hexadecimal digit; 255: nothing.
const DIGITS: [u8; 256] = {
    let mut digits = [255; 256];
    let mut digit = 0_u8;
    while digit < 16 {
        digits[b"0123456789abcdef"[digit as usize] as usize] = digit;
        digits[b"0123456789ABCDEF"[digit as usize] as usize] = digit;
        digit += 1;
    }
    digits
};

impl Index {
    /// Adds the JSON of one index file.
    pub(super) fn add(&mut self, file: Id, json: &[u8]) -> Result<(), String> {
        let read: IndexFile = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        for pack in read.packs.unwrap_or_default() {
            let number = u32::try_from(self.packs.len()).map_err(|_| "it names too many packs".to_owned())?;
            self.packs.push(pack.id.0);
            self.blobs.extend(pack.blobs.unwrap_or_default().into_iter().map(|blob| Blob {
                id: blob.id.0,
                pack: number,
                offset: blob.offset,
                length: blob.length,
                compressed_from: blob.uncompressed_length,
            }));
        }
        self.files.push(file);
        Ok(())
    }

    pub(super) fn sort(&mut self) {
        self.files.sort_unstable();
        self.blobs.sort_unstable_by_key(|blob| order(&blob.id));
        self.blobs.shrink_to_fit();
    }

    /// All copies of a blob. An entry beyond the limits is an error and never an allocation.
    pub(super) fn find(&self, kind: BlobKind, id: &Id) -> Result<Vec<Copy>, String> {
        let limit = match kind {
            BlobKind::Data => MAX_DATA_BLOB,
            BlobKind::Tree => MAX_TREE_BLOB,
        };
        let wanted = order(id);
        let begin = self.blobs.partition_point(|blob| order(&blob.id) < wanted);
        let found = self.blobs[begin..].iter().take_while(|blob| blob.id == *id);
        found
            .map(|blob| {
                if kind == BlobKind::Tree && blob.compressed_from > limit {
                    return Err(format!(
                        "folder {id} has more entries than are read here: {} MB",
                        blob.compressed_from >> 20
                    ));
                }
                let usable = blob.length >= OVERHEAD
                    && blob.length <= limit + OVERHEAD
                    && blob.compressed_from <= limit
                    && blob.offset.checked_add(blob.length).is_some();
                let compressed_from = (blob.compressed_from > 0).then_some(blob.compressed_from);
                let copy = Copy {
                    pack: self.packs[blob.pack as usize],
                    offset: blob.offset,
                    length: blob.length,
                    compressed_from,
                };
                if usable { Ok(copy) } else { Err(format!("blob {id} has impossible lengths in the index: {copy:?}")) }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "a3e048f1073299310981d8f5447861df0eca26a706645b5e2fa355c31c2205ed";

    fn index(blob: &str) -> Index {
        let mut index = Index::default();
        let json = format!(r#"{{"packs":[{{"id":"{ID}","blobs":[{{"id":"{ID}","type":"data",{blob}}}]}}]}}"#);
        index.add(ID.parse().unwrap(), json.as_bytes()).unwrap();
        index.sort();
        index
    }

    #[test]
    fn impossible_lengths_are_an_error_before_anything_is_allocated() {
        for blob in [
            r#""offset":0,"length":31"#,
            r#""offset":0,"length":4000000000"#,
            r#""offset":4294967295,"length":64"#,
            r#""offset":0,"length":64,"uncompressed_length":4000000000"#,
        ] {
            assert!(index(blob).find(BlobKind::Data, &ID.parse().unwrap()).is_err(), "{blob}");
        }
    }

    #[test]
    fn a_blob_is_found_with_its_plain_length() {
        let find = |blob| index(blob).find(BlobKind::Data, &ID.parse().unwrap()).unwrap()[0].plain_length();
        assert_eq!(find(r#""offset":7,"length":40"#), 8);
        assert_eq!(find(r#""offset":7,"length":40,"uncompressed_length":99"#), 99);
        assert!(index(r#""offset":0,"length":40"#).find(BlobKind::Data, &Id::default()).unwrap().is_empty());
    }

    #[test]
    fn an_index_file_without_packs_is_an_empty_one() {
        let mut index = Index::default();
        index.add(Id::default(), br#"{"packs":null}"#).unwrap();
        assert!(index.add(Id::default(), br#"{"packs":[{"id":"zz"}]}"#).is_err());
    }
}
