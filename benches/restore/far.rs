//! A store that is far away.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// How long every byte is on its way, in each direction.
pub(crate) const ONE_WAY: Duration = Duration::from_millis(20);
/// Parts on their way in one direction of a connection, and the size of each: more than fits between here and there.
const PARTS: usize = 256;
const PART: usize = 64 << 10;

/// Listens on a port of its own, for as long as the runtime lives, and carries everything to another.
pub(crate) fn away(runtime: &Runtime, to: SocketAddr) -> SocketAddr {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("there is a free port");
    let address = listener.local_addr().expect("it is bound");
    runtime.spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(to).await else { continue };
            // Small parts must not wait for others.
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::spawn(carry(near_in, far_out));
            tokio::spawn(carry(far_in, near_out));
        }
    });
    address
}

/// Until the end of either.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (sender, mut parts) = mpsc::channel::<(Instant, BytesMut)>(PARTS);
    tokio::spawn(async move {
        loop {
            let mut part = BytesMut::with_capacity(PART);
            let read = from.read_buf(&mut part).await;
            if !matches!(read, Ok(1..)) || sender.send((Instant::now() + ONE_WAY, part)).await.is_err() {
                return;
            }
        }
    });
    while let Some((due, part)) = parts.recv().await {
        sleep_until(due).await;
        if to.write_all(&part).await.is_err() {
            return;
        }
    }
}
