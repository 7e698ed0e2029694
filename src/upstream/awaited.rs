//! Whether the upstream waits for this relay, asked again now and then: whoever makes it synchronous sees it stream first, and
//! names it then.
//!
//! Done beside the stream, with a connection of its own for a moment, for a walsender that streams answers nothing. It decides
//! nothing: what is known is for warnings, and for the verdict on a promotion (`left.rs`).

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::failure::{UpstreamError, explain};
use super::introduce::{Awaited, NAMES, NAMES_OF_A_RELAY, identify};
use crate::conninfo::{ConnInfo, HostSpec};
use crate::pg::connect;
use crate::store::{Identity, Store};

/// A set-up that goes on gets its answer soon.
const FIRST: Duration = Duration::from_secs(5);
/// Later on, while it does not wait.
const AGAIN: Duration = Duration::from_secs(60);
/// While it waits, or cannot be asked: no walsender may be free for a moment.
const SELDOM: Duration = Duration::from_secs(600);
/// Limit for one question.
const LIMIT: Duration = Duration::from_secs(15);

/// Asks whichever server is followed. Never resolves. Cancel-safe.
pub(super) async fn ask_again(
    info: &ConnInfo,
    store: &Arc<Store>,
    mut followed: watch::Receiver<Option<HostSpec>>,
) {
    loop {
        let Ok(host) = followed.wait_for(Option::is_some).await.map(|host| host.clone()) else {
            return pending().await;
        };
        let Some(host) = host else { continue };
        // Each one has just been asked when it was connected to.
        tokio::select! {
            never = now_and_then(info, store, &host) => match never {},
            _ = followed.wait_for(|now| now.as_ref() != Some(&host)) => {}
        }
    }
}

async fn now_and_then(info: &ConnInfo, store: &Arc<Store>, host: &HostSpec) -> Infallible {
    let (mut pause, mut is_told) = (FIRST, false);
    loop {
        tokio::time::sleep(pause).await;
        let asked = tokio::time::timeout(LIMIT, ask(info, store, host)).await;
        let asked = match asked {
            Ok(asked) => asked.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer in {} s", LIMIT.as_secs())),
        };
        let most = match &asked {
            Ok(false) => AGAIN,
            Ok(true) => SELDOM,
            Err(error) => {
                tell(host, error, is_told);
                SELDOM
            }
        };
        is_told = asked.is_err();
        pause = (pause * 2).min(most);
    }
}

/// Once: what is known until then is that of the time when it was connected to, and a verdict on a promotion rests on that.
fn tell(host: &HostSpec, error: &str, is_told: bool) {
    let text = format!("could not ask {host} again whether it waits for this relay ({NAMES}): {error}");
    match is_told {
        true => tracing::debug!("{text}"),
        false => tracing::info!("{text}; what it said last counts, will ask again"),
    }
}

/// Whether it waits for us.
async fn ask(info: &ConnInfo, store: &Arc<Store>, host: &HostSpec) -> Result<bool, UpstreamError> {
    // Those of the server that is followed now: what this one says is nothing that another one has said.
    let parameters = store.upstream_parameters();
    let mut conn = connect(info, host, Instant::now() + LIMIT).await.map_err(|error| explain(host, error))?;
    let theirs = identify(&mut conn).await?;
    let awaited = Awaited::ask(&mut conn).await?;
    conn.close().await;
    let acknowledgements = store.consumers().acknowledgements();
    let Some(Identity { seg_size, .. }) = store.identity() else { return Ok(false) };
    store.check(Identity { system_id: theirs.system_id, seg_size })?;
    // What is left of ours is judged first, by whoever waited there.
    if theirs.tli != store.history().tli() {
        return Ok(acknowledgements.is_awaited());
    }
    let was_awaited = acknowledgements.is_awaited();
    let names = awaited.all();
    acknowledgements.learn(&names, &info.application_name);
    let is_awaited = acknowledgements.is_awaited();
    match is_awaited {
        _ if is_awaited == was_awaited => {}
        true => tracing::info!("{host} waits for this relay from now on: {NAMES} = \"{names}\""),
        false => tracing::info!("{host} does not wait for this relay any more: {NAMES} = \"{names}\""),
    }
    let noting = store.clone();
    let settings = [(NAMES, awaited.names), (NAMES_OF_A_RELAY, awaited.own.unwrap_or_default())];
    // Nobody takes this back when another host is followed meanwhile.
    let noted = tokio::task::spawn_blocking(move || noting.note_settings(&parameters, &settings)).await;
    if let Ok(Err(error)) = noted {
        tracing::warn!("{error}; after a restart the relay does not know whom {host} waits for");
    }
    Ok(is_awaited)
}
