//! The commands that look at files of snapshots: what the console's browser shows, for scripts.

use std::io::Write as _;

use serde_json::json;

use super::{output_failed, print, with_progress};
use crate::backup::EntryKind;
use crate::config::System;
use crate::error::{Error, Result};
use crate::files::catalog::Query;
use crate::files::history::{Change, Side};
use crate::files::live::Standing;
use crate::progress::Progress;
use crate::recovery::systems::Systems;
use crate::text::{self, clean};

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
    let (rows, _) = with_progress(&progress, systems.folder(&point, path, usize::MAX)).await?;
    if as_json {
        return print(&json!({ "point": point, "path": path, "entries": rows }).to_string());
    }
    for row in &rows {
        let standing = match row.standing {
            Standing::Same => "same",
            Standing::Changed => "changed",
            Standing::Missing => "missing",
            Standing::Extra => "extra",
            Standing::Excluded => "excluded",
            Standing::Elsewhere => "-",
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
    let listed = catalog.visit(|path, number| {
        let within = path.strip_prefix(beneath).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if !within {
            return Ok(());
        }
        if as_json {
            serde_json::to_writer(&mut out, &catalog.found(number))?;
            return out.write_all(b"\n");
        }
        out.write_all(clean(path).as_bytes())?;
        out.write_all(b"\n")
    });
    listed.and_then(|()| out.flush()).map_err(|error| output_failed(&error))?;
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
        None => with_progress(&progress, systems.search_for(None, query, limit, &progress)).await?,
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
        let (from, to) = (side(&systems, &from).await?, side(&systems, &to).await?);
        let compared = systems.compare(path, (&from, &to)).await?;
        if as_json {
            return print_json(&compared);
        }
        return match &compared.lines {
            _ if compared.same => print("the same to the last byte"),
            Some(lines) => lines.lines().try_for_each(|line| print(&clean(line))),
            None => print(&format!(
                "they differ, and cannot be compared by lines: {} and {}",
                text::bytes(compared.sizes.0),
                text::bytes(compared.sizes.1)
            )),
        };
    }
    let versions = with_progress(&progress, systems.versions(path, &progress)).await?;
    if as_json {
        return print_json(&versions);
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

/// A snapshot, or `live`: this machine.
async fn side(systems: &Systems, typed: &str) -> Result<Side> {
    Ok(if typed == "live" { Side::Here } else { Side::Point(systems.find(typed).await?) })
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(&serde_json::to_string(value).map_err(|error| Error::bug("the answer cannot be written").detail(error))?)
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

/// What `lifeboat changes` was asked.
pub struct Changes<'a> {
    pub before: &'a str,
    pub after: &'a str,
    pub path: &'a str,
    pub limit: usize,
}

pub async fn changes(system: System, asked: &Changes<'_>, as_json: bool) -> Result<()> {
    let systems = Systems::new(system, None);
    let progress = Progress::default();
    let (before, after) = (systems.find(asked.before).await?, side(&systems, asked.after).await?);
    let changes = systems.changes(&before, &after, asked.path, asked.limit, &progress);
    let story = with_progress(&progress, changes).await?;
    if as_json {
        return print_json(&story);
    }
    let total = &story.total;
    print(&format!(
        "{} gone, {} changed, {} new",
        text::count(total.gone),
        text::count(total.changed),
        text::count(total.new)
    ))?;
    for worst in story.worst.iter().take(20) {
        let folder = &worst.folder;
        let since = worst.since.as_ref().map_or_else(
            || "since the last snapshot".to_owned(),
            |(id, at)| {
                format!("first bad snapshot {} of {}", id.get(..8).unwrap_or(id), at.format("%Y-%m-%d %H:%M %:z"))
            },
        );
        print(&format!(
            "  {:>6} of {:<6} gone or changed in {}{}, {since}",
            text::count(folder.gone + folder.changed),
            text::count(folder.gone + folder.changed + folder.same),
            clean(&worst.path),
            if worst.whole { " and beneath" } else { "" }
        ))?;
    }
    for file in &story.files {
        let symbol = match file.change {
            Change::Gone => '-',
            Change::Changed => '~',
            Change::New => '+',
        };
        print(&format!("{symbol} {}", clean(&file.path)))?;
    }
    if story.complete { Ok(()) } else { Err(Error::backup("not every folder could be read")) }
}
