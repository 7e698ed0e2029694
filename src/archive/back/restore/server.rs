//! Whose `restore_command` this is: what the data directory says of the server that asks.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use walrelay_proto::{Lsn, SegSize, SystemId, TimelineId, TimelinePosition};

use super::dir_of;

/// Exit code for "there is no such file".
pub const MISSING: u8 = 1;
/// Exit code for "nobody can say" to a standby: it looks elsewhere and asks again, unless it is being promoted: then it is
/// the end, as [`MISSING`].
pub const NOT_NOW: u8 = 2;
/// Exit code for "nobody can say" and "it is broken" to a recovery, which stops, as for any code above 125.
pub const BROKEN: u8 = 200;

/// Behind the system identifier: the version of the file.
const VERSION_AT: usize = 8;
/// Behind that, another version, the state, a time and the last checkpoint's place: where replay begins for it.
const REDO_AT: usize = 40;
/// Behind that.
const TIMELINE_AT: usize = 48;
/// `minRecoveryPoint`, with its timeline behind it, by versions of the file: those of 15 to 18, and of 19.
const MIN_RECOVERY_AT: [(std::ops::RangeInclusive<u32>, usize); 2] = [(1300..=1899, 136), (1900..=1999, 128)];

/// What the server does with the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It has `standby.signal`: it streams, or reads `pg_wal`, when the archive has nothing, and asks again (being promoted it
    /// does not). Any code above 125 would end it.
    Standby,
    /// It recovers to a target or to the end of the archive (`recovery.signal`), or is something else that must not take
    /// "nobody can say" for "there is none", like `pg_rewind`.
    Recovery,
}

impl Role {
    /// Of the server with this data directory. As PostgreSQL does, `standby.signal` counts if both files are there.
    pub fn of(data_dir: &Path) -> Role {
        match data_dir.join("standby.signal").exists() {
            true => Role::Standby,
            false => Role::Recovery,
        }
    }

    /// The exit code for anything but "here it is" and "there is none".
    pub fn broken(self) -> u8 {
        match self {
            Role::Standby => NOT_NOW,
            Role::Recovery => BROKEN,
        }
    }
}

/// Whether it is `pg_rewind -c` that asks, on a server that is down: it asks for a file by the name under which that is to be in
/// `pg_wal`, where a server takes `RECOVERYXLOG`. It reads the timeline that its server was on to the end, also behind the place
/// where others have left it.
pub(super) fn is_rewind(file: &str, target: &Path) -> bool {
    let data_dir = data_dir(target);
    let is_beside = || std::path::absolute(dir_of(target)).is_ok_and(|dir| dir.ends_with("pg_wal"));
    target.file_name().is_some_and(|name| name == file)
        && is_beside()
        && data_dir.join("PG_VERSION").exists()
        && !data_dir.join("postmaster.pid").exists()
}

/// The exit code of a run of which nothing is known but its arguments: a wrong call, a fault.
pub fn broken_here() -> u8 {
    let target = std::env::args_os().next_back().map(PathBuf::from).unwrap_or_default();
    Role::of(&data_dir(&target)).broken()
}

/// The data directory of the server that asks. PostgreSQL runs `restore_command` there, with a path relative to it; a
/// command that has gone elsewhere first must have made the path absolute.
pub fn data_dir(target: &Path) -> PathBuf {
    let wal = dir_of(target);
    let beside = dir_of(wal);
    match wal.file_name().is_some_and(|name| name == "pg_wal") && beside.join("PG_VERSION").exists() {
        true => beside.to_owned(),
        false => PathBuf::from("."),
    }
}

/// The cluster with this data directory: the first word of `pg_control`, as the machine writes it.
pub fn system_id_of(data_dir: &Path) -> Option<SystemId> {
    let id = u64::from_ne_bytes(*control(data_dir)?.first_chunk()?);
    (id != 0).then_some(SystemId(id))
}

/// Its segment size. In every version of PostgreSQL `pg_control` has a floating-point number that tells machines apart,
/// and behind it the sizes of blocks, relation segments, in 19 SLRU segments, WAL blocks and WAL segments (`pg_control.h`).
/// A WAL block has 64 kB at most, a segment 1 MB at least.
pub fn seg_size_of(data_dir: &Path) -> Option<SegSize> {
    let control = control(data_dir)?;
    let mark = 1_234_567.0f64.to_ne_bytes();
    let at = control.windows(mark.len()).position(|bytes| bytes == mark)? + mark.len();
    [12, 16].into_iter().find_map(|field| {
        let size = control.get(at + field..)?.first_chunk()?;
        SegSize::new(u64::from(u32::from_ne_bytes(*size))).ok()
    })
}

/// The timeline of its last checkpoint: `checkPointCopy.ThisTimeLineID`, which is at the same place in every version
/// (`pg_control.h`).
pub(super) fn timeline_of(data_dir: &Path) -> Option<TimelineId> {
    let control = control(data_dir)?;
    TimelineId::new(u32::from_ne_bytes(*control.get(TIMELINE_AT..)?.first_chunk()?))
}

