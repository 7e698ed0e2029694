//! Roles against a scripted upstream, in virtual time.

use std::collections::HashMap;
use std::net::IpAddr;

use super::asker::Answers;
use super::*;
use crate::conninfo::Environment;
use crate::store::{Background, StoreConfig, WalWrite};
use crate::upstream::Following;

/// How long answers take, and what they are; roles that are not in it do not exist.
#[derive(Clone)]
struct Script {
    takes: Duration,
    roles: HashMap<&'static str, Known>,
    /// What was asked, in batches.
    asked: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Script {
    fn taking(takes: Duration) -> Script {
        Script { takes, roles: HashMap::new(), asked: Arc::default() }
    }

    fn with(mut self, name: &'static str, password: &str) -> Script {
        self.roles.insert(name, known(password));
        self
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().iter().flatten().count()
    }
}

impl Answering for Script {
    async fn ask(&mut self, names: &[String]) -> Answers {
        self.asked.lock().unwrap().push(names.to_vec());
        tokio::time::sleep(self.takes).await;
        names.iter().map(|name| (name.clone(), self.roles.get(&name[..]).cloned())).collect()
    }

    fn give_up(&mut self, _names: &[String]) {}

    async fn rest(&mut self) {}

    fn usual(&self) -> Duration {
        self.takes
    }
}

fn known(password: &str) -> Known {
    let attributes = Attributes { superuser: false, replication: true, can_login: true, monitor: false };
    Known { secret: Some(password.to_owned()), attributes: Some(attributes), member_of: None }
}

#[test]
fn a_damaged_file_is_told_without_its_content() {
    let text = "[roles.joe]\nsecret = \"SCRAM-SHA-256$4096:salt$StoredKey:ServerKey\nattributes = 1\n";
    let error = toml::from_str::<Saved>(text).map(drop).unwrap_err();
    assert_eq!(damaged(text, &error).to_string(), "line 2 is damaged");
}

#[test]
fn what_earlier_versions_have_saved_is_read() {
    let text =
        "[roles.joe.attributes]\nsuperuser = false\nreplication = true\ncan_login = true\nmonitor = false\n";
    let saved: Saved = toml::from_str(text).unwrap();
    let role = saved.roles["joe"].role();
    assert!(role.attributes.is_some() && role.memberships().is_none() && saved.gone.is_empty());
    assert_eq!(Role { absent: true, ..Role::default() }.memberships(), Some(Vec::new()));
}

struct Fixture {
    roles: Roles,
    _following: Following,
    _background: Background,
    _dir: tempfile::TempDir,
}

/// `"old"` is known with the password of that name.
fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        data_dir: dir.path().join("data"),
        wal_write: WalWrite::Pwrite,
        wal_keep_size: 0,
        max_slot_wal_keep_size: None,
        max_replication_slots: 1,
    };
    let (store, _writer, background) = Store::open(config).unwrap();
    let info = ConnInfo::parse("host=127.0.0.1 user=relay", &Environment::of_user("relay")).unwrap();
    let (following, host) = Following::channel();
    following.show(Some(info.hosts[0].clone()));
    let roles = Roles::new(info, Some(DEFAULT_AUTH_QUERY.to_owned()), host, store);
    lock(&roles.cache).put("old", Some(known("old")));
    Fixture { roles, _following: following, _background: background, _dir: dir }
}

impl Fixture {
    /// Does `work` while the two scripts answer.
    async fn with<T>(&self, known: Script, strangers: Script, work: impl Future<Output = T>) -> T {
        tokio::select! {
            result = work => result,
            () = self.roles.answer(&self.roles.known, known, Some(&self.roles.usual_ms)) => unreachable!(),
            () = self.roles.answer(&self.roles.strangers, strangers, None) => unreachable!(),
        }
    }

    /// What is known of a role, and how long that took to find out.
    async fn look_up(&self, name: &str) -> (Role, Duration) {
        let began = Instant::now();
        (self.roles.look_up(name, source(1), false).await, began.elapsed())
    }
}

fn source(last: u8) -> Option<Source> {
    Some(IpAddr::from([192, 0, 2, last]).into())
}

