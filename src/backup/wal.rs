//! An archive of WAL: which segments it holds, and how far they lead from a base backup without a gap.
//!
//! ```text
//!   base backup            end of backup                      a gap
//!   |start ------------------|end ======= window ==============|  ....  |------|
//!   timeline 1 ------------------------- fork ---> timeline 2 ------------------
//! ```
//!
//! Names follow PostgreSQL: `TTTTTTTTLLLLLLLLSSSSSSSS`, timeline, log and segment in hexadecimal, with `.partial` for one that
//! was still being received, and `.gz`, `.lz4` or `.zst` where whoever archives compresses. pgBackRest puts the SHA-1 of the
//! segment behind the name. What is not named so is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{EntryKind, Place};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// History and backup files are small; more of one is not read.
const MAX_TEXT: u64 = 1 << 20;
/// Timelines that one archive may have.
const MAX_HISTORIES: usize = 4096;
/// PostgreSQL's own limits of `--wal-segsize`.
const SEGMENT_SIZES: std::ops::RangeInclusive<u32> = (1 << 20)..=(1 << 30);

/// A position in the WAL, in bytes from its beginning. Shown and read as PostgreSQL does: `0/4004E98`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("no position in the WAL"))
    }
}

impl Lsn {
    /// Reads `0/4004E98`; `None` when it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (high, low) = text.trim().split_once('/')?;
        let part = |digits: &str| {
            let fit = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            fit.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
        };
        Some(Self(u64::from(part(high)?) << 32 | u64::from(part(low)?)))
    }
}

/// How the bytes of a segment are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// As PostgreSQL wrote it.
    Whole,
    /// By gzip.
    Gzip,
    /// By lz4.
    Lz4,
    /// By zstd.
    Zstd,
    /// Whole, and still being received when it was stored: its end may be missing.
    Partial,
}

/// One file of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// The name of the file, with its suffix.
    pub file: String,
    /// In bytes, as stored.
    pub size: u64,
    /// How it is stored.
    pub form: Form,
}

/// Timeline, and number from the beginning of all WAL.
pub type Key = (u32, u64);

/// The timelines that led to one, oldest first: each with where the next one left it.
pub type History = Vec<(u32, Lsn)>;

/// A timeline, and where it left the one before it.
pub type Fork = (u32, Lsn);

/// What an archive holds.
#[derive(Clone)]
pub struct Wal {
    /// The folder.
    pub place: Place,
    /// In bytes.
    pub segment_size: u32,
    /// The cluster that wrote it.
    pub system: u64,
    /// By timeline and number; of several forms of one the first of [`Form`].
    pub segments: BTreeMap<Key, Segment>,
    /// By timeline.
    pub histories: BTreeMap<u32, History>,
    /// Segments that are too short, in words: being copied right now, or cut off. They are not used.
    pub cut: Vec<String>,
    /// The names of `.backup` files.
    backups: BTreeSet<String>,
}

/// What the first page of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The cluster that wrote it.
    pub system: u64,
    /// In bytes.
    pub segment_size: u32,
    /// Where it begins.
    pub begins: Lsn,
}

impl Head {
    /// Reads the first 40 bytes of a segment.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize, length: usize| {
            bytes.get(at..at + length)?.iter().rev().try_fold(0_u64, |sum, byte| Some(sum << 8 | u64::from(*byte)))
        };
        // XLP_LONG_HEADER of `xlp_info`: only the first page of a segment has what we ask for.
        if number(2, 2)? & 2 == 0 {
            return None;
        }
        let segment_size = u32::try_from(number(32, 4)?).ok()?;
        let fit = SEGMENT_SIZES.contains(&segment_size) && segment_size.is_power_of_two();
        fit.then_some(Self { system: number(24, 8)?, segment_size, begins: Lsn(number(8, 8)?) })
    }
}

/// The timeline, and the rest of the name in one number that still depends on the segment size.
fn digits(name: &str) -> Option<(u32, u32, u32)> {
    let fit = name.len() == 24 && name.bytes().all(|letter| matches!(letter, b'0'..=b'9' | b'A'..=b'F'));
    let part = |at: usize| u32::from_str_radix(&name[at..at + 8], 16).ok();
    if fit { Some((part(0)?, part(8)?, part(16)?)) } else { None }
}

