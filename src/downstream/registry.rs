//! Who is connected: PIDs, and the keys with which a command can be cancelled from another connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use subtle::ConstantTimeEq;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::SharedRules;
use super::activity::{Activity, Client};
use crate::overlay::{self, Signal};

/// The first PID, which no process has. So whoever gives a consumer's PID to `pg_terminate_backend` on the upstream ends
/// nobody's session there, and who looks for it in `pg_stat_activity` finds nobody else.
const FIRST_PID: u32 = overlay::LAST_PROCESS + 1;

/// Requests to cancel the running command, which have no effect on a session that is idle, and to end the session.
#[derive(Clone, Debug)]
pub struct Cancel {
    requested: Arc<watch::Sender<bool>>,
    ended: CancellationToken,
}

impl Cancel {
    fn new() -> Cancel {
        Cancel { requested: Arc::new(watch::Sender::new(false)), ended: CancellationToken::new() }
    }

    /// Forgets earlier requests: a new command begins.
    pub(super) fn arm(&self) {
        self.requested.send_replace(false);
    }

    fn request(&self) {
        self.requested.send_replace(true);
    }

    /// Resolves when the session shall end (PostgreSQL: `pg_terminate_backend`). Cancel-safe.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Whether the session shall end.
    pub(super) fn is_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Whether the running command shall be cancelled.
    pub(super) fn is_requested(&self) -> bool {
        *self.requested.borrow()
    }

    /// Resolves when the running command shall be cancelled. Cancel-safe.
    pub async fn requested(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.requested.subscribe().wait_for(|requested| *requested).await;
    }
}

/// How many may be logged in at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// SQL sessions (`max_connections`).
    pub connections: usize,
    /// Sessions of one role; 0 for no limit.
    pub user_connections: usize,
    /// Replication connections (`max_wal_senders`), which have their places beside the SQL sessions.
    pub wal_senders: usize,
}

impl Limits {
    /// SQL places that are kept for superusers, and as many again for the relay's own database: those who come to see
    /// why everything is full.
    // PG: superuser_reserved_connections
    pub fn reserved(&self) -> usize {
        (self.connections / 10).min(3)
    }
}

/// What a session is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SessionKind {
    /// Physical replication.
    Walsender,
    /// Logical replication, which takes a walsender's place; the process that sends is the upstream's.
    Logical,
    /// SQL.
    Sql,
    /// SQL in the relay's own database.
    Console,
    /// SQL of a superuser.
    Superuser,
}

impl SessionKind {
    /// Whether `max_wal_senders` counts it.
    fn is_walsender(self) -> bool {
        matches!(self, SessionKind::Walsender | SessionKind::Logical)
    }

    /// SQL places that must stay free for others.
    fn leaves(self, limits: &Limits) -> usize {
        match self {
            SessionKind::Walsender | SessionKind::Logical | SessionKind::Superuser => 0,
            SessionKind::Console => limits.reserved(),
            SessionKind::Sql => 2 * limits.reserved(),
        }
    }
}

/// There is no place left. The texts are PostgreSQL's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Full {
    #[error("sorry, too many clients already")]
    Connections,
    #[error("remaining connection slots are reserved for roles with the SUPERUSER attribute")]
    Reserved,
    #[error("too many connections for role \"{user}\"")]
    User { user: String },
    #[error("number of requested standby connections exceeds \"max_wal_senders\" (currently {limit})")]
    WalSenders { limit: usize },
}

/// All sessions.
#[derive(Debug)]
pub struct Registry {
    rules: Arc<SharedRules>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    live: BTreeMap<u32, Entry>,
    last_pid: u32,
}

#[derive(Debug)]
struct Entry {
    kind: SessionKind,
    user: String,
    key: [u8; 4],
    cancel: Cancel,
    client: Option<Arc<Client>>,
    activity: Activity,
}

/// Somebody who is connected.
pub(super) struct Seen {
    pub(super) pid: u32,
    pub(super) kind: SessionKind,
    pub(super) user: String,
    /// `None` for a moment, while it logs in.
    pub(super) client: Option<Arc<Client>>,
    pub(super) activity: Activity,
}

