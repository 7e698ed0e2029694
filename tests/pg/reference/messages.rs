//! docs/MESSAGES.md: every text of the code that somebody may read, taken from the string literals of all sources but what is
//! excepted here by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::Regex;

use super::literals::{Literal, literals};
use super::{NOTE, code, row, source, sources};

/// Sources whose texts are no messages: other pages show them, or nobody does.
const NO_MESSAGES: [&str; 8] = [
    // Metrics, in docs/REFERENCE.md.
    "src/metrics/list.rs",
    // The files that `walrelay init` writes.
    "src/init/text.rs",
    // A test.
    "src/layers.rs",
    // Simulations.
    "src/archive/back/memory.rs",
    "src/archive/out/stepped.rs",
    "src/disk/sim/",
    // The page's own words, which it shows; keys of the journal.
    "src/http/page",
    "src/log/journal.rs",
];

/// What stands before texts that nobody is told: proofs, assertions, and what docs/REFERENCE.md shows.
static UNTOLD: LazyLock<Regex> = LazyLock::new(|| {
    one(r#"(?x)
    (?: \.expect(?:_err)?\( | unreachable!\( | panic!\( | unimplemented!\( | about:\s | include_str!\( | include_bytes!\( | env!\(
      | assert(?:_eq|_ne)?!\( [^;]*,\s* | "SHOW\ \w+",\s* | reason\s=\s )\s*$"#)
});

/// Texts for programs: SQL that is sent, words of the protocol, headers.
static FOR_PROGRAMS: LazyLock<Regex> = LazyLock::new(|| {
    one(r"(?x)
    pg_catalog\. | \{GUARD\} | ^\(SELECT\s | \sAS\s\(SELECT\s | OPERATOR\(
    | ^\s*(?:select|with\ recursive|show|set)\s | ^SELECT\s(?:rolname|rolsuper|setting|EXISTS)
    | charset= | ^default-src | ^status\ code: | ^operator\ \(
    | ^host=\S+\ port= | ^\ application_name= | ^\w+=\{\w*\}$
    | ^(?:START_REPLICATION|TIMELINE_HISTORY|BRANCH_WAL|READ_REPLICATION_SLOT|CREATE_REPLICATION_SLOT|DROP_REPLICATION_SLOT|ALTER_REPLICATION_SLOT)\s
    | ^(?:and\ as\ between|all\ analyse)\s | ^\#\ walrelay\s | ^Content\( | ^Keys\(")
});

/// What is filled in.
static HOLES: LazyLock<Regex> = LazyLock::new(|| one(r"\{[^}]*\}"));
static WORD: LazyLock<Regex> = LazyLock::new(|| one(r"(?:^|[^a-zA-Z0-9_-])[a-z][a-z']+"));

/// What stands before texts of some kind.
static KINDS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let kinds = [
        (r"#\[error\(\s*$", "error"),
        (r"(?:with_hint\(|hint = |hint\()\s*(?:format!\(\s*)?$", "hint"),
        (r"(?:with_detail\(|detail = |detail\()\s*(?:format!\(\s*)?$", "detail"),
        (r"fn hint\([^{]*\{[^}]*$", "hint"),
    ];
    kinds.map(|(before, kind)| (one(before), kind)).into()
});

fn one(pattern: &str) -> Regex {
    Regex::new(pattern).expect("it is one")
}

/// Whether somebody reads it: some words, and not all of them of SQL or names.
fn is_read(text: &str) -> bool {
    let said = HOLES.replace_all(text, "");
    has_words(&said) && said.trim().contains(' ') && WORD.is_match(&said)
}

fn has_words(said: &str) -> bool {
    said.chars().filter(|c| c.is_alphabetic()).count() >= 8
}

/// A message of one source.
struct Message {
    /// The source's part of the program.
    part: String,
    /// What it is, as far as the code says.
    kind: &'static str,
    text: String,
}

/// The code close before a literal.
fn near<'a>(literal: &Literal<'a>) -> &'a str {
    let from = literal.before.char_indices().rev().nth(400).map_or(0, |(at, _)| at);
    &literal.before[from..]
}

/// What a literal is, from what stands before it.
fn kind(literal: &Literal) -> &'static str {
    KINDS.iter().find(|(before, _)| before.is_match(near(literal))).map_or("", |(_, kind)| kind)
}

/// The part of the program that a source belongs to, as it is imported: a folder of `src`, a file there, or `proto`.
fn part(path: &str) -> String {
    match path.strip_prefix("src/") {
        Some(below) => below.split('/').next().unwrap_or(below).trim_end_matches(".rs").to_owned(),
        None => "proto".to_owned(),
    }
}

/// What the part is about: the first sentence of its documentation.
fn about(part: &str, all: &[(String, String)]) -> String {
    let paths = match part {
        "proto" => ["proto/src/lib.rs".to_owned(), String::new()],
        part => [format!("src/{part}/mod.rs"), format!("src/{part}.rs")],
    };
    let (_, text) = all.iter().find(|(path, _)| paths.contains(path)).expect("each part has a head");
    let head = text.lines().take_while(|line| line.len() > 3 && line.starts_with("//!"));
    let head = head.map(|line| line[3..].trim()).collect::<Vec<_>>().join(" ");
    let links = one(r"\[(`[^`]+`)\](?:\([^)]*\))?");
    let head = links.replace_all(&head, "$1").into_owned();
    head.split_inclusive(". ").next().unwrap_or_default().trim().to_owned()
}

/// Every text that is read, of all sources but doctor's.
fn said(all: &[(String, String)]) -> Vec<Message> {
    let mut found = Vec::new();
    let kept =
        |path: &str| !path.starts_with("src/doctor/") && !NO_MESSAGES.iter().any(|no| path.starts_with(no));
    for (path, text) in all.iter().filter(|(path, _)| kept(path)) {
        for literal in literals(text) {
            let told = !UNTOLD.is_match(near(&literal)) && !FOR_PROGRAMS.is_match(&literal.text);
            if told && is_read(&literal.text) {
                let text = literal.text.trim().to_owned();
                found.push(Message { part: part(path), kind: kind(&literal), text });
            }
        }
    }
    found
}

pub(super) fn messages() -> String {
    let all = sources();
    for no in NO_MESSAGES {
        assert!(all.iter().any(|(path, _)| path.starts_with(no)), "{no} is excepted and not there");
    }
    let mut out = "# Messages\n\n".to_owned() + NOTE;
    out += "Texts that the program says, as they are in the code: what stands in braces is filled in. All of its sources are read for them. What the \
            important ones mean is in [OPERATIONS.md](OPERATIONS.md#log), what to do about symptoms in [TROUBLESHOOTING.md](TROUBLESHOOTING.md). \
            What is put together from parts is found here as parts: search for some words of it, without names and numbers. Texts of \
            the operating system, of libraries, and of the upstream, which are passed on, are not here.\n\n\
            [Log](#log) · [troubles](#troubles) · [to clients](#to-clients) · [doctor](#doctor) · [everything else, by part](#everything-else-by-part)\n\n";
    let mut shown = BTreeSet::new();
    log(&all, &mut out, &mut shown);
    troubles(&mut out, &mut shown);
    clients(&all, &mut out, &mut shown);
    doctor(&all, &mut out);
    rest(&all, &mut out, &shown);
    out
}

fn text(literal: &str) -> Option<String> {
    let text = literals(&format!("\"{literal}\"")).pop()?.text.trim().to_owned();
    has_words(&HOLES.replace_all(&text, "")).then_some(text)
}

const LITERAL: &str = r#""((?:[^"\\]|\\.|\\\n)*)""#;

fn log(all: &[(String, String)], out: &mut String, shown: &mut BTreeSet<String>) {
    let line =
        one(&format!(r"(?s)tracing::(error|warn|info|debug|trace)!\(\s*(?:[\w.%?&*= ()]+,\s*)*{LITERAL}"));
    let mut logged = BTreeSet::new();
    for (_, source) in all {
        logged
            .extend(line.captures_iter(source).filter_map(|it| Some((text(&it[2])?, it[1].to_uppercase()))));
    }
    assert!(logged.len() > 200, "{}", logged.len());
    *out += "## Log\n\nLines whose text stands where they are logged. Others are made elsewhere, and are in the part that makes \
             them, [below](#everything-else-by-part).\n\n| Line | Level |\n|---|---|\n";
    out.extend(logged.iter().map(|(text, level)| row(&[&code(text), level])));
    shown.extend(logged.into_iter().map(|(text, _)| text));
}

fn troubles(out: &mut String, shown: &mut BTreeSet<String>) {
    let trouble = one(&format!(r"(?s)let text =\s*format!\(\s*{LITERAL}"));
    let source = source("src/status/troubles.rs");
    let troubles: BTreeSet<String> = trouble.captures_iter(&source).filter_map(|it| text(&it[1])).collect();
    assert!(troubles.len() > 20, "{troubles:?}");
    *out += "\n## Troubles\n\nLines of level WARN, too, repeated while they last ([troubles](MONITORING.md#troubles)).\n\n| Line |\n|---|\n";
    out.extend(troubles.iter().map(|text| row(&[&code(text)])));
    shown.extend(troubles);
}

fn clients(all: &[(String, String)], out: &mut String, shown: &mut BTreeSet<String>) {
    let answer =
        one(&format!(r"(?s)PgError::(?:error|fatal)\(\s*sqlstate::(\w+),\s*(?:format!\(\s*)?{LITERAL}"));
    // Named first, and given a SQLSTATE afterwards.
    let named = one(&format!(r"(?s)let (?:text|message) =\s*(?:format!\(\s*)?{LITERAL}"));
    let states = source("src/wire/error.rs");
    let state = |name: &str| {
        let line = format!("pub const {name}: &str = \"");
        states.split(&line).nth(1).and_then(|rest| rest.get(..5)).unwrap_or("?????").to_owned()
    };
    let mut told = BTreeSet::new();
    for (_, source) in all {
        if source.contains("PgError") {
            told.extend(named.captures_iter(source).filter_map(|it| Some((text(&it[1])?, String::new()))));
        }
        told.extend(answer.captures_iter(source).filter_map(|it| Some((text(&it[2])?, state(&it[1])))));
    }
    assert!(told.len() > 100, "{}", told.len());
    *out += "\n## To clients\n\nWhere no SQLSTATE is given here, the code gives it elsewhere. More of them, hints and details are in the parts \
             [below](#everything-else-by-part): `downstream`, `console`, `overlay`, `auth`, `proto`.\n\n| Message | SQLSTATE |\n|---|---|\n";
    out.extend(told.iter().map(|(text, state)| row(&[&code(text), state])));
    shown.extend(told.into_iter().map(|(text, _)| text));
}

/// What doctor finds, and what it says to do, by code.
fn doctor(all: &[(String, String)], out: &mut String) {
    let explained = source("docs/MONITORING.md");
    let known = one(r"(?m)^\| `(\w+)` \| ");
    let table = explained.split("\n## walrelay doctor").nth(1).and_then(|rest| rest.split("\n## ").next());
    let codes: BTreeSet<&str> =
        known.captures_iter(table.expect("it is there")).filter_map(|it| Some(it.get(1)?.as_str())).collect();
    assert!(codes.len() > 80, "{codes:?}");
    let for_programs = one(r"^(?:select|with recursive) |^TIMELINE_HISTORY");
    *out += "\n## doctor\n\nMessages and remedies of `walrelay doctor`, by [code](MONITORING.md#walrelay-doctor). Some are shared by several codes and stand at \
             one of them.\n\n| Code | Text |\n|---|---|\n";
    // What belongs to none comes last.
    let mut rows = BTreeSet::new();
    for (_, text) in all.iter().filter(|(path, _)| path.starts_with("src/doctor/")) {
        let all = literals(text);
        let found: Vec<(usize, &str)> =
            all.iter().filter(|it| is_code(it, &codes)).map(|it| (it.at, &*it.text)).collect();
        let texts = all.iter().filter(|it| is_read(&it.text) && !for_programs.is_match(&it.text));
        for it in texts.filter(|it| !UNTOLD.is_match(near(it))) {
            let name = belongs_to(it.at, text, &found);
            rows.insert((name.is_empty(), name.to_owned(), rows.len(), it.text.trim().to_owned()));
        }
    }
    assert!(rows.len() > 200, "{}", rows.len());
    let cell = |name: &str| if name.is_empty() { String::new() } else { code(name) };
    out.extend(rows.iter().map(|(_, name, _, text)| row(&[&cell(name), &code(text)])));
}

/// Those of what is well are explained nowhere.
fn is_code(literal: &Literal, explained: &BTreeSet<&str>) -> bool {
    explained.contains(&*literal.text) || literal.before.trim_end().ends_with("found.ok(")
}

/// The code of the finding that a literal of doctor is in: that of the call around it, or the next one of its function, or the last one.
fn belongs_to<'a>(at: usize, text: &str, codes: &[(usize, &'a str)]) -> &'a str {
    let function = |at: usize| text[..at].matches("\nfn ").count() + text[..at].matches("\n    fn ").count();
    let mine: Vec<_> = codes.iter().filter(|(code, _)| function(*code) == function(at)).collect();
    let around = mine.iter().rev().find(|(code, _)| *code < at && is_within(&text[*code..at]));
    let next = mine.iter().find(|(code, _)| *code > at);
    around.or(next).or(mine.last()).map_or("", |(_, name)| *name)
}

/// Whether a text that begins in parentheses ends in the same ones.
fn is_within(text: &str) -> bool {
    let mut depth = 0;
    text.chars().all(|c| {
        depth += i32::from("([{".contains(c)) - i32::from(")]}".contains(c));
        depth >= 0
    })
}

fn rest(all: &[(String, String)], out: &mut String, shown: &BTreeSet<String>) {
    let mut parts: BTreeMap<String, BTreeMap<String, &'static str>> = BTreeMap::new();
    for it in said(all).into_iter().filter(|it| !shown.contains(&it.text)) {
        let kind = parts.entry(it.part).or_default().entry(it.text).or_default();
        *kind = if kind.is_empty() { it.kind } else { kind };
    }
    *out += "\n## Everything else, by part\n\nErrors of starts and of commands, reasons within log lines, log lines that are made here, hints and details of answers to \
             clients, output of commands: by the part of the program that they come from.\n";
    for (part, texts) in &parts {
        *out += &format!("\n### {part}\n\n{}\n\n| Text | What |\n|---|---|\n", about(part, all));
        out.extend(texts.iter().map(|(text, kind)| row(&[&code(text), kind])));
    }
}

/// Texts that an audit has missed here once: each is of another kind of place in the code.
#[test]
fn texts_from_all_kinds_of_places_are_there() {
    let page = messages();
    for wanted in [
        "left WAL ",
        "started streaming WAL from ",
        "passwords come to {address} in clear text",
        "whoever can reach {address} sees",
        "hostssl record cannot match because SSL is disabled",
        "must be owned by the relay's user or root",
        "(told {times} times in {lasted} s)",
        "invalid netmask of address",
        "an include line takes no lists",
        "no secret in double quotes",
        "on-quota = \"drop\" needs quota",
        "invalid size \"{text}\"",
        "the nearest known one is",
        "contains the relay's data directory",
        "Try again in a few seconds.",
        "Only roles with privileges of the \"pg_monitor\" role may do so.",
        "| `archive_behind` | `systemctl start walrelay   -- it goes on where it was` |",
        "in a statement that is prepared",
        "permission denied to terminate process",
    ] {
        assert!(page.contains(wanted), "{wanted}");
    }
}
