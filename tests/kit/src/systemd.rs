//! What systemd does for a service: hears of it, and keeps its descriptors from one process to the next.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::scratch::Scratch;
use crate::wait::PATIENCE;

/// The other end of `NOTIFY_SOCKET`.
#[derive(Debug)]
pub struct Systemd {
    socket: UnixDatagram,
    scratch: Scratch,
    /// By name; as with systemd, each name's descriptors are all that came under it.
    kept: Vec<(String, OwnedFd)>,
}

impl Systemd {
    /// Begins to listen.
    pub fn start() -> Systemd {
        let scratch = Scratch::new("notify");
        let path = scratch.join("socket");
        let socket = UnixDatagram::bind(&path).expect("the directory is ours");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).expect("it is ours");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket has a limit");
        Systemd { socket, scratch, kept: Vec::new() }
    }

    /// For the service's environment.
    pub fn notify_socket(&self) -> PathBuf {
        self.scratch.join("socket")
    }

    /// The next message, signs of life included. Descriptors that come with it are kept.
    #[track_caller]
    pub fn hear(&mut self) -> String {
        let mut text = [0; 1000];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let mut slices = [IoSliceMut::new(&mut text)];
        let got = recvmsg(&self.socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
            .expect("systemd hears of the relay");
        let message = String::from_utf8_lossy(&text[..got.bytes]).into_owned();
        let name = message.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
        if message.contains("FDSTOREREMOVE=1") {
            self.kept.retain(|(kept, _)| kept != name);
        }
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        self.kept.extend(rights.flatten().map(|descriptor| (name.to_owned(), descriptor)));
        message
    }

    /// Drops what has come so far.
    pub fn forget(&mut self) {
        self.socket.set_nonblocking(true).expect("it is open");
        while self.socket.recv(&mut [0; 1000]).is_ok() {}
        self.socket.set_nonblocking(false).expect("it is open");
    }

    /// Reads until this message comes.
    #[track_caller]
    pub fn wait_for(&mut self, wanted: &str) {
        while !self.hear().starts_with(wanted) {}
    }

    /// The names of what is kept.
    pub fn names(&self) -> Vec<&str> {
        self.kept.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// What the next process is passed. (The same socket that comes again counts once for systemd: here it is let go.)
    pub fn pass(&mut self) -> Vec<(String, OwnedFd)> {
        std::mem::take(&mut self.kept)
    }
}
