//! The rows screen without a terminal: what it shows at 80x24, what it proposes, and what the keys make of it.

use std::collections::BTreeSet;

use chrono::{FixedOffset, TimeZone as _, Utc};
use crossterm::event::{KeyCode, KeyEvent};
use lifeboat::postgres::cluster::Target;
use lifeboat::postgres::diff::{Class, ColumnCount, Drift, Page, Pair, Row, TableDiff, TransactionCount};
use lifeboat::postgres::name::Name;
use lifeboat::postgres::schema::{ForeignKey, Key, KeySource, OnDelete};
use lifeboat::recovery::record::{Aim, Fact, Scope};
use lifeboat::recovery::worker::Request;
use lifeboat::ui::keymap::Action;
use lifeboat::ui::screens::Command;
use lifeboat::ui::screens::rows::RowsScreen;
use lifeboat::ui::theme::Theme;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

fn count(column: &str, rows: u64) -> ColumnCount {
    ColumnCount { column: column.into(), rows }
}

fn wrote(xid: u32, changed: u64, extra: u64, columns: &[&str]) -> TransactionCount {
    TransactionCount {
        xid,
        committed_at: Utc.with_ymd_and_hms(2026, 1, 15, 14, 0, 0).single(),
        changed,
        extra,
        columns: columns.iter().map(|column| (*column).to_owned()).collect(),
    }
}

/// An UPDATE without a WHERE that hit 5,000 rows; three of them were written again since; ordinary work around it.
fn damaged() -> TableDiff {
    let table = Name::new("public", "orders");
    let pair = |column: &str| Pair {
        column: column.into(),
        backup_type: Some("text".into()),
        live_type: Some("text".into()),
        drift: Drift::Same,
    };
    let child = ForeignKey {
        constraint: "lines_order".into(),
        child: Name::new("public", "lines"),
        child_columns: vec!["order_id".into()],
        parent: table.clone(),
        parent_columns: vec!["id".into()],
        on_delete: OnDelete::Cascade,
    };
    TableDiff {
        table,
        key: Some(Key { source: KeySource::Primary, columns: vec!["id".into()] }),
        pairs: ["id", "state", "amount", "note"].into_iter().map(pair).collect(),
        backup_rows: 50_000,
        live_rows: 49_730,
        missing: 300,
        changed: 5_040,
        extra: 30,
        same: 44_660,
        unkeyed_backup: 0,
        unkeyed_live: 0,
        by_column: vec![count("state", 5_000), count("note", 43)],
        by_transaction: vec![
            wrote(774, 4_997, 0, &["state"]),
            wrote(780, 23, 0, &["note"]),
            wrote(781, 20, 30, &["note", "state"]),
        ],
        parents: Vec::new(),
        children: vec![child],
    }
}

fn row(number: i64, class: Class, live: Option<&str>, backup: Option<&str>) -> Row {
    let cells = |value: &str| vec![Some(number.to_string()), Some(value.to_owned()), None, Some(String::new())];
    Row {
        number,
        class,
        xid: (class != Class::Missing).then_some(774),
        backup: backup.map(cells),
        live: live.map(cells),
        changed: if class == Class::Changed { vec![1] } else { Vec::new() },
    }
}

fn page(rows: Vec<Row>) -> Page {
    Page { columns: ["id", "state", "amount", "note"].map(str::to_owned).to_vec(), rows }
}

fn screen(diffs: Vec<TableDiff>) -> RowsScreen {
    RowsScreen::new(diffs).in_zone(FixedOffset::east_opt(3600).unwrap())
}

fn drawn(screen: &mut RowsScreen, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame, frame.area(), Theme::plain())).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(line).collect::<Vec<_>>().join("\n")
}

fn keys(screen: &mut RowsScreen, text: &str) {
    for letter in text.chars() {
        screen.typed(KeyEvent::from(KeyCode::Char(letter)));
    }
    screen.typed(KeyEvent::from(KeyCode::Enter));
}

#[test]
fn the_overview_tells_the_story_and_proposes_the_one_bad_transaction() {
    let mut screen = screen(vec![damaged()]);
    insta::assert_snapshot!(drawn(&mut screen, 78, 19));
    let [choice] = screen.choices().try_into().unwrap();
    assert_eq!(choice.classes, BTreeSet::from([Class::Missing, Class::Changed]));
    assert_eq!(choice.transactions, Some(vec![774]));
    assert_eq!(choice.columns, Some(vec!["state".to_owned()]), "what honest work changed stays");
}

