//! The documents that programs read, in docs/REFERENCE.md: the fields of the structures that they are made of, with their documentation.

use std::collections::BTreeMap;
use std::fmt::Write;

use regex::Regex;

use super::{code, row, source};

/// A document: who gives it, the structure that it is, and the sources that its parts are in.
struct Document {
    title: &'static str,
    about: &'static str,
    root: &'static str,
    /// The same name may be in several: the first one counts.
    sources: &'static [&'static str],
}

const DOCUMENTS: [Document; 10] = [
    Document {
        title: "status --json",
        about: "`walrelay status --json`, `SHOW STATUS`, `GET /api/status`",
        root: "Status",
        sources: &["src/status/value.rs", "src/status/troubles.rs", "src/status/now.rs"],
    },
    Document {
        title: "api/status while the relay starts",
        about: "`GET /api/status`, with 503",
        root: "Starting",
        sources: &["src/status/watched.rs"],
    },
    Document {
        title: "doctor --json",
        about: "`walrelay doctor --json`",
        root: "Report",
        sources: &["src/doctor/mod.rs", "src/doctor/finding.rs"],
    },
    Document {
        title: "promotable --json",
        about: "`walrelay promotable --json`",
        root: "Shown",
        sources: &["src/promotable/mod.rs"],
    },
    Document {
        title: "fence --json",
        about: "`walrelay fence --json`, `unfence --json`",
        root: "Report",
        sources: &["src/fencing.rs"],
    },
    Document {
        title: "failovers --json",
        about: "`walrelay failovers --json`: a list of these",
        root: "ShownFailover",
        sources: &["src/tools.rs"],
    },
    Document {
        title: "branch list --json",
        about: "`walrelay branch list --json`: a list of these",
        root: "ShownBranch",
        sources: &["src/tools.rs"],
    },
    Document {
        title: "verify --json",
        about: "`walrelay verify --json` of a directory: a list of one of these",
        root: "Report",
        sources: &["src/verify/report.rs"],
    },
    Document {
        title: "archive verify --json",
        about: "`walrelay archive verify --json`: a list of these",
        root: "Report",
        sources: &["src/archive/tend/verify.rs"],
    },
    Document {
        title: "archive list --json",
        about: "`walrelay archive list --json`: a list of these",
        root: "Listing",
        sources: &["src/archive/tend/list.rs"],
    },
];

struct Field {
    name: String,
    kind: String,
    meaning: String,
}

/// Structures that are written as JSON, by name, and their fields.
fn structures(path: &str) -> BTreeMap<String, Vec<Field>> {
    let text = source(path);
    let structure = Regex::new(
        r"(?s)#\[derive\([^)]*Serialize[^)]*\)\]\n(?:pub(?:\([^)]*\))? )?struct (\w+)(?:<'a>)? \{\n(.*?)\n\}",
    );
    let structure = structure.expect("it is one");
    let field = Regex::new(r"^(?:pub(?:\([^)]*\))? )?(\w+): (.*),$").expect("it is one");
    let mut found = BTreeMap::new();
    for it in structure.captures_iter(&text) {
        let (mut fields, mut meaning, mut skipped) = (Vec::new(), String::new(), false);
        for line in it[2].lines().map(str::trim) {
            if let Some(doc) = line.strip_prefix("///") {
                meaning = format!("{meaning} {}", doc.trim());
            } else if line.starts_with("#[") {
                skipped |= line == "#[serde(skip)]";
            } else if let Some(it) = field.captures(line) {
                let meaning =
                    std::mem::take(&mut meaning).trim().trim_end_matches('.').replace("`None`", "null");
                let it = Field { name: it[1].to_owned(), kind: it[2].to_owned(), meaning };
                if !std::mem::take(&mut skipped) {
                    assert!(!it.meaning.is_empty(), "{path}: {} says nothing of what it is", it.name);
                    fields.push(it);
                }
            }
        }
        found.insert(it[1].to_owned(), fields);
    }
    found
}

