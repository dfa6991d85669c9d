//! Repositories made by the real restic, read by us.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use lifeboat::backup::{EntryKind, Location, Password, Place, REFRESH, Repository, Snapshot};
use lifeboat::config::{RepositorySettings, System};
use lifeboat::error::{Error, Kind};
use lifeboat::progress::Progress;
use lifeboat::recovery::record::{Finding, Look};
use lifeboat::recovery::systems::Systems;
use lifeboat::secret::Secret;
use tempfile::TempDir;

const PASSWORD: &str = "a canary in a coal mine";
/// The length of the large file, in bytes.
const LARGE: usize = 40 << 20;

/// One folder with a repository of each version, both with the same two files, and the files themselves.
static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    let folder = TempDir::new().unwrap();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    let (large, words) = (noise(LARGE), words(3 << 20));
    fs::write(source.join("large.dump"), &large).unwrap();
    fs::write(source.join("words.sql"), &words).unwrap();
    for version in ["1", "2"] {
        let repository = folder.path().join(version);
        restic(&repository, &["init", "--repository-version", version]);
        restic(&repository, &["backup", "--host", "db1", "--tag", "programme_db", source.to_str().unwrap()]);
    }
    Shared { folder, large, words }
});

struct Shared {
    folder: TempDir,
    large: Vec<u8>,
    words: Vec<u8>,
}

impl Shared {
    fn repository(&self, version: &str) -> PathBuf {
        self.folder.path().join(version)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join("source").join(name).to_str().unwrap().to_owned()
    }

    /// A repository of one's own to damage.
    fn copy(&self) -> (TempDir, PathBuf) {
        let folder = TempDir::new().unwrap();
        let copy = folder.path().join("repository");
        let status = Command::new("cp").arg("-r").arg(self.repository("2")).arg(&copy).status().unwrap();
        assert!(status.success());
        (folder, copy)
    }
}

fn command(program: &str, url: &OsStr) -> Command {
    let mut command = Command::new(program);
    command.env("RESTIC_REPOSITORY", url).env("RESTIC_PASSWORD", PASSWORD).env("RESTIC_CACHE_DIR", "/nonexistent");
    command.stdin(Stdio::null());
    command
}

fn restic(repository: &Path, arguments: &[&str]) -> String {
    run(command("restic", repository.as_os_str()).arg("--no-cache").args(arguments))
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn location(url: &str) -> Location {
    Location { url: url.into(), password: Password::Given(Secret::new(PASSWORD.into())) }
}

fn open(repository: &Path) -> Repository {
    Repository::open(&location(repository.to_str().unwrap())).unwrap()
}

fn refused(repository: &Path) -> Error {
    Repository::open(&location(repository.to_str().unwrap())).err().unwrap()
}

fn newest(repository: &Repository) -> Snapshot {
    repository.snapshots().unwrap().remove(0)
}

fn read(repository: &Repository, snapshot: &Snapshot, path: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    repository
        .open_file(snapshot, path)?
        .read_to_end(&mut bytes)
        .map_err(|error| Error::from_read(error, String::new))?;
    Ok(bytes)
}

/// Numbers that look random and are the same each time.
fn numbers() -> impl FnMut() -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut next = numbers();
    std::iter::repeat_with(|| next().to_le_bytes()).flatten().take(length).collect()
}

fn words(length: usize) -> Vec<u8> {
    let mut next = numbers();
    let mut words = Vec::new();
    while words.len() < length {
        writeln!(words, "{}\tregistered\t{}\t\\N", words.len(), next() % 1000).unwrap();
    }
    words
}

/// All files beneath a folder of a repository, the largest first.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found.sort_by_key(|path| (std::cmp::Reverse(fs::metadata(path).unwrap().len()), path.clone()));
    found
}

fn flip_a_bit(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap()[..8].to_owned()
}

#[test]
fn a_wrong_password_is_told_apart_from_a_damaged_key() {
    let mut location = location(SHARED.repository("2").to_str().unwrap());
    location.password = Password::Given(Secret::new("wrong".into()));
    let error = Repository::open(&location).err().unwrap();
    assert_eq!(error.kind, Kind::Operator);
    assert_eq!(error.message, format!("the password does not open repository {}", location.url));
    assert!(error.hints[0].starts_with("It was tried with 1 key."));
}

#[test]
fn a_place_without_a_repository_says_so() {
    let folder = TempDir::new().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("nothing")] {
        let error = refused(&path);
        assert_eq!(error.message, format!("there is no repository at {}", path.display()));
        assert_eq!(error.kind, Kind::Operator);
    }
}

