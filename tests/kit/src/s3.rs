//! An S3 server that misbehaves on demand and counts what it is asked.
//!
//! It keeps one bucket in memory and knows just what object stores are used for here: objects, conditions, parts,
//! listings, deletions. Signatures are not checked, only whose key they were made with.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::wait::{PATIENCE, within};

/// A running server; gone when dropped.
#[derive(Debug)]
pub struct S3 {
    port: u16,
    shared: Arc<Shared>,
}

/// How it behaves.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// `If-None-Match` is answered with 501, as by servers that do not know it.
    pub no_conditions: bool,
    /// The only access key that is let in.
    pub key: Option<String>,
    /// Where every request is sent on to.
    pub redirect: Option<String>,
    /// How long each answer takes.
    pub delay: Duration,
    /// No answer comes while this is so.
    pub hold: bool,
}

#[derive(Debug, Default)]
struct Shared {
    behaviour: Mutex<Behaviour>,
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    uploads: Mutex<BTreeMap<String, BTreeMap<u32, Vec<u8>>>>,
    /// Uploads in parts so far.
    begun: AtomicU64,
    requests: Mutex<Vec<String>>,
    ended: AtomicBool,
}

struct Request {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl S3 {
    /// Starts a server; every bucket's name leads to its one bucket.
    pub fn start() -> S3 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("there are free ports");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::<Shared>::default();
        let serve = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if serve.ended.load(Ordering::Relaxed) {
                    return;
                }
                let shared = serve.clone();
                thread::spawn(move || shared.talk(client));
            }
        });
        S3 { port, shared }
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Changes how it behaves from the next request on.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut lock(&self.shared.behaviour));
    }

    /// What was asked since the last time: method and path, with the query's first word, and the bytes sent.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.shared.requests))
    }

    /// What it holds: keys and contents.
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        lock(&self.shared.objects).clone()
    }

    /// How many uploads in parts are neither completed nor aborted.
    pub fn uploads(&self) -> usize {
        lock(&self.shared.uploads).len()
    }

    /// Puts an object there.
    pub fn put(&self, key: &str, content: &[u8]) {
        lock(&self.shared.objects).insert(key.to_owned(), content.to_vec());
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn talk(&self, client: TcpStream) {
        let Ok(mut out) = client.try_clone() else { return };
        let mut input = BufReader::new(client);
        while let Some(request) = Request::read(&mut input) {
            if self.ended.load(Ordering::Relaxed) {
                let _ = out.shutdown(Shutdown::Both);
                return;
            }
            let first = request.query.split(['&', '=']).next().unwrap_or_default();
            let mark = if first.is_empty() { String::new() } else { format!("?{first}") };
            let line = format!("{} {}{mark} {}", request.method, request.path, request.body.len());
            lock(&self.requests).push(line);
            let behaviour = lock(&self.behaviour).clone();
            thread::sleep(behaviour.delay);
            within(PATIENCE, || {
                (!lock(&self.behaviour).hold || self.ended.load(Ordering::Relaxed)).then_some(())
            });
            let (status, headers, body) = self.answer(&behaviour, &request);
            let length = headers.iter().all(|line| !line.starts_with("Content-Length"));
            let length = if length { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
            let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
            let head = format!("HTTP/1.1 {status}\r\n{headers}{length}\r\n");
            if out.write_all(&[head.as_bytes(), &body].concat()).is_err() {
                return;
            }
        }
    }

    fn answer(&self, behaviour: &Behaviour, request: &Request) -> (&'static str, Vec<String>, Vec<u8>) {
        if let Some(place) = &behaviour.redirect {
            let location = format!("Location: {place}{}", request.path);
            return ("307 Temporary Redirect", vec![location], Vec::new());
        }
        let signed = request.headers.get("authorization").map(String::as_str).unwrap_or_default();
        if let Some(key) = &behaviour.key
            && !signed.contains(&format!("Credential={key}/"))
        {
            return error("403 Forbidden", "InvalidAccessKeyId");
        }
        let key = request.path.trim_start_matches('/').split_once('/').map(|(_, key)| key);
        let key = key.filter(|key| !key.is_empty()).map(str::to_owned);
        let query = |name: &str| request.query_value(name);
        match (request.method.as_str(), key) {
            ("GET", None) => self.list(request),
            ("POST", None) => self.delete_many(&request.body),
            ("POST", Some(key)) => match query("uploadId") {
                None => {
                    // Never the same again: others are on their way while some are over.
                    let id = format!("upload{}", self.begun.fetch_add(1, Ordering::Relaxed));
                    lock(&self.uploads).insert(id.clone(), BTreeMap::new());
                    xml(format!(
                        "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                    ))
                }
                Some(id) => {
                    let conditional = request.headers.contains_key("if-none-match");
                    if conditional && behaviour.no_conditions {
                        return error("501 Not Implemented", "NotImplemented");
                    }
                    if conditional && lock(&self.objects).contains_key(&key) {
                        return error("412 Precondition Failed", "PreconditionFailed");
                    }
                    let parts = lock(&self.uploads).remove(&id).unwrap_or_default();
                    lock(&self.objects).insert(key, parts.into_values().flatten().collect());
                    xml("<CompleteMultipartUploadResult><ETag>\"x\"</ETag></CompleteMultipartUploadResult>"
                        .to_owned())
                }
            },
            ("PUT", Some(key)) => self.store(behaviour, key, request),
            ("DELETE", Some(key)) => {
                match query("uploadId") {
                    Some(id) => drop(lock(&self.uploads).remove(&id)),
                    None => drop(lock(&self.objects).remove(&key)),
                }
                ("204 No Content", Vec::new(), Vec::new())
            }
            ("GET" | "HEAD", Some(key)) => match lock(&self.objects).get(&key) {
                None if request.method == "HEAD" => {
                    ("404 Not Found", vec!["Content-Length: 0".to_owned()], Vec::new())
                }
                None => error("404 Not Found", "NoSuchKey"),
                Some(content) => {
                    let headers = vec![
                        "ETag: \"x\"".to_owned(),
                        "Last-Modified: Sun, 29 Nov 2026 00:00:00 GMT".to_owned(),
                        format!("Content-Length: {}", content.len()),
                    ];
                    let body = if request.method == "HEAD" { Vec::new() } else { content.clone() };
                    ("200 OK", headers, body)
                }
            },
            _ => error("400 Bad Request", "InvalidRequest"),
        }
    }

    fn store(
        &self,
        behaviour: &Behaviour,
        key: String,
        request: &Request,
    ) -> (&'static str, Vec<String>, Vec<u8>) {
        let stored = ("200 OK", vec!["ETag: \"x\"".to_owned()], Vec::new());
        if let (Some(id), Some(number)) = (request.query_value("uploadId"), request.query_value("partNumber"))
        {
            let number = number.parse().unwrap_or_default();
            lock(&self.uploads).entry(id).or_default().insert(number, request.body.clone());
            return stored;
        }
        let conditional = request.headers.contains_key("if-none-match");
        if conditional && behaviour.no_conditions {
            return error("501 Not Implemented", "NotImplemented");
        }
        let mut objects = lock(&self.objects);
        if conditional && objects.contains_key(&key) {
            return error("412 Precondition Failed", "PreconditionFailed");
        }
        objects.insert(key, request.body.clone());
        stored
    }

    fn list(&self, request: &Request) -> (&'static str, Vec<String>, Vec<u8>) {
        let prefix = request.query_value("prefix").unwrap_or_default();
        let after = request.query_value("start-after").unwrap_or_default();
        let objects = lock(&self.objects);
        let found = objects.iter().filter(|(key, _)| key.starts_with(&prefix) && **key > after);
        let found = found.map(|(key, content)| {
            format!(
                "<Contents><Key>{key}</Key><Size>{}</Size><LastModified>2026-11-29T00:00:00Z</LastModified>\
                 <ETag>\"x\"</ETag></Contents>",
                content.len()
            )
        });
        let found: String = found.collect();
        xml(format!("<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"))
    }

    fn delete_many(&self, body: &[u8]) -> (&'static str, Vec<String>, Vec<u8>) {
        let text = String::from_utf8_lossy(body);
        let keys = text.split("<Key>").skip(1).filter_map(|part| part.split('<').next());
        let delete = |key: &str| {
            lock(&self.objects).remove(key);
            format!("<Deleted><Key>{key}</Key></Deleted>")
        };
        xml(format!("<DeleteResult>{}</DeleteResult>", keys.map(delete).collect::<String>()))
    }
}

impl Request {
    fn read(input: &mut BufReader<TcpStream>) -> Option<Request> {
        let mut line = String::new();
        input.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let mut words = line.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (path, query) = (decoded(path), query.to_owned());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            input.read_line(&mut line).ok().filter(|length| *length > 0)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        input.read_exact(&mut body).ok()?;
        Some(Request { method, path, query, headers, body })
    }

    fn query_value(&self, name: &str) -> Option<String> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| decoded(value))
    }
}

fn xml(body: String) -> (&'static str, Vec<String>, Vec<u8>) {
    ("200 OK", vec!["Content-Type: application/xml".to_owned()], body.into_bytes())
}

fn error(status: &'static str, code: &str) -> (&'static str, Vec<String>, Vec<u8>) {
    let body = format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>");
    (status, vec!["Content-Type: application/xml".to_owned()], body.into_bytes())
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let code = match byte {
            b'%' => [rest.next(), rest.next()].into_iter().flatten().map(char::from).collect::<String>(),
            _ => String::new(),
        };
        bytes.push(u8::from_str_radix(&code, 16).unwrap_or(byte));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
