//! The rules of the house that a compiler does not hold.

use std::fs;
use std::path::{Path, PathBuf};

/// Upper layers use lower ones, never back; engines never import each other.
const LAYERS: &[(&str, &[&str])] = &[
    ("backup", &["error", "progress", "secret", "text"]),
    ("postgres", &["backup", "error", "progress", "secret", "text"]),
    ("files", &["backup", "error", "progress", "text"]),
    ("config", &["error", "secret", "text"]),
    ("recovery", &["backup", "config", "error", "files", "panics", "postgres", "progress", "secret", "text"]),
    ("drill", &["backup", "config", "error", "postgres", "progress", "recovery", "secret", "text"]),
    ("ui", &["config", "drill", "error", "files", "panics", "postgres", "progress", "recovery", "text"]),
    ("text", &[]),
    ("error", &["text"]),
    ("panics", &["error", "text"]),
    ("progress", &["error", "text"]),
    ("secret", &["error"]),
];

fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn layer(path: &Path) -> String {
    let relative = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

#[test]
fn layers_hold() {
    let mut wrong = Vec::new();
    for path in sources("src") {
        let own = layer(&path);
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == own) else { continue };
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for used in line.split("crate::").skip(1) {
                let used: String =
                    used.chars().take_while(|letter| letter.is_ascii_lowercase() || *letter == '_').collect();
                if !used.is_empty() && used != own && !allowed.contains(&used.as_str()) {
                    wrong.push(format!("{}:{}: {own} uses {used}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    for path in sources("src").into_iter().chain(sources("tests")) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! ") && text.lines().next().unwrap().len() > 20, "{} has no head", path.display());
    }
}

#[test]
fn files_stay_readable_in_one_sitting() {
    /// Longer than the rule, each with its reason.
    const LONGER: &[(&str, &str)] = &[];
    for path in sources("src") {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        let excepted = LONGER.iter().any(|(name, _)| path.ends_with(name));
        assert!(lines <= 700 || excepted, "{} has {lines} lines", path.display());
    }
}

#[test]
fn only_one_place_quotes_identifiers() {
    for path in sources("src") {
        if path.ends_with("postgres/name.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(r#"replace('"', "\"\"")"#), "{} quotes by itself", path.display());
    }
}
