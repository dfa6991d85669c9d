//! The folders of a snapshot. Names are data and never paths: they are compared with what was asked for, and nothing
//! on this machine is ever opened by them.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{BufReader, Read};
use std::os::unix::ffi::OsStrExt as _;

use chrono::{DateTime, FixedOffset};
use rustic_core::Id;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::index::Hex;

/// One file, folder or other thing in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// From the root of the snapshot, beginning with `/`. Bytes that are not UTF-8, and names that are no names (empty,
    /// `.`, `..`, with `/` or NUL in them), are written as `\xNN`; control characters are still in it, so it passes
    /// [`crate::text::clean`] before it is shown. What is written here is what opens the file.
    pub path: String,
    /// A symlink is one itself, whatever it points to.
    pub kind: EntryKind,
    /// In bytes; 0 for everything but files.
    pub size: u64,
    /// As restic recorded it, in the zone of the machine; `None`: not recorded, or not a time.
    pub modified: Option<DateTime<FixedOffset>>,
}

/// What restic calls a node's type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A regular file.
    #[default]
    File,
    /// restic's `dir`.
    Folder,
    /// Listed, never followed.
    Symlink,
    /// Devices, pipes, sockets, and what restic may come to know.
    Other,
}

/// A walk through a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entries {
    /// Folders before what is in them.
    pub entries: Vec<Entry>,
    /// Whether everything is listed: false after the limit, beneath 1024 levels, and when `damage` is not empty.
    pub complete: bool,
    /// The folders that could not be read, and why.
    pub damage: Vec<String>,
}

/// How deep a walk goes: beyond any path that an operating system can open.
pub const MAX_DEPTH: usize = 1024;

/// One thing in a folder, with everything that restic recorded of it.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// The name as [`Entry::path`] writes it.
    pub name: String,
    /// The bytes of the name, where `name` is not simply them.
    pub(super) raw: Option<Box<[u8]>>,
    /// A symlink is one itself, whatever it points to.
    pub kind: EntryKind,
    /// In bytes; 0 for everything but files.
    pub size: u64,
    /// In the zone of the machine; `None`: not recorded, or not a time.
    pub modified: Option<DateTime<FixedOffset>>,
    /// The blobs of a file, in order.
    pub content: Vec<Id>,
    /// Of a folder: what is in it.
    pub subtree: Option<Id>,
    /// Where a symlink points.
    pub target: String,
    /// Permissions with set-uid, set-gid and sticky as `chmod` takes them.
    pub mode: u32,
    /// Of the owner, as it was on that machine.
    pub uid: u32,
    /// Of the group, as it was on that machine.
    pub gid: u32,
    /// The owner's name there; empty when it had none.
    pub user: String,
    /// The group's name there; empty when it had none.
    pub group: String,
    /// How many names the file had; 0 when not recorded.
    pub links: u64,
    /// With `device`: tells hard links of one file.
    pub inode: u64,
    /// Of the file system that it was on.
    pub device: u64,
    /// Extended attributes, ACLs among them.
    pub attributes: Vec<Attribute>,
}

/// An extended attribute, as restic recorded it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Attribute {
    /// With its name space: `user.comment`, `system.posix_acl_access`.
    pub name: String,
    /// Bytes.
    #[serde(default, deserialize_with = "base64")]
    pub value: Vec<u8>,
}

fn base64<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    use base64::Engine as _;
    let text = Option::<String>::deserialize(from)?.unwrap_or_default();
    base64::prelude::BASE64_STANDARD.decode(text).map_err(serde::de::Error::custom)
}

#[derive(Deserialize)]
struct NodeOfFile<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, rename = "type", default)]
    kind: Cow<'a, str>,
    #[serde(default)]
    size: u64,
    #[serde(borrow)]
    mtime: Option<Cow<'a, str>>,
    content: Option<Vec<Hex>>,
    subtree: Option<Hex>,
    #[serde(default)]
    linktarget: String,
    #[serde(default)]
    mode: u32,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default)]
    user: String,
    #[serde(default)]
    group: String,
    #[serde(default)]
    links: u64,
    #[serde(default)]
    inode: u64,
    #[serde(default)]
    device_id: u64,
    extended_attributes: Option<Vec<Attribute>>,
}

