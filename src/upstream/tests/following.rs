//! Whom the relay follows, against a scripted server: what real ones show only at rare moments.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;
use walrelay_proto::course::CourseError;
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{
    ClientMessage, Lsn, PgTimestamp, SegNo, SegSize, SystemId, TimelineHistory, TimelineId, WalFileName,
    WalIdentity, XLogDataHeader,
};

use super::*;
use crate::store::{
    AppendError, Background, Identity, SlotPersistence, Store, StoreConfig, UpstreamParameters, WalWrite,
    Writer,
};
use crate::upstream::follow::Follower;
use crate::upstream::refill;

mod fenced;
mod hostile;

const SEG: u64 = 1 << 20;
const START: Lsn = Lsn::new(3 * SEG);

fn identity() -> Identity {
    Identity { system_id: SystemId(9), seg_size: SegSize::new(SEG).unwrap() }
}

fn generator(seed: u64) -> WalGenerator {
    let Identity { system_id, seg_size } = identity();
    WalGenerator::new(WalIdentity { system_id, seg_size }, TimelineId::FIRST, START, seed)
}

/// A server that has `wal` from `START` on.
#[derive(Clone)]
struct Script {
    /// Its system identifier.
    system: &'static str,
    /// Its timeline, and that one's history file.
    tli: u32,
    history: &'static str,
    wal: Vec<u8>,
    /// What is before has been removed.
    oldest: Lsn,
    /// What it sends behind this position of its WAL, instead of more, before it hangs up.
    noise: Option<(Lsn, Vec<u8>)>,
    /// Whether it has our slot.
    slot: bool,
    /// The timeline on which the slot's WAL begins.
    slot_tli: &'static str,
    /// Commands it got.
    asked: Arc<Mutex<Vec<String>>>,
    /// How often it had answered all that was asked: round trips.
    trips: Arc<AtomicUsize>,
    /// Positions confirmed to it, and feedback.
    told: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn of(wal: &[u8]) -> Script {
        Script {
            system: "9",
            tli: 1,
            history: "",
            wal: wal.to_vec(),
            oldest: START,
            noise: None,
            slot: true,
            slot_tli: "1",
            asked: Arc::default(),
            trips: Arc::default(),
            told: Arc::default(),
        }
    }

    fn end(&self) -> Lsn {
        START.advance(self.wal.len() as u64)
    }

