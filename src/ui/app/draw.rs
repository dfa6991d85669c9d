//! What is around every screen: where we are, what the keys do, and what lies over it.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph, Wrap};
use unicode_width::UnicodeWidthStr as _;

use super::{App, Leaving, Overlay, palette};
use crate::recovery::record::{Fact, Incident, Promotion, Scope, Use, Where};
use crate::text::{clean, fit};
use crate::ui::keymap::{self, Action, Place};
use crate::ui::screens::Screen;
use crate::ui::table;

/// Smaller terminals get a message instead of a screen.
const LEAST: (u16, u16) = (60, 16);

impl App {
    /// Draws everything anew: header, screen, keys, and what lies over them.
    pub fn draw(&mut self, frame: &mut Frame) {
        let area = frame.area();
        if area.width < LEAST.0 || area.height < LEAST.1 {
            let text = format!(
                "This terminal is {}x{}; Lifeboat needs {}x{}. Make it larger.",
                area.width, area.height, LEAST.0, LEAST.1
            );
            frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
            return;
        }
        let header = self.header(area.width);
        let top = u16::try_from(header.len()).unwrap_or(2);
        frame.render_widget(Paragraph::new(header), Rect { height: top, ..area });
        let body = Rect { x: area.x + 1, y: area.y + top, width: area.width - 2, height: area.height - top - 2 };
        self.screen.draw(frame, body, self.theme);
        let foot = Rect { y: area.bottom() - 2, height: 2, ..area };
        frame.render_widget(Paragraph::new(self.footer(area.width)), foot);
        self.draw_overlay(frame, body);
    }

    fn header(&self, width: u16) -> Vec<Line<'static>> {
        let quiet = self.theme.quiet();
        let mut first = vec![
            Span::styled(" LIFEBOAT ", self.theme.title()),
            Span::styled(format!(" {} ", self.console.environment), self.theme.environment(&self.console.environment)),
            Span::raw(format!(" {}", clean(&self.console.system))),
        ];
        if let Some(database) = &self.facts.database {
            first.push(Span::raw(format!("  {}", clean(database))));
        }
        if let Some(server) = &self.facts.server {
            first.push(Span::styled(format!(" on {}", clean(server)), quiet));
        } else if let Some(machine) = self.machine() {
            first.push(Span::styled(format!("  files of {}", clean(machine)), quiet));
        }
        let mut second = Vec::new();
        if let Some(recovery) = &self.recovery {
            second.push(format!("recovery {}", recovery.id));
            if let Some(Incident::At(instant)) = recovery.record().incident() {
                let local = instant.with_timezone(&chrono::Local);
                second.push(format!(
                    "incident {} ({} UTC)",
                    local.format("%Y-%m-%d %H:%M:%S %:z"),
                    instant.format("%H:%M:%S")
                ));
            }
            second.extend(recovery.record().answers().iter().filter_map(crumb));
        }
        let second = fit(&clean(&second.join(" > ")), usize::from(width.saturating_sub(2))).into_owned();
        vec![
            Line::from(table::fit(&first, usize::from(width))),
            Line::styled(format!(" {second}"), quiet),
            self.rule(width),
        ]
    }

    /// The machine whose files are recovered: there is no server to be asked for its name.
    fn machine(&self) -> Option<&str> {
        let files = self.recovery.as_ref().is_some_and(|recovery| recovery.record().scope() == Some(Scope::Files));
        self.console.machine.as_deref().or(files.then_some(&self.facts.machine))
    }

    /// Beneath the header: what an operator on a bad line wants to know at any time.
    fn rule(&self, width: u16) -> Line<'static> {
        let rule = |length: usize| Span::styled(self.theme.rule().repeat(length), self.theme.quiet());
        let told = match &self.recovery {
            Some(recovery) if recovery.detached && recovery.viewers > 1 => {
                format!(" {} consoles look on, safe to disconnect ", recovery.viewers)
            }
            Some(recovery) if recovery.detached => " safe to disconnect ".to_owned(),
            _ => return Line::from(rule(usize::from(width))),
        };
        let left = usize::from(width).saturating_sub(told.width() + 2);
        Line::from(vec![rule(left), Span::styled(told, self.theme.good()), rule(2)])
    }

    fn footer(&self, width: u16) -> Vec<Line<'static>> {
        let rule = Line::styled(self.theme.rule().repeat(usize::from(width)), self.theme.quiet());
        if let Some(notice) = &self.notice {
            let text = format!(" {}", fit(&clean(notice), usize::from(width.saturating_sub(2))));
            return vec![rule, Line::styled(text, self.theme.bad())];
        }
        let place = if self.screen.wants_text() { Place::Typing } else { self.screen.place() };
        let mut spans = vec![Span::raw(" ")];
        if place == Place::Typing {
            let shown: &[_] = match self.screen.place() {
                Place::Query => &[("Enter", "ask"), ("Up", "other queries"), ("Tab", "rows"), ("Esc", "back")],
                Place::Asking => &[("Esc", "cancel")],
                _ => &[("Enter", "go on"), ("Esc", "back")],
            };
            for (key, label) in shown {
                spans.push(Span::styled(*key, self.theme.key()));
                spans.push(Span::raw(format!(" {label}   ")));
            }
        }
        // Help always fits, so that a narrow terminal hides no key for good.
        let shown = keymap::bindings(place).filter(|binding| !binding.label.is_empty());
        let (help, others): (Vec<_>, Vec<_>) = shown.partition(|binding| binding.action == Action::Help);
        let wide = |binding: &keymap::Binding| binding.key().width() + binding.label.width() + 4;
        let mut room = usize::from(width).saturating_sub(2 + help.iter().copied().map(wide).sum::<usize>());
        let fitting = others.into_iter().take_while(|binding| {
            let fits = wide(binding) <= room;
            room = room.saturating_sub(wide(binding));
            fits
        });
        for binding in fitting.collect::<Vec<_>>().into_iter().chain(help) {
            spans.push(Span::styled(binding.key(), self.theme.key()));
            spans.push(Span::raw(format!(" {}   ", binding.label)));
        }
        vec![rule, Line::from(spans)]
    }

    fn draw_overlay(&mut self, frame: &mut Frame, body: Rect) {
        let place = self.screen.place();
        let (title, lines, scroll) = match &mut self.overlay {
            None => return,
            Some(Overlay::Help { scroll }) => {
                let lines: Vec<Line> = keymap::bindings(place)
                    .map(|binding| {
                        let keys: Vec<_> = binding.keys.iter().map(ToString::to_string).collect();
                        Line::from(vec![
                            Span::styled(format!("{:<18}", keys.join(", ")), self.theme.key()),
                            Span::raw(binding.help),
                        ])
                    })
                    .collect();
                ("Keys of this screen (any key closes, j and k scroll)", lines, *scroll)
            }
            Some(Overlay::Palette { filter, selected }) => {
                let mut lines = vec![Line::styled(format!(": {}", clean(filter.text())), self.theme.key())];
                for (at, (_, help)) in palette(place, filter).into_iter().enumerate() {
                    let line = Line::raw(format!("{} {help}", if at == *selected { ">" } else { " " }));
                    lines.push(if at == *selected { line.style(self.theme.selected()) } else { line });
                }
                ("What do you want to do? (Enter does it, Esc closes)", lines, 0)
            }
            Some(Overlay::Leaving(leaving)) => ("Leave?", told_of_leaving(*leaving, &self.screen), 0),
        };
        let mut page = vec![Line::styled(title.to_owned(), self.theme.title()), Line::raw("")];
        page.extend(lines);
        let page = Paragraph::new(page).wrap(Wrap { trim: false }).scroll((scroll, 0));
        let area = Rect {
            x: body.x + 1,
            y: body.y + 1,
            width: body.width.saturating_sub(2),
            height: body.height.saturating_sub(2),
        };
        frame.render_widget(Clear, area);
        let block = ratatui::widgets::Block::bordered().border_style(self.theme.key());
        frame.render_widget(page.block(if self.theme.ascii { ratatui::widgets::Block::new() } else { block }), area);
    }
}

