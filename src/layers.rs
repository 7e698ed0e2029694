//! The arrows between the parts, as a test: docs/ARCHITECTURE.md draws them, this holds them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What each top-level module may know. Tests may know everything.
const MAY_KNOW: &[(&str, &[&str])] = &[
    (
        "archive",
        &[
            "changeable",
            "children",
            "conninfo",
            "counts",
            "lane",
            "moment",
            "mutation",
            "objects",
            "parts",
            "permissions",
            "pg",
            "pieces",
            "progress",
            "pulse",
            "rate",
            "redact",
            "store",
        ],
    ),
    ("auth", &["permissions"]),
    ("branch", &["progress", "store"]),
    ("changeable", &[]),
    ("children", &[]),
    (
        "config",
        &[
            "archive",
            "conninfo",
            "downstream",
            "gateway",
            "http",
            "objects",
            "permissions",
            "redact",
            "store",
            "wire",
        ],
    ),
    ("conninfo", &["auth", "permissions", "redact"]),
    ("console", &["moment", "overlay", "status", "wire"]),
    ("consumers", &["counts", "moment", "mutation"]),
    ("counts", &["moment"]),
    ("descriptors", &[]),
    ("disk", &[]),
    (
        "doctor",
        &[
            "archive",
            "auth",
            "config",
            "conninfo",
            "error",
            "out",
            "permissions",
            "pg",
            "progress",
            "redact",
            "relay",
            "show",
            "status",
            "store",
        ],
    ),
    (
        "downstream",
        &[
            "archive",
            "auth",
            "conninfo",
            "console",
            "consumers",
            "counts",
            "descriptors",
            "gateway",
            "lane",
            "moment",
            "overlay",
            "parts",
            "permissions",
            "pg",
            "redact",
            "restart",
            "sockets",
            "status",
            "store",
            "upstream",
            "wire",
        ],
    ),
    (
        "error",
        &[
            "archive",
            "auth",
            "branch",
            "config",
            "downstream",
            "http",
            "init",
            "parts",
            "pg",
            "show",
            "sockets",
            "store",
            "upstream",
            "verify",
            "wire",
        ],
    ),
    ("events", &["log", "moment", "redact"]),
    ("fencing", &["config", "conninfo", "error", "out", "pg", "progress"]),
    ("gateway", &["auth", "conninfo", "lane", "pg", "rate", "redact", "store", "upstream", "wire"]),
    ("http", &["auth", "changeable", "descriptors", "downstream", "metrics", "sockets", "status", "wire"]),
    ("init", &["config", "conninfo", "doctor", "error", "out", "progress", "relay"]),
    ("lane", &["parts", "pulse"]),
    ("log", &["parts", "redact"]),
    ("mutation", &[]),
    ("notify", &[]),
    ("objects", &["lane", "permissions", "pieces", "pulse", "redact"]),
    ("metrics", &["moment", "status", "upstream"]),
    ("moment", &[]),
    ("out", &["progress"]),
    ("overlay", &["consumers", "moment", "store", "wire"]),
    ("papers", &["config"]),
    ("parts", &["pulse"]),
    ("permissions", &[]),
    ("pg", &["auth", "conninfo", "lane", "permissions", "redact"]),
    ("pieces", &[]),
    ("promotable", &["archive", "config", "conninfo", "error", "out", "pg", "progress"]),
    ("progress", &[]),
    ("pulse", &[]),
    ("rate", &["changeable"]),
    ("redact", &[]),
    (
        "relay",
        &[
            "archive",
            "auth",
            "changeable",
            "config",
            "conninfo",
            "counts",
            "descriptors",
            "downstream",
            "error",
            "events",
            "gateway",
            "http",
            "lane",
            "log",
            "moment",
            "notify",
            "parts",
            "permissions",
            "pg",
            "redact",
            "restart",
            "sockets",
            "status",
            "store",
            "upstream",
            "wire",
        ],
    ),
    ("restart", &["children", "redact", "sockets"]),
    ("show", &["config", "conninfo", "error", "out", "pg", "progress", "status"]),
    ("sockets", &[]),
    (
        "status",
        &[
            "archive",
            "consumers",
            "counts",
            "events",
            "lane",
            "moment",
            "overlay",
            "redact",
            "store",
            "upstream",
        ],
    ),
    ("store", &["changeable", "consumers", "counts", "disk", "moment", "mutation", "parts", "permissions"]),
    (
        "tools",
        &[
            "archive",
            "branch",
            "config",
            "conninfo",
            "doctor",
            "error",
            "fencing",
            "init",
            "lane",
            "out",
            "papers",
            "progress",
            "promotable",
            "redact",
            "relay",
            "show",
            "store",
            "verify",
        ],
    ),
    ("upstream", &["changeable", "conninfo", "consumers", "counts", "moment", "pg", "pieces", "store"]),
    ("verify", &["archive", "progress", "store"]),
    ("wire", &["auth", "conninfo", "permissions"]),
];