#[test]
fn a_password_file_that_is_missing_or_empty_is_named() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("password");
    let location =
        Location { password: Password::File(path.clone()), ..location(SHARED.repository("2").to_str().unwrap()) };
    let error = Repository::open(&location).err().unwrap();
    assert_eq!(error.message, format!("cannot read the password file {}", path.display()));
    fs::write(&path, "\n").unwrap();
    let error = Repository::open(&location).err().unwrap();
    assert_eq!(error.message, format!("the password for repository {} is empty", location.url));
    fs::write(&path, format!("{PASSWORD} \n")).unwrap();
    assert!(Repository::open(&location).is_ok());
}

#[test]
fn a_damaged_config_or_key_is_named_when_the_repository_is_opened() {
    for folder in ["config", "keys"] {
        let (_keep, repository) = SHARED.copy();
        let path = repository.join(folder);
        let path = if path.is_dir() { files(&path).remove(0) } else { path };
        flip_a_bit(&path, 60);
        let error = refused(&repository);
        assert_eq!(error.kind, Kind::Backup);
        let said = format!("{} {}", error.message, error.hints.join(" "));
        let object = if folder == "config" { "the config file".into() } else { format!("key {}", name(&path)) };
        assert!(said.contains(&format!("{object} of repository {} is damaged", repository.display())), "{said}");
    }
}

#[test]
fn an_unreadable_folder_is_an_error_and_not_a_repository_without_snapshots() {
    let (_keep, repository) = SHARED.copy();
    let open = open(&repository);
    fs::rename(repository.join("snapshots"), repository.join("away")).unwrap();
    let error = open.snapshots().unwrap_err();
    assert_eq!(error.message, format!("cannot list snapshots of repository {}", repository.display()));
}

#[test]
fn a_damaged_snapshot_is_named_and_the_others_are_listed() {
    let (_keep, repository) = SHARED.copy();
    let damaged = files(&repository.join("snapshots")).remove(0);
    restic(&repository, &["backup", "--tag", "second", &SHARED.path("words.sql")]);
    flip_a_bit(&damaged, 40);
    let open = open(&repository);
    let snapshots = open.snapshots().unwrap();
    assert_eq!(snapshots.iter().map(|one| one.tags.join(",")).collect::<Vec<_>>(), ["second"]);
    let sentence = format!(
        "snapshot {} of repository {} is damaged: its SHA-256 is not its name",
        name(&damaged),
        repository.display()
    );
    assert_eq!(open.damage(), [sentence]);
    let error = open.find(&name(&damaged)).unwrap_err();
    assert_eq!(error.message, format!("snapshot {} of repository {} is damaged", name(&damaged), repository.display()));
}

#[test]
fn a_damaged_index_file_is_named_by_whatever_needs_it() {
    let (_keep, repository) = SHARED.copy();
    let damaged = files(&repository.join("index")).remove(0);
    flip_a_bit(&damaged, 100);
    let open = open(&repository);
    let error = open.entries(&newest(&open), 10).unwrap_err();
    assert_eq!(error.kind, Kind::Backup);
    assert!(error.message.contains("is not in the index"), "{}", error.message);
    assert!(error.hints[0].starts_with(&format!("index file {}", name(&damaged))), "{:?}", error.hints);
}

#[test]
fn a_damaged_pack_is_named_with_its_blob_and_gives_no_wrong_byte() {
    let (_keep, repository) = SHARED.copy();
    let words = SHARED.path("words.sql");
    let readable = |path: &str| {
        let open = open(&repository);
        read(&open, &newest(&open), path).is_ok()
    };
    // restic packs as it goes: a pack holds parts of both files, and which is where differs from one run to the next.
    let damaged = files(&repository.join("data")).into_iter().find(|pack| {
        flip_a_bit(pack, 1_500_000);
        let meant = readable(&words) && !readable(&SHARED.path("large.dump"));
        if !meant {
            flip_a_bit(pack, 1_500_000);
        }
        meant
    });
    let damaged = damaged.unwrap();
    let open = open(&repository);
    let snapshot = newest(&open);
    let mut file = open.open_file(&snapshot, &SHARED.path("large.dump")).unwrap();
    let (mut failed, mut good, mut part) = (BTreeSet::new(), 0, vec![0; 1 << 16]);
    for begin in (0..LARGE).step_by(part.len()) {
        file.seek(SeekFrom::Start(begin as u64)).unwrap();
        match file.read_exact(&mut part) {
            Ok(()) => {
                assert_eq!(part, SHARED.large[begin..begin + part.len()]);
                good += 1;
            }
            Err(error) => _ = failed.insert(Error::from_read(error, String::new).message),
        }
    }
    let failed: Vec<_> = failed.into_iter().collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].starts_with(&format!("cannot read {} of snapshot", SHARED.path("large.dump"))), "{failed:?}");
    assert!(failed[0].contains(&format!("in pack {} of repository", name(&damaged))), "{failed:?}");
    assert!(good > 500, "{good} parts were still readable");
    assert_eq!(open.damage().len(), 1);
    assert!(read(&open, &snapshot, &words).is_ok());
    assert!(read(&open, &snapshot, &SHARED.path("large.dump")).is_err());
}

