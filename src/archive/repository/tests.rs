//! A repository over a store in memory.

use super::*;
use crate::archive::codec::Compression;
use object_store::ObjectStore;
use object_store::memory::InMemory;

fn name(text: &str) -> FileName {
    FileName::parse(text).unwrap()
}

fn segment() -> FileName {
    name("000000010000000000000003")
}

fn repository(store: &Arc<InMemory>, layout: Layout, compression: Compression) -> Repository {
    let store: Arc<dyn ObjectStore> = store.clone();
    let codec = Codec::new(compression, None, layout.hides_compression());
    Repository::over(Storage::over(store, "here"), "test", layout, codec)
}

fn plain(store: &Arc<InMemory>) -> Repository {
    repository(store, Layout::Plain, Compression::None)
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

async fn paths(repository: &Repository) -> Vec<String> {
    repository.list().await.unwrap().into_iter().map(|entry| entry.path).collect()
}

#[tokio::test]
async fn what_is_written_is_read_in_every_layout() {
    for layout in [Layout::Plain, Layout::Barman, Layout::BarmanCloud] {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd(3), Compression::Gzip(1)] {
            let there = repository(&Arc::default(), layout, compression);
            for file in ["000000010000000000000003", "00000002.history", "000000010000000000000003.partial"] {
                assert_eq!(there.read(&name(file)).await.unwrap(), None);
                let written = there.write(&name(file), bytes(file)).await.unwrap();
                assert!(matches!(written, Written::New { .. }));
                assert_eq!(there.write(&name(file), bytes(file)).await.unwrap(), Written::Same);
                assert_eq!(there.read(&name(file)).await.unwrap(), Some(bytes(file)));
            }
        }
    }
}

#[tokio::test]
async fn an_object_that_is_neither_compressed_nor_encrypted_is_the_file() {
    let there = plain(&Arc::default());
    there.write(&segment(), bytes("WAL")).await.unwrap();
    assert_eq!(paths(&there).await, ["000000010000000000000003", "000000010000000000000003.sha256"]);
    assert_eq!(there.storage().get(segment().as_str()).await.unwrap(), Some(bytes("WAL")));
}

#[tokio::test]
async fn other_content_is_kept_aside_and_the_first_stays() {
    let there = plain(&Arc::default());
    there.write(&segment(), bytes("first")).await.unwrap();
    let Written::Conflict { kept_aside } = there.write(&segment(), bytes("second")).await.unwrap() else {
        panic!("no conflict");
    };
    assert!(kept_aside.starts_with("000000010000000000000003.conflict-"), "{kept_aside}");
    assert_eq!(there.storage().get(&kept_aside).await.unwrap(), Some(bytes("second")));
    assert_eq!(there.read(&segment()).await.unwrap(), Some(bytes("first")));
    assert_eq!(paths(&there).await.len(), 3);
    there.write(&segment(), bytes("second")).await.unwrap();
    assert_eq!(paths(&there).await.len(), 3);
}

#[tokio::test]
async fn a_file_is_the_same_under_another_compression() {
    let store = Arc::default();
    let before = repository(&store, Layout::Plain, Compression::Gzip(6));
    before.write(&segment(), bytes("WAL")).await.unwrap();
    let now = repository(&store, Layout::Plain, Compression::Zstd(1));
    assert_eq!(now.write(&segment(), bytes("WAL")).await.unwrap(), Written::Same);
    assert_eq!(now.read(&segment()).await.unwrap(), Some(bytes("WAL")));
    assert!(matches!(now.write(&segment(), bytes("other")).await.unwrap(), Written::Conflict { .. }));
    // Also if the checksum never came.
    now.storage().delete("000000010000000000000003.sha256").await.unwrap();
    assert_eq!(now.read(&segment()).await.unwrap(), Some(bytes("WAL")));
    assert_eq!(now.write(&segment(), bytes("WAL")).await.unwrap(), Written::Same);
}

