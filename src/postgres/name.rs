//! Names of tables and columns, and the only place where an identifier is quoted. Everything that reaches a server as
//! SQL text passes through here; values never do, they are bound or copied.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// PostgreSQL cuts longer identifiers silently (NAMEDATALEN 64), so two of ours could become one.
pub const LONGEST: usize = 63;

/// A table, view or sequence: schema and name, unquoted, as the catalog holds them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Name {
    /// As the catalog holds it; capitals and blanks are part of it.
    pub schema: String,
    /// Of the relation itself, in the same form.
    pub name: String,
}

impl Name {
    /// Takes names as the catalog holds them, unchecked; what people type goes through [`Name::parse`].
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// Reads what an operator types: `distributions`, `public.distributions`, `"Odd Schema"."Table"`. As in SQL, what is
    /// not quoted is folded to lower case; a missing schema means `public`.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::operator(format!("\"{text}\" is not a table name: {why}"))
                .hint("Write SCHEMA.TABLE, with double quotes around a name that has capitals, spaces or dots.")
        };
        let mut parts = Vec::new();
        let mut letters = text.trim().chars().peekable();
        loop {
            let mut part = String::new();
            if letters.next_if_eq(&'"').is_some() {
                loop {
                    match letters.next() {
                        Some('"') if letters.next_if_eq(&'"').is_some() => part.push('"'),
                        Some('"') => break,
                        Some(letter) => part.push(letter),
                        None => return Err(wrong("a quote is not closed")),
                    }
                }
            } else {
                while let Some(letter) = letters.next_if(|letter| *letter != '.' && *letter != '"') {
                    part.extend(letter.to_lowercase());
                }
            }
            check(&part).map_err(|error| wrong(&error.message))?;
            parts.push(part);
            match letters.next() {
                None => break,
                Some('.') => {}
                Some(_) => return Err(wrong("a dot is expected after a quoted name")),
            }
        }
        match <[String; 2]>::try_from(parts) {
            Ok([schema, name]) => Ok(Self { schema, name }),
            Err(mut parts) if parts.len() == 1 => Ok(Self::new("public", parts.remove(0))),
            Err(_) => Err(wrong("it has more than two parts")),
        }
    }

    /// The name as SQL: `"public"."distributions"`.
    pub fn sql(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }
}

/// As an operator would write it: quoted only where SQL needs it.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (part, end) in [(&self.schema, "."), (&self.name, "")] {
            let plain = part.starts_with(|letter: char| letter.is_ascii_lowercase() || letter == '_')
                && part.chars().all(|letter| matches!(letter, 'a'..='z' | '0'..='9' | '_'));
            if plain {
                write!(f, "{part}{end}")?;
            } else {
                write!(f, "{}{end}", quote(part))?;
            }
        }
        Ok(())
    }
}

/// Refuses what a server would change silently or not take at all.
pub fn check(identifier: &str) -> Result<()> {
    if identifier.is_empty() {
        Err(Error::operator("a name is empty"))
    } else if identifier.len() > LONGEST {
        Err(Error::operator(format!("a name is longer than {LONGEST} bytes")))
    } else if identifier.contains('\0') {
        Err(Error::operator("a name has a NUL byte in it"))
    } else {
        Ok(())
    }
}

/// The identifier as SQL, always in double quotes.
pub fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// Several identifiers as SQL, for a column list.
pub fn quote_list<S: AsRef<str>>(identifiers: impl IntoIterator<Item = S>) -> String {
    let quoted: Vec<_> = identifiers.into_iter().map(|identifier| quote(identifier.as_ref())).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_as_sql_does() {
        assert_eq!(Name::parse("Distributions").unwrap(), Name::new("public", "distributions"));
        assert_eq!(Name::parse("a.b").unwrap(), Name::new("a", "b"));
        assert_eq!(Name::parse(r#""Odd.One"."Say ""hi""""#).unwrap(), Name::new("Odd.One", "Say \"hi\""));
        for wrong in ["", "a.", "a.b.c", "\"a", "\"a\"b", &"x".repeat(64)] {
            assert!(Name::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_can_be_typed() {
        for name in [Name::new("public", "a_1"), Name::new("Odd.One", "say \"hi\""), Name::new("1", "ü")] {
            assert_eq!(Name::parse(&name.to_string()).unwrap(), name);
        }
    }
}
