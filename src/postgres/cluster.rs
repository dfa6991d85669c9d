//! A second cluster beside production, as of a moment in time: laid out of a base backup and WAL in a folder of its own.
//!
//! ```text
//!   INTO/clone.json     what it is; a folder without it is not ours, and is never removed
//!   INTO/wal/           the segments: links to the archive, or unpacked out of a snapshot; read by cp, never written
//!   INTO/tablespaces/   the trees of tablespaces, by number
//!   INTO/chain/         while a chain of incremental base backups is combined: those that are not trees on a disk
//!   INTO/data/          the data directory; global/pg_control comes last, and without it nothing can be started
//!   INTO/log            what the server says
//!   INTO/.s.PGSQL.5432  its socket; there is no other way in
//! ```
//!
//! Production's settings are not used: they may archive, preload, listen, connect or include. They are kept beside ours as
//! `*.base`, and the dangerous ones are named. `tablespace_map` is left out: the server would make links into production's
//! tablespaces of it. A program that fills the data directory by itself, as pgbackrest does, leaves a startable one for an
//! instant: `clone.json` says that it is not laid out, and nothing starts it.

mod ask;
mod combine;
mod inspect;
mod reachable;
mod restore;
mod run;
mod settings;
mod target;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{OnceLock, mpsc};

use nix::unistd::{User, geteuid};
use serde::{Deserialize, Serialize};

use crate::backup::Place;
use crate::backup::base::{Base, Member};
use crate::backup::wal::{Form, Key, Wal, head, name};
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};

pub use ask::{Database, count, database, definitions, large_objects, rows, sequences};
pub(super) use ask::{connect, copied};
pub use inspect::{Answer, ROWS, inspect};
pub use reachable::{Ends, Reachable, between_instants, chosen, ends, locate, reachable, read_along, windows};
pub use run::{Proof, USER, drop_clone, keep, open, resume, start};
pub use target::{Commit, Reach, Stop, Target, reach};

const STATE: &str = "clone.json";
/// As the system says it, and the programs that it says it to.
const NO_SPACE: &str = "No space left on device";
const FULL: &str = "the disk on which the clone is laid out is full";
const ROOM: &str =
    "Make room there, or have clones laid out on another disk: clones in the configuration, --into of lifeboat clone.";
/// Of the socket's path; the kernel takes no more.
const MAX_SOCKET_PATH: usize = 107;
/// Files are copied in pieces of so many bytes.
const PIECE: usize = 256 << 10;
/// In the socket's name; nothing listens on it.
pub const PORT: u16 = 5432;

/// What a clone's folder says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Of this file: 1.
    pub lifeboat_clone: u32,
    /// Whether everything is in its place; before that it is never started.
    pub laid_out: bool,
    /// Where the server's programs are.
    pub programs: PathBuf,
    /// The cluster that was backed up.
    pub system: u64,
    /// Where replay stops, in words.
    pub stop: String,
    /// Settings of the base backup that are dangerous in a clone, and are not used: their names.
    pub set_aside: Vec<String>,
    /// Replay has ended, or is about to, after it stood at its target, which this proves.
    #[serde(default)]
    pub opened: Option<Proof>,
    /// Not put on disk: good until the machine is restarted, whose running this names.
    #[serde(default)]
    pub boot: Option<String>,
}

/// What a clone is made of.
pub struct Spec<'a> {
    /// Checked to be of the same cluster as the WAL.
    pub base: &'a Base,
    /// Where tablespaces of a tree are, by number.
    pub copies: &'a BTreeMap<u32, Place>,
    /// The timeline on which replay ends.
    pub timeline: u32,
    /// Where it ends, as [`reach`] found it.
    pub stop: &'a Stop,
    /// The folder; made by [`prepare`].
    pub into: &'a Path,
    /// Of the base backup's version.
    pub programs: &'a Path,
    /// Everything is put on disk, for a cluster that is to stay; one that is not has to be laid out again when the machine
    /// was restarted.
    pub durable: bool,
}

/// Makes the folder of a clone, which must not be there yet, and marks it as ours.
pub fn prepare(into: &Path, programs: &Path, system: u64) -> Result<()> {
    let shown = into.display();
    let words = into.to_str().unwrap_or_default();
    if !into.is_absolute()
        || words.is_empty()
        || words.contains(['\'', '"', ',', '\\'])
        || words.contains(char::is_control)
    {
        return Err(Error::operator(format!("{shown} is no place for a cluster"))
            .hint("Give a whole path without quotes, commas and backslashes: the server's settings hold it."));
    }
    if words.len() + "/.s.PGSQL.5432".len() > MAX_SOCKET_PATH {
        return Err(Error::operator(format!("the path {shown} is too long for a Unix socket"))
            .hint("Give a folder with a shorter path, of up to 90 bytes."));
    }
    if fs::symlink_metadata(into).is_ok() {
        return Err(Error::refused(format!("{shown} is there already"))
            .hint("Name a folder that is not there yet: nothing is overwritten.")
            .hint("If it is a clone that was left behind, remove it: lifeboat clone --drop FOLDER."));
    }
    folder(into)?;
    let state = State {
        lifeboat_clone: 1,
        laid_out: false,
        programs: programs.to_owned(),
        system,
        stop: String::new(),
        set_aside: Vec::new(),
        opened: None,
        boot: None,
    };
    save(into, &state)?;
    folder(&into.join("wal"))
}

