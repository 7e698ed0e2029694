//! The files' text, and the SQL.

use std::fmt::Write as _;

use toml::Value;

use super::Plan;
use crate::conninfo::HostAddress;

/// What asks for secrets: as docs/AUTHENTICATION.md has it.
const LOOKUP: &str = r#"CREATE SCHEMA IF NOT EXISTS walrelay;
GRANT USAGE ON SCHEMA walrelay TO {role};
CREATE OR REPLACE FUNCTION walrelay.lookup(name, OUT rolname name, OUT secret text) RETURNS record
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END
    FROM pg_authid WHERE rolname = $1 AND rolcanlogin AND NOT rolsuper
$$;
REVOKE ALL ON FUNCTION walrelay.lookup(name) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION walrelay.lookup(name) TO {role};
"#;
/// The query to go with it.
const AUTH_QUERY: &str = "SELECT rolname, secret FROM walrelay.lookup($1)";

/// `walrelay.toml`
pub(super) fn config(plan: &Plan) -> String {
    let Plan { args, upstream, hba_file, .. } = plan;
    let file = args.config.display();
    let mut out = format!(
        "# walrelay: settings, begun by `walrelay init`. The same names are flags (walrelay --help) and, as WALRELAY_UPSTREAM,\n\
         # environment variables. After a change: walrelay check-config --config {file} && systemctl reload walrelay\n\n\
         # The server to receive WAL from, as a libpq connection string. The password goes into a password file of the relay's\n\
         # user (~/.pgpass, or where PGPASSFILE says: /etc/walrelay/pgpass with the packaged unit), mode 0600, as a line\n\
         #   host:port:*:{}:password\n",
        plan.info.user
    );
    put(&mut out, "upstream", upstream.as_str());
    comment(&mut out, "The slot there, made if it is missing.");
    put(&mut out, "slot", args.slot.as_deref().unwrap_or("walrelay"));
    comment(&mut out, "Where WAL is kept.");
    let data_dir = args.data_dir.clone().or_else(|| args.default_data_dir().ok()).unwrap_or_default();
    put(&mut out, "data-dir", &*data_dir.to_string_lossy());
    comment(&mut out, "Where to serve consumers: addresses, and directories for Unix sockets.");
    let default = vec!["127.0.0.1:5432".to_owned()];
    let listen = if args.listen.is_empty() { &default } else { &args.listen };
    put(&mut out, "listen", listen.clone());
    comment(
        &mut out,
        "Metrics and health in HTTP, without a login: a port of the loopback interface, or ADDR:PORT.",
    );
    match &args.http_listen {
        Some(address) => put(&mut out, "http-listen", address.as_str()),
        None => out.push_str("#http-listen = \"9187\"\n"),
    }
    comment(
        &mut out,
        "Who may connect, in pg_hba.conf's syntax. Without it: peer on Unix sockets, a password on loopback, nobody from elsewhere.",
    );
    match hba_file {
        Some(path) => put(&mut out, "hba-file", &*path.to_string_lossy()),
        None => out.push_str("#hba-file = \"/etc/walrelay/hba.conf\"\n"),
    }
    comment(&mut out, "Their secrets: asked of the upstream, or in a file as PgBouncer's userlist.txt.");
    out.push_str(if plan.asks_for_secrets() { "" } else { "#" });
    put(&mut out, "auth-query", AUTH_QUERY);
    out.push_str("#auth-file = \"/etc/walrelay/userlist.txt\"\n");
    comment(&mut out, "TLS for consumers.");
    out.push_str(
        "#ssl-cert-file = \"/etc/walrelay/server.crt\"\n#ssl-key-file = \"/etc/walrelay/server.key\"\n",
    );
    comment(
        &mut out,
        "WAL that is kept for consumers without a slot, and the most that slots may keep (-1: no limit; then a consumer that is\n\
         # gone fills this disk, and no other).",
    );
    out.push_str("#wal-keep-size = \"1GB\"\n#max-slot-wal-keep-size = \"100GB\"\n");
    comment(&mut out, "Archive targets; see docs/ARCHIVING.md for the options.");
    for (number, url) in args.archive.iter().enumerate() {
        let name = if number == 0 { "main".to_owned() } else { format!("target-{}", number + 1) };
        let _ = writeln!(out, "[archive.{name}]");
        put(&mut out, "url", url.as_str());
    }
    if args.archive.is_empty() {
        out.push_str("#[archive.main]\n#url = \"s3://bucket/prefix\"\n#compression = \"zstd\"\n");
    }
    out
}

