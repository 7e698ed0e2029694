//! Certificates and revocation lists that the settings name, and those that the upstream shows: from when to when they are good.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::finding::{Finding, Findings, remedy, time};
use crate::archive::Place;
use crate::auth::version_1;
use crate::config::Config;
use crate::conninfo::{ConnInfo, RootCert, SslMode};

/// What ends within this is to be renewed, seconds.
const ENDS_SOON: i64 = 14 * 86_400;
/// In a file with more trusted certificates than these some have always ended: those of a whole system.
const FEW: usize = 8;

/// What a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A certificate, and those between it and the root: all have to be good.
    Chain,
    /// Certificates of which one has to be good.
    Trusted,
    /// Revoked certificates, and until when the lists are.
    Revoked,
}

/// A file that a setting names.
#[derive(Clone, Debug)]
pub(super) struct File {
    /// The setting.
    pub(super) setting: String,
    pub(super) kind: Kind,
    pub(super) path: PathBuf,
    /// It need not be there.
    pub(super) is_optional: bool,
}

/// From when to when something is good, seconds since 1970; a list that does not say is good for ever.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Dates {
    /// Whose.
    pub(super) subject: String,
    pub(super) from: i64,
    pub(super) to: i64,
}

/// A file that was read.
#[derive(Clone, Debug)]
pub(super) struct Paper {
    pub(super) file: File,
    pub(super) dates: Result<Vec<Dates>, String>,
}

/// All that these settings name.
pub(super) fn named(config: &Config) -> Vec<File> {
    let mut files = Vec::new();
    let mut add = |setting: &str, kind, path: Option<&PathBuf>, is_optional| {
        files.extend(path.map(|path| File {
            setting: setting.to_owned(),
            kind,
            path: path.clone(),
            is_optional,
        }));
    };
    if let Some(tls) = &config.tls {
        add("ssl-cert-file", Kind::Chain, Some(&tls.cert), false);
        add("ssl-ca-file", Kind::Trusted, tls.ca.as_ref(), false);
        add("ssl-crl-file", Kind::Revoked, tls.crl.as_ref(), false);
    }
    let ConnInfo { tls, .. } = &config.upstream;
    if tls.mode != SslMode::Disable {
        let root = match &tls.root_cert {
            Some(RootCert::File(path)) => Some(path),
            Some(RootCert::System) | None => None,
        };
        add("sslcert of --upstream", Kind::Chain, tls.cert.as_ref(), true);
        add("sslrootcert of --upstream", Kind::Trusted, root, true);
        add("sslcrl of --upstream", Kind::Revoked, tls.crl.as_ref(), true);
    }
    for target in &config.archive {
        let Place::Objects(place) = &target.place else { continue };
        let path = place.options.get("ca_file").map(PathBuf::from);
        add(&format!("ca-file of archive \"{}\"", target.name), Kind::Trusted, path.as_ref(), false);
    }
    files
}

/// Reads them; what need not be there and is not is left out. Blocks.
pub(super) fn read(files: Vec<File>) -> Vec<Paper> {
    let is_missing = |path: &Path| {
        std::fs::metadata(path)
            .is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
    };
    let wanted = files.into_iter().filter(|file| !(file.is_optional && is_missing(&file.path)));
    wanted.map(|file| Paper { dates: dates_in(file.kind, &file.path), file }).collect()
}

fn dates_in(kind: Kind, path: &Path) -> Result<Vec<Dates>, String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    let dates: Result<Vec<_>, String> = match kind {
        Kind::Chain | Kind::Trusted => CertificateDer::pem_slice_iter(&text)
            .map(|der| dates_of(&der.map_err(|error| error.to_string())?))
            .collect(),
        Kind::Revoked => CertificateRevocationListDer::pem_slice_iter(&text)
            .map(|der| dates_of_list(&der.map_err(|error| error.to_string())?))
            .collect(),
    };
    match dates {
        Ok(none) if none.is_empty() => Err("there is none in it".to_owned()),
        other => other,
    }
}

