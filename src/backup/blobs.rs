//! From the id of a blob to its proven bytes: the index, the copies of a blob, and the second try after a prune.

use std::sync::Arc;

use rustic_core::Id;

use super::index::{BlobKind, Copy, Index};
use super::storage::{self, Failure, Stored, Why};
use super::tree::{self, Node};
use super::{Repository, at_once, held};
use crate::error::{Error, Result};

/// Bytes of folder blobs whose content is kept.
const KEPT_TREES: usize = 8 << 20;

impl Repository {
    pub(super) fn tree(&self, id: &Id) -> Result<Arc<Vec<Node>>, Failure> {
        if let Some((_, _, nodes)) = held(&self.0.trees).iter().find(|(kept, _, _)| kept == id) {
            return Ok(nodes.clone());
        }
        let json = self.fetch(BlobKind::Tree, id)?;
        let nodes = tree::parse(&json).map_err(|error| self.damaged(&format!("folder {id}"), error))?;
        let nodes = Arc::new(nodes);
        let mut trees = held(&self.0.trees);
        trees.push_back((*id, json.len(), nodes.clone()));
        while trees.len() > 1 && trees.iter().map(|(_, size, _)| size).sum::<usize>() > KEPT_TREES {
            trees.pop_front();
        }
        Ok(nodes)
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

    /// The plain length of a folder's blob, as far as the index knows it.
    pub(super) fn tree_length(&self, id: &Id) -> Result<u32> {
        let copies = self.index()?.find(BlobKind::Tree, id).unwrap_or_default();
        Ok(copies.first().map_or(0, Copy::plain_length))
    }

    /// The bytes of a blob, proven by their SHA-256.
    pub(super) fn blob(&self, kind: BlobKind, id: &Id) -> Result<Vec<u8>> {
        Ok(self.fetch(kind, id)?)
    }

    /// Tries every copy of a blob, and once more after reading the index again when it was moved or is new.
    pub(super) fn fetch(&self, kind: BlobKind, id: &Id) -> Result<Vec<u8>, Failure> {
        let index = self.index()?;
        match self.fetch_by(kind, id, &index) {
            Err(failure) if failure.why == Why::Missing => {
                let again = self.reload()?;
                if Arc::ptr_eq(&index, &again) { Err(failure) } else { self.fetch_by(kind, id, &again) }
            }
            result => result,
        }
    }

    fn fetch_by(&self, kind: BlobKind, id: &Id, index: &Index) -> Result<Vec<u8>, Failure> {
        let mut failed = None;
        for copy in self.located(kind, id, index)? {
            match self.fetch_copy(id, &copy) {
                Ok(plain) => return Ok(plain),
                // A copy that is damaged is worth more words than one that is gone.
                Err(failure) if failed.is_none() || failure.why == Why::Damaged => failed = Some(failure),
                Err(_) => {}
            }
        }
        Err(failed.unwrap_or_else(|| self.not_indexed(id)))
    }

    fn fetch_copy(&self, id: &Id, copy: &Copy) -> Result<Vec<u8>, Failure> {
        let object = format!("blob {id} in pack {}", copy.pack);
        let sealed = self.0.storage.read_part(&copy.pack, copy.offset, copy.length);
        let sealed = sealed.inspect_err(|failure| self.remember(&object, failure))?;
        let plain = self.0.seal.blob(&sealed, copy.compressed_from).map_err(|words| self.damaged(&object, words))?;
        if storage::hash(&plain) == *id {
            return Ok(plain);
        }
        Err(self.damaged(&object, "its SHA-256 is not its id".into()))
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