/// A part or room, and what it may know of.
type Arrows = (&'static str, &'static [&'static str]);

/// What each room of a part may know of the others. What the part shows to the outside is no way around this.
const ROOMS: &[(&str, &[Arrows])] = &[(
    "archive",
    &[("repo", &[]), ("back", &["repo"]), ("tend", &["back", "repo"]), ("out", &["repo", "tend"])],
)];

#[test]
fn arrows_point_one_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let parts: BTreeSet<String> =
        fs::read_dir(&src).unwrap().map(|entry| part_of(&entry.unwrap().path())).collect();
    let mut wrong = Vec::new();
    for file in sources(&src) {
        let part = part_of(&src.join(file.strip_prefix(&src).unwrap().components().next().unwrap()));
        if ["lib", "main", "layers"].contains(&part.as_str()) {
            continue;
        }
        let (_, may_know) =
            MAY_KNOW.iter().find(|(name, _)| *name == part).unwrap_or_else(|| panic!("no rule for {part}"));
        let known = names_in(&fs::read_to_string(&file).unwrap());
        let known = known.into_iter().filter(|name| parts.contains(name) && *name != part);
        wrong.extend(
            known
                .filter(|name| !may_know.contains(&name.as_str()))
                .map(|name| format!("{}: {name}", file.display())),
        );
    }
    assert!(wrong.is_empty(), "arrows that docs/ARCHITECTURE.md does not draw: {wrong:#?}");
}

#[test]
fn arrows_between_rooms_point_one_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for (part, rooms) in ROOMS {
        for file in rooms.iter().flat_map(|(room, _)| sources(&src.join(part).join(room))) {
            let room = part_of(&src.join(file.strip_prefix(src.join(part)).unwrap().iter().next().unwrap()));
            let (_, may_know) = rooms.iter().find(|(name, _)| *name == room).unwrap();
            let text = fs::read_to_string(&file).unwrap();
            let inside = names_behind(&format!("crate::{part}::"), &text).into_iter();
            let above = names_behind("super::", &text).into_iter();
            let above = above.filter(|name| rooms.iter().any(|(room, _)| room == name));
            wrong.extend(
                inside
                    .chain(above)
                    .filter(|name| *name != room && !may_know.contains(&name.as_str()))
                    .map(|name| format!("{}: {name}", file.display())),
            );
        }
    }
    assert!(wrong.is_empty(), "arrows that docs/ARCHITECTURE.md does not draw: {wrong:#?}");
}

fn part_of(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

/// All that is not tests.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("tests") {
            continue;
        }
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Where the store touches files but through [`crate::disk`], so that no simulated disk knows of it, and why that may be.
const STORE_FILES: &[(&str, &str)] = &[
    ("mapped.rs", "the process's own memory, read as a file"),
    ("mapped/fault.rs", "what the process has mapped, when it dies of it"),
    ("offline.rs", "a look at a directory whose store is another process's"),
];

/// Where the store looks at a clock by itself, and what for. Nothing that it promises goes by a clock: what is decided by time is told
/// the time ([`crate::store::Retaining::pass`], [`crate::store::Making::step`]).
const STORE_CLOCKS: &[(&str, &str)] = &[
    ("ahead.rs", "the pauses of the thread that makes segments"),
    ("fence.rs", "when a fence was ordered, for people"),
    ("flusher.rs", "how long a sync took, and how often an error is said"),
    ("last_run.rs", "when a run has ended, for people"),
    ("retention.rs", "how often an error is said"),
    ("writer.rs", "when WAL arrived, for lag, and how often an error is said"),
];

#[test]
fn the_store_touches_files_and_clocks_where_it_is_listed() {
    let store = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store");
    let with = |words: &[&str]| -> Vec<String> {
        let mut found: Vec<_> = sources(&store)
            .into_iter()
            .filter(|path| {
                let text = fs::read_to_string(path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                // An error's type is no file.
                let mut lines = code.lines().filter(|line| !line.contains("TryLockError"));
                lines.any(|line| {
                    !line.trim_start().starts_with("//") && words.iter().any(|word| line.contains(word))
                })
            })
            .map(|path| path.strip_prefix(&store).unwrap().display().to_string())
            .collect();
        found.sort();
        found
    };
    let listed = |all: &[(&str, &str)]| all.iter().map(|(file, _)| file.to_string()).collect::<Vec<_>>();
    assert_eq!(with(&["std::fs", "os::unix::fs", "rustix::fs"]), listed(STORE_FILES));
    assert_eq!(with(&["Instant::now", "SystemTime::now"]), listed(STORE_CLOCKS));
}

/// What follows `crate::`, also in braces, before a module's tests begin.
fn names_in(text: &str) -> BTreeSet<String> {
    names_behind("crate::", text)
}

/// What follows `path`, also in braces, before a module's tests begin.
fn names_behind(path: &str, text: &str) -> BTreeSet<String> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = BTreeSet::new();
    for rest in code.split(path).skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => {
                let group = group.split('}').next().unwrap_or_default();
                names.extend(group.split(',').map(|name| word(name.trim())));
            }
            None => _ = names.insert(word(rest)),
        }
    }
    names
}

#[test]
fn names_are_found_in_all_spellings() {
    let text =
        "use crate::store::{Store, x};\n// crate::no\nuse crate::{auth, wire};\nlet x = crate::log::f();\n";
    let found: Vec<_> = names_in(text).into_iter().collect();
    assert_eq!(found, ["auth", "log", "store", "wire"]);
}
