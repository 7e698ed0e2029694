use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::server::TlsStream;

use super::*;
use crate::auth::certificate::end_point_hash;
use crate::conninfo::HostSpec;

/// A certificate authority of our own, with its certificate in a file.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

struct Identity {
    der: CertificateDer<'static>,
    key: KeyPair,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = crate::permissions::private_tempdir();
        std::fs::write(directory.path().join("root.crt"), issuer.pem()).unwrap();
        Authority { issuer, directory }
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn root(&self) -> String {
        self.file("root.crt")
    }

    /// A certificate for these alternative names, or only a common name.
    fn issue(&self, names: &[&str], common_name: &str) -> Identity {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        Identity { der: params.signed_by(&key, &self.issuer).unwrap().der().clone(), key }
    }
}

impl Identity {
    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }

    fn acceptor(&self, alpn: &[&[u8]]) -> TlsAcceptor {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        // Not with_single_cert, which refuses certificates of version 1.
        let key = ring::sign::any_supported_type(&self.private_key()).unwrap();
        let certified = CertifiedKey::new(vec![self.der.clone()], key);
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Answers SSLRequest and shakes hands; `None` if the client breaks that off.
async fn accept(stream: TcpStream, acceptor: &TlsAcceptor) -> Option<TlsStream<TcpStream>> {
    let mut stream = stream;
    read_ssl_request(&mut stream).await;
    stream.write_all(b"S").await.unwrap();
    acceptor.accept(stream).await.ok()
}

/// Logs a client in over TLS, without a password; whether it came that far.
async fn serve_tls(acceptor: TlsAcceptor) -> (u16, JoinHandle<bool>) {
    serve(move |stream| async move {
        let Some(mut stream) = accept(stream, &acceptor).await else { return false };
        let mut first = [0; 1];
        if stream.read_exact(&mut first).await.is_err() {
            return false;
        }
        read_startup(&mut (&first[..]).chain(&mut stream)).await;
        stream.write_all(&welcome()).await.unwrap();
        stream.flush().await.unwrap();
        read_rest(&mut stream).await;
        true
    })
    .await
}

/// Host names of the test are made up: the address is given.
fn named(name: &str, port: u16, more: &str) -> ConnInfo {
    let text = format!("host={name} hostaddr=127.0.0.1 port={port} user=rep password=secret {more}");
    ConnInfo::parse(&text, &Environment::default().with("HOME", "/nonexistent")).unwrap()
}

async fn connect_named(name: &str, port: u16, more: &str) -> Result<UpstreamConnection, ConnectError> {
    let info = named(name, port, more);
    connect(&info, &info.hosts[0], deadline()).await
}

#[tokio::test]
async fn a_server_without_tls_is_taken_or_left() {
    for (mode, accepted) in [
        ("disable", true),
        ("allow", true),
        ("prefer", true),
        ("require", false),
        ("verify-ca", false),
        ("verify-full", false),
    ] {
        let authority = Authority::new();
        let (port, server) = serve(move |mut stream| async move {
            if !["disable", "allow"].contains(&mode) {
                read_ssl_request(&mut stream).await;
                stream.write_all(b"N").await.unwrap();
            }
            if accepted {
                read_startup(&mut stream).await;
                stream.write_all(&welcome()).await.unwrap();
            }
            read_rest(&mut stream).await
        })
        .await;
        let more = format!("sslmode={mode} sslrootcert='{}'", authority.root());
        let result = try_connect(port, &more).await;
        assert_eq!(result.is_ok(), accepted, "{mode}");
        // A connection is dropped here, which ends the script.
        if let Some(error) = result.err() {
            assert!(matches!(error, ConnectError::TlsRefused { .. }) && !error.is_transient(), "{error}");
        }
        assert_eq!(server.await.unwrap(), b"", "{mode}");
    }
}

#[tokio::test]
async fn bytes_stuffed_behind_the_answer_never_become_messages() {
    let authority = Authority::new();
    let identity = authority.issue(&["db.test"], "x");
    for stuffed in [welcome(), error("FATAL", "28000", "injected"), request(3, b"")] {
        let acceptor = identity.acceptor(&[]);
        let (listener, port) = listen().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_ssl_request(&mut stream).await;
            stream.write_all(&[b"S", &stuffed[..]].concat()).await.unwrap();
            assert!(acceptor.accept(stream).await.is_err());
        });
        let more = format!("sslmode=verify-full sslrootcert='{}'", authority.root());
        let error = connect_named("db.test", port, &more).await.unwrap_err();
        assert!(matches!(error, ConnectError::Tls(_)), "{error}");
        server.await.unwrap();
    }
}