/// Reads what a clone's folder says of itself.
pub fn state(into: &Path) -> Result<State> {
    let not_ours = || {
        Error::refused(format!("{} is not a clone that Lifeboat made", into.display()))
            .hint("Name the folder that was given with --into. Nothing else is started or removed.")
    };
    let bytes = fs::File::open(into.join(STATE)).map_err(|error| not_ours().detail(error))?;
    let state: State = serde_json::from_reader(bytes.take(1 << 20)).map_err(|error| not_ours().detail(error))?;
    if state.lifeboat_clone == 1 { Ok(state) } else { Err(not_ours()) }
}

fn save(into: &Path, state: &State) -> Result<()> {
    let json =
        serde_json::to_vec_pretty(state).map_err(|error| Error::bug("a clone cannot be described").detail(error))?;
    let filled = into.join("clone.json.new");
    let _ = fs::remove_file(&filled);
    write(&filled, &mut json.as_slice())?;
    fs::rename(&filled, into.join(STATE)).map_err(|error| failed(&filled, error))
}

/// Lays the data directory out. Only when everything else is on disk does `global/pg_control` come.
pub fn lay_out(spec: &Spec, progress: &Progress) -> Result<State> {
    let (data, into) = (spec.into.join("data"), spec.into);
    spec.base.check_copies(spec.copies)?;
    let chain = spec.base.chain(progress)?;
    folder(&data)?;
    folder(&into.join("tablespaces"))?;
    let mut control = None;
    progress.begin("copying the base backup", Unit::Bytes, None);
    let root = |tablespace: Option<u32>| match tablespace {
        None => data.clone(),
        Some(oid) => into.join("tablespaces").join(oid.to_string()),
    };
    for oid in spec.base.tablespaces.keys() {
        folder(&root(Some(*oid)))?;
    }
    let mut place = |member: Member, stream: &mut dyn Read| {
        if is_left_out(&member) {
            return Ok(());
        }
        if member.tablespace.is_none() && member.path == "global/pg_control" {
            let mut bytes = Vec::new();
            let read = stream.take(1 << 20).read_to_end(&mut bytes);
            read.map_err(|error| Error::from_read(error, || "cannot read global/pg_control".into()))?;
            control = Some(bytes);
            return Ok(());
        }
        put(&root(member.tablespace), &member, stream, progress)
    };
    match (chain, &spec.base.place) {
        (None, Place::PgBackRest(stanza)) => control = Some(restore::fill(spec, stanza, progress)?),
        (None, Place::Disk(_) | Place::Snapshot { .. }) => spec.base.each(spec.copies, progress, &mut place)?,
        (Some(chain), _) => match chain.broken(spec.base) {
            Some(broken) => return Err(broken),
            None => control = Some(combine::fill(spec, &chain.ancestors, progress)?),
        },
    }
    let control = control.ok_or_else(|| {
        Error::backup("the base backup has no global/pg_control: it is not whole").hint("Take another base backup.")
    })?;
    for name in ["pg_wal", "pg_tblspc"].map(|name| data.join(name)) {
        if !name.is_dir() {
            folder(&name)?;
        }
    }
    for oid in spec.base.tablespaces.keys() {
        let link = data.join("pg_tblspc").join(oid.to_string());
        std::os::unix::fs::symlink(root(Some(*oid)), &link).map_err(|error| failed(&link, error))?;
        own(&link)?;
    }
    let set_aside = settings::write_ours(spec, &control)?;
    if spec.durable {
        progress.begin("putting it on disk", Unit::Items, None);
        sync(&data)?;
    }
    progress.check()?;
    let mut state = state(into)?;
    state.boot = if spec.durable { None } else { Some(boot()?) };
    (state.stop, state.set_aside) = (spec.stop.to_string(), set_aside);
    // The act that makes it startable comes last, and is one act.
    let filled = data.join("global/pg_control.new");
    write(&filled, &mut control.as_slice())?;
    fs::rename(&filled, data.join("global/pg_control")).map_err(|error| failed(&filled, error))?;
    state.laid_out = true;
    save(into, &state)?;
    Ok(state)
}