    fn asked_for(&self, part: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|command| command.contains(part))
    }

    /// Serves one connection; returns the last position confirmed to it.
    async fn play(self, mut stream: TcpStream) -> Option<Lsn> {
        read_startup(&mut stream).await;
        stream.write_all(&welcome()).await.unwrap();
        let (mut confirmed, mut slot) = (None, self.slot);
        let mut input = BytesMut::with_capacity(1 << 16);
        loop {
            // What has arrived is answered; whoever sends more only now has waited for the answers.
            let (kind, body) = match cut(&mut input) {
                Some(message) => message,
                None => {
                    self.trips.fetch_add(1, Ordering::Relaxed);
                    match read_message(&mut stream, &mut input).await {
                        Some(message) => message,
                        None => break,
                    }
                }
            };
            if kind != b'Q' {
                break;
            }
            let command = String::from_utf8(body).unwrap().trim_end_matches('\0').to_owned();
            self.asked.lock().unwrap().push(command.clone());
            let words: Vec<&str> = command.split(' ').collect();
            match words[..] {
                ["START_REPLICATION", from, "TIMELINE", _] => {
                    self.stream(&mut stream, from.parse().unwrap(), false).await;
                }
                ["START_REPLICATION", "SLOT", ..] if !slot => {
                    let none = error("ERROR", "42704", "replication slot \"s\" does not exist");
                    stream.write_all(&[none, frame(b'Z', b"I")].concat()).await.unwrap();
                }
                ["CREATE_REPLICATION_SLOT", ..] => {
                    slot = true;
                    stream.write_all(&[frame(b'C', b"OK\0"), frame(b'Z', b"I")].concat()).await.unwrap();
                }
                ["START_REPLICATION", "SLOT", _, from, "TIMELINE", _] => {
                    let said = self.stream(&mut stream, from.parse().unwrap(), true).await;
                    confirmed = said.or(confirmed);
                }
                _ => stream.write_all(&self.answer(&words)).await.unwrap(),
            }
        }
        confirmed
    }

    fn answer(&self, words: &[&str]) -> Vec<u8> {
        let name = format!("{:08X}.history", self.tli);
        let (tli, end) = (self.tli.to_string(), self.end().to_string());
        let row = match words {
            ["IDENTIFY_SYSTEM"] => vec![self.system, &tli, &end, ""],
            ["SHOW", "wal_segment_size"] => vec!["1MB"],
            ["SHOW", "max_connections"] => vec!["4711"],
            ["SHOW", _] => vec!["on"],
            ["TIMELINE_HISTORY", _] => vec![&name, self.history],
            ["READ_REPLICATION_SLOT", _] if self.slot => vec!["physical", "0/300000", self.slot_tli],
            ["READ_REPLICATION_SLOT", _] => {
                let nulls = frame(b'D', &[&[0, 3][..], &[0xff; 12]].concat());
                return [columns(3), nulls, frame(b'C', b"OK\0"), frame(b'Z', b"I")].concat();
            }
            other => panic!("{other:?}"),
        };
        [columns(row.len()), data(&row), frame(b'C', b"OK\0"), frame(b'Z', b"I")].concat()
    }

    /// All there is from `from` on. Where it `ends`, the server stops when the last byte is confirmed, or the
    /// relay has gone, and the last confirmed position is returned; else it waits for the relay's CopyDone.
    async fn stream(&self, stream: &mut TcpStream, from: Lsn, ends: bool) -> Option<Lsn> {
        stream.write_all(&frame(b'W', &[0, 0, 0])).await.unwrap();
        if from < self.oldest {
            let gone = error("ERROR", "58P01", "requested WAL segment X has already been removed");
            stream.write_all(&[gone, frame(b'Z', b"I")].concat()).await.unwrap();
            return None;
        }
        let (mut reader, mut writer) = stream.split();
        let (until, noise) = self.noise.clone().unwrap_or((self.end(), Vec::new()));
        let sending = async {
            let mut at = from;
            let wal = &self.wal[..until.since(START) as usize];
            for piece in wal[from.since(START) as usize..].chunks(100_000) {
                let send_time = PgTimestamp::from_system_time(std::time::SystemTime::UNIX_EPOCH);
                let header = XLogDataHeader { start: at, end: self.end(), send_time };
                let message = [&header.frame(piece.len() as u32)[..], piece].concat();
                if writer.write_all(&message).await.is_err() {
                    return;
                }
                at = at.advance(piece.len() as u64);
            }
            if self.noise.is_some() {
                // The relay may have gone before the end of it.
                let _ = writer.write_all(&noise).await;
                let _ = writer.shutdown().await;
            }
        };
        let mut confirmed = None;
        let listening = async {
            while let Ok(kind) = reader.read_u8().await {
                // A relay that has gone may have left half a message.
                let Ok(len) = reader.read_u32().await else { return };
                let mut body = vec![0; usize::try_from(len).unwrap() - 4];
                let Ok(_) = reader.read_exact(&mut body).await else { return };
                match (kind, ClientMessage::decode(&body)) {
                    (b'd', Ok(ClientMessage::Status(status))) => {
                        confirmed = status.flush.or(confirmed);
                        self.told.lock().unwrap().extend(status.write.map(|lsn| lsn.to_string()));
                    }
                    (b'd', Ok(ClientMessage::Feedback(_))) => {
                        self.told.lock().unwrap().push("feedback".to_owned());
                    }
                    (b'c', _) => return,
                    _ => {}
                }
                if ends && confirmed == Some(self.end()) {
                    return;
                }
            }
        };
        tokio::join!(sending, listening);
        let last = match ends {
            true => frame(b'C', b"COPY 0\0"),
            false => [frame(b'c', b""), frame(b'C', b"START_STREAMING\0"), frame(b'Z', b"I")].concat(),
        };
        // The relay may have gone.
        let _ = stream.write_all(&last).await;
        confirmed
    }
}

