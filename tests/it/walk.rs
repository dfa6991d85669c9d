//! A newcomer's way through the drill: the built program in a real terminal, keys only, from the first screen to
//! "recovered", at two sizes. With `UPDATE_SCREENSHOTS=1` the pictures of `screenshots/` are taken on the way.

use std::path::Path;

use crate::picture;
use crate::terminal::Terminal;

struct Walk {
    terminal: Terminal,
    /// Pictures are called `<prefix><name>.png`; none are taken without.
    pictures: Option<&'static str>,
    _home: tempfile::TempDir,
}

impl Walk {
    fn begin(rows: u16, columns: u16, prefix: &'static str) -> Self {
        Self::through("damaged-table", rows, columns, prefix)
    }

    fn through(scenario: &str, rows: u16, columns: u16, prefix: &'static str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().display().to_string();
        let environment = [("HOME", folder.as_str()), ("XDG_CONFIG_HOME", &folder), ("XDG_STATE_HOME", &folder)];
        let terminal =
            Terminal::start(env!("CARGO_BIN_EXE_lifeboat"), &["drill", scenario], &environment, rows, columns);
        let pictures = std::env::var_os("UPDATE_SCREENSHOTS").map(|_| prefix);
        Self { terminal, pictures, _home: home }
    }

    fn keys(&mut self, keys: &str) {
        self.terminal.send(keys);
    }

    /// Waits for a screen, and takes its picture when it has settled.
    fn screen(&self, text: &str, picture: &str) {
        self.terminal.wait_for(text);
        if let Some(prefix) = self.pictures {
            self.terminal.settle();
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("screenshots");
            std::fs::create_dir_all(&folder).unwrap();
            let path = folder.join(format!("{prefix}{picture}.png"));
            self.terminal.with_screen(|screen| picture::write(screen, &path));
        }
    }

    /// The screen, whole: what is waited for may be in the part of a frame that came first.
    fn text(&self) -> String {
        self.terminal.settle();
        self.terminal.text()
    }
}

/// The incident time that the briefing names, as it can be typed.
fn incident(briefing: &str) -> String {
    let words: Vec<_> = briefing.split_whitespace().collect();
    let place =
        words.iter().position(|word| word.trim_end_matches(',') == "UTC").unwrap_or_else(|| panic!("{briefing}"));
    format!("{}T{}Z", words[place - 2], words[place - 1])
}

/// What a responder does who reads the briefing and the screens.
fn recover(walk: &mut Walk) {
    walk.screen("Begin a recovery", "home");
    let incident = incident(&walk.text());
    walk.keys("\r");
    walk.terminal.wait_for("When did it happen?");
    walk.keys(&incident);
    walk.screen("that is", "time");
    walk.keys("\r");
    walk.screen("What has to come back?", "scope");
    walk.keys("\r");
    walk.screen("PROPOSED", "points");
    walk.keys("\r");
    walk.terminal.wait_for("Which tables are damaged?");
    // registrations, and with it what a DELETE takes along.
    walk.keys("/registrations\r");
    walk.terminal.wait_for("filter: registrations");
    walk.keys(" a");
    walk.keys("\x1b");
    walk.terminal.wait_until("all tables", |text| text.contains("public.staff"));
    walk.screen("[x] public.payments", "tables");
    walk.keys("\r");
    walk.terminal.wait_for("Load the backup's rows beside production?");
    walk.keys("\r");
    walk.screen("Most of the damage comes from one transaction", "diff");
    assert!(walk.text().contains("5,047"), "{}", walk.text());

    // The damage is in district 7, and what was deleted is not there at all; three duplicates stay deleted.
    walk.keys("s");
    walk.terminal.wait_for("write only rows where");
    walk.keys("live.district_id = 7 or backup.district_id = 3 and live.id is null\r");
    walk.terminal
        .wait_until("the condition", |text| text.contains("; where live.district_id") && !text.contains("checking"));
    walk.keys("\t\t");
    walk.terminal.wait_for("By column");
    // updated_at is not put back; all changed rows of the district, whoever wrote them last.
    walk.keys(" c");
    walk.terminal.wait_until("two columns", |text| text.contains("2 columns") || text.contains("(2\n columns"));
    walk.screen("[ ] updated_at", "columns");
    walk.keys("\x1b[Z");
    walk.keys("\x1b[Z");
    walk.keys("\r");
    walk.screen("closed ⇒", "rows");
    walk.keys("\r");
    walk.screen("will be written", "record");
    walk.keys("\x1b");
    walk.keys("w");
    walk.screen("Should the tables' triggers fire?", "triggers");
    walk.keys("\r");
    walk.screen("What will be done", "plan");
    assert!(walk.text().contains("300 rows inserted"), "{}", walk.text());
    assert!(walk.text().contains("5,000 rows updated"), "{}", walk.text());
    walk.keys("\r");
    walk.terminal.wait_for("To consent, type");
    // Keys that come at once were typed for something else.
    std::thread::sleep(std::time::Duration::from_millis(700));
    walk.keys("public.registrations public.distributions public.payments");
    walk.screen("> public.registrations", "consent");
    walk.keys("\r");
    walk.terminal.wait_for("Checked against the truth");
    walk.screen("Recovered", "done");
    assert!(walk.text().contains("19 of 19 hold"), "{}", walk.text());
}

