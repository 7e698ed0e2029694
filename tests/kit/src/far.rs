//! A line between two ends of a TCP connection that are far apart: everything takes a certain time to the other end, however much
//! is on its way.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, park_timeout};
use std::time::{Duration, Instant};

use crate::port::Port;

/// How soon it is noticed that somebody wants to connect.
const TICK: Duration = Duration::from_millis(5);

/// A port that leads to another one. Ends, and cuts all connections, when dropped.
#[derive(Debug)]
pub struct Far {
    port: Port,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: u16,
    delay: Duration,
    over: AtomicBool,
    /// To be cut in the end.
    sockets: Mutex<Vec<TcpStream>>,
}

impl Far {
    /// A line to `target` on this machine on which everything takes `delay`, in each direction.
    pub fn to(target: u16, delay: Duration) -> Far {
        let port = Port::take();
        let listener = TcpListener::bind(("127.0.0.1", port.number())).expect("the port is ours");
        listener.set_nonblocking(true).expect("a listener can be non-blocking");
        let (over, sockets) = (AtomicBool::new(false), Mutex::default());
        let shared = Arc::new(Shared { target, delay, over, sockets });
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || of_thread.accept(&listener));
        Far { port, shared, thread: Some(thread) }
    }

    /// How libpq gets through it.
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres sslmode=disable gssencmode=disable", self.port.number())
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn accept(&self, listener: &TcpListener) {
        let mut carriers = Vec::new();
        while !self.over.load(Ordering::SeqCst) {
            let Ok((client, _)) = listener.accept() else {
                park_timeout(TICK);
                continue;
            };
            let Ok(server) = TcpStream::connect(("127.0.0.1", self.target)) else { continue };
            for (from, to) in [(&client, &server), (&server, &client)] {
                let ready = from.set_nonblocking(false).and(from.set_nodelay(true));
                let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                if ready.is_ok() {
                    carriers.extend(carry(from, to, self.delay));
                }
            }
            self.sockets.lock().unwrap_or_else(PoisonError::into_inner).extend([client, server]);
        }
        for socket in self.sockets.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        for carrier in carriers {
            let _ = carrier.join();
        }
    }
}

/// One thread takes what comes, and when; the other one gives it on in time.
fn carry(from: TcpStream, to: TcpStream, delay: Duration) -> [JoinHandle<()>; 2] {
    let (sender, receiver) = channel();
    [std::thread::spawn(move || take(from, &sender, delay)), std::thread::spawn(move || give(to, &receiver))]
}

fn take(mut from: TcpStream, sender: &Sender<(Instant, Vec<u8>)>, delay: Duration) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if sender.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
            break;
        }
    }
}

fn give(mut to: TcpStream, receiver: &Receiver<(Instant, Vec<u8>)>) {
    for (due, bytes) in receiver {
        while let Some(left) = due.checked_duration_since(Instant::now()) {
            park_timeout(left);
        }
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
