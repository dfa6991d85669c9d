//! Every test of the project that needs more than one function: one binary, real servers.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod archive;
mod backup;
mod chains;
mod cluster;
mod connect;
mod console;
mod database;
mod decisions;
mod diff;
mod dropped_tables;
mod faults;
mod files;
mod forge;
mod inspect;
mod merge;
mod moment;
mod pgbackrest;
mod point_in_time;
mod recover;
mod resume;
mod sandbox;
mod stage;
mod tidy;
mod touched;
mod walk;
mod worker;

/// Tells, loudly, of a test that cannot run here: past the capture of the test's output, which would hide it.
fn not_run(what: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("*** NOT RUN: {what} ***\n").as_bytes());
}

#[path = "../screenshots/picture.rs"]
mod picture;
#[path = "../screenshots/terminal.rs"]
mod terminal;
