//! Proofs that copies are copies.

use std::fs;
use std::path::Path;

use crate::cluster::Cluster;

/// Compares the primary's finished segments from the first one that `copy` holds on, byte by byte, and returns
/// how many there were. None may be missing in between.
///
/// # Errors
/// Says which file is missing or where it differs, or that there is nothing to compare.
pub fn segments(primary: &Cluster, copy: &Path) -> Result<usize, String> {
    let finished = primary.finished_segments();
    let first = finished.iter().position(|name| copy.join(name).exists());
    let expected = finished.get(first.unwrap_or(finished.len())..).unwrap_or_default();
    expected.iter().try_for_each(|name| same_file(&primary.wal_dir().join(name), &copy.join(name)))?;
    if expected.is_empty() {
        return Err(format!("{} holds none of the {} finished segments", copy.display(), finished.len()));
    }
    Ok(expected.len())
}

fn same_file(original: &Path, copy: &Path) -> Result<(), String> {
    let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let (left, right) = (read(original)?, read(copy)?);
    let length = format!("{}: {} bytes instead of {}", copy.display(), right.len(), left.len());
    if left.len() != right.len() {
        return Err(length);
    }
    match left.iter().zip(&right).position(|(a, b)| a != b) {
        Some(at) => Err(format!("{} differs from {} at byte {at}", copy.display(), original.display())),
        None => Ok(()),
    }
}

/// [`segments`], for tests.
///
/// # Panics
/// Where that returns an error, or if fewer than `at_least` files were compared.
#[track_caller]
pub fn assert_segments(primary: &Cluster, copy: &Path, at_least: usize) {
    match segments(primary, copy) {
        Ok(count) => assert!(count >= at_least, "only {count} segments to compare in {}", copy.display()),
        Err(difference) => panic!("{difference}"),
    }
}

/// Insists that `copy` holds every finished segment of the primary's timeline and its ancestors from the first
/// one that it holds on, all of them on the timelines `1..=newest`, and the history files of those that have one.
///
/// # Panics
/// Says what is missing or where it differs.
#[track_caller]
pub fn assert_timelines(primary: &Cluster, copy: &Path, newest: u32) {
    assert_segments(primary, copy, newest as usize);
    let names = primary.finished_segments();
    for tli in 1..=newest {
        let prefix = format!("{tli:08X}");
        let held = names.iter().any(|name| name.starts_with(&prefix) && copy.join(name).exists());
        assert!(held, "{} holds no segment of timeline {tli}", copy.display());
    }
    for tli in 2..=newest {
        let name = format!("{tli:08X}.history");
        let same = same_file(&primary.wal_dir().join(&name), &copy.join(&name));
        assert_eq!(same, Ok(()));
    }
}

/// Compares dumps of two clusters; the bytes of one dump.
///
/// # Errors
/// With the first line that differs.
pub fn dumps(primary: &Cluster, copy: &Cluster) -> Result<usize, String> {
    let (left, right) = (primary.dump(), copy.dump());
    if left == right {
        return Ok(left.len());
    }
    let differing = left.lines().zip(right.lines()).find(|(a, b)| a != b);
    Err(match differing {
        Some((a, b)) => format!("dumps differ: {a:?} became {b:?}"),
        None => format!("dumps differ in length: {} and {} bytes", left.len(), right.len()),
    })
}

/// [`dumps`], for tests.
///
/// # Panics
/// Where that returns an error.
#[track_caller]
pub fn assert_dumps(primary: &Cluster, copy: &Cluster) {
    if let Err(difference) = dumps(primary, copy) {
        panic!("{difference}");
    }
}
