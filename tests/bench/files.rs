//! Files: the peer is restic as its users have it, with its cache, warm, on the same repository.
//!
//! - Lifeboat keeps no cache on disk: every command begins with the key, the index and the folders out of the repository.
//! - `restic restore` is left as it is by default, without `--verify`. Ours reads every file again, hashes it, gives it owner,
//!   permissions and times, has all of it on disk, and only then gives the folder its name.
//! - What `restic` lists and finds it prints, and so do we, both into nothing.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat::config::{RepositorySettings, System};
use lifeboat::files::beside;
use lifeboat::files::write::Own;
use lifeboat::progress::Progress;
use lifeboat::recovery::systems::Systems;
use rayon::prelude::*;

use crate::{LIFEBOAT, RUNS, heading, line, peak, ratio, seconds, shell};

const AREAS: u32 = 25;
const CUSTOMERS: u32 = 100;
const FOLDERS: u32 = 26;
const KINDS: [&str; 8] = ["invoices", "letters", "drafts", "reports", "scans", "minutes", "orders", "photos"];
const STEMS: [&str; 6] = ["invoice", "budget", "protocol", "important-document", "offer", "summary"];
const EXTENSIONS: [&str; 6] = ["pdf", "docx", "xlsx", "txt", "png", "eml"];
/// Length of the one large file.
const LARGE: u64 = 2_000_000_000;
/// What somebody types, key by key.
const TYPED: &str = "important-document 042 pdf";

/// Words in no order, the same in every run; about half as long when compressed, as documents are.
struct Words(u64);

impl Words {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, bytes: &mut Vec<u8>, length: usize) {
        bytes.clear();
        while bytes.len() < length {
            write!(bytes, "{:x} ", self.next() >> 20).unwrap();
        }
        bytes.truncate(length);
    }
}

struct Store {
    folder: tempfile::TempDir,
}

