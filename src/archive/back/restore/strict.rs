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
/// What the command itself leaves there when it has waited long enough.
const GIVEN_UP: &str = "walrelay-restore.given-up";
/// The one that ends the waiting for the disk.
const FULL: &str = "walrelay-restore.full";
/// So long what somebody has touched counts, unless everybody has answered before: what was left there long ago, or came with a
/// copy of the data directory, must not end what somebody relies on.
const COUNTS_FOR: Duration = Duration::from_secs(600);
/// So long what the command itself has left counts after it was used last: a promotion asks for the next file in a moment. A
/// later one is another, and those that are required may be back by then.
const USED_AGAIN_WITHIN: Duration = Duration::from_secs(15);
/// And so long in all, since a standby whose stream is broken asks on and on, and may be promoted at any time.
const GIVEN_UP_FOR: Duration = Duration::from_secs(120);

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

/// The files that end the waiting.
#[derive(Debug)]
pub(super) struct Release {
    /// For people to touch.
    touched: PathBuf,
    /// Of the command itself, which does not disarm what people rely on for as long: in it is when it was made.
    own: PathBuf,
}

impl Release {
    /// That of commands whose target is in this directory.
    fn beside(dir: &Path, name: &str) -> Release {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        Release { touched: dir.join(name), own: dir.join(GIVEN_UP) }
    }

    /// For people to touch.
    pub(super) fn path(&self) -> &Path {
        &self.touched
    }

    /// Whether it was touched, and not too long ago.
    pub(super) fn is_given(&self) -> bool {
        fs::metadata(&self.touched).is_ok_and(|file| age(file.modified()) < COUNTS_FOR)
    }

    /// Whether a command has given up just before.
    fn is_given_up(&self) -> bool {
        let is_used = fs::metadata(&self.own).is_ok_and(|file| age(file.modified()) < USED_AGAIN_WITHIN);
        is_used && self.given_up_at().is_some_and(|at| age(Ok(at)) < GIVEN_UP_FOR)
    }

    fn given_up_at(&self) -> Option<SystemTime> {
        let text = fs::read_to_string(&self.own).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(text.trim().parse().ok()?))
    }

    /// For the files that the server asks for next; once more where it has been used.
    fn give_up(&self) -> io::Result<()> {
        if self.is_given_up() {
            return File::options().append(true).open(&self.own)?.set_modified(SystemTime::now());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        fs::write(&self.own, format!("{}\n", now.as_secs()))
    }

    /// Everybody has answered: who is away next time is waited for.
    pub(super) fn end(&self) {
        // That they are not there is the rule.
        let _ = fs::remove_file(&self.touched);
        let _ = fs::remove_file(&self.own);
    }
}

/// How long ago that was. A clock that was set back makes it younger than it is; what is not known is very old.
fn age(at: io::Result<SystemTime>) -> Duration {
    at.map_or(Duration::MAX, |at| SystemTime::now().duration_since(at).unwrap_or_default())
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
        self.release.is_given() || self.is_given_up()
    }

    /// A disk may have room again by the time of the next file: it is waited for anew.
    fn is_given_up(&self) -> bool {
        self.awaited == Awaited::Answers && self.release.is_given_up()
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
        let is_touched = self.release.is_given();
        let (is_released, is_over) = (is_touched || self.is_given_up(), self.left() == Some(Duration::ZERO));
        if !is_released && is_over && self.strict.on_timeout == OnTimeout::Stop {
            tracing::error!(
                "\"{}\": {reasons}; required, and not waited for any longer: the server ends (--on-timeout)",
                self.file
            );
            return Turn::Stop;
        }
        if is_released || is_over {
            self.go_on_without(reasons, is_touched, is_released);
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

    fn go_on_without(&self, reasons: &str, is_touched: bool, is_released: bool) {
        let why = match (is_touched, is_released) {
            (true, _) => format!("\"{}\" is there", self.release.path().display()),
            (false, true) => "it was given up for the file before".to_owned(),
            (false, false) => "--require-timeout is over".to_owned(),
        };
        tracing::error!(
            "\"{}\": {reasons}; required, but {why}: goes on without it, and what is in it and nowhere else is lost if this \
             server is promoted",
            self.file
        );
        // The next file need not wait as long for the same sources.
        if self.awaited == Awaited::Answers
            && !is_touched
            && let Err(error) = self.release.give_up()
        {
            tracing::warn!(
                "could not write \"{}\": {error}; the next file is waited for as long",
                self.release.own.display()
            );
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
        let touch = |file: &Path, ago: Duration| {
            let file = File::options().create(true).append(true).open(file).unwrap();
            file.set_modified(SystemTime::now() - ago).unwrap();
        };
        assert!(!release.is_given());
        touch(release.path(), Duration::ZERO);
        assert!(release.is_given() && !release.is_given_up());
        touch(release.path(), COUNTS_FOR);
        assert!(!release.is_given());
        // Touched again, as by somebody who found it there.
        touch(release.path(), Duration::ZERO);
        assert!(release.is_given());
        release.end();
        release.end();
        assert!(!release.is_given() && fs::read_dir(dir.path()).unwrap().count() == 0);
    }

    /// One promotion asks for its files in a row; the next one, or one of a standby that asked long before, is another.
    #[test]
    fn what_the_command_gives_up_counts_for_a_moment() {
        let dir = tempfile::tempdir().unwrap();
        let release = Release::beside(dir.path(), RELEASE);
        let used = |ago: Duration| {
            let file = File::options().append(true).open(&release.own).unwrap();
            file.set_modified(SystemTime::now() - ago).unwrap();
        };
        let made = |ago: Duration| {
            let at = (SystemTime::now() - ago).duration_since(SystemTime::UNIX_EPOCH).unwrap();
            fs::write(&release.own, format!("{}\n", at.as_secs())).unwrap();
        };
        release.give_up().unwrap();
        assert!(release.is_given_up() && !release.is_given());
        used(USED_AGAIN_WITHIN);
        assert!(!release.is_given_up());
        // Used again and again.
        made(GIVEN_UP_FOR / 2);
        used(USED_AGAIN_WITHIN / 2);
        release.give_up().unwrap();
        used(USED_AGAIN_WITHIN / 2);
        assert!(release.is_given_up());
        // But not for ever.
        made(GIVEN_UP_FOR);
        assert!(!release.is_given_up());
        release.give_up().unwrap();
        assert!(release.is_given_up(), "anew");
        fs::write(&release.own, "rubbish").unwrap();
        assert!(!release.is_given_up());
        release.end();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
