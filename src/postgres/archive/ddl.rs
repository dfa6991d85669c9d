//! What the SQL of a dump says about its tables: just as much grammar as `pg_dump` writes. What is not recognised is passed
//! over; nothing here fails.

use std::ops::Range;

use super::tokens::{Token, tokenize};
use super::{Column, ForeignKey};
use crate::postgres::name::Name;
use crate::postgres::schema::OnDelete;

/// Tokens with their places in the text.
#[derive(Debug, Clone)]
pub struct Tokens<'a> {
    text: &'a str,
    list: Vec<(Token, Range<usize>)>,
    at: usize,
}

/// A name that may have been written without its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub schema: Option<String>,
    pub name: String,
}

impl Reference {
    /// Dumps of before 2018 leave out the schema that `search_path` names, which is that of the entry.
    pub fn within(self, schema: &str) -> Name {
        Name { schema: self.schema.unwrap_or_else(|| schema.to_owned()), name: self.name }
    }
}

/// What a statement of a dump is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    Table(Definition),
    /// A composite type, for tables that are made `OF` it.
    Type(Reference, Vec<Column>),
    PrimaryKey(Reference, Vec<String>),
    ForeignKey(Reference, Foreign),
    /// The partition, and what it is attached to.
    Attach(Reference, Reference),
    /// The table, and the columns when they are listed.
    Copy(Reference, Option<Vec<String>>),
    Insert(Reference),
    /// The schema that names without one belong to from here on.
    SearchPath(Option<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    pub name: Reference,
    pub elements: Elements,
    /// Tables, or the one type, whose columns come before its own.
    pub inherits: Vec<Reference>,
    pub partition_of: Option<Reference>,
}

/// What the parentheses of a CREATE TABLE hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elements {
    pub columns: Vec<Column>,
    pub primary_key: Option<Vec<String>>,
    /// Columns that a constraint of the table, which may be on an inherited column, says are never null.
    pub not_null: Vec<String>,
}

/// A foreign key whose parent may be unqualified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    pub constraint: String,
    pub columns: Vec<String>,
    pub parent: Reference,
    pub parent_columns: Vec<String>,
    pub on_delete: OnDelete,
}

impl Foreign {
    pub fn within(self, schema: &str) -> ForeignKey {
        ForeignKey {
            constraint: self.constraint,
            columns: self.columns,
            parent: self.parent.within(schema),
            parent_columns: self.parent_columns,
            on_delete: self.on_delete,
        }
    }
}

/// The statements of a text that are of interest, in order.
pub fn statements(text: &str) -> Vec<Statement> {
    let mut tokens = Tokens::new(text);
    let mut found = Vec::new();
    while tokens.at < tokens.list.len() {
        let end = tokens.end_of_statement();
        let mut one = Tokens { text, list: tokens.list[tokens.at..end].to_vec(), at: 0 };
        found.extend(one.statement());
        tokens.at = end + 1;
    }
    found
}

/// An index or a key, when a definition makes it and does nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alone {
    /// An index of this table, which is no partitioned one.
    Index(Name),
    /// A key that is all columns and no options.
    Key(Key),
}

/// A key of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Not a partitioned one.
    pub table: Name,
    /// Its name, and that of its index.
    pub constraint: String,
    /// Else it only says that values are unique.
    pub primary: bool,
    /// At least one.
    pub columns: Vec<String>,
}

