//! Logins to the relay's own database for those who ask in HTTP: a role and its password come with each question, and there is no
//! session.
//!
//! Rules, secrets, limits and rights are those of a login over the wire. What was found good holds for a moment, so that who asks each
//! few seconds costs neither a key derivation nor a question upstream each time; what was not counts against the address it came
//! from. A login that was good once may be tried whatever others at the same address have used up.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::local::{OWN_DATABASE, may_examine};
use super::login::{self, Caller, StartupRequest};
use super::{Access, Shared, parting};
use crate::auth::certificate::ClientCertificate;
use crate::auth::users::Secret;
use crate::console::not_for_you;
use crate::gateway::Role;
use crate::wire::{Peer, PgError, sqlstate};

/// For so long a login holds without being looked at again. What is known of roles is brought up to date as often.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// Logins remembered at most: as many as there can be watchers at a time, and some.
const MOST: usize = 64;

/// Who asks, and through what.
#[derive(Clone, Debug)]
pub struct Visitor {
    /// Where from.
    pub address: SocketAddr,
    /// It came encrypted.
    pub ssl: bool,
    /// That of the client, which has been checked.
    pub certificate: Option<ClientCertificate>,
}

/// Lets in who may look at the relay; clones are the same one.
#[derive(Clone)]
pub struct Doorkeeper {
    shared: Arc<Shared>,
    remembered: Arc<Remembered>,
}

impl fmt::Debug for Doorkeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorkeeper").finish_non_exhaustive()
    }
}

impl Doorkeeper {
    /// Fails if the operating system gives no random bytes.
    pub(super) fn new(shared: Arc<Shared>) -> Result<Doorkeeper, getrandom::Error> {
        Ok(Doorkeeper { shared, remembered: Arc::new(Remembered::new()?) })
    }

    /// Whether the role may examine the relay, if its password is right.
    ///
    /// # Errors
    /// As a login to the database `walrelay` is refused; [`sqlstate::INSUFFICIENT_PRIVILEGE`] if it is who it says and has not
    /// the right. The log has been told.
    pub async fn admit(&self, visitor: &Visitor, user: &str, password: &[u8]) -> Result<(), PgError> {
        let request = StartupRequest::of_sql(user, OWN_DATABASE);
        let limit = self.shared.config.rules.current().authentication_timeout;
        let looked = tokio::time::timeout(limit, self.look_at(visitor, &request, password)).await;
        let admitted = looked.unwrap_or_else(|_| {
            let text = "canceling authentication due to timeout";
            Err(PgError::fatal(sqlstate::QUERY_CANCELED, text))
        });
        if let Err(error) = &admitted {
            self.shared.config.counts.refused.note(parting::refused_with(&error.sqlstate));
            let (peer, user, sqlstate) = (visitor.address, &request.user, &*error.sqlstate);
            let (source, reason) = (Peer::Tcp(peer).source(), &error.message);
            match self.shared.repeats.note(source, reason, Instant::now()) {
                Some(count) => {
                    tracing::info!(%peer, user, sqlstate, count, "HTTP request refused: {reason}");
                }
                None => tracing::debug!(%peer, user, sqlstate, "HTTP request refused again: {reason}"),
            }
        }
        admitted
    }

    async fn look_at(
        &self,
        visitor: &Visitor,
        request: &StartupRequest,
        password: &[u8],
    ) -> Result<(), PgError> {
        let (shared, user) = (&self.shared, &request.user);
        // A start-up message could not say the second.
        if user.is_empty() || user.contains('\0') {
            let text = "no PostgreSQL user name specified";
            return Err(PgError::fatal(sqlstate::INVALID_AUTHORIZATION_SPECIFICATION, text));
        }
        let access = shared.access.current();
        let digest = self.remembered.digest(visitor, user, password);
        let known = shared.gateway.roles().current(user);
        let before = self.remembered.find(&digest, &access, &known, Instant::now());
        if before == Before::GoodStill {
            return self.judge(request, &known, &access);
        }
        let caller = Caller {
            peer: Peer::Tcp(visitor.address),
            ssl: visitor.ssl,
            certificate: visitor.certificate.as_ref(),
        };
        let source = caller.peer.source();
        if before == Before::Unknown {
            login::check_failures(shared, source)?;
        }
        let attempt = shared.failures.attempt(source);
        let role = login::authenticate_with(password, caller, shared, &access, request).await;
        let role = role.inspect_err(|_| self.remembered.forget(&digest))?;
        attempt.succeeded();
        self.remembered.note(digest, &access, &role, Instant::now());
        self.judge(request, &role, &access)
    }

    /// What a login that has succeeded is asked further, and what the console asks before it shows anything.
    fn judge(&self, request: &StartupRequest, role: &Role, access: &Access) -> Result<(), PgError> {
        let (in_auth_file, upstream) =
            (access.users.has(&request.user), self.shared.store.upstream_parameters());
        login::check_role(request, role, in_auth_file, &upstream)?;
        match may_examine(&self.shared, &request.user, role.attributes) {
            true => Ok(()),
            false => Err(not_for_you()),
        }
    }
}

/// What a login was before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Before {
    /// Good a moment ago, and nothing has changed.
    GoodStill,
    /// Good once by these rules: no guess, at least.
    Good,
    Unknown,
}

/// Logins that were good. Of passwords there is only what a key of this process makes of them.
struct Remembered {
    key: [u8; 32],
    logins: Mutex<Vec<Login>>,
}

