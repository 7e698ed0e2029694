//! The listener, asked as programs and strangers ask.

mod guarded;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::events::Events;
use crate::metrics::CONTENT_TYPE;
use crate::status::History;
use crate::status::tests::Scene;

const DEADLINE: Duration = Duration::from_secs(30);

struct Served {
    address: SocketAddr,
    scene: Scene,
    watched: Arc<Watched>,
    door: Door,
    stop: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Served {
    /// A relay that runs.
    fn start() -> Served {
        let served = Served::starting();
        served.go_on();
        served
    }

    /// Its start is over.
    fn go_on(&self) {
        let sources = &self.scene.sources;
        self.watched.note_running(sources.clone(), Arc::new(History::new(sources.clone())));
    }

    /// A relay whose start is not over.
    fn starting() -> Served {
        let scene = Scene::new();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let stop = CancellationToken::new();
        let any = "0".parse().unwrap();
        let watched = Arc::new(Watched::new(Events::default()));
        let (sockets, door) = (crate::sockets::Sockets::default(), Door::new(HttpRules::default()));
        let http = Http::bind(&any, watched.clone(), door.clone(), &sockets);
        let http = runtime.block_on(http).unwrap();
        let address = http.address().unwrap();
        runtime.spawn(http.run(stop.clone()));
        Served { address, scene, watched, door, stop, runtime: Some(runtime) }
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    }

    /// Status line, head and body of an answer.
    fn get(&self, path: &str) -> String {
        self.get_with(path, "Host: localhost")
    }

    /// The same with these lines in the request's head.
    fn get_with(&self, path: &str, head: &str) -> String {
        let mut socket = self.connect();
        write!(socket, "GET {path} HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n").unwrap();
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

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a head and a body").1
}

fn json(answer: &str) -> serde_json::Value {
    serde_json::from_str(body(answer)).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

#[test]
fn a_relay_that_starts_is_alive_and_not_ready_and_says_what_it_does() {
    let served = Served::starting();
    let begun = "the relay starts: reading its configuration\n";
    let life = served.get("/livez");
    assert!(life.starts_with("HTTP/1.1 200 OK\r\n") && body(&life) == begun, "{life}");
    served.watched.note_step("beginning to listen");
    for path in ["/readyz", "/healthz"] {
        let answer = served.get(path);
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert_eq!(body(&answer), "the relay starts: beginning to listen\n");
    }
    let metrics = served.get("/metrics");
    for line in
        ["walrelay_build_info{version=", "walrelay_ready 0\n", "walrelay_start_time_seconds 1", "# EOF\n"]
    {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    assert!(!metrics.contains("walrelay_upstream_state"), "{metrics}");
    for path in ["/api/status", "/api/history"] {
        let answer = served.get(path);
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert_eq!(json(&answer)["starting"], "beginning to listen");
    }
    assert!(served.get("/").starts_with("HTTP/1.1 200"));
    served.go_on();
    assert!(served.get("/readyz").starts_with("HTTP/1.1 200"));
    assert_eq!(body(&served.get("/livez")), "alive\n");
}

#[test]
fn the_page_gets_the_status_that_everybody_gets() {
    let served = Served::start();
    let name = "</script><img src=x onerror=alert(1)>";
    let _consumer = served.scene.consumer(7, name);
    let answer = served.get("/api/status");
    let status: crate::status::Status = serde_json::from_value(json(&answer)).unwrap();
    assert_eq!(
        status.relay,
        crate::status::RelayStatus {
            uptime_seconds: status.relay.uptime_seconds,
            ..served.scene.now().relay
        }
    );
    assert_eq!((status.ready, &*status.consumers[0].application_name), (true, name));
    assert_eq!(status.troubles, status.troubles());
    let answer = answer.to_ascii_lowercase();
    for line in
        ["content-type: application/json", "x-content-type-options: nosniff", "cache-control: no-store"]
    {
        assert!(answer.contains(line), "{line} in {answer}");
    }
}

#[test]
fn the_history_is_told_from_a_sample_on() {
    let served = Served::start();
    let history = json(&served.get("/api/history"));
    assert_eq!((&history["number"], history["resolutions"].as_array().map(Vec::len)), (&0.into(), Some(2)));
    served.watched.running().unwrap().history.note(&served.scene.now(), crate::moment::since_boot());
    let history = json(&served.get("/api/history?since=0"));
    assert_eq!((&history["number"], &history["resolutions"][0]["count"]), (&1.into(), &1.into()));
    assert_eq!(json(&served.get("/api/history?x=1&since=1"))["resolutions"][0]["count"], 0);
    for wrong in ["-1", "", "x", "99999999999999999999999"] {
        assert!(served.get(&format!("/api/history?since={wrong}")).starts_with("HTTP/1.1 400"), "{wrong}");
    }
}

#[test]
fn the_page_runs_nothing_but_its_own_files() {
    let served = Served::start();
    for asset in &page::ASSETS {
        let answer = served.get(asset.path);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{}: {answer}", asset.path);
        let head = answer.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
        for line in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self';",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cache-control: no-cache",
        ] {
            assert!(head.contains(line), "{}: {line} in {head}", asset.path);
        }
        assert!(!head.contains("unsafe"), "{head}");
        let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("a tag");
        let again = served.get_with(asset.path, &format!("Host: localhost\r\nIf-None-Match: {tag}"));
        assert!(again.starts_with("HTTP/1.1 304") && body(&again).is_empty(), "{again}");
        // No other host is named: neither loaded from, nor linked to. Names of XML are none.
        let text = asset.text.replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("//") || asset.path.ends_with(".js"), "{}", asset.path);
        assert!(
            !text.contains("http:") && !text.contains("https:") && !text.contains("@import"),
            "{}",
            asset.path
        );
        // What peers choose is text, and never markup.
        for word in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"]
        {
            assert!(!text.contains(word), "{}: {word}", asset.path);
        }
    }
    let page = page::ASSETS[0].text;
    let handler = regex::Regex::new(r"\son[a-z]+\s*=").unwrap();
    assert!(
        !page.contains("style=") && !page.contains("<style") && !handler.is_match(page),
        "nothing inline"
    );
    assert_eq!(
        page.matches("<script").count(),
        page.matches("<script type=\"module\" src=\"page.js\"></script>").count()
    );
}

#[test]
fn a_name_that_somebody_else_has_chosen_is_not_answered() {
    let served = Served::start();
    for path in ["/", "/api/status", "/api/history", "/page.js", "/metrics"] {
        let answer = served.get_with(path, "Host: evil.example:9187");
        assert!(answer.starts_with("HTTP/1.1 421"), "{path}: {answer}");
    }
    // Probes are answered, and told nothing of the relay's.
    for (path, few) in
        [("/livez", "alive\n"), ("/readyz", "ready\n"), ("/healthz", "somebody should look at it\n")]
    {
        let answer = served.get_with(path, "Host: evil.example");
        assert!(answer.starts_with("HTTP/1.1 200") && body(&answer) == few, "{path}: {answer}");
    }
    served.scene.sources.note_stop();
    let answer = || served.get_with("/readyz", "Host: evil.example");
    walrelay_testkit::wait_until("what was found before to hold no more", || {
        answer().starts_with("HTTP/1.1 503")
    });
    assert_eq!(body(&answer()), "not ready\n");
}
