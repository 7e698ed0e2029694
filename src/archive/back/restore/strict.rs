//! Whose answers a standby is not told "there is no such file" without.
//!
//! While the command waits for them the server replays nothing and streams nothing. So there is an end to it, after a time
//! or when somebody says so by touching a file beside the target; and what has been given up once is not waited for again
//! with the next file, which a promotion asks for at once.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// How long the answers are waited for unless told otherwise. `pg_ctl promote` and `pg_promote()` wait 60 s for a
/// promotion: this leaves them half of it, and a relay that is restarted is back in less.
pub const REQUIRE_TIMEOUT: &str = "30s";
/// The file that ends the waiting, beside the target.
const RELEASE: &str = "walrelay-restore.release";
/// The one that ends the waiting for the disk.
const FULL: &str = "walrelay-restore.full";
/// So long it counts, unless everybody has answered before: what was left there long ago, or came with a copy of the data
/// directory, must not end what somebody relies on.
const COUNTS_FOR: Duration = Duration::from_secs(600);

/// After this part of the time between two lines the first one comes, unless the wait is over.
const AT_ONCE: u32 = 10;

/// Sources that have to answer, and what becomes of it if they do not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Strict {
    /// Who has to.
    pub required: Required,
    /// How long they are waited for; `None` for ever.
    pub timeout: Option<Duration>,
    /// What then.
    pub on_timeout: OnTimeout,
}

/// By their numbers in the order of the sources.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Required {
    /// Each of these.
    pub named: Vec<usize>,
    /// The relays among the sources.
    pub relays: Vec<usize>,
    /// So many of them.
    pub of_relays: usize,
}

/// What to do when those that are required have not answered in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum OnTimeout {
    /// Go on with what the others have; if that is nothing, "there is no such file".
    Continue,
    /// End the server: exit code 200.
    Stop,
}

impl Required {
    /// Whom to wait for, when these have not answered.
    pub fn awaited(&self, unanswered: &[usize]) -> Vec<usize> {
        let is_out = |number: &&usize| unanswered.contains(number);
        let mut awaited: Vec<usize> = self.named.iter().filter(is_out).copied().collect();
        let out: Vec<usize> = self.relays.iter().filter(is_out).copied().collect();
        if self.relays.len() - out.len() < self.of_relays {
            awaited.extend(out);
        }
        awaited.sort_unstable();
        awaited.dedup();
        awaited
    }
}

/// The file that ends the waiting.
#[derive(Debug)]
pub(super) struct Release(PathBuf);

impl Release {
    /// That of commands whose target is in this directory.
    fn beside(dir: &Path, name: &str) -> Release {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        Release(dir.join(name))
    }

    /// For people to touch.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Whether it was touched, and not too long ago.
    pub(super) fn is_given(&self) -> bool {
        let touched = fs::metadata(&self.0).and_then(|file| file.modified());
        // A clock that was set back makes it younger than it is.
        touched.is_ok_and(|at| SystemTime::now().duration_since(at).unwrap_or_default() < COUNTS_FOR)
    }

    /// For the files that the server asks for next.
    pub(super) fn give(&self) -> io::Result<()> {
        File::options().create(true).append(true).open(&self.0)?.set_modified(SystemTime::now())
    }

    /// Everybody has answered: who is away next time is waited for.
    pub(super) fn end(&self) {
        // That it is not there is the rule.
        let _ = fs::remove_file(&self.0);
    }
}

/// What a command waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Awaited {
    /// The answers of those that are required.
    Answers,
    /// Room for what they have.
    Disk,
}

impl Awaited {
    /// What ends the waiting. Apart, since who gives up a disk has not given up those who answer.
    fn release(self) -> &'static str {
        match self {
            Awaited::Answers => RELEASE,
            Awaited::Disk => FULL,
        }
    }
}

