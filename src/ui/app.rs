//! The state of the console and how it changes: keys and messages in, a screen out.

mod draw;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::filter::FilterLine;
use super::keymap::{self, Action, Place};
use super::screens::done::Done;
use super::screens::home::{Earlier, Home};
use super::screens::plan::Review;
use super::screens::points::Points;
use super::screens::question::{KeyColumns, One, Refused, Time};
use super::screens::rows::RowsScreen;
use super::screens::run::{Failed, Running, Waiting};
use super::screens::tables::Tables;
use super::screens::{self, Command, Screen};
use super::theme::Theme;
use super::{Console, caught};
use crate::error::{Error, Result};
use crate::postgres::diff::{Filter, Page};
use crate::progress::Progress;
use crate::recovery::flows::{Answers, Next, Question};
use crate::recovery::journal;
use crate::recovery::plan::Confirmed;
use crate::recovery::record::{Contents, Finding, Look};
use crate::recovery::run::{self, Settled, Standing, StepEvent};
use crate::recovery::systems::{Evidence, Systems};
use crate::recovery::{Flow, Recovery, report};

/// What a job answers.
pub enum Message {
    /// What the flow asked to look at, and what was found.
    Looked(Look, Result<Finding>),
    /// What lies inside a recovery point, for the points screen.
    Inside(String, Result<Contents, String>),
    /// Rows of the diff, as they were asked for.
    Paged {
        /// Its place among the compared tables.
        table: usize,
        /// The one that was asked with: the answer is nobody's when the screen has another by now.
        filter: Filter,
        /// The row number after which the page begins; 0 is the beginning.
        after: i64,
        /// Errors: a condition that the server does not take, or whatever else it says.
        page: Result<Page>,
    },
    /// How many rows of the diff match.
    Counted {
        /// Its place among the compared tables.
        table: usize,
        /// The one that was asked with.
        filter: Filter,
        /// Errors: as of a page.
        rows: Result<u64>,
    },
    /// A step of the plan began or ended.
    Stepped(StepEvent),
    /// The plan ended; the recovery comes back from the job that held it meanwhile.
    Ran(Box<Recovery>, Result<Vec<Evidence>>),
    /// A recovery that was left in the middle has been settled, or could not be.
    Settled(String, Result<Settled>),
    /// What a recovery had staged is gone, and its journal is closed.
    Left,
    /// A drill's end compared with the truth; the error is its message.
    Judged(Result<Vec<screens::done::Check>, String>),
}

/// What lies over the screen.
enum Overlay {
    Help {
        scroll: u16,
    },
    Palette {
        filter: FilterLine,
        selected: usize,
    },
    /// Leaving would lose something: what, in a sentence.
    Leaving(&'static str),
}

/// The console between two keys. It holds the screen, and the recovery unless a plan is running.
pub struct App<S> {
    console: Console<S>,
    theme: Theme,
    messages: UnboundedSender<Message>,
    recovery: Option<Recovery>,
    screen: Screen,
    overlay: Option<Overlay>,
    /// The look or the run that is under way.
    work: Option<Progress>,
    /// The confirmed plan that runs or failed, for another try.
    confirmed: Option<Confirmed>,
    /// The screens that were answered, newest last, to be found as they were left when the operator comes back.
    answered: Vec<Screen>,
    inside: HashMap<String, Result<Contents, String>>,
    looking_inside: bool,
    facts: Header,
    notice: Option<String>,
    copied: Option<String>,
    left: bool,
}

/// What the header says, as it becomes known.
#[derive(Default)]
struct Header {
    server: Option<String>,
    database: Option<String>,
}

impl<S: Systems> App<S> {
    /// Starts on the first screen. The receiver gives what jobs answer, for [`App::receive`].
    pub fn new(console: Console<S>, theme: Theme) -> (Self, UnboundedReceiver<Message>) {
        let (messages, receiver) = unbounded_channel();
        let screen = Screen::Home(home(&console));
        let app = Self {
            console,
            theme,
            messages,
            recovery: None,
            screen,
            overlay: None,
            work: None,
            confirmed: None,
            answered: Vec::new(),
            inside: HashMap::new(),
            looking_inside: false,
            facts: Header::default(),
            notice: None,
            copied: None,
            left: false,
        };
        (app, receiver)
    }

