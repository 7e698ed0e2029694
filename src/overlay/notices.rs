//! What a client is told when a text passes as it is although it has to do with what the relay shows.

use crate::wire::{PgError, sqlstate};

const OF_THE_RELAY: &str =
    "Ask in a session without statements on their way, or in the database \"walrelay\".";

/// The text cannot be read with certainty.
pub(super) fn uncertain() -> PgError {
    let text = "walrelay has passed this statement on as it is, because what it means depends on settings that may change before the server reads it";
    PgError::notice(sqlstate::SUCCESSFUL_COMPLETION, text)
        .with_detail("Rows of pg_replication_slots and pg_stat_replication are the upstream server's.")
        .with_hint(OF_THE_RELAY)
}

/// The rows in it are not the relay's.
pub(super) fn rows_of_the_upstream() -> PgError {
    let text = "rows of pg_replication_slots and pg_stat_replication in this statement are the upstream server's, not walrelay's";
    PgError::notice(sqlstate::SUCCESSFUL_COMPLETION, text).with_hint(
        "SELECT, INSERT ... SELECT, CREATE TABLE AS, COPY (SELECT ...) TO and DECLARE CURSOR show those of walrelay.",
    )
}

/// There is no place for what its executions would need.
pub(super) fn too_many_statements() -> PgError {
    let text = "rows of pg_replication_slots and pg_stat_replication in this statement are the upstream server's, not walrelay's, because the session has too many prepared statements that read them";
    PgError::notice(sqlstate::SUCCESSFUL_COMPLETION, text).with_hint("Close some of them first.")
}

/// The routine will do it upstream.
pub(super) fn acts_upstream() -> PgError {
    let text = "this routine will act on physical replication slots of the upstream server, not of walrelay";
    PgError::notice(sqlstate::SUCCESSFUL_COMPLETION, text)
        .with_hint("Slots of walrelay are made and dropped with CREATE_REPLICATION_SLOT and DROP_REPLICATION_SLOT on a replication connection.")
}

/// The statement signals processes, and reads numbers that are none of the server's.
pub(super) fn signals_nobody() -> PgError {
    let text = "walrelay's consumers are not signalled by this statement";
    PgError::notice(sqlstate::SUCCESSFUL_COMPLETION, text).with_hint(
        "Read the pid first, and send SELECT pg_terminate_backend(...) with the number, alone as a simple query.",
    )
}
