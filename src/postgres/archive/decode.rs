//! Decompression as a stream: what is packed goes in as it is read, text comes out, and the end is only an end when the
//! format says so and nothing follows it.

use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fdeflate::{DecompressionError, Decompressor};
use flate2::bufread::MultiGzDecoder;
use lz4_flex::frame::FrameDecoder;

use super::Compression;

/// Compressed bytes.
pub type Packed = Box<dyn BufRead + Send>;

/// How bytes are compressed. `pg_dump`'s "gzip" is a zlib stream inside a custom archive and a gzip file elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    None,
    Zlib,
    Gzip,
    Lz4,
    Zstd,
}

impl Codec {
    pub fn of_blocks(compression: Compression) -> Self {
        if compression == Compression::Gzip { Self::Zlib } else { Self::of_file(compression) }
    }

    pub fn of_file(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None,
            Compression::Gzip => Self::Gzip,
            Compression::Lz4 => Self::Lz4,
            Compression::Zstd => Self::Zstd,
        }
    }

    /// What `pg_dump` appends to the name of a file that is so compressed.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::None | Self::Zlib => "",
            Self::Gzip => ".gz",
            Self::Lz4 => ".lz4",
            Self::Zstd => ".zst",
        }
    }
}

/// Tells a compressed file by its first bytes.
pub fn compression_of(first_bytes: &[u8]) -> Compression {
    match first_bytes {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x04, 0x22, 0x4d, 0x18, ..] => Compression::Lz4,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// Text out of packed bytes.
pub enum Decoder {
    None(Counted),
    Zlib(Box<Inflate>),
    Gzip(Box<MultiGzDecoder<Counted>>),
    Lz4(Box<FrameDecoder<Counted>>),
    Zstd(zstd::stream::read::Decoder<'static, Counted>),
}

impl Decoder {
    pub fn new(codec: Codec, packed: Packed, taken: Arc<AtomicU64>) -> io::Result<Self> {
        let packed = Counted { packed, taken };
        Ok(match codec {
            Codec::None => Self::None(packed),
            Codec::Zlib => Self::Zlib(Box::new(Inflate::new(packed))),
            Codec::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(packed))),
            Codec::Lz4 => Self::Lz4(Box::new(FrameDecoder::new(packed))),
            Codec::Zstd => Self::Zstd(zstd::stream::read::Decoder::with_buffer(packed)?),
        })
    }

    /// Called after the last text was read: whether the packed bytes end there as well.
    pub fn finish(&mut self) -> io::Result<()> {
        let packed = match self {
            Self::None(packed) => packed,
            Self::Zlib(decoder) => &mut decoder.packed,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Lz4(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
        };
        if packed.fill_buf()?.is_empty() {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "bytes follow the end of the compressed data"))
    }
}

impl Read for Decoder {
    fn read(&mut self, text: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(packed) => packed.read(text),
            Self::Zlib(decoder) => decoder.read(text),
            Self::Gzip(decoder) => decoder.read(text),
            Self::Lz4(decoder) => decoder.read(text),
            Self::Zstd(decoder) => decoder.read(text),
        }
    }
}

/// So far back a zlib stream refers to what it has said before.
const HISTORY: usize = 32 << 10;
/// Text that is made at once.
const MADE: usize = 128 << 10;

/// A zlib stream, decoded by `fdeflate`: rows of a custom archive are decoded twice in a whole recovery, and most of the
/// time of reading a dump is spent here. It is 1.3 times as fast as zlib-rs on rows of hexadecimal text, which hardly repeat.
///
/// Up to three bytes after the end are not missed: they stay in its register. The checksum was right then.
pub struct Inflate {
    packed: Counted,
    state: Decompressor,
    /// What was made last, with what may be referred to before it.
    text: Box<[u8]>,
    /// What of it was not handed on yet.
    left: Range<usize>,
}

impl Inflate {
    fn new(packed: Counted) -> Self {
        let text = vec![0; HISTORY + MADE].into_boxed_slice();
        Self { packed, state: Decompressor::new(), text, left: 0..0 }
    }

    /// Makes text when none is left; none is made only at the end of the stream.
    fn advance(&mut self) -> io::Result<()> {
        while self.left.is_empty() && !self.state.is_done() {
            let mut at = self.left.end;
            if at > HISTORY {
                self.text.copy_within(at - HISTORY..at, 0);
                at = HISTORY;
            }
            let packed = self.packed.fill_buf()?;
            // Text may wait in the decoder even when no bytes are left for it.
            let (taken, made) = self.state.read(packed, &mut self.text, at, packed.is_empty()).map_err(broken)?;
            self.packed.consume(taken);
            self.left = at..at + made;
        }
        Ok(())
    }
}

fn broken(error: DecompressionError) -> io::Error {
    match error {
        DecompressionError::InsufficientInput => io::ErrorKind::UnexpectedEof.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, format!("the compressed data is damaged: {error:?}")),
    }
}

impl Read for Inflate {
    fn read(&mut self, text: &mut [u8]) -> io::Result<usize> {
        self.advance()?;
        let length = text.len().min(self.left.len());
        text[..length].copy_from_slice(&self.text[self.left.start..][..length]);
        self.left.start += length;
        Ok(length)
    }
}

/// Counts the packed bytes that were taken, for whoever shows progress.
pub struct Counted {
    packed: Packed,
    taken: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.packed.read(bytes)?;
        self.taken.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl BufRead for Counted {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.packed.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.packed.consume(amount);
        self.taken.fetch_add(amount as u64, Ordering::Relaxed);
    }
}
