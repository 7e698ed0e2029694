use std::time::Duration;

use walrelay_proto::SystemId;
use walrelay_proto::generate::WalGenerator;

use super::*;
use crate::archive::back::memory::Memory;
use crate::store::{Background, Identity, StoreConfig, UpstreamParameters, WalWrite, Writer};

const SEG: u64 = 1 << 20;
/// First segment of the WAL that exists, first one that the store holds.
const FIRST: u64 = 3;
const HELD: u64 = 15;
const DEADLINE: Duration = Duration::from_secs(20);

fn id() -> WalIdentity {
    WalIdentity { system_id: SystemId(77), seg_size: SegSize::new(SEG).unwrap() }
}

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn text(timeline: u32, segno: u64) -> String {
    WalFileName::new(tli(timeline), SegNo::new(segno)).format(id().seg_size)
}

/// A store that holds only the last segments of the WAL there was.
struct Setting {
    store: Arc<Store>,
    wal: Vec<u8>,
    left_at: Option<Lsn>,
    writer: Writer,
    _background: Background,
    dir: tempfile::TempDir,
}

impl Setting {
    /// With a switch to timeline 2 in the middle of segment `switch_in`.
    fn new(switch_in: Option<u64>) -> Setting {
        let mut wal = WalGenerator::new(id(), TimelineId::FIRST, Lsn::new(FIRST * SEG), 3);
        let mut history = TimelineHistory::first();
        let (mut content, mut left_at) = (None, None);
        if let Some(segno) = switch_in {
            wal.fill(((segno - FIRST) * SEG + SEG / 2) as usize);
            let text = format!("1\t{}\tno recovery target specified\n", wal.position());
            left_at = Some(wal.position());
            history = TimelineHistory::parse(tli(2), text.as_bytes()).unwrap();
            content = Some(text);
            wal.switch_timeline(tli(2));
        }
        let length = (HELD + 1 - FIRST) * SEG + SEG / 2;
        wal.fill(length as usize - wal.bytes().len());
        let dir = crate::permissions::private_tempdir();
        let (store, mut writer, background) = Store::open(StoreConfig {
            data_dir: dir.path().to_owned(),
            wal_write: WalWrite::Pwrite,
            wal_keep_size: 1 << 30,
            max_slot_wal_keep_size: None,
            max_replication_slots: 1,
        })
        .unwrap();
        let identity = Identity { system_id: id().system_id, seg_size: id().seg_size };
        store.attach(identity, UpstreamParameters::default()).unwrap();
        if let Some(content) = content {
            store.save_history_file(history.tli(), content.as_bytes()).unwrap();
        }
        let wal = wal.take();
        writer.begin(identity, history, Lsn::new(HELD * SEG));
        writer.append(Lsn::new(HELD * SEG), &wal[((HELD - FIRST) * SEG) as usize..]).unwrap();
        writer.commit();
        Setting { store, wal, left_at, writer, _background: background, dir }
    }

    fn segment(&self, segno: u64) -> &[u8] {
        let start = ((segno - FIRST) * SEG) as usize;
        &self.wal[start..start + SEG as usize]
    }

    /// A source with all whole segments, each on the timeline of its last byte.
    fn source(&self) -> Arc<Memory> {
        let source = Arc::new(Memory::new("memory"));
        for segno in FIRST..=HELD {
            let end = SegNo::new(segno).end(id().seg_size).rewind(1);
            let timeline = self.store.history().timeline_at(end).as_u32();
            source.put(&text(timeline, segno), self.segment(segno).to_vec());
        }
        source
    }

    fn recall(&self, sources: &[&Arc<Memory>]) -> Arc<Recall> {
        self.with_budget(sources, 0)
    }

    fn with_budget(&self, sources: &[&Arc<Memory>], budget: u64) -> Arc<Recall> {
        let sources = sources.iter().map(|source| Arc::clone(source) as Arc<dyn Source>).collect();
        let pauses = (Duration::from_millis(1), Duration::from_millis(10));
        Recall::with_pauses(self.store.clone(), sources, budget, pauses).unwrap()
    }

    fn files(&self) -> usize {
        fs::read_dir(self.dir.path().join(DIRECTORY)).unwrap().count()
    }
}

async fn get(recall: &Arc<Recall>, timeline: u32, segno: u64) -> Result<Arc<Segment>, RecallError> {
    tokio::time::timeout(DEADLINE, recall.segment(tli(timeline), SegNo::new(segno))).await.unwrap()
}