#[tokio::test]
async fn an_error_instead_of_an_answer_is_not_believed() {
    let (port, _server) = serve(|mut stream| async move {
        read_ssl_request(&mut stream).await;
        stream.write_all(&error("FATAL", "28000", "forged")).await.unwrap();
    })
    .await;
    let error = try_connect(port, "sslmode=require").await.unwrap_err();
    assert_eq!(error.to_string(), "server sent an error response during SSL exchange");
    let (port, _server) = serve(|mut stream| async move {
        read_ssl_request(&mut stream).await;
        stream.write_all(b"H").await.unwrap();
    })
    .await;
    let error = try_connect(port, "sslmode=require").await.unwrap_err();
    assert!(error.to_string().contains("'H' in answer to SSLRequest"), "{error}");
    let (port, _server) = serve(|mut stream| async move { read_ssl_request(&mut stream).await }).await;
    let error = try_connect(port, "sslmode=prefer").await.unwrap_err();
    assert!(matches!(error, ConnectError::Closed), "{error}");
}

#[tokio::test]
async fn certificates_are_checked_as_sslmode_says() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let by_name = authority.issue(&["db.test", "*.wild.test"], "ignored.test");
    let by_common_name = authority.issue(&[], "common.test");
    let by_address = authority.issue(&["127.0.0.1"], "127.0.0.2");
    let unknown = stranger.issue(&["db.test"], "x");
    let root = format!("sslrootcert='{}'", authority.root());
    let no_root = "sslrootcert=/nonexistent/root.crt".to_owned();
    for (identity, host, mode, root, accepted) in [
        (&by_name, "db.test", "verify-full", &root, true),
        (&by_name, "DB.test", "verify-full", &root, true),
        (&by_name, "a.wild.test", "verify-full", &root, true),
        (&by_name, "a.b.wild.test", "verify-full", &root, false),
        (&by_name, "other.test", "verify-full", &root, false),
        (&by_name, "ignored.test", "verify-full", &root, false),
        (&by_name, "other.test", "verify-ca", &root, true),
        (&by_common_name, "common.test", "verify-full", &root, true),
        (&by_common_name, "other.test", "verify-full", &root, false),
        (&by_address, "127.0.0.1", "verify-full", &root, true),
        (&by_address, "127.0.0.2", "verify-full", &root, false),
        (&by_address, "localhost", "verify-full", &root, false),
        (&unknown, "db.test", "verify-full", &root, false),
        (&unknown, "db.test", "verify-ca", &root, false),
        // With trusted certificates at hand, require checks like verify-ca.
        (&unknown, "db.test", "require", &root, false),
        (&unknown, "db.test", "require", &no_root, true),
    ] {
        let (port, server) = serve_tls(identity.acceptor(&[])).await;
        let result = connect_named(host, port, &format!("sslmode={mode} {root}")).await;
        assert_eq!(result.is_ok(), accepted, "{host} {mode} {root} {:?}", result.err());
        if let Err(error) = result {
            assert!(matches!(error, ConnectError::Tls(_)) && !error.is_transient(), "{error}");
        } else {
            assert!(result.unwrap().is_encrypted());
        }
        assert_eq!(server.await.unwrap(), accepted);
    }
}

