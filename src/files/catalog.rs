//! The whole tree of a snapshot in memory, small enough for millions of entries, and the search through it.
//!
//! An entry takes 40 bytes and its name; paths are put together when they are needed. Entries of one folder stand one after
//! the other, so that a folder is listed, and a walk over all paths made, without looking anything up.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use chrono::{DateTime, NaiveDate, Utc};
use nucleo_matcher::pattern::{CaseMatching, Normalization, Pattern};
use nucleo_matcher::{Config, Matcher, Utf32Str};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::backup::{BlobId, EntryKind, Node, Repository, Snapshot, Visit};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// A snapshot with more entries is listed up to here, and said to be longer.
const MOST: usize = 20_000_000;

/// Entries that one task of a search looks at.
const CHUNK: usize = 16_384;

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

/// What a search found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hits {
    /// The best ones, best first.
    pub best: Vec<Found>,
    /// Of all entries, so many match.
    pub matching: u64,
    /// Of so many.
    pub entries: u64,
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

    /// Every entry, folders before what is in them.
    pub fn entries(&self) -> impl Iterator<Item = Found> + '_ {
        (1..self.items.len()).map(|number| self.found(number))
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

    fn found(&self, number: usize) -> Found {
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

    /// The `limit` best matches of a query.
    pub fn search(&self, query: &Query, limit: usize) -> Hits {
        self.search_numbered(query, limit).0
    }

    /// The `limit` best matches of a query, with their places among all entries.
    pub fn search_numbered(&self, query: &Query, limit: usize) -> (Hits, Vec<u32>) {
        let matches = self.matches(query, None);
        self.hits(&matches, limit)
    }

    /// The numbers and scores of all entries that match, among `within` when that is given.
    fn matches(&self, query: &Query, within: Option<&[u32]>) -> Vec<(u32, u32)> {
        let pattern = Pattern::parse(&query.text, CaseMatching::Smart, Normalization::Smart);
        let owner = query
            .owner
            .as_ref()
            .map(|owner| self.owners.iter().map(|known| known.eq_ignore_ascii_case(owner)).collect::<Vec<_>>());
        let fits = |item: &Item| {
            query.kind.is_none_or(|kind| item.kind == kind)
                && query.least.is_none_or(|least| item.kind == EntryKind::File && item.size >= least)
                && query.most.is_none_or(|most| item.kind == EntryKind::File && item.size <= most)
                && query.after.is_none_or(|after| item.modified >= after.timestamp())
                && query.before.is_none_or(|before| item.modified != i64::MIN && item.modified < before.timestamp())
                && owner.as_ref().is_none_or(|owner| owner.get(item.owner as usize) == Some(&true))
                && query.extension.as_ref().is_none_or(|wanted| {
                    self.name(item)
                        .rsplit_once('.')
                        .is_some_and(|(stem, extension)| !stem.is_empty() && extension.eq_ignore_ascii_case(wanted))
                })
        };
        let look = |scan: &mut Scan, number: u32| {
            let item = &self.items[number as usize];
            if !fits(item) {
                return None;
            }
            scan.go_to(self, item);
            let path = Utf32Str::new(&scan.path, &mut scan.letters);
            pattern.score(path, &mut scan.matcher).map(|score| (score, number))
        };
        let scan = |scan: &mut Scan, numbers: &mut dyn Iterator<Item = u32>| -> Vec<(u32, u32)> {
            numbers.filter_map(|number| look(scan, number)).collect()
        };
        match within {
            Some(within) => within
                .par_chunks(CHUNK)
                .map_init(Scan::new, |state, chunk| scan(state, &mut chunk.iter().copied()))
                .flatten_iter()
                .collect(),
            None => (0..self.items.len().div_ceil(CHUNK))
                .into_par_iter()
                .map_init(Scan::new, |state, chunk| {
                    #[expect(clippy::cast_possible_truncation, reason = "fewer than MOST entries")]
                    let numbers = (chunk * CHUNK).max(1) as u32..self.items.len().min((chunk + 1) * CHUNK) as u32;
                    scan(state, &mut { numbers })
                })
                .flatten_iter()
                .collect(),
        }
    }

    fn hits(&self, matches: &[(u32, u32)], limit: usize) -> (Hits, Vec<u32>) {
        let mut best: Vec<(u32, u32)> = matches.to_vec();
        // Of equal ones the first in the snapshot: folders stand before what is in them.
        let order = |&(score, number): &(u32, u32)| (std::cmp::Reverse(score), number);
        if best.len() > limit {
            best.select_nth_unstable_by_key(limit, order);
            best.truncate(limit);
        }
        best.sort_unstable_by_key(order);
        let hits = Hits {
            best: best.iter().map(|(_, number)| self.found(*number as usize)).collect(),
            matching: matches.len() as u64,
            entries: self.len() as u64,
        };
        (hits, best.into_iter().map(|(_, number)| number).collect())
    }
}

/// What one thread of a search holds.
struct Scan {
    matcher: Matcher,
    letters: Vec<char>,
    path: String,
    parent: u32,
    folder: usize,
}

impl Scan {
    fn new() -> Self {
        let matcher = Matcher::new(Config::DEFAULT.match_paths());
        Self { matcher, letters: Vec::new(), path: String::new(), parent: u32::MAX, folder: 0 }
    }

