//! The receiving side against scripted servers on loopback.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::*;
use crate::pg::tests::*;

mod comebacks;
mod following;
mod receiving;