impl Store {
    fn new() -> Self {
        let store = Self { folder: tempfile::Builder::new().prefix("lifeboat-bench-").tempdir().unwrap() };
        fs::write(store.path("password"), "bench\n").unwrap();
        succeed(&mut store.restic(&["init", "--repository-version", "2"]));
        store
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("RESTIC_REPOSITORY", self.path("repository"))
            .env("RESTIC_PASSWORD_FILE", self.path("password"))
            .env("RESTIC_CACHE_DIR", self.path("cache"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn restic(&self, arguments: &[&str]) -> Command {
        self.command("restic", &[&["-q"], arguments].concat())
    }

    fn lifeboat(&self, arguments: &[&str]) -> Command {
        self.command(LIFEBOAT, arguments)
    }

    /// Backs a folder up, which then is at the root of the snapshot; returns the snapshot's id.
    fn back_up(&self, name: &str) -> String {
        let mut restic = self.command("restic", &["backup", "--json", name]);
        let output = restic.current_dir(self.folder.path()).stdout(Stdio::piped()).output().unwrap();
        assert!(output.status.success());
        let output = String::from_utf8(output.stdout).unwrap();
        let summary: serde_json::Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
        summary["snapshot_id"].as_str().unwrap().to_owned()
    }

    fn systems(&self) -> Systems {
        let repository = RepositorySettings {
            url: self.path("repository").display().to_string(),
            password_file: Some(self.path("password")),
            password_command: None,
        };
        Systems::new(System { repository: Some(repository), ..System::named("default") }, None)
    }
}

pub fn run() {
    let store = Store::new();
    let begun = Instant::now();
    documents(&store.path("documents"));
    fs::write(store.path("large.img"), "").unwrap();
    large(&store.path("large.img"));
    let documents = store.back_up("documents");
    let large = store.back_up("large.img");
    for name in ["documents", "large.img"] {
        remove(&store.path(name));
    }
    let (million, wide) = (million(&store), wide(&store));
    println!(
        "\n300,000 files in 65,000 folders, twice a million, and one of 2 GB: made in {}",
        seconds(begun.elapsed())
    );
    heading();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    commands(&store, &documents);
    runtime.block_on(console(&store, &documents, "300,000 files"));
    runtime.block_on(console(&store, &million, "a million files"));
    runtime.block_on(one_file(&store, &documents));
    runtime.block_on(a_wide_folder(&store, &wide));
    memory(&store, &million, "memory, a million entries searched / 300 MB");
    memory(&store, &wide, "the same, all of them in one folder / 300 MB");
    restores(&store, "restore of 300,000 files / restic restore", &documents, "documents");
    restores(&store, "restore of one file of 2 GB / restic restore", &large, "large.img");
}

fn succeed(command: &mut Command) -> Duration {
    let begun = Instant::now();
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let took = begun.elapsed();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    took
}

/// The best of several runs of each, which take turns.
fn against(mut ours: impl FnMut() -> Duration, mut peer: impl FnMut() -> Duration) -> (Duration, Duration) {
    let mut best = (Duration::MAX, Duration::MAX);
    for _ in 0..RUNS {
        best = (best.0.min(ours()), best.1.min(peer()));
    }
    best
}

fn beside_peer(what: &str, limit: f64, ours: impl FnMut() -> Duration, peer: impl FnMut() -> Duration) {
    let (ours, peer) = against(ours, peer);
    line(what, &seconds(ours), &seconds(peer), ratio(ours, peer), limit);
}

/// A figure that has a limit and no peer: the slowest but one in a hundred.
fn within(what: &str, mut took: Vec<Duration>, limit: Duration) {
    took.sort();
    let slow = took[(took.len() * 99 / 100).min(took.len() - 1)];
    let milliseconds = |duration: Duration| format!("{:.1} ms", duration.as_secs_f64() * 1e3);
    line(what, &milliseconds(slow), &milliseconds(limit), ratio(slow, limit), 1.0);
}

/// Every folder that holds files, by its number.
fn folders() -> impl ParallelIterator<Item = (u32, String)> {
    (0..AREAS * CUSTOMERS * FOLDERS).into_par_iter().map(|number| (number, folder(number)))
}

fn folder(number: u32) -> String {
    let (customer, kind) = (number / FOLDERS, number % FOLDERS);
    let kind = KINDS.get(kind as usize).map_or_else(|| format!("{}", 2000 + kind), |kind| (*kind).to_owned());
    format!("area-{:02}/customer-{:03}/{kind}", customer / CUSTOMERS, customer % CUSTOMERS)
}

/// The files of a folder: names, and the words that fill them.
fn names(folder: u32, files: u32) -> impl Iterator<Item = (String, Words)> {
    let mut words = Words(u64::from(folder) * 2_654_435_761 + 88_172_645_463_325_252);
    (0..files).map(move |file| {
        let mut pick = |from: &[&'static str]| from[usize::try_from(words.next() >> 8).unwrap() % from.len()];
        let name = format!("{}-{folder:05}-{file}.{}", pick(&STEMS), pick(&EXTENSIONS));
        (name, Words(words.next() | 1))
    })
}

/// 300,000 files of 100 to 4000 bytes.
fn documents(root: &Path) {
    folders().for_each(|(number, folder)| {
        let folder = root.join(folder);
        fs::create_dir_all(&folder).unwrap();
        let mut bytes = Vec::new();
        for (name, mut words) in names(number, if number % 13 < 8 { 5 } else { 4 }) {
            let length = 100 + usize::try_from(words.next() >> 8).unwrap() % 3900;
            words.fill(&mut bytes, length);
            fs::write(folder.join(name), &bytes).unwrap();
        }
    });
}

/// Half of it text, half of it random bytes.
fn large(path: &Path) {
    let mut file = std::io::BufWriter::new(fs::File::create(path).unwrap());
    let (mut words, mut bytes, mut left) = (Words(7), Vec::new(), LARGE);
    while left > 0 {
        words.fill(&mut bytes, 4096);
        bytes.extend((0..512).flat_map(|_| words.next().to_le_bytes()));
        let length = bytes.len().min(usize::try_from(left).unwrap());
        file.write_all(&bytes[..length]).unwrap();
        left -= length as u64;
    }
    file.flush().unwrap();
}

/// A snapshot of a million empty files in 65,000 folders.
fn million(store: &Store) -> String {
    let root = store.path("million");
    folders().for_each(|(number, folder)| {
        let folder = root.join(folder);
        fs::create_dir_all(&folder).unwrap();
        for (name, _) in names(number, 16) {
            fs::write(folder.join(name), "").unwrap();
        }
    });
    let snapshot = store.back_up("million");
    remove(&root);
    snapshot
}

/// A snapshot of a million empty files in one folder.
fn wide(store: &Store) -> String {
    let root = store.path("wide");
    fs::create_dir(&root).unwrap();
    for (name, _) in names(0, 1_000_000) {
        fs::write(root.join(name), "").unwrap();
    }
    let snapshot = store.back_up("wide");
    remove(&root);
    snapshot
}

fn remove(path: &Path) {
    shell(&format!("rm -rf {}", path.display()));
}

/// A file of the documents, which every run generates alike.
fn sample(number: u32) -> String {
    format!("/documents/{}/{}", folder(number), names(number, 1).next().unwrap().0)
}

fn commands(store: &Store, snapshot: &str) {
    // The first run of the peer fills its cache.
    succeed(&mut store.restic(&["ls", snapshot]));
    beside_peer(
        "ls -r / restic ls",
        0.25,
        || succeed(&mut store.lifeboat(&["ls", "-r", snapshot])),
        || succeed(&mut store.restic(&["ls", snapshot])),
    );
    beside_peer(
        "find / restic find",
        0.25,
        || succeed(&mut store.lifeboat(&["find", "--point", snapshot, "important-document-00042"])),
        || succeed(&mut store.restic(&["find", "-s", snapshot, "important-document-00042*"])),
    );
    let path = sample(31_415);
    let at = format!("{snapshot}:{path}");
    let dump = || succeed(&mut store.restic(&["dump", snapshot, &path]));
    beside_peer("cat / restic dump", 0.8, || succeed(&mut store.lifeboat(&["cat", &at])), dump);
    let target = store.path("one").display().to_string();
    beside_peer(
        "restore-files of one file / restic dump",
        0.8,
        || {
            let took = succeed(&mut store.lifeboat(&["restore-files", snapshot, &path, "--into", &target]));
            remove(Path::new(&target));
            took
        },
        dump,
    );
}

/// Typing and opening folders in a console's worker, on a snapshot of which nothing is known yet.
async fn console(store: &Store, snapshot: &str, of: &str) {
    let systems = store.systems();
    let begun = Instant::now();
    systems.search(Some(snapshot), "i", &Progress::default()).await.unwrap();
    println!("{:<58} {:>12}", format!("first key of a search in {of}"), seconds(begun.elapsed()));
    let mut keys = Vec::new();
    for length in 2..=TYPED.len() {
        let begun = Instant::now();
        systems.search(Some(snapshot), &TYPED[..length], &Progress::default()).await.unwrap();
        keys.push(begun.elapsed());
    }
    // Taking letters back widens the search again.
    for length in (1..TYPED.len()).rev() {
        let begun = Instant::now();
        systems.search(Some(snapshot), &TYPED[..length], &Progress::default()).await.unwrap();
        keys.push(begun.elapsed());
    }
    within(&format!("each further key, {of} / 50 ms"), keys, Duration::from_millis(50));
}

/// Folders and files that were not looked at before, in a repository that is open.
async fn one_file(store: &Store, snapshot: &str) {
    let systems = store.systems();
    systems.folder(snapshot, "/", usize::MAX).await.unwrap();
    let mut folders = Vec::new();
    for number in 0..200 {
        let path = sample(number * 311 + 5);
        let folder = path.rsplit_once('/').unwrap().0;
        let begun = Instant::now();
        systems.folder(snapshot, folder, usize::MAX).await.unwrap();
        folders.push(begun.elapsed());
    }
    within("a folder opens, repository open / 5 ms", folders, Duration::from_millis(5));
    let password = lifeboat::backup::Password::Given(lifeboat::secret::Secret::new("bench".into()));
    let location = lifeboat::backup::Location { url: store.path("repository").display().to_string(), password };
    let (mut read, mut brought) = (Vec::new(), Vec::new());
    tokio::task::block_in_place(|| {
        let repository = lifeboat::backup::Repository::open(&location).unwrap();
        let snapshot = repository.find(snapshot).unwrap();
        repository.list_folder(&snapshot, "/").unwrap();
        let progress = Progress::default();
        for number in 0..200 {
            let path = sample(number * 317 + 7);
            let begun = Instant::now();
            let mut file = repository.open_file(&snapshot, &path).unwrap();
            std::io::copy(&mut file, &mut std::io::sink()).unwrap();
            read.push(begun.elapsed());
            let (paths, folder) = ([sample(number * 313 + 3)], store.path("brought"));
            let begun = Instant::now();
            let measure = beside::measure(&repository, &snapshot, &paths, &progress).unwrap();
            let into = (folder.as_path(), Own::Numbers);
            beside::restore((&repository, &snapshot), &paths, into, "bench", (&measure, &progress)).unwrap();
            brought.push(begun.elapsed());
            remove(&folder);
        }
    });
    within("a file is read, repository open / 20 ms", read, Duration::from_millis(20));
    within("a file is brought back, repository open / 20 ms", brought, Duration::from_millis(20));
}

/// A folder of a million entries is opened, while the worker goes on answering.
async fn a_wide_folder(store: &Store, snapshot: &str) {
    let systems = store.systems();
    systems.folder(snapshot, "/", usize::MAX).await.unwrap();
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut opening = std::pin::pin!(systems.folder(snapshot, "/wide", usize::MAX));
    let rows = loop {
        let waited = Instant::now();
        tokio::select! {
            rows = &mut opening => break rows.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(5)) => slowest = slowest.max(waited.elapsed()),
        }
    };
    assert_eq!(rows.1, 1_000_000);
    println!(
        "{:<58} {:>12}   meanwhile nothing waited longer than {} ms",
        "a folder of a million entries opens",
        seconds(begun.elapsed()),
        slowest.as_millis()
    );
}

fn memory(store: &Store, snapshot: &str, what: &str) {
    let most = peak(&mut store.lifeboat(&["find", "--point", snapshot, "important-document"]));
    #[expect(clippy::cast_precision_loss, reason = "a ratio is printed")]
    line(what, &lifeboat::text::bytes(most), "300 MB", most as f64 / 300e6, 1.0);
}

fn restores(store: &Store, what: &str, snapshot: &str, name: &str) {
    let target = store.path("restored");
    let into = target.display().to_string();
    let path = format!("/{name}");
    let measured = |mut command: Command| {
        // What earlier runs have left to be written is no cost of this one.
        shell("sync");
        let took = succeed(&mut command);
        remove(&target);
        took
    };
    beside_peer(
        what,
        0.8,
        || measured(store.lifeboat(&["restore-files", snapshot, &path, "--into", &into])),
        || measured(store.restic(&["restore", snapshot, "--target", &into])),
    );
}
