//! What a server waits for: the value of `synchronous_standby_names` (PostgreSQL: `syncrep_gram.y`).

use super::lexer::{Token, Tokens};
use super::parser::{ExpressionError, Problem, unexpected};
use std::str::FromStr;

/// So many standbys must confirm a commit, of those that are named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SynchronousStandbys {
    /// How many; which of them it prefers makes no difference once they have gone.
    pub count: usize,
    /// Their names, each once, whatever the case of their letters; `*` is left out.
    pub names: Vec<String>,
    /// Whether `*` is among the names: any standby will do.
    pub is_any: bool,
}

impl SynchronousStandbys {
    /// Who of them can still confirm commits when nobody of those who are `fenced` confirms anything.
    pub fn left<'a>(&'a self, fenced: &[&str]) -> Vec<&'a str> {
        let is_fenced = |name: &str| fenced.iter().any(|fenced| fenced.eq_ignore_ascii_case(name));
        self.names.iter().map(String::as_str).filter(|name| !is_fenced(name)).collect()
    }

    /// Whether no commit can be confirmed when nobody of those who are `fenced` confirms anything, as long as no two
    /// standbys carry one name.
    pub fn is_stopped_by(&self, fenced: &[&str]) -> bool {
        !self.is_any && self.left(fenced).len() < self.count
    }
}

impl FromStr for SynchronousStandbys {
    type Err = ExpressionError;

    fn from_str(text: &str) -> Result<SynchronousStandbys, ExpressionError> {
        let mut parser = Parser(Tokens::of(text)?);
        let count = parser.count()?;
        let (names, is_any) = parser.names()?;
        let is_list = count.is_some();
        match parser.0.next() {
            (Some(Token::Close), _) if is_list => match parser.0.next() {
                (None, _) => {}
                (other, at) => return Err(unexpected(at, "the end", other)),
            },
            (None, _) if !is_list => {}
            (other, at) => return Err(unexpected(at, "a comma or the end of the list", other)),
        }
        Ok(SynchronousStandbys { count: count.unwrap_or(1), names, is_any })
    }
}

struct Parser(Tokens);

impl Parser {
    /// `[ANY | FIRST] n (`; `None` where a list stands alone.
    fn count(&mut self) -> Result<Option<usize>, ExpressionError> {
        let is_word = self.0.accept(is_method);
        let is_number = |token: &Token| matches!(token, Token::Number(_));
        let is_counted = self.0.are_ahead([is_number, |token| *token == Token::Open]);
        if !is_word && !is_counted {
            return Ok(None);
        }
        let (number, at) = match self.0.next() {
            (Some(Token::Number(digits)), at) => (digits, at),
            (other, at) => return Err(unexpected(at, "how many", other)),
        };
        let number = number.parse().map_err(|_| ExpressionError {
            at,
            problem: Problem::Expected { expected: "a number", found: format!("\"{number}\"") },
        })?;
        if number == 0 {
            return Err(ExpressionError { at, problem: Problem::NoneOf });
        }
        match self.0.next() {
            (Some(Token::Open), _) => Ok(Some(number)),
            (other, at) => Err(unexpected(at, "(", other)),
        }
    }

    /// The names, each once, and whether `*` was among them.
    fn names(&mut self) -> Result<(Vec<String>, bool), ExpressionError> {
        let (mut names, mut is_any): (Vec<String>, bool) = (Vec::new(), false);
        loop {
            match self.0.next() {
                (Some(token), at) if is_method(&token) => return Err(unexpected(at, "a name", Some(token))),
                (Some(Token::Star), _) => is_any = true,
                (Some(Token::Quoted(name)), _) if name == "*" => is_any = true,
                (Some(Token::Word(name) | Token::Quoted(name) | Token::Number(name)), _) => {
                    if !names.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
                        names.push(name);
                    }
                }
                (other, at) => return Err(unexpected(at, "a name", other)),
            }
            if !self.0.accept(|token| *token == Token::Comma) {
                return Ok((names, is_any));
            }
        }
    }
}

fn is_method(token: &Token) -> bool {
    let is_one = |word: &str| ["any", "first"].iter().any(|method| word.eq_ignore_ascii_case(method));
    matches!(token, Token::Word(word) if is_one(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_understood() {
        let check = |text: &str, count: usize, names: &[&str], is_any: bool| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(text.parse(), Ok(SynchronousStandbys { count, names, is_any }), "{text}");
        };
        check("r1", 1, &["r1"], false);
        check("r1, r2,R1", 1, &["r1", "r2"], false);
        check("*", 1, &[], true);
        check("2 (r1, \"r-2\", 3)", 2, &["r1", "r-2", "3"], false);
        check("3", 1, &["3"], false);
        check("first 2 (r1, \"any\", *)", 2, &["r1", "any"], true);
        check("ANY 1 (r1, r2)", 1, &["r1", "r2"], false);
        check("any 1 (\"*\")", 1, &[], true);
    }

    #[test]
    fn what_is_none_is_told_with_its_place() {
        let check = |text: &str, expected: &str| {
            let error = text.parse::<SynchronousStandbys>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("", "expected a name, found the end at character 1");
        check("ANY (r1)", "expected how many, found \"(\" at character 5");
        check("ANY 0 (r1)", "at character 5");
        check("ANY 99999999999999999999 (r1)", "expected a number");
        check("ANY 1 r1", "expected (, found \"r1\"");
        check("ANY 1 (r1", "found the end");
        check("ANY 1 (r1) r2", "expected the end, found \"r2\"");
        check("r1, any", "expected a name, found \"any\"");
        check("r1 r2", "found \"r2\"");
        check("r1)", "found \")\"");
        check("a/b", "found \"/\"");
        check("r-1", "unexpected \"-\"");
        check("\"r1", "unterminated");
    }

    #[test]
    fn as_many_have_to_be_fenced_as_leave_too_few() {
        let check = |names: &str, fenced: &[&str], expected: bool| {
            let standbys: SynchronousStandbys = names.parse().unwrap();
            assert_eq!(standbys.is_stopped_by(fenced), expected, "{names} without {fenced:?}");
        };
        check("r1", &["r1"], true);
        check("r1", &["R1"], true);
        check("r1", &[], false);
        check("r1", &["other"], false);
        // Whoever is left would be the first.
        check("FIRST 1 (r1, r2)", &["r1"], false);
        check("FIRST 1 (r1, r2)", &["r1", "r2"], true);
        check("ANY 1 (r1, r2)", &["r2"], false);
        check("ANY 1 (r1, r2)", &["r2", "r1", "r3"], true);
        check("ANY 2 (r1, r2, r3)", &["r1"], false);
        check("ANY 2 (r1, r2, r3)", &["r1", "r3"], true);
        check("ANY 2 (r1, r1)", &[], true);
        check("ANY 3 (r1, r2)", &[], true);
        check("*", &["r1", "r2"], false);
        check("FIRST 2 (r1, *)", &["r1"], false);
        let standbys: SynchronousStandbys = "ANY 2 (r1, r2, s)".parse().unwrap();
        assert_eq!(standbys.left(&["R2"]), ["r1", "s"]);
    }
}