/// A connection's place; given up when this is dropped.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) pid: u32,
    pub(super) key: [u8; 4],
    pub(super) cancel: Cancel,
    /// What it does, to be told by who serves it.
    pub(super) activity: Activity,
    registry: Arc<Registry>,
}

impl Registration {
    /// Who it is, for whoever looks.
    pub(super) fn tell(&self, client: Client) {
        if let Some(entry) = self.registry.lock().live.get_mut(&self.pid) {
            entry.client = Some(Arc::new(client));
        }
    }
}

impl Registry {
    pub(super) fn new(rules: Arc<SharedRules>) -> Registry {
        // PIDs do not start over when the relay does: clients make names of temporary slots out of them. And relays in a
        // cascade have others each: an old number is then hardly ever another consumer's.
        let random = getrandom::u32().unwrap_or_else(|_| std::process::id());
        let last_pid = FIRST_PID + random % (i32::MAX.cast_unsigned() - FIRST_PID);
        let state = State { live: BTreeMap::new(), last_pid };
        Registry { rules, state: Mutex::new(state) }
    }

    /// A place for a new session, with a PID that no other has.
    pub(super) fn register(
        self: &Arc<Self>,
        kind: SessionKind,
        user: &str,
        key: [u8; 4],
    ) -> Result<Registration, Full> {
        let mut state = self.lock();
        state.check(&self.rules.current().limits, kind, user)?;
        let pid = state.next_pid();
        let cancel = Cancel::new();
        let activity = Activity::default();
        let (client, user) = (None, user.to_owned());
        let entry = Entry { kind, user, key, cancel: cancel.clone(), client, activity: activity.clone() };
        state.live.insert(pid, entry);
        Ok(Registration { pid, key, cancel, activity, registry: self.clone() })
    }

    /// Cancels what the connection with this PID does, if the key is right. Says nothing either way.
    pub(super) fn cancel(&self, pid: u32, key: &[u8]) {
        if let Some(entry) = self.lock().live.get(&pid)
            && bool::from(entry.key.ct_eq(key))
        {
            entry.cancel.request();
        }
    }

    /// The role of the physical replication connection with this PID.
    pub(super) fn walsender_user(&self, pid: u32) -> Option<String> {
        let state = self.lock();
        let entry = state.live.get(&pid).filter(|entry| entry.kind == SessionKind::Walsender);
        entry.map(|entry| entry.user.clone())
    }

    /// Ends the physical replication connection with this PID if the role is still whose it is, or cancels what it does; whether
    /// there is one.
    pub(super) fn signal_walsender(&self, pid: u32, user: &str, signal: Signal) -> bool {
        let state = self.lock();
        let entry = state.live.get(&pid);
        let Some(entry) = entry.filter(|entry| entry.kind == SessionKind::Walsender && entry.user == user)
        else {
            return false;
        };
        match signal {
            Signal::Cancel => entry.cancel.request(),
            Signal::Terminate => entry.cancel.ended.cancel(),
        }
        true
    }

    /// Everybody who is connected, by PID.
    pub(super) fn seen(&self) -> Vec<Seen> {
        let seen = |(pid, entry): (&u32, &Entry)| Seen {
            pid: *pid,
            kind: entry.kind,
            user: entry.user.clone(),
            client: entry.client.clone(),
            activity: entry.activity.clone(),
        };
        self.lock().live.iter().map(seen).collect()
    }

    /// PID and role of everybody.
    pub(super) fn sessions(&self) -> Vec<(u32, String)> {
        self.lock().live.iter().map(|(pid, entry)| (*pid, entry.user.clone())).collect()
    }

    /// Connections at the moment.
    pub fn len(&self) -> usize {
        self.lock().live.len()
    }