/// The name of an archived file and its suffix, without what leads to it, and without the SHA-1 that pgBackRest puts between.
fn parts(file: &str) -> (&str, &str) {
    let name = file.rsplit_once('/').map_or(file, |(_, name)| name);
    let (stem, suffix) = name.split_once('.').unwrap_or((name, ""));
    let hashed = |hash: &str| hash.len() == 40 && hash.bytes().all(|letter| letter.is_ascii_hexdigit());
    (stem.split_once('-').filter(|(_, hash)| hashed(hash)).map_or(stem, |(stem, _)| stem), suffix)
}

/// Timeline and number of a segment by its name without suffix.
pub fn key(name: &str, segment_size: u32) -> Option<Key> {
    let (timeline, log, segment) = digits(name)?;
    let per_log = (1_u64 << 32) / u64::from(segment_size);
    (u64::from(segment) < per_log).then(|| (timeline, u64::from(log) * per_log + u64::from(segment)))
}

/// The name of a segment, without suffix.
pub fn name((timeline, number): Key, segment_size: u32) -> String {
    let per_log = (1_u64 << 32) / u64::from(segment_size);
    format!("{timeline:08X}{:08X}{:08X}", number / per_log, number % per_log)
}

impl Wal {
    /// Lists an archive, and reads what its first and last segments say of themselves.
    ///
    /// Errors: there is no segment in it, or segments of different clusters.
    pub fn open(place: Place, progress: &Progress) -> Result<Self> {
        let shown = place.shown();
        progress.begin(format!("listing the WAL in {shown}"), Unit::Items, None);
        let (mut named, mut backups, mut histories) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        for node in place.list("")?.iter().filter(|node| node.kind == EntryKind::File) {
            progress.advance(1);
            let (stem, suffix) = parts(&node.name);
            let form = match suffix {
                "" => Some(Form::Whole),
                "gz" => Some(Form::Gzip),
                "lz4" => Some(Form::Lz4),
                "zst" => Some(Form::Zstd),
                "partial" => Some(Form::Partial),
                _ => None,
            };
            if let (Some(form), Some(digits)) = (form, digits(stem)) {
                let segment = Segment { file: node.name.clone(), size: node.size, form };
                let kept = named.entry(digits).or_insert_with(|| segment.clone());
                if segment.form < kept.form {
                    *kept = segment;
                }
            } else if suffix.ends_with("backup") && digits(stem).is_some() {
                backups.insert(node.name.clone());
            } else if suffix == "history" && stem.len() == 8 && histories.len() < MAX_HISTORIES {
                let Ok(timeline) = u32::from_str_radix(stem, 16) else { continue };
                histories.insert(timeline, history(&text(&place, &node.name)?));
            }
        }
        let Some(first) = named.values().next() else {
            return Err(Error::operator(format!("there is no WAL in {shown}"))
                .hint("Give the folder that archive_command or pg_receivewal fills: files of 24 hexadecimal digits.")
                .hint("Compressed segments are read by the endings .gz, .lz4 and .zst; .bz2 is not."));
        };
        let head = read_head(&place, first)?;
        let size = head.segment_size;
        let segments = named.into_iter().filter_map(|((timeline, log, number), segment)| {
            Some((key(&format!("{timeline:08X}{log:08X}{number:08X}"), size)?, segment))
        });
        let segments = segments.collect();
        let mut wal =
            Self { place, segment_size: size, system: head.system, segments, histories, cut: Vec::new(), backups };
        wal.leave_out_short();
        wal.ends_agree()?;
        Ok(wal)
    }

    /// A server refuses a segment that is too short, and ends. An `archive_command` that copies makes one for a moment.
    fn leave_out_short(&mut self) {
        let size = u64::from(self.segment_size);
        let short = |_: &Key, segment: &mut Segment| segment.form == Form::Whole && segment.size < size;
        self.cut = self
            .segments
            .extract_if(.., short)
            .map(|(_, segment)| {
                let (has, whole) = (crate::text::count(segment.size), crate::text::count(size));
                format!(
                    "{} is cut off, or being copied right now: it has {has} of {whole} bytes, and is not used",
                    segment.file
                )
            })
            .collect();
    }

