//! A link between two ends of a TCP connection, and all that can happen to it: delays, pieces, silence, cuts, flipped bits.
//!
//! It looks into the stream of what a PostgreSQL server sends, as far as it needs to know when WAL has crossed, and to
//! flip bits where a test wants them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, park_timeout};
use std::time::Duration;

use fastrand::Rng;
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};

use crate::port::Port;

/// How soon what happens to a link is noticed by its connections.
const TICK: Duration = Duration::from_millis(2);
/// Most that is on its way without being seen by the other end, bytes.
const BUFFER: usize = 64 << 10;

/// What a link is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weather {
    /// Everything passes at once.
    Fair,
    /// Everything takes some milliseconds.
    Slow,
    /// Everything comes in pieces of one to three bytes.
    Crumbs,
    /// Nothing passes towards the client; nothing is lost.
    HoleDown,
    /// Nothing passes towards the server.
    HoleUp,
    /// Nothing passes, and nobody gets a connection through.
    Hole,
    /// Nobody gets a connection: each is cut at once. Those that are there stay.
    Refusing,
}

/// Which bit is flipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bit {
    /// As often in what says what the message is as in its WAL.
    OfMessage,
    /// In its WAL.
    OfWal,
}

/// A port that leads to another one. Ends, and cuts all connections, when dropped.
#[derive(Debug)]
pub struct Link {
    port: Port,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: u16,
    weather: Mutex<Weather>,
    /// Connections of an earlier one are cut.
    cut: AtomicU64,
    /// For connections of an earlier one the server has nothing more to say, as far as the client sees.
    half_closed: AtomicU64,
    /// A bit is to be flipped in the next message with WAL.
    flip: Mutex<Option<Bit>>,
    /// What has happened since the start.
    connections: AtomicU64,
    wal: AtomicU64,
    /// Flipped bits, and those of them that have to be noticed.
    flipped: AtomicU64,
    harmful: AtomicU64,
    /// Those of the latter whose connections are there still.
    unnoticed: AtomicU64,
    open: AtomicUsize,
    over: AtomicBool,
    random: Mutex<Rng>,
}

impl Link {
    /// A link to `port` on this machine; what is random in it comes from `seed`.
    pub fn to(target: u16, seed: u64) -> Link {
        let port = Port::take();
        let listener = TcpListener::bind(("127.0.0.1", port.number())).expect("the port is ours");
        listener.set_nonblocking(true).expect("a listener can be non-blocking");
        set_socket_recv_buffer_size(&listener, BUFFER).expect("a size that every kernel takes");
        let shared = Arc::new(Shared {
            target,
            weather: Mutex::new(Weather::Fair),
            cut: AtomicU64::new(0),
            half_closed: AtomicU64::new(0),
            flip: Mutex::default(),
            connections: AtomicU64::new(0),
            wal: AtomicU64::new(0),
            flipped: AtomicU64::new(0),
            harmful: AtomicU64::new(0),
            unnoticed: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            random: Mutex::new(Rng::with_seed(seed)),
        });
        let accepting = shared.clone();
        let thread = std::thread::spawn(move || accept(&listener, &accepting));
        Link { port, shared, thread: Some(thread) }
    }