#[test]
fn a_newcomer_recovers_in_the_drill_at_80_by_24() {
    recover(&mut Walk::begin(24, 80, ""));
}

#[test]
fn a_newcomer_recovers_in_the_drill_at_200_by_50() {
    let mut walk = Walk::begin(50, 200, "large-");
    recover(&mut walk);
    // And takes it back.
    walk.keys("u");
    walk.screen("Only rows that nobody has changed since are taken back", "undo");
    walk.keys("\r");
    walk.terminal.wait_for("To consent, type");
    std::thread::sleep(std::time::Duration::from_millis(700));
    walk.keys("public.registrations public.distributions public.payments\r");
    walk.terminal.wait_for("0 of 5,000");
    walk.keys("\r");
    walk.terminal.wait_for("Begin a recovery");
    walk.keys("q");
    let status = walk.terminal.child.wait().unwrap();
    assert!(status.success());
}

/// Types into the search and goes to what was found.
fn search(walk: &mut Walk, letters: &str, found: &str) {
    walk.keys("/");
    walk.terminal.wait_for("search this snapshot: ");
    // What was searched for before goes.
    walk.keys("\x15");
    walk.keys(letters);
    let typing = format!("search this snapshot: {letters}_");
    walk.terminal.wait_until(found, |text| text.contains(&typing) && text.contains(found));
    walk.terminal.settle();
    walk.keys("\r");
    walk.terminal.wait_until("the list", |text| !text.contains(&typing));
}

/// What a responder does who reads the briefing and the screens, and knows no time.
fn recover_files(walk: &mut Walk) {
    walk.screen("Begin a recovery", "files-home");
    assert!(walk.text().contains("the police want to see it"), "the briefing is whole:\n{}", walk.text());
    assert!(walk.text().contains("files of "), "{}", walk.text());
    walk.keys("\r");
    walk.terminal.wait_for("When did it happen?");
    walk.keys("\r");
    walk.terminal.wait_for("> Some files  (recommended)");
    walk.keys("\r");
    walk.terminal.wait_for("Which recovery point?");
    walk.screen("1,947 files", "files-points");

    // The newest one: what are the strange names, and since when?
    walk.keys("\r");
    walk.terminal.wait_for("nothing marked yet");
    search(walk, "locked", "balance.csv.locked");
    walk.screen("balance.csv.locked", "files-search");
    walk.keys("v");
    walk.terminal.wait_for("1 content, not in 5 snapshots");
    walk.keys("\x1b");
    walk.terminal.wait_for("search this snapshot: locked");
    search(walk, "impdoc", "important-document.pdf");
    walk.keys("v");
    walk.screen("4 contents", "files-versions");

    // The last night has it as it was: the browser goes on there, with it marked.
    walk.keys("j\r");
    walk.terminal.wait_until("the night", |text| text.contains(" 02:15 UTC") && text.contains("1 path marked"));
    for above in ["/var/www", "/var", "/file-server"] {
        walk.terminal.settle();
        walk.keys("h");
        walk.terminal.wait_until(above, |text| text.lines().any(|line| line.trim_end().ends_with(above)));
    }
    walk.keys("c");
    walk.screen("Folders that were hit hardest", "files-changes");
    walk.keys("\x1b");
    walk.terminal.wait_for("in the snapshot");
    search(walk, "project-files", "project-files/");
    walk.keys("\r");
    walk.terminal.wait_until("the folder", |text| text.contains("Korvane – North/") && text.contains("MISSING"));
    walk.keys("jjjjj ");
    walk.screen("2 paths marked", "files");
    assert!(walk.text().contains("[x] -  Korvane – North/"), "{}", walk.text());
    search(walk, "cash-books", "cash-books/");
    walk.keys(" ");
    walk.terminal.wait_for("3 paths marked");
    walk.keys("w");
    walk.terminal.wait_for("Where should they go?");
    walk.keys("j\r");
    walk.terminal.wait_for("What becomes of files that are there now?");
    walk.keys("j");
    walk.screen("> Bring back what is gone, replace only what you marked by itself", "files-policy");
    walk.keys("\r");
    walk.screen("What will be done", "files-plan");
    assert!(walk.text().contains("~ 1 file replaced; what is there is kept"), "{}", walk.text());
    assert!(walk.text().contains("1 path is LEFT OUT"), "{}", walk.text());
    walk.keys("\r");
    walk.terminal.wait_for("To consent, type  put back 149 files");
    // Keys that come at once were typed for something else.
    std::thread::sleep(std::time::Duration::from_millis(700));
    walk.keys("put back 149 files");
    walk.screen("> put back 149 files", "files-consent");
    walk.keys("\r");
    walk.terminal.wait_for("Checked against the truth");
    walk.screen("Recovered", "files-done");
    assert!(walk.text().contains("12 of 12 hold"), "{}", walk.text());
}

