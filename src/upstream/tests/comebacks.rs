//! Trees of promotions: wherever in one the relay is, it comes to the newest timeline, or says why not.
//!
//! The servers are scripted, the relay's side is the real one, with a store that is closed and opened again between.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;
use walrelay_proto::course::CourseError;
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{
    ClientMessage, Lsn, PgTimestamp, SegSize, SystemId, TimelineHistory, TimelineId, WalIdentity,
    XLogDataHeader,
};

use super::following::{columns, data};
use super::*;
use crate::store::{
    AppendError, Background, HeldTimeline, SlotPersistence, Store, StoreConfig, WalWrite, Writer,
};
use crate::upstream::follow::Follower;

const SEG: u64 = 1 << 20;
const START: Lsn = Lsn::new(3 * SEG);

fn id() -> WalIdentity {
    WalIdentity { system_id: SystemId(9), seg_size: SegSize::new(SEG).unwrap() }
}

/// A timeline: where it came from, and how far it got at several moments.
#[derive(Clone)]
struct Branch {
    history: TimelineHistory,
    file: String,
    /// WAL from `START` on, at each moment.
    moments: Vec<WalGenerator>,
}

impl Branch {
    fn root(seed: u64, sizes: &[usize]) -> Branch {
        let wal = WalGenerator::new(id(), TimelineId::FIRST, START, seed);
        Branch { history: TimelineHistory::first(), file: String::new(), moments: Vec::new() }
            .grown(wal, sizes)
    }

    /// Promoted at a moment of this one.
    fn child(&self, number: u32, moment: usize, sizes: &[usize]) -> Branch {
        let mut wal = self.moments[moment].clone();
        let tli = TimelineId::new(number).unwrap();
        let file = format!("{}{}\t{}\tpromoted\n\n", self.file, self.history.tli(), wal.position());
        let history = TimelineHistory::parse(tli, file.as_bytes()).unwrap();
        wal.switch_timeline(tli);
        wal.commit();
        Branch { history, file, moments: Vec::new() }.grown(wal, sizes)
    }

    fn grown(mut self, mut wal: WalGenerator, sizes: &[usize]) -> Branch {
        for size in sizes {
            wal.fill(*size);
            wal.commit();
            if size % 3 == 0 {
                wal.switch_segment();
            }
            self.moments.push(wal.clone());
        }
        self
    }

    fn tli(&self) -> TimelineId {
        self.history.tli()
    }

    fn server(&self, moment: usize) -> Server {
        Server {
            history: self.history.clone(),
            file: self.file.clone(),
            wal: self.moments[moment].bytes().to_vec().into(),
            cut: None,
            confirmed: Arc::default(),
        }
    }

    fn newest(&self) -> Server {
        self.server(self.moments.len() - 1)
    }
}

/// A server that is on a timeline, with all of its WAL.
#[derive(Clone)]
struct Server {
    history: TimelineHistory,
    file: String,
    wal: Arc<[u8]>,
    /// It dies when it has sent so many bytes through a slot.
    cut: Option<usize>,
    /// The last position confirmed to it on each timeline.
    confirmed: Arc<Mutex<BTreeMap<TimelineId, Lsn>>>,
}

impl Server {
    fn end(&self) -> Lsn {
        START.advance(self.wal.len() as u64)
    }

    async fn play(self, mut stream: TcpStream) {
        read_startup(&mut stream).await;
        stream.write_all(&welcome()).await.unwrap();
        while let Ok(kind) = stream.read_u8().await {
            let len = stream.read_u32().await.unwrap();
            let mut body = vec![0; usize::try_from(len).unwrap() - 4];
            stream.read_exact(&mut body).await.unwrap();
            if kind != b'Q' {
                return;
            }
            let command = String::from_utf8(body).unwrap().trim_end_matches('\0').to_owned();
            let words: Vec<&str> = command.split(' ').collect();
            let goes_on = match words[..] {
                ["START_REPLICATION", from, "TIMELINE", tli] => {
                    self.start(&mut stream, from, tli, false).await
                }
                ["START_REPLICATION", "SLOT", _, from, "TIMELINE", tli] => {
                    self.start(&mut stream, from, tli, true).await
                }
                _ => stream.write_all(&self.answer(&words)).await.is_ok(),
            };
            if !goes_on {
                return;
            }
        }
    }