fn comment(out: &mut String, text: &str) {
    let _ = writeln!(out, "\n# {text}");
}

fn put(out: &mut String, key: &str, value: impl Into<Value>) {
    let _ = writeln!(out, "{key} = {}", value.into());
}

/// `hba.conf`
pub(super) fn hba(roles: &[String]) -> String {
    let mut out = "# Who may connect to the relay, in pg_hba.conf's syntax, begun by `walrelay init`. After a change: systemctl reload walrelay\n\
         # type  database         role  address       method\n\
         local   all,replication  all                 peer\n\
         host    all,replication  all   127.0.0.1/32  scram-sha-256\n\
         host    all,replication  all   ::1/128       scram-sha-256\n\
         # Consumers on the networks of this machine; write hostssl once there is a certificate.\n"
        .to_owned();
    for role in roles {
        let _ = writeln!(out, "host    replication      {}  samenet  scram-sha-256", quoted(role));
    }
    out
}

/// What the primary has to be told, for psql.
pub(super) fn sql(plan: &Plan) -> String {
    let Plan { args, info, .. } = plan;
    let (role, slot) = (ident(&info.user), args.slot.as_deref().unwrap_or("walrelay"));
    let database = info.dbname.as_deref().unwrap_or("postgres");
    let hosts: Vec<String> = info.hosts.iter().map(ToString::to_string).collect();
    let mut out = format!(
        "-- For {}: run this there as a superuser, in database {}.\n\
         -- A role that exists already is an error that does no harm, if it has LOGIN and REPLICATION.\n\
         CREATE ROLE {role} LOGIN REPLICATION;\n\
         -- \\password {role}\n",
        line(&hosts.join(", ")),
        line(&ident(database))
    );
    if plan.asks_for_secrets() {
        out.push_str("\n-- Roles log in to the relay with the password that they have here.\n");
        out.push_str(&LOOKUP.replace("{role}", &role));
    }
    for consumer in &args.consumer_role {
        let consumer = ident(consumer);
        let _ = write!(out, "\nCREATE ROLE {consumer} LOGIN REPLICATION;\n-- \\password {consumer}\n");
    }
    let _ = write!(
        out,
        "\n-- Only if WAL is to be kept from now on, and not from the relay's first connection on:\n\
         -- SELECT pg_create_physical_replication_slot({}, true);\n\
         \n-- A line of pg_hba.conf there, and then SELECT pg_reload_conf():\n",
        literal(slot)
    );
    hba_lines(plan, &mut out);
    let config = args.config.display().to_string();
    let _ = write!(
        out,
        "\n-- Then, on the relay's machine:\n\
         --   the password of {role} into the password file (mode 0600, of the relay's user)\n\
         --   walrelay doctor --config {0}\n\
         --   walrelay --config {0}      (or: systemctl enable --now walrelay)\n",
        line(&config)
    );
    out
}

fn hba_lines(plan: &Plan, out: &mut String) {
    let databases = match plan.asks_for_secrets() {
        true => format!("replication,{}", quoted(plan.info.dbname.as_deref().unwrap_or("postgres"))),
        false => "replication".to_owned(),
    };
    let is_local =
        matches!(plan.info.hosts.first().map(|host| &host.address), Some(HostAddress::UnixDirectory(_)));
    let address = plan.own_address.as_deref().unwrap_or("RELAY_ADDRESS/32");
    let mut put = |databases: &str, role: &str| {
        let role = quoted(role);
        let _ = match is_local {
            true => writeln!(out, "--   local  {databases}  {role}  scram-sha-256"),
            false => writeln!(out, "--   host  {databases}  {role}  {address}  scram-sha-256"),
        };
    };
    put(&databases, &plan.info.user);
    // Base backups are taken in their own name.
    plan.args.consumer_role.iter().for_each(|role| put("replication", role));
}