    /// Makes the path of an entry; neighbours share their folder's.
    fn go_to(&mut self, catalog: &Catalog, item: &Item) {
        if self.parent == item.parent {
            self.path.truncate(self.folder);
        } else {
            self.path.clear();
            catalog.push_path(item.parent, &mut self.path);
            (self.parent, self.folder) = (item.parent, self.path.len());
        }
        self.path.push('/');
        self.path.push_str(catalog.name(item));
    }
}

/// A search that goes on as somebody types: a query that only grows looks among what matched before.
#[derive(Default)]
pub struct Search {
    query: Query,
    matching: Option<Vec<u32>>,
}

impl Search {
    /// The `limit` best matches of a query, with their places among all entries.
    pub fn go(&mut self, catalog: &Catalog, query: &Query, limit: usize) -> (Hits, Vec<u32>) {
        let within = self.matching.as_deref().filter(|_| query.is_narrower_than(&self.query));
        let matches = catalog.matches(query, within);
        let found = catalog.hits(&matches, limit);
        self.matching = Some(matches.into_iter().map(|(_, number)| number).collect());
        self.query = query.clone();
        found
    }
}

/// What is searched for: some letters of the path in order, and what else has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// As [`nucleo_matcher::pattern::Pattern`] reads it: words in any order; `'word` as it stands, `^begin`, `end$`, `!not`.
    pub text: String,
    /// Only these.
    pub kind: Option<EntryKind>,
    /// Files of at least so many bytes.
    pub least: Option<u64>,
    /// Files of at most so many bytes.
    pub most: Option<u64>,
    /// Modified then or later.
    pub after: Option<DateTime<Utc>>,
    /// Modified earlier.
    pub before: Option<DateTime<Utc>>,
    /// The owner's name or number.
    pub owner: Option<String>,
    /// Without its dot.
    pub extension: Option<String>,
}

/// The words that narrow a search.
pub const QUERY_HELP: &str =
    "size:>10M  size:<1K  after:2026-01-15  before:2026-01-15  owner:alice  ext:pdf  type:file|folder|symlink";

impl Query {
    /// Reads what somebody typed: words, among them `size:>10M`, `after:2026-01-15`, `owner:alice`, `ext:pdf`, `type:file`.
    ///
    /// Errors: one of these words that makes no sense.
    pub fn parse(typed: &str) -> Result<Self> {
        let mut query = Self::default();
        let mut words = Vec::new();
        for word in typed.split_whitespace() {
            let wrong = || {
                Error::operator(format!("\"{word}\" does not narrow a search")).hint(format!("Write: {QUERY_HELP}."))
            };
            match word.split_once(':') {
                Some(("size", value)) => match value.split_at_checked(1) {
                    Some((">", size)) => query.least = Some(bytes(size).ok_or_else(wrong)?.saturating_add(1)),
                    Some(("<", size)) => query.most = Some(bytes(size).ok_or_else(wrong)?.saturating_sub(1)),
                    _ => return Err(wrong()),
                },
                Some(("after", day)) => query.after = Some(midnight(day).ok_or_else(wrong)?),
                Some(("before", day)) => query.before = Some(midnight(day).ok_or_else(wrong)?),
                Some(("owner", owner)) => query.owner = Some(owner.into()),
                Some(("ext", extension)) => query.extension = Some(extension.trim_start_matches('.').into()),
                Some(("type", kind)) => {
                    query.kind = Some(match kind {
                        "file" => EntryKind::File,
                        "folder" | "dir" => EntryKind::Folder,
                        "symlink" => EntryKind::Symlink,
                        _ => return Err(wrong()),
                    });
                }
                _ => words.push(word),
            }
        }
        query.text = words.join(" ");
        Ok(query)
    }

    /// Whether everything that matches this matched the other.
    fn is_narrower_than(&self, other: &Self) -> bool {
        let plain = !self.text.contains(['!', '$', '^', '\'', '\\', '|']);
        plain
            && self.text.starts_with(&other.text)
            && Self { text: String::new(), ..self.clone() } == Self { text: String::new(), ..other.clone() }
    }
}

fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let shift = match text[end..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" => 10,
        "M" | "MB" => 20,
        "G" | "GB" => 30,
        "T" | "TB" => 40,
        _ => return None,
    };
    text[..end].parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn midnight(day: &str) -> Option<DateTime<Utc>> {
    let day = NaiveDate::parse_from_str(day, "%Y-%m-%d").ok()?;
    Some(day.and_hms_opt(0, 0, 0)?.and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_narrow_a_search_and_wrong_ones_are_named() {
        let query = Query::parse("impo size:>10M ext:.PDF after:2026-01-15 owner:alice doc type:file").unwrap();
        assert_eq!(
            (query.text.as_str(), query.least, query.kind),
            ("impo doc", Some((10 << 20) + 1), Some(EntryKind::File))
        );
        assert_eq!(query.extension.as_deref(), Some("PDF"));
        assert!(query.is_narrower_than(&Query { text: "impo".into(), ..query.clone() }));
        assert!(!query.is_narrower_than(&Query::default()));
        for wrong in ["size:10", "size:>x", "after:yesterday", "type:thing"] {
            assert!(Query::parse(wrong).unwrap_err().message.contains(wrong));
        }
        assert_eq!(Query::parse("a:b C:\\x").unwrap().text, "a:b C:\\x");
    }
}
