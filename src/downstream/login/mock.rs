//! The secret behind the salts of those who do not exist (PG: `mock_authentication_nonce` of `pg_control`).

use crate::auth::scram::server::MockSecret;
use crate::store::Store;

const FILE: &str = "mock_authentication_nonce";

/// The one that is kept in the data directory, made once; a salt that changed with a restart would tell that the user
/// does not exist. Waits for the disk.
///
/// # Errors
/// The operating system gave no random bytes.
pub(in crate::downstream) fn secret(store: &Store) -> Result<MockSecret, getrandom::Error> {
    let kept = store.read_state(FILE).unwrap_or_else(|error| {
        tracing::warn!("could not read {FILE}: {error}; it is made anew");
        None
    });
    if let Some(secret) = kept.and_then(|text| MockSecret::from_text(text.trim())) {
        return Ok(secret);
    }
    let secret = MockSecret::random()?;
    if let Err(error) = store.replace_state(FILE, &format!("{}\n", secret.to_text())) {
        tracing::warn!(
            "could not save {FILE}: {error}; after a restart a stranger can tell that a user does not exist"
        );
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::store::{StoreConfig, WalWrite};

    fn secret_in(data_dir: &Path) -> String {
        let config = StoreConfig {
            data_dir: data_dir.to_owned(),
            wal_write: WalWrite::Pwrite,
            wal_keep_size: 0,
            max_slot_wal_keep_size: None,
            max_replication_slots: 1,
        };
        let (store, writer, background) = Store::open(config).unwrap();
        let text = secret(&store).unwrap().to_text();
        drop(writer);
        assert_eq!(background.stop(), None);
        text
    }

    #[test]
    fn it_is_made_once_for_each_relay_and_nobody_else_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let first = secret_in(&one);
        assert_eq!(secret_in(&one), first);
        assert_ne!(secret_in(&two), first);
        let mode = std::fs::metadata(one.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_one_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        secret_in(&data);
        std::fs::write(data.join(FILE), "nonsense").unwrap();
        let anew = secret_in(&data);
        assert_eq!(secret_in(&data), anew);
    }
}
