//! User name maps: `pg_ident.conf` (PostgreSQL: `parse_ident_line`, `check_usermap`).

use std::path::Path;

use super::pattern::Pattern;
use super::tokens::{self, Line, Token};
use super::{HbaError, Place};

/// The maps of a file, or none.
#[derive(Clone, Debug, Default)]
pub struct Idents {
    lines: Vec<Mapping>,
}

#[derive(Clone, Debug)]
struct Mapping {
    map: String,
    system_user: SystemUser,
    role: Role,
}

#[derive(Clone, Debug)]
enum SystemUser {
    Name(String),
    Pattern(Pattern),
}

#[derive(Clone, Debug)]
enum Role {
    All,
    Name(String),
    /// `+role`: whoever belongs to it.
    Member(String),
    /// Around `\1`.
    WithGroup(String, String),
    Pattern(Pattern),
}

impl Idents {
    /// Reads a file and all it includes.
    ///
    /// # Errors
    /// A file cannot be read, or a line cannot be understood.
    pub fn load(path: &Path) -> Result<Idents, HbaError> {
        Idents::from_lines(tokens::read_file(path)?)
    }

    /// Reads a file's text; files that it includes are looked for beside `path`.
    ///
    /// # Errors
    /// As [`Idents::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Idents, HbaError> {
        let mut lines = Vec::new();
        tokens::read_text(path, text, 0, &mut lines)?;
        Idents::from_lines(lines)
    }

    fn from_lines(lines: Vec<Line>) -> Result<Idents, HbaError> {
        Ok(Idents { lines: lines.into_iter().map(mapping).collect::<Result<_, _>>()? })
    }

    /// Whether who is known elsewhere as `system_user` may be `user` here, who belongs to the roles `member_of`. Without a map the
    /// names must be the same.
    pub fn permit(&self, map: Option<&str>, user: &str, member_of: &[String], system_user: &str) -> bool {
        let Some(map) = map.filter(|map| !map.is_empty()) else { return user == system_user };
        let lines = self.lines.iter().filter(|line| line.map == map);
        // A line that cannot be decided ends the search.
        lines
            .map(|line| line.permits(user, member_of, system_user))
            .find(|verdict| *verdict != Some(false))
            .flatten()
            == Some(true)
    }
}

impl Mapping {
    /// `None` if the group that the role's name is made of has not taken part in the match.
    fn permits(&self, user: &str, member_of: &[String], system_user: &str) -> Option<bool> {
        let group = match &self.system_user {
            SystemUser::Name(name) if name == system_user => None,
            SystemUser::Name(_) => return Some(false),
            SystemUser::Pattern(pattern) => match pattern.first_group(system_user) {
                Some(group) => group,
                None => return Some(false),
            },
        };
        match &self.role {
            Role::All => Some(true),
            Role::Name(name) => Some(name == user),
            Role::Member(role) => Some(member_of.contains(role)),
            Role::Pattern(pattern) => Some(pattern.matches(user)),
            Role::WithGroup(before, after) => {
                let group = group?;
                let rest =
                    user.strip_prefix(before.as_str()).and_then(|rest| rest.strip_suffix(after.as_str()));
                Some(rest == Some(group))
            }
        }
    }
}

fn mapping(line: Line) -> Result<Mapping, HbaError> {
    let place = line.place;
    let mut fields = line.fields.into_iter();
    let mut next = || {
        let field = fields.next().ok_or_else(|| place.error("missing entry at end of line"))?;
        let field: [Token; 1] =
            field.try_into().map_err(|_| place.error("multiple values in ident field"))?;
        let [token] = field;
        Ok::<_, HbaError>(token)
    };
    let (map, system_user, role) = (next()?, next()?, next()?);
    let system_user = match system_user.text.strip_prefix('/') {
        Some(pattern) => SystemUser::Pattern(compiled(pattern, &place)?),
        None => SystemUser::Name(system_user.text),
    };
    let role = self::role(role, &system_user, &place)?;
    Ok(Mapping { map: map.text, system_user, role })
}

