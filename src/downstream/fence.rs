//! `FENCE`, `UNFENCE` and `FENCE_STATUS`, which PostgreSQL does not have: see `store::fence`.
//!
//! A fence is ordered here, and closed by the upstream side. Whoever has ordered it waits for that, as long as somebody has
//! patience; what hangs then hangs on a thread of its own, and the fence holds for the upstream side all the same.

use std::convert::Infallible;
use std::future::pending;
use std::time::{Duration, Instant};

use walrelay_proto::FenceOrder;

use super::admin::{denied, is_admin};
use super::answers::{Answer, put_row};
use super::session::Failure;
use crate::lane::Lane;
use crate::store::fence::{Fence, FenceError, FenceState, FencedBy, Fencing, Order, because};
use crate::wire::messages::{Column, command_complete, row_description};
use crate::wire::{Connection, PgError, sqlstate};

/// How long the answer waits for the upstream side, and for the disk.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });

type Result<T> = std::result::Result<T, Failure>;

/// Threads for what the answers have the disk do.
pub(super) fn lane() -> Lane {
    Lane::new("fence-io", PATIENCE)
}

impl Answer<'_> {
    /// `FENCE`: the answer is the fence, closed and durable.
    pub(super) async fn fence(&self, conn: &mut Connection, order: FenceOrder) -> Result<()> {
        let by = self.admin("fence")?;
        let order = Order { epoch: order.epoch, reason: order.reason.unwrap_or_default(), by };
        let (fence, is_new) = self
            .context
            .store
            .order_fence(order.clone())
            .map_err(|error| refused("fence", &order.by, error))?;
        let said = because(&order.reason);
        match is_new {
            true => tracing::warn!("{fence} was ordered by {}{said}: the upstream is left", order.by),
            false => tracing::info!("{fence} is in force and was ordered again by {}{said}", order.by),
        }
        self.settled(conn, &fence, &order.by).await?;
        self.put_fence(conn, "FENCE");
        Ok(())
    }

    /// Waits until the fence is closed and durable.
    async fn settled(&self, conn: &mut Connection, fence: &Fence, by: &FencedBy) -> Result<()> {
        let (store, epoch) = (self.context.store.clone(), fence.epoch);
        let mut fencing = store.fences().watch();
        let is_over = |shown: &Fencing| {
            let is_ours = |last: &Fence| last.epoch == epoch && last.is_in_force();
            shown.is_settled(epoch) || !shown.last.as_ref().is_some_and(is_ours)
        };
        let (saving, mut trouble) = (store.clone(), None);
        // The upstream side saves it, too; which of them is first makes no difference.
        let saved = async {
            let saved = self.shared.fence_lane.run(0, move || saving.fences().save()).await;
            trouble = match saved {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(reason) => Some(reason),
            };
            pending::<Infallible>().await
        };
        let in_time = tokio::select! {
            _ = fencing.wait_for(is_over) => true,
            () = tokio::time::sleep(PATIENCE) => false,
            reason = self.given_up(conn) => return Err(reason),
            never = saved => match never {},
        };
        let shown = store.fences().now();
        if !in_time {
            return Err(not_in_time(&shown, fence, trouble).into());
        }
        match shown.last {
            Some(last) if last.epoch != epoch => {
                Err(refused("fence", by, FenceError::Lower { epoch, there: Box::new(last) }))
            }
            Some(last) if last.state == FenceState::Lifted => {
                Err(refused("fence", by, FenceError::Used { there: Box::new(last) }))
            }
            _ => Ok(()),
        }
    }

    /// `UNFENCE`
    pub(super) async fn unfence(&self, conn: &mut Connection, epoch: Option<u64>) -> Result<()> {
        let by = self.admin("unfence")?;
        let (store, lifter) = (self.context.store.clone(), by.clone());
        // What is ordered from now on stays, however long this takes.
        let seen = store.fences().orders();
        let lifting = self.shared.fence_lane.run(0, move || store.fences().lift(epoch, &lifter, seen));
        let lifted = tokio::select! {
            lifted = lifting => lifted,
            reason = self.given_up(conn) => return Err(reason),
        };
        let lifted = lifted.map_err(|reason| {
            let text = format!("could not save that the fence is lifted: {reason}");
            PgError::error(sqlstate::IO_ERROR, text).with_hint("The fence stays in force until it is saved.")
        })?;
        lifted.map_err(|error| refused("unfence", &by, error))?;
        self.put_fence(conn, "UNFENCE");
        Ok(())
    }

    /// `FENCE_STATUS`, for everybody who may have all of the WAL.
    pub(super) fn fence_status(&self, conn: &mut Connection) {
        self.put_fence(conn, "FENCE_STATUS");
    }

    /// Who asks, if that is somebody who may fence.
    fn admin(&self, what: &str) -> Result<FencedBy> {
        let role = &self.context.user;
        let address = self.context.peer.ip().map_or("[local]".to_owned(), |ip| ip.to_string());
        let by = FencedBy { role: role.clone(), address };
        if is_admin(self.shared, role) {
            return Ok(by);
        }
        if let Some(count) = self.shared.repeats.note(self.context.peer.source(), what, Instant::now()) {
            tracing::warn!(count, "{by} may not {what} this relay");
        }
        Err(denied(&format!("{what} the relay")).into())
    }

    fn put_fence(&self, conn: &mut Connection, tag: &str) {
        let store = &self.context.store;
        let fencing = store.fences().now();
        let state = fencing.state();
        let Fencing { last, is_saved, .. } = fencing;
        let columns = [
            Column::text("state"),
            Column::int8("epoch"),
            Column::int8("timeline"),
            Column::text("lsn"),
            Column::text("reason"),
            Column::text("since"),
            Column::text("role"),
            Column::text("address"),
            Column::text("durable"),
            Column::text("application_name"),
        ];
        conn.put(&row_description(&columns));
        let last = last.as_ref();
        let version = store.upstream_parameters().major_version();
        let position = last.and_then(|fence| fence.position).map(|lsn| lsn.text(version));
        let numbers = last.map(|fence| (fence.epoch.to_string(), fence.timeline.to_string()));
        let since = last.map(|fence| fence.since.to_text());
        put_row(
            conn,
            &[
                Some(state),
                numbers.as_ref().map(|(epoch, _)| epoch.as_str()),
                numbers.as_ref().map(|(_, timeline)| timeline.as_str()),
                position.as_deref(),
                last.map(|fence| fence.reason.as_str()),
                since.as_deref(),
                last.map(|fence| fence.by.role.as_str()),
                last.map(|fence| fence.by.address.as_str()),
                Some(if is_saved { "t" } else { "f" }),
                Some(&self.shared.config.application_name),
            ],
        );
        conn.put(&command_complete(tag));
    }
}

