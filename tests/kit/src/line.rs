//! A line between two ends of a TCP connection that is as slow as a test wants it to be.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, park_timeout};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size;

use crate::port::Port;

/// What is on its way in one direction without being seen by the other end, bytes: the line's own buffer.
const BUFFER: usize = 64 << 10;
/// A line carries its bytes in pieces of so much time.
const TICK: Duration = Duration::from_millis(10);

/// A port that leads to another one over a line with a limited rate. All connections share the rate towards the
/// client; what clients send is passed on at once. Ends, and cuts all connections, when dropped.
#[derive(Debug)]
pub struct Line {
    port: Port,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Bytes per second towards the client.
    rate: AtomicU64,
    /// How many bytes have crossed towards the client, and how many connections there were.
    carried: AtomicU64,
    connections: AtomicU64,
    over: AtomicBool,
}

impl Line {
    /// A line to `port` on this machine that carries `rate` bytes per second towards the client.
    pub fn to(port: u16, rate: u64) -> Line {
        let own = Port::take();
        let listener = TcpListener::bind(("127.0.0.1", own.number())).expect("the port is ours");
        listener.set_nonblocking(true).expect("a listener can be non-blocking");
        // What accepted sockets have, too: else the kernel would hold seconds of the line's bytes.
        set_socket_recv_buffer_size(&listener, BUFFER).expect("a size that every kernel takes");
        let shared = Arc::new(Shared {
            rate: AtomicU64::new(rate),
            carried: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || accept(&listener, port, &of_thread));
        Line { port: own, shared, threads: vec![thread] }
    }

    /// The port of this end.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Another rate, bytes per second; 0 stops the line, and loses nothing.
    pub fn set_rate(&self, rate: u64) {
        self.shared.rate.store(rate, Ordering::Relaxed);
    }

    /// Bytes that have crossed towards the client.
    pub fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::Relaxed)
    }

    /// How many connections were made.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, port: u16, shared: &Arc<Shared>) {
    let mut carriers = Vec::new();
    while !shared.over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((client, _)) => {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let shared = shared.clone();
                carriers.push(std::thread::spawn(move || carry(&client, port, &shared)));
            }
            Err(_) => park_timeout(TICK),
        }
    }
    for carrier in carriers {
        let _ = carrier.join();
    }
}

/// Both directions of a connection in one thread, so that either end's leaving ends both.
fn carry(client: &TcpStream, port: u16, shared: &Shared) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return };
    let _ = set_socket_recv_buffer_size(&server, BUFFER);
    let ready = [client, &server].map(|stream| stream.set_nonblocking(true).and(stream.set_nodelay(true)));
    if ready.iter().any(Result::is_err) {
        return;
    }
    let mut last = Instant::now();
    let mut buffer = vec![0; BUFFER];
    while !shared.over.load(Ordering::Relaxed) {
        park_timeout(TICK);
        let rate = shared.rate.load(Ordering::Relaxed);
        let allowed = (rate as f64 * last.elapsed().as_secs_f64()) as usize;
        last = Instant::now();
        let up = pass(client, &server, &mut buffer, usize::MAX, shared);
        let down = pass(&server, client, &mut buffer, allowed, shared);
        let (Some(_), Some(carried)) = (up, down) else { break };
        shared.carried.fetch_add(carried as u64, Ordering::Relaxed);
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

/// Passes on what is there, `most` bytes at most; `None` when either end has gone.
fn pass(
    mut from: &TcpStream,
    mut to: &TcpStream,
    buffer: &mut [u8],
    most: usize,
    shared: &Shared,
) -> Option<usize> {
    let most = most.min(buffer.len());
    if most == 0 {
        return Some(0);
    }
    let count = match from.read(&mut buffer[..most]) {
        Ok(0) => return None,
        Ok(count) => count,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(0),
        Err(_) => return None,
    };
    let mut sent = 0;
    while sent < count {
        match to.write(&buffer[sent..count]) {
            Ok(written) => sent += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock && !shared.over.load(Ordering::Relaxed) => {
                park_timeout(TICK);
            }
            Err(_) => return None,
        }
    }
    Some(count)
}
