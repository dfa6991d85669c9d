//! Repositories that are damaged, pruned, locked or far away while files are listed, found, read and brought back: no wrong
//! byte is given, and what is not damaged comes back. The names are those of the fault matrix.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::*;

/// All files of a repository but the keys and the config, which `backup.rs` spoils.
fn stored(repository: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) =
        (Vec::new(), Vec::from(["data", "index", "snapshots"].map(|name| repository.join(name))));
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// Numbers that look random and are the same each time.
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// A machine with some files in two folders, each folder from a backup of its own, so that packs and index are several.
fn two_backups() -> (Machine, BTreeMap<Vec<u8>, String>) {
    let machine = Machine::new();
    let mut seed = 55;
    for folder in ["one", "two"] {
        for number in 0..12 {
            let bytes: Vec<u8> =
                std::iter::repeat_with(|| next(&mut seed).to_le_bytes()).flatten().take(3000).collect();
            machine.write(&format!("{folder}/{number}"), bytes);
        }
        machine.back_up();
    }
    let truth = facts(&machine.srv());
    (machine, truth)
}

/// Lists, finds and restores everything. Returns how many of the files came back; each of them is as it was.
fn use_it(machine: &Machine, truth: &BTreeMap<Vec<u8>, String>, why: &str) -> usize {
    let into = machine.home().join("back");
    let _ = fs::remove_dir_all(&into);
    let password = Password::Given(Secret::new(PASSWORD.into()));
    let url = machine.repository().display().to_string();
    let repository = Repository::open(&Location { url, password }).unwrap();
    let snapshots = repository.snapshots().unwrap();
    let Some(snapshot) = snapshots.first() else {
        assert!(!repository.damage().is_empty(), "{why}");
        return 0;
    };
    let progress = Progress::default();
    let paths = [machine.srv().display().to_string()];
    let listed = Catalog::read(&repository, snapshot, &progress).unwrap();
    let hits = listed.search(&Query::parse("type:file").unwrap(), 1000);
    let to = (into.as_path(), Own::Numbers);
    let restored = beside::measure(&repository, snapshot, &paths, &progress).and_then(|measure| {
        assert!(measure.complete || !listed.complete, "{why}");
        beside::restore((&repository, snapshot), &paths, to, "r1", (&measure, &progress))
    });
    let Ok(restored) = restored else {
        assert!(!repository.damage().is_empty() || !listed.complete, "{why}: {restored:?}");
        assert!(!into.exists(), "{why}");
        return 0;
    };
    let back = facts(&into.join(machine.srv().strip_prefix("/").unwrap()));
    let files = |of: &BTreeMap<Vec<u8>, String>| of.iter().filter(|(path, _)| path.len() > 3).count();
    for (path, told) in back.iter().filter(|(path, _)| path.len() > 3) {
        assert_eq!(Some(told), truth.get(path), "{why}: {} has a wrong byte", String::from_utf8_lossy(path));
    }
    let complete = files(&back) == files(truth) || snapshots.len() == 1;
    assert!(complete || restored.failures > 0, "{why}: something is missing, and nothing is said: {restored:?}");
    assert!(listed.complete || !listed.damage.is_empty(), "{why}");
    assert!(hits.matching >= files(&back) as u64, "{why}");
    files(&back)
}

#[test]
fn fm_55_a_flipped_bit_anywhere_gives_no_wrong_byte_and_the_rest_comes_back() {
    let (machine, truth) = two_backups();
    assert_eq!(use_it(&machine, &truth, "nothing is damaged"), 24);
    let (mut seed, mut all, mut some, mut none) = (55, 0, 0, 0);
    for path in stored(&machine.repository()) {
        let honest = fs::read(&path).unwrap();
        for _ in 0..(kills() / 50).max(2) {
            let at = usize::try_from(next(&mut seed)).unwrap() % honest.len();
            let mut spoiled = honest.clone();
            spoiled[at] ^= 1 << (at % 8);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            fs::write(&path, spoiled).unwrap();
            match use_it(&machine, &truth, &format!("byte {at} of {}", path.display())) {
                24 => all += 1,
                0 => none += 1,
                _ => some += 1,
            }
        }
        fs::write(&path, &honest).unwrap();
    }
    println!("everything came back {all} times, some of it {some} times, nothing {none} times");
    assert!(some > 0);
}

