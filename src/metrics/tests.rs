//! The list, the exposition, and everything that names a metric, against each other.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::status::TroubleKind;
use crate::status::tests::{Scene, all_wrong, far_behind, well};
use crate::status::{ArchiveStatus, SlotStatus};

fn names() -> BTreeSet<String> {
    METRICS.iter().map(Metric::sample_name).collect()
}

fn file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Every `walrelay_...` in a text that is a metric's name, without what a histogram's samples end with.
fn named_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_part(c)).filter(|word| word.starts_with("walrelay_"));
    let base = |word: &str| {
        let ends = ["_bucket", "_sum", "_count"];
        let base = ends.iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
        base.to_owned()
    };
    words.map(base).collect()
}

#[test]
fn no_two_metrics_have_one_name() {
    assert_eq!(names().len(), METRICS.len());
}

#[test]
fn names_follow_the_conventions() {
    for metric in METRICS {
        let name = metric.sample_name();
        assert!(!metric.help.ends_with('.') && !metric.help.is_empty(), "{name}");
        let twice = ["_bytes_bytes", "_seconds_seconds", "_total_total"];
        assert!(twice.iter().all(|end| !name.ends_with(end)), "{name}");
        assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
    }
}

#[test]
fn everything_that_is_shown_is_in_the_list() {
    let scene = Scene::new();
    let text = exposition(&scene.now());
    assert!(text.ends_with("# EOF\n"), "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let shown: BTreeSet<_> =
        samples.flat_map(|line| named_in(line.split([' ', '{']).next().unwrap())).collect();
    let known = names();
    let unknown: Vec<_> = shown.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    for name in [
        "walrelay_build_info",
        "walrelay_ready",
        "walrelay_write_position_bytes",
        "walrelay_sync_duration_seconds",
    ] {
        assert!(shown.contains(name), "{name}");
    }
    let last = "walrelay_sync_duration_seconds_bucket{le=\"+Inf\"} ";
    assert!(text.contains(last), "{text}");
}

#[test]
fn names_that_others_choose_are_escaped() {
    let scene = Scene::new();
    let _consumer = scene.consumer(1, "a\"b\\c\nd");
    let text = exposition(&scene.now());
    assert!(text.contains(r#"walrelay_consumers{application_name="a\"b\\c\nd"} 1"#), "{text}");
}

/// A metric nobody can look up, or that is looked for in vain, is of no use.
#[test]
fn documents_dashboard_and_alerts_name_what_there_is() {
    let documented = named_in(&file("docs/MONITORING.md"));
    assert_eq!(documented, names());
    for path in ["monitoring/alerts.yml", "monitoring/alerts_test.yml", "monitoring/grafana.json"] {
        let named = named_in(&file(path));
        let unknown: Vec<_> = named.difference(&documented).collect();
        assert!(unknown.is_empty() && !named.is_empty(), "{path}: {unknown:?}");
    }
}

#[test]
fn each_trouble_has_an_alert_and_a_name_of_its_own() {
    let (alerts, document) = (file("monitoring/alerts.yml"), file("docs/MONITORING.md"));
    let mut words = BTreeSet::new();
    for kind in TroubleKind::ALL {
        let (word, alert) = (kind.as_str(), kind.alert());
        assert!(alerts.contains(&format!("- alert: {alert}\n")), "{word}: {alert}");
        assert!(words.insert(word), "{word}");
        assert!(document.contains(&format!("\n| `{word}` | ")), "{word} is not in docs/MONITORING.md");
    }
    let shown = exposition(&Scene::new().now());
    let series = shown.lines().filter(|line| line.starts_with("walrelay_trouble{kind=")).count();
    assert_eq!(series, TroubleKind::ALL.len());
}

/// Alerts that are no trouble of the relay, each with why.
const NO_TROUBLE: &[(&str, &str)] = &[
    ("WalrelayDown", "nobody is there to tell"),
    ("WalrelayNotStreaming", "it is the same as upstream_away, where no attempt fails"),
    ("WalrelayErrors", "an error is over when it is told"),
];

#[test]
fn each_alert_tells_of_a_trouble() {
    let alerts = file("monitoring/alerts.yml");
    let of_troubles: BTreeSet<&str> = TroubleKind::ALL.iter().map(|kind| kind.alert()).collect();
    let others: BTreeSet<&str> = NO_TROUBLE.iter().map(|(alert, _)| *alert).collect();
    let names = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let without: BTreeSet<&str> = names.filter(|name| !of_troubles.contains(name)).collect();
    assert_eq!(without, others);
}

#[test]
fn each_alert_has_its_section_and_is_provoked() {
    let (alerts, document) = (file("monitoring/alerts.yml"), file("docs/MONITORING.md"));
    let provoked = file("monitoring/alerts_test.yml");
    let names: Vec<_> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        assert!(document.contains(&format!("\n### {name}\n")), "{name}");
        let link = format!("MONITORING.md#{}", name.to_ascii_lowercase());
        assert!(alerts.contains(&link), "{name} has no runbook_url to {link}");
        let fires = format!("alertname=\"{name}\"");
        assert!(provoked.contains(&fires), "{name} is not provoked in monitoring/alerts_test.yml");
    }
}

/// Someone of everything that a label is for.
fn populated() -> Status {
    let scene = Scene::new();
    let consumer = scene.consumer(1, "standby");
    let end = scene.now().relay.write_lsn.unwrap();
    consumer.start_at(end);
    scene.report(&consumer, end);
    let mut status = scene.now();
    status.slots.push(SlotStatus {
        name: "standby".to_owned(),
        temporary: false,
        active_pid: None,
        restart: None,
        held_bytes: 1,
        wal_status: Some("extended".to_owned()),
        safe_wal_size: Some(1),
        inactive_since: Some(status.relay.started_at),
        lost_because: None,
        begun_lsn: None,
        awaited: false,
    });
    status.archive.push(ArchiveStatus {
        name: "s3".to_owned(),
        place: "s3://bucket".to_owned(),
        archived_files: 1,
        last_archived_file: None,
        last_archived_at: None,
        failures: 1,
        last_failed_file: None,
        last_failed_at: None,
        last_error: None,
        failing_since: None,
        stalled_since: None,
        paused_since: None,
        conflicts: 0,
        open_conflicts: 0,
        open_gaps: 0,
        quota_bytes: Some(1),
        pending_files: 1,
        pending_bytes: Some(1),
        at_risk_bytes: Some(1),
        at_risk_seconds: Some(1.0),
    });
    status
}

/// A wrong label or kind in the table is a query that finds nothing.
#[test]
fn the_table_has_each_metrics_kind_and_labels() {
    let (status, document) = (populated(), file("docs/MONITORING.md"));
    let rows: Vec<[&str; 4]> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `walrelay_"))
        .filter_map(|line| line.trim_end_matches(" |").splitn(4, " | ").collect::<Vec<_>>().try_into().ok())
        .collect();
    let mut seen = BTreeSet::new();
    for metric in METRICS {
        let name = metric.sample_name();
        let row = rows.iter().find(|row| format!("walrelay_{}", row[0].trim_end_matches('`')) == name);
        let [_, kind, labels, meaning] = row.unwrap_or_else(|| panic!("{name} has no row"));
        let known = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Info => "info",
            Kind::Histogram => "histogram",
        };
        assert_eq!(kind.trim(), known, "{name}");
        assert!(meaning.starts_with(metric.help), "{name}: {meaning}");
        let written: BTreeSet<&str> = labels.split('`').skip(1).step_by(2).collect();
        // None where there is nothing of it now.
        for (labels, _) in metric.samples(&status).0 {
            assert_eq!(labels.iter().map(|(label, _)| *label).collect::<BTreeSet<_>>(), written, "{name}");
            seen.insert(name.clone());
        }
    }
    let labelled = [
        "slot_held_bytes",
        "slot_lost",
        "archive_at_risk_seconds",
        "consumer_lag_bytes",
        "sessions_ended_total",
    ];
    for name in labelled {
        assert!(seen.contains(&format!("walrelay_{name}")), "{name} has no samples: {seen:?}");
    }
}

