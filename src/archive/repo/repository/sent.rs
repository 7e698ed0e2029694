//! What was sent and not answered, for those who cannot read it back: with recipients alone in the key file, nothing else
//! tells an own object from somebody else's, and the same file is another object each time it is encrypted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::archive::repo::sidecar::Sidecar;

/// Objects of which something is kept, and attempts for each: few are on their way at a time.
const MOST: (usize, usize) = (64, 8);

/// Descriptions of objects that may be there, by path. Copies share it; a restart forgets it.
#[derive(Clone, Default, Debug)]
pub(super) struct Sent(Arc<Mutex<BTreeMap<String, Vec<Sidecar>>>>);

impl Sent {
    /// An object is on its way. The first attempts count: later ones find it there.
    pub(super) fn note(&self, path: &str, sidecar: &Sidecar) {
        let mut sent = self.lock();
        if sent.len() >= MOST.0 && !sent.contains_key(path) {
            sent.pop_first();
        }
        let attempts = sent.entry(path.to_owned()).or_default();
        if attempts.len() < MOST.1 {
            attempts.push(sidecar.clone());
        }
    }

    /// It is known what is there now.
    pub(super) fn forget(&self, path: &str) {
        self.lock().remove(path);
    }

    /// What may be there.
    pub(super) fn attempts(&self, path: &str) -> Vec<Sidecar> {
        self.lock().get(path).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Sidecar>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
            sent.note("a", attempt);
        }
        assert_eq!((sent.attempts("a").len(), &sent.attempts("a")[0]), (MOST.1, &first));
        for number in 0..MOST.0 {
            sent.note(&format!("b{number}"), &other);
        }
        assert_eq!((sent.attempts("a").len(), sent.attempts("b0").len()), (0, 1));
        sent.forget("b0");
        assert!(sent.attempts("b0").is_empty());
    }
}