    fn answer(&self, words: &[&str]) -> Vec<u8> {
        let (tli, end) = (self.history.tli().to_string(), self.end().to_string());
        let (name, lines);
        let row = match words {
            ["IDENTIFY_SYSTEM"] => vec!["9", &tli, &end, ""],
            ["SHOW", "wal_segment_size"] => vec!["1MB"],
            ["SHOW", _] => vec!["on"],
            ["TIMELINE_HISTORY", number] => {
                let number = TimelineId::new(number.parse().unwrap()).unwrap();
                let Some(known) = self.history.up_to(number) else { return refusal("58P01", "no such file") };
                name = number.history_file_name();
                lines = self.file.split_inclusive("\n\n").take(known.ancestors().len()).collect::<String>();
                vec![&name[..], &lines[..]]
            }
            ["READ_REPLICATION_SLOT", _] => vec!["physical", "0/300000", "1"],
            other => panic!("{other:?}"),
        };
        [columns(row.len()), data(&row), frame(b'C', b"OK\0"), frame(b'Z', b"I")].concat()
    }

    /// As a walsender does it; whether the connection goes on.
    async fn start(&self, stream: &mut TcpStream, from: &str, tli: &str, slot: bool) -> bool {
        let (from, tli) = (from.parse::<Lsn>().unwrap(), TimelineId::new(tli.parse().unwrap()).unwrap());
        let left = self.history.switch_point(tli);
        let end = left.map_or(self.end(), |(left_at, _)| left_at);
        if !self.history.contains(tli) || from > end {
            return stream.write_all(&refusal("XX000", "not in this server's history")).await.is_ok();
        }
        let next = left.map_or(Vec::new(), |(at, next)| {
            [columns(2), data(&[&next.to_string(), &at.to_string()]), frame(b'C', b"SELECT\0")].concat()
        });
        let tail = [&next[..], &frame(b'C', b"START_STREAMING\0"), &frame(b'Z', b"I")].concat();
        if left.is_some() && from == end {
            return stream.write_all(&tail).await.is_ok();
        }
        if stream.write_all(&frame(b'W', &[0, 0, 0])).await.is_err() {
            return false;
        }
        let (mut reader, mut writer) = stream.split();
        let cut = self.cut.filter(|_| slot);
        let sending = async {
            let mut at = from;
            let bytes = &self.wal[from.since(START) as usize..end.since(START) as usize];
            for piece in bytes[..cut.unwrap_or(bytes.len()).min(bytes.len())].chunks(100_000) {
                let send_time = PgTimestamp::from_system_time(std::time::SystemTime::UNIX_EPOCH);
                let header = XLogDataHeader { start: at, end, send_time }.frame(piece.len() as u32);
                if writer.write_all(&[&header[..], piece].concat()).await.is_err() {
                    return;
                }
                at = at.advance(piece.len() as u64);
            }
            if left.is_some() && cut.is_none() {
                let _ = writer.write_all(&frame(b'c', b"")).await;
            }
        };
        let listening = async {
            while let Ok(kind) = reader.read_u8().await {
                let Ok(len) = reader.read_u32().await else { return false };
                let mut body = vec![0; usize::try_from(len).unwrap() - 4];
                if reader.read_exact(&mut body).await.is_err() {
                    return false;
                }
                if let (b'd', Ok(ClientMessage::Status(status))) = (kind, ClientMessage::decode(&body))
                    && let Some(flush) = status.flush
                {
                    let mut confirmed = self.confirmed.lock().unwrap();
                    let last = confirmed.entry(tli).or_insert(flush);
                    *last = flush.max(*last);
                    drop(confirmed);
                    if left.is_none() && flush == self.end() {
                        return false;
                    }
                }
                // One that dies has sent enough, whatever it hears; nothing is confirmed before it was compared.
                if kind == b'd' && cut.is_some() {
                    return false;
                }
                if kind == b'c' {
                    return true;
                }
            }
            false
        };
        let ((), is_done) = tokio::join!(sending, listening);
        if !is_done {
            let stopped = if cut.is_none() { frame(b'C', b"COPY 0\0") } else { Vec::new() };
            let _ = stream.write_all(&stopped).await;
            return false;
        }
        let ours = if left.is_some() && cut.is_none() { Vec::new() } else { frame(b'c', b"") };
        stream.write_all(&[ours, tail].concat()).await.is_ok()
    }
}

fn refusal(sqlstate: &str, text: &str) -> Vec<u8> {
    [error("ERROR", sqlstate, text), frame(b'Z', b"I")].concat()
}

