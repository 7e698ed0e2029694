//! One line of `pg_hba.conf` (PostgreSQL: `parse_hba_line`).

use std::net::IpAddr;
use std::vec;

use super::address::{Address, Network, interface_addresses};
use super::pattern::Pattern;
use super::tokens::{Line, Token};
use super::{ClientCert, ClientName, Database, HbaError, Method, Options, Place, Rule, Transport, User};

type Result<T> = std::result::Result<T, HbaError>;

pub(super) fn rule(line: Line) -> Result<Rule> {
    let mut fields = Fields { place: line.place, rest: line.fields.into_iter() };
    let transport = fields.transport()?;
    let databases = fields.next("database specification")?;
    let databases =
        databases.into_iter().map(|token| database(token, &fields.place)).collect::<Result<Vec<_>>>()?;
    let users = fields.next("role specification")?;
    let users = users.into_iter().map(|token| user(token, &fields.place)).collect::<Result<Vec<_>>>()?;
    let address = if transport == Transport::Local { Address::All } else { fields.address()? };
    let method = fields.method(transport)?;
    if method == Method::Reject && databases.contains(&Database::SameRole) {
        return Err(fields.place.error(
            "walrelay does not know who belongs to a role, so \"samerole\" cannot keep anybody out; name the databases",
        ));
    }
    let options = fields.options(transport, method)?;
    Ok(Rule { transport, databases, users, address, method, options, place: fields.place })
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
    if !token.quoted && token.text.starts_with('+') {
        return Err(place.error(format!(
            "walrelay does not know who belongs to role \"{}\"; list the users, or put them into a file and write @file",
            token.text
        )));
    }
    Ok(if token.is_keyword("all") { User::All } else { User::Name(token.text) })
}

/// What begins with a slash, in quotes or not (PostgreSQL 16).
fn pattern(token: &Token, place: &Place) -> Result<Option<Pattern>> {
    let pattern = token.text.strip_prefix('/').map(Pattern::new).transpose();
    pattern.map_err(|problem| place.error(problem))
}

struct Fields {
    place: Place,
    rest: vec::IntoIter<Vec<Token>>,
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
            "samehost" if !token.quoted => self.own_addresses(false),
            "samenet" if !token.quoted => self.own_addresses(true),
            text => self.network(text).map(Address::Network),
        }
    }

    fn own_addresses(&self, whole_net: bool) -> Result<Address> {
        let addresses = interface_addresses()
            .map_err(|error| self.place.error(format!("could not list this machine's addresses: {error}")))?;
        let network = |(address, mask): (IpAddr, IpAddr)| {
            let width = if address.is_ipv4() { 32 } else { 128 };
            if whole_net { Network::with_mask(address, mask) } else { Network::with_prefix(address, width) }
        };
        Ok(Address::Any(addresses.into_iter().filter_map(network).collect()))
    }

    fn network(&mut self, text: &str) -> Result<Network> {
        let (ip, prefix) = text.split_once('/').map_or((text, None), |(ip, prefix)| (ip, Some(prefix)));
        let Ok(ip) = ip.parse::<IpAddr>() else {
            return Err(self.place.error(format!(
                "\"{text}\" is no IP address, and host names are not supported; write an address range such as 192.0.2.0/24"
            )));
        };
        let network = match prefix {
            Some(bits) => bits.parse().ok().and_then(|bits| Network::with_prefix(ip, bits)),
            None => {
                let mask =
                    self.single("netmask specification; write an address range such as 192.0.2.0/24")?;
                mask.text.parse().ok().and_then(|mask| Network::with_mask(ip, mask))
            }
        };
        network.ok_or_else(|| self.place.error(format!("invalid netmask of address \"{text}\"")))
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
