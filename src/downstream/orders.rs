//! What a stream can be told from outside, each once.
//!
//! The signs behind the orders stay up once they are given (the relay stops, the command is cancelled, the slot is
//! lost), so a walsender that looked at them directly would be woken by them for ever. Here an order that was taken
//! is not looked at again.

use std::pin::Pin;

use tokio_util::sync::CancellationToken;
use walrelay_proto::sender::Order;

use super::registry::Cancel;
use super::session::SessionContext;
use crate::store::SlotGuard;

/// Which orders a stream has taken, and where it hears of others.
pub(super) struct Orders {
    evicted: bool,
    cancelled: bool,
    stopped: bool,
    cancel: Cancel,
    stop: CancellationToken,
    /// Of the slot.
    evict: Option<CancellationToken>,
    /// The wait for the next one, kept from one to the next: to enter and leave the signs' lists costs more than all else that
    /// a status update does.
    waiting: Option<Pin<Box<dyn Future<Output = Order> + Send>>>,
}

impl Orders {
    pub(super) fn new(cx: &SessionContext, slot: Option<&SlotGuard>) -> Orders {
        Orders {
            evicted: false,
            cancelled: false,
            stopped: false,
            cancel: cx.cancel.clone(),
            stop: cx.shutdown.clone(),
            evict: slot.map(SlotGuard::eviction),
            waiting: None,
        }
    }

    /// The next order, the most urgent first, if there is one already. For a stream that always has something to send.
    pub(super) fn given(&mut self) -> Option<Order> {
        let evicted =
            || self.evict.as_ref().is_some_and(CancellationToken::is_cancelled) || self.cancel.is_ended();
        let order = if !self.evicted && evicted() {
            Order::Evict
        } else if !self.cancelled && self.cancel.is_requested() {
            Order::Cancel
        } else if !self.stopped && self.stop.is_cancelled() {
            Order::Stop
        } else {
            return None;
        };
        self.take(order);
        Some(order)
    }

    /// Waits for the next order; pends for good when all have been taken. Cancel-safe.
    pub(super) async fn next(&mut self) -> Order {
        let order = match &mut self.waiting {
            Some(waiting) => waiting.await,
            None => {
                let waiting = self.wait();
                self.waiting.insert(waiting).await
            }
        };
        self.take(order);
        order
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Evict => self.evicted = true,
            Order::Cancel => self.cancelled = true,
            Order::Stop => self.stopped = true,
        }
        self.waiting = None;
    }

    fn wait(&self) -> Pin<Box<dyn Future<Output = Order> + Send>> {
        let (cancel, stop, evict) = (self.cancel.clone(), self.stop.clone(), self.evict.clone());
        let (evicted, cancelled, stopped) = (self.evicted, self.cancelled, self.stopped);
        Box::pin(async move {
            let slot_evicted = async {
                match &evict {
                    Some(evict) => evict.cancelled().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = slot_evicted, if !evicted => Order::Evict,
                () = cancel.ended(), if !evicted => Order::Evict,
                () = cancel.requested(), if !cancelled => Order::Cancel,
                () = stop.cancelled(), if !stopped => Order::Stop,
                else => std::future::pending().await,
            }
        })
    }
}