#[test]
fn fm_56_swapped_shortened_and_deleted_files_are_found_out() {
    let (machine, truth) = two_backups();
    let stored = stored(&machine.repository());
    let pairs = stored
        .iter()
        .zip(stored.iter().skip(1))
        .filter(|(a, b)| a.parent() == b.parent() || a.iter().any(|name| name == "data"));
    for (a, b) in pairs {
        let (first, second) = (fs::read(a).unwrap(), fs::read(b).unwrap());
        for path in [a, b] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        fs::write(a, &second).unwrap();
        fs::write(b, &first).unwrap();
        use_it(&machine, &truth, &format!("{} and {} are exchanged", a.display(), b.display()));
        fs::write(a, &first[..first.len() / 2]).unwrap();
        fs::write(b, &second).unwrap();
        use_it(&machine, &truth, &format!("{} is cut", a.display()));
        fs::remove_file(a).unwrap();
        use_it(&machine, &truth, &format!("{} is gone", a.display()));
        fs::write(a, &first).unwrap();
    }
    assert_eq!(use_it(&machine, &truth, "everything is there again"), 24);
}

#[test]
fn fm_72_a_prune_while_files_are_listed_and_brought_back_takes_nothing_away() {
    let (machine, truth) = two_backups();
    let stop = AtomicBool::new(false);
    let pruned = std::thread::scope(|scope| {
        let prunes = scope.spawn(|| {
            let mut pruned = 0;
            while !stop.load(Ordering::Relaxed) {
                // What is backed up and forgotten at once leaves packs that are half used, so that each prune moves blobs.
                fs::write(machine.home().join("passing"), pruned.to_string()).unwrap();
                machine.restic(&["backup", "--host", "other", machine.home().join("passing").to_str().unwrap()]);
                machine.restic(&[
                    "forget",
                    "--host",
                    "other",
                    "--keep-last",
                    "1",
                    "--prune",
                    "--max-unused",
                    "0",
                    "--repack-small",
                ]);
                pruned += 1;
            }
            pruned
        });
        for _ in 0..3 {
            let password = Password::Given(Secret::new(PASSWORD.into()));
            let url = machine.repository().display().to_string();
            let repository = Repository::open(&Location { url, password }).unwrap();
            let ours = repository.snapshots().unwrap();
            let snapshot = ours.iter().find(|snapshot| snapshot.tags == ["fileserver"]).unwrap().clone();
            // Listed before a prune, and read after it.
            let progress = Progress::default();
            let paths = [machine.srv().display().to_string()];
            let measure = beside::measure(&repository, &snapshot, &paths, &progress).unwrap();
            std::thread::sleep(Duration::from_secs(2));
            let into = machine.home().join("back");
            let to = (into.as_path(), Own::Numbers);
            let restored = beside::restore((&repository, &snapshot), &paths, to, "r1", (&measure, &progress)).unwrap();
            assert_eq!((restored.failures, restored.files), (0, 24), "{restored:?}");
            assert_eq!(facts(&into.join(machine.srv().strip_prefix("/").unwrap())), truth);
            fs::remove_dir_all(into).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        prunes.join().unwrap()
    });
    assert!(pruned > 1, "{pruned} prunes");
}

#[test]
fn fm_73_a_wrong_password_is_told_and_a_repository_that_cannot_be_written_will_do() {
    let (machine, _) = two_backups();
    let file = machine.path("one/1");
    fs::write(machine.folder.path().join("password"), "another one").unwrap();
    for arguments in [&["ls", &file] as &[&str], &["find", "x"], &["versions", &file], &["restore-files", "abc", &file]]
    {
        let output = machine.run(arguments);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code() == Some(2) && told.contains("the password does not open"),
            "{arguments:?}: {told}"
        );
    }
    fs::write(machine.folder.path().join("password"), PASSWORD).unwrap();
    let repository = machine.repository();
    let bind =
        Command::new("mount").arg("--bind").args([&repository, &repository]).stderr(Stdio::null()).status().unwrap();
    if !bind.success() {
        crate::not_run("fm_73 needs the right to mount a file system");
        return;
    }
    let remount = Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&repository).status().unwrap();
    let point = machine.newest().1.id;
    let into = machine.home().join("back");
    let output = machine.run(&["restore-files", &point, &file, "--into", into.to_str().unwrap()]);
    assert!(Command::new("umount").arg("-l").arg(&repository).status().unwrap().success() && remount.success());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read(into.join(&file[1..])).unwrap(), fs::read(file).unwrap());
}

