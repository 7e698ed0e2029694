//! Looking after what lies in a target: checking and mending it, listing it, removing what is too old.

pub mod cleanup;
mod commits;
pub mod list;
pub mod probe;
pub mod verify;
