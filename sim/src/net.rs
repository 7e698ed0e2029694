//! Lines: connections whose bytes take their time, come in pieces, and may never come.

use std::collections::BTreeMap;

use crate::context::NodeId;
use crate::random::Random;

pub(crate) type ConnId = u64;

/// An end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    pub(crate) fn other(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

/// What a line takes before its sender has to wait, bytes.
const ROOM: usize = 192 << 10;
/// What comes at once and is longer is of a stream, bytes.
const STREAMED: usize = 512;

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) client: NodeId,
    pub(crate) server: NodeId,
    /// Microseconds on the way.
    delay: u64,
    /// Nothing comes, in neither direction.
    is_black_hole: bool,
    /// One of so many deliveries has a bit of it flipped; 0 for none.
    flips: u64,
    /// By who is to get it.
    to_client: Pipe,
    to_server: Pipe,
}

#[derive(Debug, Default)]
struct Pipe {
    bytes: Vec<u8>,
    taken: usize,
    /// Whether who gets it has closed its side.
    is_deaf: bool,
    /// Nothing comes behind these bytes.
    is_ended: bool,
    /// An event is under way.
    is_due: bool,
    /// Who gets it does not read.
    is_paused: bool,
}

/// What comes out of a line.
#[derive(Debug)]
pub(crate) enum Delivery {
    Nothing,
    Bytes(Vec<u8>),
    Closed,
}

#[derive(Debug, Default)]
pub(crate) struct Lines {
    conns: BTreeMap<ConnId, Conn>,
    next: ConnId,
    due: Vec<(ConnId, Side, u64)>,
    /// What a node has sent that may lose its power before that has left it.
    held: Option<Vec<Held>>,
}

#[derive(Debug)]
enum Held {
    /// So many bytes are on the line to this side already.
    Bytes(ConnId, Side, usize),
    Close(ConnId, Side),
}

impl Conn {
    fn pipe(&mut self, to: Side) -> &mut Pipe {
        match to {
            Side::Client => &mut self.to_client,
            Side::Server => &mut self.to_server,
        }
    }

    pub(crate) fn node(&self, side: Side) -> NodeId {
        match side {
            Side::Client => self.client,
            Side::Server => self.server,
        }
    }
}

impl Pipe {
    fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    fn has_news(&self) -> bool {
        !self.is_deaf && (self.len() > 0 || self.is_ended)
    }
}

impl Lines {
    /// Asks for a connection.
    pub(crate) fn open(&mut self, client: NodeId, server: NodeId, delay: u64, flips: u64) -> ConnId {
        self.next += 1;
        let (to_client, to_server) = (Pipe::default(), Pipe::default());
        let conn = Conn { client, server, delay, is_black_hole: false, flips, to_client, to_server };
        self.conns.insert(self.next, conn);
        self.next
    }

    pub(crate) fn get(&self, conn: ConnId) -> Option<&Conn> {
        self.conns.get(&conn)
    }

    pub(crate) fn ids(&self) -> Vec<ConnId> {
        self.conns.keys().copied().collect()
    }

    /// Whether something is there for this side that it has not got.
    pub(crate) fn has_unread(&self, conn: ConnId, to: Side) -> bool {
        let Some(line) = self.conns.get(&conn).filter(|line| !line.is_black_hole) else { return false };
        let pipe = if to == Side::Client { &line.to_client } else { &line.to_server };
        pipe.has_news()
    }

    /// How much more is taken from this side.
    pub(crate) fn room(&self, conn: ConnId, from: Side) -> usize {
        let Some(line) = self.conns.get(&conn) else { return ROOM };
        let pipe = if from == Side::Client { &line.to_server } else { &line.to_client };
        ROOM.saturating_sub(pipe.len())
    }

    pub(crate) fn write(&mut self, conn: ConnId, from: Side, bytes: &[u8]) {
        let Some(line) = self.conns.get_mut(&conn) else { return };
        let pipe = line.pipe(from.other());
        let is_closed =
            |held: &Held| matches!(held, Held::Close(closed, by) if *closed == conn && *by == from);
        if pipe.is_ended || self.held.iter().flatten().any(is_closed) {
            return;
        }
        if pipe.is_deaf {
            // Whoever was there answers that there is nobody.
            line.pipe(from).is_ended = true;
            return self.make_due(conn, from);
        }
        pipe.bytes.extend_from_slice(bytes);
        match &mut self.held {
            Some(held) => held.push(Held::Bytes(conn, from.other(), bytes.len())),
            None => self.make_due(conn, from.other()),
        }
    }

    /// From now on what is written may be taken back.
    pub(crate) fn hold(&mut self) {
        self.held = Some(Vec::new());
    }