#[tokio::test]
async fn a_trusted_self_signed_certificate_is_enough() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["db.test".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), certificate.pem()).unwrap();
    let identity = Identity { der: certificate.der().clone(), key };
    let more = format!("sslmode=verify-full sslrootcert='{}'", file.path().display());
    let (port, _server) = serve_tls(identity.acceptor(&[])).await;
    connect_named("db.test", port, &more).await.unwrap();
    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let expired = params.self_signed(&identity.key).unwrap();
    std::fs::write(file.path(), expired.pem()).unwrap();
    let identity = Identity { der: expired.der().clone(), key: identity.key };
    let (port, _server) = serve_tls(identity.acceptor(&[])).await;
    let error = connect_named("db.test", port, &more).await.unwrap_err();
    assert!(matches!(error, ConnectError::Tls(_)), "{error}");
}

#[tokio::test]
async fn our_own_files_are_named_when_they_are_bad() {
    let authority = Authority::new();
    std::fs::write(authority.file("empty"), "nothing here").unwrap();
    let identity = authority.issue(&["client"], "client");
    std::fs::write(authority.file("c.crt"), authority.issuer.pem()).unwrap();
    std::fs::write(authority.file("c.key"), identity.key.serialize_pem()).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(authority.file("c.key"), open).unwrap();
    for (more, expected) in [
        ("sslmode=verify-ca sslrootcert=/nonexistent/r".to_owned(), "does not exist; either provide"),
        ("sslmode=verify-ca sslrootcert=EMPTY".to_owned(), "no certificate in it"),
        ("sslmode=require sslrootcert=EMPTY".to_owned(), "no certificate in it"),
        ("sslmode=require sslcert=CRT sslkey=KEY".to_owned(), "has group or world access"),
        ("sslmode=require sslcert=CRT sslkey=/nonexistent/k".to_owned(), "could not load private key file"),
        ("sslmode=verify-ca sslrootcert=ROOT sslcrldir=/nonexistent".to_owned(), "revocation list directory"),
    ] {
        let more = more.replace("ROOT", &authority.root());
        let more = more.replace("EMPTY", &authority.file("empty"));
        let more = more.replace("CRT", &authority.file("c.crt")).replace("KEY", &authority.file("c.key"));
        let (_listener, port) = listen().await;
        let error = connect_named("db.test", port, &more).await.unwrap_err();
        assert!(matches!(error, ConnectError::TlsConfiguration { .. }) && !error.is_transient(), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let (_listener, port) = listen().await;
    let text = format!(
        "hostaddr=127.0.0.1 port={port} user=u sslmode=verify-full sslrootcert='{}'",
        authority.root()
    );
    let info = ConnInfo::parse(&text, &Environment::default()).unwrap();
    let error = connect(&info, &info.hosts[0], deadline()).await.unwrap_err();
    assert_eq!(error.to_string(), "host name must be specified for a verified SSL connection");
}

#[tokio::test]
async fn direct_tls_needs_alpn() {
    let authority = Authority::new();
    let identity = authority.issue(&["db.test"], "x");
    for (alpn, accepted) in [(&[&b"postgresql"[..]][..], true), (&[][..], false)] {
        let acceptor = identity.acceptor(alpn);
        let (port, server) = serve(move |stream| async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            if accepted {
                read_startup(&mut stream).await;
                stream.write_all(&welcome()).await.unwrap();
                stream.flush().await.unwrap();
            }
            read_rest(&mut stream).await
        })
        .await;
        let more = format!("sslmode=verify-full sslnegotiation=direct sslrootcert='{}'", authority.root());
        let result = connect_named("db.test", port, &more).await;
        assert_eq!(result.is_ok(), accepted);
        if let Some(error) = result.err() {
            assert!(matches!(error, ConnectError::NoAlpn), "{error}");
        }
        assert_eq!(server.await.unwrap(), b"");
    }
}

#[tokio::test]
async fn scram_is_bound_to_the_channel() {
    let authority = Authority::new();
    let identity = authority.issue(&["db.test"], "x");
    let hash = end_point_hash(&identity.der).unwrap();
    for (more, offered, expected) in [
        ("", true, Some(SCRAM_SHA_256_PLUS)),
        ("channel_binding=require", true, Some(SCRAM_SHA_256_PLUS)),
        ("channel_binding=disable", true, Some(SCRAM_SHA_256)),
        ("", false, Some(SCRAM_SHA_256)),
        ("channel_binding=require", false, None),
    ] {
        let acceptor = identity.acceptor(&[]);
        let hash = offered.then(|| hash.clone());
        let (port, server) = serve(move |stream| async move {
            let mut stream = accept(stream, &acceptor).await.unwrap();
            read_startup(&mut stream).await;
            if expected.is_none() {
                stream.write_all(&request(10, b"SCRAM-SHA-256\0\0")).await.unwrap();
                stream.flush().await.unwrap();
                return String::from_utf8(read_rest(&mut stream).await).unwrap();
            }
            let (mechanism, verdict) = serve_scram(&mut stream, b"secret", hash).await;
            stream.write_all(&[request(12, &verdict.unwrap()), welcome()].concat()).await.unwrap();
            stream.flush().await.unwrap();
            mechanism
        })
        .await;
        let more = format!("sslmode=verify-full sslrootcert='{}' {more}", authority.root());
        let result = connect_named("db.test", port, &more).await;
        assert_eq!(result.is_ok(), expected.is_some(), "{more} {:?}", result.err());
        if let Err(error) = result {
            assert!(
                error.to_string().starts_with("channel binding required, but server did not offer"),
                "{error}"
            );
        }
        assert_eq!(server.await.unwrap(), expected.unwrap_or_default());
    }
}

#[tokio::test]
async fn a_man_in_the_middle_fails_the_binding() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let theirs = stranger.issue(&["db.test"], "x");
    let ours = end_point_hash(&authority.issue(&["db.test"], "x").der).unwrap();
    let acceptor = theirs.acceptor(&[]);
    let (port, server) = serve(move |stream| async move {
        let mut stream = accept(stream, &acceptor).await.unwrap();
        read_startup(&mut stream).await;
        let (_, verdict) = serve_scram(&mut stream, b"secret", Some(ours)).await;
        verdict
    })
    .await;
    try_connect(port, "sslmode=require").await.unwrap_err();
    assert_eq!(server.await.unwrap(), Err("SCRAM channel binding check failed".to_owned()));
}

