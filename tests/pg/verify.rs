//! `walrelay verify`: WAL of real servers, as a relay and they themselves left it; found damaged, and repaired.

use std::fs;
use std::path::Path;
use std::process::Command;

use walrelay_testkit::{Cluster, Server, compare, on_every_version};

use crate::relay_below;

on_every_version!(what_lies_there_is_verified_and_repaired);

/// Exit code and text of `walrelay verify`.
fn verify(dir: &Path, more: &[&str]) -> (Option<i32>, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_walrelay")).arg("verify").arg(dir).args(more).output();
    let done = done.expect("walrelay can be run");
    let text = [done.stdout, done.stderr].concat();
    (done.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn flip(file: &Path, at: usize) {
    let mut content = fs::read(file).expect("a segment");
    content[at] ^= 1;
    fs::write(file, content).expect("a segment");
}

fn what_lies_there_is_verified_and_repaired(server: &Server) {
    let mut primary = Cluster::builder(server).seg_mb(1).conf("wal_keep_size = '256MB'").start();
    let mut relay = relay_below(&primary).start();
    primary.pgbench_init(1);
    let segments: Vec<String> = (0..3).map(|_| primary.switch_wal()).collect();
    primary.pgbench(1, 20);
    let end = primary.flush_lsn();
    relay.wait_for_flush(end);

    // Both are running.
    for dir in [relay.data_dir(), primary.data_dir()] {
        let (code, text) = verify(&dir, &[]);
        assert_eq!(code, Some(0), "{text}");
    }
    relay.terminate();
    let (code, text) = verify(&relay.data_dir(), &[]);
    assert!(
        code == Some(0) && text.contains("data directory of a relay") && text.contains(" 0 problems"),
        "{text}"
    );

    // One that is wrong, one that is missing; `repair` asks the primary.
    let (bad, gone) = (relay.wal_dir().join(&segments[0]), relay.wal_dir().join(&segments[2]));
    flip(&bad, 300);
    fs::remove_file(&gone).expect("a finished segment");
    let (code, text) = verify(&relay.data_dir(), &[]);
    let told = |problem: &str, file: &str| text.contains(&format!("{problem}: {file} from "));
    assert!(code == Some(1) && told("damaged", &segments[0]) && told("missing", &segments[2]), "{text}");
    let (code, text) = verify(&relay.data_dir(), &["--repair-from", &primary.conninfo()]);
    assert!(code == Some(0) && text.contains(" 0 problems, 2 repaired"), "{text}");
    assert!(relay.data_dir().join("aside").join(&segments[0]).exists());
    let (code, text) = verify(&relay.data_dir(), &["--json"]);
    assert!(code == Some(0) && text.contains("\"findings\": []"), "{text}");
    relay.start();
    relay.wait_for_segment(&primary.switch_wal());
    compare::assert_segments(&primary, &relay.wal_dir(), 5);

    // The server's own, stopped, repaired from the relay's directory.
    primary.stop();
    let (code, text) = verify(&primary.data_dir(), &[]);
    assert!(code == Some(0) && text.contains("WAL of a PostgreSQL server"), "{text}");
    flip(&primary.wal_dir().join(&segments[0]), 300);
    let (code, text) =
        verify(&primary.data_dir(), &["--repair-from", relay.data_dir().to_str().expect("UTF-8")]);
    assert!(code == Some(0) && text.contains(" 0 problems, 1 repaired"), "{text}");
    primary.start();
    relay.wait_for_segment(&primary.switch_wal());

    // What is no such place.
    assert_eq!(verify(&primary.data_dir().join("base"), &[]).0, Some(8));
    assert_eq!(verify(Path::new("host=127.0.0.1"), &[]).0, Some(8));
}
