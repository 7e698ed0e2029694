//! Who is told of new WAL where it is published: no thread has to be woken for that.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, Weak};

use super::{TimelinePosition, lock};

/// Readers who want to be told at once.
pub trait Audience: Debug + Send + Sync {
    /// WAL is published up to here, or another history and this are shown. The caller is whoever receives WAL, and holds no
    /// lock: this takes some microseconds, and waits for nobody and for no disk.
    fn hear(&self, end: Option<TimelinePosition>);
}

/// Where they sit. Whoever is gone is told nothing.
#[derive(Debug, Default)]
pub(super) struct Seats(Mutex<Option<Weak<dyn Audience>>>);

impl Seats {
    pub(super) fn seat(&self, audience: &Arc<impl Audience + 'static>) {
        let audience: Weak<dyn Audience> = Arc::downgrade(&(audience.clone() as Arc<dyn Audience>));
        *lock(&self.0) = Some(audience);
    }

    pub(super) fn tell(&self, end: Option<TimelinePosition>) {
        let audience = lock(&self.0).as_ref().and_then(Weak::upgrade);
        if let Some(audience) = audience {
            audience.hear(end);
        }
    }
}