/// Puts a file or folder of a base backup beneath a folder.
fn put(root: &Path, member: &Member, stream: &mut dyn Read, progress: &Progress) -> Result<()> {
    let path = root.join(&member.path);
    if member.is_folder {
        return if path.is_dir() { Ok(()) } else { folder(&path) };
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) {
        folder(parent)?;
    }
    progress.advance(member.size);
    write(&path, stream)
}

/// Waits until everything on the disk of a folder is there.
fn sync(path: &Path) -> Result<()> {
    let held = fs::File::open(path).map_err(|error| failed(path, error))?;
    rustix::fs::syncfs(&held).map_err(|error| failed(path, error.into()))
}

/// Names the time since the machine was started last.
fn boot() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(path).map(|id| id.trim().to_owned()).map_err(|error| failed(path, error))
}

const NOT_IN_A_CLONE: [&str; 7] = [
    "postmaster.pid",
    "postmaster.opts",
    "standby.signal",
    "recovery.signal",
    "tablespace_map",
    "backup_manifest",
    "pg_internal.init",
];
const EMPTY_IN_A_CLONE: [&str; 3] = ["pg_replslot", "pg_wal/archive_status", "pg_stat_tmp"];

/// Files of the base backup that a clone must not have: signs of another server, what would lead into production's
/// tablespaces, slots that would keep WAL for ever, and segments with names that are none.
fn is_left_out(member: &Member) -> bool {
    let in_one_of = |folder: &&str| member.path.strip_prefix(*folder).is_some_and(|rest| rest.starts_with('/'));
    member.tablespace.is_none()
        && (NOT_IN_A_CLONE.contains(&member.path.as_str()) || EMPTY_IN_A_CLONE.iter().any(in_one_of))
}

/// Takes out of a data directory that another program filled what a clone must not have, and `global/pg_control`: its bytes.
fn strip(data: &Path) -> Result<Vec<u8>> {
    let control = data.join("global/pg_control");
    let bytes = fs::read(&control).map_err(|error| failed(&control, error))?;
    fs::remove_file(&control).map_err(|error| failed(&control, error))?;
    for name in NOT_IN_A_CLONE {
        let path = data.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&path, error)),
            Ok(()) | Err(_) => {}
        }
    }
    for name in EMPTY_IN_A_CLONE {
        let path = data.join(name);
        if path.is_dir() {
            fs::remove_dir_all(&path).map_err(|error| failed(&path, error))?;
            folder(&path)?;
        }
    }
    Ok(bytes)
}

/// Puts segments into a folder under the names that PostgreSQL asks for: links to files of an archive on this machine where
/// the server may read them, else copies.
///
/// Errors: a segment is of another cluster than its archive, or is not what its name says.
pub fn stage(base: &Base, wal: &Wal, keys: &[Key], into: &Path, progress: &Progress) -> Result<()> {
    progress.begin("preparing the WAL", Unit::Items, Some(keys.len() as u64));
    let mut linked = Vec::new();
    let mut own_wal = BTreeMap::new();
    for key in keys {
        progress.check()?;
        let file = name(*key, wal.segment_size);
        let path = into.join(&file);
        match wal.segments.get(key) {
            _ if path.exists() => {}
            Some(segment) => {
                let mut stream = wal.read(segment)?;
                let (says, first) = head(&mut stream, &segment.file)?;
                wal.agrees(*key, says)?;
                if let (Place::Disk(archive), Form::Whole | Form::Partial) = (&wal.place, segment.form) {
                    let target =
                        std::path::absolute(archive.join(&segment.file)).map_err(|error| failed(archive, error))?;
                    std::os::unix::fs::symlink(&target, &path).map_err(|error| failed(&path, error))?;
                    linked.push((file, *key));
                } else {
                    write(&path, &mut first.as_slice().chain(stream))?;
                }
            }
            None => {
                own_wal.insert(format!("pg_wal/{file}"), path);
            }
        }
        progress.advance(1);
    }
    let closed = if linked.is_empty() { Vec::new() } else { unreadable(into, &linked) };
    for (file, key) in linked.iter().filter(|(file, _)| closed.contains(file)) {
        let path = into.join(file);
        fs::remove_file(&path).map_err(|error| failed(&path, error))?;
        if let Some(segment) = wal.segments.get(key) {
            write(&path, &mut wal.read(segment)?)?;
        }
    }
    // Histories are small; without them a timeline's past is not known to the server.
    for (timeline, history) in &wal.histories {
        let path = into.join(format!("{timeline:08X}.history"));
        if !path.exists() {
            let lines: String = history.iter().map(|(on, until)| format!("{on}\t{until}\tarchived\n")).collect();
            write(&path, &mut lines.as_bytes())?;
        }
    }
    if own_wal.is_empty() {
        return Ok(());
    }
    base.each_wal(progress, |member, stream| match own_wal.get(&member.path) {
        Some(path) if !path.exists() => write(path, stream),
        Some(_) | None => Ok(()),
    })
}