    /// What was held goes out, or is lost.
    pub(crate) fn release(&mut self, goes_out: bool) {
        for held in self.held.take().into_iter().flatten() {
            match held {
                Held::Bytes(conn, to, _) if goes_out => self.make_due(conn, to),
                Held::Bytes(conn, to, len) => {
                    if let Some(line) = self.conns.get_mut(&conn) {
                        let pipe = line.pipe(to);
                        pipe.bytes.truncate(pipe.bytes.len() - len);
                    }
                }
                Held::Close(conn, side) if goes_out => self.close(conn, side),
                Held::Close(conn, side) => self.vanish(conn, side),
            }
        }
    }

    /// A side is done: what it has sent comes still.
    pub(crate) fn close(&mut self, conn: ConnId, side: Side) {
        if let Some(held) = &mut self.held {
            return held.push(Held::Close(conn, side));
        }
        let Some(line) = self.conns.get_mut(&conn) else { return };
        line.pipe(side).is_deaf = true;
        line.pipe(side.other()).is_ended = true;
        self.make_due(conn, side.other());
        self.sweep(conn);
    }

    /// A side is gone without a word: the other one finds out when it says something.
    pub(crate) fn vanish(&mut self, conn: ConnId, side: Side) {
        if let Some(line) = self.conns.get_mut(&conn) {
            line.pipe(side).is_deaf = true;
            self.sweep(conn);
        }
    }

    /// The connection breaks somewhere in what is on its way.
    pub(crate) fn cut(&mut self, conn: ConnId, chance: &mut Random) {
        let Some(line) = self.conns.get_mut(&conn) else { return };
        for side in [Side::Client, Side::Server] {
            let pipe = line.pipe(side);
            let left = pipe.taken + chance.below(pipe.len() as u64 + 1) as usize;
            pipe.bytes.truncate(left);
            pipe.is_ended = true;
        }
        self.make_due(conn, Side::Client);
        self.make_due(conn, Side::Server);
    }

    pub(crate) fn set_black_hole(&mut self, conn: ConnId, is_black_hole: bool) {
        if let Some(line) = self.conns.get_mut(&conn) {
            line.is_black_hole = is_black_hole;
            self.make_due(conn, Side::Client);
            self.make_due(conn, Side::Server);
        }
    }

    pub(crate) fn set_flips(&mut self, conn: ConnId, flips: u64) {
        if let Some(line) = self.conns.get_mut(&conn) {
            line.flips = flips;
        }
    }

    /// A side reads no more, or again.
    pub(crate) fn pause(&mut self, conn: ConnId, side: Side, is_paused: bool) {
        if let Some(line) = self.conns.get_mut(&conn) {
            line.pipe(side).is_paused = is_paused;
            self.make_due(conn, side);
        }
    }

    fn make_due(&mut self, conn: ConnId, to: Side) {
        let Some(line) = self.conns.get_mut(&conn) else { return };
        let (delay, is_black_hole) = (line.delay, line.is_black_hole);
        let pipe = line.pipe(to);
        if !pipe.is_due && !is_black_hole && !pipe.is_paused && pipe.has_news() {
            pipe.is_due = true;
            self.due.push((conn, to, delay));
        }
    }

    pub(crate) fn take_due(&mut self) -> Vec<(ConnId, Side, u64)> {
        std::mem::take(&mut self.due)
    }

    /// What comes now, all that is on its way or a part of it.
    pub(crate) fn deliver(&mut self, conn: ConnId, to: Side, chance: &mut Random) -> Delivery {
        let Some(line) = self.conns.get_mut(&conn) else { return Delivery::Nothing };
        let (is_black_hole, flips) = (line.is_black_hole, line.flips);
        let pipe = line.pipe(to);
        pipe.is_due = false;
        if is_black_hole || pipe.is_paused || !pipe.has_news() {
            return Delivery::Nothing;
        }
        if pipe.len() == 0 {
            return Delivery::Closed;
        }
        let all = pipe.len() as u64;
        let count = match chance.below(10) {
            0 => 1 + chance.below(all.min(30)),
            1 | 2 => 1 + chance.below(all),
            _ => all,
        };
        let count = count.min(all) as usize;
        let mut bytes = match count == pipe.bytes.len() {
            true => std::mem::take(&mut pipe.bytes),
            false => pipe.bytes[pipe.taken..pipe.taken + count].to_vec(),
        };
        pipe.taken += count;
        if pipe.taken >= pipe.bytes.len() {
            (pipe.taken, pipe.bytes) = (0, Vec::new());
        }
        // Answers have no checksum at all, and are shorter.
        let may_flip = to == Side::Client && flips > 0 && bytes.len() >= STREAMED;
        if may_flip && chance.below(flips) == 0 {
            let at = chance.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << chance.below(8);
        }
        self.make_due(conn, to);
        Delivery::Bytes(bytes)
    }

    /// Forgets what nobody has any more.
    fn sweep(&mut self, conn: ConnId) {
        if self.conns.get(&conn).is_some_and(|line| line.to_client.is_deaf && line.to_server.is_deaf) {
            self.conns.remove(&conn);
        }
    }
}