#[test]
fn a_newcomer_recovers_files_in_the_drill_at_80_by_24() {
    recover_files(&mut Walk::through("lost-files", 24, 80, ""));
}

#[test]
fn a_newcomer_recovers_files_in_the_drill_at_200_by_50() {
    let mut walk = Walk::through("lost-files", 50, 200, "large-");
    recover_files(&mut walk);
    // And takes it back: what had come back is kept beside, under another name.
    walk.keys("u");
    walk.screen("take back 149 files", "files-undo");
    walk.keys("\r");
    walk.terminal.wait_for("To consent, type");
    std::thread::sleep(std::time::Duration::from_millis(700));
    walk.keys("take back 149 files\r");
    walk.terminal.wait_for("content as in the last backup: 0 of 1");
    assert!(walk.text().contains("hold what stood there: 149 of 149"), "{}", walk.text());
    assert!(walk.text().contains("should not be there: 0 of 0"), "{}", walk.text());
    walk.keys("\r");
    walk.terminal.wait_for("Begin a recovery");
    walk.keys("q");
    assert!(walk.terminal.child.wait().unwrap().success());
}

/// What a responder does whose database is gone.
fn recover_database(walk: &mut Walk) {
    walk.screen("Begin a recovery", "database-home");
    let incident = incident(&walk.text());
    walk.keys("\r");
    walk.terminal.wait_for("When did it happen?");
    walk.keys(&incident);
    walk.terminal.wait_for("that is");
    walk.keys("\r");
    walk.terminal.wait_for("What has to come back?");
    walk.keys("jjj");
    walk.terminal.wait_for("> The full system");
    walk.keys("\r");
    walk.terminal.wait_for("PROPOSED");
    walk.keys("\r");
    walk.screen("Restore the whole dump into a new database?", "database-restore");
    assert!(walk.text().contains("There is no database programme_db"), "{}", walk.text());
    walk.keys("\r");
    walk.screen("It is restored and checked", "database-checked");
    walk.keys("\r");
    walk.screen("What will be done", "database-plan");
    walk.keys("\r");
    walk.terminal.wait_for("To consent, type");
    // Keys that come at once were typed for something else.
    std::thread::sleep(std::time::Duration::from_millis(700));
    walk.keys("programme_db");
    walk.terminal.wait_for("> programme_db");
    walk.keys("\r");
    walk.terminal.wait_for("Checked against the truth");
    walk.screen("Recovered", "database-done");
    assert!(walk.text().contains("9 of 9 hold"), "{}", walk.text());
}

#[test]
fn a_newcomer_recovers_a_database_in_the_drill_at_80_by_24() {
    recover_database(&mut Walk::through("lost-database", 24, 80, ""));
}

#[test]
fn a_newcomer_recovers_a_database_in_the_drill_at_200_by_50() {
    recover_database(&mut Walk::through("lost-database", 50, 200, "large-"));
}

