//! What is known of the upstream's roles: how they log in, and what they may.
//!
//! Asked for in SQL, with a connection of the relay's own role that is closed again soon. What was learnt is kept
//! in the data directory, so that who could log in still can while the upstream is down and the relay restarts.
//! The WAL beside it holds the same secrets: `pg_authid` is a table like others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::auth::users::Secret;
use crate::conninfo::{ConnInfo, HostSpec};
use crate::store::Store;
use crate::upstream::{Followed, QueryError, UpstreamConnection, connect};

/// PgBouncer's default, but for `rolcanlogin`: who may not log in is told so after the password.
pub const DEFAULT_AUTH_QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil < pg_catalog.now() THEN NULL \
     ELSE rolpassword END FROM pg_catalog.pg_authid WHERE rolname = $1";

/// Anybody may ask this.
const ATTRIBUTES_QUERY: &str = "SELECT rolsuper, rolreplication, rolcanlogin, \
     pg_catalog.pg_has_role(oid, 'pg_monitor', 'USAGE') FROM pg_catalog.pg_roles WHERE rolname = $1";

const FILE: &str = "roles.toml";
/// An answer this young is not asked for again: many logins of one role at once cost one question.
const FRESH: Duration = Duration::from_secs(1);
/// How often all known roles are looked up again.
const REFRESH: Duration = Duration::from_secs(60);
/// An idle connection lives that long.
const IDLE: Duration = Duration::from_secs(5);
/// Time an answer may take; then what is known already has to do.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// No new attempt that soon after a connection has failed.
const PAUSE: Duration = Duration::from_secs(5);
/// Roles remembered at most, so that logins with invented names cannot fill the memory. Only existing roles count.
const MOST: usize = 10_000;

/// What a role may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attributes {
    /// `rolsuper`
    pub superuser: bool,
    /// `rolreplication`
    pub replication: bool,
    /// `rolcanlogin`
    pub can_login: bool,
    /// Has the privileges of `pg_monitor`.
    pub monitor: bool,
}

impl Attributes {
    /// Whether it may start a walsender.
    pub fn may_replicate(&self) -> bool {
        self.superuser || self.replication
    }
}

/// What is known of a role.
#[derive(Clone, Debug, Default)]
pub struct Role {
    /// How it proves who it is; `None` without `--auth-query`, for unknown roles, and for those without a password
    /// or with an expired one.
    pub secret: Option<Secret>,
    /// What it may do; `None` if the upstream could never be asked.
    pub attributes: Option<Attributes>,
    /// The upstream has been asked, and has no such role.
    pub absent: bool,
}

/// As kept in the file.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Known {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    attributes: Option<Attributes>,
}

impl Known {
    fn role(&self) -> Role {
        let secret = self.secret.as_deref().map(Secret::classify);
        Role { secret, attributes: self.attributes, absent: false }
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Saved {
    roles: BTreeMap<String, Known>,
}

#[derive(Default)]
struct Cache {
    roles: BTreeMap<String, Known>,
    asked: BTreeMap<String, Instant>,
    /// Those of whom the upstream has said that there are none.
    absent: BTreeSet<String>,
    /// `roles` is not in the file.
    unsaved: bool,
    /// A thread is about to save, or does; it looks again before it ends.
    saving: bool,
    /// Why it failed last; told once.
    told: Option<String>,
}

/// For a moment: nothing is waited for while it is held.
fn lock(cache: &Mutex<Cache>) -> MutexGuard<'_, Cache> {
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The upstream's roles.
pub struct Roles {
    info: ConnInfo,
    auth_query: Option<String>,
    followed: Followed,
    store: Arc<Store>,
    cache: Arc<Mutex<Cache>>,
    asker: tokio::sync::Mutex<Asker>,
}

/// The connection to ask through.
#[derive(Default)]
struct Asker {
    connection: Option<(HostSpec, UpstreamConnection)>,
    last_used: Option<Instant>,
    failed: Option<Instant>,
    /// Why it failed last; told once.
    told: Option<String>,
}

impl std::fmt::Debug for Roles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Roles").field("auth_query", &self.auth_query).finish_non_exhaustive()
    }
}

impl Roles {
    pub(super) fn new(
        info: ConnInfo,
        auth_query: Option<String>,
        followed: Followed,
        store: Arc<Store>,
    ) -> Roles {
        let cache = Cache { roles: load(&store, auth_query.is_some()), ..Cache::default() };
        let cache = Arc::new(Mutex::new(cache));
        Roles { info, auth_query, followed, store, cache, asker: Default::default() }
    }

