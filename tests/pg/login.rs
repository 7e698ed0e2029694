//! Who may connect to the relay.

use walrelay_testkit::{Cluster, Scratch, Server, on_every_version, on_one_version};

use crate::relay_below;

on_every_version!(passwords_and_rules);
on_one_version!(members_and_host_names);

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

/// What a rule has to ask for is asked of the upstream, and what it said last counts while it is away.
fn members_and_host_names(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    primary.sql(
        "create role staff; create role team in role staff; create role member login replication in role team; \
         create role stranger login replication; create role late login replication in role staff; \
         create role boss login superuser; create role plain login in role staff",
    );
    let rules = "host replication +staff localhost trust\n\
                 host replication stranger .example.com trust\n\
                 host samerole member 127.0.0.1/32 trust\n\
                 host all,replication postgres localhost trust\n";
    let mut relay = relay_below(&primary).hba(rules).start();
    let identify = |relay: &walrelay_testkit::Relay, user: &str| {
        relay
            .psql(&format!("user={user} replication=1"), &["IDENTIFY_SYSTEM"])
            .map(drop)
            .map_err(|error| error.0)
    };
    let refused = |result: Result<(), String>, text: &str| {
        let error = result.expect_err(text);
        assert!(error.contains(text), "{error}");
    };
    identify(&relay, "member").unwrap();
    refused(identify(&relay, "stranger"), "no pg_hba.conf entry for replication connection");
    refused(identify(&relay, "boss"), "no pg_hba.conf entry for replication connection");
    let start_walsender = if server.major() < 16 { "to start walsender" } else { "to start WAL sender" };
    refused(identify(&relay, "plain"), start_walsender);
    // The database of its role's name: it belongs to "staff", as the upstream's own rule would have it, too.
    primary.sql("create database staff");
    assert_eq!(relay.psql("user=member dbname=staff", &["select 1"]).unwrap().trim(), "1");
    assert!(relay.psql("user=member dbname=postgres", &["select 1"]).is_err());

    primary.stop();
    identify(&relay, "member").unwrap();
    relay.restart();
    identify(&relay, "member").unwrap();
    refused(identify(&relay, "plain"), start_walsender);
    refused(identify(&relay, "stranger"), "no pg_hba.conf entry for replication connection");
    refused(identify(&relay, "late"), "the upstream server cannot be asked which roles \"late\" belongs to");
    primary.start();
    walrelay_testkit::wait_until("the upstream is asked again", || identify(&relay, "late").is_ok());
    primary.sql("revoke team from member");
    refused(identify(&relay, "member"), "no pg_hba.conf entry for replication connection");
}
