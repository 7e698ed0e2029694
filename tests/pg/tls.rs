//! PostgreSQL's own clients over TLS.

use walrelay_testkit::{
    Certificates, Cluster, Receivewal, Relay, Scratch, Server, on_every_version, on_one_version,
};

use crate::relay_below;

on_every_version!(clients_prove_who_they_are, wal_is_encrypted);
on_one_version!(certificates_without_extensions);

const HBA: &str = "hostssl all,replication copied 127.0.0.1/32 scram-sha-256\n\
                   hostssl replication certified,other 127.0.0.1/32 cert\n\
                   hostssl replication \"/^node[0-9]+$\" 127.0.0.1/32 cert map=nodes\n\
                   host all,replication postgres 127.0.0.1/32 trust\n";

struct Scene {
    primary: Cluster,
    certificates: Certificates,
    relay: Relay,
    _scratch: Scratch,
}

/// A relay where `copied` logs in with the primary's own verifier, over TLS only.
fn scene(server: &Server) -> Scene {
    let primary = Cluster::builder(server).start();
    primary.sql(
        "set password_encryption = 'scram-sha-256'; create role copied login replication password 'swordfish'; \
         create role certified login replication; create role node7 login replication",
    );
    let verifier = primary.sql("select rolpassword from pg_authid where rolname = 'copied'");
    let scratch = Scratch::new("auth");
    let file = |name: &str, text: &str| scratch.secret(name, text).display().to_string();
    let users = file("userlist.txt", &format!("\"copied\" \"{verifier}\"\n"));
    let idents = file("ident.conf", "nodes /^(node[0-9]+)\\.example\\.com$ \\1\n");
    let certificates = Certificates::new();
    let relay = relay_below(&primary).hba(HBA).tls(&certificates).arg("--auth-file").arg(&users);
    let relay = relay.arg("--ident-file").arg(&idents).start();
    Scene { primary, certificates, relay, _scratch: scratch }
}

impl Scene {
    /// Options of a client that insists on the relay's certificate.
    fn verified(&self, more: &str) -> String {
        let root = self.certificates.file("root.crt");
        format!("host=localhost hostaddr=127.0.0.1 sslmode=verify-full sslrootcert={root} {more}")
    }

    fn with_certificate(&self, name: &str, user: &str) -> String {
        self.certificates.client(name);
        let file = |kind: &str| self.certificates.file(&format!("{name}.{kind}"));
        self.verified(&format!("user={user} sslcert={} sslkey={}", file("crt"), file("key")))
    }

    fn identify(&self, options: &str) -> Result<String, String> {
        self.relay.psql(&format!("{options} replication=1"), &["IDENTIFY_SYSTEM"]).map_err(|error| error.0)
    }

    #[track_caller]
    fn refused(&self, options: &str, text: &str) {
        let error = self.identify(options).expect_err(options);
        assert!(error.contains(text), "{options}: {error}");
    }
}

fn clients_prove_who_they_are(server: &Server) {
    let scene = scene(server);
    let bound = scene.verified("user=copied channel_binding=require");
    scene.identify(&format!("{bound} password=swordfish")).expect("TLS, password, channel binding");
    let options = format!("{bound} password=swordfish dbname=postgres");
    let sql = scene.relay.psql(&options, &["select current_user"]);
    assert_eq!(sql.expect("it is logged in at the relay and at the primary"), "copied");
    let options = format!("{bound} password=swordfish dbname=walrelay");
    let own = "select ssl, version, bits, client_dn from pg_stat_ssl where pid = pg_backend_pid()";
    assert_eq!(scene.relay.psql(&options, &[own]).as_deref(), Ok("t|TLSv1.3|256|"));
    scene.refused(&format!("{bound} password=wrong"), "password authentication failed for user \"copied\"");
    scene.refused(
        "user=copied password=swordfish sslmode=disable",
        "no pg_hba.conf entry for replication connection from host \"127.0.0.1\", user \"copied\", no encryption",
    );
    scene.refused(
        &scene.verified("user=nobody"),
        "no pg_hba.conf entry for replication connection from host \"127.0.0.1\", user \"nobody\", SSL encryption",
    );
    scene.identify(&scene.with_certificate("certified", "certified")).expect("a certificate");
    scene.identify(&scene.with_certificate("node7.example.com", "node7")).expect("a certificate and a map");
    let failed = "certificate authentication failed for user";
    scene.refused(&scene.with_certificate("node8.example.com", "node7"), failed);
    scene.refused(&scene.with_certificate("somebody", "certified"), failed);
    scene.refused(&scene.verified("user=certified"), "connection requires a valid client certificate");
    if server.major() >= 17 {
        let direct = format!("{bound} password=swordfish sslnegotiation=direct");
        scene.identify(&direct).expect("direct TLS");
    }
}

fn wal_is_encrypted(server: &Server) {
    let scene = scene(server);
    scene.relay.create_slots(&["standby", "archive"]);
    let conninfo = format!("{} {}", scene.relay.conninfo(), scene.verified("user=copied password=swordfish"));
    let conninfo = format!("{conninfo} channel_binding=require");
    let standby = scene.primary.standby().follow(&conninfo).slot("standby").start();
    let archive = Receivewal::start(server, &conninfo, "archive");
    scene.primary.sql("create table t as select n, repeat('x', 500) from generate_series(1, 20000) n");
    let segment = scene.primary.switch_wal();
    archive.wait_for_segment(&segment);
    standby.wait_for_replay(scene.primary.flush_lsn());
    assert_eq!(standby.sql("select count(*) from t"), "20000");
    let bytes = |dir: std::path::PathBuf| std::fs::read(dir.join(&segment)).expect("the segment is complete");
    assert!(bytes(archive.wal_dir()) == bytes(scene.primary.wal_dir()), "the same bytes");
    archive.stop();
    scene.relay.assert_calm();
}

/// X.509 version 1, as PostgreSQL's manual has had people make them: libpq takes them, and so does the relay, from both sides.
fn certificates_without_extensions(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create role rep login replication");
    let scratch = Scratch::new("version-1");
    let file = |name: &str, pem: &str| scratch.secret(name, pem).display().to_string();
    let theirs = |name: &str, pem: &str| scratch.their_secret(name, pem).display().to_string();
    let root = theirs("root.crt", include_str!("../kit/version-1/root.crt"));
    let relay = relay_below(&primary)
        .hba("hostssl replication rep 127.0.0.1/32 cert\nhost all,replication postgres 127.0.0.1/32 trust\n");
    let relay = relay
        .arg("--ssl-cert-file")
        .arg(&file("server.crt", include_str!("../kit/version-1/server.crt")))
        .arg("--ssl-key-file")
        .arg(&file("server.key", include_str!("../kit/version-1/server.key")))
        .arg("--ssl-ca-file")
        .arg(&root)
        .start();
    let identify = |options: &str| {
        let verified = format!(
            "host=localhost hostaddr=127.0.0.1 sslmode=verify-full sslrootcert={root} user=rep replication=1"
        );
        relay.psql(&format!("{verified} {options}"), &["IDENTIFY_SYSTEM"]).map_err(|error| error.0)
    };
    let cert = theirs("client.crt", include_str!("../kit/version-1/client.crt"));
    let key = theirs("client.key", include_str!("../kit/version-1/client.key"));
    identify(&format!("sslcert={cert} sslkey={key}")).expect("libpq takes ours, and the relay takes libpq's");
    let error = identify("sslcert=/nonexistent").expect_err("no certificate");
    assert!(error.contains("connection requires a valid client certificate"), "{error}");
}
