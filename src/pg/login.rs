//! From StartupMessage to the first ReadyForQuery (PG: `PQconnectPoll`, `fe-auth.c`).

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

use super::aside;
use super::connection::UpstreamConnection;
use super::error::{ConnectError, ServerError};
use super::frame::{self, FrameError, MAX_LOGIN_MESSAGE};
use super::message::{self, Authentication, Malformed};
use super::stream::Stream;
use super::tls;
use crate::auth::md5;
use crate::auth::scram::client::{ClientBinding, ClientProved, ClientSecret, ScramClient};
use crate::auth::scram::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS};
use crate::conninfo::{
    AuthMethod, ChannelBinding, ConnInfo, HostSpec, Purpose, REPLICATION_DATABASE, Secret, TargetSessionAttrs,
};

/// A login that failed.
pub(super) struct Failure {
    pub(super) error: ConnectError,
    /// Whether the server said no before it knew who we are, and might say yes with or without encryption.
    pub(super) negotiable: bool,
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Failure {
        Failure { error, negotiable: false }
    }
}

/// Logs in over a fresh stream.
pub(super) async fn log_in(
    stream: Stream,
    info: &ConnInfo,
    host: &HostSpec,
) -> Result<UpstreamConnection, Failure> {
    let mut login = Login {
        info,
        host,
        connection: UpstreamConnection {
            stream,
            buffer: BytesMut::new(),
            parameters: Vec::new(),
            notices: Vec::new(),
            backend_pid: None,
            cancel_key: Bytes::new(),
            busy: false,
        },
    };
    login.send(&message::startup(&startup_parameters(info))).await?;
    login.authenticate().await?;
    login.wait_until_ready().await?;
    login.check_session().await?;
    Ok(login.connection)
}

/// PG: `build_startup_packet` and what libpqwalreceiver adds.
fn startup_parameters(info: &ConnInfo) -> Vec<(&str, &[u8])> {
    let mut parameters = vec![("user", info.user.as_bytes())];
    if let Purpose::Session(chosen) = &info.purpose {
        parameters.extend(chosen.iter().map(|(name, value)| (name.as_str(), &value[..])));
        return parameters;
    }
    parameters.extend([("database", REPLICATION_DATABASE.as_bytes()), ("replication", b"true")]);
    if let Some(options) = &info.options {
        parameters.push(("options", options.as_bytes()));
    }
    parameters.push(("application_name", info.application_name.as_bytes()));
    if let Some(encoding) = &info.client_encoding {
        parameters.push(("client_encoding", encoding.as_bytes()));
    }
    parameters
}

struct Login<'a> {
    info: &'a ConnInfo,
    host: &'a HostSpec,
    connection: UpstreamConnection,
}

/// How far the server's questions have been answered.
enum Progress {
    /// Nothing asked yet.
    Start,
    /// A password is sent.
    Answered,
    /// client-first-message is sent.
    ScramStarted(ScramClient, Bound),
    /// The proof is sent; the server has not proved itself.
    ScramProved(ClientProved, Bound),
    /// Both sides have proved themselves.
    ScramDone(Bound),
}

/// Whether SCRAM was bound to the TLS channel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bound {
    Yes,
    No,
}

