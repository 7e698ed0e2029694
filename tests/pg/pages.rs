//! What the documents say is true: the commands of the quick start are run, those of the how-tos are the examples', links lead
//! somewhere, and the book has every page.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use walrelay_testkit::{Scratch, Server, on_one_version};

use crate::examples::succeeds_below;

on_one_version!(the_quick_start_works);

/// How the quick start's hosts are called.
const HOSTS: [&str; 3] = ["primary", "relay", "standby"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A fenced block of a page: what stands behind the backquotes, and its text.
struct Block {
    info: String,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(info), None) => open = Some(Block { info: info.to_owned(), text: String::new() }),
            (Some(_), Some(block)) => blocks.push(block),
            (None, Some(mut block)) => {
                block.text += line;
                block.text.push('\n');
                open = Some(block);
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block has no end");
    blocks
}

/// Pages, by their paths in the repository: the README, all documents and the examples'.
fn pages() -> BTreeMap<PathBuf, String> {
    let root = repository();
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.join("docs"), root.join("examples")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("it is in the repository").flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.insert(path.strip_prefix(&root).expect("below it").to_owned(), read(&path));
            }
        }
    }
    for name in ["README.md", "CHANGELOG.md"] {
        found.insert(name.into(), read(&root.join(name)));
    }
    found
}

/// The page as a script for `examples/common.sh`, which says what becomes of names, addresses and paths on one machine. A
/// block that nobody can run is a mistake of the page's.
fn script_of(page: &str) -> String {
    let mut script = "#!/usr/bin/env bash\n. \"$(dirname \"$0\")/../common.sh\"\n".to_owned();
    script += &format!("hosts {}\nnew_server primary\n", HOSTS.join(" "));
    for Block { info, text } in blocks(page) {
        // Pictures.
        if info == "text" {
            continue;
        }
        let host = info.strip_prefix("sh ").filter(|host| HOSTS.contains(host));
        let host = host.unwrap_or_else(|| panic!("```{info} is not run: say on which host it is:\n{text}"));
        if text.starts_with("walrelay --config") {
            script += &format!("serve {host} <<'THE_BLOCK'\n{text}THE_BLOCK\n");
            script += &format!("logged {host} walrelay 'started streaming WAL from'\n");
        } else {
            script += &format!("on {host} <<'THE_BLOCK'\n{text}THE_BLOCK\n");
        }
    }
    script
        + "caught_up primary standby\n[ \"$(query standby 'select came from hello')\" = 'through the relay' ]\n"
}

fn the_quick_start_works(server: &Server) {
    let page = read(&repository().join("docs/QUICKSTART.md"));
    let scratch = Scratch::new("quickstart");
    fs::copy(repository().join("examples/common.sh"), scratch.join("common.sh"))
        .expect("the directory is ours");
    fs::write(scratch.dir("quickstart").join("run.sh"), script_of(&page)).expect("the directory is ours");
    let said = succeeds_below(scratch.path(), "quickstart", server);
    assert!(said.contains("through the relay") && said.contains("streaming"), "{said}");
}

#[test]
fn what_the_how_tos_show_is_what_the_examples_run() {
    let root = repository();
    let mut shown = 0;
    for (path, page) in pages().iter().filter(|(path, _)| path.starts_with("docs/howto")) {
        let name = path.file_stem().expect("a file").to_str().expect("ours");
        let example = root.join("examples").join(if name == "deploy" { "ansible" } else { name });
        let files = files_below(&example);
        for Block { info, text } in blocks(page).iter().filter(|block| !block.text.contains("---->")) {
            // Packages, hosts and an editor: a playbook for four machines is not run on one as it stands. Its example runs the same
            // plays there, so that here only what the lines name has to be there.
            if name == "deploy" {
                commands_could_be_run(text, &example);
                shown += 1;
                continue;
            }
            let is_there = files.iter().any(|file| file.contains(text.as_str()));
            assert!(
                is_there,
                "{}: nothing in {} has this ```{info}:\n{text}",
                path.display(),
                example.display()
            );
            shown += 1;
        }
    }
    assert!(shown > 30, "{shown}");
}

/// What an example runs and installs; its pages are no proof of another page.
fn files_below(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let files = entries.flatten().map(|entry| entry.path());
    let files = files.filter(|path| path.extension().is_none_or(|extension| extension != "md"));
    files.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![read(&path)] }).collect()
}

/// Each line is one of a few commands, and the files and targets that it names are there.
fn commands_could_be_run(block: &str, example: &Path) {
    let (root, mut dir) = (repository(), repository());
    let makefile = read(&root.join("Makefile"));
    for line in block.lines() {
        let command = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = command.split_whitespace().collect();
        let is_there = match words[..] {
            ["make", target] => makefile.contains(&format!("\n{target}: ")),
            ["cd", to] => {
                dir = root.join(to);
                dir == example
            }
            ["$EDITOR", ref files @ ..] => files.iter().all(|file| dir.join(file).is_file()),
            ["ansible-playbook", play] => plays_all(&dir.join(play)),
            _ => false,
        };
        assert!(is_there, "{line}");
    }
}

