//! What packages, images and manifests bring: the systemd unit, the example of a configuration, `walrelay check-config`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use walrelay::auth::hba::{Facts, Found, Hba, Method, Request, Target};
use walrelay_testkit::{Cluster, Consumer, Scratch, Server, Signal, ansible, on_one_version};

use crate::{relay_below, walrelay};

on_one_version!(the_unit_allows_all_system_calls_of_a_relay);

fn packaged(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(file)
}

fn systemd_analyze(arguments: &[&str]) -> Output {
    Command::new("systemd-analyze").args(arguments).output().expect("setup has installed systemd-analyze")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// Exit code and text of `walrelay check-config`.
fn check_config(arguments: &[&str]) -> (Option<i32>, String) {
    let checked = Command::new(walrelay()).arg("check-config").args(arguments).output();
    let checked = checked.expect("walrelay can be run");
    (checked.status.code(), said(&checked))
}

#[test]
fn the_unit_is_one_that_systemd_takes_and_finds_hardened() {
    let scratch = Scratch::new("unit");
    // It is not installed here, and `verify` looks for the program.
    let unit = fs::read_to_string(packaged("systemd/walrelay.service")).expect("it is in the repository");
    let path = scratch.join("walrelay.service");
    fs::write(&path, unit.replace("/usr/bin/walrelay", &walrelay().display().to_string()))
        .expect("it is ours");
    let unit = path.to_str().expect("a path of ours");
    let verified = systemd_analyze(&["verify", "--man=no", "--recursive-errors=no", unit]);
    assert!(
        verified.status.success() && !said(&verified).contains("walrelay.service:"),
        "{}",
        said(&verified)
    );
    let judged = systemd_analyze(&["security", "--offline=true", "--threshold=20", unit]);
    assert!(judged.status.success(), "{}", said(&judged));
}

/// Names of the system calls that lines of a unit's `SystemCallFilter=` allow, the sets of systemd resolved.
fn allowed(unit: &str) -> BTreeSet<String> {
    let mut calls = BTreeSet::new();
    for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (takes_away, names) = line.strip_prefix('~').map_or((false, line), |names| (true, names));
        for name in names.split_whitespace().flat_map(resolved) {
            if takes_away {
                calls.remove(&name)
            } else {
                calls.insert(name)
            };
        }
    }
    calls
}

fn resolved(name: &str) -> Vec<String> {
    if !name.starts_with('@') {
        return vec![name.to_owned()];
    }
    let listed = String::from_utf8_lossy(&systemd_analyze(&["syscall-filter", name]).stdout).into_owned();
    let lines = listed.lines().filter(|line| line.starts_with(' ')).map(str::trim);
    lines.filter(|line| !line.starts_with('#')).flat_map(resolved).collect()
}

/// `[pid 123] 07:22:21.123456 mincore(0x7f…` names a call. ` <... read resumed>` does not, nor does the second part of a line that
/// was torn by `strace: Process 124 attached`: `) = 0x1 (flags FD_CLOEXEC)`.
fn call_in(line: &str) -> Option<&str> {
    let (before, _) = line.split_once('(').filter(|_| !line.contains("resumed>"))?;
    let name = before.rsplit(char::is_whitespace).next()?;
    let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    (name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(is_letter)).then_some(name)
}

#[test]
fn calls_are_found_in_what_strace_says() {
    for (line, call) in [
        ("[pid   123] 07:22:21.123456 mincore(0x7f0000000000, 4096, [1]) = 0", Some("mincore")),
        ("07:22:21.123456 clone3({flags=CLONE_VM}strace: Process 124 attached", Some("clone3")),
        ("[pid   123] 07:22:21.123456 <... fcntl resumed>) = 0x1 (flags FD_CLOEXEC)", None),
        (") = 0x1 (flags FD_CLOEXEC)", None),
        (" = -1 EAGAIN (Resource temporarily unavailable)", None),
        ("[pid   123] 07:22:21.123456 +++ exited with 0 +++", None),
    ] {
        assert_eq!(call_in(line), call, "{line}");
    }
}

