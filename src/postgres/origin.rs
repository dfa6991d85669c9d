//! Where rows come from: a dump, or a cluster as of a moment that stands beside production.
//!
//! Of a clone the definitions are read as an archive too, one without rows, which its own `pg_dump` wrote: so everything that
//! is decided about tables is decided by the same code. Its rows are copied out as they are asked for, and lie nowhere between.

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_postgres::Client;

use super::archive::{Archive, Estimate, Table};
use super::cluster;
use super::name::{Name, quote_list};
use super::stage::Source;
use crate::error::{Error, Result};

/// A dump, or a clone's database.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The definitions, and of a dump the rows.
    pub archive: Archive,
    clone: Option<Clone>,
}

/// A database of a clone.
#[derive(Debug, Clone)]
struct Clone {
    folder: PathBuf,
    database: String,
    rows: Arc<HashMap<Name, u64>>,
}

/// Rows as COPY text, and how far they have been read.
pub struct Rows {
    /// To be read where reading may block.
    pub stream: Box<dyn Read + Send>,
    /// In bytes as they are stored.
    pub source: Source,
}

impl Origin {
    /// The rows are in the archive.
    pub fn dump(archive: Archive) -> Self {
        Self { archive, clone: None }
    }

    /// The rows are in a database of a clone; the archive has its definitions.
    pub fn clone_of(folder: PathBuf, database: &str, archive: &Archive, found: &cluster::Database) -> Self {
        let sizes = found.tables.iter().map(|(name, (bytes, _))| (name.clone(), *bytes)).collect();
        let rows = found.tables.iter().filter_map(|(name, (_, rows))| Some((name.clone(), (*rows)?))).collect();
        let clone = Clone { folder, database: database.into(), rows: Arc::new(rows) };
        Self { archive: archive.with_rows_elsewhere(&sizes), clone: Some(clone) }
    }

    /// Whether it is a clone.
    pub fn is_clone(&self) -> bool {
        self.clone.is_some()
    }

    /// In which encoding rows come. Sessions of a clone are asked for UTF8, and get what is there where the database knows
    /// none.
    pub fn encoding(&self) -> Option<&str> {
        let encoding = self.archive.header.encoding.as_deref();
        if self.is_clone() && encoding != Some("SQL_ASCII") { Some("UTF8") } else { encoding }
    }

    /// Connects to the clone, if it is one.
    pub(super) async fn connect(&self) -> Result<Option<Client>> {
        match &self.clone {
            Some(clone) => cluster::connect(&clone.folder, &clone.database).await.map(Some),
            None => Ok(None),
        }
    }

    /// How many rows a table has. May block.
    pub fn estimate(&self, table: &Table) -> Option<Estimate> {
        match &self.clone {
            None => self.archive.estimate(table).ok(),
            Some(clone) => clone.rows.get(&table.name).map(|rows| Estimate { rows: *rows, exact: false }),
        }
    }

    /// Counts a table's rows in a clone.
    pub async fn count(&self, table: &Name) -> Result<u64> {
        let clone = self.clone.as_ref().ok_or_else(|| Error::bug("a dump was asked as a clone is"))?;
        cluster::count(&clone.folder, &clone.database, table).await
    }

    /// The statements that bring the sequences of a clone to where they were.
    pub async fn sequences(&self) -> Result<Vec<String>> {
        match &self.clone {
            Some(clone) => cluster::sequences(&clone.folder, &clone.database).await,
            None => Ok(Vec::new()),
        }
    }

    /// How many large objects a clone has; they are not copied.
    pub async fn large_objects(&self) -> Result<u64> {
        match &self.clone {
            Some(clone) => cluster::large_objects(&clone.folder, &clone.database).await,
            None => Ok(0),
        }
    }

    /// Opens a table's rows.
    pub async fn rows(&self, table: &Table) -> Result<Rows> {
        let Some(clone) = &self.clone else {
            let (archive, from) = (self.archive.clone(), table.clone());
            let rows = tokio::task::spawn_blocking(move || archive.rows(&from)).await;
            let rows = rows.map_err(|error| Error::bug("a reading thread ended").detail(error))??;
            let source = Source { read: rows.compressed_bytes_read(), total: table.compressed_size };
            return Ok(Rows { stream: Box::new(rows), source });
        };
        let columns = quote_list(&table.copied);
        let stream = cluster::rows(&clone.folder, &clone.database, &table.name, &columns).await?;
        let read = Arc::new(AtomicU64::new(0));
        let source = Source { read: Arc::clone(&read), total: table.compressed_size };
        Ok(Rows { stream: Box::new(Counting { stream, read }), source })
    }
}

struct Counting<R> {
    stream: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let taken = self.stream.read(buffer)?;
        self.read.fetch_add(taken as u64, Ordering::Relaxed);
        Ok(taken)
    }
}