    /// What is known of a role, asking the upstream if it can be reached. Takes 5 s at most.
    pub async fn look_up(&self, name: &str) -> Role {
        let fresh = self.lock().asked.get(name).is_some_and(|at| at.elapsed() < FRESH);
        let (host, known) = (self.followed.host(), self.lock().roles.contains_key(name));
        if !fresh && (host.is_some() || !known) {
            let ask = async {
                // Of whom nothing is known, no server is not the last word.
                if host.is_some() || self.followed.reach(ANSWER_LIMIT).await.is_some() {
                    self.ask(name).await;
                }
            };
            let _ = tokio::time::timeout(ANSWER_LIMIT, ask).await;
        }
        let cache = self.lock();
        let absent = || Role { absent: cache.absent.contains(name), ..Role::default() };
        cache.roles.get(name).map_or_else(absent, Known::role)
    }

    /// Keeps what is known up to date until told to stop.
    pub async fn refresh(&self, stop: CancellationToken) {
        let mut last = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(IDLE) => {}
                () = stop.cancelled() => return,
            }
            self.save();
            if last.elapsed() >= REFRESH && self.followed.host().is_some() {
                last = Instant::now();
                let names: Vec<String> = self.lock().roles.keys().cloned().collect();
                for name in names {
                    let _ = tokio::time::timeout(ANSWER_LIMIT, self.ask(&name)).await;
                }
            }
            let mut asker = self.asker.lock().await;
            if asker.last_used.is_some_and(|at| at.elapsed() >= IDLE)
                && let Some((_, connection)) = asker.connection.take()
            {
                connection.close().await;
            }
        }
    }

    async fn ask(&self, name: &str) {
        let mut asker = self.asker.lock().await;
        // Whoever waited here may find that the question was answered meanwhile.
        if self.lock().asked.get(name).is_some_and(|at| at.elapsed() < FRESH) {
            return;
        }
        // Out of its place while in use: an answer that was not waited for must not be taken for the next one.
        let was_idle = asker.connection.is_some();
        let Some((mut host, mut connection)) = self.connection(&mut asker).await else { return };
        let mut answer = self.ask_through(&mut connection, name).await;
        // While nobody used it the server may have ended it, by a restart for one. A new one may do; that is no news.
        if was_idle && answer.as_ref().is_err_and(|error| !error.is_recoverable()) {
            let Some(fresh) = self.connection(&mut asker).await else { return };
            (host, connection) = fresh;
            answer = self.ask_through(&mut connection, name).await;
        }
        match answer {
            Ok(known) => {
                asker.connection = Some((host, connection));
                (asker.last_used, asker.told) = (Some(Instant::now()), None);
                self.learn(name, known);
            }
            Err(error) => {
                if error.is_recoverable() {
                    asker.connection = Some((host, connection));
                    asker.last_used = Some(Instant::now());
                }
                tell(&mut asker, format!("could not ask the upstream for role \"{name}\": {error}"));
            }
        }
    }

    async fn connection(&self, asker: &mut Asker) -> Option<(HostSpec, UpstreamConnection)> {
        let host = self.followed.host()?;
        if let Some((known, connection)) = asker.connection.take()
            && known == host
        {
            return Some((known, connection));
        }
        if asker.failed.is_some_and(|at| at.elapsed() < PAUSE) {
            return None;
        }
        match connect(&self.info, &host, Instant::now() + ANSWER_LIMIT).await {
            Ok(connection) => {
                asker.failed = None;
                Some((host, connection))
            }
            Err(error) => {
                asker.failed = Some(Instant::now());
                tell(asker, format!("could not connect to the upstream's database for roles: {error}"));
                None
            }
        }
    }

    async fn ask_through(
        &self,
        connection: &mut UpstreamConnection,
        name: &str,
    ) -> Result<Option<Known>, QueryError> {
        let row = first_row(connection, ATTRIBUTES_QUERY, name).await?;
        let flag = |at: usize| row.as_ref().and_then(|row| row.get(at)?.as_deref()).map(|text| text == "t");
        let attributes = (|| {
            Some(Attributes {
                superuser: flag(0)?,
                replication: flag(1)?,
                can_login: flag(2)?,
                monitor: flag(3).unwrap_or(false),
            })
        })();
        let secret = match &self.auth_query {
            None => None,
            Some(query) => {
                first_row(connection, query, name).await?.and_then(|row| row.into_iter().nth(1)?)
            }
        };
        Ok((attributes.is_some() || secret.is_some()).then_some(Known { secret, attributes }))
    }

    fn learn(&self, name: &str, known: Option<Known>) {
        let mut cache = self.lock();
        if cache.asked.len() >= MOST {
            cache.asked.clear();
        }
        cache.asked.insert(name.to_owned(), Instant::now());
        if cache.absent.len() >= MOST {
            cache.absent.clear();
        }
        match known {
            Some(_) => cache.absent.remove(name),
            None => cache.absent.insert(name.to_owned()),
        };
        if cache.roles.get(name) == known.as_ref() {
            return;
        }
        match known {
            Some(known) if cache.roles.len() < MOST => drop(cache.roles.insert(name.to_owned(), known)),
            Some(_) => return,
            None => drop(cache.roles.remove(name)),
        }
        cache.unsaved = true;
        drop(cache);
        self.save();
    }

    /// Has what was learnt saved by a thread that may wait for the disk; logins do not.
    fn save(&self) {
        let mut cache = self.lock();
        if cache.unsaved && !std::mem::replace(&mut cache.saving, true) {
            let (store, cache) = (self.store.clone(), self.cache.clone());
            tokio::task::spawn_blocking(move || save_all(&store, &cache));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        lock(&self.cache)
    }
}