fn the_unit_allows_all_system_calls_of_a_relay(server: &Server) {
    let unit = fs::read_to_string(packaged("systemd/walrelay.service")).expect("it is in the repository");
    let allowed = allowed(&unit);
    // Asked for only where WAL may have left memory.
    assert!(allowed.contains("mincore"), "the sets of systemd do not have it");
    assert!(allowed.contains("fdatasync") && !allowed.contains("mount"), "systemd's sets are resolved");

    let (archive, primary) = (Scratch::new("archive"), Cluster::builder(server).seg_mb(1).start());
    let url = format!("file://{}", archive.path().display());
    let mut relay = relay_below(&primary).arg("--archive").arg(&url).arg("--wal-keep-size").arg("0").start();
    relay.create_slots(&["standby", "late"]);
    let old = relay.slot_lsn("late").expect("it is made with a position");
    primary.pgbench_init(1);
    relay.wait_for_flush(primary.flush_lsn());
    // What was received before a start may have left memory, which the kernel is asked for.
    relay.restart();
    let trace = relay.trace(&["trace=all"]);
    let standby = primary.standby().follow(&relay.conninfo()).slot("standby").start();
    primary.sql("create table t as select generate_series(1, 100000)");
    let segment = primary.switch_wal();
    standby.wait_for_replay(primary.flush_lsn());
    relay.wait_for_segment(&segment);
    let mut late =
        Consumer::connect(SocketAddr::from(([127, 0, 0, 1], relay.port())), "late").expect("it is let in");
    late.start(old).expect("the relay has the WAL");
    late.drain(primary.flush_lsn()).expect("WAL comes");
    relay.sql("select 1");
    relay.reload();
    // The filter stays over an exec, and holds for the programs that are asked before.
    let mark = relay.log().mark();
    relay.signal(Signal::USR2);
    relay.log().wait_for_after(mark, concat!("walrelay ", env!("CARGO_PKG_VERSION"), " started"));
    relay.terminate();
    let text = trace.text();
    let seen: BTreeSet<&str> = text.lines().filter_map(call_in).collect();
    assert!(
        ["fdatasync", "process_vm_readv", "rename", "execve"].iter().all(|call| text.contains(call)),
        "{seen:?}"
    );
    let refused: Vec<_> = seen.into_iter().filter(|call| !allowed.contains(*call)).collect();
    assert!(refused.is_empty(), "SystemCallFilter= of the unit refuses {refused:?}");
}

#[test]
fn the_example_of_a_configuration_is_good() {
    let scratch = Scratch::new("example");
    let example = packaged("config/walrelay.toml").display().to_string();
    let (code, text) = check_config(&["--config", &example, "-D", scratch.path().to_str().expect("ours")]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("is good"), "{text}");
}

#[test]
fn check_config_says_what_is_wrong_and_where() {
    let scratch = Scratch::new("check");
    let file = |name: &str, text: &str| {
        fs::write(scratch.join(name), text).expect("it is ours");
        scratch.join(name).display().to_string()
    };
    let hba = file("hba.conf", "local all all peer\nhost all all 10.0.0.0/8 scram\n");
    let data = scratch.join("data").display().to_string();
    let config = |more: &str| {
        let path =
            file("walrelay.toml", &format!("upstream = \"host=a user=u\"\ndata-dir = {data:?}\n{more}\n"));
        check_config(&["--config", &path])
    };
    let refused = |more: &str, reasons: &[&str]| {
        let (code, text) = config(more);
        let all = reasons.iter().all(|reason| text.contains(reason));
        assert!(code == Some(2) && all, "{more}: {code:?} {text}");
    };
    assert_eq!(config("").0, Some(0));
    assert!(!scratch.join("data").exists(), "nothing is made");
    refused("wal-kep-size = 1", &["line 3", "the nearest known one is `wal-keep-size`"]);
    refused(&format!("hba-file = {hba:?}"), &["hba.conf:2: ", "scram"]);
    refused("listen = \"nowhere\"", &["nowhere"]);
    refused(
        &format!("[archive.a]\nurl = \"file://{data}/wal\""),
        &["archive target \"a\"", "data directory"],
    );
    // It may be about to be mounted.
    let mounted = scratch.join("mounted");
    fs::create_dir(&mounted).expect("it is ours");
    let targets = format!(
        "[archive.a]\nurl = \"file:///nonexistent/wal\"\n[archive.b]\nurl = \"file://{}\"",
        mounted.display()
    );
    let (code, text) = config(&targets);
    let warning = "archive target \"a\": directory \"/nonexistent/wal\" does not exist; create or mount it";
    assert!(code == Some(0) && text.contains(warning) && !text.contains("target \"b\""), "{code:?} {text}");
    refused("ssl-cert-file = \"/nonexistent/c\"\nssl-key-file = \"/nonexistent/k\"", &["/nonexistent/"]);
    let (code, text) = check_config(&["--upstream", "host=a user=u", "--slot", "Bad", "-D", &data]);
    assert!(code == Some(2) && text.contains("--slot"), "{code:?} {text}");
}