    /// Whether the operator has left; nothing is drawn any more then.
    pub fn left(&self) -> bool {
        self.left
    }

    /// Whether a job runs whose progress is on screen.
    pub fn working(&self) -> bool {
        self.work.is_some()
    }

    /// Whether the passing of time changed what is on screen.
    pub fn ticked(&self) -> bool {
        self.work.is_some()
    }

    /// Text for the terminal's clipboard, once.
    pub fn take_copied(&mut self) -> Option<String> {
        self.copied.take()
    }

    /// Types pasted text where text is typed, without control characters; a line of consent takes none.
    pub fn paste(&mut self, text: &str) {
        match &mut self.screen {
            Screen::Plan(screen) if screen.wants_text() => screen.pasted(),
            screen if screen.wants_text() => {
                let letters = text.chars().filter(|letter| !letter.is_control());
                let typed = letters.filter_map(|letter| screen.typed(KeyEvent::from(KeyCode::Char(letter))));
                for command in typed.collect::<Vec<_>>() {
                    self.obey(command);
                }
            }
            _ => self.notice = Some("pasted text was ignored".into()),
        }
    }

    /// Takes one key press in, whatever it means where the operator is.
    pub fn key(&mut self, key: KeyEvent) {
        self.notice = None;
        if self.overlay.is_some() {
            self.key_on_overlay(key);
            return;
        }
        // While text is typed, only Ctrl-C is a command; Ctrl-W, Ctrl-U and the like edit the line.
        let control = key.modifiers.contains(crossterm::event::KeyModifiers::CONTROL);
        let leaves = control && key.code == KeyCode::Char('c');
        let command = if self.screen.wants_text() && !leaves {
            self.screen.typed(key)
        } else {
            match keymap::lookup(self.screen.place(), key) {
                None => return,
                Some(action) => {
                    self.act(action);
                    None
                }
            }
        };
        if let Some(command) = command {
            self.obey(command);
        }
        self.look_inside();
        self.fetch_rows();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Help => self.overlay = Some(Overlay::Help { scroll: 0 }),
            Action::Palette => {
                let mut filter = FilterLine::default();
                filter.open();
                self.overlay = Some(Overlay::Palette { filter, selected: 0 });
            }
            Action::Quit => self.quit(),
            Action::Cancel => self.cancel(),
            Action::Back if matches!(self.screen, Screen::Home(_)) => {
                self.notice = Some("this is the first screen; q leaves".into());
            }
            Action::Back if matches!(self.screen, Screen::Waiting(_)) => self.cancel(),
            _ => {
                if let Some(command) = self.screen.act(action) {
                    self.obey(command);
                }
            }
        }
    }

    fn cancel(&mut self) {
        if let Some(work) = &self.work {
            work.cancel();
        }
        match &mut self.screen {
            Screen::Waiting(screen) => screen.cancelling = true,
            Screen::Running(screen) => screen.cancelling = true,
            _ => {}
        }
    }

    fn quit(&mut self) {
        let loss =
            match &self.screen {
                Screen::Running(_) => {
                    Some("A plan is running. Leaving asks it to stop: what is not committed is rolled back.")
                }
                Screen::Waiting(_) => Some("Work is under way. Leaving cancels it and removes what was staged."),
                _ => self.recovery.as_ref().filter(|recovery| recovery.record().stage()).map(
                    |_| "What was staged and compared is removed when you leave. Production is not changed by that.",
                ),
            };
        match loss {
            Some(loss) => self.overlay = Some(Overlay::Leaving(loss)),
            None => self.left = true,
        }
    }