/// The next message that has arrived already.
fn cut(input: &mut BytesMut) -> Option<(u8, Vec<u8>)> {
    let len = u32::from_be_bytes(input.get(1..5)?.try_into().unwrap()) as usize;
    let message = (input.len() > len).then(|| input.split_to(1 + len))?;
    Some((message[0], message[5..].to_vec()))
}

async fn read_message(stream: &mut TcpStream, input: &mut BytesMut) -> Option<(u8, Vec<u8>)> {
    loop {
        match stream.read_buf(input).await {
            Ok(1..) => {}
            _ => return None,
        }
        if let Some(message) = cut(input) {
            return Some(message);
        }
    }
}

pub(super) fn columns(count: usize) -> Vec<u8> {
    let mut body = u16::try_from(count).unwrap().to_be_bytes().to_vec();
    for _ in 0..count {
        body.extend_from_slice(b"c\0");
        body.extend_from_slice(&[0; 18]);
    }
    frame(b'T', &body)
}

pub(super) fn data(row: &[&str]) -> Vec<u8> {
    let mut body = u16::try_from(row.len()).unwrap().to_be_bytes().to_vec();
    for value in row {
        body.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
        body.extend_from_slice(value.as_bytes());
    }
    frame(b'D', &body)
}

/// A relay that holds some WAL.
struct Setup {
    store: Arc<Store>,
    writer: Writer,
    /// Whether the last server was shown as the one that is followed.
    was_followed: bool,
    _background: Background,
    dir: tempfile::TempDir,
}

impl Setup {
    fn holding(wal: &[u8]) -> Setup {
        let mut setup = Setup::waiting_at(START);
        setup.writer.append(START, wal).unwrap();
        setup.writer.commit();
        setup
    }

    /// Holds nothing, and knows where it begins.
    fn waiting_at(start: Lsn) -> Setup {
        let mut setup = Setup::empty();
        setup.store.attach(identity(), UpstreamParameters::default()).unwrap();
        setup.writer.begin(identity(), TimelineHistory::first(), start);
        setup
    }

    /// A new data directory.
    fn empty() -> Setup {
        Setup::at(crate::permissions::private_tempdir())
    }

    /// A start on a data directory.
    fn at(dir: tempfile::TempDir) -> Setup {
        let config = StoreConfig {
            data_dir: dir.path().to_owned(),
            wal_write: WalWrite::Pwrite,
            wal_keep_size: 1 << 30,
            max_slot_wal_keep_size: None,
            max_replication_slots: 4,
        };
        let (store, writer, background) = Store::open(config).unwrap();
        Setup { store, writer, was_followed: false, _background: background, dir }
    }

    /// The relay ends, in order: its threads would keep the directory.
    fn close(self) -> tempfile::TempDir {
        let Setup { store, writer, _background: background, dir, .. } = self;
        drop(writer);
        assert!(background.stop().is_none());
        drop(store);
        dir
    }

    /// One round with this server as the `hosts`-fold only one; what came of it.
    async fn round(&mut self, script: &Script, hosts: usize) -> (UpstreamError, Option<Lsn>) {
        let (listener, port) = listen().await;
        let script = script.clone();
        let over = CancellationToken::new();
        let ended = over.clone();
        let server = tokio::spawn(async move {
            let mut confirmed = None;
            loop {
                let stream = tokio::select! {
                    biased;
                    stream = listener.accept() => stream.unwrap().0,
                    () = ended.cancelled() => return confirmed,
                };
                confirmed = script.clone().play(stream).await.or(confirmed);
            }
        });
        let mut conninfo = info(port, "sslmode=disable");
        conninfo.hosts = vec![conninfo.hosts[0].clone(); hosts];
        let (followed, _) = Following::channel();
        let mut shown = followed.subscribe();
        let watching = tokio::spawn(async move { shown.wait_for(Option::is_some).await.is_ok() });
        let slot = "s".parse().unwrap();
        let config = UpstreamConfig {
            conninfo,
            slot,
            dbname: "postgres".to_owned(),
            wal_receiver_timeout: None.into(),
            shutdown_timeout: Duration::from_secs(10).into(),
            followed,
        };
        let mut follower = Follower::new(config, &self.writer, CancellationToken::new());
        let round = tokio::time::timeout(Duration::from_secs(30), follower.round(&mut self.writer));
        let error = round.await.expect("an end").unwrap_err().error;
        drop(follower);
        over.cancel();
        self.was_followed = watching.await.unwrap();
        (error, server.await.unwrap())
    }

