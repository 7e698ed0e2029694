//! What all answers have in common: what is watched, who may ask by which name, and how much may be on its way.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::door::{Door, told};
use crate::downstream::Visitor;
use crate::status::{Running, Status, Watched, in_brief};

/// What answers of any length may take in memory altogether, kB: those who read slowly must not fill it.
const MOST: u32 = 8 << 10;

/// What answers are made of.
#[derive(Clone, Debug)]
pub(super) struct Front {
    pub(super) watched: Arc<Watched>,
    pub(super) door: Door,
    /// The host of `--http-listen`, if that is the loopback interface.
    local: Option<Arc<str>>,
    room: Arc<Semaphore>,
    /// One at a time writes out what takes long.
    turn: Arc<Semaphore>,
    /// What strangers were told last, and when it was found.
    verdict: Arc<Mutex<Option<(Instant, Verdict)>>>,
}

/// The same, asked by somebody.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    front: Front,
    visitor: Arc<Visitor>,
}

/// Somebody who may see the relay: the request names this machine, or we are to be reached from elsewhere anyway; and a login was
/// good, where that is demanded.
///
/// A page from anywhere may have its own name lead to the loopback interface, and would read what a browser on this machine can
/// (DNS rebinding); but it cannot have the browser say another name than its own.
pub(super) struct Admitted {
    front: Front,
    /// Everything, and not only how far the start is.
    sees_all: bool,
}

/// Whether whoever asks only how the relay is may be told why. Probes get their answer whatever name they ask by, and without a login:
/// so that is looked at only where there is something to tell.
#[derive(Clone, Debug)]
pub(super) struct Details {
    asked: Asked,
    headers: HeaderMap,
}

/// What there is to say of a relay to who asks only how it is.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    /// Why it can serve nobody, if so.
    pub(super) unready: Option<String>,
    /// What somebody should look at.
    pub(super) troubles: String,
}

/// A verdict holds for so long for those who are told nothing more: anybody may ask, as often as he likes.
const HOLDS: Duration = Duration::from_secs(1);

/// What should have been answered could not be made; the panic has been told of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed;

impl Front {
    pub(super) fn new(watched: Arc<Watched>, door: Door, local: Option<&str>) -> Front {
        Front {
            watched,
            door,
            local: local.map(Into::into),
            room: Arc::new(Semaphore::new(MOST as usize)),
            turn: Arc::new(Semaphore::new(1)),
            verdict: Arc::default(),
        }
    }

    /// A text that counts as long as any of it is kept; `None` if there are too many.
    pub(super) fn held(&self, text: String) -> Option<Bytes> {
        let size = u32::try_from(text.capacity() >> 10).unwrap_or(MOST).saturating_add(1);
        let permit = self.room.clone().try_acquire_many_owned(size.min(MOST)).ok()?;
        Some(Bytes::from_owner(Text { text, _room: permit }))
    }

    /// Does what takes a processor for long where nobody else needs it, one after the other.
    pub(super) async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failed> {
        let turn = self.turn.clone().acquire_owned().await.map_err(|_| Failed)?;
        let work = move || {
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| Failed)
    }

    /// What is made of the relay's status, in its turn: of a thousand consumers it takes a while.
    pub(super) async fn of_status<T: Send + 'static>(
        &self,
        running: &Running,
        make: impl FnOnce(&Status) -> T + Send + 'static,
    ) -> Result<T, Failed> {
        let sources = running.sources.clone();
        self.in_turn(move || make(&Status::now(&sources))).await
    }

    /// How it is; for strangers as it was within the last second.
    pub(super) async fn verdict(&self, running: &Running, details: &Details) -> Result<Verdict, Failed> {
        let known = self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, verdict)) =
            known.filter(|(found, _)| details.is_strangers() && found.elapsed() < HOLDS)
        {
            return Ok(verdict);
        }
        let found = |status: &Status| Verdict {
            unready: status.unready(),
            troubles: in_brief(&status.find_troubles()).join("\n"),
        };
        let verdict = self.of_status(running, found).await?;
        let now = Some((Instant::now(), verdict.clone()));
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = now;
        Ok(verdict)
    }

    /// A browser always says a name.
    fn is_called_rightly(&self, headers: &HeaderMap) -> bool {
        let host = headers.get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
        host.is_none_or(|host| self.may_be_called(host))
    }

    fn may_be_called(&self, host: &str) -> bool {
        let Some(local) = &self.local else { return true };
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
            _ => host,
        };
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        let is = |other: &str| bare.eq_ignore_ascii_case(other);
        is("localhost") || is(local) || bare.parse::<IpAddr>().is_ok()
    }
}

impl Details {
    /// What is told: `all`, or in a few words that name nothing of the relay's. A login may take its time.
    pub(super) async fn or(&self, few: &str, all: &str) -> String {
        let admitted = self.asked.admit(&self.headers).await;
        if admitted.is_ok_and(|sees_all| sees_all) { all } else { few }.to_owned()
    }

    /// The same, within so long.
    pub(super) async fn or_within(&self, limit: Duration, few: &str, all: &str) -> String {
        tokio::time::timeout(limit, self.or(few, all)).await.unwrap_or_else(|_| few.to_owned())
    }

    /// Whether it is clear without any look that whoever asks is told nothing.
    fn is_strangers(&self) -> bool {
        let Asked { front, .. } = &self.asked;
        !front.is_called_rightly(&self.headers)
            || front.door.rules().auth && !self.headers.contains_key(header::AUTHORIZATION)
    }
}

