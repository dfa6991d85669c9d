//! The commands that look at files of snapshots: what the console's browser shows, for scripts.

use std::io::Write as _;

use serde_json::json;

use super::{output_failed, print, with_progress};
use crate::backup::EntryKind;
use crate::config::System;
use crate::error::{Error, Result};
use crate::files::catalog::Query;
use crate::files::history::{self, Change};
use crate::files::live::Standing;
use crate::files::look;
use crate::progress::Progress;
use crate::recovery::systems::Systems;
use crate::text::{self, clean};

/// Files of up to this length are compared line by line.
const COMPARED: u64 = 16 << 20;

/// Splits `SNAPSHOT[:PATH]`.
pub fn address(address: &str) -> (&str, &str) {
    address.split_once(':').unwrap_or((address, "/"))
}

fn kind(kind: EntryKind) -> char {
    match kind {
        EntryKind::File => '-',
        EntryKind::Folder => 'd',
        EntryKind::Symlink => 'l',
        EntryKind::Other => '?',
    }
}

pub async fn ls(system: System, at: &str, recursive: bool, as_json: bool) -> Result<()> {
    let systems = Systems::new(system, None);
    let (point, path) = address(at);
    let progress = Progress::default();
    let point = with_progress(&progress, systems.find(point)).await?;
    if recursive {
        return everything(&systems, &point, path, as_json, &progress).await;
    }
    let rows = with_progress(&progress, systems.folder(&point, path)).await?;
    if as_json {
        return print(&json!({ "point": point, "path": path, "entries": rows }).to_string());
    }
    for row in &rows {
        let standing = match row.standing {
            Standing::Same => "same",
            Standing::Changed => "changed",
            Standing::Missing => "missing",
            Standing::Extra => "extra",
        };
        print(&format!(
            "{}{:04o} {:<10} {:>10} {:<19} {standing:<8} {}",
            kind(row.kind),
            row.mode,
            clean(&row.owner),
            if row.kind == EntryKind::File { text::bytes(row.size) } else { String::new() },
            row.modified.map_or_else(String::new, |at| at.format("%Y-%m-%d %H:%M:%S").to_string()),
            clean(&row.name)
        ))?;
    }
    Ok(())
}

/// Everything at and beneath a path, a line each; written through one buffer, since there may be very many.
async fn everything(systems: &Systems, point: &str, path: &str, as_json: bool, progress: &Progress) -> Result<()> {
    let catalog = with_progress(progress, systems.catalog(point, progress)).await?;
    let beneath = path.trim_end_matches('/');
    let mut out = std::io::BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    for found in catalog.entries() {
        let within = found.path.strip_prefix(beneath).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if !within {
            continue;
        }
        let written = if as_json {
            serde_json::to_writer(&mut out, &found).map_err(std::io::Error::from).and_then(|()| out.write_all(b"\n"))
        } else {
            writeln!(out, "{}", clean(&found.path))
        };
        written.map_err(|error| output_failed(&error))?;
    }
    out.flush().map_err(|error| output_failed(&error))?;
    match catalog.damage.first() {
        Some(first) => Err(Error::backup(format!("{} folders could not be read", catalog.damage.len())).detail(first)),
        None => Ok(()),
    }
}

pub async fn find(system: System, point: Option<&str>, words: &[String], limit: usize, as_json: bool) -> Result<()> {
    let systems = Systems::new(system, None);
    let progress = Progress::default();
    let query = Query::parse(&words.join(" "))?;
    let (hits, points) = match point {
        Some(point) => {
            let point = with_progress(&progress, systems.find(point)).await?;
            let catalog = with_progress(&progress, systems.catalog(&point, &progress)).await?;
            (catalog.search(&query, limit), Vec::new())
        }
        None => with_progress(&progress, systems.search_all(&query, limit, &progress)).await?,
    };
    if as_json {
        return print(
            &json!({ "matching": hits.matching, "entries": hits.entries, "best": hits.best, "points": points })
                .to_string(),
        );
    }
    for (number, found) in hits.best.iter().enumerate() {
        let newest =
            points.get(number).map_or_else(String::new, |point| format!("  in {}", point.get(..8).unwrap_or(point)));
        print(&format!(
            "{} {:>10}  {}  {}{newest}",
            kind(found.kind),
            if found.kind == EntryKind::File { text::bytes(found.size) } else { String::new() },
            found.modified.map_or_else(|| " ".repeat(19), |at| at.format("%Y-%m-%d %H:%M:%S").to_string()),
            clean(&found.path)
        ))?;
    }
    super::tell(&format!(
        "{} of {} match",
        text::count(hits.matching),
        text::counted(hits.entries, "entry", "entries")
    ));
    if hits.matching == 0 {
        return Err(
            Error::operator("nothing matches").hint("Fewer letters match more; lifeboat versions follows one path.")
        );
    }
    Ok(())
}

