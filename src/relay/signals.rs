//! Signals: none ends the relay without a line.

use std::task::Poll;
use std::time::Instant;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::descriptors::Repeated;
use crate::error::RelayError;

/// Those whose default is to end the process, and that say nothing to a relay. SIGXFSZ is among them so that a file
/// beyond the limit is an error of the write. (SIGPIPE is ignored by every Rust program.)
const IGNORED: [(libc::c_int, &str); 7] = [
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGPROF, "SIGPROF"),
    (libc::SIGIO, "SIGIO"),
    (libc::SIGXCPU, "SIGXCPU"),
    (libc::SIGXFSZ, "SIGXFSZ"),
];

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

/// SIGTERM, SIGINT, SIGQUIT and SIGUSR2.
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    restart: Signal,
}

impl StopSignals {
    pub(super) fn listen() -> Result<StopSignals, RelayError> {
        Ok(StopSignals {
            terminate: on_signal(SignalKind::terminate())?,
            interrupt: on_signal(SignalKind::interrupt())?,
            quit: on_signal(SignalKind::quit())?,
            restart: on_signal(SignalKind::user_defined2())?,
        })
    }

    /// Any of them. Cancel-safe.
    pub(super) async fn recv(&mut self) -> Order {
        tokio::select! {
            _ = self.terminate.recv() => Order::Stop,
            _ = self.interrupt.recv() => Order::Stop,
            _ = self.quit.recv() => {
                tracing::warn!("received SIGQUIT: stopping without waiting for consumers and the archive");
                Order::StopNow
            }
            _ = self.restart.recv() => Order::Restart,
        }
    }

    /// Any of them but the one that wants a restart. Cancel-safe.
    pub(super) async fn recv_stop(&mut self) -> Order {
        loop {
            match self.recv().await {
                Order::Restart => {}
                order => return order,
            }
        }
    }
}

/// SIGHUP.
pub(super) fn on_hangup() -> Result<Signal, RelayError> {
    on_signal(SignalKind::hangup())
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
        let listen = |(number, name)| {
            let signal = on_signal(SignalKind::from_raw(number))?;
            Ok(Ignored { signal, name, repeated: Repeated::default() })
        };
        IGNORED.into_iter().map(listen).collect::<Result<_, _>>().map(IgnoredSignals)
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
    use super::*;

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
