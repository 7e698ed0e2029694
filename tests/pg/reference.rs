//! docs/REFERENCE.md and docs/MESSAGES.md, made of what the code says of itself. `make reference` writes them; without that the
//! tests here compare.

mod json;
mod literals;
mod messages;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory};
use regex::Regex;

/// Set by `make reference`.
const WRITE: &str = "WALRELAY_WRITE_REFERENCE";

const NOTE: &str =
    "<!-- Made by `make reference`. Change the code, or tests/pg/reference.rs, and run it again. -->\n\n";

#[test]
fn the_reference_is_what_the_code_says() {
    check("docs/REFERENCE.md", &reference());
}

#[test]
fn the_messages_are_those_of_the_code() {
    check("docs/MESSAGES.md", &messages::messages());
}

fn check(path: &str, wanted: &str) {
    let file = root().join(path);
    if std::env::var_os(WRITE).is_some() {
        fs::write(&file, wanted).expect("the repository can be written");
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    let differs = found.lines().zip(wanted.lines()).find(|(found, wanted)| found != wanted);
    assert!(found == wanted, "{path} is not what the code says: run `make reference`; first: {differs:#?}");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn source(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A row of a table.
fn row(cells: &[&str]) -> String {
    let cells = cells.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " "));
    format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
}

fn code(text: &str) -> String {
    if text.contains('`') { format!("`` {text} ``") } else { format!("`{text}`") }
}

fn reference() -> String {
    let mut out = "# Reference\n\n".to_owned() + NOTE;
    out += "Made from the code. What each thing means for operators is in [OPERATIONS.md](OPERATIONS.md) and the pages that it links \
            to; log lines and errors are in [MESSAGES.md](MESSAGES.md).\n\n";
    out += "[Settings](#settings) · [archive targets](#archive-targets) · [commands](#commands) · [SHOW](#show) · [orders](#orders) · \
            [metrics](#metrics) · [JSON](#json) · [exit codes](#exit-codes) · [SQLSTATEs](#sqlstates)\n\n";
    settings(&mut out);
    archive_keys(&mut out);
    commands(&mut out);
    reports(&mut out);
    orders(&mut out);
    metrics(&mut out);
    json::documents(&mut out);
    exit_codes(&mut out);
    sqlstates(&mut out);
    out
}

/// Help text and the default that ends it.
fn help_of(arg: &Arg) -> (String, String) {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default().replace('\n', " ");
    match help.rsplit_once("[default: ") {
        Some((help, default)) => (help.trim().to_owned(), default.trim_end_matches(']').to_owned()),
        None if !arg.get_action().takes_values() => (help, String::new()),
        None => {
            let defaults = arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned());
            (help, defaults.collect::<Vec<_>>().join(" "))
        }
    }
}

/// As it is typed.
fn typed(arg: &Arg) -> String {
    let names: Vec<_> =
        arg.get_value_names().unwrap_or_default().iter().map(|name| name.to_string()).collect();
    let takes_value = arg.get_action().takes_values();
    let value = if takes_value { names.join(" ") } else { String::new() };
    match (arg.get_short(), arg.get_long()) {
        (None, None) => value,
        (short, long) => {
            let short = short.map(|short| format!("-{short}"));
            let names = short.into_iter().chain(long.map(|long| format!("--{long}")));
            format!("{} {value}", names.collect::<Vec<_>>().join(", ")).trim().to_owned()
        }
    }
}

fn shown(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str()))
}

fn settings(out: &mut String) {
    *out += "## Settings\n\nFlags of the relay. A flag wins over the variable, the variable over the file, the file over the default.\n\n";
    *out += &row(&["Flag", "Variable", "In the file", "Default", "Meaning"]);
    *out += "|---|---|---|---|---|\n";
    for arg in shown(&walrelay::config::Cli::command()) {
        let (help, default) = help_of(arg);
        let variable = arg.get_env().map(|name| code(&name.to_string_lossy())).unwrap_or_default();
        let long = arg.get_long().expect("settings are flags");
        let key = match long {
            "config" => String::new(),
            "archive" => "`[archive.NAME]`".to_owned(),
            long => match long.strip_prefix("ack-") {
                Some(key) => format!("`{key}` in `[ack]`"),
                None => code(long),
            },
        };
        let default = if default.is_empty() { default } else { code(&default) };
        *out += &row(&[&code(&typed(arg)), &variable, &key, &default, &help]);
    }
    out.push('\n');
}

