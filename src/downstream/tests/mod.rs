//! Scripted clients against the consumers' side, over loopback.

pub(crate) mod authority;
mod commands;
mod fence;
mod frozen;
mod fuzz;
mod hostile;
pub(crate) mod kit;
mod limits;
mod live;
mod login;
mod recall;
mod robustness;
mod slots;
mod streaming;
mod timelines;
mod tls;

use super::*;

#[test]
fn listen_addresses_are_read() {
    let check = |text: &str, expected| {
        let parsed = text.parse::<ListenAddr>().unwrap();
        assert_eq!((parsed.to_string().as_str(), &parsed), (text, &expected));
    };
    let tcp = |host: &str, port| ListenAddr::Tcp { host: host.into(), port };
    let unix = |dir: &str, port| ListenAddr::Unix { dir: dir.into(), port };
    check("127.0.0.1:5433", tcp("127.0.0.1", 5433));
    check("[::1]:0", tcp("::1", 0));
    check("*:5432", tcp("*", 5432));
    check("relay.example.com:5432", tcp("relay.example.com", 5432));
    check("/run/walrelay", unix("/run/walrelay", None));
    check("/run/walrelay:5433", unix("/run/walrelay", Some(5433)));
    for bad in ["", "5432", ":5432", "::1:5432", "host:", "host:65536", "[::1:1", "run:x", "relative/dir"] {
        assert!(bad.parse::<ListenAddr>().is_err(), "{bad}");
    }
}
