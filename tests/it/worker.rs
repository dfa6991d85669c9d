//! A recovery outlives the terminal: consoles are killed, frozen and cut off, the worker goes on; a worker that is killed is
//! taken over.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lifeboat::config::System;
use lifeboat::postgres::diff::Class;
use lifeboat::postgres::merge::Choice;
use lifeboat::recovery::Flow;
use lifeboat::recovery::flows::{Answers, Next, Question};
use lifeboat::recovery::journal;
use lifeboat::recovery::plan::Plan;
use lifeboat::recovery::record::{Fact, Incident as When, Scope};
use lifeboat::recovery::worker::{Event, Request, Stage, Viewer, Workers};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::merge::state;
use crate::resume::{Incident, kills, longer_or_shorter, random};
use crate::terminal::Terminal;
use crate::walk::walk_to_the_rows;

/// A worker, started as a console starts it.
fn worker(incident: &Incident, task: &serde_json::Value) -> (Child, Result<String, String>) {
    let system = System { database: Some(incident.conninfo.clone()), ..System::named("default") };
    let order = json!({
        "system": system, "dump": incident.path("t.dump"), "state": state_folder(incident), "operator": journal::operator(),
        "task": task, "away": "Person",
    });
    let mut command = incident.command(&["worker"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(order.to_string().as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut answer).unwrap();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let begun = match answer["Ok"].as_str() {
        Some(id) => Ok(id.to_owned()),
        None => Err(answer["Err"]["message"].as_str().unwrap().to_owned()),
    };
    (child, begun)
}

fn begin(incident: &Incident, flow: &Flow) -> (Child, String) {
    let (child, begun) = worker(incident, &json!({ "Begin": flow }));
    (child, begun.unwrap())
}

fn state_folder(incident: &Incident) -> std::path::PathBuf {
    incident.path(".local/state/lifeboat")
}

/// A console without a screen.
struct Watch {
    viewer: Viewer,
    events: UnboundedReceiver<Event>,
}

impl Watch {
    async fn on(incident: &Incident, id: &str) -> Self {
        let (viewer, events) = Workers::attach(id, &state_folder(incident)).await.unwrap();
        Self { viewer, events }
    }

    /// Takes the next event in. `None`: the worker has ended.
    async fn hear(&mut self) -> Option<Event> {
        let event = self.events.recv().await?;
        Some(self.viewer.take(event.clone()).unwrap_or(event))
    }

    /// Answers as a newcomer would until there is a plan.
    async fn decide(&mut self) -> Option<Plan> {
        loop {
            match (&self.viewer.stage, self.viewer.next()) {
                (Stage::Deciding, Next::Ready(plan)) => return Some(plan),
                (Stage::Deciding, Next::Ask(question)) => {
                    let seen = self.viewer.seen();
                    self.viewer.ask(Request::Answer { fact: answer(&question), seen });
                    while self.viewer.seen() == seen {
                        self.hear().await?;
                    }
                }
                (Stage::Failed { error, .. }, _) => panic!("{error:?}"),
                _ => _ = self.hear().await?,
            }
        }
    }

    fn consent(&self, plan: &Plan) {
        self.viewer.ask(Request::Consent { typed: plan.phrase(), shown: plan.hash().unwrap() });
    }

    /// Until the worker has ended; the stage that it came to.
    async fn end(mut self) -> Stage {
        while self.hear().await.is_some() {}
        self.viewer.stage
    }
}

fn answer(question: &Question) -> Fact {
    match &question.answers {
        Answers::Moment(_) | Answers::Use { .. } => unreachable!("no WAL is configured"),
        Answers::Time => Fact::Incident(When::Unknown),
        Answers::Point(points) => Fact::Point(points[0].point.id.clone()),
        Answers::One(choices) => {
            let tables = |fact: &Fact| *fact == Fact::Scope(Scope::Tables);
            choices.iter().find(|choice| choice.recommended || tables(&choice.fact)).unwrap().fact.clone()
        }
        Answers::Tables(tables) => Fact::Tables(vec![tables[0].backup.name.clone()]),
        Answers::Key { .. } | Answers::Files { .. } | Answers::Folder { .. } => panic!("{question:?}"),
        Answers::Rows(diffs) => Fact::Rows(vec![Choice {
            table: diffs[0].table.clone(),
            classes: BTreeSet::from([Class::Missing, Class::Changed]),
            columns: None,
            transactions: None,
            condition: None,
            only: None,
            except: BTreeSet::new(),
        }]),
    }
}

/// Decides, consents, and waits for the end.
async fn recover(incident: &Incident, id: &str) -> Option<Stage> {
    let mut watch = Watch::on(incident, id).await;
    let plan = watch.decide().await?;
    watch.consent(&plan);
    Some(watch.end().await)
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn fm_01_02_a_worker_that_is_killed_at_any_instant_is_settled_and_nothing_is_half_done() {
    let incident = Incident::new("fm_02_worker");
    let begun = Instant::now();
    let (mut child, id) = begin(&incident, &Flow::Rows);
    assert!(matches!(recover(&incident, &id).await, Some(Stage::Done)));
    let mut whole = begun.elapsed();
    assert!(child.wait().unwrap().success());
    assert_eq!(state(&incident.conninfo), incident.repaired);
    incident.again();
    let mut seed: u64 = std::env::var("LIFEBOAT_SEED").map_or(20_260_116, |seed| seed.parse().unwrap());
    println!("LIFEBOAT_SEED={seed}, {} kills of a worker over {whole:?}", kills());
    let (mut applied, mut killed) = (0, 0);
    for run in 0..kills() {
        let delay = whole.mul_f64(random(&mut seed) * 1.1);
        let begun = Instant::now();
        let (mut child, id) = begin(&incident, &Flow::Rows);
        let killing = async {
            while begun.elapsed() < delay && child.try_wait().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let ended = child.try_wait().unwrap().filter(std::process::ExitStatus::success).map(|_| begun.elapsed());
            whole = longer_or_shorter(whole, delay, ended);
            let _ = child.kill();
            child.wait().unwrap()
        };
        // One that is killed at once lets nobody in.
        let recovering = async {
            if let Ok((viewer, events)) = Workers::attach(&id, &state_folder(&incident)).await {
                let mut watch = Watch { viewer, events };
                if let Some(plan) = watch.decide().await {
                    watch.consent(&plan);
                    watch.end().await;
                }
            }
        };
        let (status, ()) = tokio::join!(killing, recovering);
        killed += u32::from(!status.success());
        let why = format!("run {run}, killed after {delay:?}");
        let settled = incident.settle();
        let now = state(&incident.conninfo);
        let done = now == incident.repaired;
        assert!(done || now == incident.damaged, "{why}: half done");
        assert_eq!(settled[0].1.contains("500 inserted, 9,000 updated"), done, "{why}: {settled:?}");
        assert_eq!(incident.leftovers(), "", "{why}");
        applied += u32::from(done);
        incident.again();
    }
    println!("{killed} were killed, {applied} had been applied (workers)");
    assert!(killed > kills() / 2 && applied > 0 && applied < kills(), "{killed} killed, {applied} applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_consoles_see_the_same_and_the_second_answer_to_a_question_is_refused() {
    let incident = Incident::new("two_consoles");
    let (mut child, id) = begin(&incident, &Flow::Rows);
    let mut first = Watch::on(&incident, &id).await;
    let mut second = Watch::on(&incident, &id).await;
    while first.viewer.viewers < 2 {
        first.hear().await.unwrap();
    }
    let seen = second.viewer.seen();
    let plan = first.decide().await.unwrap();
    while second.viewer.seen() < first.viewer.seen() {
        second.hear().await.unwrap();
    }
    assert_eq!(second.viewer.next(), Next::Ready(plan.clone()));
    second.viewer.ask(Request::Back { seen });
    loop {
        if let Event::Refused(why) = second.hear().await.unwrap() {
            assert!(why.contains("another console has gone on meanwhile"), "{why}");
            break;
        }
    }
    // Consent is to the plan that was shown, and typed.
    let hash = plan.hash().unwrap();
    for (typed, shown) in [("public.u", hash.as_str()), ("public.t", "0123")] {
        second.viewer.ask(Request::Consent { typed: typed.into(), shown: shown.into() });
        loop {
            match second.hear().await.unwrap() {
                Event::Refused(_) => break,
                Event::Moved { stage, .. } => panic!("{stage:?}"),
                _ => {}
            }
        }
    }
    assert_eq!(state(&incident.conninfo), incident.damaged);
    second.consent(&plan);
    assert!(matches!(first.end().await, Stage::Done));
    assert!(matches!(second.end().await, Stage::Done));
    assert!(child.wait().unwrap().success());
    assert_eq!(state(&incident.conninfo), incident.repaired);
    let journal = incident.command(&["journal", &id]).output().unwrap();
    let journal = String::from_utf8(journal.stdout).unwrap();
    assert!(journal.contains("another console looks on: ") && journal.contains("consent given by "), "{journal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fm_07_a_worker_that_is_asked_to_stop_rolls_back_and_cleans_up() {
    let incident = Incident::new("fm_07");
    for (signals, by_hand) in [(&["-TERM"][..], false), (&["-HUP", "-INT", "-KILL"], true)] {
        let (mut child, id) = begin(&incident, &Flow::Rows);
        let mut watch = Watch::on(&incident, &id).await;
        let plan = watch.decide().await.unwrap();
        let holder = incident.hold();
        watch.consent(&plan);
        incident.until_merge_waits();
        for name in signals {
            assert!(child.try_wait().unwrap().is_none(), "what a terminal sends ends no worker");
            signal(&child, name);
            std::thread::sleep(Duration::from_millis(100));
        }
        child.wait().unwrap();
        incident.let_go(holder);
        assert_eq!(incident.recoveries()[0].1, if by_hand { "left" } else { "ended" });
        incident.settle();
        assert_eq!(state(&incident.conninfo), incident.damaged);
        assert_eq!(incident.leftovers(), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_of_a_dead_worker_a_second_worker_and_a_strangers_order_do_no_harm() {
    let incident = Incident::new("worker_bad");
    let (mut child, id) = begin(&incident, &Flow::Rows);
    let folder = state_folder(&incident).join("recoveries").join(&id);
    let socket =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(folder.join("worker.sock")).unwrap().permissions());
    assert_eq!(socket & 0o777, 0o600);
    // A second one, started by hand.
    let (mut second, begun) = worker(&incident, &json!({ "TakeOver": id }));
    assert!(begun.unwrap_err().starts_with("the recovery is still under way, process"));
    assert!(second.wait().unwrap().success());
    // What is not a request ends that connection and nothing else.
    let mut stranger = std::os::unix::net::UnixStream::connect(folder.join("worker.sock")).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    // One that asks and asks, and never reads what it is told, is not waited for.
    let mut deaf = std::os::unix::net::UnixStream::connect(folder.join("worker.sock")).unwrap();
    let question = serde_json::to_string(&Request::Inside { point: "on disk".into() }).unwrap();
    for _ in 0..5000 {
        if deaf.write_all(format!("{question}\n").as_bytes()).is_err() {
            break;
        }
    }
    let mut watch = Watch::on(&incident, &id).await;
    watch.decide().await.unwrap();
    drop((watch, deaf));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(folder.join("worker.sock").exists());
    let error = Workers::attach(&id, &state_folder(&incident)).await.unwrap_err();
    assert!(error.message.starts_with("cannot attach to recovery"), "{error:?}");
    // Taken over, it goes on at the rows: what was chosen of them fell with the comparison.
    let (mut child, begun) = worker(&incident, &json!({ "TakeOver": id }));
    assert_eq!(begun.unwrap(), id);
    let watch = Watch::on(&incident, &id).await;
    assert!(watch.viewer.record().stage() && watch.viewer.record().rows().is_none());
    drop(watch);
    assert!(matches!(recover(&incident, &id).await, Some(Stage::Done)));
    assert!(child.wait().unwrap().success());
    assert_eq!(state(&incident.conninfo), incident.repaired);
    // One that has ended is not begun again.
    let (mut child, begun) = worker(&incident, &json!({ "TakeOver": id }));
    begun.unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(state(&incident.conninfo), incident.repaired);
    let output = incident.command(&["worker"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("this is no order for a worker"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_whose_folder_is_deleted_stops_before_anything_is_changed() {
    let incident = Incident::new("worker_folder");
    let (mut child, id) = begin(&incident, &Flow::Rows);
    let mut watch = Watch::on(&incident, &id).await;
    let plan = watch.decide().await.unwrap();
    std::fs::remove_dir_all(state_folder(&incident).join("recoveries").join(&id)).unwrap();
    watch.consent(&plan);
    let error = loop {
        match watch.hear().await.unwrap() {
            Event::Moved { stage: Stage::Failed { error, .. }, .. } => break error,
            Event::Moved { stage: stage @ Stage::Done, .. } => panic!("{stage:?}"),
            _ => {}
        }
    };
    assert!(error.message.contains("was deleted"), "{error:?}");
    assert_eq!(state(&incident.conninfo), incident.damaged);
    watch.viewer.ask(Request::End);
    watch.end().await;
    assert!(child.wait().unwrap().success());
    assert_eq!(incident.leftovers(), "");
}

/// The real console, in a terminal.
fn console(incident: &Incident, arguments: &[&str]) -> Terminal {
    let home = incident.folder.path().display().to_string();
    let dump = incident.path("t.dump").display().to_string();
    let mut all = vec!["--database", &incident.conninfo];
    all.extend(if arguments.is_empty() { vec!["console", "--dump", &dump] } else { arguments.to_vec() });
    let environment = [("HOME", home.as_str()), ("XDG_CONFIG_HOME", &home)];
    Terminal::start(env!("CARGO_BIN_EXE_lifeboat"), &all, &environment, 24, 80)
}

/// Goes on to the plan and consents.
fn consent(terminal: &mut Terminal) {
    terminal.send("w");
    terminal.wait_for("Nothing has been changed yet. Enter: to consent.");
    terminal.send("\r");
    terminal.wait_for("To consent, type");
    std::thread::sleep(Duration::from_millis(600));
    terminal.send("public.t\r");
}

/// With `UPDATE_SCREENSHOTS=1`, a picture of what is on screen.
fn picture(terminal: &Terminal, name: &str) {
    if std::env::var_os("UPDATE_SCREENSHOTS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("screenshots").join(format!("{name}.png"));
        terminal.with_screen(|screen| crate::picture::write(screen, &path));
    }
}

fn process(incident: &Incident) -> String {
    let told = incident.recoveries()[0].2.clone();
    told.split_once("process ").unwrap().1.split(':').next().unwrap().to_owned()
}

type Fault = (&'static str, fn(&mut Terminal));

#[test]
fn fm_04_05_06_work_goes_on_whatever_becomes_of_the_console() {
    let incident = Incident::new("fm_04");
    let faults: [Fault; 3] = [
        ("killed", |terminal| terminal.child.kill().unwrap()),
        ("hung up", Terminal::hang_up),
        ("frozen", |terminal| terminal.frozen.store(true, Ordering::SeqCst)),
    ];
    for (what, fault) in faults {
        let mut terminal = console(&incident, &[]);
        walk_to_the_rows(&mut terminal);
        assert!(terminal.text().contains("safe to disconnect"), "{}", terminal.text());
        let holder = incident.hold();
        consent(&mut terminal);
        terminal.wait_for("Doing what you consented to");
        incident.until_merge_waits();
        fault(&mut terminal);
        assert_eq!(incident.recoveries()[0].1, "under way", "{what}");
        // The same screen, in another terminal.
        let mut again = console(&incident, &["attach"]);
        again.wait_for("Doing what you consented to");
        assert!(again.text().contains("write 9,500 rows in one transaction"), "{}", again.text());
        incident.let_go(holder);
        again.wait_for("Done, and proved");
        assert_eq!(state(&incident.conninfo), incident.repaired, "{what}");
        again.send("q");
        assert!(again.child.wait().unwrap().success());
        terminal.frozen.store(false, Ordering::SeqCst);
        if what == "frozen" {
            terminal.wait_for("Done, and proved");
        }
        drop(terminal);
        assert!(incident.recoveries().iter().all(|(_, standing, _)| standing == "ended"), "{what}");
        assert_eq!(incident.leftovers(), "", "{what}");
        incident.again();
    }
}

#[test]
fn a_console_that_is_left_finds_its_recovery_again_and_ends_it_when_it_is_told_to() {
    let incident = Incident::new("left_and_found");
    let mut terminal = console(&incident, &[]);
    walk_to_the_rows(&mut terminal);
    terminal.send("q");
    terminal.wait_for("y leaves. e ends it");
    terminal.send("y");
    assert!(terminal.child.wait().unwrap().success());
    let mut terminal = console(&incident, &[]);
    terminal.wait_for("under way in process");
    terminal.settle();
    terminal.send("j\r");
    terminal.wait_for("Compared with the backup");
    terminal.send("q");
    terminal.wait_for("y leaves. e ends it");
    terminal.send("e");
    assert!(terminal.child.wait().unwrap().success());
    assert_eq!(incident.recoveries()[0].1, "ended");
    assert_eq!(incident.leftovers(), "");
    // Nothing is at stake before rows are staged: leaving ends it without a question.
    let mut terminal = console(&incident, &[]);
    terminal.wait_for("Begin a recovery");
    terminal.send("\r");
    terminal.wait_for("When did it happen?");
    terminal.send("\r");
    terminal.wait_for("What has to come back?");
    terminal.send("q");
    assert!(terminal.child.wait().unwrap().success());
    assert!(incident.recoveries().iter().all(|(_, standing, _)| standing == "ended"));
}

#[test]
fn fm_01_a_worker_that_is_killed_while_a_console_looks_on_is_gone_on_with_from_the_same_screen() {
    let incident = Incident::new("worker_lost");
    let mut terminal = console(&incident, &[]);
    walk_to_the_rows(&mut terminal);
    let kill = || assert!(Command::new("kill").args(["-9", &process(&incident)]).status().unwrap().success());
    kill();
    terminal.wait_for("the worker of this recovery has ended");
    terminal.send("r");
    terminal.wait_for("Compared with the backup");
    terminal.settle();
    let holder = incident.hold();
    consent(&mut terminal);
    terminal.wait_for("Doing what you consented to");
    incident.until_merge_waits();
    kill();
    terminal.wait_for("the worker of this recovery has ended");
    assert!(terminal.text().contains("Changed so far: not known whether it was done"), "{}", terminal.text());
    incident.let_go(holder);
    terminal.send("r");
    terminal.wait_for("Nothing was changed in production, and what was staged is gone.");
    assert_eq!(state(&incident.conninfo), incident.damaged);
    assert_eq!(incident.leftovers(), "");
}

/// A configuration whose system takes two people.
fn careful(incident: &Incident) -> String {
    let config = incident.path("config.toml");
    let text =
        format!("[[system]]\nname = \"shop\"\ndatabase = \"{}\"\nrequire_second_person = true\n", incident.conninfo);
    std::fs::write(&config, text).unwrap();
    config.display().to_string()
}

/// A console of somebody who came to the account by sudo.
fn console_of(incident: &Incident, person: &str, arguments: &[&str]) -> Terminal {
    let home = incident.folder.path().display().to_string();
    let environment = [("HOME", home.as_str()), ("XDG_CONFIG_HOME", &home), ("SUDO_USER", person)];
    Terminal::start(env!("CARGO_BIN_EXE_lifeboat"), arguments, &environment, 24, 80)
}

#[test]
fn a_lock_that_a_killed_process_left_in_the_repository_goes_at_the_next_start() {
    let incident = Incident::new("left_lock");
    let (repository, password) = (incident.path("repository"), incident.path("password"));
    std::fs::write(&password, "canary").unwrap();
    let restic = |arguments: &[&str]| {
        let mut command = Command::new("restic");
        command.args(["--no-cache", "-r"]).arg(&repository).arg("--password-file").arg(&password).args(arguments);
        command.output().unwrap()
    };
    assert!(restic(&["init"]).status.success());
    assert!(restic(&["backup", &incident.path("t.dump").display().to_string()]).status.success());
    let lifeboat = |arguments: &[&str]| {
        let mut command = incident.command(arguments);
        command.env("RESTIC_REPOSITORY", &repository).env("RESTIC_PASSWORD_FILE", &password);
        command.stdout(Stdio::piped());
        command
    };
    let points = String::from_utf8(lifeboat(&["points"]).output().unwrap().stdout).unwrap();
    let point = points.split_whitespace().next().unwrap();
    // A lock is written under another name first.
    let locks = || {
        let names = std::fs::read_dir(repository.join("locks")).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.len() == 64).count()
    };
    let mut child = lifeboat(&["diff", point, "public.t"]).spawn().unwrap();
    while locks() == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was seen to hold a lock");
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!restic(&["prune"]).status.success());
    assert!(lifeboat(&["points"]).output().unwrap().status.success());
    assert_eq!(locks(), 0);
    assert!(restic(&["prune"]).status.success());
}

#[test]
fn where_two_people_are_required_one_is_not_enough() {
    let incident = Incident::new("second_person");
    let (config, dump) = (careful(&incident), incident.path("t.dump").display().to_string());
    let mut first = console_of(&incident, "alice", &["--config", &config, "console", "--dump", &dump]);
    walk_to_the_rows(&mut first);
    consent(&mut first);
    first.wait_for("has consented.");
    assert!(first.text().contains("alice as "), "{}", first.text());
    let second_consent = |terminal: &mut Terminal| {
        terminal.send("\r");
        terminal.wait_for("To consent, type");
        std::thread::sleep(Duration::from_millis(600));
        terminal.send("public.t\r");
    };
    // Neither at the same console, nor at another one as the same person.
    second_consent(&mut first);
    first.wait_for("both consents are of alice");
    let mut again = console_of(&incident, "alice", &["--config", &config, "attach"]);
    again.wait_for("has consented.");
    second_consent(&mut again);
    again.wait_for("both consents are of alice");
    drop(again);
    assert_eq!(state(&incident.conninfo), incident.damaged);
    // Whoever goes back takes the first consent back.
    first.send("\x1b");
    first.wait_for("Compared with the backup");
    first.settle();
    consent(&mut first);
    first.wait_for("has consented.");
    let mut second = console_of(&incident, "bob", &["--config", &config, "attach"]);
    second.wait_for("has consented.");
    picture(&second, "second-person");
    second_consent(&mut second);
    for terminal in [&first, &second] {
        terminal.wait_for("Done, and proved");
    }
    assert_eq!(state(&incident.conninfo), incident.repaired);
    let id = incident.recoveries()[0].0.clone();
    let journal = incident.command(&["journal", &id]).output().unwrap();
    let journal = String::from_utf8(journal.stdout).unwrap();
    let line = journal.lines().find(|line| line.contains("consent given by")).unwrap();
    assert!(line.contains("alice as ") && line.contains(" and bob as "), "{line}");
    // A command gives the first consent as well, and waits for the second.
    let mut undo = incident.command(&["undo", &id, "--consent", "public.t", "--config", &config]);
    let undo = undo.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while incident.recoveries()[0].0 == id {
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut second = console_of(&incident, "bob", &["--config", &config, "attach"]);
    second.wait_for("has consented.");
    assert_eq!(state(&incident.conninfo), incident.repaired);
    second_consent(&mut second);
    second.wait_for("The report, also in");
    let undo = undo.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&undo.stderr);
    assert!(undo.status.success() && told.contains("A second person consents"), "{told}");
    assert!(String::from_utf8_lossy(&undo.stdout).contains("# Recovery"), "{undo:?}");
    assert_eq!(state(&incident.conninfo), incident.damaged);
}

#[test]
fn a_command_without_a_screen_may_go_and_its_recovery_goes_on() {
    let incident = Incident::new("command_gone");
    // Hung up, then killed, while the merge waits for the application.
    let (mut child, holder) = incident.waiting();
    signal(&child, "-HUP");
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none(), "it needs no terminal");
    let looking = console(&incident, &["attach"]);
    looking.wait_for("2 consoles look on");
    child.kill().unwrap();
    child.wait().unwrap();
    incident.let_go(holder);
    looking.wait_for("Done, and proved");
    drop(looking);
    assert!(incident.settle()[0].1.contains("500 inserted, 9,000 updated"));
    assert_eq!(state(&incident.conninfo), incident.repaired);

    // What was not consented to is left when the command that could have is gone.
    let id = incident.recoveries()[0].0.clone();
    let mut undo = console(&incident, &["undo", &id]);
    undo.wait_for("Type public.t to consent:");
    undo.child.kill().unwrap();
    undo.child.wait().unwrap();
    assert_eq!(incident.workers().len(), 1);
    let begun = Instant::now();
    while !incident.workers().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", incident.recoveries());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(incident.recoveries().iter().all(|(_, state, _)| state == "ended"), "{:?}", incident.recoveries());

    // Ctrl-C at the question ends it at once.
    let mut undo = console(&incident, &["undo", &id]);
    undo.wait_for("Type public.t to consent:");
    undo.send("\x03");
    assert_eq!(undo.child.wait().unwrap().exit_code(), 130);
    assert!(incident.workers().is_empty());
    assert_eq!(state(&incident.conninfo), incident.repaired);

    // Its process is killed under it: it says what may have happened, and what to do.
    incident.again();
    let holder = incident.hold();
    let mut recover = incident.command(&["recover"]);
    recover.arg("--answers").arg(incident.path("answers.toml")).arg("--dump").arg(incident.path("t.dump"));
    let recover = recover.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    incident.until_merge_waits();
    kill(Pid::from_raw(incident.workers()[0]), Signal::SIGKILL).unwrap();
    let output = recover.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{told}");
    assert!(told.contains("has ended in the middle") && told.contains("lifeboat resume 20"), "{told}");
    incident.let_go(holder);
    incident.settle();
    assert_eq!(state(&incident.conninfo), incident.damaged);
}

#[test]
fn the_console_removes_what_was_left_after_consent() {
    let incident = Incident::new("console_clean");
    let mut terminal = console(&incident, &[]);
    terminal.wait_for("Begin a recovery");
    terminal.send("c");
    terminal.wait_for("no recovery has left anything that could be removed");
    terminal.send("\x1b");
    terminal.wait_for("Begin a recovery");
    let mark =
        r#"{"lifeboat":"20260101_000000_abcd","created":"2026-01-01 00:00:00+00","by":"postgres","host":"elsewhere"}"#;
    crate::cluster::psql(
        &incident.conninfo,
        &format!(
            "create schema restore_staging_20260101_000000_abcd; comment on schema restore_staging_20260101_000000_abcd is '{mark}'"
        ),
    );
    terminal.settle();
    terminal.send("c");
    terminal.wait_for("CANNOT BE UNDONE");
    assert!(terminal.text().contains("staged by a"), "{}", terminal.text());
    terminal.send("\r");
    terminal.wait_for("type  remove 1 schema");
    std::thread::sleep(Duration::from_millis(600));
    terminal.send("remove 1 schema\r");
    terminal.wait_for("1 schema of earlier recoveries removed");
    assert_eq!(incident.leftovers(), "");
}

#[test]
fn fm_05_a_cut_ssh_connection_loses_nothing() {
    let incident = Incident::new("fm_05_ssh");
    let ssh = Ssh::serve();
    let home = incident.folder.path().display();
    let lifeboat = format!(
        "env HOME={home} XDG_CONFIG_HOME={home} TERM=xterm-256color LC_ALL=C.UTF-8 {} --database '{}'",
        env!("CARGO_BIN_EXE_lifeboat"),
        incident.conninfo.replace('\'', "'\\''"),
    );
    let dump = incident.path("t.dump").display().to_string();
    let mut terminal = ssh.terminal(&format!("{lifeboat} console --dump {dump}"));
    walk_to_the_rows(&mut terminal);
    let holder = incident.hold();
    consent(&mut terminal);
    terminal.wait_for("Safe to disconnect");
    incident.until_merge_waits();
    // The client is killed, and the server's side of the connection.
    terminal.child.kill().unwrap();
    terminal.child.wait().unwrap();
    ssh.cut();
    assert_eq!(incident.recoveries()[0].1, "under way");
    let mut terminal = ssh.terminal(&format!("{lifeboat} attach"));
    terminal.wait_for("Doing what you consented to");
    terminal.wait_for("Safe to disconnect");
    picture(&terminal, "attached");
    incident.let_go(holder);
    terminal.wait_for("Done, and proved");
    assert_eq!(state(&incident.conninfo), incident.repaired);
    terminal.send("q");
    assert!(terminal.child.wait().unwrap().success());
    let id = incident.recoveries()[0].0.clone();
    let report = incident.command(&["report", &id]).output().unwrap();
    let report = String::from_utf8(report.stdout).unwrap();
    assert!(report.contains("connected from 127.0.0.1") && report.contains("## Proof"), "{report}");
    assert_eq!(incident.leftovers(), "");
}

/// A private SSH server.
struct Ssh {
    folder: tempfile::TempDir,
    server: Child,
    port: u16,
}

impl Ssh {
    fn serve() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        crate::backup::make_ssh_keys(folder.path());
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host\nPidFile none\nAuthorizedKeysFile {at}/user.pub\nStrictModes no\nPermitRootLogin yes\n"
        );
        std::fs::write(folder.path().join("server"), settings).unwrap();
        let mut server = Command::new("/usr/sbin/sshd");
        let server = server.args(["-D", "-f"]).arg(folder.path().join("server")).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "sshd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { folder, server, port }
    }

    fn terminal(&self, command: &str) -> Terminal {
        let (key, port) = (self.folder.path().join("user").display().to_string(), self.port.to_string());
        let arguments = [
            "-tt",
            "-F",
            "none",
            "-p",
            &port,
            "-i",
            &key,
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
            "127.0.0.1",
            command,
        ];
        Terminal::start("ssh", &arguments, &[], 24, 80)
    }

    /// Ends every connection on the server's side too.
    fn cut(&self) {
        let children = format!("/proc/{0}/task/{0}/children", self.server.id());
        for child in std::fs::read_to_string(Path::new(&children)).unwrap().split_whitespace() {
            let _ = Command::new("kill").args(["-9", child]).status();
        }
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        self.cut();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// systemd itself cannot be had in a test; what its client is asked for, and that it is not needed, can.
#[test]
fn where_systemd_ends_sessions_the_worker_goes_into_a_scope_of_its_own() {
    let incident = Incident::new("scope");
    let programs = incident.path("programs");
    std::fs::create_dir(&programs).unwrap();
    let (client, asked) = (programs.join("systemd-run"), incident.path("asked"));
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    for fate in ["exec \"$@\"", "echo 'Failed to connect to bus' >&2; exit 1"] {
        let script = format!(
            "#!/bin/sh\necho \"$@\" > {}\nwhile [ \"$1\" != -- ]; do shift; done; shift\n{fate}\n",
            asked.display()
        );
        std::fs::write(&client, script).unwrap();
        std::fs::set_permissions(&client, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut recover = Command::new("unshare");
        let within = "mount -t tmpfs none /run && mkdir -p /run/systemd/system || exit 99; exec \"$@\"";
        recover.args(["--mount", "sh", "-c", within, "sh", env!("CARGO_BIN_EXE_lifeboat"), "recover"]);
        recover.arg("--answers").arg(incident.path("answers.toml")).arg("--dump").arg(incident.path("t.dump"));
        recover.args(["--database", &incident.conninfo]).env("HOME", incident.folder.path()).env("PATH", &path);
        let output = recover.output().unwrap();
        if output.status.code() == Some(99) || String::from_utf8_lossy(&output.stderr).starts_with("unshare:") {
            crate::not_run("a scope of its own needs the right to mount a file system");
            return;
        }
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(state(&incident.conninfo), incident.repaired);
        let asked = std::fs::read_to_string(&asked).unwrap();
        assert!(asked.contains("--scope") && asked.trim_end().ends_with("lifeboat worker"), "{fate}: {asked}");
        incident.again();
    }
}