/// Go's bits for set-uid, set-gid and sticky, and those of `chmod`.
const SPECIAL: [(u32, u32); 3] = [(1 << 23, 0o4000), (1 << 22, 0o2000), (1 << 20, 0o1000)];

/// Reads the JSON of a tree blob.
pub(super) fn parse(json: &[u8]) -> Result<Vec<Node>, String> {
    let mut nodes = Vec::new();
    let mut reader = serde_json::Deserializer::from_slice(json);
    let read = reader.deserialize_map(Tree(|node| {
        nodes.push(node);
        Ok(())
    }));
    read.and_then(|()| reader.end()).map(|()| nodes).map_err(|error| error.to_string())
}

/// Reads the JSON of a tree blob without holding it, and hands on every node. Text that `each` returns ends it.
pub(super) fn parse_stream(json: impl Read, each: impl FnMut(Node) -> Result<(), String>) -> Result<(), String> {
    let mut reader = serde_json::Deserializer::from_reader(BufReader::with_capacity(1 << 16, json));
    reader.deserialize_map(Tree(each)).and_then(|()| reader.end()).map_err(|error| error.to_string())
}

/// The object that a tree blob is.
struct Tree<F>(F);

/// The list in it, or `null` for none. Each node goes on at once, so that a folder of a million entries takes no more memory
/// than a small one.
struct Nodes<'a, F>(&'a mut F);

impl<'de, F: FnMut(Node) -> Result<(), String>> Visitor<'de> for Tree<F> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a tree")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key == "nodes" {
                map.next_value_seed(Nodes(&mut self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

impl<'de, F: FnMut(Node) -> Result<(), String>> DeserializeSeed<'de> for Nodes<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, F: FnMut(Node) -> Result<(), String>> Visitor<'de> for Nodes<'_, F> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("the nodes of a tree")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut nodes: A) -> Result<(), A::Error> {
        while let Some(node) = nodes.next_element::<NodeOfFile<'de>>()? {
            (self.0)(node.into()).map_err(serde::de::Error::custom)?;
        }
        Ok(())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }
}

impl From<NodeOfFile<'_>> for Node {
    fn from(node: NodeOfFile) -> Self {
        let kind = match &*node.kind {
            "file" => EntryKind::File,
            "dir" => EntryKind::Folder,
            "symlink" => EntryKind::Symlink,
            _ => EntryKind::Other,
        };
        let special = SPECIAL.iter().filter(|(go, _)| node.mode & go != 0).map(|(_, chmod)| chmod).sum::<u32>();
        let (name, raw) = written(node.name);
        Self {
            name,
            raw,
            kind,
            size: if kind == EntryKind::File { node.size } else { 0 },
            modified: node.mtime.and_then(|time| DateTime::parse_from_rfc3339(&time).ok()),
            content: node.content.unwrap_or_default().into_iter().map(|id| id.0).collect(),
            subtree: node.subtree.map(|id| id.0),
            target: node.linktarget,
            mode: node.mode & 0o777 | special,
            uid: node.uid,
            gid: node.gid,
            user: node.user,
            group: node.group,
            links: node.links,
            inode: node.inode,
            device: node.device_id,
            attributes: node.extended_attributes.unwrap_or_default(),
        }
    }
}

impl Node {
    pub(super) fn entry(&self, folder: &str) -> Entry {
        Entry { path: format!("{folder}/{}", self.name), kind: self.kind, size: self.size, modified: self.modified }
    }

    /// What stands above everything: a folder without a name.
    pub fn root(subtree: Option<Id>) -> Self {
        Self { kind: EntryKind::Folder, subtree, ..Self::default() }
    }

    /// The bytes of the name, when it can be one of a file here: not empty, `.` or `..`, without `/` and NUL.
    pub fn file_name(&self) -> Option<&[u8]> {
        let bytes = self.raw.as_deref().unwrap_or(self.name.as_bytes());
        let fit = !matches!(bytes, b"" | b"." | b"..") && !bytes.contains(&b'/') && !bytes.contains(&0);
        fit.then_some(bytes)
    }
}