/// Lets other tasks run until something is so.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < DEADLINE, "{what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn segments_come_back_as_they_were() {
    let setting = Setting::new(None);
    let source = setting.source();
    let recall = setting.recall(&[&source]);
    for segno in FIRST..HELD {
        let segment = get(&recall, 1, segno).await.unwrap();
        assert!(segment.is_complete());
        assert!(segment.bytes(0, SEG as usize) == setting.segment(segno), "segment {segno}");
    }
    until("no file keeps its name", || setting.files() == 0).await;
    assert!((FIRST..HELD).all(|segno| source.asked(&text(1, segno)) == 1), "each is fetched once");
    assert_eq!(source.asked(&text(1, HELD)), 0, "what the store holds is not fetched");
}

#[tokio::test]
async fn readers_share_a_fetch_and_the_next_segments_are_fetched_ahead() {
    let setting = Setting::new(None);
    let source = setting.source();
    source.set_open(false);
    let recall = setting.recall(&[&source]);
    let readers: Vec<_> = (0..5)
        .map(|_| {
            let recall = recall.clone();
            tokio::spawn(async move { get(&recall, 1, FIRST).await })
        })
        .collect();
    until("asked", || source.asked(&text(1, FIRST)) > 0).await;
    source.set_open(true);
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap().name().segno, SegNo::new(FIRST));
    }
    assert_eq!(source.asked(&text(1, FIRST)), 1);
    let ahead = FIRST + 1..=FIRST + AHEAD;
    until("fetched ahead", || ahead.clone().all(|segno| source.asked(&text(1, segno)) == 1)).await;
    assert_eq!(source.asked(&text(1, FIRST + AHEAD + 1)), 0);
}

/// Which file is a segment's, and how much of it counts, goes by the way of the timeline that is followed.
#[tokio::test]
async fn what_was_chosen_by_another_history_is_fetched_anew() {
    let mut setting = Setting::new(None);
    let source = setting.source();
    let recall = setting.recall(&[&source]);
    let before = get(&recall, 1, FIRST).await.unwrap();
    let again = get(&recall, 1, FIRST).await.unwrap();
    assert!(Arc::ptr_eq(&before, &again) && source.asked(&text(1, FIRST)) == 1);
    let content = format!("1\t{}\tx\n", setting.writer.verified().unwrap().lsn);
    setting.store.save_history_file(tli(2), content.as_bytes()).unwrap();
    let history = TimelineHistory::parse(tli(2), content.as_bytes()).unwrap();
    setting.writer.switch_timeline(history).unwrap();
    let after = get(&recall, 1, FIRST).await.unwrap();
    assert_eq!(source.asked(&text(1, FIRST)), 2);
    assert!(!Arc::ptr_eq(&before, &after), "not even who still reads it shares it");
    assert!(after.bytes(0, SEG as usize) == setting.segment(FIRST));
}

#[tokio::test]
async fn what_is_kept_is_bounded() {
    let setting = Setting::new(None);
    let source = setting.source();
    let recall = setting.with_budget(&[&source], 6 * SEG);
    let counted = || lock(&recall.cache).values().filter(|entry| entry.counts()).count();
    let mut readers = Vec::new();
    for segno in FIRST..HELD {
        readers.push(get(&recall, 1, segno).await.unwrap());
        assert!(counted() <= 6, "{} at {segno}", counted());
    }
    // Whoever reads one still shares it with those who come later.
    get(&recall, 1, FIRST).await.unwrap();
    assert_eq!(source.asked(&text(1, FIRST)), 1);
    drop(readers);
    get(&recall, 1, FIRST).await.unwrap();
    assert_eq!(source.asked(&text(1, FIRST)), 2, "given up with its last reader");
}

/// Each has a piece of its segment in memory, and what unpacks it.
#[tokio::test]
async fn few_segments_are_fetched_at_a_time_however_many_are_wanted() {
    let setting = Setting::new(None);
    let source = setting.source();
    let recall = setting.with_budget(&[&source], 1 << 40);
    source.set_open(false);
    let wanted: Vec<_> = (FIRST..FIRST + 8)
        .map(|segno| {
            let recall = recall.clone();
            tokio::spawn(async move { get(&recall, 1, segno).await })
        })
        .collect();
    let asked = || (FIRST..FIRST + 8).map(|segno| source.asked(&text(1, segno))).sum::<usize>();
    let turns = || recall.places.read().unwrap()[0].free_turns();
    until("all turns to be taken", || turns() == 0 && asked() == AT_A_TIME).await;
    source.set_open(true);
    for one in wanted {
        one.await.unwrap().unwrap();
    }
    until("all turns to be given back", || turns() == AT_A_TIME).await;
}

