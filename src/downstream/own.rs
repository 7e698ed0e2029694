//! The relay's slots and consumers as a SQL session sees them.

use std::sync::Arc;

use walrelay_proto::{Lsn, SlotName};

use super::Shared;
use super::answers::{slot_error, slot_name_error};
use crate::overlay::{Relay, Row, Signal, sender_rows, slot_rows};
use crate::store::{SlotInfo, SlotPersistence};
use crate::wire::{PgError, sqlstate};

/// The relay on behalf of one session. Whether the session may is the upstream's to say, which has been asked. Making and dropping slots waits for the disk, the rest does not.
pub(super) struct OwnRelay {
    pub(super) shared: Arc<Shared>,
    /// The session's number among the relay's connections: owner of its temporary slots.
    pub(super) pid: u32,
}

impl OwnRelay {
    fn slot(&self, name: &str) -> Result<SlotInfo, PgError> {
        let missing = || slot_error(crate::store::SlotError::Missing { name: name.to_owned() });
        self.shared.store.slots().get(name).ok_or_else(missing)
    }

    fn name_and_persistence(
        &self,
        name: &str,
        temporary: bool,
    ) -> Result<(SlotName, SlotPersistence), PgError> {
        let persistence = match temporary {
            true => SlotPersistence::Temporary { owner: self.pid },
            false => SlotPersistence::Persistent,
        };
        Ok((SlotName::new(name).map_err(slot_name_error)?, persistence))
    }
}

impl Relay for OwnRelay {
    fn slots(&mut self) -> Vec<Row> {
        slot_rows(&self.shared.store)
    }

    fn senders(&mut self) -> Vec<Row> {
        sender_rows(&self.shared.store)
    }

    fn has_slot(&mut self, name: &str) -> bool {
        self.shared.store.slots().get(name).is_some()
    }

    fn consumer(&mut self, pid: u32) -> Option<String> {
        self.shared.registry.walsender_user(pid)
    }

    fn signal(&mut self, pid: u32, user: &str, signal: Signal) -> bool {
        let done = self.shared.registry.signal_walsender(pid, user, signal);
        if done {
            tracing::info!(pid, user, ?signal, "a SQL session has signalled a consumer");
        }
        done
    }

    fn create_slot(&mut self, name: &str, reserve: bool, temporary: bool) -> Result<Option<Lsn>, PgError> {
        let (slot, persistence) = self.name_and_persistence(name, temporary)?;
        let store = &self.shared.store;
        let created = match reserve {
            true => store.create_reserving_slot(&slot, persistence),
            false => store.slots().create(&slot, persistence, None),
        };
        created.map_err(slot_error)?;
        Ok(self.slot(name)?.restart_lsn)
    }

    fn drop_slot(&mut self, name: &str) -> Result<(), PgError> {
        self.shared.store.drop_slot(name, self.pid).map_err(slot_error)
    }

    fn copy_slot(&mut self, from: &str, to: &str, temporary: Option<bool>) -> Result<(), PgError> {
        let source = self.slot(from)?;
        // PG: copy_replication_slot
        if source.restart_lsn.is_none() {
            let text = "cannot copy a replication slot that doesn't reserve WAL";
            return Err(PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text));
        }
        if source.invalidated {
            let text = format!("cannot copy invalidated replication slot \"{from}\"");
            return Err(PgError::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, text));
        }
        let (to, persistence) = self.name_and_persistence(to, temporary.unwrap_or(source.temporary))?;
        self.shared.store.slots().copy(from, &to, persistence).map_err(slot_error)
    }

    fn advance_slot(&mut self, name: &str, upto: Lsn) -> Result<Lsn, PgError> {
        if upto == Lsn::INVALID {
            return Err(PgError::error(sqlstate::INVALID_PARAMETER_VALUE, "invalid target WAL LSN"));
        }
        let store = &self.shared.store;
        let slot = store.slots().acquire(name, self.pid).map_err(slot_error)?;
        let not_ready =
            || PgError::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, "no WAL has been received yet");
        let upto = upto.min(store.tip().ok_or_else(not_ready)?.flush_lsn);
        // PG: pg_replication_slot_advance
        let Some(minimum) = self.slot(name)?.restart_lsn else {
            let text = format!("replication slot \"{name}\" cannot be advanced");
            let detail = "This slot has never previously reserved WAL, or it has been invalidated.";
            return Err(PgError::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, text).with_detail(detail));
        };
        if upto < minimum {
            let text = format!("cannot advance replication slot to {upto}, minimum is {minimum}");
            return Err(PgError::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, text));
        }
        // The end may have gone back meanwhile.
        slot.confirm_flush(|| Some(upto.min(store.tip()?.flush_lsn)));
        Ok(upto)
    }
}