fn password(text: &str) -> Option<Secret> {
    Some(Secret::Password(text.to_owned()))
}

const NEVER: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn what_secrets_look_like_is_counted_as_they_come_and_go() {
    let fixture = fixture();
    let (scram, hash) = (
        format!("SCRAM-SHA-256$7:AAAA${0}:{0}", "A".repeat(43) + "="),
        crate::auth::md5::stored_hash("h", b"x"),
    );
    let looks = || (fixture.roles.kinds().iterations().map(u32::from), fixture.roles.kinds().mostly_md5());
    fixture.roles.learn("old", None);
    assert_eq!(looks(), (None, None));
    for name in ["a", "b"] {
        fixture.roles.learn(name, Some(known(&scram)));
    }
    assert_eq!(looks(), (Some(7), Some(false)));
    for name in ["a", "b"] {
        fixture.roles.learn(name, Some(known(&hash)));
    }
    assert_eq!(looks(), (None, Some(true)));
}

#[tokio::test(start_paused = true)]
async fn a_known_role_does_not_wait_for_a_hung_upstream() {
    let (fixture, hung) = (fixture(), Script::taking(NEVER));
    let (role, took) = fixture.with(hung.clone(), hung, fixture.look_up("old")).await;
    assert_eq!((role.secret, role.absent), (password("old"), false));
    assert_eq!(took, PATIENCE.0);
}

#[tokio::test(start_paused = true)]
async fn who_is_listed_does_not_wait_either_and_is_out_if_there_is_no_such_role() {
    for (takes, absent, took) in [(NEVER, false, PATIENCE.0), (20 * MS, true, 20 * MS)] {
        let (fixture, upstream) = (fixture(), Script::taking(takes));
        let work = async {
            let began = Instant::now();
            let role = fixture.roles.look_up("listed", source(1), true).await;
            (role.absent, began.elapsed())
        };
        assert_eq!(fixture.with(upstream, Script::taking(NEVER), work).await, (absent, took));
    }
}

#[tokio::test]
async fn who_was_known_or_listed_and_is_gone_stays_out_whatever_names_are_made_up_and_over_a_restart() {
    let fixture = fixture();
    let roles = &fixture.roles;
    roles.lock().list("listed");
    // Its line came later.
    roles.learn("late", None);
    roles.lock().list("late");
    for name in ["old", "listed"] {
        roles.learn(name, None);
    }
    for n in 0..=MOST {
        roles.learn(&format!("evil{n}"), None);
    }
    roles.learn("back", Some(known("x")));
    roles.learn("back", None);
    roles.learn("back", Some(known("x")));
    let saved = || !roles.lock().unsaved && !roles.lock().saving;
    while !saved() {
        tokio::task::yield_now().await;
    }
    let restarted = Cache::of(load(&roles.store, true));
    for cache in [&restarted, &*roles.lock()] {
        for name in ["old", "listed", "late"] {
            assert!(cache.is_absent(name), "{name}");
        }
        assert!(!cache.is_absent("back") && cache.roles.contains_key("back"));
    }
    assert_eq!(restarted.gone.len(), 3, "names made up are not kept");
}

#[tokio::test(start_paused = true)]
async fn a_healthy_upstreams_answer_counts_however_far_it_is() {
    for takes in [MS, 20 * MS, 600 * MS] {
        let fixture = fixture();
        let upstream = Script::taking(takes).with("old", "new").with("other", "x");
        let work = async {
            // What an answer takes is seen at the first one.
            fixture.roles.look_up("other", None, true).await;
            tokio::time::sleep(FRESH).await;
            fixture.look_up("old").await
        };
        let (role, took) = fixture.with(upstream.clone(), upstream, work).await;
        assert_eq!(role.secret, password("new"), "{takes:?}");
        assert!(took < takes + 2 * MS, "{took:?}");
    }
}

