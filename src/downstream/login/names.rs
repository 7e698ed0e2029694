//! The host names of clients, for lines of pg_hba.conf that have some (PostgreSQL: `check_hostname`).
//!
//! A name service may not answer, so look-ups have threads of their own: a bounded number, each waited for a limited time,
//! few for one source: whoever has addresses whose names nobody tells keeps nobody else waiting. What was found out, also
//! that nothing was, holds for a while. Who waits longer than a login may take is gone. Strangers from many addresses can take
//! all threads; so sources from which somebody has logged in since the relay's start have threads of their own.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::downstream::repeats::Repeats;
use crate::lane::Lane;
use crate::wire::Source;

/// As long as the resolver of the C library asks two servers, twice (resolv.conf).
const PATIENCE: Duration = Duration::from_secs(30);
/// Look-ups for one source at a time, those that hang included.
const SHARE: usize = 2;
/// How long a name holds, and how long it holds that there is none.
const HOLDS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(10));
/// Addresses, and sources, of which something is kept at most.
const MOST: usize = 1024;

/// Somebody has logged in from there.
pub(super) fn has_logged_in(source: Option<Source>) {
    if let Some(source) = source {
        NAMES.welcome(source, Instant::now());
    }
}

static NAMES: LazyLock<Names> = LazyLock::new(|| Names::new(PATIENCE));

/// The name of an address that leads back to it, `Some(None)` if there is none, or the name service fails. `None` if it was
/// not asked in time or gave no answer at all: whether a line with a host name fits is not known. Cancel-safe.
pub(super) async fn host_name(ip: Option<IpAddr>) -> Option<Option<String>> {
    let Some(ip) = ip else { return Some(None) };
    let found = NAMES.look_up(ip, move || told(ip, confirmed(ip, reverse, forward))).await;
    let unknown = |reason| {
        let Some(count) = note("unknown") else { return };
        tracing::warn!(
            count,
            "could not look up the host name of {ip} for lines with host names, its login is refused: {reason}"
        );
    };
    found.map_err(unknown).ok()
}

/// PostgreSQL's way with a name service that fails: lines with host names do not fit.
fn told(ip: IpAddr, found: Result<Option<String>, String>) -> Option<String> {
    found.unwrap_or_else(|reason| {
        if let Some(count) = note("failed") {
            tracing::info!(
                count,
                "could not look up the host name of {ip}, lines with host names do not fit: {reason}"
            );
        }
        None
    })
}

/// Clients from many addresses shall not fill the log.
static REPEATS: LazyLock<Repeats> = LazyLock::new(Repeats::default);

fn note(line: &str) -> Option<u64> {
    REPEATS.note(None, line, Instant::now())
}

/// Look-ups, each source with its share of them.
struct Names {
    strangers: Lane,
    guests: Lane,
    /// From where somebody has logged in, and when last.
    welcome: Mutex<HashMap<Source, Instant>>,
    patience: Duration,
    shares: Mutex<HashMap<Source, Weak<Semaphore>>>,
    found: Arc<Mutex<Found>>,
}

/// What was found out, and when.
#[derive(Default)]
struct Found(HashMap<IpAddr, (Instant, Option<String>)>);

impl Names {
    fn new(patience: Duration) -> Names {
        Names {
            strangers: Lane::new("client-names", patience),
            guests: Lane::new("guest-names", patience),
            welcome: Mutex::default(),
            patience,
            shares: Mutex::default(),
            found: Arc::default(),
        }
    }

    fn welcome(&self, source: Source, now: Instant) {
        let mut welcome = lock(&self.welcome);
        if welcome.len() >= MOST && !welcome.contains_key(&source) {
            let oldest = welcome.iter().min_by_key(|(_, at)| **at).map(|(source, _)| *source);
            oldest.map(|oldest| welcome.remove(&oldest));
        }
        welcome.insert(source, now);
    }

    fn lane(&self, source: Source) -> &Lane {
        if lock(&self.welcome).contains_key(&source) { &self.guests } else { &self.strangers }
    }

