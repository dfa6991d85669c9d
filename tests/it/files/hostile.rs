//! Snapshots that somebody forged who has the password: whatever they hold, nothing is written but where it was asked for,
//! and memory and time stay bounded. The names are those of the fault matrix.

use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::forge::{self, Forge, Told, attribute, folder_of, node};

/// A machine with a forged snapshot of its folder, and a canary beside that folder.
struct Forged {
    machine: Machine,
    of: (Repository, Snapshot),
    canary: BTreeMap<Vec<u8>, String>,
}

impl Forged {
    fn new(nodes: impl FnOnce(&mut Forge, &Path) -> Vec<Value>) -> Self {
        let machine = Machine::new();
        let outside = machine.folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "canary").unwrap();
        fs::set_permissions(outside.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::hard_link(outside.join("file"), outside.join("twin")).unwrap();
        symlink("file", outside.join("link")).unwrap();
        let mut forge = Forge::open(&machine.repository(), PASSWORD);
        let nodes = nodes(&mut forge, &outside);
        forge.finish(&machine.srv(), &nodes);
        let canary = canary(&machine);
        let of = machine.newest();
        Self { machine, of, canary }
    }

    fn beside(&self, into: &Path) -> Result<beside::Restored, lifeboat::error::Error> {
        let paths = [self.machine.srv().display().to_string()];
        let progress = Progress::default();
        let measure = beside::measure(&self.of.0, &self.of.1, &paths, &progress)?;
        let restored =
            beside::restore((&self.of.0, &self.of.1), &paths, (into, Own::Numbers), "r1", (&measure, &progress));
        self.unharmed();
        restored
    }

    fn in_place(&self) -> (Choice, Put) {
        let choice = self.machine.freeze(&self.of, &[""], Policy::MissingAndChanged);
        let put = put(&self.of, &choice).unwrap();
        self.unharmed();
        (choice, put)
    }

    /// Nothing outside of what was asked for has changed.
    fn unharmed(&self) {
        assert_eq!(canary(&self.machine), self.canary);
    }

    /// Of those that could not be brought back: by the last name of the path, why.
    fn reasons(&self, failed: &[(String, String)]) -> BTreeMap<String, String> {
        let srv = format!("{}/", &self.machine.srv().display().to_string()[1..]);
        failed.iter().map(|(path, why)| (path.strip_prefix(&srv).unwrap_or(path).to_owned(), why.clone())).collect()
    }
}

/// Everything around the folder that is restored: content, rights, owner, inode and how many names.
fn canary(machine: &Machine) -> BTreeMap<Vec<u8>, String> {
    let mut found: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    for entry in fs::read_dir(machine.folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().as_bytes().to_vec();
        if !matches!(&*name, b"srv" | b"home" | b"repository") {
            found.insert(name, format!("{:?}", fs::symlink_metadata(&path).unwrap().ino()));
        }
    }
    let outside = machine.folder.path().join("outside");
    for (path, told) in facts(&outside) {
        let meta = fs::symlink_metadata(outside.join(OsStr::from_bytes(&path))).unwrap();
        found.insert(path, format!("{told} {} {} {:?}", meta.ino(), meta.nlink(), meta.ctime()));
    }
    found
}

/// Names that are no names, or want to be more than that.
fn names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        "..",
        ".",
        "",
        "/abs",
        "a/b",
        "../outside/file",
        "../../etc/passwd",
        "nul\0byte",
        "twice",
        "twice",
        "Case",
        "case",
        "new\nline",
        "\u{1b}]52;c;ZXZpbA==\u{7}",
        "\u{1b}[2J",
        "back\\x2fslash",
        "\u{202e}fdp.exe",
        "-rf",
        "*",
        "$(touch x)",
    ]
    .iter()
    .map(|name| name.as_bytes().to_vec())
    .collect();
    names.push(vec![b'x'; 255]);
    names.push(vec![b'y'; 4096]);
    names.push(b"\xff\xfe".to_vec());
    names.push(b"\\xff\\xfe".to_vec());
    names
}