fn archive_keys(out: &mut String) {
    *out += "## Archive targets\n\nKeys of a table `[archive.NAME]`; each is explained in [ARCHIVING.md](ARCHIVING.md#settings-of-a-target).\n\n";
    let text = source("src/config/archive.rs");
    let table =
        text.split("struct Table {").nth(1).and_then(|rest| rest.split("\n}").next()).expect("it is there");
    let field = Regex::new(r"(?m)^    /// (.*)\n(?:    #\[.*\n)?    (\w+): ").expect("it is one");
    let explained = explained_defaults();
    *out += &(row(&["Key", "Default", "Meaning"]) + "|---|---|---|\n");
    let (mut count, fields) = (0, table.lines().filter(|line| line.ends_with(',')).count());
    for found in field.captures_iter(table) {
        let (key, meaning) = (found[2].replace('_', "-"), &found[1]);
        let (meaning, default) = match meaning.split_once(" [default: ") {
            Some((meaning, default)) => (meaning, default.trim_end_matches(']')),
            None => (meaning, ""),
        };
        let there = explained.get(&key).unwrap_or_else(|| panic!("{key} is not in docs/ARCHIVING.md"));
        assert_eq!(there, default, "the default of {key}, in docs/ARCHIVING.md and in src/config/archive.rs");
        *out += &row(&[&code(&key), default, meaning]);
        count += 1;
    }
    assert_eq!(count, fields, "each key says what it means");
    out.push('\n');
}

/// Defaults of an archive's keys, in the words of ARCHIVING.md.
fn explained_defaults() -> BTreeMap<String, String> {
    let page = source("docs/ARCHIVING.md");
    let rows = page.split("\n## Settings of a target\n").nth(1).and_then(|rest| rest.split("\n## ").next());
    let rows = rows.expect("it is there").lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let keys = cells.flat_map(|cells| {
        let default = cells[2].replace('`', "");
        cells[1]
            .split('`')
            .skip(1)
            .step_by(2)
            .map(|key| (key.to_owned(), default.clone()))
            .collect::<Vec<_>>()
    });
    keys.collect()
}

fn commands(out: &mut String) {
    *out += "## Commands\n\n";
    let mut cli = walrelay::config::Cli::command();
    cli.build();
    for command in cli.get_subcommands() {
        describe(command, out);
    }
}

fn describe(command: &Command, out: &mut String) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default().replace('\n', " ");
    writeln!(out, "### {name}\n\n{about}.\n").expect("a string takes all");
    let arguments: Vec<&Arg> = shown(command).filter(|arg| !arg.is_global_set()).collect();
    // The relay's settings, where a command takes them, are above.
    let relays: BTreeSet<String> =
        shown(&walrelay::config::Cli::command()).map(|arg| arg.get_id().to_string()).collect();
    let takes_settings = arguments.iter().filter(|arg| relays.contains(arg.get_id().as_str())).count() > 10;
    if takes_settings {
        *out += "It takes the [settings](#settings) of the relay.\n\n";
    }
    let own = arguments.into_iter().filter(|arg| !takes_settings || !relays.contains(arg.get_id().as_str()));
    let rows: Vec<String> = own
        .map(|arg| {
            let (help, default) = help_of(arg);
            let default = if default.is_empty() { default } else { code(&default) };
            let variable = arg.get_env().map(|name| code(&name.to_string_lossy())).unwrap_or_default();
            row(&[&code(&typed(arg)), &variable, &default, &help])
        })
        .collect();
    if !rows.is_empty() {
        let head = row(&["Argument", "Variable", "Default", "Meaning"]) + "|---|---|---|---|\n";
        *out += &(head + &rows.concat() + "\n");
    }
    command.get_subcommands().for_each(|command| describe(command, out));
}

