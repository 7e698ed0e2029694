//! Who it is (PostgreSQL: `auth.c`, `crypt.c`). Strangers get the same exchange as users who mistype.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pgwire::messages::startup::Authentication;
use subtle::ConstantTimeEq;

use super::request::{Kind, StartupRequest};
use super::{LoginError, names};
use crate::auth::certificate::ClientCertificate;
use crate::auth::hba::{
    ClientCert, ClientName, Fact, Facts, Found, Hba, Idents, Method, Request, Rule, Target,
};
use crate::auth::md5;
use crate::auth::scram::DEFAULT_ITERATIONS;
use crate::auth::scram::server::{MockSecret, ScramServer, ServerError, ServerSecret, mechanisms};
use crate::auth::users::Secret;
use crate::conninfo::Credentials;
use crate::downstream::{Access, Shared};
use crate::gateway::Role;
use crate::lane::Lane;
use crate::wire::{Connection, Peer, PgError, TlsSession, sqlstate};

/// Who it is.
pub(super) struct Authenticated {
    /// What it takes to log in elsewhere in its name.
    pub(super) credentials: Credentials,
    /// What the upstream knows of the role.
    pub(super) role: Role,
    /// It has a line in `--auth-file`.
    pub(super) in_auth_file: bool,
}

/// Who asks, and through what.
#[derive(Clone, Copy)]
pub(in crate::downstream) struct Caller<'a> {
    pub(in crate::downstream) peer: Peer,
    /// It came encrypted.
    pub(in crate::downstream) ssl: bool,
    /// That of the client, which has been checked.
    pub(in crate::downstream) certificate: Option<&'a ClientCertificate>,
}

impl<'a> From<&'a Connection> for Caller<'a> {
    fn from(conn: &'a Connection) -> Caller<'a> {
        let certificate = conn.tls().and_then(TlsSession::client_certificate);
        Caller { peer: conn.peer(), ssl: conn.tls().is_some(), certificate }
    }
}

/// Succeeds when the client is who it says; of secrets, those of `--auth-file` go before the upstream's. The answer so far waits
/// in the connection.
pub(super) async fn authenticate(
    conn: &mut Connection,
    shared: &Arc<Shared>,
    request: &StartupRequest,
) -> Result<Authenticated, LoginError> {
    let access = shared.access.current();
    let (rule, role) = begin((&*conn).into(), shared, &access, request).await?;
    let credentials = by_method(conn, shared, &access, rule, request, &role).await?;
    let role = finish((&*conn).into(), shared, &access, rule, request, &role)?;
    Ok(Authenticated { credentials, role, in_auth_file: access.users.has(&request.user) })
}

/// The same for who has sent a password with the question and is asked for nothing more; what the upstream knows of the role.
pub(in crate::downstream) async fn authenticate_with(
    password: &[u8],
    caller: Caller<'_>,
    shared: &Shared,
    access: &Access,
    request: &StartupRequest,
) -> Result<Role, PgError> {
    let (rule, role) = begin(caller, shared, access, request).await?;
    let (user, method) = (&request.user, rule.method());
    match method {
        Method::Trust | Method::Cert => {}
        Method::Reject => return Err(refusal(rejects(request, caller))),
        Method::Peer => peer(caller.peer, access, rule, user, &role).await?,
        Method::Password | Method::Md5 | Method::ScramSha256 => {
            let secret = access.users.get(user).or(role.secret.as_ref()).cloned();
            // As on the wire, where such a hash does not do for that method.
            let fits = |secret: &Secret| method != Method::ScramSha256 || !matches!(secret, Secret::Md5(_));
            let stranger = Stranger::among(shared, access);
            verify(user, password.to_vec(), secret.filter(fits), &stranger).await?;
        }
    }
    finish(caller, shared, access, rule, request, &role)
}

/// The line that decides, and what is known of the role.
async fn begin<'a>(
    caller: Caller<'_>,
    shared: &Shared,
    access: &'a Access,
    request: &StartupRequest,
) -> Result<(&'a Rule, Role), PgError> {
    let rule = rule(&access.hba, caller, shared, request).await?;
    if rule.client_cert().is_some() && caller.certificate.is_none() {
        return Err(refusal("connection requires a valid client certificate".to_owned()));
    }
    // The upstream is asked only about those whom the rules let try.
    let role = match rule.method() {
        Method::Reject => Role::default(),
        _ => {
            let listed = access.users.has(&request.user);
            shared.gateway.roles().look_up(&request.user, caller.peer.source(), listed).await
        }
    };
    Ok((rule, role))
}