    fn end(&self) -> Lsn {
        self.store.tip().unwrap().write_lsn
    }

    /// Nothing of a server has come to be here, nor anything of ours there.
    #[track_caller]
    fn is_untouched_by(&self, script: &Script) {
        assert!(!self.store.upstream_parameters().settings.contains_key("max_connections"));
        let kept = std::fs::read_to_string(self.dir.path().join("cluster.toml")).unwrap();
        assert!(!kept.contains("4711"), "{kept}");
        assert_eq!(self.store.history_file(TimelineId::new(2).unwrap()).unwrap(), None);
        assert!(!script.asked_for("CREATE_REPLICATION_SLOT"), "{:?}", script.asked);
        assert_eq!(*script.told.lock().unwrap(), Vec::<String>::new());
        assert!(!self.was_followed);
    }
}

/// Ends at the end of a segment, with the zeros behind an XLOG_SWITCH; half of the last MB is records.
fn up_to_a_boundary(seed: u64) -> WalGenerator {
    let mut wal = generator(seed);
    wal.fill(SEG as usize + 500_000);
    wal.switch_segment();
    assert_eq!(wal.position().offset_in_seg(identity().seg_size), 0);
    wal
}

fn follows(error: &UpstreamError) -> bool {
    error.to_string().contains("replication terminated by upstream server")
}

#[tokio::test]
async fn the_same_server_is_followed_and_then_known() {
    let mut wal = up_to_a_boundary(1);
    let mut setup = Setup::holding(wal.bytes());
    wal.record(5000);
    let script = Script::of(wal.bytes());
    let (error, confirmed) = setup.round(&script, 1).await;
    assert!(follows(&error) && setup.was_followed, "{error}");
    assert_eq!((setup.end(), confirmed), (wal.position(), Some(wal.position())));
    assert_eq!(setup.store.upstream_parameters().settings["max_connections"], "4711");
    // The zeros behind the XLOG_SWITCH are not fetched along.
    assert!(script.asked_for("START_REPLICATION 0/478000 TIMELINE 1"), "{:?}", script.asked);
    assert!(script.asked_for("START_REPLICATION SLOT \"s\" 0/500000 TIMELINE 1"), "{:?}", script.asked);
}

/// Where the slot is there, the comparison is the first part of the stream.
#[tokio::test]
async fn a_server_that_comes_back_is_followed_again_in_two_round_trips() {
    let mut wal = generator(9);
    wal.fill(400_000);
    let mut setup = Setup::holding(&wal.bytes()[..399_000]);
    let held = setup.end();
    wal.fill(500_000);
    let script = Script::of(wal.bytes());
    let (error, confirmed) = setup.round(&script, 1).await;
    assert!(follows(&error) && setup.was_followed, "{error}");
    assert_eq!((setup.end(), confirmed), (wal.position(), Some(wal.position())));
    let asked = script.asked.lock().unwrap().clone();
    let from = held.rewind(1).page_start().rewind(8192);
    assert_eq!(asked.last().unwrap(), &format!("START_REPLICATION SLOT \"s\" {from} TIMELINE 1"));
    assert!(asked.len() > 15, "{asked:?}");
    // What is asked; the stream.
    assert_eq!(script.trips.load(Ordering::Relaxed), 2 + 1, "the last one is the end: {asked:?}");
}

