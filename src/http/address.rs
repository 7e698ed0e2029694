//! `--http-listen`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Where to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpAddr {
    /// Name or address.
    pub host: String,
    /// The port; 0 for any that is free.
    pub port: u16,
}

impl HttpAddr {
    /// Whether it is one of this machine only, as far as it says that itself.
    pub fn is_loopback(&self) -> bool {
        let address = self.host.parse::<IpAddr>();
        address.map_or_else(|_| self.host.eq_ignore_ascii_case("localhost"), |it| it.is_loopback())
    }
}

/// The text is no address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("\"{0}\" is not PORT, for the loopback interface, ADDRESS:PORT or [IPv6]:PORT")]
pub struct ParseHttpAddrError(String);

impl FromStr for HttpAddr {
    type Err = ParseHttpAddrError;

    /// A bare port is one of the loopback interface: what is shown there is for everybody who can reach it, without more said.
    fn from_str(text: &str) -> Result<HttpAddr, ParseHttpAddrError> {
        let bad = || ParseHttpAddrError(text.to_owned());
        let (host, port) = text.rsplit_once(':').unwrap_or(("127.0.0.1", text));
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(bad)?,
            None if host.contains(':') => return Err(bad()),
            None => host,
        };
        let port = port.parse().map_err(|_| bad())?;
        if host.is_empty() { Err(bad()) } else { Ok(HttpAddr { host: host.to_owned(), port }) }
    }
}

impl fmt::Display for HttpAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_port_is_one_of_the_loopback_interface() {
        let shown = |text: &str| text.parse::<HttpAddr>().map(|address| address.to_string());
        assert_eq!(shown("9187"), Ok("127.0.0.1:9187".to_owned()));
        assert_eq!(shown("0.0.0.0:9187"), Ok("0.0.0.0:9187".to_owned()));
        assert_eq!(shown("[::1]:9187"), Ok("[::1]:9187".to_owned()));
        assert_eq!(shown("relay.example:0"), Ok("relay.example:0".to_owned()));
        for text in ["", ":9187", "host", "host:", "::1:9187", "[::1:9187", "host:65536"] {
            assert!(shown(text).is_err(), "{text}");
        }
    }
}