pub async fn versions(system: System, path: &str, diff: Option<(String, String)>, as_json: bool) -> Result<()> {
    let systems = Systems::new(system, None);
    let progress = Progress::default();
    if let Some((from, to)) = diff {
        let (old, new) = (content(&systems, &from, path).await?, content(&systems, &to, path).await?);
        let text = look::diff(&old, &new, (&format!("{path} of {from}"), &format!("{path} of {to}")));
        for line in text.lines() {
            print(&clean(line))?;
        }
        return Ok(());
    }
    let versions = with_progress(&progress, systems.versions(path, &progress)).await?;
    if as_json {
        return print(
            &serde_json::to_string(&versions)
                .map_err(|error| Error::bug("versions cannot be written").detail(error))?,
        );
    }
    for version in &versions.versions {
        print(&format!(
            "{}  {} {:>10}  modified {}  from {} to {}  in {}",
            version.last.get(..8).unwrap_or(&version.last),
            kind(version.kind),
            text::bytes(version.size),
            version.modified.map_or_else(|| "?".into(), |at| at.format("%Y-%m-%d %H:%M:%S %:z").to_string()),
            version.first_instant.format("%Y-%m-%d %H:%M"),
            version.last_instant.format("%Y-%m-%d %H:%M"),
            text::counted(version.snapshots, "snapshot", "snapshots")
        ))?;
    }
    if !versions.without.is_empty() {
        super::tell(&format!(
            "it is not in {}",
            text::counted(versions.without.len() as u64, "other snapshot", "other snapshots")
        ));
    }
    for damage in &versions.damage {
        super::tell(damage);
    }
    Ok(())
}

/// The content of a path in a snapshot, or `live`.
async fn content(systems: &Systems, point: &str, path: &str) -> Result<Vec<u8>> {
    use std::io::Read as _;
    if point == "live" {
        let mut bytes = Vec::new();
        let file = crate::files::live::open(std::path::Path::new(path));
        return file.and_then(|file| file.take(COMPARED).read_to_end(&mut bytes)).map(|_| bytes).map_err(|error| {
            Error::operator(format!("cannot read {path}"))
                .detail(error)
                .hint("Check that it is a file that you may read.")
        });
    }
    let point = systems.find(point).await?;
    systems.whole_file(&point, path, COMPARED).await
}

pub async fn cat(system: System, at: &str) -> Result<()> {
    let systems = Systems::new(system, None);
    let (point, path) = address(at);
    let point = systems.find(point).await?;
    let file = systems.file(&point, path).await?;
    let copied = tokio::task::spawn_blocking(move || {
        let mut file = file;
        let mut out = std::io::stdout().lock();
        std::io::copy(&mut file, &mut out).and_then(|_| out.flush())
    });
    let copied = copied.await.map_err(|error| Error::bug("the thread that reads ended").detail(error))?;
    copied.map_err(|error| Error::from_read(error, || "cannot write the output".into()))
}

pub async fn changes(system: System, before: &str, after: &str, limit: usize, as_json: bool) -> Result<()> {
    let systems = Systems::new(system, None);
    let progress = Progress::default();
    let (before, after) = (systems.find(before).await?, systems.find(after).await?);
    let changes = with_progress(&progress, systems.changes(&before, &after, limit, &progress)).await?;
    let worst = history::worst(&changes, 20);
    if as_json {
        return print(&json!({ "changes": changes, "worst": worst }).to_string());
    }
    let total = &changes.total;
    print(&format!(
        "{} gone, {} changed, {} new",
        text::count(total.gone),
        text::count(total.changed),
        text::count(total.new)
    ))?;
    for (path, folder) in &worst {
        print(&format!(
            "  {:>6} of {:<6} gone or changed in {}",
            text::count(folder.gone + folder.changed),
            text::count(folder.gone + folder.changed + folder.same),
            clean(path)
        ))?;
    }
    for file in &changes.files {
        let symbol = match file.change {
            Change::Gone => '-',
            Change::Changed => '~',
            Change::New => '+',
        };
        print(&format!("{symbol} {}", clean(&file.path)))?;
    }
    Ok(())
}