/// What there is to be looked at once the secret was right; what is known of the role now.
fn finish(
    caller: Caller<'_>,
    shared: &Shared,
    access: &Access,
    rule: &Rule,
    request: &StartupRequest,
    role: &Role,
) -> Result<Role, PgError> {
    if rule.client_cert() == Some(ClientCert::VerifyFull) {
        check_certificate(caller, shared, &access.idents, rule, &request.user, role)?;
    }
    // An answer that came too late for the beginning counts now.
    let now = shared.gateway.roles().current(&request.user);
    if needs_secret(rule.method()) && access.users.get(&request.user).is_none() && now.secret != role.secret {
        return Err(wrong_password(&request.user));
    }
    names::has_logged_in(caller.peer.source());
    Ok(now)
}

fn needs_secret(method: Method) -> bool {
    matches!(method, Method::Password | Method::Md5 | Method::ScramSha256)
}

async fn by_method(
    conn: &mut Connection,
    shared: &Arc<Shared>,
    access: &Access,
    rule: &Rule,
    request: &StartupRequest,
    role: &Role,
) -> Result<Credentials, LoginError> {
    let secret = access.users.get(&request.user).or(role.secret.as_ref()).cloned();
    let user = &request.user;
    let stranger = Stranger::among(shared, access);
    match (rule.method(), secret) {
        // PG: a certificate is checked like trust with clientcert=verify-full.
        (Method::Trust | Method::Cert, _) => Ok(Credentials::None),
        (Method::Reject, _) => Err(refusal(rejects(request, (&*conn).into())).into()),
        (Method::Peer, _) => {
            peer(conn.peer(), access, rule, user, role).await?;
            Ok(Credentials::None)
        }
        (Method::Password, secret) => password(conn, user, secret, &stranger).await,
        (Method::Md5, Some(Secret::Md5(stored))) => md5_challenge(conn, user, &stored).await,
        (Method::Md5, Some(Secret::Password(password))) => {
            md5_challenge(conn, user, &md5::stored_hash(user, password.as_bytes())).await?;
            Ok(Credentials::Password(crate::conninfo::Secret::new(password)))
        }
        (Method::Md5, None) if stranger.md5 => {
            md5_challenge(conn, user, &md5::stored_hash(user, stranger.mock.to_text().as_bytes())).await?;
            Err(wrong_password(user).into())
        }
        (Method::Md5 | Method::ScramSha256, secret) => scram(conn, user, secret, &stranger).await,
    }
}

/// How to treat a user who does not exist like those who do, at the same cost.
struct Stranger {
    mock: MockSecret,
    /// Some users' keys are derived at each login, from a password in clear text.
    derives: bool,
    /// Where the method is `md5`, most users get an MD5 challenge.
    md5: bool,
}

impl Stranger {
    /// Like most of those who are known; if nobody is, like those whose password is set upstream now (PG:
    /// `CheckPWChallengeAuth`, which looks at `password_encryption` only).
    fn among(shared: &Shared, access: &Access) -> Stranger {
        let kinds = shared.gateway.roles().kinds().with(access.users.kinds());
        let upstream = shared.store.upstream_parameters();
        let set_now = || upstream.status("scram_iterations").and_then(|text| text.parse().ok());
        let iterations = kinds.iterations().or_else(set_now).unwrap_or(DEFAULT_ITERATIONS);
        let encryption = upstream.settings.get("password_encryption");
        Stranger {
            mock: shared.mock.with_iterations(iterations),
            derives: access.users.has_passwords(),
            md5: kinds.mostly_md5().unwrap_or_else(|| encryption.is_some_and(|method| method == "md5")),
        }
    }
}

/// The line that decides. What it depends on is asked for when a line does: host names, memberships.
async fn rule<'a>(
    hba: &'a Hba,
    caller: Caller<'_>,
    shared: &Shared,
    request: &StartupRequest,
) -> Result<&'a Rule, PgError> {
    let target = match request.kind {
        Kind::Physical => Target::Replication,
        Kind::Sql | Kind::Database => Target::Database(&request.database),
    };
    let judged = Request { ip: caller.peer.ip(), ssl: caller.ssl, target, user: &request.user };
    let mut facts = Facts::default();
    loop {
        match hba.find(&judged, &facts) {
            Found::Rule(rule) => return Ok(rule),
            Found::Nothing if hba.is_builtin() => return Err(refusal(no_entry(request, caller)).with_hint(
                "Without --hba-file the relay lets in nobody from other machines; give it a file with lines as in pg_hba.conf.",
            )),
            Found::Nothing => return Err(refusal(no_entry(request, caller))),
            Found::Unknown(Fact::HostName) => facts.host_name = Some(host_name(judged.ip).await?),
            Found::Unknown(Fact::Membership) => facts.member_of = Some(memberships(caller, shared, &request.user).await?),
        }
    }
}

