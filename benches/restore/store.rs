//! What a file costs on its way into an object store: requests, and time when each answer takes long.

use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use walrelay::archive::{FileName, Repository, Target};
use walrelay_proto::{SegNo, SegSize, TimelineId, WalFileName};
use walrelay_testkit::S3;

/// How long each answer takes.
pub(crate) const ANSWER: Duration = Duration::from_millis(20);
/// Files that are measured; one more comes first, which is looked for before it is sent.
const FILES: u64 = 50;

/// Stores small files, one after another, and says what each has cost.
pub(crate) fn archive(runtime: &Runtime, target: impl Fn(&S3) -> Target) {
    let s3 = S3::start();
    s3.behave(|it| it.delay = ANSWER);
    let repository = Repository::open(&target(&s3)).expect("it is no command");
    let size = SegSize::new(1 << 20).expect("PostgreSQL's smallest");
    let write = |number| {
        let name = FileName::segment(WalFileName::new(TimelineId::FIRST, SegNo::new(number)), size);
        let content = number.to_string().into();
        runtime.block_on(repository.write(&name, content)).expect("the store takes everything");
    };
    write(1);
    s3.take_requests();
    let begun = Instant::now();
    (2..FILES + 2).for_each(write);
    let (time, requests) = (begun.elapsed() / FILES as u32, s3.take_requests().len() as f64 / FILES as f64);
    println!("archive to a store that answers in {ANSWER:?}: {requests:.1} requests, {time:.1?} a file");
}
