//! Settings of sessions that may change while clients are connected (SIGHUP): they hold for those who connect from then on.

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use super::Limits;

/// What the log tells of connections that come and go in order, and of what they ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Logged {
    /// Who has logged in (`log_connections`).
    pub connections: bool,
    /// Who has left (`log_disconnections`).
    pub disconnections: bool,
    /// Each replication command (`log_replication_commands`); else at level debug.
    pub replication_commands: bool,
}

impl Default for Logged {
    fn default() -> Logged {
        Logged { connections: true, disconnections: true, replication_commands: false }
    }
}

/// What holds for new connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionRules {
    /// Sessions at a time.
    pub limits: Limits,
    /// Failed logins from one address at once, and again each 10 seconds; 0 for no limit (`--max-failed-logins`).
    pub max_failed_logins: u32,
    /// How long a client may take to log in (`authentication_timeout`).
    pub authentication_timeout: Duration,
    /// How long a streaming consumer may be silent; `None` for ever (`wal_sender_timeout`).
    pub wal_sender_timeout: Option<Duration>,
    /// How long a stop waits for consumers to confirm the last WAL (`--shutdown-timeout`). For the stop itself it is looked at then.
    pub shutdown_timeout: Duration,
    /// Whether SQL clients see the relay's slots and consumers (`--sql-overlay`).
    pub sql_overlay: bool,
    /// What the log tells; for everybody at once.
    pub logged: Logged,
}

/// [`SessionRules`] that can be replaced.
#[derive(Debug)]
pub struct SharedRules(RwLock<SessionRules>);

impl SharedRules {
    /// Rules to begin with.
    pub fn new(rules: SessionRules) -> SharedRules {
        SharedRules(RwLock::new(rules))
    }

    /// Those that hold now.
    pub fn current(&self) -> SessionRules {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces them.
    pub fn replace(&self, rules: SessionRules) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }
}
