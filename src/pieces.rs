//! What comes in pieces from somewhere, for a thread that reads it and may wait.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// Reads what is sent, piece after piece; it ends where nobody sends any more.
///
/// Blocks, so it is for threads that may wait.
#[derive(Debug)]
pub(crate) struct Pieces {
    coming: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Pieces {
    /// A reader, and what gives it something to read: `waiting` pieces at most are under way.
    pub(crate) fn channel(waiting: usize) -> (mpsc::Sender<Bytes>, Pieces) {
        let (send, coming) = mpsc::channel(waiting);
        (send, Pieces { coming, piece: Bytes::new() })
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let Some(next) = self.coming.blocking_recv() else { return Ok(0) };
            self.piece = next;
        }
        let len = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_are_read_to_the_end() {
        let (send, mut pieces) = Pieces::channel(1);
        let sender = std::thread::spawn(move || {
            for piece in ["", "segments ", "come", "", " in pieces"] {
                send.blocking_send(Bytes::from_static(piece.as_bytes())).unwrap();
            }
        });
        let mut begun = [0; 5];
        pieces.read_exact(&mut begun).unwrap();
        let mut rest = String::new();
        pieces.read_to_string(&mut rest).unwrap();
        assert_eq!((&begun, rest.as_str()), (b"segme", "nts come in pieces"));
        sender.join().unwrap();
    }

    #[test]
    fn who_sends_hears_that_nobody_reads_any_more() {
        let (send, pieces) = Pieces::channel(1);
        drop(pieces);
        assert!(send.blocking_send(Bytes::from_static(b"x")).is_err());
    }
}