#[tokio::test]
async fn a_new_server_with_much_to_send_is_not_drained() {
    let mut wal = generator(10);
    wal.fill(400_000);
    let mut setup = Setup::holding(wal.bytes());
    wal.fill(4 * SEG as usize);
    let script = Script { slot: false, ..Script::of(wal.bytes()) };
    let (error, confirmed) = setup.round(&script, 1).await;
    assert!(follows(&error) && setup.was_followed, "{error}");
    assert_eq!((setup.end(), confirmed), (wal.position(), Some(wal.position())));
    let asked = script.asked.lock().unwrap().clone();
    let streams: Vec<_> = asked.iter().filter(|asked| asked.contains("_REPLICATION")).collect();
    let expected = ["READ", "START", "READ", "CREATE", "READ", "START"];
    assert_eq!(streams.len(), expected.len(), "{streams:?}");
    assert!(streams.iter().zip(expected).all(|(asked, word)| asked.starts_with(word)), "{streams:?}");
}

#[tokio::test]
async fn a_new_server_with_little_to_send_is_followed_on_one_connection() {
    let mut wal = generator(11);
    wal.fill(400_000);
    let mut setup = Setup::holding(wal.bytes());
    wal.fill(100_000);
    for tli in [1, 1] {
        let script = Script { tli, slot: false, ..Script::of(wal.bytes()) };
        let (error, _) = setup.round(&script, 1).await;
        assert!(follows(&error), "{error}");
        let asked = script.asked.lock().unwrap().clone();
        assert_eq!(asked.iter().filter(|asked| *asked == "IDENTIFY_SYSTEM").count(), 1, "{asked:?}");
        assert!(script.asked_for("CREATE_REPLICATION_SLOT"), "{asked:?}");
    }
}

#[tokio::test]
async fn other_bytes_before_a_segment_boundary_are_found() {
    let mut wal = up_to_a_boundary(1);
    let mut setup = Setup::holding(wal.bytes());
    let held = setup.end();
    wal.record(5000);
    let mut script = Script::of(wal.bytes());
    let last = held.since(START) as usize - 1;
    let before_zeros = wal.bytes()[..last].iter().rposition(|&byte| byte != 0).unwrap() - 3000;
    script.wal[before_zeros] ^= 1;
    let (error, confirmed) = setup.round(&script, 1).await;
    let UpstreamError::Append(AppendError::Diverged { tli, lsn }) = error else { panic!("{error}") };
    assert_eq!((tli, lsn), (TimelineId::FIRST, START.advance(before_zeros as u64)));
    assert_eq!((setup.end(), confirmed), (held, None));
    setup.is_untouched_by(&script);
}

#[tokio::test]
async fn other_bytes_within_a_segment_are_found_before_anything_is_left_there() {
    let mut wal = generator(2);
    wal.fill(400_000);
    let mut setup = Setup::holding(wal.bytes());
    wal.fill(900_000);
    for slot in [true, false] {
        let mut script = Script { slot, ..Script::of(wal.bytes()) };
        script.wal[setup.end().since(START) as usize - 3000] ^= 1;
        let (error, _) = setup.round(&script, 1).await;
        assert!(matches!(error, UpstreamError::Append(AppendError::Diverged { .. })), "{error}");
        setup.is_untouched_by(&script);
    }
}

/// Somebody has truncated the file that is to be compared, which would kill who loads from its map.
#[tokio::test]
async fn what_cannot_be_read_here_is_told_and_keeps_from_following() {
    let mut wal = generator(12);
    wal.fill(400_000);
    let mut setup = Setup::holding(wal.bytes());
    wal.fill(900_000);
    let written = *setup.store.written().borrow();
    setup.store.flushed().wait_for(|flushed| *flushed == written).await.unwrap();
    let path = setup.store.wal_path("000000010000000000000003.partial");
    std::fs::File::options().write(true).open(path).unwrap().set_len(100_000).unwrap();
    for slot in [true, false] {
        let script = Script { slot, ..Script::of(wal.bytes()) };
        let (error, confirmed) = setup.round(&script, 1).await;
        let text = error.to_string();
        assert!(error.needs_action() && confirmed.is_none(), "{text}");
        assert!(
            text.contains("could not read WAL segment 000000010000000000000003: a page cannot be read"),
            "{text}"
        );
        setup.is_untouched_by(&script);
    }
}

