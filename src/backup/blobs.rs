//! From the id of a blob to its proven bytes: the index, the copies of a blob, and the second try after a prune.
//!
//! Many blobs at once are read in the order in which they lie in their packs, neighbours in one piece. What cannot be read or
//! proven that way is fetched by itself, which tries every copy and says what is wrong.

use std::sync::Arc;

use rustic_core::Id;
use sha2::{Digest as _, Sha256};

use super::index::{BlobKind, Copy, Index};
use super::storage::{self, Failure, Stored, Why};
use super::tree::{self, Node};
use super::{Repository, at_once, held};
use crate::error::{Error, Result};

/// Bytes of folder blobs whose content is kept.
const KEPT_TREES: usize = 8 << 20;
/// The most bytes of a pack that are read in one piece.
const PIECE: u32 = 4 << 20;
/// A piece is not cut smaller than this to give every thread one.
const SMALL_PIECE: u32 = 64 << 10;

/// A folder whose JSON is longer is never held as JSON.
pub(super) const WIDE: u32 = 16 << 20;
const WRONG_HASH: &str = "its SHA-256 is not its id";

/// A part of a pack, and which of the wanted blobs lie in it.
struct Piece {
    pack: Id,
    begin: u32,
    end: u32,
    blobs: Vec<(usize, Copy)>,
}

impl Repository {
    pub(super) fn tree(&self, id: &Id) -> Result<Arc<Vec<Node>>, Failure> {
        if let Some((_, _, nodes)) = held(&self.0.trees).iter().find(|(kept, _, _)| kept == id) {
            return Ok(nodes.clone());
        }
        let length = self.tree_length(id)?;
        let nodes = if length > WIDE {
            let mut nodes = Vec::new();
            self.stream_tree(id, |node| {
                nodes.push(node);
                Ok(())
            })?;
            nodes
        } else {
            self.parse_tree(id, &self.fetch(BlobKind::Tree, id)?)?
        };
        let nodes = Arc::new(nodes);
        let mut trees = held(&self.0.trees);
        trees.push_back((*id, length as usize, nodes.clone()));
        while trees.len() > 1 && trees.iter().map(|(_, size, _)| size).sum::<usize>() > KEPT_TREES {
            trees.pop_front();
        }
        Ok(nodes)
    }

    pub(super) fn parse_tree(&self, id: &Id, json: &[u8]) -> Result<Vec<Node>, Failure> {
        tree::parse(json).map_err(|error| self.damaged(&format!("folder {id}"), error))
    }

    /// The plain length of a folder's blob, from the index; 0 when it is not there, which fetching it will tell.
    pub(super) fn tree_length(&self, id: &Id) -> Result<u32, Failure> {
        let index = self.index()?;
        let copies = index.find(BlobKind::Tree, id).unwrap_or_default();
        Ok(copies.first().map_or(0, Copy::plain_length))
    }

    /// Hands on every node of a folder without holding its JSON, which for a million files is 400 MB: it is decompressed once
    /// to be proven, and once more to be read. An error of `each` ends it.
    pub(super) fn stream_tree(&self, id: &Id, mut each: impl FnMut(Node) -> Result<()>) -> Result<(), Failure> {
        let packed = self.fetch_with(BlobKind::Tree, id, |sealed, copy| {
            let packed = self.0.seal.packed(sealed, copy.compressed_from)?;
            let mut hash = Sha256::new();
            std::io::copy(&mut packed.read()?, &mut hash).map_err(|error| error.to_string())?;
            if Id::new(hash.finalize().into()) == *id { Ok(packed) } else { Err(WRONG_HASH.into()) }
        })?;
        let mut failed = None;
        let each = |node| {
            each(node).map_err(|error| {
                failed = Some(error);
                String::new()
            })
        };
        let read = packed.read().and_then(|json| tree::parse_stream(json, each));
        match failed {
            Some(error) => Err(Failure { why: Why::Other, error }),
            None => read.map_err(|words| self.damaged(&format!("folder {id}"), words)),
        }
    }

