//! Regular expressions in `pg_hba.conf` and `pg_ident.conf` (PostgreSQL: `regcomp_auth_token`).
//!
//! PostgreSQL's own dialect and the `regex` crate's agree on what such files are made of. Where the same characters
//! mean something else here, the line is refused: a rule that matched other names than it does on the upstream would
//! be worse than none. Which of several ways to match decides what `\1` is; that PostgreSQL prefers the longest
//! and `regex` the first is the one difference left.

use regex::{Regex, RegexBuilder};

/// A compiled expression; equal to another by its text.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl Pattern {
    /// Compiles what stands behind the slash.
    ///
    /// # Errors
    /// What is wrong with it, for the operator.
    pub(super) fn new(text: &str) -> Result<Pattern, String> {
        if let Some(what) = means_something_else(text) {
            return Err(format!(
                "regular expression \"{text}\" contains {what}, which walrelay does not read as PostgreSQL does; write it without"
            ));
        }
        let built = RegexBuilder::new(&in_ascii(text)).dot_matches_new_line(true).build();
        let reason = |error: regex::Error| {
            let text = error.to_string();
            text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ").to_owned()
        };
        built
            .map(Pattern)
            .map_err(|error| format!("invalid regular expression \"{text}\": {}", reason(error)))
    }

    /// Whether it fits anywhere in `name`.
    pub(super) fn matches(&self, name: &str) -> bool {
        self.0.is_match(name)
    }

    /// Whether it has a group that `\1` could stand for.
    pub(super) fn has_group(&self) -> bool {
        self.0.captures_len() > 1
    }

    /// `Some` if it fits; inside, what its first group fits, if it does.
    pub(super) fn first_group<'a>(&self, name: &'a str) -> Option<Option<&'a str>> {
        let captures = self.0.captures(name)?;
        Some(captures.get(1).map(|group| group.as_str()))
    }
}

/// Constructs that both dialects accept with different meanings.
fn means_something_else(text: &str) -> Option<&'static str> {
    let mut chars = text.chars().peekable();
    let mut in_brackets = false;
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some('b' | 'B' | '<' | '>')) => return Some("\\b, \\B, \\< or \\>"),
            ('\\', Some('d' | 'D' | 's' | 'S' | 'w' | 'W')) if !text.is_ascii() => {
                return Some("a class such as \\w beside characters that are not ASCII");
            }
            ('\\', Some('D' | 'S' | 'W')) if in_brackets => return Some("\\D, \\S or \\W within brackets"),
            ('\\', _) => {
                chars.next();
            }
            ('[', Some(':' | '.' | '=')) if in_brackets => skip_class(&mut chars),
            ('[', _) if in_brackets => return Some("a bracket within brackets"),
            ('&' | '-' | '~', Some(next)) if in_brackets && *next == c => {
                return Some("&&, -- or ~~ within brackets");
            }
            ('[', next) => {
                in_brackets = true;
                // A first ']' is itself, also behind '^'.
                if next == Some(&'^') {
                    chars.next();
                }
                chars.next_if_eq(&']');
            }
            (']', _) => in_brackets = false,
            ('(', Some('?')) => {
                let mut ahead = chars.clone();
                ahead.next();
                if ahead.next() != Some(':') {
                    return Some("(? without a colon");
                }
            }
            _ => {}
        }
    }
    None
}

/// The text with the classes `\d`, `\w`, `\s` and their opposites as PostgreSQL reads them in these files: in ASCII. The
/// crate's own have the digits and letters of every script.
fn in_ascii(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut in_brackets = false;
    while let Some(c) = chars.next() {
        if c == '\\' {
            let escaped = chars.next();
            let class = match escaped {
                Some('d' | 'D') => "0-9",
                Some('w' | 'W') => "[:alnum:]_",
                Some('s' | 'S') => "[:space:]",
                _ => {
                    result.push(c);
                    result.extend(escaped);
                    continue;
                }
            };
            let opposite = escaped.is_some_and(|escaped| escaped.is_ascii_uppercase());
            match (in_brackets, opposite) {
                (true, _) => result.push_str(class),
                (false, true) => result.extend(["[^", class, "]"]),
                (false, false) => result.extend(["[", class, "]"]),
            }
            continue;
        }
        result.push(c);
        match c {
            '[' if in_brackets => {
                // `[:alpha:]`: everything else was refused.
                for inner in chars.by_ref() {
                    result.push(inner);
                    if inner == ']' {
                        break;
                    }
                }
            }
            '[' => {
                in_brackets = true;
                result.extend(chars.next_if_eq(&'^'));
                result.extend(chars.next_if_eq(&']'));
            }
            ']' => in_brackets = false,
            _ => {}
        }
    }
    result
}

/// `:alpha:]`
fn skip_class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while let Some(c) = chars.next() {
        if c != '[' && chars.peek() == Some(&']') {
            chars.next();
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_dialects_read_alike_is_taken() {
        for (text, name, fits) in [
            ("^rep_[0-9]+$", "rep_17", true),
            ("^rep_[0-9]+$", "rep_", false),
            ("b", "abc", true),
            ("^[[:alpha:]_-]+$", "a_b-c", true),
            ("^[]a]+$", "]a]", true),
            ("^(a|b)\\.c$", "b.c", true),
            ("^a\\dz?$", "a7", true),
            ("^rep\\d$", "rep\u{661}", false),
            ("^\\w+$", "é", false),
            ("^[\\w-]+$", "a-b_1", true),
            ("^\\S\\D$", "é\u{661}", true),
            ("^a\\s[^]\\d]$", "a b", true),
            ("^a.b$", "a\nb", true),
        ] {
            assert_eq!(Pattern::new(text).unwrap().matches(name), fits, "{text}");
        }
        let pattern = Pattern::new("^(.*)@example\\.com$").unwrap();
        assert_eq!(pattern.first_group("joe@example.com"), Some(Some("joe")));
        assert_eq!(pattern.first_group("joe@example.org"), None);
    }

    #[test]
    fn what_they_read_differently_is_refused() {
        for text in [
            "\\bx", "a\\>", "[a&&b]", "[[a]b]", "(?i)x", "(?<n>x)", "(?=x)", "***=x", "(", "[a", "\\1",
            "ü\\w",
        ] {
            assert!(Pattern::new(text).is_err(), "{text}");
        }
    }
}
