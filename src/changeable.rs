//! Settings that may change while the relay runs (SIGHUP), for those who look at them when they need them.

use std::sync::{Arc, Mutex, PoisonError};

/// A value that can be replaced; clones are the same one.
#[derive(Clone, Debug)]
pub struct Changeable<T>(Arc<Mutex<T>>);

impl<T> From<T> for Changeable<T> {
    fn from(value: T) -> Changeable<T> {
        Changeable(Arc::new(Mutex::new(value)))
    }
}

impl<T: Copy> Changeable<T> {
    /// What holds now.
    pub fn current(&self) -> T {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it is this.
    pub fn replace(&self, value: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}
