//! A client of the primary that costs little: one connection, statements in text, for many small commits.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A server that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection of `postgres`, who must be trusted.
pub(crate) struct Client {
    socket: TcpStream,
    input: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(port: u16) -> io::Result<Client> {
        let socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut client = Client { socket, input: Vec::new() };
        let body = [&(3_u32 << 16).to_be_bytes()[..], b"user\0postgres\0database\0postgres\0\0"].concat();
        client.socket.write_all(&[&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat())?;
        client.answer()?;
        Ok(client)
    }

    /// Runs a statement; the first value of its first row.
    pub(crate) fn run(&mut self, sql: &str) -> io::Result<Option<String>> {
        let len = (sql.len() as u32 + 5).to_be_bytes();
        self.socket.write_all(&[b"Q", &len[..], sql.as_bytes(), b"\0"].concat())?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<Option<String>> {
        let mut value = None;
        loop {
            let (kind, body) = self.message()?;
            match kind {
                b'Z' => return Ok(value),
                b'E' => return Err(io::Error::other(body.escape_ascii().to_string())),
                b'D' if value.is_none() => value = first_value(&body),
                _ => {}
            }
        }
    }

    fn message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        loop {
            if let Some((kind, len)) = self.input.first().zip(self.input.get(1..5)) {
                let len = len.iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
                if self.input.len() > len {
                    let kind = *kind;
                    let body = self.input.drain(..=len).skip(5).collect();
                    return Ok((kind, body));
                }
            }
            let mut piece = [0; 4096];
            match self.socket.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.input.extend_from_slice(&piece[..count]),
            }
        }
    }
}

/// Of a DataRow.
fn first_value(body: &[u8]) -> Option<String> {
    let len = body.get(2..6)?.iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
    Some(String::from_utf8_lossy(body.get(6..6 + len)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_rows() {
        assert_eq!(first_value(&[0, 1, 0, 0, 0, 2, b'0', b'/']), Some("0/".to_owned()));
        assert_eq!(first_value(&[0, 1, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(first_value(&[]), None);
    }
}
