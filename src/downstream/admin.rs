//! What administrators do through the relay's own database ([`console::Order`](crate::console::Order)), and who they are.

use std::time::Instant;

use rustix::process::{Signal as ProcessSignal, getpid, kill_process};

use super::Shared;
use super::local::LocalSession;
use super::own::OwnRelay;
use crate::console::{Dismissal, Order};
use crate::overlay::{Relay as _, Signal};
use crate::wire::{Connection, PgError, sqlstate};

/// Whether a role may fence the relay, stop it, and so on: one of `--admin-role`, or a member of one, or a superuser, as far as
/// that was found out upstream. Nobody is asked now: the upstream may be away, or what is to be fenced off.
pub(super) fn is_admin(shared: &Shared, role: &str) -> bool {
    let known = shared.gateway.roles().current(role);
    let access = shared.access.current();
    let groups = known.memberships().unwrap_or_default();
    let is_named = access.admin_roles.iter().any(|admin| admin == role || groups.contains(admin));
    is_named || known.attributes.is_some_and(|attributes| attributes.superuser)
}

/// Whether a role is one of `--monitor-role`, or a member of one, as far as that was found out upstream.
pub(super) fn is_monitor(shared: &Shared, role: &str) -> bool {
    let access = shared.access.current();
    // The usual case: none is named.
    if access.monitor_roles.is_empty() {
        return false;
    }
    let known = shared.gateway.roles().current(role);
    let groups = known.memberships().unwrap_or_default();
    access.monitor_roles.iter().any(|named| named == role || groups.contains(named))
}

/// For everybody else.
pub(super) fn denied(what: &str) -> PgError {
    let detail = "Only superusers and roles named by --admin-role may do that.";
    let text = format!("permission denied to {what}");
    PgError::error(sqlstate::INSUFFICIENT_PRIVILEGE, text).with_detail(detail)
}

