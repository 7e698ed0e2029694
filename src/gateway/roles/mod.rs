//! What is known of the upstream's roles: how they log in, and what they may.
//!
//! Asked for in SQL, with connections of the relay's own role that are closed again soon. What was learnt is kept
//! in the data directory, so that who could log in still can while the upstream is down and the relay restarts.
//! The WAL beside it holds the same secrets: `pg_authid` is a table like others.
//!
//! Those who are known and those who are not are asked for through two connections, so that names made up in any
//! number hold up nobody who logs in every day.

mod asker;
mod questions;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::auth::users::{Kinds, Secret};
use crate::conninfo::ConnInfo;
use crate::store::Store;
use crate::upstream::Followed;
use crate::wire::Source;
use asker::{Answering, Asker};
use questions::{Question, Questions};

/// PgBouncer's default, but for `rolcanlogin`: who may not log in is told so after the password.
pub const DEFAULT_AUTH_QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil < pg_catalog.now() THEN NULL \
     ELSE rolpassword END FROM pg_catalog.pg_authid WHERE rolname = $1";

const FILE: &str = "roles.toml";
/// An answer this young is not asked for again: many logins of one role at once cost one question.
const FRESH: Duration = Duration::from_secs(1);
/// How often all known roles are looked up again.
const REFRESH: Duration = Duration::from_secs(60);
/// An idle connection lives that long.
const IDLE: Duration = Duration::from_secs(5);
/// Time an answer may take, for who is not known.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Time after which what is known of a role has to do, at least and at most. Between them it is a multiple of what
/// answers take, so that a password which was changed is not good any longer for an upstream being far away.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));
/// That multiple.
const TIMES_USUAL: u32 = 3;
/// Roles asked for with one round trip.
const BATCH: usize = 16;
/// Names that nobody knows yet and one address may have asked for at a time.
const SHARE: usize = 32;
/// Roles remembered at most, so that logins with invented names cannot fill the memory. Only existing roles count.
const MOST: usize = 10_000;
/// Roles at most of which it is kept that they are gone. Only who makes and drops roles upstream gets there.
const MOST_GONE: usize = 100_000;

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
    /// The roles that it belongs to, itself among them; `None` if the upstream could never be asked.
    pub member_of: Option<Vec<String>>,
    /// The upstream has been asked, and has no such role.
    pub absent: bool,
}

impl Role {
    /// The roles that it belongs to, none if there is no such role; `None` if nobody has ever said.
    pub fn memberships(&self) -> Option<Vec<String>> {
        if self.absent { Some(Vec::new()) } else { self.member_of.clone() }
    }
}

/// As kept in the file.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(Debug))]
struct Known {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    attributes: Option<Attributes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    member_of: Option<Vec<String>>,
}

impl Known {
    fn secret(&self) -> Option<Secret> {
        self.secret.as_deref().map(Secret::classify)
    }