    fn key_on_overlay(&mut self, key: KeyEvent) {
        match &mut self.overlay {
            Some(Overlay::Help { scroll }) => match key.code {
                KeyCode::Down | KeyCode::Char('j') => *scroll = scroll.saturating_add(1),
                KeyCode::Up | KeyCode::Char('k') => *scroll = scroll.saturating_sub(1),
                _ => self.overlay = None,
            },
            Some(Overlay::Leaving(_)) => {
                self.overlay = None;
                if key.code == KeyCode::Char('y') {
                    self.cancel();
                    self.left = true;
                }
            }
            Some(Overlay::Palette { filter, selected }) => {
                let place = self.screen.place();
                let shown: Vec<Action> = palette(place, filter).into_iter().map(|(action, _)| action).collect();
                match key.code {
                    KeyCode::Esc => self.overlay = None,
                    KeyCode::Down => *selected = (*selected + 1).min(shown.len().saturating_sub(1)),
                    KeyCode::Up => *selected = selected.saturating_sub(1),
                    KeyCode::Enter => {
                        let action = shown.get(*selected).copied();
                        self.overlay = None;
                        if let Some(action) = action {
                            self.act(action);
                        }
                    }
                    _ => {
                        filter.typed(key);
                        *selected = 0;
                    }
                }
            }
            None => {}
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start => self.start(Flow::Rows),
            Command::Undo(recovery) => self.start(Flow::Undo { recovery }),
            Command::Resume(recovery) => self.resume(recovery),
            Command::Report(recovery) => self.show_report(&recovery, "An earlier recovery".into(), None),
            Command::Answer(fact) => {
                let answered = self.recovery.as_mut().map(|recovery| recovery.answer(fact));
                let blank = Screen::Choice(One::new(String::new(), String::new(), Vec::new()));
                self.answered.push(std::mem::replace(&mut self.screen, blank));
                self.go_on(answered.unwrap_or(Ok(())));
            }
            Command::Back => self.back(),
            Command::Page { table, filter, after, limit } => self.page(table, filter, after, limit),
            Command::Count { table, filter } => self.count(table, filter),
            Command::Run(confirmed) => self.run(*confirmed),
            Command::Refresh => {
                let refreshed = self.recovery.as_mut().map(Recovery::refresh);
                self.go_on(refreshed.unwrap_or(Ok(())));
            }
            Command::Retry => match self.confirmed.take() {
                // Production may have moved since: what was consented to is looked at again, not forced.
                Some(_) => {
                    let refreshed = self.recovery.as_mut().map(Recovery::refresh);
                    self.go_on(refreshed.unwrap_or(Ok(())));
                }
                None => self.next(),
            },
            Command::Home => self.go_home(),
            Command::Copy(text) => {
                self.copied = Some(text);
                self.notice = Some("copied".into());
            }
            Command::Notice(text) => self.notice = Some(text),
        }
    }

    fn start(&mut self, flow: Flow) {
        self.answered.clear();
        match Recovery::start(flow, &self.console.system, &self.console.state) {
            Ok(recovery) => {
                self.recovery = Some(recovery.with_rpo(self.console.rpo));
                self.next();
            }
            Err(error) => self.fail(error),
        }
    }

    fn go_on(&mut self, done: Result<()>) {
        match done {
            Ok(()) => self.next(),
            Err(error) => self.fail(error),
        }
    }

    fn back(&mut self) {
        self.confirmed = None;
        match self.recovery.as_mut().map(Recovery::back) {
            Some(Ok(true)) => self.next(),
            Some(Err(error)) => self.fail(error),
            Some(Ok(false)) | None => self.go_home(),
        }
    }

    fn go_home(&mut self) {
        if let Some(mut recovery) = self.recovery.take() {
            let systems = self.console.systems.clone();
            let messages = self.messages.clone();
            tokio::spawn(async move {
                recovery.leave(systems.as_ref()).await;
                drop(recovery);
                let _ = messages.send(Message::Left);
            });
        }
        self.confirmed = None;
        self.answered.clear();
        self.screen = Screen::Home(home(&self.console));
    }

