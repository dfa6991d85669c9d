//! The worker: a process of its own that holds one recovery. It looks, stages, compares, and runs the plan; consoles are
//! viewers. A console may be killed, suspended, frozen or cut off at any time, and two may look on at once: the work goes on.
//!
//! ```text
//!   console --order--> worker (own session; lock on the journal)
//!      |                  |
//!      +--- Request ----> |   answers, consent, cancel, pages of rows
//!      | <---- Event -----+   the record as it grows, the stage, reports of progress
//!           worker.sock in the recovery's folder, JSON Lines
//! ```
//!
//! Invariants:
//! - The worker decides nothing by itself: it asks the flow, looks when the flow wants to look, and runs a plan only after
//!   [`Request::Consent`] with the words typed and the hash of what was shown.
//! - A viewer that does not read is never waited for. Reports are a latest value; should anything else pile up, the viewer is
//!   cut off and attaches again.
//! - An answer to a question that another viewer has answered meanwhile is refused.
//! - Only processes of the same user are let in.
//!
//! A plan that was consented to is run to its end with nobody looking on. A recovery that waits for an answer is left when it
//! has been alone for long: half a day when a console began it, some seconds when a command did, whose answers went with it.
//! What it staged is removed.

mod link;
mod place;
mod protocol;

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;

use tokio::net::UnixStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;

pub use link::Viewer;
pub use place::{Away, Workers, attend};
pub use protocol::{Change, Event, FilesAsked, FilesTold, Request, Stage, View};

use super::flows::Next;
use super::journal::{self, Entry, Line, Operator};
use super::plan::Effect;
use super::record::{Fact, Finding, Look, Record};
use super::run::{self, Settled, StepEvent};
use super::systems::{Evidence, Systems};
use super::{Flow, Recovery, report};
use crate::error::{Error, Kind, Result};
use crate::panics::caught;
use crate::progress::{Progress, Report, Unit};
use link::Seat;

/// So long the process that began a recovery may take to look on.
const COMING: Duration = Duration::from_secs(10);

/// So long a first consent waits for the second.
const SECOND: Duration = Duration::from_mins(15);

/// Where a worker begins.
enum Start {
    /// At the first question.
    Anew,
    /// Where a process has ended, by its journal.
    Again(Vec<Line>),
    /// There too, and no question is asked any more: what was not consented to is left.
    Settle(Vec<Line>),
}

/// What comes in to a worker.
enum Input {
    Arrived(UnixStream),
    Asked(usize, Request),
    Parted(usize),
    /// What a process that has ended had staged is found again.
    TakenOver(Result<()>),
    Looked(Look, Box<Result<Finding>>),
    Stepped(StepEvent),
    Ran(Box<Recovery>, Result<Vec<Evidence>>),
    Settled(Box<Recovery>, Result<Settled>),
    /// The machine goes down, or somebody aborts the recovery.
    Terminated,
}

struct Worker {
    systems: Arc<Systems>,
    id: String,
    flow: Flow,
    /// With the job while a plan runs.
    recovery: Option<Recovery>,
    /// The record while a plan runs.
    aside: Record,
    version: u64,
    stage: Stage,
    work: Option<Progress>,
    /// When the first of two consents was given; what it was given to is what the flow still has ready.
    first: Option<(Operator, Instant)>,
    /// A plan was consented to since the last failure: what it was made from has to be looked at again.
    ran: bool,
    board: watch::Sender<Report>,
    inputs: UnboundedSender<Input>,
    seats: Vec<Seat>,
    came: usize,
    detached: bool,
    ending: bool,
}

