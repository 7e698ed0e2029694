use std::fs;

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Hba, HbaError> {
    Hba::parse(Path::new("pg_hba.conf"), text)
}

fn request<'a>(ip: &str, target: Target<'a>, user: &'a str) -> Request<'a> {
    Request { ip: ip.parse().ok(), ssl: false, target, user }
}

fn replication<'a>(ip: &str, user: &'a str) -> Request<'a> {
    request(ip, Target::Replication, user)
}

#[track_caller]
fn check(hba: &Hba, request: Request<'_>, expected: Option<Method>) {
    assert_eq!(found(hba, request).map(Rule::method), expected, "{request:?}");
}

/// What is found where nothing has to be asked for.
#[track_caller]
fn found<'a>(hba: &'a Hba, request: Request<'_>) -> Option<&'a Rule> {
    match hba.find(&request, &Facts::default()) {
        Found::Rule(rule) => Some(rule),
        Found::Nothing => None,
        Found::Unknown(fact) => panic!("{fact:?} would have to be known"),
    }
}

#[track_caller]
fn refused(text: &str, problem: &str) {
    let error = parse(text).unwrap_err().to_string();
    assert!(error.contains(problem), "{text:?}: {error}");
    assert!(error.starts_with("pg_hba.conf:"), "{error}");
}

#[test]
fn the_first_line_that_fits_decides() {
    let hba = parse(
        "# TYPE DATABASE USER ADDRESS METHOD\n\
         local\tall,replication\tall\ttrust # comment\n\
         host replication evil 0.0.0.0/0 reject\n\
         host replication \"all\", b 10.0.0.0 255.0.0.0 md5\n\
         host all all all password\n\
         host replication all 192.168.1.77/24 scram-sha-256\n",
    )
    .unwrap();
    check(&hba, replication("local", "x"), Some(Method::Trust));
    check(&hba, replication("192.168.1.1", "evil"), Some(Method::Reject));
    check(&hba, replication("10.200.0.1", "all"), Some(Method::Md5));
    check(&hba, replication("10.200.0.1", "b"), Some(Method::Md5));
    check(&hba, replication("10.200.0.1", "c"), None);
    check(&hba, replication("192.168.1.200", "c"), Some(Method::ScramSha256));
    check(&hba, replication("192.168.2.200", "c"), None);
    check(&hba, request("1.2.3.4", Target::Database("x"), "c"), Some(Method::Password));
    check(&hba, request("::1", Target::Database("x"), "c"), Some(Method::Password));
}

#[test]
fn replication_is_a_keyword_unless_quoted() {
    let keyword = parse("host replication all all trust").unwrap();
    check(&keyword, replication("1.2.3.4", "u"), Some(Method::Trust));
    check(&keyword, request("1.2.3.4", Target::Database("replication"), "u"), None);
    let database = parse("host \"replication\" all all trust").unwrap();
    check(&database, replication("1.2.3.4", "u"), None);
    check(&database, request("1.2.3.4", Target::Database("replication"), "u"), Some(Method::Trust));
    let all = parse("host all all all trust").unwrap();
    check(&all, replication("1.2.3.4", "u"), None);
    let same = parse("host sameuser all all trust").unwrap();
    check(&same, replication("1.2.3.4", "u"), None);
    check(&same, request("1.2.3.4", Target::Database("u"), "u"), Some(Method::Trust));
    check(&same, request("1.2.3.4", Target::Database("v"), "u"), None);
}

#[test]
fn connection_types_without_encryption() {
    let fits = |kind: &str| {
        let hba = parse(&format!("{kind} replication all all trust")).unwrap();
        found(&hba, replication("1.2.3.4", "u")).is_some()
    };
    assert!(fits("host") && fits("hostnossl") && fits("hostnogssenc"));
    assert!(!fits("hostssl") && !fits("hostgssenc"));
}

#[test]
fn encryption_decides_between_hostssl_and_hostnossl() {
    let hba = parse("hostssl replication all all cert\nhostnossl replication all all reject").unwrap();
    check(&hba, replication("1.2.3.4", "u"), Some(Method::Reject));
    check(&hba, Request { ssl: true, ..replication("1.2.3.4", "u") }, Some(Method::Cert));
    check(&hba, replication("local", "u"), None);
}

