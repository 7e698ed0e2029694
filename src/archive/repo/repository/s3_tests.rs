//! A repository over an S3 server that counts requests and misbehaves.

use walrelay_testkit::S3;

use super::*;
use crate::archive::repo::codec::Compression;
use crate::archive::repo::target::Target;
use crate::objects::ObjectPlace;

fn repository_with(s3: &S3, lines: &[(&str, &str)], compression: Compression) -> Repository {
    let mut place = ObjectPlace::parse("s3://wal/main").unwrap();
    let endpoint = s3.endpoint();
    let fixed = [
        ("endpoint", endpoint.as_str()),
        ("region", "x"),
        ("access_key_id", "key"),
        ("secret_access_key", "s"),
    ];
    for (name, value) in fixed.iter().chain(lines) {
        place.options.insert(name.to_string(), value.to_string());
    }
    let target = Target { compression, ..Target::new("test".to_owned(), Place::Objects(place)) };
    Repository::open(&target).unwrap()
}

fn repository(s3: &S3) -> Repository {
    repository_with(s3, &[], Compression::Zstd(1))
}

fn name(segno: u32) -> FileName {
    FileName::parse(&format!("0000000100000000{segno:08X}")).unwrap()
}

/// Nothing that can be compressed.
fn noise(len: usize) -> Bytes {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    (0..len).map(|_| next()).collect::<Vec<_>>().into()
}

#[tokio::test]
async fn a_new_file_costs_two_requests_and_one_that_is_there_two_or_three() {
    let s3 = S3::start();
    let there = repository(&s3);
    let content = |segno: u32| Bytes::from(format!("WAL {segno}"));
    // The first one of a process is looked for in every form it may have.
    there.write(&name(1), content(1)).await.unwrap();
    s3.take_requests();
    for segno in 2..12 {
        let written = there.write(&name(segno), content(segno)).await.unwrap();
        assert!(matches!(written, Written::New { .. }));
    }
    let asked = s3.take_requests();
    assert_eq!(asked.len(), 20, "{asked:#?}");
    assert!(asked.iter().all(|request| request.starts_with("PUT ")), "{asked:#?}");
    // Another relay comes to the same target: from the second file on it looks before it sends.
    let other = repository(&s3);
    for segno in 1..12 {
        assert_eq!(other.write(&name(segno), content(segno)).await.unwrap(), Written::Same);
    }
    let asked = s3.take_requests();
    assert!(
        asked.len() <= 2 * 11 + 1 && !asked.iter().any(|request| request.starts_with("PUT")),
        "{asked:#?}"
    );
    assert_eq!(s3.objects().len(), 22);
}

#[tokio::test]
async fn other_content_is_kept_aside_whatever_its_form() {
    let s3 = S3::start();
    let mine = repository(&s3);
    mine.write(&name(1), "one".into()).await.unwrap();
    // Written by a relay that compresses in another way, after we have looked last.
    let theirs = repository_with(&s3, &[], Compression::None);
    theirs.write(&name(2), "theirs".into()).await.unwrap();
    theirs.write(&name(3), "three".into()).await.unwrap();
    let written = mine.write(&name(2), "mine".into()).await.unwrap();
    assert!(matches!(written, Written::Conflict { .. }), "{written:?}");
    assert_eq!(mine.write(&name(3), "three".into()).await.unwrap(), Written::Same);
    assert_eq!(mine.read(&name(2)).await.unwrap(), Some("theirs".into()));
    let objects = s3.objects();
    assert!(!objects.contains_key("main/000000010000000000000002.zst"), "{:?}", objects.keys());
}

#[tokio::test]
async fn a_store_without_conditions_is_written_to_and_nothing_is_replaced() {
    let s3 = S3::start();
    s3.behave(|it| it.no_conditions = true);
    let there = repository(&s3);
    for segno in 1..4 {
        let written = there.write(&name(segno), "mine".into()).await.unwrap();
        assert!(matches!(written, Written::New { .. }), "{written:?}");
    }
    assert_eq!(there.write(&name(1), "mine".into()).await.unwrap(), Written::Same);
    assert!(matches!(there.write(&name(1), "other".into()).await.unwrap(), Written::Conflict { .. }));
    assert_eq!(there.read(&name(1)).await.unwrap(), Some("mine".into()));
    // Asked once; not with each file.
    s3.take_requests();
    there.write(&name(9), "mine".into()).await.unwrap();
    there.write(&name(10), "mine".into()).await.unwrap();
    let puts = s3.take_requests().into_iter().filter(|request| request.starts_with("PUT")).count();
    assert_eq!(puts, 4);
}

