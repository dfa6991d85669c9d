//! What comes in besides keys: a worker that is found, what workers tell, and a worker that falls silent.

use super::{App, Asked, Coming, Message, home};
use crate::error::Error;
use crate::recovery::record::Finding;
use crate::recovery::worker::{Change, Event};
use crate::ui::screens::Screen;
use crate::ui::screens::question::One;

impl App {
    /// Takes in what came besides keys.
    pub fn receive(&mut self, message: Message) {
        match message {
            Message::Attached(Ok(viewer)) => {
                for finding in viewer.record().findings() {
                    self.note(finding);
                }
                self.recovery = Some(*viewer);
                self.looking_inside = false;
                self.show();
                // A look that is under way for long is shown at once.
                if let Screen::Waiting(waiting) = &mut self.screen {
                    waiting.since = waiting.reports.borrow().since;
                }
                self.caught_up();
            }
            Message::Attached(Err(error)) => {
                self.fail(error);
                self.caught_up();
            }
            Message::Told(id, event) => {
                if let Event::Moved { changes, .. } = &event {
                    for change in changes {
                        if let Change::Found(_, finding) = change {
                            self.note(finding);
                        }
                    }
                }
                let ours = self.recovery.as_mut().filter(|recovery| recovery.id == id);
                if let Some(event) = ours.and_then(|recovery| recovery.take(event)) {
                    self.told(event);
                }
            }
            Message::Silent(id) => self.silent(id),
            Message::Judged(verdict) => {
                if let Screen::Done(done) = &mut self.screen {
                    done.verdict = Some(verdict);
                }
            }
        }
    }

    fn told(&mut self, event: Event) {
        match event {
            Event::Moved { .. } => {
                if self.asked == Asked::Answer {
                    let blank = Screen::Choice(One::new(String::new(), String::new(), Vec::new()));
                    self.answered.push(std::mem::replace(&mut self.screen, blank));
                }
                self.show();
                self.caught_up();
            }
            Event::Ended(number) => {
                if let Screen::Running(running) = &mut self.screen {
                    running.ended = number;
                }
            }
            Event::Inside(point, found) => {
                self.looking_inside = false;
                self.inside.insert(point.clone(), found.clone());
                if let Screen::Points(points) = &mut self.screen {
                    points.contents.insert(point, found);
                }
                self.look_inside();
            }
            Event::Paged { table, filter, after, page } => {
                if let Screen::Rows(rows) = &mut self.screen {
                    match page {
                        Ok(page) => rows.page(table, &filter, after, page),
                        Err(error) => rows.failed(error),
                    }
                }
                self.fetch_rows();
            }
            Event::Counted { table, filter, rows: count } => {
                if let Screen::Rows(rows) = &mut self.screen {
                    match count {
                        Ok(count) => rows.count(table, &filter, count),
                        Err(error) => rows.failed(error),
                    }
                }
                self.fetch_rows();
            }
            Event::Answered { sql, answer } => {
                if let Screen::Use(screen) = &mut self.screen {
                    screen.told(sql, answer);
                }
            }
            Event::Files(asked, told) => {
                if let Screen::Files(files) = &mut self.screen {
                    files.told(&asked, told);
                }
                self.fetch_rows();
            }
            Event::FilesReport(asked, report) => {
                if let Screen::Files(files) = &mut self.screen {
                    files.reported(&asked, report);
                }
            }
            Event::Refused(why) => {
                // What was marked is not lost by it.
                if matches!(self.screen, Screen::Files(_)) {
                    let blank = Screen::Choice(One::new(String::new(), String::new(), Vec::new()));
                    self.answered.push(std::mem::replace(&mut self.screen, blank));
                }
                self.show();
                self.notice = Some(why);
                self.caught_up();
            }
            Event::Gone => {
                self.recovery = None;
                self.go_home();
                self.notice = Some("the recovery was ended, and what it had staged is gone".into());
                self.caught_up();
            }
            Event::Attached(_) | Event::Report(_) | Event::Viewers(_) => {}
        }
    }

    /// The screen is the one that was asked for: keys typed meanwhile are for it.
    fn caught_up(&mut self) {
        self.asked = Asked::Nothing;
        self.look_inside();
        self.fetch_rows();
        while self.asked == Asked::Nothing
            && let Some(key) = self.held.pop_front()
        {
            self.key(key);
        }
    }

    /// A worker that ends without a word was killed.
    fn silent(&mut self, id: String) {
        self.parting.remove(&id);
        if self.recovery.as_ref().is_some_and(|recovery| recovery.id == id) {
            self.recovery = None;
            self.coming = Some(Coming::GoOn(id));
            self.fail(Error::unresolved(
                "the worker of this recovery has ended, or does not let this console in any more",
            ));
            self.caught_up();
        } else {
            self.refresh_home();
        }
    }

    fn refresh_home(&mut self) {
        if let Screen::Home(shown) = &mut self.screen {
            shown.earlier = home(&self.console).earlier;
        }
    }

    fn note(&mut self, finding: &Finding) {
        if let Finding::Tables(tables) = finding {
            self.facts.server = Some(format!("{} PostgreSQL {}", tables.server.shown, tables.server.version));
            self.facts.database = Some(tables.server.database.clone());
            self.notice = tables.server.warnings.first().cloned();
        }
    }
}
