//! The little SQL that is read, never run: the columns of a CREATE TABLE and of a COPY, as pg_dump writes them.

use super::Column;

/// The columns of `CREATE TABLE name (...)`, in order.
pub(super) fn columns(definition: &str) -> Vec<Column> {
    let Some(body) = parenthesised(definition) else { return Vec::new() };
    split(body).into_iter().filter_map(column).collect()
}

/// The columns of `COPY name (a, "B") FROM stdin;`; `None` when it names none.
pub(super) fn copied(copy: &str) -> Option<Vec<String>> {
    let names = split(parenthesised(copy)?).into_iter().filter_map(|part| word(part).map(|(name, _)| name)).collect();
    Some(names)
}

/// What stands between the first parenthesis outside quotes and the one that closes it.
fn parenthesised(sql: &str) -> Option<&str> {
    let (mut depth, mut start, mut quote) = (0usize, None, None);
    for (at, letter) in sql.char_indices() {
        match (quote, letter) {
            (Some(open), _) if open == letter => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(letter),
            (None, '(') => {
                if depth == 0 {
                    start = Some(at + 1);
                }
                depth += 1;
            }
            (None, ')') => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return sql.get(start?..at);
                }
            }
            (None, _) => {}
        }
    }
    None
}

/// Splits at commas outside quotes and parentheses.
fn split(body: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut depth, mut quote) = (Vec::new(), 0, 0i32, None);
    for (at, letter) in body.char_indices() {
        match (quote, letter) {
            (Some(open), _) if open == letter => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(letter),
            (None, '(' | '[') => depth += 1,
            (None, ')' | ']') => depth -= 1,
            (None, ',') if depth == 0 => {
                parts.push(body[begin..at].trim());
                begin = at + 1;
            }
            (None, _) => {}
        }
    }
    parts.push(body[begin..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

/// The first word, unquoted, and the rest.
fn word(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    if let Some(rest) = text.strip_prefix('"') {
        let mut name = String::new();
        let mut letters = rest.char_indices().peekable();
        while let Some((at, letter)) = letters.next() {
            if letter != '"' {
                name.push(letter);
            } else if letters.next_if(|(_, next)| *next == '"').is_some() {
                name.push('"');
            } else {
                return Some((name, &rest[at + 1..]));
            }
        }
        return None;
    }
    let end = text.find(|letter: char| letter.is_whitespace() || letter == '(' || letter == ',').unwrap_or(text.len());
    (end > 0).then(|| (text[..end].to_owned(), &text[end..]))
}

/// Words that end a column's type.
const AFTER_TYPE: [&str; 10] =
    ["DEFAULT", "NOT", "NULL", "CONSTRAINT", "COLLATE", "GENERATED", "CHECK", "PRIMARY", "UNIQUE", "REFERENCES"];

fn column(part: &str) -> Option<Column> {
    if ["CONSTRAINT ", "CHECK ", "PRIMARY KEY", "UNIQUE ", "FOREIGN KEY", "EXCLUDE "]
        .iter()
        .any(|start| part.starts_with(start))
    {
        return None;
    }
    let (name, rest) = word(part)?;
    let mut type_end = rest.len();
    let mut depth = 0i32;
    let mut boundary = true;
    let mut quoted = false;
    for (at, letter) in rest.char_indices() {
        if quoted {
            quoted = letter != '"';
            continue;
        }
        match letter {
            '"' => quoted = true,
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            _ => {}
        }
        if boundary && depth == 0 && AFTER_TYPE.iter().any(|word| starts_with_word(&rest[at..], word)) {
            type_end = at;
            break;
        }
        boundary = letter.is_whitespace();
    }
    let tail = &rest[type_end..];
    Some(Column {
        name,
        type_sql: rest[..type_end].trim().to_owned(),
        not_null: tail.contains("NOT NULL"),
        generated: tail.contains("GENERATED ALWAYS AS (") && tail.contains(") STORED"),
    })
}

fn starts_with_word(text: &str, word: &str) -> bool {
    text.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '(', '\n']))
}
