//! Listening sockets that outlive a process: a client that connects while a new process of the relay takes over waits in the
//! kernel's queue, and is not refused.
//!
//! ```text
//! systemd: a .socket unit ───────────┐
//! systemd: what it keeps of ours ────┼─ LISTEN_FDS, LISTEN_FDNAMES ──> Sockets ── by address ──> whoever listens
//! the process before, by exec ───────┘                                    │
//!                                                                         └─ a second handle of each: for the next process
//! ```
//!
//! A socket is taken by whoever would listen at its address else. One that nobody takes is an error if somebody has set it up
//! for this relay. If it is one of the relay's own from before, the configuration has changed since: it is closed.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, getsockname, recvmsg, socket_with, sockopt,
};
use rustix::process::{Resource, getrlimit};

/// What the names of sockets begin with that the relay itself has made.
const OURS: &str = "kept-";
/// Number of the first descriptor that is passed (`SD_LISTEN_FDS_START`); LISTEN_FDS_FIRST_FD may name another.
const FIRST: RawFd = 3;
/// Numbers that are left free between those in use and those that are passed on.
const GAP: RawFd = 64;
/// Most sockets that are believed to have been passed.
const MOST: i32 = 1000;

/// What was passed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// It is no socket that listens.
    #[error(
        "descriptor {number} of LISTEN_FDS (\"{name}\") is not a listening stream socket; the socket unit needs ListenStream="
    )]
    Unusable {
        /// The descriptor.
        number: RawFd,
        /// What it is called.
        name: String,
    },
    /// Nobody wants it.
    #[error(
        "socket {address} of LISTEN_FDS (\"{name}\") fits no --listen and no --http-listen; give both the same address, or remove \
         it from the socket unit"
    )]
    Unclaimed {
        /// Where it listens.
        address: String,
        /// What it is called.
        name: String,
    },
}

/// Who listens at a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum For {
    /// `--listen`.
    Consumers,
    /// `--http-listen`.
    Http,
}

impl For {
    fn word(self) -> &'static str {
        match self {
            For::Consumers => "listen",
            For::Http => "http",
        }
    }

    /// Whether a socket of this name may be meant; most names say nothing about it.
    fn may_take(self, name: &str) -> bool {
        let is_http = word_of(name) == For::Http.word();
        if name.starts_with(OURS) || is_http { self.is_meant(name) } else { true }
    }

    /// Whether the name says so.
    fn is_meant(self, name: &str) -> bool {
        word_of(name) == self.word()
    }
}

/// What a name says of who listens there.
fn word_of(name: &str) -> &str {
    name.strip_prefix(OURS).map_or(name, |rest| rest.split('-').next().unwrap_or_default())
}

/// A socket that is there already.
#[derive(Debug)]
pub struct Given<T> {
    /// The socket.
    pub socket: T,
    /// What it is called.
    name: String,
}

impl<T> Given<T> {
    /// Whether somebody else has set it up, and will take it down.
    pub fn is_somebody_elses(&self) -> bool {
        !self.name.starts_with(OURS)
    }
}

impl Given<Listening> {
    /// It is used no longer, and it has no name in a directory any more. What it is called.
    fn end(self) -> String {
        if let Listening::Unix(socket, path) = &self.socket
            && leads_to(path, socket)
        {
            let _ = fs::remove_file(path);
        }
        self.name
    }
}

#[derive(Debug)]
enum Listening {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, PathBuf),
}

/// A socket that a part of the relay listens at.
#[derive(Debug)]
struct Open {
    name: String,
    socket: OwnedFd,
}

/// The listening sockets of the process, those that were passed and those that will be.
#[derive(Debug, Default)]
pub struct Sockets {
    given: Mutex<Vec<Given<Listening>>>,
    open: Mutex<Vec<Open>>,
    /// Names of Unix sockets that were left in place.
    left: Mutex<Vec<PathBuf>>,
    /// Somebody keeps them whatever the process ends for.
    stay: AtomicBool,
    /// The next program of this process gets them.
    stay_for_next: AtomicBool,
}