impl LocalSession<'_> {
    /// Does what was ordered, if the role may; a notice tells what is not over yet.
    ///
    /// # Errors
    /// It may not, or what is named is not there.
    pub(super) async fn perform(&self, conn: &mut Connection, order: &Order) -> Result<(), PgError> {
        let (tag, role) = (order.tag(), self.user);
        // Whoever runs as the relay's system user could send it signals as well.
        if !self.is_owner && !is_admin(self.shared, role) {
            if let Some(count) = self.shared.repeats.note(None, &format!("{role} {tag}"), Instant::now()) {
                tracing::warn!(count, "role \"{role}\" may not run {tag}");
            }
            return Err(denied(&format!("run {tag}")));
        }
        let said = self.done(order).await?;
        tracing::warn!(
            "role \"{role}\" has run {tag}{}",
            object(order).map(|name| format!(" {name}")).unwrap_or_default()
        );
        if let Some(text) = said {
            conn.put_error(&PgError::notice(sqlstate::SUCCESSFUL_COMPLETION, text));
        }
        Ok(())
    }

    async fn done(&self, order: &Order) -> Result<Option<String>, PgError> {
        match order {
            Order::Reload => {
                signal_self(ProcessSignal::HUP)?;
                Ok(Some("what comes of it is told by the log, SHOW EVENTS and SHOW CONFIG".to_owned()))
            }
            Order::Shutdown { now } => {
                signal_self(if *now { ProcessSignal::QUIT } else { ProcessSignal::TERM })?;
                Ok(None)
            }
            Order::Restart => {
                // So that whoever asks is told; it is looked at again when the signal has come.
                let version = self.shared.config.successor.check().await.map_err(|error| {
                    PgError::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, error.to_string())
                        .with_detail("The relay has not been restarted.")
                })?;
                signal_self(ProcessSignal::USR2)?;
                Ok(Some(format!("walrelay {version} takes over, and this connection ends")))
            }
            Order::Disconnect(pid) => self.disconnect(*pid).map(|()| None),
            Order::DropSlot(name) => self.drop_slot(name.clone()).await.map(|()| None),
            Order::Pause(target) => {
                self.set_paused(target, true)?;
                let text = "WAL is kept for it until RESUME, or the relay's next start, and what it takes after that";
                Ok(Some(text.to_owned()))
            }
            Order::Resume(target) => self.set_paused(target, false).map(|()| None),
            Order::Dismiss(what) => {
                let count = self.dismiss(*what).await?;
                Ok(Some(format!("{count} {} were open", what.as_str())))
            }
        }
    }

    fn disconnect(&self, pid: u32) -> Result<(), PgError> {
        let registry = &self.shared.registry;
        let user = registry.walsender_user(pid);
        if user.is_some_and(|user| registry.signal_walsender(pid, &user, Signal::Terminate)) {
            return Ok(());
        }
        let text = format!("no consumer has PID {pid}");
        Err(PgError::error(sqlstate::UNDEFINED_OBJECT, text).with_hint("SHOW CONSUMERS lists them."))
    }

    /// On a thread that may wait for the disk; it is dropped also when the session ends first.
    async fn drop_slot(&self, name: String) -> Result<(), PgError> {
        let place = self.shared.store.slots().may_change().await;
        let mut relay = OwnRelay { shared: self.shared.clone(), pid: self.pid };
        let dropped = tokio::task::spawn_blocking(move || {
            let _place = place;
            relay.drop_slot(&name)
        });
        dropped.await.unwrap_or_else(|error| {
            Err(PgError::error(
                sqlstate::INTERNAL_ERROR,
                format!("could not drop the replication slot: {error}"),
            ))
        })
    }

    /// How many were open.
    async fn dismiss(&self, what: Dismissal) -> Result<u64, PgError> {
        let archive = self.shared.config.status.as_ref().map(|sources| sources.archive());
        let store = self.shared.store.clone();
        match (what, archive) {
            (Dismissal::Conflicts, archive) => Ok(archive.map_or(0, |archive| archive.dismiss_conflicts())),
            (Dismissal::Gaps, archive) => Ok(archive.map_or(0, |archive| archive.dismiss_gaps())),
            (Dismissal::Failovers, _) => {
                // It waits for the disk.
                let dismissed = tokio::task::spawn_blocking(move || store.dismiss_failovers()).await;
                let dismissed = dismissed.map_err(std::io::Error::from).flatten();
                dismissed.map(|count| count as u64).map_err(|error| {
                    let text = format!("could not save that they were looked at: {error}");
                    PgError::error(sqlstate::INTERNAL_ERROR, text)
                })
            }
        }
    }

    fn set_paused(&self, target: &str, paused: bool) -> Result<(), PgError> {
        let archive = self.shared.config.status.as_ref().map(|sources| sources.archive());
        if archive.is_some_and(|archive| archive.set_paused(target, paused)) {
            return Ok(());
        }
        let text = format!("archive target \"{target}\" does not exist");
        Err(PgError::error(sqlstate::UNDEFINED_OBJECT, text).with_hint("SHOW ARCHIVE lists them."))
    }
}

/// As if somebody had sent it with kill(1): what follows is the same.
fn signal_self(signal: ProcessSignal) -> Result<(), PgError> {
    let sent = kill_process(getpid(), signal);
    sent.map_err(|error| {
        PgError::error(sqlstate::INTERNAL_ERROR, format!("could not signal the relay: {error}"))
    })
}

fn object(order: &Order) -> Option<String> {
    match order {
        Order::Reload | Order::Restart | Order::Shutdown { now: false } => None,
        Order::Shutdown { now: true } => Some("NOW".to_owned()),
        Order::Dismiss(what) => Some(what.as_str().to_ascii_uppercase()),
        Order::Disconnect(pid) => Some(pid.to_string()),
        Order::DropSlot(name) | Order::Pause(name) | Order::Resume(name) => Some(format!("\"{name}\"")),
    }
}
