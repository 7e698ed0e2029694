//! One line of `pg_hba.conf` (PostgreSQL: `parse_hba_line`).

use std::net::IpAddr;
use std::vec;

use super::address::{Address, Network, interface_addresses};
use super::tokens::{Line, Token};
use super::{Database, HbaError, Method, Place, Rule, Transport, User};

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
    fields.refuse_options()?;
    Ok(Rule { transport, databases, users, address, method, place: Some(fields.place) })
}

fn database(token: Token, place: &Place) -> Result<Database> {
    refuse_regex(&token, place)?;
    Ok(match token.text.as_str() {
        "all" if !token.quoted => Database::All,
        "sameuser" if !token.quoted => Database::SameUser,
        "samerole" | "samegroup" if !token.quoted => Database::SameRole,
        "replication" if !token.quoted => Database::Replication,
        _ => Database::Name(token.text),
    })
}

fn user(token: Token, place: &Place) -> Result<User> {
    refuse_regex(&token, place)?;
    if !token.quoted && token.text.starts_with('+') {
        return Err(place.error(format!(
            "walrelay does not know who belongs to role \"{}\"; list the users, or put them into a file and write @file",
            token.text
        )));
    }
    Ok(if token.is_keyword("all") { User::All } else { User::Name(token.text) })
}

fn refuse_regex(token: &Token, place: &Place) -> Result<()> {
    if !token.quoted && token.text.starts_with('/') {
        return Err(place.error(format!(
            "regular expressions are not supported: \"{}\"; list the names instead",
            token.text
        )));
    }
    Ok(())
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
            "peer" if transport == Transport::Local => Ok(Method::Peer),
            "peer" => Err(self.place.error("peer authentication is only supported on local sockets")),
            other @ ("gss" | "sspi" | "ident" | "pam" | "bsd" | "ldap" | "radius" | "cert" | "oauth") => {
                Err(self.place.error(format!(
                    "authentication method \"{other}\" is not supported by walrelay; use scram-sha-256, md5, password, peer, trust or reject"
                )))
            }
            other => Err(self.place.error(format!("invalid authentication method \"{other}\""))),
        }
    }

    /// None of the methods supported has an option that walrelay can honour.
    fn refuse_options(&mut self) -> Result<()> {
        match self.rest.next().and_then(|tokens| tokens.into_iter().next()) {
            None => Ok(()),
            Some(option) => Err(self.place.error(match option.text.split_once('=') {
                Some((name, _)) => {
                    format!("authentication option \"{name}\" is not supported by walrelay; remove it")
                }
                None => format!("authentication option not in name=value format: {}", option.text),
            })),
        }
    }
}
