//! Looking into a file without bringing it back: what it is, by its content, and its first lines or bytes.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::members::{self, Members};
use crate::backup::{EntryKind, Node, Repository};
use crate::error::{Error, Result};

/// So much of a file is looked at to tell what it is.
const FIRST: usize = 8192;

/// What a file is, and a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inside {
    /// By its content: a media type, or `text`, `empty`, `data`.
    pub kind: String,
    /// What else its head says: the size of a picture, the version of a PDF.
    pub facts: Vec<String>,
    /// Whether `bytes` are text.
    pub text: bool,
    /// Where the part begins in the file.
    pub offset: u64,
    /// The part.
    pub bytes: Vec<u8>,
    /// Length of the whole file.
    pub length: u64,
    /// What lies in it, when it is an archive.
    pub members: Option<Members>,
    /// Whether it is a dump of a database, whose tables can be looked at.
    pub dump: bool,
}

/// Reads a part of a file, and tells what the file is.
pub fn into(repository: &Repository, node: &Node, path: &str, offset: u64, most: usize) -> Result<Inside> {
    if node.kind != EntryKind::File {
        return Err(Error::operator(format!("{path} is not a file")).hint("Choose a file."));
    }
    let mut file = repository.open_node(node, path.to_owned())?;
    let cannot = |error| Error::from_read(error, || format!("cannot read {path}"));
    let mut first = Vec::new();
    file.by_ref().take(FIRST as u64).read_to_end(&mut first).map_err(cannot)?;
    let text = is_text(&first);
    let kind = infer::get(&first).map_or_else(
        || {
            (if first.is_empty() {
                "empty"
            } else if text {
                "text"
            } else {
                "data"
            })
            .to_owned()
        },
        |kind| kind.mime_type().to_owned(),
    );
    let members = if offset == 0 { members::list(&first, &mut file) } else { None };
    file.seek(SeekFrom::Start(offset)).map_err(cannot)?;
    let mut bytes = Vec::new();
    file.by_ref().take(most as u64).read_to_end(&mut bytes).map_err(cannot)?;
    Ok(Inside { facts: facts(&kind, &first), kind, text, offset, bytes, length: file.len(), members, dump: false })
}

/// Whether bytes look like text: UTF-8, perhaps cut off at the end, without NUL.
fn is_text(bytes: &[u8]) -> bool {
    let valid = match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    valid && !bytes.contains(&0)
}

fn facts(kind: &str, first: &[u8]) -> Vec<String> {
    let mut facts = Vec::new();
    let number = |at: usize| {
        let bytes = first.get(at..at + 4)?;
        Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    match kind {
        "image/png" => {
            if let (Some(width), Some(height)) = (number(16), number(20)) {
                facts.push(format!("{width} x {height} pixels"));
            }
        }
        "image/gif" => {
            if let Some([a, b, c, d]) = first.get(6..10) {
                let (width, height) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
                facts.push(format!("{width} x {height} pixels"));
            }
        }
        "image/jpeg" => {
            if let Some((width, height)) = jpeg_size(first) {
                facts.push(format!("{width} x {height} pixels"));
            }
        }
        "application/pdf" => {
            if let Some(version) = first.get(5..8).and_then(|version| std::str::from_utf8(version).ok()) {
                facts.push(format!("PDF version {version}"));
            }
        }
        _ => {}
    }
    facts
}

/// A JPEG tells its size in the frame's head, behind segments of any length.
fn jpeg_size(first: &[u8]) -> Option<(u16, u16)> {
    let pair = |at: usize| Some(u16::from_be_bytes([*first.get(at)?, *first.get(at + 1)?]));
    let mut at = 2;
    loop {
        match (first.get(at)?, first.get(at + 1)?) {
            (0xff, 0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf) => {
                return Some((pair(at + 7)?, pair(at + 5)?));
            }
            (0xff, _) => at += 2 + usize::from(pair(at + 2)?).max(2),
            _ => return None,
        }
    }
}

/// How two contents of a path compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// What is compared with what, in words.
    pub names: (String, String),
    /// In bytes.
    pub sizes: (u64, u64),
    /// Whether they are the same to the last byte.
    pub same: bool,
    /// The lines by which they differ, as [`diff`]; `None`: one of them is no text, or too large to be compared by lines.
    pub lines: Option<String>,
}

/// Compares two contents; `None` is one that is too large to be read whole.
pub fn compare(names: (String, String), sizes: (u64, u64), same: bool, contents: Option<(&[u8], &[u8])>) -> Compared {
    let texts = contents.filter(|(old, new)| !same && is_text(old) && is_text(new));
    let lines = texts.map(|(old, new)| diff(old, new, (&names.0, &names.1)));
    Compared { names, sizes, same, lines }
}

/// The whole of a file, for a text diff. Errors: it is larger than `most`.
pub fn whole(repository: &Repository, node: &Node, path: &str, most: u64) -> Result<Vec<u8>> {
    if node.size > most {
        return Err(Error::operator(format!("{path} has {}", crate::text::bytes(node.size)))
            .hint(format!("Files of up to {} are compared line by line.", crate::text::bytes(most))));
    }
    let mut bytes = Vec::new();
    let mut file = repository.open_node(node, path.to_owned())?;
    file.read_to_end(&mut bytes).map_err(|error| Error::from_read(error, || format!("cannot read {path}")))?;
    Ok(bytes)
}

/// So long two texts are compared for the shortest difference; then a longer one has to do.
const COMPARING: Duration = Duration::from_secs(2);
/// So much of a difference is shown, in bytes.
const SHOWN: usize = 1 << 20;

/// The lines by which two texts differ, with three lines around each, as `diff -u` writes them; of a very long difference
/// the beginning.
pub fn diff(old: &[u8], new: &[u8], names: (&str, &str)) -> String {
    let (old, new) = (String::from_utf8_lossy(old), String::from_utf8_lossy(new));
    let mut lines = similar::TextDiff::configure()
        .timeout(COMPARING)
        .diff_lines(old.as_ref(), new.as_ref())
        .unified_diff()
        .context_radius(3)
        .header(names.0, names.1)
        .to_string();
    if lines.len() > SHOWN {
        let whole = crate::text::bytes(lines.len() as u64);
        let end = lines.floor_char_boundary(SHOWN);
        lines.truncate(end);
        lines.push_str(&format!("\n@@ the rest of {whole} is not shown @@\n"));
    }
    lines
}
