//! String literals of a source, each with the code before it: no comments, no characters, no lifetimes.

/// One of them.
pub(super) struct Literal<'a> {
    /// Where it begins in the source.
    pub(super) at: usize,
    /// The code before it, to the file's start.
    pub(super) before: &'a str,
    /// As the program has it, but for braces and what escapes stand for beyond lines and quotes.
    pub(super) text: String,
}

/// All of them, in their order.
pub(super) fn literals(source: &str) -> Vec<Literal<'_>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(rest) = source.get(at..).filter(|rest| !rest.is_empty()) {
        let named = source[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        at += match rest.as_bytes() {
            [b'/', b'/', ..] => rest.find('\n').unwrap_or(rest.len()),
            [b'/', b'*', ..] => rest.find("*/").map_or(rest.len(), |end| end + 2),
            [b'\'', ..] => character(rest),
            [b'r', b'"' | b'#', ..] if !named || source[..at].ends_with('b') => match raw(rest) {
                Some((text, len)) => {
                    found.push(Literal { at, before: &source[..at], text: text.to_owned() });
                    len
                }
                None => 1,
            },
            [b'"', ..] => {
                let len = quoted(rest);
                let text = plain(rest.get(1..len - 1).unwrap_or_default());
                found.push(Literal { at, before: &source[..at], text });
                len
            }
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
    }
    found
}

/// Length of a character literal, or of the quote of a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => rest[3..].find('\'').map_or(1, |end| end + 4),
        Some(_) => chars.next().filter(|(_, c)| *c == '\'').map_or(1, |(end, _)| end + 1),
        None => 1,
    }
}

fn raw(rest: &str) -> Option<(&str, usize)> {
    let hashes = rest[1..].chars().take_while(|c| *c == '#').count();
    let body = rest[1 + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let len = body.find(&end)?;
    Some((&body[..len], 1 + hashes + 1 + len + end.len()))
}

/// Length with both quotes.
fn quoted(rest: &str) -> usize {
    let (mut escaped, mut len) = (false, 1);
    for c in rest[1..].chars() {
        len += c.len_utf8();
        match c {
            '"' if !escaped => break,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    len
}

fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some('\n')) => while chars.next_if(|c| c.is_whitespace()).is_some() {},
            ('\\', Some('n' | 'r' | 't')) => {
                chars.next();
                out.push(' ');
            }
            ('\\', Some('"' | '\\' | '\'')) => out.extend(chars.next()),
            (c, _) => out.push(c),
        }
    }
    out
}

#[test]
fn literals_are_told_from_what_looks_like_them() {
    let source = r##"
        // "a comment" it's
        let x: &'static str = "one \"two\" \
            three"; /* "no" */ let c = '"'; let d = '\''; let e = '\u{20}';
        f(b"bytes", r#"raw "text""#, r"\d+"); let for_r = "last";
    "##;
    let texts: Vec<String> = literals(source).into_iter().map(|it| it.text).collect();
    assert_eq!(texts, ["one \"two\" three", "bytes", "raw \"text\"", r"\d+", "last"]);
    assert!(literals(source)[4].before.ends_with("let for_r = "));
}