/// Where a package puts what: source, destination and mode, as listed.
fn listed(of: &str) -> Vec<(String, String, String)> {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    let manifest: toml::Table = manifest.expect("it is there").parse().expect("Cargo takes it");
    let assets = manifest["package"]["metadata"][of]["assets"].as_array().expect("a list");
    let text = |value: &toml::Value| value.as_str().expect("a text").to_owned();
    let asset = |asset: &toml::Value| {
        let [source, to, mode] = match asset {
            toml::Value::Array(parts) => [&parts[0], &parts[1], &parts[2]].map(text),
            asset => ["source", "dest", "mode"].map(|key| text(&asset[key])),
        };
        (source, to, mode)
    };
    assets.iter().map(asset).collect()
}

/// The same by destination.
fn assets(of: &str) -> BTreeMap<String, (String, String)> {
    let by_destination = |(source, to, mode): (String, String, String)| {
        let name = Path::new(&source).strip_prefix(source.split('*').next().unwrap_or_default());
        let name = name.ok().filter(|_| source.contains('*'));
        let name = name.or(Path::new(&source).file_name().map(Path::new)).expect("a file").to_str();
        let to = if to.ends_with('/') { format!("{to}{}", name.expect("ours")) } else { to };
        (to.trim_start_matches('/').to_owned(), (source, mode))
    };
    listed(of).into_iter().map(by_destination).collect()
}

/// Where the Debian package puts something, and which file of the repository that is. Of a wildcard what stands before it is left out.
pub(crate) fn installed() -> BTreeMap<PathBuf, PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeMap::new();
    for (source, to) in listed("deb").into_iter().map(|(source, to, _)| (source, to)) {
        let base = source.split('*').next().and_then(|before| before.rfind('/').map(|at| &before[..=at]));
        let base = base.unwrap_or_default();
        let files = matching(root, &source);
        assert!(!files.is_empty() || source.starts_with("target/"), "nothing is at {source}");
        for file in files {
            let to = match to.ends_with('/') {
                true => format!("{to}{}", &file[base.len()..]),
                false => to.clone(),
            };
            found.insert(PathBuf::from(to.trim_start_matches('/')), PathBuf::from(file));
        }
    }
    found
}

/// Paths below `root` that a pattern with `*` fits.
fn matching(root: &Path, pattern: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    for part in pattern.split('/') {
        let fits = regex::escape(part).replace("\\*", "[^/]*");
        let fits = regex::Regex::new(&format!("^{fits}$")).expect("escaped");
        let below = |dir: &String| -> Vec<String> {
            let entries = fs::read_dir(root.join(dir)).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            let names =
                names.filter(|name| fits.is_match(name) && (!name.starts_with('.') || part.starts_with('.')));
            names.map(|name| if dir.is_empty() { name } else { format!("{dir}/{name}") }).collect()
        };
        found = found.iter().flat_map(below).collect();
    }
    found.retain(|path| root.join(path).is_file());
    found
}

#[test]
fn both_packages_bring_the_same() {
    let (mut deb, rpm) = (assets("deb"), assets("generate-rpm"));
    // Distributions differ in where zsh looks.
    let zsh = deb.remove("usr/share/zsh/vendor-completions/_walrelay").expect("it is there");
    deb.insert("usr/share/zsh/site-functions/_walrelay".to_owned(), zsh);
    assert_eq!(deb, rpm);
}

/// Lines of the Containerfile, continued ones joined, by their first word.
fn instructions() -> Vec<(String, String)> {
    let text = fs::read_to_string(packaged("container/Containerfile")).expect("it is in the repository");
    let text: String =
        text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    let text = text.replace("\\\n", " ");
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(word, rest)| (word.to_owned(), rest.trim().to_owned())).collect()
}

