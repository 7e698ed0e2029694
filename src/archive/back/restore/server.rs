//! Whose `restore_command` this is: what the data directory says of the server that asks.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use walrelay_proto::{SegSize, SystemId, TimelineId};

use super::dir_of;

/// Exit code for "there is no such file".
pub const MISSING: u8 = 1;
/// Exit code for "nobody can say" to a standby: it looks elsewhere and asks again, unless it is being promoted: then it is
/// the end, as [`MISSING`].
pub const NOT_NOW: u8 = 2;
/// Exit code for "nobody can say" and "it is broken" to a recovery, which stops, as for any code above 125.
pub const BROKEN: u8 = 200;

/// Behind the system identifier, two versions, the state, a time, the last checkpoint's place and where replay begins for it.
const TIMELINE_AT: usize = 48;

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
            assert_eq!(seg_size_of(dir.path()).map(SegSize::bytes), Some(1 << 20));
        }
    }
}
