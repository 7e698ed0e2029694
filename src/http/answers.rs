//! What is answered to programs. Before the start is over there is little to say, and that is said.

use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::door::told;
use super::front::{Admitted, Asked, Details, Front, Verdict};
use super::page;
use crate::metrics;

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const ALL: &str = "there are / (a page), /api/status, /api/history, /metrics, /healthz, /readyz and /livez\n";

/// No cache may keep what only this one may see.
const NEVER_KEPT: (HeaderName, &str) = (header::CACHE_CONTROL, "no-store");
/// How long a login may take where the answer is waited for by who restarts what does not answer.
const LOGIN_OF_LIFE: Duration = Duration::from_millis(200);

/// All there is, for somebody.
pub(super) fn router(asked: Asked) -> Router {
    let router = Router::new()
        .route("/metrics", get(exposition))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/livez", get(life))
        .route("/api/status", get(status))
        .route("/api/history", get(history));
    page::routes(router).fallback(nothing).with_state(asked)
}

/// What is said to who speaks in clear text where that is not wanted.
pub(super) fn unencrypted() -> Router {
    let why = "this port speaks TLS (--http-ssl): ask with https://\n";
    Router::new().fallback(move || async move { (StatusCode::BAD_REQUEST, told(why)) })
}

async fn exposition(State(front): State<Front>, admitted: Admitted) -> Response {
    let head = [(header::CONTENT_TYPE, metrics::CONTENT_TYPE), NEVER_KEPT];
    match admitted.running() {
        Some(running) => match front.of_status(running, metrics::exposition).await {
            Ok(text) => (page::GUARDS, head, text).into_response(),
            Err(failed) => failed.into_response(),
        },
        None => (page::GUARDS, head, metrics::exposition_at_start(&front.watched.starting())).into_response(),
    }
}

/// Whether consumers can be served.
async fn readiness(State(front): State<Front>, details: Details) -> Response {
    let Some(running) = front.watched.running() else {
        return starts(StatusCode::SERVICE_UNAVAILABLE, &front);
    };
    match front.verdict(running, &details).await {
        Ok(Verdict { unready: Some(why), .. }) => unready(&why, &details).await,
        Ok(_) => answer(StatusCode::OK, "ready".to_owned()),
        Err(failed) => failed.into_response(),
    }
}

/// The same, and whatever somebody should look at.
async fn health(State(front): State<Front>, details: Details) -> Response {
    let Some(running) = front.watched.running() else {
        return starts(StatusCode::SERVICE_UNAVAILABLE, &front);
    };
    match front.verdict(running, &details).await {
        Ok(Verdict { unready: Some(why), .. }) => unready(&why, &details).await,
        Ok(Verdict { troubles, .. }) if !troubles.is_empty() => {
            answer(StatusCode::OK, details.or("somebody should look at it", &troubles).await)
        }
        Ok(_) => answer(StatusCode::OK, "ok".to_owned()),
        Err(failed) => failed.into_response(),
    }
}

/// Whether it would help to start the relay again: only where it cannot go on. Asked of nothing that takes long.
async fn life(State(front): State<Front>, details: Details) -> Response {
    let Some(running) = front.watched.running() else { return starts(StatusCode::OK, &front) };
    let Some(why) = running.sources.failure() else { return answer(StatusCode::OK, "alive".to_owned()) };
    let text = details.or_within(LOGIN_OF_LIFE, "the relay cannot go on", &why).await;
    answer(StatusCode::SERVICE_UNAVAILABLE, text)
}

/// What `walrelay status --json` shows.
async fn status(State(front): State<Front>, admitted: Admitted) -> Response {
    let Some(running) = admitted.running() else { return starting(&front) };
    match front.of_status(running, serde_json::to_string).await {
        Ok(text) => json(&front, StatusCode::OK, text),
        Err(failed) => failed.into_response(),
    }
}

/// The last hours, from the sample that is named on.
async fn history(State(front): State<Front>, admitted: Admitted, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let since = query.split('&').find_map(|pair| pair.strip_prefix("since=")).unwrap_or("0");
    let Ok(since) = since.parse() else {
        let text = "since is the number of a sample: /api/history?since=360\n";
        return (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, TEXT)], text).into_response();
    };
    let Some(running) = admitted.running() else { return starting(&front) };
    let history = running.history.clone();
    match front.in_turn(move || history.json(since)).await {
        Ok(text) => json(&front, StatusCode::OK, Ok(text)),
        Err(failed) => failed.into_response(),
    }
}

fn starting(front: &Front) -> Response {
    json(front, StatusCode::SERVICE_UNAVAILABLE, serde_json::to_string(&front.watched.starting()))
}

fn json(front: &Front, code: StatusCode, text: serde_json::Result<String>) -> Response {
    let busy = "too much is on its way to others that read slowly; ask again\n";
    match text.map(|text| front.held(text)) {
        Ok(Some(text)) => {
            let head = [(header::CONTENT_TYPE, JSON), NEVER_KEPT];
            (code, page::GUARDS, head, text).into_response()
        }
        Ok(None) => (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], busy).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn nothing() -> impl IntoResponse {
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, TEXT)], ALL)
}

async fn unready(why: &str, details: &Details) -> Response {
    answer(StatusCode::SERVICE_UNAVAILABLE, details.or("not ready", why).await)
}

/// How far a start is: nothing of the relay's is in it.
fn starts(code: StatusCode, front: &Front) -> Response {
    answer(code, front.watched.starting().line())
}

/// A text that may say what only this one may see.
fn answer(code: StatusCode, text: String) -> Response {
    (code, told(text + "\n")).into_response()
}