    /// Shows what the flow wants next.
    fn next(&mut self) {
        let Some(recovery) = &self.recovery else { return self.go_home() };
        match recovery.next() {
            Next::Ask(question) => {
                let asked = self.ask(question);
                self.screen = self.as_left(asked);
            }
            Next::Look(look) => self.look(look),
            Next::Refuse(refusal) => self.screen = Screen::Refused(Refused { refusal }),
            Next::Ready(plan) => match plan.hash() {
                Ok(hash) => self.screen = Screen::Plan(Review::new(plan, hash)),
                Err(error) => self.fail(error),
            },
        }
        self.look_inside();
        self.fetch_rows();
    }

    /// A question's screen as the operator left it, when it was answered before.
    fn as_left(&mut self, asked: Screen) -> Screen {
        let place = self.answered.iter().rposition(|left| screens::same_question(left, &asked));
        match (place.map(|place| self.answered.remove(place)), asked) {
            (Some(Screen::Rows(left)), Screen::Rows(asked)) => Screen::Rows(Box::new(left.resumed(*asked))),
            (Some(left), _) => left,
            (None, asked) => asked,
        }
    }

    fn ask(&self, question: Question) -> Screen {
        let now = (self.console.now)();
        let incident = self.recovery.as_ref().and_then(|recovery| recovery.record().incident());
        match question.answers.clone() {
            Answers::Time => {
                Screen::Time(Time { question, input: tui_input::Input::default(), now: self.console.now, error: None })
            }
            Answers::Point(ranked) => {
                let mut points = Points::new(question.title, question.why, ranked, incident, now);
                points.contents.clone_from(&self.inside);
                Screen::Points(points)
            }
            Answers::One(choices) => Screen::Choice(One::new(question.title, question.why, choices)),
            Answers::Tables(tables) => Screen::Tables(Tables::new(question.title, question.why, tables)),
            Answers::Key { table, columns } => Screen::Key(KeyColumns {
                title: question.title,
                why: question.why,
                table,
                columns,
                marked: std::collections::BTreeSet::new(),
                cursor: super::table::Cursor::default(),
            }),
            Answers::Rows(diffs) => Screen::Rows(Box::new(RowsScreen::new(diffs))),
        }
    }

    fn look(&mut self, look: Look) {
        let progress = Progress::default();
        self.screen = Screen::Waiting(Waiting { reports: progress.watch(), since: Instant::now(), cancelling: false });
        self.work = Some(progress.clone());
        let recovery = self.recovery.as_ref().map(|recovery| recovery.id.clone()).unwrap_or_default();
        let (systems, messages) = (self.console.systems.clone(), self.messages.clone());
        tokio::spawn(async move {
            let found = caught(systems.look(&recovery, &look, &progress)).await;
            let _ = messages.send(Message::Looked(look, found));
        });
    }

    /// While the points are on screen, what lies inside them is found out one by one.
    fn look_inside(&mut self) {
        let Screen::Points(points) = &self.screen else { return };
        if self.looking_inside {
            return;
        }
        let Some(point) = points.unknown() else { return };
        self.looking_inside = true;
        let (systems, messages) = (self.console.systems.clone(), self.messages.clone());
        tokio::spawn(async move {
            let look = Look::Contents { point: point.clone() };
            let found = match caught(systems.look("", &look, &Progress::default())).await {
                Ok(Finding::Contents(contents)) => Ok(contents),
                Ok(_) => Err("something else was found".into()),
                Err(error) => Err(error.message),
            };
            let _ = messages.send(Message::Inside(point, found));
        });
    }

    /// Lets the rows screen fetch what it needs first.
    fn fetch_rows(&mut self) {
        if let Screen::Rows(rows) = &mut self.screen {
            let mut wanted = Vec::new();
            while let Some(command) = rows.pending() {
                wanted.push(command);
            }
            for command in wanted {
                self.obey(command);
            }
        }
    }

    fn page(&self, table: usize, filter: Filter, after: i64, limit: u32) {
        let (systems, messages) = (self.console.systems.clone(), self.messages.clone());
        tokio::spawn(async move {
            let page = caught(systems.page(table, &filter, after, limit)).await;
            let _ = messages.send(Message::Paged { table, filter, after, page });
        });
    }