/// What a responder does whose tables were dropped by a migration.
fn recover_dropped_tables(walk: &mut Walk) {
    walk.screen("Begin a recovery", "moment-home");
    let incident = incident(&walk.text());
    walk.keys("\r");
    walk.terminal.wait_for("When did it happen?");
    walk.keys(&incident);
    walk.terminal.wait_for("that is");
    walk.keys("\r");
    walk.terminal.wait_for("What has to come back?");
    walk.keys("jj");
    walk.terminal.wait_for("> A moment in time");
    walk.keys("\r");
    // The transaction that dropped the most is selected.
    walk.screen("Which moment should come back?", "moment-windows");
    let words = walk.text().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("dropped (DROP, TRUNCATE or a rewrite)"), "{words}");
    walk.keys("\r");
    walk.screen("Lay out a second cluster as of just before", "moment-lay-out");
    walk.keys("\r");
    walk.screen("What is it for?", "moment-clone");
    // What is in it? A query that is ready, and one that is typed.
    walk.keys("s");
    walk.terminal.wait_for("Ready, by Up and Down:");
    walk.keys("\x1b[A\r");
    walk.terminal.wait_for("13 rows, 2 columns");
    walk.keys("select id, clinic, reason, opened_at from referrals order by id\r");
    walk.screen("the first 1,000 rows; THERE ARE MORE", "moment-query");
    walk.keys("\x1b");
    walk.terminal.wait_for("What is it for?");
    walk.keys("\r");
    // Those that are lost come first.
    walk.terminal.wait_for("Which tables are damaged?");
    walk.keys("   ");
    walk.screen("[x] public.referrals", "moment-tables");
    walk.keys("\r");
    walk.screen("What will be done", "moment-plan");
    assert!(walk.text().contains("make 3 tables again"), "{}", walk.text());
    walk.keys("\r");
    walk.terminal.wait_for("To consent, type");
    // Keys that come at once were typed for something else.
    std::thread::sleep(std::time::Duration::from_millis(700));
    walk.keys("public.home_visits public.referral_notes public.referrals");
    walk.terminal.wait_for("public.referrals");
    walk.keys("\r");
    walk.terminal.wait_for("Checked against the truth");
    walk.screen("Recovered", "moment-done");
    assert!(!walk.text().contains("WRONG"), "{}", walk.text());
}

#[test]
fn a_newcomer_recovers_dropped_tables_in_the_drill_at_80_by_24() {
    recover_dropped_tables(&mut Walk::through("dropped-tables", 24, 80, ""));
}

#[test]
fn a_newcomer_recovers_dropped_tables_in_the_drill_at_200_by_50() {
    recover_dropped_tables(&mut Walk::through("dropped-tables", 50, 200, "large-"));
}

#[test]
fn a_terminal_that_is_too_small_says_so_and_one_that_grows_goes_on() {
    let mut walk = Walk::begin(24, 80, "");
    walk.terminal.wait_for("Begin a recovery");
    walk.terminal.resize(5, 20);
    walk.terminal.wait_for("20x5");
    walk.keys("j\r?x\x1b");
    walk.terminal.resize(40, 120);
    walk.terminal.wait_until("a screen", |text| text.contains("LIFEBOAT") && !text.contains("20x5"));
}

