//! Servers that break the rules of a stream: the relay says how, keeps what it holds, and goes on with a right one.

use super::*;

/// WAL of which the relay holds the first part; the servers have all of it.
struct Scene {
    wal: WalGenerator,
    held: Lsn,
    /// Up to here, in the middle of a record, a hostile server does as it should.
    good: Lsn,
}

impl Scene {
    fn new() -> Scene {
        let mut wal = generator(21);
        wal.fill(200_000);
        let held = wal.position();
        wal.fill(60_000);
        wal.record(5000);
        let good = wal.position().rewind(2000);
        wal.fill(60_000);
        Scene { wal, held, good }
    }

    fn from(&self, at: Lsn, len: usize) -> Vec<u8> {
        self.wal.bytes()[at.since(START) as usize..][..len].to_vec()
    }

    fn relay(&self) -> Setup {
        Setup::holding(&self.from(START, self.held.since(START) as usize))
    }

    fn right(&self) -> Script {
        Script::of(self.wal.bytes())
    }

    fn hostile(&self, noise: Vec<u8>) -> Script {
        Script { noise: Some((self.good, noise)), ..self.right() }
    }

    /// The end of the last record that is whole before `good`.
    fn whole(&self) -> Lsn {
        *self.wal.record_ends().iter().rfind(|end| **end <= self.good).unwrap()
    }

    /// What is published is the server's.
    #[track_caller]
    fn is_what_is_held(&self, store: &Store) {
        let (mut at, end) = (START, store.tip().unwrap().write_lsn);
        while at < end {
            let segment = store.segment(TimelineId::FIRST, at.seg_at(identity().seg_size)).unwrap();
            let len = segment.end().min(end).since(at) as usize;
            assert!(segment.bytes(at.since(segment.start()), len) == self.from(at, len), "from {at} on");
            at = at.advance(len as u64);
        }
    }

    /// What hostile servers send, and what is said of it.
    fn cases(&self) -> Vec<(Vec<u8>, String)> {
        let unexpected = |kind: char| format!("unexpected message of type '{kind}' in WAL stream");
        let (good, held) = (self.good, self.held);
        let mut other = self.from(held, 100);
        other[50] ^= 4;
        let mut damaged = self.from(good, 2500);
        damaged[1000] ^= 1;
        let endless = XLogDataHeader { start: good, end: good, send_time: PgTimestamp::from_micros(1) };
        let mut endless = endless.frame(0).to_vec();
        endless[1..5].copy_from_slice(&u32::MAX.to_be_bytes());
        endless.extend(self.from(good, 500));
        let jump = format!("received WAL at {}, expected {good}", good.advance(8));
        let differs = format!("timeline 1 at {}: the upstream's WAL differs", held.advance(50));
        vec![
            (b"d\0\0\0\x03".to_vec(), unexpected('d')),
            (b"d\x7f\xff\xff\xffk".to_vec(), unexpected('d')),
            (b"E\x7f\xff\xff\xffS".to_vec(), unexpected('E')),
            (frame(b'Q', b"select 1\0"), unexpected('Q')),
            (frame(b'Z', b"I"), unexpected('Z')),
            (frame(b'd', b""), "empty replication message received from upstream".to_owned()),
            (frame(b'd', b"xyz"), "invalid replication message type 120".to_owned()),
            (frame(b'd', &[b'w'; 24]), "invalid WAL message received from upstream".to_owned()),
            (frame(b'd', &[b'k'; 19]), "invalid keepalive message received from upstream".to_owned()),
            (message(good.advance(8), &[0; 8]), jump),
            (message(held, &other), differs),
            (message(good, &damaged), "received bad WAL: ".to_owned()),
            (endless, "server closed the connection unexpectedly".to_owned()),
            (Vec::new(), "server closed the connection unexpectedly".to_owned()),
            // The same again is no fault.
            (
                [message(held, &self.from(held, 3000)), frame(b'C', b"COPY 0\0")].concat(),
                "replication terminated by upstream server".to_owned(),
            ),
        ]
    }
}

fn message(at: Lsn, wal: &[u8]) -> Vec<u8> {
    let header = XLogDataHeader { start: at, end: at, send_time: PgTimestamp::from_micros(1) };
    [&header.frame(wal.len() as u32)[..], wal].concat()
}

#[tokio::test]
async fn a_stream_that_breaks_the_rules_is_named_and_left() {
    let scene = Scene::new();
    for (noise, said) in scene.cases() {
        let mut relay = scene.relay();
        let (error, confirmed) = relay.round(&scene.hostile(noise), 1).await;
        assert!(error.to_string().contains(&said), "{error}, expected {said}");
        // What was whole before it counts, and nothing else was stored or confirmed.
        assert_eq!(relay.end(), scene.whole(), "{said}");
        assert!(confirmed <= Some(scene.whole()), "{said}: {confirmed:?}");
        scene.is_what_is_held(&relay.store);
        let (error, confirmed) = relay.round(&scene.right(), 1).await;
        assert!(follows(&error), "after {said}: {error}");
        assert_eq!((relay.end(), confirmed), (scene.wal.position(), Some(scene.wal.position())));
        scene.is_what_is_held(&relay.store);
    }
}

#[tokio::test]
async fn another_cluster_at_the_same_address_gets_and_leaves_nothing() {
    let scene = Scene::new();
    let mut relay = scene.relay();
    let other = Script { system: "10", ..scene.right() };
    let (error, _) = relay.round(&other, 1).await;
    assert!(error.is_permanent() && error.to_string().contains("10"), "{error}");
    relay.is_untouched_by(&other);
    assert_eq!(relay.end(), scene.held);
    let (error, confirmed) = relay.round(&scene.right(), 1).await;
    assert!(follows(&error) && confirmed == Some(scene.wal.position()), "{error}");
    scene.is_what_is_held(&relay.store);
}

/// The same without anybody who asks: one fault after the other, and then a server as it should be.
#[tokio::test]
async fn the_relay_goes_on_by_itself_when_the_right_server_is_back() {
    let scene = Scene::new();
    let Setup { store, writer, _background, dir: _dir, .. } = scene.relay();
    let mut scripts: Vec<Script> = scene.cases().into_iter().map(|(noise, _)| scene.hostile(noise)).collect();
    scripts.insert(1, Script { system: "10", ..scene.right() });
    let (listener, port) = listen().await;
    let right = scene.right();
    let serving = tokio::spawn(async move {
        let mut scripts = scripts.into_iter();
        loop {
            let stream = listener.accept().await.unwrap().0;
            scripts.next().unwrap_or_else(|| right.clone()).play(stream).await;
        }
    });
    let config = UpstreamConfig {
        conninfo: info(port, "sslmode=disable"),
        slot: "s".parse().unwrap(),
        dbname: "postgres".to_owned(),
        wal_receiver_timeout: Some(Duration::from_secs(60)).into(),
        shutdown_timeout: Duration::from_secs(10).into(),
        followed: Following::channel().0,
    };
    let stop = CancellationToken::new();
    let following = tokio::spawn(follow(config, writer, stop.clone()));
    let mut flushed = store.flushed();
    let end = scene.wal.position();
    let arrived = flushed.wait_for(|flushed| flushed.is_some_and(|flushed| flushed.lsn == end));
    tokio::time::timeout(Duration::from_secs(60), arrived).await.expect("all WAL").unwrap();
    scene.is_what_is_held(&store);
    stop.cancel();
    following.await.unwrap().unwrap();
    serving.abort();
}