#[test]
fn the_image_is_run_with_the_file_that_it_brings() {
    let instructions = instructions();
    let all = |word: &str| -> Vec<&str> {
        instructions.iter().filter(|(known, _)| known == word).map(|(_, rest)| rest.as_str()).collect()
    };
    // Any other would win over what is mounted at the file's place.
    assert_eq!(all("ENV"), ["WALRELAY_CONFIG=/etc/walrelay/walrelay.toml"]);
    assert_eq!(all("ENTRYPOINT"), [r#"["/usr/bin/walrelay"]"#]);
    assert_eq!((all("USER"), all("EXPOSE")), (vec!["walrelay"], vec!["5432"]));
    let known =
        ["FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "VOLUME", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT"];
    instructions.iter().for_each(|(word, _)| assert!(known.contains(&word.as_str()), "{word}"));
    for copied in all("COPY").iter().filter(|rest| !rest.starts_with("--from") && **rest != ". .") {
        let (sources, to) = copied.rsplit_once(' ').expect("a destination");
        assert_eq!(to, "/etc/walrelay/");
        for source in sources.split(' ') {
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(source).is_file(), "{source}");
        }
    }
    let settings = fs::read_to_string(packaged("container/walrelay.toml")).expect("it is in the repository");
    let parsed: toml::Table = settings.parse().expect("it is TOML");
    assert_eq!(all("VOLUME"), [parsed["data-dir"].as_str().expect("a text")]);
    assert_eq!(parsed["listen"].as_array().expect("a list")[0].as_str(), Some("0.0.0.0:5432"));
    assert!(
        all("RUN").iter().any(|run| run.contains("chmod 0700 /var/lib/walrelay")),
        "WAL is nobody else's"
    );

    // As in the image, where files lie elsewhere.
    let scratch = Scratch::new("image");
    let (config, data) = (scratch.join("walrelay.toml"), scratch.join("data").display().to_string());
    let here = packaged("container").display().to_string();
    let settings = settings.replace("/etc/walrelay", &here).replace("/var/lib/walrelay", &data);
    fs::write(&config, settings).expect("it is ours");
    let checked = {
        let mut command = Command::new(walrelay());
        command
            .arg("check-config")
            .env("WALRELAY_CONFIG", &config)
            .env("WALRELAY_UPSTREAM", "host=primary user=walrelay");
        command.env("WALRELAY_AUTH_QUERY", "SELECT rolname, secret FROM walrelay.lookup($1)");
        command.output().expect("walrelay can be run")
    };
    assert!(checked.status.success(), "{}", said(&checked));
    // Who comes through the published port has another machine's address, and needs a password.
    let hba = Hba::load(&packaged("container/hba.conf")).expect("it is good");
    for target in [Target::Replication, Target::Database("postgres")] {
        let from = Request { ip: Some([192, 0, 2, 1].into()), ssl: false, target, user: "standby" };
        let found = hba.find(&from, &Facts::default());
        assert!(matches!(found, Found::Rule(rule) if rule.method() == Method::ScramSha256), "{target:?}");
    }
}

/// What an image is built of is not sent along with what has been built, and its history.
#[test]
fn the_image_is_built_of_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ignored = fs::read_to_string(root.join(".containerignore")).expect("it is in the repository");
    for (line, why) in [(".git", "history"), ("**/target", "what was built")] {
        assert!(ignored.lines().any(|known| known == line), "{why}");
    }
    assert_eq!(fs::read_to_string(root.join(".dockerignore")).expect("Docker reads that one"), ignored);
}

#[test]
fn the_kubernetes_manifests_are_whole() {
    let Some(mut python) = ansible::interpreter() else {
        return eprintln!("not tested: the Kubernetes manifests, PyYAML could not be installed");
    };
    let (scratch, root) = (Scratch::new("kubernetes"), Path::new(env!("CARGO_MANIFEST_DIR")));
    let linted = python.arg(root.join("tests/kubernetes.py")).arg(scratch.path()).output();
    let linted = linted.expect("there is Python");
    assert!(linted.status.success(), "{}", said(&linted));
    let config = scratch.join("walrelay.toml");
    let settings = fs::read_to_string(&config).expect("the lint has written it");
    // As in a pod: what the configuration names lies elsewhere here.
    let here = format!("{}/", scratch.path().display());
    fs::write(&config, settings.replace("/etc/walrelay/", &here)).expect("it is ours");
    let (code, text) = check_config(&["--config", config.to_str().expect("ours")]);
    assert_eq!(code, Some(0), "{text}");
}

/// With the program of these tests; `make packages-test` does the same with packages as they are delivered.
#[test]
fn packages_install_upgrade_and_go() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/packages.sh");
    let done = Command::new(script).arg(walrelay()).output().expect("there is a shell");
    let text = said(&done);
    assert!(done.status.success(), "{text}");
    text.lines().filter(|line| line.starts_with("not tested")).for_each(|line| eprintln!("{line}"));
    let is_done = text.contains("installed, upgraded, removed and purged as it should");
    assert!(is_done || text.contains("not tested: the Debian package"), "{text}");
    let has_run =
        text.contains("under systemd it starts, reloads, restarts, comes back, is upgraded, stops and goes");
    assert!(has_run || text.contains("not tested: the Debian package"), "{text}");
}
