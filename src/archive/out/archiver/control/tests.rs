//! Targets that change while their workers run.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use walrelay_proto::Lsn;
use walrelay_testkit::{S3, wait_until};

use super::*;
use crate::archive::out::floors::Floor;
use crate::archive::out::worker::tests::{FIRST, LAST, Setting, segment};
use crate::archive::repo::codec::{Codec, Compression};
use crate::archive::repo::layout::Layout;
use crate::archive::{Archiver, FileName};
use crate::objects::{ObjectPlace, Storage};
use crate::store::{ArchivedWal, Held, HoldKind};

/// An archiver over a store with some segments.
struct Running {
    it: Setting,
    control: Arc<ArchiveControl>,
    watching: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(targets: &[Target]) -> Running {
        let it = Setting::new();
        let starting = it.store.hold_for_start();
        let mut archiver =
            Archiver::start(&it.store, targets, Duration::from_secs(10).into(), starting).unwrap();
        let control = archiver.control();
        let watching = tokio::spawn(async move {
            let lost = archiver.lost().await;
            assert!(archiver.control.stop.is_cancelled(), "{lost}");
        });
        Running { it, control, watching }
    }

    /// A directory that is there, as a target.
    fn directory(&self, name: &str) -> Target {
        let dir = self.dir(name);
        fs::create_dir_all(&dir).unwrap();
        let url = format!("file://{}", dir.display());
        Target::new(name.to_owned(), Place::Objects(ObjectPlace::parse(&url).unwrap()))
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.it.dir.path().join(name)
    }

    fn change(&self, targets: &[Target]) -> Vec<String> {
        self.control.apply(self.control.prepare(targets).unwrap())
    }

    /// Whether the target counts it as archived.
    fn has(&self, target: &str, name: &FileName) -> bool {
        let file = format!("archive-{target}.toml");
        let text = self.it.store.read_state(&file).unwrap().unwrap_or_default();
        // The list of those that wait for others, or all before this one.
        let next = text.lines().find_map(|line| line.strip_prefix("next = \"")).map(|line| &line[..24]);
        next.is_some_and(|next| name.as_str() < next)
    }

    fn wait_for(&self, target: &str, segno: u64) {
        let name = segment(segno);
        wait_until(format_args!("\"{name}\" in \"{target}\""), || self.has(target, &name));
    }

    async fn stop(self) {
        self.control.stop.cancel();
        self.watching.await.unwrap();
    }
}

fn inode(path: PathBuf) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.ino())
}

