//! Replication commands on a connection with `replication=database`, which goes to the upstream: what is about physical
//! replication there is not what it means here.

use walrelay_proto::{Command, Parsed, SlotKind, Statement};

use super::answers;
use super::exchange::Moment;
use super::forward::{About, Fate, Question};
use crate::overlay::{SqlContext, raise};
use crate::store::SlotError;
use crate::wire::{PgError, sqlstate};

/// What becomes of a query that is a command about physical slots or physical replication; `None` if it is none. Such
/// a connection also takes SQL, so that refusing is a statement that fails. `has_slot`: whether the relay has one of that
/// name, which no logical one may have then.
pub(super) fn fate(text: &[u8], moment: Moment, has_slot: impl Fn(&str) -> bool) -> Option<Fate> {
    let Ok(Statement::Command(command)) = Parsed::parse(text).statement else { return None };
    match command {
        Command::CreateReplicationSlot(slot) if matches!(slot.kind, SlotKind::Physical { .. }) => {
            Some(refused("CREATE_REPLICATION_SLOT ... PHYSICAL"))
        }
        Command::CreateReplicationSlot(slot) if has_slot(&slot.name) => {
            Some(raising(&answers::slot_error(SlotError::Exists { name: slot.name })))
        }
        Command::StartReplication(_) => Some(refused("START_REPLICATION ... PHYSICAL")),
        Command::ReadReplicationSlot { .. } => Some(refused("READ_REPLICATION_SLOT")),
        Command::BranchWal { .. } => Some(refused("BRANCH_WAL")),
        Command::Fence(_) | Command::Unfence { .. } | Command::FenceStatus => {
            Some(refused("FENCE, UNFENCE and FENCE_STATUS"))
        }
        Command::DropReplicationSlot { slot, .. } | Command::AlterReplicationSlot { slot, .. } => {
            if !moment.is_quiet {
                return Some(refused("a command about a slot behind others that have not been answered"));
            }
            let about = About::Slot(slot.clone());
            Some(Fate { question: Some(Question { text: question(&slot), about }), ..Fate::default() })
        }
        _ => None,
    }
}

/// Whether the upstream has a logical slot of that name. The name has only what a slot's name may have, or it is none.
fn question(slot: &str) -> Vec<u8> {
    let known = slot.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    let name = if known { slot } else { "" };
    format!(
        "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_get_replication_slots() AS s WHERE s.slot_name \
         OPERATOR(pg_catalog.=) '{name}'::pg_catalog.name AND s.slot_type OPERATOR(pg_catalog.<>) 'physical')"
    )
    .into_bytes()
}

/// What the command on the slot is replaced by; `None` lets it pass.
pub(super) fn judged(slot: &str, row: &[Option<Vec<u8>>]) -> Option<Vec<u8>> {
    if row.first().is_some_and(|value| value.as_deref() == Some(b"t")) {
        return None;
    }
    let text = format!("replication slot \"{slot}\" does not exist");
    let error = PgError::error(sqlstate::UNDEFINED_OBJECT, text).with_hint(HINT);
    Some(raise(&error, &SqlContext::default()).into_bytes())
}

const HINT: &str = "On a connection with replication=database there are the logical slots of the upstream server; physical \
                    slots and physical replication need a connection with replication=true.";

fn refused(what: &str) -> Fate {
    let text = format!("walrelay does not execute {what} on a connection with replication=database");
    raising(&PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text).with_hint(HINT))
}

fn raising(error: &PgError) -> Fate {
    Fate { text: Some(raise(error, &SqlContext::default()).into_bytes()), ..Fate::default() }
}