    fn count(&self, table: usize, filter: Filter) {
        let (systems, messages) = (self.console.systems.clone(), self.messages.clone());
        tokio::spawn(async move {
            let rows = caught(systems.matches(table, &filter)).await;
            let _ = messages.send(Message::Counted { table, filter, rows });
        });
    }

    fn run(&mut self, confirmed: Confirmed) {
        let Some(mut recovery) = self.recovery.take() else { return };
        let progress = Progress::default();
        self.screen = Screen::Running(Running {
            plan: confirmed.plan().clone(),
            reports: progress.watch(),
            ended: 0,
            cancelling: false,
        });
        self.work = Some(progress.clone());
        self.confirmed = Some(confirmed.clone());
        let (systems, messages) = (self.console.systems.clone(), self.messages.clone());
        tokio::spawn(async move {
            let steps = messages.clone();
            let on_step = move |event| {
                let _ = steps.send(Message::Stepped(event));
            };
            let outcome = caught(run::run(&confirmed, systems.as_ref(), &mut recovery, &progress, on_step)).await;
            let _ = messages.send(Message::Ran(Box::new(recovery), outcome));
        });
    }

    /// Settles a recovery whose process has ended.
    fn resume(&mut self, id: String) {
        let (mut recovery, lines) = match Recovery::reopen(&id, &self.console.state) {
            Ok(reopened) => reopened,
            Err(error) => return self.fail(error),
        };
        let progress = Progress::default();
        self.screen = Screen::Waiting(Waiting { reports: progress.watch(), since: Instant::now(), cancelling: false });
        self.work = Some(progress.clone());
        let (systems, messages) = (self.console.systems.clone(), self.messages.clone());
        tokio::spawn(async move {
            progress.begin("asking production what was committed", crate::progress::Unit::Items, None);
            let settled = caught(run::resume(&mut recovery, &lines, systems.as_ref(), &progress)).await;
            drop(recovery);
            let _ = messages.send(Message::Settled(id, settled));
        });
    }

    fn fail(&mut self, error: Error) {
        let lines = self.recovery.as_ref().and_then(|recovery| journal::read(recovery.journal.folder()).ok());
        let changed = report::changed(&lines.unwrap_or_default());
        self.screen = Screen::Failed(Failed { error, changed, details: false });
    }

    /// Takes in what a job answered.
    pub fn receive(&mut self, message: Message) {
        match message {
            Message::Looked(look, found) => {
                self.work = None;
                match found {
                    Ok(finding) => {
                        if let (Look::Contents { point }, Finding::Contents(contents)) = (&look, &finding) {
                            self.inside.insert(point.clone(), Ok(contents.clone()));
                        }
                        self.note(&finding);
                        let noted = self.recovery.as_mut().map(|recovery| recovery.found(look, finding));
                        self.go_on(noted.unwrap_or(Ok(())));
                    }
                    Err(error) => self.fail(error),
                }
            }
            Message::Inside(point, found) => {
                self.looking_inside = false;
                self.inside.insert(point.clone(), found.clone());
                if let Screen::Points(points) = &mut self.screen {
                    points.contents.insert(point, found);
                }
                self.look_inside();
            }
            Message::Paged { table, filter, after, page } => {
                if let Screen::Rows(rows) = &mut self.screen {
                    match page {
                        Ok(page) => rows.page(table, &filter, after, page),
                        Err(error) => rows.failed(error),
                    }
                }
                self.fetch_rows();
            }
            Message::Counted { table, filter, rows: count } => {
                if let Screen::Rows(rows) = &mut self.screen {
                    match count {
                        Ok(count) => rows.count(table, &filter, count),
                        Err(error) => rows.failed(error),
                    }
                }
                self.fetch_rows();
            }
            Message::Stepped(StepEvent::Began(_)) => {}
            Message::Stepped(StepEvent::Ended(number)) => {
                if let Screen::Running(running) = &mut self.screen {
                    running.ended = number + 1;
                }
            }
            Message::Ran(recovery, outcome) => self.ran(*recovery, outcome),
            Message::Settled(id, settled) => {
                self.work = None;
                match settled {
                    Ok(settled) => self.show_report(&id, settled.told().into(), None),
                    Err(error) => self.fail(error),
                }
            }
            Message::Left => {
                if let Screen::Home(shown) = &mut self.screen {
                    shown.earlier = home(&self.console).earlier;
                }
            }
            Message::Judged(verdict) => {
                if let Screen::Done(done) = &mut self.screen {
                    done.verdict = Some(verdict);
                }
            }
        }
    }