/// Stands between the program and the bucket: some answers are refused, cut short, or late.
fn chaos(port: u16, faults: &Arc<AtomicUsize>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    let faults = Arc::clone(faults);
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let (Ok(mut client), faults) = (client, Arc::clone(&faults)) else { continue };
            std::thread::spawn(move || {
                let mut request = Vec::new();
                let mut byte = [0; 4096];
                while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                    let Ok(read @ 1..) = client.read(&mut byte) else { return };
                    request.extend_from_slice(&byte[..read]);
                }
                // One request for each connection: the next one meets another fault.
                let head = String::from_utf8_lossy(&request).replacen("\r\n", "\r\nConnection: close\r\n", 1);
                let fault = if number % 8 == 1 { faults.fetch_add(1, Ordering::SeqCst) % 3 } else { 3 };
                if fault == 0 {
                    let _ =
                        client.write_all(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                    return;
                }
                let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)) else { return };
                let _ = server.write_all(head.as_bytes());
                let mut answer = Vec::new();
                let _ = server.read_to_end(&mut answer);
                if fault == 1 {
                    std::thread::sleep(Duration::from_millis(300));
                }
                let end = if fault == 2 { answer.len() * 2 / 3 } else { answer.len() };
                let _ = client.write_all(&answer[..end]);
            });
        }
    });
    own
}

#[test]
fn fm_74_a_bucket_that_is_late_busy_or_cut_off_gives_every_byte_all_the_same() {
    let (machine, truth) = two_backups();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let started = Command::new("moto_server")
        .args(["-H", "127.0.0.1", "-p", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut server) = started else {
        crate::not_run("fm_74 needs moto_server");
        return;
    };
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(50));
    }
    let url = |port: u16| format!("s3:http://127.0.0.1:{port}/backups/files");
    let keys = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")];
    for arguments in [&["init"] as &[&str], &["backup", "--tag", "fileserver", machine.srv().to_str().unwrap()]] {
        let mut restic = Command::new("restic");
        restic.arg("--no-cache").args(arguments).env("RESTIC_PASSWORD", PASSWORD).env("RESTIC_REPOSITORY", url(port));
        let output = restic.envs(keys).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let faults = Arc::new(AtomicUsize::new(0));
    let through = url(chaos(port, &faults));
    let run = |arguments: &[&str]| {
        let output = machine.command(arguments).env("RESTIC_REPOSITORY", &through).envs(keys).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let points: serde_json::Value = serde_json::from_str(&run(&["points", "--json"])).unwrap();
    let point = points.to_string();
    let point = point.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    assert_eq!(run(&["ls", "-r", &point]).lines().filter(|line| line.contains("/srv/")).count(), 26);
    let into = machine.home().join("back");
    run(&["restore-files", &point, machine.srv().to_str().unwrap(), "--into", into.to_str().unwrap()]);
    assert_eq!(facts(&into.join(machine.srv().strip_prefix("/").unwrap())), truth);
    server.kill().unwrap();
    server.wait().unwrap();
    let faults = faults.load(Ordering::SeqCst);
    println!("{faults} answers were late, refused or cut");
    assert!(faults > 5, "{faults}");
}
