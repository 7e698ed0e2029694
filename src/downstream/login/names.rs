//! The host names of clients, for lines of pg_hba.conf that have some (PostgreSQL: `check_hostname`).
//!
//! A name service may not answer, so look-ups have threads of their own: a bounded number, each waited for a limited time.
//! Who waits longer than a login may take is gone.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::LazyLock;
use std::time::Duration;

use crate::lane::Lane;

/// As long as the resolver of the C library asks two servers, twice (resolv.conf).
const PATIENCE: Duration = Duration::from_secs(30);

static LANE: LazyLock<Lane> = LazyLock::new(|| Lane::new("client-names", PATIENCE));

/// The name of an address that leads back to it; `None` if there is none, or nobody can say. Cancel-safe.
pub(super) async fn host_name(ip: Option<IpAddr>) -> Option<String> {
    let ip = ip?;
    let found = LANE.run(0, move || confirmed(ip, reverse, forward)).await.unwrap_or_else(Err);
    found.unwrap_or_else(|reason| {
        tracing::info!("could not look up the host name of {ip}, lines with host names do not fit: {reason}");
        None
    })
}

/// A name alone proves nothing: whoever has the address says what it is.
fn confirmed(
    ip: IpAddr,
    reverse: impl Fn(IpAddr) -> Result<String, String>,
    forward: impl Fn(&str) -> Result<Vec<IpAddr>, String>,
) -> Result<Option<String>, String> {
    let name = reverse(ip)?;
    let leads_back = forward(&name)?.contains(&ip);
    if !leads_back {
        tracing::info!(
            "the host name \"{name}\" of {ip} does not lead back to it, lines with host names do not fit"
        );
    }
    Ok(leads_back.then_some(name))
}

fn reverse(ip: IpAddr) -> Result<String, String> {
    let address = SocketAddr::new(ip, 0);
    let (name, _) =
        dns_lookup::getnameinfo(&address, libc::NI_NAMEREQD).map_err(|error| format!("{error:?}"))?;
    Ok(name)
}

fn forward(name: &str) -> Result<Vec<IpAddr>, String> {
    let addresses = (name, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    Ok(addresses.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_counts_if_it_leads_back() {
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let named = |_: IpAddr| Ok("db.example.com".to_owned());
        let leads_to = |text: &'static str| {
            move |_: &str| Ok(vec!["2001:db8::1".parse().unwrap(), text.parse().unwrap()])
        };
        assert_eq!(confirmed(ip, named, leads_to("192.0.2.1")), Ok(Some("db.example.com".to_owned())));
        assert_eq!(confirmed(ip, named, leads_to("192.0.2.2")), Ok(None));
        let nobody = |_: IpAddr| Err("no such name".to_owned());
        assert_eq!(confirmed(ip, nobody, leads_to("192.0.2.1")), Err("no such name".to_owned()));
        assert!(confirmed(ip, named, |_: &str| Err("down".to_owned())).is_err());
    }

    /// Every machine's hosts file has it.
    #[tokio::test]
    async fn this_machine_is_asked_by_its_resolver() {
        assert_eq!(host_name(Some("127.0.0.1".parse().unwrap())).await.as_deref(), Some("localhost"));
        assert_eq!(host_name(None).await, None);
    }
}
