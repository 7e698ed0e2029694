//! Who may connect to the relay.

use walrelay_testkit::{Cluster, Scratch, Server, on_every_version};

use crate::relay_below;

on_every_version!(passwords_and_rules);

fn passwords_and_rules(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create role plain login replication");
    // The verifier is the one PostgreSQL made, copied from its catalog.
    primary.sql("set password_encryption = 'scram-sha-256'; create role copied login replication password 'swordfish'");
    let verifier = primary.sql("select rolpassword from pg_authid where rolname = 'copied'");
    let scratch = Scratch::new("auth");
    let users = format!("\"copied\" \"{verifier}\"\n\"plain\" \"s3cret\"\n");
    let users = scratch.secret("userlist.txt", &users);
    let rules = "host replication copied,plain 127.0.0.1/32 scram-sha-256\n\
                 host all,replication postgres 127.0.0.1/32 trust\n\
                 host replication banned 127.0.0.1/32 reject\n";
    let relay = relay_below(&primary).hba(rules).arg("--auth-file").arg(&users.display().to_string());
    let mut relay = relay.start();
    let identify = |relay: &walrelay_testkit::Relay, who: &str| {
        relay.psql(&format!("{who} replication=1"), &["IDENTIFY_SYSTEM"])
    };

    for good in ["user=copied password=swordfish", "user=plain password=s3cret"] {
        assert!(identify(&relay, good).is_ok(), "{good}");
    }
    let refused = [
        ("user=copied password=wrong", "password authentication failed for user \"copied\""),
        ("user=nobody password=x", "no pg_hba.conf entry for replication connection from host \"127.0.0.1\""),
        ("user=banned", "pg_hba.conf rejects replication connection for host \"127.0.0.1\", user \"banned\""),
    ];
    for (who, text) in refused {
        let error = identify(&relay, who).expect_err(who);
        assert!(error.0.contains(text), "{who}: {error}");
    }

    // A file that cannot be used changes nothing; one that can does so at once.
    relay.set_hba("host replication copied 127.0.0.1/32 kerberos\n");
    relay.reload();
    relay.log().wait_for("configuration not reloaded");
    assert!(identify(&relay, "user=copied password=swordfish").is_ok());
    relay.set_hba("host replication postgres 127.0.0.1/32 trust\n");
    relay.reload();
    relay.log().wait_for("configuration reloaded");
    assert!(identify(&relay, "user=copied password=swordfish").is_err());
}
