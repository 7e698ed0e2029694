//! How far a target has got, in the data directory. Waits for the disk.

use std::io;

use walrelay_proto::SegSize;

use crate::archive::repo::progress::{Progress, state_file};
use crate::store::Store;

/// What was saved for the target of this name and identity; from the beginning if that cannot be used, which is safe: the
/// target knows what it has.
pub(super) fn read(store: &Store, target: &str, size: SegSize, identity: &str) -> Progress {
    let (file, nothing) = (state_file(target), || Progress::new(size, identity.to_owned()));
    let text = match store.read_state(&file) {
        Ok(Some(text)) => text,
        Ok(None) => return nothing(),
        Err(error) => {
            tracing::error!("could not read \"{file}\": {error}; everything is offered again");
            return nothing();
        }
    };
    Progress::parse(&text, size, identity).unwrap_or_else(|| {
        tracing::error!("\"{file}\" in the data directory is not usable; everything is offered again");
        nothing()
    })
}

/// Saves it, durably.
pub(super) fn write(store: &Store, target: &str, progress: &Progress) -> io::Result<()> {
    store.replace_state(&state_file(target), &progress.format())
}
