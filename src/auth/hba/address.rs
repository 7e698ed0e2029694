//! Client addresses of `host` lines.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Facts, Verdict};

/// Which clients a line is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Address {
    /// `all`, and every `local` line.
    All,
    /// An address and which of its bits count.
    Network(Network),
    /// A host name, or the end of one behind a dot.
    Name(String),
    /// `samehost`: one of this machine's addresses.
    SameHost,
    /// `samenet`: one of the networks of this machine's addresses.
    SameNet,
}

/// Addresses that share bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Network {
    address: IpAddr,
    mask: u128,
}

impl Network {
    /// `None` if there are more bits than the address has.
    pub(super) fn with_prefix(address: IpAddr, bits: u32) -> Option<Network> {
        let width = width(address);
        let mask = (bits <= width).then(|| if bits == 0 { 0 } else { u128::MAX << (width - bits) })?;
        Some(Network { address, mask: mask & full(address) })
    }

    /// `None` if the mask is of the other family. It may have holes, as in PostgreSQL.
    pub(super) fn with_mask(address: IpAddr, mask: IpAddr) -> Option<Network> {
        (address.is_ipv4() == mask.is_ipv4()).then(|| Network { address, mask: number(mask) })
    }

    fn contains(&self, ip: IpAddr) -> bool {
        self.address.is_ipv4() == ip.is_ipv4() && (number(self.address) ^ number(ip)) & self.mask == 0
    }
}

fn width(ip: IpAddr) -> u32 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn full(ip: IpAddr) -> u128 {
    if ip.is_ipv4() { u32::MAX.into() } else { u128::MAX }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl Address {
    pub(super) fn matches(&self, ip: IpAddr, facts: &Facts) -> Verdict {
        let own = |whole_net| own_networks(whole_net).iter().any(|network| network.contains(ip)).into();
        match self {
            Address::All => Verdict::Yes,
            Address::Network(network) => network.contains(ip).into(),
            Address::Name(pattern) => facts.is_named(pattern),
            Address::SameHost => own(false),
            Address::SameNet => own(true),
        }
    }
}

/// Reads an address as `getaddrinfo` with `AI_NUMERICHOST` does: `10.1` is 10.0.0.1. `None` for what PostgreSQL takes for a name.
pub(super) fn parse(text: &str) -> Option<IpAddr> {
    let zoned = |text: &str| {
        let (address, zone) = text.split_once('%')?;
        let is_zone = zone.parse::<u32>().is_ok() || nix::net::if_::if_nametoindex(zone).is_ok();
        address.parse::<Ipv6Addr>().ok().filter(|_| is_zone)
    };
    match text.parse() {
        Ok(ip) => Some(ip),
        Err(_) => zoned(text).map(IpAddr::V6).or_else(|| short_v4(text).map(IpAddr::V4)),
    }
}

/// PG, that is, the C library's `inet_aton`: up to four numbers, decimal, octal or hexadecimal; the last one fills what is left.
fn short_v4(text: &str) -> Option<Ipv4Addr> {
    let numbers = text.split('.').map(c_number).collect::<Option<Vec<_>>>()?;
    let (last, bytes) = numbers.split_last()?;
    if bytes.len() > 3 || bytes.iter().any(|byte| *byte > 255) {
        return None;
    }
    let room = 32 - 8 * u32::try_from(bytes.len()).ok()?;
    if u64::from(*last) >> room != 0 {
        return None;
    }
    let begin = bytes.iter().enumerate().map(|(at, byte)| byte << (24 - 8 * at)).sum::<u32>();
    Some(Ipv4Addr::from_bits(begin | last))
}

fn c_number(text: &str) -> Option<u32> {
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let (digits, radix) = match (hexadecimal, text.strip_prefix('0')) {
        (Some(digits), _) => (digits, 16),
        (None, Some(digits)) if !digits.is_empty() => (digits, 8),
        _ => (text, 10),
    };
    let is_number = digits.starts_with(|c: char| c.is_ascii_hexdigit());
    is_number.then(|| u32::from_str_radix(digits, radix).ok()).flatten()
}

/// This machine's addresses, or its networks, as they are now (PostgreSQL: `pg_foreach_ifaddr`).
fn own_networks(whole_net: bool) -> Vec<Network> {
    let own = interface_addresses().unwrap_or_else(|error| {
        tracing::warn!("could not list this machine's addresses, samehost and samenet match nobody: {error}");
        Vec::new()
    });
    let network = |(address, mask): (IpAddr, IpAddr)| match whole_net {
        true => Network::with_mask(address, mask),
        false => Network::with_prefix(address, width(address)),
    };
    own.into_iter().filter_map(network).collect()
}

/// Addresses of this machine with their netmasks.
fn interface_addresses() -> std::io::Result<Vec<(IpAddr, IpAddr)>> {
    let ip = |storage: &nix::sys::socket::SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    let interfaces = nix::ifaddrs::getifaddrs()?;
    Ok(interfaces
        .filter_map(|interface| Some((ip(&interface.address?)?, ip(&interface.netmask?)?)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `pg_hba_file_rules` of PostgreSQL 17 shows them.
    #[test]
    fn addresses_are_read_as_postgresql_reads_them() {
        let check = |text: &str, expected: &str| assert_eq!(parse(text), expected.parse().ok(), "{text}");
        check("10", "0.0.0.10");
        check("10.1", "10.0.0.1");
        check("10.1.2", "10.1.0.2");
        check("10.1.515", "10.1.2.3");
        check("0x0a000001", "10.0.0.1");
        check("010.0.0.1", "8.0.0.1");
        check("4294967295", "255.255.255.255");
        check("::ffff:10.0.0.1", "::ffff:10.0.0.1");
        check("fe80::1%lo", "fe80::1");
        for name in [
            "",
            ".",
            "10.",
            "1.2.3.4.5",
            "300.1.2.3",
            "1.65536.1",
            "db.example.com",
            "4294967296",
            "0x",
            "09",
            "-1",
            "+1",
            "fe80::1%nosuch",
            "1.2.3.4%lo",
        ] {
            check(name, "");
        }
    }
}