impl Sockets {
    /// Takes what was passed to this process. To be called once, and before anything else opens descriptors.
    ///
    /// # Errors
    /// What was passed is no listening socket.
    pub fn of_process() -> Result<Sockets, SocketsError> {
        let variable = |name: &str| std::env::var(name).ok();
        let number = |name: &str| variable(name)?.parse::<i32>().ok();
        // Children inherit the variables, and are not meant.
        let is_meant = variable("LISTEN_PID") == Some(std::process::id().to_string());
        let count = number("LISTEN_FDS").filter(|count| is_meant && (0..=MOST).contains(count));
        let first = number("LISTEN_FDS_FIRST_FD").filter(|first| *first >= FIRST).unwrap_or(FIRST);
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut given = Vec::new();
        for number in (first..).take(count.unwrap_or_default().unsigned_abs() as usize) {
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown").to_owned();
            let socket = take(number).ok().and_then(listening);
            let socket = socket.ok_or_else(|| SocketsError::Unusable { number, name: name.clone() })?;
            given.push(Given { socket, name });
        }
        Ok(Sockets { given: Mutex::new(given), ..Sockets::default() })
    }

    /// The socket for this address, if one was passed. It does not block. Port 0 is any; for HTTP, which comes first, any whose
    /// name says so.
    pub fn take_tcp(&self, who: For, wanted: SocketAddr) -> Option<Given<TcpListener>> {
        let fits = |name: &str, address: &SocketAddr| {
            let is_any = wanted.port() == 0 && (who == For::Consumers || who.is_meant(name));
            address.ip() == wanted.ip() && (is_any || address.port() == wanted.port())
        };
        let given = self.take(
            who,
            |given| matches!(&given.socket, Listening::Tcp(_, address) if fits(&given.name, address)),
        )?;
        match given.socket {
            Listening::Tcp(socket, _) => Some(Given { socket, name: given.name }),
            Listening::Unix(..) => None,
        }
    }

    /// The socket with this path, if one was passed and the path still leads somewhere. It does not block.
    pub fn take_unix(&self, who: For, path: &Path) -> Option<Given<UnixListener>> {
        let wanted = real(path);
        let fits = |given: &Given<Listening>| matches!(&given.socket, Listening::Unix(_, path) if real(path) == wanted);
        let given = self.take(who, fits)?;
        match given.socket {
            // Its directory was made anew, say, or another server has taken its name: nobody can connect to it any more.
            Listening::Unix(ref socket, _) if !leads_to(path, socket) => None,
            Listening::Unix(socket, _) => Some(Given { socket, name: given.name }),
            Listening::Tcp(..) => None,
        }
    }

    fn take(&self, who: For, fits: impl Fn(&Given<Listening>) -> bool) -> Option<Given<Listening>> {
        let mut all = lock(&self.given);
        let number = all.iter().position(|given| who.may_take(&given.name) && fits(given))?;
        Some(all.remove(number))
    }

