//! The two ends of the socket between a worker and a console: JSON Lines, requests one way, events the other.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{self, Receiver, Sender, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Event, Input, Request, Stage, View};
use crate::error::{Error, Result};
use crate::progress::{Progress, Report};
use crate::recovery::Flow;
use crate::recovery::flows::Next;
use crate::recovery::journal::{self, Operator};
use crate::recovery::record::Record;

/// Reports reach a viewer no more often than this.
pub(super) const REPORTS: Duration = Duration::from_millis(50);

/// Events that may wait for a viewer that does not read; one that lets more pile up is cut off.
const QUEUED: usize = 1024;

/// How long a viewer may take to read the last words of a worker.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A worker's end: one viewer.
pub(super) struct Seat {
    pub(super) number: usize,
    pub(super) operator: Option<Operator>,
    /// What it asked the cluster of a moment last.
    pub(super) query: Option<Progress>,
    lines: Sender<String>,
    writing: JoinHandle<()>,
}

impl Seat {
    /// Reads and writes from now on, beginning with everything that is known.
    pub(super) fn take(
        number: usize,
        stream: UnixStream,
        view: View,
        reports: watch::Receiver<Report>,
        inputs: UnboundedSender<Input>,
    ) -> Self {
        let (reading, writing) = stream.into_split();
        let (lines, queued) = mpsc::channel(QUEUED);
        send(&lines, &Event::Attached(Box::new(view)));
        tokio::spawn(async move {
            let mut requests = BufReader::new(reading).lines();
            // What is not a request does not come from one of our consoles.
            while let Ok(Some(line)) = requests.next_line().await
                && let Ok(request) = serde_json::from_str(&line)
                && inputs.send(Input::Asked(number, request)).is_ok()
            {}
            let _ = inputs.send(Input::Parted(number));
        });
        let writing = tokio::spawn(write_all(writing, queued, reports));
        Self { number, operator: None, query: None, lines, writing }
    }

    /// Where events for this viewer go.
    pub(super) fn lines(&self) -> Sender<String> {
        self.lines.clone()
    }

    /// Returns when the viewer has been sent everything, or does not read.
    pub(super) async fn close(self) {
        drop(self.lines);
        let mut writing = self.writing;
        if tokio::time::timeout(LAST_WORDS, &mut writing).await.is_err() {
            writing.abort();
        }
    }
}

/// Queues an event for a viewer; one that is gone, or does not read, misses it.
pub(super) fn send(lines: &Sender<String>, event: &Event) {
    if let Ok(mut line) = serde_json::to_string(event) {
        line.push('\n');
        let _ = lines.try_send(line);
    }
}

async fn write_all(mut stream: OwnedWriteHalf, mut queued: Receiver<String>, mut reports: watch::Receiver<Report>) {
    loop {
        let line = tokio::select! {
            biased;
            line = queued.recv() => match line {
                Some(line) => line,
                None => break,
            },
            Ok(()) = reports.changed() => {
                let report = reports.borrow_and_update().clone();
                match serde_json::to_string(&Event::Report(report)) {
                    Ok(line) => line + "\n",
                    Err(_) => continue,
                }
            }
        };
        if stream.write_all(line.as_bytes()).await.is_err() {
            break;
        }
        // One that let so much pile up has missed something, and attaches again.
        if queued.len() + 1 >= QUEUED {
            break;
        }
    }
    let _ = stream.shutdown().await;
}

/// A console's end: what the worker knows, mirrored.
#[derive(Debug)]
pub struct Viewer {
    /// The recovery's id.
    pub id: String,
    /// Where it stands.
    pub stage: Stage,
    /// The latest state of the look or step that is under way.
    pub reports: watch::Receiver<Report>,
    /// Consoles that look on, this one among them.
    pub viewers: usize,
    /// Whether the recovery goes on without this console.
    pub detached: bool,
    /// Which flow it follows.
    pub flow: Flow,
    record: Record,
    version: u64,
    requests: UnboundedSender<Request>,
}

impl Viewer {
    /// Comes in. Events that follow are to be given to [`Viewer::take`]; when they end, the worker has ended.
    pub(super) async fn attach(stream: UnixStream) -> Result<(Self, UnboundedReceiver<Event>)> {
        let (reading, writing) = stream.into_split();
        let mut reading = BufReader::new(reading);
        let (requests, asked) = unbounded_channel();
        let _ = requests.send(Request::Attach { operator: journal::operator() });
        tokio::spawn(ask_all(writing, asked));
        let mut first = String::new();
        let read = reading.read_line(&mut first).await;
        let view = match (read, serde_json::from_str(&first)) {
            (Ok(_), Ok(Event::Attached(view))) => view,
            (Err(error), _) => return Err(silent().detail(error)),
            (Ok(_), Err(error)) => return Err(silent().detail(error)),
            (Ok(_), Ok(_)) => return Err(silent()),
        };
        let View { recovery, flow, record, version, stage, report, viewers, detached } = *view;
        let board = watch::Sender::new(report);
        let reports = board.subscribe();
        let (events, told) = unbounded_channel();
        tokio::spawn(hear_all(reading, events, board));
        Ok((Self { id: recovery, stage, reports, viewers, detached, flow, record, version, requests }, told))
    }

    /// What is known.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What comes next, by the same flow as the worker asks.
    pub fn next(&self) -> Next {
        self.flow.next(&self.record)
    }

    /// The version of the record that is on screen, for requests that depend on it.
    pub fn seen(&self) -> u64 {
        self.version
    }

    /// Asks the worker for something; it answers with events. A worker that has ended hears nothing.
    pub fn ask(&self, request: Request) {
        let _ = self.requests.send(request);
    }

    /// Where to ask from elsewhere.
    pub fn requests(&self) -> UnboundedSender<Request> {
        self.requests.clone()
    }

    /// Takes in what changed; gives back an event that is for the screen.
    pub fn take(&mut self, event: Event) -> Option<Event> {
        match event {
            Event::Moved { changes, stage, version } => {
                for change in changes {
                    change.apply(&mut self.record);
                }
                (self.stage, self.version) = (stage, version);
                Some(Event::Moved { changes: Vec::new(), stage: self.stage.clone(), version })
            }
            Event::Viewers(viewers) => {
                self.viewers = viewers;
                None
            }
            other => Some(other),
        }
    }
}

fn silent() -> Error {
    Error::target("the worker of this recovery does not answer")
        .hint("lifeboat status tells whether its process is still there.")
        .hint(
            "One that was suspended answers when it goes on. One of another version is attached to with that version.",
        )
}

async fn ask_all(mut stream: OwnedWriteHalf, mut asked: UnboundedReceiver<Request>) {
    while let Some(request) = asked.recv().await {
        let Ok(line) = serde_json::to_string(&request) else { continue };
        if stream.write_all((line + "\n").as_bytes()).await.is_err() {
            break;
        }
    }
    let _ = stream.shutdown().await;
}

async fn hear_all(reading: BufReader<OwnedReadHalf>, events: UnboundedSender<Event>, board: watch::Sender<Report>) {
    let mut lines = reading.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(Event::Report(report)) => _ = board.send_replace(report),
            Ok(event) => {
                if events.send(event).is_err() {
                    break;
                }
            }
            Err(_) => break,
        }
    }
}
