//! One line of `pg_hba.conf` (PostgreSQL: `parse_hba_line`).

use std::vec;

use super::address::{self, Address, Network};
use super::pattern::Pattern;
use super::tokens::{Line, Token};
use super::{ClientCert, ClientName, Database, HbaError, Method, Options, Place, Rule, Transport, User};

type Result<T> = std::result::Result<T, HbaError>;

pub(super) fn rule(line: Line) -> Result<Rule> {
    let mut fields = Fields { place: line.place, rest: line.fields.into_iter(), doubt: None };
    let transport = fields.transport()?;
    let databases = fields.next("database specification")?;
    let databases =
        databases.into_iter().map(|token| database(token, &fields.place)).collect::<Result<Vec<_>>>()?;
    let users = fields.next("role specification")?;
    let users = users.into_iter().map(|token| user(token, &fields.place)).collect::<Result<Vec<_>>>()?;
    let address = if transport == Transport::Local { Address::All } else { fields.address()? };
    let method = fields.method(transport)?;
    let options = fields.options(transport, method)?;
    let doubt = fields.doubt.take();
    Ok(Rule { transport, databases, users, address, method, options, place: fields.place, doubt })
}

fn database(token: Token, place: &Place) -> Result<Database> {
    if let Some(pattern) = pattern(&token, place)? {
        return Ok(Database::Pattern(pattern));
    }
    Ok(match token.text.as_str() {
        "all" if !token.quoted => Database::All,
        "sameuser" if !token.quoted => Database::SameUser,
        "samerole" | "samegroup" if !token.quoted => Database::SameRole,
        "replication" if !token.quoted => Database::Replication,
        _ => Database::Name(token.text),
    })
}

fn user(token: Token, place: &Place) -> Result<User> {
    if let Some(pattern) = pattern(&token, place)? {
        return Ok(User::Pattern(pattern));
    }
    Ok(match token.membership() {
        Some(role) => User::Member(role.to_owned()),
        None if token.is_keyword("all") => User::All,
        None => User::Name(token.text),
    })
}

/// What begins with a slash, in quotes or not (PostgreSQL 16).
fn pattern(token: &Token, place: &Place) -> Result<Option<Pattern>> {
    let pattern = token.text.strip_prefix('/').map(Pattern::new).transpose();
    pattern.map_err(|problem| place.error(problem))
}

struct Fields {
    place: Place,
    rest: vec::IntoIter<Vec<Token>>,
    doubt: Option<String>,
}

impl Fields {
    fn next(&mut self, what: &str) -> Result<Vec<Token>> {
        self.rest.next().ok_or_else(|| self.place.error(format!("end-of-line before {what}")))
    }

    fn single(&mut self, what: &str) -> Result<Token> {
        let tokens: [Token; 1] = self.next(what)?.try_into().map_err(|_| {
            self.place.error(format!("multiple values specified for {what}; write one line for each"))
        })?;
        let [token] = tokens;
        Ok(token)
    }

    fn transport(&mut self) -> Result<Transport> {
        let token = self.single("connection type")?;
        Ok(match token.text.as_str() {
            "local" => Transport::Local,
            "host" => Transport::Host,
            "hostssl" => Transport::HostSsl,
            "hostnossl" => Transport::HostNoSsl,
            "hostgssenc" => Transport::HostGssEnc,
            "hostnogssenc" => Transport::HostNoGssEnc,
            other => {
                return Err(self.place.error(format!(
                    "invalid connection type \"{other}\"; expected local, host, hostssl, hostnossl, hostgssenc or hostnogssenc"
                )));
            }
        })
    }

    fn address(&mut self) -> Result<Address> {
        let token = self.single("IP address specification")?;
        match token.text.as_str() {
            "all" if !token.quoted => Ok(Address::All),
            "samehost" if !token.quoted => Ok(Address::SameHost),
            "samenet" if !token.quoted => Ok(Address::SameNet),
            text => self.network_or_name(text),
        }
    }