/// Holds a recovery until it has come to its end or is left. `away` is how long nobody may look on while it waits for an
/// answer; `None`: it ends with its last viewer.
async fn serve(
    recovery: Recovery,
    start: Start,
    systems: Arc<Systems>,
    (inputs, mut incoming): (UnboundedSender<Input>, UnboundedReceiver<Input>),
    away: Option<Away>,
) {
    let mut worker = Worker {
        systems,
        id: recovery.id.clone(),
        flow: recovery.flow.clone(),
        recovery: Some(recovery),
        aside: Record::default(),
        version: 0,
        stage: Stage::Deciding,
        work: None,
        first: None,
        ran: false,
        board: watch::Sender::new(Progress::default().watch().borrow().clone()),
        inputs,
        seats: Vec::new(),
        came: 0,
        detached: away.is_some(),
        ending: false,
    };
    worker.begin(start);
    loop {
        let alone = worker.seats.is_empty() && worker.work.is_none();
        let longest = if worker.is_over() { Some(COMING) } else { away.map(Away::longest) };
        let input = match longest.filter(|_| alone) {
            Some(longest) => tokio::time::timeout(longest, incoming.recv()).await.unwrap_or(Some(Input::Terminated)),
            None => incoming.recv().await,
        };
        let Some(input) = input else { break };
        worker.take(input);
        if worker.ending {
            // Also what has just begun because something else ended well.
            worker.cancel();
        }
        // Whoever began it is told how it ended.
        let over = worker.is_over() && worker.came > 0;
        if (over || worker.ending) && worker.work.is_none() {
            break;
        }
    }
    worker.end().await;
}