#[test]
fn a_damaged_folder_is_named_and_the_rest_is_listed() {
    let (_keep, repository) = SHARED.copy();
    // The smallest pack holds the folders; its first blob is one of them.
    let damaged = files(&repository.join("data")).pop().unwrap();
    flip_a_bit(&damaged, 40);
    let open = open(&repository);
    let entries = open.entries(&newest(&open), 100).unwrap();
    assert!(!entries.complete);
    assert_eq!(entries.damage.len(), 1);
    assert!(entries.damage[0].contains(&format!("in pack {}", name(&damaged))), "{:?}", entries.damage);
}

#[test]
fn a_shortened_pack_is_damage_and_a_deleted_one_is_missing() {
    let (_keep, repository) = SHARED.copy();
    let pack = files(&repository.join("data")).remove(0);
    fs::OpenOptions::new().write(true).open(&pack).unwrap().set_len(1000).unwrap();
    let shortened = open(&repository);
    let error = read(&shortened, &newest(&shortened), &SHARED.path("large.dump")).unwrap_err();
    assert!(
        error.message.contains(&format!("pack {}", name(&pack))) && error.message.ends_with("is damaged"),
        "{error}"
    );
    fs::remove_file(&pack).unwrap();
    let error = read(&shortened, &newest(&shortened), &SHARED.path("large.dump")).unwrap_err();
    assert_eq!(error.kind, Kind::Backup);
    assert!(error.message.contains(&format!("cannot read pack {} of repository", name(&pack))), "{error}");
    assert_eq!(error.hints, ["It is not there; a prune may have removed it. Try again."]);
}

#[tokio::test]
async fn a_dump_that_cannot_be_read_is_listed_with_the_reason() {
    let (folder, repository) = SHARED.copy();
    let id = newest(&open(&repository)).id;
    let packs = files(&repository.join("data"));
    packs
        .iter()
        .filter(|pack| fs::metadata(pack).unwrap().len() > 1 << 20)
        .for_each(|pack| fs::remove_file(pack).unwrap());
    let password = folder.path().join("password");
    fs::write(&password, PASSWORD).unwrap();
    let settings = RepositorySettings {
        url: repository.to_str().unwrap().into(),
        password_file: Some(password),
        password_command: None,
    };
    let live = Systems::new(System { repository: Some(settings), ..System::named("shop") }, None);
    let Finding::Contents(contents) = live.look("", &Look::Contents { point: id }, &Progress::default()).await.unwrap()
    else {
        panic!("contents were asked for")
    };
    assert_eq!((contents.dumps.len(), contents.files), (2, 0), "{contents:?}");
    for dump in &contents.dumps {
        assert!(dump.damage.as_ref().unwrap().contains("cannot read pack"), "{dump:?}");
    }
}

#[test]
fn a_prune_between_opening_and_reading_moves_blobs_and_the_reader_follows() {
    let (_keep, repository) = SHARED.copy();
    let folder = TempDir::new().unwrap();
    let other = folder.path().join("other");
    fs::write(&other, &SHARED.large[..LARGE / 2]).unwrap();
    restic(&repository, &["backup", "--tag", "half", other.to_str().unwrap()]);
    let open = open(&repository);
    let half = open.snapshots().unwrap().into_iter().find(|one| one.tags == ["half"]).unwrap();
    let whole = open.snapshots().unwrap().into_iter().find(|one| one.tags != ["half"]).unwrap();
    let path = other.to_str().unwrap();
    let mut file = open.open_file(&half, path).unwrap();
    let mut gone = open.open_file(&whole, &SHARED.path("large.dump")).unwrap();
    restic(&repository, &["forget", whole.short(), "--prune", "--max-unused", "0"]);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| Error::from_read(error, String::new)).unwrap();
    assert!(bytes == SHARED.large[..LARGE / 2]);
    gone.seek(SeekFrom::Start(LARGE as u64 - 10)).unwrap();
    let error = Error::from_read(gone.read(&mut [0; 10]).unwrap_err(), String::new);
    assert_eq!(error.kind, Kind::Backup);
    assert!(error.message.contains("is not in the index"), "{error}");
}

