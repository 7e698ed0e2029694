//! What is answered to programs. Before the start is over there is little to say, and that is said.

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::front::{Front, Here};
use super::page;
use crate::metrics;
use crate::status::Status;

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const ALL: &str = "there are / (a page), /api/status, /api/history, /metrics, /healthz, /readyz and /livez\n";

/// All there is.
pub(super) fn router(front: Front) -> Router {
    let router = Router::new()
        .route("/metrics", get(exposition))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/livez", get(life))
        .route("/api/status", get(status))
        .route("/api/history", get(history));
    page::routes(router).fallback(nothing).with_state(front)
}

async fn exposition(State(front): State<Front>) -> impl IntoResponse {
    let text = match front.watched.running() {
        Some(running) => metrics::exposition(&Status::now(&running.sources)),
        None => metrics::exposition_at_start(&front.watched.starting()),
    };
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
}

/// Whether consumers can be served.
async fn readiness(State(front): State<Front>) -> impl IntoResponse {
    let problem = match front.watched.running() {
        Some(running) => Status::now(&running.sources).unready(),
        None => Some(front.watched.starting().line()),
    };
    verdict(problem, "ready\n".to_owned())
}

/// The same, and whatever somebody should look at.
async fn health(State(front): State<Front>) -> impl IntoResponse {
    let Some(running) = front.watched.running() else {
        return verdict(Some(front.watched.starting().line()), String::new());
    };
    let status = Status::now(&running.sources);
    let troubles: String = status.troubles().iter().map(|line| format!("{line}\n")).collect();
    verdict(status.unready(), if troubles.is_empty() { "ok\n".to_owned() } else { troubles })
}

/// Whether it would help to start the relay again: only where it cannot go on.
async fn life(State(front): State<Front>) -> impl IntoResponse {
    match front.watched.running() {
        Some(running) => verdict(running.sources.failure(), "alive\n".to_owned()),
        None => verdict(None, front.watched.starting().line() + "\n"),
    }
}

/// What `walrelay status --json` shows.
async fn status(State(front): State<Front>, _: Here) -> Response {
    let Some(running) = front.watched.running() else { return starting(&front) };
    json(&front, StatusCode::OK, serde_json::to_string(&Status::now(&running.sources)))
}

/// The last hours, from the sample that is named on.
async fn history(State(front): State<Front>, _: Here, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let since = query.split('&').find_map(|pair| pair.strip_prefix("since=")).unwrap_or("0");
    let Ok(since) = since.parse() else {
        let text = "since is the number of a sample: /api/history?since=360\n";
        return (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, TEXT)], text).into_response();
    };
    match front.watched.running() {
        Some(running) => {
            let history = running.history.clone();
            match front.in_turn(move || history.json(since)).await {
                Some(text) => json(&front, StatusCode::OK, Ok(text)),
                None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            }
        }
        None => starting(&front),
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

fn verdict(
    problem: Option<String>,
    well: String,
) -> (StatusCode, [(header::HeaderName, &'static str); 1], String) {
    let (code, text) = match problem {
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem + "\n"),
        None => (StatusCode::OK, well),
    };
    (code, [(header::CONTENT_TYPE, TEXT)], text)
}
