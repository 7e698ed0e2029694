//! Host-based authentication: `pg_hba.conf` (PostgreSQL: `hba.c`).
//!
//! The syntax is PostgreSQL's, quotes, lists, regular expressions, continuation lines and includes too. What
//! walrelay cannot decide (methods it does not have) is an error that names the line: a line that were skipped could be
//! the one that keeps somebody out.
//!
//! What a line wants to know and only others can say, the client's host name and the user's memberships, is a [`Fact`]
//! that the search asks for when a line depends on it. Nothing is looked up here.

mod address;
mod ident;
mod parse;
mod pattern;
mod tokens;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use address::Address;
use pattern::Pattern;

use crate::permissions::Distrust;

pub use ident::Idents;

/// The rules of a file, or the built-in ones.
#[derive(Clone, Debug)]
pub struct Hba {
    rules: Vec<Rule>,
    builtin: bool,
}

/// How a user proves who they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// Not at all.
    Trust,
    /// Refused.
    Reject,
    /// SCRAM-SHA-256.
    ScramSha256,
    /// SCRAM-SHA-256 if the stored secret is a verifier, else the MD5 challenge.
    Md5,
    /// The password itself.
    Password,
    /// The operating system's user has the same name, or one that a map says.
    Peer,
    /// The certificate has the user's name, or one that a map says.
    Cert,
}

/// What a line wants of the client's certificate besides its method (`clientcert`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientCert {
    /// One from an authority that we trust.
    VerifyCa,
    /// Its name must be the user's too.
    VerifyFull,
}

/// Which of a certificate's names counts (`clientname`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ClientName {
    /// The common name.
    #[default]
    CommonName,
    /// The whole distinguished name.
    DistinguishedName,
}

/// What lines may depend on that has to be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fact {
    /// The client's host name.
    HostName,
    /// What roles the user belongs to.
    Membership,
}

/// What is known of those; `None` if it was not asked for.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The name of the client's address, if a look-up of the name leads back to the address.
    pub host_name: Option<Option<String>>,
    /// The roles that the user belongs to, itself among them; none for a role that does not exist.
    pub member_of: Option<Vec<String>>,
}

/// What a search has found.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// The first line that fits.
    Rule(&'a Rule),
    /// No line fits.
    Nothing,
    /// It depends; to be repeated with what was asked for.
    Unknown(Fact),
}

/// Whether something fits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Yes,
    No,
    Unknown(Fact),
}

impl From<bool> for Verdict {
    fn from(fits: bool) -> Verdict {
        if fits { Verdict::Yes } else { Verdict::No }
    }
}

impl Verdict {
    /// One is enough.
    fn any(all: impl Iterator<Item = Verdict>) -> Verdict {
        let mut verdict = Verdict::No;
        for one in all {
            match one {
                Verdict::Yes => return Verdict::Yes,
                Verdict::Unknown(_) if verdict == Verdict::No => verdict = one,
                Verdict::Unknown(_) | Verdict::No => {}
            }
        }
        verdict
    }

    /// All are needed. One that does not fit spares the questions of the others.
    fn all(all: &[Verdict]) -> Verdict {
        let unknown = all.iter().find(|one| matches!(one, Verdict::Unknown(_)));
        if all.contains(&Verdict::No) { Verdict::No } else { unknown.copied().unwrap_or(Verdict::Yes) }
    }
}

/// One line.
#[derive(Clone, Debug)]
pub struct Rule {
    transport: Transport,
    databases: Vec<Database>,
    users: Vec<User>,
    address: Address,
    method: Method,
    options: Options,
    place: Place,
    /// What people may not mean by it.
    doubt: Option<String>,
}

/// What stands behind the method.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Options {
    client_cert: Option<ClientCert>,
    client_name: ClientName,
    map: Option<String>,
}

/// Where a line stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    path: Arc<Path>,
    line: usize,
}