#[test]
fn an_exclusive_lock_is_a_warning_and_reading_goes_on() {
    let (_keep, repository) = SHARED.copy();
    let open = open(&repository);
    assert!(open.warnings().is_empty());
    let mut check = command("restic", repository.as_os_str())
        .args(["--no-cache", "check", "--read-data"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // restic writes a lock under another name first.
    while !files(&repository.join("locks")).iter().any(|path| path.file_name().unwrap().len() == 64) {
        assert!(check.try_wait().unwrap().is_none(), "restic check ended before it was seen");
        std::thread::sleep(Duration::from_millis(1));
    }
    check.kill().unwrap();
    check.wait().unwrap();
    let warnings = open.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("was locked exclusively"), "{warnings:?}");
    assert!(warnings[0].contains(&format!("by process {}", check.id())), "{warnings:?}");
    assert!(!newest(&open).id.is_empty());
}

#[test]
fn a_shared_lock_keeps_a_prune_away_while_it_is_held_and_goes_with_its_holder() {
    let (_keep, repository) = SHARED.copy();
    let open = open(&repository);
    let locks = || files(&repository.join("locks"));
    let prune = || {
        let mut prune = command("restic", repository.as_os_str());
        prune.args(["--no-cache", "prune"]).output().unwrap()
    };
    let lock = open.lock(Duration::from_millis(200)).unwrap();
    let refused = prune();
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{words}");
    assert!(words.contains(&format!("already locked by PID {}", std::process::id())), "{words}");
    assert!(words.contains("(lifeboat)"), "{words}");
    // It is made anew before it is old, and there is always one.
    let first = locks();
    assert_eq!(first.len(), 1);
    let deadline = Instant::now() + Duration::from_secs(20);
    while locks().iter().any(|path| first.contains(path)) {
        assert!(Instant::now() < deadline, "the lock is not refreshed");
        assert!(!locks().is_empty());
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(lock);
    assert!(locks().is_empty());
    assert!(prune().status.success());
    // Where somebody is at work alone, or nothing can be written, reading goes on without one.
    let mut check = command("restic", repository.as_os_str());
    let mut check = check.args(["--no-cache", "check", "--read-data"]).stdout(Stdio::null()).spawn().unwrap();
    while !locks().iter().any(|path| path.file_name().unwrap().len() == 64) {
        assert!(check.try_wait().unwrap().is_none(), "restic check ended before it was seen");
        std::thread::sleep(Duration::from_millis(1));
    }
    check.kill().unwrap();
    check.wait().unwrap();
    assert!(open.lock(REFRESH).is_none());
    restic(&repository, &["unlock"]);
    fs::remove_dir(repository.join("locks")).unwrap();
    assert!(open.lock(REFRESH).is_none());
    let warnings = open.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("cannot be locked"), "{warnings:?}");
    assert!(read(&open, &newest(&open), &SHARED.path("words.sql")).is_ok());
}

#[test]
fn an_ambiguous_id_lists_the_candidates_and_latest_is_no_id() {
    let folder = TempDir::new().unwrap();
    let repository = folder.path().join("repository");
    restic(&repository, &["init"]);
    let file = SHARED.path("words.sql");
    // Seventeen ids cannot all begin with different digits. All are of the same second.
    for host in 0..17 {
        restic(
            &repository,
            &["backup", "--force", "--time", "2026-01-05 02:00:00", "--host", &format!("h{host}"), &file],
        );
    }
    let open = open(&repository);
    let snapshots = open.snapshots().unwrap();
    assert_eq!(snapshots.len(), 17);
    assert!(snapshots.windows(2).all(|pair| pair[0].id < pair[1].id), "one second is ordered by id");
    let shared = snapshots.windows(2).find(|pair| pair[0].id[..1] == pair[1].id[..1]).unwrap();
    let error = open.find(&shared[0].id[..1]).unwrap_err();
    assert!(error.message.ends_with(&format!("snapshots begin with {}", &shared[0].id[..1])), "{error}");
    assert!(error.hints[0].contains(shared[0].short()) && error.hints[0].contains("2026-01-05 02:00:00"), "{error:?}");
    assert_eq!(open.find(shared[0].short()).unwrap(), shared[0]);
    assert_eq!(open.find(&shared[1].id).unwrap(), shared[1]);
    for wrong in ["latest", "", "zz", "../x"] {
        assert!(open.find(wrong).unwrap_err().message.ends_with("is not the id of a snapshot"), "{wrong}");
    }
}

#[test]
fn reads_at_random_places_equal_the_source_in_both_versions() {
    for version in ["1", "2"] {
        let repository = open(&SHARED.repository(version));
        let snapshot = newest(&repository);
        assert_eq!((snapshot.host.as_str(), snapshot.tags.as_slice()), ("db1", ["programme_db".to_owned()].as_slice()));
        for (file, source) in [("large.dump", &SHARED.large), ("words.sql", &SHARED.words)] {
            let mut file = repository.open_file(&snapshot, &SHARED.path(file)).unwrap();
            assert_eq!(file.len(), source.len() as u64);
            let mut next = numbers();
            let mut bytes = vec![0; 3 << 20];
            for round in 0..100 {
                let offset = match round {
                    0 => 0,
                    1 => source.len() - 1,
                    2 => source.len(),
                    _ => usize::try_from(next()).unwrap() % source.len(),
                };
                let length = (usize::try_from(next()).unwrap() % (if round % 10 == 0 { 3 << 20 } else { 5000 }))
                    .min(source.len() - offset);
                file.seek(SeekFrom::Start(offset as u64)).unwrap();
                file.read_exact(&mut bytes[..length]).unwrap();
                assert!(
                    bytes[..length] == source[offset..offset + length],
                    "{length} bytes at {offset}, version {version}"
                );
            }
            file.seek(SeekFrom::End(5)).unwrap();
            assert_eq!(file.read(&mut bytes).unwrap(), 0);
        }
        assert!(read(&repository, &snapshot, &SHARED.path("large.dump")).unwrap() == SHARED.large);
    }
}

#[test]
fn a_small_read_of_a_large_file_fetches_little() {
    let repository = open(&SHARED.repository("2"));
    let snapshot = newest(&repository);
    let mut file = repository.open_file(&snapshot, &SHARED.path("large.dump")).unwrap();
    file.seek(SeekFrom::Start(LARGE as u64 / 2)).unwrap();
    let mut bytes = vec![0; 64 << 10];
    file.read_exact(&mut bytes).unwrap();
    // restic cuts files into blobs of up to 8 MiB, and the read may meet the end of one; a pack is larger than that.
    assert!(repository.bytes_read() < 18 << 20, "{} bytes", repository.bytes_read());
    let before = repository.bytes_read();
    assert!(read(&repository, &snapshot, &SHARED.path("large.dump")).is_ok());
    let whole = repository.bytes_read() - before;
    assert!(whole < LARGE as u64 * 101 / 100, "reading in order fetches nothing twice: {whole} bytes");
}

#[test]
fn names_are_literal_whatever_is_in_them() {
    let folder = TempDir::new().unwrap();
    let (source, repository) = (folder.path().join("source"), folder.path().join("repository"));
    fs::create_dir(&source).unwrap();
    let names: [&[u8]; 8] = [
        b"file[1].pdf",
        b"file1.pdf",
        b"*",
        b"new\nline",
        b"esc\x1b[2J",
        b"\xff\xfe.sql",
        b"back\\slash",
        "Zo\u{eb} \u{202e}".as_bytes(),
    ];
    for name in names {
        fs::write(source.join(OsStr::from_bytes(name)), name).unwrap();
    }
    std::os::unix::fs::symlink("/etc/passwd", source.join("link")).unwrap();
    restic(&repository, &["init"]);
    restic(&repository, &["backup", source.to_str().unwrap()]);
    let open = open(&repository);
    let snapshot = newest(&open);
    let listed = open.list_folder(&snapshot, source.to_str().unwrap()).unwrap();
    assert_eq!(listed.len(), names.len() + 1);
    let mut contents: Vec<Vec<u8>> = listed
        .iter()
        .filter(|entry| entry.kind == EntryKind::File)
        .map(|entry| read(&open, &snapshot, &entry.path).unwrap())
        .collect();
    contents.sort();
    let mut expected: Vec<Vec<u8>> = names.iter().map(|name| name.to_vec()).collect();
    expected.sort();
    assert_eq!(contents, expected);
    let path = |name: &str| format!("{}/{name}", source.display());
    assert_eq!(read(&open, &snapshot, &path("file[1].pdf")).unwrap(), b"file[1].pdf");
    assert_eq!(read(&open, &snapshot, &path("\\xff\\xfe.sql")).unwrap(), b"\xff\xfe.sql");
    let link = read(&open, &snapshot, &path("link")).unwrap_err();
    assert_eq!(link.hints, ["It points to /etc/passwd; open that instead."]);
    for pattern in ["file?.pdf", "fil*", "../source/file1.pdf"] {
        assert_eq!(read(&open, &snapshot, &path(pattern)).unwrap_err().kind, Kind::Operator, "{pattern}");
    }
}

#[test]
fn a_missing_path_names_what_is_there() {
    let repository = open(&SHARED.repository("2"));
    let snapshot = newest(&repository);
    let error = read(&repository, &snapshot, &SHARED.path("large.sql")).unwrap_err();
    let folder = Path::new(&SHARED.path("x")).parent().unwrap().display().to_string();
    assert_eq!(error.message, format!("there is no large.sql in {folder} of snapshot {}", snapshot.short()));
    assert_eq!(error.hints, ["It holds large.dump, words.sql."]);
    let error = read(&repository, &snapshot, &folder).unwrap_err();
    assert_eq!(error.message, format!("{folder} of snapshot {} is a folder", snapshot.short()));
    let error = read(&repository, &snapshot, &SHARED.path("words.sql/x")).unwrap_err();
    assert!(error.message.ends_with("is not a folder"), "{error}");
}

#[test]
fn a_walk_lists_everything_or_says_that_it_did_not() {
    use EntryKind::{File, Folder};
    let folder = TempDir::new().unwrap();
    let (source, repository) = (folder.path().join("source"), folder.path().join("repository"));
    fs::create_dir_all(source.join("a/b")).unwrap();
    fs::write(source.join("a/b/c"), "12345").unwrap();
    fs::write(source.join("z"), "").unwrap();
    restic(&repository, &["init"]);
    run(command("restic", repository.as_os_str()).args(["--no-cache", "backup", "."]).current_dir(&source));
    let open = open(&repository);
    let snapshot = newest(&open);
    let all = open.entries(&snapshot, 100).unwrap();
    let shown: Vec<_> = all.entries.iter().map(|entry| (entry.path.as_str(), entry.kind, entry.size)).collect();
    assert_eq!(shown, [("/a", Folder, 0), ("/a/b", Folder, 0), ("/a/b/c", File, 5), ("/z", File, 0)]);
    assert!(all.complete);
    let some = open.entries(&snapshot, 3).unwrap();
    assert!(!some.complete);
    assert_eq!(some.entries, all.entries[..3]);
    assert!(open.entries(&snapshot, 4).unwrap().complete);
    assert_eq!(read(&open, &snapshot, "/z").unwrap(), b"");
    assert!(open.list_folder(&snapshot, "/").unwrap().len() == 2);
}

#[test]
fn a_dump_that_was_piped_into_restic_is_read() {
    let folder = TempDir::new().unwrap();
    let repository = folder.path().join("repository");
    restic(&repository, &["init"]);
    let dump = fs::File::open(SHARED.path("words.sql")).unwrap();
    run(command("restic", repository.as_os_str())
        .args(["--no-cache", "backup", "--stdin", "--stdin-filename", "db.sql"])
        .stdin(dump));
    let open = open(&repository);
    let snapshot = newest(&open);
    assert_eq!(snapshot.paths, ["/db.sql"]);
    assert!(read(&open, &snapshot, "db.sql").unwrap() == SHARED.words);
    assert!(read(&open, &snapshot, "/db.sql").unwrap() == SHARED.words);
}

#[test]
fn reading_writes_nothing_to_the_repository() {
    let (_keep, repository) = SHARED.copy();
    let state = || {
        let changed = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
        let mut folders = vec![repository.clone(), repository.join("locks"), repository.join("data")];
        folders.extend(files(&repository));
        folders.into_iter().map(|path| (changed(&path), path)).collect::<Vec<_>>()
    };
    run(Command::new("chmod").args(["-R", "a-w"]).arg(&repository));
    let before = state();
    let open = open(&repository);
    let snapshot = newest(&open);
    assert!(open.entries(&snapshot, 100).unwrap().complete);
    assert!(read(&open, &snapshot, &SHARED.path("words.sql")).is_ok());
    assert!(open.damage().is_empty());
    assert_eq!(state(), before);
}

#[test]
fn a_dump_is_the_same_on_disk_and_in_a_snapshot() {
    let repository = open(&SHARED.repository("2"));
    let snapshot = newest(&repository);
    let folder = Path::new(&SHARED.path("x")).parent().unwrap().to_owned();
    let path = folder.to_str().unwrap().to_owned();
    let places =
        [Place::Snapshot { repository: repository.clone(), snapshot: snapshot.clone(), path }, Place::Disk(folder)];
    for place in &places {
        assert!(place.is_folder().unwrap());
        let mut bytes = Vec::new();
        place.open("words.sql").unwrap().read_to_end(&mut bytes).unwrap();
        assert!(bytes == SHARED.words);
        for wrong in ["../source/words.sql", "/etc/passwd", "a\0b"] {
            assert_eq!(place.open(wrong).err().unwrap().kind, Kind::Refused);
        }
        assert_eq!(place.open("nothing").err().unwrap().kind, Kind::Operator);
        assert!(place.open("").is_err());
    }
    let file = Place::Snapshot { repository, snapshot, path: SHARED.path("words.sql") };
    assert!(!file.is_folder().unwrap());
    assert_eq!(file.open("").unwrap().seek(SeekFrom::End(0)).unwrap(), SHARED.words.len() as u64);
    assert!(Place::Disk("/nonexistent".into()).is_folder().is_err());
}

/// Backs up to a storage with restic, reads it back with us, and looks at what is said when things are missing.
fn round_trip(url: &str) {
    let restic = |arguments: &[&str]| run(command("restic", OsStr::new(url)).arg("--no-cache").args(arguments));
    restic(&["init"]);
    restic(&["backup", "--host", "db1", &SHARED.path("words.sql"), &SHARED.path("large.dump")]);
    let repository = Repository::open(&location(url)).unwrap();
    let snapshot = newest(&repository);
    assert!(read(&repository, &snapshot, &SHARED.path("words.sql")).unwrap() == SHARED.words);
    assert!(read(&repository, &snapshot, &SHARED.path("large.dump")).unwrap() == SHARED.large);
    let before = repository.bytes_read();
    let mut file = repository.open_file(&snapshot, &SHARED.path("large.dump")).unwrap();
    file.seek(SeekFrom::Start(LARGE as u64 / 2)).unwrap();
    let mut bytes = vec![0; 64 << 10];
    file.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, SHARED.large[LARGE / 2..LARGE / 2 + bytes.len()]);
    assert!(repository.bytes_read() - before < 9 << 20);
    // Behind REST and rclone the library does not know locks.
    let can_lock = !url.starts_with("rest:") && !url.starts_with("rclone:");
    let lock = repository.lock(REFRESH);
    assert_eq!(lock.is_some(), can_lock);
    assert_eq!(restic(&["--no-lock", "list", "locks"]).lines().count(), usize::from(can_lock));
    drop(lock);
    assert_eq!(restic(&["--no-lock", "list", "locks"]), "");
    restic(&["forget", "--prune", snapshot.short()]);
    drop(file);
    let mut file = repository.open_file(&snapshot, &SHARED.path("large.dump"));
    let gone = file
        .as_mut()
        .map_or_else(|error| error.clone(), |file| Error::from_read(file.read(&mut bytes).unwrap_err(), String::new));
    assert_eq!(gone.kind, Kind::Backup, "{gone:?}");
    assert!(repository.snapshots().unwrap().is_empty());
}