impl Login<'_> {
    async fn send(&mut self, message: &[u8]) -> Result<(), ConnectError> {
        self.connection.stream.write_all(message).await.map_err(ConnectError::Io)?;
        self.connection.stream.flush().await.map_err(ConnectError::Io)
    }

    async fn read(&mut self) -> Result<(u8, Bytes), ConnectError> {
        let connection = &mut self.connection;
        let frame = frame::read(&mut connection.stream, &mut connection.buffer, MAX_LOGIN_MESSAGE).await;
        frame.map_err(|error| match error {
            FrameError::Closed => ConnectError::Closed,
            FrameError::Io(error) => ConnectError::Io(error),
            FrameError::Length { kind, len } => {
                protocol(format!("message of type '{}' with length {len}", kind.escape_ascii()))
            }
        })
    }

    /// Answers the server's questions up to AuthenticationOk.
    async fn authenticate(&mut self) -> Result<(), Failure> {
        let mut progress = Progress::Start;
        loop {
            let (kind, body) = self.read().await?;
            match kind {
                b'R' => {
                    let request = decode(kind, Authentication::decode(body))?;
                    match self.answer(request, progress).await? {
                        Some(next) => progress = next,
                        None => return Ok(()),
                    }
                }
                b'E' => {
                    let error = decode(kind, message::server_error(body))?;
                    return Err(Failure { error: ConnectError::Server(error), negotiable: true });
                }
                b'N' => self.note(kind, body)?,
                b'v' => check_version(decode(kind, message::negotiate_protocol_version(body))?)?,
                other => return Err(unexpected(other).into()),
            }
        }
    }

    /// The state after the answer, `None` when the server is satisfied, and so are we.
    async fn answer(
        &mut self,
        request: Authentication,
        progress: Progress,
    ) -> Result<Option<Progress>, ConnectError> {
        let next = match (request, progress) {
            (Authentication::Ok, progress) => return self.check_accepted(&progress).map(|()| None),
            (Authentication::CleartextPassword, Progress::Start) => {
                self.check_method(AuthMethod::Password, "a cleartext password")?;
                let password = self.password().await?;
                self.send(&message::password(password.expose())).await?;
                Progress::Answered
            }
            (Authentication::Md5Password { salt }, Progress::Start) => {
                self.check_method(AuthMethod::Md5, "a hashed password")?;
                let response = self.md5_response(salt).await?;
                self.send(&message::password(response.as_bytes())).await?;
                Progress::Answered
            }
            (Authentication::Sasl { mechanisms }, Progress::Start) => self.start_scram(&mechanisms).await?,
            (Authentication::SaslContinue(challenge), Progress::ScramStarted(client, bound)) => {
                // The key derivation may take long, by the server's choice; other tasks must not wait for it.
                let proved = tokio::task::spawn_blocking(move || client.server_first(&challenge)).await;
                let proved = proved
                    .map_err(|error| ConnectError::Io(std::io::Error::other(error)))?
                    .map_err(ConnectError::Scram)?;
                self.send(&message::sasl_response(&proved.message())).await?;
                Progress::ScramProved(proved, bound)
            }
            (Authentication::SaslFinal(signature), Progress::ScramProved(proved, bound)) => {
                proved.server_final(&signature).map_err(ConnectError::Scram)?;
                Progress::ScramDone(bound)
            }
            (Authentication::Other(code), _) => {
                return Err(ConnectError::UnsupportedMethod { method: method_name(code) });
            }
            _ => return Err(protocol("authentication request out of order".to_owned())),
        };
        Ok(Some(next))
    }

    /// PG: `pg_SASL_init`.
    async fn start_scram(&mut self, mechanisms: &[String]) -> Result<Progress, ConnectError> {
        let (mechanism, binding) = self.choose_mechanism(mechanisms)?;
        self.require(AuthMethod::ScramSha256, || format!("server requested {mechanism} authentication"))?;
        let secret = match self.info.scram_keys {
            Some(keys) => ClientSecret::Keys(keys),
            None => ClientSecret::Password(self.password().await?.expose().to_vec()),
        };
        let bound = if mechanism == SCRAM_SHA_256_PLUS { Bound::Yes } else { Bound::No };
        let client = ScramClient::new(secret, binding).map_err(ConnectError::Scram)?;
        self.send(&message::sasl_initial_response(mechanism, &client.message())).await?;
        Ok(Progress::ScramStarted(client, bound))
    }

    fn choose_mechanism(&self, mechanisms: &[String]) -> Result<(&'static str, ClientBinding), ConnectError> {
        let wanted = self.info.channel_binding;
        let offered = |name: &str| mechanisms.iter().any(|mechanism| mechanism == name);
        let end_point = match &self.connection.stream {
            Stream::Tls(stream) if wanted != ChannelBinding::Disable => Some(tls::server_end_point(stream)),
            Stream::Tls(_) => None,
            Stream::Tcp(_) | Stream::Unix(_) if offered(SCRAM_SHA_256_PLUS) => {
                return Err(ConnectError::PlusWithoutTls);
            }
            Stream::Tcp(_) | Stream::Unix(_) if wanted == ChannelBinding::Require => {
                return Err(ConnectError::ChannelBinding { reason: "SSL not in use" });
            }
            Stream::Tcp(_) | Stream::Unix(_) => None,
        };
        match (offered(SCRAM_SHA_256_PLUS), end_point) {
            (true, Some(Some(hash))) => Ok((SCRAM_SHA_256_PLUS, ClientBinding::ServerEndPoint(hash))),
            (true, _) if wanted == ChannelBinding::Require => {
                let reason = "the server's certificate has a signature that cannot be bound to";
                Err(ConnectError::ChannelBinding { reason })
            }
            (false, _) if wanted == ChannelBinding::Require => {
                let reason = "server did not offer an authentication method that supports channel binding";
                Err(ConnectError::ChannelBinding { reason })
            }
            _ if !offered(SCRAM_SHA_256) => Err(ConnectError::NoMechanism),
            // We could have bound, had the server offered it.
            (false, Some(Some(_))) => Ok((SCRAM_SHA_256, ClientBinding::NotOffered)),
            _ => Ok((SCRAM_SHA_256, ClientBinding::Unsupported)),
        }
    }

    /// PG: `check_expected_areq` for methods other than SASL.
    fn check_method(&self, method: AuthMethod, asked: &str) -> Result<(), ConnectError> {
        self.require(method, || format!("server requested {asked}"))?;
        if self.info.channel_binding == ChannelBinding::Require {
            let reason = "not supported by server's authentication request";
            return Err(ConnectError::ChannelBinding { reason });
        }
        Ok(())
    }

    /// PG: `check_expected_areq` for AuthenticationOk.
    fn check_accepted(&self, progress: &Progress) -> Result<(), ConnectError> {
        let bound = match progress {
            Progress::Start => {
                self.require(AuthMethod::None, || "server did not complete authentication".to_owned())?;
                Bound::No
            }
            Progress::Answered => Bound::No,
            Progress::ScramDone(bound) => *bound,
            // Who skips its own proof does not know the password.
            Progress::ScramStarted(..) | Progress::ScramProved(..) => {
                return Err(protocol("server did not complete SCRAM authentication".to_owned()));
            }
        };
        if self.info.channel_binding == ChannelBinding::Require && bound == Bound::No {
            let reason = "server authenticated client without channel binding";
            return Err(ConnectError::ChannelBinding { reason });
        }
        Ok(())
    }

    fn require(&self, method: AuthMethod, reason: impl FnOnce() -> String) -> Result<(), ConnectError> {
        if self.info.require_auth.allows(method) {
            return Ok(());
        }
        Err(ConnectError::Requirement { required: self.info.require_auth.to_string(), reason: reason() })
    }

    async fn md5_response(&self, salt: [u8; 4]) -> Result<String, ConnectError> {
        let stored = self.info.stored_md5.as_ref().and_then(|hash| std::str::from_utf8(hash.expose()).ok());
        if let Some(response) = stored.and_then(|hash| md5::response_from_stored(hash, salt)) {
            return Ok(response);
        }
        let password = self.password().await?;
        Ok(md5::response_from_password(&self.info.user, password.expose(), salt))
    }

    async fn password(&self) -> Result<Secret, ConnectError> {
        let (password, hint) = match (&self.info.password, &self.info.passfile) {
            (None, Some(path)) => {
                let (info, host) = (self.info.clone(), self.host.clone());
                let what = format!("password file \"{}\"", path.display());
                match aside::with_files(self.info, what, move |_| info.password_for(&host)).await? {
                    Ok(password) => (password, None),
                    Err(error) => (None, Some(error.to_string())),
                }
            }
            (given, _) => (given.clone(), None),
        };
        password.filter(|password| !password.expose().is_empty()).ok_or(ConnectError::NoPassword { hint })
    }

    /// Collects what the server reports until it is ready.
    async fn wait_until_ready(&mut self) -> Result<(), ConnectError> {
        loop {
            let (kind, body) = self.read().await?;
            match kind {
                b'Z' => return Ok(()),
                b'S' => {
                    let (name, value) = decode(kind, message::parameter_status(body))?;
                    self.connection.set_parameter(name, value).map_err(protocol)?;
                }
                b'K' => {
                    let (pid, key) = decode(kind, message::backend_key_data(body))?;
                    (self.connection.backend_pid, self.connection.cancel_key) = (Some(pid), key);
                }
                b'E' => return Err(ConnectError::Server(decode(kind, message::server_error(body))?)),
                b'N' => self.note(kind, body)?,
                other => return Err(unexpected(other)),
            }
        }
    }

    fn note(&mut self, kind: u8, body: Bytes) -> Result<(), ConnectError> {
        let notice: ServerError = decode(kind, message::server_error(body))?;
        self.connection.keep_notice(notice);
        Ok(())
    }

    /// `target_session_attrs`, by what servers from 14 on report; older ones are asked.
    async fn check_session(&mut self) -> Result<(), ConnectError> {
        let wanted = self.info.target_session_attrs;
        let fits = match wanted {
            TargetSessionAttrs::Any | TargetSessionAttrs::PreferStandby => return Ok(()),
            TargetSessionAttrs::Primary => !self.is_on("in_hot_standby", "transaction_read_only").await?,
            TargetSessionAttrs::Standby => self.is_on("in_hot_standby", "transaction_read_only").await?,
            TargetSessionAttrs::ReadWrite => !self.is_read_only().await?,
            TargetSessionAttrs::ReadOnly => self.is_read_only().await?,
        };
        let problem = match wanted {
            TargetSessionAttrs::Primary => "server is in hot standby mode",
            TargetSessionAttrs::Standby => "server is not in hot standby mode",
            TargetSessionAttrs::ReadWrite => "session is read-only",
            _ => "session is not read-only",
        };
        if fits { Ok(()) } else { Err(ConnectError::SessionAttrs { problem }) }
    }

    async fn is_read_only(&mut self) -> Result<bool, ConnectError> {
        Ok(self.is_on("in_hot_standby", "transaction_read_only").await?
            || self.is_on("default_transaction_read_only", "transaction_read_only").await?)
    }

    async fn is_on(&mut self, parameter: &str, setting: &str) -> Result<bool, ConnectError> {
        if let Some(value) = self.connection.parameter(parameter) {
            return Ok(value == "on");
        }
        let result = self.connection.query(&format!("SHOW {setting}")).await;
        let result = result.map_err(|error| match error {
            super::QueryError::Server(error) => ConnectError::Server(error),
            super::QueryError::Io(error) => ConnectError::Io(error),
            super::QueryError::Closed => ConnectError::Closed,
            error => protocol(error.to_string()),
        })?;
        let value = result.rows.first().and_then(|row| row.first()).cloned().flatten();
        Ok(value.is_some_and(|value| &value[..] == b"on"))
    }
}

/// A server may offer what we asked for or an older minor version, and 3.0 is the oldest.
fn check_version(version: u32) -> Result<(), ConnectError> {
    if version == 3 << 16 {
        return Ok(());
    }
    Err(protocol(format!("server wants protocol {}.{} instead of 3.0", version >> 16, version & 0xffff)))
}

fn method_name(code: u32) -> String {
    match code {
        2 => "Kerberos 5".to_owned(),
        6 => "SCM".to_owned(),
        7 | 8 => "GSSAPI".to_owned(),
        9 => "SSPI".to_owned(),
        other => format!("method {other}"),
    }
}

fn protocol(problem: String) -> ConnectError {
    ConnectError::Protocol { problem }
}

fn unexpected(kind: u8) -> ConnectError {
    protocol(format!("message of type '{}'", kind.escape_ascii()))
}

fn decode<T>(kind: u8, result: Result<T, Malformed>) -> Result<T, ConnectError> {
    result.map_err(|Malformed| protocol(format!("malformed message of type '{}'", kind.escape_ascii())))
}