    /// Notes that a part of the relay listens here, at a socket that was passed or at one of its own.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn note(&self, who: For, socket: impl AsFd, address: &str, given: Option<String>) -> io::Result<()> {
        let name = given.unwrap_or_else(|| format!("{OURS}{}-{}", who.word(), legal(address)));
        let socket = socket.as_fd().try_clone_to_owned()?;
        lock(&self.open).push(Open { name, socket });
        Ok(())
    }

    /// All who listen have what they want. The names of the relay's own that nobody wants any more; they are closed.
    ///
    /// # Errors
    /// Nobody wants what somebody else has set up.
    pub fn settle(&self) -> Result<Vec<String>, SocketsError> {
        let left = std::mem::take(&mut *lock(&self.given));
        match left.iter().find(|given| given.is_somebody_elses()) {
            Some(Given { socket, name }) => {
                Err(SocketsError::Unclaimed { address: socket.to_string(), name: name.clone() })
            }
            None => Ok(left.into_iter().map(Given::end).collect()),
        }
    }

    /// The process ends before anybody has taken what the one before has left it.
    pub fn end_unused(&self) {
        let left = std::mem::take(&mut *lock(&self.given));
        left.into_iter().filter(|given| !given.is_somebody_elses()).for_each(|given| drop(given.end()));
    }

    /// Has them stay open, and the names of Unix sockets in place, when this process ends: whoever connects meanwhile waits.
    pub fn stay(&self) {
        self.stay.store(true, Ordering::Relaxed);
    }

    /// The same if the process ends for its next program, until [`stay_no_longer`](Sockets::stay_no_longer).
    pub fn stay_for_next(&self) {
        self.stay_for_next.store(true, Ordering::Relaxed);
    }

    /// There is no next program after all: what was to stay for it goes.
    pub fn stay_no_longer(&self) {
        let left = {
            let mut left = lock(&self.left);
            self.stay_for_next.store(false, Ordering::Relaxed);
            if self.will_stay() {
                return;
            }
            std::mem::take(&mut *left)
        };
        // As long as the sockets are open nobody else takes their names.
        left.iter().for_each(|path| drop(fs::remove_file(path)));
        self.let_go();
    }

    /// Whether they stay.
    pub fn will_stay(&self) -> bool {
        self.stay.load(Ordering::Relaxed) || self.stay_for_next.load(Ordering::Relaxed)
    }

    /// Whoever has listened at this Unix socket of the relay's own has ended: its name goes, or stays in place.
    pub fn end_name(&self, path: &Path) {
        {
            let mut left = lock(&self.left);
            if self.will_stay() {
                return left.push(path.to_owned());
            }
        }
        let _ = fs::remove_file(path);
    }

    /// Those who listen are the last who have them.
    pub fn let_go(&self) {
        lock(&self.open).clear();
    }

    /// Those that the relay has made itself, by name.
    pub fn own(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let open = lock(&self.open);
        let own = open.iter().filter(|open| open.name.starts_with(OURS));
        own.map(|open| Ok((open.name.clone(), open.socket.try_clone()?))).collect()
    }

    /// All of them, for the next program of this process, which [`of_process`](Sockets::of_process) of that takes.
    ///
    /// They get numbers above all that are in use: threads that are left behind may still close theirs, and must not close those.
    ///
    /// # Errors
    /// There are no such numbers.
    pub fn into_next(&self) -> io::Result<Passed> {
        let open = std::mem::take(&mut *lock(&self.open));
        let names: Vec<&str> = open.iter().map(|open| open.name.as_str()).collect();
        let names = names.join(":");
        let first = first_number(open.len());
        let mut sockets = Vec::new();
        for (number, open) in (first..).zip(&open) {
            let socket = fcntl_dupfd_cloexec(&open.socket, number)?;
            if socket.as_raw_fd() != number {
                return Err(io::Error::other(format!("descriptor {number} is in use")));
            }
            fcntl_setfd(&socket, FdFlags::empty())?;
            sockets.push(socket);
        }
        Ok(Passed { first, names, sockets })
    }
}

/// Sockets that are open in the next program as well, until this is dropped.
#[derive(Debug)]
pub struct Passed {
    first: RawFd,
    names: String,
    sockets: Vec<OwnedFd>,
}