/// Refuses connections without (or with) encryption and takes the others; how many came.
async fn serve_choosy(acceptor: TlsAcceptor, encrypted: bool) -> (u16, JoinHandle<usize>) {
    let (listener, port) = listen().await;
    let task = tokio::spawn(async move {
        let mut count = 0;
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count += 1;
            let mut first = [0; 8];
            stream.peek(&mut first).await.unwrap();
            let is_tls = first[4..] == [4, 210, 22, 47];
            let reply =
                if is_tls == encrypted { welcome() } else { error("FATAL", "28000", "no pg_hba.conf entry") };
            if is_tls {
                let mut stream = accept(stream, &acceptor).await.unwrap();
                read_startup(&mut stream).await;
                stream.write_all(&reply).await.unwrap();
                stream.flush().await.unwrap();
            } else {
                read_startup(&mut stream).await;
                stream.write_all(&reply).await.unwrap();
            }
            if is_tls == encrypted {
                return count;
            }
        }
    });
    (port, task)
}

#[tokio::test]
async fn prefer_and_allow_try_the_other_way() {
    let identity = Authority::new().issue(&["db.test"], "x");
    for (mode, encrypted, attempts) in
        [("prefer", true, 1), ("prefer", false, 2), ("allow", false, 1), ("allow", true, 2)]
    {
        let (port, server) = serve_choosy(identity.acceptor(&[]), encrypted).await;
        let connection = try_connect(port, &format!("sslmode={mode}")).await.unwrap();
        assert_eq!(connection.is_encrypted(), encrypted);
        assert_eq!(server.await.unwrap(), attempts, "{mode} {encrypted}");
    }
}

