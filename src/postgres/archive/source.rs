//! Where a dump is: streams of one file, or of the files of a folder, opened as they are needed.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::sync::Arc;

use super::Compression;
use super::decode::Codec;
use crate::error::{Error, Result};

/// A stream that a dump is read from.
pub trait ReadSeek: Read + Seek + Send {}

impl<T: Read + Seek + Send> ReadSeek for T {}

type Open = dyn Fn(&str) -> Result<Box<dyn ReadSeek>> + Send + Sync;

/// Where a dump is: a file, or a folder of files. Streams of it are opened as they are needed, any number of times.
#[derive(Clone)]
pub struct Source {
    /// What to call the dump in errors: `backup/programme_db.dump`.
    pub(super) label: String,
    open: Arc<Open>,
    pub(super) folder: bool,
}

impl Source {
    /// A dump that is one file. `open` is only ever asked for `""`.
    pub fn file(
        label: impl Into<String>,
        open: impl Fn(&str) -> Result<Box<dyn ReadSeek>> + Send + Sync + 'static,
    ) -> Self {
        Self { label: label.into(), open: Arc::new(open), folder: false }
    }

    /// A dump in directory format. `open` is asked for names inside the folder: `toc.dat`, `3055.dat.gz`.
    pub fn folder(
        label: impl Into<String>,
        open: impl Fn(&str) -> Result<Box<dyn ReadSeek>> + Send + Sync + 'static,
    ) -> Self {
        Self { label: label.into(), open: Arc::new(open), folder: true }
    }

    /// A dump file or folder on this machine.
    pub fn path(path: &Path) -> Self {
        let root = path.to_owned();
        let open = move |name: &str| {
            let path = if name.is_empty() { root.clone() } else { root.join(name) };
            let file = File::open(&path)
                .map_err(|error| Error::operator(format!("cannot open {}", path.display())).detail(error))?;
            Ok(Box::new(file) as Box<dyn ReadSeek>)
        };
        let label = path.display().to_string();
        if path.is_dir() { Self::folder(label, open) } else { Self::file(label, open) }
    }

    /// Opens the dump, or a file of its folder.
    pub fn open(&self, name: &str) -> Result<Box<dyn ReadSeek>> {
        (self.open)(name)
    }

    /// Whether [`Source::open`] wants names; else it is only given `""`.
    pub fn is_folder(&self) -> bool {
        self.folder
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("label", &self.label).field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// Opens a data file of a folder. The table of contents names it without the suffix that tells its compression, and a
/// person may have changed that since.
pub fn open_file(source: &Source, name: &str, compression: Compression) -> Result<(Box<dyn ReadSeek>, Codec)> {
    let likely = Codec::of_file(compression);
    let others = [Codec::None, Codec::Gzip, Codec::Lz4, Codec::Zstd].into_iter().filter(|codec| *codec != likely);
    let mut first = None;
    for codec in [likely].into_iter().chain(others) {
        match source.open(&format!("{name}{}", codec.suffix())) {
            Ok(stream) => return Ok((stream, codec)),
            Err(error) => first = first.or(Some(error)),
        }
    }
    let error = first.unwrap_or_else(|| Error::bug("no name was tried for a data file"));
    let wrong = Error::backup(format!("cannot open {name} of {}", source.label));
    Err(wrong.detail(error.detail.unwrap_or(error.message)))
}
