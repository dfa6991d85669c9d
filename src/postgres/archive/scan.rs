//! The data blocks of a custom archive. Each is a kind, the id of its entry, and lengths with bytes until a length of zero;
//! a block of large objects holds such a sequence for each object.
//!
//! An archive that was written to a pipe does not say where its blocks are. Then the way leads from one length to the
//! next, no further than to the block that is wanted, and what was passed is remembered, so that no part of an archive is
//! walked twice.

use std::collections::HashMap;
use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::input::Input;
use super::{READ_AHEAD, Source};
use crate::error::{Error, Result};
use crate::postgres::name::Name;

const BLOCK_DATA: u8 = 1;
const BLOCK_LARGE_OBJECTS: u8 = 3;

/// What is known of the blocks of an archive without offsets.
#[derive(Debug, Default)]
pub struct Scan {
    walked: Mutex<Walked>,
    /// The entries that have data. Their blocks come in the order of the table of contents, so a damaged id is found.
    ids: Vec<i32>,
}

#[derive(Debug, Default)]
struct Walked {
    /// Where the first block begins that was not passed yet.
    next: u64,
    /// How many blocks were passed.
    passed: usize,
    /// Where blocks begin, and how long they are once they were passed.
    blocks: HashMap<i32, (u64, Option<u64>)>,
}

impl Scan {
    /// `start` is where the table of contents ends.
    pub fn new(start: u64, ids: impl Iterator<Item = i32>) -> Self {
        Self { walked: Mutex::new(Walked { next: start, passed: 0, blocks: HashMap::new() }), ids: ids.collect() }
    }

    /// Where the block of an entry begins.
    pub fn find(&self, source: &Source, id: i32, table: &Name) -> Result<u64> {
        self.walk(source, id, table, |(offset, _)| Some(offset))
    }

    /// How many bytes the block of an entry takes.
    pub fn size(&self, source: &Source, id: i32, table: &Name) -> Result<u64> {
        self.walk(source, id, table, |(_, size)| size)
    }

    /// Walks until the wanted thing is known of the block. Others wait meanwhile, and then need not walk themselves.
    fn walk(
        &self,
        source: &Source,
        id: i32,
        table: &Name,
        known: impl Fn((u64, Option<u64>)) -> Option<u64>,
    ) -> Result<u64> {
        let mut walked = self.walked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = walked.blocks.get(&id).copied().and_then(&known) {
            return Ok(found);
        }
        let mut input = Input::new(source.open("")?, &source.label, READ_AHEAD)?;
        input.seek(walked.next)?;
        while input.remaining() > 0 {
            let begin = input.position();
            let (kind, block) = block_header(&mut input)?;
            if self.ids.get(walked.passed) != Some(&block) {
                return Err(Error::backup(format!(
                    "{} is damaged: the block at byte {begin} belongs to entry {block}, which the table of contents does not have there",
                    source.label
                ))
                .hint(super::HINT_DAMAGED));
            }
            walked.blocks.insert(block, (begin, None));
            if block == id
                && let Some(found) = known((begin, None))
            {
                return Ok(found);
            }
            pass(&mut input, kind)?;
            walked.next = input.position();
            walked.passed += 1;
            let size = input.position() - begin;
            walked.blocks.insert(block, (begin, Some(size)));
            if block == id
                && let Some(found) = known((begin, Some(size)))
            {
                return Ok(found);
            }
        }
        Err(Error::backup(format!("{} ends early: the data of {table} is not in it", source.label))
            .hint(super::HINT_DAMAGED))
    }
}

fn block_header(input: &mut Input) -> Result<(u8, i32)> {
    const WHAT: &str = "the start of a data block";
    let kind = input.byte(WHAT)?;
    if kind != BLOCK_DATA && kind != BLOCK_LARGE_OBJECTS {
        return Err(input.damaged(WHAT));
    }
    Ok((kind, input.integer(WHAT)?))
}

/// Passes over the rest of a block.
fn pass(input: &mut Input, kind: u8) -> Result<()> {
    if kind == BLOCK_DATA {
        return pass_chunks(input);
    }
    while input.large_object_id()? != 0 {
        pass_chunks(input)?;
    }
    Ok(())
}

fn pass_chunks(input: &mut Input) -> Result<()> {
    const WHAT: &str = "a chunk of a data block";
    loop {
        let length = input.integer(WHAT)?;
        match u64::try_from(length) {
            Ok(0) => return Ok(()),
            Ok(length) => input.skip(length, WHAT)?,
            Err(_) => return Err(input.damaged(WHAT)),
        }
    }
}

/// Opens the data of an entry, and checks that it is that entry's. `framing` counts the bytes that are not data, so that
/// the two together are what the block takes.
pub fn open_block(mut input: Input, offset: u64, id: i32, table: &Name, framing: Arc<AtomicU64>) -> Result<Blocks> {
    if offset >= input.length() {
        return Err(Error::backup(format!(
            "{} ends early: the data of {table} should be at byte {offset}, and it has {} bytes",
            input.label(),
            input.length()
        ))
        .hint(super::HINT_DAMAGED));
    }
    input.seek(offset)?;
    let (kind, found) = block_header(&mut input)?;
    if kind != BLOCK_DATA || found != id {
        return Err(Error::backup(format!(
            "{} is damaged: at byte {offset} is the data of entry {found} where that of entry {id}, {table}, should be",
            input.label()
        ))
        .hint(super::HINT_DAMAGED));
    }
    framing.fetch_add(input.position() - offset, Ordering::Relaxed);
    Ok(Blocks { input, left: 0, ended: false, framing })
}

/// The bytes of a block without the lengths between them.
pub struct Blocks {
    input: Input,
    /// Bytes left of the present chunk.
    left: u64,
    ended: bool,
    framing: Arc<AtomicU64>,
}

impl Blocks {
    fn next_chunk(&mut self) -> Result<()> {
        const WHAT: &str = "a chunk of a data block";
        let before = self.input.position();
        let length = self.input.integer(WHAT)?;
        self.framing.fetch_add(self.input.position() - before, Ordering::Relaxed);
        self.left = u64::try_from(length).map_err(|_| self.input.damaged(WHAT))?;
        if self.left > self.input.remaining() {
            return Err(self.input.ends_early(WHAT));
        }
        self.ended = self.left == 0;
        Ok(())
    }
}

impl BufRead for Blocks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 && !self.ended {
            self.next_chunk().map_err(io::Error::other)?;
        }
        if self.ended {
            return Ok(&[]);
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let bytes = self.input.fill_buf()?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(&bytes[..bytes.len().min(left)])
    }

    fn consume(&mut self, amount: usize) {
        self.input.consume(amount);
        self.left -= amount as u64;
    }
}

impl Read for Blocks {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let amount = ready.len().min(bytes.len());
        bytes[..amount].copy_from_slice(&ready[..amount]);
        self.consume(amount);
        Ok(amount)
    }
}