    /// Waits for its turn: behind few others of the same source, and these wait behind the share of each other source.
    async fn look_up(
        &self,
        ip: IpAddr,
        resolve: impl FnOnce() -> Option<String> + Send + 'static,
    ) -> Result<Option<String>, String> {
        let answer = async {
            if let Some(known) = self.recall(ip) {
                return Ok(known);
            }
            let place = self.share(ip.into()).acquire_owned().await.map_err(|error| error.to_string())?;
            // Who was before us may have asked the same.
            if let Some(known) = self.recall(ip) {
                return Ok(known);
            }
            let found = self.found.clone();
            let work = move || {
                let name = resolve();
                lock(&found).remember(ip, name.clone(), Instant::now());
                // Here, not where it is waited for: a look-up that hangs keeps its place when the client has left.
                drop(place);
                name
            };
            self.lane(ip.into()).run(0, work).await
        };
        let limit = self.patience;
        let late = |_| Err(format!("no answer in {} s", limit.as_secs_f32().round()));
        tokio::time::timeout(limit, answer).await.unwrap_or_else(late)
    }

    fn recall(&self, ip: IpAddr) -> Option<Option<String>> {
        lock(&self.found).recall(ip, Instant::now())
    }

    fn share(&self, source: Source) -> Arc<Semaphore> {
        let mut shares = lock(&self.shares);
        if let Some(share) = shares.get(&source).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(SHARE));
        shares.insert(source, Arc::downgrade(&share));
        share
    }
}

impl Found {
    fn recall(&self, ip: IpAddr, now: Instant) -> Option<Option<String>> {
        let (at, name) = self.0.get(&ip)?;
        holds(*at, name.as_deref(), now).then(|| name.clone())
    }

    fn remember(&mut self, ip: IpAddr, name: Option<String>, now: Instant) {
        if self.0.len() >= MOST {
            self.0.retain(|_, (at, name)| holds(*at, name.as_deref(), now));
        }
        // Only a look-up more for each.
        if self.0.len() >= MOST {
            self.0.clear();
        }
        self.0.insert(ip, (now, name));
    }
}

fn holds(at: Instant, name: Option<&str>, now: Instant) -> bool {
    now.saturating_duration_since(at) < if name.is_some() { HOLDS.0 } else { HOLDS.1 }
}

/// For a moment: nothing is waited for while it is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name alone proves nothing: whoever has the address says what it is.
fn confirmed(
    ip: IpAddr,
    reverse: impl Fn(IpAddr) -> Result<String, String>,
    forward: impl Fn(&str) -> Result<Vec<IpAddr>, String>,
) -> Result<Option<String>, String> {
    let name = reverse(ip)?;
    let leads_back = forward(&name)?.contains(&ip);
    if !leads_back && let Some(count) = note("elsewhere") {
        tracing::info!(
            count,
            "the host name \"{name}\" of {ip} does not lead back to it, lines with host names do not fit"
        );
    }
    Ok(leads_back.then_some(name))
}

fn reverse(ip: IpAddr) -> Result<String, String> {
    let address = SocketAddr::new(ip, 0);
    let (name, _) =
        dns_lookup::getnameinfo(&address, libc::NI_NAMEREQD).map_err(|error| format!("{error:?}"))?;
    Ok(name)
}