    /// The first and the last segment of every timeline are of one cluster, and what their names say. Last ones that hold older
    /// WAL are left out: a server renames segments ahead of time, and who copies its `pg_wal` copies them too.
    fn ends_agree(&mut self) -> Result<()> {
        let timelines: BTreeSet<u32> = self.segments.keys().map(|(timeline, _)| *timeline).collect();
        for timeline in timelines {
            let all = (timeline, 0)..=(timeline, u64::MAX);
            while let Some((key, segment)) = self.segments.range(all.clone()).next_back() {
                let (key, head) = (*key, read_head(&self.place, segment)?);
                if head.system != self.system || head.begins.0 >= key.1 * u64::from(self.segment_size) {
                    self.agrees(key, head)?;
                    break;
                }
                self.segments.remove(&key);
            }
            if let Some((key, segment)) = self.segments.range(all).next() {
                self.agrees(*key, read_head(&self.place, segment)?)?;
            }
        }
        Ok(())
    }

    /// Whether a segment is of this archive's cluster and what its name says.
    pub fn agrees(&self, key: Key, head: Head) -> Result<()> {
        let file = name(key, self.segment_size);
        if head.system != self.system {
            return Err(Error::refused(format!(
                "the archive {} mixes two clusters: segment {file} is of system {}, others of {}",
                self.place.shown(),
                head.system,
                self.system
            ))
            .hint(
                "Sort the archive by cluster: pg_waldump shows what a segment is of, and each needs its own folder.",
            ));
        }
        if head.begins.0 != key.1 * u64::from(self.segment_size) {
            return Err(Error::backup(format!(
                "segment {file} holds the WAL at {}, not what its name says",
                head.begins
            ))
            .hint("Fetch the segment again from where it was archived first."));
        }
        Ok(())
    }

    /// Opens a segment; what comes is as PostgreSQL wrote it, and never more than a segment holds.
    pub fn read(&self, segment: &Segment) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(opened(&self.place, segment)?.take(u64::from(self.segment_size))))
    }

    /// What the `.backup` file of a base backup says, if the archive has it.
    pub fn backup_file(&self, (timeline, start): (u32, Lsn)) -> Result<Option<String>> {
        let size = u64::from(self.segment_size);
        let segment = name((timeline, start.0 / size), self.segment_size);
        let file = format!("{segment}.{:08X}.backup", start.0 % size);
        if self.backups.contains(&file) { text(&self.place, &file).map(Some) } else { Ok(None) }
    }
}

/// The first bytes of a segment of an archive.
fn read_head(place: &Place, segment: &Segment) -> Result<Head> {
    head(&mut opened(place, segment)?, &segment.file).map(|(head, _)| head)
}

/// Reads what a segment says of itself, and hands back what was read for it.
pub fn head(stream: &mut dyn Read, file: &str) -> Result<(Head, Vec<u8>)> {
    let mut bytes = Vec::new();
    let cannot = |error| Error::from_read(error, || format!("cannot read segment {file}"));
    stream.take(40).read_to_end(&mut bytes).map_err(cannot)?;
    let head = Head::parse(&bytes).ok_or_else(|| {
        Error::backup(format!("{file} is no WAL segment: its first page is not one"))
            .hint("Fetch it again from where it was archived first, or take it out of the folder: a gap is then shown.")
    })?;
    Ok((head, bytes))
}

fn opened(place: &Place, segment: &Segment) -> Result<Box<dyn Read + Send>> {
    let stream = place.open(&segment.file)?;
    Ok(match segment.form {
        Form::Whole | Form::Partial => Box::new(stream),
        Form::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(stream)),
        Form::Gzip => Box::new(flate2::read::MultiGzDecoder::new(stream)),
        Form::Zstd => Box::new(zstd::Decoder::new(stream).map_err(|error| {
            Error::backup(format!("{} is not compressed by zstd", segment.file))
                .detail(error)
                .hint("Fetch it again from where it was archived first.")
        })?),
    })
}

