//! A full data directory out of a chain of incremental base backups, by the server's own `pg_combinebackup`.
//!
//! It reads trees on a disk. A part that is in a snapshot, or in tars, is laid out in `INTO/chain/` first and removed after.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::{Spec, command, failed, folder, put, write};
use crate::backup::Place;
use crate::backup::base::{Base, Shape};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

const MANIFEST: &str = "backup_manifest";
/// Of what the program said, in bytes.
const SAID: usize = 4000;

/// Fills the data directory, which must be empty, and takes `global/pg_control` out of it again: its bytes.
pub(super) fn fill(spec: &Spec, ancestors: &[Base], progress: &Progress) -> Result<Vec<u8>> {
    let program = spec.programs.join("pg_combinebackup");
    if !program.is_file() {
        return Err(Error::operator(format!("there is no pg_combinebackup in {}", spec.programs.display()))
            .hint(format!("Install it: sudo apt-get install postgresql-client-{}.", spec.base.major)));
    }
    // The program follows the links of tablespaces, also into production's.
    let all = || ancestors.iter().rev().chain([spec.base]);
    if let Some((part, oid)) = all().find_map(|part| Some((part, part.tablespaces.keys().next()?))) {
        return Err(Error::refused(format!("{} is incremental and has tablespace {oid}", part.place.shown()))
            .hint("Combine the chain by hand, and name what comes of it as the base backup:")
            .hint(
                "pg_combinebackup FULL INCREMENTAL… -o FOLDER -T OLD=NEW, then lifeboat clone FOLDER --tablespace.",
            ));
    }
    let (data, chain) = (spec.into.join("data"), spec.into.join("chain"));
    let mut command = command(spec.programs, "pg_combinebackup")?;
    command.args(["--no-sync", "--no-manifest", "--output"]).arg(&data);
    folder(&chain)?;
    for (number, part) in all().enumerate() {
        command.arg(on_disk(part, &chain.join(number.to_string()), progress)?);
    }
    progress.begin("combining incremental base backups", Unit::Items, None);
    let cannot = |error| Error::operator("pg_combinebackup does not run").detail(error);
    // Its words go to a file: a pipe that nobody reads would stop it.
    let mut said = tempfile::tempfile().map_err(cannot)?;
    let words = said.try_clone().map_err(cannot)?;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(words).spawn().map_err(cannot)?;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(cannot)? {
            break status;
        }
        if let Err(cancelled) = progress.check() {
            let _ = child.kill();
            let _ = child.wait();
            return Err(cancelled);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    if !status.success() {
        let mut bytes = Vec::new();
        let read = std::io::Seek::rewind(&mut said).and_then(|()| said.read_to_end(&mut bytes));
        read.map_err(cannot)?;
        let from = bytes.len().saturating_sub(SAID);
        return Err(Error::backup("pg_combinebackup cannot make a full base backup of the chain")
            .detail(String::from_utf8_lossy(&bytes[from..]).trim_end())
            .hint("Check each base backup of the chain with pg_verifybackup, and that the server's user may read them.")
            .hint("An older full base backup and all WAL since lead to the same moment."));
    }
    fs::remove_dir_all(&chain).map_err(|error| failed(&chain, error))?;
    super::strip(&data)
}

/// Where a base backup is a tree that the program can read; `into` is where it is laid out otherwise, as it is.
fn on_disk(part: &Base, into: &Path, progress: &Progress) -> Result<PathBuf> {
    if let (Place::Disk(tree), Shape::Tree) = (&part.place, part.shape) {
        return std::path::absolute(tree).map_err(|error| failed(tree, error));
    }
    progress.begin(format!("unpacking {}", part.place.shown()), Unit::Bytes, None);
    folder(into)?;
    part.each(&BTreeMap::new(), progress, |member, stream| put(into, &member, stream, progress))?;
    // Beside tars, not in them.
    let manifest = into.join(MANIFEST);
    if !manifest.exists() && part.place.list("")?.iter().any(|node| node.name == MANIFEST) {
        write(&manifest, &mut part.place.open(MANIFEST)?)?;
    }
    Ok(into.to_owned())
}
