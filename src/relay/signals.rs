//! Signals: none ends the relay without a line.

use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::error::RelayError;

/// Those whose default is to end the process, and that say nothing to a relay. SIGXFSZ is among them so that a file
/// beyond the limit is an error of the write. (SIGPIPE is ignored by every Rust program.)
const IGNORED: [(libc::c_int, &str); 8] = [
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGUSR2, "SIGUSR2"),
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
}

/// SIGTERM, SIGINT and SIGQUIT.
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl StopSignals {
    pub(super) fn listen() -> Result<StopSignals, RelayError> {
        Ok(StopSignals {
            terminate: on_signal(SignalKind::terminate())?,
            interrupt: on_signal(SignalKind::interrupt())?,
            quit: on_signal(SignalKind::quit())?,
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
pub(super) struct IgnoredSignals(Vec<(Signal, &'static str)>);

impl IgnoredSignals {
    /// From now on they do nothing.
    pub(super) fn listen() -> Result<IgnoredSignals, RelayError> {
        let listen = |(number, name)| Ok((on_signal(SignalKind::from_raw(number))?, name));
        IGNORED.into_iter().map(listen).collect::<Result<_, _>>().map(IgnoredSignals)
    }

    /// Tells of each until told to stop.
    pub(super) async fn tell(mut self, stop: CancellationToken) {
        while let Some(name) = stop.run_until_cancelled(self.next()).await {
            tracing::warn!("received {name}, which means nothing to walrelay; ignored");
        }
    }

    async fn next(&mut self) -> &'static str {
        std::future::poll_fn(|cx| {
            let ready = |(signal, name): &mut (Signal, _)| signal.poll_recv(cx).is_ready().then_some(*name);
            self.0.iter_mut().find_map(ready).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}