/// A connection type. There is no GSSAPI, so `hostgssenc` matches nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Transport {
    Local,
    Host,
    HostSsl,
    HostNoSsl,
    HostGssEnc,
    HostNoGssEnc,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Database {
    All,
    SameUser,
    /// `samerole`, `samegroup`: the user belongs to the role of the database's name.
    SameRole,
    Replication,
    Name(String),
    Pattern(Pattern),
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum User {
    All,
    Name(String),
    /// `+role`: whoever belongs to it, directly or not; a superuser belongs to nothing by that.
    Member(String),
    Pattern(Pattern),
}

/// What a connection asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target<'a> {
    /// `replication=true`: matched by the keyword `replication` only.
    Replication,
    /// A database, with `replication=database` or without: `replication` does not match it.
    Database(&'a str),
}

/// A connection to be judged.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The client's address; `None` for a Unix-domain socket.
    pub ip: Option<IpAddr>,
    /// Encrypted by TLS.
    pub ssl: bool,
    /// What for.
    pub target: Target<'a>,
    /// As whom.
    pub user: &'a str,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HbaError {
    /// It, or a file it includes, cannot be read or is not to be believed.
    #[error("\"{}\" {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Distrust,
    },
    /// A directory it includes cannot be read.
    #[error("could not read \"{}\": {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line that PostgreSQL or walrelay does not accept.
    #[error("{place}: {problem}")]
    Line {
        /// File and line.
        place: Place,
        /// What is wrong, and what to write instead.
        problem: String,
    },
    /// Nobody could log in.
    #[error("\"{}\" contains no entries; add a line such as: host replication all 127.0.0.1/32 scram-sha-256", .0.display())]
    Empty(PathBuf),
}