fn is_the_end_of_a_stream(error: &UpstreamError) -> bool {
    use CourseError::{ServerStopped, StreamEnded};
    matches!(error, UpstreamError::Stream(_) | UpstreamError::Course(ServerStopped | StreamEnded))
}

/// A relay with a data directory of its own.
struct Relay {
    dir: tempfile::TempDir,
    open: Option<(Arc<Store>, Writer, Background)>,
}

impl Relay {
    fn new() -> Relay {
        let mut relay = Relay { dir: crate::permissions::private_tempdir(), open: None };
        relay.reopen();
        relay
    }

    fn reopen(&mut self) {
        if let Some((_, writer, background)) = self.open.take() {
            drop(writer);
            background.stop();
        }
        let config = StoreConfig {
            data_dir: self.dir.path().to_owned(),
            wal_write: WalWrite::Pwrite,
            wal_keep_size: 1 << 30,
            max_slot_wal_keep_size: None,
            max_replication_slots: 4,
        };
        self.open = Some(Store::open(config).unwrap());
    }

    fn store(&self) -> &Arc<Store> {
        &self.open.as_ref().unwrap().0
    }

    fn writer(&mut self) -> &mut Writer {
        &mut self.open.as_mut().unwrap().1
    }

    fn tli(&self) -> u32 {
        self.store().history().tli().as_u32()
    }

    /// Two hosts that are the same server: one that is behind is not waited for.
    async fn meet(&mut self, server: &Server) -> UpstreamError {
        let (listener, port) = listen().await;
        let server = server.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                server.clone().play(stream).await;
            }
        });
        let mut conninfo = info(port, "sslmode=disable");
        conninfo.hosts = vec![conninfo.hosts[0].clone(); 2];
        let (followed, _) = Following::channel();
        let slot = "s".parse().unwrap();
        let (wal_receiver_timeout, shutdown_timeout) = (None.into(), Duration::from_secs(10).into());
        let dbname = "postgres".to_owned();
        let config =
            UpstreamConfig { conninfo, slot, dbname, wal_receiver_timeout, shutdown_timeout, followed };
        let mut follower = Follower::new(config, self.writer(), CancellationToken::new());
        let round = tokio::time::timeout(Duration::from_secs(60), follower.round(self.writer()));
        let error = round.await.expect("an end").unwrap_err().error;
        serving.abort();
        error
    }

    /// Meets it until it has been followed to its end.
    async fn come_to(&mut self, server: &Server) -> Result<(), UpstreamError> {
        loop {
            let error = self.meet(server).await;
            let tip = self.store().tip();
            let is_there =
                tip.is_some_and(|tip| (tip.tli, tip.write_lsn) == (server.history.tli(), server.end()));
            match is_there && error.to_string().contains("replication terminated") {
                true => return Ok(()),
                false if is_the_end_of_a_stream(&error) => {}
                false => return Err(error),
            }
        }
    }

    /// Everything that is read along the history, against what the server has.
    #[track_caller]
    fn holds(&self, server: &Server) {
        let (store, history) = (self.store(), self.store().history());
        assert_eq!(*history, server.history);
        assert_eq!(store.tip().unwrap().flush_lsn, server.end());
        let mut at = START;
        while at < server.end() {
            let tli = history.timeline_at(at);
            let segment = store.segment(tli, at.seg_at(id().seg_size)).unwrap();
            let left_at = history.switch_point(tli).map_or(server.end(), |(left_at, _)| left_at);
            let to = segment.end().min(left_at);
            let ours = segment.bytes(at.since(segment.start()), to.since(at) as usize);
            assert!(*ours == server.wal[at.since(START) as usize..to.since(START) as usize], "{segment:?}");
            at = to;
        }
    }

    /// What was confirmed on a timeline is held of it, be it left or not.
    fn still_holds(&mut self, branch: &Branch, confirmed: Lsn) {
        if branch.tli() == self.store().history().tli() {
            assert!(self.store().tip().unwrap().flush_lsn >= confirmed);
            return;
        }
        let held = self.writer().find(branch.history.clone()).unwrap();
        let held = held.unwrap_or_else(|| panic!("nothing of timeline {} is held", branch.tli()));
        assert!(held.end().lsn >= confirmed, "timeline {}: {} < {confirmed}", branch.tli(), held.end().lsn);
        self.compare(branch, &held, confirmed);
    }

    fn compare(&self, branch: &Branch, held: &HeldTimeline, to: Lsn) {
        let bytes = branch.moments.last().unwrap().bytes();
        let mut end = to;
        while end > START {
            let segment = held.segment_before(self.store(), end).unwrap();
            let from = segment.start().max(START);
            let ours = segment.bytes(from.since(segment.start()), end.since(from) as usize);
            assert!(*ours == bytes[from.since(START) as usize..end.since(START) as usize], "{segment:?}");
            end = from;
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some((_, writer, background)) = self.open.take() {
            drop(writer);
            background.stop();
        }
    }
}