impl Worker {
    /// Whether there is nothing left to do.
    fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Done | Stage::Settled(_))
    }

    /// The first thing to do: ask the first question, or see to what a process that has ended left behind.
    fn begin(&mut self, start: Start) {
        let consented = |lines: &[Line]| lines.iter().any(|line| matches!(line.entry, Entry::Consented { .. }));
        match start {
            Start::Anew => self.advance(Vec::new()),
            Start::Again(lines) if !consented(&lines) && !journal::is_finished(&lines) => self.take_over(),
            Start::Again(lines) | Start::Settle(lines) => self.settle(lines),
        }
    }

    /// What was being decided goes on from there.
    fn take_over(&mut self) {
        let Some(recovery) = &mut self.recovery else { return };
        let staged = recovery.record().stage();
        if let Err(error) = recovery.decide_again() {
            return self.fail(error);
        }
        if !staged {
            return self.advance(Vec::new());
        }
        let (systems, id, progress) = (self.systems.clone(), self.id.clone(), self.work());
        progress.begin("looking what is staged", Unit::Items, None);
        self.job(async move { Input::TakenOver(caught(systems.take_over(&id, None)).await.map(|_| ())) });
        self.moved(Vec::new(), Stage::Looking);
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Arrived(stream) => self.arrived(stream),
            Input::Parted(number) => {
                self.cancel_query(number);
                self.seats.retain(|seat| seat.number != number);
                self.tell(&Event::Viewers(self.seats.len()));
                // Nobody else can come, and nobody would see the work end.
                self.ending |= !self.detached && self.seats.is_empty();
            }
            Input::Asked(number, request) => self.asked(number, request),
            Input::TakenOver(taken) => {
                self.work = None;
                match taken {
                    Ok(()) => self.advance(Vec::new()),
                    Err(error) => self.fail(error),
                }
            }
            Input::Looked(look, found) => {
                self.work = None;
                let Some(recovery) = &mut self.recovery else { return };
                let noted = (*found).and_then(|finding| {
                    recovery.found(look.clone(), finding.clone())?;
                    Ok(Change::Found(look, Box::new(finding)))
                });
                match noted {
                    Ok(change) => self.advance(vec![change]),
                    Err(error) => self.fail(error),
                }
            }
            Input::Stepped(StepEvent::Began(_)) => {}
            Input::Stepped(StepEvent::Ended(number)) => {
                if let Stage::Running { ended, .. } = &mut self.stage {
                    *ended = number + 1;
                }
                self.tell(&Event::Ended(number + 1));
            }
            Input::Ran(recovery, outcome) => {
                self.work = None;
                self.recovery = Some(*recovery);
                match outcome {
                    Ok(_) => self.moved(Vec::new(), Stage::Done),
                    Err(error) => self.fail(error),
                }
            }
            Input::Settled(recovery, outcome) => {
                self.work = None;
                self.recovery = Some(*recovery);
                match outcome {
                    Ok(settled) => self.moved(Vec::new(), Stage::Settled(settled)),
                    Err(error) => self.fail(error),
                }
            }
            Input::Terminated => self.ending = true,
        }
    }

    fn arrived(&mut self, stream: UnixStream) {
        let number = self.came;
        self.came += 1;
        let record = self.recovery.as_ref().map_or(&self.aside, Recovery::record);
        let view = View {
            recovery: self.id.clone(),
            flow: self.flow.clone(),
            record: record.clone(),
            version: self.version,
            stage: self.stage.clone(),
            report: self.board.borrow().clone(),
            viewers: self.seats.len() + 1,
            detached: self.detached,
        };
        self.seats.push(Seat::take(number, stream, view, self.board.subscribe(), self.inputs.clone()));
        self.tell(&Event::Viewers(self.seats.len()));
    }

    fn asked(&mut self, number: usize, request: Request) {
        match request {
            Request::Attach { operator } => {
                if let Some(seat) = self.seats.iter_mut().find(|seat| seat.number == number) {
                    seat.operator = Some(operator.clone());
                }
                // Whoever began it stands in the first line already.
                if let (Some(recovery), true) = (&mut self.recovery, number > 0) {
                    // Looking on is no step; when the journal cannot be written, the next step says so.
                    let _ = recovery.journal.write(Entry::Attached { operator });
                }
            }
            Request::Answer { fact, seen } => {
                let back = self.recovery.as_ref().map_or(0, |recovery| recovery.record().in_the_way(&fact));
                self.instead(number, (back, vec![fact]), seen);
            }
            Request::Back { seen } => {
                self.change(number, seen, |recovery| {
                    Ok(recovery.back()?.then_some(Change::WentBack).into_iter().collect())
                });
            }
            Request::Refresh { seen } => self.change(number, seen, refresh),
            Request::Retry { seen } => self.retry(number, seen),
            Request::Consent { typed, shown } => self.consent(number, &typed, &shown),
            Request::Cancel => {
                self.cancel();
                self.cancel_query(number);
            }
            Request::Query { sql } => self.query(number, sql),
            Request::Inside { point } => self.reply(number, |systems| async move {
                let look = Look::Contents { point: point.clone() };
                let inside = match caught(systems.look("", &look, &Progress::default())).await {
                    Ok(Finding::Contents(contents)) => Ok(contents),
                    Ok(_) => Err("something else was found".into()),
                    Err(error) => Err(error.message),
                };
                Event::Inside(point, inside)
            }),
            Request::Page { table, filter, after, limit } => self.reply(number, |systems| async move {
                let page = caught(systems.page(table, &filter, after, limit)).await;
                Event::Paged { table, filter, after, page }
            }),
            Request::Count { table, filter } => self.reply(number, |systems| async move {
                let rows = caught(systems.matches(table, &filter)).await;
                Event::Counted { table, filter, rows }
            }),
            Request::Files(asked) => self.files(number, asked),
            Request::Instead { back, facts, seen } => self.instead(number, (back, facts), seen),
            Request::End => self.ending = true,
        }
    }

    /// Whether the asker saw what is so now, and nothing is under way.
    fn is_current(&self, number: usize, seen: u64) -> bool {
        let current = seen == self.version && self.work.is_none() && self.recovery.is_some();
        if !current {
            let why = "not done: another console has gone on meanwhile, this is where it stands now";
            self.tell_one(number, &Event::Refused(why.into()));
        }
        current
    }

    fn change(&mut self, number: usize, seen: u64, change: impl FnOnce(&mut Recovery) -> Result<Vec<Change>>) {
        if !self.is_current(number, seen) {
            return;
        }
        let Some(recovery) = &mut self.recovery else { return };
        match change(recovery) {
            Ok(changes) => {
                self.ran = false;
                self.advance(changes);
            }
            Err(error) => self.fail(error),
        }
    }

    /// Exchanges the last answers. Viewers are told what was changed also when the journal fails in the middle.
    fn instead(&mut self, number: usize, (back, facts): (usize, Vec<Fact>), seen: u64) {
        if !self.is_current(number, seen) {
            return;
        }
        let Some(recovery) = &mut self.recovery else { return };
        let answers = recovery.record().answers();
        let kept = &answers[..answers.len().saturating_sub(back)];
        if facts.iter().any(|fact| kept.iter().any(|kept| kept.is_alike(fact))) {
            return self.tell_one(number, &Event::Refused("that was answered before: go back to change it".into()));
        }
        let mut changes = Vec::new();
        let outcome = (|| {
            for _ in 0..back {
                changes.extend(recovery.back()?.then_some(Change::WentBack));
            }
            for fact in facts {
                recovery.answer(fact.clone())?;
                changes.push(Change::Answered(fact));
            }
            Ok(())
        })();
        self.ran = false;
        match outcome {
            Ok(()) => self.advance(changes),
            Err(error) => self.fail_with(changes, error),
        }
    }

    /// Shows what the flow wants next; what it wants to look at is looked at.
    fn advance(&mut self, changes: Vec<Change>) {
        let Some(recovery) = &self.recovery else { return };
        let Next::Look(look) = recovery.next() else { return self.moved(changes, Stage::Deciding) };
        let (systems, id, progress) = (self.systems.clone(), self.id.clone(), self.work());
        self.moved(changes, Stage::Looking);
        self.job(async move {
            let found = caught(systems.look(&id, &look, &progress)).await;
            Input::Looked(look, Box::new(found))
        });
    }

    fn retry(&mut self, number: usize, seen: u64) {
        if !self.is_current(number, seen) {
            return;
        }
        let (Stage::Failed { error, .. }, Some(recovery)) = (&self.stage, &self.recovery) else { return };
        let unresolved = error.kind == Kind::Unresolved;
        let lines = journal::read(recovery.journal.folder()).unwrap_or_default();
        if unresolved || report::open(&lines).is_some_and(|(_, step)| step.effect() == Effect::Live) {
            // Trying again could write twice: production is asked instead.
            self.settle(lines);
        } else if self.ran {
            // Production may have moved since: what was consented to is looked at again, not forced.
            self.change(number, seen, refresh);
        } else {
            self.advance(Vec::new());
        }
    }

    fn consent(&mut self, number: usize, typed: &str, shown: &str) {
        if !self.is_current(number, self.version) {
            return;
        }
        let Some(mut recovery) = self.recovery.take() else { return };
        let confirmed = match (&self.stage, recovery.next()) {
            (Stage::Deciding | Stage::Seconding { .. }, Next::Ready(plan)) => plan.confirm(typed, shown),
            _ => Err(Error::refused("there is no plan to consent to")),
        };
        let confirmed = match confirmed {
            Ok(confirmed) => confirmed,
            Err(error) => {
                self.recovery = Some(recovery);
                return self.tell_one(number, &Event::Refused(error.message));
            }
        };
        let operator = self.seats.iter().find(|seat| seat.number == number).and_then(|seat| seat.operator.clone());
        let operator = operator.unwrap_or_else(|| recovery.operator.clone());
        let confirmed = match self.first.take().filter(|(_, at)| at.elapsed() < SECOND) {
            _ if !self.systems.requires_second_person() || confirmed.plan().effect() < Effect::Live => {
                recovery.operator = operator;
                confirmed
            }
            None => {
                self.recovery = Some(recovery);
                self.first = Some((operator.clone(), Instant::now()));
                let until = Utc::now() + SECOND;
                return self.moved(Vec::new(), Stage::Seconding { first: operator, until });
            }
            Some((first, at)) => match confirmed.seconded(&first, &operator) {
                Ok(confirmed) => {
                    recovery.operator = first;
                    confirmed
                }
                Err(error) => {
                    self.recovery = Some(recovery);
                    self.first = Some((first, at));
                    return self.tell_one(number, &Event::Refused(error.message));
                }
            },
        };
        self.ran = true;
        self.aside = recovery.record().clone();
        let (systems, progress, inputs) = (self.systems.clone(), self.work(), self.inputs.clone());
        self.moved(Vec::new(), Stage::Running { plan: Box::new(confirmed.plan().clone()), ended: 0 });
        self.job(async move {
            let on_step = move |event| _ = inputs.send(Input::Stepped(event));
            let outcome = caught(Box::pin(run::run(&confirmed, &systems, &mut recovery, &progress, on_step))).await;
            Input::Ran(Box::new(recovery), outcome)
        });
    }

    /// Finds out what became of what was consented to, and brings it to its end.
    fn settle(&mut self, lines: Vec<Line>) {
        let Some(mut recovery) = self.recovery.take() else { return };
        self.aside = recovery.record().clone();
        let (systems, progress) = (self.systems.clone(), self.work());
        progress.begin("asking production what was committed", Unit::Items, None);
        self.moved(Vec::new(), Stage::Looking);
        self.job(async move {
            let settled = caught(Box::pin(run::resume(&mut recovery, &lines, &systems, &progress))).await;
            Input::Settled(Box::new(recovery), settled)
        });
    }

    fn fail(&mut self, error: Error) {
        self.fail_with(Vec::new(), error);
    }

    fn fail_with(&mut self, made: Vec<Change>, error: Error) {
        let lines = self.recovery.as_ref().and_then(|recovery| journal::read(recovery.journal.folder()).ok());
        let changed = report::changed(&lines.unwrap_or_default());
        self.moved(made, Stage::Failed { error, changed });
    }

    fn moved(&mut self, changes: Vec<Change>, stage: Stage) {
        if !matches!(stage, Stage::Seconding { .. }) {
            self.first = None;
        }
        self.version += 1;
        self.stage = stage.clone();
        self.tell(&Event::Moved { changes, stage, version: self.version });
    }

    /// Progress for a new piece of work, whose reports go to every viewer.
    fn work(&mut self) -> Progress {
        let progress = Progress::default();
        self.work = Some(progress.clone());
        let (mut reports, board) = (progress.watch(), self.board.clone());
        tokio::spawn(async move {
            loop {
                let report = reports.borrow_and_update().clone();
                board.send_replace(report);
                tokio::time::sleep(link::REPORTS).await;
                if reports.changed().await.is_err() {
                    break;
                }
            }
        });
        progress
    }

    fn job(&self, work: impl Future<Output = Input> + Send + 'static) {
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let done = work.await;
            let _ = inputs.send(done);
        });
    }

    fn cancel(&self) {
        if let Some(work) = &self.work {
            work.cancel();
        }
    }

    /// Answers one viewer when the work for it is done.
    fn reply<F: Future<Output = Event> + Send + 'static>(&self, number: usize, work: impl FnOnce(Arc<Systems>) -> F) {
        let Some(lines) = self.seats.iter().find(|seat| seat.number == number).map(Seat::lines) else { return };
        let work = work(self.systems.clone());
        tokio::spawn(async move {
            let event = work.await;
            link::send(&lines, &event);
        });
    }

    /// Looks at files for one viewer, and tells it how far that is.
    fn files(&self, number: usize, asked: FilesAsked) {
        let Some(lines) = self.seats.iter().find(|seat| seat.number == number).map(Seat::lines) else { return };
        let (systems, progress) = (self.systems.clone(), Progress::default());
        let mut reports = progress.watch();
        tokio::spawn(async move {
            let told = {
                let mut work = Box::pin(caught(files(&systems, &asked, &progress)));
                loop {
                    tokio::select! {
                        told = &mut work => break told,
                        () = tokio::time::sleep(FILES_REPORTS) => {
                            let report = reports.borrow_and_update().clone();
                            link::send(&lines, &Event::FilesReport(asked.clone(), report));
                        }
                    }
                    // Nobody waits for it any more.
                    if lines.is_closed() {
                        progress.cancel();
                    }
                }
            };
            link::send(&lines, &Event::Files(asked, told));
        });
    }

    /// Asks the cluster that stands at a moment for one viewer; what it asked before is not waited for any more.
    fn query(&mut self, number: usize, sql: String) {
        let record = self.recovery.as_ref().map_or(&self.aside, Recovery::record);
        let database = record.findings().find_map(|finding| match finding {
            Finding::Cloned(clone) => Some(clone.database.clone()),
            _ => None,
        });
        self.cancel_query(number);
        let Some(seat) = self.seats.iter_mut().find(|seat| seat.number == number) else { return };
        let progress = Progress::default();
        seat.query = Some(progress.clone());
        let id = self.id.clone();
        self.reply(number, |systems| async move {
            let answer = match &database {
                Some(database) => caught(systems.query(&id, database.as_deref(), &sql, &progress)).await,
                None => Err(Error::refused("no cluster stands at a moment").hint("Lay one out first.")),
            };
            Event::Answered { sql, answer }
        });
    }

    fn cancel_query(&mut self, number: usize) {
        let seat = self.seats.iter_mut().find(|seat| seat.number == number);
        if let Some(query) = seat.and_then(|seat| seat.query.take()) {
            query.cancel();
        }
    }

    fn tell_one(&self, number: usize, event: &Event) {
        if let Some(seat) = self.seats.iter().find(|seat| seat.number == number) {
            link::send(&seat.lines(), event);
        }
    }

    fn tell(&self, event: &Event) {
        for seat in &self.seats {
            link::send(&seat.lines(), event);
        }
    }

    /// Leaves what has not come to its end, and lets viewers hear the last of it.
    async fn end(mut self) {
        self.seats.iter_mut().filter_map(|seat| seat.query.take()).for_each(|query| query.cancel());
        if !self.is_over() {
            if let Some(recovery) = &mut self.recovery {
                recovery.leave(&self.systems).await;
            }
            self.tell(&Event::Gone);
        }
        // The journal is free before anybody is told that the worker has ended.
        self.recovery = None;
        for seat in self.seats {
            seat.close().await;
        }
    }
}