/// Those of a certificate.
pub(super) fn dates_of(der: &CertificateDer<'_>) -> Result<Dates, String> {
    let parsed = version_1::parse(der).map_err(|error| error.to_string())?;
    let validity = parsed.validity();
    Ok(Dates {
        subject: parsed.subject().to_string(),
        from: validity.not_before.timestamp(),
        to: validity.not_after.timestamp(),
    })
}

fn dates_of_list(der: &CertificateRevocationListDer<'_>) -> Result<Dates, String> {
    let (_, list) = CertificateRevocationList::from_der(der).map_err(|error| error.to_string())?;
    Ok(Dates {
        subject: list.issuer().to_string(),
        from: list.last_update().timestamp(),
        to: list.next_update().map_or(i64::MAX, |next| next.timestamp()),
    })
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// What of these files somebody should know; `None` if they have not been read in time.
pub(super) fn diagnose(papers: Option<&[Paper]>, now: i64) -> Vec<Finding> {
    let mut found = Findings::about("host");
    match papers {
        Some(papers) => papers.iter().for_each(|paper| judge(&mut found, paper, now)),
        None => {
            let text = "the certificates have not been read: a disk that one of them is on does not answer";
            found.error(
                "certificate",
                text,
                remedy(["look at the disks that --ssl-cert-file and its kin are on"]),
            );
        }
    }
    found.into_inner()
}

fn judge(found: &mut Findings, paper: &Paper, now: i64) {
    let File { setting, kind, path, .. } = &paper.file;
    let named = format!("{setting} \"{}\"", path.display());
    let all = match &paper.dates {
        Ok(all) => all,
        Err(error) => {
            let look = ["is it a PEM file, and may this user read it? run doctor as the relay's user"];
            return found.error("certificate", format!("{named} cannot be read: {error}"), remedy(look));
        }
    };
    let renew = "renew it, and RELOAD the relay";
    if *kind == Kind::Revoked {
        let list = |one: &Dates| format!("the revocation list of {} in {named}", one.subject);
        let renew = "fetch the issuer's newest list, and RELOAD the relay: until then every client certificate is refused";
        return all
            .iter()
            .for_each(|one| tell(found, "certificate_revocations", &list(one), one, now, renew));
    }
    let certificate = |one: &Dates| format!("the certificate of {} in {named}", one.subject);
    // Of many that are trusted one will do.
    let lasting = all.iter().max_by_key(|one| one.to).filter(|_| *kind == Kind::Trusted && all.len() > FEW);
    match lasting {
        Some(lasting) => tell(found, "certificate_dates", &certificate(lasting), lasting, now, renew),
        None => {
            all.iter().for_each(|one| tell(found, "certificate_dates", &certificate(one), one, now, renew))
        }
    }
}

/// What the upstream has shown.
pub(super) fn shown(found: &mut Findings, chain: &[Dates], now: i64) {
    for one in chain {
        let named = format!("the certificate of {} that it shows", one.subject);
        tell(found, "certificate_dates", &named, one, now, "renew it there, and have the server reload");
    }
}

fn tell(found: &mut Findings, code: &'static str, named: &str, one: &Dates, now: i64, renew: &str) {
    let Dates { from, to, .. } = *one;
    let renew = vec![renew.to_owned()];
    match () {
        () if now < from => {
            let text = format!("{named} is good only in {}", time((from - now) as f64));
            found.error(code, text, remedy(["compare the clocks"]));
        }
        () if now > to => {
            found.error(code, format!("{named} has ended {} ago", time((now - to) as f64)), renew);
        }
        () if to - now < ENDS_SOON => {
            found.warning(code, format!("{named} ends in {}", time((to - now) as f64)), renew);
        }
        () => found.ok(code, format!("{named} is good for {}", time((to - now) as f64))),
    }
}