/// A server that got only half of the zeros behind an XLOG_SWITCH has old bytes there.
#[tokio::test]
async fn what_lies_behind_a_switch_record_does_not_count() {
    let mut wal = up_to_a_boundary(1);
    let mut setup = Setup::holding(wal.bytes());
    let boundary = wal.bytes().len();
    wal.record(5000);
    let mut script = Script::of(wal.bytes());
    script.wal[boundary - 8192..boundary].fill(0xA5);
    let (error, confirmed) = setup.round(&script, 1).await;
    assert!(follows(&error), "{error}");
    assert_eq!(confirmed, Some(wal.position()));
}

#[tokio::test]
async fn where_the_server_has_removed_the_segment_before_the_next_record_decides() {
    let mut wal = up_to_a_boundary(1);
    let mut setup = Setup::holding(wal.bytes());
    let held = setup.end();

    // Another cluster's first record there names another predecessor.
    let mut other = generator(5);
    other.fill(SEG as usize + 300_000);
    other.switch_segment();
    assert_eq!(other.position(), held);
    other.record(5000);
    let script = Script { oldest: held, ..Script::of(other.bytes()) };
    let (error, confirmed) = setup.round(&script, 1).await;
    let UpstreamError::Course(CourseError::Seam { tli, held: at, .. }) = &error else { panic!("{error}") };
    assert_eq!((*tli, *at, setup.end()), (TimelineId::FIRST, held, held));
    assert!(confirmed <= Some(held), "{confirmed:?}");
    let said = error.to_string();
    let expected = format!("does not continue timeline 1 that is held here up to {held}");
    assert!(said.contains(&expected), "{said}");

    wal.record(5000);
    let script = Script { oldest: held, ..Script::of(wal.bytes()) };
    let (error, confirmed) = setup.round(&script, 1).await;
    assert!(follows(&error), "{error}");
    assert_eq!((setup.end(), confirmed), (wal.position(), Some(wal.position())));
}

#[tokio::test]
async fn damage_in_the_first_new_record_is_no_continuation() {
    let mut wal = generator(3);
    wal.fill(200_000);
    let good = *wal.record_ends().last().unwrap();
    let mut setup = Setup::holding(&wal.bytes()[..good.since(START) as usize]);
    wal.record(5000);
    let mut script = Script::of(wal.bytes());
    *script.wal.last_mut().unwrap() ^= 1;
    let (error, confirmed) = setup.round(&script, 1).await;
    assert!(
        matches!(error, UpstreamError::Course(CourseError::Seam { held, .. }) if held == good),
        "{error}"
    );
    assert!(setup.end() == good && confirmed <= Some(good));
}

#[tokio::test]
async fn a_server_behind_is_passed_over_where_there_are_others() {
    let mut wal = generator(4);
    wal.fill(300_000);
    let behind = wal.bytes().to_vec();
    wal.fill(300_000);
    let mut setup = Setup::holding(wal.bytes());
    let held = setup.writer.position().unwrap().lsn;
    let script = Script::of(&behind);
    let (error, _) = setup.round(&script, 2).await;
    let UpstreamError::Course(CourseError::Behind { tli, theirs, ours }) = error else { panic!("{error}") };
    assert_eq!((tli, theirs, ours), (TimelineId::FIRST, script.end(), held));
    setup.is_untouched_by(&script);
}

