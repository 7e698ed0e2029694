//! Deterministic simulation of whole topologies: servers, relays above relays, consumers, in one thread, each schedule
//! from a seed that replays exactly.
//!
//! What is real: the store, on a [simulated disk](walrelay::disk::sim), and the state machines of the receiving side, of
//! the sending side, and of whom to follow. What is modelled: lines, servers, consumers, and the loops around the machines,
//! which do what the relay's own do. There is no clock but the world's, no chance but the seed's, no thread, no file.
//!
//! Checked while it runs, after each crash, and in the end:
//! - What was reported upstream as flushed is found by every start, on the timeline that was followed, or on the one that
//!   was gone over to up to where both are the same. So no commit that a primary has acknowledged is lost.
//! - Where a relay has a rule that names consumers, one of them has what is reported.
//! - What a relay holds, and each byte that a consumer gets, is what was written on that branch.
//! - The reported position never falls. A slot never passes what its consumer has, on the branch that is held, nor what it
//!   was sent; what a slot keeps is there, and a new one begins there; slots whose making or dropping was answered are there, or are not.
//! - What a relay tells upstream that standbys need is what its consumers have told it, those with a slot included.
//! - Who is silent is given up in time, and so is a consumer whose slot is lost.
//! - When all faults have ended, everybody comes to the end, and what standbys need is known up to the server.

mod consumer;
mod context;
mod follow;
mod frames;
mod model;
mod net;
mod random;
mod relay;
mod serve;
mod server;
mod world;

pub use context::Counts;
pub use world::{Outcome, simulate};