/// A small text file in a folder.
pub(super) fn text(place: &Place, file: &str) -> Result<String> {
    let mut bytes = Vec::new();
    let cannot = |error| Error::from_read(error, || format!("cannot read {file} of {}", place.shown()));
    place.open(file)?.take(MAX_TEXT).read_to_end(&mut bytes).map_err(cannot)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A `.history` file: a line for each timeline that led here, `1<tab>0/4000000<tab>reason`.
fn history(text: &str) -> History {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.parse().ok()?, Lsn::parse(words.next()?)?))
    };
    text.lines().filter_map(line).collect()
}

/// How far the WAL leads from a base backup on one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The one on which it ends.
    pub timeline: u32,
    /// Where the base backup ended: nothing before it can be reached.
    pub from: Lsn,
    /// Where the last segment before a gap ends; no more than that can be reached.
    pub to: Lsn,
    /// The segments without a gap, in order.
    #[serde(skip)]
    pub segments: Vec<Key>,
    /// What is missing after them, while there are segments still later.
    pub gaps: Vec<Gap>,
}

/// Segments that are missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The name of the first that is missing.
    pub first: String,
    /// The name of the last that is missing.
    pub last: String,
    /// How many there are.
    pub segments: u64,
}

impl Window {
    /// Whether the WAL leads past the end of the base backup: without that nothing can be reached.
    pub fn is_open(&self) -> bool {
        !self.segments.is_empty() && self.to > self.from
    }
}

/// A base backup as far as WAL is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where replay has to begin.
    pub start: Lsn,
    /// Where the backup ended.
    pub end: Lsn,
    /// On which it was made.
    pub timeline: u32,
}

/// The windows of a base backup, by timeline, and the timelines that left its own before the backup had ended: from this
/// backup they cannot be reached.
pub fn windows(
    base: Span,
    has: &BTreeSet<Key>,
    histories: &BTreeMap<u32, History>,
    segment_size: u32,
) -> (Vec<Window>, Vec<Fork>) {
    let (mut open, mut forked) = (vec![window(base, base.timeline, &[], has, segment_size)], Vec::new());
    for (timeline, history) in histories {
        let Some(place) = history.iter().position(|(parent, _)| *parent == base.timeline) else { continue };
        if history[place].1 < base.end {
            forked.push((*timeline, history[place].1));
        } else {
            open.push(window(base, *timeline, &history[place..], has, segment_size));
        }
    }
    (open, forked)
}

