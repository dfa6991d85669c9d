//! The whole tree of a snapshot in memory, small enough for millions of entries, and the search through it.
//!
//! An entry takes 40 bytes and its name; paths are put together when they are needed. Entries of one folder stand one after
//! the other, so that a folder is listed, and a walk over all paths made, without looking anything up.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::backup::{BlobId, EntryKind, Node, Repository, Snapshot, Visit};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

mod search;

pub use search::{Hits, QUERY_HELP, Query, Search};

/// A snapshot with more entries is listed up to here, and said to be longer.
const MOST: usize = 20_000_000;

/// All entries of a snapshot.
#[derive(Default)]
pub struct Catalog {
    names: String,
    items: Vec<Item>,
    owners: Vec<String>,
    /// False when a folder could not be read, or there are too many entries.
    pub complete: bool,
    /// The folders that could not be read, and why.
    pub damage: Vec<String>,
}

#[derive(Clone, Copy)]
struct Item {
    name: u32,
    name_length: u32,
    parent: u32,
    owner: u16,
    kind: EntryKind,
    size: u64,
    /// Seconds since 1970; `i64::MIN`: not recorded.
    modified: i64,
}

/// One entry, as it is listed and found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// From the root of the snapshot, as [`crate::backup::Entry::path`].
    pub path: String,
    /// A symlink is one itself.
    pub kind: EntryKind,
    /// In bytes; 0 for everything but files.
    pub size: u64,
    /// To the second.
    pub modified: Option<DateTime<Utc>>,
    /// The owner's name on that machine, or its number.
    pub owner: String,
}

impl Catalog {
    /// Reads all folders of a snapshot.
    pub fn read(repository: &Repository, snapshot: &Snapshot, progress: &Progress) -> Result<Self> {
        progress.begin(format!("listing snapshot {}", snapshot.short()), Unit::Items, None);
        Ok(Self::read_all_of(repository, std::slice::from_ref(snapshot), progress)?.0)
    }

    /// Every path that any of the snapshots holds, once, as the first of them that holds it has it; with that one's place
    /// for each entry. A folder that is the same in several is read once.
    pub fn read_all(repository: &Repository, snapshots: &[Snapshot], progress: &Progress) -> Result<(Self, Vec<u32>)> {
        progress.begin("listing every snapshot", Unit::Items, None);
        Self::read_all_of(repository, snapshots, progress)
    }

    fn read_all_of(repository: &Repository, snapshots: &[Snapshot], progress: &Progress) -> Result<(Self, Vec<u32>)> {
        let mut catalog = Self { complete: true, ..Self::default() };
        let mut owners: HashMap<String, u16> = HashMap::new();
        catalog.push(u32::MAX, "", &Node::root(None), &mut owners);
        let mut holders = vec![0];
        // By folder and name, and by folder and content; only where there is more than one snapshot to tell apart.
        let several = snapshots.len() > 1;
        let mut known: HashMap<(u32, String), u32> = HashMap::new();
        let mut seen: HashSet<(u32, BlobId)> = HashSet::new();
        for (place, snapshot) in snapshots.iter().enumerate() {
            let root = snapshot.tree.parse().map_err(|error| Error::bug("a snapshot has no root").detail(error))?;
            if !seen.insert((0, root)) {
                continue;
            }
            repository.walk(vec![(root, 0_u32)], progress, |parent, visit, more| {
                let nodes = match visit {
                    Visit::Nodes(nodes) => nodes,
                    Visit::Damaged(why) => {
                        catalog.complete = false;
                        catalog.damage.push(format!("{}: {why}", catalog.path(parent)));
                        return Ok(());
                    }
                    Visit::TooDeep | Visit::TooMany => {
                        catalog.complete = false;
                        return Ok(());
                    }
                };
                progress.advance(nodes.len() as u64);
                for node in &nodes {
                    if catalog.items.len() >= MOST || catalog.names.len() + node.name.len() > u32::MAX as usize {
                        catalog.complete = false;
                        return Ok(());
                    }
                    let key = several.then(|| (parent, node.name.clone()));
                    let number = if let Some(number) = key.as_ref().and_then(|key| known.get(key)) {
                        *number
                    } else {
                        holders.push(u32::try_from(place).unwrap_or(u32::MAX));
                        let number = catalog.push(parent, &node.name, node, &mut owners);
                        known.extend(key.map(|key| (key, number)));
                        number
                    };
                    more.extend(
                        node.subtree.filter(|id| !several || seen.insert((number, *id))).map(|id| (id, number)),
                    );
                }
                Ok(())
            })?;
        }
        catalog.items.shrink_to_fit();
        catalog.names.shrink_to_fit();
        Ok((catalog, holders))
    }

