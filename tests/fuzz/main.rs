//! Fuzz targets for what clients, files and archives say to the relay, one per kind. `cargo test` gives each some random input;
//! `make fuzz` looks for input that reaches new code. Those of the replication protocol are in `proto/tests`.

mod state_files;

use std::path::Path;

use bolero::check;
use bytes::{Bytes, BytesMut};
use walrelay::archive::{ChunkName, Codec, Compression, FileName, Format, Item, Layout, Sha256, Sidecar};
use walrelay::auth::certificate::ClientCertificate;
use walrelay::auth::hba::{Hba, Idents};
use walrelay::auth::scram::Verifier;
use walrelay::auth::users::Users;
use walrelay::conninfo::{ConnInfo, Environment};
use walrelay::moment::Moment;
use walrelay::wire::frame::{self, Phase};
use walrelay::wire::startup::{self, Offers, StartupPacket};

/// Text in which what has a meaning somewhere is frequent.
fn text(bytes: &[u8]) -> String {
    const WORDS: [&str; 32] = [
        " ",
        "\n",
        "=",
        "'",
        "\"",
        "\\",
        ",",
        "/",
        ":",
        "#",
        "host",
        "local",
        "all",
        "replication",
        "trust",
        "scram-sha-256",
        "reject",
        "127.0.0.1/32",
        "::1/128",
        "postgresql://",
        "user",
        "port=",
        "sslmode=",
        "[",
        "]",
        "SCRAM-SHA-256$4096:",
        "md5",
        "%41",
        "map",
        "clientcert=verify-full",
        "2026-11-30",
        "+",
    ];
    let piece = |&byte: &u8| match WORDS.get(usize::from(byte)) {
        Some(word) => (*word).to_owned(),
        None => String::from_utf8_lossy(&[byte]).into_owned(),
    };
    bytes.iter().map(piece).collect()
}

#[test]
fn fuzz_frames() {
    check!().with_type::<(Vec<u8>, u8)>().for_each(|(bytes, cut_at)| {
        for phase in [Phase::Authentication, Phase::Command, Phase::Streaming] {
            let mut whole = BytesMut::from(&bytes[..]);
            let mut frames = Vec::new();
            let end = loop {
                match frame::cut(&mut whole, phase) {
                    Ok(Some(frame)) => frames.push((frame.kind, frame.body)),
                    other => break other.map(drop).map_err(|error| error.to_string()),
                }
            };
            // In two pieces the same frames come, and the same end.
            let (first, rest) = bytes.split_at(usize::from(*cut_at).min(bytes.len()));
            let mut pieces = BytesMut::from(first);
            let (mut seen, mut fed) = (Vec::new(), false);
            let seen_end = loop {
                match frame::cut(&mut pieces, phase) {
                    Ok(Some(frame)) => seen.push((frame.kind, frame.body)),
                    Ok(None) if !fed => {
                        pieces.extend_from_slice(rest);
                        fed = true;
                    }
                    other => break other.map(drop).map_err(|error| error.to_string()),
                }
            };
            assert_eq!((seen, seen_end), (frames, end));
        }
        let offers = Offers { ssl: true, gss_enc: true };
        let mut input = BytesMut::from(&bytes[..]);
        if let Ok(Some(StartupPacket::Startup(message))) = startup::cut(&mut input, offers) {
            let _ = message.parameters().count();
        }
    });
}

#[test]
fn fuzz_settings() {
    let (path, environment) = (Path::new("file"), Environment::of_user("somebody"));
    check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let text = text(bytes);
        let _ = ConnInfo::parse(&text, &environment);
        let _ = ConnInfo::parse(&format!("postgresql://{text}"), &environment);
        let _ = Users::parse(path, &text);
        let _ = text.parse::<Verifier>();
        let _ = text.parse::<Moment>();
        // Without what opens other files.
        let text = text.replace('@', "a").replace("include", "x");
        let _ = (Hba::parse(path, &text), Idents::parse(path, &text));
    });
}

#[test]
fn fuzz_certificates() {
    check!().with_type::<Vec<u8>>().for_each(|der| {
        let _ = ClientCertificate::parse(der);
    });
}

#[test]
fn fuzz_archive() {
    let codec = Codec::new(Compression::None, None, false);
    let packed: Vec<_> = [Compression::Lz4, Compression::Zstd(3), Compression::Gzip(6)]
        .map(|compression| {
            let codec = Codec::new(compression, None, false);
            (codec.format(), codec.encode(&Bytes::from(b"walrelay ".repeat(50))).unwrap())
        })
        .into();
    check!().with_type::<(Vec<u8>, Vec<(u16, u8)>)>().for_each(|(bytes, damage)| {
        for format in Format::all() {
            let _ = codec.decode(Bytes::copy_from_slice(bytes), format);
        }
        for (format, stored) in &packed {
            let mut stored = stored.to_vec();
            for &(at, byte) in damage {
                let at = usize::from(at) % stored.len();
                stored[at] = byte;
            }
            let _ = codec.decode(stored.into(), *format);
        }
        let _ = Sidecar::parse(bytes);
        let name = String::from_utf8_lossy(bytes);
        let _ = Sha256::parse(&name);
        let hex: String =
            bytes.iter().map(|&byte| char::from(b"0123456789ABCDEF"[usize::from(byte % 16)])).collect();
        for name in [name.into_owned(), hex.chars().take(24).collect()] {
            if let Some(file) = FileName::parse(&name) {
                assert_eq!(file.to_string(), name);
                assert!(ChunkName::parse(&file, &hex).is_none_or(|chunk| chunk.segment == file));
            }
            for layout in [Layout::Plain, Layout::Barman, Layout::BarmanCloud] {
                let item = layout.parse(&name);
                if let Item::File(file, format) = &item {
                    assert_eq!(layout.file(file, *format), name);
                }
            }
        }
    });
}