/// Of some links, those whose file the server's user may not read.
fn unreadable(folder: &Path, links: &[(String, Key)]) -> Vec<String> {
    const ASK: &str = r#"while IFS= read -r name; do [ -r "$1/$name" ] || printf '%s\n' "$name"; done"#;
    let Ok(Some(user)) = ordinary_user() else { return Vec::new() };
    let all = || links.iter().map(|(file, _)| file.clone()).collect();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", ASK, "sh"]).arg(folder).current_dir("/").uid(user.uid.as_raw()).gid(user.gid.as_raw());
    let names: String = links.iter().map(|(file, _)| format!("{file}\n")).collect();
    let Ok(mut list) = tempfile::tempfile() else { return all() };
    let ready = list.write_all(names.as_bytes()).and_then(|()| std::io::Seek::rewind(&mut list));
    match ready.and_then(|()| command.stdin(list).stderr(Stdio::null()).output()) {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
        }
        Ok(_) | Err(_) => all(),
    }
}

/// A program of the clone's version, run as its server's user.
fn command(programs: &Path, program: &str) -> Result<Command> {
    let mut command = Command::new(programs.join(program));
    command.current_dir("/").env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin").env("TZ", "UTC");
    if let Some(user) = ordinary_user()? {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    Ok(command)
}

/// Whom root runs the server as, since PostgreSQL refuses root; `None` when we are an ordinary user already.
pub fn ordinary_user() -> Result<Option<&'static User>> {
    // Asked for every file of a cluster.
    static FOUND: OnceLock<User> = OnceLock::new();
    if !geteuid().is_root() {
        return Ok(None);
    }
    if let Some(user) = FOUND.get() {
        return Ok(Some(user));
    }
    for name in ["postgres", "nobody"] {
        if let Ok(Some(user)) = User::from_name(name) {
            return Ok(Some(FOUND.get_or_init(|| user)));
        }
    }
    Err(Error::operator("PostgreSQL does not run as root, and there is no user \"postgres\" or \"nobody\"")
        .hint("Run this as an ordinary user."))
}

fn folder(path: &Path) -> Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path).map_err(|error| failed(path, error))?;
    own(path)
}

/// A full disk is told as such, whatever it made fail: a file that could not be filled, a segment of WAL that did not come.
pub fn full_disk(error: Error) -> Error {
    // The second is PostgreSQL's number for it.
    if !error.detail.as_ref().is_some_and(|detail| detail.contains(NO_SPACE) || detail.contains("SQLSTATE:  53100")) {
        return error;
    }
    let detail = error.detail.map(|detail| format!("{}: {detail}", error.message));
    Error { message: FULL.into(), detail, hints: vec![ROOM.into()], ..error }
}

/// Writes a new file; one that is there already is an error, and a link is not followed.
fn write(path: &Path, from: &mut dyn Read) -> Result<()> {
    let file = fs::File::options().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(|error| failed(path, error))?;
    fill(&mut file, from).map_err(|error| Error::from_read(error, || format!("cannot fill {}", path.display())))?;
    own(path)
}

/// Most files are small; a large one is written by a second thread, while the next piece of it is read and unpacked.
fn fill(file: &mut fs::File, mut from: &mut dyn Read) -> std::io::Result<()> {
    let mut first = Vec::with_capacity(PIECE);
    (&mut from).take(PIECE as u64).read_to_end(&mut first)?;
    file.write_all(&first)?;
    if first.len() < PIECE {
        return Ok(());
    }
    std::thread::scope(|scope| {
        let (full, filled) = mpsc::sync_channel::<Vec<u8>>(1);
        let (emptied, empty) = mpsc::channel();
        let writer = scope.spawn(move || {
            for piece in filled {
                file.write_all(&piece)?;
                // Nobody takes it any more at the end.
                let _ = emptied.send(piece);
            }
            Ok(())
        });
        let mut new = [Vec::with_capacity(PIECE), first].into_iter();
        let read = loop {
            // No piece comes back when the writer has failed; it tells why.
            let Some(mut piece) = new.next().or_else(|| empty.recv().ok()) else { break Ok(()) };
            piece.clear();
            match (&mut from).take(PIECE as u64).read_to_end(&mut piece) {
                Ok(0) => break Ok(()),
                Ok(_) if full.send(piece).is_err() => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        drop(full);
        let written = writer.join().unwrap_or_else(|_| Err(std::io::Error::other("a writing thread ended")));
        read.and(written)
    })
}

fn own(path: &Path) -> Result<()> {
    let Some(user) = ordinary_user()? else { return Ok(()) };
    let owned = std::os::unix::fs::lchown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()));
    owned.map_err(|error| failed(path, error))
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::operator(format!("cannot write {}", path.display()))
        .detail(error)
        .hint("Check that there is room, and that you may write there.")
}