    /// The plain length of a blob, from the index.
    pub(super) fn blob_length(&self, id: &Id) -> Result<u32> {
        let copies = self.located(BlobKind::Data, id, &*self.index()?)?;
        if let Some(copy) = copies.first() {
            return Ok(copy.plain_length());
        }
        let copies = self.located(BlobKind::Data, id, &*self.reload()?)?;
        Ok(copies.first().map(Copy::plain_length).ok_or_else(|| self.not_indexed(id))?)
    }

    /// The bytes of a blob, proven by their SHA-256.
    pub(super) fn blob(&self, kind: BlobKind, id: &Id) -> Result<Vec<u8>> {
        Ok(self.fetch(kind, id)?)
    }

    pub(super) fn fetch(&self, kind: BlobKind, id: &Id) -> Result<Vec<u8>, Failure> {
        self.fetch_with(kind, id, |sealed, copy| self.proven(id, sealed, copy))
    }

    /// Tries every copy of a blob, and once more after reading the index again when it was moved or is new. `open` makes of the
    /// sealed bytes what is wanted, or says why they are damaged.
    fn fetch_with<T>(
        &self,
        kind: BlobKind,
        id: &Id,
        open: impl Fn(&[u8], &Copy) -> Result<T, String>,
    ) -> Result<T, Failure> {
        let index = self.index()?;
        match self.fetch_by(kind, id, &index, &open) {
            Err(failure) if failure.why == Why::Missing => {
                let again = self.reload()?;
                if Arc::ptr_eq(&index, &again) { Err(failure) } else { self.fetch_by(kind, id, &again, &open) }
            }
            result => result,
        }
    }

    fn fetch_by<T>(
        &self,
        kind: BlobKind,
        id: &Id,
        index: &Index,
        open: &impl Fn(&[u8], &Copy) -> Result<T, String>,
    ) -> Result<T, Failure> {
        let mut failed = None;
        for copy in self.located(kind, id, index)? {
            let object = format!("blob {id} in pack {}", copy.pack);
            let sealed = self.0.storage.read_part(&copy.pack, copy.offset, copy.length);
            let opened = sealed
                .inspect_err(|failure| self.remember(&object, failure))
                .and_then(|sealed| open(&sealed, &copy).map_err(|words| self.damaged(&object, words)));
            match opened {
                Ok(opened) => return Ok(opened),
                // A copy that is damaged is worth more words than one that is gone.
                Err(failure) if failed.is_none() || failure.why == Why::Damaged => failed = Some(failure),
                Err(_) => {}
            }
        }
        Err(failed.unwrap_or_else(|| self.not_indexed(id)))
    }

    /// The plain bytes of a blob, which are what its id says.
    fn proven(&self, id: &Id, sealed: &[u8], copy: &Copy) -> Result<Vec<u8>, String> {
        let plain = self.0.seal.blob(sealed, copy.compressed_from)?;
        if storage::hash(&plain) == *id { Ok(plain) } else { Err(WRONG_HASH.into()) }
    }

    /// Fetches many blobs in a few threads and hands each with its place to `work`; gives what that returned, in the order of
    /// `ids`. Memory: a piece and a blob for each thread, and what `work` keeps.
    pub(super) fn fetch_each<T: Send>(
        &self,
        kind: BlobKind,
        ids: &[Id],
        work: impl Fn(usize, Result<Vec<u8>, Failure>) -> T + Sync,
    ) -> Result<Vec<T>, Failure> {
        let index = self.index()?;
        let mut alone = Vec::new();
        let mut found = Vec::with_capacity(ids.len());
        for (number, id) in ids.iter().enumerate() {
            match index.find(kind, id).ok().and_then(|copies| copies.first().copied()) {
                Some(copy) => found.push((number, copy)),
                None => alone.push(number),
            }
        }
        let pieces = self.pieces(found);
        let read = at_once(self.parallel(), &pieces, |piece| {
            let sealed = self.0.storage.read_part(&piece.pack, piece.begin, piece.end - piece.begin);
            let work = |(number, copy): &(usize, Copy)| {
                let at = (copy.offset - piece.begin) as usize;
                let proven = sealed.as_ref().ok().and_then(|sealed| {
                    self.proven(&ids[*number], sealed.get(at..at + copy.length as usize)?, copy).ok()
                });
                (*number, work(*number, proven.map_or_else(|| self.fetch(kind, &ids[*number]), Ok)))
            };
            piece.blobs.iter().map(work).collect::<Vec<_>>()
        });
        let mut done: Vec<(usize, T)> = read.into_iter().flatten().collect();
        done.extend(alone.into_iter().map(|number| (number, work(number, self.fetch(kind, &ids[number])))));
        done.sort_unstable_by_key(|(number, _)| *number);
        Ok(done.into_iter().map(|(_, done)| done).collect())
    }