    fn role(&self) -> Role {
        Role {
            secret: self.secret(),
            attributes: self.attributes,
            member_of: self.member_of.clone(),
            absent: false,
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Saved {
    /// Empty in what earlier versions have saved.
    #[serde(default)]
    gone: BTreeSet<String>,
    roles: BTreeMap<String, Known>,
}

#[derive(Default)]
struct Cache {
    roles: BTreeMap<String, Known>,
    asked: BTreeMap<String, Instant>,
    /// What the secrets of `roles` look like.
    kinds: Kinds,
    /// Those of whom the upstream has said that there are none: names that nobody has ever known, ...
    absent: BTreeSet<String>,
    /// ... and those that were known or are listed. That they are out holds until the upstream says otherwise.
    gone: BTreeSet<String>,
    /// Names in `--auth-file` that were looked up.
    listed: BTreeSet<String>,
    /// `roles` and `gone` are not in the file.
    unsaved: bool,
    /// A thread is about to save, or does; it looks again before it ends.
    saving: bool,
    /// Why it failed last; told once.
    told: Option<String>,
}

impl Cache {
    fn of(saved: Saved) -> Cache {
        let mut kinds = Kinds::default();
        saved.roles.values().filter_map(Known::secret).for_each(|secret| kinds.add(&secret));
        Cache { roles: saved.roles, gone: saved.gone, kinds, ..Cache::default() }
    }

    fn is_absent(&self, name: &str) -> bool {
        self.gone.contains(name) || self.absent.contains(name)
    }

    /// The name is in `--auth-file`.
    fn list(&mut self, name: &str) {
        // The file is bounded, what it was in former times is not.
        if self.listed.len() >= MOST_GONE {
            self.listed.clear();
        }
        self.listed.insert(name.to_owned());
        if self.absent.contains(name) {
            self.miss(name);
        }
    }

    /// The upstream says that there is no such role.
    fn miss(&mut self, name: &str) {
        let matters = self.roles.contains_key(name) || self.listed.contains(name);
        if self.gone.contains(name) {
            return;
        }
        if matters && self.gone.len() < MOST_GONE {
            self.absent.remove(name);
            self.unsaved |= self.gone.insert(name.to_owned());
            return;
        }
        if matters {
            tracing::warn!(
                "{MOST_GONE} dropped roles are remembered already: that \"{name}\" is gone is forgotten at a restart; \
                 with the relay stopped, clear \"gone\" in its {FILE}"
            );
        }
        if self.absent.len() >= MOST {
            self.absent.clear();
        }
        self.absent.insert(name.to_owned());
    }

    /// The upstream says that there is such a role.
    fn meet(&mut self, name: &str) {
        self.absent.remove(name);
        self.unsaved |= self.gone.remove(name);
    }

    /// Whether there was something to change.
    fn put(&mut self, name: &str, known: Option<Known>) -> bool {
        if self.roles.get(name) == known.as_ref() {
            return false;
        }
        if known.is_some() && self.roles.len() >= MOST && !self.roles.contains_key(name) {
            return false;
        }
        if let Some(secret) = known.as_ref().and_then(Known::secret) {
            self.kinds.add(&secret);
        }
        let before = match known {
            Some(known) => self.roles.insert(name.to_owned(), known),
            None => self.roles.remove(name),
        };
        if let Some(secret) = before.as_ref().and_then(Known::secret) {
            self.kinds.remove(&secret);
        }
        true
    }

    fn is_fresh(&self, name: &str) -> bool {
        self.asked.get(name).is_some_and(|at| at.elapsed() < FRESH)
    }
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
    /// About those who are known, or listed.
    known: Questions,
    /// About those who are not.
    strangers: Questions,
    /// What an answer about those who are known takes, in milliseconds, as far as that has been seen.
    usual_ms: AtomicU64,
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
        let cache = Cache::of(load(&store, auth_query.is_some()));
        Roles {
            info,
            auth_query,
            followed,
            store,
            cache: Arc::new(Mutex::new(cache)),
            known: Questions::new(MOST, true),
            strangers: Questions::new(SHARE, false),
            usual_ms: AtomicU64::new(0),
        }
    }

    /// What is known of a role, after the upstream was asked if it can be reached. A role that is known waits for the
    /// answer for half a second, or longer where answers always take longer; the answer is taken all the same
    /// when it comes. So does one that is `listed`, which can log in with what the operator wrote down. Any other
    /// waits for 5 s at most, behind few others from the same source.
    pub async fn look_up(&self, name: &str, source: Option<Source>, listed: bool) -> Role {
        let (fresh, known) = {
            let mut cache = self.lock();
            if listed {
                cache.list(name);
            }
            (cache.is_fresh(name), cache.roles.contains_key(name))
        };
        if known && !fresh && self.followed.host().is_some() {
            let _ = timeout(self.patience(), self.known.ask(name, None)).await;
        } else if !known && !fresh {
            let limit = if listed { self.patience() } else { ANSWER_LIMIT };
            let ask = async {
                // Of whom nothing is known, no server is not the last word.
                if listed {
                    if self.followed.reach(limit).await.is_some() {
                        self.known.ask(name, None).await;
                    }
                } else if self.followed.wait(limit).await.is_some() {
                    self.strangers.ask(name, source).await;
                }
            };
            let _ = timeout(limit, ask).await;
        }
        self.current(name)
    }

    /// What is known of a role at this moment.
    pub fn current(&self, name: &str) -> Role {
        let cache = self.lock();
        let absent = || Role { absent: cache.is_absent(name), ..Role::default() };
        cache.roles.get(name).map_or_else(absent, Known::role)
    }

    /// What the secrets of those who are known look like.
    pub fn kinds(&self) -> Kinds {
        self.lock().kinds.clone()
    }

    fn patience(&self) -> Duration {
        let usual = Duration::from_millis(self.usual_ms.load(Ordering::Relaxed));
        (usual * TIMES_USUAL).clamp(PATIENCE.0, PATIENCE.1)
    }

    /// Asks the upstream for whom [`Roles::look_up`] wants to know, and keeps what is known up to date, until told to
    /// stop.
    pub async fn run(&self, stop: CancellationToken) {
        let asker = || Asker::new(self.info.clone(), self.auth_query.clone(), self.followed.clone());
        let all = async {
            tokio::join!(
                self.answer(&self.known, asker(), Some(&self.usual_ms)),
                self.answer(&self.strangers, asker(), None),
                self.refresh()
            )
        };
        stop.run_until_cancelled(all).await;
    }

    /// `usual_ms` is told what answers take.
    async fn answer(
        &self,
        questions: &Questions,
        mut upstream: impl Answering,
        usual_ms: Option<&AtomicU64>,
    ) {
        loop {
            if timeout(IDLE, questions.any()).await.is_err() {
                upstream.rest().await;
                continue;
            }
            let batch = self.still_open(questions.take(BATCH));
            let names: Vec<String> = batch.iter().map(|question| question.name.clone()).collect();
            if names.is_empty() {
                continue;
            }
            match timeout(ANSWER_LIMIT, upstream.ask(&names)).await {
                Ok(answers) => answers.into_iter().for_each(|(name, known)| self.learn(&name, known)),
                Err(_) => upstream.give_up(&names),
            }
            if let Some(usual_ms) = usual_ms {
                let usual = u64::try_from(upstream.usual().as_millis()).unwrap_or(u64::MAX);
                usual_ms.store(usual, Ordering::Relaxed);
            }
        }
    }

    /// Without those that have been answered while they waited for their turn.
    fn still_open(&self, mut batch: Vec<Question>) -> Vec<Question> {
        let cache = self.lock();
        batch.retain(|question| !cache.is_fresh(&question.name));
        batch
    }

    /// Looks all known roles up again, now and then; first as soon as there is a server to ask.
    async fn refresh(&self) {
        let mut last: Option<Instant> = None;
        loop {
            tokio::time::sleep(IDLE).await;
            self.save();
            if last.is_some_and(|at| at.elapsed() < REFRESH) || self.followed.host().is_none() {
                continue;
            }
            last = Some(Instant::now());
            let names: Vec<String> = self.lock().roles.keys().cloned().collect();
            // Not all at once: who logs in meanwhile waits for one batch at most.
            for batch in names.chunks(BATCH) {
                let answers: Vec<_> = batch.iter().map(|name| self.known.ask(name, None)).collect();
                for answer in answers {
                    answer.await;
                }
            }
        }
    }

    fn learn(&self, name: &str, known: Option<Known>) {
        let mut cache = self.lock();
        if cache.asked.len() >= MOST {
            cache.asked.clear();
        }
        cache.asked.insert(name.to_owned(), Instant::now());
        match known {
            Some(_) => cache.meet(name),
            None => cache.miss(name),
        }
        cache.unsaved |= cache.put(name, known);
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
            Saved { gone: cache.gone.clone(), roles: cache.roles.clone() }
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

/// Where the file is damaged, and nothing of what stands there.
fn damaged(text: &str, error: &toml::de::Error) -> std::io::Error {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    std::io::Error::other(format!("line {} is damaged", before.matches('\n').count() + 1))
}

/// What an earlier process knew. Secrets only if they are still asked for.
fn load(store: &Store, with_secrets: bool) -> Saved {
    let saved = store.read_state(FILE).and_then(|text| {
        let parse = |text: String| toml::from_str::<Saved>(&text).map_err(|error| damaged(&text, &error));
        text.map(parse).transpose()
    });
    let mut saved = match saved {
        Ok(saved) => saved.unwrap_or_default(),
        Err(error) => {
            tracing::warn!("{FILE} cannot be used, roles are asked for again: {error}");
            Saved::default()
        }
    };
    if !with_secrets {
        saved.roles.values_mut().for_each(|known| known.secret = None);
    }
    saved
}
