//! `make bench`: Lifeboat and the peer beside it, in the same run, on the same data, printed as ratios.
//!
//! Every figure is the best of several runs that take turns, so that a busy machine hurts both alike.
//! `cargo bench -- rows`, `-- files`, `-- database` and `-- moment` run one part.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and stops at the first thing that is wrong"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

mod database;
mod files;
mod moment;
mod rows;
#[path = "../screenshots/terminal.rs"]
#[expect(dead_code, reason = "pictures need more of it")]
mod terminal;

const LIFEBOAT: &str = env!("CARGO_BIN_EXE_lifeboat");
const RUNS: usize = 3;

fn main() {
    // Beside the names of parts, `cargo bench` passes --bench.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let parts: [(&str, fn()); 4] =
        [("rows", rows::run), ("files", files::run), ("database", database::run), ("moment", moment::run)];
    let known = |name: &String| parts.iter().any(|(part, _)| part == name);
    assert!(wanted.iter().all(known), "the parts are rows, files, database and moment");
    for (name, run) in parts {
        if wanted.is_empty() || wanted.iter().any(|part| part == name) {
            run();
        }
    }
}

fn shell(command: &str) -> String {
    let output = Command::new("bash").args(["-o", "pipefail", "-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn best(mut run: impl FnMut() -> Duration) -> Duration {
    (0..RUNS).map(|_| run()).min().unwrap()
}

fn line(what: &str, ours: &str, peer: &str, ratio: f64, limit: f64) {
    let verdict = if ratio <= limit { "ok" } else { "MISSED" };
    println!("{what:<58} {ours:>12} {peer:>12} {ratio:>8.3} {limit:>8.2}  {verdict}");
}

fn heading() {
    println!("\n{:<58} {:>12} {:>12} {:>8} {:>8}", "work", "lifeboat", "peer", "ratio", "at most");
}

/// The most memory that a process has taken so far, in bytes; 0 when it is gone.
fn high_water(process: &Path) -> u64 {
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The most memory that a command takes, in bytes.
fn peak(command: &mut Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        most = most.max(high_water(&PathBuf::from(format!("/proc/{}", child.id()))));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(child.wait().unwrap().success());
    most
}

/// The most memory that a command's worker takes, in bytes. `mark` is part of its environment and of no other's.
fn peak_of_worker(command: &mut Command, mark: &str) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        for process in std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()) {
            let read = |name: &str| {
                String::from_utf8(std::fs::read(process.join(name)).unwrap_or_default()).unwrap_or_default()
            };
            if read("cmdline").contains("worker") && read("environ").contains(mark) {
                most = most.max(high_water(&process));
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(child.wait().unwrap().success() && most > 0);
    most
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

fn ratio(ours: Duration, peer: Duration) -> f64 {
    ours.as_secs_f64() / peer.as_secs_f64()
}