    /// The port of this end.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// How libpq gets through it.
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres sslmode=disable gssencmode=disable", self.port())
    }

    /// From now on it is like this.
    pub fn set(&self, weather: Weather) {
        *lock(&self.shared.weather) = weather;
    }

    /// Cuts all connections, as a firewall does: both ends get a reset.
    pub fn reset(&self) {
        self.shared.cut.fetch_add(1, Ordering::SeqCst);
    }

    /// Clients of all connections see the end of what the server says, and the server goes on hearing them.
    pub fn half_close(&self) {
        self.shared.half_closed.fetch_add(1, Ordering::SeqCst);
    }

    /// Flips a bit in the next message with WAL that crosses.
    pub fn flip_a_bit(&self, which: Bit) {
        *lock(&self.shared.flip) = Some(which);
    }

    /// How many connections were made, or tried.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many connections there are.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Bytes of WAL that have crossed, in whole messages.
    pub fn wal(&self) -> u64 {
        self.shared.wal.load(Ordering::SeqCst)
    }

    /// How many bits were flipped.
    pub fn flipped(&self) -> u64 {
        self.shared.flipped.load(Ordering::SeqCst)
    }

    /// How many of them have to be noticed: not the server's clock and its newest position, which say nothing of the WAL.
    pub fn harmful(&self) -> u64 {
        self.shared.harmful.load(Ordering::SeqCst)
    }

    /// How many of these were flipped on connections that are there still: their clients have not noticed it so far.
    pub fn unnoticed(&self) -> u64 {
        self.shared.unnoticed.load(Ordering::SeqCst)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn weather(&self) -> Weather {
        *lock(&self.weather)
    }

    fn below(&self, end: u64) -> u64 {
        lock(&self.random).u64(..end)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut carriers: Vec<JoinHandle<()>> = Vec::new();
    while !shared.over.load(Ordering::SeqCst) {
        let Ok((client, _)) = listener.accept() else {
            park_timeout(TICK / 2);
            continue;
        };
        shared.connections.fetch_add(1, Ordering::SeqCst);
        if shared.weather() == Weather::Refusing {
            let _ = set_socket_linger(&client, Some(Duration::ZERO));
            continue;
        }
        carriers.retain(|carrier| !carrier.is_finished());
        let shared = shared.clone();
        carriers.push(std::thread::spawn(move || {
            shared.open.fetch_add(1, Ordering::SeqCst);
            carry(client, &shared);
            shared.open.fetch_sub(1, Ordering::SeqCst);
        }));
    }
    for carrier in carriers {
        let _ = carrier.join();
    }
}

/// A connection, and what becomes of it.
struct Connection<'a> {
    shared: &'a Shared,
    client: TcpStream,
    server: TcpStream,
    cut: u64,
    half_closed: u64,
    /// One direction has failed, so the other is over.
    failed: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

fn carry(client: TcpStream, shared: &Shared) {
    let (cut, half_closed) = (shared.cut.load(Ordering::SeqCst), shared.half_closed.load(Ordering::SeqCst));
    while shared.weather() == Weather::Hole {
        if shared.over.load(Ordering::SeqCst) || shared.cut.load(Ordering::SeqCst) != cut {
            let _ = set_socket_linger(&client, Some(Duration::ZERO));
            return;
        }
        park_timeout(TICK);
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", shared.target)) else { return };
    let _ = set_socket_recv_buffer_size(&server, BUFFER);
    for socket in [&client, &server] {
        let ready = socket
            .set_read_timeout(Some(TICK))
            .and(socket.set_write_timeout(Some(TICK)))
            .and(socket.set_nodelay(true));
        if ready.is_err() {
            return;
        }
    }
    let connection = Connection { shared, client, server, cut, half_closed, failed: AtomicBool::new(false) };
    std::thread::scope(|threads| {
        threads.spawn(|| connection.pass(Way::Up));
        connection.pass(Way::Down);
    });
    if connection.failed.load(Ordering::SeqCst) {
        for socket in [&connection.client, &connection.server] {
            let _ = set_socket_linger(socket, Some(Duration::ZERO));
        }
    }
}

impl Connection<'_> {
    /// Whether it is to be cut now.
    fn is_over(&self) -> bool {
        let over = self.shared.over.load(Ordering::SeqCst);
        if over || self.shared.cut.load(Ordering::SeqCst) != self.cut {
            self.failed.store(true, Ordering::SeqCst);
        }
        self.failed.load(Ordering::SeqCst)
    }

    fn pass(&self, way: Way) {
        let mut messages = Messages::default();
        self.pass_messages(way, &mut messages);
        self.shared.unnoticed.fetch_sub(messages.harmful, Ordering::SeqCst);
    }

    fn pass_messages(&self, way: Way, messages: &mut Messages) {
        let (mut from, to) = match way {
            Way::Up => (&self.client, &self.server),
            Way::Down => (&self.server, &self.client),
        };
        let mut buffer = vec![0; BUFFER];
        while !self.is_over() {
            if way == Way::Down && self.shared.half_closed.load(Ordering::SeqCst) != self.half_closed {
                let _ = to.shutdown(Shutdown::Write);
                return self.swallow(from);
            }
            if self.is_blocked(way) {
                park_timeout(TICK);
                continue;
            }
            let count = match from.read(&mut buffer) {
                Ok(0) => {
                    let _ = to.shutdown(Shutdown::Write);
                    return;
                }
                Ok(count) => count,
                Err(error) if is_silence(&error) => continue,
                Err(_) => break,
            };
            let whole = match way {
                Way::Down => messages.read(&mut buffer[..count], self.shared),
                Way::Up => 0,
            };
            if !self.give(to, &buffer[..count], way) {
                break;
            }
            self.shared.wal.fetch_add(whole, Ordering::SeqCst);
        }
        self.failed.store(true, Ordering::SeqCst);
    }

    fn is_blocked(&self, way: Way) -> bool {
        match self.shared.weather() {
            Weather::Hole => true,
            Weather::HoleDown => way == Way::Down,
            Weather::HoleUp => way == Way::Up,
            _ => false,
        }
    }

    /// Whether all of it was given.
    fn give(&self, mut to: &TcpStream, mut bytes: &[u8], way: Way) -> bool {
        while !bytes.is_empty() {
            if self.is_over() {
                return false;
            }
            let most = match self.shared.weather() {
                Weather::Crumbs => bytes.len().min(1 + self.shared.below(3) as usize),
                Weather::Slow => {
                    park_timeout(Duration::from_millis(1 + self.shared.below(8)));
                    bytes.len()
                }
                _ if self.is_blocked(way) => {
                    park_timeout(TICK);
                    continue;
                }
                _ => bytes.len(),
            };
            match to.write(&bytes[..most]) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_silence(&error) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// What the server says to somebody who is not listening any more.
    fn swallow(&self, mut from: &TcpStream) {
        let mut buffer = [0; 4096];
        while !self.is_over() {
            match from.read(&mut buffer) {
                Ok(0) => return,
                Err(error) if !is_silence(&error) => return self.failed.store(true, Ordering::SeqCst),
                _ => {}
            }
        }
    }
}

fn is_silence(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// The messages that a server sends: type, length, content.
#[derive(Default)]
struct Messages {
    head: [u8; Messages::HEAD],
    seen: usize,
    /// Bytes of the message behind the head.
    left: u64,
    wal: u64,
    /// How far the bit that is to be flipped is away.
    flip: Option<u64>,
    /// Bits flipped that have to be noticed.
    harmful: u64,
}

impl Messages {
    /// Type, length, and the first byte of the content.
    const HEAD: usize = 6;
    /// What comes before the WAL in the content: its kind, three words.
    const XLOG_HEADER: u64 = 25;

    /// Goes on with these bytes, which may be changed; how much WAL has come in messages that end in them.
    fn read(&mut self, bytes: &mut [u8], shared: &Shared) -> u64 {
        let (mut whole, mut at) = (0, 0);
        while at < bytes.len() {
            if self.seen < Messages::HEAD {
                self.head[self.seen] = bytes[at];
                (self.seen, at) = (self.seen + 1, at + 1);
                let length =
                    u64::from(u32::from_be_bytes([self.head[1], self.head[2], self.head[3], self.head[4]]));
                if self.seen == 5 && length <= 4 {
                    self.seen = 0;
                } else if self.seen == Messages::HEAD {
                    self.left = length.saturating_sub(5);
                    self.begin(bytes, at, shared);
                }
            } else {
                let step = self.left.min((bytes.len() - at) as u64);
                if let Some(away) = self.flip.take() {
                    match away < step {
                        true => self.flip_in(&mut bytes[at + away as usize], shared),
                        false => self.flip = Some(away - step),
                    }
                }
                at += step as usize;
                self.left -= step;
            }
            if self.seen == Messages::HEAD && self.left == 0 {
                whole += std::mem::take(&mut self.wal);
                self.seen = 0;
            }
        }
        whole
    }

    /// The head is there; `bytes` are behind it from `at` on.
    fn begin(&mut self, bytes: &mut [u8], at: usize, shared: &Shared) {
        if (self.head[0], self.head[5]) != (b'd', b'w') || self.left < Messages::XLOG_HEADER {
            return;
        }
        self.wal = self.left + 1 - Messages::XLOG_HEADER;
        let Some(which) = lock(&shared.flip).take() else { return };
        let behind = match which {
            Bit::OfMessage if shared.below(2) == 0 => shared.below(6 + Messages::XLOG_HEADER),
            _ => 5 + Messages::XLOG_HEADER + shared.below(self.wal),
        };
        // Behind the position: the newest one, and the time.
        if !(14..30).contains(&behind) {
            self.harmful += 1;
            shared.harmful.fetch_add(1, Ordering::SeqCst);
            shared.unnoticed.fetch_add(1, Ordering::SeqCst);
        }
        shared.flipped.fetch_add(1, Ordering::SeqCst);
        match behind.checked_sub(Messages::HEAD as u64) {
            Some(away) => self.flip = Some(away),
            // A head that came in two pieces has half gone.
            None => {
                let place = at.saturating_sub(Messages::HEAD) + behind as usize;
                self.flip_in(&mut bytes[place.min(at - 1)], shared);
            }
        }
    }

    fn flip_in(&mut self, byte: &mut u8, shared: &Shared) {
        *byte ^= 1 << shared.below(8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::wait_until;

    /// A link to a server that says what it hears.
    fn echo() -> (Link, TcpListener) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let server = listener.try_clone().unwrap();
        std::thread::spawn(move || {
            for client in server.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut out = client.try_clone().unwrap();
                    let _ = std::io::copy(&mut &client, &mut out);
                });
            }
        });
        (Link::to(listener.local_addr().unwrap().port(), 7), listener)
    }

    fn said(mut client: &TcpStream, words: &[u8]) -> std::io::Result<Vec<u8>> {
        client.write_all(words)?;
        let mut heard = vec![0; words.len()];
        client.read_exact(&mut heard)?;
        Ok(heard)
    }

    #[test]
    fn a_link_carries_in_each_weather_what_it_should() {
        let (link, _server) = echo();
        let client = TcpStream::connect(("127.0.0.1", link.port())).unwrap();
        for weather in [Weather::Fair, Weather::Slow, Weather::Crumbs, Weather::Refusing] {
            link.set(weather);
            assert_eq!(said(&client, b"hello, world").unwrap(), b"hello, world", "{weather:?}");
        }
        for weather in [Weather::HoleUp, Weather::HoleDown, Weather::Hole] {
            link.set(weather);
            client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            assert!(is_silence(&said(&client, b"1").unwrap_err()), "{weather:?}");
            link.set(Weather::Fair);
            client.set_read_timeout(None).unwrap();
            let mut late = [0];
            (&client).read_exact(&mut late).unwrap();
            assert_eq!(&late, b"1", "nothing is lost");
        }
        link.set(Weather::Refusing);
        let refused = TcpStream::connect(("127.0.0.1", link.port())).unwrap();
        assert!(said(&refused, b"x").is_err());
        link.half_close();
        assert_eq!((&client).read(&mut [0]).unwrap(), 0);
        link.reset();
        wait_until("the connection to be cut", || link.open() == 0);
        assert_eq!(link.connections(), 2);
    }

    #[test]
    fn wal_is_counted_and_a_bit_of_it_flipped() {
        let (link, _server) = echo();
        let client = TcpStream::connect(("127.0.0.1", link.port())).unwrap();
        let message =
            |content: &[u8]| [b"d", &(content.len() as u32 + 4).to_be_bytes()[..], content].concat();
        let wal = message(&[&b"w"[..], &[0; 24], &[0; 1000]].concat());
        let keepalive = message(&[b'k'; 18]);
        let all = [&wal[..], &keepalive, b"Z\0\0\0\x05I", b"c\0\0\0\x04", &wal].concat();
        assert!(said(&client, &all).unwrap() == all);
        wait_until("the WAL to be counted", || link.wal() == 2000);
        let mut bits = 0;
        for number in 0..20 {
            link.flip_a_bit(if number < 15 { Bit::OfMessage } else { Bit::OfWal });
            let changed = said(&client, &wal).unwrap();
            bits += changed.iter().zip(&wal).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
        }
        assert_eq!((bits, link.flipped()), (20, 20));
        assert!((5..20).contains(&link.harmful()), "{}", link.harmful());
        assert_eq!(link.unnoticed(), link.harmful());
        drop(client);
        wait_until("the connection to be over", || link.unnoticed() == 0);
    }
}
