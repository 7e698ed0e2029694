//! What a stream can be told from outside, each once.
//!
//! The signs behind the orders stay up once they are given (the relay stops, the command is cancelled, the slot is
//! lost), so a walsender that looked at them directly would be woken by them for ever. Here an order that was taken
//! is not looked at again.

use std::future::pending;

use futures_util::FutureExt;
use walrelay_proto::sender::Order;

use super::session::SessionContext;
use crate::store::SlotGuard;

/// Which orders a stream has taken.
#[derive(Debug, Default)]
pub(super) struct Orders {
    evicted: bool,
    cancelled: bool,
    stopped: bool,
}

impl Orders {
    /// The next order, the most urgent first, if there is one already. For a stream that always has something to send.
    pub(super) fn given(&mut self, cx: &SessionContext, slot: Option<&SlotGuard>) -> Option<Order> {
        self.next(cx, slot).now_or_never()
    }

    /// Waits for the next order; pends for good when all have been taken. Cancel-safe.
    pub(super) async fn next(&mut self, cx: &SessionContext, slot: Option<&SlotGuard>) -> Order {
        let order = tokio::select! {
            biased;
            () = evicted(cx, slot), if !self.evicted => Order::Evict,
            () = cx.cancel.requested(), if !self.cancelled => Order::Cancel,
            () = cx.shutdown.cancelled(), if !self.stopped => Order::Stop,
            else => pending().await,
        };
        match order {
            Order::Evict => self.evicted = true,
            Order::Cancel => self.cancelled = true,
            Order::Stop => self.stopped = true,
        }
        order
    }
}

async fn evicted(cx: &SessionContext, slot: Option<&SlotGuard>) {
    let slot = async {
        match slot {
            Some(slot) => slot.evicted().await,
            None => pending().await,
        }
    };
    tokio::select! {
        () = slot => {}
        () = cx.cancel.ended() => {}
    }
}
