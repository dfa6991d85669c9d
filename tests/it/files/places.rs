//! What stands in the way of putting a file back: things of other kinds, users without the right, file systems that do not
//! play along, owners who are others now. The names are those of the fault matrix.

use super::*;
use crate::forge::Forge;

/// What a file is put back over, and what is said to it; `None`: it is put back.
fn target(machine: &Machine, of: &(Repository, Snapshot), name: &str) -> Option<String> {
    let choice = machine.freeze(of, &[name], Policy::MissingAndChanged);
    if let Some(why) = choice.left_out.values().next() {
        assert_eq!(choice.items.len(), 0, "{name}: {choice:?}");
        return Some(why.clone());
    }
    put(of, &choice)
        .err()
        .map(|error| format!("{}. {}", error.message, error.hints.first().cloned().unwrap_or_default()))
}

/// A mount that goes with the test.
struct Mounted(PathBuf);

impl Mounted {
    fn new(arguments: &[&str], at: &Path) -> Option<Self> {
        let mounted = Command::new("mount").args(arguments).arg(at).stderr(Stdio::null()).status().unwrap().success();
        mounted.then(|| Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn fm_80_whatever_stands_there_it_is_replaced_in_one_act_or_left_as_it_is() {
    let machine = Machine::new();
    let long = "n".repeat(255);
    let names =
        ["plain", "link", "folder", "twins", "pipe", "running", "mapped", "bound", "immutable", "ro/file", &long];
    for name in names {
        machine.write(name, "good");
    }
    let of = machine.back_up();
    let srv = machine.srv();
    for name in names.iter().filter(|name| **name != long) {
        fs::remove_file(srv.join(name)).unwrap();
    }
    machine.write("plain", "bad");
    symlink("/etc/passwd", srv.join("link")).unwrap();
    machine.write("folder/inside", "bad");
    machine.write("twins", "bad");
    fs::hard_link(srv.join("twins"), srv.join("twins-too")).unwrap();
    assert!(Command::new("mkfifo").arg(srv.join("pipe")).status().unwrap().success());
    // A program that runs, and a file that another one has mapped and goes on writing to.
    fs::copy("/bin/sleep", srv.join("running")).unwrap();
    let mut running = Command::new(srv.join("running")).arg("60").spawn().unwrap();
    let mut held = fs::File::create(machine.write("mapped", "bad")).unwrap();
    std::io::Write::write_all(&mut held, b"before, ").unwrap();
    machine.write(&long, "bad");

    let says = |name: &str, words: &str| {
        let told = target(&machine, &of, name).unwrap_or_else(|| panic!("{name} was put back"));
        assert!(told.contains(words), "{name}: {told}");
    };
    says("link", "a symlink stands there");
    says("folder", "a folder stands there");
    says("twins", "2 names");
    says("pipe", "a device, pipe or socket stands there");
    says(&long, "its name is too long");
    for name in ["plain", "running", "mapped"] {
        assert_eq!(target(&machine, &of, name), None, "{name}");
        assert_eq!(fs::read(srv.join(name)).unwrap(), b"good", "{name}");
    }
    assert!(running.try_wait().unwrap().is_none());
    running.kill().unwrap();
    running.wait().unwrap();
    std::io::Write::write_all(&mut held, b"and after").unwrap();
    assert_eq!(fs::read(srv.join("mapped.pre-r1")).unwrap(), b"before, and after");
    assert_eq!(fs::read(srv.join("link")).unwrap(), fs::read("/etc/passwd").unwrap());

    machine.write("bound", "bad");
    machine.write("ro/file", "bad");
    machine.write("immutable", "bad");
    let other = machine.folder.path().join("other");
    fs::write(&other, "of another file system").unwrap();
    let Some(_bound) = Mounted::new(&["--bind", other.to_str().unwrap()], &srv.join("bound")) else {
        crate::not_run("fm_80 needs the right to mount a file system");
        return;
    };
    says("bound", "Something is mounted there");
    let ro = srv.join("ro");
    let _ro = Mounted::new(&["--bind", ro.to_str().unwrap()], &ro).unwrap();
    assert!(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&ro).status().unwrap().success());
    says("ro/file", "mounted read-only");
    let chattr =
        |flag: &str| Command::new("chattr").arg(flag).arg(srv.join("immutable")).stderr(Stdio::null()).status();
    if chattr("+i").is_ok_and(|status| status.success()) {
        says("immutable", "marked immutable");
        chattr("-i").unwrap();
    } else {
        crate::not_run("fm_80: this file system knows no immutable files");
    }
    assert_eq!(target(&machine, &of, "immutable"), None);
    assert_eq!(fs::read(srv.join("bound")).unwrap(), b"of another file system");
}

#[test]
fn fm_80_on_file_systems_that_cannot_do_everything_it_is_done_or_refused_and_what_is_lost_is_told() {
    let machine = Machine::new();
    for folder in ["tmpfs", "ramfs", "overlay", "vfat"] {
        let file = fs::File::open(machine.write(&format!("{folder}/file"), "good")).unwrap();
        rustix::fs::fsetxattr(&file, "user.note", b"noted", rustix::fs::XattrFlags::empty()).unwrap();
        std::os::unix::fs::chown(machine.srv().join(folder).join("file"), Some(4711), Some(4712)).unwrap();
    }
    let of = machine.back_up();
    fs::remove_dir_all(machine.srv()).unwrap();
    let mut mounted = Vec::new();
    for folder in ["tmpfs", "ramfs", "overlay", "vfat"] {
        let at = machine.srv().join(folder);
        fs::create_dir_all(&at).unwrap();
        let layer = |name: &str| {
            let path = machine.folder.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path.display().to_string()
        };
        let image = machine.folder.path().join("image");
        let overlay = format!("lowerdir={},upperdir={},workdir={}", layer("lower"), layer("upper"), layer("work"));
        fs::write(machine.folder.path().join("lower/file"), "bad").unwrap();
        let arguments: Vec<&str> = match folder {
            "overlay" => vec!["-t", "overlay", "-o", &overlay, "overlay"],
            "vfat" => {
                fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
                let made = Command::new("mkfs.vfat").arg(&image).stdout(Stdio::null()).stderr(Stdio::null()).status();
                if !made.is_ok_and(|status| status.success()) {
                    crate::not_run("fm_80: no mkfs.vfat");
                    continue;
                }
                vec!["-t", "vfat", "-o", "loop", image.to_str().unwrap()]
            }
            other => vec!["-t", other, other],
        };
        let Some(mount) = Mounted::new(&arguments, &at) else {
            crate::not_run(&format!("fm_80: cannot mount {folder}"));
            continue;
        };
        machine.write(&format!("{folder}/file"), "bad");
        let choice = machine.freeze(&of, &[&format!("{folder}/file")], Policy::MissingAndChanged);
        let outcome = put(&of, &choice);
        let now = fs::read(at.join("file")).unwrap();
        match outcome {
            Ok(put) => {
                assert_eq!(now, b"good", "{folder}");
                assert_eq!(fs::read(at.join("file.pre-r1")).unwrap(), b"bad", "{folder}");
                println!("{folder}: {:?}", put.notes);
                let mut value = [0; 16];
                let attribute = rustix::fs::lgetxattr(at.join("file"), "user.note", &mut value[..]).is_ok();
                assert_eq!(attribute, !put.notes.0.keys().any(|note| note.starts_with("user.note")), "{folder}");
                let owner = fs::metadata(at.join("file")).unwrap().uid() == 4711;
                assert_eq!(owner, !put.notes.0.keys().any(|note| note.starts_with("the owner")), "{folder}");
            }
            Err(error) => {
                println!("{folder}: {error:?}");
                assert_eq!(now, b"bad", "{folder}");
                assert_eq!(at.read_dir().unwrap().count(), 1, "{folder}");
                assert!(error.hints[0].contains("in one act"), "{folder}: {error:?}");
            }
        }
        mounted.push(mount);
    }
    assert!(!mounted.is_empty() || !nix::unistd::geteuid().is_root());
}

#[test]
fn fm_79_owners_who_are_others_here_are_asked_about_and_go_by_name_or_by_number() {
    let machine = Machine::new();
    let mut forge = Forge::open(&machine.repository(), PASSWORD);
    let mut nodes = Vec::new();
    for (name, user, uid) in [("a", "daemon", 4242), ("b", "nobody-of-that-name", 1), ("c", "", 4243), ("d", "root", 0)]
    {
        let mut node = forge.file(name, name);
        (node["user"], node["group"], node["uid"], node["gid"]) = (user.into(), user.into(), uid.into(), uid.into());
        nodes.push(node);
    }
    forge.finish(&machine.srv(), &nodes);
    let of = machine.newest();
    let paths = [machine.srv().display().to_string()];
    let strangers = choice::strangers(&of.0, &of.1, &paths, &Progress::default()).unwrap();
    let told: Vec<_> = strangers.iter().map(|one| (one.uid, one.was.as_str(), one.is.as_str())).collect();
    assert_eq!(told, [(1, "nobody-of-that-name", "daemon"), (4242, "daemon", "")]);
    let daemon = nix::unistd::User::from_name("daemon").unwrap().unwrap().uid.as_raw();
    for (own, expected) in [(Own::Names, [daemon, 1, 4243, 0]), (Own::Numbers, [4242, 1, 4243, 0]), (Own::Me, [0; 4])] {
        let into = machine.home().join(format!("{own:?}"));
        let (progress, to) = (Progress::default(), (into.as_path(), own));
        let measure = beside::measure(&of.0, &of.1, &paths, &progress).unwrap();
        let restored = beside::restore((&of.0, &of.1), &paths, to, "r1", (&measure, &progress)).unwrap();
        let back = into.join(machine.srv().strip_prefix("/").unwrap());
        let found = ["a", "b", "c", "d"].map(|name| fs::metadata(back.join(name)).unwrap().uid());
        if nix::unistd::geteuid().is_root() {
            assert_eq!(found, expected, "{own:?}");
        }
        assert_eq!(restored.notes.0.is_empty(), own != Own::Me, "{own:?}: {:?}", restored.notes);
    }
}

#[test]
fn fm_78_79_an_ordinary_user_gets_what_he_may_have_and_is_told_of_the_rest() {
    if !nix::unistd::geteuid().is_root() {
        crate::not_run("fm_79 needs root, to become somebody else");
        return;
    }
    let machine = Machine::new();
    let noted = machine.write("docs/read-only", "good");
    let file = fs::File::open(&noted).unwrap();
    rustix::fs::fsetxattr(&file, "user.note", b"noted", rustix::fs::XattrFlags::empty()).unwrap();
    fs::set_permissions(&noted, fs::Permissions::from_mode(0o400)).unwrap();
    machine.write("closed/secret", "good");
    let of = machine.back_up();
    for path in [machine.folder.path(), &machine.repository()] {
        assert!(Command::new("chmod").arg("-R").arg("a+rX").arg(path).status().unwrap().success());
    }
    fs::set_permissions(machine.folder.path().join("password"), fs::Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::chown(machine.home(), Some(65534), Some(65534)).unwrap();
    fs::set_permissions(machine.srv().join("closed"), fs::Permissions::from_mode(0o755)).unwrap();
    machine.write("closed/secret", "bad");
    fs::set_permissions(machine.folder.path().join("password"), fs::Permissions::from_mode(0o644)).unwrap();
    let run = |arguments: &[&str]| {
        let command = machine.command(arguments);
        let mut nobody = Command::new("setpriv");
        nobody
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(command.get_program())
            .args(command.get_args());
        nobody.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = nobody.stdin(Stdio::null()).output().unwrap();
        let told = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&told).into_owned())
    };
    let into = machine.home().join("back");
    let docs = machine.path("docs");
    let (code, told) = run(&["restore-files", &of.1.id, &docs, "--into", into.to_str().unwrap()]);
    if told.contains("Permission denied") && !into.exists() {
        crate::not_run("fm_79: the program cannot be reached by an ordinary user here");
        return;
    }
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("the owner: it belongs to whoever brought it back"), "{told}");
    let back = into.join(docs.trim_start_matches('/')).join("read-only");
    let mut value = [0; 16];
    assert_eq!(rustix::fs::lgetxattr(&back, "user.note", &mut value[..]).unwrap(), 5, "{told}");
    let facts = fs::metadata(&back).unwrap();
    assert_eq!((facts.mode() & 0o7777, facts.uid()), (0o400, 65534));
    let secret = machine.path("closed/secret");
    let (code, told) = run(&["restore-files", &of.1.id, &secret, "--in-place", "--consent", "secret"]);
    assert!(code == Some(5) && told.contains("This user may not do that there"), "{code:?} {told}");
    assert_eq!(fs::read(secret).unwrap(), b"bad");
}