impl Plan {
    fn asks_for_secrets(&self) -> bool {
        self.args.auth_query || !self.args.consumer_role.is_empty()
    }
}

/// For a comment, which a line break would end.
fn line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// PG: `quote_identifier`, and quotes around more than that.
fn ident(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    // Words of SQL that a role or a database may well be called.
    let is_word = ["user", "all", "end", "table", "order", "group", "default", "primary"].contains(&name);
    if is_plain && !is_word { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// In pg_hba.conf quotes take the special meaning from words.
fn quoted(name: &str) -> String {
    let special = ["all", "replication", "sameuser", "samerole", "samegroup"].contains(&name);
    match ident(name) == name && !special {
        true => name.to_owned(),
        false => format!("\"{}\"", name.replace('"', "\"\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::InitArgs;
    use crate::conninfo::Environment;

    fn plan(upstream: &str, roles: &[&str]) -> Plan {
        let args = InitArgs {
            upstream: Some(upstream.to_owned()),
            config: "/etc/walrelay/walrelay.toml".into(),
            data_dir: Some("/var/lib/\"w\"".into()),
            archive: vec!["file:///a".to_owned(), "s3://b/c".to_owned()],
            consumer_role: roles.iter().map(|role| (*role).to_owned()).collect(),
            ..InitArgs::default()
        };
        let (upstream, info) = args.upstream(&Environment::of_user("tester")).unwrap();
        let hba_file = (!roles.is_empty()).then(|| "/etc/walrelay/hba.conf".into());
        Plan { args, upstream, info, hba_file, own_address: Some("192.0.2.10/32".to_owned()) }
    }

    #[test]
    fn the_file_holds_what_was_decided_and_the_rest_as_comments() {
        let text = config(&plan("host=a user='relay x' options='-c a=\"b\"'", &[]));
        let read: toml::Table = text.parse().unwrap();
        assert_eq!(read["upstream"].as_str(), Some("host=a user='relay x' options='-c a=\"b\"'"));
        assert_eq!(read["data-dir"].as_str(), Some("/var/lib/\"w\""));
        assert_eq!(read["archive"]["main"]["url"].as_str(), Some("file:///a"));
        assert_eq!(read["archive"]["target-2"]["url"].as_str(), Some("s3://b/c"));
        assert!(!read.contains_key("auth-query") && !read.contains_key("hba-file"));
        let text = config(&plan("host=a user=u", &["standby"]));
        let read: toml::Table = text.parse().unwrap();
        assert_eq!(read["auth-query"].as_str(), Some(AUTH_QUERY));
        assert_eq!(read["hba-file"].as_str(), Some("/etc/walrelay/hba.conf"));
    }

    #[test]
    fn names_are_quoted_where_they_have_to_be() {
        let plan = plan("host=a,b user='relay x' dbname='d\"b'", &["standby", "all", "o'b"]);
        let sql = sql(&plan);
        for part in [
            "-- For \"a\", port 5432, \"b\", port 5432: run",
            "CREATE ROLE \"relay x\" LOGIN REPLICATION;",
            "TO \"relay x\";",
            "CREATE ROLE standby LOGIN",
            "CREATE ROLE \"all\" LOGIN",
            "CREATE ROLE \"o'b\" LOGIN",
            "host  replication,\"d\"\"b\"  \"relay x\"  192.0.2.10/32  scram-sha-256",
            "host  replication  \"all\"  192.0.2.10/32",
        ] {
            assert!(sql.contains(part), "{part}\n{sql}");
        }
        let rules = hba(&plan.args.consumer_role);
        crate::auth::hba::Hba::parse(std::path::Path::new("hba.conf"), &rules).unwrap();
        assert!(rules.contains("replication      \"all\"  samenet"), "{rules}");
    }
}
