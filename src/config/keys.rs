//! The keys of a TOML table, taken one by one. What is wrong is said with file, line and key, and never with a value.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Error, Result};

/// Keys this much alike are taken for a slip of the finger (0: nothing in common, 1: equal).
const ALIKE: f64 = 0.8;

/// The text of the file, to say where something stands.
pub struct Lines<'a> {
    pub text: &'a str,
    pub file: &'a Path,
}

impl Lines<'_> {
    pub fn place(&self, byte: usize) -> String {
        let line = self.text.get(..byte).unwrap_or_default().matches('\n').count() + 1;
        format!("line {line} of {}", self.file.display())
    }
}

/// A value, the key it was given for and its place.
pub struct Value<'a> {
    lines: &'a Lines<'a>,
    key: String,
    pub at: usize,
    given: &'a DeValue<'a>,
}

/// The keys of one table that have not been taken yet.
pub struct Keys<'a>(Vec<Value<'a>>);

impl<'a> Keys<'a> {
    /// `whose` begins a sentence: `A system`.
    pub fn of(table: &'a DeTable<'a>, lines: &'a Lines<'a>, known: &[&str], whose: &str) -> Result<Self> {
        let values = table.iter().map(|(key, value)| {
            let at = key.span().start;
            let key: &str = key.get_ref();
            if known.contains(&key) {
                Ok(Value { lines, key: key.into(), at, given: value.get_ref() })
            } else {
                Err((at, key))
            }
        });
        let values: Result<_, _> = values.collect();
        values.map(Self).map_err(|(at, key)| unknown(key, &lines.place(at), known, whose))
    }

    pub fn take(&mut self, key: &str) -> Option<Value<'a>> {
        let position = self.0.iter().position(|value| value.key == key)?;
        Some(self.0.swap_remove(position))
    }
}

impl<'a> Value<'a> {
    /// An error about this value; `what` follows the place, as in `line 3 of FILE holds a password`.
    pub fn wrong(&self, what: &str) -> Error {
        Error::operator(format!("{} {what}", self.lines.place(self.at)))
    }

    fn not_a(&self, what: &str) -> Error {
        self.wrong(&format!("gives {} something that is not {what}", self.key))
    }

    /// Text that is not empty and stands on one line.
    pub fn text(&self) -> Result<String> {
        match self.given.as_str() {
            Some(text) if text.trim().is_empty() => {
                Err(self.wrong(&format!("leaves {} empty", self.key)).hint("Fill it in, or remove the line."))
            }
            Some(text) if text.chars().any(char::is_control) => {
                Err(self.wrong(&format!("gives {} more than one line of plain text", self.key)))
            }
            Some(text) => Ok(text.to_owned()),
            None => Err(self.not_a("text").hint(format!("Write {} = \"...\", with the quotes.", self.key))),
        }
    }

    pub fn flag(&self) -> Result<bool> {
        let wrong = || self.not_a("true or false").hint(format!("Write {} = true, without quotes.", self.key));
        self.given.as_bool().ok_or_else(wrong)
    }

    pub fn integer(&self) -> Result<i64> {
        let wrong = || self.not_a("a whole number").hint(format!("Write {} = 45678, without quotes.", self.key));
        let number = self.given.as_integer().filter(|number| number.radix() == 10).ok_or_else(wrong)?;
        number.as_str().parse().map_err(|_| wrong())
    }

    pub fn texts(&self) -> Result<Vec<String>> {
        let list = || self.not_a("a list of text").hint(format!("Write {} = [\"one\", \"two\"].", self.key));
        let values = self.given.as_array().ok_or_else(list)?;
        values.iter().map(|value| self.inner(value).text().map_err(|_| list())).collect()
    }

    /// A path: `~/` is the home folder, and a relative one starts at the folder of the file.
    pub fn path(&self) -> Result<PathBuf> {
        let text = self.text()?;
        if let Some(below) = text.strip_prefix("~/") {
            let home = std::env::var_os("HOME").ok_or_else(|| self.wrong("needs HOME, which is not set"))?;
            return Ok(PathBuf::from(home).join(below));
        }
        Ok(self.lines.file.parent().unwrap_or_else(|| Path::new("")).join(text))
    }

    /// The entries of `[[key]]`.
    pub fn tables(&self) -> Result<Vec<Value<'a>>> {
        let wrong = || self.not_a("a list of tables").hint(format!("Start each with a line [[{}]].", self.key));
        let values = self.given.as_array().ok_or_else(wrong)?;
        values.iter().map(|value| Ok(self.inner(value))).collect()
    }

    pub fn keys(&self, known: &[&str], whose: &str) -> Result<Keys<'a>> {
        let table = self.given.as_table().ok_or_else(|| {
            self.not_a("a table").hint(format!(
                "Write {} = {{ {} = \"...\" }}.",
                self.key,
                known.first().unwrap_or(&"key")
            ))
        })?;
        Keys::of(table, self.lines, known, whose)
    }

    fn inner(&self, value: &'a Spanned<DeValue<'a>>) -> Self {
        Self { lines: self.lines, key: self.key.clone(), at: value.span().start, given: value.get_ref() }
    }
}

fn unknown(key: &str, place: &str, known: &[&str], whose: &str) -> Error {
    let secret = |word: &str| key.to_lowercase().contains(word) || alike(word, key) > 0.9;
    if ["password", "passwd", "passphrase", "secret", "token"].iter().any(|word| secret(word))
        && !known.iter().any(|known| alike(known, key) > 0.9)
    {
        return Error::operator(format!("{place} has the key \"{key}\", and no secret may be in this file"))
            .hint("The file is copied and shown around: for a repository, give password_file or password_command.")
            .hint("For a database, put the password into ~/.pgpass (mode 0600).");
    }
    let nearest = known.iter().map(|known| (alike(known, key), known)).max_by(|one, other| one.0.total_cmp(&other.0));
    let error = Error::operator(format!("{place} has an unknown key \"{key}\""));
    let error = match nearest {
        Some((likeness, known)) if likeness >= ALIKE => error.hint(format!("Did you mean {known}?")),
        _ => error,
    };
    error.hint(format!("{whose} has the keys {}.", known.join(", ")))
}

fn alike(one: &str, other: &str) -> f64 {
    strsim::jaro_winkler(one, &other.to_lowercase().replace('-', "_"))
}
