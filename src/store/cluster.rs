//! What the relay knows of the cluster it relays: its identity, and what its server said of itself.
//!
//! Learned at the first contact with an upstream, kept in `cluster.toml`, so that consumers are served as
//! before while no upstream can be reached.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};
use walrelay_proto::{SegSize, SystemId};

use super::dir::DataDir;

const FILE: &str = "cluster.toml";

/// Which cluster this is. Never changes in a data directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// `system_identifier`.
    pub system_id: SystemId,
    /// `wal_segment_size`.
    pub seg_size: SegSize,
}

/// What the upstream server reports of itself; passed on to consumers as if they had asked it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct UpstreamParameters {
    /// ParameterStatus values in the order they came.
    pub status: Vec<(String, String)>,
    /// Answers to `SHOW`, by name.
    pub settings: BTreeMap<String, String>,
}

impl UpstreamParameters {
    /// The value of a reported parameter.
    pub fn status(&self, name: &str) -> Option<&str> {
        self.status.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    system_identifier: String,
    wal_segment_size: u64,
    parameters: UpstreamParameters,
}

pub(super) fn load(dir: &DataDir) -> io::Result<Option<(Identity, UpstreamParameters)>> {
    let Some(text) = dir.read(FILE)? else { return Ok(None) };
    let bad =
        |what: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, format!("{FILE}: {what}"));
    let saved: Saved =
        toml::from_str(&text).map_err(|error: toml::de::Error| bad(&error.message().replace('\n', " ")))?;
    let system_id = saved.system_identifier.parse().map_err(|error| bad(&error))?;
    let seg_size = SegSize::new(saved.wal_segment_size).map_err(|error| bad(&error))?;
    Ok(Some((Identity { system_id, seg_size }, saved.parameters)))
}

pub(super) fn save(dir: &DataDir, identity: Identity, parameters: &UpstreamParameters) -> io::Result<()> {
    let saved = Saved {
        system_identifier: identity.system_id.to_string(),
        wal_segment_size: identity.seg_size.bytes(),
        parameters: parameters.clone(),
    };
    dir.replace(FILE, &toml::to_string(&saved).map_err(io::Error::other)?)
}
