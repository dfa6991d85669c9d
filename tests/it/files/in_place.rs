//! Faults while files are put back in place, and while that is taken back: whichever system call fails, and wherever the
//! process is killed, files are the old ones or the new ones, all of them, and it is known which. The names are those of the
//! fault matrix.

use lifeboat::error::{Error, Kind};
use lifeboat::files::put::Placed;

use super::*;

/// Calls that change something, or that tell whether it was changed.
const CALLS: &str = "openat2,openat,mkdirat,symlinkat,pwrite64,ftruncate,fchown,fchownat,fchmod,fsetxattr,utimensat,fsync,\
                     renameat2,unlinkat,readlinkat,newfstatat,syncfs";

/// What a process of its own does, told by its environment.
const DEED: &str = "LIFEBOAT_TEST_DEED";

/// Files of which one is to be replaced, one is gone with its folders, and one is a symlink.
struct Scene {
    machine: Machine,
    of: (Repository, Snapshot),
    choice: Choice,
    old: Vec<(String, Vec<u8>)>,
    new: Vec<(String, Vec<u8>)>,
}

impl Scene {
    fn new() -> Self {
        let machine = Machine::new();
        let good = machine.write("replaced", "good".repeat(1000));
        let file = fs::File::open(good).unwrap();
        rustix::fs::fsetxattr(&file, "user.note", b"noted", rustix::fs::XattrFlags::empty()).unwrap();
        machine.write("a/b/gone", "gone");
        symlink("good", machine.srv().join("link")).unwrap();
        let of = machine.back_up();
        let new = contents(&machine);
        fs::remove_dir_all(machine.srv()).unwrap();
        fs::create_dir(machine.srv()).unwrap();
        machine.write("replaced", "bad");
        symlink("bad", machine.srv().join("link")).unwrap();
        let choice = machine.freeze(&of, &[""], Policy::MissingAndChanged);
        let old = contents(&machine);
        assert_eq!((choice.writes(), choice.items.len()), (3, 5), "{choice:?}");
        Self { machine, of, choice, old, new }
    }

    /// Back to what stood there, as it was frozen.
    fn reset(&mut self) {
        for entry in fs::read_dir(self.machine.srv()).unwrap() {
            let path = entry.unwrap().path();
            let folder = fs::symlink_metadata(&path).unwrap().is_dir();
            if folder { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        }
        self.machine.write("replaced", "bad");
        symlink("bad", self.machine.srv().join("link")).unwrap();
        self.choice = self.machine.freeze(&self.of, &[""], Policy::MissingAndChanged);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.machine.folder.path().join(name)
    }

    /// Does the deed in a process of its own, in which a call fails, or ends it. `None`: it was killed.
    fn deed(&self, deed: &Deed, fault: Option<&str>) -> Option<Result<Put, Error>> {
        fs::write(self.path("deed"), serde_json::to_vec(&deed).unwrap()).unwrap();
        let _ = fs::remove_file(self.path("outcome"));
        let mut strace = Command::new("strace");
        // With the paths of descriptors; one thread writes files, so that calls stand in their order.
        strace
            .args(["-f", "-qq", "-y", "-o"])
            .env("RAYON_NUM_THREADS", "1")
            .arg(self.path("strace.log"))
            .arg("-e")
            .arg(format!("trace={CALLS}"));
        if let Some(fault) = fault {
            strace.args(["-e", &format!("inject={fault}")]);
        }
        let test = std::thread::current().name().unwrap().to_owned();
        strace.arg(std::env::current_exe().unwrap()).args(["--exact", &test, "--test-threads=1"]);
        strace.env(DEED, self.machine.folder.path()).env("RUST_BACKTRACE", "0");
        strace.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        serde_json::from_slice(&fs::read(self.path("outcome")).ok()?).ok()
    }

    /// The calls of the deed, each with its number among those of its name; before the first, it reads the repository.
    fn calls(&self, deed: &Deed) -> Vec<(String, usize)> {
        assert!(self.deed(deed, None).unwrap().is_ok());
        let log = fs::read_to_string(self.path("strace.log")).unwrap();
        let begun = log.lines().find(|line| line.contains("openat2(")).unwrap();
        let thread = begun.split(' ').next().unwrap();
        let (mut numbers, mut calls, mut begins) = (BTreeMap::new(), Vec::new(), false);
        for line in log.lines().filter(|line| line.split(' ').next() == Some(thread)) {
            let Some((name, _)) =
                line.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == ' ').split_once('(')
            else {
                continue;
            };
            if line.contains("/outcome\"") {
                break;
            }
            let number: &mut usize = numbers.entry(name.to_owned()).or_default();
            *number += 1;
            begins |= line == begun;
            calls.extend(begins.then(|| (name.to_owned(), *number)));
        }
        calls
    }