#[test]
fn fm_57_names_that_are_no_names_never_become_a_path() {
    let forged = Forged::new(|forge, _| {
        let mut nodes: Vec<Value> =
            names().iter().enumerate().map(|(number, name)| forge.file(name, number.to_string())).collect();
        for name in ["..", "/etc", "a/b/c", "", "."] {
            let inner = forge.file("inner", "inner");
            nodes.push(forge.folder(name, &[inner]));
        }
        nodes
    });
    let machine = &forged.machine;
    let into = machine.home().join("back");
    let restored = forged.beside(&into).unwrap();
    let back = into.join(machine.srv().strip_prefix("/").unwrap());
    let reasons = forged.reasons(&restored.failed);
    for name in ["\\x2e\\x2e", "\\x2e", "\\x", "\\x2fabs", "a\\x2fb", "..\\x2foutside\\x2ffile", "nul\\x00byte"] {
        assert_eq!(reasons.get(name).map(String::as_str), Some("that is no name of a file"), "{name}: {reasons:?}");
    }
    assert!(reasons["twice"].ends_with("File exists (os error 17)"), "{reasons:?}");
    assert!(reasons.keys().any(|name| name.starts_with("yyyy")), "{reasons:?}");
    // Everything that can be a name has come back under it, and only that.
    let fit = |name: &[u8]| forge_name_fits(name);
    let wanted: BTreeSet<Vec<u8>> = names().into_iter().filter(|name| fit(name)).collect();
    assert_eq!(facts(&back).into_keys().collect::<BTreeSet<_>>(), wanted);
    assert_eq!(fs::read(back.join("Case")).unwrap(), b"10");
    assert_eq!(fs::read(back.join("case")).unwrap(), b"11");

    // On screens and in scripts names do nothing.
    for arguments in [&["ls", "-r", &forged.of.1.id] as &[&str], &["find", "e", "--limit", "1000"], &["find", "x"]] {
        let output = machine.run(arguments);
        let shown = [output.stdout, output.stderr].concat();
        assert!(output.status.success() && !shown.iter().any(|byte| matches!(byte, 0 | 7 | 0x1b)), "{arguments:?}");
        assert!(!String::from_utf8_lossy(&shown).contains('\u{202e}'), "{arguments:?}");
    }
    let (choice, put) = forged.in_place();
    assert!(choice.left_out.values().any(|why| why == "the snapshot holds it twice"), "{:?}", choice.left_out);
    let found: BTreeSet<Vec<u8>> = facts(&machine.srv()).into_keys().collect();
    // Written in two ways, told apart in none: neither of those two is put in place.
    let wanted: BTreeSet<Vec<u8>> = wanted
        .into_iter()
        .filter(|name| !matches!(&**name, b"twice" | b"\xff\xfe" | b"\\xff\\xfe") && name.len() < 200)
        .collect();
    assert_eq!(found, wanted);
    assert_eq!(put.placed.len(), wanted.len());
    assert_eq!(machine.home().read_dir().unwrap().count(), 1, "nothing but what was brought back beside");
}

fn forge_name_fits(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0) && name.len() <= 255
}

