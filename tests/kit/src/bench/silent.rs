//! A standby that stores nothing: it says at once that everything is flushed. What a commit takes without any disk.

use std::io;

use super::stage::local;
use crate::Consumer;

/// Answers until the process is ended.
///
/// # Errors
/// Of the connection.
pub(crate) fn answer(port: &str, name: &str, start: &str) -> Result<(), String> {
    let port = port.parse().map_err(|_| "no port")?;
    let start = start.parse().map_err(|_| "no position")?;
    let answer = || -> io::Result<()> {
        let mut consumer = Consumer::connect(local(port), name)?;
        consumer.start(start)?;
        consumer.report()?;
        loop {
            consumer.next_wal()?;
            consumer.report()?;
        }
    };
    answer().map_err(|error| error.to_string())
}