fn reports(out: &mut String) {
    *out += "## SHOW\n\nIn the database `walrelay`; see [the console](MONITORING.md#the-console). A column that is not known is NULL.\n\n";
    let text = source("src/console/report.rs");
    let report =
        Regex::new(r#"(?s)Report \{\s*name: "(\w+)",\s*about: "([^"]*)",\s*columns: &\[(.*?)\],\s*rows:"#)
            .expect("it is one");
    let mut count = 0;
    for found in report.captures_iter(&text) {
        shown_as(&found[1], &found[2], &found[3], out);
        count += 1;
    }
    assert_eq!(count, text.matches("    Report {").count());
    // Those that need no look at the relay, as HELP lists them.
    let fixed = Regex::new(r#"\("SHOW (\w+)", "([^"]*)"\)"#).expect("it is one");
    let first = Regex::new(r#"(?s)rows\(\s*&\[(.*?)\],\s*(?:vec!|lines)"#).expect("it is one");
    let mut fixed_ones = Vec::new();
    for found in fixed.captures_iter(&text) {
        fixed_ones.push(found[1].to_owned());
        let body = text.split(&format!("fn {}() -> Answer", found[1].to_lowercase())).nth(1);
        let columns = body.map(|body| first.captures(body).expect("it answers with rows")[1].to_owned());
        shown_as(&found[1], &found[2], &columns.unwrap_or_else(columns_of_all), out);
    }
    assert_eq!(fixed_ones, ["VERSION", "HELP", "ALL"]);
}

/// A report and its columns, as they stand in the code.
fn shown_as(name: &str, about: &str, columns: &str, out: &mut String) {
    writeln!(out, "### SHOW {}\n\n{about}.\n", name.to_uppercase()).expect("a string takes all");
    *out += "| Column | Type | Meaning |\n|---|---|---|\n";
    let column = Regex::new(r#"\(\s*"(\w+)",\s*(\w+),\s*"([^"]*)",?\s*\)"#).expect("it is one");
    let rows = column.captures_iter(columns).map(|it| row(&[&code(&it[1]), &sql_type(&it[2]), &it[3]]));
    let rows: Vec<String> = rows.collect();
    assert!(
        !rows.is_empty() && rows.len() == columns.matches('(').count() - in_words(columns),
        "{name}: {columns}"
    );
    *out += &(rows.concat() + "\n");
}

/// Parentheses that are in the words of a text.
fn in_words(text: &str) -> usize {
    text.split('"').skip(1).step_by(2).map(|words| words.matches('(').count()).sum()
}

/// Those of SHOW ALL, which are PostgreSQL's.
fn columns_of_all() -> String {
    let text = source("src/console/settings.rs");
    assert!(
        text.contains(r#"["name", "setting", "description"].map(|name| Field::new(name, ColumnType::Text))"#)
    );
    r#"("name", Text, "The parameter"), ("setting", Text, "Its value in this session"), ("description", Text, "Empty")"#.to_owned()
}

/// PostgreSQL's name of a `ColumnType`.
fn sql_type(name: &str) -> String {
    match name {
        "PgLsn" => "pg_lsn".to_owned(),
        name => name.to_lowercase(),
    }
}

fn orders(out: &mut String) {
    *out += "## Orders\n\nIn the database `walrelay`, for administrators; see [orders](MONITORING.md#orders).\n\n";
    *out += &(row(&["Order", "What it does"]) + "|---|---|\n");
    let text = source("src/console/orders.rs");
    let usage = Regex::new(r#"whole: "([^"]*)",\s*about: "([^"]*)""#).expect("it is one");
    let rows: Vec<String> =
        usage.captures_iter(&text).map(|found| row(&[&code(&found[1]), &found[2]])).collect();
    assert!(rows.len() >= 6, "{rows:?}");
    *out += &(rows.concat() + "\n");
}

fn metrics(out: &mut String) {
    *out += "## Metrics\n\nWith labels and kinds in [MONITORING.md](MONITORING.md#metrics-and-health).\n\n";
    *out += &(row(&["Metric", "What it is"]) + "|---|---|\n");
    for metric in walrelay::metrics::METRICS {
        *out += &row(&[&code(&metric.sample_name()), metric.help()]);
    }
    out.push('\n');
}

/// The table of OPERATIONS.md, held against the code.
fn exit_codes(out: &mut String) {
    let text = source("src/error.rs");
    let body = text
        .split("pub fn exit_code")
        .nth(1)
        .and_then(|rest| rest.split("\n    }").next())
        .expect("it is there");
    let number = Regex::new(r"=> (\d+)").expect("it is one");
    let constant = Regex::new(r"pub const \w+: u8 = (\d+);").expect("it is one");
    let given =
        number.captures_iter(body).chain(constant.captures_iter(&text)).map(|found| found[1].parse::<u8>());
    let given: BTreeSet<u8> = given.map(|code| code.expect("an exit code")).collect();
    let operations = source("docs/OPERATIONS.md");
    let table = operations
        .split("## Exit codes")
        .nth(1)
        .and_then(|rest| rest.split("\n## ").next())
        .expect("it is there");
    for code in &given {
        assert!(table.contains(&format!("\n| {code} |")), "exit code {code} is not in docs/OPERATIONS.md");
    }
    let given = given.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    writeln!(
        out,
        "## Exit codes\n\nOf the relay, when it was not stopped in order: {given}. What each means and what to do: \
         [OPERATIONS.md](OPERATIONS.md#exit-codes). `walrelay restore` has [its own](RESTORING.md#exit-codes). What `walrelay doctor` finds \
         has [codes](MONITORING.md#walrelay-doctor), which do not change.\n"
    )
    .expect("a string takes all");
}

fn sqlstates(out: &mut String) {
    *out += "## SQLSTATEs\n\nWith which the relay answers clients itself; those of the upstream are passed on as they are. Which message has \
             which: [MESSAGES.md](MESSAGES.md#to-clients).\n\n";
    *out += &(row(&["SQLSTATE", "PostgreSQL's name"]) + "|---|---|\n");
    let text = source("src/wire/error.rs");
    let state = Regex::new(r#"pub const (\w+): &str = "(\w{5})";"#).expect("it is one");
    let rows: Vec<String> =
        state.captures_iter(&text).map(|found| row(&[&found[2], &code(&found[1].to_lowercase())])).collect();
    assert!(rows.len() > 20, "{rows:?}");
    *out += &rows.concat();
}

/// Sources without their tests: path in the repository, and text, in the order of their paths.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join("src"), root().join("proto/src")];
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).expect("it is there").flatten().map(|entry| entry.path()) {
            let name = path.file_name().expect("it has one").to_string_lossy().into_owned();
            if name.starts_with("tests") || name.ends_with("_tests.rs") || name == "mutation.rs" {
                continue;
            }
            match path.is_dir() {
                true => dirs.push(path),
                false => {
                    let text = fs::read_to_string(&path).expect("it is text");
                    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
                    let path = path.strip_prefix(root()).expect("it is below").to_string_lossy().into_owned();
                    found.push((path, text));
                }
            }
        }
    }
    found.sort();
    found
}

/// Texts that pages tell readers to search for are in the code, letter for letter, but for what is filled in.
#[test]
fn messages_that_are_explained_exist() {
    let all: String = sources().into_iter().map(|(_, text)| text).collect();
    let code = Regex::new(r"\\\n\s*").expect("it is one").replace_all(&all, "").replace("\\\"", "\"");
    let operations = source("docs/OPERATIONS.md");
    let log = operations.split("\n## Log\n").nth(1).and_then(|rest| rest.split("\n## ").next());
    for (page, text) in [
        ("OPERATIONS.md", log.expect("it is there")),
        ("TROUBLESHOOTING.md", &source("docs/TROUBLESHOOTING.md")),
    ] {
        let cells =
            text.lines().filter(|line| line.starts_with("| ")).filter_map(|line| line.split(" | ").next());
        let ours = cells.filter(|cell| !cell.contains("(PostgreSQL)") && !cell.contains("(Barman)"));
        let texts =
            ours.flat_map(|cell| cell.split('`').skip(1).step_by(2)).flat_map(|text| text.split("..."));
        // The last one is said by Rust.
        let texts: Vec<&str> =
            texts.map(str::trim).filter(|text| text.contains(' ') && *text != "panicked at").collect();
        let wrong: Vec<_> = texts.iter().filter(|text| !is_said(&code, text)).collect();
        assert!(texts.len() > 30 && wrong.is_empty(), "in docs/{page}, and not in the code: {wrong:#?}");
    }
}

/// Whether it is there as it is, or with some of its words, one after the other, filled in.
fn is_said(code: &str, text: &str) -> bool {
    let words: Vec<&str> = text.split(' ').collect();
    let filled = |from: usize, to: usize| {
        let [before, after] = [&words[..from], &words[to..]].map(|words| regex::escape(&words.join(" ")));
        let space = |side: &str| if side.is_empty() { "" } else { " " };
        let pattern = format!(r"{before}{}\{{[^}}\n]*\}}{}{after}", space(&before), space(&after));
        words.len() - (to - from) >= 2 && Regex::new(&pattern).expect("escaped").is_match(code)
    };
    code.contains(text) || (0..words.len()).any(|from| (from + 1..=words.len()).any(|to| filled(from, to)))
}