fn new_key(file: &std::path::Path) {
    use age::secrecy::ExposeSecret;
    fs::write(file, age::x25519::Identity::generate().to_string().expose_secret()).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_come_and_go_and_come_again() {
    let mut it = Running::start(&[]);
    let (one, two) = (it.directory("one"), it.directory("two"));
    let lines = it.change(std::slice::from_ref(&one));
    assert_eq!(lines, ["archive target \"one\" is new: it gets all WAL that is on the relay's disk"]);
    it.wait_for("one", LAST);
    assert_eq!(it.change(std::slice::from_ref(&one)), [""; 0]);

    let lines = it.change(std::slice::from_ref(&two));
    assert!(lines[0].contains("\"one\" is no longer configured") && lines.len() == 2, "{lines:?}");
    let held = |it: &Running| lock(&it.control.floors.floors).keys().cloned().collect::<Vec<_>>();
    wait_until("nothing to be held for it", || held(&it) == ["two"]);
    it.it.more(LAST);
    it.wait_for("two", LAST + 1);
    assert!(!it.dir("one").join(segment(LAST + 1).as_str()).exists());

    // What it had got it has still.
    let before = inode(it.dir("one").join(segment(FIRST).as_str()));
    it.change(&[one, two]);
    it.wait_for("one", LAST + 1);
    assert_eq!(inode(it.dir("one").join(segment(FIRST).as_str())), before);
    assert_eq!(held(&it), ["one", "two"]);
    it.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_its_way_arrives_and_the_next_file_has_the_new_settings() {
    let it = Running::start(&[]);
    let target = Target { concurrency: 1, ..it.directory("one") };
    let Place::Objects(place) = &target.place else { panic!("it is one") };
    let (say, reached) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let (wait, name) = (Mutex::new(wait), it.dir("one").join(segment(FIRST).as_str()));
    let fault = move |file: &fs::File| {
        if file.metadata()?.is_dir() && name.exists() {
            let _ = say.send(());
            let _ = wait.lock().unwrap().recv();
        }
        Ok(())
    };
    let storage = Storage::open(place).unwrap().with_fault(Box::new(fault));
    let sink = Sink::Objects(Repository::over(storage, "one", Layout::Plain, Codec::default()));
    let wanted = Arc::new(Wanted { target: target.clone(), sink });
    it.control.apply(Prepared(vec![Change { wanted, kind: Kind::New }]));
    reached.recv().unwrap();
    let on_its_way = inode(it.dir("one").join(segment(FIRST).as_str()));
    let packed = Target { compression: Compression::Zstd(1), keep_size: Some(1 << 40), ..target };
    let lines = it.change(std::slice::from_ref(&packed));
    let expected =
        "archive target \"one\": compression, keep-size changed, in effect for what is archived from now on";
    assert_eq!(lines, [expected]);
    drop(go_on);
    it.wait_for("one", LAST);
    let path = |segno: u64, suffix: &str| it.dir("one").join(format!("{}{suffix}", segment(segno)));
    assert!(on_its_way.is_some() && inode(path(FIRST, "")) == on_its_way);
    assert!(path(LAST, ".zst").exists() && !path(LAST, "").exists() && !path(FIRST, ".zst").exists());
    it.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rotated_encryption_keys_are_in_effect_for_the_next_file() {
    let mut it = Running::start(&[]);
    let (key, new) = (it.dir("key"), it.dir("new"));
    new_key(&key);
    let target = Target { key_file: Some(key.clone()), ..it.directory("one") };
    it.change(std::slice::from_ref(&target));
    it.wait_for("one", LAST);
    new_key(&new);
    fs::copy(&new, &key).unwrap();
    let lines = it.change(std::slice::from_ref(&target));
    assert!(lines.len() == 1 && lines[0].contains("the keys in encryption-key-file changed"), "{lines:?}");
    it.it.more(LAST);
    it.wait_for("one", LAST + 1);
    let there = Repository::open(&Target { key_file: Some(new), ..target.clone() }).unwrap();
    assert!(there.read(&segment(LAST + 1)).await.unwrap().is_some());
    assert!(there.read(&segment(LAST)).await.unwrap_err().to_string().contains("no key at hand opens it"));
    // A file that holds none changes nothing.
    fs::write(&key, "# empty\n").unwrap();
    let error = it.control.prepare(std::slice::from_ref(&target)).unwrap_err().to_string();
    assert!(error.contains("archive target \"one\"") && error.contains("holds no key"), "{error}");
    it.it.more(LAST + 1);
    it.wait_for("one", LAST + 2);
    assert!(there.read(&segment(LAST + 2)).await.unwrap().is_some());
    it.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_credentials_are_used_at_once() {
    let s3 = S3::start();
    s3.behave(|it| it.key = Some("new".to_owned()));
    let target = |key: &str| {
        let mut place = ObjectPlace::parse("s3://wal/main").unwrap();
        let options = [
            ("endpoint", s3.endpoint().as_str()),
            ("region", "x"),
            ("access_key_id", key),
            ("secret_access_key", key),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        place.options.extend(options);
        Target::new("s3".to_owned(), Place::Objects(place))
    };
    let it = Running::start(&[target("old")]);
    // It has been refused some times, so that it waits.
    let mut refused = 0;
    wait_until("the store to refuse", || {
        refused += s3.take_requests().len();
        refused > 3
    });
    assert!(s3.objects().is_empty());
    let lines = it.change(&[target("new")]);
    let expected = "archive target \"s3\": access-key-id, secret-access-key changed, in effect for what is archived from now on";
    assert_eq!(lines, [expected]);
    it.wait_for("s3", LAST);
    assert!(s3.objects().contains_key(&format!("main/{}", segment(LAST))));
    it.stop().await;
}

/// Others may have mended what it waits for: a profile, a store's policy.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_of_which_nothing_has_changed_is_told_to_try_again() {
    let it = Running::start(&[]);
    let target = it.directory("one");
    it.change(std::slice::from_ref(&target));
    let told = lock(&it.control.targets)["one"].subscribe();
    assert!(!told.has_changed().unwrap());
    assert_eq!(it.change(std::slice::from_ref(&target)), [""; 0]);
    assert!(told.has_changed().unwrap());
    it.wait_for("one", LAST);
    it.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_of_old_settings_removes_nothing_more() {
    let mut it = Running::start(&[]);
    let target = it.directory("one");
    it.change(std::slice::from_ref(&target));
    it.wait_for("one", LAST);
    // It shall keep nothing, and hangs in the first removal.
    let Place::Objects(place) = &target.place else { panic!("it is one") };
    let (say, reached) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let fault = move |file: &fs::File| {
        if file.metadata()?.is_dir() {
            let _ = say.send(());
            let _ = wait.lock().unwrap().recv();
        }
        Ok(())
    };
    let storage = Storage::open(place).unwrap().with_fault(Box::new(fault));
    let sink = Sink::Objects(Repository::over(storage, "one", Layout::Plain, Codec::default()));
    let wanted = Arc::new(Wanted { target: Target { keep_size: Some(0), ..target.clone() }, sink });
    it.control.apply(Prepared(vec![Change { wanted, kind: Kind::Settings(Vec::new()) }]));
    reached.recv().unwrap();
    it.change(&[Target { compression: Compression::Zstd(1), ..target }]);
    it.it.more(LAST);
    it.wait_for("one", LAST + 1);
    assert!(
        it.dir("one").join(format!("{}.zst", segment(LAST + 1))).exists(),
        "the new settings are in effect"
    );
    drop(go_on);
    it.it.more(LAST + 1);
    it.wait_for("one", LAST + 2);
    for segno in FIRST..=LAST {
        assert!(it.dir("one").join(segment(segno).as_str()).exists(), "{segno}");
    }
    it.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_may_change_places_and_wrong_places_change_nothing() {
    let mut it = Running::start(&[]);
    let (one, two) = (it.directory("one"), it.directory("two"));
    it.change(&[one.clone(), two.clone()]);
    it.wait_for("one", LAST);
    it.wait_for("two", LAST);
    let wrong = Target { place: it.directory("relay").place, ..one.clone() };
    let error = it.control.prepare(&[wrong, two.clone()]).unwrap_err().to_string();
    assert!(
        error.contains("archive target \"one\": directory") && error.contains("data directory"),
        "{error}"
    );
    let swapped = [
        Target { place: two.place.clone(), compression: Compression::Zstd(1), ..one.clone() },
        Target { place: one.place.clone(), ..two.clone() },
    ];
    let lines = it.change(&swapped);
    assert!(lines.len() == 2 && lines.iter().all(|line| line.contains("is another place now")), "{lines:?}");
    it.it.more(LAST);
    it.wait_for("one", LAST + 1);
    it.wait_for("two", LAST + 1);
    let name = segment(LAST + 1);
    assert!(it.dir("two").join(format!("{name}.zst")).exists() && it.dir("one").join(name.as_str()).exists());
    it.stop().await;
}

#[tokio::test]
async fn what_the_old_place_needs_lets_nothing_go_that_is_promised_to_the_new_one() {
    let it = Setting::new();
    let floors = Floors::new(it.store.clone());
    let hold = |lsn: u64| {
        let archived = ArchivedWal { from: Lsn::new(0x10), to: Lsn::new(lsn) };
        Floor { hold: Lsn::new(lsn), way: it.store.holds().way(), archived: Some(archived) }
    };
    let held = || {
        let rows = it.store.holds().rows();
        let row = rows.into_iter().find(|row| row.kind == HoldKind::ArchiveTarget).unwrap();
        assert_eq!(row.name, "one");
        match row.held {
            Held::From(from) => Some(from.as_u64()),
            _ => None,
        }
    };
    let archived = || it.store.archived().map(|archived| archived.to.as_u64());
    floors.expect("one", "old".to_owned());
    floors.set("one", "old", hold(0x500));
    assert_eq!(
        (held(), it.store.archived().map(|archived| archived.to)),
        (Some(0x500), Some(Lsn::new(0x500)))
    );
    floors.expect("one", "new".to_owned());
    // The old worker saves for the last time.
    floors.set("one", "old", hold(0x600));
    assert_eq!((held(), archived()), (None, Some(0x500)));
    floors.set("one", "new", hold(0x100));
    assert_eq!((held(), archived()), (Some(0x100), Some(0x100)));
    // Nor does it come back when the target is none any more.
    floors.remove("one");
    floors.set("one", "new", hold(0x200));
    assert!(lock(&floors.floors).is_empty());
}
