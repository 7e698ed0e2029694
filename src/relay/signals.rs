//! Signals: none ends the relay without a line, and none is lost where one program takes over from another.
//!
//! ```text
//! SIGTERM, SIGINT, SIGQUIT, SIGUSR2, SIGHUP: held back in every thread, and read when there is somebody to obey
//! SIGUSR1, SIGALRM, ...:                     caught and told of; held back over an exec, until the new program catches them
//! ```
//!
//! What is held back waits in the kernel, over an exec as well. So an order that comes when the old program looks no more is
//! the first that the new one finds. Children get none of that (`src/children.rs`).

use std::io::{self, ErrorKind};
use std::task::Poll;
use std::time::Instant;

use nix::sys::signal::{SigSet, SigmaskHow, Signal as Number};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::descriptors::Repeated;
use crate::error::RelayError;

/// Those that are orders.
const ORDERS: [Number; 5] =
    [Number::SIGTERM, Number::SIGINT, Number::SIGQUIT, Number::SIGUSR2, Number::SIGHUP];

/// Those whose default is to end the process, and that say nothing to a relay. SIGXFSZ is among them so that a file
/// beyond the limit is an error of the write. (SIGPIPE is ignored by every Rust program.)
const IGNORED: [Number; 7] = [
    Number::SIGUSR1,
    Number::SIGALRM,
    Number::SIGVTALRM,
    Number::SIGPROF,
    Number::SIGIO,
    Number::SIGXCPU,
    Number::SIGXFSZ,
];

/// Bytes that are read for each signal.
const INFO: usize = size_of::<libc::signalfd_siginfo>();

/// What was held back when the process began: nothing, or after an exec all that matters here.
#[derive(Debug)]
pub struct Inherited(SigSet);

impl Inherited {
    /// Holds orders back in this thread and in those that it starts: to be called before there are others.
    ///
    /// # Errors
    /// The system does not take it.
    pub fn and_hold_orders() -> io::Result<Inherited> {
        Ok(Inherited(set(&ORDERS).thread_swap_mask(SigmaskHow::SIG_BLOCK)?))
    }

    /// Works as if nothing had been held back: what nobody reads yet ends a process that has only just been called.
    pub fn work_as_called<T>(&self, work: impl FnOnce() -> T) -> T {
        // What the first process of a container has no handler for is thrown away: there it waits.
        if std::process::id() == 1 {
            return work();
        }
        // The arguments are good, or the call before would have failed.
        let held = self.0.thread_swap_mask(SigmaskHow::SIG_SETMASK);
        let done = work();
        let _ = held.map(|held| held.thread_set_mask());
        done
    }
}

/// Holds back whatever the next program is to find, or must not be ended by. To be called before an exec.
///
/// # Errors
/// The system does not take it.
pub fn hold_for_exec() -> io::Result<()> {
    set(&ORDERS).thread_block()?;
    Ok(set(&IGNORED).thread_block()?)
}

fn set(signals: &[Number]) -> SigSet {
    signals.iter().copied().collect()
}

/// Signals that are held back, to be read. What there is to wait at a descriptor without unsafe claims is that of a pipe; it does
/// for any that can be read.
#[derive(Debug)]
struct Waiting(Receiver);

