//! Who it is (PostgreSQL: `auth.c`, `crypt.c`). Strangers get the same exchange as users who mistype.

use std::sync::Arc;

use bytes::Bytes;
use pgwire::messages::startup::Authentication;
use subtle::ConstantTimeEq;

use super::LoginError;
use super::request::{Kind, StartupRequest};
use crate::auth::hba::{Hba, Method, Request, Target};
use crate::auth::md5;
use crate::auth::scram::SCRAM_SHA_256;
use crate::auth::scram::server::{MockSecret, ScramServer, ServerError, ServerSecret};
use crate::auth::users::Secret;
use crate::conninfo::Credentials;
use crate::downstream::Shared;
use crate::gateway::Role;
use crate::wire::{Connection, Peer, PgError, sqlstate};

/// Succeeds when the client is who it says, with what it takes to log in elsewhere in its name; the answer so far
/// waits in the connection. `role` is what the upstream knows of the user; `--auth-file` goes before it.
pub(super) async fn authenticate(
    conn: &mut Connection,
    shared: &Arc<Shared>,
    request: &StartupRequest,
    role: &Role,
) -> Result<Credentials, LoginError> {
    let access = shared.access.current();
    let method = method(&access.hba, conn.peer(), request)?;
    let secret = access.users.get(&request.user).or(role.secret.as_ref()).cloned();
    let user = &request.user;
    match (method, secret) {
        (Method::Trust, _) => Ok(Credentials::None),
        (Method::Reject, _) => Err(refusal(rejects(request, conn.peer())).into()),
        (Method::Peer, _) => peer(conn.peer(), user).await.map(|()| Credentials::None),
        (Method::Password, secret) => password(conn, user, secret).await,
        (Method::Md5, Some(Secret::Md5(stored))) => md5_challenge(conn, user, &stored).await,
        (Method::Md5, Some(Secret::Password(password))) => {
            md5_challenge(conn, user, &md5::stored_hash(user, password.as_bytes())).await?;
            Ok(Credentials::Password(crate::conninfo::Secret::new(password)))
        }
        (Method::Md5 | Method::ScramSha256, secret) => scram(conn, user, secret, &shared.mock).await,
    }
}

fn method(hba: &Hba, peer: Peer, request: &StartupRequest) -> Result<Method, PgError> {
    let target = match request.kind {
        Kind::Physical => Target::Replication,
        Kind::Sql | Kind::Database => Target::Database(&request.database),
    };
    let judged = Request { ip: peer.ip(), ssl: false, target, user: &request.user };
    match hba.find(&judged).map(|rule| rule.method()) {
        Some(method) => Ok(method),
        None if hba.is_builtin() => Err(refusal(no_entry(request, peer)).with_hint(
            "Without --hba-file the relay lets in nobody from other machines; give it a file with lines as in pg_hba.conf.",
        )),
        None => Err(refusal(no_entry(request, peer))),
    }
}

fn rejects(request: &StartupRequest, peer: Peer) -> String {
    let (host, user, database) = (host(peer), &request.user, &request.database);
    match request.kind {
        Kind::Physical => format!(
            "pg_hba.conf rejects replication connection for host \"{host}\", user \"{user}\", no encryption"
        ),
        Kind::Sql | Kind::Database => format!(
            "pg_hba.conf rejects connection for host \"{host}\", user \"{user}\", database \"{database}\", no encryption"
        ),
    }
}

fn no_entry(request: &StartupRequest, peer: Peer) -> String {
    let (host, user, database) = (host(peer), &request.user, &request.database);
    match request.kind {
        Kind::Physical => format!(
            "no pg_hba.conf entry for replication connection from host \"{host}\", user \"{user}\", no encryption"
        ),
        Kind::Sql | Kind::Database => format!(
            "no pg_hba.conf entry for host \"{host}\", user \"{user}\", database \"{database}\", no encryption"
        ),
    }
}

fn host(peer: Peer) -> String {
    peer.ip().map_or_else(|| "[local]".to_owned(), |ip| ip.to_string())
}

fn refusal(text: String) -> PgError {
    PgError::fatal(sqlstate::INVALID_AUTHORIZATION_SPECIFICATION, text)
}

fn wrong_password(user: &str) -> LoginError {
    let text = format!("password authentication failed for user \"{user}\"");
    PgError::fatal(sqlstate::INVALID_PASSWORD, text).into()
}