    fn network_or_name(&mut self, text: &str) -> Result<Address> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(ip, prefix)| (ip, Some(prefix)));
        let invalid = |fields: &Fields| fields.place.error(format!("invalid netmask of address \"{text}\""));
        let Some(ip) = address::parse(address) else {
            return match prefix {
                None => Ok(Address::Name(address.to_owned())),
                Some(_) => Err(self.place.error(format!(
                    "specifying both host name and CIDR mask is invalid: \"{text}\"; an address such as 192.0.2.0/24 was expected"
                ))),
            };
        };
        let network = match prefix {
            Some(bits) => bits.parse().ok().and_then(|bits| Network::with_prefix(ip, bits)),
            None => {
                let mask =
                    self.single("netmask specification; write an address range such as 192.0.2.0/24")?;
                address::parse(&mask.text).and_then(|mask| Network::with_mask(ip, mask))
            }
        };
        if ip.is_ipv4() && address.matches('.').count() < 3 {
            let range = text.strip_prefix(address).unwrap_or_default();
            self.doubt = Some(format!(
                "address \"{text}\" is {ip}{range}, as on PostgreSQL; if a network was meant, write all four numbers"
            ));
        }
        network.map(Address::Network).ok_or_else(|| invalid(self))
    }

    fn method(&mut self, transport: Transport) -> Result<Method> {
        let token = self.single("authentication method")?;
        match token.text.as_str() {
            "trust" => Ok(Method::Trust),
            "reject" => Ok(Method::Reject),
            "scram-sha-256" => Ok(Method::ScramSha256),
            "md5" => Ok(Method::Md5),
            "password" => Ok(Method::Password),
            // PG: "ident" is an old name of "peer" there.
            "peer" | "ident" if transport == Transport::Local => Ok(Method::Peer),
            "peer" => Err(self.place.error("peer authentication is only supported on local sockets")),
            "cert" if transport == Transport::HostSsl => Ok(Method::Cert),
            "cert" => Err(self.place.error("cert authentication is only supported on hostssl connections")),
            other @ ("gss" | "sspi" | "ident" | "pam" | "bsd" | "ldap" | "radius" | "oauth") => {
                Err(self.place.error(format!(
                    "authentication method \"{other}\" is not supported by walrelay; use scram-sha-256, cert, md5, password, peer, trust or reject"
                )))
            }
            other => Err(self.place.error(format!("invalid authentication method \"{other}\""))),
        }
    }

    fn options(&mut self, transport: Transport, method: Method) -> Result<Options> {
        let mut options = Options::default();
        for token in self.rest.by_ref().flatten() {
            let (name, value) = token.text.split_once('=').ok_or_else(|| {
                self.place.error(format!("authentication option not in name=value format: {}", token.text))
            })?;
            options.set(name, value, transport, method).map_err(|problem| self.place.error(problem))?;
        }
        Ok(options)
    }
}

impl Options {
    /// PG: `parse_hba_auth_opt`.
    fn set(
        &mut self,
        name: &str,
        value: &str,
        transport: Transport,
        method: Method,
    ) -> std::result::Result<(), String> {
        let of_certificate = ["clientcert", "clientname"].contains(&name);
        if of_certificate && transport != Transport::HostSsl {
            return Err(format!("{name} can only be configured for \"hostssl\" rows"));
        }
        match (name, value) {
            ("map", _) if matches!(method, Method::Peer | Method::Cert) => self.map = Some(value.to_owned()),
            ("map", _) => {
                let text =
                    "authentication option \"map\" is only valid for authentication methods peer and cert";
                return Err(text.to_owned());
            }
            ("clientcert", "verify-full") => self.client_cert = Some(ClientCert::VerifyFull),
            ("clientcert", "verify-ca") if method == Method::Cert => {
                let text = "clientcert only accepts \"verify-full\" when using \"cert\" authentication";
                return Err(text.to_owned());
            }
            ("clientcert", "verify-ca") => self.client_cert = Some(ClientCert::VerifyCa),
            ("clientname", "CN") => self.client_name = ClientName::CommonName,
            ("clientname", "DN") => self.client_name = ClientName::DistinguishedName,
            ("clientcert" | "clientname", _) => return Err(format!("invalid value for {name}: \"{value}\"")),
            _ => {
                return Err(format!(
                    "authentication option \"{name}\" is not supported by walrelay; remove it"
                ));
            }
        }
        Ok(())
    }
}
