//! The evidence after COMMIT: production is read again, and compared with what was approved.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::super::connect::server_error;
use super::super::name::Name;
use super::super::stage::Scratch;
use super::apply::differing;
use super::check::orphans;
use super::frozen::{self, undo_schema};
use super::{ChangeSet, Proof, TableProof};
use crate::error::{Error, Result};

/// Compares the written rows with the backup again, and checks every foreign key of the written tables whole.
pub async fn prove(client: &Client, scratch: &Scratch, changes: &ChangeSet) -> Result<Proof> {
    let works = frozen::load(client, &scratch.schema).await?;
    // Scratch space is unlogged: a server that crashed has emptied it, and nothing would differ from nothing.
    if frozen::hash(client, scratch, &works).await? != changes.hash {
        return Err(Error::target("the frozen rows are gone, so what was written cannot be compared with them")
            .hint("The merge is committed. Its pre-images are kept: undo is possible.")
            .hint("The server may have crashed since. Compare once more with a new recovery to see where it stands."));
    }
    let ours = transaction(client, &scratch.recovery).await?;
    let mut tables = Vec::with_capacity(works.len());
    let mut keys = BTreeMap::new();
    for work in &works {
        let name = &work.table.live.name;
        let sql = differing(work, &work.change(scratch), Some(ours));
        let doing = format!("comparing {name} again");
        let row = client.query_one(&sql, &[]).await.map_err(|error| server_error(error, &doing))?;
        let number = |place| row.get::<_, i64>(place).unsigned_abs();
        let written = changes.tables.iter().find(|table| table.table == *name);
        tables.push(TableProof {
            table: name.clone(),
            written: written.map_or(0, |table| table.inserts + table.updates + table.deletes),
            differing: number(0),
            moved_since: number(1),
        });
        for key in work.table.live.parents.iter().chain(&work.table.live.children) {
            keys.insert((key.child.clone(), key.constraint.clone()), key);
        }
    }
    let mut foreign_keys = Vec::with_capacity(keys.len());
    for ((child, constraint), key) in keys {
        foreign_keys.push((format!("{child}: {constraint}"), orphans(client, key).await?));
    }
    Ok(Proof { tables, foreign_keys })
}

/// What `xmin` says of a row that the merge wrote last.
pub(super) async fn transaction(client: &Client, recovery: &str) -> Result<u32> {
    let table = Name::new(undo_schema(recovery), "applied").sql();
    // A row keeps 32 bits of it; when the other 32 have moved on, another transaction may bear the same number.
    let sql =
        format!("SELECT transaction::text, pg_catalog.pg_current_xact_id()::text FROM {table} WHERE step = 'merge'");
    let row =
        client.query_one(&sql, &[]).await.map_err(|error| server_error(error, "reading the token of the merge"))?;
    let number = |place| {
        row.get::<_, &str>(place)
            .parse::<u64>()
            .map_err(|error| Error::bug("a transaction has no number").detail(error))
    };
    let (ours, now) = (number(0)?, number(1)?);
    if now.saturating_sub(ours) > u64::from(u32::MAX) {
        return Err(Error::refused("the merge is too long ago to tell its rows from those written since")
            .hint("The pre-images are still there; compare them with production by hand."));
    }
    // The remainder fits.
    Ok(u32::try_from(ours % (u64::from(u32::MAX) + 1)).unwrap_or_default())
}