#[test]
fn options_say_what_a_certificate_is_for() {
    let hba = parse(
        "hostssl a all all cert map=m clientname=DN\n\
         hostssl b all all scram-sha-256 clientcert=verify-ca\n\
         hostssl c all all trust clientcert=verify-full\n\
         local a all ident map=m\n\
         host a all all trust\n",
    )
    .unwrap();
    let demands: Vec<_> = hba.rules.iter().map(|r| (r.client_cert(), r.client_name(), r.map())).collect();
    let (full, cn, dn) =
        (Some(ClientCert::VerifyFull), ClientName::CommonName, ClientName::DistinguishedName);
    assert_eq!(
        demands,
        [
            (full, dn, Some("m")),
            (Some(ClientCert::VerifyCa), cn, None),
            (full, cn, None),
            (None, cn, Some("m")),
            (None, cn, None)
        ]
    );
    assert_eq!(hba.rules[3].method(), Method::Peer);
}

#[test]
fn lines_for_tls_need_tls() {
    let plain = parse("hostssl all all all trust\nhost all all all trust").unwrap();
    let warnings = plain.check_tls(None).unwrap();
    assert_eq!(warnings, ["pg_hba.conf:1: hostssl record cannot match because SSL is disabled"]);
    assert!(plain.check_tls(Some(false)).unwrap().is_empty());
    for line in ["hostssl all all all cert", "hostssl all all all trust clientcert=verify-ca"] {
        let hba = parse(line).unwrap();
        assert!(hba.check_tls(Some(true)).unwrap().is_empty());
        for state in [None, Some(false)] {
            let error = hba.check_tls(state).unwrap_err().to_string();
            assert!(error.starts_with("pg_hba.conf:1: client certificates can only be checked"), "{error}");
        }
    }
}

#[test]
fn names_may_be_regular_expressions() {
    let hba = parse("host replication /^rep[0-9]+$,joe all trust\nhost \"/^a,b\" /x all trust").unwrap();
    check(&hba, replication("1.2.3.4", "rep12"), Some(Method::Trust));
    check(&hba, replication("1.2.3.4", "joe"), Some(Method::Trust));
    check(&hba, replication("1.2.3.4", "rep"), None);
    check(&hba, request("1.2.3.4", Target::Database("a,bc"), "axb"), Some(Method::Trust));
    check(&hba, request("1.2.3.4", Target::Database("a"), "axb"), None);
    // A physical connection has no database that could match.
    let any = parse("host /. all all trust").unwrap();
    check(&any, replication("1.2.3.4", "u"), None);
}

#[test]
fn addresses() {
    let fits = |address: &str, ip: &str| {
        let hba = parse(&format!("host replication all {address} trust")).unwrap();
        found(&hba, replication(ip, "u")).is_some()
    };
    assert!(fits("0.0.0.0/0", "9.9.9.9") && !fits("0.0.0.0/0", "::1"));
    assert!(fits("::/0", "::1") && !fits("::/0", "9.9.9.9"));
    assert!(fits("127.0.0.1/32", "127.0.0.1") && !fits("127.0.0.1/32", "127.0.0.2"));
    assert!(fits("fe80::1 ffff::", "fe80:2::9") && !fits("fe80::1 ffff::", "fe81::1"));
    assert!(fits("samehost", "127.0.0.1") && !fits("samehost", "127.9.9.9"));
    assert!(fits("samenet", "127.9.9.9"));
}

#[test]
fn masks_may_have_holes_and_short_addresses_mean_what_they_mean_to_postgresql() {
    let hba = parse(
        "host all all 1.2.3.4 255.0.255.0 trust\nhost all all 10/8 md5\nhost all all 10.0.0.0/8 reject",
    )
    .unwrap();
    let database = |ip| request(ip, Target::Database("x"), "u");
    check(&hba, database("1.9.3.9"), Some(Method::Trust));
    check(&hba, database("1.2.4.4"), None);
    check(&hba, database("0.1.2.3"), Some(Method::Md5));
    check(&hba, database("10.1.2.3"), Some(Method::Reject));
    let warnings = hba.check_tls(None).unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].starts_with("pg_hba.conf:2: address \"10/8\" is 0.0.0.10/8, as on PostgreSQL"),
        "{warnings:?}"
    );
}

