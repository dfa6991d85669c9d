//! `.pgpass`: one `host:port:database:user:password` a line, `*` for any, backslash before a colon or a backslash.

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use zeroize::Zeroizing;

use crate::secret::Secret;

/// A password file is a page, never a disk.
const LONGEST: u64 = 1 << 20;

/// The password of the first line that fits host, port, database and user. The error is the reason why the file may not
/// be used; a file that is not there is no error.
pub fn look_up(file: &Path, wanted: &[&str; 4]) -> Result<Option<Secret>, String> {
    let unreadable = |error: std::io::Error| format!("cannot read the password file {}: {error}", file.display());
    let facts = match fs::metadata(file) {
        Ok(facts) => facts,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    if !facts.is_file() {
        return Err(format!("the password file {} is not a plain file", file.display()));
    }
    if facts.permissions().mode() & 0o077 != 0 {
        return Err(format!(
            "the password file {} has group or world access; permissions must be u=rw (0600) or less",
            file.display()
        ));
    }
    let mut text = Zeroizing::new(String::new());
    let open = fs::File::open(file).map_err(unreadable)?;
    open.take(LONGEST).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text.lines().filter(|line| !line.starts_with('#')).find_map(|line| password(line, wanted)))
}

fn password(line: &str, wanted: &[&str; 4]) -> Option<Secret> {
    let mut rest = line;
    for value in wanted {
        let (field, after) = split(rest)?;
        let any = &rest[..rest.len() - after.len() - 1] == "*";
        if !any && *field != **value {
            return None;
        }
        rest = after;
    }
    // What follows a password's own unescaped colon is not part of it.
    let end = split(rest).map_or_else(|| unescape(rest), |(field, _)| field);
    Some(Secret::new(end.to_string()))
}

/// Up to the first colon that has no backslash before it, unescaped, and what follows that colon.
fn split(text: &str) -> Option<(Zeroizing<String>, &str)> {
    let mut escaped = false;
    for (place, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ':' => return Some((unescape(&text[..place]), &text[place + 1..])),
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> Zeroizing<String> {
    let mut plain = Zeroizing::new(String::with_capacity(text.len()));
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => plain.extend(letters.next()),
            _ => plain.push(letter),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Option<String> {
        let wanted = ["db.example.org", "5432", "a:b", "app"];
        password(line, &wanted).map(|secret| secret.reveal().to_owned())
    }

    #[test]
    fn a_line_fits_by_value_wildcard_and_escape() {
        assert_eq!(found(r"db.example.org:5432:a\:b:app:one").as_deref(), Some("one"));
        assert_eq!(found(r"*:*:*:*:t\\w\:o").as_deref(), Some(r"t\w:o"));
        assert_eq!(found(r"\*:5432:*:app:no"), None);
        assert_eq!(found("db.example.org:5433:*:app:no"), None);
        assert_eq!(found("db.example.org:5432"), None);
    }
}
