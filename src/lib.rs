//! walrelay: a cascading WAL relay for PostgreSQL.
//!
//! One process between a primary and everything that wants its WAL. Start reading at
//! `docs/ARCHITECTURE.md`.
#![deny(unsafe_code)]

pub mod archive;
pub mod auth;
pub mod branch;
pub mod changeable;
mod children;
pub mod config;
pub mod conninfo;
pub mod console;
pub mod consumers;
pub mod counts;
pub mod descriptors;
pub mod disk;
pub mod doctor;
pub mod downstream;
pub mod error;
pub mod events;
pub mod fencing;
pub mod gateway;
pub mod http;
pub mod init;
mod lane;
#[cfg(test)]
mod layers;
pub mod log;
pub mod metrics;
pub mod moment;
pub mod mutation;
pub mod notify;
pub mod objects;
pub mod out;
pub mod overlay;
pub mod papers;
pub mod parts;
pub mod permissions;
pub mod pg;
mod pieces;
pub mod progress;
pub mod promotable;
pub mod pulse;
pub mod rate;
pub mod redact;
pub mod relay;
pub mod restart;
pub mod show;
pub mod sockets;
pub mod status;
pub mod store;
pub mod tools;
pub mod upstream;
pub mod verify;
pub mod wire;