#[test]
fn a_host_name_is_asked_for_when_a_line_depends_on_it() {
    let hba = parse(
        "host other all db.example.com reject\nhost all joe db.example.com trust\nhost all all .example.org md5\nhost all all all reject",
    )
    .unwrap();
    let find = |user: &str, database: &str, name: Option<Option<&str>>| {
        let facts = Facts { host_name: name.map(|name| name.map(str::to_owned)), ..Facts::default() };
        match hba.find(&request("192.0.2.1", Target::Database(database), user), &facts) {
            Found::Rule(rule) => Ok(rule.method()),
            Found::Unknown(fact) => Err(fact),
            Found::Nothing => panic!("the last line fits everybody"),
        }
    };
    assert_eq!(find("joe", "x", None), Err(Fact::HostName));
    assert_eq!(find("joe", "x", Some(None)), Ok(Method::Reject));
    assert_eq!(find("joe", "x", Some(Some("DB.example.com"))), Ok(Method::Trust));
    assert_eq!(find("joe", "other", Some(Some("db.example.com"))), Ok(Method::Reject));
    assert_eq!(find("jim", "x", Some(Some("db.example.com"))), Ok(Method::Reject));
    assert_eq!(find("jim", "x", Some(Some("a.b.EXAMPLE.org"))), Ok(Method::Md5));
    for name in ["example.org", "badexample.org.evil", "é.example.orgx"] {
        assert_eq!(find("jim", "x", Some(Some(name))), Ok(Method::Reject), "{name}");
    }
    // Where no line depends on it, nobody is asked.
    check(&parse("host all all db.example.com trust").unwrap(), replication("192.0.2.1", "u"), None);
    check(
        &parse("host all all \"all\" trust\nlocal all all trust").unwrap(),
        request("local", Target::Database("x"), "u"),
        Some(Method::Trust),
    );
}

#[test]
fn memberships_are_asked_for_when_a_line_depends_on_them() {
    let hba = parse("host all +admins 10.0.0.0/8 reject\nhost samerole all all md5\nhost all \"+admins\",x,+staff all trust").unwrap();
    let find = |ip: &str, user: &str, database: &str, member_of: Option<&[&str]>| {
        let member_of = member_of.map(|roles| roles.iter().map(|&role| role.to_owned()).collect());
        match hba
            .find(&request(ip, Target::Database(database), user), &Facts { member_of, ..Facts::default() })
        {
            Found::Rule(rule) => Ok(Some(rule.method())),
            Found::Nothing => Ok(None),
            Found::Unknown(fact) => Err(fact),
        }
    };
    assert_eq!(find("10.0.0.1", "joe", "d", None), Err(Fact::Membership));
    assert_eq!(find("10.0.0.1", "joe", "d", Some(&["joe", "admins"])), Ok(Some(Method::Reject)));
    assert_eq!(find("10.0.0.1", "joe", "d", Some(&["joe", "staff"])), Ok(Some(Method::Trust)));
    assert_eq!(find("1.0.0.1", "joe", "staff", Some(&["joe", "staff"])), Ok(Some(Method::Md5)));
    assert_eq!(
        find("1.0.0.1", "joe", "joe", Some(&["joe"])),
        Ok(Some(Method::Md5)),
        "everybody belongs to themselves"
    );
    assert_eq!(find("1.0.0.1", "joe", "d", Some(&[])), Ok(None), "no such role");
    assert_eq!(find("1.0.0.1", "+admins", "d", Some(&[])), Ok(Some(Method::Trust)), "a name in quotes");
    assert_eq!(find("1.0.0.1", "x", "d", Some(&[])), Ok(Some(Method::Trust)));
}

#[test]
fn lines_may_go_on() {
    let hba = parse("host replication \\\n  a,\\\nb \\\n all trust\nhost x y all reject").unwrap();
    check(&hba, replication("1.2.3.4", "b"), Some(Method::Trust));
    assert_eq!(hba.rules[1].place().to_string(), "pg_hba.conf:5");
    assert!(parse("host replication all all trust\\").is_ok());
}

