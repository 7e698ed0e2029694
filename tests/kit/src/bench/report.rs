//! The report: tables in Markdown, bars in SVG.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::figures::{Figures, Verdict, show};
use super::plot::{self, Group};
use super::table::{COMMIT_CPU, CPU, KIB, P50, P99, PERCENT, ROWS, Row, SPEED, TPS};

/// A plot: its file, its title, and what is in it, by row and metric.
type Plot = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const PLOTS: [Plot; 5] = [
    (
        "chart.svg",
        "walrelay beside what else there is",
        &[
            ("stored-8", SPEED),
            ("ingestion", SPEED),
            ("latency-1", P50),
            ("commit-1", TPS),
            ("thousand", KIB),
            ("thousand", PERCENT),
        ],
    ),
    (
        "stored.svg",
        "Stored WAL, MB/s to all consumers together",
        &[("stored-1", SPEED), ("stored-8", SPEED), ("stored-8-copied", SPEED), ("stored-32", SPEED)],
    ),
    (
        "cpu.svg",
        "CPU of the server, seconds for each GiB",
        &[
            ("stored-1", CPU),
            ("stored-8", CPU),
            ("stored-8-copied", CPU),
            ("stored-32", CPU),
            ("ingestion", CPU),
        ],
    ),
    (
        "latency.svg",
        "Latency added to live WAL, µs",
        &[("latency-1", P50), ("latency-1", P99), ("latency-32", P50), ("latency-32", P99)],
    ),
    (
        "commits.svg",
        "Synchronous commits",
        &[("commit-1", TPS), ("commit-32", TPS), ("commit-1", COMMIT_CPU)],
    ),
];

/// Writes a report into a directory: `report.md` and its plots if it is the whole, which is `part` of nothing.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write(dir: &Path, part: &str, head: &str, figures: &Figures) -> Result<PathBuf, String> {
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut text = format!("# Measured by `make bench`\n\n{head}\n## Targets\n\n");
    text += &targets(figures);
    for (file, title, bars) in PLOTS.into_iter().filter(|_| part.is_empty()) {
        let groups: Vec<Group> = bars.iter().filter_map(|(id, metric)| group(figures, id, metric)).collect();
        if !groups.is_empty() {
            plot::draw(&dir.join(file), title, &groups)?;
            let _ = write!(text, "\n![{title}]({file})\n");
        }
    }
    text += "\n## Figures\n";
    text += &rows(figures);
    let path = dir.join(if part.is_empty() { "report.md".to_owned() } else { format!("report-{part}.md") });
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

fn group(figures: &Figures, id: &str, metric: &str) -> Option<Group> {
    let row = ROWS.iter().find(|row| row.id == id)?;
    let bar = |who| Some((who, figures.median(id, metric, who)?));
    let bars: Vec<_> = figures.who(id).into_iter().filter_map(bar).collect();
    (!bars.is_empty()).then(|| Group { title: format!("{}: {metric}", row.title), bars })
}

/// Every row with its figures.
pub(crate) fn rows(figures: &Figures) -> String {
    let measured = ROWS.iter().filter(|row| figures.has(row.id));
    measured.map(|row| format!("\n### {}\n\n{}", row.title, one(row, figures))).collect()
}

fn one(row: &Row, figures: &Figures) -> String {
    let head = row.metrics.join(" | least to most | ");
    let mut text = format!("| | {head} | least to most |\n|---|{}\n", "---|---|".repeat(row.metrics.len()));
    for who in figures.who(row.id) {
        let value = |metric: &&str| {
            let median = figures.median(row.id, metric, who).map_or("–".to_owned(), show);
            let range = figures.range(row.id, metric, who);
            let range =
                range.map_or(String::new(), |(least, most)| format!("{} – {}", show(least), show(most)));
            format!("{median} | {range}")
        };
        let values: Vec<String> = row.metrics.iter().map(value).collect();
        let _ = writeln!(text, "| {who} | {} |", values.join(" | "));
    }
    for remark in figures.remarks(row.id) {
        let _ = write!(text, "\n{remark}\n");
    }
    text
}

/// What was wanted, and whether it is so.
pub(crate) fn targets(figures: &Figures) -> String {
    let mut text = "| what | target | measured | |\n|---|---|---|---|\n".to_owned();
    for row in ROWS.iter().filter(|row| figures.has(row.id)) {
        for (who, metric, target) in row.targets {
            if let Some(Verdict { target, figure, met }) = target.judge(figures, row.id, metric, who) {
                let met = if met { "met" } else { "**missed**" };
                let _ = writeln!(text, "| {} | {target} | {figure} | {met} |", row.title);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::{LOOP, WALRELAY};

    #[test]
    fn a_report_has_what_was_measured() {
        let mut figures = Figures::default();
        for (who, speed, cpu) in [(WALRELAY, 4000.0, 0.2), (LOOP, 5000.0, 0.1)] {
            figures.add("stored-1", SPEED, who, speed);
            figures.add("stored-1", CPU, who, cpu);
        }
        figures.add("stored-1", SPEED, WALRELAY, 4400.0);
        figures.add("stored-1", SPEED, WALRELAY, 4000.0);
        figures.remark("stored-1", "Something.");
        let scratch = crate::Scratch::new("report");
        write(scratch.path(), "", "Head.", &figures).unwrap();
        assert!(write(scratch.path(), "stored", "Head.", &figures).unwrap().ends_with("report-stored.md"));
        let text = fs::read_to_string(scratch.join("report.md")).unwrap();
        for part in [
            "Head.",
            "| CPU s/GiB: ≤ 1.15 × bare sendfile loop | 2.00 × | **missed** |",
            "| walrelay | 4000 | 4000 – 4400 | 0.200 |  |",
            "\nSomething.\n",
            "](stored.svg)",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert!(!text.contains("latency.svg") && scratch.join("stored.svg").exists());
    }

    #[test]
    fn every_target_is_about_something_measured_there() {
        for row in ROWS {
            for (_, metric, _) in row.targets {
                assert!(row.metrics.contains(metric), "{}: {metric}", row.id);
            }
        }
    }
}
