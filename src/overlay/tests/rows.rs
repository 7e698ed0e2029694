//! The relay's rows.

use std::time::{Duration, SystemTime};

use walrelay_proto::ack::Standing;
use walrelay_proto::{FullXid, SegSize};

use super::*;
use crate::consumers::{ConsumerIdentity, ConsumerState, ConsumerStatus};
use crate::moment::Moment;
use crate::store::{ArchivedWal, FeedbackHorizon, SlotInfo};

const MB: u64 = 1 << 20;

/// Segments of 1 MB from 100 MB on, up to 200.5 MB; 10 MB are kept anyway, slots may keep 50.
fn holdings() -> Holdings {
    Holdings {
        write_lsn: Lsn::new(200 * MB + MB / 2),
        oldest: Lsn::new(100 * MB),
        seg_size: SegSize::new(MB).unwrap(),
        wal_keep_size: 10 * MB,
        max_slot_wal_keep_size: Some(50 * MB),
        archived: None,
    }
}

fn slot_at(restart_lsn: Option<u64>) -> SlotInfo {
    SlotInfo {
        name: "s".to_owned(),
        restart_lsn: restart_lsn.map(Lsn::new),
        active_pid: None,
        temporary: true,
        invalidated: false,
        feedback: FeedbackHorizon::default(),
        inactive_since: None,
        begun_at: None,
        is_awaited: false,
    }
}

fn status(slot: &SlotInfo, holdings: &Holdings) -> String {
    let row = slot_row(slot, Some(holdings));
    format!("{} {}", row.get("wal_status").unwrap_or("-"), row.get("safe_wal_size").unwrap_or("-"))
}

#[test]
fn a_slots_status_tells_how_safe_its_wal_is() {
    let check = |restart: u64, expected: &str| {
        assert_eq!(status(&slot_at(Some(restart)), &holdings()), expected, "{restart}");
    };
    check(200 * MB, &format!("reserved {}", 50 * MB + MB / 2));
    check(190 * MB, &format!("reserved {}", 40 * MB + MB / 2));
    check(190 * MB - 1, &format!("extended {}", 39 * MB + MB / 2));
    check(150 * MB, &format!("extended {}", MB / 2));
    check(150 * MB - 1, &format!("unreserved -{}", MB / 2));
    check(100 * MB - 1, "lost -");
    check(u64::MAX, &format!("reserved {}", i64::MAX));
    let unlimited = Holdings { max_slot_wal_keep_size: None, ..holdings() };
    assert_eq!(status(&slot_at(Some(110 * MB)), &unlimited), "extended -");
    assert_eq!(status(&slot_at(None), &holdings()), "- -");
    assert_eq!(slot_row(&slot_at(Some(MB)), None).get("wal_status"), None, "before there is any WAL");
}

#[test]
fn what_the_archive_can_bring_back_is_not_lost() {
    let wal = |from, to| Some(ArchivedWal { from: Lsn::new(from), to: Lsn::new(to) });
    let check = |restart: u64, archived, expected: &str| {
        let holdings = Holdings { archived, ..holdings() };
        assert_eq!(status(&slot_at(Some(restart)), &holdings), expected, "{restart}");
    };
    check(20 * MB, wal(10 * MB, 150 * MB), "extended -");
    check(20 * MB, wal(30 * MB, 150 * MB), "lost -");
    check(20 * MB, wal(10 * MB, 90 * MB), "lost -");
    check(120 * MB, wal(10 * MB, 150 * MB), "extended -");
}

#[test]
fn a_lost_slot_says_why() {
    let lost = SlotInfo { invalidated: true, ..slot_at(None) };
    assert_eq!(status(&lost, &holdings()), "lost -");
    assert_eq!(slot_row(&lost, None).get("invalidation_reason"), Some("wal_removed"));
    assert_eq!(slot_row(&slot_at(None), None).get("invalidation_reason"), None);
    let streaming = SlotInfo { active_pid: Some(3), ..slot_at(Some(MB)) };
    assert!(status(&streaming, &holdings()).starts_with("unreserved"), "it may come through");
}