/// How far it has come for certain: where it would replay from, and the end of what its data files have of the WAL. None of them
/// can be taken back.
pub(super) fn replayed_of(data_dir: &Path) -> Vec<TimelinePosition> {
    let Some(control) = control(data_dir) else { return Vec::new() };
    let number = |at: usize| Some(u32::from_ne_bytes(*control.get(at..)?.first_chunk()?));
    let position = |at: usize, tli_at: usize| {
        let lsn = Lsn::new(u64::from_ne_bytes(*control.get(at..)?.first_chunk()?));
        Some(TimelinePosition { tli: TimelineId::new(number(tli_at)?)?, lsn })
    };
    let version = number(VERSION_AT).unwrap_or_default();
    let known = MIN_RECOVERY_AT.iter().find(|(versions, _)| versions.contains(&version));
    let min_recovery = known.and_then(|(_, at)| position(*at, at + 8));
    position(REDO_AT, TIMELINE_AT).into_iter().chain(min_recovery).collect()
}

fn control(data_dir: &Path) -> Option<Vec<u8>> {
    let mut control = Vec::new();
    let file = File::open(data_dir.join("global/pg_control")).ok()?;
    file.take(8192).read_to_end(&mut control).ok()?;
    Some(control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_data_directory_is_found_from_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(data.join("pg_wal")).unwrap();
        let target = data.join("pg_wal/RECOVERYXLOG");
        assert_eq!(data_dir(&target), Path::new("."), "somebody's directory of this name");
        fs::write(data.join("PG_VERSION"), "18\n").unwrap();
        assert_eq!(data_dir(&target), data);
        assert_eq!(data_dir(Path::new("pg_wal/RECOVERYXLOG")), Path::new("."));
        assert_eq!(data_dir(Path::new("/tmp/x")), Path::new("."));
        assert_eq!(Role::of(&data).broken(), BROKEN);
        fs::write(data.join("recovery.signal"), "").unwrap();
        assert_eq!(Role::of(&data), Role::Recovery);
        fs::write(data.join("standby.signal"), "").unwrap();
        assert_eq!(Role::of(&data), Role::Standby);
        assert!(Role::of(&data).broken() <= 125);
    }

    #[test]
    fn a_rewind_is_told_from_a_server() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(data.join("pg_wal")).unwrap();
        let name = "000000010000000000000003";
        let own = data.join("pg_wal").join(name);
        assert!(!is_rewind(name, &own), "no data directory");
        fs::write(data.join("PG_VERSION"), "18\n").unwrap();
        assert!(is_rewind(name, &own));
        assert!(!is_rewind(name, &data.join("pg_wal/RECOVERYXLOG")));
        assert!(!is_rewind(name, &dir.path().join(name)), "a script that moves it on");
        fs::write(data.join("postmaster.pid"), "1").unwrap();
        assert!(!is_rewind(name, &own), "a server runs");
    }

    #[test]
    fn the_control_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!((system_id_of(dir.path()), seg_size_of(dir.path())), (None, None));
        assert_eq!(timeline_of(dir.path()), None);
        fs::create_dir(dir.path().join("global")).unwrap();
        let blocks: [&[u32]; 2] = [&[8192, 131_072, 8192], &[8192, 131_072, 32, 65_536]];
        for sizes in blocks {
            let mut control = vec![7u8; 300];
            control[..8].copy_from_slice(&77u64.to_ne_bytes());
            control[48..52].copy_from_slice(&3u32.to_ne_bytes());
            let sizes = [sizes, &[1 << 20]].concat();
            let sizes: Vec<u8> = sizes.into_iter().flat_map(u32::to_ne_bytes).collect();
            let found = [&1_234_567.0f64.to_ne_bytes()[..], &sizes].concat();
            control.splice(216..216 + found.len(), found);
            fs::write(dir.path().join("global/pg_control"), &control).unwrap();
            assert_eq!(system_id_of(dir.path()), Some(SystemId(77)));
            assert_eq!(timeline_of(dir.path()), TimelineId::new(3));
            let replayed: Vec<_> =
                replayed_of(dir.path()).iter().map(|it| (it.tli.as_u32(), it.lsn.as_u64())).collect();
            assert_eq!(replayed, [(3, 0x0707_0707_0707_0707)], "the file's version is none that is known");
            for (version, at) in [(1300u32, 136), (1800, 136), (1902, 128)] {
                control[8..12].copy_from_slice(&version.to_ne_bytes());
                control[40..48].copy_from_slice(&5u64.to_ne_bytes());
                let mut control = control.clone();
                control[at..at + 8].copy_from_slice(&9u64.to_ne_bytes());
                control[at + 8..at + 12].copy_from_slice(&2u32.to_ne_bytes());
                fs::write(dir.path().join("global/pg_control"), &control).unwrap();
                let replayed = replayed_of(dir.path());
                let replayed: Vec<_> = replayed.iter().map(|it| (it.tli.as_u32(), it.lsn.as_u64())).collect();
                assert_eq!(replayed, [(3, 5), (2, 9)], "{version}");
            }
            assert_eq!(seg_size_of(dir.path()).map(SegSize::bytes), Some(1 << 20));
        }
    }
}
