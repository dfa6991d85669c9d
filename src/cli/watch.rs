//! A console without a screen: it looks on at a worker, shows progress on stderr, answers from a script, and waits for the
//! end. Ctrl-C and SIGTERM ask the worker to stop; a terminal that hangs up changes nothing, since what was asked for does
//! not need one.

use std::path::Path;
use std::pin::pin;

use chrono::Utc;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc::UnboundedReceiver;

use super::{Signals, showing};
use crate::error::{Error, Result};
use crate::recovery::Flow;
use crate::recovery::answers::Script;
use crate::recovery::flows::Next;
use crate::recovery::plan::Plan;
use crate::recovery::record::{Fact, Record};
use crate::recovery::run::Settled;
use crate::recovery::worker::{Event, Request, Stage, Viewer, Workers};
use crate::recovery::{journal, report};

pub struct Watch {
    viewer: Viewer,
    events: UnboundedReceiver<Event>,
    signals: Signals,
}

impl Watch {
    /// Begins a recovery.
    pub async fn begin(workers: &Workers, flow: Flow, state: &Path) -> Result<Self> {
        let signals = Signals::listen()?;
        let (viewer, events) = workers.begin(flow, state).await?;
        Ok(Self { viewer, events, signals })
    }

    /// Settles a recovery whose process has ended. Returns what became of it.
    pub async fn settle(workers: &Workers, id: &str, state: &Path) -> Result<Settled> {
        let signals = Signals::listen()?;
        let (viewer, events) = workers.settle(id, state).await?;
        let mut watch = Self { viewer, events, signals };
        let outcome = watch.rest(None).await.and_then(|()| match &watch.viewer.stage {
            Stage::Settled(settled) => Ok(*settled),
            Stage::Failed { error, .. } => Err(error.clone()),
            _ => Err(Error::bug("a recovery that was to be settled goes on")),
        });
        watch.end(outcome, state).await
    }

    pub fn id(&self) -> &str {
        &self.viewer.id
    }

    pub fn flow(&self) -> &Flow {
        &self.viewer.flow
    }

    pub fn record(&self) -> &Record {
        self.viewer.record()
    }

    /// Answers from a script until there is a plan.
    pub async fn decide(&mut self, script: &Script) -> Result<Plan> {
        self.rest(None).await?;
        loop {
            if let Stage::Failed { error, .. } = &self.viewer.stage {
                return Err(error.clone());
            }
            match self.viewer.next() {
                Next::Ready(_) if self.viewer.record().except() != script.except => {
                    let fact = Fact::Except(script.except.clone());
                    self.ask(Request::Answer { fact, seen: self.viewer.seen() }).await?;
                }
                Next::Ready(plan) => return Ok(plan),
                Next::Ask(question) => {
                    let fact = script.answer(&question, self.viewer.record(), Utc::now())?;
                    self.ask(Request::Answer { fact, seen: self.viewer.seen() }).await?;
                }
                Next::Refuse(refusal) => {
                    return Err(refusal.hints.into_iter().fold(Error::refused(refusal.why), Error::hint));
                }
                Next::Look(_) => return Err(Error::bug("a worker rests and has something to look at")),
            }
        }
    }

    /// Consents to a plan and waits until it is done. Where two have to consent, it is waited for the other one.
    pub async fn consent(&mut self, plan: Plan, typed: &str) -> Result<()> {
        let shown = plan.hash()?;
        plan.confirm(typed, &shown)?;
        self.ask(Request::Consent { typed: typed.into(), shown }).await?;
        if let Stage::Seconding { until, .. } = &self.viewer.stage {
            if let Some(told) = self.viewer.stage.first_consent() {
                super::tell(&format!("{told} The recovery is {}.", self.viewer.id));
            }
            let left = (*until - Utc::now()).to_std().unwrap_or_default();
            let seen = self.viewer.seen();
            tokio::time::timeout(left, self.rest(Some(seen)))
                .await
                .unwrap_or_else(|_| Err(Error::refused("nobody else has consented in time")))?;
        }
        match &self.viewer.stage {
            Stage::Done => Ok(()),
            Stage::Failed { error, .. } => Err(error.clone()),
            _ => Err(Error::refused("another console has gone on meanwhile, and nothing was consented to")),
        }
    }

    /// Waits while somebody types; a signal ends that.
    pub async fn typed(&mut self) -> Result<String> {
        let line = tokio::task::spawn_blocking(|| {
            let mut typed = String::new();
            std::io::stdin().read_line(&mut typed).map(|_| typed)
        });
        tokio::select! {
            line = line => line
                .map_err(|error| Error::bug("the thread that reads the terminal ended").detail(error))?
                .map_err(|error| Error::operator("cannot read the terminal").detail(error)),
            () = self.signals.wish() => Err(Error::cancelled()),
        }
    }

    /// Waits until the worker has ended and its journal is free; one that has not come to its end is left, and cleans up.
    /// An error says what is changed in production now.
    pub async fn end<T>(mut self, outcome: Result<T>, state: &Path) -> Result<T> {
        let mut asked = false;
        if outcome.is_err() {
            self.viewer.ask(Request::End);
            asked = true;
        }
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => _ = self.viewer.take(event),
                    None => break,
                },
                () = self.signals.wish() => {
                    // Whoever asks twice does not want to wait for what is cleaned up.
                    if asked {
                        super::tell(&format!(
                            "{} still cleans up; lifeboat status tells when it has ended",
                            self.viewer.id
                        ));
                        break;
                    }
                    self.viewer.ask(Request::End);
                    asked = true;
                }
            }
        }
        outcome.map_err(|error| {
            // What went wrong first is told, also when the journal cannot be read any more.
            let changed = journal::read(&state.join("recoveries").join(&self.viewer.id))
                .map_or_else(|_| "its journal cannot be read".into(), |lines| report::changed(&lines));
            error.hint(format!("Changed in production by recovery {}: {changed}.", self.viewer.id))
        })
    }

    /// Asks the worker for something that changes where the recovery stands, and waits until it rests again.
    async fn ask(&mut self, request: Request) -> Result<()> {
        let seen = self.viewer.seen();
        self.viewer.ask(request);
        self.rest(Some(seen)).await
    }

    /// Waits until nothing is under way, and the record is another than the one that was `seen`.
    async fn rest(&mut self, seen: Option<u64>) -> Result<()> {
        let (viewer, events) = (&mut self.viewer, &mut self.events);
        let (reports, requests) = (viewer.reports.clone(), viewer.requests());
        let stop = |kind| {
            if kind != SignalKind::hangup() {
                let _ = requests.send(Request::End);
            }
        };
        let work = pin!(async {
            while Some(viewer.seen()) == seen || matches!(viewer.stage, Stage::Looking | Stage::Running { .. }) {
                match events.recv().await {
                    Some(event) => match viewer.take(event) {
                        Some(Event::Refused(why)) => return Err(Error::refused(why)),
                        Some(Event::Gone) => return Err(Error::cancelled()),
                        _ => {}
                    },
                    None => return Err(died(viewer)),
                }
            }
            Ok(())
        });
        showing(reports, stop, &mut self.signals, work).await
    }
}

fn died(viewer: &Viewer) -> Error {
    let message = format!("the process that held recovery {} has ended in the middle", viewer.id);
    let error =
        if matches!(viewer.stage, Stage::Running { .. }) { Error::unresolved(message) } else { Error::target(message) };
    error.hint(format!("lifeboat resume {} finds out what was committed, and cleans up.", viewer.id))
}