#[test]
fn fm_57_76_symlinks_that_lead_out_lead_nowhere() {
    let forged = Forged::new(|forge, outside| {
        let outside = outside.to_str().unwrap();
        let evil = forge.file("file", "evil");
        let folder = |forge: &mut Forge, name: &str| forge.folder(name, std::slice::from_ref(&evil));
        vec![
            // Of one name: a folder that a link wants to be, both ways round.
            forge::symlink("first", outside),
            folder(forge, "first"),
            folder(forge, "second"),
            forge::symlink("second", outside),
            forge::symlink("file", &format!("{outside}/file")),
            evil.clone(),
            forge::symlink("dangling", "/nonexistent/..//x"),
            forge::symlink("empty", ""),
            forge::symlink("nul", "a\0b"),
            forge::symlink("long", &"x/".repeat(3000)),
            forge::symlink("loop", "loop"),
            // What stands in a link: only by a path that nobody has.
            forge::symlink("into", outside),
            forge.file("into/file", "evil"),
        ]
    });
    let restored = forged.beside(&forged.machine.home().join("back")).unwrap();
    let reasons = forged.reasons(&restored.failed);
    for name in ["first", "second", "file", "empty", "nul", "long", "into\\x2ffile"] {
        assert!(reasons.contains_key(name), "{name}: {reasons:?}");
    }
    let back = forged.machine.home().join("back").join(forged.machine.srv().strip_prefix("/").unwrap());
    assert_eq!(fs::read(back.join("first/file")).unwrap(), b"evil");
    assert_eq!(fs::read_link(back.join("loop")).unwrap(), Path::new("loop"));
    let (choice, _) = {
        let choice = forged.machine.freeze(&forged.of, &[""], Policy::MissingAndChanged);
        let refused = put(&forged.of, &choice).unwrap_err();
        assert!(refused.message.starts_with("cannot make"), "{refused:?}");
        // What cannot be made stops all of it, and nothing is left.
        assert!(facts(&forged.machine.srv()).is_empty());
        let srv = forged.machine.srv();
        let not: Vec<String> =
            ["empty", "nul", "long"].iter().map(|name| srv.join(name).display().to_string()).collect();
        let choice = choice.without(&not).unwrap();
        let put = put(&forged.of, &choice).unwrap();
        forged.unharmed();
        (choice, put)
    };
    assert_eq!(choice.left_out.values().filter(|why| *why == "the snapshot holds it twice").count(), 3, "{choice:?}");
    assert_eq!(fs::read_link(forged.machine.srv().join("loop")).unwrap(), Path::new("loop"));
}

#[test]
fn fm_76_hard_links_that_lie_give_each_name_its_own_content() {
    let forged = Forged::new(|forge, _| {
        let mut nodes = Vec::new();
        for (name, content) in [("a", "one"), ("b", "another"), ("c", "one"), ("d", "one")] {
            let mut node = forge.file(name, content);
            (node["links"], node["inode"]) = (4.into(), 77.into());
            nodes.push(node);
        }
        // The first name of a file that is not there any more.
        for name in ["e", "f"] {
            let mut node = node("file", name);
            (node["links"], node["inode"], node["content"]) = (2.into(), 78.into(), json!([forge::id(b"gone")]));
            node["size"] = 4.into();
            nodes.push(node);
        }
        let inner = nodes.clone();
        nodes.push(forge.folder("inner", &inner));
        nodes
    });
    let restored = forged.beside(&forged.machine.home().join("back")).unwrap();
    let back = forged.machine.home().join("back").join(forged.machine.srv().strip_prefix("/").unwrap());
    for folder in [back.clone(), back.join("inner")] {
        for (name, content, links) in [("a", "one", 6), ("b", "another", 2), ("c", "one", 6), ("d", "one", 6)] {
            assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), content);
            assert_eq!(fs::metadata(folder.join(name)).unwrap().nlink(), links, "{name}");
        }
    }
    assert_eq!((restored.failures, restored.files), (4, 8), "{restored:?}");
}

