//! Answers every question of every flow every way, and prints the whole decision tree, so that the product's judgement can
//! be reviewed without reading Rust. A changed judgement is a visible change of `snapshots/`.

use std::collections::HashSet;
use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use lifeboat::backup::EntryKind;
use lifeboat::backup::wal::Lsn;
use lifeboat::files::beside::Measure;
use lifeboat::files::choice::{self as files, Action, Destination, Item, Stranger};
use lifeboat::files::live::Present;
use lifeboat::files::put::Placed;
use lifeboat::files::write::Own;
use lifeboat::postgres::archive::{self, Estimate, Format, Header};
use lifeboat::postgres::cluster::Reachable;
use lifeboat::postgres::database::{Asked, Checked, Counted, Exchange, Needs, Production, Restored, Standing};
use lifeboat::postgres::diff::{Class, Drift, Pair, TableDiff};
use lifeboat::postgres::merge::{
    ChangeSet, Choice, Load, Recreated, Recreation, TableChange, TableUndo, Triggers, Undo, Violation,
};
use lifeboat::postgres::name::Name;
use lifeboat::postgres::schema::{self, Key, KeySource, Kind, Live, Trigger};
use lifeboat::postgres::stage::{Leftover, LeftoverKind, Mark};
use lifeboat::postgres::waldump::Suspect;
use lifeboat::recovery::Flow;
use lifeboat::recovery::flows::{self, Answers, Next, Place};
use lifeboat::recovery::plan::{Effect, Plan};
use lifeboat::recovery::record::{
    Aim, Contents, Dump, Fact, Finding, Gathered, Incident, Look, Moments, NamedKey, Point, Record, Scope, ServerFacts,
    TableState, Tables,
};

const DEEPEST: usize = 32;

