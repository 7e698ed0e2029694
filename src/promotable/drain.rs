//! Whether a `restore_command` would get from relays what its server lacks: read from its text, as a shell would read it.

use std::path::Path;

use crate::config::each_asked;
use crate::conninfo::{ConnInfo, Environment, HostSpec};

/// What a `restore_command` does for a server that is promoted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Drain {
    /// It asks all the relays, and waits for some of them.
    Yes {
        /// For so many of them at least.
        waits_for: usize,
    },
    /// It does not, for this reason.
    No(String),
    /// That cannot be seen, for this reason.
    Unknown(String),
}

/// Reads a command. A relay is known by the name and port of its host.
pub fn drain(command: &str, relays: &[ConnInfo], environment: &Environment) -> Drain {
    let no = |reason: &str| Drain::No(reason.to_owned());
    let unknown = |reason: &str| Drain::Unknown(reason.to_owned());
    if command.trim().is_empty() {
        return no("there is none");
    }
    let Some(words) = words(command) else { return unknown("its quotes do not match") };
    let is_ours = |word: &String| Path::new(word).file_name().is_some_and(|name| name == "walrelay");
    let Some(at) = words.iter().position(is_ours) else { return unknown("it is not walrelay restore") };
    let words = &words[at + 1..];
    if words.first().map(String::as_str) != Some("restore") {
        return unknown("it is not walrelay restore");
    }
    if !["%f", "%p"].iter().all(|part| words.iter().any(|word| word.contains(part))) {
        return no("it is not given %f and %p");
    }
    let from = values(words, "--from");
    if from.is_empty() {
        return unknown("its places are in a configuration file or a data directory");
    }
    let asked: Vec<ConnInfo> = from
        .iter()
        .filter_map(|text| ConnInfo::parse(text, environment).ok().filter(|_| is_connection(text)))
        .flat_map(|info| each_asked(&info))
        .collect();
    let is_at = |place: &ConnInfo, relay: &ConnInfo| relay.hosts.iter().any(|it| place.hosts.contains(it));
    let (mut missing, mut chosen) = (Vec::new(), None);
    for relay in relays {
        let mut places = asked.iter().filter(|place| is_at(place, relay));
        if places.clone().any(|place| place.hosts.len() == 1) {
            continue;
        }
        match places.next() {
            Some(place) => chosen = Some(hosts(place)),
            None => missing.push(hosts(relay)),
        }
    }
    match (missing.is_empty(), chosen) {
        (false, _) => Drain::No(format!("it does not name {}", missing.join(" and "))),
        (true, Some(several)) => {
            Drain::No(format!("it asks only one of {several}, since it has target_session_attrs"))
        }
        (true, None) => {
            let others = from.iter().filter(|text| !is_connection(text) && is_directory(text)).count();
            Drain::Yes { waits_for: waits_for(words, relays, &asked, others, environment) }
        }
    }
}

/// For how many of these relays a command waits for certain: for those that it names, or for as many as others that it asks as
/// well cannot take the place of. `others` are data directories.
fn waits_for(
    words: &[String],
    relays: &[ConnInfo],
    asked: &[ConnInfo],
    others: usize,
    environment: &Environment,
) -> usize {
    let required = values(words, "--require");
    let is_named = |relay: &&ConnInfo| {
        required.iter().any(|text| {
            let is_host = relay.hosts.iter().any(|host| host.name.as_deref() == Some(text));
            let info = ConnInfo::parse(text, environment).ok().filter(|_| is_connection(text));
            is_host || info.is_some_and(|info| info.hosts.iter().any(|host| relay.hosts.contains(host)))
        })
    };
    let named = relays.iter().filter(is_named).count();
    // One that is given twice is one.
    let mut places: Vec<&HostSpec> = Vec::new();
    for host in asked.iter().flat_map(|info| &info.hosts) {
        if !places.contains(&host) {
            places.push(host);
        }
    }
    let given = places.iter().filter(|host| relays.iter().any(|relay| relay.hosts.contains(host))).count();
    let not_given = places.len() - given + others;
    let count = values(words, "--require-relays").last().and_then(|count| count.parse::<usize>().ok());
    named.max(count.unwrap_or(0).saturating_sub(not_given).min(relays.len()))
}

/// A relay's data directory.
fn is_directory(text: &str) -> bool {
    text.contains('/') && !text.contains("://")
}