/// A server that ends with the test.
struct Server(Child);

impl Server {
    fn start(command: &mut Command, port: u16) -> Self {
        let mut server =
            Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        for _ in 0..600 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return server;
            }
            assert!(server.0.try_wait().unwrap().is_none(), "{command:?} ended");
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{command:?} does not listen");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Fails when a program that only these tests need is missing: a test that is left out must not look green.
fn need(program: &str) {
    let folders = std::env::var("PATH").unwrap() + ":/usr/sbin";
    let found = std::env::split_paths(&folders).any(|folder| folder.join(program).is_file());
    assert!(found, "{program} is not installed; make test installs it");
}

#[test]
fn a_rest_server_is_read_and_its_password_never_shown() {
    need("rclone");
    let (folder, port) = (TempDir::new().unwrap(), free_port());
    let mut serve = Command::new("rclone");
    serve.args(["serve", "restic", "--addr", &format!("127.0.0.1:{port}"), "--user", "ann", "--pass", "canary"]);
    let server = Server::start(serve.arg(folder.path()), port);
    let url = format!("rest:http://ann:canary@127.0.0.1:{port}/a/b");
    round_trip(&url);
    let none = Repository::open(&location(&format!("rest:http://ann:canary@127.0.0.1:{port}/none"))).err().unwrap();
    assert_eq!(none.message, format!("there is no repository at rest:http://ann:***@127.0.0.1:{port}/none"));
    let denied = Repository::open(&location(&format!("rest:http://ann:canary2@127.0.0.1:{port}/a/b"))).err().unwrap();
    assert_eq!(denied.hints, ["Access was denied: check the permissions, keys or credentials."], "{denied:?}");
    drop(server);
    let away = Repository::open(&location(&url)).err().unwrap();
    assert_eq!(
        away.hints,
        ["The storage does not answer: check its address, the network and that it runs."],
        "{away:?}"
    );
    for error in [none, denied, away] {
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
    }
}

#[test]
fn a_repository_is_read_through_rclone() {
    need("rclone");
    let folder = TempDir::new().unwrap();
    round_trip(&format!("rclone::local:{}", folder.path().join("repository").display()));
}

/// Runs one test again in a process of its own with other environment variables, since those of this process belong
/// to all tests. `false` in that process.
fn run_again_with(test: &str, environment: &[(&str, &OsStr)]) -> bool {
    const MARK: &str = "LIFEBOAT_TEST_AGAIN";
    if std::env::var_os(MARK).is_some() {
        return false;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", test, "--test-threads", "1"]).env(MARK, "1").envs(environment.iter().copied());
    assert!(run(&mut again).contains("1 passed"));
    true
}

#[test]
fn an_s3_bucket_is_read() {
    need("moto_server");
    let key = OsStr::new("test");
    let environment = [("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", key)];
    if run_again_with("backup::an_s3_bucket_is_read", &environment) {
        return;
    }
    let port = free_port();
    let _server = Server::start(Command::new("moto_server").args(["-H", "127.0.0.1", "-p", &port.to_string()]), port);
    let none = Repository::open(&location(&format!("s3:http://127.0.0.1:{port}/nothing/db"))).err().unwrap();
    assert_eq!(none.message, format!("there is no repository at s3:http://127.0.0.1:{port}/nothing/db"), "{none:?}");
    round_trip(&format!("s3:http://127.0.0.1:{port}/backups/a/db"));
}

#[test]
fn a_folder_behind_ssh_is_read() {
    need("sshd");
    need("ssh-keygen");
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    // ssh takes its settings from the home that the system knows, whatever HOME says: a script stands before it.
    fs::write(path("ssh"), format!("#!/bin/sh\nexec /usr/bin/ssh -F {}/client \"$@\"\n", folder.path().display()))
        .unwrap();
    fs::set_permissions(path("ssh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let search = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let shared = std::env::var_os("LIFEBOAT_TEST_SSH").map(PathBuf::from);
    let environment = [("PATH", OsStr::new(&search)), ("LIFEBOAT_TEST_SSH", folder.path().as_os_str())];
    let Some(shared) = shared else {
        make_ssh_keys(folder.path());
        let port = free_port();
        let write = |name: &str, text: String| fs::write(path(name), text).unwrap();
        let at = folder.path().display();
        write(
            "server",
            format!(
                "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host\nPidFile none\nAuthorizedKeysFile {at}/user.pub\nStrictModes no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n"
            ),
        );
        write(
            "client",
            format!(
                "Host stored\nHostName 127.0.0.1\nPort {port}\nIdentityFile {at}/user\nIdentitiesOnly yes\nUserKnownHostsFile {at}/known\nStrictHostKeyChecking accept-new\nHost stranger\nHostName 127.0.0.1\nPort {port}\nIdentityFile {at}/nothing\nIdentitiesOnly yes\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n"
            ),
        );
        let _server = Server::start(Command::new("/usr/sbin/sshd").args(["-D", "-f"]).arg(path("server")), port);
        assert!(run_again_with("backup::a_folder_behind_ssh_is_read", &environment));
        return;
    };
    let missing = shared.join("repository/none");
    let none = Repository::open(&location(&format!("sftp:stored:{}", missing.display()))).err().unwrap();
    assert_eq!(none.message, format!("there is no repository at sftp:stored:{}", missing.display()), "{none:?}");
    assert!(!shared.join("repository").exists(), "looking for a repository creates nothing");
    let denied = Repository::open(&location("sftp:stranger:/x")).err().unwrap();
    assert_eq!(denied.hints, ["Access was denied: check the permissions, keys or credentials."], "{denied:?}");
    round_trip(&format!("sftp:stored:{}", shared.join("repository").display()));
}

/// Makes the keys of a private SSH server.
pub fn make_ssh_keys(folder: &Path) {
    fs::create_dir_all("/run/sshd").unwrap();
    for key in ["host", "user"] {
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.join(key)));
    }
}