struct Login {
    digest: [u8; 32],
    until: Instant,
    /// The rules and users that it was good by.
    access: Weak<Access>,
    /// The role's secret at that time.
    secret: Option<Secret>,
}

impl Remembered {
    fn new() -> Result<Remembered, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Remembered { key, logins: Mutex::default() })
    }

    /// Of all that a login depends on and the client has said.
    fn digest(&self, visitor: &Visitor, user: &str, password: &[u8]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        let ip = visitor.address.ip().to_canonical().to_string();
        let certificate = visitor.certificate.as_ref().map(|it| format!("{it:?}")).unwrap_or_default();
        for part in [ip.as_bytes(), certificate.as_bytes(), user.as_bytes(), password] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac.update(&[u8::from(visitor.ssl)]);
        mac.finalize().into_bytes().into()
    }

    /// What such a login was, by the rules that hold now. It is good still with the secret that the role has now.
    fn find(&self, digest: &[u8; 32], access: &Arc<Access>, role: &Role, now: Instant) -> Before {
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        let current = Arc::downgrade(access);
        logins.retain(|login| login.access.ptr_eq(&current));
        match logins.iter().find(|login| login.digest.ct_eq(digest).into()) {
            Some(login) if login.until > now && login.secret == role.secret => Before::GoodStill,
            Some(_) => Before::Good,
            None => Before::Unknown,
        }
    }

    fn forget(&self, digest: &[u8; 32]) {
        self.logins.lock().unwrap_or_else(PoisonError::into_inner).retain(|login| login.digest != *digest);
    }

    fn note(&self, digest: [u8; 32], access: &Arc<Access>, role: &Role, now: Instant) {
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        logins.retain(|login| login.digest != digest);
        // They were noted in this order.
        if logins.len() >= MOST {
            logins.remove(0);
        }
        let (until, access) = (now + REMEMBERED_FOR, Arc::downgrade(access));
        logins.push(Login { digest, until, access, secret: role.secret.clone() });
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::auth::hba::{Hba, Idents};
    use crate::auth::users::Users;

    fn access() -> Arc<Access> {
        Arc::new(Access {
            hba: Hba::builtin(),
            users: Users::parse(Path::new("users"), "").unwrap(),
            idents: Idents::default(),
            admin_roles: Vec::new(),
            monitor_roles: Vec::new(),
            tls: None,
        })
    }

    fn visitor(address: &str) -> Visitor {
        Visitor { address: address.parse().unwrap(), ssl: false, certificate: None }
    }

    #[test]
    fn a_login_is_remembered_for_a_moment_and_only_as_it_was() {
        let (remembered, access, now) = (Remembered::new().unwrap(), access(), Instant::now());
        let role = |secret: &str| Role { secret: Some(Secret::classify(secret)), ..Role::default() };
        let one = visitor("192.0.2.1:1000");
        let digest = remembered.digest(&one, "a", b"b");
        let find = |digest: &[u8; 32], role: &Role, now| remembered.find(digest, &access, role, now);
        assert_eq!(find(&digest, &role("x"), now), Before::Unknown);
        remembered.note(digest, &access, &role("x"), now);
        assert_eq!(find(&digest, &role("x"), now), Before::GoodStill);
        // From another port; but from no other address, with no other name or password, and not without encryption.
        assert_eq!(remembered.digest(&visitor("192.0.2.1:1001"), "a", b"b"), digest);
        let encrypted = Visitor { ssl: true, ..one.clone() };
        for (visitor, user, password) in [
            (&visitor("192.0.2.2:1000"), "a", "b"),
            (&encrypted, "a", "b"),
            (&one, "ab", ""),
            (&one, "a", "c"),
            (&one, "", "ab"),
        ] {
            let other = remembered.digest(visitor, user, password.as_bytes());
            assert_eq!(find(&other, &role("x"), now), Before::Unknown, "{visitor:?} {user} {password}");
        }
        // Looked at again when the password was changed, or the time is over.
        assert_eq!(find(&digest, &role("y"), now), Before::Good);
        assert_eq!(find(&digest, &Role::default(), now), Before::Good);
        assert_eq!(
            find(&digest, &role("x"), now + REMEMBERED_FOR - Duration::from_millis(1)),
            Before::GoodStill
        );
        assert_eq!(find(&digest, &role("x"), now + REMEMBERED_FOR), Before::Good);
    }

    #[test]
    fn other_rules_forget_all_and_there_are_never_many() {
        let (remembered, old, now) = (Remembered::new().unwrap(), access(), Instant::now());
        let (one, role) = (visitor("192.0.2.1:1000"), Role::default());
        let digest = |n: usize| remembered.digest(&one, &n.to_string(), b"b");
        (0..=MOST).for_each(|n| remembered.note(digest(n), &old, &role, now));
        let find = |n: usize, access: &Arc<Access>| remembered.find(&digest(n), access, &role, now);
        assert_eq!((find(0, &old), find(1, &old)), (Before::Unknown, Before::GoodStill));
        remembered.note(digest(MOST), &old, &role, now);
        assert_eq!(remembered.logins.lock().unwrap().len(), MOST, "the same one again is one");
        remembered.forget(&digest(2));
        assert_eq!((find(2, &old), find(3, &old)), (Before::Unknown, Before::GoodStill));
        let new = access();
        assert_eq!(find(1, &new), Before::Unknown);
        assert_eq!(find(1, &old), Before::Unknown, "nor when they come back");
    }
}
