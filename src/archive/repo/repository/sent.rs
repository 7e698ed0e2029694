//! What was sent and not answered, for those who cannot read it back: with recipients alone in the key file, nothing else
//! tells an own object from somebody else's, and the same file is another object each time it is encrypted.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::archive::repo::sidecar::Sidecar;

/// Objects of which something is kept, and attempts for each: few are on their way at a time.
const MOST: (usize, usize) = (64, 8);

/// Keeps a text over a restart, durably. Waits for the disk.
pub(crate) type Keep = Arc<dyn Fn(&str) -> io::Result<()> + Send + Sync>;

/// Descriptions of objects that may be there, by path. Copies share it.
#[derive(Clone, Default, Debug)]
pub(super) struct Sent(Arc<Shared>);

#[derive(Default)]
struct Shared {
    attempts: Mutex<BTreeMap<String, Vec<Sidecar>>>,
    /// Locked while it is saved, by threads that may wait.
    keep: Mutex<Option<Keep>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("attempts", &self.attempts).finish_non_exhaustive()
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Saved {
    #[serde(default)]
    sent: Vec<SavedObject>,
}

#[derive(Serialize, Deserialize)]
struct SavedObject {
    path: String,
    /// Texts of checksum objects.
    attempts: Vec<String>,
}

impl Sent {
    /// Goes on with what was kept, and keeps what comes. What cannot be used says nothing. Waits for a disk that is being
    /// written to.
    pub(super) fn keep(&self, kept: &str, keep: Keep) {
        let saved: Saved = toml::from_str(kept).unwrap_or_default();
        // In the order of `note`.
        let mut keeping = lock(&self.0.keep);
        let mut attempts = lock(&self.0.attempts);
        for object in saved.sent {
            let known = object.attempts.iter().filter_map(|text| Sidecar::parse(text.as_bytes()));
            attempts.entry(object.path).or_insert_with(|| known.take(MOST.1).collect());
        }
        *keeping = Some(keep);
    }

    /// An object is on its way. The first attempts count: later ones find it there. Waits for the disk.
    ///
    /// # Errors
    /// It could not be kept for the time after a restart.
    pub(super) fn note(&self, path: &str, sidecar: &Sidecar) -> io::Result<()> {
        let keep = lock(&self.0.keep);
        let mut sent = lock(&self.0.attempts);
        if sent.len() >= MOST.0 && !sent.contains_key(path) {
            sent.pop_first();
        }
        let attempts = sent.entry(path.to_owned()).or_default();
        if attempts.len() >= MOST.1 {
            return Ok(());
        }
        attempts.push(sidecar.clone());
        let text = keep.is_some().then(|| format(&sent));
        drop(sent);
        keep.as_ref().zip(text).map_or(Ok(()), |(keep, text)| keep(&text))
    }

    /// It is known what is there now.
    pub(super) fn forget(&self, path: &str) {
        lock(&self.0.attempts).remove(path);
    }

    /// What may be there.
    pub(super) fn attempts(&self, path: &str) -> Vec<Sidecar> {
        lock(&self.0.attempts).get(path).cloned().unwrap_or_default()
    }
}

fn format(sent: &BTreeMap<String, Vec<Sidecar>>) -> String {
    let object = |(path, attempts): (&String, &Vec<Sidecar>)| SavedObject {
        path: path.clone(),
        attempts: attempts.iter().map(Sidecar::format).collect(),
    };
    let saved = Saved { sent: sent.iter().map(object).collect() };
    toml::to_string(&saved).expect("strings and lists can be written")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_kept_and_the_first_attempts_of_each() {
        let sidecar = |text: &'static str| {
            let sum = crate::archive::repo::sidecar::Sha256::of(text.as_bytes());
            Sidecar::describe("a", text.as_bytes(), text.as_bytes(), sum)
        };
        let sent = Sent::default();
        let (first, other) = (sidecar("first"), sidecar("other"));
        for attempt in std::iter::once(&first).chain(std::iter::repeat_n(&other, 20)) {
            sent.note("a", attempt).unwrap();
        }
        assert_eq!((sent.attempts("a").len(), &sent.attempts("a")[0]), (MOST.1, &first));
        for number in 0..MOST.0 {
            sent.note(&format!("b{number}"), &other).unwrap();
        }
        assert_eq!((sent.attempts("a").len(), sent.attempts("b0").len()), (0, 1));
        sent.forget("b0");
        assert!(sent.attempts("b0").is_empty());
    }
}