    fn push(&mut self, parent: u32, name: &str, node: &Node, owners: &mut HashMap<String, u16>) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "MOST and the check of the names' length keep it small")]
        let (number, begin, name_length) = (self.items.len() as u32, self.names.len() as u32, name.len() as u32);
        let mut owner = node.user.clone();
        if owner.is_empty() {
            let _ = write!(owner, "{}", node.uid);
        }
        let owner = *owners.entry(owner).or_insert_with_key(|owner| {
            self.owners.push(owner.clone());
            // Owners beyond this many share the last name; no machine has so many.
            u16::try_from(self.owners.len() - 1).unwrap_or(u16::MAX)
        });
        self.names.push_str(name);
        self.items.push(Item {
            name: begin,
            name_length,
            parent,
            owner,
            kind: node.kind,
            size: node.size,
            modified: node.modified.map_or(i64::MIN, |at| at.timestamp()),
        });
        number
    }

    /// So many entries, the root not among them.
    pub fn len(&self) -> usize {
        self.items.len().saturating_sub(1)
    }

    /// Whether the snapshot holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the files in it and everything beneath it, and how many files those are, for each entry that stands in a
    /// folder; of a file, its own.
    pub fn sizes(&self) -> Vec<(u64, u64)> {
        let mut sizes: Vec<(u64, u64)> =
            self.items.iter().map(|item| (item.size, u64::from(item.kind == EntryKind::File))).collect();
        // Children stand behind their folder.
        for number in (1..self.items.len()).rev() {
            let (bytes, files) = sizes[number];
            let parent = &mut sizes[self.items[number].parent as usize];
            *parent = (parent.0 + bytes, parent.1 + files);
        }
        sizes
    }

    /// Visits every entry with its path and number, folders before what is in them.
    pub fn visit<E>(
        &self,
        mut each: impl FnMut(&str, usize) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let (mut path, mut parent, mut folder) = (String::new(), u32::MAX, 0);
        for (number, item) in self.items.iter().enumerate().skip(1) {
            if parent != item.parent {
                path.clear();
                self.push_path(item.parent, &mut path);
                (parent, folder) = (item.parent, path.len());
            }
            path.truncate(folder);
            path.push('/');
            path.push_str(self.name(item));
            each(&path, number)?;
        }
        Ok(())
    }

    fn name(&self, item: &Item) -> &str {
        let begin = item.name as usize;
        self.names.get(begin..begin + item.name_length as usize).unwrap_or_default()
    }

    fn path(&self, number: u32) -> String {
        let mut path = String::new();
        self.push_path(number, &mut path);
        path
    }

    fn push_path(&self, number: u32, path: &mut String) {
        let mut names = Vec::new();
        let mut at = number;
        while at != 0
            && let Some(item) = self.items.get(at as usize)
        {
            names.push(self.name(item));
            at = item.parent;
        }
        for name in names.iter().rev() {
            path.push('/');
            path.push_str(name);
        }
    }

    /// An entry by its number.
    pub fn found(&self, number: usize) -> Found {
        let item = &self.items[number];
        #[expect(clippy::cast_possible_truncation, reason = "fewer than MOST entries")]
        let path = self.path(number as u32);
        Found {
            path,
            kind: item.kind,
            size: item.size,
            modified: DateTime::from_timestamp(item.modified, 0),
            owner: self.owners.get(item.owner as usize).cloned().unwrap_or_default(),
        }
    }
}