impl Asked {
    pub(super) fn new(front: Front, visitor: Visitor) -> Asked {
        Asked { front, visitor: Arc::new(visitor) }
    }

    /// Whether whoever asks may see more than how far the start is; an error is answered instead.
    async fn admit(&self, headers: &HeaderMap) -> Result<bool, Response> {
        if !self.front.is_called_rightly(headers) {
            let why = "this is for who comes to localhost or an address: let the proxy send that as Host\n";
            return Err((StatusCode::MISDIRECTED_REQUEST, told(why)).into_response());
        }
        self.front.door.admit(&self.visitor, headers).await
    }
}

impl FromRef<Asked> for Front {
    fn from_ref(asked: &Asked) -> Front {
        asked.front.clone()
    }
}

impl Admitted {
    /// Everything of a relay whose start is over, for whom it is for.
    pub(super) fn running(&self) -> Option<&Running> {
        self.front.watched.running().filter(|_| self.sees_all)
    }
}

impl FromRequestParts<Asked> for Admitted {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, asked: &Asked) -> Result<Admitted, Response> {
        let sees_all = asked.admit(&parts.headers).await?;
        Ok(Admitted { front: asked.front.clone(), sees_all })
    }
}

impl FromRequestParts<Asked> for Details {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, asked: &Asked) -> Result<Details, Infallible> {
        Ok(Details { asked: asked.clone(), headers: parts.headers.clone() })
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}

struct Text {
    text: String,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::HttpRules;
    use super::*;
    use crate::events::Events;

    fn front(local: Option<&str>) -> Front {
        Front::new(Arc::new(Watched::new(Events::default())), Door::new(HttpRules::default()), local)
    }

    #[test]
    fn on_the_loopback_interface_only_its_own_names_are_answered() {
        let front_here = front(Some("relay.example"));
        for host in
            ["localhost", "LOCALHOST:9187", "127.0.0.1:9187", "[::1]:9187", "10.0.0.7", "relay.example:80"]
        {
            assert!(front_here.may_be_called(host), "{host}");
        }
        for host in
            ["evil.example", "evil.example:9187", "localhost.evil.example", "", "127.0.0.1.evil.example:1"]
        {
            assert!(!front_here.may_be_called(host), "{host}");
        }
        assert!(front(None).may_be_called("relay.example:9187"));
    }

    /// On a runtime of one thread, which has to be free for that.
    #[tokio::test]
    async fn what_takes_long_holds_up_nobody_else() {
        let (go, wait) = std::sync::mpsc::channel();
        let front = front(None);
        let work = front.in_turn(move || wait.recv_timeout(std::time::Duration::from_secs(30)).is_ok());
        let (done, ()) = tokio::join!(work, async { go.send(()).expect("it waits") });
        assert!(done.expect("it does not panic"));
    }

    #[test]
    fn what_slow_readers_hold_is_bounded() {
        let front = front(None);
        let text = || "x".repeat(3 << 20);
        let held = [front.held(text()).expect("room"), front.held(text()).expect("room")];
        assert!(front.held(text()).is_none());
        assert!(front.held("little".to_owned()).is_some());
        let rest = held[0].slice(..10);
        drop(held);
        assert!(front.held(text()).is_some() && rest.len() == 10);
        drop(rest);
        assert!(front.held("x".repeat(9 << 20)).is_some(), "more than there may be, and nothing else");
    }

    #[test]
    fn strangers_are_told_what_was_found_a_moment_ago() {
        let scene = crate::status::tests::Scene::new();
        let front = front(Some("localhost"));
        let history = Arc::new(crate::status::History::new(scene.sources.clone()));
        front.watched.note_running(scene.sources.clone(), history);
        let running = front.watched.running().expect("it was noted");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("threads");
        let verdict = |headers: &[(header::HeaderName, &str)]| {
            let mut map = HeaderMap::new();
            headers.iter().for_each(|(name, value)| _ = map.insert(name, value.parse().expect("a value")));
            let address = ([127, 0, 0, 1], 1).into();
            let visitor = Visitor { address, ssl: false, certificate: None };
            let details = Details { asked: Asked::new(front.clone(), visitor), headers: map };
            let verdict = runtime.block_on(front.verdict(running, &details));
            verdict.expect("it does not panic").unready
        };
        let found = |seconds: u64, unready: &str| {
            // One of the future has just been found, however slow this machine is.
            let at = Instant::now() + Duration::from_secs(seconds);
            let verdict = Verdict { unready: Some(unready.to_owned()), troubles: String::new() };
            *front.verdict.lock().expect("nobody panics") = Some((at, verdict));
        };
        let elsewhere = [(header::HOST, "evil.example")];
        found(3600, "known");
        assert_eq!(verdict(&elsewhere).as_deref(), Some("known"));
        assert_eq!(verdict(&[(header::HOST, "localhost")]), None, "who may see all sees it as it is");
        assert_eq!(verdict(&elsewhere), None, "which the others are told then");
        front.door.set_rules(HttpRules { ssl: false, auth: true });
        found(3600, "known");
        assert_eq!(verdict(&[(header::HOST, "localhost")]).as_deref(), Some("known"), "without a login");
        let login = [(header::HOST, "localhost"), (header::AUTHORIZATION, "Basic bWU6c2VjcmV0")];
        assert_eq!(verdict(&login), None);
    }
}
