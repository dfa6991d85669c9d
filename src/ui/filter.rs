//! A line in which letters are typed to narrow a list down, fuzzily.

use crossterm::event::{KeyCode, KeyEvent};
use fuzzy_matcher::FuzzyMatcher as _;
use fuzzy_matcher::skim::SkimMatcherV2;
use tui_input::Input;
use tui_input::backend::crossterm::EventHandler as _;

/// The line and what stands in it; an empty one lets every entry through.
#[derive(Debug, Default)]
pub struct FilterLine {
    input: Input,
    typing: bool,
}

impl FilterLine {
    /// Lets keys go to the line from now on.
    pub fn open(&mut self) {
        self.typing = true;
    }

    /// Whether keys go to the line.
    pub fn typing(&self) -> bool {
        self.typing
    }

    /// What was typed so far, unsanitised.
    pub fn text(&self) -> &str {
        self.input.value()
    }

    /// Forgets what was typed. Returns whether there was anything.
    pub fn clear(&mut self) -> bool {
        let had = !self.input.value().is_empty();
        self.input.reset();
        self.typing = false;
        had
    }

    /// Enter keeps the filter, Esc drops it.
    pub fn typed(&mut self, key: KeyEvent) {
        match key.code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.clear();
            }
            _ => {
                self.input.handle_event(&crossterm::event::Event::Key(key));
            }
        }
    }

    /// Indexes of the entries that match, in their own order.
    pub fn matching(&self, entries: impl Iterator<Item = String>) -> Vec<usize> {
        let matcher = SkimMatcherV2::default();
        entries
            .enumerate()
            .filter(|(_, entry)| self.text().split_whitespace().all(|word| matcher.fuzzy_match(entry, word).is_some()))
            .map(|(at, _)| at)
            .collect()
    }
}