#[test]
fn the_moment_before_a_transaction_is_a_key_away_where_base_backups_are_configured() {
    let mut without = screen(vec![damaged()]);
    assert!(!matches!(without.act(Action::MomentBefore), Some(Command::Instead { .. })));
    let said = drawn(&mut without, 100, 30);
    assert!(said.contains("base_backups") && !said.contains("M: the moment before it"), "{said}");
    let mut screen = screen(vec![damaged()]).with_moments(Some(4));
    screen.act(Action::NextPane);
    let said = drawn(&mut screen, 100, 30);
    assert!(said.contains("M: the moment before it"), "{said}");
    let Some(Command::Instead { back: 4, facts }) = screen.act(Action::MomentBefore) else {
        panic!("no other answers")
    };
    let aim = Aim { target: Target::Transaction(774), before: true, timeline: None };
    assert_eq!(facts, [Fact::Scope(Scope::Moment), Fact::Aim(aim)]);
}

#[test]
fn extra_rows_are_deleted_only_after_a_question() {
    let mut screen = screen(vec![damaged()]);
    screen.act(Action::Extra);
    assert!(drawn(&mut screen, 78, 19).contains("y chooses deleting"));
    screen.act(Action::Back);
    assert!(!screen.choices()[0].classes.contains(&Class::Extra));
    screen.act(Action::Extra);
    screen.act(Action::Confirm);
    screen.act(Action::Changed);
    assert!(screen.choices()[0].classes.contains(&Class::Extra));
}

#[test]
fn a_condition_is_checked_before_it_counts_and_a_wrong_one_comes_back_for_correction() {
    let mut screen = screen(vec![damaged()]);
    screen.act(Action::Condition);
    assert!(screen.wants_text());
    keys(&mut screen, "live.stat = 'void'");
    assert_eq!(screen.choices()[0].condition, None);
    screen
        .failed(lifeboat::error::Error::operator("this is not a condition").detail("column live.stat does not exist"));
    assert!(screen.wants_text() && drawn(&mut screen, 78, 19).contains("column live.stat does not exist"));
    screen.typed(KeyEvent::from(KeyCode::Esc));
    screen.act(Action::Condition);
    keys(&mut screen, "live.state = 'void'");
    let filter =
        lifeboat::postgres::diff::Filter { condition: Some("live.state = 'void'".into()), ..Default::default() };
    screen.count(0, &filter, 12);
    assert_eq!(screen.choices()[0].condition.as_deref(), Some("live.state = 'void'"));
}

#[test]
fn rows_are_listed_and_left_out_and_found_again_after_going_back() {
    let mut first = screen(vec![damaged()]);
    let Some(Command::Ask(Request::Page { filter, after, .. })) = first.act(Action::Enter) else {
        panic!("rows are fetched")
    };
    let rows = vec![
        row(1, Class::Changed, Some("void"), Some("paid")),
        row(2, Class::Missing, None, Some("open")),
        row(3, Class::Extra, Some("new"), None),
    ];
    first.page(0, &filter, after, page(rows));
    insta::assert_snapshot!(drawn(&mut first, 78, 12));
    first.act(Action::Mark);
    assert_eq!(first.choices()[0].except, BTreeSet::from([1]));
    let resumed = first.resumed(screen(vec![damaged()]));
    assert_eq!(resumed.choices()[0].except, BTreeSet::from([1]));
    let mut moved = damaged();
    moved.changed += 1;
    let resumed = resumed.resumed(screen(vec![moved]));
    assert_eq!(resumed.choices()[0].except, BTreeSet::new(), "rows have other numbers now");
    assert_eq!(resumed.choices()[0].transactions, Some(vec![774]));
}

#[test]
fn a_table_without_a_key_is_shown_and_never_written() {
    let mut diff = damaged();
    diff.key = None;
    let mut screen = screen(vec![diff]);
    assert!(screen.choices().is_empty());
    assert!(!matches!(screen.act(Action::Write), Some(Command::Answer(Fact::Rows(_)))));
    assert!(drawn(&mut screen, 78, 19).contains("no key"));
}

#[test]
fn any_size_is_drawn_and_any_text_is_only_text() {
    let evil = "\u{1b}[2J\u{202e}e\u{9b}31m\n\u{7}";
    let mut diff = damaged();
    diff.table = Name::new("public", format!("t{evil}"));
    diff.pairs[1].column = format!("c{evil}");
    diff.by_column[0].column = format!("c{evil}");
    let mut screen = screen(vec![diff]);
    let Some(Command::Ask(Request::Page { filter, after, .. })) = screen.act(Action::Enter) else {
        panic!("rows are fetched")
    };
    screen.page(0, &filter, after, page(vec![row(1, Class::Changed, Some(evil), Some("東京都庁"))]));
    for (width, height) in [(20, 5), (1, 1), (80, 24), (200, 50), (300, 3)] {
        let text = drawn(&mut screen, width, height);
        assert!(!text.chars().any(|letter| letter.is_control() && letter != '\n' || letter == '\u{202e}'), "{text:?}");
    }
    screen.act(Action::Enter);
    assert!(drawn(&mut screen, 80, 24).contains("changed"));
    screen.act(Action::Enter);
    drawn(&mut screen, 80, 24);
}
