//! From text to an expression, or to what is wrong with it and where.

use super::expression::{Expression, Group, MemberName, Pick, Term};
use super::lexer::{Token, Tokens};

/// Words that mean something where a name could stand; in quotes they are names.
const KEYWORDS: [&str; 6] = ["local", "connected", "any", "first", "all", "and"];

/// An expression cannot be understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{problem} at character {at}")]
pub struct ExpressionError {
    /// Which character, counted from 1; one behind the last for what is missing at the end.
    pub at: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// A quote was not closed.
    #[error("unterminated quoted name")]
    Unterminated,
    /// A character that has no place outside of quotes.
    #[error(
        "unexpected \"{0}\" (a name with other characters than letters, digits, _ and $ takes double quotes)"
    )]
    Unquoted(char),
    /// Something else should stand there.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What could stand there.
        expected: &'static str,
        /// What does.
        found: String,
    },
    /// A word of the language where a name is expected.
    #[error("\"{0}\" is a word of the language; in double quotes it is a name")]
    Keyword(String),
    /// `*` is not a name here.
    #[error("\"*\" names nobody: write names, or \"connected\" for all that are connected")]
    Star,
    /// A name without letters.
    #[error("empty name")]
    EmptyName,
    /// One consumer would have two votes.
    #[error("\"{0}\" is named twice, and has one vote")]
    Duplicate(String),
    /// Nobody is to be waited for.
    #[error("a group of 0 waits for nobody; leave it out")]
    NoneOf,
    /// More are to be waited for than there are.
    #[error("{wanted} of {named}: so many are not named, it could never be fulfilled")]
    TooMany {
        /// How many are wanted.
        wanted: String,
        /// How many names there are.
        named: usize,
    },
}

/// Whether it is a word of the language.
pub(super) fn is_keyword(word: &str) -> bool {
    KEYWORDS.iter().any(|keyword| keyword.eq_ignore_ascii_case(word))
}

pub(super) fn parse(text: &str) -> Result<Expression, ExpressionError> {
    let mut parser = Parser(Tokens::of(text)?);
    let mut terms = vec![parser.term()?];
    while parser.and()? {
        terms.push(parser.term()?);
    }
    Ok(Expression { terms })
}

struct Parser(Tokens);

impl Parser {
    fn term(&mut self) -> Result<Term, ExpressionError> {
        let expected = "local, connected, ANY, FIRST or ALL";
        let (token, at) = self.0.next();
        let Some(Token::Word(word)) = &token else { return Err(unexpected(at, expected, token)) };
        match word.to_ascii_lowercase().as_str() {
            "local" => Ok(Term::Local),
            "connected" => Ok(Term::Connected),
            "all" => Ok(Term::Group(Group { pick: Pick::All, members: self.members()? })),
            "any" => self.counted(Pick::Any),
            "first" => self.counted(Pick::First),
            _ => Err(unexpected(at, expected, token)),
        }
    }

    /// `n ( names )`
    fn counted(&mut self, pick: fn(usize) -> Pick) -> Result<Term, ExpressionError> {
        let (token, at) = self.0.next();
        let Some(Token::Number(digits)) = token else {
            return Err(unexpected(at, "how many", token));
        };
        let members = self.members()?;
        let count = digits.parse().ok().filter(|count| *count <= members.len());
        match count {
            Some(0) => Err(ExpressionError { at, problem: Problem::NoneOf }),
            Some(count) => Ok(Term::Group(Group { pick: pick(count), members })),
            None => {
                let problem = Problem::TooMany { wanted: digits, named: members.len() };
                Err(ExpressionError { at, problem })
            }
        }
    }

    fn members(&mut self) -> Result<Vec<MemberName>, ExpressionError> {
        match self.0.next() {
            (Some(Token::Open), _) => {}
            (other, at) => return Err(unexpected(at, "(", other)),
        }
        let mut members: Vec<MemberName> = Vec::new();
        loop {
            let (member, at) = self.member()?;
            if members.iter().any(|other| other.overlaps(&member)) {
                return Err(ExpressionError { at, problem: Problem::Duplicate(member.to_string()) });
            }
            members.push(member);
            match self.0.next() {
                (Some(Token::Comma), _) => {}
                (Some(Token::Close), _) => return Ok(members),
                (other, at) => return Err(unexpected(at, "a comma or )", other)),
            }
        }
    }

    /// `[ role / ] name`, and where it begins.
    fn member(&mut self) -> Result<(MemberName, usize), ExpressionError> {
        let (first, at) = self.name()?;
        let is_role = self.0.accept(|token| *token == Token::Slash);
        let (role, name) = if is_role { (Some(first), self.name()?.0) } else { (None, first) };
        Ok((MemberName { role, name }, at))
    }

    // PG: standby_name: NAME | NUM
    fn name(&mut self) -> Result<(String, usize), ExpressionError> {
        let (token, at) = self.0.next();
        let problem = match token {
            Some(Token::Word(word)) if is_keyword(&word) => Problem::Keyword(word),
            Some(Token::Quoted(name)) if name.is_empty() => Problem::EmptyName,
            Some(Token::Word(name) | Token::Quoted(name) | Token::Number(name)) => return Ok((name, at)),
            Some(Token::Star) => Problem::Star,
            other => return Err(unexpected(at, "a name", other)),
        };
        Err(ExpressionError { at, problem })
    }

    /// Whether another term follows; if not, nothing does.
    fn and(&mut self) -> Result<bool, ExpressionError> {
        match self.0.next() {
            (None, _) => Ok(false),
            (Some(Token::Word(word)), _) if word.eq_ignore_ascii_case("and") => Ok(true),
            (other, at) => Err(unexpected(at, "AND or the end", other)),
        }
    }
}

pub(super) fn unexpected(at: usize, expected: &'static str, found: Option<Token>) -> ExpressionError {
    let found = match found {
        Some(Token::Word(text) | Token::Quoted(text) | Token::Number(text)) => format!("\"{text}\""),
        Some(Token::Star) => "\"*\"".to_owned(),
        Some(Token::Comma) => "a comma".to_owned(),
        Some(Token::Slash) => "\"/\"".to_owned(),
        Some(Token::Open) => "\"(\"".to_owned(),
        Some(Token::Close) => "\")\"".to_owned(),
        None => "the end".to_owned(),
    };
    ExpressionError { at, problem: Problem::Expected { expected, found } }
}
