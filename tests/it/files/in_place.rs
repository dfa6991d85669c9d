//! Faults while files are put back in place, and while that is taken back: whichever system call fails, and wherever the
//! process is killed, files are the old ones or the new ones, all of them, and it is known which. The names are those of the
//! fault matrix.

use lifeboat::error::{Error, Kind};
use lifeboat::files::put::Placed;

use super::*;

/// Calls that change something, or that tell whether it was changed.
const CALLS: &str = "openat2,openat,mkdirat,symlinkat,pwrite64,ftruncate,fchown,fchownat,fchmod,fsetxattr,utimensat,fsync,\
                     renameat2,unlinkat,readlinkat,newfstatat";

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
        strace.args(["-f", "-qq", "-o"]).arg(self.path("strace.log")).arg("-e").arg(format!("trace={CALLS}"));
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
}

impl Deed {
    fn run(self, folder: &Path) {
        let outcome = match self {
            Self::Put(choice) => {
                let password = Password::Given(Secret::new(PASSWORD.into()));
                let url = folder.join("repository").display().to_string();
                let repository = Repository::open(&Location { url, password }).unwrap();
                let snapshot = repository.find(&choice.point).unwrap();
                put(&(repository, snapshot), &choice)
            }
            Self::Undo(placed) => put::undo(&placed, &Progress::default()),
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
    for (when, error) in [("", "EIO"), ("", "ENOSPC"), ("+", "EIO")] {
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
