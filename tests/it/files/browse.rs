//! The browser in a real terminal: a file is found by four letters, its contents are compared, the last one before the
//! incident is put back in place and taken back; what was hit is found; a dump opens its tables.

use super::*;
use crate::terminal::Terminal;

/// A good night, a better one, and one after the incident.
fn hit(machine: &Machine) -> PathBuf {
    let at = |days: i64| (chrono::Utc::now() - chrono::Duration::days(days)).format("%Y-%m-%d %H:%M:%S").to_string();
    let back_up = |days| {
        let srv = machine.srv();
        machine.restic(&["backup", "--time", &at(days), "--tag", "fileserver", srv.to_str().unwrap()]);
    };
    let document = machine.write("www/uploads/important-document.pdf", "monday\n");
    for number in 0..20 {
        machine.write(&format!("docs/report-{number}.txt"), format!("report {number}"));
    }
    machine.write("www/index.html", "not hit");
    back_up(5);
    fs::write(&document, "tuesday\n").unwrap();
    back_up(4);
    fs::write(&document, "RUBBISH\n").unwrap();
    for number in 0..20 {
        fs::remove_file(machine.srv().join(format!("docs/report-{number}.txt"))).unwrap();
        machine.write(&format!("docs/report-{number}.txt.locked"), [0xff, number, 0]);
    }
    back_up(1);
    document
}

struct Browser(Terminal);

impl Browser {
    fn on(machine: &Machine, size: (u16, u16)) -> Self {
        let path = |path: &Path| path.display().to_string();
        let home = path(&machine.home());
        let (repository, password) = (path(&machine.repository()), path(&machine.folder.path().join("password")));
        let environment = [
            ("HOME", home.as_str()),
            ("XDG_CONFIG_HOME", &home),
            ("XDG_STATE_HOME", &home),
            ("RESTIC_REPOSITORY", &repository),
            ("RESTIC_PASSWORD_FILE", &password),
        ];
        let mut browser = Self(Terminal::start(env!("CARGO_BIN_EXE_lifeboat"), &[], &environment, size.0, size.1));
        browser.see("", "Begin a recovery");
        browser.see("\r", "When did it happen?");
        browser.see("2d ago\r", "What has to come back?");
        browser.see("\r", "Which recovery point?");
        browser.0.wait_for("files");
        browser.see("\r", "nothing marked yet");
        browser
    }

    /// Presses keys and waits for what the screen has to show then.
    fn see(&mut self, keys: &str, text: &str) {
        self.0.settle();
        self.0.send(keys);
        self.0.wait_for(text);
    }
}

#[test]
fn a_file_found_by_four_letters_comes_back_as_it_was_before_the_incident_and_goes_again() {
    let machine = Machine::new();
    let document = hit(&machine);
    let mut browser = Browser::on(&machine, (24, 80));
    browser.see("/impd", "1 of ");
    browser.see("\r", "▸ [ ] important-document.pdf");
    browser.see("v", "LAST BEFORE IT");
    // The cursor is on it.
    browser.0.wait_until("the proposed one", |text| {
        text.lines().any(|line| line.contains('▸') && line.contains("LAST BEFORE IT"))
    });
    browser.see("d", "-tuesday");
    browser.see("", "+RUBBISH");
    browser.see("\x1b", "diff to before");
    browser.see("D", "-monday");
    browser.see("\x1b", "diff to before");
    // An older one is in another snapshot: the browser goes on there, and comes back.
    browser.see("j\r", "1 path marked");
    browser.see("v", "LAST BEFORE IT");
    browser.see("\r", "1 path marked");
    browser.see("w", "Where should they go?");
    browser.see("j\r", "What becomes of files that are there now?");
    browser.see("\r", "What will be done");
    browser.see("\r", "To consent, type");
    std::thread::sleep(Duration::from_millis(700));
    browser.see("important-document.pdf\r", "1 file put in place");
    assert_eq!(fs::read(&document).unwrap(), b"tuesday\n");
    browser.see("u", "taken back");
    browser.see("\r", "To consent, type");
    std::thread::sleep(Duration::from_millis(700));
    browser.see("important-document.pdf\r", "taken back");
    browser.0.wait_for("Done");
    assert_eq!(fs::read(&document).unwrap(), b"RUBBISH\n");
}

#[test]
fn what_was_hit_is_found_since_when_and_another_snapshot_is_gone_on_in() {
    let machine = Machine::new();
    hit(&machine);
    let newest = machine.newest().1.short().to_owned();
    let mut browser = Browser::on(&machine, (40, 160));
    browser.see("z", "20 MISSING, 20 extra");
    browser.see("f", "only what differs");
    browser.see("c", "all 20");
    // The first bad snapshot of the folder that was encrypted.
    let bad = browser.0.text().lines().any(|line| line.contains("all 20") && line.contains(&newest));
    assert!(bad, "{}", browser.0.text());
    browser.see("a", &format!("against snapshot {newest}"));
    browser.see("\t ", "1 path marked");
    browser.see("\x1b", "in the snapshot");
    // Searched in every snapshot; what only the newest holds is not marked by mistake.
    browser.see("/report-7.locked", "Nothing matches");
    browser.see("\t", "search every snapshot");
    browser.see("", &newest);
    browser.see("\r ", "take one of them");
    browser.see("\r", "take this one");
    browser.see("\r", "1 path is not in this snapshot: unmarked");
    assert!(browser.0.text().contains(&newest), "{}", browser.0.text());
    browser.see("p", "go to path");
    browser.see("\x15/nowhere/else\r", "there is no nowhere");
}

#[test]
fn an_archive_is_looked_into_and_a_dump_opens_its_tables() {
    let machine = Machine::new();
    let conninfo = crate::cluster::database("browse_dump", "create table shelf (id int primary key, book text)");
    machine.write("long.txt", (0..30_000).map(|number| format!("line {number}\n")).collect::<String>());
    let dump = machine.srv().join("shelf.dump").display().to_string();
    let pg_dump = Command::new(crate::cluster::pg_programs().join("pg_dump"))
        .args(["-Fc", "-f", &dump, "-d", &conninfo])
        .status()
        .unwrap();
    let tar =
        Command::new("tar").current_dir(machine.srv()).args(["czf", "all.tgz", "long.txt", "shelf.dump"]).status();
    assert!(pg_dump.success() && tar.unwrap().success());
    let at = (chrono::Utc::now() - chrono::Duration::days(3)).format("%Y-%m-%d %H:%M:%S").to_string();
    machine.restic(&["backup", "--time", &at, "--tag", "fileserver", machine.srv().to_str().unwrap()]);
    let mut browser = Browser::on(&machine, (24, 80));
    browser.see("\r", "2 members");
    browser.see("", "shelf.dump");
    browser.see("\x1b", "all.tgz");
    browser.see("j\r", "     1  line 0");
    // Further parts come as one scrolls: the last line of the first part is not the end.
    browser.see("G", "line 6");
    for _ in 0..40 {
        browser.0.send("G");
        std::thread::sleep(Duration::from_millis(60));
    }
    browser.see("G", "30000  line 29999");
    browser.see("\x1b", "long.txt");
    browser.see("j\r", "a database dump");
    browser.0.settle();
    // No database is configured: the console says so where the tables would be.
    browser.0.send("t");
    browser.0.wait_until("the next question", |text| !text.contains("a database dump"));
    browser.0.wait_until("tables, or why not", |text| text.contains("Which tables") || text.contains("Changed so far"));
}
