//! docs/REFERENCE.md and docs/MESSAGES.md, made of what the code says of itself. `make reference` writes them; without that the
//! tests here compare.

use std::collections::BTreeSet;
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
    check("docs/MESSAGES.md", &messages());
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
            [metrics](#metrics) · [exit codes](#exit-codes) · [SQLSTATEs](#sqlstates)\n\n";
    settings(&mut out);
    archive_keys(&mut out);
    commands(&mut out);
    reports(&mut out);
    orders(&mut out);
    metrics(&mut out);
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
    let fields = Regex::new(r"(?m)^    (\w+): ").expect("it is one");
    let explained = source("docs/ARCHIVING.md");
    let keys: Vec<String> = fields.captures_iter(table).map(|found| found[1].replace('_', "-")).collect();
    assert!(keys.len() > 10, "{keys:?}");
    for key in &keys {
        assert!(explained.contains(&format!("`{key}`")), "{key} is not in docs/ARCHIVING.md");
    }
    *out += &(keys.iter().map(|key| code(key)).collect::<Vec<_>>().join(", ") + "\n\n");
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
            row(&[&code(&typed(arg)), &default, &help])
        })
        .collect();
    if !rows.is_empty() {
        *out += &(row(&["Argument", "Default", "Meaning"]) + "|---|---|---|\n" + &rows.concat() + "\n");
    }
    command.get_subcommands().for_each(|command| describe(command, out));
}

