//! The contents that one path has had over all snapshots, beside the incident, and how two of them compare.

use chrono::{DateTime, Utc};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::Line;

use super::{Told, draw_wait, draw_words, minute};
use crate::files::history::Versions;
use crate::files::look::Compared;
use crate::progress::Report;
use crate::recovery::record::Incident;
use crate::text::{self, clean};
use crate::ui::screens::in_a_line;
use crate::ui::table::{self, Cell, Column, Cursor, Focus, Mark, Row, Table};
use crate::ui::theme::Theme;

/// Where a content stands to the incident.
fn place(versions: &Versions, at: usize, incident: Option<DateTime<Utc>>) -> &'static str {
    let Some(incident) = incident else { return "" };
    let mut before = versions.held.iter().filter(|(instant, _)| instant.to_utc() <= incident);
    match before.next() {
        Some((_, last)) if *last == at => LAST,
        _ if before.any(|(_, place)| *place == at) => "before",
        _ => "after",
    }
}

/// What is to be looked for first.
const LAST: &str = "LAST BEFORE IT";

/// The instant, when somebody knows it.
pub(super) fn instant(incident: Option<Incident>) -> Option<DateTime<Utc>> {
    match incident {
        Some(Incident::At(at)) => Some(at),
        Some(Incident::Unknown) | None => None,
    }
}

/// The row that the cursor begins on: the last content before the incident, else the newest.
pub(super) fn proposed(versions: &Versions, incident: Option<DateTime<Utc>>) -> usize {
    (0..versions.versions.len()).find(|at| place(versions, *at, incident) == LAST).unwrap_or(0)
}

pub(super) fn draw(
    frame: &mut Frame,
    area: Rect,
    theme: Theme,
    (path, told, report): (&str, &Told<Versions>, Option<&Report>),
    (cursor, incident): (&mut Cursor, Option<DateTime<Utc>>),
) {
    let versions = match told {
        None => return draw_wait(frame, area, "Looking into every snapshot ...", report, theme),
        Some(Err(error)) => return draw_words(frame, area, &in_a_line(error), theme),
        Some(Ok(versions)) => versions,
    };
    let mut title = text::counted(versions.versions.len() as u64, "content", "contents");
    let snapshots = |number: usize| text::counted(number as u64, "snapshot", "snapshots");
    if !versions.without.is_empty() {
        title.push_str(&format!(", not in {}", snapshots(versions.without.len())));
    }
    if !versions.damage.is_empty() {
        title.push_str(&format!(", {} CANNOT BE READ", snapshots(versions.damage.len())));
    }
    title.push_str(&format!(": {}", clean(path)));
    let columns = [
        Column::left("newest in", 9, 9, 0),
        Column::left("snapshots from", 16, 16, 1),
        Column::left("to (UTC)", 16, 16, 0),
        Column::right("size", 8, 10, 0),
        Column::left("incident", 14, 14, 0),
        Column::left("modified (UTC)", 16, 16, 2),
        Column::right("snapshots", 9, 9, 3),
    ];
    let row = |at: usize| {
        let version = &versions.versions[at];
        let place = place(versions, at, incident);
        let style = match place {
            LAST => theme.good(),
            "after" => theme.missing(),
            _ => theme.quiet(),
        };
        let cells = vec![
            Cell::from(version.last.get(..8).unwrap_or(&version.last)),
            Cell::from(minute(Some(version.first_instant.to_utc()))),
            Cell::from(minute(Some(version.last_instant.to_utc()))),
            Cell::from(text::bytes(version.size)),
            Cell::new(place, style),
            Cell::from(minute(version.modified.map(|at| at.to_utc()))),
            Cell::from(text::count(version.snapshots)),
        ];
        Row { mark: Mark::None, cells }
    };
    let table = Table {
        title: Line::styled(title, theme.quiet()),
        position: None,
        columns: &columns,
        len: versions.versions.len(),
        row: &row,
        empty: "No snapshot holds it.",
        focus: Focus::Here,
    };
    table::draw(frame, area, &table, cursor, theme);
}

/// How two contents compare, by lines.
pub(super) fn draw_compared(
    frame: &mut Frame,
    area: Rect,
    theme: Theme,
    (path, told, report): (&str, &Told<Compared>, Option<&Report>),
    scroll: &mut u16,
) {
    let compared = match told {
        None => return draw_wait(frame, area, "Comparing ...", report, theme),
        Some(Err(error)) => return draw_words(frame, area, &in_a_line(error), theme),
        Some(Ok(compared)) => compared,
    };
    let quiet = |text: String| Line::styled(text, theme.quiet());
    let (old, new) = &compared.names;
    let mut lines = vec![
        quiet(clean(path).into_owned()),
        Line::styled(format!("- {}, {}", clean(old), text::bytes(compared.sizes.0)), theme.missing()),
        Line::styled(format!("+ {}, {}", clean(new), text::bytes(compared.sizes.1)), theme.extra()),
        Line::raw(""),
    ];
    match &compared.lines {
        _ if compared.same => lines.push(Line::styled("They are the same to the last byte.", theme.good())),
        None => lines.push(Line::raw("They differ. One of them is no text, or too large to be compared by lines.")),
        Some(text) => lines.extend(text.lines().skip(2).map(|line| {
            let style = match line.as_bytes().first() {
                Some(b'-') => theme.missing(),
                Some(b'+') => theme.extra(),
                Some(b'@') => theme.quiet(),
                _ => Style::new(),
            };
            Line::styled(clean(line).into_owned(), style)
        })),
    }
    super::draw_scrolled(frame, area, lines, scroll);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_content_before_the_incident_is_the_one_that_the_newest_snapshot_before_it_holds() {
        let at = |hour: u32| format!("2026-01-15T{hour:02}:00:00Z").parse::<DateTime<Utc>>().unwrap();
        let version = crate::files::history::Version {
            last: String::new(),
            last_instant: at(1).fixed_offset(),
            first: String::new(),
            first_instant: at(1).fixed_offset(),
            snapshots: 1,
            kind: crate::files::EntryKind::File,
            size: 1,
            modified: None,
        };
        // Rubbish since eleven; before it one that had been there, and came back after another.
        let held = [(12, 0), (11, 0), (9, 1), (6, 2), (3, 1)].map(|(hour, place)| (at(hour).fixed_offset(), place));
        let versions = Versions { versions: vec![version; 3], held: held.to_vec(), ..Versions::default() };
        let places = |hour| [0, 1, 2].map(|row| place(&versions, row, Some(at(hour))));
        assert_eq!(places(10), ["after", LAST, "before"]);
        assert_eq!(places(7), ["after", "before", LAST]);
        assert_eq!(places(4), ["after", LAST, "after"]);
        assert_eq!((proposed(&versions, Some(at(7))), proposed(&versions, None)), (2, 0));
    }
}
