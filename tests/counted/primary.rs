//! A primary that is played: it lets the relay in, answers what it asks, and then sends what the test wants.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, SystemTime};

use walrelay_proto::{ClientMessage, Lsn, PgTimestamp, StandbyStatusUpdate, XLogDataHeader};

/// A relay that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A walsender that streams.
pub(crate) struct Primary {
    socket: TcpStream,
    frame: Vec<u8>,
}

impl Primary {
    /// Waits for the relay, and converses with it until it asks for WAL. All there is begins, and ends, at `start`.
    pub(crate) fn accept(listener: &TcpListener, system: &str, start: Lsn) -> Primary {
        let (mut socket, _) = listener.accept().expect("the relay connects");
        socket.set_nodelay(true).expect("it is a TCP socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
        let (len, _) = (word(&mut socket), word(&mut socket));
        read(&mut socket, len as usize - 8);
        socket.write_all(&welcome()).expect("the relay is there");
        loop {
            let kind = read(&mut socket, 1)[0];
            let len = word(&mut socket) as usize;
            let body = read(&mut socket, len - 4);
            assert_eq!(kind, b'Q', "{}", body.escape_ascii());
            let query = String::from_utf8_lossy(&body[..body.len() - 1]).into_owned();
            if query.starts_with("START_REPLICATION") {
                socket.write_all(&message(b'W', &[0, 0, 0])).expect("the relay is there");
                return Primary { socket, frame: Vec::with_capacity(256 << 10) };
            }
            socket.write_all(&answer(&query, system, start)).expect("the relay is there");
        }
    }

    /// Sends WAL as one message.
    pub(crate) fn send(&mut self, at: Lsn, wal: &[u8]) {
        let send_time = PgTimestamp::from_system_time(SystemTime::now());
        let header = XLogDataHeader { start: at, end: at.advance(wal.len() as u64), send_time };
        self.frame.clear();
        self.frame.extend_from_slice(&header.frame(wal.len() as u32));
        self.frame.extend_from_slice(wal);
        self.socket.write_all(&self.frame).expect("the relay takes it");
    }

    /// Waits until everything before `end` is flushed.
    pub(crate) fn wait_for_flush(&mut self, end: Lsn) {
        const FEEDBACK: usize = 25;
        let mut prefix = [0; 6];
        loop {
            self.socket.read_exact(&mut prefix).expect("the relay reports");
            let mut body = [0; StandbyStatusUpdate::LEN];
            body[0] = prefix[5];
            let len = if prefix[5] == b'r' { StandbyStatusUpdate::LEN } else { FEEDBACK };
            self.socket.read_exact(&mut body[1..len]).expect("the relay reports");
            if let Ok(ClientMessage::Status(status)) = ClientMessage::decode(&body[..len])
                && status.flush >= Some(end)
            {
                return;
            }
        }
    }
}

fn read(socket: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    socket.read_exact(&mut bytes).expect("the relay sends it");
    bytes
}

fn word(socket: &mut TcpStream) -> u32 {
    let mut bytes = [0; 4];
    socket.read_exact(&mut bytes).expect("the relay sends it");
    u32::from_be_bytes(bytes)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind], &(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
}

fn welcome() -> Vec<u8> {
    [
        message(b'R', &[0; 4]),
        message(b'S', b"server_version\x0018.1\0"),
        message(b'S', b"in_hot_standby\0off\0"),
        message(b'K', &[0, 0, 0, 42, 1, 2, 3, 4]),
        message(b'Z', b"I"),
    ]
    .concat()
}

fn answer(query: &str, system: &str, start: Lsn) -> Vec<u8> {
    let start = start.to_string();
    let row = match query.split(' ').collect::<Vec<_>>()[..] {
        ["IDENTIFY_SYSTEM"] => vec![system, "1", &start, ""],
        ["SHOW", "wal_segment_size"] => vec!["16MB"],
        ["SHOW", "max_connections"] => vec!["100"],
        ["SHOW", _] => vec![""],
        ["READ_REPLICATION_SLOT", _] => vec!["physical", &start, "1"],
        _ => panic!("nobody has told the primary what to answer to {query}"),
    };
    let count = (row.len() as u16).to_be_bytes();
    let columns = [&count[..], &[&b"c\0"[..], &[0; 18]].concat().repeat(row.len())].concat();
    let values =
        row.iter().flat_map(|value| [&(value.len() as u32).to_be_bytes(), value.as_bytes()].concat());
    let data: Vec<u8> = count.into_iter().chain(values).collect();
    [message(b'T', &columns), message(b'D', &data), message(b'C', b"OK\0"), message(b'Z', b"I")].concat()
}