fn reports(out: &mut String) {
    *out += "## SHOW\n\nIn the database `walrelay`; see [the console](MONITORING.md#the-console).\n\n";
    let text = source("src/console/report.rs");
    let report =
        Regex::new(r#"(?s)Report \{\s*name: "(\w+)",\s*about: "([^"]*)",\s*columns: &\[(.*?)\],\s*rows:"#)
            .expect("it is one");
    let column = Regex::new(r#"\("(\w+)", (\w+)\)"#).expect("it is one");
    let mut count = 0;
    for found in report.captures_iter(&text) {
        let columns = column.captures_iter(&found[3]);
        let columns = columns.map(|column| format!("`{}` {}", &column[1], sql_type(&column[2])));
        let columns: Vec<_> = columns.collect();
        let name = found[1].to_uppercase();
        writeln!(out, "### SHOW {name}\n\n{}.\n\n{}\n", &found[2], columns.join(", "))
            .expect("a string takes all");
        count += 1;
    }
    assert_eq!(count, text.matches("    Report {").count());
    // Those that need no look at the relay, as HELP lists them.
    let fixed = Regex::new(r#"\("SHOW (\w+)", "([^"]*)"\)"#).expect("it is one");
    let first = Regex::new(r#"(?s)rows\(\s*&\[([^\]]*)\]"#).expect("it is one");
    let mut fixed_ones = Vec::new();
    for found in fixed.captures_iter(&text) {
        writeln!(out, "### SHOW {}\n\n{}.\n", &found[1], &found[2]).expect("a string takes all");
        fixed_ones.push(found[1].to_owned());
        // The settings are PostgreSQL's: name, setting, description.
        let Some(body) = text.split(&format!("fn {}() -> Answer", found[1].to_lowercase())).nth(1) else {
            continue;
        };
        let columns = first.captures(body).expect("it answers with rows");
        let columns = column.captures_iter(&columns[1]);
        let columns = columns.map(|column| format!("`{}` {}", &column[1], sql_type(&column[2])));
        writeln!(out, "{}\n", columns.collect::<Vec<_>>().join(", ")).expect("a string takes all");
    }
    assert_eq!(fixed_ones, ["VERSION", "HELP", "ALL"]);
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
        number.captures_iter(body).chain(constant.captures_iter(&text)).map(|found| found[1].to_owned());
    let given: BTreeSet<String> = given.collect();
    let operations = source("docs/OPERATIONS.md");
    let table = operations
        .split("## Exit codes")
        .nth(1)
        .and_then(|rest| rest.split("\n## ").next())
        .expect("it is there");
    for code in &given {
        assert!(table.contains(&format!("\n| {code} |")), "exit code {code} is not in docs/OPERATIONS.md");
    }
    let given = given.into_iter().collect::<Vec<_>>().join(", ");
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

/// Sources without their tests: path below `src`, and text.
fn sources() -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join("src"), root().join("proto/src")];
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).expect("it is there").flatten().map(|entry| entry.path()) {
            let name = path.file_name().expect("it has one").to_string_lossy().into_owned();
            if name.starts_with("tests") || name == "mutation.rs" {
                continue;
            }
            match path.is_dir() {
                true => dirs.push(path),
                false => {
                    let text = fs::read_to_string(&path).expect("it is text");
                    found.push(text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned());
                }
            }
        }
    }
    found
}

/// A literal as it is printed, with what is filled in between braces; `None` if little else is in it.
fn message(literal: &str) -> Option<String> {
    let continued = Regex::new(r"\\\n\s*").expect("it is one");
    let text =
        continued.replace_all(literal, "").replace("\\\"", "\"").replace("\\\\", "\\").replace("\\n", " ");
    let holes = Regex::new(r"\{[^}]*\}").expect("it is one");
    let said = holes.replace_all(&text, "");
    (said.chars().filter(|c| c.is_alphabetic()).count() >= 8).then_some(text)
}

const LITERAL: &str = r#""((?:[^"\\]|\\.|\\\n)*)""#;

fn messages() -> String {
    let mut out = "# Messages\n\n".to_owned() + NOTE;
    out += "Texts of log lines and errors, as they are in the code: what stands in braces is filled in. What the important ones mean is in \
            [OPERATIONS.md](OPERATIONS.md#log), what to do about symptoms in [TROUBLESHOOTING.md](TROUBLESHOOTING.md). Some lines are put \
            together from parts and are found here as parts. Some answers to clients have their SQLSTATE elsewhere in the code.\n\n";
    let (mut logged, mut told, mut failed) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let log = Regex::new(&format!(r"(?s)tracing::(error|warn|info)!\(\s*(?:[\w.%?&*= ()]+,\s*)*{LITERAL}"))
        .expect("it is one");
    let answer = Regex::new(&format!(
        r"(?s)PgError::(?:error|fatal)\(\s*sqlstate::(\w+),\s*(?:format!\(\s*)?{LITERAL}"
    ))
    .expect("it is one");
    let error = Regex::new(&format!(r"(?s)#\[error\(\s*{LITERAL}")).expect("it is one");
    let states = source("src/wire/error.rs");
    let state = |name: &str| {
        let line = format!("pub const {name}: &str = \"");
        states.split(&line).nth(1).and_then(|rest| rest.get(..5)).unwrap_or("?????").to_owned()
    };
    // Named first, and given a SQLSTATE afterwards.
    let named =
        Regex::new(&format!(r"(?s)let (?:text|message) =\s*(?:format!\(\s*)?{LITERAL}")).expect("it is one");
    for text in sources().iter().filter(|text| text.contains("PgError")) {
        told.extend(named.captures_iter(text).filter_map(|it| Some((message(&it[1])?, String::new()))));
    }
    for text in sources() {
        logged
            .extend(log.captures_iter(&text).filter_map(|it| Some((message(&it[2])?, it[1].to_uppercase()))));
        told.extend(answer.captures_iter(&text).filter_map(|it| Some((message(&it[2])?, state(&it[1])))));
        failed.extend(error.captures_iter(&text).filter_map(|it| message(&it[1])));
    }
    let counts = [logged.len(), told.len(), failed.len()];
    assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
    out += "## Log\n\n| Line | Level |\n|---|---|\n";
    out.extend(logged.iter().map(|(text, level)| row(&[&code(text), level])));
    out += "\n## Troubles\n\nLines of level WARN, too, repeated while they last ([troubles](MONITORING.md#troubles)).\n\n| Line |\n|---|\n";
    let trouble = Regex::new(&format!(r"(?s)let text =\s*format!\(\s*{LITERAL}")).expect("it is one");
    let text = source("src/status/troubles.rs");
    let troubles: BTreeSet<String> = trouble.captures_iter(&text).filter_map(|it| message(&it[1])).collect();
    assert!(troubles.len() > 20, "{troubles:?}");
    out.extend(troubles.iter().map(|text| row(&[&code(text)])));
    out += "\n## To clients\n\n| Message | SQLSTATE |\n|---|---|\n";
    out.extend(told.iter().map(|(text, state)| row(&[&code(text), state])));
    out +=
        "\n## Errors\n\nOf a start, of commands, and as the reason within log lines.\n\n| Message |\n|---|\n";
    out.extend(failed.iter().map(|text| row(&[&code(text)])));
    out
}

/// Texts that pages tell readers to search for are in the code, letter for letter, but for what is filled in.
#[test]
fn messages_that_are_explained_exist() {
    let code =
        Regex::new(r"\\\n\s*").expect("it is one").replace_all(&sources().concat(), "").replace("\\\"", "\"");
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
