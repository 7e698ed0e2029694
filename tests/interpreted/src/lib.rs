//! Segments, their maps and the disk below them, as they lie in walrelay (these are links to its files): what Miri interprets
//! (`make miri`) is compiled in seconds so, and not with everything that walrelay is built of.

// Everywhere else walrelay itself has them. Here nobody calls what only walrelay does.
#![cfg(all(test, miri))]
#![allow(dead_code)]

pub mod disk;

/// Of the store, what maps segments.
pub mod store {
    pub mod mapped;
}

/// For the tests of the linked files.
mod permissions {
    pub(crate) fn private_tempdir() -> tempfile::TempDir {
        tempfile::tempdir().expect("there is a temporary directory")
    }
}
