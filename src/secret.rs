//! The one type for secrets. It prints as `[secret]`, serialises nowhere, is wiped when dropped, and can be read from a
//! file, a command or the environment, but never from an argument.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// How long a password command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_mins(1);

/// A password or a key. Reading it takes a call of [`Secret::reveal`], which is easy to search for.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over, so that no other copy stays behind.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// Hands out the text to the one call that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The first line of a file, as restic reads a password file.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|error| {
            Error::operator(format!("cannot read the password file {}", path.display()))
                .detail(error)
                .hint("Check the path and that you may read it.")
        })?;
        Ok(Self::first_line(&text))
    }

    /// The first line that a command prints. The command is split into words and run without a shell, as restic does.
    pub fn from_command(command: &str) -> Result<Self> {
        let failed = |why: String| {
            Error::operator("the password command gave no password")
                .detail(why)
                .hint("Run the command by hand: it must print the password on one line and end with exit code 0.")
        };
        let words = split_words(command).ok_or_else(|| failed("a quote in it is not closed".into()))?;
        let Some((program, arguments)) = words.split_first() else { return Err(failed("it is empty".into())) };
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let id = child.id();
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        let output = receiver
            .recv_timeout(COMMAND_TIMEOUT)
            .map_err(|_| failed(format!("process {id} was still running after {} s", COMMAND_TIMEOUT.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        let text = Zeroizing::new(String::from_utf8(output.stdout).map_err(|_| failed("it is not UTF-8".into()))?);
        if !output.status.success() {
            return Err(failed(output.status.to_string()));
        }
        Ok(Self::first_line(&text))
    }

    fn first_line(text: &str) -> Self {
        Self::new(text.lines().next().unwrap_or_default().to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Words of a command, with single and double quotes and backslash; `None` for an open quote.
fn split_words(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut letters = command.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().push(letters.next()?),
            (None, _) if letter.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_redacted_when_printed() {
        assert_eq!(format!("{:?}", Secret::new("canary".into())), "[secret]");
    }

    #[test]
    fn reads_the_first_line_of_a_command() {
        let secret = Secret::from_command("printf 'one two\\nthree'").unwrap();
        assert_eq!(secret.reveal(), "one two");
    }

    #[test]
    fn a_failing_command_is_refused() {
        assert_eq!(Secret::from_command("false").unwrap_err().message, "the password command gave no password");
    }

    #[test]
    fn splits_words_as_a_shell_would() {
        assert_eq!(split_words(r#"a 'b c' "d \" e" f\ g"#).unwrap(), ["a", "b c", "d \" e", "f g"]);
        assert_eq!(split_words("a 'b"), None);
    }
}