/// The playbook is made of plays that the example's script runs one by one.
fn plays_all(playbook: &Path) -> bool {
    let script = read(&playbook.with_file_name("run.sh"));
    let text = read(playbook);
    let plays: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once("import_playbook: "))
        .map(|(_, play)| play.trim())
        .collect();
    plays.len() > 3 && plays.iter().all(|play| script.contains(play))
}

/// Lines outside of blocks, without what is in backquotes.
fn prose(page: &str) -> Vec<String> {
    let mut inside = false;
    let mut lines = Vec::new();
    for line in page.lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if !inside {
            lines.push(line.split('`').step_by(2).collect());
        }
    }
    lines
}

/// Targets of `[text](target)` and `![text](target)`; titles of links may have backquotes.
fn links(page: &str) -> Vec<String> {
    let text = prose(page).join("\n");
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(|target| target.split_whitespace().next().unwrap_or_default().to_owned()).collect()
}

/// As GitHub and mdBook make them from headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut inside = false;
    let mut anchors = BTreeSet::new();
    for line in page.lines() {
        inside ^= line.starts_with("```");
        if let Some(title) = line.strip_prefix('#').filter(|_| !inside) {
            let title = title.trim_start_matches('#').trim().to_lowercase();
            let kept = |c: &char| c.is_alphanumeric() || matches!(c, '-' | '_' | ' ');
            let anchor: String = title.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect();
            anchors.insert(anchor);
        }
    }
    anchors
}

#[test]
fn links_lead_somewhere() {
    let (root, pages) = (repository(), pages());
    let (mut wrong, mut followed) = (Vec::new(), 0);
    for (path, page) in &pages {
        let dir = path.parent().expect("a file");
        for target in links(page).iter().filter(|target| !target.contains("://")) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let to = if file.is_empty() { path.clone() } else { normal(&dir.join(file)) };
            let there = root.join(&to).exists();
            let anchored =
                anchor.is_empty() || pages.get(&to).is_some_and(|page| anchors(page).contains(anchor));
            followed += 1;
            if !there || !anchored {
                wrong.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(followed > 300, "{followed} links");
}

/// What an alert tells of, the dashboard shows since when.
#[test]
fn the_dashboard_shows_what_alerts_tell_of() {
    let text = |path: &str| read(&repository().join("monitoring").join(path));
    let (dashboard, alerts) = (text("grafana.json"), text("alerts.yml"));
    let metric = Regex::new(r"walrelay_\w+").expect("it is one");
    let told: BTreeSet<&str> = metric.find_iter(&alerts).map(|found| found.as_str()).collect();
    let more = ["walrelay_recalled_segments_total", "walrelay_slot_inactive_seconds"];
    let shown: BTreeSet<&str> = metric.find_iter(&dashboard).map(|found| found.as_str()).collect();
    let missing: Vec<_> = told.iter().chain(&more).filter(|metric| !shown.contains(*metric)).collect();
    assert!(told.len() > 30 && missing.is_empty(), "no panel shows {missing:?}");
}

/// Where a package has put them, too.
#[test]
fn links_of_the_installed_pages_lead_somewhere() {
    let (pages, installed) = (pages(), crate::packaging::installed());
    let there: BTreeSet<&Path> = installed.keys().flat_map(|path| path.ancestors()).collect();
    let (mut wrong, mut followed) = (Vec::new(), 0);
    for (here, path) in &installed {
        let Some(page) = pages.get(path) else { continue };
        for target in links(page).iter().filter(|target| !target.contains("://") && !target.starts_with('#'))
        {
            let file = target.split('#').next().unwrap_or_default();
            let to = normal(&here.parent().expect("a file").join(file));
            followed += 1;
            if !there.contains(to.as_path()) {
                wrong.push(format!("{}: {target}", here.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(followed > 300, "{followed} links");
}

/// Without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                assert!(normal.pop(), "{} leaves the repository", path.display());
            }
            part => normal.push(part),
        }
    }
    normal
}

#[test]
fn the_book_has_every_page() {
    let pages = pages();
    let summary = &pages[Path::new("docs/SUMMARY.md")];
    let listed: BTreeSet<PathBuf> = links(summary).iter().map(|link| Path::new("docs").join(link)).collect();
    let there: BTreeSet<PathBuf> = pages
        .keys()
        .filter(|path| path.starts_with("docs") && !path.ends_with("SUMMARY.md"))
        .filter(|path| !path.starts_with("docs/benchmarks/profiles"))
        .cloned()
        .collect();
    let missing: Vec<_> = there.difference(&listed).collect();
    let vain: Vec<_> = listed.iter().filter(|path| !repository().join(path).is_file()).collect();
    assert!(missing.is_empty() && vain.is_empty(), "not in SUMMARY.md: {missing:?}; not there: {vain:?}");
}

#[test]
fn anchors_are_those_of_github() {
    let page = "# `walrelay status`\n## Several upstream hosts, and failover\n```sh\n# no heading\n```\n";
    let wanted = ["several-upstream-hosts-and-failover", "walrelay-status"];
    assert_eq!(anchors(page).into_iter().collect::<Vec<_>>(), wanted);
}
