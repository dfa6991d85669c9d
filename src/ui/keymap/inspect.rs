//! The keys by which a cluster as of a moment is looked into.

use crossterm::event::KeyCode;

use super::{Action, Binding, Key, Place as P};

pub(super) const BINDINGS: &[Binding] = &[
    Binding {
        keys: &[Key::Char('s')],
        action: Action::Query,
        places: &[P::Use],
        label: "look into it (SQL)",
        help: "Type SQL and see what the cluster answers. Nothing can be changed by it.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Tab), Key::Char('s')],
        action: Action::Query,
        places: &[P::Answer],
        label: "type SQL",
        help: "Go to the line in which SQL is typed.",
    },
    Binding {
        keys: &[Key::Code(KeyCode::Enter), Key::Char('v')],
        action: Action::Enter,
        places: &[P::Answer],
        label: "whole row",
        help: "See the whole row, value by value.",
    },
    Binding {
        keys: &[Key::Char('y')],
        action: Action::Copy,
        places: &[P::Answer, P::Values],
        label: "copy",
        help: "Copy the selected row to the clipboard of your terminal (OSC 52).",
    },
];