#[test]
fn fm_05_a_terminal_that_goes_away_ends_the_console_and_the_sandbox() {
    let mut walk = Walk::begin(24, 80, "");
    walk.terminal.wait_for("Begin a recovery");
    let running = walk.terminal.child.process_id().unwrap();
    let sandbox = sandbox_of(running);
    assert!(Path::new(&sandbox).exists(), "{sandbox}");
    walk.terminal.hang_up();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while Path::new(&sandbox).exists() || walk.terminal.child.try_wait().unwrap().is_none() {
        assert!(std::time::Instant::now() < deadline, "the console or {sandbox} is still there");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// The folder of the sandbox that a process has made: the one whose server it started.
fn sandbox_of(process: u32) -> String {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    let all = std::process::Command::new("ps").args(["-e", "-o", "ppid=,args="]).output().unwrap();
    let all = String::from_utf8_lossy(&all.stdout).into_owned();
    let mut ours = all.lines().filter(|line| line.trim_start().starts_with(&format!("{process} ")));
    let folder = ours.find_map(|line| line.split_whitespace().find(|word| word.contains("/lifeboat-drill-")));
    let folder = folder.unwrap_or_else(|| panic!("no sandbox among {children}\n{all}"));
    let start = folder.find("/lifeboat-drill-").unwrap();
    let end = folder[start + 1..].find('/').map_or(folder.len(), |end| start + 1 + end);
    folder[..end].to_owned()
}

/// Walks from the first screen to the comparison.
pub fn walk_to_the_rows(terminal: &mut Terminal) {
    for (keys, screen) in [
        ("", "Begin a recovery"),
        ("\r", "When did it happen?"),
        ("\r", "What has to come back?"),
        ("\r", "Which recovery point?"),
        ("\r", "Which tables"),
        (" \r", "Load the backup's rows"),
        ("\r", "Compared with the backup"),
    ] {
        terminal.send(keys);
        terminal.wait_for(screen);
        terminal.settle();
    }
}

#[test]
fn fm_82_text_from_outside_cannot_steer_the_terminal() {
    let evil = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{202e}gnp.exe\u{9b}31m";
    let conninfo = crate::cluster::database(
        "walk_evil",
        &format!(
            "create table \"t{evil}\" (id int primary key, \"c{evil}\" text); insert into \"t{evil}\" values (1, '{evil}')"
        ),
    );
    let home = tempfile::tempdir().unwrap();
    let dump = home.path().join("evil.dump").display().to_string();
    let made = std::process::Command::new(crate::cluster::pg_programs().join("pg_dump"))
        .args(["-Fc", "-f", &dump, "-d", &conninfo])
        .status()
        .unwrap();
    assert!(made.success());
    crate::cluster::psql(&conninfo, &format!("update \"t{evil}\" set \"c{evil}\" = 'x'"));
    let folder = home.path().display().to_string();
    let environment = [("HOME", folder.as_str()), ("XDG_CONFIG_HOME", &folder), ("XDG_STATE_HOME", &folder)];
    let arguments = ["--database", &conninfo, "console", "--dump", &dump];
    let mut terminal = Terminal::start(env!("CARGO_BIN_EXE_lifeboat"), &arguments, &environment, 24, 80);
    walk_to_the_rows(&mut terminal);
    for (keys, screen) in [("\r", "all differing"), ("", "~  1"), ("\r", "will not be written")] {
        terminal.send(keys);
        terminal.wait_for(screen);
        terminal.settle();
    }
    assert!(terminal.text().contains("owned"), "shown, as text:\n{}", terminal.text());
    terminal.send("q");
    terminal.wait_for("e ends it: what was staged is removed");
    terminal.send("e");
    assert!(terminal.child.wait().unwrap().success());
    // What it wrote last may still be on its way.
    terminal.settle();
    let written = String::from_utf8_lossy(&terminal.written()).into_owned();
    assert!(!written.contains("\u{1b}]0;"), "the title was set");
    assert!(!written.contains('\u{202e}') && !written.contains('\u{9b}') && !written.contains('\u{7}'));
    assert!(
        written.contains("\u{1b}[?1049h") && written.trim_end().contains("\u{1b}[?1049l"),
        "the screen is given back"
    );
    let left =
        crate::cluster::psql(&conninfo, "select count(*) from pg_namespace where nspname like 'restore_staging_%'");
    assert_eq!(left, "0");
}

#[test]
fn a_monkey_at_the_keyboard_breaks_nothing() {
    const KEYS: [&str; 26] = [
        "\r", "\r", "\r", "\r", "\x1b", "\t", "\x1b[Z", " ", "j", "k", "\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D",
        "\x1b[5~", "\x1b[6~", "g", "G", "/", "?", "a", "m", "c", "s", "o", "p",
    ];
    let mut walk = Walk::begin(24, 80, "");
    walk.terminal.wait_for("Begin a recovery");
    let sandbox = sandbox_of(walk.terminal.child.process_id().unwrap());
    let conninfo = format!("host={sandbox}/pg user=postgres dbname=programme_db");
    let before = crate::merge::state(&conninfo);
    let mut random: u64 = 20_260_115;
    for step in 0..1200_u32 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pick = usize::try_from(random >> 33).unwrap();
        walk.keys(KEYS[pick % KEYS.len()]);
        if step % 100 == 99 {
            let size = [(24, 80), (50, 200), (16, 60), (8, 30)][pick % 4];
            walk.terminal.resize(size.0, size.1);
        }
        std::thread::sleep(std::time::Duration::from_millis(12));
        let ended = walk.terminal.child.try_wait().unwrap();
        assert!(ended.is_none(), "step {step}: the console has ended: {ended:?}\n{}", walk.text());
    }
    walk.terminal.resize(24, 80);
    walk.terminal.settle();
    assert!(walk.text().contains("LIFEBOAT"), "{}", walk.text());
    assert!(!walk.text().contains("defect of ours"), "{}", walk.text());
    assert_eq!(crate::merge::state(&conninfo), before, "nothing was consented to");
}