fn refused(what: &str, by: &FencedBy, error: FenceError) -> Failure {
    tracing::warn!("could not {what} for {by}: {error}");
    let sqlstate = match &error {
        FenceError::Io(_) => sqlstate::IO_ERROR,
        FenceError::Lower { .. }
        | FenceError::Used { .. }
        | FenceError::Other { .. }
        | FenceError::BeingPassed { .. }
        | FenceError::Again { .. }
        | FenceError::Empty
        | FenceError::NoEpoch => sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
    };
    PgError::error(sqlstate, error.to_string()).into()
}

fn not_in_time(shown: &Fencing, fence: &Fence, trouble: Option<String>) -> PgError {
    let limit = PATIENCE.as_secs();
    let is_open = shown.last.as_ref().is_some_and(Fence::is_open);
    let missing = match is_open {
        true => "the upstream side has not synced what it has received",
        false => "the data directory does not take word of it",
    };
    let trouble = trouble.map(|trouble| format!(": {trouble}")).unwrap_or_default();
    let text = format!("{fence} is not durable after {limit} s");
    tracing::error!("{text}: {missing}{trouble}");
    let detail = format!(
        "It is in force: nothing more is confirmed upstream. But {missing}{trouble}, so a crash may bring back what was before."
    );
    PgError::error(sqlstate::IO_ERROR, text)
        .with_detail(detail)
        .with_hint("Look at the disk of the data directory, and ask again.")
}
