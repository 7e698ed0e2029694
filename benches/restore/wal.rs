//! The WAL that is restored.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use walrelay::archive::{FileName, Repository, Target};
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegNo, SegSize, SystemId, TimelineId, WalFileName, WalIdentity};
use walrelay_testkit::Scratch;

const SEG: u64 = 16 << 20;
const FIRST: u64 = 1;
/// Pages of PostgreSQL 15, because pgBackRest looks at them.
const MAGIC: u16 = 0xD110;

/// Segments in a directory.
pub(crate) struct Wal {
    id: WalIdentity,
    segments: u64,
    scratch: Scratch,
}

impl Wal {
    pub(crate) fn generate(megabytes: u64, system_id: Option<SystemId>) -> Wal {
        let seg_size = SegSize::new(SEG).expect("PostgreSQL's default");
        let id = WalIdentity { system_id: system_id.unwrap_or(SystemId(77)), seg_size };
        let wal = Wal { id, segments: (megabytes << 20) / SEG, scratch: Scratch::new("wal") };
        let mut generator = WalGenerator::new(id, TimelineId::FIRST, wal.start(), 7).with_magic(MAGIC);
        let mut rest = Vec::new();
        for name in wal.names() {
            generator.fill((SEG as usize).saturating_sub(rest.len()));
            rest.extend(generator.take());
            fs::write(wal.dir().join(name), &rest[..SEG as usize]).expect("there is room for it");
            rest.drain(..SEG as usize);
        }
        wal
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.scratch.path().to_owned()
    }

    pub(crate) fn id(&self) -> WalIdentity {
        self.id
    }

    pub(crate) fn segments(&self) -> u64 {
        self.segments
    }

    pub(crate) fn segnos(&self) -> impl Iterator<Item = SegNo> {
        (FIRST..FIRST + self.segments).map(SegNo::new)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        let name = |segno| WalFileName::new(TimelineId::FIRST, segno).format(self.id.seg_size);
        self.segnos().map(name)
    }

    pub(crate) fn last(&self) -> String {
        self.names().last().expect("there is a segment")
    }

    pub(crate) fn start(&self) -> Lsn {
        Lsn::new(FIRST * SEG)
    }

    pub(crate) fn end(&self) -> Lsn {
        Lsn::new((FIRST + self.segments) * SEG)
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.names().map(|name| self.dir().join(name))
    }

    /// As the relay archives it, with checksums.
    pub(crate) async fn copy_to(&self, target: &Target) {
        let repository = Repository::open(target).expect("it is no command");
        for name in self.names() {
            let content = Bytes::from(read(&self.dir().join(&name)));
            let name = FileName::parse(&name).expect("a segment's name");
            repository.write(&name, content).await.expect("the target takes it");
        }
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).expect("it was written")
}