/// As with memberships: a line that rejects must not be skipped because nobody had time to look.
async fn host_name(ip: Option<IpAddr>) -> Result<Option<String>, PgError> {
    let unknown = "the host name of the client's address cannot be looked up";
    names::host_name(ip).await.ok_or_else(|| PgError::fatal(sqlstate::CANNOT_CONNECT_NOW, unknown))
}

/// Nobody gets past a line of which it is not known whether it is for them.
async fn memberships(caller: Caller<'_>, shared: &Shared, user: &str) -> Result<Vec<String>, PgError> {
    let role = shared.gateway.roles().look_up(user, caller.peer.source(), false).await;
    role.memberships().ok_or_else(|| {
        let text = format!("the upstream server cannot be asked which roles \"{user}\" belongs to");
        PgError::fatal(sqlstate::CANNOT_CONNECT_NOW, text)
    })
}

/// PG: `CheckCertAuth`. What does not fit is told in the log only; the client learns what it would for a wrong
/// password.
fn check_certificate(
    caller: Caller<'_>,
    shared: &Shared,
    idents: &Idents,
    rule: &Rule,
    user: &str,
    role: &Role,
) -> Result<(), PgError> {
    let name = caller.certificate.and_then(|certificate| match rule.client_name() {
        ClientName::CommonName => certificate.common_name.as_deref(),
        ClientName::DistinguishedName => Some(certificate.distinguished_name.as_str()),
    });
    let name = name.filter(|name| !name.is_empty());
    let member_of = role.memberships().unwrap_or_default();
    if name.is_some_and(|name| idents.permit(rule.map(), user, &member_of, name)) {
        return Ok(());
    }
    if let Some(count) = shared.repeats.note(caller.peer.source(), "certificate", Instant::now()) {
        let peer = caller.peer;
        tracing::info!(%peer, user, certificate = name, count, "client certificate is not one of this user's");
    }
    Err(match rule.method() {
        Method::Cert => refusal(format!("certificate authentication failed for user \"{user}\"")),
        Method::Trust => refusal(format!("\"trust\" authentication failed for user \"{user}\"")),
        Method::Password | Method::Md5 | Method::ScramSha256 => wrong_password(user),
        Method::Reject | Method::Peer => refusal(format!("authentication failed for user \"{user}\"")),
    })
}

fn rejects(request: &StartupRequest, caller: Caller<'_>) -> String {
    let (host, user, database) = (host(caller.peer), &request.user, &request.database);
    let encryption = encryption(caller);
    match request.kind {
        Kind::Physical => format!(
            "pg_hba.conf rejects replication connection for host \"{host}\", user \"{user}\", {encryption}"
        ),
        Kind::Sql | Kind::Database => format!(
            "pg_hba.conf rejects connection for host \"{host}\", user \"{user}\", database \"{database}\", {encryption}"
        ),
    }
}

fn no_entry(request: &StartupRequest, caller: Caller<'_>) -> String {
    let (host, user, database) = (host(caller.peer), &request.user, &request.database);
    let encryption = encryption(caller);
    match request.kind {
        Kind::Physical => format!(
            "no pg_hba.conf entry for replication connection from host \"{host}\", user \"{user}\", {encryption}"
        ),
        Kind::Sql | Kind::Database => format!(
            "no pg_hba.conf entry for host \"{host}\", user \"{user}\", database \"{database}\", {encryption}"
        ),
    }
}

fn encryption(caller: Caller<'_>) -> &'static str {
    if caller.ssl { "SSL encryption" } else { "no encryption" }
}

fn host(peer: Peer) -> String {
    peer.ip().map_or_else(|| "[local]".to_owned(), |ip| ip.to_string())
}

fn refusal(text: String) -> PgError {
    PgError::fatal(sqlstate::INVALID_AUTHORIZATION_SPECIFICATION, text)
}

fn wrong_password(user: &str) -> PgError {
    let text = format!("password authentication failed for user \"{user}\"");
    PgError::fatal(sqlstate::INVALID_PASSWORD, text)
}

/// The user database may be on another machine, and hang.
static USERS: LazyLock<Lane> = LazyLock::new(|| Lane::new("user-names", Duration::from_secs(5)));

async fn peer(peer: Peer, access: &Access, rule: &Rule, user: &str, role: &Role) -> Result<(), PgError> {
    let Peer::Local { uid: Some(uid) } = peer else { return Err(wrong_peer(user)) };
    let lookup = move || nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|found| found.name);
    let name = USERS.run(0, lookup).await.unwrap_or_else(|reason| {
        tracing::warn!(uid, "could not look up a client's name in the user database: {reason}");
        None
    });
    let member_of = role.memberships().unwrap_or_default();
    let permitted = name.is_some_and(|name| access.idents.permit(rule.map(), user, &member_of, &name));
    if permitted { Ok(()) } else { Err(wrong_peer(user)) }
}