/// A command that waits.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    strict: &'a Strict,
    /// What the server asks for.
    file: &'a str,
    awaited: Awaited,
    release: Release,
    begun: Instant,
    is_told: bool,
    /// When it is to be told next.
    tell_at: Instant,
    tell_every: Duration,
}

/// What to do when it could not be had once more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// Try again.
    Again,
    /// It has been given up.
    GoOn,
    /// The server is to end.
    Stop,
}

impl<'a> Waiting<'a> {
    /// For this file, whose target is in `dir`; the time counts from `begun`.
    pub(super) fn begin(
        strict: &'a Strict,
        file: &'a str,
        awaited: Awaited,
        dir: &Path,
        tell_every: Duration,
        begun: Instant,
    ) -> Waiting<'a> {
        let release = Release::beside(dir, awaited.release());
        let tell_at = Instant::now() + tell_every / AT_ONCE;
        Waiting { strict, file, awaited, release, begun, is_told: false, tell_at, tell_every }
    }

    /// Whether it was given up before.
    pub(super) fn is_released(&self) -> bool {
        self.release.is_given()
    }

    /// When it is given up.
    pub(super) fn until(&self) -> Option<Instant> {
        self.strict.timeout.and_then(|timeout| self.begun.checked_add(timeout))
    }

    /// Does something that may take long, and tells meanwhile why it is waited for, if it is.
    pub(super) async fn telling<T>(
        &mut self,
        work: impl Future<Output = T>,
        reasons: impl Fn() -> Option<String>,
    ) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep_until(self.tell_at) => {}
            }
            match reasons() {
                Some(reasons) => self.tell(&reasons),
                None => self.tell_at = Instant::now() + self.tell_every / AT_ONCE,
            }
        }
    }

    /// It has been had.
    pub(super) fn end(&self) {
        self.release.end();
        if self.is_told {
            let (file, waited) = (self.file, self.begun.elapsed().as_secs());
            match self.awaited {
                Awaited::Answers => {
                    tracing::warn!("all that are required have answered about \"{file}\" after {waited} s")
                }
                Awaited::Disk => tracing::warn!("\"{file}\" could be written after {waited} s"),
            }
        }
    }

    /// It could not be had, for these reasons.
    pub(super) fn turn(&mut self, reasons: &str) -> Turn {
        let (is_released, is_over) = (self.release.is_given(), self.left() == Some(Duration::ZERO));
        if !is_released && is_over && self.strict.on_timeout == OnTimeout::Stop {
            tracing::error!(
                "\"{}\": {reasons}; required, and not waited for any longer: the server ends (--on-timeout)",
                self.file
            );
            return Turn::Stop;
        }
        if is_released || is_over {
            self.go_on_without(reasons, is_released);
            return Turn::GoOn;
        }
        if !self.is_told || self.tell_at <= Instant::now() {
            self.tell(reasons);
        }
        Turn::Again
    }

    fn left(&self) -> Option<Duration> {
        self.strict.timeout.map(|timeout| timeout.saturating_sub(self.begun.elapsed()))
    }

    fn tell(&mut self, reasons: &str) {
        // Not later each time by what comes in between.
        let now = Instant::now();
        let next = if self.is_told { self.tell_at + self.tell_every } else { now + self.tell_every };
        (self.is_told, self.tell_at) = (true, next.max(now));
        let then = match (self.left(), self.strict.on_timeout) {
            (None, _) => String::new(),
            (Some(left), OnTimeout::Continue) => format!("; goes on without it in {} s", left.as_secs()),
            (Some(left), OnTimeout::Stop) => format!("; ends the server in {} s", left.as_secs()),
        };
        let (file, release) = (self.file, self.release.path().display());
        match self.awaited {
            Awaited::Answers => tracing::warn!(
                "\"{file}\" waits for who is required: {reasons}{then}; to go on without it now, touch \"{release}\""
            ),
            Awaited::Disk => tracing::warn!(
                "\"{file}\" has come and waits for the disk: {reasons}{then}; to go on without it now, touch \"{release}\""
            ),
        }
    }

    fn go_on_without(&self, reasons: &str, is_released: bool) {
        let why = match is_released {
            true => format!("\"{}\" is there", self.release.path().display()),
            false => "--require-timeout is over".to_owned(),
        };
        tracing::error!(
            "\"{}\": {reasons}; required, but {why}: goes on without it, and what is in it and nowhere else is lost if this \
             server is promoted",
            self.file
        );
        // The next file need not wait as long for the same sources. A disk may have room again by then.
        if self.awaited == Awaited::Answers
            && !is_released
            && let Err(error) = self.release.give()
        {
            tracing::warn!("could not write \"{}\": {error}", self.release.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use tokio::sync::Notify;

    #[test]
    fn who_is_waited_for() {
        let check = |named: &[usize], of_relays: usize, unanswered: &[usize], expected: &[usize]| {
            // An archive, two relays, a directory of a third.
            let required = Required { named: named.to_vec(), relays: vec![1, 2, 3], of_relays };
            assert_eq!(required.awaited(unanswered), expected, "{named:?} {of_relays} {unanswered:?}");
        };
        check(&[], 0, &[0, 1, 2, 3], &[]);
        check(&[1], 0, &[0, 2, 3], &[]);
        check(&[1], 0, &[0, 1, 2], &[1]);
        check(&[0, 1], 0, &[0, 1, 2], &[0, 1]);
        // Any of them, but the archive is no relay.
        check(&[], 1, &[0, 1, 2], &[]);
        check(&[], 1, &[1, 2, 3], &[1, 2, 3]);
        check(&[], 2, &[1, 3], &[1, 3]);
        check(&[], 3, &[2], &[2]);
        check(&[2], 1, &[2], &[2]);
        check(&[2], 2, &[2, 3], &[2, 3]);
    }

    /// Whatever is waited for, and however long that takes.
    #[tokio::test]
    async fn it_is_told_by_a_clock_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let strict = Strict { required: Required::default(), timeout: None, on_timeout: OnTimeout::Stop };
        let (begun, every) = (Instant::now(), Duration::from_millis(500));
        let mut waiting = Waiting::begin(&strict, "file", Awaited::Answers, dir.path(), every, begun);
        let (asked, done) = (RefCell::new(Vec::new()), Notify::new());
        let reasons = || {
            let mut asked = asked.borrow_mut();
            asked.push(begun.elapsed());
            if asked.len() == 4 {
                done.notify_one();
            }
            // At first nobody is waited for in particular.
            (asked.len() > 1).then(|| "r1 has not answered".to_owned())
        };
        waiting.telling(done.notified(), reasons).await;
        let asked = asked.into_inner();
        assert!(asked[0] >= every / AT_ONCE && asked[1] < every, "{asked:?}");
        assert!(asked[2] >= asked[1] + every && asked[3] >= asked[1] + 2 * every, "{asked:?}");
        // An attempt that fails in between is no reason to say it again, nor later.
        let next = waiting.tell_at;
        assert_eq!(waiting.turn("r1 is away"), Turn::Again);
        assert!(waiting.is_told && waiting.tell_at == next && next > Instant::now());
    }

    #[test]
    fn a_release_counts_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let release = Release::beside(dir.path(), RELEASE);
        assert!(!release.is_given());
        release.give().unwrap();
        assert!(release.is_given());
        let long_ago = SystemTime::now() - COUNTS_FOR;
        File::options().append(true).open(release.path()).unwrap().set_modified(long_ago).unwrap();
        assert!(!release.is_given());
        // Touched again, as by somebody who found it there.
        release.give().unwrap();
        assert!(release.is_given());
        release.end();
        release.end();
        assert!(!release.is_given() && fs::read_dir(dir.path()).unwrap().count() == 0);
    }
}