#[tokio::test]
async fn an_older_fork_of_which_nothing_is_held_is_refused() {
    let mut wal = generator(6);
    wal.fill(300_000);
    let mut setup = Setup::holding(wal.bytes());
    for history in ["1\t0/280000\tx\n", "1\t0/300000\tx\n"] {
        let script = Script { tli: 2, history, ..Script::of(wal.bytes()) };
        let (error, _) = setup.round(&script, 1).await;
        let said = error.to_string();
        assert!(said.contains("timeline 2 cannot begin at 0/"), "{said}");
        assert_eq!(setup.store.history().tli(), TimelineId::FIRST);
        setup.is_untouched_by(&script);
    }
}

/// A failover to a server that had less than where the relay was to begin, before it had got anything.
#[tokio::test]
async fn a_relay_that_holds_nothing_begins_anew_where_its_beginning_is_on_no_way() {
    let mut setup = Setup::waiting_at(Lsn::new(5 * SEG));
    setup.writer.show_start();
    let reserve = setup.store.create_reserving_slot(&"c".parse().unwrap(), SlotPersistence::Persistent);
    reserve.unwrap();
    // Half a record of what was never to be.
    let Identity { system_id, seg_size } = identity();
    let id = WalIdentity { system_id, seg_size };
    let mut lost = WalGenerator::new(id, TimelineId::FIRST, Lsn::new(5 * SEG), 20);
    lost.record(300_000);
    setup.writer.append(Lsn::new(5 * SEG), &lost.bytes()[..8192]).unwrap();
    let in_wal = |name: &str| setup.dir.path().join("pg_wal").join(name);
    let abandoned = in_wal("000000010000000000000005.partial");
    assert!(abandoned.exists() && setup.writer.verified().is_some(), "the page's header");
    setup.writer.commit();
    let second = TimelineId::new(2).unwrap();
    let mut wal = WalGenerator::new(id, second, START, 21);
    wal.fill(600_000);
    let history = "1\t0/280000\tx\n";
    let older = Script { slot_tli: "1", ..Script::of(&[]) };
    let (error, _) =
        setup.round(&Script { tli: 2, history, slot_tli: "2", ..Script::of(wal.bytes()) }, 1).await;
    assert!(follows(&error) && setup.was_followed, "{error}");
    let tip = setup.store.tip().unwrap();
    assert_eq!((tip.tli, tip.write_lsn), (second, wal.position()));
    assert_eq!(setup.store.slots().get("c").unwrap().restart_lsn, Some(START));
    assert!(!abandoned.exists() && setup.store.begun_at().is_none());
    let (error, _) = setup.round(&older, 1).await;
    assert!(matches!(error, UpstreamError::Course(CourseError::OldTimeline { .. })), "{error}");
}

#[tokio::test]
async fn a_relay_that_holds_nothing_waits_where_it_did_for_the_same_server() {
    let mut setup = Setup::waiting_at(START);
    setup.writer.show_start();
    let mut wal = generator(22);
    wal.fill(200_000);
    // Its slot says another position than where the relay began, which is a promise to consumers.
    let script = Script { slot_tli: "2", ..Script::of(wal.bytes()) };
    let (error, confirmed) = setup.round(&script, 1).await;
    assert!(follows(&error), "{error}");
    assert_eq!((setup.store.begun_at(), confirmed), (Some(START), Some(wal.position())));
}

