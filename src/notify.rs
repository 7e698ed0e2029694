//! What systemd is told (sd_notify): that the relay is up, reloads, stops, and is alive; and what it is given to keep: listening
//! sockets, for the next process.
//!
//! A message is one datagram of `NAME=value` lines to the socket that `NOTIFY_SOCKET` names, so there is no library for it.
//! Nobody waits for systemd. What it does not take at once is lost if it comes again anyhow, as signs of life do; else a
//! thread goes on trying.

use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// The way to systemd; leads nowhere where nobody listens. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Notifier {
    socket: Option<Arc<UnixDatagram>>,
    watchdog: Option<Duration>,
    keeps: bool,
}

impl Notifier {
    /// As the environment of this process says.
    ///
    /// # Errors
    /// It names a socket that cannot be reached.
    pub fn of_process() -> io::Result<Notifier> {
        Notifier::of(|name| std::env::var_os(name), std::process::id())
    }

    fn of(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> io::Result<Notifier> {
        let Some(name) = variable("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(Notifier::default());
        };
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        let number = |name| variable(name)?.into_string().ok()?.parse::<u64>().ok();
        // Children inherit the variables, and are not meant.
        let is_meant = number("WATCHDOG_PID").is_none_or(|meant| meant == u64::from(pid));
        let limit = number("WATCHDOG_USEC").filter(|limit| is_meant && *limit > 0);
        // Set by systemd 254 and later where FileDescriptorStoreMax= is, and for older ones in our unit.
        let keeps = number("FDSTORE").is_some_and(|most| most > 0);
        Ok(Notifier { socket: Some(Arc::new(socket)), watchdog: limit.map(Duration::from_micros), keeps })
    }

    /// Whether systemd keeps descriptors for the next process.
    pub fn keeps_descriptors(&self) -> bool {
        self.keeps
    }

    /// Gives systemd a descriptor to keep; one that it has already counts once.
    pub fn keep(&self, name: &str, descriptor: OwnedFd) {
        self.insist(Message { text: format!("FDSTORE=1\nFDNAME={name}"), descriptor: Some(descriptor) });
    }

    /// It need not keep what is called so any more.
    pub fn forget(&self, name: &str) {
        self.insist(format!("FDSTOREREMOVE=1\nFDNAME={name}").into());
    }

    /// How long the relay may be silent before it is killed; `None` if nobody watches.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The start is over, or a reload.
    pub fn ready(&self) {
        self.insist("READY=1".to_owned().into());
    }

    /// A reload begins.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.insist(format!("RELOADING=1\nMONOTONIC_USEC={micros}").into());
    }

    /// The stop begins.
    pub fn stopping(&self) {
        self.insist("STOPPING=1".to_owned().into());
    }

    /// For the watchdog.
    pub fn alive(&self) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(b"WATCHDOG=1")
        {
            tracing::debug!("could not tell systemd that the relay is alive: {error}");
        }
    }

    /// What systemd waits for has to arrive: a start that is never ready would be waited for without end.
    fn insist(&self, message: Message) {
        let Some(socket) = self.socket.clone() else { return };
        match message.send(&socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let later = move || send_later(&socket, &message);
                if let Err(error) = std::thread::Builder::new().name("notify".to_owned()).spawn(later) {
                    tracing::warn!("could not tell systemd what it does not take now: {error}");
                }
            }
            Err(error) => tracing::warn!("could not tell systemd {:?}: {error}", message.text),
            Ok(()) => {}
        }
    }
}

/// Text for systemd, and what goes with it.
struct Message {
    text: String,
    descriptor: Option<OwnedFd>,
}

impl From<String> for Message {
    fn from(text: String) -> Message {
        Message { text, descriptor: None }
    }
}

impl Message {
    fn send(&self, socket: &UnixDatagram) -> io::Result<()> {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        let descriptors: Vec<_> = self.descriptor.iter().map(AsFd::as_fd).collect();
        if !descriptors.is_empty() {
            let _has_room = control.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let text = [io::IoSlice::new(self.text.as_bytes())];
        sendmsg(socket, &text, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// Waits for room in systemd's queue.
fn send_later(socket: &UnixDatagram, message: &Message) {
    use rustix::event::{PollFd, PollFlags, poll};
    loop {
        let ready = poll(&mut [PollFd::new(socket, PollFlags::OUT)], None);
        match ready.map_err(io::Error::from).and_then(|_| message.send(socket)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return tracing::warn!("could not tell systemd {:?}: {error}", message.text),
            Ok(()) => return,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What listens, and a notifier with this `WATCHDOG_USEC`.
    pub(crate) fn pair(dir: &std::path::Path, watchdog: &str) -> (UnixDatagram, Notifier) {
        let path = dir.join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        listener.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let variable = |name: &str| match name {
            "NOTIFY_SOCKET" => Some(path.clone().into_os_string()),
            "WATCHDOG_USEC" => Some(watchdog.into()),
            "WATCHDOG_PID" => Some("7".into()),
            _ => None,
        };
        assert_eq!(Notifier::of(variable, 8).unwrap().watchdog(), None, "another process is meant");
        (listener, Notifier::of(variable, 7).unwrap())
    }

    pub(crate) fn heard(listener: &UnixDatagram) -> io::Result<String> {
        let mut message = [0; 200];
        let len = listener.recv(&mut message)?;
        Ok(String::from_utf8(message[..len].to_vec()).unwrap())
    }

    #[test]
    fn systemd_hears_what_is_to_be_heard() {
        let dir = tempfile::tempdir().unwrap();
        let (listener, notifier) = pair(dir.path(), "1500000");
        assert_eq!(notifier.watchdog(), Some(Duration::from_millis(1500)));
        notifier.ready();
        notifier.reloading();
        notifier.alive();
        notifier.stopping();
        let heard: Vec<_> = (0..4).map(|_| heard(&listener).unwrap()).collect();
        assert_eq!((&heard[0][..], &heard[2][..], &heard[3][..]), ("READY=1", "WATCHDOG=1", "STOPPING=1"));
        assert!(heard[1].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{heard:?}");
        drop(listener);
        notifier.alive();
    }

    #[test]
    fn what_systemd_has_no_room_for_arrives_later() {
        let dir = tempfile::tempdir().unwrap();
        let (listener, notifier) = pair(dir.path(), "1500000");
        let mut filled = 0;
        while notifier.socket.as_ref().unwrap().send(b"FILLER=1").is_ok() {
            filled += 1;
        }
        notifier.ready();
        for _ in 0..filled {
            assert_eq!(heard(&listener).unwrap(), "FILLER=1");
        }
        assert_eq!(heard(&listener).unwrap(), "READY=1");
    }

    #[test]
    fn an_abstract_socket_is_found_and_none_is_no_error() {
        let name = format!("walrelay-notify-{}", std::process::id());
        let listener =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
        let variable = |asked: &str| (asked == "NOTIFY_SOCKET").then(|| format!("@{name}").into());
        Notifier::of(variable, 7).unwrap().ready();
        assert_eq!(heard(&listener).unwrap(), "READY=1");
        assert_eq!(Notifier::of(|_| None, 7).unwrap().watchdog(), None);
        assert!(Notifier::of(|_| Some("/nowhere/at/all".into()), 7).is_err());
    }
}
