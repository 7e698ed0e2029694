//! Whether the WAL of a server can be read, found out before anything is made there.
//!
//! Each major version of PostgreSQL has a magic number in its WAL pages. A version that is known writes exactly its
//! own. Of a newer one any higher number is taken, is kept with the cluster's state, and is the only one from then on.

use walrelay_proto::course::Identified;
use walrelay_proto::{
    Lsn, NEWEST_MAJOR, SegSize, TimelineId, is_newer_wal_magic, wal_magic_of, wal_magic_of_page,
    wal_magic_of_segment,
};

use super::failure::UpstreamError;
use super::introduce::Introduced;
use super::seam;
use crate::pg::{QueryError, UpstreamConnection};
use crate::store::{UpstreamParameters, Writer};

/// Length of the header of a page, and of a segment's first one.
const PAGE_HEADER: usize = 24;
const HEADER: usize = 40;

/// Fills in the magic number of the server's WAL pages: that which is kept; else, for a data directory that holds nothing
/// yet, that of the newest page, which is asked for without a slot.
///
/// # Errors
/// The number is not that of the server's version, or the version is too old.
pub(super) async fn learn(
    conn: &mut UpstreamConnection,
    writer: &Writer,
    identified: Identified,
    introduced: &mut Introduced,
) -> Result<(), UpstreamError> {
    let known = judge(&introduced.parameters, None)?;
    if let Some(kept) = writer.store().upstream_parameters().wal_magic {
        introduced.parameters.wal_magic = Some(kept);
        return Ok(());
    }
    introduced.parameters.wal_magic = match writer.position() {
        Some(_) => known,
        None => {
            let found = newest_magic(conn, introduced.identity.seg_size, identified).await?;
            judge(&introduced.parameters, found)?
        }
    };
    if introduced.parameters.wal_magic.is_some_and(is_newer_wal_magic) {
        tracing::warn!(
            "the upstream runs PostgreSQL {}, which is newer than the versions that walrelay {} knows (13 to \
             {NEWEST_MAJOR}): its WAL is checked by position, timeline, cluster, lengths and checksums only",
            introduced.parameters.status("server_version").unwrap_or("of a version it does not tell"),
            env!("CARGO_PKG_VERSION"),
        );
    }
    Ok(())
}

/// The number that the WAL of this server must have, as far as that is known; `found` is what it has.
fn judge(parameters: &UpstreamParameters, found: Option<u16>) -> Result<Option<u16>, UpstreamError> {
    let major = parameters.major_version();
    let refused = |problem: String| {
        let server =
            parameters.status("server_version").unwrap_or("of a version it does not tell").to_owned();
        Err(UpstreamError::Version { server, newest: NEWEST_MAJOR, problem })
    };
    match (wal_magic_of(major), found) {
        (Some(known), Some(found)) if known != found => {
            refused(format!("its pages have the number {found:04X}, those of {major} have {known:04X}"))
        }
        (Some(known), _) => Ok(Some(known)),
        // A server that does not tell its version is judged by its pages alone.
        (None, found) if major == 0 => Ok(found),
        (None, _) if major < NEWEST_MAJOR => refused("it is too old".to_owned()),
        (None, Some(found)) if !is_newer_wal_magic(found) => {
            refused(format!("its pages have the number {found:04X}, which is none of a newer version"))
        }
        (None, found) => Ok(found),
    }
}

/// From the newest page of which the server has the header, for a server goes on sending until it hears that this is enough,
/// and all of that has to come before the connection is free again. Behind an XLOG_SWITCH pages are all zeros: then from the
/// first page of the segment. `None` if the server has removed that.
async fn newest_magic(
    conn: &mut UpstreamConnection,
    size: SegSize,
    identified: Identified,
) -> Result<Option<u16>, UpstreamError> {
    let Identified { system_id, tli, xlogpos } = identified;
    let page = xlogpos.rewind(PAGE_HEADER as u64).page_start();
    let header = beginning(conn, page, PAGE_HEADER, tli).await?;
    if let Some(magic) = header.and_then(|header| wal_magic_of_page(&header, page)) {
        return Ok(Some(magic));
    }
    let segment = xlogpos.rewind(1).seg_start(size);
    let header = beginning(conn, segment, HEADER, tli).await?;
    Ok(header.and_then(|header| wal_magic_of_segment(&header, system_id)))
}

/// The WAL at `from`; `None` if the server has removed it.
async fn beginning(
    conn: &mut UpstreamConnection,
    from: Lsn,
    len: usize,
    tli: TimelineId,
) -> Result<Option<Vec<u8>>, UpstreamError> {
    let command = format!("START_REPLICATION {from} TIMELINE {tli}");
    match seam::fetch(conn, &command, from, len).await {
        Ok(wal) => Ok(Some(wal)),
        Err(QueryError::Server(error)) if error.is_wal_removed() => Ok(None),
        Err(source) => Err(UpstreamError::Command { command, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(version: &str, found: Option<u16>) -> Result<Option<u16>, String> {
        let status = vec![("server_version".to_owned(), version.to_owned())];
        let parameters = UpstreamParameters { status, ..UpstreamParameters::default() };
        judge(&parameters, found).map_err(|error| {
            assert!(error.is_permanent());
            error.to_string()
        })
    }

    #[test]
    fn a_known_version_writes_its_own_number() {
        for (version, magic) in [("13.22", 0xD106), ("17.10 (Debian 17.10-1)", 0xD116), ("19rc1", 0xD122)] {
            assert_eq!(check(version, Some(magic)), Ok(Some(magic)));
            assert_eq!(
                check(version, None),
                Ok(Some(magic)),
                "what cannot be looked at is taken as it should be"
            );
            check(version, Some(magic + 1)).unwrap_err();
        }
        let text = check("19beta2", Some(0xD121)).unwrap_err();
        assert!(text.starts_with("the upstream runs PostgreSQL 19beta2, but walrelay"), "{text}");
        assert!(
            text.contains("13 to 19 and later (its pages have the number D121, those of 19 have D122)"),
            "{text}"
        );
    }

    #[test]
    fn a_newer_version_writes_any_higher_number() {
        assert_eq!(check("20devel", Some(0xD130)), Ok(Some(0xD130)));
        assert_eq!(check("20devel", None), Ok(None));
        check("20devel", Some(0xD122)).unwrap_err();
    }

    #[test]
    fn an_old_version_is_refused_and_one_that_is_not_told_is_looked_at() {
        check("12.22", None).unwrap_err();
        check("9.6.24", Some(0xD093)).unwrap_err();
        assert_eq!(check("", Some(0xD118)), Ok(Some(0xD118)));
    }
}
