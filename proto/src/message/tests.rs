use proptest::prelude::*;

use super::*;

const SECOND: i64 = 1_000_000;

fn payload(frame: &[u8]) -> &[u8] {
    let (prefix, payload) = frame.split_at(FRAME_PREFIX);
    assert_eq!(prefix[0], b'd');
    assert_eq!(prefix[1..], (u32::try_from(frame.len()).unwrap() - 1).to_be_bytes());
    payload
}

#[test]
fn timestamps_count_from_2000() {
    let unix = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    assert_eq!(PgTimestamp::from_system_time(unix(946_684_801)), PgTimestamp(SECOND));
    assert_eq!(PgTimestamp::from_system_time(unix(946_684_799)), PgTimestamp(-SECOND));
    assert_eq!(PgTimestamp(-SECOND).to_system_time(), Some(unix(946_684_799)));
}

#[test]
fn wal_header_is_thirty_bytes() {
    let header = XLogDataHeader {
        start: Lsn::new(0x0102_0304_0506_0708),
        end: Lsn::new(0x1112_1314_1516_1718),
        send_time: PgTimestamp(0x2122_2324_2526_2728),
    };
    let expected: [u8; 30] = [
        b'd', 0, 2, 0, 29, b'w', 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18,
        0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28,
    ];
    assert_eq!(header.frame(131_072), expected);
}

#[test]
fn status_update_is_thirty_four_bytes() {
    let message = StandbyStatusUpdate {
        write: Some(Lsn::new(0x0300_0100)),
        flush: None,
        apply: Some(Lsn::new(1 << 32)),
        send_time: PgTimestamp(-1),
        reply_requested: true,
    };
    let mut expected = vec![b'd', 0, 0, 0, 38, b'r', 0, 0, 0, 0, 3, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    expected.extend([0, 0, 0, 1, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 1]);
    assert_eq!(message.frame()[..], expected);
}

#[test]
fn feedback_puts_the_id_before_its_epoch() {
    let message =
        HotStandbyFeedback { send_time: PgTimestamp(7), xmin: FullXid::new(2, 0x1234), catalog_xmin: None };
    let expected = [
        b'd', 0, 0, 0, 29, b'h', 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0x12, 0x34, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(message.frame(), expected);
}

#[test]
fn special_transaction_ids_are_none_and_the_rest_is_ordered_by_epoch() {
    for xid in 0..3 {
        assert_eq!(FullXid::new(9, xid), None);
    }
    assert!(FullXid::new(1, 3).unwrap() > FullXid::new(0, u32::MAX).unwrap());
}

#[test]
fn a_walreceiver_wants_keepalives_exact() {
    let frame = Keepalive { end: Lsn::new(9), send_time: PgTimestamp(1), reply_requested: false }.frame();
    let exact = payload(&frame);
    assert_eq!(exact.len(), Keepalive::LEN);
    let longer = [exact, &[0, 0, 0]].concat();
    for wrong in [&exact[..17], &exact[..1], &longer] {
        assert_eq!(ServerMessage::decode(wrong), Err(ServerMessageError::KeepaliveLength));
    }
}

#[test]
fn a_walreceiver_refuses_what_it_does_not_know() {
    assert_eq!(ServerMessage::decode(b""), Err(ServerMessageError::Empty));
    assert_eq!(ServerMessage::decode(b"q"), Err(ServerMessageError::UnknownType(b'q')));
    assert_eq!(ServerMessage::decode(&[b'w'; 24]), Err(ServerMessageError::ShortXLogData));
    let empty = ServerMessage::decode(&[b'w'; 25]);
    assert!(matches!(empty, Ok(ServerMessage::XLogData(_, b""))));
}

#[test]
fn a_walsender_ignores_what_follows_a_message_and_misses_what_lacks() {
    let status = [b'r'; StandbyStatusUpdate::LEN + 3];
    let feedback = [b'h'; HotStandbyFeedback::LEN + 1];
    for (message, len) in [(&status[..], StandbyStatusUpdate::LEN), (&feedback, HotStandbyFeedback::LEN)] {
        assert_eq!(ClientMessage::decode(message), ClientMessage::decode(&message[..len]));
        for short in 1..len {
            assert_eq!(ClientMessage::decode(&message[..short]), Err(ClientMessageError::Insufficient));
        }
    }
    assert_eq!(ClientMessage::decode(b""), Err(ClientMessageError::NoData));
    for kind in [b'w', b'k', b'p', b'z'] {
        assert_eq!(ClientMessage::decode(&[kind; 40]), Err(ClientMessageError::UnknownType(kind)));
    }
}

fn lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn::new)
}

fn position() -> impl Strategy<Value = Option<Lsn>> {
    any::<u64>().prop_map(|n| Lsn::new(n).valid())
}

fn time() -> impl Strategy<Value = PgTimestamp> {
    any::<i64>().prop_map(PgTimestamp)
}

fn xid() -> impl Strategy<Value = Option<FullXid>> {
    any::<(u32, u32)>().prop_map(|(epoch, xid)| FullXid::new(epoch, xid))
}

proptest! {
    #[test]
    fn servers_messages_come_back(start in lsn(), end in lsn(), send_time in time(), reply in any::<bool>(),
                                  wal in proptest::collection::vec(any::<u8>(), 0..99)) {
        let header = XLogDataHeader { start, end, send_time };
        let frame = [&header.frame(u32::try_from(wal.len()).unwrap())[..], &wal].concat();
        prop_assert_eq!(ServerMessage::decode(payload(&frame)), Ok(ServerMessage::XLogData(header, &wal)));
        let keepalive = Keepalive { end, send_time, reply_requested: reply };
        let frame = keepalive.frame();
        prop_assert_eq!(ServerMessage::decode(payload(&frame)), Ok(ServerMessage::Keepalive(keepalive)));
    }

    #[test]
    fn clients_messages_come_back(write in position(), flush in position(), apply in position(),
                                  send_time in time(), reply_requested in any::<bool>(),
                                  xmin in xid(), catalog_xmin in xid()) {
        let status = StandbyStatusUpdate { write, flush, apply, send_time, reply_requested };
        prop_assert_eq!(ClientMessage::decode(payload(&status.frame())), Ok(ClientMessage::Status(status)));
        let feedback = HotStandbyFeedback { send_time, xmin, catalog_xmin };
        prop_assert_eq!(ClientMessage::decode(payload(&feedback.frame())), Ok(ClientMessage::Feedback(feedback)));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = ServerMessage::decode(&bytes);
        let _ = ClientMessage::decode(&bytes);
    }

    #[test]
    fn clocks_agree(micros in any::<i64>()) {
        if let Some(time) = PgTimestamp(micros).to_system_time() {
            prop_assert_eq!(PgTimestamp::from_system_time(time).as_micros(), micros.max(-i64::MAX));
        }
    }
}