    /// Asserts that everything is old or everything new, and that nothing of ours is left. Returns whether it is new.
    fn is_new(&self, why: &str) -> bool {
        let now = contents(&self.machine);
        let new = now == self.new;
        // Folders that were made for what did not come may stay only where they could not be removed.
        assert!(new || now == self.old, "{why}: {now:?}");
        let names: Vec<_> = fs::read_dir(self.machine.srv()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!names.iter().any(|name| name.to_string_lossy().contains(".new-")), "{why}: {names:?}");
        new
    }
}

/// What is done in a process of its own.
#[derive(serde::Serialize, serde::Deserialize)]
enum Deed {
    Put(Choice),
    Undo(Vec<Placed>),
    Beside(PathBuf, Vec<String>),
}

impl Deed {
    fn run(self, folder: &Path) {
        let open = || {
            let password = Password::Given(Secret::new(PASSWORD.into()));
            let url = folder.join("repository").display().to_string();
            let repository = Repository::open(&Location { url, password }).unwrap();
            let snapshot = repository.snapshots().unwrap().remove(0);
            (repository, snapshot)
        };
        let outcome = match self {
            Self::Put(choice) => put(&open(), &choice),
            Self::Undo(placed) => put::undo(&placed, &Progress::default()),
            Self::Beside(into, paths) => {
                let ((repository, snapshot), progress) = (open(), Progress::default());
                let of = (&repository, &snapshot);
                let measure = beside::measure(of.0, of.1, &paths, &progress).unwrap();
                beside::restore(of, &paths, (&into, Own::Numbers), "r1", (&measure, &progress)).unwrap();
                Ok(Put::default())
            }
        };
        fs::write(folder.join("outcome"), serde_json::to_vec(&outcome).unwrap()).unwrap();
    }
}

/// Does the deed when this process was begun for it.
fn deed() -> bool {
    let Some(folder) = std::env::var_os(DEED).map(PathBuf::from) else { return false };
    let deed: Deed = serde_json::from_slice(&fs::read(folder.join("deed")).unwrap()).unwrap();
    deed.run(&folder);
    true
}

/// What is in the files, by their paths; what was kept aside does not count.
fn contents(machine: &Machine) -> Vec<(String, Vec<u8>)> {
    let names = facts(&machine.srv()).into_keys().map(|name| String::from_utf8(name).unwrap());
    names
        .filter(|name| !name.contains(".pre-"))
        .map(|name| {
            let path = machine.srv().join(&name);
            let link = fs::read_link(&path).map(|target| target.as_os_str().as_bytes().to_vec());
            (name, link.or_else(|_| fs::read(&path)).unwrap_or_default())
        })
        .collect()
}

/// All calls, or some spread over them, as many as the other loops of their kind are long.
fn some(calls: &[(String, usize)]) -> impl Iterator<Item = &(String, usize)> {
    calls.iter().step_by((calls.len() / (kills().max(30) as usize)).max(1))
}

