//! Files that never answer: a FIFO that nobody writes to is read like a file on a dead mount.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Notify;

use super::*;

struct Hanging {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Hanging {
    fn new() -> Hanging {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        Hanging { _directory: directory, path }
    }

    /// Returns once somebody reads; the reader gets nothing while the value lives.
    async fn wait_for_reader(&self) -> File {
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        loop {
            if let Ok(writer) = OpenOptions::new().write(true).custom_flags(nonblock).open(&self.path) {
                return writer;
            }
            tokio::task::yield_now().await;
        }
    }

    fn reading(&self) -> impl FnOnce(&aside::Files) + Send + 'static {
        let path = self.path.clone();
        move |files| drop(files.read("file", &path))
    }
}

/// Lets go those who read it, and their threads.
impl Drop for Hanging {
    fn drop(&mut self) {
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let _ = OpenOptions::new().read(true).write(true).custom_flags(nonblock).open(&self.path);
    }
}

/// A server that asks for a password and takes any; and when it has asked.
async fn asking() -> (u16, Arc<Notify>) {
    let asked = Arc::new(Notify::new());
    let asks = asked.clone();
    let (port, _) = serve(|mut stream| async move {
        read_startup(&mut stream).await;
        stream.write_all(&request(3, b"")).await.unwrap();
        asks.notify_one();
        if stream.read_u8().await.is_ok() {
            stream.write_all(&welcome()).await.unwrap();
        }
        read_rest(&mut stream).await
    })
    .await;
    (port, asked)
}

#[tokio::test]
async fn a_file_that_hangs_is_named_and_holds_up_nobody_on_the_same_thread() {
    for (more, what) in [
        ("password='' sslmode=disable passfile='FILE'", "password file"),
        ("sslmode=require sslrootcert='FILE'", "root certificate file"),
        ("sslmode=require sslcert='FILE' sslkey=/nonexistent", "certificate file"),
    ] {
        // One that nobody else still waits at.
        let file = Hanging::new();
        let shown = file.path.display();
        let more = more.replace("FILE", &shown.to_string());
        let ((hanging, asked), (healthy, _)) = (asking().await, asking().await);
        let others = async {
            try_connect(healthy, "sslmode=disable").await.unwrap();
            // Up to here real time is needed: names are looked up by threads. A password file that can be opened is found
            // to be a FIFO.
            let reader = match what {
                "password file" => {
                    asked.notified().await;
                    None
                }
                _ => Some(file.wait_for_reader().await),
            };
            tokio::time::pause();
            reader
        };
        let (error, _reader) = tokio::join!(try_connect(hanging, &more), others);
        tokio::time::resume();
        let error = error.unwrap_err();
        assert_eq!(error.to_string(), format!("could not read {what} \"{shown}\": no answer in 5 s"));
        assert!(error.is_transient());
    }
}

#[tokio::test(start_paused = true)]
async fn clients_who_wait_for_a_file_do_not_take_the_relays_own_threads() {
    let file = Hanging::new();
    let own = info(1, "");
    let session = own.for_sql("postgres");
    let read = |info| aside::with_files(info, "file".to_owned(), file.reading());
    let errors = futures_util::future::join_all((0..100).map(|_| read(&session))).await;
    assert!(errors.iter().all(Result::is_err));
    assert!(read(&session).await.is_err());
    tokio::time::resume();
    aside::with_files(&own, "nothing".to_owned(), |_| ()).await.unwrap();
}