impl Place {
    fn error(&self, problem: impl Into<String>) -> HbaError {
        HbaError::Line { place: self.clone(), problem: problem.into() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its line; the first is 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// A file named in this one: beside it, unless its path is absolute.
    fn beside(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(name)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

impl Hba {
    /// Without a file: the relay's own user through a Unix-domain socket, passwords from this machine, nobody
    /// else.
    pub fn builtin() -> Hba {
        let text = "local all         all              peer\n\
                    local replication all              peer\n\
                    host  all         all 127.0.0.0/8  scram-sha-256\n\
                    host  replication all 127.0.0.0/8  scram-sha-256\n\
                    host  all         all ::1/128      scram-sha-256\n\
                    host  replication all ::1/128      scram-sha-256\n";
        let hba = Hba::parse(Path::new("built-in rules"), text).expect("the built-in rules are well-formed");
        Hba { builtin: true, ..hba }
    }

    /// Reads a file and all it includes.
    pub fn load(path: &Path) -> Result<Hba, HbaError> {
        Hba::from_lines(path, tokens::read_file(path)?)
    }

    /// Reads a file's text; files that it includes are looked for beside `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Hba, HbaError> {
        let mut lines = Vec::new();
        tokens::read_text(path, text, 0, &mut lines)?;
        Hba::from_lines(path, lines)
    }

    fn from_lines(path: &Path, lines: Vec<tokens::Line>) -> Result<Hba, HbaError> {
        let rules = lines.into_iter().map(parse::rule).collect::<Result<Vec<_>, _>>()?;
        if rules.is_empty() {
            return Err(HbaError::Empty(path.to_owned()));
        }
        Ok(Hba { rules, builtin: false })
    }

    /// Whether no file was given.
    pub fn is_builtin(&self) -> bool {
        self.builtin
    }

    /// Looks whether the lines can do what they say with TLS off (`None`) or on; `Some(true)` means that clients'
    /// certificates are checked. Returns the lines that match nobody, as warnings.
    ///
    /// # Errors
    /// A line wants certificates and there is nothing to check them against.
    pub fn check_tls(&self, verifies_clients: Option<bool>) -> Result<Vec<String>, HbaError> {
        let doubts = self.rules.iter().filter_map(|rule| Some((&rule.place, rule.doubt.as_ref()?)));
        let mut warnings: Vec<_> = doubts.map(|(place, doubt)| format!("{place}: {doubt}")).collect();
        for rule in self.rules.iter().filter(|rule| rule.transport == Transport::HostSsl) {
            if rule.client_cert().is_some() && verifies_clients != Some(true) {
                return Err(rule.place.error(
                    "client certificates can only be checked if a root certificate store is available; give the relay --ssl-ca-file, --ssl-cert-file and --ssl-key-file",
                ));
            }
            if verifies_clients.is_none() {
                warnings.push(format!("{}: hostssl record cannot match because SSL is disabled", rule.place));
            }
        }
        Ok(warnings)
    }

    /// The first line that fits the connection; nobody gets in without one.
    pub fn find(&self, request: &Request<'_>, facts: &Facts) -> Found<'_> {
        for rule in &self.rules {
            match rule.matches(request, facts) {
                Verdict::Yes => return Found::Rule(rule),
                Verdict::No => {}
                Verdict::Unknown(fact) => return Found::Unknown(fact),
            }
        }
        Found::Nothing
    }
}

impl Rule {
    /// What the line demands.
    pub fn method(&self) -> Method {
        self.method
    }

    /// What it demands of the client's certificate; with [`Method::Cert`] everything.
    pub fn client_cert(&self) -> Option<ClientCert> {
        if self.method == Method::Cert { Some(ClientCert::VerifyFull) } else { self.options.client_cert }
    }

    /// Which of the certificate's names counts.
    pub fn client_name(&self) -> ClientName {
        self.options.client_name
    }

    /// The map for [`Idents::permit`].
    pub fn map(&self) -> Option<&str> {
        self.options.map.as_deref()
    }

    /// Where the line stands.
    pub fn place(&self) -> &Place {
        &self.place
    }

    fn matches(&self, request: &Request<'_>, facts: &Facts) -> Verdict {
        Verdict::all(&[
            self.transport.matches(request).into(),
            request.ip.map_or(Verdict::Yes, |ip| self.address.matches(ip, facts)),
            Verdict::any(self.databases.iter().map(|database| database.matches(request, facts))),
            Verdict::any(self.users.iter().map(|user| user.matches(request.user, facts))),
        ])
    }
}

impl Transport {
    fn matches(self, request: &Request<'_>) -> bool {
        match self {
            Transport::Local => request.ip.is_none(),
            Transport::Host | Transport::HostNoGssEnc => request.ip.is_some(),
            Transport::HostSsl => request.ip.is_some() && request.ssl,
            Transport::HostNoSsl => request.ip.is_some() && !request.ssl,
            Transport::HostGssEnc => false,
        }
    }
}

impl Database {
    fn matches(&self, request: &Request<'_>, facts: &Facts) -> Verdict {
        match (self, request.target) {
            (Database::Replication, target) => (target == Target::Replication).into(),
            (_, Target::Replication) => Verdict::No,
            (Database::All, _) => Verdict::Yes,
            (Database::SameUser, Target::Database(name)) => (name == request.user).into(),
            (Database::SameRole, Target::Database(name)) => facts.is_member(name),
            (Database::Name(wanted), Target::Database(name)) => (name == wanted).into(),
            (Database::Pattern(pattern), Target::Database(name)) => pattern.matches(name).into(),
        }
    }
}

impl User {
    fn matches(&self, user: &str, facts: &Facts) -> Verdict {
        match self {
            User::All => Verdict::Yes,
            User::Name(name) => (name == user).into(),
            User::Member(role) => facts.is_member(role),
            User::Pattern(pattern) => pattern.matches(user).into(),
        }
    }
}

impl Facts {
    /// PG: `is_member`; a role belongs to itself.
    fn is_member(&self, role: &str) -> Verdict {
        let known = self.member_of.as_ref();
        known.map_or(Verdict::Unknown(Fact::Membership), |known| known.iter().any(|it| it == role).into())
    }

    /// PG: `hostname_match`.
    fn is_named(&self, pattern: &str) -> Verdict {
        let Some(known) = &self.host_name else { return Verdict::Unknown(Fact::HostName) };
        let fits = |name: &str| match pattern.starts_with('.') {
            true => name
                .len()
                .checked_sub(pattern.len())
                .and_then(|at| name.get(at..))
                .is_some_and(|end| end.eq_ignore_ascii_case(pattern)),
            false => name.eq_ignore_ascii_case(pattern),
        };
        known.as_deref().is_some_and(fits).into()
    }
}

#[cfg(test)]
mod tests;