#[test]
fn a_slots_other_columns() {
    let feedback = FeedbackHorizon { xmin: FullXid::new(1, 700), catalog_xmin: FullXid::new(1, 600) };
    let slot = SlotInfo { active_pid: Some(3), feedback, ..slot_at(Some(MB)) };
    let row = slot_row(&slot, None);
    let shown =
        ["slot_type", "temporary", "active", "active_pid", "xmin", "catalog_xmin", "restart_lsn", "failover"];
    let values = shown.map(|column| row.get(column).unwrap_or("-"));
    assert_eq!(values, ["physical", "t", "t", "3", "700", "600", "0/100000", "f"]);
    assert_eq!((row.get("inactive_since"), row.get("plugin")), (None, None));
    let names = |json: serde_json::Value| json.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert!(names(row.into_json()).iter().all(|name| SLOT_COLUMNS.contains(&name.as_str())));
}

#[test]
fn a_senders_columns() {
    let identity = ConsumerIdentity {
        pid: 7,
        user: "u".to_owned(),
        application_name: String::new(),
        client_addr: Some("[::ffff:10.0.0.1]:5000".parse().unwrap()),
        backend_start: SystemTime::UNIX_EPOCH.into(),
    };
    let mut sender = ConsumerStatus {
        identity,
        state: ConsumerState::Catchup,
        sent_bytes: 0,
        sent_lsn: Some(Lsn::new(MB)),
        write_lsn: Some(Lsn::INVALID),
        flush_lsn: None,
        replay_lsn: None,
        write_lag: Some(Duration::from_millis(90_061_500)),
        flush_lag: None,
        replay_lag: None,
        reply_time: None,
        feedback: FeedbackHorizon::default(),
        standing: Standing::Async,
    };
    let row = sender_row(&sender);
    let shown =
        ["client_addr", "client_port", "backend_start", "state", "sent_lsn", "write_lag", "sync_state"];
    let values = shown.map(|column| row.get(column).unwrap_or("-"));
    assert_eq!(
        values,
        ["10.0.0.1", "5000", "1970-01-01 00:00:00+00", "catchup", "0/100000", "25:01:01.5", "async"]
    );
    assert_eq!([row.get("write_lsn"), row.get("flush_lsn"), row.get("reply_time")], [None; 3], "0/0 is NULL");
    assert_eq!(row.get("application_name"), Some(""), "PostgreSQL shows an empty name, not NULL");
    let names = row.into_json().as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert!(names.iter().all(|name| SENDER_COLUMNS.contains(&name.as_str())));
    sender.identity.client_addr = None;
    for (standing, shown) in [(Standing::Sync(3), ["3", "sync"]), (Standing::Quorum, ["1", "quorum"])] {
        let row = sender_row(&ConsumerStatus { standing, ..sender.clone() });
        assert_eq!(["sync_priority", "sync_state"].map(|column| row.get(column)), shown.map(Some));
    }
    let row = sender_row(&sender);
    assert_eq!((row.get("client_addr"), row.get("client_port")), (None, Some("-1")));
}

#[test]
fn times_are_in_utc() {
    let check = |micros: u64, expected: &str| {
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        assert_eq!(Moment::from(time).to_string(), expected);
    };
    check(951_827_696_000_001, "2000-02-29 12:34:56.000001+00");
    check(951_868_800_000_000, "2000-03-01 00:00:00+00");
    check(1_709_164_800_100_000, "2024-02-29 00:00:00.1+00");
    check(4_107_542_399_000_000, "2100-02-28 23:59:59+00");
    check(4_107_542_400_000_000, "2100-03-01 00:00:00+00");
    check(1_735_689_599_000_000, "2024-12-31 23:59:59+00");
    check(253_402_300_800_000_000, "10000-01-01 00:00:00+00");
}
