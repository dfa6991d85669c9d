//! A data directory out of a repository of pgBackRest, by its own restore.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Spec, failed, own, strip};
use crate::backup::pgbackrest::Stanza;
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

/// Fills the data directory, which must be empty, and takes `global/pg_control` out of it again: its bytes.
pub(super) fn fill(spec: &Spec, stanza: &Stanza, progress: &Progress) -> Result<Vec<u8>> {
    let (data, tablespaces) = (spec.into.join("data"), spec.into.join("tablespaces"));
    let outcome = stanza.restore(&data, &tablespaces, &spec.into.join("locks"), progress);
    // Also when it failed: what it left behind must not be startable.
    let control = strip(&data);
    outcome?;
    progress.begin("looking through what was restored", Unit::Items, None);
    take(&data, &tablespaces, progress)?;
    take(&tablespaces, &tablespaces, progress)?;
    control
}

/// Gives everything in a folder to the server's user.
///
/// Errors: a link leads anywhere but into the clone's own tablespaces.
fn take(root: &Path, tablespaces: &Path, progress: &Progress) -> Result<()> {
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).map_err(|error| failed(&folder, error))? {
            progress.check()?;
            progress.advance(1);
            let entry = entry.map_err(|error| failed(&folder, error))?;
            let path: PathBuf = entry.path();
            let kind = entry.file_type().map_err(|error| failed(&path, error))?;
            if kind.is_symlink() {
                let target = fs::read_link(&path).map_err(|error| failed(&path, error))?;
                let known = folder.ends_with("data/pg_tblspc") && target.parent() == Some(tablespaces);
                if !known {
                    return Err(Error::refused(format!(
                        "pgbackrest made a link out of the clone: {} leads to {}",
                        path.display(),
                        target.display()
                    ))
                    .hint(
                        "Take link-map, link-all and tablespace-map out of its configuration, or restore by it alone.",
                    ));
                }
            }
            own(&path)?;
            if kind.is_dir() {
                open.push(path);
            }
        }
    }
    Ok(())
}
