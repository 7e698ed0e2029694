//! What is answered to programs. Before the start is over there is little to say, and that is said.

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::door::told;
use super::front::{Admitted, Asked, Details, Front};
use super::page;
use crate::metrics;
use crate::status::Status;

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const ALL: &str = "there are / (a page), /api/status, /api/history, /metrics, /healthz, /readyz and /livez\n";

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
    let head = [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)];
    match admitted.running() {
        Some(running) => match front.of_status(running, metrics::exposition).await {
            Ok(text) => (head, text).into_response(),
            Err(failed) => failed.into_response(),
        },
        None => (head, metrics::exposition_at_start(&front.watched.starting())).into_response(),
    }
}

/// Whether consumers can be served.
async fn readiness(State(front): State<Front>, details: Details) -> Response {
    let Some(running) = front.watched.running() else {
        return starts(StatusCode::SERVICE_UNAVAILABLE, &front);
    };
    match front.of_status(running, Status::unready).await {
        Ok(problem) => verdict(problem, details, "not ready", "ready"),
        Err(failed) => failed.into_response(),
    }
}

/// The same, and whatever somebody should look at.
async fn health(State(front): State<Front>, details: Details) -> Response {
    let Some(running) = front.watched.running() else {
        return starts(StatusCode::SERVICE_UNAVAILABLE, &front);
    };
    match front.of_status(running, |status| (status.unready(), status.troubles())).await {
        Ok((None, troubles)) if !troubles.is_empty() => {
            verdict(None, details, "", &details.or("somebody should look at it", &troubles.join("\n")))
        }
        Ok((problem, _)) => verdict(problem, details, "not ready", "ok"),
        Err(failed) => failed.into_response(),
    }
}

/// Whether it would help to start the relay again: only where it cannot go on. Asked of nothing that takes long.
async fn life(State(front): State<Front>, details: Details) -> Response {
    match front.watched.running() {
        Some(running) => verdict(running.sources.failure(), details, "the relay cannot go on", "alive"),
        None => starts(StatusCode::OK, &front),
    }
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
            let head = [(header::CONTENT_TYPE, JSON), (header::CACHE_CONTROL, "no-store")];
            (code, page::GUARDS, head, text).into_response()
        }
        Ok(None) => (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], busy).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn nothing() -> impl IntoResponse {
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, TEXT)], ALL)
}

/// What is wrong, to whom it may be told, or that all is well.
fn verdict(problem: Option<String>, details: Details, wrong: &str, well: &str) -> Response {
    let (code, text) = match problem {
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, details.or(wrong, &problem)),
        None => (StatusCode::OK, well.to_owned()),
    };
    (code, [(header::CONTENT_TYPE, TEXT)], text + "\n").into_response()
}

/// How far a start is: nothing of the relay's is in it.
fn starts(code: StatusCode, front: &Front) -> Response {
    (code, [(header::CONTENT_TYPE, TEXT)], front.watched.starting().line() + "\n").into_response()
}