fn window(base: Span, timeline: u32, history: &[(u32, Lsn)], has: &BTreeSet<Key>, segment_size: u32) -> Window {
    let size = u64::from(segment_size);
    // Which segments are looked for under which timeline; the segment of a fork is stored on both sides, and as PostgreSQL
    // does, the newer one is taken.
    let mut begin = base.start.0 / size;
    let mut present: BTreeMap<u64, u32> = BTreeMap::new();
    let last = [(timeline, Lsn(u64::MAX))];
    for (on, until) in history.iter().chain(&last) {
        let numbers = has.range((*on, begin)..=(*on, until.0 / size)).map(|(_, number)| (*number, *on));
        present.extend(numbers);
        begin = until.0 / size;
    }
    let on = |number: u64| history.iter().find(|(_, until)| number < until.0 / size).map_or(timeline, |(on, _)| *on);
    let (mut segments, mut gaps) = (Vec::new(), Vec::new());
    let mut expected = base.start.0 / size;
    for (number, found_on) in present {
        if number > expected {
            let named = |number: u64| name((on(number), number), segment_size);
            gaps.push(Gap { first: named(expected), last: named(number - 1), segments: number - expected });
        }
        if gaps.is_empty() {
            segments.push((found_on, number));
        }
        expected = number.saturating_add(1);
    }
    let to = segments.last().map_or(base.start, |(_, number)| Lsn((number + 1) * size));
    if segments.is_empty() && gaps.is_empty() {
        let first = name((on(expected), expected), segment_size);
        gaps.push(Gap { last: first.clone(), first, segments: 1 });
    }
    Window { timeline, from: base.end, to, segments, gaps }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB16: u32 = 16 << 20;
    const BASE: Span = Span { start: Lsn(2 * (MB16 as u64) + 0x28), end: Lsn(2 * (MB16 as u64) + 0x100), timeline: 1 };

    fn set(keys: &[Key]) -> BTreeSet<Key> {
        keys.iter().copied().collect()
    }

    #[test]
    fn names_and_positions_are_read_and_written_as_postgresql_does() {
        assert_eq!(key("000000020000000A000000FF", MB16), Some((2, 0xA * 256 + 255)));
        assert_eq!(name((2, 0xA * 256 + 255), MB16), "000000020000000A000000FF");
        assert_eq!(key("000000020000000A00000100", MB16), None);
        assert_eq!(key("00000002000000000000000g", MB16), None);
        assert_eq!(Lsn::parse("A/4004E98").map(|lsn| lsn.to_string()).as_deref(), Some("A/4004E98"));
        for wrong in ["", "1", "/", "1/", "x/1", "1/123456789", "-1/0", "+1/0"] {
            assert_eq!(Lsn::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_in_an_archive_are_taken_apart() {
        let (segment, sha1) = ("000000020000000A000000FF", "7cf46bd9d4048523104fb499aad20f81a46fd342");
        assert_eq!(parts(&format!("1/15-1/000000020000000A/{segment}-{sha1}.gz")), (segment, "gz"));
        assert_eq!(parts(&format!("{segment}-{sha1}")), (segment, ""));
        assert_eq!(parts("1/15-1/00000002.history"), ("00000002", "history"));
        assert_eq!(parts(&format!("{segment}.partial")), (segment, "partial"));
        assert_eq!(parts(&format!("{segment}-{}", &sha1[1..])).0.len(), 64);
    }

    #[test]
    fn a_window_ends_at_the_first_gap_and_names_every_gap() {
        let has = set(&[(1, 1), (1, 2), (1, 3), (1, 6), (1, 8)]);
        let (windows, forked) = windows(BASE, &has, &BTreeMap::new(), MB16);
        assert_eq!((windows.len(), forked.len()), (1, 0));
        assert_eq!(windows[0].segments, [(1, 2), (1, 3)]);
        assert_eq!(windows[0].to, Lsn(4 * u64::from(MB16)));
        let gaps: Vec<_> = windows[0].gaps.iter().map(|gap| (gap.first.as_str(), gap.segments)).collect();
        assert_eq!(gaps, [("000000010000000000000004", 2), ("000000010000000000000007", 1)]);
    }

    #[test]
    fn without_the_first_segment_nothing_is_reached() {
        for has in [set(&[(1, 3)]), set(&[])] {
            let (windows, _) = windows(BASE, &has, &BTreeMap::new(), MB16);
            assert!(!windows[0].is_open());
            assert_eq!(windows[0].gaps[0].first, "000000010000000000000002");
        }
    }

    #[test]
    fn a_fork_makes_two_windows_and_one_before_the_backup_ended_none() {
        let has = set(&[(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (2, 5), (3, 2)]);
        let fork = Lsn(3 * u64::from(MB16) + 77);
        let histories = [(2, vec![(1, fork)]), (3, vec![(1, Lsn(BASE.end.0 - 1))])].into();
        let (windows, forked) = windows(BASE, &has, &histories, MB16);
        assert_eq!(windows[0].segments, [(1, 2), (1, 3), (1, 4)]);
        assert_eq!(windows[1].segments, [(1, 2), (2, 3), (2, 4), (2, 5)]);
        assert_eq!(forked, [(3, Lsn(BASE.end.0 - 1))]);
    }

    #[test]
    fn a_far_segment_costs_no_walk_through_the_gap() {
        let (windows, _) = windows(BASE, &set(&[(1, 2), (1, u64::MAX / u64::from(MB16) - 1)]), &BTreeMap::new(), MB16);
        assert_eq!(windows[0].gaps.len(), 1);
    }
}
