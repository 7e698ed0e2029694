//! Archive targets, looked at from here: there, mounted, writable, complete, fresh. What the relay itself says of them is with the relay.

use walrelay_proto::{SegSize, WalFileName};

use super::DISK;
use super::finding::{Finding, Findings, remedy, size};
use super::kept::Kept;
use crate::archive::probe::{self, Probed};
use crate::archive::{ArchiveError, Target};
use crate::config::Config;
use crate::status::{ArchiveStatus, Status};

/// Segments that may be on their way to a target of a running relay.
const ON_THE_WAY: u64 = 4;
/// A target that lacks more for longer than this falls behind, seconds.
const LATE: f64 = 60.0;

/// What it is compared with.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    pub(super) seg_size: Option<SegSize>,
    /// The newest segment that the relay has whole.
    pub(super) newest: Option<WalFileName>,
    /// What the running relay says of the target.
    pub(super) status: Option<ArchiveStatus>,
}

/// Looks at all targets, side by side.
pub(super) async fn look(config: &Config, kept: &Kept) -> Vec<Result<Option<Probed>, ArchiveError>> {
    let of = probe::Kept {
        data_dir: &config.store.data_dir,
        seg_size: kept.seg_size(),
        timeline: kept.state.timeline,
    };
    let looks = config.archive.iter().map(|target| probe::probe(target, of, DISK));
    futures_util::future::join_all(looks).await
}

/// What a target is compared with.
pub(super) fn expected(target: &Target, kept: &Kept, status: Option<&Status>) -> Expected {
    let seg_size = kept.seg_size();
    let running = status.and_then(|status| {
        let segments = status.disk.segments.iter().max_by_key(|it| it.timeline)?;
        WalFileName::parse(segments.last_complete.as_deref()?, seg_size?)
    });
    let of_target = |status: &Status| status.archive.iter().find(|it| it.name == target.name).cloned();
    Expected { seg_size, newest: running.or(kept.newest), status: status.and_then(of_target) }
}

/// What of that somebody should know.
pub(super) fn diagnose(
    target: &str,
    probed: &Result<Option<Probed>, ArchiveError>,
    expected: &Expected,
) -> Vec<Finding> {
    let mut found = Findings::about(format!("archive {target}"));
    match probed {
        // A start refuses it, and says why; so does "configuration".
        Err(error) => {
            let mend = [
                "mend what is named in [archive.NAME] (key file, profile, credentials, URL): walrelay check-config tells when it is good",
            ];
            found.error("archive_missing", error.to_string(), remedy(mend));
        }
        Ok(None) => found.ok("archive_command", "it is a command: only WAL shows whether it takes any"),
        Ok(Some(probed)) => looked_at(&mut found, probed, expected),
    }
    found.into_inner()
}

fn looked_at(found: &mut Findings, probed: &Probed, expected: &Expected) {
    if let Some(why) = &probed.missing {
        let look =
            ["make the directory for the relay's user, or mount its file system; nothing is archived before"];
        return found.error("archive_missing", format!("it cannot be used: {why}"), remedy(look));
    }
    if let Some(asked) = probed.silent {
        let text = format!("it has not answered within {} s ({asked})", DISK.as_secs());
        let look = [
            "is its server up (df, ls on its mount point; the endpoint of an object store)? WAL is kept until it is",
        ];
        found.error("archive_silent", text, remedy(look));
    }
    if let Some(why) = &probed.unwritable {
        let look = [
            "may this user write there, is it mounted read-only, is it full (df -h, df -i)? an object store: credentials, policy of the bucket",
            "run doctor as the relay's user: sudo -u walrelay walrelay doctor ...",
        ];
        found.error("archive_unwritable", format!("nothing can be written there: {why}"), remedy(look));
    }
    if let Some(why) = &probed.left_behind {
        let text = format!("what was written to try it (.walrelay-doctor) could not be removed: {why}");
        let look = [
            "let the relay delete there: it does that with pieces of unfinished segments, and with keep-age and keep-size",
        ];
        found.warning("archive_cannot_remove", text, remedy(look));
    }
    if let Some(why) = &probed.unreadable {
        let look = ["let the relay list and read there: it brings WAL back from its targets"];
        found.error("archive_unreadable", format!("it does not say what is there: {why}"), remedy(look));
    }
    hole(found, probed);
    freshness(found, probed, expected);
    if probed == &(Probed { next: probed.next, ..Probed::default() }) {
        found.ok("archive_target", "it is there, and can be written");
    }
}

fn hole(found: &mut Findings, probed: &Probed) {
    let (Some(first), Some(last)) = (probed.lacks.first(), probed.lacks.last()) else { return };
    let text = format!(
        "{} of the newest segments that it has taken are not there any more, from {first} to {last}: no recovery gets past them",
        probed.lacks.len()
    );
    let look = [
        "who removes files there? walrelay archive verify tells all that is missing; --heal fetches it from the other places that it is given",
        "take a base backup: the archive counts from there on",
    ];
    found.error("archive_hole", text, remedy(look));
}

fn freshness(found: &mut Findings, probed: &Probed, expected: &Expected) {
    let (Some(next), Some(newest), Some(seg_size)) = (probed.next, expected.newest, expected.seg_size) else {
        return;
    };
    if next.tli != newest.tli {
        return;
    }
    let lacking = (newest.segno.as_u64() + 1).saturating_sub(next.segno.as_u64());
    let bytes = size(lacking * seg_size.bytes());
    match &expected.status {
        None if lacking > 0 => {
            let text =
                format!("{lacking} segments that the relay has are not there ({bytes}), and it does not run");
            found.warning(
                "archive_behind",
                text,
                remedy(["systemctl start walrelay   -- it goes on where it was"]),
            );
        }
        // The relay says so itself.
        Some(status) if status.failing_since.is_some() || status.paused_since.is_some() => {}
        Some(status) if lacking > ON_THE_WAY && status.at_risk_seconds.is_none_or(|late| late > LATE) => {
            let text = format!("{lacking} segments that the relay has are not there yet ({bytes})");
            let look = [
                "it takes WAL slower than it comes: rate and concurrency of [archive.NAME], compression; the line to it, its disk",
            ];
            found.warning("archive_behind", text, remedy(look));
        }
        _ => {}
    }
}