/// Messages reach over the ends of segments.
#[tokio::test]
async fn missing_segments_are_stored_while_they_come() {
    let mut wal = generator(23);
    wal.fill(6 * SEG as usize + 300_000);
    let setup = Setup::holding(wal.bytes());
    let in_wal =
        |segment: u64| setup.dir.path().join(format!("pg_wal/{:024X}", (1u128 << 64) + u128::from(segment)));
    let deadline = deadline();
    while !in_wal(8).exists() {
        assert!(Instant::now() < deadline, "no names");
        tokio::task::yield_now().await;
    }
    // The second time one of them is not missing any more when its turn comes.
    for missing in [vec![4, 5, 6], vec![4, 6]] {
        for segment in &missing {
            std::fs::remove_file(in_wal(*segment)).unwrap();
        }
        let (listener, port) = listen().await;
        let script = Script::of(wal.bytes());
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            script.play(stream).await
        });
        let conninfo = info(port, "sslmode=disable");
        let run = [4, 5, 6].map(|number| WalFileName::new(TimelineId::FIRST, SegNo::new(number)));
        match missing.len() {
            3 => refill::fill_from(&conninfo, &setup.store, &conninfo.hosts[0]).await,
            _ => refill::fill_run(&conninfo, &setup.store, &conninfo.hosts[0], &run).await.unwrap(),
        }
        server.await.unwrap();
        assert!(setup.store.missing_segments().unwrap().is_empty());
        for segment in [4, 5, 6] {
            let from = ((segment - 3) * SEG) as usize;
            assert!(std::fs::read(in_wal(segment)).unwrap() == wal.bytes()[from..][..SEG as usize]);
        }
    }
}

/// A server goes on sending until it hears that it is enough.
#[tokio::test]
async fn the_version_of_unknown_wal_is_looked_up_where_the_least_follows() {
    let mut wal = generator(30);
    wal.fill(900_000);
    let script = Script::of(wal.bytes());
    let (error, confirmed) = Setup::empty().round(&script, 1).await;
    assert!(follows(&error), "{error}");
    assert_eq!(confirmed, Some(wal.position()));
    let page = script.end().rewind(24).page_start();
    assert!(script.asked_for(&format!("START_REPLICATION {page} TIMELINE 1")), "{:?}", script.asked);
    assert!(!script.asked_for("START_REPLICATION 0/300000 TIMELINE 1"), "{:?}", script.asked);

    // Behind a switch record there are zeros.
    let wal = up_to_a_boundary(31);
    let script = Script::of(wal.bytes());
    let (error, _) = Setup::empty().round(&script, 1).await;
    assert!(follows(&error), "{error}");
    assert!(script.asked_for("START_REPLICATION 0/400000 TIMELINE 1"), "{:?}", script.asked);
}

#[tokio::test]
async fn a_fork_at_a_segment_boundary_is_compared_too() {
    let mut wal = up_to_a_boundary(7);
    let boundary = wal.position();
    wal.fill(100_000);
    let mut setup = Setup::holding(wal.bytes());
    let mut script = Script::of(&wal.bytes()[..boundary.since(START) as usize]);
    (script.tli, script.history) = (2, "1\t0/500000\tx\n");
    assert_eq!(boundary, Lsn::new(5 * SEG));
    let records = script.wal.iter().rposition(|&byte| byte != 0).unwrap();
    script.wal[records - 1000] ^= 1;
    let (error, _) = setup.round(&script, 1).await;
    assert!(matches!(error, UpstreamError::Append(AppendError::Diverged { .. })), "{error}");
    assert!(script.asked_for("START_REPLICATION 0/478000 TIMELINE 1"), "{:?}", script.asked);
    setup.is_untouched_by(&script);
}

#[tokio::test]
async fn a_sibling_leaves_no_trace() {
    let mut wal = generator(8);
    wal.fill(300_000);
    let mut setup = Setup::holding(wal.bytes());
    let second = TimelineId::new(2).unwrap();
    let end = setup.end();
    let ours = format!("1\t{end}\tx\n");
    setup.writer.switch_timeline(TimelineHistory::parse(second, ours.as_bytes()).unwrap()).unwrap();
    let script = Script { tli: 2, history: "1\t0/340000\tx\n", ..Script::of(wal.bytes()) };
    let (error, _) = setup.round(&script, 1).await;
    let said = error.to_string();
    let theirs =
        "upstream is on timeline 2 (1 until 0/340000), which does not descend from timeline 2 (1 until";
    assert!(said.starts_with(theirs), "{said}");
    setup.is_untouched_by(&script);
    let script = Script::of(wal.bytes());
    let (error, _) = setup.round(&script, 1).await;
    assert!(matches!(error, UpstreamError::Course(CourseError::OldTimeline { .. })), "{error}");
    setup.is_untouched_by(&script);
}