#[tokio::test]
async fn a_crash_between_object_and_checksum_is_made_good() {
    let there = repository(&Arc::default(), Layout::Plain, Compression::Zstd(3));
    there.write(&segment(), bytes("WAL")).await.unwrap();
    let before = there.sidecar(&segment()).await.unwrap();
    there.storage().delete("000000010000000000000003.sha256").await.unwrap();
    assert_eq!(there.write(&segment(), bytes("WAL")).await.unwrap(), Written::Same);
    assert_eq!(there.sidecar(&segment()).await.unwrap(), before);
    // The other way round, somebody has removed the object.
    there.storage().delete("000000010000000000000003.zst").await.unwrap();
    assert!(matches!(there.read(&segment()).await, Err(ReadError::Damaged { .. })));
    assert!(matches!(there.write(&segment(), bytes("WAL")).await.unwrap(), Written::New { .. }));
    assert_eq!(there.read(&segment()).await.unwrap(), Some(bytes("WAL")));
}

#[tokio::test]
async fn damage_shows_and_is_replaced() {
    for compression in [Compression::None, Compression::Lz4] {
        let there = repository(&Arc::default(), Layout::BarmanCloud, compression);
        there.write(&segment(), bytes("write-ahead log")).await.unwrap();
        let path = there.layout().file(&segment(), there.codec.format());
        for damage in ["", "write-ahead bog", "write"] {
            there.storage().put(&path, bytes(damage)).await.unwrap();
            let Err(ReadError::Damaged { path: at, .. }) = there.read(&segment()).await else {
                panic!("{damage} passes for WAL");
            };
            assert_eq!(at, path);
            there.replace(&segment(), bytes("write-ahead log")).await.unwrap();
            assert_eq!(there.read(&segment()).await.unwrap(), Some(bytes("write-ahead log")));
        }
        let kept = paths(&there).await.iter().filter(|path| path.contains(".damaged-")).count();
        assert_eq!(kept, 3);
    }
}

#[tokio::test]
async fn pieces_are_put_together_as_far_as_they_reach() {
    let there = repository(&Arc::default(), Layout::Plain, Compression::Lz4);
    assert_eq!(there.read_beginning(&segment()).await.unwrap(), b"");
    let all = "0123456789";
    let mut chunks = Vec::new();
    for (start, end) in [(0, 2), (2, 5), (4, 7), (8, 10)] {
        chunks.push(there.write_chunk(&segment(), start, bytes(&all[start as usize..end])).await.unwrap());
    }
    assert_eq!(there.chunks(&segment()).await.unwrap(), chunks);
    assert_eq!(there.read_beginning(&segment()).await.unwrap(), b"0123456");
    there.write_chunk(&segment(), 0, bytes(all)).await.unwrap();
    assert_eq!(there.read_beginning(&segment()).await.unwrap(), all.as_bytes());
    there.remove_chunks(&chunks).await.unwrap();
    assert_eq!(there.chunks(&segment()).await.unwrap().len(), 1);
    there.remove_all_chunks(&segment()).await.unwrap();
    assert_eq!(paths(&there).await, [""; 0]);
}

#[tokio::test]
async fn a_damaged_piece_shows() {
    let there = plain(&Arc::default());
    let chunk = there.write_chunk(&segment(), 0, bytes("0123")).await.unwrap();
    let path = there.layout().chunk(&chunk, Format::PLAIN);
    there.storage().put(&path, bytes("01x3")).await.unwrap();
    assert!(matches!(there.read_beginning(&segment()).await, Err(ReadError::Damaged { .. })));
}

#[tokio::test]
async fn removal_takes_the_checksum_first() {
    let there = plain(&Arc::default());
    there.write(&segment(), bytes("WAL")).await.unwrap();
    let entries = there.list().await.unwrap();
    let file = entries.iter().find(|entry| matches!(entry.item, Item::File(..))).unwrap();
    there.remove(file).await.unwrap();
    assert_eq!(paths(&there).await, [""; 0]);
    assert_eq!(there.read(&segment()).await.unwrap(), None);
}

#[tokio::test]
async fn two_writers_of_the_same_file_agree() {
    let store = Arc::default();
    let there = repository(&store, Layout::Plain, Compression::Zstd(1));
    let (segment, other) = (segment(), there.clone());
    let (one, two) = tokio::join!(there.write(&segment, bytes("WAL")), other.write(&segment, bytes("WAL")));
    let new = [one.unwrap(), two.unwrap()].iter().filter(|it| matches!(it, Written::New { .. })).count();
    assert_eq!(new, 1);
}
