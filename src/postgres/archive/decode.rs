//! Decompression as a stream: what is packed goes in as it is read, text comes out, and the end is only an end when the
//! format says so and nothing follows it.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
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
    Zlib(Inflate),
    Gzip(MultiGzDecoder<Counted>),
    Lz4(Box<FrameDecoder<Counted>>),
    Zstd(zstd::stream::read::Decoder<'static, Counted>),
}

impl Decoder {
    pub fn new(codec: Codec, packed: Packed, taken: Arc<AtomicU64>) -> io::Result<Self> {
        let packed = Counted { packed, taken };
        Ok(match codec {
            Codec::None => Self::None(packed),
            Codec::Zlib => Self::Zlib(Inflate { packed, state: Decompress::new(true), ended: false }),
            Codec::Gzip => Self::Gzip(MultiGzDecoder::new(packed)),
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

/// A zlib stream. Unlike flate2's own reader it tells a stream that ended from one that was cut off.
pub struct Inflate {
    packed: Counted,
    state: Decompress,
    ended: bool,
}

impl Read for Inflate {
    fn read(&mut self, text: &mut [u8]) -> io::Result<usize> {
        while !self.ended && !text.is_empty() {
            let packed = self.packed.fill_buf()?;
            if packed.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (taken, made) = (self.state.total_in(), self.state.total_out());
            let status = self.state.decompress(packed, text, FlushDecompress::None).map_err(io::Error::other)?;
            let taken = usize::try_from(self.state.total_in() - taken).map_err(io::Error::other)?;
            let made = usize::try_from(self.state.total_out() - made).map_err(io::Error::other)?;
            self.packed.consume(taken);
            self.ended = status == Status::StreamEnd;
            if made > 0 {
                return Ok(made);
            }
            if taken == 0 && !self.ended {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the compressed data does not go on"));
            }
        }
        Ok(0)
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