impl Alone {
    /// `None` for all else, and for tables that are named without their schema.
    pub fn of(definition: &str) -> Option<Self> {
        let mut tokens = Tokens::new(definition);
        let end = tokens.end_of_statement();
        if end + 1 < tokens.list.len() {
            return None;
        }
        tokens.list.truncate(end);
        if tokens.words(&["create", "index"]) || tokens.words(&["create", "unique", "index"]) {
            tokens.identifier()?;
            // ON ONLY would be read as a table of that name, which USING does not follow.
            let table = if tokens.words(&["on"]) { tokens.reference()? } else { return None };
            return tokens.is_word("using").then_some(Self::Index(Name { schema: table.schema?, name: table.name }));
        }
        if !tokens.words(&["alter", "table", "only"]) {
            return None;
        }
        let table = tokens.reference()?;
        let table = Name { schema: table.schema?, name: table.name };
        let constraint = if tokens.words(&["add", "constraint"]) { tokens.identifier()? } else { return None };
        let primary = tokens.words(&["primary", "key"]);
        let mut columns = Vec::new();
        if !(primary || tokens.words(&["unique"])) || !tokens.symbol('(') {
            return None;
        }
        loop {
            columns.push(tokens.identifier()?);
            if !tokens.symbol(',') {
                break;
            }
        }
        (tokens.symbol(')') && tokens.peek().is_none()).then_some(Self::Key(Key {
            table,
            constraint,
            primary,
            columns,
        }))
    }
}

