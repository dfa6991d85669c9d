//! The commands about recoveries that were begun: which there are, going on with one, ending it, its report.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::watch::Watch;
use super::{print, recovery_folder};
use crate::config::System;
use crate::error::{Error, Result};
use crate::postgres::cluster;
use crate::recovery::run::Standing;
use crate::recovery::worker::{Away, Workers};
use crate::recovery::{journal, laid_out, report};
use crate::text::clean;

/// How long a process that was asked to stop may take.
const STOPPING: Duration = Duration::from_secs(20);

pub fn status(state: &Path, as_json: bool) -> Result<()> {
    let recoveries: Vec<_> = journal::list(state)
        .into_iter()
        .map(|id| {
            let folder = state.join("recoveries").join(&id);
            let standing = Standing::of(&folder);
            let clone = journal::read(&folder).ok().and_then(|lines| laid_out(&lines).map(str::to_owned));
            let clone = clone.filter(|clone| cluster::state(Path::new(clone)).is_ok());
            (id, standing, clone)
        })
        .collect();
    if as_json {
        let rows: Vec<_> = recoveries
            .iter()
            .map(|(id, standing, clone)| {
                json!({ "recovery": id, "state": standing.word(), "told": standing.told(), "clone": clone })
            })
            .collect();
        return print(&json!({ "recoveries": rows }).to_string());
    }
    for (id, standing, clone) in &recoveries {
        print(&format!("{}  {}", clean(id), clean(&standing.told())))?;
        if let Some(folder) = clone {
            let folder = clean(folder);
            print(&format!(
                "    its cluster as of a moment is in {folder}; lifeboat clone --drop {folder} removes it"
            ))?;
        }
    }
    if recoveries.iter().any(|(_, standing, _)| matches!(standing, Standing::Left { .. })) {
        print("lifeboat resume RECOVERY settles one that was left in the middle.")?;
    }
    if recoveries.is_empty() {
        print("No recovery has been begun by this user on this machine.")?;
    }
    Ok(())
}

/// The recovery to attach to when none is named.
pub fn newest_under_way(state: &Path) -> Result<String> {
    let under_way = |id: &String| matches!(Standing::of(&state.join("recoveries").join(id)), Standing::UnderWay { .. });
    journal::list(state).into_iter().find(under_way).ok_or_else(|| {
        Error::operator("no recovery is under way")
            .hint("lifeboat status lists all of them, also those that were left in the middle.")
    })
}

pub async fn resume(system: System, id: &str, state: &Path) -> Result<()> {
    let folder = recovery_folder(state, id)?;
    let workers = Workers::Detached { system, dump: None, away: Away::Command };
    let settled = Watch::settle(&workers, id, state).await?;
    print(settled.told())?;
    print("")?;
    print(&report::markdown(&journal::read(&folder)?))
}

pub async fn abort(system: System, id: &str, state: &Path) -> Result<()> {
    let folder = recovery_folder(state, id)?;
    let lines = journal::read(&folder)?;
    if journal::is_held(&folder) {
        let holder = journal::holder(&lines).ok_or_else(|| Error::bug("a recovery is held by nobody"))?;
        let process = i32::try_from(holder.pid).map_err(|error| Error::bug("a process has no number").detail(error))?;
        kill(Pid::from_raw(process), Signal::SIGTERM)
            .map_err(|error| Error::operator(format!("process {process} cannot be asked to stop")).detail(error))?;
        let begun = Instant::now();
        while journal::is_held(&folder) {
            if begun.elapsed() > STOPPING {
                return Err(Error::target(format!("process {process} has been asked to stop and has not stopped yet"))
                    .hint("It may be committing, which cannot be interrupted. lifeboat status tells when it has ended.")
                    .hint(format!("If it is suspended or hangs: kill -9 {process}, then lifeboat resume {id}.")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Box::pin(resume(system, id, state)).await
}

pub fn report(state: &Path, recovery: &str) -> Result<()> {
    print(&report::markdown(&journal::read(&recovery_folder(state, recovery)?)?))
}