fn role(token: Token, system_user: &SystemUser, place: &Place) -> Result<Role, HbaError> {
    if token.is_keyword("all") {
        return Ok(Role::All);
    }
    if let Some(role) = token.membership() {
        return Ok(Role::Member(role.to_owned()));
    }
    if let Some(pattern) = token.text.strip_prefix('/') {
        return compiled(pattern, place).map(Role::Pattern);
    }
    match (system_user, token.text.split_once("\\1")) {
        (SystemUser::Pattern(pattern), Some(_)) if !pattern.has_group() => {
            Err(place.error(format!("the regular expression has no subexpression for \"{}\"", token.text)))
        }
        (SystemUser::Pattern(_), Some((before, after))) => {
            Ok(Role::WithGroup(before.to_owned(), after.to_owned()))
        }
        _ => Ok(Role::Name(token.text)),
    }
}

fn compiled(pattern: &str, place: &Place) -> Result<Pattern, HbaError> {
    Pattern::new(pattern).map_err(|problem| place.error(problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# MAP SYSTEM-USER PG-USERNAME\n\
        m joe joe\n\
        m joe \"rep user\"\n\
        m root all\n\
        domain /^(.*)@example\\.com$ \\1\n\
        domain /^(.*)@example\\.com$ x_\\1_y\n\
        domain /@example\\.org$ guest\n\
        domain \"/^ops,(a|b)$\" /^op_\n\
        quoted joe \"all\"\n";

    fn parse(text: &str) -> Result<Idents, HbaError> {
        Idents::parse(Path::new("pg_ident.conf"), text)
    }

    #[test]
    fn maps_permit_what_they_say() {
        let idents = parse(FILE).unwrap();
        let check = |map: &str, system_user: &str, user: &str, expected: bool| {
            assert_eq!(
                idents.permit(Some(map), user, &[], system_user),
                expected,
                "{map} {system_user} {user}"
            );
        };
        check("m", "joe", "joe", true);
        check("m", "joe", "rep user", true);
        check("m", "joe", "root", false);
        check("m", "root", "anybody", true);
        check("domain", "joe@example.com", "joe", true);
        check("domain", "joe@example.com", "x_joe_y", true);
        check("domain", "joe@example.com", "guest", false);
        check("domain", "joe@example.org", "guest", true);
        check("domain", "ops,a", "op_1", true);
        check("domain", "ops,c", "op_1", false);
        check("quoted", "joe", "all", true);
        check("quoted", "joe", "other", false);
        check("none", "joe", "joe", false);
        // Nobody becomes "all" by name.
        check("domain", "all@example.com", "anybody", false);
    }

    #[test]
    fn a_map_may_name_whoever_belongs_to_a_role() {
        let idents = parse("m root +dba\nm joe \"+dba\"\n").unwrap();
        let dba = ["postgres".to_owned(), "dba".to_owned()];
        assert!(idents.permit(Some("m"), "postgres", &dba, "root"));
        assert!(!idents.permit(Some("m"), "postgres", &[], "root"));
        assert!(!idents.permit(Some("m"), "postgres", &dba, "joe"), "a name in quotes");
    }

    #[test]
    fn without_a_map_the_names_are_the_same() {
        let idents = Idents::default();
        for map in [None, Some("")] {
            assert!(idents.permit(map, "joe", &[], "joe") && !idents.permit(map, "joe", &[], "Joe"));
        }
    }

    #[test]
    fn a_group_that_has_no_part_ends_the_search() {
        let idents = parse("m /^(a)?b$ \\1\nm b x\n").unwrap();
        assert!(idents.permit(Some("m"), "a", &[], "ab"));
        assert!(!idents.permit(Some("m"), "x", &[], "b"));
        assert!(!idents.permit(Some("m"), "", &[], "b"));
    }

    #[test]
    fn lines_that_cannot_be_read_are_named() {
        let check = |text: &str, expected: &str| {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with("pg_ident.conf:1: ") && error.contains(expected), "{error}");
        };
        check("m", "missing entry at end of line");
        check("m joe", "missing entry at end of line");
        check("m joe,jim x", "multiple values in ident field");
        check("m /( x", "invalid regular expression \"(\"");
        check("m /a \\1", "no subexpression");
    }
}
