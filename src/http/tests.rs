//! The listener, asked as programs and strangers ask.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::metrics::CONTENT_TYPE;
use crate::status::tests::Scene;

const DEADLINE: Duration = Duration::from_secs(30);

struct Served {
    address: SocketAddr,
    scene: Scene,
    stop: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Served {
    fn start() -> Served {
        let scene = Scene::new();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let stop = CancellationToken::new();
        let any = "0".parse().unwrap();
        let sockets = crate::sockets::Sockets::default();
        let http = Http::bind(&any, scene.sources.clone(), &sockets);
        let http = runtime.block_on(http).unwrap();
        let address = http.address().unwrap();
        runtime.spawn(http.run(stop.clone()));
        Served { address, scene, stop, runtime: Some(runtime) }
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    }

    /// Status line, head and body of an answer.
    fn get(&self, path: &str) -> String {
        let mut socket = self.connect();
        write!(socket, "GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
        self.runtime.take().unwrap().shutdown_background();
    }
}

#[test]
fn metrics_and_health_are_answered() {
    let served = Served::start();
    let metrics = served.get("/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    assert!(metrics.to_ascii_lowercase().contains(&format!("content-type: {CONTENT_TYPE}\r\n")), "{metrics}");
    assert!(metrics.ends_with("# EOF\n"));
    for (path, body) in [("/readyz", "ready\n"), ("/livez", "alive\n")] {
        let answer = served.get(path);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(body), "{answer}");
    }
    let health = served.get("/healthz");
    assert!(health.starts_with("HTTP/1.1 200 OK\r\n"), "{health}");
    assert!(health.contains("no WAL comes from the upstream"), "{health}");
    assert!(served.get("/other").starts_with("HTTP/1.1 404"));
}

#[test]
fn a_relay_that_stops_is_not_ready_but_alive() {
    let served = Served::start();
    served.scene.sources.note_stop();
    let answer = served.get("/readyz");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("the relay stops\n"), "{answer}");
    assert!(served.get("/livez").starts_with("HTTP/1.1 200"));
}

#[test]
fn nothing_can_be_changed() {
    let served = Served::start();
    let mut socket = served.connect();
    write!(socket, "POST /metrics HTTP/1.1\r\nHost: relay\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
}

#[test]
fn a_head_that_is_too_long_is_refused() {
    let served = Served::start();
    let mut socket = served.connect();
    let head = format!("GET /metrics HTTP/1.1\r\nHost: relay\r\nX: {}\r\n\r\n", "x".repeat(2 * HEAD_SIZE));
    // The socket may be closed before all of it is sent.
    let _ = socket.write_all(head.as_bytes());
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn who_says_nothing_is_given_up_and_keeps_nobody_out() {
    let served = Served::start();
    let begun = Instant::now();
    let mut silent: Vec<_> = (0..CONNECTIONS + 3).map(|_| served.connect()).collect();
    for _ in 0..5 {
        assert!(served.get("/livez").starts_with("HTTP/1.1 200"));
    }
    // The oldest had to go for those who came later, and the others are too slow.
    let mut ends = silent.iter_mut().map(|socket| {
        // hyper may say that it was too slow first.
        let _ = socket.read_to_end(&mut Vec::new());
        begun.elapsed()
    });
    assert!(ends.next().unwrap() < HEAD_LIMIT);
    assert!(ends.last().unwrap() < DEADLINE);
    assert!(served.get("/livez").starts_with("HTTP/1.1 200"));
}

#[test]
fn a_connection_is_for_one_request() {
    let served = Served::start();
    let mut socket = served.connect();
    write!(socket, "GET /livez HTTP/1.1\r\nHost: relay\r\n\r\nGET /livez HTTP/1.1\r\nHost: relay\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    let _ = socket.read_to_string(&mut answer);
    assert_eq!(answer.matches("alive\n").count(), 1, "{answer}");
}
