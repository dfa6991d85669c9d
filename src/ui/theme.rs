//! Styles by role. Meaning never depends on colour alone: every role has a symbol or a word beside it. The terminal's own
//! colours are used, so that light, dark and 16-colour terminals all work; `NO_COLOR` leaves bold, underline and reverse.

use ratatui::style::{Color, Modifier, Style};

/// How roles look on this terminal.
#[derive(Debug, Clone, Copy)]
pub struct Theme {
    colors: bool,
    /// Lines that a terminal without UTF-8 can draw.
    pub ascii: bool,
}

/// Signs that mean something, so that colour does not have to.
#[derive(Debug)]
pub struct Symbols {
    /// Before the selected row, where keys go to; and in a list that keys do not go to now.
    pub selected: &'static str,
    /// See `selected`.
    pub selected_elsewhere: &'static str,
    /// The end of what is being typed.
    pub caret: &'static str,
    /// Between what is in production and what would come back.
    pub becomes: &'static str,
    /// One column of a bar that compares amounts.
    pub bar: &'static str,
}

const DRAWN: Symbols = Symbols { selected: "▸", selected_elsewhere: "▹", caret: "▏", becomes: "⇒", bar: "█" };
const PLAIN: Symbols = Symbols { selected: ">", selected_elsewhere: "-", caret: "_", becomes: "=>", bar: "#" };

impl Theme {
    /// As the environment asks for: `NO_COLOR`, and the locale's character set.
    pub fn from_environment() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale =
            set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default().to_lowercase();
        Self { colors: set("NO_COLOR").is_none(), ascii: !locale.contains("utf-8") && !locale.contains("utf8") }
    }

    /// For tests and pictures: the same everywhere.
    pub fn plain() -> Self {
        Self { colors: false, ascii: false }
    }

    fn color(self, color: Color) -> Style {
        if self.colors { Style::new().fg(color) } else { Style::new() }
    }

    /// What this terminal can draw.
    pub fn symbols(self) -> &'static Symbols {
        if self.ascii { &PLAIN } else { &DRAWN }
    }

    /// What is neither stressed nor toned down.
    pub fn text(self) -> Style {
        Style::new()
    }

    /// Labels and what matters less.
    pub fn quiet(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// Headings, and what must be seen first.
    pub fn title(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// The row where keys go to.
    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// Keys, and text that is being typed.
    pub fn key(self) -> Style {
        self.color(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    /// What changes production, and the word for a production system.
    pub fn live(self) -> Style {
        self.color(Color::Magenta).add_modifier(Modifier::BOLD)
    }

    /// What is done, holds or is recommended.
    pub fn good(self) -> Style {
        self.color(Color::Blue).add_modifier(Modifier::BOLD)
    }

    /// What failed, is in doubt or needs care.
    pub fn bad(self) -> Style {
        self.color(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    /// Rows that only the backup has; their sign is `-`.
    pub fn missing(self) -> Style {
        self.color(Color::Blue)
    }

    /// Rows and values that differ; their sign is `~`.
    pub fn changed(self) -> Style {
        self.color(Color::Yellow)
    }

    /// Rows that only production has; their sign is `+`.
    pub fn extra(self) -> Style {
        self.color(Color::Cyan)
    }

    /// The word for an environment.
    pub fn environment(self, word: &str) -> Style {
        match word {
            "DRILL" => self.good().add_modifier(Modifier::REVERSED),
            "STAGING" => self.bad().add_modifier(Modifier::REVERSED),
            _ => self.live().add_modifier(Modifier::REVERSED),
        }
    }

    /// A horizontal line.
    pub fn rule(self) -> &'static str {
        if self.ascii { "-" } else { "─" }
    }

    /// What fills a bar of progress, and what is still to come.
    pub fn bar(self) -> (&'static str, &'static str) {
        if self.ascii { ("#", ".") } else { ("█", "░") }
    }
}
