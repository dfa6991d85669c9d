//! Files come back: from real restic repositories, beside and in place, whatever their names, and whatever happens meanwhile.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lifeboat::backup::{Location, Password, Repository, Snapshot};
use lifeboat::files::catalog::{Catalog, Query, Search};
use lifeboat::files::choice::{self, Choice, Destination, Policy};
use lifeboat::files::put::{self, Put};
use lifeboat::files::write::Own;
use lifeboat::files::{beside, history};
use lifeboat::progress::Progress;
use lifeboat::secret::Secret;

use crate::resume::{kills, random};

mod browse;
mod damage;
mod hostile;
mod in_place;
mod places;

const PASSWORD: &str = "a canary in a coal mine";

/// A machine with files, and a repository of them.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(machine.srv()).unwrap();
        fs::create_dir(machine.home()).unwrap();
        fs::write(machine.folder.path().join("password"), PASSWORD).unwrap();
        machine.restic(&["init"]);
        machine
    }

    /// The folder that is backed up.
    fn srv(&self) -> PathBuf {
        self.folder.path().join("srv")
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    fn path(&self, name: &str) -> String {
        self.srv().join(name).display().to_string()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.srv().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn repository(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    fn restic(&self, arguments: &[&str]) {
        let mut restic = Command::new("restic");
        restic
            .arg("--no-cache")
            .args(arguments)
            .env("RESTIC_PASSWORD", PASSWORD)
            .env("RESTIC_REPOSITORY", self.repository());
        let output = restic.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn back_up(&self) -> (Repository, Snapshot) {
        self.restic(&["backup", "--tag", "fileserver", self.srv().to_str().unwrap()]);
        self.newest()
    }

    fn newest(&self) -> (Repository, Snapshot) {
        let password = Password::Given(Secret::new(PASSWORD.into()));
        let url = self.repository().display().to_string();
        let repository = Repository::open(&Location { url, password }).unwrap();
        let snapshot = repository.snapshots().unwrap().remove(0);
        (repository, snapshot)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.home());
        command.env("RESTIC_REPOSITORY", self.repository());
        command.env("RESTIC_PASSWORD_FILE", self.folder.path().join("password")).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn out(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What `lifeboat status` tells, when nothing is under way any more: the kernel takes a moment to let go of the locks of a
    /// killed process.
    fn recoveries_at_rest(&self) -> Vec<serde_json::Value> {
        let begun = std::time::Instant::now();
        loop {
            let status: serde_json::Value = serde_json::from_str(&self.out(&["status", "--json"])).unwrap();
            let rows = status["recoveries"].as_array().unwrap();
            if rows.iter().all(|row| row["state"] != "under way") {
                return rows.clone();
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{rows:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn freeze(&self, of: &(Repository, Snapshot), paths: &[&str], policy: Policy) -> Choice {
        let paths: Vec<String> = paths.iter().map(|path| self.path(path)).collect();
        let to = (&Destination::InPlace, policy, Own::Numbers);
        choice::freeze((&of.0, &of.1), &paths, to, "r1", &Progress::default()).unwrap()
    }
}

fn put(of: &(Repository, Snapshot), choice: &Choice) -> Result<Put, lifeboat::error::Error> {
    put::put((&of.0, &of.1), choice, "r1", &Progress::default())
}

/// Everything beneath a folder that has to come back, by path.
fn facts(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let (mut found, mut open) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let facts = fs::symlink_metadata(&path).unwrap();
            let content = if facts.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if facts.is_file() {
                let mut value = [0; 64];
                let attribute = rustix::fs::lgetxattr(&path, "user.note", &mut value[..]).unwrap_or(0);
                format!("{} {:?}", hash(&fs::read(&path).unwrap()), &value[..attribute])
            } else {
                open.extend(facts.is_dir().then(|| path.clone()));
                String::new()
            };
            let rights = facts.mode() & !0o6000;
            let time = (facts.mtime(), facts.mtime_nsec());
            let told = format!("{rights:o} {}:{} {time:?} {content}", facts.uid(), facts.gid());
            found.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), told);
        }
    }
    found
}

fn hash(bytes: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{} {:x}", bytes.len(), hasher.finish())
}

/// A tree with everything that a file system allows.
fn everything(machine: &Machine) {
    machine.write("plain.txt", "plain");
    machine.write("file[1].pdf", "the one in brackets");
    machine.write("file1.pdf", "another one");
    machine.write("a/b/c/d/deep", "deep");
    machine.write("line\nbreak\u{1b}[31m", "a name that wants to steer");
    machine.write("empty", "");
    fs::create_dir(machine.srv().join("no files")).unwrap();
    fs::write(machine.srv().join(OsStr::from_bytes(b"not\xffutf8")), "bytes").unwrap();
    fs::write(machine.srv().join("back\\xff"), "an honest backslash").unwrap();
    let large: Vec<u8> =
        (0..5_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    machine.write("large.bin", large);
    let sparse = fs::File::create(machine.srv().join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 30 << 20).unwrap();
    symlink("/etc/passwd", machine.srv().join("link")).unwrap();
    symlink("gone", machine.srv().join("dangling")).unwrap();
    fs::hard_link(machine.srv().join("plain.txt"), machine.srv().join("second name")).unwrap();
    let noted = machine.write("noted", "with an attribute");
    let file = fs::File::open(&noted).unwrap();
    rustix::fs::fsetxattr(&file, "user.note", b"\x00\xff", rustix::fs::XattrFlags::empty()).unwrap();
    let lent = machine.write("lends rights", "#!/bin/sh");
    fs::set_permissions(lent, fs::Permissions::from_mode(0o6755)).unwrap();
    let locked = machine.write("locked/inside", "locked");
    fs::set_permissions(locked, fs::Permissions::from_mode(0o400)).unwrap();
    fs::set_permissions(machine.srv().join("locked"), fs::Permissions::from_mode(0o500)).unwrap();
    assert!(Command::new("mkfifo").arg(machine.srv().join("pipe")).status().unwrap().success());
    let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789));
    fs::File::open(machine.srv().join("a/b")).unwrap().set_times(time).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(machine.srv().join("empty"), Some(4711), Some(4712)).unwrap();
        std::os::unix::fs::lchown(machine.srv().join("link"), Some(4711), Some(4712)).unwrap();
    }
}

#[test]
fn beside_everything_comes_back_as_it_was() {
    let machine = Machine::new();
    everything(&machine);
    let (_, snapshot) = machine.back_up();
    let into = machine.home().join("back");
    let srv = machine.srv().display().to_string();
    let arguments = ["restore-files", snapshot.short(), &srv, "--into", into.to_str().unwrap(), "--owner", "numbers"];
    let output = machine.run(&arguments);
    // What could not be brought back is no success, and is named.
    let (report, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(4), "{told}");
    assert!(told.contains("1 file could not be brought back"), "{told}");
    assert!(report.contains("pipe`: ") && !report.contains('\u{1b}'), "{report}");
    assert_eq!(fs::read(into.join(&srv[1..]).join("file[1].pdf")).unwrap(), b"the one in brackets");
    let refused = machine.run(&arguments);
    assert!(refused.status.code() == Some(3) && String::from_utf8_lossy(&refused.stderr).contains("is there already"));
}

/// As the one above, down to each fact.
#[test]
fn fm_57_78_81_what_comes_back_is_what_was_there() {
    let machine = Machine::new();
    everything(&machine);
    let (repository, snapshot) = machine.back_up();
    let (before, into) = (facts(&machine.srv()), machine.home().join("back"));
    // What lies beneath something else comes back once.
    let paths = [machine.path("sparse"), machine.srv().display().to_string(), machine.path("sparse")];
    let progress = Progress::default();
    let measure = beside::measure(&repository, &snapshot, &paths, &progress).unwrap();
    let restored =
        beside::restore((&repository, &snapshot), &paths, (&into, Own::Numbers), "r1", (&measure, &progress)).unwrap();
    assert_eq!(measure, beside::measure(&repository, &snapshot, &paths[1..2], &progress).unwrap());
    assert_eq!((restored.files, restored.folders), (measure.files, measure.folders));
    let back = into.join(machine.srv().strip_prefix("/").unwrap());
    let mut wanted = before;
    assert!(wanted.remove(&b"pipe"[..]).is_some());
    let found = facts(&back);
    for (path, told) in &wanted {
        assert_eq!(found.get(path), Some(told), "{}", String::from_utf8_lossy(path));
    }
    assert_eq!(found.len(), wanted.len());
    assert_eq!((restored.failures, restored.failed[0].1.as_str()), (1, "devices, pipes and sockets are not made"));
    let notes: Vec<_> = restored.notes.0.keys().cloned().collect();
    assert_eq!(notes, ["the set-uid or set-gid bit: left out, since it lends rights"]);
    assert_eq!(fs::metadata(back.join("lends rights")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(back.join("plain.txt")).unwrap().nlink(), 2);
    assert!(fs::metadata(back.join("sparse")).unwrap().blocks() * 512 < 1 << 20, "holes stay holes");
    assert!(!into.with_file_name("back.partial-r1").exists());
    // A second time it is refused, and nothing is touched.
    let again = beside::restore((&repository, &snapshot), &paths, (&into, Own::Numbers), "r2", (&measure, &progress));
    assert!(again.unwrap_err().message.ends_with("is there already"));
}

#[test]
fn one_file_is_addressed_by_its_name_and_never_by_a_pattern() {
    let machine = Machine::new();
    everything(&machine);
    let (_, snapshot) = machine.back_up();
    let cat = |name: &str| machine.run(&["cat", &format!("{}:{}", snapshot.short(), machine.path(name))]);
    assert_eq!(cat("file[1].pdf").stdout, b"the one in brackets");
    assert_eq!(cat("file1.pdf").stdout, b"another one");
    let none = cat("file[2].pdf");
    assert!(none.status.code() == Some(2) && String::from_utf8_lossy(&none.stderr).contains("file[1].pdf"));
    assert_eq!(cat("not\\xffutf8").stdout, b"bytes");
    let listing = machine.out(&["ls", &format!("{}:{}", snapshot.short(), machine.srv().display())]);
    assert!(!listing.contains('\u{1b}') && listing.contains("file[1].pdf"), "{listing}");
    assert!(listing.lines().any(|line| line.contains(" same ") && line.ends_with("plain.txt")), "{listing}");
    let every = machine.out(&["ls", "-r", snapshot.short()]);
    assert_eq!(
        every.lines().filter(|line| line.starts_with(machine.srv().to_str().unwrap())).count(),
        facts(&machine.srv()).len() + 1
    );
}

#[test]
fn a_file_is_found_its_versions_compared_and_put_back_and_taken_back() {
    let machine = Machine::new();
    let document = machine.write("www/uploads/important-document.pdf", "monday\n");
    fs::set_permissions(&document, fs::Permissions::from_mode(0o640)).unwrap();
    machine.write("www/uploads/other.pdf", "other");
    let (_, monday) = machine.back_up();
    fs::write(&document, "tuesday\n").unwrap();
    machine.back_up();
    machine.write("www/index.html", "new");
    let (_, last) = machine.back_up();
    fs::write(&document, "OVERWRITTEN\n").unwrap();
    fs::set_permissions(&document, fs::Permissions::from_mode(0o666)).unwrap();
    let path = document.to_str().unwrap();

    let found = machine.out(&["find", "impdoc"]);
    assert!(found.lines().next().unwrap().contains(path) && found.contains(last.short()), "{found}");
    let versions: serde_json::Value = serde_json::from_str(&machine.out(&["versions", path, "--json"])).unwrap();
    let contents = versions["versions"].as_array().unwrap();
    assert_eq!(contents.len(), 2);
    assert_eq!((contents[0]["snapshots"].as_u64(), contents[1]["snapshots"].as_u64()), (Some(2), Some(1)));
    assert_eq!(contents[1]["last"], monday.id);
    let diff = machine.out(&["versions", path, "--diff", monday.short(), "live"]);
    assert!(diff.contains("-monday") && diff.contains("+OVERWRITTEN"), "{diff}");
    let changes = machine.out(&["changes", monday.short(), last.short()]);
    assert!(changes.starts_with("0 gone, 1 changed, 1 new") && changes.contains(&format!("~ {path}")), "{changes}");

    // Without consent nothing happens, and the plan is shown.
    let refused = machine.run(&["restore-files", monday.short(), path, "--in-place"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(3) && told.contains("--consent \"important-document.pdf\""), "{told}");
    assert_eq!(fs::read(&document).unwrap(), b"OVERWRITTEN\n");

    let consent = ["restore-files", monday.short(), path, "--in-place", "--consent", "important-document.pdf"];
    let report = machine.out(&consent);
    assert_eq!(fs::read(&document).unwrap(), b"monday\n");
    assert_eq!(fs::metadata(&document).unwrap().mode() & 0o7777, 0o640);
    assert!(report.contains("1 file put in place, 1 earlier one kept beside them"), "{report}");
    let kept = fs::read_dir(document.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let kept: Vec<_> = kept.filter(|path| path.to_string_lossy().contains(".pre-")).collect();
    assert_eq!(fs::read(&kept[0]).unwrap(), b"OVERWRITTEN\n");
    // Once more, there is nothing to do.
    let again = machine.run(&consent);
    assert!(String::from_utf8_lossy(&again.stderr).contains("1 file is there already with the same content"));

    let id = |position: usize| {
        let status: serde_json::Value = serde_json::from_str(&machine.out(&["status", "--json"])).unwrap();
        let rows = status["recoveries"].as_array().unwrap();
        let wrote = rows.iter().filter(|row| row["told"].as_str().unwrap().contains("file"));
        wrote.map(|row| row["recovery"].as_str().unwrap().to_owned()).nth(position).unwrap()
    };
    let undo = |id: &str| machine.out(&["undo", id, "--consent", "important-document.pdf"]);
    let first = id(0);
    undo(&first);
    assert_eq!(fs::read(&document).unwrap(), b"OVERWRITTEN\n");
    assert_eq!(fs::metadata(&document).unwrap().mode() & 0o7777, 0o666);
    // Undone itself, and refused when somebody has changed it since.
    undo(&id(0));
    assert_eq!(fs::read(&document).unwrap(), b"monday\n");
    fs::write(&document, "edited since\n").unwrap();
    let refused = machine.run(&["undo", &id(0), "--consent", "important-document.pdf"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("somebody has changed it since"), "{refused:?}");
    assert_eq!(fs::read(&document).unwrap(), b"edited since\n");
}

#[test]
fn what_was_deleted_comes_back_with_its_folders_and_only_that() {
    let machine = Machine::new();
    machine.write("docs/a/one", "1");
    machine.write("docs/a/two", "2");
    machine.write("docs/b/three", "3");
    let of = machine.back_up();
    fs::remove_dir_all(machine.srv().join("docs/a")).unwrap();
    fs::write(machine.srv().join("docs/b/three"), "changed").unwrap();
    let choice = machine.freeze(&of, &["docs"], Policy::Missing);
    assert_eq!((choice.writes(), choice.items.len(), choice.left_out.len()), (2, 3, 1));
    let done = put(&of, &choice).unwrap();
    assert_eq!(fs::read(machine.srv().join("docs/a/two")).unwrap(), b"2");
    assert_eq!(fs::read(machine.srv().join("docs/b/three")).unwrap(), b"changed");
    let (can, cannot) = put::undoable(&done.placed);
    assert_eq!((can.len(), cannot.len()), (2, 0));
    put::undo(&can, &Progress::default()).unwrap();
    assert!(!machine.srv().join("docs/a/two").exists() && machine.srv().join("docs/a/two.pre-r1").exists());
}

#[test]
fn thousands_of_files_are_put_in_place_and_taken_back_with_few_descriptors() {
    let machine = Machine::new();
    for number in 0..3000 {
        machine.write(&format!("folder{}/{number}", number % 60), format!("good {number}"));
    }
    let (_, snapshot) = machine.back_up();
    let good = facts(&machine.srv());
    for number in 0..3000 {
        machine.write(&format!("folder{}/{number}", number % 60), "bad");
    }
    let bad = facts(&machine.srv());
    let limited = |arguments: &[&str]| {
        let mut command = Command::new("prlimit");
        command.args(["--nofile=256", "--", env!("CARGO_BIN_EXE_lifeboat")]).args(arguments);
        let plain = machine.command(&[]);
        command.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let without_kept = |mut found: BTreeMap<Vec<u8>, String>| {
        found.retain(|path, facts| !String::from_utf8_lossy(path).contains(".pre-") && !facts.ends_with(") "));
        found
    };
    let srv = machine.srv().display().to_string();
    let consent = ["--consent", "put back 3,000 files", "--owner", "numbers"];
    limited(&[&["restore-files", snapshot.short(), &srv, "--in-place"], &consent[..]].concat());
    assert_eq!(without_kept(facts(&machine.srv())), without_kept(good));
    let status: serde_json::Value = serde_json::from_str(&machine.out(&["status", "--json"])).unwrap();
    let id = status["recoveries"][0]["recovery"].as_str().unwrap().to_owned();
    let refused = machine.run(&["undo", &id]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    let phrase =
        told.split("--consent \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_else(|| panic!("{told}"));
    limited(&["undo", &id, "--consent", phrase]);
    assert_eq!(without_kept(facts(&machine.srv())), without_kept(bad));
}

#[test]
fn a_file_that_is_marked_by_itself_is_replaced_and_one_in_a_marked_folder_stays() {
    let machine = Machine::new();
    for name in ["docs/gone", "docs/typed again", "docs/broken", "letter"] {
        machine.write(name, "good");
    }
    let of = machine.back_up();
    fs::remove_file(machine.srv().join("docs/gone")).unwrap();
    for name in ["docs/typed again", "docs/broken", "letter"] {
        machine.write(name, "another one");
    }
    let choice = machine.freeze(&of, &["docs", "docs/broken", "letter"], Policy::MissingAndMarked);
    let left_out: Vec<_> = choice.left_out.iter().map(|(path, why)| format!("{path}: {why}")).collect();
    assert_eq!(left_out, [format!("{}: it has changed, and was not to be replaced", machine.path("docs/typed again"))]);
    put(&of, &choice).unwrap();
    let read = |name: &str| fs::read_to_string(machine.srv().join(name)).unwrap();
    let now = ["docs/gone", "docs/typed again", "docs/broken", "letter", "letter.pre-r1"].map(read);
    assert_eq!(now, ["good", "another one", "good", "good", "another one"]);
}

#[test]
fn what_is_not_as_it_was_seen_stops_everything_and_nothing_is_left() {
    let machine = Machine::new();
    for name in ["a", "b", "c"] {
        machine.write(name, "good");
    }
    let of = machine.back_up();
    for name in ["a", "b", "c"] {
        machine.write(name, "bad!");
    }
    let choice = machine.freeze(&of, &["a", "b", "c"], Policy::MissingAndChanged);
    machine.write("c", "newer");
    let before = facts(&machine.srv());
    let error = put(&of, &choice).unwrap_err();
    assert!(error.message.ends_with("is not as it was when it was looked at"), "{error:?}");
    assert_eq!(facts(&machine.srv()), before);
}

#[test]
fn fm_76_a_link_in_the_way_is_never_followed() {
    let machine = Machine::new();
    machine.write("dir/secret", "from the backup");
    machine.write("file", "from the backup");
    machine.write("twins", "from the backup");
    let of = machine.back_up();
    let outside = machine.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "outside").unwrap();
    fs::remove_dir_all(machine.srv().join("dir")).unwrap();
    symlink(&outside, machine.srv().join("dir")).unwrap();
    fs::remove_file(machine.srv().join("file")).unwrap();
    symlink(outside.join("secret"), machine.srv().join("file")).unwrap();
    machine.write("twins", "changed");
    fs::hard_link(machine.srv().join("twins"), machine.srv().join("other name")).unwrap();
    let choice = machine.freeze(&of, &["dir/secret", "file", "twins"], Policy::MissingAndChanged);
    assert_eq!(choice.writes(), 0, "{choice:?}");
    let why: Vec<_> = choice.left_out.values().cloned().collect();
    assert!(why[0].contains("A symlink, or something else"), "{why:?}");
    assert!(why[1].contains("a symlink stands there; it is not followed") && why[2].contains("2 names"), "{why:?}");
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"outside");
}

#[test]
fn fm_76_whoever_exchanges_folders_meanwhile_gets_nothing_written_elsewhere() {
    let machine = Machine::new();
    machine.write("dir/file", "from the backup");
    let of = machine.back_up();
    let outside = machine.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "outside").unwrap();
    machine.write("dir/file", "present");
    symlink(&outside, machine.srv().join("trap")).unwrap();
    let stop = AtomicBool::new(false);
    let (dir, trap) = (machine.srv().join("dir"), machine.srv().join("trap"));
    let (mut done, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &dir, rustix::fs::CWD, &trap, exchange).unwrap();
            }
        });
        for number in 0..2000 {
            let paths = [machine.path("dir/file")];
            let (progress, id) = (Progress::default(), format!("r{number}"));
            let to = (&Destination::InPlace, Policy::MissingAndChanged, Own::Numbers);
            let outcome = choice::freeze((&of.0, &of.1), &paths, to, &id, &progress)
                .and_then(|choice| put::put((&of.0, &of.1), &choice, &id, &progress));
            match outcome {
                Ok(put) if !put.placed.is_empty() => {
                    done += 1;
                    spoil(&dir);
                    spoil(&trap);
                }
                _ => refused += 1,
            }
            if outside.join("file").metadata().unwrap().len() != 7 || fs::read_dir(&outside).unwrap().count() != 1 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{done} put in place, {refused} refused");
    let left: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["file"], "nothing was written outside");
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"outside");
    assert!(refused > 0);
}

/// Writes into the file of a folder, if it is one at this very moment: a symlink that it may be the next is not followed.
fn spoil(folder: &Path) {
    use rustix::fs::{Mode, OFlags};
    use std::io::Write as _;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(held) = rustix::fs::open(folder, flags, Mode::empty()) else { return };
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(held, "file", flags, Mode::empty());
    fs::File::from(file.unwrap()).write_all(b"present").unwrap();
}

#[test]
fn fm_77_killed_at_any_instant_files_are_the_old_ones_or_the_new_ones() {
    let machine = Machine::new();
    let names: Vec<String> = (0..40).map(|number| format!("file{number}")).collect();
    for name in &names {
        machine.write(name, format!("good {name}").repeat(1000));
    }
    let (_, snapshot) = machine.back_up();
    let good = facts(&machine.srv());
    let srv = machine.srv().display().to_string();
    let spoil = || {
        for entry in fs::read_dir(machine.srv()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for name in names.iter().step_by(2) {
            machine.write(name, "bad");
        }
        let _ = fs::remove_dir_all(machine.home().join(".local"));
    };
    let contents = || -> BTreeMap<String, Vec<u8>> {
        let files = fs::read_dir(machine.srv()).unwrap().map(|entry| entry.unwrap().path());
        let read = files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap()));
        read.filter(|(name, _)| !name.contains(".pre-")).collect()
    };
    spoil();
    let bad = contents();
    let arguments =
        ["restore-files", snapshot.short(), &srv, "--in-place", "--consent", "put back 40 files", "--owner", "numbers"];
    let begun = std::time::Instant::now();
    let output = machine.run(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let whole = begun.elapsed();
    let repaired = contents();
    assert_eq!(repaired.len(), good.len());
    let (mut seed, mut applied, runs) = (77, 0, kills().max(50) / 2);
    for run in 0..runs {
        spoil();
        let delay = whole.mul_f64(0.3 + random(&mut seed) * 0.8);
        let mut child = machine.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(delay);
        kill_workers(&machine);
        let _ = child.kill();
        let _ = child.wait();
        kill_workers(&machine);
        let rows = machine.recoveries_at_rest();
        for row in rows.iter().filter(|row| row["state"] == "left") {
            machine.out(&["resume", row["recovery"].as_str().unwrap()]);
        }
        let now = contents();
        let done = now == repaired;
        assert!(done || now == bad, "run {run}, killed after {delay:?}: {:?} {rows:?}", now.keys());
        let status: serde_json::Value = serde_json::from_str(&machine.out(&["status", "--json"])).unwrap();
        let told = status["recoveries"].to_string();
        assert_eq!(told.contains("40 files put in place"), done, "run {run}, killed after {delay:?}: {told}");
        applied += u32::from(done);
    }
    println!("{applied} of {runs} had been put in place");
    assert!(applied > 0 && applied < runs, "{applied} of {runs}");
}

/// Kills the processes that do the work of this machine's recoveries.
fn kill_workers(machine: &Machine) {
    let home = format!("HOME={}", machine.home().display());
    loop {
        let workers = crate::resume::workers(&home);
        if workers.is_empty() {
            return;
        }
        for worker in workers {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), nix::sys::signal::Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn fm_80_81_without_space_or_right_it_is_refused_and_the_old_file_stays() {
    let machine = Machine::new();
    machine.write("disk/large", vec![7_u8; 3 << 20]);
    let of = machine.back_up();
    fs::remove_dir_all(machine.srv().join("disk")).unwrap();
    fs::create_dir(machine.srv().join("disk")).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(machine.srv().join("disk"))
        .output()
        .unwrap();
    if !mounted.status.success() {
        crate::not_run("fm_80 needs the right to mount a file system");
        return;
    }
    machine.write("disk/large", "the present one");
    let paths = [machine.path("disk/large")];
    let freeze = || {
        let to = (&Destination::InPlace, Policy::MissingAndChanged, Own::Numbers);
        choice::freeze((&of.0, &of.1), &paths, to, "r1", &Progress::default())
    };
    let full = freeze().unwrap_err();
    // The space is gone after it was looked at: the write itself fails.
    let disk = machine.srv().join("disk");
    let remount = |how: &str| {
        assert!(Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&disk).status().unwrap().success());
    };
    remount("size=5m");
    let choice = freeze().unwrap();
    remount("size=1m");
    let failed = put(&of, &choice).unwrap_err();
    let kept = fs::read(machine.srv().join("disk/large")).unwrap();
    let names: Vec<_> = fs::read_dir(&disk).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    remount("size=5m");
    remount("ro");
    let read_only = put(&of, &freeze().unwrap()).unwrap_err();
    assert!(Command::new("umount").arg("-l").arg(&disk).status().unwrap().success());
    assert!(full.message.contains("are free at"), "{full:?}");
    assert!(failed.hints[0].contains("The disk is full"), "{failed:?}");
    assert!(read_only.hints[0].contains("mounted read-only"), "{read_only:?}");
    assert_eq!((kept, names), (b"the present one".to_vec(), vec!["large".into()]));
}

#[test]
fn a_search_finds_by_letters_and_is_narrowed_by_words() {
    let machine = Machine::new();
    for number in 0..300 {
        machine.write(&format!("projects/p{number}/notes-{number}.txt"), number.to_string());
    }
    machine.write("uploads/Important-Document.pdf", vec![0_u8; 2000]);
    let (repository, snapshot) = machine.back_up();
    let catalog = Catalog::read(&repository, &snapshot, &Progress::default()).unwrap();
    assert!(catalog.complete);
    let first = |typed: &str| catalog.search(&Query::parse(typed).unwrap(), 10);
    assert!(first("impdoc").best[0].path.ends_with("uploads/Important-Document.pdf"));
    assert_eq!(first("ext:pdf").matching, 1);
    assert_eq!(first("notes size:>2").matching, 200);
    assert_eq!(first("type:folder p12").best.len(), 10);
    assert_eq!(first("before:2001-01-01").matching, 0);
    // As somebody types, each further letter gives what a new search would.
    let mut search = Search::default();
    for end in 1..="notes-29".len() {
        let query = Query::parse(&"notes-29"[..end]).unwrap();
        assert_eq!(search.go(&catalog, &query, 20).0, catalog.search(&query, 20), "{query:?}");
    }
    let (all, holders) = Catalog::read_all(&repository, &[snapshot], &Progress::default()).unwrap();
    assert_eq!((all.len(), holders.len()), (catalog.len(), catalog.len() + 1));
    assert_eq!(catalog.sizes()[0].1, 301);
}

#[test]
fn a_mass_change_stands_out() {
    let machine = Machine::new();
    for folder in ["finance", "hr", "hr/2025", "hr/2025/may", "public", "public/kept"] {
        for number in 0..20 {
            machine.write(&format!("{folder}/{number}.doc"), format!("{folder} {number}"));
        }
    }
    let (_, before) = machine.back_up();
    machine.write("public/1.doc", "edited");
    let (_, still_good) = machine.back_up();
    machine.write("public/3.doc", "edited");
    for number in 0..20 {
        fs::remove_file(machine.srv().join(format!("finance/{number}.doc"))).unwrap();
        machine.write(&format!("finance/{number}.doc.locked"), "?");
    }
    fs::remove_dir_all(machine.srv().join("hr")).unwrap();
    let (repository, after) = machine.back_up();
    let changes = history::changes(&repository, (&before, &after), "/", 10, &Progress::default()).unwrap();
    assert_eq!((changes.total.gone, changes.total.changed, changes.total.new), (80, 2, 20));
    // So many of each kind are named: 10 gone, 2 changed, 10 new.
    assert_eq!(changes.files.len(), 22);
    let later = [still_good, after.clone()];
    let story = history::story(&repository, (&before, &later), changes, &Progress::default()).unwrap();
    let told = |worst: &history::Worst| (worst.path.clone(), worst.whole, worst.folder.gone + worst.folder.changed);
    // A folder that is lost whole is told of once, with all that was in it.
    let worst = [("hr", true, 60), ("finance", true, 20), ("public", false, 2)];
    assert_eq!(
        story.worst.iter().map(told).collect::<Vec<_>>(),
        worst.map(|(name, whole, lost)| (machine.path(name), whole, lost))
    );
    let since = |at: usize| story.worst[at].since.as_ref().map(|(id, _)| id);
    assert_eq!((since(0), since(1), since(2)), (Some(&after.id), Some(&after.id), None));
}