/// What a column's type ends at.
const AFTER_TYPE: &[&str] = &[
    "collate",
    "default",
    "not",
    "null",
    "constraint",
    "check",
    "generated",
    "primary",
    "unique",
    "references",
    "storage",
    "compression",
    "options",
    "deferrable",
    "initially",
];

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, list: tokenize(text), at: 0 }
    }

    fn peek(&self) -> Option<&Token> {
        self.list.get(self.at).map(|(token, _)| token)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Token::Word(found)) if found == word)
    }

    /// Takes these words when they come next, all or none.
    fn words(&mut self, words: &[&str]) -> bool {
        let start = self.at;
        for word in words {
            if !self.is_word(word) {
                self.at = start;
                return false;
            }
            self.at += 1;
        }
        true
    }

    fn symbol(&mut self, symbol: char) -> bool {
        let found = self.peek() == Some(&Token::Symbol(symbol));
        self.at += usize::from(found);
        found
    }

    fn identifier(&mut self) -> Option<String> {
        let name = match self.peek()? {
            Token::Word(name) | Token::Quoted(name) => name.clone(),
            Token::Symbol(_) | Token::Literal => return None,
        };
        self.at += 1;
        Some(name)
    }

    fn reference(&mut self) -> Option<Reference> {
        let first = self.identifier()?;
        if self.symbol('.') {
            return Some(Reference { schema: Some(first), name: self.identifier()? });
        }
        Some(Reference { schema: None, name: first })
    }

    /// The names in a pair of parentheses; what stands among them that is no name, such as `WITHOUT OVERLAPS`, is left out.
    fn names(&mut self) -> Option<Vec<String>> {
        if !self.symbol('(') {
            return None;
        }
        let mut names = Vec::new();
        while !self.symbol(')') {
            // PERIOD marks the last column of a temporal foreign key; a column of that name is followed by no other name.
            let name_follows = match self.list.get(self.at + 1) {
                Some((Token::Word(word), _)) => word != "without",
                Some((token, _)) => matches!(token, Token::Quoted(_)),
                None => false,
            };
            if self.is_word("period") && name_follows {
                self.at += 1;
            }
            names.push(self.identifier()?);
            while !matches!(self.peek(), Some(Token::Symbol(',' | ')')) | None) {
                self.at += 1;
            }
            self.symbol(',');
            self.peek()?;
        }
        Some(names)
    }

    /// Passes over what is in the parentheses that open here.
    fn skip_parentheses(&mut self) {
        let mut depth = 0_usize;
        while let Some(token) = self.peek() {
            match token {
                Token::Symbol('(') => depth += 1,
                Token::Symbol(')') => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
    }

    fn end_of_statement(&self) -> usize {
        let mut depth = 0_usize;
        for (index, (token, _)) in self.list.iter().enumerate().skip(self.at) {
            match token {
                Token::Symbol('(') => depth += 1,
                Token::Symbol(')') => depth = depth.saturating_sub(1),
                Token::Symbol(';') if depth == 0 => return index,
                _ => {}
            }
        }
        self.list.len()
    }

    fn statement(&mut self) -> Option<Statement> {
        if self.words(&["create"]) {
            if self.words(&["type"]) {
                let name = self.reference()?;
                return self.words(&["as"]).then(|| Statement::Type(name, self.elements().columns));
            }
            while ["unlogged", "foreign", "global", "local", "temp", "temporary"].iter().any(|word| self.words(&[word]))
            {
            }
            return if self.words(&["table"]) { self.table().map(Statement::Table) } else { None };
        }
        if self.words(&["alter", "table"]) || self.words(&["alter", "foreign", "table"]) {
            self.words(&["if", "exists"]);
            self.words(&["only"]);
            let table = self.reference()?;
            return self.alteration(table);
        }
        if self.words(&["copy"]) {
            let table = self.reference()?;
            let columns = self.names();
            let ends = self.words(&["from", "stdin"]) && self.peek().is_none();
            return ends.then_some(Statement::Copy(table, columns));
        }
        if self.words(&["insert", "into"]) {
            return self.reference().map(Statement::Insert);
        }
        if self.words(&["set", "search_path"]) && (self.symbol('=') || self.words(&["to"])) {
            return Some(Statement::SearchPath(self.identifier()));
        }
        None
    }

    fn table(&mut self) -> Option<Definition> {
        self.words(&["if", "not", "exists"]);
        let name = self.reference()?;
        let mut inherits = Vec::new();
        let mut partition_of = None;
        if self.words(&["of"]) {
            inherits.push(self.reference()?);
        } else if self.words(&["partition", "of"]) {
            let root = self.reference()?;
            inherits.push(root.clone());
            partition_of = Some(root);
        }
        let elements = self.elements();
        if self.words(&["inherits"]) && self.symbol('(') {
            while let Some(parent) = self.reference() {
                inherits.push(parent);
                self.symbol(',');
            }
        }
        Some(Definition { name, elements, inherits, partition_of })
    }

    /// The parenthesised list of columns and constraints of a table or a type.
    fn elements(&mut self) -> Elements {
        let mut found = Elements::default();
        if !self.symbol('(') {
            return found;
        }
        while !self.symbol(')') && self.peek().is_some() {
            let constraint = self.words(&["constraint"]);
            if constraint {
                self.identifier();
            }
            // Other words that constraints begin with are reserved, so columns of such names are quoted.
            let of_table = ["check", "unique", "foreign", "like"].iter().any(|word| self.is_word(word))
                || self.is_word("exclude") && matches!(self.list.get(self.at + 1), Some((Token::Symbol('('), _)))
                || self.words(&["exclude", "using"]);
            if self.words(&["primary", "key"]) {
                found.primary_key = self.names();
            } else if self.words(&["not", "null"]) {
                found.not_null.extend(self.identifier());
            } else if !constraint && !of_table {
                let before = found.columns.len();
                found.columns.extend(self.column(&mut found.primary_key));
                if found.columns.len() == before {
                    self.at += 1;
                }
            }
            while !matches!(self.peek(), Some(Token::Symbol(',' | ')')) | None) {
                self.step();
            }
            self.symbol(',');
        }
        found
    }

    /// One token, or all of a pair of parentheses.
    fn step(&mut self) {
        if self.peek() == Some(&Token::Symbol('(')) { self.skip_parentheses() } else { self.at += 1 }
    }

    fn column(&mut self, primary_key: &mut Option<Vec<String>>) -> Option<Column> {
        let name = self.identifier()?;
        // Of a typed table: name WITH OPTIONS NOT NULL.
        self.words(&["with"]);
        let start = self.at;
        while let Some(token) = self.peek() {
            match token {
                Token::Symbol(',' | ')') => break,
                Token::Word(word) if AFTER_TYPE.contains(&word.as_str()) => break,
                // What follows a dot is the name of a type, whatever it is.
                Token::Symbol('.') => self.at += 2,
                _ => self.step(),
            }
        }
        let type_sql = self.slice(start, self.at).to_owned();
        let mut column = Column { name, type_sql, not_null: false, generated: false };
        while !matches!(self.peek(), Some(Token::Symbol(',' | ')')) | None) {
            if self.words(&["not", "null"]) {
                column.not_null = true;
            } else if self.words(&["generated", "always", "as"]) {
                column.generated = !self.is_word("identity");
            } else if self.words(&["primary", "key"]) {
                *primary_key = Some(vec![column.name.clone()]);
                column.not_null = true;
            } else {
                self.step();
            }
        }
        Some(column)
    }

    fn slice(&self, start: usize, end: usize) -> &'a str {
        match (self.list.get(start), end.checked_sub(1).and_then(|last| self.list.get(last))) {
            (Some((_, first)), Some((_, last))) if start < end => &self.text[first.start..last.end],
            _ => "",
        }
    }

    fn alteration(&mut self, table: Reference) -> Option<Statement> {
        if self.words(&["attach", "partition"]) {
            return Some(Statement::Attach(self.reference()?, table));
        }
        if !self.words(&["add"]) {
            return None;
        }
        let constraint = if self.words(&["constraint"]) { self.identifier()? } else { String::new() };
        if self.words(&["primary", "key"]) {
            return Some(Statement::PrimaryKey(table, self.names()?));
        }
        if !self.words(&["foreign", "key"]) {
            return None;
        }
        let columns = self.names()?;
        if !self.words(&["references"]) {
            return None;
        }
        let parent = self.reference()?;
        let parent_columns = self.names().unwrap_or_default();
        let mut on_delete = OnDelete::NoAction;
        while self.peek().is_some() {
            if self.words(&["on", "delete"]) {
                on_delete = if self.words(&["cascade"]) {
                    OnDelete::Cascade
                } else if self.words(&["restrict"]) {
                    OnDelete::Restrict
                } else if self.words(&["set", "null"]) {
                    OnDelete::SetNull
                } else if self.words(&["set", "default"]) {
                    OnDelete::SetDefault
                } else {
                    OnDelete::NoAction
                };
            } else {
                self.at += 1;
            }
        }
        Some(Statement::ForeignKey(table, Foreign { constraint, columns, parent, parent_columns, on_delete }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_or_a_key_is_told_when_nothing_else_is_done() {
        let index = |table: &str| Some(Alone::Index(Name::new("public", table)));
        for (definition, alone) in [
            ("CREATE INDEX i ON public.t USING btree (a);\n", index("t")),
            ("CREATE UNIQUE INDEX \"I;\" ON public.\"T\" USING gin (f(';'::text)) WHERE (a > 1)", index("T")),
            ("CREATE INDEX i ON ONLY public.t USING btree (a);", None),
            ("CREATE INDEX i ON t USING btree (a);", None),
            ("CREATE INDEX i ON public.t USING btree (a);\n\nALTER TABLE public.t CLUSTER ON i;\n", None),
            ("CREATE INDEX CONCURRENTLY i ON public.t USING btree (a);", None),
        ] {
            assert_eq!(Alone::of(definition), alone, "{definition}");
        }
        let key = |key: &str| Alone::of(&format!("ALTER TABLE ONLY public.t\n    ADD CONSTRAINT \"K\" {key};\n"));
        let expected = |primary, columns: &[&str]| {
            let columns = columns.iter().map(|column| (*column).to_owned()).collect();
            Some(Alone::Key(Key { table: Name::new("public", "t"), constraint: "K".into(), primary, columns }))
        };
        assert_eq!(key("PRIMARY KEY (id, \"B c\")"), expected(true, &["id", "B c"]));
        assert_eq!(key("UNIQUE (id)"), expected(false, &["id"]));
        for other in [
            "UNIQUE NULLS NOT DISTINCT (id)",
            "UNIQUE (id) DEFERRABLE",
            "UNIQUE (id) INCLUDE (a)",
            "PRIMARY KEY (id) WITH (fillfactor='70')",
            "PRIMARY KEY (id, at WITHOUT OVERLAPS)",
            "PRIMARY KEY (id) USING INDEX TABLESPACE fast",
            "CHECK ((id > 0))",
            "FOREIGN KEY (id) REFERENCES public.u(id)",
            "PRIMARY KEY (id); DROP TABLE public.t",
        ] {
            assert_eq!(key(other), None, "{other}");
        }
        assert_eq!(Alone::of(""), None);
    }
}