impl Passed {
    /// What the next program has to be told in its environment.
    pub fn variables(&self) -> [(&'static str, String); 4] {
        [
            ("LISTEN_PID", std::process::id().to_string()),
            ("LISTEN_FDS", self.sockets.len().to_string()),
            ("LISTEN_FDS_FIRST_FD", self.first.to_string()),
            ("LISTEN_FDNAMES", self.names.clone()),
        ]
    }
}

/// The first of `count` numbers of descriptors that nobody has, and nobody is given: the lowest that is free is the next.
fn first_number(count: usize) -> RawFd {
    let numbers = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
    let above = numbers.max().unwrap_or(1000).saturating_add(GAP);
    let limit = getrlimit(Resource::Nofile).current.and_then(|limit| RawFd::try_from(limit).ok());
    let count = RawFd::try_from(count).unwrap_or(RawFd::MAX);
    above.min(limit.unwrap_or(RawFd::MAX).saturating_sub(count))
}

/// The descriptor that was passed under this number. It is sent to ourselves: what comes of that is owned, under another number,
/// without any unsafe claim.
fn take(number: RawFd) -> io::Result<OwnedFd> {
    let (sender, receiver) = UnixDatagram::pair()?;
    let text = [IoSlice::new(b"x")];
    let rights = [number];
    let rights = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(sender.as_raw_fd(), &text, &rights, MsgFlags::empty(), None)?;
    nix::unistd::close(number)?;
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    recvmsg(&receiver, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let got = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    got.ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl<T> Given<T> {
    /// The socket, and its name if it is somebody else's, for [`Sockets::note`].
    pub fn into_parts(self) -> (T, Option<String>) {
        let name = self.is_somebody_elses().then_some(self.name);
        (self.socket, name)
    }
}

impl std::fmt::Display for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Listening::Tcp(_, address) => address.fmt(f),
            Listening::Unix(_, path) => write!(f, "\"{}\"", path.display()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What it listens at, if it does.
fn listening(socket: OwnedFd) -> Option<Listening> {
    let is_stream = sockopt::socket_type(&socket).ok()? == SocketType::STREAM;
    if !is_stream || !sockopt::socket_acceptconn(&socket).ok()? {
        return None;
    }
    match getsockname(&socket).ok()?.address_family() {
        AddressFamily::INET | AddressFamily::INET6 => {
            let socket = TcpListener::from(socket);
            socket.set_nonblocking(true).ok()?;
            let address = socket.local_addr().ok()?;
            Some(Listening::Tcp(socket, address))
        }
        AddressFamily::UNIX => {
            let socket = UnixListener::from(socket);
            socket.set_nonblocking(true).ok()?;
            let path = socket.local_addr().ok()?.as_pathname()?.to_owned();
            Some(Listening::Unix(socket, path))
        }
        _ => None,
    }
}

/// `/var/run` and `/run` are the same.
fn real(path: &Path) -> PathBuf {
    let dir = path.parent().and_then(|dir| fs::canonicalize(dir).ok());
    match (dir, path.file_name()) {
        (Some(dir), Some(name)) => dir.join(name),
        _ => path.to_owned(),
    }
}

/// Whether whoever connects to this path comes to this socket. Where that cannot be told, it does: the socket was passed for it.
fn leads_to(path: &Path, socket: &UnixListener) -> bool {
    use rustix::io::Errno;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let Ok(client) = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None) else { return true };
    let Ok(address) = SocketAddrUnix::new(path) else { return true };
    let listens = |socket: BorrowedFd<'_>| {
        sockopt::socket_peercred(socket).map(|of| (of.pid, of.uid.as_raw(), of.gid.as_raw())).ok()
    };
    match connect(&client, &address) {
        // On both sides that is who has begun to listen.
        Ok(()) => listens(client.as_fd()) == listens(socket.as_fd()),
        Err(error) => !matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::CONNREFUSED),
    }
}

/// systemd takes no colons in names, and nothing but ASCII.
fn legal(address: &str) -> String {
    let legal = |c: char| if c.is_ascii_graphic() && c != ':' { c } else { '_' };
    address.chars().map(legal).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(name: &str, address: &str) -> Given<Listening> {
        let socket = TcpListener::bind(address).unwrap();
        let address = socket.local_addr().unwrap();
        Given { socket: Listening::Tcp(socket, address), name: name.to_owned() }
    }

    fn sockets(given: Vec<Given<Listening>>) -> Sockets {
        Sockets { given: Mutex::new(given), ..Sockets::default() }
    }

    fn address_of(given: &Given<Listening>) -> SocketAddr {
        match &given.socket {
            Listening::Tcp(_, address) => *address,
            Listening::Unix(..) => unreachable!(),
        }
    }

    #[test]
    fn a_socket_is_taken_by_whoever_would_listen_there() {
        let (one, http) = (given("walrelay.socket", "127.0.0.1:0"), given("http", "127.0.0.1:0"));
        let (at_one, at_http) = (address_of(&one), address_of(&http));
        let passed = sockets(vec![one, http]);
        let other = SocketAddr::from(([127, 0, 0, 2], at_one.port()));
        assert!(passed.take_tcp(For::Consumers, other).is_none());
        let only_one = sockets(vec![given("walrelay.socket", "127.0.0.1:0")]);
        let any_at_all = SocketAddr::from(([127, 0, 0, 1], 0));
        assert!(only_one.take_tcp(For::Http, any_at_all).is_none(), "it is for consumers, who come later");
        // Of two that fit, the one that is not called http.
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let taken = passed.take_tcp(For::Consumers, any).unwrap();
        assert_eq!(taken.socket.local_addr().unwrap(), at_one);
        assert!(taken.is_somebody_elses());
        assert!(passed.take_tcp(For::Consumers, at_http).is_none());
        assert!(passed.take_tcp(For::Http, at_http).is_some());
        assert_eq!(passed.settle().unwrap(), [""; 0]);
    }

    #[test]
    fn what_nobody_wants_is_an_error_unless_it_is_our_own() {
        let ours = sockets(vec![given("kept-listen-127.0.0.1_5432", "127.0.0.1:0")]);
        assert_eq!(ours.settle().unwrap(), ["kept-listen-127.0.0.1_5432"]);
        let units = given("walrelay.socket", "127.0.0.1:0");
        let address = address_of(&units);
        let error = sockets(vec![units]).settle().unwrap_err().to_string();
        assert!(error.contains(&format!("socket {address} of LISTEN_FDS (\"walrelay.socket\")")), "{error}");
    }

    #[test]
    fn a_unix_socket_whose_path_is_gone_is_of_no_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let passed = || {
            let _ = fs::remove_file(&path);
            let socket = UnixListener::bind(&path).unwrap();
            let socket = Listening::Unix(socket, path.clone());
            sockets(vec![Given { socket, name: "kept-listen-s".to_owned() }])
        };
        let by_another_name = dir.path().join(".").join("s");
        assert!(passed().take_unix(For::Consumers, &by_another_name).is_some());
        let here = passed();
        fs::remove_file(&path).unwrap();
        assert!(here.take_unix(For::Consumers, &path).is_none());
        assert_eq!(here.settle().unwrap(), [""; 0]);
        // Something else has got its name.
        let here = passed();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(here.take_unix(For::Consumers, &path).is_none());
        let here = passed();
        fs::remove_file(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        assert!(here.take_unix(For::Consumers, &path).is_none());
        // So many wait there that there is no room: they wait for the one that has this name.
        let here = passed();
        let waiting: Vec<_> = std::iter::from_fn(|| try_connect(&path)).collect();
        assert!(!waiting.is_empty() && here.take_unix(For::Consumers, &path).is_some());
    }

    /// `None` when there is no room.
    fn try_connect(path: &Path) -> Option<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        connect(&client, &SocketAddrUnix::new(path).unwrap()).ok().map(|()| client)
    }

