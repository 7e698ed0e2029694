//! TCP ports that no other test takes.
//!
//! "Bind port 0, close, hand the number to a server" loses a race now and then: the kernel gives the same
//! number to the next who asks, or to an outgoing connection. So ports come from below the ephemeral range,
//! and a lock on a file named after the number is held as long as the port is in use, across restarts of the
//! server behind it.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 12_000;
const COUNT: u16 = 18_000;

/// A port on 127.0.0.1 that belongs to this value alone.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// Locked; the file stays, because removing it would let two processes lock two files of one name.
    _lock: File,
}

static NEXT: AtomicU16 = AtomicU16::new(0);

impl Port {
    /// Takes a free port.
    pub fn take() -> Port {
        // Processes start at different places, so that they rarely meet.
        let start = (u64::from(std::process::id()) * 37 % u64::from(COUNT)) as u16;
        for _ in 0..COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
            if let Some(port) = Port::try_take(FIRST + (start + step) % COUNT) {
                return port;
            }
        }
        panic!("no free port between {FIRST} and {}", FIRST + COUNT);
    }

    fn try_take(number: u16) -> Option<Port> {
        let dir = lock_dir();
        fs::create_dir_all(&dir)
            .unwrap_or_else(|error| panic!("could not create {}: {error}", dir.display()));
        let lock = File::create(dir.join(number.to_string())).ok()?;
        lock.try_lock().ok()?;
        TcpListener::bind(("127.0.0.1", number)).ok()?;
        Some(Port { number, _lock: lock })
    }

    /// The number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

fn lock_dir() -> PathBuf {
    std::env::temp_dir().join(format!("walrelay-ports-{}", rustix::process::getuid().as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_ours_until_dropped() {
        let port = Port::take();
        let number = port.number();
        assert!(Port::try_take(number).is_none());
        drop(port);
        assert!(Port::try_take(number).is_some());
    }
}
