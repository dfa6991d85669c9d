//! The files of a file server: some two thousand in some hundred and sixty folders, as an organisation with field offices has
//! them, the same ones in every drill but for their dates. People work in them every day.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, fchown, lchown, symlink};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Datelike as _, TimeDelta, Utc};
use nix::unistd::{User, geteuid};

use super::documents::{Noise, document};
use super::sandbox::failed;
use crate::error::Result;

/// What a folder holds: names with a number in them, and how many of each.
type Holds = &'static [(&'static str, u32)];

const WEB: Holds = &[("page {n}.html", 13), ("style.css", 1)];
const PICTURES: Holds = &[("picture-{n}.png", 18)];
const UPLOADS: Holds = &[("important-document.pdf", 1), ("form-{n}.pdf", 12)];
const UPLOADS_OF_A_MONTH: Holds = &[("form-{n}.pdf", 10), ("photo-{n}.png", 7)];
const DISTRICT: Holds = &[("contacts.csv", 1), ("READ FIRST.txt", 1)];
const PROJECT: [(&str, Holds); 5] = [
    ("maps", &[("map {n}.png", 3), ("wells {n}.geojson", 8)]),
    ("minutes", &[("minutes {n}.txt", 13)]),
    ("photos [field]", &[("IMG_{n}.png", 9)]),
    ("surveys", &[("survey [round {n}].csv", 12), ("questionnaire.pdf", 1)]),
    ("reports", &[("report {n} (final).pdf", 8), ("report {n} – draft.txt", 4)]),
];
const DISTRICTS: [&str; 8] =
    ["Amberlo", "Bessin", "Dakoma", "Erevale", "Fontaine-Basse", "Korvane – North", "Korvane – South", "São Aniceto"];
const CASH_BOOKS: Holds = &[("balance.csv", 1)];
const CASH_BOOKS_OF_A_MONTH: Holds = &[("cash-book {n}.csv", 4), ("receipts {n}.pdf", 3)];
const INVOICES: Holds = &[("invoice {n}.pdf", 30), ("invoices.csv", 1)];
const BUDGETS: Holds = &[("budget {n} [final] (2).csv", 20)];
const AUDITS: Holds = &[("audit {n}.pdf", 6), ("answer to audit {n}.txt", 6)];
const TEMPLATES: Holds = &[("letter {n}.txt", 8), ("form {n}.pdf", 4)];
const PEOPLE: [&str; 12] =
    ["amina", "fatima", "ibrahim", "josé", "kwame", "li", "marta", "nguyễn", "olga", "siobhán", "тарас", "zoë"];
const OF_A_PERSON: [(&str, Holds); 4] = [
    ("Desktop", &[("to do.txt", 1), ("notes {n}.txt", 4)]),
    ("Documents", &[("letter {n}.txt", 8), ("list {n}.csv", 6)]),
    ("Mail", &[("mail {n}.eml", 26)]),
    ("Pictures", &[("IMG_{n}.png", 9)]),
];
/// Users that a Debian machine has: somebody owns the files.
const OWNERS: [&str; 8] = ["backup", "games", "mail", "news", "irc", "list", "man", "lp"];
const FILE_MODES: [u32; 6] = [0o644, 0o640, 0o664, 0o600, 0o660, 0o444];
const FOLDER_MODES: [u32; 4] = [0o755, 0o750, 0o775, 0o700];
/// Mostly a hole, as an image of a disk is.
const SPARSE_BYTES: u64 = 8 << 20;

type Owner = (u32, u32);

/// Owner, permissions and time of the last change.
#[derive(Clone, Copy)]
struct Dress {
    owner: Owner,
    mode: u32,
    at: DateTime<Utc>,
}

/// A span of time in which people work.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) from: DateTime<Utc>,
    pub(super) to: DateTime<Utc>,
}

impl Span {
    fn instant(self, noise: &mut Noise) -> DateTime<Utc> {
        let seconds = u32::try_from((self.to - self.from).num_seconds()).unwrap_or(1).max(1);
        self.from + TimeDelta::seconds(noise.below(seconds).into())
    }
}

/// A tree, and who works in it. All paths are beneath its root.
pub(super) struct Tree {
    root: PathBuf,
    noise: Noise,
    /// Who owns files; only root can give files to others.
    owners: Vec<Owner>,
    web: Owner,
    files: Vec<String>,
    made: u32,
}