/// What a Rust type is in JSON, and the structures in it.
fn in_json(kind: &str) -> (String, Option<&str>) {
    let of = |outer: &str| kind.strip_prefix(outer).and_then(|rest| rest.strip_suffix('>'));
    if let Some(kind) = of("Option<") {
        let (inner, part) = in_json(kind);
        return (format!("{inner} or null"), part);
    }
    let list = of("Vec<").or_else(|| kind.strip_prefix("&'a [").and_then(|rest| rest.strip_suffix(']')));
    if let Some(kind) = list {
        let (inner, part) = in_json(kind);
        return (format!("list of {inner}"), part);
    }
    match kind {
        "String" | "&'static str" => ("text".to_owned(), None),
        "Severity" => ("`ok`, `warning` or `error`".to_owned(), None),
        "Problem" => ("`missing` or `damaged`".to_owned(), None),
        "u64" | "u32" | "usize" | "i64" | "f64" => ("number".to_owned(), None),
        "bool" => ("true or false".to_owned(), None),
        "Moment" => ("time".to_owned(), None),
        "Lsn" => ("position".to_owned(), None),
        "BTreeMap<String, u64>" => ("numbers by name".to_owned(), None),
        part => (code(part), Some(part)),
    }
}

pub(super) fn documents(out: &mut String) {
    *out += "## JSON\n\nSizes are bytes, times are ISO 8601 in UTC, durations seconds, positions texts as PostgreSQL writes them. What is said to be \
             absent is null. Fields are added by later \
             versions, and keep their meaning.\n\n";
    for document in &DOCUMENTS {
        let mut known = BTreeMap::new();
        for path in document.sources.iter().rev() {
            known.extend(structures(path));
        }
        writeln!(out, "### {}\n\n{}.\n", document.title, document.about).expect("a string takes all");
        let (mut todo, mut done) = (vec![document.root.to_owned()], Vec::new());
        while let Some(name) = todo.pop() {
            let fields =
                known.get(&name).unwrap_or_else(|| panic!("{}: no structure {name}", document.title));
            if name != document.root {
                writeln!(out, "{}:\n", code(&name)).expect("a string takes all");
            }
            *out += "| Field | Type | Meaning |\n|---|---|---|\n";
            done.push(name);
            let mut parts = Vec::new();
            for field in fields {
                let (kind, part) = in_json(&field.kind);
                *out += &row(&[&code(&field.name), &kind, &field.meaning]);
                parts.extend(part.map(str::to_owned));
            }
            out.push('\n');
            parts.retain(|part| !done.contains(part) && !todo.contains(part));
            parts.dedup();
            todo.extend(parts.into_iter().rev());
        }
    }
    history(out);
}

fn history(out: &mut String) {
    let text = source("src/status/history.rs");
    let kind = Regex::new(r#"(?m)^    kind\("(\w+)", Fold::(\w+), (\w+)\),"#).expect("it is one");
    let kinds: Vec<String> = kind.captures_iter(&text).map(|it| code(&it[1])).collect();
    assert!(kinds.len() > 15, "{kinds:?}");
    *out += "### api/history\n\n`GET /api/history?since=N`; see [the page](MONITORING.md#the-page).\n\n| Field | Type | Meaning |\n|---|---|---|\n";
    let fields = [
        ("run", "text", "Another one where another process answers: its samples are numbered anew"),
        ("at", "time", "When the newest sample was taken"),
        ("number", "number", "The newest sample's number: what `since` is to be next time"),
        ("left_out", "number", "Names for which there was no room at the newest sample"),
        ("resolutions", "list of `resolution`", "The last hour, and the last twelve"),
    ];
    let resolution = [
        ("seconds", "number", "So far apart are its samples: 10, 60"),
        ("number", "number", "The number of the last sample in it"),
        ("count", "number", "Samples in each series"),
        ("series", "list of `series`", "One for each kind and name"),
    ];
    let series = [
        ("what", "text", "Its kind, below"),
        ("name", "text", "The consumer, slot or target; empty where there is one of the kind"),
        ("samples", "list of number or null", "Oldest first; null is what nobody has measured"),
    ];
    for (name, fields) in [("", &fields[..]), ("resolution", &resolution), ("series", &series)] {
        if !name.is_empty() {
            writeln!(out, "\n{}:\n\n| Field | Type | Meaning |\n|---|---|---|", code(name))
                .expect("a string takes all");
        }
        for (field, kind, meaning) in fields {
            assert!(text.contains(&format!("\\\"{field}\\\":")), "{field} is not in the document");
            *out += &row(&[&code(field), kind, meaning]);
        }
    }
    writeln!(out, "\nKinds: {}.\n", kinds.join(", ")).expect("a string takes all");
}
