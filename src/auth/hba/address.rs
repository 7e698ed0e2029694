//! Client addresses of `host` lines.

use std::net::IpAddr;

/// Which clients a line is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Address {
    /// `all`, and every `local` line.
    All,
    /// An address and how many of its leading bits count.
    Network(Network),
    /// `samehost`, `samenet`: this machine's addresses, or its networks, at the time of reading.
    Any(Vec<Network>),
}

/// Addresses that share leading bits.
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

    /// `None` if the mask is of the other family or has holes.
    pub(super) fn with_mask(address: IpAddr, mask: IpAddr) -> Option<Network> {
        let same_family = address.is_ipv4() == mask.is_ipv4();
        let bits = number(mask).count_ones();
        Network::with_prefix(address, bits).filter(|network| same_family && network.mask == number(mask))
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
    pub(super) fn matches(&self, ip: IpAddr) -> bool {
        match self {
            Address::All => true,
            Address::Network(network) => network.contains(ip),
            Address::Any(networks) => networks.iter().any(|network| network.contains(ip)),
        }
    }
}

/// Addresses of this machine with their netmasks (PostgreSQL: `pg_foreach_ifaddr`).
pub(super) fn interface_addresses() -> std::io::Result<Vec<(IpAddr, IpAddr)>> {
    let ip = |storage: &nix::sys::socket::SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    let interfaces = nix::ifaddrs::getifaddrs()?;
    Ok(interfaces
        .filter_map(|interface| Some((ip(&interface.address?)?, ip(&interface.netmask?)?)))
        .collect())
}
