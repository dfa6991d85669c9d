//! The settings of a clone: ours, whole; and the names of those that production had and a clone must not.

use std::fs;
use std::process::Stdio;

use super::{Spec, command, failed, folder, write};
use crate::error::{Error, Result};

/// What would reach out of a clone, run somebody's program or library, or read settings from elsewhere.
const DANGEROUS: [&str; 24] = [
    "archive_mode",
    "archive_command",
    "archive_library",
    "archive_cleanup_command",
    "recovery_end_command",
    "restore_command",
    "primary_conninfo",
    "primary_slot_name",
    "shared_preload_libraries",
    "session_preload_libraries",
    "local_preload_libraries",
    "dynamic_library_path",
    "listen_addresses",
    "unix_socket_directories",
    "ssl_passphrase_command",
    "log_directory",
    "data_directory",
    "hba_file",
    "ident_file",
    "external_pid_file",
    "stats_temp_directory",
    "include",
    "include_if_exists",
    "include_dir",
];

/// Settings of a standby that may not be smaller than production's, by the names that `pg_controldata` has for them.
const AS_LARGE: [(&str, &str); 5] = [
    ("max_connections setting", "max_connections"),
    ("max_worker_processes setting", "max_worker_processes"),
    ("max_wal_senders setting", "max_wal_senders"),
    ("max_prepared_xacts setting", "max_prepared_transactions"),
    ("max_locks_per_xact setting", "max_locks_per_transaction"),
];

/// What holds whatever the base backup is of.
const OURS: &str = "\
listen_addresses = ''
unix_socket_permissions = 0700
archive_mode = off
archive_command = ''
archive_cleanup_command = ''
recovery_end_command = ''
primary_conninfo = ''
shared_preload_libraries = ''
session_preload_libraries = ''
local_preload_libraries = ''
max_logical_replication_workers = 0
autovacuum = off
max_wal_size = '16GB'
checkpoint_timeout = '1h'
jit = off
hot_standby = on
logging_collector = off
log_destination = 'stderr'
log_line_prefix = ''
log_min_messages = log
log_min_error_statement = panic
log_timezone = 'UTC'
timezone = 'UTC'
lc_messages = 'C'
ssl = off
recovery_target_action = 'pause'
# The command runs in the data directory. It only ever reads from the folder beside it, whose files are links to the archive
# or copies of it; both names are the server's own.
restore_command = 'cp -- ../wal/%f %p'
";

/// Writes the clone's settings. Returns the names of dangerous ones that the base backup had.
pub(super) fn write_ours(spec: &Spec, control: &[u8]) -> Result<Vec<String>> {
    let data = spec.into.join("data");
    let mut set_aside = Vec::new();
    for file in ["postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"] {
        let path = data.join(file);
        if !path.exists() {
            continue;
        }
        if file.starts_with("postgresql") {
            let bytes = fs::read(&path).map_err(|error| failed(&path, error))?;
            set_aside.extend(dangerous(&String::from_utf8_lossy(&bytes)).map(|name| format!("{name} ({file})")));
        }
        fs::rename(&path, data.join(format!("{file}.base"))).map_err(|error| failed(&path, error))?;
    }
    let mut ours = String::from("# Written by Lifeboat. What the base backup had is in *.base, and is not used.\n");
    ours.push_str(OURS);
    ours.push_str(&format!("unix_socket_directories = '{}'\n", spec.into.display()));
    for (name, value) in as_large(spec, control)? {
        ours.push_str(&format!("{name} = {value}\n"));
    }
    ours.push_str(&format!("recovery_target_timeline = '{}'\n", spec.timeline));
    ours.push_str(&format!("shared_buffers = {}MB\n", buffers()));
    if !spec.durable {
        ours.push_str("fsync = off\n");
    }
    ours.push_str(&spec.stop.settings());
    write(&data.join("postgresql.conf"), &mut ours.as_bytes())?;
    write(&data.join("postgresql.auto.conf"), &mut [].as_slice())?;
    // The folder of the socket is 0700: only who owns the files gets that far.
    write(&data.join("pg_hba.conf"), &mut b"local all all trust\n".as_slice())?;
    write(&data.join("pg_ident.conf"), &mut [].as_slice())?;
    write(&data.join("recovery.signal"), &mut [].as_slice())?;
    Ok(set_aside)
}

/// Megabytes for replay to work in: a part of what this machine has free, since other servers run on it too.
fn buffers() -> u64 {
    let facts = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free =
        facts.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse().ok());
    (free.unwrap_or(0_u64) / 1024 / 8).clamp(128, 2048)
}

/// The names of dangerous settings in a file of settings, in its order. Values are not looked at: they may hold passwords.
fn dangerous(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().filter_map(|line| {
        let name: String =
            line.trim_start().chars().take_while(|letter| !letter.is_whitespace() && *letter != '=').collect();
        let name = name.to_ascii_lowercase();
        (DANGEROUS.contains(&name.as_str()) || name.starts_with("cron.") || name.starts_with("pg_partman"))
            .then_some(name)
    })
}

fn as_large(spec: &Spec, control: &[u8]) -> Result<Vec<(&'static str, u64)>> {
    // The program wants a data directory; this one has nothing but the file.
    let asked = spec.into.join("control");
    folder(&asked)?;
    folder(&asked.join("global"))?;
    write(&asked.join("global/pg_control"), &mut &*control)?;
    let output = command(spec.programs, "pg_controldata")?.arg(&asked).stdin(Stdio::null()).output();
    let output = output.map_err(|error| Error::operator("pg_controldata does not run").detail(error))?;
    fs::remove_dir_all(&asked).map_err(|error| failed(&asked, error))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let damaged = || {
        Error::backup("pg_controldata cannot read global/pg_control of the base backup")
            .detail(format!("{said}{}", String::from_utf8_lossy(&output.stderr)))
            .hint("Take another base backup, or check that --programs are of its version.")
    };
    if said.contains("WARNING") {
        return Err(damaged());
    }
    let find =
        |label: &str| said.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(':')?.trim().parse().ok());
    AS_LARGE.iter().map(|(label, name)| Ok((*name, find(label).ok_or_else(damaged)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dangerous_settings_are_named_without_their_values() {
        let text = "# archive_mode = on\narchive_mode=on\n  Primary_ConnInfo 'password=x'\nwork_mem = 4MB\ninclude_dir 'conf.d'\n\
            cron.database_name='x'\n";
        let names: Vec<_> = dangerous(text).collect();
        assert_eq!(names, ["archive_mode", "primary_conninfo", "include_dir", "cron.database_name"]);
    }
}
