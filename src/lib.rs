//! Lifeboat brings lost data back. It is a terminal console for incident responders: it shows what a backup holds, leads
//! through the decision, shows every difference between backup and production before anything changes, writes what was
//! approved, proves the result, and can undo it.
//!
//! This page is the map of the code. Read it from top to bottom once; then every behaviour is a minute away.
//!
//! # Decide, then do
//!
//! ```text
//!  key -> ui::keymap -> Action -> screen -> Command --+                    ui draws, never decides
//!                                                     |
//!  - - - - - - - recovery::worker, a process of its own | Request, Event - - - - - - - - - - - - - - - - - -
//!                                                     v
//!    recovery::flows::next(&Record) -> Ask | Look | Ready | Refuse          pure: no I/O, no clock
//!         ^                             |     |      |
//!         |  answer, finding            |     |      +- consent -> Confirmed -> recovery::run
//!         +-----------------------------+-----+                                      |
//!                                             |                    journal -> execute -> check -> journal
//!            the only door ------------------ +--- recovery::systems ---+
//!                                                        |
//!                              backup (restic, pgBackRest, dumps on disk), postgres, files
//! ```
//!
//! - A **flow** is one pure function, run again from the top after every answer. Back drops the last answer and all after
//!   it. A test answers every question every way and prints the decision tree (`tests/it/snapshots/`), so an operator can
//!   review the product's judgement without reading Rust.
//! - A **look** reads, or writes only in scratch space that carries the recovery's name.
//! - A **plan** is a flat list of steps. [`recovery::plan::Step`] is the complete list of things this program can change on
//!   anybody's systems. [`recovery::plan::Plan::confirm`] makes the only thing that [`recovery::run`] accepts, and it holds
//!   the hash of what was shown.
//!
//! # What always holds
//!
//! 1. *The ui decides nothing.* Screens show what a flow returned and hand back an answer.
//! 2. *Deciding never writes outside scratch.* Production is changed by a confirmed plan and by nothing else.
//! 3. *One door.* Only [`recovery::systems`] calls an engine; engines never call each other (`tests/it/tidy.rs` holds it).
//! 4. *The preview is the deed.* The chosen rows are copied aside, frozen and hashed when they are shown; the merge writes
//!    those bytes and checks the hash again inside its transaction.
//! 5. *Row guards.* A row is written only while it is still the version that was shown (`xmin`); otherwise everything is
//!    rolled back and the rows that moved are named. Nothing of the application's is overwritten.
//! 6. *One transaction.* Pre-images, rows, sequences, a token row and the checks of the promised counts go in together or
//!    not at all. A COMMIT whose reply was lost is settled by the token, never by a guess.
//! 7. *No step runs unjournaled,* and the journal is on disk before the deed ([`recovery::journal`]).
//! 8. *The work outlives the terminal.* A worker holds the recovery; consoles look on, and may vanish ([`recovery::worker`]).
//! 9. *A recovery is in one process's hands* (a lock on its journal), and a table in one recovery's ([`postgres::claim`]).
//!    When the process has ended, [`recovery::run::resume`] asks production what became of the step it was in.
//! 10. *Bytes are proven before use.* The SHA-256 of every blob and every repository file is compared with its name by us, on
//!     every read ([`backup`]).
//! 11. *No SQL text from data.* Identifiers are quoted in [`postgres::name`] and nowhere else; values are bound or copied.
//!     Definitions of a dump are run in one place only, a new database of our own, where recreating them is the point
//!     ([`postgres::database`]).
//! 12. *Names of a snapshot are data.* A path is made of them one name at a time, beneath folders that are held open, never
//!     through a symlink; what comes back is read again and hashed before it is given its name ([`files`]).
//! 13. *A drill cannot reach a configured system*: it is given the sandbox's own connection and there is no way to hand it
//!     another one.
//!
//! # Where things are
//!
//! | question | file |
//! |---|---|
//! | what is the operator asked when rows are lost? | `recovery/flows/rows.rs`, or its printed tree |
//! | what can this program change at all? | `recovery/plan.rs`, `enum Step` |
//! | what SQL does a merge run? | `postgres/merge/` |
//! | how does a restored database take production's place? | `postgres/database/promote.rs` |
//! | who runs a dump's definitions, and why? | the head of `postgres/database.rs` |
//! | who builds a restored database's indexes, and when? | `postgres/database/load.rs`, `postgres/database/index.rs` |
//! | how is a file written, and put in the place of another? | `files/write.rs`, `files/put.rs` |
//! | how is a whole snapshot searched? | `files/catalog.rs` |
//! | how are rows compared? | `postgres/diff.rs` |
//! | why are few rows of a clone staged? | `postgres/diff/touched.rs` |
//! | how is one table read out of a dump in a snapshot? | `postgres/archive.rs`, `backup.rs` |
//! | what can be reached from a base backup and WAL? | `backup/base.rs`, `backup/wal.rs` |
//! | what does an incremental base backup rest on, wherever it is? | `backup/chain.rs`; combined in `postgres/cluster/combine.rs` |
//! | how is a repository of pgBackRest read, and restored from? | `backup/pgbackrest.rs`, `postgres/cluster/restore.rs` |
//! | how is a cluster laid out as of a moment, and proved? | `postgres/cluster.rs` and beside it |
//! | how is such a cluster looked into, and why does no query change anything? | `postgres/cluster/inspect.rs` |
//! | which transaction did it? | `postgres/waldump.rs`, `suspects` |
//! | how does a dropped table come back? | `postgres/merge/recreate.rs` |
//! | where do a table's rows come from, a dump or a clone? | `postgres/origin.rs` |
//! | what is asked about a moment in time? | `recovery/flows/point_in_time.rs`, or its printed tree |
//! | what happens after a kill? | `recovery/run.rs`, `resume` |
//! | what does a console ask a worker for? | `recovery/worker/protocol.rs` |
//! | what is ever written to a repository? | `backup/lock.rs` |
//! | whose code would a merge run? | `postgres/merge/foreign_code.rs` |
//! | why am I asked to type a name? | `recovery/plan.rs`, `Effect` |
//! | which key does what, where? | `ui/keymap.rs` |
//! | what is in the journal? | `recovery/journal.rs` |
//! | how does a drill know the truth? | `drill/database.rs` for rows and databases, `drill/dropped.rs` for dropped tables, `drill/files.rs` for files |
//! | what does the browser of files show? | `ui/screens/files.rs` and the views beside it |
//!
//! Upper layers use lower ones, never back:
//! `main, cli -> ui -> drill -> recovery -> {files, postgres, config} -> backup -> {error, progress, secret, text}`.
//!
//! # Where this differs from the first design
//!
//! - There are four flows so far, [`recovery::flows::rows`], [`recovery::flows::files`], [`recovery::flows::database`] and
//!   [`recovery::flows::point_in_time`], and their undo. A dropped table is made again out of a moment in time only; of a dump it
//!   is refused in words.
//! - A clone is read as a dump is: its own `pg_dump` writes its definitions as an archive without rows, and rows are copied out
//!   as they are asked for ([`postgres::origin`]). So rows, whole databases and what is decided about them have one code.
//! - Not all rows of a clone are staged before they are compared: where it and production have one history, rows in the same
//!   place, written by the same transaction, are the same (`postgres/diff/touched.rs`). Staging has the touched ones only.
//! - A clone does not stay paused at its target: a transaction that it stopped just before is still in progress there, and what
//!   that one was about to drop is locked. It is proved while it is paused; then replay ends, and its sessions are read-only.
//!   So the moment one commit later is laid out anew, as the one before is.
//! - To stop just before a DROP DATABASE is to stop before its transaction's first record, not before its end: the database is
//!   made invalid and its files go before that (`postgres/cluster/target.rs`).
//! - A repository of pgBackRest is not read by us as restic's is: `pgbackrest` is run. It may be encrypted, on another machine or
//!   in blocks of a newer format, and a clone begins with all of a backup anyway.
//! - Tables are made again by running production's own definitions in production, shown whole. What hangs on them (views,
//!   triggers, foreign keys, grants) is tried by itself, each in a savepoint: an hour later not all of what it needs is there.
//! - Definitions of a whole database are created by `pg_restore`, not by us: it knows what each version of an archive means. It
//!   is given the table of contents alone, so that no copy of the dump is made for it.
//! - A large table is staged by two sessions, each in a transaction of its own: twice the server's processors for what takes
//!   longest. That the table is there whole or not at all is kept by dropping it when either fails.
//! - `lifeboat windows`, `clone` and `moments` (`cli/moment.rs`) call their engines themselves, for scripts and for what the flow
//!   does not ask: they write nowhere but in a folder that was not there before.
//! - Files rest on `backup`: both read the same repository, and a file is addressed by its node, never by a pattern.
//! - Pre-images and the token live in a schema per recovery, `lifeboat_undo_<recovery>`, created inside the merge's own
//!   transaction: a merge that is rolled back leaves nothing to clean up.
//! - A row that moved since the preview stops the whole merge. Leaving such rows out would need consent to a number that
//!   nobody has seen; comparing again keeps the operator's choice and shows the new numbers.
//! - `search_path` is ours while we read and hash, and the role's own while rows are written: triggers expect it.
//! - A drill's worker is a task in the console's process: its sandbox goes away with the console. `diff` does its work in its
//!   own process: it changes nothing, and what it staged goes with it.

pub mod backup;
pub mod cli;
pub mod config;
pub mod drill;
pub mod error;
pub mod files;
mod panics;
pub mod postgres;
pub mod progress;
pub mod recovery;
pub mod secret;
pub mod text;
pub mod ui;
