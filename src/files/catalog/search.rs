//! The search through a catalog, which answers while somebody types.
//!
//! What matches is always known exactly. Which of it is best is judged by the whole path; among very many entries first by
//! the name, and by the folder once for all that is in it, and by the whole path only for the best of those.

use std::cmp::Reverse;
use std::sync::Arc;

use chrono::{DateTime, NaiveDate, Utc};
use nucleo_matcher::pattern::{Atom, AtomKind, CaseMatching, Normalization, Pattern};
use nucleo_matcher::{Config, Matcher, Utf32Str};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Catalog, Found, Item};
use crate::backup::EntryKind;
use crate::error::{Error, Result};

/// Entries that one task of a search looks at.
const CHUNK: usize = 16_384;
/// Among more entries than this the best are found in two steps.
const MANY: usize = 100_000;
/// So many times the limit are judged by their whole path then.
const CANDIDATES: usize = 8;
/// Keys of which the answers are kept.
const KEPT: usize = 64;

/// What a search found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hits {
    /// The best ones, best first.
    pub best: Vec<Found>,
    /// Of all entries, so many match.
    pub matching: u64,
    /// Of so many.
    pub entries: u64,
}

impl Catalog {
    /// The `limit` best matches of a query.
    pub fn search(&self, query: &Query, limit: usize) -> Hits {
        Search::default().go(self, query, limit).0
    }

    /// The scores and numbers of all entries that match, among `within` when that is given.
    fn matches(&self, query: &Query, within: Option<&[u32]>, judge: Judge) -> Vec<(u32, u32)> {
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
            scan.score().map(|score| (score, number))
        };
        let scan = |scan: &mut Scan, numbers: &mut dyn Iterator<Item = u32>| -> Vec<(u32, u32)> {
            numbers.filter_map(|number| look(scan, number)).collect()
        };
        // A word that begins, ends or excludes is meant of the whole path.
        let plain = |atom: &Atom| atom.kind == AtomKind::Fuzzy && !atom.negative;
        let judge = if pattern.atoms.iter().all(plain) { judge } else { Judge::Path };
        let new = || Scan::new(&pattern, judge);
        match within {
            Some(within) => within
                .par_chunks(CHUNK)
                .map_init(new, |state, chunk| scan(state, &mut chunk.iter().copied()))
                .flatten_iter()
                .collect(),
            None => (0..self.items.len().div_ceil(CHUNK))
                .into_par_iter()
                .map_init(new, |state, chunk| {
                    #[expect(clippy::cast_possible_truncation, reason = "fewer than MOST entries")]
                    let numbers = (chunk * CHUNK).max(1) as u32..self.items.len().min((chunk + 1) * CHUNK) as u32;
                    scan(state, &mut { numbers })
                })
                .flatten_iter()
                .collect(),
        }
    }

    /// The best matches with their places, and the places of all that match.
    fn best(&self, query: &Query, within: Option<&[u32]>, limit: usize) -> ((Hits, Vec<u32>), Vec<u32>) {
        let many = within.map_or(self.items.len(), <[u32]>::len) > MANY;
        let matches = self.matches(query, within, if many { Judge::Parts } else { Judge::Path });
        let all: Vec<u32> = matches.iter().map(|(_, number)| *number).collect();
        let mut best = matches;
        if many {
            first(&mut best, limit.saturating_mul(CANDIDATES));
            let mut candidates: Vec<u32> = best.iter().map(|(_, number)| *number).collect();
            candidates.sort_unstable();
            best = self.matches(query, Some(&candidates), Judge::Path);
        }
        first(&mut best, limit);
        let hits = Hits {
            best: best.iter().map(|(_, number)| self.found(*number as usize)).collect(),
            matching: all.len() as u64,
            entries: self.len() as u64,
        };
        ((hits, best.into_iter().map(|(_, number)| number).collect()), all)
    }
}

/// Leaves the best `limit` of what matches, best first. Of equal ones the first in the snapshot: folders stand before what is
/// in them.
fn first(matches: &mut Vec<(u32, u32)>, limit: usize) {
    let order = |&(score, number): &(u32, u32)| (Reverse(score), number);
    if matches.len() > limit {
        matches.select_nth_unstable_by_key(limit, order);
        matches.truncate(limit);
    }
    matches.sort_unstable_by_key(order);
}

/// By what an entry is judged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judge {
    /// The whole path.
    Path,
    /// Each word by the name or by the folder, whichever has it better; by the whole path where neither has it.
    Parts,
}

/// What one thread of a search holds.
struct Scan<'a> {
    pattern: &'a Pattern,
    judge: Judge,
    matcher: Matcher,
    letters: Vec<char>,
    path: String,
    parent: u32,
    /// Length of the folder's path, and its score for each word.
    folder: usize,
    scores: Vec<Option<u16>>,
}

impl<'a> Scan<'a> {
    fn new(pattern: &'a Pattern, judge: Judge) -> Self {
        let matcher = Matcher::new(Config::DEFAULT.match_paths());
        let (letters, path, scores) = (Vec::new(), String::new(), Vec::new());
        Self { pattern, judge, matcher, letters, path, parent: u32::MAX, folder: 0, scores }
    }