/// Saves until everything is saved. After an error the next to learn something tries again, or the refresh.
fn save_all(store: &Store, cache: &Mutex<Cache>) {
    loop {
        let saved = {
            let mut cache = lock(cache);
            if !std::mem::take(&mut cache.unsaved) {
                cache.saving = false;
                return;
            }
            Saved { roles: cache.roles.clone() }
        };
        let text = toml::to_string(&saved).map_err(std::io::Error::other);
        let written = text.and_then(|text| store.replace_state(FILE, &text));
        let mut cache = lock(cache);
        let Err(error) = written else {
            cache.told = None;
            continue;
        };
        (cache.unsaved, cache.saving) = (true, false);
        let text = format!(
            "could not save what is known of roles: {error}; logins work as long as the relay runs, look at the data directory's file system"
        );
        if cache.told.as_ref() != Some(&text) {
            tracing::warn!("{text}");
            cache.told = Some(text);
        }
        return;
    }
}

/// What an earlier process knew. Secrets only if they are still asked for.
fn load(store: &Store, with_secrets: bool) -> BTreeMap<String, Known> {
    let saved = store.read_state(FILE).and_then(|text| {
        // The error would quote the line, and with it a secret.
        let damaged = |_| std::io::Error::other("it is damaged");
        let parse = |text: String| toml::from_str::<Saved>(&text).map_err(damaged);
        text.map(parse).transpose()
    });
    let mut roles = match saved {
        Ok(saved) => saved.unwrap_or_default().roles,
        Err(error) => {
            tracing::warn!("{FILE} cannot be used, roles are asked for again: {error}");
            BTreeMap::new()
        }
    };
    if !with_secrets {
        roles.values_mut().for_each(|known| known.secret = None);
    }
    roles
}

fn tell(asker: &mut Asker, text: String) {
    if asker.told.as_deref() != Some(&text) {
        tracing::warn!("{text}");
        asker.told = Some(text);
    }
}

async fn first_row(
    connection: &mut UpstreamConnection,
    query: &str,
    name: &str,
) -> Result<Option<Vec<Option<String>>>, QueryError> {
    let result = connection.query(&with_name(query, name)).await?;
    let text = |value: bytes::Bytes| String::from_utf8_lossy(&value).into_owned();
    Ok(result.rows.into_iter().next().map(|row| row.into_iter().map(|value| value.map(text)).collect()))
}

/// The query with the name in the place of `$1`.
fn with_name(query: &str, name: &str) -> String {
    // Good whatever standard_conforming_strings is. Names have no NUL: they come from start-up messages.
    let literal = format!("E'{}'", name.replace('\\', "\\\\").replace('\'', "''"));
    let mut text = String::new();
    let mut rest = query;
    while let Some((before, after)) = rest.split_once("$1") {
        let longer = after.starts_with(|c: char| c.is_ascii_digit());
        text.push_str(before);
        text.push_str(if longer { "$1" } else { &literal });
        rest = after;
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        assert_eq!(with_name("SELECT f($1), $1, $12", "a"), "SELECT f(E'a'), E'a', $12");
        assert_eq!(with_name("f($1)", r"o'b\"), r"f(E'o''b\\')");
    }
}