#[tokio::test]
async fn redirects_to_other_hosts_are_not_followed() {
    let (s3, elsewhere) = (S3::start(), S3::start());
    s3.behave(|it| it.redirect = Some(elsewhere.endpoint()));
    let there = repository_with(&s3, &[("token", "secret-token")], Compression::None);
    let error = there.write(&name(1), "mine".into()).await.unwrap_err().to_string();
    assert!(error.contains("redirects to") && error.contains(&elsewhere.endpoint()), "{error}");
    there.read(&name(1)).await.unwrap_err();
    there.list().await.unwrap_err();
    assert_eq!(elsewhere.take_requests(), [""; 0]);
}

#[tokio::test]
async fn large_files_go_in_parts() {
    let s3 = S3::start();
    let content = noise(70 << 20);
    for (segno, compression) in [(1, Compression::None), (2, Compression::Lz4)] {
        let there = repository_with(&s3, &[], compression);
        let written = there.write(&name(segno), content.clone()).await.unwrap();
        assert!(matches!(written, Written::New { size } if size >= 70 << 20), "{written:?}");
        let sent = s3.take_requests();
        let largest =
            sent.iter().filter_map(|request| request.rsplit(' ').next()?.parse::<usize>().ok()).max();
        assert!(largest <= Some(16 << 20), "{sent:#?}");
        assert_eq!(there.write(&name(segno), content.clone()).await.unwrap(), Written::Same);
    }
    // What lies there is what its checksum says.
    let stored = &s3.objects()["main/000000010000000000000001"];
    assert!(stored[..] == content[..]);
    let packed = &s3.objects()["main/000000010000000000000002.lz4"];
    let sidecar = Sidecar::parse(&s3.objects()["main/000000010000000000000002.sha256"]).unwrap();
    assert_eq!((Sha256::of(packed), packed.len() as u64), (sidecar.sha256, sidecar.size));
    // It is no segment: nobody reads 70 MB to find that out.
    let there = repository_with(&s3, &[], Compression::None);
    for segno in [1, 2] {
        let error = there.read(&name(segno)).await.unwrap_err();
        assert!(
            matches!(&error, ReadError::Damaged { reason, .. } if reason.contains("does not begin as")),
            "{error}"
        );
    }
}

/// What `make` has to say when the object of another relay appears while ours is sent in parts.
async fn put_while_another_appears(s3: &Arc<S3>, path: &str) -> Option<()> {
    let (others, key) = (s3.clone(), format!("main/{path}"));
    let make = move |out: &mut dyn std::io::Write| {
        // More than can be made before the first part is on its way.
        (0..80).try_for_each(|_| out.write_all(&[1; 1 << 20]))?;
        others.put(&key, b"theirs");
        Ok(())
    };
    repository(s3).storage().put_made(path, 80 << 20, true, make).await.unwrap()
}

#[tokio::test]
async fn what_appears_during_an_upload_in_parts_is_not_replaced() {
    let s3 = Arc::new(S3::start());
    assert_eq!(put_while_another_appears(&s3, "one").await, None);
    assert_eq!(s3.objects()["main/one"], b"theirs");
    assert_eq!(s3.uploads(), 0, "ours is aborted");
    // A store that knows no conditions: it is looked for again, the second time before the end of the upload.
    s3.behave(|it| it.no_conditions = true);
    let store = repository(&s3);
    let make = |out: &mut dyn std::io::Write| (0..80).try_for_each(|_| out.write_all(&[2; 1 << 20]));
    assert_eq!(store.storage().put_made("two", 80 << 20, true, make).await.unwrap(), Some(()));
    assert_eq!(s3.objects()["main/two"].len(), 80 << 20);
    s3.take_requests();
    assert_eq!(store.storage().put_made("three", 80 << 20, true, make).await.unwrap(), Some(()));
    let asked = s3.take_requests();
    let count = |method: &str| asked.iter().filter(|request| request.starts_with(method)).count();
    assert_eq!((count("HEAD"), count("POST")), (2, 2), "{asked:#?}");
}

/// Each waits until there is room in memory for its next part, and none waits for another one's end.
#[tokio::test(flavor = "multi_thread")]
async fn many_uploads_in_parts_go_on_side_by_side() {
    let s3 = S3::start();
    let there = repository(&s3);
    let put = async |number: u8| {
        let make =
            move |out: &mut dyn std::io::Write| (0..13).try_for_each(|_| out.write_all(&[number; 1 << 20]));
        there.storage().put_made(&number.to_string(), 13 << 20, true, make).await.unwrap()
    };
    let puts: Vec<_> = (0..8).map(put).collect();
    assert_eq!(futures_util::future::join_all(puts).await, [Some(()); 8]);
    let objects = s3.objects();
    assert!((0..8u8).all(|number| objects[&format!("main/{number}")] == vec![number; 13 << 20]));
}