#[test]
fn fm_78_devices_are_not_made_rights_not_lent_and_everything_not_applied_is_told() {
    let forged = Forged::new(|forge, _| {
        let mut nodes: Vec<Value> = ["dev", "chardev", "fifo", "socket", "irregular", ""]
            .iter()
            .map(|kind| node(kind, format!("k{kind}")))
            .collect();
        nodes[0]["device"] = 2049.into();
        let mut lends = forge.file("lends", "#!/bin/sh");
        lends["mode"] = (0o755_u32 | 1 << 23 | 1 << 22).into();
        let capability = [1, 0, 0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        // Version 2, then: the owner, user 4711, the group, the mask, the others.
        let acl: Vec<u8> = [
            &[2, 0, 0, 0][..],
            &[1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff],
            &[2, 0, 6, 0, 0x67, 0x12, 0, 0],
            &[4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff],
            &[16, 0, 6, 0, 0xff, 0xff, 0xff, 0xff],
            &[32, 0, 4, 0, 0xff, 0xff, 0xff, 0xff],
        ]
        .concat();
        lends["extended_attributes"] = json!([
            attribute("security.capability", &capability),
            attribute("user.kept", b"kept"),
            attribute("nonsense", b"x"),
            attribute("user.large", &vec![7; 70_000]),
            attribute("user.nul\0name", b"x"),
            attribute("", b"x"),
        ]);
        let mut shared = forge.file("shared", "by ACL");
        (shared["mode"], shared["extended_attributes"]) =
            (0o664.into(), json!([attribute("system.posix_acl_access", &acl)]));
        let mut wild = forge.file("wild", "numbers at their ends");
        (wild["uid"], wild["gid"], wild["mode"]) = (u32::MAX.into(), u32::MAX.into(), u32::MAX.into());
        (wild["mtime"], wild["links"]) = ("9999-12-31T23:59:59Z".into(), u64::MAX.into());
        let mut early = forge.file("early", "");
        early["mtime"] = "0000-01-01T00:00:00Z".into();
        nodes.extend([lends, shared, wild, early]);
        nodes
    });
    let restored = forged.beside(&forged.machine.home().join("back")).unwrap();
    assert_eq!(restored.failures, 6, "{restored:?}");
    assert!(restored.failed.iter().all(|(_, why)| why == "devices, pipes and sockets are not made"), "{restored:?}");
    let back = forged.machine.home().join("back").join(forged.machine.srv().strip_prefix("/").unwrap());
    assert_eq!(fs::metadata(back.join("lends")).unwrap().mode() & 0o7777, 0o755);
    let mut value = [0; 64];
    assert!(rustix::fs::lgetxattr(back.join("lends"), "security.capability", &mut value[..]).is_err());
    assert_eq!(rustix::fs::lgetxattr(back.join("lends"), "user.kept", &mut value[..]).unwrap(), 4);
    assert_eq!(rustix::fs::lgetxattr(back.join("shared"), "system.posix_acl_access", &mut value[..]).unwrap(), 44);
    assert_eq!(fs::metadata(back.join("wild")).unwrap().mode() & 0o7000, 0o1000);
    let notes: Vec<&String> = restored.notes.0.keys().collect();
    for what in ["set-uid", "security.capability: left out", "nonsense: ", "user.large: ", "user.nul"] {
        assert!(notes.iter().any(|note| note.contains(what)), "{what}: {notes:?}");
    }
    // In place it is the same.
    let (_, put) = forged.in_place();
    assert_eq!(put.placed.len(), 4);
    assert_eq!(fs::metadata(forged.machine.srv().join("lends")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(put.notes.0.len(), notes.len(), "{:?} {notes:?}", put.notes);
}

#[test]
fn fm_58_contents_that_lie_stop_at_their_length_and_are_named() {
    let forged = Forged::new(|forge, _| {
        let zeros = vec![0; 1 << 30];
        let bomb = forge.blob("data", &forge::id(b"bomb"), &zeros, Told::Plain(1 << 20));
        drop(zeros);
        let short = forge.blob("data", &forge::id(b"short"), b"short", Told::Plain(1000));
        let other = forge.blob("data", &forge::id(b"other"), b"not that", Told::Truth);
        let huge = forge.blob("data", &forge::id(b"huge"), b"huge", Told::Plain(u32::MAX));
        let honest = forge.data(b"honest");
        let mut nodes = Vec::new();
        for (name, content, size) in [
            ("bomb", json!([bomb]), 1 << 20),
            ("short", json!([short]), 1000),
            ("other", json!([other]), 8),
            ("huge", json!([huge]), u64::from(u32::MAX)),
            ("missing", json!([honest, forge::id(b"nowhere")]), 12),
            ("small", json!([honest]), 1),
            ("large", json!([honest]), u64::MAX),
            ("nothing", json!(null), 4096),
            ("honest", json!([honest]), 6),
        ] {
            let mut node = node("file", name);
            (node["content"], node["size"]) = (content, size.into());
            nodes.push(node);
        }
        let mut bad = node("dir", "bad folder");
        bad["subtree"] = forge.blob("tree", &forge::id(b"tree"), b"{\"nodes\":[]}", Told::Truth).into();
        let mut no = node("dir", "no folder");
        no["subtree"] = forge::id(b"no tree").into();
        let half = forge.blob("tree", &forge::id(b"{\"nodes\":["), b"{\"nodes\":[", Told::Truth);
        nodes.extend([bad, no, folder_of("half a folder", &half)]);
        nodes
    });
    let begun = Instant::now();
    let restored = forged.beside(&forged.machine.home().join("back")).unwrap();
    let reasons = forged.reasons(&restored.failed);
    for name in ["bomb", "short", "other", "huge", "missing", "bad folder", "no folder", "half a folder"] {
        assert!(reasons.contains_key(name), "{name}: {reasons:?}");
    }
    let back = forged.machine.home().join("back").join(forged.machine.srv().strip_prefix("/").unwrap());
    let names: Vec<_> = facts(&back)
        .into_iter()
        .filter(|(_, told)| told.len() > 60 || !told.is_empty())
        .map(|(name, _)| name)
        .collect();
    for name in ["small", "large", "nothing", "honest"] {
        assert!(names.iter().any(|found| found == name.as_bytes()), "{name}");
    }
    assert_eq!((restored.failures, restored.files), (8, 4), "{restored:?}");
    assert!(
        restored.notes.0.keys().any(|note| note.starts_with("the size that the snapshot tells of")),
        "{restored:?}"
    );
    // In place it is all or nothing; what turns out to be damaged can be left out.
    let choice = forged.machine.freeze(&forged.of, &[""], Policy::MissingAndChanged);
    let refused = put(&forged.of, &choice).unwrap_err();
    assert!(refused.message.starts_with("cannot read") && facts(&forged.machine.srv()).is_empty(), "{refused:?}");
    let damaged: Vec<String> = ["bomb", "other", "short"].iter().map(|name| forged.machine.path(name)).collect();
    let choice = choice.without(&damaged).unwrap();
    let put = put(&forged.of, &choice).unwrap();
    forged.unharmed();
    assert_eq!(put.placed.iter().filter(|placed| placed.action == choice::Action::Create).count(), 1, "{choice:?}");
    assert_eq!(choice.left_out.len(), 8 + 3, "{:?}", choice.left_out);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn fm_59_trees_without_end_end_and_memory_is_bounded() {
    let machine = Machine::new();
    let mut forge = Forge::open(&machine.repository(), PASSWORD);
    let file = forge.file("file", "at the bottom");
    // Each level holds the next one twice: 2^60 paths in 60 small blobs.
    let mut doubled = forge.tree(std::slice::from_ref(&file));
    for _ in 0..60 {
        doubled = forge.tree(&[folder_of("a", &doubled), folder_of("b", &doubled)]);
    }
    let mut deep = forge.tree(&[file]);
    for _ in 0..3000 {
        deep = forge.tree(&[folder_of("d", &deep)]);
    }
    let wide: Vec<Value> = (0..20_000).map(|number| folder_of(format!("w{number}"), &doubled)).collect();
    let wide = forge.tree(&wide);
    let wider: Vec<Value> = (0..20_000).map(|number| folder_of(format!("v{number}"), &wide)).collect();
    let wider = forge.tree(&wider);
    let nodes = [folder_of("doubled", &doubled), folder_of("deep", &deep), folder_of("wider", &wider)];
    let snapshot = forge.finish(&machine.srv(), &nodes);
    let bounded = |arguments: &[&str]| bounded(&machine, arguments);
    for folder in ["doubled", "wider"] {
        for more in [&["--in-place", "--consent", "x"] as &[&str], &[]] {
            let path = machine.path(folder);
            let (code, told) = bounded(&[&["restore-files", &snapshot, &path] as &[&str], more].concat());
            assert!(
                code == Some(3) && told.contains("more files and folders than any file system holds"),
                "{code:?} {told}"
            );
        }
    }
    let (code, told) = bounded(&["restore-files", &snapshot, &machine.path("deep"), "--owner", "numbers"]);
    assert!(code == Some(4) && told.contains("could not be brought back"), "{code:?} {told}");
    assert!(machine.srv().read_dir().unwrap().next().is_none());
}

#[test]
fn fm_81_a_sparse_file_of_a_terabyte_comes_back_with_its_holes() {
    let forged = Forged::new(|forge, _| {
        let zeros = forge.data(&vec![0; 8 << 20]);
        let middle = forge.data(&b"in the middle".repeat(1000));
        let mut content = vec![zeros; 1 << 17];
        content.insert(1 << 16, middle);
        let mut node = node("file", "sparse");
        (node["size"], node["content"]) = (((1_u64 << 40) + 13_000).into(), content.into());
        vec![node]
    });
    let begun = Instant::now();
    let srv = forged.machine.srv();
    let (_, put) = forged.in_place();
    let check = |path: &Path| {
        let facts = fs::metadata(path).unwrap();
        assert!(facts.len() == (1 << 40) + 13_000 && facts.blocks() * 512 < 1 << 20, "{facts:?}");
        let mut middle = [0; 13];
        let file = fs::File::open(path).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut middle, 1 << 39).unwrap();
        assert_eq!(&middle, b"in the middle");
    };
    assert_eq!(put.placed.len(), 1);
    check(&srv.join("sparse"));
    let into = forged.machine.home().join("back");
    assert_eq!(forged.beside(&into).unwrap().files, 1);
    check(&into.join(srv.strip_prefix("/").unwrap()).join("sparse"));
    println!("a terabyte twice in {:?}", begun.elapsed());
}

/// Runs the program with little time and little memory. Returns its exit code and what it said.
fn bounded(machine: &Machine, arguments: &[&str]) -> (Option<i32>, String) {
    let command = machine.command(arguments);
    let mut limited = Command::new("timeout");
    limited.args(["60", "prlimit", "--data=600000000"]).arg(command.get_program()).args(command.get_args());
    limited.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = limited.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn fm_59_a_folder_of_very_many_entries_is_listed_and_one_of_too_many_is_refused_with_words() {
    let machine = Machine::new();
    let mut forge = Forge::open(&machine.repository(), PASSWORD);
    let many: Vec<Value> = (0..150_000).map(|number| node("file", format!("file {number}"))).collect();
    let many = forge.folder("many", &many);
    let mut few = node("dir", "too many");
    few["subtree"] = forge.blob("tree", &forge::id(b"x"), b"{}", Told::Plain(1100 << 20)).into();
    let snapshot = forge.finish(&machine.srv(), &[many, few]);
    for arguments in [&["ls", "-r", &snapshot] as &[&str], &["find", "--point", &snapshot, "file 149999"]] {
        let (code, told) = bounded(&machine, arguments);
        assert!(code == Some(0) || told.contains("1100 MB"), "{arguments:?}: {code:?} {told}");
    }
    let (code, told) = bounded(&machine, &["ls", &format!("{snapshot}:{}", machine.path("too many"))]);
    assert!(code == Some(4) && told.contains("more entries than are read here: 1100 MB"), "{code:?} {told}");
    let (code, told) =
        bounded(&machine, &["restore-files", &snapshot, &machine.path("many"), "--in-place", "--consent", "x"]);
    assert!(code == Some(3) && told.contains("more than 10,000 things"), "{code:?} {told}");
}
