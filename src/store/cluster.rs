//! What the relay knows of the cluster it relays: its identity, and what its server said of itself.
//!
//! Learned at the first contact with an upstream, kept in `cluster.toml`, so that consumers are served as
//! before while no upstream can be reached.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};
use walrelay_proto::{SegSize, SystemId, wal_magic_of};

use super::dir::DataDir;

pub(super) const FILE: &str = "cluster.toml";

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
    /// Magic number of its WAL pages, as it was found; `None` before WAL was seen, or from an earlier walrelay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_magic: Option<u16>,
    /// ParameterStatus values in the order they came.
    pub status: Vec<(String, String)>,
    /// Answers to `SHOW`, by name.
    pub settings: BTreeMap<String, String>,
}

impl UpstreamParameters {
    /// Its major version; 0 if it does not say.
    pub fn major_version(&self) -> u32 {
        let version = self.status("server_version").unwrap_or_default();
        let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
        version.get(..digits).and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }

    /// The number that all its WAL pages must have; `None` if that is not known.
    pub fn expected_magic(&self) -> Option<u16> {
        self.wal_magic.or_else(|| wal_magic_of(self.major_version()))
    }

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
    dir.read(FILE)?.as_deref().map(parse).transpose()
}

/// Understands the file's content.
pub(super) fn parse(text: &str) -> io::Result<(Identity, UpstreamParameters)> {
    let bad =
        |what: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, format!("{FILE}: {what}"));
    let saved: Saved =
        toml::from_str(text).map_err(|error: toml::de::Error| bad(&error.message().replace('\n', " ")))?;
    let system_id = saved.system_identifier.parse().map_err(|error| bad(&error))?;
    let seg_size = SegSize::new(saved.wal_segment_size).map_err(|error| bad(&error))?;
    Ok((Identity { system_id, seg_size }, saved.parameters))
}

pub(super) fn save(dir: &DataDir, identity: Identity, parameters: &UpstreamParameters) -> io::Result<()> {
    let saved = Saved {
        system_identifier: identity.system_id.to_string(),
        wal_segment_size: identity.seg_size.bytes(),
        parameters: parameters.clone(),
    };
    dir.replace(FILE, &toml::to_string(&saved).map_err(io::Error::other)?)
}
