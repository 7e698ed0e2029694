//! What all answers have in common: what is watched, who may ask by which name, and how much may be on its way.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::status::Watched;

/// What answers of any length may take in memory altogether, kB: those who read slowly must not fill it.
const MOST: u32 = 8 << 10;

/// What answers are made of.
#[derive(Clone, Debug)]
pub(super) struct Front {
    pub(super) watched: Arc<Watched>,
    /// The host of `--http-listen`, if that is the loopback interface.
    local: Option<Arc<str>>,
    room: Arc<Semaphore>,
    /// One at a time writes out what takes long.
    turn: Arc<Semaphore>,
}

/// The request names this machine, or we are to be reached from elsewhere anyway.
///
/// A page from anywhere may have its own name lead to the loopback interface, and would read what a browser on this machine can
/// (DNS rebinding); but it cannot have the browser say another name than its own.
pub(super) struct Here;

impl Front {
    pub(super) fn new(watched: Arc<Watched>, local: Option<&str>) -> Front {
        Front {
            watched,
            local: local.map(Into::into),
            room: Arc::new(Semaphore::new(MOST as usize)),
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// A text that counts as long as any of it is kept; `None` if there are too many.
    pub(super) fn held(&self, text: String) -> Option<Bytes> {
        let size = u32::try_from(text.capacity() >> 10).unwrap_or(MOST).saturating_add(1);
        let permit = self.room.clone().try_acquire_many_owned(size.min(MOST)).ok()?;
        Some(Bytes::from_owner(Text { text, _room: permit }))
    }

    /// Does what takes a processor for long where nobody else needs it, one after the other. `None` if it panicked.
    pub(super) async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let turn = self.turn.clone().acquire_owned().await.ok()?;
        let work = move || {
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work).await.ok()
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

impl FromRequestParts<Front> for Here {
    type Rejection = (StatusCode, [(header::HeaderName, &'static str); 1], &'static str);

    async fn from_request_parts(parts: &mut Parts, front: &Front) -> Result<Here, Self::Rejection> {
        let host = parts.headers.get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
        // A browser always says one.
        if host.is_none_or(|host| front.may_be_called(host)) {
            return Ok(Here);
        }
        let why = "this is for who comes to localhost or an address: let the proxy send that as Host\n";
        Err((StatusCode::MISDIRECTED_REQUEST, [(header::CONTENT_TYPE, super::answers::TEXT)], why))
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
    use super::*;
    use crate::events::Events;

    fn front(local: Option<&str>) -> Front {
        Front::new(Arc::new(Watched::new(Events::default())), local)
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
}
