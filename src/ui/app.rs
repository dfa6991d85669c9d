//! The state of the console and how it changes: keys and messages in, a screen out.

mod draw;
mod news;

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use super::Console;
use super::filter::FilterLine;
use super::keymap::{self, Action, Place};
use super::screens::done::Done;
use super::screens::files::Files;
use super::screens::home::{Earlier, Home};
use super::screens::inspect::Stands;
use super::screens::moment::Moment;
use super::screens::plan::Review;
use super::screens::points::Points;
use super::screens::question::{Folder, KeyColumns, One, Refused, Time};
use super::screens::rows::RowsScreen;
use super::screens::run::{Failed, Running, Waiting};
use super::screens::tables::Tables;
use super::screens::{self, Command, Screen};
use super::theme::Theme;
use crate::error::{Error, Result};
use crate::panics::caught;
use crate::progress::{Progress, Report};
use crate::recovery::flows::clean::Keep;
use crate::recovery::flows::{Answers, Next, Question};
use crate::recovery::journal;
use crate::recovery::record::{Contents, Incident};
use crate::recovery::run::Standing;
use crate::recovery::worker::{Event, Request, Stage, Viewer};
use crate::recovery::{Flow, report};

/// What comes in besides keys.
pub enum Message {
    /// A worker has begun, or was found again, and its events follow.
    Attached(Result<Box<Viewer>>),
    /// What a worker tells; the recovery's id comes first, since one that was left may still speak.
    Told(String, Event),
    /// A worker tells nothing any more.
    Silent(String),
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
    /// What leaving means now.
    Leaving(Leaving),
}

/// What becomes of a recovery when its console is left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// It goes on, or waits, and can be attached to.
    Stays,
    /// It ends: a drill's sandbox goes away with the console.
    Ends,
}

/// Whether a request that changes the screen is on its way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    /// It is the answer to what is on screen.
    Answer,
    Other,
}

/// A way to a worker.
#[derive(Clone)]
enum Coming {
    Begin(Flow),
    GoOn(String),
}

/// The console between two keys: the screen, and a view of the recovery that its worker holds.
pub struct App {
    console: Console,
    theme: Theme,
    messages: UnboundedSender<Message>,
    recovery: Option<Viewer>,
    screen: Screen,
    overlay: Option<Overlay>,
    asked: Asked,
    /// Keys that came after a request which changes the screen: they are for the screen that follows.
    held: VecDeque<KeyEvent>,
    /// The screens that were answered, newest last, to be found as they were left when the operator comes back.
    answered: Vec<Screen>,
    inside: HashMap<String, Result<Contents, String>>,
    looking_inside: bool,
    /// How the present worker was, or is being, come by: what is tried again when it is not there.
    coming: Option<Coming>,
    /// Recoveries that were asked to end and have not yet: they are waited for before the console closes.
    parting: HashSet<String>,
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
    machine: String,
}

impl App {
    /// Starts on the first screen. The receiver gives what jobs answer, for [`App::receive`].
    pub fn new(console: Console, theme: Theme) -> (Self, UnboundedReceiver<Message>) {
        let (messages, receiver) = unbounded_channel();
        let screen = Screen::Home(home(&console));
        let mut app = Self {
            console,
            theme,
            messages,
            recovery: None,
            screen,
            overlay: None,
            asked: Asked::Nothing,
            held: VecDeque::new(),
            answered: Vec::new(),
            inside: HashMap::new(),
            looking_inside: false,
            coming: None,
            parting: HashSet::new(),
            facts: Header { machine: journal::operator().host, ..Header::default() },
            notice: None,
            copied: None,
            left: false,
        };
        if let Some(recovery) = app.console.attach.take() {
            app.come_in(Coming::GoOn(recovery));
        }
        (app, receiver)
    }

    /// Whether the operator has left; nothing is drawn any more then.
    pub fn left(&self) -> bool {
        self.left
    }