#[test]
fn fm_18_19_77_whichever_call_fails_files_are_the_old_ones_or_the_new_ones_and_it_is_known_which() {
    if deed() {
        return;
    }
    let mut scene = Scene::new();
    let calls = scene.calls(&Deed::Put(scene.choice.clone()));
    let (mut tried, mut done, mut unknown) = (0, 0, 0);
    // Once, and from then on: then not even taking it back succeeds.
    for (when, error) in [("", "EIO"), ("", "EDQUOT"), ("+", "EIO")] {
        for (call, n) in some(&calls) {
            scene.reset();
            let fault = format!("{call}:error={error}:when={n}{when}");
            let outcome = scene.deed(&Deed::Put(scene.choice.clone()), Some(&fault));
            let new = match outcome {
                Some(Ok(put)) => {
                    assert_eq!(put.placed.len(), scene.choice.items.len(), "{fault}");
                    assert!(scene.is_new(&fault), "{fault}: said to be done");
                    let undone = put::undo(&put::undoable(&put.placed).0, &Progress::default()).unwrap();
                    assert_eq!(undone.placed.len(), 3, "{fault}");
                    true
                }
                Some(Err(error)) if error.kind != Kind::Unresolved => {
                    assert!(!scene.is_new(&fault), "{fault}: {error:?}");
                    false
                }
                // Nobody knows, or could say so: whoever resumes finds out.
                other => {
                    unknown += 1;
                    let settled = put::settle((&scene.of.0, &scene.of.1), &scene.choice, "r1").unwrap();
                    assert_eq!(scene.is_new(&fault), settled.is_some(), "{fault}: {other:?}");
                    settled.is_some()
                }
            };
            done += u32::from(new);
            tried += 1;
        }
    }
    println!("{tried} failures of {} calls: {done} done, {unknown} settled later", calls.len());
    assert!(done > 0 && done < tried, "{done} of {tried}");
}

#[test]
fn fm_77_killed_at_any_call_files_are_the_old_ones_or_the_new_ones() {
    if deed() {
        return;
    }
    let mut scene = Scene::new();
    let calls = scene.calls(&Deed::Put(scene.choice.clone()));
    let (mut tried, mut done) = (0, 0);
    for (call, n) in some(&calls) {
        scene.reset();
        let fault = format!("{call}:signal=KILL:when={n}");
        assert!(scene.deed(&Deed::Put(scene.choice.clone()), Some(&fault)).is_none(), "{fault}");
        // An application that holds the old file open goes on writing to it meanwhile.
        let old = [scene.machine.srv().join("replaced.new-r1"), scene.machine.srv().join("replaced.pre-r1")];
        let held = old.iter().find(|path| fs::read(path).is_ok_and(|bytes| bytes == b"bad"));
        if let Some(held) = held {
            fs::write(held, "bad, and more").unwrap();
        }
        let settled = put::settle((&scene.of.0, &scene.of.1), &scene.choice, "r1").unwrap();
        if held.is_some() {
            let kept = [old[1].clone(), scene.machine.srv().join("replaced")];
            let kept = kept.iter().find(|path| fs::read(path).is_ok_and(|bytes| bytes == b"bad, and more"));
            fs::write(kept.expect("what the application wrote is lost"), "bad").unwrap();
        }
        assert_eq!(scene.is_new(&fault), settled.is_some(), "{fault}");
        done += u32::from(settled.is_some());
        tried += 1;
    }
    println!("killed at {tried} calls: {done} done");
    assert!(done > 0 && done < tried, "{done} of {tried}");
}

#[test]
fn fm_77_an_undo_and_its_undo_are_done_or_not_wherever_they_fail_or_are_killed() {
    if deed() {
        return;
    }
    let mut scene = Scene::new();
    scene.reset();
    let put = put(&scene.of, &scene.choice).unwrap();
    let (mut now, cannot) = put::undoable(&put.placed);
    assert!(cannot.is_empty());
    let (mut is_new, mut done, mut tried) = (true, 0, 0);
    // Folders that were made stay, which an undo says.
    scene.old.extend([("a".to_owned(), Vec::new()), ("a/b".to_owned(), Vec::new())]);
    scene.old.sort();
    let calls = {
        let calls = scene.calls(&Deed::Undo(now.clone()));
        now = put::undoable(
            &serde_json::from_slice::<Result<Put, Error>>(&fs::read(scene.path("outcome")).unwrap())
                .unwrap()
                .unwrap()
                .placed,
        )
        .0;
        is_new = !is_new;
        calls
    };
    for fault in ["error=EIO", "signal=KILL"] {
        for (call, n) in some(&calls) {
            let fault = format!("{call}:{fault}:when={n}");
            let outcome = scene.deed(&Deed::Undo(now.clone()), Some(&fault));
            let turned = match outcome {
                Some(Ok(put)) => Some(put),
                Some(Err(error)) if error.kind != Kind::Unresolved => None,
                _ => put::settle_undo(&now).unwrap(),
            };
            if let Some(put) = turned {
                is_new = !is_new;
                let (can, cannot) = put::undoable(&put.placed);
                assert!(cannot.is_empty(), "{fault}: {cannot:?}");
                now = can;
                done += 1;
            }
            assert_eq!(scene.is_new(&fault), is_new, "{fault}");
            tried += 1;
        }
    }
    println!("{tried} undos, {done} done");
    assert!(done > 0 && done < tried, "{done} of {tried}");
}

