//! Steps on the disk: tests look at what a crash right behind each of them leaves. Elsewhere nothing happens here.

#[cfg(not(test))]
pub(super) fn taken() {}

#[cfg(test)]
pub(super) use watched::{taken, watch};

#[cfg(test)]
mod watched {
    use std::cell::RefCell;

    type Watcher = Box<dyn FnMut()>;

    thread_local! {
        static WATCHER: RefCell<Option<Watcher>> = const { RefCell::new(None) };
    }

    /// Something has changed on the disk.
    pub(in crate::store) fn taken() {
        WATCHER.with_borrow_mut(|watcher| watcher.as_mut().map(|watcher| watcher()));
    }

    /// Has `watcher` called behind each step of this thread while `work` runs.
    pub(in crate::store) fn watch<T>(watcher: impl FnMut() + 'static, work: impl FnOnce() -> T) -> T {
        WATCHER.set(Some(Box::new(watcher)));
        let result = work();
        WATCHER.set(None);
        result
    }
}