fn forward(name: &str) -> Result<Vec<IpAddr>, String> {
    let addresses = (name, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    Ok(addresses.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_counts_if_it_leads_back() {
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let named = |_: IpAddr| Ok("db.example.com".to_owned());
        let leads_to = |text: &'static str| {
            move |_: &str| Ok(vec!["2001:db8::1".parse().unwrap(), text.parse().unwrap()])
        };
        assert_eq!(confirmed(ip, named, leads_to("192.0.2.1")), Ok(Some("db.example.com".to_owned())));
        assert_eq!(confirmed(ip, named, leads_to("192.0.2.2")), Ok(None));
        let nobody = |_: IpAddr| Err("no such name".to_owned());
        assert_eq!(confirmed(ip, nobody, leads_to("192.0.2.1")), Err("no such name".to_owned()));
        assert!(confirmed(ip, named, |_: &str| Err("down".to_owned())).is_err());
    }

    /// Every machine's hosts file has it.
    #[tokio::test]
    async fn this_machine_is_asked_by_its_resolver() {
        assert_eq!(host_name(Some("127.0.0.1".parse().unwrap())).await, Some(Some("localhost".to_owned())));
        assert_eq!(host_name(None).await, Some(None));
    }

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[tokio::test]
    async fn an_address_whose_look_ups_hang_keeps_nobody_else_waiting() {
        let names = Arc::new(Names::new(Duration::from_secs(20)));
        let (begin, mut begun) = tokio::sync::mpsc::unbounded_channel();
        let (go_on, hang) = std::sync::mpsc::channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        let evil = || {
            let clients = (0..40).map(|_| {
                let (names, begin, hang) = (names.clone(), begin.clone(), hang.clone());
                let resolve = move || {
                    let _ = begin.send(());
                    let _ = lock(&hang).recv();
                    None
                };
                tokio::spawn(async move { names.look_up(ip(66), resolve).await })
            });
            clients.collect::<Vec<_>>()
        };
        let first = evil();
        for _ in 0..SHARE {
            begun.recv().await.unwrap();
        }
        let db = || Some("db".to_owned());
        assert_eq!(names.look_up(ip(1), db).await, Ok(db()));
        // They leave, and come again: what hangs is still theirs.
        first.iter().for_each(tokio::task::JoinHandle::abort);
        let second = evil();
        assert_eq!(names.look_up(ip(2), db).await, Ok(db()));
        assert!(begun.try_recv().is_err());
        drop(go_on);
        for client in second {
            assert_eq!(client.await.unwrap(), Ok(None), "as the first has found out");
        }
        assert!(begun.try_recv().is_err());
    }

    /// As many as it takes, each with its share.
    #[tokio::test]
    async fn strangers_who_hold_all_threads_keep_out_nobody_who_was_here_before() {
        let names = Arc::new(Names::new(Duration::from_secs(20)));
        let (go_on, hang) = std::sync::mpsc::channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        let strangers: Vec<_> = (100..140)
            .map(|last| {
                let (names, hang) = (names.clone(), hang.clone());
                let resolve = move || {
                    let _ = lock(&hang).recv();
                    None
                };
                tokio::spawn(async move { names.look_up(ip(last), resolve).await })
            })
            .collect();
        while !names.strangers.is_full() {
            tokio::task::yield_now().await;
        }
        let db = || Some("db".to_owned());
        names.welcome(ip(1).into(), Instant::now());
        assert_eq!(names.look_up(ip(1), db).await, Ok(db()));
        // Another address of the network: those of IPv6 come and go.
        let [before, now] =
            ["2001:db8:0:1::1", "2001:db8:0:1:ffff::2"].map(|text| text.parse::<IpAddr>().unwrap());
        names.welcome(before.into(), Instant::now());
        assert_eq!(names.look_up(now, db).await, Ok(db()));
        drop(go_on);
        for stranger in strangers {
            assert_eq!(stranger.await.unwrap(), Ok(None));
        }
    }

    #[test]
    fn of_those_who_were_here_the_latest_are_known() {
        let (names, begun) = (Names::new(PATIENCE), Instant::now());
        for n in 0..=MOST as u32 {
            names.welcome(IpAddr::from(n.to_be_bytes()).into(), begun + Duration::from_secs(n.into()));
        }
        let is_known =
            |n: u32| lock(&names.welcome).contains_key(&Source::from(IpAddr::from(n.to_be_bytes())));
        assert!(!is_known(0) && is_known(1) && is_known(MOST as u32));
    }

    #[tokio::test]
    async fn no_answer_in_time_is_not_the_same_as_no_name() {
        let names = Names::new(Duration::from_millis(20));
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let resolve = move || {
            let _ = wait.recv();
            None
        };
        let error = names.look_up(ip(1), resolve).await.unwrap_err();
        assert!(error.starts_with("no answer in"), "{error}");
        drop(go_on);
    }

    #[test]
    fn what_was_found_out_holds_for_a_while() {
        let (mut found, begun) = (Found::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        found.remember(ip(1), Some("db".to_owned()), begun);
        found.remember(ip(2), None, begun);
        assert_eq!(found.recall(ip(2), after(9)), Some(None));
        assert_eq!(found.recall(ip(2), after(10)), None);
        assert_eq!(found.recall(ip(1), after(59)), Some(Some("db".to_owned())));
        assert_eq!(found.recall(ip(1), after(60)), None);
        for n in 0..5000_u32 {
            found.remember(IpAddr::from(n.to_be_bytes()), None, begun);
        }
        assert!(found.0.len() <= MOST);
    }
}
