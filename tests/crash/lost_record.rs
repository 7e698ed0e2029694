//! What is left of a record that its server has given up, where the WAL that is held ends right behind the word of that.

use std::path::Path;
use std::sync::Arc;

use walrelay::disk::sim::SimDisk;
use walrelay::store::{Identity, Store, StoreConfig, UpstreamParameters, WalWrite};
use walrelay::upstream::Held;
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegSize, SystemId, TimelineHistory, TimelineId, WalIdentity};

const START: Lsn = Lsn::new(3 << 20);

/// A crash leaves other bytes of it than the upstream has. Nobody can verify them, so they prove nothing.
#[test]
fn a_lost_record_does_not_part_two_histories_where_wal_ends_behind_it() {
    let (system_id, seg_size) = (SystemId(77), SegSize::new(1 << 20).expect("a power of two"));
    let mut wal = WalGenerator::new(WalIdentity { system_id, seg_size }, TimelineId::FIRST, START, 7);
    wal.fill(20_000);
    let lost = wal.abort_record(30_000, 1);
    let config = StoreConfig {
        data_dir: Path::new("/relay").to_owned(),
        wal_write: WalWrite::Pwrite,
        wal_keep_size: 1 << 30,
        max_slot_wal_keep_size: None,
        max_replication_slots: 1,
    };
    let mut relay = Store::open_on(Arc::new(SimDisk::new()), config).expect("an empty disk is well");
    let identity = Identity { system_id, seg_size };
    relay.store.attach(identity, UpstreamParameters::default()).expect("it is the first");
    relay.writer.begin(identity, TimelineHistory::first(), START);
    relay.writer.append(START, wal.bytes()).expect("WAL is taken");
    relay.writer.commit();
    let end = relay.store.tip().expect("there is WAL").write_lsn;
    assert_eq!(end, wal.position(), "all of it is held");

    let mut theirs = wal.bytes().to_vec();
    theirs[lost.since(START) as usize + 40] ^= 1;
    let held = Held::before(&relay.store, end).expect("it is held");
    assert!(held.seam().from < lost, "it is looked at");
    let from = held.seam().from.since(START) as usize;
    held.check(held.seam().from, &theirs[from..]).expect("nobody can tell");
    relay.writer.append(START, &theirs).expect("nobody can tell");

    let checked = lost.since(START) as usize - 20;
    theirs[checked] ^= 1;
    assert!(held.check(held.seam().from, &theirs[from..]).is_err());
    assert!(relay.writer.append(START, &theirs).is_err());
}