    fn note(&mut self, finding: &Finding) {
        if let Finding::Tables(tables) = finding {
            self.facts.server = Some(format!("{} PostgreSQL {}", tables.server.shown, tables.server.version));
            self.facts.database = Some(tables.server.database.clone());
            self.notice = tables.server.warnings.first().cloned();
        }
    }

    fn ran(&mut self, recovery: Recovery, outcome: Result<Vec<Evidence>>) {
        self.work = None;
        let id = recovery.id.clone();
        if let Err(error) = outcome {
            self.recovery = Some(recovery);
            self.fail(error);
        } else {
            self.confirmed = None;
            self.show_report(&id, "Done, and proved".into(), self.console.verdict.clone());
        }
    }

    fn show_report(&mut self, recovery: &str, title: String, verdict: Option<super::Verdict>) {
        let folder = self.console.state.join("recoveries").join(recovery);
        let lines = match journal::read(&folder) {
            Ok(lines) => lines,
            Err(error) => return self.fail(error),
        };
        let path = folder.join("report.md").display().to_string();
        self.screen = Screen::Done(Done {
            title,
            recovery: recovery.into(),
            wrote: report::changed(&lines) != "nothing",
            report: report::markdown(&lines),
            path,
            verdict: None,
            scroll: 0,
        });
        if let Some(verdict) = verdict {
            let messages = self.messages.clone();
            tokio::task::spawn_blocking(move || {
                let _ = messages.send(Message::Judged(verdict().map_err(|error| error.to_string())));
            });
        }
    }

    /// Cleans up before the console closes.
    pub async fn leave(&mut self) {
        if let Some(work) = &self.work {
            work.cancel();
        }
        if let Some(mut recovery) = self.recovery.take() {
            // A server that does not answer must not keep the terminal.
            let _ = tokio::time::timeout(Duration::from_secs(5), recovery.leave(self.console.systems.as_ref())).await;
        }
    }
}

/// The actions of a screen that match what is typed.
fn palette(place: Place, filter: &FilterLine) -> Vec<(Action, &'static str)> {
    let all: Vec<_> = keymap::bindings(place).filter(|binding| binding.action != Action::Palette).collect();
    filter
        .matching(all.iter().map(|binding| binding.help.to_lowercase()))
        .into_iter()
        .map(|at| (all[at].action, all[at].help))
        .collect()
}

fn home<S>(console: &Console<S>) -> Home {
    let earlier = journal::list(&console.state).into_iter().take(50).map(|id| {
        let standing = Standing::of(&console.state.join("recoveries").join(&id));
        Earlier { id, standing }
    });
    // One that this console is just leaving comes into the list when it has been left.
    let ours =
        |standing: &Standing| matches!(standing, Standing::UnderWay { process, .. } if *process == std::process::id());
    let mut earlier: Vec<_> = earlier.filter(|earlier| !ours(&earlier.standing)).collect();
    earlier.sort_by_key(|earlier| match earlier.standing {
        Standing::Left { .. } => 0,
        Standing::UnderWay { .. } => 1,
        Standing::Ended { .. } | Standing::Unreadable { .. } => 2,
    });
    // What was left in the middle comes first, also under the cursor.
    let selected = usize::from(matches!(earlier.first(), Some(Earlier { standing: Standing::Left { .. }, .. })));
    let cursor = super::table::Cursor { selected, ..Default::default() };
    Home { briefing: console.briefing.clone(), earlier, cursor }
}
