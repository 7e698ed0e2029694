//! Lines and tokens of `pg_hba.conf` (PostgreSQL: `tokenize_auth_file`, `next_token`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{HbaError, Place};
use crate::permissions::read_rules;

/// How deep files may include each other (PG: `CONF_FILE_MAX_DEPTH`).
const MAX_DEPTH: usize = 10;

/// A word; quotes take a keyword's meaning away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) quoted: bool,
}

impl Token {
    /// The role of `+role`.
    pub(super) fn membership(&self) -> Option<&str> {
        self.text.strip_prefix('+').filter(|_| !self.quoted)
    }

    pub(super) fn is_keyword(&self, keyword: &str) -> bool {
        !self.quoted && self.text == keyword
    }
}

/// A line that is not blank: fields of one or more tokens, which commas joined.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) place: Place,
    pub(super) fields: Vec<Vec<Token>>,
}

/// The lines of a file and of all it includes, in order.
pub(super) fn read_file(path: &Path) -> Result<Vec<Line>, HbaError> {
    let mut lines = Vec::new();
    let text = read(path)?;
    read_text(path, &text, 0, &mut lines)?;
    Ok(lines)
}

fn read(path: &Path) -> Result<String, HbaError> {
    read_rules(path).map_err(|source| HbaError::File { path: path.to_owned(), source })
}

/// The lines of a file's text; files that it includes are looked for beside `path`.
pub(super) fn read_text(
    path: &Path,
    text: &str,
    depth: usize,
    lines: &mut Vec<Line>,
) -> Result<(), HbaError> {
    let path: Arc<Path> = path.into();
    let mut rest = text.lines().enumerate();
    while let Some((n, line)) = rest.next() {
        let mut line = line.to_owned();
        while line.ends_with('\\') {
            line.pop();
            line.push_str(rest.next().map_or("", |(_, next)| next));
        }
        let place = Place { path: path.clone(), line: n + 1 };
        let fields = fields(&line, &place, depth)?;
        match &fields[..] {
            [] => {}
            [first, ..] if is_include(first) => include(&fields, &place, depth, lines)?,
            _ => lines.push(Line { place, fields }),
        }
    }
    Ok(())
}

fn is_include(field: &[Token]) -> bool {
    let words = ["include", "include_if_exists", "include_dir"];
    field.first().is_some_and(|token| words.iter().any(|word| token.is_keyword(word)))
}

fn include(
    fields: &[Vec<Token>],
    place: &Place,
    depth: usize,
    lines: &mut Vec<Line>,
) -> Result<(), HbaError> {
    let [directive, target] = fields else {
        return Err(place.error("an include line needs exactly one file or directory name"));
    };
    let ([directive], [target]) = (&directive[..], &target[..]) else {
        return Err(place.error("an include line takes no lists; write one line for each file"));
    };
    let target = place.beside(&target.text);
    check_depth(&target, place, depth)?;
    match directive.text.as_str() {
        "include_dir" => {
            for file in files_in(&target).map_err(|source| HbaError::Io { path: target, source })? {
                read_included(&file, depth, lines)?;
            }
            Ok(())
        }
        "include_if_exists" if !target.exists() => Ok(()),
        _ => read_included(&target, depth, lines),
    }
}

fn read_included(file: &Path, depth: usize, lines: &mut Vec<Line>) -> Result<(), HbaError> {
    let text = read(file)?;
    read_text(file, &text, depth + 1, lines)
}

/// Files named `*.conf` that are not hidden, in the order of their bytes.
fn files_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    let wanted = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        !name.starts_with(b".") && name.ends_with(b".conf") && path.is_file()
    };
    let mut files: Vec<_> = names.into_iter().filter(wanted).collect();
    files.sort();
    Ok(files)
}

fn check_depth(target: &Path, place: &Place, depth: usize) -> Result<(), HbaError> {
    if depth >= MAX_DEPTH {
        return Err(
            place.error(format!("could not include \"{}\": files are nested too deeply", target.display()))
        );
    }
    Ok(())
}

/// Splits a line; `@file` in a field stands for the tokens in that file.
fn fields(line: &str, place: &Place, depth: usize) -> Result<Vec<Vec<Token>>, HbaError> {
    let mut scanner = Scanner { rest: line };
    let mut fields = Vec::new();
    while let Some(field) = scanner.field(place)? {
        let mut expanded = Vec::new();
        for token in field {
            expand(token, place, depth, &mut expanded)?;
        }
        fields.push(expanded);
    }
    Ok(fields)
}

fn expand(token: Token, place: &Place, depth: usize, into: &mut Vec<Token>) -> Result<(), HbaError> {
    let Some(name) = token.text.strip_prefix('@').filter(|name| !token.quoted && !name.is_empty()) else {
        into.push(token);
        return Ok(());
    };
    let path = place.beside(name);
    check_depth(&path, place, depth)?;
    let text = read(&path)?;
    let path: Arc<Path> = path.into();
    for (n, line) in text.lines().enumerate() {
        let place = Place { path: path.clone(), line: n + 1 };
        into.extend(fields(line, &place, depth + 1)?.into_iter().flatten());
    }
    Ok(())
}

struct Scanner<'a> {
    rest: &'a str,
}

impl Scanner<'_> {
    fn field(&mut self, place: &Place) -> Result<Option<Vec<Token>>, HbaError> {
        let mut tokens = Vec::new();
        while let Some((token, comma)) = self.token(place)? {
            tokens.push(token);
            if !comma {
                break;
            }
        }
        Ok((!tokens.is_empty()).then_some(tokens))
    }

    /// The next token, and whether a comma follows it.
    fn token(&mut self, place: &Place) -> Result<Option<(Token, bool)>, HbaError> {
        self.rest = self.rest.trim_start_matches(|c: char| is_blank(c) || c == ',');
        let mut token = Token { text: String::new(), quoted: false };
        let (mut in_quotes, mut saw_quotes) = (false, false);
        let mut chars = self.rest.char_indices().peekable();
        let mut end = (self.rest.len(), self.rest.len(), false);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' if in_quotes && chars.next_if(|(_, next)| *next == '"').is_some() => token.text.push('"'),
                '"' => {
                    token.quoted |= token.text.is_empty() && !saw_quotes;
                    (in_quotes, saw_quotes) = (!in_quotes, true);
                }
                _ if in_quotes => token.text.push(c),
                '#' => break,
                ',' => {
                    end = (at, at + 1, true);
                    break;
                }
                _ if is_blank(c) => {
                    end = (at, at, false);
                    break;
                }
                _ => token.text.push(c),
            }
        }
        if in_quotes {
            return Err(place.error("a quoted name does not end on its line"));
        }
        self.rest = &self.rest[end.1..];
        Ok((saw_quotes || !token.text.is_empty()).then_some((token, end.2)))
    }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r')
}