    #[test]
    fn names_that_were_left_for_the_next_program_go_if_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let all = Sockets::default();
        let _socket = UnixListener::bind(&path).unwrap();
        all.stay_for_next();
        all.end_name(&path);
        assert!(path.exists());
        all.stay_no_longer();
        assert!(!path.exists() && !all.will_stay());
        // Those that somebody keeps stay.
        let _socket = UnixListener::bind(&path).unwrap();
        all.stay();
        all.stay_for_next();
        all.end_name(&path);
        all.stay_no_longer();
        assert!(path.exists() && all.will_stay());
    }

    #[test]
    fn the_relays_own_are_told_from_others_and_have_names_that_systemd_takes() {
        let all = Sockets::default();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        all.note(For::Consumers, &socket, "[::1]:5432", None).unwrap();
        all.note(For::Consumers, &socket, "/tmp/ä", None).unwrap();
        all.note(For::Http, &socket, "127.0.0.1:80", Some("http".to_owned())).unwrap();
        let own: Vec<String> = all.own().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(own, ["kept-listen-[__1]_5432", "kept-listen-/tmp/_"]);
        let next = all.into_next().unwrap();
        let [pid, count, first, names] = next.variables().map(|(_, value)| value);
        assert_eq!((pid, count), (std::process::id().to_string(), "3".to_owned()));
        assert_eq!(names, "kept-listen-[__1]_5432:kept-listen-/tmp/_:http");
        let numbers: Vec<String> = next.sockets.iter().map(|it| it.as_raw_fd().to_string()).collect();
        assert_eq!(numbers[0], first);
    }

    #[test]
    fn a_descriptor_is_taken_by_its_number() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        // Above what other tests open meanwhile.
        let passed = fcntl_dupfd_cloexec(&socket, first_number(1)).unwrap();
        drop(socket);
        let number = std::os::fd::IntoRawFd::into_raw_fd(passed);
        let taken = listening(take(number).unwrap());
        assert!(matches!(taken, Some(Listening::Tcp(_, at)) if at == address), "{taken:?}");
        assert!(take(number).is_err(), "it is gone");
        let stream = std::net::TcpStream::connect(address).unwrap();
        assert!(listening(stream.into()).is_none());
        let file = fs::File::open("/dev/null").unwrap();
        assert!(listening(file.into()).is_none());
    }
}