    /// Whether nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self, limits: &Limits, kind: SessionKind, user: &str) -> Result<(), Full> {
        let count =
            |wanted: &dyn Fn(&Entry) -> bool| self.live.values().filter(|entry| wanted(entry)).count();
        let wal_senders = count(&|entry| entry.kind.is_walsender());
        let free = limits.connections.saturating_sub(self.live.len() - wal_senders);
        match kind {
            kind if kind.is_walsender() && wal_senders >= limits.wal_senders => {
                return Err(Full::WalSenders { limit: limits.wal_senders });
            }
            kind if kind.is_walsender() => {}
            _ if free == 0 => return Err(Full::Connections),
            _ if free <= kind.leaves(limits) => return Err(Full::Reserved),
            _ => {}
        }
        if limits.user_connections > 0 && count(&|entry| entry.user == user) >= limits.user_connections {
            return Err(Full::User { user: user.to_owned() });
        }
        Ok(())
    }

    fn next_pid(&mut self) -> u32 {
        loop {
            // Positive as an int4, which is how clients read it.
            let last = self.last_pid >= i32::MAX.cast_unsigned();
            self.last_pid = if last { FIRST_PID } else { self.last_pid + 1 };
            if !self.live.contains_key(&self.last_pid) {
                return self.last_pid;
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.lock().live.remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::downstream::SessionRules;

    fn registry(connections: usize, user_connections: usize, wal_senders: usize) -> Arc<Registry> {
        Arc::new(Registry::new(rules(Limits { connections, user_connections, wal_senders })))
    }

    fn rules(limits: Limits) -> Arc<SharedRules> {
        Arc::new(SharedRules::new(SessionRules {
            limits,
            max_failed_logins: 0,
            authentication_timeout: Duration::from_secs(1),
            wal_sender_timeout: None,
            shutdown_timeout: Duration::ZERO,
            sql_overlay: true,
            logged: crate::downstream::Logged::default(),
        }))
    }

    #[test]
    fn another_limit_holds_for_those_who_come_then() {
        let rules = rules(Limits { connections: 1, user_connections: 0, wal_senders: 1 });
        let registry = Arc::new(Registry::new(rules.clone()));
        let limit = |wal_senders| {
            let now = rules.current();
            rules.replace(SessionRules { limits: Limits { wal_senders, ..now.limits }, ..now });
        };
        let first = walsender(&registry).unwrap();
        assert_eq!(walsender(&registry).unwrap_err(), Full::WalSenders { limit: 1 });
        limit(2);
        let _second = walsender(&registry).unwrap();
        limit(1);
        assert_eq!(registry.len(), 2, "who is there stays");
        drop(first);
        assert_eq!(walsender(&registry).unwrap_err(), Full::WalSenders { limit: 1 });
    }

    fn walsender(registry: &Arc<Registry>) -> Result<Registration, Full> {
        registry.register(SessionKind::Walsender, "rep", [0; 4])
    }

    #[test]
    fn pids_are_unique_and_positive() {
        let registry = registry(10, 0, 3);
        registry.lock().last_pid = i32::MAX.cast_unsigned() - 1;
        let first = walsender(&registry).unwrap();
        let second = walsender(&registry).unwrap();
        assert_eq!((first.pid, second.pid), (i32::MAX.cast_unsigned(), FIRST_PID));
        registry.lock().last_pid = FIRST_PID - 1;
        assert_eq!(walsender(&registry).unwrap().pid, FIRST_PID + 1);
    }

    #[test]
    fn registries_begin_apart() {
        let begins: std::collections::BTreeSet<_> =
            (0..8).map(|_| walsender(&registry(1, 0, 1)).unwrap().pid).collect();
        assert!(begins.len() > 6, "{begins:?}");
        let (first, last) = (begins.first().unwrap(), begins.last().unwrap());
        // Eight of two thousand million within a million of each other: not once in 10^20 times.
        assert!(last - first > 1_000_000, "{begins:?}");
    }

    #[test]
    fn no_process_of_a_server_has_such_a_pid() {
        // PID_MAX_LIMIT of 64-bit Linux.
        assert!(walsender(&registry(1, 0, 1)).unwrap().pid > 4 * 1024 * 1024);
    }

    #[test]
    fn each_kind_of_place_has_its_limit() {
        let full = |registry: &Arc<Registry>, kind, user| registry.register(kind, user, [0; 4]).unwrap_err();
        let registry = registry(2, 2, 2);
        let first = walsender(&registry).unwrap();
        let _second = walsender(&registry).unwrap();
        assert_eq!(full(&registry, SessionKind::Walsender, "other"), Full::WalSenders { limit: 2 });
        assert_eq!(full(&registry, SessionKind::Sql, "rep"), Full::User { user: "rep".into() });
        let sql = ["a", "b"].map(|user| registry.register(SessionKind::Sql, user, [0; 4]).unwrap());
        assert_eq!(full(&registry, SessionKind::Sql, "c"), Full::Connections);
        assert_eq!(registry.len(), 4);
        drop(sql);
        drop(first);
        registry.register(SessionKind::Sql, "rep", [0; 4]).unwrap();
    }

    #[test]
    fn the_last_places_are_for_those_who_have_to_look() {
        let registry = registry(30, 0, 1);
        let register = |kind| registry.register(kind, "any", [0; 4]);
        let all = |kind| std::iter::from_fn(|| register(kind).ok()).collect::<Vec<_>>();
        let ordinary = all(SessionKind::Sql);
        assert_eq!((ordinary.len(), register(SessionKind::Sql).unwrap_err()), (24, Full::Reserved));
        let console = all(SessionKind::Console);
        assert_eq!((console.len(), register(SessionKind::Console).unwrap_err()), (3, Full::Reserved));
        let superusers = all(SessionKind::Superuser);
        assert_eq!((superusers.len(), register(SessionKind::Superuser).unwrap_err()), (3, Full::Connections));
        register(SessionKind::Walsender).expect("standbys have places of their own");
        drop(ordinary);
        assert_eq!(all(SessionKind::Sql).len(), 18, "what others have taken does not come back");
    }

    #[tokio::test]
    async fn a_walsender_is_signalled_as_its_role_only() {
        let registry = registry(2, 0, 2);
        let walsender = registry.register(SessionKind::Walsender, "rep", [0; 4]).unwrap();
        // It has a number of the upstream's in the view; this one is nobody's.
        let logical = registry.register(SessionKind::Logical, "rep", [0; 4]).unwrap();
        for kind in [SessionKind::Walsender, SessionKind::Logical] {
            let refused = registry.register(kind, "rep", [0; 4]).unwrap_err();
            assert_eq!(refused, Full::WalSenders { limit: 2 });
        }
        assert_eq!(registry.walsender_user(logical.pid), None);
        assert!(!registry.signal_walsender(logical.pid, "rep", Signal::Terminate));
        assert!(!logical.cancel.ended.is_cancelled());
        let sql = registry.register(SessionKind::Sql, "rep", [0; 4]).unwrap();
        assert_eq!(registry.walsender_user(walsender.pid).as_deref(), Some("rep"));
        assert_eq!(registry.walsender_user(sql.pid), None);
        // The number has been given to somebody else since.
        assert!(!registry.signal_walsender(walsender.pid, "other", Signal::Terminate));
        assert!(!registry.signal_walsender(sql.pid, "rep", Signal::Terminate));
        assert!(!walsender.cancel.ended.is_cancelled());
        assert!(registry.signal_walsender(walsender.pid, "rep", Signal::Cancel));
        walsender.cancel.requested().await;
        assert!(registry.signal_walsender(walsender.pid, "rep", Signal::Terminate));
        walsender.cancel.ended().await;
        // A new command does not make it go on.
        walsender.cancel.arm();
        walsender.cancel.ended().await;
    }

    #[test]
    fn a_cancel_needs_the_key() {
        let registry = registry(3, 0, 3);
        let one = registry.register(SessionKind::Walsender, "rep", [1, 2, 3, 4]).unwrap();
        let requested = || *one.cancel.requested.borrow();
        for (pid, key) in [
            (one.pid, &[1, 2, 3, 5][..]),
            (one.pid, &[1, 2, 3]),
            (one.pid, &[]),
            (one.pid + 1, &[1, 2, 3, 4]),
        ] {
            registry.cancel(pid, key);
            assert!(!requested());
        }
        registry.cancel(one.pid, &[1, 2, 3, 4]);
        assert!(requested());
        one.cancel.arm();
        assert!(!requested());
    }
}