    /// Whether the passing of time changes what is on screen.
    pub fn working(&self) -> bool {
        match &self.screen {
            Screen::Waiting(_) | Screen::Running(_) => true,
            Screen::Use(screen) => screen.asking(),
            _ => false,
        }
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
                // A query may have been written on several lines.
                let lines = matches!(screen, Screen::Use(_));
                let spaced = text.chars().map(|letter| if lines && letter.is_whitespace() { ' ' } else { letter });
                let letters = spaced.filter(|letter| !letter.is_control());
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
        // While text is typed, only Ctrl-C is a command; Ctrl-W, Ctrl-U and the like edit the line.
        let control = key.modifiers.contains(crossterm::event::KeyModifiers::CONTROL);
        let leaves = control && key.code == KeyCode::Char('c');
        if self.asked != Asked::Nothing && self.overlay.is_none() && !leaves {
            self.held.push_back(key);
            return;
        }
        self.notice = None;
        if self.overlay.is_some() {
            self.key_on_overlay(key);
            return;
        }
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
            Action::Back if matches!(self.screen, Screen::Running(_)) => {
                self.notice =
                    Some("there is no way back from a plan: Ctrl-C stops it at a safe point, q leaves".into());
            }
            _ => {
                if let Some(command) = self.screen.act(action) {
                    self.obey(command);
                }
            }
        }
    }

    fn cancel(&mut self) {
        if let Some(recovery) = &self.recovery {
            recovery.ask(Request::Cancel);
        }
        match &mut self.screen {
            Screen::Waiting(screen) => screen.cancelling = true,
            Screen::Running(screen) => screen.cancelling = true,
            _ => {}
        }
    }

    fn quit(&mut self) {
        let at_stake = match &self.recovery {
            // Between questions nothing is lost that could not be asked again at once.
            Some(recovery) => {
                let record = recovery.record();
                self.working() || record.stage() || record.lay_out().is_some()
            }
            None => false,
        };
        match &self.recovery {
            Some(recovery) if at_stake => {
                self.overlay = Some(Overlay::Leaving(if recovery.detached { Leaving::Stays } else { Leaving::Ends }));
            }
            _ => {
                self.end();
                self.left = true;
            }
        }
    }

    fn key_on_overlay(&mut self, key: KeyEvent) {
        match &mut self.overlay {
            Some(Overlay::Help { scroll }) => match key.code {
                KeyCode::Down | KeyCode::Char('j') => *scroll = scroll.saturating_add(1),
                KeyCode::Up | KeyCode::Char('k') => *scroll = scroll.saturating_sub(1),
                _ => self.overlay = None,
            },
            Some(Overlay::Leaving(leaving)) => {
                let ends = match (key.code, *leaving) {
                    (KeyCode::Char('y'), Leaving::Stays) => Some(false),
                    (KeyCode::Char('e'), Leaving::Stays) | (KeyCode::Char('y'), Leaving::Ends) => Some(true),
                    _ => None,
                };
                self.overlay = None;
                if let Some(ends) = ends {
                    if ends {
                        self.end();
                    }
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
            Command::Start => self.come_in(Coming::Begin(Flow::Rows)),
            Command::Undo(recovery) => {
                let folder = self.console.state.join("recoveries").join(&recovery);
                let lines = journal::read(&folder).unwrap_or_default();
                let flow = report::undo_of(&recovery, &lines).unwrap_or(Flow::Undo { recovery });
                self.come_in(Coming::Begin(flow));
            }
            Command::Clean => {
                let open = Standing::open(&self.console.state);
                let keep = Keep { undo_seconds: self.console.keep_undo.as_secs(), open };
                self.come_in(Coming::Begin(Flow::Clean(keep)));
            }
            Command::GoOn(recovery) => self.come_in(Coming::GoOn(recovery)),
            Command::Report(recovery) => self.show_report(&recovery, "An earlier recovery".into(), None),
            Command::Answer(fact) => {
                self.ask_to_move(|seen| Request::Answer { fact, seen });
                self.asked = Asked::Answer;
            }
            Command::Instead { back, facts } => {
                self.ask_to_move(|seen| Request::Instead { back, facts, seen });
                self.asked = Asked::Answer;
            }
            Command::Back => self.back(),
            Command::Ask(request) => self.request(request),
            Command::Consent { typed, shown } => self.ask_to_move(|_| Request::Consent { typed, shown }),
            Command::Refresh => self.ask_to_move(|seen| Request::Refresh { seen }),
            Command::Retry => match (&self.recovery, self.coming.clone()) {
                (None, Some(coming)) => self.come_in(coming),
                _ => self.ask_to_move(|seen| Request::Retry { seen }),
            },
            Command::Home => self.go_home(),
            Command::Copy(text) => {
                self.copied = Some(text);
                self.notice = Some("copied".into());
            }
            Command::Notice(text) => self.notice = Some(text),
        }
    }

    /// Gets hold of a worker; its events come as messages.
    fn come_in(&mut self, coming: Coming) {
        self.answered.clear();
        self.coming = Some(coming.clone());
        self.wait(Progress::default().watch());
        let (workers, state) = (self.console.workers.clone(), self.console.state.clone());
        let coming = async move {
            match coming {
                Coming::Begin(flow) => workers.begin(flow, &state).await,
                Coming::GoOn(id) => workers.go_on(&id, &state).await,
            }
        };
        let messages = self.messages.clone();
        tokio::spawn(async move {
            let (viewer, mut events) = match caught(coming).await {
                Ok(attached) => attached,
                Err(error) => {
                    let _ = messages.send(Message::Attached(Err(error)));
                    return;
                }
            };
            let id = viewer.id.clone();
            let _ = messages.send(Message::Attached(Ok(Box::new(viewer))));
            while let Some(event) = events.recv().await {
                let _ = messages.send(Message::Told(id.clone(), event));
            }
            let _ = messages.send(Message::Silent(id));
        });
    }

    fn wait(&mut self, reports: watch::Receiver<Report>) {
        let detached = self.recovery.as_ref().is_some_and(|recovery| recovery.detached);
        self.screen = Screen::Waiting(Waiting { reports, since: Instant::now(), cancelling: false, detached });
    }

    fn request(&self, request: Request) {
        if let Some(recovery) = &self.recovery {
            recovery.ask(request);
        }
    }

    /// Asks for something that brings another screen; it is bound to what is on this one.
    fn ask_to_move(&mut self, request: impl FnOnce(u64) -> Request) {
        if let Some(recovery) = &self.recovery {
            recovery.ask(request(recovery.seen()));
            self.asked = Asked::Other;
        }
    }

    fn back(&mut self) {
        match &self.recovery {
            Some(recovery) if !recovery.record().answers().is_empty() => {
                self.ask_to_move(|seen| Request::Back { seen });
                // What a cluster was asked can be asked again, of it or of the next one.
                if matches!(self.screen, Screen::Use(_)) {
                    self.asked = Asked::Answer;
                }
            }
            _ => self.go_home(),
        }
    }

    fn go_home(&mut self) {
        self.end();
        self.recovery = None;
        self.coming = None;
        self.answered.clear();
        self.screen = Screen::Home(home(&self.console));
    }

    /// Ends the recovery on screen: what it staged is removed.
    fn end(&mut self) {
        if let Some(recovery) = &self.recovery {
            recovery.ask(Request::End);
            self.parting.insert(recovery.id.clone());
        }
    }

    /// Shows where the recovery stands.
    fn show(&mut self) {
        let Some(recovery) = &self.recovery else { return self.go_home() };
        let reports = recovery.reports.clone();
        match recovery.stage.clone() {
            Stage::Deciding | Stage::Seconding { .. } => self.next(),
            Stage::Looking => self.wait(reports),
            Stage::Running { plan, ended } => {
                let detached = recovery.detached;
                self.screen = Screen::Running(Running { plan: *plan, reports, ended, cancelling: false, detached });
            }
            Stage::Failed { error, changed } => {
                self.screen = Screen::Failed(Failed { error, changed, details: false });
            }
            Stage::Done => {
                let id = recovery.id.clone();
                let title = if matches!(recovery.flow, Flow::Rows) { "Done, and proved" } else { "Done" };
                self.recovery = None;
                self.show_report(&id, title.into(), self.console.verdict.clone());
            }
            Stage::Settled(settled) => {
                let id = recovery.id.clone();
                self.recovery = None;
                self.show_report(&id, settled.told().into(), None);
            }
        }
    }

    /// Shows what the flow wants next.
    fn next(&mut self) {
        let Some(recovery) = &self.recovery else { return self.go_home() };
        match recovery.next() {
            Next::Ask(question) => {
                let asked = self.ask(question);
                self.screen = self.as_left(asked);
            }
            // The worker is about to look.
            Next::Look(_) => self.wait(recovery.reports.clone()),
            Next::Refuse(refusal) => self.screen = Screen::Refused(Refused { refusal }),
            Next::Ready(plan) => match plan.hash() {
                Ok(hash) => self.screen = Screen::Plan(Review::new(plan, hash, recovery.stage.first_consent())),
                Err(error) => self.fail(error),
            },
        }
    }

    /// A question's screen as the operator left it, when it was answered before.
    fn as_left(&mut self, asked: Screen) -> Screen {
        let place = self.answered.iter().rposition(|left| screens::same_question(left, &asked));
        match (place.map(|place| self.answered.remove(place)), asked) {
            (Some(Screen::Rows(left)), Screen::Rows(asked)) => Screen::Rows(Box::new(left.resumed(*asked))),
            (Some(Screen::Files(left)), Screen::Files(asked)) => Screen::Files(Box::new(left.resumed(*asked))),
            (Some(Screen::Use(left)), Screen::Use(asked)) => Screen::Use(Box::new(left.resumed(*asked))),
            (Some(left), _) => left,
            (None, asked) => asked,
        }
    }

    fn ask(&self, question: Question) -> Screen {
        let now_of = self.console.now;
        let now = now_of();
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
            Answers::Use { clone, choices } => {
                Screen::Use(Box::new(Stands::new(One::new(question.title, question.why, choices), *clone)))
            }
            Answers::Moment(moments) => {
                let incident = if let Some(Incident::At(at)) = incident { Some(at) } else { None };
                Screen::Moment(Box::new(Moment::new((question.title, question.why), *moments, incident, now_of)))
            }
            Answers::Tables(tables) => Screen::Tables(Tables::new(question.title, question.why, tables)),
            Answers::Key { table, columns } => Screen::Key(KeyColumns {
                title: question.title,
                why: question.why,
                table,
                columns,
                marked: std::collections::BTreeSet::new(),
                cursor: super::table::Cursor::default(),
            }),
            Answers::Rows(diffs) => {
                let back = self.recovery.as_ref().and_then(|recovery| recovery.record().back_to_moments());
                Screen::Rows(Box::new(RowsScreen::new(diffs).with_moments(back)))
            }
            Answers::Files { point } => {
                let points = self.recovery.as_ref().and_then(|recovery| recovery.record().points()).unwrap_or_default();
                Screen::Files(Box::new(Files::new(point, incident, points)))
            }
            Answers::Folder { proposed } => {
                Screen::Folder(Folder { question, proposed, input: tui_input::Input::default(), error: None })
            }
        }
    }

    /// While the points are on screen, what lies inside them is found out one by one.
    fn look_inside(&mut self) {
        let Screen::Points(points) = &self.screen else { return };
        if self.looking_inside {
            return;
        }
        let Some(point) = points.unknown() else { return };
        self.looking_inside = true;
        self.request(Request::Inside { point });
    }

    /// Lets a screen of rows or files fetch what it needs first.
    fn fetch_rows(&mut self) {
        if let Screen::Files(files) = &mut self.screen
            && let Some(command) = files.pending()
        {
            self.obey(command);
        }
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

    fn fail(&mut self, error: Error) {
        let id = match (&self.recovery, &self.coming) {
            (Some(recovery), _) => Some(&recovery.id),
            (None, Some(Coming::GoOn(id))) => Some(id),
            (None, _) => None,
        };
        let lines = id.and_then(|id| journal::read(&self.console.state.join("recoveries").join(id)).ok());
        let changed = report::changed(&lines.unwrap_or_default());
        self.screen = Screen::Failed(Failed { error, changed, details: false });
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

    /// Lets recoveries that end now clean up before the console closes.
    pub async fn leave(&mut self, messages: &mut UnboundedReceiver<Message>) {
        if self.recovery.as_ref().is_some_and(|recovery| !recovery.detached) {
            self.end();
        }
        let parted = async {
            while !self.parting.is_empty()
                && let Some(message) = messages.recv().await
            {
                if let Message::Silent(id) = message {
                    self.parting.remove(&id);
                }
            }
        };
        // A server that does not answer must not keep the terminal.
        let _ = tokio::time::timeout(Duration::from_secs(5), parted).await;
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

fn home(console: &Console) -> Home {
    let earlier = journal::list(&console.state).into_iter().take(50).map(|id| {
        let standing = Standing::of(&console.state.join("recoveries").join(&id));
        Earlier { id, standing }
    });
    // One that this console is just leaving, in this process, comes into the list when it has been left.
    let ours =
        |standing: &Standing| matches!(standing, Standing::UnderWay { process, .. } if *process == std::process::id());
    let mut earlier: Vec<_> = earlier.filter(|earlier| !ours(&earlier.standing)).collect();
    earlier.sort_by_key(|earlier| match earlier.standing {
        Standing::Left { .. } => 0,
        Standing::UnderWay { .. } => 1,
        Standing::Ended { .. } | Standing::Unreadable { .. } => 2,
    });
    // What has not come to its end comes first, also under the cursor.
    let open = |first: &Earlier| matches!(first.standing, Standing::Left { .. } | Standing::UnderWay { .. });
    let selected = usize::from(earlier.first().is_some_and(open));
    let cursor = super::table::Cursor { selected, ..Default::default() };
    Home { briefing: console.briefing.clone(), earlier, cursor }
}