fn wrong_peer(user: &str) -> PgError {
    let text = format!("Peer authentication failed for user \"{user}\"");
    PgError::fatal(sqlstate::INVALID_AUTHORIZATION_SPECIFICATION, text)
}

async fn password(
    conn: &mut Connection,
    user: &str,
    secret: Option<Secret>,
    stranger: &Stranger,
) -> Result<Credentials, LoginError> {
    conn.put(&Authentication::CleartextPassword);
    conn.flush().await?;
    let frame = conn.read_frame().await?;
    let password = frame.c_string().ok_or_else(malformed)?.to_vec();
    verify(user, password.clone(), secret, stranger).await?;
    Ok(Credentials::Password(crate::conninfo::Secret::new(password)))
}

/// Whether the password is that of the user, found out where a key derivation holds up nobody.
async fn verify(
    user: &str,
    password: Vec<u8>,
    secret: Option<Secret>,
    stranger: &Stranger,
) -> Result<(), PgError> {
    if password.is_empty() {
        return Err(empty_password());
    }
    let (mock, name) = (stranger.mock.clone(), user.to_owned());
    let check = move || proves(secret, &name, &password, &mock);
    let proved = tokio::task::spawn_blocking(check).await.unwrap_or(false);
    if proved { Ok(()) } else { Err(wrong_password(user)) }
}

/// Whether it is the password. That takes as long for everybody, or the time would tell who exists, and whose secret is no verifier.
fn proves(secret: Option<Secret>, user: &str, password: &[u8], mock: &MockSecret) -> bool {
    let derived = |proved: bool| mock.check_password(user, b"") | proved;
    match secret {
        Some(Secret::Password(stored)) => derived(stored.as_bytes().ct_eq(password).into()),
        Some(Secret::Md5(stored)) => derived(md5::verify_password(&stored, user, password)),
        Some(Secret::Scram(verifier)) => verifier.matches_password(password),
        None => mock.check_password(user, password),
    }
}

async fn md5_challenge(conn: &mut Connection, user: &str, stored: &str) -> Result<Credentials, LoginError> {
    let mut salt = [0; 4];
    getrandom::fill(&mut salt).map_err(no_random)?;
    conn.put(&Authentication::MD5Password(salt.to_vec()));
    conn.flush().await?;
    let frame = conn.read_frame().await?;
    let response = frame.c_string().ok_or_else(malformed)?;
    if response.is_empty() {
        return Err(empty_password().into());
    }
    let proved = md5::verify_response(stored, salt, response);
    if proved {
        Ok(Credentials::Md5(crate::conninfo::Secret::new(stored)))
    } else {
        Err(wrong_password(user).into())
    }
}

async fn scram(
    conn: &mut Connection,
    user: &str,
    secret: Option<Secret>,
    stranger: &Stranger,
) -> Result<Credentials, LoginError> {
    let password = match &secret {
        Some(Secret::Password(password)) => Some(crate::conninfo::Secret::new(password.clone())),
        _ => None,
    };
    let end_point = conn.tls().and_then(TlsSession::end_point).map(<[u8]>::to_vec);
    let offered = mechanisms(end_point.is_some()).iter().map(|&name| name.to_owned()).collect();
    conn.put(&Authentication::SASL(offered));
    conn.flush().await?;
    let frame = conn.read_frame().await?;
    let (mechanism, initial) = initial_response(&frame.body).ok_or_else(malformed)?;
    let server = scram_server(mechanism, user, secret, end_point, stranger).await;
    let server = server.map_err(|error| refused_scram(error, user))?;
    let first = match initial {
        Some(first) => first,
        None => exchange(conn, b"").await?,
    };
    let challenged = server.client_first(&first).map_err(|error| refused_scram(error, user))?;
    let last = exchange(conn, challenged.message()).await?;
    let accepted = challenged.client_final(&last).map_err(|error| refused_scram(error, user))?;
    conn.put(&Authentication::SASLFinal(Bytes::from(accepted.message)));
    // The password itself is good for whatever the upstream asks for.
    Ok(password.map_or(Credentials::Scram(accepted.keys), Credentials::Password))
}