/// What nobody has asked for yet leaves a turn to what somebody waits for.
#[tokio::test]
async fn what_is_wanted_comes_before_what_is_fetched_ahead() {
    let setting = Setting::new(None);
    let source = setting.source();
    let recall = setting.with_budget(&[&source], 1 << 40);
    get(&recall, 1, FIRST).await.unwrap();
    // Nothing has run since that ended: the next ones are asked for now.
    source.set_open(false);
    until("some to be asked for", || recall.ahead.available_permits() == 0).await;
    let wanted = {
        let recall = recall.clone();
        tokio::spawn(async move { get(&recall, 1, FIRST + 8).await })
    };
    until("it to be asked for", || source.asked(&text(1, FIRST + 8)) == 1).await;
    // One that has to wait until nobody wants anything is in a hurry, too, when somebody does.
    let last = FIRST + AHEAD;
    assert_eq!(source.asked(&text(1, last)), 0);
    source.set_open(true);
    get(&recall, 1, last).await.unwrap();
    wanted.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_source_that_hangs_keeps_nobody_from_another_one() {
    let setting = Setting::new(None);
    let (hung, fine) = (setting.source(), setting.source());
    let recall = setting.recall(&[&hung, &fine]);
    hung.set_open(false);
    let waiting: Vec<_> = (FIRST..FIRST + AT_A_TIME as u64)
        .map(|segno| {
            let recall = recall.clone();
            tokio::spawn(async move { get(&recall, 1, segno).await })
        })
        .collect();
    until("all its turns to be taken", || recall.places.read().unwrap()[0].free_turns() == 0).await;
    let other = FIRST + 8;
    assert!(get(&recall, 1, other).await.unwrap().bytes(0, SEG as usize) == setting.segment(other));
    assert_eq!((hung.asked(&text(1, other)), fine.asked(&text(1, other))), (0, 1));
    hung.set_open(true);
    for one in waiting {
        one.await.unwrap().unwrap();
    }
}

/// However long it would take to give up a source that hangs.
#[tokio::test]
async fn a_source_that_is_silent_is_not_waited_for_where_another_has_it() {
    let setting = Setting::new(None);
    let (hung, fine) = (setting.source(), setting.source());
    fine.put("00000007.history", "1\t0/500000\tx\n");
    let recall = setting.recall(&[&hung, &fine]);
    hung.set_open(false);
    get(&recall, 1, FIRST).await.unwrap();
    assert_eq!((hung.asked(&text(1, FIRST)), fine.asked(&text(1, FIRST))), (1, 1));
    // From then on it is asked last.
    for segno in FIRST + 1..HELD {
        get(&recall, 1, segno).await.unwrap();
        assert_eq!(hung.asked(&text(1, segno)), 0);
    }
    assert!(recall.history_file(tli(7)).await.unwrap().is_some());
    // Where no other has it, it is. (In a directory of its own: what is fetched ahead may still come.)
    let elsewhere = Setting::new(None);
    fine.remove(&text(1, FIRST + 2));
    let recall = elsewhere.recall(&[&hung, &fine]);
    let reader = {
        let recall = recall.clone();
        tokio::spawn(async move { get(&recall, 1, FIRST + 2).await })
    };
    until("the other to be asked", || fine.asked(&text(1, FIRST + 2)) == 2).await;
    assert!(!reader.is_finished());
    hung.set_open(true);
    reader.await.unwrap().unwrap();
    assert!(recall.history_file(tli(7)).await.unwrap().is_some());
}

#[tokio::test]
async fn a_damaged_copy_is_passed_over() {
    let setting = Setting::new(None);
    let (bad, good) = (setting.source(), setting.source());
    let mut flipped = setting.segment(5).to_vec();
    flipped[700_000] ^= 1;
    bad.put(&text(1, 5), flipped);
    bad.put(&text(1, 6), setting.segment(7).to_vec());
    bad.put(&text(1, 7), setting.segment(7)[..1000].to_vec());
    let recall = setting.recall(&[&bad, &good]);
    for segno in 5..=7 {
        let segment = get(&recall, 1, segno).await.unwrap();
        assert!(segment.bytes(0, SEG as usize) == setting.segment(segno));
    }
    let recall = setting.recall(&[&bad]);
    for segno in 5..=7 {
        let error = get(&recall, 1, segno).await.unwrap_err();
        assert!(matches!(&error, RecallError::Damaged { .. }), "{error}");
    }
    until("what was refused takes no room", || setting.files() == 0).await;
}

#[tokio::test]
async fn a_source_that_is_down_is_waited_for_unless_another_has_it() {
    let setting = Setting::new(None);
    let (down, up) = (setting.source(), setting.source());
    down.set_down(true);
    up.remove(&text(1, 5));
    let recall = setting.recall(&[&down, &up]);
    get(&recall, 1, 4).await.unwrap();
    assert_eq!((down.asked(&text(1, 4)), up.asked(&text(1, 4))), (1, 1));
    // Who has failed is asked last.
    get(&recall, 1, 10).await.unwrap();
    assert_eq!((down.asked(&text(1, 10)), up.asked(&text(1, 10))), (0, 1));
    let reader = {
        let recall = recall.clone();
        tokio::spawn(async move { get(&recall, 1, 5).await })
    };
    until("tried again", || down.asked(&text(1, 5)) > 2).await;
    down.set_down(false);
    assert!(reader.await.unwrap().unwrap().bytes(0, SEG as usize) == setting.segment(5));
}

#[tokio::test]
async fn what_is_nowhere_has_been_removed() {
    let setting = Setting::new(None);
    let source = setting.source();
    source.remove(&text(1, 6));
    let recall = setting.recall(&[&source]);
    get(&recall, 1, 5).await.unwrap();
    let error = get(&recall, 1, 6).await.unwrap_err();
    assert_eq!(error, RecallError::Nowhere(text(1, 6)));
    assert_eq!(error.to_string(), format!("requested WAL segment {} has already been removed", text(1, 6)));
    source.put(&text(1, 6), setting.segment(6).to_vec());
    get(&recall, 1, 6).await.unwrap();
}

#[tokio::test]
async fn the_segment_of_a_switch_is_the_successors_or_else_a_part_of_its_own() {
    let setting = Setting::new(Some(8));
    let source = setting.source();
    let left_at = setting.left_at.unwrap().since(Lsn::new(8 * SEG));
    // They share a directory: each is done, with what it fetches ahead too, before there is the next.
    let done =
        async |recall: &Arc<Recall>| until("fetched ahead", || recall.seen().fetched == 1 + AHEAD).await;
    let recall = setting.recall(&[&source]);
    let segment = get(&recall, 1, 8).await.unwrap();
    assert_eq!((segment.name().tli, segment.published()), (tli(2), SEG));
    done(&recall).await;
    source.remove(&text(2, 8));
    // Behind the place where it was left, the old timeline's file may hold anything.
    let mut abandoned = setting.segment(8).to_vec();
    abandoned[left_at as usize..].fill(0xEE);
    for suffix in ["", ".partial"] {
        let own = text(1, 8) + suffix;
        source.put(&own, abandoned.clone());
        let recall = setting.recall(&[&source]);
        let segment = get(&recall, 1, 8).await.unwrap();
        assert_eq!((segment.name().tli, segment.published()), (tli(1), left_at), "{own}");
        done(&recall).await;
        source.remove(&own);
    }
    assert!(matches!(get(&setting.recall(&[&source]), 1, 8).await, Err(RecallError::Nowhere(_))));
}

#[tokio::test]
async fn fetching_ahead_follows_the_timelines() {
    let setting = Setting::new(Some(5));
    let source = setting.source();
    let recall = setting.recall(&[&source]);
    get(&recall, 1, 4).await.unwrap();
    for (timeline, segno) in [(2, 5), (2, 6), (2, 7)] {
        until("fetched ahead", || source.asked(&text(timeline, segno)) == 1).await;
    }
    assert_eq!(source.asked(&text(1, 6)), 0);
}

#[tokio::test]
async fn another_timelines_pages_under_the_name_are_refused() {
    let setting = Setting::new(Some(5));
    let source = setting.source();
    // What timeline 1 wrote after it was left.
    let mut wal = WalGenerator::new(id(), TimelineId::FIRST, Lsn::new(6 * SEG), 9);
    wal.fill(SEG as usize);
    source.put(&text(2, 6), wal.take()[..SEG as usize].to_vec());
    let error = get(&setting.recall(&[&source]), 2, 6).await.unwrap_err();
    assert!(error.to_string().contains("is of timeline 1, expected 2"), "{error}");
}

#[tokio::test]
async fn history_files_come_from_whoever_has_a_good_one() {
    let setting = Setting::new(None);
    let (first, second) = (setting.source(), setting.source());
    first.put("00000007.history", "rubbish");
    second.put("00000007.history", "1\t0/500000\tx\n");
    let recall = setting.recall(&[&first, &second]);
    assert_eq!(recall.history_file(tli(7)).await.unwrap().unwrap(), "1\t0/500000\tx\n");
    assert_eq!(recall.history_file(tli(8)).await.unwrap(), None);
    second.set_down(true);
    recall.history_file(tli(8)).await.unwrap_err();
}

#[tokio::test]
async fn leftovers_go_at_the_start() {
    let setting = Setting::new(None);
    fs::create_dir_all(setting.dir.path().join(DIRECTORY)).unwrap();
    fs::write(setting.dir.path().join(DIRECTORY).join("5"), "half").unwrap();
    let _recall = setting.recall(&[]);
    assert_eq!(setting.files(), 0);
}