async fn peer(peer: Peer, user: &str) -> Result<(), LoginError> {
    let Peer::Local { uid: Some(uid) } = peer else { return Err(wrong_peer(user)) };
    // The user database may be on another machine.
    let lookup = move || nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|found| found.name);
    let name = tokio::task::spawn_blocking(lookup).await.ok().flatten();
    if name.as_deref() == Some(user) { Ok(()) } else { Err(wrong_peer(user)) }
}

fn wrong_peer(user: &str) -> LoginError {
    let text = format!("Peer authentication failed for user \"{user}\"");
    PgError::fatal(sqlstate::INVALID_AUTHORIZATION_SPECIFICATION, text).into()
}

async fn password(
    conn: &mut Connection,
    user: &str,
    secret: Option<Secret>,
) -> Result<Credentials, LoginError> {
    conn.put(&Authentication::CleartextPassword);
    conn.flush().await?;
    let frame = conn.read_frame().await?;
    let password = frame.c_string().ok_or_else(malformed)?.to_vec();
    if password.is_empty() {
        return Err(empty_password());
    }
    let (name, given) = (user.to_owned(), crate::conninfo::Secret::new(password.clone()));
    let check = move || match secret {
        Some(Secret::Password(stored)) => stored.as_bytes().ct_eq(&password).into(),
        Some(Secret::Md5(stored)) => md5::verify_password(&stored, &name, &password),
        Some(Secret::Scram(verifier)) => verifier.matches_password(&password),
        None => false,
    };
    let proved = tokio::task::spawn_blocking(check).await.unwrap_or(false);
    if proved { Ok(Credentials::Password(given)) } else { Err(wrong_password(user)) }
}

async fn md5_challenge(conn: &mut Connection, user: &str, stored: &str) -> Result<Credentials, LoginError> {
    let mut salt = [0; 4];
    getrandom::fill(&mut salt).map_err(no_random)?;
    conn.put(&Authentication::MD5Password(salt.to_vec()));
    conn.flush().await?;
    let frame = conn.read_frame().await?;
    let response = frame.c_string().ok_or_else(malformed)?;
    if response.is_empty() {
        return Err(empty_password());
    }
    let proved = md5::verify_response(stored, salt, response);
    if proved {
        Ok(Credentials::Md5(crate::conninfo::Secret::new(stored)))
    } else {
        Err(wrong_password(user))
    }
}

async fn scram(
    conn: &mut Connection,
    user: &str,
    secret: Option<Secret>,
    mock: &MockSecret,
) -> Result<Credentials, LoginError> {
    let password = match &secret {
        Some(Secret::Password(password)) => Some(crate::conninfo::Secret::new(password.clone())),
        _ => None,
    };
    conn.put(&Authentication::SASL(vec![SCRAM_SHA_256.to_owned()]));
    conn.flush().await?;
    let frame = conn.read_frame().await?;
    let (mechanism, initial) = initial_response(&frame.body).ok_or_else(malformed)?;
    let server =
        scram_server(&mechanism, user, secret, mock).await.map_err(|error| refused_scram(error, user))?;
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

/// A password in clear text costs a key derivation, which is kept off the threads that serve others.
async fn scram_server(
    mechanism: &str,
    user: &str,
    secret: Option<Secret>,
    mock: &MockSecret,
) -> Result<ScramServer, ServerError> {
    let secret = match secret {
        Some(Secret::Password(password)) => {
            let (mechanism, user, mock) = (mechanism.to_owned(), user.to_owned(), mock.clone());
            let derive =
                move || ScramServer::from_password(&mechanism, &user, password.as_bytes(), None, &mock);
            return tokio::task::spawn_blocking(derive).await.unwrap_or(Err(ServerError::InvalidProof));
        }
        Some(Secret::Scram(verifier)) => ServerSecret::Verifier(verifier),
        Some(Secret::Md5(_)) | None => ServerSecret::Unknown,
    };
    ScramServer::new(mechanism, user, secret, None, mock)
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
        ServerError::InvalidProof => return wrong_password(user),
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

fn empty_password() -> LoginError {
    PgError::fatal(sqlstate::INVALID_PASSWORD, "empty password returned by client").into()
}

fn no_random(error: getrandom::Error) -> LoginError {
    PgError::fatal(sqlstate::INTERNAL_ERROR, format!("could not generate random MD5 salt: {error}")).into()
}