/// A server's hosts, for people.
pub fn hosts(info: &ConnInfo) -> String {
    let host = |host: &HostSpec| match &host.name {
        Some(name) => format!("{name}:{}", host.port),
        None => host.to_string(),
    };
    info.hosts.iter().map(host).collect::<Vec<_>>().join(",")
}

fn is_connection(text: &str) -> bool {
    let is_uri = ["postgresql://", "postgres://"].iter().any(|scheme| text.starts_with(scheme));
    is_uri || (text.contains('=') && !text.contains("://"))
}

/// What follows a flag, as a word of its own or behind `=`.
fn values<'a>(words: &'a [String], flag: &str) -> Vec<&'a str> {
    let mut values = Vec::new();
    for (number, word) in words.iter().enumerate() {
        if word == flag {
            values.extend(words.get(number + 1).map(String::as_str));
        } else if let Some(value) = word.strip_prefix(flag).and_then(|rest| rest.strip_prefix('=')) {
            values.push(value);
        }
    }
    values
}

/// A command line's words; `None` if a quote is not closed. Nothing is expanded.
fn words(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word): (Vec<String>, Option<String>) = (Vec::new(), None);
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match c {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match rest.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match rest.next()? {
                        '"' => break,
                        '\\' => match rest.next()? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(rest.next()?),
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_a_shell_reads_them() {
        let environment = Environment::of_user("tester");
        let relay = |text: &str| ConnInfo::parse(text, &environment).unwrap();
        let relays = [relay("host=r1 user=u"), relay("host=r2 port=5433 user=u")];
        let check = |command: &str, expected: &str| {
            let said = match drain(command, &relays, &environment) {
                Drain::Yes { waits_for: 0 } => "yes".to_owned(),
                Drain::Yes { waits_for } => format!("waits for {waits_for}"),
                Drain::No(reason) => format!("no: {reason}"),
                Drain::Unknown(reason) => format!("unknown: {reason}"),
            };
            assert_eq!(said, expected, "{command}");
        };
        check(" ", "no: there is none");
        check("cp /archive/%f %p", "unknown: it is not walrelay restore");
        check("walrelay archive list", "unknown: it is not walrelay restore");
        check("walrelay restore --from \"host=r1", "unknown: its quotes do not match");
        check(
            "walrelay restore --config /etc/walrelay.toml %f %p",
            "unknown: its places are in a configuration file or a data directory",
        );
        check("walrelay restore --from 'host=r1' %p", "no: it is not given %f and %p");
        check("walrelay restore --from \"host=r1 user=x\" %f %p", "no: it does not name r2:5433");
        check("walrelay restore --from s3://r1/r2 %f \"%p\"", "no: it does not name r1:5432 and r2:5433");
        // As `restore` does, which asks each host.
        check("walrelay restore --from \"host=r1,r2 port=5432,5433\" %f %p", "yes");
        check(
            "walrelay restore --from 'host=r1,r2 port=5432,5433 target_session_attrs=primary' %f %p",
            "no: it asks only one of r1:5432,r2:5433, since it has target_session_attrs",
        );
        check(
            "walrelay restore --from 'host=r0,r1 target_session_attrs=primary' --from 'host=r1,r2 port=5432,5433' %f %p",
            "yes",
        );
        check(
            "PGUSER=x \"/usr/bin/walrelay\" restore --from host=r1 --from=postgres://u@r2:5433/ %f %p",
            "yes",
        );
        check(
            "/usr/bin/walrelay restore --from host=r1 --from host=r2\\ port=5433 --require-relays=2 %f %p",
            "waits for 2",
        );
        let both = "walrelay restore --from host=r1 --from 'host=r2 port=5433'";
        for (more, expected) in [
            ("", "yes"),
            ("--require-relays 1", "waits for 1"),
            ("--require r2", "waits for 1"),
            ("--require r1 --require 'host=r2 port=5433'", "waits for 2"),
            // An archive, or another relay, is none of them.
            ("--from s3://a/b --require s3://a/b", "yes"),
            ("--from host=r3 --require-relays 2", "waits for 1"),
            ("--from /r3/data --require-relays 1", "yes"),
            ("--from host=r1 --require-relays 2", "waits for 2"),
        ] {
            check(&format!("{both} {more} %f %p"), expected);
        }
    }
}
