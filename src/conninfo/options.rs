//! Every keyword libpq 18 knows, and the values collected for them (PG: `PQconninfoOptions`).

use std::collections::BTreeMap;
use std::fmt;

use super::ConnInfoError;

macro_rules! keywords {
    ($($variant:ident $name:literal $variable:expr, $default:expr;)*) => {
        /// A connection option, in the order of libpq's table.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Keyword {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
        }

        impl Keyword {
            /// All of them.
            pub const ALL: &[Keyword] = &[$(Keyword::$variant),*];

            /// The name as typed in a connection string.
            pub const fn name(self) -> &'static str {
                match self { $(Keyword::$variant => $name),* }
            }

            /// The environment variable to fall back on.
            pub(super) const fn variable(self) -> Option<&'static str> {
                match self { $(Keyword::$variant => $variable),* }
            }

            /// The value when nobody says anything.
            pub(super) const fn default(self) -> Option<&'static str> {
                match self { $(Keyword::$variant => $default),* }
            }
        }
    };
}

keywords! {
    Service "service" Some("PGSERVICE"), None;
    User "user" Some("PGUSER"), None;
    Password "password" Some("PGPASSWORD"), None;
    Passfile "passfile" Some("PGPASSFILE"), None;
    ChannelBinding "channel_binding" Some("PGCHANNELBINDING"), Some("prefer");
    ConnectTimeout "connect_timeout" Some("PGCONNECT_TIMEOUT"), None;
    Dbname "dbname" Some("PGDATABASE"), None;
    Host "host" Some("PGHOST"), None;
    Hostaddr "hostaddr" Some("PGHOSTADDR"), None;
    Port "port" Some("PGPORT"), Some("5432");
    ClientEncoding "client_encoding" Some("PGCLIENTENCODING"), None;
    Options "options" Some("PGOPTIONS"), None;
    ApplicationName "application_name" Some("PGAPPNAME"), None;
    FallbackApplicationName "fallback_application_name" None, None;
    Keepalives "keepalives" None, None;
    KeepalivesIdle "keepalives_idle" None, None;
    KeepalivesInterval "keepalives_interval" None, None;
    KeepalivesCount "keepalives_count" None, None;
    TcpUserTimeout "tcp_user_timeout" None, None;
    Sslmode "sslmode" Some("PGSSLMODE"), Some("prefer");
    Sslnegotiation "sslnegotiation" Some("PGSSLNEGOTIATION"), Some("postgres");
    Sslcompression "sslcompression" Some("PGSSLCOMPRESSION"), None;
    Sslcert "sslcert" Some("PGSSLCERT"), None;
    Sslkey "sslkey" Some("PGSSLKEY"), None;
    Sslcertmode "sslcertmode" Some("PGSSLCERTMODE"), Some("allow");
    Sslpassword "sslpassword" None, None;
    Sslrootcert "sslrootcert" Some("PGSSLROOTCERT"), None;
    Sslcrl "sslcrl" Some("PGSSLCRL"), None;
    Sslcrldir "sslcrldir" Some("PGSSLCRLDIR"), None;
    Sslsni "sslsni" Some("PGSSLSNI"), Some("1");
    Requirepeer "requirepeer" Some("PGREQUIREPEER"), None;
    RequireAuth "require_auth" Some("PGREQUIREAUTH"), None;
    MinProtocolVersion "min_protocol_version" Some("PGMINPROTOCOLVERSION"), None;
    MaxProtocolVersion "max_protocol_version" Some("PGMAXPROTOCOLVERSION"), None;
    SslMinProtocolVersion "ssl_min_protocol_version" Some("PGSSLMINPROTOCOLVERSION"), Some("TLSv1.2");
    SslMaxProtocolVersion "ssl_max_protocol_version" Some("PGSSLMAXPROTOCOLVERSION"), None;
    Gssencmode "gssencmode" Some("PGGSSENCMODE"), Some("prefer");
    Krbsrvname "krbsrvname" Some("PGKRBSRVNAME"), None;
    Gsslib "gsslib" Some("PGGSSLIB"), None;
    Gssdelegation "gssdelegation" Some("PGGSSDELEGATION"), None;
    Replication "replication" None, None;
    TargetSessionAttrs "target_session_attrs" Some("PGTARGETSESSIONATTRS"), Some("any");
    LoadBalanceHosts "load_balance_hosts" Some("PGLOADBALANCEHOSTS"), Some("disable");
    ScramClientKey "scram_client_key" None, None;
    ScramServerKey "scram_server_key" None, None;
    OauthIssuer "oauth_issuer" None, None;
    OauthClientId "oauth_client_id" None, None;
    OauthClientSecret "oauth_client_secret" None, None;
    OauthScope "oauth_scope" None, None;
    Sslkeylogfile "sslkeylogfile" None, None;
}

impl Keyword {
    /// The keyword with this name, exactly.
    pub(super) fn find(name: &str) -> Option<Keyword> {
        Keyword::ALL.iter().copied().find(|keyword| keyword.name() == name)
    }

    /// Whether its value must never be shown.
    pub(super) const fn is_secret(self) -> bool {
        matches!(
            self,
            Keyword::Password
                | Keyword::Sslpassword
                | Keyword::ScramClientKey
                | Keyword::ScramServerKey
                | Keyword::OauthClientSecret
        )
    }
}

impl fmt::Display for Keyword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Values by keyword. An empty value counts as given: it keeps environment and defaults away, as in libpq.
#[derive(Default)]
pub(super) struct Settings(BTreeMap<Keyword, String>);

impl Settings {
    pub(super) fn get(&self, keyword: Keyword) -> Option<&str> {
        self.0.get(&keyword).map(String::as_str)
    }

    /// The value unless it is missing or empty, which means the same for most options.
    pub(super) fn non_empty(&self, keyword: Keyword) -> Option<&str> {
        self.get(keyword).filter(|value| !value.is_empty())
    }

    pub(super) fn set(&mut self, keyword: Keyword, value: String) {
        self.0.insert(keyword, value);
    }

    pub(super) fn set_if_missing(&mut self, keyword: Keyword, value: String) {
        self.0.entry(keyword).or_insert(value);
    }

    /// Stores what a connection string says; the last one wins.
    ///
    /// PG: `conninfo_storeval`, with its translation of the old `requiressl`.
    pub(super) fn store(&mut self, name: &str, value: String) -> Result<Keyword, ConnInfoError> {
        if name == "requiressl" {
            let mode = if value.starts_with('1') { "require" } else { "prefer" };
            self.set(Keyword::Sslmode, mode.to_owned());
            return Ok(Keyword::Sslmode);
        }
        let keyword =
            Keyword::find(name).ok_or_else(|| ConnInfoError::UnknownOption { name: name.to_owned() })?;
        self.set(keyword, value);
        Ok(keyword)
    }

    /// All values in the order of libpq's table, secrets included.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (Keyword, &str)> {
        self.0.iter().map(|(keyword, value)| (*keyword, value.as_str()))
    }
}