fn told_of_leaving(leaving: Leaving, screen: &Screen) -> Vec<Line<'static>> {
    let lines: &[&str] = match (leaving, screen) {
        (Leaving::Stays, Screen::Running(_)) => &[
            "The plan goes on without this console, to its end. lifeboat attach brings you back to it.",
            "",
            "y leaves. e stops it: what is not committed is rolled back, what was staged is removed. Any other key stays.",
        ],
        (Leaving::Stays, _) => &[
            "The recovery stays as it is, with what was staged. lifeboat attach, or the first screen, brings you back to it.",
            "",
            "y leaves. e ends it: what was staged is removed, production is not changed. Any other key stays.",
        ],
        (Leaving::Ends, Screen::Running(_)) => &[
            "A plan is running. Leaving asks it to stop: what is not committed is rolled back.",
            "",
            "y leaves, any other key stays.",
        ],
        (Leaving::Ends, _) => &[
            "What is under way is cancelled, and what was staged and compared is removed. Production is not changed by that.",
            "",
            "y leaves, any other key stays.",
        ],
    };
    lines.iter().map(|line| Line::raw(*line)).collect()
}

/// An answer as a step of the breadcrumb.
fn crumb(fact: &Fact) -> Option<String> {
    match fact {
        Fact::Incident(_)
        | Fact::Stage
        | Fact::Triggers(_)
        | Fact::Folder(_)
        | Fact::Policy(_)
        | Fact::Own(_)
        | Fact::Safety(_)
        | Fact::LayOut(_)
        | Fact::LeaveWrites => None,
        Fact::Aim(aim) => Some(aim.told()),
        Fact::Use(Use::Tables) => Some("tables of it".into()),
        Fact::Use(Use::Whole) => Some("all of it".into()),
        Fact::Use(Use::Keep) => Some("kept".into()),
        Fact::Restore => Some("restored beside".into()),
        Fact::Promotion(Promotion::Exchange) => Some("exchange".into()),
        Fact::Promotion(Promotion::Keep) => Some("keep".into()),
        Fact::Except(paths) => Some(format!("without {}", paths.len())),
        Fact::Files(paths) => match paths.as_slice() {
            [one] => one.rsplit('/').next().map(str::to_owned),
            several => Some(format!("{} paths", several.len())),
        },
        Fact::Where(Where::Beside) => Some("beside".into()),
        Fact::Where(Where::InPlace) => Some("in place".into()),
        Fact::Point(point) => Some(point.get(..8).unwrap_or(point).to_owned()),
        Fact::Scope(scope) => Some(format!("{scope:?}").to_lowercase()),
        Fact::Dump(path) => path.rsplit('/').next().map(str::to_owned),
        Fact::Tables(tables) => Some(tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        Fact::Keys(_) => Some("key named".into()),
        Fact::Rows(_) => Some("rows chosen".into()),
    }
}