/// Alerts that look at how much a counter rises, or at whether anybody answers: `monitoring/alerts_test.yml` provokes these.
const OF_RATES: [&str; 5] =
    ["WalrelayDown", "WalrelaySlowSyncs", "WalrelayRecallFailing", "WalrelayLoginsFailing", "WalrelayErrors"];

/// What is shown as it is for an hour and a half.
fn series(instance: &str, status: &Status) -> Vec<String> {
    let text = exposition(status);
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let series = samples.map(|line| {
        let (name, value) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = name.split_once('{').map_or((name, String::new()), |(name, labels)| {
            (name, format!(",{}", labels.trim_end_matches('}')))
        });
        format!("      - {{ series: '{name}{{instance=\"{instance}\"{labels}}}', values: '{value}x90' }}\n")
    });
    series.collect()
}

/// From what is wrong to the alert, with the names, labels and values that are shown.
#[test]
fn what_is_shown_of_each_trouble_sets_off_its_alert_and_what_is_well_none() {
    let Some(promtool) = walrelay_testkit::tools::promtool() else {
        eprintln!("not checked: promtool is not installed (Debian's package prometheus)");
        return;
    };
    let alerts = file("monitoring/alerts.yml");
    let names = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let expected: String = names
        .filter(|name| !OF_RATES.contains(name))
        .map(|name| format!("          - {{ labels: '{{alertname=\"{name}\"}}', value: 1 }}\n"))
        .collect();
    let test = |name: &str, series: Vec<String>, expected: &str| {
        let series: String = series.concat();
        format!(
            "  - name: {name}\n    interval: 1m\n    input_series:\n{series}    promql_expr_test:\n      \
             - expr: group by (alertname) (ALERTS{{alertstate=\"firing\"}})\n        eval_time: 80m\n        \
             exp_samples:{expected}\n"
        )
    };
    let wrong = [series("a", &all_wrong()), series("b", &far_behind())].concat();
    let text = format!(
        "rule_files: [ {}/monitoring/alerts.yml ]\nevaluation_interval: 1m\ntests:\n{}{}",
        env!("CARGO_MANIFEST_DIR"),
        test("all is wrong", wrong, &format!("\n{expected}")),
        test("all is well", series("c", &well()), " []"),
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.yml");
    std::fs::write(&path, &text).unwrap();
    let told = std::process::Command::new(promtool).args(["test", "rules"]).arg(&path).output().unwrap();
    let said = [told.stdout, told.stderr].concat();
    assert!(told.status.success(), "{}\n{text}", String::from_utf8_lossy(&said));
}