    /// Makes the path of an entry; neighbours share their folder's.
    fn go_to(&mut self, catalog: &Catalog, item: &Item) {
        if self.parent == item.parent {
            self.path.truncate(self.folder);
        } else {
            self.path.clear();
            catalog.push_path(item.parent, &mut self.path);
            (self.parent, self.folder) = (item.parent, self.path.len());
            if self.judge == Judge::Parts {
                let folder = letters(&self.path, &mut self.letters);
                self.scores.clear();
                self.scores.extend(self.pattern.atoms.iter().map(|atom| atom.score(folder, &mut self.matcher)));
            }
        }
        self.path.push('/');
        self.path.push_str(catalog.name(item));
    }

    /// Of the entry whose path was made; `None`: it does not match.
    fn score(&mut self) -> Option<u32> {
        if self.judge == Judge::Path {
            return self.pattern.score(letters(&self.path, &mut self.letters), &mut self.matcher);
        }
        let mut sum = 0;
        for (atom, in_folder) in self.pattern.atoms.iter().zip(&self.scores) {
            let name = letters(&self.path[self.folder..], &mut self.letters);
            let score = match (atom.score(name, &mut self.matcher), in_folder) {
                (None, None) => atom.score(letters(&self.path, &mut self.letters), &mut self.matcher)?,
                (name, folder) => name.max(*folder)?,
            };
            sum += u32::from(score);
        }
        Some(sum)
    }
}

fn letters<'a>(text: &'a str, buffer: &'a mut Vec<char>) -> Utf32Str<'a> {
    if text.is_ascii() { Utf32Str::Ascii(text.as_bytes()) } else { Utf32Str::new(text, buffer) }
}

/// A search that goes on as somebody types: a query that only grows looks among what matched before, and one that was asked
/// before has its answer still.
#[derive(Default)]
pub struct Search(Vec<Asked>);

/// Each of them is narrower than the one before it.
struct Asked {
    query: Query,
    limit: usize,
    found: (Hits, Vec<u32>),
    /// Everything that matches is among these; `None`: among all. Shared as long as most of them match, so that the numbers
    /// that are kept for all keys are never more than four times those of the first.
    within: Option<Arc<[u32]>>,
}

impl Search {
    /// The `limit` best matches of a query, with their places among all entries.
    pub fn go(&mut self, catalog: &Catalog, query: &Query, limit: usize) -> (Hits, Vec<u32>) {
        let known = self.0.iter().position(|asked| asked.query == *query && asked.limit == limit);
        if let Some(place) = known {
            self.0.truncate(place + 1);
        } else {
            let wider = self.0.iter().rposition(|asked| query.is_narrower_than(&asked.query));
            self.0.truncate(wider.map_or(0, |place| place + 1));
            let mut within = self.0.last().and_then(|asked| asked.within.clone());
            let (found, all) = catalog.best(query, within.as_deref(), limit);
            let of = within.as_ref().map_or(catalog.len(), |within| within.len());
            if all.len() <= of / 4 * 3 {
                within = Some(all.into());
            }
            if self.0.len() >= KEPT {
                self.0.remove(0);
            }
            self.0.push(Asked { query: query.clone(), limit, found, within });
        }
        self.0.last().map_or_else(|| (Hits::default(), Vec::new()), |asked| asked.found.clone())
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

    /// A snapshot of so many folders with so many files in each.
    fn catalog(folders: u32, files: u32) -> Catalog {
        let mut catalog = Catalog::default();
        let mut push = |parent, name: &str, kind| {
            let item = Item {
                name: u32::try_from(catalog.names.len()).unwrap(),
                name_length: u32::try_from(name.len()).unwrap(),
                parent,
                owner: 0,
                kind,
                size: 0,
                modified: 0,
            };
            catalog.names.push_str(name);
            catalog.items.push(item);
            u32::try_from(catalog.items.len() - 1).unwrap()
        };
        push(u32::MAX, "", EntryKind::Folder);
        let made: Vec<u32> = (0..folders).map(|at| push(0, &format!("project-{at}"), EntryKind::Folder)).collect();
        for (at, folder) in made.into_iter().enumerate() {
            for file in 0..files {
                push(folder, &format!("report-{file}-{at}.txt"), EntryKind::File);
            }
        }
        catalog
    }

    #[test]
    fn among_very_many_entries_what_matches_is_known_exactly_and_the_best_are_found() {
        let catalog = catalog(300, 400);
        assert!(catalog.len() > MANY);
        for typed in ["report-77-12", "project-12 rep77", "pr12rep", "report !project-1", "^/project-299", "txt$ 5"] {
            let query = Query::parse(typed).unwrap();
            let all = catalog.matches(&query, None, Judge::Path);
            let hits = catalog.search(&query, 5);
            assert_eq!(hits.matching, all.len() as u64, "{typed}");
            // The very best by the whole path is among those that are shown.
            let mut best = all;
            first(&mut best, 1);
            let score = |found: &Found| {
                let at = (1..catalog.len()).find(|at| catalog.found(*at).path == found.path).unwrap();
                catalog.matches(&query, Some(&[u32::try_from(at).unwrap()]), Judge::Path)[0].0
            };
            assert_eq!(hits.best.first().map(score), best.first().map(|(score, _)| *score), "{typed}");
        }
    }

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