/// A password in clear text costs a key derivation, which is kept off the threads that serve others. Where some
/// users' do, everybody's does, or the time would tell who exists.
async fn scram_server(
    mechanism: String,
    user: &str,
    secret: Option<Secret>,
    end_point: Option<Vec<u8>>,
    stranger: &Stranger,
) -> Result<ScramServer, ServerError> {
    let (user, mock, derives) = (user.to_owned(), stranger.mock.clone(), stranger.derives);
    let begin = move || {
        let secret = match secret {
            Some(Secret::Password(password)) => {
                return ScramServer::from_password(&mechanism, &user, password.as_bytes(), end_point, &mock);
            }
            Some(Secret::Scram(verifier)) => ServerSecret::Verifier(verifier),
            Some(Secret::Md5(_)) | None => ServerSecret::Unknown,
        };
        if derives {
            mock.check_password(&user, b"");
        }
        ScramServer::new(&mechanism, &user, secret, end_point, &mock)
    };
    tokio::task::spawn_blocking(begin).await.unwrap_or(Err(ServerError::InvalidProof))
}

async fn exchange(conn: &mut Connection, challenge: &[u8]) -> Result<Vec<u8>, LoginError> {
    conn.put(&Authentication::SASLContinue(Bytes::copy_from_slice(challenge)));
    conn.flush().await?;
    Ok(conn.read_frame().await?.body.to_vec())
}

/// SASLInitialResponse: a mechanism, and perhaps data behind its length.
fn initial_response(body: &[u8]) -> Option<(String, Option<Vec<u8>>)> {
    let end = body.iter().position(|&b| b == 0)?;
    let mechanism = String::from_utf8_lossy(&body[..end]).into_owned();
    let (len, data) = body[end + 1..].split_first_chunk()?;
    match i32::from_be_bytes(*len) {
        -1 => data.is_empty().then_some((mechanism, None)),
        len => (usize::try_from(len).ok()? == data.len()).then(|| (mechanism, Some(data.to_vec()))),
    }
}

fn refused_scram(error: ServerError, user: &str) -> LoginError {
    let sqlstate = match &error {
        ServerError::InvalidProof => return wrong_password(user).into(),
        ServerError::AuthorizationIdentity | ServerError::MandatoryExtension => {
            sqlstate::FEATURE_NOT_SUPPORTED
        }
        ServerError::BindingDowngrade | ServerError::BindingMismatch => {
            sqlstate::INVALID_AUTHORIZATION_SPECIFICATION
        }
        ServerError::Random(_) => sqlstate::INTERNAL_ERROR,
        ServerError::InvalidMechanism
        | ServerError::Malformed { .. }
        | ServerError::UnsupportedBindingType { .. }
        | ServerError::UnexpectedBinding
        | ServerError::NonPrintableNonce
        | ServerError::NonceMismatch => sqlstate::PROTOCOL_VIOLATION,
    };
    let refusal = PgError::fatal(sqlstate, error.to_string());
    match error.detail() {
        Some(detail) => refusal.with_detail(detail).into(),
        None => refusal.into(),
    }
}

fn malformed() -> LoginError {
    PgError::fatal(sqlstate::PROTOCOL_VIOLATION, "invalid password packet size").into()
}

fn empty_password() -> PgError {
    PgError::fatal(sqlstate::INVALID_PASSWORD, "empty password returned by client")
}

fn no_random(error: getrandom::Error) -> LoginError {
    PgError::fatal(sqlstate::INTERNAL_ERROR, format!("could not generate random MD5 salt: {error}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scram::Verifier;

    #[test]
    fn each_kind_of_secret_costs_one_derivation() {
        let mock = MockSecret::random().unwrap();
        let verifier = Verifier::from_password(b"right", b"salt of this one", DEFAULT_ITERATIONS);
        let secrets = [
            Some(Secret::Password("right".into())),
            Some(Secret::Md5(md5::stored_hash("u", b"right"))),
            Some(Secret::Scram(verifier)),
            None,
        ];
        for secret in secrets {
            for password in ["right", "wrong"] {
                let before = crate::auth::scram::derivations();
                let proved = proves(secret.clone(), "u", password.as_bytes(), &mock);
                assert_eq!(proved, secret.is_some() && password == "right", "{secret:?}");
                assert_eq!(crate::auth::scram::derivations() - before, 1, "{secret:?}");
            }
        }
    }
}