/// A (1) fails, B is promoted to 2 for a moment, A comes back and is promoted to 3.
fn comeback() -> [Branch; 3] {
    let a = Branch::root(1, &[400_000, 300_001, 500_000]);
    let b = a.child(2, 1, &[200_000, 100_000]);
    let back = a.child(3, 2, &[300_000, 400_000]);
    [a, b, back]
}

#[tokio::test]
async fn the_old_primary_comes_back_on_a_newer_timeline() {
    let [a, b, back] = comeback();
    let mut relay = Relay::new();
    relay.come_to(&a.server(1)).await.unwrap();
    let slot = |relay: &Relay, name: &str| relay.store().slots().get(name).unwrap().restart_lsn.unwrap();
    let fork = b.history.begin();
    for (name, at) in [("common", fork.rewind(1000)), ("left", b.newest().end())] {
        let name = name.parse().unwrap();
        relay.store().slots().create(&name, SlotPersistence::Persistent, Some(at)).unwrap();
    }
    relay.come_to(&b.newest()).await.unwrap();
    relay.come_to(&back.newest()).await.unwrap();
    relay.holds(&back.newest());
    relay.still_holds(&b, b.newest().end());
    assert_eq!((slot(&relay, "common"), slot(&relay, "left")), (fork.rewind(1000), fork));
    relay.reopen();
    relay.holds(&back.newest());
    // B, alone again, is the older one.
    let said = relay.come_to(&b.newest()).await.unwrap_err().to_string();
    assert!(said.contains("its number is lower"), "{said}");
    // But if it is promoted once more, it is the newest; what was held of it is held.
    let again = b.child(4, 0, &[300_000]);
    relay.come_to(&again.newest()).await.unwrap();
    relay.holds(&again.newest());
    relay.still_holds(&b, b.newest().end());
    relay.still_holds(&back, back.newest().end());
}

#[tokio::test]
async fn on_the_way_back_it_may_stop_anywhere() {
    let [a, b, back] = comeback();
    for cut in [0, 1, 100_000, 400_000] {
        let mut relay = Relay::new();
        relay.come_to(&a.server(1)).await.unwrap();
        relay.come_to(&b.newest()).await.unwrap();
        let error = relay.meet(&Server { cut: Some(cut), ..back.newest() }).await;
        assert!(is_the_end_of_a_stream(&error), "{error}");
        assert_eq!(relay.tli(), 1, "{cut}");
        relay.reopen();
        assert_eq!(relay.tli(), 1, "the highest number is of a timeline that was left");
        assert!(relay.store().tip().unwrap().flush_lsn >= a.server(1).end());
        // Not once more onto the one that was passed over.
        let said = relay.meet(&b.newest()).await.to_string();
        assert!(
            said.contains("timeline 2, which is older than timeline 3 that the relay is going to"),
            "{said}"
        );
        // A server that is on the way is good enough as long as there is no better.
        relay.come_to(&a.server(2)).await.unwrap();
        relay.come_to(&back.newest()).await.unwrap();
        relay.holds(&back.newest());
    }
}

/// After a crash between two steps the first file of a timeline may be there without the note that it is followed.
#[tokio::test]
async fn a_timeline_that_was_begun_and_not_noted_is_taken_up() {
    let [a, b, back] = comeback();
    let mut relay = Relay::new();
    relay.come_to(&a.server(1)).await.unwrap();
    let note = relay.dir.path().join("timeline.toml");
    let before = std::fs::read(&note).unwrap();
    relay.meet(&Server { cut: Some(0), ..b.newest() }).await;
    assert_eq!(relay.tli(), 2);
    drop(relay.open.take().map(|(_, writer, background)| (drop(writer), background.stop())));
    std::fs::write(&note, before).unwrap();
    relay.reopen();
    assert_eq!(relay.tli(), 1);
    relay.come_to(&b.newest()).await.unwrap();
    relay.holds(&b.newest());
    // A directory of before knows no more than the highest number.
    std::fs::remove_file(&note).unwrap();
    relay.reopen();
    relay.holds(&b.newest());
    relay.come_to(&back.newest()).await.unwrap();
    relay.holds(&back.newest());
}