/// Nobody who makes up names decides how long an old password is good.
#[tokio::test(start_paused = true)]
async fn what_answers_about_strangers_take_says_nothing_about_others() {
    for (known, strangers) in [(600 * MS, MS), (MS, 600 * MS)] {
        let fixture = fixture();
        let (known, strangers) = (Script::taking(known).with("other", "x"), Script::taking(strangers));
        let takes = known.takes;
        let work = async {
            fixture.roles.look_up("other", None, true).await;
            tokio::time::sleep(FRESH).await;
            fixture.look_up("stranger").await;
            fixture.roles.patience()
        };
        let patience = fixture.with(known, strangers, work).await;
        assert_eq!(patience, (takes * TIMES_USUAL).clamp(PATIENCE.0, PATIENCE.1));
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_too_late_is_known_afterwards() {
    for (upstream, secret, absent) in [
        (Script::taking(2000 * MS).with("old", "new"), password("new"), false),
        // Dropped.
        (Script::taking(2000 * MS), None, true),
    ] {
        let fixture = fixture();
        let work = async {
            let (role, _) = fixture.look_up("old").await;
            assert_eq!(role.secret, password("old"));
            tokio::time::sleep(1600 * MS).await;
            fixture.roles.current("old")
        };
        let role = fixture.with(upstream.clone(), upstream, work).await;
        assert_eq!((role.secret, role.absent), (secret, absent));
    }
}

#[tokio::test(start_paused = true)]
async fn names_made_up_hold_up_neither_known_roles_nor_other_addresses() {
    let fixture = fixture();
    let upstream = || Script::taking(20 * MS).with("old", "old").with("first", "first");
    let strangers = upstream();
    let asked = strangers.clone();
    let work = async {
        let evil: Vec<_> = (0..1000)
            .map(|n| Box::pin(async move { n }))
            .map(|n| async { fixture.roles.look_up(&format!("evil{}", n.await), source(9), false).await })
            .collect();
        let mut evil: futures_util::stream::FuturesUnordered<_> = evil.into_iter().collect();
        let flood = async { while futures_util::StreamExt::next(&mut evil).await.is_some() {} };
        let others = async {
            let (role, took) = fixture.look_up("old").await;
            assert_eq!(role.secret, password("old"));
            assert!(took <= 21 * MS, "{took:?}");
            let (role, took) = fixture.look_up("first").await;
            assert_eq!(role.secret, password("first"));
            assert!(took <= 63 * MS, "{took:?}");
        };
        let began = Instant::now();
        tokio::join!(flood, others);
        began.elapsed()
    };
    let took = fixture.with(upstream(), strangers, work).await;
    // Nobody waits for his turn longer than a share of questions takes.
    assert!(took < 200 * MS, "{took:?}");
    assert!(asked.asked() <= SHARE + 2, "{}", asked.asked());
}

#[tokio::test(start_paused = true)]
async fn many_logins_of_one_role_are_one_question() {
    let fixture = fixture();
    let upstream = Script::taking(20 * MS).with("old", "old");
    let asked = upstream.clone();
    let work = async {
        let logins: futures_util::stream::FuturesUnordered<_> =
            (0..100).map(|_| fixture.look_up("old")).collect();
        futures_util::StreamExt::count(logins).await
    };
    assert_eq!(fixture.with(upstream.clone(), upstream, work).await, 100);
    assert_eq!(asked.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stranger_gets_no_answer_from_a_hung_upstream_within_the_limit() {
    let (fixture, hung) = (fixture(), Script::taking(NEVER));
    let (role, took) = fixture.with(hung.clone(), hung, fixture.look_up("first")).await;
    assert_eq!((role.secret, role.absent), (None, false));
    assert_eq!(took, ANSWER_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn all_known_roles_are_looked_up_again_soon_after_the_start_and_each_minute() {
    let fixture = fixture();
    let upstream = Script::taking(MS).with("old", "new");
    let asked = upstream.clone();
    let work = async {
        tokio::select! {
            () = fixture.roles.refresh() => unreachable!(),
            () = tokio::time::sleep(6000 * MS) => {}
        }
        fixture.roles.current("old")
    };
    let role = fixture.with(upstream.clone(), upstream, work).await;
    assert_eq!(role.secret, password("new"));
    assert_eq!(asked.asked(), 1);
}