#[test]
fn of_a_plan_single_files_are_left_out_and_the_rest_is_put_in_place() {
    let machine = Machine::new();
    for name in ["a", "b", "folder/c", "folder/d"] {
        machine.write(name, "good");
    }
    let (_, snapshot) = machine.back_up();
    for name in ["a", "b"] {
        machine.write(name, "bad");
    }
    fs::remove_dir_all(machine.srv().join("folder")).unwrap();
    let (srv, a, c) = (machine.path(""), machine.path("a"), machine.path("folder/c"));
    let but = |consent| {
        ["restore-files", &snapshot.id, &srv, "--in-place", "--except", &a, "--except", &c, "--consent", consent]
    };
    let refused = machine.run(&but("put back 4 files"));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("\"put back 2 files\""), "{refused:?}");
    let report = machine.out(&but("put back 2 files"));
    assert!(report.contains("2 files put in place") && report.contains("without"), "{report}");
    let read = |name: &str| fs::read(machine.srv().join(name)).ok();
    assert_eq!([read("a"), read("b")], [Some(b"bad".to_vec()), Some(b"good".to_vec())]);
    assert_eq!([read("folder/c"), read("folder/d")], [None, Some(b"good".to_vec())]);
    let wrong =
        machine.run(&["restore-files", &snapshot.id, &srv, "--in-place", "--except", "/nothing", "--consent", "x"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("nothing would be put in place at /nothing"), "{wrong:?}");
}
