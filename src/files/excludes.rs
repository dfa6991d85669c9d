//! What backups leave out on purpose, by restic's patterns: it is only here, and nothing is wrong with that.
//!
//! A pattern that begins with a slash is a whole path, any other matches at every depth; `*` stays within a name, `**` does
//! not; what lies beneath a match is left out with it; a pattern that begins with `!` takes back what one before it left out.
//! Source: restic's documentation, "Excluding Files".

use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};

use crate::error::{Error, Result};

/// More patterns than this are no exclude file.
const MOST: usize = 10_000;

/// The patterns of a file, in its order.
#[derive(Debug, Clone, Default)]
pub struct Excludes(Vec<Pattern>);

#[derive(Debug, Clone)]
struct Pattern {
    /// It leaves out, or takes back what was left out.
    leaves_out: bool,
    matcher: GlobMatcher,
}

impl Excludes {
    /// Reads a file as `restic --exclude-file` does. Errors: it cannot be read; a pattern that makes no sense, with its line.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Error::operator(format!("cannot read the excludes {}", file.display()))
                .detail(error)
                .hint("Check the path in the configuration, and that you may read it.")
        })?;
        Self::parse(&text).map_err(|error| error.hint(format!("It stands in {}.", file.display())))
    }

    /// Reads the text of such a file: a pattern a line, comments begin with `#`.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).enumerate();
        let patterns = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).take(MOST);
        patterns.map(|(number, line)| Pattern::parse(line, number + 1)).collect::<Result<_>>().map(Self)
    }

    /// Whether a whole path of this machine is left out, by itself or with a folder above it.
    pub fn leave_out(&self, path: &Path) -> bool {
        !self.0.is_empty() && path.ancestors().any(|above| self.matches(above))
    }

    fn matches(&self, path: &Path) -> bool {
        let last = self.0.iter().rev().find(|pattern| pattern.matcher.is_match(path));
        last.is_some_and(|pattern| pattern.leaves_out)
    }
}

impl Pattern {
    fn parse(line: &str, number: usize) -> Result<Self> {
        let (leaves_out, pattern) = line.strip_prefix('!').map_or((true, line), |pattern| (false, pattern));
        let pattern = pattern.trim_end_matches('/');
        let anywhere = if pattern.starts_with('/') { pattern.to_owned() } else { format!("**/{pattern}") };
        let glob = GlobBuilder::new(&anywhere).literal_separator(true).build().map_err(|error| {
            Error::operator(format!("line {number} of the excludes is no pattern")).detail(error.kind())
        })?;
        Ok(Self { leaves_out, matcher: glob.compile_matcher() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_leave_out_what_restic_would() {
        let text =
            "# caches\n*.tmp\n/node_modules\n\n/home/*/.cache\n/var/www/*/storage/logs\n/srv/**/old\n!keep.tmp\n";
        let excludes = Excludes::parse(text).unwrap();
        let out = |path: &str| excludes.leave_out(Path::new(path));
        for path in
            ["/a/b.tmp", "/node_modules/x/y", "/home/ann/.cache/z", "/var/www/shop/storage/logs/1", "/srv/a/b/old"]
        {
            assert!(out(path), "{path}");
        }
        for path in ["/a/b.tmpx", "/srv/node_modules", "/home/ann/b/.cache2", "/a/keep.tmp", "/"] {
            assert!(!out(path), "{path}");
        }
        assert!(!Excludes::default().leave_out(Path::new("/a.tmp")));
        assert_eq!(Excludes::parse("a\n[").unwrap_err().message, "line 2 of the excludes is no pattern");
    }
}