#[tokio::test]
async fn a_newer_sibling_with_other_bytes_changes_nothing() {
    let [a, b, _] = comeback();
    let stranger = Branch::root(77, &[400_000, 300_001, 500_000]);
    let mut relay = Relay::new();
    relay.come_to(&a.server(1)).await.unwrap();
    relay.come_to(&b.newest()).await.unwrap();
    let other = stranger.child(3, 2, &[300_000]);
    let error = relay.come_to(&other.newest()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Append(AppendError::Diverged { .. })), "{error}");
    assert_eq!(relay.store().history_file(TimelineId::new(3).unwrap()).unwrap(), None);
    relay.holds(&b.newest());
    relay.reopen();
    relay.holds(&b.newest());
}

#[derive(Clone, Debug)]
struct Step {
    branch: prop::sample::Index,
    moment: prop::sample::Index,
    cut: Option<usize>,
    reopen: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<prop::sample::Index>;
    let cut = prop::option::of(0usize..900_000);
    let step = (index(), index(), cut, any::<bool>()).prop_map(|(branch, moment, cut, reopen)| Step {
        branch,
        moment,
        cut,
        reopen,
    });
    prop::collection::vec(step, 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Each new timeline forks off any other at any moment. Mostly its number is the highest; sometimes whoever was
    /// promoted did not know of the others.
    #[test]
    fn everybody_ends_on_the_newest_timeline_or_hears_why_not(
        seed: u64,
        root in prop::collection::vec(100_000usize..500_000, 3),
        children in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(),
             prop::collection::vec(30_000usize..400_000, 1..4), prop::bool::weighted(0.85)),
            1..5,
        ),
        steps in steps(),
    ) {
        let mut tree = vec![Branch::root(seed, &root)];
        for (parent, moment, sizes, knows) in &children {
            let parent = parent.get(&tree);
            let highest = tree.iter().map(Branch::tli).max().unwrap();
            let number = if *knows { highest } else { parent.tli() }.as_u32() + 1;
            let child = parent.child(number, moment.index(parent.moments.len()), sizes);
            tree.push(child);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(wander(&tree, &steps));
    }
}

async fn wander(tree: &[Branch], steps: &[Step]) {
    let mut relay = Relay::new();
    let mut confirmed: Vec<(usize, Lsn)> = Vec::new();
    let mut note = |server: &Server| {
        for (&tli, &lsn) in server.confirmed.lock().unwrap().iter() {
            let history = server.history.up_to(tli).unwrap();
            let is_it = |branch: &Branch| {
                let bytes = branch.moments.last().unwrap().bytes();
                branch.history == history && bytes.starts_with(&server.wal[..lsn.since(START) as usize])
            };
            let branch = tree.iter().position(is_it).unwrap();
            confirmed.push((branch, lsn));
        }
    };
    for step in steps {
        let branch = step.branch.get(tree);
        let server = Server { cut: step.cut, ..branch.server(step.moment.index(branch.moments.len())) };
        relay.meet(&server).await;
        note(&server);
        if step.reopen {
            relay.reopen();
        }
    }
    let numbers: std::collections::BTreeSet<_> = tree.iter().map(Branch::tli).collect();
    let newest = tree.iter().max_by_key(|branch| branch.tli()).unwrap();
    let server = newest.newest();
    match relay.come_to(&server).await {
        Ok(()) => relay.holds(&server),
        // Only those who have the same number cannot be told apart.
        Err(error) => {
            assert!(numbers.len() < tree.len(), "{error}");
            let said = error.to_string();
            let reasons = ["same number", "files of another timeline", "have diverged", "cannot begin at"];
            // Even the same history, and one of them is only shorter than what the relay has of the other.
            let is_twin = |other: &&Branch| other.history == newest.history && !std::ptr::eq(*other, newest);
            let behind = tree.iter().find(is_twin).map(|_| ", behind ");
            assert!(reasons.into_iter().chain(behind).any(|reason| said.contains(reason)), "{said}");
        }
    }
    note(&server);
    for (branch, lsn) in confirmed {
        if lsn > START {
            relay.still_holds(&tree[branch], lsn);
        }
    }
}
