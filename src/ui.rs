//! The console: draws what a flow returned, hands back what the operator did, and never waits for work.
//!
//! ```text
//!   keys, events of the worker -> App (state) -> draw, only when something changed
//!                                  |
//!                                  +-> requests to the worker, which does everything that takes time
//! ```
//!
//! The terminal is given back on every way out: leaving, an error, a panic, SIGTERM and SIGHUP.

pub mod app;
pub mod filter;
pub mod keymap;
pub mod screens;
pub mod table;
pub mod theme;
mod wrap;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use crossterm::event::{Event, EventStream, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::{event, execute, terminal};
use futures_util::StreamExt as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Error, Result};
use crate::panics;
use crate::recovery::worker::Workers;
use app::App;
use screens::done::Check;

/// Checks the end of a drill against the truth.
pub type Verdict = Arc<dyn Fn() -> Result<Vec<Check>> + Send + Sync>;

/// Everything a console needs to know about where it is.
pub struct Console {
    /// Who does the work.
    pub workers: Arc<Workers>,
    /// The system's name in the configuration.
    pub system: String,
    /// `PRODUCTION`, `STAGING` or `DRILL`.
    pub environment: String,
    /// How long pre-images are kept before they are offered for removal.
    pub keep_undo: Duration,
    /// The folder beneath which recoveries are kept.
    pub state: PathBuf,
    /// The recovery to look on at from the beginning.
    pub attach: Option<String>,
    /// This machine's name, where its files are what is recovered and there is no server to be named in the header.
    pub machine: Option<String>,
    /// What the operator of a drill is told.
    pub briefing: Option<String>,
    /// Called when a plan has run to its end; `None` outside drills.
    pub verdict: Option<Verdict>,
    /// The clock, given so that a picture can be of any time.
    pub now: fn() -> DateTime<Utc>,
}

/// At most thirty frames a second for what work reports, however fast it does; a key is answered at once.
const FRAME: Duration = Duration::from_millis(33);
/// How often a running piece of work is looked at.
const TICK: Duration = Duration::from_millis(100);

/// Opens the console and returns when the operator leaves.
pub async fn run(console: Console) -> Result<()> {
    if std::env::var("TERM").is_ok_and(|term| term == "dumb") || !crossterm::tty::IsTty::is_tty(&io::stdout()) {
        return Err(Error::operator("the console needs a terminal").hint(
            "Without one, lifeboat recover --answers FILE does the same from a file; lifeboat --help lists the rest.",
        ));
    }
    let failed = |error: io::Error| Error::operator("cannot use this terminal").detail(error);
    let guard = Guard::enter().map_err(failed)?;
    let mut terminal = ratatui::Terminal::new(ratatui::backend::CrosstermBackend::new(io::stdout())).map_err(failed)?;
    let theme = theme::Theme::from_environment();
    let (mut app, mut messages) = App::new(console, theme);
    let mut keys = EventStream::new();
    let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hung_up = signal(SignalKind::hangup()).map_err(failed)?;
    let mut drawn = tokio::time::Instant::now() - FRAME;
    let (mut dirty, mut urgent) = (false, true);
    while !app.left() {
        if urgent || dirty && drawn.elapsed() >= FRAME {
            terminal.draw(|frame| app.draw(frame)).map_err(failed)?;
            drawn = tokio::time::Instant::now();
            (dirty, urgent) = (false, false);
        }
        let wake = if dirty { FRAME } else { TICK };
        let wait = dirty || app.working();
        tokio::select! {
            biased;
            Some(message) = messages.recv() => {
                app.receive(message);
                dirty = true;
            }
            event = keys.next() => match event {
                Some(Ok(Event::Key(key))) if key.kind == KeyEventKind::Press => {
                    if key.code == KeyCode::Char('z') && key.modifiers.contains(KeyModifiers::CONTROL) {
                        Guard::suspend().map_err(failed)?;
                        terminal.clear().map_err(failed)?;
                    } else {
                        app.key(key);
                    }
                    urgent = true;
                }
                Some(Ok(Event::Paste(text))) => {
                    app.paste(&text);
                    urgent = true;
                }
                Some(Ok(Event::Resize(..))) => urgent = true,
                Some(Ok(_)) => {}
                // The terminal is gone.
                Some(Err(_)) | None => break,
            },
            _ = terminated.recv() => break,
            _ = hung_up.recv() => break,
            () = tokio::time::sleep(wake), if wait => dirty = dirty || app.working(),
        }
        if let Some(text) = app.take_copied() {
            copy(&text).map_err(failed)?;
        }
    }
    app.leave(&mut messages).await;
    drop(guard);
    Ok(())
}

/// Puts text on the clipboard of the terminal, also over SSH: OSC 52.
fn copy(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    write!(out, "\x1b]52;c;{}\x07", base64(text.as_bytes()))?;
    out.flush()
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = u32::from(chunk[0]) << 16
            | u32::from(*chunk.get(1).unwrap_or(&0)) << 8
            | u32::from(*chunk.get(2).unwrap_or(&0));
        for position in 0..4 {
            let letter = LETTERS[(group >> (18 - 6 * position) & 63) as usize];
            text.push(if position > chunk.len() { '=' } else { letter.into() });
        }
    }
    text
}

/// Holds the terminal; dropping it gives the terminal back, also while a panic unwinds.
struct Guard;

impl Guard {
    fn enter() -> io::Result<Self> {
        panics::keep();
        Self::take()?;
        Ok(Self)
    }

    fn take() -> io::Result<()> {
        terminal::enable_raw_mode()?;
        execute!(io::stdout(), terminal::EnterAlternateScreen, event::EnableBracketedPaste, crossterm::cursor::Hide)
    }

    /// Ctrl-Z: gives the terminal back, stops, and takes it again when continued.
    fn suspend() -> io::Result<()> {
        restore();
        let stopped = nix::sys::signal::kill(nix::unistd::Pid::from_raw(0), nix::sys::signal::Signal::SIGTSTP);
        stopped.map_err(io::Error::from)?;
        Self::take()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        restore();
        for panic in panics::kept() {
            let _ = writeln!(io::stderr(), "lifeboat: {panic}");
        }
    }
}

fn restore() {
    let _ =
        execute!(io::stdout(), event::DisableBracketedPaste, terminal::LeaveAlternateScreen, crossterm::cursor::Show);
    let _ = terminal::disable_raw_mode();
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_as_everybody_writes_it() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(super::base64(bytes.as_bytes()), text);
        }
    }
}