#[test]
fn what_cannot_be_decided_is_refused_with_its_line() {
    refused(
        "host replication all all trust\n\nhots a b c d",
        "pg_hba.conf:3: invalid connection type \"hots\"",
    );
    refused("host", "end-of-line before database specification");
    refused("host replication", "end-of-line before role specification");
    refused("host replication all", "end-of-line before IP address specification");
    refused("host replication all 1.2.3.4", "end-of-line before netmask specification");
    refused("host replication all 1.2.3.4/33 trust", "invalid netmask");
    refused("host replication all 10/33 trust", "invalid netmask of address \"10/33\"");
    refused(
        "host replication all db.example.com/24 trust",
        "specifying both host name and CIDR mask is invalid",
    );
    refused("host replication all ::1 255.0.0.0 trust", "invalid netmask");
    refused("host replication all 1.2.3.4/32", "end-of-line before authentication method");
    refused("host replication all 1.2.3.4/32,1.2.3.5/32 trust", "multiple values");
    refused(
        "host replication all db.example.com 255.0.0.0 trust",
        "invalid authentication method \"255.0.0.0\"",
    );
    refused("host replication /^r(.*$ all trust", "invalid regular expression \"^r(.*$\"");
    refused("host /\\bx all all trust", "does not read as PostgreSQL does");
    refused("host replication all all ldap", "method \"ldap\" is not supported by walrelay");
    refused("host replication all all magic", "invalid authentication method \"magic\"");
    refused("host replication all all peer", "only supported on local sockets");
    refused("host replication all all cert", "cert authentication is only supported on hostssl connections");
    refused("host replication all all ident", "method \"ident\" is not supported by walrelay");
    refused(
        "hostssl replication all all scram-sha-256 map=x",
        "only valid for authentication methods peer and cert",
    );
    refused(
        "host replication all all trust clientcert=verify-ca",
        "can only be configured for \"hostssl\" rows",
    );
    refused("host replication all all trust clientname=CN", "clientname can only be configured for");
    refused("hostssl replication all all cert clientcert=verify-ca", "only accepts \"verify-full\"");
    refused("hostssl replication all all trust clientcert=1", "invalid value for clientcert: \"1\"");
    refused("hostssl replication all all trust clientname=cn", "invalid value for clientname: \"cn\"");
    refused("hostssl replication all all trust ldapserver=x", "option \"ldapserver\" is not supported");
    refused("hostssl replication all all trust verify", "not in name=value format: verify");
    refused("host replication \"all all trust", "does not end on its line");
    assert!(matches!(parse("# nothing\n"), Err(HbaError::Empty(_))));
    assert!(matches!(Hba::load(Path::new("/nonexistent/x")), Err(HbaError::File { .. })));
}

#[test]
fn files_include_files() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    write("users", "a # one\n\"b c\", d\n@more\n");
    write("more", "e");
    write("d/2.conf", "host replication all all reject");
    write("d/1.conf", "host replication second all md5");
    write("d/.hidden.conf", "nonsense");
    write("d/other", "nonsense");
    write("main", "host replication @users all trust\ninclude_if_exists none\ninclude_dir d\n");
    write("outer", "include \"main\"");
    let hba = Hba::load(&dir.path().join("outer")).unwrap();
    for user in ["a", "b c", "d", "e"] {
        check(&hba, replication("1.2.3.4", user), Some(Method::Trust));
    }
    check(&hba, replication("1.2.3.4", "second"), Some(Method::Md5));
    check(&hba, replication("1.2.3.4", "z"), Some(Method::Reject));
    write("loop", "include loop");
    let error = Hba::load(&dir.path().join("loop")).unwrap_err().to_string();
    assert!(error.contains("nested too deeply"), "{error}");
    write("missing", "include none");
    assert!(matches!(Hba::load(&dir.path().join("missing")), Err(HbaError::File { .. })));
}

#[test]
fn a_file_that_everybody_writes_is_refused_also_where_it_is_included() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("main"), "local all @users trust\ninclude more").unwrap();
    fs::write(path("users"), "joe").unwrap();
    fs::write(path("more"), "local all all reject").unwrap();
    assert!(Hba::load(&path("main")).is_ok());
    for name in ["main", "users", "more"] {
        fs::set_permissions(path(name), PermissionsExt::from_mode(0o666)).unwrap();
        let error = Hba::load(&path("main")).unwrap_err().to_string();
        assert!(error.contains(&format!("{name}\" can be written by everybody")), "{error}");
        fs::set_permissions(path(name), PermissionsExt::from_mode(0o644)).unwrap();
    }
}

#[test]
fn without_a_file_only_this_machine_gets_in() {
    let hba = Hba::builtin();
    assert!(hba.is_builtin());
    check(&hba, replication("local", "u"), Some(Method::Peer));
    check(&hba, replication("127.0.0.1", "u"), Some(Method::ScramSha256));
    check(&hba, replication("::1", "u"), Some(Method::ScramSha256));
    check(&hba, replication("192.0.2.1", "u"), None);
}

proptest! {
    #[test]
    fn no_text_panics(text in "(?s).{0,80}") {
        // Without '@' and includes: those open files.
        let _ = parse(&text.replace('@', "a").replace("include", "x"));
    }

    #[test]
    fn no_words_panic(words in proptest::collection::vec("(local|host|all|replication|\"a b\"|1\\.2\\.3\\.4(/[0-9]{1,3})?|::/0|trust|,|\\\\\n|#)", 0..9)) {
        let _ = parse(&words.join(" "));
    }
}