#[tokio::test]
async fn both_refusals_are_told() {
    let identity = Authority::new().issue(&["db.test"], "x");
    let acceptor = identity.acceptor(&[]);
    let (listener, port) = listen().await;
    let _server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = accept(stream, &acceptor).await.unwrap();
        read_startup(&mut stream).await;
        stream.write_all(&error("FATAL", "28000", "first")).await.unwrap();
        stream.flush().await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        read_startup(&mut stream).await;
        stream.write_all(&error("FATAL", "57P03", "second")).await.unwrap();
    });
    let error = try_connect(port, "sslmode=prefer").await.unwrap_err();
    let text = "FATAL: first (SQLSTATE 28000); then, without SSL: FATAL: second (SQLSTATE 57P03)";
    assert_eq!(error.to_string(), text);
    assert!(error.is_transient());
}

#[tokio::test]
async fn our_certificate_is_shown_to_who_asks() {
    let authority = Authority::new();
    let server_identity = authority.issue(&["db.test"], "x");
    let ours = authority.issue(&[], "rep");
    std::fs::write(authority.file("c.crt"), pem(&ours.der)).unwrap();
    std::fs::write(authority.file("c.key"), ours.key.serialize_pem()).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(authority.file("c.key"), private).unwrap();

    let mut roots = tokio_rustls::rustls::RootCertStore::empty();
    roots.add(authority.issuer.der().clone()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_client_cert_verifier(verifier);
    let key = server_identity.private_key();
    let config = config.with_single_cert(vec![server_identity.der.clone()], key).unwrap();
    let (port, server) = serve_tls(TlsAcceptor::from(Arc::new(config))).await;
    let files = format!("sslcert='{}' sslkey='{}'", authority.file("c.crt"), authority.file("c.key"));
    try_connect(port, &format!("sslmode=require sslcertmode=require {files}")).await.unwrap();
    assert!(server.await.unwrap());

    let (port, _server) = serve_tls(server_identity.acceptor(&[])).await;
    let error = try_connect(port, &format!("sslmode=require sslcertmode=require {files}")).await.unwrap_err();
    assert!(matches!(error, ConnectError::CertificateNotRequested), "{error}");
}

#[tokio::test]
async fn prefer_does_without_what_cannot_be_used() {
    let authority = Authority::new();
    let home = crate::permissions::private_tempdir();
    std::fs::create_dir(home.path().join(".postgresql")).unwrap();
    // As in a directory that may not be entered, which root may: it cannot be looked at.
    std::os::unix::fs::symlink("root.crt", home.path().join(".postgresql/root.crt")).unwrap();
    let at_home = |port: u16, more: &str| {
        let text = format!("host=db.test hostaddr=127.0.0.1 port={port} user=rep password=secret {more}");
        let environment = Environment::default().with("HOME", home.path().to_str().unwrap());
        ConnInfo::parse(&text, &environment).unwrap()
    };
    let identity = authority.issue(&["db.test"], "x");
    for mode in ["prefer", "require"] {
        let (port, server) = serve_tls(identity.acceptor(&[])).await;
        let info = at_home(port, &format!("sslmode={mode}"));
        connect(&info, &info.hosts[0], deadline()).await.unwrap();
        assert!(server.await.unwrap(), "{mode}");
    }
    let info = at_home(1, "sslmode=verify-ca");
    let (_listener, port) = listen().await;
    let info = ConnInfo { hosts: vec![HostSpec { port, ..info.hosts[0].clone() }], ..info };
    let error = connect(&info, &info.hosts[0], deadline()).await.unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");

    // A file of no use, where encryption need not be.
    std::fs::remove_file(home.path().join(".postgresql/root.crt")).unwrap();
    std::fs::write(home.path().join(".postgresql/root.crt"), "nothing here").unwrap();
    let (port, server) = serve(|mut stream| async move {
        read_startup(&mut stream).await;
        stream.write_all(&welcome()).await.unwrap();
        read_rest(&mut stream).await
    })
    .await;
    let info = at_home(port, "sslmode=prefer");
    connect(&info, &info.hosts[0], deadline()).await.unwrap();
    assert_eq!(server.await.unwrap(), b"");
}

#[tokio::test]
async fn revoked_certificates_are_found_in_a_directory_of_lists() {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let authority = Authority::new();
    let (good, bad) = (authority.issue(&["db.test"], "x"), authority.issue(&["db.test"], "y"));
    let (_, certificate) = X509Certificate::from_der(&bad.der).unwrap();
    let revoked = rcgen::RevokedCertParams {
        serial_number: certificate.raw_serial().to_vec().into(),
        revocation_time: rcgen::date_time_ymd(2024, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2024, 1, 1),
        next_update: rcgen::date_time_ymd(2124, 1, 1),
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&authority.issuer).unwrap().pem().unwrap();
    let dir = crate::permissions::private_tempdir();
    let more = format!(
        "sslmode=verify-full sslrootcert='{}' sslcrldir='{}'",
        authority.root(),
        dir.path().display()
    );
    // A name that OpenSSL would not look for.
    std::fs::write(dir.path().join("list.pem"), &list).unwrap();
    let (_listener, port) = listen().await;
    let error = connect_named("db.test", port, &more).await.unwrap_err();
    assert!(error.to_string().contains("openssl rehash"), "{error}");

    std::fs::rename(dir.path().join("list.pem"), dir.path().join("0123abcd.r0")).unwrap();
    let (port, server) = serve_tls(good.acceptor(&[])).await;
    connect_named("db.test", port, &more).await.unwrap();
    assert!(server.await.unwrap());
    let (port, _server) = serve_tls(bad.acceptor(&[])).await;
    let error = connect_named("db.test", port, &more).await.unwrap_err();
    assert!(error.to_string().contains("Revoked"), "{error}");
}

fn pem(der: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// A server certificate made by the recipe of PostgreSQL's manual with OpenSSL 3.0, which comes out as version 1.
///
/// `openssl x509 -req -in server.csr -days 36500 -CA root.crt -CAkey root.key -CAcreateserial -out server.crt`
#[tokio::test]
async fn certificates_of_version_1_are_good_enough() {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    let der = CertificateDer::from_pem_slice(include_bytes!("version1/server.crt")).unwrap();
    let key = KeyPair::from_pem(include_str!("version1/server.key")).unwrap();
    let identity = Identity { der, key };
    let directory = crate::permissions::private_tempdir();
    let root = directory.path().join("root.crt");
    std::fs::write(&root, include_str!("version1/root.crt")).unwrap();
    let root = format!("sslrootcert='{}'", root.display());
    let other_authority = Authority::new();
    let stranger = format!("sslrootcert='{}'", other_authority.root());
    for (host, more, accepted) in [
        ("db.test", "sslmode=require".to_owned(), true),
        ("db.test", format!("sslmode=verify-full {root}"), true),
        ("other.test", format!("sslmode=verify-ca {root}"), true),
        ("other.test", format!("sslmode=verify-full {root}"), false),
        ("db.test", format!("sslmode=verify-ca {stranger}"), false),
    ] {
        let (port, server) = serve_tls(identity.acceptor(&[])).await;
        let result = connect_named(host, port, &more).await;
        assert_eq!(result.is_ok(), accepted, "{host} {more} {:?}", result.err());
        if let Some(error) = result.err() {
            assert!(matches!(error, ConnectError::Tls(_)), "{error}");
        }
        assert_eq!(server.await.unwrap(), accepted);
    }
}