impl Tree {
    /// Makes everything that was there before the first night. `outside` is a folder beside the tree that a link leads to.
    pub(super) fn grow(root: &Path, outside: &str, first: DateTime<Utc>) -> Result<Self> {
        let me = (geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let known = |name: &&str| {
            let user = User::from_name(name).ok().flatten().filter(|_| geteuid().is_root());
            user.map(|user| (user.uid.as_raw(), user.gid.as_raw()))
        };
        let owners: Vec<Owner> = std::iter::once(me).chain(OWNERS.iter().filter_map(known)).collect();
        let web = known(&"www-data").unwrap_or(me);
        let noise = Noise::new(20_240_115);
        let mut tree = Self { root: root.to_owned(), noise, owners, web, files: Vec::new(), made: 0 };
        let past = Span { from: first - TimeDelta::days(700), to: first - TimeDelta::days(2) };
        tree.grow_web(past)?;
        tree.grow_shared(past)?;
        for person in PEOPLE {
            let owner = *tree.noise.pick(&tree.owners);
            for (name, holds) in OF_A_PERSON {
                tree.grow_folder(&format!("home/{person}/{name}"), holds, owner, past)?;
            }
        }
        tree.link("var/www/html/uploads", "../uploads", past)?;
        tree.link("home/shared/other-disk", &format!("../../../{outside}"), past)?;
        tree.link(
            "home/shared/project-files/Korvane – North/newest report.pdf",
            "reports/report 08 (final).pdf",
            past,
        )?;
        Ok(tree)
    }

    fn grow_web(&mut self, past: Span) -> Result<()> {
        let web = self.web;
        self.grow_folder("var/www/html", WEB, web, past)?;
        self.grow_folder("var/www/html/images", PICTURES, web, past)?;
        self.grow_folder("var/www/uploads", UPLOADS, web, past)?;
        for year in [past.to.year() - 1, past.to.year()] {
            for month in 1..=12 {
                self.grow_folder(&format!("var/www/uploads/{year}/{month:02}"), UPLOADS_OF_A_MONTH, web, past)?;
            }
        }
        // As the procedure has it.
        self.dress("var/www/uploads/important-document.pdf", Dress { owner: web, mode: 0o644, at: past.to })
    }

    fn grow_shared(&mut self, past: Span) -> Result<()> {
        for district in DISTRICTS {
            let folder = format!("home/shared/project-files/{district}");
            let owner = *self.noise.pick(&self.owners);
            self.grow_folder(&folder, DISTRICT, owner, past)?;
            for (name, holds) in PROJECT {
                let owner = *self.noise.pick(&self.owners);
                self.grow_folder(&format!("{folder}/{name}"), holds, owner, past)?;
            }
        }
        let owner = *self.noise.pick(&self.owners);
        self.grow_folder("home/shared/finance/cash-books", CASH_BOOKS, owner, past)?;
        for month in 1..=12 {
            let folder = format!("home/shared/finance/cash-books/{month:02}");
            self.grow_folder(&folder, CASH_BOOKS_OF_A_MONTH, owner, past)?;
        }
        for year in [past.to.year() - 1, past.to.year()] {
            for quarter in 1..=4 {
                let folder = format!("home/shared/finance/invoices/{year}/Q{quarter}");
                self.grow_folder(&folder, INVOICES, owner, past)?;
            }
        }
        self.grow_folder("home/shared/finance/budgets", BUDGETS, owner, past)?;
        self.grow_folder("home/shared/finance/audits", AUDITS, owner, past)?;
        let owner = *self.noise.pick(&self.owners);
        self.grow_folder("home/shared/templates", TEMPLATES, owner, past)?;
        self.grow_folder("home/shared/archive", &[("list of disks.txt", 1)], owner, past)?;
        let path = "home/shared/archive/disk image.img";
        let at = past.instant(&mut self.noise);
        self.write(path, b"", Dress { owner, mode: 0o600, at })?;
        let image = File::options().write(true).open(self.root.join(path));
        let sparse = image.and_then(|image| {
            image.set_len(SPARSE_BYTES)?;
            image.write_all_at(b"in the middle of nothing", SPARSE_BYTES / 2)
        });
        sparse.map_err(|error| failed("sparse file", error))?;
        self.dress(path, Dress { owner, mode: 0o600, at })
    }

    fn grow_folder(&mut self, folder: &str, holds: Holds, owner: Owner, past: Span) -> Result<()> {
        for (pattern, count) in holds {
            for number in 1..=*count {
                let path = format!("{folder}/{}", pattern.replace("{n}", &format!("{number:02}")));
                let bytes = document(name(&path), &mut self.noise)?;
                let (mode, at) = (*self.noise.pick(&FILE_MODES), past.instant(&mut self.noise));
                self.write(&path, &bytes, Dress { owner, mode, at })?;
                self.files.push(path);
            }
        }
        Ok(())
    }

    /// A day's work: files change, and new ones are made, but nothing beneath the paths of `avoid`.
    pub(super) fn work(&mut self, span: Span, (changed, made): (u32, u32), avoid: &[&str]) -> Result<()> {
        let free = |path: &&String| !avoid.iter().any(|avoid| Path::new(path).starts_with(avoid));
        let files: Vec<String> = self.files.iter().filter(free).cloned().collect();
        for _ in 0..changed {
            let path = self.noise.pick(&files).clone();
            let bytes = document(name(&path), &mut self.noise)?;
            let at = span.instant(&mut self.noise);
            self.replace(&path, &bytes, at)?;
        }
        for _ in 0..made {
            let beside = self.noise.pick(&files).clone();
            let folder = beside.rsplit_once('/').map_or("", |(folder, _)| folder);
            self.made += 1;
            let kind = *self.noise.pick(&["notes {n}, new.txt", "list {n}, new.csv", "letter {n}, new.pdf"]);
            let path = format!("{folder}/{}", kind.replace("{n}", &self.made.to_string()));
            let bytes = document(name(&path), &mut self.noise)?;
            let at = span.instant(&mut self.noise);
            self.make(&path, &bytes, at)?;
        }
        Ok(())
    }

    /// Writes another content, as programs do that save: a new file takes the name. Owner and permissions stay.
    pub(super) fn replace(&mut self, path: &str, bytes: &[u8], at: DateTime<Utc>) -> Result<()> {
        let dress = self.dress_of(path, at)?;
        self.remove(path, at)?;
        self.write(path, bytes, dress)?;
        self.files.push(path.into());
        Ok(())
    }

    /// Makes a file that was not there; it belongs to whom its folder belongs.
    pub(super) fn make(&mut self, path: &str, bytes: &[u8], at: DateTime<Utc>) -> Result<()> {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let Dress { owner, .. } = self.dress_of(folder, at)?;
        self.write(path, bytes, Dress { owner, mode: 0o640, at })?;
        self.files.push(path.into());
        Ok(())
    }

    /// Removes a file.
    pub(super) fn remove(&mut self, path: &str, at: DateTime<Utc>) -> Result<()> {
        fs::remove_file(self.root.join(path)).map_err(|error| failed(path, error))?;
        self.files.retain(|file| file != path);
        self.touch_above(path, at)
    }

    /// Removes a folder with all that is in it.
    pub(super) fn remove_folder(&mut self, path: &str, at: DateTime<Utc>) -> Result<()> {
        fs::remove_dir_all(self.root.join(path)).map_err(|error| failed(path, error))?;
        self.files.retain(|file| !Path::new(file).starts_with(path));
        self.touch_above(path, at)
    }

    /// The files beneath a folder, in the order in which they were made.
    pub(super) fn beneath(&self, folder: &str) -> Vec<String> {
        self.files.iter().filter(|file| Path::new(file).starts_with(folder)).cloned().collect()
    }

    /// A content that fits a name, another one than before.
    pub(super) fn content(&mut self, path: &str) -> Result<Vec<u8>> {
        document(name(path), &mut self.noise)
    }

    /// Bytes that mean nothing.
    pub(super) fn rubbish(&mut self, length: u32) -> Vec<u8> {
        self.noise.bytes(length as usize)
    }

    fn write(&mut self, path: &str, bytes: &[u8], dress: Dress) -> Result<()> {
        self.folder(path.rsplit_once('/').map_or("", |(folder, _)| folder), dress)?;
        let written = File::create_new(self.root.join(path)).and_then(|mut file| file.write_all(bytes));
        written.map_err(|error| failed(path, error))?;
        self.dress(path, dress)?;
        self.touch_above(path, dress.at)
    }

    /// Makes a folder that is not there, and those above it.
    fn folder(&mut self, path: &str, dress: Dress) -> Result<()> {
        let mut missing = Vec::new();
        let mut above = path;
        while !self.root.join(above).exists() {
            missing.push(above);
            above = above.rsplit_once('/').map_or("", |(above, _)| above);
        }
        for path in missing.into_iter().rev() {
            fs::create_dir(self.root.join(path)).map_err(|error| failed(path, error))?;
            let mode = *self.noise.pick(&FOLDER_MODES);
            self.dress(path, Dress { mode, ..dress })?;
            self.touch_above(path, dress.at)?;
        }
        Ok(())
    }

    fn link(&self, path: &str, target: &str, past: Span) -> Result<()> {
        let (place, owner) = (self.root.join(path), self.web);
        let made = symlink(target, &place).and_then(|()| lchown(&place, Some(owner.0), Some(owner.1))).and_then(|()| {
            let time = rustix::fs::Timespec { tv_sec: past.to.timestamp(), tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(rustix::fs::CWD, &place, &times, flags).map_err(Into::into)
        });
        made.map_err(|error| failed(path, error))?;
        self.touch_above(path, past.to)
    }

    fn dress(&self, path: &str, dress: Dress) -> Result<()> {
        let dressed = File::open(self.root.join(path)).and_then(|file| {
            fchown(&file, Some(dress.owner.0), Some(dress.owner.1))?;
            file.set_permissions(fs::Permissions::from_mode(dress.mode))?;
            file.set_times(fs::FileTimes::new().set_modified(dress.at.into()))
        });
        dressed.map_err(|error| failed(path, error))
    }

    fn dress_of(&self, path: &str, at: DateTime<Utc>) -> Result<Dress> {
        let facts = fs::symlink_metadata(self.root.join(path)).map_err(|error| failed(path, error))?;
        Ok(Dress { owner: (facts.uid(), facts.gid()), mode: facts.mode() & 0o7777, at })
    }

    /// A folder's time is that of what last happened in it, not of when this drill was made.
    fn touch_above(&self, path: &str, at: DateTime<Utc>) -> Result<()> {
        let above = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let set = File::open(self.root.join(above))
            .and_then(|folder| folder.set_times(fs::FileTimes::new().set_modified(at.into())));
        set.map_err(|error| failed(above, error))
    }
}

fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}
