//! Files that do not answer at the start: pipes that nobody writes to, file systems that hang. They are waited for, since
//! whoever starts us may be about to write them, and not without a word.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// After this time it is said that something takes long, and again each time it has passed.
pub const SLOW: Duration = Duration::from_secs(5);

/// Reads, and tells what is read at the moment whenever `every` has passed over it.
pub fn told_of<T>(
    every: Duration,
    at: impl Fn() -> String + Send,
    tell: impl Fn(&str) + Send,
    read: impl FnOnce() -> T,
) -> T {
    std::thread::scope(|threads| {
        // Dropped with the end, or the panic, of the reading.
        let (_done, ended) = mpsc::channel::<()>();
        threads.spawn(move || {
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                tell(&format!(
                    "still reading {}: it is a pipe that nobody writes to, or lies on a file system that does not answer",
                    at()
                ));
            }
        });
        read()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    #[test]
    fn what_does_not_answer_is_named_and_waited_for() {
        let (tell, told) = channel();
        let tell = Mutex::new(tell);
        let read = || [told.recv().unwrap(), told.recv().unwrap()];
        let say = |line: &str| tell.lock().unwrap().send(line.to_owned()).unwrap_or_default();
        let lines = told_of(Duration::from_millis(1), || "\"/a\"".to_owned(), say, read);
        assert!(lines.iter().all(|line| line.starts_with("still reading \"/a\": it is a pipe")), "{lines:?}");
        assert_eq!(told_of(SLOW, String::new, |_| panic!("it was quick"), || 7), 7);
    }
}