/// So much of a file is shown at a time.
const PART: usize = 64 << 10;
/// So many rows of a folder go to a viewer; a search finds the others.
const ROWS: usize = 20_000;
/// So many changed files are named.
const CHANGED: usize = 5000;
/// A viewer that waits for files hears no more often than this how far the work is.
const FILES_REPORTS: Duration = Duration::from_millis(200);

async fn files(systems: &Systems, asked: &FilesAsked, progress: &Progress) -> Result<FilesTold> {
    Ok(match asked {
        FilesAsked::Folder { point, path } => {
            let (rows, all) = systems.folder(point, path, ROWS).await?;
            FilesTold::Folder(rows, all)
        }
        FilesAsked::Absent { point, paths } => FilesTold::Absent(systems.absent(point, paths).await?),
        FilesAsked::Beneath { point, path } => FilesTold::Beneath(systems.beneath(point, path, progress).await?),
        FilesAsked::Search { point, typed } => {
            let (hits, points) = systems.search(point.as_deref(), typed, progress).await?;
            FilesTold::Search(hits, points)
        }
        FilesAsked::Versions { path } => FilesTold::Versions(systems.versions(path, progress).await?),
        FilesAsked::Compare { path, from, to } => FilesTold::Compared(systems.compare(path, (from, to)).await?),
        FilesAsked::Changes { point, path, against } => {
            FilesTold::Changes(systems.changes(point, against, path, CHANGED, progress).await?)
        }
        FilesAsked::Inside { point, path, offset } => {
            FilesTold::Inside(systems.look_into_file(point, path, *offset, PART).await?)
        }
    })
}

fn refresh(recovery: &mut Recovery) -> Result<Vec<Change>> {
    let before = recovery.record().answers().len();
    recovery.refresh()?;
    let dropped = before - recovery.record().answers().len();
    Ok(std::iter::repeat_n(Change::WentBack, dropped).chain([Change::ForgotDiffs]).collect())
}
