//! What is answered.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::metrics;
use crate::status::{Sources, Status};

const TEXT: &str = "text/plain; charset=utf-8";

/// All there is.
pub(super) fn router(sources: Arc<Sources>) -> Router {
    Router::new()
        .route("/metrics", get(exposition))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/livez", get(life))
        .fallback(nothing)
        .with_state(sources)
}

async fn exposition(State(sources): State<Arc<Sources>>) -> impl IntoResponse {
    let text = metrics::exposition(&Status::now(&sources));
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
}

/// Whether consumers can be served.
async fn readiness(State(sources): State<Arc<Sources>>) -> impl IntoResponse {
    verdict(Status::now(&sources).unready(), "ready\n".to_owned())
}

/// The same, and whatever somebody should look at.
async fn health(State(sources): State<Arc<Sources>>) -> impl IntoResponse {
    let status = Status::now(&sources);
    let troubles: String = status.troubles().iter().map(|line| format!("{line}\n")).collect();
    verdict(status.unready(), if troubles.is_empty() { "ok\n".to_owned() } else { troubles })
}

/// Whether it would help to start the relay again: only where it cannot go on.
async fn life(State(sources): State<Arc<Sources>>) -> impl IntoResponse {
    verdict(sources.failure(), "alive\n".to_owned())
}

async fn nothing() -> impl IntoResponse {
    let text = "there are /metrics, /healthz, /readyz and /livez\n".to_owned();
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, TEXT)], text)
}

fn verdict(problem: Option<String>, well: String) -> impl IntoResponse {
    let (code, text) = match problem {
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem + "\n"),
        None => (StatusCode::OK, well),
    };
    (code, [(header::CONTENT_TYPE, TEXT)], text)
}