    /// Puts blobs together that lie near each other, into pieces that are enough for all threads.
    fn pieces(&self, mut found: Vec<(usize, Copy)>) -> Vec<Piece> {
        found.sort_unstable_by_key(|(_, copy)| (copy.pack, copy.offset));
        let total: u64 = found.iter().map(|(_, copy)| u64::from(copy.length)).sum();
        let share = u32::try_from(total / (2 * self.parallel() as u64)).unwrap_or(PIECE);
        let (most, gap) = (share.clamp(SMALL_PIECE, PIECE), self.0.storage.gap());
        let mut pieces: Vec<Piece> = Vec::new();
        for (number, copy) in found {
            // The index proves that this does not overflow.
            let end = copy.offset + copy.length;
            match pieces.last_mut() {
                Some(piece)
                    if piece.pack == copy.pack
                        && copy.offset <= piece.end.saturating_add(gap)
                        && end.saturating_sub(piece.begin) <= most =>
                {
                    piece.end = piece.end.max(end);
                    piece.blobs.push((number, copy));
                }
                _ => pieces.push(Piece { pack: copy.pack, begin: copy.offset, end, blobs: vec![(number, copy)] }),
            }
        }
        pieces
    }

    fn located(&self, kind: BlobKind, id: &Id, index: &Index) -> Result<Vec<Copy>, Failure> {
        index.find(kind, id).map_err(|words| self.damaged("the index", words))
    }

    fn not_indexed(&self, id: &Id) -> Failure {
        let error = Error::backup(format!("blob {id} is not in the index of repository {}", self.shown()));
        let damage = held(&self.0.damage);
        let error = damage.values().fold(error, |error, words| error.hint(format!("{words}.")));
        let error = error
            .hint("Other data of this repository is still usable: choose another recovery point or file.")
            .hint("Run `restic check`; where an index file is damaged, `restic rebuild-index` makes it anew from the packs.");
        Failure { why: Why::Missing, error }
    }

    fn index(&self) -> Result<Arc<Index>, Failure> {
        let mut held = held(&self.0.index);
        if let Some(index) = &*held {
            return Ok(index.clone());
        }
        let index = Arc::new(self.read_index()?);
        *held = Some(index.clone());
        Ok(index)
    }

    /// The index as it is now: the same one when no index file came or went.
    fn reload(&self) -> Result<Arc<Index>, Failure> {
        let mut held = held(&self.0.index);
        let mut files: Vec<Id> = self.0.storage.list(Stored::Index)?.into_iter().map(|(id, _)| id).collect();
        files.sort_unstable();
        if let Some(index) = &*held
            && index.files == files
        {
            return Ok(index.clone());
        }
        let index = Arc::new(self.read_index()?);
        *held = Some(index.clone());
        Ok(index)
    }

    /// Reads all index files. A damaged one is remembered, and what it alone knew is not found.
    fn read_index(&self) -> Result<Index, Failure> {
        const ATTEMPTS: usize = 3;
        let mut attempt = 1;
        'again: loop {
            let files = self.0.storage.list(Stored::Index)?;
            let read =
                at_once(self.parallel().min(4), &files, |(id, size)| (*id, self.document(Stored::Index, id, *size)));
            let mut index = Index::default();
            for (id, json) in read {
                match json {
                    Ok(json) => {
                        if let Err(words) = index.add(id, &json) {
                            self.damaged(&Stored::Index.file(&id), words);
                            index.files.push(id);
                        }
                    }
                    Err(failure) if failure.why == Why::Damaged => index.files.push(id),
                    // Replaced since it was listed: a backup or a prune has just ended.
                    Err(failure) if failure.why == Why::Missing && attempt < ATTEMPTS => {
                        attempt += 1;
                        continue 'again;
                    }
                    Err(failure) => return Err(failure),
                }
            }
            index.sort();
            return Ok(index);
        }
    }
}
