//! Slots that the relay has made on servers, and where they began: a slot that still is there says nothing of what was
//! reported. Kept in a small file, as the next process reads the slot, too.

use std::io;

use serde::{Deserialize, Serialize};
use walrelay_proto::Lsn;

use crate::store::Store;

const FILE: &str = "slots-made.toml";
/// So many servers are known.
const MOST: usize = 64;

/// Where a slot began; `None` while it is being made, and nobody knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Made {
    host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    begin: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
struct Saved {
    #[serde(default)]
    slot: Vec<Made>,
}

/// A slot that is being made on a server. Unless it is told what has come of that, nothing that it says counts.
pub(super) struct Making<'a> {
    store: &'a Store,
    host: &'a str,
    before: Vec<Made>,
}

impl<'a> Making<'a> {
    /// Leaves word that one is being made. Waits for the disk.
    pub(super) fn begin(store: &'a Store, host: &'a str) -> io::Result<Making<'a>> {
        let making = Making { store, host, before: read(store)? };
        making.save(None)?;
        Ok(making)
    }

    /// It was made, and begins here. Waits for the disk.
    pub(super) fn made(self, begin: Lsn) -> io::Result<()> {
        self.save(Some(begin))
    }

    /// There was one already. Waits for the disk.
    pub(super) fn was_there(self) -> io::Result<()> {
        write(self.store, self.before)
    }

    fn save(&self, begin: Option<Lsn>) -> io::Result<()> {
        let begin = begin.map(|lsn| lsn.to_string());
        let others = self.before.iter().filter(|made| made.host != self.host).cloned();
        write(self.store, others.chain([Made { host: self.host.to_owned(), begin }]).collect())
    }
}

/// Whether a slot on this server that is here may be so because of a report. Waits for the disk.
pub(super) fn is_a_report(store: &Store, host: &str, lsn: Lsn) -> bool {
    let made = read(store).unwrap_or_else(|error| {
        tracing::warn!(
            "could not read \"{FILE}\" in the data directory: {error}; the slot on {host} says nothing"
        );
        vec![Made { host: host.to_owned(), begin: None }]
    });
    made.iter().filter(|made| made.host == host).all(|made| match &made.begin {
        Some(begin) => begin.parse().is_ok_and(|begin: Lsn| begin != lsn),
        None => false,
    })
}

fn read(store: &Store) -> io::Result<Vec<Made>> {
    let text = store.read_state(FILE)?.unwrap_or_default();
    let saved: Saved =
        toml::from_str(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(saved.slot)
}

fn write(store: &Store, mut slot: Vec<Made>) -> io::Result<()> {
    slot.drain(..slot.len().saturating_sub(MOST));
    store.replace_state(FILE, &toml::to_string(&Saved { slot }).map_err(io::Error::other)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{StoreConfig, WalWrite};

    #[test]
    fn where_a_slot_was_made_nothing_was_reported() {
        let dir = crate::permissions::private_tempdir();
        let config = StoreConfig {
            data_dir: dir.path().to_owned(),
            wal_write: WalWrite::Pwrite,
            wal_keep_size: 0,
            max_slot_wal_keep_size: None,
            max_replication_slots: 1,
        };
        let store = Store::open_on(std::sync::Arc::new(crate::disk::OsDisk), config).unwrap().store;
        let lsn = Lsn::new;
        assert!(is_a_report(&store, "a", lsn(80)), "it was not made by us");
        let making = Making::begin(&store, "a").unwrap();
        assert!(!is_a_report(&store, "a", lsn(80)), "as after a crash in between");
        assert!(is_a_report(&store, "b", lsn(80)));
        making.made(lsn(80)).unwrap();
        assert!(!is_a_report(&store, "a", lsn(80)));
        assert!(is_a_report(&store, "a", lsn(90)), "it has moved");
        Making::begin(&store, "a").unwrap().was_there().unwrap();
        assert!(!is_a_report(&store, "a", lsn(80)));
        assert!(is_a_report(&store, "a", lsn(90)));
    }
}