fn instant(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn point(id: &str, at: &str) -> Point {
    Point {
        id: id.repeat(8),
        repository: "/srv/restic".into(),
        instant: instant(at).into(),
        host: "db-server".into(),
        paths: vec!["/backup".into()],
        tags: vec!["postgresql".into()],
    }
}

fn dump(path: &str, damage: Option<&str>) -> Dump {
    Dump {
        path: path.into(),
        size_bytes: 5_000_000,
        header: Header {
            format: Format::Custom,
            version: Some((1, 14, 0)),
            compression: archive::Compression::Gzip,
            created_local: None,
            database: Some("programme_db".into()),
            server_version: Some("15.18".into()),
            dump_version: Some("15.18".into()),
            encoding: Some("UTF8".into()),
        },
        tables: damage.is_none().then_some(8),
        damage: damage.map(Into::into),
    }
}

/// What a table is like in production.
#[derive(Clone, Copy, PartialEq)]
enum Like {
    Sound,
    NoKey,
    Dropped,
    HiddenRows,
    Inserts,
    OnlySchema,
    Triggered,
}

fn table(name: &str, kind: Like) -> TableState {
    let name = Name::new("public", name);
    let column = archive::Column { name: "id".into(), type_sql: "bigint".into(), not_null: true, generated: false };
    let live = Live {
        name: name.clone(),
        oid: 1,
        kind: Kind::Table,
        columns: vec![schema::Column {
            name: "id".into(),
            type_sql: "bigint".into(),
            not_null: true,
            generated: false,
            identity: schema::Identity::None,
            default_sql: None,
        }],
        keys: if kind == Like::NoKey {
            vec![]
        } else {
            vec![Key { source: KeySource::Primary, columns: vec!["id".into()] }]
        },
        parents: vec![],
        children: vec![],
        triggers: if kind == Like::Triggered { vec![trigger()] } else { vec![] },
        sequences: vec![],
        rows_estimate: Some(1000),
        size_bytes: 100_000,
        row_security: kind == Like::HiddenRows,
        privileges: vec![],
        owned: true,
    };
    TableState {
        backup: archive::Table::fixture(name, vec![column], kind != Like::OnlySchema, kind == Like::Inserts),
        backup_rows: Some(Estimate { rows: 1000, exact: true }),
        live: (kind != Like::Dropped).then_some(live),
        pairs: vec![Pair {
            column: "id".into(),
            backup_type: Some("bigint".into()),
            live_type: Some("bigint".into()),
            drift: Drift::Same,
        }],
    }
}

fn trigger() -> Trigger {
    Trigger {
        name: "touch".into(),
        table: Name::new("public", "orders"),
        always: false,
        before: true,
        per_row: true,
        on_insert: false,
        on_update: true,
        on_delete: false,
        function: Name::new("public", "touch_updated_at"),
        owner: "app".into(),
        definition: "CREATE TRIGGER touch ...".into(),
    }
}

fn diff(table: &Name, missing: u64, changed: u64, key: bool) -> TableDiff {
    TableDiff {
        table: table.clone(),
        key: key.then(|| Key { source: KeySource::Primary, columns: vec!["id".into()] }),
        pairs: vec![],
        backup_rows: 1000,
        live_rows: 1000 - missing,
        missing,
        changed,
        extra: 0,
        same: 1000 - missing - changed,
        unkeyed_backup: 0,
        unkeyed_live: 0,
        by_column: vec![],
        by_transaction: vec![],
        parents: vec![],
        children: vec![],
    }
}

fn changes(rows: &[Choice], triggers: Triggers, violation: bool) -> ChangeSet {
    let tables = rows.iter().map(|choice| TableChange {
        table: choice.table.clone(),
        inserts: if choice.classes.contains(&Class::Missing) { 300 } else { 0 },
        updates: if choice.classes.contains(&Class::Changed) { 50 } else { 0 },
        deletes: 0,
        columns: vec![],
        statements: vec!["INSERT ...".into()],
        triggers: vec![],
        sequences: vec![],
        cascades: vec![],
        violations: if violation {
            vec![Violation {
                constraint: "orders_customer_fkey".into(),
                what: "customer refers to a row that does not exist".into(),
                rows: 3,
                sample: vec!["17".into()],
            }]
        } else {
            vec![]
        },
    });
    ChangeSet {
        tables: tables.collect(),
        triggers,
        load: Load { wal_bytes: 4_000_000, followers: vec![] },
        hash: "h".into(),
    }
}

fn leftovers() -> Vec<(&'static str, Finding)> {
    let leftover = |id: &str, kind, age_seconds, in_use| Leftover {
        schema: match kind {
            LeftoverKind::Staging => format!("restore_staging_{id}"),
            LeftoverKind::Undo => format!("lifeboat_undo_{id}"),
            LeftoverKind::RestoredDatabase => format!("lifeboat_restore_{id}"),
            LeftoverKind::EarlierDatabase => format!("lifeboat_before_{id}"),
        },
        kind,
        mark: Some(Mark {
            lifeboat: id.into(),
            created: String::new(),
            by: "app".into(),
            host: "jump1".into(),
            database: None,
        }),
        bytes: 1 << 20,
        age_seconds: Some(age_seconds),
        in_use,
    };
    let kept = vec![
        leftover("running", LeftoverKind::Staging, 60, true),
        leftover("resumable", LeftoverKind::Staging, 60, false),
        leftover("recent", LeftoverKind::Undo, 60, false),
        leftover("exchanged", LeftoverKind::EarlierDatabase, 60, false),
        Leftover { mark: None, ..leftover("somebodys", LeftoverKind::Staging, 60, false) },
    ];
    let mut some = kept.clone();
    some.push(leftover("killed", LeftoverKind::Staging, 60, false));
    some.push(leftover("old", LeftoverKind::Undo, 1_000_000, false));
    some.push(leftover("beside", LeftoverKind::RestoredDatabase, 60, false));
    vec![
        ("nothing", Finding::Leftovers(vec![])),
        ("only what is needed", Finding::Leftovers(kept)),
        ("one of a killed recovery, and old pre-images", Finding::Leftovers(some)),
    ]
}

/// Every finding that makes a difference, with a name for the tree.
fn findings(look: &Look) -> Vec<(&'static str, Finding)> {
    let server = |refusal: Option<&str>| ServerFacts {
        shown: "db-server:5432".into(),
        database: "programme_db".into(),
        version: "15.18".into(),
        system_identifier: "7".into(),
        refusal: refusal.map(Into::into),
        warnings: vec![],
    };
    match look {
        Look::Points => vec![
            ("no point", Finding::Points(vec![])),
            (
                "three points, one made after the incident",
                Finding::Points(vec![
                    point("c", "2026-01-15T15:00:00Z"),
                    point("b", "2026-01-15T02:15:00Z"),
                    point("a", "2026-01-14T02:15:00Z"),
                ]),
            ),
        ],
        Look::Contents { .. } => {
            let contents = |dumps| Finding::Contents(Contents { dumps, files: 0, bytes: 0, complete: true });
            vec![
                ("files only", contents(vec![])),
                ("one dump", contents(vec![dump("/a.dump", None)])),
                ("two dumps, one damaged", contents(vec![dump("/a.dump", None), dump("/b.dump", Some("cut short"))])),
            ]
        }
        Look::Tables { .. } => {
            let tables = |refusal, tables| Finding::Tables(Tables { server: server(refusal), tables });
            vec![
                ("a standby", tables(Some("the server is a standby"), vec![])),
                (
                    "tables of every kind",
                    tables(
                        None,
                        vec![
                            table("sound", Like::Sound),
                            table("no_key", Like::NoKey),
                            table("dropped", Like::Dropped),
                            table("hidden_rows", Like::HiddenRows),
                            table("inserts", Like::Inserts),
                            table("only_schema", Like::OnlySchema),
                            table("triggered", Like::Triggered),
                        ],
                    ),
                ),
            ]
        }
        Look::Diff { tables, keys, .. } => {
            let keyed = keys.iter().all(|key| !key.columns.is_empty());
            let diffs = |missing, changed| {
                Finding::Diff(tables.iter().map(|name| diff(name, missing, changed, keyed)).collect())
            };
            vec![("nothing differs", diffs(0, 0)), ("300 missing, 50 changed", diffs(300, 50))]
        }
        Look::Freeze { rows, triggers } => vec![
            ("a foreign key would fail", Finding::Frozen(changes(rows, *triggers, true))),
            ("all would fit", Finding::Frozen(changes(rows, *triggers, false))),
        ],
        Look::Gather { .. } | Look::Choose { .. } | Look::Placed { .. } => findings_of_files(look),
        Look::Needs { .. } | Look::RestoreDatabase { .. } | Look::Standing { .. } | Look::WayBack { .. } => {
            findings_of_databases(look)
        }
        Look::Undo { .. } => {
            let undo = |rows, kept| {
                Finding::Undo(Undo {
                    hash: "h".into(),
                    tables: vec![TableUndo {
                        table: Name::new("public", "sound"),
                        remove: rows,
                        set_back: 0,
                        bring_back: 0,
                        kept,
                        kept_sample: vec![],
                        statements: vec!["DELETE ...".into()],
                    }],
                })
            };
            vec![("every row changed since", undo(0, 300)), ("two rows changed since", undo(298, 2))]
        }
        Look::Leftovers => leftovers(),
        Look::Moments { .. } | Look::Reach { .. } | Look::LayOut { .. } | Look::Recreate { .. } => {
            findings_of_moments(look)
        }
    }
}

fn findings_of_moments(look: &Look) -> Vec<(&'static str, Finding)> {
    let window = |refusal: Option<(String, String)>| Reachable {
        base: "/backup/base/nightly".into(),
        label: "nightly".into(),
        major: 15,
        system: "7".into(),
        timeline: 1,
        from: Lsn(0x200_0100),
        to: Lsn(0x500_0000),
        earliest: Some(instant("2026-01-15T02:15:00Z")),
        latest: Some(instant("2026-01-15T15:00:00Z")),
        gaps: vec![],
        refusal,
    };
    match look {
        Look::Moments { .. } => {
            let refusal = Some(("the WAL does not lead past its end".to_owned(), "Find segment 3.".to_owned()));
            let none = Moments { windows: vec![window(refusal)], suspects: vec![], searched: None, notes: vec![] };
            let suspect = Suspect {
                xid: 774,
                at: instant("2026-01-15T14:00:03Z"),
                lsn: Lsn(0x400_4E98),
                inserted: 0,
                updated: 0,
                deleted: 30_000,
                dropped: 0,
                tables: vec![("public.distributions".into(), 30_000)],
            };
            let searched = Some((instant("2026-01-15T02:15:00Z"), instant("2026-01-15T15:00:00Z")));
            let found = Moments { windows: vec![window(None)], suspects: vec![suspect], searched, ..none.clone() };
            vec![
                ("WAL is missing", Finding::Moments(none)),
                ("one transaction deleted 30,000 rows", Finding::Moments(found)),
            ]
        }
        Look::Reach { .. } => {
            let reached = serde_json::json!({
                "base": "/backup/base/nightly", "started": "2026-01-15 02:15:00 UTC", "timeline": 1,
                "stop": { "target": { "Transaction": 774 }, "before": true }, "before": "2026-01-15T13:59:59Z",
                "after": "2026-01-15T14:00:03Z", "bytes": 5_000_000, "segments": 3, "folder": "/srv/lifeboat-clone-x",
                "free": 9_000_000_000_u64, "same_system": true,
                "earlier": { "xid": 773, "at": "2026-01-15T13:59:59Z", "lsn": "0/4004000" },
                "later": { "xid": 774, "at": "2026-01-15T14:00:03Z", "lsn": "0/4004E98" },
            });
            vec![
                (
                    "it lies in the future of the WAL",
                    Finding::Reached(Err((
                        "it cannot be reached".into(),
                        vec!["The nearest before it: 15:00.".into()],
                    ))),
                ),
                ("it can be reached", Finding::Reached(Ok(serde_json::from_value(reached).unwrap()))),
            ]
        }
        Look::LayOut { .. } => {
            let clone = |database: Option<&str>| {
                let clone = serde_json::json!({
                    "folder": "/srv/lifeboat-clone-x", "stop": "just before transaction 774", "set_aside": ["archive_mode"],
                    "proof": { "log": "recovery stopping before commit of transaction 774", "replay_lsn": "0/4004E98",
                        "last_transaction": "2026-01-15T13:59:59Z", "paused": true, "system": 7 },
                    "conninfo": "host=/srv/lifeboat-clone-x port=5432 user=postgres", "database": database, "tables": 8,
                    "asked": [{ "query": "SELECT count(*) FROM orders", "at_least": 100, "found": { "Ok": 120 } }],
                });
                Finding::Cloned(serde_json::from_value(clone).unwrap())
            };
            vec![("it has no database of that name", clone(None)), ("it stands there", clone(Some("programme_db")))]
        }
        Look::Recreate { .. } => {
            let refusal = Some(("public.dropped is in production by now".to_owned(), "Compare its rows.".to_owned()));
            vec![
                ("it came back", Finding::Recreate(Recreation { refusal, ..recreation() })),
                ("it can be made again", Finding::Recreate(recreation())),
            ]
        }
        _ => vec![],
    }
}

fn recreation() -> Recreation {
    let table = Recreated { name: Name::new("public", "dropped"), rows: 1000, columns: Some("id".into()) };
    Recreation {
        folder: "/srv/lifeboat-clone-x".into(),
        database: "programme_db".into(),
        tables: vec![table],
        views: vec![],
        foreign_keys: vec![],
        before: vec!["CREATE TABLE public.dropped (id bigint)".into()],
        after: vec![],
        lenient: vec![],
        notes: vec![],
        refusal: None,
        hash: "h".into(),
    }
}

fn restored() -> Restored {
    Restored {
        database: "lifeboat_restore_20260115_143205_a1b2".into(),
        oid: 17,
        loaded: vec![Counted { table: Name::new("public", "orders"), rows: 1000, bytes: 100_000 }],
        notes: vec![],
        took_ms: 11_000,
        written_before: Some(5),
    }
}

fn production() -> Production {
    Production { oid: 16, bytes: 1 << 30, owner: "app".into(), visitors: vec![], slots: vec![] }
}

fn findings_of_databases(look: &Look) -> Vec<(&'static str, Finding)> {
    let needs = Needs {
        database: "programme_db".into(),
        server: "db-server:5432".into(),
        production: Some(production()),
        counted: restored().loaded,
        program: "pg_restore 15.18".into(),
        missing_roles: vec![],
        missing_tablespaces: vec![],
        free: None,
        refusal: None,
    };
    let standing = |production: Option<Production>, written| {
        Finding::Standing(Standing { production, written, carried: vec![], comment: None })
    };
    match look {
        Look::Needs { .. } => {
            let refusal = Some(("the server lacks extensions".to_owned(), "Install them.".to_owned()));
            vec![
                ("an extension is missing", Finding::Needs(Needs { refusal, ..needs.clone() })),
                ("an owner is missing", Finding::Needs(Needs { missing_roles: vec!["app".into()], ..needs })),
            ]
        }
        Look::RestoreDatabase { .. } => {
            let checked = |found| Checked {
                asked: vec![Asked { query: "SELECT count(*) FROM orders".into(), at_least: 900, found: Ok(found) }],
                ..Checked::default()
            };
            vec![
                ("a check of the configuration fails", Finding::RestoredDatabase(Box::new(restored()), checked(800))),
                ("all checks hold", Finding::RestoredDatabase(Box::new(restored()), checked(1000))),
            ]
        }
        Look::Standing { .. } => vec![
            ("production is gone", standing(None, None)),
            ("nothing was written meanwhile", standing(Some(production()), Some(0))),
            ("40 rows were written meanwhile", standing(Some(production()), Some(40))),
            ("nobody knows what was written", standing(Some(production()), None)),
        ],
        Look::WayBack { .. } => vec![
            ("the earlier one was dropped", Finding::WayBack(Err("lifeboat_before_x is not there any more".into()))),
            ("it is there", Finding::WayBack(Ok(3))),
        ],
        _ => vec![],
    }
}

fn findings_of_files(look: &Look) -> Vec<(&'static str, Finding)> {
    match look {
        Look::Gather { .. } => vec![
            ("files of another machine", Finding::Gathered(gathered("another", vec![]))),
            (
                "a user who may not give files away",
                Finding::Gathered(Gathered { privileged: false, ..gathered("db-server", vec![]) }),
            ),
            (
                "owners who are others here",
                Finding::Gathered(gathered(
                    "db-server",
                    vec![Stranger { uid: 1004, was: "alice".into(), is: "bob".into() }],
                )),
            ),
        ],
        Look::Choose { destination, own, .. } => match destination {
            Destination::Beside(_) => vec![("there is room", Finding::Chosen(chosen(destination, *own, vec![])))],
            Destination::InPlace => vec![
                ("all is there", Finding::Chosen(chosen(destination, *own, vec![]))),
                ("one is gone", Finding::Chosen(chosen(destination, *own, vec![item("/srv/a.pdf")]))),
                (
                    "two are gone",
                    Finding::Chosen(chosen(destination, *own, vec![item("/srv/a.pdf"), item("/srv/b.pdf")])),
                ),
            ],
        },
        Look::Placed { placed, .. } => vec![
            (
                "all changed since",
                Finding::Placed(vec![], vec![("/srv/a.pdf".into(), "somebody has changed it since".into())]),
            ),
            ("as it was put", Finding::Placed(placed.clone(), vec![])),
        ],
        _ => vec![],
    }
}

fn gathered(host: &str, strangers: Vec<Stranger>) -> Gathered {
    Gathered {
        measure: Measure { files: 2, folders: 1, others: 1, bytes: 3_000_000, complete: true, ..Measure::default() },
        strangers,
        host: host.into(),
        folder: "/root/restored-bbbbbbbb".into(),
        privileged: true,
    }
}

fn item(path: &str) -> Item {
    Item {
        path: path.into(),
        action: Action::Create,
        kind: EntryKind::File,
        size: 7,
        content: "c".into(),
        present: None,
    }
}

fn chosen(destination: &Destination, own: Own, items: Vec<Item>) -> files::Choice {
    files::Choice {
        point: "b".repeat(8),
        paths: vec!["/srv".into()],
        destination: destination.clone(),
        own,
        measure: gathered("", vec![]).measure,
        same: 2 - items.len() as u64,
        items,
        left_out: [("/srv/fifo".to_owned(), "devices, pipes and sockets are not made".to_owned())].into(),
        free: 9_000_000_000,
    }
}

fn placed() -> Vec<Placed> {
    let now = Present {
        kind: EntryKind::File,
        size: 7,
        inode: 1,
        device: 1,
        links: 1,
        modified: (0, 0),
        changed: (0, 0),
        mode: 0o644,
        uid: 0,
        gid: 0,
    };
    vec![Placed {
        path: "/srv/a.pdf".into(),
        action: Action::Create,
        aside: "/srv/a.pdf.pre-20260115_143205_a1b2".into(),
        now,
        before: None,
    }]
}

fn before(xid: u32) -> Fact {
    Fact::Aim(Aim::before(xid))
}

/// Every way to answer that makes a difference.
fn facts(answers: &Answers) -> Vec<(String, Fact)> {
    match answers {
        Answers::Time => vec![
            ("14:00 on that day".into(), Fact::Incident(Incident::At(instant("2026-01-15T14:00:00Z")))),
            ("nobody knows".into(), Fact::Incident(Incident::Unknown)),
        ],
        Answers::Point(points) => points
            .iter()
            .map(|ranked| {
                let place = match ranked.place {
                    Place::Proposed { loss } => format!("PROPOSED, loses {} min", loss.as_secs() / 60),
                    Place::Before { loss } => format!("before, loses {} min", loss.as_secs() / 60),
                    Place::After => "after the incident".into(),
                    Place::NoDump => "no dump inside".into(),
                    Place::Unranked => "unranked".into(),
                };
                (format!("{} ({place})", ranked.point.short()), Fact::Point(ranked.point.id.clone()))
            })
            .collect(),
        Answers::One(choices) | Answers::Use { choices, .. } => choices
            .iter()
            .filter(|choice| choice.unavailable.is_none())
            .map(|choice| (choice.label.clone(), choice.fact.clone()))
            .collect(),
        Answers::Tables(tables) => tables
            .iter()
            .map(|table| (table.backup.name.to_string(), Fact::Tables(vec![table.backup.name.clone()])))
            .collect(),
        Answers::Key { table, .. } => vec![
            ("id".into(), Fact::Keys(vec![NamedKey { table: table.clone(), columns: vec!["id".into()] }])),
            ("none".into(), Fact::Keys(vec![NamedKey { table: table.clone(), columns: vec![] }])),
        ],
        Answers::Files { .. } => {
            vec![("nothing".into(), Fact::Files(vec![])), ("a folder".into(), Fact::Files(vec!["/srv".into()]))]
        }
        Answers::Moment(moments) => {
            moments.suspects.iter().map(|suspect| (format!("before {}", suspect.xid), before(suspect.xid))).collect()
        }
        Answers::Folder { proposed } => vec![("the proposed one".into(), Fact::Folder(proposed.clone()))],
        Answers::Rows(diffs) => {
            let choose = |classes: &[Class]| {
                Fact::Rows(
                    diffs
                        .iter()
                        .map(|diff| Choice {
                            table: diff.table.clone(),
                            classes: classes.iter().copied().collect(),
                            columns: None,
                            transactions: None,
                            condition: None,
                            only: None,
                            except: std::collections::BTreeSet::new(),
                        })
                        .collect(),
                )
            };
            vec![
                ("no row".into(), choose(&[])),
                ("missing rows".into(), choose(&[Class::Missing])),
                ("missing and changed rows".into(), choose(&[Class::Missing, Class::Changed])),
            ]
        }
    }
}

struct Walk {
    flow: Flow,
    seen: HashSet<String>,
    tree: String,
}

impl Walk {
    fn step(&mut self, record: &Record, depth: usize) {
        assert!(depth < DEEPEST, "a path does not end:\n{}", self.tree);
        let next = match &self.flow {
            Flow::Rows => flows::rows::next(record),
            Flow::Undo { recovery } => flows::undo::next(recovery, record),
            Flow::UndoFiles { recovery, placed } => flows::undo::next_files(recovery, placed, record),
            Flow::UndoDatabase { recovery, exchange } => flows::undo::next_database(recovery, exchange, record),
            Flow::UndoTables { recovery, recreation } => flows::undo::next_tables(recovery, recreation),
            Flow::Clean(keep) => flows::clean::next(keep, record),
        };
        let indent = "  ".repeat(depth);
        match &next {
            Next::Ask(question) => {
                let _ = writeln!(self.tree, "{indent}? {}", question.title);
                if let Answers::One(choices) | Answers::Use { choices, .. } = &question.answers {
                    for choice in choices {
                        let mark = if choice.recommended { " (recommended)" } else { "" };
                        if let Some(why) = &choice.unavailable {
                            let _ = writeln!(self.tree, "{indent}  x {}: {why}", choice.label);
                        } else if !mark.is_empty() {
                            let _ = writeln!(self.tree, "{indent}  * {}{mark}", choice.label);
                        }
                    }
                }
                if self.again(&next, record, &indent) {
                    return;
                }
                for (label, fact) in facts(&question.answers) {
                    let _ = writeln!(self.tree, "{indent}- {label}");
                    let mut further = record.clone();
                    let taken_back = further.in_the_way(&fact);
                    (0..taken_back).for_each(|_| _ = further.back());
                    further.answer(fact);
                    self.step(&further, depth + 1);
                    let kept = &record.answers()[..record.answers().len() - taken_back];
                    assert!(further.back() && further.answers() == kept, "back takes back one answer");
                }
            }
            Next::Look(look) => {
                let kind = format!("{look:?}");
                let _ = writeln!(
                    self.tree,
                    "{indent}~ look at {}",
                    kind.split([' ', '{']).next().unwrap_or_default().to_lowercase()
                );
                if self.again(&next, record, &indent) {
                    return;
                }
                for (label, finding) in findings(look) {
                    let _ = writeln!(self.tree, "{indent}- {label}");
                    let mut further = record.clone();
                    further.found(look.clone(), finding);
                    self.step(&further, depth + 1);
                }
            }
            Next::Refuse(refusal) => {
                assert!(!refusal.hints.is_empty(), "a refusal without a way on: {}", refusal.why);
                let _ = writeln!(self.tree, "{indent}x {} > {}", refusal.why, refusal.hints.join(" "));
            }
            Next::Ready(plan) => self.plan(plan, &indent),
        }
    }

    /// Whether the same judgement was printed already, with all that follows from it.
    fn again(&mut self, next: &Next, record: &Record, indent: &str) -> bool {
        let again =
            !self.seen.insert(format!("{next:?} {:?} {:?} {:?}", record.tables(), record.keys(), record.scope()));
        if again {
            let _ = writeln!(self.tree, "{indent}  (as above)");
        }
        again
    }

    fn plan(&mut self, plan: &Plan, indent: &str) {
        assert!(
            plan.effect() < Effect::Live || !plan.phrase().is_empty(),
            "a plan that changes production asks for a typed name"
        );
        for step in &plan.steps {
            let effect = match step.effect() {
                Effect::Read => "read   ",
                Effect::Scratch => "scratch",
                Effect::Live => "LIVE   ",
                Effect::Final => "FINAL  ",
            };
            let _ = writeln!(self.tree, "{indent}! {effect} {}", step.title());
        }
    }
}

fn tree(flow: Flow) -> String {
    let mut walk = Walk { flow, seen: HashSet::new(), tree: String::new() };
    walk.step(&Record::default(), 0);
    walk.tree
}

#[test]
fn rows() {
    insta::assert_snapshot!(tree(Flow::Rows));
}

/// Where base backups and WAL are configured, and nothing else is there.
#[test]
fn point_in_time() {
    let mut record = Record::default();
    record.wal = true;
    record.found(Look::Points, Finding::Points(vec![]));
    record.answer(Fact::Incident(Incident::At(instant("2026-01-15T14:00:00Z"))));
    let mut walk = Walk { flow: Flow::Rows, seen: HashSet::new(), tree: String::new() };
    walk.step(&record, 0);
    insta::assert_snapshot!(walk.tree);
}

/// What was seen in a cluster does not hold for the next one, which is laid out in its place.
#[test]
fn going_back_from_a_cluster_forgets_what_was_seen_in_it() {
    let mut record = Record::default();
    let tables = Look::Tables { point: "clone".into(), dump: "shop".into() };
    let of_dump = Look::Tables { point: "a".into(), dump: "/a.dump".into() };
    record.answer(before(774));
    record.answer(Fact::LayOut("/srv/lifeboat-clone-x".into()));
    for look in [&tables, &of_dump] {
        record.found(look.clone(), findings(look).remove(0).1);
    }
    assert_eq!((record.in_the_way(&before(773)), record.in_the_way(&Fact::Stage)), (2, 0));
    assert!(record.back() && record.finding(&tables).is_none() && record.finding(&of_dump).is_some());
}

#[test]
fn undo_tables() {
    let flow = Flow::UndoTables { recovery: "20260115_143205_a1b2".into(), recreation: Box::new(recreation()) };
    insta::assert_snapshot!(tree(flow));
}

#[test]
fn clean() {
    let keep = flows::clean::Keep { undo_seconds: 86_400, open: vec!["resumable".into()] };
    insta::assert_snapshot!(tree(Flow::Clean(keep)));
}

#[test]
fn undo() {
    insta::assert_snapshot!(tree(Flow::Undo { recovery: "20260115_143205_a1b2".into() }));
}

/// A plan that was refused is made again from how production stands then, not from a dump that is restored once more.
#[test]
fn what_was_restored_whole_is_not_restored_again_when_a_plan_is_refused() {
    let mut record = Record::default();
    let look = Look::RestoreDatabase { point: "a".into(), dump: "/a.dump".into() };
    record.found(look.clone(), Finding::RestoredDatabase(Box::new(restored()), Checked::default()));
    let standing = Look::Standing { restored: Box::new(restored()) };
    let stood = Standing { production: None, written: None, carried: vec![], comment: None };
    record.found(standing.clone(), Finding::Standing(stood));
    record.forget_diffs();
    assert!(record.finding(&look).is_some() && record.finding(&standing).is_none());
}

#[test]
fn undo_database() {
    let standing = Standing { production: Some(production()), written: Some(0), carried: vec![], comment: None };
    let recovery = "20260115_143205_a1b2".to_owned();
    let exchange = Exchange::new(&recovery, "programme_db", &restored(), &standing).unwrap();
    insta::assert_snapshot!(tree(Flow::UndoDatabase { recovery, exchange: Box::new(exchange) }));
}

#[test]
fn undo_files() {
    let flow = Flow::UndoFiles { recovery: "20260115_143205_a1b2".into(), placed: placed() };
    insta::assert_snapshot!(tree(flow));
}

#[test]
fn the_data_loss_window_is_compared_with_the_rpo() {
    let why = |hours: u64| {
        let mut record = Record::default();
        record.rpo = Some(std::time::Duration::from_hours(hours));
        let point = point("aaaaaaaa", "2026-01-15T02:00:00Z");
        let contents = Contents { dumps: vec![dump("/a.dump", None)], files: 0, bytes: 0, complete: true };
        record.found(Look::Contents { point: point.id.clone() }, Finding::Contents(contents));
        record.found(Look::Points, Finding::Points(vec![point]));
        record.answer(Fact::Incident(Incident::At(instant("2026-01-15T14:00:00Z"))));
        record.answer(Fact::Scope(Scope::Tables));
        let Next::Ask(question) = flows::rows::next(&record) else { panic!("nothing is asked") };
        question.why
    };
    assert!(why(6).contains("It loses 12 h 0 min, which is MORE than this system's RPO of 6 h 0 min."), "{}", why(6));
    assert!(why(24).contains("which is within this system's RPO of "), "{}", why(24));
}