/// What would be lost if the power went now: files that were written and folders whose names changed since they were last
/// synced.
#[derive(Default)]
struct Unsynced(BTreeSet<String>);

impl Unsynced {
    /// Follows the calls of a deed to its end, as strace wrote them. Asserts that nothing gets a name that somebody uses before
    /// it is on disk itself. Returns how many names were given.
    fn follow(&mut self, log: &str) -> u32 {
        let mut given = 0;
        for line in log.lines().skip_while(|line| !line.contains("openat2(")) {
            let Some((call, arguments)) = line.split_once('(') else { continue };
            let call = call.rsplit(' ').next().unwrap();
            if line.contains("/outcome\"") {
                return given;
            }
            if line.contains(") = -1 ") {
                continue;
            }
            assert!(!line.contains("unfinished"), "{line}");
            let mut paths = arguments.split('<').skip(1).map(|rest| rest.split_once('>').unwrap().0.to_owned());
            let names: Vec<&str> = arguments.split('"').skip(1).step_by(2).collect();
            match call {
                "pwrite64" | "ftruncate" | "fchmod" | "fchown" | "fsetxattr" => {
                    _ = self.0.insert(paths.next().unwrap());
                }
                "utimensat" if names.is_empty() => _ = self.0.insert(paths.next().unwrap()),
                "openat" | "openat2" if arguments.contains("O_CREAT") => _ = self.0.insert(paths.next().unwrap()),
                "mkdirat" | "symlinkat" | "unlinkat" => _ = self.0.insert(paths.next().unwrap()),
                "fsync" => _ = self.0.remove(&paths.next().unwrap()),
                "syncfs" => self.0.clear(),
                "renameat2" => {
                    let folder = paths.next().unwrap();
                    let moved = format!("{folder}/{}", names[0]);
                    let lost = self.0.iter().find(|path| Path::new(path).starts_with(&moved));
                    assert_eq!(lost, None, "{line}: its bytes or names may be lost");
                    self.0.insert(folder);
                    given += 1;
                }
                _ => {}
            }
        }
        panic!("the deed did not come to its end: {log}");
    }
}

/// A disk may keep a name and lose what it was written for, when nobody asks it for the order.
#[test]
fn fm_20_77_bytes_are_on_disk_before_their_names_and_names_before_it_is_said() {
    if deed() {
        return;
    }
    let mut scene = Scene::new();
    scene.reset();
    let put = scene.deed(&Deed::Put(scene.choice.clone()), None).unwrap().unwrap();
    let log = |scene: &Scene| fs::read_to_string(scene.path("strace.log")).unwrap();
    let mut unsynced = Unsynced::default();
    // Two exchanged and moved aside, one renamed.
    assert_eq!(unsynced.follow(&log(&scene)), 5);
    assert_eq!(unsynced.0, BTreeSet::new(), "it was said to be done");
    scene.deed(&Deed::Undo(put::undoable(&put.placed).0), None).unwrap().unwrap();
    assert_eq!(unsynced.follow(&log(&scene)), 3);
    assert_eq!(unsynced.0, BTreeSet::new(), "it was said to be taken back");
    // Few files are synced one by one, many together.
    let few = vec![scene.machine.srv().display().to_string()];
    scene.deed(&Deed::Beside(scene.path("few"), few), None).unwrap().unwrap();
    assert_eq!(unsynced.follow(&log(&scene)), 1);
    assert_eq!(unsynced.0, BTreeSet::new(), "it was said to be there");
    assert!(!log(&scene).contains("syncfs"));
    for number in 0..100 {
        scene.machine.write(&format!("many/{number}"), [number; 100]);
    }
    scene.of = scene.machine.back_up();
    let many = vec![scene.machine.path("many")];
    scene.deed(&Deed::Beside(scene.path("many"), many), None).unwrap().unwrap();
    assert_eq!(unsynced.follow(&log(&scene)), 1);
    assert_eq!(unsynced.0, BTreeSet::new(), "it was said to be there");
    assert!(log(&scene).contains("syncfs"));
}
