//! The least that storing WAL can take: it is written to a file that is full of zeros, synced and reported. Nothing is verified,
//! nothing has a name, nobody reads it: a ceiling, not a server. In a process of its own, as [`sendfile`](super::sendfile).

use std::fs::{self, File};
use std::io;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

use walrelay_proto::Lsn;

use super::stage::local;
use crate::Consumer;

/// Written at once.
const PIECE: usize = 1 << 20;

/// Stores what comes from `start` on, round and round in a file of so many bytes, until the process is ended. In `bulk` another
/// thread syncs what there is again and again; else it is synced whenever nothing more has come.
///
/// # Errors
/// Of the connection and the file.
pub(crate) fn store(
    file: &str,
    bytes: &str,
    port: &str,
    name: &str,
    start: &str,
    bulk: bool,
) -> Result<(), String> {
    let port = port.parse().map_err(|_| "no port")?;
    let start: Lsn = start.parse().map_err(|_| "no position")?;
    let bytes = bytes.parse().map_err(|_| "no length")?;
    let run = || -> io::Result<()> {
        let file = zeros(Path::new(file), bytes)?;
        let mut consumer = Consumer::connect(local(port), name)?.copying();
        consumer.start(start)?;
        consumer.report()?;
        if bulk { beside(consumer, &file, start, bytes) } else { at_once(consumer, &file, start, bytes) }
    };
    run().map_err(|error| error.to_string())
}

/// The file, filled and synced; what was left by one before is as good.
fn zeros(path: &Path, bytes: u64) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    if fs::metadata(path)?.len() != bytes {
        let piece = vec![0; PIECE];
        for at in (0..bytes).step_by(PIECE) {
            file.write_all_at(&piece[..PIECE.min((bytes - at) as usize)], at)?;
        }
    }
    file.sync_all()?;
    Ok(file)
}

/// One thread.
fn at_once(mut consumer: Consumer, file: &File, start: Lsn, bytes: u64) -> io::Result<()> {
    loop {
        receive(&mut consumer, file, start, bytes)?;
        if !consumer.has_more()? {
            file.sync_data()?;
            consumer.report()?;
        }
    }
}

/// One thread that receives, and one that syncs.
fn beside(mut consumer: Consumer, file: &File, start: Lsn, bytes: u64) -> io::Result<()> {
    let (written, changed) = (Mutex::new(start), Condvar::new());
    let socket = consumer.another_socket()?;
    std::thread::scope(|scope| {
        scope.spawn(|| sync(&socket, file, &written, &changed, start));
        loop {
            let end = receive(&mut consumer, file, start, bytes)?;
            *written.lock().unwrap_or_else(PoisonError::into_inner) = end;
            changed.notify_one();
        }
    })
}

/// Until the process is ended.
fn sync(socket: &TcpStream, file: &File, written: &Mutex<Lsn>, changed: &Condvar, mut synced: Lsn) {
    loop {
        let mut end = written.lock().unwrap_or_else(PoisonError::into_inner);
        while *end == synced {
            end = changed.wait(end).unwrap_or_else(PoisonError::into_inner);
        }
        synced = *end;
        drop(end);
        file.sync_data().expect("the disk takes it");
        Consumer::report_on(socket, synced).expect("the server is there");
    }
}

/// Writes one message's WAL; where it ends.
fn receive(consumer: &mut Consumer, file: &File, start: Lsn, bytes: u64) -> io::Result<Lsn> {
    let (mut at, mut written) = (consumer.received(), Ok(()));
    let end = consumer.next_wal_with(|piece| {
        let offset = at.since(start) % bytes;
        let (now, wrapped) = piece.split_at(piece.len().min((bytes - offset) as usize));
        let write = || file.write_all_at(now, offset).and_then(|()| file.write_all_at(wrapped, 0));
        if written.is_ok() {
            written = write();
        }
        at = at.advance(piece.len() as u64);
    })?;
    written.map(|()| end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_zeros() {
        let scratch = crate::Scratch::new("zeros");
        let path = scratch.join("file");
        for _ in 0..2 {
            assert_eq!(zeros(&path, PIECE as u64 + 7).unwrap().metadata().unwrap().len(), PIECE as u64 + 7);
        }
        assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
    }
}