impl Waiting {
    fn of(signals: &[Number]) -> Result<Waiting, RelayError> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let opened = SignalFd::with_flags(&set(signals), flags).map_err(io::Error::from);
        opened.and_then(|fd| Receiver::from_owned_fd_unchecked(fd.into())).map(Waiting).map_err(|source| {
            RelayError::System { action: "could not open a descriptor for signals", source }
        })
    }

    /// One that has come already, whether or not the runtime has noticed.
    fn now(&self) -> Option<Number> {
        let mut info = [0; INFO];
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut info));
        number(&info, read.ok()?).ok()
    }

    /// The next one. Cancel-safe.
    async fn next(&self) -> Number {
        match self.read().await {
            Ok(signal) => signal,
            Err(error) => {
                // Not known to happen. SIGKILL is left.
                tracing::error!("could not read signals, none is heard any more: {error}");
                std::future::pending().await
            }
        }
    }

    async fn read(&self) -> io::Result<Number> {
        loop {
            self.0.readable().await?;
            let mut info = [0; INFO];
            match self.0.try_read(&mut info) {
                Ok(count) => return number(&info, count),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Which one it is that a descriptor tells of.
fn number(info: &[u8; INFO], count: usize) -> io::Result<Number> {
    if count < INFO {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    // `ssi_signo` is first.
    let [a, b, c, d, ..] = *info;
    Number::try_from(i32::from_ne_bytes([a, b, c, d])).map_err(io::Error::from)
}

/// How urgent a stop is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// SIGTERM, SIGINT: in order.
    Stop,
    /// SIGQUIT: consumers and the archive are not waited for.
    StopNow,
    /// SIGUSR2: in order, and another binary goes on.
    Restart,
}

impl Order {
    fn of(signal: Number) -> Order {
        match signal {
            Number::SIGQUIT => {
                tracing::warn!("received SIGQUIT: stopping without waiting for consumers and the archive");
                Order::StopNow
            }
            Number::SIGUSR2 => Order::Restart,
            _ => Order::Stop,
        }
    }
}

/// SIGTERM, SIGINT, SIGQUIT and SIGUSR2.
pub(super) struct StopSignals {
    stop: Waiting,
    /// Apart from the others: it waits while nobody could restart.
    restart: Waiting,
}

impl StopSignals {
    pub(super) fn listen() -> Result<StopSignals, RelayError> {
        Ok(StopSignals {
            stop: Waiting::of(&[Number::SIGTERM, Number::SIGINT, Number::SIGQUIT])?,
            restart: Waiting::of(&[Number::SIGUSR2])?,
        })
    }

    /// Any of them, a stop first. Cancel-safe.
    pub(super) async fn recv(&self) -> Order {
        // Of two that have come the runtime may have noticed only the other.
        if let Some(signal) = self.stop.now() {
            return Order::of(signal);
        }
        tokio::select! {
            biased;
            order = self.recv_stop() => order,
            signal = self.restart.next() => Order::of(signal),
        }
    }

    /// Any of them but the one that wants a restart, which goes on waiting. Cancel-safe.
    pub(super) async fn recv_stop(&self) -> Order {
        Order::of(self.stop.next().await)
    }

    /// A stop that was ordered before anybody listened, to the program before this one perhaps.
    pub(super) fn waiting(&self) -> Option<Order> {
        self.stop.now().map(Order::of)
    }

    /// Whether a stop has been ordered already. Restarts that were ordered are forgotten: one is under way, or nobody is left.
    pub(super) fn last_look(&self) -> Option<Order> {
        while self.restart.now().is_some() {}
        self.stop.now().map(Order::of)
    }
}

/// SIGHUP.
pub(super) struct Hangup(Waiting);

impl Hangup {
    pub(super) fn listen() -> Result<Hangup, RelayError> {
        Waiting::of(&[Number::SIGHUP]).map(Hangup)
    }

    /// The next one; those that come faster than they are taken count as one. Cancel-safe.
    pub(super) async fn recv(&self) {
        self.0.next().await;
    }
}

fn on_signal(kind: SignalKind) -> Result<Signal, RelayError> {
    signal(kind).map_err(|source| RelayError::System { action: "could not install signal handler", source })
}

/// The signals that are only told of.
pub(super) struct IgnoredSignals(Vec<Ignored>);

struct Ignored {
    signal: Signal,
    name: &'static str,
    /// A timer that the relay has inherited may send a thousand a second.
    repeated: Repeated,
}

impl IgnoredSignals {
    /// From now on they do nothing.
    pub(super) fn listen() -> Result<IgnoredSignals, RelayError> {
        let listen = |number: Number| {
            let signal = on_signal(SignalKind::from_raw(number as libc::c_int))?;
            Ok(Ignored { signal, name: number.as_str(), repeated: Repeated::default() })
        };
        let all = IGNORED.into_iter().map(listen).collect::<Result<_, RelayError>>()?;
        // The program before has held them back until now.
        let action = "could not let signals through";
        let let_through = set(&IGNORED).thread_unblock().map_err(io::Error::from);
        let_through.map_err(|source| RelayError::System { action, source })?;
        Ok(IgnoredSignals(all))
    }

    /// Tells of them until told to stop: of each kind at once, then with a count.
    pub(super) async fn tell(mut self, stop: CancellationToken) {
        while let Some((name, count)) = stop.run_until_cancelled(self.next()).await {
            tracing::warn!(count, "received {name}, which means nothing to walrelay; ignored");
        }
    }

    /// The next that is to be told of, and how many there were since the last. Signals that come faster than they are
    /// taken count as one.
    async fn next(&mut self) -> (&'static str, u64) {
        loop {
            let ignored = self.received().await;
            if let Some(count) = ignored.repeated.note(Instant::now()) {
                return (ignored.name, count);
            }
        }
    }

    async fn received(&mut self) -> &mut Ignored {
        let number = std::future::poll_fn(|cx| {
            let is_ready = |ignored: &mut Ignored| ignored.signal.poll_recv(cx).is_ready();
            self.0.iter_mut().position(is_ready).map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        &mut self.0[number]
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Sent to one thread, it waits there only.
    #[test]
    fn what_is_held_back_waits_until_it_is_read() {
        let inherited = Inherited::and_hold_orders().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let raise = |signal| nix::sys::signal::raise(signal).unwrap();
        raise(Number::SIGUSR2);
        raise(Number::SIGHUP);
        runtime.block_on(async {
            let (signals, hangup) = (StopSignals::listen().unwrap(), Hangup::listen().unwrap());
            hangup.recv().await;
            assert_eq!(signals.recv_stop().now_or_never(), None);
            assert_eq!(signals.recv().await, Order::Restart);
            raise(Number::SIGUSR2);
            raise(Number::SIGTERM);
            assert_eq!(signals.recv().await, Order::Stop, "a stop goes first");
            assert_eq!(signals.last_look(), None);
            assert_eq!(signals.recv().now_or_never(), None, "the restart is forgotten");
            raise(Number::SIGQUIT);
            assert_eq!(signals.last_look(), Some(Order::StopNow));
        });
        let inside = inherited.work_as_called(|| SigSet::thread_get_mask().unwrap());
        assert!(!inside.contains(Number::SIGTERM));
        hold_for_exec().unwrap();
        let now = SigSet::thread_get_mask().unwrap();
        assert!(ORDERS.iter().chain(&IGNORED).all(|signal| now.contains(*signal)));
    }

    /// Its default does nothing, so that it harms no test that runs in the same process.
    const HARMLESS: libc::c_int = libc::SIGWINCH;

    #[tokio::test]
    async fn a_flood_of_signals_is_one_line() {
        let signal = on_signal(SignalKind::from_raw(HARMLESS)).unwrap();
        let mut ignored =
            IgnoredSignals(vec![Ignored { signal, name: "SIGWINCH", repeated: Repeated::default() }]);
        let send = || {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::WINCH).unwrap();
        };
        send();
        assert_eq!(ignored.next().await, ("SIGWINCH", 1));
        for _ in 0..3 {
            send();
            ignored.received().await.repeated.note(Instant::now());
        }
        send();
        tokio::select! {
            biased;
            told = ignored.next() => panic!("{told:?}"),
            _ = async { for _ in 0..100 { tokio::task::yield_now().await } } => {}
        }
    }
}