/// A stored name as text, and its bytes where the text is not them. restic stores names quoted as Go does; `rustic_core`
/// knows how to take that back.
fn written(name: Cow<'_, str>) -> (String, Option<Box<[u8]>>) {
    // Nearly every name is simply itself.
    if !matches!(&*name, "" | "." | "..") && !name.contains(['\\', '/', '\0']) {
        return (name.into_owned(), None);
    }
    let stored = rustic_core::repofile::Node { name: name.into_owned(), ..Default::default() };
    let name = stored.name();
    let bytes = name.as_bytes();
    let no_name = matches!(bytes, b"" | b"." | b"..");
    let mut text = String::with_capacity(bytes.len());
    if bytes.is_empty() {
        text.push_str("\\x");
    }
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '.' if no_name => push_hex(&mut text, b'.'),
                '/' | '\0' => push_hex(&mut text, letter as u8),
                _ => text.push(letter),
            }
        }
        chunk.invalid().iter().for_each(|byte| push_hex(&mut text, *byte));
    }
    let raw = (text.as_bytes() != bytes).then(|| bytes.into());
    (text, raw)
}

fn push_hex(text: &mut String, byte: u8) {
    let _ = write!(text, "\\x{byte:02x}");
}

/// The names of a path that was asked for. No name means anything special: `..` finds nothing.
pub(super) fn names(path: &str) -> Vec<&str> {
    path.split('/').filter(|name| !name.is_empty()).collect()
}

/// A sentence that names what a folder holds, the names most like the one that was asked for first.
pub(super) fn nearby(nodes: &[Node], asked: &str) -> String {
    const SHOWN: usize = 6;
    if nodes.is_empty() {
        return "The folder is empty.".into();
    }
    let mut names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let alike = |name: &str| {
        let begin = name.chars().zip(asked.chars()).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count();
        let end = name.chars().rev().zip(asked.chars().rev()).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count();
        usize::MAX - begin.max(end)
    };
    names.sort_by_cached_key(|name| (alike(name), (*name).to_owned()));
    let more = names.len().saturating_sub(SHOWN);
    let mut sentence = format!("It holds {}", names[..names.len() - more].join(", "));
    if more > 0 {
        let _ = write!(sentence, " and {more} more");
    }
    sentence.push('.');
    sentence
}

/// The end of a path, for a folder: `the root` or the path itself.
pub(super) fn folder_shown(names: &[&str]) -> Cow<'static, str> {
    if names.is_empty() { "the root".into() } else { format!("/{}", names.join("/")).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_names_are_written_as_escapes() {
        for (stored, name) in [
            ("", "\\x"),
            (".", "\\x2e"),
            ("..", "\\x2e\\x2e"),
            ("../../etc/passwd", "..\\x2f..\\x2fetc\\x2fpasswd"),
            ("a\0b", "a\\x00b"),
            ("\\xff.sql", "\\xff.sql"),
            ("\\u00e9", "é"),
            ("a\\nb", "a\nb"),
            ("...", "..."),
            ("file[1].pdf", "file[1].pdf"),
        ] {
            assert_eq!(written(stored.into()).0, name);
        }
    }

    #[test]
    fn an_unknown_kind_of_node_does_not_hide_the_others() {
        let json = r#"{"nodes":[{"name":"a","type":"irregular"},{"name":"b","type":"file","size":7}]}"#;
        let nodes = parse(json.as_bytes()).unwrap();
        assert_eq!((nodes[0].kind, nodes[1].kind, nodes[1].size), (EntryKind::Other, EntryKind::File, 7));
    }

    #[test]
    fn the_likest_names_come_first() {
        let nodes = parse(br#"{"nodes":[{"name":"x"},{"name":"db.dump"},{"name":"y"}]}"#).unwrap();
        assert_eq!(nearby(&nodes, "DB.sql"), "It holds db.dump, x, y.");
    }
}
